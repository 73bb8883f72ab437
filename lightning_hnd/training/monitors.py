"""What a Trainer must be like: whose class it is, whether it validates, and what its other callbacks read and do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

_ABLATION, _CHURN = "/ablation/", "/churn"


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
    for who, monitor, _ in monitors(trainer):
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
        epochs: From one reading to the next, where it reads when training epochs end. 0: it reads when a validation
            ends. None: it reads at steps.
    """

    who: str
    monitor: str
    epochs: int | None


def monitors(trainer: pl.Trainer) -> list[Watch]:
    """Who watches which of our keys: callbacks that stop or keep, and learning-rate schedulers once they exist."""
    watching = [
        Watch(type(callback).__name__, callback.monitor or "", _epochs(trainer, callback))
        for callback in _callbacks(trainer)
        if isinstance(callback, EarlyStopping | ModelCheckpoint)
    ]
    watching += [
        Watch("ReduceLROnPlateau", config.monitor or "", config.frequency if config.interval == "epoch" else None)
        for config in trainer.strategy.lr_scheduler_configs
        if config.reduce_on_plateau
    ]
    return [watch for watch in watching if watch.monitor.startswith("hnd/")]


def _epochs(trainer: pl.Trainer, callback: EarlyStopping | ModelCheckpoint) -> int | None:
    if isinstance(callback, EarlyStopping):
        return int(bool(callback._check_on_train_epoch_end))
    if callback.every_n_epochs == 0:
        return None
    return callback.every_n_epochs if callback._should_save_on_train_epoch_end(trainer) else 0


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
    for who, monitor, epochs in monitors(trainer):
        start, ablation, _ = monitor.partition(_ABLATION)
        if (f"{start}{_CHURN}" if ablation else monitor) not in keys:
            continue
        if every_n_epochs > 1:
            raise ValueError(
                f"{who} monitors {monitor!r}, which HNDCallback measures every {every_n_epochs} epochs only; in "
                "between it would read an old value as a new one. Give HNDCallback(every_n_epochs=1)"
            )
        if at_train_epoch_end and epochs == 0:
            raise ValueError(
                f"{who} reads {monitor!r} when a validation ends, and HNDCallback(at_train_epoch_end=True) measures it "
                "later; it would read an old value as a new one. Give EarlyStopping(check_on_train_epoch_end=True) or "
                "ModelCheckpoint(save_on_train_epoch_end=True)"
            )
        if not at_train_epoch_end and epochs and not _validated(trainer, epochs):
            raise ValueError(
                f"{who} reads {monitor!r} when a training epoch ends, also one without the validation at which "
                "HNDCallback measures it; then it would read an old value as a new one. Give "
                "HNDCallback(at_train_epoch_end=True)"
            )


def _validated(trainer: pl.Trainer, epochs: int) -> bool:
    """Whether a validation comes in each of the epochs that end a group of so many."""
    if trainer.check_val_every_n_epoch is None:  # every so many batches, whatever epoch it is
        return (trainer.val_check_batch or 0) <= trainer.num_training_batches
    return epochs % trainer.check_val_every_n_epoch == 0


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
    for who, monitor, _ in monitors(trainer):
        if _ABLATION in monitor:
            _refuse_unmeasured(trainer, who, monitor, known)
        elif monitor not in known:
            near = difflib.get_close_matches(monitor, known, n=3) or known[:3]
            raise ValueError(
                f"{who} monitors {monitor!r}, which HNDCallback does not log; did you mean {', '.join(near)}?"
            )


def _refuse_unmeasured(trainer: pl.Trainer, who: str, monitor: str, known: Sequence[str]) -> None:
    """Refuses whoever waits for an ablation that nobody makes, or not in every epoch; groups are not known yet."""
    start, _, rest = monitor.partition(_ABLATION)
    ablating = [c for c in _callbacks(trainer) if isinstance(c, Ablates)]
    ours = [c for c in ablating if rest.startswith(f"{c.concept}/")]
    if not ours:
        there = ", ".join(repr(c.concept) for c in ablating) or "none"
        raise ValueError(
            f"{who} monitors {monitor!r}, but no AblationCallback of that concept is in the Trainer; there are those "
            f"of: {there}"
        )
    starts = [key.removesuffix(_CHURN) for key in known if key.endswith(_CHURN)]  # of the rule that decides pairings
    if start not in starts:
        there = ", ".join(f"{other}{_ABLATION}{ours[0].concept}/..." for other in starts)
        raise ValueError(f"{who} monitors {monitor!r}, and what AblationCallback logs is {there}")
    if ours[0].every_n_epochs > 1:
        raise ValueError(
            f"{who} monitors {monitor!r}, which AblationCallback measures every {ours[0].every_n_epochs} epochs only; "
            "in between it would read an old value as a new one. Give AblationCallback(every_n_epochs=1)"
        )


def refuse_untold(trainer: pl.Trainer, at_start: Mapping[str, float]) -> None:
    """Refuses whoever would wait for a number that the dictionary cannot give.

    Args:
        trainer: The trainer.
        at_start: The scalars of the baseline.

    Raises:
        ValueError: If there is one.
    """
    for who, monitor, _ in monitors(trainer):
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
    """Warns of averaged weights that are validated, and taken back before the callback sees them."""
    averaging = getattr(pl.callbacks, "WeightAveraging", ())  # since lightning 2.6
    callbacks = _callbacks(trainer)
    for other in callbacks[: callbacks.index(callback)]:
        if isinstance(other, averaging):
            name = type(other).__name__
            rank_zero_warn(
                f"{name} stands before HNDCallback and takes its averaged weights back at the end of a validation, so "
                f"that others than the validated ones are dissected: give callbacks=[HNDCallback(...), {name}(...)]"
            )


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
