"""Two processes joined by gloo, in which tests run functions: started once, for that takes seconds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

LIMIT = 60.0
"""Seconds after which a process counts as hanging."""


class Pair:
    """Two processes that are to Lightning those of ``Trainer(strategy="ddp", devices=2)``, started outside of it.

    Args:
        folder: Where they meet.
    """

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, str(folder / "rendezvous"), theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """Calls a function of a module in both: what it returns in each, or the exception that it raises."""
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, args, options)))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(LIMIT):
                self.close()
                raise TimeoutError(f"process {rank} hangs in {function.__name__}")
            results.append(pickle.loads(pipe.recv_bytes()))
        return results

    def results(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """The same, where no exception is expected."""
        results = self.run(function, *args, **options)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    @property
    def alive(self) -> bool:
        """Whether functions can be run."""
        return all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        """Ends both."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, rendezvous: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group(
        "gloo", f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(seconds=LIMIT / 2)
    )
    with contextlib.suppress(EOFError):
        while True:
            function, args, options = pickle.loads(pipe.recv_bytes())
            try:
                result = function(*args, **options)
            except BaseException as error:
                result = error
            pipe.send_bytes(_pickled(result))


def _pickled(result: Any) -> bytes:
    if isinstance(result, BaseException):  # without what hangs on it
        result.__cause__ = result.__context__ = result.__traceback__ = None
    return pickle.dumps(result)
