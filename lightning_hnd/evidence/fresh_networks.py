"""Networks of one architecture with fresh weights: how they are made."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.showing.activations import record
from lightning_hnd.showing.showing import Showing
from lightning_hnd.showing.undisturbed import device_of, kept_random_state

_BATCH_NORM_IMAGES = 128  # with the places of their maps some thousand values of each unit, and more
_IN_A_BATCH = 64  # of them, where nobody says how many


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
        >>> from lightning_hnd.evidence.fresh_networks import renewed
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
            name = "reset_parameters" if hasattr(module, "reset_parameters") else "_reset_parameters"
            if callable(getattr(module, name, None)):
                _reset(module, name)
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


def _reset(module: nn.Module, name: str) -> None:
    try:
        getattr(module, name)()
    except Exception as error:
        raise ValueError(
            f"{name} of {type(module).__name__} failed ({type(error).__name__}: {error}); give a factory "
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
                if buffer.is_floating_point() or buffer.is_complex():
                    weights[f"{prefix}.{name}".lstrip(".")] = buffer
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point() or tensor.is_complex()}


def _batch_norms(network: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Those that keep a mean and a variance of what they see, by name."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: m for name, m in network.named_modules() if isinstance(m, kind) and m.running_mean is not None}


def unseen_batch_norms(model: nn.Module) -> frozenset[str]:
    """Names of batch norms that are as they were made, with mean 0 and variance 1: none has learnt from an image."""
    as_made = {"running_mean": 0, "running_var": 1}
    return frozenset(
        name
        for name, norm in _batch_norms(model).items()
        if all(bool(norm.get_buffer(buffer).eq(value).all()) for buffer, value in as_made.items())
    )


def estimate_batch_norms(
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
