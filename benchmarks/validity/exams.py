"""Exams: activations of planted units over a dictionary, in which everything is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from plants import Plant, plant
from torch import Tensor, nn
from torch.nn import functional
from truth import Truth, real, rendered

from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary

NULLS = 5
"""Networks with fresh weights that a rule may compare with: other seeds than those of the exam."""

WIDTHS = (32, 64, 128, 256)
"""Channels of the network of the real half: four times a convolution of kernel 4 and stride 2, and ReLU."""


@dataclass(frozen=True)
class Exam:
    """What a rule gets to see, and the truth.

    Attributes:
        half: ``rendered`` or ``real``.
        setting: What is special about it; ``base`` for nothing.
        seed: Of all chance.
        faces: The dictionary.
        maps: ``[N, U, h, w]`` float32.
        fresh: The same of networks with fresh weights, in which nothing is planted.
        plants: What each unit is.
    """

    half: str
    setting: str
    seed: int
    faces: FaceDictionary
    maps: Tensor
    fresh: tuple[Tensor, ...]
    plants: tuple[Plant, ...]

    def batches(self, maps: Tensor, size: int = 256) -> Iterator[tuple[Tensor, DictionaryBatch]]:
        """Maps with the labels of their images."""
        for batch in self.faces.batches(size):
            yield maps[batch.index], batch


class Setting(NamedTuple):
    """How an exam differs from the base.

    Attributes:
        signal: Strength of the signal, in standard deviations of the unit without it over all positions.
        images: With local labels.
        cells: Of the maps, on a side.
        correlation: Of confounds, where faces are rendered.
        aligned: Whether the faces are, where they are rendered.
        layer: Of the real half's network, from 0: which convolution's output.
        everybody: Whether photographs labelled in age, gender and ethnicity are shown, too, not in skin tone alone.
        told: Whether ``labels.csv`` tells the groups of faces with local labels, too, where they are rendered.
    """

    signal: float = 2.0
    images: int = 1000
    cells: int = 16
    correlation: float = 0.3
    aligned: bool = True
    layer: int = 2
    everybody: bool = False
    told: bool = False


RENDERED: dict[str, Setting] = {
    "base": Setting(),
    "signal 1": Setting(signal=1.0),
    "signal 4": Setting(signal=4.0),
    "500 images": Setting(images=500),
    "8 x 8": Setting(cells=8),
    "28 x 28": Setting(cells=28),
    "confounds 0.6": Setting(correlation=0.6),
    "confounds 0.9": Setting(correlation=0.9),
    "not aligned": Setting(aligned=False),
    "confounds 0.6, groups told": Setting(correlation=0.6, told=True),
}
REAL: dict[str, Setting] = {
    "base": Setting(images=1500),
    "signal 1": Setting(images=1500, signal=1.0),
    "signal 4": Setting(images=1500, signal=4.0),
    "500 images": Setting(images=500),
    "conv.7, 8 x 8": Setting(images=1500, cells=8, layer=3),
    "conv.3, 32 x 32": Setting(images=1500, cells=32, layer=1),
    "all groups": Setting(images=500, everybody=True),
}
MODERATE = (
    "base",
    "500 images",
    "8 x 8",
    "28 x 28",
    "confounds 0.6",
    "not aligned",
    "conv.7, 8 x 8",
    "conv.3, 32 x 32",
    "all groups",
)
"""Settings in which the signal is moderate and what is asked can be told from the labels."""


def rendered_exam(name: str, seed: int, each: int) -> Exam:
    """An exam on drawn faces: smooth noise, a different level in each face, and signals, rectified.

    Args:
        name: One of :data:`RENDERED`.
        seed: Of all chance.
        each: Units of each kind.
    """
    setting = RENDERED[name]
    truth = _rendered(setting.correlation, seed, setting.aligned, setting.told).first(setting.images)
    cells = (setting.cells, setting.cells)
    plants, signals = plant(truth, cells, each, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    maps = _noise(tuple(signals.shape), generator).add_(signals, alpha=setting.signal).relu_()
    few = (len(signals), 48, *cells)
    fresh = tuple(_noise(few, generator).relu_() for _ in range(NULLS))
    return Exam("rendered", name, seed, truth.faces, maps, fresh, tuple(plants))


@lru_cache(maxsize=3)
def _rendered(correlation: float, seed: int, aligned: bool, told: bool) -> Truth:
    return rendered(1000, correlation, seed, aligned=aligned, told=told)


def _noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Of variance 1: for the most part smooth, with a level of its own in each face."""
    n, units, height, width = shape
    field = torch.randn(n, units, height + 2, width + 2, generator=generator)
    field = functional.avg_pool2d(field, 3, 1) * 3  # the mean of nine, brought back to variance 1
    level = torch.randn(n, units, 1, 1, generator=generator)
    return field.mul_(0.95).add_(level, alpha=(1 - 0.95**2) ** 0.5)


def network(seed: int) -> nn.Sequential:
    """The convolutions of the network of the real half, with fresh weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            layer
            for before, after in zip((3, *WIDTHS), WIDTHS, strict=False)
            for layer in (nn.Conv2d(before, after, 4, 2, 1), nn.ReLU())
        ]
        return nn.Sequential(*layers).eval()


@torch.no_grad()
def activations(net: nn.Sequential, faces: FaceDictionary) -> dict[str, Tensor]:
    """What comes out of the last three convolutions after rectification: ``[N, U, h, w]`` float16 by their number."""
    out: dict[str, list[Tensor]] = {"1": [], "2": [], "3": []}
    for batch in faces.batches(32):
        maps = batch.images
        for i in range(len(WIDTHS)):
            maps = net[2 * i : 2 * i + 2](maps)
            if i:
                out[str(i)].append(maps.half())
    return {layer: torch.cat(parts) for layer, parts in out.items()}


class RealHalf:
    """Exams on photographs: activations of networks with fresh weights, and signals.

    Networks are run once and kept in ``cache``.

    Args:
        path: The dictionary.
        cache: A folder for activations; a few hundred megabytes for each network.
    """

    def __init__(self, path: Path, cache: Path) -> None:
        self._path = path
        self._cache = cache
        self._truth: dict[bool, Truth] = {}
        cache.mkdir(parents=True, exist_ok=True)

    def truth(self, everybody: bool = False) -> Truth:
        """The faces, the same in every exam; what is made up is, too."""
        if everybody not in self._truth:
            self._truth[everybody] = real(self._path, 0, size=128, everybody=everybody)
        return self._truth[everybody]

    def exam(self, name: str, seed: int, each: int) -> Exam:
        """An exam on photographs.

        Args:
            name: One of :data:`REAL`.
            seed: Of the network and of all chance.
            each: Units of each kind; all together, not more than live units are left.
        """
        setting = REAL[name]
        whole = self.truth(setting.everybody)
        truth = whole.first(setting.images)
        rows = torch.tensor([whole.faces.names.index(image) for image in truth.faces.names])
        plants, signals = plant(truth, (setting.cells, setting.cells), each, seed)
        generator = torch.Generator().manual_seed(2000 + seed)
        maps = self._maps(seed, setting)[rows]
        spread = maps.flatten(2).transpose(0, 1).flatten(1).float().std(1)
        live = (spread > 0).nonzero().flatten()
        # more plants than units: units serve several times, each time alone
        order = torch.cat([live[torch.randperm(len(live), generator=generator)] for _ in range(8)])[: len(plants)]
        planted = maps[:, order].float() + setting.signal * spread[order][:, None, None] * signals.float()
        fresh = tuple(self._maps(100 + i, setting)[rows].float() for i in range(NULLS))
        return Exam("real", name, seed, truth.faces, planted.clamp_(min=0), fresh, tuple(plants))

    def _maps(self, seed: int, setting: Setting) -> Tensor:
        file = self._cache / f"fresh-{seed}{'-everybody' if setting.everybody else ''}.pt"
        if not file.is_file():
            torch.save(activations(network(seed), self.truth(setting.everybody).faces), file)
        kept: dict[str, Tensor] = torch.load(file, weights_only=True, mmap=True)
        return kept[str(setting.layer)]
