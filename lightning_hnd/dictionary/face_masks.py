"""Where concepts show in rendered faces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_hnd.dictionary.drawing import Window, ellipse
from lightning_hnd.dictionary.face_parts import Brows, Eyes, Head, Mouth, Nose

if TYPE_CHECKING:
    from lightning_hnd.dictionary.faces import RenderedFaces


def areas(faces: RenderedFaces, concepts: Sequence[str], masks: Tensor) -> None:
    """Draws the masks of concepts.

    Args:
        faces: N faces.
        concepts: Local concepts of the paper.
        masks: ``[N, len(concepts), H, W]`` bool, where to.
    """
    frame = masks.shape[-2], masks.shape[-1]
    pose = faces.pose(frame)
    whole = Window.frame(pose, frame)
    window = Window.around(pose, whole, (0, 0.4), (1.3, 2.0))
    n, rows, columns = window.index(whole)
    for c, name in enumerate(concepts):
        masks[n, c, rows, columns] = _area(name, faces, window.u, window.v)


def _area(name: str, faces: RenderedFaces, u: Tensor, v: Tensor) -> Tensor:
    s = u.abs()
    side = u < 0 if name.startswith("left_") else u > 0
    if name.endswith("_brow"):
        brows = Brows.of(faces)
        t = brows.along(s)
        return side & ((v - brows.line(t)).abs() < brows.half(t))
    if name.endswith("_eye"):
        eyes = Eyes.of(faces)
        return side & (eyes.outside(eyes.along(s), v) < 0.02)
    if name.endswith("_cheek"):
        return side & (ellipse(s - 0.68, v - 0.62, 0.3, 0.34) < 1)
    if name == "nose":
        return Nose.of(faces).outside(s, v) < 0
    if name == "mouth":
        return _mouth(Mouth.of(faces), u, v, 0.0)
    flipped = faces.replace(**{name: ~faces.carries([name])[:, 0]})
    if name in {"AU_1", "AU_2", "AU_4", "Arched_Eyebrows", "Bushy_Eyebrows"}:
        return ellipse(s - 0.5, v + 0.35, 0.5, 0.3) < 1
    if name in {"AU_5", "Narrow_Eyes", "Eyeglasses", "AU_6", "Bags_Under_Eyes"}:
        return ellipse(s - 0.5, v - 0.05, 0.5, 0.35) < 1
    if name in {"Big_Nose", "Pointy_Nose", "AU_9"}:
        return (Nose.of(faces).outside(s, v) < 0) | (Nose.of(flipped).outside(s, v) < 0)
    if name in {"High_Cheekbones", "Rosy_Cheeks"}:
        return ellipse(s - 0.68, v - 0.62, 0.34, 0.38) < 1
    if name == "Mustache":
        return ellipse(u, v - 0.9, 0.45, 0.2) < 1
    if name in {"Goatee", "AU_17", "AU_26", "Double_Chin"}:
        return ellipse(u, v - 1.6, 0.6, 0.45) < 1
    if name in {"No_Beard", "5_o_Clock_Shadow"}:
        return (Head.of(faces).inside(u, v) < 1) & (v > 0.6)
    return _mouth(Mouth.of(faces), u, v, 0.05) | _mouth(Mouth.of(flipped), u, v, 0.05)


def _mouth(mouth: Mouth, u: Tensor, v: Tensor, margin: float) -> Tensor:
    q2 = (u / mouth.width).square()
    return (q2 < (1 + 2 * margin)) & (v > mouth.top(q2) - margin) & (v < mouth.bottom(q2) + margin)
