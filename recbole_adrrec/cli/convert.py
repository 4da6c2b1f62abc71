"""``convert``: raw data to RecBole's atomic files."""

from __future__ import annotations

import argparse
import codecs
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from recbole_adrrec.errors import OptionError, UserError
from recbole_adrrec.times import DIVISORS
from recbole_adrrec.tools import convert
from recbole_adrrec.tools.sources import FORMATS, Wishes

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

EXAMPLES = """examples:
  convert ratings.csv --name=mine                                   columns found by their names
  convert log.csv --name=mine --user=customer --item=sku --time=at  columns named
  convert ml-1m/ratings.dat --name=ml-1m                            MovieLens (user::item::rating::time)
  convert u.data --name=ml-100k-raw --keep=3:float:rating           tab-separated, columns by number
  convert reviews_Beauty_5.json.gz --name=beauty                    Amazon reviews, one JSON object a line
Then: python -m recbole_adrrec --dataset=mine --data_path=dataset"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"convert: {message} (--help shows all)")


def parser() -> argparse.ArgumentParser:
    """The arguments of ``convert``."""
    made = _Parser(
        prog="python -m recbole_adrrec convert",
        description="Convert raw events to <out>/<name>/<name>.inter, with exact times.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add: Any = made.add_argument
    add("files", nargs="+", type=Path, help="raw files, plain or .gz, read one after the other")
    add("--name", required=True, help="name of the data set")
    add("--out", type=Path, default=Path("dataset"), help="folder of data sets (default: dataset)")
    add("--format", choices=FORMATS, help="default: seen from the first line")
    add("--user", help="column or dotted JSON field of the user, by name or number from 1 (default: found by name)")
    add("--item", help="the same for the item")
    add("--time", help="the same for the time: a number since 1970, or ISO 8601 (UTC unless it has an offset)")
    add("--keep", action="append", default=[], help="a further column, as name:type or name:type:new_name; repeatable")
    add("--time_unit_in", choices=tuple(DIVISORS), help="unit of numbers among the times (default: s)")
    add("--delimiter", help=r"what stands between columns, as , or \t or :: (default: seen from the first lines)")
    add("--header", choices=("yes", "no"), help="whether the first line has names (default: seen from it)")
    add("--quote", choices=("double", "none"), help='whether "..." encloses fields (default: double, none with tabs)')
    add("--encoding", default="utf-8", help="default: utf-8")
    add("--strict", action="store_true", help="refuse the file at its first bad row, instead of leaving such rows out")
    add("--overwrite", action="store_true", help="replace a data set that is there")
    return made


def request_of(argv: Sequence[str]) -> convert.Request:
    """What a command line asks for.

    Raises
    ------
    OptionError
        An argument is unknown or can't be.
    """
    given = parser().parse_args(list(argv))
    try:
        codecs.lookup(given.encoding)
        "".encode(given.encoding)
    except (LookupError, ValueError):
        raise OptionError(f"--encoding: {given.encoding!r} is no encoding of text that Python knows") from None
    delimiter = given.delimiter
    if delimiter is not None:
        delimiter = {r"\t": "\t", "tab": "\t", "space": " "}.get(delimiter, delimiter)
        if not delimiter or set(delimiter) & set('\r\n"\0'):
            raise OptionError(f"--delimiter: {given.delimiter!r} can't stand between columns; choose , ; | \\t or ::")
    wishes = Wishes(
        columns={"user": given.user, "item": given.item, "time": given.time},
        kind=given.format,
        delimiter=delimiter,
        header=None if given.header is None else given.header == "yes",
        quoted=None if given.quote is None else given.quote == "double",
    )
    keep = [convert.parse_keep(text) for text in given.keep]
    names = [kept.name for kept in keep]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise OptionError(f"--keep: {twice!r} is there twice; give one of them another name")
    return convert.Request(
        files=given.files,
        name=given.name,
        out=given.out,
        wishes=wishes,
        keep=keep,
        unit=given.time_unit_in,
        encoding=given.encoding,
        strict=given.strict,
        overwrite=given.overwrite,
    )


def main(argv: Sequence[str]) -> int:
    """Convert, and tell what was done.

    Parameters
    ----------
    argv : sequence of str
        Arguments after ``convert``.

    Returns
    -------
    int
        0 done, 2 something the user gave is wrong (nothing is written then), 130 interrupted.
    """
    try:
        before = signal.signal(signal.SIGTERM, _stop)
    except ValueError:  # not the main thread
        before = None
    try:
        print(convert.report(convert.convert(request_of(argv))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as stop:  # argparse's --help
        return int(stop.code or 0)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return 0


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt
