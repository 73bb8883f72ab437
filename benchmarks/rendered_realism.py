"""How close rendered faces come to real ones, by networks that carry over.

Run: ``python benchmarks/rendered_realism.py CELEBA_FOLDER SMILE_WEIGHTS``, with a folder that holds
``img_align_celeba/`` and ``list_attr_celeba.txt``, and the state dict of a smile classifier (four convolutions of
kernel 4 and stride 2, widths 32 to 256, and a linear layer; input 256 x 256 in -1..1).

Prints what a model trained on real smiles makes of rendered ones, and what a network trained on rendered faces alone
makes of real ones.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rendered_training import auc, framed, score, train
from torch import Tensor, nn
from torch.nn import functional

from lightning_hnd.concepts import PAPER
from lightning_hnd.rendering import RenderedFaces

ATTRIBUTES = [c.name for c in PAPER.local if c.kind == "attribute"]
EYES = (0.49, 0.512), 0.217
"""The frame of CelebA's aligned crops: place of the point between the eyes, distance of the eyes by the width."""


def real(folder: Path, size: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures ``[N, 3, H, W]`` uint8 and bool labels by attribute."""
    lines = (folder / "list_attr_celeba.txt").read_text().splitlines()
    names = lines[1].split()
    rows = [line.split() for line in lines[2:]]
    rows = [row for row in rows if (folder / "img_align_celeba" / row[0]).exists()]
    pictures = []
    for row in rows:
        with Image.open(folder / "img_align_celeba" / row[0]) as picture:
            small = picture.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pictures.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
    labels = torch.tensor([[value == "1" for value in row[1:]] for row in rows])
    return torch.stack(pictures), {name: labels[:, i] for i, name in enumerate(names)}


class Smile(nn.Module):
    """The smile classifier."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        pairs = [(nn.Conv2d(a, b, 4, 2, 1), nn.ReLU()) for a, b in pairwise(widths)]
        self.conv = nn.Sequential(*[layer for pair in pairs for layer in pair])
        self.fc = nn.Linear(256 * 16 * 16, 1)

    @torch.no_grad()
    def score(self, images: Tensor) -> Tensor:
        """Logits ``[N]`` of ``images [N, 3, H, W]`` uint8."""
        logits = []
        for batch in images.split(64):
            shown = functional.interpolate(batch.float(), (256, 256), mode="bilinear", antialias=True)
            logits.append(self.fc(self.conv(shown / 127.5 - 1).flatten(1))[:, 0])
        return torch.cat(logits)


def smiles(folder: Path, weights: Path) -> None:
    """Prints what the smile model makes of rendered and of real smiles."""
    model = Smile()
    fresh = Smile()
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    faces = framed(RenderedFaces.sample(600, seed=2), *EYES)
    drawn, smiling = faces.draw((218, 178))[0], faces.carries(["Smiling"])[:, 0]
    pictures, labels = real(folder, (218, 178))
    for name, net in (("trained on real smiles", model), ("fresh weights", fresh)):
        print(
            f"smile model, {name}: AUC on rendered {auc(net.score(drawn), smiling):.3f}, "
            f"on real {auc(net.score(pictures), labels['Smiling']):.3f}"
        )
    mouths = dict.fromkeys(["AU_12", "AU_15", "AU_17", "AU_20", "AU_25", "AU_26", "Mouth_Slightly_Open"], False)
    calm = faces.replace(**mouths)
    print(f"the same without what else moves the mouth: AUC {auc(model.score(calm.draw((218, 178))[0]), smiling):.3f}")
    pair = [faces.replace(Smiling=value).draw((218, 178))[0] for value in (True, False)]
    rises = (model.score(pair[0]) > model.score(pair[1])).double().mean()
    print(f"its logit rises with a drawn smile on {rises:.0%} of faces")


def transfer(folder: Path, faces: int, epochs: int) -> None:
    """Trains on rendered faces and prints the scores on real ones."""
    known, fresh = (framed(RenderedFaces.sample(n, seed=seed), *EYES) for n, seed in ((faces, 0), (800, 1)))
    size = (96, 80)

    def labels_of(some: RenderedFaces) -> Tensor:
        male, young = some.groups("gender") == 0, some.groups("age") < 2
        return torch.cat([some.carries(ATTRIBUTES), male[:, None], young[:, None]], dim=1)

    net = train(known.draw(size)[0], labels_of(known), epochs=epochs, frame=0.08)
    pictures, labels = real(folder, size)
    on_drawn, on_real = score(net, fresh.draw(size)[0]), score(net, pictures)
    values = []
    for i, name in enumerate([*ATTRIBUTES, "Male", "Young"]):
        values.append(auc(on_real[:, i], labels[name]))
        print(f"{name:22} rendered {auc(on_drawn[:, i], labels_of(fresh)[:, i]):.3f}  real {values[-1]:.3f}")
    print(f"mean AUC on real faces: attributes {np.mean(values[:-2]):.3f}, all {np.mean(values):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("celeba", type=Path)
    parser.add_argument("smile_weights", type=Path)
    parser.add_argument("--faces", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    smiles(args.celeba, args.smile_weights)
    transfer(args.celeba, args.faces, args.epochs)


if __name__ == "__main__":
    main()
