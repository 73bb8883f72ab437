"""A dissection in the loggers of a run: pictures and tables. Scalars go through Lightning's own logging."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.report.figures import concept_histogram, overlays
from lightning_hnd.report.keys import prefix
from lightning_hnd.report.tables import markdown_table


def write(loggers: Sequence[Logger], dissection: Dissection, dictionary: FaceDictionary, step: int) -> None:
    """Writes what is not a scalar to each logger that takes it.

    Args:
        loggers: Those of the Trainer.
        dissection: Any.
        dictionary: The one it was made with.
        step: Where on the axis it belongs.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            _tensorboard(logger, dissection, dictionary, step)


def _tensorboard(logger: TensorBoardLogger, dissection: Dissection, dictionary: FaceDictionary, step: int) -> None:
    writer = logger.experiment
    writer.add_text(f"hnd/assignments/{dissection.rule.name}", markdown_table(dissection), step)
    for layer in dissection:
        key = prefix(layer.name, dissection.rule.name)
        writer.add_image(f"{key}/concepts", concept_histogram(layer), step, dataformats="HWC")
        writer.add_image(f"{key}/overlays", overlays(layer, dictionary), step, dataformats="HWC")
