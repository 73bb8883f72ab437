"""Face Dictionaries: where faces, masks and groups come from."""

from lightning_hnd.dictionary.face_dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.dictionary.faces import RenderedFaces

__all__ = ["DictionaryBatch", "FaceDictionary", "RenderedFaces"]
