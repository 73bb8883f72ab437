"""Draws ``landmark-areas.png``: the area of every concept on a drawn face.

Run: ``python docs/draw_geometry.py``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lightning_hnd.building.geometry import AREAS, areas
from lightning_hnd.building.landmarks import MEAN_FACE
from lightning_hnd.concepts import PAPER

SIZE, SCALE, MIDDLE = (300, 280), 82.0, (140.0, 105.0)
LINES = [
    (range(17), False),
    (range(17, 22), False),
    (range(22, 27), False),
    (range(27, 31), False),
    (range(31, 36), False),
    (range(36, 42), True),
    (range(42, 48), True),
    (range(48, 60), True),
    (range(60, 68), True),
]
COLOURS = {"Eye": "#2a6fdb", "Cheek": "#e0782f", "Nose": "#3a9d5d", "Mouth": "#c8374a", "Chin": "#8455b8"}


def main() -> None:
    """Draws the picture."""
    face = MEAN_FACE * SCALE + MIDDLE
    names = [c for region in PAPER.regions for c in PAPER.local if c.region == region]
    figure, axes = plt.subplots(5, 8, figsize=(16, 11.4))
    for axis in axes.flat:
        axis.axis("off")
    masks, hidden = areas(face, SIZE, list(AREAS))
    assert not hidden, hidden
    for axis, concept in zip(axes.flat, names, strict=False):
        draw_face(axis, face)
        axis.contourf(masks[concept.name], levels=[0.5, 1], colors=[COLOURS[concept.region]], alpha=0.45)
        axis.contour(masks[concept.name], levels=[0.5], colors=[COLOURS[concept.region]], linewidths=1)
        axis.set_title(concept.name, fontsize=10)
    axis = axes.flat[-1]
    draw_face(axis, face)
    for i, (x, y) in enumerate(face):
        axis.text(x, y, str(i), fontsize=4, ha="center", va="center", color="#c8374a")
    axis.set_title("the 68 landmarks", fontsize=10)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("landmark-areas.png"), dpi=75)


def draw_face(axis: plt.Axes, face: np.ndarray) -> None:
    """A line drawing by landmarks."""
    for points, closed in LINES:
        line = face[[*points, points[0]] if closed else list(points)]
        axis.plot(*line.T, color="#444444", linewidth=1)
    turn = np.linspace(np.pi, 2 * np.pi, 40)
    axis.plot(
        MIDDLE[0] + 1.13 * SCALE * np.cos(turn), MIDDLE[1] + 1.1 * SCALE * np.sin(turn), color="#444444", linewidth=1
    )
    axis.set_xlim(0, SIZE[1])
    axis.set_ylim(SIZE[0], 0)
    axis.set_aspect("equal")


if __name__ == "__main__":
    main()
