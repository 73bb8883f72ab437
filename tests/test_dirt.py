"""Damage that dictionaries on disk really have: each a finding that names the file, no crash, nothing read outside."""

from __future__ import annotations

import csv
import os
import re
import shutil
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import write_picture
from PIL import Image

from lightning_hnd import FaceDictionary
from lightning_hnd.dictionary.check import check
from lightning_hnd.dictionary.flaws import Finding, Flaw, Level

FACE, MASK = "attributes/000001/original.png", "attributes/000001/Smiling.png"
TABLE, LABELS = "Attributes.csv", "non_localizable/labels.csv"
MALE = "non_localizable/Gender/Male"


@dataclass(frozen=True)
class Case:
    """What ``damage`` shall be found as, at what place, and with what words ``from_folder`` refuses it, if it does."""

    damage: Callable[[Path], object]
    flaw: Flaw | None = None
    where: str = ""
    refused: str | None = None


def load(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def save(path: Path, picture: Image.Image, **options: object) -> None:
    picture.save(path, **{"format": "PNG", **options})


def edit(name: str, change: Callable[[str], str], encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(change((root / name).read_text()).encode(encoding))


def exchange(name: str, old: str, new: str) -> Callable[[Path], object]:
    return edit(name, lambda text: text.replace(old, new))


def truncate(name: str, keep: int) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:keep])


def convert(name: str, change: Callable[[np.ndarray], Image.Image], **options: object) -> Callable[[Path], object]:
    return lambda root: save(root / name, change(load(root / name)), **options)


def turned(orientation: int, masks_too: bool) -> Callable[[Path], object]:
    """Stored on its side, with the tag that tells viewers to turn it: 6 by a quarter, 3 by a half."""
    quarters = {6: 1, 3: 2}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation

    def damage(root: Path) -> None:
        save(root / FACE, Image.fromarray(np.rot90(load(root / FACE), quarters)), exif=exif)
        if masks_too:
            for name in ("Smiling", "Eyeglasses"):
                path = root / f"attributes/000001/{name}.png"
                save(path, Image.fromarray(np.rot90(load(path), quarters)))

    return damage


def with_holes(values: np.ndarray) -> Image.Image:
    holes = np.zeros(values.shape[:2], np.uint8)
    holes[::2] = 255
    picture = Image.fromarray(values).convert("RGBA")
    picture.putalpha(Image.fromarray(holes))
    return picture


def animate(root: Path) -> None:
    frames = [Image.fromarray(np.roll(load(root / MASK), step, 0)) for step in range(3)]
    frames[0].save(root / MASK, "GIF", save_all=True, append_images=frames[1:])


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def link(name: str, target: str) -> Callable[[Path], object]:
    """In the place of a file or folder a link to something of the same sort outside."""

    def damage(root: Path) -> None:
        path, outside = root / name, root.parent / "outside" / target
        outside.parent.mkdir(exist_ok=True)
        shutil.move(path, outside)
        path.symlink_to(outside)

    return damage


def point_outside(name: Callable[[Path], str]) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        outside = root.parent / "outside/original.png"
        outside.parent.mkdir()
        shutil.copy(root / FACE, outside)
        exchange(TABLE, FACE, name(outside))(root)

    return damage


def loop(root: Path) -> None:
    (root / MASK).unlink()
    (root / MASK).symlink_to(root / "attributes/000001/loop.png")
    (root / "attributes/000001/loop.png").symlink_to(root / MASK)


def broken_link(root: Path) -> None:
    (root / MASK).unlink()
    (root / MASK).symlink_to("nowhere.png")


def folder_instead(name: str) -> Callable[[Path], object]:
    return lambda root: ((root / name).unlink(), (root / name).mkdir())


def pipe_instead(root: Path) -> None:
    (root / MASK).unlink()
    os.mkfifo(root / MASK)


def odd_names(root: Path) -> None:
    """Renamed in folder and tables, so that nothing but names changes."""
    shutil.move(root / "attributes/000001", root / "attributes/Zoë und Jürgen 顔")
    exchange(TABLE, "attributes/000001", "attributes/Zoë und Jürgen 顔")(root)


def unlisted_mask(root: Path) -> None:
    shutil.copy(root / MASK, root / "attributes/000001/Big_Nose.png")


def shared_mask(root: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[3:5, 3:5] = 255
    write_picture(root / MASK, mask)
    write_picture(
        root / "attributes/000002/original.png", np.random.default_rng(5).integers(0, 256, (20, 30, 3), np.uint8)
    )
    exchange(TABLE, "attributes/000002/original.png,", f"attributes/000002/original.png,{MASK}")(root)


def smooth(root: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:8, 2:8], mask[3:7, 3:7] = 60, 255
    write_picture(root / MASK, mask)


def many_rows(root: Path) -> None:
    with (root / TABLE).open("a") as table:
        table.write(f"{FACE},{MASK}\n" * 50_000)


def many_labels(root: Path) -> None:
    with (root / LABELS).open("a") as table:
        table.writelines(f"{MALE}/{i}.jpg,30,Male\n" for i in range(50_000))


def copy_face(target: str, **options: object) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        """A face that is no noise, as near copies of noise are not near."""
        y, x = np.mgrid[0:48, 0:48] / 48
        face = np.stack([np.sin(5 * x) * np.cos(3 * y), np.sin(7 * y + x), np.cos(4 * x * y)], -1)
        picture = Image.fromarray((face * 90 + 120).astype(np.uint8))
        picture.save(root / MALE / "1.png")
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / target, **options)

    return damage


CASES = {
    # pictures
    "truncated JPEG": Case(truncate(FACE, 300), Flaw.UNREADABLE, FACE, "original.png cannot be read as a picture"),
    "truncated mask": Case(truncate(MASK, 50), Flaw.UNREADABLE, MASK, "Smiling.png cannot be read as a picture"),
    "zero bytes": Case(truncate(f"{MALE}/30.jpg", 0), Flaw.UNREADABLE, "30.jpg", "30.jpg cannot be read as a picture"),
    "zero bytes of a mask": Case(truncate(MASK, 0), Flaw.UNREADABLE, MASK, "Smiling.png cannot be read as a picture"),
    "text": Case(lambda root: (root / FACE).write_text("404 Not Found"), Flaw.UNREADABLE, FACE, "cannot be read as a"),
    "16 bits": Case(
        convert("parts/7/original.png", lambda a: Image.fromarray(a.astype(np.uint16) * 256 + 77)),
        Flaw.COLOURS,
        "parts/7/original.png",
    ),
    "32 bits": Case(
        convert(FACE, lambda a: Image.fromarray(a[..., 0].astype(np.float32)), format="TIFF"),
        Flaw.UNREADABLE,
        FACE,
        "original.png holds numbers of 32 bits",
    ),
    "palette": Case(convert("parts/7/original.png", lambda a: Image.fromarray(a).convert("P"))),
    "CMYK": Case(convert(FACE, lambda a: Image.fromarray(a).convert("CMYK"), format="JPEG"), Flaw.COLOURS, FACE),
    "a transparent picture": Case(convert(FACE, with_holes), Flaw.COLOURS, FACE),
    "EXIF, masks drawn on what is stored": Case(
        turned(6, True), Flaw.SIZE_MISMATCH, MASK, r"Smiling.png is 30 x 20 .* EXIF orientation|Smiling.png is 20 x 30"
    ),
    "one colour": Case(lambda root: write_picture(root / FACE, np.full((20, 30, 3), 9, np.uint8)), Flaw.BLANK, FACE),
    "100 megapixels": Case(
        lambda root: Image.new("1", (10_000, 10_000)).save(root / FACE), Flaw.UNREADABLE, FACE, "10000 x 10000 pixels"
    ),
    "decompression bomb": Case(
        lambda root: (root / FACE).write_bytes(png_header(60_000, 60_000)),
        Flaw.UNREADABLE,
        FACE,
        "original.png has too many pixels",
    ),
    # masks
    "mask of 16 bits": Case(convert(MASK, lambda a: Image.fromarray((a > 0).astype(np.uint16) * 40_000))),
    "mask with a palette": Case(convert(MASK, lambda a: Image.fromarray(a).convert("P"))),
    "mask with one bit": Case(convert(MASK, lambda a: Image.fromarray(a > 0))),
    "mask that is opaque": Case(convert(MASK, lambda a: Image.fromarray(a).convert("RGBA"))),
    "mask with alpha": Case(convert(MASK, with_holes), Flaw.UNREADABLE, MASK, "Smiling.png is transparent in places"),
    "animated GIF": Case(animate, Flaw.UNREADABLE, MASK, "Smiling.png holds several pictures"),
    "mask of another size": Case(
        convert(MASK, lambda a: Image.fromarray(a[1:])), Flaw.SIZE_MISMATCH, MASK, r"Smiling.png is 30 x 19 pixels"
    ),
    "empty mask": Case(convert(MASK, lambda a: Image.fromarray(a * 0)), Flaw.EMPTY_MASK, MASK),
    "full mask": Case(convert(MASK, lambda a: Image.fromarray(a | 255)), Flaw.FULL_MASK, MASK),
    "inverted mask": Case(
        lambda root: write_picture(root / "parts/7/nose.png", 1 - load(root / "parts/7/nose.png")),
        Flaw.FULL_MASK,
        "parts/7/nose.png",
    ),
    "smoothed mask": Case(smooth, Flaw.SOFT_MASK, MASK),
    "mask of two images": Case(shared_mask, Flaw.SHARED_MASK, MASK),
    # tables
    "columns in another order": Case(lambda root: reorder(root / TABLE, ["labels", "image"])),
    "columns under each other's names": Case(
        exchange(TABLE, "image,labels", "labels,image"),
        Flaw.MISSING,
        TABLE,
        "line 2: there is no file .*Smiling.png;",
    ),
    "BOM": Case(edit(TABLE, str, "utf-8-sig")),
    "CRLF": Case(exchange(TABLE, "\n", "\r\n")),
    "spaces and blank lines": Case(edit(TABLE, lambda text: text.replace(";", " ; ").replace("\n", "\n\n") + "\n\n")),
    "UTF-16": Case(edit(TABLE, str, "utf-16"), Flaw.BAD_TABLE, TABLE, "Attributes.csv.*save the table as UTF-8"),
    "Latin-1": Case(
        edit(TABLE, lambda text: text.replace("000002", "Zoë"), "latin-1"), Flaw.BAD_TABLE, TABLE, "as UTF-8"
    ),
    "zero bytes of a table": Case(truncate(TABLE, 0), Flaw.BAD_TABLE, TABLE, "Attributes.csv is empty, without even"),
    "no header": Case(edit(TABLE, lambda text: text.split("\n", 1)[1]), Flaw.BAD_TABLE, TABLE, "has no column 'image'"),
    "semicolons": Case(exchange(TABLE, ",", "\t"), Flaw.BAD_TABLE, TABLE, "has no column 'image'"),
    "a quote that never ends": Case(
        edit(TABLE, lambda text: text + '"attributes/000003'), Flaw.BAD_TABLE, TABLE, "Attributes.csv, after line"
    ),
    "a row cut off": Case(
        edit(TABLE, lambda text: text.rstrip(",\n")), Flaw.BAD_TABLE, TABLE, "line 3: fewer values than columns"
    ),
    "too many values": Case(
        edit(TABLE, lambda text: text + f"{FACE},,\n"), Flaw.BAD_TABLE, TABLE, "line 4: more values than columns"
    ),
    "a field of a megabyte": Case(
        edit(TABLE, lambda text: text + "x" * 1_000_000 + ",\n"), Flaw.BAD_TABLE, TABLE, "field larger than field limit"
    ),
    "duplicate rows": Case(
        edit(TABLE, lambda text: text + text.split("\n")[1] + "\n"), Flaw.LISTED_TWICE, TABLE, f"{FACE} is listed twice"
    ),
    "a duplicate spelt another way": Case(
        edit(TABLE, lambda text: text + f"parts/../{FACE},\n"), Flaw.LISTED_TWICE, TABLE, f"{FACE} is listed twice"
    ),
    "duplicate labels": Case(
        edit(LABELS, lambda text: text + f"{MALE}/30.jpg,31,Male\n"),
        Flaw.LISTED_TWICE,
        LABELS,
        "30.jpg is listed twice",
    ),
    "50,000 rows": Case(many_rows, Flaw.LISTED_TWICE, TABLE, f"{FACE} is listed twice"),
    "50,000 labels": Case(many_labels, Flaw.MISSING, LABELS, "labels.csv, line 3: there is no file"),
    "labels that contradict the folder": Case(exchange(LABELS, "30,Male", "30,Female"), Flaw.CONTRADICTION, MALE),
    "a datacard that is no JSON": Case(
        lambda root: (root / "datacard.json").write_text("{"),
        Flaw.BAD_DATACARD,
        "datacard.json",
        "datacard.json cannot",
    ),
    # names and places
    "spaces and non-ASCII names": Case(odd_names),
    "a mask of an absent image": Case(
        lambda root: (root / FACE).unlink(), Flaw.MISSING, TABLE, f"line 2: there is no file .*{FACE}"
    ),
    "a mask that no table lists": Case(unlisted_mask, Flaw.UNLISTED, "attributes/000001"),
    "a text among faces": Case(lambda root: (root / MALE / "notes.txt").write_text(""), Flaw.UNLISTED, MALE),
    "a picture link": Case(link(FACE, "original.png"), Flaw.OUTSIDE, TABLE, f"{FACE} lies outside"),
    "a face link": Case(link(f"{MALE}/30.jpg", "30.jpg"), Flaw.OUTSIDE, MALE, "30.jpg lies outside"),
    "a folder link": Case(link(MALE, "Male"), Flaw.OUTSIDE, MALE, "Male is a link to a folder that lies outside"),
    "a link to all groups": Case(link("non_localizable", "all"), Flaw.OUTSIDE, "non_localizable", "lies outside"),
    "a table link": Case(link(TABLE, "Attributes.csv"), Flaw.OUTSIDE, TABLE, "Attributes.csv lies outside"),
    "a labels link": Case(link(LABELS, "labels.csv"), Flaw.OUTSIDE, LABELS, "labels.csv lies outside"),
    "..": Case(
        point_outside(lambda _: "../outside/original.png"), Flaw.OUTSIDE, TABLE, r"\.\./outside/original.png lies"
    ),
    "an absolute path": Case(point_outside(str), Flaw.OUTSIDE, TABLE, "outside/original.png lies outside"),
    "backslashes": Case(
        exchange(TABLE, FACE, FACE.replace("/", "\\")), Flaw.MISSING, TABLE, r"there is no file .*; write / for \\"
    ),
    "a folder in place of a picture": Case(folder_instead(FACE), Flaw.MISSING, TABLE, f"{FACE} is a folder"),
    "a folder in place of a face": Case(folder_instead(f"{MALE}/30.jpg"), Flaw.MISSING, MALE, "30.jpg is a folder"),
    "a folder in place of a table": Case(folder_instead(TABLE), Flaw.MISSING, TABLE, "Attributes.csv is a folder"),
    "a pipe": Case(pipe_instead, Flaw.MISSING, TABLE, f"{MASK} is no file"),
    "a link to itself": Case(loop, Flaw.MISSING, TABLE, "Smiling.png"),
    "a broken link": Case(broken_link, Flaw.MISSING, TABLE, f"there is no file .*{MASK}|nowhere"),
    "a name longer than names can be": Case(
        exchange(TABLE, FACE, "x" * 5000), Flaw.MISSING, TABLE, "line 2: .*(can be no file|there is no file)"
    ),
    "a null character": Case(
        exchange(TABLE, FACE, "a\0b.png"),
        Flaw.MISSING if sys.version_info >= (3, 11) else Flaw.BAD_TABLE,  # until then the csv module refuses it
        TABLE,
        "can be no file|there is no file|line contains NUL",
    ),
    # copies
    "a copy": Case(copy_face(f"{MALE}/2.png"), Flaw.COPY, MALE),
    "a copy in another group": Case(copy_face("non_localizable/Gender/Female/2.png"), Flaw.CONTRADICTION, "Gender"),
    "a copy saved again": Case(copy_face(f"{MALE}/2.jpg", quality=60), Flaw.NEAR_COPY, MALE),
}


def reorder(table: Path, columns: list[str]) -> None:
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


_opened: list[str] | None = None


def _audit(event: str, args: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "os.scandir", "os.listdir") and isinstance(args[0], str | os.PathLike):
        _opened.append(os.path.realpath(os.fspath(args[0])))


sys.addaudithook(_audit)  # there is no way to remove one, so that it must be cheap while nobody listens


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The true path of every file that is opened and every folder that is listed."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


@pytest.mark.parametrize("name", CASES)
def test_damage_is_found_and_named(folder: Path, opened: list[str], name: str) -> None:
    case = CASES[name]
    before = check(folder)
    sound = FaceDictionary.from_folder(folder, size=(20, 30))
    case.damage(folder)
    opened.clear()
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        after = check(folder)
        if case.refused is not None:
            error = FileNotFoundError if case.flaw is Flaw.MISSING else ValueError
            with pytest.raises(error, match=case.refused):
                FaceDictionary.from_folder(folder, size=(20, 30))
        else:
            read = FaceDictionary.from_folder(folder, size=(20, 30))
    assert time.process_time() - begin < 60
    new = [finding for finding in after.findings if finding not in before.findings]
    assert not [path for path in opened if path.startswith(str(folder.parent / "outside"))]
    if case.flaw is None:
        assert not [finding for finding in new if finding.flaw.level is not Level.DOUBTFUL]
        assert read.fingerprint == sound.fingerprint
        return
    found = [finding for finding in new if finding.flaw is case.flaw]
    assert found, new
    assert any(case.where in finding.where for finding in found)
    assert (case.flaw.level is Level.REFUSED) == (case.refused is not None)
    if case.refused is not None:
        assert any(re.search(case.refused, finding.what) for finding in found)
        assert not after.sound
    assert after.images >= 3  # it went on


def test_a_turned_picture_is_shown_upright_with_masks_that_fit(folder: Path) -> None:
    sound = FaceDictionary.from_folder(folder, size=(20, 30))
    save(folder / FACE, Image.fromarray(load(folder / FACE)))  # without loss, to be compared
    lossless = FaceDictionary.from_folder(folder, size=(20, 30))
    for orientation in (6, 3):
        turned(orientation, masks_too=False)(folder)
        read = FaceDictionary.from_folder(folder, size=(20, 30))
        assert read.fingerprint == lossless.fingerprint
        assert read.masks.bits.equal(sound.masks.bits)
        assert any(f.flaw is Flaw.TURNED and f.where == FACE for f in check(folder).findings)
        save(folder / FACE, Image.fromarray(lossless_pixels(lossless)))


def lossless_pixels(dictionary: FaceDictionary) -> np.ndarray:
    return dictionary.pictures[dictionary.names.index(FACE)].permute(1, 2, 0).numpy()


def test_sixteen_bits_are_not_clipped(folder: Path) -> None:
    """Pillow's own conversion makes everything white."""
    eight = FaceDictionary.from_folder(folder, size=16)
    CASES["16 bits"].damage(folder)
    assert FaceDictionary.from_folder(folder, size=16).fingerprint == eight.fingerprint


def test_all_damage_is_listed_at_once(folder: Path) -> None:
    for name in ("truncated mask", "a text among faces", "a face link", "duplicate rows", "empty mask"):
        path, case = folder / "attributes/000001/Eyeglasses.png", CASES[name]
        truncate(str(path.relative_to(folder)), 50)(folder) if name == "truncated mask" else case.damage(folder)
    flaws = {finding.flaw for finding in check(folder).findings}
    assert flaws >= {Flaw.UNREADABLE, Flaw.UNLISTED, Flaw.OUTSIDE, Flaw.LISTED_TWICE, Flaw.EMPTY_MASK}
    levels = [list(Level).index(finding.flaw.level) for finding in check(folder).findings]
    assert levels == sorted(levels)


def test_a_finding_is_plain_data() -> None:
    finding = Finding(Flaw.EMPTY_MASK, MASK, f"{MASK} is off everywhere", ("Smiling",))
    assert finding.to_dict() == {
        "level": "wrong",
        "flaw": "empty_mask",
        "where": MASK,
        "what": f"{MASK} is off everywhere",
        "meaning": Flaw.EMPTY_MASK.meaning,
        "doubtful": ["Smiling"],
    }
