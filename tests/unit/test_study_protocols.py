"""Who is in the running: histories, drawn negatives, and what RecBole's own code makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_dataset
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_trainer, init_seed
from studies import plan_of
from study import protocols, tied_timestamps
from study.plan import Protocol
from study.session import Session, configure, given_options

from recbole_adrrec.errors import DataError
from recbole_adrrec.integration import register as plugin

HEAD = "user_id:token\titem_id:token\ttimestamp:float"


def spec_of(folder: Path, protocol: str, dataset: str = "small", model: str = "ADRRec", **options: Any) -> Any:
    given = {"inner_size": 8, **({} if dataset == "small" else {"user_inter_num_interval": None}), **options}
    topk = [2] if dataset == "tiny" else [10, 20]
    ranking = {"metrics": ["NDCG", "MRR"], "topk": topk, "valid_metric": f"NDCG@{topk[0]}"}
    study = {"datasets": [dataset], "models": [model], "protocols": [protocol], **ranking, "options": given}
    return plan_of(folder, folder / "results", **study).specs()[0]


def session_of(folder: Path, scratch: Path, protocol: str, **given: Any) -> Session:
    spec = spec_of(folder, protocol, **given)
    return Session(spec, configure(spec, scratch))


def histories(dataset: Any) -> dict[int, list[int]]:
    return {user: items.tolist() for user, items, _ in dataset.histories()}


def rows_of(dataset: Any) -> list[tuple[int, list[int], int]]:
    """User, everything before the target, and the target, of each row."""
    known = histories(dataset)
    found = []
    for row in range(len(dataset.inter_feat)):
        target = dataset.inter_feat[[row]]
        user = int(target["user_id"][0])
        place = int(target.targets[0] - target.events.first(target.targets.long())[0])
        found.append((user, known[user][:place], int(target["item_id"][0])))
    return found


def test_only_items_of_the_history_are_out_and_never_the_target(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [("u", "abcaba"), ("v", "bcdea"), ("w", "cdabc")]
    rows = [[user, item, str(60 * time)] for user, items in lines for time, item in enumerate(items)]
    write_dataset(tmp_path, "tiny", HEAD, rows)
    session = session_of(tmp_path, tmp_path, "leave_one_out-full-unseen", dataset="tiny", MAX_ITEM_LIST_LENGTH=2)
    for loader in (session.valid, session.test_data):
        (batch,) = list(loader)
        _, (place, item), positive_u, positive_i = batch
        barred = {(int(p), int(i)) for p, i in zip(place, item, strict=True)}
        expected = {
            (row, each)
            for row, (_, history, target) in enumerate(rows_of(loader._dataset))
            for each in history
            if each != target
        }
        assert barred == expected
        assert not barred & set(zip(positive_u.tolist(), positive_i.tolist(), strict=True))
        assert len(barred) > 3


@pytest.mark.parametrize("unseen", [False, True])
def test_negatives_are_distinct_and_follow_popularity(small_data: Path, tmp_path: Path, unseen: bool) -> None:
    session = session_of(small_data, tmp_path, f"leave_one_out-pop100-{'unseen' if unseen else 'all'}")
    dataset = session.test_data._dataset
    drawn = session.test_data.candidates.numpy()
    known = histories(dataset)
    assert drawn.shape == (len(dataset.inter_feat), 100)
    met = 0
    for line, (user, _, target) in zip(drawn, rows_of(dataset), strict=True):
        assert len(set(line.tolist())) == 100
        assert target not in line
        assert line.min() > 0
        met += len(set(line.tolist()) & set(known[user]))
    assert (met == 0) == unseen
    valid = session.valid.candidates.numpy()
    assert not np.array_equal(valid, drawn)
    again = protocols.draw_negatives(dataset, unseen, "test")
    assert np.array_equal(again, drawn)


def test_draws_are_those_of_successive_draws(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    # Item x is 8 times as popular as each of a..h; two of nine are drawn for each of many users.
    rows, time = [], 0
    for user in range(400):
        for item in ("q", "q", "q", "xxxxxxxxabcdefgh"[user % 16]):
            time += 60
            rows.append([f"u{user}", item, str(time)])
    write_dataset(tmp_path, "tiny", HEAD, rows)
    session = session_of(tmp_path, tmp_path, "leave_one_out-full-all", dataset="tiny", MAX_ITEM_LIST_LENGTH=2)
    dataset = session.test_data._dataset
    token = dataset.field2id_token["item_id"]
    monkeypatch.setattr(dataset, "inter_feat", dataset.inter_feat[np.arange(0, 400, 16)[:1].repeat(8000)])
    events = dataset.inter_feat.events
    popularity = np.bincount(events.column("item_id", torch.arange(len(events))).numpy(), minlength=dataset.item_num)
    drawn = protocols.draw_negatives(dataset, True, "test", count=2)
    user = int(dataset.inter_feat["user_id"][0])
    own = {item for each, items, _ in dataset.histories() if each == user for item in items.tolist()}
    weight = popularity.astype(float)
    weight[list(own)] = 0
    share = weight / weight.sum()
    # Drawn first or second: p_i + sum_j p_j p_i / (1 - p_j)
    expected = share + share * ((share / (1 - share)).sum() - share / (1 - share))
    found = np.bincount(drawn.ravel(), minlength=dataset.item_num) / len(drawn)
    assert found == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(len(drawn))), token


def test_too_few_items_for_a_sample_are_told(tmp_path: Path) -> None:
    rows = [[user, item, str(60 * time)] for user in "uv" for time, item in enumerate("abcde")]
    write_dataset(tmp_path, "tiny", HEAD, rows)
    with pytest.raises(
        DataError, match=r"pop100 needs 100 items beside the target, but 4 are left for user [uv] of tiny"
    ):
        session_of(tmp_path, tmp_path, "leave_one_out-pop100-all", dataset="tiny")


@pytest.mark.parametrize("model", ["SASRec", "ADRRec"])
def test_recboles_own_sampled_evaluation_ranks_the_same_candidates_alike(
    small_data: Path, tmp_path: Path, monkeypatch: Any, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    session = session_of(small_data, tmp_path, "leave_one_out-pop100-unseen", model=model)
    session.train()
    ours, _ = session.test()
    # RecBole's loader for pop100, given our draws in place of its own.
    given = given_options(session.spec, tmp_path)
    given["eval_args"] = {**given["eval_args"], "mode": "pop100"}
    with plugin.command_line(given):
        config = Config(model, "small")
    init_seed(config["seed"], True)
    _, _, sampled = data_preparation(config, create_dataset(config))
    users = session.test_data._dataset.inter_feat["user_id"].numpy()
    draws = dict(zip(users.tolist(), session.test_data.candidates.numpy(), strict=True))

    def sample(key_ids: Any, item_ids: Any, number: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([draws[int(key)] for key in key_ids], 1).ravel())

    monkeypatch.setattr(sampled._sampler, "sample_by_user_ids", sample)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, session.model)
    result = trainer.evaluate(sampled, load_best_model=False)
    for name in result:
        assert float(ours[name].mean()) == pytest.approx(result[name], abs=1e-9)


def test_recbole_refuses_unseen_only_and_masks_no_history(small_data: Path, tmp_path: Path) -> None:
    spec = spec_of(small_data, "leave_one_out-full-all")
    given = {**given_options(spec, tmp_path), "repeatable": False}
    with plugin.command_line(given), pytest.raises(ValueError, match="only support repeatable recommendation"):
        Config("SASRec", "small")
    session = session_of(small_data, tmp_path, "leave_one_out-full-all")
    assert next(iter(session.test_data))[1] is None


def test_candidates_change_the_metrics_as_they_must(small_data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    session = session_of(small_data, tmp_path, "leave_one_out-full-all", absolute_kernels=[], item_head="plain")
    session.train()
    config, full = session.config, session.test_data
    everything = session.test()[1]["mrr@20"]
    scores = {}
    for name in ("leave_one_out-full-unseen", "leave_one_out-pop100-unseen"):
        session.test_data = protocols.restricted(Protocol.of(name), config, full, "test")
        scores[name] = session.test()[1]["mrr@20"]
    # With fewer rivals a target can only rise.
    assert everything < scores["leave_one_out-full-unseen"] < scores["leave_one_out-pop100-unseen"]


def test_ties_are_measured(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    day = 86400
    times = {"u": [0, 0, 5], "v": [day, 2 * day, 2 * day], "w": [7, 7, 7], "x": [9]}
    rows = [[user, item, str(time)] for user, each in times.items() for time, item in zip(each, "abc", strict=False)]
    write_dataset(tmp_path, "tiny", HEAD, rows)
    session = session_of(tmp_path, tmp_path, "leave_one_out-full-all", dataset="tiny")
    assert tied_timestamps.measure(session.test_data._dataset) == pytest.approx(
        {
            "users": 4,
            "events": 10,
            "tied_events": 7 / 10,
            "tied_gaps": 4 / 6,
            "last_two_tie": 2 / 3,
            "tie_consistency": 1.0,
            "consistency_by_chance": 0.75,
            "whole_days": 5 / 10,
        }
    )
