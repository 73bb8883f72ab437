"""The activation threshold of a unit: Stage II.1 of the method."""

from __future__ import annotations

import math

from torch import Tensor


def activation_threshold(activations: Tensor, quantile: float) -> Tensor:
    """Value that a fraction ``quantile`` of a unit's activations over all images and positions exceed.

    Exactly ``numpy.quantile(values, 1 - quantile)`` in float64 (linear interpolation between order
    statistics), found by a partial sort: ``torch.quantile`` refuses more than 16 M values.

    Args:
        activations: ``[N, U, h, w]``, finite.
        quantile: Fraction of values above the threshold, in (0, 1).

    Returns:
        ``[U]`` float64.

    Raises:
        ValueError: If ``quantile`` is not in (0, 1) or ``activations`` is not of four dimensions or is empty.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional import activation_threshold
        >>> activation_threshold(torch.arange(101.0).reshape(101, 1, 1, 1), quantile=0.05)
        tensor([95.], dtype=torch.float64)
    """
    if activations.ndim != 4 or activations.numel() == 0:
        raise ValueError(f"activations must be [N, U, h, w] and not empty, got {tuple(activations.shape)}")
    values = activations.transpose(0, 1).flatten(1)
    return quantile_from_top(values, values.shape[1], quantile)


def order_statistic(num_values: int, quantile: float) -> tuple[int, float]:
    """Which order statistics the quantile lies between.

    The lower of the two is the ``k``-th largest value: whoever holds the ``k`` largest of a unit's values
    holds its exact threshold.

    Args:
        num_values: How many values there are in all.
        quantile: Fraction of values above the threshold, in (0, 1).

    Returns:
        ``k``, counted from 1, and how far the quantile lies from it towards the next larger value, in [0, 1).

    Raises:
        ValueError: If ``quantile`` is not in (0, 1).
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile must lie between 0 and 1 (exclusive), got {quantile}")
    position = (num_values - 1) * (1 - quantile)  # numpy's expression, so that rounding agrees with numpy's
    lower = math.floor(position)
    return num_values - lower, position - lower


def quantile_from_top(values: Tensor, num_values: int, quantile: float) -> Tensor:
    """The threshold, from each unit's largest values.

    Args:
        values: ``[U, n]``, of each unit at least the ``k`` largest values, ``k`` as :func:`order_statistic` says.
        num_values: How many values each unit has in all.
        quantile: Fraction of values above the threshold, in (0, 1).

    Returns:
        ``[U]`` float64.
    """
    k, fraction = order_statistic(num_values, quantile)
    # the k-th largest and the one above it; without sorting the others
    nearest = values.topk(k, dim=1, sorted=False).values.topk(min(k, 2), dim=1, largest=False).values.double()
    low, high = nearest[:, 0], nearest[:, -1]
    # numpy interpolates from the nearer end; the same here gives the same last bit
    return low + (high - low) * fraction if fraction < 0.5 else high - (high - low) * (1 - fraction)
