"""KeptMaps: the maps of one pass that can still fire, kept until their threshold is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_hnd.dictionary import DictionaryBatch
from lightning_hnd.functional.host import positions
from lightning_hnd.functional.masks import CutMasks

_LITTLE = 2**26  # bytes of maps that are not worth looking through
_TOGETHER = 2**24  # values of maps that are counted together


class MapsAndMasks(NamedTuple):
    """Maps of some images, and the masks of these images.

    Attributes:
        maps: ``[R, h, w]``.
        unit: ``[R]`` int64.
        image: ``[R]`` int64, positions in the dictionary.
        masks: ``M`` masks.
        mask_image: ``[M]`` int64, positions in the dictionary.
        mask_concept: ``[M]`` int64.
    """

    maps: Tensor
    unit: Tensor
    image: Tensor
    masks: CutMasks
    mask_image: Tensor
    mask_concept: Tensor

    @classmethod
    def of(cls, image: Tensor, unit: Tensor, maps: Tensor, batch: DictionaryBatch) -> MapsAndMasks:
        """Maps ``[R, h, w]`` of one batch, whose ``image`` is their row in it."""
        cut = batch.masks.cut((maps.shape[1], maps.shape[2])).to(maps.device)
        return cls(maps, unit, batch.index[image], cut, batch.index[batch.mask_image], batch.mask_concept)


class KeptMaps:
    """Maps that can fire, batch by batch."""

    def __init__(self) -> None:
        self._batches: list[MapsAndMasks] = []
        self._bytes_before = 0

    @property
    def bytes(self) -> int:
        """Memory of the maps."""
        return sum(kept.maps.numel() * kept.maps.element_size() for kept in self._batches)

    def append(self, kept: MapsAndMasks) -> None:
        """Takes in those of one batch."""
        self._batches.append(kept)

    def drop_below(self, floor: Tensor | None) -> None:
        """Lets go of maps that do not exceed the floor ``[U]`` of their unit; once in a while, for it looks at all."""
        if floor is None or self.bytes <= max(2 * self._bytes_before, _LITTLE):
            return
        for i, kept in enumerate(self._batches):  # one after the other, for there may be much
            which = positions(kept.maps.flatten(1).amax(1) > floor[kept.unit])
            maps, unit, image = (part.index_select(0, which) for part in kept[:3])
            self._batches[i] = kept._replace(maps=maps, unit=unit, image=image)
        self._bytes_before = self.bytes

    def together(self) -> Iterator[MapsAndMasks]:
        """All of them, small batches put together: a call costs much beside the counting of few maps."""
        together: list[MapsAndMasks] = []
        for i, kept in enumerate(self._batches, start=1):
            together.append(kept)
            if i == len(self._batches) or sum(part.maps.numel() for part in together) >= _TOGETHER:
                fields: dict[str, Any] = {name: [getattr(k, name) for k in together] for name in MapsAndMasks._fields}
                masks = CutMasks.join(fields.pop("masks"))
                yield MapsAndMasks(masks=masks, **{name: torch.cat(parts) for name, parts in fields.items()})
                together = []
