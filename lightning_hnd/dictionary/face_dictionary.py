"""FaceDictionary: faces, the masks of their local concepts and the groups of their global ones, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from lightning_hnd.concepts import PAPER, Ontology
from lightning_hnd.dictionary.annotations import UNKNOWN, Annotations, Once
from lightning_hnd.dictionary.batch import DictionaryBatch
from lightning_hnd.dictionary.known import numbered_labels
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.dictionary.photometric import require_photometric
from lightning_hnd.dictionary.sampling import Strata, sample

Crop: TypeAlias = tuple[float, float, float, float] | Callable[[Image.Image], tuple[float, float, float, float]]
"""A box ``(left, top, right, bottom)``: in shares of the picture, or from a function, in its pixels."""


@dataclass(frozen=True, eq=False)
class FaceDictionary(Once):
    """Pictures of faces with a mask for each local concept and group labels for global ones.

    Make one with :meth:`from_folder` or :meth:`rendered`. Pictures are decoded once and kept at their
    working size, eight bits a channel; masks are kept as bits.

    Attributes:
        ontology: The concepts it speaks of.
        pictures: ``[N, channels, H, W]`` uint8.
        source: ``[N]`` int64, see :class:`Annotations`.
        group: ``[N, K]`` int64, see :class:`Annotations`.
        masks: The ``M`` masks.
        mask_image: ``[M]`` int64, the image of each mask, ascending.
        mask_concept: ``[M]`` int64.
        names: The name of each image: its path in the folder, or its place among the rendered faces.
        labels: All that is known of each image beyond its concepts, by column of ``labels.csv``.
        mean: Per channel, subtracted from images in 0..1.
        std: Per channel, divides them then.
        transform: Changes the colours of an image ``[channels, H, W]`` in 0..1, before mean and std.
        origin: What the dictionary is, for people.
        drawn: Whether its faces are drawings.
        datacard: What its folder's ``datacard.json`` says of where it comes from; empty where there is none.
    """

    ontology: Ontology
    pictures: Tensor
    source: Tensor
    group: Tensor
    masks: PackedMasks
    mask_image: Tensor
    mask_concept: Tensor
    names: tuple[str, ...]
    labels: tuple[Mapping[str, str], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Tensor], Tensor] | None = None
    origin: str = "a dictionary made in memory"
    drawn: bool = False
    datacard: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise ValueError(f"{self.origin} holds no image; a dissection needs faces to show to the model")
        if self.transform is not None:
            require_photometric(self.transform, (self.channels, *self.size))

    # ---------------------------------------------------------------------------------------- where it comes from

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        size: int | tuple[int, int] = 256,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        *,
        channels: int = 3,
        ontology: Ontology = PAPER,
        crop: Crop | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        cache: bool = True,
    ) -> FaceDictionary:
        """Reads a dictionary in the layout of the released one.

        Every picture and mask is read and checked now, so that nothing can fail during training. What was read is
        kept, packed, and mapped into memory the next time, until a file in the folder changes: in ``.packed`` in the
        folder, or where that cannot be written in the user's cache (``~/.cache/lightning-hnd``; the environment
        variable ``HND_CACHE`` names another place). A picture with an EXIF orientation is shown upright; its masks
        must be drawn on the upright picture.

        Args:
            path: The folder with ``Attributes.csv``, ``Action_Units.csv``, ``Parts.csv`` and
                ``non_localizable/<concept>/<group>/``, each of which may be missing or empty. A kind of
                concept that the paper does not have is read from ``<kind>.csv``.
            size: Height and width that the model takes, or one number for both. Pictures are resized
                bilinearly, masks to the nearest pixel's centre.
            mean: Subtracted from images in 0..1: one number, or one for each channel.
            std: Divides them then: one number, or one for each channel.
            channels: 3 for RGB, 1 for grey.
            ontology: The concepts to look for; a mask of any other concept is an error.
            crop: The part of each picture to show, and of its masks: a box ``(left, top, right, bottom)``
                in shares of its width and height, or a function from a ``PIL.Image`` to a box in pixels
                (a face detector). What depends on a function is not kept: nobody can tell when it changes.
            transform: Any change of colours of an image ``[channels, H, W]`` in 0..1, applied before mean
                and std. It must be deterministic and must not move the image: that is checked.
            cache: Whether to keep what was read, and to use what was kept.

        Returns:
            The dictionary.

        Raises:
            FileNotFoundError: If the folder, or a file that its tables name, does not exist.
            ValueError: If a table, label, picture or mask cannot be used; the message names it.
        """
        from lightning_hnd.dictionary.folder import read_folder  # not at the top: it makes FaceDictionaries

        return read_folder(
            Path(path),
            as_pair(size),
            per_channel(mean, channels, "mean"),
            per_channel(std, channels, "std"),
            ontology=ontology,
            crop=crop,
            transform=transform,
            cache=cache,
        )

    @classmethod
    def rendered(
        cls,
        size: int | tuple[int, int] = 128,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        *,
        channels: int = 3,
        images: int = 800,
        seed: int = 0,
    ) -> FaceDictionary:
        """Draws a dictionary: the built-in one.

        Half of the faces are labelled in local concepts, shared out among the kinds as in the released
        dictionary (each face in the concepts of one kind only); the other half in apparent age, gender and
        skin tone. Apparent ethnicity is not drawn: a drawing of it would be a stereotype.

        Args:
            size: Height and width, or one number for both.
            mean: As in :meth:`from_folder`.
            std: As in :meth:`from_folder`.
            channels: 3 for RGB, 1 for grey.
            images: How many faces to draw.
            seed: Other seeds draw other faces.

        Returns:
            The dictionary.

        Raises:
            ValueError: If there are fewer than eight images or a value is out of range.
        """
        from lightning_hnd.dictionary.rendered import render_dictionary  # not at the top: it makes FaceDictionaries

        mean, std = per_channel(mean, channels, "mean"), per_channel(std, channels, "std")
        return render_dictionary(as_pair(size), mean, std, images=images, seed=seed)

    def to_folder(self, path: str | Path) -> None:
        """Writes it in the layout of the released dictionary; :meth:`from_folder` reads it.

        Args:
            path: The folder to make.

        Raises:
            FileExistsError: If there is something already.
        """
        from lightning_hnd.dictionary.folder import write_folder  # not at the top: it takes FaceDictionaries

        write_folder(Path(path), self)

    # ------------------------------------------------------------------------------------------------- what it holds

    def __len__(self) -> int:
        return self.pictures.shape[0]

    @property
    def channels(self) -> int:
        """Channels of an image: 3 or 1."""
        return self.pictures.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images and masks."""
        return self.pictures.shape[-2], self.pictures.shape[-1]

    @property
    def num_local(self) -> int:
        """How many images are labelled in local concepts."""
        return int((self.source != UNKNOWN).sum())

    @cached_property
    def images_per_concept(self) -> tuple[int, ...]:
        """How many images carry each local concept."""
        return tuple(torch.bincount(self.mask_concept, minlength=len(self.ontology.local)).tolist())

    @cached_property
    def images_per_group(self) -> tuple[int, ...]:
        """How many images each group has, all groups of all global concepts in one row."""
        return tuple(
            int((self.group[:, k] == g).sum())
            for k, concept in enumerate(self.ontology.global_)
            for g in range(len(concept.groups))
        )

    @cached_property
    def known(self) -> Tensor:
        """``[N, K]`` int64, what ``labels.csv`` says of each global concept, see :class:`Annotations`."""
        return numbered_labels(self.labels, self.ontology)

    @cached_property
    def carried(self) -> Tensor:
        """``[N, C]`` bool, which local concepts each image carries, see :class:`Annotations`."""
        carried = torch.zeros(len(self), len(self.ontology.local), dtype=torch.bool)
        carried[self.mask_image, self.mask_concept] = True
        return carried

    @cached_property
    def annotations(self) -> Annotations:
        """What is known of the images, without these."""
        return Annotations(self.ontology, self.source, self.group, self.known, self.carried, self.same_pictures)

    @cached_property
    def same_pictures(self) -> Tensor:
        """``[N]`` int64, the place of the first image with the same picture."""
        first: dict[bytes, int] = {}
        digests = (hashlib.sha256(picture.contiguous().numpy().data).digest() for picture in self.pictures)
        return torch.tensor([first.setdefault(digest, i) for i, digest in enumerate(digests)])

    @cached_property
    def fingerprint(self) -> str:
        """A digest of pictures, masks and labels: two dictionaries with one fingerprint measure alike."""
        digest = hashlib.sha256(repr((self.ontology.to_dict(), self.mean, self.std, self.size)).encode())
        for tensor in (self.pictures, self.source, self.group, self.masks.bits, self.mask_image, self.mask_concept):
            digest.update(tensor.contiguous().numpy().data)
        if any(self.labels):  # held fixed where groups are compared
            digest.update(self.known.numpy().data)
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"<FaceDictionary: {self}>"

    def __str__(self) -> str:
        height, width = self.size
        kinds = torch.bincount(self.source[self.source != UNKNOWN], minlength=len(self.ontology.kinds)).tolist()
        sources = [f"{n} of kind {kind}" for kind, n in zip(self.ontology.kinds, kinds, strict=True) if n]
        shown = [
            f"{c.name} ({int((self.group[:, k] != UNKNOWN).sum())})"
            for k, c in enumerate(self.ontology.global_)
            if bool((self.group[:, k] != UNKNOWN).any())
        ]
        return (
            f"{self.origin}: {len(self)} images of {height} x {width}; local: {', '.join(sources) or 'none'}; "
            f"global: {', '.join(shown) or 'none'}"
        )

    # ------------------------------------------------------------------------------------------------ how it is used

    def images(self, index: Tensor | slice) -> Tensor:
        """Images as the model gets them: ``[B, channels, H, W]`` float32.

        Args:
            index: Positions in the dictionary.
        """
        images = self.pictures[index].float().div_(255)  # in place, here and below: memory is what takes the time
        if self.transform is not None:
            images = torch.stack([self.transform(image) for image in images])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return images.sub_(mean).div_(std)

    def batches(self, batch_size: int = 64, *, shard: int = 0, num_shards: int = 1) -> Iterator[DictionaryBatch]:
        """The dictionary in batches, always in the same order.

        No random number is drawn, no worker started: pictures are in memory.

        Args:
            batch_size: Images in a batch; the last one may be smaller.
            shard: Which share of the batches: every ``num_shards``-th, counted from this one.
            num_shards: Into how many shares whole batches are dealt out.
        """
        for start in range(shard * batch_size, len(self), num_shards * batch_size):
            stop = min(start + batch_size, len(self))
            first, last = torch.searchsorted(self.mask_image, torch.tensor([start, stop])).tolist()
            yield DictionaryBatch(
                dictionary=self,
                index=torch.arange(start, stop),
                source=self.source[start:stop],
                group=self.group[start:stop],
                masks=self.masks[first:last],
                mask_image=self.mask_image[first:last] - start,
                mask_concept=self.mask_concept[first:last],
            )

    def subset(self, index: Sequence[int] | Tensor) -> FaceDictionary:
        """The dictionary of some of the images, in the order given.

        Args:
            index: Positions in this dictionary, each at most once.

        Raises:
            ValueError: If a position is out of range or comes twice.
        """
        chosen = torch.as_tensor(index, dtype=torch.int64)
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise ValueError(f"positions must lie in 0..{len(self) - 1}, got {int(chosen.min())}..{int(chosen.max())}")
        if chosen.unique().numel() != chosen.numel():
            raise ValueError("a position comes twice; an image may count only once")
        place = torch.full((len(self),), -1)
        place[chosen] = torch.arange(len(chosen))
        image, order = place[self.mask_image].sort(stable=True)
        order = order[image >= 0]
        return replace(
            self,
            pictures=self.pictures[chosen],
            source=self.source[chosen],
            group=self.group[chosen],
            masks=PackedMasks(self.masks.bits[order], self.size),
            mask_image=image[image >= 0],
            mask_concept=self.mask_concept[order],
            names=tuple(self.names[i] for i in chosen.tolist()),
            labels=tuple(self.labels[i] for i in chosen.tolist()),
            origin=f"{len(chosen)} images of {self.origin}",
        )

    def sample(self, max_images: int, seed: int = 0) -> FaceDictionary:
        """At most so many of the images, in which concepts, groups and sources keep their shares.

        The same images in every process and at every call. A concept or group with a small share keeps a few
        images more than it (up to ten, if it has them and there is room); none that has images is lost.

        Args:
            max_images: How many images to keep.
            seed: Other seeds keep other images.

        Returns:
            A dictionary of ``max_images`` images in the order of this one; this one, if it has no more.

        Raises:
            ValueError: If ``max_images`` is too small for one image of each concept and group.

        Example:
            >>> from lightning_hnd import FaceDictionary
            >>> faces = FaceDictionary.rendered(size=16, images=200)
            >>> sampled = faces.sample(100)
            >>> len(sampled), min(sampled.images_per_concept) >= min(10, min(faces.images_per_concept))
            (100, True)
        """
        if max_images < 1:
            raise ValueError(f"max_images must be at least 1, got {max_images}")
        if max_images >= len(self):
            return self
        return self.subset(torch.from_numpy(sample(Strata.of(self), max_images, seed)))


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, of one number or two."""
    sides = (size, size) if isinstance(size, Integral) else tuple(size) if isinstance(size, Sequence) else ()
    if len(sides) != 2 or not all(isinstance(side, Integral) for side in sides):
        raise TypeError(f"size must be a whole number or two, (height, width), got {size!r}")
    height, width = sides
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {size}")
    return int(height), int(width)


def per_channel(value: float | Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    """One number for each channel, of one number or several."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (RGB) or 1 (grey), got {channels}")
    values = (float(value),) * channels if isinstance(value, int | float) else tuple(float(v) for v in value)
    if len(values) != channels:
        raise ValueError(f"{name} has {len(values)} values for images of {channels} channels: {values}")
    if name == "std" and min(values) <= 0:
        raise ValueError(f"std must be positive, got {values}")
    return values
