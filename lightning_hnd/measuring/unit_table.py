"""UnitTable: numbers of every unit that grow with the images, in memory or in a temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_AT_ONCE = 2**20  # numbers read together


def rows_at_once(columns: int, multiple: int = 1) -> int:
    """How many rows of so many columns are read together: a multiple of ``multiple``, whose rows belong together."""
    return multiple * max(1, _AT_ONCE // max(1, multiple * columns))


class UnitTable:
    """Numbers of each unit, ``[U, n]``, which grow by columns and are read back a few units at a time.

    Example:
        >>> import torch
        >>> from lightning_hnd.measuring.unit_table import UnitTable
        >>> table = UnitTable()
        >>> table.append(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> table.spill()
        >>> table.append(torch.tensor([[9.0], [0.0]]))
        >>> torch.cat(list(table.mapped(lambda some: some.sort(dim=1).values).blocks()))
        tensor([[1., 2., 9.],
                [0., 3., 4.]])
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []  # in memory
        self._file: Any = None  # or on disk, one part after the other, each row by row
        self._widths: list[int] = []
        self._like = torch.empty(0, 0)

    @property
    def columns(self) -> int:
        """``n``."""
        return sum(self._widths)

    @property
    def units(self) -> int:
        """``U``, 0 before the first column."""
        return self._like.shape[0]

    @property
    def device(self) -> torch.device:
        """Where it is read to."""
        return self._like.device

    def append(self, columns: Tensor) -> None:
        """Adds ``[U, m]`` columns."""
        self._like = columns.new_empty(len(columns), 0)  # a view would keep all of them
        self._widths.append(columns.shape[1])
        if self._file is None:
            self._parts.append(columns)
        else:
            self._write(self._file, columns)

    def spill(self) -> None:
        """Moves to a temporary file, in the folder that ``TMPDIR`` names, which vanishes with the table."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="lightning-hnd-")  # noqa: SIM115  # lives as long as the table
            for part in self._parts:
                self._write(self._file, part)
            self._parts = []

    @property
    def kept_bytes(self) -> int:
        """Memory that it takes; none once it is in a file."""
        return sum(part.numel() * part.element_size() for part in self._parts)

    def blocks(self) -> Iterator[Tensor]:
        """The table a few units at a time, in order: ``[some units, n]``."""
        step = rows_at_once(self.columns)
        for first in range(0, self.units, step):
            yield self.rows(first, min(first + step, self.units))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> UnitTable:
        """A table, kept as this one is, of what ``change`` makes of each block: as many rows, of any one width."""
        table = UnitTable()
        if self._file is None:
            done = 0
            for block in self.blocks():
                changed = change(block)
                if not done:
                    table.append(changed.new_empty(self.units, changed.shape[1]))
                table._parts[0][done : done + len(block)] = changed
                done += len(block)
            return table
        table.spill()
        for block in self.blocks():
            changed = change(block)
            table._write(table._file, changed)
            table._widths, table._like = [changed.shape[1]], changed.new_empty(self.units, 0)
        return table

    def rows(self, first: int, last: int) -> Tensor:
        """Those of some units: ``[last - first, n]``."""
        if self._file is None:
            return torch.cat([part[first:last] for part in self._parts], dim=1)
        rows, start = [], 0
        for width in self._widths:
            part = torch.empty(last - first, width, dtype=self._like.dtype)
            begin = (start + first * width) * part.element_size()
            self._file.seek(begin)
            if self._file.readinto(part.numpy().data) != part.nbytes:
                raise OSError(f"a temporary file in {tempfile.gettempdir()} was cut short while it was read")
            rows.append(part)
            start += self.units * width
        return (rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)).to(self._like.device)

    @staticmethod
    def _write(file: Any, part: Tensor) -> None:
        try:
            file.seek(0, os.SEEK_END)
            file.write(part.cpu().contiguous().numpy().data)
            file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise OSError(
                error.errno, f"{error.strerror} while writing to a temporary file in {folder}; point TMPDIR elsewhere"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        blocks = list(self.blocks())  # a copy, or another process, gets it in memory
        return {**vars(UnitTable()), "_parts": [torch.cat(blocks)] if blocks else [], "_like": self._like}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _widths=[part.shape[1] for part in state["_parts"]])
