"""The protocols of a study as RecBole's options and loaders: the split, and the items that are ranked.

RecBole 1.2.1 refuses ``repeatable: false`` for sequential models (config/configurator.py:378), and its full ranking of
sequential models masks no item of the history (data/dataloader/general_dataloader.py:288, where ``history_index`` is
``None``). Its ``pop100`` draws anew in every evaluation, from the random state that training has left, so that no two
models see the same negatives; some of the hundred are the same item, and items of the user's history are among them.
Here the loader of RecBole's full ranking says which items are not ranked, and RecBole's trainer and metrics do
the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import Tensor

from recbole_adrrec.errors import DataError
from study.plan import Protocol, RunSpec

NEGATIVES = 100
CANDIDATE_SEED = 2020
"""The seed of the drawn negatives: the same for all models and all seeds of a study."""

BLOCK = 512


def eval_args(spec: RunSpec) -> dict[str, Any]:
    """RecBole's ``eval_args`` for a run."""
    split = {"LS": "valid_and_test"} if spec.protocol.split == "leave_one_out" else {"GT": dict(spec.temporal)}
    return {"split": split, "order": "TO", "group_by": "user", "mode": "full"}


def restricted(protocol: Protocol, config: Any, loader: Any, phase: str) -> Any:
    """RecBole's loader of a phase, ``valid`` or ``test``, with only the protocol's candidates ranked."""
    if protocol.candidates == "full" and protocol.seen == "all":
        return loader
    dataset = loader.dataset
    candidates = draw_negatives(dataset, protocol.seen == "unseen", phase) if protocol.candidates == "pop100" else None
    return CandidateLoader(config, dataset, loader._sampler, candidates)


class CandidateLoader(FullSortEvalDataLoader):
    """RecBole's loader of full ranking, with items that are not ranked; the target itself always is.

    Beside it ``candidates``, Int64[n_rows, n_negatives], are ranked, or without them all items but the row's history.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any, candidates: NDArray[np.int64] | None) -> None:
        self.candidates = None if candidates is None else torch.from_numpy(candidates)
        super().__init__(config, dataset, sampler, shuffle=False)

    def collate_fn(self, index: Any) -> Any:
        """A batch of RecBole's, whose second part says which scores RecBole's trainer sets to minus infinity."""
        interaction, _, positive_u, positive_i = super().collate_fn(index)
        rows = torch.as_tensor(np.asarray(index))
        if self.candidates is None:
            out: Any = history_pairs(self._dataset.inter_feat[rows], self.iid_field)
        else:
            # One item is scored beside the others: a table of booleans is an index like any other.
            barred = torch.ones(len(rows), self._dataset.item_num, dtype=torch.bool)
            barred.scatter_(1, self.candidates[rows], False)
            barred[positive_u, positive_i] = False
            out = barred
        return interaction, out, positive_u, positive_i


def history_pairs(rows: Any, item_field: str) -> tuple[Tensor, Tensor]:
    """The items that each row's user has met before the row's target, but for the target itself.

    The whole history of ``PrefixRows`` counts, not only what ``MAX_ITEM_LIST_LENGTH`` lets a model see. Returns the
    place of the row and the item, Int64[n_pairs] each.
    """
    targets = rows.targets.long()
    first = rows.events.first(targets)
    count = targets - first
    place = torch.repeat_interleave(torch.arange(len(targets)), count)
    event = torch.arange(int(count.sum())) - torch.repeat_interleave(count.cumsum(0) - count - first, count)
    items = rows.events.column(item_field, event)
    other = items != rows.events.column(item_field, targets)[place]
    return place[other], items[other]


def draw_negatives(dataset: Any, unseen: bool, phase: str, count: int = NEGATIVES) -> NDArray[np.int64]:
    """Draw items for each row of a data set of a phase (``valid``, ``test``), Int64[n_rows, count], without repetition.

    Each is as likely as it is popular in the whole data set. ``unseen``: no item that the user meets anywhere in the
    data, as in MEANTIME's public code; else any but the row's target, as RecBole draws for repeatable recommendation.

    Raises
    ------
    DataError
        If a user has met so many items that fewer than ``count`` are left.

    Notes
    -----
    The largest ``count`` of ``log p + Gumbel noise`` are a sample without repetition in which items are drawn one
    after the other with probabilities proportional to ``p``.
    """
    rows, items, users = dataset.inter_feat, dataset.iid_field, dataset.uid_field
    events = rows.events
    everything = torch.arange(len(events))
    item = events.column(items, everything).numpy()
    popularity = np.bincount(item, minlength=dataset.item_num).astype(np.float64)
    with np.errstate(divide="ignore"):
        weight = np.log(popularity)
    weight[0] = -np.inf
    owner = events.column(users, everything).numpy()
    starts = np.searchsorted(owner, np.arange(dataset.user_num))
    ends = np.searchsorted(owner, np.arange(dataset.user_num), side="right")
    generator = np.random.default_rng([CANDIDATE_SEED, ("valid", "test").index(phase)])
    user, target = rows[users].numpy(), rows[items].numpy()
    drawn = np.empty((len(rows), count), dtype=np.int64)
    for begin in range(0, len(rows), BLOCK):
        part = slice(begin, min(begin + BLOCK, len(rows)))
        keys = weight + generator.gumbel(size=(part.stop - begin, dataset.item_num))
        for line, who in enumerate(user[part]):
            if unseen:
                keys[line, item[starts[who] : ends[who]]] = -np.inf
        keys[np.arange(len(keys)), target[part]] = -np.inf
        left = np.isfinite(keys).sum(1)
        if left.min() < count:
            token = dataset.field2id_token[users][user[part][left.argmin()]]
            raise DataError(
                f"protocols: candidates pop100 needs {count} items beside the target, but {left.min()} are left for "
                f"user {token} of {dataset.dataset_name}; choose candidates full"
            )
        drawn[part] = np.argpartition(-keys, count - 1, axis=1)[:, :count]
    return drawn
