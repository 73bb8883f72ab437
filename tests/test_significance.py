"""p-values that keep their word: null data, ties, confounds, false discovery, power, and plain forms as oracles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from lightning_hnd.functional.significance import (
    LEAST_EFFECT,
    MaskTest,
    RankTest,
    benjamini_hochberg,
    exceedance,
    exchanged_masks_test,
    partial_rank_test,
    simes,
    units_then_concepts,
    upper_tail,
)

NONE = torch.zeros(200, 0, dtype=torch.bool)


def not_smaller_than_uniform(p: torch.Tensor) -> None:
    """At no level more p-values than the level says, give or take three standard errors."""
    for level in (0.2, 0.05, 0.01, 0.002):
        share = float((p <= level).double().mean())
        assert share <= level + 3 * math.sqrt(level * (1 - level) / p.numel()), (level, share)


def responses(kind: str, n: int, units: int, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(n, units, generator=generator)
    if kind == "rectified":
        return normal.clamp(min=0)
    if kind == "sparse":  # fires in three of a hundred images
        return torch.where(torch.rand(n, units, generator=generator) < 0.03, normal.exp(), 0.0)
    if kind == "heavy":
        return normal.exp() ** 3
    return normal if kind == "normal" else torch.zeros(n, units)


def shifted(effect: float, n: int, units: int, others: int) -> RankTest:
    """The test of normal responses with a shift for half the images, of the rank correlation ``effect``.

    Without ties a rank correlation is ``2 sqrt(3) cov(label, F(response)) / sd(label)``, and with small shifts ``s``
    in half of the images ``s / 2 sqrt(3 / pi)``: the density of a difference of two normals at 0 is ``1 / 2 sqrt(pi)``.
    """
    generator = torch.Generator().manual_seed(4)
    label = torch.arange(n) % 2 == 0
    shift = 2 * effect / math.sqrt(3 / math.pi)
    response = shift * label[:, None] + torch.randn(n, units, generator=generator)
    return partial_rank_test(response, label, torch.rand(n, others, generator=generator) < 0.3)


def of_student(t: torch.Tensor, freedom: torch.Tensor) -> torch.Tensor:
    """Normal quantiles of where values lie in Student's distribution: its density, added up in small steps."""
    at = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    found = []
    for value, nu in zip(t.abs().tolist(), freedom.tolist(), strict=True):
        density = (1 + at.square() / nu) ** (-(nu + 1) / 2)
        norm = math.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)) / math.sqrt(nu * math.pi)
        below = 0.5 + norm * torch.trapezoid(density[at <= value], at[at <= value])
        found.append(torch.special.ndtri(below))
    return torch.stack(found).copysign(t)


class TestPartialRankTest:
    @pytest.mark.parametrize("kind", ["normal", "rectified", "sparse", "heavy", "dead"])
    @pytest.mark.parametrize("share", [0.08, 0.5])
    def test_null_p_values_are_not_smaller_than_uniform(self, kind: str, share: float) -> None:
        generator = torch.Generator().manual_seed(0)
        label = torch.rand(200, generator=generator) < share
        others = torch.rand(200, 3, generator=generator) < 0.3
        p = upper_tail(partial_rank_test(responses(kind, 200, 5000, generator), label, others, least=0).z)
        not_smaller_than_uniform(p)

    @pytest.mark.parametrize("share", [0.2, 0.5])
    @pytest.mark.parametrize("spread", [0.1, 3.0])
    @pytest.mark.parametrize("others", [0, 3])
    def test_unequal_spread_is_no_difference(self, share: float, spread: float, others: int) -> None:
        generator = torch.Generator().manual_seed(5)
        label = torch.arange(200) < share * 200
        fixed = torch.rand(200, others, generator=generator) < 0.3
        response = torch.where(label, spread, 1.0)[:, None] * torch.randn(200, 5000, generator=generator)
        not_smaller_than_uniform(upper_tail(partial_rank_test(response, label, fixed, least=0).z))

    def test_the_few_images_without_a_label_may_be_equal_by_chance(self) -> None:
        """Where a unit fires in a tenth of 400 faces all 40 without a label are silent in one of 70 cases."""
        generator = torch.Generator().manual_seed(7)
        fires = torch.rand(400, 20000, generator=generator) < 0.1
        response = torch.where(fires, torch.rand(400, 20000, generator=generator), 0.0)
        label = torch.arange(400) < 360
        p = upper_tail(partial_rank_test(response, label, torch.zeros(400, 0, dtype=torch.bool), least=0).z)
        not_smaller_than_uniform(p)
        assert (p <= 1e-4).sum() <= 7  # 2 are expected, and 7 or fewer with a probability of 0.999

    def test_the_smallest_of_three_statistics_counts(self) -> None:
        """Of equal noise, of Brunner and Munzel (2000), written out over pairs, and of White (1980)."""
        generator = torch.Generator().manual_seed(6)
        label = torch.arange(60) < 15
        response = torch.randn(60, 50, generator=generator)
        response[label, :15] *= 0.1
        response[label, 15:30] *= 5
        response[label, 30:] += 1
        z = partial_rank_test(response, label, torch.zeros(60, 0, dtype=torch.bool), least=0).z
        above = (response[label][:, None] > response[~label]).double()  # no ties
        share = above.mean((0, 1))
        spread = [(above.mean(way) - share).square().sum(0) / (len(above.mean(way)) - 1) ** 2 for way in (1, 0)]
        freedom = (spread[0] + spread[1]).square() / (spread[0].square() / 14 + spread[1].square() / 44)
        beyond = 15 * 45 * (share - 0.5) - 0.5
        t = beyond / (15 * 45 * (spread[0] + spread[1]).sqrt())
        ranks = response.argsort(0).argsort(0).double() + 1 - 30.5
        white = ((label.double() - 0.25)[:, None] * ranks).square().sum(0).sqrt()
        alike = (ranks.square().sum(0) * 60 * 0.25 * 0.75 / 59).sqrt()
        all_three = torch.stack([beyond / alike, of_student(t, freedom), beyond / white])
        assert all_three.argmin(0).unique().tolist() == [0, 1, 2]
        smallest = torch.where(all_three[0] > 0, all_three.amin(0), all_three[0])
        assert bool((smallest < all_three[0]).any())
        assert bool((all_three[0] < 0).any())
        torch.testing.assert_close(z, smallest, rtol=0.005, atol=0.005)  # Wallace's quantiles

    def test_where_a_label_parts_all_images_no_variance_is_0(self) -> None:
        label = torch.arange(40) < 10
        response = torch.where(label, 1.0, 0.0)[:, None] + torch.arange(40.0)[:, None] / 100
        z = partial_rank_test(response, label, torch.zeros(40, 0, dtype=torch.bool), least=0).z
        residual = torch.cat([torch.arange(31.0, 41.0), torch.arange(1.0, 31.0)]).double() - 20.5
        white = torch.linalg.vector_norm((label.double() - 0.25) * residual)
        assert z.item() == pytest.approx(((label.double() - 0.25) @ residual - 0.5).item() / white.item())

    @pytest.mark.parametrize("n", [200, 1600])
    @pytest.mark.parametrize("others", [0, 3])
    def test_p_values_at_the_end_of_the_null_are_not_smaller_than_uniform(self, n: int, others: int) -> None:
        p = upper_tail(shifted(LEAST_EFFECT, n, 5000, others).z)
        not_smaller_than_uniform(p)
        assert float((p <= 0.05).double().mean()) > 0.035  # nor much larger: the end of it is reached

    @pytest.mark.parametrize(("n", "inside"), [(500, 14), (2000, 20)])
    def test_p_values_at_the_end_of_the_null_where_few_images_have_the_label(self, n: int, inside: int) -> None:
        """A few of these make all of the effect: they rank above all others, and the rest are as others are."""
        generator = torch.Generator().manual_seed(9)
        label = torch.arange(n) < inside
        share = 2 * LEAST_EFFECT / math.sqrt(12 * inside / n * (1 - inside / n))
        top = label[:, None] & (torch.rand(n, 5000, generator=generator) < share)
        response = torch.rand(n, 5000, generator=generator) + top.float()
        not_smaller_than_uniform(upper_tail(partial_rank_test(response, label, torch.zeros(n, 0, dtype=torch.bool)).z))

    def test_a_handful_of_images_is_asked_for_an_effect_above_0(self) -> None:
        """Fourteen faces, all of which a unit ranks above the other 486: they can say no more than the root of 14."""
        label = torch.arange(500) < 14
        response = torch.rand(500, 50, generator=torch.Generator().manual_seed(8)) + 2 * label[:, None]
        test = partial_rank_test(response, label, torch.zeros(500, 0, dtype=torch.bool))
        torch.testing.assert_close(test.z, torch.full((50,), math.sqrt(14)).double(), rtol=0.03, atol=0.0)
        assert (test.effect * math.sqrt(500) > 6).all()  # what they would say if all images decided

    def test_with_many_images_an_effect_that_does_not_matter_is_none(self) -> None:
        test = shifted(LEAST_EFFECT / 2, 50_000, 100, 0)
        assert test.effect.mean().item() == pytest.approx(LEAST_EFFECT / 2, abs=0.002)
        assert upper_tail(test.z).amin() > 0.05  # against an effect of 0 the p-values would be about 0.003
        assert upper_tail(shifted(0.06, 50_000, 100, 0).z).amax() < 1e-3

    @pytest.mark.parametrize("correlation", [0.3, 0.6, 0.9])
    def test_what_a_confound_explains_is_not_significant(self, correlation: float) -> None:
        generator = torch.Generator().manual_seed(1)
        cause = torch.rand(300, generator=generator) < 0.4
        copied = torch.rand(300, generator=generator) < correlation
        label = torch.where(copied, cause, torch.rand(300, generator=generator) < 0.4)
        response = 2 * cause[:, None] + torch.randn(300, 5000, generator=generator)
        assert partial_rank_test(response, label, torch.zeros(300, 0, dtype=torch.bool), least=0).z.mean() > 3
        not_smaller_than_uniform(upper_tail(partial_rank_test(response, label, cause[:, None], least=0).z))

    def test_of_a_label_that_others_repeat_nothing_can_be_said(self) -> None:
        label = torch.arange(200) % 3 == 0
        almost = label.clone()
        almost[:2] = ~almost[:2]
        test = partial_rank_test(torch.randn(200, 2), label, almost[:, None])
        assert test.z.isnan().all()
        assert test.auc.isfinite().all()

    def test_equals_its_formula_and_without_other_labels_the_share_of_pairs(self) -> None:
        random = np.random.default_rng(2)
        response = random.integers(0, 6, 40).astype(float)
        label, other = random.random(40) < 0.4, random.random(40) < 0.5
        test = partial_rank_test(torch.tensor(response)[:, None], torch.tensor(label), torch.tensor(other)[:, None])
        ranks = np.array([np.sum(response < v) + (np.sum(response == v) + 1) / 2 for v in response])
        x, e = label.astype(float), ranks.copy()
        for value in (False, True):  # residuals on one label and a constant are differences from the mean of its class
            x[other == value] -= x[other == value].mean()
            e[other == value] -= e[other == value].mean()
        psi = x * e - np.array([np.sum(x[response < v]) + np.sum(x[response == v]) / 2 for v in response])
        labels = np.stack([np.ones(40), other, label], axis=1).astype(float)
        psi -= labels @ np.linalg.lstsq(labels, psi, rcond=None)[0]
        psi /= 1 - np.diag(labels @ np.linalg.pinv(labels))
        parts = [np.sum(psi[label] ** 2), np.sum(psi[~label] ** 2)]
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (label.sum() - 1) + parts[1] ** 2 / ((~label).sum() - 1))
        step = np.diff(np.sort(ranks)).max() / 2
        least = LEAST_EFFECT * np.linalg.norm(x) * np.linalg.norm(e)
        above = np.sum(x * e) - step
        t = (above - least) / np.sqrt(sum(parts))
        unequal = np.sqrt(freedom * np.log1p(t**2 / freedom)) * (8 * freedom + 1) / (8 * freedom + 3) * np.sign(t)
        alike = (above - least) / np.sqrt(np.sum(x**2) * np.sum(e**2) / (40 - 2))
        assert test.z.item() == pytest.approx(min(unequal, alike, above / np.linalg.norm(x * e)))
        assert test.effect.item() == pytest.approx(np.corrcoef(x, e)[0, 1])
        pairs = [(a > b) + (a == b) / 2 for a in response[label] for b in response[~label]]
        assert test.auc.item() == pytest.approx(np.mean(pairs))

    def test_power_grows_with_the_root_of_the_number_of_images(self) -> None:
        z = {}
        for n in (100, 400, 1600):
            generator = torch.Generator().manual_seed(3)
            label = torch.arange(n) % 2 == 0
            response = 0.3 * label[:, None] + torch.randn(n, 400, generator=generator)
            z[n] = partial_rank_test(response, label, torch.zeros(n, 0, dtype=torch.bool)).z.mean().item()
            # efficiency of ranks for normal data 3 / pi, shift 0.3, two halves
            correlation = 0.3 / 2 * math.sqrt(3 / math.pi)
            assert z[n] == pytest.approx((correlation - LEAST_EFFECT) * math.sqrt(n), rel=0.08)


def exchanged(
    a: np.ndarray, coefficient: np.ndarray, weight: Sequence[float], kurtosis: float | None = None
) -> MaskTest:
    """The test of projections and coefficients ``[n, K]``, or of ``[n, U, K]`` and ``[n, 1, K]``."""
    powers, product = [torch.tensor((a**i).sum(0)) for i in (1, 2, 3, 4)], torch.tensor((a * coefficient).sum(0))
    of_masks = (coefficient**4).mean(0) if kurtosis is None else kurtosis
    own = (torch.tensor(np.broadcast_to(x, product.shape).astype(float)) for x in (weight, of_masks))
    return exchanged_masks_test(powers, product, torch.full(product.shape[:-1], float(len(a))), *own)


class TestExchangedMasksTest:
    def test_mean_and_variance_are_those_of_exchanged_masks(self) -> None:
        random = np.random.default_rng(0)
        basis = np.linalg.qr(random.normal(size=(12, 4)) - 0)[0]
        basis = np.linalg.qr(np.concatenate([np.ones((12, 1)), basis], axis=1))[0][:, 1:4]  # mean 0, uncorrelated
        coefficient = basis * math.sqrt(12)
        a = random.normal(size=(12, 3)) ** 3
        weight = [0.8, 0.6, 0.0]
        # with the kurtosis of normal masks nothing is made of their tails
        z = [exchanged(a, coefficient[random.permutation(12)], weight, kurtosis=3.0).z for _ in range(4000)]
        assert torch.stack(z).mean().abs() < 0.06
        assert torch.stack(z).square().mean().item() == pytest.approx(1, abs=0.08)

    def test_a_mode_drowned_in_what_else_a_unit_does_counts_little(self) -> None:
        """A copy of the mask in noise, ten times as strong along the first mode: the expectation in closed form."""
        random = np.random.default_rng(1)
        coefficient = np.linalg.qr(np.concatenate([np.ones((200, 1)), random.normal(size=(200, 2))], axis=1))[0][:, 1:]
        coefficient, weight, noise = coefficient * math.sqrt(200), np.array([0.8, 0.6]), np.array([10.0, 1.0])
        z = []
        for _ in range(300):
            a = 0.2 * weight * coefficient + noise * random.normal(size=(200, 2))
            z.append(exchanged(a, coefficient, weight).z.item())
        # signal to noise of each mode adds up in squares, as in a matched filter
        matched = math.sqrt(199) * 0.2 * np.sum((weight / noise) ** 2) / np.linalg.norm(weight / noise)
        assert np.mean(z) == pytest.approx(matched, abs=0.2)
        by_masks_alone = math.sqrt(199) * 0.2 * np.sum(weight**2 / noise)
        assert matched > 1.1 * by_masks_alone

    def test_few_faces_or_masks_that_do_not_differ_say_nothing(self) -> None:
        a = np.random.default_rng(2).normal(size=(90, 3))
        assert exchanged(a, a, [1.0, 1.0, 1.0]).z.isfinite()
        assert exchanged(a[:9], a[:9], [1.0, 1.0, 1.0]).z.isnan()
        assert exchanged(a, a, [0.0, 0.0, 0.0]).z.isnan()

    def test_a_unit_that_never_varies_scores_nothing(self) -> None:
        coefficient = np.random.default_rng(3).normal(size=(50, 3))
        assert exchanged(np.zeros((50, 3)), coefficient, [0.5, 0.5, 0.5]).z == 0

    @pytest.mark.parametrize(("freedom", "quantile", "p"), [(5, 2.5706, 0.025), (10, 4.1437, 0.001)])
    def test_quantiles_are_those_of_students_distribution(self, freedom: int, quantile: float, p: float) -> None:
        """One face of ten thousand is odd in the maps; those of a table of Student's distribution."""
        a = np.zeros((10_000, 1))
        a[0] = 1.0
        of_maps = 10_000 - 1 - 2 + 1 / (10_000 - 1)  # kurtosis of one among zeros, from its central moments
        kurtosis = 3 + 6 / (freedom - 4) * 10_000 / (of_maps - 3)
        wanted = quantile * math.sqrt((freedom - 2) / freedom)  # of variance 1
        coefficient = np.full((10_000, 1), wanted * math.sqrt(10_000 / 9_999) * a.std() * 100)
        found = exchanged(a, coefficient, [1.0], kurtosis)
        assert upper_tail(found.z).item() == pytest.approx(p, rel=0.03)

    @pytest.mark.parametrize("fires", [8, 400])
    def test_few_odd_masks_do_not_decide_for_a_unit_that_fires_in_few_faces(self, fires: int) -> None:
        """In the tail, where the units of a layer are told from chance."""
        random = np.random.default_rng(fires)
        odd = np.where(np.arange(400) < 4, 4.0, 1.0)[:, None]  # four faces are odd along all modes
        coefficient = np.linalg.qr(np.concatenate([np.ones((400, 1)), odd * random.normal(size=(400, 4))], axis=1))[0]
        coefficient = 20 * coefficient[:, 1:]
        a = np.zeros((400, 10_000, 4), dtype=np.float32)
        rows = random.random((400, 10_000), dtype=np.float32).argpartition(fires - 1, axis=0)[:fires]
        np.put_along_axis(a, rows[:, :, None], random.normal(size=(fires, 10_000, 4)).astype(np.float32), axis=0)
        p = upper_tail(exchanged(a, coefficient[:, None].astype(np.float32), [0.7, 0.5, 0.4, 0.3]).z)
        for level in (1e-3, 1e-4):
            assert (p <= level).sum() <= 10_000 * level + 3 * math.sqrt(10_000 * level)


class TestFalseDiscovery:
    @pytest.mark.parametrize("correlation", [0.0, 0.5])
    def test_rate_holds_with_correlated_units(self, correlation: float) -> None:
        generator = torch.Generator().manual_seed(0)
        shares, found = [], []
        for _ in range(300):
            common = torch.randn(1, 10, generator=generator)
            z = correlation**0.5 * common + (1 - correlation) ** 0.5 * torch.randn(100, 10, generator=generator)
            true = torch.zeros(100, 10, dtype=torch.bool)
            true[:20, 0] = True
            passed = units_then_concepts(upper_tail(z + 4 * true), torch.ones(100, dtype=torch.bool), 0.05)
            selected = passed.any(1)
            false = (passed & ~true).sum(1)[selected] / passed.sum(1)[selected]
            shares.append(float(false.sum()) / max(int(selected.sum()), 1))
            found.append(float(passed[:20, 0].double().mean()))
        error = np.std(shares) / math.sqrt(len(shares))
        assert np.mean(shares) <= 0.05 + 3 * error
        assert np.mean(found) > 0.6

    def test_adjusted_p_values_equal_the_definition(self) -> None:
        p = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 2
        adjusted = benjamini_hochberg(p)
        for level in (0.01, 0.05, 0.2, 0.5):
            ordered = p.sort().values
            passing = [k for k in range(1, 31) if ordered[k - 1] <= level * k / 30]
            bar = float(ordered[max(passing) - 1]) if passing else -1.0
            assert torch.equal(adjusted <= level, p <= bar)

    def test_simes_p_values_are_not_smaller_than_uniform(self) -> None:
        p = torch.rand(20000, 12, generator=torch.Generator().manual_seed(2))
        not_smaller_than_uniform(simes(p))

    def test_dead_units_are_not_tested(self) -> None:
        p = torch.full((4, 3), 1e-9)
        live = torch.tensor([True, False, True, False])
        assert torch.equal(units_then_concepts(p, live, 0.05).any(1), live)
        assert not units_then_concepts(p, torch.zeros(4, dtype=torch.bool), 0.05).any()

    def test_exceedance_of_null_data_is_not_smaller_than_uniform(self) -> None:
        generator = torch.Generator().manual_seed(3)
        values = torch.randn(4000, 200, generator=generator).round(decimals=1)  # with ties
        p = torch.stack([exceedance(row[:1], row[1:]) for row in values]).flatten()
        not_smaller_than_uniform(p)
