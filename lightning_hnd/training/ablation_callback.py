"""AblationCallback: during training, what becomes of a validation metric without the units of a concept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torchmetrics import Metric

from lightning_hnd.analyses.ablation import OVERALL, Ablation, Predict, ablate, predict_from_images, try_batch
from lightning_hnd.layer_dissection import LayerDissection
from lightning_hnd.report.keys import prefix
from lightning_hnd.showing.undisturbed import kept_generators, unlogged
from lightning_hnd.training.callback import HNDCallback
from lightning_hnd.training.monitors import Ablates, warn_of_averaging
from lightning_hnd.training.progress import bar_of

_KEYS = ("units", f"{OVERALL}/effect", f"{OVERALL}/random")
"""Of what is logged of a layer those that are known before anything was measured."""


class AblationCallback(Ablates):
    """Every few epochs switches off the units that are paired with a concept, and measures what changes.

    Place it after the HNDCallback whose pairings it uses in ``Trainer(callbacks=[...])``. The validation data is gone
    through once more, and ``1 + controls`` times again where a unit is paired; training is not disturbed.

    **Logged scalars** under ``hnd/<layer>/<rule>/ablation/<concept>/``: ``units``, how many are paired;
    ``overall/effect``, what switching them off changes, and ``overall/random``, what as many random ones do on average;
    and the same for each group that the batches name. 0 where no unit is paired, NaN where the dissection failed and
    training goes on (of groups from the first measurement on).

    Args:
        concept: As in :func:`~lightning_hnd.ablate`.
        metric: As there.
        every_n_epochs: Measure every so many epochs, at each dissection in such an epoch. Who monitors what is logged
            needs it measured in each epoch with a validation.
        predict: As there, where batches are not ``(images, target)`` or ``(images, target, group)``.
        controls: As there.
        seed: As there.
        dataloader: Index of the validation dataloader to use.

    Raises:
        TypeError: If ``metric`` is none of torchmetrics.
        ValueError: Before the first step, if a value is out of range, there is no HNDCallback before this one, the
            ontology has no such concept, there is no such validation dataloader, or the metric does not take what the
            model makes of its first batch (where no sanity check loads it before, in the first validation).

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
        if not isinstance(metric, Metric):
            raise TypeError(f"metric must be one of torchmetrics, such as MeanSquaredError(), got {metric!r}")
        self.concept = concept
        self.latest: dict[str, Ablation] = {}
        self._metric = metric
        self.every_n_epochs = every_n_epochs
        self._predict = predict
        self._options: dict[str, Any] = {"controls": controls, "seed": seed}
        self._dataloader = dataloader
        self._last: tuple[int, int] | None = None  # epoch and step
        self._evaluating = False
        self._tried = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds the HNDCallback."""
        self._evaluating, self._tried = stage != TrainerFn.FITTING, False
        if stage == TrainerFn.FITTING:
            _dissecting(trainer, self)
            warn_of_averaging(trainer, self)
            if trainer.global_step == 0:  # not where a run goes on; a checkpoint is loaded after this
                self._last = None

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses what cannot be measured, before the first dissection."""
        self._try(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses data that is not there, and what cannot be measured of its first batch."""
        if not trainer.enable_validation:
            raise ValueError("AblationCallback measures on the validation data, and this run has none")
        if not self._tried and trainer.val_dataloaders is not None:
            self._try(trainer, pl_module)

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data, self._tried = _Batches(trainer, self._dataloader), True
        with unlogged(pl_module):
            try_batch(pl_module, self._metric, data, self._predictor(trainer))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Refuses a concept that the ontology lacks, before the first step."""
        dictionary = _dissecting(trainer, self).dictionary
        if batch_idx == 0 and dictionary is not None:
            dictionary.ontology.labels_of(self.concept)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures, if it is time and the model was just dissected."""
        self._measure_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, where the HNDCallback dissects at the end of a training epoch."""
        self._measure_if_due(trainer, pl_module)

    def _measure_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        hnd = _dissecting(trainer, self)
        dissection = hnd.baseline if hnd.latest is None else hnd.latest  # the first one may have failed
        moment = trainer.current_epoch, trainer.global_step
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or dissection is None:
            return
        if self._last is not None:
            soon = 0 < trainer.current_epoch - self._last[0] < self.every_n_epochs
            if soon or moment == self._last:  # the end of an epoch follows the validation at its end
                return
        failed = moment == hnd.failed_at
        if dissection.info["step"] != trainer.global_step and not failed:
            return
        self._last = moment
        if failed:  # who monitors would read the old values, or find none
            for layer in dissection:
                known = _values(self.latest[layer.name]) if layer.name in self.latest else _KEYS
                self._log(pl_module, layer, dict.fromkeys(known, math.nan))
            return
        data = _Batches(trainer, self._dataloader)
        for layer in dissection:
            with unlogged(pl_module):
                found = ablate(
                    pl_module,
                    dissection,
                    concept=self.concept,
                    metric=self._metric,
                    dataloader=data,
                    layer=layer.name,
                    predict=self._predictor(trainer),
                    none_paired="measure",
                    progress=bar_of(trainer) or False,
                    **self._options,
                )
            self.latest[layer.name] = found
            rank_zero_info(str(found))
            self._log(pl_module, layer, _values(found))

    def _predictor(self, trainer: pl.Trainer) -> Predict:
        return partial(_in_precision, trainer, self._predict or predict_from_images)

    def _log(self, pl_module: pl.LightningModule, layer: LayerDissection, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            name = f"{prefix(layer.name, layer.rule.name)}/ablation/{self.concept}/{key}"
            pl_module.log(name, torch.tensor(value), on_step=False, on_epoch=True, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where a run left off, unless the checkpoint is only evaluated."""
        if not self._evaluating:
            self._last = state_dict["last"]

    @property
    def state_key(self) -> str:
        """Tells two of one Trainer apart."""
        return self._generate_state_key(concept=self.concept)


def _in_precision(trainer: pl.Trainer, predict: Predict, model: Any, batch: Any) -> tuple[Any, ...]:
    """Predicts as the Trainer does; what the metric makes of it is not for autocast."""
    with trainer.precision_plugin.forward_context():
        return predict(model, batch)


def _values(found: Ablation) -> dict[str, float]:
    return {"units": float(len(found.units)), **found.scalars()}


class _Batches:
    """The validation batches, as the model gets them, as often as they are asked for."""

    def __init__(self, trainer: pl.Trainer, number: int) -> None:
        loaders = trainer.val_dataloaders
        several = list(loaders.values()) if isinstance(loaders, dict) else loaders
        several = several if isinstance(several, list | tuple) else [several]
        if not 0 <= number < len(several):
            raise ValueError(
                f"there are {len(several)} validation dataloaders, and dataloader={number} is none of them"
            )
        self._loader, self._number = several[number], number
        self._trainer = trainer

    def __iter__(self) -> Iterator[Any]:
        most = self._trainer.num_val_batches[self._number]
        with kept_generators(self._loader):
            for batch in islice(self._loader, None if most == float("inf") else int(most)):
                converted = self._trainer.precision_plugin.convert_input(batch)
                yield self._trainer.strategy.batch_to_device(converted, dataloader_idx=self._number)


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
