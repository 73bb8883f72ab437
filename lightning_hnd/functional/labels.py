r"""Labels of images against each other: what each says that the others do not, and what it does to units.

The *effect* of a label on a unit is :math:`2\,\mathrm{AUC} - 1`: 1 if the unit responds more to every image with the
label than to any without, 0 if the label makes no difference, -1 if it responds less to all. It rests on ranks, so that
no unit counts for more because its activations are large, and a dead unit counts for nothing.

Notation beyond the package's: ``n`` images that carry labels of one kind, ``L`` labels of them, each the presence of a
local concept or the membership in a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.functional.ranks import rank_share

LEAST_IMAGES = 5
"""Images with, and images without a label that a test takes at the least."""

LEAST_TOLERANCE = 0.1
"""A label of which less than this share of its variance is left once the others are known cannot be told from them."""

LEAST_LEFT = 0.01
"""Of an image's noise: labels that leave less are taken to leave this much."""


def span(label: Tensor) -> Tensor:
    """An orthonormal basis of what labels ``[n, L]`` and a constant span: ``[n, r]`` float64."""
    columns = torch.cat([torch.ones(len(label), 1, dtype=torch.float64, device=label.device), label.double()], dim=1)
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    spanning: Tensor = left[:, values > 1e-6 * values[:1]]  # none where there is no image
    return spanning


def unexplained(values: Tensor, basis: Tensor) -> Tensor:
    """What a basis ``[n, r]`` leaves of values ``[n, U]``: residuals of least squares."""
    return torch.addmm(values, basis, basis.T @ values, alpha=-1)


def told_apart(label: Tensor, basis: Tensor) -> Tensor | None:
    """What others do not explain of a label ``[n]``; None where it cannot be told from them.

    That is where fewer than five images have it or have it not, or the others explain more than 90 % of its variance,
    or say too much for so few images.

    Args:
        label: ``[n]`` bool.
        basis: ``[n, r]``, the :func:`span` of the others.
    """
    n, inside = len(label), int(label.sum())
    if min(inside, n - inside) < LEAST_IMAGES or basis.shape[1] > n // 2:
        return None
    left = label.double()
    left = left - basis @ (basis.T @ left)
    enough = float(left.square().sum()) >= LEAST_TOLERANCE * inside * (n - inside) / n
    return left if enough else None


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


def contrasts(label: Tensor, concept: Tensor) -> Contrasts:
    r"""Finds what each label says that the labels of other concepts do not.

    With :math:`\tilde x_l` what is left of label ``l`` once the labels of *other* concepts are taken out (residuals of
    least squares), :math:`c_l = \tilde x_l / |\tilde x_l|^2`. Without others :math:`c_l^T y` is a difference of means.

    Args:
        label: ``[n, L]`` bool.
        concept: ``[L]`` int64; labels of equal numbers are groups of one concept, which are not held fixed for each
            other.

    Returns:
        The contrasts. Which labels cannot be told :func:`told_apart` says.

    Raises:
        ValueError: If shapes disagree.
    """
    if label.ndim != 2 or label.shape[1] != len(concept):
        raise ValueError(f"label must be [n, {len(concept)}], images by labels, got {tuple(label.shape)}")
    contrast = torch.full(label.shape, torch.nan, dtype=torch.float64, device=label.device)
    for i in range(label.shape[1]):
        left = told_apart(label[:, i], span(label[:, concept != concept[i]]))
        if left is not None:
            contrast[:, i] = left / left.square().sum()
    return Contrasts(contrast, span(label))


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


def label_effects(share: Tensor, contrast: Tensor) -> Tensor:
    r"""The effect of each label on each unit, other concepts held fixed: ``[U, L]`` in -1..1, NaN if it cannot be told.

    :math:`e_{ul} = 2 \sum_i c_{il} r_{iu}`, which is :math:`2\,\mathrm{AUC} - 1` where there are no other concepts.

    Args:
        share: ``[n, U]``, as in :class:`Labelled`.
        contrast: ``[n, L]``, likewise.
    """
    return twice_difference(share, contrast).clamp(-1, 1)


def twice_difference(scores: Tensor, contrast: Tensor) -> Tensor:
    """Twice the difference that each label makes to scores ``[n, S]``: ``[S, L]``, NaN where it cannot be told."""
    if not len(scores):
        return contrast.new_full((scores.shape[1], contrast.shape[1]), torch.nan)
    difference: Tensor = 2 * scores.T @ contrast
    return difference
