"""The masks of a dictionary: kept as bits, and cut once for maps of each shape."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightning_hnd.functional.masks import CutMasks, cut_masks
from lightning_hnd.functional.tiles import TileGrid

_CHUNK = 256  # masks that are spread out at a time


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks at an eighth of their size, which remember how they were cut for maps of each shape.

    Example:
        >>> import torch
        >>> from lightning_hnd.dictionary import PackedMasks
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
            return self._whole.cut(cells)[self._first : self._first + len(self)]
        if cells not in self._cut:
            grid = TileGrid.of(cells, self.size)
            starts = range(0, max(len(self), 1), _CHUNK)
            parts = [cut_masks(self[start : start + _CHUNK].dense(), grid) for start in starts]
            self._cut[cells] = CutMasks.join(parts)
        return self._cut[cells]
