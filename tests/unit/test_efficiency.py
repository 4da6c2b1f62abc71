"""Benchmarks of time and memory: the reference they use, their arithmetic, and that nothing measured is lost."""

import json
import math
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import efficiency
import numpy as np
import pytest
import rows
import torch
from measure import attention, children, memory, tables, variants
from measure.ledger import Ledger
from measure.store import insert, read_json

BENCHMARKS = Path(efficiency.__file__).parent
MACHINE = {"hardware": {"cpu": "one", "cores": 2}, "versions": {"torch": "2"}}


# The written-out reference


def loss_and_gradients(relative, written_out, dtype=torch.float64, length=9, **options):
    given = {
        "length": length,
        "hidden_size": 16,
        "options": {
            "absolute_kernels": ["position", "day"],
            "relative_kernels": relative,
            "hidden_dropout_prob": 0.0,
            "attn_dropout_prob": 0.0,
            "initializer_range": 0.3,
            **options,
        },
        "written_out": written_out,
        "device": "cpu",
    }
    model = attention.build(given).to(dtype).train()
    # Gates start closed and biases at zero, where nearly all would agree.
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("gates", "bias_tables", "relative_bias")):
            parameter.data.normal_(0, 0.5, generator=generator)
    batch = attention.rows(4, length, "cpu")
    batch["item_length"][1:3] = torch.tensor([3, 6])
    for name in ("item_id_list", "timestamp_list", "item_id", "timestamp"):
        batch[name] *= torch.arange(length) < batch["item_length"].unsqueeze(1)
    loss = model.calculate_loss(batch)
    loss.backward()
    assert sum(parameter.grad is not None for parameter in model.parameters()) > 20
    names = [name.replace("attention.attention", "attention") for name, _ in model.named_parameters()]
    names = [name.replace("kernels.kernels", "kernels") for name in names]
    return loss, dict(zip(names, [parameter.grad for parameter in model.parameters()], strict=True))


@pytest.mark.parametrize(
    ("mixture", "relative"),
    [
        ("heads", ["sinusoid", "log1p"]),
        ("heads", ["exponential", "distance"]),
        ("adaptive", ["sinusoid", "gap_bias", "log1p", "distance_bias"]),
        ("adaptive", ["exponential", "distance"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("query_time", [False, True])
def test_written_out_attention_is_ours_in_values_and_gradients(mixture, relative, query_time):
    options = {"mixture": mixture, "use_query_time": query_time}
    ours, our_gradients = loss_and_gradients(relative, False, **options)
    plain, plain_gradients = loss_and_gradients(relative, True, **options)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    assert set(our_gradients) == set(plain_gradients)
    for name, gradient in our_gradients.items():
        other = plain_gradients[name]
        if gradient is None or other is None:
            # What training never reaches may be left out or zero.
            assert all(one is None or float(one.abs().max()) == 0 for one in (gradient, other)), name
            continue
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-9, msg=name)


def test_written_out_attention_agrees_in_float32_too():
    ours, _ = loss_and_gradients(["sinusoid", "log1p"], False, torch.float32)
    plain, _ = loss_and_gradients(["sinusoid", "log1p"], True, torch.float32)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_written_out_attention_keeps_a_feature_for_each_pair():
    kept = {}
    for written_out in (False, True):
        given = {"length": 80, "hidden_size": 32, "written_out": written_out, "device": "cpu"}
        kernels = {"absolute_kernels": ["position", "day"], "relative_kernels": ["sinusoid", "log1p"]}
        model = attention.build({**given, "options": kernels}).train()
        batch = attention.rows(2, 80, "cpu")
        with memory.saved_tensors(80, [*model.parameters(), *model.buffers()]) as saved:
            model.calculate_loss(batch)
        kept[written_out] = saved.others
    features = 2 * 2 * 80 * 80 * 32 * 4  # kernels, rows, pairs, width, bytes
    assert kept[True] > features > kept[False]


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


@pytest.mark.parametrize("power", [0.5, 1.0, 2.1])
def test_exponent_of_a_power_law(power):
    sizes = [50, 100, 200, 500, 1000]
    assert tables.exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_exponent_of_noisy_numbers_and_of_too_few():
    rng = np.random.default_rng(0)
    sizes = [50, 100, 200, 500, 1000]
    noisy = [size**1.5 * math.exp(rng.normal(0, 0.05)) for size in sizes]
    assert tables.exponent(sizes, noisy) == pytest.approx(1.5, abs=0.1)
    assert tables.exponent([50], [1.0]) is None
    assert tables.exponent([50, 50], [1.0, 2.0]) is None
    assert tables.exponent([50, 100], [0.0, 2.0]) is None


def test_line_through_points():
    assert tables.line([1, 2, 3], [5.0, 7.0, 9.0]) == pytest.approx((3.0, 2.0))
    assert tables.line([4], [8.0]) == (8.0, 0.0)


def trained(name, run, epoch_s, targets=1000, rows=100, error=None):
    result = {
        **{"epoch_s": epoch_s, "scaled": False, "targets": targets, "rows": rows, "prepare_s": 1.0, "eval_s": 0.5},
        **{"parameters": 12345, "peak_mib": 900.0, "base_mib": 300.0, "gpu_peak_mib": None, "first_step_s": 0.1},
    }
    return {"variant": name, "run": run, "result": None if error else result, "error": error}


def test_training_table_takes_medians_and_ratios():
    names = {variant.name: variant for variant in variants.TRAINING}
    shown = [names[name] for name in ("RecBole SASRec", "RecTools SASRec", "ADRRec, windows", "MEANTIME", "STOSA")]
    measured = [
        trained("RecBole SASRec", 0, [100.0, 120.0]),
        trained("RecBole SASRec", 1, [110.0]),
        trained("RecTools SASRec", 0, [2.0], targets=400),
        trained("ADRRec, windows", 0, [4.0, 5.0, 9.0]),
        trained("MEANTIME", 0, [10.0], targets=1010),
        trained("STOSA", 0, [], error="killed by signal 9"),
    ]
    base, peer, ours, cloze, failed = tables.training(measured, shown)
    assert (base["epoch_s"], base["times_faster"], base["runs"]) == (110.0, 1.0, 2)
    assert ours["epoch_s"] == 5.0
    assert ours["times_faster"] == pytest.approx(22)
    assert ours["targets_per_s"] == pytest.approx(200)
    assert ours["targets_ratio"] == pytest.approx(22)
    assert ours["rise_mib"] == 600
    # An epoch of fewer targets is no epoch to compare with.
    assert peer["times_faster"] is None
    assert peer["targets_ratio"] == pytest.approx(200 / (1000 / 110))
    assert cloze["times_faster"] == pytest.approx(11)
    assert cloze["targets_per_s"] is None
    assert cloze["rows_per_s"] == pytest.approx(10)
    assert failed["error"] == "killed by signal 9"
    text = tables.training_text([base, peer, ours, cloze, failed])
    assert "- STOSA: killed by signal 9" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_sweep_tells_exponents_and_what_failed():
    def one(size, seconds, error=None):
        result = None if error else {"step_s": [seconds, seconds, 9e9], "peak_mib": 5.0, "base_mib": 1.0}
        return {"variant": "exact", "given": {"sweep": {"length": size}}, "result": result, "error": error}

    measured = [one(10, 1.0), one(20, 4.0), one(40, 16.0), one(80, 0, "killed by signal 9")]
    table = tables.sweep(measured, "length", ["exact"], ["step_s", "rise_mib"])["exact"]
    assert table["sizes"] == [10, 20, 40]
    assert table["exponents"]["step_s"] == pytest.approx(2)
    assert table["exponents"]["rise_mib"] == pytest.approx(0)
    assert table["failed"] == {"80": "killed by signal 9"}
    assert "at 80: killed by signal 9" in tables.sweep_text({"exact": table}, "length", ["step_s"])


def test_attention_table_compares_with_the_written_out():
    def one(name, seconds, peak):
        saved = {"saved_mib": peak / 2, "saved_weights_mib": 1.0, "saved_others_mib": 1.0}
        return {"variant": name, "result": {"step_s": [seconds], "peak_mib": peak, **saved}, "error": None}

    by_name = {variant.name: variant for variant in variants.ATTENTION}
    shown = [by_name["exact"], by_name[variants.WRITTEN_OUT]]
    exact, plain = tables.attention([one("exact", 0.2, 100.0), one(variants.WRITTEN_OUT, 3.0, 500.0)], shown)
    assert exact["times_faster"] == pytest.approx(15)
    assert exact["peak_share"] == exact["saved_share"] == pytest.approx(0.2)
    assert plain["times_faster"] == 1


# Variants


def test_variants_have_names_of_their_own_and_options_that_exist():
    for group in (variants.TRAINING, variants.ATTENTION):
        names = [variant.name for variant in group]
        assert len(set(names)) == len(names)
        for variant in group:
            assert variant.unknown() == [], variant.name
    assert set(variants.QUICK) <= {variant.name for variant in variants.TRAINING}
    assert set(variants.LENGTH_SWEEP) <= {variant.name for variant in variants.ATTENTION}


def test_variants_are_chosen_by_name_group_and_device():
    assert [variant.name for variant in variants.chosen(["MEANTIME", "recbole"], "cpu")] == [
        "RecBole SASRec",
        "RecBole SASRec, anomaly detection off",
        "RecBole BERT4Rec",
        "MEANTIME",
    ]
    only_gpu = {variant.name for variant in variants.TRAINING if variant.devices == ("cuda",)}
    assert only_gpu
    assert not only_gpu & {variant.name for variant in variants.chosen(None, "cpu")}
    assert only_gpu <= {variant.name for variant in variants.chosen(None, "cuda")}
    with pytest.raises(ValueError, match="'SASREC' is none of"):
        variants.chosen(["SASREC"], "cpu")


def test_a_variant_with_options_of_another_version_is_skipped(monkeypatch):
    session = efficiency.Session(efficiency.parse([]), Ledger(None, MACHINE), Path())
    future = variants.Variant("ADRRec, tomorrow", "ours", "ADRRec", {"option_of_tomorrow": 1})
    assert session._reason_to_skip(future) == "this version has no option option_of_tomorrow"


# Measurements that are kept


def test_ledger_repeats_nothing_and_tries_failures_again(tmp_path):
    path, calls = tmp_path / "out.json", []

    def work():
        calls.append(1)
        if len(calls) == 2:
            raise children.ChildError("killed by signal 9")
        return {"epoch_s": [1.0]}

    ledger = Ledger(path, MACHINE)
    ledger.measure("training", "a", {"batch": 1}, 0, work)
    failed = ledger.measure("training", "b", {"batch": 1}, 0, work)
    assert failed["error"] == "killed by signal 9"
    assert read_json(path)["measurements"][1]["result"] is None
    again = Ledger(path, MACHINE)
    assert again.measure("training", "a", {"batch": 1}, 0, work)["result"] == {"epoch_s": [1.0]}
    assert len(calls) == 2
    assert again.measure("training", "b", {"batch": 1}, 0, work)["error"] is None
    again.measure("training", "a", {"batch": 2}, 0, work)
    again.measure("training", "a", {"batch": 1}, 1, work)
    assert len(calls) == 5
    assert [one["variant"] for one in read_json(path)["measurements"]] == ["a", "b", "a", "a"]


def test_ledger_refuses_figures_of_another_machine(tmp_path):
    path = tmp_path / "out.json"
    Ledger(path, MACHINE).note("training", [])
    with pytest.raises(ValueError, match="other hardware"):
        Ledger(path, {**MACHINE, "hardware": {"cpu": "two", "cores": 2}})
    path.write_text("[]")
    with pytest.raises(ValueError, match="something else"):
        Ledger(path, MACHINE)


def test_child_gives_results_and_says_why_it_failed(tmp_path):
    (tmp_path / "works.py").write_text(
        "import os\n"
        "def double(given): return {'twice': 2 * given['x'], 'threads': os.environ['OMP_NUM_THREADS']}\n"
        "def fail(given): raise MemoryError('no room for\\nmany rows')\n"
        "def die(given): os.kill(os.getpid(), 9)\n"
        "def sleep(given):\n  import time\n  time.sleep(60)\n"
    )
    # The child's working directory is a new one: the module has to be found by name.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    found = children.call("works:double", {"x": 21}, threads=3, python=str(python))
    assert found == {"twice": 42, "threads": "3"}
    for name, message in (("fail", "MemoryError: no room for"), ("die", "signal 9")):
        with pytest.raises(children.ChildError, match=message):
            children.call(f"works:{name}", {}, threads=1, python=str(python))
    with pytest.raises(children.ChildError, match="stopped after 1 s"):
        children.call("works:sleep", {}, threads=1, python=str(python), timeout=1)


# The command line


@pytest.fixture
def tiny(tmp_path):
    """Options for a data set of a few users."""
    import synthetic

    synthetic.write(tmp_path / "data", "made", users=60, items=40, events=1500, seed=1, progress=False)
    data = ["--dataset", "made", "--data_path", str(tmp_path / "data"), "--length", "10"]
    return [*data, "--threads", "1", "--quick", "--batch", "64", "--json", str(tmp_path / "out.json")]


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
    models = ["--models", "RecBole SASRec", "ADRRec, windows", "RecTools SASRec"]
    assert efficiency.main([*tiny, *output, *models, "--training", "--prepare"]) == 0
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
    theirs, ours = (one["result"] for one in kept["measurements"][:2])
    assert set(theirs) == set(ours) == RESULT_KEYS
    # 1500 events, of which no row predicts a user's first and two are held out.
    assert theirs["targets"] == theirs["rows"] == ours["targets"] == 1500 - 3 * 60
    assert ours["rows"] < theirs["rows"]
    assert theirs["peak_mib"] > theirs["base_mib"] > 50
    assert kept["tables"]["prepare"]["rows_ratio"] > 3
    monkeypatch.setattr(efficiency, "call", lambda *args, **kwargs: pytest.fail("measured again"))
    assert efficiency.main([*tiny, *output, *models, "--training", "--prepare"]) == 0
    assert capsys.readouterr().out == text


def test_measuring_recbole_uses_its_own_data_set(tiny):
    from measure.settings import common

    options = {**common("made", tiny[3], 10, 64, "cpu"), **variants.CE}
    given = {"source": "recbole", "model": "SASRec", "dataset": "made", "options": options}
    found = children.call("measure.training:augment", given, threads=1)
    # Items and times padded to ten places in eight bytes (times in four), for each of the rows.
    assert found["rows"] == 1500 - 60
    assert found["rows_mib"] * memory.MIB > found["rows"] * 10 * (8 + 4)


def test_a_killed_run_keeps_what_it_measured_and_goes_on(tiny, tmp_path):
    path = tmp_path / "out.json"
    models = ["--models", "ADRRec, windows", "SASRec, windows", "--runs", "2"]
    command = [sys.executable, str(BENCHMARKS / "efficiency.py"), *tiny, *models]
    running = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while read_json(path) is None and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    kept = read_json(path)
    assert kept is not None
    before = kept["measurements"]
    assert 1 <= len(before) < 4
    assert efficiency.main([*tiny, *models]) == 0
    after = read_json(path)["measurements"]
    assert len(after) == 4
    assert after[: len(before)] == before
    assert [one["variant"] for one in after] == ["SASRec, windows", "ADRRec, windows"] * 2


def test_attention_is_swept_over_the_length(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(efficiency, "LENGTH_SWEEP", ("exact",))
    assert efficiency.main([*tiny, "--sweep", "length", "--plots", str(tmp_path)]) == 0
    assert "### Growth with the length" in capsys.readouterr().out
    table = read_json(tmp_path / "out.json")["tables"]["sweep-length"]["exact"]
    assert table["sizes"] == efficiency.QUICK_SWEEPS["length"]
    # Doubling the length doubles what every place keeps.
    assert table["exponents"]["saved_others_mib"] == pytest.approx(1, abs=0.2)
    assert (tmp_path / "sweep-length.png").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--runs", "-1"], "--runs: -1 must be at least 1"),
        (["--against", "no-such-commit"], "--against: no-such-commit is no commit"),
        (["--against", "HEAD", "--dropout", "1"], "--dropout: 1.0 must be at least 0 and below 1"),
        (["--busy", "-1"], "--busy: -1 must be at least 0"),
        (["--models", "GPT"], "--models: 'GPT' is none of"),
        (["--dataset", "nowhere"], "--data_path"),
        (["--device", "cuda"], "torch finds no GPU here"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(given, message, capsys, monkeypatch):
    monkeypatch.setattr(efficiency, "call", lambda *args, **kwargs: pytest.fail("measured"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert efficiency.main(given) == 2
    assert message in capsys.readouterr().err


def test_text_goes_between_marks_or_nowhere(tmp_path):
    path = tmp_path / "docs.md"
    path.write_text("a <!-- begin one -->old<!-- end one --> b")
    insert(path, "one", "new")
    assert path.read_text() == "a <!-- begin one -->\nnew\n<!-- end one --> b"
    with pytest.raises(ValueError, match="no lines <!-- begin two -->"):
        insert(path, "two", "new")


# Quality of rows


def scores(rows_kind, seed, values, **more):
    users = [str(user) for user in range(len(values))]
    return {"rows": rows_kind, "seed": seed, "users": users, "valid": values, "test": values, **more}


def test_rows_are_compared_user_by_user():
    results = [
        scores("prefix", 1, [0.1, 0.3]),
        scores("sequence", 1, [0.2, 0.4]),
        scores("prefix", 2, [0.1, 0.1]),
        scores("sequence", 2, [0.1, 0.4]),
        scores("prefix", 3, [9.0, 9.0]),  # has no partner yet
    ]
    results[1]["users"], results[1]["valid"] = ["1", "0"], [0.4, 0.2]
    found = rows.compare(results, "valid")
    assert found["seeds"] == [1, 2]
    assert found["mean"] == pytest.approx({"prefix": 0.15, "sequence": 0.275})
    by_user = np.array([0.05, 0.2])
    assert found["difference"] == pytest.approx(by_user.mean())
    assert found["standard_error"] == pytest.approx(by_user.std(ddof=1) / math.sqrt(2))
    assert found["sd"]["prefix"] == pytest.approx(np.std([0.2, 0.1], ddof=1))


def test_rows_script_trains_both_ways_and_repeats_nothing(tmp_path, capsys, monkeypatch):
    command = ["--out", str(tmp_path), "--users", "12", "--seeds", "1", "--epochs", "1", "--length", "8"]
    command += ["--models", "AWRSR without refinement (SASRec)"]
    assert rows.main(command) == 0
    text = capsys.readouterr().out
    assert "one seed" in text
    runs = [read_json(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert [run["rows"] for run in runs] == ["prefix", "sequence"]
    assert len(runs[0]["users"]) == len(runs[0]["valid"]) == len(runs[0]["test"])
    assert runs[0]["users"] == runs[1]["users"]
    assert read_json(tmp_path / "rows.json")["metric"] == "ndcg@10"
    monkeypatch.setattr(rows, "call", lambda *args, **kwargs: pytest.fail("trained again"))
    assert rows.main(command) == 0
    assert capsys.readouterr().out == text
