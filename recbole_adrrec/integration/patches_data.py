"""Patches of RecBole's data sets: reading under pandas 3, downloads, and saved data sets."""

from __future__ import annotations

import builtins
import http.client
import importlib
import os
import re
import shutil
import tempfile
import urllib.request
import warnings
import zipfile
from collections import Counter
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from pandas._libs.parsers import STR_NA_VALUES

from recbole_adrrec import options
from recbole_adrrec.collectives import barrier
from recbole_adrrec.errors import DataError
from recbole_adrrec.integration.patching import overlay, override, patch

DATASET = "recbole.data.dataset.dataset"
MODULES_WITH_SEQUENCES = (DATASET, "recbole.data.dataset.kg_dataset", "recbole.data.dataset.sequential_dataset")
TIMEOUT_S = 30


def copies_columns() -> bool:
    """True where ``frame[column].fillna(inplace=True)`` leaves the frame as it is (pandas 3) or warns of that (2.2)."""
    frame = pd.DataFrame({"a": [np.nan]})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        frame["a"].fillna(value=0.0, inplace=True)
    return bool(said or frame["a"].isna().any())


def aggregates_whole() -> bool:
    """True where ``Series.agg(len)`` counts rows instead of the elements of each (pandas 3) or warns of that (2.2)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        counts = pd.Series([[1, 2], [3]]).agg(len)
    return bool(said) or not isinstance(counts, pd.Series)


@patch(
    "missing values",
    "data/dataset/dataset.py:501, :648, :650",
    "chained fillna(inplace=True) does nothing since pandas 3: missing floats stay NaN, tokens become huge negative "
    "numbers, sequences end in an AttributeError; pandas 2.2 and 2.3 warn",
    copies_columns,
)
def patch_fill_nan() -> None:
    """Fill missing values where they are; ``_read_csv`` below does so for sequences."""
    from recbole.data.dataset.dataset import Dataset

    override(Dataset, "_fill_nan")(lambda _, self: _fill_nan(self))
    # RecBole's own line still runs, now without anything to fill, and warns for each column.
    warning = getattr(pd.errors, "ChainedAssignmentError", None)
    if warning is not None:
        warnings.filterwarnings("ignore", category=warning, module=re.escape(DATASET))
    warnings.filterwarnings("ignore", "A value is trying to be set on a copy", FutureWarning, re.escape(DATASET))
    # Columns of pandas 3 are read-only, of which torch warns; the frame is dropped once there are tensors.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable", module=re.escape(DATASET))


def _fill_nan(self: Any) -> None:
    """Missing tokens become 0 (``[PAD]``), missing floats the mean of the column, missing sequences empty ones."""
    from recbole.utils import FeatureType

    for feat_name in self.feat_name_list:
        feat = getattr(self, feat_name)
        for field in feat:
            ftype = self.field2type[field]
            if ftype == FeatureType.TOKEN:
                feat[field] = feat[field].fillna(value=0)
            elif ftype == FeatureType.FLOAT:
                feat[field] = feat[field].fillna(value=feat[field].mean())
            else:
                empty = np.array([], dtype=np.int64 if ftype == FeatureType.TOKEN_SEQ else np.float64)
                feat[field] = feat[field].apply(lambda row, empty=empty: empty if isinstance(row, float) else row)


@patch(
    "names that look missing",
    "data/dataset/dataset.py:484",
    "users and items named NA, null or None are lost; a separator too many at the end of rows shifts columns; read by "
    "pandas' parser in Python, ten times slower than the one in C",
)
def patch_reading() -> None:
    """Read names as names, rows of more columns than the header's in place, and by the parser in C."""
    from recbole.data.dataset import dataset

    overlay(dataset, "pd", read_csv=_read_csv)


def _read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
    if isinstance(kwargs.get("dtype"), dict):
        numbers = {name for name, kind in kwargs["dtype"].items() if kind is np.float64}
        missing = {name: sorted(STR_NA_VALUES) if name in numbers else [""] for name in kwargs["dtype"]}
        kwargs = {**kwargs, "keep_default_na": False, "na_values": missing, "index_col": False}
    if kwargs.get("engine") == "python" and len(kwargs.get("delimiter") or "") == 1:
        # The same frames, the numbers to the last bit, too.
        kwargs |= {"engine": "c", "float_precision": "round_trip"}
    frame = pd.read_csv(*args, **kwargs)
    for column in frame.columns:
        if str(column).endswith("_seq"):  # the header still has "field:token_seq" here
            frame[column] = frame[column].fillna(value="")
    return frame


@patch(
    "counting tokens",
    "data/dataset/dataset.py:893",
    "one Python object after another: minutes for millions of events",
)
def patch_counting() -> None:
    """Count arrays by pandas."""
    from recbole.data.dataset import dataset

    def counter(values: Any = ()) -> Counter[Any]:
        if not hasattr(values, "dtype"):
            return Counter(values)
        counts = pd.Series(values).value_counts(sort=False)
        return Counter(dict(zip(counts.index, counts.tolist(), strict=True)))

    dataset.Counter = counter


@patch(
    "lengths of sequences",
    "data/dataset/dataset.py:712, :792, :809, :1217; kg_dataset.py:316; sequential_dataset.py:165",
    "Series.agg(len) counts rows since pandas 3, so that sequences are cut at the wrong places; pandas 2 warns",
    aggregates_whole,
)
def patch_lengths() -> None:
    """Count the elements of each row again."""

    def length(value: Any) -> Any:
        return value.map(builtins.len) if isinstance(value, pd.Series) else builtins.len(value)

    for name in MODULES_WITH_SEQUENCES:
        importlib.import_module(name).len = length  # type: ignore[attr-defined]


@patch(
    "downloads",
    "data/dataset/dataset.py:230-254, :268",
    "a barrier in a single process; waits without end for a silent server; an empty folder is left and then taken for "
    "the data set",
)
def patch_download() -> None:
    """Download what is missing, all of it or nothing, and name the wanted file and its address where that fails."""
    from recbole.data.dataset.dataset import Dataset
    from recbole.utils import url

    @override(Dataset, "_load_data")
    def load_data(original: Any, self: Any, token: str, dataset_path: str) -> None:
        parts = [f"{token}.{part}" for part in self.benchmark_filename_list or []] or [token]
        absent = [name for name in parts if not Path(dataset_path, f"{name}.inter").is_file()]
        if absent and self.config["local_rank"] == 0:
            _download(self, Path(dataset_path), f"{absent[0]}.inter")
        barrier()  # also where nothing is absent: the other processes can't know
        original(self, token, dataset_path)

    overlay(url, "ur", urlopen=lambda address: urllib.request.urlopen(address, timeout=TIMEOUT_S))


def _download(dataset: Any, target: Path, wanted: str) -> None:
    """Download a data set by RecBole's own functions into a folder beside its place, and move it there."""
    from recbole.data.dataset import dataset as module

    url, name = dataset._get_download_url("url", allow_none=True), dataset.dataset_name
    missing = options.missing_data(name, target)
    if wanted != f"{name}.inter":
        missing = f"{target / wanted}: no such file; {missing}"
    if url is None:
        raise DataError(missing)
    made = next((folder for folder in reversed(target.absolute().parents) if not folder.exists()), None)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.absolute().parent) as folder:
            if not module.decide_download(url):
                raise DataError(f"{missing}; its download was declined")
            archive = module.download_url(url, folder)
            module.extract_zip(archive, folder)
            os.unlink(archive)
            module.rename_atomic_files(folder, Path(archive).stem, name)
            if not Path(folder, wanted).is_file():
                raise DataError(f"{missing}; the archive at {url} has no {wanted}")
            target.mkdir(exist_ok=True)
            # The file that tells whether the data set is there comes last.
            for path in sorted(Path(folder).iterdir(), key=lambda path: path.suffix == ".inter"):
                if not (target / path.name).exists():
                    shutil.move(str(path), str(target / path.name))
        made = None
    except (OSError, RuntimeError, TypeError, zipfile.BadZipFile, http.client.HTTPException) as error:
        raise DataError(f"{missing}; downloading it failed ({getattr(error, 'reason', None) or error})") from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


class _NoConfig:
    """Options that equal none, so that what has them counts as outdated."""

    def __getitem__(self, name: str) -> object:
        return object()


@patch(
    "numbers of rows and sets of users",
    "data/dataloader/abstract_dataloader.py:65, :71; sampler/sampler.py:408",
    "a list of the numbers of all rows, 40 bytes each, and an empty set for each user, 224 bytes, which nothing reads",
)
def patch_lists_of_numbers() -> None:
    """Leave numbers of rows a range, and the sets out."""
    module: Any = importlib.import_module("recbole.data.dataloader.abstract_dataloader")
    module.list = lambda values=(): values if isinstance(values, range) else builtins.list(values)
    sampler = importlib.import_module("recbole.sampler.sampler").RepeatableSampler

    @override(sampler, "get_used_ids")
    def get_used_ids(_: Any, self: Any) -> Any:
        return np.empty(0, dtype=object)


@patch(
    "saved data sets and loaders",
    "data/utils.py:61, :99, :122",
    "found files are unpickled, which runs what they say; saving loaders takes their random generators away",
)
def patch_saved_data() -> None:
    """Ignore saved data sets and loaders, with a note in the log, and make them from the data."""
    from recbole.data import utils

    note = getLogger().warning

    def load(file: Any) -> Any:
        note(f"{file.name}: saved data sets are not read, since that could run code; made from the data instead")
        return SimpleNamespace(config=_NoConfig())

    overlay(utils, "pickle", load=load)

    @override(utils, "load_split_dataloaders")
    def load_loaders(original: Any, config: Any) -> None:
        path = config["dataloaders_save_path"] or Path(
            config["checkpoint_dir"], f"{config['dataset']}-for-{config['model']}-dataloader.pth"
        )
        if os.path.exists(path):
            note(f"{path}: saved loaders are not read, since that could run code; made from the data instead")

    @override(utils, "save_split_dataloaders")
    def save_loaders(original: Any, config: Any, dataloaders: Any) -> None:
        note("save_dataloaders: loaders are not saved, since they would not be read; leave the option out")
