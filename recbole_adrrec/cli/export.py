"""``export``: a trained model as an ONNX graph, which answers without torch and RecBole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole_adrrec.cli.commands import add_checkpoint, check_output
from recbole_adrrec.errors import OptionError

FORMS = ("scores", "vectors")

EXAMPLES = """examples:
  export -c saved/ADRRec.pth -o model.onnx                 scores of all items
  export -c saved/ADRRec.pth -o model.onnx --top 10        the ten best items that are not in the history
  export -c saved/ADRRec.pth -o user.onnx --form vectors   states of users, and user.npy with vectors of items

Inputs, all int64: items and times [batch, length], oldest first, padded by zeros behind; length [batch]; query_time
[batch] for a model that knows it; smallest_gap [batch] for TiSASRec. The file's metadata have the items' names, the
inputs and the greatest length. docs/serving.md shows how to use it. Needs pip install 'recbole_adrrec[export]'."""


def add_arguments(add: Any) -> None:
    """The arguments of ``export``."""
    add_checkpoint(add)
    add("--output", "-o", type=Path, required=True, help="the graph, a .onnx file")
    add("--form", choices=FORMS, default="scores", help="scores of items, or vectors for a nearest-neighbour index")
    add("--top", "-k", type=int, help="give so many best items and their scores instead of all scores")
    add("--seen", action="store_true", help="let items of the history be among the best, too")


def run(given: Any) -> int:
    """Load the model and write its graph."""
    if given.output.suffix.lower() != ".onnx":
        raise OptionError(f"--output: {given.output} should be named .onnx")
    check_output(given.output)
    import recbole_adrrec
    from recbole_adrrec.tools import export

    recommender = recbole_adrrec.load(given.checkpoint)
    path = export.export(recommender, given.output, given.form, given.top, given.seen)
    beside = f" and {path.with_suffix('.npy')}" if given.form == "vectors" else ""
    print(f"Wrote {path}{beside}: {recommender.config['model']}, {len(recommender.items):,} items")
    return 0
