"""The packed form of a dictionary: the same to the last bit, found while it is true, never in the way."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_picture
from filelock import FileLock

from lightning_hnd import PAPER, FaceDictionary, Ontology
from lightning_hnd.dictionary import folder as folder_module
from lightning_hnd.dictionary import packed as packed_module
from lightning_hnd.dictionary.layout import PACKED

SETTINGS = {"size": (12, 16), "mean": 0.1, "std": 0.7}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Beside the dictionary, as by default, and a cache of the user's in ``tmp_path``."""
    monkeypatch.delenv("HND_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every time that a folder is decoded."""
    seen: list[Path] = []
    read = folder_module._read

    def spy(files, *args):
        seen.append(files.root)
        return read(files, *args)

    monkeypatch.setattr(folder_module, "_read", spy)
    return seen


def same(ours: FaceDictionary, theirs: FaceDictionary) -> bool:
    tensors = ("pictures", "source", "group", "mask_image", "mask_concept")
    return (
        all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in tensors)
        and torch.equal(ours.masks.bits, theirs.masks.bits)
        and (ours.names, ours.labels, ours.fingerprint) == (theirs.names, theirs.labels, theirs.fingerprint)
        and ours.datacard == theirs.datacard
        and str(ours) == str(theirs)
    )


def test_the_second_time_nothing_is_decoded_and_nothing_differs(folder: Path, reads: list[Path]) -> None:
    (folder / "datacard.json").write_text('{"licence": "none"}')
    plain = FaceDictionary.from_folder(folder, **SETTINGS, cache=False)
    assert not (folder / PACKED).exists()
    first = FaceDictionary.from_folder(folder, **SETTINGS)
    assert len(reads) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that cannot be written
        second = FaceDictionary.from_folder(folder, **SETTINGS)
    assert len(reads) == 2
    assert same(first, plain)
    assert same(second, plain)
    for ours, theirs in zip(second.batches(2), plain.batches(2), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.masks.dense(), theirs.masks.dense())


def test_what_is_applied_later_needs_no_other_file(folder: Path, reads: list[Path]) -> None:
    for transform in (None, lambda image: 1 - image):
        mapped = FaceDictionary.from_folder(folder, size=32, mean=0.3, transform=transform)
        plain = FaceDictionary.from_folder(folder, size=32, mean=0.3, transform=transform, cache=False)
        assert torch.equal(mapped.images(slice(None)), plain.images(slice(None)))
    assert len(reads) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 9},
        {"channels": 1},
        {"crop": (0.1, 0.0, 1.0, 1.0)},
        {"ontology": Ontology(PAPER.local, PAPER.global_[:2])},
    ],
)
def test_each_setting_has_its_own(folder: Path, reads: list[Path], settings: dict) -> None:
    FaceDictionary.from_folder(folder, size=8)
    changed = {"size": 8, **settings}
    assert same(
        FaceDictionary.from_folder(folder, **changed), FaceDictionary.from_folder(folder, **changed, cache=False)
    )
    FaceDictionary.from_folder(folder, size=8)
    FaceDictionary.from_folder(folder, **changed)
    assert len(reads) == 3


def test_a_crop_that_is_a_function_is_never_kept(folder: Path, reads: list[Path]) -> None:
    for _ in range(2):
        FaceDictionary.from_folder(folder, size=8, crop=lambda picture: (0, 0, picture.width, picture.height))
    assert len(reads) == 2
    assert not (folder / PACKED).exists()


def edit_a_picture(root: Path) -> None:
    write_picture(root / "attributes/000001/original.png", np.zeros((20, 30, 3), np.uint8))


def edit_a_mask_and_hide_it(root: Path) -> None:
    """Of the same size, with its old time of writing; only the time of change tells."""
    path = root / "attributes/000001/Smiling.png"
    before = path.stat()
    data = bytearray(path.read_bytes())
    write_picture(path, np.full((20, 30), 255, np.uint8), compress_level=0)
    shutil.copy2(path, root / "aside")
    path.write_bytes((root / "aside").read_bytes())
    (root / "aside").unlink()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.read_bytes() != data


def edit_a_table(root: Path) -> None:
    table = root / "Attributes.csv"
    table.write_text(table.read_text().replace(";attributes/000001/Eyeglasses.png", ""))


def edit_labels(root: Path) -> None:
    table = root / "non_localizable/labels.csv"
    table.write_text(table.read_text().replace("30,Male", "31,Male"))


def add_a_face(root: Path) -> None:
    write_picture(root / "non_localizable/Gender/Male/40.png", np.zeros((9, 9, 3), np.uint8))


def take_a_face_away(root: Path) -> None:
    (root / "non_localizable/Gender/Female/31.jpg").unlink()


def rename_a_face(root: Path) -> None:
    (root / "non_localizable/Gender/Female/31.jpg").rename(root / "non_localizable/Gender/Female/32.jpg")


@pytest.mark.parametrize(
    "change",
    [
        edit_a_picture,
        edit_a_mask_and_hide_it,
        edit_a_table,
        edit_labels,
        add_a_face,
        take_a_face_away,
        rename_a_face,
    ],
)
def test_after_a_change_it_is_made_anew_and_the_stale_one_goes(folder: Path, reads: list[Path], change) -> None:
    before = FaceDictionary.from_folder(folder, size=8)
    other_size = FaceDictionary.from_folder(folder, size=9)
    change(folder)
    after = FaceDictionary.from_folder(folder, size=8)
    assert len(reads) == 3
    assert same(after, FaceDictionary.from_folder(folder, size=8, cache=False))
    assert not same(after, before)
    assert len(list((folder / PACKED).glob("*.npz"))) == 2
    assert other_size.pictures.sum() > 0  # still there, for who has it open


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_damaged_file_is_made_anew(folder: Path, reads: list[Path], keep: float) -> None:
    whole = FaceDictionary.from_folder(folder, size=8, cache=False)
    FaceDictionary.from_folder(folder, size=8)
    (path,) = (folder / PACKED).glob("*.npz")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    assert same(FaceDictionary.from_folder(folder, size=8), whole)
    assert len(reads) == 3
    FaceDictionary.from_folder(folder, size=8)
    assert len(reads) == 3


def test_git_does_not_see_it(folder: Path) -> None:
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    FaceDictionary.from_folder(folder, size=8)
    listed = [*git, "status", "--porcelain", "--untracked-files=all"]
    seen = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    assert "original.png" in seen
    assert PACKED not in seen


def test_few_sizes_are_kept(folder: Path) -> None:
    for size in range(8, 16):
        FaceDictionary.from_folder(folder, size=size)
    assert len(list((folder / PACKED).glob("*.npz"))) == 4


def test_where_the_folder_cannot_be_written_it_lies_in_the_cache_of_the_user(
    folder: Path, reads: list[Path], places: Path
) -> None:
    (folder / PACKED).write_text("in the way, as a read-only disk is")
    for _ in range(2):
        FaceDictionary.from_folder(folder, size=8)
    assert len(reads) == 1
    assert len(list(places.glob("lightning-hnd/visual_dictionary-*/*.npz"))) == 1


def test_the_environment_names_another_place(
    folder: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HND_CACHE", str(tmp_path / "fast disk"))
    for _ in range(2):
        FaceDictionary.from_folder(folder, size=8)
    assert len(reads) == 1
    assert len(list((tmp_path / "fast disk").glob("visual_dictionary-*/*.npz"))) == 1
    assert not (folder / PACKED).exists()


def test_where_nothing_can_be_written_a_warning_says_so(folder: Path, places: Path) -> None:
    (folder / PACKED).write_text("")
    places.write_text("")
    with pytest.warns(UserWarning, match=r"none of .*\.packed, .*lightning-hnd.* can be written; set HND_CACHE"):
        faces = FaceDictionary.from_folder(folder, size=8)
    assert same(faces, FaceDictionary.from_folder(folder, size=8, cache=False))


def test_a_full_disk_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="cannot be written: .*No space left on device"):
        faces = FaceDictionary.from_folder(folder, size=8)
    assert len(faces) == 5
    assert not [path for path in (folder / PACKED).iterdir() if path.suffix != ".lock"]


class NoLocks(FileLock):
    """Of a file system that knows none."""

    def acquire(self, *_: object, **__: object):
        raise OSError(38, "Function not implemented")


def open_together(root: Path, lock: type[FileLock], barrier, decoded, said) -> None:
    read = folder_module._read

    def spy(*args):
        with decoded.get_lock():
            decoded.value += 1
        return read(*args)

    folder_module._read, packed_module.FileLock = spy, lock
    barrier.wait()
    said.put(FaceDictionary.from_folder(root, size=200).fingerprint)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked here")
@pytest.mark.parametrize(("lock", "at_most"), [(FileLock, 1), (NoLocks, 4)])
def test_processes_that_come_together_decode_once(folder: Path, lock: type[FileLock], at_most: int) -> None:
    """As the processes of a training do; without locks each may decode, and one file stays."""
    expected = FaceDictionary.from_folder(folder, size=200, cache=False).fingerprint
    context = multiprocessing.get_context("fork")  # no time for imports, so that they start at one moment
    barrier, decoded, said = context.Barrier(4), context.Value("i", 0), context.Queue()
    processes = [context.Process(target=open_together, args=(folder, lock, barrier, decoded, said)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [said.get(timeout=60) for _ in processes] == [expected] * 4
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert 1 <= decoded.value <= at_most
    assert [path.suffix for path in (folder / PACKED).iterdir()].count(".npz") == 1
    assert not list((folder / PACKED).glob(".*.npz.*"))
