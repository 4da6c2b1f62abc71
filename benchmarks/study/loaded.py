"""A trained model of a study with its test data, asked as the study asked it, user by user."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recbole_adrrec.errors import CheckpointError
from study import runs
from study.plan import RunSpec


@contextmanager
def elsewhere() -> Iterator[Path]:
    """Work in a passing folder: RecBole writes logs into the working directory."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


@dataclass(frozen=True)
class Trained:
    """A trained model and the test rows it was judged by.

    Attributes
    ----------
    config : recbole.config.Config
        The run's options.
    model : recbole.model.abstract_recommender.SequentialRecommender
        With its best weights, in evaluation mode.
    loader : FullSortEvalDataLoader
        Test batches, with the protocol's candidates.
    """

    config: Any
    model: Any
    loader: Any

    @torch.no_grad()
    def values(self, metric: str) -> dict[str, NDArray[Any]]:
        """Ask for every test row and give ``users`` and the metric's values, as a run's file has them.

        Raises
        ------
        KeyError
            If the metric is not among those of the run.
        """
        evaluator = importlib.import_module("recbole.evaluator")
        collector = evaluator.Collector(self.config)
        for interaction, out, row, item in self.loader:
            scores = self.model.full_sort_predict(interaction.to(self.config["device"]))
            scores = scores.view(-1, self.loader._dataset.item_num)
            scores[:, 0] = -torch.inf
            if out is not None:
                scores[out] = -torch.inf
            collector.eval_batch_collect(scores, interaction, row, item)
        collector.model_collect(self.model)
        rows = runs.per_row(evaluator.Evaluator(self.config), collector.get_data_struct())
        dataset = self.loader._dataset
        users = np.asarray(dataset.field2id_token[dataset.uid_field])[dataset.inter_feat[dataset.uid_field].numpy()]
        return runs.by_user(users.astype(str), {metric: rows[metric]})


def load(spec: RunSpec, saved: Path) -> Trained:
    """Make the data and the model of a run again and read its weights.

    Parameters
    ----------
    spec : RunSpec
        The run.
    saved : Path
        Its checkpoint.

    Raises
    ------
    CheckpointError
        If the file is missing or was saved by another model.
    """
    from study import protocols, ties

    if not saved.is_file():
        raise CheckpointError(f"{saved}: no such file; run the study with keep_models: true")
    with elsewhere() as folder:
        config = runs.configure(spec, folder)
        data = importlib.import_module("recbole.data")
        utils = importlib.import_module("recbole.utils")
        utils.init_seed(config["seed"], config["reproducibility"])
        dataset = data.create_dataset(config)
        if spec.shuffle_ties:
            ties.shuffle(dataset, spec.seed)
        train, _, test = data.data_preparation(config, dataset)
        loader = protocols.restricted(spec.protocol, config, test, "test")
        model: nn.Module = utils.get_model(config["model"])(config, train._dataset).to(config["device"])
        found = importlib.import_module("recbole_adrrec.integration.checkpoint").load_checkpoint(
            saved, map_location=config["device"]
        )
        try:
            model.load_state_dict(found["state_dict"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{saved}: not a model of {spec.id} ({str(error).splitlines()[0]})") from error
        getattr(model, "load_other_parameter", lambda _: None)(found.get("other_parameter"))
    return Trained(config, model.eval(), loader)
