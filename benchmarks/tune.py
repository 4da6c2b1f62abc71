"""Tune models with equal effort: the same number of trials for each, judged on validation alone.

    python benchmarks/tune.py --config benchmarks/configs/paper.yaml --trials 30 --jobs 4
    python benchmarks/tune.py --config benchmarks/configs/paper.yaml --trials 30 --first_epochs 10

Chosen settings are written to the study's folder ``tuned`` (or --tuned), where compare.py reads them.
Exit codes: 0 done; 1 no trial of some model ended well; 2 something given is wrong; 3 --minutes were over
before all trials were; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study import checks, command_line, study_file
from study.plan import safe

FLAGS: dict[str, str] = {
    **command_line.FLAGS,
    **command_line.ONLY,
    "trials": "trials for each model on each data set; 20 if unset",
    "first_epochs": "epochs of each trial; the two best are then trained to their end, and the better one is chosen",
    "space": "file of search spaces; configs/space.yaml if unset",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search from the command line; the module's text has the exit codes."""

    def work(flags: dict[str, Any], overrides: dict[str, Any], command: str) -> int:
        trials, jobs = (checks.whole(flags.get(name, unset), name) for name, unset in (("trials", 20), ("jobs", 1)))
        first_epochs = checks.whole(flags["first_epochs"], "first_epochs") if "first_epochs" in flags else None
        deadline = command_line.deadline_of(flags)
        tuned = overrides.pop("tuned", None)
        plan = study_file.load(flags.get("config"), overrides, command, read_tuned=False)
        only = command_line.only_of(flags, plan)
        from study import grid, search

        spaces = search.read_spaces(flags.get("space") or Path(__file__).parent / "configs" / "space.yaml", plan, only)
        grid.check(plan)
        folder = Path(tuned or plan.tuned_from or f"results/{safe(plan.name)}-tuned").resolve()
        found = search.search(plan, spaces, trials, folder, jobs, deadline, first_epochs, only)
        for file in found.files:
            print(f"chosen: {file}")
        for name in found.empty:
            print(f"no trial ended well: {name} (work/runs has the errors)")
        for name in found.left:
            print(f"left: {name} (--minutes); the same command goes on")
        return command_line.EXIT_FAILED if found.empty else command_line.EXIT_UNFINISHED if found.left else 0

    return command_line.run_program("tune.py", str(__doc__), FLAGS, argv, work)


if __name__ == "__main__":
    sys.exit(main())
