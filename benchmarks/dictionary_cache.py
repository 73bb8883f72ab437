"""How much faster a dictionary is opened from its packed form than from its folder, and what a pass over it takes.

Run: ``python benchmarks/dictionary_cache.py [--dictionary PATH]``; without a path, rendered faces are written first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from lightning_hnd import FaceDictionary

_T = TypeVar("_T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dictionary", type=Path, help="a folder in the released layout; rendered faces, if none")
    parser.add_argument("--images", type=int, default=600, help="rendered faces to write, if no folder is given")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HND_CACHE"] = str(Path(scratch) / "packed")
        folder = args.dictionary
        if folder is None:
            folder = Path(scratch) / "faces"
            FaceDictionary.rendered(size=args.size, images=args.images).to_folder(folder)
        measure(folder, args.size, args.repeats)


def measure(folder: Path, size: int, repeats: int) -> None:
    plain, decoding = timed(lambda: FaceDictionary.from_folder(folder, size, cache=False))
    _, first = timed(lambda: FaceDictionary.from_folder(folder, size))
    opened = [timed(lambda: FaceDictionary.from_folder(folder, size)) for _ in range(repeats)]
    faces, opening = min(opened, key=lambda pair: pair[1])
    assert faces.fingerprint == plain.fingerprint
    read = min(timed(lambda: touch(faces))[1] for _ in range(repeats))
    held = min(timed(lambda: touch(plain))[1] for _ in range(repeats))
    epoch = min(timed(lambda: sum(len(batch.index) for batch in faces.batches()))[1] for _ in range(repeats))
    of_held = min(timed(lambda: sum(len(batch.index) for batch in plain.batches()))[1] for _ in range(repeats))
    gigabytes = (faces.pictures.numel() + faces.masks.bits.numel()) / 1e9
    print(f"{faces}, {len(faces.masks)} masks; {torch.get_num_threads()} threads")
    print(f"from the folder: {decoding:.2f} s; the first time, packed form written: {first:.2f} s")
    print(f"from the packed form: {opening:.3f} s to open, {read:.3f} s to read all of its {gigabytes:.2f} GB")
    print(f"  folder / packed, opened and read: {decoding / (opening + read):.0f} times")
    print(f"  {gigabytes / read:.1f} GB/s mapped, {gigabytes / held:.1f} GB/s from plain memory")
    print(f"a pass in batches, as float32: {epoch:.2f} s mapped, {of_held:.2f} s from plain memory")


def touch(faces: FaceDictionary) -> int:
    """Copies every byte, a batch at a time, as a forward pass needs them."""
    total = 0
    for start in range(0, len(faces), 64):
        total += faces.pictures[start : start + 64].clone().numel()
    return total + faces.masks.bits.clone().numel()


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
