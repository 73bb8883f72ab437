"""What a check of a dictionary found, on the console."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from lightning_hnd.dictionary.check import Examination
from lightning_hnd.dictionary.confounds import CrossTable
from lightning_hnd.dictionary.flaws import Finding, Level

_COLOUR = {Level.REFUSED: "bold red", Level.WRONG: "red", Level.DOUBTFUL: "yellow"}
_SAYS = {
    Level.REFUSED: "the dictionary is not read until this is mended",
    Level.WRONG: "it is read, and results come out wrong",
    Level.DOUBTFUL: "results are right, but what they seem to say may not be",
}
_EACH = 5  # findings of one flaw that are shown
_TABLES = 4  # cross-tables of global concepts that are shown


def show_examination(examination: Examination, console: Console | None = None) -> None:
    """Prints findings, flaw by flaw with what it means, and the strongest cross-tables of groups.

    Args:
        examination: Any.
        console: Where to; None: standard output.
    """
    console = console or Console()
    console.print(Group(*_parts(examination)), highlight=False)


def _parts(examination: Examination) -> Iterator[RenderableType]:
    yield from _flaws(examination)
    groups = [table for table in examination.tables if "present" not in table.rows]  # one share says it all of the rest
    for table in groups[:_TABLES]:
        yield _cross_table(table)
    counts = ", ".join(f"{examination.levels[level]} {level.value}" for level in Level)
    yield f"{escape(str(examination.root))}: {examination.images} images can be used; findings: {counts}"
    for level in Level:
        if examination.levels[level]:
            yield f"  [{_COLOUR[level]}]{level.value}[/]: {_SAYS[level]}"


def _flaws(examination: Examination) -> Iterator[RenderableType]:
    """Each flaw with its findings below: paths are long, and a table would break them on a narrow console."""
    for flaw, alike in groupby(examination.findings, key=lambda finding: finding.flaw):
        findings = list(alike)
        level = f"[{_COLOUR[flaw.level]}]{flaw.level.value}[/]"
        yield f"{level} {flaw.name.lower()}: {flaw.meaning}"
        said = [finding.what for finding in findings[:_EACH]]
        if len(findings) > _EACH:
            said.append(f"... and {len(findings) - _EACH} more of this kind (--json lists all)")
        for what in said:
            yield Padding(f"- {escape(what)}", (0, 0, 0, 2))
        yield Padding(f"makes doubtful: {escape(_doubtful(findings))}", (0, 0, 1, 2))


def _doubtful(findings: list[Finding], most: int = 6) -> str:
    names = list(dict.fromkeys(name for finding in findings for name in finding.doubtful))
    if not names or not all(finding.doubtful for finding in findings):
        return "all"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _cross_table(table: CrossTable) -> Table:
    shown = Table(title=f"{table.concept} by {table.label}: images (Cramér's V {table.strength:.2f})")
    shown.add_column(table.concept)
    for column in table.columns:
        shown.add_column(escape(column), justify="right")
    for row, counts in zip(table.rows, table.counts.tolist(), strict=True):
        total = max(sum(counts), 1)
        shown.add_row(escape(row), *(f"{count} ({count / total:.0%})" for count in counts))
    return shown
