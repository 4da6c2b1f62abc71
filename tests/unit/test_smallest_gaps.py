"""TiSASRec's unit of time is read off training events alone."""

from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.utils import get_model

UNFILTERED = {"user_inter_num_interval": None, "item_inter_num_interval": None}


def training(small, **changes):
    made = Config(model="TiSASRec", dataset="small", config_dict={**small, **UNFILTERED, **changes})
    dataset = create_dataset(made)
    return made, dataset.build()[0]


@pytest.mark.parametrize("rows", ["sequence", "prefix"])
@pytest.mark.parametrize("exact", [True, False])
def test_gaps_of_training_events_user_by_user(small, rows, exact):
    made, train = training(small, train_rows=rows, exact_time=exact)
    gaps = train.smallest_training_gaps()
    assert (gaps.dtype, len(gaps)) == (torch.int64, train.user_num)
    shown = defaultdict(list)
    table = train.inter_feat.build()
    length, suffix = table["item_length"], made["LIST_SUFFIX"]
    for row in range(len(length)):
        times = table[f"timestamp{suffix}"][row, : length[row]].tolist()
        shown[int(table["user_id"][row])] += [*times, table["timestamp"][row].item()]
    for user in range(train.user_num):
        times = sorted(set(shown[user]))
        expected = min((b - a for a, b in pairwise(times)), default=1)
        assert gaps[user] == expected
    assert (gaps > 1).any()


def test_held_out_events_are_not_looked_at(small):
    _, train = training(small)
    gaps = train.smallest_training_gaps()
    times = train.inter_feat.events.columns["timestamp"]
    starts = train.inter_feat.events.starts[1:]
    ends = torch.cat([starts[1:], torch.tensor([len(times)])])
    times[ends - 1] = times[ends - 2] + 10**6  # each user's test event
    assert torch.equal(train.smallest_training_gaps(), gaps)


def test_the_model_keeps_them_with_its_weights(small):
    made, train = training(small)
    model = get_model("TiSASRec")(made, train)
    assert torch.equal(model.state_dict()["kernels.smallest_gaps"], train.smallest_training_gaps())
    assert not hasattr(model, "facts")
