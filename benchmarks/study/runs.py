"""One run of a study: train, choose the epoch on validation, test, and write what came out as two whole files.

``python -m study.runs SPEC RESULTS`` is one run in a process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_adrrec.errors import UserError
from recbole_adrrec.files import AtomicFile
from study.plan import RunSpec

FORMAT = 1
PLACES = 12
"""Decimal places of RecBole's metrics here; its own four would hide what tests of significance need."""

ORPHANED = 75


def record_path(results: Path, spec: RunSpec) -> Path:
    """The file whose existence says that a run is over."""
    return results / "runs" / f"{spec.id}.json"


def given_options(spec: RunSpec, scratch: Path) -> dict[str, Any]:
    """Everything that a run is told, as if it stood on RecBole's command line.

    Parameters
    ----------
    spec : RunSpec
        The run.
    scratch : Path
        Folder for checkpoints while it lasts.
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
        "checkpoint_dir": str(scratch),
    }
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and "gpu_id" not in spec.options:
        # RecBole would put its default, GPU 0, in the place of what was assigned, or of none.
        given["gpu_id"] = visible
    return given


def configure(spec: RunSpec, scratch: Path) -> Any:
    """RecBole's ``Config`` of a run, with every option checked.

    Raises
    ------
    OptionError
        For an option that the model can't take.
    """
    import recbole_adrrec

    recbole_adrrec.register()
    from recbole_adrrec.integration import register as plugin

    config_class = importlib.import_module("recbole.config").Config
    with plugin.command_line(given_options(spec, scratch)):
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


def run_one(spec: RunSpec, folder: Path) -> None:
    """Execute one run in this process and write its files into a folder of results.

    Parameters
    ----------
    spec : RunSpec
        The run. With ``test`` false it stops after validation: nothing of the test data is asked.
    folder : Path
        Results; ``runs/<id>.npz`` and then ``runs/<id>.json`` are written.

    Notes
    -----
    Training and evaluation are RecBole's own: trainer, loss, early stopping, ranking and metrics.
    """
    scratch = folder / "scratch" / spec.id
    scratch.mkdir(parents=True, exist_ok=True)
    started = datetime.now(timezone.utc)
    begin = time.perf_counter()
    config = configure(spec, scratch)
    session = Session(spec, config)
    session.train()
    facts: dict[str, Any] = {
        **identity(spec, started),
        "wall_s": 0.0,
        "train_s": session.train_seconds,
        "epochs": len(session.curve),
        "best_epoch": session.best_epoch,
        "best_valid": session.best_valid,
        "valid_metric": spec.valid_metric,
        "n_parameters": session.n_parameters,
        "metrics": {},
        "query_time": bool(config["use_query_time"]),
        "saved": None,
        "status": "done",
        "curve": session.curve,
        "data": session.data_facts(),
        "threads": importlib.import_module("torch").get_num_threads(),
    }
    arrays: dict[str, NDArray[Any]] = {}
    if spec.test:
        arrays, facts["metrics"] = session.test()
    if spec.keep_model:
        models = folder / "models"
        models.mkdir(parents=True, exist_ok=True)
        kept = models / f"{spec.id}.pth"
        os.replace(session.trainer.saved_model_file, kept)
        facts["saved"] = str(kept)
    facts["wall_s"] = time.perf_counter() - begin
    write_record(folder, spec, facts, arrays)


class Session:
    """The objects of one run, made as RecBole's ``run_recbole`` makes them (quick_start/quick_start.py:117-150)."""

    def __init__(self, spec: RunSpec, config: Any) -> None:
        from study import protocols, ties

        data = importlib.import_module("recbole.data")
        utils = importlib.import_module("recbole.utils")
        self.spec, self.config = spec, config
        utils.init_seed(config["seed"], config["reproducibility"])
        importlib.import_module("recbole.utils.logger").init_logger(config)
        dataset = data.create_dataset(config)
        if spec.shuffle_ties:
            ties.shuffle(dataset, spec.seed)
        self.train_data, valid, test = data.data_preparation(config, dataset)
        self.valid = protocols.restricted(spec.protocol, config, valid, "valid")
        self.test_data = protocols.restricted(spec.protocol, config, test, "test")
        utils.init_seed(config["seed"], config["reproducibility"])
        self.model = utils.get_model(config["model"])(config, self.train_data._dataset).to(config["device"])
        self.n_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.curve: list[dict[str, Any]] = []
        self.train_seconds = 0.0
        self.collected: Any = None
        self.trainer = self._trainer(utils.get_trainer(config["MODEL_TYPE"], config["model"]))

    def _trainer(self, trainer_class: Any) -> Any:
        """RecBole's trainer, which tells how long epochs take and what was collected for the metrics."""
        session = self

        class Observed(trainer_class):
            def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
                begin = time.perf_counter()
                loss = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
                session.train_seconds += time.perf_counter() - begin
                total = float(sum(loss) if isinstance(loss, tuple) else loss)
                session.curve.append(
                    {"epoch": epoch_idx, "train_s": session.train_seconds, "loss": total, "valid": None}
                )
                return loss

        trainer = Observed(self.config, self.model)
        evaluate = trainer.evaluator.evaluate

        def remember(collected: Any) -> Any:
            session.collected = collected
            return evaluate(collected)

        trainer.evaluator.evaluate = remember
        return trainer

    def train(self) -> None:
        """Train to early stopping."""

        def note(_: int, score: float) -> None:
            self.curve[-1]["valid"] = float(score)

        self.trainer.fit(self.train_data, self.valid, saved=True, show_progress=False, callback_fn=note)

    @property
    def best_epoch(self) -> int | None:
        """Epoch of the model that is tested: the last with the best score (utils/utils.py:137), or the last of all."""
        scored = [point for point in self.curve if point["valid"] is not None]
        if not scored:
            return self.curve[-1]["epoch"] if self.curve else None
        return int(max(scored, key=lambda point: (point["valid"], point["epoch"]))["epoch"])

    @property
    def best_valid(self) -> float | None:
        """Its score in validation."""
        scores = [point["valid"] for point in self.curve if point["valid"] is not None]
        return max(scores) if scores else None

    def test(self) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
        """Test the best model.

        Returns
        -------
        arrays : dict
            ``users``, as the data file names them, and each metric's value for each of them.
        metrics : dict of str to float
            Their means.

        Raises
        ------
        AssertionError
            If RecBole's own result is another.
        """
        result = self.trainer.evaluate(self.test_data, load_best_model=True, show_progress=False)
        dataset = self.test_data._dataset
        rows = per_row(self.trainer.evaluator, self.collected)
        for name, values in rows.items():
            if abs(float(values.mean()) - float(result[name])) > 10.0 ** (1 - PLACES):
                raise AssertionError(f"{name}: RecBole has {result[name]}, the rows' mean is {values.mean()}")
        users = np.asarray(dataset.field2id_token[dataset.uid_field])[dataset.inter_feat[dataset.uid_field].numpy()]
        arrays = by_user(users.astype(str), rows)
        return arrays, {name: float(arrays[name].mean()) for name in rows}

    def data_facts(self) -> dict[str, Any]:
        """What there was to learn from and to be judged by."""
        from study import ties

        train, valid, test = (each._dataset for each in (self.train_data, self.valid, self.test_data))
        items = train.iid_field
        shown = train._shown_events(train.inter_feat, include_targets=True)
        trained = np.unique(train.inter_feat.events.columns[items][shown].numpy())
        targets = test.inter_feat[items].numpy()
        return {
            "items": train.item_num - 1,
            "train_targets": len(train.inter_feat),
            "valid_rows": len(valid.inter_feat),
            "test_rows": len(test.inter_feat),
            "test_users": len(np.unique(test.inter_feat[test.uid_field].numpy())),
            "test_targets_never_trained": int((~np.isin(targets, trained)).sum()),
            "test_targets_met_before": _met_before(test),
            "ties": ties.measure(test),
            "split": getattr(train, "split_counts", None),
        }


def _met_before(dataset: Any) -> int:
    """How many rows ask for an item that the user has met."""
    rows = dataset.inter_feat
    targets = rows.targets.long()
    users, items = (rows.events.columns[name].long().numpy() for name in (dataset.uid_field, dataset.iid_field))
    # The first event of each pair of user and item: a target that isn't it was met before.
    _, first = np.unique(users * dataset.item_num + items, return_index=True)
    return int((~np.isin(targets.numpy(), first)).sum())


def per_row(evaluator: Any, collected: Any) -> dict[str, NDArray[np.float64]]:
    """Each metric's value for each evaluated row, by RecBole's own metric classes.

    Parameters
    ----------
    evaluator : recbole.evaluator.Evaluator
        With ranking metrics at ``k``.
    collected : DataStruct
        What it was given to evaluate.

    Returns
    -------
    dict of str to float64 array, [n_rows]
        By RecBole's names: ``ndcg@10``.
    """
    found = {}
    for name in evaluator.metrics:
        metric = evaluator.metric_class[name]
        hits, counts = metric.used_info(collected)
        takes_counts = name in ("recall", "ndcg", "map")
        values = metric.metric_info(hits, counts) if takes_counts else metric.metric_info(hits)
        for k in metric.topk:
            found[f"{name}@{k}"] = np.ascontiguousarray(values[:, k - 1], dtype=np.float64)
    return found


def by_user(users: NDArray[np.str_], rows: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[Any]]:
    """Values by user in place of values by row: the mean, where a user has several rows.

    Parameters
    ----------
    users : str array, [n_rows]
        User of each row.
    rows : mapping of str to float64 array, [n_rows]
        Values of each metric.

    Returns
    -------
    dict
        ``users``, each once and in order, and for each metric a float64 array of as many values.
    """
    unique, place = np.unique(users, return_inverse=True)
    if len(unique) == len(users):
        order = np.argsort(users, kind="stable")
        return {"users": users[order], **{name: values[order] for name, values in rows.items()}}
    counts = np.bincount(place)
    means = {name: np.bincount(place, values, len(unique)) / counts for name, values in rows.items()}
    return {"users": unique, **means}


# What is written


def identity(spec: RunSpec, started: datetime) -> dict[str, Any]:
    """What a run's file says of it whether it went well or not."""
    return {
        "format": FORMAT,
        "study": spec.study,
        "study_hash": spec.study_hash,
        "label": spec.label,
        "model": spec.model,
        "dataset": spec.dataset,
        **({"data_name": spec.data_name} if spec.data_name else {}),
        "seed": spec.seed,
        "protocol": {
            "split": spec.protocol.split,
            "candidates": spec.protocol.candidates,
            "seen": spec.protocol.seen,
            "ties": "shuffled" if spec.shuffle_ties else "file",
        },
        "temporal": dict(spec.temporal) if spec.protocol.split == "temporal" else None,
        "options": dict(spec.options),
        "command": spec.command,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "started": started.isoformat(timespec="seconds"),
    }


def write_record(folder: Path, spec: RunSpec, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a run's two files, each whole, the one that says that it is over last."""
    path = record_path(folder, spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrays:
        with AtomicFile(path.with_suffix(".npz")) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    with AtomicFile(path) as file:
        file.write((json.dumps(facts, indent=1, default=_plain) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def write_failure(folder: Path, spec: RunSpec, error: str, started: datetime, seconds: float) -> None:
    """Record that a run failed, and why."""
    facts = {
        **identity(spec, started),
        "wall_s": seconds,
        "valid_metric": spec.valid_metric,
        "metrics": {},
        "query_time": False,
        "saved": None,
        "status": "failed",
        "error": error,
        "curve": [],
    }
    write_record(folder, spec, facts, {})


def commit() -> str | None:
    """The commit of the checkout that runs, with ``-changed`` where files differ from it; None without git."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str | None]:
    """Versions of Python and of what results depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "recbole", "numpy", "pandas"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["recbole_adrrec"] = importlib.import_module("recbole_adrrec.version").__version__
    return found


def hardware() -> dict[str, Any]:
    """What the run ran on."""
    torch, psutil = importlib.import_module("torch"), importlib.import_module("psutil")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


# A process of its own


def main(arguments: Sequence[str]) -> int:
    """Run what a file describes; ``python -m study.runs SPEC RESULTS``.

    Returns
    -------
    int
        0 when the run is recorded as done, 1 when as failed.
    """
    spec = RunSpec.from_json(Path(arguments[0]).read_text(encoding="utf-8"))
    folder = Path(arguments[1])
    _die_with_parent()
    started = datetime.now(timezone.utc)
    begin = time.perf_counter()
    try:
        run_one(spec, folder)
    except UserError as error:
        write_failure(folder, spec, str(error), started, time.perf_counter() - begin)
        return 1
    except Exception as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
        write_failure(folder, spec, text, started, time.perf_counter() - begin)
        return 1
    return 0


def _die_with_parent() -> None:
    """End this process when the one that started it is gone: else a resumed study would run the same run beside it.

    The parent holds the other end of standard input and never writes; it is closed when the parent ends, however.
    """

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        os._exit(ORPHANED)

    threading.Thread(target=watch, daemon=True).start()


def execute(spec_text: str, results: str, environment: Mapping[str, str] | None = None) -> str:
    """Run one run in a child process, and see to it that its end is recorded, whatever the end.

    Parameters
    ----------
    spec_text : str
        The run, as JSON.
    results : str
        Folder of the results.
    environment : mapping, optional
        Variables over those of this process.

    Returns
    -------
    str
        ``done`` or ``failed``.
    """
    child = Child(spec_text, results, environment)
    child.process.wait()
    return child.finish()


class Child:
    """One run in a child process.

    Parameters
    ----------
    spec_text, results, environment
        As for :func:`execute`.
    """

    def __init__(self, spec_text: str, results: str, environment: Mapping[str, str] | None = None) -> None:
        self.spec, self.results = RunSpec.from_json(spec_text), Path(results)
        self.environment = dict(environment or {})
        self.started, self.begin = datetime.now(timezone.utc), time.perf_counter()
        self.scratch = self.results / "scratch" / self.spec.id
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        (self.results / "logs").mkdir(exist_ok=True)
        self.log = self.results / "logs" / f"{self.spec.id}.log"
        described = self.scratch / "spec.json"
        described.write_text(spec_text, encoding="utf-8")
        with self.log.open("wb") as log:
            # RecBole writes its logs into the working directory.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "study.runs", str(described), str(self.results)],
                cwd=self.scratch,
                env=child_environment(environment),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> str:
        """Clean up after the process has ended; record a failure that it could not record by itself."""
        if self.process.stdin:
            self.process.stdin.close()
        code = self.process.returncode
        path = record_path(self.results, self.spec)
        if not path.is_file():
            seconds = time.perf_counter() - self.begin
            write_failure(self.results, self.spec, self._died(code), self.started, seconds)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return str(json.loads(path.read_text(encoding="utf-8"))["status"])

    def _died(self, code: int) -> str:
        if code >= 0:
            end = f"the process ended with exit code {code}"
        else:
            name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else f"signal {-code}"
            end = f"the process was killed by {name}"
            if -code == signal.SIGKILL:
                end += " (often for want of memory)"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{end}; last line of {self.log.name}: {lines[-1]}" if lines else end

    def stop(self) -> None:
        """End the process now, leaving nothing recorded."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with which a child finds these modules and the package."""
    benchmarks = Path(__file__).resolve().parents[1]
    paths = [str(benchmarks), str(benchmarks.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **(more or {})}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
