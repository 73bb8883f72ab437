"""Switching units off, on a network whose use of each unit is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import runs
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryAccuracy

from lightning_hnd import AblationCallback, Dissection, FaceDictionary, HNDCallback, ablate, dissect
from lightning_hnd.ablation import paired_units
from lightning_hnd.activations import switched_off

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
        assert result.control_effects(group) == (0.0,) * 20
        assert result.p(group) == pytest.approx(1 / 21)
    assert model.training
    assert not model.units[0]._forward_hooks
    assert "2 units of Eyeglasses" in str(result)
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


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"concept": "Eyeglass"}, ValueError, "no concept or group 'Eyeglass'"),
        ({"concept": "Bald"}, ValueError, "no concept or group|no unit of layer 'units.0' is paired with 'Bald'"),
        ({"controls": 0}, ValueError, "controls must be at least 1"),
        ({"layer": "head"}, KeyError, "no layer 'head'"),
        ({"dataloader": []}, ValueError, "gave no batch"),
        ({"dataloader": [torch.zeros(2)]}, ValueError, "batches must be"),
    ],
)
def test_what_cannot_be_measured_is_said(found: Dissection, wrong: dict[str, Any], error: Any, message: str) -> None:
    given: dict[str, Any] = {"concept": "Eyeglasses", "metric": BinaryAccuracy(), "dataloader": data(), **wrong}
    with pytest.raises(error, match=message):
        ablate(Reader(), found, **given)


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


def test_the_callback_needs_pairings_and_a_concept_that_there_is(tmp_path: Path) -> None:
    hnd = HNDCallback(FaceDictionary.rendered(size=runs.SIZE, images=60), level=None)
    alone = AblationCallback("left_eye", MeanSquaredError())
    for callbacks in ([alone], [alone, hnd]):
        with pytest.raises(ValueError, match="from an HNDCallback that stands before it"):
            fit(tmp_path, *callbacks)
    with pytest.raises(ValueError, match="no concept or group 'ear'"):
        fit(tmp_path, hnd, AblationCallback("ear", MeanSquaredError()))
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1"):
        AblationCallback("left_eye", MeanSquaredError(), every_n_epochs=0)
    # a concept with which no unit is paired: the same keys, and nothing changes
    callback = AblationCallback("AU_20", MeanSquaredError(), every_n_epochs=1, controls=1)
    metrics = fit(tmp_path, hnd, callback, epochs=1)[2]
    assert {metrics[f"hnd/body.2/readme/ablation/AU_20/{key}"] for key in ("units", "0/effect", "overall/random")} == {
        0
    }
