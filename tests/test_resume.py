"""Killed at any moment and resumed: one history without gap or double entry, equal to that of a run never killed."""

from __future__ import annotations

import csv
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import random_dictionary
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from runs import SIZE, TENSORS_ONLY, Net, data, trainer
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

from lightning_hnd import AblationCallback, Alarm, BiasAlert, Dissection, HNDCallback, Timeline, dissect
from lightning_hnd.history.timeline import LayerTimeline
from lightning_hnd.layer_dissection import LayerDissection
from lightning_hnd.report import history
from lightning_hnd.whole_files import sweep

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]
EPOCHS = 4


def forward(net: L.LightningModule, images: Tensor) -> None:
    net(images)


def fit(folder: Path, *others: L.Callback, resume: bool = False, epochs: int = EPOCHS, **options: Any) -> HNDCallback:
    """Trains with nothing that hangs on random numbers, so that a resumed run ends in the bits of one never killed."""
    L.seed_everything(0, verbose=False)
    net = Net()
    net.head = nn.Linear(6, 1)  # without dropout
    train = data()[1]
    ours = {name: options.pop(name) for name in ("forward_fn", "alerts", "level") if name in options}
    fresh = [1] if ours.get("level", True) is not None else None
    callback = HNDCallback(random_dictionary(), batch_size=8, fresh_seeds=fresh, **{"forward_fn": forward, **ours})
    keep = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    options.setdefault("logger", CSVLogger(folder, name="", version=""))
    run = trainer(folder, callback, *others, keep, max_epochs=epochs, **options)
    run.fit(net, train, data()[1], ckpt_path=folder / "last.ckpt" if resume else None)
    return callback


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> list[Dissection]:
    folder = tmp_path_factory.mktemp("never_killed")
    fit(folder)
    found = list(history(folder / "hnd"))
    assert [d.info["step"] for d in found] == [0, 4, 8, 12, 16]
    return found


KILLED = {
    # where the third epoch's dissection is when the process is killed
    "while it runs": """
        calls = []
        def forward(net, images):  # one to choose the layer, thrice three of fresh weights, three a dissection
            calls.append(net(images))
            if len(calls) == 1 + 3 * 3 + 3 * 3 + 2:
                os.kill(os.getpid(), signal.SIGKILL)
        fit(folder, forward_fn=forward)
        """,
    "while it is written": """
        write = np.savez_compressed
        def interrupted(file, **arrays):
            if json.loads(arrays["header"].tobytes())["info"]["step"] == 12:
                file.write(b"half of a zip"), file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            write(file, **arrays)
        np.savez_compressed = interrupted
        fit(folder)
        """,
    "on disk, and its checkpoint is half of one": """
        write = torch.save
        def interrupted(checkpoint, file, *rest, **options):
            if checkpoint["global_step"] == 12:
                file.write(b"half of a zip"), file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            write(checkpoint, file, *rest, **options)
        torch.save = interrupted
        fit(folder)
        """,
}


def killed(folder: Path, code: str) -> None:
    """Trains in another process, which ends by ``kill -9``."""
    lines = [
        "import sys; sys.path.insert(0, sys.argv[1])",
        "import json, os, signal, torch, numpy as np, lightning as L",
        "from pathlib import Path; from test_resume import fit",
        "folder = Path(sys.argv[2])",
    ]
    program = "\n".join([*lines, textwrap.dedent(code)])
    where = [str(Path(__file__).parent), str(folder)]
    result = subprocess.run([sys.executable, "-c", program, *where], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_run_continues_its_history(tmp_path: Path, never_killed: list[Dissection], moment: str) -> None:
    killed(tmp_path, KILLED[moment])
    before = {p.name: p.read_bytes() for p in (tmp_path / "hnd").glob("*.hnd")}
    assert {name for name in before if "step=00000012" not in name} == {
        "start-step=00000000.hnd",
        "epoch=0000-step=00000004.hnd",
        "epoch=0001-step=00000008.hnd",
    }
    assert list(history(tmp_path / "hnd")) == never_killed[: len(before)]  # none is half-written
    callback = fit(tmp_path, resume=True)
    assert callback.baseline == never_killed[0]
    assert list(history(tmp_path / "hnd")) == never_killed
    assert callback.timeline == Timeline.of(never_killed)
    assert not [p for p in (tmp_path / "hnd").iterdir() if p.name.startswith(".")]


class AfterEpochOne(BiasAlert):
    """One that finds what it looks for from epoch 1 on."""

    def measure(self, layer: LayerTimeline) -> tuple[np.ndarray, np.ndarray, list[str]]:
        found = np.array([float(not moment.at_start and moment.epoch >= 1) for moment in layer.moments])
        return found[:, None], 1 - found[:, None], ["it is there"]

    def refuse_deaf(self, layer: LayerDissection) -> None:
        """It hears what it wants to."""


@pytest.mark.parametrize("epochs", [2, 3])  # the run is cut off before the alarm is raised, or after
def test_an_alarm_is_raised_once_though_the_run_is_cut_in_two(tmp_path: Path, epochs: int) -> None:
    alarms: list[Alarm] = []
    alert = AfterEpochOne("gender", then=alarms.append)
    fit(tmp_path, epochs=epochs, alerts=alert)
    callback = fit(tmp_path, resume=True, alerts=alert)
    (alarm,) = alarms
    assert (alarm.layer, alarm.since.epoch, alarm.moment.epoch) == ("body.2", 1, 2)
    assert callback.timeline == Timeline.of(history(tmp_path / "hnd"))
    with (tmp_path / "metrics.csv").open() as file:
        key = "hnd/body.2/above_chance/alert/gender/raised"
        assert [float(row[key]) for row in csv.DictReader(file) if row[key]][-1] == 1


def test_an_alert_stops_the_run_and_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"bias: in layer 'body\.2' it is there \(index 1\.00, p = 0\), since epoch 1"):
        callback = fit(tmp_path, alerts=[AfterEpochOne("gender", for_epochs=1, then="stop")])
    assert callback.timeline is not None
    assert [str(moment) for moment in callback.timeline.moments] == ["start", "0", "1"]
    with pytest.raises(ValueError, match="without a cue the concept must be a global one"):
        fit(tmp_path / "wrong", alerts=BiasAlert("Eyeglasses"))


@pytest.mark.parametrize("alert", [BiasAlert("ethnicity"), BiasAlert("gender", cue="Eyeglasses")])
def test_an_alert_that_could_never_be_raised_is_refused(tmp_path: Path, alert: BiasAlert) -> None:
    with pytest.raises(ValueError, match=f"{alert.name}' could never be raised with this dictionary"):
        fit(tmp_path, alerts=alert)  # no ethnicity, and four men


def test_earlier_dissections_that_hold_too_little_begin_no_timeline_and_end_no_run(tmp_path: Path) -> None:
    fit(tmp_path, epochs=2, level=None)
    with pytest.warns(UserWarning, match=r"timeline begins anew: .* measured without evidence of chance"):
        callback = fit(tmp_path, resume=True, epochs=3)
    assert callback.timeline is not None
    assert [str(moment) for moment in callback.timeline.moments] == ["2"]


def test_a_trainer_that_only_validates_is_not_of_the_run(tmp_path: Path) -> None:
    callback = fit(tmp_path / "run", epochs=2)
    timeline = callback.timeline
    for net in (Net(), Wider()):
        run = trainer(tmp_path / "other", callback)
        (metrics,) = run.validate(net, data()[1], verbose=False)
        changes = {key: value for key, value in metrics.items() if "since_" in key or key.endswith("/births")}
        untold = {key for key, value in changes.items() if math.isnan(value)}
        assert untold == {key for key in changes if "/bias/" in key}  # the dictionary has four men
        assert {value for key, value in changes.items() if key not in untold} == {0.0}
    assert callback.timeline is timeline


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 9, 4, 4), nn.ReLU()), nn.Linear(9, 1)


class SaveAt(L.Callback):
    """Saves a checkpoint after a batch, before anybody validates."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path, self.step = folder / "last.ckpt", step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.skipif(not TENSORS_ONLY, reason="lightning < 2.6 resumes a checkpoint of on_train_batch_end a batch off")
@pytest.mark.parametrize(("step", "interval"), [(2, 0.5), (4, 1.0), (6, 1.0), (8, 0.5)])
def test_checkpoints_of_any_batch_continue_the_history(tmp_path: Path, step: int, interval: float) -> None:
    """Also one from just before a validation, which Lightning does not repeat."""
    fit(tmp_path / "whole", epochs=3, val_check_interval=interval)
    fit(tmp_path / "part", SaveAt(tmp_path, step), epochs=3, val_check_interval=interval)
    (tmp_path / "last.ckpt").replace(tmp_path / "part/last.ckpt")
    callback = fit(tmp_path / "part", resume=True, epochs=3, val_check_interval=interval)
    expected = list(history(tmp_path / "whole/hnd"))
    found = list(history(tmp_path / "part/hnd"))
    assert [d.info for d in found] == [d.info for d in expected]
    if step in (4, 8):  # within an epoch Lightning begins the batches anew, and ends in other weights
        assert found == expected
    assert callback.latest == found[-1]


def test_the_checkpoint_is_plain_data(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    (ours,) = (value for key, value in state.items() if key.startswith("HNDCallback"))
    assert ours["files"]["names"] == ["start-step=00000000.hnd", "epoch=0000-step=00000004.hnd"]
    assert ours["baseline"]["hnd/body.2/readme/dead_units"] >= 0


def test_what_a_longer_run_wrote_later_is_set_aside(tmp_path: Path, never_killed: list[Dissection]) -> None:
    fit(tmp_path, epochs=2)
    checkpoint = (tmp_path / "last.ckpt").read_bytes()
    fit(tmp_path, resume=True)
    (tmp_path / "last.ckpt").write_bytes(checkpoint)
    fit(tmp_path, resume=True, epochs=3)
    assert list(history(tmp_path / "hnd")) == never_killed[:4]
    assert list(history(tmp_path / "hnd/superseded")) == never_killed[3:]


def test_resuming_elsewhere_takes_the_history_along(tmp_path: Path, never_killed: list[Dissection]) -> None:
    """As TensorBoardLogger and CSVLogger do, which begin another ``version_<n>``."""
    fit(tmp_path, epochs=2, logger=CSVLogger(tmp_path, name=""))
    fit(tmp_path, resume=True, logger=CSVLogger(tmp_path, name=""))
    assert list(history(tmp_path / "version_1/hnd")) == never_killed
    assert list(history(tmp_path / "version_0/hnd")) == never_killed[:3]


def test_a_run_that_was_moved_is_found(tmp_path: Path, never_killed: list[Dissection]) -> None:
    fit(tmp_path / "here", epochs=2)
    (tmp_path / "here").rename(tmp_path / "there")
    fit(tmp_path / "there", resume=True)
    assert list(history(tmp_path / "there/hnd")) == never_killed


def test_a_trainer_that_goes_back_to_an_earlier_checkpoint_sets_the_later_ones_aside(tmp_path: Path) -> None:
    callback = HNDCallback(random_dictionary())
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    run, net = trainer(tmp_path, callback, keep, max_epochs=3), Net()
    run.fit(net, *data())
    baseline = callback.baseline
    run.fit(net, *data(batch_size=16), ckpt_path=tmp_path / "epoch=0.ckpt", **TENSORS_ONLY)  # two steps an epoch
    assert callback.baseline == baseline
    assert [d.info["step"] for d in history(tmp_path / "hnd")] == [0, 4, 6, 8]
    assert [d.info["step"] for d in history(tmp_path / "hnd/superseded")] == [8, 12]


def test_a_trainer_that_takes_up_a_checkpoint_has_the_dissections_of_its_run(tmp_path: Path) -> None:
    class Before(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            (callback,) = (c for c in trainer.callbacks if isinstance(c, HNDCallback))
            self.seen = getattr(self, "seen", (callback.baseline, callback.latest))

    fit(tmp_path / "other", epochs=1)
    mine, net, before = HNDCallback(random_dictionary(), fresh_seeds=()), Net(), Before()
    net.head = nn.Linear(6, 1)  # as that of the other
    run = trainer(tmp_path / "mine", mine, max_epochs=2)
    run.fit(net, *data())
    timeline, checkpoint = mine.timeline, tmp_path / "other/last.ckpt"
    run.validate(net, data()[1], ckpt_path=checkpoint, verbose=False, **TENSORS_ONLY)
    evaluated = dissect(net, random_dictionary(), "body.2")  # its weights are the checkpoint's now
    assert (evaluated["body.2"], timeline) == (mine.latest["body.2"], mine.timeline)
    run.callbacks.append(before)
    run.fit(net, *data(), ckpt_path=checkpoint, **TENSORS_ONLY)
    assert before.seen == tuple(history(tmp_path / "other/hnd"))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluating_a_checkpoint_leaves_the_history_of_the_run_alone(tmp_path: Path, stage: str) -> None:
    class Whole(Net):
        test_step = Net.validation_step

        def predict_step(self, batch: list[Tensor], _: int) -> Tensor:
            return self(batch[0])

    callback = HNDCallback(random_dictionary(), fresh_seeds=())
    ablation = AblationCallback("Eyeglasses", MeanSquaredError(), every_n_epochs=2, controls=1)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    run, net = trainer(tmp_path, callback, ablation, keep, max_epochs=3), Whole()
    run.fit(net, *data())
    state, timeline = (callback.state_dict(), ablation.state_dict()), callback.timeline
    getattr(run, stage)(net, data()[1], ckpt_path=tmp_path / "epoch=0.ckpt", **TENSORS_ONLY)
    np.testing.assert_equal((callback.state_dict(), ablation.state_dict()), state)  # some are NaN
    assert callback.timeline is timeline
    run.fit_loop.max_epochs = 4
    run.fit(net, *data())
    assert [d.info["step"] for d in history(tmp_path / "hnd")] == [0, 4, 8, 12, 16]
    assert not (tmp_path / "hnd/superseded").exists()


def test_a_run_that_goes_on_with_another_dictionary_is_told(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last")
    first, second = (HNDCallback(size=SIZE, max_images=40, std=std) for std in (0.5, 1.0))
    trainer(tmp_path, first, keep, max_epochs=1).fit(Net(), *data())
    with pytest.warns(UserWarning, match="goes on with another dictionary .* its curves break here"):
        trainer(tmp_path, second).fit(Net(), *data(), ckpt_path=tmp_path / "last.ckpt", **TENSORS_ONLY)
    assert second.baseline == first.baseline


def test_damaged_and_lost_files_are_reported_and_passed_over(tmp_path: Path, never_killed: list[Dissection]) -> None:
    fit(tmp_path, epochs=2)
    start, first, second = (
        tmp_path / "hnd" / f"{name}.hnd"
        for name in ("start-step=00000000", "epoch=0000-step=00000004", "epoch=0001-step=00000008")
    )
    start.write_bytes(start.read_bytes()[:-100])
    first.unlink()
    with (
        pytest.warns(UserWarning, match=f"dissections {first.name} are not in {tmp_path / 'hnd'} any more"),
        pytest.warns(UserWarning, match=f"left out of the history: {start} is not a dissection file, or is damaged"),
    ):
        callback = fit(tmp_path, resume=True)
    assert callback.baseline is None  # its numbers are in the checkpoint, for the curves
    second.write_bytes(b"")
    with pytest.warns(UserWarning, match=f"left out of the history: {second}"):
        assert list(history(tmp_path / "hnd")) == never_killed[3:]


def test_two_callbacks_each_go_on_in_their_own_folder(tmp_path: Path) -> None:
    def both(epochs: int, resume: bool) -> None:
        pair = [HNDCallback(random_dictionary(), layers=layer) for layer in ("body.0", "body.2")]
        keep = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
        run = trainer(tmp_path, *pair, keep, max_epochs=epochs)
        run.fit(Net(), *data(), ckpt_path=tmp_path / "last.ckpt" if resume else None)

    both(1, False)
    both(2, True)
    for folder, layer in (("hnd", "body.0"), ("hnd-2", "body.2")):
        found = list(history(tmp_path / folder))
        assert [d.info["step"] for d in found] == [0, 4, 8]
        assert all(list(d.layers) == [layer] for d in found)


def test_a_new_run_in_the_same_place_keeps_out_of_the_old_ones_history(
    tmp_path: Path, never_killed: list[Dissection]
) -> None:
    fit(tmp_path, epochs=2)
    fit(tmp_path, epochs=1)
    assert list(history(tmp_path / "hnd")) == never_killed[:3]
    assert list(history(tmp_path / "hnd-2")) == never_killed[:2]


def test_history_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path / 'no'} of dissections"):
        history(tmp_path / "no")


def test_what_another_machine_left_half_written_goes_when_it_is_old(tmp_path: Path) -> None:
    for name, age in (("new", 0), ("old", 7200)):
        aside = tmp_path / f".{name}.hnd.elsewhere.7"
        aside.write_bytes(b"half")
        os.utime(aside, (time.time() - age,) * 2)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    alive = tmp_path / f".x.hnd.{socket.gethostname()}.{other.pid}"
    alive.write_bytes(b"half")
    sweep(tmp_path, ".hnd")
    assert alive.exists()
    other.communicate()
    sweep(tmp_path, ".hnd")
    assert [path.name for path in tmp_path.iterdir()] == [".new.hnd.elsewhere.7"]
