"""Models measured side by side: an entry of ``TRAINING`` or ``ATTENTION`` is a row of the tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CE = {"loss_type": "CE", "train_neg_sample_args": None}

BASELINE = "RecBole SASRec"
"""Variant against which ratios of training are taken."""

NAIVE = "naive, L x L x d"
"""Variant against which ratios of attention are taken."""


@dataclass(frozen=True)
class Variant:
    """A model and how it is trained, with options over :func:`common_options`.

    ``source`` is ``recbole`` (RecBole alone), ``untraced`` (the same without torch's anomaly detection), ``ours`` (this
    package registered), ``naive`` (ours with :mod:`measure.naive_attention`) or ``peer`` (RecTools). ``groups`` are
    other words by which ``--models`` takes it. ``cloze``: its targets are masked events, which are not counted with
    those of the others.
    """

    name: str
    source: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    cloze: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    def unknown(self) -> list[str]:
        """Options that this version of the package doesn't have."""
        # Imported here: children import this module with packages of other versions.
        from recbole_adrrec.options import known_options

        return [] if self.source == "peer" else sorted(set(self.options) - known_options())


_SASREC = {"backbone": "sasrec", "refinement": "none"}
_WINDOWS = {"train_rows": "sequence"}
_PREFIX = {"train_rows": "prefix"}
_NO_NOISE = {"lni_weight": 0.0}
_AMP = {"enable_amp": True}
_RECOMPUTE = {"recompute": True}
_COMPILE = {"compile": True}
_KERNELS = {"absolute_kernels": ["position", "day"], "relative_kernels": ["sinusoid", "log1p"]}
_GRID = {"grid_points": 16}

TRAINING: tuple[Variant, ...] = (
    Variant(BASELINE, "recbole", "SASRec", CE, ("recbole",)),
    Variant("RecBole SASRec, anomaly detection off", "untraced", "SASRec", CE, ("recbole",)),
    Variant("RecBole BERT4Rec", "recbole", "BERT4Rec", CE, ("recbole",), cloze=True),
    Variant("RecTools SASRec", "peer", "SASRec", {}, ("peer",)),
    # SASRec, one improvement after another
    Variant("RecBole SASRec on our rows", "ours", "SASRec", CE, ("sasrec",)),
    Variant("SASRec, prefix rows, trimmed", "ours", "AWRSR", {**_SASREC, **_PREFIX}, ("sasrec",)),
    Variant("SASRec, windows", "ours", "AWRSR", {**_SASREC, **_WINDOWS}, ("sasrec", "ours")),
    # ADRRec, one improvement after another
    Variant("ADRRec, prefix rows", "ours", "ADRRec", {**_NO_NOISE, **_PREFIX}, ("adrrec",)),
    Variant("ADRRec, windows", "ours", "ADRRec", {**_NO_NOISE, **_WINDOWS}, ("adrrec", "ours")),
    Variant("ADRRec, windows, LNI", "ours", "ADRRec", {**_WINDOWS, "lni_weight": 0.01}, ("adrrec", "ours")),
    Variant("ADRRec, windows, recomputed", "ours", "ADRRec", {**_NO_NOISE, **_WINDOWS, **_RECOMPUTE}, ("adrrec",)),
    Variant("ADRRec, windows, bf16", "ours", "ADRRec", {**_NO_NOISE, **_WINDOWS, **_AMP}, ("adrrec",)),
    Variant("ADRRec, windows, compiled", "ours", "ADRRec", {**_NO_NOISE, **_WINDOWS, **_COMPILE}, ("adrrec",)),
    Variant(
        "ADRRec, windows, compiled, bf16",
        "ours",
        "ADRRec",
        {**_NO_NOISE, **_WINDOWS, **_COMPILE, **_AMP},
        ("adrrec",),
        devices=("cuda",),
    ),
    # Other models
    Variant("AWRSR simple", "ours", "AWRSR", _WINDOWS, ("models", "ours")),
    Variant("TiSASRec", "ours", "TiSASRec", _WINDOWS, ("models", "ours")),
    Variant("HSTU", "ours", "HSTU", _WINDOWS, ("models", "ours")),
    Variant("STOSA", "ours", "STOSA", _WINDOWS, ("models", "ours")),
    Variant("MEANTIME", "ours", "MEANTIME", _WINDOWS, ("models", "ours"), cloze=True),
)
"""Rows of the table of training, in its order."""

ATTENTION: tuple[Variant, ...] = (
    Variant("exact", "ours", "ADRRec", _KERNELS),
    Variant("grid", "ours", "ADRRec", {**_KERNELS, **_GRID}),
    Variant("recomputed", "ours", "ADRRec", {**_KERNELS, **_RECOMPUTE}),
    Variant("grid, recomputed", "ours", "ADRRec", {**_KERNELS, **_GRID, **_RECOMPUTE}),
    Variant("grid, bf16", "ours", "ADRRec", {**_KERNELS, **_GRID, **_AMP}),
    Variant("grid, compiled", "ours", "ADRRec", {**_KERNELS, **_GRID, **_COMPILE}),
    Variant(NAIVE, "naive", "ADRRec", _KERNELS),
)
"""Rows of the table of one step of attention."""

QUICK = (BASELINE, "ADRRec, windows", "ADRRec, windows, LNI")
LENGTH_SWEEP = ("exact", "grid", NAIVE)


def choose(names: list[str] | None, device: str, variants: tuple[Variant, ...] = TRAINING) -> list[Variant]:
    """Variants by name or group that are measured on a device, in the order of the table; all if None.

    Raises
    ------
    ValueError
        A name is unknown.
    """
    groups = {group for variant in variants for group in variant.groups}
    known = {variant.name for variant in variants}
    for name in names or []:
        if name not in known | groups:
            raise ValueError(f"--models: {name!r} is none of {', '.join(sorted(groups))} or {'; '.join(sorted(known))}")
    return [
        variant
        for variant in variants
        if device in variant.devices and (names is None or {variant.name, *variant.groups} & set(names))
    ]


def common_options(dataset: str, length: int, batch: int, device: str) -> dict[str, Any]:
    """Options of data and training that all sides of a comparison share; ``batch`` is the targets of a step.

    Every event is kept (no k-core filter), the same three columns are read, and nothing is rescaled.
    """
    from recbole_adrrec.options import load_properties

    fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
    known = load_properties("dataset", dataset)
    fields = {name: known.get(name, value) for name, value in fields.items()}
    return {
        **fields,
        "load_col": {"inter": list(fields.values())},
        "user_inter_num_interval": None,
        "item_inter_num_interval": None,
        "val_interval": None,
        "normalize_all": False,
        "MAX_ITEM_LIST_LENGTH": length,
        "train_batch_size": batch,
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": {"valid": "full", "test": "full"},
        },
        "repeatable": True,
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "use_gpu": device == "cuda",
        "seed": 2020,
    }
