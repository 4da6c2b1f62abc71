"""Damaged, changed and crafted checkpoints, drawn by number from a seed."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import pickletools
import random
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fuzzing.checkpoint_values import (
    CALLED,
    CODE,
    GLOBALS,
    ODD,
    OPCODES,
    calls,
    nested,
    odd_tensor,
    repeated,
    within_itself,
)
from recbole_adrrec.fingerprint import fingerprint
from recbole_adrrec.integration.checkpoint import load_checkpoint

OLD = Path(__file__).parents[2] / "tests" / "data" / "version_0_1.pth"
"""A file of version 0.1."""

Made = tuple[bytes, str]
"""A file, and a word on what was done."""


def cloned(value: Any) -> Any:
    """The containers anew, with the tensors that stand in them."""
    if isinstance(value, dict):
        return {key: cloned(entry) for key, entry in value.items()}
    return [cloned(entry) for entry in value] if isinstance(value, list) else value


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
        self.main: Sequence[int] = (0,)
        flip, part = self._flip, self._part
        self.kinds: dict[str, tuple[Callable[[], Made], int]] = {
            "unchanged": (lambda: (self.bytes[self.main[0]], ""), 2),
            "bytes flipped": (lambda: flip(self.bytes[self._base()], [1, 1, 2, 5, 50]), 8),
            "cut, bytes lost or added": (self._cut, 6),
            "members of the archive": (self._members, 9),
            "opcodes of the pickle": (self._opcodes, 10),
            "old version": (lambda: flip(self.random.choice(self.old), [0, 0, 1, 3]), 3),
            "structure": (self._structure, 3),
            "options": (self._options, 22),
            "weights": (lambda: part("state_dict"), 9),
            "names, events, days": (self._data, 11),
            "state of training": (lambda: part("training", "optimizer", "training"), 9),
            "any value": (self._any, 8),
        }

    def draw(self, number: int, main: Sequence[int] = (0,)) -> tuple[str, bytes, str]:
        """Kind, bytes and description of an input, which starts most often from the bases ``main``."""
        self.random.seed(f"{self.seed} {number}")
        self.main = main
        weights = [weight for _, weight in self.kinds.values()]
        kind = self.random.choices(list(self.kinds), weights)[0]
        try:
            return (kind, *self.kinds[kind][0]())
        except (RuntimeError, MemoryError):  # values changed twice that no file can be made of
            return ("unchanged", *self.kinds["unchanged"][0]())

    # Files

    def _base(self) -> int:
        return self.random.choice(self.main if self.random.random() < 0.9 else range(len(self.bytes)))

    def _state(self) -> Any:
        return cloned(self.states[self._base()])

    def _flip(self, content: bytes, counts: Sequence[int]) -> Made:
        """A file with as many bits flipped as one of ``counts`` says."""
        changed, places = bytearray(content), []
        for _ in range(self.random.choice(counts)):
            places.append(self.random.randrange(len(changed)))
            changed[places[-1]] ^= 1 << self.random.randrange(8)
        return bytes(changed), f"at {places}"

    def _cut(self) -> Made:
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

    def _members(self) -> Made:
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
                members[f"{name.rpartition('/')[0]}/byteorder"] = draw.choice([b"big", b"", b"middle"])
            case 9:
                members[pickle_of(members)] = others[pickle_of(others)]
            case 10:
                members = {each: members[each] for each in draw.sample(list(members), len(members))}
        return zipped(members, method), f"{what} {name} {other}"

    @functools.cached_property
    def _bomb(self) -> bytes:
        """A file whose largest member takes 300 MB once it is inflated."""
        members = self._archive(0)
        members[max(members, key=lambda name: len(members[name]) * ("/data/" in name))] = b"\0" * 3 * 10**8
        return zipped(members, zipfile.ZIP_DEFLATED)

    def _archive(self, base: int) -> dict[str, bytes]:
        with zipfile.ZipFile(io.BytesIO(self.bytes[base])) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def _opcodes(self) -> Made:
        draw, members = self.random, self._archive(self._base())
        name = pickle_of(members)
        text = members[name]
        steps = [(code.name, argument, place or 0) for code, argument, place in pickletools.genops(text)]
        _, argument, place = draw.choice(steps)
        match draw.randrange(5):
            case 0:
                return self._called()
            case 1:
                new = draw.choice(OPCODES)
                end, told = len(text), f"{new!r} at {place}"
            case 2:
                new = draw.choice(OPCODES)[:-1]
                end, told = place, f"{new!r} into {place}"
            case 3:
                _, argument, place = draw.choice([step for step in steps if step[0] == "GLOBAL"])
                place, new = place + 1, draw.choice(GLOBALS)
                end, told = place + len(str(argument)), f"{new!r} for {argument}"
            case _:
                widths = {"BININT": 4, "BININT1": 1, "BININT2": 2}
                code, argument, place = draw.choice([step for step in steps if step[0] in widths])
                value = draw.choice([-1, 0, 1, 2**31 - 1, 65535, -(2**31), draw.randrange(10**6)])
                new = b"J" + value.to_bytes(4, "little", signed=True)
                end, told = place + 1 + widths[code], f"{value} for {argument} at {place}"
        members[name] = text[:place] + new + text[end:]
        return zipped(members), told

    def _called(self) -> Made:
        """A file with an object that unpickling calls something for."""
        draw, state = self.random, self._state()
        call = draw.choice(calls())
        if draw.random() < 0.2:
            state = call
        else:
            holder, key = self._place(state)
            holder[key] = call
        return saved(state, draw.choice([2, 2, 2, 3, 4, 5])), f"{getattr(call, 'call', call)!r}"

    # Plain data

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
            return odd_tensor(draw, value)
        if type(value) is int and draw.random() < 0.4:
            return draw.choice([value + 1, value - 1, -value, value * 1000, value % 100 + 0.5, [value]])
        if isinstance(value, str) and draw.random() < 0.3:
            return draw.choice(
                [value + "x", value[1:], value.swapcase(), [value], value.encode("utf-8", "surrogatepass").hex(), CODE]
            )
        return copy.deepcopy(draw.choice(ODD))

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
                holder[key] = cloned(other[place])
                told.append(f"{place!r} for {key!r}")
            else:
                holder[key] = self._odd(holder[key])
                told.append(f"{key!r} = {_shown(holder[key])}")
        return "; ".join(told)

    def _part(self, *names: str) -> Made:
        """A file with values changed in one of these entries."""
        state = self._state()
        parts = [state[name] for name in names if name in state] or [state]
        told = self._change(state, self.random.choice(parts), self.random.choice([1, 1, 1, 2, 4]))
        return self._fitting(state), told

    def _options(self) -> Made:
        draw, state = self.random, self._state()
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

    def _any(self) -> Made:
        state = self._state()
        told = self._change(state, state, self.random.choice([1, 2, 5]))
        return self._fitting(state), told

    def _data(self) -> Made:
        draw, state = self.random, self._state()
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

    def _structure(self) -> Made:
        draw, state = self.random, self._state()
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
        if self.random.random() < 0.95 and _is_small(state):
            state.pop("fingerprint", None)
            with contextlib.suppress(Exception):  # of what has no fingerprint, the file has none
                state["fingerprint"] = fingerprint(state)
        return saved(state)


def _is_small(value: Any) -> bool:
    """False for what a fingerprint takes much time or memory for, or never ends with."""
    waiting = [(value, 0)]
    for each, depth in waiting:  # grows meanwhile
        if isinstance(each, dict | list | tuple):
            below = each.values() if isinstance(each, dict) else each
            waiting += [(entry, depth + 1) for entry in below]
        big_tensor = isinstance(each, torch.Tensor) and each.numel() >= 10**6
        big_number = type(each) is int and abs(each) >= 10**1000
        if big_tensor or big_number or depth > 200 or len(waiting) > 20_000:
            return False
    return True


def saved(state: Any, protocol: int = 2) -> bytes:
    """The file of a state that may nest deeply."""
    file, limit = io.BytesIO(), sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        torch.save(state, file, pickle_protocol=protocol)
    finally:
        sys.setrecursionlimit(limit)
    return file.getvalue()


def pickle_of(members: dict[str, bytes]) -> str:
    """Name of the pickle among an archive's members."""
    return next(name for name in members if name.endswith("data.pkl"))


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these members."""
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
    kept = {name: state[name] for name in ("epoch", "cur_step", "state_dict", "optimizer")}
    return saved({**kept, "config": config}, 4)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape) if not value.is_nested else 'nested'} {value.layout} {value.device}"
    if isinstance(value, dict | list | tuple) and not _is_small(value):
        return f"a big {type(value).__name__}"
    return f"{value!r}"[:100] if not isinstance(value, int) or abs(value) < 10**100 else "a big int"
