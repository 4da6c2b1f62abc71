"""Our forms of RecBole's SASRec and BERT4Rec, both AWRSR without refinement, against RecBole's for copied weights."""

import random

import helpers
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.data.transform import MaskItemSequence
from recbole.model.sequential_recommender.bert4rec import BERT4Rec
from recbole.model.sequential_recommender.sasrec import SASRec

from recbole_adrrec.models import inputs
from recbole_adrrec.models.awrsr import AWRSR

WIDTH = helpers.RECBOLE_OPTIONS["MAX_ITEM_LIST_LENGTH"]
BLOCK = {"layer_norm_eps": 1e-12, "initializer_range": 0.1, "hidden_act": "gelu", "refinement": "none"}
RECBOLE_NAMES = {
    "item_embedding.weight": "item_embedding.weight",
    "item_embedding.position.weight": "position_embedding.weight",
    "item_embedding.norm": "LayerNorm",
    "head.linear": "output_ffn",
    "head.norm": "output_ln",
    "head.bias": "output_bias",
    "attention.query": "multi_head_attention.query",
    "attention.key": "multi_head_attention.key",
    "attention.value": "multi_head_attention.value",
    "attention.output": "multi_head_attention.dense",
    "attention_norm": "multi_head_attention.LayerNorm",
    "feed_forward.0": "feed_forward.dense_1",
    "feed_forward.3": "feed_forward.dense_2",
    "feed_forward_norm": "feed_forward.LayerNorm",
}


def recbole_name(name):
    """RecBole's name of a parameter of ours."""
    if name in RECBOLE_NAMES:
        return RECBOLE_NAMES[name]
    head, _, kind = name.rpartition(".")
    if head in RECBOLE_NAMES:
        return f"{RECBOLE_NAMES[head]}.{kind}"
    _, _, layer, *part = head.split(".")
    return f"trm_encoder.layer.{layer}.{RECBOLE_NAMES['.'.join(part)]}.{kind}"


def both(their_class, **changes):
    """RecBole's model and ours, with its weights."""
    theirs = helpers.build(their_class, dtype=torch.float32, **BLOCK, **changes)
    ours = helpers.build(AWRSR, dtype=torch.float32, **BLOCK, **changes)
    state = theirs.state_dict()
    ours.load_state_dict({name: state[recbole_name(name)] for name in ours.state_dict()})
    assert len(state) == len(ours.state_dict())
    return theirs, ours


def compare_losses(theirs, ours, their_rows, our_rows):
    """Losses and the gradients of every parameter, to 1e-6."""
    loss, expected = ours.calculate_loss(our_rows), theirs.calculate_loss(their_rows)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    loss.backward()
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        given = gradients[recbole_name(name)]
        torch.testing.assert_close(parameter.grad, given, rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_sasrec(loss_type):
    theirs, ours = both(SASRec, loss_type=loss_type)
    row = helpers.rows([7, 3, 1])
    torch.testing.assert_close(ours.full_sort_predict(row), theirs.full_sort_predict(row), rtol=0, atol=1e-6)
    compare_losses(theirs, ours, row, row)


FIELDS = {
    "MASK_ITEM_SEQ": "Mask_item_id_list",
    "POS_ITEMS": "Pos_item_id",
    "NEG_ITEMS": "Neg_item_id",
    "MASK_INDEX": "MASK_INDEX",
}
CLOZE = {"objective": "cloze", "item_head": "projected", "mask_ratio": 0.4, **FIELDS}


def masked_by_recbole(batch):
    """A batch with the masks that RecBole draws.

    It leaves out of the loss what it masks at a row's first place, and all but the last ``mask_ratio *
    MAX_ITEM_LIST_LENGTH`` masks of a row: rows are drawn until there is nothing of that kind.
    """
    data = type("Data", (), {"num": lambda self, field: helpers.N_ITEMS})()
    draw = MaskItemSequence(helpers.options("AWRSR", **CLOZE))
    for seed in range(1000):
        random.seed(seed)
        made = draw(data, Interaction(dict(batch)))
        masked = made[FIELDS["MASK_ITEM_SEQ"]] == helpers.N_ITEMS
        counted = (made[FIELDS["MASK_INDEX"]] > 0).sum(1)
        if torch.equal(masked.sum(1), counted) and bool((counted > 0).all()):
            return made, masked
    raise AssertionError("no draw without such masks")


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_bert4rec_trained(loss_type, monkeypatch):
    theirs, ours = both(BERT4Rec, **CLOZE, loss_type=loss_type)
    windows = helpers.rows([7, 4, 3], targets="cloze")
    drawn, masked = masked_by_recbole(windows)
    monkeypatch.setattr(inputs, "draw_cloze_mask", lambda maskable, valid, ratio: masked)
    negatives = torch.zeros_like(drawn["item_id_list"])
    negatives.scatter_(
        1, drawn[FIELDS["MASK_INDEX"]], drawn[FIELDS["NEG_ITEMS"]]
    )  # padding falls on the first place, where there is no target
    compare_losses(theirs, ours, drawn, {**windows, "neg_item_id": negatives})


def test_bert4rec_ranks_as_recboles_that_never_sees_the_oldest_event():
    """RecBole appends the mask and drops the first place, of short rows too; ours keeps what there is room for."""
    theirs, ours = both(BERT4Rec, **CLOZE, loss_type="CE")
    row = helpers.rows([7, 4, 3])
    length = row["item_length"]
    later = {**row, "item_length": length - 1}
    for field in ("item_id_list", "timestamp_list"):
        later[field] = torch.cat([row[field][:, 1:], torch.zeros(3, 1, dtype=torch.int64)], 1)
    expected = theirs.full_sort_predict(row)
    torch.testing.assert_close(ours.full_sort_predict(later), expected, rtol=0, atol=1e-6)
    shown = ours.full_sort_predict(row)
    torch.testing.assert_close(shown[0], expected[0], rtol=0, atol=1e-6)  # a full row has no room for its oldest
    assert not torch.allclose(shown[1:], expected[1:], atol=1e-3)


def test_maps_by_place_refine_a_cloze_backbone_too():
    ours = helpers.build(AWRSR, refinement="additive", refinement_maps="place", objective="cloze")
    row = helpers.rows([5, 2])
    plain = helpers.build(AWRSR, refinement="none", objective="cloze")
    assert ours.full_sort_predict(row).isfinite().all()
    assert ours.calculate_loss(helpers.rows([7, 4], targets="cloze")).isfinite()
    assert len(ours.state_dict()) > len(plain.state_dict())
