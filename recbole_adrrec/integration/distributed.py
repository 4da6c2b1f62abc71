"""Patches for training and evaluation by several processes, with or without CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler

from recbole_adrrec.collectives import mean_over_processes, share_of
from recbole_adrrec.errors import OptionError
from recbole_adrrec.integration.patching import override, patch

PER_ROW = ("rec.items", "rec.topk", "rec.meanrank", "rec.score", "data.label")
"""Entries of RecBole's collector with a row for each row that is evaluated."""


@patch(
    "processes without CUDA",
    "config/configurator.py:497-515",
    "NCCL and CUDA are fixed; too few GPUs fail an assert without a message",
)
def patch_device() -> None:
    """Let processes meet by gloo on the CPU where there is no CUDA."""
    from recbole.config.configurator import Config

    @override(Config, "_init_device")
    def init_device(original: Any, self: Any) -> None:
        settings = self.final_config_dict
        if "local_rank" not in settings:
            original(self)
            return
        gpu_id = settings["gpu_id"]
        gpu_id = ",".join(map(str, gpu_id)) if isinstance(gpu_id, tuple | list) else str(gpu_id)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_id
        if settings["use_gpu"] and torch.cuda.is_available():
            if len(gpu_id.split(",")) < settings["nproc"]:
                raise OptionError(
                    f"nproc: {settings['nproc']} processes need as many GPUs, but gpu_id is {gpu_id}; list them, as in "
                    "--gpu_id=0,1, or set use_gpu: false"
                )
            original(self)
            return
        torch.distributed.init_process_group(
            backend="gloo",
            rank=settings["local_rank"] + settings["offset"],
            world_size=settings["world_size"],
            init_method=f"tcp://{settings['ip']}:{settings['port']}",
        )
        settings.update(gpu_id=gpu_id, device=torch.device("cpu"), single_spec=False)
        if settings["local_rank"] != 0:
            settings.update(state="error", show_progress=False, verbose=False)


@patch(
    "data parallel without CUDA",
    "trainer/trainer.py:57-64",
    "device_ids are given for a model on the CPU, which DistributedDataParallel refuses, as SyncBatchNorm does",
)
def patch_data_parallel() -> None:
    """Wrap models that are on the CPU too."""
    from recbole.trainer.trainer import AbstractTrainer

    @override(AbstractTrainer, "__init__")
    def init(original: Any, self: Any, config: Any, model: Any) -> None:
        if config["single_spec"] or torch.device(config["device"]).type == "cuda":
            original(self, config, model)
            return
        self.config, self.model = config, model
        self.distributed_model = torch.nn.parallel.DistributedDataParallel(model)


@patch(
    "folders of several processes",
    "utils/utils.py:51",
    "of two processes that find log or saved missing and make it at once, one fails",
)
def patch_folders() -> None:
    """Make a folder that another process may be making."""
    from recbole.utils import utils

    override(utils, "ensure_dir")(lambda _, dir_path: os.makedirs(dir_path, exist_ok=True))


def share(n_rows: int, rank: int, world_size: int) -> range:
    """One process's share of the rows: a run of neighbours, no row twice, the shares together all rows in order."""
    return range(n_rows * rank // world_size, n_rows * (rank + 1) // world_size)


class Shuffled(RandomSampler):
    """The order of a single process, drawn alike by all; RecBole gives samplers of several the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Nothing to do: the generator goes on from epoch to epoch."""


class SharedBatches(Sampler[list[int]]):
    """One process's share of every batch that a single process would train on, out of ``n_rows`` in all.

    A last batch of fewer rows than processes is joined to the one before it; fewer rows than processes are an
    ``OptionError``.
    """

    def __init__(self, batches: BatchSampler, n_rows: int, rank: int, world_size: int) -> None:
        if n_rows < world_size:
            raise OptionError(f"nproc: {world_size} processes for {n_rows} training rows; choose at most {n_rows}")
        self.batches = batches
        self.n_rows = n_rows
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        kept: list[int] = []
        for batch in self.batches:
            if len(batch) < self.world_size:
                kept = kept + batch
                continue
            if kept:
                yield self._share(kept)
            kept = batch
        yield self._share(kept)

    def _share(self, batch: list[int]) -> list[int]:
        own = share(len(batch), self.rank, self.world_size)
        return batch[own.start : own.stop]

    def __len__(self) -> int:
        left = self.n_rows % self.batches.batch_size
        return len(self.batches) - (0 < left < self.world_size)


@patch(
    "rows of several processes",
    "data/dataloader/abstract_dataloader.py:60",
    "DistributedSampler repeats rows until every process has as many, and shuffles unlike a single process",
)
def patch_loaders() -> None:
    """Train on the batches of a single process, cut into shares, and evaluate every row once."""
    from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader

    evaluating = FullSortEvalDataLoader, NegSampleEvalDataLoader
    for loader in evaluating:
        # A loader of no rows is false, and RecBole evaluates nothing then: the process would be missed by the others.
        loader.__bool__ = lambda self: self.sample_size > 0

    @override(AbstractDataLoader, "__init__")
    def init(original: Any, self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        if config["single_spec"]:
            original(self, config, *args, **kwargs)
            return
        config["single_spec"] = True
        try:
            original(self, config, *args, **kwargs)
        finally:
            config["single_spec"] = False
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if isinstance(self, evaluating):
            sampler: Any = share(self.sample_size, rank, world_size)
            self.batch_sampler.sampler = sampler
        else:
            rows = range(self.sample_size)
            sampler = Shuffled(rows, generator=self.generator) if self.shuffle else SequentialSampler(rows)
            batches = BatchSampler(sampler, max(self.step, world_size), drop_last=False)
            object.__setattr__(self, "batch_sampler", SharedBatches(batches, len(rows), rank, world_size))
        object.__setattr__(self, "sampler", sampler)  # a loader forbids it, since its batches would not follow


@patch(
    "losses of several processes",
    "trainer/trainer.py:196",
    "gradients are averaged alike, however many rows each process has",
)
def patch_training() -> None:
    """Weight a loss that is a mean over rows by their number; the loss that is logged is that of all processes."""
    from recbole.trainer.trainer import Trainer

    @override(Trainer, "_train_epoch")
    def train_epoch(
        original: Any, self: Any, train_data: Any, epoch_idx: int, loss_func: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if self.config["single_spec"]:
            return original(self, train_data, epoch_idx, loss_func, *args, **kwargs)
        loss_of = loss_func or self.model.calculate_loss

        def weighed(interaction: Any) -> Any:
            losses = loss_of(interaction)
            if getattr(self.model, "weighs_targets", False):
                return losses
            share = share_of(len(interaction), self.device)
            return tuple(part * share for part in losses) if isinstance(losses, tuple) else losses * share

        total = original(self, train_data, epoch_idx, weighed, *args, **kwargs)
        parts = total if isinstance(total, tuple) else (total,)
        means = mean_over_processes(torch.tensor(parts, dtype=torch.float64, device=self.device)).tolist()
        return tuple(means) if isinstance(total, tuple) else means[0]


@patch(
    "collected results",
    "evaluator/collector.py:227; trainer/trainer.py:606, :632",
    "ItemCoverage and other metrics that count end in an AttributeError in 1.2.1; rounded metrics of several processes "
    "are weighted by their numbers of batches",
)
def patch_collector() -> None:
    """Leave counts where they are, and put together, in order, what all processes collected.

    Sampled negatives (``uni100`` and the like) still differ from a single process's, as they do from seed to seed.
    """
    from recbole.evaluator.collector import Collector

    @override(Collector, "get_data_struct")
    def get_data_struct(original: Any, self: Any) -> Any:
        collected = self.data_struct._data_dict
        counts = {name: value for name, value in collected.items() if not isinstance(value, torch.Tensor)}
        for name in counts:
            del collected[name]
        struct = original(self)
        collected.update(counts)
        struct._data_dict.update(counts)
        if not self.config["single_spec"]:
            mine = {name: struct.get(name) for name in PER_ROW if name in struct}
            everyone: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
            for name in {name for part in everyone for name in part}:
                struct.set(name, torch.cat([part[name] for part in everyone if name in part]))
        return struct
