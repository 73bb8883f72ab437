"""The released layout on disk, and everything that can be wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_picture
from PIL import Image

from lightning_hnd import PAPER, Concept, FaceDictionary, GlobalConcept, Ontology


def carried(dictionary: FaceDictionary) -> dict[str, set[str]]:
    result: dict[str, set[str]] = {name: set() for name in dictionary.names}
    for image, concept in zip(dictionary.mask_image.tolist(), dictionary.mask_concept.tolist(), strict=True):
        result[dictionary.names[image]].add(PAPER.local[concept].name)
    return result


def test_reads_the_released_layout(folder: Path) -> None:
    dictionary = FaceDictionary.from_folder(folder, size=(10, 15))
    assert carried(dictionary) == {
        "attributes/000001/original.png": {"Smiling", "Eyeglasses"},
        "attributes/000002/original.png": set(),
        "parts/7/original.png": {"nose"},
        "non_localizable/Gender/Male/30.jpg": set(),
        "non_localizable/Gender/Female/31.jpg": set(),
    }
    # absence inside a source is a label, absence of a source is not
    kinds = {name: int(s) for name, s in zip(dictionary.names, dictionary.source, strict=True)}
    assert kinds["attributes/000002/original.png"] == PAPER.kinds.index("attribute")
    assert kinds["parts/7/original.png"] == PAPER.kinds.index("part")
    assert kinds["non_localizable/Gender/Male/30.jpg"] == -1
    gender = dictionary.group[:, PAPER.global_index("gender")].tolist()
    assert dict(zip(dictionary.names, gender, strict=True))["non_localizable/Gender/Female/31.jpg"] == 1
    assert sorted(gender) == [-1, -1, -1, 0, 1]
    assert (dictionary.group[:, PAPER.global_index("age")] == -1).all()
    labels = dict(zip(dictionary.names, dictionary.labels, strict=True))
    assert labels["non_localizable/Gender/Male/30.jpg"] == {"age": "30", "gender": "Male"}
    assert labels["parts/7/original.png"] == {}


def test_masks_take_the_pixel_at_the_nearest_centre(folder: Path) -> None:
    mask = (np.random.default_rng(1).random((20, 30)) < 0.5).astype(np.uint8) * 255
    write_picture(folder / "attributes/000001/Smiling.png", mask)
    for size in ((20, 30), (7, 11), (33, 47)):
        dictionary = FaceDictionary.from_folder(folder, size=size)
        batch = next(dictionary.batches())
        ours = batch.masks.dense()[(batch.mask_concept == PAPER.concept_index("Smiling")).nonzero().item()]
        truth = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], size, mode="nearest-exact")[0, 0]
        assert torch.equal(ours, truth > 0)


def test_images_are_normalised_per_channel_and_grey_on_request(folder: Path) -> None:
    raw = FaceDictionary.from_folder(folder, size=8, mean=0, std=1).images(slice(None))
    assert raw.min() >= 0
    assert raw.max() <= 1
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = FaceDictionary.from_folder(folder, size=8, mean=mean, std=std).images(slice(None))
    expected = (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(ours, expected)
    grey = FaceDictionary.from_folder(folder, size=8, mean=0, std=1, channels=1)
    with Image.open(folder / "attributes/000001/original.png") as picture:
        expected_grey = np.asarray(picture.convert("L").resize((8, 8), Image.Resampling.BILINEAR)) / 255
    first = grey.names.index("attributes/000001/original.png")
    np.testing.assert_allclose(grey.images(slice(None))[first, 0], expected_grey, atol=1e-6)


@pytest.mark.parametrize(
    "crop", [(0.5, 0.0, 1.0, 0.5), lambda picture: (picture.width / 2, 0, picture.width, picture.height / 2)]
)
def test_a_crop_moves_the_masks_with_the_image(folder: Path, crop) -> None:
    marked = np.zeros((20, 30, 3), np.uint8)
    marked[2:8, 20:28] = 255
    write_picture(folder / "attributes/000001/original.png", marked)
    write_picture(folder / "attributes/000001/Smiling.png", marked[..., 0])
    dictionary = FaceDictionary.from_folder(folder, size=(10, 15), mean=0, std=1, crop=crop)
    batch = next(dictionary.batches())
    m = (batch.mask_concept == PAPER.concept_index("Smiling")).nonzero().item()
    mask = batch.masks.dense()[m]
    assert torch.equal(mask, batch.images[batch.mask_image[m]][0] > 0.5)
    assert mask[2:8, 5:13].all()
    assert mask.sum() == 48


def test_missing_tables_and_folders_are_no_error(folder: Path) -> None:
    (folder / "Action_Units.csv").unlink()
    (folder / "Parts.csv").unlink()
    (folder / "non_localizable/labels.csv").unlink()
    assert len(FaceDictionary.from_folder(folder, size=8)) == 4


def test_an_ontology_of_ones_own(folder: Path) -> None:
    mine = Ontology((Concept("dimple", "mark", "Cheek"),), (GlobalConcept("hair", ("fair", "dark")),))
    root = folder / "mine"
    write_picture(root / "a.png", np.zeros((8, 8, 3), np.uint8))
    write_picture(root / "a/dimple.png", np.eye(8, dtype=np.uint8))
    write_picture(root / "non_localizable/Hair/fair/b.png", np.zeros((8, 8, 3), np.uint8))
    (root / "mark.csv").write_text("image,labels\na.png,a/dimple.png\n")
    dictionary = FaceDictionary.from_folder(root, size=8, ontology=mine)
    assert dictionary.images_per_concept == (1,)
    assert dictionary.images_per_group == (1, 0)
    assert torch.equal(next(dictionary.batches()).masks.dense()[0], torch.eye(8).bool())


# ------------------------------------------------------------------------------------------------------- bad input


def break_missing_folder(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def break_missing_file(root: Path) -> None:
    (root / "attributes/000001/Smiling.png").unlink()


def break_mask_size(root: Path) -> None:
    write_picture(root / "attributes/000001/Smiling.png", np.zeros((21, 30), np.uint8))


def break_unknown_concept(root: Path) -> None:
    (root / "attributes/000001/Smiling.png").rename(root / "attributes/000001/Smilling.png")
    table = root / "Attributes.csv"
    table.write_text(table.read_text().replace("Smiling", "Smilling"))


def break_wrong_table(root: Path) -> None:
    table = root / "Attributes.csv"
    table.write_text(table.read_text() + "parts/7/original.png,parts/7/nose.png\n")


def break_picture(root: Path) -> None:
    path = root / "attributes/000002/original.png"
    path.write_bytes(path.read_bytes()[:200])


def break_everything_away(root: Path) -> None:
    for path in [*root.glob("*.csv"), *root.glob("non_localizable/Gender/*/*")]:
        path.unlink()


def break_group(root: Path) -> None:
    (root / "non_localizable/Gender/Male").rename(root / "non_localizable/Gender/Man")


def break_global_concept(root: Path) -> None:
    (root / "non_localizable/Gender").rename(root / "non_localizable/Mood")


def break_columns(root: Path) -> None:
    (root / "Parts.csv").write_text("picture,labels\nparts/7/original.png,parts/7/nose.png\n")


def break_twice(root: Path) -> None:
    table = root / "Parts.csv"
    table.write_text(table.read_text() + "parts/7/original.png,parts/7/nose.png\n")


def break_labels(root: Path) -> None:
    table = root / "non_localizable/labels.csv"
    table.write_text(table.read_text() + "non_localizable/Gender/Male/99.jpg,99,Male\n")


def break_outside(root: Path) -> None:
    write_picture(root.parent / "secret.png", np.zeros((8, 8), np.uint8))
    (root / "Parts.csv").write_text("image,labels\n../secret.png,\n")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (break_missing_folder, FileNotFoundError, "no Face Dictionary at .*visual_dictionary"),
        (break_missing_file, FileNotFoundError, r"Attributes.csv, line 2: there is no file .*000001/Smiling.png"),
        (break_mask_size, ValueError, r"Smiling.png is 30 x 21 pixels, but its image .* is 30 x 20"),
        (break_unknown_concept, ValueError, r"line 2: the ontology has no local concept 'Smilling'.*Smiling"),
        (break_wrong_table, ValueError, r"line 4: 'nose' is of kind 'part'.*list it in Parts.csv"),
        (break_picture, ValueError, r"000002/original.png cannot be read as a picture"),
        (break_everything_away, ValueError, r"visual_dictionary is empty: no table lists an image \(.*Attributes.csv"),
        (break_group, ValueError, r"Man is a group that global concept 'gender' lacks \(it has: Male, Female\)"),
        (break_global_concept, ValueError, r"Mood is a global concept that the ontology lacks \(it has: age"),
        (break_columns, ValueError, r"Parts.csv has no column 'image'; its columns are: picture, labels"),
        (break_twice, ValueError, r"parts/7/original.png is listed twice"),
        (break_labels, FileNotFoundError, r"labels.csv, line 3: there is no file .*99.jpg"),
        (break_outside, ValueError, r"\.\./secret.png lies outside the dictionary"),
    ],
)
def test_damage_is_named(folder: Path, damage, error: type[Exception], message: str) -> None:
    FaceDictionary.from_folder(folder, size=8)  # whole before
    damage(folder)
    with pytest.raises(error, match=message):
        FaceDictionary.from_folder(folder, size=8)


@pytest.mark.parametrize(
    ("ontology", "message"),
    [
        (Ontology(PAPER.local[:1], ()), r"no table lists an image \(Action_Units.csv\)$"),
        (Ontology((), PAPER.global_[:2]), r"no folder holds a picture \(.*/age/<group>/, .*/gender/<group>/\)$"),
        (Ontology((), ()), "the ontology has no concept to look for$"),
    ],
)
def test_an_empty_folder_is_told_where_its_concepts_were_looked_for(
    tmp_path: Path, ontology: Ontology, message: str
) -> None:
    with pytest.raises(ValueError, match=f" is empty: {message}"):
        FaceDictionary.from_folder(tmp_path, size=8, ontology=ontology)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be positive, got 0"),
        ({"channels": 4}, "channels must be 3"),
        ({"mean": (0.5, 0.5)}, "mean has 2 values for images of 3 channels"),
        ({"std": 0.0}, "std must be positive"),
        ({"crop": (0.5, 0.0, 0.4, 1.0)}, "crop gives the box"),
    ],
)
def test_bad_settings_are_named(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaceDictionary.from_folder(folder, **{"size": 8, **options})


# ------------------------------------------------------------------------------------------------------ transforms


def blur(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(image[None], 3, 1, 1)[0]


def equalise(image: torch.Tensor) -> torch.Tensor:
    return image.flatten().argsort().argsort().view_as(image) / image.numel()


PHOTOMETRIC = [
    lambda image: image,
    lambda image: 1 - image,
    lambda image: image**2.2,
    lambda image: image.mean(0, keepdim=True).expand_as(image),
    lambda image: image[[2, 1, 0]],
    lambda image: (image - image.amin()) / (image.amax() - image.amin()),
    blur,
    equalise,
]
MOVING = [
    lambda image: image.flip(-1),
    lambda image: image.flip(-2),
    lambda image: image.roll(1, -1),
    lambda image: image.rot90(1, (-2, -1)),
    lambda image: torch.nn.functional.interpolate(image[None, :, 4:-4, 4:-4], image.shape[-2:])[0],
    lambda image: image.flip(-1) if torch.rand(()) < 0.5 else image,
    lambda image: image + torch.randn(()) * 0.1,
    lambda image: image[:, ::2, ::2],
    lambda image: image * 0,
]


@pytest.mark.parametrize("transform", PHOTOMETRIC)
def test_a_change_of_colours_is_taken(folder: Path, transform) -> None:
    plain = FaceDictionary.from_folder(folder, size=64, mean=0, std=1)
    dictionary = FaceDictionary.from_folder(folder, size=64, mean=0, std=1, transform=transform)
    assert torch.equal(dictionary.images(slice(1, 2))[0], transform(plain.images(slice(1, 2))[0]))


@pytest.mark.parametrize("transform", MOVING)
def test_a_transform_that_moves_or_is_random_is_refused(folder: Path, transform) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"moves the image|is random|must return an image"):
        FaceDictionary.from_folder(folder, size=64, transform=transform)
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------------------------------------- subsets


def test_a_subset_keeps_masks_with_their_images(folder: Path) -> None:
    whole = FaceDictionary.from_folder(folder, size=8)
    part = whole.subset([4, 1, 0])
    assert part.names == tuple(whole.names[i] for i in (4, 1, 0))
    mine, theirs = carried(part), carried(whole)
    assert all(mine[name] == theirs[name] for name in part.names)
    assert (part.mask_image.diff() >= 0).all()
    with pytest.raises(ValueError, match="a position comes twice"):
        whole.subset([1, 1])
    with pytest.raises(ValueError, match=r"positions must lie in 0\.\.4, got 0\.\.9"):
        whole.subset([0, 9])
