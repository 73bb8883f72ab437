"""Evidence: what significance of a layer's pairings rests on, gathered as the dictionary streams by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.functional.significance import exchanged_masks_test, partial_rank_test, stratified_rank_test

MODES = 8
"""Principal components of a concept's masks that are looked at."""

GRID = 16
"""Cells of maps on a side; larger maps are averaged down to it."""

_CHUNK = 64  # masks that are spread out at a time
_AGES = (20.0, 40.0, 60.0)
_BINS = 4  # for labels that are numbers, and of which no groups are known

_known: WeakKeyDictionary[FaceDictionary, dict[tuple[int, int], Places]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Places:
    """Where the concepts of a dictionary are, as maps see it.

    Attributes:
        usual: ``[C, P]``, the mean of a concept's masks over the ``P`` cells, adding up to 1.
        modes: ``[C, K, P]``, how they differ from face to face: principal components.
        weight: ``[C, K]``, how much, as standard deviations; the squares add up to 1. 0 for concepts without masks.
        coefficient: ``[M, K]``, of each mask, with mean 0 and variance 1 over the masks of its concept.
        shape: ``[M, P]``, each mask, with mean 0 and norm 1 over the cells.
    """

    usual: Tensor
    modes: Tensor
    weight: Tensor
    coefficient: Tensor
    shape: Tensor

    @classmethod
    def of(cls, faces: FaceDictionary, cells: tuple[int, int]) -> Places:
        """The places of a dictionary's concepts on a grid; found once, and remembered with the dictionary."""
        known = _known.setdefault(faces, {})
        if cells not in known:
            known[cells] = cls._find(faces, cells)
        return known[cells]

    @classmethod
    def _find(cls, faces: FaceDictionary, cells: tuple[int, int]) -> Places:
        concepts, size = len(faces.ontology.local), cells[0] * cells[1]
        parts = [
            functional.adaptive_avg_pool2d(faces.masks[first : first + _CHUNK].dense().float(), cells)
            for first in range(0, len(faces.masks), _CHUNK)
        ]
        share = torch.cat([torch.zeros(0, *cells), *parts]).flatten(1)
        usual, modes = torch.zeros(concepts, size), torch.zeros(concepts, MODES, size)
        weight, coefficient = torch.zeros(concepts, MODES), torch.zeros(len(share), MODES)
        for c in faces.mask_concept.unique().tolist():
            own = faces.mask_concept == c
            usual[c] = share[own].mean(0)
            _, values, directions = torch.linalg.svd(share[own] - usual[c], full_matrices=False)
            rank = min(MODES, int((values > 1e-3 * values.sum().clamp(min=1e-9)).sum()))
            modes[c, :rank], weight[c, :rank] = directions[:rank], values[:rank] / values[:rank].norm().clamp(min=1e-9)
            found = (share[own] - usual[c]) @ directions[:rank].T
            coefficient[own, :rank] = found / found.square().mean(0).sqrt()
        return cls(usual / usual.sum(1, keepdim=True).clamp(min=1e-9), modes, weight, coefficient, _standardised(share))


class Evidence:
    """What the units of one layer did at the places of concepts.

    Args:
        faces: The dictionary that streams by.

    Example:
        >>> import torch
        >>> from lightning_hnd import FaceDictionary
        >>> from lightning_hnd.evidence import Evidence
        >>> faces = FaceDictionary.rendered(size=32, images=16)
        >>> evidence = Evidence(faces)
        >>> for batch in faces.batches():
        ...     evidence.update(torch.nn.functional.avg_pool2d(batch.images, 4), batch)
        >>> evidence.compute()["placed_z"].shape
        torch.Size([3, 38])
    """

    def __init__(self, faces: FaceDictionary) -> None:
        self._faces = faces
        self._places: Places | None = None
        self._cells = (0, 0)
        self._sums = torch.zeros(0)  # [4, C, U, K]: a, a^2, a l, and in the first of K the agreement
        self._responses: dict[int, list[Tensor]] = {kind: [] for kind in range(len(faces.ontology.kinds))}
        self._images: dict[int, list[Tensor]] = {kind: [] for kind in range(len(faces.ontology.kinds))}
        self._peaks: list[Tensor] = []
        self._shown: list[Tensor] = []

    def update(self, maps: Tensor, batch: DictionaryBatch) -> None:
        """Takes in one batch.

        Args:
            maps: ``[B, U, h, w]``.
            batch: Their images, of the dictionary.
        """
        maps = maps.contiguous()  # channels last would be added up in another order
        shown = (batch.group >= 0).any(1)
        self._peaks.append(maps[shown].flatten(2).amax(2).float())
        self._shown.append(batch.index[shown].cpu())
        local = batch.source >= 0
        if not bool(local.any()):
            return
        height, width = maps.shape[2:]
        cells = self._cells = (min(height, GRID), min(width, GRID))
        if self._places is None:
            self._places = Places.of(self._faces, cells)
            self._sums = torch.zeros(4, len(self._faces.ontology.local), maps.shape[1], MODES, dtype=torch.float64)
        maps = maps.float() if cells == (height, width) else functional.adaptive_avg_pool2d(maps.float(), cells)
        first = int(torch.searchsorted(self._faces.mask_image, batch.index[:1].cpu()))
        for kind in batch.source[local].unique().tolist():
            self._update_kind(kind, maps, batch, first)

    def _update_kind(self, kind: int, maps: Tensor, batch: DictionaryBatch, first: int) -> None:
        """Takes in the images of one source."""
        assert self._places is not None
        places, device = self._places, maps.device
        concepts = [c for c, k in enumerate(self._faces.ontology.concept_kind) if k == kind]
        rows = (batch.source == kind).nonzero().flatten()
        flat = maps[rows].flatten(2)  # [b, U, P]
        self._responses[kind].append(flat @ places.usual[concepts].T.to(device))
        self._images[kind].append(batch.index[rows].cpu())
        flat = _standardised(flat)
        of_kind = batch.mask_image.new_zeros(len(batch.source), dtype=torch.bool)
        of_kind[rows] = True
        mask = of_kind[batch.mask_image].nonzero().flatten()
        row = torch.searchsorted(rows, batch.mask_image[mask])
        concept, mask = batch.mask_concept[mask], (mask + first).cpu()
        for c in concepts:
            of_concept = concept == c
            if not bool(of_concept.any()):
                continue
            own, which = flat[row[of_concept]], mask[of_concept.cpu()]
            a = own @ places.modes[c].T.to(device)  # [n, U, K]
            agreement = (own @ places.shape[which].to(device).unsqueeze(2)).squeeze(2)  # [n, U]
            product = torch.einsum("nuk,nk->uk", a, places.coefficient[which].to(device))
            found = torch.stack([a.sum(0), a.square().sum(0), product, torch.zeros_like(product)]).double()
            found[3, :, 0] = agreement.sum(0)
            self._sums[:, c] += found.cpu()

    def state(self) -> dict[str, Any]:
        """What has been gathered: plain data, to be joined with that of other processes."""
        own = {name: value for name, value in vars(self).items() if name not in ("_faces", "_places")}
        return {name: dict(value) if isinstance(value, dict) else value for name, value in own.items()}

    def join(self, states: Sequence[dict[str, Any]]) -> None:
        """Takes what several processes have gathered, this one among them, in place of its own."""
        for kind in self._responses:
            self._responses[kind] = [part for state in states for part in state["_responses"][kind]]
            self._images[kind] = [part for state in states for part in state["_images"][kind]]
        self._peaks = [part for state in states for part in state["_peaks"]]
        self._shown = [part for state in states for part in state["_shown"]]
        sums = [state["_sums"] for state in states if len(state["_sums"])]
        if sums:
            self._sums, self._cells = torch.stack(sums).sum(0), max(state["_cells"] for state in states)

    def compute(self) -> dict[str, Tensor]:
        """The test statistics.

        Returns:
            ``U`` units, ``C`` local concepts, ``G`` groups; NaN where a question does not apply or has no answer.

            - ``associated_z``, ``associated_effect``, ``associated_auc [U, C]``:
              :func:`~lightning_hnd.functional.significance.partial_rank_test` of the mean activation at the concept's
              usual place, over the images of the concept's source, the other concepts of the source being the other
              labels
            - ``placed_z``, ``placed_effect [U, C]``:
              :func:`~lightning_hnd.functional.significance.exchanged_masks_test`
            - ``agreement [U, C]``: the correlation between map and mask over the cells, mean over the images that
              carry the concept; NaN where none does
            - ``group_z``, ``group_effect``, ``group_auc [U, G]``:
              :func:`~lightning_hnd.functional.significance.stratified_rank_test` of the peaks, over the images of
              the global concept, in strata of what else is known of them
        """
        peaks, shown = torch.cat([part.cpu() for part in self._peaks]), torch.cat(self._shown)
        units, concepts = peaks.shape[1], len(self._faces.ontology.local)
        result = {
            name: torch.full((units, concepts), torch.nan, dtype=torch.float64)
            for name in (
                "associated_z",
                "associated_effect",
                "associated_auc",
                "placed_z",
                "placed_effect",
                "agreement",
            )
        }
        if len(self._sums):
            places = self._places or Places.of(self._faces, self._cells)
            count = torch.tensor(self._faces.images_per_concept).double()[:, None].expand(-1, units)
            weight = places.weight.double()[:, None].expand(-1, units, -1)
            sum_, square, product = self._sums[:3]
            z, effect = exchanged_masks_test(sum_, square, product, count, weight)
            result["placed_z"], result["placed_effect"] = z.T, effect.T
            result["agreement"] = (self._sums[3, :, :, 0] / torch.where(count > 0, count, torch.nan)).T
            self._associate(result)
        return {**result, **_groups(self._faces, peaks, shown)}

    def _associate(self, result: Mapping[str, Tensor]) -> None:
        ontology = self._faces.ontology
        carried = torch.zeros(len(self._faces), len(ontology.local), dtype=torch.bool)
        carried[self._faces.mask_image, self._faces.mask_concept] = True
        for kind, parts in self._responses.items():
            if not parts:
                continue
            concepts = [c for c, k in enumerate(ontology.concept_kind) if k == kind]
            labels = carried[torch.cat(self._images[kind])][:, concepts]
            response = torch.cat([part.cpu() for part in parts])
            for i, c in enumerate(concepts):
                others = torch.cat([labels[:, :i], labels[:, i + 1 :]], dim=1)
                test = partial_rank_test(response[:, :, i], labels[:, i], others)
                for name, value in test._asdict().items():
                    result[f"associated_{name}"][:, c] = value


def _standardised(values: Tensor) -> Tensor:
    """With mean 0 and norm 1 over the last dimension; 0 where constant."""
    centred = values - values.mean(-1, keepdim=True)
    norm = centred.norm(dim=-1, keepdim=True)
    return torch.where(norm > 1e-6 * values.abs().amax(-1, keepdim=True), centred / norm.clamp(min=1e-30), 0.0)


def _groups(faces: FaceDictionary, peaks: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """Tests of groups, concept by concept."""
    ontology, group = faces.ontology, faces.group[shown]
    tests = []
    for k, concept in enumerate(ontology.global_):
        rows = group[:, k] >= 0
        stratum = strata(faces, concept.name, shown[rows])
        tests.append(stratified_rank_test(peaks[rows], group[rows, k], len(concept.groups), stratum))
    empty = torch.zeros(peaks.shape[1], 0, dtype=torch.float64)
    return {
        f"group_{name}": torch.cat([empty, *(getattr(test, name) for test in tests)], dim=1)
        for name in ("z", "effect", "auc")
    }


def strata(faces: FaceDictionary, concept: str, images: Tensor) -> Tensor:
    """Numbers images so that equal ones are alike in all labels of ``labels.csv`` that name another global concept.

    Args:
        faces: The dictionary.
        concept: The global concept that is asked about, which is not looked at.
        images: ``[n]`` int64, positions in the dictionary.

    Returns:
        ``[n]`` int64. Ethnicity and skin tone are not held fixed for each other: they hardly differ.
    """
    akin = {"ethnicity": {"skin_tone"}, "skin_tone": {"ethnicity"}}.get(concept, set()) | {concept}
    stratum = torch.zeros(len(images), dtype=torch.int64)
    for other in faces.ontology.global_:
        if other.name not in akin and len(images):
            values = [faces.labels[i].get(other.name, "") for i in images.tolist()]
            stratum = stratum * (1 + len(values)) + torch.tensor(_as_numbers(other.name, values))
    numbered: Tensor = stratum.unique(return_inverse=True)[1]
    return numbered


def _as_numbers(name: str, values: list[str]) -> list[int]:
    """Equal labels get equal numbers; of numbers those between the same bounds do."""
    try:
        numbers = torch.tensor([float(value) if value else torch.nan for value in values])
    except ValueError:
        known = {value: i for i, value in enumerate(dict.fromkeys(values))}
        return [known[value] for value in values]
    bounds = torch.tensor(_AGES) if name == "age" else numbers.nanquantile(torch.arange(1, _BINS) / _BINS)
    binned: list[int] = torch.where(numbers.isnan(), -1, torch.bucketize(numbers, bounds, right=True)).add(1).tolist()
    return binned
