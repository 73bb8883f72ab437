"""Face Dictionaries: where faces, masks and groups come from."""

from lightning_hnd.dictionary.batch import DictionaryBatch
from lightning_hnd.dictionary.face_dictionary import FaceDictionary
from lightning_hnd.dictionary.masks import PackedMasks

__all__ = ["DictionaryBatch", "FaceDictionary", "PackedMasks"]
