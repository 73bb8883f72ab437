"""What a Trainer must be like: whose class it is, whether it validates, and what its other callbacks read and do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_hnd.instead import instead

When = Literal["validation", "epoch", "batch", "step"]

_ABLATION, _CHURN = "/ablation/", "/churn"
_SCHEDULERS: dict[str, When] = {"epoch": "epoch", "step": "batch"}  # when they read, by their interval


class Ablates(Callback):
    """What is known here of an AblationCallback, which stands on the HNDCallback that this file serves.

    Attributes:
        concept: What it switches off the units of.
        every_n_epochs: How often.
    """

    concept: str
    every_n_epochs: int


def refuse_foreign(trainer: object) -> None:
    """Refuses a Trainer of ``pytorch_lightning``, whose classes are others than those of ``lightning.pytorch``.

    Raises:
        TypeError: If it is one.
    """
    if not isinstance(trainer, pl.Trainer):
        raise TypeError(
            f"HNDCallback is a callback of lightning.pytorch, and this Trainer is of {type(trainer).__module__}: "
            "import Trainer and LightningModule from lightning.pytorch instead (`import lightning as L`)"
        )


def warn_without_validation(trainer: pl.Trainer) -> None:
    """Warns of a run in which no validation comes at which to dissect."""
    if not trainer.enable_validation:
        rank_zero_warn(
            "HNDCallback dissects at validation, and this run has none (no validation_step or dataloader, or "
            "limit_val_batches=0): only the state at start will be seen. To dissect when a training epoch ends "
            "give HNDCallback(at_train_epoch_end=True)"
        )


def refuse_without_validation(trainer: pl.Trainer, keys: Sequence[str]) -> None:
    """Refuses whoever waits for what is measured at validation in a run in which none comes.

    Args:
        trainer: The trainer.
        keys: Those that are measured at validation.

    Raises:
        ValueError: If there is one.
    """
    for who, monitor, *_ in monitors(trainer):
        if monitor in keys and not trainer.enable_validation:
            raise ValueError(
                f"{who} monitors {monitor!r}, which HNDCallback measures at validation, and this run has none. Give "
                "HNDCallback(at_train_epoch_end=True)"
            )


class Watch(NamedTuple):
    """Who watches one of our keys.

    Attributes:
        who: The name of its class.
        monitor: The key.
        when: It reads when a validation ends, when a training epoch ends, after a batch and the validation that may
            follow it, or at a step, before that validation.
        every: How many epochs or batches there are from one reading to the next, where that counts.
    """

    who: str
    monitor: str
    when: When
    every: int = 1


def monitors(trainer: pl.Trainer) -> list[Watch]:
    """Who watches which of our keys: callbacks that stop or keep, and learning-rate schedulers once they exist."""
    watching = [
        _watch(trainer, callback)
        for callback in _callbacks(trainer)
        if isinstance(callback, EarlyStopping | ModelCheckpoint)
    ]
    watching += [
        Watch("ReduceLROnPlateau", config.monitor or "", _SCHEDULERS[config.interval or "epoch"], config.frequency)
        for config in trainer.strategy.lr_scheduler_configs
        if config.reduce_on_plateau
    ]
    return [watch for watch in watching if watch.monitor.startswith("hnd/")]


def _watch(trainer: pl.Trainer, callback: EarlyStopping | ModelCheckpoint) -> Watch:
    who, monitor = type(callback).__name__, callback.monitor or ""
    if isinstance(callback, EarlyStopping):
        return Watch(who, monitor, "epoch" if callback._check_on_train_epoch_end else "validation")
    if not callback.every_n_epochs:  # but every so many steps, or minutes
        return Watch(who, monitor, "step")
    if callback._should_save_on_train_epoch_end(trainer):
        return Watch(who, monitor, "epoch", callback.every_n_epochs)
    return Watch(who, monitor, "validation")


def refuse_stale(trainer: pl.Trainer, keys: Sequence[str], every_n_epochs: int, *, at_train_epoch_end: bool) -> None:
    """Refuses whoever would read, when there was no dissection, an old value as a new one: Lightning keeps it.

    Args:
        trainer: The trainer.
        keys: Those of one HNDCallback.
        every_n_epochs: How often it dissects.
        at_train_epoch_end: Whether it does when training epochs end, and not at validation.

    Raises:
        ValueError: If there is one.
    """
    apart = 1 if at_train_epoch_end else trainer.check_val_every_n_epoch or 1  # epochs, of two occasions to measure
    for watch in monitors(trainer):
        who, monitor, when, _ = watch
        start, ablation, rest = monitor.partition(_ABLATION)
        if (f"{start}{_CHURN}" if ablation else monitor) not in keys:
            continue
        measuring = {"HNDCallback": every_n_epochs}
        if ablating := _ablating(trainer, rest):
            measuring["AblationCallback"] = ablating[0].every_n_epochs
        for whose, epochs in measuring.items():
            if epochs > apart:
                raise ValueError(
                    f"{who} monitors {monitor!r}, which {whose} measures every {epochs} epochs only; in between it "
                    f"would read an old value as a new one. Give {whose}(every_n_epochs=1)"
                )
        if when in ("batch", "step") and (at_train_epoch_end or not _validated(trainer, watch)):
            raise ValueError(
                f"{who} reads {monitor!r} after training steps, also those after which HNDCallback does not measure it "
                "first; it would read an old value as a new one. Give ModelCheckpoint(every_n_epochs=1), or the "
                'scheduler {"interval": "epoch"}'
            )
        if at_train_epoch_end and when == "validation":
            raise ValueError(
                f"{who} reads {monitor!r} when a validation ends, and HNDCallback(at_train_epoch_end=True) measures it "
                "later; it would read an old value as a new one. Give EarlyStopping(check_on_train_epoch_end=True) or "
                "ModelCheckpoint(save_on_train_epoch_end=True)"
            )
        if not at_train_epoch_end and not _validated(trainer, watch):
            raise ValueError(
                f"{who} reads {monitor!r} when a training epoch ends, also one without the validation at which "
                "HNDCallback measures it; then it would read an old value as a new one. Give "
                "HNDCallback(at_train_epoch_end=True)"
            )


def _validated(trainer: pl.Trainer, watch: Watch) -> bool:
    """Whether a validation comes before each reading: in the epoch that ends, or after the batch."""
    if watch.when == "validation":
        return True
    epochs, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch  # no epochs: batches count through
    if watch.when == "step" or batches is None:  # no batches: the clock says when to validate
        return False
    if watch.when == "epoch":
        return batches <= trainer.num_training_batches if epochs is None else watch.every % epochs == 0
    in_step = epochs == 1 or (epochs is None and trainer.num_training_batches % batches == 0)
    return in_step and watch.every % batches == 0


def refuse_stopping_at_nan(trainer: pl.Trainer) -> None:
    """Refuses whoever would end the run when a dissection fails and its scalars are NaN.

    Raises:
        ValueError: If there is one.
    """
    for callback in _callbacks(trainer):
        if (
            isinstance(callback, EarlyStopping)
            and callback.check_finite
            and (callback.monitor or "").startswith("hnd/")
        ):
            raise ValueError(
                f"EarlyStopping monitors {callback.monitor!r}, and HNDCallback(on_error='warn') logs NaN when a "
                "dissection fails, at which EarlyStopping would end the run. Give EarlyStopping(check_finite=False)"
            )


def refuse_unknown(trainer: pl.Trainer, known: Sequence[str]) -> None:
    """Refuses whoever waits for a key that will never be logged.

    Args:
        trainer: The trainer.
        known: The keys that will be.

    Raises:
        ValueError: If there is one, with the nearest keys.
    """
    for who, monitor, *_ in monitors(trainer):
        if _ABLATION in monitor:
            _refuse_unmeasured(trainer, who, monitor, known)
        elif monitor not in known:
            raise ValueError(
                f"{who} monitors {monitor!r}, which HNDCallback does not log; {instead(monitor, known, most=5)}"
            )


def _refuse_unmeasured(trainer: pl.Trainer, who: str, monitor: str, known: Sequence[str]) -> None:
    """Refuses whoever waits for an ablation that nobody makes; groups are not known yet."""
    start, _, rest = monitor.partition(_ABLATION)
    ours = _ablating(trainer, rest)
    if not ours:
        there = ", ".join(repr(c.concept) for c in _callbacks(trainer) if isinstance(c, Ablates)) or "none"
        raise ValueError(
            f"{who} monitors {monitor!r}, but no AblationCallback of that concept is in the Trainer; there are those "
            f"of: {there}"
        )
    starts = [key.removesuffix(_CHURN) for key in known if key.endswith(_CHURN)]  # of the rule that decides pairings
    if start not in starts:
        there = ", ".join(f"{other}{_ABLATION}{ours[0].concept}/..." for other in starts)
        raise ValueError(f"{who} monitors {monitor!r}, and what AblationCallback logs is {there}")


def _ablating(trainer: pl.Trainer, rest: str) -> list[Ablates]:
    """Who measures what a key says after ``/ablation/``."""
    return [c for c in _callbacks(trainer) if isinstance(c, Ablates) and rest.startswith(f"{c.concept}/")]


def refuse_untold(trainer: pl.Trainer, at_start: Mapping[str, float]) -> None:
    """Refuses whoever would wait for a number that the dictionary cannot give.

    Args:
        trainer: The trainer.
        at_start: The scalars of the baseline.

    Raises:
        ValueError: If there is one.
    """
    for who, monitor, *_ in monitors(trainer):
        if math.isnan(at_start.get(monitor, 0.0)):
            raise ValueError(
                f"{who} monitors {monitor!r}, which is NaN: the dictionary has not enough faces to tell. Monitor "
                "another key, or give a dictionary that has them"
            )


def refuse_shared(mine: Sequence[str], others: Sequence[str]) -> None:
    """Refuses a key that two callbacks would log, since Lightning would log the mean of the two.

    Raises:
        ValueError: If there is one.
    """
    shared = set(mine) & set(others)
    if shared:
        raise ValueError(
            f"two HNDCallbacks of this Trainer would log {min(shared)!r}, and Lightning would log their mean; give "
            "them different layers or rules (level=None leaves above_chance to the other), or dissect with the second "
            "dictionary in another run"
        )


def warn_of_averaging(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Warns of averaged weights that are validated, and taken back before the callback sees them.

    Args:
        trainer: The trainer.
        callback: One that measures at validation.
    """
    averaging = getattr(pl.callbacks, "WeightAveraging", ())  # since lightning 2.6
    callbacks = _callbacks(trainer)
    for other in callbacks[: callbacks.index(callback)]:
        if isinstance(other, averaging):
            name, ours = type(other).__name__, type(callback).__name__
            rank_zero_warn(
                f"{name} stands before {ours} and takes its averaged weights back at the end of a validation, so "
                f"that others than the validated ones are measured: give callbacks=[..., {ours}(...), {name}(...)]"
            )


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
