"""RecBole's download of data sets: in one process as in many, and all of it or nothing."""

from __future__ import annotations

import difflib
import functools
import http.client
import importlib
import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from recbole_adrrec.errors import DataError
from recbole_adrrec.integration.patching import overlay, override

DATASET = "recbole.data.dataset.dataset"
URL = "recbole.utils.url"
PAGE = "https://recbole.io/dataset_list.html"
TIMEOUT_S = 30


def mend_download() -> None:
    """Download what is missing, and say what is wanted where that fails (data/dataset/dataset.py:230-254, :268).

    RecBole looks for the folder instead of the file; makes the folder before it knows whether the download works, and
    then takes the empty folder for the data set; waits without end for a silent server; and ends by
    ``torch.distributed.barrier()``, which fails in a single process (:252).
    """
    dataset = importlib.import_module(DATASET).Dataset
    override(dataset, "_download", lambda _: _download)
    override(dataset, "_load_data", _downloading_first)
    overlay(importlib.import_module(URL), "ur", urlopen=_urlopen)


def _urlopen(url: str) -> Any:
    return urllib.request.urlopen(url, timeout=TIMEOUT_S)


def _downloading_first(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_data(self: Any, token: str, dataset_path: str) -> None:
        # The first process on each machine downloads, and the others wait for it; also where there is nothing to do,
        # since they can't know.
        if self.config["local_rank"] == 0 and not all(path.is_file() for path in _wanted(self)):
            self._download()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        original(self, token, dataset_path)

    return load_data


def _wanted(dataset: Any) -> list[Path]:
    """The files of interactions that the data set is read from."""
    middle = [f".{name}" for name in dataset.benchmark_filename_list or []] or [""]
    return [Path(dataset.dataset_path) / f"{dataset.dataset_name}{part}.inter" for part in middle]


def _download(self: Any) -> None:
    """Download the data set from where RecBole keeps it.

    Raises
    ------
    DataError
        RecBole knows no such data set, or it can't be had; says which file is wanted, where, and from which page.
    """
    wanted = next(path for path in _wanted(self) if not path.is_file())
    url = _url(self, wanted)
    self.logger.info(f"Prepare to download dataset [{self.dataset_name}] from [{url}].")
    module = importlib.import_module(DATASET)
    target = Path(self.dataset_path)
    try:
        if not module.decide_download(url):
            raise DataError(f"{wanted}: no such file, and its download was declined")
        with _folder_beside(target) as folder:
            archive = module.download_url(url, str(folder))
            module.extract_zip(archive, str(folder))
            os.unlink(archive)
            module.rename_atomic_files(str(folder), Path(archive).stem, self.dataset_name)
            if not (folder / wanted.name).is_file():
                raise DataError(f"{wanted}: no such file, nor is it in {url}; see {PAGE}")
            _move(folder, target)
    except (OSError, RuntimeError, TypeError, zipfile.BadZipFile, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{wanted}: no such file, and {url} could not be downloaded ({reason}); put the file there by hand "
            f"(all data sets are listed at {PAGE})"
        ) from error
    self.logger.info("Downloading done.")


def _url(dataset: Any, wanted: Path) -> str:
    """Where RecBole keeps the data set."""
    properties = Path(importlib.import_module("recbole").__file__ or "").parent / "properties/dataset/url.yaml"
    urls = yaml.safe_load(properties.read_text(encoding="utf-8"))
    name = dataset.dataset_name
    if name in urls:
        return str(urls[name])
    near = difflib.get_close_matches(name, urls, n=3)
    hint = f"; names like it that can be downloaded: {', '.join(near)}" if near else ""
    raise DataError(
        f"{wanted}: no such file, and RecBole knows no data set {name!r} to download{hint}; check dataset and "
        f"data_path, or put the file there (data sets are listed at {PAGE})"
    )


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A new folder where ``target`` shall be; when this ends, nothing made for it is left, but what was moved."""
    made = [folder for folder in target.absolute().parents if not folder.exists()]
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.absolute().parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()


def _move(folder: Path, target: Path) -> None:
    """Put downloaded files into their place, but over none that is there."""
    target.mkdir(exist_ok=True)
    # The file that tells whether the data set is there comes last.
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix == ".inter"):
        if not (target / path.name).exists():
            shutil.move(str(path), str(target / path.name))
