"""``upgrade-checkpoint``: convert a trusted checkpoint of version 0.1, or of RecBole alone, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole_adrrec.cli.commands import check_output
from recbole_adrrec.errors import OptionError

EXAMPLES = """examples:
  upgrade-checkpoint saved/ADRRec-old.pth -o saved/ADRRec.pth --trust
  upgrade-checkpoint saved/SASRec-of-recbole.pth -o saved/SASRec.pth --trust

Reading an old checkpoint runs what is in it. Convert only files that you or people you trust have saved. Those of
RecBole alone get no names and events: they serve load_data_and_model, but not recommend. The last state of a run
(...-last.pth) belongs beside its best model, which keeps its name.

Exit code: 0 done, 2 the file or an argument is wrong."""


def add_arguments(add: Any) -> None:
    """The arguments of ``upgrade-checkpoint``."""
    add("old", type=Path, metavar="OLD", help="the checkpoint to convert")
    add("--output", "-o", type=Path, required=True, metavar="NEW", help="the checkpoint to write")
    add("--trust", action="store_true", help="run what is in the old file, as reading it does")


def run(given: Any) -> int:
    """Convert one file."""
    if not given.trust:
        raise OptionError(
            f"--trust: reading {given.old} runs what is in it; give --trust if you know who saved it, or train again"
        )
    check_output(given.output)
    import recbole_adrrec

    recbole_adrrec.register()
    from recbole_adrrec.integration.upgrade import upgrade_checkpoint

    upgrade_checkpoint(given.old, given.output)
    print(f"{given.output}: written")
    return 0
