"""Explanations: the weights that are used, the kernels that are learned, and pictures that hold both."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trained import train

import recbole_adrrec
from recbole_adrrec import cli, explain, pictures, plugin
from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.layers.attention import MixAttention, captured_weights
from recbole_adrrec.layers.intervals import IntervalAttention

MODELS = {
    "ADRRec": {"relative_kernels": ["sinusoid", "distance"]},
    "ADRRec told": {
        "use_query_time": True,
        "relative_kernels": ["exponential", "log1p"],
        "absolute_kernels": ["hour", "day"],
    },
    "MEANTIME": {},
    "STOSA": {},
    "TiSASRec": {},
    "TiSASRec padded": {"published_padding_attention": True},
    "AWRSR sasrec": {"backbone": "sasrec", "refinement": "simple"},
    "AWRSR stosa": {"backbone": "stosa", "refinement": "stochastic"},
    "AWRSR tisasrec": {"backbone": "tisasrec", "refinement": "value"},
    "AWRSR mix": {"backbone": "mix", "refinement": "additive"},
    "AWRSR none": {"backbone": "sasrec", "refinement": "none"},
    "AWRSR trend": {"backbone": "sasrec", "trend_rank": 3, "use_query_time": True},
}
CLOZE = "MEANTIME"
LENGTH = 12


@pytest.fixture(scope="session")
def recommenders(small_data, tmp_path_factory):
    """Recommenders by name, with weights large enough to tell heads and kernels apart."""
    folder, made = tmp_path_factory.mktemp("explained"), {}

    def get(name):
        if name not in made:
            with plugin.command_line({}, strict=False), pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)  # RecBole makes its log folders here
                options = MODELS.get(name, {})
                run = train(
                    name.split()[0], small_data, folder / name.replace(" ", "_"), initializer_range=0.5, **options
                )
            made[name] = recbole_adrrec.load(run.path)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_reasons_are_the_weights_of_the_last_query(recommenders, name):
    recommender = recommenders(name)
    user = recommender.users[4]
    reasons = explain.explain(recommender, user)
    seen = recommender.model.explain(recommender.rows([user]))
    np.testing.assert_allclose(reasons.plain, seen.plain[:, :, -1].numpy(), rtol=1e-6)
    np.testing.assert_allclose(reasons.refined, seen.refined[:, :, -1].numpy(), rtol=1e-6)
    if "padded" not in name:  # there, padding has a share
        np.testing.assert_allclose(reasons.plain.sum(-1), 1, rtol=1e-5)
    items, times = recommender.history(user)
    shown = LENGTH - (name == CLOZE)
    assert reasons.items == items[-shown:]
    assert reasons.times.tolist() == times[-shown:].tolist()
    assert reasons.asks_itself == (name == CLOZE)
    assert reasons.is_refined == (name.startswith("AWRSR") and "none" not in name)
    assert reasons.recommended == next(iter(recommender.recommend(user, top=5)))[1]
    if "none" not in name and "AWRSR" in name:
        assert not np.allclose(reasons.plain, reasons.refined)


def test_heads_are_named_by_what_they_know(recommenders):
    assert explain.explain(recommenders("ADRRec"), recommenders("ADRRec").users[0]).heads == [
        *("position", "day", "sinusoid", "distance")
    ]
    assert explain.explain(recommenders("STOSA"), recommenders("STOSA").users[0]).heads == ["head 1", "head 2"]


def scores_of(model, row):
    """Scores of the last query in each layer, [H, L], and those without what relative kernels add."""
    with_kernels, queries = [], []
    kinds = (MixAttention, IntervalAttention)
    parts = [part for part in model.encoder.modules() if isinstance(part, kinds)]
    originals = [part.score for part in parts]

    def watch(part, original):
        def score(query, hidden, context):
            found = original(query, hidden, context)
            with_kernels.append(found[0, :, -1].detach())
            queries.append((part, query.detach(), hidden.detach(), context))
            return found

        return score

    for part, original in zip(parts, originals, strict=True):
        part.score = watch(part, original)
    try:
        with torch.no_grad(), captured_weights(model.encoder):
            items, moments, _ = model._asked(row)
            model(items, moments)
    finally:
        for part in parts:
            del part.score
    return with_kernels, queries, moments


@pytest.mark.parametrize("name", ["ADRRec", "ADRRec told", "MEANTIME", "AWRSR mix"])
def test_curves_are_what_relative_kernels_add_to_scores(recommenders, name):
    recommender = recommenders(name)
    user = recommender.users[4]
    moment = int(recommender.history(user)[1][-1]) + 90
    reasons = explain.explain(recommender, user, moment)
    scores, queries, moments = scores_of(recommender.model, recommender.rows([user], moment))
    asked = float(moments.query_time[0, -1])
    assert reasons.query_time == asked
    gaps = {
        "seconds": asked - moments.key_time[0].double().numpy(),
        "places": np.arange(len(scores[0][0]))[::-1].copy(),
    }
    assert len(reasons.kernels) == 2 * len(scores)
    for kernel in reasons.kernels:
        part, query, hidden, _ = queries[kernel.layer - 1]
        place = kernel.head - 1
        content = part._scaled_query(query)[0, place, -1] @ part._split(part.key(hidden))[0, place].T
        added = (scores[kernel.layer - 1][place] - content).detach().numpy()
        np.testing.assert_allclose(kernel.curve(gaps[kernel.unit]), added, rtol=1e-3, atol=2e-4)
        assert np.ptp(added) > 1e-3


def test_curves_of_tisasrec_are_what_intervals_add_to_scores(recommenders):
    recommender = recommenders("TiSASRec")
    user = recommender.users[4]
    reasons = explain.explain(recommender, user)
    scores, queries, moments = scores_of(recommender.model, recommender.rows([user]))
    gaps = (moments.key_time[0, -1] - moments.key_time[0]).double().numpy()
    assert len(reasons.kernels) == 2 * 2
    for kernel in reasons.kernels:
        part, query, hidden, context = queries[kernel.layer - 1]
        place = kernel.head - 1
        keys = part._split(part.key(hidden) + context.position_key)[0, place]
        content = part._scaled_query(query)[0, place, -1] @ keys.T
        added = (scores[kernel.layer - 1][place] - content).detach().numpy()
        np.testing.assert_allclose(kernel.curve(gaps), added, rtol=1e-3, atol=1e-4)
        assert np.ptp(added) > 1e-3


def test_the_moment_decides_what_is_shown(recommenders):
    recommender = recommenders("ADRRec told")
    user = recommender.users[4]
    times = recommender.history(user)[1]
    reasons = explain.explain(recommender, user, at=int(times[6]))
    assert reasons.times[-1] == times[6]
    assert reasons.at == times[6]
    last = int(times[-1])
    soon, late = (explain.explain(recommender, user, at=last + gap) for gap in (60, 40_000))
    assert soon.items == late.items
    assert not np.allclose(late.plain, soon.plain, atol=1e-6)


def test_other_models_and_users_are_refused(recommenders):
    with pytest.raises(OptionError, match="SASRec is RecBole's own"):
        explain.explain(recommenders("SASRec"), "196")
    with pytest.raises(DataError, match="'nobody' is unknown"):
        explain.explain(recommenders("ADRRec"), "nobody")


# Pictures


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_picture_that_says_something(recommenders, name, tmp_path):
    reasons = explain.explain(recommenders(name), recommenders(name).users[4])
    file = tmp_path / "picture.png"
    file.write_bytes(pictures.png(reasons, {}, dots=60))
    with Image.open(file) as picture:
        picture.load()
        assert picture.width == 14 * 60
        assert picture.height > 4 * 60
        shades = picture.convert("L").getextrema()
    assert shades == (0, 255) or shades[1] - shades[0] > 150


def svg(page):
    data = re.search(rb"data:image/svg\+xml;base64,([^\"]+)", page)[1]
    return base64.b64decode(data).decode()


def test_a_page_has_titles_weights_and_kernels_and_needs_nothing_else(recommenders):
    recommender = recommenders("ADRRec")
    reasons = explain.explain(recommender, recommender.users[4])
    titles = {item: f"<b>$1 & $2</b> of {item} ☃" for item in recommender.items}
    page = pictures.page(reasons, titles)
    text = page.decode()
    for item in reasons.items:
        assert f"&lt;b&gt;$1 &amp; $2&lt;/b&gt; of {item} ☃" in text
    assert "<b>$1" not in text
    for weights in reasons.plain:
        for weight in weights.ravel():
            assert f">{100 * weight:.2f}<" in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert "<script" not in text
    drawing = svg(page)
    for word in ("sinusoid", "distance", "gap in seconds", "gap in hours", "gap in days", "time (UTC)", "layer 2"):
        assert word in drawing
    (kernel, *_) = [kernel for kernel in reasons.kernels if kernel.unit == "seconds"]
    for value in kernel.curve(np.array([gap for _, gap in pictures.GAPS], dtype=float)):
        assert f">{value:.3f}<" in text


def test_refined_weights_stand_beside_plain_ones(recommenders):
    reasons = explain.explain(recommenders("AWRSR mix"), recommenders("AWRSR mix").users[4])
    text = pictures.page(reasons, {}).decode()
    assert text.count("layer 1, before") == text.count("layer 1, refined") == 1
    for weights in (*reasons.plain, *reasons.refined):
        assert f">{100 * weights[0, 0]:.2f}<" in text
    plain = pictures.page(explain.explain(recommenders("STOSA"), recommenders("STOSA").users[0]), {}).decode()
    assert "layer 1" in plain
    assert "refined" not in plain


def test_models_without_kernels_of_gaps_say_so(recommenders):
    page = pictures.page(explain.explain(recommenders("STOSA"), recommenders("STOSA").users[0]), {})
    assert "STOSA has no kernel of the gap" in svg(page)
    assert "gap in hours" not in svg(page)


def test_earlier_events_share_a_line_and_their_weights(recommenders):
    reasons = explain.explain(recommenders("ADRRec"), recommenders("ADRRec").users[4])
    page = pictures.page(reasons, {}, shown=4)
    assert f"{len(reasons.items) - 4} earlier events together" in svg(page)
    folded = pictures._folded(reasons, reasons.plain[0], 4)
    assert folded.shape == (5, 4)
    np.testing.assert_allclose(folded.sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(folded[0], reasons.plain[0][:, -1])
    assert "earlier events" not in svg(pictures.page(reasons, {}, shown=12))


def test_one_event_can_be_drawn(recommenders):
    for name in ("ADRRec", "MEANTIME", "TiSASRec"):
        recommender = recommenders(name)
        single = recommender.append(["ann"], recommender.items[:1], [893_286_638])
        reasons = explain.explain(single, "ann", at=893_286_638)
        assert len(reasons.items) == 1
        assert pictures.png(reasons, {}, dots=40).startswith(b"\x89PNG")


# The command line


def run_cli(capsys, *argv):
    code = cli.main(["explain", *map(str, argv)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_writes_what_the_suffix_says(capsys, recommenders):
    recommender = recommenders("ADRRec")
    user = recommender.users[4]
    moment = int(recommender.history(user)[1][5])
    Path("mine.item").write_text(f"item_id:token\ttitle:token_seq\n{recommender.history(user)[0][0]}\tFirst of all\n")
    code, out, _ = run_cli(
        *(capsys, "-c", recommender.path, "-u", user, "-o", "x.html", "--at", f"@{moment}", "--item_file", "mine.item")
    )
    count = int((recommender.history(user)[1] <= moment).sum())
    assert (code, out) == (0, f"Wrote x.html: {count} events of user {user}\n")
    assert "First of all" in Path("x.html").read_text()
    assert run_cli(capsys, "-c", recommender.path, "-u", user, "-o", "x.PNG")[0] == 0
    assert Path("x.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-u", "196", "-o", "x.pdf"], "error: --output: x.pdf is neither .png nor .html"),
        (["-u", "196", "-o", "no/x.png"], "error: --output: there is no folder"),
        (["-u", "nobody", "-o", "x.png"], "error: users: 'nobody' is unknown"),
        (["-u", "196", "-o", "x.png", "--shown", "0"], "error: --shown: 0"),
        (["-u", "196", "-o", "x.png", "--at", "soon"], "error: at: time 'soon'"),
        (["-o", "x.png"], "the following arguments are required: --user"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, recommenders, argv, message):
    code, out, err = run_cli(capsys, "-c", recommenders("ADRRec").path, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(Path.cwd().iterdir())


def test_models_of_recbole_have_no_explanation(capsys, recommenders):
    code, _, err = run_cli(capsys, "-c", recommenders("SASRec").path, "-u", "196", "-o", "x.png")
    assert code == 2
    assert "explain works for ADRRec, AWRSR, MEANTIME, STOSA and TiSASRec" in err
