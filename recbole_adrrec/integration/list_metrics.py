"""Metrics of recommended lists that RecBole lacks, by which its own ``metrics`` option finds them.

RecBole has ``ItemCoverage``, ``GiniIndex``, ``ShannonEntropy``, ``AveragePopularity`` and ``TailPercentage``; here are
``Novelty`` and ``IntraListDiversity``. Both know the users who met an item in the training data (its targets, which
RecBole counts too), nothing else of it, so that they mean the same for every model and data set.

Letters: ``n`` lists, ``K`` items of a list, ``V`` items (padding included), ``U`` users.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from recbole.evaluator.base_metric import AbstractMetric
from recbole.utils import EvaluatorType
from scipy.sparse import csr_matrix

BLOCK_LISTS = 128
"""Lists whose items are compared at a time; their table of cosines has at most ``(128 K)^2`` entries."""


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
