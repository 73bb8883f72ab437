r"""How strongly a layer encodes groups, and whether it takes one label for another: bias, in numbers.

Notation beyond the package's: ``n`` images that carry labels of one kind, ``L`` labels of them, each the presence of a
local concept or the membership in a group.

Everything rests on ranks, so that no unit counts for more because its activations are large, and a dead unit counts
for nothing. The *effect* of a label on a unit is :math:`2\,\mathrm{AUC} - 1`: 1 if the unit responds more to every
image with the label than to any without, 0 if the label makes no difference, -1 if it responds less to all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.functional.affinity import mid_ranks
from lightning_hnd.functional.significance import LEAST_IMAGES, LEAST_TOLERANCE

LEVEL = 0.95
"""Of intervals."""

LEAST_LEFT = 0.01
"""Of an image's noise: labels that leave less are taken to leave this much."""

RESAMPLES = 200
"""Draws of noise."""

_AT_ONCE = 2**21  # numbers of images or units, groups and resamples that are held together
_TABLES = 4  # as large as images by units by groups, which are needed at one time


class Contrasts(NamedTuple):
    r"""What labels can be told apart on a set of images: made by :func:`contrasts`.

    Attributes:
        contrast: ``[n, L]`` float64, :math:`c` with :math:`\sum_i c_{il}\,y_i` the difference of :math:`y` between
            images with label ``l`` and those without, once the labels of other concepts are held fixed. NaN where the
            images cannot tell.
        basis: ``[n, r]`` float64, orthonormal: what all labels together span.
    """

    contrast: Tensor
    basis: Tensor

    def to(self, device: torch.device) -> Contrasts:
        """The same on a device."""
        return Contrasts(self.contrast.to(device), self.basis.to(device))


class Labelled(NamedTuple):
    """What units did on images of which labels are known.

    Attributes:
        share: ``[n, U]`` float64, :func:`rank_share` of their responses.
        contrast: ``[n, L]`` float64, as :func:`contrasts` makes it.
        basis: ``[n, r]`` float64, likewise.
    """

    share: Tensor
    contrast: Tensor
    basis: Tensor


def labelled(response: Tensor, label: Tensor, concept: Tensor) -> Labelled:
    """Prepares responses and labels of one set of images.

    Args:
        response: ``[n, U]``, the largest activation of each unit on each image, say.
        label: As for :func:`contrasts`.
        concept: Likewise.

    Raises:
        ValueError: If shapes disagree.
    """
    if len(response) != len(label):
        raise ValueError(f"response has {len(response)} images and label {len(label)}")
    return Labelled(rank_share(response), *contrasts(label, concept))


def contrasts(label: Tensor, concept: Tensor) -> Contrasts:
    r"""Finds what each label says that the labels of other concepts do not.

    With :math:`\tilde x_l` what is left of label ``l`` once the labels of *other* concepts are taken out (residuals of
    least squares), :math:`c_l = \tilde x_l / |\tilde x_l|^2`. Without others :math:`c_l^T y` is a difference of means.

    Args:
        label: ``[n, L]`` bool.
        concept: ``[L]`` int64; labels of equal numbers are groups of one concept, which are not held fixed for each
            other.

    Returns:
        The contrasts. A label cannot be told where fewer than five images have it or have it not, or others explain
        more than 90 % of its variance.

    Raises:
        ValueError: If shapes disagree.
    """
    if label.ndim != 2 or label.shape[1] != len(concept):
        raise ValueError(f"label must be [n, {len(concept)}], images by labels, got {tuple(label.shape)}")
    n, inside = len(label), label.sum(0)
    contrast = torch.full(label.shape, torch.nan, dtype=torch.float64, device=label.device)
    for i in ((inside >= LEAST_IMAGES) & (n - inside >= LEAST_IMAGES)).nonzero().flatten().tolist():
        x, others = label[:, i].double(), _span(label[:, concept != concept[i]])
        left = x - others @ (others.T @ x)
        least = LEAST_TOLERANCE * x.var(correction=0) * n
        if float(left.square().sum()) >= least and others.shape[1] <= n // 2:
            contrast[:, i] = left / left.square().sum()
    return Contrasts(contrast, _span(label))


def rank_share(values: Tensor) -> Tensor:
    """Mid-ranks along the first dimension, divided by their number and centred: in (-1/2, 1/2) ``[n, U]`` float64."""
    if not len(values):
        return values.double()
    return (mid_ranks(values) - (len(values) + 1) / 2) / len(values)


def _span(label: Tensor) -> Tensor:
    """An orthonormal basis of the labels and a constant, ``[n, r]``."""
    columns = torch.cat([torch.ones(len(label), 1, dtype=torch.float64, device=label.device), label.double()], dim=1)
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    spanning: Tensor = left[:, values > 1e-6 * values[:1]]  # none where there is no image
    return spanning


def _left(values: Tensor, basis: Tensor) -> Tensor:
    """What a basis ``[n, r]`` leaves of values ``[n, U]``: residuals of least squares."""
    return torch.addmm(values, basis, basis.T @ values, alpha=-1)


def label_effects(share: Tensor, contrast: Tensor) -> Tensor:
    r"""The effect of each label on each unit, other concepts held fixed: ``[U, L]`` in -1..1, NaN if it cannot be told.

    :math:`e_{ul} = 2 \sum_i c_{il} r_{iu}`, which is :math:`2\,\mathrm{AUC} - 1` where there are no other concepts.

    Args:
        share: ``[n, U]``, as in :class:`Labelled`.
        contrast: ``[n, L]``, likewise.
    """
    return _twice_difference(share, contrast).clamp(-1, 1)


def _twice_difference(scores: Tensor, contrast: Tensor) -> Tensor:
    """Twice the difference that each label makes to scores ``[n, S]``: ``[S, L]``, NaN where it cannot be told."""
    if not len(scores):
        return contrast.new_full((scores.shape[1], contrast.shape[1]), torch.nan)
    difference: Tensor = 2 * scores.T @ contrast
    return difference


# --------------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True, eq=False)
class Encoding:
    """How strongly the units of a layer serve the groups of one global concept.

    Attributes:
        index: 0: what chance gives; 1: every live unit serves one group alone.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Of the null hypothesis that no unit responds more to one group than to the others.
        lean: ``[G]``, the mean effect of each group over live units: 1 if all of them serve this one, -1 if all of them
            serve the others, 0 if they balance.
    """

    index: Tensor
    low: Tensor
    high: Tensor
    p: Tensor
    lean: Tensor


def encoding(shown: Labelled, live: Tensor, *, resamples: int = RESAMPLES, seed: int = 0) -> Encoding:
    r"""How strongly units serve the groups of one global concept, corrected for chance.

    A unit serves the group to which it responds more than to the others. With :math:`e_{ug}` the effects
    (:func:`label_effects`), the mean over live units

    .. math:: t = \overline{\max_g\, \max(e_{ug}, 0)^2}

    is 1 if each unit responds to every image of one group more than to any other, whichever group that is for each;
    whether they all serve the same says ``lean``. Chance makes it larger than 0: :math:`t_0`, its mean when effects are
    nothing but noise. The index is :math:`\sqrt{(t - t_0) / (1 - t_0)}`, 0 where :math:`t < t_0`: the root mean square
    of effects beyond chance.

    The noise of effects is drawn by flipping the signs of what each image adds to them, the same flip for all units and
    groups (the wild bootstrap: Wu 1986, Liu 1988),

    .. math:: e^*_{ug} = \sum_i \pm\psi_{iug}, \qquad
        \psi_{iug} = \frac{2 \left( c_{ig} \epsilon_{iu} - b_{iug} \right)_\perp}{\sqrt{1 - h_i}},

    with :math:`\epsilon` what all labels leave of the ranks. An image that ranks higher has others rank lower:
    :math:`b_{iug}` is the sum of :math:`c_g / n` over the images below this one, equals counted half (Hoeffding 1948).
    :math:`\perp` takes out again what all labels explain, and :math:`h_i`, the leverage, is the share of an image's
    noise that this takes (MacKinnon and White's HC2, 1985). So other labels may matter as much as they like, groups may
    spread unequally, labels may say more in one stratum of the others than in the next, and units depend on each other
    in any way. Exchanging groups among the images would allow for none of the first three.

    ``p`` is the share of flips with as large a ``t``. The interval is of effects to which such noise is added, centred
    on ``t``: it says what other faces of the same kind would give, not what another network would.

    Args:
        shown: Images of the concept, the labels being its groups.
        live: ``[U]`` bool.
        resamples: Flips.
        seed: Of them; equal seeds flip images alike in every epoch.

    Returns:
        The measure, float64 scalars; index and interval 0 and p 1 where no unit lives, NaN where no group can be told.
    """
    alive = shown._replace(share=shown.share[:, live])
    sums = encoding_sums([alive.share], Contrasts(*alive[1:]), resamples=resamples, seed=seed)
    return encoding_from_sums(sums, alive.share.shape[1])


class EncodingSums(NamedTuple):
    """What :func:`encoding` needs of the units: sums over them.

    Attributes:
        strength: ``[1 + 2 R]``, of the square of the largest positive effect: as found, in ``R`` draws of noise alone,
            in ``R`` of effects with noise.
        lean: ``[G]``, of effects.
    """

    strength: Tensor
    lean: Tensor


def encoding_sums(
    shares: Iterable[Tensor], shown: Contrasts, *, resamples: int = RESAMPLES, seed: int = 0
) -> EncodingSums:
    """Sums over units, a few of them and a few resamples at a time, which bounds memory. See :func:`encoding`.

    Args:
        shares: ``[n, some units]``, as in :class:`Labelled`, then others. Dead ones add nothing.
        shown: The groups of the images, and other labels of these.
        resamples: ``R``.
        seed: Of them.

    Returns:
        The sums, NaN where no group can be told.
    """
    n = len(shown.contrast)
    told = ~shown.contrast.isnan().any(0) & (n > 0)
    groups = shown._replace(contrast=shown.contrast[:, told])
    sums = shown.contrast.new_zeros(1 + 2 * resamples)
    lean = shown.contrast.new_zeros(len(told))
    flips = _flips(n, resamples, seed).to(sums.device)
    at_once = max(1, _AT_ONCE // max(1, max(n, resamples) * int(told.sum()) * _TABLES))
    for share in (some for block in shares for some in block.split(at_once, dim=1)):
        effect = label_effects(share, shown.contrast)
        lean += effect.sum(0)
        effect = effect[:, told]
        if effect.numel():
            influence = _influence(share, groups)
            noise = [few.double() @ influence.flatten(1) for few in flips.split(max(1, _AT_ONCE // n))]
            drawn = torch.cat(noise).unflatten(1, effect.shape)
            sums += _strength(torch.cat([effect.unsqueeze(0), drawn, effect + drawn]))
    return EncodingSums(sums if bool(told.any()) else sums.fill_(torch.nan), lean)


def _flips(n: int, resamples: int, seed: int) -> Tensor:
    """Signs of images, ``[R, n]`` int8: the same on every device, however many images there are beside."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (resamples, n), generator=generator, dtype=torch.int8) * 2 - 1


def _influence(share: Tensor, shown: Contrasts) -> Tensor:
    """What each image adds to the noise of effects: ``[n, U, L]``. See :func:`encoding`."""
    basis = shown.basis
    added = _left(share, basis).unsqueeze(2) * shown.contrast.unsqueeze(1) - _below(share, shown.contrast)
    left = (1 - basis.square().sum(1)).clamp(min=LEAST_LEFT).sqrt()
    influence: Tensor = _left(added.flatten(1), basis).mul_(2 / left.unsqueeze(1)).unflatten(1, added.shape[1:])
    return influence


def _below(share: Tensor, weight: Tensor) -> Tensor:
    """The mean weight ``[n, L]`` of all images that rank lower, the others counted 0, equals half: ``[n, U, L]``."""
    n, units = share.shape
    size = (weight.shape[1], units, n)
    at = (2 * n * share + n + 1).round().long().t().expand(size)  # twice the mid-ranks: 2, 3, ..., 2 n
    of_rank = weight.new_zeros(*size[:2], 2 * n + 1).scatter_add_(2, at, (weight.t() / n).unsqueeze(1).expand(size))
    return of_rank.cumsum(2).sub_(of_rank, alpha=0.5).gather(2, at).permute(2, 1, 0)


def encoding_from_sums(sums: EncodingSums, units: int) -> Encoding:
    """The measure, of the sums over all live units and how many these are. See :func:`encoding`."""
    mean = sums.strength / max(1, units)
    half = len(mean) // 2
    found, noise, resampled = mean[0], mean[1 : 1 + half], mean[1 + half :]
    chance = noise.mean()
    around = found + resampled - resampled.mean()

    def index(strength: Tensor) -> Tensor:
        beyond: Tensor = ((strength - chance) / (1 - chance)).clamp(0, 1).sqrt()
        return beyond

    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=mean.dtype, device=mean.device)
    value, (low, high) = index(found), index(around.quantile(ends))
    p = torch.where(found.isnan(), torch.nan, (1 + (noise >= found - 1e-12).sum()).double() / (1 + half))
    return Encoding(value, torch.minimum(low, value), torch.maximum(high, value), p, sums.lean / max(1, units))


def _strength(effect: Tensor) -> Tensor:
    """Effects ``[R, U, G]`` to the sum over units of the square of the largest positive one: ``[R]``."""
    return effect.clamp(0, 1).amax(-1).square().sum(-1)


# -------------------------------------------------------------------------------------------------------- shortcuts


@dataclass(frozen=True, eq=False)
class Shortcut:
    """How far units take cues for what the task is about.

    Attributes:
        index: ``[T, L]`` in -1..1, for each task label and each cue: 0 at chance.
        error: ``[T, L]``, its standard error.
        z: ``[T, L]``, standard normal if the layer does not link the two.
    """

    index: Tensor
    error: Tensor
    z: Tensor

    @property
    def p(self) -> Tensor:
        """Two-sided p-values, ``[T, L]``; 1 where it cannot be told."""
        return torch.where(self.z.isnan(), 1.0, 2 * torch.special.ndtr(-self.z.abs()))

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """Ends of 95 % intervals of the index, within -1..1."""
        reach = float(torch.special.ndtri(torch.tensor((1 + LEVEL) / 2, dtype=torch.float64))) * self.error
        return (self.index - reach).clamp(-1, 1), (self.index + reach).clamp(-1, 1)


def shortcut(task: Labelled, cue: Labelled, both: Both | None = None) -> Shortcut:
    r"""Whether a cue moves the units along the direction in which they tell the task's label.

    The *axis* of a label is the vector of its effects on the units, :math:`a_t = (e_{ut})_u`. An image's score on it,
    :math:`s_{it} = \sum_u r_{iu} e_{ut}`, says how much it looks like label ``t`` to the layer. The index is the effect
    of the cue on scores of the task's axis: :math:`2\,\mathrm{AUC} - 1` of faces with the cue against those without,
    other labels held fixed. 1: whoever carries the cue looks more like ``t`` than anybody who does not; 0: it makes no
    difference, as it must be where cue and task are independent among the faces shown and the layer keeps them apart.
    It does not depend on how many units there are, and thresholds nothing.

    The null hypothesis of ``z`` is that the layer does not link the two: the effects of the one on the units and those
    of the other have the product 0, :math:`b_{tc} = a_t^T a_c`. Up to the factor 2 this is both the difference that
    the cue makes to scores on the task's axis, and the difference that the task's label makes to scores on the cue's.
    Each is linear in the labels of its own images and has a variance that is known (White 1980, allowing for unequal
    spreads), :math:`V_c` and :math:`V_t`. They add up,

    .. math:: z_{tc} = b_{tc} \Big/ \sqrt{V_c + V_t + 2 C_{tc}},

    as in the test of an indirect effect (Sobel 1982), with :math:`C` their covariance over images that are in both, 0
    where there are none. It is too small rather than too large where units follow neither. In a layer that knows
    nothing of the task its axis is noise, and the index may be large by accident, but not ``z``.

    An image that has a part in an axis looks like what it is by its own noise. Where it is also one of those that are
    scored, and the two labels go together in these images, that alone would link the two, the more the more units
    there are. So it is taken out of the image's score: with :math:`e_{iu}` what all labels leave of :math:`r_{iu}` and
    :math:`h_i` the leverage (the share that they take of any image's noise),

    .. math:: s_{it} = \sum_u r_{iu} e_{ut} - 2\,c_{it} \sum_u \frac{e_{iu}^2}{1 - h_i}.

    This takes from :math:`b_{tc}` the mean of its noise, :math:`4 \sum_i c_{it} c_{ic} \sum_u \sigma_{iu}^2`, where
    noise is independent between images, whatever it does between units.

    Args:
        task: Images with the task's labels.
        cue: Images with the cue's labels: others, or the same. Then each must be among the labels of the other's.
        both: Which images are in both. None: all of them if the units do the same on them, else none.

    Returns:
        The measure, NaN where a label cannot be told from the others.

    Raises:
        ValueError: If the numbers of units differ.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.bias import labelled, shortcut
        >>> generator = torch.Generator().manual_seed(1)
        >>> male, glasses = torch.rand(2, 400, 1, generator=generator) < 0.5
        >>> noise = torch.randn(2, 400, 6, generator=generator)
        >>> fires_for_both = torch.tensor([1.0, 1, 1, 0, 0, 0])
        >>> one = torch.zeros(1, dtype=torch.int64)
        >>> task = labelled(noise[0] + male * fires_for_both, male, one)
        >>> linked = shortcut(task, labelled(noise[1] + glasses * fires_for_both, glasses, one))
        >>> apart = shortcut(task, labelled(noise[1] + glasses * (1 - fires_for_both), glasses, one))
        >>> [round(float(m.index), 1) for m in (linked, apart)], [float(m.p) < 0.05 for m in (linked, apart)]
        ([0.8, -0.0], [True, False])
    """
    if task.share.shape[1] != cue.share.shape[1]:
        raise ValueError(f"task has {task.share.shape[1]} units and cue {cue.share.shape[1]}; show both to one layer")
    if both is None:
        every = torch.arange(len(task.share) if torch.equal(task.share, cue.share) else 0, device=task.share.device)
        both = Both(every, every)
    of, to = Contrasts(*task[1:]), Contrasts(*cue[1:])
    noise = noise_in_both([(task.share, cue.share)], of, to, both)
    on_task = cue.share @ label_effects(task.share, task.contrast)
    on_cue = task.share @ label_effects(cue.share, cue.contrast)
    on_task -= own_part(of, both, noise, len(on_task))
    on_cue -= own_part(to, both.swapped, noise, len(on_cue))
    of_task, of_cue = moved(on_cue, of), moved(on_task, to)
    return shortcut_from_moved(of_task, of_cue, covariance(of_task, of, of_cue, to, both))


class Both(NamedTuple):
    """Images that are in two sets.

    Attributes:
        first: ``[m]`` int64, their places in the first one.
        second: ``[m]`` int64, in the second one.
    """

    first: Tensor
    second: Tensor

    @property
    def swapped(self) -> Both:
        """The same of the second set and the first."""
        return Both(self.second, self.first)


def noise_in_both(shares: Iterable[tuple[Tensor, Tensor]], first: Contrasts, second: Contrasts, both: Both) -> Tensor:
    r"""How much noise the units have on images that are in two sets: ``[m]``, sums over units of its variance.

    The product of what the labels of each set leave of an image's ranks there, divided by the share of the variance
    that both leave: :math:`e^2 / (1 - h)` where sets are the same (MacKinnon and White's HC2, 1985).

    Args:
        shares: Of some units ``[n1, some units]`` in the first set, and of the same ones ``[n2, some units]`` in the
            second one; then of others.
        first: Its labels.
        second: Likewise.
        both: The images.
    """
    of_first, of_second = first.basis[both.first], second.basis[both.second]
    total = of_first.new_zeros(len(of_first))
    if not len(total):
        return total
    for one, other in shares:
        total += (_left(one, first.basis)[both.first] * _left(other, second.basis)[both.second]).sum(1)
    taken = of_first.square().sum(1) + of_second.square().sum(1)
    taken -= ((of_first @ (of_first.T @ of_second)) * of_second).sum(1)
    return total / (1 - taken).clamp(min=LEAST_LEFT)


def own_part(axes: Contrasts, both: Both, noise: Tensor, images: int) -> Tensor:
    """What images add to their scores on axes by noise of their own: ``[n, L]``. See :func:`shortcut`.

    Args:
        axes: Labels of the images of which the axes are made.
        both: Those of these images that are scored.
        noise: ``[m]``, as :func:`noise_in_both` finds it.
        images: ``n``, how many are scored.
    """
    own = 2 * axes.contrast[both.first] * noise.unsqueeze(1)
    return own.new_zeros(images, own.shape[1]).index_add_(0, both.second, own)


class Moved(NamedTuple):
    """What ``L`` labels of some images do to ``S`` scores that a layer gives these.

    Attributes:
        difference: ``[S, L]``, twice the difference that each label makes.
        variance: ``[S, L]``, of the difference.
        effect: ``[S, L]``, as of :func:`label_effects`, on the ranks of the scores.
        spread: ``[S, L]``, the variance of the effect.
        residual: ``[S, n]``, what all labels leave of the scores, made as large as the noise is.
    """

    difference: Tensor
    variance: Tensor
    effect: Tensor
    spread: Tensor
    residual: Tensor

    def of_scores(self, which: Tensor) -> Moved:
        """Those of some scores ``[S']``."""
        return Moved(*(values[which] for values in self))


def moved(scores: Tensor, shown: Contrasts) -> Moved:
    """Measures it.

    Args:
        scores: ``[n, S]``, sums over the units, so that a layer may be gone through in parts.
        shown: The labels of the images.
    """
    effect, spread, _ = _difference(rank_share(scores), shown)
    difference, variance, residual = _difference(scores, shown)
    return Moved(difference, variance, effect, spread, residual.T)


def covariance(task: Moved, of: Contrasts, cue: Moved, to: Contrasts, both: Both) -> Tensor:
    """Of the differences that ``L`` cues make and those that ``T`` tasks make, by images that are in both: ``[T, L]``.

    Args:
        task: What labels of the task's images do to scores on the axes of cues.
        of: Labels ``[n, T]`` of the task's images.
        cue: What cues do to scores of their images on the axes of tasks.
        to: Labels ``[n, L]`` of the cue's images.
        both: Images of the task's that are also of the cue's.
    """
    on_task = cue.residual.T[both.second] * of.contrast[both.first]
    on_cue = task.residual.T[both.first] * to.contrast[both.second]
    common: Tensor = 4 * on_task.T @ on_cue
    return common


def shortcut_from_moved(task: Moved, cue: Moved, common: Tensor) -> Shortcut:
    """The measure, of what labels do to scores. See :func:`shortcut`.

    Args:
        task: What ``T`` labels of the task's images do to scores on the axes of ``L`` cues: ``[L, T]``.
        cue: What ``L`` cues do to scores of their images on the axes of ``T`` tasks: ``[T, L]``.
        common: ``[T, L]``, the :func:`covariance` of both.
    """
    variance = (cue.variance + task.variance.T + 2 * common).clamp(min=0)
    difference = task.difference.T
    z = torch.where(variance > 0, difference / variance.clamp(min=1e-30).sqrt(), 0 * difference)
    ratio = torch.where(cue.variance > 0, variance / cue.variance.clamp(min=1e-30), 0 * cue.variance)
    index = torch.where(z.isnan(), torch.nan, cue.effect.clamp(-1, 1))
    return Shortcut(index, (cue.spread * ratio).sqrt(), z)


def _difference(scores: Tensor, shown: Contrasts) -> tuple[Tensor, Tensor, Tensor]:
    """Twice the difference that labels make to scores ``[n, S]``, its variance: ``[S, L]``; residuals ``[n, S]``."""
    n, spanned = shown.basis.shape
    residual = _left(scores, shown.basis) * (n / max(1, n - spanned)) ** 0.5
    variance = 4 * residual.square().T @ shown.contrast.square()
    return _twice_difference(scores, shown.contrast), variance, residual
