"""Intervals: how sure the effect sizes are on which pairings of units and concepts rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.evidence.association import label_and_others
from lightning_hnd.evidence.evidence import GRID
from lightning_hnd.evidence.places import Places, beside_mean, emphasised
from lightning_hnd.functional.bootstrap import means, percentile_interval, placed_effects, rank_effects, resampled
from lightning_hnd.functional.host import averaged
from lightning_hnd.functional.significance import Contrast
from lightning_hnd.showing.activations import Grid
from lightning_hnd.showing.showing import ForwardFn, Showing, terminal_bar
from lightning_hnd.showing.undisturbed import undisturbed


@dataclass(frozen=True)
class EffectInterval:
    """The size of one effect and how sure it is.

    Attributes:
        unit: Index of the unit.
        concept: The local concept that it is paired with.
        effect: ``associated_effect``, ``associated_auc``, ``placed_effect`` or ``agreement``, as among the statistics
            of a layer (:meth:`Evidence.compute <lightning_hnd.evidence.evidence.Evidence.compute>` explains them).
        value: Over all images.
        low: Lower end of the interval.
        high: Upper end.
    """

    unit: int
    concept: str
    effect: str
    value: float
    low: float
    high: float


def effect_intervals(
    model: nn.Module,
    dictionary: FaceDictionary,
    dissection: Dissection,
    layer: str,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
    grid: Grid | None = None,
    forward_fn: ForwardFn | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> tuple[EffectInterval, ...]:
    """Bootstrap intervals over images of the effects of each pairing of a layer: one more pass of the dictionary.

    Images of a concept's source are drawn with replacement (for what needs masks: those that carry the concept), and
    each effect is found again; an interval leaves equal shares of the replicates out on both sides. The places of
    concepts, found from all masks, stay as they are. Pairs were chosen since their effects are large, so that effects
    are on average a little smaller than they look, and so are the intervals' ends. Where fewer than some twenty images
    carry the concept intervals are a little short.

    Args:
        model: The model that was dissected, as it was then.
        dictionary: The faces that it was dissected with.
        dissection: What was found, under a rule with a level.
        layer: Its name.
        level: How many of such intervals hold the effect.
        replicates: How many times images are drawn.
        seed: Of the draw.
        grid: As in :func:`~lightning_hnd.dissect`, and so are the others.
        forward_fn: How to run the model on images.
        batch_size: Images in a batch, as in :func:`~lightning_hnd.dissect`.
        progress: Whether to show a progress bar.

    Returns:
        Effects that apply, pair by pair.

    Raises:
        KeyError: If the layer was not dissected.
        ValueError: If the dissection has no evidence, or is not one of this model or this dictionary.

    Example:
        >>> import torch
        >>> from lightning_hnd import FaceDictionary, dissect, effect_intervals
        >>> faces = FaceDictionary.rendered(size=32, images=400)
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 4, stride=4), torch.nn.ReLU())
        >>> found = effect_intervals(model, faces, dissect(model, faces, layers="1"), "1", replicates=200)
        >>> all(one.low <= one.value <= one.high for one in found if one.effect == "agreement")
        True
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (exclusive), got {level}")
    if replicates < 2:
        raise ValueError(f"replicates must be at least 2, got {replicates}")
    if dissection.info.get("fingerprint", dictionary.fingerprint) != dictionary.fingerprint:
        raise ValueError(
            f"the dissection is of {dissection.info['dictionary']}, not of {dictionary}: give the same faces"
        )
    found = dissection[layer]
    _ = found.defence  # says what to do if there is no evidence
    pairs = torch.tensor(found.paired_concepts).nonzero()
    seen = _Seen(dictionary, pairs[:, 0], pairs[:, 1])

    def take(name: str, maps: Tensor, batch: DictionaryBatch) -> None:
        if maps.shape[1] != len(found):
            raise ValueError(
                f"layer {name!r} has {maps.shape[1]} units, and {len(found)} were dissected: give the model as it was"
            )
        seen.update(maps, batch)

    if len(pairs):
        with undisturbed(model):
            showing = Showing(grid, forward_fn, batch_size, terminal_bar if progress else None)
            showing.show(model, dictionary, [layer], "Resampling", take)
    intervals: list[EffectInterval] = []
    for c in pairs[:, 1].unique().tolist():
        units = pairs[pairs[:, 1] == c, 0].tolist()
        for effect, values in seen.effects(c, replicates, seed):
            low, high = (end.tolist() for end in percentile_interval(values[1:], level))
            known = found.statistics[effect][units, c]
            if np.isnan(known).all():  # of a concept of which the images cannot tell: it has too few masks, say
                continue
            if not torch.allclose(values[0], torch.tensor(known), rtol=1e-3, atol=1e-4):
                raise ValueError(
                    f"{effect} of layer {layer!r} is no longer what was dissected: give the model as it was"
                )
            name = dictionary.ontology.local[c].name
            rows = zip(units, known.tolist(), low, high, strict=True)
            intervals += [EffectInterval(unit, name, effect, *numbers) for unit, *numbers in rows]
    return tuple(sorted(intervals, key=lambda one: (one.unit, one.concept)))


class _Seen:
    """What pairs of units ``u [P]`` and concepts ``c [P]`` did on each image."""

    def __init__(self, faces: FaceDictionary, unit: Tensor, concept: Tensor) -> None:
        self._faces, self._unit, self._concept = faces, unit, concept
        self._mask = torch.full((len(faces), len(faces.ontology.local)), -1)  # which one shows a concept on an image
        self._mask[faces.mask_image, faces.mask_concept] = torch.arange(len(faces.mask_image))
        self._cells = (0, 0)
        self._numbers: list[Tensor] = []  # [b, P, 2 + K]: the response, the agreement, and projections on modes
        self._images: list[Tensor] = []

    def update(self, maps: Tensor, batch: DictionaryBatch) -> None:
        """Takes in maps ``[B, U, h, w]``."""
        rows = (batch.source >= 0).nonzero().flatten()
        if not len(rows):
            return
        cells = self._cells = (min(maps.shape[2], GRID), min(maps.shape[3], GRID))
        places, images = Places.of(self._faces, cells), batch.index[rows].cpu()
        own = maps[rows][:, self._unit.to(maps.device)].contiguous().float().cpu()
        own = averaged(own, cells).flatten(2)  # [b, P, cells]
        own, scale = beside_mean(own)
        scaled = own * scale.unsqueeze(2)
        response = torch.einsum("bpq,pq->bp", emphasised(own, scale), places.usual[self._concept])
        shape = places.shape[self._mask[images][:, self._concept]]  # of the last mask where there is none: never read
        agreement = (shape * scaled).sum(2)
        modes = torch.einsum("bpq,pkq->bpk", scaled, places.modes[self._concept])
        self._numbers.append(torch.cat([response.unsqueeze(2), agreement.unsqueeze(2), modes], dim=2))
        self._images.append(images)

    def effects(self, c: int, replicates: int, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Each effect that applies to a concept, ``[1 + R, pairs]``: first over all images, then in each replicate."""
        images = torch.cat(self._images)
        numbers = torch.cat(self._numbers)[:, self._concept == c]
        label, others = label_and_others(self._faces, c)
        if bool(Contrast.of(label, others).left.any()):
            of_source = self._faces.source[images] == self._faces.ontology.concept_kind[c]
            counts = _with_all(len(label), replicates, seed)
            ranked = rank_effects(numbers[of_source, :, 0], label, others, counts)
            yield "associated_effect", ranked.effect
            yield "associated_auc", ranked.auc
        own = self._mask[images, c]
        places, counts = Places.of(self._faces, self._cells), _with_all(int((own >= 0).sum()), replicates, seed)
        numbers, coefficient = numbers[own >= 0], places.coefficient[own[own >= 0]]
        yield "placed_effect", placed_effects(numbers[:, :, 2:], coefficient, places.weight[c], counts)
        yield "agreement", means(numbers[:, :, 1], counts)


def _with_all(images: int, replicates: int, seed: int) -> Tensor:
    """First each image once, then as drawn."""
    return torch.cat([torch.ones(1, images, dtype=torch.float64), resampled(images, replicates, seed)])
