"""Checkpoints of version 0.1 and of RecBole alone: refused, and converted once they are trusted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.quick_start import load_data_and_model
from recbole.trainer.trainer import Trainer
from recbole.utils import get_trainer
from test_checkpoint import VERSION_0_1, elsewhere, harmful, trained_sasrec, trainer_of  # noqa: F401 - fixtures among them
from test_resume import write_tiny

import recbole_adrrec
from recbole_adrrec import cli
from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.fingerprint import fingerprint
from recbole_adrrec.integration.checkpoint import load_checkpoint


@pytest.fixture
def by_recbole(trained: tuple[Path, dict[str, Any]]) -> Path:
    """A checkpoint that RecBole's own trainer saves."""
    config, model, *_ = load_data_and_model(trained[0])
    trainer = Trainer(config, model)
    trainer._save_checkpoint(0, saved_model_file="recbole.pth")
    return Path("recbole.pth")


def test_old_checkpoints_are_refused_with_the_command_that_converts_them(
    by_recbole: Path, trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    for old in (VERSION_0_1, by_recbole):
        command = f"python -m recbole_adrrec upgrade-checkpoint {old} -o NEW --trust"
        trainer, train_data = trainer_of(trained[0])
        for read in (
            recbole_adrrec.load,
            load_data_and_model,
            trainer.resume_checkpoint,
            lambda old, trainer=trainer, data=train_data: trainer.evaluate(data, model_file=old),
        ):
            with pytest.raises(CheckpointError, match=re.escape(command)) as refused:
                read(old)
            assert "\n" not in str(refused.value)
        assert cli.main([f"--resume={old}"]) == 2
        assert command in capsys.readouterr().err


def test_a_checkpoint_of_version_0_1_answers_and_continues_once_it_is_converted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tiny(Path())
    assert cli.main(["upgrade-checkpoint", str(VERSION_0_1), "-o", "new.pth", "--trust"]) == 0
    assert capsys.readouterr().out == "new.pth: written\n"
    old = torch.load(VERSION_0_1, weights_only=False)
    new = load_checkpoint("new.pth")
    assert fingerprint(new["state_dict"]) == fingerprint(old["state_dict"])
    assert new["training"]["whole_epochs"] == old["training"]["whole_epochs"]
    recommender = recbole_adrrec.load("new.pth")
    assert recommender.users[0] == "u0"
    assert len(recommender.recommend("u0", top=3).frame()) == 3
    config, model, _, _, _, test_data = load_data_and_model("new.pth")
    trainer = get_trainer(config["MODEL_TYPE"], "ADRRec")(config, model)
    before = trainer.evaluate(test_data, load_best_model=False)
    assert trainer.evaluate(test_data, model_file="new.pth") == before
    assert cli.main(["--resume=new.pth", "--epochs=3"]) == 0
    assert "test metrics over 24 users" in capsys.readouterr().out
    assert load_checkpoint("new-last.pth")["training"]["whole_epochs"] == 3


def test_a_checkpoint_of_recbole_serves_its_own_pipeline_once_it_is_converted(
    by_recbole: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    assert cli.main(["upgrade-checkpoint", str(by_recbole), "-o", str(by_recbole), "--trust"]) == 0
    config, model, _, _, _, test_data = load_data_and_model(by_recbole)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    assert dict(trainer.evaluate(test_data, model_file=by_recbole)) == dict(trained[1]["test_result"])
    trainer.resume_checkpoint(by_recbole)
    assert trainer.start_epoch == 1
    with pytest.raises(CheckpointError, match="carries no names of users and items"):
        recbole_adrrec.load(by_recbole)


def test_only_trusted_checkpoints_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"config": harmful(tmp_path / "marker")[1]}, "crafted.pth")
    assert cli.main(["upgrade-checkpoint", "crafted.pth", "-o", "new.pth"]) == 2
    assert "reading crafted.pth runs what is in it" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()
    shutil.copy(VERSION_0_1, "old.pth")
    state = torch.load("old.pth", weights_only=False)
    state["cur_step"] += 1
    torch.save(state, "old.pth")
    Path("text.pth").write_text("no checkpoint")
    torch.save({"a": 1}, "other.pth")
    for file, message in (
        ("old.pth", "damaged, or changed since it was saved"),
        ("nowhere.pth", "there is no such checkpoint"),
        ("text.pth", "can't be read"),
        ("other.pth", "not a checkpoint of version 0.1 or of RecBole alone; nothing to convert"),
    ):
        assert cli.main(["upgrade-checkpoint", file, "-o", "new.pth", "--trust"]) == 2
        assert f"error: {file}: {message}" in capsys.readouterr().err
    assert not Path("new.pth").exists()
