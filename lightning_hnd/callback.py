"""HNDCallback: when a model is dissected during training, on what, and where the result goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_hnd.activations import Grid, resolve_layers
from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.model_input import DictionarySource, InputStatistics, find_images, mismatch
from lightning_hnd.monitors import refuse_shared, refuse_stale, refuse_unknown
from lightning_hnd.pipeline import BUDGET, ForwardFn, choose_layers, describe, measure
from lightning_hnd.report import scalars
from lightning_hnd.report.console import show
from lightning_hnd.report.keys import keys, prefix
from lightning_hnd.report.loggers import write
from lightning_hnd.rules import README, Rule
from lightning_hnd.undisturbed import device_of, kept_random_state, unlogged

DRAWINGS = (
    "The faces of the built-in dictionary are drawings. A model that is trained on photographs sees them as something "
    "foreign: take what is said of its units as a first look, not as a finding. For findings give a dictionary of "
    "photographs: HNDCallback(dictionary='path/to/visual_dictionary')."
)


class HNDCallback(Callback):
    """Dissects the model at validation and logs what its units pair with.

    At the end of a validation epoch the Face Dictionary runs through the model, and of each layer it is known
    which units are interpretable, with which concepts they pair, in which facial region, and for which groups
    they fire (Hierarchical Network Dissection, Teotia et al., IJCV 2022). Before the first training step the
    same is done once: the state *at start* is the baseline that the first value of each curve shows, at the
    step at which training starts. If the model is fine-tuned or resumed it is not that of fresh weights; a
    resumed run keeps the baseline of its first.

    Training is not disturbed: weights, modes, hooks, random numbers and dataloaders are as without the
    callback, to the bit.

    **Logged scalars**, through Lightning's own logging, so that any logger, ``ModelCheckpoint(monitor=...)``
    and ``EarlyStopping`` see them. All under ``hnd/<layer>/<rule>/``, the same in every epoch:

    ==========================  =========================================================================
    ``interpretable_units``     units paired with at least one local concept
    ``interpretable_fraction``  their share of the live units, 0 where none lives
    ``dead_units``              units whose activation never varies over the dictionary
    ``mean_iou``                mean best IoU of the interpretable units, 0 where there is none
    ``region/<region>``         interpretable units of the region
    ``kind/<kind>``             units paired with a concept of the kind (``part``, ``attribute``, ...)
    ``group/<concept>/<group>`` units paired with the group (``group/gender/Female``)
    ==========================  =========================================================================

    ``<rule>`` is ``readme`` with the default settings, see :class:`~lightning_hnd.Rule`. To TensorBoard,
    W&B and MLflow go also a table of the strongest assignments, the histogram of concepts and the faces that
    the strongest units fire on. Each dissection is saved as ``<log_dir>/hnd/epoch=<epoch>-step=<step>.hnd``,
    the baseline as ``start-step=<step>.hnd``: see :class:`~lightning_hnd.Dissection`. A second HNDCallback of
    one Trainer writes to ``<log_dir>/hnd-2``.

    Args:
        dictionary: The faces to show to the model: a :class:`~lightning_hnd.FaceDictionary`, or the path of
            one in the released layout. None: the built-in rendered faces.
        layers: Dotted names or globs, one or several. None: the last spatial output that the forward pass
            reaches; the choice is printed.
        every_n_epochs: Dissect when so many epochs have passed since the last time; the first validation
            epoch always.
        quantile: Fraction of a unit's activations that exceed its threshold.
        iou_threshold: The bar that a local unit's best IoU must exceed.
        firing_only: Whether only images in which a unit fires count in its IoU, as in the released code.
        size: Height and width of the dictionary's images, or one number for both. None: those of
            ``example_input_array``, or of the first batch.
        mean: Subtracted from the dictionary's images in 0..1, 0.5 by default: what the model is trained with.
        std: Divides them then, 0.5 by default.
        grid: ``(rows, columns)`` of token sequences, for vision transformers.
        forward_fn: From the LightningModule and images to anything: one forward pass, where
            ``pl_module(images)`` is not it.
        batch_size: Dictionary images in a batch.
        budget: Bytes that maps in which units may fire may take; see :func:`~lightning_hnd.dissect`.

    Raises:
        ValueError: If a value is out of range, or ``size``, ``mean`` or ``std`` is given beside a FaceDictionary,
            which has its own. Before the first step also: if a layer does not exist or does not run, the
            dictionary is damaged, activations are not finite, somebody monitors a key that will not be logged
            or goes stale, or the module is split over devices.
        FileNotFoundError: If ``dictionary`` is a path that does not exist.

    Attributes:
        dictionary: The dictionary, once it is known.
        baseline: The dissection at start.
        latest: The latest dissection.
    """

    def __init__(
        self,
        dictionary: FaceDictionary | str | Path | None = None,
        layers: str | Sequence[str] | None = None,
        every_n_epochs: int = 1,
        quantile: float = README.quantile,
        iou_threshold: float = README.iou_threshold,
        firing_only: bool = README.firing_only,
        size: int | tuple[int, int] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        grid: Grid | None = None,
        forward_fn: ForwardFn | None = None,
        batch_size: int = 64,
        budget: int = BUDGET,
    ) -> None:
        self.rule = Rule(quantile, iou_threshold, firing_only)
        for name, value in (("every_n_epochs", every_n_epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if budget < 0:
            raise ValueError(f"budget must not be negative, got {budget}")
        self._source = DictionarySource(dictionary, size, mean, std)
        self._layers = (layers,) if isinstance(layers, str) else None if layers is None else tuple(layers)
        self._every_n_epochs = every_n_epochs
        self._grid = grid
        self._forward_fn = forward_fn
        self._batch_size = batch_size
        self._budget = budget
        self._begin()

    def _begin(self) -> None:
        """Forgets what belongs to one run."""
        self.dictionary = self._source.known
        self.baseline: Dissection | None = None
        self.latest: Dissection | None = None
        self._names: tuple[str, ...] = ()
        self._last_epoch: int | None = None
        self._compared = False
        self._baseline_scalars: dict[str, float] = {}
        self._started = False

    # ------------------------------------------------------------------------------------- before the first step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks what can be checked before anything runs; what a checkpoint remembers is loaded after this."""
        if stage == "fit" and trainer.global_step == 0:  # not where a run goes on
            self._begin()
        supported = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        if not supported or isinstance(trainer.strategy, DeepSpeedStrategy):  # which is a DDPStrategy to Lightning
            raise ValueError(
                f"HNDCallback does not support {type(trainer.strategy).__name__} yet: the module must be whole on "
                "each device (one device, or DDP)"
            )
        if stage == "fit":
            refuse_stale(trainer, self._every_n_epochs)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the layers, and the size where the module has an ``example_input_array``."""
        if self._layers is not None:
            self._names = resolve_layers(pl_module, self._layers)
        example = find_images(pl_module.example_input_array)
        if self.dictionary is None and example is not None:
            self._open_dictionary(pl_module, example)
        if not trainer.enable_validation:
            rank_zero_warn(
                "HNDCallback dissects at validation, and this run has none (no validation_step or dataloader, or "
                "limit_val_batches=0): only the state at start will be seen"
            )
        refuse_stale(trainer, self._every_n_epochs)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Learns from the first batch what the model gets."""
        self._learn(pl_module, batch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the baseline, if the dictionary is known by now."""
        if self.dictionary is not None:
            self._take_baseline(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes the baseline before the first step, if nothing told the size before."""
        if not self._started:
            self._learn(pl_module, batch)
            self._take_baseline(trainer, pl_module)

    def _learn(self, pl_module: pl.LightningModule, batch: Any) -> None:
        if self._compared:
            return
        images = find_images(batch)
        if images is None:
            if self.dictionary is None:
                raise ValueError(
                    "HNDCallback found no images [B, 1 or 3, H, W] in the batch, from which it would learn their size "
                    "and channels; give the module an example_input_array, or HNDCallback a FaceDictionary"
                )
            return
        if self.dictionary is None:
            self._open_dictionary(pl_module, images)
        assert self.dictionary is not None
        self._compared = True
        if self.dictionary.drawn:
            rank_zero_warn(DRAWINGS)
        with kept_random_state(device_of(pl_module)):
            warning = mismatch(InputStatistics.of(images), self.dictionary)
        if warning is not None:
            rank_zero_warn(warning)

    def _open_dictionary(self, pl_module: pl.LightningModule, like: torch.Tensor) -> None:
        with kept_random_state(device_of(pl_module)):
            self.dictionary = self._source.open(like)
        rank_zero_info(f"HNDCallback: {self.dictionary}")

    def _keys(self) -> list[str]:
        """Every key that will be logged, as soon as layers and dictionary are known."""
        if self.dictionary is None:
            return []
        ontology = self.dictionary.ontology
        return [f"{prefix(name, self.rule.name)}/{key}" for name in self._names for key in keys(ontology)]

    # --------------------------------------------------------------------------------------------------- dissecting

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Dissects the model, if it is time, and logs the result."""
        if not self._is_due(trainer):
            return
        self._last_epoch = epoch = trainer.current_epoch
        self.latest = self._dissect(trainer, pl_module, at_start=False)
        for key, value in scalars(self.latest).items():
            pl_module.log(key, torch.tensor(value), on_step=False, on_epoch=True, batch_size=1)
        self._publish(trainer, self.latest, f"Epoch {epoch}, step {trainer.global_step}")

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if trainer.sanity_checking or self.dictionary is None:
            return False
        last = self._last_epoch
        return last is None or not 0 < trainer.current_epoch - last < self._every_n_epochs

    def _take_baseline(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = True
        if self._baseline_scalars:
            rank_zero_info("HNDCallback: the run goes on; its baseline is that of its first start")
            assert self.dictionary is not None
            self._measure(trainer, pl_module, self.dictionary.subset(range(1)))  # fails now rather than later
            return
        self.baseline = self._dissect(trainer, pl_module, at_start=True)
        self._baseline_scalars = scalars(self.baseline)
        # self.log here would be recorded at the first epoch's step, behind that epoch's own value
        for logger in trainer.loggers:
            logger.log_metrics(self._baseline_scalars, step=_logged_step(trainer))
        origin = f", resumed from {trainer.ckpt_path}" if trainer.ckpt_path else ""
        self._publish(trainer, self.baseline, f"At start (step {trainer.global_step}{origin})")

    def _dissect(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, at_start: bool) -> Dissection:
        assert self.dictionary is not None
        statistics = self._measure(trainer, pl_module, self.dictionary)
        moment = {"epoch": trainer.current_epoch, "step": trainer.global_step, "at_start": at_start}
        return Dissection.from_statistics(
            statistics, self.dictionary.ontology, self.rule, {**describe(self.dictionary), **moment}
        )

    def _measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, dictionary: FaceDictionary
    ) -> dict[str, dict[str, torch.Tensor]]:
        context = trainer.precision_plugin.forward_context
        with unlogged(pl_module):
            if not self._names:
                self._names, said = choose_layers(
                    pl_module,
                    dictionary,
                    self._layers,
                    grid=self._grid,
                    forward_fn=self._forward_fn,
                    context=context,
                )
                if said:
                    rank_zero_info(f"HNDCallback: {said}")
            others = [key for callback in _dissecting(trainer) if callback is not self for key in callback._keys()]
            refuse_shared(self._keys(), others)
            if len(_dissecting(trainer)) == 1:  # what another one will log, this one cannot know
                refuse_unknown(trainer, self._keys())
            return measure(
                pl_module,
                dictionary,
                self._names,
                self.rule.quantile,
                grid=self._grid,
                forward_fn=self._forward_fn,
                batch_size=self._batch_size,
                budget=self._budget,
                progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
                context=context,
            )

    def _publish(self, trainer: pl.Trainer, dissection: Dissection, title: str) -> None:
        log_dir = trainer.log_dir or trainer.default_root_dir  # all ranks must ask for it
        if trainer.is_global_zero:
            self._write(trainer, dissection, title, Path(log_dir))

    def _write(self, trainer: pl.Trainer, dissection: Dissection, title: str, log_dir: Path) -> None:
        assert self.dictionary is not None
        show(dissection, title)
        write(trainer.loggers, dissection, self.dictionary, _logged_step(trainer))
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            when = "start" if dissection.info["at_start"] else f"epoch={trainer.current_epoch:04d}"
            mine = _dissecting(trainer).index(self)
            folder = log_dir / ("hnd" if mine == 0 else f"hnd-{mine + 1}")
            folder.mkdir(parents=True, exist_ok=True)
            dissection.save(folder / f"{when}-step={trainer.global_step:08d}.hnd")

    # -------------------------------------------------------------------------------------------------------- state

    @property
    def state_key(self) -> str:
        """Tells two HNDCallbacks of one Trainer apart."""
        return self._generate_state_key(layers=self._layers, rule=self.rule.name, dictionary=self._source.identity)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: plain data."""
        return {"last_epoch": self._last_epoch, "baseline": dict(self._baseline_scalars), "layers": list(self._names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where a run left off."""
        self._last_epoch = state_dict["last_epoch"]
        self._baseline_scalars = dict(state_dict["baseline"])
        self._names = tuple(state_dict["layers"])


def _logged_step(trainer: pl.Trainer) -> int:
    """The step under which Lightning logs the scalars of this moment; ``global_step`` counts optimizers apart."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _dissecting(trainer: pl.Trainer) -> list[HNDCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, HNDCallback)]  # type: ignore[attr-defined]
