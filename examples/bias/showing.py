"""Shows what runs of a controlled experiment found: a table, a picture, and the program that makes both."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiment import BAR, Experiment, Run
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Student's t at 97.5 %, by degrees of freedom
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
_NAMES = {"index": "shortcut index", "encoding": "encoding index"}
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
    parser.add_argument("--out", type=Path, default=Path(f"bias-{experiment.name.replace('_', '-')}"))
    add_sizes(parser)
    args = parser.parse_args()
    experiment = sized(experiment, args, parser)
    runs = []
    for seed in range(args.seeds):
        for p in args.strengths:
            runs.append(experiment.train(p, seed)[1])
            print(f"p = {p}, seed {seed}: index {runs[-1].index[-1]:+.2f}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    print("\n" + table(runs))
    draw(runs, experiment).savefig(args.out / "emergence.png", dpi=150)
    print(f"\nPicture: {args.out / 'emergence.png'}")


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Adds options for what is large in an experiment."""
    parser.add_argument("--epochs", type=int, help="how often a network sees each face")
    parser.add_argument("--faces", type=int, help="that a network learns from")
    parser.add_argument("--shown", type=int, help="faces of the dictionary")


def sized(experiment: Experiment, args: argparse.Namespace, parser: argparse.ArgumentParser) -> Experiment:
    """The experiment of the sizes that were asked for; the program ends here if they are too small."""
    sizes = {name: getattr(args, name) for name in ("epochs", "faces", "shown")}
    experiment = replace(experiment, **{name: size for name, size in sizes.items() if size is not None})
    try:
        _ = experiment.dictionary
    except ValueError as error:
        parser.error(str(error))
    return experiment


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
    """Of each strength: measures at the end, their difference from the balanced control, alarms, and accuracies."""
    measures = ["index"] if runs[0].encoded is None else ["index", "encoding"]
    columns = ["strength p", "runs"]
    for name in measures:
        columns += [f"{name} at the end", "against p = 0.5", "alarms", "epoch of alarm"]
    columns += ["accuracy, cue as learnt", "cue against it"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    strengths = by_strength(runs)
    for p, some in strengths.items():
        cells = [f"{p}", f"{len(some)}"]
        for name in measures:
            end, control = ([over_epochs(run, name)[-1] for run in of] for of in (some, strengths.get(0.5, [])))
            alarms = [epoch for run in some if (epoch := raised(run, name)) is not None]
            when = f"{statistics.median(alarms):g} ({min(alarms)} to {max(alarms)})" if alarms else ""
            difference = _difference(end, control) if p != 0.5 else ""
            cells += [with_reach(end), difference, f"{len(alarms)} of {len(some)}", when]
        cells += [f"{accuracy(some, True):.2f}", f"{accuracy(some, False):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def over_epochs(run: Run, measure: str) -> list[float]:
    """The shortcut ``index`` of the cue, or the ``encoding`` of its concept."""
    return run.index if measure == "index" else run.encoded or []


def raised(run: Run, measure: str) -> int | None:
    """When an alert on it is raised."""
    return run.alarm() if measure == "index" else run.encoding_alarm()


def _difference(end: Sequence[float], control: Sequence[float]) -> str:
    if min(len(end), len(control)) < 2:
        return ""
    (mean, reach), (base, base_reach) = mean_and_reach(end), mean_and_reach(control)
    return f"{mean - base:+.2f} ± {(reach**2 + base_reach**2) ** 0.5:.2f}"


def accuracy(runs: Sequence[Run], as_learnt: bool) -> float:
    """At the end: faces of the task with the cue and others without, or the other way round."""
    kinds = ("task, with", "other, without") if as_learnt else ("task, without", "other, with")
    return statistics.mean(run.accuracy[kind][-1] for run in runs for kind in kinds)


def draw(runs: Sequence[Run], experiment: Experiment) -> Figure:
    """The index over epochs, and what the model does; below, if the cue is a group, the encoding of its concept."""
    titles = {"index": experiment.title}
    if runs[0].encoded is not None:
        titles["encoding"] = f"How strongly {experiment.concept} is encoded"
    figure = Figure(figsize=(9.5, 3.8 * len(titles)), layout="constrained")
    rows = figure.subplots(len(titles), 2, width_ratios=(3, 2), squeeze=False)
    for (left, right), (measure, title) in zip(rows, titles.items(), strict=True):
        draw_emergence(left, runs, title, measure)
        draw_accuracy(right, runs, measure)
    return figure


def draw_emergence(axes: Axes, runs: Sequence[Run], title: str, measure: str) -> None:
    """A measure over epochs, a band over seeds for each strength."""
    for (p, some), colour in zip(by_strength(runs).items(), _COLOURS, strict=False):
        epochs = range(len(some[0].index))
        ordered = [sorted(over_epochs(run, measure)[epoch] for run in some) for epoch in epochs]
        least, most = (_quantile(ordered, q) for q in (0.1, 0.9))
        axes.fill_between(epochs, least, most, color=colour, alpha=0.2, linewidth=0)
        axes.plot(epochs, _quantile(ordered, 0.5), color=colour, linewidth=2)
        label = f"p = {p}" + (", balanced" if p == 0.5 else "")
        axes.text(epochs[-1] + 0.1, _quantile(ordered, 0.5)[-1], label, color=colour, va="center")
    if measure == "index":  # of encoding the rise counts, which is another for each network
        axes.axhline(BAR, color="black", linewidth=0.8, linestyle=":")
        axes.text(0.05, BAR + 0.015, "alarm", fontsize=8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="epochs of training", ylabel=_NAMES[measure], title=title)
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


def draw_accuracy(axes: Axes, runs: Sequence[Run], measure: str) -> None:
    """What the same faces come to with the cue as learnt and against it, at the end, against a measure."""
    for (p, some), colour in zip(by_strength(runs).items(), _COLOURS, strict=False):
        gap = [accuracy([run], True) - accuracy([run], False) for run in some]
        axes.scatter([over_epochs(run, measure)[-1] for run in some], gap, color=colour, s=18, label=f"p = {p}")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel=f"{_NAMES[measure]} of the units",
        ylabel="accuracy lost when the cue is turned round",
        title="... and what the model does",
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
