"""The numbers of a dissection under fixed keys: the same keys in every epoch, so that curves never break."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lightning_hnd.concepts import Ontology
from lightning_hnd.dissection import Dissection
from lightning_hnd.history.timeline import LayerTimeline, Timeline
from lightning_hnd.layer_dissection import LayerDissection
from lightning_hnd.rules import Rule


def scalars(dissection: Dissection) -> dict[str, float]:
    """Every scalar of a dissection, under ``hnd/<layer>/<rule>/...``.

    - ``interpretable_units``: units paired with at least one local concept
    - ``interpretable_fraction``: their share of the live units, 0 where none lives
    - ``dead_units``: units whose activation never varies over the dictionary
    - ``mean_iou``: mean over the interpretable units of their best IoU, 0 where there is none
    - ``region/<region>``: interpretable units of the region
    - ``kind/<kind>``: units paired with a concept of the kind
    - ``group/<concept>/<group>``: units paired with the group
    - ``mean_probability/<concept>/<group>``: mean of the probability of the group, over the units that fire on any face
      with a group of the concept; 0 where none does
    - under a rule with a level also ``associated_units``, ``placed_units`` and, where networks with fresh weights were
      asked, ``learnt_units``: units with a concept that survives the question, whatever becomes of the others; and
      ``confounded_units``: those with a concept that a group may stand behind

    Args:
        dissection: Any.
    """
    return {
        f"{prefix(layer.name, dissection.rule.name)}/{key}": value
        for layer in dissection
        for key, value in _layer_scalars(layer).items()
    }


def prefix(layer: str, rule: str) -> str:
    """What the keys of a layer begin with."""
    return f"hnd/{layer}/{rule}"


def keys(ontology: Ontology, rule: Rule, *, learnt: bool) -> tuple[str, ...]:
    """What follows the prefix: every key of a layer, before anything is measured.

    Args:
        ontology: The concepts.
        rule: What it is read under.
        learnt: Whether networks with fresh weights are asked.
    """
    questions = ("associated_units", "placed_units", "confounded_units", *(("learnt_units",) if learnt else ()))
    return (
        "interpretable_units",
        "interpretable_fraction",
        "dead_units",
        "mean_iou",
        *(f"region/{region}" for region in ontology.regions),
        *(f"kind/{kind}" for kind in ontology.kinds),
        *(f"group/{concept.name}/{group}" for concept in ontology.global_ for group in concept.groups),
        *(f"mean_probability/{concept.name}/{group}" for concept in ontology.global_ for group in concept.groups),
        *(() if rule.level is None else questions),
    )


def scalars_over_time(timeline: Timeline) -> dict[str, float]:
    """Scalars of the last moment of a timeline that take more than one dissection, or say how biased a layer is.

    - ``births``, ``deaths``, ``switches``, ``churn``: since the moment before
      (:class:`~lightning_hnd.history.timeline.LayerTimeline`)
    - ``bias/<concept>/index``: how strongly the layer encodes the global concept, 0 as by chance, 1 at most
      (:func:`~lightning_hnd.functional.encoding.encoding`); ``since_start`` and ``since_last``: less that of the
      model at start, and of the dissection before. NaN if the dictionary has not two groups of it with enough faces

    Args:
        timeline: Any.
    """
    return {
        f"{prefix(layer.name, layer.rule.name)}/{key}": value
        for layer in timeline
        for key, value in _layer_over_time(layer).items()
    }


def keys_over_time(ontology: Ontology) -> tuple[str, ...]:
    """What follows the prefix in :func:`scalars_over_time`."""
    bias = [f"bias/{c.name}/{part}" for c in ontology.global_ for part in ("index", "since_start", "since_last")]
    return (*_CHANGES, *bias)


_CHANGES = ("births", "deaths", "switches", "churn")


def _layer_over_time(layer: LayerTimeline) -> dict[str, float]:
    index = layer.measures["encoding_index"]
    bias = np.stack([index[-1], index[-1] - index[0], index[-1] - index[max(0, len(index) - 2)]], axis=1)
    values = (*(getattr(layer, change)[-1] for change in _CHANGES), *bias.flatten())
    return dict(zip(keys_over_time(layer.ontology), map(float, values), strict=True))


def _layer_scalars(layer: LayerDissection) -> dict[str, float]:
    ontology, found = layer.ontology, layer.interpretable
    kind = np.array(ontology.concept_kind)
    values = (
        found.sum(),
        found.sum() / max(layer.live, 1),
        layer.dead.sum(),
        layer.iou[found].max(axis=1).mean() if found.any() else 0.0,
        *layer.units_per_region,
        *(layer.paired_concepts[:, kind == k].any(axis=1).sum() for k in range(len(ontology.kinds))),
        *layer.paired_groups.sum(axis=0),
        *_mean_probability(layer),
        *(() if layer.rule.level is None else (survive.any(1).sum() for survive in _questions(layer))),
    )
    return dict(zip(keys(ontology, layer.rule, learnt=layer.asked_fresh), map(float, values), strict=True))


def _mean_probability(layer: LayerDissection) -> np.ndarray:
    """``[G]``; what is silent on all faces of a global concept prefers no group, and would draw all of them to 0."""
    probability, offsets = layer.group_probability[~layer.dead], layer.ontology.group_offsets
    of_concepts = np.split(probability, offsets[1:-1], axis=1)
    return np.concatenate([p.sum(axis=0) / max(1, p.any(axis=1).sum()) for p in of_concepts])


def _questions(layer: LayerDissection) -> tuple[Tensor, ...]:
    found = layer.defence
    learnt = (found.learnt == 1,) if layer.asked_fresh else ()
    return found.associated == 1, found.placed == 1, found.confounding_group >= 0, *learnt
