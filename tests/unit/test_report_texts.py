"""The report of a study: what it says, what it never says, and its formats."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import report as report_command
from simulated import LEAVE_ONE_OUT, reported_study, write_run, write_settings, write_study
from study import plots, report
from study.analysis import analyse
from study.document import Figure, Heading, Table, duration, escape_latex, number, p_value, render, shown_once
from study.report import blocks_of
from study.results import Results
from study.statistics import Spread, Verdict

from recbole_adrrec.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A written study with its report."""
    return reported_study(tmp_path_factory)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch, folder):
    """Spare the drawing; ``folder`` has drawn all kinds of figures."""
    monkeypatch.setattr(plots, "render", lambda draw: plots.Picture(b"<svg/>", b"<svg/>", b"png"))


def read(paths, name):
    return paths[name].read_text(encoding="utf-8")


def rows(paths, name):
    with paths[name].open(newline="") as lines:
        return list(csv.DictReader(lines))


def tables(analysis):
    return [block for block in blocks_of(analysis) if isinstance(block, Table)]


def test_means_and_deviations_are_those_of_the_runs(folder):
    root, paths = folder
    found = [json.loads(path.read_text()) for path in root.glob("runs/*-ADRRec-leave_one_out-full-all-s*.json")]
    values = [run["metrics"]["ndcg@10"] for run in found]
    (row,) = [
        row
        for row in rows(paths, "results")
        if (row["label"], row["metric"], row["candidates"]) == ("ADRRec", "ndcg@10", "full")
    ]
    assert len(values) == 3
    assert float(row["mean"]) == pytest.approx(np.mean(values), rel=1e-12)
    assert float(row["sd"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" in read(paths, "markdown")


def test_words_of_a_difference_stand_only_where_the_corrected_test_shows_it(folder):
    root, paths = folder
    analysis = analyse(Results.read(root))
    shown = [each for table in analysis.tables for each in table.tested]
    words = [analysis.verdict(each) for each in shown]
    assert {Verdict.BETTER, Verdict.WORSE, Verdict.NOT_SHOWN} <= set(words)
    for name in ("markdown", "html", "latex"):
        text = read(paths, name)
        for verdict in (Verdict.BETTER, Verdict.WORSE):
            assert len(re.findall(rf"\b{verdict.value}\b", text)) == words.count(verdict), (name, verdict)
        assert not re.search(r"outperform|superior|best model|state.of.the.art|significant", text)


def test_without_a_difference_no_report_says_better(tmp_path):
    for seed in (1, 2):
        for label in ("ADRRec", "AWRSR", "SASRec", "BERT4Rec"):
            write_run(tmp_path, label, seed, n_users=80)
    paths = report.write(tmp_path)
    for name in ("markdown", "html", "latex", "comparisons"):
        assert not re.search(r"\b(better|worse)\b", read(paths, name))
    assert "no difference shown" in read(paths, "markdown")


def test_protocols_never_share_a_table(folder):
    root, _ = folder
    analysis = analyse(Results.read(root))
    assert len(analysis.tables) == 3
    for table in analysis.tables:
        for entry in table.entries.values():
            assert {run.table for run in entry.runs} == {table.key}
    for split, candidates, seen, query_time in (
        ("temporal", "full", "all", False),
        ("leave_one_out", "pop100", "all", False),
        ("leave_one_out", "full", "unseen", False),
        ("leave_one_out", "full", "all", True),
    ):
        protocol = {"split": split, "candidates": candidates, "seen": seen}
        other = root.parent / f"{split}{candidates}{seen}{query_time}"
        write_run(other, "SASRec", 1)
        write_run(other, "ADRRec", 1, protocol=protocol, query_time=query_time)
        kept = [table for table in tables(analyse(Results.read(other))) if table.name.startswith("quality")]
        assert [len(table.rows) for table in kept] == [1, 1]
        assert kept[0].caption != kept[1].caption


def test_shuffled_ties_have_a_table_of_their_own(tmp_path):
    write_run(tmp_path, "SASRec", 1)
    write_run(tmp_path, "SASRec", 2)
    write_run(tmp_path, "SASRec", 1, protocol={**LEAVE_ONE_OUT, "ties": "shuffled"})
    analysis = analyse(Results.read(tmp_path))
    assert ["ties shuffled" in table.key.title for table in analysis.tables] == [False, True]
    assert all(not entry.missing for table in analysis.tables for entry in table.entries.values())


def test_sampled_metrics_and_known_query_times_are_marked(folder):
    root, paths = folder
    analysis = analyse(Results.read(root))
    for block in tables(analysis):
        if "pop100" in block.name:
            assert "SAMPLED" in block.caption
        if block.name.startswith("quality") and block.name.endswith("-query-time") and "-no-" not in block.name:
            assert all(row[0].endswith("†") for row in block.rows)
            assert "query time known" in block.caption
    assert "SAMPLED METRICS" in read(paths, "markdown")
    assert "MEANTIME †" in read(paths, "markdown")


def test_the_baseline_is_chosen_on_validation_and_said(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "ADRRec", seed, shift=0.5)
        write_run(tmp_path, "SASRec", seed, shift=0.4, valid=0.1)
        write_run(tmp_path, "BERT4Rec", seed, shift=-0.2, valid=0.2)
    write_run(tmp_path, "STOSA", 1, valid=0.9)
    (table,) = analyse(Results.read(tmp_path)).tables
    assert table.baseline == "BERT4Rec"
    assert table.why == (
        "Best baseline, chosen by mean validation NDCG@10 alone: BERT4Rec (0.2000). "
        "Not eligible, with fewer seeds: STOSA."
    )
    assert {each.reference for each in table.tested} == {"BERT4Rec"}
    assert {each.label for each in table.tested} == {"ADRRec", "SASRec", "STOSA"}


def test_seeds_of_popularity_keep_no_baseline_out(tmp_path):
    write_run(tmp_path, "ADRRec", 1)
    write_run(tmp_path, "SASRec", 1, valid=0.4)
    for seed in (1, 2):
        write_run(tmp_path, "Popularity", seed, valid=0.2)
    (table,) = analyse(Results.read(tmp_path)).tables
    assert (table.baseline, table.why) == (
        "SASRec",
        "Best baseline, chosen by mean validation NDCG@10 alone: SASRec (0.4000).",
    )


def test_which_models_are_ours_is_a_setting(tmp_path):
    write_run(tmp_path, "ADRRec", 1, valid=0.9)
    write_run(tmp_path, "SASRec", 1, valid=0.1)
    write_settings(tmp_path, ours=["SASRec"], baselines=[])
    (table,) = analyse(Results.read(tmp_path)).tables
    assert table.baseline == "ADRRec"


def test_sasrec_is_a_baseline_whichever_model_has_its_code(tmp_path):
    write_run(tmp_path, "AWRSR", 1, valid=0.9)
    write_run(tmp_path, "SASRec", 1, model="AWRSR", valid=0.5)
    write_run(tmp_path, "SASRec, other", 1, model="AWRSR", valid=0.4)
    (table,) = analyse(Results.read(tmp_path)).tables
    assert (table.baseline, [each.label for each in table.tested]) == (
        "SASRec",
        ["AWRSR", "SASRec, other"],
    )


def test_without_a_baseline_nothing_is_compared(tmp_path):
    write_run(tmp_path, "ADRRec", 1)
    write_run(tmp_path, "AWRSR", 1)
    text = read(report.write(tmp_path), "markdown")
    assert "No baseline ran under this protocol." in text
    assert "Paired tests" not in text


def test_variants_are_compared_with_their_reference(folder):
    root, paths = folder
    by_label = {row["label"]: row["reference"] for row in rows(paths, "comparisons") if row["candidates"] == "full"}
    assert by_label["ADRRec -day"] == "ADRRec"
    assert by_label["ADRRec"] == "SASRec"
    assert len(by_label) == len(analyse(Results.read(root)).tables[0].tested)


def test_a_reference_under_another_protocol_is_not_compared(tmp_path):
    write_run(tmp_path, "ADRRec", 1)
    write_run(tmp_path, "ADRRec known", 1, model="ADRRec", query_time=True)
    write_settings(tmp_path, references={"ADRRec known": "ADRRec"})
    text = read(report.write(tmp_path), "markdown")
    assert "ADRRec known: ADRRec has no run under this protocol, so they are not compared." in text


def test_the_correction_is_over_all_tables(tmp_path):
    sampled = {**LEAVE_ONE_OUT, "candidates": "pop100"}
    for protocol in (LEAVE_ONE_OUT, sampled):
        for label, shift in (("ADRRec", 0.08), ("SASRec", 0.0)):
            write_run(tmp_path, label, 1, shift=shift, protocol=protocol)
    first, second = [table.tested[0].comparison for table in analyse(Results.read(tmp_path)).tables]
    smaller, larger = sorted((first, second), key=lambda each: each.p_users)
    assert smaller.p_users_holm == pytest.approx(min(1.0, 2 * smaller.p_users))
    assert larger.p_users_holm == pytest.approx(max(smaller.p_users_holm, larger.p_users))


def test_data_are_counted_and_so_is_what_is_cold(tmp_path):
    write_run(tmp_path, "SASRec", 1, n_users=50, protocol={**LEAVE_ONE_OUT, "split": "temporal"})
    (tmp_path / "ties.json").write_text(
        json.dumps({"simulated": {"users": 1050, "tied_gaps": 0.25, "runs_shuffled": 2, "ndcg@10_mean_shift": -0.001}})
    )
    text = read(report.write(tmp_path), "markdown")
    assert (
        "Data: 1,234 items; 5,000 training targets, 50 test targets of 50 users, 7 of them items that training never "
        "shows, 3 items that the user had met. Training ends at 2001-09-09 01:46:40 UTC, validation at 2004-11-09 "
        "11:33:20 UTC; 11 items without a training event (kept), with 12 test events; 13 users without a training "
        "event (dropped), with 14 test events." in text
    )
    assert "| simulated | 1,050 | 25.0 % | 2 | -0.0010 |" in text


def test_failures_and_gaps_are_listed(folder, tmp_path):
    _, paths = folder
    text = read(paths, "markdown")
    assert re.search(r"leave-one-out, seeds 2, 3: .*STOSA", text)
    assert r"RuntimeError: out of\_memory & more \| 50 %" in text
    assert "1 failed" in text
    assert r"RuntimeError: out of\_memory \& more | 50 \%" in read(paths, "latex")

    write_run(tmp_path, "SASRec", 5)
    stated = {"seeds": [5, 6], "datasets": ["simulated"], "protocols": [LEAVE_ONE_OUT]}
    stated["models"] = [{"label": "SASRec"}, {"label": "GRU4Rec"}]
    (tmp_path / "study.json").write_text(json.dumps({"study": stated}))
    text = read(report.write(tmp_path), "markdown")
    assert "simulated, leave-one-out, seed 6: SASRec" in text
    assert "all seeds: GRU4Rec" in text


def test_only_failed_runs_make_a_report_too(tmp_path):
    write_run(tmp_path, "SASRec", 1, error="ValueError: no")
    text = read(report.write(tmp_path), "markdown")
    assert "0 runs finished, 1 failed" in text
    assert "ValueError: no" in text


def test_nothing_is_ever_nan(folder, tmp_path):
    _, paths = folder
    for seed in (1, 2):
        for label in ("ADRRec", "SASRec"):
            name = write_run(tmp_path, label, seed, n_users=1, metrics=("ndcg@10",))
            with np.load(tmp_path / "runs" / f"{name}.npz") as arrays:
                users = arrays["users"]
            np.savez(tmp_path / "runs" / f"{name}.npz", users=users, **{"ndcg@10": np.zeros(1)})
    for every in (paths, report.write(tmp_path)):
        for name in every:
            assert not re.search(r"\b(nan|NaN|inf|None)\b", read(every, name)), name


def test_every_figure_says_what_made_it(folder):
    root, _ = folder
    figures = [block for block in shown_once(blocks_of(analyse(Results.read(root)))) if isinstance(block, Figure)]
    kinds = {figure.name.split("-")[0] for figure in figures}
    assert kinds == {"quality", "time", "ablation", "length", "robustness", "heads"}
    for figure in figures:
        facts = dict(figure.provenance.facts)
        assert set(facts) >= {"Command", "Commit", "Versions", "Seeds", "Wall time", "Hardware"}
        assert facts["Command"].startswith("python benchmarks/")
        assert facts["Commit"] == "0123abc"
        assert "torch 2.13.0" in facts["Versions"]
        assert facts["Hardware"] == "Simulated CPU, 2 cores, 23.4 GiB of memory"
        assert re.fullmatch(r"[\d, ]+", facts["Seeds"])
        assert "run" in facts["Wall time"]
        assert len(figure.alt) > 30
        shown = root / "report" / "figures" / f"{figure.first or figure.name}.png"
        assert shown.read_bytes().startswith(b"\x89PNG")
    assert len({figure.name for figure in figures}) == len(figures)


def test_measurements_are_reported_with_their_seeds(folder):
    _, paths = folder
    text = read(paths, "markdown")
    assert "Drop in NDCG@10, items replaced" in text
    found = [
        row
        for row in rows(paths, "robustness")
        if (row["label"], row["kind"], row["share"]) == ("ADRRec", "replace", "0.5")
    ]
    drops = [100 * float(row["drop"]) for row in found]
    assert len(drops) == 3
    assert f"{np.mean(drops):+.1f} % ± {np.std(drops, ddof=1):.1f}" in text
    assert "| 1 | position | absolute | +20.0 % ± 0.0 | 0.700 ± 0.000 |" in text
    assert "Measured by: python benchmarks/ablate.py --measure (36.0 s)" in text


def test_equal_runs_give_equal_reports(tmp_path):
    texts = []
    for name in ("one", "two"):
        write_study(tmp_path / name)
        texts.append({key: path.read_bytes() for key, path in report.write(tmp_path / name).items()})
    assert texts[0] == texts[1]


def test_results_and_tests_do_not_depend_on_times(folder, tmp_path):
    write_study(tmp_path)
    for path in (tmp_path / "runs").glob("*.json"):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({**facts, "wall_s": 9.9, "train_s": 7.7, "started": "2030-01-01T00:00:00+00:00"}))
    _, paths = folder
    other = report.write(tmp_path)
    for name in ("results", "comparisons", "latex"):
        assert read(other, name) == read(paths, name)


def test_markdown_keeps_its_columns():
    table = Table("a | b", ("x|y", "z_"), (("1|2\n3", "<b>*"),), "t")
    text = render("report.md", [Heading("h # *", 1), table])
    assert text == "# h \\# \\*\n\na \\| b\n\n| x\\|y | z\\_ |\n| --- | ---: |\n| 1\\|2 3 | \\<b\\>\\* |\n\n"


def test_latex_is_escaped():
    assert escape_latex(r"50 % & #1_a ~ ^ \x {y} $") == (
        r"50 \% \& \#1\_a \textasciitilde{} \textasciicircum{} \textbackslash{}x \{y\} \$"
    )
    assert escape_latex("-0.5 to [-1, 2], ADRRec -day ± 3") == r"$-$0.5 to [$-$1, 2], ADRRec -day $\pm$ 3"


def test_latex_tables_are_whole(folder):
    _, paths = folder
    text = read(paths, "latex")
    found = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    assert len(found) > 5
    for columns, body in found:
        for line in body.replace("\\midrule\n", "").strip().splitlines():
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
            assert line.endswith(r"\\")
    names = re.findall(r"\\label\{(.*?)\}", text)
    assert len(set(names)) == len(names)


def test_numbers_as_text():
    assert (number(None), number(0.12345), p_value(0.0004), p_value(0.0449)) == ("–", "0.1235", "<0.001", "0.045")
    assert [duration(seconds) for seconds in (3.21, 75, 7322)] == ["3.2 s", "1 min 15 s", "2 h 02 min"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "runs" / "x.json").write_text("{"), "x.json: not readable as JSON"),
        (lambda root: (root / "runs" / "x.json").write_text("[]"), "x.json: not a JSON object"),
        (lambda root: (root / "runs" / "x.json").write_text("{}"), "x.json: label is missing"),
        (lambda root: next(root.glob("runs/*.npz")).write_bytes(b"PK"), "not readable as arrays"),
        (lambda root: write_settings(root, reference={}), "unknown key reference; did you mean references"),
        (lambda root: [path.unlink() for path in root.glob("runs/*")], "no finished runs"),
    ],
)
def test_unfit_folders_are_refused_in_one_line(tmp_path, capsys, spoil, words):
    write_run(tmp_path, "SASRec", 1)
    spoil(tmp_path)
    assert report_command.main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_the_command_makes_the_report_again(tmp_path, capsys):
    write_run(tmp_path, "SASRec", 1)
    assert report_command.main([str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for line in told.splitlines():
        name, path = line.split()
        assert (tmp_path / "report" / path.rsplit("/", 1)[1]).is_file(), name
    assert report_command.main([str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(("kinds", "words"), [("head", "did you mean heads"), ("heads", "no model was kept")])
def test_what_cannot_be_measured_is_said(tmp_path, capsys, kinds, words):
    write_run(tmp_path, "SASRec", 1)
    assert report_command.main([str(tmp_path), "--measure", kinds]) == 2
    assert words in capsys.readouterr().err


def test_arrays_of_another_length_are_refused(tmp_path):
    name = write_run(tmp_path, "SASRec", 1)
    np.savez(tmp_path / "runs" / f"{name}.npz", users=np.array(["a", "b"]), **{"ndcg@10": np.zeros(3)})
    with pytest.raises(DataError, match=r"3 values of ndcg@10 for 2 users"):
        report.write(tmp_path)


def test_a_user_with_several_rows_counts_once(tmp_path):
    name = write_run(tmp_path, "SASRec", 1, metrics=("ndcg@10",))
    np.savez(
        tmp_path / "runs" / f"{name}.npz", users=np.array(["b", "a", "b"]), **{"ndcg@10": np.array([1.0, 0.5, 0.0])}
    )
    (run,) = Results.read(tmp_path).runs
    assert run.by_user("ndcg@10").to_dict() == {"a": 0.5, "b": 0.5}


def test_the_same_figure_is_drawn_in_the_same_bytes(monkeypatch):
    monkeypatch.undo()
    spreads = {"ndcg@10": Spread(0.1, None, 2)}
    entry = SimpleNamespace(label="SASRec", spreads=spreads, interval=(0.05, 0.15), values=lambda _: [0.09, 0.11])
    first, second = (plots.render(lambda: plots.quality([entry], set(), "ndcg@10")) for _ in range(2))
    assert first == second
    assert first.light != first.dark
    assert first.png.startswith(b"\x89PNG")
