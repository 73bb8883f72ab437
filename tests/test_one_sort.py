"""Dictionaries of one sort of concepts only, local or global: the numbers are those beside the other sort."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_dictionary
from runs import SIZE, Net, data, trainer
from torch import nn

from lightning_hnd import PAPER, FaceDictionary, HNDCallback, Ontology, Rule, dissect
from lightning_hnd.report import concept_histogram, overlays

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

LOCAL, GLOBAL = Ontology(PAPER.local), Ontology((), PAPER.global_)


def of_one_sort(ontology: Ontology) -> tuple[FaceDictionary, FaceDictionary]:
    """Faces with labels of that sort, under the ontology and under one that has the other sort, too."""
    faces = random_dictionary(90)
    of_both = faces.subset(((faces.source >= 0) == bool(ontology.local)).nonzero().flatten())
    return replace(of_both, ontology=ontology, group=of_both.group[:, : len(ontology.global_)]), of_both


@pytest.mark.parametrize("ontology", [LOCAL, GLOBAL], ids=["local", "global"])
@pytest.mark.parametrize("rule", [Rule(quantile=0.2), Rule(quantile=0.2, level=0.05)], ids=["bar", "level"])
def test_the_other_sort_changes_nothing(ontology: Ontology, rule: Rule) -> None:
    faces, of_both = of_one_sort(ontology)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU())
    layer, beside = (dissect(model, d, "1", quantile=0.2).with_rule(rule)["1"] for d in (faces, of_both))
    assert (layer.interpretable if ontology is LOCAL else layer.paired_groups).any() or rule.level is not None
    np.testing.assert_array_equal(layer.region, beside.region)
    for found, of_sort in (
        (layer.paired_concepts, beside.paired_concepts[:, : len(ontology.local)]),
        (layer.paired_groups, beside.paired_groups[:, : ontology.group_offsets[-1]]),
        (layer.group_probability, beside.group_probability[:, : ontology.group_offsets[-1]]),
        (layer.iou, beside.iou[:, : len(ontology.local)]),
        (layer.statistics["encoding_index"], beside.statistics["encoding_index"][: len(ontology.global_)]),
    ):
        np.testing.assert_array_equal(found, of_sort)
    assert concept_histogram(layer).ndim == overlays(layer, faces).ndim == 3


@pytest.mark.parametrize("ontology", [LOCAL, GLOBAL], ids=["local", "global"])
def test_they_are_trained_with_from_a_folder(tmp_path: Path, ontology: Ontology) -> None:
    of_one_sort(ontology)[0].to_folder(tmp_path / "faces")
    faces = FaceDictionary.from_folder(tmp_path / "faces", SIZE, ontology=ontology)
    run = trainer(tmp_path, HNDCallback(faces, fresh_seeds=(1,)))
    run.fit(Net(), *data())
    assert ("hnd/body.2/readme/group/gender/Male" in run.callback_metrics) is (ontology is GLOBAL)
    assert ("hnd/body.2/readme/region/Nose" in run.callback_metrics) is (ontology is LOCAL)
    assert (tmp_path / "hnd" / "timeline-body.2.png").exists()
