"""Two processes that train with DDP: they find what one finds, agree, and end or go on together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import lightning as L
import numpy as np
import pytest
import torch
from conftest import random_dictionary
from pair import LIMIT, Pair
from runs import Net, data, trainer
from test_resume import AfterEpochOne
from torch import Tensor
from torchmetrics.classification import BinaryAUROC

from lightning_hnd import PAPER, Dissection, FaceDictionary, HNDCallback, Rule, Timeline, ablate, dissect
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.report import history, scalars, scalars_over_time
from lightning_hnd.report.files import RunFiles

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*these layers are counted in a second forward pass"),
]

BATCH = 5  # 24 images: four whole batches and one of four, of which one process gets three and the other two
LAYERS = ["body.0", "body.2"]
SEEDS = (1,)
QUANTILE = 0.2  # so that some units pair
EXACT = ("threshold", "low", "high")


def uneven_dictionary() -> FaceDictionary:
    """Nobody but the first process sees a nose, nobody but the second eyeglasses or somebody over sixty."""
    whole = random_dictionary()
    first = torch.arange(len(whole)) // BATCH % 2 == 0
    nose, glasses = (whole.mask_concept == PAPER.concept_index(name) for name in ("nose", "Eyeglasses"))
    kept = ~torch.where(first[whole.mask_image], glasses, nose)
    group, age = whole.group.clone(), PAPER.global_index("age")
    group[first & (group[:, age] == 3), age] = 2
    masks, image, concept = (
        PackedMasks.pack(whole.masks.dense()[kept]),
        whole.mask_image[kept],
        whole.mask_concept[kept],
    )
    return replace(whole, group=group, masks=masks, mask_image=image, mask_concept=concept)


class Failure:
    """Runs a forward pass, unless this is the second process and the time has come."""

    def __init__(self, how: str | None, epoch: int) -> None:
        self.how, self.epoch = how, epoch

    def __call__(self, module: Net, images: Tensor) -> None:
        started, epoch = bool(module.trainer.global_step), module.current_epoch
        if torch.distributed.get_rank() == 1 and self.how is not None and (epoch if started else -1) == self.epoch:
            if self.how == "NaN":
                images = images * torch.nan
            else:
                raise {"forward": ValueError, "memory": torch.OutOfMemoryError, "Ctrl-C": KeyboardInterrupt}[self.how]
        module(images)


class Found(NamedTuple):
    """What is left of a run in one process."""

    baseline: Dissection | None
    latest: Dissection | None
    metrics: dict[str, float]
    weights: dict[str, Tensor]
    random: Tensor
    steps: int
    timeline: Timeline | None


def fit(
    path: Path,
    *,
    devices: int = 2,
    strategy: Any = "ddp",
    net: type[Net] = Net,
    epochs: int = 2,
    dissected: bool = True,
    others: Sequence[L.Callback] = (),
    **options: Any,
) -> Found:
    """Trains with batch norm and dropout."""
    L.seed_everything(0, verbose=False)
    options.setdefault("fresh_seeds", SEEDS if isinstance(strategy, str) else ())  # a split module cannot be reset
    callback = HNDCallback(uneven_dictionary(), LAYERS, quantile=QUANTILE, **{"batch_size": BATCH, **options})
    module = net()
    settings: dict[str, Any] = {"limit_val_batches": 0} if options.get("at_train_epoch_end") else {}
    settings.update(devices=devices, strategy=strategy if devices > 1 else "auto", max_epochs=epochs)
    run = trainer(path, *[callback] * dissected, *others, **settings)
    run.fit(module, *data())
    metrics = {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("hnd/")}
    weights, random = module.state_dict(), torch.get_rng_state()
    return Found(callback.baseline, callback.latest, metrics, weights, random, run.global_step, callback.timeline)


def assert_same(ours: Dissection | None, theirs: Dissection | None) -> None:
    """Counts and thresholds to the last bit, other numbers to 1e-6."""
    assert ours is not None
    assert theirs is not None
    assert list(ours.layers) == list(theirs.layers)
    for name, layer in ours.layers.items():
        for key, value in layer.statistics.items():
            exact = key in EXACT or value.dtype.kind in "iub"
            expected = theirs[name].statistics[key]
            np.testing.assert_allclose(value, expected, rtol=0, atol=0 if exact else 1e-6, err_msg=f"{name} {key}")


@pytest.mark.parametrize("options", [{}, {"budget": 0}, {"at_train_epoch_end": True}])
def test_two_processes_find_what_one_finds(pair: Pair, tmp_path: Path, options: dict[str, Any]) -> None:
    alone = fit(tmp_path / "alone", devices=1, **options)
    first, second = pair.results(fit, tmp_path / "pair", **options)
    assert_same(first.baseline, alone.baseline)
    images = first.baseline["body.2"].statistics["images_per_concept"]
    assert images[[PAPER.concept_index("nose"), PAPER.concept_index("Eyeglasses")]].all()
    assert first.baseline == second.baseline
    assert first.latest == second.latest != first.baseline
    np.testing.assert_equal(first.metrics, second.metrics)  # NaN where the dictionary cannot tell
    assert first.timeline == second.timeline is not None
    scalar = scalars(first.latest) | scalars(first.latest.with_rule(Rule(QUANTILE)))
    assert sum(value for key, value in scalar.items() if key.endswith("0.04/interpretable_units")) > 3
    assert {key: value for key, value in first.metrics.items() if key != "hnd/seconds"} == pytest.approx(
        scalar | scalars_over_time(first.timeline), nan_ok=True
    )
    # in the end, too: without a validation the averages of batch norm differ, and the first process's are dissected
    averages = [found.weights["body.1.running_mean"] for found in (first, second)]
    assert torch.equal(*averages) == ("at_train_epoch_end" not in options)
    net = Net()
    net.load_state_dict(first.weights)
    options = {"batch_size": BATCH, "quantile": QUANTILE, "fresh_seeds": SEEDS}
    assert_same(first.latest, dissect(net, uneven_dictionary(), LAYERS, **options))


def test_an_alert_stops_all_of_them(pair: Pair, tmp_path: Path) -> None:
    alert = AfterEpochOne("gender", for_epochs=1, then="stop")
    first, second = pair.results(fit, tmp_path, epochs=5, alerts=alert)
    assert first.steps == second.steps == 4  # after epoch 1
    assert first.timeline == second.timeline


def unreachable(alarm: object) -> None:
    raise ConnectionError("nobody answers")


def test_if_the_function_of_an_alert_fails_all_end_or_go_on(pair: Pair, tmp_path: Path) -> None:
    alert = AfterEpochOne("gender", for_epochs=1, then=unreachable)
    first, second = pair.run(fit, tmp_path / "raise", epochs=3, alerts=alert)
    assert type(first) is ConnectionError  # in the first process alone it is called
    assert str(second) == "calling the function of an alert failed in process 0: ConnectionError: nobody answers"
    first, second = pair.results(fit, tmp_path / "warn", epochs=3, alerts=alert, on_error="warn")
    assert first.steps == second.steps == 6
    assert first.timeline == second.timeline


def measured_by_group(found: Dissection) -> dict[str, float]:
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    net = Net().eval()
    generator = torch.Generator().manual_seed(rank)
    images, target = torch.rand(20, 3, 24, 32, generator=generator), torch.arange(20) % 2
    batches = [(images, target, ["ab"[rank]] * 20)]
    concept = next(u.concepts[0].name for u in found["body.2"].units if u.concepts)
    return ablate(net, found, concept=concept, metric=BinaryAUROC(), dataloader=batches, controls=1).intact


def test_groups_that_one_process_lacks_are_measured_by_both(pair: Pair) -> None:
    torch.manual_seed(0)
    settings = {"quantile": QUANTILE, "iou_threshold": 0.0, "level": None}
    first, second = pair.results(measured_by_group, dissect(Net(), random_dictionary(), "body.2", **settings))
    assert first == second
    assert list(first) == ["overall", "a", "b"]


def test_evidence_of_chance_is_that_of_one(pair: Pair, tmp_path: Path) -> None:
    alone = fit(tmp_path / "alone", devices=1, level=0.05)
    first, second = pair.results(fit, tmp_path / "pair", level=0.05)
    assert_same(first.baseline, alone.baseline)
    assert np.isfinite(first.baseline["body.2"].statistics["agreement"]).any()  # too few masks for more
    assert first.latest == second.latest


def test_training_ends_in_the_same_bits(pair: Pair, tmp_path: Path) -> None:
    with_it = pair.results(fit, tmp_path / "with")
    without_it = pair.results(fit, tmp_path / "without", dissected=False)
    for ours, theirs in zip(with_it, without_it, strict=True):
        assert ours.latest is not None
        assert theirs.latest is None
        assert ours.steps == theirs.steps == 4
        torch.testing.assert_close(ours.weights, theirs.weights, rtol=0, atol=0)
        assert torch.equal(ours.random, theirs.random)


def fit_failing(path: Path, how: str | None, epoch: int, on_error: str = "raise") -> tuple[Found, list[list[float]]]:
    """The second process fails at the start (epoch -1) or after an epoch; also what was logged after each."""
    seen = Seen()
    return fit(path, others=[seen], epochs=3, forward_fn=Failure(how, epoch), on_error=on_error), seen.logged


class Seen(L.Callback):
    """Remembers the dissection's scalars of each epoch."""

    def __init__(self) -> None:
        self.logged: list[list[float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = [v for k, v in trainer.callback_metrics.items() if k.startswith("hnd/body.2")]
        if not trainer.sanity_checking:
            self.logged.append([float(value) for value in values])


@pytest.mark.parametrize("epoch", [-1, 1])
@pytest.mark.parametrize(
    ("how", "theirs", "ours"),
    [
        ("forward", RuntimeError, RuntimeError),
        ("NaN", ValueError, RuntimeError),
        ("memory", torch.OutOfMemoryError, MemoryError),
        ("Ctrl-C", KeyboardInterrupt, KeyboardInterrupt),
    ],
)
def test_if_one_fails_all_end(pair: Pair, tmp_path: Path, how: str, theirs: type, ours: type, epoch: int) -> None:
    began = time.monotonic()
    first, second = pair.run(fit_failing, tmp_path, how, epoch)
    assert time.monotonic() - began < 20
    if how == "Ctrl-C":  # which Lightning takes for the wish to stop
        assert isinstance(first, SystemExit)
        assert isinstance(second, SystemExit)
        return
    assert type(second) is theirs
    assert type(first) is ours
    assert "the dictionary" in str(first)
    assert f"failed in process 1: {theirs.__name__}: {second}" in str(first)


@pytest.mark.parametrize("how", ["forward", "NaN"])
def test_if_one_fails_all_go_on_where_that_is_wanted(pair: Pair, tmp_path: Path, how: str) -> None:
    (first, logged), (second, also_logged) = pair.results(fit_failing, tmp_path / how, how, 1, "warn")
    np.testing.assert_equal(logged, also_logged)
    assert [np.isnan(values).all() for values in logged] == [False, True, False]
    assert first.latest == second.latest
    for ours, (theirs, _) in zip((first, second), pair.results(fit_failing, tmp_path / "well", None, 1), strict=True):
        assert ours.steps == 6
        torch.testing.assert_close(ours.weights, theirs.weights, rtol=0, atol=0)
        assert ours.latest == theirs.latest


@pytest.mark.parametrize("how", ["memory", "Ctrl-C"])
def test_what_must_end_a_run_ends_it_everywhere(pair: Pair, tmp_path: Path, how: str) -> None:
    results = pair.run(fit_failing, tmp_path, how, 1, "warn")
    kinds = (SystemExit, SystemExit) if how == "Ctrl-C" else (MemoryError, torch.OutOfMemoryError)
    assert tuple(map(type, results)) == kinds


def fit_unwritable(path: Path) -> None:
    def save(*_: Any) -> None:
        raise OSError("No space left on device")

    with mock.patch.object(RunFiles, "save", save):  # called in the first process alone
        fit(path)


def test_if_the_first_cannot_write_all_end(pair: Pair, tmp_path: Path) -> None:
    first, second = pair.run(fit_unwritable, tmp_path)
    assert type(first) is OSError
    assert str(second) == (
        "showing a dissection and writing it to a file failed in process 0: OSError: No space left on device"
    )


def fit_own_dictionary(path: Path, folder: Path) -> None:
    own = folder / str(torch.distributed.get_rank())
    trainer(path, HNDCallback(own), strategy="ddp", devices=2).fit(Net(), *data())


def test_a_dictionary_that_one_has_not_is_named_by_all(pair: Pair, tmp_path: Path, folder: Path) -> None:
    for rank in range(2):
        shutil.copytree(folder, tmp_path / "own" / str(rank))
    missing = tmp_path / "own/1/parts/7/nose.png"
    picture = missing.read_bytes()
    missing.unlink()
    first, second = pair.run(fit_own_dictionary, tmp_path, tmp_path / "own")
    assert isinstance(second, FileNotFoundError)
    assert str(first).startswith("opening the dictionary failed in process 1: FileNotFoundError: ")
    missing.with_name("original.png").write_bytes(picture)
    missing.write_bytes(picture)
    for error in pair.run(fit_own_dictionary, tmp_path, tmp_path / "own"):
        assert isinstance(error, ValueError)
        assert str(error).startswith("the processes have different dictionaries: process 0 ")
        assert "HNDCallback(size=...) where the model gets images of several sizes" in str(error)


KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = {paths!r}
import torch
from conftest import random_dictionary
from runs import Net, data, trainer
from test_resume import AfterEpochOne
from lightning_hnd import HNDCallback

def forward(module, images):
    if module.current_epoch == 1 and torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    module(images)

torch.set_num_threads(1)
callback = HNDCallback(random_dictionary(), forward_fn=forward, on_error="warn")
trainer(pathlib.Path({folder!r}), callback, strategy="ddp", devices=2, max_epochs=3).fit(Net(), *data())
"""


def test_if_one_is_killed_the_run_ends_and_keeps_what_it_had(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(KILLED.format(paths=sys.path, folder=str(tmp_path)))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=LIMIT * 2)
    assert ended.returncode not in (0, None)
    assert "Starting with 2 processes" in ended.stderr  # by Lightning's own launcher
    names = [dissection.info["epoch"] for dissection in history(tmp_path / "hnd")]
    assert names == [0, 0]  # at start and of epoch 0
