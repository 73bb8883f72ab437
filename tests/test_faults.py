"""What ``docs/faults.md`` says of each fault; what being killed does is in ``test_resume``."""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path
from typing import IO, Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import random_dictionary
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import Memory, Net, data, trainer
from test_resume import AfterEpochOne
from torch import Tensor, nn

from lightning_hnd import Alarm, HNDCallback
from lightning_hnd.report import history
from lightning_hnd.training import loggers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]
KEY = "hnd/body.2/readme/mean_iou"


class Run:
    """A run of three epochs that meets a fault, and what is left of it."""

    def __init__(self, folder: Path, callback: HNDCallback, net: L.LightningModule | None = None) -> None:
        self.callback, self.logger, self.folder = callback, Memory(), folder
        self.net = Net() if net is None else net
        keep = ModelCheckpoint(folder / "kept", save_top_k=-1)
        self.trainer = trainer(folder, callback, keep, logger=self.logger, max_epochs=3)

    def fit(self) -> Run:
        self.trainer.fit(self.net, *data())
        return self

    def left(self) -> tuple[list[int], list[int], list[int]]:
        """The steps that were logged, those in files, and those checkpointed, all of which can be read."""
        folder = self.folder / "memory/memory/hnd"
        files = [int(d.info["step"]) for d in history(folder)] if folder.is_dir() else []
        if folder.is_dir():
            left = [path for path in folder.iterdir() if not path.name.startswith("timeline")]
            assert len(files) == len(left), "something half-written remains"
        kept = [torch.load(path, weights_only=True) for path in (self.folder / "kept").glob("*.ckpt")]
        return self.logger.steps(KEY), files, sorted(checkpoint["global_step"] for checkpoint in kept)


def full_disk(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """No space is left when the dissection of a step has been written half."""
    write = np.savez_compressed

    def savez(file: IO[bytes], header: np.ndarray, **arrays: Any) -> None:
        if f'"step": {step},' in header.tobytes().decode():
            file.write(b"half of a zip")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, header=header, **arrays)

    monkeypatch.setattr(np, "savez_compressed", savez)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch, step=8)
    run = Run(tmp_path / "raise", HNDCallback(random_dictionary()))
    with pytest.raises(OSError, match=r"No space left on device: .*epoch=0001-step=00000008\.hnd"):
        run.fit()
    assert run.left() == ([0, 3], [0, 4], [4])
    run = Run(tmp_path / "warn", HNDCallback(random_dictionary(), on_error="warn"))
    with pytest.warns(
        UserWarning, match=r"could not write the dissection of epoch 1, step 8 to a file: OSError: .*No sp"
    ):
        run.fit()
    assert run.left() == ([0, 3, 7, 11], [0, 4, 12], [4, 8, 12])
    assert not np.isnan(list(run.logger.values(KEY).values())).any()


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_log_directory_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path, on_error: Any) -> None:
    (tmp_path / "memory").write_text("a file, where the logs should go")
    run = Run(tmp_path, HNDCallback(random_dictionary(), on_error=on_error))
    with pytest.raises(OSError, match=r"memory/memory"):
        run.fit()
    assert run.trainer.global_step == 0


def test_a_dictionary_whose_files_vanish(tmp_path: Path, folder: Path) -> None:
    class Vanish(Net):
        def on_train_start(self) -> None:
            shutil.rmtree(folder)

    run = Run(tmp_path / "run", HNDCallback(folder), Vanish()).fit()
    assert run.left() == ([0, 3, 7, 11], [0, 4, 8, 12], [4, 8, 12])
    with pytest.raises(FileNotFoundError, match=f"there is no Face Dictionary at {folder}: no such folder"):
        HNDCallback(folder)


class Broken(Net):
    """Its weights become NaN in the second epoch, or its activations too large for float32."""

    value = float("nan")

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == 6:
            with torch.no_grad():
                self.body[0].weight.fill_(self.value)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.head(torch.ones(1, 6)).mean()  # the optimizer does not touch the body any more


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_of_nan(tmp_path: Path, value: float) -> None:
    net = Broken()
    net.value = value
    run = Run(tmp_path / "raise", HNDCallback(random_dictionary()), net)
    with pytest.raises(ValueError, match=r"layer 'body.2': 6 of 6 units .* NaN or infinite"):
        run.fit()
    assert run.left() == ([0, 3], [0, 4], [4])
    net = Broken()
    net.value = value
    run = Run(tmp_path / "warn", HNDCallback(random_dictionary(), on_error="warn"), net)
    with pytest.warns(
        UserWarning, match=r"could not dissect the model at epoch 1, step 8: ValueError: layer 'body.2': "
    ):
        run.fit()
    assert run.left() == ([0, 3, 7, 11], [0, 4], [4, 8, 12])
    assert list(np.isnan(list(run.logger.values(KEY).values()))) == [False, False, True, True]


def test_a_model_that_is_broken_from_the_start(tmp_path: Path) -> None:
    net = Net()
    nn.init.constant_(net.body[0].weight, float("nan"))
    run = Run(tmp_path, HNDCallback(random_dictionary(), on_error="warn"), net)
    with pytest.raises(ValueError, match=r"layer 'body.2': 6 of 6 units .* NaN or infinite"):
        run.fit()
    assert run.trainer.global_step == 0


def test_a_constant_unit(tmp_path: Path) -> None:
    class Constant(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.body[1].weight[2], self.body[1].bias[2] = 0.0, 1.0
            return super().forward(x)

    run = Run(tmp_path, HNDCallback(random_dictionary()), Constant()).fit()
    assert run.left() == ([0, 3, 7, 11], [0, 4, 8, 12], [4, 8, 12])
    assert run.callback.latest is not None
    layer = run.callback.latest["body.2"]
    assert layer.units[2].dead
    assert (layer.units[2].region, layer.units[2].concepts, layer.units[2].groups) == (None, (), ())
    assert list(run.logger.values("hnd/body.2/readme/dead_units").values())[-1] == layer.dead.sum() >= 1


class Grown(Net):
    """Has two units more from the second epoch on."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.body, self.head = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Identity(), nn.ReLU()), nn.Linear(8, 1)
            self.trainer.optimizers = [torch.optim.Adam(self.parameters(), 0.01)]


def test_a_layer_whose_units_become_more(tmp_path: Path) -> None:
    run = Run(tmp_path / "raise", HNDCallback(random_dictionary()), Grown())
    with pytest.raises(ValueError, match=r"layer 'body.2' had units 6 before and has 8 in a later dissection"):
        run.fit()
    assert run.left() == ([0, 3], [0, 4], [4])
    run = Run(tmp_path / "warn", HNDCallback(random_dictionary(), on_error="warn"), Grown())
    with pytest.warns(UserWarning, match=r"could not go on with the run's timeline: .* It begins anew") as caught:
        run.fit()
    assert sum("begins anew" in str(warning.message) for warning in caught) == 1
    assert run.left() == ([0, 3, 7, 11], [0, 4, 8, 12], [4, 8, 12])
    assert run.callback.timeline is not None
    assert [moment.step for moment in run.callback.timeline.moments] == [8, 12]


class Gated(Net):
    """Has a weight from the second epoch on that nothing resets, as those of pruned layers are."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.gate = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("seeds", [None, [1]])
def test_a_module_of_which_no_fresh_network_can_be_made_any_more(tmp_path: Path, seeds: Any) -> None:
    run = Run(tmp_path, HNDCallback(random_dictionary(), fresh_seeds=seeds), Gated())
    with pytest.warns(UserWarning, match=r"asks what is learnt with networks of the module as it was: .* Gated: gate"):
        run.fit()
    assert run.left() == ([0, 3, 7, 11], [0, 4, 8, 12], [4, 8, 12])
    assert run.logger.steps("hnd/body.2/above_chance/learnt_units") == [0, 3, 7, 11]
    assert all(dissection["body.2"].asked_fresh for dissection in history(tmp_path / "memory/memory/hnd"))


class Interrupted:
    """A forward pass that is interrupted in the second epoch's dissection: one call to choose, then one for each."""

    def __init__(self, error: BaseException) -> None:
        self.calls, self.error = 0, error

    def __call__(self, net: L.LightningModule, images: Tensor) -> None:
        self.calls += 1
        net(images)
        if self.calls == 4:
            raise self.error


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_want_of_memory(tmp_path: Path, on_error: Any) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    callback = HNDCallback(random_dictionary(), on_error=on_error, fresh_seeds=(), forward_fn=Interrupted(error))
    run = Run(tmp_path, callback)
    with (
        pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"),
        pytest.warns(
            UserWarning, match=r"could not dissect the model at epoch 1, step 8 for want of memory; a smaller"
        ),
    ):
        run.fit()
    assert run.left() == ([0, 3], [0, 4], [4])


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_ctrl_c(tmp_path: Path, on_error: Any) -> None:
    """Lightning ends the run in its own way, with ``SystemExit`` or by returning."""
    interrupted = Interrupted(KeyboardInterrupt())
    callback = HNDCallback(random_dictionary(), on_error=on_error, fresh_seeds=(), forward_fn=interrupted)
    run = Run(tmp_path, callback)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        run.fit()
    assert run.trainer.interrupted
    assert run.left() == ([0, 3], [0, 4], [4])
    assert len((tmp_path / "memory/memory/hnd/timeline.csv").read_text().splitlines()) == 1 + 2  # moments
    assert list((tmp_path / "memory/memory/hnd").glob("timeline-*.png"))
    assert not any(module._forward_hooks for module in run.net.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("fault", [OSError("no room"), MemoryError("no room")])
def test_what_ended_a_run_is_told_also_where_its_timeline_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    class Failing(Net):
        def on_train_epoch_end(self) -> None:
            raise RuntimeError("boom")

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr("lightning_hnd.training.publishing.write_timeline", fail)
    run = Run(tmp_path, HNDCallback(random_dictionary(), fresh_seeds=()), Failing())
    with (
        pytest.warns(UserWarning, match="could not write the timeline of the run"),
        pytest.raises(RuntimeError, match="boom"),
    ):
        run.fit()


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_timeline_that_cannot_be_written_is_warned_of(tmp_path: Path, on_error: Any) -> None:
    class Full(Net):
        def on_train_end(self) -> None:
            (tmp_path / "memory/memory/hnd/timeline.csv").mkdir()

    run = Run(tmp_path, HNDCallback(random_dictionary(), on_error=on_error), Full())
    with pytest.warns(UserWarning, match=r"could not write the timeline of the run: \w*Error: .* are there"):
        run.fit()
    assert run.left() == ([0, 3, 7, 11], [0, 4, 8, 12], [4, 8, 12])


def test_a_function_of_an_alert_that_fails(tmp_path: Path) -> None:
    def call(alarm: Alarm) -> None:
        raise ConnectionError("nobody answers")

    alert = AfterEpochOne("gender", for_epochs=1, then=call)
    run = Run(tmp_path / "raise", HNDCallback(random_dictionary(), alerts=alert))
    with pytest.raises(ConnectionError, match="nobody answers"):
        run.fit()
    assert run.left() == ([0, 3], [0, 4, 8], [4])
    run = Run(tmp_path / "warn", HNDCallback(random_dictionary(), alerts=alert, on_error="warn"))
    with pytest.warns(UserWarning, match="not call the function of the alert .gender.: ConnectionError: nobody"):
        run.fit()
    assert run.left() == ([0, 3, 7, 11], [0, 4, 8, 12], [4, 8, 12])
    assert list(run.logger.values("hnd/body.2/above_chance/alert/gender/raised").values()) == [0, 0, 1, 1]


def test_a_picture_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_loggers import RecordingWandb

    def draw(layer: object) -> None:
        raise RuntimeError("no fonts")

    def fit(**options: Any) -> None:
        callback = HNDCallback(random_dictionary(), **options)
        run = trainer(tmp_path, callback, logger=RecordingWandb(), max_epochs=1)

        class Late(Net):
            def on_train_start(self) -> None:
                monkeypatch.setattr(loggers, "concept_histogram", draw)

        with monkeypatch.context():
            run.fit(Late(), *data())

    with pytest.raises(RuntimeError, match="no fonts"):
        fit()
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="could not draw tables and pictures: RuntimeError: no fonts"):
        fit(on_error="warn")
