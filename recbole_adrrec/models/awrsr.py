"""AWRSR: attention weights are refined by attending to them once more.

Reference: "Pay Attention to Attention for Sequential Recommendation", RecSys 2024, arXiv 2410.21048. The paper
publishes no code: ``docs/interpretation.md`` states our forms.
"""

from __future__ import annotations

from typing import Any

from recbole_adrrec.layers.refinement import REFINEMENTS, Refinement
from recbole_adrrec.models.base import Facts, Parts, PartsBuilder, Refine, SequenceRecommender, trend_of
from recbole_adrrec.models.block import Block
from recbole_adrrec.models.mix import mix_parts
from recbole_adrrec.models.sasrec import sasrec_parts
from recbole_adrrec.models.stosa import stosa_parts
from recbole_adrrec.models.tisasrec import tisasrec_parts


def _mix_parts(config: Any, facts: Facts, refine: Refine) -> Parts:
    return mix_parts(config, facts, Block.of(config), config["mixture"], config["max_distance"], refine)


BACKBONES: dict[str, PartsBuilder] = {
    "sasrec": sasrec_parts,
    "stosa": stosa_parts,
    "tisasrec": tisasrec_parts,
    "mix": _mix_parts,
}


class AWRSR(SequenceRecommender):
    """A causal backbone whose attention weights go through a refinement; without one it is the backbone itself.

    Arguments and errors as for ``SequenceRecommender``; options in ``properties/model/AWRSR.yaml``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset, use_query_time=config["use_query_time"])
        self.refinement = config["refinement"]
        if self.refinement not in ("none", *REFINEMENTS):
            raise ValueError(f"refinement: {self.refinement}; must be none or one of {', '.join(REFINEMENTS)}")
        if config["backbone"] not in BACKBONES:
            raise ValueError(f"backbone: {config['backbone']}; must be one of {', '.join(BACKBONES)}")
        layers = config["refinement_layers"]
        if layers is not None and not set(layers) <= set(range(1, config["n_layers"] + 1)):
            raise ValueError(f"refinement_layers: {layers}; must be layer numbers from 1 to {config['n_layers']}")

        def refine(layer: int, n_heads: int) -> Refinement | None:
            if self.refinement == "none" or (layers is not None and layer not in layers):
                return None
            extra = {
                "value": {"value_map": config["refinement_value_map"]},
                "additive": {"start": config["refinement_start"]},
            }.get(self.refinement, {})
            return REFINEMENTS[self.refinement](
                n_heads,
                self.max_seq_length,
                config["refinement_rank"],
                config["refinement_heads"],
                config["refinement_maps"],
                **extra,
            )

        self.join(BACKBONES[config["backbone"]](config, self.facts, refine), trend_of(config, self.facts))
