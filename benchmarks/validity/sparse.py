"""How often noise that fires in few faces is paired: layers with any false pairing under ``above_chance``.

    python benchmarks/validity/sparse.py [--layers 20]

Maps of 512 units are rectified noise of 8 x 8 cells in a random share of drawn faces, and 0 in all others. No fresh
networks are asked. With a false discovery rate of 5 % at most one layer in twenty should have a pairing.
"""

from __future__ import annotations

import argparse

import torch

from lightning_hnd import FaceDictionary
from lightning_hnd.evidence.evidence import Evidence
from lightning_hnd.functional.defence import defend

UNITS, CELLS = 512, 8


def main() -> None:
    """Counts and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.2, 0.1, 0.05, 0.02, 0.005])
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    faces = FaceDictionary.rendered(size=32, images=800)
    faces = faces.subset((faces.source >= 0).nonzero().flatten())
    for share in args.shares:
        generator = torch.Generator().manual_seed(args.seed)
        with_any = 0
        for _ in range(args.layers):
            evidence = Evidence(faces)
            for batch in faces.batches(256):
                maps = torch.randn(len(batch.index), UNITS, CELLS, CELLS, generator=generator).clamp(min=0)
                fires = torch.rand(len(batch.index), UNITS, 1, 1, generator=generator) < share
                evidence.update(maps * fires, batch)
            paired = defend(evidence.compute(), torch.ones(UNITS, dtype=torch.bool)).paired
            with_any += bool(paired.any())
        print(f"fires in {100 * share:g} % of faces: {with_any} of {args.layers} layers have a pairing", flush=True)


if __name__ == "__main__":
    main()
