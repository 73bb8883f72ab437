"""What is done about an exception: some may become warnings so that training goes on, some never."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lightning.pytorch.utilities import rank_zero_warn

from lightning_hnd.showing.memory import out_of_memory


@contextlib.contextmanager
def tolerated(doing: str, consequence: str, *, tolerate: bool = True) -> Iterator[None]:
    """Turns an exception in the block into a warning; execution continues after the block.

    Want of memory is always raised: the next step of the training would fail for it, too. So is what is no
    ``Exception``: ``KeyboardInterrupt``, ``SystemExit``.

    Args:
        doing: What is tried, as it reads after "could not".
        consequence: What it means for the user, a whole sentence.
        tolerate: Whether to; if not, everything is raised.
    """
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            rank_zero_warn(
                f"HNDCallback could not {doing} for want of memory; a smaller batch_size= or budget= needs less"
            )
            raise
        if not tolerate:
            raise
        rank_zero_warn(f"HNDCallback could not {doing}: {type(error).__name__}: {error}. {consequence}")
