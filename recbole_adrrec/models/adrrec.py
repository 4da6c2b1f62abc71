"""ADRRec: absolute, relative and distance kernels with layer-wise noise injection.

Reference: "ADRRec", arXiv 2409.05022. The paper gives no code and leaves the equations of
the noise, of relative distance and most defaults open: ``docs/interpretation.md`` states ours.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_adrrec.layers.layout import Layout
from recbole_adrrec.layers.noise import Encode, LayerwiseNoise, Logits, divergence, gradient_ratio
from recbole_adrrec.losses import BLOCK_SCORES, BLOCK_SCORES_ELSEWHERE
from recbole_adrrec.models.base import SequenceRecommender, Targets, build_trend
from recbole_adrrec.models.block import mix_components
from recbole_adrrec.options.schema import ADRRecOptions

NEVER = -1e9
"""Logit of a candidate that is not compared."""


class ADRRec(SequenceRecommender):
    """Mix-attention over kernels of position, time and distance, trained with noise in its layers.

    Arguments and errors as for ``SequenceRecommender``; options in ``properties/model/ADRRec.yaml``.
    """

    options: ADRRecOptions
    options_class = ADRRecOptions
    _ratio_is_due = True
    """True while the next training batch is the first of its epoch."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        options, stats = self.options, self.data_stats(dataset)
        trend = build_trend(options, stats)
        self.set_components(mix_components(options, stats), trend)
        self.noise = LayerwiseNoise(
            n_layers=options.n_layers,
            sigma=options.lni_sigma,
            noise=options.lni_noise,
            layers=options.lni_layers,
            layer_weights=options.lni_layer_weights,
            stop_gradient=options.lni_stop_gradient,
            seed=config["seed"],
        )

    def train(self, mode: bool = True) -> ADRRec:
        """Switch training on or off; each time it is switched on, an epoch begins."""
        self._ratio_is_due = mode
        return super().train(mode)

    def _training_loss(self, encode: Encode, layout: Layout, targets: Targets) -> Tensor:
        form, weight = self.options.lni_form, self.options.lni_weight
        if not (self.training and weight > 0):
            return super()._training_loss(encode, layout, targets)
        valid = None if layout.packed else layout.valid
        if form == "noisy":
            states, _ = self.noise.inject(encode, valid)
            return self._loss_of(states[-1], targets)
        passes = self.noise(encode, valid)
        loss = self._loss_of(passes.clean[-1], targets)
        if form == "states":
            penalty = self.noise.penalty(passes, valid)
        else:
            penalty = self._divergence(passes.clean[-1], passes.noisy[-1], targets) * targets.share
        penalty = weight * penalty
        self._log_ratio(penalty, loss)
        return loss + penalty

    def _divergence(self, clean: Tensor, noisy: Tensor, targets: Targets) -> Tensor:
        """Divergence of the predictions of the two passes, Float[]."""
        logits, width = self._candidate_logits(clean, targets)
        others, _ = self._candidate_logits(noisy, targets)
        rows = max(1, BLOCK_SCORES.get(clean.device.type, BLOCK_SCORES_ELSEWHERE) // width)
        return divergence(logits, others, len(targets.items), rows, self.noise.stop_gradient)

    def _candidate_logits(self, states: Tensor, targets: Targets) -> tuple[Logits, int]:
        """Logits of the items that the loss compares, for all states; and how many items there are."""
        hidden, table, items = states[targets.places], self.item_embedding.table, targets.items
        shared, query_time = targets.shared, targets.query_time
        if shared is not None:
            rows = torch.arange(len(items), device=items.device)
            both = torch.cat([items, shared])
            product, candidates, bias = self.head.as_product(hidden, table, both, query_time=query_time)

            def of_shared(part: slice) -> Tensor:
                negative = F.linear(
                    product[part], candidates[len(items) :], None if bias is None else bias[len(items) :]
                )
                negative = negative.masked_fill(items[part].unsqueeze(1).eq(shared), NEVER)
                own = rows[part]
                positive = (product[part] * candidates[own]).sum(-1) + (0.0 if bias is None else bias[own])
                return torch.cat([positive.unsqueeze(1), negative], 1)

            return of_shared, len(shared) + 1
        if targets.negatives is None:
            product, candidates, bias = self.head.as_product(hidden, table, query_time=query_time)
            return lambda part: F.linear(product[part], candidates, bias), len(candidates)
        compared = items.unsqueeze(1), targets.negatives
        scores = torch.cat(self.head.score_items(hidden, table, *compared, query_time=query_time), 1)
        return lambda part: scores[part], scores.size(1)

    def _log_ratio(self, penalty: Tensor, loss: Tensor) -> None:
        """Say once an epoch, at level debug, how the gradients of the penalty and the loss compare."""
        due, self._ratio_is_due = self._ratio_is_due, False
        # A compiled encoder can be differentiated but once.
        if due and not self.compiled and self.logger.isEnabledFor(logging.DEBUG):
            ratio = gradient_ratio(penalty, loss, self.encoder.parameters())
            self.logger.debug(
                f"lni_form {self.options.lni_form}: gradient on the encoder, noise's over loss's norm: "
                f"{100 * ratio:.3g} %"
            )
