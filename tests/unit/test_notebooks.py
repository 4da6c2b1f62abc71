"""The notebooks of the docs, executed from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"


def shown(notebook: nbformat.NotebookNode) -> Iterator[list[str]]:
    """Outputs of each cell of code: kinds of data, or names of streams."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield sorted({kind for each in cell.outputs for kind in each.get("data", {each.get("name"): ""})})


@pytest.mark.parametrize("name", ["first_model", "own_data", "explaining"])
def test_a_notebook_runs_and_shows_what_it_is_kept_with(name: str, tmp_path: Path) -> None:
    kept = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    fresh = nbformat.from_dict({**kept, "cells": [{**cell, "outputs": []} for cell in kept.cells]})
    NotebookClient(fresh, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert list(shown(fresh)) == list(shown(kept))
    # Pages without outputs teach nothing; warnings in them are a fault of ours.
    assert sum(map(bool, shown(kept))) >= 4
    assert not any("stderr" in kinds for kinds in shown(kept))


def test_every_notebook_is_run() -> None:
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == {"first_model", "own_data", "explaining"}
