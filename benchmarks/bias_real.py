"""Does the shortcut measure follow the strength of a bias in photographs? Gender with ethnicity, and with age.

    python benchmarks/bias_real.py runs.jsonl --utkface path/to/utkface --dictionary path/to/visual_dictionary

A small network learns gender from faces of UTKFace. Those of apparent men are white (or old) with probability p, those
of apparent women with 1 - p. The dictionary has other faces, in which genders are matched on age and ethnicity.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_hnd import FaceDictionary

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples" / "bias")]

from bias_detection import correlation_interval, read, table  # noqa: E402
from experiment import SIZE, Experiment, Faces  # noqa: E402

HELD_OUT = 25  # of each kind
MALE, WHITE = "0", "0"


@dataclass(frozen=True)
class RealExperiment(Experiment):
    """The same with photographs; the accuracies are of other faces, not of the same with and without the cue."""

    utkface: Path = Path()
    folder: Path = Path()

    @cached_property
    def _drawn(self) -> Faces:
        rows = list(self._labelled())
        pictures = [np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))) for path, _, _ in rows]
        task, cue = (torch.tensor(flags) for flags in list(zip(*rows, strict=True))[1:])
        return Faces(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), task, cue)

    def _labelled(self) -> Iterator[tuple[Path, bool, bool]]:
        for path in sorted(self.utkface.glob("*.jpg")):
            fields = path.name.split("_")
            if len(fields) != 4:
                continue
            age, gender, race = int(fields[0]), fields[1], fields[2]
            if self.cue.startswith("ethnicity") and age >= 16:
                yield path, gender == MALE, race == WHITE
            elif self.cue.startswith("age") and (20 <= age < 40 or age >= 50):
                yield path, gender == MALE, age >= 50

    def _part(self, held_out: bool, cues: tuple[bool, ...]) -> Faces:
        faces, rows = self._drawn, []
        for task in (False, True):
            for cue in cues:
                there = ((faces.task == task) & (faces.cue == cue)).nonzero().flatten()
                there = there[torch.randperm(len(there), generator=torch.Generator().manual_seed(0))]
                rows.append(there[:HELD_OUT] if held_out else there[HELD_OUT:])
        some = torch.cat(rows)
        return Faces(faces.images[some], faces.task[some], faces.cue[some])

    @cached_property
    def train_faces(self) -> Faces:
        """Those that are not held out."""
        return self._part(False, (False, True))

    @cached_property
    def test_faces(self) -> tuple[Faces, Faces]:
        """Those held out, without and with the cue."""
        return self._part(True, (False,)), self._part(True, (True,))

    @cached_property
    def dictionary(self) -> FaceDictionary:
        """Photographs to dissect with."""
        return FaceDictionary.from_folder(self.folder, SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--utkface", type=Path, required=True)
    parser.add_argument("--dictionary", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=24)
    args = parser.parse_args()
    given = {"faces": 440, "every": 6, "utkface": args.utkface, "folder": args.dictionary}
    for name, cue in (("real ethnicity", "ethnicity/white"), ("real age", "age/sixty_plus")):
        experiment = RealExperiment(name, name, task="gender/Male", cue=cue, **given)
        done = {(run.experiment, run.p, run.seed) for run in read(args.file)}
        for seed in range(2000, 2000 + args.seeds):
            for p in (0.5, 0.7, 0.9, 1.0):
                if (name, p, seed) in done:
                    continue
                found = experiment.train(p, seed, args.epochs)[1]
                with args.file.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
                print(name, p, seed, found.index, {k: v[-1] for k, v in found.accuracy.items()}, flush=True)
        runs = [run for run in read(args.file) if run.experiment == name]
        print(f"\n{name}\n\n{table(runs)}\n{correlation_interval(runs)}")


if __name__ == "__main__":
    main()
