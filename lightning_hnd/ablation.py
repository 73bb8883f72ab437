"""Does the model use it? What becomes of a metric when the units of a concept are switched off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_hnd.activations import switched_off
from lightning_hnd.bias import label_names
from lightning_hnd.dissection import Dissection, LayerDissection
from lightning_hnd.processes import ALONE, Processes
from lightning_hnd.undisturbed import device_of, kept_random_state, undisturbed

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
        controls: The same without as many other live units, drawn at random, draw by draw.
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
        """What switching as many others off changes, draw by draw."""
        return tuple(control[group] - self.intact[group] for control in self.controls)

    def p(self, group: str = OVERALL) -> float:
        """How often, of these units and the random ones, the effect is as large in size: a permutation p-value.

        It cannot be smaller than ``1 / (1 + controls)``.
        """
        size = abs(self.effect(group))
        return (1 + sum(abs(e) >= size for e in self.control_effects(group))) / (1 + len(self.controls))

    def scalars(self) -> dict[str, float]:
        """The effects and those of the random units on average, by group: for loggers."""
        found = {}
        for group in self.intact:
            found[f"{group}/effect"] = self.effect(group)
            found[f"{group}/random"] = sum(self.control_effects(group)) / len(self.controls)
        return found

    def __str__(self) -> str:
        lines = [
            f"{self.layer}: {len(self.units)} units of {self.concept} switched off, against as many others "
            f"({len(self.controls)} draws)"
        ]
        for group, intact in self.intact.items():
            others = self.control_effects(group)
            lines.append(
                f"  {group:20} {intact:8.4f} -> {self.ablated[group]:8.4f} ({self.effect(group):+.4f}; others "
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
) -> Ablation:
    """Switches off the units that are paired with a concept, and as many random others, and measures.

    A unit that is switched off gives 0 everywhere. The random ones are drawn from the other live units of the layer:
    any layer suffers when units are taken from it, so only what exceeds their effect is due to the concept. The model
    runs in evaluation mode without gradients and is left as it was found. The data is gone through ``2 + controls``
    times.

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
            effects of 0.

    Returns:
        The metric with and without them.

    Raises:
        ValueError: If no unit is paired with the concept, too few others are live, the layer is not given and several
            were dissected, ``controls`` is less than 1, or the dataloader is empty.
        KeyError: If the layer was not dissected.
    """
    if controls < 1:
        raise ValueError(f"controls must be at least 1, got {controls}: without any, no effect can be judged")
    if layer is None and len(dissection) > 1:
        raise ValueError(f"several layers were dissected ({', '.join(dissection.layers)}): say which with layer=")
    found = dissection[next(iter(dissection.layers)) if layer is None else layer]
    units = paired_units(found, concept)
    others = sorted(set(torch.as_tensor(~found.dead).nonzero().flatten().tolist()) - set(units))
    if not units and none_paired == "raise":
        raise ValueError(f"no unit of layer {found.name!r} is paired with {concept!r} under rule {found.rule.name}")
    if len(others) < len(units):
        raise ValueError(
            f"{len(units)} units of layer {found.name!r} are paired with {concept!r}, and only {len(others)} others "
            "are live: there are not as many random ones to compare with"
        )
    generator = torch.Generator().manual_seed(seed)
    draws = [
        [others[i] for i in torch.randperm(len(others), generator=generator)[: len(units)]] for _ in range(controls)
    ]
    with undisturbed(model):
        intact, *changed = (
            _measure(model, found.name, off, metric, dataloader, predict) for off in ([], units, *draws)
        )
    return Ablation(concept, found.name, tuple(units), intact, changed[0], tuple(changed[1:]))


def paired_units(layer: LayerDissection, concept: str) -> list[int]:
    """The units of a layer that are paired with a local concept, a group, or any group of a global concept.

    Raises:
        ValueError: If the ontology has no such concept.
    """
    names = label_names(layer.ontology)
    labels = [i for i, name in enumerate(names) if name == concept or name.startswith(f"{concept}/")]
    if not labels:
        known = [*(c.name for c in layer.ontology.global_), *names]
        raise ValueError(f"there is no concept or group {concept!r}; known are {', '.join(known)}")
    paired = torch.cat([torch.tensor(layer.paired_concepts), torch.tensor(layer.paired_groups)], dim=1)
    units: list[int] = paired[:, labels].any(1).nonzero().flatten().tolist()
    return units


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
    with kept_random_state(device), switched_off(model, layer, units):
        for batch in dataloader:
            prediction, target, *group = (predict or _predict)(model, batch)
            by_group[OVERALL].update(prediction, target)
            if group:
                names = [str(name.item() if isinstance(name, Tensor) else name) for name in group[0]]
                for name in dict.fromkeys(names):
                    rows = torch.tensor([other == name for other in names], device=target.device)
                    by_group.setdefault(name, _fresh(metric, device)).update(prediction[rows], target[rows])
    if not by_group[OVERALL].update_called:
        raise ValueError("the dataloader gave no batch; it is gone through several times, so give no iterator")
    groups = sorted({name for names in _processes().gather(list(by_group)) for name in names} - {OVERALL})
    # all processes compute all of them, for metrics sync
    return {name: float(by_group.get(name, _fresh(metric, device)).compute()) for name in (OVERALL, *groups)}


def _processes() -> Processes:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ALONE
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def _fresh(metric: Metric, device: torch.device) -> Metric:
    fresh = metric.clone().to(device)
    fresh.reset()
    return fresh


def _predict(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    if not isinstance(batch, list | tuple) or len(batch) not in (2, 3):
        raise ValueError(
            f"batches must be (images, target) or (images, target, group), got {type(batch).__name__}; say with "
            "predict= how to get prediction and target from one"
        )
    images, target, *group = batch
    device = device_of(model)
    return (model(images.to(device)), target.to(device), *group)
