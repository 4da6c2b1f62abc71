"""Time and memory, side by side in one run on one machine: RecBole's models as they are, ours, and peers.

Every measurement is a process of its own. Runs alternate between the variants, so that a machine that slows down slows
all of them; tables show medians. Without a mode, training is measured; several modes can be given together.

    python benchmarks/efficiency.py --json out/ml-100k.json --markdown out/ml-100k.md --plots out
    python benchmarks/efficiency.py --quick                        # under a minute on two free cores
    python benchmarks/efficiency.py --models recbole adrrec        # by group or by name
    python benchmarks/efficiency.py --attention --prepare
    python benchmarks/efficiency.py --sweep length users items
    python benchmarks/efficiency.py --to_best --models "RecBole BERT4Rec" MEANTIME
    python benchmarks/efficiency.py --against HEAD~1 --dataset amazon-beauty --data_path data
    python benchmarks/efficiency.py --busy 0 1 2

With --json each measurement is kept as soon as it is made: given again, the command goes on where it stopped, and
repeats nothing. docs/performance.md states the keys of that file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from engine.data import data_file
from engine.provenance import hardware, versions
from engine.store import MeasurementStore, write_text
from measure import against, attention, busy, prepare, sweep, to_best, training
from measure.session import Session
from measure.variants import TRAINING, choose

MODES = {
    "training": training.report,
    "attention": attention.report,
    "prepare": prepare.report,
    "sweep": sweep.report,
    "to_best": to_best.report,
    "against": against.report,
    "busy": busy.report,
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_argument_group("what to measure (default: training)").add_argument
    mode("--training", action="store_true", help="epochs of whole models; needed beside another mode only")
    mode("--attention", action="store_true", help="one step, ours and with L x L x d features kept")
    mode("--prepare", action="store_true", help="making of training rows, RecBole's and ours")
    mode("--sweep", nargs="+", choices=list(sweep.SIZES), default=[], help="growth exponents")
    mode("--to_best", action="store_true", help="time to the best validation score (long)")
    mode("--against", metavar="COMMIT", help="epochs and ranking with the same options at another commit")
    mode("--busy", nargs="*", type=int, metavar="N", help="epochs beside N busy processes (default 0 1 2)")
    mode("--quick", action="store_true", help="few models, few steps, small sizes: does it work here?")
    setting = parser.add_argument_group("settings").add_argument
    setting("--models", nargs="+", help=f"of {'; '.join(variant.name for variant in TRAINING)}; or groups")
    setting("--dataset", default="ml-100k")
    setting("--data_path", help="folder of the data set; ml-100k needs none")
    setting("--length", type=int, default=50, help="MAX_ITEM_LIST_LENGTH (default 50)")
    setting("--batch", type=int, help="targets of a training step (default 2048; quick: 256)")
    setting("--runs", type=int, help="processes for each figure (default 3; quick: 1)")
    setting("--epochs", type=int, help="epochs of each run (default 1; with --against 2)")
    setting("--dropout", type=float, help="of both sides of --against (default 0.2); at 0 losses agree")
    setting("--wait", nargs="+", choices=busy.POLICIES, default=list(busy.POLICIES), help="of --busy")
    setting("--steps", type=int, help="measure so many steps instead of epochs (default 0: epochs; quick: 2)")
    setting("--most_epochs", type=int, default=200, help="limit of --to_best (default 200)")
    setting("--threads", type=int, default=2, help="of each process (default 2)")
    setting("--device", choices=("cpu", "cuda"), default="cpu")
    setting("--peer_python", help="interpreter of an environment with RecTools 0.19")
    setting("--timeout", type=float, help="seconds after which a measurement is given up")
    output = parser.add_argument_group("output").add_argument
    output("--json", type=Path, help="file of all measurements, written after each")
    output("--markdown", type=Path, help="file of the tables")
    output("--docs", type=Path, help="Markdown file with marks: each mode's tables replace what is there")
    output("--plots", type=Path, help="folder of figures")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    defaults = {
        "batch": 256 if quick else 2048,
        "runs": 1 if quick else 3,
        "epochs": 2 if arguments.against else 1,
        "steps": 2 if quick else 0,
    }
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    arguments.busy = [0, 1, 2] if arguments.busy == [] else arguments.busy
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything runs, by a ``ValueError`` that names the option."""
    at_least_one = ("length", "batch", "runs", "epochs", "threads", "most_epochs")
    least = {**dict.fromkeys(at_least_one, 1), "steps": 0, "busy": 0}
    for name, lowest in least.items():
        value = getattr(arguments, name)
        value = min(value or [0]) if name == "busy" else value
        if value < lowest:
            raise ValueError(f"--{name}: {value} must be at least {lowest}")
    if arguments.dropout is not None and not 0 <= arguments.dropout < 1:
        raise ValueError(f"--dropout: {arguments.dropout} must be at least 0 and below 1")
    choose(arguments.models, arguments.device)
    file = data_file(arguments.dataset, arguments.data_path)
    if not file.exists():
        raise ValueError(f"--dataset: there is no {file}; give its folder by --data_path")
    if arguments.docs is not None and not arguments.docs.exists():
        raise ValueError(f"--docs: there is no {arguments.docs}")
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device: cuda; torch finds no GPU here")


def insert(path: Path, name: str, text: str) -> None:
    """Put ``text`` between the lines ``<!-- begin name -->`` and ``<!-- end name -->`` of a Markdown file.

    Raises
    ------
    ValueError
        The file has no such lines.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"--docs: {path} has no lines {begin} and {end}")
    write_text(path, f"{before}{begin}\n{text}\n{end}{after}")


def main(argv: list[str] | None = None) -> int:
    """Measure and print tables; 2 if something given is wrong, 130 if interrupted."""
    arguments = parse(argv)
    modes = [mode for mode in MODES if getattr(arguments, mode)] or ["training"]
    try:
        check(arguments)
        store = MeasurementStore(arguments.json, {"hardware": hardware(), "versions": versions()})
        with tempfile.TemporaryDirectory(prefix="efficiency-") as scratch:
            session = Session(arguments, store, Path(scratch))
            parts = []
            for mode in modes:
                parts.append(MODES[mode](session))
                if arguments.docs:
                    insert(arguments.docs, mode, parts[-1])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = f"; what was measured is in {arguments.json}" if arguments.json else ""
        print(f"\ninterrupted{kept}", file=sys.stderr)
        return 130
    if session.skipped:
        parts.append("Skipped:\n\n" + "\n".join(f"- {line}" for line in session.skipped))
    text = "\n\n".join(parts)
    if arguments.markdown:
        write_text(arguments.markdown, text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
