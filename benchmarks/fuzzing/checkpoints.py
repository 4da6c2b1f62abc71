"""Read damaged, changed and crafted checkpoints, in this process, and see that each is read or refused in one line.

Nothing that a file brings may run: an audit hook of the interpreter watches for processes, for files written elsewhere
than in the log, for connections, and for the compilation of text that a file brought.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import logging
import os
import pickletools
import random
import re
import resource
import signal
import sys
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

import recbole_adrrec
from recbole_adrrec import cli
from recbole_adrrec.cli import train as training
from recbole_adrrec.errors import DataError, UserError
from recbole_adrrec.integration import init_from, resume
from recbole_adrrec.integration import register as plugin
from recbole_adrrec.integration.checkpoint import load_checkpoint
from recbole_adrrec.integration.fingerprint import fingerprint

TIME_LIMIT_S, MEMORY_LIMIT_MB = 20, 256
"""Of reading one file."""

ADDRESS_SPACE_GB = 6
"""More than the process has at the start; keeps the machine from harm where the limit of memory is broken."""

MARK = "fuzz_canary"
"""Stands in every text of a crafted file that could run."""

CODE = f"__import__('os').system('touch {MARK}')"
OLD = Path(__file__).parents[2] / "tests" / "data" / "version_0_1.pth"
"""A file of version 0.1."""

# The watch


RUNS = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "os.kill"),
    *("subprocess.Popen", "pty.spawn", "ctypes.dlopen", "socket.connect", "socket.getaddrinfo", "urllib.Request"),
    *("os.remove", "os.rename", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"),
}
"""Audit events that no reading of a file has a use for."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """Collects, while it is on, what the interpreter does that reading a file must not do."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)  # for the rest of the process

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in RUNS:
            self.seen.append(f"{event}{arguments}"[:200])
        elif (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES) or event == "os.mkdir":
            self._write(event, arguments[0])
        elif event == "import" and MARK in str(arguments[0]):
            self.seen.append(f"import of {arguments[0]}")
        elif event == "compile" and MARK in str(arguments[0]):
            self.seen.append("compile of a file's text")

    def _write(self, event: str, path: Any) -> None:
        # RecBole writes a log, and its trainers make the folder of checkpoints.
        if not isinstance(path, str | bytes):  # an open file
            return
        found = os.path.realpath(os.fsdecode(path))
        log = os.path.realpath("log")
        if found != os.path.realpath("saved") and os.path.commonpath([log, found]) != log:
            self.seen.append(f"{event} of {os.fsdecode(path)}")


class TookTooLongError(BaseException):
    """The limit of time is over; no handler of errors holds it up."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TookTooLongError` in what takes longer."""

    def stop(*_: Any) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_memory_mb() -> float:
    """Most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Valid checkpoints


OPTIONS: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    **{"epochs": 1, "n_layers": 1, "n_heads": 2, "hidden_size": 8, "inner_size": 8, "MAX_ITEM_LIST_LENGTH": 6},
    **{"metrics": ["NDCG"], "topk": [3], "valid_metric": "NDCG@3", "show_progress": False},
}


@dataclass
class Run:
    """A trained model with what made it."""

    path: Path
    config: Any
    model: Any
    train_data: Any
    valid_data: Any


def write_events(folder: Path) -> None:
    """``tiny/tiny.inter``: 8 users, 10 items."""
    draw = random.Random(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(8):
        moment = 1_600_000_000
        for _ in range(draw.randrange(5, 10)):
            moment += draw.randrange(1, 10**5)
            lines.append(f"u{user}\ti{draw.randrange(10)}\t{moment}")
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    (folder / "tiny" / "tiny.inter").write_text("\n".join(lines) + "\n")


def train(model: str, folder: Path, **options: Any) -> Run:
    """Train a model for an epoch on the events of ``folder``."""
    recbole: Any = importlib.import_module("recbole.quick_start.quick_start")
    given = {**OPTIONS, "data_path": str(folder), "checkpoint_dir": str(folder / "saved"), **options}
    with plugin.command_line({}, strict=False):
        config = recbole.Config(model=model, dataset="tiny", config_dict=given)
    recbole.init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, _ = recbole.data_preparation(config, recbole.create_dataset(config))
    made = recbole.get_model(model)(config, train_data._dataset)
    trainer = recbole.get_trainer(config["MODEL_TYPE"], model)(config, made)
    trainer.fit(train_data, valid_data, verbose=False)
    return Run(Path(trainer.saved_model_file), config, made, train_data, valid_data)


# Readers


class Readers:
    """Every way by which the package reads a checkpoint, on the data of a run."""

    def __init__(self, run: Run, resumed: Run) -> None:
        self.run, self.resumed = run, resumed
        self.recbole: Any = importlib.import_module("recbole.quick_start.quick_start")

    def load(self, path: str) -> None:
        """``recbole_adrrec.load``, and an answer to its first user."""
        recommender = recbole_adrrec.load(path)
        with contextlib.suppress(UserError):  # weights that are not numbers, a user without events
            recommender.recommend(recommender.users[:1], top=3)

    def resume(self, path: str) -> None:
        """``--resume``: options of the new run, then a trainer that goes on."""
        given = training.resumed({"resume": path})
        training.check(given, {"command line": given})
        typed = {name: value for name, value in given.items() if name not in ("model", "dataset")}
        with plugin.command_line(typed):
            resume.check_resume(self.recbole.Config(model=given["model"], dataset=given["dataset"]))
        run, config = self.resumed, self._config(self.resumed, resume=path)
        model = self.recbole.get_model(config["model"])(config, run.train_data._dataset)
        with mock.patch("recbole.trainer.trainer.get_tensorboard"):  # a folder for each trainer otherwise
            trainer = self.recbole.get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.fit(run.train_data, run.valid_data, verbose=False, saved=False)

    def init_from(self, path: str) -> None:
        """``--init_from``: checks before the data, then the weights."""
        config = self._config(self.run, init_from=path)
        init_from.prepare(config)
        init_from.fill(self.run.model, self.run.train_data._dataset, path, logging.getLogger())

    def load_data_and_model(self, path: str) -> None:
        """RecBole's ``load_data_and_model``."""
        self.recbole.load_data_and_model(path)

    def upgrade(self, path: str) -> None:
        """``upgrade-checkpoint`` without ``--trust``, which has to refuse."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = cli.main(["upgrade-checkpoint", path, "-o", "new.pth"])
        if code != 2:
            raise AssertionError(f"upgrade-checkpoint gave {code}")
        raise UserError(said.getvalue().removeprefix("error: ").removesuffix("\n"))

    @staticmethod
    def _config(run: Run, **changes: Any) -> Any:
        config = copy.copy(run.config)
        config.final_config_dict = {**config.final_config_dict, **changes}
        return config

    def all(self) -> dict[str, tuple[Callable[[str], None], int]]:
        """Readers with their shares of the inputs."""
        return {
            "load": (self.load, 55),
            "resume": (self.resume, 16),
            "init_from": (self.init_from, 18),
            "load_data_and_model": (self.load_data_and_model, 3),
            "upgrade-checkpoint": (self.upgrade, 8),
        }


# Inputs


class Call:
    """An object that unpickling calls something for."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def calls() -> list[Any]:
    """Objects that run something when they are unpickled by a reader that lets them."""
    return [
        Call(os.system, f"touch {MARK}"),
        Call(eval, CODE),
        Call(exec, CODE),
        Call(open, MARK, "w"),
        Call(getattr, Path(MARK), "touch"),
        Call(importlib.import_module, MARK),
        Call(torch.load, MARK),
        Call(torch.save, {}, MARK),
        Call(np.fromfile, MARK),
        Call(Path.touch, Path(MARK)),
        Call(torch.Tensor, 40_000, 40_000),
        Call(torch.FloatStorage, 10**10),
        Call(bytearray, 10**10),
        Call(torch.nn.Linear, 30_000, 30_000),
        Call(torch.hub.load, "a/b", MARK),
        torch.nn.Linear(1, 1),
        {1, 2},
        2j,
        b"bytes",
        torch.float16,
        torch.Size([1]),
        Counter("ab"),
        Path(MARK),
        np.float64(1),
        np.ones(2),
    ]


OPCODES = [
    f"cos\nsystem\n(S'touch {MARK}'\ntR.".encode(),
    f"(S'touch {MARK}'\nios\nsystem\n.".encode(),
    f"(cos\nsystem\nS'touch {MARK}'\no.".encode(),
    f"c__builtin__\neval\n(V{CODE}\ntR.".encode(),
    f"\x8c\x02os\x8c\x06system\x93\x8c\x11touch {MARK}\x85R.".encode("latin-1"),
    b"ctorch._utils\n_rebuild_parameter\n)R.",
    b"ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.",
    b"ctorch\nTensor\nJ\xff\xff\x00\x00J\xff\xff\x00\x00\x86R.",
    b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nTensor\nctorch\nTensor\n)}tR.",
    b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    b"ccollections\nOrderedDict\n)R}U\x01aNsb.",
    b"\x82\x01.",
    b"P1\n.",
    b"NQ.",
    b"(lp0\nh\x00a.",
    b"0000.",
    b"r\xff\xff\xff\x7f.",
    b"\x8b\xff\xff\xff\x7f.",
    b"X\xff\xff\xff\x7f.",
    b"b.",
    b"R.",
    b"\x81.",
]
"""Ends of pickles."""

GLOBALS = [
    *(b"torch._utils\n_rebuild_tensor", b"torch._utils\n_rebuild_parameter", b"torch._utils\n_rebuild_sparse_tensor"),
    *(b"torch._utils\n_rebuild_meta_tensor_no_storage", b"torch._utils\n_rebuild_tensor_v3", b"torch\nTensor"),
    *(b"torch._utils\n_rebuild_qtensor", b"torch\nFloatStorage", b"torch\nLongStorage", b"torch\nBoolStorage"),
    *(b"torch\nComplexFloatStorage", b"torch\nNoSuchStorage", b"os\nsystem", b"builtins\neval", b"posix\nsystem"),
    *(b"collections\nOrderedDict", b"collections\nCounter", b"torch.serialization\n_get_layout", b"torch\ndevice"),
    *(b"torch.storage\nUntypedStorage", b"builtins\nset", b"recbole.config.configurator\nConfig", b"a\nb"),
]


def odd_tensors(draw: random.Random, like: torch.Tensor) -> torch.Tensor:
    """A tensor that is not what stands in its place."""
    shape = tuple(like.shape)
    made: list[Callable[[], torch.Tensor]] = [
        lambda: torch.zeros(0),
        lambda: torch.zeros(()),
        lambda: torch.zeros(*shape, 2),
        lambda: like.flatten()[:1],
        lambda: like.double() if like.is_floating_point() else like.float(),
        lambda: like.half(),
        lambda: like.bfloat16(),
        lambda: like.bool(),
        lambda: like.to(torch.int8),
        lambda: like.to(torch.complex64),
        lambda: torch.full_like(like, float("nan")) if like.is_floating_point() else torch.ones_like(like) * -1,
        lambda: torch.full_like(like, float("inf")) if like.is_floating_point() else torch.ones_like(like) * 127,
        lambda: like * 1000,
        lambda: like - 1 if like.dtype != torch.bool else ~like,
        lambda: like.flip(0) if like.dim() else like,
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(1, dtype=torch.uint8).expand(3 * 10**9),
        lambda: torch.as_strided(torch.zeros(4), (2**15, 2**15), (0, 0)),
        lambda: like.to("meta"),
        lambda: like.float().to_sparse() if like.dim() else like.float(),
        lambda: torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (10**6, 10**6)),
        lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]),
        lambda: like.t() if like.dim() == 2 else like,
        lambda: like.clone().float().requires_grad_(),
        lambda: torch.nn.Parameter(like.float()),
    ]
    return draw.choice(made)()


def nested(depth: int) -> Any:
    """A list in a list, and so on."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def repeated(depth: int) -> Any:
    """A list that stands twice in a list, which stands twice in a list, and so on."""
    value: Any = [1]
    for _ in range(depth):
        value = [value, value]
    return value


def within_itself() -> Any:
    """A dict with itself among its values."""
    value: dict[str, Any] = {}
    value["a"] = value
    return value


ODD: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 7, -1, 10**4, 10**6, 10**9, 2**31, 2**63, 10**18, 10**400, -(10**18)),
    *(0.0, -0.0, 0.5, -1.5, 1e-300, 1e30, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", " ", "a\nb", "\x00", "\ud800", "é\u202e", "nan", "0", "1", "true", "None", "x" * 5000, "../../" + MARK),
    *("/", ".", "..", "[PAD]", "cuda", "cuda:99", "meta", "cpu:7", "mps", "u1", "i1", "position", "CE", "BPR"),
    *(CODE, f"open({MARK!r}, 'w')", f"lambda: {MARK}", f"[{CODE}]", "exec", "print", f"{MARK}.{MARK}", "SASRec"),
    *([], {}, [None], ["a", "a"], [1, 2], [0.5, 0.5], [[1]], {"a": 1}, {1: 2}, {None: None}, (), (1, "a")),
    *([CODE], {"split": CODE}, {"sinusoid": 10**6}, ["day"] * 5000, {"inter": ["user_id"]}, {"inter": None}),
]
"""Values to put in a right one's place."""

CALLED = ("wandb_project", "learning_rate", "valid_metric", "teacher", "device", "model", "dataset", "eval_args")
"""Options of which one takes a call."""


class Cases:
    """Draws inputs: each is a file's bytes, with its kind and a word on what was done.

    Parameters
    ----------
    bases : list of Path
        Valid checkpoints; most inputs start from the first.
    seed : int
        Input ``n`` of a seed is the same whatever was drawn before it.
    """

    def __init__(self, bases: list[Path], seed: int) -> None:
        self.seed = seed
        self.bytes = [path.read_bytes() for path in bases]
        self.states = [load_checkpoint(path) for path in bases]
        self.old = [OLD.read_bytes(), _pickled_by_recbole(self.states[0])]
        self.random = random.Random()
        self.main = [0]
        kinds: dict[str, tuple[Callable[[], tuple[bytes, str]], float]] = {
            "unchanged": (self._unchanged, 2),
            "bytes flipped": (self._flipped, 8),
            "cut, bytes lost or added": (self._cut, 6),
            "members of the archive": (self._members, 9),
            "opcodes of the pickle": (self._opcodes, 10),
            "old version": (self._old, 3),
            "structure": (self._structure, 3),
            "options": (self._options, 22),
            "weights": (self._weights, 9),
            "names, events, days": (self._data, 11),
            "state of training": (self._training, 9),
            "any value": (self._any, 8),
        }
        self.kinds = kinds

    def draw(self, number: int, main: Sequence[int] = (0,)) -> tuple[str, bytes, str]:
        """Kind, bytes and description of an input, which starts most often from the bases ``main``."""
        self.random.seed(f"{self.seed} {number}")
        self.main = list(main)
        weights = [weight for _, weight in self.kinds.values()]
        kind = self.random.choices(list(self.kinds), weights)[0]
        return (kind, *self.kinds[kind][0]())

    # Files

    def _base(self) -> int:
        return self.random.choice(self.main if self.random.random() < 0.9 else range(len(self.bytes)))

    def _unchanged(self) -> tuple[bytes, str]:
        return self.bytes[self.main[0]], ""

    def _flipped(self) -> tuple[bytes, str]:
        changed, places = bytearray(self.bytes[self._base()]), []
        for _ in range(self.random.choice([1, 1, 2, 5, 50])):
            places.append(self.random.randrange(len(changed)))
            changed[places[-1]] ^= 1 << self.random.randrange(8)
        return bytes(changed), f"at {places}"

    def _cut(self) -> tuple[bytes, str]:
        whole = self.bytes[self._base()]
        first, second = sorted(self.random.randrange(len(whole) + 1) for _ in range(2))
        length = self.random.choice([1, 4, 100, 5000])
        pieces = {
            "end": whole[:first],
            "beginning": whole[first:],
            "middle": whole[:first] + whole[second:],
            "a few bytes": whole[:first] + whole[first + length :],
            "added": whole[:first] + self.random.randbytes(length) + whole[first:],
            "doubled": whole + whole[:first],
            "before": self.random.randbytes(length) + whole,
            "noise": self.random.randbytes(first),
            "nothing": b"",
        }
        what = self.random.choice(list(pieces))
        return pieces[what], f"{what} {first}"

    def _members(self) -> tuple[bytes, str]:
        draw, members = self.random, self._archive(self._base())
        others = self._archive(draw.randrange(len(self.bytes)))
        name, other = draw.choice(list(members)), draw.choice(list(others))
        method, what = zipfile.ZIP_STORED, draw.randrange(11)
        match what:
            case 0:
                del members[name]
            case 1:
                members[name] = others[other]
            case 2:
                members[name + draw.choice(["x", "/", "/..", "\x01"])] = members.pop(name)
            case 3:
                members[name] = draw.randbytes(draw.choice([0, 1, len(members[name])]))
            case 4:
                members[name] = members[name] + members[name]
            case 5:
                method = draw.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
            case 6:
                return self._bomb, "a bomb"
            case 7:
                members = {**members, **others}
            case 8:
                end = name.rpartition("/")[0]
                members[f"{end}/byteorder"] = draw.choice([b"big", b"", b"middle"])
            case 9:
                pickles = [each for each in others if each.endswith("data.pkl")]
                members[next(each for each in members if each.endswith("data.pkl"))] = others[pickles[0]]
            case 10:
                members = {each: members[each] for each in draw.sample(list(members), len(members))}
        return _zipped(members, method), f"{what} {name} {other}"

    @functools.cached_property
    def _bomb(self) -> bytes:
        """A file whose largest member takes 300 MB once it is inflated."""
        members = self._archive(0)
        members[max(members, key=lambda name: len(members[name]) * ("/data/" in name))] = b"\0" * 3 * 10**8
        return _zipped(members, zipfile.ZIP_DEFLATED)

    def _archive(self, base: int) -> dict[str, bytes]:
        with zipfile.ZipFile(io.BytesIO(self.bytes[base])) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def _opcodes(self) -> tuple[bytes, str]:
        draw, members = self.random, self._archive(self._base())
        name = next(each for each in members if each.endswith("data.pkl"))
        text = members[name]
        steps = [(code, argument, place or 0) for code, argument, place in pickletools.genops(text)]
        code, argument, place = draw.choice(steps)
        match draw.randrange(5):
            case 0:
                state: Any = self._clone(self.states[self._base()])
                call = draw.choice(calls())
                if draw.random() < 0.2:
                    state = call
                else:
                    holder, key = self._place(state)
                    holder[key] = call
                return _saved(state, draw.choice([2, 2, 2, 3, 4, 5])), f"{getattr(call, 'call', call)!r}"
            case 1:
                ending = draw.choice(OPCODES)
                members[name] = text[:place] + ending
                return _zipped(members), f"{ending!r} at {place}"
            case 2:
                inserted = draw.choice(OPCODES)[:-1]
                members[name] = text[:place] + inserted + text[place:]
                return _zipped(members), f"{inserted!r} into {place}"
            case 3:
                found = [step for step in steps if step[0].name == "GLOBAL"]
                _, argument, place = draw.choice(found)
                new = draw.choice(GLOBALS)
                members[name] = text[: place + 1] + new + text[place + 1 + len(str(argument)) :]
                return _zipped(members), f"{new!r} for {argument}"
            case _:
                numbers = [step for step in steps if step[0].name in ("BININT", "BININT1", "BININT2")]
                code, argument, place = draw.choice(numbers)
                width = {"BININT": 4, "BININT1": 1, "BININT2": 2}[code.name]
                value = draw.choice([-1, 0, 1, 2**31 - 1, 65535, -(2**31), draw.randrange(10**6)])
                number = b"J" + value.to_bytes(4, "little", signed=True)
                members[name] = text[:place] + number + text[place + 1 + width :]
                return _zipped(members), f"{value} for {argument} at {place}"

    def _old(self) -> tuple[bytes, str]:
        old = bytearray(self.random.choice(self.old))
        for _ in range(self.random.choice([0, 0, 1, 3])):
            old[self.random.randrange(len(old))] ^= 1 << self.random.randrange(8)
        return bytes(old), ""

    # Plain data

    def _clone(self, value: Any) -> Any:
        """The containers anew, with the tensors that stand in them."""
        if isinstance(value, dict):
            return {key: self._clone(entry) for key, entry in value.items()}
        return [self._clone(entry) for entry in value] if isinstance(value, list) else value

    def _place(self, value: Any) -> tuple[Any, Any]:
        """A container somewhere below, and one of its keys."""
        while True:
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            key = self.random.choice(keys)
            below = value[key]
            if not (isinstance(below, dict | list) and below) or self.random.random() < 0.1:
                return value, key
            value = below

    def _odd(self, value: Any) -> Any:
        draw = self.random
        if isinstance(value, torch.Tensor) and draw.random() < 0.7:
            return odd_tensors(draw, value)
        if type(value) is int and draw.random() < 0.4:
            return draw.choice([value + 1, value - 1, -value, value * 1000, value % 100 + 0.5, [value]])
        if isinstance(value, str) and draw.random() < 0.3:
            return draw.choice([value + "x", value[1:], value.swapcase(), [value], value.encode().hex(), f"{CODE}"])
        return draw.choice(ODD)

    def _change(self, state: Any, part: Any, count: int = 1) -> str:
        """Change values below ``part``, and tell which."""
        told = []
        for _ in range(count):
            if not part:
                break
            holder, key = self._place(part)
            chance = self.random.random()
            if chance < 0.08 and isinstance(holder, dict):
                del holder[key]
                told.append(f"no {key!r}")
            elif chance < 0.14 and isinstance(holder, dict):
                new = self.random.choice(["x", "", 3, None, 1.5, "a\nb", (1, 2), CODE])
                holder[new] = holder.pop(key)
                told.append(f"{new!r} for key {key!r}")
            elif chance < 0.2 and isinstance(holder, list):
                del holder[key]
                told.append(f"no entry {key}")
            elif chance < 0.25:
                other, place = self._place(state)
                holder[key] = self._clone(other[place])
                told.append(f"{place!r} for {key!r}")
            else:
                holder[key] = self._odd(holder[key])
                told.append(f"{key!r} = {_shown(holder[key])}")
        return "; ".join(told)

    def _part(self, *names: str) -> tuple[bytes, str]:
        """A file with values changed in one of these entries."""
        state = self._clone(self.states[self._base()])
        parts = [state[name] for name in names if name in state] or [state]
        told = self._change(state, self.random.choice(parts), self.random.choice([1, 1, 1, 2, 4]))
        return self._fitting(state), told

    def _options(self) -> tuple[bytes, str]:
        draw, state = self.random, self._clone(self.states[self._base()])
        config, told = state["config"], []
        for _ in range(draw.choice([1, 1, 1, 2])):
            name = draw.choice(CALLED) if draw.random() < 0.1 else draw.choice(sorted(config["options"]))
            value = CODE if draw.random() < 0.1 else self._odd(config["options"].get(name))
            for part in draw.choice([("options",), ("given",), ("options", "given")]):
                config[part][name] = value
            if name in ("model", "dataset") and draw.random() < 0.5:
                config[name] = value
            told.append(f"{name} = {_shown(value)}")
        return self._fitting(state), "; ".join(told)

    def _weights(self) -> tuple[bytes, str]:
        return self._part("state_dict")

    def _training(self) -> tuple[bytes, str]:
        return self._part("training", "optimizer", "training")

    def _any(self) -> tuple[bytes, str]:
        state = self._clone(self.states[self._base()])
        return self._fitting(state), self._change(state, state, self.random.choice([1, 2, 5]))

    def _data(self) -> tuple[bytes, str]:
        draw, state = self.random, self._clone(self.states[self._base()])
        data = state.get("data")
        what = draw.randrange(8)
        if not data or what > 4:
            return self._part("data")
        names = data[draw.choice(["users", "items"])]
        events = data["events"]
        match what:
            case 0:  # names of others
                names["text"] = "".join(draw.sample(names["text"], len(names["text"])))
            case 1:
                lengths = names["lengths"].clone()
                lengths[draw.randrange(len(lengths))] += draw.choice([-3, -1, 1, 10**9])
                names["lengths"] = lengths
            case 2:
                counts = events["counts"]
                events["counts"] = counts[torch.randperm(len(counts), generator=torch.Generator().manual_seed(0))]
            case 3:
                events["times"] = events["times"] * draw.choice([-1, 2, 10**4])
            case 4:
                events["origin"] = draw.choice([0, -(10**18), 10**18, 2**63 - 1, 2**63, 10**400])
        return self._fitting(state), f"{what}"

    def _structure(self) -> tuple[bytes, str]:
        draw, state = self.random, self._clone(self.states[self._base()])
        makers: list[Callable[[], Any]] = [
            lambda: nested(draw.choice([50, 900, 5000])),
            lambda: repeated(draw.choice([3, 25, 60])),
            within_itself,
            lambda: {number: number for number in range(5000)},
            lambda: "x" * 10**6,
            lambda: [torch.zeros(1)] * 2000,
            lambda: 10**4400,
        ]
        holder, key = self._place(state)
        if draw.random() < 0.3:
            holder, key = state, draw.choice(["new", *state])
        holder[key] = draw.choice(makers)()
        return self._fitting(state), f"{key!r} = {_shown(holder[key])}"

    def _fitting(self, state: Any) -> bytes:
        """The file of a state, mostly with a fingerprint that fits."""
        if isinstance(state, dict) and self.random.random() < 0.95 and _is_small(state):
            state.pop("fingerprint", None)
            with contextlib.suppress(Exception):  # of what has no fingerprint, the file has none
                state["fingerprint"] = fingerprint(state)
        return _saved(state)


def _is_small(value: Any, depth: int = 0, budget: list[int] | None = None) -> bool:
    """False for what a fingerprint takes much time or memory for, or never ends with."""
    budget = [20_000] if budget is None else budget
    budget[0] -= 1
    if depth > 200 or budget[0] < 0:
        return False
    if isinstance(value, torch.Tensor):
        return value.numel() < 10**6
    if isinstance(value, dict):
        return all(_is_small(entry, depth + 1, budget) for entry in value.values())
    if type(value) is int:
        return abs(value) < 10**1000
    return not isinstance(value, list | tuple) or all(_is_small(entry, depth + 1, budget) for entry in value)


def _saved(state: Any, protocol: int = 2) -> bytes:
    file, limit = io.BytesIO(), sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        torch.save(state, file, pickle_protocol=protocol)
    finally:
        sys.setrecursionlimit(limit)
    return file.getvalue()


def _zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _pickled_by_recbole(state: dict[str, Any]) -> bytes:
    """As RecBole's own trainer writes it: with its ``Config``, which a pickle makes again."""
    config_class: Any = importlib.import_module("recbole.config").Config
    config = config_class.__new__(config_class)
    config.__dict__.update(final_config_dict=state["config"]["options"], model="ADRRec", dataset="tiny")
    return _saved(
        {**{name: state[name] for name in ("epoch", "cur_step", "state_dict", "optimizer")}, "config": config}, 4
    )


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape) if not value.is_nested else 'nested'} {value.layout} {value.device}"
    if isinstance(value, dict | list | tuple) and not _is_small(value):
        return f"a big {type(value).__name__}"
    return f"{value!r}"[:100] if not isinstance(value, int) or abs(value) < 10**100 else "a big int"


# The run


STAGE_OF = {
    **{"_read_archive": "file", "_check_pickle": "file", "_check_plain": "values", "load_checkpoint": "fingerprint"},
    **dict.fromkeys(("named", "restore_config", "compare_options", "prepare", "_refuse_differences"), "options"),
    **dict.fromkeys(("check_same_data", "_check_data", "checkpoint_data"), "names, events"),
    **dict.fromkeys(("restore", "load_weights", "_clock", "_check_fit", "recommend", "init_from"), "model, weights"),
    **dict.fromkeys(("resume", "trainer"), "state of training"),
}
"""How far a file got, by the function that refuses it, else by its module."""

STAGES = [*dict.fromkeys(STAGE_OF.values()), "read"]


def stage_of(error: BaseException) -> str:
    """The stage at which a file was refused."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame.f_code for frame in frames if "recbole_adrrec" in frame.f_code.co_filename]
    if not ours:
        return "file"
    names = ours[-1].co_name, Path(ours[-1].co_filename).stem
    return next((STAGE_OF[name] for name in names if name in STAGE_OF), ".".join(names))


@dataclass
class Found:
    """Inputs by kind and stage, by reader, and what was wrong with some."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    readers: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)
    slowest_s: float = 0.0


class Fuzz:
    """Gives inputs to readers and checks what comes of them.

    Parameters
    ----------
    folder : Path
        For the data, the checkpoints and the inputs; becomes the working directory.
    seed : int
    readers : dict, optional
        Name to function and share; those of the package if None.
    """

    def __init__(self, folder: Path, seed: int, readers: Any = None) -> None:
        os.chdir(folder)
        recbole_adrrec.register()
        write_events(folder)
        # An optimizer without a state of its own makes the smallest file; --resume has one with such a state to read.
        small = train("ADRRec", folder, trend_rank=2, learner="sgd", learning_rate=0.1)
        whole, others = train("ADRRec", folder), [train("HSTU", folder)]
        others.append(train("SASRec", folder, train_neg_sample_args=None))
        last = resume.last_file(whole.path)
        self.cases = Cases([small.path, whole.path, last, *(run.path for run in others)], seed)
        self.readers = Readers(small, whole).all() if readers is None else readers
        # The best model stands beside each file, as --resume asks for it.
        self.path = str(small.path.with_name("input.pth"))
        self.found = Found()
        self.watch = Watch()

    def run(self, inputs: int, start: int = 0) -> Found:
        """Read ``inputs`` files."""
        for reader, _ in self.readers.values():  # imports what is imported late
            self._attempt(reader, self.cases.bytes[0])
        self.found.failures.clear()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        shares = [share for _, share in self.readers.values()]
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE_GB * 2**30, before[1]))
        try:
            for number in tqdm(range(start, start + inputs), unit=" files", disable=not sys.stderr.isatty()):
                name = random.Random(number).choices(list(self.readers), shares)[0]
                kind, content, told = self.cases.draw(number, (1, 2) if name == "resume" else (0,))
                begin = time.perf_counter()
                stage, problem = self._attempt(self.readers[name][0], content)
                self.found.slowest_s = max(self.found.slowest_s, time.perf_counter() - begin)
                self.found.counts[kind, stage] += 1
                self.found.readers[name, stage] += 1
                if kind == "unchanged" and stage != "read" and name != "upgrade-checkpoint":
                    problem = problem or f"a valid file was refused at {stage}"
                if problem:
                    self.found.failures.setdefault(f"{name}: {problem}", []).append(f"input {number}, {kind}: {told}")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        return self.found

    def _attempt(self, reader: Callable[[str], None], content: bytes) -> tuple[str, str]:
        """The stage that a file reaches with a reader, and what was wrong, if anything."""
        Path(self.path).write_bytes(content)
        before, stage, problem = peak_memory_mb(), "read", ""
        self.watch.seen.clear()
        self.watch.on = True
        try:
            with time_limit(TIME_LIMIT_S), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader(self.path)
        except UserError as error:
            stage = stage_of(error)
            text = str(error)
            asked = re.search(r"allocate (\d+) bytes", text)
            if "\n" in text or "\r" in text:
                problem = f"more than a line from {stage}"
            elif self.path not in text and not isinstance(error, DataError):  # of data files that aren't there
                problem = f"a message that doesn't name the file, from {stage}: {text[:300]}"
            elif asked and int(asked[1]) < 10**12:
                problem = f"asked for {int(asked[1]):,} bytes, at {stage}"
        except TookTooLongError:
            stage, problem = "failed", f"more than {TIME_LIMIT_S} s"
        except BaseException as error:
            self.watch.on = False
            if isinstance(error, KeyboardInterrupt):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            ours = [each for each in traceback.extract_tb(error.__traceback__) if "recbole_adrrec/" in each.filename]
            where = ours[-1] if ours else frame
            stage = "failed"
            problem = f"{type(error).__name__} in {Path(where.filename).stem}.{where.name}:{where.lineno}"
            problem += f" ({Path(frame.filename).stem}:{frame.lineno})" if frame is not where else ""
        finally:
            self.watch.on = False
        if self.watch.seen:
            problem = f"did {self.watch.seen[0]}"
        if os.path.exists(MARK):
            os.unlink(MARK)
            problem = "a file of the input's appeared"
        grown = peak_memory_mb() - before
        if grown > MEMORY_LIMIT_MB:
            problem = problem or f"took more than {MEMORY_LIMIT_MB} MB"
        return stage, problem
