"""The method written out per image, unit and label, sharing no code with the package: slow, plain, the truth."""

from __future__ import annotations

import numpy as np


def upsample(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clamped bilinear interpolation, pixel by pixel, in the type of ``grid``: vertical first."""
    h, w = grid.shape
    out = np.empty((height, width), grid.dtype)
    for y in range(height):
        top, ty = place(y, h, height)
        for x in range(width):
            left, tx = place(x, w, width)
            y0, y1 = max(top, 0), min(top + 1, h - 1)
            x0, x1 = max(left, 0), min(left + 1, w - 1)
            ty_, tx_ = grid.dtype.type(ty), grid.dtype.type(tx)
            a = mix(grid[y0, x0], grid[y1, x0], ty_)
            b = mix(grid[y0, x1], grid[y1, x1], ty_)
            out[y, x] = mix(a, b, tx_)
    return out


def place(pixel: int, cells: int, pixels: int) -> tuple[int, float]:
    numerator = (2 * pixel + 1) * cells - pixels
    return numerator // (2 * pixels), (numerator % (2 * pixels)) / (2 * pixels)


def mix(a, b, t):
    value = a + (b - a) * t
    return min(max(value, min(a, b)), max(a, b))


def counts(activations, thresholds, masks, mask_image, mask_concept, num_concepts):
    """Intersection, firing area, mask area and mask area where firing, each [U, C]."""
    units = activations.shape[1]
    result = np.zeros((4, units, num_concepts), np.int64)
    for image in range(activations.shape[0]):
        own = [m for m in range(len(masks)) if mask_image[m] == image]
        for u in range(units):
            fires = upsample(activations[image, u], *masks.shape[1:]).astype(np.float64) > thresholds[u]
            for m in own:
                c = mask_concept[m]
                result[0, u, c] += np.sum(fires & masks[m])
                result[1, u, c] += np.sum(fires)
                result[2, u, c] += np.sum(masks[m])
                result[3, u, c] += np.sum(masks[m]) if fires.any() else 0
    return result


def iou(activations, thresholds, masks, mask_image, mask_concept, num_concepts, firing_only):
    intersection, firing, mask, mask_firing = counts(
        activations, thresholds, masks, mask_image, mask_concept, num_concepts
    )
    union = firing + (mask_firing if firing_only else mask) - intersection
    return np.divide(intersection, union, out=np.zeros(union.shape), where=union > 0)


def mid_rank(values: list[float], i: int) -> float:
    below = sum(v < values[i] for v in values)
    equal = sum(v == values[i] for v in values)
    return below + (equal + 1) / 2


def responses(peaks, low, high, members):
    """Mean of rank share times normalised peak over the members of each class."""
    result = np.zeros(members.shape[1])
    if high == low:
        return result
    for c in range(members.shape[1]):
        terms = [
            mid_rank(list(peaks), i) / len(peaks) * (peaks[i] - low) / (high - low)
            for i in range(len(peaks))
            if members[i, c]
        ]
        result[c] = np.mean(terms) if terms else 0.0
    return result


def concept_affinity(peak, low, high, carries, iou, concept_region, iou_threshold):
    units, num_concepts = iou.shape
    region, probability = np.full(units, -1), np.zeros((units, num_concepts))
    for u in range(units):
        best = int(np.argmax(iou[u]))
        if iou[u, best] <= iou_threshold:
            continue
        region[u] = concept_region[best]
        inside = np.flatnonzero(concept_region == region[u])
        images = [i for i in range(len(peak)) if carries[i, inside].any()]
        score = responses(peak[images, u], low[u], high[u], carries[images][:, inside]) * iou[u, inside]
        probability[u, inside] = score / score.sum() if score.sum() > 0 else 0
    return region, probability


def group_affinity(peak, low, high, group, num_groups):
    units = peak.shape[1]
    probability = np.zeros((units, num_groups))
    for u in range(units):
        members = group[:, None] == np.arange(num_groups)
        score = responses(peak[:, u], low[u], high[u], members)
        probability[u] = score / score.sum() if score.sum() > 0 else 0
    return probability
