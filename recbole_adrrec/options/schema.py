"""Options of each model, typed: a field's type is its rule, its default stands in ``properties/model/<Model>.yaml``.

Frozen dataclasses rather than pydantic: they need no further dependency, and messages that name option, value and
remedy come from the rule itself instead of a table that translates pydantic's.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

from recbole_adrrec.errors import OptionError
from recbole_adrrec.options.kinds import (
    BIAS_KERNELS,
    DEPENDENCIES,
    TIMELESS_KERNELS,
    AbsoluteKernel,
    AtLeastZero,
    Backbone,
    Chosen,
    Count,
    Dropout,
    GapKernel,
    Inside,
    Loss,
    Positive,
    RelativeKernel,
    Reorder,
)
from recbole_adrrec.options.properties import load_properties
from recbole_adrrec.options.rule_types import NATURAL, Rule, check, list_of, number, rule_of

DEFAULT_HEADS = 2


Options = TypeVar("Options", bound="ModelOptions")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of every model. Fields with a value here are options of some models, and the others' constants."""

    model: ClassVar[str]

    loss_type: Loss
    train_rows: Literal["prefix", "sequence"]

    reorder_ties: Reorder = "never"
    backbone: Backbone = "mix"
    objective: Literal["causal", "cloze"] = "causal"
    mask_ratio: Inside = 0.2
    negatives: Literal["own", "shared"] = "own"
    use_query_time: bool = False
    trend_rank: Annotated[int, NATURAL] = 0

    @classmethod
    @functools.cache
    def rules(cls) -> dict[str, Rule]:
        """Rule of each option in ``properties/model/<model>.yaml``."""
        hints = get_type_hints(cls, include_extras=True)
        return {name: rule_of(hints[name]) for name in load_properties("model", cls.model)}

    @classmethod
    def read(cls: type[Options], config: Any) -> Options:
        """Options of this model among those of a run, RecBole's ``Config`` or a Mapping; absent ones have defaults.

        An OptionError names an option that its rule or another option refuses, its value and what would be right.
        """
        values: dict[str, Any] = {}
        for name, value in load_properties("model", cls.model).items():
            if name in config:
                value = config[name]
                check(cls.rules()[name], name, value)
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    @property
    def time_readers(self) -> list[str]:
        """Parts that read times in seconds, as messages name them."""
        return []

    def __post_init__(self) -> None:
        defaults = load_properties("model", self.model)
        for name, other, values, reason in DEPENDENCIES:
            value, found = getattr(self, name, None), getattr(self, other, None)
            if name in defaults and value != defaults[name] and found not in values:
                shown = list(value) if isinstance(value, tuple) else value
                raise OptionError(
                    f"{name}: {shown!r} means nothing with {other} {found}{reason and f' ({reason})'}; leave it out, "
                    f"or choose {other} {' or '.join(values)}"
                )


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(ModelOptions):
    """Options of every model that is trained."""

    n_layers: Count
    hidden_size: Count
    hidden_dropout_prob: Dropout
    attn_dropout_prob: Dropout
    layer_norm_eps: Positive
    initializer_range: Positive
    n_negatives: Count
    negatives: Literal["own", "shared"]
    label_smoothing: Dropout
    reorder_ties: Reorder
    recompute: bool
    compile: bool

    event_layout: Literal["auto", "padded", "grouped", "jagged"] = "auto"
    n_heads: Count | None = None
    gbce_t: Annotated[float, number(low=0, high=1)] = 0.75
    temperature: Positive | None = None
    trend_spacing: Positive = 28
    trend_decay: AtLeastZero = 1e-4

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels in attention, absolute ones first."""
        return ()

    @property
    def one_head_each(self) -> bool:
        """Each kernel has an attention head of its own, whatever ``n_heads`` says."""
        return False

    @property
    def heads(self) -> int:
        """Attention heads of each layer."""
        return len(self.kernels) if self.one_head_each else self.n_heads or DEFAULT_HEADS

    @property
    def time_readers(self) -> list[str]:
        """Parts that read times in seconds, as messages name them."""
        kernels = [name for name in self.kernels if name not in TIMELESS_KERNELS]
        intervals = ["TiSASRec's intervals"] if self.backbone == "tisasrec" else []
        return [*kernels, *intervals, *(["the trend"] if self.trend_rank else [])]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_width()
        if self.backbone == "stosa" and self.loss_type in ("BCE", "gBCE"):
            raise OptionError(
                f"loss_type: {self.loss_type} reads a score above 0 as likely, but STOSA's are minus a distance and "
                "never above 0; choose BPR, CE or sampled_softmax"
            )
        if self.use_query_time and self.backbone != "mix" and not self.trend_rank:
            raise OptionError(
                f"use_query_time: True means nothing with backbone {self.backbone} (only kernels of mix, or a trend, "
                "read the time of a query); leave it out, or choose backbone mix"
            )

    def _check_width(self) -> None:
        """Refuse a width that heads can't share, or an odd one where sines are paired with cosines."""
        paired, width, heads = "sinusoid" in self.kernels, self.hidden_size, self.heads
        step = math.lcm(heads, 2) if paired else heads
        if width % step == 0:
            return
        among, remedy = f"n_heads, {heads}", ""
        if self.one_head_each:
            among, remedy = f"{heads} kernels (heads)", ", or change absolute_kernels/relative_kernels"
        odd = "is odd, but the sinusoid kernel pairs sines with cosines"
        fault = f"cannot be divided among {among}" if width % heads else odd
        below = width // step * step
        near = f"{below} or {below + step}" if below else f"{step}"
        raise OptionError(f"hidden_size: {width} {fault}; choose a multiple of {step}, for instance {near}{remedy}")


@dataclass(frozen=True, kw_only=True)
class BlockOptions(EncoderOptions):
    """Options of models whose Transformer block can be chosen, where it isn't that of MEANTIME's public code."""

    inner_size: Count
    norm_order: Literal["post", "pre"] = "pre"
    drop_residual: bool = True
    input_position: bool = False
    input_norm: bool = False
    input_scale: bool = False
    final_norm: bool = False
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu_tanh"
    inner_dropout_prob: Dropout = 0.0
    item_head: Literal["plain", "projected"] = "projected"


@dataclass(frozen=True, kw_only=True)
class MixOptions(BlockOptions):
    """Options of models with kernels in their attention."""

    absolute_kernels: tuple[AbsoluteKernel, ...]
    relative_kernels: tuple[RelativeKernel, ...]
    day_spacing: Count | None
    time_unit: Positive | None
    kernel_freq: Annotated[float, number(low=1, above=True)] | None
    grid_points: Count | None
    max_distance: Count | None = None
    mixture: Literal["adaptive", "heads"] = "heads"

    @property
    def kernels(self) -> tuple[str, ...]:
        """See :class:`EncoderOptions`: none on another backbone than mix."""
        return (*self.absolute_kernels, *self.relative_kernels) if self.backbone == "mix" else ()

    @property
    def one_head_each(self) -> bool:
        """See :class:`EncoderOptions`."""
        return self.backbone == "mix" and self.mixture == "heads"

    def __post_init__(self) -> None:
        if self.grid_points and self.backbone == "mix" and not {"exponential", "log1p"} & {*self.kernels}:
            raise OptionError(
                f"grid_points: {self.grid_points} means nothing without exponential or log1p among relative_kernels, "
                f"{list(self.relative_kernels)}; leave it out"
            )
        if self.one_head_each and not self.kernels:
            raise OptionError(
                f"absolute_kernels, relative_kernels: both are empty, but {self.model} has one attention head per "
                "kernel and needs at least one"
            )
        biases = BIAS_KERNELS.intersection(self.kernels)
        if self.one_head_each and biases:
            raise OptionError(
                f"relative_kernels: {', '.join(sorted(biases))} adds to the scores of all heads and has none of its "
                "own; choose mixture adaptive, or another kernel"
            )
        super().__post_init__()
        self._check_layout()

    def _check_layout(self) -> None:
        """Refuse what needs padding in layouts without it, and what is more than products of queries and keys."""
        unfit: dict[str, Any] = {}
        if self.event_layout in ("grouped", "jagged"):
            unfit["compile"] = self.compile
            unfit["published_padding_attention"] = getattr(self, "published_padding_attention", False)
        if self.event_layout == "jagged":
            unfit["attn_dropout_prob"] = self.attn_dropout_prob
            unfit["relative_kernels"] = list(self.relative_kernels if self.backbone == "mix" else ())
            unfit["refinement"] = getattr(self, "refinement", "none").removeprefix("none")
            unfit["recompute"] = self.recompute
            unfit["backbone"] = self.backbone if self.backbone in ("stosa", "tisasrec") else ""
        found = ", ".join(f"{name} {value!r}" for name, value in unfit.items() if value)
        if found:
            more = " and computes products of queries and keys alone" if self.event_layout == "jagged" else ""
            raise OptionError(
                f"event_layout: {self.event_layout} leaves padding out{more}, without {found}; choose auto, or change "
                "those"
            )


@dataclass(frozen=True, kw_only=True)
class MEANTIMEOptions(MixOptions):
    """Options of MEANTIME, and the block of its public code."""

    model: ClassVar[str] = "MEANTIME"

    objective: Literal["cloze"]
    relative_kernels: tuple[GapKernel, ...]
    time_unit: Positive
    kernel_freq: Annotated[float, number(low=1, above=True)]

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner_dropout_prob", self.hidden_dropout_prob)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ADRRecOptions(MixOptions):
    """Options of ADRRec."""

    model: ClassVar[str] = "ADRRec"

    lni_form: Literal["states", "predictions", "noisy"]
    lni_weight: AtLeastZero
    lni_sigma: Positive
    lni_noise: Literal["gaussian", "uniform", "in_manifold"]
    lni_layers: Chosen | None
    lni_layer_weights: Annotated[tuple[float, ...], list_of(number(low=0), filled=True)] | None
    lni_stop_gradient: bool
    train_batch_size: Count

    def __post_init__(self) -> None:
        if self.one_head_each and self.n_heads is not None:
            raise OptionError(
                f"n_heads: {self.n_heads} means nothing with mixture heads, which has one head for each of its "
                f"{self.heads} kernels; leave it out, or choose mixture adaptive"
            )
        super().__post_init__()
        _check_numbers("lni_layers", self.lni_layers, "layer", self.n_layers, "n_layers")
        noisy = len(self.lni_layers or range(self.n_layers))
        if self.lni_layer_weights and len(self.lni_layer_weights) != noisy:
            raise OptionError(
                f"lni_layer_weights: {len(self.lni_layer_weights)} weights for {noisy} layers "
                f"({'lni_layers' if self.lni_layers else 'n_layers'}); give one for each"
            )


@dataclass(frozen=True, kw_only=True)
class TiSASRecOptions(EncoderOptions):
    """Options of TiSASRec."""

    model: ClassVar[str] = "TiSASRec"

    n_heads: Count
    time_span: Count
    published_padding_attention: bool
    backbone: Backbone = "tisasrec"


@dataclass(frozen=True, kw_only=True)
class HSTUOptions(EncoderOptions):
    """Options of HSTU."""

    model: ClassVar[str] = "HSTU"

    n_heads: Count
    query_size: Count | None
    value_size: Count | None
    position_bias: bool
    time_bias: bool

    @property
    def time_readers(self) -> list[str]:
        """See :class:`ModelOptions`."""
        return [*(["HSTU's time bias"] if self.time_bias else []), *super().time_readers]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_query_time and not self.time_bias and not self.trend_rank:
            raise OptionError(
                "use_query_time: True means nothing without time_bias and trend_rank (only a time bias, or a trend, "
                "reads the time of a query); leave it out, or choose time_bias true"
            )

    def _check_width(self) -> None:
        """Refuse a width that heads can't share, where they have none of their own."""
        if self.query_size is None or self.value_size is None:
            super()._check_width()


@dataclass(frozen=True, kw_only=True)
class STOSAOptions(EncoderOptions):
    """Options of STOSA."""

    model: ClassVar[str] = "STOSA"

    n_heads: Count
    inner_size: Count
    pvn_weight: AtLeastZero
    published_mean_bypass: bool
    backbone: Backbone = "stosa"


@dataclass(frozen=True, kw_only=True)
class AWRSROptions(MixOptions, TiSASRecOptions, STOSAOptions):
    """Options of AWRSR: those of its backbones, and of the refinement."""

    model: ClassVar[str] = "AWRSR"

    n_heads: Count
    backbone: Backbone
    refinement: Literal["none", "simple", "value", "additive", "stochastic"]
    refinement_maps: Literal["distance", "place"]
    refinement_rank: Count | None
    refinement_start: Inside | None
    refinement_layers: Chosen | None
    refinement_heads: Chosen | None
    refinement_value_map: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "cloze" and self.refinement != "none" and self.refinement_maps == "distance":
            raise OptionError(
                "refinement_maps: distance counts places back from a query, but with objective cloze there are keys on "
                "both sides; choose place, or refinement none (which is BERT4Rec)"
            )
        source = "one head for each kernel" if self.one_head_each else "n_heads"
        _check_numbers("refinement_layers", self.refinement_layers, "layer", self.n_layers, "n_layers")
        _check_numbers("refinement_heads", self.refinement_heads, "head", self.heads, source)


@dataclass(frozen=True, kw_only=True)
class PopularityOptions(ModelOptions):
    """Options of Popularity."""

    model: ClassVar[str] = "Popularity"

    window_days: Positive | None
    loss_type: Literal["CE"]
    epochs: Annotated[int, NATURAL]

    @property
    def time_readers(self) -> list[str]:
        """See :class:`ModelOptions`."""
        return [] if self.window_days is None else ["Popularity's window"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_query_time and self.window_days is None:
            raise OptionError(
                "use_query_time: True means nothing without window_days: all training events count, whenever a query "
                "is; leave it out, or give window_days"
            )


def _check_numbers(name: str, chosen: tuple[int, ...] | None, unit: str, most: int, source: str) -> None:
    if chosen and max(chosen) > most:
        raise OptionError(f"{name}: there is no {unit} {max(chosen)} among {most} ({source}); they count from 1")


MODEL_OPTIONS: dict[str, type[ModelOptions]] = {
    "ADRRec": ADRRecOptions,
    "AWRSR": AWRSROptions,
    "HSTU": HSTUOptions,
    "MEANTIME": MEANTIMEOptions,
    "Popularity": PopularityOptions,
    "STOSA": STOSAOptions,
    "TiSASRec": TiSASRecOptions,
}
"""Options of each of our models, by its name."""
