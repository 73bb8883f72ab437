"""How often the alarm on shortcuts is raised, by strength of the bias, and in the balanced control.

    python benchmarks/bias_detection.py run runs.jsonl [--experiment glasses] [--seeds 20] [--balanced 60]
    python benchmarks/bias_detection.py table runs.jsonl

Trains the networks of ``examples/bias`` one after the other and appends what their dissections found to a file of one
line each; what is there already is not done again. Seeds below 2000 were used to choose the alarm.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "bias"))

from experiment import AGE, GLASSES, SKIN_TONE, Experiment, Run

EXPERIMENTS = {experiment.name: experiment for experiment in (GLASSES, SKIN_TONE, AGE)}
STRENGTHS = (0.7, 0.9, 1.0)


def plan(seeds: int, balanced: int, first: int) -> Iterator[tuple[float, int]]:
    """Strengths and seeds, mixed, so that what is there at any time is a table already."""
    for i in range(max(seeds, balanced)):
        yield 0.5, first + i
        if i < seeds:
            yield from ((p, first + i) for p in STRENGTHS)


def read(path: Path) -> list[Run]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [Run(**json.loads(line)) for line in lines]


def run(path: Path, experiment: Experiment, seeds: int, balanced: int, first: int) -> None:
    done = {(r.experiment, r.p, r.seed) for r in read(path)}
    for p, seed in plan(seeds, balanced, first):
        if (experiment.name, p, seed) in done:
            continue
        began = time.monotonic()
        found = experiment.train(p, seed)[1]
        with path.open("a") as file:
            file.write(json.dumps(asdict(found)) + "\n")
        print(
            f"{experiment.name} p={p} seed {seed}: index {found.index[-1]:+.2f}, alarm {found.alarm()}, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("run",))
    parser.add_argument("file", type=Path)
    parser.add_argument("--experiment", choices=EXPERIMENTS, default="glasses")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--balanced", type=int, default=60)
    parser.add_argument("--first", type=int, default=2000)
    args = parser.parse_args()
    run(args.file, EXPERIMENTS[args.experiment], args.seeds, args.balanced, args.first)


if __name__ == "__main__":
    main()
