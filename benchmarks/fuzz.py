"""Give generated inputs, most of them wrong, to the HTTP service or to the readers of checkpoints, and check each.

The service has to refuse a wrong request with a 4xx and a message, and to answer a right one as the library does. A
checkpoint has to be read, or refused in one line that names the file; nothing in it may run.

>>> python benchmarks/fuzz.py --target=service --checkpoint saved/ADRRec.pth --inputs 100000
>>> python benchmarks/fuzz.py --target=checkpoint --inputs 100000 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import checkpoints, service
from tabulate import tabulate

import recbole_adrrec
from recbole_adrrec.service.app import make_app
from recbole_adrrec.service.options import ServiceOptions


def table(counts: Counter[tuple[str, Any]], columns: Sequence[Any]) -> str:
    """Inputs by kind and outcome, as Markdown."""
    kinds = sorted({kind for kind, _ in counts})
    found = np.array([[counts[kind, column] for column in columns] for kind in kinds])
    rows = [[kind, *row] for kind, row in zip([*kinds, "all"], [*found.tolist(), found.sum(0).tolist()], strict=True)]
    return tabulate(rows, ["", *map(str, columns)], "pipe", intfmt=",")


def fuzz_service(checkpoint: Path, inputs: int, seed: int) -> list[str]:
    """Send requests to the service of a checkpoint, print the table, and give what was wrong."""
    recommender, options = recbole_adrrec.load(checkpoint), ServiceOptions()
    found = asyncio.run(service.Fuzz(recommender, options, seed).run(make_app(recommender, options), inputs))
    print(table(found.counts, sorted({status for _, status in found.counts})))
    print(f"{found.counts.total():,} requests, {found.compared:,} answers compared, {len(found.failures):,} failures")
    return found.failures


def fuzz_checkpoints(inputs: int, seed: int) -> list[str]:
    """Read files, print the tables, and give what was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        found = checkpoints.Fuzz(Path(folder), seed).run(inputs)
    reached = {stage for _, stage in found.counts}
    stages = [stage for stage in checkpoints.STAGES if stage in reached] + sorted(reached - {*checkpoints.STAGES})
    for counts in (found.counts, found.readers):
        print(table(counts, stages), "\n")
    wrong = [f"{len(each):,} x {problem}; first {each[0]}" for problem, each in found.failures.items()]
    n_wrong = sum(map(len, found.failures.values()))
    print(f"{found.counts.total():,} files, {n_wrong:,} failures; the slowest took {found.slowest_s:.1f} s")
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["service", "checkpoint"], required=True)
    parser.add_argument("--checkpoint", "-c", type=Path, help="the model of the service")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    if (given.target == "service") != (given.checkpoint is not None):
        parser.error("--checkpoint: the service takes one; readers of checkpoints are given small ones made here")
    logging.disable(logging.CRITICAL)  # remarks on the moments of right answers; RecBole's logs
    if given.target == "service":
        wrong = fuzz_service(given.checkpoint, given.inputs, given.seed)
    else:
        wrong = fuzz_checkpoints(given.inputs, given.seed)
    print("\n".join(wrong[:20]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
