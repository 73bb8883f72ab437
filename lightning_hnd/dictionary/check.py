"""What is wrong with a Face Dictionary: all of it, and what it means for a dissection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_hnd.concepts import PAPER, Ontology
from lightning_hnd.dictionary import comparing
from lightning_hnd.dictionary.confounds import CrossTable, cross_tables
from lightning_hnd.dictionary.face_dictionary import FaceDictionary
from lightning_hnd.dictionary.flaws import Finding, Flaw, Level
from lightning_hnd.dictionary.layout import Entry, Files, list_folder
from lightning_hnd.dictionary.looking import Look, look
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.in_threads import in_threads


@dataclass(frozen=True)
class Examination:
    """What a check found.

    Attributes:
        root: The folder.
        images: How many images can be used.
        per_concept: How many of them carry each local concept.
        per_group: How many are in each group, by ``concept/group``.
        findings: What is wrong, worst first.
        tables: How labels that are confounded go together, strongest first.
    """

    root: Path
    images: int
    per_concept: dict[str, int]
    per_group: dict[str, int]
    findings: tuple[Finding, ...]
    tables: tuple[CrossTable, ...]

    @cached_property
    def levels(self) -> Counter[Level]:
        """How many findings there are of each level."""
        return Counter(finding.flaw.level for finding in self.findings)

    @property
    def sound(self) -> bool:
        """Whether the dictionary can be read, and nothing in it makes results wrong."""
        return not self.levels[Level.REFUSED] and not self.levels[Level.WRONG]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "dictionary": str(self.root),
            "images": self.images,
            "per_concept": self.per_concept,
            "per_group": self.per_group,
            "findings": [finding.to_dict() for finding in self.findings],
            "tables": [
                {
                    "concept": table.concept,
                    "label": table.label,
                    "rows": list(table.rows),
                    "columns": list(table.columns),
                    "counts": table.counts.tolist(),
                    "strength": table.strength,
                }
                for table in self.tables
            ],
        }


def check(path: str | Path, ontology: Ontology = PAPER) -> Examination:
    """Reads everything in a dictionary folder and goes on after each flaw.

    What :meth:`FaceDictionary.from_folder` would refuse is found by the same code.

    Args:
        path: The folder.
        ontology: The concepts to look for.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no Face Dictionary at {root}: no such folder")
    files = Files(root)
    findings: list[Finding] = []
    listing = list_folder(files, ontology, findings.append)
    looks, labels = [], []
    with closing(in_threads(lambda entry: _look(root, entry), listing.entries, "Checking")) as results:
        for (seen, found), known in zip(results, listing.labels, strict=True):
            findings.extend(found)
            if seen is not None:
                looks.append(seen)
                labels.append(known)
    findings.extend(comparing.misplaced_masks(looks, labels, ontology))
    findings.extend(comparing.shared_masks(looks))
    findings.extend(comparing.copies(looks, ontology))
    findings.extend(comparing.contradictions(listing, ontology))
    findings.extend(comparing.unlisted(files, listing, ontology))
    per_concept = dict.fromkeys((c.name for c in ontology.local), 0)
    per_group = {f"{c.name}/{group}": 0 for c in ontology.global_ for group in c.groups}
    tables: tuple[CrossTable, ...] = ()
    if looks:
        faces = _thumbnails(looks, labels, ontology)
        per_concept = dict(zip(per_concept, faces.images_per_concept, strict=True))
        per_group = dict(zip(per_group, faces.images_per_group, strict=True))
        tables = tuple(comparing.confounded(cross_tables(faces)))
        findings.extend(comparing.counted(faces, per_concept, per_group))
        findings.extend(map(comparing.confound, tables))
        findings.extend(comparing.untold(faces))
    order = {flaw: i for i, flaw in enumerate(Flaw)}
    findings.sort(key=lambda finding: order[finding.flaw])
    return Examination(root, len(looks), per_concept, per_group, tuple(findings), tables)


def _look(root: Path, entry: Entry) -> tuple[Look | None, list[Finding]]:
    found: list[Finding] = []
    return look(root, entry, found.append), found


def _thumbnails(looks: Sequence[Look], labels: Sequence[Mapping[str, str]], ontology: Ontology) -> FaceDictionary:
    """The dictionary without its pixels: who carries what, for counts and cross-tables."""
    entries = [look.entry for look in looks]
    owners = [(i, c) for i, entry in enumerate(entries) for c in entry.masks]
    return FaceDictionary(
        ontology=ontology,
        pictures=torch.from_numpy(np.stack([look.thumbnail for look in looks])).unsqueeze(1),
        source=torch.tensor([entry.source for entry in entries]),
        group=torch.tensor([entry.group for entry in entries]).reshape(len(entries), len(ontology.global_)),
        masks=PackedMasks(torch.zeros(len(owners), 1, dtype=torch.uint8), (1, 1)),
        mask_image=torch.tensor([i for i, _ in owners], dtype=torch.int64),
        mask_concept=torch.tensor([c for _, c in owners], dtype=torch.int64),
        names=tuple(entry.name for entry in entries),
        labels=tuple(labels),
        mean=(0.5,),
        std=(0.5,),
    )
