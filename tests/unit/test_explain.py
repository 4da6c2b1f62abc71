"""Explanations: the weights that are used, the kernels that are learned, and pictures that hold both."""

import base64
import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trained import train, train_once

import recbole_adrrec
from recbole_adrrec import cli
from recbole_adrrec.errors import DataError, OptionError
from recbole_adrrec.integration import register as plugin
from recbole_adrrec.layers.attention import AdaptiveMixAttention, Attention, captured_weights
from recbole_adrrec.tools import explain, plots
from recbole_adrrec.tools.page import GAPS
from recbole_adrrec.tools.page import page as html

MODELS = {
    "ADRRec": {"relative_kernels": ["sinusoid", "distance"], "mixture": "heads", "n_heads": None},
    "ADRRec told": {
        "use_query_time": True,
        "relative_kernels": ["exponential", "log1p"],
        "absolute_kernels": ["hour", "day"],
        "mixture": "heads",
        "n_heads": None,
    },
    "ADRRec adaptive": {
        "relative_kernels": ["sinusoid", "gap_bias", "distance_bias", "distance"],
        "day_spacing": 7,
        "norm_order": "pre",
    },
    "ADRRec adaptive told": {"use_query_time": True, "relative_kernels": ["log1p", "gap_bias"]},
    "ADRRec adaptive cloze": {"objective": "cloze", "relative_kernels": ["exponential", "distance_bias"]},
    "ADRRec absolute": {"relative_kernels": []},
    "HSTU": {},
    "HSTU told": {"use_query_time": True, "n_heads": 1},
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
KERNELS = {"absolute_kernels": ["position", "day"], "relative_kernels": ["sinusoid", "distance"]}
"""Of models with kernels, where they name no others."""

CLOZE = ("MEANTIME", "ADRRec adaptive cloze")
LENGTH = 12


@pytest.fixture(scope="session")
def recommenders(small_data, tmp_path_factory):
    """Recommenders by name, with weights large enough to tell heads and kernels apart."""
    folder = tmp_path_factory.mktemp("explained")
    kernels = {
        name: KERNELS if name.startswith("ADRRec") or name == "AWRSR mix" else {} for name in [*MODELS, "SASRec"]
    }
    options = {name: {"initializer_range": 0.5, **own, **MODELS.get(name, {})} for name, own in kernels.items()}
    trained = train_once(options, small_data, folder)

    @functools.cache
    def get(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)  # RecBole makes its log folders here
            made = recbole_adrrec.load(trained(name).path)
        # Untrained gates are closed, tables of biases zero.
        generator = torch.Generator().manual_seed(1)
        for part in made.model.modules():
            if isinstance(part, AdaptiveMixAttention):
                for parameter in (part.gates.weight, *part.bias_tables):
                    parameter.data.normal_(0, 0.5, generator=generator)
        return made

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
    assert reasons.sums_to_one == ("HSTU" not in name)
    if "padded" not in name and "HSTU" not in name:  # padding has a share; SiLU gives no shares
        np.testing.assert_allclose(reasons.plain.sum(-1), 1, rtol=1e-5)
    items, times = recommender.history(user)
    shown = LENGTH - (name in CLOZE)
    assert reasons.items == items[-shown:]
    assert reasons.times.tolist() == times[-shown:].tolist()
    assert reasons.has_mask_key == (name in CLOZE)
    assert reasons.is_refined == (name.startswith("AWRSR") and "none" not in name)
    assert reasons.recommended == next(iter(recommender.recommend(user, top=5)))[1]
    if "none" not in name and "AWRSR" in name:
        assert not np.allclose(reasons.plain, reasons.refined)


def test_heads_are_named_by_what_they_know(recommenders):
    def heads(name):
        return explain.explain(recommenders(name), recommenders(name).users[0]).heads

    assert heads("ADRRec") == ["position", "day", "sinusoid", "distance"]
    assert heads("STOSA") == heads("ADRRec adaptive") == ["head 1", "head 2"]


def last_scores(model, row):
    """For each layer the scores of the last query, and what each relative kernel has in them, [H, L] each."""
    layers = []
    parts = [part for part in model.encoder.modules() if isinstance(part, Attention)]

    def watch(part, original):
        def score_parts(projected, context, group):
            def last(**changes):
                return torch.cat(original(projected._replace(**changes), context, group), 1)[0, :, -1].detach()

            pairs = projected.pairs
            without = [[torch.zeros_like(pair) if pair is one else pair for pair in pairs] for one in pairs]
            layers.append([last() - last(pairs=tuple(each)) for each in without])
            return original(projected, context, group)

        return score_parts

    for part in parts:
        part.score_parts = watch(part, part.score_parts)
    try:
        with torch.no_grad(), captured_weights(model.encoder):
            items, moments, _ = model._inference_inputs(row)
            model(items, moments)
    finally:
        for part in parts:
            del part.score_parts
    return layers, moments


ADAPTIVE = ["ADRRec adaptive", "ADRRec adaptive told", "ADRRec adaptive cloze"]


@pytest.mark.parametrize("name", ["ADRRec", "ADRRec told", "MEANTIME", "AWRSR mix", *ADAPTIVE])
def test_curves_are_what_relative_kernels_add_to_scores(recommenders, name):
    recommender = recommenders(name)
    user = recommender.users[4]
    moment = int(recommender.history(user)[1][-1]) + 90
    reasons = explain.explain(recommender, user, moment)
    layers, moments = last_scores(recommender.model, recommender.rows([user], moment))
    asked = float(moments.query_time[0, -1])
    if reasons.has_mask_key or "told" in name:
        assert reasons.query_time == asked
    gaps = {
        "seconds": asked - moments.key_time[0].double().numpy(),
        "places": np.arange(moments.key_time.size(1), dtype=float)[::-1].copy(),
    }
    names = recommender.model.kernels.relative_names
    heads_of = {
        kernel: [1, 2] if name in ADAPTIVE or "AWRSR" in name else [len(reasons.heads) - len(names) + place + 1]
        for place, kernel in enumerate(names)
    }
    assert [(kernel.layer, kernel.name, kernel.head) for kernel in reasons.kernels] == [
        (layer, kernel, head) for layer in (1, 2) for kernel in names for head in heads_of[kernel]
    ]
    for kernel in reasons.kernels:
        added = layers[kernel.layer - 1][names.index(kernel.name)][kernel.head - 1].numpy()
        np.testing.assert_allclose(kernel.curve(gaps[kernel.unit]), added, rtol=1e-3, atol=2e-4)
        assert np.ptp(added) > 1e-3


@pytest.mark.parametrize("name", [*ADAPTIVE, "ADRRec absolute"])
def test_gates_are_those_of_the_last_query(recommenders, name):
    recommender = recommenders(name)
    user = recommender.users[4]
    reasons = explain.explain(recommender, user)
    found = []
    parts = [part for part in recommender.model.modules() if isinstance(part, AdaptiveMixAttention)]
    handles = [
        part.gates.register_forward_hook(lambda _, __, gates: found.append(gates.flatten(0, -2)[-1])) for part in parts
    ]
    recommender.model.explain(recommender.rows([user]))
    for handle in handles:
        handle.remove()
    kernels = recommender.model.kernels
    assert reasons.gated == ["position", "day", *kernels.relative_names]
    np.testing.assert_allclose(reasons.gates.reshape(2, -1), torch.stack(found).detach().numpy(), rtol=1e-5)
    assert reasons.gates.shape == (2, len(reasons.gated), 2)


def test_a_curve_of_places_knows_later_places(recommenders):
    recommender = recommenders("ADRRec adaptive")
    reasons = explain.explain(recommender, recommender.users[4])
    kernel = next(kernel for kernel in reasons.kernels if kernel.name == "distance_bias")
    gaps = np.array([[3.0, -2.0], [0.0, 200.0]])
    table = recommender.model.encoder.layers[0].attention.bias_tables[1][0].detach().double()
    wanted = reasons.gates[0, 4, 0] * table[torch.tensor([[3, 34], [0, 31]])].numpy()
    np.testing.assert_allclose(kernel.curve(gaps), wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["HSTU", "HSTU told"])
def test_curves_of_hstu_are_its_biases(recommenders, name):
    recommender = recommenders(name)
    user = recommender.users[4]
    row = recommender.rows([user])
    reasons = explain.explain(recommender, user)
    length = len(reasons.items)
    gaps = {
        "places": np.arange(length)[::-1].astype(float),
        "seconds": reasons.query_time - reasons.times.astype(float),
    }
    added = {}
    with torch.no_grad():
        _, moments, _ = recommender.model._inference_inputs(row)
        layout = recommender.model._layout(moments.valid)
        context = recommender.model.kernels(moments, layout, torch.float32)
        for layer, part in enumerate(recommender.model.encoder.layers, 1):
            added[layer] = part.attention.pair_bias(layout.groups[0], context, 0)[0, length - 1, :length].numpy()
    for layer, bias in added.items():
        for head in range(1, len(reasons.heads) + 1):
            own = [kernel for kernel in reasons.kernels if (kernel.layer, kernel.head) == (layer, head)]
            assert [kernel.name for kernel in own] == ["position_bias", "time_bias"]
            np.testing.assert_allclose(
                sum(kernel.curve(gaps[kernel.unit]) for kernel in own), bias, rtol=1e-5, atol=1e-6
            )
    assert "no shares" in html(reasons, {}).decode()


def test_curves_of_tisasrec_are_what_intervals_add_to_scores(recommenders):
    recommender = recommenders("TiSASRec")
    user = recommender.users[4]
    reasons = explain.explain(recommender, user)
    row = recommender.rows([user])
    model = recommender.model
    _, moments, _ = model._inference_inputs(row)
    gaps = (moments.key_time[0, -1] - moments.key_time[0]).double().numpy()
    index = model.kernels.intervals(moments.key_time, model.kernels.units(moments))[0, -1]
    queries = []
    attentions = [layer.attention for layer in model.encoder.layers]
    handles = [
        part.query.register_forward_hook(lambda _, __, out: queries.append(out.flatten(0, -2)[-1]))
        for part in attentions
    ]
    model.explain(row)
    for handle in handles:
        handle.remove()
    assert len(reasons.kernels) == 2 * 2
    for kernel in reasons.kernels:
        own = slice(8 * kernel.head - 8, 8 * kernel.head)
        keys = model.kernels.interval_key.weight[index, own]
        added = (keys @ queries[kernel.layer - 1][own] / 8**0.5).detach().numpy()
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


@pytest.mark.parametrize(
    ("kernels", "known"),
    [
        ({"absolute_kernels": [], "relative_kernels": ["gap_bias"]}, True),
        ({"absolute_kernels": ["position", "day"], "day_spacing": 7, "relative_kernels": ["distance"]}, True),
        ({"absolute_kernels": ["position", "constant"], "relative_kernels": ["distance", "distance_bias"]}, False),
    ],
    ids=str,
)
def test_the_moment_is_known_through_any_kernel_of_time(small_data, tmp_path, kernels, known):
    with plugin.command_line({}, strict=False):
        run = train("ADRRec", small_data, tmp_path, use_query_time=True, **kernels)
    assert recbole_adrrec.load(run.path).knows_query_time == known


def test_other_models_and_users_are_refused(recommenders):
    with pytest.raises(OptionError, match="SASRec has no attention weights to show, or is RecBole's own"):
        explain.explain(recommenders("SASRec"), "196")
    with pytest.raises(DataError, match="'nobody' is unknown"):
        explain.explain(recommenders("ADRRec"), "nobody")


# Pictures


@pytest.mark.parametrize(
    "name", ["ADRRec", "HSTU", "ADRRec adaptive cloze", "ADRRec absolute", "STOSA", "TiSASRec", "AWRSR mix"]
)
def test_every_kind_of_model_has_a_picture_that_says_something(recommenders, name, tmp_path):
    reasons = explain.explain(recommenders(name), recommenders(name).users[4])
    file = tmp_path / "picture.png"
    file.write_bytes(plots.png(reasons, {}, dots=60))
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
    page = html(reasons, titles)
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
    for value in kernel.curve(np.array([gap for _, gap in GAPS], dtype=float)):
        assert f">{value:.3f}<" in text


def test_a_page_has_the_gates_of_each_head(recommenders):
    reasons = explain.explain(recommenders("ADRRec adaptive"), recommenders("ADRRec adaptive").users[4])
    page = html(reasons, {})
    text, drawing = page.decode(), svg(page)
    for gate in reasons.gates.ravel():
        assert f">{gate:.3f}<" in text
        assert f"{gate:.2f}" in drawing
    for word in ("gap_bias, head 2", "position, head 1", "gap in places", "gap in days", "layer 2", "gate of the last"):
        assert word in drawing
    assert "gap_bias, layer 2, head 2" in text
    absolute = html(explain.explain(recommenders("ADRRec absolute"), "196"), {})
    assert "day, head 2" in svg(absolute)
    assert "gap in" not in svg(absolute)
    for name in ("ADRRec", "TiSASRec"):
        assert "gate" not in svg(html(explain.explain(recommenders(name), "196"), {}))


def test_refined_weights_stand_beside_plain_ones(recommenders):
    reasons = explain.explain(recommenders("AWRSR mix"), recommenders("AWRSR mix").users[4])
    text = html(reasons, {}).decode()
    assert text.count("layer 1, before") == text.count("layer 1, refined") == 1
    for weights in (*reasons.plain, *reasons.refined):
        assert f">{100 * weights[0, 0]:.2f}<" in text
    plain = html(explain.explain(recommenders("STOSA"), recommenders("STOSA").users[0]), {}).decode()
    assert "layer 1" in plain
    assert "refined" not in plain


def test_the_part_of_the_trend_stands_beside_each_item(recommenders):
    recommender = recommenders("AWRSR trend")
    head = recommender.model.head
    user = recommender.users[4]
    at = int(recommender.history(user)[1][-1]) + 86_400
    head.trend.items.data.normal_(0, 2, generator=torch.Generator().manual_seed(2))
    try:
        reasons = explain.explain(recommender, user, at, top=8)
        trend, head.trend = head.trend, None
        without = dict(next(iter(recommender.recommend(user, at, len(recommender.items))))[1])
    finally:
        head.trend = trend
        trend.items.data.zero_()
    want = [score - without[item] for item, score in reasons.recommended]
    np.testing.assert_allclose(reasons.trend, want, rtol=1e-3, atol=1e-4)
    assert np.ptp(want) > 0.1
    text = html(reasons, {}).decode()
    for part in reasons.trend:
        assert f"of which the trend adds {part:+.4f}" in text
    assert plots.png(reasons, {}, dots=40).startswith(b"\x89PNG")
    plain = explain.explain(recommenders("STOSA"), user)
    assert plain.trend == []
    assert "trend" not in html(plain, {}).decode()


def test_models_without_kernels_of_gaps_say_so(recommenders):
    page = html(explain.explain(recommenders("STOSA"), recommenders("STOSA").users[0]), {})
    assert "STOSA has no kernel of the gap" in svg(page)
    assert "gap in hours" not in svg(page)


def test_earlier_events_share_a_line_and_their_weights(recommenders):
    reasons = explain.explain(recommenders("ADRRec"), recommenders("ADRRec").users[4])
    page = html(reasons, {}, shown=4)
    assert f"{len(reasons.items) - 4} earlier events together" in svg(page)
    folded = plots._folded(reasons, reasons.plain[0], 4)
    assert folded.shape == (5, 4)
    np.testing.assert_allclose(folded.sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(folded[0], reasons.plain[0][:, -1])
    assert "earlier events" not in svg(html(reasons, {}, shown=12))


def test_one_event_can_be_drawn(recommenders):
    for name in ("ADRRec", "MEANTIME", "TiSASRec"):
        recommender = recommenders(name)
        single = recommender.append(["ann"], recommender.items[:1], [893_286_638])
        reasons = explain.explain(single, "ann", at=893_286_638)
        assert len(reasons.items) == 1
        assert plots.png(reasons, {}, dots=40).startswith(b"\x89PNG")


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
    assert "explain works for ADRRec, AWRSR, HSTU, MEANTIME, STOSA and TiSASRec" in err
