"""Networks with fresh weights: what an architecture does before it has learnt anything."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.evidence.evidence import Evidence
from lightning_hnd.functional.defence import learnt_null
from lightning_hnd.showing.activations import record
from lightning_hnd.showing.processes import Processes
from lightning_hnd.showing.showing import Showing
from lightning_hnd.showing.undisturbed import device_of, kept_random_state, undisturbed

SEEDS = (101, 102, 103, 104, 105)
"""Of the networks with fresh weights, unless somebody says otherwise."""

Null = Mapping[str, Mapping[str, Tensor]]
"""What fresh weights do: of each layer what :func:`~lightning_hnd.functional.defence.learnt_null` returns."""

_NULL = 5  # the version of what is kept of them
_BATCH_NORM_IMAGES = 128  # with the places of their maps some thousand values of each unit, and more
_IN_A_BATCH = 64  # of them, where nobody says how many


@dataclass(frozen=True)
class FreshWeights:
    """Networks with fresh weights: which, and how they are made.

    Attributes:
        seeds: One for each; none, where none are asked.
        factory: Makes a network. None: a copy of the model in which every module's ``reset_parameters`` is called.
        demanded: Whether somebody asked for them, so that it is an error if they cannot be made.
    """

    seeds: tuple[int, ...] = SEEDS
    factory: Callable[[], nn.Module] | None = None
    demanded: bool = False

    @classmethod
    def chosen(
        cls, seeds: Sequence[int] | None, factory: Callable[[], nn.Module] | None, level: float | None
    ) -> FreshWeights:
        """What a user asks for: None is no wish, and :data:`SEEDS` where there is a level.

        Raises:
            TypeError: If the seeds are not several whole numbers, or the factory is no function.
            ValueError: If one comes twice, a factory has none, or there is a wish, and no level at which to compare.
        """
        if seeds is not None:
            seeds = tuple(seeds) if isinstance(seeds, Iterable) else seeds  # of a generator the seeds come once
            if not isinstance(seeds, tuple) or not all(isinstance(seed, Integral) for seed in seeds):
                raise TypeError(
                    f"fresh_seeds are whole numbers, one for each network, such as (101, 102), got {seeds!r}"
                )
            seeds = tuple(map(int, seeds))  # of whatever type, the networks are the same
        if factory is not None and (isinstance(factory, nn.Module) or not callable(factory)):
            raise TypeError(
                "factory is a function that makes a network with fresh weights, such as the model's class, got "
                f"{type(factory).__name__}"
            )
        if (seeds or factory is not None) and level is None:
            raise ValueError("fresh_seeds and factory are of use under a level only; give level=0.05 as well")
        if seeds is None:
            return cls(() if level is None else SEEDS, factory, factory is not None)
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"fresh_seeds must differ, for a network counts once, got {seeds!r}")
        if factory is not None and not seeds:
            raise ValueError(f"factory makes no network without a seed; give fresh_seeds={SEEDS} as well")
        return cls(seeds, factory, bool(seeds))

    def obstacle(self, model: nn.Module, *, split: bool) -> str | None:
        """Why such networks cannot be made of a model, and what would help; None if they can.

        Args:
            model: Gives the architecture; it is left as it is.
            split: Whether its weights are spread over several processes.
        """
        if self.factory is not None:
            return None
        if split:
            return "the model is split over processes; give a factory that makes a network with fresh weights"
        try:
            with kept_random_state(device_of(model)):
                renewed(model)
        except ValueError as error:
            return str(error)
        return None

    def key(self, model: nn.Module, dictionary: FaceDictionary, layers: Sequence[str], showing: Showing) -> str:
        """A digest of all that their null hypothesis depends on: weights that a model has learnt are not in it.

        Functions are known by their names, partial ones by their arguments, too.
        """
        shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()]
        makers = [_named(f) for f in (self.factory, showing.forward_fn)]
        unseen = sorted(_unseen_batch_norms(model))
        parts = (repr(model), shapes, unseen, dictionary.fingerprint, tuple(layers), self.seeds, makers, showing.grid)
        return hashlib.sha256(repr((_NULL, *parts)).encode()).hexdigest()[:32]


def _named(value: object) -> object:
    """What tells a function from others, and is the same in every process: of objects that say no more, the type."""
    if isinstance(value, partial):
        keywords = ((name, _named(given)) for name, given in sorted(value.keywords.items()))
        return (*map(_named, (value.func, *value.args)), *keywords)
    return getattr(value, "__qualname__", None) or re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))


def fresh_null(
    model: nn.Module,
    dictionary: FaceDictionary,
    layers: Sequence[str],
    showing: Showing,
    *,
    fresh: FreshWeights,
    budget: int,
) -> Null:
    """What the units of networks with fresh weights do on a dictionary: the null hypothesis of *learnt*.

    Each network is shown the whole dictionary once. It depends on the architecture, on the dictionary, and on which
    batch norms have seen images: find it once, and once more after the start of training, and use it in every epoch.

    Args:
        model: The model whose architecture it is; it is left as it is.
        dictionary: The faces.
        layers: Names of layers.
        showing: How. If several processes share the dictionary, all get the same result.
        fresh: The networks.
        budget: Bytes that may be taken by what grows with the images; beyond it, temporary files do.

    Returns:
        For each layer what :func:`~lightning_hnd.functional.defence.learnt_null` makes of it.

    Raises:
        ValueError: If ``reset_parameters`` does not reach every parameter; give a factory then.
    """
    networks: dict[str, list[tuple[Mapping[str, Tensor], Tensor]]] = {name: [] for name in layers}
    showing = replace(showing, processes=replace(showing.processes, split=False))  # each has them whole
    with torch.inference_mode(False), undisturbed(model):  # hooks of copies may lead back to it
        waiting = acquainted_networks(model, dictionary, showing, fresh)
        for seed in fresh.seeds:
            with showing.processes.together("showing the dictionary to fresh weights"):
                network = next(waiting)
            found = _Found(dictionary, layers, budget)
            with undisturbed(network):
                showing.show(network, dictionary, layers, f"Fresh weights (seed {seed})", found.take_in)
            for name in layers:
                networks[name].append(found.compute(name, showing.processes))
    return {name: learnt_null(found) for name, found in networks.items()}


class _Found:
    """What one network does on a dictionary."""

    def __init__(self, dictionary: FaceDictionary, layers: Sequence[str], budget: int) -> None:
        self._evidence = {name: Evidence(dictionary) for name in layers}
        self._ends: dict[str, Tensor] = {}  # of each unit the highest activation, and the lowest with its sign changed
        self._budget = budget

    def take_in(self, name: str, maps: Tensor, batch: DictionaryBatch) -> None:
        """Takes in one batch."""
        ends = torch.stack([maps.amax((0, 2, 3)), -maps.amin((0, 2, 3))])
        self._ends[name] = torch.maximum(self._ends.get(name, ends), ends)
        self._evidence[name].update(maps, batch)
        if sum(evidence.kept_bytes for evidence in self._evidence.values()) > self._budget:
            for evidence in self._evidence.values():
                evidence.spill()

    def compute(self, name: str, processes: Processes) -> tuple[dict[str, Tensor], Tensor]:
        """The evidence of a layer, and its live units ``[U]``; called by all processes."""
        high, low = torch.stack(processes.gather(self._ends[name].cpu())).amax(0)
        return self._evidence[name].compute(processes), (high > -low) & high.isfinite() & low.isfinite()


def with_null(statistics: Mapping[str, Mapping[str, Tensor]], null: Null) -> dict[str, dict[str, Tensor]]:
    """Statistics of layers with the null hypothesis of *learnt* beside them, as a dissection keeps them."""
    return {
        name: {**layer, **{f"fresh_{key}": value for key, value in null.get(name, {}).items()}}
        for name, layer in statistics.items()
    }


def acquainted_networks(
    model: nn.Module, dictionary: FaceDictionary, showing: Showing, fresh: FreshWeights
) -> Iterator[nn.Module]:
    """Networks with fresh weights in the state in which they can be compared with a model.

    Batch norms have the mean and variance of the dictionary's images, but for those that the model left as made: so a
    model at start, whose batch norms know of no image, is compared with its like.

    Args:
        model: Gives the architecture and the device; it is left as it is.
        dictionary: The faces.
        showing: How.
        fresh: The networks.

    Raises:
        ValueError: As :func:`renewed`.
    """
    unseen = _unseen_batch_norms(model)
    for network in fresh_networks(model, fresh.seeds, fresh.factory):
        _estimate_batch_norm(network, dictionary, showing, unseen)
        yield network


def fresh_networks(
    model: nn.Module, seeds: Sequence[int], factory: Callable[[], nn.Module] | None = None
) -> Iterator[nn.Module]:
    """Networks of one architecture with fresh weights, one for each seed; no random number of the caller is used up.

    Args:
        model: Gives the architecture and the device.
        seeds: One for each network.
        factory: As in :func:`fresh_null`.

    Raises:
        TypeError: If the factory returns no module.
        ValueError: As :func:`renewed`; or if the factory returns the model itself, or equal weights twice.
    """
    device, seen = device_of(model), dict[str, int]()
    for seed in seeds:
        with kept_random_state(device):
            torch.manual_seed(seed)
            network = renewed(model) if factory is None else factory()
        if not isinstance(network, nn.Module):
            raise TypeError(f"factory must return a network with fresh weights, an nn.Module, got {network!r}")
        if factory is not None:
            digest = _digest(network)
            before = seed if digest is None else seen.setdefault(digest, seed)
            if network is model or before != seed:
                raise ValueError(
                    "factory must make another network for each seed; it returned "
                    + ("the model itself" if network is model else f"equal weights for seeds {before} and {seed}")
                    + ". Give one that draws its weights anew, or fresh_seeds=() to compare with none"
                )
        yield network.to(device)


def _digest(network: nn.Module) -> str | None:
    """What networks of other weights do not share; None where there are none to tell."""
    digest, weights = hashlib.sha256(), [*network.parameters(), *network.buffers()]
    if not weights or any(is_lazy(tensor) or tensor.is_meta for tensor in weights):
        return None
    for tensor in weights:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def renewed(model: nn.Module) -> nn.Module:
    """A copy of the model with fresh weights: ``reset_parameters`` of every module that has it.

    Or ``_reset_parameters``, as torch's attention has it. As in their making, parts come before what they are part of,
    which may draw their weights anew.

    Raises:
        ValueError: If a parameter, or a buffer of a module that has parameters, is left as it was.

    Example:
        >>> import torch
        >>> from lightning_hnd.evidence.fresh import renewed
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> bool((renewed(model)[0].weight == model[0].weight).any())
        False
    """
    network = _copy(model)
    # a mark that no initialisation leaves: what still bears it was not reset
    with torch.no_grad():
        for tensor in _weights(network).values():
            tensor.fill_(torch.nan)
        for module in _parts_first(network):
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if callable(reset):
                _reset(reset, module)
    missed = [name for name, tensor in _weights(network).items() if bool(tensor.isnan().any())]
    if missed:
        raise ValueError(
            f"reset_parameters does not reach {len(missed)} weights of {type(model).__name__}: {', '.join(missed[:5])}"
            f"{', ...' if len(missed) > 5 else ''}; give a factory that makes a network with fresh weights"
        )
    return network


def _parts_first(module: nn.Module, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """All modules, each once, after those that it is made of."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    for part in module.children():
        yield from _parts_first(part, seen)
    yield module


def _reset(reset: Callable[[], object], module: nn.Module) -> None:
    try:
        reset()
    except Exception as error:
        raise ValueError(
            f"reset_parameters of {type(module).__name__} failed ({type(error).__name__}: {error}); give a factory "
            "that makes a network with fresh weights"
        ) from error


def _copy(model: nn.Module) -> nn.Module:
    """A copy of the modules, with what else they refer to (a Trainer, a data set) shared, not copied.

    Raises:
        ValueError: If it cannot be copied.
    """
    # what may hold modules is looked into
    looked_into = (nn.Module, list, tuple, dict, set, partial, MethodType)

    def shared(module: nn.Module) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(module).items()
            if not isinstance(value, looked_into) and not (isinstance(value, Tensor) and value.is_leaf)
        }

    try:
        network = copy.deepcopy(
            model, {id(value): value for module in model.modules() for value in shared(module).values()}
        )
        for module, copied in zip(model.modules(), network.modules(), strict=True):
            left_out = {name: value for name, value in shared(module).items() if vars(copied).get(name, value) is None}
            vars(copied).update(left_out)  # a LightningModule's Trainer
            # compiled code is that of the module that was copied
            vars(copied).pop("_compiled_call_impl", None)
            own = vars(copied).get("forward")
            if hasattr(own, "_torchdynamo_orig_callable") and "_orig_mod" not in copied._modules:
                del copied.forward
        return network
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); give a factory that makes a "
            "network with fresh weights"
        ) from error


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Parameters, and buffers of modules that have parameters: other buffers are constants."""
    weights: dict[str, Tensor] = dict(network.named_parameters())
    for prefix, module in network.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    weights[f"{prefix}.{name}".lstrip(".")] = buffer
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}


def _batch_norms(network: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Those that keep a mean and a variance of what they see, by name."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: m for name, m in network.named_modules() if isinstance(m, kind) and m.running_mean is not None}


def _unseen_batch_norms(model: nn.Module) -> frozenset[str]:
    """Names of batch norms that are as they were made, with mean 0 and variance 1: none has learnt from an image."""
    as_made = {"running_mean": 0, "running_var": 1}
    return frozenset(
        name
        for name, norm in _batch_norms(model).items()
        if all(bool(norm.get_buffer(buffer).eq(value).all()) for buffer, value in as_made.items())
    )


def _estimate_batch_norm(
    network: nn.Module, dictionary: FaceDictionary, showing: Showing, unseen: frozenset[str]
) -> None:
    """Gives batch norms the mean and variance of the dictionary's images: fresh ones know of none."""
    norms = [norm for name, norm in _batch_norms(network).items() if name not in unseen]
    if not norms:
        return
    device = device_of(network)
    with kept_random_state(device), torch.no_grad(), record(network, ()):  # as written, where it is compiled
        network.eval()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
            norm.train()
        count = min(len(dictionary), _BATCH_NORM_IMAGES)
        images = torch.arange(count) * len(dictionary) // count  # evenly over the sources
        images = images[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
        # of equal size, for they count the same; a batch of one image has no variance where maps are single numbers
        for some in images.tensor_split(max(1, count // (showing.batch_size or _IN_A_BATCH))):
            showing.forward(network, dictionary.images(some).to(device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
