"""One training step of ADRRec on made-up rows, ours and written out: runs in a child process."""

from __future__ import annotations

import math
import os
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from measure import memory

FIRST_TIME = 1_300_000_000
N_ITEMS = 1_000


class _Options(dict[str, Any]):
    """Options as RecBole's ``Config`` answers them: None for what is not set."""

    def __missing__(self, name: str) -> None:
        return None


def build(given: dict[str, Any]) -> Any:
    """Make ADRRec without its data: ``length``, ``hidden_size``, ``options`` and ``written_out`` of what is given."""
    import recbole_adrrec

    recbole_adrrec.register()
    from recbole_adrrec.models.adrrec import ADRRec
    from recbole_adrrec.options import load_properties

    options = _Options(
        {
            **load_properties("overall", "overall"),
            **load_properties("model", "ADRRec"),
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "TIME_FIELD": "timestamp",
            "LIST_SUFFIX": "_list",
            "ITEM_LIST_LENGTH_FIELD": "item_length",
            "NEG_PREFIX": "neg_",
            "MAX_ITEM_LIST_LENGTH": given["length"],
            "device": torch.device(given["device"]),
            "seed": 1,
            "lni_weight": 0.0,
            "hidden_size": given["hidden_size"],
            "inner_size": 4 * given["hidden_size"],
            **given["options"],
        }
    )
    days = torch.arange(4000) + FIRST_TIME // 86_400
    data = SimpleNamespace(
        num=lambda field: N_ITEMS,
        trained_days=lambda include_targets: days,
        time_scale=lambda include_targets: (60.0, float(len(days) * 86_400)),
        smallest_training_gaps=lambda: torch.ones(N_ITEMS, dtype=torch.int64),
    )
    torch.manual_seed(1)
    model = ADRRec(options, data).to(options["device"])
    if given["written_out"]:
        from measure.written_out import write_out

        write_out(model)
    return model


def rows(count: int, length: int, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Full windows of ``length`` events with a target everywhere; gaps from seconds to months."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, N_ITEMS, (count, length + 1), generator=generator)
    gaps = torch.exp(torch.randn(count, length + 1, generator=generator) * 3 + math.log(600)).long()
    times = FIRST_TIME + gaps.clamp(max=90 * 86_400).cumsum(1)
    batch = {
        "user_id": torch.arange(1, count + 1),
        "item_id_list": items[:, :-1],
        "timestamp_list": times[:, :-1],
        "item_length": torch.full((count,), length),
        "item_id": items[:, 1:],
        "timestamp": times[:, 1:],
    }
    return {name: values.contiguous().to(device) for name, values in batch.items()}


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Time and memory of training steps.

    Parameters
    ----------
    given : dict
        ``rows`` B, ``length`` L, ``hidden_size`` d, ``options`` (of ADRRec), ``written_out`` (bool), ``repeats``,
        ``device``.

    Returns
    -------
    dict
        ``step_s`` (one for each repeat), ``peak_mib`` (rise of resident memory, or of the GPU's, in one step),
        ``saved_mib`` (what autograd keeps for the backward pass), of it ``saved_weights_mib`` (tensors with a number
        for each pair of places) and ``saved_others_mib``; ``loss``.
    """
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = build(given)
    device = given["device"]
    cuda = device.startswith("cuda")
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    amp = bool(given["options"].get("enable_amp"))

    def step(batch: dict[str, Tensor]) -> float:
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, enabled=amp, dtype=torch.bfloat16):
            loss = model.calculate_loss(batch)
        loss.backward()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        return float(loss.detach())

    # Threads, libraries and the optimizer's state are not a step's cost.
    step(rows(2, min(16, given["length"]), device))
    batch = rows(given["rows"], given["length"], device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / memory.MIB
    else:
        before = memory.resident()
        memory.reset_peak()
    loss = step(batch)
    peak = torch.cuda.max_memory_allocated() / memory.MIB if cuda else memory.peak()
    times = []
    for _ in range(given["repeats"]):
        start = time.perf_counter()
        step(batch)
        times.append(time.perf_counter() - start)
    with (
        torch.autocast(torch.device(device).type, enabled=amp, dtype=torch.bfloat16),
        memory.saved_tensors(given["length"], [*model.parameters(), *model.buffers()]) as saved,
    ):
        model.calculate_loss(batch)
    return {
        "step_s": times,
        "peak_mib": peak - before,
        "saved_mib": saved.total / memory.MIB,
        "saved_weights_mib": saved.weights / memory.MIB,
        "saved_others_mib": saved.others / memory.MIB,
        "loss": loss,
    }
