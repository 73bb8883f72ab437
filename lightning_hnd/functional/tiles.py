"""Exact pixel counts of upsampled maps without upsampling them.

A *tile* is the set of pixels between four neighbouring cells of a map. By the clamped interpolation of
:func:`~lightning_hnd.functional.upsample` no pixel of a tile exceeds the largest of its corners nor falls
below the smallest. So a tile whose corners are all at or below the threshold is off and is never looked at.
In the others each row of pixels runs monotonically from its left end to its right end, in floating point as
on paper, since each step of ``a + (b - a) * t`` is monotone in ``t``: the pixels that are on form one run from
one of the ends. Where just one end is on, a binary search finds the last pixel of the run, asking of each
pixel the very question that the definition asks. Rows become 16-bit words, masks are cut into the same
words once, and what remains is "and" and counting bits. Every count equals that of the dense form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_hnd.functional.interpolation import axis_position, lerp

_WIDTH = 16  # pixels in a word's row; wider tiles are cut into blocks of this width
_ROWS = 4  # rows in a 64-bit word


@dataclass(frozen=True)
class TileGrid:
    """How the pixels of an image fall into the tiles of a map.

    Attributes:
        row_t: ``[h + 1, K]``, for each row of tiles how far its rows of pixels lie from the upper cells to the
            lower; ``K`` is a multiple of 4.
        row_pixel: ``[h + 1, K]``, which rows of pixels they are; one past the last where there is none.
        block_gap: ``[B]``, the column of tiles in which each block of at most 16 columns of pixels lies.
        block_t: ``[B, 16]``, how far its columns lie from the left cells to the right.
        block_pixel: ``[B, 16]``, which columns of pixels they are; one past the last where there is none.
        size: ``(H, W)``.
    """

    row_t: Tensor
    row_pixel: Tensor
    block_gap: Tensor
    block_t: Tensor
    block_pixel: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, cells: tuple[int, int], size: tuple[int, int], like: Tensor) -> TileGrid:
        """The grid of maps of ``cells = (h, w)`` on images of ``size = (H, W)``, typed and placed as ``like``."""
        gap, t = axis_position(cells[0], size[0], like)
        count = torch.bincount(gap, minlength=cells[0] + 1)
        height = -(-int(count.max()) // _ROWS) * _ROWS
        row_pixel = _list_pixels(count, height, size[0])
        row_t = torch.cat([t, t.new_zeros(1)])[row_pixel]

        gap, t = axis_position(cells[1], size[1], like)
        count = torch.bincount(gap, minlength=cells[1] + 1)
        blocks = -(-count // _WIDTH)
        block_gap = torch.arange(cells[1] + 1, device=like.device).repeat_interleave(blocks)
        place = torch.arange(len(block_gap), device=like.device) - (blocks.cumsum(0) - blocks)[block_gap]
        block_count = (count[block_gap] - place * _WIDTH).clamp(max=_WIDTH)
        block_pixel = _list_pixels(block_count, _WIDTH, size[1])
        return cls(row_t, row_pixel, block_gap, torch.cat([t, t.new_zeros(1)])[block_pixel], block_pixel, size)

    def words_of(self, masks: Tensor) -> Tensor:
        """Puts the pixels of masks into the words of each block of each tile.

        Args:
            masks: ``[M, H, W]`` bool.

        Returns:
            ``[M, h + 1, B, K / 4]`` int64.
        """
        padded = torch.nn.functional.pad(masks, (0, 1, 0, 1))
        cut = padded[:, self.row_pixel.flatten()][:, :, self.block_pixel.flatten()]
        bits = np.packbits(cut.cpu().numpy(), axis=2, bitorder="little")
        rows = bits.view(np.int16).reshape(len(masks), *self.row_pixel.shape, len(self.block_gap))
        words = rows.transpose(0, 1, 3, 2).copy().view(np.int64)
        return torch.from_numpy(words).to(masks.device)


class FiringWords(NamedTuple):
    """The pixels above a level, of ``A`` blocks in which any can be.

    Attributes:
        row: ``[A]`` int64, the map of each block.
        tile: ``[A]`` int64, its row of tiles, as in :meth:`TileGrid.words_of`.
        block: ``[A]`` int64, its place in that row.
        words: ``[A, K / 4]`` int64.
        pixels: ``[A]`` int64, how many are on.
    """

    row: Tensor
    tile: Tensor
    block: Tensor
    words: Tensor
    pixels: Tensor


def firing_words(maps: Tensor, level: Tensor, grid: TileGrid) -> FiringWords:
    """The pixels above a level, in words, for the blocks in which any can be.

    Args:
        maps: ``[R, h, w]``.
        level: ``[R]``, of the type of ``maps``.
        grid: Their grid.
    """
    padded = torch.nn.functional.pad(maps.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    above = padded > level[:, None, None]
    above = above[:, 1:] | above[:, :-1]
    above = above[:, :, 1:] | above[:, :, :-1]
    row, tile, block = above[:, :, grid.block_gap].nonzero(as_tuple=True)
    width = padded.shape[2]
    corner = (row * padded.shape[1] + tile) * width + grid.block_gap[block]
    cells, level = padded.flatten(), level[row, None]
    t = grid.row_t[tile]
    left = lerp(cells[corner, None], cells[corner + width, None], t)
    right = lerp(cells[corner + 1, None], cells[corner + width + 1, None], t)

    pixels = (grid.block_pixel < grid.size[1]).sum(1)[block]
    left_on, right_on = left > level, right > level
    run = torch.where(left_on, pixels[:, None], 0)  # pixels from the left end in the state of the left end,
    begin = torch.where(left_on == right_on, 0, run)  # ... of which none is on where only the right end is
    block_row, k = (left_on != right_on).nonzero(as_tuple=True)
    begin_run = _run(
        left[block_row, k], right[block_row, k], level[block_row, 0], grid.block_t, block[block_row], pixels[block_row]
    )
    from_left = left_on[block_row, k]
    begin[block_row, k] = torch.where(from_left, 0, begin_run)
    run[block_row, k] = torch.where(from_left, begin_run, pixels[block_row] - begin_run)
    run = run * (grid.row_pixel[tile] < grid.size[0])
    words = ((1 << run) - 1 << begin).to(torch.int16).view(torch.int64)
    return FiringWords(row, tile, block, words, run.sum(1))


def _run(left: Tensor, right: Tensor, level: Tensor, block_t: Tensor, block: Tensor, pixels: Tensor) -> Tensor:
    """How many pixels, from the left, are on where the left end is on, or off where it is off: ``[rows]``."""
    falling = left > level
    table, base = block_t.flatten(), block * _WIDTH
    low, high = torch.zeros_like(pixels), pixels  # the answer lies in low..high
    for _ in range(_WIDTH.bit_length()):
        middle = (low + high) >> 1
        same = (lerp(left, right, table[base + middle.clamp(max=_WIDTH - 1)]) > level) == falling
        open_ = low < high
        low, high = torch.where(same & open_, middle + 1, low), torch.where(same | ~open_, high, middle)
    return low


def count_bits(words: Tensor) -> Tensor:
    """Number of one-bits in each word.

    Args:
        words: Any shape, int64.

    Returns:
        The same shape, int64.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.tiles import count_bits
        >>> count_bits(torch.tensor([0, 5, -1]))
        tensor([ 0,  2, 64])
    """
    # the usual sum of neighbouring fields; shifts keep the sign, and the masks clear what that brings in
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (words * 0x0101010101010101) >> 56


def _list_pixels(count: Tensor, length: int, past: int) -> Tensor:
    """Numbers consecutive pixels into rows of ``length``, ``count`` of them in each row, then ``past``."""
    place = torch.arange(length, device=count.device)
    first = count.cumsum(0) - count
    return torch.where(place < count[:, None], first[:, None] + place, past)
