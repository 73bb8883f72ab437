"""The images of a Face Dictionary held against each other, and their labels counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from lightning_hnd.concepts import Ontology
from lightning_hnd.dictionary.annotations import UNKNOWN
from lightning_hnd.dictionary.confounds import CrossTable
from lightning_hnd.dictionary.face_dictionary import FaceDictionary
from lightning_hnd.dictionary.flaws import Finding, Flaw
from lightning_hnd.dictionary.known import UNTOLD, held_fixed
from lightning_hnd.dictionary.layout import GLOBAL_FOLDER, LABELS, PICTURE_SUFFIXES, Files, Listing
from lightning_hnd.dictionary.looking import Look
from lightning_hnd.dictionary.similar import families

FEW = 30
"""A concept or group with fewer images rests on single faces."""

UNEQUAL = 1.5
"""From how many times the images of the smallest group of a concept the largest one is out of balance."""

AWAY = 0.2
"""Share of the picture's size by which a mask must be away from where its concept is elsewhere, to be off the face. The
cheek that a profile shows is up to 0.16 from the middle of both, on CelebA's faces."""

_DEVIATIONS = 6.0
"""... and that many robust standard deviations, so that faces that stand anywhere in their pictures are left alone."""

_PRESENCE = ("present", "absent")  # the rows or columns of a local concept
_RELATIVE = 5  # masks of a face, from which their median tells where it stands
_COMPARABLE = 8  # masks of a concept in a source, from which "elsewhere" means something


def misplaced_masks(
    looks: Sequence[Look], labels: Sequence[Mapping[str, str]], ontology: Ontology
) -> Iterator[Finding]:
    """Masks where their concept is not in other pictures of the same source, as data sets frame faces differently.

    Args:
        looks: The images.
        labels: What ``labels.csv`` says of each; its column ``source`` tells sources apart.
        ontology: Of the dictionary.
    """
    placed = [(i, c, *centre) for i, look in enumerate(looks) for c, centre in look.centres.items()]
    image, concept = (np.array([p[j] for p in placed], np.int64) for j in (0, 1))
    centre = np.array([p[2:] for p in placed]).reshape(-1, 2)
    _, origin = np.unique([known.get("source", "") for known in labels], return_inverse=True)
    pool = concept * (len(looks) + 1) + origin[image]
    middle = {int(p): np.median(centre[pool == p], 0) for p in np.unique(pool)}
    usual = np.array([middle[p] for p in pool.tolist()]).reshape(-1, 2)
    relative = np.bincount(image, minlength=len(looks))[image] >= _RELATIVE
    away = _away(centre - usual, image, relative)
    for m in _outliers(away, pool, relative):
        name = looks[int(image[m])].entry.masks[int(concept[m])]
        where, there = (f"({x:.0%}, {y:.0%})" for x, y in (centre[m], usual[m]))
        what = f"{name} has its centre at {where} of width and height, where others have it at {there}"
        yield Finding(Flaw.OFF_FACE, name, what, (ontology.local[int(concept[m])].name,))
    yield from _swapped_sides({ontology.local[c].name: np.median(centre[concept == c, 0]) for c in np.unique(concept)})
    yield from _upside_down(looks, image, concept, centre[:, 1], ontology)


def _away(
    shift: npt.NDArray[np.float64], image: npt.NDArray[np.int64], relative: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """How far masks are from where they belong; of faces with many, less what all have in common: where it stands."""
    shift = shift.copy()
    for masks in np.split(np.arange(len(image)), np.flatnonzero(np.diff(image)) + 1):
        if len(masks) and relative[masks[0]]:
            shift[masks] -= np.median(shift[masks], 0)
    return np.abs(shift)


def _outliers(away: npt.NDArray[np.float64], pool: npt.NDArray[np.int64], relative: npt.NDArray[np.bool_]) -> list[int]:
    found: list[int] = []
    for p in np.unique(pool):
        for own in (np.flatnonzero((pool == p) & (relative == way)) for way in (False, True)):
            if len(own) >= _COMPARABLE:
                limit = np.maximum(AWAY, _DEVIATIONS * 1.4826 * np.median(away[own], 0))
                found += own[(away[own] > limit).any(1)].tolist()
    return found


def _swapped_sides(middle: Mapping[str, float]) -> Iterator[Finding]:
    for name, x in middle.items():
        other = name.replace("left_", "right_", 1)
        if name.startswith("left_") and middle.get(other, x) < x:
            what = f"{name} lies to the right of {other} in the pictures; exchange the masks"
            yield Finding(Flaw.SIDES_SWAPPED, name, what, (name, other))


def _upside_down(
    looks: Sequence[Look],
    image: npt.NDArray[np.int64],
    concept: npt.NDArray[np.int64],
    height: npt.NDArray[np.float64],
    ontology: Ontology,
) -> Iterator[Finding]:
    if not {"Eye", "Mouth"} <= set(ontology.regions):
        return
    region = np.array(ontology.concept_region)[concept]
    means = []
    for name in ("Eye", "Mouth"):
        own = region == ontology.regions.index(name)
        counts = np.bincount(image[own], minlength=len(looks))
        with np.errstate(invalid="ignore"):  # an image without masks of the region compares as False
            means.append(np.bincount(image[own], height[own], minlength=len(looks)) / counts)
    for i in np.flatnonzero(means[0] > means[1]).tolist():
        entry = looks[i].entry
        what = f"{entry.name}: the masks about the eyes lie below those of the mouth; are they upside down?"
        yield Finding(Flaw.OFF_FACE, entry.name, what, tuple(ontology.local[c].name for c in entry.masks))


def shared_masks(looks: Sequence[Look]) -> Iterator[Finding]:
    """Masks that several images have."""
    users = Counter(mask for look in looks for mask in look.entry.masks.values())
    for name, count in users.items():
        if count > 1:
            yield Finding(Flaw.SHARED_MASK, name, f"{name} is the mask of {count} images", (PurePosixPath(name).stem,))


def copies(looks: Sequence[Look], ontology: Ontology) -> Iterator[Finding]:
    """Pictures that count more than once among those that are compared with each other."""
    if not looks:
        return
    thumbnails = np.stack([look.thumbnail for look in looks])
    group = np.array([look.entry.group for look in looks]).reshape(len(looks), -1)
    source = np.array([look.entry.source for look in looks])
    pools = [(source == k, kind) for k, kind in enumerate(ontology.kinds)]
    pools += [(group[:, k] >= 0, concept.name) for k, concept in enumerate(ontology.global_)]
    for own, pool in pools:
        images = np.flatnonzero(own).tolist()
        for members in families(thumbnails[images]):
            by_pixels: dict[bytes, list[Look]] = defaultdict(list)
            for look in (looks[images[i]] for i in members):
                by_pixels[look.digest].append(look)
            for same in by_pixels.values():
                if len(same) > 1:
                    flaw = Flaw.CONTRADICTION if len({look.entry.group for look in same}) > 1 else Flaw.COPY
                    yield Finding(flaw, same[0].entry.name, f"the same picture: {_some(same)}", (pool,))
            if len(by_pixels) > 1:
                nearly = [same[0] for same in by_pixels.values()]
                what = f"nearly the same picture among those of {pool}: {_some(nearly)}"
                yield Finding(Flaw.NEAR_COPY, nearly[0].entry.name, what, (pool,))


def _some(looks: Sequence[Look], most: int = 4) -> str:
    names = [look.entry.name for look in looks]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def contradictions(listing: Listing, ontology: Ontology) -> Iterator[Finding]:
    """Faces in the folder of one group that ``labels.csv`` says to be of another."""
    for entry, labels in zip(listing.entries, listing.labels, strict=True):
        for concept, g in zip(ontology.global_, entry.group, strict=True):
            told = labels.get(concept.name, "").strip()
            if g != UNKNOWN and told in concept.groups and told != concept.groups[g]:
                what = f"{entry.name} lies in group {concept.groups[g]}, but {LABELS} says {concept.name} {told}"
                doubtful = (f"{concept.name}/{concept.groups[g]}", f"{concept.name}/{told}")
                yield Finding(Flaw.CONTRADICTION, entry.name, what, doubtful)


def unlisted(files: Files, listing: Listing, ontology: Ontology) -> Iterator[Finding]:
    """Files that look like data and are not read."""
    used = {entry.name for entry in listing.entries}
    used |= {mask for entry in listing.entries for mask in entry.masks.values()} | {LABELS}
    concepts = {c.name for c in ontology.local}
    masks, pictures, others = [], [], []
    for name in sorted(files.stamps.keys() - used):
        path = PurePosixPath(name)
        if path.name.startswith("."):
            continue
        if path.parts[0] == GLOBAL_FOLDER:
            others.append(name)
        elif path.suffix.lower() in PICTURE_SUFFIXES and path.stem in concepts:
            masks.append(name)
        elif path.suffix.lower() in PICTURE_SUFFIXES and path.stem == "original":
            pictures.append(name)
    for names, what in (
        (masks, "masks that no table lists"),
        (pictures, "pictures that no table lists, or that cannot be used"),
        (others, f"files in {GLOBAL_FOLDER} that are no pictures of a group, or cannot be used"),
    ):
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            doubtful = tuple(sorted({PurePosixPath(name).stem for name in names} & concepts))
            yield Finding(Flaw.UNLISTED, str(PurePosixPath(names[0]).parent), f"{len(names)} {what}: {some}", doubtful)


def counted(faces: FaceDictionary, per_concept: Mapping[str, int], per_group: Mapping[str, int]) -> Iterator[Finding]:
    """Concepts and groups with no image, with few, or with many times those of others."""
    ontology = faces.ontology
    for k, kind in enumerate(ontology.kinds):
        own = {c.name: per_concept[c.name] for c in ontology.local if c.kind == kind}
        absent = tuple(name for name, n in own.items() if n == 0)
        labelled = int((faces.source == k).sum())
        if absent:
            who = f"{', '.join(absent)}: no image of {labelled}" if labelled else f"no image is labelled in kind {kind}"
            yield Finding(Flaw.ABSENT_CONCEPT, kind, who, absent)
    for concept in ontology.global_:
        groups = {f"{concept.name}/{group}": per_group[f"{concept.name}/{group}"] for group in concept.groups}
        low, high = min(groups, key=groups.__getitem__), max(groups, key=groups.__getitem__)
        if groups[high] == 0:
            yield Finding(Flaw.ABSENT_CONCEPT, concept.name, f"no image has a group of {concept.name}", tuple(groups))
        elif groups[low] == 0:
            empty = tuple(name for name, n in groups.items() if n == 0)
            what = f"{', '.join(empty)} has no image; other groups of {concept.name} have"
            yield Finding(Flaw.EMPTY_GROUP, concept.name, what, tuple(groups))
        elif groups[high] > UNEQUAL * groups[low]:
            what = f"{high} has {groups[high]} images, {low} has {groups[low]}"
            yield Finding(Flaw.IMBALANCE, concept.name, what, tuple(groups))
    few = {name: n for name, n in {**per_concept, **per_group}.items() if 0 < n < FEW}
    for name, n in few.items():
        yield Finding(Flaw.FEW_IMAGES, name, f"{name} has {n} images, fewer than {FEW}", (name,))


def untold(faces: FaceDictionary) -> Iterator[Finding]:
    """Kinds whose images are compared with and without a concept, but have not all groups in ``labels.csv``."""
    ontology, carries = faces.ontology, faces.images_per_concept
    for k, kind in enumerate(ontology.kinds):
        known = faces.known[faces.source == k]
        compared = [
            c.name for c, n in zip(ontology.local, carries, strict=True) if c.kind == kind and 0 < n < len(known)
        ]
        missing = zip(ontology.global_, held_fixed(known).tolist(), (known == UNTOLD).sum(0).tolist(), strict=True)
        counts = [f"{concept.name} of {count}" for concept, fixed, count in missing if not fixed]
        if compared and counts:
            what = f"of {len(known)} images of kind {kind} {LABELS} does not tell {', '.join(counts)}"
            yield Finding(Flaw.UNTOLD_GROUP, kind, f"{what}; give a row for each image", tuple(compared))


def confounded(tables: Sequence[CrossTable]) -> Iterator[CrossTable]:
    """Those that are strong, each pair once."""
    seen = set()
    for table in tables:
        pair = frozenset((table.concept, table.label))
        if table.doubtful and pair not in seen:
            seen.add(pair)
            yield table


def confound(table: CrossTable) -> Finding:
    """Says by the cell that stands out most how two labels go together."""
    rows = np.flatnonzero(table.counts.sum(1) > 0)
    shares = table.counts[rows] / table.counts[rows].sum(1, keepdims=True)
    columns = [0] if table.columns == _PRESENCE else range(len(table.columns))
    if table.rows == _PRESENCE:
        most, least = 0, 1
        column = max(columns, key=lambda c: float(shares[0, c] - shares[1, c]))
    else:
        column = max(columns, key=lambda c: float(np.ptp(shares[:, c])))
        most, least = (int(pick(shares[:, column])) for pick in (np.argmax, np.argmin))
    what = (
        f"of the images {_having(table.concept, table.rows[rows[most]])} {shares[most, column]:.0%} are "
        f"{_having(table.label, table.columns[column])}, of those {_having(table.concept, table.rows[rows[least]])} "
        f"{shares[least, column]:.0%} (Cramér's V {table.strength:.2f}, {table.counts.sum()} images)"
    )
    return Finding(Flaw.CONFOUND, f"{table.concept}, {table.label}", what, (table.concept, table.label))


def _having(label: str, value: str) -> str:
    return {"present": f"with {label}", "absent": f"without {label}"}.get(value, f"of {label} {value}")
