"""Dropout from 16 random bits for each element."""

import pytest
import torch

from recbole_adrrec.layers.dropout import STEPS, Dropout

SHAPE = (7, 311, 129)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_share_and_scale(p):
    torch.manual_seed(0)
    made = Dropout(p)(torch.ones(SHAPE, dtype=torch.float64))
    kept = made != 0
    share = 1 - round(p * STEPS) / STEPS
    error = (share * (1 - share) / made.numel()) ** 0.5
    assert abs(kept.double().mean().item() - share) < 4 * error
    torch.testing.assert_close(made[kept], torch.full_like(made[kept], 1 / share))


def test_neighbours_are_independent():
    """The four decisions of one draw, and those of successive draws, are not correlated."""
    torch.manual_seed(0)
    kept = (Dropout(0.3)(torch.ones(2_000_000)) != 0).double()
    kept -= kept.mean()
    for apart in (1, 2, 3, 4, 8, 16):
        correlation = (kept[apart:] * kept[:-apart]).mean() / kept.square().mean()
        assert abs(correlation) < 4 / len(kept) ** 0.5


def test_gradient_seed_and_evaluation():
    dropout, given = Dropout(0.4), torch.randn(5, 33, requires_grad=True)
    torch.manual_seed(3)
    made = dropout(given)
    made.sum().backward()
    torch.testing.assert_close(given.grad, (made / given).detach())
    torch.manual_seed(3)
    assert torch.equal(dropout(given), made)
    assert not torch.equal(dropout(given), made)
    assert dropout.eval()(given) is given
    assert Dropout(0.0)(given) is given
    assert not Dropout(1.0)(given).any()
    assert dropout.train()(torch.zeros(0, 4)).shape == (0, 4)
