"""Processes that dissect together: each shows a share of the dictionary, and none waits for one that has failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed

_T = TypeVar("_T")


@dataclass(frozen=True)
class Processes:
    """This process and the others.

    Attributes:
        rank: Which one this is.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def batch_size(self, wanted: int, images: int) -> int:
        """The largest size of batches, up to the one wanted, that leaves no process without any.

        Args:
            wanted: The size of a batch at most.
            images: How many images there are in all.

        Raises:
            ValueError: If there are fewer images than processes.
        """
        if images < self.size:
            raise ValueError(f"a dictionary of {images} images cannot be shared by {self.size} processes; give it more")
        return min(wanted, images // self.size)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Which of the flags is set in any process."""
        return [any(column) for column in zip(*self.gather(list(flags)), strict=True)]

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Runs a block that holds no collective call, or begins with one; if it fails anywhere, it fails everywhere.

        Args:
            what: Says in an error what the block does.

        Raises:
            RuntimeError: In the processes in which nothing happened, if the block raised in another.
        """
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            failures = self.gather(None if error is None else f"{type(error).__name__}: {error}")
            failed = [rank for rank, failure in enumerate(failures) if failure is not None]
            if error is None and failed:
                raise RuntimeError(f"{what} failed in process {failed[0]}: {failures[failed[0]]}")

    def gather(self, value: _T) -> list[_T]:
        """What each process has, by rank: a collective call."""
        if self.size == 1:
            return [value]
        gathered: list[_T] = [value] * self.size
        torch.distributed.all_gather_object(gathered, value)
        return gathered
