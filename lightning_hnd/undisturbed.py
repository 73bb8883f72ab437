"""Leaving training as it was found: random numbers, modes, buffers, logs."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Where the model is: the device of its first parameter or buffer, else the CPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


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
def undisturbed(model: nn.Module) -> Iterator[None]:
    """While open the model is in evaluation mode without gradients; at the end all is as it was.

    Restores, also after an exception, the random state, and the mode and the buffers of every submodule: a
    forward pass may count or keep averages, and some modules refuse to leave training mode. Inference mode is
    left for the time, since tensors made in it could not be used in training later.

    Args:
        model: The module that is about to run.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with kept_random_state(device_of(model)), torch.inference_mode(False), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                module._buffers[name] = buffer


@contextlib.contextmanager
def unlogged(module: nn.Module) -> Iterator[None]:
    """While open, what the module logs in its forward goes nowhere: the dictionary is not its data."""
    silent = dict.fromkeys(("log", "log_dict"), lambda *_args, **_kwargs: None)
    vars(module).update(silent)
    try:
        yield
    finally:
        for name in silent:
            del vars(module)[name]
