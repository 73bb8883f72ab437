"""The strongest assignments as a table, on the console and in Markdown."""

from __future__ import annotations

from rich.table import Table

from lightning_hnd.dissection import Dissection, LayerDissection

COLUMNS = ("unit", "region", "concepts: probability (IoU)", "groups: probability")


def summary_table(layer: LayerDissection, rows: int = 8) -> Table:
    """The strongest units of a layer, highest IoU first, each with its three most probable concepts: for the console.

    Args:
        layer: Any.
        rows: Units at most.
    """
    table = Table()
    for column in COLUMNS:
        table.add_column(column, justify="right" if column == "unit" else "left")
    for row in assignments(layer, rows, concepts=3, separator="\n"):
        table.add_row(*row)
    return table


def markdown_table(dissection: Dissection, rows: int = 20) -> str:
    """The strongest units of each layer with all their concepts, in Markdown.

    Args:
        dissection: Any.
        rows: Units of each layer at most.
    """
    lines = [f"Rule {dissection.rule.name}", ""]
    for layer in dissection:
        lines += [headline(layer), "", "| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in assignments(layer, rows)]
        lines.append("")
    return "\n".join(lines)


def headline(layer: LayerDissection) -> str:
    """One sentence: how many units are interpretable."""
    live, found = len(layer) - int(layer.dead.sum()), int(layer.interpretable.sum())
    regions = [
        f"{region} {n}"
        for r, region in enumerate(layer.ontology.regions)
        if (n := int((layer.interpretable & (layer.region == r)).sum()))
    ]
    where = f" ({', '.join(regions)})" if regions else ""
    dead = f"; {len(layer) - live} dead" if live < len(layer) else ""
    return f"{layer.name}: {found} of {live} live units interpretable{where}{dead}"


def assignments(
    layer: LayerDissection, rows: int, *, concepts: int | None = None, separator: str = ", "
) -> list[tuple[str, ...]]:
    """One row of text for each of the strongest units, by :data:`COLUMNS`."""
    return [
        (
            str(u),
            layer.units[u].region or "",
            separator.join(f"{c.name} {c.probability:.2f} ({c.iou:.3f})" for c in layer.units[u].concepts[:concepts]),
            separator.join(f"{g.concept}={g.group} {g.probability:.2f}" for g in layer.units[u].groups),
        )
        for u in layer.strongest[:rows]
    ]
