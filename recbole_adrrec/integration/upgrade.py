"""Checkpoints of version 0.1 and of RecBole alone, which pickle RecBole's ``Config``, as checkpoints of today."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from recbole_adrrec.errors import CheckpointError
from recbole_adrrec.fingerprint import fingerprint
from recbole_adrrec.integration.checkpoint import config_entry, first_line, save_checkpoint
from recbole_adrrec.integration.resume import LAST
from recbole_adrrec.options import load_properties

ENTRIES = ("epoch", "cur_step", "best_valid_score", "state_dict", "other_parameter", "optimizer")


def upgrade_checkpoint(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Convert a checkpoint. RUNS whatever the old file brings: for trusted files alone.

    ``old`` is a file of version 0.1 or of RecBole alone, ``new`` the file to write; they may be the same.
    ``CheckpointError`` where the old one is missing, damaged, no such checkpoint, or holds what checkpoints don't.
    """
    if not os.path.isfile(old):
        raise CheckpointError(f"{old}: there is no such checkpoint")
    try:
        found = torch.load(old, map_location="cpu", weights_only=False)
    except Exception as error:
        raise CheckpointError(f"{old}: can't be read ({first_line(error)}); take another copy") from error
    if not isinstance(found, dict) or not hasattr(found.get("config"), "final_config_dict"):
        raise CheckpointError(f"{old}: not a checkpoint of version 0.1 or of RecBole alone; nothing to convert")
    digest = found.pop("digest", None)
    plain = {**found, "config": found["config"].final_config_dict}
    if digest is not None and fingerprint(plain) != digest:
        raise CheckpointError(f"{old}: damaged, or changed since it was saved; take another copy")
    state: dict[str, Any] = {"config": config_entry(found["config"])}
    if "reorder_ties" in load_properties("model", state["config"]["model"]):
        # Some models' default now, and a part of their state.
        state["config"]["options"].setdefault("reorder_ties", "never")
    state |= {name: found[name] for name in ENTRIES if name in found}
    other = found.get("other_parameter") or {}
    state["other_parameter"] = {name: each for name, each in other.items() if not isinstance(each, torch.nn.Module)}
    if "training" in found:
        state["training"] = {name: entry for name, entry in found["training"].items() if name != "format"}
        if not Path(old).stem.endswith(LAST):
            state["training"]["best_file"] = Path(new).name
    if "recbole_adrrec" in found:
        state["data"] = _data(found["recbole_adrrec"])
    save_checkpoint(state, new)


def _data(carried: dict[str, Any]) -> dict[str, Any]:
    """The entry ``data``; its fingerprints are made anew, of the names and events that the file holds."""
    users, events = carried["users"], carried["histories"]
    prints = {}
    if users is not None:
        prints["names"] = fingerprint({"users": users, "items": carried["items"]})
        prints["events"] = fingerprint(events)
    kept = {name: carried[name] for name in ("dataset", "fields", "n_users", "users", "items", "days")}
    return {**kept, "events": events, "fingerprint": prints}
