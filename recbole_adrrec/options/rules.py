"""Checks of the options of a run, before any data is read: each for itself, then those that depend on each other."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

from recbole_adrrec.errors import OptionError
from recbole_adrrec.options.kinds import Loss
from recbole_adrrec.options.names import suggestion
from recbole_adrrec.options.rule_types import (
    ANYTHING,
    COUNT,
    ENTRIES,
    FLAG,
    NATURAL,
    POSITIVE,
    TEXT,
    TOKEN,
    Rule,
    check,
    choice,
    list_of,
    number,
    rule_of,
    unset_or,
)
from recbole_adrrec.options.schema import MODEL_OPTIONS, ModelOptions
from recbole_adrrec.times import seconds

OVERALL_RULES: dict[str, Rule] = {
    "exact_time": FLAG,
    "time_unit_in": unset_or(choice("s", "ms", "us")),
    "tie_order": choice("file", "random"),
    "tie_seed": NATURAL,
    "train_rows": choice("prefix", "sequence"),
    "train_stride": unset_or(COUNT),
    **dict.fromkeys(("epoch_steps", "eval_users"), unset_or(COUNT)),
    "event_store": choice("memory", "mapped"),
    "show_user": unset_or(TOKEN),
    "checkpoint_data": FLAG,
    "checkpoint_last": NATURAL,
    "resume": unset_or(TEXT),
    "init_from": unset_or(TEXT),
}
"""Rules of the options in ``properties/overall.yaml``."""

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")

RECBOLE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("use_gpu", "reproducibility", "show_progress", "save_dataset", "save_dataloaders"), FLAG),
    **dict.fromkeys(("log_wandb", "shuffle", "enable_amp", "enable_scaler", "repeatable"), FLAG),
    **dict.fromkeys(("worker", "epochs", "eval_step", "stopping_step"), NATURAL),
    **dict.fromkeys(("loss_decimal_place", "metric_decimal_place"), NATURAL),
    **dict.fromkeys(("train_batch_size", "eval_batch_size", "MAX_ITEM_LIST_LENGTH", "nproc"), COUNT),
    **dict.fromkeys(("data_path", "checkpoint_dir", "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"), TEXT),
    **dict.fromkeys(("clip_grad_norm", "load_col", "unload_col", "val_interval", "threshold"), unset_or(ENTRIES)),
    **dict.fromkeys(("world_size", "group_offset"), number(whole=True)),
    "gpu_id": ANYTHING,
    "seed": number(low=0, high=2**32 - 1, whole=True),
    "state": unset_or(choice("info", "debug", "error", "warning", "critical", any_case=True)),
    "learner": choice(*LEARNERS, any_case=True),
    "learning_rate": POSITIVE,
    "weight_decay": number(low=0),
    "eval_args": ENTRIES,
    "topk": list_of(COUNT, or_one=True, filled=True),
    "normalize_all": unset_or(FLAG),
    **dict.fromkeys(("normalize_field", "benchmark_filename"), unset_or(list_of(TEXT))),
}
"""Rules of RecBole's options that every training needs, and that RecBole checks late or never."""

GLOBAL_SPLIT_RULES: dict[str, Rule] = {
    "shares": unset_or(list_of(POSITIVE)),
    "times": unset_or(list_of(ANYTHING)),
    "train_from": ANYTHING,
    "targets": choice("last", "first", "successive"),
    "cold_items": choice("drop", "keep"),
    "cold_users": choice("keep", "drop"),
}
"""Rules of the entries of ``eval_args: {split: {GT: {...}}}``; see :mod:`recbole_adrrec.data.splits`."""

MODEL_RULES = {name: each.rules() for name, each in MODEL_OPTIONS.items()}
"""Rules of the options in ``properties/model/<Model>.yaml``, model by model."""

NEED_MEMORY = (
    *("val_interval", "rm_dup_inter", "threshold", "normalize_field", "discretization", "preload_weight", "transform"),
    *("benchmark_filename", "additional_feat_suffix", "alias_of_user_id", "alias_of_item_id", "unused_col"),
    *("save_dataset", "dataset_save_path", "init_from"),
)
"""Options that read or change events in memory, so that columns on the disk can't take them."""

COUNTING_METRICS = ("averagepopularity", "tailpercentage", "novelty", "intralistdiversity")
"""Metrics that count all training rows."""

SPLITS = ("LS", "RS", "TS", "GT")
VALUE_METRICS = frozenset({"auc", "gauc", "mae", "rmse", "logloss"})
"""Metrics without a length of list: their results aren't named ``metric@k``."""


def rules_of(model: str) -> dict[str, Rule]:
    """Rules of every option that is checked for ``model``, ours or one of RecBole's."""
    return {**RECBOLE_RULES, **OVERALL_RULES, **MODEL_RULES.get(model, {})}


def check_option(model: str, name: str, value: Any) -> None:
    """Refuse a value that an option of a model cannot have with an OptionError; one without a rule may have any."""
    if rule := rules_of(model).get(name):
        check(rule, name, value)


def check_values(config: Mapping[str, Any], model: str) -> None:
    """Refuse values that no run could use, before any data is read, with an OptionError.

    ``config`` has options of RecBole and ours; absent ones aren't checked, and those of a model have their defaults.
    """
    for name, rule in rules_of(model).items():
        if name in config:
            check(rule, name, config[name])
    own = MODEL_OPTIONS[model].read(config) if model in MODEL_OPTIONS else None
    _check_gpu(config)
    _check_metrics(config)
    _check_eval_args(config, own)
    _check_negatives(config, own)
    _check_rows(config, own, model)
    if config.get("event_store") == "mapped":
        _check_mapped(config, model)
    if own is not None:
        _check_time(config, own)
        if config.get("transform") not in (None, "user_defined"):
            raise OptionError(
                f"transform: {config['transform']!r} changes items but not their times, so {model} can't take it; "
                "leave it out"
            )


def _check_gpu(config: Mapping[str, Any]) -> None:
    value = config.get("gpu_id", "")
    parts = value if isinstance(value, tuple) else str(value).split(",")
    ids = [str(part).strip() for part in parts]
    named = isinstance(value, str | int | tuple) and not isinstance(value, bool)
    if not named or not all(part.isdigit() for part in ids if ids != [""]):
        raise OptionError(f"gpu_id: {value!r} names no GPU; give one as '0', several as '0,1', none as ''")


def _check_metrics(config: Mapping[str, Any]) -> None:
    if "metrics" not in config:
        return
    metrics = config["metrics"]
    metrics = [metrics] if isinstance(metrics, str) else metrics
    check(list_of(TEXT, filled=True), "metrics", metrics)
    known = importlib.import_module("recbole.evaluator.register").metrics_dict
    for metric in metrics:
        if metric.lower() not in known:
            near = suggestion(metric, (each.__name__ for each in known.values()), 0.5)
            raise OptionError(f"metrics: {metric!r} is no metric of RecBole{near}")
    if "valid_metric" not in config or "topk" not in config or config.get("eval_step", 1) == 0:
        return
    wanted, topk = config["valid_metric"], config["topk"]
    lengths = topk if isinstance(topk, list | tuple) else [topk]
    results = [
        name
        for metric in metrics
        for name in ([metric] if metric.lower() in VALUE_METRICS else [f"{metric}@{k}" for k in lengths])
    ]
    if not isinstance(wanted, str) or wanted.lower() not in [name.lower() for name in results]:
        raise OptionError(f"valid_metric: {wanted!r} is not computed; metrics and topk give {', '.join(results)}")


def _check_eval_args(config: Mapping[str, Any], own: ModelOptions | None) -> None:
    eval_args = config.get("eval_args")
    if eval_args is None:
        return
    for name in eval_args:
        check(choice("split", "group_by", "order", "mode"), "eval_args", name)
    split = eval_args.get("split")
    if "split" in eval_args and not (isinstance(split, Mapping) and len(split) == 1 and next(iter(split)) in SPLITS):
        raise OptionError(
            f"eval_args: split {split!r} should be {{'LS': 'valid_and_test'}}, {{'RS': [shares]}}, {{'TS': [shares]}} "
            "or {'GT': {shares: [0.8, 0.1, 0.1], targets: last}}"
        )
    if isinstance(split, Mapping) and "GT" in split:
        if config.get("exact_time") is False:
            raise OptionError("eval_args: split GT compares times in seconds, so it needs exact_time true")
        check(unset_or(ENTRIES), "eval_args: split GT", split["GT"])
        check_global_split(split["GT"] or {}, "eval_args: split GT: ")
    mode = eval_args.get("mode", "full")
    for each in mode.values() if isinstance(mode, Mapping) else [mode]:
        if not re.fullmatch(r"full|labeled|(uni|pop)[1-9]\d*", str(each)):
            raise OptionError(
                f"eval_args: mode {each!r} should be full, labeled, or uni or pop with a number of items, as in uni100"
            )
    if own is not None and eval_args.get("order") != "TO":
        raise OptionError(
            f"eval_args: {dict(eval_args)!r} does not order events by time; {own.model} needs order TO, as in "
            "{split: {LS: valid_and_test}, order: TO, group_by: user, mode: full} (given eval_args replace all of them)"
        )


def check_global_split(given: Mapping[str, Any], where: str) -> None:
    """Refuse entries that a global split in time could not use; messages begin with ``where`` they stand."""
    for name, value in given.items():
        if fault := choice(*GLOBAL_SPLIT_RULES)(name):
            raise OptionError(f"{where}{fault}")
        check(GLOBAL_SPLIT_RULES[name], f"{where}{name}", value)
    shares, times = given.get("shares"), given.get("times")
    if shares is not None and times is not None:
        raise OptionError(f"{where}shares and times exclude each other; leave one of them out")
    if shares is not None and len(shares) != 3:
        raise OptionError(f"{where}shares: {list(shares)!r} should be three, for training, validation and test")
    if given.get("train_from") is not None:
        seconds(given["train_from"], f"{where}train_from")
    if times is not None:
        try:
            moments = [seconds(each) for each in times]
        except OptionError:
            moments = []
        if len(moments) != 2 or moments[0] >= moments[1]:
            raise OptionError(
                f"{where}times: {list(times)!r} should be two moments, the earlier first, when validation and test "
                "begin, as seconds since 1970 or dates such as 2014-01-31"
            )


def _check_negatives(config: Mapping[str, Any], own: ModelOptions | None) -> None:
    if "train_neg_sample_args" not in config or "loss_type" not in config:
        return
    args, loss = config["train_neg_sample_args"], config["loss_type"]
    if args not in (None, "None") and not isinstance(args, Mapping):
        raise OptionError(
            f"train_neg_sample_args: {args!r} is not a mapping such as {{distribution: uniform, sample_num: 1}}, nor "
            "unset"
        )
    distribution = args.get("distribution", "uniform") if isinstance(args, Mapping) else None
    samples = distribution is not None and str(distribution).lower() != "none"
    shared = own is not None and own.negatives == "shared"
    if samples and (shared or loss == "CE"):
        contradicted = "negatives shared, which the model draws itself" if shared else "loss_type CE"
        remedy = "negatives own" if shared else "loss_type BPR"
        raise OptionError(
            f"train_neg_sample_args: {args!r} contradicts {contradicted}; leave it out, or choose {remedy}"
        )
    if not samples and not shared and loss != "CE" and rule_of(Loss)(loss) is None:
        raise OptionError(
            f"train_neg_sample_args: {args!r} contradicts loss_type {loss}, which needs sampled negatives; leave it "
            "out, or choose loss_type CE"
        )


def _check_rows(config: Mapping[str, Any], own: ModelOptions | None, model: str) -> None:
    length, stride = config.get("MAX_ITEM_LIST_LENGTH"), config.get("train_stride")
    if length is not None and stride is not None and stride > length:
        raise OptionError(
            f"train_stride: {stride} is more than MAX_ITEM_LIST_LENGTH ({length}), so events between two windows would "
            f"never be trained; choose 1 to {length}"
        )
    if own is not None and length == 1:
        if own.objective == "cloze":
            raise OptionError(
                "MAX_ITEM_LIST_LENGTH: 1 leaves a masked event nothing to be predicted from; choose at least 2, or "
                "objective causal"
            )
        if getattr(own, "refinement", "none") != "none":
            raise OptionError(
                "MAX_ITEM_LIST_LENGTH: 1 leaves one attention weight, always 1, and nothing to refine; choose at least "
                "2, or refinement none"
            )
    if config.get("train_rows") != "sequence":
        return
    if own is None:
        raise OptionError(
            f"train_rows: {model} has no loss at every position of a window; choose prefix, or one of "
            f"{', '.join(MODEL_OPTIONS)}"
        )
    args = config.get("train_neg_sample_args")
    if isinstance(args, Mapping) and args.get("dynamic"):
        raise OptionError(
            "train_neg_sample_args: dynamic negatives need a row for each target; choose dynamic false, or train_rows "
            "prefix"
        )


def _check_mapped(config: Mapping[str, Any], model: str) -> None:
    """Refuse what columns on the disk can't take."""
    if model == "Popularity" or config.get("train_rows") != "sequence":
        raise OptionError(
            f"event_store: mapped gives windows to models that learn from them, and {model} takes "
            f"{'all events at once' if model == 'Popularity' else 'train_rows prefix'}; choose event_store memory, or "
            f"{', '.join(name for name in MODEL_OPTIONS if name != 'Popularity')} with train_rows sequence"
        )
    split = (config.get("eval_args") or {}).get("split") or {}
    columns = (config.get("load_col") or {}).get("inter")
    wanted = [config.get(name) for name in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
    metrics = config.get("metrics") or []
    counting = [
        each for each in ([metrics] if isinstance(metrics, str) else metrics) if each.lower() in COUNTING_METRICS
    ]
    mode = (config.get("eval_args") or {}).get("mode")
    modes = mode.values() if isinstance(mode, Mapping) else [mode]
    faults: dict[str, Any] = {
        "exact_time": config.get("exact_time") is False and "sorts by exact times alone",
        "eval_args": ("LS" not in split and "splits by leave-one-out (LS) alone")
        or (any(str(each).startswith("pop") for each in modes) and "draws negatives uniformly (uni) alone"),
        "load_col": isinstance(columns, list)
        and {*columns} != {*wanted}
        and f"has the columns {', '.join(map(str, wanted))} alone",
        "metrics": counting and f"has no count of the training rows, which {counting[0]} needs",
        "train_neg_sample_args": (config.get("train_neg_sample_args") or {}).get("distribution") == "popularity"
        and "draws negatives uniformly alone",
    }
    for name in NEED_MEMORY:
        faults[name] = config.get(name) and "doesn't take it"
    for name, fault in faults.items():
        if fault:
            raise OptionError(
                f"event_store: mapped {fault}, and {name} is {config.get(name)!r}; change it, or choose event_store "
                "memory"
            )


def _check_time(config: Mapping[str, Any], own: ModelOptions) -> None:
    time_field = config.get("TIME_FIELD", "timestamp")
    fields = config.get("normalize_field") or []
    scaled = time_field in fields or (config.get("normalize_all") and not fields)
    if config.get("exact_time", True) or not scaled or not own.time_readers:
        return
    option = "normalize_field" if time_field in fields else "normalize_all"
    raise OptionError(
        f"{option}: with exact_time false it scales {time_field} to [0, 1], where times have no unit, but "
        f"{', '.join(own.time_readers)} read times in seconds; choose normalize_all false and no normalize_field with "
        f"{time_field}, or exact_time true"
    )
