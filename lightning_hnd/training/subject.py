"""Subject: what is dissected in training, and with which faces."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.showing.processes import Processes


@dataclass(frozen=True)
class Subject:
    """The module of a Trainer, and what it is dissected with now.

    Attributes:
        trainer: The Trainer.
        module: Its module.
        dictionary: The faces.
        processes: Those that share the faces; all of them call what takes a subject.
        layers: Names of layers, once they are known.
    """

    trainer: pl.Trainer
    module: pl.LightningModule
    dictionary: FaceDictionary
    processes: Processes
    layers: tuple[str, ...] = ()
