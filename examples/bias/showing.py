"""Shows what runs of a controlled experiment found: a table, a picture, and the program that makes both."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiment import BAR, EPOCHS, Experiment, Run
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Student's t at 97.5 %, by degrees of freedom
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
_COLOURS = ("#4d4d4d", "#7fb3d5", "#e59866", "#c0392b")


def main(experiment: Experiment, text: str) -> None:
    """Runs an experiment over strengths and seeds, and shows what came out.

    Args:
        experiment: Which.
        text: For ``--help``.
    """
    parser = argparse.ArgumentParser(description=text.split("\n")[0])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 0.7, 0.9, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--faces", type=int, default=experiment.faces, help="that a network learns from")
    parser.add_argument("--shown", type=int, default=experiment.shown, help="faces of the dictionary")
    parser.add_argument("--out", type=Path, default=Path(f"bias-{experiment.name.replace('_', '-')}"))
    args = parser.parse_args()
    experiment = replace(experiment, faces=args.faces, shown=args.shown)
    runs = []
    for seed in range(args.seeds):
        for p in args.strengths:
            runs.append(experiment.train(p, seed, args.epochs)[1])
            print(f"p = {p}, seed {seed}: index {runs[-1].index[-1]:+.2f}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    print("\n" + table(runs))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_emergence(left, runs, experiment)
    draw_accuracy(right, runs, experiment)
    figure.savefig(args.out / "emergence.png", dpi=150)
    print(f"\nPicture: {args.out / 'emergence.png'}")


def by_strength(runs: Sequence[Run]) -> dict[float, list[Run]]:
    """The runs of each strength, weakest first."""
    return {p: [run for run in runs if run.p == p] for p in sorted({run.p for run in runs})}


def mean_and_reach(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and how far its 95 % interval reaches (Student's; infinite for one value)."""
    if len(values) < 2:
        return values[0], float("inf")
    t = _T.get(len(values) - 1, 1.96 + 2.6 / (len(values) - 1))
    return statistics.mean(values), t * statistics.stdev(values) / len(values) ** 0.5


def with_reach(values: Sequence[float]) -> str:
    """The mean and its 95 % interval, in words."""
    mean, reach = mean_and_reach(values)
    return f"{mean:+.2f} ± {reach:.2f}" if len(values) > 1 else f"{mean:+.2f}"


def table(runs: Sequence[Run]) -> str:
    """Of each strength: the index at the end, its difference from the balanced control, alarms, and accuracies."""
    lines = [
        "| strength p | runs | index at the end | against p = 0.5 | alarms | epoch of alarm | accuracy, cue "
        "as learnt | cue against it |",
        "|" + " --- |" * 8,
    ]
    strengths = by_strength(runs)
    control = [run.index[-1] for run in strengths.get(0.5, [])]
    for p, some in strengths.items():
        end = [run.index[-1] for run in some]
        difference = ""
        if p != 0.5 and len(control) > 1 and len(end) > 1:
            (mean, reach), (base, base_reach) = mean_and_reach(end), mean_and_reach(control)
            difference = f"{mean - base:+.2f} ± {(reach**2 + base_reach**2) ** 0.5:.2f}"
        alarms = [epoch for run in some if (epoch := run.alarm()) is not None]
        when = f"{statistics.median(alarms):g} ({min(alarms)} to {max(alarms)})" if alarms else ""
        lines.append(
            f"| {p} | {len(some)} | {with_reach(end)} | {difference} | {len(alarms)} of {len(some)} | {when} | "
            f"{_accuracy(some, True):.2f} | {_accuracy(some, False):.2f} |"
        )
    return "\n".join(lines)


def _accuracy(runs: Sequence[Run], as_learnt: bool) -> float:
    """At the end: faces of the task with the cue and others without, or the other way round."""
    kinds = ("task, with", "other, without") if as_learnt else ("task, without", "other, with")
    return statistics.mean(run.accuracy[kind][-1] for run in runs for kind in kinds)


def draw_emergence(axes: Axes, runs: Sequence[Run], experiment: Experiment) -> None:
    """The index over epochs, a band over seeds for each strength."""
    for (p, some), colour in zip(by_strength(runs).items(), _COLOURS, strict=False):
        epochs = range(len(some[0].index))
        ordered = [sorted(run.index[epoch] for run in some) for epoch in epochs]
        least, most = (_quantile(ordered, q) for q in (0.1, 0.9))
        axes.fill_between(epochs, least, most, color=colour, alpha=0.2, linewidth=0)
        axes.plot(epochs, _quantile(ordered, 0.5), color=colour, linewidth=2)
        label = f"p = {p}" + (", balanced" if p == 0.5 else "")
        axes.text(epochs[-1] + 0.1, _quantile(ordered, 0.5)[-1], label, color=colour, va="center")
    axes.axhline(BAR, color="black", linewidth=0.8, linestyle=":")
    axes.text(0.05, BAR + 0.015, "alarm", fontsize=8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="epochs of training", ylabel="shortcut index", title=experiment.title)
    axes.set_xlim(0, len(runs[0].index) - 1)
    axes.set_xticks(range(len(runs[0].index)))
    axes.spines[["top", "right"]].set_visible(False)


def _quantile(ordered: Sequence[Sequence[float]], q: float) -> list[float]:
    result = []
    for values in ordered:
        place = q * (len(values) - 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        result.append(values[low] + (place - low) * (values[high] - values[low]))
    return result


def draw_accuracy(axes: Axes, runs: Sequence[Run], experiment: Experiment) -> None:
    """What the same faces come to with the cue as learnt and against it, at the end, against the index."""
    for (p, some), colour in zip(by_strength(runs).items(), _COLOURS, strict=False):
        gap = [_accuracy([run], True) - _accuracy([run], False) for run in some]
        axes.scatter([run.index[-1] for run in some], gap, color=colour, s=18, label=f"p = {p}")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel="shortcut index of the units",
        ylabel="accuracy lost when the cue is turned round",
        title="... and what the model does",
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
