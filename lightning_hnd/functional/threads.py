"""On how many threads work is done in main memory: short steps each on one, several strings of them side by side.

The threads of one step of torch wait for each other at its end. That pays in a convolution; in a string of short steps
it gains little, and where other processes want the cores, too (those that load data do), a thread that waits for its
turn holds up all others: tens of times the time was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

_MOST = 8  # threads; more of them wait for the interpreter


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch do the steps within on one thread. As a decorator, those of a function."""
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(own)


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
    with one_thread(), ThreadPoolExecutor(threads, "lightning-hnd", lambda: torch.set_num_threads(1)) as pool:
        return list(pool.map(torch.no_grad()(work), parts))
