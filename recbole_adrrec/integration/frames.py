"""RecBole's datasets under pandas 3."""

from __future__ import annotations

import builtins
import importlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pandas._libs.parsers import STR_NA_VALUES

from recbole_adrrec.integration.patching import overlay, override

DATASET = "recbole.data.dataset.dataset"
MODULES_WITH_SEQUENCES = (DATASET, "recbole.data.dataset.kg_dataset", "recbole.data.dataset.sequential_dataset")


def copies_columns() -> bool:
    """Whether ``frame[column].fillna(inplace=True)`` leaves the frame as it is (always since pandas 3)."""
    frame = pd.DataFrame({"a": [np.nan]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame["a"].fillna(value=0.0, inplace=True)
    return bool(frame["a"].isna().any())


def aggregates_whole() -> bool:
    """Whether ``Series.agg(len)`` counts the rows instead of the elements of each (since pandas 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return not isinstance(pd.Series([[1, 2], [3]]).agg(len), pd.Series)


def mend_fill_nan() -> None:
    """Fill missing values where they are (data/dataset/dataset.py:648, :650).

    Under pandas 3 a column taken from a frame is a copy, so RecBole's ``feat[field].fillna(..., inplace=True)`` changes
    nothing: missing floats stay NaN, missing tokens become huge negative numbers.
    """
    if copies_columns():
        override(importlib.import_module(DATASET).Dataset, "_fill_nan", lambda _: _fill_nan)


def _fill_nan(self: Any) -> None:
    """Missing tokens become 0 (``[PAD]``), missing floats the mean of the column, missing sequences empty ones."""
    feature_type = importlib.import_module("recbole.utils").FeatureType
    for feat_name in self.feat_name_list:
        feat = getattr(self, feat_name)
        for field in feat:
            ftype = self.field2type[field]
            if ftype == feature_type.TOKEN:
                feat[field] = feat[field].fillna(value=0)
            elif ftype == feature_type.FLOAT:
                feat[field] = feat[field].fillna(value=feat[field].mean())
            else:
                empty = np.array([], dtype=np.int64 if ftype == feature_type.TOKEN_SEQ else np.float64)
                feat[field] = feat[field].apply(lambda row, empty=empty: empty if isinstance(row, float) else row)


def mend_sequence_columns() -> None:
    """Read missing sequences as empty ones (data/dataset/dataset.py:501).

    The same chained ``fillna`` as above: under pandas 3 the missing value reaches ``.split`` as a float (:504).
    """
    if copies_columns():
        overlay(importlib.import_module(DATASET), "pd", read_csv=_read_csv)
        warning = getattr(pd.errors, "ChainedAssignmentError", None)
        if warning is not None:
            # RecBole's own line still runs, now without anything to fill, and warns for each column.
            warnings.filterwarnings("ignore", category=warning, module=re.escape(DATASET))
        # Columns of pandas 3 are read-only, of which torch warns; the frame is dropped once there are tensors.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", module=re.escape(DATASET))


def mend_reading() -> None:
    """Read names such as ``NA`` as names, and rows of more columns than the header's in place (dataset.py:484).

    pandas takes ``NA``, ``null``, ``None`` and a dozen more texts for missing, so that those users and items are lost;
    where every row ends in a separator too many, it takes the first column for an index and the others for the next.
    And RecBole asks for pandas' reader in Python, where the one in C reads the same.
    """
    overlay(importlib.import_module(DATASET), "pd", read_csv=_read_csv)


def _read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
    if isinstance(kwargs.get("dtype"), dict):
        numbers = {name for name, kind in kwargs["dtype"].items() if kind is np.float64}
        missing = {name: sorted(STR_NA_VALUES) if name in numbers else [""] for name in kwargs["dtype"]}
        kwargs = {**kwargs, "keep_default_na": False, "na_values": missing, "index_col": False}
    if kwargs.get("engine") == "python" and len(kwargs.get("delimiter") or "") == 1:
        # The same frames in a tenth of the time and half the memory; the numbers to the last bit, too.
        kwargs |= {"engine": "c", "float_precision": "round_trip"}
    frame = pd.read_csv(*args, **kwargs)
    for column in frame.columns:
        if str(column).endswith("_seq"):  # the header still has "field:token_seq" here
            frame[column] = frame[column].fillna(value="")
    return frame


def mend_counting() -> None:
    """Count tokens by pandas (data/dataset/dataset.py:893): a ``Counter`` takes one Python object after another."""
    override(importlib.import_module(DATASET), "Counter", _counting)


def _counting(original: Callable[..., Any]) -> Callable[..., Any]:
    def counter(values: Any = ()) -> Any:
        if not hasattr(values, "dtype"):
            return original(values)
        counts = pd.Series(values).value_counts(sort=False)
        return original(dict(zip(counts.index, counts.tolist(), strict=True)))

    return counter


def mend_lengths() -> None:
    """Count the elements of each row again (data/dataset/dataset.py:712, :792, :809, :1217; kg_dataset.py:316;
    sequential_dataset.py:165).

    ``feat[field].agg(len)`` is the length of every row up to pandas 2, but the number of rows in pandas 3, so sequences
    are cut at the wrong places. ``agg(np.concatenate)`` means the same in both.
    """
    if aggregates_whole():
        for name in MODULES_WITH_SEQUENCES:
            importlib.import_module(name).len = _len  # type: ignore[attr-defined]


def _len(value: Any) -> Any:
    """``len``, but of each row of a column, which is how those modules use it on one."""
    return value.map(builtins.len) if isinstance(value, pd.Series) else builtins.len(value)
