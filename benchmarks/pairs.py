"""One entry beside others, on every data set of several results folders: paired tests, corrected over all of them.

python benchmarks/pairs.py benchmarks/results/results-* --of ADRRec --against "SASRec; HSTU" --figure pairs.svg
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from study import document, pairs
from study.results import Results

from recbole_adrrec.errors import OptionError, UserError
from recbole_adrrec.files import AtomicFile


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table in Markdown; 2 where nothing can be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="RESULTS", nargs="+", help="folders with runs/*.json")
    parser.add_argument("--of", metavar="LABEL", default="ADRRec", help="the entry that is compared")
    parser.add_argument("--against", metavar="LABELS", default="SASRec; HSTU", help="others, separated by semicolons")
    parser.add_argument("--seen", choices=("unseen", "all"), default="unseen", help="items ranked")
    parser.add_argument("--figure", metavar="FILE", help="also draw the differences, as .svg or .png")
    given = parser.parse_args(arguments)
    try:
        if given.figure and Path(given.figure).suffix not in (".svg", ".png"):
            raise OptionError(f"--figure: {given.figure} should end in .svg or .png")
        if given.figure and not Path(given.figure).parent.is_dir():
            raise OptionError(f"--figure: there is no folder {Path(given.figure).parent}")
        folders = [Results.read(folder) for folder in given.results]
        metrics = {results.metric for results in folders}
        if len(metrics) > 1:
            raise OptionError(f"RESULTS: these folders test different metrics ({', '.join(sorted(metrics))})")
        (metric,) = metrics
        references = [name.strip() for name in given.against.split(";") if name.strip()]
        found = pairs.find(folders, given.of, references, given.seen)
        print(document.render("report.md", pairs.blocks_of(found, metric)))
        if given.figure:
            picture = pairs.picture(found, metric)
            path = Path(given.figure)
            with AtomicFile(path) as file:
                file.write(picture.light if path.suffix == ".svg" else picture.png)
    except UserError as error:
        print(f"pairs.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
