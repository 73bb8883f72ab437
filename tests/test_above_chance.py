"""The rule above_chance, from a model to keys: what pairings survive, and that the other rules read as before."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_dictionary
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import SIZE, TENSORS_ONLY, Memory, Net, data, trainer
from test_evidence import squares
from torch import nn

from lightning_hnd import (
    ABOVE_CHANCE,
    PAPER,
    README,
    Dissection,
    DissectionMetric,
    FaceDictionary,
    HNDCallback,
    Rule,
    Timeline,
    dissect,
)
from lightning_hnd.evidence.fresh import fresh_null
from lightning_hnd.evidence.fresh_networks import renewed
from lightning_hnd.layer_dissection import LayerDissection
from lightning_hnd.report import scalars, scalars_over_time
from lightning_hnd.report.tables import layer_markdown
from lightning_hnd.unit import ConceptPairing


class Drawn(nn.Module):
    """Its first unit sees the picture's square where the face smiles, its second one the square always."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(
            torch.stack([(images[:, 0] > 0.6).float(), (images[:, 0] > 0.2).float()], dim=1) + 1e-3 * images
        )


def seen(fresh_seeds: Sequence[int] = ()) -> Dissection:
    faces, _, smiling = squares(images=200, cells=16)
    _, inside, _ = squares(images=200, cells=16)
    noise = torch.rand(200, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.5
    pictures = noise + inside * (0.2 + 0.2 * smiling[:, None, None])
    faces = replace(faces, pictures=(pictures[:, None] * 255).to(torch.uint8))
    model = Drawn()
    with torch.no_grad():
        model.layer.weight.copy_(torch.eye(2)[:, :, None, None].expand(2, 2, 2, 2) / 4)
        model.layer.bias.zero_()
    return dissect(model, faces, layers="layer", level=0.05, fresh_seeds=fresh_seeds)


@pytest.fixture(scope="module")
def dissection() -> Dissection:
    return seen()


def test_a_pairing_carries_what_it_survived(dissection: Dissection) -> None:
    layer = dissection.with_rule(ABOVE_CHANCE)["layer"]
    detector, place = layer.units
    assert [(c.name, c.associated, c.placed, c.learnt) for c in detector.concepts] == [("Smiling", True, True, None)]
    assert detector.region == "Mouth"
    assert layer.defence.associated[:, PAPER.concept_index("Smiling")].tolist() == [1, 0]
    assert layer.defence.placed[:, PAPER.concept_index("Smiling")].tolist() == [1, 1]
    assert place.concepts == ()
    assert place.region is None


def test_tables_show_the_number_that_concepts_are_ranked_by(dissection: Dissection) -> None:
    (concept,) = dissection["layer"].units[0].concepts
    measured = dissection["layer"].statistics["agreement"][0, PAPER.concept_index("Smiling")]
    assert concept.strength == concept.agreement == measured
    table = layer_markdown(dissection["layer"])
    assert "concepts: agreement (IoU)" in table
    assert f"Smiling {concept.agreement:.2f} ({concept.iou:.3f})" in table
    assert "concepts: probability (IoU)" in layer_markdown(dissection.with_rule(README)["layer"])
    assert ConceptPairing("Smiling", "attribute", probability=0.3, iou=0.1).strength == 0.3


def test_the_strongest_units_are_those_whose_maps_agree_most_with_what_they_are_paired_with() -> None:
    model = nn.Sequential(nn.Conv2d(3, 40, 4, 4), nn.ReLU())
    with torch.no_grad():  # units that see how dark a place is, more or less surely
        model[0].weight.copy_(torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0)) / 8 - 0.02)
    layer = dissect(model, FaceDictionary.rendered(size=64, images=300), layers="1", level=0.05)["1"]
    best = [max((c.agreement or 0.0 for c in unit.concepts), default=None) for unit in layer.units]
    assert [best[u] for u in layer.strongest] == sorted((b for b in best if b is not None), reverse=True)
    assert len(layer.strongest) > 3
    by_area = sorted(layer.strongest, key=lambda u: -layer.iou[u].max())
    assert list(layer.strongest) != by_area


def test_what_random_filters_of_the_architecture_do_as_well_is_not_learnt() -> None:
    dissection = seen(fresh_seeds=range(30))
    layer = dissection["layer"]
    assert scalars(dissection)["hnd/layer/above_chance/learnt_units"] == 0
    assert layer.defence.associated[0, PAPER.concept_index("Smiling")] == 1
    assert layer.defence.learnt.max() == 0
    assert layer.units[0].concepts == ()


def test_without_fresh_networks_learnt_is_unknown() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU())
    found = dissect(model, random_dictionary(images=60), layers="1", level=0.05)
    assert found["1"].defence.learnt.eq(-1).all()
    assert all(c.learnt is None for unit in found["1"].units for c in unit.concepts)


def test_groups_carry_what_they_survived() -> None:
    model = nn.Sequential(nn.Conv2d(3, 30, 8, 8))
    with torch.no_grad():
        model[0].weight += 0.05  # units that see how bright a face is
    faces = FaceDictionary.rendered(size=64, images=400)
    found = dissect(model, faces, layers="0", level=0.05, fresh_seeds=(1, 2))["0"]
    silent = {**found.statistics, "fresh_best_group": np.full(60, -np.inf)}  # fresh units that answer to no group
    alone = {name: value for name, value in silent.items() if not name.startswith("fresh_")}
    for statistics, learnt in ((silent, True), (alone, None)):
        layer = LayerDissection.of("0", PAPER, ABOVE_CHANCE, statistics)
        pairings = [group for unit in layer.units for group in unit.groups]
        assert {g.group for g in pairings if g.concept == "skin_tone"} >= {"bright"}
        assert {(g.associated, g.learnt) for g in pairings} == {(True, learnt)}
        assert all(g.effect is not None and g.effect > 0 for g in pairings)
    by_area = LayerDissection.of("0", PAPER, README, silent)
    assert any(unit.groups for unit in by_area.units)
    assert all(g.associated is None and g.learnt is None for unit in by_area.units for g in unit.groups)


def test_what_was_compared_with_fresh_weights_and_what_was_not_make_no_silent_history() -> None:
    asked, alone = seen(fresh_seeds=(1, 2)), seen()
    assert "nobody asked" not in asked["layer"].headline
    assert alone["layer"].headline.endswith("; nobody asked what is learnt")
    with pytest.warns(UserWarning, match="layer 'layer' was compared with fresh weights in some dissections"):
        both = Timeline.of([asked, alone])
    assert "(rule above_chance, nobody asked what is learnt), 2 moments" in str(both)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "nobody" not in str(Timeline.of([asked, asked]))
        Timeline.of([asked.with_rule(README), alone.with_rule(README)])
        same = [replace(one, info={**one.info, "epoch": 3}) for one in (alone, asked)]
        assert Timeline.of(same) == Timeline.of(same[1:])  # the one that is replaced does not count
    with pytest.warns(UserWarning, match="fresh weights in some"):
        mixed = Timeline.of([asked, *same[:1]])
    assert "nobody asked" in str(mixed)
    assert "nobody asked" not in str(mixed.then(same[1]))


def test_the_other_rules_read_as_from_the_metric_alone(dissection: Dissection) -> None:
    faces = random_dictionary(images=60)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU()).eval()
    found = dissect(model, faces, layers="1", level=0.05).with_rule(README)
    metric = DissectionMetric(faces.ontology, num_local=faces.num_local)
    for batch in faces.batches():
        metric.update(model(batch.images), batch)
    plain = Dissection.from_statistics({"1": metric.compute()}, faces.ontology, README, found.info)
    assert scalars(found) == scalars(plain)
    assert dissect(model, faces, layers="1", level=None) == plain
    assert dissect(model, faces, layers="1").rule == ABOVE_CHANCE
    with pytest.raises(ValueError, match="without evidence of chance: dissect it with level=0.05"):
        plain.with_rule(ABOVE_CHANCE)
    with pytest.raises(ValueError, match="give level=0.05 as well"):
        dissect(model, faces, layers="1", level=None, fresh_seeds=(1,))
    there_and_back = found.with_rule(ABOVE_CHANCE).with_rule(README)
    assert there_and_back == found


def test_scalars_say_the_rule_and_answer_each_question(dissection: Dissection) -> None:
    values = scalars(dissection.with_rule(ABOVE_CHANCE))
    assert values["hnd/layer/above_chance/associated_units"] == 1
    assert values["hnd/layer/above_chance/placed_units"] == 2
    assert {key.rsplit("/", 1)[0] for key in scalars(dissection) if "units" in key} == {"hnd/layer/above_chance"}
    assert "hnd/layer/above_chance/learnt_units" not in values


def test_file_keeps_the_evidence(tmp_path: Path) -> None:
    dissection = seen(fresh_seeds=(1, 2))
    dissection.with_rule(ABOVE_CHANCE).save(tmp_path / "a.hnd")
    again = Dissection.load(tmp_path / "a.hnd")
    assert again == dissection.with_rule(ABOVE_CHANCE)
    assert again.rule.name == "above_chance"
    assert np.isfinite(again["layer"].statistics["fresh_best_concept"]).any()


def test_fresh_weights_of_another_version_are_not_read_as_if_of_this_one() -> None:
    layer = seen(fresh_seeds=(1, 2))["layer"]
    statistics = {name: value for name, value in layer.statistics.items() if name != "fresh_placed_spread"}
    older = LayerDissection.of("layer", layer.ontology, ABOVE_CHANCE, statistics)
    with pytest.raises(ValueError, match=r"by another version of lightning-hnd: .* \.with_rule\(README\)"):
        _ = older.interpretable


def test_names_of_rules_with_other_settings() -> None:
    assert Rule(quantile=0.05, iou_threshold=0.0, level=0.1).name == "above_chance-q0.05-fdr0.1"
    assert Rule(firing_only=True, level=0.05).name == "above_chance-firing"  # of another mean_iou than above_chance
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        Rule(level=1.0)


def test_a_callback_reads_one_measurement_under_two_rules(tmp_path: Path) -> None:
    faces, memory = random_dictionary(), Memory()
    alone, both = HNDCallback(faces, "body.2", level=None), HNDCallback(faces, "body.2")
    for callback in (alone, both):
        torch.manual_seed(0)
        run = trainer(tmp_path, callback, max_epochs=1, logger=memory)
        run.fit(Net(), *data())
    logged = {key: value.item() for key, value in run.callback_metrics.items() if key.startswith("hnd/body.2/")}
    assert both.latest is not None
    assert alone.latest is not None
    assert both.latest.rule == ABOVE_CHANCE
    assert alone.latest.rule == README
    assert both.timeline is not None
    expected = scalars(both.latest) | scalars(alone.latest) | scalars_over_time(both.timeline)
    assert logged == pytest.approx(expected, nan_ok=True)  # none of the earlier curves changes
    assert set(logged) == set(both._keys())
    assert {key.rpartition("/")[2] for key in logged} >= {"associated_units", "placed_units", "learnt_units"}
    assert both.baseline is not None
    read = sorted(tmp_path.rglob("hnd-2/*.hnd"))
    assert [Dissection.load(path) for path in read] == [both.latest, both.baseline]


class Unreachable(Net):
    """Has a weight that nothing resets."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.scale * x)


def test_a_module_that_cannot_be_reset_is_named_before_the_first_step(tmp_path: Path) -> None:
    faces = random_dictionary()
    run = trainer(tmp_path, callback := HNDCallback(faces, "body.2"), max_epochs=1)
    with pytest.warns(UserWarning, match="does not ask what is learnt in training: reset_parameters does not reach 1"):
        run.fit(Unreachable(), *data())
    assert not [key for key in run.callback_metrics if "learnt" in key]
    assert "hnd/body.2/above_chance/placed_units" in run.callback_metrics
    assert not [key for key in callback._keys() if "learnt" in key]
    model = Unreachable()
    before = model.head[1].weight.clone()
    with pytest.raises(ValueError, match="weights of Unreachable: scale; give a factory"):
        trainer(tmp_path, HNDCallback(faces, "body.2", fresh_seeds=[1])).fit(model, *data())
    assert torch.equal(model.head[1].weight, before)
    run = trainer(tmp_path, HNDCallback(faces, "body.2", factory=Unreachable), max_epochs=1)
    run.fit(Unreachable(), *data())
    assert "hnd/body.2/above_chance/learnt_units" in run.callback_metrics
    run = trainer(tmp_path, HNDCallback(faces, "body.2", fresh_seeds=()), max_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="HNDCallback does not ask")
        run.fit(Unreachable(), *data())


def test_fresh_networks_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(*args: Any, **options: Any) -> Any:
        asked.append(args)
        return fresh_null(*args, **options)

    monkeypatch.setattr("lightning_hnd.training.dissector.fresh_null", spy)
    faces, checkpoint = random_dictionary(), ModelCheckpoint(tmp_path, save_last=True)
    callback = HNDCallback(faces, "body.2", fresh_seeds=[1, 2])
    trainer(tmp_path, callback, checkpoint, max_epochs=1).fit(Net(), *data())
    trainer(tmp_path, callback, max_epochs=1).fit(Net(), *data())  # other weights, the same architecture
    assert len(asked) == 2  # of a model whose batch norms know no image yet, and of one whose do
    resumed = HNDCallback(faces, "body.2", fresh_seeds=[1, 2])
    run = trainer(tmp_path, resumed, max_epochs=2)
    run.fit(Net(), *data(), ckpt_path=tmp_path / "last.ckpt", **TENSORS_ONLY)
    assert len(asked) == 2
    assert resumed.latest is not None
    assert callback.latest is not None
    for name in ("mean", "spread", "best_concept", "best_group"):
        mine, first = (c.latest["body.2"].statistics[f"fresh_{name}"] for c in (resumed, callback))
        assert np.array_equal(mine, first, equal_nan=True)
    trainer(tmp_path, HNDCallback(faces, "body.2", fresh_seeds=[1, 3]), max_epochs=1).fit(Net(), *data())
    assert len(asked) == 4


def test_a_fresh_network_takes_over_the_modules_and_nothing_else(tmp_path: Path) -> None:
    class Holding(Net):
        def __init__(self) -> None:
            super().__init__()
            self.data_set = threading.Lock()  # as little to be copied as a data set should be
            self.blocks = [self.body]  # a second way to the same weights

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = self.blocks[0](x)
            return self.head(self.last.mean((2, 3)))[:, 0]

    model = Holding()
    model(torch.zeros(1, 3, *SIZE))  # leaves a tensor with a history
    model.trainer = trainer(tmp_path)
    fresh = renewed(model)
    assert fresh.trainer is model.trainer
    assert fresh.blocks[0] is fresh.body
    assert fresh.data_set is model.data_set
    assert not torch.equal(fresh.body[0].weight, model.body[0].weight)


def test_a_dictionary_of_too_few_faces_is_said_to_be() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4))
    few = FaceDictionary.rendered(size=32, images=8)
    assert "; the dictionary lets nothing be asked: too few faces" in str(dissect(model, few, "0"))
    assert "too few" not in str(dissect(model, few, "0").with_rule(README))
    assert "too few" not in str(dissect(model, FaceDictionary.rendered(size=32, images=120), "0"))


def test_a_rule_is_none_by_its_name() -> None:
    model, few = nn.Sequential(nn.Conv2d(3, 4, 4, 4)), FaceDictionary.rendered(size=32, images=8)
    with pytest.raises(TypeError, match="rule is a Rule, such as README .*, got 'readme'"):
        dissect(model, few, "0").with_rule("readme")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dictionary is a FaceDictionary, such as .*from_folder.*, got 'faces'"):
        dissect(model, "faces", "0")  # type: ignore[arg-type]
