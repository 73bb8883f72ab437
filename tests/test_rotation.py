"""Rotations: uniform, fractional, and the end of interpretability where units were aligned with concepts."""

from __future__ import annotations

import random
from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_dictionary
from torch import nn

from lightning_hnd import FaceDictionary, Rule, dissect
from lightning_hnd.analyses.rotation import RotationTest, power, rotation, rotation_test
from lightning_hnd.evidence.fresh import FreshWeights, acquainted_networks
from lightning_hnd.report import rotation_plot
from lightning_hnd.showing.showing import Showing


def test_rotations_are_orthogonal_of_determinant_one_and_uniform() -> None:
    drawn = torch.stack([rotation(4, seed) for seed in range(2000)])
    assert torch.allclose(drawn @ drawn.transpose(1, 2), torch.eye(4).double().expand(2000, 4, 4))
    assert torch.allclose(torch.linalg.det(drawn), torch.ones(2000).double())
    assert drawn.mean(0).abs().max() < 4 * (1 / 4 / 2000) ** 0.5  # each entry has mean 0 and variance 1/4
    assert torch.allclose(drawn.square().mean(0), torch.full((4, 4), 0.25).double(), atol=0.03)


@pytest.mark.parametrize("size", [2, 3, 16, 65])
def test_powers_lead_from_nothing_to_the_rotation(size: int) -> None:
    whole = rotation(size, seed=1)
    assert torch.allclose(power(whole, 0.0), torch.eye(size).double(), atol=1e-8)
    assert torch.allclose(power(whole, 1.0), whole, atol=1e-8)
    assert torch.allclose(power(whole, 0.3) @ power(whole, 0.7), whole, atol=1e-8)


class Shown(nn.Module):
    """Its units are the channels of the picture, at a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.AvgPool2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def marked() -> FaceDictionary:
    """A dictionary whose pictures' three channels are lit in the masks of three concepts of different regions."""
    faces = random_dictionary(images=90)
    dense, concepts = faces.masks.dense(), torch.tensor([i for i, n in enumerate(faces.images_per_concept) if n][:3])
    pictures = torch.randint(0, 30, faces.pictures.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for channel, c in enumerate(concepts.tolist()):
        for m in (faces.mask_concept == c).nonzero().flatten().tolist():
            pictures[faces.mask_image[m], channel][dense[m]] = 250
    return replace(faces, pictures=pictures)


def test_strength_zero_is_the_layer_itself_and_the_model_is_left_as_it_was() -> None:
    model, faces = Shown(), marked()
    test = rotation_test(model, faces, "layer", strengths=(0.0, 1.0), seeds=(0, 1), rule=Rule(quantile=0.05))
    plain = dissect(model, faces, "layer", quantile=0.05, level=None)["layer"]
    assert test.interpretable[0] == (int(plain.interpretable.sum()),) * 2
    assert test.concepts[0] == (int(plain.paired_concepts.any(0).sum()),) * 2
    assert dissect(model, faces, "layer", quantile=0.05, level=None)["layer"] == plain


class Drawing(nn.Module):
    """Draws from every generator, will not leave training mode, has a hook, and keeps what copies of it share."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.ReLU())
        self.recent, self.generator = deque(maxlen=3), random.Random(1)
        self.layer.register_forward_hook(lambda _module, _inputs, output: output + self.generator.random())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.rand(1), random.random(), np.random.rand()
        self.recent.append(len(images))
        self.layer[1].train()
        return self.layer(images)


@pytest.mark.parametrize("last", [1, 2, 3, 9])
def test_nothing_notices_a_rotation_test_wherever_it_ends(last: int) -> None:
    """In the model, in a copy that learns the mean and variance of images, when that is dissected, or not at all."""
    model, faces, passes = Drawing(), marked(), []
    model(faces.images(slice(0, 30)))  # its batch norm has seen images
    model.layer[0].eval()

    def state() -> tuple[Any, ...]:
        modes = [(module.training, len(module._forward_hooks)) for module in model.modules()]
        weights = [value.numpy().copy() for value in model.state_dict().values()]
        draws = (
            torch.get_rng_state().numpy(),
            random.getstate(),
            np.random.get_state()[1].copy(),
            model.generator.getstate(),
        )
        return modes, list(model.recent), weights, draws

    def run(module: nn.Module, images: torch.Tensor) -> None:
        module(images)
        passes.append(module)
        if len(passes) == last:
            raise ArithmeticError("it ends")

    before = state()
    with pytest.raises(RuntimeError, match="it ends") if last < 9 else nullcontext():
        rotation_test(
            model, faces, "layer", strengths=(1.0,), seeds=(0,), fresh_seeds=(1,), forward_fn=run, batch_size=90
        )
    assert [module is model for module in passes] == [True, False, False][:last]
    np.testing.assert_equal(state(), before)


def test_fresh_weights_are_counted_likewise() -> None:
    faces = marked()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU())
    model(faces.images(slice(0, 30)))  # in training mode
    for rule in (Rule(quantile=0.05), Rule(quantile=0.05, level=0.05)):
        test = rotation_test(model, faces, "2", strengths=(0.0,), seeds=(0,), rule=rule, fresh_seeds=(1, 2))
        expected = [
            dissect(network, faces, "2", quantile=0.05, level=rule.level)["2"]
            for network in acquainted_networks(model, faces, Showing(), FreshWeights((1, 2)))
        ]
        assert test.fresh_interpretable == tuple(int(layer.interpretable.sum()) for layer in expected)
        assert test.fresh_concepts == tuple(int(layer.paired_concepts.any(0).sum()) for layer in expected)
    assert rotation_test(model, faces, "2", strengths=(0.0,), seeds=(0,), fresh_seeds=()).fresh_concepts == ()


def test_weights_that_nothing_resets_are_refused_before_anything_runs() -> None:
    model = Shown()
    model.register_parameter("scale", nn.Parameter(torch.ones(3)))
    with pytest.raises(ValueError, match=r"1 weights of Shown: scale; .* fresh_seeds=\(\) to do without"):
        rotation_test(model, marked(), "layer", forward_fn=lambda *_: pytest.fail("it ran"))


@pytest.mark.parametrize(("seeds", "error"), [((1, 1), ValueError), (5, TypeError), ("12", TypeError)])
def test_seeds_that_are_no_different_networks_are_refused(seeds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"fresh_seeds (must differ|are whole numbers)"):
        rotation_test(Shown(), marked(), "layer", fresh_seeds=seeds, forward_fn=lambda *_: pytest.fail("it ran"))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"strengths": ()}, ValueError, "strengths must not be empty"),
        ({"strengths": 0.5}, TypeError, "strengths are several numbers, got 0.5"),
        ({"strengths": (0.5, 2)}, ValueError, "strengths go from 0 .* to 1 .*, got 2"),
        ({"seeds": ()}, ValueError, "seeds must not be empty"),
        ({"seeds": 3}, TypeError, "seeds are several whole numbers, got 3"),
        ({"seeds": (3, 3)}, ValueError, "seeds must differ"),
        ({"rule": "readme"}, TypeError, "rule is a Rule, such as README .*, got 'readme'"),
        ({"iou_threshold": 0.5}, TypeError, r"iou_threshold is no option here: give rule=Rule\(\.\.\.\)"),
        ({"level": 0.05}, TypeError, "level is no option here"),
    ],
)
def test_what_no_rotation_can_be_drawn_from_is_refused(
    settings: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        rotation_test(Shown(), marked(), "layer", **settings, forward_fn=lambda *_: pytest.fail("it ran"))


def test_several_layers_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU())
    with pytest.raises(ValueError, match=r"takes one layer, and '\*' matches 0, 1"):
        rotation_test(model, random_dictionary(), "*")


def test_the_picture_shows_both_curves_and_fresh_weights() -> None:
    rotated = ((9, 9), (4, 6), (1, 2)), ((5, 5), (3, 3), (1, 1))
    test = RotationTest("layer", Rule(quantile=0.05), (0.0, 0.5, 1.0), *rotated)
    picture = rotation_plot(test)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    with_fresh = rotation_plot(replace(test, fresh_interpretable=(2, 3), fresh_concepts=(1, 2)))
    assert not np.array_equal(with_fresh, picture)
