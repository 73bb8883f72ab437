"""LightningCLI builds the callback from a YAML file: all of its settings are plain values, or names of functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import SIZE, Net, data
from torch import Tensor

from lightning_hnd import BiasAlert, HNDCallback, Rule

pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse: pip install 'jsonargparse[signatures]'")
from lightning.pytorch.cli import LightningCLI, LightningDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
]

CONFIG = """
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  default_root_dir: {root}
  callbacks:
    - class_path: lightning_hnd.HNDCallback
      init_args:
        dictionary: {dictionary}
        layers: ["body.0", "body.2"]
        every_n_epochs: 2
        at_train_epoch_end: false
        on_error: warn
        quantile: 0.01
        iou_threshold: 0.05
        firing_only: true
        size: [24, 32]
        mean: [0.4, 0.5, 0.6]
        std: 0.25
        grid: [6, 8]
        forward_fn: test_lightning_cli.forward
        batch_size: 3
        budget: 1000000
        max_images: 4
        level: 0.1
        fresh_seeds: [1]
        factory: test_lightning_cli.Module
"""


class Module(Net):
    def __init__(self, width: int = 6) -> None:
        super().__init__()


class Faces(LightningDataModule):
    def train_dataloader(self) -> object:
        return data()[0]

    def val_dataloader(self) -> object:
        return data()[1]


def forward(module: Module, images: Tensor) -> Tensor:
    return module(images)


def run(path: Path, config: str, *command: str) -> LightningCLI:
    (path / "given.yaml").write_text(config)
    return LightningCLI(Module, Faces, args=[*command, "--config", str(path / "given.yaml")], run=bool(command))


def test_every_setting_from_yaml(tmp_path: Path, folder: Path) -> None:
    cli = run(tmp_path, CONFIG.format(root=tmp_path, dictionary=folder), "fit")
    (callback,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, HNDCallback))
    assert callback.latest is not None
    assert list(callback.latest.layers) == ["body.0", "body.2"]
    assert callback.rule == Rule(quantile=0.01, iou_threshold=0.05, firing_only=True)
    assert callback.latest.rule == Rule(quantile=0.01, level=0.1)
    assert callback.latest["body.0"].asked_fresh
    assert callback.dictionary is not None
    assert (len(callback.dictionary), callback.dictionary.size) == (4, SIZE)
    torch.testing.assert_close(callback.dictionary.mean, (0.4, 0.5, 0.6))
    assert callback.dictionary.std == (0.25,) * 3


def test_the_defaults_from_yaml_and_from_the_command_line(tmp_path: Path) -> None:
    bare = CONFIG.split("      init_args")[0].format(root=tmp_path)
    (callback,) = (c for c in run(tmp_path, bare).trainer.callbacks if isinstance(c, HNDCallback))
    assert callback.rule.name == "readme"
    args = ["--trainer.callbacks=lightning_hnd.HNDCallback", "--trainer.callbacks.max_images=99"]
    cli = LightningCLI(Module, Faces, args=[*args, "--trainer.accelerator=cpu", "--trainer.logger=false"], run=False)
    (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, HNDCallback))
    assert callback._faces.source.max_images == 99


def test_alerts_from_yaml(tmp_path: Path) -> None:
    bare = CONFIG.split("        dictionary")[0].format(root=tmp_path)
    alerts = "        alerts:\n          - concept: gender\n            index: 0.3\n          - concept: age\n"
    (callback,) = (c for c in run(tmp_path, bare + alerts).trainer.callbacks if isinstance(c, HNDCallback))
    assert callback._alerts == (BiasAlert("gender", index=0.3), BiasAlert("age"))


def test_the_config_that_is_saved_builds_it_again(tmp_path: Path, folder: Path) -> None:
    cli = run(tmp_path, CONFIG.format(root=tmp_path, dictionary=folder))
    again = run(tmp_path, cli.parser.dump(cli.config, skip_none=False))
    first, second = (next(c for c in each.trainer.callbacks if isinstance(c, HNDCallback)) for each in (cli, again))
    assert first.state_key == second.state_key


def test_a_wrong_value_is_named(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIG.format(root=tmp_path, dictionary=folder).replace("on_error: warn", "on_error: ignore")
    with pytest.raises(SystemExit):
        run(tmp_path, config)
    assert "on_error" in capsys.readouterr().err
