"""Choices, ranges and dependencies that the options of several models share."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from recbole_adrrec.options.rule_types import COUNT, POSITIVE, list_of, number

AbsoluteKernel = Literal["position", "day", "constant", "hour", "weekday", "month"]
GapKernel = Literal["sinusoid", "exponential", "log1p"]
RelativeKernel = Literal["sinusoid", "exponential", "log1p", "distance", "gap_bias", "distance_bias"]
Backbone = Literal["sasrec", "stosa", "tisasrec", "mix"]
Reorder = Literal["never", "auto", "always"]
Loss = Literal["CE", "BPR", "BCE", "sampled_softmax", "gBCE"]

TIMELESS_KERNELS = frozenset({"position", "constant", "distance", "distance_bias"})
"""Kernels that read no times."""

BIAS_KERNELS = frozenset({"gap_bias", "distance_bias"})
"""Kernels that are a bias for each bucket of pairs, and so have no head of their own."""

Count = Annotated[int, COUNT]
Positive = Annotated[float, POSITIVE]
AtLeastZero = Annotated[float, number(low=0)]
Dropout = Annotated[float, number(low=0, high=1, below=True)]
Inside = Annotated[float, number(low=0, high=1, above=True, below=True)]
Chosen = Annotated[tuple[int, ...], list_of(COUNT, distinct=True, filled=True)]
"""Numbers of some layers or heads, from 1."""


class Dependency(NamedTuple):
    """An option that acts only with some values of another; elsewhere it has to keep its default."""

    name: str
    other: str
    values: tuple[str, ...]
    reason: str = ""


_REFINED = ("simple", "value", "additive", "stochastic")
_PRODUCTS = "scores of STOSA are minus a distance, not products"
DEPENDENCIES = (
    Dependency("negatives", "loss_type", ("sampled_softmax",), "shared negatives are compared by a softmax"),
    Dependency("label_smoothing", "loss_type", ("CE", "sampled_softmax"), "only a softmax has candidates to share it"),
    Dependency("temperature", "backbone", ("sasrec", "tisasrec", "mix"), _PRODUCTS),
    Dependency("trend_rank", "backbone", ("sasrec", "tisasrec", "mix"), _PRODUCTS),
    Dependency("objective", "backbone", ("sasrec", "mix"), "the others know their past alone"),
    Dependency("reorder_ties", "train_rows", ("sequence",), "RecBole's rows show one order each"),
    Dependency("grid_points", "backbone", ("mix",), "only it has kernels that can be interpolated"),
    Dependency("published_padding_attention", "backbone", ("tisasrec",)),
    Dependency("published_mean_bypass", "backbone", ("stosa",), "only its states have means and covariances"),
    Dependency("lni_layer_weights", "lni_form", ("states",)),
    Dependency("lni_stop_gradient", "lni_form", ("states", "predictions")),
    Dependency("refinement_start", "refinement", ("additive",)),
    Dependency("refinement_value_map", "refinement", ("value",)),
    Dependency("refinement_maps", "refinement", _REFINED),
    Dependency("refinement_rank", "refinement", _REFINED),
    Dependency("refinement_layers", "refinement", _REFINED),
    Dependency("refinement_heads", "refinement", _REFINED),
)
