"""Who monitors a key reads values of the epoch it is in; who would not is refused before the first step."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import random_dictionary
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from runs import Net, data, trainer

from lightning_hnd import HNDCallback
from lightning_hnd.report import scalars

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]

KEY = "hnd/body.2/readme/mean_probability/gender/Female"


class StaleError(Exception):
    """Something read what is not of this epoch."""


class Probe:
    """Told whenever somebody reads."""

    def __init__(self, callback: HNDCallback) -> None:
        self.callback = callback
        self.readings = 0

    def __call__(self, epoch: int, value: float) -> None:
        latest = self.callback.latest
        if latest is None or latest.info["epoch"] != epoch or value != pytest.approx(scalars(latest)[KEY]):
            raise StaleError
        self.readings += 1


def stops(probe: Probe, **options: Any) -> tuple[Net, L.Callback]:
    class Stop(EarlyStopping):
        def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
            probe(trainer.current_epoch, float(trainer.callback_metrics.get(KEY, torch.nan)))

    return Net(), Stop(KEY, **options)


def keeps(probe: Probe, **options: Any) -> tuple[Net, L.Callback]:
    class Keep(ModelCheckpoint):
        def _save_topk_checkpoint(self, trainer: L.Trainer, metrics: dict[str, Any]) -> None:
            probe(trainer.current_epoch, float(metrics.get(KEY, torch.nan)))

    return Net(), Keep(monitor=KEY, **options)


def slows(probe: Probe, **options: Any) -> tuple[Net, L.Callback]:
    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: int | None = None) -> None:
            probe(net.current_epoch, float(metrics))

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = {"scheduler": Plateau(optimizer), "monitor": KEY, "strict": False, **options}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    net = Scheduled()
    return net, L.Callback()


AT_EPOCH_END: dict[str, Any] = {"at_train_epoch_end": True}
EVERY_SECOND, TWICE = {"check_val_every_n_epoch": 2}, {"val_check_interval": 0.5}
EVERY_SIX_BATCHES = {"check_val_every_n_epoch": None, "val_check_interval": 6}  # of epochs of four
EVERY_THREE_BATCHES = {"check_val_every_n_epoch": None, "val_check_interval": 3}
EVERY_TWO_BATCHES = {"check_val_every_n_epoch": None, "val_check_interval": 2}
EVERY_HOUR = {"val_check_interval": timedelta(hours=1)}
since_time = pytest.mark.skipif(
    "timedelta" not in str(signature(L.Trainer).parameters["val_check_interval"]), reason="since lightning 2.6"
)


@pytest.mark.parametrize(
    ("reader", "options", "trainer_options", "ours", "in_time"),
    [
        (stops, {}, {}, {}, True),
        (stops, {}, EVERY_SECOND, {}, True),
        (stops, {}, EVERY_SECOND, {"every_n_epochs": 2}, True),
        (stops, {}, EVERY_SECOND, {"every_n_epochs": 3}, False),
        (stops, {"check_on_train_epoch_end": True}, EVERY_SECOND, {}, False),
        (stops, {"check_on_train_epoch_end": True}, EVERY_SECOND, AT_EPOCH_END, True),
        (stops, {"check_on_train_epoch_end": True}, EVERY_SECOND, {**AT_EPOCH_END, "every_n_epochs": 2}, False),
        (stops, {"check_on_train_epoch_end": True}, TWICE, {}, True),
        (stops, {"check_on_train_epoch_end": True}, EVERY_SIX_BATCHES, {}, False),
        (stops, {"check_on_train_epoch_end": True}, EVERY_THREE_BATCHES, {}, True),
        (stops, {"check_on_train_epoch_end": False}, {}, {}, True),
        (stops, {"check_on_train_epoch_end": False}, {}, AT_EPOCH_END, False),
        (stops, {}, TWICE, AT_EPOCH_END, False),
        pytest.param(stops, {"check_on_train_epoch_end": True}, EVERY_HOUR, {}, False, marks=since_time),
        (keeps, {}, {}, AT_EPOCH_END, True),
        (keeps, {}, EVERY_SECOND, AT_EPOCH_END, False),
        (keeps, {}, EVERY_SECOND, {"every_n_epochs": 2}, True),
        (keeps, {"save_on_train_epoch_end": True}, EVERY_SECOND, {}, False),
        (keeps, {"save_on_train_epoch_end": True, "every_n_epochs": 2}, EVERY_SECOND, {"every_n_epochs": 2}, True),
        (keeps, {"save_on_train_epoch_end": True, "every_n_epochs": 3}, EVERY_SECOND, {}, False),
        (keeps, {"every_n_train_steps": 2}, {}, {}, False),
        (keeps, {"every_n_train_steps": 2}, TWICE, {}, False),
        (keeps, {"train_time_interval": timedelta(microseconds=1)}, {}, AT_EPOCH_END, False),
        (slows, {}, {}, {}, True),
        (slows, {}, EVERY_SECOND, {}, False),
        (slows, {}, EVERY_SECOND, AT_EPOCH_END, True),
        (slows, {"frequency": 2}, EVERY_SECOND, {}, True),
        (slows, {"interval": "step"}, {}, {}, False),
        (slows, {"interval": "step", "frequency": 4}, {}, {}, True),
        (slows, {"interval": "step", "frequency": 4}, {}, AT_EPOCH_END, False),
        (slows, {"interval": "step", "frequency": 4}, EVERY_SECOND, {}, False),
        (slows, {"interval": "step", "frequency": 2}, TWICE, {}, True),
        (slows, {"interval": "step", "frequency": 2}, EVERY_TWO_BATCHES, {}, True),
        (slows, {"interval": "step", "frequency": 2}, EVERY_SIX_BATCHES, {}, False),
    ],
)
def test_only_who_reads_values_of_the_epoch_may_monitor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: Callable[..., tuple[Net, L.Callback]],
    options: dict[str, Any],
    trainer_options: dict[str, Any],
    ours: dict[str, Any],
    in_time: bool,
) -> None:
    def fit() -> Probe:
        callback = HNDCallback(random_dictionary(), level=None, **ours)
        probe = Probe(callback)
        net, other = reader(probe, **options)
        run = trainer(tmp_path, callback, other, max_epochs=4, **trainer_options)
        runs.append(run)
        run.fit(net, *data())
        return probe

    runs: list[L.Trainer] = []
    if in_time:
        assert fit().readings >= 2
        return
    with pytest.raises(ValueError, match=r"(Stop|Keep|ReduceLROnPlateau) (reads|monitors) .* an old value as a new"):
        fit()
    assert runs[0].global_step == 0
    monkeypatch.setattr("lightning_hnd.training.callback.refuse_stale", lambda *_, **__: None)
    with pytest.raises(StaleError):  # and rightly so
        fit()


@pytest.mark.parametrize("key", ["hnd/body.{}/readme/mean_iou", "hnd/seconds{}"])
def test_only_the_callback_that_logs_a_key_must_dissect_in_every_epoch(tmp_path: Path, key: str) -> None:
    seconds = "seconds" in key
    for often, refused in (((1, 2), False), ((2, 1), True)):
        first, second = (
            HNDCallback(random_dictionary(), layer, every_n_epochs=n, level=None)
            for layer, n in zip(("body.0", "body.2"), often, strict=True)
        )
        stop = EarlyStopping(key.format("" if seconds else "0"), patience=9)
        run = trainer(tmp_path, first, second, stop)
        if refused:
            with pytest.raises(ValueError, match="every 2 epochs only"):
                run.fit(Net(), *data())
            assert run.global_step == 0
        else:
            run.fit(Net(), *data())
            assert first.latest is not None
            assert first.latest.info["epoch"] == 1
        other = EarlyStopping(key.format("-2" if seconds else "2"), patience=9)
        run = trainer(tmp_path, first, second, other)
        if refused:
            run.fit(Net(), *data())
        else:
            with pytest.raises(ValueError, match="every 2 epochs only"):
                run.fit(Net(), *data())
