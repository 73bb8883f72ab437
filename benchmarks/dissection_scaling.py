"""How the cost of a dissection grows with images and with units, the model itself apart.

    python benchmarks/dissection_scaling.py [--repeats 3]

Maps of 14 x 14 are made beforehand by a convolution with fresh weights from rendered faces of 112 px; thresholds,
counts and affinities are measured. Linear cost shows as the same time for each image and unit in every row.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_hnd import DissectionMetric, FaceDictionary


def run(faces: FaceDictionary, maps: Tensor) -> float:
    """Seconds for one dissection, given the activations."""
    start = time.perf_counter()
    metric = DissectionMetric(faces.ontology, num_local=faces.num_local)
    for batch in faces.batches(64):
        metric.update(maps[batch.index[0] : batch.index[-1] + 1], batch)
    metric.compute()
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    sizes = [(images, 128) for images in (500, 1000, 2000, 4000)] + [(1000, units) for units in (64, 128, 256, 512)]
    whole = FaceDictionary.rendered(size=112, images=max(images for images, _ in sizes))
    layer = nn.Sequential(nn.Conv2d(3, max(units for _, units in sizes), 16, 8, 4), nn.ReLU())
    cases = []
    for images, units in sizes:
        faces = whole.subset(torch.linspace(0, len(whole) - 1, images).long())
        with torch.inference_mode():
            maps = torch.cat([layer(batch.images)[:, :units] for batch in faces.batches(64)])
        run(faces, maps)  # cuts the masks
        cases.append((faces, maps))
    # in turn, for the machine's pace wanders
    times = [[run(faces, maps) for faces, maps in cases] for _ in range(args.repeats)]
    table = Table(title=f"quantile 0.005, {torch.get_num_threads()} threads, median of {args.repeats}")
    for column in ("images", "units", "seconds", "microseconds for each image and unit"):
        table.add_column(column, justify="right")
    for (images, units), seconds in zip(sizes, map(statistics.median, zip(*times, strict=True)), strict=True):
        table.add_row(str(images), str(units), f"{seconds:.2f}", f"{seconds / images / units * 1e6:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
