"""Does the model use it? What becomes of a metric when the units of a concept are switched off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_hnd.dissection import Dissection
from lightning_hnd.layer_dissection import LayerDissection
from lightning_hnd.showing.activations import switched_off
from lightning_hnd.showing.processes import ALONE, Processes
from lightning_hnd.showing.showing import Bar, terminal_bar
from lightning_hnd.showing.undisturbed import device_of, kept_generators, kept_random_state, undisturbed

OVERALL = "overall"
"""The name under which the metric over all groups together stands."""

Predict = Callable[[Any, Any], tuple[Any, ...]]
"""From the model and a batch to prediction and target, and, if it is known, the group of each image."""


@dataclass(frozen=True)
class Ablation:
    """A metric with and without some units, overall and by group.

    Attributes:
        concept: What the units are paired with.
        layer: Where they are.
        units: Which were switched off.
        intact: The metric of the model as it is: ``overall``, and for each group.
        ablated: The metric without the units.
        controls: The same without as many live units, drawn at random, draw by draw.
    """

    concept: str
    layer: str
    units: tuple[int, ...]
    intact: dict[str, float]
    ablated: dict[str, float]
    controls: tuple[dict[str, float], ...]

    def effect(self, group: str = OVERALL) -> float:
        """What switching the units off changes."""
        return self.ablated[group] - self.intact[group]

    def control_effects(self, group: str = OVERALL) -> tuple[float, ...]:
        """What switching as many random ones off changes, draw by draw."""
        return tuple(control[group] - self.intact[group] for control in self.controls)

    def p(self, group: str = OVERALL) -> float:
        """How often, of these units and the random ones, the effect is as large in size: a permutation p-value.

        It is exact: if the units were no others than any as many live ones, it would be at most 5 % in 5 % of cases. It
        cannot be smaller than ``1 / (1 + controls)``. An effect that is no number is none.
        """
        size = abs(self.effect(group))
        smaller = sum(abs(e) < size for e in self.control_effects(group))
        return (1 + len(self.controls) - smaller) / (1 + len(self.controls))

    def scalars(self) -> dict[str, float]:
        """The effects and those of the random units on average, by group: for loggers."""
        found = {}
        for group in self.intact:
            found[f"{group}/effect"] = self.effect(group)
            found[f"{group}/random"] = sum(self.control_effects(group)) / len(self.controls)
        return found

    def __str__(self) -> str:
        if not self.units:
            return f"{self.layer}: no unit is paired with {self.concept}, so that there is none to switch off"
        lines = [
            f"{self.layer}: {len(self.units)} unit{'' if len(self.units) == 1 else 's'} of {self.concept} switched "
            f"off, against as many random ones ({len(self.controls)} draws)"
        ]
        for group, intact in self.intact.items():
            others = self.control_effects(group)
            lines.append(
                f"  {group:20} {intact:8.4f} -> {self.ablated[group]:8.4f} ({self.effect(group):+.4f}; random "
                f"{min(others):+.4f} to {max(others):+.4f}; p = {self.p(group):.2f})"
            )
        return "\n".join(lines)


def ablate(
    model: nn.Module,
    dissection: Dissection,
    *,
    concept: str,
    metric: Metric,
    dataloader: Iterable[Any],
    layer: str | None = None,
    predict: Predict | None = None,
    controls: int = 20,
    seed: int = 0,
    none_paired: Literal["raise", "measure"] = "raise",
    progress: bool | Bar = False,
) -> Ablation:
    """Switches off the units that are paired with a concept, and as many random ones, and measures.

    A unit that is switched off gives 0 everywhere. Any layer suffers when units are taken from it, so only what exceeds
    the effect of random ones is due to the concept. These are drawn from all live units of the layer, the paired ones
    included: drawn from the others alone, they overlap, and p-values are too small (half of the layers in which half of
    the units are paired would be accused at 5 %). The model runs in evaluation mode without gradients and is left as it
    was found. The data is gone through ``2 + controls`` times.

    Args:
        model: The one that was dissected.
        dissection: What its units are paired with, under its rule.
        concept: A local concept (``Eyeglasses``), a group (``gender/Male``), or a global concept (``gender``), for
            units that are paired with any of its groups.
        metric: Takes ``(prediction, target)``; one that gives a single number.
        dataloader: Batches ``(images, target)`` or ``(images, target, group)``, with a group for each image: integers,
            or a sequence of strings. It is iterated over several times.
        layer: None: the only one that was dissected.
        predict: From model and batch to ``(prediction, target)`` or ``(prediction, target, group)``, where batches are
            not such.
        controls: How many random draws.
        seed: Of the draws.
        none_paired: What to do where no unit is paired with the concept: ``measure`` gives the metric as it is, and
            effects of 0, after one pass.
        progress: Whether to show a progress bar, a step for each pass; or what shows one.

    Returns:
        The metric with and without them.

    Raises:
        ValueError: If no unit is paired with the concept, the layer is not given and several were dissected,
            ``controls`` is less than 1, the dataloader is empty, a group is called ``overall``, or the metric gives
            more than one number.
        KeyError: If the layer was not dissected.
    """
    if controls < 1:
        raise ValueError(f"controls must be at least 1, got {controls}: without any, no effect can be judged")
    if layer is None and len(dissection) > 1:
        raise ValueError(f"several layers were dissected ({', '.join(dissection.layers)}): say which with layer=")
    found = dissection[next(iter(dissection.layers)) if layer is None else layer]
    units = paired_units(found, concept)
    if not units and none_paired == "raise":
        others = [label for label in found.ontology.labels if paired_units(found, label)]
        raise ValueError(
            f"no unit of layer {found.name!r} is paired with {concept!r} under rule {found.rule.name}; there are units "
            f"of: {', '.join(others) or 'none'}"
        )
    draws = _random_units(torch.as_tensor(~found.dead), len(units), controls, seed)
    passes = ([], units, *draws) if units else ([],)
    bar = terminal_bar if progress is True else progress or None
    steps = range(len(passes))
    with undisturbed(model):
        intact, *changed = (
            _measure(model, found.name, passes[step], metric, dataloader, predict)
            for step in (steps if bar is None else bar(steps, f"Switching off {concept} in {found.name}"))
        )
    ablated, *random = changed or [intact] * (1 + controls)  # nothing to switch off
    return Ablation(concept, found.name, tuple(units), intact, ablated, tuple(random))


def try_batch(model: nn.Module, metric: Metric, dataloader: Iterable[Any], predict: Predict) -> None:
    """Lets a metric take what a model makes of the first batch, so that what :func:`ablate` cannot use is told early.

    The model and all random numbers are left as they were found, of batches nothing is told if there is none.

    Raises:
        ValueError: As :func:`ablate`, and where the metric does not take it.
    """
    device = device_of(model)
    with undisturbed(model), kept_random_state(device), kept_generators(dataloader):
        for batch in dataloader:
            _update(_fresh(metric, device), *predict(model, batch)[:2])
            return


def _update(metric: Metric, prediction: Any, target: Any) -> None:
    try:
        metric.update(prediction, target)
    except Exception as error:
        raise ValueError(
            f"{type(metric).__name__} does not take prediction and target, {type(prediction).__name__} and "
            f"{type(target).__name__} ({type(error).__name__}: {error}); say with predict= how to get both from a batch"
        ) from error


def paired_units(layer: LayerDissection, concept: str) -> list[int]:
    """The units of a layer that are paired with a local concept, a group, or any group of a global concept.

    Raises:
        ValueError: If the ontology has no such concept.
    """
    labels = layer.ontology.labels_of(concept)
    paired = torch.cat([torch.tensor(layer.paired_concepts), torch.tensor(layer.paired_groups)], dim=1)
    units: list[int] = paired[:, labels].any(1).nonzero().flatten().tolist()
    return units


def _random_units(live: Tensor, count: int, draws: int, seed: int) -> list[list[int]]:
    """So many of the live units, drawn at random."""
    generator, among = torch.Generator().manual_seed(seed), live.nonzero().flatten()
    return [among[torch.randperm(len(among), generator=generator)[:count]].tolist() for _ in range(draws)]


def _measure(
    model: nn.Module,
    layer: str,
    units: Sequence[int],
    metric: Metric,
    dataloader: Iterable[Any],
    predict: Predict | None,
) -> dict[str, float]:
    """The metric without some units, overall and by group."""
    device = device_of(model)
    by_group = {OVERALL: _fresh(metric, device)}
    # each pass draws the same random numbers, so that shuffling and augmentation change nothing between them
    with kept_random_state(device), kept_generators(dataloader), switched_off(model, layer, units):
        for batch in dataloader:
            prediction, target, *group = (predict or predict_from_images)(model, batch)
            _update(by_group[OVERALL], prediction, target)
            if group:
                names = [str(name.item() if isinstance(name, Tensor) else name) for name in group[0]]
                if OVERALL in names:
                    raise ValueError(f"a group is called {OVERALL!r}, as the metric of all of them is: rename it")
                for name in dict.fromkeys(names):
                    rows = torch.tensor([other == name for other in names], device=target.device)
                    by_group.setdefault(name, _fresh(metric, device)).update(prediction[rows], target[rows])
        if not by_group[OVERALL].update_called:
            raise ValueError("the dataloader gave no batch; it is gone through several times, so give no iterator")
    groups = sorted({name for names in _processes().gather(list(by_group)) for name in names} - {OVERALL})
    # all processes compute all of them, for metrics sync; of what is in lists a process must hold one, if an empty one
    for name in groups:
        if name not in by_group:
            by_group[name] = _fresh(metric, device)
            by_group[name].update(prediction[:0], target[:0])
    return {name: _number(by_group[name]) for name in (OVERALL, *groups)}


def _number(metric: Metric) -> float:
    value = metric.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"metric {type(metric).__name__} gives {shape}; it must give a single number (average='macro'?)"
        )
    return float(value)


def _processes() -> Processes:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ALONE
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def _fresh(metric: Metric, device: torch.device) -> Metric:
    fresh = metric.clone().to(device)
    fresh.reset()
    return fresh


def predict_from_images(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """Of a batch ``(images, target)`` or ``(images, target, group)``.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(batch, list | tuple) or len(batch) not in (2, 3):
        raise ValueError(
            f"batches must be (images, target) or (images, target, group), got {type(batch).__name__}; say with "
            "predict= how to get prediction and target from one"
        )
    images, target, *group = batch
    device = device_of(model)
    return (model(images.to(device)), target.to(device), *group)
