"""A ResNet-50 at 224 px, its four stages at once, on a rendered dictionary of the released size: on a GPU.

    python benchmarks/dissection_gpu.py [--images 24632] [--device cuda] [--repeats 3]

The bare pass shows the same images from the same memory to the same model. Counts are compared with the CPU's on the
same activations of the first images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from networks import resnet50
from torch import Tensor, nn

from lightning_hnd import DissectionMetric, FaceDictionary, dissect

STAGES = ("layer1", "layer2", "layer3", "layer4")
COUNTS = ("threshold", "intersection", "firing", "mask", "mask_firing")


def dictionary(images: int) -> FaceDictionary:
    """Rendered faces, all labelled in local concepts."""
    faces = FaceDictionary.rendered(size=224, images=2 * images)
    return faces.subset((faces.source >= 0).nonzero().flatten())


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Until the device has done it."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bare(model: nn.Module, faces: FaceDictionary, batch_size: int, device: torch.device) -> None:
    """The forward pass alone."""
    with torch.inference_mode():
        for batch in faces.batches(batch_size):
            model(batch.images.to(device))


def disagreements(model: nn.Module, faces: FaceDictionary, device: torch.device) -> int:
    """Thresholds and counts that differ between the device and the CPU, given the same activations."""
    wrong = 0
    for stage in STAGES:
        maps: list[Tensor] = []
        handle = model.get_submodule(stage).register_forward_hook(lambda _m, _i, out, maps=maps: maps.append(out))
        there, here = (DissectionMetric(num_local=len(faces)).to(place) for place in (device, torch.device("cpu")))
        with torch.no_grad():
            for batch in faces.batches(64):
                model(batch.images.to(device))
                there.update(maps[-1], batch.to(device))
                here.update(maps.pop().cpu(), batch)
        handle.remove()
        ours, truth = there.compute(), here.compute()
        wrong += sum(int((ours[name].cpu() != truth[name]).sum()) for name in COUNTS)
    return wrong


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=24_632)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = resnet50().eval().to(args.device)
    faces = dictionary(args.images)

    def with_batch_size(batch_size: int) -> float:
        return seconds(lambda: bare(model, faces, batch_size, args.device), args.device)

    with_batch_size(64)  # warm
    best = min((64, 128, 256), key=with_batch_size)

    def run() -> None:
        dissect(model, faces, STAGES, batch_size=best, budget=2**40, level=None)

    first = seconds(run, args.device)
    pairs = [(with_batch_size(best), seconds(run, args.device)) for _ in range(args.repeats)]
    base, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"{len(faces)} images, batches of {best}, {args.device}; bare pass {base:.2f} s; first dissection {first:.2f} s"
    )
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"later ones {ours:.2f} s, {len(faces) / ours:.0f} images/s, {ratio:.2f} x the bare pass")
    if args.device.type == "cuda":
        print(f"peak of the device's memory {torch.cuda.max_memory_allocated(args.device) / 2**30:.1f} GiB")
    few = faces.subset(range(min(512, len(faces))))
    print(f"{disagreements(model, few, args.device)} thresholds and counts differ from the CPU's")


if __name__ == "__main__":
    main()
