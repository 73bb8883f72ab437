"""Draws ``docs/above-chance.png``: a unit that only looks like a nose detector, beside one that is one.

Run: ``python benchmarks/validity/picture.py docs/above-chance.png``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for rendered_training

from rendered_training import framed

from lightning_hnd import PAPER, FaceDictionary
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.evidence.evidence import Evidence
from lightning_hnd.functional import activation_threshold, concept_iou, firing_area
from lightning_hnd.rendering import RenderedFaces

FACES, SIZE, CELLS, QUANTILE = 160, 96, 16, 0.02
NOSE = PAPER.concept_index("nose")


def main(path: str) -> None:
    """Draws it."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    pictures, masks = framed(RenderedFaces.sample(FACES, seed=3), (0.5, 0.4), 0.3).draw(SIZE, ["nose"])
    masks = masks[:, 0]
    place = functional.adaptive_avg_pool2d(masks.float().unsqueeze(1), CELLS)
    usual = place.mean(0, keepdim=True).expand(FACES, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    noise = 0.15 * torch.randn(FACES, 2, CELLS, CELLS, generator=generator)
    maps = (torch.cat([usual / usual.max(), place], dim=1) + noise).clamp(min=0)
    threshold = activation_threshold(maps, QUANTILE)
    rows = torch.arange(FACES)
    iou = concept_iou(maps, threshold, masks, rows, torch.zeros_like(rows), 1)[:, 0]
    z = evidence(pictures, masks, maps)["placed_z"][:, NOSE]
    offset = (masks.float().mean(1) @ torch.arange(SIZE).float()) / masks.float().mean(1).sum(1)
    shown = offset.argsort()[torch.linspace(2, FACES - 3, 7).long()]  # noses from left to right
    figure, axes = plt.subplots(2, len(shown), figsize=(11, 3.6))
    titles = ("fires at one place of the frame", "fires on the nose")
    for u, title in enumerate(titles):
        area = firing_area(maps[shown, u], threshold[u].expand(len(shown)), (SIZE, SIZE))
        for column, i in enumerate(shown.tolist()):
            axis = axes[u, column]
            light = torch.where(area[column], 1.0, 0.35)
            axis.imshow((pictures[i].permute(1, 2, 0) / 255 * light.unsqueeze(2)).numpy())
            axis.contour(masks[i].numpy(), levels=[0.5], colors="cyan", linewidths=1)
            axis.axis("off")
        said = f"{title}: IoU with the nose {iou[u]:.2f}; exchanged masks z = {z[u]:.1f}"
        figure.text(0.02, 0.95 - 0.49 * u, said, fontsize=11)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.93, wspace=0.05, hspace=0.17)
    figure.savefig(path, dpi=110)
    print(f"IoU {iou.tolist()}, z {z.tolist()}")


def evidence(pictures: Tensor, masks: Tensor, maps: Tensor) -> dict[str, Tensor]:
    """Of maps on faces of which the noses are known."""
    rows = torch.arange(len(masks))
    faces = FaceDictionary(
        ontology=PAPER,
        pictures=pictures,
        source=torch.full((len(masks),), PAPER.kinds.index("part")),
        group=torch.full((len(masks), len(PAPER.global_)), -1),
        masks=PackedMasks.pack(masks),
        mask_image=rows,
        mask_concept=torch.full((len(masks),), NOSE),
        names=tuple(map(str, rows.tolist())),
        labels=({},) * len(masks),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        drawn=True,
    )
    found = Evidence(faces)
    for batch in faces.batches():
        found.update(maps[batch.index], batch)
    return found.compute()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="of the picture")
    main(parser.parse_args().path)
