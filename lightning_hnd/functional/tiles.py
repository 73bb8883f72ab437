"""Exact pixel counts of upsampled maps without upsampling them.

A *tile* is the set of pixels between four neighbouring cells of a map. By the clamped interpolation of
:func:`~lightning_hnd.functional.upsample` no pixel of a tile exceeds the largest of its corners nor falls
below the smallest. So a tile whose corners are all at or below the threshold is off and is never looked at.
In the others each row of pixels runs monotonically from its left end to its right end, in floating point as
on paper, since each step of ``a + (b - a) * t`` is monotone in ``t``: the pixels that are on are those before
a crossing, or those after it. Where the row crosses the threshold takes a handful of operations; where the
crossing falls closer to the centre of a pixel than rounding lets it be told from it, the pixels are asked the
very question that the definition asks. Crossings add up to the area that fires. Where there are masks, rows become
16-bit words, masks are cut into the same words once, and what remains is "and" and counting bits. Every count equals
that of the dense form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_hnd.functional.host import exceeds, in_rows, positions
from lightning_hnd.functional.interpolation import axis_pixels, axis_position, lerp

_WIDTH = 16  # pixels in a word's row; wider tiles are cut into blocks of this width
_ROWS = 4  # rows in a 64-bit word
_SIGN = -(2**31)  # the sign bit of a float32


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
    @lru_cache(maxsize=64)  # asked for once a batch, of a few layers
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

    @cached_property
    def place_row(self) -> Tensor:
        """``[places]`` int64, the row of tiles of each place."""
        return torch.arange(self.places, device=self.row_first.device) // self.blocks

    @cached_property
    def place_block(self) -> Tensor:
        """``[places]`` int64, the block in that row."""
        return torch.arange(self.places, device=self.row_first.device) % self.blocks

    @cached_property
    def one_block_a_tile(self) -> bool:
        """Whether blocks and tiles are the same."""
        return torch.equal(self.block_gap, torch.arange(self.cells[1] + 1, device=self.block_gap.device))

    @cached_property
    def corner(self) -> Tensor:
        """``[places]`` int64, the cell above and to the left of each place, in a map with its border cells repeated."""
        return self.place_row * (self.cells[1] + 2) + self.block_gap[self.place_block]

    @cached_property
    def first_pixel(self) -> Tensor:
        """``[2, places]`` int64, the row and the column of each block's first pixel."""
        return torch.stack([self.row_first[self.place_row], self.block_first[self.place_block]])

    @cached_property
    def offset(self) -> Tensor:
        """``[2, places]`` float64, from the cell above to a block's first pixel in cells, from that left in pixels."""
        gap = torch.arange(self.cells[0] + 1, device=self.row_first.device)
        down = _first_position(self.row_first, gap, self.cells[0], self.size[0]).double() / (2 * self.size[0])
        along = _first_position(self.block_first, self.block_gap, self.cells[1], self.size[1]).double()
        return torch.stack([down[self.place_row], (along / (2 * self.cells[1]))[self.place_block]])

    @cached_property
    def axes(self) -> dict[torch.dtype, tuple[Tensor, Tensor]]:
        """How far each row ``[H]`` and each column ``[W]`` of pixels lies between two cells, for maps of both types."""
        types = {like.dtype: like for like in (self.columns.new_empty(0), self.offset.new_empty(0))}
        return {
            dtype: (
                axis_position(self.cells[0], self.size[0], like)[1],
                axis_position(self.cells[1], self.size[1], like)[1],
            )
            for dtype, like in types.items()
        }

    @cached_property
    def columns(self) -> Tensor:
        """``[places]`` float32, how many columns of pixels a block has."""
        return self.block_count.float()[self.place_block]

    @cached_property
    def full(self) -> Tensor:
        """``[places]`` bool, whether a block has all ``K`` rows."""
        return (self.row_count == self.rows)[self.place_row]

    @cached_property
    def inside(self) -> Tensor:
        """``[places, K / 4]`` int64, on where a block has pixels."""
        everything = torch.ones(1, *self.size, dtype=torch.bool)
        return TileGrid.of(self.cells, self.size).words_of(everything)[0].to(self.row_first.device)

    def words_of(self, masks: Tensor) -> Tensor:
        """Puts the pixels of masks into the words of each block.

        Args:
            masks: ``[M, H, W]`` bool, in main memory as the grid must be.

        Returns:
            ``[M, places, K / 4]`` int64.
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
        place: ``[A]`` int64, its place in the map.
    """

    map: Tensor
    place: Tensor

    def at(self, some: Tensor) -> Blocks:
        """Some of them."""
        return Blocks(*(field.index_select(0, some) for field in self))

    def split(self, size: int) -> list[Blocks]:
        """The same in parts of at most ``size``."""
        return [Blocks(*part) for part in zip(*(field.split(size) for field in self), strict=True)]


def active_blocks(padded: Tensor, level: Tensor, grid: TileGrid) -> Blocks:
    """The blocks of tiles of which a corner exceeds the level: all others are off.

    Args:
        padded: ``[R, h + 2, w + 2]``, maps with their border cells repeated.
        level: ``[R]``.
        grid: Their grid.
    """
    above = exceeds(padded, level[:, None, None])
    above = above[:, 1:] | above[:, :-1]
    above = above[:, :, 1:] | above[:, :, :-1]
    if not grid.one_block_a_tile:
        above = above.index_select(2, grid.block_gap)  # a tile has several blocks, or no pixel at all
    found = positions(above)
    map_ = torch.arange(len(padded), device=padded.device)
    map_ = map_.repeat_interleave(in_rows(found, len(padded), grid.places))
    return Blocks(map_, torch.sub(found, map_, alpha=grid.places))


class Crossings(NamedTuple):
    """The pixels of ``A`` blocks that exceed the level of their map: in each row those before a crossing, or after it.

    Attributes:
        first: ``[K, A]`` float32, the first pixel beyond the crossing, from 0 to the number of columns of the block.
        falling: ``[K, A]`` int32, the sign bit alone where the pixels before it are on; 0 where it and those after it
            are.
        blocks: Which blocks.
        grid: Their grid.
    """

    first: Tensor
    falling: Tensor
    blocks: Blocks
    grid: TileGrid

    def words(self) -> Tensor:
        """The pixels of each block, ``[A, K / 4]`` int64. Uses up the crossings."""
        # on from the crossing to the right, or turned over
        on = torch.bitwise_left_shift(-1, self.first.int()).bitwise_xor_(self.falling.bitwise_right_shift_(31))
        upper, lower = on[1::2].bitwise_left_shift_(16), on[::2].bitwise_and_(0xFFFF)
        words = torch.stack(lower.bitwise_or_(upper).unbind(0), dim=1).view(torch.int64)  # of .t(), in half the time
        return words.bitwise_and_(self.grid.inside.index_select(0, self.blocks.place))

    def area(self) -> Tensor:
        """How many pixels of each block are on, ``[A]`` int64, rows counted in that are none. Uses up the crossings."""
        half = _columns(self.blocks, self.grid) / 2
        beyond = self.first.sub_(half).view(torch.int32).bitwise_xor_(self.falling).view(torch.float32)
        return (half * self.grid.rows - beyond.sum(0)).long()


def crossings(padded: Tensor, level: Tensor, blocks: Blocks, grid: TileGrid) -> Crossings:
    """Where rows of pixels cross the level of their map.

    Count from the level, in units of ``M``, the largest magnitude of level and corners. Let ``D`` be the difference of
    the ends of a row of pixels, and ``R`` how far the level lies above the value at the block's first pixel, times the
    pixels between two cells, ``s`` (below, 1 if they are fewer). Both are linear in the row; their coefficients are
    computed in double precision and rounded once to float32, of roundoff ``u``. The row crosses the level ``R / D``
    pixels from the first one. Of its pixels, and the one that would follow, ``n`` is the nearest to that, and is looked
    at. As ``|D| <= 2``, ``|R| <= 4 s`` and ``n <= s + 1``, ``R - n D`` is wrong by less than ``40 s u``, while rounding
    moves the value that the definition gives a pixel by no more than ``9 u``. So where ``|R - n D| > 128 s u``, pixel
    ``n`` lies on the side of the crossing that was computed, and the definition says so, too. If the crossing is not
    among the pixels all others lie further off on that side. If it is, the neighbour of ``n`` beyond it lies, since
    ``|R - n D| <= |D| / 2``, at least ``0.3`` pixels from it, where the value differs from the level by ``70 u`` or
    more: no doubt there either. Any other row is asked pixel by pixel what the definition asks.

    Args:
        padded: ``[R, h + 2, w + 2]``, maps with their border cells repeated; the cells of a map lie apart by less than
            a quarter of what their type holds.
        level: ``[R]``, of the type of the maps.
        blocks: Which blocks of them.
        grid: Their grid.
    """
    count = _columns(blocks, grid)
    difference, rise = _rows(padded, level, blocks, grid)
    first = torch.div(rise, difference).clamp_(count.new_zeros(1), count)
    apart = torch.addcmul(rise, first.round(), difference, value=-1, out=rise).abs_()
    first, falling = first.ceil_(), difference.view(torch.int32).bitwise_and_(_SIGN)
    reach = 64 * torch.finfo(torch.float32).eps * max(1.0, grid.size[1] / grid.cells[1])
    unsure = positions(~(apart.amin(0) > reach))
    if len(unsure):
        row, at = (~(apart.index_select(1, unsure) > reach)).nonzero(as_tuple=True)
        at = unsure[at]
        first[row, at], falling[row, at] = _asked(padded, level, blocks.at(at), row, grid)
    return Crossings(first, falling, blocks, grid)


def _columns(blocks: Blocks, grid: TileGrid) -> Tensor:
    """Of each block, ``[A]`` float32."""
    return grid.columns.index_select(0, blocks.place)


def _rows(padded: Tensor, level: Tensor, blocks: Blocks, grid: TileGrid) -> tuple[Tensor, Tensor]:
    """``D`` and ``R`` of :func:`crossings` for each row of pixels: ``[K, A]`` float32."""
    values = _corners_and_level(padded, level, blocks, grid)
    unit = values.abs().amax(0).double()
    a, b, c, d, level = values.double().div_(unit)
    down, along = grid.offset.index_select(1, blocks.place)
    left, spacing, step = b - a, grid.size[1] / grid.cells[1], grid.cells[0] / grid.size[0]
    twist = (d - c).sub_(left)
    difference = torch.addcmul(c - a, down, twist)
    rise = torch.addcmul(a - level, down, left).mul_(-spacing).addcmul_(along, difference, value=-1)
    difference_per_row = twist.mul_(step)
    rise_per_row = left.mul_(-spacing * step).addcmul_(along, difference_per_row, value=-1)
    # rows of pixels in the first dimension: every operand is then long or constant in the second
    row = torch.arange(grid.rows, dtype=torch.float32, device=level.device)[:, None]
    return (
        torch.addcmul(difference.float(), row, difference_per_row.float()),
        torch.addcmul(rise.float(), row, rise_per_row.float()),
    )


def _first_position(first: Tensor, gap: Tensor, cells: int, pixels: int) -> Tensor:
    """Where the first pixels of gaps lie in them, as the numerator of a fraction of ``2 * pixels``."""
    return (2 * first + 1) * cells - pixels - 2 * pixels * (gap - 1)


def _corners_and_level(padded: Tensor, level: Tensor, blocks: Blocks, grid: TileGrid) -> Tensor:
    """The cells above and below on the left, those on the right, and the level: ``[5, A]``."""
    stride, cells = padded.shape[2], padded.flatten()
    corner = torch.add(grid.corner.index_select(0, blocks.place), blocks.map, alpha=padded.shape[1] * stride)
    values = padded.new_empty(5, len(corner))
    for value, step in zip(values, (0, stride, 1, stride + 1), strict=False):
        torch.index_select(cells[step:], 0, corner, out=value)
    torch.index_select(level, 0, blocks.map, out=values[4])
    return values


def _asked(padded: Tensor, level: Tensor, blocks: Blocks, row: Tensor, grid: TileGrid) -> tuple[Tensor, Tensor]:
    """One row of each block, by the definition of each pixel: ``[A]`` each, as in :class:`Crossings`."""
    a, b, c, d, level = _corners_and_level(padded, level, blocks, grid)
    first_row, first_column = grid.first_pixel.index_select(1, blocks.place)
    down, along = grid.axes[padded.dtype]
    t = down.index_select(0, first_row.add_(row).clamp_(max=grid.size[0] - 1))
    left, right = lerp(a, b, t), lerp(c, d, t)
    column = torch.arange(_WIDTH, device=padded.device)[:, None]
    count = _columns(blocks, grid)
    on = lerp(left, right, along[(first_column + column).clamp_(max=grid.size[1] - 1)]) > level
    on = (on & (column < count)).sum(0)
    falling = left > right
    return torch.where(falling, on, count - on), falling.int() * _SIGN
