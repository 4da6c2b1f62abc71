"""Sums and barriers over the processes that train together; a single process is a group of one."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def rank() -> int:
    """Number of this process among those of ``torch.distributed``, from 0; 0 for a single one."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together; 1 for a single one."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def barrier() -> None:
    """Wait for the other processes; nothing to do for a single one."""
    if world_size() > 1:
        distributed.barrier()


@torch.no_grad()
def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor, Float[...], over all processes, without a gradient; every process has to call it."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / world_size()


def share_of(count: int, device: torch.device) -> Tensor | float:
    """``count`` divided by its mean over all processes; 1 where all are 0.

    Processes average their gradients: a mean over ``count`` things, times this, averages to the mean over the things
    of all processes.
    """
    if world_size() == 1:
        return 1.0
    own = torch.tensor(float(count), device=device)
    mean = mean_over_processes(own)
    return torch.where(mean > 0, own / mean.clamp(min=1e-12), 1.0)
