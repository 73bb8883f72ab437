"""Fresh weights: what an architecture does before it has learnt anything."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral

import torch
from torch import Tensor, nn

from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.evidence.evidence import Evidence
from lightning_hnd.evidence.fresh_networks import estimate_batch_norms, fresh_networks, renewed, unseen_batch_norms
from lightning_hnd.functional.defence import learnt_null
from lightning_hnd.showing.processes import Processes
from lightning_hnd.showing.showing import Showing
from lightning_hnd.showing.undisturbed import device_of, kept_random_state, undisturbed

SEEDS = (101, 102, 103, 104, 105)
"""Of the networks with fresh weights, unless somebody says otherwise."""

Null = Mapping[str, Mapping[str, Tensor]]
"""What fresh weights do: of each layer what :func:`~lightning_hnd.functional.defence.learnt_null` returns."""

_NULL = 6  # the version of what is kept of them


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
        unseen = sorted(unseen_batch_norms(model))
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
                evidence, live = found.compute(name, showing.processes)
                networks[name].append((evidence, live))
                if not bool(live.any()) and showing.processes.rank == 0:
                    warnings.warn(
                        f"with fresh weights of seed {seed} all units of layer {name!r} are dead, or NaN or infinite: "
                        "this network tells nothing of what is learnt, and without any nothing is; give other "
                        "fresh_seeds, or a factory",
                        stacklevel=2,
                    )
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
    unseen = unseen_batch_norms(model)
    for network in fresh_networks(model, fresh.seeds, fresh.factory):
        estimate_batch_norms(network, dictionary, showing, unseen)
        yield network
