"""Processes that dissect together: each shows a share of the dictionary, and none waits for one that has failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed
from torch import nn

from lightning_hnd.showing.memory import out_of_memory

_T = TypeVar("_T")


@dataclass(frozen=True)
class Processes:
    """This process and the others.

    Attributes:
        rank: Which one this is.
        size: How many there are.
        split: Whether the model's weights are spread over them, so that each of its forward passes takes all of them.
    """

    rank: int = 0
    size: int = 1
    split: bool = False

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

    def first(self, value: _T) -> _T:
        """The value that the first process has, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def require_same(self, what: str, value: object, remedy: str) -> None:
        """Refuses, in all processes, what should be one thing and is not.

        Args:
            what: Of which there should be one.
            value: That of this process.
            remedy: What to do, a whole sentence.

        Raises:
            ValueError: If the value differs between processes.
        """
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(
                    f"the processes have different {what}: process 0 {values[0]}, process {rank} {other}. {remedy}"
                )

    def share_buffers(self, model: nn.Module) -> None:
        """Gives all processes the buffers of the first, as a checkpoint has them: batch norm's averages drift apart.

        Args:
            model: One whose buffers are restored later.
        """
        if self.size == 1:
            return
        buffers = list(model.buffers())
        values = self.first([buffer.cpu() for buffer in buffers])
        with self.together("taking over the buffers of process 0"):
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Runs a block that holds no collective call, or begins with one; if it fails anywhere, it fails everywhere.

        Args:
            what: Says in an error what the block does.

        Raises:
            RuntimeError: In every other process, if the block raised in one. Where it raised what must end a run
                (want of memory, an interrupt), an exception that ends it in the others, too.
        """
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            failures = self.gather(None if error is None else (_kind(error), f"{type(error).__name__}: {error}"))
            if error is None:
                for rank, failure in enumerate(failures):
                    if failure is not None:
                        kind, text = failure
                        raise kind(f"{what} failed in process {rank}: {text}")

    def forward(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Runs a block with a forward pass: :meth:`together`, unless the model is split.

        Then the others wait for this process in the midst of the same forward pass, and cannot be told of an exception;
        they end when it does.
        """
        return contextlib.nullcontext() if self.split else self.together(what)

    def gather(self, value: _T) -> list[_T]:
        """What each process has, by rank: a collective call."""
        if self.size == 1:
            return [value]
        gathered: list[_T] = [value] * self.size
        torch.distributed.all_gather_object(gathered, value)
        return gathered


ALONE = Processes()
"""The only process there is."""


def _kind(error: BaseException) -> type[BaseException]:
    """What another process raises for an error: such that all of them end, or all of them go on."""
    if out_of_memory(error):
        return MemoryError
    return RuntimeError if isinstance(error, Exception) else type(error)
