"""Vision transformers in training: what the callback finds on a grid is what the tokens, laid out, come to."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_dictionary
from runs import Net, data, trainer
from torch import Tensor, nn

from lightning_hnd import HNDCallback, dissect

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


class Vit(Net):
    """Twelve patches as tokens, of eight pixels on a side, with a class token before them or without."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 1)
        self.first = nn.Parameter(torch.zeros(1, int(class_token), 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.block(torch.cat([self.first.expand(len(x), -1, -1), tokens], dim=1)).mean(1))[:, 0]


class LaidOut(nn.Module):
    """The same network, ending in maps."""

    def __init__(self, vit: Vit) -> None:
        super().__init__()
        self.vit, self.maps = vit, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.vit.patch(x).flatten(2).transpose(1, 2)
        outputs = self.vit.block(torch.cat([self.vit.first.expand(len(x), -1, -1), tokens], dim=1))
        return self.maps(outputs[:, self.vit.first.shape[1] :].transpose(1, 2).unflatten(2, (3, 4)))


@pytest.mark.parametrize("class_token", [True, False])
def test_the_callback_dissects_tokens_as_maps_of_the_grid(tmp_path: Path, class_token: bool) -> None:
    torch.manual_seed(0)
    net, faces = Vit(class_token), random_dictionary(60)
    fresh = {"fresh_seeds": (1,), "factory": partial(Vit, class_token)}
    callback = HNDCallback(faces, "block", grid=(3, 4), **fresh)
    run = trainer(tmp_path, callback, max_epochs=1)
    run.fit(net, *data())
    assert callback.latest is not None
    assert callback.latest != callback.baseline
    found, again = callback.latest["block"], dissect(net, faces, "block", grid=(3, 4), **fresh)["block"]
    assert found == again
    maps = dissect(LaidOut(net), faces, "maps")["maps"]
    assert not maps.dead.any()
    for name, expected in maps.statistics.items():
        np.testing.assert_allclose(found.statistics[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    score = run.callback_metrics["hnd/block/readme/mean_probability/gender/Male"]
    assert float(score) == pytest.approx(maps.group_probability[:, faces.ontology.global_index("gender") + 3].mean())
