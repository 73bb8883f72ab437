"""Trains a small network on drawn faces and watches its units come to mean something: what ``make demo`` runs.

The network learns to tell a handful of attributes of rendered faces. After every epoch the callback shows
another set of rendered faces to it, the built-in dictionary, and says which units pair with which facial
concepts. With ``--shuffle`` the labels are shuffled: the same network, images and steps, but nothing about
faces to learn.

    python examples/quickstart.py [--seed 0] [--epochs 6] [--shuffle]
"""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hnd import ABOVE_CHANCE, README, HNDCallback, RenderedFaces

LABELS = ("Eyeglasses", "Smiling", "Mustache", "Wearing_Lipstick", "Bushy_Eyebrows", "Mouth_Slightly_Open", "Goatee")
SIZE = 64


class SmallFaceNet(L.LightningModule):
    """Four convolutions and a maximum over the picture, so that a unit has to find its thing anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *self.block(3, 32), nn.MaxPool2d(2), *self.block(32, 48), nn.MaxPool2d(2), *self.block(48, 64)
        )
        self.head = nn.Linear(64, len(LABELS))

    @staticmethod
    def block(inputs: int, units: int) -> list[nn.Module]:
        """A convolution, normalised and rectified."""
        return [nn.Conv2d(inputs, units, 5, padding=2), nn.BatchNorm2d(units), nn.ReLU()]

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, labels]`` of images ``[B, 3, H, W]``."""
        logits: Tensor = self.head(self.features(images).amax((2, 3)))
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Binary cross-entropy over the labels."""
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Share of right answers."""
        right = (self(batch[0]) > 0) == batch[1].bool()
        self.log("val_accuracy", right.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def faces(number: int, seed: int, shuffle: bool = False) -> TensorDataset:
    """Rendered faces in -1..1 and what they carry."""
    drawn = RenderedFaces.sample(number, seed=seed)
    images = drawn.draw(SIZE)[0].float() / 127.5 - 1
    labels = drawn.carries(LABELS).float()
    if shuffle:
        labels = labels[torch.randperm(number, generator=torch.Generator().manual_seed(seed))]
    return TensorDataset(images, labels)


def main() -> None:
    """Draws faces, trains, and lets the callback talk."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--faces", type=int, default=3000)
    parser.add_argument("--shown", type=int, help="faces of the dictionary to dissect with; all if left out")
    parser.add_argument("--shuffle", action="store_true", help="shuffle the labels: the control")
    parser.add_argument("--logs", default="demo_logs")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the faces are in memory already

    L.seed_everything(args.seed)
    print(f"Drawing {args.faces} faces to learn from ...")
    training = faces(args.faces, seed=1000 + args.seed, shuffle=args.shuffle)
    validation = faces(args.faces // 10, seed=2000 + args.seed, shuffle=args.shuffle)
    callback = HNDCallback(max_images=args.shown)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        callbacks=[callback],
        logger=TensorBoardLogger(args.logs, name=f"seed{args.seed}{'-shuffled' if args.shuffle else ''}"),
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(SmallFaceNet(), DataLoader(training, 64, shuffle=True), DataLoader(validation, 300))
    assert callback.baseline is not None
    assert callback.latest is not None
    for rule in (README, ABOVE_CHANCE):
        for before, after in zip(callback.baseline.with_rule(rule), callback.latest.with_rule(rule), strict=True):
            print(f"\nAt start {before.interpretable.sum()} units of {after.name!r} were interpretable, ", end="")
            print(f"now {after.interpretable.sum()} of {len(after)} are (rule {rule.name}).")
    print(f"Curves, tables and pictures: tensorboard --logdir {args.logs}")


if __name__ == "__main__":
    main()
