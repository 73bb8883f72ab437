"""Showing: one pass of a Face Dictionary through a model, batch by batch, alone or shared by several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
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

Bar = Callable[[range, str], Iterable[int]]
"""Shows, under a title, how far a loop over a range is, and goes over it."""

_IMAGES = 64  # in a batch where nobody says how many,
_PIXELS = 2**18  # ... and in a forward pass on a CPU: networks take half the time that 64 images of 256 x 256 take
_WHAT = "showing the dictionary to the model"


def terminal_bar(steps: range, title: str) -> Iterable[int]:
    """A :data:`Bar` on a terminal, of what takes longer than two seconds."""
    bar: Iterable[int] = tqdm(steps, title, leave=False, disable=None, delay=2)
    return bar


@dataclass(frozen=True)
class Showing:
    """How dictionaries are shown to models.

    Args:
        grid: ``(rows, columns)`` of token sequences.
        forward_fn: How to run a model on images, where ``model(images)`` is not it.
        batch_size: Images in a batch, at most. None: 64, which a model in main memory sees in parts of 2^18 pixels:
            what a layer makes of more does not fit into the caches for the next one.
        bar: Shows how far it is. None: nothing does.
        context: What to run the forward pass in (mixed precision). What is done with the maps is outside it.
        processes: Those that share the dictionary, batch by batch.

    Raises:
        ValueError: If ``batch_size`` is less than 1, or ``grid`` is not two such numbers.
    """

    grid: Grid | None = None
    forward_fn: ForwardFn | None = None
    batch_size: int | None = None
    bar: Bar | None = None
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.grid is not None:
            sides = tuple(self.grid) if isinstance(self.grid, Sequence) else ()
            if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
                raise ValueError(f"grid must be (rows, columns), each at least 1, got {self.grid!r}")

    def show(self, model: nn.Module, dictionary: FaceDictionary, layers: Sequence[str], title: str, take: Take) -> None:
        """One pass of this process's share of the dictionary.

        Args:
            model: In evaluation mode, without gradients: see :func:`~lightning_hnd.showing.undisturbed.undisturbed`.
            dictionary: The faces.
            layers: Names of layers.
            title: Of the progress bar.
            take: Called for each layer of each batch, with maps and labels where :func:`counting_device` says.
        """
        processes = self.processes
        counting = counting_device(model)
        batch_size = processes.batch_size(self.batch_size or _IMAGES, len(dictionary))
        shown = dictionary.batches(batch_size, shard=processes.rank, num_shards=processes.size)
        rounds = range(0, len(dictionary), processes.size * batch_size)
        with record(model, layers) as outputs:
            for _ in rounds if self.bar is None else self.bar(rounds, title):
                with processes.forward(_WHAT):
                    batch = next(shown, None)
                    # a forward pass of a split model takes all processes, also one that has no batch left
                    index = torch.zeros(1, dtype=torch.int64) if batch is None else batch.index
                    maps = self._maps(model, dictionary, index, layers, outputs, batch_size)
                with processes.together(_WHAT), full_precision(counting):
                    if batch is not None:
                        labels = batch.to(counting)
                        for name in layers:
                            take(name, maps.pop(name).to(counting), labels)

    def _maps(
        self,
        model: nn.Module,
        dictionary: FaceDictionary,
        index: Tensor,
        layers: Sequence[str],
        outputs: dict[str, list[Any]],
        batch_size: int,
    ) -> dict[str, Tensor]:
        """The maps ``[B, U, h, w]`` of each layer on ``B`` images, of which the model sees a few at a time.

        Args:
            model: The module.
            dictionary: The faces.
            index: ``[B]`` int64, which of them, ``batch_size`` at most.
            layers: Their names.
            outputs: Where :func:`~lightning_hnd.showing.activations.record` gathers what they give.
            batch_size: Of all batches; a split model passes as often in each.
        """
        device, at_once = device_of(model), batch_size
        if self.batch_size is None and device.type == "cpu":
            at_once = max(1, _PIXELS // (dictionary.size[0] * dictionary.size[1]))
        parts = index.chunk(-(-len(index) // at_once))
        found: dict[str, list[Tensor]] = {name: [] for name in layers}
        for some in parts:
            outputs.clear()
            self.forward(model, dictionary.images(some).to(device))
            for name in layers:
                found[name].append(unit_maps(name, outputs, len(some), self.grid))
        if self.processes.split:
            for _ in range(-(-batch_size // at_once) - len(parts)):
                self.forward(model, dictionary.images(index[:1]).to(device))
        outputs.clear()
        return {name: maps[0] if len(maps) == 1 else torch.cat(maps) for name, maps in found.items()}

    def forward(self, model: nn.Module, images: Tensor) -> None:
        """One forward pass, on images of :func:`image_type`; an exception says on what.

        Raises:
            RuntimeError: If it fails.
        """
        images = images.to(image_type(model))
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
                f"{type(model).__name__} failed on dictionary images {list(images.shape)} of {images.dtype}: {error}. "
                "They must have the size and channels that the model takes; if its forward takes more than images, or "
                "another type, give forward_fn="
            ) from error


def image_type(model: nn.Module) -> torch.dtype:
    """Of the weights that images meet: those of its first convolution, without one its first ones, else float32."""
    weights: list[Tensor] = [weight for weight in model.parameters() if weight.is_floating_point()]
    if not weights:  # frozen into buffers
        weights = [weight for weight in model.buffers() if weight.is_floating_point()]
    convolutions = [weight for weight in weights if weight.ndim == 4]
    return next((weight.dtype for weight in convolutions or weights), torch.float32)


def counting_device(model: nn.Module) -> torch.device:
    """Where what a model does is counted: where it is, but for MPS, since thresholds need float64, which that lacks."""
    device = device_of(model)
    return torch.device("cpu") if device.type == "mps" else device
