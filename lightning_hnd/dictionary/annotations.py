"""Annotations: what is known of the images of a dictionary, without the images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_hnd.concepts import Ontology

_T = TypeVar("_T")

UNKNOWN = -1
"""In ``source``: no local concept is labelled here. In ``group``: the image has no label of this concept."""


class Once:
    """Something that never changes, and remembers what was found in it."""

    @cached_property
    def _found(self) -> dict[Hashable, Any]:
        return {}

    def once(self, find: Callable[..., _T], *of: Hashable) -> _T:
        """What a function finds here, ``find(self, *of)``, found at the first call and kept.

        Args:
            find: A function, or a method of a class, that depends on nothing else.
            of: Its other arguments.
        """
        if (find, *of) not in self._found:
            self._found[(find, *of)] = find(self, *of)
        found: _T = self._found[(find, *of)]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_found"}  # can be found again


@dataclass(frozen=True, eq=False)
class Annotations(Once):
    """What is known of the ``N`` images of a dictionary.

    Attributes:
        ontology: The concepts.
        source: ``[N]`` int64, the kind of local concepts that the image is labelled in (an index into
            ``ontology.kinds``), :data:`UNKNOWN` where none. Inside a source the absence of a concept is a label;
            about concepts of other kinds the image says nothing.
        group: ``[N, K]`` int64, its group of each global concept, or :data:`UNKNOWN`.
        known: ``[N, K]`` int64, what ``labels.csv`` says of each global concept, in numbers: equal ones for equal
            labels.
        carried: ``[N, C]`` bool, which local concepts it carries: those that it has masks of, empty ones included.
        picture: ``[N]`` int64, equal numbers for equal pictures: a folder holds a face once for each of its groups.
    """

    ontology: Ontology
    source: Tensor
    group: Tensor
    known: Tensor
    carried: Tensor
    picture: Tensor

    def __len__(self) -> int:
        return len(self.source)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is known of each image, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ontology"}

    def of(self, images: Tensor) -> Annotations:
        """Those of some images, in the order given; these, if that is all in their order."""
        if torch.equal(images, torch.arange(len(self), device=images.device)):
            return self
        return Annotations(
            self.ontology, **{name: value[images.to(value.device)] for name, value in self.tensors.items()}
        )

    def to(self, device: torch.device) -> Annotations:
        """The same with its tensors on a device; these, if they are there."""
        if device == self.source.device:
            return self
        return Annotations(self.ontology, **{name: value.to(device) for name, value in self.tensors.items()})

    @cached_property
    def digest(self) -> int:
        """A number of 63 bits that stands for all of it."""
        digest = hashlib.sha256(repr(self.ontology.to_dict()).encode())
        for value in self.tensors.values():
            digest.update(repr(tuple(value.shape)).encode())
            digest.update(value.cpu().contiguous().numpy().data)
        return int.from_bytes(digest.digest()[:8], "little") >> 1
