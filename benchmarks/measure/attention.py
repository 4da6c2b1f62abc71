"""One training step of ADRRec with kernels of time, ours and naive: ``efficiency.py --attention``."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import memory
from measure.tables import Row, medians, ratio, text
from measure.variants import ATTENTION, NAIVE, Variant, common_options

if TYPE_CHECKING:
    from torch import Tensor

    from measure.session import Job, Session

FIRST_TIME = 1_300_000_000
N_ITEMS = 1_000

COLUMNS = {
    "step_s": "s / step",
    "times_faster": "times faster",
    "peak_mib": "peak MiB",
    "peak_share": "of naive",
    "saved_mib": "kept for backward MiB",
    "saved_share": "of naive's",
}

QUANTITIES = ("step_s", "peak_mib", "saved_mib", "saved_weights_mib", "saved_others_mib")


def report(session: Session) -> str:
    """Measure the variants by turns; table in Markdown."""
    arguments = session.arguments
    rows, length = (4, 50) if arguments.quick else (32, 200)
    variants = session.variants(known=ATTENTION)
    jobs = [
        job(session, "attention", variant, run, rows, length) for run in range(arguments.runs) for variant in variants
    ]
    found = table(session.measure(jobs, "attention"), [variant.name for variant in variants])
    session.store.note("attention", found)
    title = f"### One training step of ADRRec, B = {rows}, L = {length}, d = 64, kernels position, day, sinusoid, log1p"
    return f"{title}\n\n{text(found, COLUMNS)}"


def job(session: Session, kind: str, variant: Variant, run: int, rows: int, length: int, **more: Any) -> Job:
    """A step of ``rows`` windows of ``length`` events; ``more`` adds to the keys of what is given."""
    from measure.session import Job

    given = {
        "rows": rows,
        "length": length,
        "hidden_size": 64,
        "options": variant.options,
        "naive": variant.source == "naive",
        "repeats": 1 if session.arguments.quick else 5,
        "threads": session.arguments.threads,
        "device": session.arguments.device,
        **more,
    }
    return Job(kind, variant.name, run, "measure.attention:measure", given)


def table(measurements: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """One row for each variant: medians of ``QUANTITIES``.

    Further keys, against ``NAIVE``: ``times_faster``, ``peak_share``, ``saved_share``.
    """
    rows = medians(measurements, names, QUANTITIES)
    base = next((row for row in rows if row["variant"] == NAIVE), {})
    for row in rows:
        row["times_faster"] = ratio(base.get("step_s"), row.get("step_s"))
        row["peak_share"] = ratio(row.get("peak_mib"), base.get("peak_mib"))
        row["saved_share"] = ratio(row.get("saved_mib"), base.get("saved_mib"))
    return rows


# In the child process


def build(given: dict[str, Any]) -> Any:
    """ADRRec for synthetic data, which are put into the working directory; keys as for :func:`measure`."""
    import recbole_adrrec

    recbole_adrrec.register()
    import synthetic
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.utils import get_model

    folder = Path("synthetic_data")
    if not folder.exists():
        synthetic.write(folder, "synthetic", users=200, items=N_ITEMS, events=40_000, progress=False)
    options = {
        **common_options("synthetic", given["length"], 1, given["device"]),
        "data_path": str(folder),
        "lni_weight": 0.0,
        "hidden_size": given["hidden_size"],
        "inner_size": 4 * given["hidden_size"],
        **given["options"],
    }
    config = Config(model="ADRRec", dataset="synthetic", config_dict=options)
    data = create_dataset(config).build()[0]
    torch.manual_seed(1)
    model = get_model("ADRRec")(config, data).to(config["device"])
    if given["naive"]:
        from measure.naive_attention import make_naive

        make_naive(model)
    return model


def batch_of(model: Any, count: int, length: int) -> dict[str, Tensor]:
    """Full windows of ``length`` events with a target everywhere; gaps from seconds to months."""
    import torch

    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, model.n_items, (count, length + 1), generator=generator)
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
    return {name: values.contiguous().to(model.device) for name, values in batch.items()}


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Time and memory of training steps.

    Given are ``rows`` B, ``length`` L, ``hidden_size`` d, ``options`` (of ADRRec), ``naive`` (bool), ``repeats`` and
    ``device``. Found are ``step_s`` (one for each repeat), ``peak_mib`` (rise of resident memory, or of the GPU's, in
    one step), ``saved_mib`` (what autograd keeps for the backward pass), of it ``saved_weights_mib`` (tensors with a
    number for each pair of places) and ``saved_others_mib``, and ``loss``.
    """
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = build(given).train()
    cuda = given["device"] == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    amp = torch.autocast(given["device"], enabled=bool(given["options"].get("enable_amp")), dtype=torch.bfloat16)

    def step(batch: dict[str, Tensor]) -> float:
        optimizer.zero_grad()
        with amp:
            loss = model.calculate_loss(batch)
        loss.backward()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        return float(loss.detach())

    # Threads, libraries and the optimizer's state are not a step's cost.
    step(batch_of(model, 2, min(16, given["length"])))
    batch = batch_of(model, given["rows"], given["length"])
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
    with amp, memory.saved_tensors(given["length"], [*model.parameters(), *model.buffers()]) as saved:
        model.calculate_loss(batch)
    return {
        "step_s": times,
        "peak_mib": peak - before,
        "saved_mib": saved.total / memory.MIB,
        "saved_weights_mib": saved.weights / memory.MIB,
        "saved_others_mib": saved.others / memory.MIB,
        "loss": loss,
    }
