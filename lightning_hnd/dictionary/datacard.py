"""The datacard: where a dictionary comes from, said in a file at its root that travels into every dissection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "datacard.json"
_LIMIT = 2**20  # bytes; it goes into every dissection


def read_datacard(root: Path) -> dict[str, Any]:
    """The datacard of a dictionary folder.

    Args:
        root: The folder.

    Returns:
        What it says; nothing where there is none, as in the released dictionary.

    Raises:
        ValueError: If it is no JSON object, or larger than a mebibyte.
    """
    path = root / FILE
    if not path.is_file():
        return {}
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} lies outside the dictionary")
    if (size := path.stat().st_size) > _LIMIT:
        raise ValueError(f"{path} has {size} bytes; a datacard goes into every dissection, it may have {_LIMIT}")
    try:
        card = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}; mend it, or move it away") from error
    if not isinstance(card, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(card).__name__}")
    return card


def write_datacard(root: Path, card: Mapping[str, Any]) -> None:
    """Writes the datacard of a dictionary folder.

    Args:
        root: The folder.
        card: Plain data.
    """
    (root / FILE).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
