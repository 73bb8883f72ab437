"""How strongly a layer encodes groups: bias, in numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.functional.labels import LEAST_LEFT, Contrasts, Labelled, label_effects, unexplained
from lightning_hnd.functional.ranks import mid_ranks_of, weight_below

LEVEL = 0.95
"""Of intervals."""

RESAMPLES = 200
"""Draws of noise."""

_AT_ONCE = 2**21  # numbers of images or units, groups and resamples that are held together
_TABLES = 4  # as large as images by units by groups, which are needed at one time


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
    below = weight_below(mid_ranks_of(share).t(), shown.contrast / len(share)).permute(2, 1, 0)
    added = unexplained(share, basis).unsqueeze(2) * shown.contrast.unsqueeze(1) - below
    left = (1 - basis.square().sum(1)).clamp(min=LEAST_LEFT).sqrt()
    influence: Tensor = unexplained(added.flatten(1), basis).mul_(2 / left.unsqueeze(1)).unflatten(1, added.shape[1:])
    return influence


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
