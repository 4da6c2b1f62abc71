"""Layer-wise noise injection: states should move little when layers' inputs are disturbed.

ADRRec (arXiv 2409.05022) names the technique without equations; ours follow the noise stability
regularisation of Hua et al. (NAACL 2021). ``docs/interpretation.md`` says what was chosen and why.

Letters: ``B`` rows of a batch, ``L`` places, ``d`` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recbole_adrrec.collectives import mean_over_processes, rank
from recbole_adrrec.layers.transformer import Perturbation

NOISES = ("gaussian", "uniform", "in_manifold")

Encode = Callable[[Perturbation | None], list[Tensor]]


class LayerwiseNoise(nn.Module):
    r"""Compare a clean pass with a noisy one.

    ``R = sum_l lambda_l mean ||h~_l - h_l||^2 / mean ||h_l||^2``, means over valid places; no
    gradient through the denominator. The noise has ``sigma`` times the RMS of the place's input
    to the layer, and no gradient.

    Parameters
    ----------
    n_layers : int
        Layers of the encoder.
    sigma : float
        RMS of the noise relative to that of what it is added to.
    noise : str
        ``gaussian``, ``uniform`` (both independent per element) or ``in_manifold`` (the direction
        to another valid place of the batch).
    layers : sequence of int, optional
        Numbers from 1 of the layers whose input is disturbed and whose output is compared; all by
        default.
    layer_weights : sequence of float, optional
        ``lambda_l``, one for each of ``layers``; ones by default.
    stop_gradient : bool
        Whether the clean states ``h_l`` carry no gradient in ``R``.
    seed : int
        Seed of the noise, which takes nothing from torch's global random state.

    Raises
    ------
    ValueError
        If an argument is out of range.
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
        if not sigma > 0:
            raise ValueError(f"lni_sigma: {sigma}; must be above 0")
        if noise not in NOISES:
            raise ValueError(f"lni_noise: {noise}; must be one of {', '.join(NOISES)}")
        if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(1, n_layers + 1)):
            raise ValueError(f"lni_layers: {layers}; must be different layer numbers from 1 to {n_layers}")
        if len(layer_weights) != len(layers) or min(layer_weights) < 0:
            raise ValueError(
                f"lni_layer_weights: {layer_weights}; must be {len(layers)} weights of at least 0,"
                " one for each layer in lni_layers"
            )
        self.sigma = sigma
        self.noise = noise
        self.layer_weights = dict(zip(layers, layer_weights, strict=True))
        self.stop_gradient = stop_gradient
        self.seed = seed
        # A count rather than a generator: it is copied and saved with the weights.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, encode: Encode, valid: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run both passes.

        Parameters
        ----------
        encode : callable
            Runs the encoder with the perturbation that it is given, or none; gives the output
            of each layer, Float[B, L, d].
        valid : Bool[B, L]
            True at events.

        Returns
        -------
        list of Float[B, L, d]
            States of the clean pass.
        Float[]
            ``R``.
        """
        devices = [valid.device] if valid.is_cuda else []
        cpu_state = torch.get_rng_state()
        device_states = [torch.cuda.get_rng_state(device) for device in devices]
        clean = encode(None)
        # The same dropout masks in both passes, so that the noise is the only difference.
        with torch.random.fork_rng(devices):
            torch.set_rng_state(cpu_state)
            for device, state in zip(devices, device_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            noisy = encode(self._perturbation(valid))
        return clean, self._penalty(clean, noisy, valid)

    def _perturbation(self, valid: Tensor) -> Perturbation:
        generator = torch.Generator(valid.device)
        generator.manual_seed((self.seed * 1_000_003 + int(self.step) + (rank() << 40)) % 2**63)
        self.step += 1

        def perturb(layer: int, hidden: Tensor) -> Tensor:
            if layer not in self.layer_weights:
                return hidden
            clean = hidden.detach()
            size = clean.pow(2).mean(-1, keepdim=True).sqrt()
            return hidden + self.sigma * size * self._draw(clean, valid, generator)

        return perturb

    def _draw(self, hidden: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of RMS one, Float[B, L, d]."""
        noise = torch.empty_like(hidden)
        if self.noise == "gaussian":
            return noise.normal_(generator=generator)
        if self.noise == "uniform":
            return noise.uniform_(-(3**0.5), 3**0.5, generator=generator)
        events = hidden[valid]  # [N, d]
        count = len(events)
        place = torch.arange(count, device=hidden.device)
        step = torch.randint(1, max(2, count), (count,), device=hidden.device, generator=generator)
        towards = events[(place + step) % max(1, count)] - events
        rms = towards.pow(2).mean(-1, keepdim=True).sqrt()
        towards = towards / rms.clamp_min(torch.finfo(rms.dtype).tiny)
        return noise.zero_().masked_scatter_(valid.unsqueeze(-1), towards)

    def _penalty(self, clean: list[Tensor], noisy: list[Tensor], valid: Tensor) -> Tensor:
        terms = []
        for layer, weight in self.layer_weights.items():
            state, disturbed = clean[layer - 1], noisy[layer - 1]
            fixed = state.detach()
            moved = (disturbed - (fixed if self.stop_gradient else state)).pow(2).sum(-1)
            # Both means are over the same places: their counts cancel.
            size = mean_over_processes(fixed.pow(2).sum(-1).masked_fill(~valid, 0.0).sum())
            moved = moved.masked_fill(~valid, 0.0).sum()
            terms.append(weight * moved / size.clamp_min(torch.finfo(size.dtype).tiny))
        return torch.stack(terms).sum()
