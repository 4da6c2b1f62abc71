"""Make the report of a results folder again: Markdown, CSV, LaTeX and one HTML page; tables of validation where the
study tested nothing.

python benchmarks/report.py RESULTS
python benchmarks/report.py RESULTS --strata --data_path /path/to/data
python benchmarks/report.py RESULTS --measure robustness,heads --data_path /path/to/data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from study import checks, report, strata, validation
from study.command_line import command_of
from study.measurements import KINDS, measure_missing, specs_of
from study.results import Results

from recbole_adrrec.errors import DataError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and print its files; 2 where the folder is unfit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="RESULTS", help="folder with runs/*.json")
    parser.add_argument(
        "--measure",
        metavar="KINDS",
        help=f"first measure the models that the study kept (keep_models): {', '.join(KINDS)}, separated by commas",
    )
    parser.add_argument(
        "--strata",
        action="store_true",
        help="first describe the users of each data set, so that the report shows where models differ",
    )
    parser.add_argument("--data_path", default="dataset/", help="folder of the data sets, for --measure and --strata")
    given = parser.parse_args(arguments)
    try:
        if given.measure:
            words = list(sys.argv[1:] if arguments is None else arguments)
            command = command_of("report.py", words)
            measure_kept(given.results, given.measure.split(","), given.data_path, command)
        if given.strata:
            strata.measure(Results.read(given.results), str(Path(given.data_path).resolve()))
        tested = any(run.metrics for run in Results.read(given.results).runs)
        paths = report.write(given.results) if tested else {"validation": validation.write(Path(given.results))}
    except UserError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    width = max(map(len, paths))
    for name, path in paths.items():
        print(f"{name:<{width}}  {path}")
    return 0


def measure_kept(folder: str, kinds: Sequence[str], data_path: str, command: str) -> None:
    """Measure every kept model of a results folder that was not measured so before.

    Raises
    ------
    UserError
        For an unknown kind, a folder without kept models, or data that are not there.
    """
    for kind in kinds:
        checks.one_of(kind, KINDS, "--measure")
    results = Results.read(folder)
    specs = specs_of(results, str(Path(data_path).resolve())) if results.stated else []
    if not specs:
        raise DataError(f"{folder}: no model was kept (models/*.pth); run the study with keep_models: true")
    measure_missing([(spec, kinds) for spec in specs], results.folder, command)


if __name__ == "__main__":
    sys.exit(main())
