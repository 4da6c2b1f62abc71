"""``convert``: raw data to RecBole's atomic files."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

from recbole_adrrec.errors import OptionError
from recbole_adrrec.times import DIVISORS
from recbole_adrrec.tools.sources import FORMATS, ReaderOptions

EXAMPLES = """examples:
  convert ratings.csv --name=mine                                   columns found by their names
  convert log.csv --name=mine --user=customer --item=sku --time=at  columns named
  convert ml-1m/ratings.dat --name=ml-1m                            MovieLens (user::item::rating::time)
  convert u.data --name=ml-100k-raw --keep=3:float:rating           tab-separated, columns by number
  convert reviews_Beauty_5.json.gz --name=beauty                    Amazon reviews, one JSON object a line
  convert events.parquet --name=mine                                Parquet
Then: python -m recbole_adrrec --dataset=mine --data_path=dataset"""


def add_arguments(add: Any) -> None:
    """The arguments of ``convert``."""
    add("files", nargs="+", type=Path, help="raw files, plain, .gz or Parquet, read one after the other")
    add("--name", required=True, help="name of the data set: the file is <out>/<name>/<name>.inter or .parquet")
    add("--out", type=Path, default=Path("dataset"), help="folder of data sets (default: dataset)")
    add("--to", choices=("inter", "parquet"), default="inter", help="form of the new file (default: inter, RecBole's)")
    add("--format", choices=FORMATS, help="of text; default: seen from the first line")
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


def request_of(given: Any) -> Any:
    """The ``Request`` of a command's arguments; raises OptionError where one can't be."""
    from recbole_adrrec.tools.convert import Kept, Request

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
    keep = [Kept.parse(text) for text in given.keep]
    names = [kept.name for kept in keep]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise OptionError(f"--keep: {twice!r} is there twice; give one of them another name")
    options = ReaderOptions(
        columns={"user": given.user, "item": given.item, "time": given.time},
        kind=given.format,
        delimiter=delimiter,
        header=None if given.header is None else given.header == "yes",
        quoted=None if given.quote is None else given.quote == "double",
    )
    return Request(
        *(given.files, given.name, given.out, options, keep),
        unit=given.time_unit_in,
        encoding=given.encoding,
        strict=given.strict,
        overwrite=given.overwrite,
        to=given.to,
    )


def run(given: Any) -> int:
    """Convert."""
    request = request_of(given)
    from recbole_adrrec.tools.convert import convert

    print(convert(request))
    return 0
