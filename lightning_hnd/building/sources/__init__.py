"""The data sets that a dictionary can be built from, each read as its users have it on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lightning_hnd.building.faces import Face
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.celeba import read_celeba
from lightning_hnd.building.sources.celebamask_hq import read_celebamask_hq
from lightning_hnd.building.sources.facesynthetics import read_facesynthetics
from lightning_hnd.building.sources.fairface import read_fairface
from lightning_hnd.building.sources.options import SourceOptions
from lightning_hnd.building.sources.pictures import read_pictures
from lightning_hnd.building.sources.utkface import read_utkface

READERS: Mapping[str, Callable[[SourceOptions, Findings], list[Face]]] = {
    "celeba": read_celeba,
    "celebamask_hq": read_celebamask_hq,
    "facesynthetics": read_facesynthetics,
    "fairface": read_fairface,
    "utkface": read_utkface,
    "pictures": read_pictures,
}
"""The reader of each kind of source."""

__all__ = ["READERS", "SourceOptions"]
