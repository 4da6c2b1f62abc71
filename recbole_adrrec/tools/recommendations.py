"""Answers of a recommender."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Recommendations:
    """Items for users, best first.

    Attributes
    ----------
    users : list of str
        The users, in the order given.
    at : Int64[n_users]
        The moment of each answer, in seconds since 1970 (UTC).
    items : object array [n_users, top]
        Names of items; None where a user has fewer left.
    scores : Float32[n_users, top]
        Their scores; NaN where there is no item. Scores of different models don't compare.
    notes : tuple of str
        Remarks on these answers; also logged as warnings.
    """

    users: list[str]
    at: NDArray[np.int64]
    items: NDArray[np.object_]
    scores: NDArray[np.float32]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.users)

    def __iter__(self) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        """Each user with items and scores."""
        for user, items, scores in zip(self.users, self.items, self.scores, strict=True):
            yield user, [(item, float(score)) for item, score in zip(items, scores, strict=True) if item is not None]

    def frame(self) -> Any:
        """As a pandas ``DataFrame``: user, rank (from 1), item, score; a row for each item."""
        rows, ranks = np.nonzero(self.items != None)  # noqa: E711 - element by element
        return pd.DataFrame(
            {
                "user": np.asarray(self.users, dtype=object)[rows],
                "rank": ranks + 1,
                "item": self.items[rows, ranks],
                "score": self.scores[rows, ranks],
            }
        )


def best_items(scores: Tensor, top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Best items of Float32[n, items] and their scores, [n, top]; NaN where the score is -inf, equal ones by item."""
    value, item = (part.cpu().numpy() for part in scores.topk(top))
    order = np.lexsort((item, -value))
    value = np.take_along_axis(value, order, 1)
    value[np.isneginf(value)] = np.nan
    return np.take_along_axis(item, order, 1), value
