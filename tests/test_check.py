"""What only all images together tell, and the command line."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_picture
from PIL import Image

from lightning_hnd import FaceDictionary
from lightning_hnd.cli import main
from lightning_hnd.concepts import Concept, Ontology
from lightning_hnd.dictionary.check import Examination, check
from lightning_hnd.dictionary.comparing import misplaced_masks
from lightning_hnd.dictionary.flaws import Finding, Flaw
from lightning_hnd.dictionary.layout import Entry
from lightning_hnd.dictionary.looking import Look
from lightning_hnd.dictionary.similar import SIDE, difference_hash, families, thumbnail


def test_sources_may_frame_faces_differently() -> None:
    """Ten pictures with the mouth higher up are no flaw if another data set has them; one unlike its own is."""
    ontology = Ontology((Concept("mouth", "part", "Mouth"),))
    heights, sources = [0.6] * 40 + [0.3] * 10 + [0.3], ["a"] * 40 + ["b"] * 10 + ["a"]
    flat = np.zeros((SIDE + 1, SIDE + 1), np.uint8)
    looks = [
        Look(Entry(f"{i}.png", {0: f"{i}/mouth.png"}, 0, ()), b"", flat, {0: (0.5, y + 0.001 * (i % 5))})
        for i, y in enumerate(heights)
    ]
    told = list(misplaced_masks(looks, [{"source": source} for source in sources], ontology))
    assert [finding.where for finding in told] == ["50/mouth.png"]
    assert len(list(misplaced_masks(looks, [{}] * 51, ontology))) == 11


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 rendered faces on disk."""
    path = tmp_path_factory.mktemp("rendered") / "faces"
    FaceDictionary.rendered(size=96, images=160).to_folder(path)
    return path


@pytest.fixture
def faces(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "faces"))


def of(examination: Examination, flaw: Flaw) -> list[Finding]:
    return [finding for finding in examination.findings if finding.flaw is flaw]


def part_masks(root: Path, concept: str) -> list[Path]:
    return sorted(root.glob(f"parts/*/{concept}.png"))


def test_rendered_faces_are_sound(sound: Path) -> None:
    examination = check(sound)
    dictionary = FaceDictionary.from_folder(sound, size=96)
    assert examination.sound, examination.findings
    assert examination.images == len(dictionary)
    assert tuple(examination.per_concept.values()) == dictionary.images_per_concept
    assert tuple(examination.per_group.values()) == dictionary.images_per_group
    assert {finding.where for finding in of(examination, Flaw.ABSENT_CONCEPT)} >= {"ethnicity"}


def test_images_whose_groups_nobody_tells_are_named(faces: Path) -> None:
    pictures = sorted(path.relative_to(faces).as_posix() for path in faces.glob("attributes/*/original.png"))
    (told_of_none,) = (f for f in of(check(faces), Flaw.UNTOLD_GROUP) if f.where == "attribute")
    assert told_of_none.what.startswith(
        f"of {len(pictures)} images of kind attribute non_localizable/labels.csv does not"
    )
    assert f"gender of {len(pictures)}" in told_of_none.what
    assert "Eyeglasses" in told_of_none.doubtful
    assert not any(finding.where == "part" for finding in of(check(faces), Flaw.UNTOLD_GROUP))  # they are not compared
    table = faces / "non_localizable/labels.csv"
    columns = table.read_text().splitlines()[0].split(",")
    with table.open("a") as file:
        for i, picture in enumerate(pictures):
            row = {"image": picture, "gender": "Male" if i % 2 else "Female"}
            file.write(",".join(row.get(column, "") for column in columns) + "\n")
    (told,) = (finding for finding in of(check(faces), Flaw.UNTOLD_GROUP) if finding.where == "attribute")
    assert "gender" not in told.what
    assert f"age of {len(pictures)}" in told.what


def test_a_mask_off_the_face_is_found_and_no_other(faces: Path) -> None:
    path = part_masks(faces, "nose")[3]
    mask = np.zeros((96, 96), np.uint8)
    mask[80:92, 4:16] = 255
    write_picture(path, mask)
    (found,) = of(check(faces), Flaw.OFF_FACE)
    assert found.where == path.relative_to(faces).as_posix()
    assert found.doubtful == ("nose",)


def test_faces_upside_down_are_found(faces: Path) -> None:
    folder = part_masks(faces, "nose")[0].parent
    for path in folder.iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    assert f"{folder.relative_to(faces)}/original.png" in {f.where for f in of(check(faces), Flaw.OFF_FACE)}


def test_sides_exchanged_are_found(faces: Path) -> None:
    for left in part_masks(faces, "left_eye"):
        right = left.with_name("right_eye.png")
        left.rename(left.with_name("aside"))
        right.rename(left)
        left.with_name("aside").rename(right)
    (found,) = of(check(faces), Flaw.SIDES_SWAPPED)
    assert found.doubtful == ("left_eye", "right_eye")


def test_groups_without_images_or_with_many_more_are_found(sound: Path, faces: Path) -> None:
    shutil.rmtree(faces / "non_localizable/age/sixty_plus")
    for path in sorted((faces / "non_localizable/gender/Male").iterdir())[:30]:
        path.unlink()
    (faces / "non_localizable/labels.csv").unlink()
    examination = check(faces)
    assert [finding.where for finding in of(examination, Flaw.EMPTY_GROUP)] == ["age"]
    assert "gender" in [finding.where for finding in of(examination, Flaw.IMBALANCE)]
    assert "gender" not in [finding.where for finding in of(check(sound), Flaw.IMBALANCE)]
    assert not examination.sound


def test_confounded_labels_are_named_with_their_shares(tmp_path: Path) -> None:
    """Lipstick on 40 women of 50 and on no man of 50, known from labels.csv."""
    random = np.random.default_rng(0)
    rows, labels = ["image,labels"], ["image,gender"]
    mask = np.zeros((16, 16), np.uint8)
    mask[10:13, 5:11] = 255
    for i in range(100):
        folder = f"attributes/{i:03d}"
        write_picture(tmp_path / folder / "original.png", random.integers(0, 256, (16, 16, 3), np.uint8))
        if i < 40:
            write_picture(tmp_path / folder / "Wearing_Lipstick.png", mask)
        rows.append(f"{folder}/original.png,{f'{folder}/Wearing_Lipstick.png' if i < 40 else ''}")
        labels.append(f"{folder}/original.png,{'Female' if i < 50 else 'Male'}")
    (tmp_path / "Attributes.csv").write_text("\n".join(rows))
    (tmp_path / "non_localizable").mkdir()
    (tmp_path / "non_localizable/labels.csv").write_text("\n".join(labels))
    (found,) = of(check(tmp_path), Flaw.CONFOUND)
    assert found.doubtful == ("Wearing_Lipstick", "gender")
    share = "of the images with Wearing_Lipstick 100% are of gender Female, of those without Wearing_Lipstick 17%"
    assert found.what == f"{share} (Cramér's V 0.81, 100 images)"  # 10 of the 60 without are women


def test_the_documentation_lists_every_flaw() -> None:
    text = (Path(__file__).parents[1] / "docs/checking-dictionaries.md").read_text()
    for flaw in Flaw:
        assert f"| {flaw.level.value} | {flaw.name.lower()} | {flaw.meaning} |" in text


# ------------------------------------------------------------------------------------------------------ near copies


def test_families_are_those_of_a_comparison_pair_by_pair() -> None:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (60, 4, 4), np.uint8)
    pictures = [Image.fromarray(c).resize((40, 40), Image.Resampling.BICUBIC) for c in coarse]
    pictures += [p.point(lambda v: v * 0.8 + 20) for p in pictures[:5]] + [p.resize((25, 25)) for p in pictures[3:9]]
    thumbnails = np.stack([thumbnail(p) for p in pictures])
    bits = difference_hash(thumbnails)
    assert bits.shape == (71, 2 * SIDE**2)

    def alike(i: int, j: int) -> bool:
        a, b = (thumbnails[k].astype(float).ravel() for k in (i, j))
        return (bits[i] != bits[j]).mean() <= 0.15 and np.corrcoef(a, b)[0, 1] >= 0.97

    found = families(thumbnails)
    assert [sorted(family) for family in found] == found
    together = {(i, j) for family in found for i in family for j in family if i < j}
    pairs = {(i, j) for i in range(71) for j in range(i + 1, 71) if alike(i, j)}
    assert pairs <= together
    assert {(i, 60 + i) for i in range(5)} <= pairs
    assert {(3 + i, 65 + i) for i in range(6)} <= pairs
    assert all(any((min(i, k), max(i, k)) in pairs for k in range(71)) for i, _ in together)


def test_thousands_of_equal_pictures_are_one_family() -> None:
    assert families(np.zeros((30_000, SIDE + 1, SIDE + 1), np.uint8)) == [list(range(30_000))]


# -------------------------------------------------------------------------------------------------- command line


def test_exit_codes_say_how_it_stands(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["dictionary", "check", str(faces)]) == 0
    assert "findings: 0 refused, 0 wrong" in capsys.readouterr().out
    path = part_masks(faces, "nose")[0]
    path.write_bytes(b"")
    assert main(["dictionary", "check", str(faces)]) == 1
    said = capsys.readouterr().out
    assert "nose.png" in said
    assert Flaw.UNREADABLE.meaning[:20] in said
    assert main(["dictionary", "check", str(tmp_path / "nothing")]) == 2
    assert "there is no Face Dictionary at" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["dictionary"])
    assert exit_.value.code == 2


def test_no_word_is_broken_on_a_narrow_console(
    faces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    part_masks(faces, "nose")[0].write_bytes(b"")
    monkeypatch.setenv("COLUMNS", "80")
    main(["dictionary", "check", str(faces)])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    words = set(said.split())
    for finding in check(faces).findings[:3]:
        sentence = f"{finding.what} {finding.flaw.meaning}".split()
        assert {word for word in sentence if len(word) < 76} <= words


def test_the_command_takes_other_concepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ears = Ontology((Concept("left_ear", "part", "Ear"),))
    folder = tmp_path / "ears/parts/1"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "original.png")
    Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), 16)).save(folder / "left_ear.png")
    (tmp_path / "ears/Parts.csv").write_text("image,labels\nparts/1/original.png,parts/1/left_ear.png\n")
    file = tmp_path / "ears.json"
    file.write_text(json.dumps(ears.to_dict()))
    words = ["dictionary", "check", str(tmp_path / "ears")]
    assert main(words) == 1
    assert "no local concept 'left_ear'" in capsys.readouterr().out
    assert main([*words, "--ontology", str(file)]) == 0
    out = tmp_path / "sheets"
    assert main(["dictionary", "show", words[2], "--out", str(out), "--ontology", str(file)]) == 0
    assert (out / "left_ear.png").exists()
    file.write_text('{"local": ["left_ear"]}')
    capsys.readouterr()
    assert main([*words, "--ontology", str(file)]) == 2
    assert f"{file} describes no ontology" in capsys.readouterr().err


def test_json_holds_every_finding(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in part_masks(faces, "nose"):
        path.write_bytes(b"")
    assert main(["dictionary", "check", str(faces), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told == check(faces).to_dict()
    broken = [finding["where"] for finding in told["findings"] if finding["flaw"] == "unreadable"]
    assert sorted(broken) == [path.relative_to(faces).as_posix() for path in part_masks(faces, "nose")]


def test_show_writes_a_sheet_of_each_and_a_page_that_needs_no_other_file(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new/sheets"
    assert main(["dictionary", "show", str(sound), "--out", str(out), "--size", "24"]) == 0
    dictionary = FaceDictionary.from_folder(sound, size=24)
    sheets = {path.stem for path in out.glob("*.png")}
    concepts = {c.name for c, n in zip(dictionary.ontology.local, dictionary.images_per_concept, strict=True) if n}
    assert sheets >= concepts
    assert "gender-Female" in sheets
    assert "ethnicity-white" not in sheets
    page = (out / "index.html").read_text()
    assert page.count('<img alt="faces of ') == len(sheets)
    assert page.count('src="data:image/jpeg;base64,') == page.count("src=") == len(sheets)
    assert str(out / "index.html") in capsys.readouterr().out


def test_a_damaged_dictionary_is_not_shown(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part_masks(faces, "nose")[0].unlink()
    assert main(["dictionary", "show", str(faces), "--out", str(tmp_path / "sheets")]) == 2
    assert "nose.png" in capsys.readouterr().err


def test_python_m_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_hnd", "dictionary", "-h"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("lightning_hnd", run_name="__main__")
    assert exit_.value.code == 0
    assert "contact sheets" in capsys.readouterr().out
