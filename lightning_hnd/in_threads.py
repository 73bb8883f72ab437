"""Many files worked on at the same time: read, measured, written."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm.auto import tqdm

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], title: str, *, progress: bool = True
) -> Generator[_Result, None, None]:
    """Results in the order of the items.

    After an exception, and once it is closed, none of its threads is left running. Close it after an error of your own,
    so that no work is done in vain.

    Args:
        function: What to do with an item. Worth it if it lets other threads run meanwhile, as Pillow and NumPy do.
        items: What to give to it, one at a time.
        title: Of the progress bar, and of the threads.
        progress: Whether to show a progress bar where there is a terminal.
    """
    items, threads = list(items), f"lightning-hnd {title}"
    with ThreadPoolExecutor(os.cpu_count(), threads) as pool:  # more would only wait for each other
        try:
            yield from tqdm(
                pool.map(function, items), title, len(items), leave=False, disable=None if progress else True, delay=1
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            for thread in threading.enumerate():  # one that was starting when an interrupt came the pool does not know
                if thread.name.startswith(threads):
                    thread.join()
            raise
