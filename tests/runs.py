"""A small network, its data, a quiet Trainer and a logger that remembers: what the tests of the callback train."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SIZE = (24, 32)

TENSORS_ONLY: dict[str, Any] = {"weights_only": True} if "weights_only" in signature(L.Trainer.fit).parameters else {}
"""Of ``fit``, to load nothing but tensors and plain data from a checkpoint: before lightning 2.6 one cannot say so."""


class Net(L.LightningModule):
    def __init__(self, channels: int = 3, example: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 1))
        self.example_input_array = torch.zeros(1, channels, *SIZE) if example else None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))[:, 0]

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_loss", self.loss(batch))

    def loss(self, batch: list[Tensor]) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()  # old torch has no mse_loss in bfloat16 on the CPU

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def data(
    channels: int = 3, scale: float = 1.0, workers: int = 0, count: int = 32, **options: Any
) -> tuple[DataLoader, DataLoader]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, *SIZE, generator=generator) * 2 - 1
    dataset = TensorDataset(images * scale, torch.rand(count, generator=generator))
    options = {"batch_size": 8, "num_workers": workers, **options}
    return DataLoader(dataset, shuffle=True, **options), DataLoader(dataset, **options)


def trainer(tmp_path: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
        "log_every_n_steps": 1,
    }
    return L.Trainer(callbacks=list(callbacks), **{**settings, **options})


class Memory(Logger):
    """Takes scalars and nothing else, as a logger of one's own may, and remembers them."""

    name = version = "memory"

    def __init__(self) -> None:
        Logger.__init__(self)  # by name: beside WandbLogger, super() would want its package
        self.metrics: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append((metrics, step))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def values(self, key: str) -> dict[int, float]:
        """What was logged under a key, by step."""
        found = [(step, float(metrics[key])) for metrics, step in self.metrics if key in metrics]
        assert len(dict(found)) == len(found), f"{key} was logged twice at one step"
        return dict(found)

    def steps(self, key: str) -> list[int]:
        return list(self.values(key))
