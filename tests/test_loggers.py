"""What each kind of logger gets of a run, and that none of them can end it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import random_dictionary
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from runs import Memory, Net, data, trainer

from lightning_hnd import HNDCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
KEY = "hnd/body.2/readme"
KEYS = (KEY, "hnd/body.2/above_chance")
PICTURES = {KEYS[0]: ("concepts", "overlays"), KEYS[1]: ("concepts", "overlays", "timeline")}
STEPS = [0, 3]  # at start, and Lightning counts an epoch's end as its last step


class RecordingWandb(Memory, WandbLogger):
    """Checks and keeps what Lightning's WandbLogger would get, where wandb is not installed."""

    def __init__(self) -> None:
        Memory.__init__(self)
        self.images: list[tuple[str, int]] = []
        self.tables: list[tuple[str, int]] = []

    save_dir = None
    experiment = None

    def log_image(self, key: str, images: list[np.ndarray], step: int) -> None:
        assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in images)
        self.images.append((key, step))

    def log_table(self, key: str, columns: list[str], data: list[list[str]], step: int) -> None:
        assert columns[:2] == ["unit", "region"]
        assert all(len(row) == len(columns) for row in data)
        self.tables.append((key, step))

    def after_save_checkpoint(self, *_: Any) -> None:
        pass

    def finalize(self, status: str) -> None:
        pass


class RecordingMlflow(Memory, MLFlowLogger):
    """The same for MLflow, whose client takes pictures and texts."""

    run_id = "run7"
    save_dir = None

    def __init__(self) -> None:
        Memory.__init__(self)
        self.images: list[tuple[str, int]] = []
        self.texts: dict[str, str] = {}

    @property
    def experiment(self) -> RecordingMlflow:
        return self

    def log_image(self, run_id: str, image: np.ndarray, *, key: str, step: int) -> None:
        assert (run_id, image.dtype, image.shape[2]) == ("run7", np.uint8, 3)
        self.images.append((key, step))

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        assert run_id == "run7"
        self.texts[artifact_file] = text

    def finalize(self, status: str) -> None:
        pass


def run(tmp_path: Path, *loggers: Logger) -> HNDCallback:
    callback = HNDCallback(random_dictionary())
    L.seed_everything(0, verbose=False)
    trainer(tmp_path, callback, logger=list(loggers), max_epochs=1).fit(Net(), *data())
    return callback


def test_several_loggers_at_once_each_get_what_they_take(tmp_path: Path) -> None:
    plain, wandb, mlflow = Memory(), RecordingWandb(), RecordingMlflow()
    table = CSVLogger(tmp_path, name="", version="")
    run(tmp_path, table, plain, wandb, mlflow)
    for logger in (plain, wandb, mlflow):
        assert logger.steps(f"{KEY}/mean_iou") == STEPS
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row[f"{KEY}/mean_iou"]]
    assert [int(row["step"]) for row in rows] == STEPS
    pictures = [(f"{key}/{name}", step) for step in STEPS for key in KEYS for name in PICTURES[key]]
    assert wandb.images == mlflow.images == pictures
    assert wandb.tables == [(f"{key}/assignments", step) for step in STEPS for key in KEYS]
    assert list(mlflow.texts) == [f"{key}/assignments/step={step:08d}.md" for step in STEPS for key in KEYS]
    assert all("| unit | region |" in text for text in mlflow.texts.values())


def test_a_logger_that_fails_at_pictures_is_warned_of_and_the_others_get_theirs(tmp_path: Path) -> None:
    class OfAnotherTime(RecordingWandb):
        def log_image(self, key: str, images: list[np.ndarray], step: int) -> None:
            raise AttributeError("wandb has no attribute 'Image'")

    old, mlflow = OfAnotherTime(), RecordingMlflow()
    with pytest.warns(UserWarning, match=r"could not write tables and pictures of step 3 to OfAnotherTime: Attribute"):
        callback = run(tmp_path, old, mlflow)
    assert callback.latest is not None
    assert old.steps(f"{KEY}/mean_iou") == STEPS
    assert len(mlflow.images) == 10


def test_want_of_memory_in_a_logger_is_raised(tmp_path: Path) -> None:
    class Full(RecordingWandb):
        def log_image(self, key: str, images: list[np.ndarray], step: int) -> None:
            raise torch.OutOfMemoryError("no memory left")

    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, Full())


def test_tensorboard_gets_scalars_table_and_pictures(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, TensorBoardLogger(tmp_path, name="", version=""))
    events = event_accumulator.EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert [event.step for event in events.Scalars(f"{KEY}/interpretable_units")] == STEPS
    for tag in (f"{KEY}/concepts", f"{KEY}/overlays"):
        assert [event.step for event in events.Images(tag)] == STEPS
    text = events.Tensors(f"{KEY}/assignments/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| unit | region |" in text


def test_wandb_itself_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tmp_path, WandbLogger(save_dir=tmp_path, project="faces"))
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert f"{KEY}/mean_iou" in summary
    assert summary[f"{KEY}/overlays"]["_type"] == "images/separated"
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    pictures = list((media / "images/hnd/body.2/readme").glob("overlays_*.png"))
    assert len(pictures) == 2
    (first, *others) = (media / "table/hnd/body.2/readme").glob("assignments_*.table.json")
    assert len(others) == 1
    assert json.loads(first.read_text())["columns"][:2] == ["unit", "region"]


def test_mlflow_itself_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a store of plain files is no longer the default
    logger = MLFlowLogger("faces", tracking_uri=f"file:{tmp_path / 'store'}")
    run(tmp_path, logger)
    history = logger.experiment.get_metric_history(logger.run_id, f"{KEY}/mean_iou")
    assert [metric.step for metric in history] == STEPS
    artifacts = tmp_path / "store" / logger.experiment_id / logger.run_id / "artifacts"
    assert len(list(artifacts.glob("hnd/body.2/readme/assignments/*.md"))) == 2
    pictures = list(artifacts.glob("images/*overlays*.png"))
    assert len(pictures) == 2
    assert Image.open(pictures[0]).mode == "RGB"


class Elsewhere(Memory):
    """Keeps its logs on another machine."""

    save_dir = "s3://bucket/logs"


def test_files_stay_on_this_machine_where_logs_go_to_another(tmp_path: Path) -> None:
    here = Elsewhere()
    here.save_dir = f"file://{tmp_path}/logs"
    for logger, root in ((Elsewhere(), tmp_path), (here, tmp_path / "logs")):
        folder = root / "memory" / "memory" / "hnd"  # name and version of the logger
        callback = HNDCallback(random_dictionary(), fresh_seeds=())
        trainer(tmp_path, callback, max_epochs=1, logger=logger).fit(Net(), *data())
        assert len(list(folder.glob("*.hnd"))) == 2
    assert not Path("s3:").exists()


def test_a_run_without_a_folder_on_this_machine_is_refused_before_the_first_step(tmp_path: Path) -> None:
    callback = HNDCallback(random_dictionary(), fresh_seeds=())
    run = trainer("s3://bucket/logs", callback, max_epochs=1, logger=False)
    with pytest.raises(ValueError, match=r"'s3://bucket/logs' is no folder of this machine: .*default_root_dir"):
        run.fit(Net(), *data())
    assert run.global_step == 0
