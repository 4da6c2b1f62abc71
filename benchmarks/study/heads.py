"""Contribution of each attention head, or kernel of an adaptive mixture, in a trained model of ours.

Heads are reached by hooks on the refinement that every attention's weights go through, kernels of an adaptive mixture
by hooks on their gates; no layer knows of this. (Learned kernels and attention weights are pictured by
``python -m recbole_adrrec explain``.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from recbole_adrrec.layers.attention import AdaptiveMixAttention, Attention, MixAttention
from recbole_adrrec.layers.kernels import MixKernels
from study.robustness import drop_row
from study.session import Session

Numbers = Mapping[int, Sequence[int]]
"""Numbers of heads or kernels, from 1, by layer, from 1."""
Switch = Callable[[nn.Module, Numbers], AbstractContextManager[None]]


def attentions(model: nn.Module) -> list[Attention]:
    """The attentions of a model of ours, layer by layer; none for another."""
    return [part for part in model.modules() if isinstance(part, Attention)]


def kernel_names(model: nn.Module) -> list[tuple[str, str]]:
    """Name and kind (``absolute``, ``relative``) of each kernel of mix attention; none without any."""
    kernels = next((part for part in model.modules() if isinstance(part, MixKernels)), None)
    if kernels is None:
        return []
    return [(name, "absolute") for name in kernels.absolute_names] + [
        (name, "relative") for name in kernels.relative_names
    ]


def head_names(model: nn.Module, n_heads: int) -> list[tuple[str, str]]:
    """Name and kind (``absolute``, ``relative``, ``plain``) of each head, the same in all layers."""
    if not any(isinstance(part, MixAttention) for part in attentions(model)):
        return [(f"head {number}", "plain") for number in range(1, n_heads + 1)]
    named = kernel_names(model)
    names = [name for name, _ in named]
    return [
        (f"{name} (head {number})" if names.count(name) > 1 else name, kind)
        for number, (name, kind) in enumerate(named, 1)
    ]


@contextmanager
def _hooked(handles: Sequence[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def silenced(model: nn.Module, heads: Numbers) -> AbstractContextManager[None]:
    """Set the weights of some heads to zero, after refinement, while this lasts; ``ValueError`` if there are none."""
    layers = attentions(model)
    for layer in heads:
        if not 1 <= layer <= len(layers):
            raise ValueError(f"layer: {layer}; must be from 1 to {len(layers)}")

    def silence(_: nn.Module, inputs: Any, weights: Tensor, numbers: Sequence[int]) -> Tensor:
        if not all(1 <= number <= weights.size(1) for number in numbers):
            raise ValueError(f"heads: {list(numbers)}; must be from 1 to {weights.size(1)}")
        quiet = weights.clone()
        quiet[:, [number - 1 for number in numbers]] = 0.0
        return quiet

    hooks = {layer: partial(silence, numbers=numbers) for layer, numbers in heads.items()}
    return _hooked([layers[layer - 1].refinement.register_forward_hook(hook) for layer, hook in hooks.items()])


def closed(model: nn.Module, kernels: Numbers) -> AbstractContextManager[None]:
    """Set the gates of some kernels of an adaptive mixture to zero while this lasts; absolute kernels come first."""
    layers = [part for part in attentions(model) if isinstance(part, AdaptiveMixAttention)]

    def close(_: nn.Module, inputs: Any, gates: Tensor, numbers: Sequence[int], n_heads: int) -> Tensor:
        by_kernel = gates.unflatten(-1, (-1, n_heads)).clone()
        by_kernel[..., [number - 1 for number in numbers], :] = 0.0
        return by_kernel.flatten(-2)

    chosen = [(layers[layer - 1], numbers) for layer, numbers in kernels.items()]
    return _hooked(
        [
            attention.gates.register_forward_hook(partial(close, numbers=numbers, n_heads=attention.n_heads))
            for attention, numbers in chosen
        ]
    )


class Entropy:
    """Mean over events of one layer's entropies, head by head, over the log of the number of events in sight."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def __call__(self, _: Any, inputs: tuple[Tensor, ...], weights: Tensor) -> None:
        """Hook of a refinement, whose second input is the mask."""
        mask = inputs[1]
        visible = mask[:, 0].sum(-1)  # [B, L]
        # An event may look at itself, padding may not be looked at; of one visible event there is nothing to choose.
        counted = mask[:, 0].diagonal(dim1=1, dim2=2) & (visible > 1)
        entropy = torch.special.entr(weights.detach().double()).sum(-1)  # [B, H, L]
        share = entropy / visible.clamp(min=2).double().log().unsqueeze(1)
        total = (share * counted.unsqueeze(1)).sum((0, 2))
        self._total = total if self._total is None else self._total + total
        self._count += int(counted.sum())

    @property
    def mean(self) -> list[float]:
        """One number for each head; none before anything was seen."""
        return [] if self._total is None or not self._count else (self._total / self._count).tolist()


@contextmanager
def entropies(model: nn.Module) -> Iterator[list[Entropy]]:
    """Gather the entropies of each layer while this lasts; weights are those in use, after refinement."""
    gathered = [Entropy() for _ in attentions(model)]
    pairs = zip(attentions(model), gathered, strict=True)
    with _hooked([attention.refinement.register_forward_hook(each) for attention, each in pairs]):
        yield gathered


def head_rows(session: Session, metric: str, clean: NDArray[Any]) -> list[dict[str, Any]]:
    """Drop of a metric without each head, and each head's entropy; then without all heads of a kind at once.

    Of an adaptive mixture also without each kernel, in one layer and in all. ``clean`` has the values with all heads.
    """
    model = session.model
    with entropies(model) as gathered:
        session.test(trained=True)
    cases: list[tuple[Switch, dict[int, list[int]], dict[str, Any]]] = []
    names: list[list[tuple[str, str]]] = []
    for layer, each in enumerate(gathered, 1):
        names.append(head_names(model, len(each.mean)))
        for number, (name, kind) in enumerate(names[-1], 1):
            facts = {"layer": layer, "head": name, "kind": kind, "entropy": each.mean[number - 1]}
            cases.append((silenced, {layer: [number]}, facts))
    adaptive = any(isinstance(part, AdaptiveMixAttention) for part in attentions(model))
    layers = range(1, len(gathered) + 1)
    if adaptive:
        names = [kernel_names(model)] * len(gathered)
        for number, (name, kind) in enumerate(names[0], 1):
            shared = {"head": f"{name} kernel", "entropy": None}
            cases += [(closed, {layer: [number]}, {**shared, "layer": layer, "kind": kind}) for layer in layers]
            cases.append((closed, {layer: [number] for layer in layers}, {**shared, "layer": "all", "kind": "all"}))
    for kind in ("absolute", "relative"):
        chosen = {
            layer: [number for number, (_, other) in enumerate(names[layer - 1], 1) if other == kind]
            for layer in layers
        }
        if any(chosen.values()):
            head = f"all {kind} {'kernels' if adaptive else 'heads'}"
            facts = {"layer": "all", "head": head, "kind": "all", "entropy": None}
            cases.append((closed if adaptive else silenced, chosen, facts))
    rows = []
    for without, chosen, facts in tqdm(cases, desc="heads", unit="head", leave=False, disable=None):
        with without(model, chosen):
            rows.append({**facts, **drop_row(clean, session.test(trained=True)[0][metric])})
    return rows
