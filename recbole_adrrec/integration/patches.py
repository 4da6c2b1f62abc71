"""All patches of RecBole for today's libraries, and the check of its version.

Each patch stands in one of the modules imported here, with the fault, the versions and RecBole's line (of 1.2.1), does
nothing where it isn't needed, and changes RecBole alone.
"""

from __future__ import annotations

import importlib.metadata

from packaging.specifiers import SpecifierSet

# Patches are applied in the order of these modules: the libraries have to come first.
from recbole_adrrec.integration import patches_libraries  # noqa: F401  isort: skip
from recbole_adrrec.integration import patches_data  # noqa: F401  isort: skip
from recbole_adrrec.integration import distributed  # noqa: F401  isort: skip
from recbole_adrrec.integration.patching import PATCHES, Patch

__all__ = ["PATCHES", "Patch", "apply_patches", "check_version", "needed"]

SUPPORTED = SpecifierSet(">=1.2.0,<1.3")
_applied = False


def apply_patches() -> None:
    """Patch RecBole, before anything else of it is imported. Harmless when repeated."""
    global _applied
    if not _applied:
        for each in PATCHES:
            if each.needed():
                each.apply()
    _applied = True


def needed() -> dict[str, bool]:
    """Patches by name, true for those that the libraries installed here need."""
    return {each.name: each.needed() for each in PATCHES}


def check_version() -> None:
    """Refuse, by a ``RuntimeError``, versions of RecBole whose insides this package doesn't know."""
    version = importlib.metadata.version("recbole")
    if version not in SUPPORTED:
        raise RuntimeError(f"recbole_adrrec works with recbole {SUPPORTED}; the installed recbole is {version}")
