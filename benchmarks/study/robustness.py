"""Loss of a trained model when a part of each history is changed, or its layers are disturbed, at test time alone.

Draws depend on the user, the length of the history, the kind of change and the seed, on nothing else: all models
meet the same changes, and the events changed at 10 % are among those changed at 20 %. Targets, candidates and
the query time stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from study.session import Session
from study.statistics import bootstrap_interval

KINDS = ("replace", "drop", "jitter")
"""Changes of the history."""
NOISE = "noise"
"""Noise in the layers of a model of ours; its share is its size relative to each layer's input."""
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)


def changed_history(
    items: NDArray[np.int64],
    times: NDArray[Any],
    query_time: float,
    kind: str,
    share: float,
    n_items: int,
    seed: Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Change a part of one history: items and times in seconds, [n] each, oldest first.

    Kinds: ``replace`` puts other items, drawn evenly out of ``n_items`` (padding, 0, included), in their place;
    ``drop`` leaves events out, never all of them; ``jitter`` moves times by normal noise with a standard deviation of
    the history's mean gap, none behind ``query_time``, and puts the events in the new order. ``share``, from 0 to 1, is
    rounded to events up or down at random, so that short histories get their share on average.

    Returns the places of the kept events in the history, Int64[m], in their new order, and their items and times after
    the change.
    """
    n = len(items)
    generator = np.random.default_rng([*seed, KINDS.index(kind)])
    ranked = generator.permutation(n)
    count = int(share * n + generator.random())
    everything = np.arange(n)
    if kind == "drop":
        order = np.setdiff1d(everything, ranked[: min(count, n - 1)])
        return order, items[order], times[order]
    chosen = ranked[:count]
    if kind == "replace":
        others = generator.integers(1, max(2, n_items - 1), n)
        others += others >= items
        replaced = items.copy()
        replaced[chosen] = np.where(others < n_items, others, items)[chosen]
        return everything, replaced, times
    gap = (times[-1] - times[0]) / max(1, n - 1)
    noise = np.round(generator.normal(0, 1, n) * gap).astype(times.dtype)
    moved = times.copy()
    moved[chosen] = np.minimum(times + noise, max(query_time, times[-1]))[chosen]
    order = np.argsort(moved, kind="stable")
    return order, items[order], moved[order]


def changed_batch(model: Any, interaction: Any, kind: str, share: float, seed: int) -> Any:
    """A batch of rows with a part of each history changed; see :func:`changed_history`.

    Rows have events first and padding behind; every field that ends as the list of items does is a list too.
    """
    suffix = model.ITEM_SEQ.removeprefix(model.ITEM_ID)
    lengths = interaction[model.ITEM_SEQ_LEN]
    lists = [name for name in interaction.interaction if name.endswith(suffix) and interaction[name].dim() >= 2]
    time_names = ("timestamp", str(getattr(model, "TIME", "timestamp")))
    time_list = next((name for name in lists if name.removesuffix(suffix) in time_names), None)
    item_list = interaction[model.ITEM_SEQ].cpu().numpy()
    times = item_list if time_list is None else interaction[time_list].cpu().numpy()
    now = None if time_list is None else interaction[time_list.removesuffix(suffix)].cpu().numpy()
    users = interaction[model.USER_ID].cpu().numpy()
    new_items, new_times = np.zeros_like(item_list), np.zeros_like(times)
    places, counts = np.zeros(item_list.shape, dtype=np.int64), np.zeros(len(users), dtype=np.int64)
    for row, n in enumerate(lengths.tolist()):
        if n == 0:
            continue
        query_time = np.inf if now is None else float(now[row])
        order, items, moved = changed_history(
            item_list[row, :n], times[row, :n], query_time, kind, share, model.n_items, (seed, int(users[row]), n)
        )
        m = len(order)
        counts[row], places[row, :m], new_items[row, :m], new_times[row, :m] = m, order, items, moved
    columns = dict(interaction.interaction)
    kept = torch.arange(item_list.shape[1]) < torch.from_numpy(counts).unsqueeze(1)
    for name in lists:
        columns[name] = _gathered(interaction[name], torch.from_numpy(places), kept)
    columns[model.ITEM_SEQ] = torch.from_numpy(new_items).to(lengths.device)
    if time_list is not None:
        columns[time_list] = torch.from_numpy(new_times).to(lengths.device)
    columns[model.ITEM_SEQ_LEN] = torch.from_numpy(counts).to(lengths)
    return type(interaction)(columns)


def _gathered(values: Tensor, places: Tensor, kept: Tensor) -> Tensor:
    shape = (*places.shape, *[1] * (values.dim() - 2))
    index = places.to(values.device).view(shape).expand(*places.shape, *values.shape[2:])
    return values.gather(1, index) * kept.to(values.device).view(shape)


@contextmanager
def changed(model: Any, kind: str, share: float, seed: int) -> Iterator[None]:
    """Let the model see changed histories while this lasts; the targets stay."""
    original: Callable[[Any], Tensor] = model.full_sort_predict
    model.full_sort_predict = lambda interaction: original(changed_batch(model, interaction, kind, share, seed))
    try:
        yield
    finally:
        del model.full_sort_predict


@contextmanager
def disturbed(model: Any, size: float, seed: int = 0) -> Iterator[None]:
    """Add Gaussian noise to the input of each layer of a model of ours while this lasts.

    ``size`` is relative to the root mean square of the place's input, as ``lni_sigma`` in training.
    """
    noise = torch.Generator().manual_seed(seed)

    def add(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]
        drawn = torch.randn(hidden.shape, generator=noise, dtype=torch.float32).to(hidden)
        return (hidden + size * hidden.pow(2).mean(-1, keepdim=True).sqrt() * drawn, *inputs[1:])

    handles = [layer.register_forward_pre_hook(add) for layer in model.encoder.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def drop_row(clean: NDArray[Any], values: NDArray[Any]) -> dict[str, float | None]:
    """Means before and after, the share lost, and its bootstrap interval over users.

    ``drop``, ``low`` and ``high`` are None where there was nothing to lose, the last two for a single user also.
    """
    before = float(clean.mean())
    row: dict[str, float | None] = {"clean": before, "value": float(values.mean())}
    if before <= 0:
        return {**row, "drop": None, "low": None, "high": None}
    low = high = None
    if len(clean) > 1:
        low, high = (end / before for end in bootstrap_interval(clean - values))
    return {**row, "drop": float((clean - values).mean()) / before, "low": low, "high": high}


def robustness_rows(
    session: Session, metric: str, clean: NDArray[Any], shares: Sequence[float] = SHARES, seed: int = 0
) -> list[dict[str, Any]]:
    """Drop of a metric from its values on whole histories, ``clean``, for each kind of change and each share.

    Noise is added to models of ours alone.
    """
    model = session.model
    ours = hasattr(getattr(model, "encoder", None), "layers")
    rows = []
    cases = [(kind, share) for kind in (*KINDS, *([NOISE] if ours else [])) for share in shares]
    for kind, share in tqdm(cases, desc="robustness", unit="case", leave=False, disable=None):
        with disturbed(model, share, seed) if kind == NOISE else changed(model, kind, share, seed):
            values = session.test(trained=True)[0][metric]
        rows.append({"kind": kind, "share": share, **drop_row(clean, values)})
    return rows
