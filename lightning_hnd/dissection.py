"""Dissection: what the units of a model were found to be. The result: typed, immutable, plain data on disk."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from lightning_hnd.concepts import Ontology
from lightning_hnd.instead import instead
from lightning_hnd.layer_dissection import Array, LayerDissection
from lightning_hnd.rules import Rule
from lightning_hnd.whole_files import whole_file

FORMAT = 1
"""Version of the file format."""


@dataclass(frozen=True, eq=False)
class Dissection:
    """What the units of a model's layers were found to be, on one dictionary at one moment.

    ``dissection["conv.7"].units[12].region`` reads it, ``print(dissection)`` shows it.

    Attributes:
        layers: Each layer by name, in the order of the model.
        ontology: The concepts.
        rule: What decides the pairings.
        info: Where it comes from: plain values such as ``epoch``, ``step``, ``dictionary``, ``fingerprint``.
    """

    layers: Mapping[str, LayerDissection]
    ontology: Ontology
    rule: Rule
    info: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("layers", "info"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @classmethod
    def from_statistics(
        cls,
        statistics: Mapping[str, Mapping[str, Tensor]],
        ontology: Ontology,
        rule: Rule,
        info: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> Dissection:
        """Puts a rule to what was measured.

        Args:
            statistics: For each layer what :meth:`DissectionMetric.compute` returned.
            ontology: The concepts.
            rule: What decides the pairings; its quantile must be the one measured with.
            info: Where it comes from.
        """
        arrays = {
            name: {key: value.detach().cpu().numpy() for key, value in layer.items()}
            for name, layer in statistics.items()
        }
        return cls._build(arrays, ontology, rule, info or {})

    @classmethod
    def _build(
        cls,
        arrays: Mapping[str, Mapping[str, Array]],
        ontology: Ontology,
        rule: Rule,
        info: Mapping[str, str | int | float | bool | None],
    ) -> Dissection:
        layers = {name: LayerDissection.of(name, ontology, rule, layer) for name, layer in arrays.items()}
        return cls(layers, ontology, rule, info)

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = {name: dict(layer.statistics) for name, layer in self.layers.items()}
        return Dissection._build, (arrays, self.ontology, self.rule, dict(self.info))

    def with_rule(self, rule: Rule) -> Dissection:
        """The same measurement under another rule, without the model.

        Raises:
            TypeError: If it is no rule.
            ValueError: If the rule has another quantile: thresholds would have to be measured again. If it has a
                level and this was measured without one.
        """
        if not isinstance(rule, Rule):
            raise TypeError(f"rule is a Rule, such as README or ABOVE_CHANCE, got {rule!r}")
        if rule.quantile != self.rule.quantile:
            raise ValueError(
                f"this was measured at quantile {self.rule.quantile:g}; rule {rule.name!r} has {rule.quantile:g}: "
                "dissect again with it"
            )
        arrays = {name: layer.statistics for name, layer in self.layers.items()}
        dissection = self._build(arrays, self.ontology, rule, self.info)
        if rule.level is not None:
            for layer in dissection:
                _ = layer.defence  # raises now rather than later
        return dissection

    def __getitem__(self, layer: str) -> LayerDissection:
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r} was dissected; {instead(layer, self.layers)}")
        return self.layers[layer]

    def __iter__(self) -> Iterator[LayerDissection]:
        return iter(self.layers.values())

    def __len__(self) -> int:
        return len(self.layers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dissection):
            return NotImplemented
        mine = (self.ontology, self.rule, dict(self.info), dict(self.layers))
        return mine == (other.ontology, other.rule, dict(other.info), dict(other.layers))

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __str__(self) -> str:
        return "\n".join(str(layer) for layer in self)

    # ------------------------------------------------------------------------------------------------------- on disk

    def save(self, path: str | Path) -> None:
        """Writes it to a file: a zip of plain arrays and a JSON header, no pickle.

        The file appears whole or not at all: it is written aside and then renamed.

        Args:
            path: The file, by custom ``*.hnd``. Its folder must exist.
        """
        header = {
            "format": FORMAT,
            "ontology": self.ontology.to_dict(),
            "rule": self.rule.to_dict(),
            "info": dict(self.info),
            "layers": list(self.layers),
        }
        arrays = {f"{i}.{key}": value for i, layer in enumerate(self) for key, value in layer.statistics.items()}
        with whole_file(Path(path)) as file:
            text = np.frombuffer(json.dumps(header).encode(), np.uint8)
            np.savez_compressed(file, allow_pickle=False, header=text, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Dissection:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no dissection, is damaged, or is of a newer format.
        """
        try:
            with Path(path).open("rb") as file:
                if not zipfile.is_zipfile(file):
                    raise ValueError("File is not a zip file")
            with np.load(path, allow_pickle=False) as data:
                header = json.loads(data["header"].tobytes())
                stored = {key: data[key] for key in data.files if key != "header"}
            if header["format"] <= FORMAT:
                return cls._from_stored(header, stored)
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged zip, or a foreign one, shows itself in many ways
            raise ValueError(f"{path} is not a dissection file, or is damaged: {error}") from error
        raise ValueError(
            f"{path} has format {header['format']}, this version reads up to {FORMAT}; update lightning-hnd"
        )

    @classmethod
    def _from_stored(cls, header: dict[str, Any], stored: dict[str, Array]) -> Dissection:
        arrays = {
            name: {key.partition(".")[2]: value for key, value in stored.items() if key.startswith(f"{i}.")}
            for i, name in enumerate(header["layers"])
        }
        return cls._build(
            arrays, Ontology.from_dict(header["ontology"]), Rule.from_dict(header["rule"]), header["info"]
        )
