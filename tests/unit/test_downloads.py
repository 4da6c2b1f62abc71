"""Downloads that work in one process, leave nothing behind when they don't, and say what is wanted."""

from __future__ import annotations

import io
import os
import urllib.error
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset

from recbole_adrrec.errors import DataError
from recbole_adrrec.integration import patches_data
from recbole_adrrec.integration.patching import original

INTER = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"u{i % 3}\ti{i}\t{i}\n" for i in range(9))


class Answer(io.BytesIO):
    """A reply of ``urlopen`` with an archive."""

    def info(self) -> Message:
        message = Message()
        message["Content-Length"] = str(len(self.getvalue()))
        return message


def archive(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return content.getvalue()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Archives by the end of their address; all others can't be reached."""
    files: dict[str, bytes] = {}

    def urlopen(url: str, timeout: float) -> Answer:
        assert timeout == patches_data.TIMEOUT_S
        for end, content in files.items():
            if url.endswith(end):
                return Answer(content)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(patches_data.urllib.request, "urlopen", urlopen)
    return files


def load(data_path: Path, name: str = "amazon-beauty", **options: Any) -> Any:
    return Dataset(Config(model="BPR", dataset=name, config_dict={"data_path": str(data_path), **options}))


def test_a_download_works_in_a_single_process(tmp_path: Path, served: dict[str, bytes]) -> None:
    served["Amazon_Beauty.zip"] = archive({"Amazon_Beauty.inter": INTER, "Amazon_Beauty.item": "item_id:token\ni0\n"})
    dataset = load(tmp_path / "data" / "sets")
    assert dataset.inter_num == 9
    folder = tmp_path / "data" / "sets"
    assert os.listdir(folder) == ["amazon-beauty"]
    assert sorted(os.listdir(folder / "amazon-beauty")) == ["amazon-beauty.inter", "amazon-beauty.item"]
    served.clear()
    assert load(folder).inter_num == 9  # not again


def test_a_folder_without_the_file_is_filled(tmp_path: Path, served: dict[str, bytes]) -> None:
    served["Amazon_Beauty.zip"] = archive({"Amazon_Beauty.inter": INTER, "Amazon_Beauty.item": "theirs"})
    (tmp_path / "amazon-beauty").mkdir()
    (tmp_path / "amazon-beauty" / "amazon-beauty.item").write_text("item_id:token\ni1\n")
    assert load(tmp_path).inter_num == 9
    assert (tmp_path / "amazon-beauty" / "amazon-beauty.item").read_text().endswith("i1\n")


@pytest.mark.parametrize("folder_exists", [False, True])
def test_without_network_the_wanted_file_is_named(
    folder_exists: bool, tmp_path: Path, served: dict[str, bytes]
) -> None:
    if folder_exists:
        (tmp_path / "data" / "amazon-beauty").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "data")
    text = str(caught.value)
    for part in ("data/amazon-beauty/amazon-beauty.inter", "Amazon_Beauty.zip", "data from http", "Name or service"):
        assert part in text
    assert "\n" not in text
    assert sorted(tmp_path.rglob("*")) == (
        [tmp_path / "data", tmp_path / "data" / "amazon-beauty"] if folder_exists else []
    )


@pytest.mark.parametrize(
    "content",
    [b"not a zip", archive({"other.inter": INTER})[:-40], archive({"readme.txt": "x"})],
    ids=["no archive", "truncated", "without the file"],
)
def test_a_bad_archive_leaves_nothing_behind(content: bytes, tmp_path: Path, served: dict[str, bytes]) -> None:
    served["Amazon_Beauty.zip"] = content
    with pytest.raises(DataError, match=r"there is no file \S+amazon-beauty\.inter"):
        load(tmp_path / "data")
    assert os.listdir(tmp_path) == []


def test_an_unknown_data_set_is_named_with_near_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file \S+amazon-beuty\.inter, .*amazon-beauty"):
        load(tmp_path, "amazon-beuty")
    with pytest.raises(DataError, match=r"mine\.part1\.inter"):
        load(tmp_path, "mine", benchmark_filename=["part1", "part2"])
    assert os.listdir(tmp_path) == []


def test_a_declined_download_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recbole.data.dataset.dataset.decide_download", lambda url: False)
    with pytest.raises(DataError, match="declined"):
        load(tmp_path)


def test_the_faults_are_there_without_the_patch(
    tmp_path: Path, served: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dataset, "_load_data", original(Dataset._load_data))
    served["Amazon_Beauty.zip"] = archive({"Amazon_Beauty.inter": INTER})
    assert not torch.distributed.is_initialized()
    with pytest.raises((ValueError, RuntimeError), match="process group"):
        load(tmp_path / "barrier")
    served["Amazon_Beauty.zip"] = b"not a zip"
    with pytest.raises(zipfile.BadZipFile):
        load(tmp_path / "half")
    with pytest.raises(ValueError, match="not exist"):
        load(tmp_path / "half")
