"""Tune models equally: the same number of trials for each, from a stated space, judged on validation alone.

Examples
--------
::

    python benchmarks/tune.py --config benchmarks/configs/paper.yaml --trials 30 --tuned results/paper-tuned
    python benchmarks/compare.py --config benchmarks/configs/paper.yaml --tuned results/paper-tuned
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from compare import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR, command_of, parse, usage, whole
from study import plan as plans

from recbole_adrrec.errors import UserError

FLAGS: dict[str, str] = {
    "config": "study file (YAML); what follows goes above it",
    "trials": "trials for each model on each data set; 20 if unset",
    "space": "file of search spaces; configs/space.yaml if unset",
    "jobs": "how many trials at a time on this machine",
    "help": "this text",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search from the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process if None.

    Returns
    -------
    int
        0 done; 1 every trial of some model failed; 2 something the user gave is wrong; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        flags, overrides = parse(arguments, FLAGS, ("help",))
        if flags.get("help") or not arguments:
            print(usage("tune.py", str(__doc__), FLAGS))
            return 0
        trials, jobs = whole(flags.get("trials", 20), "trials"), whole(flags.get("jobs", 1), "jobs")
        tuned = overrides.pop("tuned", None)
        plan = plans.load(flags.get("config"), overrides, command_of("tune.py", arguments), read_tuned=False)
        from study import grid, search

        spaces = search.read_spaces(flags.get("space") or Path(__file__).parent / "configs" / "space.yaml", plan)
        grid.check(plan)
        folder = Path(tuned or plan.tuned_from or f"results/{plans.safe(plan.name)}-tuned").resolve()
        files, empty = search.search(plan, spaces, trials, folder, jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it was", file=sys.stderr)
        return EXIT_INTERRUPTED
    for file in files:
        print(f"chosen: {file}")
    for name in empty:
        print(f"every trial failed: {name} (work/runs has the errors)")
    return EXIT_FAILED if empty else 0


if __name__ == "__main__":
    sys.exit(main())
