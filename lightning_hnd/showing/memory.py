"""Want of memory, whatever it is called where it happens."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, is want of memory, on a device or on the host."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's, on the CPU
            return True
        error = error.__cause__ or error.__context__
    return False
