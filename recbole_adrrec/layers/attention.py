"""Attention in steps that models and refinements share.

``project -> score -> weights -> refinement -> dropout -> aggregate -> merge``: ``project`` and ``merge`` work on each
event by itself, on states of any layout (``layers.layout``); the steps between on one group of rows after another.
``Attention.route`` alone decides how those are computed.

Letters: ``B`` rows of a batch, ``N`` events, ``b`` rows of a group, ``H`` heads, ``W`` places, ``d`` hidden size,
``dh`` width of a head, ``F`` features. ``...`` stands for ``B, L`` or ``N``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adrrec.layers.dropout import Dropout
from recbole_adrrec.layers.kernels import MixContext
from recbole_adrrec.layers.layout import Group, JaggedGroup, Layout
from recbole_adrrec.layers.refinement import Refinement
from recbole_adrrec.layers.softmax import flex_attend, fused_cpu_attention, masked_softmax


class Projected(NamedTuple):
    """Queries, keys and values: ``[..., H, F]`` of all events, ``[b, H, W, F]`` in a group.

    Attributes
    ----------
    query, key : Tensor
        Their products are the scores, or a part of them.
    value : Tensor
        Summed by the weights.
    pairs : tuple of Tensor
        Queries to relative kernels, ``[..., h, F]`` each; in ``MixAttention`` a constant follows.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    pairs: tuple[Tensor, ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> Projected:
        """Apply a function to each tensor."""
        query, key, value = map(function, self[:3])
        return Projected(query, key, value, tuple(map(function, self.pairs)))


class Attention(nn.Module):
    """Base of all attentions: the steps, with a refinement of the weights and dropout on what it gives."""

    sums_are_products = True
    """True where ``aggregate`` gives ``weights @ value``."""

    scores_are_products = True
    """True where the scores are ``query @ key`` unless there are ``pairs``."""

    weights_sum_to_one = True
    """True where the weights of a query are a distribution over its keys."""

    def __init__(self, dropout: float, refinement: Refinement | None = None) -> None:
        super().__init__()
        self.refinement = Refinement() if refinement is None else refinement
        self.dropout = Dropout(dropout)

    def project(self, query: Tensor, hidden: Tensor, context: Any) -> Projected:
        """Queries, keys and values of each event, from states for queries, states for keys, and the layers' context."""
        raise NotImplementedError

    def score_parts(self, projected: Projected, context: Any, group: int) -> list[Tensor]:
        """Scores of a group, Float[b, h, W, W] each, of some heads each; ``H`` together."""
        return [projected.query @ projected.key.transpose(2, 3)]

    def aggregate(self, weights: Tensor, projected: Projected, context: Any, group: int) -> Tensor:
        """Output of the heads, Float[b, H, W, dh], from weights, Float[b, H, W, W]."""
        return weights @ projected.value

    def merge(self, summed: Tensor) -> Tensor:
        """Output, shaped like the states, of joined heads, Float[..., H, dh]."""
        raise NotImplementedError

    def route(self, projected: Projected, group: Group) -> str:
        """Name of the way in which a group's weights and sums are computed: the one place that decides.

        - ``steps``: one by one, with whole weights; for refinements and hooks, values of pairs, compiled code,
          autocast and GPUs.
        - ``sdpa``: torch's ``scaled_dot_product_attention``, where scores are products of queries and keys: half the
          time on a CPU without dropout, and no ``W x W`` weights. With dropout it is slower there than ``fused``.
        - ``fused``: softmax, dropout and sum in one (``layers.softmax``), on a CPU.
        - ``flex``: torch's ``flex_attention`` over rows one behind another, without dropout; its plain form on a CPU.
        """
        if isinstance(group, JaggedGroup):
            return "flex"
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (self.refinement, self.dropout))
        if hooked or type(self.refinement) is not Refinement or not self.sums_are_products:
            return "steps"
        query = projected.query
        dropped = self.training and self.dropout.p > 0
        if self.scores_are_products and not projected.pairs and (query.is_cuda or not dropped):
            return "sdpa"
        plain = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
        return "fused" if query.device.type == "cpu" and plain else "steps"

    def forward(self, hidden: Tensor, layout: Layout, context: Any, query: Tensor | None = None) -> Tensor:
        """Attend to states, Float[..., d] (Float[..., 2, d] of Gaussians), which are laid out as ``layout`` says.

        ``context`` has the results of the kernels for the batch, of a kind that depends on the attention. ``query`` are
        states for the queries; ``hidden`` by default.
        """
        projected = self.project(hidden if query is None else query, hidden, context)
        return self.merge(self.sum_groups(projected, layout, context))

    def sum_groups(self, projected: Projected, layout: Layout, context: Any) -> Tensor:
        """Output of the heads for all places, Float[..., H, dh], of one group of rows after another."""
        summed = []
        for number, group in enumerate(layout.groups):
            own = projected.map(group.by_head)
            summed.append(group.unpad(self._attend(own, group, context, number).transpose(1, 2)))
        return summed[0] if len(summed) == 1 else torch.cat(summed)

    def _attend(self, projected: Projected, group: Group, context: Any, number: int) -> Tensor:
        route = self.route(projected, group)
        if route == "flex":
            assert isinstance(group, JaggedGroup)
            return flex_attend(*projected[:3], group)
        dropout = self.dropout.p if self.training else 0.0
        if route == "sdpa":
            return F.scaled_dot_product_attention(*projected[:3], attn_mask=group.mask, dropout_p=dropout, scale=1.0)
        scores = self.score_parts(projected, context, number)
        if route == "fused":
            return fused_cpu_attention(scores, group.mask, projected.value, dropout)
        weights = masked_softmax(scores[0] if len(scores) == 1 else torch.cat(scores, 1), group.mask)
        weights = self.dropout(self.refinement(weights, group.mask))
        return self.aggregate(weights, projected, context, number)


class ProjectedAttention(Attention):
    """Attention between linear maps of the states, cut into ``H`` heads; ``H`` divides the hidden size ``d``."""

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        dropout: float,
        refinement: Refinement | None = None,
        project_output: bool = True,
    ) -> None:
        super().__init__(dropout, refinement)
        self.n_heads = n_heads
        self.scale = (hidden_size // n_heads) ** -0.5
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size) if project_output else nn.Identity()

    def split(self, projected: Tensor) -> Tensor:
        """``[..., d]`` as ``[..., H, dh]``."""
        return projected.unflatten(-1, (self.n_heads, -1))

    def scaled_query(self, query: Tensor) -> Tensor:
        """Queries, Float[..., H, dh], over the root of their width."""
        # Scaling the queries costs N x d where scaling the scores costs W x W.
        return self.split(self.query(query)) * self.scale

    def project(self, query: Tensor, hidden: Tensor, context: Any) -> Projected:
        """Queries, keys and values of each event."""
        return Projected(self.scaled_query(query), self.split(self.key(hidden)), self.split(self.value(hidden)))

    def merge(self, summed: Tensor) -> Tensor:
        """Joined heads, projected."""
        return self.output(summed.flatten(-2))


class DotProductAttention(ProjectedAttention):
    """Attention by scaled dot products, ``q_i . k_j / sqrt(dh)`` (Vaswani et al., NeurIPS 2017; SASRec, ICDM 2018)."""


class MixAttention(ProjectedAttention):
    """One head for each kernel (MEANTIME, Cho et al., RecSys 2020; ADRRec's mix attention).

    Absolute heads, which come first: ``(q_i + P^q E_i) . (k_j + P^k E_j) / sqrt(dh)``. Relative heads:
    ``(q_i . k_j + (q_i + b) . P phi(i, j)) / sqrt(dh)``, the second term computed as ``u_i . phi(i, j)`` with
    ``u_i = P^T (q_i + b)``. Kernels enter the scores, never the values.
    """

    def __init__(
        self,
        hidden_size: int,
        n_absolute: int,
        n_relative: int,
        dropout: float,
        refinement: Refinement | None = None,
    ) -> None:
        n_heads = n_absolute + n_relative
        super().__init__(hidden_size, n_heads, dropout, refinement)
        self.n_absolute = n_absolute
        head_size = hidden_size // n_heads

        def projections(count: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(hidden_size, head_size) for _ in range(count))

        self.absolute_query = projections(n_absolute)
        self.absolute_key = projections(n_absolute)
        self.relative_key = projections(n_relative)
        self.relative_bias = nn.Parameter(torch.zeros(n_relative, head_size))

    def project(self, query: Tensor, hidden: Tensor, context: MixContext) -> Projected:
        """Queries and keys with their absolute kernels, values, and queries to the relative kernels."""
        plain = super().project(query, hidden, context)
        queries, keys = list(plain.query.unbind(-2)), list(plain.key.unbind(-2))
        for head, (on_query, on_key) in enumerate(context.absolute):
            queries[head] = queries[head] + self.absolute_query[head](on_query) * self.scale
            keys[head] = keys[head] + self.absolute_key[head](on_key)
        pairs = [
            self.relative_query(head, query).unsqueeze(-2) for head, query in enumerate(queries[self.n_absolute :])
        ]
        return Projected(torch.stack(queries, -2), torch.stack(keys, -2), plain.value, tuple(pairs))

    def relative_query(self, head: int, query: Tensor) -> Tensor:
        """``u_i = P^T (q_i + b)`` and the constant ``(q_i + b) . c``, Float[..., F + 1], of ``P phi + c``."""
        projection: Any = self.relative_key[head]
        biased = query + self.relative_bias[head] * self.scale
        return biased @ torch.cat([projection.weight, projection.bias.unsqueeze(1)], 1)

    def score_parts(self, projected: Projected, context: MixContext, group: int) -> list[Tensor]:
        """Scores of the absolute heads together, and of each relative one."""
        scores = []
        if self.n_absolute:
            query, key = (part[:, : self.n_absolute] for part in projected[:2])
            scores.append(query @ key.transpose(2, 3))
        biases = zip(context.relative[group], projected.pairs, strict=True)
        for head, (pair_bias, pair) in enumerate(biases, self.n_absolute):
            on_pair = pair_bias(pair[..., :-1], pair[..., -1:])
            own = projected.query[:, head], projected.key[:, head].transpose(1, 2)
            # In place spares a pass over all pairs; autocast knows the other form alone.
            mixed = torch.is_autocast_enabled(on_pair.device.type)
            both = torch.baddbmm(on_pair[:, 0], *own) if mixed else on_pair[:, 0].baddbmm_(*own)
            scores.append(both.unsqueeze(1))
        return scores


class AdaptiveMixAttention(ProjectedAttention):
    """All kernels in every head, each behind a gate that the query sets.

    ``S_h,ij = q_h,i . k_h,j / sqrt(dh) + sum_m g_hm(x_i) s_hm(i, j)``, with ``x_i`` the state of the query. ``s`` of an
    absolute kernel is ``((q_i + P^q E_i) . (k_j + P^k E_j) - q_i . k_j) / sqrt(dh)``, of a relative one
    ``(q_i + b) . P phi(i, j) / sqrt(dh)``, of a bias kernel ``T[bucket(i, j)]``. ``P^k`` and ``P`` have no biases: they
    would add the same to all keys of a query, which a softmax takes out again. Our reading of "adaptive" in ADRRec's
    title (arXiv 2409.05022); the gates come from the query as in gated relative position biases (WavLM, Chen et al.,
    2022).

    At the start every added term is zero and each has a gradient: the gates of kernels are ``W x + c`` with zero ``W``
    and ``c`` before terms that are not zero, those of bias kernels ``1 + W x`` before tables of zeros.

    Absolute terms are sums of products, so they widen queries and keys: ``[q + sum_m g_m P^q E ; g_m (q + P^q E)]`` and
    ``[k ; P^k E]``, ``dh`` features more for each kernel.

    ``relative_widths`` are the features of each relative kernel; ``relative_is_bias`` says which are bias kernels.
    """

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        n_absolute: int,
        relative_widths: list[int],
        relative_is_bias: list[bool],
        dropout: float,
        refinement: Refinement | None = None,
    ) -> None:
        super().__init__(hidden_size, n_heads, dropout, refinement)
        width = hidden_size // n_heads
        self.n_absolute = n_absolute
        self.is_bias = list(relative_is_bias)
        self.absolute_query = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(n_absolute))
        self.absolute_key = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(n_absolute))
        kinds = list(zip(relative_widths, self.is_bias, strict=True))
        self.relative_key = nn.ModuleList(
            nn.Linear(features, hidden_size, bias=False) for features, is_bias in kinds if not is_bias
        )
        self.relative_bias = nn.Parameter(torch.zeros(len(self.relative_key), n_heads, width))
        self.bias_tables = nn.ParameterList(
            nn.Parameter(torch.zeros(n_heads, features)) for features, is_bias in kinds if is_bias
        )
        self.gates = nn.Linear(hidden_size, (n_absolute + len(kinds)) * n_heads)
        self.start_weights()

    def start_weights(self) -> None:
        """Close the gates of kernels, and open those of the bias kernels, whose tables are zero."""
        nn.init.zeros_(self.gates.weight)
        start = torch.tensor([0.0] * self.n_absolute + [float(is_bias) for is_bias in self.is_bias])
        with torch.no_grad():
            self.gates.bias.copy_(start.repeat_interleave(self.n_heads))

    def gate(self, query: Tensor) -> Tensor:
        """Gates of the queries' states: Float[..., M, H] for ``M`` kernels, absolute ones first."""
        return self.gates(query).unflatten(-1, (-1, self.n_heads))

    def project(self, query: Tensor, hidden: Tensor, context: MixContext) -> Projected:
        """Queries and keys widened by the absolute kernels, values, and queries to the relative kernels."""
        plain = super().project(query, hidden, context)
        gates = self.gate(query).unsqueeze(-1).unbind(-3)  # [..., H, 1] each
        first, queries, keys = plain.query, [], [plain.key]
        for number, (on_query, on_key) in enumerate(context.absolute):
            added = self.split(self.absolute_query[number](on_query)) * self.scale
            first = first + gates[number] * added
            queries.append(gates[number] * (plain.query + added))
            keys.append(self.split(self.absolute_key[number](on_key)))
        pairs, biases, keyed = [], iter(self.bias_tables), 0
        for gate, is_bias in zip(gates[self.n_absolute :], self.is_bias, strict=True):
            if is_bias:
                pairs.append(gate * next(biases))
            else:
                pairs.append(gate * self.relative_query(keyed, plain.query))
                keyed += 1
        return Projected(torch.cat([first, *queries], -1), torch.cat(keys, -1), plain.value, tuple(pairs))

    def relative_query(self, number: int, query: Tensor) -> Tensor:
        """``u_i = P^T (q_i + b)``, Float[..., H, F]."""
        projection: Any = self.relative_key[number]
        by_head = projection.weight.unflatten(0, (self.n_heads, -1))  # [H, dh, F]
        biased = query + self.relative_bias[number] * self.scale
        return torch.einsum("...hd,hdf->...hf", biased, by_head)

    def score_parts(self, projected: Projected, context: MixContext, group: int) -> list[Tensor]:
        """Scores of all heads."""
        scores = projected.query @ projected.key.transpose(2, 3)
        for pair_bias, pair in zip(context.relative[group], projected.pairs, strict=True):
            scores = scores + pair_bias(pair, None)
        return [scores]


class AttentionWeights(NamedTuple):
    """Weights of one layer, Float[B, H, L, L], before and after refinement."""

    plain: Tensor
    refined: Tensor


@contextmanager
def captured_weights(module: nn.Module) -> Iterator[list[AttentionWeights]]:
    """Collect the weights of every attention inside ``module`` while the context lasts.

    Each group of rows of each attention adds an entry, in the order of running; tensors are detached.
    """
    collected: list[AttentionWeights] = []

    def collect(_: nn.Module, inputs: tuple[Tensor, ...], refined: Tensor) -> None:
        collected.append(AttentionWeights(inputs[0].detach(), refined.detach()))

    attentions = [part for part in module.modules() if isinstance(part, Attention)]
    handles = [part.refinement.register_forward_hook(collect) for part in attentions]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
