"""Exported graphs in onnxruntime, against the models that they come from."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ML_100K
from trained import train

from recbole_adrrec import cli, load
from recbole_adrrec.errors import OptionError
from recbole_adrrec.layers.refinement import REFINEMENTS
from recbole_adrrec.models.awrsr import BACKBONES
from recbole_adrrec.tools import export

QUICK = {
    "ADRRec": ("ADRRec", {"trend_rank": 2, "use_query_time": True}),
    "TiSASRec": ("TiSASRec", {}),
    "MEANTIME": ("MEANTIME", {"hidden_size": 32}),
}
SLOW = {
    "ADRRec, all kernels": (
        "ADRRec",
        {
            **{"mixture": "heads", "absolute_kernels": ["position", "day", "constant", "hour", "weekday", "month"]},
            **{"relative_kernels": ["sinusoid", "exponential", "log1p", "distance"], "grid_points": 8},
            **{"hidden_size": 20, "n_heads": None, "day_spacing": None},
        },
    ),
    "ADRRec, projected head": ("ADRRec", {"item_head": "projected", "event_layout": "grouped"}),
    "ADRRec, cosines": ("ADRRec", {"temperature": 0.1, "objective": "cloze"}),
    "HSTU": ("HSTU", {"use_query_time": True}),
    "TiSASRec, published": ("TiSASRec", {"published_padding_attention": True}),
    "STOSA": ("STOSA", {}),
    "BERT4Rec": ("AWRSR", {"refinement": "none", "objective": "cloze", "item_head": "projected"}),
    **{
        f"AWRSR, {refinement}, {backbone}": ("AWRSR", {"refinement": refinement, "backbone": backbone})
        for refinement, backbone in itertools.product(["none", *REFINEMENTS], BACKBONES)
    },
}
every_model = pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])


@pytest.fixture(scope="module")
def recommenders(tmp_path_factory):
    """Gives the recommender of a model on ml-100k, made once, with weights that make every part count."""
    made = {}

    def recommender(name):
        if name not in made:
            model, given = {**QUICK, **SLOW}[name]
            given = {"dataset": "ml-100k", "MAX_ITEM_LIST_LENGTH": 50, **given}
            made[name] = load(train(model, ML_100K.parents[1], tmp_path_factory.mktemp("export"), **given).path)
            noise = torch.Generator().manual_seed(7)
            with torch.no_grad():
                for weight in made[name].model.parameters():
                    weight.add_(0.1 * torch.randn(weight.shape, generator=noise))
        return made[name]

    return recommender


def inputs_of(session, recommender, users):
    """Inputs of a graph for users, and the rows that the model takes."""
    rows = recommender.rows(users, None)
    config = recommender.config
    given = {
        "items": rows[config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]],
        "times": rows[config["TIME_FIELD"] + config["LIST_SUFFIX"]],
        "length": rows[config["ITEM_LIST_LENGTH_FIELD"]],
        "query_time": rows[config["TIME_FIELD"]],
    }
    names = [each.name for each in session.get_inputs()]
    most = int(session.get_modelmeta().custom_metadata_map["max_length"])
    excess = (given["length"] - most).clamp(min=0).unsqueeze(1)
    width = min(most, given["items"].size(1))
    place = torch.arange(width) + excess
    for name in ("items", "times"):  # the newest events, as many as fit
        given[name] = given[name].gather(1, place)
    given["length"] = given["length"].clamp(max=most)
    if "smallest_gap" in names:
        numbers = rows[config["USER_ID_FIELD"]]
        given["smallest_gap"] = recommender.model.kernels.smallest_gaps[numbers]
    return {name: given[name].numpy() for name in names}, rows


def scores_of(recommender, rows):
    with torch.no_grad():
        return recommender.model.full_sort_predict(rows.to("cpu")).numpy()


@every_model
def test_a_graph_gives_the_models_scores_for_any_batch_and_length(name, recommenders, tmp_path):
    recommender = recommenders(name)
    session = onnxruntime.InferenceSession(export.export(recommender, tmp_path / "model.onnx"))
    for users in (recommender.users, recommender.users[3:4]):
        given, rows = inputs_of(session, recommender, users)
        (scores,) = session.run(None, given)
        wanted = scores_of(recommender, rows)
        np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
        ours, theirs = (np.argsort(-each[:, 1:], axis=1)[:, :10] + 1 for each in (scores, wanted))
        close = np.abs(np.take_along_axis(wanted, ours, 1) - np.take_along_axis(wanted, theirs, 1)) < 1e-5
        assert np.all((ours == theirs) | close)
        longest = int(given["length"].max())
        cut = {key: value[:, :longest] if value.ndim == 2 else value for key, value in given.items()}
        np.testing.assert_allclose(session.run(None, cut)[0], scores, rtol=1e-5, atol=1e-5)


def test_the_best_items_are_those_of_recommend(recommenders, tmp_path):
    recommender = recommenders("ADRRec")
    users = recommender.users[:30]
    for seen in (False, True):
        path = export.export(recommender, tmp_path / "top.onnx", top=10, seen=seen)
        session = onnxruntime.InferenceSession(path)
        given, _ = inputs_of(session, recommender, users)
        items, scores = session.run(None, given)
        names = json.loads(session.get_modelmeta().custom_metadata_map["items"])
        met = [{names[item] for item in row if item} for row in given["items"]]
        for user, row, values, known in zip(users, items, scores, met, strict=True):
            # A graph knows the events it is shown, recommend the whole history.
            listed = next(iter(recommender.recommend([user], top=10 + 50, seen=True)))[1]
            wanted = [(item, score) for item, score in listed if seen or item not in known][:10]
            # Equal items in equal places, but where scores differ by less than 1e-5.
            assert values == pytest.approx([score for _, score in wanted], rel=1e-5, abs=1e-5)
            assert all(
                names[item] == other or abs(value - score) < 1e-5
                for item, value, (other, score) in zip(row, values, wanted, strict=True)
            )


@pytest.mark.parametrize("name", ["TiSASRec", *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_states_times_vectors_order_items_as_scores_do(name, recommenders, tmp_path):
    recommender = recommenders(name)
    path = export.export(recommender, tmp_path / "user.onnx", form="vectors")
    session = onnxruntime.InferenceSession(path)
    given, rows = inputs_of(session, recommender, recommender.users[:20])
    (states,) = session.run(None, given)
    products = states @ np.load(tmp_path / "user.npy").T
    difference = products - scores_of(recommender, rows)
    np.testing.assert_allclose(difference, difference[:, :1].repeat(difference.shape[1], 1), rtol=0, atol=2e-5)


def test_a_graph_says_what_it_takes(recommenders, tmp_path):
    recommender = recommenders("MEANTIME")
    session = onnxruntime.InferenceSession(export.export(recommender, tmp_path / "model.onnx"))
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["items"]) == recommender.data.items
    assert json.loads(facts["inputs"]) == ["items", "times", "length", "query_time"]
    assert (facts["model"], facts["form"], facts["max_length"]) == ("MEANTIME", "scores", "49")


def test_exporting_leaves_the_model_as_it_was(recommenders, tmp_path):
    model = recommenders("ADRRec").model
    before = model.compiled, model.event_layout, model.training
    export.export(recommenders("ADRRec"), tmp_path / "model.onnx")
    assert (model.compiled, model.event_layout, model.training) == before


def lines_of(page, heading):
    """The Python lines below a heading of a page."""
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    return text.split(f"\n## {heading}\n")[1].split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("README.md", "Serving without torch and RecBole"),
        ("docs/serving.md", "A model without torch and RecBole"),
    ],
)
def test_the_lines_of_the_docs_serve_without_torch_and_recbole(page, heading, recommenders, tmp_path):
    recommender = recommenders("ADRRec")
    export.export(recommender, tmp_path / "model.onnx", top=5)
    events = [(item, 880_000_000 + 60 * place) for place, item in enumerate(recommender.items[3:9])]
    lines = lines_of(page, heading)
    assert page != "README.md" or len([line for line in lines.splitlines() if line]) <= 15
    lines, count = re.subn(r"history = \[.*?\]\[", lambda _: f"history = {events}[", lines)
    assert count == 1
    last = "import sys; assert not {'torch', 'recbole', 'recbole_adrrec'} & set(sys.modules)"
    call = [sys.executable, "-c", f"{lines}\n{last}"]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=tmp_path)
    answer = ast.literal_eval(done.stdout)
    moment = events[-1][1] + 3600
    extended = recommender.append(["somebody"] * len(events), *zip(*events, strict=True))
    ((_, wanted),) = extended.recommend(["somebody"], moment, top=5)
    assert answer == [item for item, _ in wanted]


def test_the_lines_of_the_docs_find_the_nearest_items(recommenders, tmp_path, monkeypatch):
    recommender = recommenders("TiSASRec")
    monkeypatch.chdir(tmp_path)
    export.export(recommender, "user.onnx", form="vectors")
    users = recommender.users[:200]
    given, rows = inputs_of(onnxruntime.InferenceSession("user.onnx"), recommender, users)
    lines = lines_of("docs/serving.md", "A nearest-neighbour index")
    exec(lines.replace('"length": length}', '"length": length, "smallest_gap": smallest_gap}'), given)
    scores = scores_of(recommender, rows)[:, 1:]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    found = given["best"] - 1
    assert found.shape == (200, 10)
    assert all(len(set(row)) == 10 for row in found)
    differences = np.take_along_axis(scores, found, 1) - np.take_along_axis(scores, best, 1)
    assert np.all((found == best) | (np.abs(differences) <= 1e-5))


def test_the_command(recommenders, tmp_path, capsys):
    recommender = recommenders("TiSASRec")
    out = tmp_path / "user.onnx"
    arguments = ["export", "--checkpoint", recommender.path, "--output", str(out)]
    assert cli.main([*arguments, "--form", "vectors"]) == 0
    assert f"Wrote {out} and {out.with_suffix('.npy')}: TiSASRec" in capsys.readouterr().out
    for more, words in (
        (["--top", "0"], "top: 0 is not a whole number from 1 to"),
        (["--seen"], "seen: True means nothing without top"),
        (["--form", "vectors", "--top", "3"], "top: 3 means nothing with form vectors"),
        (["--form", "vector"], "invalid choice: 'vector'"),
    ):
        assert cli.main([*arguments, *more]) == 2
        assert words in capsys.readouterr().err
    assert cli.main([*arguments[:-1], str(tmp_path / "model.bin")]) == 2
    assert "should be named .onnx" in capsys.readouterr().err


def test_models_without_a_graph_and_missing_packages_are_named(recommenders, small_data, tmp_path, monkeypatch):
    for name in ("SASRec", "Popularity"):
        other = load(train(name, small_data, tmp_path, epochs=int(name == "Popularity")).path)
        with pytest.raises(OptionError, match=f"model: {name} has no graph; export takes ADRRec"):
            export.export(other, tmp_path / "model.onnx")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name == "onnx" else found(name, package)
    )
    with pytest.raises(OptionError, match=r"export needs onnx: pip install 'recbole_adrrec\[export\]'"):
        export.export(recommenders("TiSASRec"), tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))
