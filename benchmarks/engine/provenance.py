"""Commit, versions and hardware behind a result."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recbole_adrrec.tools.doctor import processor

ROOT = Path(__file__).resolve().parents[2]


def origin() -> dict[str, Any]:
    """Commit, versions and hardware of what runs here."""
    return {"commit": commit(), "versions": versions(), "hardware": hardware()}


def commit() -> str | None:
    """The commit of the checkout that runs, with ``-changed`` where files differ from it; None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str | None]:
    """Versions of Python and of what results depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "recbole", "numpy", "pandas"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["recbole_adrrec"] = importlib.import_module("recbole_adrrec.version").__version__
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, GPU and memory of this machine."""
    torch, psutil = importlib.import_module("torch"), importlib.import_module("psutil")
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
