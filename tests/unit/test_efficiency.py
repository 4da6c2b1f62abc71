"""Benchmarks of time and memory: the form they compare with, their arithmetic, and that nothing measured is lost."""

import importlib
import json
import math
import mmap

import efficiency
import numpy as np
import pytest
import synthetic
import torch
from engine import children
from engine.store import MeasurementStore, read_json
from measure import attention, memory, prepare, session, sweep, tables, training, variants

MACHINE = {"hardware": {"cpu": "one", "cores": 2}, "versions": {"torch": "2"}}
KERNELS = {"absolute_kernels": ["position", "day"], "relative_kernels": ["sinusoid", "log1p"]}


# Naive attention


def loss_and_gradients(naive, dtype=torch.float64, length=9, **options):
    without_dropout = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "inner_dropout_prob": 0.0}
    options = {**KERNELS, **without_dropout, "initializer_range": 0.3, **options}
    given = {"length": length, "hidden_size": 16, "options": options, "naive": naive, "device": "cpu"}
    model = attention.build(given).to(dtype).train()
    # Gates start closed and biases at zero, where nearly all would agree.
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("gates", "relative_bias")):
            parameter.data.normal_(0, 0.5, generator=generator)
    batch = attention.batch_of(model, 4, length)
    batch["item_length"][1:3] = torch.tensor([3, 6])
    for name in ("item_id_list", "timestamp_list", "item_id", "timestamp"):
        batch[name] *= torch.arange(length) < batch["item_length"].unsqueeze(1)
    loss = model.calculate_loss(batch)
    loss.backward()
    names = [name.replace("attention.attention", "attention") for name, _ in model.named_parameters()]
    names = [name.replace("kernels.kernels", "kernels") for name in names]
    return loss, dict(zip(names, [parameter.grad for parameter in model.parameters()], strict=True))


@pytest.mark.parametrize("relative", [["sinusoid", "log1p"], ["exponential"]], ids=str)
@pytest.mark.parametrize("query_time", [False, True])
def test_naive_attention_is_ours_in_values_and_gradients(relative, query_time, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"relative_kernels": relative, "use_query_time": query_time}
    ours, our_gradients = loss_and_gradients(False, **options)
    plain, plain_gradients = loss_and_gradients(True, **options)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    assert set(our_gradients) == set(plain_gradients)
    assert sum(gradient is not None for gradient in our_gradients.values()) > 20
    for name, gradient in our_gradients.items():
        other = plain_gradients[name]
        if gradient is None or other is None:
            # What training never reaches may be left out or zero.
            assert all(one is None or float(one.abs().max()) == 0 for one in (gradient, other)), name
            continue
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-9, msg=name)


def test_naive_attention_keeps_a_feature_for_each_pair(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = {}
    for naive in (False, True):
        given = {"length": 80, "hidden_size": 32, "naive": naive, "device": "cpu", "options": KERNELS}
        model = attention.build(given).train()
        batch = attention.batch_of(model, 2, 80)
        with memory.saved_tensors(80, [*model.parameters(), *model.buffers()]) as saved:
            model.calculate_loss(batch)
        kept[naive] = saved.others
    features = 2 * 2 * 80 * 80 * 32 * 4  # kernels, rows, pairs, width, bytes
    assert kept[True] > features > kept[False]


# Memory


def test_saved_tensors_are_counted_once_and_without_parameters():
    weight = torch.randn(5, 5, requires_grad=True)
    states = torch.randn(3, 5, 5, requires_grad=True)
    with memory.saved_tensors(5, [weight]) as saved:
        torch.bmm(states, weight.expand(3, 5, 5)).sum()  # keeps both factors
        (states * states).sum()  # keeps states again
    assert saved.total == saved.weights == 3 * 5 * 5 * 4
    long = torch.randn(3, 7, requires_grad=True)
    with memory.saved_tensors(5, []) as saved:
        long.exp().sum()
    assert (saved.weights, saved.others) == (0, 3 * 7 * 4)


def test_peak_memory_can_be_set_back():
    if not memory.reset_peak():
        pytest.skip("this system doesn't let a process set its high-water mark back")
    before = memory.peak()
    with mmap.mmap(-1, 60 * memory.MIB) as block:  # from the system: malloc may have room of its own left
        block.write(b"1" * len(block))
        assert memory.peak() > before + 50
    memory.reset_peak()
    assert memory.peak() < before + 20


# Tables


def test_exponent_of_a_power_law_and_of_too_few_sizes():
    sizes = [50, 100, 200, 500, 1000]
    assert tables.exponent(sizes, [3 * size**2.1 for size in sizes]) == pytest.approx(2.1)
    rng = np.random.default_rng(0)
    noisy = [size**1.5 * math.exp(rng.normal(0, 0.05)) for size in sizes]
    assert tables.exponent(sizes, noisy) == pytest.approx(1.5, abs=0.1)
    for sizes, values in (([50], [1.0]), ([50, 50], [1.0, 2.0]), ([50, 100], [0.0, 2.0])):
        assert tables.exponent(sizes, values) is None


def measured(name, result, run=0, error=None, **given):
    return {"variant": name, "run": run, "given": given, "result": None if error else result, "error": error}


def trained(name, run, epoch_s, targets=1000, error=None):
    result = {
        **{"epoch_s": epoch_s, "targets": targets, "rows": 100, "prepare_s": 1.0, "eval_s": 0.5, "first_step_s": 0.1},
        **{"parameters": 12345, "peak_mib": 900.0, "base_mib": 300.0, "gpu_peak_mib": None},
    }
    return measured(name, result, run, error)


def columns_of(text):
    return {line.count("|") for line in text.splitlines() if line.startswith("|")}


def test_training_table_takes_medians_and_ratios():
    names = {variant.name: variant for variant in variants.TRAINING}
    shown = [names[name] for name in ("RecBole SASRec", "RecTools SASRec", "ADRRec, windows", "MEANTIME", "STOSA")]
    runs = [
        trained("RecBole SASRec", 0, [100.0, 120.0]),
        trained("RecBole SASRec", 1, [110.0]),
        trained("RecTools SASRec", 0, [2.0], targets=400),
        trained("ADRRec, windows", 0, [4.0, 5.0, 9.0]),
        trained("MEANTIME", 0, [10.0], targets=1010),
        trained("STOSA", 0, [], error="killed by signal 9"),
    ]
    base, peer, ours, cloze, failed = rows = training.table(runs, shown)
    assert (base["epoch_s"], base["times_faster"], base["runs"]) == (110.0, 1.0, 2)
    assert ours["epoch_s"] == 5.0
    assert (ours["times_faster"], ours["targets_ratio"]) == pytest.approx((22, 22))
    assert ours["targets_per_s"] == pytest.approx(200)
    assert ours["rise_mib"] == 600
    # An epoch of fewer targets is no epoch to compare with.
    assert peer["times_faster"] is None
    assert peer["targets_ratio"] == pytest.approx(200 / (1000 / 110))
    assert cloze["times_faster"] == pytest.approx(11)
    assert cloze["targets_per_s"] is cloze["targets_ratio"] is None
    assert cloze["rows_per_s"] == pytest.approx(10)
    assert failed["error"] == "killed by signal 9"
    text = tables.text(rows, training.COLUMNS)
    assert "- STOSA: killed by signal 9" in text
    assert "12,345" in text
    assert "GPU" not in text
    assert len(columns_of(text)) == 1
    # Without the baseline there is nothing to compare with.
    assert training.table(runs, shown[2:3])[0]["times_faster"] is None


def test_sweep_has_exponents_and_what_failed():
    def one(size, seconds, error=None):
        result = {"step_s": [seconds, seconds, 9e9], "peak_mib": 5.0, "base_mib": 1.0}
        return measured("exact", result, error=error, sweep={"length": size})

    runs = [one(10, 1.0), one(20, 4.0), one(40, 16.0), one(80, 0, "killed by signal 9")]
    table = sweep.table(runs, "length", ["exact"], ["step_s", "rise_mib"])
    exact = table["exact"]
    assert exact["sizes"] == [10, 20, 40]
    assert exact["exponents"]["step_s"] == pytest.approx(2)
    assert exact["exponents"]["rise_mib"] == pytest.approx(0)
    assert exact["failed"] == {"80": "killed by signal 9"}
    assert "at 80: killed by signal 9" in sweep.table_text(table, "length", ["step_s"])


def test_attention_and_rows_are_compared_with_the_other_side():
    def step(name, seconds, peak):
        saved = {"saved_mib": peak / 2, "saved_weights_mib": 1.0, "saved_others_mib": 1.0}
        return measured(name, {"step_s": [seconds], "peak_mib": peak, **saved})

    runs = [step("exact", 0.2, 100.0), step(variants.NAIVE, 3.0, 500.0)]
    exact, naive = attention.table(runs, ["exact", variants.NAIVE])
    assert exact["times_faster"] == pytest.approx(15)
    assert exact["peak_share"] == exact["saved_share"] == pytest.approx(0.2)
    assert naive["times_faster"] == 1

    def making(name, seconds, error=None):
        return measured(name, dict.fromkeys(prepare.QUANTITIES, seconds), error=error)

    assert prepare.table([making("RecBole", 6.0), making("ours", 2.0)])["time_ratio"] == pytest.approx(3)
    assert prepare.table([making("RecBole", 6.0), making("ours", 2.0, "no room")])["rows_ratio"] is None


# Variants


def test_variants_have_names_of_their_own_and_options_that_exist():
    for group in (variants.TRAINING, variants.ATTENTION):
        names = [variant.name for variant in group]
        assert len(set(names)) == len(names)
        for variant in group:
            assert variant.unknown() == [], variant.name
    assert {*variants.QUICK, *sweep.VARIANTS} <= {variant.name for variant in variants.TRAINING}
    assert set(variants.LENGTH_SWEEP) <= {variant.name for variant in variants.ATTENTION}


def test_variants_are_chosen_by_name_group_and_device():
    assert [variant.name for variant in variants.choose(["MEANTIME", "recbole"], "cpu")] == [
        "RecBole SASRec",
        "RecBole SASRec, anomaly detection off",
        "RecBole BERT4Rec",
        "MEANTIME",
    ]
    only_gpu = {variant.name for variant in variants.TRAINING if variant.devices == ("cuda",)}
    assert only_gpu
    assert not only_gpu & {variant.name for variant in variants.choose(None, "cpu")}
    assert only_gpu <= {variant.name for variant in variants.choose(None, "cuda")}
    with pytest.raises(ValueError, match="'SASREC' is none of"):
        variants.choose(["SASREC"], "cpu")


def test_variants_that_cannot_run_here_are_skipped(tmp_path):
    future = variants.Variant("ADRRec, tomorrow", "ours", "ADRRec", {"option_of_tomorrow": 1})
    peer = variants.Variant("RecTools SASRec", "peer", "SASRec")
    arguments = efficiency.parse(["--peer_python", str(tmp_path / "none")])
    made = session.Session(arguments, MeasurementStore(None, MACHINE), tmp_path)
    assert made.variants(known=(future, peer)) == []
    reasons = ["this version has no option option_of_tomorrow", f"--peer_python: there is no {tmp_path / 'none'}"]
    assert made.skipped == [f"{future.name}: {reasons[0]}", f"{peer.name}: {reasons[1]}"]


# Measurements that are kept


def test_store_repeats_nothing_and_tries_failures_again(tmp_path):
    path, calls = tmp_path / "out.json", []

    def work():
        calls.append(1)
        if len(calls) == 2:
            raise children.ChildError("killed by signal 9")
        return {"epoch_s": [1.0]}

    store = MeasurementStore(path, MACHINE)
    store.measure("training", "a", {"batch": 1}, 0, work)
    failed = store.measure("training", "b", {"batch": 1}, 0, work)
    assert failed["error"] == "killed by signal 9"
    assert read_json(path)["measurements"][1]["result"] is None
    again = MeasurementStore(path, MACHINE)
    assert again.measure("training", "a", {"batch": 1}, 0, work)["result"] == {"epoch_s": [1.0]}
    assert len(calls) == 2
    assert again.measure("training", "b", {"batch": 1}, 0, work)["error"] is None
    again.measure("training", "a", {"batch": 2}, 0, work)
    again.measure("training", "a", {"batch": 1}, 1, work)
    assert len(calls) == 5
    assert [one["variant"] for one in read_json(path)["measurements"]] == ["a", "b", "a", "a"]


def test_store_refuses_figures_of_another_machine(tmp_path):
    path = tmp_path / "out.json"
    MeasurementStore(path, MACHINE).note("training", [])
    with pytest.raises(ValueError, match="other hardware"):
        MeasurementStore(path, {**MACHINE, "hardware": {"cpu": "two", "cores": 2}})
    path.write_text("[]")
    with pytest.raises(ValueError, match="something else"):
        MeasurementStore(path, MACHINE)


# The command line


@pytest.fixture
def tiny(tmp_path):
    """Options for a data set of a few users."""
    synthetic.write(tmp_path / "data", "made", users=60, items=40, events=1500, seed=1, progress=False)
    data = ["--dataset", "made", "--data_path", str(tmp_path / "data"), "--length", "10"]
    return [*data, "--threads", "1", "--quick", "--batch", "64", "--json", str(tmp_path / "out.json")]


@pytest.fixture
def in_process(tmp_path, monkeypatch):
    """Children's work in this process; names of the functions called."""
    called = []

    def call(function, given, **_):
        called.append(function)
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(given)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setattr(session, "call", call)
    return called


RESULT_KEYS = {
    *("epoch_s", "scaled", "steps_s", "targets", "rows", "steps", "prepare_s", "eval_s", "parameters", "peak_mib"),
    *("base_mib", "first_step_s", "gpu_peak_mib", "stages", "loss", "metrics"),
}


def test_quick_run_measures_and_keeps_everything(tiny, tmp_path, capsys, monkeypatch):
    docs = tmp_path / "docs.md"
    docs.write_text(
        "# Speed\n<!-- begin training -->\n<!-- end training -->\n<!-- begin prepare -->x<!-- end prepare -->\n."
    )
    output = ["--markdown", str(tmp_path / "out.md"), "--plots", str(tmp_path / "plots"), "--docs", str(docs)]
    command = [*tiny, *output, "--models", "RecBole SASRec", "ADRRec, windows", "RecTools SASRec"]
    assert efficiency.main([*command, "--training", "--prepare"]) == 0
    text = capsys.readouterr().out
    assert "RecTools SASRec: no --peer_python" in text
    assert (tmp_path / "out.md").read_text() == text
    head, trained_part, *_ = docs.read_text().split("<!-- end training -->")
    assert head.startswith("# Speed\n<!-- begin training -->\n### Training on made")
    assert "x<!--" not in trained_part
    assert docs.read_text().endswith("<!-- end prepare -->\n.")
    assert (tmp_path / "plots" / "training.png").stat().st_size > 5000
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["format"] == 1
    assert set(kept) == {"format", "hardware", "versions", "measurements", "tables"}
    assert [one["variant"] for one in kept["measurements"]] == ["RecBole SASRec", "ADRRec, windows", "RecBole", "ours"]
    for one in kept["measurements"]:
        assert set(one) == {"kind", "variant", "run", "given", "started", "result", "error"}
        assert one["error"] is None
        assert str(tmp_path) not in json.dumps(one["given"])
    theirs, ours, their_rows, _ = (one["result"] for one in kept["measurements"])
    assert set(theirs) == set(ours) == RESULT_KEYS
    # 1500 events, of which no row predicts a user's first and two are held out.
    assert theirs["targets"] == theirs["rows"] == ours["targets"] == 1500 - 3 * 60
    assert ours["rows"] < theirs["rows"]
    assert theirs["peak_mib"] > theirs["base_mib"] > 50
    # RecBole's own rows: items and times padded to ten places in eight bytes (times in four).
    assert their_rows["rows"] == 1500 - 60
    assert their_rows["rows_mib"] * memory.MIB > their_rows["rows"] * 10 * (8 + 4)
    assert kept["tables"]["prepare"]["rows_ratio"] > 3
    monkeypatch.setattr(session, "call", lambda *args, **kwargs: pytest.fail("measured again"))
    assert efficiency.main([*command, "--training", "--prepare"]) == 0
    assert capsys.readouterr().out == text


def test_an_interrupted_run_goes_on_where_it_stopped(tiny, tmp_path, capsys, monkeypatch):
    done = []

    def call(function, given, **_):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(given["model"])
        return trained("", 0, [1.0])["result"]

    monkeypatch.setattr(session, "call", call)
    command = [*tiny, "--models", "ADRRec, windows", "SASRec, windows", "--runs", "2"]
    assert efficiency.main(command) == 130
    assert f"what was measured is in {tmp_path / 'out.json'}" in capsys.readouterr().err
    before = read_json(tmp_path / "out.json")["measurements"]
    assert [one["variant"] for one in before] == ["SASRec, windows", "ADRRec, windows"]
    done[:] = ["again"] * 3
    assert efficiency.main(command) == 0
    after = read_json(tmp_path / "out.json")["measurements"]
    assert after[:2] == before
    assert [one["variant"] for one in after] == ["SASRec, windows", "ADRRec, windows"] * 2
    assert len(done) == 5


def test_lengths_and_users_are_swept(tiny, tmp_path, capsys, monkeypatch, in_process):
    monkeypatch.setattr(sweep, "LENGTH_SWEEP", ("exact",))
    command = [*tiny, "--sweep", "length", "users", "--plots", str(tmp_path), "--models", "SASRec, windows"]
    assert efficiency.main(command) == 0
    assert in_process == ["measure.attention:measure"] * 2 + ["measure.training:measure"] * 2
    assert "### Growth with the length" in capsys.readouterr().out
    found = read_json(tmp_path / "out.json")["tables"]
    assert found["sweep-length"]["exact"]["sizes"] == sweep.QUICK_SIZES["length"]
    # Doubling the length doubles what every place keeps.
    assert found["sweep-length"]["exact"]["exponents"]["saved_others_mib"] == pytest.approx(1, abs=0.2)
    assert found["sweep-users"]["SASRec, windows"]["sizes"] == sweep.QUICK_SIZES["users"]
    assert (tmp_path / "sweep-length.png").exists()


def test_training_goes_to_the_best_score(tiny, tmp_path, capsys, in_process):
    assert efficiency.main([*tiny, "--to_best", "--models", "SASRec, windows", "--most_epochs", "2"]) == 0
    assert "s to early stopping" in capsys.readouterr().out
    (one,) = read_json(tmp_path / "out.json")["measurements"]
    curve, best = one["result"]["curve"], one["result"]["best_epoch"]
    assert len(curve) == one["result"]["epochs"] == 2
    assert [one["result"]["best_s"], one["result"]["best_valid"]] == curve[best - 1]
    assert one["result"]["best_valid"] == max(score for _, score in curve)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--runs", "0"], "--runs: 0 must be at least 1"),
        (["--steps", "-1"], "--steps: -1 must be at least 0"),
        (["--against", "no-such-commit"], "--against: no-such-commit is no commit"),
        (["--against", "HEAD", "--dropout", "1"], "--dropout: 1.0 must be at least 0 and below 1"),
        (["--busy", "-1"], "--busy: -1 must be at least 0"),
        (["--models", "GPT"], "--models: 'GPT' is none of"),
        (["--dataset", "nowhere"], "--data_path"),
        (["--device", "cuda"], "torch finds no GPU here"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(given, message, capsys, monkeypatch):
    monkeypatch.setattr(session, "call", lambda *args, **kwargs: pytest.fail("measured"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert efficiency.main(given) == 2
    assert message in capsys.readouterr().err


def test_text_goes_between_marks_or_nowhere(tmp_path):
    path = tmp_path / "docs.md"
    path.write_text("a <!-- begin one -->old<!-- end one --> b")
    efficiency.insert(path, "one", "new")
    assert path.read_text() == "a <!-- begin one -->\nnew\n<!-- end one --> b"
    with pytest.raises(ValueError, match="no lines <!-- begin two -->"):
        efficiency.insert(path, "two", "new")
