"""Models that start from a trained one on newer data, each row with whom it belongs to there (option ``init_from``).

========================= ==========================================================================================
known items               keep their rows, by name, whatever their new numbers
new items                 the mean of the known items that stand at most ``NEAR`` places from them in the training data,
                          as often as they do; where there are none, the mean of all items of the trained model
tables of days, trends    rows take the trained function of time at their day; a day beyond takes the nearest known one
unit and rates of clocks  those of the trained model, which its kernels were learned with
smallest gaps of users    read off the newer data, as all its statistics
counters of random draws  start anew, as the optimizer does
all other weights         are copied
========================= ==========================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from recbole_adrrec.errors import CheckpointError, OptionError
from recbole_adrrec.integration.checkpoint import load_checkpoint, load_weights, plain_option
from recbole_adrrec.integration.checkpoint_data import CheckpointData
from recbole_adrrec.integration.restore import restore
from recbole_adrrec.layers.draws import SharedNegatives, TieOrder
from recbole_adrrec.layers.embeddings import ItemEmbedding
from recbole_adrrec.layers.heads import ItemHead, Trend
from recbole_adrrec.layers.intervals import TimeIntervals
from recbole_adrrec.layers.kernels import DayKernel, SmoothDayKernel
from recbole_adrrec.layers.noise import LayerwiseNoise
from recbole_adrrec.options import MODEL_OPTIONS, load_properties
from recbole_adrrec.options.schema import EncoderOptions

NEAR = 2
"""Places before and after a new item whose items it is met with."""

COUNTERS = (LayerwiseNoise, SharedNegatives, TieOrder)
"""Modules whose ``step`` counts random draws."""

FREE_OPTIONS = frozenset(
    {
        # How a model is trained.
        *("loss_type", "n_negatives", "negatives", "gbce_t", "label_smoothing", "pvn_weight", "mask_ratio"),
        *("hidden_dropout_prob", "attn_dropout_prob", "inner_dropout_prob", "initializer_range", "refinement_start"),
        *("lni_form", "lni_weight", "lni_sigma", "lni_noise", "lni_layers", "lni_layer_weights", "lni_stop_gradient"),
        *("train_rows", "train_batch_size", "reorder_ties", "trend_decay"),
        # How it is computed.
        *("event_layout", "recompute", "compile", "grid_points"),
        # Where knots lie: vectors are read at the new ones.
        *("day_spacing", "trend_spacing"),
    }
)
"""Options of models that weights don't depend on; the others have to be those that the weights were trained with."""

CLOCK = ("time_unit", "kernel_freq")
"""Options that are a clock's numbers."""

EXCLUDES_RESUME = (
    "init_from, resume: resume goes on with the same data, init_from starts on newer data; leave one of the two out"
)


def prepare(config: Any) -> None:
    """Refuse a file, ``config["init_from"]``, that a run can't start from, and give the run the clock of the file.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, changed since it was saved, or carries no names of items.
    OptionError
        The model or its options are others than the file's, or ``resume`` is given too.
    """
    file, model = config["init_from"], config["model"]
    if config["resume"]:
        raise OptionError(EXCLUDES_RESUME)
    if not issubclass(MODEL_OPTIONS.get(model, object), EncoderOptions):
        able = ", ".join(name for name, each in MODEL_OPTIONS.items() if issubclass(each, EncoderOptions))
        raise OptionError(f"init_from: {model} can't start from a trained model; leave it out, or choose one of {able}")
    checkpoint = load_checkpoint(file, map_location="cpu")
    CheckpointData.of(checkpoint, os.fspath(file))
    clock = _clock(checkpoint["state_dict"], file)
    _refuse_differences(config, checkpoint["config"], clock, file)
    for name in clock:
        config[name] = clock[name]


def _clock(weights: Mapping[str, Tensor], file: Any) -> dict[str, float]:
    """Unit and slowest rate of trained kernels of time; nothing where there are none."""
    found = next((value for name, value in weights.items() if name.endswith(".clock")), None)
    if found is not None and (found.shape != (2,) or not bool(((found > 0) & found.isfinite()).all())):
        raise CheckpointError(f"{file}: its unit of time can't be read; take another copy or train again")
    return {} if found is None else dict(zip(CLOCK, found.tolist(), strict=True))


def _refuse_differences(config: Any, stored: Mapping[str, Any], clock: Mapping[str, float], file: Any) -> None:
    """Refuse options that trained weights don't fit, all of them in one message."""
    model = config["model"]
    if stored["model"] != model:
        raise OptionError(
            f"init_from: {file} was trained with model {stored['model']}, this run has {model}; give "
            f"--model={stored['model']}, or train anew without init_from"
        )
    defaults = {**load_properties("model", model), "MAX_ITEM_LIST_LENGTH": None}
    names = sorted({*defaults} - FREE_OPTIONS - {*CLOCK})
    before: dict[str, Any] = {name: stored["options"].get(name, defaults[name]) for name in names}
    before.update(clock)
    now = {name: plain_option(config[name]) for name in before}
    for name in clock:
        now[name] = clock[name] if now[name] is None else now[name]
    differing = [name for name in before if now[name] != before[name]]
    if differing:
        theirs, ours = (", ".join(f"{name} {values[name]!r}" for name in differing) for values in (before, now))
        remedy = " ".join(f"--{name}={_as_text(before[name])}" for name in differing)
        raise OptionError(
            f"init_from: {file} was trained with {theirs}, this run has {ours}; give {remedy}, or train anew without "
            "init_from"
        )


def _as_text(value: Any) -> str:
    """A value as it is given on the command line."""
    text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return text if text.isprintable() else repr(text)


@dataclass(frozen=True)
class ItemRows:
    """Where rows of items come from: ``V`` items of the data, ``U`` of the trained model, padding included."""

    known: Tensor
    """Int64[V]: each item's row of the trained model; -1 for new ones."""
    met: Tensor
    """sparse Float[V, U]: how often known items stand near each new one."""
    n_before: int
    """``U``."""

    @classmethod
    def between(cls, names: list[str], dataset: Any) -> ItemRows:
        """Rows for the items of a training data set, from those of the trained model with these names."""
        tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
        known = torch.from_numpy(pd.Index(names).get_indexer(pd.Index(tokens))).long()
        users, items = dataset.shown_events(True, dataset.uid_field, dataset.iid_field)
        return cls(known, _meetings(users, items, known, len(names)), len(names))

    @property
    def meetings(self) -> Tensor:
        """Number of known items near each item, Float[V], 0 for known ones."""
        return self.met.sum(1).to_dense()

    def of(self, table: Tensor) -> Tensor:
        """Rows of all items, Float[V, ...], from a table of the trained model, Float[U or more, ...]."""
        before = table[: self.n_before].flatten(1) if table.dim() > 1 else table[: self.n_before].unsqueeze(1)
        rows = before[1:].mean(0, dtype=torch.float64).to(before.dtype).repeat(len(self.known), 1)
        kept, count = self.known >= 0, self.meetings.unsqueeze(1)
        rows[kept] = before[self.known[kept]]
        near = count.squeeze(1) > 0
        rows[near] = (torch.sparse.mm(self.met.to(before.dtype), before) / count.clamp(min=1))[near].to(before.dtype)
        return rows.view(len(rows), *table.shape[1:])


def _meetings(users: Tensor, items: Tensor, known: Tensor, n_before: int) -> Tensor:
    """``ItemRows.met`` of events, Int64[n] each, sorted by user, then time."""
    pairs = [torch.zeros(2, 0, dtype=torch.int64)]
    for distance in range(1, NEAR + 1):
        earlier, later = items[:-distance], items[distance:]
        same = users[:-distance] == users[distance:]
        for item, neighbour in ((earlier, later), (later, earlier)):
            meet = same & (known[item] < 0) & (known[neighbour] > 0)
            pairs.append(torch.stack([item[meet], known[neighbour[meet]]]))
    index = torch.cat(pairs, 1)
    ones, size = torch.ones(index.size(1)), (len(known), n_before)
    return torch.sparse_coo_tensor(index, ones, size, check_invariants=False).coalesce()


def fill(model: nn.Module, dataset: Any, file: str | os.PathLike[str], logger: Any) -> None:
    """Give a model, made for a training data set, the weights of a trained one by the rules above, and log them.

    ``file`` is one that :func:`prepare` has accepted; ``CheckpointError`` where its weights don't fit the model.
    """
    trained, _, data = restore(file)
    rows = ItemRows.between(data.items, dataset)
    load_weights(model, {"state_dict": carried_over(trained, model, rows)}, f"init_from: {os.fspath(file)}")
    logger.info(_summary(file, data, dataset, rows, _clock(trained.state_dict(), file)))


@torch.no_grad()
def carried_over(trained: nn.Module, model: nn.Module, items: ItemRows) -> dict[str, Tensor]:
    """Weights of a trained model as another one for other data takes them, as a ``state_dict``."""
    before, state = dict(trained.named_modules()), trained.state_dict()
    for name, module in before.items():
        if isinstance(module, COUNTERS):
            del state[f"{name}.step"]
    for name, module in model.named_modules():
        for part, value in _own_rows(module, before.get(name), items).items():
            state[f"{name}.{part}"] = value
    return state


def _own_rows(module: nn.Module, before: Any, items: ItemRows) -> dict[str, Tensor]:
    """Those weights and buffers of a module that are not copied as they are."""
    if isinstance(module, COUNTERS):
        return {"step": module.step}
    if isinstance(module, TimeIntervals):
        return {"smallest_gaps": module.smallest_gaps}
    if isinstance(module, ItemEmbedding):
        return {"weight": torch.cat([items.of(before.weight), before.weight[items.n_before :]])}
    if isinstance(module, ItemHead) and module.bias is not None:
        return {"bias": items.of(before.bias)}
    if isinstance(module, Trend):
        knots = before.vectors_of(module.row_days.cpu())
        return {"items": items.of(before.items), "knots.weight": knots, "trained_range": module.trained_range}
    if isinstance(module, DayKernel | SmoothDayKernel):
        vectors = before.vectors_of(module.row_days.cpu())
        return {"embedding.weight": vectors, "trained_days": module.trained_days}
    return {}


def _summary(
    file: str | os.PathLike[str], data: CheckpointData, dataset: Any, rows: ItemRows, clock: Mapping[str, float]
) -> str:
    kept = int((rows.known > 0).sum())
    new = int((rows.known < 0).sum())
    near = int((rows.meetings > 0).sum())
    parts = [
        f"items: {kept:,} kept, {new:,} new ({near:,} from the items they are met with, {new - near:,} from the mean "
        f"of all), {rows.n_before - 1 - kept:,} dropped"
    ]
    if len(data.users) == data.n_users:
        parts.append(f"users: {_counts({*data.users[1:]}, {*map(str, dataset.field2id_token[dataset.uid_field][1:])})}")
    else:
        parts.append("users: not named in the file")
    shown = dataset.trained_days(True)
    days = (range(first, last + 1) for first, last in (data.days, (int(shown[0]), int(shown[-1]))))
    parts.append(f"days from the first to the last: {_counts(*map(set, days))}")
    if clock:
        unit, freq = clock["time_unit"], clock["kernel_freq"]
        parts.append(f"kernels of time keep their unit, {unit:,.6g} s, and their slowest rate, 1 in {freq:,.6g} units")
    return f"init_from: {os.fspath(file)}; {'; '.join(parts)}; the optimizer starts anew"


def _counts(before: set[Any], now: set[Any]) -> str:
    return f"{len(before & now):,} kept, {len(now - before):,} new, {len(before - now):,} dropped"
