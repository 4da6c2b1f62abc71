"""Whole data sets through the command line, as a user runs them; slow."""

import os
import re
from pathlib import Path

import pytest

from recbole_adrrec import cli

pytestmark = pytest.mark.slow
DATA = os.environ.get("ADRREC_DATA")


def ndcg(text: str) -> float:
    """NDCG@10 of the printed table."""
    return float(re.search(r"^NDCG\s+\S+\s+(\S+)", text, re.MULTILINE)[1])


def test_adrrec_trains_on_ml_100k_to_early_stopping(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--model=ADRRec", "--dataset=ml-100k"]) == 0
    told = capfd.readouterr()
    assert "Finished training, best eval result in epoch" in told.out + told.err
    assert ndcg(told.out) > 0.05
    assert "10 recommended" in told.out
    (saved,) = set(Path("saved").glob("ADRRec-*.pth")) - set(Path("saved").glob("*-last.pth"))
    assert str(saved) in told.out


@pytest.mark.parametrize("model", ["MEANTIME", "SASRec", "BERT4Rec"])
def test_other_models_train_on_ml_100k(tmp_path, monkeypatch, capfd, model):
    monkeypatch.chdir(tmp_path)
    assert cli.main([f"--model={model}", "--dataset=ml-100k", "--epochs=1"]) == 0
    assert ndcg(capfd.readouterr().out) > 0


@pytest.mark.skipif(not DATA, reason="ADRREC_DATA names no folder with amazon-beauty/amazon-beauty.inter")
@pytest.mark.parametrize("model", ["ADRRec", "SASRec"])
def test_models_train_on_beauty(tmp_path, monkeypatch, capfd, model):
    monkeypatch.chdir(tmp_path)
    assert cli.main([f"--model={model}", "--dataset=amazon-beauty", f"--data_path={DATA}", "--epochs=1"]) == 0
    assert ndcg(capfd.readouterr().out) > 0
