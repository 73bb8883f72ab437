"""Measures of bias in a dissection: the same as those of peaks gathered by hand, whatever the way through the units."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pair import Pair
from torch import Tensor, nn

from lightning_hnd import DissectionMetric, FaceDictionary, dissect
from lightning_hnd.concepts import PAPER, Ontology
from lightning_hnd.dictionary import DictionaryBatch
from lightning_hnd.dictionary.annotations import Annotations
from lightning_hnd.functional.encoding import _flips, encoding
from lightning_hnd.functional.labels import Labelled, contrasts, labelled
from lightning_hnd.functional.ranks import rank_share
from lightning_hnd.functional.shortcut import shortcut
from lightning_hnd.measuring import unit_table
from lightning_hnd.measuring.bias import ImageSet, bias_statistics, image_sets
from lightning_hnd.measuring.unit_table import UnitTable

FACES = FaceDictionary.rendered(size=32, images=320, seed=3)
NAMES = PAPER.labels
NOTHING_SHOWN = contrasts(torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 10, 5, 2), nn.ReLU(), nn.Conv2d(10, 12, 3, 2), nn.ReLU())


def test_a_dissection_holds_the_measures_of_its_peaks() -> None:
    model = network()
    found = dissect(model, FACES, layers="3")["3"].statistics
    with torch.no_grad():
        peak = model(FACES.images(slice(0, len(FACES)))).amax((2, 3))
    attribute = FACES.source == PAPER.kinds.index("attribute")
    own = [c for c, kind in enumerate(PAPER.concept_kind) if kind == PAPER.kinds.index("attribute")]
    cues = labelled(peak[attribute], FACES.carried[attribute][:, own], torch.arange(len(own)))
    shown = FACES.group[:, PAPER.global_index("gender")] >= 0
    known = [k for k, concept in enumerate(PAPER.global_) if concept.name != "ethnicity"]
    member = [FACES.group[shown, k, None] == torch.arange(len(PAPER.global_[k].groups)) for k in known]
    concept = torch.cat([torch.full((m.shape[1],), k) for k, m in enumerate(member)])
    groups = labelled(peak[shown], torch.cat(member, dim=1), concept)
    of_gender = (concept == known.index(PAPER.global_index("gender"))).nonzero().flatten()
    task = groups._replace(contrast=groups.contrast[:, of_gender])
    measured = shortcut(task, cues)
    rows = [NAMES.index("gender/Male"), NAMES.index("gender/Female")]
    for name, value in vars(measured).items():
        np.testing.assert_allclose(found[f"shortcut_{name}"][np.ix_(rows, own)], value, atol=1e-9)
    strength = encoding(task, torch.tensor(~found["dead"]))
    for name in ("index", "low", "high", "p"):
        np.testing.assert_allclose(
            found[f"encoding_{name}"][PAPER.global_index("gender")], getattr(strength, name), atol=1e-9
        )


def partly_known() -> Annotations:
    """The labels of the faces, of which some have no age and others no gender."""
    group = FACES.group.clone()
    group[160:200, PAPER.global_index("age")] = -1
    group[270:, PAPER.global_index("gender")] = -1
    return dataclasses.replace(FACES.annotations, group=group)


@pytest.mark.parametrize("annotations", [FACES.annotations, partly_known()], ids=["all known", "partly"])
def test_each_set_of_images_is_measured_by_its_own_ranks(annotations: Annotations) -> None:
    peak = torch.rand(len(FACES), 9, generator=torch.Generator().manual_seed(0))
    table, sets = UnitTable(), image_sets(annotations)
    table.append(peak.t())
    found = bias_statistics(PAPER, sets, table, 9)
    shown = [Labelled(rank_share(peak[own.images]), *own.shown) for own in sets]
    concept = torch.tensor([NAMES.index(name) if "/" not in name else -len(name.split("/")[0]) for name in NAMES])
    for task, of_task in zip(sets, shown, strict=True):
        for cue, of_cue in zip(sets, shown, strict=True):
            apart = concept[task.label, None] != concept[cue.label]
            expected = shortcut(of_task, of_cue, task.both(cue)) if len(task.images) and len(cue.images) else None
            for name, value in (vars(expected) if expected else {}).items():
                measured = found[f"shortcut_{name}"][task.label[:, None], cue.label]
                torch.testing.assert_close(measured[apart], value[apart], equal_nan=True, msg=name)
                assert measured[~apart].isnan().all()
    lean = torch.cat([encoding(own, torch.ones(9, dtype=torch.bool)).lean for own in shown[len(PAPER.kinds) :]])
    torch.testing.assert_close(found["encoding_lean"], lean, equal_nan=True)


@pytest.mark.parametrize("annotations", [FACES.annotations, partly_known()], ids=["all known", "partly"])
def test_noise_does_not_take_groups_for_each_other(annotations: Annotations) -> None:
    """They are compared on the same faces, on which ages and genders do not balance to the last."""
    sets, z = image_sets(annotations), []
    for seed in range(20):
        table = UnitTable()
        table.append(torch.rand(400, len(FACES), generator=torch.Generator().manual_seed(seed)))
        z.append(bias_statistics(PAPER, sets, table, 400)["shortcut_z"])
    groups = torch.stack(z)[:, len(PAPER.local) :, len(PAPER.local) :]
    tell = groups[:, ~groups.isnan().any(0)]
    assert tell.shape[1] == 2 * (4 * 2 + 4 * 2 + 2 * 2)  # pairs of age, gender and skin tone
    assert tell.mean(0).abs().max() < 3.5 / 20**0.5
    assert (tell.abs() > 1.96).double().mean() < 0.05


def test_pictures_that_a_dictionary_has_twice_are_found() -> None:
    pictures = torch.cat([FACES.pictures[:3], FACES.pictures[1:2]])
    twice = dataclasses.replace(FACES.subset(range(4)), pictures=pictures)
    assert twice.annotations.picture.tolist() == [0, 1, 2, 1]
    own, other = (
        ImageSet(images, images, NOTHING_SHOWN, twice.annotations.picture[images])
        for images in (torch.tensor([3, 1]), torch.tensor([2, 1, 0]))
    )
    both = own.both(other)
    assert (both.first.tolist(), both.second.tolist()) == ([0], [1])  # of two copies each goes with one
    assert own.both(own).first.tolist() == own.both(own).second.tolist() == [0, 1]
    none = ImageSet(torch.zeros(0, dtype=torch.int64), own.label[:0], NOTHING_SHOWN, own.picture[:0])
    assert [len(some) for some in (*own.both(none), *none.both(own))] == [0, 0, 0, 0]


def test_of_many_copies_of_a_picture_no_more_pairs_are_made_than_there_are_images() -> None:
    same = ImageSet(torch.arange(20_000), torch.arange(1), NOTHING_SHOWN, torch.zeros(20_000, dtype=torch.int64))
    both = same.both(same)
    assert torch.equal(both.first, both.second)
    assert len(both.first) == 20_000


def measured(batches: list[DictionaryBatch], maps: Tensor) -> dict[str, Tensor]:
    metric = DissectionMetric()
    for batch in batches:
        metric.update(maps[batch.index], batch)
    return metric.compute()


def test_batches_may_come_in_any_order() -> None:
    maps = torch.randn(len(FACES), 5, 4, 4, generator=torch.Generator().manual_seed(0))
    batches = list(FACES.batches(50))
    whole = measured(batches, maps)
    assert whole["shortcut_z"].isfinite().any()
    assert whole["encoding_index"].isfinite().any()
    for name, value in measured(batches[::-1], maps).items():
        torch.testing.assert_close(value, whole[name], equal_nan=True, msg=name)


def test_some_batches_are_a_dictionary_of_their_own() -> None:
    maps = torch.randn(len(FACES), 5, 4, 4, generator=torch.Generator().manual_seed(0))
    some = torch.arange(50, 300)
    part = FACES.subset(some)
    expected = measured(list(part.batches(50)), maps[some])
    expected["exemplar_image"] += 50
    assert expected["shortcut_z"].isfinite().any()
    for name, value in measured(list(FACES.batches(50))[1:6], maps).items():
        torch.testing.assert_close(value, expected[name], equal_nan=True, msg=name)


def test_what_labels_can_tell_is_found_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Annotations] = []

    def asking(known: Annotations) -> list[ImageSet]:
        asked.append(known)
        return image_sets(known)

    monkeypatch.setattr("lightning_hnd.measuring.metric.image_sets", asking)
    for _ in range(2):
        dissect(network(), FACES, layers=["1", "3"], level=None)
    assert asked == [FACES.annotations]


def subsets() -> str:
    """What a process says that shows other images than the other one."""
    rank = torch.distributed.get_rank()
    faces = FACES.subset(range(rank, len(FACES), 2))
    metric = DissectionMetric()
    for batch in faces.batches(50):
        metric.update(torch.zeros(len(batch.index), 2, 4, 4), batch)
    try:
        metric.compute()
    except ValueError as error:
        return str(error)
    return ""


def test_processes_with_different_dictionaries_are_refused(pair: Pair) -> None:
    said = "the processes have shown different dictionaries; all must be given the same one"
    assert pair.results(subsets) == [said, said]


def test_flips_are_all_different_and_as_often_up_as_down() -> None:
    flips = _flips(40, 50, 0)
    assert flips.unique().tolist() == [-1, 1]
    assert len(flips.unique(dim=0)) == 50
    assert abs(int(flips.int().sum())) < 4 * (40 * 50) ** 0.5
    assert (_flips(40, 50, 0) == flips).all()
    assert (_flips(40, 50, 1) != flips).any()


def test_what_the_dictionary_cannot_tell_is_nan_and_nothing_else() -> None:
    found = dissect(network(), FACES, layers="3")["3"].statistics
    nan = np.isnan(found["shortcut_z"])
    parts = [NAMES.index(c.name) for c in PAPER.local if c.kind == "part"]
    assert nan[parts].all()  # every face has them
    assert nan.diagonal().all()
    assert nan[NAMES.index("gender/Male"), NAMES.index("gender/Female")]
    assert not nan[NAMES.index("gender/Male"), NAMES.index("Eyeglasses")]
    assert not nan[NAMES.index("Smiling"), NAMES.index("skin_tone/dark")]
    assert not nan[NAMES.index("gender/Male"), NAMES.index("age/sixty_plus")]
    assert nan[:, [i for i, name in enumerate(NAMES) if name.startswith("ethnicity")]].all()
    np.testing.assert_allclose(found["shortcut_z"], found["shortcut_z"].T, atol=1e-9)
    assert np.nanmax(np.abs(found["shortcut_index"])) <= 1


def test_what_labels_csv_knows_is_held_fixed(tmp_path: Path) -> None:
    """In a folder each face has one group, and the others in ``labels.csv``; in memory it has all of them."""
    FACES.to_folder(tmp_path / "faces")
    of_folder = FaceDictionary.from_folder(tmp_path / "faces", FACES.size)
    model = network()
    in_memory, read = (dissect(model, faces, layers="3", level=None)["3"].statistics for faces in (FACES, of_folder))
    for name in ("index", "error", "z"):
        np.testing.assert_allclose(read[f"shortcut_{name}"], in_memory[f"shortcut_{name}"], atol=1e-9, err_msg=name)
    np.testing.assert_allclose(read["encoding_lean"], in_memory["encoding_lean"], atol=1e-9)
    unlabelled = dataclasses.replace(of_folder, labels=({},) * len(of_folder))
    other = dissect(model, unlabelled, layers="3", level=None)["3"].statistics
    assert np.nanmax(np.abs(other["encoding_lean"] - in_memory["encoding_lean"])) > 0.005
    assert unlabelled.fingerprint != of_folder.fingerprint


def test_nothing_depends_on_what_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    table = UnitTable()
    table.append(torch.rand(9, len(FACES), generator=torch.Generator().manual_seed(0)))
    sets = image_sets(partly_known())
    whole = bias_statistics(PAPER, sets, table, 9)
    table.spill()
    monkeypatch.setattr(unit_table, "_AT_ONCE", 4 * len(FACES))  # units in three blocks
    parts = bias_statistics(PAPER, sets, table, 9)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, equal_nan=True, msg=name)


def test_units_and_resamples_a_few_at_a_time_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = FACES.group[:, PAPER.global_index("age")] >= 0
    member = FACES.group[shown, PAPER.global_index("age"), None] == torch.arange(4)
    response = torch.randn(len(member), 9, generator=torch.Generator().manual_seed(0)) + member[:, :1]
    ages = labelled(response, member, torch.zeros(4, dtype=torch.int64))
    whole = encoding(ages, torch.ones(9, dtype=torch.bool))
    monkeypatch.setattr(
        "lightning_hnd.functional.encoding._AT_ONCE", 9 * ages.contrast.numel()
    )  # units by two, resamples by 36
    parts = encoding(ages, torch.ones(9, dtype=torch.bool))
    torch.testing.assert_close(vars(parts), vars(whole))
    assert float(whole.p) == 1 / 201  # the least of 200 draws


def test_an_ontology_of_one_kind_only() -> None:
    for ontology in (Ontology(PAPER.local, ()), Ontology((), PAPER.global_)):
        known = Annotations(
            ontology,
            source=torch.full((40,), -1 if not ontology.local else 0),
            group=torch.zeros(40, len(ontology.global_), dtype=torch.int64),
            known=torch.zeros(40, len(ontology.global_), dtype=torch.int64),
            carried=torch.rand(40, len(ontology.local), generator=torch.Generator().manual_seed(0)) < 0.5,
            picture=torch.arange(40),
        )
        table = UnitTable()
        table.append(torch.rand(3, 40))
        found = bias_statistics(ontology, image_sets(known), table, 3)
        assert found["encoding_index"].shape == (len(ontology.global_),)
        assert found["shortcut_index"].shape == (len(ontology.labels),) * 2
