"""Leaving training as it was found: random numbers, modes, buffers and attributes, logs."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_hnd.showing.holdings import Holdings

_FULL = ("ieee", "none")  # none: nobody has chosen


def device_of(model: nn.Module) -> torch.device:
    """Where the model is: the device of its first parameter or buffer, else the CPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in the precision of what is multiplied, also where the caller has chosen less for those of the model.

    That is by autocast, or by letting products of float32 be made of TF32 or bfloat16.
    """
    with torch.autocast(device.type, enabled=False), _float32_products():
        yield


@contextlib.contextmanager
def _float32_products() -> Iterator[None]:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9 there is one setting for all
        chosen = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(chosen)
        return
    # by their own settings, for torch refuses to tell the one of all when these were set
    backends: list[Any] = [getattr(torch.backends, name).matmul for name in ("cuda", "mkldnn")]
    less = [(backend, backend.fp32_precision) for backend in backends if backend.fp32_precision not in _FULL]
    try:
        for backend, _ in less:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in less:
            backend.fp32_precision = "none"  # what one setting for several backends says goes on to hold
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


@contextlib.contextmanager
def kept_random_state(device: torch.device | None = None) -> Iterator[None]:
    """Gives the random number generators of Python, numpy and torch back as they were, also after an exception.

    Args:
        device: A CUDA device whose generator to keep, too.
    """
    state = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global one is what training uses
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(state[0])
            np.random.set_state(state[1])  # noqa: NPY002


@contextlib.contextmanager
def kept_generators(dataloader: object) -> Iterator[None]:
    """Gives generators of a dataloader's own back as they were: training may draw from the same.

    Args:
        dataloader: That is about to be gone through. Generators are looked for in itself and its samplers.
    """
    batches = getattr(dataloader, "batch_sampler", None)
    holders = (dataloader, getattr(dataloader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = {id(g): g for g in (getattr(h, "generator", None) for h in holders) if isinstance(g, torch.Generator)}
    states = [(generator, generator.get_state()) for generator in found.values()]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


@contextlib.contextmanager
def _lenient_determinism() -> Iterator[None]:
    """While open, what has no deterministic algorithm is warned of: sums on a GPU may have none, and train nothing."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(min(mode, 1))  # error becomes warn
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """While open the model is in evaluation mode without gradients; at the end all is as it was.

    Restores, also after an exception, the random state, and of every submodule the mode, the buffers and what else a
    forward pass may count or keep in an attribute: numbers, tensors, the last output, random number generators of its
    own, lists and dicts of such (:class:`~lightning_hnd.showing.holdings.Holdings`). Parameters are not copied: no
    forward pass should change them. Inference mode is left for the time, since tensors made in it could not be used in
    training later. Where only deterministic algorithms are allowed, others are warned of.

    Args:
        model: The module that is about to run.

    Raises:
        ValueError: If a layer is lazy and has not run yet: the dictionary would give it its shape and random weights.
    """
    _refuse_lazy(model)
    modules = [(module, module.training) for module in model.modules()]
    holdings = Holdings(module for module, _ in modules)
    with kept_random_state(device_of(model)), _lenient_determinism(), torch.inference_mode(False), torch.no_grad():
        try:
            for module, _ in modules:
                module.training = False  # not by eval(), which runs a train() that may merge or freeze weights
            yield
        finally:
            holdings.restore()
            for module, training in modules:
                module.training = training  # of a TorchScript module it is no attribute


def _refuse_lazy(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{name!r} is lazy: the layer has not run yet and would take its shape and weights from the "
                "dictionary. Run the model on one batch before, for instance in configure_model"
            )


@contextlib.contextmanager
def unlogged(module: nn.Module) -> Iterator[None]:
    """While open, what the module logs in its forward goes nowhere: the dictionary is not its data."""
    silent = dict.fromkeys(("log", "log_dict"), lambda *_args, **_kwargs: None)
    own = {name: value for name, value in vars(module).items() if name in silent}
    vars(module).update(silent)
    try:
        yield
    finally:
        for name in silent:
            del vars(module)[name]
        vars(module).update(own)
