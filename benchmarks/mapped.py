"""Anonymous memory and time of training with events in mapped columns, phase by phase, on synthetic events.

A child process makes the columns, opens them, trains some steps and saves a checkpoint; this one reads its memory off
``/proc`` twenty times a second (Linux). ``RssAnon`` is memory of its own, ``RssFile`` pages of files, which the system
takes back when it needs them.

    python benchmarks/mapped.py --users 5000000 --items 100000 --events 100000000 --out data
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import synthetic

EVERY_S = 0.05
MIB = 1024  # kB

OPTIONS: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "MAX_ITEM_LIST_LENGTH": 50,
    "loss_type": "sampled_softmax",
    "negatives": "shared",
    "n_negatives": 512,
    "epochs": 1,
    "eval_step": 0,
    "metrics": ["NDCG"],
    "topk": [10],
    "valid_metric": "NDCG@10",
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "show_progress": False,
}


def work(mark: Callable[[str], None], model: str, name: str, options: dict[str, Any]) -> None:
    """Train on a data set, telling ``mark`` each phase as it begins, and a remark at the end."""
    mark("imports")
    import recbole_adrrec

    recbole_adrrec.register()
    recbole = importlib.import_module("recbole.quick_start.quick_start")
    mapped: Any = importlib.import_module("recbole_adrrec.data.mapped")
    make = mapped.make

    def make_columns(*given: Any) -> None:
        mark("making columns")
        make(*given)
        mark("data set")

    mapped.make = make_columns
    config = recbole.Config(model=model, dataset=name, config_dict=options)
    recbole.init_seed(config["seed"], config["reproducibility"])
    mark("data set")
    dataset = recbole.create_dataset(config)
    mark("split, windows, loaders")
    train, valid, _ = recbole.data_preparation(config, dataset)
    mark("model")
    made = recbole.get_model(config["model"])(config, train._dataset)
    trainer = recbole.get_trainer(config["MODEL_TYPE"], config["model"])(config, made)
    save = trainer._save_checkpoint

    def save_checkpoint(*given: Any, **named: Any) -> None:
        mark("checkpoint")
        save(*given, **named)
        mark("last state")

    trainer._save_checkpoint = save_checkpoint
    mark(f"{options['epoch_steps']} steps")
    trainer.fit(train, valid)
    size = Path(trainer.saved_model_file).stat().st_size / 2**20
    mark(f"end: loss {trainer.train_loss_dict[0]:.6f}, checkpoint of {size:,.0f} MiB")


def _child(pipe: Any, *given: Any) -> None:
    work(pipe.send, *given)


class Phase(NamedTuple):
    """A phase, its seconds, those of the processor, and its peaks of ``RssAnon`` and ``RssFile`` in MiB."""

    name: str
    seconds: float
    processor: float
    anonymous: float
    files: float


def measure(model: str, name: str, options: dict[str, Any]) -> tuple[list[Phase], str]:
    """Run :func:`work` in a process of its own; its phases, and the remark at the end."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    child = context.Process(target=_child, args=(theirs, model, name, options))
    child.start()
    phases: list[Phase] = []
    current, began, used, before, peaks = "start", time.perf_counter(), 0.0, 0.0, (0.0, 0.0)
    while child.is_alive() or mine.poll():
        told = mine.recv() if mine.poll(EVERY_S) else None
        try:
            used, now = _usage(child.pid)
        except OSError:
            now = (0.0, 0.0)
        peaks = (max(peaks[0], now[0]), max(peaks[1], now[1]))
        if told is not None:
            phases.append(Phase(current, time.perf_counter() - began, used - before, *peaks))
            current, began, before, peaks = told, time.perf_counter(), used, now
    child.join()
    if child.exitcode:
        raise RuntimeError(f"the child process ended with code {child.exitcode} in phase {current!r}")
    return phases[1:], current


def _usage(process: int | None) -> tuple[float, tuple[float, float]]:
    """Seconds of the processor that a process has used, and its ``RssAnon`` and ``RssFile`` in MiB."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    found = dict(
        re.findall(r"^(RssAnon|RssFile):\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    )
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds, (int(found.get("RssAnon", 0)) / MIB, int(found.get("RssFile", 0)) / MIB)


def main(argv: list[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True, help="folder of data sets; a file that is there is used")
    parser.add_argument("--name", help="the data set's name (default: by the number of events)")
    parser.add_argument("--model", default="ADRRec")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--store", choices=("mapped", "memory"), default="mapped")
    given = parser.parse_args(argv)
    name = given.name or f"synthetic-{given.events}"
    if not (given.out / name / f"{name}.inter").exists():
        synthetic.write(given.out, name, given.users, given.items, given.events, seed=1, progress=False)
    where = {"data_path": str(given.out), "checkpoint_dir": str(given.out / name / "saved")}
    options = {**OPTIONS, **where, "event_store": given.store, "epoch_steps": given.steps}
    phases, remark = measure(given.model, name, options)
    print(f"{given.events:,} events, {given.store}; {remark}")
    print("| phase | s | processor s | RssAnon, MiB | RssFile, MiB |\n|---|---:|---:|---:|---:|")
    total = sum(phase.seconds for phase in phases), sum(phase.processor for phase in phases)
    peaks = max(phase.anonymous for phase in phases), max(phase.files for phase in phases)
    for name, seconds, processor, anonymous, files in [*phases, ("all", *total, *peaks)]:
        print(f"| {name} | {seconds:.1f} | {processor:.1f} | {anonymous:,.0f} | {files:,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
