"""The blocks of docs/extending.md, put into a copy of the package as the page says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'```\w+ title="([^"]+)"\n(.*?)```', re.DOTALL)
SMALL = (
    "--epochs=1 --show_progress=false --MAX_ITEM_LIST_LENGTH=12 --hidden_size=16 --metrics=[NDCG] --topk=[10] "
    "--valid_metric=NDCG@10"
)
RUN = "import sys; from recbole_adrrec import cli; sys.exit(max([cli.main(each.split()) for each in sys.argv[1:]]))"


def blocks() -> list[tuple[str, str]]:
    """Where each block belongs, and its text."""
    return BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))


def insert(text: str, block: str) -> str:
    """A file's text with a block at its end, or for assignments that stand in it already in place of them."""
    lines = block.splitlines()
    starts = [line.partition(" = ")[0] + " = " for line in lines]
    if text and all(re.search(f"^{re.escape(start)}", text, re.MULTILINE) for start in starts):
        for start, line in zip(starts, lines, strict=True):
            text = re.sub(f"^{re.escape(start)}.*$", lambda _, line=line: line, text, count=1, flags=re.MULTILINE)
        return text
    return f"{text}\n\n{block}" if text else block


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the page's blocks in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("recbole_adrrec", "properties"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, block in blocks():
        if name != "test":
            file = copy / name
            file.write_text(insert(file.read_text(encoding="utf-8") if file.exists() else "", block), encoding="utf-8")
    return copy


def run(checkout: Path, folder: Path, code: str, *arguments: str) -> str:
    """Run code with the copy in place of the package."""
    call = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(checkout)!r})\n{code}", *arguments]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_kind_of_extension_has_its_blocks() -> None:
    names = [name for name, _ in blocks()]
    assert len(names) == len(set(names)) == 8
    assert all((ROOT / name).parent.is_dir() for name in names if name != "test")


def test_the_kernel_has_its_formula(checkout: Path, tmp_path: Path) -> None:
    test = dict(blocks())["test"]
    run(checkout, tmp_path, f"{test}\nimport recbole_adrrec; assert recbole_adrrec.__file__.startswith(sys.path[0])")


def test_kernel_model_and_data_set_train(checkout: Path, small_data: Path, tmp_path: Path) -> None:
    rows = [line.split("\t") for line in (small_data / "small" / "small.inter").read_text().splitlines()[1:]]
    csv = tmp_path / "ratings.csv"
    csv.write_text("\n".join(["user,item,time", *(f"{user},{item},{time}" for user, item, _, time in rows)]))
    commands = [
        f"--model=ADRRec --relative_kernels=[sinusoid,session] --dataset=small --data_path={small_data} {SMALL}",
        f"convert {csv} --name=shop --out=data",
        f"--model=GapOnly --dataset=shop --data_path=data {SMALL}",
    ]
    out = run(checkout, tmp_path, RUN, *commands)
    assert out.count("Best validation NDCG@10") == 2
