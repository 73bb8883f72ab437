"""The main line: a Face Dictionary through a model, a metric for each layer, a dissection out."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_hnd.activations import Grid, last_spatial, record, remark, resolve_layers, trace, unit_maps
from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.evidence import Evidence
from lightning_hnd.fresh import fresh_null
from lightning_hnd.metric import DissectionMetric
from lightning_hnd.processes import ALONE, Processes
from lightning_hnd.rules import README, Rule
from lightning_hnd.undisturbed import device_of, undisturbed

BUDGET = 2**30
"""Bytes that the maps kept for counting may take, if nobody says otherwise."""

SHOWING = "showing the dictionary to the model"

ForwardFn = Callable[[Any, Tensor], Any]
"""From the model and images ``[B, channels, H, W]`` to anything: one forward pass."""


def dissect(
    model: nn.Module,
    dictionary: FaceDictionary,
    layers: str | Sequence[str] | None = None,
    *,
    quantile: float = README.quantile,
    iou_threshold: float = README.iou_threshold,
    firing_only: bool = README.firing_only,
    level: float | None = README.level,
    grid: Grid | None = None,
    forward_fn: ForwardFn | None = None,
    batch_size: int = 64,
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
        level: With 0.05 pairings are those that stand up to chance at that false discovery rate, whatever their IoU:
            the rule ``above_chance``. It takes more time and memory: see ``docs/above-chance.md``.
        grid: ``(rows, columns)`` of token sequences, for vision transformers.
        forward_fn: How to run the model on images, where ``model(images)`` is not it.
        batch_size: Images in a batch.
        progress: Whether to show a progress bar.
        budget: Bytes that may be taken, on the device of the model, by maps in which units may fire. One forward pass
            suffices while they fit; layers for which they do not are counted in a second one, with the same result.
        fresh_seeds: Of networks with fresh weights to compare with, for what is *learnt*; each costs a forward pass.
            See :func:`~lightning_hnd.fresh.fresh_null`. None are asked by default; only ``above_chance`` asks.
        factory: Makes such a network, where ``reset_parameters`` throughout the model is not it.

    Returns:
        The dissection.

    Raises:
        ValueError: If a layer does not exist, does not run or gives no maps, activations are not finite, or a
            setting is out of range.
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
    rule = Rule(quantile, iou_threshold, firing_only, level)
    if fresh_seeds and level is None:
        raise ValueError("fresh_seeds are compared with under a level only; give level=0.05 as well")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if budget < 0:
        raise ValueError(f"budget must not be negative, got {budget}")
    names, said = choose_layers(model, dictionary, layers, grid=grid, forward_fn=forward_fn)
    if said:
        print(said)
    statistics = measure(
        model,
        dictionary,
        names,
        rule.quantile,
        grid=grid,
        forward_fn=forward_fn,
        batch_size=batch_size,
        progress=progress,
        budget=budget,
        evidence=level is not None,
    )
    if fresh_seeds:
        null = fresh_null(
            model,
            dictionary,
            names,
            factory=factory,
            seeds=fresh_seeds,
            grid=grid,
            forward_fn=forward_fn,
            batch_size=batch_size,
        )
        for name, of_layer in null.items():
            statistics[name] |= {f"fresh_{key}": value for key, value in of_layer.items()}
    return Dissection.from_statistics(statistics, dictionary.ontology, rule, describe(dictionary))


def describe(dictionary: FaceDictionary) -> dict[str, str | int | float | bool | None]:
    """What a dissection keeps of its dictionary; its datacard, if it has one, as JSON."""
    card = {"datacard": json.dumps(dict(dictionary.datacard))} if dictionary.datacard else {}
    return {"dictionary": str(dictionary), "fingerprint": dictionary.fingerprint, "drawn": dictionary.drawn, **card}


def measure(
    model: nn.Module,
    dictionary: FaceDictionary,
    layers: Sequence[str],
    quantile: float,
    *,
    grid: Grid | None = None,
    forward_fn: ForwardFn | None = None,
    batch_size: int = 64,
    progress: bool = False,
    budget: int = BUDGET,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    processes: Processes = ALONE,
    evidence: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Runs the dictionary through the model, once or twice, and returns the statistics of each layer.

    Args:
        model: The module.
        dictionary: The faces.
        layers: Names, as :func:`~lightning_hnd.activations.resolve_layers` gives them.
        quantile: Fraction of a unit's activations that exceed its threshold.
        grid: As in :func:`dissect`.
        forward_fn: As in :func:`dissect`.
        batch_size: As in :func:`dissect`.
        progress: As in :func:`dissect`.
        budget: As in :func:`dissect`.
        context: What to run the forward pass in (mixed precision). Counting is outside it.
        processes: Those that share the dictionary, batch by batch. All get the same result.
        evidence: Whether to gather what a rule with a level needs.

    Returns:
        For each layer what :meth:`DissectionMetric.compute` returns and, if asked for,
        :meth:`~lightning_hnd.evidence.Evidence.compute`.
    """
    device = device_of(model)
    counting = torch.device("cpu") if device.type == "mps" else device  # thresholds need float64, which MPS lacks
    options: dict[str, Any] = {"num_local": dictionary.num_local, "sync_on_compute": processes.size > 1}
    metrics = {name: DissectionMetric(dictionary.ontology, quantile, **options).to(counting) for name in layers}
    found = {name: Evidence(dictionary) for name in layers} if evidence else {}
    batch_size = processes.batch_size(batch_size, len(dictionary))

    def show(title: str, names: Sequence[str], found: Mapping[str, Evidence]) -> None:
        """One pass of the dictionary through the model, for the metrics of some layers."""
        shown = dictionary.batches(batch_size, shard=processes.rank, num_shards=processes.size)
        rounds = range(0, len(dictionary), processes.size * batch_size)
        with record(model, names) as outputs:
            for _ in tqdm(rounds, title, leave=False, disable=None if progress else True, delay=2):
                with processes.forward(SHOWING):
                    batch = next(shown, None)
                    # a forward pass of a split model takes all processes, also one that has no batch left
                    images = dictionary.images(slice(0, 1)) if batch is None else batch.images
                    outputs.clear()
                    with context():
                        forward(model, images.to(device), forward_fn)
                with processes.together(SHOWING):
                    if batch is not None:
                        for name in names:
                            take_in(name, outputs, batch, found.get(name))
                        _keep_within(budget, metrics.values())

    def take_in(name: str, outputs: Mapping[str, list[Any]], batch: DictionaryBatch, found: Evidence | None) -> None:
        labels = batch.to(counting)
        maps = unit_maps(name, outputs, len(batch.index), grid).to(counting)
        try:
            metrics[name].update(maps, labels)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        if found is not None:
            found.update(maps, labels)

    with undisturbed(model):
        processes.share_buffers(model)
        show("Dissecting", layers, found)
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
            with processes.together("counting"):
                metric.fix_thresholds()
        if again:
            show("Counting", again, {})
        statistics = {}
        for name, metric in metrics.items():
            with processes.together("gathering the counts"):
                statistics[name] = metric.compute()
        for name, gathered in found.items():
            with processes.together("gathering the evidence"):
                if processes.size > 1:
                    gathered.join(processes.gather(gathered.state()))
                statistics[name] |= {key: value.to(counting) for key, value in gathered.compute().items()}
        return statistics


def _keep_within(budget: int, metrics: Iterable[DissectionMetric]) -> None:
    """Has metrics let their maps go, the one with most first, until what is kept fits in the budget."""
    kept = sorted(metrics, key=lambda metric: metric.kept_bytes)
    while kept and sum(metric.kept_bytes for metric in kept) > budget:
        kept.pop().let_go()


def choose_layers(
    model: nn.Module,
    dictionary: FaceDictionary,
    layers: str | Sequence[str] | None,
    *,
    grid: Grid | None = None,
    forward_fn: ForwardFn | None = None,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[tuple[str, ...], str | None]:
    """The names of the layers to dissect, and where nobody named one, what to say of the choice.

    Args:
        model: The module.
        dictionary: The faces, of which two are shown to it to see what it reaches.
        layers: As in :func:`dissect`.
        grid: As in :func:`dissect`.
        forward_fn: As in :func:`dissect`.
        context: As in :func:`measure`.

    Raises:
        ValueError: If a name matches nothing, or no layer is spatial.
        RuntimeError: If the forward pass fails.
    """
    if layers is not None:
        return resolve_layers(model, layers), None
    images = dictionary.images(slice(0, 2)).to(device_of(model))

    def run() -> None:
        with context():
            forward(model, images, forward_fn)

    with undisturbed(model):
        finished = trace(model, run)
    name = last_spatial(model, finished, grid)
    return (name,), remark(name, finished, grid)


def forward(model: nn.Module, images: Tensor, forward_fn: ForwardFn | None) -> None:
    """One forward pass, on images of the type of the model's weights; an exception says on what."""
    images = images.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype))
    try:
        if forward_fn is not None:
            forward_fn(model, images)
        else:
            model(images)
    except (torch.OutOfMemoryError, MemoryError):  # it is not the images
        raise
    except Exception as error:
        raise RuntimeError(
            f"{type(model).__name__} failed on dictionary images {list(images.shape)}: {error}. They must have the "
            "size and channels that the model takes; if its forward takes more than images, give forward_fn="
        ) from error
