"""Dissector: what a callback dissects, and how: layers and settings, and the module of a Trainer to put them to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_hnd.activations import resolve_layers
from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dissection import Dissection, null_of
from lightning_hnd.fresh import FreshWeights, Null, fresh_null, with_null
from lightning_hnd.pipeline import choose_layers, describe, measure
from lightning_hnd.processes import Processes
from lightning_hnd.report.keys import LEARNT, QUESTIONS, keys, keys_over_time, prefix
from lightning_hnd.rules import Rule
from lightning_hnd.showing import Showing
from lightning_hnd.undisturbed import unlogged


@dataclass(frozen=True)
class Dissector:
    """Dissects the LightningModule of a Trainer, always with the same settings.

    Args:
        layers: Dotted names or globs. None: the last spatial output that the forward pass reaches.
        rules: What decides the pairings, all of one quantile; dissections are read under the last one.
        showing: How dictionaries are shown, but for what the Trainer says.
        budget: As in :func:`~lightning_hnd.dissect`.
        fresh: The networks to compare with, for what is learnt.

    Raises:
        ValueError: If ``batch_size`` or ``budget`` is out of range.
    """

    layers: tuple[str, ...] | None
    rules: tuple[Rule, ...]
    showing: Showing
    budget: int
    fresh: FreshWeights
    _nulls: dict[str, Null] = field(default_factory=dict, repr=False)  # of earlier runs, by what they depend on

    def __post_init__(self) -> None:
        if self.showing.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.showing.batch_size}")
        if self.budget < 0:
            raise ValueError(f"budget must not be negative, got {self.budget}")

    def resolve(self, pl_module: pl.LightningModule) -> tuple[str, ...]:
        """The names of the layers, as far as they can be known before the module has run.

        Raises:
            ValueError: If a name matches nothing.
        """
        return () if self.layers is None else resolve_layers(pl_module, self.layers)

    def keys(
        self, names: Sequence[str], dictionary: FaceDictionary | None, *, learnt: bool, more: Sequence[str] = ()
    ) -> list[str]:
        """Every key that will be logged, as soon as layers and dictionary are known.

        Args:
            names: The layers.
            dictionary: What they are dissected with, if it is known.
            learnt: Whether networks with fresh weights are asked.
            more: Other keys of a layer, under the last rule.
        """
        if dictionary is None:
            return []
        usual, questions = keys(dictionary.ontology), (*QUESTIONS, *((LEARNT,) if learnt else ()))
        of_rule = {rule: [*usual, *(questions if rule.level is not None else ())] for rule in self.rules}
        of_rule[self.rules[-1]] += [*keys_over_time(dictionary.ontology), *more]
        return [f"{prefix(name, rule.name)}/{key}" for rule in self.rules for name in names for key in of_rule[rule]]

    def find_layers(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, dictionary: FaceDictionary, processes: Processes
    ) -> tuple[str, ...]:
        """Chooses the layers by a forward pass; the choice is printed. Called by all processes."""
        with unlogged(pl_module), processes.forward("finding the layers"):
            names, said = choose_layers(pl_module, dictionary, self.layers, self._showing(trainer, processes))
        if said:
            rank_zero_info(f"HNDCallback: {said}")
        return names

    def asks_learnt(self, pl_module: pl.LightningModule, processes: Processes) -> bool:
        """Whether networks with fresh weights will be asked what is learnt.

        If they cannot be made that is an error where somebody asked for them, and else a warning.

        Raises:
            ValueError: If so.
        """
        if self.rules[-1].level is None or not self.fresh.seeds:
            return False
        with unlogged(pl_module), processes.together("making a network with fresh weights"):
            obstacle = self.fresh.obstacle(pl_module, split=processes.split)
        if obstacle is None:
            return True
        if self.fresh.demanded:
            raise ValueError(obstacle)
        rank_zero_warn(
            f"HNDCallback does not ask what is learnt in training: {obstacle}. HNDCallback(fresh_seeds=()) does without"
        )
        return False

    def null(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        dictionary: FaceDictionary,
        names: Sequence[str],
        processes: Processes,
        earlier: Sequence[Dissection | None],
    ) -> Null:
        """What fresh weights do: as remembered, as an earlier dissection holds it, or found out by all processes."""
        key = self.fresh.key(pl_module, dictionary, names, self.showing)
        known = self._nulls.get(key)
        for dissection in earlier:
            if known is None and dissection is not None and dissection.info.get("fresh") == key:
                known = {layer.name: null_of(layer.statistics) for layer in dissection}
        missing = any(processes.any([known is None]))  # asked by all, also by those that know
        if known is None or missing:
            showing = self._showing(trainer, processes)
            with unlogged(pl_module):
                known = fresh_null(pl_module, dictionary, names, showing, fresh=self.fresh, budget=self.budget)
        self._nulls[key] = known
        return known

    def measure(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        dictionary: FaceDictionary,
        names: Sequence[str],
        processes: Processes,
    ) -> dict[str, dict[str, Tensor]]:
        """Shows a dictionary to the module. Called by all processes, which share it."""
        rule, showing = self.rules[-1], self._showing(trainer, processes)
        evidence = rule.level is not None
        with unlogged(pl_module):
            return measure(
                pl_module, dictionary, names, rule.quantile, showing, budget=self.budget, evidence=evidence
            )  # fmt: skip

    def dissect(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        dictionary: FaceDictionary,
        names: Sequence[str],
        processes: Processes,
        *,
        null: Null,
        at_start: bool,
    ) -> Dissection:
        """Dissects the module as it is now. Called by all processes."""
        statistics = with_null(self.measure(trainer, pl_module, dictionary, names, processes), null)
        moment = {"epoch": trainer.current_epoch, "step": trainer.global_step, "at_start": at_start}
        fresh = {"fresh": self.fresh.key(pl_module, dictionary, names, self.showing)} if null else {}
        info = {**describe(dictionary), **moment, **fresh}
        return Dissection.from_statistics(statistics, dictionary.ontology, self.rules[-1], info)

    def _showing(self, trainer: pl.Trainer, processes: Processes) -> Showing:
        return replace(
            self.showing,
            progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
            context=trainer.precision_plugin.forward_context,
            processes=processes,
        )
