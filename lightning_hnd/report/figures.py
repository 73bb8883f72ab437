"""Pictures of a dissection, as arrays that any logger takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.functional import firing_area
from lightning_hnd.layer_dissection import LayerDissection

if TYPE_CHECKING:  # a report reads results, and does not import what makes them
    from lightning_hnd.analyses.rotation import RotationTest

Picture = npt.NDArray[np.uint8]
"""``[height, width, 3]`` uint8."""

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")  # Paul Tol's "bright"


def concept_histogram(layer: LayerDissection) -> Picture:
    """How many units each local concept is paired with: the paper's figure.

    Concepts stand by region, coloured by kind; those that the dictionary has no image of are left out.

    Args:
        layer: Any.
    """
    ontology = layer.ontology
    shown = np.flatnonzero(layer.statistics["images_per_concept"] > 0)
    order = sorted(shown, key=lambda c: (ontology.concept_region[c], ontology.concept_kind[c], c))
    counts = layer.paired_concepts.sum(axis=0)[order]
    figure = new_figure(9, 4)
    axes = figure.add_subplot()
    axes.bar(range(len(order)), counts, color=[colour(ontology.concept_kind[c]) for c in order])
    axes.set_xticks(range(len(order)), [ontology.local[c].name for c in order], rotation=90, fontsize=7)
    axes.set_xlim(-0.6, max(len(order), 1) - 0.4)
    axes.set_ylim(0, max(1.0, float(counts.max(initial=0))) * 1.15)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("units")
    for r, region in enumerate(ontology.regions):
        places = [i for i, c in enumerate(order) if ontology.concept_region[c] == r]
        if places:
            axes.axvline(places[-1] + 0.5, color="#dddddd", linewidth=0.8, zorder=0)
            axes.text(np.mean(places), 0.99, region, transform=axes.get_xaxis_transform(), ha="center", va="top")
    for k, kind in enumerate(ontology.kinds):
        if any(ontology.concept_kind[c] == k for c in order):
            axes.bar(0, 0, color=colour(k), label=kind.replace("_", " "))
    if order:
        axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(ontology.kinds))
    axes.set_title(f"{layer.name}: units paired with each concept ({layer.rule.name})", fontsize=10, loc="left")
    return render(figure)


def overlays(layer: LayerDissection, dictionary: FaceDictionary, rows: int = 6) -> Picture:
    """The faces that the strongest units fire on, the firing area lit.

    A row for each unit; from left to right the faces on which it peaks highest. What is dark does not exceed
    the unit's threshold.

    Args:
        layer: Any.
        dictionary: The one it was dissected with.
        rows: Units at most.
    """
    units = layer.strongest[:rows]
    height, width = dictionary.size
    columns = layer.statistics["exemplar_image"].shape[1]
    faces = np.full((max(len(units), 1), height, columns, width, 3), 255, dtype=np.uint8)
    for i, u in enumerate(units):
        for j, face in enumerate(_lit(layer, dictionary, u)):
            faces[i, :, j] = face
    figure = new_figure(2.2 + 1.5 * columns, 0.5 + 1.5 * len(faces) * height / width)
    title = f"{layer.name}: where the strongest units fire ({layer.rule.name})"
    figure.suptitle(title if units else f"{layer.name}: no unit is interpretable yet ({layer.rule.name})", fontsize=10)
    axes = figure.add_subplot()  # one for all: a subplot for each face takes a second
    axes.imshow(faces.reshape(len(faces) * height, columns * width, 3))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for edge in range(1, columns):
        axes.axvline(edge * width - 0.5, color="white", linewidth=3)
    for edge in range(1, len(units)):
        axes.axhline(edge * height - 0.5, color="white", linewidth=3)
    axes.set_xticks([])
    labels = []
    for u in units:
        unit = layer.units[u]
        names = "\n".join(f"{c.name} {c.strength:.2f}\nIoU {c.iou:.3f}" for c in unit.concepts[:3])
        labels.append(f"unit {u} ({unit.region})\n{names}")
    axes.set_yticks([(i + 0.5) * height for i in range(len(units))], labels, fontsize=7)
    return render(figure)


def _lit(layer: LayerDissection, dictionary: FaceDictionary, unit: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The unit's faces ``[H, W, 3]``, dark where it does not fire."""
    images, maps = layer.statistics["exemplar_image"][unit], layer.statistics["exemplar_map"][unit]
    threshold = torch.tensor(layer.statistics["threshold"][[unit] * len(images)])
    lit = firing_area(torch.tensor(maps), threshold, dictionary.size).numpy()
    for fires, image in zip(lit, images, strict=True):
        if image >= 0:
            face = dictionary.pictures[int(image)].permute(1, 2, 0).expand(-1, -1, 3).numpy()
            yield np.where(fires[..., None], face, face * 0.4).astype(np.uint8)


def colour(kind: int) -> str:
    """One of a few that are told apart by everybody, in turn."""
    return _COLOURS[kind % len(_COLOURS)]


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, of a size in inches."""
    from matplotlib.figure import Figure  # not at the top: matplotlib takes longer to import than all the rest

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def render(figure: Any) -> Picture:
    """Draws a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def rotation_plot(test: RotationTest) -> Picture:
    """Interpretable units and different concepts against the strength of rotations: mean and range.

    Likewise of fresh weights, which have no basis of their own: broken lines.

    Args:
        test: Any.
    """
    figure = new_figure(6, 3.8)
    axes = figure.add_subplot()
    for counts, fresh, name, colour in (
        (test.interpretable, test.fresh_interpretable, "interpretable units", _COLOURS[0]),
        (test.concepts, test.fresh_concepts, "different concepts", _COLOURS[1]),
    ):
        values = np.array(counts)
        axes.plot(test.strengths, values.mean(axis=1), "o-", color=colour, label=name)
        axes.fill_between(test.strengths, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.2)
        if fresh:
            axes.axhline(np.mean(fresh), color=colour, linestyle="--", label=f"{name}, fresh weights")
            axes.axhspan(min(fresh), max(fresh), color=colour, alpha=0.1, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"strength of the rotation of {test.layer}")
    axes.set_ylabel(f"count (rule {test.rule.name})")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return render(figure)
