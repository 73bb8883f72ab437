"""What a dissection takes of memory beside the bare pass: peaks of fresh processes, one pass and two.

    python benchmarks/dissection_memory.py [--images 24632] [--units 2048]

One convolution gives maps of 7 x 7 from rendered faces of 56 px, a thousand of them over and over. Each figure is the
peak of a process of its own, so that none hides behind another. Of the dissections the peak of the bare pass over as
many images is taken off; twice as many images show what grows with them.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_hnd import FaceDictionary, dissect
from lightning_hnd.dictionary import PackedMasks
from lightning_hnd.pipeline import BUDGET

WAYS = {"bare pass": None, "two passes": 0, "one pass": 2**40, "default budget": BUDGET}


def repeated(images: int) -> FaceDictionary:
    """A dictionary of many images at the price of a thousand."""
    faces = FaceDictionary.rendered(size=56, images=1000)
    times = -(-images // len(faces))
    offset = torch.arange(times).repeat_interleave(len(faces.mask_image)) * len(faces)
    many = replace(
        faces,
        pictures=faces.pictures.repeat(times, 1, 1, 1),
        source=faces.source.repeat(times),
        group=faces.group.repeat(times, 1),
        masks=PackedMasks(faces.masks.bits.repeat(times, 1), faces.masks.size),
        mask_image=faces.mask_image.repeat(times) + offset,
        mask_concept=faces.mask_concept.repeat(times),
        names=faces.names * times,
        labels=faces.labels * times,
    )
    return many.subset(range(images))


def work(way: str, images: int, units: int) -> None:
    """Does the work in this process and prints its peak in KiB, and seconds."""
    torch.manual_seed(0)
    faces = repeated(images)
    model = nn.Sequential(nn.Conv2d(3, units, 8, 8), nn.ReLU()).eval()
    start = time.perf_counter()
    budget = WAYS[way]
    if budget is None:
        with torch.inference_mode():
            for batch in faces.batches(64):
                model(batch.images)
    else:
        dissect(model, faces, "1", budget=budget, level=None)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - start)


def peak(way: str, images: int, units: int) -> tuple[float, float]:
    """MiB and seconds of a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, "--way", way, "--images", str(images), "--units", str(units)]
    kib, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    return float(kib) / 1024, float(seconds)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=24_632)
    parser.add_argument("--units", type=int, default=2048)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        work(args.way, args.images, args.units)
        return
    table = Table(title=f"peak memory, {args.units} units of 7 x 7, above the bare pass over as many images")
    for column in ("", f"{args.images} images", f"{2 * args.images} images", "seconds"):
        table.add_column(column, justify="right")
    bare = [peak("bare pass", n * args.images, args.units) for n in (1, 2)]
    table.add_row("bare pass itself", *(f"{mib:.0f} MiB" for mib, _ in bare), " / ".join(f"{s:.0f}" for _, s in bare))
    for way in list(WAYS)[1:]:
        peaks = [peak(way, n * args.images, args.units) for n in (1, 2)]
        above = [f"{mib - base:+.0f} MiB" for (mib, _), (base, _) in zip(peaks, bare, strict=True)]
        table.add_row(way, *above, " / ".join(f"{s:.0f}" for _, s in peaks))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
