"""dissect() on any module, the layers it finds, and the Dissection that comes out."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_dictionary
from torch import Tensor, nn

from lightning_hnd import PAPER, README, RELEASED, Dissection, DissectionMetric, FaceDictionary, Rule, dissect
from lightning_hnd.showing.activations import resolve_layers


class Block(nn.Module):
    """A residual block as torchvision's: one ReLU, used twice."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(units, units, 3, padding=1), nn.Conv2d(units, units, 3, padding=1)
        self.bn = nn.BatchNorm2d(units)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn(self.conv2(self.relu(self.conv1(x)))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.layer1 = nn.Sequential(Block(6), Block(6))
        self.teacher = nn.Conv2d(3, 4, 1)  # the forward never gets here
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.layer1(self.stem(x)).mean((2, 3))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 8, stride=8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


class Tupled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return torch.nn.functional.avg_pool2d(x, 4), "aside"


@pytest.fixture
def model() -> ResNet:
    torch.manual_seed(0)
    return ResNet()


def test_a_dissection_is_what_the_metric_says_of_the_layers_output(model, dictionary) -> None:
    ours = dissect(model, dictionary, "stem", quantile=0.05, batch_size=5)["stem"]
    metric = DissectionMetric(quantile=0.05)
    with torch.no_grad():
        for batch in dictionary.batches(24):
            metric.update(model.stem(batch.images), batch)
    for name, value in metric.compute().items():
        np.testing.assert_allclose(ours.statistics[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("budget", "again"), [(0, "stem, layer1"), (20_000, "(stem|layer1)")])
def test_beyond_the_budget_a_second_pass_gives_the_same(model, dictionary, budget: int, again: str) -> None:
    one = dissect(model, dictionary, ["stem", "layer1"], quantile=0.3)
    with pytest.warns(UserWarning, match=f"counted in a second forward pass, with the same result: {again}$"):
        two = dissect(model, dictionary, ["stem", "layer1"], quantile=0.3, budget=budget)
    for name in ("stem", "layer1"):
        for key, value in one[name].statistics.items():
            np.testing.assert_array_equal(two[name].statistics[key], value, err_msg=key)
    with pytest.raises(ValueError, match="budget must not be negative, got -1"):
        dissect(model, dictionary, budget=-1)


def test_a_later_dissection_decodes_no_picture_and_cuts_no_mask(model, folder, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = FaceDictionary.from_folder(folder, size=(24, 32))
    first = dissect(model, faces, ["stem", "layer1"])

    def again(*_: object) -> None:
        raise AssertionError("this was done at the first dissection")

    monkeypatch.setattr("PIL.Image.open", again)
    monkeypatch.setattr("lightning_hnd.dictionary.masks.cut_masks", again)
    assert dissect(model, faces, ["stem", "layer1"]) == first
    with pytest.raises(AssertionError, match="done at the first"):
        dissect(model, faces.subset(range(len(faces))), "stem")  # masks of another dictionary: the patch works


def test_several_layers_by_name_and_glob(model, dictionary) -> None:
    dissection = dissect(model, dictionary, ["layer1.*.conv1", "stem"])
    assert list(dissection.layers) == ["stem", "layer1.0.conv1", "layer1.1.conv1"]
    assert len(dissection["layer1.0.conv1"].units) == 6


def test_an_unknown_layer_names_the_nearest_or_lists_those_that_exist(model, dictionary) -> None:
    with pytest.raises(ValueError, match=r"no layer matches 'layer5'; did you mean layer1"):
        dissect(model, dictionary, "layer5")
    with pytest.raises(ValueError, match=r"no layer matches '7'; there are stem, layer1"):
        dissect(model, dictionary, "7")
    with pytest.raises(KeyError, match="no layer 'stemm' was dissected; did you mean stem"):
        dissect(model, dictionary, "stem")["stemm"]


def test_by_default_the_last_spatial_output_that_is_reached(model, dictionary, capsys) -> None:
    assert list(dissect(model, dictionary).layers) == ["layer1.1"]
    assert "dissecting 'layer1.1'" in capsys.readouterr().out
    plain = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert list(dissect(plain, dictionary).layers) == ["0.1"]
    with pytest.raises(ValueError, match="no layer of this model gives maps"):
        dissect(nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 32, 4)), dictionary)


def test_tokens_are_laid_out_on_a_grid(dictionary, capsys) -> None:
    torch.manual_seed(0)
    model = Transformer()
    with pytest.raises(ValueError, match=r"layer 'blocks.1' gives tokens \[24, 13, 8\]; say how they lie"):
        dissect(model, dictionary, "blocks.1")
    dissect(model, dictionary)
    assert "dissecting 'patch'" in (said := capsys.readouterr().out)
    assert "token sequences such as 'blocks.1" in said
    ours = dissect(model, dictionary, "blocks.1", grid=(3, 4))["blocks.1"]
    tokens: list[Tensor] = []
    model.blocks[1].register_forward_hook(lambda _m, _i, out: tokens.append(out))
    with torch.no_grad():
        model.eval()(dictionary.images(slice(None)))
    maps = tokens[0][:, 1:].transpose(1, 2).reshape(24, 8, 3, 4)
    np.testing.assert_allclose(ours.statistics["high"], maps[dictionary.source >= 0].amax((0, 2, 3)), atol=1e-5)
    peak = maps[dictionary.source >= 0].amax((2, 3)).argmax(0)
    assert ours.statistics["exemplar_image"][:, 0].tolist() == peak.tolist()
    with pytest.raises(ValueError, match=r"13 tokens, fewer than the 25 cells"):
        dissect(model, dictionary, "blocks.1", grid=(5, 5))


def test_attention_maps_are_no_place_in_the_face(dictionary) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.norm, self.softmax = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8), nn.Softmax(-1)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.norm(self.patch(x).flatten(2).transpose(1, 2))
            return self.softmax((tokens @ tokens.transpose(1, 2)).unsqueeze(1))

    assert list(dissect(Attention(), dictionary).layers) == ["patch"]


def test_the_first_tensor_of_a_tuple_counts(dictionary) -> None:
    model = nn.Sequential(Tupled())
    assert len(dissect(model, dictionary, "0")["0"].units) == 3


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("teacher", "layer 'teacher' never fired its hook"),
        ("layer1.0.relu", "layer 'layer1.0.relu' runs 2 times in one forward pass"),
        ("head", r"layer 'head' gives shape \[24, 2\]; a dissection needs maps"),
    ],
)
def test_a_layer_that_cannot_be_dissected_is_named(model, dictionary, layer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dissect(model, dictionary, layer)


def test_a_layer_is_seen_before_the_next_works_in_place(dictionary) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 4, 4)
    ours = dissect(nn.Sequential(conv, nn.ReLU(inplace=True)), dictionary, "0")
    assert ours["0"].statistics["low"].max() < 0
    expected = dissect(nn.Sequential(conv), dictionary, "0")
    assert ours == expected


def test_a_failing_forward_and_nan_are_named(model, dictionary) -> None:
    grey = nn.Sequential(nn.Conv2d(1, 4, 3))
    with pytest.raises(RuntimeError, match=r"Sequential failed on dictionary images \[24, 3, 24, 32\]"):
        dissect(grey, dictionary, "0")
    nn.init.constant_(model.stem.bias, torch.nan)
    with pytest.raises(ValueError, match="layer 'stem': 6 of 6 units have activations that are NaN"):
        dissect(model, dictionary, "stem")


def test_forward_fn_runs_the_model_another_way(model, dictionary) -> None:
    ours = dissect(model, dictionary, "teacher", forward_fn=lambda m, x: m.teacher(x))
    assert len(ours["teacher"].units) == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_part_keeps_its_mode_and_its_averages(dictionary) -> None:
    scripted = torch.jit.script(nn.BatchNorm2d(6))
    model = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), scripted)
    before = copy.deepcopy(model.state_dict())

    def forward(model: nn.Module, images: Tensor) -> None:
        model.train()(images)

    dissect(model, dictionary, layers="0", forward_fn=forward)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert scripted.training


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch < 2.6 refuses compiled modules")
def test_compiled_modules_are_seen_through(model, dictionary) -> None:
    expected = dissect(model, dictionary, "layer1.0")
    compiled = torch.compile(model.eval(), backend="eager")
    compiled(dictionary.images(slice(0, 2)))
    assert resolve_layers(compiled, "layer1.0") == ("layer1.0",)
    assert dissect(compiled, dictionary, "layer1.0") == expected
    model.layer1 = torch.compile(model.layer1, backend="eager")
    assert dissect(model, dictionary, "layer1.0") == expected


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_numbers_are_left_as_they_were(model, dictionary, fails: bool) -> None:
    model.train()
    model.layer1[0].bn.eval()  # a frozen batch norm
    model.register_buffer("calls", torch.zeros(()))
    model.weight_of_each = torch.ones(1).expand(6)  # into which nobody can write
    if fails:
        nn.init.constant_(model.head.bias, torch.nan)
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def run(module: ResNet, images: Tensor) -> None:
        torch.rand(3), random.random(), np.random.rand()  # a model that draws,
        module.calls += 1  # ... counts,
        module.layer1[1].bn.train()  # ... and will not leave training mode
        if not torch.isfinite(module(images)).all():
            raise ArithmeticError("not finite")

    if fails:
        with pytest.raises(RuntimeError, match="not finite"):
            dissect(model, dictionary, "stem", forward_fn=run)
    else:
        dissect(model, dictionary, "stem", forward_fn=run)
    assert {name: module.training for name, module in model.named_modules()} == modes
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------------- the result


def made_up() -> Dissection:
    """Statistics by hand: unit 0 a smile detector for one group, unit 1 noise, unit 2 dead."""
    concepts, groups = len(PAPER.local), PAPER.group_offsets[-1]
    smiling, mouth = PAPER.concept_index("Smiling"), PAPER.concept_index("mouth")
    iou, response = torch.zeros(3, concepts), torch.full((3, concepts), 0.2)
    iou[0, smiling], iou[0, mouth], iou[1, mouth] = 0.2, 0.05, 0.03
    response[0, smiling], response[2] = 0.8, 0.0
    group = torch.zeros(3, groups)
    first = PAPER.group_offsets[PAPER.global_index("gender")]
    group[:2, first : first + 2] = torch.tensor([[0.4, 0.6], [0.5, 0.5]])
    statistics = {
        "threshold": torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64),
        "dead": torch.tensor([False, False, True]),
        "iou_labelled": iou.double(),
        "iou_firing": iou.double() * 2,
        "response": response.double(),
        "group_probability": group.double(),
        "images_per_concept": torch.ones(concepts, dtype=torch.int64),
        "images_per_group": torch.ones(groups, dtype=torch.int64),
    }
    return Dissection.from_statistics({"conv": statistics}, PAPER, README, {"epoch": 3, "at_start": False})


def test_units_regions_concepts_and_groups() -> None:
    layer = made_up()["conv"]
    detector, noise, dead = layer.units
    assert detector.region == "Mouth"
    # P proportional to response * IoU: .8 * .2 to .2 * .05; the bar is 1.5 / 10 concepts of the mouth
    assert [(c.name, round(c.probability, 6), round(c.iou, 6)) for c in detector.concepts] == [
        ("Smiling", round(0.16 / 0.17, 6), 0.2)
    ]
    assert [(g.concept, g.group, round(g.probability, 6)) for g in detector.groups] == [("gender", "Female", 0.6)]
    assert (noise.region, noise.concepts, noise.groups, noise.interpretable) == (None, (), (), False)
    assert dead.dead
    assert layer.strongest == (0,)
    assert "unit    0  Mouth    Smiling 0.94 (0.200); gender=Female 0.60" in str(made_up())


def test_other_rules_need_no_model() -> None:
    loose = made_up().with_rule(Rule(iou_threshold=0.02, firing_only=False))
    assert loose["conv"].units[1].region == "Mouth"
    firing = made_up().with_rule(Rule(firing_only=True))["conv"]
    assert firing.units[0].concepts[0].iou == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"measured at quantile 0.005; rule 'released' has 0.05"):
        made_up().with_rule(RELEASED)


def test_the_bar_counts_what_the_dictionary_shows() -> None:
    """|R| is the number of the region's concepts with images; a region of one passes."""
    statistics = {name: torch.tensor(value) for name, value in made_up()["conv"].statistics.items()}
    shown = torch.zeros(len(PAPER.local), dtype=torch.int64)
    shown[PAPER.concept_index("mouth")] = 1
    only_mouth = {**statistics, "images_per_concept": shown}
    only_mouth["iou_labelled"] = statistics["iou_labelled"] * (shown > 0)
    only_mouth["images_per_group"] = torch.zeros_like(statistics["images_per_group"])
    layer = Dissection.from_statistics({"conv": only_mouth}, PAPER, README)["conv"]
    assert [c.name for c in layer.units[0].concepts] == ["mouth"]
    assert layer.units[0].groups == ()


def test_a_round_trip_on_disk_is_equal(tmp_path: Path, model, dictionary) -> None:
    dissection = dissect(model, dictionary, ["stem", "layer1.1"], quantile=0.05)
    dissection.save(tmp_path / "run7.hnd")
    assert [path.name for path in tmp_path.iterdir()] == ["run7.hnd"]  # nothing left beside it
    again = Dissection.load(tmp_path / "run7.hnd")
    assert again == dissection
    assert str(again) == str(dissection)
    assert again["stem"].units == dissection["stem"].units
    assert made_up() != dissection
    assert again != dissect(model, dictionary, ["stem", "layer1.1"], quantile=0.06)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    made_up().save(tmp_path / "a.hnd")
    (tmp_path / "b.hnd").write_bytes((tmp_path / "a.hnd").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"b.hnd is not a dissection file, or is damaged"):
        Dissection.load(tmp_path / "b.hnd")
    (tmp_path / "b.hnd").write_text("junk\n")
    with pytest.raises(ValueError, match=r"b.hnd is not a dissection file, or is damaged: File is not a zip file"):
        Dissection.load(tmp_path / "b.hnd")
    with pytest.raises(FileNotFoundError):
        Dissection.load(tmp_path / "c.hnd")


def test_a_dissection_can_be_pickled_and_copied() -> None:
    assert pickle.loads(pickle.dumps(made_up())) == made_up()
    assert copy.deepcopy(made_up())["conv"] == made_up()["conv"]


def test_a_dissection_cannot_be_changed() -> None:
    layer = made_up()["conv"]
    with pytest.raises(ValueError, match="read-only"):
        layer.statistics["threshold"][0] = 0
    with pytest.raises(ValueError, match="read-only"):
        layer.probability[0, 0] = 1
    with pytest.raises(AttributeError):
        layer.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        layer.statistics["threshold"] = np.zeros(3)  # type: ignore[index]


def test_a_planted_unit_is_found() -> None:
    """A layer that sees exactly where one concept's masks are pairs with that concept, and nothing else does."""
    dictionary = random_dictionary(images=60)
    concept = PAPER.concept_index("Eyeglasses")
    planted = torch.zeros(60, 1, 24, 32)
    batch = next(dictionary.batches(60))
    mine = batch.mask_concept == concept
    planted[batch.mask_image[mine], 0] = batch.masks.dense()[mine].float()
    noise = torch.rand(60, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    maps = iter(torch.cat([planted, noise], 1).split(20))

    class Given(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return next(maps)

    share = planted[dictionary.source >= 0].mean().item()
    layer = dissect(nn.Sequential(Given()), dictionary, "0", quantile=share * 1.001, level=None, batch_size=20)["0"]
    assert layer.units[0].concepts[0].name == "Eyeglasses"
    assert layer.units[0].concepts[0].iou == 1.0
    assert layer.iou[1].max() < 0.2


@pytest.mark.parametrize(("batch_size", "at_once"), [(None, [16] * 4 + [13] * 2), (64, [64, 26]), (10, [10] * 9)])
def test_on_a_cpu_a_model_sees_no_more_images_at_a_time_than_fit_into_caches(
    batch_size: int | None, at_once: list[int]
) -> None:
    faces, seen = random_dictionary(images=90, size=(96, 128)), []  # 21 have 2^18 pixels

    def forward(model: nn.Module, images: Tensor) -> None:
        seen.append(len(images))
        model(images)

    model = nn.Sequential(nn.AvgPool2d(16))
    ours = dissect(model, faces, "0", batch_size=batch_size, forward_fn=forward)["0"]
    assert seen == at_once
    for name, value in dissect(model, faces, "0", batch_size=90)["0"].statistics.items():
        np.testing.assert_allclose(ours.statistics[name], value, atol=1e-6, err_msg=name)
