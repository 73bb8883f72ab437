"""How well masks drawn from landmarks agree with true masks, and with another rendering: see docs/dictionaries.md.

Run: ``python benchmarks/dictionary_masks.py --facesynthetics DIR --celebamask-hq DIR --celeba DIR --dictionary DIR``,
each where you have it. IoU is pooled over the faces that show a part. CelebAMask-HQ has no landmarks of its own:
``--landmarks FILE`` gives 68 that a detector made, with columns ``image, x0, y0, ... x67, y67``.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_hnd.building import SourceOptions
from lightning_hnd.building.drawing import Mask
from lightning_hnd.building.faces import Face
from lightning_hnd.building.geometry import areas
from lightning_hnd.building.landmarks import Points, five_of, from_five
from lightning_hnd.building.parts import Regions, five_points
from lightning_hnd.building.pictures import open_picture
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources import READERS
from lightning_hnd.building.writing import concept_masks

PARTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "eyes": (("eye_1", "eye_2"), ("left_eye", "right_eye")),
    "nose": (("nose",), ("nose",)),
    "mouth": (("mouth",), ("mouth",)),
    "brows": (("brow_1", "brow_2"), ("left_brow", "right_brow")),
}


class Overlap:
    """Pooled intersections and unions by name."""

    def __init__(self) -> None:
        self.both: dict[str, int] = defaultdict(int)
        self.either: dict[str, int] = defaultdict(int)

    def add(self, name: str, ours: Mask, theirs: Mask) -> None:
        """Counts the pixels of two masks."""
        self.both[name] += int((ours & theirs).sum())
        self.either[name] += int((ours | theirs).sum())

    def iou(self) -> dict[str, float]:
        """By name."""
        return {name: self.both[name] / max(self.either[name], 1) for name in self.either}


def faces_of(kind: str, root: Path, landmarks: Path | None = None) -> list[Face]:
    return READERS[kind](SourceOptions(kind, root, landmarks=landmarks), Findings())


def drawn(landmarks: Points, size: tuple[int, int], names: tuple[str, ...]) -> Mask:
    """The union of parts; what is hidden behind the nose is no part of it."""
    masks = [areas(landmarks, size, [name])[0].get(name) for name in names]
    union: Mask = np.logical_or.reduce([np.zeros(size, np.bool_), *(mask for mask in masks if mask is not None)])
    return union


def with_landmarks(face: Face, regions: Regions) -> Iterator[tuple[str, Points]]:
    """The sets of landmarks that there are of a face, in pixels of its masks."""
    size = next(iter(regions.values())).shape
    if face.landmarks is not None:
        height, width = open_picture(face.picture.read_bytes()).size
        landmarks = face.landmarks.astype(np.float64) * (size[1] / width, size[0] / height)
        yield "68 landmarks", landmarks
        yield "five of them", from_five(five_of(landmarks))
    if (points := five_points({name: mask for name, mask in regions.items() if mask.any()})) is not None:
        yield "five points taken from the true masks", points


def against_true_masks(kind: str, root: Path, landmarks_file: Path | None) -> None:
    overlaps: dict[str, Overlap] = defaultdict(Overlap)
    count: dict[str, int] = defaultdict(int)
    for face in faces_of(kind, root, landmarks_file):
        assert face.regions is not None
        regions = face.regions()
        for what, landmarks in with_landmarks(face, regions):
            count[what] += 1
            for part, (true, names) in PARTS.items():
                truth = np.logical_or.reduce([regions[name] for name in true])
                if truth.any():
                    height, width = truth.shape
                    overlaps[what].add(part, drawn(landmarks, (height, width), names), truth)
    for what, overlap in overlaps.items():
        iou = overlap.iou()
        print(f"| {kind}, {count[what]} faces, {what} | " + " | ".join(f"{iou[part]:.2f}" for part in PARTS) + " |")


def against_a_dictionary(celeba: Path, dictionary: Path) -> None:
    faces = {face.picture.stem: face for face in faces_of("celeba", celeba)}
    overlap, compared, equal = Overlap(), 0, 0
    for table, kind in (("Attributes.csv", "attribute"), ("Parts.csv", "part")):
        with (dictionary / table).open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if Path(row["image"]).parent.name in faces]
        for row in rows:
            face = faces[Path(row["image"]).parent.name]
            masks = {Path(path).stem: path for path in row["labels"].split(";") if path}
            compared, equal = compared + 1, equal + (masks.keys() == face.kinds[kind])
            for name, path in masks.items():
                with Image.open(dictionary / path) as image:
                    theirs = np.asarray(image.convert("L")) > 0
                size = theirs.shape[0], theirs.shape[1]
                ours, _ = concept_masks(face, size, size, frozenset((name,)))
                overlap.add(name, ours.get(name, np.zeros_like(theirs)), theirs)  # our geometry may hide it
    print(f"{compared} images in both, {equal} with equal labels")
    for name, iou in sorted(overlap.iou().items(), key=lambda item: -item[1]):
        print(f"| {name} | {iou:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("facesynthetics", "celebamask-hq", "celeba", "dictionary"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--landmarks", type=Path, help="68 landmarks of CelebAMask-HQ's pictures")
    args = parser.parse_args()
    print("| | " + " | ".join(PARTS) + " |")
    if args.facesynthetics is not None:
        against_true_masks("facesynthetics", args.facesynthetics, None)
    if args.celebamask_hq is not None:
        against_true_masks("celebamask_hq", args.celebamask_hq, args.landmarks)
    if args.celeba is not None and args.dictionary is not None:
        against_a_dictionary(args.celeba, args.dictionary)


if __name__ == "__main__":
    main()
