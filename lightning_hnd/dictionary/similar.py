"""Pictures that look alike: copies after another compression, size or brightness, or a slight crop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

SIDE = 12
"""Cells along a side of the picture that are compared with their neighbours."""

ALIKE, CORRELATED = 0.15, 0.97
"""Copies differ in at most so large a share of bits, and their thumbnails correlate at least so much. On 2,401 faces of
UTKFace the 22 pairs that pass are copies, judged by eye; of different faces some differ in 0.10 of the bits, but none
correlates above 0.96 then."""

_ROWS = 2048  # compared with all others at a time


def thumbnail(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """``[SIDE + 1, SIDE + 1]`` uint8, grey: all that is compared of a picture."""
    return np.asarray(picture.convert("L").resize((SIDE + 1, SIDE + 1), Image.Resampling.BOX))


def difference_hash(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether each cell is darker than the next one, to the right and below ("dHash": N. Krawetz, 2013).

    Args:
        thumbnails: ``[N, SIDE + 1, SIDE + 1]``.

    Returns:
        ``[N, 2 * SIDE ** 2]``.
    """
    here = thumbnails[:, :-1, :-1]
    right, below = thumbnails[:, :-1, 1:] > here, thumbnails[:, 1:, :-1] > here
    return np.concatenate([right.reshape(len(here), -1), below.reshape(len(here), -1)], axis=1)


def families(thumbnails: npt.NDArray[np.uint8]) -> list[list[int]]:
    """Sets of two pictures or more that are copies of each other, or nearly.

    Args:
        thumbnails: ``[N, SIDE + 1, SIDE + 1]``, as :func:`thumbnail` gives them.

    Returns:
        Positions, ascending in each set.

    Example:
        >>> import numpy as np
        >>> from lightning_hnd.dictionary.similar import SIDE, families
        >>> faces = np.random.default_rng(0).integers(0, 200, (3, SIDE + 1, SIDE + 1)).astype(np.uint8)
        >>> families(np.concatenate([faces, faces[1:2] + 20]))
        [[1, 3]]
    """
    if len(thumbnails) < 2:
        return []
    whole = np.ascontiguousarray(thumbnails).reshape(len(thumbnails), -1).view(f"V{thumbnails[0].size}").ravel()
    _, first, place = np.unique(whole, return_index=True, return_inverse=True)  # many equal ones are no more work
    family = _joined(_pairs(thumbnails[first]), len(first))[place]
    order = np.argsort(family, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(family[order])) + 1)
    return sorted(members.tolist() for members in sets if len(members) > 1)


def _pairs(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """``[P, 2]``, those that are alike."""
    bits = difference_hash(thumbnails)
    signs = torch.from_numpy(bits).float() * 2 - 1  # of K bits, those that differ are (K - product of signs) / 2
    least = bits.shape[1] * (1 - 2 * ALIKE) - 1e-3
    found = []
    for first in range(0, len(signs), _ROWS):
        agree = signs[first : first + _ROWS] @ signs[first:].T >= least
        found.append(agree.triu(1).nonzero() + first)
    pairs = torch.cat(found).numpy() if found else np.empty((0, 2), np.int64)
    grey = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    grey -= grey.mean(1, keepdims=True)
    grey /= np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6)
    close: npt.NDArray[np.int64] = pairs[(grey[pairs[:, 0]] * grey[pairs[:, 1]]).sum(1) >= CORRELATED]
    return close


def _joined(pairs: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """``[count]``, one number for all that pairs connect (union-find)."""
    of = list(range(count))

    def root(i: int) -> int:
        while of[i] != i:
            of[i] = i = of[of[i]]
        return i

    for a, b in pairs.tolist():
        of[root(b)] = root(a)
    return np.array([root(i) for i in range(count)], np.int64)
