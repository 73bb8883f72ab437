"""Tests of groups: against residuals written out, the level that they hold, and what planted units make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_significance import not_smaller_than_uniform
from torch import Tensor, nn

from lightning_hnd import PAPER, FaceDictionary, dissect
from lightning_hnd.dictionary.known import other_labels
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.evidence.groups import GroupEvidence, responses
from lightning_hnd.functional.significance import upper_tail

AGE, TONE = PAPER.global_index("age"), PAPER.global_index("skin_tone")
DARK = PAPER.group_offsets[TONE + 1] - 1


def faces_of(ages: list[int], dark: Tensor, labels: list[Mapping[str, str]] | None = None) -> FaceDictionary:
    """Blank faces, bright or dark, whose age is known from the labels alone."""
    group = torch.full((len(ages), len(PAPER.global_)), -1)
    group[:, TONE] = dark.long()
    return FaceDictionary(
        ontology=PAPER,
        pictures=torch.zeros(len(ages), 1, 16, 16, dtype=torch.uint8),
        source=torch.full((len(ages),), -1),
        group=group,
        masks=PackedMasks.pack(torch.zeros(0, 16, 16, dtype=torch.bool)),
        mask_image=torch.zeros(0, dtype=torch.int64),
        mask_concept=torch.zeros(0, dtype=torch.int64),
        names=tuple(map(str, range(len(ages)))),
        labels=tuple(labels or [{"age": str(age)} for age in ages]),
        mean=(0.5,),
        std=(0.5,),
    )


def confounded(images: int = 240, seed: int = 0) -> tuple[FaceDictionary, Tensor, Tensor]:
    """The old are mostly dark; who is old, and who is dark ``[N]``."""
    chance = torch.rand(images, generator=torch.Generator().manual_seed(seed))
    old = torch.arange(images) % 2 == 0
    dark = torch.where(old, chance < 0.75, chance < 0.25)
    return faces_of([70 if o else 30 for o in old.tolist()], dark), old, dark


def gather(faces: FaceDictionary, maps: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
    evidence = GroupEvidence(faces, {})
    for batch in faces.batches(batch_size):
        some = maps[batch.index]
        evidence.update(some, some.new_zeros(*some.shape[:2], 0), batch.index)
    return evidence.compute(evidence.sums, maps.shape[1])


def plainly(y: np.ndarray, label: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals by least squares, image by image."""
    columns = np.column_stack([np.ones(len(y)), others])
    x, e = (v - columns @ np.linalg.lstsq(columns, v, rcond=None)[0] for v in (label, y))
    alike = (x @ x) * (e**2).sum(0) / (len(y) - columns.shape[1])
    z = x @ e / np.sqrt(np.maximum((x[:, None] ** 2 * e**2).sum(0), alike))
    return z, x @ e / np.sqrt((x @ x) * (e**2).sum(0))


@pytest.mark.parametrize("batch_size", [7, 240])
def test_sums_come_to_what_residuals_come_to(batch_size: int) -> None:
    faces, old, dark = confounded()
    maps = 100 + torch.randn(240, 3, 2, 3, generator=torch.Generator().manual_seed(1)) + old[:, None, None, None]
    found = gather(faces, maps, batch_size)
    y = responses(maps).flatten(1).numpy()
    z, effect = plainly(y, dark.double().numpy(), old.double().numpy()[:, None])
    z, effect = torch.tensor(z.reshape(3, 8)), effect.reshape(3, 8).max(1)
    share = torch.tensor([1 / 4, 1 / 4, *[1 / 12] * 6])
    p = (upper_tail(z) / share).amin(1).clamp(max=1).numpy()
    assert upper_tail(found["group_z"][:, DARK]).numpy() == pytest.approx(p, rel=1e-5)
    assert found["group_effect"][:, DARK].numpy() == pytest.approx(effect, rel=1e-5)
    assert found["group_z"][:, : DARK - 1].isnan().all()  # no image of the other concepts


@pytest.mark.parametrize("kind", ["normal", "sparse", "heavy"])
def test_null_p_values_are_not_smaller_than_uniform_though_groups_differ_in_age(kind: str) -> None:
    faces, old, _ = confounded()
    noise = torch.randn(240, 4000, 3, 3, generator=torch.Generator().manual_seed(2))
    if kind == "heavy":
        noise = noise.exp() ** 2
    if kind == "sparse":
        noise = torch.where(noise > 1.9, noise, 0.0)
    maps = noise + (2.0 if kind == "normal" else 0.0) * old[:, None, None, None]
    z = gather(faces, maps)["group_z"]
    not_smaller_than_uniform(upper_tail(z[:, DARK]))
    not_smaller_than_uniform(upper_tail(z[:, DARK - 1]))


def test_the_few_images_of_a_group_may_be_equal_by_chance() -> None:
    """Of units that fire in a twentieth of the faces a third is silent in all twenty of the smaller group."""
    faces = faces_of([30] * 500, torch.arange(500) < 20)
    generator = torch.Generator().manual_seed(3)
    fires = torch.rand(500, 2000, 1, 1, generator=generator) < 0.05
    z = gather(faces, torch.rand(500, 2000, 3, 3, generator=generator) * fires)["group_z"]
    for group in (DARK, DARK - 1):
        not_smaller_than_uniform(upper_tail(z[:, group]))


def test_a_unit_on_a_group_is_found_at_its_place_and_one_on_age_is_not_taken_for_it() -> None:
    faces, old, dark = confounded()
    maps = torch.randn(240, 20, 8, 8, generator=torch.Generator().manual_seed(3))
    maps[:, :10, 2, 5] += 2 * dark[:, None]
    maps[:, 10:, 2, 5] += 2 * old[:, None]
    z = gather(faces, maps)["group_z"]
    assert (z[:10, DARK] > 4).all()
    assert (z[:10, DARK - 1] < 3).all()
    assert (z[10:, DARK] < 3).all()


def test_dead_units_and_groups_that_age_explains_say_nothing() -> None:
    faces, _, dark = confounded()
    assert gather(faces, torch.full((240, 2, 4, 4), 7.0))["group_effect"][:, DARK].eq(0).all()
    told_by_age = faces_of([70 if d else 30 for d in dark.tolist()], dark)
    assert gather(told_by_age, torch.randn(240, 2, 4, 4))["group_z"].isnan().all()


def test_other_labels_are_columns_and_rare_values_count_as_one() -> None:
    labels: list[Mapping[str, str]] = [
        {"age": a, "gender": g, "skin_tone": "bright"} for a, g in [("8", "Male"), ("19", "Male"), ("30", "Female")]
    ] * 8
    faces = faces_of([0] * 24, torch.zeros(24), [*labels[:-1], {"age": "70", "gender": "Male"}])
    columns = other_labels(faces.known, PAPER, "skin_tone")
    assert columns.shape == (24, 2)  # young or not, male or not; the one aged 70 is no column
    assert columns[0].equal(columns[1])
    assert not columns[0].equal(columns[2])
    assert other_labels(faces.known, PAPER, "age").shape == (24, 1)


def test_labels_that_are_numbers_of_few_values_are_codes_and_ages_on_a_bound_are_the_younger() -> None:
    coded = [{"gender": "1" if i % 5 == 0 else "0", "age": age} for i, age in enumerate(["20", "21", "40", "61"] * 10)]
    known = faces_of([0] * 40, torch.zeros(40), coded).known
    gender, age = known[:, PAPER.global_index("gender")], known[:, PAPER.global_index("age")]
    assert gender.unique().numel() == 2  # a fifth is no quarter, and was once one with the rest
    assert torch.equal(gender == gender[0], torch.arange(40) % 5 == 0)
    assert age[:4].tolist() == [1, 2, 2, 4]


def test_a_pairing_says_how_large_its_effect_is() -> None:
    """A unit that is on where faces are dark."""
    faces, _, dark = confounded()
    noise = torch.rand(240, 1, 16, 16, generator=torch.Generator().manual_seed(7))
    faces = replace(faces, pictures=(255 * (0.5 * noise + 0.5 * dark[:, None, None, None])).to(torch.uint8))
    (unit,) = dissect(nn.Sequential(nn.AvgPool2d(4)), faces, "0")["0"].units
    (pairing,) = unit.groups
    assert (pairing.concept, pairing.group) == ("skin_tone", "dark")
    assert pairing.strength == pairing.effect
    assert pairing.effect is not None
    assert 0.9 < pairing.effect < 1
    (by_the_bar,) = dissect(nn.Sequential(nn.AvgPool2d(4)), faces, "0", level=None)["0"].units
    assert [(g.strength, g.effect) for g in by_the_bar.groups] == [(pairing.probability, None)]
