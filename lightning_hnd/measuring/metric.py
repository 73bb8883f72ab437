"""DissectionMetric: what the units of one layer did, accumulated batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_hnd.concepts import PAPER, Ontology
from lightning_hnd.dictionary import DictionaryBatch
from lightning_hnd.dictionary.annotations import Annotations
from lightning_hnd.functional import Overlap, count_overlap, order_statistic
from lightning_hnd.measuring.bias import bias_statistics, image_sets
from lightning_hnd.measuring.kept_maps import KeptMaps, MapsAndMasks
from lightning_hnd.measuring.largest import Largest, thresholds
from lightning_hnd.measuring.peaks import exemplars, lowest, require_finite, responses
from lightning_hnd.measuring.unit_table import UnitTable
from lightning_hnd.rules import README


class DissectionMetric(Metric):
    r"""Statistics of the units of one layer over a Face Dictionary, from which any rule is applied later.

    As input to ``update`` the metric takes

    - ``activations`` (:class:`~torch.Tensor`): ``[B, U, h, w]``, the layer's maps of one batch of images
    - ``batch`` (:class:`~lightning_hnd.dictionary.DictionaryBatch`): the images' masks and labels

    As output of ``compute`` it returns a dict of tensors (``C`` local concepts, ``G`` groups of all global
    concepts in one row, ``E`` exemplars):

    - ``threshold [U]`` float64: the unit's threshold :math:`T_u`, infinite if there are no local images
    - ``low [U]``, ``high [U]``: its smallest and largest activation over the local images
    - ``dead [U]`` bool: whether its activation never varies over the dictionary
    - ``intersection``, ``firing``, ``mask``, ``mask_firing``, each ``[U, C]`` int64: the pixel counts of
      :class:`~lightning_hnd.functional.Overlap`
    - ``iou_labelled``, ``iou_firing``, each ``[U, C]`` float64: the two IoUs that follow from them
    - ``response [U, C]`` float64: :func:`~lightning_hnd.functional.concept_response`
    - ``group_probability [U, G]`` float64: :func:`~lightning_hnd.functional.group_affinity`
    - ``images_per_concept [C]``, ``images_per_group [G]`` int64: how many images these rest on
    - ``encoding_...``, ``shortcut_...``: how strongly the layer encodes groups, and which labels it takes for others,
      see :func:`~lightning_hnd.measuring.bias.bias_statistics`
    - ``exemplar_image [U, E]`` int64, ``exemplar_map [U, E, h, w]``: the local images on which the unit
      fires and peaks highest, as positions in the dictionary, and its maps there; -1 and zeros after the last

    The threshold needs every activation before a pixel can be counted. There are two ways to it, which give the same
    numbers to the last bit, whatever the order of the images:

    - *One pass.* Maps that can still exceed the threshold are kept. With ``num_local`` given, the ``k``-th largest
      value seen so far (``k`` from the quantile) only rises and never passes the final threshold, so that maps at or
      below it are let go at once.
    - *Two passes.* After :meth:`let_go`, at any time before the end of the first pass, no map is kept, and what must be
      remembered of every image goes to a temporary file. Then :meth:`fix_thresholds` is called and the same batches are
      given to :meth:`update` again, to be counted. Memory does not grow with the images.

    With several processes, which must all have the same dictionary, each counts the maps of its own images; what they
    exchange are each unit's peaks and largest values, and sums.

    Args:
        ontology: The concepts that the batches speak of.
        quantile: Fraction of a unit's activations that exceed its threshold.
        num_local: How many images with local labels there will be in all, over all processes.
        num_exemplars: ``E``.
        kwargs: Of :class:`torchmetrics.Metric`.

    A value for one batch alone has no meaning, so call ``update`` and ``compute``, not the metric itself.

    Raises:
        ValueError: If ``quantile`` is not in (0, 1).

    Example:
        >>> import torch
        >>> from lightning_hnd import DissectionMetric, FaceDictionary
        >>> faces = FaceDictionary.rendered(size=32, images=16)
        >>> metric = DissectionMetric(faces.ontology, num_local=faces.num_local)
        >>> for batch in faces.batches():
        ...     metric.update(torch.nn.functional.avg_pool2d(batch.images, 4), batch)
        >>> metric.compute()["iou_labelled"].shape
        torch.Size([3, 38])
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    digest: list[Tensor]
    index: list[Tensor]
    peak: list[Tensor]
    low: list[Tensor]
    top: list[Tensor]
    threshold: list[Tensor]
    exemplar_image: list[Tensor]
    counted: list[Tensor]
    counts: list[Tensor]
    exemplar_map: list[Tensor]

    _FIRST_PASS = ("digest", "index", "low")
    _LARGE = ("peak", "top")  # filled from tables when processes sync, empty otherwise
    _COUNTING = ("threshold", "exemplar_image", "counted", "counts", "exemplar_map")

    def __init__(
        self,
        ontology: Ontology = PAPER,
        quantile: float = README.quantile,
        *,
        num_local: int | None = None,
        num_exemplars: int = 4,
        **kwargs: Any,
    ) -> None:
        self._shapes: dict[str, torch.Size] = {}  # of what compute() found
        super().__init__(**kwargs)
        order_statistic(1, quantile)  # validates it
        self.ontology = ontology
        self.quantile = quantile
        self.num_local = num_local
        self.num_exemplars = num_exemplars
        for name in (*self._FIRST_PASS, *self._LARGE, *self._COUNTING):
            self.add_state(name, [], dist_reduce_fx="cat")
        self._begin()

    def reset(self) -> None:
        """Forgets all batches."""
        super().reset()
        self._begin()

    def _begin(self) -> None:
        self._map_shape: tuple[int, ...] = ()
        self._twice = False
        self._annotations: Annotations | None = None
        self._kept = KeptMaps()
        self._peaks = UnitTable()
        self._largest: Largest | None = None

    # ---------------------------------------------------------------------------------------------------- first pass

    def update(self, activations: Tensor, batch: DictionaryBatch) -> None:
        """Takes in one batch.

        Args:
            activations: ``[B, U, h, w]``, of any floating-point type.
            batch: The batch of dictionary images that they were computed from, on the same device.

        Raises:
            ValueError: If the shape is not that of maps of these images, or it or the type differs from the last
                batch's, or a value is not finite; if the batch is of another dictionary than the last one, or of
                other concepts than the metric's.
        """
        maps = self._shaped(activations, batch)
        local = batch.source >= 0
        peak, trough = maps.flatten(2).amax(-1), maps.flatten(2).amin(-1)
        require_finite(peak, trough)
        self._belong_together(batch)
        if self._twice and len(self.threshold):
            fires = (peak > self.threshold[0]) & local[:, None]
            self._count(MapsAndMasks.of(*_select(maps, fires), batch))
            self.counted.append(batch.index[local])
            return
        self.index.append(batch.index)
        self._peaks.append(peak.t())
        least = lowest(trough, batch)
        if not len(self.low):
            with torch.inference_mode(False):  # where it began, nobody could go on outside of it
                self.low = [torch.full_like(least, torch.inf)]
        # in its place: a new one that outlives the batch would settle where large ones have been, which then grow
        torch.minimum(self.low[0], least, out=self.low[0])
        if self._largest is None:
            num_values = None if self.num_local is None else self.num_local * maps.shape[2] * maps.shape[3]
            self._largest = Largest(num_values, self.quantile)
        floor = self._largest.floor
        can_fire = local[:, None] & (torch.ones_like(peak, dtype=torch.bool) if floor is None else peak > floor)
        image, unit, some = _select(maps, can_fire)
        if floor is None:
            self._largest.add_all(maps[local])
        else:
            self._largest.add(some, unit)
        if not self._twice:
            for name in self._COUNTING:  # of an earlier compute(): there is more now
                setattr(self, name, [])
            self._kept.append(MapsAndMasks.of(image, unit, some, batch))
            self._kept.drop_below(self._largest.floor)

    def _shaped(self, activations: Tensor, batch: DictionaryBatch) -> Tensor:
        if activations.ndim != 4 or activations.shape[0] != len(batch.index):
            raise ValueError(
                f"activations must be [{len(batch.index)}, U, h, w], a map of each unit for each image of the "
                f"batch, got {list(activations.shape)}"
            )
        if not self._map_shape:
            self._map_shape = tuple(activations.shape[1:])
        elif self._map_shape != tuple(activations.shape[1:]):
            raise ValueError(f"maps [U, h, w] were {list(self._map_shape)} and are now {list(activations.shape[1:])}")
        maps = activations.detach().contiguous()
        maps = maps if maps.dtype == torch.float64 else maps.float()
        if len(self.low) and maps.dtype != self.low[0].dtype:
            raise ValueError(f"maps were {self.low[0].dtype} and are now {maps.dtype}")
        return maps

    def _belong_together(self, batch: DictionaryBatch) -> None:
        annotations = batch.dictionary.annotations
        if annotations.ontology != self.ontology:
            raise ValueError(
                "the batches speak of other concepts than the metric; make it with ontology=dictionary.ontology"
            )
        if self._annotations is None:
            self._annotations = annotations
            self.digest.append(torch.tensor([annotations.digest], device=batch.index.device))
        elif self._annotations is not annotations and self._annotations.digest != annotations.digest:
            raise ValueError("the batches are of two dictionaries; use a metric for each, or reset() it in between")

    # ------------------------------------------------------------------------------------------------------ counting

    @property
    def kept_bytes(self) -> int:
        """Memory of the maps that are kept for counting."""
        return self._kept.bytes

    @property
    def needs_second_pass(self) -> bool:
        """Whether the images must be seen a second time: :meth:`let_go` was called."""
        return self._twice

    def let_go(self) -> None:
        """Drops the maps and keeps none from now on: the images will be seen a second time."""
        self._twice = True
        self._kept = KeptMaps()
        self._peaks.spill()
        if self._largest is not None:
            self._largest.table.spill()

    def fix_thresholds(self) -> None:
        """Ends the first pass. Called by :meth:`compute`; with two passes call it between them, in all processes.

        Raises:
            ValueError: If there were not as many local images as ``num_local`` said, or no image at all, or processes
                have shown images of different dictionaries.
        """
        if len(self.threshold):
            return
        super().sync(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute)
        try:
            state = self._state(self._FIRST_PASS)
            if len(state["digest"].unique()) > 1:
                raise ValueError("the processes have shown different dictionaries; all must be given the same one")
            local = self._local(self._known(state["index"]))
            threshold = self._threshold(state, int(local.sum()))
            parts = self._by_units(threshold[None])
            index, number = state["index"][local], self.num_exemplars
            exemplar_image = torch.cat([exemplars(p[local], index, t[0], number) for p, t in parts])
        finally:
            if self._is_synced:
                self.unsync()
        units, concepts = len(threshold), len(self.ontology.local)
        self.threshold, self.exemplar_image = [threshold], [exemplar_image]
        with torch.inference_mode(False):  # as above
            self.counts = [torch.zeros(1, 4, units, concepts, dtype=torch.int64, device=threshold.device)]
            empty = torch.zeros(1, *exemplar_image.shape, *self._map_shape[1:], dtype=state["low"].dtype)
            self.exemplar_map = [empty.to(threshold.device)]
        for some in self._kept.together():
            self._count(some)

    def _count(self, kept: MapsAndMasks) -> None:
        self.counts[0] += torch.stack(
            count_overlap(
                kept.maps,
                kept.unit,
                kept.image,
                self.threshold[0],
                kept.masks,
                kept.mask_image,
                kept.mask_concept,
                len(self.ontology.local),
            )
        )
        place = (self.exemplar_image[0][kept.unit] == kept.image[:, None]).nonzero()
        self.exemplar_map[0][0, kept.unit[place[:, 0]], place[:, 1]] = kept.maps[place[:, 0]]

    def _threshold(self, state: dict[str, Tensor], seen: int) -> Tensor:
        units, height, width = self._map_shape
        num_values = seen * height * width
        if seen == 0:  # nothing local to measure with: no unit fires
            return state["low"].new_full((units,), torch.inf, dtype=torch.float64)
        assert self._largest is not None
        return thresholds(self._table("top", self._largest.table), num_values, self.quantile)

    # -------------------------------------------------------------------------------------------------------- result

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As in :class:`torchmetrics.Metric`; before it, each process counts its own images."""
        self.fix_thresholds()
        super().sync(*args, **kwargs)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        assert self._largest is not None
        for name, table in (("peak", self._peaks), ("top", self._largest.table)):
            setattr(self, name, [torch.cat(list(table.blocks())).t()])  # travels as a state does, and is not kept
        super()._sync_dist(*args, **kwargs)

    def _wrap_compute(self, compute: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """As in torchmetrics, which makes numbers of vectors of one element, though: those of a layer of one unit."""

        @functools.wraps(compute)
        def found() -> dict[str, Tensor]:
            statistics = compute()
            self._shapes = {name: value.shape for name, value in statistics.items()}
            return statistics

        wrapped = super()._wrap_compute(found)

        @functools.wraps(compute)
        def whole() -> dict[str, Tensor]:
            return {name: value.view(self._shapes[name]) for name, value in wrapped().items()}

        return whole

    def compute(self) -> dict[str, Tensor]:
        """The statistics, as the class describes them.

        Raises:
            ValueError: If there were not as many local images as ``num_local`` said, or no image at all, or the second
                of two passes saw other images than the first.
        """
        state = self._state((*self._FIRST_PASS, *self._COUNTING))
        known = self._known(state["index"])
        local = self._local(known)
        if self._twice and not torch.equal(*(x.sort().values for x in (state["counted"], state["index"][local]))):
            raise ValueError("the second pass must show the same images as the first, each once")
        units = state["exemplar_map"].shape[1]
        low = state["low"].view(-1, 2 + len(self.ontology.global_), units).amin(0)
        parts = [responses(known, peak, part) for peak, part in self._by_units(low)]
        dead = torch.cat([part["dead"] for part in parts])
        overlap = Overlap(*state["counts"].sum(0))
        index, in_order = state["index"].sort()  # whatever the order of the batches
        assert self._annotations is not None
        sets = [own.among(in_order) for own in self._annotations.of(index).once(image_sets)]
        return {
            "threshold": state["threshold"][:units],  # all processes found the same
            "low": low[1] if bool(local.any()) else torch.zeros_like(low[1]),
            **{name: torch.cat([part[name] for part in parts]) for name in parts[0]},
            **bias_statistics(self.ontology, sets, self._table("peak", self._peaks), int((~dead).sum())),
            **overlap._asdict(),
            "iou_labelled": overlap.iou(),
            "iou_firing": overlap.iou(firing_only=True),
            "images_per_concept": known.carried.sum(0),
            "images_per_group": torch.cat(
                [
                    torch.bincount(group[group >= 0], minlength=len(concept.groups))
                    for concept, group in zip(self.ontology.global_, known.group.unbind(1), strict=True)
                ]
                or [state["index"].new_zeros(0)]
            ),
            "exemplar_image": state["exemplar_image"][:units],
            "exemplar_map": state["exemplar_map"].sum(0),
        }

    def _by_units(self, low: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The peaks ``[N, some units]`` and the part of ``low`` for a few units at a time, which bounds memory."""
        first = 0
        for peak in self._table("peak", self._peaks).blocks():
            yield peak.t(), low[:, first : first + len(peak)]
            first += len(peak)

    def _table(self, name: str, own: UnitTable) -> UnitTable:
        """A table of all processes, where they have synced."""
        synced: Any = getattr(self, name)  # a tensor then
        if not isinstance(synced, Tensor):
            return own
        table = UnitTable()
        table.append(synced.t())
        return table

    def _state(self, names: Sequence[str]) -> dict[str, Tensor]:
        if not len(self.index):
            raise ValueError("the metric has seen no image; call update() on each batch of the dictionary first")
        states = {name: getattr(self, name) for name in names}  # lists of tensors, or tensors once synced
        return {name: dim_zero_cat(value) for name, value in states.items() if len(value)}

    def _known(self, index: Tensor) -> Annotations:
        """What is known of the images, where their positions are."""
        assert self._annotations is not None
        return self._annotations.of(index).to(index.device)

    def _local(self, known: Annotations) -> Tensor:
        local = known.source >= 0
        if self.num_local is not None and int(local.sum()) != self.num_local:
            raise ValueError(
                f"the metric has seen {int(local.sum())} images with local labels; {self.num_local} expected"
            )
        return local


def _select(maps: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Some of the maps ``[B, U, h, w]``, by unit: the image and the unit of each, and the maps ``[R, h, w]``."""
    unit, image = which.t().nonzero(as_tuple=True)
    return image, unit, maps.flatten(0, 1).index_select(0, image * maps.shape[1] + unit)
