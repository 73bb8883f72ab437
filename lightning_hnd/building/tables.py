"""Tables as data sets have them: CSV or columns of text, with the dirt that they are known for."""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import IO

from lightning_hnd.building.source_findings import Findings
from lightning_hnd.dictionary.layout import PICTURE_SUFFIXES

_IMAGE_COLUMNS = ("image", "image_id", "file", "filename", "file_name", "img", "name", "path", "url")
_TRUE, _FALSE = frozenset(("true", "yes", "present")), frozenset(("false", "no", "absent"))
_UNKNOWN_CODES = frozenset((9.0, 999.0))
"""How BP4D and EmotioNet write that an action unit was not coded."""


@dataclass(frozen=True)
class Table:
    """Rows by the name of their picture.

    Attributes:
        path: The file.
        columns: Names of the columns after that of the picture; empty where the file has no header.
        rows: The values in them.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]

    def column(self, *names: str) -> int:
        """The place of the first of some names.

        Raises:
            ValueError: If it has none of them, with the names that there are.
        """
        places = {column.lower(): i for i, column in enumerate(self.columns)}
        for name in names:
            if name.lower() in places:
                return places[name.lower()]
        raise ValueError(f"{self.path} has no column {names[0]!r}; its columns are: {', '.join(self.columns)}")


def read_table(path: Path, findings: Findings) -> Table:
    """Reads a table that names a picture in each row.

    Comma, semicolon, tab or spaces between values; a byte-order mark, Windows line ends and a first line that holds
    only the number of rows (CelebA) do no harm. Columns go by their names. CelebA's headers do not name the pictures'
    column.

    Args:
        path: The file.
        findings: Gets the rows that could not be used: of another length, or twice with different values.

    Raises:
        ValueError: If it cannot be read as a table at all.
    """
    try:
        with _open(path) as file:
            lines = _split(path, file, findings)
            first = next(lines, None)
            if first is None:
                raise ValueError(f"{path} is empty")
            return _gather(path, first, lines, findings)
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}; save it as CSV in UTF-8") from error


def truth(value: str, at_least: float = 1.0) -> bool | None:
    """Whether a label says present: 1, true, an intensity; absent: 0, -1, false; None: unknown (empty, nan, 9, 999).

    Args:
        value: As the table has it.
        at_least: Numbers from here on say present.

    Raises:
        ValueError: If it is none of these.
    """
    text = value.strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text in ("", "nan", "none", "na", "n/a", "?"):
        return None
    number = float(text)
    if number in _UNKNOWN_CODES or number != number:
        return None
    return number >= at_least


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        start = file.read(4096)
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return path.open(newline="", encoding=encoding)


def _split(path: Path, file: IO[str], findings: Findings) -> Iterator[list[str]]:
    """The lines that hold something, split into values; a first line that only counts them is left out."""
    start = file.readline()
    while start and not start.strip():
        start = file.readline()
    told = start.strip() if start.strip().isdecimal() else None
    head = file.readline() if told else start
    found = 0
    for row in _values(head, file):
        values = [value.strip() for value in row]
        if any(values):
            found += 1
            yield values
    if told and int(told) not in (found, found - 1):
        findings.add("the table's first line counts other rows than there are", f"{path.name}: {told}, not {found - 1}")


def _values(head: str, file: IO[str]) -> Iterable[list[str]]:
    def lines() -> Iterator[str]:
        yield head
        yield from file

    separators = [mark for mark in (",", ";", "\t") if mark in head]
    if not separators:
        return (line.split() for line in lines())
    return csv.reader(lines(), delimiter=max(separators, key=head.count), strict=False)


def _gather(path: Path, first: list[str], lines: Iterator[list[str]], findings: Findings) -> Table:
    start = list(islice(lines, 16))
    usual = Counter(map(len, start)).most_common(1)[0][0] if start else len(first)
    if _is_row(first, next((row for row in start if len(row) == len(first)), None)):
        start.insert(0, first)
        columns: tuple[str, ...] = ()
        width, image = len(first), 0
    else:
        header = ["image", *first] if usual == len(first) + 1 else first
        lowered = [name.lower() for name in header]
        image = next((lowered.index(name) for name in _IMAGE_COLUMNS if name in lowered), 0)
        width, columns = len(header), tuple(name for i, name in enumerate(header) if i != image)
        if len(set(lowered)) < len(lowered):
            twice = next(name for name in header if lowered.count(name.lower()) > 1)
            raise ValueError(f"{path} has two columns named {twice!r}; name each one once")
    rows: dict[str, Sequence[str]] = {}
    unclear = set()
    for row in chain(start, lines):
        if len(row) != width:
            findings.add(f"row of {path.name} left out: it has not {width} values", " ".join(row)[:60])
            continue
        name = row.pop(image)
        if name not in rows:
            rows[name] = row
        elif rows[name] == row:
            findings.add(f"row of {path.name} comes twice", name)
        else:
            unclear.add(name)
    for name in sorted(unclear):
        findings.add(f"picture left out: {path.name} has two rows of it that differ", name)
        del rows[name]
    return Table(path, columns, rows)


def _is_row(first: list[str], other: list[str] | None) -> bool:
    """Whether a first line is no header: it names a picture, or holds numbers where another row does."""
    if PurePosixPath(first[0]).suffix.lower() in PICTURE_SUFFIXES:
        return True
    pairs = zip(first[1:], other[1:], strict=True) if other else ()
    return any(_is_number(a) and _is_number(b) for a, b in pairs)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
