"""The wheel and the editable install carry everything, whatever folder they run from."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAIN = """
import recbole_adrrec
recbole_adrrec.register()
from recbole.quick_start import run_recbole
print(recbole_adrrec.__file__)
print(run_recbole("ADRRec", "small", config_dict={options!r})["test_result"])
"""


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what is packaged, so that building leaves nothing in the checkout."""
    copy = tmp_path / "source"
    copy.mkdir()
    for folder in ("recbole_adrrec", "properties"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / file, copy / file)
    return copy


def environment(folder: Path, with_our_packages: bool) -> Path:
    """A virtual environment without this package; its interpreter."""
    run(sys.executable, "-m", "venv", folder)
    if with_our_packages:
        tested = folder / "tested_set"
        tested.mkdir()
        for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if not package.name.startswith(("recbole_adrrec", "__editable__")):
                (tested / package.name).symlink_to(package)
        distutils = tested / "distutils-precedence.pth"  # setuptools' stand-in, which thop imports from Python 3.12 on
        more = distutils.read_text() if distutils.exists() else ""
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "tested_set.pth").write_text(f"{tested}\n{more}\n")
    return folder / "bin" / "python"


def train(python: Path, options: dict[str, object], folder: Path) -> str:
    folder.mkdir()
    out = run(python, "-W", "ignore", "-c", TRAIN.format(options=options), cwd=folder)
    assert "ndcg@10" in out
    return out


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_an_install_trains_from_another_folder(source, small, tmp_path, editable):
    python = environment(tmp_path / "environment", with_our_packages=True)
    if editable:
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", source)
    else:
        run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source)
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", *tmp_path.glob("*.whl"))
    out = train(python, small, tmp_path / "elsewhere")
    assert str(source if editable else tmp_path / "environment") in out


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_an_install_into_an_empty_environment_brings_what_it_needs(source, small, tmp_path, editable):
    python = environment(tmp_path / "environment", with_our_packages=False)
    what = ["-e", source] if editable else [source]
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *what)
    train(python, small, tmp_path / "elsewhere")
