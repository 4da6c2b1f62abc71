"""Entries of a study that takes ADRRec and AWRSR apart, piece by piece, and the reference of each.

With ``mixture: adaptive`` a removed kernel is left out of all heads. With ``mixture: heads`` its place is taken by
``constant``, a head that sees the items alone (``removal: constant``): number and width of the heads, and almost the
number of parameters, stay as they are, so that only what the kernel knows is gone. ``removal: drop`` takes the whole
head; the others then share the width among them, and ``hidden_size`` is lowered to a number that every count of heads
divides, for all entries of ADRRec alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_adrrec.errors import OptionError
from study import checks
from study.plan import Entry

GROUPS: dict[str, str] = {
    "kernels": "ADRRec less each kernel, less all absolute ones, less all relative ones",
    "query_time": "the same with the query time known, and less each kernel",
    "noise": "ADRRec less layer-wise noise injection; its strengths, kinds, layers and stop-gradient",
    "objective": "cloze against causal, without and with the query time",
    "rows": "training on one row per prefix, as RecBole does, against windows with a target at every position",
    "refinement": "AWRSR's refinements on each backbone",
    "length": "most events shown, of ADRRec and the baselines",
    "robustness": "histories changed at test time, with and without noise in training, against the baselines",
    "heads": "each head silenced at test time, and its entropy",
}

USUAL = tuple(name for name in GROUPS if name != "rows")
"""Groups of an ablation that names none."""

TITLES = {
    "kernels": "Kernels",
    "query_time": "Kernels with the query time",
    "noise": "Noise injection",
    "objective": "Objective",
    "rows": "Training rows",
    "refinement": "Refinements",
    "length": "Length of the history",
}
"""Groups that are drawn as changes from a reference; the others are drawn as what was measured."""

REMOVALS = ("constant", "drop")
LENGTHS = (10, 25, 50, 100, 200)
BACKBONES = ("sasrec", "stosa", "tisasrec", "mix")
REFINEMENTS = ("simple", "value", "additive", "stochastic")
NOISE_WEIGHTS = (0.001, 0.1)
NOISE_WEIGHT = 0.01
"""Weight of the noise where the full model has none."""
NOISE_SIZES = (0.03, 0.3)
NOISE_KINDS = ("gaussian", "uniform", "in_manifold")

FULL = "ADRRec"
FULL_TIMED = "ADRRec, query time"


@dataclass(frozen=True)
class Ablation:
    """Entries of a study, each label once, and how they belong together.

    ``groups`` has the labels of each group, its reference first; ``measured`` the kinds of measurement
    (``robustness``, ``heads``) of the models that are measured; ``notes`` go into the report.
    """

    entries: tuple[Entry, ...]
    groups: Mapping[str, list[str]]
    measured: Mapping[str, frozenset[str]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """The parts of an ablation; ``base`` has ADRRec's options, defaults included, as the study changes them in all.

    ``removal`` is ``constant`` or ``drop`` where the base has one head for each kernel, ``constant`` if None.
    """

    groups: Sequence[str]
    base: Mapping[str, Any]
    removal: str | None = None
    lengths: Sequence[int] = LENGTHS
    backbones: Sequence[str] = BACKBONES
    baselines: Sequence[str] = ("SASRec",)


def ablation(choices: Choices) -> Ablation:
    """List the entries.

    Raises
    ------
    OptionError
        For an unknown group, removal or backbone, or where nothing is left to vary.
    """
    if "parts" in choices.groups:
        raise OptionError("groups: parts is a study: compare.py --config benchmarks/configs/parts.yaml")
    for name, values, known in (
        ("groups", choices.groups, GROUPS),
        ("removal", [choices.removal or REMOVALS[0]], REMOVALS),
        ("backbones", choices.backbones, BACKBONES),
    ):
        checks.distinct(values, name)
        for value in checks.listed(list(values), name, next(iter(known))):
            checks.one_of(value, known, name)
    if choices.removal is not None and choices.base["mixture"] == "adaptive":
        raise OptionError(
            f"removal: {choices.removal}: with mixture: adaptive a removed kernel leaves no head; leave it out, or "
            "give --mixture heads"
        )
    checks.distinct(choices.lengths, "lengths")
    for length in checks.listed(list(choices.lengths), "lengths", "50"):
        checks.whole(length, "lengths")
    return _Builder(choices).build()


class _Builder:
    def __init__(self, choices: Choices) -> None:
        self.choices, self.base = choices, choices.base
        self.absolute = list(self.base["absolute_kernels"] or [])
        self.relative = list(self.base["relative_kernels"] or [])
        self.entries: dict[str, Entry] = {}
        self.groups: dict[str, list[str]] = {}
        self.measured: dict[str, frozenset[str]] = {}
        self.takes_kernels = bool({"kernels", "query_time"} & set(choices.groups))
        self.by_head = self.base["mixture"] != "adaptive"
        self.filled = self.by_head and choices.removal != "drop"
        self.shared: dict[str, Any] = {}
        if self.takes_kernels and choices.removal == "drop":
            self.shared["hidden_size"] = self._divisible_width()

    def build(self) -> Ablation:
        for group in GROUPS:
            if group in self.choices.groups:
                getattr(self, f"_{group}")(group)
        notes = (self._removal_note(),) if self.takes_kernels else ()
        return Ablation(tuple(self.entries.values()), self.groups, self.measured, notes)

    def _add(
        self,
        group: str,
        label: str,
        options: Mapping[str, Any],
        reference: str | None = None,
        model: str = "ADRRec",
        measured: Iterable[str] = (),
    ) -> None:
        """Add an entry to a group; a label that is there keeps its options."""
        if label not in self.entries:
            shared = self.shared if model == "ADRRec" else {}
            self.entries[label] = Entry(label, model, {**shared, **options}, reference)
        if measured:
            self.measured[label] = self.measured.get(label, frozenset()) | frozenset(measured)
        labels = self.groups.setdefault(group, [])
        if label not in labels:
            labels.append(label)

    def _divisible_width(self) -> int:
        heads = len(self.absolute) + len(self.relative)
        counts = {heads, heads - 1, len(self.absolute), len(self.relative)} - {0}
        step = math.lcm(2, *counts)
        return max(step, int(self.base["hidden_size"]) // step * step)

    def _removal_note(self) -> str:
        if not self.by_head:
            return "A removed kernel is gone from every head; number and width of the heads stay as they are."
        if self.filled:
            return (
                "A removed kernel's head becomes a constant head, which sees the items alone: number and width of "
                "the heads stay as they are."
            )
        return (
            "A removed kernel's head is gone and the others share its width; hidden_size is "
            f"{self.shared['hidden_size']} in all entries of ADRRec, which every number of heads divides."
        )

    def _without(self, absolute: Iterable[str], relative: Iterable[str]) -> dict[str, Any]:
        """Options with fewer kernels."""
        gone_absolute, gone_relative = set(absolute), set(relative)
        kept_absolute = [name for name in self.absolute if name not in gone_absolute]
        kept_relative = [name for name in self.relative if name not in gone_relative]
        if self.filled:
            gone = len(self.absolute) + len(self.relative) - len(kept_absolute) - len(kept_relative)
            kept_absolute += ["constant"] * gone
        return {"absolute_kernels": kept_absolute, "relative_kernels": kept_relative}

    def _less_each(self, group: str, full: str, options: Mapping[str, Any]) -> None:
        for name in dict.fromkeys(self.absolute):
            if name != "constant" or not self.filled:
                self._add(group, f"{full} -{name}", {**options, **self._without([name], [])}, full)
        for name in dict.fromkeys(self.relative):
            self._add(group, f"{full} -{name}", {**options, **self._without([], [name])}, full)

    def _kernels(self, group: str) -> None:
        if len(self.absolute) + len(self.relative) < (2 if self.by_head else 1):
            raise OptionError(
                "groups: kernels takes away one of several, and absolute_kernels and relative_kernels name one"
            )
        self._add(group, FULL, {})
        self._less_each(group, FULL, {})
        both, kind = bool(self.absolute) and bool(self.relative), "heads" if self.by_head else "kernels"
        if both and len(self.absolute) > 1:
            self._add(group, f"{FULL} -absolute {kind}", self._without(self.absolute, []), FULL)
        if both and len(self.relative) > 1:
            self._add(group, f"{FULL} -relative {kind}", self._without([], self.relative), FULL)

    def _query_time(self, group: str) -> None:
        self._add(group, FULL, {})
        self._add(group, FULL_TIMED, {"use_query_time": True})
        self._less_each(group, FULL_TIMED, {"use_query_time": True})

    def _noise(self, group: str) -> None:
        weight, size, stopped = self.base["lni_weight"], self.base["lni_sigma"], bool(self.base["lni_stop_gradient"])
        # Where the full model has no noise, each entry brings it along.
        own = {} if weight else {"lni_weight": NOISE_WEIGHT}
        varied: dict[str, dict[str, Any]] = {"-LNI": {"lni_weight": 0}} if weight else {}
        for each in (*NOISE_WEIGHTS, *([] if weight else [NOISE_WEIGHT])):
            if each != weight:
                varied[f"LNI weight {each:g}"] = {"lni_weight": each}
        varied |= {f"LNI size {each:g}": {**own, "lni_sigma": each} for each in NOISE_SIZES if each != size}
        varied |= {f"LNI {kind}": {**own, "lni_noise": kind} for kind in NOISE_KINDS if kind != self.base["lni_noise"]}
        layers = range(1, int(self.base["n_layers"]) + 1)
        for layer in layers if len(layers) > 1 else ():
            varied[f"LNI layer {layer} alone"] = {**own, "lni_layers": [layer], "lni_layer_weights": None}
        name = "without" if stopped else "with"
        varied[f"LNI {name} stop-gradient"] = {**own, "lni_stop_gradient": not stopped}
        self._add(group, FULL, {})
        for label, options in varied.items():
            self._add(group, f"{FULL} {label}", options, FULL)

    def _objective(self, group: str) -> None:
        other = "cloze" if self.base["objective"] == "causal" else "causal"
        for full, options in ((FULL, {}), (FULL_TIMED, {"use_query_time": True})):
            self._add(group, full, options)
            self._add(group, f"{full} {other}", {**options, "objective": other}, full)

    def _rows(self, group: str) -> None:
        plain = {"backbone": "sasrec", "refinement": "none"}
        for full, model, options in ((FULL, "ADRRec", {}), ("AWRSR sasrec", "AWRSR", plain)):
            self._add(group, full, options, None, model)
            self._add(group, f"{full} prefix rows", {**options, "train_rows": "prefix"}, full, model)

    def _refinement(self, group: str) -> None:
        for backbone in self.choices.backbones:
            plain = f"AWRSR {backbone}"
            options = {"backbone": backbone, "refinement": "none"}
            self._add(group, plain, options, None, "AWRSR")
            for refinement in REFINEMENTS:
                self._add(group, f"{plain} {refinement}", {**options, "refinement": refinement}, plain, "AWRSR")
            mapped = {**options, "refinement": "value", "refinement_value_map": True}
            self._add(group, f"{plain} value with map", mapped, plain, "AWRSR")

    def _length(self, group: str) -> None:
        for model in (FULL, *self.choices.baselines):
            longest = f"{model} length {max(self.choices.lengths)}"
            for length in sorted(self.choices.lengths):
                label = f"{model} length {length}"
                reference = None if label == longest else longest
                self._add(group, label, {"MAX_ITEM_LIST_LENGTH": length}, reference, model)

    def _robustness(self, group: str) -> None:
        self._add(group, FULL, {}, measured=[group])
        if self.base["lni_weight"]:
            self._add(group, f"{FULL} -LNI", {"lni_weight": 0}, FULL, measured=[group])
        for model in self.choices.baselines:
            self._add(group, model, {}, None, model, [group])

    def _heads(self, group: str) -> None:
        self._add(group, FULL, {}, measured=[group])
        backbone = self.choices.backbones[0]
        plain, options = f"AWRSR {backbone}", {"backbone": backbone, "refinement": "none"}
        self._add(group, plain, options, None, "AWRSR", [group])
        refined = {**options, "refinement": REFINEMENTS[0]}
        self._add(group, f"{plain} {REFINEMENTS[0]}", refined, plain, "AWRSR", [group])
