"""Training batches of windows."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction

from recbole_adrrec.errors import OptionError


class WindowTrainDataLoader(TrainDataLoader):
    """RecBole's training loader for rows that hold a target at every position.

    ``train_batch_size`` counts targets, as it does for RecBole's prefixes (one target a row), so that a step sees as
    many of them whichever way rows are built: a batch has ``train_batch_size`` divided by the mean number of targets
    of a window, at least one window.

    Negatives (``train_neg_sample_args``) are drawn for every target by RecBole's sampler:
    ``neg_item_id`` is ``[B, L]`` int64, or ``[B, L, sample_num]`` with more than one of each.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        if config["train_neg_sample_args"].get("dynamic", False):
            raise OptionError(
                "train_neg_sample_args: dynamic negatives need a row for each target; set train_rows: prefix"
            )
        super().__init__(config, dataset, sampler, shuffle=shuffle)

    def _init_batch_size_and_step(self) -> None:
        windows = self._dataset.windows
        targets = self.config["train_batch_size"]
        self.step = max(1, min(len(windows), round(targets * len(windows) / max(1, windows.n_targets))))
        self.set_batch_size(self.step)
        self.logger.info(
            f"Training rows are {len(windows)} windows with {windows.n_targets} targets; train_batch_size: {targets} "
            f"targets are {self.step} windows a step"
        )

    def _neg_sampling(self, inter_feat: Interaction) -> Interaction:
        if self.neg_sample_args["distribution"] == "none":
            return inter_feat
        items = inter_feat[self.iid_field]  # (B, L)
        where = items > 0
        users = inter_feat[self.uid_field][:, None].expand_as(items)[where]
        drawn = self._sampler.sample_by_user_ids(users.numpy(), items[where].numpy(), self.neg_sample_num)
        negatives = torch.zeros(*items.shape, self.neg_sample_num, dtype=torch.int64)
        negatives[where] = drawn.view(self.neg_sample_num, -1).T  # RecBole draws (sample_num, n) in a row
        inter_feat[self.neg_prefix + self.iid_field] = negatives.squeeze(-1) if self.neg_sample_num == 1 else negatives
        return inter_feat
