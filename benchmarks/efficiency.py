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
repeats nothing. docs/performance.md tells the keys of that file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import synthetic
from engine.provenance import hardware, versions
from measure import against, busy, tables
from measure.children import ChildError, call
from measure.ledger import Job, Ledger
from measure.settings import common
from measure.store import insert, write_text
from measure.variants import ATTENTION, BASELINE, CE, LENGTH_SWEEP, QUICK, TRAINING, Variant, chosen
from tqdm import tqdm

MODES = ("training", "attention", "prepare", "sweep", "to_best", "against", "busy")

SWEEPS: dict[str, list[int]] = {
    "length": [50, 100, 200, 500, 1000],
    "users": [1_000, 2_000, 4_000, 8_000],
    "items": [1_000, 10_000, 100_000, 1_000_000],
}
"""Sizes of each sweep."""

QUICK_SWEEPS: dict[str, list[int]] = {"length": [20, 40], "users": [100, 200], "items": [100, 1_000]}

SWEEP_ROWS = 8
"""Rows of a batch in the sweep over the length: the longest must fit."""

SWEEP_EVENTS_A_USER, SWEEP_ITEMS, SWEEP_USERS = 50, 5_000, 2_000
"""Of the synthetic data of the other sweeps, where they don't vary."""

SWEEP_VARIANTS = (BASELINE, "SASRec, windows", "ADRRec, windows")
"""Variants of the sweeps over users and items, unless others are named."""

LENGTH_QUANTITIES: tuple[str, ...] = ("step_s", "peak_mib", "saved_mib", "saved_others_mib")
DATA_QUANTITIES: tuple[str, ...] = ("prepare_s", "epoch_s", "rise_mib")


class Session:
    """What a command line asks for.

    Parameters
    ----------
    arguments : Namespace
        The command line.
    ledger : Ledger
        Where measurements go.
    scratch : Path
        Folder for synthetic data.
    """

    def __init__(self, arguments: argparse.Namespace, ledger: Ledger, scratch: Path) -> None:
        self.arguments = arguments
        self.ledger = ledger
        self.scratch = scratch
        self.skipped: list[str] = []

    # Jobs

    def _call(self, function: str, given: dict[str, Any], python: str = sys.executable) -> Callable[[], dict[str, Any]]:
        threads, timeout = self.arguments.threads, self.arguments.timeout
        return lambda: call(function, given, threads=threads, python=python, timeout=timeout)

    def variants(self, default: tuple[str, ...] | None = None) -> list[Variant]:
        """Those that were asked for, less those that can't run here; reasons go to ``skipped``."""
        names = self.arguments.models or (list(default) if default else None)
        usable = []
        for variant in chosen(names, self.arguments.device):
            reason = self._reason_to_skip(variant)
            if reason is None:
                usable.append(variant)
            elif f"{variant.name}: {reason}" not in self.skipped:
                self.skipped.append(f"{variant.name}: {reason}")
        return usable

    def _reason_to_skip(self, variant: Variant) -> str | None:
        if variant.unknown():
            return f"this version has no option {', '.join(variant.unknown())}"
        if variant.source != "peer":
            return None
        if self.arguments.peer_python is None:
            return "no --peer_python, an interpreter with RecTools, was given"
        if not Path(self.arguments.peer_python).exists():
            return f"--peer_python: there is no {self.arguments.peer_python}"
        try:
            call("measure.peer:version", {}, threads=1, python=self.arguments.peer_python, timeout=120)
        except ChildError as error:
            return f"--peer_python has no RecTools ({error})"
        return None

    def training_job(
        self, kind: str, variant: Variant, run: int, dataset: str, data_path: str | None, **more: Any
    ) -> Job:
        """A training of a variant on a data set.

        Parameters
        ----------
        kind : str
            Of the measurement.
        variant : Variant
            What is trained.
        run : int
            Number of the repetition.
        dataset, data_path : str
            Its name and folder.
        more : object
            Further keys of what is given: ``steps``, ``epochs``, ``evaluate``, ``sweep``.
        """
        arguments = self.arguments
        options = common(dataset, data_path, arguments.length, arguments.batch, arguments.device)
        given = {
            "source": variant.source,
            "model": variant.model,
            "dataset": dataset,
            "epochs": arguments.epochs,
            "steps": arguments.steps,
            "evaluate": True,
            "threads": arguments.threads,
            "options": {**options, **variant.options},
            **more,
        }
        if variant.source == "peer":
            peer = {
                "file": str(data_file(dataset, data_path)),
                **{"length": arguments.length, "batch": arguments.batch, "device": arguments.device},
                **{"hidden_size": 64, "n_layers": 2, "n_heads": 2, "dropout": 0.2, "epochs": arguments.epochs},
                "steps": given["steps"],
            }
            work = self._call("measure.peer:measure", peer, arguments.peer_python)
        else:
            work = self._call("measure.training:measure", given)
        # Where the data lie changes nothing.
        kept = {name: value for name, value in given["options"].items() if name != "data_path"}
        return Job(kind, variant.name, {**given, "options": kept}, run, work, child=given)

    def do(self, jobs: list[Job], title: str) -> list[dict[str, Any]]:
        """Make the measurements that are missing, with a bar; all of them come back."""
        done = []
        with tqdm(jobs, desc=title, unit="run") as bar:
            for job in bar:
                bar.set_postfix_str(job.variant)
                done.append(self.ledger.measure(job.kind, job.variant, job.given, job.run, job.work))
        return done

    # Modes

    def training(self) -> str:
        """Epochs of whole models."""
        arguments = self.arguments
        variants = self.variants(QUICK if arguments.quick else None)
        jobs = [
            self.training_job("training", variant, run, arguments.dataset, arguments.data_path)
            for run in range(arguments.runs)
            for variant in variants
        ]
        table = tables.training(self.do(jobs, "training"), variants)
        self.ledger.note("training", table)
        if arguments.plots:
            from measure import plots

            plots.training(table, arguments.plots)
        return f"### Training on {arguments.dataset}\n\n{self.settings()}\n\n{tables.training_text(table)}"

    def attention_given(self, variant: Variant, rows: int, length: int) -> dict[str, Any]:
        """What is given to a step of attention."""
        arguments = self.arguments
        return {
            "rows": rows,
            "length": length,
            "hidden_size": 64,
            "options": variant.options,
            "written_out": variant.source == "written_out",
            "repeats": 1 if arguments.quick else 5,
            "threads": arguments.threads,
            "device": arguments.device,
        }

    def _attention_variants(self, names: tuple[str, ...] | None = None) -> list[Variant]:
        usable = []
        for variant in ATTENTION:
            if names is not None and variant.name not in names:
                continue
            if variant.unknown():
                self.skipped.append(f"attention, {variant.name}: no option {', '.join(variant.unknown())}")
            elif self.arguments.device in variant.devices:
                usable.append(variant)
        return usable

    def attention(self) -> str:
        """One training step of ADRRec with kernels of time, and the same written out."""
        arguments = self.arguments
        rows, length = (4, 50) if arguments.quick else (32, 200)
        variants = self._attention_variants()
        jobs = []
        for run in range(arguments.runs):
            for variant in variants:
                given = self.attention_given(variant, rows, length)
                work = self._call("measure.attention:measure", given)
                jobs.append(Job("attention", variant.name, given, run, work))
        table = tables.attention(self.do(jobs, "attention"), variants)
        self.ledger.note("attention", table)
        title = (
            f"### One training step of ADRRec, B = {rows}, L = {length}, d = 64, kernels position, day, sinusoid, log1p"
        )
        return f"{title}\n\n{tables.attention_text(table)}"

    def prepare(self) -> str:
        """Making of training rows at the length asked for."""
        arguments = self.arguments
        options = common(arguments.dataset, arguments.data_path, arguments.length, arguments.batch, "cpu")
        sides = {"RecBole": "recbole", "ours": "ours"}
        jobs = []
        for run in range(arguments.runs):
            for name, source in sides.items():
                given = {
                    "source": source,
                    "model": "SASRec",
                    "dataset": arguments.dataset,
                    "options": {**options, **CE},
                }
                work = self._call("measure.training:augment", given)
                kept = {key: value for key, value in given["options"].items() if key != "data_path"}
                jobs.append(Job("prepare", name, {**given, "options": kept}, run, work))
        table = tables.prepare(self.do(jobs, "prepare"), "ours", "RecBole")
        self.ledger.note("prepare", table)
        title = f"### Making training rows of {arguments.dataset}, L = {arguments.length}"
        return f"{title}\n\n{tables.prepare_text(table)}"

    def sweep(self) -> str:
        """Growth with the length, the users, the items."""
        parts = []
        for axis in self.arguments.sweep:
            sizes = (QUICK_SWEEPS if self.arguments.quick else SWEEPS)[axis]
            if axis == "length":
                jobs, names = self._length_jobs(sizes), list(LENGTH_SWEEP)
                quantities = LENGTH_QUANTITIES
            else:
                variants = self.variants(SWEEP_VARIANTS)
                jobs, names = self._data_jobs(axis, sizes, variants), [variant.name for variant in variants]
                quantities = DATA_QUANTITIES
            table = tables.sweep(self.do(jobs, f"sweep over {axis}"), axis, names, quantities)
            self.ledger.note(f"sweep-{axis}", table)
            if self.arguments.plots:
                from measure import plots

                plots.sweep(table, axis, quantities, self.arguments.plots)
            parts.append(f"### Growth with the {axis}\n\n{tables.sweep_text(table, axis, quantities)}")
        return "\n\n".join(parts)

    def _length_jobs(self, sizes: list[int]) -> list[Job]:
        jobs = []
        for run in range(self.arguments.runs):
            for size in sizes:
                for variant in self._attention_variants(LENGTH_SWEEP):
                    given = {**self.attention_given(variant, SWEEP_ROWS, size), "sweep": {"length": size}}
                    work = self._call("measure.attention:measure", given)
                    jobs.append(Job("sweep-length", variant.name, given, run, work))
        return jobs

    def _data_jobs(self, axis: str, sizes: list[int], variants: list[Variant]) -> list[Job]:
        jobs = []
        for size in sizes:
            users = size if axis == "users" else SWEEP_USERS
            items = size if axis == "items" else SWEEP_ITEMS
            if self.arguments.quick and axis == "items":
                users = QUICK_SWEEPS["users"][0]
            name = f"synthetic-{users}-{items}"
            if not (self.scratch / name / f"{name}.inter").exists():
                synthetic.write(self.scratch, name, users, items, users * SWEEP_EVENTS_A_USER, progress=False)
            # Growth shows in a few steps; whole epochs of RecBole's would take the day.
            steps = self.arguments.steps or 5
            jobs += [
                self.training_job(
                    f"sweep-{axis}", variant, run, name, str(self.scratch), steps=steps, sweep={axis: size}
                )
                for run in range(self.arguments.runs)
                for variant in variants
                if variant.source != "peer"
            ]
        return jobs

    def to_best(self) -> str:
        """Seconds to the best validation score."""
        arguments = self.arguments
        jobs, variants = [], [v for v in self.variants(("RecBole BERT4Rec", "MEANTIME")) if v.source != "peer"]
        for variant in variants:
            job = self.training_job("to_best", variant, 0, arguments.dataset, arguments.data_path)
            options = common(
                arguments.dataset, arguments.data_path, arguments.length, arguments.batch, arguments.device
            )
            given = {**job.given, "epochs": arguments.most_epochs, "steps": 0}
            child = {**given, "options": {**options, **variant.options}}
            job.given, job.work = given, self._call("measure.training:to_best", child)
            jobs.append(job)
        rows, table = [], []
        for one in self.do(jobs, "to the best score"):
            found = one["result"]
            if found is None:
                rows.append([one["variant"], f"({one['error']})", "–", "–", "–"])
                continue
            table.append({"variant": one["variant"], **{key: found[key] for key in found if key != "curve"}})
            numbers = (found["best_s"], found["best_valid"], found["total_s"])
            shown = [tables.shown(number) for number in numbers]
            rows.append([one["variant"], shown[0], str(found["best_epoch"]), shown[1], shown[2]])
        self.ledger.note("to_best", table)
        head = ["variant", "s to the best score", "epoch of it", "validation NDCG@10", "s to early stopping"]
        return f"### Time to the best validation score on {arguments.dataset}\n\n{tables.markdown(head, rows)}"

    def against(self) -> str:
        """Training and ranking here and at another commit."""
        return against.report(self)

    def busy(self) -> str:
        """Training beside busy processes."""
        return busy.report(self)

    def settings(self) -> str:
        """What figures of training share, in words."""
        arguments, on = self.arguments, self.ledger.content["hardware"]
        machine = f"{on['cpu']}, {on['cores']} cores, {on['ram_gib']} GiB"
        if arguments.device == "cuda":
            machine += f", {on['gpu']}"
        each = f"{arguments.steps} steps" if arguments.steps else f"{arguments.epochs} epochs"
        return (
            f"L = {arguments.length}, d = 64, {arguments.batch} targets a step, {arguments.threads} threads, "
            f"medians of {arguments.runs} runs of {each}; {machine}, torch {self.ledger.content['versions']['torch']}"
        )


def data_file(dataset: str, data_path: str | None) -> Path:
    """The atomic file of a data set; RecBole brings ml-100k along."""
    if dataset == "ml-100k":
        import recbole

        return Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    return Path(data_path or "dataset", dataset, f"{dataset}.inter").resolve()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_argument_group("what to measure (default: training)")
    modes.add_argument(
        "--training", action="store_true", help="epochs of whole models; needed beside another mode only"
    )
    modes.add_argument("--attention", action="store_true", help="one step, ours and written out as L x L x d")
    modes.add_argument("--prepare", action="store_true", help="making of training rows, RecBole's and ours")
    modes.add_argument("--sweep", nargs="+", choices=list(SWEEPS), default=[], help="growth exponents")
    modes.add_argument("--to_best", action="store_true", help="time to the best validation score (long)")
    modes.add_argument("--against", metavar="COMMIT", help="epochs and ranking with the same options at another commit")
    modes.add_argument(
        "--busy", nargs="*", type=int, metavar="N", help="epochs beside N busy processes (default 0 1 2)"
    )
    modes.add_argument("--quick", action="store_true", help="few models, few steps, small sizes: does it work here?")
    setting = parser.add_argument_group("settings")
    setting.add_argument("--models", nargs="+", help=f"of {'; '.join(variant.name for variant in TRAINING)}; or groups")
    setting.add_argument("--dataset", default="ml-100k")
    setting.add_argument("--data_path", help="folder of the data set; ml-100k needs none")
    setting.add_argument("--length", type=int, default=50, help="MAX_ITEM_LIST_LENGTH (default 50)")
    setting.add_argument("--batch", type=int, help="targets of a training step (default 2048; quick: 256)")
    setting.add_argument("--runs", type=int, help="processes for each figure (default 3; quick: 1)")
    setting.add_argument("--epochs", type=int, help="epochs of each run (default 1; with --against 2)")
    setting.add_argument("--dropout", type=float, help="of both sides of --against (default 0.2); at 0 losses agree")
    setting.add_argument("--wait", nargs="+", choices=busy.POLICIES, default=list(busy.POLICIES), help="of --busy")
    setting.add_argument(
        "--steps", type=int, help="measure so many steps instead of epochs (default 0: epochs; quick: 2)"
    )
    setting.add_argument("--most_epochs", type=int, default=200, help="limit of --to_best (default 200)")
    setting.add_argument("--threads", type=int, default=2, help="of each process (default 2)")
    setting.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    setting.add_argument("--peer_python", help="interpreter of an environment with RecTools 0.19")
    setting.add_argument("--timeout", type=float, help="seconds after which a measurement is given up")
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, help="file of all measurements, written after each")
    output.add_argument("--markdown", type=Path, help="file of the tables")
    output.add_argument("--docs", type=Path, help="Markdown file with marks: each mode's tables replace what is there")
    output.add_argument("--plots", type=Path, help="folder of pictures")
    arguments = parser.parse_args(argv)
    arguments.batch = arguments.batch or (256 if arguments.quick else 2048)
    arguments.epochs = (2 if arguments.against else 1) if arguments.epochs is None else arguments.epochs
    arguments.busy = [0, 1, 2] if arguments.busy == [] else arguments.busy
    arguments.runs = arguments.runs or (1 if arguments.quick else 3)
    arguments.steps = (2 if arguments.quick else 0) if arguments.steps is None else arguments.steps
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything runs.

    Raises
    ------
    ValueError
        Names the option, its value and what would be right.
    """
    for name in ("length", "batch", "runs", "epochs", "threads", "most_epochs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}: {getattr(arguments, name)} must be at least 1")
    if arguments.steps < 0:
        raise ValueError(f"--steps: {arguments.steps} must be at least 0")
    if min(arguments.busy or [0]) < 0:
        raise ValueError(f"--busy: {min(arguments.busy)} must be at least 0")
    if arguments.dropout is not None and not 0 <= arguments.dropout < 1:
        raise ValueError(f"--dropout: {arguments.dropout} must be at least 0 and below 1")
    chosen(arguments.models, arguments.device)
    file = data_file(arguments.dataset, arguments.data_path)
    if not file.exists():
        raise ValueError(f"--dataset: there is no {file}; give its folder by --data_path")
    if arguments.docs is not None and not arguments.docs.exists():
        raise ValueError(f"--docs: there is no {arguments.docs}")
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device: cuda; torch finds no GPU here")


def main(argv: list[str] | None = None) -> int:
    """Measure and print tables.

    Returns
    -------
    int
        0; 2 if something given is wrong; 130 if interrupted.
    """
    arguments = parse(argv)
    asked = [mode for mode in MODES if getattr(arguments, mode)] or ["training"]
    try:
        check(arguments)
        ledger = Ledger(arguments.json, {"hardware": hardware(), "versions": versions()})
        with tempfile.TemporaryDirectory(prefix="efficiency-") as scratch:
            session = Session(arguments, ledger, Path(scratch))
            parts = []
            for mode in asked:
                parts.append(getattr(session, mode)())
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
        parts.append("Skipped:\n\n" + "\n".join(f"- {line}" for line in dict.fromkeys(session.skipped)))
    text = "\n\n".join(parts)
    if arguments.markdown:
        write_text(arguments.markdown, text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
