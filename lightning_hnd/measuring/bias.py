"""Bias of a layer over a Face Dictionary: which groups it encodes, and which labels it takes for others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.concepts import Ontology
from lightning_hnd.dictionary.annotations import Annotations
from lightning_hnd.dictionary.known import other_labels
from lightning_hnd.functional.encoding import encoding_from_sums, encoding_sums
from lightning_hnd.functional.labels import Contrasts, contrasts, label_effects
from lightning_hnd.functional.ranks import rank_share
from lightning_hnd.functional.shortcut import (
    Both,
    Shortcut,
    covariance,
    moved,
    noise_in_both,
    own_part,
    shortcut_from_moved,
)
from lightning_hnd.measuring.unit_table import UnitTable, rows_at_once


class ImageSet(NamedTuple):
    """Images of a dictionary that know the same labels.

    Attributes:
        images: ``[n]`` int64, which.
        label: ``[L_s]`` int64, which of all labels are asked about here.
        shown: Contrasts ``[n, L_s]`` of these, and a basis ``[n, r]`` of all labels known here, which may be more.
        picture: ``[n]`` int64, as in :class:`~lightning_hnd.dictionary.annotations.Annotations`.
    """

    images: Tensor
    label: Tensor
    shown: Contrasts
    picture: Tensor

    def among(self, places: Tensor) -> ImageSet:
        """The same set where the images stand elsewhere, at ``places [N]``."""
        device = places.device
        images = places[self.images.to(device)]
        return ImageSet(images, self.label.to(device), self.shown.to(device), self.picture.to(device))

    def both(self, other: ImageSet) -> Both:
        """The images whose pictures are in another set, too; of copies each goes with one."""
        mine, (theirs, order) = _copies(self.picture), _copies(other.picture).sort()
        if not len(theirs):
            return Both(order, order)
        at = torch.searchsorted(theirs, mine).clamp(max=len(theirs) - 1)
        found = (theirs[at] == mine).nonzero().flatten()
        return Both(found, order[at[found]])


def _copies(picture: Tensor) -> Tensor:
    """Numbers ``[n]`` that tell pictures, and the copies of each, apart."""
    ordered, order = picture.sort(stable=True)
    copy = torch.arange(len(picture), device=picture.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(picture).scatter_(0, order, (ordered << 32) + copy)


def image_sets(known: Annotations) -> list[ImageSet]:
    """What the labels of a dictionary's images can tell of a layer's bias.

    Labels are the local concepts, then the groups, in the order of the ontology. Those of local concepts are compared
    on the images of their kind, groups on the images of their global concept, other labels of the same images held
    fixed, those of ``labels.csv`` among them.

    Args:
        known: Of the images, in main memory.

    Returns:
        A set for each kind of local concepts, then one for each global concept.
    """
    ontology = known.ontology
    of_kinds = [_of_kind(known, kind) for kind in range(len(ontology.kinds))]
    return of_kinds + [_of_global(known, k) for k in range(len(ontology.global_))]


def bias_statistics(ontology: Ontology, sets: Sequence[ImageSet], peaks: UnitTable, live: int) -> dict[str, Tensor]:
    """Measures how strongly a layer encodes groups, and which labels it takes for others.

    Args:
        ontology: The concepts.
        sets: As :func:`image_sets` makes them.
        peaks: ``[U, N]``, the largest activation of each unit on each image: what units respond by.
        live: How many units are not dead.

    Returns:
        ``K`` global concepts, ``G`` groups of all of them, ``L`` labels.

        - ``encoding_index``, ``encoding_low``, ``encoding_high``, ``encoding_p [K]`` and ``encoding_lean [G]``:
          :func:`~lightning_hnd.functional.encoding.encoding`; NaN where the dictionary cannot tell
        - ``shortcut_index``, ``shortcut_error``, ``shortcut_z [L, L]``:
          :func:`~lightning_hnd.functional.shortcut.shortcut`, a row for each task and a column for each cue; NaN
          where the dictionary cannot tell
    """
    ranks: list[_Ranks] = []  # sets of the same images share them
    for own in sets:
        same = (r for r, other in zip(ranks, sets, strict=False) if torch.equal(own.images, other.images))
        ranks.append(next(same, None) or _Ranks(peaks, own.images))
    of_groups = list(zip(ranks, sets, strict=True))[len(ontology.kinds) :]
    found = [encoding_from_sums(encoding_sums(of.shares(), own.shown), live) for of, own in of_groups]
    empty = torch.zeros(0, dtype=torch.float64, device=peaks.device)
    result = {
        f"encoding_{name}": torch.stack([getattr(e, name) for e in found]) if found else empty
        for name in ("index", "low", "high", "p")
    }
    result["encoding_lean"] = torch.cat([empty, *(e.lean for e in found)])
    measured = _shortcuts(ontology, ranks, sets, peaks)
    return {**result, **{f"shortcut_{name}": value for name, value in vars(measured).items()}}


class _Ranks:
    """Of every unit the ranks of its responses to some images, kept as the table of its peaks is."""

    def __init__(self, peaks: UnitTable, images: Tensor) -> None:
        self._images, self._double = len(images), 2 * max(1, len(images))
        # twice the mid-ranks, centred: whole numbers, which float32 holds
        self._table = peaks.mapped(lambda peak: (self._double * rank_share(peak[:, images].t())).t().float())

    def shares(self) -> Iterator[Tensor]:
        """:func:`~lightning_hnd.functional.ranks.rank_share` of a few units at a time: ``[n, some units]``."""
        for block in self._table.blocks():
            yield block.double().div_(self._double).t()

    def beside(self, other: _Ranks) -> Iterator[tuple[Tensor, Tensor]]:
        """:meth:`shares` of these images and of others, of the same units at a time."""
        if other is self:
            yield from ((share, share) for share in self.shares())
            return
        step = rows_at_once(max(self._images, other._images))
        for first in range(0, self._table.units, step):
            last = min(first + step, self._table.units)
            one, two = (ranks._table.rows(first, last).double().div_(ranks._double).t() for ranks in (self, other))
            yield one, two

    def scores(self, axes: Tensor) -> Tensor:
        """What the images score on axes ``[U, S]``: ``[n, S]``."""
        first, total = 0, torch.zeros(self._images, axes.shape[1], dtype=torch.float64, device=axes.device)
        for share in self.shares():
            total += share @ axes[first : first + share.shape[1]]
            first += share.shape[1]
        return total


def _shortcuts(ontology: Ontology, ranks: Sequence[_Ranks], sets: Sequence[ImageSet], peaks: UnitTable) -> Shortcut:
    size, device = len(ontology.labels), peaks.device
    axes = torch.full((peaks.units, size), torch.nan, dtype=torch.float64, device=device)
    for of, own in zip(ranks, sets, strict=True):
        axes[:, own.label] = torch.cat([label_effects(share, own.shown.contrast) for share in of.shares()])
    scores = [of.scores(axes) for of in ranks]
    for i, own in enumerate(sets):
        for j, other in enumerate(sets[: i + 1]):
            both = own.both(other)
            noise = noise_in_both(ranks[i].beside(ranks[j]), own.shown, other.shown, both)
            scores[j][:, own.label] -= own_part(own.shown, both, noise, len(scores[j]))
            if i != j:
                scores[i][:, other.label] -= own_part(other.shown, both.swapped, noise, len(scores[i]))
    shown = [(own, moved(of, own.shown)) for of, own in zip(scores, sets, strict=True) if len(own.images)]
    nan = torch.full((size, size), torch.nan, dtype=torch.float64, device=device)
    result = Shortcut(nan, nan.clone(), nan.clone())
    for task, by_task in shown:
        for cue, by_cue in shown:
            of_task, of_cue = by_task.of_scores(cue.label), by_cue.of_scores(task.label)
            common = covariance(of_task, task.shown, of_cue, cue.shown, task.both(cue))
            for name, value in vars(shortcut_from_moved(of_task, of_cue, common)).items():
                getattr(result, name)[task.label[:, None], cue.label] = value
    concept = torch.tensor(_concepts(ontology), device=device)
    same = concept[:, None] == concept  # groups of one concept exclude each other, and nothing is its own cue
    for value in vars(result).values():
        value[same] = torch.nan
    return result


def _concepts(ontology: Ontology) -> list[int]:
    """Of each label a number that groups of one concept share."""
    local = len(ontology.local)
    return [*range(local), *(local + k for k, concept in enumerate(ontology.global_) for _ in concept.groups)]


def _of_kind(known: Annotations, kind: int) -> ImageSet:
    images = (known.source == kind).nonzero().flatten()
    label = torch.tensor([c for c, k in enumerate(known.ontology.concept_kind) if k == kind], dtype=torch.int64)
    others = other_labels(known.known[images], known.ontology)
    return _image_set(known, images, label, known.carried[images][:, label], label, others)


def _of_global(known: Annotations, k: int) -> ImageSet:
    """The images of a global concept; what is known there of other global concepts is held fixed."""
    ontology = known.ontology
    images = (known.group[:, k] >= 0).nonzero().flatten()
    group = known.group[images]
    first, last = (len(ontology.local) + offset for offset in ontology.group_offsets[k : k + 2])
    label = torch.arange(first, last)
    of_others = [
        group[:, j, None] == torch.arange(len(concept.groups)) for j, concept in enumerate(ontology.global_) if j != k
    ]
    others = torch.cat([*of_others, other_labels(known.known[images], ontology, ontology.global_[k].name)], dim=1)
    return _image_set(known, images, label, group[:, k, None] == label - first, torch.zeros_like(label), others)


def _image_set(
    known: Annotations, images: Tensor, label: Tensor, carried: Tensor, concept: Tensor, others: Tensor
) -> ImageSet:
    """Some labels on some images, ``others`` of them held fixed."""
    apart = torch.full((others.shape[1],), -1)
    found = contrasts(torch.cat([carried, others], dim=1), torch.cat([concept, apart]))
    shown = found._replace(contrast=found.contrast[:, : len(label)])
    return ImageSet(images, label, shown, known.picture[images])
