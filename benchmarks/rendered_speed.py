"""How many rendered faces are drawn a second, masks of all concepts included.

Run: ``python benchmarks/rendered_speed.py``.
"""

from __future__ import annotations

import argparse
import time

import torch

from lightning_hnd.concepts import PAPER
from lightning_hnd.rendering import RenderedFaces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=512)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    faces = RenderedFaces.sample(args.faces, seed=0)
    names = [c.name for c in PAPER.local]
    faces[:64].draw(args.size, names)  # warms up
    print(f"{args.faces} faces of {args.size} x {args.size}, {torch.get_num_threads()} threads")
    for what, concepts in (("pictures", []), (f"pictures and {len(names)} masks each", names)):
        seconds = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            faces.draw(args.size, concepts)
            seconds.append(time.perf_counter() - start)
        print(f"{what}: {args.faces / min(seconds):.0f} faces a second at best of {args.repeats}")


if __name__ == "__main__":
    main()
