"""Check the environment: versions, RecBole, devices, data sets."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from recbole_adrrec import options
from recbole_adrrec.errors import DataError, UserError
from recbole_adrrec.files import unreadable_line
from recbole_adrrec.times import check_times, day, to_seconds
from recbole_adrrec.version import __version__

TESTED = {
    "python": ("3.10", "3.13"),
    "recbole": ("1.2.0", "1.2.1"),
    "torch": ("2.7.0", "2.13.0"),
    "numpy": ("1.26.2", "2.5.5"),
    "pandas": ("1.5.0", "3.1.1"),
}
"""Lowest and highest version that was seen to work, by package; docs/guide.md says what was run."""

FIELDS = (("USER_ID_FIELD", "user_id"), ("ITEM_ID_FIELD", "item_id"), ("TIME_FIELD", "timestamp"))
"""Options that name the columns, and RecBole's defaults."""

OK, NOTE, ABSENT, WRONG = "ok", "note", "absent", "wrong"
"""States of a finding; ``WRONG`` alone makes the exit code 1."""


@dataclass(frozen=True)
class Finding:
    """A line of a table: its state, a name, and what was found by column."""

    state: str
    name: str
    found: dict[str, str]


@dataclass
class Checkup:
    """Findings by the title of their table."""

    tables: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def wrong(self) -> list[Finding]:
        """Findings that have to be put right."""
        return [finding for table in self.tables.values() for finding in table if finding.state == WRONG]


def examine(data_path: Path, datasets: Sequence[str] = ()) -> Checkup:
    """Check everything; ``datasets`` have to be there in ``data_path``, beside those that may be."""
    versions = examine_versions()
    checkup = Checkup({"Versions": versions})
    if any(finding.state == WRONG and finding.found["installed"] == "-" for finding in versions):
        # Without RecBole or torch there is nothing more to look at.
        return checkup
    checkup.tables["RecBole, and what is patched here"] = examine_recbole()
    checkup.tables["Devices"] = examine_devices()
    checkup.tables[f"Data in {data_path} (as the files have them, before filtering)"] = examine_data(
        data_path, datasets
    )
    return checkup


# Versions


def examine_versions() -> list[Finding]:
    """Installed versions against those required and those tested."""
    required = _requirements()
    findings = [_version_of("python", platform.python_version(), required.pop("python", None))]
    for name in dict.fromkeys([*TESTED, *required]):
        if name != "python":
            try:
                installed: str | None = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                installed = None
            findings.append(_version_of(name, installed, required.get(name)))
    own = {"installed": __version__, "required": "", "tested": "", "remark": ""}
    return [*findings, Finding(OK, "recbole_adrrec", own)]


def _requirements() -> dict[str, SpecifierSet]:
    """Version ranges by package, from the installed metadata; those of extras are left out."""
    try:
        package = importlib.metadata.metadata("recbole_adrrec")
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = {"python": SpecifierSet(package["Requires-Python"] or "")}
    for requirement in map(Requirement, package.get_all("Requires-Dist") or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found[requirement.name.lower()] = requirement.specifier
    return found


def _version_of(name: str, installed: str | None, required: SpecifierSet | None) -> Finding:
    lowest, highest = TESTED.get(name, ("", ""))
    columns = {
        "installed": installed or "-",
        "required": str(required or ""),
        "tested": f"{lowest} to {highest}" if lowest else "",
    }
    remedy = f"pip install '{name}{required or ''}'"
    if installed is None:
        return Finding(WRONG, name, {**columns, "remark": f"missing; {remedy}"})
    if required and not required.contains(installed, prereleases=True):
        return Finding(WRONG, name, {**columns, "remark": f"outside the range; {remedy}"})
    release = Version(installed).release
    # 3.13.7 counts as 3.13 where that was tested.
    before = lowest and release < Version(lowest).release
    after = highest and release[: len(Version(highest).release)] > Version(highest).release
    if before or after:
        return Finding(NOTE, name, {**columns, "remark": "not tested with this version"})
    return Finding(OK, name, {**columns, "remark": ""})


# RecBole


def examine_recbole() -> list[Finding]:
    """RecBole against what this package expects, and the patches that these libraries need."""
    from recbole_adrrec.integration import patches
    from recbole_adrrec.integration import register as plugin

    needed = patches.needed()
    try:
        plugin.register()
        findings = [Finding(OK, "RecBole's insides", {"needed here": "", "fault": "as expected", "where": ""})]
    except (RuntimeError, ImportError, AttributeError) as error:
        findings = [Finding(WRONG, "RecBole's insides", {"needed here": "", "fault": str(error), "where": ""})]
    for patch in patches.PATCHES:
        columns = {"needed here": "yes" if needed[patch.name] else "no", "fault": patch.fault, "where": patch.where}
        findings.append(Finding(OK, patch.name, columns))
    return findings


# Devices


def examine_devices() -> list[Finding]:
    """Processors that torch can use."""
    import psutil
    import torch

    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = {
        "kind": processor(),
        "memory": f"{memory:.0f} GiB",
        "remark": f"{cores} cores, {torch.get_num_threads()} threads",
    }
    findings = [Finding(OK, "cpu", cpu)]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties: Any = torch.cuda.get_device_properties(number)
        kind = {"kind": properties.name, "memory": f"{properties.total_memory / 2**30:.0f} GiB"}
        findings.append(
            Finding(OK, f"cuda:{number}", {**kind, "remark": f"bfloat16: {torch.cuda.is_bf16_supported()}"})
        )
    if len(findings) == 1:
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        remark = f"torch is built for CUDA {built}, but finds no GPU" if built else "torch is built without CUDA"
        findings.append(Finding(NOTE if built else OK, "cuda", {"kind": "none", "memory": "", "remark": remark}))
    return findings


def processor() -> str:
    """Name of this machine's processor, as far as it is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# Data


def examine_data(data_path: Path, datasets: Sequence[str] = ()) -> list[Finding]:
    """Data sets and their contents.

    All that lie in the folder are looked at. Data sets with settings of ours may be absent; those named in ``datasets``
    may not. Others may have columns of other names.
    """
    findings = []
    known = options.property_names("dataset")
    there = sorted(file.parent.name for file in data_path.glob("*/*.inter") if file.stem == file.parent.name)
    for name in dict.fromkeys([*known, *there, *datasets]):
        file = data_path / name / f"{name}.inter"
        brought = not file.is_file() and name == "ml-100k"
        if brought:
            recbole = Path(str(importlib.import_module("recbole").__file__)).parent
            file = recbole / "dataset_example" / name / f"{name}.inter"
        if not file.is_file():
            remark = f"no {name}/{name}.inter; convert makes one" if name in datasets else "not there"
            findings.append(Finding(WRONG if name in datasets else ABSENT, name, {"remark": remark}))
            continue
        try:
            found = statistics(file, options.load_properties("dataset", name) if name in known else {})
        except UserError as error:
            findings.append(Finding(WRONG if name in (*known, *datasets) else NOTE, name, {"remark": str(error)}))
            continue
        if brought:
            found["remark"] = "; ".join(filter(None, ["RecBole's own copy", found["remark"]]))
        findings.append(Finding(OK, name, found))
    return findings


def statistics(file: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Counts of an atomic file, first and last day, and its ties (``data.ties.TieStatistics``).

    Parameters
    ----------
    file : Path
        An ``.inter`` file.
    settings : dict
        Names of the fields, as in ``properties/dataset``.

    Raises
    ------
    DataError
        It can't be read, lacks a column, or has times that can't be meant.
    """
    import numpy as np
    import pandas as pd

    from recbole_adrrec.data.ties import tie_statistics

    wanted = [settings.get(option, default) for option, default in FIELDS]
    try:
        with file.open(encoding="utf-8-sig") as lines:
            header = lines.readline().rstrip("\n").split("\t")
        names = {column.partition(":")[0]: column for column in header}
        missing = [name for name in wanted if name not in names]
        if missing:
            raise DataError(f"{file}: no column {missing[0]!r}; the header has {', '.join(header)}")
        columns = [names[name] for name in wanted]
        kinds = {columns[0]: str, columns[1]: str, columns[2]: np.float64}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A user may be called NA; a time may not.
            no_time = {columns[2]: ["", "nan", "NaN", "NA"]}
            table = pd.read_csv(
                file,
                sep="\t",
                usecols=columns,
                dtype=kinds,
                encoding="utf-8-sig",
                keep_default_na=False,
                na_values=no_time,
            )
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        place = None if isinstance(error, OSError) else unreadable_line(file, wanted[2], "\t", "utf-8-sig")
        what = f"{wanted[2]} is not a number at {place}" if place else str(error).splitlines()[0]
        raise DataError(f"{file}: {what}; correct or remove that line") from error
    users, items, times = (table[column].to_numpy() for column in columns)
    remarks = check_times(times, settings.get("time_unit_in"), str(file))
    whole = to_seconds(times, settings.get("time_unit_in"))
    codes, names_of_users = pd.factorize(users)
    item_codes, names_of_items = pd.factorize(items)
    order = np.lexsort((whole, codes))
    ties = tie_statistics(codes[order], item_codes[order], whole[order])
    if ties.orderly:
        remarks.append("ties in one order (docs/protocol.md)")
    return {
        "users": f"{len(names_of_users):,}",
        "items": f"{len(names_of_items):,}",
        "events": f"{len(table):,}",
        "first": day(whole.min()),
        "last": day(whole.max()),
        "ties": f"{ties.zero_gaps:.1%}",
        "last tie": f"{ties.last_two_tie:.1%}",
        "same order": "" if ties.consistency is None else f"{ties.consistency:.3f} ({ties.by_chance:.3f})",
        "remark": "; ".join(remarks),
    }
