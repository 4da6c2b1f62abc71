"""What is taken from ADRRec and AWRSR, piece by piece: lists of entries for a study, and what each is compared with.

A removed kernel's place is taken by ``constant``, a head that looks at the items alone (``removal: constant``): number
and width of the heads, and almost the number of parameters, stay as they are, so that only what the kernel knows is
gone. ``removal: drop`` takes the whole head; the others then share the width among them, and ``hidden_size`` is lowered
to a number that every count of heads divides, for all entries of ADRRec alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_adrrec.errors import OptionError
from recbole_adrrec.options import rules
from study import parts
from study.plan import Entry

GROUPS: dict[str, str] = {
    "kernels": "ADRRec less each kernel, less all absolute heads, less all relative heads",
    "query_time": "the same with the query time known, and less each kernel",
    "noise": "ADRRec less layer-wise noise injection; its strengths, kinds, layers and stop-gradient",
    "objective": "cloze against causal, without and with the query time",
    "refinement": "AWRSR's refinements on each backbone",
    "length": "most events shown, of ADRRec and the baselines",
    "robustness": "histories changed at test time, with and without noise in training, against the baselines",
    "heads": "each head silenced at test time, its entropy; kernels and attention learned",
    "parts": "ADRRec built up from SASRec, one part at a time, on validation (configs/parts.yaml)",
}

USUAL = tuple(name for name in GROUPS if name != "parts")
"""Groups of an ablation that names none: parts is a study of its own."""

TITLES = {
    "kernels": "Kernels",
    "query_time": "Kernels with the query time",
    "noise": "Noise injection",
    "objective": "Objective",
    "refinement": "Refinements",
    "parts": "Parts",
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


@dataclass(frozen=True)
class Variant:
    """One entry of an ablation.

    Attributes
    ----------
    label, model, options
        As in a study.
    reference : str, optional
        Label of what it is compared with; None for a reference itself.
    measured : frozenset of str
        What is measured on the trained model: ``robustness``, ``heads``, ``noise``.
    """

    label: str
    model: str
    options: Mapping[str, Any]
    reference: str | None = None
    measured: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ablation:
    """Entries of a study, and how they belong together.

    Attributes
    ----------
    variants : tuple of Variant
        Each label once.
    groups : mapping of str to list of str
        Labels by group, its reference first.
    notes : tuple of str
        What a reader of the report must know.
    """

    variants: tuple[Variant, ...]
    groups: Mapping[str, list[str]]
    notes: tuple[str, ...]

    @property
    def entries(self) -> list[Entry]:
        """For a study's ``models``."""
        return [Entry(each.label, each.model, dict(each.options)) for each in self.variants]

    @property
    def references(self) -> dict[str, str]:
        """For the report."""
        return {each.label: each.reference for each in self.variants if each.reference is not None}

    @property
    def varied(self) -> set[str]:
        """Options that some entry sets."""
        return {name for each in self.variants for name in each.options}


@dataclass(frozen=True)
class Choices:
    """What an ablation is made of.

    Attributes
    ----------
    groups : sequence of str
        Out of :data:`GROUPS`.
    base : mapping
        ADRRec's options, defaults included, with what the study changes in all entries.
    given : mapping
        Options, out of those that entries vary, that the study itself sets: what the full models have.
    removal : str
        ``constant`` or ``drop``.
    lengths : sequence of int
        For ``MAX_ITEM_LIST_LENGTH``.
    backbones : sequence of str
        Of AWRSR.
    baselines : sequence of str
        Models beside ADRRec in ``length`` and ``robustness``.
    """

    groups: Sequence[str]
    base: Mapping[str, Any]
    removal: str = "constant"
    lengths: Sequence[int] = LENGTHS
    backbones: Sequence[str] = BACKBONES
    baselines: Sequence[str] = ("SASRec",)


FULL = "ADRRec"
FULL_TIMED = "ADRRec, query time"


def ablation(choices: Choices) -> Ablation:
    """List the entries.

    Raises
    ------
    OptionError
        For an unknown group, removal or backbone, or where nothing is left to vary.
    """
    for name, values, known in (
        ("groups", choices.groups, tuple(GROUPS)),
        ("removal", [choices.removal], REMOVALS),
        ("backbones", choices.backbones, BACKBONES),
    ):
        fault = rules.ListOf(rules.Choice(known), filled=True, distinct=True).fault(list(values))
        if fault:
            raise OptionError(f"{name}: {fault}")
    fault = rules.ListOf(rules.COUNT, filled=True, distinct=True).fault(list(choices.lengths))
    if fault:
        raise OptionError(f"lengths: {fault}")
    return _Builder(choices).build()


class _Builder:
    def __init__(self, choices: Choices) -> None:
        self.choices, self.base = choices, choices.base
        self.absolute = list(self.base["absolute_kernels"] or [])
        self.relative = list(self.base["relative_kernels"] or [])
        self.found: dict[str, Variant] = {}
        self.groups: dict[str, list[str]] = {}
        self.shared: dict[str, Any] = {}
        self.notes: list[str] = []
        if choices.removal == "drop" and {"kernels", "query_time"} & set(choices.groups):
            self.shared["hidden_size"] = self._divisible_width()

    def build(self) -> Ablation:
        for group in GROUPS:
            if group in self.choices.groups:
                getattr(self, f"_{group}")()
        if {"kernels", "query_time"} & set(self.choices.groups):
            self.notes.append(self._removal_note())
        return Ablation(tuple(self.found.values()), self.groups, tuple(self.notes))

    def _add(
        self,
        group: str,
        label: str,
        options: Mapping[str, Any],
        reference: str | None,
        model: str = "ADRRec",
        measured: Iterable[str] = (),
    ) -> None:
        """Add an entry to a group; a label that is there gains what is measured."""
        known = self.found.get(label)
        merged = dict(options) if known is None else dict(known.options)
        if model == "ADRRec":
            merged = {**self.shared, **merged}
        before = frozenset() if known is None else known.measured
        self.found[label] = Variant(label, model, merged, reference, before | frozenset(measured))
        labels = self.groups.setdefault(group, [])
        if label not in labels:
            labels.append(label)

    def _divisible_width(self) -> int:
        heads = len(self.absolute) + len(self.relative)
        counts = {heads, heads - 1, len(self.absolute), len(self.relative)} - {0}
        step = math.lcm(2, *counts)
        width = int(self.base["hidden_size"])
        return max(step, width // step * step)

    def _removal_note(self) -> str:
        if self.choices.removal == "constant":
            return (
                "A removed kernel's head becomes a constant head, which looks at the items alone: number and width of "
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
        if self.choices.removal == "constant":
            gone = len(self.absolute) + len(self.relative) - len(kept_absolute) - len(kept_relative)
            kept_absolute += ["constant"] * gone
        return {"absolute_kernels": kept_absolute, "relative_kernels": kept_relative}

    def _less_each(self, group: str, full: str, options: Mapping[str, Any]) -> None:
        for name in dict.fromkeys(self.absolute):
            if name != "constant" or self.choices.removal == "drop":
                self._add(group, f"{full} -{name}", {**options, **self._without([name], [])}, full)
        for name in dict.fromkeys(self.relative):
            self._add(group, f"{full} -{name}", {**options, **self._without([], [name])}, full)

    def _kernels(self) -> None:
        if len(self.absolute) + len(self.relative) < 2:
            raise OptionError(
                "groups: kernels takes away one of several, and absolute_kernels and relative_kernels name one"
            )
        self._add("kernels", FULL, {}, None)
        self._less_each("kernels", FULL, {})
        both = bool(self.absolute) and bool(self.relative)
        if both and len(self.absolute) > 1:
            self._add("kernels", f"{FULL} -absolute heads", self._without(self.absolute, []), FULL)
        if both and len(self.relative) > 1:
            self._add("kernels", f"{FULL} -relative heads", self._without([], self.relative), FULL)

    def _query_time(self) -> None:
        self._add("query_time", FULL, {}, None)
        self._add("query_time", FULL_TIMED, {"use_query_time": True}, None)
        self._less_each("query_time", FULL_TIMED, {"use_query_time": True})

    def _noise(self) -> None:
        weight, size = self.base["lni_weight"], self.base["lni_sigma"]
        self._add("noise", FULL, {}, None)
        if weight:
            self._add("noise", f"{FULL} -LNI", {"lni_weight": 0}, FULL)
        # Where the full model has no noise, each entry brings it along.
        own = {} if weight else {"lni_weight": NOISE_WEIGHT}
        for each in (*NOISE_WEIGHTS, *([] if weight else [NOISE_WEIGHT])):
            if each != weight:
                self._add("noise", f"{FULL} LNI weight {each:g}", {"lni_weight": each}, FULL)
        for each in NOISE_SIZES:
            if each != size:
                self._add("noise", f"{FULL} LNI size {each:g}", {**own, "lni_sigma": each}, FULL)
        for kind in NOISE_KINDS:
            if kind != self.base["lni_noise"]:
                self._add("noise", f"{FULL} LNI {kind}", {**own, "lni_noise": kind}, FULL)
        layers = range(1, int(self.base["n_layers"]) + 1)
        for layer in layers if len(layers) > 1 else ():
            options = {**own, "lni_layers": [layer], "lni_layer_weights": None}
            self._add("noise", f"{FULL} LNI layer {layer} alone", options, FULL)
        stopped = bool(self.base["lni_stop_gradient"])
        name = "without" if stopped else "with"
        self._add("noise", f"{FULL} LNI {name} stop-gradient", {**own, "lni_stop_gradient": not stopped}, FULL)

    def _objective(self) -> None:
        self._add("objective", FULL, {}, None)
        other = "cloze" if self.base["objective"] == "causal" else "causal"
        self._add("objective", f"{FULL} {other}", {"objective": other}, FULL)
        self._add("objective", FULL_TIMED, {"use_query_time": True}, None)
        self._add("objective", f"{FULL_TIMED} {other}", {"use_query_time": True, "objective": other}, FULL_TIMED)

    def _refinement(self) -> None:
        for backbone in self.choices.backbones:
            plain = f"AWRSR {backbone}"
            options = {"backbone": backbone, "refinement": "none"}
            self._add("refinement", plain, options, None, "AWRSR")
            for refinement in REFINEMENTS:
                changed = {**options, "refinement": refinement}
                self._add("refinement", f"{plain} {refinement}", changed, plain, "AWRSR")
            mapped = {**options, "refinement": "value", "refinement_value_map": True}
            self._add("refinement", f"{plain} value with map", mapped, plain, "AWRSR")

    def _length(self) -> None:
        for model in (FULL, *self.choices.baselines):
            longest = f"{model} length {max(self.choices.lengths)}"
            for length in sorted(self.choices.lengths):
                label = f"{model} length {length}"
                reference = None if label == longest else longest
                self._add("length", label, {"MAX_ITEM_LIST_LENGTH": length}, reference, model)

    def _robustness(self) -> None:
        measured = ("robustness", "noise")
        self._add("robustness", FULL, {}, None, measured=measured)
        if self.base["lni_weight"]:
            self._add("robustness", f"{FULL} -LNI", {"lni_weight": 0}, FULL, measured=measured)
        for model in self.choices.baselines:
            self._add("robustness", model, {}, None, model, measured)

    def _parts(self) -> None:
        for part in parts.PARTS:
            self._add("parts", part.label, part.options, part.reference, part.model)
        self.notes.append(parts.NOTE)

    def _heads(self) -> None:
        self._add("heads", FULL, {}, None, measured=("heads",))
        backbone = self.choices.backbones[0]
        plain = f"AWRSR {backbone}"
        self._add("heads", plain, {"backbone": backbone, "refinement": "none"}, None, "AWRSR", ("heads",))
        options = {"backbone": backbone, "refinement": REFINEMENTS[0]}
        self._add("heads", f"{plain} {REFINEMENTS[0]}", options, plain, "AWRSR", ("heads",))
