"""What values options may have: a rule for each option, and for options that depend on each other.

Defaults are not here but in ``properties/*.yaml``; every option there has its rule here.
"""

import difflib
import importlib.util
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recbole_adrrec.errors import OptionError
from recbole_adrrec.times import seconds

SMOOTH_KERNELS = frozenset({"exponential", "log1p"})
"""Kernels whose scores ``grid_points`` interpolates."""

BIAS_KERNELS = frozenset({"gap_bias", "distance_bias"})
"""Kernels that are a bias for each bucket of pairs."""

TIME_KERNELS = frozenset({"day", "hour", "weekday", "month", "sinusoid", "exponential", "log1p", "gap_bias"})
"""Kernels that read times: without a unit of time they mean nothing."""


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.7) -> str | None:
    """Find the candidate most like ``name``, if any is near; case and ``-`` for ``_`` don't count."""
    plain = {candidate.lower(): candidate for candidate in sorted(candidates)}
    wanted = name.lower().replace("-", "_")
    near = difflib.get_close_matches(wanted, plain, n=1, cutoff=cutoff)
    return plain[near[0]] if near else None


def suggestion(name: str, candidates: Iterable[str], cutoff: float = 0.7) -> str:
    """``"; did you mean X?"`` for the candidate nearest to ``name``, or nothing."""
    near = nearest(name, candidates, cutoff)
    return f"; did you mean {near}?" if near else ""


class Rule(Protocol):
    """What one option may be."""

    def fault(self, value: Any) -> str | None:
        """Say what is wrong with ``value`` (``"0 is not a whole number of at least 1"``), if so."""


@dataclass(frozen=True)
class Number:
    """A finite number within bounds; a bool is none."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        kind = numbers.Integral if self.whole else numbers.Real
        fits = isinstance(value, kind) and not isinstance(value, bool)
        fits = fits and math.isfinite(value)
        fits = fits and (value > self.low if self.above else value >= self.low)
        fits = fits and (value < self.high if self.below else value <= self.high)
        return None if fits else f"{value!r} is not {self._wanted()}"

    def _wanted(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if max(-self.low, self.high) < math.inf and not self.above and not self.below:
            return f"{kind} from {self.low} to {self.high}"
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.above else 'of at least'} {self.low}")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.below else 'of at most'} {self.high}")
        return f"{kind} {' and '.join(bounds)}".strip()


@dataclass(frozen=True)
class Flag:
    """True or false, nothing that merely looks so."""

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        return None if isinstance(value, bool) else f"{value!r} is neither true nor false"


@dataclass(frozen=True)
class Choice:
    """One of a few names, given as a list or as a function that finds them when they are needed."""

    names: Sequence[str] | Callable[[], Sequence[str]]
    any_case: bool = False

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        names = self.names() if callable(self.names) else self.names
        found = value.lower() if self.any_case and isinstance(value, str) else value
        if isinstance(value, str) and found in names:
            return None
        near = suggestion(value, names, cutoff=0.6) if isinstance(value, str) else ""
        return f"{value!r} is none of {', '.join(names)}{near}"


@dataclass(frozen=True)
class Text:
    """A string."""

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        return None if isinstance(value, str) else f"{value!r} is not text"


@dataclass(frozen=True)
class Token:
    """A user or item as a data file names it: text, or a whole number."""

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return None if whole or isinstance(value, str) else f"{value!r} is not a name"


@dataclass(frozen=True)
class Entries:
    """A mapping."""

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        if isinstance(value, Mapping):
            return None
        return f"{value!r} is not a mapping such as {{name: value}}"


@dataclass(frozen=True)
class ListOf:
    """A list whose entries all follow one rule."""

    entry: Rule
    or_one: bool = False
    distinct: bool = False
    filled: bool = False

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        if not isinstance(value, list | tuple):
            if self.or_one:
                return self.entry.fault(value)
            return f"{value!r} is not a list; write it as [a, b]"
        if self.filled and not value:
            return "the list is empty"
        for place, each in enumerate(value, 1):
            fault = self.entry.fault(each)
            if fault:
                return f"entry {place}: {fault}"
            if self.distinct and each in value[: place - 1]:
                return f"{each!r} is listed twice"
        return None


@dataclass(frozen=True)
class Unset:
    """Another rule, or no value at all."""

    rule: Rule

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        return None if value is None else self.rule.fault(value)


@dataclass(frozen=True)
class Anything:
    """A value that RecBole itself judges."""

    def fault(self, value: Any) -> str | None:
        """See :meth:`Rule.fault`."""
        return None


def _absolute_kernels() -> list[str]:
    from recbole_adrrec.layers.kernels import ABSOLUTE_KERNELS

    return list(ABSOLUTE_KERNELS)


def _relative_kernels() -> list[str]:
    from recbole_adrrec.layers.kernels import RELATIVE_KERNELS

    return list(RELATIVE_KERNELS)


def _gap_kernels() -> list[str]:
    return ["sinusoid", "exponential", "log1p"]


def _losses() -> list[str]:
    from recbole_adrrec.losses import LOSSES

    return list(LOSSES)


def _refinements() -> list[str]:
    from recbole_adrrec.layers.refinement import REFINEMENTS

    return ["none", *REFINEMENTS]


COUNT = Number(low=1, whole=True)
DROPOUT = Number(low=0, high=1, below=True)
POSITIVE = Number(low=0, above=True)

OVERALL_RULES: dict[str, Rule] = {
    "exact_time": Flag(),
    "time_unit_in": Unset(Choice(("s", "ms", "us"))),
    "train_rows": Choice(("prefix", "sequence")),
    "train_stride": Unset(COUNT),
    "show_user": Unset(Token()),
    "checkpoint_data": Flag(),
    "checkpoint_last": Number(low=0, whole=True),
    "resume": Unset(Text()),
}
"""Rules of the options in ``properties/overall.yaml``."""

_SHARED_RULES: dict[str, Rule] = {
    "n_layers": COUNT,
    "hidden_size": COUNT,
    "hidden_dropout_prob": DROPOUT,
    "attn_dropout_prob": DROPOUT,
    "layer_norm_eps": POSITIVE,
    "initializer_range": POSITIVE,
    "loss_type": Choice(_losses),
    "n_negatives": COUNT,
    "negatives": Choice(("own", "shared")),
    "gbce_t": Number(low=0, high=1),
    "label_smoothing": Number(low=0, high=1, below=True),
    "temperature": Unset(POSITIVE),
    "train_rows": OVERALL_RULES["train_rows"],
    "recompute": Flag(),
    "compile": Flag(),
}

_BLOCK_RULES: dict[str, Rule] = {
    "n_heads": COUNT,
    "norm_order": Choice(("post", "pre")),
    "drop_residual": Flag(),
    "input_position": Flag(),
    "input_norm": Flag(),
    "input_scale": Flag(),
    "final_norm": Flag(),
    "activation": Choice(("gelu", "gelu_tanh", "relu")),
    "inner_dropout_prob": DROPOUT,
    "item_head": Choice(("plain", "projected")),
    "mixture": Choice(("adaptive", "heads")),
    "event_layout": Choice(("auto", "padded", "grouped", "jagged")),
    "time_unit": Unset(POSITIVE),
    "kernel_freq": Unset(Number(low=1, above=True)),
}

_TREND_RULES: dict[str, Rule] = {
    "trend_rank": Number(low=0, whole=True),
    "trend_spacing": POSITIVE,
    "trend_decay": Number(low=0),
}

_MEANTIME_RULES: dict[str, Rule] = {
    **_SHARED_RULES,
    "inner_size": COUNT,
    "absolute_kernels": ListOf(Choice(_absolute_kernels)),
    "day_spacing": Unset(COUNT),
    "relative_kernels": ListOf(Choice(_gap_kernels)),
    "time_unit": POSITIVE,
    "kernel_freq": Number(low=1, above=True),
    "grid_points": Unset(COUNT),
    "objective": Choice(("cloze",)),
    "use_query_time": Flag(),
    "mask_ratio": Number(low=0, high=1, above=True, below=True),
}

_TISASREC_RULES: dict[str, Rule] = {
    **_SHARED_RULES,
    "n_heads": COUNT,
    "time_span": COUNT,
    "published_padding_attention": Flag(),
}

_STOSA_RULES: dict[str, Rule] = {
    **{name: rule for name, rule in _SHARED_RULES.items() if name not in ("gbce_t", "temperature")},
    "n_heads": COUNT,
    "inner_size": COUNT,
    "pvn_weight": Number(low=0),
    "published_mean_bypass": Flag(),
}

MODEL_RULES: dict[str, dict[str, Rule]] = {
    "MEANTIME": _MEANTIME_RULES,
    "ADRRec": {
        **_MEANTIME_RULES,
        **_BLOCK_RULES,
        **_TREND_RULES,
        "relative_kernels": ListOf(Choice(_relative_kernels)),
        "n_heads": Unset(COUNT),
        "max_distance": COUNT,
        "objective": Choice(("causal", "cloze")),
        "lni_form": Choice(("states", "predictions", "noisy")),
        "lni_weight": Number(low=0),
        "lni_sigma": POSITIVE,
        "lni_noise": Choice(("gaussian", "uniform", "in_manifold")),
        "lni_layers": Unset(ListOf(COUNT, distinct=True, filled=True)),
        "lni_layer_weights": Unset(ListOf(Number(low=0), filled=True)),
        "lni_stop_gradient": Flag(),
        "train_batch_size": COUNT,
    },
    "TiSASRec": _TISASREC_RULES,
    "STOSA": _STOSA_RULES,
    "AWRSR": {
        **{name: rule for name, rule in _MEANTIME_RULES.items() if name not in ("objective", "mask_ratio")},
        **_TISASREC_RULES,
        **_STOSA_RULES,
        **_BLOCK_RULES,
        **_TREND_RULES,
        "relative_kernels": ListOf(Choice(_relative_kernels)),
        "max_distance": COUNT,
        "refinement": Choice(_refinements),
        "backbone": Choice(("sasrec", "stosa", "tisasrec", "mix")),
        "refinement_rank": Unset(COUNT),
        "refinement_layers": Unset(ListOf(COUNT, distinct=True, filled=True)),
        "refinement_heads": Unset(ListOf(COUNT, distinct=True, filled=True)),
        "refinement_maps": Choice(("distance", "place")),
        "refinement_start": Unset(Number(low=0, high=1, above=True, below=True)),
        "refinement_value_map": Flag(),
    },
}
"""Rules of the options in ``properties/model/<Model>.yaml``, model by model."""

SPLITS = ("LS", "RS", "TS", "GT")
LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")

RECBOLE_RULES: dict[str, Rule] = {
    "gpu_id": Anything(),
    "worker": Number(low=0, whole=True),
    "use_gpu": Flag(),
    "seed": Number(low=0, high=2**32 - 1, whole=True),
    "state": Unset(Choice(("info", "debug", "error", "warning", "critical"), any_case=True)),
    "reproducibility": Flag(),
    "data_path": Text(),
    "checkpoint_dir": Text(),
    "show_progress": Flag(),
    "save_dataset": Flag(),
    "save_dataloaders": Flag(),
    "log_wandb": Flag(),
    "shuffle": Flag(),
    "epochs": Number(low=0, whole=True),
    "train_batch_size": COUNT,
    "eval_batch_size": COUNT,
    "learner": Choice(LEARNERS, any_case=True),
    "learning_rate": POSITIVE,
    "weight_decay": Number(low=0),
    "eval_step": Number(low=0, whole=True),
    "stopping_step": Number(low=0, whole=True),
    "clip_grad_norm": Unset(Entries()),
    "loss_decimal_place": Number(low=0, whole=True),
    "metric_decimal_place": Number(low=0, whole=True),
    "enable_amp": Flag(),
    "enable_scaler": Flag(),
    "eval_args": Entries(),
    "repeatable": Flag(),
    "topk": ListOf(COUNT, or_one=True, filled=True),
    "MAX_ITEM_LIST_LENGTH": COUNT,
    "load_col": Unset(Entries()),
    "unload_col": Unset(Entries()),
    "val_interval": Unset(Entries()),
    "threshold": Unset(Entries()),
    "normalize_all": Unset(Flag()),
    "normalize_field": Unset(ListOf(Text())),
    "nproc": COUNT,
}
"""Rules of RecBole's options that every training needs, and that RecBole checks late or never."""

_FIELDS: dict[str, Rule] = {name: Text() for name in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")}
_JUDGED_BY_RECBOLE = ("user_inter_num_interval", "item_inter_num_interval", "rm_dup_inter")
_CHECKED_TOGETHER = ("metrics", "valid_metric")
_OF_DATA = (
    *("eval_args", "repeatable", "topk", "load_col", "unload_col"),
    *("val_interval", "threshold", "normalize_all", "normalize_field"),
)

DATASET_RULES: dict[str, Rule] = {
    **{name: RECBOLE_RULES[name] for name in _OF_DATA},
    **_FIELDS,
    **{name: Anything() for name in (*_JUDGED_BY_RECBOLE, *_CHECKED_TOGETHER)},
}
"""Rules of the options in ``properties/dataset/<name>.yaml``, all of them RecBole's."""


def rules_of(model: str) -> dict[str, Rule]:
    """Rules of every option that is checked for ``model``, ours or one of RecBole's."""
    return {**RECBOLE_RULES, **_FIELDS, **OVERALL_RULES, **MODEL_RULES.get(model, {})}


def check_values(config: Mapping[str, Any], model: str) -> None:
    """Refuse values that no run could use, before any data is read.

    Parameters
    ----------
    config : Mapping
        The options of a run, RecBole's and ours; those that are absent aren't checked.
    model : str
        Name of the model, ours or RecBole's.

    Raises
    ------
    OptionError
        Naming the option, its value and what would be right.
    """
    for name, rule in rules_of(model).items():
        if name in config:
            fault = rule.fault(config[name])
            if fault:
                raise OptionError(f"{name}: {fault}")
    _check_gpu(config)
    _check_metrics(config)
    _check_eval_args(config, model)
    _check_negatives(config, model)
    _check_rows(config, model)
    if model in MODEL_RULES:
        backbone = _backbone(config, model)
        if backbone == "mix":
            _check_kernels(config, model)
        else:
            _check_heads(config)
        if "lni_layers" in MODEL_RULES[model]:
            _check_noise(config)
        _check_loss(config, backbone)
        _check_time(config, backbone)
        _check_transform(config, model)
        _check_layout(config, backbone)
    if model == "AWRSR":
        _check_refinement(config)
        _check_backbone_options(config)


def _backbone(config: Mapping[str, Any], model: str) -> str:
    """What a model of ours is built on, by the names of AWRSR's ``backbone``."""
    if model == "AWRSR":
        return str(config.get("backbone", ""))
    return {"TiSASRec": "tisasrec", "STOSA": "stosa"}.get(model, "mix")


def _check_gpu(config: Mapping[str, Any]) -> None:
    if "gpu_id" not in config:
        return
    value = config["gpu_id"]
    parts = value if isinstance(value, tuple) else str(value).split(",")
    ids = [str(part).strip() for part in parts]
    named = isinstance(value, str | int | tuple) and not isinstance(value, bool)
    if not named or not all(part.isdigit() for part in ids if ids != [""]):
        raise OptionError(f"gpu_id: {value!r} names no GPU; give one as '0', several as '0,1', none as ''")


def _metric_names() -> list[str]:
    """Names of RecBole's metrics, from its source, without importing it."""
    spec = importlib.util.find_spec("recbole")
    places = spec.submodule_search_locations if spec else None
    if not places:
        return []
    source = Path(next(iter(places)), "evaluator", "metrics.py").read_text(encoding="utf-8")
    return re.findall(r"^class (\w+)\(", source, re.MULTILINE)


VALUE_METRICS = frozenset({"auc", "gauc", "mae", "rmse", "logloss"})
"""Metrics without a length of list: their results aren't named ``metric@k``."""


def _check_metrics(config: Mapping[str, Any]) -> None:
    if "metrics" not in config:
        return
    metrics = config["metrics"]
    metrics = [metrics] if isinstance(metrics, str) else metrics
    fault = ListOf(Text(), filled=True).fault(metrics)
    if fault:
        raise OptionError(f"metrics: {fault}")
    names = _metric_names()
    known = {name.lower() for name in names}
    for metric in metrics:
        if metric.lower() not in known:
            raise OptionError(f"metrics: {metric!r} is no metric of RecBole{suggestion(metric, names, 0.5)}")
    if "valid_metric" not in config or "topk" not in config or config.get("eval_step", 1) == 0:
        return
    topk = config["topk"]
    _check_valid_metric(config["valid_metric"], metrics, topk if isinstance(topk, list | tuple) else [topk])


def _check_valid_metric(valid_metric: Any, metrics: Sequence[str], topk: Sequence[int]) -> None:
    results = [
        name
        for metric in metrics
        for name in ([metric] if metric.lower() in VALUE_METRICS else [f"{metric}@{k}" for k in topk])
    ]
    known = {name.lower() for name in results}
    if not isinstance(valid_metric, str) or valid_metric.lower() not in known:
        raise OptionError(f"valid_metric: {valid_metric!r} is not computed; metrics and topk give {', '.join(results)}")


def _check_eval_args(config: Mapping[str, Any], model: str) -> None:
    known = ("split", "group_by", "order", "mode")
    eval_args = config.get("eval_args")
    if eval_args is None:
        return
    for name in eval_args:
        if name not in known:
            raise OptionError(f"eval_args: {name!r} is none of {', '.join(known)}{suggestion(str(name), known, 0.6)}")
    split = eval_args.get("split")
    if "split" in eval_args and not (isinstance(split, Mapping) and len(split) == 1 and next(iter(split)) in SPLITS):
        raise OptionError(
            f"eval_args: split {split!r} should be {{'LS': 'valid_and_test'}}, {{'RS': [shares]}}, {{'TS': [shares]}} "
            "or {'GT': {shares: [0.8, 0.1, 0.1], targets: last}}"
        )
    if isinstance(split, Mapping) and "GT" in split:
        _check_global_split(split["GT"], config)
    mode = eval_args.get("mode", "full")
    for each in mode.values() if isinstance(mode, Mapping) else [mode]:
        if not re.fullmatch(r"full|labeled|(uni|pop)[1-9]\d*", str(each)):
            raise OptionError(
                f"eval_args: mode {each!r} should be full, labeled, or uni or pop with a number of items, as in uni100"
            )
    if model in MODEL_RULES and eval_args.get("order") != "TO":
        raise OptionError(
            f"eval_args: {dict(eval_args)!r} does not order events by time; {model} needs order TO, as in "
            "{split: {LS: valid_and_test}, order: TO, group_by: user, mode: full} (given eval_args replace all of them)"
        )


GLOBAL_SPLIT_RULES: dict[str, Rule] = {
    "shares": Unset(ListOf(POSITIVE)),
    "times": Unset(ListOf(Anything())),
    "targets": Choice(("last", "first", "successive")),
    "cold_items": Choice(("drop", "keep")),
    "cold_users": Choice(("keep", "drop")),
}
"""Rules of the entries of ``eval_args: {split: {GT: {...}}}``; see :mod:`recbole_adrrec.data.splits`."""


def _check_global_split(given: Any, config: Mapping[str, Any]) -> None:
    if config.get("exact_time") is False:
        raise OptionError("eval_args: split GT compares times in seconds, so it needs exact_time true")
    fault = Unset(Entries()).fault(given)
    if fault:
        raise OptionError(f"eval_args: split GT: {fault}")
    check_global_split(given or {}, "eval_args: split GT: ")


def check_global_split(given: Mapping[str, Any], where: str) -> None:
    """Refuse what a global split in time could not use.

    Parameters
    ----------
    given : Mapping
        Its entries.
    where : str
        Where they stand, the beginning of messages.

    Raises
    ------
    OptionError
        Naming the entry, its value and what would be right.
    """
    for name, value in given.items():
        rule = GLOBAL_SPLIT_RULES.get(str(name))
        if rule is None:
            near = suggestion(str(name), GLOBAL_SPLIT_RULES, 0.6)
            raise OptionError(f"{where}{name!r} is none of {', '.join(GLOBAL_SPLIT_RULES)}{near}")
        fault = rule.fault(value)
        if fault:
            raise OptionError(f"{where}{name}: {fault}")
    shares, times = given.get("shares"), given.get("times")
    if shares is not None and times is not None:
        raise OptionError(f"{where}shares and times exclude each other; leave one of them out")
    if shares is not None and len(shares) != 3:
        raise OptionError(f"{where}shares: {list(shares)!r} should be three, for training, validation and test")
    if times is not None:
        _check_moments(times, where)


def _check_moments(times: Sequence[Any], where: str) -> None:
    try:
        moments = [seconds(each) for each in times]
    except OptionError:
        moments = []
    if len(moments) != 2 or moments[0] >= moments[1]:
        raise OptionError(
            f"{where}times: {list(times)!r} should be two moments, the earlier first, when validation and test begin, "
            "as seconds since 1970 or dates such as 2014-01-31"
        )


def _samples_negatives(config: Mapping[str, Any]) -> bool:
    """Whether ``train_neg_sample_args`` asks for negatives, in any form RecBole takes or makes."""
    args = config.get("train_neg_sample_args")
    if isinstance(args, Mapping):
        args = args.get("distribution", "uniform")
    return args is not None and str(args).lower() != "none"


def _check_negatives(config: Mapping[str, Any], model: str) -> None:
    if "train_neg_sample_args" not in config or "loss_type" not in config:
        return
    args, loss = config["train_neg_sample_args"], config["loss_type"]
    if args not in (None, "None") and not isinstance(args, Mapping):
        raise OptionError(
            f"train_neg_sample_args: {args!r} is not a mapping such as "
            "{distribution: uniform, sample_num: 1}, nor unset"
        )
    samples = _samples_negatives(config)
    if model in MODEL_RULES and config.get("negatives") == "shared":
        if loss != "sampled_softmax":
            raise OptionError(
                f"negatives: shared ones are compared by a softmax, but loss_type is {loss}; choose negatives own, or "
                "loss_type sampled_softmax"
            )
        if samples:
            raise OptionError(
                f"train_neg_sample_args: {args!r} contradicts negatives shared, which the model draws itself "
                "(n_negatives for each batch); leave it out, or choose negatives own"
            )
        return
    if loss == "CE" and samples:
        raise OptionError(
            f"train_neg_sample_args: {args!r} contradicts loss_type CE, which compares with all "
            "items; leave it out, or choose loss_type BPR"
        )
    if loss in _losses() and loss != "CE" and not samples:
        raise OptionError(
            f"train_neg_sample_args: {args!r} contradicts loss_type {loss}, which needs sampled "
            "negatives; leave it out, or choose loss_type CE"
        )


def _check_rows(config: Mapping[str, Any], model: str) -> None:
    length = config.get("MAX_ITEM_LIST_LENGTH")
    stride = config.get("train_stride")
    if length is not None and stride is not None and stride > length:
        raise OptionError(
            f"train_stride: {stride} is more than MAX_ITEM_LIST_LENGTH ({length}), so events "
            f"between two windows would never be trained; choose 1 to {length}"
        )
    cloze = config.get("objective") == "cloze"
    if cloze and length == 1:
        raise OptionError(
            "MAX_ITEM_LIST_LENGTH: 1 leaves a masked event nothing to be predicted from; "
            "choose at least 2, or objective causal"
        )
    if config.get("train_rows") != "sequence":
        return
    if model not in MODEL_RULES:
        raise OptionError(
            f"train_rows: {model} has no loss at every position of a window; choose prefix, or one "
            f"of {', '.join(sorted(MODEL_RULES))}"
        )
    args = config.get("train_neg_sample_args")
    if isinstance(args, Mapping) and args.get("dynamic"):
        raise OptionError(
            "train_neg_sample_args: dynamic negatives need a row for each target; choose dynamic "
            "false, or train_rows prefix"
        )


def _kernels(config: Mapping[str, Any]) -> list[str]:
    return [*config.get("absolute_kernels", []), *config.get("relative_kernels", [])]


def _check_kernels(config: Mapping[str, Any], model: str) -> None:
    if "absolute_kernels" not in config or "relative_kernels" not in config:
        return
    if config.get("grid_points") is not None and not SMOOTH_KERNELS & set(config["relative_kernels"]):
        raise OptionError(
            f"grid_points: {config['grid_points']} means nothing without exponential or log1p among relative_kernels, "
            f"{config['relative_kernels']}; leave it out"
        )
    paired = "sinusoid" in config["relative_kernels"]
    if config.get("mixture") == "adaptive":
        _check_heads({**config, "n_heads": config.get("n_heads") or 2}, paired)
        return
    heads = len(_kernels(config))
    if heads == 0:
        raise OptionError(
            f"absolute_kernels, relative_kernels: both are empty, but {model} has one attention "
            "head per kernel and needs at least one"
        )
    biases = BIAS_KERNELS & set(config["relative_kernels"])
    if biases:
        raise OptionError(
            f"relative_kernels: {', '.join(sorted(biases))} adds to the scores of all heads and has none of its own; "
            "choose mixture adaptive, or another kernel"
        )
    if model == "ADRRec" and config.get("n_heads") is not None:
        raise OptionError(
            f"n_heads: {config['n_heads']} means nothing with mixture heads, which has one head for each "
            f"of its {heads} kernels; leave it out, or choose mixture adaptive"
        )
    width = config.get("hidden_size", 2 * heads)
    _check_width(width, heads, paired, f"{heads} kernels (heads)", ", or change absolute_kernels/relative_kernels")


def _check_heads(config: Mapping[str, Any], paired: bool = False) -> None:
    width, heads = config.get("hidden_size"), config.get("n_heads")
    if width is not None and heads is not None:
        _check_width(width, heads, paired, f"n_heads, {heads}")


def _check_width(width: int, heads: int, paired: bool, among: str, remedy: str = "") -> None:
    """Refuse a width that heads can't share, or, where ``paired``, an odd one."""
    step = math.lcm(heads, 2) if paired else heads
    if width % step == 0:
        return
    below = width // step * step
    near = f"{below} or {below + step}" if below else f"{step}"
    odd = "is odd, but the sinusoid kernel pairs sines with cosines"
    fault = f"cannot be divided among {among}" if width % heads else odd
    raise OptionError(f"hidden_size: {width} {fault}; choose a multiple of {step}, for instance {near}{remedy}")


def _check_layout(config: Mapping[str, Any], backbone: str) -> None:
    layout = config.get("event_layout", "auto")
    if layout in ("auto", "padded"):
        return
    for name in ("compile", "published_padding_attention"):
        if config.get(name):
            raise OptionError(f"event_layout: {layout} leaves padding out, which {name} needs; choose auto or padded")
    if layout != "jagged":
        return
    reasons = [
        f"{name} {config.get(name)!r}"
        for name, fits in (
            ("attn_dropout_prob", not config.get("attn_dropout_prob")),
            ("relative_kernels", backbone != "mix" or not config.get("relative_kernels")),
            ("refinement", config.get("refinement", "none") == "none"),
            ("recompute", not config.get("recompute")),
            ("backbone", backbone in ("sasrec", "mix")),
        )
        if not fits
    ]
    if reasons:
        raise OptionError(
            f"event_layout: jagged computes products of queries and keys alone, without {', '.join(reasons)}; choose "
            "auto, or change those"
        )


def _check_loss(config: Mapping[str, Any], backbone: str) -> None:
    loss = config.get("loss_type")
    if backbone == "stosa" and loss in ("BCE", "gBCE"):
        raise OptionError(
            f"loss_type: {loss} reads a score above 0 as likely, but STOSA's are minus a distance and never above 0; "
            "choose BPR, CE or sampled_softmax"
        )
    smoothing = config.get("label_smoothing")
    if smoothing and loss in ("BPR", "BCE", "gBCE"):
        raise OptionError(
            f"label_smoothing: {smoothing} spreads a label over the candidates of a softmax, but loss_type {loss} has "
            "none; choose 0, or loss_type CE or sampled_softmax"
        )
    for name, off in (("temperature", None), ("trend_rank", 0)):
        if backbone == "stosa" and config.get(name, off) != off:
            raise OptionError(
                f"{name}: {config[name]!r} goes with scores that are products, but STOSA's are minus a distance; "
                "leave it out"
            )


def _check_refinement(config: Mapping[str, Any]) -> None:
    kind = config.get("refinement")
    if kind is None:
        return
    for name in ("refinement_maps", "refinement_rank", "refinement_layers", "refinement_heads"):
        if kind == "none" and config.get(name) not in (None, "distance"):
            raise OptionError(
                f"{name}: {config[name]!r} means nothing with refinement none; leave it out, or choose a refinement"
            )
    if config.get("refinement_start") is not None and kind != "additive":
        raise OptionError(
            f"refinement_start: {config['refinement_start']!r} is a part of refinement additive, but refinement is "
            f"{kind}; leave it out, or choose refinement additive"
        )
    if config.get("refinement_value_map") and kind != "value":
        raise OptionError(
            f"refinement_value_map: true is a part of refinement value, but refinement is {kind}; leave it out, or "
            "choose refinement value"
        )
    if kind != "none" and config.get("MAX_ITEM_LIST_LENGTH") == 1:
        raise OptionError(
            "MAX_ITEM_LIST_LENGTH: 1 leaves one attention weight, always 1, and nothing to refine; choose at least 2, "
            "or refinement none"
        )
    own_heads = config.get("backbone") == "mix" and config.get("mixture") == "heads"
    heads = len(_kernels(config)) if own_heads else config.get("n_heads")
    for name, most, source in (
        ("refinement_layers", config.get("n_layers"), "n_layers"),
        ("refinement_heads", heads, "one head for each kernel" if own_heads else "n_heads"),
    ):
        chosen = config.get(name)
        if chosen is not None and most is not None and max(chosen) > most:
            what = name.removeprefix("refinement_").removesuffix("s")
            raise OptionError(f"{name}: there is no {what} {max(chosen)} among {most} ({source}); they count from 1")


def _check_backbone_options(config: Mapping[str, Any]) -> None:
    for name, owner, reason in (
        ("published_padding_attention", "tisasrec", "only TiSASRec's public code lets padded keys take part"),
        ("published_mean_bypass", "stosa", "only STOSA's states have means and covariances"),
        ("use_query_time", "mix", "only its kernels, or a trend, read the time at which a recommendation is asked for"),
        ("grid_points", "mix", "only it has kernels that can be interpolated"),
    ):
        backbone = config.get("backbone", owner)
        if name == "use_query_time" and config.get("trend_rank"):
            continue
        if config.get(name) and backbone != owner:
            raise OptionError(
                f"{name}: {config[name]!r} makes no sense with backbone {backbone}: {reason}; leave it out, or choose "
                f"{owner}"
            )


def _check_noise(config: Mapping[str, Any]) -> None:
    form = config.get("lni_form", "states")
    for name, forms in (
        ("lni_layer_weights", ("states",)),
        ("lni_stop_gradient", ("states", "predictions")),
    ):
        if config.get(name) and form not in forms:
            raise OptionError(
                f"{name}: {config[name]!r} means nothing with lni_form {form}; leave it out, or choose lni_form "
                f"{' or '.join(forms)}"
            )
    depth = config.get("n_layers")
    layers = config.get("lni_layers")
    weights = config.get("lni_layer_weights")
    if depth is None:
        return
    if layers is not None and max(layers) > depth:
        raise OptionError(f"lni_layers: there is no layer {max(layers)} among n_layers ({depth}); layers count from 1")
    noisy = depth if layers is None else len(layers)
    if weights is not None and len(weights) != noisy:
        source = "n_layers" if layers is None else "lni_layers"
        raise OptionError(f"lni_layer_weights: {len(weights)} weights for {noisy} layers ({source}); give one for each")


def _check_time(config: Mapping[str, Any], backbone: str) -> None:
    time_field = config.get("TIME_FIELD", "timestamp")
    fields = config.get("normalize_field") or []
    scaled = time_field in fields or (config.get("normalize_all") and not fields)
    reading = [name for name in _kernels(config) if name in TIME_KERNELS] if backbone == "mix" else []
    if backbone == "tisasrec":
        reading = ["TiSASRec's intervals"]
    if config.get("trend_rank"):
        reading.append("the trend")
    if config.get("exact_time", True) or not scaled or not reading:
        return
    option = "normalize_field" if time_field in fields else "normalize_all"
    raise OptionError(
        f"{option}: with exact_time false it scales {time_field} to [0, 1], where times have no "
        f"unit, but {', '.join(reading)} read times in seconds; choose normalize_all false and no "
        f"normalize_field with {time_field}, or exact_time true"
    )


def _check_transform(config: Mapping[str, Any], model: str) -> None:
    transform = config.get("transform")
    if transform not in (None, "user_defined"):
        raise OptionError(
            f"transform: {transform!r} changes items but not their times, so {model} can't take it; leave it out"
        )
