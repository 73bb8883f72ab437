"""What a model is given in training: a dictionary like it, and whether one is like it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dictionary.face_dictionary import as_pair, per_channel
from lightning_hnd.showing.undisturbed import kept_random_state

DRAWINGS = (
    "The faces of the built-in dictionary are drawings. A model that is trained on photographs sees them as something "
    "foreign: take what is said of its units as a first look, not as a finding. For findings give a dictionary of "
    "photographs: HNDCallback(dictionary='path/to/visual_dictionary')."
)


@dataclass(frozen=True)
class DictionarySource:
    """Where the faces come from, while it is not yet known of what size a model takes them.

    Args:
        given: A dictionary, the path of one in the released layout, or None for the built-in rendered faces.
        size: Height and width, or one number for both. None: those of the images that the model gets.
        mean: Subtracted from images in 0..1; None: 0.5.
        std: What they are divided by after that; None: 0.5.
        max_images: How many of its images to show at most, see :meth:`FaceDictionary.sample`; None: all.

    Raises:
        TypeError: If ``given`` is neither, or ``size`` no whole numbers.
        ValueError: If ``max_images`` is below 1, ``size`` or ``std`` is not above 0, or ``size``, ``mean`` or ``std``
            is given beside a dictionary, which has its own.
        FileNotFoundError: If ``given`` is a path that does not exist.
    """

    given: FaceDictionary | str | Path | None
    size: int | tuple[int, int] | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    max_images: int | None = None

    def __post_init__(self) -> None:
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"max_images must be at least 1, got {self.max_images}")
        if self.size is not None:
            as_pair(self.size)
        for name in ("mean", "std"):
            if (value := getattr(self, name)) is not None:
                per_channel(value, 1 if isinstance(value, int | float) or len(value) == 1 else 3, name)
        if isinstance(self.given, FaceDictionary):
            for name in ("size", "mean", "std"):
                if (value := getattr(self, name)) is not None:
                    own = getattr(self.given, name)
                    raise ValueError(f"{name}={value} is given, but the FaceDictionary has its own: {own}")
        elif self.given is not None and not isinstance(self.given, str | Path):
            raise TypeError(f"dictionary must be a FaceDictionary or the path of one, got {self.given!r}")
        elif self.given is not None and not Path(self.given).is_dir():
            raise FileNotFoundError(f"there is no Face Dictionary at {self.given}: no such folder")

    @property
    def known(self) -> FaceDictionary | None:
        """The dictionary, if nothing has to be learnt of the model."""
        return self._few(self.given) if isinstance(self.given, FaceDictionary) else None

    @property
    def identity(self) -> str | None:
        """What tells it from others: the fingerprint of a dictionary, the path of one, None for the rendered faces."""
        if isinstance(self.given, FaceDictionary):
            return self.given.fingerprint
        return None if self.given is None else str(self.given)

    def open(self, like: Tensor) -> FaceDictionary:
        """The dictionary as a model takes it that gets images ``like [B, channels, H, W]``."""
        if isinstance(self.given, FaceDictionary):
            return self._few(self.given)
        options: dict[str, Any] = {
            "size": (like.shape[2], like.shape[3]) if self.size is None else self.size,
            "channels": like.shape[1],
            "mean": 0.5 if self.mean is None else self.mean,
            "std": 0.5 if self.std is None else self.std,
        }
        if self.given is None:
            return self._few(FaceDictionary.rendered(**options))
        return self._few(FaceDictionary.from_folder(self.given, **options))

    def _few(self, dictionary: FaceDictionary) -> FaceDictionary:
        return dictionary if self.max_images is None else dictionary.sample(self.max_images)


class LearntDictionary:
    """The dictionary of a run: of the size and channels that the model is seen to get, and held against the rest.

    Args:
        source: Where the faces come from.

    Attributes:
        source: The same.
        dictionary: None until it is known.
    """

    def __init__(self, source: DictionarySource) -> None:
        self.source = source
        self.forget()

    def forget(self) -> None:
        """Forgets what was learnt of a model."""
        self.dictionary = self.source.known
        self._compared = False

    def open(self, like: Tensor, device: torch.device) -> FaceDictionary:
        """Makes the dictionary for a model on ``device`` that gets images ``like [B, channels, H, W]``."""
        with kept_random_state(device):
            self.dictionary = self.source.open(like)
        rank_zero_info(f"HNDCallback: {self.dictionary}")
        return self.dictionary

    def learn(self, batch: Any, device: torch.device) -> None:
        """Looks at the first batch that a model on ``device`` gets, and warns if the dictionary is unlike it.

        Raises:
            ValueError: If nothing is known of the size of images yet, and the batch has none.
        """
        if self._compared:
            return
        images = find_images(batch)
        if images is None and self.dictionary is None:
            raise ValueError(
                "HNDCallback found no images [B, 1 or 3, H, W] in the batch, from which it would learn their size "
                "and channels; give the module an example_input_array, or HNDCallback a FaceDictionary"
            )
        if images is None:
            return
        dictionary = self.open(images, device) if self.dictionary is None else self.dictionary
        self._compared = True
        if dictionary.drawn:
            rank_zero_warn(DRAWINGS)
        with kept_random_state(device):
            warning = mismatch(InputStatistics.of(images), dictionary)
        if warning is not None:
            rank_zero_warn(warning)


def find_images(batch: Any) -> Tensor | None:
    """The images of a training or validation batch: its first tensor ``[B, 3, H, W]``, else ``[B, 1, H, W]``.

    Args:
        batch: A tensor, or sequences and mappings of anything that hold one.

    Returns:
        The images, None if there are none.
    """
    found = [tensor for tensor in _tensors(batch) if tensor.ndim == 4 and tensor.shape[1] in (1, 3)]
    return max(found, key=lambda tensor: tensor.shape[1], default=None)  # the first of those with most channels


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    for part in parts:
        yield from _tensors(part)


@dataclass(frozen=True)
class InputStatistics:
    """Size, range, and mean and deviation per channel of images as a model gets them."""

    size: tuple[int, int]
    low: float
    high: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> InputStatistics:
        """Those of ``images [B, channels, H, W]``."""
        with torch.no_grad():
            pixels = images.detach().cpu().double().transpose(0, 1).flatten(1)
            std, mean = torch.std_mean(pixels, dim=1, correction=0)
            low, high = float(pixels.min()), float(pixels.max())
        height, width = images.shape[-2:]
        return cls((height, width), low, high, tuple(mean.tolist()), tuple(std.tolist()))

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:.2f}" for v in values) for values in (self.mean, self.std))
        height, width = self.size
        return f"{height} x {width}, range {self.low:.2f} to {self.high:.2f}, mean {mean}, deviation {std}"


def mismatch(batch: InputStatistics, dictionary: FaceDictionary) -> str | None:
    """Says how far the model's own images are from the dictionary's, where that makes a dissection doubtful.

    Far apart is: another size, ranges whose widths differ by more than 1.6 to 1 or whose middles differ by
    more than a quarter of the width, or in a channel deviations that differ by more than 2 to 1 or means by
    more than the deviations' mean.

    Args:
        batch: Of the first batch that the model gets.
        dictionary: The dictionary.

    Returns:
        A warning with both, or None.
    """
    step = max(1, len(dictionary) // 64)
    ours = InputStatistics.of(dictionary.images(slice(0, None, step)))
    reasons = []
    if batch.size != ours.size:
        reasons.append("the sizes differ")
    width, our_width = batch.high - batch.low, ours.high - ours.low
    if not 1 / 1.6 < width / max(our_width, 1e-12) < 1.6 or (
        abs(batch.high + batch.low - ours.high - ours.low) / 2 > max(width, our_width) / 4
    ):
        reasons.append("the ranges differ")
    for mean, std, our_mean, our_std in zip(batch.mean, batch.std, ours.mean, ours.std, strict=False):
        if not 0.5 <= std / max(our_std, 1e-12) <= 2 or abs(mean - our_mean) > (std + our_std) / 2:
            reasons.append("mean or deviation differ")
            break
    if not reasons:
        return None
    return (
        f"The dictionary's images are unlike those that the model is trained on ({' and '.join(reasons)}), so what its "
        f"units do with them may mean nothing.\n  training:   {batch}\n  dictionary: {ours}\n"
        "Give the size, mean and std that the model is trained with: HNDCallback(size=..., mean=..., std=...), or to "
        "the FaceDictionary."
    )
