"""Layer-wise noise injection: states, or what they predict, should change little when layers' inputs are disturbed.

ADRRec (arXiv 2409.05022) names the technique without equations; ours follow the noise stability regularisation of Hua
et al. (NAACL 2021), SMART (Jiang et al., ACL 2020) and R-Drop (Liang et al., NeurIPS 2021). ``docs/interpretation.md``
says what was chosen and why.

Letters: ``B`` rows of a batch, ``L`` places, ``d`` hidden size, ``N`` events of a batch or positions with a target,
``C`` items that the loss compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_adrrec.collectives import mean_over_processes, rank
from recbole_adrrec.layers.transformer import Perturbation

NOISES = ("gaussian", "uniform", "in_manifold")

NOISE_FORMS = ("states", "predictions", "noisy")
"""Values of ``lni_form``: compare states, compare predictions, or take the loss on noisy states."""

Encode = Callable[[Perturbation | None], list[Tensor]]

Logits = Callable[[slice], Tensor]
"""Gives the logits of some of the positions, Float[n, C]."""


class Passes(NamedTuple):
    """Outputs of each layer, Float[B, L, d] or Float[N, d], of a clean and a noisy pass, and the energy of the noise.

    ``energy`` holds, by layers' numbers from 1, the sum of squares of the noise that went into the layer, over the
    events of this process, Float[], without a gradient.
    """

    clean: list[Tensor]
    noisy: list[Tensor]
    energy: dict[int, Tensor]


class LayerwiseNoise(nn.Module):
    """Noise in the inputs of layers, and the penalty on what becomes of it.

    The noise has ``sigma`` times the RMS of the place's input to the layer, and no gradient. It is added before the
    layer's norm, if there is one: a norm scales with its input, so that what the attention reads is disturbed by the
    same share, and so is the residual stream.

    States are padded, Float[B, L, d], with ``valid``, Bool[B, L], true at events; or they are those of the events
    alone, Float[N, d], and ``valid`` is None. Events in the same order get the same noise either way.

    Parameters
    ----------
    n_layers, sigma : int, float
        Layers of the encoder; RMS of the noise relative to that of the input.
    noise : str
        ``gaussian``, ``uniform`` (both independent per element) or ``in_manifold`` (the direction to another valid
        place of the batch).
    layers, layer_weights : sequence of int and of float, optional
        Numbers from 1 of the layers whose input is disturbed and whose output is compared, all by default; and
        ``lambda_l``, one for each, ones by default.
    stop_gradient : bool
        Whether the clean states ``h_l`` carry no gradient in ``R``.
    seed : int
        Seed of the noise, which takes nothing from torch's global random state.
    """

    step: Tensor

    def __init__(
        self,
        n_layers: int,
        sigma: float,
        noise: str,
        layers: Sequence[int] | None,
        layer_weights: Sequence[float] | None,
        stop_gradient: bool,
        seed: int,
    ) -> None:
        super().__init__()
        layers = list(range(1, n_layers + 1)) if layers is None else list(layers)
        layer_weights = [1.0] * len(layers) if layer_weights is None else list(layer_weights)
        self.sigma = sigma
        self.noise = noise
        self.layer_weights = dict(zip(layers, layer_weights, strict=True))
        self.stop_gradient = stop_gradient
        self.seed = seed
        # A count rather than a generator: it is copied and saved with the weights.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def inject(self, encode: Encode, valid: Tensor | None) -> tuple[list[Tensor], dict[int, Tensor]]:
        """One pass with noise in it: output of each layer, and the noise's energy as in ``Passes``.

        ``encode`` runs the encoder with the perturbation that it is given, or none.
        """
        device = self.step.device
        generator = torch.Generator(device)
        # A CPU's generator reads the low 32 bits alone.
        generator.manual_seed((self.seed * 1_000_003 + int(self.step) + rank() * 15_485_863) % 2**32)
        self.step += 1
        energy: dict[int, Tensor] = {}

        def perturb(layer: int, hidden: Tensor) -> Tensor:
            if layer not in self.layer_weights:
                return hidden
            clean = hidden.detach()
            events = clean if valid is None else clean[valid]  # [N, d]
            size = events.pow(2).mean(-1, keepdim=True).sqrt()
            added = self.sigma * size * self._draw(events, generator)
            energy[layer] = added.pow(2).sum()
            if valid is not None:
                added = torch.zeros_like(clean).masked_scatter_(valid.unsqueeze(-1), added)
            return hidden + added

        return encode(perturb), energy

    def forward(self, encode: Encode, valid: Tensor | None) -> Passes:
        """Both passes with the same dropout, so that the noise is the only difference; see ``inject``."""
        devices = [self.step.device] if self.step.is_cuda else []
        cpu_state = torch.get_rng_state()
        device_states = [torch.cuda.get_rng_state(device) for device in devices]
        clean = encode(None)
        with torch.random.fork_rng(devices):
            torch.set_rng_state(cpu_state)
            for device, state in zip(devices, device_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            return Passes(clean, *self.inject(encode, valid))

    def penalty(self, passes: Passes, valid: Tensor | None) -> Tensor:
        """``R = sum_l lambda_l mean ||h~_l - h_l||^2 / mean ||e_l||^2``, Float[], means over events.

        ``e_l`` is the noise that went into layer ``l``: ``R`` says by how much layers amplify noise, whatever the size
        of their states. Every layer that is compared has received noise of its own; what earlier layers received
        arrives there too, and is measured against the layer's own. The mean of ``||e_l||^2`` is over all processes.
        """
        terms = []
        for layer, weight in self.layer_weights.items():
            clean, noisy = passes.clean[layer - 1], passes.noisy[layer - 1]
            moved = (noisy - (clean.detach() if self.stop_gradient else clean)).pow(2).sum(-1)
            if valid is not None:
                moved = moved.masked_fill(~valid, 0.0)
            # Both means are over the same places: their counts cancel.
            size = mean_over_processes(passes.energy[layer])
            terms.append(weight * moved.sum() / size.clamp_min(torch.finfo(size.dtype).tiny))
        return torch.stack(terms).sum()

    def _draw(self, events: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of RMS one, Float[N, d]."""
        noise = torch.empty_like(events)
        if self.noise == "gaussian":
            return noise.normal_(generator=generator)
        if self.noise == "uniform":
            return noise.uniform_(-(3**0.5), 3**0.5, generator=generator)
        count = len(events)
        place = torch.arange(count, device=events.device)
        step = torch.randint(1, max(2, count), (count,), device=events.device, generator=generator)
        towards = events[(place + step) % max(1, count)] - events
        rms = towards.pow(2).mean(-1, keepdim=True).sqrt()
        return towards / rms.clamp_min(torch.finfo(rms.dtype).tiny)


def divergence(clean: Logits, noisy: Logits, count: int, rows: int, stop_gradient: bool = False) -> Tensor:
    """``(KL(p || q) + KL(q || p)) / 2``, Float[], of two passes' softmaxes; the mean over positions.

    With logits ``s`` and ``t`` it is ``(p - q) . (s - t) / 2``: the normalisers cancel, as ``p`` and ``q`` sum to one.
    R-Drop's form (SMART takes the sum of both directions). Logits of the ``count`` positions are made ``rows`` at a
    time, and again in the backward pass, so that those of all positions are never kept. With ``stop_gradient`` the
    clean predictions carry no gradient.
    """

    def of_block(part: slice) -> Tensor:
        first, second = clean(part), noisy(part)
        # Half precision would lose the difference of two sums.
        dtype = torch.promote_types(first.dtype, torch.float32)
        first, second = (first.detach() if stop_gradient else first).to(dtype), second.to(dtype)
        return ((first.softmax(-1) - second.softmax(-1)) * (first - second)).sum() / 2

    blocks = [slice(start, start + rows) for start in range(0, max(1, count), rows)]
    total = [checkpoint(of_block, part, use_reentrant=False, preserve_rng_state=False) for part in blocks]
    return torch.stack(total).sum() / max(1, count)


def gradient_ratio(penalty: Tensor, loss: Tensor, parameters: Iterable[nn.Parameter]) -> float:
    """Norm of the gradient of ``penalty`` over that of ``loss``, both Float[]; their graphs are kept."""
    over = list(parameters)
    norms = []
    for value in (penalty, loss):
        gradients = torch.autograd.grad(value, over, retain_graph=True, allow_unused=True)
        norms.append(sum(float(each.pow(2).sum()) for each in gradients if each is not None) ** 0.5)
    return norms[0] / max(norms[1], torch.finfo(torch.float32).tiny)
