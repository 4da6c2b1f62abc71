"""Full ranking without all scores at once: ``eval_item_chunk``.

RecBole scores every item for every row of an evaluation batch, ``[B, V]``, and copies that several times: at a million
items, 4096 rows would take 16 GB. Here tiles of the scores come one after another, and of each only what the metrics
need is kept: the best ``k`` items, and how many items score above each item that is to be found.

Letters: ``B`` rows of a batch, ``V`` items, ``C`` items of a chunk, ``P`` items to find in the batch, ``k`` the longest
list of recommendations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """Scores, Float[rows, items], whose first row is ``row`` and whose first item is ``item``; masked ones ``-inf``."""

    row: int
    item: int
    scores: Tensor


class TiledScores:
    """Scores of a batch as tiles that can be asked for again.

    Parameters
    ----------
    n_rows : int
        ``B``.
    tiles : callable
        Gives the tiles, which together cover ``[B, V]`` once.
    """

    def __init__(self, n_rows: int, tiles: Callable[[], Iterator[Tile]]) -> None:
        self.n_rows = n_rows
        self.tiles = tiles

    def best(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Best items of each row, best first, Int64[B, k], and how many items weren't masked, Int64[B]."""
        values = torch.full((self.n_rows, count), -torch.inf, device=device)
        items = torch.zeros(self.n_rows, count, dtype=torch.int64, device=device)
        known = torch.zeros(self.n_rows, dtype=torch.int64, device=device)
        for row, item, scores in self.tiles():
            rows = slice(row, row + len(scores))
            found, place = scores.topk(min(count, scores.size(1)))
            together = torch.cat([values[rows].to(found.dtype), found], 1)
            values = values.to(found.dtype)
            values[rows], kept = together.topk(count)
            items[rows] = torch.cat([items[rows], place + item], 1).gather(1, kept)
            known[rows] += (scores > -torch.inf).sum(1)
        return items, known

    def ranks(self, at: Tensor, items: Tensor) -> Tensor:
        """Rank of items among all of their row, from 1, Float[P]; items of one score share the mean of their ranks.

        Parameters
        ----------
        at, items : Int64[P]
            Rows and items.
        """
        own: Tensor | None = None
        for row, item, scores in self.tiles():
            own = scores.new_zeros(len(at)) if own is None else own
            inside = self._inside(at, items, row, item, scores)
            own[inside] = scores[at[inside] - row, items[inside] - item]
        assert own is not None
        above, equal = torch.zeros_like(at), torch.zeros_like(at)
        for row, _, scores in self.tiles():
            asked = (at >= row) & (at < row + len(scores))
            theirs, mine = scores[at[asked] - row], own[asked].unsqueeze(1)
            above[asked] += (theirs > mine).sum(1)
            equal[asked] += (theirs == mine).sum(1)
        return above + (equal + 1) / 2

    @staticmethod
    def _inside(at: Tensor, items: Tensor, row: int, item: int, scores: Tensor) -> Tensor:
        height, width = scores.shape
        return (at >= row) & (at < row + height) & (items >= item) & (items < item + width)


def score_in_tiles(trainer: Any, original: Callable[..., Any], batch: Any, chunk: int) -> tuple[Any, ...]:
    """What ``Trainer._full_sort_batch_eval`` gives, with :class:`TiledScores` in place of the scores.

    Models with ``item_scores`` (ours) are asked for ``chunk`` items at a time; others can only score all items, and
    are given so few rows at a time that as many scores come of it.

    Parameters
    ----------
    trainer : recbole.trainer.Trainer
        Whose model is evaluated.
    original : callable
        RecBole's method, which scores and masks a batch.
    batch : tuple
        Interaction, masked items (rows and items) or None, rows and items to be found.
    chunk : int
        ``eval_item_chunk``.
    """
    interaction, history, positive_u, positive_i = batch
    n_rows, n_items = len(interaction), trainer.tot_item_num

    def masked(rows: slice, low: int, high: int) -> tuple[Tensor, Tensor] | None:
        if history is None:
            return None
        at, items = (torch.as_tensor(part, device=trainer.device) for part in history)
        inside = (at >= rows.start) & (at < rows.stop) & (items >= low) & (items < high)
        return at[inside] - rows.start, items[inside] - low

    def by_items() -> Iterator[Tile]:
        for first, scores in trainer.model.item_scores(interaction.to(trainer.device), chunk):
            if first == 0:
                scores[:, 0] = -torch.inf
            hidden = masked(slice(0, n_rows), first, first + scores.size(1))
            if hidden is not None:
                scores[hidden] = -torch.inf
            yield Tile(0, first, scores)

    def by_rows() -> Iterator[Tile]:
        step = max(1, n_rows * chunk // n_items)
        for start in range(0, n_rows, step):
            rows = slice(start, min(n_rows, start + step))
            part = interaction[rows], masked(rows, 0, n_items), None, None
            yield Tile(start, 0, original(trainer, part)[1])

    tiles = by_items if hasattr(trainer.model, "item_scores") else by_rows
    return interaction, TiledScores(n_rows, tiles), positive_u, positive_i


def collect(collector: Any, scores: TiledScores, positive_u: Tensor, positive_i: Tensor) -> None:
    """Collect of tiles what ``Collector.eval_batch_collect`` does of whole scores (evaluator/collector.py:124)."""
    device = collector.device
    at, items = positive_u.to(device), positive_i.to(device)
    asked = torch.zeros(scores.n_rows, dtype=torch.int32, device=device)
    asked.index_add_(0, at, torch.ones_like(at, dtype=torch.int32))
    need = collector.register.need
    if need("rec.items") or need("rec.topk") or need("rec.meanrank"):
        best, known = scores.best(max(collector.topk), device)
    if need("rec.items"):
        collector.data_struct.update_tensor("rec.items", best)
    if need("rec.topk"):
        found = torch.zeros_like(best, dtype=torch.int32)
        found.index_add_(0, at, (best[at] == items.unsqueeze(1)).int())
        collector.data_struct.update_tensor("rec.topk", torch.cat([found, asked.unsqueeze(1)], 1))
    if need("rec.meanrank"):
        ranks = scores.ranks(at, items)
        total = torch.zeros(scores.n_rows, device=device).index_add_(0, at, ranks.float())
        columns = (total, known, asked)
        collector.data_struct.update_tensor("rec.meanrank", torch.stack([part.float() for part in columns], 1))
