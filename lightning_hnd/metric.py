"""DissectionMetric: what the units of one layer did, accumulated batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_hnd.concepts import PAPER, Ontology
from lightning_hnd.dictionary import DictionaryBatch
from lightning_hnd.functional import (
    Overlap,
    concept_response,
    count_overlap,
    group_affinity,
    order_statistic,
    quantile_from_top,
)
from lightning_hnd.functional.masks import CutMasks
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
    - ``exemplar_image [U, E]`` int64, ``exemplar_map [U, E, h, w]``: the local images on which the unit
      fires and peaks highest, as positions in the dictionary, and its maps there; -1 and zeros after the last

    The threshold needs every activation before a pixel can be counted. What can still exceed it is kept: with
    ``num_local`` given, the ``k``-th largest value seen so far (``k`` from the quantile) only rises and never
    passes the final threshold, so that maps at or below it are let go at once. Without ``num_local`` every
    local map is kept. The result is the same to the last bit, and does not depend on the order of the images.

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

    index: list[Tensor]
    source: list[Tensor]
    group: list[Tensor]
    peak: list[Tensor]
    trough: list[Tensor]
    top: list[Tensor]
    maps: list[Tensor]
    map_unit: list[Tensor]
    map_image: list[Tensor]
    mask_box: list[Tensor]
    mask_words: list[Tensor]
    mask_image: list[Tensor]
    mask_concept: list[Tensor]

    _STATES = (
        *("index", "source", "group", "peak", "trough", "top"),
        *("maps", "map_unit", "map_image", "mask_box", "mask_words", "mask_image", "mask_concept"),
    )

    def __init__(
        self,
        ontology: Ontology = PAPER,
        quantile: float = README.quantile,
        *,
        num_local: int | None = None,
        num_exemplars: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        order_statistic(1, quantile)  # validates it
        self.ontology = ontology
        self.quantile = quantile
        self.num_local = num_local
        self.num_exemplars = num_exemplars
        self._map_shape: tuple[int, ...] = ()
        self._mask_size: tuple[int, int] = (0, 0)
        for name in self._STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, activations: Tensor, batch: DictionaryBatch) -> None:
        """Takes in one batch.

        Args:
            activations: ``[B, U, h, w]``, of any floating-point type.
            batch: The batch of dictionary images that they were computed from, on the same device.

        Raises:
            ValueError: If the shape is not that of maps of these images, or differs from the last batch's, or
                a value is not finite.
        """
        maps = self._checked(activations, batch)
        local = batch.source >= 0
        flat = maps.flatten(2)
        peak = flat.amax(-1)
        self.index.append(batch.index)
        self.source.append(batch.source)
        self.group.append(batch.group)
        self.peak.append(peak)
        self.trough.append(flat.amin(-1))
        cut = batch.masks.cut((maps.shape[2], maps.shape[3])).to(maps.device)
        self.mask_box.append(cut.box)
        self.mask_words.append(cut.words)
        self.mask_image.append(batch.index[batch.mask_image])
        self.mask_concept.append(batch.mask_concept)
        self._keep_what_can_fire(maps[local], peak[local], batch.index[local])

    def _checked(self, activations: Tensor, batch: DictionaryBatch) -> Tensor:
        if activations.ndim != 4 or activations.shape[0] != len(batch.index):
            raise ValueError(
                f"activations must be [{len(batch.index)}, U, h, w], a map of each unit for each image of the "
                f"batch, got {list(activations.shape)}"
            )
        if not self.peak:
            self._map_shape, self._mask_size = tuple(activations.shape[1:]), batch.size
        elif self._map_shape != tuple(activations.shape[1:]):
            raise ValueError(f"maps [U, h, w] were {list(self._map_shape)} and are now {list(activations.shape[1:])}")
        maps = activations.detach()
        maps = maps if maps.dtype == torch.float64 else maps.float()
        finite = maps.isfinite().flatten(2).all(-1).all(0)
        if not bool(finite.all()):
            bad = (~finite).nonzero().flatten().tolist()
            raise ValueError(
                f"{len(bad)} of {len(finite)} units have activations that are NaN or infinite (the first is unit "
                f"{bad[0]}); the model has diverged, or its input is not what it was made for"
            )
        return maps

    def _keep_what_can_fire(self, maps: Tensor, peak: Tensor, index: Tensor) -> None:
        units, height, width = self._map_shape
        if not self.num_local:
            floor = peak.new_full((units,), -torch.inf)
        else:
            k, _ = order_statistic(self.num_local * height * width, self.quantile)
            values = torch.cat([*(top.t() for top in self.top), maps.transpose(0, 1).flatten(1)], dim=1)
            top = values.topk(min(k, values.shape[1]), dim=1, sorted=False).values
            self.top = [top.t().contiguous()]
            floor = top.amin(1) if top.shape[1] == k else peak.new_full((units,), -torch.inf)
        image, unit = (peak > floor).nonzero(as_tuple=True)
        self.maps.append(maps[image, unit])
        self.map_unit.append(unit)
        self.map_image.append(index[image])
        # the floor has risen: once in a while, let go what it has passed
        if len(self.maps) > 1 and sum(map(len, self.maps[1:])) > len(self.maps[0]):
            kept, unit = torch.cat(self.maps), torch.cat(self.map_unit)
            alive = kept.flatten(1).amax(-1) > floor[unit]
            self.maps, self.map_unit = [kept[alive]], [unit[alive]]
            self.map_image = [torch.cat(self.map_image)[alive]]

    def compute(self) -> dict[str, Tensor]:
        """The statistics, as the class describes them.

        Raises:
            ValueError: If there were not as many local images as ``num_local`` said, or no image at all.
        """
        if not len(self.index):
            raise ValueError("the metric has seen no image; call update() on each batch of the dictionary first")
        states = {name: getattr(self, name) for name in self._STATES}  # lists of tensors, or tensors once synced
        state = {name: dim_zero_cat(value) for name, value in states.items() if len(value)}
        local = state["source"] >= 0
        seen = int(local.sum())
        if self.num_local is not None and seen != self.num_local:
            raise ValueError(f"the metric has seen {seen} images with local labels; {self.num_local} expected")
        peak, trough = state["peak"], state["trough"]
        threshold = self._threshold(state, seen)
        overlap, exemplars = self._overlap(state, threshold)
        concepts = len(self.ontology.local)
        carries = torch.zeros(int(state["index"].max()) + 1, concepts, dtype=torch.bool, device=peak.device)
        carries[state["mask_image"], state["mask_concept"]] = True
        carries = carries[state["index"]]
        low, high = (trough[local].amin(0), peak[local].amax(0)) if seen else (peak[0] * 0, peak[0] * 0)
        region = torch.tensor(self.ontology.concept_region, device=peak.device)
        return {
            "threshold": threshold,
            "low": low,
            "high": high,
            "dead": trough.amin(0) == peak.amax(0),
            **overlap._asdict(),
            "iou_labelled": overlap.iou(),
            "iou_firing": overlap.iou(firing_only=True),
            "response": concept_response(peak[local], low, high, carries[local], region),
            **self._groups(peak, trough, state["group"]),
            "images_per_concept": carries.sum(0),
            **exemplars,
        }

    def _threshold(self, state: dict[str, Tensor], seen: int) -> Tensor:
        units, height, width = self._map_shape
        num_values = seen * height * width
        if seen == 0:  # nothing local to measure with: no unit fires
            return state["peak"].new_full((units,), torch.inf, dtype=torch.float64)
        k, _ = order_statistic(num_values, self.quantile)
        if self.num_local is None:  # then every local map was kept, all units of one image together
            values = state["maps"].view(seen, units, -1).transpose(0, 1).flatten(1)
        else:
            values = state["top"].view(-1, units).t()
        return quantile_from_top(values.topk(k, dim=1).values, num_values, self.quantile)

    def _overlap(self, state: dict[str, Tensor], threshold: Tensor) -> tuple[Overlap, dict[str, Tensor]]:
        maps, unit, image = state["maps"], state["map_unit"], state["map_image"]
        peak = maps.flatten(1).amax(-1)
        fires = peak > threshold[unit]
        maps, unit, image, peak = maps[fires], unit[fires], image[fires], peak[fires]
        overlap = count_overlap(
            maps,
            unit,
            image,
            threshold,
            CutMasks(state["mask_box"], state["mask_words"], self._mask_size),
            state["mask_image"],
            state["mask_concept"],
            len(self.ontology.local),
        )
        return overlap, self._exemplars(maps, unit, image, peak)

    def _exemplars(self, maps: Tensor, unit: Tensor, image: Tensor, peak: Tensor) -> dict[str, Tensor]:
        units, height, width = self._map_shape
        order = image.argsort()  # by unit, then falling peak, then image
        order = order[peak[order].argsort(descending=True, stable=True)]
        order = order[unit[order].argsort(stable=True)]
        count = torch.bincount(unit, minlength=units)
        rank = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[unit[order]]
        order, rank = order[rank < self.num_exemplars], rank[rank < self.num_exemplars]
        where = unit[order], rank
        exemplar_image = image.new_full((units, self.num_exemplars), -1)
        exemplar_image[where] = image[order]
        exemplar_map = maps.new_zeros((units, self.num_exemplars, height, width))
        exemplar_map[where] = maps[order]
        return {"exemplar_image": exemplar_image, "exemplar_map": exemplar_map}

    def _groups(self, peak: Tensor, trough: Tensor, group: Tensor) -> dict[str, Tensor]:
        probability, count = [], []
        for k, concept in enumerate(self.ontology.global_):
            shown = group[:, k] >= 0
            of_concept, groups = group[shown, k], len(concept.groups)
            count.append(torch.bincount(of_concept, minlength=groups))
            if len(of_concept) == 0:
                probability.append(peak.new_zeros((peak.shape[1], groups), dtype=torch.float64))
                continue
            low, high = trough[shown].amin(0), peak[shown].amax(0)
            probability.append(group_affinity(peak[shown], low, high, of_concept, groups))
        none = group.new_zeros(0)
        return {
            "group_probability": torch.cat([*probability, none.new_zeros(peak.shape[1], 0).double()], dim=1),
            "images_per_group": torch.cat([*count, none]),
        }
