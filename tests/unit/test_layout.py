"""The package's layout: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "recbole_adrrec"
FLOORS = (
    ("errors", "files", "times", "version", "fingerprint", "collectives"),
    ("losses", "layers", "options"),
    ("data",),
    ("models",),
    ("integration",),
    ("tools",),
    ("service",),
    ("cli",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = [path for path in sorted(ROOT.rglob("*.py")) if not path.relative_to(ROOT).parts[0].startswith("__")]


def imported(path):
    """Parts of the package that a module imports, at its head or within a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "recbole_adrrec":
            _, _, rest = node.module.partition(".")
            yield from [rest.partition(".")[0]] if rest else [alias.name for alias in node.names]


@pytest.mark.skipif(not ROOT.is_dir(), reason="not in a checkout")
@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_no_floor_above_its_own(path):
    floor = FLOOR[path.relative_to(ROOT).parts[0].removesuffix(".py")]
    assert {name for name in imported(path) if FLOOR.get(name, -1) > floor} == set()
