"""HNDCallback in every mode of a Trainer: when it dissects, what it logs then, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import random_dictionary
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from runs import SIZE, Memory, Net, data, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_hnd import README, HNDCallback, dissect
from lightning_hnd.report import history, scalars

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You requested to overfit"),
    pytest.mark.filterwarnings("ignore:You are trying to `self.log"),
]
KEY = "hnd/body.2/readme/mean_iou"


def fit(
    tmp_path: Path, callback: HNDCallback, net: L.LightningModule | None = None, loaders: Any = None, **options: Any
) -> tuple[L.Trainer, Memory]:
    L.seed_everything(0, verbose=False)
    logger = Memory()
    run = trainer(tmp_path, callback, logger=logger, **options)
    run.fit(Net() if net is None else net, *(loaders or data()))
    return run, logger


def moments(tmp_path: Path) -> list[tuple[int, int]]:
    """Epoch and step of each dissection that the run kept, the one at start apart."""
    kept = list(history(tmp_path / "memory" / "memory" / "hnd"))
    assert [d.info["at_start"] for d in kept] == [True] + [False] * (len(kept) - 1)
    return [(d.info["epoch"], d.info["step"]) for d in kept[1:]]


MODES: dict[str, tuple[dict[str, Any], dict[str, Any], list[int], list[tuple[int, int]]]] = {
    # the callback's options, the Trainer's, the steps of the curve, the moments of the files; an epoch has 4 batches
    "every epoch": ({}, {}, [0, 3, 7, 11], [(0, 4), (1, 8), (2, 12)]),
    "val_check_interval below 1": (
        {},
        {"val_check_interval": 0.5, "max_epochs": 2},
        [0, 1, 3, 5, 7],
        [(0, 2), (0, 4), (1, 6), (1, 8)],
    ),
    "every second epoch, twice in each": (
        {"every_n_epochs": 2},
        {"val_check_interval": 0.5},
        [0, 1, 3, 9, 11],
        [(0, 2), (0, 4), (2, 10), (2, 12)],
    ),
    "check_val_every_n_epoch": ({}, {"check_val_every_n_epoch": 2}, [0, 7], [(1, 8)]),
    "validation every 3 batches, over epochs": (
        {},
        {"check_val_every_n_epoch": None, "val_check_interval": 3},
        [0, 2, 5, 8, 11],
        [(0, 3), (1, 6), (2, 9), (2, 12)],
    ),
    "overfit_batches": ({}, {"overfit_batches": 1, "max_epochs": 2}, [0, 0, 1], [(0, 1), (1, 2)]),
    "gradients accumulated": (
        {},
        {"accumulate_grad_batches": 3, "val_check_interval": 0.5, "max_epochs": 2},
        [0, 0, 1, 2, 3],
        [(0, 0), (0, 2), (1, 2), (1, 4)],
    ),
    "stopped by max_steps within an epoch": ({}, {"max_steps": 6, "max_epochs": -1}, [0, 3], [(0, 4)]),
    "at the end of training epochs": (
        {"at_train_epoch_end": True},
        {"limit_val_batches": 0},
        [0, 3, 7, 11],
        [(0, 4), (1, 8), (2, 12)],
    ),
    "at the end of every second training epoch": (
        {"at_train_epoch_end": True, "every_n_epochs": 2},
        {"limit_val_batches": 0},
        [0, 3, 11],
        [(0, 4), (2, 12)],
    ),
    "no validation": ({}, {"limit_val_batches": 0}, [0], []),
}


@pytest.mark.filterwarnings("ignore:HNDCallback dissects at validation, and this run has none")
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_dissects_when_it_should(tmp_path: Path, mode: str) -> None:
    options, settings, steps, expected = MODES[mode]
    _, logger = fit(tmp_path, HNDCallback(random_dictionary(), **options), **{"max_epochs": 3, **settings})
    assert [step for metrics, step in logger.metrics if KEY in metrics] == steps
    assert moments(tmp_path) == expected
    assert all(metrics["hnd/seconds"] > 0 for metrics, _ in logger.metrics if KEY in metrics)
    assert all("hnd/seconds" not in metrics for metrics, _ in logger.metrics if KEY not in metrics)


def test_at_the_end_of_training_epochs_the_model_is_that_of_the_moment(tmp_path: Path) -> None:
    """Also with a validation before it, and read by those who stop and keep."""

    class Watch(L.Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.seen.append(scalars(dissect(pl_module, random_dictionary(), "body.2").with_rule(README)))

    watch, logger = Watch(), Memory()
    key = "hnd/body.2/readme/dead_units"
    keep = ModelCheckpoint(tmp_path, monitor=key, mode="max", filename="best")
    stop = EarlyStopping(key, patience=1, min_delta=100)
    callback = HNDCallback(random_dictionary(), at_train_epoch_end=True)
    run = trainer(tmp_path, stop, keep, watch, callback, logger=logger, max_epochs=9)
    run.fit(Net(), *data())
    assert run.current_epoch == len(watch.seen) == 2
    assert keep.best_model_score == max(seen[key] for seen in watch.seen)
    for name in watch.seen[0]:
        assert list(logger.values(name).values())[1:] == pytest.approx([seen[name] for seen in watch.seen]), name


def test_a_fast_dev_run_shows_everything_and_keeps_nothing(tmp_path: Path) -> None:
    run, _ = fit(tmp_path, callback := HNDCallback(random_dictionary()), fast_dev_run=True)
    assert KEY in run.callback_metrics
    assert callback.baseline is not None
    assert callback.latest is not None
    assert list(tmp_path.iterdir()) == []


def test_a_barebones_run_is_left_alone_and_told(tmp_path: Path) -> None:
    callback = HNDCallback(random_dictionary(), layers="no such layer")
    run = trainer(tmp_path, callback, barebones=True, max_epochs=1, log_every_n_steps=None)
    with pytest.warns(UserWarning, match=r"HNDCallback does nothing in Trainer\(barebones=True\)"):
        run.fit(Net(), *data())
    assert run.global_step == 4
    assert callback.baseline is callback.latest is None


def test_validation_on_its_own_dissects_and_keeps_no_file(tmp_path: Path) -> None:
    callback, logger, net = HNDCallback(random_dictionary()), Memory(), Net()
    run = trainer(tmp_path, callback, logger=logger)
    (metrics,) = run.validate(net, data()[1], verbose=False)
    expected = scalars(dissect(net, random_dictionary(), "body.2"))
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["hnd/seconds"] > 0
    assert logger.steps(KEY) == [0]
    assert callback.latest is not None
    assert callback.baseline is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_tests_or_predictions_does_not_dissect(tmp_path: Path) -> None:
    class Tested(Net):
        def test_step(self, batch: list[Tensor], index: int) -> None:
            self.log("loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

        def predict_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self(batch[0])

    callback, logger = HNDCallback(random_dictionary(), layers="no such layer"), Memory()
    run = trainer(tmp_path, callback, logger=logger)
    (metrics,) = run.test(Tested(), data()[1], verbose=False)
    run.predict(Tested(), data()[1])
    assert list(metrics) == ["loss"]
    assert callback.latest is None
    assert not any("hnd" in key for logged, _ in logger.metrics for key in logged)


def test_validating_between_fits_changes_nothing_of_the_runs_history(tmp_path: Path) -> None:
    callback, net = HNDCallback(random_dictionary()), Net()
    run, _ = fit(tmp_path, callback, net, max_epochs=1)
    run.validate(net, data()[1], verbose=False)
    assert callback.latest is not None
    assert moments(tmp_path) == [(0, 4)]
    run.fit_loop.max_epochs = 2
    run.fit(net, *data())
    assert moments(tmp_path) == [(0, 4), (1, 8)]


def test_a_gan_is_dissected_where_its_critic_sees(tmp_path: Path) -> None:
    """Several optimizers, stepped by hand; ``forward`` takes no images at all."""

    class Gan(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(4, 3 * SIZE[0] * SIZE[1]), nn.Unflatten(1, (3, *SIZE)), nn.Tanh())
            self.critic = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1))
            self.critic(torch.zeros(1, 3, *SIZE))

        def forward(self, noise: Tensor) -> Tensor:
            return self.generator(noise)

        def training_step(self, batch: list[Tensor], _: int) -> None:
            real, fake = batch[0], self(torch.randn(len(batch[0]), 4))
            for optimizer, which in zip(self.optimizers(), ("critic", "generator"), strict=True):
                self.toggle_optimizer(optimizer)
                loss = -self.critic(fake if which == "generator" else fake.detach()).mean()
                loss = loss if which == "generator" else -loss - self.critic(real).mean()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                self.untoggle_optimizer(optimizer)

        def validation_step(self, batch: list[Tensor], _: int) -> None:
            self.log("score", self.critic(batch[0]).mean())

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.Adam(part.parameters(), 1e-3) for part in (self.critic, self.generator)]

    def weights(callbacks: list[L.Callback], logger: Memory) -> dict[str, Tensor]:
        L.seed_everything(0, verbose=False)
        net = Gan()
        trainer(tmp_path, *callbacks, logger=logger).fit(net, *data())
        return net.state_dict()

    callback = HNDCallback(random_dictionary(), layers="critic.1", forward_fn=lambda gan, images: gan.critic(images))
    logger = Memory()
    with_it, without_it = weights([callback], logger), weights([], Memory())
    torch.testing.assert_close(with_it, without_it, rtol=0, atol=0)
    assert logger.steps("hnd/critic.1/readme/mean_iou") == [0, 3, 7]  # where val_loss is; global_step counts both
    assert logger.steps("score") == [3, 7]
    assert moments(tmp_path) == [(0, 8), (1, 16)]  # as in the names of checkpoints
    with pytest.raises(RuntimeError, match=r"Gan failed on dictionary images \[.*if its forward takes more than"):
        trainer(tmp_path, HNDCallback(random_dictionary(), layers="critic.1")).fit(Gan(), *data())


class Conditioned(Net):
    """Takes an age beside the image, and learns from a teacher and a perceptual loss that its forward never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU()).requires_grad_(False)
        self.perceptual = nn.Sequential(nn.Conv2d(3, 2, 8, 8), nn.ReLU()).requires_grad_(False)

    def forward(self, x: Tensor, age: Tensor) -> Tensor:
        return super().forward(x) + age

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, age = batch
        loss = nn.functional.mse_loss(self(x, age), age) + nn.functional.mse_loss(self.body(x), self.teacher(x))
        return loss + self.perceptual(x).mean()

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_loss", self(*batch).mean())


def test_what_the_forward_takes_and_never_reaches(tmp_path: Path) -> None:
    def with_age(net: L.LightningModule, images: Tensor) -> Tensor:
        return net(images, torch.zeros(len(images)))

    L.seed_everything(0, verbose=False)
    net, expected = Conditioned(), {}
    expected["body.2"] = dissect(net, random_dictionary(), "body.2", forward_fn=lambda net, x: net.body(x))["body.2"]
    callback = HNDCallback(random_dictionary(), forward_fn=with_age, fresh_seeds=())
    fit(tmp_path, callback, net, max_epochs=1)
    assert callback.baseline is not None
    assert callback.baseline.layers == expected  # not the teacher, though it is the last of the module
    with pytest.raises(ValueError, match="layer 'teacher.0' never fired its hook: the forward pass does not reach it"):
        fit(tmp_path, HNDCallback(random_dictionary(), "[bt]*.0", forward_fn=with_age), Conditioned())
    teacher = HNDCallback(random_dictionary(), "teacher.*", forward_fn=lambda net, images: net.teacher(images))
    fit(tmp_path, teacher, net, max_epochs=1)
    assert teacher.latest is not None
    assert teacher.latest.layers == teacher.baseline.layers  # it does not learn


class Stream(IterableDataset):
    """No length: Lightning validates when it ends."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from data()[1].dataset


def test_several_dataloaders_and_streams(tmp_path: Path) -> None:
    class Several(Net):
        def training_step(self, batch: dict[str, list[Tensor]], index: int) -> Tensor:
            return super().training_step(batch["faces"], index) + batch["noise"].mean()

        def validation_step(self, batch: list[Tensor], index: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, index)

    train, validate = data()
    noise = DataLoader(torch.rand(32, 7), batch_size=8)
    loaders = ({"noise": noise, "faces": train}, [validate, validate])
    run, logger = fit(tmp_path, HNDCallback(random_dictionary()), Several(), loaders)
    assert logger.steps(KEY) == [0, 3, 7]
    assert "val_loss/dataloader_idx_1" in run.callback_metrics
    assert not any("hnd" in key and "dataloader_idx" in key for key in run.callback_metrics)
    _, logger = fit(
        tmp_path / "stream", HNDCallback(random_dictionary()), loaders=(DataLoader(Stream(), batch_size=8), validate)
    )
    assert logger.steps(KEY) == [0, 3, 7]


def test_a_module_without_validation_is_held_against_the_dictionary_too(tmp_path: Path) -> None:
    class Bare(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = HNDCallback(random_dictionary(), at_train_epoch_end=True)
    bare = Bare()
    bare.example_input_array = torch.zeros(1, 3, *SIZE)
    with pytest.warns(UserWarning, match="unlike those that the model is trained on"):
        trainer(tmp_path, callback, max_epochs=1).fit(bare, data(scale=0.1)[0])
    assert callback.latest is not None
    with pytest.warns(UserWarning, match=r"this run has none .* HNDCallback\(at_train_epoch_end=True\)"):
        trainer(tmp_path, HNDCallback(random_dictionary()), max_epochs=1).fit(Bare(), data()[0])


def test_a_trainer_of_the_other_package_is_told_which_one_is_needed(tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Theirs(other.LightningModule):
        training_step, configure_optimizers, forward = Net.training_step, Net.configure_optimizers, Net.forward

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Net().body, Net().head

    run = other.Trainer(
        callbacks=[HNDCallback(random_dictionary())],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    with pytest.raises(TypeError, match=r"is of pytorch_lightning\.trainer\.trainer: import Trainer and .* lightning"):
        run.fit(Theirs(), data()[0])
    assert run.global_step == 0
