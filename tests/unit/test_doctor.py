"""The doctor tells what is wrong, and by its exit code whether anything is."""

import importlib.metadata
import json
import platform
import re
from pathlib import Path

import pytest
import torch
from conftest import ML_100K, write_dataset
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from recbole_adrrec import cli, options
from recbole_adrrec.cli.doctor import render
from recbole_adrrec.files import unreadable_line
from recbole_adrrec.integration import patches
from recbole_adrrec.tools import doctor

ROOT = Path(__file__).parents[2]
HEAD = "user_id:token\titem_id:token\ttimestamp:float"


@pytest.fixture
def data(tmp_path):
    write_dataset(
        tmp_path, "mine", HEAD, [["a", "x", "100000"], ["a", "y", "100000"], ["a", "x", "900000"], ["b", "x", "5"]]
    )
    return tmp_path


def run_cli(capsys, *argv):
    code = cli.main(["doctor", *map(str, argv)])
    told = capsys.readouterr()
    return code, told.out, told.err


def by_name(findings):
    return {finding.name: finding for finding in findings}


# Versions


def test_versions_here_are_fine_and_listed():
    found = by_name(doctor.examine_versions())
    assert {"python", "recbole", "torch", "numpy", "pandas", "scipy"} <= set(found)
    assert found["torch"].found["installed"] == importlib.metadata.version("torch")
    assert found["python"].found["installed"] == platform.python_version()
    assert all(finding.state in (doctor.OK, doctor.NOTE) for finding in found.values())


@pytest.mark.parametrize(
    ("name", "version", "state", "remark"),
    [
        ("torch", "2.6.0", "wrong", "outside the range; pip install 'torch>=2.7'"),
        ("torch", None, "wrong", "missing; pip install 'torch>=2.7'"),
        ("torch", "99.0", "note", "not tested with this version"),
        ("torch", "2.13.0+cu130", "ok", ""),
        ("python", "3.13.7", "ok", ""),
        ("torch", "2.7.0", "ok", ""),
        ("torch", "2.14.0.dev20260101", "note", "not tested with this version"),
        ("python", "3.14.0", "wrong", "outside the range; pip install 'python<3.14,>=3.10'"),
    ],
)
def test_verdicts_of_versions(name, version, state, remark):
    required = SpecifierSet(">=2.7" if name == "torch" else ">=3.10,<3.14")
    finding = doctor._version_of(name, version, required)
    assert (finding.state, finding.found["remark"]) == (state, remark)


def test_a_missing_library_ends_the_checkup_with_what_to_do(monkeypatch, capsys):
    version = importlib.metadata.version

    def without(name):
        if name == "numpy":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("importlib.metadata.version", without)
    code, out, _ = run_cli(capsys)
    assert code == 1
    assert "WRONG  numpy" in out
    assert "pip install 'numpy>=1.26.2'" in out
    assert "Devices" not in out
    assert out.rstrip().endswith("Wrong: numpy. The tables have the remedy.")


def test_tested_versions_are_those_of_the_readme_and_within_the_required_ones():
    table = re.search(r"\| Python \| RecBole \|.*?\n\n", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    cells = {
        name: {row[place] for row in rows}
        for place, name in enumerate(("python", "recbole", "torch", "numpy", "pandas"))
    }
    for name, (lowest, highest) in doctor.TESTED.items():
        told = {version.strip() for cell in cells[name] for version in cell.split(",")}
        ordered = sorted(told, key=Version)
        assert (ordered[0], ordered[-1]) == (lowest, highest), name
    setup = (ROOT / "setup.cfg").read_text()
    for name, (lowest, highest) in doctor.TESTED.items():
        found = re.search(rf"^(?:    {name}|{name}_requires = )((?:[<>=!]=?[\d.]+,?)+)\s*$", setup, re.MULTILINE)
        assert found, name
        assert {lowest, highest} <= set(SpecifierSet(found[1]).filter([lowest, highest])), name


# RecBole, devices


def test_every_patch_is_listed(capsys):
    code, out, _ = run_cli(capsys, "--json")
    assert code == 0
    table = {entry["name"]: entry for entry in json.loads(out)["tables"]["RecBole, and what is patched here"]}
    for patch in patches.PATCHES:
        assert table[patch.name]["needed here"] == ("yes" if patch.needed() else "no")
        assert table[patch.name]["where"] == patch.where
    assert table["RecBole's insides"]["state"] == "ok"


def test_a_recbole_that_is_not_as_expected_is_wrong(monkeypatch, capsys):
    def refuse():
        raise RuntimeError("the installed recbole 9.9 has no Config")

    monkeypatch.setattr("recbole_adrrec.integration.register.register", refuse)
    code, out, _ = run_cli(capsys)
    assert code == 1
    assert "the installed recbole 9.9 has no Config" in out


def test_devices_have_the_cpu_first():
    findings = doctor.examine_devices()
    assert findings[0].name == "cpu"
    assert "GiB" in findings[0].found["memory"]
    assert len(findings) == 1 + max(1, torch.cuda.device_count())


# Data


def test_statistics_of_a_file(data):
    assert doctor.statistics(data / "mine" / "mine.inter", {}) == {
        "users": "2",
        "items": "2",
        "events": "4",
        "first": "1970-01-01",
        "last": "1970-01-11",
        "ties": "50.0%",
        "last tie": "0.0%",
        "same order": "",
        "remark": "",
    }


def test_statistics_of_ml_100k():
    found = doctor.statistics(ML_100K, options.load_properties("dataset", "ml-100k"))
    assert [found[name] for name in ("users", "items", "events")] == ["943", "1,682", "100,000"]
    assert (found["first"], found["last"]) == ("1997-09-20", "1998-04-22")
    assert [found[name] for name in ("ties", "last tie", "same order")] == ["51.0%", "44.0%", "0.721 (0.718)"]


def test_whatever_lies_in_the_folder_is_looked_at(data, capsys):
    write_dataset(data, "others", "who:token\twhat:token", [["a", "x"]])
    (data / "notes").mkdir()
    code, out, _ = run_cli(capsys, "--data_path", data)
    assert code == 0
    assert re.search(r"^ok\s+mine\s+2\s+2\s+4 ", out, re.MULTILINE)
    others = by_name(doctor.examine_data(data))["others"]
    assert others.state == "note"
    assert "no column 'user_id'" in others.found["remark"]
    assert run_cli(capsys, "--data_path", data, "--dataset", "others")[0] == 1


def test_known_data_sets_may_be_absent_and_named_ones_may_not(data, capsys):
    code, out, _ = run_cli(capsys, "--data_path", data)
    assert code == 0
    assert re.search(r"^-\s+ml-20m .*not there$", out, re.MULTILINE)
    assert re.search(r"^ok\s+ml-100k\s+943\s+1,682\s+100,000 .*RecBole's own", out, re.MULTILINE)
    assert "Nothing is wrong." in out
    assert run_cli(capsys, "--data_path", data, "--dataset", "mine")[0] == 0
    code, out, _ = run_cli(capsys, "--data_path", data, "--dataset", "mine", "--dataset", "yours", "--json")
    document = json.loads(out)
    assert (code, document["wrong"]) == (1, 1)
    states = {
        entry["name"]: entry["state"]
        for title, table in document["tables"].items()
        if "Data" in title
        for entry in table
    }
    assert (states["mine"], states["yours"], states["ml-1m"]) == ("ok", "wrong", "absent")


@pytest.mark.parametrize(
    ("rows", "head", "remark"),
    [
        ([["a", "x", "nan"]], HEAD, "1 of 1 events have no timestamp"),
        ([["a", "x", "1714564800000"]], HEAD, "too large for seconds"),
        ([["a", "x", "soon"]], HEAD, "timestamp is not a number at line 2, 'soon'"),
        ([["a", "x"]], "user_id:token\titem_id:token", "no column 'timestamp'"),
        ([], HEAD, "the file has no events"),
    ],
)
def test_bad_data_are_wrong(tmp_path, capsys, rows, head, remark):
    write_dataset(tmp_path, "ml-1m", head, rows)
    code, out, err = run_cli(capsys, "--data_path", tmp_path, "--json")
    assert (code, err) == (1, "")
    (table,) = [table for title, table in json.loads(out)["tables"].items() if "Data" in title]
    entry = next(entry for entry in table if entry["name"] == "ml-1m")
    assert entry["state"] == "wrong"
    assert remark in entry["remark"]


def test_unreadable_value_is_found(tmp_path):
    path = tmp_path / "x.inter"
    path.write_text("user_id:token\ttimestamp:float\na\t5\nb\tyesterday\n")
    assert unreadable_line(path, "timestamp", "\t", None) == "line 3, 'yesterday'"
    assert unreadable_line(path, "rating", "\t", None) is None


# The table


def test_tables_fit_the_width(data, monkeypatch):
    monkeypatch.chdir(data)
    checkup = doctor.examine(Path("."), ["mine", "yours"])
    for width in (110, 120, 200):
        lines = render(checkup, width).splitlines()
        assert max(map(len, lines)) <= width
    flat = " ".join(render(checkup, 110).split())
    for patch in patches.PATCHES:
        assert patch.name in flat


def test_mistakes_are_one_line_and_exit_code_2(capsys):
    code, out, err = run_cli(capsys, "--datapath", "x")
    assert (code, out) == (2, "")
    assert err == "error: doctor: unrecognized arguments: --datapath x; did you mean --data_path?\n"
