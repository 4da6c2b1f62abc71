"""ADRRec: absolute, relative and distance kernels with layer-wise noise injection.

Reference: "ADRRec", arXiv 2409.05022. The paper gives no code and leaves the equations of
the noise, of relative distance and most defaults open: ``docs/interpretation.md`` states ours.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recbole_adrrec.layers.layout import Layout
from recbole_adrrec.layers.noise import Encode, LayerwiseNoise
from recbole_adrrec.models.block import Block
from recbole_adrrec.models.mix import MixAttentionRecommender


class ADRRec(MixAttentionRecommender):
    """Mix-attention over kernels of position, time and distance, with a noise penalty.

    Parameters
    ----------
    config : recbole.config.Config
        RecBole's options and those of ``properties/model/ADRRec.yaml``.
    dataset : recbole.data.dataset.SequentialDataset
        Training data; see ``MixAttentionRecommender``.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset, Block.of(config), config["mixture"], config["max_distance"], with_trend=True)
        self.lni_weight = config["lni_weight"]
        if self.lni_weight < 0:
            raise ValueError(f"lni_weight: {self.lni_weight}; must be at least 0")
        self.noise = LayerwiseNoise(
            n_layers=config["n_layers"],
            sigma=config["lni_sigma"],
            noise=config["lni_noise"],
            layers=config["lni_layers"],
            layer_weights=config["lni_layer_weights"],
            stop_gradient=config["lni_stop_gradient"],
            seed=config["seed"],
        )

    def _encode(self, encode: Encode, layout: Layout) -> tuple[list[Tensor], Tensor | float]:
        if not (self.training and self.lni_weight > 0):
            return super()._encode(encode, layout)
        states, penalty = self.noise(encode, layout.pack(layout.valid))
        return states, self.lni_weight * penalty
