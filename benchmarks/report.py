"""Make the report of a results folder again: Markdown, CSV, LaTeX and one HTML page.

python benchmarks/report.py RESULTS
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from study import report

from recbole_adrrec.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and say where it is; 2 where the folder is unfit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="RESULTS", help="folder with runs/*.json")
    given = parser.parse_args(arguments)
    try:
        paths = report.write(given.results)
    except UserError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    width = max(map(len, paths))
    for name, path in paths.items():
        print(f"{name:<{width}}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
