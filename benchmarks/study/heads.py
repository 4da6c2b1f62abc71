"""What each attention head does in a trained model of ours: what is lost without it, how sharply it looks, and at what.

Heads are reached by hooks on the refinement that every attention's weights go through; no layer knows of this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from recbole_adrrec.layers.attention import Attention, MixAttention
from recbole_adrrec.layers.kernels import ABSOLUTE_KERNELS, RELATIVE_KERNELS, MixKernels
from recbole_adrrec.layers.moments import Moments
from recbole_adrrec.layers.relative_kernels import DistanceKernel
from study.loaded import Trained
from study.plots import KernelCurve
from study.robustness import drop_row

SIGMAS = (0.1, 0.3, 1.0)

LONGEST_GAP = 365 * 86400


def attentions(model: nn.Module) -> list[Attention]:
    """The attentions of a model of ours, layer by layer; none for another."""
    return [part for part in model.modules() if isinstance(part, Attention)]


def head_names(model: nn.Module, n_heads: int) -> list[tuple[str, str]]:
    """Name and kind (``absolute``, ``relative``, ``plain``) of each head, the same in all layers."""
    kernels = next((part for part in model.modules() if isinstance(part, MixKernels)), None)
    if kernels is None:
        return [(f"head {number}", "plain") for number in range(1, n_heads + 1)]
    named = []
    for kind, parts, known in (
        ("absolute", kernels.absolute, ABSOLUTE_KERNELS),
        ("relative", kernels.relative, RELATIVE_KERNELS),
    ):
        names: dict[type[nn.Module], str] = {kernel: name for name, kernel in known.items()}
        named += [(names[type(part)], kind) for part in parts]
    twice = {name for name, _ in named if sum(other == name for other, _ in named) > 1}
    return [
        (f"{name} (head {number})" if name in twice else name, kind) for number, (name, kind) in enumerate(named, 1)
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
    cases = [
        (
            {layer: [number]},
            {"layer": layer, "head": name, "kind": kind, "entropy": gathered[layer - 1].mean[number - 1]},
        )
        for layer, named in enumerate(names, 1)
        for number, (name, kind) in enumerate(named, 1)
    ]
    for kind in ("absolute", "relative"):
        chosen = {
            layer: [number for number, (_, other) in enumerate(named, 1) if other == kind]
            for layer, named in enumerate(names, 1)
        }
        if any(chosen.values()):
            cases.append((chosen, {"layer": "all", "head": f"all {kind} heads", "kind": "all", "entropy": None}))
    rows = []
    for heads, told in tqdm(cases, desc="heads", unit="head", leave=False, disable=None):
        with silenced(model, heads):
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
        try:
            clean = encoder(*inputs)[-1].flatten(2)
        finally:
            switched_on = True
        valid = inputs[1][:, 0].diagonal(dim1=1, dim2=2)
        distance = (states[-1].flatten(2) - clean).norm(dim=-1) / clean.norm(dim=-1).clamp_min(1e-12)
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
def mean_queries(model: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Gather, while this lasts, the projected query at each row's last event: a list of Float[B, d] for each layer."""
    found: list[list[Tensor]] = []
    handles = []
    last: dict[str, Tensor] = {}

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        valid = inputs[1][:, 0].diagonal(dim1=1, dim2=2)
        last["place"] = (valid * torch.arange(1, valid.size(1) + 1, device=valid.device)).argmax(1)

    try:
        for attention in attentions(model):
            if not isinstance(attention, MixAttention):
                continue
            queries: list[Tensor] = []
            found.append(queries)

            def gather(_: nn.Module, __: Any, query: Tensor, queries: list[Tensor] = queries) -> None:
                rows = torch.arange(len(query), device=query.device)
                queries.append(query[rows, last["place"]].detach())

            handles.append(attention.register_forward_pre_hook(note))
            handles.append(attention.query.register_forward_hook(gather))
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def kernel_curves(model: Any, queries: Sequence[Tensor], gaps: NDArray[np.float64], places: int) -> list[KernelCurve]:
    """What the relative heads add to the score of an event, over its gap to the query.

    Parameters
    ----------
    model : SequenceRecommender
        With mix-attention.
    queries : sequence of Float[d]
        For each layer a projected query (before scaling), mostly the mean over users: the heads' own part of
        ``attention.query``'s output is used.
    gaps : Float[g, n]
        Gaps in seconds for kernels of time, the first row zeros: a curve has the mean of each row, and its least and
        most.
    places : int
        Distances from 0 to ``places - 1`` for the kernel of distance.

    Returns
    -------
    list of KernelCurve
        ``(q + b) . P phi(gap) / sqrt(dh)``, counted from its value at no gap. A softmax ignores what is added alike
        to all events.
    """
    kernels: MixKernels = model.kernels
    mixed = [part for part in attentions(model) if isinstance(part, MixAttention)]
    names: dict[type[nn.Module], str] = {kernel: name for name, kernel in RELATIVE_KERNELS.items()}
    curves = []
    for layer, (attention, query) in enumerate(zip(mixed, queries, strict=True), 1):
        by_head = (query.view(attention.n_heads, -1) * attention.scale)[attention.n_absolute :]
        biased = by_head + attention.relative_bias * attention.scale
        for head, kernel in enumerate(kernels.relative):
            distance = isinstance(kernel, DistanceKernel)
            # Keys before one moment: the last place asks, or, for gaps, any place at that moment.
            keys = torch.zeros(1, places) if distance else -torch.from_numpy(gaps)
            keys = keys.double().to(query.device)
            moments = Moments(
                torch.arange(keys.size(1), device=query.device).expand(keys.shape),
                torch.zeros_like(keys),
                keys,
                torch.ones_like(keys, dtype=torch.bool),
            )
            projection = attention.relative_key[head]
            projected = (biased[head] @ projection.weight).expand(*keys.shape, -1)
            constant = (biased[head] * projection.bias).sum().expand(*keys.shape, 1)
            scores = kernel(moments, query.dtype)(projected, constant)[:, -1].double().cpu().numpy()
            added = scores[0, ::-1, None] if distance else scores
            added = added - added[0, 0]
            x = np.arange(places) if distance else gaps.mean(1)
            curves.append(KernelCurve(names[type(kernel)], layer, x, added.mean(1), added.min(1), added.max(1)))
    return curves


def learned_kernels(trained: Trained, metric: str) -> list[KernelCurve]:
    """The curves of a model for the mean query of its test rows; none without relative heads."""
    model = trained.model
    if not any(isinstance(part, MixAttention) and len(part.relative_key) for part in attentions(model)):
        return []
    with mean_queries(model) as found:
        trained.values(metric)
    means = [torch.cat(list(each)).mean(0) for each in found]
    return kernel_curves(model, means, gap_grid(), int(model.max_seq_length))


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
