"""Association: whether units respond more where a concept is present, all else that labels say being equal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dictionary.known import held_fixed, other_labels
from lightning_hnd.evidence.groups import roots
from lightning_hnd.functional.host import argsort
from lightning_hnd.functional.labels import LEAST_IMAGES
from lightning_hnd.functional.ranks import ranks_and_step, within_the_few
from lightning_hnd.functional.significance import Contrast


@dataclass(frozen=True)
class Kind:
    """The concepts of one source.

    Attributes:
        number: The source.
        images: ``[n]`` int64, those that it labels.
        concepts: ``L`` concepts that have masks.
        tests: Of those ``A`` of them that enough images carry and enough do not the contrast over the source's images:
            other concepts, and what ``labels.csv`` says of groups, held fixed.
        fixed: ``[K]`` bool, the global concepts of which it says enough for that.
    """

    number: int
    images: Tensor
    concepts: list[int]
    tests: dict[int, Contrast]
    fixed: Tensor

    @property
    def rows(self) -> int:
        """Numbers that are kept of a unit and an image: at the place of each concept tested, and at all cells."""
        return len(self.tests) + 1 if self.tests else 0

    def associated(self, shown: Tensor, differ: Tensor) -> dict[str, Tensor]:
        """Whether units are associated with the concepts tested, and how much larger a difference groups make.

        Args:
            shown: ``[U * (A + 1), n]``, what is kept of units, see :attr:`rows`, over ``images``.
            differ: ``[U, C]``, the largest difference that a global concept makes, of all local concepts.

        Returns:
            Of what :meth:`~lightning_hnd.evidence.evidence.Evidence.compute` returns ``associated_z``,
            ``associated_effect``, ``associated_auc`` and ``confound_ratio``, each ``[U, A]``.
        """
        order = argsort(shown)
        ranks, step = ranks_and_step(shown, order)
        bounded = within_the_few(shown, order, LEAST_IMAGES).double()
        anywhere = bounded[self.rows - 1 :: self.rows]
        found = []
        for i, (c, contrast) in enumerate(self.tests.items()):
            own = slice(i, None, self.rows)
            test = contrast.of_ranks(ranks[own], step[own])
            absent = (~contrast.label).to(bounded)
            without = (bounded[own] @ absent - anywhere @ absent) / absent.sum()
            # what is on a place anyway answers a little to all that makes what lies there larger
            matters = contrast.difference(bounded[own]) > without
            z, ratio = torch.where(matters, test.z, test.z.clamp(max=0)), torch.zeros_like(test.z)
            differs = differ[:, c].to(ratio)
            if bool((differs > 0).any()):
                made = contrast.standardised_difference(roots(shown[own].double())).clamp(min=0)
                ratio = torch.where(differs > 0, differs / made, 0.0)
            found.append((z, test.effect, test.auc, ratio))
        names = ("associated_z", "associated_effect", "associated_auc", "confound_ratio")
        return {name: torch.stack(part, dim=1) for name, part in zip(names, zip(*found, strict=True), strict=True)}

    @classmethod
    def of(cls, faces: FaceDictionary, kind: int) -> Kind:
        """Finds what the labels of a source let be asked."""
        images, count = (faces.source == kind).nonzero().flatten(), faces.images_per_concept
        concepts = [c for c, k in enumerate(faces.ontology.concept_kind) if k == kind and count[c]]
        absent = [c for c in concepts if LEAST_IMAGES <= count[c] <= len(images) - LEAST_IMAGES]
        tests = {c: Contrast.of(*label_and_others(faces, c)) for c in absent}
        return cls(kind, images, concepts, tests, held_fixed(faces.known[images]))


def label_and_others(faces: FaceDictionary, concept: int) -> tuple[Tensor, Tensor]:
    """Which images of its source carry a local concept ``[n]``, and what is held fixed when that is asked ``[n, L]``.

    That is the other concepts of the source that have masks, and the groups that ``labels.csv`` tells of its images.
    """
    kinds = faces.ontology.concept_kind
    images = (faces.source == kinds[concept]).nonzero().flatten()
    beside = [o for o, k in enumerate(kinds) if k == kinds[concept] and o != concept and faces.images_per_concept[o]]
    carried = faces.carried[images]
    others = [carried[:, beside], other_labels(faces.known[images], faces.ontology)]
    return carried[:, concept], torch.cat(others, dim=1)
