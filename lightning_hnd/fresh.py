"""Networks with fresh weights: what an architecture does before it has learnt anything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_hnd.activations import Grid, record, unit_maps
from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.evidence import Evidence
from lightning_hnd.functional.defence import learnt_null
from lightning_hnd.undisturbed import device_of, kept_random_state, undisturbed

SEEDS = (101, 102, 103, 104, 105)
"""Of the networks with fresh weights, unless somebody says otherwise."""

_BATCH_NORM_IMAGES = 512


def fresh_null(
    model: nn.Module,
    dictionary: FaceDictionary,
    layers: Sequence[str],
    *,
    factory: Callable[[], nn.Module] | None = None,
    seeds: Sequence[int] = SEEDS,
    grid: Grid | None = None,
    forward_fn: Callable[[nn.Module, Tensor], object] | None = None,
    batch_size: int = 64,
) -> dict[str, dict[str, Tensor]]:
    """What the units of networks with fresh weights do on a dictionary: the null hypothesis of *learnt*.

    Each network is shown the whole dictionary once, so this costs about as much as ``len(seeds)`` dissections. It
    depends on the architecture and the dictionary alone: find it once, and use it in every epoch.

    Args:
        model: The model whose architecture it is; it is left as it is.
        dictionary: The faces.
        layers: Names of layers.
        factory: Makes a network with fresh weights. None: a copy of the model in which every module's
            ``reset_parameters`` is called.
        seeds: Of the networks.
        grid: As in :func:`~lightning_hnd.dissect`.
        forward_fn: As in :func:`~lightning_hnd.dissect`.
        batch_size: Images in a batch.

    Returns:
        For each layer what :func:`~lightning_hnd.functional.defence.learnt_null` makes of it.

    Raises:
        ValueError: If ``reset_parameters`` does not reach every parameter; give a factory then.
    """
    networks: dict[str, list[tuple[dict[str, Tensor], Tensor]]] = {name: [] for name in layers}
    run = forward_fn or (lambda network, images: network(images))
    for network in fresh_networks(model, seeds, factory):
        _estimate_batch_norm(network, dictionary, run, batch_size)
        evidence = {name: Evidence(dictionary) for name in layers}
        low: dict[str, Tensor] = {}
        high: dict[str, Tensor] = {}
        device = device_of(network)
        with undisturbed(network), record(network, layers) as outputs:
            for batch in dictionary.batches(batch_size):
                outputs.clear()
                run(network, batch.images.to(device))
                for name in layers:
                    maps = unit_maps(name, outputs, len(batch.index), grid)
                    evidence[name].update(maps, batch)
                    values = maps.transpose(0, 1).flatten(1)
                    low[name] = torch.minimum(low.get(name, values.amin(1)), values.amin(1))
                    high[name] = torch.maximum(high.get(name, values.amax(1)), values.amax(1))
        for name in layers:
            networks[name].append((evidence[name].compute(), (high[name] > low[name]).cpu()))
    return {name: learnt_null(found) for name, found in networks.items()}


def fresh_networks(
    model: nn.Module, seeds: Sequence[int], factory: Callable[[], nn.Module] | None = None
) -> Iterator[nn.Module]:
    """Networks of one architecture with fresh weights, one for each seed; no random number of the caller is used up.

    Args:
        model: Gives the architecture and the device.
        seeds: One for each network.
        factory: As in :func:`fresh_null`.

    Raises:
        ValueError: As :func:`renewed`.
    """
    device = device_of(model)
    for seed in seeds:
        with kept_random_state(device):
            torch.manual_seed(seed)
            network = renewed(model) if factory is None else factory()
        yield network.to(device)


def renewed(model: nn.Module) -> nn.Module:
    """A copy of the model with fresh weights: ``reset_parameters`` of every module that has it.

    Raises:
        ValueError: If a parameter, or a buffer of a module that has parameters, is left as it was.

    Example:
        >>> import torch
        >>> from lightning_hnd.fresh import renewed
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> bool((renewed(model)[0].weight == model[0].weight).any())
        False
    """
    network = copy.deepcopy(model)
    # a mark that no initialisation leaves: what still bears it was not reset
    with torch.no_grad():
        for tensor in _weights(network).values():
            tensor.fill_(torch.nan)
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    missed = [name for name, tensor in _weights(network).items() if bool(tensor.isnan().any())]
    if missed:
        raise ValueError(
            f"reset_parameters does not reach {len(missed)} weights of {type(model).__name__}: {', '.join(missed[:5])}"
            f"{', ...' if len(missed) > 5 else ''}; give a factory that makes a network with fresh weights"
        )
    return network


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Parameters, and buffers of modules that have parameters: other buffers are constants."""
    weights: dict[str, Tensor] = dict(network.named_parameters())
    for prefix, module in network.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    weights[f"{prefix}.{name}".lstrip(".")] = buffer
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}


def _estimate_batch_norm(
    network: nn.Module, dictionary: FaceDictionary, run: Callable[[nn.Module, Tensor], object], batch_size: int
) -> None:
    """Gives batch norms the mean and variance of the dictionary's images: fresh ones know of none."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    device = device_of(network)
    with kept_random_state(device), torch.no_grad():
        network.eval()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
            norm.train()
        step = max(1, len(dictionary) // _BATCH_NORM_IMAGES)  # evenly over the sources
        images = torch.arange(0, len(dictionary), step)
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
        for some in images.split(batch_size):
            run(network, dictionary.images(some).to(device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
