"""Which of Lightning's strategies a model can be dissected under, and the processes that it has there."""

from __future__ import annotations

import lightning.pytorch as pl
import torch.distributed.fsdp
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.strategies.xla import XLAStrategy

from lightning_hnd.showing.processes import Processes


def processes_of(trainer: pl.Trainer, *, tolerant: bool = False) -> Processes:
    """The processes of a Trainer whose environment is set up.

    Each has all units of a layer, and shows the model a share of the images: the module must be whole on each device
    or, as with FSDP2, become whole for the forward pass.

    Args:
        trainer: The Trainer.
        tolerant: Whether training is to go on when a dissection fails.

    Raises:
        ValueError: If its strategy is another one, or cannot go on.
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if whole and not isinstance(strategy, DeepSpeedStrategy | XLAStrategy):  # DDP by name alone
        return Processes(trainer.global_rank, trainer.world_size)
    remedy = "train on one device, with strategy='ddp', or with FSDP2: ModelParallelStrategy(tensor_parallel_size=1)"
    if isinstance(strategy, ModelParallelStrategy):
        tensor_parallel = strategy.device_mesh["tensor_parallel"].size()
        if tensor_parallel > 1:
            raise ValueError(
                f"HNDCallback does not support tensor parallelism (tensor_parallel_size={tensor_parallel}): a process "
                f"has only some units of a layer; {remedy}"
            )
        if not hasattr(torch.distributed.fsdp, "fully_shard"):
            raise ValueError(f"HNDCallback supports FSDP2 with torch >= 2.6, and this is torch {torch.__version__}")
        if tolerant:
            raise ValueError(
                "HNDCallback(on_error='warn') does not work where the module is split over processes: if one fails in "
                "a forward pass, the others wait for it there. Give on_error='raise'"
            )
        return Processes(trainer.global_rank, trainer.world_size, split=True)
    which = f"{type(strategy).__name__}" + (" (FSDP1)" if isinstance(strategy, FSDPStrategy) else "")
    raise ValueError(f"HNDCallback does not support {which}; {remedy}")
