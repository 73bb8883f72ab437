"""The dissections of a run as files: one folder for each run, which a resumed run continues."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_hnd.dissection import Dissection
from lightning_hnd.whole_files import sweep

_NAME = re.compile(r"(start|epoch=(?P<epoch>\d+))-step=(?P<step>\d+)\.hnd")


def history(folder: str | Path) -> Iterator[Dissection]:
    """Reads what a run wrote, in its order: the model at start first, then validation by validation.

    A damaged file is warned of and left out.

    Args:
        folder: The run's: ``<log_dir>/hnd``.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of dissections")
    return _readable(_files(Path(folder)))


def file_name(dissection: Dissection) -> str:
    """Of its epoch and step: ``start-step=00000000.hnd``, ``epoch=0003-step=00000400.hnd``."""
    info = dissection.info
    when = "start" if info["at_start"] else f"epoch={info['epoch']:04d}"
    return f"{when}-step={info['step']:08d}.hnd"


def _readable(paths: list[Path]) -> Iterator[Dissection]:
    for path in paths:
        try:
            yield Dissection.load(path)
        except ValueError as error:
            warnings.warn(f"left out of the history: {error}", stacklevel=3)


def _files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.hnd") if _NAME.fullmatch(path.name)), key=lambda p: _order(p.name))


def _order(name: str) -> tuple[int, int]:
    """Epoch and step; the model at start comes first."""
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found["epoch"] or -1), int(found["step"])


class RunFiles:
    """Where one run keeps its dissections, and which are its own.

    Its folder is the first free one of ``hnd``, ``hnd-2``, ... beside the logs: no other run and no other
    callback of the same Trainer writes there.

    Args:
        state: What :meth:`state` gave, of a run that is resumed.

    Attributes:
        folder: None until something is written.
        names: The files of the run, oldest first.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"folder": None, "names": []}
        self.folder = None if state["folder"] is None else Path(state["folder"])
        self.names = [name for name in state["names"] if _NAME.fullmatch(name)]

    def state(self) -> dict[str, Any]:
        """What a resumed run must know: plain data."""
        return {"folder": None if self.folder is None else str(self.folder), "names": list(self.names)}

    def save(self, dissection: Dissection, log_dir: Path) -> None:
        """Writes a dissection, named after its epoch and step; one of the same moment that is there is replaced.

        Raises:
            OSError: If it cannot be written.
        """
        if self.folder is None:
            self.folder = _claim(log_dir.absolute(), "hnd")
        self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have tidied up
        name = file_name(dissection)
        dissection.save(self.folder / name)
        if name not in self.names:
            self.names.append(name)

    def resume(self, log_dir: Path, step: int) -> None:
        """Goes on where the checkpoint was made, so that the folder holds one history without gap or double entry.

        In the same ``log_dir`` the run goes on in its folder; what it had written there of later steps, and will
        write again, is set aside into ``superseded``. In another one it begins a folder with the files of before.
        What is missing of them is warned of.

        Args:
            log_dir: Where the run logs now.
            step: That of the checkpoint. What was dissected after the checkpoint was made and before the next step
                belongs to the history: Lightning does not repeat that validation.

        Raises:
            OSError: If that cannot be written.
        """
        if self.folder is None:
            return
        log_dir = log_dir.absolute()
        before = self.folder if self.folder.is_dir() else log_dir / self.folder.name  # moved with its logs
        sweep(before, ".hnd")
        missing = [name for name in self.names if not (before / name).is_file()]
        self.names = [name for name in self.names if name not in missing]
        self.names += [p.name for p in _files(before) if p.name not in self.names and _order(p.name)[1] == step]
        if before.parent.resolve() != log_dir.resolve() or not before.is_dir():
            self.folder = _claim(log_dir, "hnd")
            for name in self.names:
                _link(before / name, self.folder / name)
        else:
            self.folder = before
            later = [path for path in _files(before) if path.name not in self.names]
            superseded = _claim(before, "superseded") if later else before
            for path in later:
                path.replace(superseded / path.name)
        if missing:
            warnings.warn(f"of the run's dissections {', '.join(missing)} are not in {before} any more", stacklevel=2)

    def dissections(self) -> Iterator[Dissection]:
        """Those of the run that can be read, in its order."""
        if self.folder is not None:
            yield from _readable([self.folder / name for name in sorted(self.names, key=_order)])

    def baseline(self) -> Dissection | None:
        """The dissection at start, if it can be read."""
        names = [name for name in self.names if name.startswith("start")]
        return next(_readable([self.folder / name for name in names]), None) if self.folder is not None else None


def _claim(parent: Path, name: str) -> Path:
    """Makes the first folder of ``name``, ``name-2``, ... that is not there yet, or holds nothing."""
    parent.mkdir(parents=True, exist_ok=True)
    for n in itertools.count(1):
        folder = parent / (name if n == 1 else f"{name}-{n}")
        sweep(folder, ".hnd")
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if it is empty
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("unreachable: there is always another number")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # at no cost; a file is replaced, never changed
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
