"""The one place that mends RecBole for today's libraries.

Each mend names the fault, the versions and RecBole's line (of 1.2.1), does nothing where it isn't needed, and changes
RecBole alone. :func:`apply` has to come before anything else of RecBole is imported.
"""

from __future__ import annotations

from recbole_adrrec.integration import (
    anomalies,
    checkpoints,
    downloads,
    frames,
    lookups,
    numpy_names,
    pickles,
    processes,
    surface,
    tuning,
)
from recbole_adrrec.integration.checkpoints import allow, check_data_by
from recbole_adrrec.integration.checkpoints import load as load_checkpoint
from recbole_adrrec.integration.patching import Mend, replace_everywhere
from recbole_adrrec.integration.pickles import allow_pickled, count_as_dataset_argument

__all__ = [
    "MENDS",
    "Mend",
    "allow",
    "allow_pickled",
    "apply",
    "check",
    "check_data_by",
    "count_as_dataset_argument",
    "load_checkpoint",
    "needed",
    "replace_everywhere",
]


def _always() -> bool:
    return True


MENDS: tuple[Mend, ...] = (
    Mend(
        "numpy names",
        "config/configurator.py:630-635",
        "np.float_, np.complex_ and np.unicode_ are gone since numpy 2",
        numpy_names.lacks_names,
        numpy_names.add_names,
    ),
    Mend(
        "ray",
        "quick_start/quick_start.py:20, :223",
        "imports ray, of which 2.6.3 breaks with setuptools 82 and numpy 2 and is not there for Python 3.12; reports "
        "in a form that ray dropped in 2.7",
        _always,
        tuning.import_quick_start,
    ),
    Mend(
        "trials of ray",
        "quick_start/quick_start.py:196",
        "the processes of ray import RecBole without our models and these mends",
        _always,
        tuning.mend_objective,
    ),
    Mend(
        "anomaly detection",
        "model/sequential_recommender/sine.py:25",
        "importing any sequential model makes torch trace every operation of every model: several times the time",
        _always,
        anomalies.mend_anomalies,
    ),
    Mend(
        "missing values",
        "data/dataset/dataset.py:648, :650",
        "chained fillna(inplace=True) does nothing since pandas 3",
        frames.copies_columns,
        frames.mend_fill_nan,
    ),
    Mend(
        "missing sequences",
        "data/dataset/dataset.py:501",
        "chained fillna(inplace=True) does nothing since pandas 3",
        frames.copies_columns,
        frames.mend_sequence_columns,
    ),
    Mend(
        "names that look missing",
        "data/dataset/dataset.py:484",
        "users and items named NA, null or None are lost; a separator too many at the end of rows shifts columns",
        _always,
        frames.mend_reading,
    ),
    Mend(
        "counting tokens",
        "data/dataset/dataset.py:893",
        "one Python object after another: minutes for millions of events",
        _always,
        frames.mend_counting,
    ),
    Mend(
        "lengths of sequences",
        "data/dataset/dataset.py:712, :792, :809, :1217; kg_dataset.py:316; sequential_dataset.py:165",
        "Series.agg(len) counts rows since pandas 3",
        frames.aggregates_whole,
        frames.mend_lengths,
    ),
    Mend(
        "checkpoints",
        "trainer/trainer.py:308, :323, :583, :770, :999",
        "saved in a format that torch 2.6 doesn't load; loading runs code before 2.6; a failed write destroys the last",
        _always,
        checkpoints.mend_trainer,
    ),
    Mend(
        "load_data_and_model",
        "quick_start/quick_start.py:250",
        "as above; and only on the kind of machine that trained",
        _always,
        checkpoints.mend_load_data_and_model,
    ),
    Mend(
        "saved datasets and dataloaders",
        "data/utils.py:61, :99, :122; data/dataset/dataset.py:1886",
        "found files are unpickled, which runs what they say; a failed write destroys the last",
        _always,
        pickles.mend_saved_data,
    ),
    Mend(
        "downloads",
        "data/dataset/dataset.py:230-254, :268",
        "a barrier in a single process; an empty folder is left and then taken for the data set",
        _always,
        downloads.mend_download,
    ),
    Mend(
        "unknown models",
        "utils/utils.py:55",
        "any unknown name ends in No module named 'lightgbm'",
        _always,
        lookups.mend_get_model,
    ),
    Mend(
        "values that can't be evaluated",
        "config/configurator.py:127-147",
        "strings such as 1/0 end the program",
        _always,
        lookups.mend_values,
    ),
    Mend(
        "gradient scaler",
        "trainer/trainer.py:235",
        "a deprecated name, which warns in each epoch since torch 2.4",
        lookups.warns_of_scaler,
        lookups.mend_scaler,
    ),
    Mend(
        "processes without CUDA",
        "config/configurator.py:497-515",
        "NCCL and CUDA are fixed; too few GPUs fail an assert without a message",
        _always,
        processes.mend_device,
    ),
    Mend(
        "data parallel without CUDA",
        "trainer/trainer.py:57-64",
        "device_ids are given for a model on the CPU",
        _always,
        processes.mend_data_parallel,
    ),
    Mend(
        "folders of several processes",
        "utils/utils.py:51",
        "of two processes that make the same folder at once, one fails",
        _always,
        processes.mend_folders,
    ),
    Mend(
        "checkpoints of several processes",
        "trainer/trainer.py:132, :289, :583",
        "each process looks for a checkpoint of its own name, before the first has written it",
        _always,
        processes.mend_checkpoint_names,
    ),
    Mend(
        "metrics that count",
        "evaluator/collector.py:227",
        "ItemCoverage and others end in an AttributeError in 1.2.1",
        _always,
        processes.mend_counts,
    ),
    Mend(
        "training by several processes",
        "data/dataloader/abstract_dataloader.py:60; trainer/trainer.py:196",
        "rows are repeated, shuffled unlike a single process's, and processes count alike however many rows they have",
        _always,
        processes.mend_training,
    ),
    Mend(
        "evaluation by several processes",
        "data/dataloader/abstract_dataloader.py:60; trainer/trainer.py:606, :632",
        "rows are repeated, and rounded metrics weighted by numbers of batches",
        _always,
        processes.mend_evaluation,
    ),
)
"""Every mend, in the order they are applied."""


def apply() -> None:
    """Mend RecBole. Harmless when repeated."""
    for mend in MENDS:
        mend.apply()


def needed() -> dict[str, bool]:
    """Whether the libraries installed here need each mend, by its name."""
    return {mend.name: mend.needed() for mend in MENDS}


def check() -> None:
    """Make sure that RecBole is as expected; to be called before :func:`apply`.

    Raises
    ------
    RuntimeError
        Names what is missing, and the version of RecBole.
    """
    surface.check()
