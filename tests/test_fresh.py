"""Networks with fresh weights: all of them new, batch norms estimated, the caller's random numbers untouched."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import random_dictionary
from runs import Net, data, trainer
from torch import Tensor, nn

from lightning_hnd import Dissection, FaceDictionary, HNDCallback, Rule, dissect
from lightning_hnd.analyses.rotation import RotationTest, rotation_test
from lightning_hnd.evidence.fresh import FreshWeights, Null, fresh_null
from lightning_hnd.evidence.fresh_networks import fresh_networks, renewed
from lightning_hnd.functional.defence import effects
from lightning_hnd.showing.showing import Showing

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture
def faces_of_30() -> FaceDictionary:
    return random_dictionary(images=30)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU())


def null(model: nn.Module, faces: FaceDictionary, layers: list[str], fresh: FreshWeights, **how: Any) -> Null:
    return fresh_null(model, faces, layers, Showing(**how), fresh=fresh, budget=2**20)


def test_every_weight_is_new_and_the_model_is_as_it_was() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = fresh_networks(model, (1, 2))
    again = next(fresh_networks(model, (1,)))
    for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
        assert not (first.state_dict()[name] == before[name]).any()
        assert not (first.state_dict()[name] == second.state_dict()[name]).any()
        assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_nothing_resets_is_an_error_that_names_it() -> None:
    model = network()
    model.register_parameter("scale", nn.Parameter(torch.ones(3)))
    with pytest.raises(ValueError, match=r"does not reach 1 weights of Sequential: scale; give a factory"):
        renewed(model)


def test_attention_and_what_wholes_do_to_their_parts_are_made_anew() -> None:
    class Flat(nn.Sequential):
        def reset_parameters(self) -> None:
            nn.init.constant_(self[0].weight, 7.0)

    model = nn.Sequential(Flat(nn.Linear(4, 8)), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    fresh = renewed(model)
    assert bool((fresh[0][0].weight == 7).all())
    assert not bool((fresh[1].self_attn.in_proj_weight == model[1].self_attn.in_proj_weight).any())
    bound = (6 / (8 + 24)) ** 0.5  # Xavier's, as attention is made
    assert 0.9 * bound < fresh[1].self_attn.in_proj_weight.abs().max().item() <= bound
    assert bool((fresh[1].self_attn.out_proj.bias == 0).all())  # which attention sets after the projection was made


def test_fresh_networks_of_dead_units_are_warned_of() -> None:
    class Dead(nn.Sequential):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self[0].weight)

    model = Dead(nn.Conv2d(3, 4, 4, 4))
    nn.init.normal_(model[0].weight)
    with pytest.warns(UserWarning, match="with fresh weights of seed 2 all units of layer '0' are dead, or NaN"):
        dissect(model, random_dictionary(), layers="0", level=0.05, fresh_seeds=(1, 2))


def test_complex_weights_are_weights() -> None:
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))

    with pytest.raises(ValueError, match="does not reach 1 weights of Sequential: 1.filters; give a factory"):
        renewed(nn.Sequential(nn.Linear(3, 3), Fourier()))


def test_a_reset_that_fails_is_an_error_that_names_it() -> None:
    class Scaled(nn.Module):
        def reset_parameters(self, scale: float) -> None:
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"reset_parameters of Scaled failed \(TypeError: .*'scale'\); give a factory"):
        renewed(network().append(Scaled()))


def test_hooks_that_lead_back_to_the_model_count_nothing_there() -> None:
    model = network()
    model.count = 0

    def count(*_: object) -> None:
        model.count += 1

    model[0].register_forward_hook(count)
    null(model, random_dictionary(images=30), ["4"], FreshWeights((1,)))
    assert model.count == 0


@pytest.mark.parametrize("images", [3, 127, 129, 200, 257])
def test_batch_norms_see_all_images_in_batches_of_one_size(images: int) -> None:
    seen: list[int] = []

    def run(model: nn.Module, shown: torch.Tensor) -> object:
        if any(module.training for module in model.modules()):
            seen.append(len(shown))
        return model(shown)

    head = nn.Sequential(network(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4), nn.BatchNorm1d(4))
    head(torch.randn(4, 3, 24, 32))  # in training mode: its batch norms know images
    null(head, random_dictionary(images=images), ["0.4"], FreshWeights((1,)), forward_fn=run)
    assert sum(seen) == min(images, 128)
    assert max(seen) - min(seen) <= 1
    assert min(seen) > 1


def test_constants_are_kept() -> None:
    model = nn.Sequential(network(), nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])))
    assert renewed(model)[1].pos_weight.item() == 3


def test_random_numbers_are_not_used_up() -> None:
    model = network()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    null(model, random_dictionary(images=30), ["4"], FreshWeights((1, 2)))
    assert torch.equal(torch.rand(3), expected)


def test_batch_norms_know_the_dictionary_and_dead_units_do_not_count() -> None:
    seen = []

    def run(model: nn.Module, images: torch.Tensor) -> object:
        seen.append(model[1].running_var.clone())
        return model(images)

    faces, model = random_dictionary(images=30), network()
    model(faces.images(slice(0, 8)))  # in training mode: now its batch norm knows images
    found = null(model, faces, ["1", "4"], FreshWeights((1,)), forward_fn=run)
    assert (seen[-1] != 1).all()
    assert found["1"]["best_concept"].shape == (6,)
    assert found["4"]["mean"].shape == (len(faces.ontology.local) + faces.ontology.group_offsets[-1],)


def test_batch_norms_that_a_model_at_start_left_as_made_are_so_in_fresh_networks() -> None:
    """Else networks with fresh weights would be unlike a model that is one of them."""
    faces, model = random_dictionary(images=60), network()
    found = null(model, faces, ["4"], FreshWeights((1,)))["4"]
    (itself,) = fresh_networks(model, (1,))
    layer = dissect(itself, faces, "4", fresh_seeds=(1,))["4"]
    assert np.array_equal(layer.statistics["fresh_best_concept"], found["best_concept"].numpy())
    effect = effects({name: torch.tensor(value) for name, value in layer.statistics.items()}, found)[~layer.dead]
    torch.testing.assert_close(effect.nanmean(0), found["mean"], equal_nan=True)
    assert effect.isfinite().any()


def test_the_key_tells_whether_batch_norms_have_seen_images() -> None:
    faces, model = random_dictionary(images=30), network()
    before = FreshWeights((1,)).key(model, faces, ["4"], Showing())
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert FreshWeights((1,)).key(model, faces, ["4"], Showing()) == before  # weights make no difference
    model(faces.images(slice(0, 8)))
    assert FreshWeights((1,)).key(model, faces, ["4"], Showing()) != before


def narrow(width: int, bias: bool = True, of: Callable[..., nn.Module] = nn.Identity) -> nn.Module:
    return nn.Sequential(of(), nn.Conv2d(3, width, 4, 4, bias=bias))


def test_the_key_tells_partial_functions_of_other_arguments_apart() -> None:
    faces, model = random_dictionary(images=30), network()

    def key(factory: Callable[[], nn.Module]) -> str:
        return FreshWeights((1,), factory).key(model, faces, ["4"], Showing())

    makers = [
        partial(narrow, 4),
        partial(narrow, 5),
        partial(narrow, 4, bias=False),
        partial(narrow, 4, of=nn.ReLU),
        partial(narrow, 4, of=partial(nn.ReLU, True)),
        partial(network),
        network,
    ]
    assert len({key(maker) for maker in makers}) == len(makers)
    nameless = [partial(narrow, 4, True, object()) for _ in range(2)]  # nor do their addresses tell, in another process
    assert key(nameless[0]) == key(nameless[1])
    assert key(partial(narrow, bias=False, width=4)) == key(partial(partial(narrow, width=4), bias=False))


def test_a_factory_is_used() -> None:
    made = []

    def factory() -> nn.Module:
        made.append(network())
        return made[-1]

    null(nn.Identity(), random_dictionary(images=30), ["4"], FreshWeights((1, 2, 3), factory))
    assert len(made) == 3


def drawn_from(network_of: Callable[[], nn.Module]) -> nn.Module:
    torch.rand(1)  # so that its weights are the next numbers
    return network_of()


@pytest.mark.parametrize("seen", [False, True])
def test_a_factory_of_the_same_network_makes_the_same_networks(seen: bool) -> None:
    """Layers draw their weights when they are made as when they are reset, in the same order, from the same seeds."""
    faces, model = random_dictionary(images=60), network()
    if seen:
        model(faces.images(slice(0, 8)))  # in training mode: now its batch norm knows images

    def of(seeds: tuple[int, ...], factory: Callable[[], nn.Module] | None) -> tuple[Dissection, RotationTest]:
        fresh: dict[str, Any] = {"fresh_seeds": seeds, "factory": factory}
        bar = Rule(quantile=0.2, iou_threshold=0.15)
        test = rotation_test(model, faces, "4", strengths=(0.0,), seeds=(0,), rule=bar, **fresh)
        return dissect(model, faces, "4", **fresh), test

    default = of((1, 2, 3), None)
    assert of((1, 2, 3), network) == default
    for others in (of((4, 5, 6), network), of((1, 2, 3), partial(drawn_from, network))):
        assert all(other != one for other, one in zip(others, default, strict=True))


def test_the_callback_compares_with_what_a_factory_makes(tmp_path: Path) -> None:
    found = []
    for factory in (None, Net, partial(drawn_from, Net)):
        L.seed_everything(0, verbose=False)
        callback = HNDCallback(random_dictionary(60), "body.2", fresh_seeds=(1, 2), factory=factory)
        trainer(tmp_path, callback, max_epochs=1).fit(Net(), *data())
        assert callback.baseline is not None
        assert callback.latest is not None
        found.append((callback.baseline["body.2"], callback.latest["body.2"]))
    assert found[0] == found[1]
    assert all(other != one for other, one in zip(found[0], found[2], strict=True))


@pytest.mark.parametrize(
    ("seeds", "error", "words"),
    [
        (5, TypeError, "one for each network, such as .101, 102., got 5"),
        ((1, 1), ValueError, "must differ.* got .1, 1."),
    ],
)
def test_seeds_that_are_none_or_come_twice_are_refused_when_the_callback_is_made(
    seeds: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        HNDCallback(fresh_seeds=seeds)


@pytest.mark.parametrize("seeds", [np.arange(2), [np.int64(0), np.int64(1)], range(2)])
def test_whole_numbers_of_any_type_make_the_same_networks(seeds: Any) -> None:
    """Which the next fit and a resumed run know again by their seeds, as they are written out."""
    fresh = FreshWeights.chosen(seeds, None, 0.05)
    assert fresh == FreshWeights.chosen((0, 1), None, 0.05)
    assert repr(fresh.seeds) == "(0, 1)"


def test_an_array_of_one_seed_is_a_seed() -> None:
    faces, model = FaceDictionary.rendered(size=32, images=40), network()
    found, expected = (dissect(model, faces, "4", fresh_seeds=seeds) for seeds in (np.array([0]), (0,)))
    assert found["4"].asked_fresh
    assert found == expected


def test_a_factory_that_makes_no_fresh_networks_is_refused() -> None:
    model, faces = network(), random_dictionary(images=30)
    other = network()
    for factory, error, said in (
        (lambda: model, ValueError, "another network for each seed; it returned the model itself"),
        (lambda: deepcopy(other), ValueError, "it returned equal weights for seeds 1 and 2. Give one"),
        (other, TypeError, "factory is a function that makes a network .*, got Sequential"),
    ):
        with pytest.raises(error, match=said):
            dissect(model, faces, "4", fresh_seeds=(1, 2), factory=factory)


def shuffled(model: nn.Module) -> nn.Module:
    other = deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    return other


def drawn_in_a_buffer() -> nn.Module:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(5, 3, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.get_buffer("weight"), stride=4)

    return nn.Sequential(Filter())


def test_networks_that_differ_are_networks_however_alike(faces_of_30: FaceDictionary) -> None:
    model = network()
    for of, layer, factory in (
        (model, "4", partial(shuffled, model)),
        (drawn_in_a_buffer(), "0", drawn_in_a_buffer),
        (nn.Sequential(nn.AvgPool2d(4)), "0", lambda: nn.Sequential(nn.AvgPool2d(4))),  # of which there is but one
        (network().bfloat16(), "4", lambda: network().bfloat16()),
    ):
        assert dissect(of, faces_of_30, layer, fresh_seeds=(1, 2), factory=factory)[layer].asked_fresh


def test_seeds_may_come_from_a_generator() -> None:
    assert FreshWeights.chosen((seed for seed in (1, 2)), None, 0.05).seeds == (1, 2)  # type: ignore[arg-type]


def test_a_factory_that_returns_no_network_is_refused() -> None:
    faces = FaceDictionary.rendered(size=32, images=20)
    with pytest.raises(TypeError, match="factory must return a network .* got None"):
        dissect(network(), faces, "4", fresh_seeds=(1,), factory=lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="factory makes no network without a seed; give fresh_seeds="):
        dissect(network(), faces, "4", factory=network)
