"""AblationCallback: during training, what becomes of a validation metric without the units of a concept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torchmetrics import Metric

from lightning_hnd.ablation import Ablation, Predict, ablate, paired_units
from lightning_hnd.callback import HNDCallback
from lightning_hnd.report.keys import prefix
from lightning_hnd.undisturbed import unlogged


class AblationCallback(Callback):
    """Every few epochs switches off the units that are paired with a concept, and measures what changes.

    To stand behind the HNDCallback whose pairings it takes, both in ``Trainer(callbacks=[...])``. The validation data
    is gone through once more, and ``1 + controls`` times again where a unit is paired; training is not disturbed.

    **Logged scalars** under ``hnd/<layer>/<rule>/ablation/<concept>/``: ``units``, how many are paired;
    ``overall/effect``, what switching them off changes, and ``overall/random``, what as many others do on average; and
    the same for each group that the batches name. 0 where no unit is paired.

    Args:
        concept: As in :func:`~lightning_hnd.ablate`.
        metric: As there.
        every_n_epochs: When so many epochs have passed since the last time; in epochs without a dissection never.
        predict: As there, where batches are not ``(images, target)`` or ``(images, target, group)``.
        controls: As there.
        seed: As there.
        dataloader: The number of the validation dataloader, of several.

    Raises:
        ValueError: Before the first step, if a value is out of range, or there is no HNDCallback before this one.

    Attributes:
        latest: What was found last, layer by layer.
    """

    def __init__(
        self,
        concept: str,
        metric: Metric,
        every_n_epochs: int = 5,
        predict: Predict | None = None,
        controls: int = 20,
        seed: int = 0,
        dataloader: int = 0,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("controls", controls)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.concept = concept
        self.latest: dict[str, Ablation] = {}
        self._metric = metric
        self._every_n_epochs = every_n_epochs
        self._options: dict[str, Any] = {"predict": predict, "controls": controls, "seed": seed}
        self._dataloader = dataloader
        self._last_epoch: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds the HNDCallback."""
        if stage == TrainerFn.FITTING:
            _dissecting(trainer, self)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a concept that the ontology lacks, once the first dissection is there."""
        baseline = _dissecting(trainer, self).baseline
        for layer in baseline or ():
            paired_units(layer, self.concept)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures, if it is time and the model was just dissected."""
        dissection = _dissecting(trainer, self).latest
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or dissection is None:
            return
        if self._last_epoch is not None and 0 <= trainer.current_epoch - self._last_epoch < self._every_n_epochs:
            return
        if dissection.info["step"] != trainer.global_step:
            return
        self._last_epoch = trainer.current_epoch
        data = _Batches(trainer, pl_module, self._dataloader)
        for layer in dissection:
            with unlogged(pl_module), trainer.precision_plugin.forward_context():
                found = ablate(
                    pl_module,
                    dissection,
                    concept=self.concept,
                    metric=self._metric,
                    dataloader=data,
                    layer=layer.name,
                    none_paired="measure",
                    **self._options,
                )
            self.latest[layer.name] = found
            rank_zero_info(str(found))
            values = {"units": float(len(found.units)), **found.scalars()}
            for key, value in values.items():
                name = f"{prefix(layer.name, dissection.rule.name)}/ablation/{self.concept}/{key}"
                pl_module.log(name, torch.tensor(value), on_step=False, on_epoch=True, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"last_epoch": self._last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where a run left off."""
        self._last_epoch = state_dict["last_epoch"]

    @property
    def state_key(self) -> str:
        """Tells two of one Trainer apart."""
        return self._generate_state_key(concept=self.concept)


class _Batches:
    """The validation batches, on the module's device, as often as they are asked for."""

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, number: int) -> None:
        loaders = trainer.val_dataloaders
        several = list(loaders.values()) if isinstance(loaders, dict) else loaders
        several = several if isinstance(several, list | tuple) else [several]
        if not number < len(several):
            raise ValueError(
                f"there are {len(several)} validation dataloaders, and dataloader={number} is none of them"
            )
        self._loader, self._limit = several[number], trainer.num_val_batches[number]
        self._trainer, self._module = trainer, pl_module

    def __iter__(self) -> Iterator[Any]:
        limit = None if self._limit == float("inf") else int(self._limit)
        for batch in islice(self._loader, limit):
            yield self._trainer.strategy.batch_to_device(batch)


def _dissecting(trainer: pl.Trainer, callback: AblationCallback) -> HNDCallback:
    """The nearest HNDCallback before this one."""
    callbacks: list[Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
    before = [c for c in callbacks[: callbacks.index(callback)] if isinstance(c, HNDCallback)]
    if not before:
        raise ValueError(
            "AblationCallback takes pairings from an HNDCallback that stands before it: "
            "Trainer(callbacks=[HNDCallback(...), AblationCallback(...)])"
        )
    return before[-1]
