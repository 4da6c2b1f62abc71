"""SIGKILL at random moments of training, converting and studying, and what comes after.

Each kind of work is done once without a break. Then it is begun again and killed, again and again, with all its child
processes or alone, and each time the command that the documentation names goes on. In the end, weights, rows and
figures must be those of the unbroken work, to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tabulate import tabulate
from tqdm import tqdm

from recbole_adrrec.integration.checkpoint import load_checkpoint

COMPARE = Path(__file__).resolve().parent / "compare.py"

CHAIN = 5
"""Kills of one piece of work, after which it is left alone to its end."""


class Work(ABC):
    """A piece of work in a folder, which a command begins and continues."""

    name: str
    writes: str
    """Pattern of unfinished files, by which a kill in the middle of a write is known."""
    aimed = False
    """True where a kill waits until a file is being written."""

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """The command that begins the work, or goes on."""

    @abstractmethod
    def outcome(self, folder: Path) -> Any:
        """Result of the finished work, comparable by ``==``."""

    def check(self, folder: Path) -> None:
        """Raise an error where something has the name of a whole file and is none."""
        raise NotImplementedError


class Training(Work):
    """Training, continued by ``--resume``."""

    name, writes = "training", "saved/.*.tmp"

    def command(self, folder: Path) -> list[str]:
        """Begin, or resume from the last state where one was saved."""
        start = [sys.executable, "-m", "recbole_adrrec"]
        last = sorted(folder.glob("saved/*-last.pth"))
        if last:
            return [*start, f"--resume={last[-1]}"]
        shutil.rmtree(folder / "saved", ignore_errors=True)
        sizes = ("--hidden_size=16", "--inner_size=16", "--n_layers=1", "--MAX_ITEM_LIST_LENGTH=20", "--epochs=12")
        data = ("--model=ADRRec", "--dataset=ml-100k", "--user_inter_num_interval=[20,40]", "--show_progress=false")
        return [*start, *data, *sizes, f"--checkpoint_dir={folder / 'saved'}"]

    def outcome(self, folder: Path) -> Any:
        """Hash of the last weights, of the best ones, and the best score."""
        (last,) = folder.glob("saved/*-last.pth")
        found = []
        for path in (last, last.with_name(last.name.replace("-last", ""))):
            checkpoint = load_checkpoint(path)
            weights = sorted(checkpoint["state_dict"].items())
            hashed = hashlib.sha256(b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in weights))
            found.append((hashed.hexdigest(), float(checkpoint["best_valid_score"])))
        return found

    def check(self, folder: Path) -> None:
        """Checkpoints that have their names are whole."""
        for path in folder.glob("saved/[!.]*.pth"):
            load_checkpoint(path)


class Saving(Training):
    """Training that is killed while a checkpoint is being written."""

    name, aimed = "saving", True


class Converting(Work):
    """The conversion of a file of raw events."""

    name, writes = "converting", "dataset/rows/.*.tmp"

    def __init__(self, folder: Path, rows: int = 1_500_000) -> None:
        self.raw = folder / "rows.csv"
        numbers = np.random.default_rng(0).integers(0, 50_000, (rows, 2))
        with self.raw.open("w") as file:
            file.write("user,item,time\n")
            file.writelines(f"u{user},i{item},{1_600_000_000 + at}\n" for at, (user, item) in enumerate(numbers))

    def command(self, folder: Path) -> list[str]:
        """Convert anew."""
        return [
            sys.executable,
            "-m",
            "recbole_adrrec",
            "convert",
            str(self.raw),
            "--name=rows",
            f"--out={folder / 'dataset'}",
        ]

    def outcome(self, folder: Path) -> Any:
        """Hash of the rows."""
        return hashlib.sha256((folder / "dataset" / "rows" / "rows.inter").read_bytes()).hexdigest()

    def check(self, folder: Path) -> None:
        """Nothing has the name of the result: it was killed before the end."""
        assert not (folder / "dataset" / "rows" / "rows.inter").exists()


class Studying(Work):
    """A study of several runs."""

    name, writes = "studying", "results/**/.*.tmp"

    def command(self, folder: Path) -> list[str]:
        """Begin the study, or go on."""
        study = {
            "name": "kills",
            "datasets": ["ml-100k"],
            "models": ["ADRRec", "Popularity"],
            "seeds": 2,
            "metrics": ["NDCG"],
            "topk": [10],
            "options": {
                **{"epochs": 2, "user_inter_num_interval": "[20,40]", "MAX_ITEM_LIST_LENGTH": 20},
                **{"hidden_size": 16, "inner_size": 16, "n_layers": 1},
            },
        }
        path = folder / "study.yaml"
        path.write_text(json.dumps(study))  # JSON is YAML
        return [sys.executable, str(COMPARE), "--config", str(path), "--results", str(folder / "results")]

    def outcome(self, folder: Path) -> Any:
        """Figures of each run and of each user."""
        runs = sorted(folder.glob("results/runs/*.json"))
        figures = {path.stem: json.loads(path.read_text())["metrics"] for path in runs}
        users = {}
        for path in runs:
            with np.load(path.with_suffix(".npz")) as arrays:
                users[path.stem] = {name: arrays[name].tolist() for name in arrays.files}
        assert (folder / "results" / "report" / "report.md").is_file()
        return figures, users

    def check(self, folder: Path) -> None:
        """Runs that are there are whole."""
        for path in folder.glob("results/runs/[!.]*.json"):
            assert json.loads(path.read_text())["status"] == "done", path
            with np.load(path.with_suffix(".npz")) as arrays:
                assert arrays.files


@dataclass
class Tally:
    """Counts of one kind of work."""

    kills: int = 0
    in_a_write: int = 0
    ends: int = 0
    equal: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def main() -> int:
    """Kill as often as the command line says, print the table, and return 1 if something was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, as many for each kind of work (default: 100)")
    parser.add_argument("--work", choices=("training", "saving", "converting", "studying"), help="of this kind alone")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument(
        "--ray",
        action="store_true",
        help="kill one of three nodes of a Ray cluster under a study, instead (needs ray)",
    )
    given = parser.parse_args()
    if given.ray:
        return int(not lose_a_node())
    draw = random.Random(given.seed)
    tallies = {}
    with tempfile.TemporaryDirectory() as name:
        every = (Training(), Saving(), Converting(Path(name)), Studying())
        kinds = [work for work in every if given.work in (None, work.name)]
        with tqdm(total=given.kills, unit="kill") as bar:
            for place, work in enumerate(kinds):
                share = given.kills // len(kinds) + (place < given.kills % len(kinds))
                tallies[work.name] = kill_often(work, Path(name), share, draw, bar)
    print(table(tallies))
    for tally in tallies.values():
        for fault in tally.faults:
            print(fault)
    return int(any(tally.faults or tally.equal < tally.ends for tally in tallies.values()))


def kill_often(work: Work, parent: Path, kills: int, draw: random.Random, bar: Any) -> Tally:
    """Do the work once, then again under kills, until there were as many."""
    tally, begin = Tally(), time.monotonic()
    whole, took = unbroken(work, parent / "whole")
    while tally.kills < kills:
        folder = parent / "broken"
        for _ in range(min(CHAIN, kills - tally.kills)):
            if not killed(work, folder, draw.uniform(0.1, 0.9 if work.aimed else 1.0) * took, draw.random() < 0.5):
                break
            tally.kills += 1
            tally.in_a_write += any(folder.glob(work.writes))
            bar.update()
            try:
                work.check(folder)
            except Exception as error:
                tally.faults.append(f"{work.name}, kill {tally.kills}: {error!r}")
            for left in folder.glob(work.writes):
                left.unlink()
        try:
            if not finished(work, folder):
                run(work, folder)
            tally.equal += work.outcome(folder) == whole
        except Exception as error:
            tally.faults.append(f"{work.name}, after kill {tally.kills}: {error!r}")
        tally.ends += 1
        shutil.rmtree(folder)
    tally.seconds = time.monotonic() - begin
    return tally


def finished(work: Work, folder: Path) -> bool:
    """True where the work came to its end before it could be killed."""
    return (folder / "done").exists()


def unbroken(work: Work, folder: Path) -> tuple[Any, float]:
    """Outcome of the work without a break, and its seconds."""
    begin = time.monotonic()
    run(work, folder)
    took = time.monotonic() - begin
    outcome = work.outcome(folder)
    shutil.rmtree(folder)
    return outcome, took


def run(work: Work, folder: Path) -> None:
    """Do the work, or what is left of it, to its end."""
    folder.mkdir(exist_ok=True)
    subprocess.run(work.command(folder), cwd=folder, check=True, capture_output=True)


def killed(work: Work, folder: Path, after: float, alone: bool) -> bool:
    """Begin the work, or go on, and kill it after some seconds; False if it came to its end before.

    With ``alone`` the process dies and its children are left to see it; else all die at once.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            work.command(folder), cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    while work.aimed and process.poll() is None and not any(folder.glob(work.writes)):
        time.sleep(0.0005)
    if process.poll() is None:
        children = [] if alone else list(descendants(process.pid))
        for pid in (process.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        return True
    if process.returncode != 0:
        raise AssertionError(f"{work.name} ended with {process.returncode}: {(folder / 'output').read_text()[-500:]}")
    (folder / "done").touch()
    return False


def descendants(pid: int) -> Iterator[int]:
    """Process numbers of the children of a process, and theirs."""
    for child in psutil.Process(pid).children(recursive=True):
        yield child.pid


def lose_a_node() -> bool:
    """Kill a node of a cluster in the middle of its run; True where the study ends as on one machine, all runs done."""
    from ray.cluster_utils import Cluster

    work = Studying()
    with tempfile.TemporaryDirectory() as name:
        whole, _ = unbroken(work, Path(name) / "whole")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        folder = Path(name) / "broken"
        folder.mkdir()
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
            command = [*work.command(folder), "--ray", cluster.address]
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            while process.poll() is None and not list(folder.glob("results/scratch/*")):
                time.sleep(0.2)
            time.sleep(5)  # runs are at work on all nodes
            begun = sorted(path.name for path in folder.glob("results/scratch/*"))
            cluster.remove_node(nodes[0], allow_graceful=False)
            print(f"Of three nodes one was killed; {len(begun)} runs had begun: {', '.join(begun)}", flush=True)
            output, _ = process.communicate()
        finally:
            cluster.shutdown()
        repeated = [line for line in output.splitlines() if "the run is repeated" in line]
        print("\n".join(repeated) or "no run was on that node")
        same = process.returncode == 0 and work.outcome(folder) == whole
        verdict = "equal" if same else "DIFFER FROM"
        print(f"Exit code {process.returncode}; runs and figures {verdict} those of one machine")
        return same and bool(repeated)


def table(tallies: dict[str, Tally]) -> str:
    """The counts as a Markdown table."""
    rows = []
    for name, each in tallies.items():
        ends, minutes = f"{each.equal} of {each.ends}", f"{each.seconds / 60:.0f}"
        rows.append((name, each.kills, each.in_a_write, ends, len(each.faults), minutes))
    header = ("work", "kills", "in the middle of a write", "ends equal to unbroken work", "faults", "minutes")
    return tabulate(rows, header, tablefmt="github")


if __name__ == "__main__":
    sys.exit(main())
