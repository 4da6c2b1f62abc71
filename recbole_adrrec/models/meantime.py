"""MEANTIME: mixture of attention mechanisms with multi-temporal embeddings.

Reference: Cho, Park, Yoo, "MEANTIME", RecSys 2020, arXiv 2008.08273.
"""

from __future__ import annotations

from typing import Any

from recbole_adrrec.models.base import SequenceRecommender
from recbole_adrrec.models.block import mix_components
from recbole_adrrec.options.schema import MEANTIMEOptions


class MEANTIME(SequenceRecommender):
    """Mix-attention over kernels of position and time, trained to fill masked events.

    Arguments as for ``SequenceRecommender``; options in ``properties/model/MEANTIME.yaml``.
    """

    options: MEANTIMEOptions
    options_class = MEANTIMEOptions

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.set_components(mix_components(self.options, self.data_stats(dataset)))
