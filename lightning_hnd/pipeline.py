"""The main line: a Face Dictionary through a model, a metric for each layer, a dissection out."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_hnd.activations import Grid, default_layer, record, resolve_layers, unit_maps
from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.metric import DissectionMetric
from lightning_hnd.rules import Rule

ForwardFn = Callable[[Any, Tensor], Any]
"""From the model and images ``[B, channels, H, W]`` to anything: one forward pass."""


def dissect(
    model: nn.Module,
    dictionary: FaceDictionary,
    layers: str | Sequence[str] | None = None,
    *,
    quantile: float = 0.005,
    iou_threshold: float = 0.04,
    firing_only: bool = False,
    grid: Grid | None = None,
    forward_fn: ForwardFn | None = None,
    batch_size: int = 64,
    progress: bool = False,
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
        grid: ``(rows, columns)`` of token sequences, for vision transformers.
        forward_fn: How to run the model on images, where ``model(images)`` is not it.
        batch_size: Images in a batch.
        progress: Whether to show a progress bar.

    Returns:
        The dissection.

    Raises:
        ValueError: If a layer does not exist, does not run or gives no maps, or activations are not finite.

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
    rule = Rule(quantile, iou_threshold, firing_only)
    names = None if layers is None else resolve_layers(model, layers)
    if names is None:
        chosen = find_default_layer(model, dictionary, grid=grid, forward_fn=forward_fn)
        print(chosen.remark)
        names = (chosen.name,)
    statistics = measure(
        model,
        dictionary,
        names,
        rule.quantile,
        grid=grid,
        forward_fn=forward_fn,
        batch_size=batch_size,
        progress=progress,
    )
    return Dissection.from_statistics(statistics, dictionary.ontology, rule, describe(dictionary))


def describe(dictionary: FaceDictionary) -> dict[str, str | int | float | bool | None]:
    """What a dissection keeps of its dictionary."""
    return {"dictionary": str(dictionary), "fingerprint": dictionary.fingerprint, "drawn": dictionary.drawn}


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
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, dict[str, Tensor]]:
    """Runs the dictionary through the model once and returns the statistics of each layer.

    Args:
        model: The module.
        dictionary: The faces.
        layers: Names, as :func:`~lightning_hnd.activations.resolve_layers` gives them.
        quantile: Fraction of a unit's activations that exceed its threshold.
        grid: As in :func:`dissect`.
        forward_fn: As in :func:`dissect`.
        batch_size: As in :func:`dissect`.
        progress: As in :func:`dissect`.
        context: What to run the forward pass in (mixed precision). Counting is outside it.

    Returns:
        For each layer what :meth:`DissectionMetric.compute` returns.
    """
    device = device_of(model)
    counting = torch.device("cpu") if device.type == "mps" else device  # thresholds need float64, which MPS lacks
    num_local = dictionary.num_local
    metrics = {
        name: DissectionMetric(dictionary.ontology, quantile, num_local=num_local, sync_on_compute=False).to(counting)
        for name in layers
    }
    num_batches = -(-len(dictionary) // batch_size)
    with undisturbed(model), record(model, layers) as outputs:
        batches = dictionary.batches(batch_size)
        for batch in tqdm(batches, "Dissecting", num_batches, leave=False, disable=None if progress else True, delay=2):
            outputs.clear()
            with context():
                forward(model, batch.images.to(device), forward_fn)
            labels = batch.to(counting)
            for name, metric in metrics.items():
                maps = unit_maps(name, outputs, len(batch.index), grid)
                try:
                    metric.update(maps.to(counting), labels)
                except ValueError as error:
                    raise ValueError(f"layer {name!r}: {error}") from error
        outputs.clear()
        return {name: metric.compute() for name, metric in metrics.items()}


def find_default_layer(
    model: nn.Module,
    dictionary: FaceDictionary,
    *,
    grid: Grid | None = None,
    forward_fn: ForwardFn | None = None,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Any:
    """The layer that is dissected where none is named: see :func:`~lightning_hnd.activations.default_layer`."""
    images = dictionary.images(slice(0, 2)).to(device_of(model))

    def run() -> None:
        with context():
            forward(model, images, forward_fn)

    with undisturbed(model):
        return default_layer(model, run, grid)


def forward(model: nn.Module, images: Tensor, forward_fn: ForwardFn | None) -> None:
    """One forward pass, on images of the type of the model's weights; an exception says on what."""
    images = images.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype))
    try:
        if forward_fn is not None:
            forward_fn(model, images)
        else:
            model(images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"{type(model).__name__} failed on dictionary images {list(images.shape)}: {error}. They must have the "
            "size and channels that the model takes; if its forward takes more than images, give forward_fn="
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Where the model is: the device of its first parameter or buffer, else the CPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """While open the model is in evaluation mode without gradients; at the end all is as it was.

    Restores the mode and the buffers of every submodule (a forward pass may count or keep averages, and some
    modules refuse to leave training mode) and the state of the random number generators of Python, numpy
    and torch, also after an exception. Inference mode is left for the time, since tensors made in it could
    not be used in training later.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    state = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global one is what training uses
    cuda = [device_of(model)] if device_of(model).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.inference_mode(False), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                module._buffers[name] = buffer
            random.setstate(state[0])
            np.random.set_state(state[1])  # noqa: NPY002
