"""Masks cut into the words in which pixels are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lightning_hnd.functional.host import count_bits
from lightning_hnd.functional.tiles import TileGrid


@dataclass(frozen=True)
class CutMasks:
    """Masks in the words of a :class:`~lightning_hnd.functional.tiles.TileGrid`, where they have any pixel.

    Attributes:
        mask: ``[S]`` int32, the mask that each piece is of, ascending.
        place: ``[S]`` int32, the block that it lies in, ascending for each mask.
        words: ``[S, K / 4]`` int64.
        area: ``[M]`` int64, pixels of each mask.
        size: ``(H, W)`` of the masks.
    """

    mask: Tensor
    place: Tensor
    words: Tensor
    area: Tensor
    size: tuple[int, int]

    def to(self, device: torch.device) -> CutMasks:
        """The same on ``device``."""
        return CutMasks(
            self.mask.to(device), self.place.to(device), self.words.to(device), self.area.to(device), self.size
        )

    @classmethod
    def join(cls, parts: Sequence[CutMasks]) -> CutMasks:
        """Masks of images of one size, cut for maps of one shape, one after the other."""
        first = [0, *accumulate(len(part.area) for part in parts)]
        return cls(
            torch.cat([part.mask + offset for part, offset in zip(parts, first, strict=False)]),
            torch.cat([part.place for part in parts]),
            torch.cat([part.words for part in parts]),
            torch.cat([part.area for part in parts]),
            parts[0].size,
        )

    def __getitem__(self, rows: slice) -> CutMasks:
        """Consecutive masks, numbered anew."""
        first, last, _ = rows.indices(len(self.area))
        begin, end = torch.searchsorted(self.mask, torch.tensor([first, last], dtype=torch.int32)).tolist()
        return CutMasks(
            self.mask[begin:end] - first, self.place[begin:end], self.words[begin:end], self.area[first:last], self.size
        )


def cut_masks(masks: Tensor, grid: TileGrid) -> CutMasks:
    """Cuts dense masks ``[M, H, W]`` bool, in main memory, into the words of a grid."""
    words = grid.words_of(masks)
    mask, place = (words != 0).any(-1).nonzero(as_tuple=True)
    words = words[mask, place]
    area = torch.zeros(len(masks), dtype=torch.int64).index_add_(0, mask, count_bits(words).sum(-1))
    return CutMasks(mask.int(), place.int(), words, area, grid.size)
