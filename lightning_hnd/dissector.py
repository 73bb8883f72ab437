"""Dissector: what a callback dissects, and how: layers and settings, and the module of a Trainer to put them to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_hnd.activations import Grid, resolve_layers
from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.pipeline import ForwardFn, choose_layers, describe, measure
from lightning_hnd.processes import Processes
from lightning_hnd.report.keys import QUESTIONS, keys, prefix
from lightning_hnd.rules import Rule
from lightning_hnd.undisturbed import unlogged


@dataclass(frozen=True)
class Dissector:
    """Dissects the LightningModule of a Trainer, always with the same settings.

    Args:
        layers: Dotted names or globs. None: the last spatial output that the forward pass reaches.
        rule: What decides the pairings.
        grid: As in :func:`~lightning_hnd.dissect`.
        forward_fn: As in :func:`~lightning_hnd.dissect`.
        batch_size: As in :func:`~lightning_hnd.dissect`.
        budget: As in :func:`~lightning_hnd.dissect`.

    Raises:
        ValueError: If ``batch_size`` or ``budget`` is out of range.
    """

    layers: tuple[str, ...] | None
    rule: Rule
    grid: Grid | None
    forward_fn: ForwardFn | None
    batch_size: int
    budget: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.budget < 0:
            raise ValueError(f"budget must not be negative, got {self.budget}")

    def resolve(self, pl_module: pl.LightningModule) -> tuple[str, ...]:
        """The names of the layers, as far as they can be known before the module has run.

        Raises:
            ValueError: If a name matches nothing.
        """
        return () if self.layers is None else resolve_layers(pl_module, self.layers)

    def keys(self, names: Sequence[str], dictionary: FaceDictionary | None) -> list[str]:
        """Every key that will be logged, as soon as layers and dictionary are known."""
        if dictionary is None:
            return []
        every = (*keys(dictionary.ontology), *(QUESTIONS if self.rule.level is not None else ()))
        return [f"{prefix(name, self.rule.name)}/{key}" for name in names for key in every]

    def find_layers(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, dictionary: FaceDictionary, processes: Processes
    ) -> tuple[str, ...]:
        """Chooses the layers by a forward pass; the choice is printed. Called by all processes."""
        with unlogged(pl_module), processes.forward("finding the layers"):
            names, said = choose_layers(pl_module, dictionary, self.layers, **self._forward(trainer))
        if said:
            rank_zero_info(f"HNDCallback: {said}")
        return names

    def measure(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        dictionary: FaceDictionary,
        names: Sequence[str],
        processes: Processes,
    ) -> dict[str, dict[str, Tensor]]:
        """Shows a dictionary to the module. Called by all processes, which share it."""
        with unlogged(pl_module):
            return measure(
                pl_module,
                dictionary,
                names,
                self.rule.quantile,
                batch_size=self.batch_size,
                budget=self.budget,
                progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
                processes=processes,
                evidence=self.rule.level is not None,
                **self._forward(trainer),
            )

    def dissect(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        dictionary: FaceDictionary,
        names: Sequence[str],
        processes: Processes,
        *,
        at_start: bool,
    ) -> Dissection:
        """Dissects the module as it is now. Called by all processes."""
        statistics = self.measure(trainer, pl_module, dictionary, names, processes)
        moment = {"epoch": trainer.current_epoch, "step": trainer.global_step, "at_start": at_start}
        info = {**describe(dictionary), **moment}
        return Dissection.from_statistics(statistics, dictionary.ontology, self.rule, info)

    def _forward(self, trainer: pl.Trainer) -> dict[str, Any]:
        return {
            "grid": self.grid,
            "forward_fn": self.forward_fn,
            "context": trainer.precision_plugin.forward_context,
        }
