"""Groups behind concepts: against means written out, and what planted units are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_hnd import ABOVE_CHANCE, PAPER, README, Dissection, FaceDictionary, LayerDissection, Timeline, dissect
from lightning_hnd.dictionary.known import held_fixed, numbered_labels
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.evidence.evidence import Evidence
from lightning_hnd.evidence.groups import GroupEvidence
from lightning_hnd.report.keys import scalars
from lightning_hnd.report.tables import layer_markdown

LIPSTICK = PAPER.concept_index("Wearing_Lipstick")
GENDER, AGE = PAPER.global_index("gender"), PAPER.global_index("age")
LOCAL, GROUPED, SIZE = 300, 240, 16


def lips(at: Tensor) -> Tensor:
    """``[n, SIZE, SIZE]`` bool: three by six pixels, at different places ``[n, 2]`` of the lower half."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    down, right = (at[:, i, None, None] for i in (0, 1))
    return (y >= 9 + down) & (y < 12 + down) & (x >= 4 + right) & (x < 10 + right)


def faces_with_units(
    correlation: float = 0.6, grouped: int = GROUPED, told: float = 0.0, axis: int = GENDER, seed: int = 0
) -> tuple[FaceDictionary, Tensor]:
    """Local images with lipstick or without, more often on women, and images of which the group alone is labelled.

    Pictures are what three units do: one fires on the last group of a global concept, at the lips, one on lipstick,
    and one is noise. Of a share of local images ``labels.csv`` tells the group.
    """
    generator = torch.Generator().manual_seed(seed)
    n, groups = LOCAL + grouped, PAPER.global_[axis].groups
    group = torch.randint(len(groups), (n,), generator=generator)
    last = group == len(groups) - 1
    follows = torch.rand(n, generator=generator) < correlation
    wears = torch.where(follows, last, torch.rand(n, generator=generator) < 0.5)
    place = lips(torch.randint(-2, 3, (n, 2), generator=generator))
    signal = torch.stack([last, wears, torch.zeros(n)], dim=1)[:, :, None, None] * place[:, None] * 120
    noise = torch.rand(n, 3, SIZE, SIZE, generator=generator) * 120
    local = torch.arange(n) < LOCAL
    with_mask = (wears & local).nonzero().flatten()
    labels = tuple({PAPER.global_[axis].name: groups[g]} if i < told * LOCAL else {} for i, g in enumerate(group))
    faces = FaceDictionary(
        ontology=PAPER,
        pictures=(signal + noise).to(torch.uint8),
        source=torch.where(local, PAPER.kinds.index("attribute"), -1),
        group=torch.full((n, len(PAPER.global_)), -1),
        masks=PackedMasks.pack(place[with_mask]),
        mask_image=with_mask,
        mask_concept=torch.full_like(with_mask, LIPSTICK),
        names=tuple(map(str, range(n))),
        labels=labels,
        mean=(0.0,),
        std=(1.0,),
    )
    faces.group[LOCAL:, axis] = group[LOCAL:]
    return faces, wears


def seen(faces: FaceDictionary) -> Dissection:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3)[:, :, None, None])
    return dissect(model, faces, layers="0")


def gathered(faces: FaceDictionary) -> Mapping[str, Tensor]:
    evidence = Evidence(faces)
    for batch in faces.batches(50):
        evidence.update(batch.images, batch)
    return evidence.compute()


def plainly(faces: FaceDictionary, wears: Tensor, axis: int) -> np.ndarray:
    """By how many times the means of groups differ more than those with and without lipstick do: ``[U]``.

    Each in standard deviations inside what is compared.
    """
    usual = faces.masks.dense().double().mean(0).flatten().numpy()
    responses = []
    for image in (faces.pictures.double() / 255).flatten(2).numpy():
        beside = image - image.mean(1, keepdims=True)
        strong = beside * np.abs(beside) / np.linalg.norm(beside, axis=1, keepdims=True)
        response = strong @ usual / usual.sum()
        responses.append(np.sign(response) * np.sqrt(np.abs(response)))
    y, group = np.array(responses), faces.group[LOCAL:, axis].numpy()

    def apart(parts: list[np.ndarray]) -> np.ndarray:
        means = np.array([part.mean(0) for part in parts])
        squares = sum(((part - part.mean(0)) ** 2).sum(0) for part in parts)
        return (means.max(0) - means.min(0)) / np.sqrt(squares / (sum(map(len, parts)) - len(parts)))

    on = wears[:LOCAL].numpy()
    return apart([y[LOCAL:][group == g] for g in np.unique(group)]) / apart([y[:LOCAL][on], y[:LOCAL][~on]])


@pytest.mark.parametrize("axis", [GENDER, AGE])
def test_the_ratio_is_that_of_differences_of_means(axis: int) -> None:
    """Of several groups those with most and with least are compared, whatever the sizes of the others."""
    faces, wears = faces_with_units(axis=axis)
    found, expected = gathered(faces), plainly(faces, wears, axis)
    ratio = found["confound_ratio"]
    assert ratio[:2, LIPSTICK].numpy() == pytest.approx(expected[:2], rel=1e-3)
    assert ratio[0, LIPSTICK] > 1.2
    assert ratio[1, LIPSTICK] < 0.9
    assert found["confound_group"][0, LIPSTICK] == PAPER.group_offsets[axis + 1] - 1
    others = torch.arange(len(PAPER.local)) != LIPSTICK
    assert ratio[:, others].eq(0).all()
    assert found["confound_group"][:, others].eq(-1).all()


@pytest.mark.parametrize(
    ("genders", "means"),
    [
        ([[90, 10], [90, 10], [10, 90], [10, 90]], [1.0, 0.0, 0.0, 0.0]),
        ([[190, 10], [5, 95], [5, 95], [5, 95]], [1.0, 0.0, 0.0, 0.0]),
        ([[95, 5], [95, 5], [5, 95], [5, 95]], [1.0, 1.0, 0.0, 0.0]),
        ([[98, 2], [90, 10], [2, 98], [2, 98]], [1.0, 0.0, 1.0, 0.0]),
        ([[100, 0], [4, 0], [4, 0], [4, 0]], [1.0, 0.0, 0.0, 0.0]),  # three that are too few, each by itself
    ],
)
def test_groups_are_as_far_apart_as_they_are_where_other_labels_go_with_them(
    genders: list[list[int]], means: list[float]
) -> None:
    images = [
        (age, gender) for age, of in enumerate(genders) for gender, number in enumerate(of) for _ in range(number)
    ]
    ages, told = torch.tensor(images).unbind(1)
    faces, _ = faces_with_units(axis=AGE, grouped=len(images))
    faces.group[LOCAL:, AGE] = ages
    of_grouped = ({"gender": PAPER.global_[GENDER].groups[g]} for g in told.tolist())
    labels: tuple[Mapping[str, str], ...] = (*[{}] * LOCAL, *of_grouped)
    faces = replace(faces, labels=labels)
    evidence = GroupEvidence(faces, {LIPSTICK: torch.arange(len(PAPER.global_)) == AGE})
    noise = torch.randn(len(ages), generator=torch.Generator().manual_seed(0))
    shown = (torch.tensor(means)[ages] + 2 * told + 1 + 0.01 * noise).square()
    evidence.update(torch.rand(len(ages), 1, 2, 2), shown[:, None, None], torch.arange(LOCAL, len(faces)))
    found = evidence.compute(evidence.sums, 1)["confound_difference"][0, LIPSTICK]
    assert 0.01 * float(found) == pytest.approx(1.0, rel=0.1)


def test_a_unit_on_a_group_is_not_named_after_what_goes_with_it() -> None:
    faces, _ = faces_with_units()
    dissection = seen(faces)
    layer = dissection["0"]
    on_group, on_concept, noise = layer.units
    assert on_group.concepts == ()
    assert [(one.name, one.concept, one.group) for one in on_group.confounded] == [
        ("Wearing_Lipstick", "gender", "Female")
    ]
    assert on_group.confounded[0].ratio > 1.2
    assert [c.name for c in on_concept.concepts] == ["Wearing_Lipstick"]
    assert on_concept.confounded == noise.confounded == ()
    assert layer.defence.associated[:2, LIPSTICK].tolist() == [-1, 1]
    assert layer.defence.placed[0, LIPSTICK] == 1
    assert scalars(dissection)["hnd/0/above_chance/confounded_units"] == 1
    assert Timeline.of([dissection])["0"].table()[0]["confounded"] == 1


def test_what_is_confounded_is_shown_where_people_look() -> None:
    dissection = seen(faces_with_units()[0])
    layer = dissection["0"]
    said = "0: 1 of 3 live units interpretable (Mouth 1); 1 more confounded with groups; nobody asked what is learnt"
    assert layer.headline == said
    assert layer.confounded_alone == (0,)
    found = layer.units[0].confounded[0]
    assert [row[0] for row in layer.assignments(9)] == ["1", "0"]
    assert layer.assignments(9)[1][2] == f"Wearing_Lipstick or gender=Female, {found.ratio:.1f} x"
    for text in (str(layer), layer_markdown(layer)):
        assert f"Wearing_Lipstick or gender=Female, {found.ratio:.1f} x" in text
    assert " or gender" not in layer_markdown(dissection.with_rule(README)["0"])


def test_without_groups_it_would_have_been_named() -> None:
    """So that it is the group that keeps it from that."""
    faces, _ = faces_with_units()
    faces.group[:] = -1
    layer = seen(faces)["0"]
    assert [c.name for c in layer.units[0].concepts] == ["Wearing_Lipstick"]
    assert layer.units[0].confounded == ()


@pytest.mark.parametrize(("told", "fixed"), [(1.0, True), (0.95, False), (0.5, False)])
def test_a_group_that_labels_tell_is_held_fixed_and_stands_behind_nothing(told: float, fixed: bool) -> None:
    faces, _ = faces_with_units(told=told)
    found = gathered(faces)
    assert bool(found["confound_ratio"][:, LIPSTICK].eq(0).all()) == fixed
    layer = seen(faces)["0"]
    assert [c.name for c in layer.units[1].concepts] == ["Wearing_Lipstick"]
    assert layer.units[0].concepts == ()  # held fixed lipstick makes no difference to it
    assert bool(layer.units[0].confounded) == (told == 0.5)  # with 95 % told it is not associated either


def test_groups_that_chance_alone_sets_apart_stand_behind_nothing() -> None:
    """Of four groups one differs in a twentieth of the dictionaries, not in a fifth."""
    found = []
    for seed in range(60):
        faces, _ = faces_with_units(grouped=80, axis=AGE, seed=seed)
        faces.group[LOCAL:] = faces.group[LOCAL:][torch.randperm(80, generator=torch.Generator().manual_seed(seed))]
        found += gathered(faces)["confound_ratio"][:, LIPSTICK].gt(0).tolist()
    assert sum(found) <= 20  # of 180


def test_one_of_many_groups_may_be_the_one_that_a_unit_does_not_answer_to() -> None:
    """Then no group has much more of the response than all others together."""
    faces, _ = faces_with_units(axis=AGE)
    few = LOCAL + 40
    group = faces.group[LOCAL:few, AGE]
    faces.group[few:] = -1
    units = 50
    evidence = GroupEvidence(faces, {LIPSTICK: torch.arange(len(PAPER.global_)) == AGE})
    noise = torch.randn(40, units, 1, generator=torch.Generator().manual_seed(0))
    shown = (5 + (group != 3)[:, None, None] + 0.6 * noise).square()
    evidence.update(torch.rand(40, units, 2, 2), shown, torch.arange(LOCAL, few))
    found = evidence.compute(evidence.sums, units)
    is_last = found["confound_group"][:, LIPSTICK] == PAPER.group_offsets[AGE] + 3
    assert (is_last & (found["confound_difference"][:, LIPSTICK] > 1.0)).double().mean() > 0.9


def test_groups_without_images_take_no_degrees_of_freedom() -> None:
    faces, _ = faces_with_units(axis=AGE, grouped=20)
    group = torch.arange(20) % 2
    faces.group[LOCAL:, AGE] = group
    evidence = GroupEvidence(faces, {LIPSTICK: torch.arange(len(PAPER.global_)) == AGE})
    y = 5 + group + 0.2 * torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    evidence.update(torch.rand(20, 1, 2, 2), y.square()[:, None, None], torch.arange(LOCAL, len(faces)))
    found = evidence.compute(evidence.sums, 1)["confound_difference"][0, LIPSTICK]
    one, other = y[group == 0], y[group == 1]
    pooled = ((one.var() + other.var()) / 2).sqrt()  # ten images each
    assert float(found) == pytest.approx(float((other.mean() - one.mean()) / pooled), rel=1e-9)


def test_a_group_may_have_less_than_those_that_are_too_few_by_themselves() -> None:
    faces, _ = faces_with_units(axis=AGE, grouped=106)
    group = torch.tensor([0] * 100 + [1, 1, 2, 2, 3, 3])
    faces.group[LOCAL:, AGE] = group
    evidence = GroupEvidence(faces, {LIPSTICK: torch.arange(len(PAPER.global_)) == AGE})
    noise = torch.randn(106, generator=torch.Generator().manual_seed(0))
    evidence.update(
        torch.rand(106, 1, 2, 2),
        (5 + (group > 0) + 0.2 * noise).square()[:, None, None],
        torch.arange(LOCAL, len(faces)),
    )
    found = evidence.compute(evidence.sums, 1)
    assert found["confound_difference"][0, LIPSTICK] == pytest.approx(5, rel=0.3)
    assert found["confound_group"][0, LIPSTICK] == PAPER.group_offsets[AGE]


@pytest.mark.parametrize(("means", "furthest"), [([-1.0, -0.9, 0, 0], 0), ([0.9, 1.0, 0, 0], 1)])
def test_the_group_furthest_from_those_without_a_name_is_told(means: list[float], furthest: int) -> None:
    faces, _ = faces_with_units(axis=AGE, grouped=110)
    group = torch.tensor([0] * 50 + [1] * 52 + [2] * 4 + [3] * 4)
    faces.group[LOCAL:, AGE] = group
    evidence = GroupEvidence(faces, {LIPSTICK: torch.arange(len(PAPER.global_)) == AGE})
    noise = torch.randn(110, generator=torch.Generator().manual_seed(0))
    shown = (5 + torch.tensor(means)[group] + 0.2 * noise).square()
    evidence.update(torch.rand(110, 1, 2, 2), shown[:, None, None], torch.arange(LOCAL, len(faces)))
    found = evidence.compute(evidence.sums, 1)
    assert found["confound_group"][0, LIPSTICK] == PAPER.group_offsets[AGE] + furthest


def test_of_a_response_that_a_concept_lowers_any_group_makes_more() -> None:
    faces, _ = faces_with_units()
    faces.pictures[:LOCAL, 0] = 255 - faces.pictures[:LOCAL, 1]
    assert gathered(faces)["confound_ratio"][0, LIPSTICK] == torch.inf


def test_that_nothing_is_known_is_no_label_that_is_told() -> None:
    nothing = ("", " ", "nan", "Unknown", "N/A")
    labels: list[Mapping[str, str]] = [{"gender": " Male", "age": "9"}, {"gender": "Male", "age": "12"}]
    labels += [{"gender": value, "age": value} for value in nothing]
    known = numbered_labels(labels, PAPER)
    assert known[:, GENDER].tolist() == known[:, AGE].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert held_fixed(known[:2]).nonzero().flatten().tolist() == [AGE, GENDER]
    assert not held_fixed(known).any()


def test_a_group_may_be_called_none() -> None:
    groups = ("None", "light", "heavy")
    ontology = replace(PAPER, global_=(replace(PAPER.global_[GENDER], name="makeup", groups=groups),))
    known = numbered_labels([{"makeup": value} for value in ("None", "none", "light", "heavy", "unknown")], ontology)
    assert (known[:, 0] != 0).tolist() == [True, True, True, True, False]


def test_evidence_of_another_version_is_not_read_as_if_of_this_one() -> None:
    layer = seen(faces_with_units()[0])["0"]
    statistics = {name: value for name, value in layer.statistics.items() if name != "confound_ratio"}
    older = LayerDissection.of("0", layer.ontology, ABOVE_CHANCE, statistics)
    with pytest.raises(ValueError, match=r"of another version of lightning-hnd: .* \.with_rule\(README\)"):
        _ = older.headline
    bar = LayerDissection.of("0", layer.ontology, README, statistics)
    assert "confounded" not in bar.headline
    assert bar.units[0].confounded == ()
