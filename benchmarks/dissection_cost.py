"""What a dissection costs beside the bare forward pass, as ratios measured in one run.

    python benchmarks/dissection_cost.py [--images 500] [--repeats 3]

The bare pass shows the same images from the same memory to the same model under ``inference_mode``, at the best
of several batch sizes. The dictionary is rendered; weights are fresh. Against it stand the first dissection of
a dictionary (which cuts its masks) and later ones, and a naive loop over images, units and labels on a part of
the work, scaled up. Machines are noisy: read the ratios, and run it twice.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_hnd import FaceDictionary, dissect
from lightning_hnd.functional import firing_area


class Case(NamedTuple):
    """A model, the side of its images, and the layers to dissect."""

    name: str
    model: nn.Module
    size: int
    layers: tuple[str, ...]


def smile_net() -> nn.Module:
    """Four convolutions of kernel 4 and stride 2: at 256 px the last has 256 units of 16 x 16."""
    widths = [3, 32, 64, 128, 256]
    return nn.Sequential(*[m for a, b in pairwise(widths) for m in (nn.Conv2d(a, b, 4, 2, 1), nn.ReLU())])


class Block(nn.Module):
    """A residual block of a ResNet-18."""

    def __init__(self, inputs: int, units: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, units, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(units), nn.BatchNorm2d(units)
        self.conv2 = nn.Conv2d(units, units, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(inputs, units, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.skip(x))


def resnet18() -> nn.Module:
    """The trunk of a ResNet-18; at 112 px its stages have maps of 28, 14, 7 and 4."""
    trunk = nn.Sequential()
    trunk.add_module(
        "stem",
        nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    )
    widths = [64, 64, 128, 256, 512]
    for i, (a, b) in enumerate(pairwise(widths), start=1):
        trunk.add_module(f"layer{i}", nn.Sequential(Block(a, b, 1 if i == 1 else 2), Block(b, b, 1)))
    return trunk


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median over several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bare(model: nn.Module, faces: FaceDictionary, batch_size: int) -> None:
    """The forward pass alone."""
    with torch.inference_mode():
        for batch in faces.batches(batch_size):
            model(batch.images)


def naive(model: nn.Module, faces: FaceDictionary, layer: str, part: int) -> float:
    """Seconds per image of a loop over units and labels, in the manner of the released code, on ``part`` images."""
    maps: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: maps.append(out))
    batch = next(faces.subset(range(part)).batches(part))
    with torch.inference_mode():
        model(batch.images)
    handle.remove()
    thresholds = maps[0].transpose(0, 1).flatten(1).double().quantile(0.995, dim=1)
    masks = batch.masks.dense()
    start = time.perf_counter()
    for i in range(part):
        own = (batch.mask_image == i).nonzero().flatten().tolist()
        for u in range(len(thresholds)):
            fires = firing_area(maps[0][i, u : u + 1], thresholds[u : u + 1], batch.size)[0]
            for m in own:
                (fires & masks[m]).sum().item(), (fires | masks[m]).sum().item()
    return (time.perf_counter() - start) / part


def measure_case(case: Case, images: int, repeats: int) -> list[list[str]]:
    """The rows of one case."""
    model = case.model.eval()
    faces = FaceDictionary.rendered(size=case.size, images=2 * images)
    faces = faces.subset((faces.source >= 0).nonzero().flatten())
    bare(model, faces, 32)  # warm
    best = min((16, 32, 64), key=lambda batch_size: seconds(lambda: bare(model, faces, batch_size), 1))
    base = seconds(lambda: bare(model, faces, best), repeats)
    loop = naive(model, faces, case.layers[0], 2) * images
    rows = []
    for quantile in (0.005, 0.05):
        faces = faces.subset(range(len(faces)))  # as new: its masks are not cut yet
        first, *later = (
            seconds(lambda q=quantile, f=faces: dissect(model, f, case.layers, quantile=q, batch_size=best), 1)  # type: ignore[misc]
            for _ in range(1 + repeats)
        )
        then = statistics.median(later)
        row = [case.name, f"{quantile:g}", *(f"{t:.2f} s" for t in (base, first, then)), f"{then / base:.2f}"]
        faster = f"{loop / max(then - base, 1e-9):.0f} x" if quantile == 0.005 and len(case.layers) == 1 else ""
        rows.append([*row, faster])
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    table = Table(title=f"{args.images} images, {torch.get_num_threads()} threads")
    columns = ("model", "quantile", "bare pass", "first", "later", "later / bare", "naive loop / what is added")
    for column in columns:
        table.add_column(column, justify="right")
    cases = (
        Case("smile net, 256 px, last layer", smile_net(), 256, ("7",)),
        Case("ResNet-18, 112 px, four stages", resnet18(), 112, ("layer1", "layer2", "layer3", "layer4")),
    )
    for case in cases:
        for row in measure_case(case, args.images, args.repeats):
            table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
