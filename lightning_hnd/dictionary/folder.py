"""The layout of the released Face Dictionary on disk: read exactly and checked whole, and written."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm.auto import tqdm

from lightning_hnd.concepts import Ontology
from lightning_hnd.dictionary.datacard import read_datacard, write_datacard
from lightning_hnd.dictionary.face_dictionary import UNKNOWN, Crop, FaceDictionary
from lightning_hnd.dictionary.masks import PackedMasks

TABLE_OF_KIND = {"attribute": "Attributes.csv", "action_unit": "Action_Units.csv", "part": "Parts.csv"}
FOLDER_OF_KIND = {"attribute": "attributes", "action_unit": "AU", "part": "parts"}
GLOBAL_FOLDER = "non_localizable"
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Entry:
    """One image of the dictionary: its file, the files of its masks by concept, and its labels."""

    path: Path
    masks: Mapping[int, Path]
    source: int
    group: tuple[int, ...]


def read_folder(
    root: Path,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    ontology: Ontology,
    crop: Crop | None = None,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
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

    Returns:
        The dictionary.

    Raises:
        FileNotFoundError: If the folder, or a file that a table names, does not exist.
        ValueError: If something in it cannot be used; the message names it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no Face Dictionary at {root}: no such folder")
    entries = [*_local_entries(root, ontology), *_global_entries(root, ontology)]
    if not entries:
        tables = ", ".join(_table(kind) for kind in ontology.kinds)
        raise ValueError(
            f"the Face Dictionary {root} is empty: none of {tables} lists an image, and {GLOBAL_FOLDER}/ holds none"
        )
    _require_unique(entries, root)
    names = tuple(entry.path.relative_to(root).as_posix() for entry in entries)
    labels = _labels(root, names)
    pictures, bits = _decode_all(entries, size, len(mean), crop)
    return FaceDictionary(
        ontology=ontology,
        pictures=pictures,
        source=torch.tensor([entry.source for entry in entries]),
        group=torch.tensor([entry.group for entry in entries]).reshape(len(entries), len(ontology.global_)),
        masks=PackedMasks(bits, size),
        mask_image=torch.tensor([i for i, entry in enumerate(entries) for _ in entry.masks], dtype=torch.int64),
        mask_concept=torch.tensor([c for entry in entries for c in entry.masks], dtype=torch.int64),
        names=names,
        labels=labels,
        mean=mean,
        std=std,
        transform=transform,
        origin=f"the dictionary {root}",
        datacard=read_datacard(root),
    )


def _local_entries(root: Path, ontology: Ontology) -> Iterator[Entry]:
    unknown = (UNKNOWN,) * len(ontology.global_)
    for source, kind in enumerate(ontology.kinds):
        table = root / _table(kind)
        for line, row in _rows(table, ("image", "labels")):
            where = f"{table}, line {line}"
            masks = {}
            for label in filter(None, (label.strip() for label in row["labels"].split(";"))):
                concept = _concept(Path(label).stem, kind, ontology, where)
                if concept in masks:
                    raise ValueError(f"{where}: two masks of {Path(label).stem}")
                masks[concept] = _existing(root, label, where)
            yield Entry(_existing(root, row["image"].strip(), where), masks, source, unknown)


def _global_entries(root: Path, ontology: Ontology) -> Iterator[Entry]:
    folder = root / GLOBAL_FOLDER
    concepts = {concept.name.lower(): k for k, concept in enumerate(ontology.global_)}
    for concept_folder in _subfolders(folder):
        k = concepts.get(concept_folder.name.lower())
        if k is None:
            known = ", ".join(c.name for c in ontology.global_) or "none"
            raise ValueError(
                f"{concept_folder} is a global concept that the ontology lacks (it has: {known}); "
                "give an ontology that has it, or move the folder away"
            )
        groups = {name.lower(): g for g, name in enumerate(ontology.global_[k].groups)}
        for group_folder in _subfolders(concept_folder):
            g = groups.get(group_folder.name.lower())
            if g is None:
                raise ValueError(
                    f"{group_folder} is a group that global concept {ontology.global_[k].name!r} lacks "
                    f"(it has: {', '.join(ontology.global_[k].groups)})"
                )
            group = tuple(g if i == k else UNKNOWN for i in range(len(ontology.global_)))
            for path in sorted(group_folder.iterdir()):
                if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
                    yield Entry(path, {}, UNKNOWN, group)


def _labels(root: Path, names: tuple[str, ...]) -> tuple[Mapping[str, str], ...]:
    table = root / GLOBAL_FOLDER / "labels.csv"
    known: dict[str, Mapping[str, str]] = {}
    for line, row in _rows(table, ("image",)):
        image = row.pop("image").strip()
        if image not in names and not (root / image).is_file():
            raise FileNotFoundError(f"{table}, line {line}: there is no file {root / image}")
        known[image] = row
    return tuple(known.get(name, {}) for name in names)


def _rows(table: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with their line numbers; none where there is no such file."""
    if not table.is_file():
        return
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        header = [name.strip() for name in reader.fieldnames or ()]
        missing = [name for name in columns if name not in header]
        if header and missing:
            raise ValueError(f"{table} has no column {missing[0]!r}; its columns are: {', '.join(header)}")
        reader.fieldnames = header
        for row in reader:
            if None in row:
                raise ValueError(f"{table}, line {reader.line_num}: more values than columns ({', '.join(header)})")
            yield reader.line_num, row


def _table(kind: str) -> str:
    return TABLE_OF_KIND.get(kind, f"{kind}.csv")


def _concept(name: str, kind: str, ontology: Ontology, where: str) -> int:
    try:
        concept = ontology.concept_index(name)
    except KeyError as error:
        raise ValueError(f"{where}: {error.args[0]}") from None
    if ontology.local[concept].kind != kind:
        raise ValueError(
            f"{where}: {name!r} is of kind {ontology.local[concept].kind!r}, but this table labels kind {kind!r}; "
            f"list it in {_table(ontology.local[concept].kind)}"
        )
    return concept


def _existing(root: Path, name: str, where: str) -> Path:
    path = root / name
    if not name or not path.is_file():
        raise FileNotFoundError(f"{where}: there is no file {path}" if name else f"{where}: the image has no name")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{where}: {name} lies outside the dictionary")
    return path


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _require_unique(entries: list[Entry], root: Path) -> None:
    seen: set[tuple[Path, tuple[int, ...]]] = set()
    for entry in entries:
        if (entry.path, entry.group) in seen:
            raise ValueError(f"{entry.path.relative_to(root)} is listed twice in {root}; an image may count only once")
        seen.add((entry.path, entry.group))


# ---------------------------------------------------------------------------------------------------------- writing


def write_folder(root: Path, dictionary: FaceDictionary) -> None:
    """Writes a dictionary in the released layout, so that any tool that reads the released one reads it.

    A face that belongs to groups of several global concepts is written once for each, as the layout wants;
    ``labels.csv`` says of every copy all that is known.

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
        first = last
        groups = {
            g.name: g.groups[k] for g, k in zip(ontology.global_, dictionary.group[i].tolist(), strict=True) if k >= 0
        }
        for name, group in groups.items():
            path = f"{GLOBAL_FOLDER}/{name}/{group}/{i:06d}.png"
            _save(picture, root / path)
            labels.append({"image": path, **dictionary.labels[i], **groups})
    for source, rows in tables.items():
        _write_table(root / _table(ontology.kinds[source]), rows)
    if labels:
        _write_table(root / GLOBAL_FOLDER / "labels.csv", labels)
    if dictionary.datacard:
        write_datacard(root, {"origin": dictionary.origin, "images": len(dictionary), "of": dictionary.datacard})


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _write_table(path: Path, rows: list[dict[str, str]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row)) or ["image", "labels"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


# --------------------------------------------------------------------------------------------------------- decoding


def _decode_all(
    entries: list[Entry], size: tuple[int, int], channels: int, crop: Crop | None
) -> tuple[torch.Tensor, torch.Tensor]:
    pictures = np.empty((len(entries), channels, *size), np.uint8)
    bits: list[npt.NDArray[np.uint8]] = []
    with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it decodes
        decoded = pool.map(lambda entry: _decode(entry, size, channels, crop), entries)
        progress = tqdm(decoded, "Reading the Face Dictionary", len(entries), leave=False, disable=None, delay=2)
        for i, (picture, masks) in enumerate(progress):
            pictures[i] = picture
            bits.extend(masks)
    packed = np.stack(bits) if bits else np.empty((0, -(-size[0] * size[1] // 8)), np.uint8)
    return torch.from_numpy(pictures), torch.from_numpy(packed)


def _decode(
    entry: Entry, size: tuple[int, int], channels: int, crop: Crop | None
) -> tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.uint8]]]:
    height, width = size
    picture = _open(entry.path)
    picture = picture.convert("RGB" if channels == 3 else "L")
    box = _box(crop, picture, entry.path)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    masks = []
    for path in entry.masks.values():
        mask = _open(path)
        if mask.size != picture.size:
            raise ValueError(
                f"{path} is {mask.size[0]} x {mask.size[1]} pixels, but its image {entry.path} is "
                f"{picture.size[0]} x {picture.size[1]}; a mask must have the size of its image"
            )
        values = np.asarray(mask if mask.mode in ("L", "1", "I", "I;16", "F") else mask.convert("RGB"))
        on = (values if values.ndim == 2 else values.max(-1)) > 0
        rows = _nearest(box[1], box[3], height, on.shape[0])
        columns = _nearest(box[0], box[2], width, on.shape[1])
        masks.append(np.packbits(on[rows[:, None], columns]))
    return resized.reshape(height, width, channels).transpose(2, 0, 1), masks


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


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
