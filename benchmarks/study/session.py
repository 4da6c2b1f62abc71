"""Data, model and trainer of a run, in this process: made from its options, trained, tested, or loaded again."""

from __future__ import annotations

import importlib
import inspect
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_adrrec.errors import CheckpointError
from study.plan import RunSpec
from study.results import by_user
from study.study_file import ACCURACY

PLACES = 12
"""Decimal places of RecBole's metrics here; its own four would hide what tests of significance need."""

Arrays = dict[str, NDArray[Any]]


def given_options(spec: RunSpec, saved: Path, resume: Path | None = None) -> dict[str, Any]:
    """All options of a run, as if they stood on RecBole's command line.

    ``saved`` is the folder of its checkpoints, ``resume`` the one that training goes on from.
    """
    from study import protocols

    given = {
        "show_progress": False,
        **spec.options,
        "seed": spec.seed,
        "eval_args": protocols.eval_args(spec),
        "repeatable": True,
        "metrics": list(spec.metrics),
        "topk": list(spec.topk),
        "valid_metric": spec.valid_metric,
        "metric_decimal_place": PLACES,
        "data_path": spec.data_path,
        "checkpoint_dir": str(saved),
        **({"resume": str(resume)} if resume else {}),
    }
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and "gpu_id" not in spec.options:
        # RecBole would put its default, GPU 0, in the place of what was assigned, or of none.
        given["gpu_id"] = visible
    return given


def configure(spec: RunSpec, saved: Path, resume: Path | None = None) -> Any:
    """RecBole's ``Config`` of a run, with every option checked; paths as for :func:`given_options`.

    Raises
    ------
    OptionError
        For an option that the model can't take.
    """
    import recbole_adrrec

    recbole_adrrec.register()
    from recbole_adrrec.integration import register as plugin

    config_class = importlib.import_module("recbole.config").Config
    with plugin.command_line(given_options(spec, saved, resume)):
        return config_class(model=spec.model, dataset=spec.data_name or spec.dataset)


@contextmanager
def devices_unchanged() -> Iterator[None]:
    """Undo what RecBole's ``Config`` does to this process's choice of GPUs: its children would inherit it."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


class Session:
    """Data, model and trainer of one run, made as RecBole's ``run_recbole`` makes them (quick_start.py:117-150).

    ``curve`` has a mapping for each epoch: ``epoch``, ``train_s`` so far, ``loss`` and ``valid``; ``changed`` is called
    when it has changed.
    """

    def __init__(self, spec: RunSpec, config: Any) -> None:
        from study import protocols

        data, utils = importlib.import_module("recbole.data"), importlib.import_module("recbole.utils")
        self.spec, self.config = spec, config
        utils.init_seed(config["seed"], config["reproducibility"])
        importlib.import_module("recbole.utils.logger").init_logger(config)
        dataset = data.create_dataset(config)
        self.train_data, valid, test = data.data_preparation(config, dataset)
        self.valid = protocols.restricted(spec.protocol, config, valid, "valid")
        self.all_ranked, self.test_data = test, protocols.restricted(spec.protocol, config, test, "test")
        utils.init_seed(config["seed"], config["reproducibility"])
        self.model = utils.get_model(config["model"])(config, self.train_data._dataset).to(config["device"])
        self.curve: list[dict[str, Any]] = []
        self.changed: Callable[[], None] = lambda: None
        self._collected: Any = None
        self.trainer = self._trainer(utils.get_trainer(config["MODEL_TYPE"], config["model"]))
        self.trainer.eval_collector.data_collect(self.train_data)

    def _trainer(self, trainer_class: Any) -> Any:
        """RecBole's trainer, with the time and loss of each epoch and what was collected for the metrics noted."""
        session = self

        class Observed(trainer_class):
            def resume_checkpoint(self, resume_file: Any) -> None:
                super().resume_checkpoint(resume_file)
                del session.curve[self.start_epoch :]

            def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
                begin = time.perf_counter()
                loss = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
                seconds = session.train_seconds + time.perf_counter() - begin
                total = float(sum(loss) if isinstance(loss, tuple) else loss)
                session.curve.append({"epoch": epoch_idx, "train_s": seconds, "loss": total, "valid": None})
                session.changed()
                return loss

            def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
                # Metrics that choose no epoch would cost as much as the ranking.
                every = self.evaluator.metrics
                self.evaluator.metrics = [name for name in every if name in choosing]
                try:
                    return super()._valid_epoch(*args, **kwargs)
                finally:
                    self.evaluator.metrics = every

        choosing = {name.lower() for name in ACCURACY}
        trainer = Observed(self.config, self.model)
        evaluate = trainer.evaluator.evaluate

        def remember(collected: Any) -> Any:
            session._collected = collected
            return evaluate(collected)

        trainer.evaluator.evaluate = remember
        return trainer

    def train(self) -> None:
        """Train to early stopping."""

        def note(_: int, score: float) -> None:
            self.curve[-1]["valid"] = float(score)
            self.changed()

        self.trainer.fit(self.train_data, self.valid, saved=True, show_progress=False, callback_fn=note)

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far, without validation."""
        return float(self.curve[-1]["train_s"]) if self.curve else 0.0

    @property
    def best(self) -> dict[str, Any]:
        """The epoch of the model that is tested: the last with the best score (utils/utils.py:137), or the last."""
        scored = [point for point in self.curve if point["valid"] is not None]
        if scored:
            return max(scored, key=lambda point: (point["valid"], point["epoch"]))
        return self.curve[-1] if self.curve else {"epoch": None, "valid": None}

    def test(self, model_file: str | Path | None = None, trained: bool = False) -> tuple[Arrays, dict[str, float]]:
        """Rank the test rows by the model of a file, by default that of the best epoch, or (``trained``) as it is.

        Returns arrays, ``users``, as the data file names them, and each metric's value for each of them, where it has
        one; and their means beside the metrics of all lists together.

        Raises
        ------
        AssertionError
            If RecBole's own result is another.
        """
        file = str(model_file) if model_file else None
        result = self.trainer.evaluate(
            self.test_data, load_best_model=not trained, model_file=file, show_progress=False
        )
        dataset = self.test_data._dataset
        rows = per_row(self.trainer.evaluator, self._collected)
        for name, values in rows.items():
            if abs(float(values.mean()) - float(result[name])) > 10.0 ** (1 - PLACES):
                raise AssertionError(f"{name}: RecBole has {result[name]}, the rows' mean is {values.mean()}")
        users = np.asarray(dataset.field2id_token[dataset.uid_field])[dataset.inter_feat[dataset.uid_field].numpy()]
        arrays = by_user(users.astype(str), rows)
        of_all = {name: float(value) for name, value in result.items() if name not in rows}
        return arrays, {name: float(arrays[name].mean()) for name in rows} | of_all

    def data_facts(self) -> dict[str, Any]:
        """Numbers of items, targets and users, and how many targets are cold or known."""
        from study import tied_timestamps

        train, valid, test = (each._dataset for each in (self.train_data, self.valid, self.test_data))
        items = train.iid_field
        (trained,) = train.shown_events(True, items)
        targets = test.inter_feat[items].numpy()
        return {
            "items": train.item_num - 1,
            "train_targets": len(train.inter_feat),
            "valid_rows": len(valid.inter_feat),
            "test_rows": len(test.inter_feat),
            "test_users": len(np.unique(test.inter_feat[test.uid_field].numpy())),
            "test_targets_never_trained": int((~np.isin(targets, trained.numpy())).sum()),
            "test_targets_met_before": _met_before(test),
            "ties": tied_timestamps.measure(test),
            "split": getattr(train, "split_counts", None),
        }


def _met_before(dataset: Any) -> int:
    """Number of rows whose target the user has met."""
    rows = dataset.inter_feat
    targets = rows.targets.long()
    users, items = (rows.events.columns[name].long().numpy() for name in (dataset.uid_field, dataset.iid_field))
    # The first event of each pair of user and item: a target that isn't it was met before.
    _, first = np.unique(users * dataset.item_num + items, return_index=True)
    return int((~np.isin(targets.numpy(), first)).sum())


def per_row(evaluator: Any, collected: Any) -> Arrays:
    """Each metric's value for each evaluated row, Float64[n_rows] by RecBole's names (``ndcg@10``), where it has one.

    Computed by RecBole's own metric classes and ours from what its evaluator is given.
    """
    found = {}
    for name in evaluator.metrics:
        metric = evaluator.metric_class[name]
        if not hasattr(metric, "metric_info"):
            continue
        used = metric.used_info(collected)
        values = metric.metric_info(*used[: len(inspect.signature(metric.metric_info).parameters)])
        for k in metric.topk:
            found[f"{name}@{k}"] = np.ascontiguousarray(values[:, k - 1], dtype=np.float64)
    return found


def load_trained(spec: RunSpec, saved: Path) -> tuple[Session, Arrays]:
    """Make the data and the model of a run again, read its weights and test it.

    Raises
    ------
    CheckpointError
        If the file is missing or was saved by another model.
    """
    saved = saved.resolve()
    if not saved.is_file():
        raise CheckpointError(f"{saved}: no such file; run the study with keep_models: true")
    with in_temporary_folder() as folder:
        try:
            session = Session(spec, configure(spec, folder))
            return session, session.test(saved)[0]
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{saved}: not a model of {spec.id} ({str(error).splitlines()[0]})") from error


@contextmanager
def in_temporary_folder() -> Iterator[Path]:
    """A temporary folder as working directory while this lasts: RecBole writes logs there."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
