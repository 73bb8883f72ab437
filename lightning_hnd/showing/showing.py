"""Showing: one pass of a Face Dictionary through a model, batch by batch, alone or shared by several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.showing.activations import Grid, record, unit_maps
from lightning_hnd.showing.processes import ALONE, Processes
from lightning_hnd.showing.undisturbed import device_of, full_precision

ForwardFn = Callable[[Any, Tensor], Any]
"""From the model and images ``[B, channels, H, W]`` to anything: one forward pass."""

Take = Callable[[str, Tensor, DictionaryBatch], None]
"""Takes in the name of a layer, its maps ``[B, U, h, w]`` of a batch, and the batch."""

_WHAT = "showing the dictionary to the model"


@dataclass(frozen=True)
class Showing:
    """How dictionaries are shown to models.

    Args:
        grid: ``(rows, columns)`` of token sequences.
        forward_fn: How to run a model on images, where ``model(images)`` is not it.
        batch_size: Images in a batch, at most.
        progress: Whether to show a progress bar.
        context: What to run the forward pass in (mixed precision). What is done with the maps is outside it.
        processes: Those that share the dictionary, batch by batch.
    """

    grid: Grid | None = None
    forward_fn: ForwardFn | None = None
    batch_size: int = 64
    progress: bool = False
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    processes: Processes = ALONE

    def show(self, model: nn.Module, dictionary: FaceDictionary, layers: Sequence[str], title: str, take: Take) -> None:
        """One pass of this process's share of the dictionary.

        Args:
            model: In evaluation mode, without gradients: see :func:`~lightning_hnd.showing.undisturbed.undisturbed`.
            dictionary: The faces.
            layers: Names of layers.
            title: Of the progress bar.
            take: Called for each layer of each batch, with maps and labels where :func:`counting_device` says.
        """
        processes, device = self.processes, device_of(model)
        counting = counting_device(model)
        batch_size = processes.batch_size(self.batch_size, len(dictionary))
        shown = dictionary.batches(batch_size, shard=processes.rank, num_shards=processes.size)
        rounds = range(0, len(dictionary), processes.size * batch_size)
        with record(model, layers) as outputs:
            for _ in tqdm(rounds, title, leave=False, disable=None if self.progress else True, delay=2):
                with processes.forward(_WHAT):
                    batch = next(shown, None)
                    # a forward pass of a split model takes all processes, also one that has no batch left
                    images = dictionary.images(slice(0, 1)) if batch is None else batch.images
                    outputs.clear()
                    self.forward(model, images.to(device))
                with processes.together(_WHAT), full_precision(counting):
                    if batch is not None:
                        labels = batch.to(counting)
                        for name in layers:
                            take(name, unit_maps(name, outputs, len(batch.index), self.grid).to(counting), labels)

    def forward(self, model: nn.Module, images: Tensor) -> None:
        """One forward pass, on images of the type of the model's weights; an exception says on what.

        Raises:
            RuntimeError: If it fails.
        """
        images = images.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype))
        try:
            with self.context():
                if self.forward_fn is not None:
                    self.forward_fn(model, images)
                else:
                    model(images)
        except (torch.OutOfMemoryError, MemoryError):  # it is not the images
            raise
        except Exception as error:
            raise RuntimeError(
                f"{type(model).__name__} failed on dictionary images {list(images.shape)}: {error}. They must have the "
                "size and channels that the model takes; if its forward takes more than images, give forward_fn="
            ) from error


def counting_device(model: nn.Module) -> torch.device:
    """Where what a model does is counted: where it is, but for MPS, since thresholds need float64, which that lacks."""
    device = device_of(model)
    return torch.device("cpu") if device.type == "mps" else device
