"""Full ranking by blocks of rows, without all scores at once, and metrics of recommended lists that RecBole lacks.

RecBole scores every item for every row of an evaluation batch, ``[B, V]``, and copies that several times: at a million
items, 4096 rows would take 16 GB; at twelve thousand, counting the one target of each row in such a table takes longer
than to score it. Here blocks of rows are scored one after another, and of each only what the metrics need is kept: the
best ``k`` items, and how many items score above each target.

RecBole has ``ItemCoverage``, ``GiniIndex``, ``ShannonEntropy``, ``AveragePopularity`` and ``TailPercentage``; here are
``Novelty`` and ``IntraListDiversity``, which its own ``metrics`` option finds. Both know the users who met an item in
the training data (its targets, which RecBole counts too), nothing else of it, so that they mean the same for every
model and data set.

Letters: ``B`` rows of a batch, ``V`` items, ``b`` rows of a block, ``P`` targets in the batch, ``k`` the longest list
of recommendations; ``n`` lists of ``K`` items, ``U`` users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.evaluator.base_metric import AbstractMetric
from recbole.evaluator.collector import Collector
from recbole.utils import EvaluatorType
from scipy.sparse import csr_matrix
from torch import Tensor

BLOCK_SCORES = {"cpu": 1 << 22}
"""Most scores at a time of several rows, by kind of device: on a CPU, memory that is used again for the next block."""

BLOCK_SCORES_ELSEWHERE = 1 << 26

BLOCK_LISTS = 128
"""Lists whose items are compared at a time; their table of cosines has at most ``(128 K)^2`` entries."""


class RowScores:
    """Scores of a batch of ``n_rows`` by blocks of rows, which can be iterated once more.

    ``blocks`` gives the first row of each block and its scores, Float[b, V], in order; masked ones ``-inf``.
    """

    def __init__(self, n_rows: int, blocks: Callable[[], Iterator[tuple[int, Tensor]]]) -> None:
        self.n_rows = n_rows
        self.blocks = blocks

    def best(self, count: int) -> Tensor:
        """Best items of each row, best first, Int64[B, k]."""
        return torch.cat([scores.topk(count).indices for _, scores in self.blocks()])

    def known(self) -> Tensor:
        """Number of items of each row that are not masked, Int64[B]."""
        return torch.cat([(scores > -torch.inf).sum(1) for _, scores in self.blocks()])

    def ranks(self, at: Tensor, items: Tensor) -> Tensor:
        """Rank of items among all of their row, from 1, Float[P]; items of one score share the mean of their ranks.

        Rows ``at`` and items are Int64[P].
        """
        ranks = torch.zeros(len(at), device=at.device)
        for first, scores in self.blocks():
            inside = (at >= first) & (at < first + len(scores))
            theirs = scores[at[inside] - first]
            mine = theirs.gather(1, items[inside].unsqueeze(1))
            ranks[inside] = (theirs > mine).sum(1) + ((theirs == mine).sum(1) + 1) / 2
        return ranks


def score_by_rows(trainer: Any, score: Callable[..., Any], batch: Any) -> tuple[Any, ...]:
    """The result of ``trainer._full_sort_batch_eval``, with :class:`RowScores` in place of the scores.

    ``score`` is RecBole's method, which scores and masks a batch: interaction, masked items (rows and items, or a table
    of booleans) or None, rows and items of the targets.
    """
    interaction, history, positive_u, positive_i = batch
    n_rows = len(interaction)
    limit = BLOCK_SCORES.get(torch.device(trainer.device).type, BLOCK_SCORES_ELSEWHERE)
    step = max(1, limit // trainer.tot_item_num)

    def masked(first: int, last: int) -> Any:
        if history is None or isinstance(history, Tensor):
            return None if history is None else history[first:last]
        at, items = (torch.as_tensor(part) for part in history)
        inside = (at >= first) & (at < last)
        return at[inside] - first, items[inside]

    def blocks() -> Iterator[tuple[int, Tensor]]:
        for first in range(0, n_rows, step):
            last = min(n_rows, first + step)
            part = interaction[slice(first, last)], masked(first, last), None, None
            yield first, score(part)[1]

    return interaction, RowScores(n_rows, blocks), positive_u, positive_i


class RowCollector(Collector):
    """RecBole's collector, which takes :class:`RowScores` too (evaluator/collector.py:124), and knows items' users."""

    def data_collect(self, train_data: Any) -> None:
        """Collect of the training data what the metrics need."""
        super().data_collect(train_data)
        if self.register.need("data.item_users"):
            self.data_struct.set("data.item_users", users_of_items(train_data.dataset))

    def eval_batch_collect(self, scores_tensor: Any, interaction: Any, positive_u: Tensor, positive_i: Tensor) -> None:
        """Collect of a batch what the metrics need."""
        if not isinstance(scores_tensor, RowScores):
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
            return
        scores, need, collected = scores_tensor, self.register.need, self.data_struct
        at, items = positive_u.to(self.device), positive_i.to(self.device)
        targets = torch.zeros(scores.n_rows, dtype=torch.int32, device=self.device)
        targets.index_add_(0, at, torch.ones_like(at, dtype=torch.int32))
        if need("rec.items") or need("rec.topk"):
            best = scores.best(max(self.topk))
        if need("rec.items"):
            collected.update_tensor("rec.items", best)
        if need("rec.topk"):
            found = torch.zeros_like(best, dtype=torch.int32)
            found.index_add_(0, at, (best[at] == items.unsqueeze(1)).int())
            collected.update_tensor("rec.topk", torch.cat([found, targets.unsqueeze(1)], 1))
        if need("rec.meanrank"):
            ranks = scores.ranks(at, items)
            total = torch.zeros(scores.n_rows, device=self.device).index_add_(0, at, ranks)
            columns = (total, scores.known(), targets)
            collected.update_tensor("rec.meanrank", torch.stack([part.float() for part in columns], 1))


def users_of_items(dataset: Any) -> csr_matrix:
    """Users who met each item in the rows of a training data set, 1 or 0, CSR [V, U]."""
    rows = dataset.inter_feat
    items, users = (np.asarray(rows[field]) for field in (dataset.iid_field, dataset.uid_field))
    size = dataset.item_num, dataset.user_num
    met = csr_matrix((np.ones(len(items)), (items, users)), shape=size)
    met.data[:] = 1.0
    return met


class ListMetric(AbstractMetric):
    """Mean over lists of a value that a list's items have together."""

    metric_type = EvaluatorType.RANKING
    metric_need = ("rec.items", "data.item_users")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.topk = config["topk"]

    def used_info(self, collected: Any) -> tuple[NDArray[np.int64], csr_matrix]:
        """Lists, Int64[n, K], best first, and the users of each item."""
        return collected.get("rec.items").numpy(), collected.get("data.item_users")

    def metric_info(self, lists: NDArray[np.int64], item_users: csr_matrix) -> NDArray[np.float64]:
        """Value of the first ``k`` items of each list, Float64[n, K], for ``k`` from 1 to ``K``."""
        raise NotImplementedError

    def calculate_metric(self, collected: Any) -> dict[str, float]:
        """Means over lists, by names such as ``novelty@10``."""
        means = self.metric_info(*self.used_info(collected)).mean(0)
        name = type(self).__name__.lower()
        return {f"{name}@{k}": round(float(means[k - 1]), self.decimal_place) for k in self.topk}


class Novelty(ListMetric):
    """Mean self-information of the items, in bits: ``-log2`` of the share of users who met them.

    After Zhou et al., PNAS 2010 (doi:10.1073/pnas.1000488107). An item that nobody met counts as if one user had.
    """

    def metric_info(self, lists: NDArray[np.int64], item_users: csr_matrix) -> NDArray[np.float64]:
        """See ``ListMetric.metric_info``."""
        users = np.diff(item_users.indptr)
        active = len(np.unique(item_users.indices))
        information = np.log2(active / np.maximum(users, 1))
        return np.asarray(information[lists].cumsum(1) / np.arange(1, lists.shape[1] + 1))


class IntraListDiversity(ListMetric):
    """Mean distance between the items of a list, ``1 - cos`` of their users; 0 for a list of one.

    After Ziegler et al., WWW 2005 (doi:10.1145/1060745.1060754), with the cosine of item-based filtering in place of
    a taxonomy, which most data sets lack: 1 where no user met both items.
    """

    def metric_info(self, lists: NDArray[np.int64], item_users: csr_matrix) -> NDArray[np.float64]:
        """See ``ListMetric.metric_info``."""
        norm = np.sqrt(np.maximum(np.diff(item_users.indptr), 1))
        unit = csr_matrix(item_users.multiply(1 / norm[:, None]))
        found = np.zeros(lists.shape)
        size = np.arange(2, lists.shape[1] + 1)
        for first in range(0, len(lists), BLOCK_LISTS):
            block = lists[first : first + BLOCK_LISTS]
            items, place = np.unique(block, return_inverse=True)
            place = place.reshape(block.shape)
            cosines = (unit[items] @ unit[items].T).toarray()
            distances = np.tril(1 - cosines[place[:, :, None], place[:, None, :]], -1).sum(2)
            found[first : first + BLOCK_LISTS, 1:] = distances.cumsum(1)[:, 1:] / (size * (size - 1) / 2)
        return found
