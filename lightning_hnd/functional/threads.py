"""Strings of short steps side by side, each on one thread.

The threads of one step of torch wait for each other at its end. That pays in a convolution; in a string of short steps
it gains little, and where other processes want the cores, too (those that load data do), a thread that waits for its
turn holds up all others: tens of times the time was seen.

``torch.set_num_threads`` would not do: it changes, for the whole process and for good, how MKL chooses its threads,
and may so change the last bits of a training that goes on. What OpenMP is told holds for the thread that tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

_MOST = 8  # threads; more of them wait for the interpreter


def side_by_side(work: Callable[[Tensor], Tensor], parts: Sequence[Tensor], device: torch.device) -> Iterable[Tensor]:
    """Does independent parts of a work, in main memory as many at a time as torch has threads, each on one.

    Args:
        work: What to do with a part. It must need no gradients.
        parts: The parts.
        device: Where the tensors are; elsewhere than in main memory the parts follow each other.

    Returns:
        The results in their order.
    """
    threads = min(torch.get_num_threads(), len(parts), _MOST)
    if device.type != "cpu" or threads < 2:
        return map(work, parts)
    openmp = _openmp()

    def alone(part: Tensor) -> Tensor:
        torch.get_num_threads()  # a thread's first call of torch gives it the number of its process
        with openmp.limit(limits=1), torch.no_grad():
            return work(part)

    with ThreadPoolExecutor(threads, "lightning-hnd") as pool:
        return list(pool.map(alone, parts))


@cache  # to look for it takes as long as a small work
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")
