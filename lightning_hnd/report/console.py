"""A dissection on the console."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from rich.console import Console
from tqdm.auto import tqdm

from lightning_hnd.dissection import Dissection
from lightning_hnd.report.tables import summary_table


def show(readings: Sequence[Dissection], title: str) -> None:
    """Prints a sentence for each rule and the strongest assignments of the last, above any running progress bar.

    Args:
        readings: A dissection under several rules.
        title: Says of when it is.
    """
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=sys.stdout.isatty(),
        width=Console().width,
        markup=False,  # names are shown as they are, brackets and all
        emoji=False,
        highlight=False,
    )
    for layers in zip(*readings, strict=True):
        for layer in layers:
            console.print(f"{title} | {layer.rule.name} | {layer.headline}")
        if layers[-1].assignments(1):
            console.print(summary_table(layers[-1]))
    tqdm.write(text.getvalue().rstrip("\n"))
