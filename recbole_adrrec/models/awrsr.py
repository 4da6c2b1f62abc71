"""AWRSR: attention weights are refined by attending to them once more.

Reference: "Pay Attention to Attention for Sequential Recommendation", RecSys 2024, arXiv 2410.21048. The paper
publishes no code: ``docs/interpretation.md`` states our forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recbole_adrrec.layers.refinement import REFINEMENTS, Refinement, RefinementSettings
from recbole_adrrec.models.base import DataStats, ModelComponents, Refine, SequenceRecommender, build_trend
from recbole_adrrec.models.block import mix_components, sasrec_components
from recbole_adrrec.models.stosa import stosa_components
from recbole_adrrec.models.tisasrec import tisasrec_components
from recbole_adrrec.options.schema import AWRSROptions

BACKBONES: dict[str, Callable[[AWRSROptions, DataStats, Refine], ModelComponents]] = {
    "sasrec": sasrec_components,
    "stosa": stosa_components,
    "tisasrec": tisasrec_components,
    "mix": mix_components,
}


class AWRSR(SequenceRecommender):
    """A causal backbone whose attention weights go through a refinement; without one it is the backbone itself.

    Arguments and errors as for ``SequenceRecommender``; options in ``properties/model/AWRSR.yaml``.
    """

    options: AWRSROptions
    options_class = AWRSROptions

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        stats = self.data_stats(dataset)
        components = BACKBONES[self.options.backbone](self.options, stats, self._refinement)
        self.set_components(components, build_trend(self.options, stats))

    def _refinement(self, layer: int, n_heads: int) -> Refinement | None:
        """Refinement of a layer, by its number from 1; None where it is not refined."""
        options = self.options
        kind, layers = options.refinement, options.refinement_layers
        if kind == "none" or (layers is not None and layer not in layers):
            return None
        settings = RefinementSettings(
            n_heads,
            self.max_seq_length,
            options.refinement_rank,
            options.refinement_heads,
            options.refinement_maps,
            options.refinement_value_map,
            options.refinement_start,
        )
        return REFINEMENTS[kind](settings)
