"""Skin tone as the individual typology angle (ITA) of the colour of skin.

ITA = arctan((L* - 50) / b*) in degrees, of CIE L*a*b* (Chardon, Cretois, Hourseau: Skin colour typology and
suntanning pathways, Int. J. Cosmet. Sci. 13, 1991). It measures the light on a face as well as its skin: pictures are
no laboratory.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Item = TypeVar("_Item", bound=np.generic)

BRIGHT, DARK = 41.0, 10.0
"""Degrees: above the first, skin is light or very light; at or below the second, brown or dark (Chardon's classes: very
light > 55 > light > 41 > intermediate > 28 > tan > 10 > brown > -30 > dark). Between them a face has neither group."""

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(1)  # of D65
_SHARE = np.arange(256) / 255
_LINEAR = np.where(_SHARE <= 0.04045, _SHARE / 12.92, ((_SHARE + 0.055) / 1.055) ** 2.4)  # of each value of sRGB

_FEWEST_PIXELS, _MOST_PIXELS = 16, 1000

CHEEKS = ((0.55, 0.70, 0.20, 0.36), (0.55, 0.70, 0.64, 0.80))
"""Where the cheeks of aligned pictures without landmarks are: top, bottom, left, right, in shares of the picture."""


def to_lab(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """CIE L*a*b* (D65) of sRGB colours (IEC 61966-2-1).

    Args:
        rgb: ``[..., 3]``.

    Returns:
        ``[..., 3]``.

    Example:
        >>> import numpy as np
        >>> to_lab(np.array([255, 255, 255], np.uint8)).round(3).tolist()
        [100.0, 0.0, 0.0]
    """
    t = _LINEAR[rgb] @ _TO_XYZ.T / _WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
    return lab + 0.0


def typology_angle(rgb: npt.NDArray[np.uint8]) -> float | None:
    """The ITA of skin pixels, in degrees.

    The tenth of them that is darkest and the tenth that is brightest (hair, shadows, highlights) do not count. Of many
    pixels :func:`some_of` are taken.

    Args:
        rgb: ``[N, 3]``.

    Returns:
        The angle of the mean colour; None for fewer than 16 pixels, or if the mean is bluish (b* <= 0) and so no skin.
    """
    if len(rgb) < _FEWEST_PIXELS:
        return None
    lab = to_lab(some_of(rgb))
    tenth = len(lab) // 10
    light, _, blue = lab[np.argsort(lab[:, 0])[tenth : len(lab) - tenth]].mean(0)
    return float(np.degrees(np.arctan((light - 50) / blue))) if blue > 0 else None


def some_of(items: npt.NDArray[_Item]) -> npt.NDArray[_Item]:
    """Every k-th item, a thousand at most: enough to measure a colour."""
    return items[:: max(1, -(-len(items) // _MOST_PIXELS))]


def skin_tone(angle: float | None) -> str | None:
    """The paper's group of an angle: bright, dark, or None between them."""
    if angle is None or DARK < angle <= BRIGHT:
        return None
    return "bright" if angle > BRIGHT else "dark"


def cheek_boxes(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The pixels ``[N, 3]`` of both cheeks of an aligned picture ``[H, W, 3]``, by their usual place."""
    height, width = picture.shape[:2]
    boxes = [
        picture[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
        for top, bottom, left, right in CHEEKS
    ]
    return np.concatenate([box.reshape(-1, 3) for box in boxes])
