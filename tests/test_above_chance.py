"""The rule above_chance, from a model to keys: what pairings survive, and that the other rules read as before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_dictionary
from runs import Net, data, trainer
from test_evidence import squares
from torch import nn

from lightning_hnd import ABOVE_CHANCE, PAPER, README, Dissection, DissectionMetric, HNDCallback, Rule, dissect
from lightning_hnd.report import scalars


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


def test_the_other_rules_read_as_from_the_metric_alone(dissection: Dissection) -> None:
    faces = random_dictionary(images=60)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU()).eval()
    found = dissect(model, faces, layers="1", level=0.05).with_rule(README)
    metric = DissectionMetric(faces.ontology, num_local=faces.num_local)
    for batch in faces.batches():
        metric.update(model(batch.images), batch)
    plain = Dissection.from_statistics({"1": metric.compute()}, faces.ontology, README, found.info)
    assert scalars(found) == scalars(plain)
    assert dissect(model, faces, layers="1") == plain
    with pytest.raises(ValueError, match="without evidence of chance: dissect it with level=0.05"):
        plain.with_rule(ABOVE_CHANCE)
    with pytest.raises(ValueError, match="give level=0.05 as well"):
        dissect(model, faces, layers="1", fresh_seeds=(1,))
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


def test_names_of_rules_with_other_settings() -> None:
    assert Rule(quantile=0.05, iou_threshold=0.0, level=0.1).name == "above_chance-q0.05-fdr0.1"
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        Rule(level=1.0)


def test_a_callback_logs_its_keys_beside_those_of_another(tmp_path: Path) -> None:
    faces = random_dictionary()
    callbacks = [HNDCallback(faces, "body.2"), HNDCallback(faces, "body.2", level=0.05)]
    run = trainer(tmp_path, *callbacks, max_epochs=1)
    run.fit(Net(), *data())
    logged = {key for key in run.callback_metrics if key.startswith("hnd/body.2/")}
    assert {key.split("/")[2] for key in logged} == {"readme", "above_chance"}
    assert logged == {key for callback in callbacks for key in callback._keys()}
    assert callbacks[1].latest is not None
    assert callbacks[0].latest is not None
    assert scalars(callbacks[1].latest.with_rule(README)) == scalars(callbacks[0].latest)
