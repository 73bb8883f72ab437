"""Models split over two processes by FSDP2: dissected like whole ones, or refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed.fsdp
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pair import Pair
from runs import Net, data, trainer
from test_two_processes import BATCH, Failure, Found, assert_same, fit

from lightning_hnd import HNDCallback
from lightning_hnd.showing import showing
from lightning_hnd.training.strategies import processes_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

since_2_6 = pytest.mark.skipif(not hasattr(torch.distributed.fsdp, "fully_shard"), reason="FSDP2 takes torch >= 2.6")
before_2_6 = pytest.mark.skipif(hasattr(torch.distributed.fsdp, "fully_shard"), reason="torch >= 2.6 can dissect them")


class Split(Net):
    """Each process holds a part of every weight."""

    def configure_model(self) -> None:
        if not hasattr(self.head[1].weight, "full_tensor"):  # Lightning calls it at every entry
            mesh = self.device_mesh["data_parallel"]
            for part in (self.body[0], self.head[1], self):
                torch.distributed.fsdp.fully_shard(part, mesh=mesh)


def fit_split(path: Path, **options: Any) -> Found:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    found = fit(path, net=Split, strategy=strategy, **options)
    weights = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in found.weights.items()}
    return found._replace(weights=weights)


@since_2_6
def test_a_split_model_is_dissected_like_a_whole_one(pair: Pair, tmp_path: Path) -> None:
    alone = fit(tmp_path / "alone", devices=1)
    with_it = first, second = pair.results(fit_split, tmp_path / "with")
    assert_same(first.baseline, alone.baseline)
    assert first.baseline == second.baseline
    assert first.latest == second.latest != first.baseline
    np.testing.assert_equal(first.metrics, second.metrics)  # NaN where the dictionary cannot tell
    for ours, theirs in zip(with_it, pair.results(fit_split, tmp_path / "without", dissected=False), strict=True):
        assert ours.steps == theirs.steps == 4
        torch.testing.assert_close(ours.weights, theirs.weights, rtol=0, atol=0)
        assert torch.equal(ours.random, theirs.random)


def fit_split_in_parts(path: Path) -> Found:
    # the last batch is of two passes, and one process has none
    with mock.patch.multiple(showing, _IMAGES=BATCH, _PIXELS=2 * 24 * 32):
        return fit_split(path, batch_size=None)


@since_2_6
def test_a_split_model_passes_as_often_in_all_processes(pair: Pair, tmp_path: Path) -> None:
    alone = fit(tmp_path / "alone", devices=1)
    first, second = pair.results(fit_split_in_parts, tmp_path / "with")
    assert_same(first.baseline, alone.baseline)
    assert first.latest == second.latest


def fit_split_to_nan(path: Path, **options: Any) -> Found:
    return fit_split(path, forward_fn=Failure("NaN", 1), **options)


@since_2_6
def test_if_the_activations_of_one_are_not_finite_all_end(pair: Pair, tmp_path: Path) -> None:
    first, second = pair.run(fit_split_to_nan, tmp_path)
    assert isinstance(second, ValueError)
    assert str(first) == f"showing the dictionary to the model failed in process 1: ValueError: {second}"


@before_2_6
def test_an_old_torch_refuses_it(pair: Pair, tmp_path: Path) -> None:
    for error in pair.run(fit_unsupported, tmp_path, "FSDP2"):
        assert isinstance(error, ValueError)
        assert str(error).startswith("HNDCallback supports FSDP2 with torch >= 2.6, and this is torch 2.")


@since_2_6
def test_going_on_after_errors_is_refused(pair: Pair, tmp_path: Path) -> None:
    for error in pair.run(fit_split, tmp_path, on_error="warn"):
        assert isinstance(error, ValueError)
        assert str(error).startswith("HNDCallback(on_error='warn') does not work where the module is split")


class OnTheCPU(FSDPStrategy):
    """Lightning insists on a GPU for FSDPStrategy itself."""


def fit_unsupported(path: Path, which: str) -> None:
    strategies: dict[str, Any] = {
        "FSDP2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        "FSDP1": lambda: OnTheCPU(process_group_backend="gloo"),
        "tensor parallel": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2),
    }
    trainer(path, HNDCallback(), strategy=strategies[which](), devices=2).fit(Net(), *data())


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("FSDP1", r"HNDCallback does not support OnTheCPU \(FSDP1\); train on one device, "),
        ("tensor parallel", r"HNDCallback does not support tensor parallelism \(tensor_parallel_size=2\): "),
    ],
)
def test_other_ways_to_split_are_refused(pair: Pair, tmp_path: Path, which: str, said: str) -> None:
    for error in pair.run(fit_unsupported, tmp_path, which):
        with pytest.raises(ValueError, match=said):
            raise error


def test_what_is_ddp_by_name_alone_is_refused() -> None:
    strategy = object.__new__(DeepSpeedStrategy)  # making one takes deepspeed, and that a GPU
    with pytest.raises(ValueError, match="does not support DeepSpeedStrategy; train on one device"):
        processes_of(SimpleNamespace(strategy=strategy))
