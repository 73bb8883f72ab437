"""The main line: a Face Dictionary through a model, a metric for each layer, a dissection out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.evidence.evidence import Evidence
from lightning_hnd.evidence.fresh import FreshWeights, Null, fresh_null, with_null
from lightning_hnd.measuring.metric import DissectionMetric
from lightning_hnd.rules import ABOVE_CHANCE, README, Rule
from lightning_hnd.showing.activations import Grid, last_spatial, remark, resolve_layers, trace
from lightning_hnd.showing.showing import ForwardFn, Showing, counting_device, terminal_bar
from lightning_hnd.showing.undisturbed import device_of, full_precision, undisturbed

BUDGET = 2**30
"""Bytes that the maps kept for counting may take, if nobody says otherwise."""


def dissect(
    model: nn.Module,
    dictionary: FaceDictionary,
    layers: str | Sequence[str] | None = None,
    *,
    quantile: float = README.quantile,
    iou_threshold: float = README.iou_threshold,
    firing_only: bool = README.firing_only,
    level: float | None = ABOVE_CHANCE.level,
    grid: Grid | None = None,
    forward_fn: ForwardFn | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    budget: int = BUDGET,
    fresh_seeds: Sequence[int] = (),
    factory: Callable[[], nn.Module] | None = None,
) -> Dissection:
    """Dissects layers of a model: pairs their units with the concepts of a Face Dictionary.

    The model runs in evaluation mode without gradients and is left as it was found: modes of every
    submodule, hooks and the state of all random number generators, also after an exception.

    Args:
        model: Any module, on any device.
        dictionary: The faces to show to it, of the size, channels, mean and std that it takes.
        layers: Dotted names or globs, one or several. None: the last spatial output that the forward pass
            reaches; the choice is printed.
        quantile: Fraction of a unit's activations that exceed its threshold.
        iou_threshold: The bar that a local unit's best IoU must exceed.
        firing_only: See :class:`~lightning_hnd.Rule`.
        level: Pairings are those that stand up to chance at this false discovery rate, whatever their IoU: the rule
            ``above_chance``. ``dissection.with_rule(README)`` reads the same measurement by the bar instead. None: the
            bar decides, and no evidence is gathered, which takes a little less time and memory.
        grid: ``(rows, columns)`` of token sequences, for vision transformers.
        forward_fn: How to run the model on images, where ``model(images)`` is not it.
        batch_size: Images in a batch. None: 64; on a CPU large images are shown in smaller parts, which is faster.
        progress: Whether to show a progress bar.
        budget: Bytes that may be taken, on the device of the model, by maps in which units may fire. One forward pass
            suffices while they fit; layers for which they do not are counted in a second one, with the same result.
        fresh_seeds: Of networks with fresh weights to compare with, for what is *learnt*; each costs a forward pass.
            See :func:`~lightning_hnd.evidence.fresh.fresh_null`. None are asked by default; only ``above_chance`` asks.
            Without them units of a trained model are called interpretable that are associated and placed.
        factory: Makes such a network, where ``reset_parameters`` throughout the model is not it; needs ``fresh_seeds``.

    Returns:
        The dissection.

    Raises:
        TypeError: If the dictionary is none, ``fresh_seeds`` are not several whole numbers, or the factory is no
            function that makes a network.
        ValueError: If a layer does not exist, does not run or gives no maps, activations are not finite, or a
            setting is out of range; no network with fresh weights can be made, or the factory makes no other for each
            seed.
        RuntimeError: If the forward pass fails.

    Example:
        >>> import torch
        >>> from lightning_hnd import FaceDictionary, dissect
        >>> faces = FaceDictionary.rendered(size=32, images=16)
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 4, stride=4), torch.nn.ReLU())
        >>> dissection = dissect(model, faces, layers="1")
        >>> len(dissection["1"].units)
        5
    """
    if not isinstance(dictionary, FaceDictionary):
        raise TypeError(f"dictionary is a FaceDictionary, such as FaceDictionary.from_folder(...), got {dictionary!r}")
    rule = Rule(quantile, iou_threshold, firing_only, level)
    fresh = FreshWeights.chosen(fresh_seeds, factory, level)
    if budget < 0:
        raise ValueError(f"budget must not be negative, got {budget}")
    showing = Showing(grid, forward_fn, batch_size, terminal_bar if progress else None)
    names, said = choose_layers(model, dictionary, layers, showing)
    if said:
        print(said)
    null: Null = {}
    if fresh.seeds:  # first, for it may be refused
        null = fresh_null(model, dictionary, names, showing, fresh=fresh, budget=budget)
    statistics = measure(model, dictionary, names, rule.quantile, showing, budget=budget, evidence=level is not None)
    return Dissection.from_statistics(with_null(statistics, null), dictionary.ontology, rule, describe(dictionary))


def describe(dictionary: FaceDictionary) -> dict[str, str | int | float | bool | None]:
    """What a dissection keeps of its dictionary; its datacard, if it has one, as JSON."""
    card = {"datacard": json.dumps(dict(dictionary.datacard))} if dictionary.datacard else {}
    return {"dictionary": str(dictionary), "fingerprint": dictionary.fingerprint, "drawn": dictionary.drawn, **card}


def measure(
    model: nn.Module,
    dictionary: FaceDictionary,
    layers: Sequence[str],
    quantile: float,
    showing: Showing,
    *,
    budget: int = BUDGET,
    evidence: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Runs the dictionary through the model, once or twice, and returns the statistics of each layer.

    Args:
        model: The module.
        dictionary: The faces.
        layers: Names, as :func:`~lightning_hnd.showing.activations.resolve_layers` gives them.
        quantile: Fraction of a unit's activations that exceed its threshold.
        showing: How. If several processes share the dictionary, all get the same result.
        budget: As in :func:`dissect`.
        evidence: Whether to gather what a rule with a level needs.

    Returns:
        For each layer what :meth:`DissectionMetric.compute` returns and, if asked for,
        :meth:`~lightning_hnd.evidence.evidence.Evidence.compute`.
    """
    processes, counting = showing.processes, counting_device(model)
    options: dict[str, Any] = {"num_local": dictionary.num_local, "sync_on_compute": processes.size > 1}
    metrics = {name: DissectionMetric(dictionary.ontology, quantile, **options).to(counting) for name in layers}
    found = {name: Evidence(dictionary) for name in layers} if evidence else {}

    def count(name: str, maps: Tensor, batch: DictionaryBatch) -> None:
        try:
            metrics[name].update(maps, batch)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error

    def take_in(name: str, maps: Tensor, batch: DictionaryBatch) -> None:
        count(name, maps, batch)
        if evidence:
            found[name].update(maps, batch)
        _keep_within(budget, metrics.values(), found.values())

    with undisturbed(model):
        processes.share_buffers(model)
        showing.show(model, dictionary, layers, "Dissecting", take_in)
        flags = processes.any([metric.needs_second_pass for metric in metrics.values()])
        again = [name for name, flag in zip(metrics, flags, strict=True) if flag]
        if again and processes.rank == 0:
            warnings.warn(
                f"the maps in which units may fire exceed budget={budget / 2**20:.0f} MiB, so that these layers are "
                f"counted in a second forward pass, with the same result: {', '.join(again)}",
                stacklevel=2,
            )
        with processes.together("making room for a second pass"):
            for name in again:
                metrics[name].let_go()
        for metric in metrics.values():
            with processes.together("counting"), full_precision(counting):
                metric.fix_thresholds()
        if again:
            showing.show(model, dictionary, again, "Counting", count)
        statistics = {}
        with full_precision(counting):
            for name, metric in metrics.items():
                with processes.together("gathering the counts"):
                    statistics[name] = metric.compute()
            for name, gathered in found.items():
                statistics[name] |= {key: value.to(counting) for key, value in gathered.compute(processes).items()}
        return statistics


def _keep_within(budget: int, metrics: Iterable[DissectionMetric], found: Iterable[Evidence]) -> None:
    """Keeps what grows with the images within the budget: evidence goes to files, then metrics let their maps go."""
    kept = sorted(metrics, key=lambda metric: metric.kept_bytes)
    gathered = list(found)

    def total() -> int:
        return sum(metric.kept_bytes for metric in kept) + sum(evidence.kept_bytes for evidence in gathered)

    if total() > budget:
        for evidence in gathered:
            evidence.spill()
    while kept and total() > budget:  # the one with most first
        kept.pop().let_go()


def choose_layers(
    model: nn.Module, dictionary: FaceDictionary, layers: str | Sequence[str] | None, showing: Showing
) -> tuple[tuple[str, ...], str | None]:
    """The names of the layers to dissect, and where nobody named one, what to say of the choice.

    Args:
        model: The module.
        dictionary: The faces, of which two are shown to it to see what it reaches.
        layers: As in :func:`dissect`.
        showing: How.

    Raises:
        ValueError: If a name matches nothing, or no layer is spatial.
        RuntimeError: If the forward pass fails.
    """
    if layers is not None:
        return resolve_layers(model, layers), None
    images = dictionary.images(slice(0, 2)).to(device_of(model))
    with undisturbed(model):
        finished = trace(model, lambda: showing.forward(model, images))
    name = last_spatial(model, finished, showing.grid)
    return (name,), remark(name, finished, showing.grid)
