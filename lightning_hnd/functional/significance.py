"""Whether a unit's response says anything: test statistics in closed form, and how many of them may be believed.

Three questions, each with its own null hypothesis:

- *associated*: :func:`partial_rank_test` (labels mean next to nothing once other labels are known), and its like for
  groups (nothing),
- *placed*: :func:`exchanged_masks_test` (any face's mask would do as well as this face's own),
- *learnt*: :func:`exceedance` (units of networks with fresh weights do as well).

All statistics are one-sided, the larger the more, and standard normal under their null hypothesis (or, where that is a
range, at its end). NaN says that the question does not apply, or that the images cannot answer it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.functional.host import positions
from lightning_hnd.functional.labels import LEAST_IMAGES, LEAST_LEFT, span, told_apart
from lightning_hnd.functional.ranks import ranks_and_step, weight_below

LEAST_EFFECT = 0.025
"""Partial rank correlation up to which a label counts as meaningless: less than a thousandth of the variance of ranks.

With enough images any correlation differs from 0. Hodges and Lehmann (1954) test against a range of what does not
matter instead.
"""

_LEAST_SPREAD = 1e-5  # of projections of maps of norm 1 over faces: less is how float32 rounds them


class RankTest(NamedTuple):
    """The outcome of a rank test.

    Attributes:
        z: Standard normal where the effect is the largest that counts as none, smaller below; NaN where that cannot
            be told.
        effect: How much labels mean: 0 if nothing, 1 at most.
        auc: The probability that an image with the label makes the unit respond more than one without, ties counted
            half; other labels are not considered.
    """

    z: Tensor
    effect: Tensor
    auc: Tensor


def partial_rank_test(response: Tensor, label: Tensor, others: Tensor, least: float = LEAST_EFFECT) -> RankTest:
    r"""Tests whether responses are higher with a label, among images that are alike in the other labels.

    Responses are replaced by their mid-ranks :math:`r`, the label by what the other labels do not explain of it,
    :math:`\tilde x` (residuals of least squares). With :math:`e` the residuals of the ranks on the other labels,

    .. math:: z = \min\Big(
        \frac{\sum_i \tilde x_i e_i - d |\tilde x| |e| - \delta}{|\tilde x| |e| / \sqrt{n - L - 1}},\;
        t_\nu^{-1}\Big(\frac{\sum_i \tilde x_i e_i - d |\tilde x| |e| - \delta}{\sqrt{\sum_i \psi_i^2}}\Big),\;
        \frac{\sum_i \tilde x_i e_i - \delta}{\sqrt{\sum_i \tilde x_i^2 e_i^2}}\Big).

    The effect is the partial rank correlation :math:`\tilde x^T e / |\tilde x| |e|`, the null hypothesis that it is
    :math:`d` at most. With 0 for that and without other labels the first is Wilcoxon's rank sum test, with ``L + 1``
    the rank of a constant and the other labels: its variance is that of noise alike in all images.

    The second is for responses that spread more in one class than in the other. Ranks hang together, and what an image
    contributes is :math:`\tilde x_i e_i - b_i` (Hoeffding 1948), with :math:`b_i` the sum of :math:`\tilde x` over the
    images that rank lower, equals counted half; :math:`\psi_i` is what all labels, this one too, leave of it, divided
    by the share that they leave of any image's (MacKinnon and White's HC3, 1985). Without others that is nearly Brunner
    and Munzel's test (2000), whose degrees of freedom :math:`\nu` it has: :math:`t_\nu^{-1}` stands for the normal
    quantile of where the value lies in Student's distribution. By the third, of White's variance (1980), a handful of
    images cannot make a unit significant; as these cannot tell an effect of :math:`d` from none, they are asked for one
    above 0. Discreteness cannot help either: :math:`\delta` is half the largest step between ranks that follow each
    other (1/2 without ties). Where the first is 0 at most, so is the minimum, and the first stands for it.

    Where the label changes nothing there are no more small p-values than there should be. Where it changes the spread
    alone, tenfold for 16 of 200 images, up to 1.4 times as many are below 0.002. At the end of the range, an effect of
    :math:`d`, up to 1.2 times as many are below 0.01 where 10 to 30 of 2,000 images have the label, a few of which make
    all of the effect, and 1.6 times with 30 of 10,000.

    Args:
        response: ``[n, U]``.
        label: ``[n]`` bool.
        others: ``[n, L]`` bool.
        least: :math:`d`, the effect up to which a label counts as meaningless.

    Returns:
        The test of each unit, ``[U]`` float64. NaN for all if there are fewer than five images with or without the
        label, or the others explain more than 90 % of its variance or say too much for so few images: the label cannot
        be told from them (:func:`~lightning_hnd.functional.labels.told_apart`). Only the AUC needs no others.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.significance import partial_rank_test
        >>> smiling = torch.arange(40) % 2 == 0
        >>> response = torch.stack([torch.arange(40.0), torch.arange(40.0) + 100 * smiling], dim=1)
        >>> test = partial_rank_test(response, smiling, torch.zeros(40, 0, dtype=torch.bool))
        >>> [round(z, 1) for z in test.z.tolist()], [round(auc, 2) for auc in test.auc.tolist()]
        ([-0.4, 5.2], [0.47, 1.0])
    """
    return Contrast.of(label, others).of_ranks(*ranks_and_step(response.t()), least)


class Contrast(NamedTuple):
    """A label against others: what :func:`partial_rank_test` needs of the images, for many units at a time.

    Attributes:
        label: ``[n]`` bool.
        basis: ``[n, rank]`` float64, an orthonormal basis of a constant and the other labels.
        left: ``[n]`` float64, what they do not explain of the label; all 0 if that is too little to tell it from them.
    """

    label: Tensor
    basis: Tensor
    left: Tensor

    @classmethod
    def of(cls, label: Tensor, others: Tensor) -> Contrast:
        """Prepares :func:`partial_rank_test`, which says what the arguments are."""
        basis = span(others)
        left = told_apart(label, basis)
        return cls(label, basis, torch.zeros_like(label, dtype=torch.float64) if left is None else left)

    def of_ranks(self, ranks: Tensor, step: Tensor, least: float = LEAST_EFFECT) -> RankTest:
        """The test of what :func:`~lightning_hnd.functional.ranks.ranks_and_step` makes of ``U`` rows ``[U, n]``."""
        label, basis, left = (part.to(ranks) for part in self)
        n, inside = len(label), int(label.sum())
        undecided = torch.full_like(step, torch.nan)
        if min(inside, n - inside) < LEAST_IMAGES:
            return RankTest(undecided, undecided, undecided)
        auc = (ranks @ label / inside - (inside + 1) / 2) / (n - inside)
        if not bool(left.any()):
            return RankTest(undecided, undecided, auc)
        residual = torch.addmm(ranks, ranks @ basis, basis.t(), alpha=-1)
        total, square = residual @ left, residual.square()
        norm = (square.sum(1) * left.square().sum()).sqrt()
        tied = square.amax(1) < 1e-12
        above = total - step / 2
        beyond = above - least * norm
        z = torch.where(tied, 0.0, _over(beyond, norm.square() / max(1, n - basis.shape[1])))
        seems = positions(z > 0)  # no other variance makes a difference where there is none
        if len(seems):
            unequal, freedom = self._unequal(ranks[seems], residual[seems], tied=bool((step != 1).any()))
            of_each = _student_as_normal(_over(beyond[seems], unequal), freedom)
            of_handful = _over(above[seems], square[seems] @ left.square())
            z[seems] = torch.minimum(z[seems], torch.minimum(of_each, of_handful))
        return RankTest(z, torch.where(tied, 0.0, total / norm.clamp(min=1e-12)), auc)

    def _unequal(self, ranks: Tensor, residual: Tensor, *, tied: bool) -> tuple[Tensor, Tensor]:
        """The variance of :meth:`of_ranks` where noise is not alike in all images, and its degrees of freedom."""
        label, basis, left = (part.to(ranks) for part in self)
        n, inside = len(label), int(label.sum())
        share = (residual * left).sub_(weight_below(ranks, left.unsqueeze(1), tied=tied)[0])
        known = torch.cat([basis, left.unsqueeze(1) / torch.linalg.vector_norm(left)], dim=1)
        share = torch.addmm(share, share @ known, known.t(), alpha=-1)
        share /= (1 - known.square().sum(1)).clamp(min=LEAST_LEFT)
        of_each = share.square_()
        unequal, inner = of_each.sum(1), of_each @ label  # of those with the label
        freedom = unequal.square() / (inner.square() / (inside - 1) + (unequal - inner).square() / (n - inside - 1))
        return unequal, torch.nan_to_num(freedom).clamp(min=min(inside, n - inside) - 1)  # the least that these can be

    def difference(self, response: Tensor) -> Tensor:
        """How much more each of ``[U, n]`` responses is with the label than without, the others held fixed: ``[U]``.

        NaN where the label cannot be told from the others.
        """
        left = self.left.to(response)
        return response @ left / left.square().sum()

    def standardised_difference(self, response: Tensor) -> Tensor:
        """:meth:`difference`, in standard deviations of what all labels leave of the response: ``[U]``."""
        basis, left = self.basis.to(response), self.left.to(response)
        made, square = self.difference(response), response.square().sum(1)
        rest = square - (response @ basis).square().sum(1) - made.square() * left.square().sum()
        return made / residual_spread(rest, square, len(left) - basis.shape[1] - 1)


def _over(value: Tensor, variance: Tensor) -> Tensor:
    return value / variance.clamp(min=1e-12).sqrt()


def residual_spread(rest: Tensor, square: Tensor, freedom: int) -> Tensor:
    """The standard deviation of residuals, from their squares added up; not 0.

    Args:
        rest: Any shape, those squares, as differences of sums that may be larger by far.
        square: Likewise, the squares of responses.
        freedom: Responses, less the numbers fitted to them.
    """
    return (torch.maximum(rest, 1e-12 * square).clamp(min=1e-200) / max(1, freedom)).sqrt()


def strongest(z: Tensor, share: Tensor) -> Tensor:
    """The strongest of several statistics, as one that is standard normal at most: Bonferroni's, with weights.

    Args:
        z: ``[..., n]``, each standard normal under its null hypothesis, dependent in any way.
        share: ``[n]``, of the error that each may make; they add up to 1.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.significance import strongest, upper_tail
        >>> z = strongest(torch.tensor([3.0, 0.0, 1.0, -2.0]), torch.full((4,), 0.25))
        >>> round(float(upper_tail(z) / upper_tail(torch.tensor(3.0))), 6)
        4.0
    """
    p = (torch.special.ndtr(-z.double()) / share).amin(-1)
    found: Tensor = -torch.special.ndtri(p.clamp(min=1e-300, max=1 - 1e-15))
    return found


class MaskTest(NamedTuple):
    """The outcome of :func:`exchanged_masks_test`; NaN with fewer than ten faces, or masks that do not differ.

    Attributes:
        z: ``[...]``, standard normal if any face's mask would do as well.
        effect: ``[...]``, the mean correlation, in which modes count as much as masks differ along them.
        correlation: ``[..., K]``, that of each mode.
        share: ``[..., K]``, how much each of them counts in ``z``; 0 where maps do not vary but by rounding.
    """

    z: Tensor
    effect: Tensor
    correlation: Tensor
    share: Tensor


def exchanged_masks_test(
    powers: Sequence[Tensor], product: Tensor, count: Tensor, weight: Tensor, kurtosis: Tensor
) -> MaskTest:
    r"""Tests whether a unit's maps go with the masks of their own faces, rather than with any face's.

    Masks of a concept differ from face to face along a few *modes* (their principal components: further left, lower,
    wider). With :math:`a_{ik}` the map of face ``i`` projected on mode ``k``, :math:`s_k` its standard deviation over
    faces, :math:`l_{ik}` the coefficient of the face's mask, of mean 0 and variance 1 and uncorrelated between modes,
    and :math:`r_k` the correlation of the two,

    .. math:: t = \sqrt{n - 1} \sum_k v_k r_k, \qquad v_k \propto w_k / s_k, \qquad \sum_k v_k^2 = 1.

    If masks are exchanged between faces, the :math:`s_k` stay as they are, and ``t`` has mean 0 and variance 1 exactly
    (Hoeffding 1951). With :math:`w_k` the standard deviations of the modes these weights are best for a faint copy of
    the mask in whatever else the unit does: modes along which that varies much count less.

    Where a unit fires in few faces, and few masks are unlike all others, ``t`` is not normal: large values are more
    frequent. Exchange gives a correlation the excess kurtosis :math:`(\kappa_a - 3)(\kappa_l - 3) / n` (Pitman 1937);
    if modes are odd in the same faces that of ``t`` is

    .. math:: \kappa = \frac{1}{n} \Big(\sum_k v_k^2 \sqrt{(\kappa_{ak} - 3)_+ (\kappa_{lk} - 3)_+}\Big)^2.

    Student's distribution of :math:`\nu = 4 + 6 / \kappa` degrees of freedom has it, too, and takes the place of the
    normal one: ``z`` is the normal quantile of where ``t`` lies in it (Wallace 1959),
    :math:`\frac{8 \nu + 1}{8 \nu + 3} \sqrt{\nu \log(1 + t^2 / (\nu - 2))}` with the sign of ``t``.

    Args:
        powers: ``[..., K]`` each, sums over faces of :math:`a_{ik}`, of maps whose norm is 1, and of its second, third
            and fourth power.
        product: ``[..., K]``, of :math:`a_{ik} l_{ik}`.
        count: ``[...]``, faces ``n``.
        weight: ``[..., K]``.
        kurtosis: ``[..., K]``, :math:`\kappa_{lk}`, mean fourth power of :math:`l_{ik}`.

    Returns:
        The test, in float64; the effect is :math:`\sum_k w_k r_k / \sum_k w_k`.
    """
    n = count.clamp(min=1).unsqueeze(-1)
    mean, square, cube, fourth = (power / n for power in powers)
    variance = (square - mean.square()).clamp(min=0)
    scale = n * variance.sqrt()  # coefficients have the sum of squares n
    varies = scale > _LEAST_SPREAD * n
    correlation = torch.where(varies, product / scale.clamp(min=1e-12), 0.0)
    share = torch.where(varies, weight / scale.clamp(min=1e-12), 0.0)
    share = share / torch.linalg.vector_norm(share, dim=-1, keepdim=True).clamp(min=1e-30)
    of_maps = fourth - 4 * mean * cube + 6 * mean.square() * square - 3 * mean.pow(4)
    odd = ((of_maps / variance.clamp(min=1e-24).square() - 3).clamp(min=0) * (kurtosis - 3).clamp(min=0)).sqrt()
    excess = (share.square() * torch.where(varies, odd, 0.0)).sum(-1).square() / n.squeeze(-1)
    undecided = (count < 2 * LEAST_IMAGES) | (weight.sum(-1) == 0)
    z = _as_normal((count - 1).clamp(min=0).sqrt() * (share * correlation).sum(-1), excess)
    effect = (weight * correlation).sum(-1) / weight.sum(-1).clamp(min=1e-12)
    of_modes = (torch.where(undecided.unsqueeze(-1), torch.nan, part) for part in (correlation, share))
    return MaskTest(*(torch.where(undecided, torch.nan, part) for part in (z, effect)), *of_modes)


def _as_normal(t: Tensor, excess: Tensor) -> Tensor:
    """The normal quantiles of values of Student's distribution, scaled to variance 1, of some excess kurtosis."""
    freedom = 4 + 6 / excess.clamp(min=1e-6)
    return _student_as_normal(t * (freedom / (freedom - 2)).sqrt(), freedom)


def _student_as_normal(t: Tensor, freedom: Tensor) -> Tensor:
    """The normal quantiles of values of Student's distribution (Wallace 1959)."""
    size = (freedom * (t.square() / freedom).log1p()).sqrt()
    return (size * (8 * freedom + 1) / (8 * freedom + 3)).copysign(t)


def upper_tail(z: Tensor) -> Tensor:
    """One-sided p-values of standard normal statistics; NaN where a question is not asked."""
    p: Tensor = torch.special.ndtr(-z.double())
    return p


def exceedance(observed: Tensor, null: Tensor) -> Tensor:
    """p-values against a sample of the null: ``(1 + how many are at least as large) / (1 + how many there are)``.

    Args:
        observed: Any shape; NaN gives 1.
        null: ``[n]``.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.significance import exceedance
        >>> exceedance(torch.tensor([5.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    ordered = null.double().sort().values
    wanted = observed.double()
    below = torch.searchsorted(ordered, torch.where(wanted.isnan(), -torch.inf, wanted))
    return (1 + len(null) - below).double() / (1 + len(null))


def simes(p: Tensor) -> Tensor:
    """One p-value for each family of hypotheses in the last dimension: ``min over k of n p_(k) / k`` (Simes 1986).

    Args:
        p: ``[..., n]``; NaN where a question is not asked, which does not count.

    Returns:
        ``[...]``; NaN for a family in which nothing is asked.
    """
    count = (~p.isnan()).sum(-1, keepdim=True)
    scaled = p.sort(-1).values * count / torch.arange(1, p.shape[-1] + 1, device=p.device)  # NaN is sorted last
    least: Tensor = torch.nan_to_num(scaled, nan=1.0).amin(-1).clamp(max=1)
    return torch.where(count.squeeze(-1) > 0, least, torch.nan)


def benjamini_hochberg(p: Tensor) -> Tensor:
    """Adjusted p-values: those at or below a level are believed at that false discovery rate (1995).

    Controls the rate under independence or positive regression dependence (Benjamini and Yekutieli 2001).

    Args:
        p: ``[..., n]``, each row on its own; NaN where a question is not asked, which does not count and stays NaN.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.significance import benjamini_hochberg
        >>> benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03, 0.5]))
        tensor([0.0400, 0.0533, 0.0533, 0.5000])
    """
    count = (~p.isnan()).sum(-1, keepdim=True)
    ordered, order = p.sort(-1)  # NaN comes last
    raw = torch.nan_to_num(ordered * count / torch.arange(1, p.shape[-1] + 1, device=p.device), nan=torch.inf)
    adjusted = raw.flip(-1).cummin(-1).values.flip(-1).clamp(max=1)
    return torch.where(p.isnan(), torch.nan, torch.empty_like(adjusted).scatter_(-1, order, adjusted))


def units_then_concepts(p: Tensor, live: Tensor, level: float) -> Tensor:
    """Which pairs of units and concepts to believe: units are tested first, concepts within those that passed.

    Each unit's p-value is Simes' over its concepts. Of units Benjamini and Hochberg's procedure selects ``R`` out of
    ``U``; in each of those it runs over concepts at ``level R / U``. This controls the mean, over selected units, of
    the share of false concepts (Benjamini and Bogomolov 2014), for units that are independent or positively dependent.

    Args:
        p: ``[U, C]``; NaN where a question is not asked. A unit that is asked nothing counts no more than a dead one.
        live: ``[U]`` bool, dead units are not tested.
        level: The rate.

    Returns:
        ``[U, C]`` bool.
    """
    passed = torch.zeros_like(p, dtype=torch.bool)
    if p.shape[1] == 0 or not bool(live.any()):
        return passed
    tested = p[live]
    units = simes(tested)
    selected = benjamini_hochberg(units) <= level
    share = selected.sum() / (~units.isnan()).sum().clamp(min=1)
    passed[live] = (benjamini_hochberg(tested) <= level * share) & selected[:, None]
    return passed
