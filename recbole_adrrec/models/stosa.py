"""STOSA: items and states are Gaussians, near ones attend to each other and are recommended.

Reference: Fan et al., "Sequential Recommendation via Stochastic Self-Attention", WWW 2022, arXiv 2201.06035. Details
follow its public code; ``docs/models.md`` says where ours departs from it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from recbole_adrrec.layers.embeddings import GaussianItemEmbedding
from recbole_adrrec.layers.gaussian import GaussianOutput, PerPart, WassersteinAttention
from recbole_adrrec.layers.heads import GaussianItemHead
from recbole_adrrec.layers.refinement import Refinement
from recbole_adrrec.layers.transformer import FeedForward, TransformerEncoder, TransformerLayer
from recbole_adrrec.models.base import DataStats, ModelComponents, NoKernels, Refine, SequenceRecommender, unrefined
from recbole_adrrec.options.schema import STOSAOptions


def stosa_layer(options: STOSAOptions, refinement: Refinement | None = None) -> TransformerLayer:
    """One layer of STOSA, its weights refined or not.

    Means and covariances share the norm behind the attention, as in the public code; each has its own feed-forward.
    """
    size, inner_size, eps = options.hidden_size, options.inner_size, options.layer_norm_eps
    return TransformerLayer(
        WassersteinAttention(size, options.heads, options.attn_dropout_prob, refinement),
        PerPart(lambda: FeedForward(size, inner_size, dropout=0.0, activation="elu")),
        nn.LayerNorm(size, eps),
        PerPart(lambda: nn.LayerNorm(size, eps)),
        options.hidden_dropout_prob,
        order="post",
        finish=GaussianOutput(options.published_mean_bypass),
    )


def stosa_components(options: STOSAOptions, stats: DataStats, refine: Refine = unrefined) -> ModelComponents:
    """Components of STOSA."""
    size, dropout, eps = options.hidden_size, options.hidden_dropout_prob, options.layer_norm_eps
    numbers = range(1, options.n_layers + 1)
    return ModelComponents(
        item_embedding=GaussianItemEmbedding(stats.n_rows, size, dropout, stats.max_seq_length, eps),
        kernels=NoKernels(),
        encoder=TransformerEncoder(stosa_layer(options, refine(number, options.heads)) for number in numbers),
        head=GaussianItemHead(stats.n_items),
        knows_time=False,
        pvn_weight=options.pvn_weight,
    )


class STOSA(SequenceRecommender):
    """Causal Wasserstein self-attention over Gaussians, scored by minus the distance.

    Arguments and errors as for ``SequenceRecommender``; options in ``properties/model/STOSA.yaml``.
    """

    options: STOSAOptions
    options_class = STOSAOptions

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.set_components(stosa_components(self.options, self.data_stats(dataset)))
