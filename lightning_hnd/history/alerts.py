"""Alerts: told when a layer starts to encode a group, or to take one label for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lightning_hnd.concepts import Ontology
from lightning_hnd.history.timeline import Array, LayerTimeline, Moment, Timeline
from lightning_hnd.layer_dissection import LayerDissection


@dataclass(frozen=True)
class Alarm:
    """What an alert has found.

    Attributes:
        alert: The alert.
        layer: The layer.
        since: The first of the dissections in a row that led to it.
        moment: The dissection that raised it.
        index: The measure then.
        p: Its p-value then.
        what: In words, what was found: ``Eyeglasses makes faces look like gender/Male``.
    """

    alert: BiasAlert
    layer: str
    since: Moment
    moment: Moment
    index: float
    p: float
    what: str

    def __str__(self) -> str:
        return (
            f"bias: in layer {self.layer!r} {self.what} (index {self.index:.2f}, p = {self.p:.2g}), "
            f"{'from the start' if self.since.at_start else f'since epoch {self.since.epoch}'}"
        )


@dataclass(frozen=True)
class BiasAlert:
    """Raises an alarm when a layer encodes a group, or leans on a cue for it, more than chance explains.

    Without a cue the measure is how much more strongly the layer encodes the concept than at start
    (``encoding_index``); with one, how far the cue makes faces look like the concept to the layer
    (``shortcut_index``), or how much that has risen since the start, if that is less: random filters already answer
    alike to what looks alike. Both are 0 at chance and 1 at most: ``docs/bias.md``. The alarm is raised when the
    measure was at least ``index``, at the significance ``level``, in every dissection of ``for_epochs`` epochs in a
    row. It is taken back when that is no longer so. What a model brought along when its training started raises no
    alarm.

    Args:
        concept: A global concept (``gender``); with a cue also one of its groups (``gender/Male``), or a local concept
            (``Smiling``).
        cue: Any of these. None: whether the concept is encoded at all.
        index: What the measure must reach, more than 0.
        for_epochs: How many epochs in a row, of those that are dissected. 1: a single dissection is enough.
        then: ``warn``; ``stop``: warn, and end the training as ``EarlyStopping`` does; or a function to call with the
            :class:`Alarm`, in the first process only.
        level: The significance, over all groups that the names stand for.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from lightning_hnd import BiasAlert
        >>> BiasAlert("gender", cue="Eyeglasses", then="stop").name
        'gender-Eyeglasses'
    """

    concept: str
    cue: str | None = None
    index: float = 0.2
    for_epochs: int = 2
    then: Literal["warn", "stop"] | Callable[[Alarm], object] = "warn"
    level: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.index < 1.0:  # at start every measure is 0, which is to raise no alarm
            raise ValueError(f"index must lie between 0 and 1 (exclusive), got {self.index}")
        if self.for_epochs < 1:
            raise ValueError(f"for_epochs must be at least 1, got {self.for_epochs}")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level must lie between 0 and 1 (exclusive), got {self.level}")
        if self.then not in ("warn", "stop") and not callable(self.then):
            raise ValueError(f"then must be 'warn', 'stop' or a function, got {self.then!r}")

    @property
    def name(self) -> str:
        """Of its scalars."""
        return self.concept if self.cue is None else f"{self.concept}-{self.cue}"

    def check(self, ontology: Ontology) -> None:
        """Refuses names that the ontology lacks.

        Raises:
            ValueError: If there is one.
        """
        if self.cue is None:
            known = [concept.name for concept in ontology.global_]
            if self.concept not in known:
                raise ValueError(
                    f"BiasAlert({self.concept!r}): without a cue the concept must be a global one; "
                    f"known are {', '.join(known)}"
                )
            return
        if set(ontology.labels_of(self.concept)) & set(ontology.labels_of(self.cue)):
            raise ValueError(f"BiasAlert: {self.cue!r} cannot be a cue of {self.concept!r}, of which it is a part")

    def refuse_deaf(self, layer: LayerDissection) -> None:
        """Refuses a dictionary with which it could never be raised.

        Raises:
            ValueError: If it is one.
        """
        if self.cue is None:
            local = len(layer.ontology.local)
            told = layer.statistics["encoding_lean"][
                [label - local for label in layer.ontology.labels_of(self.concept)]
            ]
        else:
            rows, columns = layer.ontology.labels_of(self.concept), layer.ontology.labels_of(self.cue)
            told = layer.statistics["shortcut_index"][rows][:, columns]
        if np.isnan(told).all():
            raise ValueError(
                f"BiasAlert {self.name!r} could never be raised with this dictionary: it takes five faces with each "
                "label and five without, and labels that are not told by the other ones of the same faces"
            )

    def measure(self, layer: LayerTimeline) -> tuple[Array, Array, list[str]]:
        """The measure and its p-value, ``[T, P]`` each, of the ``P`` pairs that the names stand for; these in words."""
        return self._encoding(layer) if self.cue is None else self._shortcuts(layer, self.cue)

    def _encoding(self, layer: LayerTimeline) -> tuple[Array, Array, list[str]]:
        k = [concept.name for concept in layer.ontology.global_].index(self.concept)
        index, low, high = (layer.measures[f"encoding_{name}"][:, [k]] for name in ("index", "low", "high"))
        since_start = index - index[0]
        # the same images at both moments: the errors do not add up to more than this
        error = np.hypot(high - low, high[0] - low[0]) / (2 * 1.96)
        return (
            since_start,
            _p(since_start / np.maximum(error, 1e-12)),
            [f"{self.concept} is encoded more than at start"],
        )

    def _shortcuts(self, layer: LayerTimeline, cue: str) -> tuple[Array, Array, list[str]]:
        rows, columns = layer.ontology.labels_of(self.concept), layer.ontology.labels_of(cue)
        index, z = (layer.measures[f"shortcut_{name}"][:, rows][:, :, columns] for name in ("index", "z"))
        index, z = index.reshape(len(index), -1), z.reshape(len(z), -1)
        tests, names = _independent(rows) * _independent(columns), layer.ontology.labels
        pairs = [f"{names[c]} makes faces look like {names[t]}" for t in rows for c in columns]
        return np.minimum(index, index - index[0]), np.minimum(1.0, tests * _p(z)), pairs

    def judge(self, layer: LayerTimeline) -> tuple[Alarm | None, float]:
        """Whether the alarm is raised at the last moment, and the largest measure then, NaN if nothing can be told."""
        index, p, pairs = self.measure(layer)
        beyond = (index >= self.index) & (p <= self.level)
        held = np.logical_and.accumulate(beyond[::-1]).sum(0)  # moments in a row, of each pair for itself
        best = int(np.lexsort((np.nan_to_num(index[-1], nan=-np.inf), held))[-1])
        row = layer.moments[len(layer.moments) - int(held[best]) :]
        largest = float(np.fmax.reduce(index[-1]))
        # several dissections of one epoch count as one; the model at start stands for itself
        if len({(moment.at_start, moment.epoch) for moment in row}) < self.for_epochs:
            return None, largest
        found = Alarm(self, layer.name, row[0], row[-1], float(index[-1, best]), float(p[-1, best]), pairs[best])
        return found, largest


def check(alerts: Sequence[BiasAlert], ontology: Ontology) -> None:
    """Refuses alerts on names that the ontology lacks, and two of one name.

    Raises:
        ValueError: If there are such.
    """
    names = [alert.name for alert in alerts]
    if len(set(names)) < len(names):
        raise ValueError(f"two alerts have the name {max(names, key=names.count)!r}: keep one of them")
    for alert in alerts:
        alert.check(ontology)


def alert_keys(alerts: Sequence[BiasAlert]) -> tuple[str, ...]:
    """Of the scalars of a layer: the measure of each alert, and whether it is raised."""
    return tuple(key for alert in alerts for key in _keys(alert))


def judge(alerts: Sequence[BiasAlert], timeline: Timeline) -> tuple[dict[str, dict[str, float]], list[Alarm]]:
    """Looks at the last moment of a timeline, which alone decides: a resumed run finds what an uninterrupted one does.

    Args:
        alerts: Any number.
        timeline: Of the run.

    Returns:
        The scalars of each layer, and the alarms that are raised then and were not the moment before.
    """
    values: dict[str, dict[str, float]] = {}
    alarms = []
    for layer in timeline:
        values[layer.name] = {}
        before = layer.at(list(range(len(layer.moments) - 1)))
        for alert in alerts:
            alarm, index = alert.judge(layer)
            if alarm is not None and (not before.moments or alert.judge(before)[0] is None):
                alarms.append(alarm)
            values[layer.name] |= dict(zip(_keys(alert), (index, float(alarm is not None)), strict=True))
    return values, alarms


def _keys(alert: BiasAlert) -> tuple[str, str]:
    return f"alert/{alert.name}/measure", f"alert/{alert.name}/raised"


def _independent(labels: Sequence[int]) -> int:
    """How many tests some labels are: of two groups each is the other's opposite."""
    return 1 if len(labels) == 2 else len(labels)


def _p(z: Array) -> Array:
    """Two-sided; 1 where it cannot be told."""
    two_sided: Array = (2 * torch.special.ndtr(-torch.tensor(z).abs())).nan_to_num(nan=1.0).numpy()
    return two_sided
