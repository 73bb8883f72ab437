"""The layout of the released Face Dictionary on disk: read exactly and checked whole, and written."""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm.auto import tqdm

from lightning_hnd.concepts import Ontology
from lightning_hnd.dictionary.datacard import write_datacard
from lightning_hnd.dictionary.face_dictionary import Crop, FaceDictionary
from lightning_hnd.dictionary.flaws import refuse
from lightning_hnd.dictionary.layout import (
    FOLDER_OF_KIND,
    GLOBAL_FOLDER,
    LABELS,
    Entry,
    Files,
    list_folder,
    table_of,
)
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.dictionary.packed import PackedDictionary, packed
from lightning_hnd.dictionary.pixels import open_face
from lightning_hnd.in_threads import in_threads


def read_folder(
    root: Path,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    ontology: Ontology,
    crop: Crop | None = None,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    cache: bool = True,
) -> FaceDictionary:
    """Reads and checks everything in a dictionary folder: see :meth:`FaceDictionary.from_folder`.

    Args:
        root: The folder.
        size: ``(H, W)`` to bring pictures and masks to.
        mean: One for each channel: three for RGB, one for grey.
        std: Likewise.
        ontology: The concepts to look for.
        crop: See :data:`Crop`.
        transform: A change of colours.
        cache: Whether to keep the packed form.

    Returns:
        The dictionary.

    Raises:
        FileNotFoundError: If the folder, or a file that a table names, does not exist.
        ValueError: If something in it cannot be used; the message names it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no Face Dictionary at {root}: no such folder")
    files, channels = Files(root), len(mean)

    def make() -> PackedDictionary:
        return _read(files, size, channels, ontology, crop)

    read = make() if callable(crop) or not cache else packed(files, size, channels, crop, ontology, make)
    return FaceDictionary(
        ontology=ontology,
        pictures=torch.from_numpy(read.pictures),
        source=torch.from_numpy(read.source),
        group=torch.from_numpy(read.group),
        masks=PackedMasks(torch.from_numpy(read.bits), size),
        mask_image=torch.from_numpy(read.mask_image),
        mask_concept=torch.from_numpy(read.mask_concept),
        names=tuple(read.facts["names"]),
        labels=tuple(read.facts["labels"]),
        mean=mean,
        std=std,
        transform=transform,
        origin=f"the dictionary {root}",
        datacard=read.facts["datacard"],
    )


def _read(
    files: Files, size: tuple[int, int], channels: int, ontology: Ontology, crop: Crop | None
) -> PackedDictionary:
    listing = list_folder(files, ontology, refuse)
    entries = listing.entries
    pictures = np.empty((len(entries), channels, *size), np.uint8)
    bits: list[npt.NDArray[np.uint8]] = []

    def decode(entry: Entry) -> tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.uint8]]]:
        return _decode(files.root, entry, size, channels, crop)

    with closing(in_threads(decode, entries, "Reading the Face Dictionary")) as decoded:
        for i, (picture, masks) in enumerate(decoded):
            pictures[i] = picture
            bits.extend(masks)
    return PackedDictionary(
        pictures=pictures,
        bits=np.stack(bits) if bits else np.empty((0, -(-size[0] * size[1] // 8)), np.uint8),
        source=np.array([entry.source for entry in entries], np.int64),
        group=np.array([entry.group for entry in entries], np.int64).reshape(len(entries), len(ontology.global_)),
        mask_image=np.array([i for i, entry in enumerate(entries) for _ in entry.masks], np.int64),
        mask_concept=np.array([c for entry in entries for c in entry.masks], np.int64),
        facts={
            "names": [entry.name for entry in entries],
            "labels": [dict(labels) for labels in listing.labels],
            "datacard": dict(listing.datacard),
        },
    )


def _decode(
    root: Path, entry: Entry, size: tuple[int, int], channels: int, crop: Crop | None
) -> tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.uint8]]]:
    height, width = size
    face = open_face(root, entry, channels, refuse)
    assert face is not None  # or it was refused
    box = _box(crop, face.picture, root / entry.name)
    picture = np.asarray(face.picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    rows = _nearest(box[1], box[3], height, face.picture.height)
    columns = _nearest(box[0], box[2], width, face.picture.width)
    masks = [np.packbits(mask[rows[:, None], columns] > 0) for mask in face.masks.values()]
    return picture.reshape(height, width, channels).transpose(2, 0, 1), masks


def _box(crop: Crop | None, picture: Image.Image, path: Path) -> tuple[float, float, float, float]:
    width, height = picture.size
    if crop is None:
        return (0.0, 0.0, width, height)
    if callable(crop):
        left, top, right, bottom = crop(picture)
    else:
        left, top, right, bottom = crop[0] * width, crop[1] * height, crop[2] * width, crop[3] * height
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"crop gives the box {(left, top, right, bottom)} for {path}, which does not lie inside its "
            f"{width} x {height} pixels"
        )
    return (left, top, right, bottom)


def _nearest(begin: float, end: float, pixels: int, limit: int) -> npt.NDArray[np.int64]:
    """Source pixel that holds the centre of each of ``pixels`` pixels ("nearest-exact")."""
    centres = begin + (np.arange(pixels) * 2 + 1) * (end - begin) / (2 * pixels)
    return np.clip(np.floor(centres).astype(np.int64), 0, limit - 1)


# ---------------------------------------------------------------------------------------------------------- writing


def write_folder(root: Path, dictionary: FaceDictionary) -> None:
    """Writes a dictionary in the released layout, so that any tool that reads the released one reads it.

    A face that belongs to groups of several global concepts is written once for each, as the layout wants;
    ``labels.csv`` says of every copy all that is known, also of faces with local labels.

    Args:
        root: The folder to make.
        dictionary: What to write.

    Raises:
        FileExistsError: If there is something at ``root`` already.
    """
    if root.exists():
        raise FileExistsError(f"{root} exists already; give a new folder, nothing is written over")
    ontology = dictionary.ontology
    tables: dict[int, list[dict[str, str]]] = {source: [] for source in range(len(ontology.kinds))}
    labels: list[dict[str, str]] = []
    owner, concept = dictionary.mask_image.tolist(), dictionary.mask_concept.tolist()
    first = 0
    for i in tqdm(range(len(dictionary)), "Writing the Face Dictionary", leave=False, disable=None, delay=2):
        picture = Image.fromarray(dictionary.pictures[i].permute(1, 2, 0).squeeze(-1).numpy())
        last = next((m for m in range(first, len(owner)) if owner[m] > i), len(owner))
        source = int(dictionary.source[i])
        if source >= 0:
            kind = ontology.kinds[source]
            folder = f"{FOLDER_OF_KIND.get(kind, kind)}/{i:06d}"
            _save(picture, root / folder / "original.png")
            paths = [f"{folder}/{ontology.local[c].name}.png" for c in concept[first:last]]
            for path, mask in zip(paths, dictionary.masks[first:last].dense().numpy(), strict=True):
                _save(Image.fromarray(mask.astype(np.uint8) * 255), root / path)
            tables[source].append({"image": f"{folder}/original.png", "labels": ";".join(paths)})
            if dictionary.labels[i]:
                labels.append({"image": f"{folder}/original.png", **dictionary.labels[i]})
        first = last
        groups = {
            g.name: g.groups[k] for g, k in zip(ontology.global_, dictionary.group[i].tolist(), strict=True) if k >= 0
        }
        for name, group in groups.items():
            path = f"{GLOBAL_FOLDER}/{name}/{group}/{i:06d}.png"
            _save(picture, root / path)
            labels.append({"image": path, **dictionary.labels[i], **groups})
    for source, rows in tables.items():
        write_table(root / table_of(ontology.kinds[source]), rows)
    if labels:
        write_table(root / LABELS, labels)
    if dictionary.datacard:
        write_datacard(root, {"origin": dictionary.origin, "images": len(dictionary), "of": dictionary.datacard})


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes a table of a dictionary; its columns are those of all rows, ``image`` and ``labels`` where there is none.

    Args:
        path: The file.
        rows: Its rows by column.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row)) or ["image", "labels"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
