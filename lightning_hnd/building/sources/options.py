"""What a user says of a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lightning_hnd.building.pictures import inside
from lightning_hnd.building.source_findings import Findings

T = TypeVar("T")


@dataclass(frozen=True)
class SourceOptions:
    """A source: which data set, where it is, and what the user adds to it.

    Args:
        kind: One of :data:`~lightning_hnd.building.sources.READERS`.
        root: The folder of the data set.
        landmarks: A file of landmarks; None: looked for under the names that the data set uses.
        labels: A table of labels; None: looked for likewise.
        license: The terms under which the user has it, for the datacard.
        at_least: Intensity from which an action unit counts as there.
        name: What to call it; by default its kind.
    """

    kind: str
    root: Path
    landmarks: Path | None = None
    labels: Path | None = None
    license: str | None = None
    at_least: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.kind)

    def folder(self) -> Path:
        """The folder of the data set.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        if not self.root.is_dir():
            what = "is no folder" if self.root.exists() else "does not exist"
            raise FileNotFoundError(f"{self.root} {what}; give the folder to read {self.kind} from")
        return self.root

    def file(self, given: Path | None, *names: str, what: str | None = None) -> Path | None:
        """A file: the one that the user gave, or the first of some names in the folder.

        Args:
            given: By the user.
            *names: Usual places, in the folder.
            what: What it is; then it must be there.

        Raises:
            FileNotFoundError: If the given one does not exist, or one must be there and is not.
        """
        if given is not None:
            if not given.is_file():
                raise FileNotFoundError(f"there is no file {given}, which was given for {self.kind}")
            return given
        found = next((self.folder() / name for name in names if (self.folder() / name).is_file()), None)
        if found is None and what is not None:
            raise FileNotFoundError(
                f"{self.root} has no {what} ({', '.join(names) or 'it has to be given'}); give the folder that "
                f"{self.kind} is in, or the file itself (--{what.split()[-1]})"
            )
        return found

    def picture_folder(self, *names: str) -> Path:
        """The folder of the pictures: the first of some names, also nested in itself, as some archives unpack.

        Raises:
            FileNotFoundError: If there is none.
        """
        for name in names:
            folder = self.folder() / name
            if folder.is_dir():
                nested = folder / folder.name
                return nested if nested.is_dir() else folder
        raise FileNotFoundError(
            f"{self.root} has no folder {' or '.join(names)}; give the folder that {self.kind} was unpacked to"
        )


def existing(table: Mapping[str, T], folder: Path, findings: Findings) -> Iterator[tuple[Path, str, T]]:
    """The rows of a table whose pictures exist.

    Args:
        table: By the name of the picture, in the folder.
        folder: Pictures outside of it are never touched.
        findings: Gets the others.

    Yields:
        The picture's path, the name in the table, and its row.
    """
    for name, row in table.items():
        try:
            yield inside(folder, name), name, row
        except FileNotFoundError:
            findings.add(f"labelled picture is not in {folder.name}", name)
        except (ValueError, OSError) as error:
            findings.add(f"picture left out: {error}", name)
