"""What is measured side by side: add an entry to ``TRAINING`` or ``ATTENTION`` and it is a row of the tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recbole_adrrec.options import known_options

BASELINE = "RecBole SASRec"
"""What ratios are taken against."""

CE = {"loss_type": "CE", "train_neg_sample_args": None}


@dataclass(frozen=True)
class Variant:
    """A model and how it is trained.

    Attributes
    ----------
    name : str
        As shown, and as ``--models`` takes it.
    source : str
        ``recbole`` (RecBole alone), ``untraced`` (the same without torch's anomaly detection), ``ours`` (this package
        registered) or ``peer`` (RecTools).
    model : str
        The model's name.
    options : dict
        Over those that all share.
    groups : tuple of str
        Other words by which ``--models`` takes it.
    cloze : bool
        Whether its targets are masked events: they are not counted with those of the others.
    devices : tuple of str
        Where it makes sense.
    """

    name: str
    source: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    cloze: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    def unknown(self) -> list[str]:
        """Options that this version doesn't have."""
        return [] if self.source == "peer" else sorted(set(self.options) - known_options())


_SASREC = {"backbone": "sasrec", "refinement": "none"}
_WINDOWS = {"train_rows": "sequence"}
_PREFIX = {"train_rows": "prefix"}
_NO_NOISE = {"lni_weight": 0.0}
_AMP = {"enable_amp": True}
_RECOMPUTE = {"recompute": True}
_COMPILE = {"compile": True}

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
    Variant("ADRRec, windows, LNI", "ours", "ADRRec", {**_WINDOWS}, ("adrrec", "ours")),
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
    Variant("AWRSR simple", "ours", "AWRSR", {**_WINDOWS}, ("models", "ours")),
    Variant("TiSASRec", "ours", "TiSASRec", {**_WINDOWS}, ("models", "ours")),
    Variant("STOSA", "ours", "STOSA", {**_WINDOWS}, ("models", "ours")),
    Variant("MEANTIME", "ours", "MEANTIME", {**_WINDOWS}, ("models", "ours"), cloze=True),
)
"""Rows of the table of training, in its order."""

QUICK = (BASELINE, "ADRRec, windows", "ADRRec, windows, LNI")

_KERNELS = {"absolute_kernels": ["position", "day"], "relative_kernels": ["sinusoid", "log1p"]}

_GRID = {"grid_points": 16}

WRITTEN_OUT = "written out, L x L x d"

ATTENTION: tuple[Variant, ...] = (
    Variant("exact", "ours", "ADRRec", _KERNELS),
    Variant("grid", "ours", "ADRRec", {**_KERNELS, **_GRID}),
    Variant("recomputed", "ours", "ADRRec", {**_KERNELS, **_RECOMPUTE}),
    Variant("grid, recomputed", "ours", "ADRRec", {**_KERNELS, **_GRID, **_RECOMPUTE}),
    Variant("grid, bf16", "ours", "ADRRec", {**_KERNELS, **_GRID, **_AMP}),
    Variant("grid, compiled", "ours", "ADRRec", {**_KERNELS, **_GRID, **_COMPILE}),
    Variant(WRITTEN_OUT, "written_out", "ADRRec", _KERNELS),
)
"""Rows of the table of one step of attention."""


LENGTH_SWEEP = ("exact", "grid", WRITTEN_OUT)
"""Of ``ATTENTION``, those that are swept over the length."""


def chosen(names: list[str] | None, device: str, variants: tuple[Variant, ...] = TRAINING) -> list[Variant]:
    """Variants by name or group, in the order of the table; all that make sense on the device if None.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    groups = {group for variant in variants for group in variant.groups}
    known = {variant.name for variant in variants}
    for name in names or []:
        if name not in known | groups:
            raise ValueError(f"--models: {name!r} is none of {', '.join(sorted(groups))} or {'; '.join(sorted(known))}")
    return [
        variant
        for variant in variants
        if device in variant.devices
        and (names is None or variant.name in names or any(group in names for group in variant.groups))
    ]
