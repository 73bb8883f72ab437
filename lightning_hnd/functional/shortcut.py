"""Whether a layer takes one label for another: a shortcut, in numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.functional.encoding import LEVEL
from lightning_hnd.functional.labels import (
    LEAST_LEFT,
    Contrasts,
    Labelled,
    label_effects,
    twice_difference,
    unexplained,
)
from lightning_hnd.functional.ranks import rank_share


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
    Each is linear in the labels of its own images and has a variance that is known, :math:`V_c` and :math:`V_t`: that
    of White (1980), which allows for unequal spreads, but at least that of noise alike in all images, for a few with
    a label may lie together by chance. They add up,

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
        >>> from lightning_hnd.functional.labels import labelled
        >>> from lightning_hnd.functional.shortcut import shortcut
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
        total += (unexplained(one, first.basis)[both.first] * unexplained(other, second.basis)[both.second]).sum(1)
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
    residual = unexplained(scores, shown.basis) * (n / max(1, n - spanned)) ** 0.5
    square, weight = residual.square().T, shown.contrast.square()
    variance = 4 * torch.maximum(square @ weight, square.mean(1, keepdim=True) * weight.sum(0))
    return twice_difference(scores, shown.contrast), variance, residual
