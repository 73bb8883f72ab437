"""Dissections after the fact: of the checkpoints that a run has left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.pipeline import dissect


def dissect_checkpoints(
    paths: Iterable[str | Path],
    load: Callable[[Path], nn.Module],
    dictionary: FaceDictionary,
    **settings: Any,
) -> Iterator[Dissection]:
    """Dissects the models of Lightning checkpoints, in the order in which they were trained, one at a time.

    Each dissection's ``info`` says the checkpoint's ``epoch`` and ``step``; of several of one step that of the first
    epoch counts: the others hold the same weights.
    A checkpoint of step 0 is the model at start. :class:`~lightning_hnd.Timeline` puts them together.

    Args:
        paths: The files.
        load: Makes the model from one of them: ``lambda path: FaceNet.load_from_checkpoint(path, map_location="cpu")``.
        dictionary: The faces.
        settings: Of :func:`~lightning_hnd.dissect`.

    Raises:
        ValueError: If there is no checkpoint, or one is not of Lightning, is damaged, or holds more than tensors and
            plain data.
        FileNotFoundError: If one does not exist.
    """
    for (epoch, step), path in moments(paths).items():
        dissection = dissect(load(path), dictionary, **settings)
        info = {**dissection.info, "epoch": epoch, "step": step, "at_start": step == 0}
        yield dataclasses.replace(dissection, info=info)


def moments(paths: Iterable[str | Path]) -> dict[tuple[int, int], Path]:
    """Finds the epoch and step of checkpoints, in their order, reading nothing but tensors and plain data.

    Args:
        paths: The files.

    Raises:
        ValueError: As :func:`dissect_checkpoints`.
        FileNotFoundError: If one does not exist.
    """
    found = sorted((*_moment(path), path) for path in map(Path, paths))
    if not found:
        raise ValueError("there is no checkpoint to dissect")
    of_step: dict[int, tuple[int, Path]] = {}
    for step, epoch, path in found:
        of_step.setdefault(step, (epoch, path))
    return {(epoch, step): path for step, (epoch, path) in of_step.items()}


def _moment(path: Path) -> tuple[int, int]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        return int(data["global_step"]), int(data["epoch"])
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file shows itself in many ways
        raise ValueError(
            f"{path} is no Lightning checkpoint of tensors and plain data, or is damaged: {error}. If it holds objects "
            "that you trust, load its model yourself, and give the dissections to Timeline.of"
        ) from error
