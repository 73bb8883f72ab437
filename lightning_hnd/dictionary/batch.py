"""DictionaryBatch: some images of a dictionary with what is known of them, as they go through a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_hnd.dictionary.masks import PackedMasks

if TYPE_CHECKING:
    from lightning_hnd.dictionary.face_dictionary import FaceDictionary


@dataclass(frozen=True)
class DictionaryBatch:
    """A batch of dictionary images with everything that is known of them.

    Attributes:
        dictionary: What it is a batch of.
        index: ``[B]`` int64, the position of each image in the dictionary.
        source: ``[B]`` int64, the kind of local concepts that each image is labelled in, see :class:`Annotations`.
        group: ``[B, K]`` int64, its group of each global concept, likewise.
        masks: The ``M`` masks; ``masks.dense()`` gives them as ``[M, H, W]`` bool.
        mask_image: ``[M]`` int64, the image of each mask, as a position in this batch, ascending.
        mask_concept: ``[M]`` int64, the local concept of each mask. An image carries the concepts that
            it has masks of, empty ones included.
    """

    dictionary: FaceDictionary
    index: Tensor
    source: Tensor
    group: Tensor
    masks: PackedMasks
    mask_image: Tensor
    mask_concept: Tensor

    @property
    def images(self) -> Tensor:
        """``[B, channels, H, W]`` float32, as the model gets them; made anew each time."""
        return self.dictionary.images(self.index.cpu()).to(self.index.device)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images and masks."""
        return self.masks.size

    def to(self, device: torch.device | str) -> DictionaryBatch:
        """The same batch with its tensors on ``device``; the masks stay in main memory."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)
