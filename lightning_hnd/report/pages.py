"""A Face Dictionary as pictures in files: a contact sheet for each concept and group, and a page of all of them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.report.figures import Picture
from lightning_hnd.report.sheets import contact_sheet

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { border-bottom: 1px solid #ccc; margin-top: 2.5rem; }
figure { margin: 1.2rem 0; } figcaption { margin-bottom: .3rem; } img { max-width: 100%; display: block; }
nav a { margin-right: .7rem; white-space: nowrap; } .note { color: #666; }
"""


def write_sheets(dictionary: FaceDictionary, folder: Path) -> Path:
    """Writes ``<concept>.png`` and ``<concept>-<group>.png``, and ``index.html``, which needs none of them.

    Args:
        dictionary: Any.
        folder: Where to; made if it is not there. Files of these names are replaced.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chapters = {title: names for title, names in _chapters(dictionary) if names}
    sheets: dict[str, Picture] = {}
    names = [name for own in chapters.values() for name in own]
    for name in tqdm(names, "Drawing contact sheets", leave=False, disable=None, delay=2):
        sheets[name] = contact_sheet(dictionary, name)
        Image.fromarray(sheets[name]).save(folder / f"{_slug(name)}.png")
    page = folder / "index.html"
    page.write_text("\n".join(_page(dictionary, chapters, sheets)), encoding="utf-8")
    return page


def _chapters(dictionary: FaceDictionary) -> Iterator[tuple[str, dict[str, int]]]:
    """By region and by global concept what the dictionary has, with the number of images."""
    ontology, counts = dictionary.ontology, dictionary.images_per_concept
    for region in ontology.regions:
        yield region, {c.name: n for c, n in zip(ontology.local, counts, strict=True) if c.region == region and n}
    per_group = iter(dictionary.images_per_group)
    for concept in ontology.global_:
        own = {f"{concept.name}/{group}": next(per_group) for group in concept.groups}
        yield f"apparent {concept.name}", {name: n for name, n in own.items() if n}


def _page(dictionary: FaceDictionary, chapters: dict[str, dict[str, int]], sheets: dict[str, Picture]) -> Iterator[str]:
    title = html.escape(str(dictionary))
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{_STYLE}</style></head><body><h1>Face Dictionary</h1><p>{title}</p>"
    yield (
        '<p class="note">For each local concept: faces that carry it, spread evenly over all, each next to a copy with '
        "the mask in red. For each group: some of its faces. Groups are apparent: labels that annotators gave to "
        "pictures, not facts about people.</p>"
    )
    if dictionary.datacard:
        facts = "".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in dictionary.datacard.items()
        )
        yield f"<details><summary>Datacard</summary><dl>{facts}</dl></details>"
    for chapter, names in chapters.items():
        links = "".join(f'<a href="#{_slug(name)}">{html.escape(name)}</a>' for name in names)
        yield f"<nav><b>{html.escape(chapter)}</b> {links}</nav>"
    for chapter, names in chapters.items():
        yield f"<h2>{html.escape(chapter)}</h2>"
        for name, count in names.items():
            shown = html.escape(name)
            yield (
                f'<figure id="{_slug(name)}"><figcaption><b>{shown}</b> ({count} images)</figcaption>'
                f'<img alt="faces of {shown}" src="{_inline(sheets[name])}"></figure>'
            )
    yield "</body></html>\n"


def _inline(picture: Picture) -> str:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _slug(name: str) -> str:
    """A name as part of a file's name and of a link, whatever an ontology calls its concepts."""
    return "".join(character if character.isalnum() or character in "_-" else "-" for character in name)
