"""What each attention head does in a trained model of ours: what is lost without it, how sharply it looks, and at what.

Heads are reached by hooks on the refinement that every attention's weights go through, kernels of an adaptive mixture
by hooks on their gates; no layer knows of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from recbole_adrrec.layers.attention import AdaptiveMixAttention, Attention, MixAttention
from recbole_adrrec.layers.kernels import MixKernels
from recbole_adrrec.tools.explain import RelativeTerm, last_queries, relative_terms
from study.loaded import Trained
from study.plots import KernelCurve
from study.robustness import drop_row

Switch = Callable[[nn.Module, Mapping[int, Sequence[int]]], AbstractContextManager[None]]
"""Switches heads or kernels off, by layer, while it lasts."""

SIGMAS = (0.1, 0.3, 1.0)

LONGEST_GAP = 365 * 86400


def attentions(model: nn.Module) -> list[Attention]:
    """The attentions of a model of ours, layer by layer; none for another."""
    return [part for part in model.modules() if isinstance(part, Attention)]


def head_names(model: nn.Module, n_heads: int) -> list[tuple[str, str]]:
    """Name and kind (``absolute``, ``relative``, ``plain``) of each head, the same in all layers."""
    if not any(isinstance(part, MixAttention) for part in attentions(model)):
        return [(f"head {number}", "plain") for number in range(1, n_heads + 1)]
    named = kernel_names(model)
    twice = {name for name, _ in named if sum(other == name for other, _ in named) > 1}
    return [
        (f"{name} (head {number})" if name in twice else name, kind) for number, (name, kind) in enumerate(named, 1)
    ]


def kernel_names(model: nn.Module) -> list[tuple[str, str]]:
    """Name and kind (``absolute``, ``relative``) of each kernel of mix attention; none without any."""
    kernels = next((part for part in model.modules() if isinstance(part, MixKernels)), None)
    if kernels is None:
        return []
    return [(name, "absolute") for name in kernels.absolute_names] + [
        (name, "relative") for name in kernels.relative_names
    ]


@contextmanager
def silenced(model: nn.Module, heads: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """While this lasts, heads give nothing: their weights are zero after refinement.

    Parameters
    ----------
    model : Module
        With attentions of ours.
    heads : mapping of int to sequence of int
        By layer, from 1, numbers of heads, from 1.

    Raises
    ------
    ValueError
        If there is no such layer or head.
    """
    layers = attentions(model)
    handles = []
    try:
        for layer, numbers in heads.items():
            if not 1 <= layer <= len(layers):
                raise ValueError(f"layer: {layer}; must be from 1 to {len(layers)}")
            places = [number - 1 for number in numbers]

            def silence(
                _: nn.Module, inputs: tuple[Tensor, ...], weights: Tensor, places: list[int] = places
            ) -> Tensor:
                if not all(0 <= place < weights.size(1) for place in places):
                    raise ValueError(f"heads: {[place + 1 for place in places]}; must be from 1 to {weights.size(1)}")
                quiet = weights.clone()
                quiet[:, places] = 0.0
                return quiet

            handles.append(layers[layer - 1].refinement.register_forward_hook(silence))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def closed(model: nn.Module, kernels: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """While this lasts, gates of an adaptive mixture are closed.

    Parameters
    ----------
    model : Module
        With adaptive mix attention.
    kernels : mapping of int to sequence of int
        By layer, from 1, numbers of kernels, from 1, absolute ones first.
    """
    layers = [part for part in attentions(model) if isinstance(part, AdaptiveMixAttention)]
    handles = []
    try:
        for layer, numbers in kernels.items():
            attention = layers[layer - 1]

            def close(
                _: nn.Module,
                inputs: Any,
                gates: Tensor,
                n_heads: int = attention.n_heads,
                places: tuple[int, ...] = tuple(number - 1 for number in numbers),
            ) -> Tensor:
                by_kernel = gates.unflatten(-1, (-1, n_heads)).clone()
                by_kernel[..., list(places), :] = 0.0
                return by_kernel.flatten(-2)

            handles.append(attention.gates.register_forward_hook(close))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Entropy:
    """Sums of normalised entropies of one layer, head by head."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], weights: Tensor) -> None:
        mask = inputs[1]
        visible = mask[:, 0].sum(-1)  # [B, L]
        # An event may look at itself, padding may not be looked at; of one visible event there is nothing to choose.
        counted = mask[:, 0].diagonal(dim1=1, dim2=2) & (visible > 1)
        entropy = torch.special.entr(weights.detach().double()).sum(-1)  # [B, H, L]
        share = entropy / visible.clamp(min=2).double().log().unsqueeze(1)
        self.total = self.total + (share * counted.unsqueeze(1)).sum((0, 2))
        self.count += int(counted.sum())

    @property
    def mean(self) -> list[float | None]:
        if not self.count or isinstance(self.total, float):
            return []
        return [float(each) for each in self.total / self.count]


@contextmanager
def entropies(model: nn.Module) -> Iterator[list[_Entropy]]:
    """Gather, while this lasts, each head's mean entropy over the log of the number of events that it may see.

    The mean is over all events that see at least two. Weights are those in use, after refinement. Yields one gatherer
    for each layer, whose ``mean`` lists the heads.
    """
    gathered, handles = [], []
    try:
        for attention in attentions(model):
            gathered.append(_Entropy())
            handles.append(attention.refinement.register_forward_hook(gathered[-1]))
        yield gathered
    finally:
        for handle in handles:
            handle.remove()


def head_rows(trained: Trained, metric: str, clean: NDArray[Any]) -> list[dict[str, Any]]:
    """Drop of a metric without each head, and each head's entropy; then without all heads of a kind at once.

    Of an adaptive mixture also without each kernel, in one layer and in all: its gate is zero.

    Parameters
    ----------
    trained : Trained
        A model of ours.
    metric : str
        One of the run's.
    clean : Float[n_users]
        Values with all heads, from ``trained.values``.
    """
    model = trained.model
    with entropies(model) as gathered:
        trained.values(metric)
    counts = [len(each.mean) for each in gathered]
    names = [head_names(model, count) for count in counts]
    layers = range(1, len(counts) + 1)
    cases: list[tuple[Switch, dict[int, list[int]], dict[str, Any]]] = [
        (
            silenced,
            {layer: [number]},
            {"layer": layer, "head": name, "kind": kind, "entropy": gathered[layer - 1].mean[number - 1]},
        )
        for layer, named in enumerate(names, 1)
        for number, (name, kind) in enumerate(named, 1)
    ]
    adaptive = any(isinstance(part, AdaptiveMixAttention) for part in attentions(model))
    switch: Switch = closed if adaptive else silenced
    if adaptive:
        names = [kernel_names(model)] * len(counts)
        for number, (name, kind) in enumerate(names[0], 1):
            told = {"head": f"{name} kernel", "entropy": None}
            cases += [(closed, {layer: [number]}, {**told, "layer": layer, "kind": kind}) for layer in layers]
            cases.append((closed, {layer: [number] for layer in layers}, {**told, "layer": "all", "kind": "all"}))
    for kind in ("absolute", "relative"):
        chosen = {
            layer: [number for number, (_, other) in enumerate(named, 1) if other == kind]
            for layer, named in enumerate(names, 1)
        }
        if any(chosen.values()):
            what = f"all {kind} {'kernels' if adaptive else 'heads'}"
            cases.append((switch, chosen, {"layer": "all", "head": what, "kind": "all", "entropy": None}))
    rows = []
    for without, chosen, told in tqdm(cases, desc="heads", unit="head", leave=False, disable=None):
        with without(model, chosen):
            rows.append({**told, **drop_row(clean, trained.values(metric)[metric])})
    return rows


@contextmanager
def disturbed(model: Any, sigma: float, seed: int = 0) -> Iterator[list[tuple[float, int]]]:
    """While this lasts, Gaussian noise is added to the input of each layer.

    Parameters
    ----------
    model : SequenceRecommender
        A model of ours.
    sigma : float
        Size of the noise over the root mean square of the place's input, as ``lni_sigma`` in training.
    seed : int
        Of the noise.

    Yields
    ------
    list of (float, int)
        For each batch the sum over events of ``||h~ - h|| / ||h||``, ``h`` the state after the last layer, and the
        number of events.
    """
    noise = torch.Generator().manual_seed(seed)
    switched_on = True
    moved: list[tuple[float, int]] = []

    def add(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not switched_on:
            return None
        hidden = inputs[0]
        drawn = torch.randn(hidden.shape, generator=noise, dtype=torch.float32).to(hidden)
        size = hidden.pow(2).mean(-1, keepdim=True).sqrt()
        return (hidden + sigma * size * drawn, *inputs[1:])

    def compare(encoder: nn.Module, inputs: tuple[Any, ...], states: list[Tensor]) -> None:
        nonlocal switched_on
        if not switched_on:
            return
        switched_on = False
        layout = inputs[1]
        try:
            clean = layout.unpack(encoder(*inputs)[-1]).flatten(2)
        finally:
            switched_on = True
        valid = layout.valid
        distance = (layout.unpack(states[-1]).flatten(2) - clean).norm(dim=-1) / clean.norm(dim=-1).clamp_min(1e-12)
        moved.append((float((distance * valid).sum().detach()), int(valid.sum())))

    handles = [layer.register_forward_pre_hook(add) for layer in model.encoder.layers]
    handles.append(model.encoder.register_forward_hook(compare))
    try:
        yield moved
    finally:
        for handle in handles:
            handle.remove()


def noise_rows(
    trained: Trained, metric: str, clean: NDArray[Any], sigmas: Sequence[float] = SIGMAS, seed: int = 0
) -> list[dict[str, Any]]:
    """Drop of a metric under noise in the layers, and how far the last states move (``moved``, relative)."""
    rows = []
    for sigma in tqdm(sigmas, desc="noise", unit="size", leave=False, disable=None):
        with disturbed(trained.model, sigma, seed) as moved:
            values = trained.values(metric)[metric]
        distance = sum(total for total, _ in moved) / max(1, sum(count for _, count in moved))
        rows.append({"sigma": sigma, "moved": distance, **drop_row(clean, values)})
    return rows


def gap_grid(points: int = 120, around: int = 40, longest: float = LONGEST_GAP) -> NDArray[np.float64]:
    """Gaps in seconds, Float[points + 1, around]: a row of zeros, then rows that share out the logarithm evenly."""
    spread = np.geomspace(1, longest, points * around).reshape(points, around)
    return np.concatenate([np.zeros((1, around)), spread])


@contextmanager
def last_terms(model: Any) -> Iterator[list[list[list[RelativeTerm]]]]:
    """Gather, while this lasts, what relative kernels are multiplied with at each row's last event.

    Yields
    ------
    list of list of list of RelativeTerm
        By layer and batch, of kernels, then heads.
    """
    found: list[list[list[RelativeTerm]]] = []
    handles = []
    try:
        for attention in attentions(model):
            if not isinstance(attention, MixAttention | AdaptiveMixAttention):
                continue
            found.append([])

            def gather(part: Any, inputs: tuple[Any, ...], of_layer: list[list[RelativeTerm]] = found[-1]) -> None:
                of_layer.append(list(relative_terms(part, model.kernels, last_queries(*inputs))))

            handles.append(attention.register_forward_pre_hook(gather))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def mean_term(terms: Sequence[RelativeTerm]) -> RelativeTerm:
    """The mean over the queries of several batches: its curve is the mean of their curves."""
    projected, constant = (
        torch.cat(parts).mean(0, keepdim=True)
        for parts in ([each.projected for each in terms], [each.constant for each in terms])
    )
    return replace(terms[0], projected=projected, constant=constant)


def kernel_curves(
    layers: Sequence[Sequence[RelativeTerm]], gaps: NDArray[np.float64], places: int
) -> list[KernelCurve]:
    """What relative kernels add to the score of an event, over its gap to the query.

    Parameters
    ----------
    layers : sequence of sequence of RelativeTerm
        For each layer, mostly the means over users.
    gaps : Float[g, n]
        Gaps in seconds for kernels of time, the first row zeros: a curve has the mean of each row, and its least and
        most.
    places : int
        Distances from 0 to ``places - 1`` for kernels of distance.

    Returns
    -------
    list of KernelCurve
        ``u . phi(gap)``, counted from its value at no gap. A softmax ignores what is added alike to all events. Where
        a kernel is in several heads, a curve for each.
    """
    curves = []
    for layer, terms in enumerate(layers, 1):
        names = [term.name for term in terms]
        for term in terms:
            by_place = np.arange(places, dtype=np.float64)
            added = term.curve(by_place[:, None] if term.unit == "places" else gaps)
            added = added - added[0, 0]
            x = by_place if term.unit == "places" else gaps.mean(1)
            head = term.head if names.count(term.name) > 1 else None
            curves.append(KernelCurve(term.name, layer, x, added.mean(1), added.min(1), added.max(1), head))
    return curves


def learned_kernels(trained: Trained, metric: str) -> list[KernelCurve]:
    """The curves of a model, means over the last queries of its test rows; none without relative kernels."""
    model = trained.model
    if not any(kind == "relative" for _, kind in kernel_names(model)):
        return []
    with last_terms(model) as found:
        trained.values(metric)
    means = [[mean_term(terms) for terms in zip(*batches, strict=True)] for batches in found]
    return kernel_curves(means, gap_grid(), int(model.max_seq_length))


def one_users_attention(trained: Trained, events: int = 20) -> tuple[str, NDArray[Any], NDArray[Any] | None, list[str]]:
    """Last layer's weights of the test row whose history is nearest to a wanted length.

    Returns
    -------
    user : str
        As the data file names it.
    plain : Float[H, L, L]
        Weights before refinement.
    refined : Float[H, L, L] or None
        After it; None where nothing is refined.
    heads : list of str
        Names.
    """
    model = trained.model
    batch = next(iter(trained.loader))[0].to(trained.config["device"])
    lengths = batch[model.ITEM_SEQ_LEN]
    row = int((lengths - events).abs().argmin())
    interaction = batch[torch.tensor([row])]
    told = model.explain(interaction)
    plain, refined = told.plain[-1].double().cpu().numpy(), told.refined[-1].double().cpu().numpy()
    dataset = trained.loader._dataset
    user = str(dataset.field2id_token[dataset.uid_field][int(interaction[model.USER_ID])])
    names = [name for name, _ in head_names(model, len(plain))]
    changed = not math.isclose(float(np.abs(plain - refined).max()), 0.0, abs_tol=1e-12)
    return user, plain, refined if changed else None, names
