"""Several processes without CUDA: they train together, and their metrics are those of a single one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator.collector import Collector
from recbole.quick_start import load_data_and_model
from recbole.trainer import Trainer
from recbole.trainer.trainer import AbstractTrainer
from recbole.utils import get_trainer

from recbole_adrrec import cli
from recbole_adrrec.errors import OptionError
from recbole_adrrec.integration import distributed
from recbole_adrrec.integration.checkpoint import load_checkpoint
from recbole_adrrec.integration.patching import original

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import recbole_adrrec
recbole_adrrec.register()
from recbole.quick_start import run

if __name__ == "__main__":
    options, port, result_file = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    sys.argv = sys.argv[:1]
    result = run("SASRec", "odd", config_dict=options, nproc=2, port=port)
    names = "best_valid_result", "test_result"
    metrics = {name: {metric: float(value) for metric, value in result[name].items()} for name in names}
    with open(result_file, "w") as file:
        json.dump(metrics, file)
"""


TRAIN_SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
import recbole_adrrec
recbole_adrrec.register()
from recbole.quick_start import run
from recbole.trainer import Trainer
from recbole.trainer.trainer import AbstractTrainer

fit = Trainer.fit
def fit_and_tell(self, *args, **kwargs):
    result = fit(self, *args, **kwargs)
    if self.config["local_rank"] in (None, 0):
        state = {"losses": self.train_loss_dict, "weights": self.model.state_dict()}
        torch.save(state, self.config["checkpoint_dir"] + "/told.pt")
    return result
Trainer.fit = fit_and_tell

if __name__ == "__main__":
    model, options, port, nproc = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    sys.argv = sys.argv[:1]
    run(model, "small", config_dict=options, nproc=nproc, port=port)
"""


SHARED = {"loss_type": "sampled_softmax", "negatives": "shared", "n_negatives": 64, "trend_rank": 2}


@pytest.mark.parametrize(("model", "changes"), [("ADRRec", {}), ("ADRRec", SHARED), ("SASRec", {})])
def test_two_processes_train_as_one_does(
    model: str, changes: dict[str, Any], small: dict[str, Any], tmp_path: Path
) -> None:
    """Without dropout, the losses and the final weights are those of one process, to the rounding of sums."""
    options = {
        **small,
        "hidden_size": 8,
        "inner_size": 8,
        "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
        "train_neg_sample_args": None,
        "learner": "sgd",
        "learning_rate": 0.2,
        "epochs": 3,
        "eval_step": 0,
        "train_batch_size": 401,
        "use_gpu": False,
        "state": "ERROR",
    }
    if model == "ADRRec":
        options |= {"lni_weight": 0.0, "train_rows": "sequence", "MAX_ITEM_LIST_LENGTH": 6, **changes}
    script = tmp_path / "script.py"
    script.write_text(TRAIN_SCRIPT)
    told = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        options["checkpoint_dir"] = str(folder)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), model, json.dumps(options), free_port(), str(count)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr
        told.append(torch.load(folder / "told.pt"))
    alone, together = told
    losses = [list(each["losses"].values()) for each in told]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][2] < losses[0][0]
    for name, weights in alone["weights"].items():
        torch.testing.assert_close(together["weights"][name], weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n_rows", [3, 7, 8, 10, 11, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("step", [3, 5])
def test_shares_of_batches_are_the_batches(n_rows: int, world_size: int, step: int) -> None:
    def batches() -> torch.utils.data.BatchSampler:
        return torch.utils.data.BatchSampler(range(n_rows), step, drop_last=False)

    shares = [distributed.SharedBatches(batches(), n_rows, rank, world_size) for rank in range(world_size)]
    drawn = [list(share) for share in shares]
    assert {len(batches) for batches in drawn} == {len(shares[0])}
    assert all(share for batches in drawn for share in batches)
    together = [[row for share in parts for row in share] for parts in zip(*drawn, strict=True)]
    expected = list(batches())
    if len(expected) > 1 and len(expected[-1]) < world_size:
        expected[-2:] = [expected[-2] + expected[-1]]
    assert together == expected


def test_fewer_rows_than_processes_are_refused() -> None:
    batches = torch.utils.data.BatchSampler(range(2), 5, drop_last=False)
    with pytest.raises(OptionError, match="nproc: 3 processes for 2 training rows"):
        distributed.SharedBatches(batches, 2, 0, 3)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def test_two_processes_train_and_evaluate_as_one_would(small: dict[str, Any], tmp_path: Path) -> None:
    head, *rows = (Path(small["data_path"]) / "small" / "small.inter").read_text().splitlines()
    left_out = rows[0].split("\t")[0]
    odd = tmp_path / "odd" / "odd.inter"
    odd.parent.mkdir()
    odd.write_text("\n".join([head, *(row for row in rows if row.split("\t")[0] != left_out)]))
    options = {
        **small,
        "data_path": str(tmp_path),
        "train_neg_sample_args": None,
        "hidden_size": 8,
        "inner_size": 8,
        "use_gpu": False,
        "state": "ERROR",
        "eval_batch_size": 8,
        "metrics": ["NDCG", "Recall", "MRR", "AveragePopularity", "ItemCoverage", "GAUC"],
        "topk": [10, 50],
        "metric_decimal_place": 9,
        "checkpoint_last": 0,
    }
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), json.dumps(options), free_port(), str(tmp_path / "result.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())

    (path,) = Path(options["checkpoint_dir"]).glob("*.pth")  # one name, though the clocks of two processes differ
    config, model, _, train_data, valid_data, test_data = load_data_and_model(path)
    assert config["single_spec"]
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    trainer.eval_collector.data_collect(train_data)
    assert len(valid_data.dataset) % 2 == 1  # RecBole's sampler would repeat a row
    for data, name in ((valid_data, "best_valid_result"), (test_data, "test_result")):
        assert dict(trainer.evaluate(data, load_best_model=False)) == result[name]
    assert result["test_result"]["ndcg@50"] > 0


@pytest.mark.parametrize("n_rows", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shares_are_all_rows_once_and_in_order(n_rows: int, world_size: int) -> None:
    shares = [distributed.share(n_rows, rank, world_size) for rank in range(world_size)]
    assert [row for share in shares for row in share] == list(range(n_rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_without_rows_evaluates_all_the_same(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config("SASRec", "small", config_dict={**small, "train_neg_sample_args": None})
    loader = FullSortEvalDataLoader.__new__(FullSortEvalDataLoader)
    loader.__dict__.update(sample_size=1, batch_sampler=[])
    assert loader
    loader.__dict__["sample_size"] = 0
    assert not loader
    config["single_spec"] = False
    monkeypatch.setattr(distributed.torch.distributed, "get_world_size", lambda: 2)
    collected = torch.tensor([[1, 0, 1], [0, 1, 1]])

    def gather(everyone: list[Any], mine: dict[str, Any]) -> None:
        everyone[:] = [mine, {"rec.topk": collected}]

    monkeypatch.setattr(distributed.torch.distributed, "all_gather_object", gather)
    collector = Collector(config)
    assert torch.equal(collector.get_data_struct().get("rec.topk"), collected)
    collector.data_struct.set("rec.topk", collected[:1])
    assert collector.get_data_struct().get("rec.topk").tolist() == [[1, 0, 1], [1, 0, 1], [0, 1, 1]]


def test_too_few_gpus_are_named(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    several = {"local_rank": 0, "nproc": 2, "world_size": 2, "offset": 0, "ip": "localhost", "port": free_port()}
    options = {**small, "train_neg_sample_args": None, "gpu_id": "0", **several}
    with pytest.raises(OptionError, match="nproc: 2 processes need as many GPUs, but gpu_id is 0"):
        Config("SASRec", "small", config_dict=options)


def test_the_faults_are_there_without_the_patches(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One process stands for a group: RecBole's own code fails, or is wrong, at each of the places that are patched."""
    alone = {"local_rank": 0, "nproc": 1, "world_size": 1, "offset": 0, "ip": "localhost", "port": free_port()}
    options = {**small, "train_neg_sample_args": None, "use_gpu": False, **alone}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = Config("SASRec", "small", config_dict=options)
    try:
        assert torch.distributed.get_backend() == "gloo"
        assert config["device"] == torch.device("cpu")
        assert config["single_spec"] is False
        model = torch.nn.Linear(2, 2)
        with pytest.raises(ValueError, match="device_ids"):
            original(AbstractTrainer.__init__)(Trainer.__new__(Trainer), config, model)
        trainer = Trainer(config, model)
        assert isinstance(trainer.distributed_model, torch.nn.parallel.DistributedDataParallel)
        result = {"ndcg@10": 0.123456789}
        assert trainer._map_reduce(dict(result), 4) == result
        assert super(Trainer, trainer)._map_reduce(dict(result), 4) == {"ndcg@10": 0.1235}
    finally:
        torch.distributed.destroy_process_group()
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            original(Config._init_device)(config)


@pytest.mark.slow
def test_torchrun_trains_as_nproc_does(small: dict[str, Any], tmp_path: Path) -> None:
    """Two processes that torchrun started end at the weights of two that ``--nproc`` started, to the last bit."""
    options = {**small, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "epochs": 2}
    options |= {"hidden_dropout_prob": 0, "attn_dropout_prob": 0, "show_user": "none", "metrics": "NDCG"}
    ends = []
    for name in ("torchrun", "nproc"):
        folder = tmp_path / name
        given = {**options, "checkpoint_dir": folder}
        words = [f"--{key}={value}" for key, value in given.items() if not isinstance(value, dict)]
        start = [sys.executable, "-m"]
        if name == "torchrun":
            start += ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", "-m"]
        else:
            words += ["--nproc=2", f"--port={free_port()}"]
        call = [*start, "recbole_adrrec", "--model=ADRRec", "--dataset=small", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(call, check=True, capture_output=True, cwd=tmp_path, env=environment, timeout=300)
        (last,) = folder.glob("*-last.pth")
        ends.append(load_checkpoint(last)["state_dict"])
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_under_torchrun_processes_are_not_counted_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert cli.main(["--model=ADRRec", "--dataset=ml-100k", "--nproc=2"]) == 2
    assert "nproc: torchrun says how many processes meet where; leave it out" in capsys.readouterr().err
