"""Precision through a real Trainer: the forward runs in it, the counting does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_dictionary
from lightning.pytorch.plugins import MixedPrecision
from runs import Net, data, trainer
from torch import Tensor, nn

from lightning_hnd import Dissection, DissectionMetric, FaceDictionary, HNDCallback, dissect
from lightning_hnd.dictionary import DictionaryBatch
from lightning_hnd.evidence.evidence import Evidence
from lightning_hnd.functional.ranks import mid_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

QUANTILE = 0.1
HALF = MixedPrecision("16-mixed", "cpu")  # Trainer(precision="16-mixed") takes bfloat16 instead on the CPU


@pytest.mark.parametrize(
    ("settings", "parameters", "maps"),
    [
        ({"precision": "32-true"}, torch.float32, torch.float32),
        ({"precision": "bf16-mixed"}, torch.float32, torch.bfloat16),
        ({"precision": "bf16-true"}, torch.bfloat16, torch.bfloat16),
        ({"plugins": HALF}, torch.float32, torch.float16),
        ({"precision": "64-true"}, torch.float64, torch.float64),
    ],
    ids=["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"],
)
@pytest.mark.parametrize("budget", [2**30, 0])
@pytest.mark.filterwarnings("ignore:.*counted in a second forward pass")
def test_the_counts_are_those_of_the_activations_in_that_precision(
    tmp_path: Path, settings: dict[str, Any], parameters: torch.dtype, maps: torch.dtype, budget: int
) -> None:
    faces = random_dictionary()
    shown: list[tuple[Tensor, bool]] = []
    net = Net()
    net.body[2].register_forward_hook(lambda _module, _inputs, output: shown.append((output, net.training)))
    callback = HNDCallback(faces, "body.2", batch_size=8, quantile=QUANTILE, budget=budget, level=None)
    trainer(tmp_path, callback, max_epochs=1, num_sanity_val_steps=0, **settings).fit(net, *data())
    assert not torch.is_autocast_enabled("cpu")
    assert next(net.parameters()).dtype == parameters
    assert {output.dtype for output, _ in shown} == {maps}
    assert not any(training for _, training in shown[:3])

    metric = DissectionMetric(faces.ontology, QUANTILE, num_local=faces.num_local)
    for batch, (output, _) in zip(faces.batches(8), shown, strict=False):
        metric.update(output.to(torch.float64), batch)  # which holds all of them
    assert callback.baseline is not None
    found, expected = callback.baseline["body.2"].statistics, metric.compute()
    assert found["intersection"].sum() > 1000
    for name, value in found.items():
        exact = value.dtype.kind in "iub" or name in ("threshold", "low", "high", "exemplar_map")
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=0 if exact else 1e-6, err_msg=name)


def test_half_precision_that_lightning_does_not_give_on_the_cpu_is_no_trouble(tmp_path: Path) -> None:
    callback = HNDCallback(random_dictionary(), "body.2")
    with pytest.warns(UserWarning, match="AMP with fp16 is not supported on CPU. Using `precision='bf16-mixed'`"):
        run = trainer(tmp_path, callback, max_epochs=1, precision="16-mixed")
    run.fit(Net(), *data())
    assert callback.latest is not None


class Mixed(nn.Module):
    """Its first weights are of another type than those that images meet."""

    def __init__(self, first: torch.dtype, others: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 3).to(first), requires_grad=False)
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU()).to(others)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.net(images)
        return maps


@pytest.mark.parametrize("others", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("first", [torch.float32, torch.float64, torch.bfloat16, torch.int8])
def test_images_are_of_the_type_of_the_weights_that_they_meet(first: torch.dtype, others: torch.dtype) -> None:
    faces, seen = random_dictionary(images=40), set[torch.dtype]()
    model = Mixed(first, others)
    found = dissect(model, faces, "net.1", level=None, forward_fn=lambda m, x: seen.add(x.dtype) or m(x))
    assert seen == {others}
    alike = dissect(Mixed(others, others), faces, "net.1", level=None)
    assert found["net.1"] == alike["net.1"]


def same_statistics(found: Dissection, expected: Dissection) -> None:
    for name, value in expected["0"].statistics.items():
        np.testing.assert_array_equal(np.asarray(found["0"].statistics[name]), np.asarray(value), err_msg=name)


def test_under_the_callers_autocast_only_the_model_runs_in_it() -> None:
    faces = random_dictionary(images=40)
    model, types = nn.Sequential(nn.AvgPool2d(3), nn.Conv2d(3, 3, 1)), []
    model[1].register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    expected = dissect(model, faces, "0", fresh_seeds=(1,))
    with torch.autocast("cpu", torch.bfloat16):
        found = dissect(model, faces, "0", fresh_seeds=(1,))
    assert types[-1] == torch.bfloat16
    same_statistics(found, expected)


def products() -> tuple[str, ...]:
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    return (torch.get_float32_matmul_precision(),)


@pytest.fixture
def full_products() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    if len(products()) == 2:  # which has told them; as it was, nobody had
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("full_products")
@pytest.mark.parametrize("precision", ["high", "medium", "one backend's"])
def test_where_products_of_float32_may_be_rounded_only_those_of_the_model_are(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, seen, counted = FaceDictionary.rendered(size=48, images=64), set(), set()
    model = nn.Sequential(nn.AvgPool2d(3))
    model[0].register_forward_hook(lambda *_: seen.add(products()))
    update = Evidence.update

    def watched(self: Evidence, maps: Tensor, batch: DictionaryBatch) -> None:
        counted.add(products())
        update(self, maps, batch)

    monkeypatch.setattr(Evidence, "update", watched)
    expected = dissect(model, faces, "0", fresh_seeds=(1,))
    full = products()
    if precision != "one backend's":
        torch.set_float32_matmul_precision(precision)
    elif len(full) == 2:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        pytest.skip("this torch has one setting for all backends")
    chosen = products()
    assert chosen != full
    seen.clear()
    found = dissect(model, faces, "0", fresh_seeds=(1,))
    assert (seen, products()) == ({chosen}, chosen)
    assert all(of_each in ("ieee", "none", "highest") for of_all in counted for of_each in of_all)
    same_statistics(found, expected)

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Evidence, "update", fail)
    with pytest.raises(MemoryError):
        dissect(model, faces, "0", fresh_seeds=(1,))
    assert products() == chosen


def test_what_one_setting_for_all_backends_says_goes_on_to_hold() -> None:
    if len(products()) == 1:
        pytest.skip("this torch has one setting for all backends alone")
    faces, model = FaceDictionary.rendered(size=32, images=24), nn.Sequential(nn.AvgPool2d(3))
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    try:
        torch.backends.fp32_precision = "tf32"
        dissect(model, faces, "0")
        assert products() == ("tf32", "tf32")
        torch.backends.fp32_precision = "ieee"
        assert products() == ("ieee", "ieee")
    finally:
        torch.backends.fp32_precision = "none"


def test_the_default_type_changes_nothing() -> None:
    expected_faces = FaceDictionary.rendered(size=32, images=24)
    expected = dissect(nn.Sequential(nn.AvgPool2d(3)), expected_faces, "0", fresh_seeds=(1,))
    torch.set_default_dtype(torch.float64)
    try:
        faces = FaceDictionary.rendered(size=32, images=24)
        found = dissect(nn.Sequential(nn.AvgPool2d(3)), faces, "0", fresh_seeds=(1,))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert faces.fingerprint == expected_faces.fingerprint
    same_statistics(found, expected)


def test_ranks_of_many_equal_values_are_exact_whatever_the_default_type() -> None:
    values = torch.arange(4001.0).sub(2500).relu().unsqueeze(1)  # 2,501 zeros: no half of that in bfloat16
    torch.set_default_dtype(torch.bfloat16)
    try:
        ranks = mid_ranks(values)
    finally:
        torch.set_default_dtype(torch.float32)
    assert ranks[:2501].unique().tolist() == [1251.0]
    assert ranks[2501:, 0].tolist() == list(range(2502, 4002))
