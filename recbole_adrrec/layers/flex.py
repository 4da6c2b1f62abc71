"""Attention over rows of different lengths that stand one behind another, for GPUs.

Letters: ``N`` events of a batch, ``H`` heads, ``F`` features, ``dh`` width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_adrrec.layers.layout import JaggedGroup


@cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def block_mask(group: JaggedGroup) -> Any:
    """torch's ``BlockMask`` of the pairs that may attend."""
    from torch.nn.attention.flex_attention import create_block_mask

    def may_attend(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return group.may_attend(query, key)

    count = len(group.row)
    return create_block_mask(may_attend, None, None, count, count, device=str(group.row.device))


def flex_attend(query: Tensor, key: Tensor, value: Tensor, group: JaggedGroup) -> Tensor:
    """``softmax(query @ key) @ value`` within each row, Float[1, H, N, dh].

    On a GPU by torch's ``flex_attention``, which skips blocks of pairs of different rows; on a CPU, which has no
    gradient of it, in its plain form with all ``N x N`` pairs: for tests alone.

    Parameters
    ----------
    query, key : Float[1, H, N, F]
        Their products are the scores.
    value : Float[1, H, N, dh]
        Values that are summed.
    group : JaggedGroup
        Which keys a query may attend to.
    """
    if query.is_cuda:
        return _compiled()(query, key, value, block_mask=block_mask(group), scale=1.0)
    place = torch.arange(query.size(2), device=query.device)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=group.may_attend(place.unsqueeze(1), place), scale=1.0
    )
