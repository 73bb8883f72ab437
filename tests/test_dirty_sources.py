"""What is wrong with real data sets: each kind a clear finding or error, none a crash, nothing read from outside."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import ATTRIBUTES, draw_face, landmark_row, landmarks_in, make_celeba, make_facesynthetics, make_utkface

from lightning_hnd import FaceDictionary
from lightning_hnd.building import SourceOptions, build_dictionary
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.tables import read_table, truth

FIRST = "img_align_celeba/000001.jpg"
SIZE = (109, 89)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def convert(root: Path, change: Callable[[Image.Image], Image.Image], format: str = "JPEG", **options: object) -> None:
    with Image.open(root / FIRST) as image:
        changed = change(image.convert("RGB"))
    changed.save(root / FIRST, format, **options)


def truncated(root: Path) -> None:
    path = root / FIRST
    path.write_bytes(path.read_bytes()[:900])


def zero_bytes(root: Path) -> None:
    (root / FIRST).write_bytes(b"")


def text_for_a_picture(root: Path) -> None:
    (root / FIRST).write_text("<html>404</html>")


def claim_size(path: Path, width: int, height: int) -> None:
    """A PNG that claims a size: what matters is that nobody decodes it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def huge(root: Path) -> None:
    claim_size(root / FIRST, 12000, 9000)


def bomb(root: Path) -> None:
    claim_size(root / FIRST, 400_000, 400_000)


def postscript(root: Path) -> None:
    """Pillow would hand it to Ghostscript."""
    convert(root, lambda image: image, "EPS")


def thirty_two_bits(root: Path) -> None:
    convert(root, lambda image: image.convert("F"), "TIFF")


def link_outside(root: Path) -> None:
    draw_face(SIZE, 99).save(root.parent / "secret.jpg")
    (root / FIRST).unlink()
    (root / FIRST).symlink_to(root.parent / "secret.jpg")


def rename_row(root: Path, name: str) -> None:
    for table in ("list_attr_celeba.txt", "landmarks_68.csv"):
        edit(root / table, "000001.jpg", name)


def path_outside(root: Path) -> None:
    draw_face(SIZE, 99).save(root.parent / "secret.jpg")
    rename_row(root, "../../secret.jpg")


def absolute_path(root: Path) -> None:
    draw_face(SIZE, 99).save(root.parent / "secret.jpg")
    rename_row(root, str(root.parent / "secret.jpg"))


def windows_path(root: Path) -> None:
    rename_row(root, "C:\\faces\\000001.jpg")


def missing(root: Path) -> None:
    (root / FIRST).unlink()


def folder_for_a_picture(root: Path) -> None:
    (root / FIRST).unlink()
    (root / FIRST).mkdir()


def short_row(root: Path) -> None:
    edit(root / "list_attr_celeba.txt", "000001.jpg -1", "000001.jpg")


def row_that_differs(root: Path) -> None:
    with (root / "list_attr_celeba.txt").open("a") as file:
        file.write("000001.jpg  1  1  1  1  1\n")


def odd_value(root: Path) -> None:
    edit(root / "list_attr_celeba.txt", "000001.jpg -1", "000001.jpg maybe")


def unknown_value(root: Path) -> None:
    edit(root / "list_attr_celeba.txt", "000001.jpg -1", "000001.jpg nan")


def landmark_no_number(root: Path) -> None:
    edit(root / "landmarks_68.csv", "000001.jpg,", "000001.jpg,x")


def landmark_nan(root: Path) -> None:
    lines = (root / "landmarks_68.csv").read_text().splitlines()
    lines[1] = "000001.jpg" + ",nan" * 136
    (root / "landmarks_68.csv").write_text("\n".join(lines))


def landmarks_of_another_size(root: Path) -> None:
    lines = (root / "landmarks_68.csv").read_text().splitlines()
    lines[1] = landmark_row("000001.jpg", landmarks_in(SIZE, 0) * 2)
    (root / "landmarks_68.csv").write_text("\n".join(lines))


def landmark_far_away(root: Path) -> None:
    points = landmarks_in(SIZE, 0)
    points[8] = 1e9
    lines = (root / "landmarks_68.csv").read_text().splitlines()
    lines[1] = landmark_row("000001.jpg", points)
    (root / "landmarks_68.csv").write_text("\n".join(lines))


def no_landmarks(root: Path) -> None:
    lines = (root / "landmarks_68.csv").read_text().splitlines()
    (root / "landmarks_68.csv").write_text("\n".join([lines[0], *lines[2:]]))


def copy_of_another(root: Path) -> None:
    (root / FIRST).write_bytes((root / "img_align_celeba/000002.jpg").read_bytes())


LEFT_OUT = {
    truncated: "cannot be read as a picture",
    zero_bytes: "the file is empty",
    text_for_a_picture: "cannot be read as a picture",
    huge: "12000 x 9000 pixels, more than 50 million",
    bomb: "too many pixels",
    postscript: "cannot identify image file",
    thirty_two_bits: "numbers of 32 bits, whose range is not known",
    link_outside: "leads out of the folder",
    path_outside: "leads out of the folder",
    absolute_path: "leads out of the folder",
    windows_path: "leads out of the folder",
    missing: "not in img_align_celeba",
    folder_for_a_picture: "not in img_align_celeba",
    short_row: "it has not 6 values",
    row_that_differs: "two rows of it that differ",
    odd_value: "Smiling is neither present nor absent",
    unknown_value: "Smiling is unknown, while others carry it, and absence is a label",
    landmark_no_number: "a landmark is no number",
    landmark_nan: "not all numbers",
    landmarks_of_another_size: "of another size?",
    landmark_far_away: "far outside",
    no_landmarks: "has no landmarks of it",
    copy_of_another: "a copy of another",
}
"""Damage to the first face, which then is not used, and why not."""


@pytest.mark.parametrize("damage", LEFT_OUT, ids=lambda damage: damage.__name__)
def test_a_damaged_face_is_left_out_and_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    root = make_celeba(tmp_path / "celeba")
    damage(root)
    before = {path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()}
    built = build_dictionary(tmp_path / "out", [SourceOptions("celeba", root)], progress=False)
    said = " | ".join(built[0].findings["celeba"])
    assert LEFT_OUT[damage] in said
    assert "000001" in said or "000002" in said or "secret" in said or "6 values" in said
    faces = FaceDictionary.from_folder(tmp_path / "out", size=32)
    used = {labels["file"]: int(s) for labels, s in zip(faces.labels, faces.source, strict=True)}
    attribute = faces.ontology.kinds.index("attribute")
    if damage is not copy_of_another:
        assert used.get("000001.jpg") != attribute
    assert len(used) >= 9
    secret = draw_face(SIZE, 99)
    for path in set((tmp_path / "out").rglob("original.png")) - before:
        with Image.open(path) as image:
            assert np.abs(np.asarray(image).astype(int) - np.asarray(secret)).mean() > 5


def cmyk(root: Path) -> None:
    convert(root, lambda image: image.convert("CMYK"))


def exif_rotation(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side, displayed upright
    convert(root, lambda image: image.transpose(Image.Transpose.ROTATE_90), exif=exif)


def sixteen_bits(root: Path) -> None:
    def deepen(image: Image.Image) -> Image.Image:
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)

    convert(root, deepen, "PNG")


def palette(root: Path) -> None:
    convert(root, lambda image: image.quantize(64), "PNG")


def transparent(root: Path) -> None:
    convert(root, lambda image: image.convert("RGBA"), "PNG")


def grey(root: Path) -> None:
    convert(root, lambda image: image.convert("L"))


def byte_order_mark(root: Path) -> None:
    for name in ("list_attr_celeba.txt", "landmarks_68.csv"):
        (root / name).write_bytes(b"\xef\xbb\xbf" + (root / name).read_bytes())


def utf16(root: Path) -> None:
    text = (root / "landmarks_68.csv").read_text()
    (root / "landmarks_68.csv").write_text(text, encoding="utf-16")


def windows_lines(root: Path) -> None:
    for name in ("list_attr_celeba.txt", "landmarks_68.csv"):
        (root / name).write_bytes((root / name).read_bytes().replace(b"\n", b"\r\n"))


def columns_in_another_order(root: Path) -> None:
    lines = [line.split(",") for line in (root / "landmarks_68.csv").read_text().splitlines()]
    order = np.random.default_rng(0).permutation(137)
    (root / "landmarks_68.csv").write_text("\n".join(",".join(line[i] for i in order) for line in lines))


def semicolons_and_blank_lines(root: Path) -> None:
    text = (root / "landmarks_68.csv").read_text().replace(",", " ; ").replace("\n", "\n\n")
    (root / "landmarks_68.csv").write_text(text)


def without_header(root: Path) -> None:
    lines = (root / "landmarks_68.csv").read_text().splitlines()
    (root / "landmarks_68.csv").write_text("\n".join(lines[1:]))


def as_csv(root: Path) -> None:
    lines = (root / "list_attr_celeba.txt").read_text().splitlines()
    rows = [",".join(line.split()) for line in lines[2:]]
    (root / "list_attr_celeba.csv").write_text("\n".join(["image_id," + ",".join(ATTRIBUTES), *rows]))
    (root / "list_attr_celeba.txt").unlink()


def rows_twice(root: Path) -> None:
    lines = (root / "landmarks_68.csv").read_text().splitlines()
    (root / "landmarks_68.csv").write_text("\n".join([*lines, lines[1]]))


def umlauts(root: Path) -> None:
    for name in ("list_attr_celeba.txt", "landmarks_68.csv"):
        text = (root / name).read_text()
        (root / name).write_text(text.replace("000001.jpg", "Zoë_ä-1.jpg"), encoding="utf-8")
    (root / FIRST).rename(root / "img_align_celeba/Zoë_ä-1.jpg")


def nested_folder(root: Path) -> None:
    (root / "img_align_celeba").rename(root / "inner")
    (root / "img_align_celeba").mkdir()
    (root / "inner").rename(root / "img_align_celeba/img_align_celeba")


UNDERSTOOD = (
    cmyk,
    exif_rotation,
    sixteen_bits,
    palette,
    transparent,
    grey,
    byte_order_mark,
    utf16,
    windows_lines,
    columns_in_another_order,
    semicolons_and_blank_lines,
    without_header,
    as_csv,
    rows_twice,
    umlauts,
    nested_folder,
)
"""Dirt under which the first face is still read, as it would be without."""


@pytest.mark.parametrize("dirt", UNDERSTOOD, ids=lambda dirt: dirt.__name__)
def test_dirt_that_is_understood_changes_nothing(tmp_path: Path, dirt: Callable[[Path], None]) -> None:
    clean, dirty = make_celeba(tmp_path / "clean"), make_celeba(tmp_path / "dirty")
    dirt(dirty)
    read = []
    for root in (clean, dirty):
        build_dictionary(tmp_path / f"out-{root.name}", [SourceOptions("celeba", root)], progress=False)
        read.append(FaceDictionary.from_folder(tmp_path / f"out-{root.name}", size=SIZE))
    ours = [{labels["file"]: i for i, labels in enumerate(faces.labels)} for faces in read]
    assert len(ours[0]) == len(ours[1]) == 12
    name = next((name for name in ours[1] if name not in ours[0]), "000001.jpg")
    pictures = [read[0].pictures[ours[0]["000001.jpg"]].int(), read[1].pictures[ours[1][name]].int()]
    if dirt in (grey, sixteen_bits):
        pictures[0] = pictures[0].float().mean(0, keepdim=True).int()
    assert (pictures[0] - pictures[1]).abs().float().mean() < 12
    for faces, place in ((read[0], ours[0]["000001.jpg"]), (read[1], ours[1][name])):
        assert faces.source[place] == read[0].source[ours[0]["000001.jpg"]]
    first = (ours[0]["000001.jpg"], ours[1][name])
    masks = [faces.masks.dense()[faces.mask_image == i] for faces, i in zip(read, first, strict=True)]
    assert masks[0].shape == masks[1].shape
    assert (masks[0] == masks[1]).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00", "cannot be read as a table"),
        (b"image,x0,y0\n\xe9.jpg,1,2\n", "save it as CSV in UTF-8"),
        (b"image,x0,x0\na.jpg,1,2\n", "two columns named 'x0'"),
        (b"image,x0,y0\na.jpg,1,2\n", "no column x1"),
        (b"a.jpg,1,2,3\n", "3 numbers in each row"),
        (b'image,"x0\n' + b"a" * 200_000, "cannot be read as a table"),
    ],
)
def test_tables_that_cannot_be_read_name_file_and_remedy(tmp_path: Path, text: bytes, says: str) -> None:
    root = make_celeba(tmp_path / "celeba")
    (root / "landmarks_68.csv").write_bytes(text)
    with pytest.raises(ValueError, match=says) as caught:
        build_dictionary(tmp_path / "out", [SourceOptions("celeba", root)], progress=False)
    assert "landmarks_68.csv" in str(caught.value)


def test_missing_files_are_named_with_what_to_give(tmp_path: Path) -> None:
    for kind in ("celeba", "celebamask_hq", "facesynthetics", "fairface", "utkface", "pictures"):
        (tmp_path / kind).mkdir()
        with pytest.raises(FileNotFoundError, match=kind):
            build_dictionary(tmp_path / "out", [SourceOptions(kind, tmp_path / kind)], progress=False)
    source = SourceOptions("celeba", make_celeba(tmp_path / "c"), landmarks=tmp_path / "landmarks.csv")
    with pytest.raises(FileNotFoundError, match=r"landmarks\.csv, which was given for celeba"):
        build_dictionary(tmp_path / "out", [source], progress=False)
    with pytest.raises(ValueError, match="no kind of source 'celebb'"):
        build_dictionary(tmp_path / "out", [SourceOptions("celebb", tmp_path)], progress=False)


def test_a_source_without_a_usable_face_says_why(tmp_path: Path) -> None:
    root = tmp_path / "utk"
    root.mkdir()
    for name in ("61_1_20170109.jpg", "1_0_0_2.jpg"):
        (root / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"no face can be used.*\[age\]_\[gender\].*the file is empty"):
        build_dictionary(tmp_path / "out", [SourceOptions("utkface", root)], progress=False)
    assert not (tmp_path / "out").exists()


def test_damaged_masks_and_landmarks_of_synthetic_faces(tmp_path: Path) -> None:
    root = make_facesynthetics(tmp_path / "synthetic", faces=7)
    (root / "000000_seg.png").write_bytes(b"no picture")
    Image.fromarray(np.full((128, 128), 77, np.uint8)).save(root / "000001_seg.png")
    Image.fromarray(np.full((64, 128), 1, np.uint8)).save(root / "000002_seg.png")
    (root / "000003_ldmks.txt").write_text("1 2 3")
    (root / "000004_ldmks.txt").unlink()
    with Image.open(root / "000005_seg.png") as image:
        image.putpalette([i for i in range(256) for _ in range(3)])
        image.save(root / "000005_seg.png")  # a palette: still the same numbers
    built = build_dictionary(tmp_path / "out", [SourceOptions("facesynthetics", root)], progress=False)
    assert built[0].datacard["images"] == 2
    said = " | ".join(built[0].findings["facesynthetics"])
    for expected in ("000000_seg.png cannot be read", "values beyond 18", "not the shape of the picture"):
        assert expected in said
    assert "3 numbers are not 68" in said
    assert "there is no such file" in said


def test_names_that_only_some_systems_take(tmp_path: Path) -> None:
    root = make_utkface(tmp_path / "utk", faces=24)
    for path in sorted(root.iterdir()):
        path.rename(root / path.name.replace(".jpg.chip", ". ü,;*.chip"))
    build_dictionary(tmp_path / "out", [SourceOptions("utkface", root)], progress=False)
    for path in (tmp_path / "out").rglob("*.jpg"):
        assert path.name.isascii()
        assert not set(" ,;*") & set(path.name)
    assert len(FaceDictionary.from_folder(tmp_path / "out", size=16)) > 4


def test_a_table_of_200_000_rows_is_read_in_one_go(tmp_path: Path) -> None:
    path = tmp_path / "list_attr_celeba.txt"
    path.write_text("200000\nSmiling Male Young\n" + "".join(f"{i:06d}.jpg -1  1  1\n" for i in range(200_000)))
    findings = Findings()
    table = read_table(path, findings)
    assert len(table.rows) == 200_000
    assert list(findings) == []


def test_values_of_labels() -> None:
    assert [truth(v) for v in ("1", "-1", "0", "True", "no", "", " nan ", "9", "999", "0.5")] == [
        *(True, False, False, True, False),
        *(None, None, None, None, False),
    ]
    assert truth("3", at_least=2)
    with pytest.raises(ValueError, match="maybe"):
        truth("maybe")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user that files can be closed to")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    root = make_utkface(tmp_path / "utk", faces=24)
    closed = sorted(root.iterdir())[0]
    closed.chmod(0)
    built = build_dictionary(tmp_path / "out", [SourceOptions("utkface", root)], progress=False)
    assert any("cannot be read: Permission denied" in finding for finding in built[0].findings["utkface"])
