"""Dissector: how a callback dissects the module of its Trainer: layers and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.evidence.fresh import FreshWeights, Null, fresh_null, with_null
from lightning_hnd.layer_dissection import null_of
from lightning_hnd.pipeline import choose_layers, describe, measure
from lightning_hnd.report.keys import keys, keys_over_time, prefix
from lightning_hnd.rules import Rule
from lightning_hnd.showing.activations import resolve_layers
from lightning_hnd.showing.showing import Showing
from lightning_hnd.showing.undisturbed import undisturbed, unlogged
from lightning_hnd.training.progress import bar_of
from lightning_hnd.training.subject import Subject


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
        ValueError: If ``budget`` is negative.
    """

    layers: tuple[str, ...] | None
    rules: tuple[Rule, ...]
    showing: Showing
    budget: int
    fresh: FreshWeights
    _nulls: dict[str, Null] = field(default_factory=dict, repr=False)  # of earlier runs, by what they depend on

    def __post_init__(self) -> None:
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
        of_rule = {rule: [*keys(dictionary.ontology, rule, learnt=learnt)] for rule in self.rules}
        of_rule[self.rules[-1]] += [*keys_over_time(dictionary.ontology), *more]
        return [f"{prefix(name, rule.name)}/{key}" for rule in self.rules for name in names for key in of_rule[rule]]

    def find_layers(self, subject: Subject) -> tuple[str, ...]:
        """Chooses the layers by a forward pass; the choice is printed."""
        with unlogged(subject.module), subject.processes.forward("finding the layers"):
            names, said = choose_layers(subject.module, subject.dictionary, self.layers, self._showing(subject))
        if said:
            rank_zero_info(f"HNDCallback: {said}")
        return names

    def asks_learnt(self, subject: Subject) -> bool:
        """Whether networks with fresh weights will be asked what is learnt.

        If they cannot be made that is an error where somebody asked for them, and else a warning.

        Raises:
            ValueError: If so.
        """
        if self.rules[-1].level is None or not self.fresh.seeds:
            return False
        obstacle = self._obstacle(subject)
        if obstacle is None:
            return True
        if self.fresh.demanded:
            raise ValueError(obstacle)
        rank_zero_warn(
            f"HNDCallback does not ask what is learnt in training: {obstacle}. What is interpretable, and which "
            "groups units go with, then counts what networks with random weights show as well. "
            "HNDCallback(fresh_seeds=()) does without knowingly"
        )
        return False

    def null(self, subject: Subject, earlier: Sequence[Dissection | None]) -> Null:
        """What fresh weights do: as remembered, as an earlier dissection holds it, or found out now.

        Args:
            subject: The model as it is now.
            earlier: Dissections of the run, the latest first. Where the module has changed such that no network can be
                made of it any more (pruned, say), what they hold counts, with a warning.

        Raises:
            ValueError: If there is no such dissection then.
        """
        key = self._fresh_key(subject)
        known = self._nulls.get(key)
        asked = [dissection for dissection in earlier if dissection is not None and "fresh" in dissection.info]
        for dissection in asked:
            if known is None and dissection.info["fresh"] == key:
                known = _null_in(dissection)
        missing = any(subject.processes.any([known is None]))  # asked by all, also by those that know
        if known is None or missing:
            obstacle = self._obstacle(subject) if asked else None
            if obstacle is not None:
                rank_zero_warn(f"HNDCallback asks what is learnt with networks of the module as it was: {obstacle}")
                known = _null_in(asked[0])
            else:
                rank_zero_info(
                    f"HNDCallback: shows the dictionary to {len(self.fresh.seeds)} networks with fresh weights, to "
                    "compare with; each takes as long as a dissection"
                )
                what = (subject.module, subject.dictionary, subject.layers, self._showing(subject))
                with unlogged(subject.module):
                    known = fresh_null(*what, fresh=self.fresh, budget=self.budget)
        self._nulls[key] = known
        return known

    def _obstacle(self, subject: Subject) -> str | None:
        module, processes = subject.module, subject.processes
        with unlogged(module), undisturbed(module), processes.together("making a network with fresh weights"):
            return self.fresh.obstacle(module, split=processes.split)

    def measure(self, subject: Subject) -> dict[str, dict[str, Tensor]]:
        """Shows the dictionary to the module."""
        rule, evidence = self.rules[-1], self.rules[-1].level is not None
        what = (subject.module, subject.dictionary, subject.layers, rule.quantile, self._showing(subject))
        with unlogged(subject.module):
            return measure(*what, budget=self.budget, evidence=evidence)

    def dissect(self, subject: Subject, *, null: Null, at_start: bool) -> Dissection:
        """Dissects the module as it is now."""
        statistics = with_null(self.measure(subject), null)
        trainer, dictionary = subject.trainer, subject.dictionary
        moment = {"epoch": trainer.current_epoch, "step": trainer.global_step, "at_start": at_start}
        fresh = {"fresh": self._fresh_key(subject)} if null else {}
        info = {**describe(dictionary), **moment, **fresh}
        return Dissection.from_statistics(statistics, dictionary.ontology, self.rules[-1], info)

    def _fresh_key(self, subject: Subject) -> str:
        return self.fresh.key(subject.module, subject.dictionary, subject.layers, self.showing)

    def _showing(self, subject: Subject) -> Showing:
        trainer = subject.trainer
        return replace(
            self.showing,
            bar=bar_of(trainer),
            context=trainer.precision_plugin.forward_context,
            processes=subject.processes,
        )


def _null_in(dissection: Dissection) -> Null:
    return {layer.name: null_of(layer.statistics) for layer in dissection}
