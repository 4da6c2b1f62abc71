"""Query times and masks of the objectives, heads, and losses beside RecBole's."""

import pytest
import torch
from recbole.model.loss import BPRLoss
from torch.nn import functional as F

from recbole_adrrec.layers.draws import draw_cloze_mask
from recbole_adrrec.layers.heads import ItemHead, ProjectedItemHead
from recbole_adrrec.losses import bayesian_personalized_ranking, item_cross_entropy
from recbole_adrrec.models.inputs import append_event, known_times, next_times, valid_places

SEQUENCE = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]])
LENGTH = torch.tensor([4, 2, 0])
NEW = torch.tensor([7, 8, 9])


def test_a_full_row_loses_its_oldest_event():
    appended = append_event(SEQUENCE, LENGTH, NEW, 4)
    assert appended.tolist() == [[2, 3, 4, 7], [5, 6, 8, 0], [9, 0, 0, 0]]


def test_a_row_grows_where_there_is_room():
    appended = append_event(SEQUENCE, LENGTH, NEW, 6)
    assert appended.tolist() == [[1, 2, 3, 4, 7], [5, 6, 8, 0, 0], [9, 0, 0, 0, 0]]


def test_next_times():
    shifted = next_times(SEQUENCE, LENGTH, NEW)
    assert shifted[0].tolist() == [2, 3, 4, 7]
    assert shifted[1, :2].tolist() == [6, 8]


def test_known_times_give_nothing_away():
    time = torch.tensor([[10, 20, 30, 40], [10, 20, 30, 40], [10, 20, 30, 40]])
    known = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0]]).bool()
    assert known_times(time, known).tolist() == [[10, 10, 10, 40], [30, 30, 30, 30], [20, 20, 30, 30]]


@pytest.mark.parametrize("ratio", [1e-6, 0.4, 1 - 1e-6])
def test_one_event_is_masked_and_one_is_known(ratio):
    torch.manual_seed(0)
    length = torch.arange(1, 7).repeat(50)
    valid = valid_places(length, 6)
    maskable = valid & (torch.rand(valid.shape) < 0.6)
    masked = draw_cloze_mask(maskable, valid, ratio)
    assert not (masked & ~maskable).any()
    enough = (length >= 2) & maskable.any(1)
    assert torch.equal(masked.any(1), enough)
    assert (valid & ~masked).any(1).all()


def test_the_mask_follows_ratio_and_seed():
    valid = torch.ones(200, 50, dtype=torch.bool)
    torch.manual_seed(0)
    masked = draw_cloze_mask(valid, valid, 0.3)
    assert masked.double().mean() == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(draw_cloze_mask(valid, valid, 0.3), masked)
    torch.manual_seed(0)
    assert torch.equal(draw_cloze_mask(valid, valid, 0.3), masked)


def test_losses_agree_with_recboles():
    torch.manual_seed(0)
    scores = torch.randn(2, 5)
    torch.testing.assert_close(bayesian_personalized_ranking(scores[0], scores[1]), BPRLoss()(scores[0], scores[1]))
    far = bayesian_personalized_ranking(torch.tensor([-1e4]), torch.tensor([1e4]))
    assert far.isfinite()


def test_without_targets_the_loss_is_zero_and_has_gradients():
    states, items = torch.zeros(0, 4, requires_grad=True), torch.ones(9, 4, requires_grad=True)
    pair = torch.zeros(0, requires_grad=True), torch.zeros(0, requires_grad=True)
    for loss, inputs in (
        (item_cross_entropy(states, items, None, torch.zeros(0, dtype=torch.long)), [states, items]),
        (bayesian_personalized_ranking(*pair), pair),
    ):
        assert loss == 0
        loss.backward()
        assert all(part.grad is not None for part in inputs)


def test_the_head_scores_items_alone_as_among_all():
    torch.manual_seed(0)
    head, table = ProjectedItemHead(8, 10, 1e-5).double(), torch.randn(11, 8).double()
    torch.nn.init.normal_(head.bias)
    hidden, items = torch.randn(4, 8).double(), torch.tensor([0, 3, 3, 9])
    scores = head(hidden, table)
    assert scores.shape == (4, 10)
    state = head.norm(F.gelu(head.linear(hidden), approximate="tanh"))
    torch.testing.assert_close(scores, state @ table[:10].T + head.bias)
    (alone,) = head.score_items(hidden, table, items)
    torch.testing.assert_close(alone, scores.gather(1, items[:, None])[:, 0])


@pytest.mark.parametrize("head", [ItemHead(10, 0.1), ProjectedItemHead(8, 10, 1e-5, 0.1)])
def test_with_a_temperature_scores_are_cosines_without_a_bias(head):
    torch.manual_seed(0)
    head, table = head.double(), torch.randn(11, 8).double().requires_grad_()
    table.data[0] = 0
    hidden, items = torch.randn(4, 8).double(), torch.tensor([0, 3, 3, 9])
    assert head.bias is None
    scores = head(hidden, table)
    state = head._transform(hidden)
    torch.testing.assert_close(scores, F.cosine_similarity(state[:, None], table[None, :10], dim=-1) / 0.1)
    torch.testing.assert_close(head.score_items(hidden, table, items)[0], scores.gather(1, items[:, None])[:, 0])
    states, rows, bias = head.as_product(hidden, table)
    torch.testing.assert_close(states @ rows.T, scores)
    assert bias is None
    (gradient,) = torch.autograd.grad(scores.square().sum(), table)
    assert gradient.isfinite().all()
    assert not gradient[0].any()  # padding has no direction
    assert gradient[1:10].any(1).all()
