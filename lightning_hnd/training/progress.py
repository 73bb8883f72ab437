"""How far a dissection is, beside the progress bar of a Trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import lightning.pytorch as pl
from rich.progress import Progress

from lightning_hnd.showing.showing import Bar, terminal_bar

_DELAY = 2.0  # seconds that nobody minds to wait
_PAUSE = 0.1  # between two looks


def bar_of(trainer: pl.Trainer) -> Bar | None:
    """What shows how far a loop is while a Trainer runs; None where it shows nothing itself.

    Rich keeps the terminal to itself while it shows bars, and prints each state of another bar on a line of its own. So
    beside Lightning's ``RichProgressBar`` there is one more bar of Rich's.
    """
    if not trainer.is_global_zero or trainer.progress_bar_callback is None:
        return None

    def bar(steps: range, title: str) -> Iterator[int]:
        rich = getattr(trainer.progress_bar_callback, "progress", None)
        if isinstance(rich, Progress) and rich.live.is_started:
            yield from _beside(rich, steps, title)
        else:
            yield from terminal_bar(steps, title)

    return bar


def _beside(rich: Progress, steps: range, title: str) -> Iterator[int]:
    task, due = None, time.monotonic() + _DELAY
    try:
        for done, step in enumerate(steps):
            if time.monotonic() >= due:
                task = rich.add_task(title, total=len(steps)) if task is None else task
                rich.update(task, completed=done, refresh=True)
                due = time.monotonic() + _PAUSE
            yield step
    finally:
        if task is not None:
            rich.remove_task(task)
            rich.refresh()
