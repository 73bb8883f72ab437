"""A dissection in the loggers of a run: pictures and tables. Scalars go through Lightning's own logging.

One function for each kind of logger that takes more than scalars; the others get none of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.history.timeline import Timeline
from lightning_hnd.layer_dissection import LayerDissection
from lightning_hnd.report.figures import Picture, concept_histogram, overlays
from lightning_hnd.report.keys import prefix
from lightning_hnd.report.tables import layer_markdown
from lightning_hnd.report.timelines import timeline_picture
from lightning_hnd.training.faults import tolerated

_FILE = "file://"
_REMOTE = re.compile(rf"(?!{_FILE})[a-z][a-z0-9+.-]+://")

ROWS = 20
"""Units in a table at most."""


@dataclass(frozen=True)
class Exhibit:
    """What is shown of a layer: the strongest units as a table, and pictures by name."""

    key: str
    layer: LayerDissection
    pictures: dict[str, Picture]


def log_dir(trainer: pl.Trainer) -> Path:
    """Where what belongs to this run goes, and to no other: the folder in which Lightning makes ``checkpoints``.

    Where that is on another machine (``s3://...``) it is ``default_root_dir``. For the process of rank zero.

    Raises:
        ValueError: If that is on another machine, too.
    """
    root = str(trainer.default_root_dir)
    folder, within = root, list[str]()
    if trainer.loggers:
        logger = trainer.loggers[0]
        if isinstance(logger, TensorBoardLogger | CSVLogger):
            folder = str(logger.log_dir)
        else:
            folder = str(logger.save_dir or root)
            within = [str(part) for part in (logger.name, logger.version) if part is not None]
    folder = (root if _REMOTE.match(folder) else folder).removeprefix(_FILE)
    if _REMOTE.match(folder):
        raise ValueError(
            f"HNDCallback writes files, and {folder!r} is no folder of this machine: give "
            "Trainer(default_root_dir=...) one that is; logs may go elsewhere"
        )
    return Path(folder, *within)


def logged_step(trainer: pl.Trainer) -> int:
    """The step under which Lightning logs the scalars of this moment; ``global_step`` counts optimizers apart."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def write(trainer: pl.Trainer, dissection: Dissection, dictionary: FaceDictionary, timeline: Timeline) -> None:
    """Writes what is not a scalar to each logger that takes it: under ``hnd/<layer>/<rule>/``.

    - ``assignments``: a table of the strongest units
    - ``concepts``: the histogram of concepts
    - ``overlays``: the faces that the strongest units fire on
    - ``timeline``: what formed when, up to now; under the rule of the timeline alone

    A logger that fails at it, for instance since its API is another one by now, is warned of and left.

    Args:
        trainer: The Trainer.
        dissection: Any.
        dictionary: The one it was made with.
        timeline: With the dissection as the last one.
    """
    step = logged_step(trainer)
    takers = [
        (logger, take) for logger in trainer.loggers for kind, take in _TAKERS.items() if isinstance(logger, kind)
    ]
    if not takers:
        return
    exhibits = [
        Exhibit(
            prefix(layer.name, dissection.rule.name),
            layer,
            {
                "concepts": concept_histogram(layer),
                "overlays": overlays(layer, dictionary),
                **({"timeline": timeline_picture(timeline[layer.name])} if _read_alike(timeline, dissection) else {}),
            },
        )
        for layer in dissection
    ]
    for logger, take in takers:
        with tolerated(
            f"write tables and pictures of step {step} to {type(logger).__name__}",
            "Its scalars, the other loggers and the files are not concerned",
        ):
            for exhibit in exhibits:
                take(logger, exhibit, step)


def _read_alike(timeline: Timeline, dissection: Dissection) -> bool:
    return all(layer.rule == dissection.rule for layer in timeline)


def _tensorboard(logger: TensorBoardLogger, exhibit: Exhibit, step: int) -> None:
    writer = logger.experiment
    writer.add_text(f"{exhibit.key}/assignments", layer_markdown(exhibit.layer, ROWS), step)
    for name, picture in exhibit.pictures.items():
        writer.add_image(f"{exhibit.key}/{name}", picture, step, dataformats="HWC")


def _wandb(logger: WandbLogger, exhibit: Exhibit, step: int) -> None:
    rows = [list(row) for row in exhibit.layer.assignments(ROWS)]
    logger.log_table(f"{exhibit.key}/assignments", columns=list(exhibit.layer.columns), data=rows, step=step)
    for name, picture in exhibit.pictures.items():
        logger.log_image(f"{exhibit.key}/{name}", [picture], step=step)


def _mlflow(logger: MLFlowLogger, exhibit: Exhibit, step: int) -> None:
    client, run = logger.experiment, logger.run_id
    key = re.sub(r"[^a-zA-Z0-9_/. -]+", "", exhibit.key)  # as MLFlowLogger does with the scalars' keys
    client.log_text(run, layer_markdown(exhibit.layer, ROWS), f"{key}/assignments/step={step:08d}.md")
    for name, picture in exhibit.pictures.items():
        client.log_image(run, picture, key=f"{key}/{name}", step=step)


_TAKERS: dict[type[Logger], Callable[..., None]] = {
    TensorBoardLogger: _tensorboard,
    WandbLogger: _wandb,
    MLFlowLogger: _mlflow,
}
