"""What a dissection costs beside the bare forward pass, as ratios measured in one run.

    python benchmarks/dissection_cost.py [--repeats 5] [--only ResNet-18]

The bare pass shows the same images from the same memory to the same model under ``inference_mode``, at the best of
several batch sizes; a dissection chooses by itself. The dictionary is rendered; weights are fresh. Against the bare
pass stand the first dissection of a dictionary (which cuts its masks) and later ones, without and with the evidence
of ``above_chance``; *evidence* is how much longer than without that takes. Counting pixels alone, given the
activations, stands against a naive loop over images, units and labels on a part of the work, scaled up. Machines are
noisy: read the ratios, and run it twice.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from networks import estimate_batch_norm, resnet18, resnet50, smile_net
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_hnd import DissectionMetric, FaceDictionary, dissect
from lightning_hnd.functional import firing_area


class Case(NamedTuple):
    """A model, the side of its images, and the layers to dissect."""

    name: str
    model: nn.Module
    size: int
    layers: tuple[str, ...]
    images: int


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


def counting(model: nn.Module, faces: FaceDictionary, layer: str, quantile: float, part: int) -> tuple[float, float]:
    """Seconds per image to count pixels, given activations and thresholds: by a naive loop, and by the package.

    The loop goes over images, units and labels, in the manner of the released code, on ``part`` images.
    """
    maps: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: maps.append(out))
    metric = DissectionMetric(quantile=quantile, num_local=len(faces))
    with torch.inference_mode():
        for batch in faces.batches(64):
            model(batch.images)
            metric.update(maps[-1], batch)
    handle.remove()
    start = time.perf_counter()
    metric.fix_thresholds()
    ours = (time.perf_counter() - start) / len(faces)
    thresholds, batch = metric.compute()["threshold"], next(faces.batches(part))
    masks = batch.masks.dense()
    start = time.perf_counter()
    for i in range(part):
        own = (batch.mask_image == i).nonzero().flatten().tolist()
        for u in range(len(thresholds)):
            for m in own:
                fires = firing_area(maps[0][i, u : u + 1], thresholds[u : u + 1], batch.size)[0]
                (fires & masks[m]).sum().item(), (fires | masks[m]).sum().item()
    return (time.perf_counter() - start) / part, ours


def measure_case(case: Case, repeats: int) -> list[list[str]]:
    """The rows of one case."""
    faces = FaceDictionary.rendered(size=case.size, images=2 * case.images)
    faces = faces.subset((faces.source >= 0).nonzero().flatten())
    model = estimate_batch_norm(case.model, faces.images(slice(0, 64)))
    bare(model, faces, 32)  # warm
    best = min((4, 8, 16, 32, 64), key=lambda batch_size: seconds(lambda: bare(model, faces, batch_size), 1))
    loop, ours = counting(model, faces, case.layers[0], 0.005, 2)
    rows = []
    for quantile in (0.005, 0.05):
        faces = faces.subset(range(len(faces)))  # as new: its masks are not cut yet

        def run(faces: FaceDictionary = faces, quantile: float = quantile, level: float | None = None) -> None:
            dissection = dissect(model, faces, case.layers, quantile=quantile, level=level)
            assert not any(layer.dead.any() for layer in dissection), "dead units cost nothing: not a fair case"

        first = seconds(run, 1)
        # in turn, for the machine's pace wanders
        ways = (lambda: bare(model, faces, best), run, lambda: run(level=0.05))  # noqa: B023
        rounds = [[seconds(way, 1) for way in ways] for _ in range(repeats)]
        base, later, _ = (statistics.median(times) for times in zip(*rounds, strict=True))
        ratios = [f"{statistics.median(times[i] / times[0] for times in rounds):.2f}" for i in (1, 2)]
        evidence = statistics.median(times[2] / times[1] for times in rounds) - 1
        row = [case.name, f"{quantile:g}", *(f"{t:.2f} s" for t in (base, first, later)), *ratios, f"{evidence:.0%}"]
        rows.append([*row, f"{loop / ours:.0f} x" if quantile == 0.005 and len(case.layers) == 1 else ""])
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="part of the name of the cases to measure")
    args = parser.parse_args()
    torch.manual_seed(0)
    table = Table(title=f"{torch.get_num_threads()} threads, median of {args.repeats}")
    columns = (
        "model",
        "quantile",
        "bare pass",
        "first",
        "later",
        "later / bare",
        "with evidence / bare",
        "evidence",
        "naive / ours",
    )
    for column in columns:
        table.add_column(column, justify="right")
    cases = (
        Case("smile net, 256 px, last layer", smile_net(), 256, ("7",), 500),
        Case("ResNet-18, 112 px, four stages", resnet18(), 112, ("layer1", "layer2", "layer3", "layer4"), 500),
        Case("ResNet-50, 224 px, layer4", resnet50(), 224, ("layer4",), 64),
    )
    for case in (case for case in cases if args.only in case.name):
        for row in measure_case(case, args.repeats):
            table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
