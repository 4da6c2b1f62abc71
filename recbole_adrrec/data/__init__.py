"""Data: exact times, and training rows that are built batch by batch."""

from recbole_adrrec.data.dataset import SequenceDataset
from recbole_adrrec.data.rows import Events, PrefixRows, WindowRows

__all__ = ["Events", "PrefixRows", "SequenceDataset", "WindowRows"]
