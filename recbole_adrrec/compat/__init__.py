"""The one place that mends RecBole for today's libraries.

Each mend names the fault, the versions and RecBole's line (of 1.2.1), does nothing where it isn't needed, and changes
RecBole alone. :func:`apply` has to come before anything else of RecBole is imported.
"""

from __future__ import annotations

from recbole_adrrec.compat import checkpoints, frames, numpy_names, pickles, tuning
from recbole_adrrec.compat.checkpoints import allow
from recbole_adrrec.compat.patching import Mend, replace_everywhere
from recbole_adrrec.compat.pickles import allow_pickled, count_as_dataset_argument

__all__ = [
    "MENDS",
    "Mend",
    "allow",
    "allow_pickled",
    "apply",
    "check",
    "count_as_dataset_argument",
    "replace_everywhere",
]

MENDS: tuple[Mend, ...] = ()


def apply() -> None:
    """Mend RecBole. Harmless when repeated."""
    numpy_names.add_names()
    tuning.import_quick_start()
    tuning.mend_objective()
    frames.mend_fill_nan()
    frames.mend_sequence_columns()
    frames.mend_lengths()
    checkpoints.mend_trainer()
    checkpoints.mend_load_data_and_model()
    pickles.mend_saved_data()


def check() -> None:
    """Find what RecBole lacks."""
