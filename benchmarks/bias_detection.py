"""How often the alarm on shortcuts is raised, by strength of the bias, and in the balanced control.

    python benchmarks/bias_detection.py run runs.jsonl [--experiment glasses] [--seeds 20] [--balanced 60]
    python benchmarks/bias_detection.py table runs.jsonl [--experiment glasses] [--picture emergence.png]

Trains the networks of ``examples/bias`` one after the other and appends what their dissections found to a file of one
line each; what is there already is not done again. Seeds below 2000 were used to choose the alarm.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from lightning_hnd.functional import mid_ranks

sys.path[:0] = [str(Path(__file__).parents[1] / "examples" / "bias"), str(Path(__file__).parent / "validity")]

from experiment import EXPERIMENTS, Experiment, Run  # noqa: E402
from judge import binomial_interval  # noqa: E402
from showing import accuracy, by_strength, draw, over_epochs, raised, with_reach  # noqa: E402

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
        gc.collect()  # a Trainer and its callbacks hold each other, and the faces


def rank_correlation(x: Tensor, y: Tensor) -> float:
    ranks = mid_ranks(torch.stack([x, y], dim=1).double())
    return float(torch.corrcoef(ranks.T)[0, 1])


def correlation_interval(
    runs: Sequence[Run], measure: str = "index", resamples: int = 2000
) -> tuple[float, float, float]:
    """Spearman's rank correlation of strength and measure, and the 95 % interval of a bootstrap over runs."""
    x, y = (torch.tensor(values) for values in ([r.p for r in runs], [over_epochs(r, measure)[-1] for r in runs]))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(len(runs), (len(runs),), generator=generator) for _ in range(resamples)]
    found = torch.tensor([rank_correlation(x[i], y[i]) for i in drawn])
    low, high = found.quantile(torch.tensor([0.025, 0.975])).tolist()
    return rank_correlation(x, y), low, high


def table(runs: Sequence[Run], measure: str = "index") -> str:
    """Of each strength: how many runs raise the alarm, when, what it measures, and what the networks do."""
    lines = [
        f"| strength p | runs | alarms | share (95 %) | epoch of alarm | {measure} at start | {measure} at the end | "
        "accuracy, cue as learnt | against it |",
        "|" + " --- |" * 9,
    ]
    for p, some in by_strength(runs).items():
        alarms = sorted(epoch for run in some if (epoch := raised(run, measure)) is not None)
        low, high = binomial_interval(len(alarms), len(some))
        when = f"{statistics.median(alarms):g} ({alarms[0]} to {alarms[-1]})" if alarms else ""
        start, end = (with_reach([over_epochs(run, measure)[at] for run in some]) for at in (0, -1))
        lines.append(
            f"| {p} | {len(some)} | {len(alarms)} | {100 * len(alarms) / len(some):.0f} % ({100 * low:.1f} to "
            f"{100 * high:.1f}) | {when} | {start} | {end} | {accuracy(some, True):.2f} | {accuracy(some, False):.2f} |"
        )
    value, low, high = correlation_interval(runs, measure)
    lines.append(f"\nRank correlation of strength and {measure}: {value:.2f} ({low:.2f} to {high:.2f}).")
    return "\n".join(lines)


def accused(runs: Sequence[Run]) -> str:
    """Of how many runs each cue would have raised the alarm, in the balanced control."""
    control = [run for run in runs if run.p == 0.5]
    cues = sorted(set.intersection(*(set(run.measures) for run in control)))
    count = {cue: sum(run.alarm(cue) is not None for run in control) for cue in cues}
    named = sorted((cue for cue in count if count[cue]), key=lambda cue: -count[cue])
    told = ", ".join(f"{cue} {count[cue]}" for cue in named) or "none"
    return f"Cues that raise the alarm in {len(control)} balanced runs, of {len(cues)}: {told}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--experiment", choices=EXPERIMENTS, default="glasses")
    parser.add_argument("--seeds", type=int, default=20, help="of each strength")
    parser.add_argument("--balanced", type=int, default=60, help="seeds of the balanced control")
    parser.add_argument("--first", type=int, default=2000, help="of the seeds")
    parser.add_argument("--picture", type=Path, help="of the table's experiment")
    args = parser.parse_args()
    experiment = EXPERIMENTS[args.experiment]
    if args.what == "run":
        run(args.file, experiment, args.seeds, args.balanced, args.first)
    runs = [run for run in read(args.file) if run.experiment == experiment.name]
    print(f"{table(runs)}\n\n{accused(runs)}")
    if runs[0].encoded is not None:
        print(f"\n{table(runs, 'encoding')}")
    if args.picture:
        draw(runs, experiment).savefig(args.picture, dpi=150)


if __name__ == "__main__":
    main()
