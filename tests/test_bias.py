"""Measures of bias against naive definitions, known ends, and null hypotheses that are true by construction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_hnd.functional.encoding import Encoding, encoding
from lightning_hnd.functional.labels import Labelled, label_effects, labelled
from lightning_hnd.functional.shortcut import Both, shortcut

ONE = torch.zeros(1, dtype=torch.int64)
UNITS = 12


def at_most(rate: float, trials: int) -> float:
    """So many of the trials are believed to be of this rate: three standard deviations above the mean."""
    return trials * rate + 3 * (trials * rate * (1 - rate)) ** 0.5


def flags(n: int, share: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, 1, generator=generator) < share


def units(n: int, generator: torch.Generator) -> Tensor:
    """Noise that units share in part, as those of one network do."""
    own, common = (torch.randn(n, width, generator=generator) for width in (UNITS, 2))
    return own + common @ torch.randn(2, UNITS, generator=torch.Generator().manual_seed(9))


def answering(first: int, last: int, strength: float = 1.5) -> Tensor:
    """What the label adds to units ``first`` to ``last``."""
    where = torch.arange(UNITS)
    return strength * ((where >= first) & (where < last)).float()


def effects(shown: Labelled) -> Tensor:
    return label_effects(shown.share, shown.contrast)


def naive_effect(response: list[float], label: list[bool]) -> float:
    with_, without = ([r for r, x in zip(response, label, strict=True) if x is flag] for flag in (True, False))
    wins = sum((a > b) + 0.5 * (a == b) for a in with_ for b in without)
    return 2 * wins / (len(with_) * len(without)) - 1


def test_effects_are_the_naive_ones_ties_included() -> None:
    generator = torch.Generator().manual_seed(0)
    response = torch.randint(0, 4, (40, UNITS), generator=generator).float()
    label = torch.rand(40, 3, generator=generator) < 0.4
    effect = effects(labelled(response, label, torch.zeros(3, dtype=torch.int64)))
    for u in range(UNITS):
        for i in range(3):
            assert effect[u, i] == pytest.approx(naive_effect(response[:, u].tolist(), label[:, i].tolist()))


def test_effects_hold_other_concepts_fixed() -> None:
    generator = torch.Generator().manual_seed(1)
    cause = flags(4000, 0.5, generator)
    follower = cause ^ flags(4000, 0.2, generator)
    response = units(4000, generator) + cause
    label = torch.cat([cause, follower], dim=1)
    together = effects(labelled(response, label, torch.tensor([0, 1])))
    alone = effects(labelled(response, follower, ONE))
    assert alone.mean() > 0.15
    assert together[:, 1].abs().max() < 0.07
    assert together[:, 0].mean() > 0.25


def test_a_label_that_cannot_be_told_is_nan() -> None:
    generator = torch.Generator().manual_seed(2)
    label = flags(100, 0.5, generator)
    rare = torch.arange(100)[:, None] < 4
    told = labelled(units(100, generator), torch.cat([label, label, rare], dim=1), torch.arange(3))
    assert told.contrast.isnan().all(0).tolist() == [True, True, True]
    found = shortcut(told, labelled(units(100, generator), label, ONE))
    assert found.index.isnan().all()
    assert (found.p == 1).all()


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"label must be \[n, 2\]"):
        labelled(torch.zeros(10, 3), torch.zeros(10, 1, dtype=torch.bool), torch.arange(2))
    some = labelled(torch.rand(20, 3), torch.arange(20)[:, None] < 10, ONE)
    with pytest.raises(ValueError, match="task has 3 units and cue 2"):
        shortcut(some, some._replace(share=some.share[:, :2]))


# --------------------------------------------------------------------------------------------------------- encoding


def encoded(response: Tensor, label: Tensor) -> Encoding:
    shown = labelled(response, label, torch.zeros(label.shape[1], dtype=torch.int64))
    return encoding(shown, torch.ones(response.shape[1], dtype=torch.bool))


def test_encoding_is_one_where_each_unit_serves_one_group() -> None:
    group = torch.arange(90) % 3
    label = group[:, None] == torch.arange(3)
    noise = torch.rand(90, 3, generator=torch.Generator().manual_seed(3))
    same = encoded(label[:, :1] + noise, label)
    assert float(same.index) == pytest.approx(1)
    assert same.lean.tolist() == pytest.approx([1, -0.5, -0.5], abs=0.001)
    each = encoded(label + noise, label)
    assert float(each.index) == pytest.approx(1)
    assert each.lean.abs().max() < 0.01
    assert each.p < 0.01


def test_encoding_is_the_root_mean_square_effect() -> None:
    generator = torch.Generator().manual_seed(4)
    label = torch.cat([member := flags(5000, 0.5, generator), ~member], dim=1)
    shift = torch.linspace(0, 1, UNITS)
    found = encoded(torch.randn(5000, UNITS, generator=generator) + shift * member, label)
    truth = torch.erf(shift / 2).square().mean().sqrt()  # 2 AUC - 1 of normals a shift apart
    assert float(found.index) == pytest.approx(float(truth), abs=0.02)
    assert found.low < truth < found.high


def test_encoding_of_noise_is_as_rarely_significant_as_it_says() -> None:
    generator = torch.Generator().manual_seed(5)
    label = (torch.arange(120) % 4)[:, None] == torch.arange(4)
    found = [encoded(units(120, generator), label) for _ in range(80)]
    false = sum(float(f.p) <= 0.1 for f in found)
    assert false <= at_most(0.1, 80)
    assert sum(float(f.low) == 0 for f in found) > 0.9 * 80


def grouped(response: Tensor, member: Tensor, others: Tensor) -> Encoding:
    """Of two groups, other labels held fixed."""
    label = torch.cat([member, ~member, others], dim=1)
    shown = labelled(response, label, torch.tensor([0, 0, *[1] * others.shape[1]]))
    return encoding(shown._replace(contrast=shown.contrast[:, :2]), torch.ones(response.shape[1], dtype=torch.bool))


def of_unequal_spread(share: float, spread: float, generator: torch.Generator) -> Encoding:
    member = (torch.arange(200) < 200 * share).unsqueeze(1)
    response = torch.randn(200, 60, generator=generator) * (1 + (spread - 1) * member)
    return grouped(response, member, member[:, :0])


def of_unequal_strata(kind: str, generator: torch.Generator) -> Encoding:
    """Of groups that nearly all faces of a stratum share, where faces differ more, or less, than in the other one."""
    stratum = flags(300, 0.5, generator)
    member = flags(300, 0.5, generator) | (stratum & flags(300, 0.8, generator))
    silent, loud = (0.1, 1) if kind == "silent" else (1, 0.1)
    response = torch.randn(300, 60, generator=generator) * torch.where(stratum, silent, loud)
    return grouped(response + stratum, member, stratum)


UNENCODED = {
    "a tenth spreads twice as much": lambda generator: of_unequal_spread(0.1, 2.0, generator),
    "a half spreads three times as much": lambda generator: of_unequal_spread(0.5, 3.0, generator),
    "the rest spreads twice as much": lambda generator: of_unequal_spread(0.1, 0.5, generator),
    "silent where groups hardly differ": lambda generator: of_unequal_strata("silent", generator),
    "loud where groups hardly differ": lambda generator: of_unequal_strata("loud", generator),
}


@pytest.mark.parametrize("case", UNENCODED)
def test_encoding_is_not_taken_for_what_else_groups_differ_in(case: str) -> None:
    generator = torch.Generator().manual_seed(15)
    found = [UNENCODED[case](generator) for _ in range(60)]
    assert sum(float(f.p) <= 0.05 for f in found) <= at_most(0.05, 60)
    assert 0.25 * 60 < sum(float(f.index) == 0 for f in found) < 0.8 * 60  # as often below chance as above


def test_encoding_is_seen_behind_labels_that_matter_more() -> None:
    generator = torch.Generator().manual_seed(16)

    def seen(images: int) -> Encoding:
        age, member = torch.randint(4, (images, 1), generator=generator), flags(images, 0.5, generator)
        response = torch.randn(images, 32, generator=generator) + 2 * age + 0.2 * member
        return grouped(response, member, age == torch.arange(4))

    truth = float(seen(20000).index)
    found = [seen(400) for _ in range(30)]
    assert all(float(f.p) <= 0.05 for f in found)
    index = torch.stack([f.index for f in found])
    assert abs(index.mean() - truth) < 3 * index.std() / 30**0.5
    assert 30 - sum(bool(f.low <= truth <= f.high) for f in found) <= at_most(0.05, 30)


def test_intervals_of_encoding_hold_the_truth() -> None:
    generator = torch.Generator().manual_seed(6)
    truth, covered = math.erf(0.5 / 2), 0
    for _ in range(60):
        member = flags(200, 0.5, generator)
        response = torch.randn(200, UNITS, generator=generator) + 0.5 * member
        found = encoded(response, torch.cat([member, ~member], dim=1))
        covered += bool(found.low <= truth <= found.high)
    assert 60 - covered <= at_most(0.05, 60)


def test_encoding_where_nothing_can_be_told() -> None:
    shown = labelled(torch.ones(20, 3), torch.arange(20)[:, None] < 10, ONE)
    assert encoding(shown, torch.zeros(3, dtype=torch.bool)).index == 0
    unknown = labelled(torch.rand(20, 3), torch.arange(20)[:, None] < 2, ONE)
    found = encoding(unknown, torch.ones(3, dtype=torch.bool))
    assert all(value.isnan().all() for value in vars(found).values())
    nobody = encoded(torch.rand(0, 3), torch.zeros(0, 2, dtype=torch.bool))
    assert all(value.isnan().all() for value in vars(nobody).values())


# -------------------------------------------------------------------------------------------------------- shortcuts


def planted(
    to_task: Tensor, to_cue: Tensor, generator: torch.Generator, images: int = 160
) -> tuple[Labelled, Labelled]:
    task, cue = flags(images, 0.5, generator), flags(images, 0.35, generator)
    return (
        labelled(units(images, generator) + task * to_task, task, ONE),
        labelled(units(images, generator) + cue * to_cue, cue, ONE),
    )


NOTHING = answering(0, 0)
INNOCENT = {
    "units follow nothing": (NOTHING, NOTHING),
    "the task alone": (answering(0, 6), NOTHING),
    "the cue alone": (NOTHING, answering(0, 6)),
    "both, in other units": (answering(0, 3), answering(3, 12)),
    "both, as often alike as opposed": (answering(0, 6), answering(0, 3) - answering(3, 6)),
}


@pytest.mark.parametrize("case", INNOCENT)
def test_innocent_layers_are_as_rarely_accused_as_the_level_says(case: str) -> None:
    generator = torch.Generator().manual_seed(7)
    p = torch.cat([shortcut(*planted(*INNOCENT[case], generator)).p for _ in range(150)])
    assert int((p <= 0.05).sum()) <= at_most(0.05, 150)


@pytest.mark.parametrize("fires", [1.0, 0.05])
def test_a_cue_of_few_images_accuses_no_more_often(fires: float) -> None:
    """Five images may lie so close together by chance that they seem to have no noise."""
    generator = torch.Generator().manual_seed(7)
    cue, p = torch.arange(400)[:, None] < 5, []
    for _ in range(150):
        task = flags(400, 0.5, generator)
        noise = torch.randn(2, 400, 32, generator=generator).abs()
        noise *= torch.rand(2, 400, 32, generator=generator) < fires
        told = noise[0] + task * (torch.arange(32) < 16)
        p.append(shortcut(labelled(told, task, ONE), labelled(noise[1], cue, ONE)).p)
    assert int((torch.cat(p) <= 0.05).sum()) <= at_most(0.05, 150)


def test_links_are_found_and_signed() -> None:
    generator = torch.Generator().manual_seed(8)
    for sign in (1, -1):
        found = [shortcut(*planted(answering(0, 6), sign * answering(3, 9), generator)) for _ in range(50)]
        assert sum(bool(f.p < 0.05) for f in found) > 40
        assert all(sign * float(f.index) > 0 for f in found)


def test_the_index_is_the_effect_of_the_cue_on_how_much_faces_look_like_the_task() -> None:
    task, cue = planted(answering(0, 6), answering(3, 9), torch.Generator().manual_seed(9))
    axis = effects(task)[:, 0]
    scores = [sum(float(r * a) for r, a in zip(row, axis, strict=True)) for row in cue.share]
    label = (cue.contrast[:, 0] > 0).tolist()
    assert float(shortcut(task, cue).index) == pytest.approx(naive_effect(scores, label))


def test_intervals_of_the_index_hold_what_many_images_give() -> None:
    generator = torch.Generator().manual_seed(10)
    effects = answering(0, 6), answering(4, 10, 0.7)
    truth = float(shortcut(*planted(*effects, generator, images=20000)).index)
    covered = 0
    for _ in range(150):
        low, high = shortcut(*planted(*effects, generator)).interval
        covered += bool(low <= truth <= high)
    assert 150 - covered <= at_most(0.05, 150)


def test_labels_of_the_same_images() -> None:
    generator = torch.Generator().manual_seed(11)
    false = found = 0
    for _ in range(100):
        label = torch.cat([flags(160, 0.5, generator), flags(160, 0.5, generator)], dim=1)
        for linked in (False, True):
            effect = torch.stack([answering(0, 6), answering(3, 9) if linked else answering(6, 12)])
            shown = labelled(units(160, generator) + label.float() @ effect, label, torch.arange(2))
            p = float(shortcut(shown, shown).p[0, 1])
            false, found = false + (not linked and p <= 0.05), found + (linked and p <= 0.05)
    assert false <= at_most(0.05, 100)
    assert found > 75


def together(n: int, correlation: float, generator: torch.Generator) -> Tensor:
    """Two labels that go together, ``[n, 2]``."""
    first, same = flags(n, 0.5, generator), flags(n, (1 + correlation) / 2, generator)
    return torch.cat([first, torch.where(same, first, ~first)], dim=1)


@pytest.mark.parametrize("shared", [200, 120])
@pytest.mark.parametrize(("count", "correlation"), [(128, 0.5), (128, 0.0), (600, 0.3)])
def test_noise_links_no_labels_of_the_same_images(shared: int, count: int, correlation: float) -> None:
    """Images of which each label is known are the same ones, or some of them."""
    generator = torch.Generator().manual_seed(13)
    runs, both = 50, Both(torch.arange(200 - shared, 200), torch.arange(shared))
    index, z = [], []
    for _ in range(runs):
        label = together(400 - shared, correlation, generator)
        response = torch.randn(len(label), count, generator=generator)
        task, cue = (labelled(response[part], label[part], torch.arange(2)) for part in (slice(200), slice(-200, None)))
        found = shortcut(task, cue, both)
        index.append(float(found.index[0, 1]))
        z.append(float(found.z[0, 1]))
    assert abs(sum(z)) / runs**0.5 < 3  # the sum of so many standard normal numbers, or of smaller ones
    assert sum(abs(value) > 1.96 for value in z) <= at_most(0.05, runs)
    assert abs(torch.tensor(index).mean()) < 3 * torch.tensor(index).std() / runs**0.5 + 0.01


def test_intervals_of_the_index_hold_the_truth_on_the_same_images() -> None:
    generator = torch.Generator().manual_seed(14)
    effect = torch.stack([answering(0, 6, 0.5), answering(6, 12, 0.5)])

    def linked(images: int) -> tuple[Tensor, Tensor, Tensor]:
        label = together(images, 0.75, generator)
        shown = labelled(units(images, generator) + label.float() @ effect, label, torch.arange(2))
        found = shortcut(shown, shown)
        return found.index[0, 1], *(end[0, 1] for end in found.interval)

    truth = linked(20000)[0]
    found = [linked(160) for _ in range(150)]
    assert abs(torch.stack([index for index, _, _ in found]).mean() - truth) < 0.05
    assert sum(not low <= truth <= high for _, low, high in found) <= at_most(0.05, 150)


def test_what_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(12)
    images, label = units(100, generator), flags(100, 0.5, generator)
    other, cue = units(100, generator), flags(100, 0.5, generator)
    found = shortcut(labelled(images, label, ONE), labelled(other, cue, ONE))
    dead = torch.full((100, 2), 3.0)
    order = torch.randperm(UNITS, generator=generator)
    changes = {
        "dead units": lambda x: torch.cat([x, dead], dim=1),
        "the scale of units": lambda x: x.exp() * torch.arange(1, UNITS + 1),
        "the order of units": lambda x: x[:, order],
    }
    for name, change in changes.items():
        again = shortcut(labelled(change(images), label, ONE), labelled(change(other), cue, ONE))
        torch.testing.assert_close(vars(again), vars(found), msg=name)
    opposite = shortcut(labelled(images, ~label, ONE), labelled(other, cue, ONE))
    torch.testing.assert_close(opposite.index, -found.index)
    torch.testing.assert_close(opposite.z, -found.z)
