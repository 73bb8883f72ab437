"""What is done several times as fast in main memory in another way than elsewhere, mostly by NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_COUNTS_BITS = hasattr(np, "bitwise_count")  # with one instruction: NumPy 2


def _on_host(values: Tensor) -> bool:
    return values.device.type == "cpu"


def exceeds(values: Tensor, level: Tensor) -> Tensor:
    """Whether values lie above a level: bool, of the shape to which the two broadcast."""
    if _on_host(values):
        return torch.from_numpy(np.greater(values.numpy(), level.numpy()))
    return values > level


def in_rows(positions: Tensor, rows: int, columns: int) -> Tensor:
    """How many of some positions in a flat matrix lie in each of its rows.

    Args:
        positions: ``[n]`` int64, ascending.
        rows: ``R``.
        columns: Of the matrix.

    Returns:
        ``[R]`` int64.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.host import in_rows
        >>> in_rows(torch.tensor([0, 3, 4]), rows=3, columns=2)
        tensor([1, 1, 1])
    """
    ends = torch.arange(columns, (rows + 1) * columns, columns, device=positions.device)
    return torch.searchsorted(positions, ends).diff(prepend=ends.new_zeros(1))


def positions(mask: Tensor) -> Tensor:
    """Where a mask is true, in its flat form.

    Args:
        mask: Any shape, bool.

    Returns:
        ``[n]`` int64, ascending.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.host import positions
        >>> positions(torch.tensor([[True, False], [False, True]]))
        tensor([0, 3])
    """
    if _on_host(mask):
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().flatten()


def argsort(values: Tensor) -> Tensor:
    """The order of each row, ``[R, n]`` int64; equal values in any order."""
    if _on_host(values):
        return torch.from_numpy(np.argsort(values.numpy(), axis=1))
    return values.argsort(dim=1)


def summed(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The sums of groups of rows, added up in the same order whenever it is done again.

    Args:
        values: ``[n, ...]``.
        group: ``[n]`` int64, of each row.
        groups: How many there are.

    Returns:
        ``[groups, ...]``.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.host import summed
        >>> summed(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 0]), groups=2)
        tensor([[5.],
                [2.]])
    """
    if _on_host(values):
        return values.new_zeros(groups, *values.shape[1:]).index_add_(0, group, values)
    member = torch.nn.functional.one_hot(group, groups).t().to(values)
    return (member @ values.reshape(len(values), -1)).view(groups, *values.shape[1:])


def averaged(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    """Maps on another grid, each cell the mean of those that it touches, as ``adaptive_avg_pool2d`` has it.

    Args:
        maps: ``[N, C, h, w]`` or ``[C, h, w]``.
        cells: Of the grid.

    Returns:
        ``[N, C, *cells]`` or ``[C, *cells]``; ``maps`` where the grid is theirs.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.host import averaged
        >>> averaged(torch.tensor([[[[0.0, 2.0, 4.0], [6.0, 8.0, 1.0]]]]), (1, 2))
        tensor([[[[4.0000, 3.7500]]]])
    """
    if maps.shape[-2:] == cells:
        return maps
    if _on_host(maps):  # down, then along: two products of matrices
        down, along = (_means(*sizes).to(maps.dtype) for sizes in zip(maps.shape[-2:], cells, strict=True))
        return torch.matmul(down, maps) @ along.t()
    return torch.nn.functional.adaptive_avg_pool2d(maps, cells)


def _means(size: int, cells: int) -> Tensor:
    """Which of ``size`` rows the mean is of in each cell, and how much of it each is: ``[cells, size]`` float64."""
    row, cell = torch.arange(size), torch.arange(cells).unsqueeze(1)
    inside = (row >= cell * size // cells) & (row < ((cell + 1) * size + cells - 1) // cells)
    return inside.double() / inside.sum(1, keepdim=True)


def count_bits(words: Tensor) -> Tensor:
    """Number of one-bits in each word.

    Args:
        words: Any shape, int64.

    Returns:
        The same shape, int64.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.host import count_bits
        >>> count_bits(torch.tensor([0, 5, -1]))
        tensor([ 0,  2, 64])
    """
    if _on_host(words) and _COUNTS_BITS:
        return torch.from_numpy(np.bitwise_count(words.numpy().view(np.uint64))).long()
    # the usual sum of neighbouring fields; shifts keep the sign, and the masks clear what that brings in
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (words * 0x0101010101010101) >> 56
