"""Help of the training command line, from the properties of models and their comments."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recbole_adrrec import options
from recbole_adrrec.cli.commands import COMMANDS

MODEL = "ADRRec"
DATASET = "ml-100k"
"""Defaults of ``--model`` and ``--dataset``."""


def usage(model: str) -> str:
    """The forms of the command line, and the options of one model with their defaults."""
    program = Path(sys.argv[0]).name or "run_recbole.py"
    if program == "__main__.py":
        program = "python -m recbole_adrrec"
    own, comments = options.load_properties("model", model), options.comments("overall")
    overall = options.load_properties("overall").items()
    run = [
        ("model", MODEL, f"-m; ours: {', '.join(options.property_names('model'))}; RecBole's by their names."),
        ("dataset", DATASET, f"-d; with settings of ours: {', '.join(options.property_names('dataset'))}."),
        ("config_files", None, "One or more YAML files with options; the command line goes above them."),
        ("nproc", 1, "Processes on this machine (also ip, port, world_size, group_offset, as in RecBole)."),
        ("debug", False, "Show where an error came from."),
        ("help", False, "-h; this text, for the model named before or after it."),
    ]
    general = [(name, default, comments.get(name, "")) for name, default in overall if name not in own]
    parts = [
        f"usage: {program} [--model={MODEL}] [--dataset={DATASET}] [--key=value | --key value | --flag ...]",
        f"       {program} {' | '.join(COMMANDS)} --help\n"
        + "\n".join(f"           {name}: {what}" for name, what in COMMANDS.items()),
        "Values are YAML: --learning_rate=1e-3 --absolute_kernels=[position,day] --train_stride=~",
        f"Run:\n{_listing(run)}",
        f"Options of {model}:\n{_listing(options.describe_options(model))}",
        f"Options of every sequential model:\n{_listing(general)}",
        "RecBole's own options: https://recbole.io/docs/user_guide/config_settings.html",
    ]
    return "\n\n".join(parts)


def _listing(entries: Iterable[tuple[str, Any, str]]) -> str:
    lines = []
    for name, default, meaning in entries:
        lines.append(f"  --{name}={_as_yaml(default)}")
        lines += textwrap.wrap(meaning, width=96, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    if value is None:
        return "~"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_as_yaml(each) for each in value)}]"
    return str(value)
