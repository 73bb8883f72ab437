"""Whether the concepts of rendered faces can be seen: a small network tells presence from absence on fresh faces.

Run: ``python benchmarks/rendered_visible.py``. Prints the area under the ROC curve of every concept and group. Faces
are framed by their eyes, as face models get them; where in the picture they are is not what is asked here.
"""

from __future__ import annotations

import argparse

import torch
from rendered_training import auc, framed, score, train
from torch import Tensor

from lightning_hnd.concepts import PAPER
from lightning_hnd.rendering import RenderedFaces

CONCEPTS = [c.name for c in PAPER.local if c.kind != "part"]
GROUPS = [(c.name, g, group) for c in PAPER.global_ if c.name != "ethnicity" for g, group in enumerate(c.groups)]


def labels_of(faces: RenderedFaces) -> Tensor:
    """``[N, 30 + 8]`` bool: the concepts, then the groups one against the others."""
    groups = torch.stack([faces.groups(name) == g for name, g, _ in GROUPS], dim=1)
    return torch.cat([faces.carries(CONCEPTS), groups], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=4000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    known, fresh = (
        framed(RenderedFaces.sample(n, seed=seed), (0.5, 0.4), 0.3) for n, seed in ((args.faces, 0), (1500, 1))
    )
    net = train(known.draw(args.size)[0], labels_of(known), epochs=args.epochs)
    scores, labels = score(net, fresh.draw(args.size)[0]), labels_of(fresh)
    values = [auc(scores[:, i], labels[:, i]) for i in range(labels.shape[1])]
    names = CONCEPTS + [f"{name}: {group}" for name, _, group in GROUPS]
    for name, value in sorted(zip(names, values, strict=True), key=lambda entry: entry[1]):
        print(f"{name:32} {value:.3f}")
    local = values[: len(CONCEPTS)]
    print(f"local concepts: mean {sum(local) / len(local):.3f}, least {min(local):.3f}")
    print(f"groups: mean {sum(values[len(CONCEPTS) :]) / len(GROUPS):.3f}, least {min(values[len(CONCEPTS) :]):.3f}")


if __name__ == "__main__":
    main()
