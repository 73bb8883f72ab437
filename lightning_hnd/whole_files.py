"""Files that appear whole or not at all, also if the process is killed while it writes them."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_HOUR = 3600.0


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Writes to a hidden file beside it, which replaces any existing one when it is complete.

    After an exception nothing of it remains; if the process is killed, the hidden file does: :func:`sweep`.

    Args:
        path: The file. Its folder must exist.
    """
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the contents before the name, also if the machine goes down
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say which
            error.filename = str(path)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Makes a hidden folder at once, so that an unwritable place fails before the work, and renames it at the end.

    After an exception nothing of it remains, nor of what killed processes of this machine left.

    Args:
        path: What it becomes at the end.

    Yields:
        The folder aside, empty.

    Raises:
        FileExistsError: If there is something at ``path``, before or after.
        OSError: If it cannot be written, with ``path`` for a name.
    """
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already; give a new folder, nothing is written over")
    aside = aside_of(path)
    try:
        sweep_folders(path)
        aside.mkdir(parents=True)
        yield aside
        if path.exists():
            raise FileExistsError(f"{path} was made by another process meanwhile; nothing is written over")
        aside.rename(path)
    except OSError as error:
        ours = error.filename is None or Path(error.filename).is_relative_to(aside)
        if error.errno is not None and ours:  # a full disk does not say which
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def aside_of(path: Path) -> Path:
    """Where a file or folder is made before it takes its place: hidden beside it, with this machine and process."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def sweep_folders(path: Path) -> None:
    """Removes the folders aside of ``path`` that killed processes of this machine left, and none of a live one.

    Args:
        path: The folder that they would have become.
    """
    ours = f".{path.name}.{socket.gethostname()}."
    for aside in path.parent.glob(f"{glob.escape(ours)}*"):
        pid = aside.name.removeprefix(ours)
        if os.name == "posix" and pid.isdecimal() and aside.is_dir() and not _lives_elsewhere(int(pid)):
            shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path, suffix: str) -> None:
    """Removes what killed processes left half-written, and nothing that a live one may still be writing.

    Of this machine a process is known to live or not. Of another one it is not: what it did not touch for an hour
    counts as left.

    Args:
        folder: Where to look; it need not exist.
        suffix: How the whole files are named at the end: ``.hnd``.
    """
    for aside in folder.glob(f".*{suffix}.*"):
        host, _, pid = aside.name.rpartition(f"{suffix}.")[2].rpartition(".")
        ours = host == socket.gethostname() and os.name == "posix" and pid.isdecimal()
        with contextlib.suppress(FileNotFoundError):
            if (ours and not _lives_elsewhere(int(pid))) or time.time() - aside.stat().st_mtime > _HOUR:
                aside.unlink()


def _lives_elsewhere(pid: int) -> bool:
    """Whether another process than this one has the id; this one writes nothing while it sweeps."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives and is somebody else's
        return True
    return True
