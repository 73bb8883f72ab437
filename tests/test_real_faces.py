"""A real smile classifier on a real dictionary. Both are research data that cannot be shipped: skipped without them."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_hnd import PAPER, FaceDictionary, dissect

REAL = Path(os.environ.get("HND_REAL_DATA", Path(__file__).parents[2] / "shared" / "real"))

pytestmark = pytest.mark.skipif(
    not (REAL / "models/celeba_smile.pth").is_file(), reason=f"no real faces at {REAL}; set HND_REAL_DATA to have them"
)


class SmileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [3, 32, 64, 128, 256]
        layers = [m for a, b in pairwise(widths) for m in (nn.Conv2d(a, b, 4, 2, 1), nn.ReLU())]
        self.conv = nn.Sequential(*layers)
        self.fc = nn.Linear(256 * 16 * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


@pytest.fixture(scope="module")
def faces() -> FaceDictionary:
    """Every third row of Attributes.csv followed by Parts.csv: 500 images."""
    whole = FaceDictionary.from_folder(REAL / "visual_dictionary", size=256)
    rows = [(whole.source == PAPER.kinds.index(kind)).nonzero().flatten() for kind in ("attribute", "part")]
    return whole.subset(torch.cat(rows)[::3])


def test_the_smile_classifier(faces: FaceDictionary) -> None:
    """Against figures of a plain implementation of the method."""
    assert len(faces) == 500
    model = SmileNet()
    model.load_state_dict(torch.load(REAL / "models/celeba_smile.pth", weights_only=True, map_location="cpu"))
    layer = dissect(model, faces, "conv.7", level=None)["conv.7"]
    assert int(layer.dead.sum()) in (121, 122)
    expected = {254: ("Smiling", 0.0545), 246: ("Mustache", 0.0488), 87: ("left_brow", 0.045)}
    expected |= {181: ("left_brow", 0.041), 203: ("Mouth_Slightly_Open", 0.035)}
    best = np.argsort(-layer.iou.max(1))[:5]
    assert best.tolist() == list(expected)
    for unit in best:
        name, iou = expected[int(unit)]
        assert PAPER.local[int(layer.iou[unit].argmax())].name == name
        assert layer.iou[unit].max() == pytest.approx(iou, abs=1e-3)


def test_fresh_weights_have_no_unit_over_the_bar(faces: FaceDictionary) -> None:
    torch.manual_seed(0)
    layer = dissect(SmileNet(), faces, "conv.7", level=None)["conv.7"]
    assert layer.iou.max() < 0.04
    assert not layer.interpretable.any()
