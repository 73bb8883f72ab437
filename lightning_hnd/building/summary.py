"""What was built, as tables for the console."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from lightning_hnd.building.build import GENERAL, Built
from lightning_hnd.concepts import PAPER


def summary_tables(built: Built) -> list[Table]:
    """Images of each concept and group, and where they come from.

    Args:
        built: A dictionary.
    """
    return [table for table in (_concepts(built), _groups(built), _sources(built)) if table.row_count]


def _concepts(built: Built) -> Table:
    table = Table("kind", "concept", "images with it", "without it", title=f"{built.path}: local concepts")
    card, kind = built.datacard, ""
    for concept in PAPER.local:
        if concept.name not in card["concepts"]:
            continue
        images = card["concepts"][concept.name]
        without = "" if concept.kind == "part" else str(card["kinds"][concept.kind] - images)
        table.add_row("" if concept.kind == kind else concept.kind, concept.name, str(images), without)
        kind = concept.kind
    return table


def _groups(built: Built) -> Table:
    table = Table("concept", "images of each group", "matched on", "not matched on", title=f"{built.path}: groups")
    for concept, groups in built.datacard["groups"].items():
        matched = built.datacard["matched"][concept]
        images = ", ".join(f"{group} {count}" for group, count in groups.items())
        table.add_row(concept, images, ", ".join(matched["on"]), ", ".join(matched["not_on"]))
    return table


def _sources(built: Built) -> Table:
    table = Table("source", "images", "what to know", title=f"{built.path}: sources")
    for source in built.datacard["sources"]:
        found = "\n".join(f"- {finding}" for finding in built.findings[source["name"]])
        table.add_row(source["name"], str(source["images"]), escape(found))
    if built.findings[GENERAL]:
        table.add_row("all", "", escape("\n".join(f"- {finding}" for finding in built.findings[GENERAL])))
    return table
