"""A dissection on the console."""

from __future__ import annotations

import io
import sys

from rich.console import Console
from tqdm.auto import tqdm

from lightning_hnd.dissection import Dissection
from lightning_hnd.report.tables import summary_table


def show(dissection: Dissection, title: str) -> None:
    """Prints the strongest assignments, above any progress bar that is running.

    Args:
        dissection: Any.
        title: Says of when it is.
    """
    text = io.StringIO()
    console = Console(file=text, force_terminal=sys.stdout.isatty(), width=Console().width)
    for layer in dissection:
        console.print(f"{title} | {layer.headline}", highlight=False, markup=False)
        if layer.strongest:
            console.print(summary_table(layer))
    tqdm.write(text.getvalue().rstrip("\n"))
