"""Exact pixel counts of upsampled maps without upsampling them.

A *tile* is the set of pixels between four neighbouring cells of a map. By the clamped interpolation of
:func:`~lightning_hnd.functional.upsample` no pixel of a tile exceeds the largest of its corners nor falls
below the smallest. So a tile whose corners are all at or below the threshold is off and is never looked at.
In the others each row of pixels runs monotonically from its left end to its right end, in floating point as
on paper, since each step of ``a + (b - a) * t`` is monotone in ``t``: the pixels in the state of the left end
form one run. Its length follows from where the row crosses the threshold, in a handful of operations a row.
Where the crossing falls closer to the centre of a pixel than rounding lets it be told from it, the pixels are
asked the very question that the definition asks. Rows become 16-bit words, masks are cut into the same words
once, and what remains is "and" and counting bits. Every count equals that of the dense form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_hnd.functional.interpolation import as_fraction, axis_pixels, axis_position, lerp

_WIDTH = 16  # pixels in a word's row; wider tiles are cut into blocks of this width
_ROWS = 4  # rows in a 64-bit word


@dataclass(frozen=True)
class TileGrid:
    """How the pixels of an image fall into the tiles of a map, and these into *blocks* of at most 16 columns.

    Blocks are numbered row by row of tiles, from left to right: ``place = row of tiles * B + block``.

    Attributes:
        cells: ``(h, w)`` of the maps.
        size: ``(H, W)`` of the images.
        row_first: ``[h + 1]`` int64, the first row of pixels of each row of tiles.
        row_count: ``[h + 1]`` int64, how many rows of pixels it has.
        block_gap: ``[B]`` int64, the column of tiles in which each block of a row lies.
        block_first: ``[B]`` int64, the first column of pixels of each block.
        block_count: ``[B]`` int64, how many columns of pixels it has.
        rows: ``K``, rows of pixels for which each block has room, a multiple of 4.
    """

    cells: tuple[int, int]
    size: tuple[int, int]
    row_first: Tensor
    row_count: Tensor
    block_gap: Tensor
    block_first: Tensor
    block_count: Tensor
    rows: int

    @classmethod
    def of(cls, cells: tuple[int, int], size: tuple[int, int], device: torch.device | None = None) -> TileGrid:
        """The grid of maps of ``cells = (h, w)`` on images of ``size = (H, W)``."""
        row_first, row_count = axis_pixels(cells[0], size[0], device)
        first, count = axis_pixels(cells[1], size[1], device)
        blocks = -(-count // _WIDTH)
        gap = torch.arange(cells[1] + 1, device=device).repeat_interleave(blocks)
        skip = (torch.arange(len(gap), device=device) - (blocks.cumsum(0) - blocks)[gap]) * _WIDTH
        rows = -(-int(row_count.max()) // _ROWS) * _ROWS
        return cls(
            cells, size, row_first, row_count, gap, first[gap] + skip, (count[gap] - skip).clamp(max=_WIDTH), rows
        )

    @property
    def blocks(self) -> int:
        """``B``, blocks in a row of tiles."""
        return self.block_gap.shape[0]

    @property
    def places(self) -> int:
        """Blocks in all."""
        return self.row_first.shape[0] * self.blocks

    def words_of(self, masks: Tensor) -> Tensor:
        """Puts the pixels of masks into the words of each block.

        Args:
            masks: ``[M, H, W]`` bool, in main memory.

        Returns:
            ``[M, (h + 1) * B, K / 4]`` int64.
        """
        row, column = torch.arange(self.rows), torch.arange(_WIDTH)
        row_pixel = torch.where(row < self.row_count[:, None], self.row_first[:, None] + row, self.size[0])
        block_pixel = torch.where(column < self.block_count[:, None], self.block_first[:, None] + column, self.size[1])
        padded = torch.nn.functional.pad(masks, (0, 1, 0, 1))  # off beyond the picture
        cut = padded[:, row_pixel.flatten()][:, :, block_pixel.flatten()]
        bits = np.packbits(cut.numpy(), axis=2, bitorder="little")
        words = bits.view(np.int16).reshape(len(masks), *row_pixel.shape, self.blocks).transpose(0, 1, 3, 2)
        return torch.from_numpy(words.copy().view(np.int64)).flatten(1, 2)


class Blocks(NamedTuple):
    """``A`` blocks of maps in which any pixel can be above the level of its map.

    Attributes:
        map: ``[A]`` int64, the map of each, ascending.
        row: ``[A]`` int64, its row of tiles.
        block: ``[A]`` int64, its place in that row.
    """

    map: Tensor
    row: Tensor
    block: Tensor

    def split(self, size: int) -> list[Blocks]:
        """The same in parts of at most ``size``."""
        return [Blocks(*part) for part in zip(*(field.split(size) for field in self), strict=True)]


class Runs(NamedTuple):
    """The pixels above a level, row by row of ``A`` blocks.

    Attributes:
        left_on: ``[K, A]`` bool, whether the left end of each row of pixels is on.
        length: ``[K, A]`` of the type of the maps, how many of its pixels, from the left, are in that state.
        pixels: ``[A]`` of the type of the maps, how many pixels of the block are on.
    """

    left_on: Tensor
    length: Tensor
    pixels: Tensor

    def words(self, some: Tensor) -> Tensor:
        """The rows of some of the blocks in words, ``[len(some), K / 4]`` int64; beyond the block anything may be on.

        Args:
            some: Positions among the blocks.
        """
        before = (1 << self.length[:, some].to(torch.int16)) - 1
        rows = before.bitwise_xor_(self.left_on[:, some].to(torch.int16) - 1)  # the others where the left end is off
        return rows.t().clone(memory_format=torch.contiguous_format).view(torch.int64)


def active_blocks(padded: Tensor, level: Tensor, grid: TileGrid) -> Blocks:
    """The blocks of tiles of which a corner exceeds the level: all others are off.

    Args:
        padded: ``[R, h + 2, w + 2]``, maps with their border cells repeated.
        level: ``[R]``.
        grid: Their grid.
    """
    above = padded > level[:, None, None]
    above = above[:, 1:] | above[:, :-1]
    above = above[:, :, 1:] | above[:, :, :-1]
    return Blocks(*above[:, :, grid.block_gap].nonzero(as_tuple=True))


def firing_runs(padded: Tensor, level: Tensor, blocks: Blocks, grid: TileGrid) -> Runs:
    """The pixels of blocks that exceed the level of their map.

    Let ``D`` be the difference of the ends of a row, ``M`` the largest magnitude of level and corners, ``s`` the
    pixels between two cells and ``u`` the unit roundoff. Rounding moves the value that the definition gives a
    pixel by no more than ``9 u M``, and the crossing computed here, times ``D / s``, by no more than ``16 u M``. A
    crossing further than ``32 u M s / D`` from all centres of pixels thus has on either side the pixels that the
    definition puts there; of the others each pixel is computed.

    Args:
        padded: ``[R, h + 2, w + 2]``, maps with their border cells repeated.
        level: ``[R]``, of the type of the maps.
        blocks: Which blocks of them.
        grid: Their grid.
    """
    (height, width), like = grid.size, padded.dtype
    cells, corner = padded.flatten(), _corner(blocks, padded.shape, grid)
    level = level[blocks.map]
    start = _first_position(grid.row_first, torch.arange(grid.cells[0] + 1, device=level.device), grid.cells[0], height)
    rows = torch.arange(grid.rows, device=level.device)[:, None]
    # rows of pixels in the first dimension: every operand is then long or constant in the second
    t = as_fraction(start.to(like)[blocks.row] + (2 * grid.cells[0] * rows).to(like), height)
    left, right, largest = _ends(cells, corner, padded.shape[2], t)
    left_on = left > level
    crossing = (right > level) != left_on
    difference = right.sub_(left)
    start = _first_position(grid.block_first, grid.block_gap, grid.cells[1], width)
    offset = (start.to(like) / (-2 * grid.cells[1]))[blocks.block]
    spacing = width / grid.cells[1]
    length = torch.add(offset, torch.sub(level, left, out=left).div_(difference), alpha=spacing)
    # infinite, so that all are asked, where D may be; and never so small that D is not held with full precision
    reach = torch.maximum(largest, level.abs()).mul_(4) * (4 * torch.finfo(like).eps * spacing)
    reach += torch.finfo(like).tiny * spacing
    apart = torch.round(length, out=t).sub_(length).mul_(difference).abs_()
    unsure = ((apart > reach).logical_not_() & crossing).nonzero(as_tuple=True)
    count = grid.block_count.to(like)[blocks.block]
    length = torch.where(crossing, length.ceil_(), count).clamp_(count.new_zeros(1), count)
    length[unsure] = _asked(cells, corner, level, blocks, unsure, padded.shape[2], grid)
    on = torch.where(left_on, length, count - length).masked_fill_(rows >= grid.row_count[blocks.row], 0)
    return Runs(left_on, length, on.sum(0))


def _first_position(first: Tensor, gap: Tensor, cells: int, pixels: int) -> Tensor:
    """Where the first pixels of gaps lie in them, as the numerator of a fraction of ``2 * pixels``."""
    return (2 * first + 1) * cells - pixels - 2 * pixels * (gap - 1)


def _corner(blocks: Blocks, shape: torch.Size, grid: TileGrid) -> Tensor:
    """The upper left cell of each block's tile, as a position among all cells."""
    return (blocks.map * shape[1] + blocks.row) * shape[2] + grid.block_gap[blocks.block]


def _ends(cells: Tensor, corner: Tensor, stride: int, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values of rows of pixels at their left and right cells, ``t`` of the way down; the largest magnitude."""
    ends, largest = [], torch.zeros_like(cells[corner])
    for upper in (corner, corner + 1):
        a, b = cells[upper], cells[upper + stride]
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        ends.append(t.mul(b - a).add_(a).clamp_(low, high))  # lerp, in fewer passes
        largest = torch.maximum(largest, torch.maximum(low.abs(), high.abs()))
    return ends[0], ends[1], largest


def _asked(
    cells: Tensor, corner: Tensor, level: Tensor, blocks: Blocks, rows: tuple[Tensor, ...], stride: int, grid: TileGrid
) -> Tensor:
    """Lengths of runs from all pixels of some rows of pixels, by the definition: ``[rows]``."""
    k, a = rows
    down = axis_position(grid.cells[0], grid.size[0], cells)[1]
    along = axis_position(grid.cells[1], grid.size[1], cells)[1]
    row = (grid.row_first[blocks.row[a]] + k).clamp(max=grid.size[0] - 1)
    column = torch.arange(_WIDTH, device=cells.device)
    pixel = (grid.block_first[blocks.block[a], None] + column).clamp(max=grid.size[1] - 1)
    left, right, _ = _ends(cells, corner[a], stride, down[row])
    level = level[a]
    same = (lerp(left[:, None], right[:, None], along[pixel]) > level[:, None]) == (left > level)[:, None]
    return (same & (column < grid.block_count[blocks.block[a], None])).sum(1).to(cells.dtype)


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
    if words.device.type == "cpu" and hasattr(np, "bitwise_count"):  # since NumPy 2: an instruction of the processor
        return torch.from_numpy(np.bitwise_count(words.numpy().view(np.uint64))).long()
    # the usual sum of neighbouring fields; shifts keep the sign, and the masks clear what that brings in
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (words * 0x0101010101010101) >> 56
