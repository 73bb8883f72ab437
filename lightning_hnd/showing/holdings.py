"""What modules hold in their attributes, remembered as it is, so that it can be put back."""

from __future__ import annotations

import operator
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial, singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

PutBack = Callable[[], object]

_PLAIN = frozenset({int, float, complex, str, bytes, bool, type(None)})
_LEFT = frozenset({"_parameters", "_buffers"})  # the one a strategy may exchange in a pass, the other comes by itself


class Holdings:
    """What modules hold beside parameters: which submodules and hooks, buffers, attributes, and what is in these.

    Of lists, dicts, sets, deques and tuples, in each other however deep, the contents are remembered; of tensors,
    arrays and random number generators in them the state. Into other objects nobody looks.

    Args:
        modules: Each is looked at by itself, without those in it.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._attributes = [(held, dict(held)) for module in modules for held in (vars(module), module._buffers)]
        self._put_back: list[PutBack] = []
        seen: dict[int, object] = {}  # by identity, and held, so that none is given to another object meanwhile
        waiting: list[object] = []
        for _, values in self._attributes:
            waiting += [value for name, value in values.items() if name not in _LEFT]
        while waiting:
            value = waiting.pop()
            if type(value) in _PLAIN or id(value) in seen:
                continue
            seen[id(value)] = value
            put_back = _remember(value)
            if put_back is not None:
                self._put_back.append(put_back)
            waiting += _inside(value)

    def restore(self) -> None:
        """Puts everything back, in place. What has not changed is not written to: that may not even be possible."""
        for held, before in self._attributes:
            now = dict(held)  # the buffers of a TorchScript module are less than a mapping
            for name in now.keys() - before.keys():
                del held[name]
            for name, value in before.items():
                if name not in now or now[name] is not value:
                    held[name] = value
        for put_back in self._put_back:
            put_back()


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set | deque) else ()


@singledispatch
def _remember(value: object) -> PutBack | None:
    """What gives an object its state of now back; None for one that has none, or of which nothing is known."""
    return None


@_remember.register
def _(value: Tensor) -> PutBack | None:
    return partial(_restore_tensor, value, value.detach().clone()) if _can_change(value) else None


@_remember.register
def _(value: np.ndarray) -> PutBack | None:
    in_memory = value.flags.writeable and not isinstance(value, np.memmap)
    return partial(_restore_array, value, value.copy()) if in_memory else None


@_remember.register
def _(value: dict) -> PutBack:  # type: ignore[type-arg]
    return partial(_restore_dict, value, list(value), list(value.values()))


@_remember.register(list)
@_remember.register(deque)
def _(value: Any) -> PutBack:
    return partial(_restore_sequence, value, list(value))


@_remember.register
def _(value: set) -> PutBack:  # type: ignore[type-arg]
    return partial(_restore_set, value, set(value))


@_remember.register
def _(value: torch.Generator) -> PutBack:
    return partial(value.set_state, value.get_state())


@_remember.register
def _(value: np.random.Generator) -> PutBack:
    return partial(setattr, value.bit_generator, "state", value.bit_generator.state)


@_remember.register
def _(value: np.random.RandomState) -> PutBack:
    return partial(value.set_state, value.get_state())


@_remember.register
def _(value: random.Random) -> PutBack | None:
    return None if isinstance(value, random.SystemRandom) else partial(value.setstate, value.getstate())


def _restore_tensor(tensor: Tensor, before: Tensor) -> None:
    if not _same_bits(tensor, before):  # to write would change its version, by which a graph that holds it is refused
        tensor.copy_(before)


def _restore_array(array: npt.NDArray[Any], before: npt.NDArray[Any]) -> None:
    if array.tobytes() != before.tobytes():
        array[...] = before


def _restore_dict(whole: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    if not (_same(list(whole), keys) and _same(list(whole.values()), values)):
        whole.clear()
        for key, value in zip(keys, values, strict=True):
            whole[key] = value


def _restore_sequence(whole: Any, before: list[Any]) -> None:
    if not _same(whole, before):
        whole.clear()
        whole.extend(before)


def _restore_set(whole: set[Any], before: set[Any]) -> None:
    if whole != before:
        whole.clear()
        whole.update(before)


def _same(now: Sequence[Any], before: Sequence[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _same_bits(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to the last bit, also where they are NaN."""
    try:
        return torch.equal(*(one.detach().contiguous().flatten().view(torch.uint8) for one in (tensor, other)))
    except RuntimeError:  # a conjugate view, or one of another kind that does not show its bytes
        return False


def _can_change(tensor: Tensor) -> bool:
    """Whether in place: an expanded tensor cannot, nor can one that was made in inference mode, or has a gradient.

    Parameters should not, in a forward pass.
    """
    if isinstance(tensor, nn.Parameter) or tensor.requires_grad or tensor.is_inference():
        return False
    plain = tensor.layout == torch.strided and not tensor.is_nested
    return plain and not any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))
