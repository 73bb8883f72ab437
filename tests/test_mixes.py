"""Group scores under the same mix of other labels."""

from __future__ import annotations

import pytest
import torch

from lightning_hnd.functional import group_affinity, mid_ranks, mix_weights


@pytest.mark.parametrize("ties", [False, True])
def test_an_image_of_weight_three_counts_as_three(ties: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    peak = torch.rand(40, 6, generator=generator)
    peak = (peak * 4).round() if ties else peak
    group = torch.randint(-1, 3, (40,), generator=generator)
    weight = torch.randint(0, 4, (40,), generator=generator)
    low, high = peak.amin(0) - 1, peak.amax(0) + 1
    again = torch.arange(40).repeat_interleave(weight)
    truth = group_affinity(peak[again], low, high, group[again], 3)
    torch.testing.assert_close(group_affinity(peak, low, high, group, 3, weight.double()), truth)
    torch.testing.assert_close(mid_ranks(peak, torch.ones(40)), mid_ranks(peak))


def test_weighting_takes_a_confound_away_and_leaves_an_effect() -> None:
    """Unit 0 follows gender alone, unit 1 age alone; four of five of the old are men, one of five of the young."""
    generator = torch.Generator().manual_seed(1)
    age = torch.arange(4000) % 2
    male = (torch.rand(4000, generator=generator) < torch.where(age == 1, 0.8, 0.2)).long()
    peak = torch.stack([male, age], 1) + torch.rand(4000, 2, generator=generator)
    low, high = torch.zeros(2), torch.full((2,), 2.0)
    plain = group_affinity(peak, low, high, age, 2)
    weighted = group_affinity(peak, low, high, age, 2, mix_weights(age, male, 2))
    assert plain[0, 1] > 0.6
    assert weighted[0, 1] == pytest.approx(0.5, abs=0.02)
    assert weighted[1, 1] == pytest.approx(float(plain[1, 1]), abs=0.02)


def test_weights_give_one_mix_and_keep_the_sizes() -> None:
    generator = torch.Generator().manual_seed(2)
    group, stratum = (torch.randint(-1, n, (500,), generator=generator) for n in (3, 4))
    stratum[(group == 2) & (stratum == 3)] = 0  # no image of it in one group
    weight = mix_weights(group, stratum, 3)
    counted = (group >= 0) & (stratum >= 0) & (stratum != 3)
    assert (weight[~counted] == 0).all()
    mixes = []
    for g in range(3):
        mine = weight[group == g]
        assert float(mine.sum()) == pytest.approx(int((counted & (group == g)).sum()))
        mixes.append(torch.stack([mine[stratum[group == g] == z].sum() for z in range(3)]) / mine.sum())
    for mix in mixes[1:]:
        torch.testing.assert_close(mix, mixes[0])
    one = mix_weights(group, torch.zeros_like(group), 3)
    torch.testing.assert_close(one, (group >= 0).double())


def test_groups_that_share_too_few_images_are_refused() -> None:
    group = torch.tensor([0] * 100 + [1] * 100)
    gender = torch.tensor([0] * 98 + [1] * 2 + [1] * 98 + [0] * 2)
    with pytest.raises(ValueError, match=r"group \d has \d.* effective images .* min_images=20"):
        mix_weights(group, gender, 2)
    with pytest.raises(ValueError, match="0.0 effective"):
        mix_weights(group, group, 2)
    with pytest.raises(ValueError, match="must both be"):
        mix_weights(group, gender[:5], 2)
    with pytest.raises(ValueError, match="not negative"):
        group_affinity(torch.rand(200, 1), torch.zeros(1), torch.ones(1), group, 2, -torch.ones(200))
