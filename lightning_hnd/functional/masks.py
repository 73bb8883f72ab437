"""Masks cut into the words in which pixels are counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_hnd.functional.tiles import TileGrid


@dataclass(frozen=True)
class CutMasks:
    """Masks in the words of a :class:`~lightning_hnd.functional.tiles.TileGrid`, each within its bounding box.

    Attributes:
        box: ``[M, 4]`` int64: first row of tiles, first block, rows of tiles, blocks.
        words: ``[S, K / 4]`` int64, the words of each box row by row, one mask after the other.
        size: ``(H, W)`` of the masks.
    """

    box: Tensor
    words: Tensor
    size: tuple[int, int]

    def to(self, device: torch.device) -> CutMasks:
        """The same on ``device``."""
        return CutMasks(self.box.to(device), self.words.to(device), self.size)

    @cached_property
    def begin(self) -> Tensor:
        """``[M + 1]`` int64: where the words of each mask begin, and at the end how many there are."""
        return torch.nn.functional.pad((self.box[:, 2] * self.box[:, 3]).cumsum(0), (1, 0))


def cut_masks(masks: Tensor, grid: TileGrid) -> CutMasks:
    """Cuts dense masks ``[M, H, W]`` bool into the words of a grid."""
    words = grid.words_of(masks)
    some = (words != 0).any(-1)
    box = torch.stack([*_extent(some.any(2)), *_extent(some.any(1))], dim=1)[:, [0, 2, 1, 3]]
    inside = (
        _within(box[:, 0], box[:, 2], some.shape[1])[:, :, None] & _within(box[:, 1], box[:, 3], some.shape[2])[:, None]
    )
    return CutMasks(box, words[inside], grid.size)


def _extent(some: Tensor) -> tuple[Tensor, Tensor]:
    """First place and number of places from the first that is on to the last: ``[M]`` each."""
    first = some.int().argmax(1)
    last = some.shape[1] - some.flip(1).int().argmax(1)
    return first, torch.where(some.any(1), last - first, 0)


def _within(first: Tensor, count: Tensor, length: int) -> Tensor:
    place = torch.arange(length, device=first.device)
    return (place >= first[:, None]) & (place < (first + count)[:, None])
