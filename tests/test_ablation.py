"""Switching units off, on a network whose use of each unit is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryAccuracy

from lightning_hnd import Dissection, FaceDictionary, ablate, dissect
from lightning_hnd.activations import switched_off

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
