"""A timeline as a picture, and as files."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_hnd.history.timeline import LayerTimeline, Timeline
from lightning_hnd.report.figures import Picture, colour, new_figure, render
from lightning_hnd.whole_files import whole_file

_LABELS = 40
"""Rows that are named at most; there may be more."""

_SHORTCUTS = 5
"""Pairs of labels drawn at most."""


def timeline_picture(layer: LayerTimeline) -> Picture:
    """A layer over the epochs: units per concept, the concept of each unit, what it encodes, and its shortcuts.

    - Above on the left, concepts x epochs: units paired with each concept; a dot where it appeared to stay.
    - Above on the right, units x epochs: every unit that was ever paired, coloured by the region of its concept, in the
      order in which they were.
    - Below on the left: how strongly the layer encodes each global concept (``encoding_index``), with 95 % intervals.
    - Below on the right: the labels that it takes most for each other (``shortcut_index``), likewise, of those whose
      interval lies above 0 at the last moment.

    Args:
        layer: Of a :class:`~lightning_hnd.Timeline`.
    """
    figure = new_figure(12, 9)
    figure.set_layout_engine("none")  # to find the best one takes half of the time
    places = {"left": 0.12, "right": 0.98, "bottom": 0.06, "top": 0.92, "wspace": 0.2, "hspace": 0.2}
    axes = figure.subplots(2, 2, height_ratios=[3, 2], gridspec_kw=places)
    figure.suptitle(f"{layer.name}: what formed when ({layer.rule.name})", fontsize=11, parse_math=False)
    _concepts(figure, axes[0, 0], layer)
    _units(axes[0, 1], layer)
    _encodings(axes[1, 0], layer)
    _shortcuts(axes[1, 1], layer)
    for one in axes.flat:
        _epochs(one, layer)
    return render(figure)


def write_timeline(timeline: Timeline, folder: Path) -> list[Path]:
    """Writes a picture of each layer, ``timeline-<layer>.png``, and two tables of all.

    ``timeline.csv`` has a row for each moment, ``timeline-shortcuts.csv`` one for each moment, task and cue.

    Args:
        timeline: Any.
        folder: Made if it is not there.

    Returns:
        The files.

    Raises:
        OSError: If they cannot be written.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in (
        ("timeline.csv", [row for layer in timeline for row in layer.table()]),
        ("timeline-shortcuts.csv", [row for layer in timeline for row in layer.shortcut_table()]),
    ):
        if rows:  # there may be no shortcut that the dictionary can tell
            _write_table(folder / name, rows)
            written.append(folder / name)
    for layer in timeline:
        path = folder / _file_name(layer.name, taken=written)
        with whole_file(path) as file:
            Image.fromarray(timeline_picture(layer)).save(file, format="PNG")
        written.append(path)
    return written


def _write_table(path: Path, rows: Sequence[Mapping[str, str | int | float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())


def _file_name(layer: str, taken: Sequence[Path]) -> str:
    """One that any file system takes, and that no other layer has, also where capitals do not count."""
    safe, others = re.sub(r"[^\w.-]", "_", layer), {path.name.lower() for path in taken}
    names = (f"timeline-{safe}{'' if n == 1 else f'-{n}'}.png" for n in itertools.count(1))
    return next(name for name in names if name.lower() not in others)


def _epochs(axes: Any, layer: LayerTimeline) -> None:
    moments = layer.moments
    step = max(1, len(moments) // 12)
    axes.set_xticks(range(0, len(moments), step), [str(m) for m in moments[::step]], fontsize=8)
    axes.set_xlim(-0.5, len(moments) - 0.5)
    axes.set_xlabel("epoch", fontsize=8)


def _concepts(figure: Any, axes: Any, layer: LayerTimeline) -> None:
    counts = layer.units_per_concept
    seen = np.argsort(-counts.sum(0), kind="stable")[: min(_LABELS, int((counts.sum(0) > 0).sum()))]
    seen = np.array(sorted(seen, key=lambda c: (layer.ontology.concept_region[c], c)), dtype=np.int64)
    axes.set_title("units paired with each concept; dot: there to stay", fontsize=9, loc="left")
    if not len(seen):
        _nothing(axes, "no unit is paired with a concept yet")
        return
    image = axes.imshow(counts[:, seen].T, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    most = int(counts.max())
    ticks = range(0, most + 1, max(1, most // 8))
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.01, ticks=ticks).ax.tick_params(labelsize=7)
    axes.set_yticks(range(len(seen)), [layer.ontology.local[c].name for c in seen], fontsize=7)
    since = {e.name: e.moment for e in layer.emergence if e.kind == "concept"}
    for row, c in enumerate(seen):
        moment = since[layer.ontology.local[c].name]
        if moment is not None:
            axes.plot(layer.moments.index(moment), row, "o", color="#ee6677", markersize=4)


def _units(axes: Any, layer: LayerTimeline) -> None:
    region = np.array((*layer.ontology.concept_region, -1))[layer.concept]  # the last of them where there is none
    ever = np.flatnonzero((region >= 0).any(0))
    axes.set_title("each unit's concept, by region", fontsize=9, loc="left")
    if not len(ever):
        _nothing(axes, "no unit is paired with a concept yet")
        return
    first = (region[:, ever] >= 0).argmax(0)
    longest = (region[:, ever] >= 0).sum(0)
    ever = ever[np.lexsort((ever, -longest, first))]
    painted = np.ones((len(ever), len(layer.moments), 3))
    for r, name in enumerate(layer.ontology.regions):
        of_region = (region[:, ever] == r).T
        painted[of_region] = [int(colour(r)[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        axes.plot([], [], "s", color=colour(r), label=name)
    axes.imshow(painted, aspect="auto", interpolation="nearest")
    rows = range(0, len(ever), -(-len(ever) // _LABELS))
    axes.set_yticks(rows, [str(ever[row]) for row in rows], fontsize=6)
    axes.set_ylabel(f"{len(ever)} of {region.shape[1]} units: those ever paired", fontsize=8)
    above = {"loc": "lower right", "bbox_to_anchor": (1.01, 0.995), "frameon": False, "columnspacing": 0.8}
    axes.legend(fontsize=7, ncols=len(layer.ontology.regions), handletextpad=0.1, **above)


def _encodings(axes: Any, layer: LayerTimeline) -> None:
    axes.set_title("how strongly groups are encoded (0: as by chance), 95 % interval", fontsize=9, loc="left")
    for k, concept in enumerate(layer.ontology.global_):
        index, low, high = (layer.measures[f"encoding_{name}"][:, k] for name in ("index", "low", "high"))
        if np.isnan(index).all():  # the dictionary has no faces of it
            continue
        _interval(axes, low, high, colour(k))
        axes.plot(index, color=colour(k), label=concept.name, marker=".", markersize=4)
    axes.set_ylim(0, 1)
    if axes.lines:
        axes.legend(fontsize=7)
    else:
        _nothing(axes, "not measured, or the dictionary cannot tell")


def _shortcuts(axes: Any, layer: LayerTimeline) -> None:
    axes.set_title("which label makes a face look like another's (0: neither does)", fontsize=9, loc="left")
    names, index, error = (
        layer.ontology.labels,
        layer.measures["shortcut_index"],
        layer.measures["shortcut_error"],
    )
    groups = len(layer.ontology.local)  # tasks that are groups: what bias is about
    last = np.nan_to_num(np.abs(index[-1, groups:]))
    if not last.size or not last.any():
        _nothing(axes, "not measured, or the dictionary cannot tell")
        return
    drawn: list[Any] = []
    for flat in np.argsort(-last, axis=None, kind="stable"):
        task, cue = np.unravel_index(flat, last.shape)
        value, reach = index[:, groups + task, cue], 1.96 * error[:, groups + task, cue]
        if len(drawn) == _SHORTCUTS or last[task, cue] == 0:
            break
        # of two groups each is the other's negative, and of two times two groups there are two of each
        if not value[-1] > reach[-1] or any(np.allclose(value, other, equal_nan=True) for other in drawn):
            continue
        beside = np.arange(len(value)) + 0.06 * (len(drawn) - (_SHORTCUTS - 1) / 2)  # that intervals do not hide others
        label, shade = f"{names[cue]} as {names[groups + task]}", colour(len(drawn))
        axes.errorbar(beside, value, reach, color=shade, label=label, marker=".", markersize=4, elinewidth=0.7)
        drawn.append(value)
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_ylim(-1, 1)
    if drawn:
        axes.legend(fontsize=7)
    else:
        _nothing(axes, "none that the noise of few faces does not give as well")


def _interval(axes: Any, low: Any, high: Any, shade: str) -> None:
    axes.fill_between(range(len(low)), low, high, color=shade, alpha=0.15, linewidth=0)
    if len(low) == 1:  # an area without width
        axes.vlines(0, low, high, color=shade, alpha=0.5)


def _nothing(axes: Any, why: str) -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", fontsize=9, color="#777777")
    axes.set_yticks([])
