"""The packed form of a dictionary: decoded once, then mapped into memory by every process that opens it.

One file for each working size: an uncompressed ``.npz`` of the pictures at that size, the masks as bits, and the
labels. Its name is a digest of what it was made from: the settings, and of every file in the folder the name, size and
times. After a change of any of them it is not found any more, made anew, and the stale one removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from filelock import FileLock, Timeout

from lightning_hnd.concepts import Ontology
from lightning_hnd.dictionary.layout import PACKED, Files
from lightning_hnd.whole_files import sweep, whole_file

FORMAT = 1
"""Raised when the same files give other arrays, or these are kept in another way."""

_KEPT = 4  # working sizes of a dictionary; of more, the one used longest ago goes
_WAIT = 900.0  # seconds for another process to be done


@dataclass(frozen=True)
class PackedDictionary:
    """What is read of a dictionary folder, whatever mean, std and transform are applied to it.

    Attributes:
        pictures: ``[N, channels, H, W]`` uint8.
        bits: ``[M, ceil(H * W / 8)]`` uint8, the masks.
        source: ``[N]`` int64.
        group: ``[N, K]`` int64.
        mask_image: ``[M]`` int64.
        mask_concept: ``[M]`` int64.
        facts: ``names``, ``labels`` and ``datacard``: plain data.
    """

    pictures: npt.NDArray[np.uint8]
    bits: npt.NDArray[np.uint8]
    source: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    mask_image: npt.NDArray[np.int64]
    mask_concept: npt.NDArray[np.int64]
    facts: Mapping[str, Any]


_ARRAYS = tuple(field.name for field in fields(PackedDictionary) if field.name != "facts")


def packed(
    files: Files,
    size: tuple[int, int],
    channels: int,
    crop: tuple[float, float, float, float] | None,
    ontology: Ontology,
    make: Callable[[], PackedDictionary],
) -> PackedDictionary:
    """The packed form of a dictionary, from its file if there is one, else made, and kept for the next time.

    It lies in the dictionary, in ``.packed``; if that cannot be written, in ``lightning-hnd`` in the user's cache
    (``XDG_CACHE_HOME``, by default ``~/.cache``). The environment variable ``HND_CACHE`` names another place. Where
    none can be written, a warning says so and it stays in memory. Of several processes one makes it and the others
    wait.

    Args:
        files: The files of the dictionary.
        size: ``(H, W)``.
        channels: 3 for RGB, 1 for grey.
        crop: The box that is shown of each picture.
        ontology: The concepts that are read.
        make: Reads the folder. What it raises is raised.
    """
    settings = _digest([FORMAT, PIL.__version__, size, channels, crop, ontology.to_dict()])
    name = f"{settings[:12]}-{files.digest[:20]}.npz"
    places = _places(files.root)
    for path in (place / name for place in places):
        if (found := _load(path)) is not None:
            return found
    place = _writable(places)
    if place is None:
        _warn(f"none of {', '.join(map(str, places))} can be written; set HND_CACHE to a folder that can")
        return make()
    with _turn(place / f"{name}.lock"):
        made = _load(place / name)  # by the process that had the turn before
        if made is None:
            made = make()
            try:
                _save(place / name, made)
            except OSError as error:
                _warn(f"{place / name} cannot be written: {error}")
            else:
                _tidy(place, name)
                made = _load(place / name) or made
    return made


def _places(root: Path) -> list[Path]:
    own = f"{root.resolve().name}-{_digest(str(root.resolve()))[:12]}"
    if told := os.environ.get("HND_CACHE"):
        return [Path(told) / own]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home
        return [root / PACKED]
    return [root / PACKED, cache / "lightning-hnd" / own]


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _writable(places: list[Path]) -> Path | None:
    """The first of them that can be written, made if it is not there."""
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
    return None


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process after the other; all at once where the file system knows no locks: then the last one's file stays."""
    lock = FileLock(path)
    with contextlib.suppress(Timeout, OSError, NotImplementedError):
        lock.acquire(timeout=_WAIT)
    try:
        yield
    finally:
        lock.release()


def _save(path: Path, made: PackedDictionary) -> None:
    arrays = {name: getattr(made, name) for name in _ARRAYS}
    facts = np.frombuffer(json.dumps(made.facts).encode(), np.uint8)
    with whole_file(path) as file:
        np.savez(file, allow_pickle=False, facts=facts, **arrays)
    (path.parent / ".gitignore").write_text("*\n")  # gigabytes that anybody can make again


def _load(path: Path) -> PackedDictionary | None:
    """Maps a file; None if there is none, or it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _mapped(path, archive, name) for name in _ARRAYS}
            with archive.open("facts.npy") as member:
                facts = json.loads(np.lib.format.read_array(member, allow_pickle=False).tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # when it was used
    return PackedDictionary(**arrays, facts=facts)


def _mapped(path: Path, archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """An array as it lies in the archive, uncompressed: pages are read when they are used, and shared by processes."""
    member = archive.getinfo(f"{name}.npy")
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)  # where the local header tells the lengths of what follows it
        lengths = np.frombuffer(file.read(4), "<u2")
        file.seek(member.header_offset + 30 + int(lengths.sum()))
        if member.compress_type != zipfile.ZIP_STORED or np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{path} was not written by this version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "c", file.tell(), shape)  # "c", as torch warns of arrays that cannot be written


def _tidy(place: Path, name: str) -> None:
    """Removes what is stale, the least used beyond a few, and what killed processes left."""
    settings = name.partition("-")[0]
    others = [path for path in place.glob("*-*.npz") if path.name != name]
    with contextlib.suppress(OSError):
        sweep(place, ".npz")
        stale = [path for path in others if path.name.startswith(f"{settings}-")]
        fresh = sorted((path for path in others if path not in stale), key=lambda path: -path.stat().st_mtime)
        for path in [*stale, *fresh[_KEPT - 1 :]]:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def _warn(problem: str) -> None:
    warnings.warn(
        f"the packed form of the Face Dictionary stays in memory, and is made again the next time: {problem}",
        stacklevel=5,  # who called FaceDictionary.from_folder
    )
