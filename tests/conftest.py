"""Fixtures: a small dictionary in memory, and one on disk in the released layout, both drawn here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pair import Pair
from PIL import Image

from lightning_hnd import PAPER, FaceDictionary
from lightning_hnd.dictionary.masks import PackedMasks

torch.set_num_threads(1)  # what is computed here is small: threads would wait for each other, seven times as long


def write_picture(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture(scope="session", autouse=True)
def packed_dictionaries_lie_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither beside real faces nor in the cache of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HND_CACHE", str(tmp_path_factory.mktemp("packed")))
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two attribute images, one part image, two faces of two groups; no action units at all."""
    root = tmp_path / "visual_dictionary"
    random = np.random.default_rng(0)
    for name, (height, width) in {"000001": (20, 30), "000002": (40, 24)}.items():
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        write_picture(root / f"attributes/{name}/original.png", picture, format="JPEG")
        write_picture(root / f"attributes/{name}/lm.png", picture)  # not data
    mask = np.zeros((20, 30), np.uint8)
    mask[:10] = 255
    write_picture(root / "attributes/000001/Smiling.png", mask)
    write_picture(root / "attributes/000001/Eyeglasses.png", np.stack([mask.T[:30].T] * 3, -1))  # RGB
    (root / "Attributes.csv").write_text(
        "image,labels\n"
        "attributes/000001/original.png,attributes/000001/Smiling.png;attributes/000001/Eyeglasses.png\n"
        "attributes/000002/original.png,\n"
    )
    (root / "Action_Units.csv").write_text("image,labels\n")
    write_picture(root / "parts/7/original.png", random.integers(0, 256, (16, 16), np.uint8))  # grey
    nose = np.zeros((16, 16), np.uint8)
    nose[6:10, 6:10] = 1
    write_picture(root / "parts/7/nose.png", nose)
    (root / "Parts.csv").write_text("image,labels\nparts/7/original.png,parts/7/nose.png\n")
    for group, age in (("Male", "30"), ("Female", "31")):
        face = random.integers(0, 256, (12, 12, 3), np.uint8)
        write_picture(root / f"non_localizable/Gender/{group}/{age}.jpg", face)
    (root / "non_localizable/labels.csv").write_text("image,age,gender\nnon_localizable/Gender/Male/30.jpg,30,Male\n")
    return root


def random_dictionary(images: int = 24, size: tuple[int, int] = (24, 32), seed: int = 0) -> FaceDictionary:
    """Noise with random masks: two thirds local (attributes and parts), a third with genders and ages."""
    generator = torch.Generator().manual_seed(seed)
    local = images * 2 // 3
    kind = torch.arange(local) % 2
    source = torch.full((images,), -1)
    source[:local] = torch.where(kind == 0, PAPER.kinds.index("attribute"), PAPER.kinds.index("part"))
    carries = torch.rand(local, len(PAPER.local), generator=generator) < 0.4
    carries &= torch.tensor(PAPER.concept_kind) == source[:local, None]
    image, concept = carries.nonzero(as_tuple=True)
    masks = torch.nn.functional.interpolate(torch.rand(1, len(image), 4, 4, generator=generator), size)[0] < 0.3
    group = torch.full((images, len(PAPER.global_)), -1)
    group[local:, PAPER.global_index("gender")] = torch.arange(images - local) % 2
    group[local:, PAPER.global_index("age")] = torch.arange(images - local) % 4
    return FaceDictionary(
        ontology=PAPER,
        pictures=torch.randint(0, 256, (images, 3, *size), generator=generator, dtype=torch.uint8),
        source=source,
        group=group,
        masks=PackedMasks.pack(masks),
        mask_image=image,
        mask_concept=concept,
        names=tuple(map(str, range(images))),
        labels=({},) * images,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )


@pytest.fixture
def dictionary() -> FaceDictionary:
    return random_dictionary()


class _Pairs:
    """The two processes, started when a test first asks for them, and again after one in which they hung."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self.pair: Pair | None = None

    def get(self) -> Pair:
        if self.pair is None or not self.pair.alive:
            self.pair = Pair(self._factory.mktemp("pair"))
        return self.pair


@pytest.fixture(scope="session")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Pairs]:
    pairs = _Pairs(tmp_path_factory)
    yield pairs
    if pairs.pair is not None:
        pairs.pair.close()


@pytest.fixture
def pair(_pairs: _Pairs) -> Pair:
    return _pairs.get()
