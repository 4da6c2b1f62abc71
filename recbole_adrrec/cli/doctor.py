"""``doctor``: check the environment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_adrrec.cli.commands import write

EXIT_WRONG = 1
NARROWEST = 110
"""Characters of a line that tables take at least."""

EXAMPLES = """examples:
  doctor                                             versions, RecBole, devices, and the data in ./dataset
  doctor --data_path ../data --dataset mine          data elsewhere, a data set of one's own too
  doctor --json | jq .wrong

Exit code: 0 nothing is wrong, 1 something is (the tables have the remedy), 2 an argument is wrong."""

MARKS = {"ok": "ok", "note": "note", "absent": "-", "wrong": "WRONG"}

LEFT_TO_JSON = ("where",)
"""Columns that tables leave out, to be narrow."""


def add_arguments(add: Any) -> None:
    """The arguments of ``doctor``."""
    add("--data_path", type=Path, default=Path("dataset"), help="folder of data sets (default: dataset)")
    add("--dataset", action="append", default=[], help="a data set that has to be there; repeatable")
    add("--json", action="store_true", help="write JSON instead of tables")


def run(given: Any) -> int:
    """Check, show what was found, and give 1 if something is wrong."""
    from recbole_adrrec.tools import doctor

    checkup = doctor.examine(given.data_path, given.dataset)
    if given.json:
        tables = {
            title: [{"state": finding.state, "name": finding.name, **finding.found} for finding in findings]
            for title, findings in checkup.tables.items()
        }
        write(json.dumps({"wrong": len(checkup.wrong), "tables": tables}, ensure_ascii=False, indent=1), None)
    else:
        write(render(checkup), None)
    return EXIT_WRONG if checkup.wrong else 0


def render(checkup: Any, width: int | None = None) -> str:
    """Tables as text, no wider than ``width`` (the terminal's, if that isn't too narrow)."""
    width = width or max(NARROWEST, shutil.get_terminal_size((120, 24)).columns)
    parts = [f"{title}\n{_table(findings, width)}" for title, findings in checkup.tables.items()]
    wrong = ", ".join(finding.name for finding in checkup.wrong)
    parts.append(f"Wrong: {wrong}. The tables have the remedy." if wrong else "Nothing is wrong.")
    return "\n\n".join(parts)


def _table(findings: Sequence[Any], width: int) -> str:
    """Columns side by side; the widest are wrapped where lines would be too long."""
    from tabulate import tabulate

    found = dict.fromkeys(column for finding in findings for column in finding.found)
    columns = [column for column in found if column not in LEFT_TO_JSON]
    columns.sort(key=lambda column: column == "remark")  # last, whatever the first line has
    header = ["", "", *columns]
    rows = [[MARKS[each.state], each.name, *(each.found.get(column, "") for column in columns)] for each in findings]
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    limits: list[int | None] = [None] * len(widths)
    while (over := 2 * (len(widths) - 1) + sum(widths) - width) > 0 and max(widths) > 10:
        widest = widths.index(max(widths))
        limits[widest] = widths[widest] = max(10, widths[widest] - over)
    return tabulate([header, *rows], tablefmt="plain", disable_numparse=True, maxcolwidths=limits)
