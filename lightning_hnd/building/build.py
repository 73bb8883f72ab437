"""Builds a Face Dictionary: reads the sources, chooses faces, writes them aside, and puts the whole in place."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm.auto import tqdm

from lightning_hnd.building import geometry
from lightning_hnd.building.choosing import Choice, Role, choose, is_held_out, without_unknown
from lightning_hnd.building.exclusion import identities, leave_out, names_of
from lightning_hnd.building.faces import Face
from lightning_hnd.building.pictures import open_picture, read_file
from lightning_hnd.building.skin import skin_tone
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources import READERS, SourceOptions
from lightning_hnd.building.writing import Written, measured_angle, write_faces
from lightning_hnd.concepts import PAPER
from lightning_hnd.dictionary.datacard import write_datacard
from lightning_hnd.dictionary.folder import write_table
from lightning_hnd.dictionary.layout import GLOBAL_FOLDER, TABLE_OF_KIND
from lightning_hnd.dictionary.similar import families
from lightning_hnd.in_threads import in_threads
from lightning_hnd.whole_files import whole_folder

T = TypeVar("T")

GENERAL = ""
"""The name under which findings are that no single source has."""

_TOGETHER = 16  # faces: more of them take more memory, and hardly less time each
_SKIN_SIDE = 128  # pixels: enough of a picture to measure the colour of its skin


@dataclass(frozen=True)
class Built:
    """A dictionary that was built.

    Attributes:
        path: Where it is.
        datacard: What its ``datacard.json`` says.
        findings: What its sources had that a user should know, by the name of the source.
    """

    path: Path
    datacard: Mapping[str, Any]
    findings: Mapping[str, tuple[str, ...]]


def build_dictionary(
    out: str | Path,
    sources: Sequence[SourceOptions],
    *,
    per_concept: int = 500,
    per_group: int = 500,
    held_out: float = 0.0,
    training_set: str | Path | None = None,
    largest_side: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Built, ...]:
    """Builds a Face Dictionary in the layout of the released one.

    No picture comes into it twice. The groups of each global concept are matched on every other label that is known, as
    far as pictures suffice (see :func:`~lightning_hnd.building.matching.match_groups`). Faces that cannot be used are
    replaced by others, and found in the report. The same sources, options and seed make the same files.

    Args:
        out: The folder to make. It appears when it is whole.
        sources: What to build from.
        per_concept: Images that carry each local concept and images that lack it, so many as there are up to this.
        per_group: Images of each group, likewise.
        held_out: Share of the people (of the pictures, where nobody says who it is) that is kept for a second
            dictionary, ``<out>-held-out``, to confirm on it what was found on the first.
        training_set: Pictures that a model was trained on: a folder, a list of names, or CelebA's
            ``list_eval_partition.txt``. They and all other pictures of these people are left out.
        largest_side: Larger pictures are made smaller, to so many pixels.
        seed: Other seeds choose other faces.
        progress: Whether to show progress bars.

    Returns:
        The dictionary; and the held-out one, if there is one.

    Raises:
        FileExistsError: If there is something at ``out``.
        OSError: If ``out`` cannot be written.
        FileNotFoundError: If something that a source needs does not exist.
        ValueError: If a setting is out of range, a table cannot be read, or no face can be used.
    """
    _validate(sources, per_concept, per_group, held_out, largest_side)
    options = {
        "per_concept": per_concept,
        "per_group": per_group,
        "held_out": held_out,
        "largest_side": largest_side,
        "training_set": None if training_set is None else Path(training_set).name,
    }
    targets = [Path(out)] + ([Path(out).with_name(f"{Path(out).name}-held-out")] if held_out else [])
    findings = {GENERAL: Findings(), **{source.name: Findings() for source in sources}}
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        asides = [stack.enter_context(whole_folder(path)) for path in targets]
        warnings.simplefilter("ignore")  # Pillow's, of damaged pictures: what matters of them is raised, and found
        faces = _read(sources, findings, progress)
        if training_set is not None:
            names = names_of(Path(training_set), findings[GENERAL])
            faces = leave_out(faces, names, sources, findings[GENERAL])
        faces = _with_skin_tone(without_unknown(faces, findings), findings, progress)
        apart = np.array([is_held_out(face, held_out, seed) for face in faces], np.bool_)
        drafts: list[_Draft] = []
        for path, aside, mine in zip(targets, asides, (~apart, apart), strict=False):
            share = 1.0 if path == targets[0] else held_out / (1 - held_out)
            limits = max(1, round(per_concept * share)), max(1, round(per_group * share))
            drafts.append(_Draft(path, aside, faces, np.flatnonzero(mine), limits, largest_side, seed, findings))
            drafts[-1].write(progress, {i: w for draft in drafts[:-1] for i, (_, w) in draft.written.items()})
            drafts[-1].finish(_card(drafts[-1], sources, options))
    told = {name: tuple(found) for name, found in findings.items()}
    return tuple(Built(draft.path, draft.card, told) for draft in drafts)


def _validate(
    sources: Sequence[SourceOptions], per_concept: int, per_group: int, held_out: float, largest_side: int
) -> None:
    if not sources:
        raise ValueError(f"there is no source to build from; give at least one of {', '.join(READERS)}")
    for source in sources:
        if source.kind not in READERS:
            raise ValueError(f"there is no kind of source {source.kind!r}; there are: {', '.join(READERS)}")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError(f"two sources have one name: {', '.join(names)}; give each its own")
    for name, value in (("per_concept", per_concept), ("per_group", per_group)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is a share and must lie in 0 to 1 (1 excluded), got {held_out}")
    if largest_side < 32:
        raise ValueError(f"largest_side must be at least 32 pixels, got {largest_side}")


def _read(sources: Sequence[SourceOptions], findings: Mapping[str, Findings], progress: bool) -> list[Face]:
    """All faces, in the order of their sources and names; one picture of two sources with its true masks only."""
    faces: list[Face] = []
    for source in tqdm(sources, "Reading sources", leave=False, disable=None if progress else True):
        found = READERS[source.kind](source, findings[source.name])
        faces.extend(
            _one_of_each_name(sorted(found, key=lambda face: (face.name, face.picture.suffix)), findings[source.name])
        )
    faces = _with_originals(faces, sources, findings[GENERAL])
    with_masks = {face.original for face in faces if face.original and face.regions is not None}
    kept = [face for face in faces if face.regions is not None or face.original not in with_masks]
    for _ in range(len(faces) - len(kept)):
        findings[GENERAL].add("picture of CelebA left out: CelebAMask-HQ has it with true masks")
    if not kept:
        said = "; ".join(f"{name}: {', '.join(found)}" for name, found in findings.items() if list(found))
        raise ValueError(f"none of the sources has a face that can be used. {said}")
    return kept


def _one_of_each_name(faces: Sequence[Face], findings: Findings) -> Iterator[Face]:
    """The faces but those that only the ending of the file tells from another: they would be written to one place."""
    seen: set[str] = set()
    for face in faces:
        if face.name in seen:
            findings.add("picture left out: another one has its name but for the ending", face.picture.name)
        else:
            seen.add(face.name)
            yield face


def _with_originals(faces: Sequence[Face], sources: Sequence[SourceOptions], findings: Findings) -> list[Face]:
    """The faces, those of CelebAMask-HQ with the identities that CelebA's folder tells."""
    kinds = {source.name: source.kind for source in sources}
    if "celeba" in kinds.values():
        for face in faces:
            if kinds[face.source] == "celebamask_hq" and face.original is None:
                what = "it may be in CelebA, too: CelebA-HQ-to-CelebA-mapping.txt does not tell which picture it is"
                findings.add(what, face.picture.name)
    who = identities(sources)
    return [
        replace(face, identity=who[face.original]) if face.identity is None and face.original in who else face
        for face in faces
    ]


def _with_skin_tone(faces: Sequence[Face], findings: Mapping[str, Findings], progress: bool) -> list[Face]:
    """The faces with their skin tone, where that may make them stand for a group; without those that cannot be read."""

    def measure(face: Face) -> Face | str:
        if face.kinds or "skin_tone" in face.groups:
            return face
        try:
            opened = open_picture(read_file(face.picture), _SKIN_SIDE)
        except ValueError as error:
            return str(error)
        angle = measured_angle(face, opened.image, opened.size)
        if angle is None:
            return face
        tone = skin_tone(angle)
        groups = {**face.groups, "skin_tone": tone} if tone is not None else face.groups
        return replace(face, groups=groups, labels={**face.labels, "ita_degrees": f"{angle:.1f}"})

    result = []
    for face, measured in zip(faces, in_threads(measure, faces, "Measuring skin tone", progress=progress), strict=True):
        if isinstance(measured, Face):
            result.append(measured)
        else:
            findings[face.source].add(f"picture left out: {measured}", face.name)
    return result


class _Draft:
    """A dictionary in the making, in a hidden folder beside its place."""

    def __init__(
        self,
        path: Path,
        aside: Path,
        faces: Sequence[Face],
        usable: np.ndarray[Any, np.dtype[np.int64]],
        limits: tuple[int, int],
        largest_side: int,
        seed: int,
        findings: Mapping[str, Findings],
    ) -> None:
        self.path, self.aside, self.faces, self.findings = path, aside, faces, findings
        self._usable, self._limits, self.seed = usable, limits, seed
        self._largest_side = largest_side
        self.choice = Choice({}, {})
        self.written: dict[int, tuple[Role, Written]] = {}

    def write(self, progress: bool, elsewhere: Mapping[int, Written]) -> None:
        """Writes the faces that are chosen, and others for those that cannot be used, until all can be.

        Args:
            progress: Whether to show progress bars.
            elsewhere: The faces of the dictionary from which this one is held out; their copies are left out.
        """
        bad: set[int] = set()
        while True:
            usable = np.array([i for i in self._usable.tolist() if i not in bad], np.int64)
            per_concept, per_group = self._limits
            self.choice = choose(self.faces, usable, per_concept=per_concept, per_group=per_group, seed=self.seed)
            if not self.choice.roles:
                said = "; ".join(f"{name}: {', '.join(found)}" for name, found in self.findings.items() if list(found))
                raise ValueError(f"no face can be used for {self.path}. {said}")
            for i in [i for i, (role, _) in self.written.items() if self.choice.roles.get(i) != role]:
                self._remove(i)
            new = [i for i in self.choice.roles if i not in self.written]
            failed = self._write(new, progress) | self._copies(elsewhere)
            if not failed:
                return
            bad |= failed

    def _write(self, new: Sequence[int], progress: bool) -> set[int]:
        def write(some: Sequence[int]) -> list[Written | str]:
            faces = [(self.faces[i], self.choice.roles[i]) for i in some]
            return write_faces(self.aside, faces, self._largest_side)

        failed = set()
        together = [new[start : start + _TOGETHER] for start in range(0, len(new), _TOGETHER)]
        with contextlib.closing(in_threads(write, together, "Writing faces", progress=progress)) as results:
            for i, result in zip(new, chain.from_iterable(results), strict=True):
                if isinstance(result, Written):
                    self.written[i] = self.choice.roles[i], result
                else:
                    failed.add(i)
                    self.findings[self.faces[i].source].add(f"picture left out: {result}", self.faces[i].name)
        return failed

    def _copies(self, elsewhere: Mapping[int, Written]) -> set[int]:
        """Removes all but the first of pictures that are copies of each other, or nearly, or of one elsewhere."""
        ours = {i: written for i, (_, written) in sorted(self.written.items())}
        order, thumbnails = list(elsewhere) + list(ours), [w.thumbnail for w in (*elsewhere.values(), *ours.values())]
        copies = set()
        for first, *others in families(np.stack(thumbnails)) if thumbnails else ():
            for i in (order[place] for place in others if place >= len(elsewhere)):
                copies.add(i)
                pair = f"{self.faces[i].name} of {self.faces[order[first]].name}"
                self.findings[self.faces[i].source].add("picture left out: it is a copy of another, or nearly", pair)
                self._remove(i)
        return copies

    def _remove(self, i: int) -> None:
        _, written = self.written.pop(i)
        for path in (written.image, *written.masks):
            (self.aside / path).unlink()
        with contextlib.suppress(OSError):  # the folder of a group has others
            (self.aside / written.image).parent.rmdir()

    def finish(self, card: Mapping[str, Any]) -> None:
        """Writes the tables and the datacard, when all faces are written."""
        for kind, table in TABLE_OF_KIND.items():
            rows = [
                {"image": written.image, "labels": ";".join(written.masks)}
                for _, (role, written) in sorted(self.written.items())
                if role == ("kind", kind)
            ]
            write_table(self.aside / table, rows)
        (self.aside / GLOBAL_FOLDER).mkdir(exist_ok=True)
        known = [{"image": written.image, **written.labels} for _, (_, written) in sorted(self.written.items())]
        write_table(self.aside / GLOBAL_FOLDER / "labels.csv", known)
        write_datacard(self.aside, card)
        self.card = card
        for folder in [*self.aside.glob(f"{GLOBAL_FOLDER}/*"), *self.aside.glob("*")]:
            with contextlib.suppress(OSError):  # it is a file, or not empty
                folder.rmdir()


def _card(draft: _Draft, sources: Sequence[SourceOptions], options: Mapping[str, Any]) -> dict[str, Any]:
    """The datacard: plain data, the same for the same input."""
    written = [(draft.faces[i], role, result) for i, (role, result) in sorted(draft.written.items())]
    digest = hashlib.blake2b(digest_size=16)
    for face, _, result in written:
        digest.update(f"{face.source}/{face.name}:{result.digest}\n".encode())
    carried = Counter(Path(mask).stem for _, _, result in written for mask in result.masks)
    groups = Counter(role for _, role, _ in written)
    used = Counter(face.source for face, _, _ in written)
    return {
        "made_by": f"lightning-hnd {_version()}",
        "geometry": geometry.VERSION,
        "seed": draft.seed,
        "options": dict(options),
        "held_out": draft.path.name.endswith("-held-out") and bool(options["held_out"]),
        "input_digest": digest.hexdigest(),
        "images": len(written),
        "kinds": {kind: groups["kind", kind] for kind in TABLE_OF_KIND if groups["kind", kind]},
        "concepts": {c.name: carried[c.name] for c in PAPER.local if carried[c.name]},
        "groups": {
            concept.name: {group: groups[concept.name, group] for group in concept.groups}
            for concept in PAPER.global_
            if any(groups[concept.name, group] for group in concept.groups)
        },
        "matched": {
            name: {"on": list(matched.on), "not_on": list(matched.not_on)}
            for name, matched in draft.choice.matched.items()
        },
        "sources": [
            {
                "name": source.name,
                "kind": source.kind,
                "license": source.license,
                "images": used[source.name],
                "findings": list(draft.findings[source.name]),
            }
            for source in sources
        ],
        "findings": list(draft.findings[GENERAL]),
        "note": "Gender, age, ethnicity and skin tone are apparent: labels that annotators or measurements gave.",
    }


def _version() -> str:
    try:
        return version("lightning-hnd")
    except PackageNotFoundError:
        return "(not installed)"
