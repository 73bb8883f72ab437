"""Bootstrap intervals: against images that really stand there several times, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_evidence import squares
from torch import nn

from lightning_hnd import README, FaceDictionary, dissect, effect_intervals
from lightning_hnd.functional.bootstrap import means, percentile_interval, placed_effects, rank_effects, resampled
from lightning_hnd.functional.significance import partial_rank_test


@pytest.mark.parametrize("ties", [False, True])
def test_effects_equal_those_of_images_that_are_repeated(ties: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    response = torch.randn(60, 4, generator=generator)
    response = response.mul(2).round().clamp(min=0) if ties else response
    response[:, 3] = 0  # dead
    label, others = torch.rand(60, generator=generator) < 0.4, torch.rand(60, 3, generator=generator) < 0.3
    others[:, 2] = torch.arange(60) == 7  # missing from a third of the replicates
    counts = resampled(60, 20, seed=1)
    found = rank_effects(response, label, others, counts)
    for r, count in enumerate(counts.long()):
        some = torch.arange(60).repeat_interleave(count)
        naive = partial_rank_test(response[some], label[some], others[some])
        torch.testing.assert_close(found.effect[r], naive.effect)
        torch.testing.assert_close(found.auc[r], naive.auc)


def test_few_numbers_at_once_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    response, label = torch.randn(30, 4, generator=generator), torch.arange(30) % 3 == 0
    nothing, counts = torch.zeros(30, 0, dtype=torch.bool), resampled(30, 7, seed=1)
    at_once = rank_effects(response, label, nothing, counts)
    monkeypatch.setattr("lightning_hnd.functional.bootstrap._AT_ONCE", 250)
    torch.testing.assert_close(rank_effects(response, label, nothing, counts), at_once)


def test_without_the_label_there_is_no_effect() -> None:
    counts = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]]).double()
    label = torch.tensor([True, True, False, False])
    found = rank_effects(torch.arange(4.0)[:, None], label, torch.zeros(4, 0, dtype=torch.bool), counts)
    assert found.effect.isnan().tolist() == [[True], [False]]
    assert found.auc.isnan().tolist() == [[True], [False]]


def test_place_and_means_equal_those_of_images_that_are_repeated() -> None:
    generator = torch.Generator().manual_seed(0)
    a, coefficient = torch.randn(40, 3, 2, generator=generator), torch.randn(40, 2, generator=generator)
    weight, counts = torch.tensor([0.8, 0.6]).double(), resampled(40, 10, seed=1)
    found, mean = placed_effects(a, coefficient, weight, counts), means(a[:, :, 0], counts)
    for r, count in enumerate(counts.long().numpy()):
        some = np.arange(40).repeat(count)
        for u in range(3):
            both = [np.corrcoef(a[some, u, k].numpy(), coefficient[some, k].numpy())[0, 1] for k in range(2)]
            assert found[r, u].item() == pytest.approx((0.8 * both[0] + 0.6 * both[1]) / 1.4, abs=1e-5)
            assert mean[r, u].item() == pytest.approx(a[some, u, 0].numpy().mean(), abs=1e-5)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """400 dictionaries, planted effects; the truth of ranks is that of a very large one."""

    def draw(images: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cause = torch.rand(images, generator=generator) < 0.4
        copied = torch.rand(images, generator=generator) < 0.4
        label = torch.where(copied, cause, torch.rand(images, generator=generator) < 0.4)
        signal = 0.8 * label[:, None] + 0.6 * cause[:, None]
        return (signal + torch.randn(images, 1, generator=generator)).clamp(min=0), label, cause[:, None]

    generator = torch.Generator().manual_seed(0)
    truth = partial_rank_test(*draw(400_000, generator))
    placed = torch.tensor([0.3 / math.sqrt(1.09)])  # the correlation of each mode
    held = []
    for seed in range(400):
        counts = resampled(200, 300, seed)
        found = rank_effects(*draw(200, generator), counts)
        own = torch.randn(200, 3, generator=generator)
        a = 0.3 * own.unsqueeze(1) + torch.randn(200, 1, 3, generator=generator)
        of_place = placed_effects(a, own, torch.tensor([0.8, 0.5, 0.33]), counts)
        for replicates, true in ((found.effect, truth.effect), (found.auc, truth.auc), (of_place, placed)):
            low, high = percentile_interval(replicates, 0.9)
            held.append((low <= true) & (true <= high))
    shares = torch.cat(held).double().view(400, 3).mean(0)
    assert (shares - 0.9).abs().max() <= 3 * math.sqrt(0.9 * 0.1 / 400) + 0.01, shares  # 0.01: 200 images, not infinite


class Follower(torch.nn.Module):
    """Two units of blank pictures: one shows where squares are, one is noise; the pictures tell which face it is."""

    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        self.maps, self.shown = maps, 0
        self.layer = torch.nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The maps of the next faces."""
        first, self.shown = self.shown, (self.shown + len(images)) % len(self.maps)
        return self.layer(self.maps[first : first + len(images)])


@pytest.fixture
def followed() -> tuple[torch.nn.Module, object]:
    faces, where, smiling = squares()
    noise = torch.rand(len(where), 2, 8, 8, generator=torch.Generator().manual_seed(3))
    noise[:, 0] += where * smiling[:, None, None]
    return Follower(noise), faces


def test_intervals_of_a_dissection_hold_its_statistics_and_are_the_same_again(followed) -> None:  # type: ignore[no-untyped-def]
    model, faces = followed
    dissection = dissect(model, faces, layers="layer")
    found = effect_intervals(model, faces, dissection, "layer", replicates=300)
    effects = ["agreement", "associated_auc", "associated_effect", "placed_effect"]
    assert sorted(one.effect for one in found if (one.unit, one.concept) == (0, "Smiling")) == effects
    column = faces.ontology.concept_index("Smiling")
    for one in found:
        assert one.low < one.value < one.high
        assert one.value == dissection["layer"].statistics[one.effect][one.unit, column]
    assert found == effect_intervals(model, faces, dissection, "layer", replicates=300)
    assert found != effect_intervals(model, faces, dissection, "layer", replicates=300, seed=1)
    assert all(one.unit == 0 for one in found)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_intervals_do_not_depend_on_the_scale_of_activations(followed, scale: float) -> None:  # type: ignore[no-untyped-def]
    model, faces = followed
    expected = effect_intervals(model, faces, dissect(model, faces, layers="layer"), "layer", replicates=20)
    model.maps = scale * model.maps
    found = effect_intervals(model, faces, dissect(model, faces, layers="layer"), "layer", replicates=20)
    assert [(one.unit, one.effect) for one in found] == [(one.unit, one.effect) for one in expected]
    numbers = [[value for one in some for value in (one.low, one.value, one.high)] for some in (found, expected)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def test_another_model_or_dictionary_is_refused(followed) -> None:  # type: ignore[no-untyped-def]
    model, faces = followed
    dissection = dissect(model, faces, layers="layer")
    whole = model.maps
    model.maps = whole[:, :1]
    with pytest.raises(
        ValueError, match=f"'layer' has 1 units, and {whole.shape[1]} were dissected: give the model as it"
    ):
        effect_intervals(model, faces, dissection, "layer", replicates=20)
    model.maps = whole.flip(0)
    with pytest.raises(ValueError, match="no longer what was dissected"):
        effect_intervals(model, faces, dissection, "layer", replicates=10)
    with pytest.raises(ValueError, match="give the same faces"):
        effect_intervals(model, faces.subset(range(100)), dissection, "layer", replicates=10)
    with pytest.raises(ValueError, match="replicates must be at least 2, got 1"):
        effect_intervals(model, faces, dissection, "layer", replicates=1)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        effect_intervals(model, faces, dissection, "layer", level=95)


def test_what_the_images_could_not_tell_has_no_interval() -> None:
    faces = FaceDictionary.rendered(size=48, images=200)  # some concepts have fewer than ten masks
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 5, stride=2), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU())
    dissection = dissect(model, faces, "3").with_rule(README)  # the bar pairs units with those as well
    u, c = dissection["3"].paired_concepts.nonzero()
    untold = np.isnan(dissection["3"].statistics["placed_effect"][u, c])
    assert 0 < untold.sum() < len(untold)
    placed = [one for one in effect_intervals(model, faces, dissection, "3") if one.effect == "placed_effect"]
    assert len(placed) == (~untold).sum()
