"""lightning-hnd: Hierarchical Network Dissection of face models while they train."""

from lightning_hnd.analyses.ablation import Ablation, ablate
from lightning_hnd.analyses.intervals import EffectInterval, effect_intervals
from lightning_hnd.analyses.rotation import RotationTest, rotation_test
from lightning_hnd.concepts import PAPER, Concept, GlobalConcept, Ontology
from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.history.alerts import Alarm, BiasAlert
from lightning_hnd.history.timeline import Timeline
from lightning_hnd.layer_dissection import LayerDissection
from lightning_hnd.measuring.metric import DissectionMetric
from lightning_hnd.pipeline import dissect
from lightning_hnd.rendering import RenderedFaces
from lightning_hnd.rules import ABOVE_CHANCE, README, RELEASED, Rule
from lightning_hnd.training.ablation_callback import AblationCallback
from lightning_hnd.training.callback import HNDCallback
from lightning_hnd.unit import ConceptPairing, ConfoundedConcept, GroupPairing, Unit

__all__ = [
    "ABOVE_CHANCE",
    "PAPER",
    "README",
    "RELEASED",
    "Ablation",
    "AblationCallback",
    "Alarm",
    "BiasAlert",
    "Concept",
    "ConceptPairing",
    "ConfoundedConcept",
    "DictionaryBatch",
    "Dissection",
    "DissectionMetric",
    "EffectInterval",
    "FaceDictionary",
    "GlobalConcept",
    "GroupPairing",
    "HNDCallback",
    "LayerDissection",
    "Ontology",
    "RenderedFaces",
    "RotationTest",
    "Rule",
    "Timeline",
    "Unit",
    "ablate",
    "dissect",
    "effect_intervals",
    "rotation_test",
]
