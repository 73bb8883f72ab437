"""Largest: the largest values that each unit has shown so far, from which its exact threshold follows."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_hnd.functional import order_statistic, quantile_from_top
from lightning_hnd.functional.host import exceeds, in_rows, positions
from lightning_hnd.measuring.unit_table import UnitTable


class Largest:
    """Of every unit the values that can still lie at or above its threshold.

    The threshold lies between the ``k``-th largest of all values and the next larger one. The ``k``-th largest seen so
    far only rises, so whatever does not exceed it, the *floor*, can be forgotten at once. The floor is raised when half
    as many values again as are needed have come together: looking through a batch for values above it is a comparison,
    while selecting the largest costs several times as much.

    Args:
        num_values: How many values of a unit there will be in all; None if that is not known, and all are kept.
        quantile: Fraction of them above the threshold.

    Attributes:
        floor: ``[U]``, no threshold will lie below it; None while it may lie anywhere.
        table: ``[U, n]``, at least the ``k`` largest values, filled up with ``-inf``.
    """

    def __init__(self, num_values: int | None, quantile: float) -> None:
        self._k = None if num_values is None else order_statistic(max(1, num_values), quantile)[0]
        self.floor: Tensor | None = None
        self.table = UnitTable()

    def add_all(self, maps: Tensor) -> None:
        """Takes in all maps of some images: ``[B, U, h, w]``."""
        self.table.append(maps.transpose(0, 1).flatten(1))
        if self._k is not None and self.table.columns >= self._k:
            self._raise_floor(self._k)

    def add(self, maps: Tensor, unit: Tensor) -> None:
        """Takes in some maps, all of whose values are above nothing but the floor, once there is one.

        Args:
            maps: ``[R, h, w]``; maps that do not exceed the floor anywhere need not be among them.
            unit: ``[R]`` int64, the unit of each, ascending.
        """
        assert self._k is not None
        assert self.floor is not None
        values = maps.flatten(1)
        above = positions(exceeds(values, self.floor[unit].unsqueeze(1)))
        of_map = in_rows(above, *values.shape)
        count = torch.zeros_like(self.floor, dtype=torch.int64).index_add_(0, unit, of_map)
        unit = unit.repeat_interleave(of_map)
        width = int(count.max())
        columns = values.new_full((len(count), width), -torch.inf)
        # the first of a unit's values comes to the start of its row
        place = torch.arange(len(unit), device=unit.device)
        place += (torch.arange(len(count), device=unit.device) * width - count.cumsum(0) + count).index_select(0, unit)
        columns.view(-1).index_copy_(0, place, values.flatten().index_select(0, above))
        self.table.append(columns)
        if self.table.columns > self._k + self._k // 2:
            self._raise_floor(self._k)

    def _raise_floor(self, k: int) -> None:
        floors = []

        def select(values: Tensor) -> Tensor:
            top = values.topk(k, dim=1, sorted=False).values
            floors.append(top.amin(1))
            return top

        self.table = self.table.mapped(select)
        self.floor = torch.cat(floors)


def thresholds(table: UnitTable, num_values: int, quantile: float) -> Tensor:
    """The exact thresholds, ``[U]`` float64, from a table of at least the largest values.

    Args:
        table: As :class:`Largest` keeps it, or those of several processes side by side.
        num_values: How many values of a unit there were in all.
        quantile: Fraction of them above the threshold.
    """
    return torch.cat([quantile_from_top(block, num_values, quantile) for block in table.blocks()])
