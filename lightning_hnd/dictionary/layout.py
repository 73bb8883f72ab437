"""The layout of the released Face Dictionary on disk: its tables and folders, read without opening a picture."""

from __future__ import annotations

import csv
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_hnd.concepts import Ontology
from lightning_hnd.dictionary.annotations import UNKNOWN
from lightning_hnd.dictionary.datacard import FILE as DATACARD
from lightning_hnd.dictionary.datacard import read_datacard
from lightning_hnd.dictionary.flaws import Finding, Flaw, Report

TABLE_OF_KIND = {"attribute": "Attributes.csv", "action_unit": "Action_Units.csv", "part": "Parts.csv"}
FOLDER_OF_KIND = {"attribute": "attributes", "action_unit": "AU", "part": "parts"}
GLOBAL_FOLDER = "non_localizable"
LABELS = f"{GLOBAL_FOLDER}/labels.csv"
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
PACKED = ".packed"
"""Where the packed form of a dictionary lies, in its folder: no part of it."""

_SHOWN = 200  # characters of a name, in messages


@dataclass(frozen=True)
class Entry:
    """One image of the dictionary: its file, the files of its masks by concept, and its labels.

    Names of files are relative to the dictionary, with ``/``.
    """

    name: str
    masks: Mapping[int, str]
    source: int
    group: tuple[int, ...]


@dataclass(frozen=True)
class Listing:
    """All that a dictionary says of its images: ``labels[i]`` are those of ``entries[i]`` in ``labels.csv``."""

    entries: tuple[Entry, ...]
    labels: tuple[Mapping[str, str], ...]
    datacard: Mapping[str, Any] = field(default_factory=dict)


class Files:
    """The files of a folder, as they were when it was made. No link is followed.

    Attributes:
        root: The folder.
        stamps: Of each file, by its name relative to the folder: size, and when it was last written and changed, in
            nanoseconds.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stamps: dict[str, tuple[int, int, int]] = {}
        self._plain: set[str] = set()
        self._real = os.path.realpath(root)
        self._parents: dict[str, str] = {}
        self._walk("")

    def _walk(self, folder: str) -> None:
        with os.scandir(self.root / folder) as inside:
            for item in inside:
                if item.is_dir(follow_symlinks=False):
                    if folder or item.name != PACKED:
                        self._walk(f"{folder}{item.name}/")
                    continue
                its = item.stat(follow_symlinks=False)
                self.stamps[folder + item.name] = (its.st_size, its.st_mtime_ns, its.st_ctime_ns)
                if item.is_file(follow_symlinks=False):
                    self._plain.add(folder + item.name)

    @cached_property
    def digest(self) -> str:
        """Changes whenever a file is added, removed, renamed or written."""
        return hashlib.sha256(repr(sorted(self.stamps.items())).encode("utf-8", "surrogatepass")).hexdigest()

    def find(self, name: str, where: str, report: Report) -> str | None:
        """The file that a table means; None, and a finding, if it is none, or not inside the folder.

        Args:
            name: As the table has it.
            where: The table and line.
            report: Takes the finding.
        """
        if name in self._plain:
            return name
        if not name:
            report(Finding(Flaw.MISSING, where, f"{where}: the image has no name"))
            return None
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        file = f"{self.root}/{shown}"
        try:
            path = self._real_path(name)
            inside = path.is_relative_to(self._real)
            mode = path.stat().st_mode if inside else 0
        except (FileNotFoundError, NotADirectoryError):
            what = f"there is no file {file}" + ("; write / for \\" if "\\" in name else "")
            report(Finding(Flaw.MISSING, where, f"{where}: {what}"))
        except (OSError, ValueError) as error:  # longer than a name can be, a null character, links in a circle
            report(Finding(Flaw.MISSING, where, f"{where}: {shown!r} can be no file: {error}"))
        else:
            if stat.S_ISREG(mode):
                return path.relative_to(self._real).as_posix()
            if inside:
                what = f"{file} is a folder, it should be a file" if stat.S_ISDIR(mode) else f"{file} is no file"
            else:
                what = f"{shown} lies outside the dictionary; copy the file into it and name it relative to {self.root}"
            report(Finding(Flaw.MISSING if inside else Flaw.OUTSIDE, where, f"{where}: {what}"))
        return None

    def listed(self, folder: str, report: Report) -> list[Path]:
        """What is in a folder, hidden things aside; nothing if there is no such folder, or a link leads outside."""
        path = self.root / folder
        if not path.is_dir():
            return []
        if Path(os.path.realpath(path)).is_relative_to(self._real):
            return sorted(item for item in path.iterdir() if not item.name.startswith("."))
        what = f"{path} is a link to a folder that lies outside the dictionary; copy it into the dictionary"
        report(Finding(Flaw.OUTSIDE, folder, what))
        return []

    def _real_path(self, name: str) -> Path:
        """Where a name leads to; of its folder that is asked once, as a table has many names of one."""
        parent, _, last = name.rpartition("/")
        if name.startswith("/") or last in ("", ".", "..") or "\\" in last:
            return Path(os.path.realpath(self.root / name))
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(self.root / parent)
        path = Path(f"{self._parents[parent]}{os.sep}{last}")
        return Path(os.path.realpath(path)) if path.is_symlink() else path


def list_folder(files: Files, ontology: Ontology, report: Report) -> Listing:
    """Reads tables and folders of a dictionary.

    Args:
        files: Its files.
        ontology: The concepts to look for.
        report: Takes what is wrong; where it does not raise, the rest is read all the same.

    Returns:
        The images that can be used.
    """
    entries: dict[tuple[str, tuple[int, ...]], Entry] = {}
    for where, entry in [*_local_entries(files, ontology, report), *_global_entries(files, ontology, report)]:
        if (entry.name, entry.group) in entries:
            what = f"{entry.name} is listed twice in {files.root}; an image may count only once"
            report(Finding(Flaw.LISTED_TWICE, where, what))
        else:
            entries[entry.name, entry.group] = entry
    if not entries:
        nowhere = []
        if ontology.local:
            nowhere.append(f"no table lists an image ({', '.join(map(table_of, ontology.kinds))})")
        if ontology.global_:
            folders = ", ".join(f"{GLOBAL_FOLDER}/{concept.name}/<group>/" for concept in ontology.global_)
            nowhere.append(f"no folder holds a picture ({folders})")
        what = " and ".join(nowhere) or "the ontology has no concept to look for"
        report(Finding(Flaw.NOTHING, ".", f"the Face Dictionary {files.root} is empty: {what}"))
    known = _labels(files, report)
    labels = tuple(known.get(entry.name, {}) for entry in entries.values())
    try:
        datacard = read_datacard(files.root)
    except (OSError, ValueError) as error:
        report(Finding(Flaw.BAD_DATACARD, DATACARD, str(error)))
        datacard = {}
    return Listing(tuple(entries.values()), labels, datacard)


def table_of(kind: str) -> str:
    """The table that lists the images labelled in concepts of a kind."""
    return TABLE_OF_KIND.get(kind, f"{kind}.csv")


def _local_entries(files: Files, ontology: Ontology, report: Report) -> Iterator[tuple[str, Entry]]:
    unknown = (UNKNOWN,) * len(ontology.global_)
    for source, kind in enumerate(ontology.kinds):
        for where, row in _rows(files, table_of(kind), ("image", "labels"), report):
            image = files.find(row["image"].strip(), where, report)
            masks: dict[int, str] = {}
            for label in filter(None, (label.strip() for label in row["labels"].split(";"))):
                path = files.find(label, where, report)
                if path is None:
                    continue
                stem = PurePosixPath(label).stem
                concept = _concept(stem, kind, ontology, where, report)
                if concept in masks:
                    report(Finding(Flaw.LISTED_TWICE, where, f"{where}: two masks of {stem}", (stem,)))
                elif concept is not None:
                    masks[concept] = path
            if image is not None:
                yield where, Entry(image, masks, source, unknown)


def _concept(name: str, kind: str, ontology: Ontology, where: str, report: Report) -> int | None:
    try:
        concept = ontology.concept_index(name)
    except KeyError as error:
        report(Finding(Flaw.UNKNOWN_LABEL, where, f"{where}: {error.args[0]}"))
        return None
    its_kind = ontology.local[concept].kind
    if its_kind == kind:
        return concept
    what = f"{where}: {name!r} is of kind {its_kind!r}, but this table labels kind {kind!r}; list it in "
    report(Finding(Flaw.UNKNOWN_LABEL, where, what + table_of(its_kind), (name,)))
    return None


def _global_entries(files: Files, ontology: Ontology, report: Report) -> Iterator[tuple[str, Entry]]:
    concepts = {concept.name.lower(): k for k, concept in enumerate(ontology.global_)}
    for concept_folder in filter(Path.is_dir, files.listed(GLOBAL_FOLDER, report)):
        folder = f"{GLOBAL_FOLDER}/{concept_folder.name}"
        k = concepts.get(concept_folder.name.lower())
        if k is None:
            known = ", ".join(c.name for c in ontology.global_) or "none"
            what = (
                f"{concept_folder} is a global concept that the ontology lacks (it has: {known}); "
                "give an ontology that has it, or move the folder away"
            )
            report(Finding(Flaw.UNKNOWN_LABEL, folder, what))
            continue
        concept = ontology.global_[k]
        groups = {name.lower(): g for g, name in enumerate(concept.groups)}
        for group_folder in filter(Path.is_dir, files.listed(folder, report)):
            g = groups.get(group_folder.name.lower())
            where = f"{folder}/{group_folder.name}"
            if g is None:
                what = (
                    f"{group_folder} is a group that global concept {concept.name!r} lacks "
                    f"(it has: {', '.join(concept.groups)})"
                )
                report(Finding(Flaw.UNKNOWN_LABEL, where, what))
                continue
            group = tuple(g if i == k else UNKNOWN for i in range(len(ontology.global_)))
            for path in files.listed(where, report):
                if path.suffix.lower() in PICTURE_SUFFIXES:
                    name = files.find(f"{where}/{path.name}", where, report)
                    if name is not None:
                        yield where, Entry(name, {}, UNKNOWN, group)


def _labels(files: Files, report: Report) -> dict[str, Mapping[str, str]]:
    known: dict[str, Mapping[str, str]] = {}
    for where, row in _rows(files, LABELS, ("image",), report):
        image = files.find(row.pop("image").strip(), where, report)
        if image in known:
            report(Finding(Flaw.LISTED_TWICE, where, f"{where}: {image} is listed twice; which labels are right?"))
        elif image is not None:
            known[image] = row
    return known


def _rows(files: Files, table: str, columns: tuple[str, ...], report: Report) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, each with where it stands; none where there is no such file.

    A row may lack values at its end, but not of the ``columns`` asked for.
    """
    path = files.root / table
    if not os.path.lexists(path) or files.find(table, table, report) is None:
        return
    line = 1

    def bad(what: str) -> None:
        report(Finding(Flaw.BAD_TABLE, table, what))

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            problem = _problem(header, columns)
            if problem is not None:
                bad(f"{path} {problem}")
                return
            needed = max(header.index(name) for name in columns) + 1
            for values in reader:
                line = reader.line_num
                if not values:
                    continue
                if len(values) > len(header):
                    bad(f"{path}, line {line}: more values than columns ({', '.join(header)})")
                elif len(values) < needed:
                    bad(f"{path}, line {line}: fewer values than columns ({', '.join(header)})")
                else:
                    values += [""] * (len(header) - len(values))
                    yield f"{path}, line {line}", dict(zip(header, values, strict=True))
    except UnicodeDecodeError as error:
        bad(f"{path}, after line {line}: {error}; save the table as UTF-8")
    except (csv.Error, OSError) as error:
        bad(f"{path}, after line {line}: {error}")


def _problem(header: list[str], columns: tuple[str, ...]) -> str | None:
    if not header:
        return f"is empty, without even a line that names its columns ({', '.join(columns)}, ...)"
    missing = [name for name in columns if name not in header]
    if missing:
        return f"has no column {missing[0]!r}; its columns are: {', '.join(header)}"
    if len(set(header)) < len(header):
        return f"has two columns of one name; its columns are: {', '.join(header)}"
    return None
