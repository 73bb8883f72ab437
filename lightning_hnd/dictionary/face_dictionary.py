"""FaceDictionary: faces, the masks of their local concepts and the groups of their global ones, in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lightning_hnd.concepts import Ontology

NOT_LOCAL = -1
"""Value of ``source`` for an image that no source of local concepts labels."""
UNKNOWN = -1
"""Value of ``group`` where an image has no label of a global concept."""


@dataclass(frozen=True)
class DictionaryBatch:
    """A batch of dictionary images with everything that is known of them.

    Attributes:
        images: ``[B, channels, H, W]`` float32, as the model gets them.
        index: ``[B]`` int64, the position of each image in the dictionary.
        source: ``[B]`` int64, the kind of local concepts that the image is labelled in (an index into
            ``ontology.kinds``), ``-1`` where none. Inside a source the absence of a concept is a label;
            about concepts of other kinds the image says nothing.
        group: ``[B, K]`` int64, its group of each global concept, ``-1`` where unknown.
        mask_bits: ``[M, ceil(H * W / 8)]`` uint8, the masks as ``numpy.packbits`` packs them, row-major.
        mask_image: ``[M]`` int64, the image of each mask, as a position in this batch.
        mask_concept: ``[M]`` int64, the local concept of each mask. An image carries the concepts that
            it has masks of, empty ones included.
    """

    images: Tensor
    index: Tensor
    source: Tensor
    group: Tensor
    mask_bits: Tensor
    mask_image: Tensor
    mask_concept: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images and masks."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def masks(self) -> Tensor:
        """The masks, ``[M, H, W]`` bool."""
        return unpack_masks(self.mask_bits, self.size)

    def to(self, device: torch.device | str) -> DictionaryBatch:
        """The same batch on ``device``."""
        return DictionaryBatch(**{name: value.to(device) for name, value in vars(self).items()})


def pack_masks(masks: Tensor) -> Tensor:
    """Packs ``[M, H, W]`` bool masks to ``[M, ceil(H * W / 8)]`` uint8, first pixel in the highest bit."""
    return torch.from_numpy(np.packbits(masks.flatten(1).cpu().numpy(), axis=1)).to(masks.device)


def unpack_masks(bits: Tensor, size: tuple[int, int]) -> Tensor:
    """Unpacks what :func:`pack_masks` packed: ``[M, H, W]`` bool."""
    shifts = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    flat = (bits.unsqueeze(-1) >> shifts & 1).bool().flatten(1)
    return flat[:, : size[0] * size[1]].unflatten(1, size)
