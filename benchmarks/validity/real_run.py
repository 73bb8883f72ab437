"""What is learnt along a training run on photographs, epoch by epoch: printed as a table.

    python benchmarks/validity/real_run.py path/to/utkface path/to/visual_dictionary [--seed 0] [--epochs 8]

A small network learns apparent gender from UTKFace; an ``HNDCallback`` as anybody would write it dissects its last
convolution. The dictionary has other faces. The first row is the model at start.
With ``--starts`` so many networks are dissected as they are made, without training: nothing is learnt there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hnd import ABOVE_CHANCE, README, Dissection, FaceDictionary, HNDCallback
from lightning_hnd.evidence.fresh import FreshWeights, fresh_null, with_null
from lightning_hnd.pipeline import BUDGET, measure
from lightning_hnd.report import history
from lightning_hnd.report.keys import prefix, scalars
from lightning_hnd.showing.showing import Showing

SIZE = 96
LAYER = "features.11"
HELD_OUT = 400
FEMALE = "1"


class GenderNet(L.LightningModule):
    """Four convolutions, normalised and rectified, and the mean of each unit."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 24, 2), (24, 48, 2), (48, 96, 2), (96, 128, 1))
        blocks = ((nn.Conv2d(i, o, 3, s, 1), nn.BatchNorm2d(o), nn.ReLU()) for i, o, s in widths)
        self.features = nn.Sequential(*(layer for block in blocks for layer in block))
        self.head = nn.Linear(128, 1)
        self.accuracies: list[float] = []
        self.right: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B]`` of images ``[B, 3, H, W]``: positive for female."""
        logits: Tensor = self.head(self.features(images).mean((2, 3)))[:, 0]
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Binary cross-entropy."""
        return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Right answers."""
        self.right.append((self(batch[0]) > 0) == batch[1])

    def on_validation_epoch_end(self) -> None:
        """Their share."""
        self.accuracies.append(torch.cat(self.right).float().mean().item())
        self.right.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-2)


def photographs(folder: Path) -> TensorDataset:
    """Faces in -1..1, and whether they are labelled female, in an order of its own."""
    named = [(path, path.name.split("_")) for path in sorted(folder.glob("*.jpg"))]
    rows = [(path, fields[1] == FEMALE) for path, fields in named if len(fields) == 4]
    pictures = [np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))) for path, _ in rows]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return TensorDataset(images[order], torch.tensor([female for _, female in rows])[order])


def train(
    faces: TensorDataset, dictionary: FaceDictionary, seed: int, epochs: int
) -> tuple[GenderNet, list[Dissection]]:
    """Trains as anybody would, and returns what the callback found, from the model at start on."""
    images, female = faces.tensors
    L.seed_everything(seed)
    model = GenderNet()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=epochs,
            callbacks=[HNDCallback(dictionary, LAYER)],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            accelerator="cpu",
        )
        learnt_from = TensorDataset(images[HELD_OUT:], female[HELD_OUT:])
        held_out = TensorDataset(images[:HELD_OUT], female[:HELD_OUT])
        trainer.fit(model, DataLoader(learnt_from, 64, shuffle=True), DataLoader(held_out, 200))
        return model, list(history(Path(folder) / "hnd"))


def starts(dictionary: FaceDictionary, count: int) -> str:
    """How many units of networks before their first step are called learnt, with local labels alone."""
    faces = dictionary.subset((dictionary.source >= 0).nonzero().flatten())
    null = fresh_null(GenderNet(), faces, [LAYER], Showing(), fresh=FreshWeights(), budget=BUDGET)
    learnt = live = networks = 0
    for seed in range(300, 300 + count):
        L.seed_everything(seed, verbose=False)
        statistics = measure(GenderNet(), faces, [LAYER], README.quantile, Showing(), evidence=True)
        layer = Dissection.from_statistics(with_null(statistics, null), faces.ontology, ABOVE_CHANCE)[LAYER]
        found = int((layer.defence.learnt == 1).any(1).sum())
        learnt, live, networks = learnt + found, live + layer.live, networks + (found > 0)
    return f"{learnt} of {live} live units are called learnt, in {networks} of {count} networks"


def table(dissections: list[Dissection], accuracies: list[float]) -> Iterator[str]:
    """A row of Markdown for each dissection."""
    columns = (
        "epoch", "accuracy", "readme", "live", "associated", "placed", "learnt", "confounded", "above_chance",
        "group pairs", "encoding of gender", "what units learnt", "confounded with",
    )  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    shares = ["", *(f"{accuracy:.1%}" for accuracy in accuracies)]
    for epoch, (dissection, accuracy) in enumerate(zip(dissections, shares, strict=True)):
        layer, bar = dissection[LAYER], dissection.with_rule(README)
        ours = scalars(dissection)
        questions = ("associated", "placed", "learnt", "confounded")
        asked = [ours[f"{prefix(LAYER, dissection.rule.name)}/{question}_units"] for question in questions]
        units = [bar[LAYER].interpretable.sum(), layer.live, *asked, layer.interpretable.sum()]
        found = [f"{units[0]:.0f}", *(f"{n:.0f}" for n in units[1:]), _groups(dissection), _encoding(dissection)]
        cells = [str(epoch or "start"), accuracy, *found, _learnt(dissection), _confounded(dissection)]
        yield f"| {' | '.join(cells)} |"


def _groups(dissection: Dissection) -> str:
    names = dissection.ontology.labels[len(dissection.ontology.local) :]
    return _counted(names, dissection[LAYER].paired_groups.sum(0))


def _learnt(dissection: Dissection) -> str:
    names = [concept.name for concept in dissection.ontology.local]
    return _counted(names, (dissection[LAYER].defence.learnt == 1).sum(0).numpy())


def _confounded(dissection: Dissection) -> str:
    counts = Counter(f"{one.group} {one.name}" for unit in dissection[LAYER].units for one in unit.confounded)
    return _counted([*counts], np.array([*counts.values()]))


def _counted(names: list[str] | tuple[str, ...], counts: np.ndarray) -> str:
    some = sorted((-int(count), name) for name, count in zip(names, counts, strict=True) if count)
    return ", ".join(f"{name} {-count}" for count, name in some)


def _encoding(dissection: Dissection) -> str:
    k = [concept.name for concept in dissection.ontology.global_].index("gender")
    index, low, high = (dissection[LAYER].statistics[f"encoding_{part}"][k] for part in ("index", "low", "high"))
    return f"{index:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Reads the command line, trains and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("utkface", type=Path)
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--starts", type=int, default=0)
    args = parser.parse_args()
    dictionary = FaceDictionary.from_folder(args.dictionary, SIZE)
    if args.starts:
        print(starts(dictionary, args.starts))
        return
    faces = photographs(args.utkface)
    kinds = {name: int((dictionary.source == k).sum()) for k, name in enumerate(dictionary.ontology.kinds)}
    share = float(faces.tensors[1][:HELD_OUT].float().mean())
    print(f"{len(faces)} faces, {share:.1%} of those held out female; dictionary {kinds}", flush=True)
    model, dissections = train(faces, dictionary, args.seed, args.epochs)
    print("\n".join(table(dissections, model.accuracies)))


if __name__ == "__main__":
    main()
