"""Makes a Face Dictionary of the pictures, labels and landmarks that a user has."""

from lightning_hnd.building.build import Built, build_dictionary
from lightning_hnd.building.sources import SourceOptions

__all__ = ["Built", "SourceOptions", "build_dictionary"]
