"""Values that crafted checkpoints hold in the place of right ones: calls, opcodes, tensors and others."""

from __future__ import annotations

import importlib
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

MARK = "fuzz_canary"
"""Stands in every text of a crafted file that could run."""

CODE = f"__import__('os').system('touch {MARK}')"


class Call:
    """An object that unpickling calls something for."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def calls() -> list[Any]:
    """Objects that take calls, or types that no checkpoint holds, to be unpickled."""
    return [
        *(Call(os.system, f"touch {MARK}"), Call(eval, CODE), Call(exec, CODE), Call(open, MARK, "w")),
        *(Call(getattr, Path(MARK), "touch"), Call(importlib.import_module, MARK), Call(torch.load, MARK)),
        *(Call(torch.save, {}, MARK), Call(np.fromfile, MARK), Call(Path.touch, Path(MARK))),
        *(Call(torch.Tensor, 40_000, 40_000), Call(torch.FloatStorage, 10**10), Call(bytearray, 10**10)),
        *(Call(torch.nn.Linear, 30_000, 30_000), Call(torch.hub.load, "a/b", MARK)),
        *(torch.nn.Linear(1, 1), {1, 2}, 2j, b"bytes", torch.float16, torch.Size([1])),
        *(Counter("ab"), Path(MARK), np.float64(1), np.ones(2)),
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
    *(b"\x82\x01.", b"P1\n.", b"NQ.", b"(lp0\nh\x00a.", b"0000.", b"r\xff\xff\xff\x7f.", b"\x8b\xff\xff\xff\x7f."),
    *(b"X\xff\xff\xff\x7f.", b"b.", b"R.", b"\x81."),
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


def odd_tensor(draw: random.Random, like: torch.Tensor) -> torch.Tensor:
    """A tensor that is not what stands in its place."""
    made: list[Callable[[], torch.Tensor]] = [
        lambda: torch.zeros(0),
        lambda: torch.zeros(()),
        lambda: torch.zeros(*like.shape, 2),
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
