"""Compiled modules: they are dissected as they are uncompiled, and stay compiled, once, for training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch._dynamo.utils
from conftest import random_dictionary
from test_callback import SIZE, data, trainer
from torch import Tensor, fx, nn

from lightning_hnd import Dissection, HNDCallback, dissect

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
since_2_6 = pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch < 2.6 refuses compiled modules")
before_2_6 = pytest.mark.skipif(hasattr(torch.compiler, "set_stance"), reason="torch >= 2.6 can dissect them")


class Block(nn.Module):
    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, units, 3, 2, 1), nn.BatchNorm2d(units)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Net(L.LightningModule):
    """Logs nothing, so that all of it can be one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(3, 6), Block(6, 5)
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))[:, 0]

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Backend:
    """Counts what dynamo has it compile, and how often that runs."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph(*args)

        return run


class InConfigureModel(Net):
    """Compiles what it is told to when Lightning configures it."""

    def __init__(self, change: Callable[[Net], object]) -> None:
        super().__init__()
        self.change, self.done = change, False

    def configure_model(self) -> None:
        if not self.done:
            self.done = True
            self.change(self)


class Later(L.Callback):
    """Compiles after the first epoch."""

    def __init__(self, change: Callable[[Any], object]) -> None:
        self.change = change

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.change(pl_module)


def wrap_block(net: Any, **options: Any) -> None:
    net.second = torch.compile(net.second, **options)


def compile_block(net: Any, **options: Any) -> None:
    net.second.compile(**options)


def compile_whole(net: Any, **options: Any) -> None:
    net.compile(**options)


CHANGES = {"wrapped block": wrap_block, "block in place": compile_block, "whole in place": compile_whole}


def run_of(
    path: Path, how: str, when: str, dissected: bool = True, **options: Any
) -> tuple[HNDCallback, dict[str, Tensor]]:
    """Trains three epochs, ``how`` compiled and ``when``: the callback, and the weights by their uncompiled names."""
    torch._dynamo.reset()
    L.seed_everything(0, verbose=False)
    callback = HNDCallback(random_dictionary(), layers=["first*", "second*"])
    change = CHANGES.get(how)
    net: Any = Net()
    others: list[L.Callback] = []
    if how == "wrapped whole":
        net = torch.compile(net, **options)
    elif change is not None:
        if when == "in configure_model":
            L.seed_everything(0, verbose=False)
            net = InConfigureModel(lambda net: change(net, **options))
        elif when == "before fit":
            change(net, **options)
        else:
            others = [Later(lambda net: change(net, **options))]
    if dissected:
        others.append(callback)
    trainer(path, *others, max_epochs=3, num_sanity_val_steps=2).fit(net, *data())
    return callback, {name.replace("_orig_mod.", ""): value for name, value in net.state_dict().items()}


@pytest.fixture(scope="module")
def uncompiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dissection | None, Dissection | None]:
    callback, _ = run_of(tmp_path_factory.mktemp("uncompiled"), "not at all", "")
    return callback.baseline, callback.latest


WAYS = [  # each how and each when
    ("wrapped whole", "before fit"),
    ("wrapped block", "before fit"),
    ("wrapped block", "after an epoch"),
    ("block in place", "in configure_model"),
    ("whole in place", "after an epoch"),
]


@since_2_6
@pytest.mark.parametrize(("how", "when", "fullgraph"), [*[(*way, True) for way in WAYS], (*WAYS[1], False)])
def test_a_compiled_module_is_dissected_like_itself_uncompiled_and_stays_compiled(
    tmp_path: Path, uncompiled: tuple[Dissection, Dissection], how: str, when: str, fullgraph: bool
) -> None:
    with_it, without_it = Backend(), Backend()
    callback, weights = run_of(tmp_path / "with", how, when, backend=with_it, fullgraph=fullgraph)
    assert callback.latest is not None
    assert callback.baseline is not None
    assert callback.baseline.layers == uncompiled[0].layers
    assert callback.latest.layers == uncompiled[1].layers
    assert all(unit.threshold > 0 for unit in callback.latest["second"].units if not unit.dead)
    _, expected = run_of(tmp_path / "without", how, when, False, backend=without_it, fullgraph=fullgraph)
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert with_it.compiled == without_it.compiled > 0
    assert with_it.ran == without_it.ran > with_it.compiled


@since_2_6
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_module_compiled_by_torch_is_dissected_like_itself_uncompiled(
    tmp_path: Path, uncompiled: tuple[Dissection, Dissection], backend: str
) -> None:
    callback, _ = run_of(tmp_path, "wrapped whole", "before fit", backend=backend)
    assert callback.baseline is not None
    assert callback.baseline.layers == uncompiled[0].layers


@since_2_6
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_code_of_inductor_is_left_for_the_dissection() -> None:
    def images() -> Tensor:
        return torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    net = Block(3, 6).eval()
    expected = dissect(net, random_dictionary(), "norm")
    net.compile()
    with torch.no_grad():
        before = net(images())
        assert dissect(net, random_dictionary(), "norm").layers == expected.layers
        compiled = dict(torch._dynamo.utils.counters["stats"])
        assert compiled["unique_graphs"] == 1
        assert torch.equal(net(images()), before)
        assert torch._dynamo.utils.counters["stats"] == compiled


@since_2_6
def test_the_layer_is_chosen_and_named_as_if_uncompiled(tmp_path: Path) -> None:
    torch._dynamo.reset()
    net: Any = Net()
    net.second = torch.compile(net.second, backend="eager")
    callback = HNDCallback(random_dictionary())
    trainer(tmp_path, callback, max_epochs=1).fit(torch.compile(net, backend="eager"), *data())
    assert callback.latest is not None
    assert list(callback.latest.layers) == ["second"]


@before_2_6
@pytest.mark.parametrize(("how", "when"), WAYS)
def test_an_old_torch_refuses_what_it_would_misread(tmp_path: Path, how: str, when: str) -> None:
    with pytest.raises(ValueError, match=r"is compiled, .* torch >= 2.6"):
        run_of(tmp_path, how, when, backend="eager")


def test_models_in_channels_last_are_dissected_alike(tmp_path: Path) -> None:
    def last(maps: Tensor) -> bool:
        return maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()

    def baseline(path: Path, memory_format: torch.memory_format) -> Dissection:
        L.seed_everything(0, verbose=False)
        net = Net().to(memory_format=memory_format)
        seen: set[bool] = set()
        net.second.norm.register_forward_hook(lambda _module, _inputs, maps: seen.add(last(maps)))
        callback = HNDCallback(random_dictionary(), layers=["first*", "second*"])
        trainer(path, callback, max_epochs=1, precision="64-true").fit(net, *data())
        assert seen == {memory_format is torch.channels_last}
        assert callback.baseline is not None
        return callback.baseline

    expected = baseline(tmp_path / "first", torch.contiguous_format)
    found = baseline(tmp_path / "last", torch.channels_last)
    assert list(found.layers) == list(expected.layers)
    for name, layer in expected.layers.items():
        for key, value in layer.statistics.items():
            np.testing.assert_allclose(found[name].statistics[key], value, rtol=1e-9, atol=1e-12, err_msg=key)
