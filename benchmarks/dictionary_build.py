"""What building a dictionary costs beside decoding its pictures and writing its files, on faces of CelebA's size.

Run: ``python benchmarks/dictionary_build.py``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from lightning_hnd import RenderedFaces
from lightning_hnd.building import SourceOptions, build_dictionary
from lightning_hnd.building.landmarks import MEAN_FACE
from lightning_hnd.building.pictures import open_picture


def make_celeba(root: Path, faces: int, size: tuple[int, int]) -> list[Path]:
    """Drawn faces in the layout of CelebA, with labels at chance and the mean face's landmarks."""
    from PIL import Image

    folder = root / "img_align_celeba"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures, _ = RenderedFaces.sample(faces, seed=0).draw(size)
    landmarks = MEAN_FACE * size[1] / 4 + (size[1] / 2, size[0] * 0.45)
    names = ("Smiling", "Eyeglasses", "Big_Nose", "Arched_Eyebrows", "No_Beard", "High_Cheekbones", "Wearing_Lipstick")
    labels = rng.choice([-1, 1], (faces, len(names)))
    rows, points = [str(faces), " ".join(names)], [",".join(["image", *(f"{a}{i}" for i in range(68) for a in "xy")])]
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(folder / f"{i:06d}.jpg")
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(paths[-1], quality=95)
        rows.append(f"{paths[-1].name} " + " ".join(map(str, labels[i])))
        points.append(",".join([paths[-1].name, *(f"{v:.2f}" for v in (landmarks + rng.normal(size=2)).ravel())]))
    (root / "list_attr_celeba.txt").write_text("\n".join(rows))
    (root / "landmarks_68.csv").write_text("\n".join(points))
    return paths


def seconds(do: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of processors."""
    start, started = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - start, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=2000)
    parser.add_argument("--height", type=int, default=218)
    parser.add_argument("--width", type=int, default=178)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = make_celeba(root, args.faces, (args.height, args.width))
        source = SourceOptions("celeba", root)

        def decode() -> None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda path: open_picture(path.read_bytes()), paths))

        def build(to: Path) -> None:
            build_dictionary(to, [source], per_concept=args.faces, progress=False)  # so that all faces are used

        def copy(contents: dict[Path, bytes], to: Path) -> None:
            """As many files of the same contents, in as many folders: what the layout costs by itself."""
            for path, data in contents.items():
                (to / path).parent.mkdir(parents=True, exist_ok=True)
                (to / path).write_bytes(data)

        decoding, building, copying = [], [], []
        for i in range(args.repeats):
            out = root / f"out{i}"
            decoding.append(seconds(decode))
            building.append(seconds(partial(build, out)))
            contents = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
            copying.append(seconds(partial(copy, contents, root / f"copy{i}")))
        masks = sum(1 for path in contents if path.suffix == ".png" and path.name != "original.png")
    print(f"{args.faces} pictures of {args.width} x {args.height} with {masks} masks, best of {args.repeats}")
    for k, what in enumerate(("by the clock", "of processor time")):
        d, b, c = (min(run[k] for run in runs) for runs in (decoding, building, copying))
        print(f"{what}: decoding {d:.2f} s, writing as many files {c:.2f} s, building {b:.2f} s:")
        print(f"    {b / d:.1f} times decoding, {b / (d + c):.1f} times decoding and writing")


if __name__ == "__main__":
    main()
