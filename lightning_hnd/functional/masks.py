"""Masks as bits, and cut into the words in which pixels are counted: constant, so each is made once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightning_hnd.functional.tiles import TileGrid

_CHUNK = 256  # masks that are spread out at a time


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

    @property
    def begin(self) -> Tensor:
        """``[M + 1]`` int64: where the words of each mask begin, and at the end how many there are."""
        return torch.nn.functional.pad((self.box[:, 2] * self.box[:, 3]).cumsum(0), (1, 0))


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks at an eighth of their size, which remember how they were cut for maps of each shape.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.masks import PackedMasks
        >>> dense = torch.eye(3, dtype=torch.bool).unsqueeze(0)
        >>> torch.equal(PackedMasks.pack(dense).dense(), dense)
        True

    Attributes:
        bits: ``[M, ceil(H * W / 8)]`` uint8, as ``numpy.packbits`` packs them, row-major, in main memory.
        size: ``(H, W)``.
    """

    bits: Tensor
    size: tuple[int, int]
    _whole: PackedMasks | None = None
    _first: int = 0
    _cut: dict[tuple[int, int], CutMasks] = field(default_factory=dict)

    @classmethod
    def pack(cls, masks: Tensor) -> PackedMasks:
        """Packs ``[M, H, W]`` bool masks."""
        flat = masks.flatten(1).cpu().numpy()
        return cls(torch.from_numpy(np.packbits(flat, axis=1)), (masks.shape[1], masks.shape[2]))

    def dense(self) -> Tensor:
        """The masks, ``[M, H, W]`` bool."""
        height, width = self.size
        flat = np.unpackbits(self.bits.numpy(), axis=1, count=height * width)
        return torch.from_numpy(flat).bool().reshape(len(self), height, width)

    def __len__(self) -> int:
        return self.bits.shape[0]

    def __getitem__(self, rows: slice) -> PackedMasks:
        """Consecutive masks, which share what the whole remembers."""
        first, last, _ = rows.indices(len(self))
        return PackedMasks(self.bits[first:last], self.size, self._whole or self, self._first + first)

    def cut(self, cells: tuple[int, int]) -> CutMasks:
        """The masks in the words of maps of ``cells = (h, w)``; cut at the first call, remembered from then on."""
        if self._whole is not None:
            whole, rows = self._whole.cut(cells), slice(self._first, self._first + len(self))
            begin, end = whole.begin[[rows.start, rows.stop]].tolist()
            return CutMasks(whole.box[rows], whole.words[begin:end], self.size)
        if cells not in self._cut:
            grid = TileGrid.of(cells, self.size, torch.empty(0))
            starts = range(0, max(len(self), 1), _CHUNK)
            parts = [cut_masks(self[start : start + _CHUNK].dense(), grid) for start in starts]
            box, words = torch.cat([part.box for part in parts]), torch.cat([part.words for part in parts])
            self._cut[cells] = CutMasks(box, words, self.size)
        return self._cut[cells]


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
