"""ADRRec built up from SASRec, one part at a time: the entries of ``ablate.py --groups parts``.

All entries but those that say otherwise share SASRec's block, so that each differs from its reference in what its
label names alone. What all share of data, loss, width and dropout stands in ``configs/parts.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SASREC = "SASRec"
BARE = "ADRRec, bare"
HEADS = "ADRRec, one head for each kernel"

NOTE = (
    f"{SASREC} is AWRSR without refinement, on windows. {BARE} has the same block and no kernel, trend or noise, and "
    "should be level with it; every other entry adds what it names."
)


@dataclass(frozen=True)
class Part:
    """One entry; attributes as those of ``ablations.Variant``."""

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = BARE
    model: str = "ADRRec"


BLOCK: dict[str, Any] = {
    "norm_order": "post",
    "drop_residual": False,
    "input_position": True,
    "input_norm": True,
    "input_scale": False,
    "final_norm": False,
    "activation": "gelu",
    "inner_dropout_prob": 0.0,
    "item_head": "plain",
    "layer_norm_eps": 1e-12,
}
"""RecBole's SASRec."""

OFF: dict[str, Any] = {
    **BLOCK,
    "absolute_kernels": [],
    "relative_kernels": [],
    "lni_weight": 0.0,
    "trend_rank": 0,
    "use_query_time": False,
}

ADAPTIVE: dict[str, Any] = {**OFF, "mixture": "adaptive", "n_heads": 2}

OLD: dict[str, Any] = {
    "mixture": "heads",
    "norm_order": "pre",
    "drop_residual": True,
    "input_position": False,
    "input_norm": False,
    "input_scale": False,
    "final_norm": False,
    "activation": "gelu_tanh",
    "hidden_dropout_prob": 0.2,
    "attn_dropout_prob": 0.2,
    "inner_dropout_prob": 0.2,
    "item_head": "projected",
    "layer_norm_eps": 1e-5,
    "absolute_kernels": ["position", "day"],
    "relative_kernels": ["sinusoid", "distance"],
    "time_unit": 60,
    "kernel_freq": 10000,
    "lni_weight": 0.0,
    "trend_rank": 0,
    "use_query_time": False,
}
"""ADRRec's block up to version 0.2, MEANTIME's, with the dropout that was its default."""

COARSE_DAYS = 28
"""Days between the knots of the coarse ``day`` kernel."""


def _adaptive(label: str, **changes: Any) -> Part:
    return Part(f"{BARE} + {label}", {**ADAPTIVE, **changes})


def _sasrec(label: str, **changes: Any) -> Part:
    return Part(f"{SASREC}, {label}", {**_AWRSR, **changes}, SASREC, "AWRSR")


_AWRSR: dict[str, Any] = {**BLOCK, "backbone": "sasrec", "refinement": "none", "n_heads": 2}

_ALL_KERNELS: dict[str, Any] = {
    "absolute_kernels": ["position", "day"],
    "day_spacing": COARSE_DAYS,
    "relative_kernels": ["sinusoid", "gap_bias", "distance_bias"],
}

_TREND: dict[str, Any] = {"trend_rank": 16}
_TIMED: dict[str, Any] = {"use_query_time": True}

_HEADS: dict[str, Any] = {
    "mixture": "heads",
    "absolute_kernels": ["position", "day"],
    "relative_kernels": ["sinusoid", "distance"],
}

PARTS: tuple[Part, ...] = (
    Part(SASREC, _AWRSR, None, "AWRSR"),
    Part(BARE, ADAPTIVE, SASREC),
    # Kernels of the adaptive mixture
    _adaptive("position", absolute_kernels=["position"]),
    _adaptive("day, a row each", absolute_kernels=["day"], day_spacing=None),
    _adaptive("day, coarse", absolute_kernels=["day"], day_spacing=COARSE_DAYS),
    _adaptive("position, day", absolute_kernels=["position", "day"], day_spacing=COARSE_DAYS),
    _adaptive("sinusoid", relative_kernels=["sinusoid"]),
    _adaptive("sinusoid in minutes", relative_kernels=["sinusoid"], time_unit=60, kernel_freq=10000),
    _adaptive("log1p", relative_kernels=["log1p"]),
    _adaptive("distance", relative_kernels=["distance"]),
    _adaptive("gap_bias", relative_kernels=["gap_bias"]),
    _adaptive("distance_bias", relative_kernels=["distance_bias"]),
    _adaptive("gap_bias, distance_bias", relative_kernels=["gap_bias", "distance_bias"]),
    _adaptive("all kernels", **_ALL_KERNELS),
    # A path from time to the scores
    _adaptive("trend", **_TREND),
    _adaptive("all kernels, trend", **_ALL_KERNELS, **_TREND),
    # Noise
    _adaptive("LNI on states", lni_weight=0.01, lni_form="states"),
    _adaptive("LNI on predictions", lni_weight=10.0, lni_form="predictions"),
    _adaptive("LNI, noisy pass alone", lni_weight=0.1, lni_form="noisy"),
    # Told the moment for which it recommends: no match for entries that aren't
    _adaptive("gap_bias, timed", relative_kernels=["gap_bias"], **_TIMED),
    _adaptive("trend, timed", **_TREND, **_TIMED),
    _adaptive("all kernels, trend, timed", **_ALL_KERNELS, **_TREND, **_TIMED),
    # One head for each kernel
    Part(HEADS, {**OFF, **_HEADS}),
    Part(
        f"{HEADS}, pre-norm", {**OFF, **_HEADS, "norm_order": "pre", "final_norm": True, "layer_norm_eps": 1e-5}, HEADS
    ),
    Part("ADRRec, old block", OLD, HEADS),
    # As it comes
    Part("ADRRec, defaults", {}, SASREC),
    Part("ADRRec, defaults, timed", _TIMED, SASREC),
    # Losses: the same for all models
    _sasrec("label smoothing", label_smoothing=0.1),
    _sasrec("temperature", temperature=0.05),
    _sasrec("negatives of its own", negatives="own", n_negatives=128),
    _sasrec("cross entropy over all items", loss_type="CE", negatives="own"),
    # Refinements
    _sasrec("additive, maps by distance", refinement="additive", refinement_maps="distance"),
    _sasrec("additive, maps by place", refinement="additive", refinement_maps="place"),
    _sasrec("simple", refinement="simple"),
    _sasrec("value", refinement="value"),
)
"""In the order of the table; a reference stands before what is compared with it."""
