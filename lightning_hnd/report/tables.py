"""The strongest assignments as a table, on the console and in Markdown."""

from __future__ import annotations

from rich.table import Table

from lightning_hnd.dissection import Dissection
from lightning_hnd.layer_dissection import LayerDissection


def summary_table(layer: LayerDissection, rows: int = 8) -> Table:
    """The strongest units of a layer, each with its three strongest concepts: for the console.

    Args:
        layer: Any.
        rows: Units at most.
    """
    table = Table()
    for column in layer.columns:
        table.add_column(column, justify="right" if column == "unit" else "left")
    for row in layer.assignments(rows, concepts=3, separator="\n"):
        table.add_row(*row)
    return table


def markdown_table(dissection: Dissection, rows: int = 20) -> str:
    """The strongest units of each layer with all their concepts, in Markdown.

    Args:
        dissection: Any.
        rows: Units of each layer at most.
    """
    layers = "\n\n".join(layer_markdown(layer, rows) for layer in dissection)
    return f"Rule {dissection.rule.name}\n\n{layers}\n"


def layer_markdown(layer: LayerDissection, rows: int = 20) -> str:
    """The strongest units of a layer with all their concepts, in Markdown.

    Args:
        layer: Any.
        rows: Units at most.
    """
    table = [layer.columns, ("---",) * len(layer.columns), *layer.assignments(rows)]
    return "\n".join([layer.headline, "", *("| " + " | ".join(row) + " |" for row in table)])
