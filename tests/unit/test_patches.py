"""Patches for libraries, of look-ups and of values, and the check of RecBole's version."""

from __future__ import annotations

import importlib.metadata
import io
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from colorama.ansitowin32 import StreamWrapper
from recbole.config import Config
from recbole.quick_start import quick_start
from recbole.trainer import HyperTuning
from recbole.trainer import trainer as trainer_module
from recbole.utils import get_model
from recbole.utils import utils as utils_module

from recbole_adrrec.errors import OptionError
from recbole_adrrec.integration import patches, patches_libraries, patching
from recbole_adrrec.integration.checkpoint import load_checkpoint

HERE = Path(__file__).parent


def run_alone(code: str) -> str:
    """Run code in a fresh interpreter, where nothing is patched yet; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_faults_of_the_imports_and_their_patches() -> None:
    out = run_alone("""
import sys
sys.modules["ray"] = None  # as where it isn't installed
try:
    import recbole.quick_start
except ImportError as error:
    print("fault: ray", error)
from recbole.config import Config
import numpy as np
lacking = "float_" not in vars(np)
try:
    Config(model="BPR", dataset="ml-100k")
except AttributeError as error:
    print("fault: numpy", error)
else:
    assert not lacking
from recbole_adrrec.integration import patches
patches.check_version()
patches.apply_patches()
patches.apply_patches()
from recbole.quick_start import run_recbole
assert sys.modules["ray"] is None and "ray.tune" not in sys.modules
Config(model="BPR", dataset="ml-100k")
assert np.float_ is np.float64 and np.unicode_ is np.str_ and np.complex_ is np.complex128
print("needed:", patches.needed()["numpy names"] == lacking)
""")
    assert "fault: ray" in out
    assert "needed: True" in out
    if patches_libraries.LACKING:
        assert "fault: numpy" in out


def test_ray_is_never_imported_and_no_stand_in_stays() -> None:
    run_alone("""
import sys
import recbole_adrrec
recbole_adrrec.register()
import recbole.quick_start, recbole.trainer
assert not [name for name in sys.modules if name.split(".")[0] == "ray"]
recbole.quick_start.quick_start.tune.report(score=1)
""")


def test_a_ray_imported_before_stays_where_it_is() -> None:
    run_alone("""
import sys, types
ray, tune = types.ModuleType("ray"), types.ModuleType("ray.tune")
ray.tune = tune
sys.modules.update({"ray": ray, "ray.tune": tune})
from recbole_adrrec.integration import patches
patches.apply_patches()
assert sys.modules["ray"] is ray and sys.modules["ray.tune"] is tune and ray.tune is tune
""")


def test_importing_models_leaves_anomaly_detection_off() -> None:
    out = run_alone("""
import importlib, torch
import recbole_adrrec
recbole_adrrec.register()
sine = importlib.import_module("recbole.model.sequential_recommender.sine")
print(torch.is_anomaly_enabled())
importlib.reload(sine)
print("fault:", torch.is_anomaly_enabled())
""")
    assert out.split() == ["False", "fault:", "True"]


def old_report(seen: list[Any]) -> Any:
    def report(_metric: Any = None, **kwargs: Any) -> None:
        seen.append(kwargs)

    return report


def new_report(seen: list[Any]) -> Any:
    def report(metrics: dict[str, Any], *, checkpoint: Any = None) -> None:
        seen.append(metrics)

    return report


def fake_ray(monkeypatch: pytest.MonkeyPatch, tune: dict[str, Any], train: dict[str, Any], session: Any) -> None:
    for name, names in (
        ("ray.tune", tune),
        ("ray.train", train),
        ("ray.train._internal.session", {"get_session": lambda: session}),
    ):
        module = types.ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("generation", ["until 2.6", "between", "today"])
def test_metrics_reach_each_generation_of_ray(generation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    if generation == "until 2.6":
        fake_ray(monkeypatch, {"report": old_report(seen), "is_session_enabled": lambda: True}, {}, None)
    elif generation == "between":
        fake_ray(monkeypatch, {"report": old_report([])}, {"report": new_report(seen)}, object())
    else:
        fake_ray(monkeypatch, {"report": new_report(seen)}, {}, object())
    quick_start.tune.report(**{"ndcg@10": 0.5, "hit@10": 1.0})
    assert seen == [{"ndcg@10": 0.5, "hit@10": 1.0}]


def test_nothing_is_reported_outside_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    for report in (old_report(seen), new_report(seen)):
        fake_ray(monkeypatch, {"report": report, "is_session_enabled": lambda: False}, {}, None)
        quick_start.tune.report(score=1)
    assert seen == []


def test_objective_registers_in_the_process_of_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quick_start.objective_function is patches_libraries.objective_function
    assert patches_libraries.objective_function.__module__.startswith(
        "recbole_adrrec"
    )  # by which ray finds it elsewhere
    monkeypatch.setattr(patches_libraries.objective_function, "__wrapped__", lambda **given: given)
    assert quick_start.objective_function({"a": 1}, saved=False) == {
        "config_dict": {"a": 1},
        "config_file_list": None,
        "saved": False,
    }


def test_hyper_tuning_works_without_ray(small: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("hyperopt")
    fixed = tmp_path / "fixed.yaml"
    fixed.write_text(yaml.safe_dump({**small, "model": "ADRRec", "dataset": "small"}))
    tuner = HyperTuning(
        quick_start.objective_function,
        algo="exhaustive",
        params_dict={"choice": {"learning_rate": [0.01]}},
        fixed_config_file_list=[str(fixed)],
    )
    tuner.run()
    assert tuner.best_params == {"learning_rate": 0.01}


def has_current_ray() -> bool:
    """True where a ray is installed that can be imported; it is not imported."""
    try:
        return int(importlib.metadata.version("ray").split(".")[1]) >= 9
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not has_current_ray(), reason="no current ray[tune] is installed")
def test_trials_of_a_real_ray_report(small: dict[str, Any], tmp_path: Path) -> None:
    options = {**small, "model": "ADRRec", "dataset": "small"}
    code = f"""
import recbole_adrrec
recbole_adrrec.register()
from recbole.quick_start import objective_function
import ray
from ray import tune
ray.init(num_cpus=1, include_dashboard=False)
run = tune.RunConfig(storage_path={str(tmp_path)!r}, stop={{"ndcg@10": 0}})
tuner = tune.Tuner(tune.with_parameters(objective_function, saved=False), param_space={options!r}, run_config=run)
(result,) = tuner.fit()
assert not result.error, result.error
assert "ndcg@10" in result.metrics, result.metrics
"""
    run_alone(code)


@pytest.mark.parametrize(
    ("name", "near"), [("SASRex", "SASRec"), ("sasrec", "SASRec"), ("ADRec", "ADRRec"), ("lightgmb", "LightGBM")]
)
def test_an_unknown_model_is_named_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(OptionError, match=f"there is no model '{name}'.*{near}"):
        get_model(name)


def test_without_the_patch_an_unknown_model_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if "lightgbm" not in sys.modules:
        monkeypatch.setitem(sys.modules, "lightgbm", None)  # as where it isn't installed
    with pytest.raises(Exception, match=r"lightgbm") as caught:
        patching.original(utils_module.get_model)("NoSuchModel")
    assert not isinstance(caught.value, OptionError)


def test_a_known_model_that_lacks_a_library_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ImportError, match="lightgbm"):
        get_model("LightGBM")


def test_pretrained_models_are_loaded_by_our_rules() -> None:
    module = sys.modules[get_model("S3Rec").__module__]
    assert module.torch.load is load_checkpoint
    assert module.torch.nn is torch.nn


@pytest.mark.parametrize("text", ["1/0", "[1][2]", "{}['a']", "int('x')", "lambda: 0", "a b", "None.x", "'a' * -1 + 1"])
def test_strings_that_cannot_be_evaluated_stay_strings(text: str) -> None:
    config = Config(model="BPR", dataset="ml-100k", config_dict={"note": text})
    assert config["note"] == text


def test_other_strings_are_read_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"a": "1", "b": "[1, 2]", "c": "true", "d": "text", "e": 3, "f": "None"}
    assert Config._convert_config_dict(None, dict(given)) == {
        "a": 1,
        "b": [1, 2],
        "c": True,
        "d": "text",
        "e": 3,
        "f": None,
    }
    with pytest.raises(ZeroDivisionError):
        patching.original(Config._convert_config_dict)(None, {"a": "1/0"})


def test_streams_are_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole.utils import logger

    for init, wrapped_again in ((logger.init, False), (patching.original(logger.init), True)):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        init(autoreset=True)
        once = sys.stdout, sys.stderr
        assert isinstance(once[0], StreamWrapper)
        init(autoreset=True)
        assert [now is before for now, before in zip((sys.stdout, sys.stderr), once, strict=True)] == (
            [not wrapped_again] * 2
        )


def test_the_scaler_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaler = trainer_module.amp.GradScaler(enabled=False)
    assert scaler.scale(torch.ones(1)).item() == 1
    with pytest.warns(FutureWarning, match="GradScaler"):
        torch.cuda.amp.GradScaler(enabled=False)


def test_replacing_reaches_every_module_of_recbole_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def old() -> None: ...

    def new() -> None: ...

    ours = types.ModuleType("recbole.somewhere")
    other = types.ModuleType("recbole_other")
    ours.name = ours.again = other.name = old  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recbole.somewhere", ours)
    monkeypatch.setitem(sys.modules, "recbole_other", other)
    patching.replace_everywhere(old, new)
    assert ours.name is new
    assert ours.again is new
    assert other.name is old


def test_an_overlay_adds_names_and_passes_the_rest_on() -> None:
    holder = types.ModuleType("holder")
    holder.np = np  # type: ignore[attr-defined]
    patching.overlay(holder, "np", load=1)
    patching.overlay(holder, "np", save=2)
    assert (holder.np.load, holder.np.save, holder.np.arange) == (1, 2, np.arange)
    assert callable(np.load)
    with pytest.raises(AttributeError):
        holder.np.no_such_name  # noqa: B018


def test_every_patch_is_described() -> None:
    assert len({patch.name for patch in patches.PATCHES}) == len(patches.PATCHES) > 10
    assert set(patches.needed()) == {patch.name for patch in patches.PATCHES}
    for patch in patches.PATCHES:
        assert ".py:" in patch.where
        assert patch.fault


def test_only_patches_that_are_needed_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []
    made = [patching.Patch(name, "", "", lambda name=name: name == "a", lambda: applied.append("x")) for name in "ab"]
    monkeypatch.setattr(patches, "PATCHES", made)
    monkeypatch.setattr(patches, "_applied", False)
    patches.apply_patches()
    patches.apply_patches()
    assert applied == ["x"]


def test_other_versions_of_recbole_are_refused_before_anything_is_changed() -> None:
    out = run_alone("""
import importlib.metadata
import recbole.config.configurator
import recbole_adrrec
version = importlib.metadata.version
importlib.metadata.version = lambda name: "1.3.0" if name == "recbole" else version(name)
before = dict(vars(recbole.config.configurator.Config))
try:
    recbole_adrrec.register()
except RuntimeError as error:
    print(error)
assert dict(vars(recbole.config.configurator.Config)) == before
""")
    assert re.search(r"works with recbole \S*>=1\.2\.0\S*; the installed recbole is 1\.3\.0", out)
