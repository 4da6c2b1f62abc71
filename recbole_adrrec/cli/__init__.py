"""The command line: training with values read as YAML and a report at the end, and the commands beside it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from recbole_adrrec import options
from recbole_adrrec.cli import commands
from recbole_adrrec.cli.usage import MODEL, usage
from recbole_adrrec.errors import OptionError, UserError
from recbole_adrrec.options import suggestion

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Settings of how threads of OpenMP wait."""


def wait_passively() -> None:
    """Let threads of OpenMP sleep while they wait for one another, unless the user has chosen how they wait.

    By its own choice OpenMP spins, which on processors that another program uses too makes training many times slower
    (docs/performance.md has the figures, and what sleeping costs on idle ones). It is read when torch is loaded.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        # A short spin first: threads that sleep at once take twice the time for small steps on an idle machine.
        os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "4000"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one training and test from the command line, or one of ``commands.COMMANDS``, which stands first then.

    Gives the exit code: 0 done, 1 ``doctor`` found something wrong, 2 something the user gave is wrong, or training
    can't go on, 130 interrupted from the keyboard, 143 terminated by the system. Other errors are raised.
    """
    wait_passively()
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_command = bool(arguments) and arguments[0] in commands.COMMANDS
    try:
        with commands.terminable():
            return commands.run(arguments[0], arguments[1:]) if is_command else _train(arguments)
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, commands.Terminated)
        ended = f"{'terminated' if terminated else 'interrupted'}{'; nothing was written' if is_command else ''}"
        print(f"\n{str(stop) or ended}", file=sys.stderr)
        return 143 if terminated else 130
    except BrokenPipeError:
        # Whoever read the output has had enough of it, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _train(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        known = f"{', '.join(commands.COMMANDS)}, or options to train with, --key=value"
        raise OptionError(f"{arguments[0]!r} is no command{suggestion(arguments[0], commands.COMMANDS)} ({known})")
    given = options.parse_command_line(arguments)
    if given.get("help"):
        print(usage(options.check_model(given.get("model", MODEL))))
        return 0
    from recbole_adrrec.cli.train import train

    print(train(given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
