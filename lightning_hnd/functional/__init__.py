"""The method as pure functions on tensors: no state, no files, no models.

Notation: ``N`` images, ``U`` units (channels of a layer) with maps of ``h x w`` cells, ``M`` masks of
``H x W`` pixels, ``C`` local concepts, ``G`` groups of one global concept.
"""

from lightning_hnd.functional.affinity import concept_affinity, concept_response, group_affinity
from lightning_hnd.functional.interpolation import firing_area, upsample
from lightning_hnd.functional.mixes import mix_weights
from lightning_hnd.functional.overlap import Overlap, concept_iou, count_overlap
from lightning_hnd.functional.pairing import pair_concepts, pair_groups
from lightning_hnd.functional.ranks import mid_ranks
from lightning_hnd.functional.threshold import activation_threshold, order_statistic, quantile_from_top

__all__ = [
    "Overlap",
    "activation_threshold",
    "concept_affinity",
    "concept_iou",
    "concept_response",
    "count_overlap",
    "firing_area",
    "group_affinity",
    "mid_ranks",
    "mix_weights",
    "order_statistic",
    "pair_concepts",
    "pair_groups",
    "quantile_from_top",
    "upsample",
]
