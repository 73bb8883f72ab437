"""Masks as bits: an eighth of the memory, and constant while everything else changes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack_masks(masks: Tensor) -> Tensor:
    """Packs masks as ``numpy.packbits`` does, row-major, first pixel in the highest bit.

    Args:
        masks: ``[M, H, W]`` bool.

    Returns:
        ``[M, ceil(H * W / 8)]`` uint8.
    """
    flat = masks.reshape(masks.shape[0], -1)
    return torch.from_numpy(np.packbits(flat.cpu().numpy(), axis=1)).to(masks.device)


def unpack_masks(bits: Tensor, size: tuple[int, int]) -> Tensor:
    """Unpacks what :func:`pack_masks` packed.

    Args:
        bits: ``[M, ceil(H * W / 8)]`` uint8.
        size: ``(H, W)``.

    Returns:
        ``[M, H, W]`` bool.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.masks import pack_masks, unpack_masks
        >>> masks = torch.eye(3, dtype=torch.bool).unsqueeze(0)
        >>> torch.equal(unpack_masks(pack_masks(masks), (3, 3)), masks)
        True
    """
    place = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    flat = (bits.unsqueeze(-1).bitwise_right_shift(place) & 1).bool().flatten(1)
    return flat[:, : size[0] * size[1]].reshape(-1, *size)
