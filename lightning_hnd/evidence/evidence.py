"""Evidence: what significance of a layer's pairings rests on, gathered as the dictionary streams by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.evidence.association import Kind
from lightning_hnd.evidence.groups import GroupEvidence
from lightning_hnd.evidence.places import MODES, Places, beside_mean, emphasised
from lightning_hnd.functional.host import averaged, summed
from lightning_hnd.functional.significance import exchanged_masks_test
from lightning_hnd.measuring.unit_table import UnitTable, rows_at_once
from lightning_hnd.showing.processes import ALONE, Processes

GRID = 16
"""Cells of maps on a side; larger maps are averaged down to it."""

_GATHERING = "gathering the evidence"


class Evidence:
    """What the units of one layer did at the places of concepts.

    What grows with the images is kept in memory or, after :meth:`spill`, in temporary files: four bytes for each of
    them, each unit, and each concept of the image's kind that can be absent and one more. What the labels of the images
    can tell, some hundred bytes for each, is kept with the dictionary.

    Args:
        faces: The dictionary that streams by.

    Example:
        >>> import torch
        >>> from lightning_hnd import FaceDictionary
        >>> from lightning_hnd.evidence.evidence import Evidence
        >>> faces = FaceDictionary.rendered(size=32, images=16)
        >>> evidence = Evidence(faces)
        >>> for batch in faces.batches():
        ...     evidence.update(torch.nn.functional.avg_pool2d(batch.images, 4), batch)
        >>> evidence.compute()["placed_z"].shape
        torch.Size([3, 38])
    """

    def __init__(self, faces: FaceDictionary) -> None:
        self._faces = faces
        self._kinds = [faces.once(Kind.of, kind) for kind in range(len(faces.ontology.kinds))]
        self._units = 0
        self._cells = (0, 0)
        self._sums = torch.zeros(0)  # [C, 5 K + 1, U] float64: of K modes a; the agreement; a^2, a^3, a^4 and a l
        self._responses = [_Seen() for _ in self._kinds]  # in rows of units, then as in Kind.rows
        not_fixed = {c: ~kind.fixed for kind in self._kinds for c in kind.tests if not bool(kind.fixed.all())}
        self._confoundable = [*not_fixed]  # by groups
        self._groups = GroupEvidence(faces, not_fixed)

    @property
    def kept_bytes(self) -> int:
        """Memory of what grows with the images."""
        return sum(seen.table.kept_bytes for seen in self._responses)

    def spill(self) -> None:
        """Moves what grows with the images to temporary files."""
        for seen in self._responses:
            seen.table.spill()

    def update(self, maps: Tensor, batch: DictionaryBatch) -> None:
        """Takes in one batch.

        Args:
            maps: ``[B, U, h, w]``.
            batch: Their images, of the dictionary.
        """
        maps = maps.contiguous()  # channels last would be added up in another order
        self._units, (height, width) = maps.shape[1], maps.shape[2:]
        grouped = (batch.group >= 0).any(1).nonzero().flatten()
        if not (len(grouped) or bool((batch.source >= 0).any())):
            return
        cells = self._cells = (min(height, GRID), min(width, GRID))
        places = Places.of(self._faces, cells)
        flat, scale = beside_mean(averaged(maps.float(), cells).flatten(2))  # [B, U, P], [B, U]

        def shown(rows: Tensor, concepts: Sequence[int]) -> Tensor:
            """How much more active units are at usual places, and at the mean over all cells: ``[b, A + 1, U]``."""
            where = torch.cat([places.usual[[*concepts]], torch.full((1, flat.shape[2]), 1 / flat.shape[2])])
            return where.to(flat) @ emphasised(_some(flat, rows), _some(scale, rows)).transpose(1, 2)

        if len(grouped):
            at_places = shown(grouped, self._confoundable)[:, :-1].transpose(1, 2)
            self._groups.update(_some(maps, grouped), at_places, batch.index[grouped])
        for kind, seen in zip(self._kinds, self._responses, strict=True):
            rows = (batch.source == kind.number).nonzero().flatten()
            if kind.concepts and len(rows):
                seen.images.append(batch.index[rows].cpu())
                if kind.tests:
                    seen.table.append(shown(rows, [*kind.tests]).permute(2, 1, 0).flatten(0, 1).contiguous())
        if len(batch.mask_image):
            self._update_masks(flat, scale, places, batch)

    def _update_masks(self, flat: Tensor, scale: Tensor, places: Places, batch: DictionaryBatch) -> None:
        """Takes in maps ``[B, U, P]`` of mean 0, and what makes their norm 1, at the masks of a batch."""
        images, count = batch.mask_image.unique_consecutive(return_counts=True)
        flat, scale = _some(flat, images), _some(scale, images)
        first = int(torch.searchsorted(self._faces.mask_image, batch.index[0].cpu()))
        masks = slice(first, first + len(batch.mask_image))  # those of the batch, in the dictionary
        row = torch.arange(len(count), device=count.device).repeat_interleave(count)
        at = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]  # among those of its image
        modes = places.modes.index_select(0, batch.mask_concept.cpu())
        lens = flat.new_zeros(len(images), int(count.max()), MODES + 1, flat.shape[2])  # 0 after an image's last mask
        lens[row, at] = torch.cat([modes, places.shape[masks].unsqueeze(1)], dim=1).to(flat)
        seen = (lens.flatten(1, 2) @ flat.transpose(1, 2)).unflatten(1, lens.shape[1:3])[row, at]  # [m, K + 1, U]
        seen = seen.mul_(scale[row].unsqueeze(1))
        a = seen[:, :MODES]  # beside it the agreement
        product, square = a * places.coefficient[masks].unsqueeze(2).to(a), a.square()
        concepts, slot = batch.mask_concept.unique(return_inverse=True)
        parts = (seen, square, square * a, square.square(), product)
        sums = [summed(part, slot, len(concepts)) for part in parts]
        if not len(self._sums):
            shape = (len(self._faces.ontology.local), 5 * MODES + 1, flat.shape[1])
            self._sums = torch.zeros(shape, dtype=torch.float64, device=flat.device)
        self._sums.index_add_(0, concepts, torch.cat(sums, dim=1).double())

    def compute(self, processes: Processes = ALONE) -> dict[str, Tensor]:
        """The test statistics.

        Args:
            processes: Each has gathered a share, and all get the result: that of all together. All call it.

        Returns:
            ``U`` units, ``C`` local concepts, ``G`` groups; NaN where a question does not apply or has no answer.

            - ``associated_z``, ``associated_effect``, ``associated_auc [U, C]``:
              :func:`~lightning_hnd.functional.significance.partial_rank_test` of how much more active a unit is at the
              concept's usual place than on average over its map (the mean of
              :func:`~lightning_hnd.evidence.places.emphasised` over the place), over the images of the concept's
              source, the other concepts of the source, and the groups that ``labels.csv`` tells of its images, being
              the other labels. z is 0 at most where the concept adds no more than the unit does there without it: its
              mean over the images that do not carry the concept, less that at the mean over all cells; the four largest
              and smallest responses count no more than the fifth
            - ``confound_ratio``, ``confound_group [U, C]``: how many times as large a difference as the concept a
              global concept makes to that (to its :func:`~lightning_hnd.evidence.groups.roots`, in standard deviations
              of what is left of it), and which group differs most, of what is not held fixed
              (:meth:`~lightning_hnd.evidence.groups.GroupEvidence.compute`); 0 and -1 where none makes any
            - ``placed_z``, ``placed_effect [U, C]``:
              :func:`~lightning_hnd.functional.significance.exchanged_masks_test`; z is 0 at most where the agreement is
            - ``placed_correlation [U, C, K]``, ``placed_share [C, K]``: of concepts without absence that of each mode
              of the masks, and how much it counts, mean over the units
            - ``agreement [U, C]``: the correlation between map and mask over the cells, mean over the images that
              carry the concept; NaN where none does
            - ``group_z``, ``group_effect [U, G]``: for a group whether the effect is above 0, of the peak, the mean and
              each cell, all other labels of ``labels.csv`` held fixed
              (:class:`~lightning_hnd.evidence.groups.GroupEvidence`)

        Raises:
            ValueError: If images with local labels were shown twice, or not at all.
        """
        units, concepts = self._units, len(self._faces.ontology.local)
        result = {
            f"{question}_{name}": torch.full((units, number), torch.nan, dtype=torch.float64)
            for question, names, number in (
                ("associated", ("z", "effect", "auc"), concepts),
                ("placed", ("z", "effect"), concepts),
            )
            for name in names
        }
        result["agreement"] = torch.full((units, concepts), torch.nan, dtype=torch.float64)
        result["placed_correlation"] = torch.full((units, concepts, MODES), torch.nan, dtype=torch.float32)
        result["placed_share"] = torch.full((concepts, MODES), torch.nan, dtype=torch.float64)
        with processes.together(_GATHERING):
            sums = [share.cpu() for share in (self._sums, *self._groups.sums)]
        with processes.together(_GATHERING):
            shares = processes.gather((self._cells, sums))
            local = [of_concepts for _, (of_concepts, *_) in shares if len(of_concepts)]
            if local:
                self._place(torch.stack(local).sum(0), max(cells for cells, _ in shares), result)
            groups = [of_groups for _, (_, *of_groups) in shares if of_groups]
            total = [torch.stack(own).sum(0) for own in zip(*groups, strict=True)]
            result |= self._groups.compute(total, units)
        of_groups = result.pop("confound_difference")
        result["confound_ratio"] = torch.zeros_like(of_groups)
        for kind, seen in zip(self._kinds, self._responses, strict=True):
            in_order = self._in_order(kind, seen.all_images(processes))
            for first, own in seen.blocks(units, kind.rows, len(in_order), processes):
                with processes.together(_GATHERING):
                    shown = torch.cat(processes.gather(own), dim=1)[:, in_order]
                    some = slice(first, first + len(shown) // kind.rows)
                    for name, value in kind.associated(shown, of_groups[some]).items():
                        result[name][some, [*kind.tests]] = value.cpu()
        return result

    def _in_order(self, kind: Kind, images: Tensor) -> Tensor:
        """Which of the images of a source that were seen, by whichever process, comes first, second, ..."""
        shown, in_order = images.sort()
        if kind.concepts and not torch.equal(shown, kind.images):
            name, different = self._faces.ontology.kinds[kind.number], len(shown.unique())
            raise ValueError(
                "evidence needs every image of the dictionary once; of those with labels of kind "
                f"{name!r} it has seen {len(shown)}, {different} of them different, of {len(kind.images)}"
            )
        return in_order

    def _place(self, sums: Tensor, cells: tuple[int, int], result: Mapping[str, Tensor]) -> None:
        sums = sums.permute(2, 0, 1)  # units first
        images = torch.tensor(self._faces.images_per_concept).double().expand(len(sums), -1)
        places = Places.of(self._faces, cells)
        weight, kurtosis = (part.double().expand(len(sums), -1, -1) for part in (places.weight, places.kurtosis))
        first, agreement, *higher, product = sums.split([MODES, 1, *[MODES] * 4], dim=2)
        test = exchanged_masks_test((first, *higher), product, images, weight, kurtosis)
        agreement = agreement.squeeze(2) / torch.where(images > 0, images, torch.nan)
        # what is less active inside the masks than outside, and moves with them, is on something beside the concept
        result["placed_z"][:] = torch.where(agreement > 0, test.z, test.z.clamp(max=0))
        result["placed_effect"][:], result["agreement"][:] = test.effect, agreement
        parts = [c for kind in self._kinds for c in kind.concepts if c not in kind.tests]
        result["placed_correlation"][:, parts] = test.correlation[:, parts].float()
        result["placed_share"][parts] = test.share[:, parts].mean(0)


class _Seen:
    """Numbers of units on images, and which images."""

    def __init__(self) -> None:
        self.table = UnitTable()
        self.images: list[Tensor] = []

    def all_images(self, processes: Processes) -> Tensor:
        """The images that all processes have seen, in the order of those of the processes."""
        with processes.together(_GATHERING):
            own = torch.cat([torch.zeros(0, dtype=torch.int64), *self.images])
        return torch.cat(processes.gather(own))

    def blocks(self, units: int, per_unit: int, images: int, processes: Processes) -> Iterator[tuple[int, Tensor]]:
        """The numbers of a few units at a time, which bounds memory: those of the images that this process has seen.

        Args:
            units: How many there are.
            per_unit: Rows of each.
            images: How many all processes have seen.
            processes: They read in step.

        Yields:
            The first unit and ``[rows, own images]``.
        """
        rows = units * per_unit if images else 0
        step = rows_at_once(images, max(1, per_unit))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            with processes.together(_GATHERING):
                own = self.table.rows(first, last) if self.table.units else torch.zeros(last - first, 0)
                own = own if processes.size == 1 else own.cpu()
            yield first // per_unit, own


def _some(values: Tensor, rows: Tensor) -> Tensor:
    """Some rows, ascending; not copied if they are all."""
    return values if len(rows) == len(values) else values.index_select(0, rows)
