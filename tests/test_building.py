"""Dictionaries built from made-up data sets: what is chosen, matched, left out and written."""

from __future__ import annotations

import csv
import filecmp
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import (
    ATTRIBUTES,
    LANDMARK_HEADER,
    draw_face,
    landmark_row,
    landmarks_in,
    make_celeba,
    make_facesynthetics,
    make_utkface,
)

from lightning_hnd import PAPER, FaceDictionary
from lightning_hnd.building import SourceOptions, build_dictionary
from lightning_hnd.building.choosing import choose
from lightning_hnd.building.faces import Face
from lightning_hnd.building.landmarks import MEAN_DEPTH, MEAN_FACE, five_of
from lightning_hnd.building.matching import match_groups
from lightning_hnd.building.skin import skin_tone, to_lab, typology_angle
from lightning_hnd.cli import main
from lightning_hnd.dictionary.check import check
from lightning_hnd.dictionary.confounds import cross_tables
from lightning_hnd.dictionary.flaws import Flaw


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.fixture
def sources(tmp_path: Path) -> list[SourceOptions]:
    return [
        SourceOptions("celeba", make_celeba(tmp_path / "celeba", faces=32)),
        SourceOptions("facesynthetics", make_facesynthetics(tmp_path / "synthetic")),
        SourceOptions("utkface", make_utkface(tmp_path / "utk"), license="research only"),
    ]


def build(tmp_path: Path, sources: list[SourceOptions], **options: object) -> FaceDictionary:
    build_dictionary(tmp_path / "out", sources, progress=False, **options)  # type: ignore[arg-type]
    return FaceDictionary.from_folder(tmp_path / "out", size=64)


def test_what_is_built_is_what_the_sources_say(tmp_path: Path, sources: list[SourceOptions]) -> None:
    faces = build(tmp_path, sources)
    truth = {}
    for line in (tmp_path / "celeba/list_attr_celeba.txt").read_text().splitlines()[2:]:
        name, *values = line.split()
        truth[name] = {a for a, v in zip(ATTRIBUTES, values, strict=True) if v == "1"}
    attribute, part = (PAPER.kinds.index(kind) for kind in ("attribute", "part"))
    labels = faces.labels
    assert (faces.source == attribute).sum() > 10
    for i in (faces.source == attribute).nonzero().flatten().tolist():
        carried = {PAPER.local[c].name for c in faces.mask_concept[faces.mask_image == i].tolist()}
        assert carried == truth[labels[i]["file"]] - {"Male", "Young"}
        assert labels[i]["gender"] == ("Male" if "Male" in truth[labels[i]["file"]] else "Female")
        assert labels[i]["Young"] == str(int("Young" in truth[labels[i]["file"]]))
        original = tmp_path / "celeba/img_align_celeba" / labels[i]["file"]
        assert filecmp.cmp(original, tmp_path / "out" / faces.names[i], shallow=False)  # nothing is compressed twice
    for i in (faces.source == part).nonzero().flatten().tolist():
        assert (faces.mask_image == i).sum() == 8
    assert {labels[i]["masks"] for i in (faces.source == part).nonzero().flatten().tolist()} == {"true", "68 landmarks"}
    for i, name in enumerate(faces.names):
        if name.startswith("non_localizable/Age"):
            years = int(labels[i]["years"])
            group = PAPER.global_[0].groups[int(faces.group[i, 0])]
            assert group == {10: "zero_to_twenty", 30: "twenty_to_forty", 50: "forty_to_sixty", 70: "sixty_plus"}[years]
    used = Counter((row["source"], row["file"]) for row in labels)
    assert max(used.values()) == 1  # no image twice
    card = faces.datacard
    assert card["seed"] == 0
    assert card["images"] == len(faces) == sum(source["images"] for source in card["sources"])
    assert [source["license"] for source in card["sources"]] == [None, None, "research only"]
    assert card["concepts"] == {c.name: n for c, n in zip(PAPER.local, faces.images_per_concept, strict=True) if n}


def test_true_masks_are_kept_and_sides_told_by_place(tmp_path: Path) -> None:
    build(tmp_path, [SourceOptions("facesynthetics", make_facesynthetics(tmp_path / "synthetic"))])
    folder = tmp_path / "out/parts/facesynthetics-000001"
    ids = np.asarray(Image.open(tmp_path / "synthetic/000001_seg.png"))
    for name, number in {
        "nose": 2,
        "right_eye": 3,
        "left_eye": 4,
        "right_brow": 5,
        "left_brow": 6,
        "mouth": 10,
    }.items():
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{name}.png")) > 0, ids == number)
    assert not (np.asarray(Image.open(folder / "left_cheek.png")) > 0)[ids != 1].any()  # cheeks are skin, and not nose


def test_a_face_that_hides_a_part_gives_no_parts_but_its_attributes(tmp_path: Path) -> None:
    """Absence is a label: without its hidden cheek the face would count as one that has none."""
    root = make_celeba(tmp_path / "celeba")
    lines = (root / "landmarks_68.csv").read_text().splitlines()
    turn, scale = np.radians(45), 22.0
    x = np.cos(turn) * MEAN_FACE[:, 0] + np.sin(turn) * MEAN_DEPTH
    turned = np.stack([x, MEAN_FACE[:, 1]], axis=1) * scale + (44, 38)
    for i in range(12):
        lines[i + 1] = landmark_row(f"{i + 1:06d}.jpg", turned if i < 6 else landmarks_in((109, 89), i))
    (root / "landmarks_68.csv").write_text("\n".join(lines))
    faces = build(tmp_path, [SourceOptions("celeba", root)], per_concept=3)
    attribute, part = (PAPER.kinds.index(kind) for kind in ("attribute", "part"))
    files = [row["file"] for row in faces.labels]
    parts = (faces.source == part).nonzero().flatten().tolist()
    assert parts
    assert all((faces.mask_image == i).sum() == 8 and files[i] > "000006.jpg" for i in parts)
    kept = [files[i] for i in (faces.source == attribute).nonzero().flatten().tolist()]
    assert any(file <= "000006.jpg" for file in kept)


def test_the_same_input_makes_the_same_files_and_a_seed_others(tmp_path: Path, sources: list[SourceOptions]) -> None:
    options = {"per_concept": 4, "per_group": 4, "progress": False}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_dictionary(tmp_path / name, sources, seed=seed, **options)  # type: ignore[arg-type]
    a, b, c = (tmp_path / name for name in "abc")
    assert files_of(a) == files_of(b) != files_of(c)
    assert all(filecmp.cmp(a / name, b / name, shallow=False) for name in files_of(a))


def test_groups_are_matched_on_all_that_is_known(tmp_path: Path, sources: list[SourceOptions]) -> None:
    faces = build(tmp_path, sources)
    matched = faces.datacard["matched"]
    for table in cross_tables(faces):
        if table.label in matched.get(table.concept, {"on": ()})["on"]:
            counts = table.counts[table.counts.sum(1) > 0]  # no face is indian
            assert (counts == counts[0]).all(), (table.concept, table.label)
    assert set(faces.datacard["matched"]["gender"]["on"]) >= {"age", "ethnicity"}


def test_matching_gives_up_labels_only_when_it_must() -> None:
    rng = np.random.default_rng(0)
    group, order = np.arange(400) % 2, rng.permutation(400)
    free = rng.integers(0, 3, 400)
    matched = match_groups(group, {"free": free, "same": group}, per_group=40, order=order)
    assert (matched.on, matched.not_on) == (("free",), ("same",))
    for g in (0, 1):
        assert np.bincount(free[matched.index[matched.group == g]]).tolist() == [14, 13, 13]
    assert len(match_groups(group, {"same": group}, per_group=40, order=order, always=("same",)).index) == 0
    assert len(match_groups(np.zeros(9, np.int64), {}, per_group=3, order=np.arange(9)).index) == 0


def test_held_out_people_are_in_no_other_dictionary(tmp_path: Path) -> None:
    root = make_celeba(tmp_path / "celeba", faces=60)
    who = {f"{i + 1:06d}.jpg": str(i // 3) for i in range(60)}
    (root / "identity_CelebA.txt").write_text("".join(f"{name} {person}\n" for name, person in who.items()))
    source = SourceOptions("celeba", root)
    built = build_dictionary(tmp_path / "out", [source], held_out=0.3, progress=False)
    people = [{row["identity"] for row in rows_of(b.path / "non_localizable/labels.csv")} for b in built]
    assert all(people)
    assert not people[0] & people[1]
    assert [b.path.name for b in built] == ["out", "out-held-out"]
    assert [b.datacard["held_out"] for b in built] == [False, True]


def test_whoever_asks_for_more_does_not_get_less() -> None:
    """Of few Indians, nearly all dark, the ages must not take those that the ethnicities need."""
    rng = np.random.default_rng(0)
    shares = {"white": (0.5, 0.2), "black": (0.2, 0.95), "asian": (0.24, 0.3), "indian": (0.06, 0.9)}
    faces = []
    for i in range(2000):
        ethnicity = str(rng.choice(list(shares), p=[share for share, _ in shares.values()]))
        groups = {
            "ethnicity": ethnicity,
            "skin_tone": "dark" if rng.random() < shares[ethnicity][1] else "bright",
            "age": str(rng.choice(PAPER.global_[PAPER.global_index("age")].groups)),
            "gender": str(rng.choice(["Male", "Female"])),
        }
        faces.append(Face("made up", Path(), Path(f"{i}.jpg"), groups=groups))
    fewest = []
    for per_group in (10, 20, 40, 80):
        choice = choose(faces, np.arange(len(faces)), per_concept=1, per_group=per_group, seed=0)
        count = Counter(role for role in choice.roles.values() if role[0] != "ethnicity")
        assert all(not matched.not_on for matched in choice.matched.values())
        fewest.append(min(count.values()))
    assert fewest == [10, 20, 40, 80]


def test_a_file_and_its_copy_are_not_on_both_sides(tmp_path: Path) -> None:
    root = make_utkface(tmp_path / "utk")
    for path in sorted(root.iterdir()):
        shutil.copy(path, path.with_name(path.name.replace(".jpg.chip", "9.jpg.chip")))  # where nobody says who it is
    source = SourceOptions("utkface", root)
    built = build_dictionary(tmp_path / "out", [source], held_out=0.5, per_group=12, progress=False)
    files = [{path.read_bytes() for path in b.path.rglob("*.jpg")} for b in built]
    assert all(files)
    assert not files[0] & files[1]


@pytest.mark.parametrize("held_out", [0.0, 0.5])
def test_of_pictures_that_are_nearly_the_same_one_is_taken(tmp_path: Path, held_out: float) -> None:
    """Every face twice more, brighter and smaller, as another picture of a person whom nobody names."""
    root = make_utkface(tmp_path / "utk", faces=32)
    for i, path in enumerate(sorted(root.iterdir())):
        blots = np.random.default_rng(i).integers(0, 200, (8, 8, 3)).astype(np.uint8)
        image = Image.fromarray(blots).resize((100, 100), Image.Resampling.BICUBIC)
        image.save(path)
        image.point(lambda value: value + 12).save(root / path.name.replace(".jpg.chip", "8.jpg.chip"))
        image.resize((90, 90)).save(root / path.name.replace(".jpg.chip", "9.jpg.chip"), quality=80)
    built = build_dictionary(
        tmp_path / "out", [SourceOptions("utkface", root)], held_out=held_out, per_group=12, progress=False
    )
    used = [row["file"].partition(".")[0][:24] for b in built for row in rows_of(b.path / "non_localizable/labels.csv")]
    assert len(set(used)) == len(used) > 16  # what is left of the name tells which face it is
    assert "it is a copy of another, or nearly" in " ".join(built[0].findings["utkface"])
    for b in built:
        flaws = {finding.flaw for finding in check(b.path).findings}
        assert not flaws & {Flaw.COPY, Flaw.NEAR_COPY}


def test_two_pictures_of_one_name_do_not_come_in_one_place(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    root.mkdir()
    labels, landmarks = ["image,Smiling"], [LANDMARK_HEADER]
    for i in range(8):
        name = f"{i // 2}.{('jpg', 'png')[i % 2]}"
        draw_face((100, 100), i).save(root / name)
        labels.append(f"{name},{i % 2}")
        landmarks.append(landmark_row(name, landmarks_in((100, 100), i)))
    (root / "labels.csv").write_text("\n".join(labels))
    (root / "landmarks_68.csv").write_text("\n".join(landmarks))
    faces = build(tmp_path, [SourceOptions("pictures", root)])
    assert len(faces) == 4
    assert "its name but for the ending (4 times, first: 0.png)" in " ".join(faces.datacard["sources"][0]["findings"])


@pytest.mark.parametrize("form", ["partition", "list", "folder"])
def test_nobody_of_the_training_set_is_in_it(tmp_path: Path, form: str) -> None:
    root = make_celeba(tmp_path / "celeba", faces=30)
    (root / "identity_CelebA.txt").write_text("".join(f"{i + 1:06d}.jpg {i // 3}\n" for i in range(30)))
    train = [f"{i + 1:06d}.jpg" for i in (0, 10, 20)]
    given = tmp_path / "train"
    if form == "partition":
        given.write_text("".join(f"{i + 1:06d}.jpg {0 if i in (0, 10, 20) else 2}\n" for i in range(30)))
    elif form == "list":
        given.write_text("\n".join(train))
    else:
        given.mkdir()
        for name in train:
            (given / name).write_bytes(b"anything")
    built = build_dictionary(tmp_path / "out", [SourceOptions("celeba", root)], training_set=given, progress=False)
    people = {row["identity"] for row in rows_of(tmp_path / "out/non_localizable/labels.csv")}
    assert people == {str(i) for i in range(10)} - {"0", "3", "6"}
    assert "3 pictures and 3 people left out" in built[0].findings[""][0]


@pytest.mark.parametrize("given", ["fairface/train", "fairface/fairface_label_train.csv", "names.txt"])
def test_pictures_of_one_name_in_two_folders_are_told_apart(tmp_path: Path, given: str) -> None:
    """FairFace names the pictures of both of its parts 1.jpg, 2.jpg, ..."""
    root = tmp_path / "fairface"
    for part, seed in (("train", 0), ("val", 100)):
        (root / part).mkdir(parents=True)
        lines = ["file,age,gender,race,service_test"]
        for i in range(8):
            draw_face((64, 64), seed + i).save(root / part / f"{i + 1}.jpg")
            lines.append(f"{part}/{i + 1}.jpg,20-29,{('Male', 'Female')[i % 2]},White,True")
        (root / f"fairface_label_{part}.csv").write_text("\n".join(lines))
    (tmp_path / "names.txt").write_text("\n".join(f"1/{i + 1}.jpg" for i in range(2)))  # somebody's own folder: any
    source = SourceOptions("fairface", root)
    build_dictionary(tmp_path / "out", [source], training_set=tmp_path / given, progress=False)
    used = {row["file"] for row in rows_of(tmp_path / "out/non_localizable/labels.csv")}
    parts = ("train", "val") if given == "names.txt" else ("val",)
    assert used == {f"{part}/{i + 1}.jpg" for part in parts for i in range(2 if given == "names.txt" else 0, 8)}


def test_five_landmarks_do_where_there_are_no_more(tmp_path: Path) -> None:
    root = make_celeba(tmp_path / "celeba")
    (root / "landmarks_68.csv").unlink()
    lines = [
        "12",
        "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y",
    ]
    for i in range(12):
        p = landmarks_in((109, 89), i)
        five = np.concatenate([p[36:42].mean(0), p[42:48].mean(0), p[30], p[48], p[54]])
        lines.append(f"{i + 1:06d}.jpg  " + "  ".join(f"{v:.0f}" for v in five))
    (root / "list_landmarks_align_celeba.txt").write_text("\n".join(lines))
    built = build_dictionary(tmp_path / "out", [SourceOptions("celeba", root)], progress=False)
    assert any("masks are coarse" in finding for finding in built[0].findings["celeba"])
    assert {row["masks"] for row in rows_of(tmp_path / "out/non_localizable/labels.csv") if row["masks"]} == {
        "5 landmarks"
    }


def test_landmarks_that_miss_the_face_are_told_by_the_five_points_of_celeba(tmp_path: Path) -> None:
    """One face has the landmarks of another place: they have the shape of a face, and only the five points know."""
    root = make_celeba(tmp_path / "celeba")
    lines = (root / "landmarks_68.csv").read_text().splitlines()
    missed = landmarks_in((109, 89), 4)
    eyes = np.linalg.norm(missed[42:48].mean(0) - missed[36:42].mean(0))
    lines[5] = landmark_row("000005.jpg", missed - (0.4 * eyes, 0))
    lines[6] = landmark_row("000006.jpg", landmarks_in((109, 89), 5) - (0.2 * eyes, 0))  # as annotators may differ
    (root / "landmarks_68.csv").write_text("\n".join(lines))
    (without,) = build_dictionary(tmp_path / "without", [SourceOptions("celeba", root)], progress=False)
    assert without.datacard["images"] == 12  # nothing tells
    five = ["lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"]
    for i in range(12):
        points = five_of(landmarks_in((109, 89), i)).ravel()
        five.append(f"{i + 1:06d}.jpg " + " ".join(f"{value:.0f}" for value in points))
    (root / "list_landmarks_align_celeba.txt").write_text("\n".join(["12", *five]))
    (built,) = build_dictionary(tmp_path / "out", [SourceOptions("celeba", root)], progress=False)
    assert built.datacard["images"] == 11
    (said,) = [found for found in built.findings["celeba"] if "left out" in found]
    assert "0.3 eye distances from the five points of list_landmarks_align_celeba.txt" in said
    assert "000005" in said


def test_celebamask_hq_as_it_is_released(tmp_path: Path) -> None:
    """Parts as single files by thousands, attributes of true masks, and the tie to CelebA."""
    synthetic = make_facesynthetics(tmp_path / "synthetic")
    root = tmp_path / "hq"
    (root / "CelebA-HQ-img").mkdir(parents=True)
    numbers = {"nose": 2, "l_eye": 3, "r_eye": 4, "l_brow": 5, "r_brow": 6, "u_lip": 10, "skin": 1, "eye_g": 7}
    for i in range(3):
        Image.open(synthetic / f"{i:06d}.png").resize((256, 256)).save(root / f"CelebA-HQ-img/{i}.jpg")
        ids = np.array(Image.open(synthetic / f"{i:06d}_seg.png"))
        ids[50:60, 40:90] = 7
        folder = root / f"CelebAMask-HQ-mask-anno/{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, number in numbers.items():
            mask = Image.fromarray(((ids == number) * 255).astype(np.uint8))
            mask.convert("RGB" if i else "L").save(folder / f"{i:05d}_{name}.png")
    table = "3\nEyeglasses Smiling Double_Chin\n" + "".join(f"{i}.jpg  1 1 1\n" for i in range(3))
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text(table)
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx  orig_idx  orig_file\n" + "".join(f"{i} {i} {i + 1:06d}.jpg\n" for i in range(3))
    )
    celeba = SourceOptions("celeba", make_celeba(tmp_path / "celeba"))
    built = build_dictionary(
        tmp_path / "out", [SourceOptions("celebamask_hq", root), celeba], progress=False, per_concept=2
    )
    findings = built[0].findings[""]
    assert findings == ("picture of CelebA left out: CelebAMask-HQ has it with true masks (3 times)",)
    folders = list((tmp_path / "out/attributes").glob("celebamask_hq-*"))
    assert folders
    ids = np.zeros((256, 256), bool)
    ids[100:120, 80:180] = True
    np.testing.assert_array_equal(np.asarray(Image.open(folders[0] / "Eyeglasses.png")) > 0, ids)
    assert (np.asarray(Image.open(folders[0] / "Double_Chin.png")) > 0).any()  # by a mean face over the masks


@pytest.mark.parametrize("mapped", [True, False])
def test_people_of_celebamask_hq_are_those_of_celeba(tmp_path: Path, mapped: bool) -> None:
    """Picture 0 is one of person 0, of whom the model saw another one; of picture 1 nobody is known to be seen."""
    celeba = make_celeba(tmp_path / "celeba")
    (celeba / "identity_CelebA.txt").write_text("".join(f"{i + 1:06d}.jpg {i // 3}\n" for i in range(12)))
    synthetic, root = make_facesynthetics(tmp_path / "synthetic"), tmp_path / "hq"
    root.mkdir()
    for i in range(2):
        Image.open(synthetic / f"{i:06d}.png").save(root / f"{i}.jpg")
        ids = np.array(Image.open(synthetic / f"{i:06d}_seg.png"))
        of = np.array([0, 1, 2, 4, 5, 6, 7, 0, 0, 0, 10])  # FaceSynthetics' numbers in the order of CelebAMask-HQ
        Image.fromarray(of[np.minimum(ids, 10)].astype(np.uint8)).save(root / f"{i}.png")
    if mapped:
        (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
            "idx orig_idx orig_file\n0 0 000001.jpg\n1 5 000006.jpg\n"
        )
    (tmp_path / "train.txt").write_text("000002.jpg\n")
    sources = [SourceOptions("celeba", celeba), SourceOptions("celebamask_hq", root)]
    built = build_dictionary(tmp_path / "out", sources, training_set=tmp_path / "train.txt", progress=False)
    found = {row["file"]: row["identity"] for row in rows_of(tmp_path / "out/non_localizable/labels.csv")}
    assert not {"000001.jpg", "000002.jpg", "000003.jpg"} & set(found)
    assert {name: found.get(name) for name in ("0.jpg", "1.jpg")} == (
        {"0.jpg": None, "1.jpg": "1"} if mapped else {"0.jpg": "", "1.jpg": ""}
    )
    assert any("may be in CelebA, too" in finding for finding in built[0].findings[""]) is not mapped


def test_action_units_of_any_folder_of_pictures(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    root.mkdir()
    labels, landmarks = ["frame;subject;AU01;AU 12;AU26_r"], [LANDMARK_HEADER]
    for i, values in enumerate([(0, 3, 1), (2, 0, 0), (9, 0, 4), (0, 0, 5), (0, 1, 1)]):
        draw_face((100, 100), i).save(root / f"größe {i}.png")
        labels.append(";".join([f"größe {i}.png", f"S{i // 2}", *map(str, values)]))
        landmarks.append(landmark_row(f"größe {i}.png", landmarks_in((100, 100), i)))
    (root / "labels.csv").write_text("\n".join(labels), encoding="utf-8")
    (root / "landmarks_68.csv").write_text("\n".join(landmarks), encoding="utf-8")
    built = build_dictionary(tmp_path / "out", [SourceOptions("pictures", root, at_least=2)], progress=False)
    carried = {}
    for row in rows_of(tmp_path / "out/Action_Units.csv"):
        carried[row["image"]] = {Path(mask).stem for mask in row["labels"].split(";") if mask}
    truth = [{"AU_12"}, {"AU_1"}, {"AU_26"}, set()]  # 9 says that nobody looked: absence is a label, so it is left out
    assert sorted(map(sorted, carried.values())) == sorted(map(sorted, truth))
    said = " ".join(built[0].findings["pictures"])
    assert "says nothing of AU_2, AU_4" in said
    assert "AU_1 is unknown" in said
    assert len(FaceDictionary.from_folder(tmp_path / "out", size=32)) == 5  # the left-out one still serves for parts


def test_what_a_table_does_not_say_is_unknown_and_no_absence(tmp_path: Path) -> None:
    """A table without a column, one with an empty cell, one that has all: a negative is who was looked at."""
    tables = {
        "without": ("AU_1,AU_12", ["1,0", "0,1", "0,0"]),
        "whole": ("AU_1,AU_12,AU_25", ["1,1,1", "0,0,0", "0,1,1", "1,0,", "0,1,0"]),
    }
    for k, (name, (header, rows)) in enumerate(tables.items()):
        root = tmp_path / name
        root.mkdir()
        labels, landmarks = [f"image,{header}"], [LANDMARK_HEADER]
        for i, row in enumerate(rows):
            draw_face((100, 100), 10 * k + i).save(root / f"{name}{i}.png")
            labels.append(f"{name}{i}.png,{row}")
            landmarks.append(landmark_row(f"{name}{i}.png", landmarks_in((100, 100), i)))
        (root / "labels.csv").write_text("\n".join(labels))
        (root / "landmarks_68.csv").write_text("\n".join(landmarks))
    without, whole = (SourceOptions("pictures", tmp_path / name, name=name) for name in tables)

    def used(*sources: SourceOptions) -> dict[str, set[str]]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        build_dictionary(out, sources, progress=False)
        rows = rows_of(out / "Action_Units.csv")
        return {row["image"].split("/")[1].split("-")[1]: set(row["labels"].split(";")) - {""} for row in rows}

    assert set(used(without)) == {
        "without0",
        "without1",
        "without2",
    }  # of AU_25 nobody says anything: nobody carries it
    both = used(without, whole)
    assert set(both) == {"whole0", "whole1", "whole2", "whole4"}
    assert [{Path(mask).stem for mask in both[f"whole{i}"]} for i in (0, 1, 2, 4)] == [
        {"AU_1", "AU_12", "AU_25"},
        set(),
        {"AU_12", "AU_25"},
        {"AU_12"},
    ]


def test_intensities_are_those_of_action_units_only(tmp_path: Path) -> None:
    root = make_celeba(tmp_path / "celeba", faces=32)
    once, twice = (
        build_dictionary(tmp_path / f"{at_least}", [SourceOptions("celeba", root, at_least=at_least)], progress=False)
        for at_least in (1.0, 2.0)
    )
    assert once[0].datacard["concepts"]["Smiling"] > 0
    assert once[0].datacard["concepts"] == twice[0].datacard["concepts"]


def test_fairface_with_the_dates_that_spreadsheets_make(tmp_path: Path) -> None:
    root = tmp_path / "fairface"
    (root / "train").mkdir(parents=True)
    people = [
        ("9-Mar", "Male", "White"),
        ("20-29", "Female", "East Asian"),
        ("more than 70", "Male", "Latino_Hispanic"),
        ("Oct-19", "Female", "Black"),
        ("50-59", "Female", "Indian"),
        ("soon", "Male", "White"),
    ]
    lines = ["file,age,gender,race,service_test"]
    for i, person in enumerate(people):
        draw_face((64, 64), i).save(root / f"train/{i}.jpg")
        lines.append(f"train/{i}.jpg," + ",".join(person) + ",True")
    (root / "fairface_label_train.csv").write_text("\n".join(lines))
    built = build_dictionary(tmp_path / "out", [SourceOptions("fairface", root)], progress=False)
    rows = rows_of(tmp_path / "out/non_localizable/labels.csv")
    by_file = {row["file"]: row for row in rows}
    assert any("age is none of FairFace's" in finding for finding in built[0].findings["fairface"])
    for i, (group, ethnicity) in {0: ("zero_to_twenty", "white"), 1: ("twenty_to_forty", "asian")}.items():
        if row := by_file.get(f"train/{i}.jpg"):
            assert (row["age"], row["ethnicity"]) == (group, ethnicity)
    assert by_file


# ------------------------------------------------------------------------------------------------------------- skin


def test_lab_of_known_colours() -> None:
    """CIE L*a*b* of sRGB's corners under D65, as in Bruce Lindbloom's tables."""
    truth = {
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (119, 119, 119): (50.03, 0.0, 0.0),
        (0, 0, 0): (0.0, 0.0, 0.0),
    }
    for rgb, lab in truth.items():
        np.testing.assert_allclose(to_lab(np.array(rgb, np.uint8)), lab, atol=0.02)


def test_the_typology_angle() -> None:
    light, dark = np.array([[236, 200, 180]] * 40, np.uint8), np.array([[90, 60, 45]] * 40, np.uint8)
    for colour, group in ((light, "bright"), (dark, "dark")):
        lightness, _, yellow = to_lab(colour[0])
        angle = typology_angle(colour)
        assert angle == pytest.approx(np.degrees(np.arctan((lightness - 50) / yellow)))
        assert skin_tone(angle) == group
    assert [skin_tone(a) for a in (41.1, 41.0, 10.1, 10.0, None)] == ["bright", None, None, "dark", None]
    mixed = np.concatenate([light, np.zeros((4, 3), np.uint8), np.full((4, 3), 255, np.uint8)])  # shadow and highlight
    assert typology_angle(mixed) == pytest.approx(typology_angle(light))
    assert typology_angle(light[:15]) is None
    assert typology_angle(np.array([[80, 90, 200]] * 40, np.uint8)) is None


# ---------------------------------------------------------------------------------------------------- command, errors


def test_the_command_builds_and_says_what_is_in_it(tmp_path: Path, sources: list[SourceOptions], capsys) -> None:
    out = str(tmp_path / "out")
    words = ["dictionary", "build", out, "--utkface", str(sources[2].root), "--license", "research only"]
    assert main([*words, "--per-group", "3"]) == 0
    said = capsys.readouterr().out
    card = json.loads(Path(out, "datacard.json").read_text())
    assert f"zero_to_twenty {card['groups']['age']['zero_to_twenty']}" in said
    assert 1 < card["groups"]["gender"]["Male"] <= 3
    assert "matched on" in said
    for line in said.splitlines():
        if (words_said := line.partition("lightning-hnd ")[2].split()) and words_said[0] == "dictionary":
            assert main(words_said) in (0, 1)  # what it says to do next can be done
    capsys.readouterr()
    assert card["sources"][0]["license"] == "research only"
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["dictionary", "build", out + "2", "--celeba", "/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err
    assert main(["dictionary", "build", out + "2", "--pictures", words[4]]) == 2
    assert "labels.csv" in (error := capsys.readouterr().err)
    assert "(--labels)" in error
    assert main([*words[:2], out + "3", *words[3:5], "--landmarks", "celba=x.csv"]) == 2
    assert "names no source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"per_concept": 0}, "per_concept must be at least 1, got 0"),
        ({"held_out": 1.0}, "held_out is a share"),
        ({"largest_side": 8}, "largest_side must be at least 32"),
        ({"training_set": "/nowhere"}, "no training set /nowhere"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, options: dict[str, object], says: str) -> None:
    source = SourceOptions("utkface", make_utkface(tmp_path / "utk", faces=4))
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        build_dictionary(tmp_path / "out", [source], progress=False, **options)  # type: ignore[arg-type]
    assert files_of(tmp_path) == files_of(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_build_clears_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    source = SourceOptions("utkface", make_utkface(tmp_path / "utk"))
    script = """
import os, signal, sys
import lightning_hnd.building.build as build
from lightning_hnd.building import SourceOptions
build.write_datacard = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
build.build_dictionary(sys.argv[1], [SourceOptions("utkface", build.Path(sys.argv[2]))], progress=False)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out"), str(source.root)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".out.*")
    assert any(left.rglob("*.jpg"))
    others = [tmp_path / f".out.{name}" for name in (f"another.machine.{os.getpid()}", f"{socket.gethostname()}.1")]
    for other in others:  # somebody else's, of a machine that cannot be asked and of a process that lives
        other.mkdir()
    build_dictionary(tmp_path / "out", [source], progress=False)
    assert sorted(tmp_path.glob(".out*")) == sorted(others)


def test_nothing_is_left_behind_when_a_build_fails(tmp_path: Path, sources: list[SourceOptions], monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_hnd.building.build.write_datacard", fail)
    with pytest.raises(KeyboardInterrupt):
        build_dictionary(tmp_path / "out", sources, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["celeba", "synthetic", "utk"]


def test_a_place_that_cannot_be_written_to_is_told_before_the_work(tmp_path: Path, monkeypatch) -> None:
    source = SourceOptions("utkface", make_utkface(tmp_path / "utk"))
    monkeypatch.setattr("lightning_hnd.building.build._read", lambda *args: pytest.fail("has read the sources"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/out"):
        build_dictionary(tmp_path / "file/out", [source], progress=False)


def test_a_full_disk_names_the_dictionary_and_leaves_nothing(tmp_path: Path) -> None:
    root = make_utkface(tmp_path / "utk")
    full = (  # from when everything is imported: old releases of torch write a file then
        "import resource, sys, torch; from lightning_hnd.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", full, "dictionary", "build", "out", "--utkface", str(root)]
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert "File too large: 'out'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["utk"]


def test_of_two_builds_into_one_place_the_first_stays(
    tmp_path: Path, sources: list[SourceOptions], monkeypatch
) -> None:
    """The other one comes to its end while this one writes its card."""
    from lightning_hnd.building import build

    write, out = build.write_datacard, tmp_path / "out"

    def other(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        out.mkdir(exist_ok=True)
        (out / "theirs").touch()

    monkeypatch.setattr("lightning_hnd.building.build.write_datacard", other)
    with pytest.raises(FileExistsError, match="another process"):
        build_dictionary(out, sources, progress=False)
    assert files_of(out) == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["celeba", "out", "synthetic", "utk"]


def test_an_interrupt_ends_a_build_and_leaves_nothing(tmp_path: Path) -> None:
    make_utkface(tmp_path / "utk", 96)
    program = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import lightning_hnd.building.build as build; from lightning_hnd.cli import main; write = build.write_faces; "
        "build.write_faces = lambda *args: (print('writing\\n', end='', flush=True), time.sleep(0.2), write(*args))[2];"
        " sys.exit(main(['dictionary', 'build', 'out', '--utkface', 'utk']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert [path.name for path in tmp_path.iterdir()] == ["utk"]
