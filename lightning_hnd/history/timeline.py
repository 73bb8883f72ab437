"""Timeline: the dissections of a run as one object: what became of each unit, and when what appeared and stayed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_hnd.concepts import Ontology
from lightning_hnd.dissection import Dissection
from lightning_hnd.functional.defence import LEVEL
from lightning_hnd.instead import instead
from lightning_hnd.layer_dissection import LayerDissection
from lightning_hnd.rules import Rule

Array = npt.NDArray[Any]

_LASTING = 2  # moments at least: what is seen once may be gone the next time
_MEASURES = (
    *(f"encoding_{name}" for name in ("index", "low", "high", "p")),
    *(f"shortcut_{name}" for name in ("index", "error", "z")),
)


class Moment(NamedTuple):
    """When a model was dissected.

    Attributes:
        epoch: The epoch that was just trained; that in which training started for the model at start.
        step: Optimizer steps before.
        at_start: Whether the run had trained nothing yet.
    """

    epoch: int
    step: int
    at_start: bool

    def __str__(self) -> str:
        return "start" if self.at_start else str(self.epoch)


class Emergence(NamedTuple):
    """When something appeared and stayed.

    Attributes:
        kind: ``concept``: units are paired with it; ``group``: likewise; ``encoding``: the layer encodes the global
            concept more strongly than noise would show (``docs/bias.md``).
        name: ``Eyeglasses``, ``gender/Male``, ``gender``.
        moment: The first of all those, up to the last, in which it was there; None if it did not stay.
    """

    kind: str
    name: str
    moment: Moment | None


@dataclass(frozen=True, eq=False)
class LayerTimeline:
    """One layer over ``T`` moments.

    Attributes:
        name: The layer.
        ontology: The concepts, in the order of the ``C`` and ``G`` axes.
        rule: What decided the pairings.
        moments: When, ``T`` of them.
        paired: ``[T, U, C]`` bool, which units are paired with which local concepts.
        groups: ``[T, U, G]`` bool, likewise with groups.
        concept: ``[T, U]`` int64, the concept that a unit is paired with most strongly, -1 for none.
        dead: ``[T, U]`` bool.
        confounded: ``[T, U]`` bool, which would be paired with a further concept if no group stood behind it.
        learnt: ``[T]`` bool, whether networks with fresh weights were asked, for an interpretable unit to have learnt
            its concept.
        measures: ``encoding_index``, ``encoding_low``, ``encoding_high``, ``encoding_p``, each ``[T, K]``, and
            ``shortcut_index``, ``shortcut_error``, ``shortcut_z``, each ``[T, L, L]``, as
            :func:`~lightning_hnd.measuring.bias.bias_statistics` describes them; NaN for moments of older files.
    """

    name: str
    ontology: Ontology
    rule: Rule
    moments: tuple[Moment, ...]
    paired: Array
    groups: Array
    concept: Array
    dead: Array
    confounded: Array
    learnt: Array
    measures: Mapping[str, Array]

    @classmethod
    def of(cls, layer: LayerDissection, moment: Moment) -> LayerTimeline:
        """That of one moment."""
        none = np.full((len(layer), 1), -np.inf)  # the first of the largest where no concept is paired
        strength = np.where(layer.paired_concepts, layer.strength, -np.inf)
        concept = np.concatenate([none, strength], axis=1).argmax(1) - 1
        confounded = (layer.confounding_group >= 0).any(axis=1)
        learnt = np.asarray(layer.rule.level is not None and layer.asked_fresh)
        arrays = (layer.paired_concepts, layer.paired_groups, concept, layer.dead, confounded, learnt)
        own = {key: array[None] for key, array in zip(_ARRAYS, arrays, strict=True)}
        shapes = _shapes(layer.ontology)
        measures = {name: layer.statistics.get(name, np.full(shapes[name], np.nan))[None] for name in _MEASURES}
        return cls(layer.name, layer.ontology, layer.rule, (moment,), **own, measures=measures)

    def then(self, later: LayerTimeline) -> LayerTimeline:
        """This one followed by a later one of the same layer."""
        own: dict[str, Any] = {n: np.concatenate([getattr(self, n), getattr(later, n)]) for n in _ARRAYS}
        measures = {name: np.concatenate([self.measures[name], later.measures[name]]) for name in _MEASURES}
        return replace(self, moments=self.moments + later.moments, **own, measures=measures)

    def at(self, order: list[int]) -> LayerTimeline:
        """The same at some of the moments."""
        own: dict[str, Any] = {name: getattr(self, name)[order] for name in _ARRAYS}
        measures = {name: value[order] for name, value in self.measures.items()}
        return replace(self, moments=tuple(self.moments[t] for t in order), **own, measures=measures)

    # ------------------------------------------------------------------------------------------------------- changes

    @property
    def births(self) -> Array:
        """``[T]`` int64: units paired with a concept that were paired with none the moment before; 0 at the first."""
        return self._changes(lambda before, now: (before < 0) & (now >= 0))

    @property
    def deaths(self) -> Array:
        """``[T]`` int64: units paired with none that were paired with one the moment before."""
        return self._changes(lambda before, now: (before >= 0) & (now < 0))

    @property
    def switches(self) -> Array:
        """``[T]`` int64: units whose strongest concept is another than the moment before."""
        return self._changes(lambda before, now: (before >= 0) & (now >= 0) & (before != now))

    @property
    def churn(self) -> Array:
        """``[T]`` in 0..1: the share of changed units among those paired now or the moment before; 0 if none is."""
        either = self._changes(lambda before, now: (before >= 0) | (now >= 0))
        return (self.births + self.deaths + self.switches) / np.maximum(either, 1)

    def _changes(self, changed: Any) -> Array:
        return np.concatenate([[0], changed(self.concept[:-1], self.concept[1:]).sum(1)])

    # ----------------------------------------------------------------------------------------------------- emergence

    @property
    def units_per_concept(self) -> Array:
        """``[T, C]`` int64."""
        return np.asarray(self.paired.sum(1))

    @property
    def units_per_group(self) -> Array:
        """``[T, G]`` int64."""
        return np.asarray(self.groups.sum(1))

    @property
    def emergence(self) -> tuple[Emergence, ...]:
        """When each concept, group and encoding appeared to stay: until the last moment, and for two at least.

        Under a rule with a level a pairing is a finding beyond chance, with its false discovery rate; under the
        others it is the crossing of a bar.
        """
        names, concepts = self.ontology.labels, len(self.ontology.local)
        encodings = [concept.name for concept in self.ontology.global_]
        beyond = self.measures["encoding_p"] <= (self.rule.level or LEVEL)
        return (
            *self._emerged("concept", names[:concepts], self.units_per_concept > 0),
            *self._emerged("group", names[concepts:], self.units_per_group > 0),
            *self._emerged("encoding", encodings, beyond),
        )

    def _emerged(self, kind: str, names: Iterable[str], there: Array) -> Iterator[Emergence]:
        lasted = np.logical_and.accumulate(there[::-1]).sum(0)  # moments without a gap, back from the last
        for name, count in zip(names, lasted.tolist(), strict=True):
            moment = self.moments[len(self.moments) - count] if count >= _LASTING else None
            yield Emergence(kind, name, moment)

    # ------------------------------------------------------------------------------------------------------ as a table

    def table(self) -> list[dict[str, str | int | float]]:
        """A row for each moment: plain values, as for a CSV file."""
        names, concepts = self.ontology.labels, len(self.ontology.local)
        counts: dict[str, Array] = {"interpretable": (self.concept >= 0).sum(1)}
        counts |= {name: getattr(self, name).sum(1) for name in ("confounded", "dead")}
        counts |= {name: getattr(self, name) for name in ("births", "deaths", "switches", "churn")}
        for some, units in ((names[:concepts], self.units_per_concept), (names[concepts:], self.units_per_group)):
            counts |= {f"units/{name}": column for name, column in zip(some, units.T, strict=True)}
        for k, concept in enumerate(self.ontology.global_):
            for part in ("index", "low", "high", "p"):
                counts[f"encoding/{concept.name}/{part}"] = self.measures[f"encoding_{part}"][:, k]
        return [
            self._when(moment) | {name: column[t].item() for name, column in counts.items()}
            for t, moment in enumerate(self.moments)
        ]

    def shortcut_table(self) -> list[dict[str, str | int | float]]:
        """A row for each moment, task and cue that the dictionary can tell: how far the cue looks like the task."""
        names, rows = self.ontology.labels, list[dict[str, str | int | float]]()
        index, error, z = (self.measures[f"shortcut_{name}"] for name in ("index", "error", "z"))
        for t, moment in enumerate(self.moments):
            for task, cue in np.argwhere(~np.isnan(z[t])).tolist():
                values = (index[t, task, cue], error[t, task, cue], z[t, task, cue])
                measured = dict(zip(("index", "error", "z"), map(float, values), strict=True))
                rows.append({**self._when(moment), "task": names[task], "cue": names[cue], **measured})
        return rows

    def _when(self, moment: Moment) -> dict[str, str | int | float]:
        return {"layer": self.name, "moment": str(moment), "epoch": moment.epoch, "step": moment.step}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerTimeline):
            return NotImplemented
        return (
            (self.name, self.ontology, self.rule, self.moments)
            == (other.name, other.ontology, other.rule, other.moments)
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _ARRAYS)
            and all(np.array_equal(self.measures[n], other.measures[n], equal_nan=True) for n in _MEASURES)
        )

    __hash__ = None  # type: ignore[assignment]  # compared by value


_ARRAYS = ("paired", "groups", "concept", "dead", "confounded", "learnt")


@dataclass(frozen=True, eq=False)
class Timeline:
    """The dissections of a run, by epoch and step.

    ``timeline["conv.7"].emergence`` says when which concepts appeared to stay, ``print(timeline)`` shows it.

    Attributes:
        layers: Each layer by name.

    Example:
        >>> import torch
        >>> from lightning_hnd import FaceDictionary, Timeline, dissect
        >>> faces = FaceDictionary.rendered(size=32, images=16)
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, stride=4))
        >>> timeline = Timeline.of(dissect(model, faces, "0") for _ in range(2))
        >>> timeline["0"].churn.tolist()
        [0.0, 0.0]
    """

    layers: Mapping[str, LayerTimeline]

    @classmethod
    def of(cls, dissections: Iterable[Dissection], rule: Rule | None = None) -> Timeline:
        """Puts dissections of one model in order. Little is kept of each, so they may come from a generator.

        Args:
            dissections: At least one; :func:`~lightning_hnd.report.history` reads those of a run. Those without an
                ``epoch`` in their ``info`` are taken for one epoch after the other.
            rule: What to read them under. None: the one that each was made with.

        Raises:
            ValueError: If there is none, or they differ in layers, units, concepts or rule.
        """
        timeline: Timeline | None = None
        for dissection in dissections:
            read = dissection if rule is None else dissection.with_rule(rule)
            timeline = cls._of(read, 0) if timeline is None else timeline.then(read)
        if timeline is None:
            raise ValueError("a timeline needs at least one dissection, and there is none")
        return timeline

    @classmethod
    def _of(cls, dissection: Dissection, epoch: int) -> Timeline:
        info = dissection.info
        moment = Moment(int(info.get("epoch", epoch) or 0), int(info.get("step") or 0), bool(info.get("at_start")))
        return cls(MappingProxyType({layer.name: LayerTimeline.of(layer, moment) for layer in dissection}))

    def then(self, dissection: Dissection) -> Timeline:
        """This one and a further dissection in its place; one of the same moment is replaced.

        Raises:
            ValueError: If it has other layers, units, concepts or another rule.
        """
        later = self._of(dissection, len(self.moments))
        if list(later.layers) != list(self.layers):
            raise ValueError(f"layers differ: {', '.join(self.layers)} before, {', '.join(later.layers)} now")
        joined = {}
        for name, layer in self.layers.items():
            new = later.layers[name]
            for what, before, now in (
                ("units", layer.paired.shape[1], new.paired.shape[1]),
                ("rule", layer.rule.name, new.rule.name),
                ("concepts", layer.ontology, new.ontology),
            ):
                if before != now:
                    raise ValueError(f"layer {name!r} had {what} {before} before and has {now} in a later dissection")
            kept = layer.at([t for t, moment in enumerate(layer.moments) if moment != new.moments[0]])
            if len(kept.moments) and kept.learnt[-1] != new.learnt[0]:
                warnings.warn(
                    f"layer {name!r} was compared with fresh weights in some dissections and not in others, where "
                    "units count as interpretable that have learnt nothing: such births and deaths are not the model's",
                    stacklevel=2,
                )
            both = kept.then(new)
            order = sorted(range(len(both.moments)), key=lambda t: (not both.moments[t].at_start, both.moments[t][:2]))
            joined[name] = both.at(order)
        return Timeline(MappingProxyType(joined))

    @property
    def moments(self) -> tuple[Moment, ...]:
        """When the model was dissected."""
        return next(iter(self.layers.values())).moments

    def __getitem__(self, layer: str) -> LayerTimeline:
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r} was dissected; {instead(layer, self.layers)}")
        return self.layers[layer]

    def __iter__(self) -> Iterator[LayerTimeline]:
        return iter(self.layers.values())

    def __len__(self) -> int:
        return len(self.layers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Timeline):
            return NotImplemented
        return dict(self.layers) == dict(other.layers)

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __reduce__(self) -> tuple[Any, ...]:
        return _timeline, (dict(self.layers),)

    def __str__(self) -> str:
        lines = []
        for layer in self:
            found = [e for e in layer.emergence if e.moment is not None]
            asked = "" if layer.rule.level is None or layer.learnt.all() else ", nobody asked what is learnt"
            count = f"{len(layer.moments)} moment{'' if len(layer.moments) == 1 else 's'}"
            lines.append(f"{layer.name} (rule {layer.rule.name}{asked}), {count}:")
            lines += [f"  {e.kind} {e.name}: since {_since(e.moment)}" for e in found if e.moment is not None]
            lines += [] if found else ["  nothing has appeared to stay"]
        return "\n".join(lines)


def _timeline(layers: dict[str, LayerTimeline]) -> Timeline:
    return Timeline(MappingProxyType(layers))


def _since(moment: Moment) -> str:
    return "start" if moment.at_start else f"epoch {moment.epoch}, step {moment.step}"


def _shapes(ontology: Ontology) -> dict[str, tuple[int, ...]]:
    kinds, labels = len(ontology.global_), len(ontology.labels)
    return {name: (kinds,) if name.startswith("encoding") else (labels, labels) for name in _MEASURES}
