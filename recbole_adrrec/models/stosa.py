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
from recbole_adrrec.models.base import Facts, NoKernels, Parts, Refine, SequenceRecommender, unrefined


def stosa_layer(config: Any, refinement: Refinement | None = None) -> TransformerLayer:
    """One layer of STOSA.

    Means and covariances share the norm behind the attention, as in the public code; each has its own feed-forward.

    Parameters
    ----------
    config : recbole.config.Config
        Options; those of ``properties/model/STOSA.yaml`` are read.
    refinement : Refinement, optional
        Of the layer's weights.
    """
    size, inner_size, eps = config["hidden_size"], config["inner_size"], config["layer_norm_eps"]
    return TransformerLayer(
        WassersteinAttention(size, config["n_heads"], config["attn_dropout_prob"], refinement),
        PerPart(lambda: FeedForward(size, inner_size, dropout=0.0, activation="elu")),
        nn.LayerNorm(size, eps),
        PerPart(lambda: nn.LayerNorm(size, eps)),
        config["hidden_dropout_prob"],
        order="post",
        finish=GaussianOutput(config["published_mean_bypass"]),
    )


def stosa_parts(config: Any, facts: Facts, refine: Refine = unrefined) -> Parts:
    """Parts of STOSA; arguments as for every ``PartsBuilder``."""
    numbers = range(1, config["n_layers"] + 1)
    embedding = GaussianItemEmbedding(
        facts.n_rows,
        config["hidden_size"],
        config["hidden_dropout_prob"],
        facts.max_seq_length,
        config["layer_norm_eps"],
    )
    return Parts(
        item_embedding=embedding,
        kernels=NoKernels(),
        encoder=TransformerEncoder(stosa_layer(config, refine(number, config["n_heads"])) for number in numbers),
        head=GaussianItemHead(facts.n_items),
        knows_time=False,
        pvn_weight=config["pvn_weight"],
    )


class STOSA(SequenceRecommender):
    """Causal Wasserstein self-attention over Gaussians, scored by minus the distance.

    Arguments and errors as for ``SequenceRecommender``; options in ``properties/model/STOSA.yaml``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.join(stosa_parts(config, self.facts))
