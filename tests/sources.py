"""Made-up data sets on disk, in the layouts of real ones: drawn faces with landmarks, labels and true masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lightning_hnd.building.landmarks import MEAN_FACE
from lightning_hnd.building.shapes import Points

ATTRIBUTES = ("Smiling", "Male", "Eyeglasses", "Young", "No_Beard")


def landmarks_in(size: tuple[int, int], seed: int) -> Points:
    """The mean face, a little elsewhere and turned for each seed, in a picture ``(H, W)``."""
    rng = np.random.default_rng(seed)
    height, width = size
    scale, turn = min(height, width) / 4 * rng.uniform(0.9, 1.1), rng.uniform(-0.15, 0.15)
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return MEAN_FACE @ rotate * scale + (width * rng.uniform(0.45, 0.55), height * rng.uniform(0.33, 0.38))


def draw_face(size: tuple[int, int], seed: int) -> Image.Image:
    """A blob of skin colour with noise, different for each seed."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 60, (*size, 3))
    y, x = np.mgrid[: size[0], : size[1]]
    inside = ((x / size[1] - 0.5) / 0.35) ** 2 + ((y / size[0] - 0.5) / 0.45) ** 2 < 1
    picture[inside] += np.array([150, 110, 90]) if seed % 2 else np.array([60, 40, 25])
    return Image.fromarray(picture.astype(np.uint8))


def landmark_row(name: str, points: Points) -> str:
    return ",".join([name, *(f"{value:.2f}" for value in points.ravel())])


LANDMARK_HEADER = ",".join(["image_id", *(f"{axis}{i}" for i in range(68) for axis in "xy")])


def make_celeba(root: Path, faces: int = 12, size: tuple[int, int] = (109, 89)) -> Path:
    """``img_align_celeba``, ``list_attr_celeba.txt`` and ``landmarks_68.csv``."""
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    attributes, landmarks = [f"{faces}", " ".join(ATTRIBUTES) + " "], [LANDMARK_HEADER]
    for i in range(faces):
        name = f"{i + 1:06d}.jpg"
        draw_face(size, i).save(folder / name, quality=90)
        values = [1 if (i >> bit) & 1 else -1 for bit in range(len(ATTRIBUTES))]
        attributes.append(f"{name} " + " ".join(f"{value:2d}" for value in values))
        landmarks.append(landmark_row(name, landmarks_in(size, i)))
    (root / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (root / "landmarks_68.csv").write_text("\n".join(landmarks) + "\n")
    return root


def make_utkface(root: Path, faces: int = 48) -> Path:
    """Every age group, gender and race, over and over."""
    root.mkdir(parents=True)
    for i in range(faces):
        age, gender, race = (10, 30, 50, 70)[i % 4], i // 4 % 2, i // 8 % 3
        draw_face((100, 100), 1000 + i).save(root / f"{age}_{gender}_{race}_{i:017d}.jpg.chip.jpg")
    return root


def make_facesynthetics(root: Path, faces: int = 3, size: int = 128) -> Path:
    """Label maps drawn by hand: ellipses and boxes about the landmarks."""
    root.mkdir(parents=True)
    y, x = np.mgrid[:size, :size] + 0.5
    for i in range(faces):
        points = landmarks_in((size, size), i)
        draw_face((size, size), 2000 + i).save(root / f"{i:06d}.png")
        ids = np.zeros((size, size), np.uint8)
        ids[((x - points[30, 0]) / 50) ** 2 + ((y - points[30, 1]) / 60) ** 2 < 1] = 1
        areas = {2: slice(27, 36), 3: slice(42, 48), 4: slice(36, 42), 5: slice(22, 27), 6: slice(17, 22)}
        for number, where in {**areas, 10: slice(48, 60)}.items():
            low, high = points[where].min(0) - 1, points[where].max(0) + 1
            ids[(x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1])] = number
        Image.fromarray(ids).save(root / f"{i:06d}_seg.png")
        lines = [f"{px:.3f} {py:.3f}" for px, py in [*points, points[36:42].mean(0), points[42:48].mean(0)]]
        (root / f"{i:06d}_ldmks.txt").write_text("\n".join(lines))
    return root
