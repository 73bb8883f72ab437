"""Switching units off, on a network whose use of each unit is known."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import runs
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy

from lightning_hnd import AblationCallback, Dissection, FaceDictionary, HNDCallback, ablate, dissect
from lightning_hnd.analyses.ablation import Ablation, _random_units, paired_units
from lightning_hnd.showing.activations import switched_off

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The faces of the built-in dictionary are drawings"),
]
UNITS = 12


class Reader(nn.Module):
    """Shows units that are given as images, and decides by the first two alone."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Sequential(nn.Identity())
        self.drop = nn.Dropout(0.5)

    def forward(self, maps: Tensor) -> Tensor:
        shown = self.drop(self.units(maps).amax((2, 3)))
        return (shown[:, :2].sum(1) > 0.5).float()


def dissection() -> tuple[Dissection, FaceDictionary]:
    """Units 0 and 1 fire just on glasses, unit 2 on noses, the others on noise."""
    faces = FaceDictionary.rendered(size=32, images=300)
    names = [concept.name for concept in faces.ontology.local]
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(len(faces), UNITS, 8, 8, generator=generator) * 0.1
    for batch in faces.batches():
        for units, concept in (((0, 1), "Eyeglasses"), ((2,), "nose")):
            rows = (batch.mask_concept == names.index(concept)).nonzero().flatten()
            small = nn.functional.adaptive_avg_pool2d(batch.masks.dense()[rows].float()[:, None], 8)[:, 0]
            for unit in units:
                maps[batch.index[batch.mask_image[rows]], unit] += small

    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.units = nn.Sequential(nn.Identity())
            self.position = 0

        def forward(self, images: Tensor) -> Tensor:
            some = maps[self.position : self.position + len(images)]
            self.position += len(images)
            return self.units(some)

    model = Shown()
    model.forward(faces.images(slice(0, 0)))
    return dissect(model, faces, "units.0", quantile=0.05, batch_size=64), faces


@pytest.fixture(scope="module")
def found() -> Dissection:
    return dissection()[0]


def data() -> list[tuple[Tensor, Tensor, list[str]]]:
    """The first two units say the target; of group b only the first does, which is not enough."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(3):
        target = torch.rand(50, generator=generator) < 0.5
        group = ["a" if i % 5 else "b" for i in range(50)]
        maps = torch.rand(50, UNITS, 4, 4, generator=generator) * 0.1
        maps[:, 0] += target[:, None, None].float()
        maps[:, 1] += (target & torch.tensor([name == "a" for name in group]))[:, None, None].float()
        batches.append((maps, target.int(), group))
    return batches


def test_the_metric_falls_to_chance_without_the_units_that_carry_it_and_not_without_others(found: Dissection) -> None:
    model = Reader().train()
    result = ablate(model, found, concept="Eyeglasses", metric=BinaryAccuracy(), dataloader=data(), layer="units.0")
    assert result.units == (0, 1)
    target = torch.cat([batch[1] for batch in data()]).float()
    b = torch.tensor([name == "b" for batch in data() for name in batch[2]])
    chance = {"overall": 1 - target, "a": 1 - target[~b], "b": 1 - target[b]}
    assert list(result.intact) == ["overall", "a", "b"]
    for group, off in chance.items():  # all is taken for 0 then
        assert result.intact[group] == 1.0
        assert result.ablated[group] == pytest.approx(float(off.mean()))
    # random ones are any live units: in some draws one of the two is among them, without which group b suffers, too
    assert set(result.control_effects("a")) == {0.0}
    assert set(result.control_effects("b")) == {0.0, result.effect("b")}
    hit = result.control_effects("b").count(result.effect("b"))
    assert 0 < hit < 10  # each draws two of twelve
    assert [result.p(group) for group in chance] == [pytest.approx(1 / 21), pytest.approx(1 / 21), (1 + hit) / 21]
    assert model.training
    assert not model.units[0]._forward_hooks
    assert "2 units of Eyeglasses" in str(result)
    assert "1 unit of Eyeglasses" in str(replace(result, units=(0,)))
    assert str(replace(result, units=())).endswith(
        "no unit is paired with Eyeglasses, so that there is none to switch off"
    )
    assert result.scalars()["b/effect"] == result.effect("b")


def test_switched_off_units_give_nothing_and_the_others_what_they_gave() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    images = torch.randn(2, 3, 8, 8)
    plain = model(images)
    with switched_off(model, "0", [1, 3]):
        off = model(images)
    assert not off[:, [1, 3]].any()
    assert torch.equal(off[:, [0, 2, 4]], plain[:, [0, 2, 4]])
    assert torch.equal(model(images), plain)
    tokens = nn.Sequential(nn.Linear(4, 6))
    with switched_off(tokens, "0", [5]):
        assert not tokens(torch.randn(2, 7, 4))[:, :, 5].any()
    with pytest.raises(ValueError, match="layer '0' did not run"), switched_off(model, "0", [1]):
        model[1](images)


def test_of_a_tuple_the_first_tensor_is_switched_off_and_the_rest_stays() -> None:
    recurrent = nn.Sequential(nn.LSTM(4, 6, batch_first=True))
    attention = nn.ModuleDict({"it": nn.MultiheadAttention(6, 2, batch_first=True)})
    tokens = torch.randn(2, 7, 4)
    for model, layer, run in (
        (recurrent, "0", lambda: recurrent(tokens)),
        (attention, "it", lambda: attention["it"](*[recurrent(tokens)[0].detach()] * 3)),
    ):
        plain = run()
        with switched_off(model, layer, [1, 4]):
            off = run()
        assert type(off) is type(plain)
        assert not off[0][..., [1, 4]].any()
        assert torch.equal(off[0][..., [0, 2, 3, 5]], plain[0][..., [0, 2, 3, 5]])
        torch.testing.assert_close(off[1], plain[1], rtol=0, atol=0)
    flat = nn.Sequential(nn.Flatten())
    with pytest.raises(ValueError, match=r"layer '0' gives shape \[2, 28\]"), switched_off(flat, "0", [0]):
        flat(tokens)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"concept": "Eyeglass"}, ValueError, "no concept or group 'Eyeglass'"),
        ({"concept": "AU_20"}, ValueError, "paired with 'AU_20' under .*; there are units of: nose, mouth, Eyeglasses"),
        ({"controls": 0}, ValueError, "controls must be at least 1"),
        ({"layer": "head"}, KeyError, "no layer 'head'"),
        ({"dataloader": []}, ValueError, "gave no batch"),
        ({"dataloader": [torch.zeros(2)]}, ValueError, "batches must be"),
        ({"dataloader": [(*data()[0][:2], ["overall"] * 50)]}, ValueError, "a group is called 'overall'"),
        ({"metric": MulticlassAccuracy(2, average=None)}, ValueError, r"MulticlassAccuracy gives shape \[2\]"),
    ],
)
def test_what_cannot_be_measured_is_said(found: Dissection, wrong: dict[str, Any], error: Any, message: str) -> None:
    given: dict[str, Any] = {"concept": "Eyeglasses", "metric": BinaryAccuracy(), "dataloader": data(), **wrong}
    with pytest.raises(error, match=message):
        ablate(Reader(), found, **given)


@pytest.mark.parametrize("paired", [2, 5, 6])
def test_units_like_any_others_are_accused_as_rarely_as_the_level_says(paired: int) -> None:
    """Each unit adds something of its own to the answer, and those that are paired are drawn at random."""
    generator = torch.Generator().manual_seed(0)
    accused = 0
    for run in range(400):
        weight = torch.randn(12, generator=generator)
        units = torch.randperm(12, generator=generator)[:paired].tolist()
        draws = _random_units(torch.ones(12, dtype=torch.bool), paired, 19, seed=run)
        changed = [{"overall": float(weight[off].sum())} for off in draws]
        found = Ablation("a", "b", tuple(units), {"overall": 0.0}, {"overall": float(weight[units].sum())}, (*changed,))
        accused += found.p() <= 0.05
    assert accused <= 32  # of 20 expected; by chance once in 200 times


def test_an_effect_that_is_no_number_is_none() -> None:
    nan, some = {"overall": float("nan")}, {"overall": 0.1}
    assert Ablation("a", "b", (0,), {"overall": 0.0}, nan, (some,) * 20).p() == 1
    assert Ablation("a", "b", (0,), {"overall": 0.0}, some, (nan,) * 20).p() == 1


def test_as_many_units_can_be_switched_off_as_are_live(found: Dissection) -> None:
    everything = dataclasses.replace(found["units.0"], statistics=dict(found["units.0"].statistics))
    vars(everything)["paired_concepts"] = np.ones_like(found["units.0"].paired_concepts)
    all_paired = dataclasses.replace(found, layers={"units.0": everything})
    result = ablate(Reader(), all_paired, concept="Eyeglasses", metric=BinaryAccuracy(), dataloader=data())
    assert len(result.units) == UNITS
    assert result.p() == 1  # any as many are the same


class Grouped(runs.Net):
    """Trains on batches that name the group of each image."""

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self.loss(batch[:2])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", self.loss(batch[:2]))


def fit(folder: Path, *callbacks: L.Callback, epochs: int = 3) -> tuple[dict[str, Tensor], Tensor, dict[str, float]]:
    L.seed_everything(0, verbose=False)
    images, target = runs.data()[1].dataset.tensors
    net, data = Grouped(example=True), TensorDataset(images, target, torch.arange(len(images)) % 2)
    run = runs.trainer(folder, *callbacks, max_epochs=epochs, limit_val_batches=3)
    run.fit(net, DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
    return net.state_dict(), torch.get_rng_state(), {k: float(v) for k, v in run.callback_metrics.items()}


KEY = "hnd/body.2/labelled-q0.2-iou0.0/ablation/Eyeglasses"


def test_in_training_the_effects_are_those_of_the_model_of_that_moment_and_nothing_is_disturbed(tmp_path: Path) -> None:
    hnd = HNDCallback(FaceDictionary.rendered(size=runs.SIZE, images=60), quantile=0.2, iou_threshold=0.0, level=None)
    callback = AblationCallback("Eyeglasses", MeanSquaredError(), every_n_epochs=2, controls=3)
    weights, random, metrics = fit(tmp_path / "with", hnd, callback)
    plain, plain_random, _ = fit(tmp_path / "without")
    torch.testing.assert_close(weights, plain, rtol=0, atol=0)
    assert torch.equal(random, plain_random)
    found = callback.latest["body.2"]  # of epoch 2, the last one
    assert hnd.latest is not None
    assert list(found.units) == paired_units(hnd.latest["body.2"], "Eyeglasses") != []
    net = Grouped()
    net.load_state_dict(weights)
    images, target = (tensor[:24] for tensor in runs.data()[1].dataset.tensors)  # of three batches
    net.eval()
    with torch.no_grad():
        as_it_is = (net(images) - target).square()
        with switched_off(net, "body.2", found.units):
            without = (net(images) - target).square()
    for group, rows in (("overall", slice(None)), ("0", slice(0, None, 2)), ("1", slice(1, None, 2))):
        assert found.intact[group] == pytest.approx(float(as_it_is[rows].mean()))
        assert found.ablated[group] == pytest.approx(float(without[rows].mean()))
        assert metrics[f"{KEY}/{group}/effect"] == pytest.approx(found.effect(group))
    assert metrics[f"{KEY}/units"] == len(found.units)


def measured(folder: Path, hnd: HNDCallback, net: L.LightningModule | None = None, **options: Any) -> AblationCallback:
    callback = AblationCallback("Eyeglasses", MeanSquaredError(), every_n_epochs=5, controls=1)
    runs.trainer(folder, hnd, callback, max_epochs=1, **options).fit(net or runs.Net(example=True), *runs.data())
    return callback


def lenient(**options: Any) -> HNDCallback:
    faces = FaceDictionary.rendered(size=runs.SIZE, images=60)
    return HNDCallback(faces, quantile=0.2, iou_threshold=0.0, level=None, **options)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_batches_are_as_the_model_gets_them(tmp_path: Path, precision: Any) -> None:
    assert measured(tmp_path, lenient(), precision=precision).latest


def test_dissections_at_the_end_of_a_training_epoch_are_followed(tmp_path: Path) -> None:
    assert measured(tmp_path, lenient(at_train_epoch_end=True)).latest
    with pytest.raises(ValueError, match="this run has none"):
        measured(tmp_path, lenient(at_train_epoch_end=True), limit_val_batches=0)


def test_a_second_fit_begins_anew(tmp_path: Path) -> None:
    hnd, net = lenient(), runs.Net(example=True)
    callback = AblationCallback("Eyeglasses", MeanSquaredError(), every_n_epochs=5, controls=1)
    for _ in range(2):
        callback.latest.clear()
        runs.trainer(tmp_path, hnd, callback, max_epochs=1).fit(net, *runs.data())
        assert callback.latest


def test_a_generator_that_training_draws_from_too_is_not_disturbed(tmp_path: Path) -> None:
    weights = []
    for others in ([], [AblationCallback("Eyeglasses", MeanSquaredError(), every_n_epochs=1, controls=1)]):
        L.seed_everything(0, verbose=False)
        net, shared, dataset = runs.Net(example=True), torch.Generator().manual_seed(0), runs.data()[1].dataset
        loaders = DataLoader(dataset, 8, shuffle=True, generator=shared), DataLoader(dataset, 8, generator=shared)
        runs.trainer(tmp_path, lenient(), *others).fit(net, *loaders)
        weights.append(net.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("monitor", "every", "validated", "message"),
    [
        (
            "above_chance/ablation/nose/overall/effect",
            1,
            1,
            r"no AblationCallback of that concept is in the Trainer; .* 'Eyeglasses'",
        ),
        (
            "above_chance/ablation/Eyeglasses/overall/effect",
            2,
            1,
            "AblationCallback measures every 2 epochs only",
        ),
        (
            "readme/ablation/Eyeglasses/overall/effect",
            1,
            1,
            r"logs is hnd/body\.2/above_chance/ablation/Eyeglasses/\.\.\.",
        ),
        ("above_chance/ablation/Eyeglasses/overall/effect", 1, 1, None),
        ("above_chance/ablation/Eyeglasses/overall/effect", 2, 2, None),
    ],
)
def test_ablations_can_be_monitored_if_they_are_made(
    tmp_path: Path, monitor: str, every: int, validated: int, message: str | None
) -> None:
    keep = ModelCheckpoint(tmp_path, monitor=f"hnd/body.2/{monitor}")
    ablating = AblationCallback("Eyeglasses", MeanSquaredError(), every_n_epochs=every, controls=1)
    hnd = HNDCallback(FaceDictionary.rendered(runs.SIZE, images=40), "body.2", fresh_seeds=())
    run = runs.trainer(tmp_path, hnd, ablating, keep, check_val_every_n_epoch=validated)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        run.fit(runs.Net(), *runs.data())
    assert (run.global_step == 0) == (message is not None)
    assert (keep.best_model_score is None) == (message is not None)


@pytest.mark.parametrize(
    ("every", "at_train_epoch_end", "interval", "steps"),
    [
        (1, False, 0.5, [1, 3, 5, 7, 9, 11]),
        (2, False, 0.5, [1, 3, 9, 11]),
        (1, False, 1.0, [3, 7, 11]),
        (2, True, 0.5, [3, 11]),
    ],
)
def test_each_dissection_of_an_epoch_is_followed_once(
    tmp_path: Path, every: int, at_train_epoch_end: bool, interval: float, steps: list[int]
) -> None:
    hnd, logger = lenient(at_train_epoch_end=at_train_epoch_end), runs.Memory()
    callback = AblationCallback("Eyeglasses", MeanSquaredError(), every_n_epochs=every, controls=1)
    run = runs.trainer(tmp_path, hnd, callback, logger=logger, max_epochs=3, val_check_interval=interval)
    run.fit(runs.Net(example=True), *runs.data())
    assert logger.steps(f"{KEY}/units") == steps  # which fails on a step that is there twice


def test_a_dissection_that_failed_leaves_no_old_value_to_monitors(tmp_path: Path) -> None:
    def forward(net: L.LightningModule, images: Tensor) -> None:
        if net.current_epoch == 1:
            raise ArithmeticError("no luck")
        net(images)

    hnd, logger = lenient(on_error="warn", forward_fn=forward), runs.Memory()
    callback = AblationCallback("Eyeglasses", MeanSquaredError(), every_n_epochs=1, controls=1)
    run = runs.trainer(tmp_path, hnd, callback, logger=logger, max_epochs=3)
    with pytest.warns(UserWarning, match="could not dissect the model at epoch 1, step 8"):
        run.fit(runs.Net(example=True), *runs.data())
    assert hnd.failed_at == (1, 8)
    for key in ("units", "overall/effect"):
        nan = {step: np.isnan(value) for step, value in logger.values(f"{KEY}/{key}").items()}
        assert nan == {3: False, 7: True, 11: False}


def test_a_first_dissection_that_failed_is_nan_to_monitors_and_ends_no_run(tmp_path: Path) -> None:
    def forward(net: L.LightningModule, images: Tensor) -> None:
        if net.current_epoch == 0 and net.global_step > 0:
            raise ArithmeticError("no luck")
        net(images)

    hnd, logger = lenient(on_error="warn", forward_fn=forward), runs.Memory()
    callback = AblationCallback("Eyeglasses", MeanSquaredError(), every_n_epochs=1, controls=1)
    stop = EarlyStopping(f"{KEY}/overall/effect", patience=9, check_finite=False)
    run = runs.trainer(tmp_path, hnd, callback, stop, logger=logger, max_epochs=2)
    with pytest.warns(UserWarning, match="could not dissect the model at epoch 0, step 4"):
        run.fit(runs.Net(example=True), *runs.data())
    for key in ("units", "overall/effect", "overall/random"):
        assert {step: np.isnan(value) for step, value in logger.values(f"{KEY}/{key}").items()} == {3: True, 7: False}


@pytest.mark.skipif(not hasattr(L.pytorch.callbacks, "EMAWeightAveraging"), reason="since lightning 2.6")
def test_averaged_weights_that_are_taken_back_before_are_warned_of(tmp_path: Path) -> None:
    callback = AblationCallback("nose", MeanSquaredError(), every_n_epochs=1, controls=1)
    for late in (False, True):
        pair = [callback, L.pytorch.callbacks.EMAWeightAveraging(decay=0.5)]
        run = runs.trainer(tmp_path, lenient(), *(pair[::-1] if late else pair), max_epochs=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.fit(runs.Net(), *runs.data())
        assert any("EMAWeightAveraging stands before AblationCallback" in str(w.message) for w in caught) is late


class Dicts(runs.Net):
    """Gives its answer under a name."""

    def forward(self, x: Tensor) -> Any:
        return {"answer": super().forward(x)}

    def loss(self, batch: list[Tensor]) -> Tensor:
        return (self(batch[0])["answer"] - batch[1]).square().mean()


def test_what_the_metric_does_not_take_is_refused_before_the_first_step(tmp_path: Path) -> None:
    faces = FaceDictionary.rendered(size=runs.SIZE, images=60)
    net, hnd = Dicts(example=True), HNDCallback(faces, "body.2", fresh_seeds=())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = runs.trainer(tmp_path, hnd, AblationCallback("gender", MeanSquaredError()))
    with pytest.raises(
        ValueError, match=r"MeanSquaredError does not take prediction and target, dict and Tensor .*predict="
    ):
        run.fit(net, *runs.data())
    assert run.global_step == 0
    assert hnd.baseline is None  # nor was the wait for it
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    run = runs.trainer(tmp_path, hnd, AblationCallback("gender", MeanSquaredError()), num_sanity_val_steps=0)
    with pytest.raises(ValueError, match="MeanSquaredError does not take"):
        run.fit(net, *runs.data())
    answers = AblationCallback(
        "gender", MeanSquaredError(), predict=lambda model, batch: (model(batch[0])["answer"], batch[1]), controls=1
    )
    hnd = HNDCallback(faces, "body.2", fresh_seeds=())
    run = runs.trainer(tmp_path, hnd, answers, max_epochs=1)
    run.fit(net, *runs.data())
    assert answers.latest


def test_each_pass_is_a_step_of_the_bar_and_without_units_there_is_one(found: Dissection) -> None:
    steps = []

    def bar(over: range, title: str) -> Any:
        for step in over:
            steps.append((title, step, len(over)))
            yield step

    options: dict[str, Any] = {"metric": BinaryAccuracy(), "dataloader": data(), "controls": 4, "progress": bar}
    ablate(Reader(), found, concept="Eyeglasses", **options)
    assert steps == [("Switching off Eyeglasses in units.0", step, 6) for step in range(6)]
    steps.clear()
    nothing = ablate(Reader(), found, concept="AU_20", none_paired="measure", **options)
    assert [step for _, step, _ in steps] == [0]
    assert nothing.effect() == 0
    assert nothing.control_effects() == (0.0,) * 4
    assert nothing.p() == 1


def test_what_is_not_there_is_refused_before_the_first_step(tmp_path: Path) -> None:
    for wrong, message in (({"concept": "ear"}, "no concept or group 'ear'"), ({"dataloader": 1}, "none of them")):
        callback = AblationCallback(**{"concept": "nose", "metric": MeanSquaredError(), **wrong})
        run = runs.trainer(tmp_path, lenient(), callback, num_sanity_val_steps=0)
        with pytest.raises(ValueError, match=message):
            run.fit(runs.Net(), *runs.data())
        assert run.global_step == 0


def test_the_callback_needs_pairings_and_a_concept_that_there_is(tmp_path: Path) -> None:
    hnd = HNDCallback(FaceDictionary.rendered(size=runs.SIZE, images=60), level=None)
    alone = AblationCallback("left_eye", MeanSquaredError())
    for callbacks in ([alone], [alone, hnd]):
        with pytest.raises(ValueError, match="from an HNDCallback that stands before it"):
            fit(tmp_path, *callbacks)
    with pytest.raises(ValueError, match="no concept or group 'ear'"):
        fit(tmp_path, hnd, AblationCallback("ear", MeanSquaredError()))
    for metric in (None, "accuracy", MeanSquaredError):
        with pytest.raises(TypeError, match=r"metric must be one of torchmetrics, such as MeanSquaredError\(\), got "):
            AblationCallback("left_eye", metric)
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1"):
        AblationCallback("left_eye", MeanSquaredError(), every_n_epochs=0)
    # a concept with which no unit is paired: the same keys, and nothing changes
    callback = AblationCallback("AU_20", MeanSquaredError(), every_n_epochs=1, controls=1)
    metrics = fit(tmp_path, hnd, callback, epochs=1)[2]
    assert {metrics[f"hnd/body.2/readme/ablation/AU_20/{key}"] for key in ("units", "0/effect", "overall/random")} == {
        0
    }
