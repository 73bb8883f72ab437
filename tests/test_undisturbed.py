"""Training never notices: the same bits, the same random numbers, the same batches, the same state at every moment."""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import random_dictionary
from runs import Net, data, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

from lightning_hnd import FaceDictionary, HNDCallback, dissect
from lightning_hnd.analyses.rotation import rotation_test
from lightning_hnd.functional import encoding, significance
from lightning_hnd.functional.ranks import weight_below
from lightning_hnd.showing.memory import out_of_memory
from lightning_hnd.showing.undisturbed import undisturbed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:HNDCallback could not dissect"),
]


class Frozen(Net):
    """Dropout, a batch norm that learns and one that is frozen, and a spectral norm that changes with every pass."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 1))
        self.body = nn.Sequential(*self.body, conv, nn.BatchNorm2d(6), nn.ReLU())
        self.modes: list[list[bool]] = []

    def on_train_epoch_start(self) -> None:
        self.body[4].eval()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.modes.append([module.training for module in self.modules()])
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())
        return super().training_step(batch, index) * (1 + torch.rand(()))


class Augmented(Dataset):
    """Draws from every generator there is, and counts what is drawn of it in this process."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.drawn = dataset, []

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.drawn.append(index)
        image, target = self.dataset[index]
        return image * (0.5 + random.random()) * (0.5 + np.random.rand()) + 0.1 * torch.randn(()), target


def loaders(workers: int) -> list[DataLoader]:
    """One that draws its order from a generator of its own, and one that draws from the global one."""
    train, validate = (Augmented(loader.dataset) for loader in data())
    options: dict[str, Any] = {"batch_size": 8, "num_workers": workers}
    own = torch.Generator().manual_seed(7)
    return [DataLoader(train, shuffle=True, generator=own, **options), DataLoader(validate, shuffle=True, **options)]


def train(tmp_path: Path, *callbacks: L.Callback, workers: int, **options: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """Trains, and returns whatever could tell that somebody was there: tensors, and plain things."""
    L.seed_everything(3, verbose=False)
    net, pair = Frozen(), loaders(workers)
    run = trainer(tmp_path, *callbacks, **options)
    run.fit(net, *pair)
    states = run.optimizers[0].state_dict()["state"]
    tensors = {
        **net.state_dict(),
        **{f"{name} of {i}": value for i, state in states.items() for name, value in state.items()},
        "loss": run.callback_metrics["val_loss"],
        "torch": torch.get_rng_state(),
        "generator": pair[0].generator.get_state(),
        "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
    }
    grad = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    drawn = [loader.dataset.drawn for loader in pair]
    return tensors, [net.modes, grad, drawn, random.getstate(), np.random.get_state()[2:]]


def disturb_and_fail(error: Exception, after: int) -> Callable[[Any, Tensor], Any]:
    """A forward pass that leaves traces wherever it can, and after some calls fails."""
    calls = []

    def forward(net: Any, images: Tensor) -> None:
        calls.append(None)
        net(images)
        net.train()
        net.body[1](net.body[0](images))  # a batch norm in training mode moves its averages
        random.random(), np.random.rand(), torch.rand(3)
        if len(calls) > after:
            raise error

    return forward


class FailingCallback(HNDCallback):
    """Fails in the first epoch: of three batches one call is to choose the layer, three at start, then the second."""

    def __init__(self, error: Exception, **options: Any) -> None:
        forward_fn = disturb_and_fail(error, 5)
        super().__init__(random_dictionary(), batch_size=8, fresh_seeds=(), forward_fn=forward_fn, **options)


MODES: list[dict[str, Any]] = [
    {"workers": 0},
    {"workers": 2},
    {"workers": 0, "precision": "bf16-mixed", "accumulate_grad_batches": 3, "val_check_interval": 0.5},
]


@pytest.mark.parametrize("options", MODES, ids=["alone", "with workers", "mixed, accumulated"])
def test_training_ends_in_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    tensors, plain = train(tmp_path, **options)
    calm = HNDCallback(random_dictionary(), fresh_seeds=[1, 2], factory=Frozen)
    failing = FailingCallback(ArithmeticError("no luck"), on_error="warn")
    for callback in (calm, failing):
        found = train(tmp_path, callback, **options)
        torch.testing.assert_close(found[0], tensors, rtol=0, atol=0)
        assert found[1] == plain
        assert callback.baseline is not None
    assert calm.latest is not None
    assert calm.latest["body.5"].asked_fresh
    assert failing.latest is None  # it did fail
    if not options["workers"]:  # whose copies count what they draw
        validations = round(2 / options.get("val_check_interval", 1))
        assert [len(drawn) for drawn in plain[2]] == [2 * 32, 16 + validations * 32]  # 16 in the sanity check


def test_a_failure_is_warned_of_and_logged_as_nan(tmp_path: Path) -> None:
    callback = FailingCallback(ArithmeticError("no luck"), on_error="warn")
    run = trainer(tmp_path, callback, max_epochs=1)
    with pytest.warns(
        UserWarning, match=r"could not dissect the model at epoch 0, step 4: RuntimeError: Net failed .*"
    ):
        run.fit(Net(), *data())
    logged = {key: value for key, value in run.callback_metrics.items() if key.startswith("hnd/")}
    assert logged.pop("hnd/seconds") > 0
    assert len(logged) > 20
    assert all(value.isnan() for value in logged.values())


def test_on_error_raise_ends_the_run_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    net = Frozen()
    hooks = [dict(module._forward_hooks) for module in net.modules()]
    callback = FailingCallback(ArithmeticError("no luck"))
    run = trainer(tmp_path, callback)
    with pytest.raises(RuntimeError, match="no luck"):
        run.fit(net, *data())
    assert run.global_step == 4
    assert [dict(module._forward_hooks) for module in net.modules()] == hooks
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert "log" not in vars(net)


def test_what_has_no_deterministic_algorithm_ends_no_run_that_allows_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_on_a_gpu(*args: Any, **options: Any) -> Tensor:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))  # refused on a CPU as sums are on GPUs
        return weight_below(*args, **options)

    for user in (encoding, significance):
        monkeypatch.setattr(user, "weight_below", as_on_a_gpu)
    callback = HNDCallback(FaceDictionary.rendered((24, 32), images=60), fresh_seeds=[1])
    try:
        run = trainer(tmp_path, callback, deterministic=True, max_epochs=1)
        with pytest.warns(UserWarning, match="put_ does not have a deterministic implementation"):
            run.fit(Net(), *data())
        assert torch.get_deterministic_debug_mode() == 2  # an error
    finally:
        torch.use_deterministic_algorithms(False)
    assert callback.latest is not None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_want_of_memory_is_raised_whatever_on_error_says(tmp_path: Path, error: Exception) -> None:
    callback = FailingCallback(error, on_error="warn")
    run = trainer(tmp_path, callback)
    with (
        pytest.raises((MemoryError, RuntimeError)) as raised,  # torch's are RuntimeErrors
        pytest.warns(UserWarning, match=r"for want of memory; a smaller batch_size= or budget="),
    ):
        run.fit(Net(), *data())
    assert out_of_memory(raised.value)
    assert run.global_step == 4


class Remembering(Net):
    """Keeps in its forward whatever a forward may keep: a metric's state, a number, a list, an output, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.brightness, self.seen, self.sizes = MeanMetric(), 0, []
        self.reported: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):  # set by the first batch
            self.register_buffer("scale", x.std().detach())
        self.brightness.update(x.mean())
        self.seen += len(x)
        self.sizes.append(len(x))
        self.shown = x
        return super().forward(x / self.scale)

    def on_validation_epoch_end(self) -> None:
        self.reported += [self.brightness.compute(), self.seen, list(self.sizes), self.shown]


class Collecting(Net):
    """Changes in its forward what lies in its attributes, and lets all of it tell in what it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.recent, self.by_size, self.known = deque([0.0], maxlen=3), defaultdict(list), {0}
        self.nested: Any = {"sums": [torch.zeros(1)], "counts": ({"images": 0}, np.zeros(2))}
        self.nested["itself"] = self.nested
        self.torch_draws, self.numpy_draws = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.old_draws, self.python_draws = np.random.RandomState(1), random.Random(1)
        self.system_draws = random.SystemRandom()  # which has no state

    def forward(self, x: Tensor) -> Tensor:
        self.recent.append(float(x.mean()))
        self.by_size[len(x)].append(x.std())
        self.known.add(len(self.by_size[len(x)]))
        images, total = self.nested["counts"]
        images["images"] += len(x)
        total += len(x)
        self.nested["sums"][0] += x.mean().detach()
        parts = [*self.recent, len(self.by_size), len(self.known), images["images"], total[0], self.nested["sums"][0]]
        drawn = [torch.rand((), generator=self.torch_draws), self.numpy_draws.random()]
        drawn += [self.old_draws.rand(), self.python_draws.random()]
        return super().forward(x) * (1 + 0.01 * sum(map(float, (*parts, *drawn))))


@pytest.mark.parametrize("kind", [Remembering, Collecting])
def test_what_a_forward_keeps_is_of_the_models_own_images(tmp_path: Path, kind: type[Net]) -> None:
    nets = []
    for callbacks in ((), (HNDCallback(random_dictionary()),)):
        L.seed_everything(0, verbose=False)
        nets.append(kind())
        trainer(tmp_path, *callbacks, num_sanity_val_steps=0).fit(nets[-1], *data())
    if kind is Remembering:
        torch.testing.assert_close(nets[1].reported, nets[0].reported, rtol=0, atol=0)
    torch.testing.assert_close(nets[1].state_dict(), nets[0].state_dict(), rtol=0, atol=0)


class Growing(Net):
    """Grows a layer and a hook in its first forward pass, in which another hook is called for the last time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.body[0].register_forward_hook(self.once)

    def once(self, *_: object) -> None:
        self.first.remove()
        self.scale = 0.5

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "grown"):
            self.grown = nn.Linear(1, 1)
            self.body[2].register_forward_hook(lambda _module, _inputs, output: output * 1.1)
        return self.grown(super().forward(x)[:, None])[:, 0] * self.scale


def test_what_a_first_forward_does_to_hooks_and_layers_is_left_to_the_models_own_images(tmp_path: Path) -> None:
    weights = []
    for callbacks in ((), (HNDCallback(random_dictionary(), fresh_seeds=()),)):
        L.seed_everything(0, verbose=False)
        net = Growing()
        trainer(tmp_path, *callbacks, num_sanity_val_steps=0).fit(net, *data())
        weights.append(net.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_what_copies_with_fresh_weights_share_with_a_model_is_put_back() -> None:
    net = Collecting()
    state = net.python_draws.getstate()
    dissect(net, random_dictionary(), "body.2", fresh_seeds=[1])
    assert list(net.recent) == [0.0]
    assert net.python_draws.getstate() == state


def test_hooks_of_copies_with_fresh_weights_do_not_change_the_model() -> None:
    net = Net()
    net.register_buffer("seen", torch.zeros(()))

    def count(*_: object) -> None:
        net.seen += 1

    net.body[2].register_forward_hook(count)
    dissect(net, random_dictionary(), "body.2", fresh_seeds=[1])
    rotation_test(net, random_dictionary(), "body.2", strengths=(1.0,), seeds=(0,), fresh_seeds=[1])
    assert net.seen == 0


def test_what_has_changed_is_put_back_in_place() -> None:
    net = nn.Module()
    net.items, net.order, net.names = [1, [2]], OrderedDict(a=1, b=2), {"x"}
    inner, nan = net.items[1], torch.tensor([float("nan"), 1.0])
    net.tensors = (nan, torch.zeros(2, 3).T)
    before = [net.items, net.order, net.names, net.tensors]
    with undisturbed(net):
        inner.append(3)
        net.items.clear()
        net.order.move_to_end("a")
        net.names.discard("x")
        nan.zero_()
        net.tensors[1].fill_(-0.0)
        net.items = net.tensors = None
    assert [id(now) for now in (net.items, net.order, net.names, net.tensors)] == list(map(id, before))
    assert net.items == [1, [2]]
    assert net.items[1] is inner
    assert list(net.order) == ["a", "b"]
    assert net.names == {"x"}
    torch.testing.assert_close(nan, torch.tensor([float("nan"), 1.0]), rtol=0, atol=0, equal_nan=True)
    assert not net.tensors[1].signbit().any()


def test_what_has_not_changed_is_not_written_to(tmp_path: Path) -> None:
    np.save(tmp_path / "prototypes.npy", np.full(3, np.nan))
    net = nn.Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is read-only
        net.prototypes = torch.from_numpy(np.load(tmp_path / "prototypes.npy", mmap_mode="r"))
    net.register_buffer("scale", torch.tensor([2.0, float("nan")]))
    net.weight = nn.Parameter(torch.ones(2))
    kept = (net.weight * net.scale)[0]  # a graph that outlives a validation
    with undisturbed(net):
        pass
    kept.backward()
    assert net.weight.grad is not None


class Merging(nn.Conv2d):
    """Adds to its frozen weights what it has learnt when it is told to evaluate, and takes it off to train: LoRA."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.weight.requires_grad_(False)
        self.learnt, self.merged = nn.Parameter(0.1 * torch.randn_like(self.weight)), False

    def train(self, mode: bool = True) -> nn.Conv2d:
        if mode == self.merged:
            self.weight.data += -self.learnt if mode else self.learnt
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight if self.merged else self.weight + self.learnt, self.bias)


def test_modules_are_not_told_to_evaluate(tmp_path: Path) -> None:
    weights = []
    for callbacks in ((), (HNDCallback(random_dictionary(), fresh_seeds=(), at_train_epoch_end=True),)):
        L.seed_everything(0, verbose=False)
        net = Net()
        net.body[0] = Merging(3, 6, 4, 4)
        trainer(tmp_path, *callbacks, limit_val_batches=0).fit(net, data()[0])
        weights.append(net.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


class Shrinking(Net):
    """Loses a layer after its first epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.Conv2d(6, 6, 1))

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.body.pop(-1)


def test_no_hook_is_left_behind_where_a_layer_has_gone(tmp_path: Path) -> None:
    net = Shrinking()
    callback = HNDCallback(random_dictionary(), layers=["body.0", "body.3"], on_error="warn")
    with pytest.warns(UserWarning, match=r"layer 'body.3' is not there any more"):
        trainer(tmp_path, callback).fit(net, *data())
    assert not any(module._forward_hooks for module in net.modules())


def test_the_dictionary_does_not_give_lazy_layers_their_weights(tmp_path: Path) -> None:
    net = Net()
    net.body = nn.Sequential(nn.LazyConv2d(6, 4, 4), nn.ReLU())
    with pytest.raises(ValueError, match=r"'body.0.weight' is lazy: .* Run the model on one batch before"):
        trainer(tmp_path, HNDCallback(random_dictionary()), num_sanity_val_steps=0).fit(net, *data())
