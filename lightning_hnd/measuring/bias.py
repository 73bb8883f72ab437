"""Bias of a layer over a Face Dictionary: which of its labels go together in which images, block of units by block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.concepts import Ontology
from lightning_hnd.dictionary.known import other_labels
from lightning_hnd.functional.bias import (
    Contrasts,
    EncodingSums,
    Labelled,
    Shortcut,
    contrasts,
    encoding_from_sums,
    encoding_sums,
    label_effects,
    rank_share,
    shortcut_from_scores,
)


class _Source(NamedTuple):
    """A set of images that know the same labels.

    Attributes:
        images: ``[n]`` int64, rows of the peaks.
        label: ``[L_s]`` int64, which of all labels are asked about here.
        contrast: ``[n, L_s]``.
        basis: ``[n, r]``, of all labels known here, which may be more.
    """

    images: Tensor
    label: Tensor
    contrast: Tensor
    basis: Tensor


class BiasStatistics:
    """Measures how strongly a layer encodes groups, and which labels it takes for others.

    Labels are the local concepts, then the groups, in the order of the ontology. Those of local concepts are compared
    on the images of their kind, groups on the images of their global concept, other labels of the same images held
    fixed, those of ``labels.csv`` among them. Units respond by their peaks.

    Args:
        ontology: The concepts.
        source: ``[N]`` int64, as in :class:`~lightning_hnd.dictionary.DictionaryBatch`.
        group: ``[N, K]`` int64, likewise.
        carried: ``[N, C]`` bool, which image carries which local concept.
        known: ``[N, K]`` int64, as in the batch.
    """

    def __init__(self, ontology: Ontology, source: Tensor, group: Tensor, carried: Tensor, known: Tensor) -> None:
        self._ontology = ontology
        self._size = len(ontology.local) + ontology.group_offsets[-1]
        self._sources = [_of_kind(ontology, kind, source, carried, known) for kind in range(len(ontology.kinds))]
        self._first_global = len(self._sources)
        self._sources += [_of_global(ontology, k, group, known) for k in range(len(ontology.global_))]
        self._scores = [
            torch.zeros(len(s.images), self._size, dtype=torch.float64).to(group.device) for s in self._sources
        ]
        self._sums: list[list[EncodingSums]] = [[] for _ in ontology.global_]

    def update(self, peak: Tensor) -> None:
        """Takes in some of the units.

        Args:
            peak: ``[N, u]``, their largest activation on each image.
        """
        shown = [Labelled(rank_share(peak[s.images]), s.contrast, s.basis) for s in self._sources]
        axes = torch.full((peak.shape[1], self._size), torch.nan, dtype=torch.float64, device=peak.device)
        for source, of_source in zip(self._sources, shown, strict=True):
            axes[:, source.label] = label_effects(of_source)
        for scores, of_source in zip(self._scores, shown, strict=True):
            scores += of_source.share @ axes
        for sums, of_source in zip(self._sums, shown[self._first_global :], strict=True):
            sums.append(encoding_sums(of_source))

    def compute(self, live: int) -> dict[str, Tensor]:
        """The measures, once all units were taken in.

        Args:
            live: How many units are not dead.

        Returns:
            ``K`` global concepts, ``G`` groups of all of them, ``L`` labels.

            - ``encoding_index``, ``encoding_low``, ``encoding_high``, ``encoding_p [K]`` and ``encoding_lean [G]``:
              :func:`~lightning_hnd.functional.bias.encoding`; NaN where the dictionary cannot tell
            - ``shortcut_index``, ``shortcut_error``, ``shortcut_z [L, L]``:
              :func:`~lightning_hnd.functional.bias.shortcut`, a row for each task and a column for each cue; NaN
              where the dictionary cannot tell
        """
        found = [encoding_from_sums(_add(sums), live) for sums in self._sums]
        empty = self._scores[0].new_zeros(0)
        result = {
            f"encoding_{name}": torch.stack([getattr(e, name) for e in found]) if found else empty
            for name in ("index", "low", "high", "p")
        }
        result["encoding_lean"] = torch.cat([empty, *(e.lean for e in found)])
        return {**result, **{f"shortcut_{name}": value for name, value in vars(self._shortcuts()).items()}}

    def _shortcuts(self) -> Shortcut:
        shape = (self._size, self._size)
        nan = torch.full(shape, torch.nan, dtype=torch.float64, device=self._scores[0].device)
        result = Shortcut(nan, nan.clone(), nan.clone())
        shown = [(s, scores) for s, scores in zip(self._sources, self._scores, strict=True) if len(s.images)]
        for task, task_scores in shown:
            for cue, cue_scores in shown:
                of_task, of_cue = Contrasts(task.contrast, task.basis), Contrasts(cue.contrast, cue.basis)
                measured = shortcut_from_scores(task_scores[:, cue.label], of_task, cue_scores[:, task.label], of_cue)
                for name, value in vars(measured).items():
                    getattr(result, name)[task.label[:, None], cue.label] = value
        concept = torch.tensor(_concepts(self._ontology), device=nan.device)
        same = concept[:, None] == concept  # groups of one concept exclude each other, and nothing is its own cue
        for value in vars(result).values():
            value[same] = torch.nan
        return result


def _concepts(ontology: Ontology) -> list[int]:
    """Of each label a number that groups of one concept share."""
    local = len(ontology.local)
    return [*range(local), *(local + k for k, concept in enumerate(ontology.global_) for _ in concept.groups)]


def _of_kind(ontology: Ontology, kind: int, source: Tensor, carried: Tensor, known: Tensor) -> _Source:
    images = (source == kind).nonzero().flatten()
    label = torch.tensor([c for c, k in enumerate(ontology.concept_kind) if k == kind], device=source.device)
    return _source(images, label, carried[images][:, label], label, other_labels(known[images], ontology))


def _of_global(ontology: Ontology, k: int, group: Tensor, known: Tensor) -> _Source:
    """The images of a global concept; what is known there of other global concepts is held fixed."""
    images = (group[:, k] >= 0).nonzero().flatten()
    first, last = (len(ontology.local) + offset for offset in ontology.group_offsets[k : k + 2])
    label = torch.arange(first, last, device=group.device)
    of_others = [
        group[images, j, None] == torch.arange(len(concept.groups), device=group.device)
        for j, concept in enumerate(ontology.global_)
        if j != k
    ]
    others = torch.cat([*of_others, other_labels(known[images], ontology, ontology.global_[k].name)], dim=1)
    return _source(images, label, group[images, k, None] == label - first, torch.zeros_like(label), others)


def _source(images: Tensor, label: Tensor, carried: Tensor, concept: Tensor, others: Tensor) -> _Source:
    """Some labels on some images, ``others`` of them held fixed."""
    apart = torch.full((others.shape[1],), -1, device=concept.device)
    found = contrasts(torch.cat([carried, others], dim=1), torch.cat([concept, apart]))
    return _Source(images, label, found.contrast[:, : len(label)], found.basis)


def _add(sums: list[EncodingSums]) -> EncodingSums:
    return EncodingSums(*(torch.stack(parts).sum(0) for parts in zip(*sums, strict=True)))
