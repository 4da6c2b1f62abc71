"""MEANTIME: mixture of attention mechanisms with multi-temporal embeddings.

Reference: Cho, Park, Yoo, "MEANTIME", RecSys 2020, arXiv 2008.08273.
"""

from __future__ import annotations

from recbole_adrrec.models.mix import MixAttentionRecommender


class MEANTIME(MixAttentionRecommender):
    """Mix-attention over kernels of position and time, trained to fill masked events.

    Arguments as for ``SequenceRecommender``; options in ``properties/model/MEANTIME.yaml``.
    """
