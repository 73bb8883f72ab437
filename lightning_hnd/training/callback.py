"""HNDCallback: when a model is dissected during training, on what, and where the result goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dissection import Dissection
from lightning_hnd.evidence.fresh import FreshWeights
from lightning_hnd.history.alerts import BiasAlert, alert_keys, check
from lightning_hnd.history.timeline import Timeline
from lightning_hnd.pipeline import BUDGET
from lightning_hnd.rules import ABOVE_CHANCE, README, Rule, readings
from lightning_hnd.showing.activations import Grid, as_patterns
from lightning_hnd.showing.processes import ALONE
from lightning_hnd.showing.showing import ForwardFn, Showing
from lightning_hnd.showing.undisturbed import device_of
from lightning_hnd.training.alarms import sound
from lightning_hnd.training.dissector import Dissector
from lightning_hnd.training.faults import tolerated
from lightning_hnd.training.model_input import DictionarySource, LearntDictionary, find_images
from lightning_hnd.training.monitors import (
    refuse_foreign,
    refuse_shared,
    refuse_stale,
    refuse_stopping_at_nan,
    refuse_unknown,
    refuse_untold,
    refuse_without_validation,
    warn_of_averaging,
    warn_without_validation,
)
from lightning_hnd.training.publishing import Publisher, Stopwatch
from lightning_hnd.training.strategies import processes_of
from lightning_hnd.training.subject import Subject

OPENING = "opening the dictionary"


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

    One measurement is read under two rules (:class:`~lightning_hnd.Rule`): ``readme``, the bar that the released code's
    README states, and ``above_chance``, what stands up to chance, and to what the architecture does with fresh weights
    (``docs/above-chance.md``). Files and attributes read as the latter; ``dissection.with_rule(README)`` as the other.

    **Logged scalars**, through Lightning's own logging, so that any logger, ``ModelCheckpoint(monitor=...)``
    and ``EarlyStopping`` see them. All but the last under ``hnd/<layer>/<rule>/``, the same at every dissection:

    ==========================  =========================================================================
    ``interpretable_units``     units paired with at least one local concept
    ``interpretable_fraction``  their share of the live units, 0 where none lives
    ``dead_units``              units whose activation never varies over the dictionary
    ``mean_iou``                mean best IoU of the interpretable units, 0 where there is none
    ``region/<region>``         interpretable units of the region
    ``kind/<kind>``             units paired with a concept of the kind (``part``, ``attribute``, ...)
    ``group/<concept>/<group>`` units paired with the group (``group/gender/Female``)
    ``mean_probability/...``    mean of the probability of each group, over the units that fire on any face with a
                                group of its concept
    ``associated_units``        under ``above_chance`` alone, as are the next three: units whose response is tied to a
                                concept's presence
    ``placed_units``            units whose maps go along with the masks of their own faces
    ``confounded_units``        units with a concept that a group may stand behind, which is not named therefore
    ``learnt_units``            units that do more than those of networks with fresh weights
    ``births``, ``deaths``,     under the last rule alone, as are the next two: units that have become paired, ceased to
    ``switches``, ``churn``     be, or changed their strongest concept since the dissection before; their share
    ``bias/<concept>/...``      how strongly the layer encodes a global concept (``index``), less what it did at start
                                (``since_start``) and the time before (``since_last``): ``docs/bias.md``; NaN for
                                concepts that the dictionary has no faces of
    ``alert/<name>/...``        for each alert its ``measure``, and whether it is ``raised``
    ``hnd/seconds``             what the dissection took, with its files and pictures; that of a second
                                HNDCallback of the Trainer is ``hnd/seconds-2``
    ==========================  =========================================================================

    Other settings of the bar or of the level have other names. To TensorBoard, W&B and MLflow go also a table of the
    strongest assignments, the histogram of concepts and the faces that the strongest units fire on. Each dissection
    of a fit is saved as ``<log_dir>/hnd/epoch=<epoch>-step=<step>.hnd``, the baseline as ``start-step=<step>.hnd``: see
    :class:`~lightning_hnd.Dissection` and :func:`~lightning_hnd.report.history`. A second HNDCallback of one Trainer,
    and a second run in the same ``log_dir``, writes to ``<log_dir>/hnd-2``. Where logs go to another machine
    (``s3://...``) these files go below the Trainer's ``default_root_dir``.

    **Several processes** (DDP; FSDP2 through ``ModelParallelStrategy`` without tensor parallelism) share the
    dictionary out by whole batches, and all get the same result: that of the first process's buffers, where batch
    norm's averages differ. If a dissection fails in one of them it fails in all, with the same message.

    ``trainer.validate`` on its own dissects and logs, and writes no file; ``trainer.test`` and ``trainer.predict``
    do not dissect. What happens when something fails is listed in ``docs/faults.md``.

    Args:
        dictionary: The faces to show to the model: a :class:`~lightning_hnd.FaceDictionary`, or the path of
            one in the released layout. None: the built-in rendered faces.
        layers: Dotted names or globs, one or several. None: the last spatial output that the forward pass
            reaches; the choice is printed.
        every_n_epochs: Dissect when so many epochs have passed since the last time; the first validation
            epoch always. In an epoch with several validations (``val_check_interval``), at each of them.
        at_train_epoch_end: Whether to dissect when a training epoch ends, instead of at validation: for modules
            that have none.
        on_error: What to do when a dissection fails after the first step: end the run, or warn, log NaN under
            each key and go on. What fails before the first step is always raised, and so is want of memory.
        quantile: Fraction of a unit's activations that exceed its threshold.
        iou_threshold: The bar that a local unit's best IoU must exceed.
        firing_only: Whether only images in which a unit fires count in its IoU, as in the released code.
        level: The false discovery rate of ``above_chance``. None: only the bar is put to units, which takes a little
            less time and memory.
        fresh_seeds: Of networks with fresh weights to compare with, for what is learnt. Each is shown the dictionary
            once, before the first step, and once more when batch norms have seen images; a run that is resumed, and
            later fits, remember the outcome. None: five, if the module can be reset, else a warning. ``()``: none, and
            no ``learnt_units``: units are interpretable then that are associated and placed. With ``n`` networks
            ``20 / n`` units (fewer if some are dead, more if some of theirs are) must do more than all of theirs for
            any to have learnt.
        factory: Makes such a network, where ``reset_parameters`` throughout the module is not it.
        size: Height and width of the dictionary's images, or one number for both. None: those of
            ``example_input_array``, or of the first batch.
        mean: Subtracted from the dictionary's images in 0..1, 0.5 by default: what the model is trained with.
        std: What they are divided by after that, 0.5 by default.
        grid: ``(rows, columns)`` of token sequences, for vision transformers.
        forward_fn: From the LightningModule and images to anything: one forward pass, where
            ``pl_module(images)`` is not it.
        batch_size: Dictionary images in a batch, at most. None: 64; on a CPU large images are shown in smaller
            parts, which is faster.
        budget: Bytes that maps in which units may fire may take in each process; see :func:`~lightning_hnd.dissect`.
        max_images: Show at most so many of the dictionary's images, the same every time; see
            :meth:`FaceDictionary.sample`. None: all.
        alerts: Tell when a layer starts to encode a group, or to take a cue for it: :class:`~lightning_hnd.BiasAlert`.

    Raises:
        TypeError: If the Trainer is not one of ``lightning.pytorch``, a layer is not given by its name, or a
            dictionary, a size or an alert is something else.
        ValueError: If a value is out of range, ``fresh_seeds`` or ``factory`` is given without a level, or ``size``,
            ``mean`` or ``std`` is given beside a FaceDictionary, which has its own. Before the first step also: if a
            layer does not exist or does not run, the dictionary is damaged, activations are not finite, somebody
            monitors a key that will not be logged, goes stale or is NaN, ``fresh_seeds`` are given and
            ``reset_parameters`` does not reach a weight, the strategy is not supported, or processes have different
            dictionaries.
        FileNotFoundError: If ``dictionary`` is a path that does not exist.

    Attributes:
        baseline: The dissection at start.
        latest: The latest dissection, also of ``trainer.validate`` on its own, which is not one of the run's: the
            timeline and a resumed run know nothing of it.
        failed_at: Epoch and step of the dissection that failed last, where training goes on without it.
    """

    def __init__(
        self,
        dictionary: FaceDictionary | str | Path | None = None,
        layers: str | Sequence[str] | None = None,
        every_n_epochs: int = 1,
        at_train_epoch_end: bool = False,
        on_error: Literal["raise", "warn"] = "raise",
        quantile: float = README.quantile,
        iou_threshold: float = README.iou_threshold,
        firing_only: bool = README.firing_only,
        level: float | None = ABOVE_CHANCE.level,
        fresh_seeds: Sequence[int] | None = None,
        factory: Callable[[], nn.Module] | None = None,
        size: int | tuple[int, int] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        grid: Grid | None = None,
        forward_fn: ForwardFn | None = None,
        batch_size: int | None = None,
        budget: int = BUDGET,
        max_images: int | None = None,
        alerts: BiasAlert | Sequence[BiasAlert] = (),
    ) -> None:
        self.rule = Rule(quantile, iou_threshold, firing_only)
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error must be 'raise' or 'warn', got {on_error!r}")
        self._dissector = Dissector(
            None if layers is None else as_patterns(layers),
            readings(self.rule, level),
            Showing(grid, forward_fn, batch_size),
            budget,
            FreshWeights.chosen(fresh_seeds, factory, level),
        )
        self._faces = LearntDictionary(DictionarySource(dictionary, size, mean, std, max_images))
        self._every_n_epochs = every_n_epochs
        self._at_train_epoch_end = at_train_epoch_end
        self._tolerant = on_error == "warn"
        self._processes = ALONE
        self._alerts = tuple(alerts) if isinstance(alerts, Sequence) else (alerts,)
        if not all(isinstance(alert, BiasAlert) for alert in self._alerts):
            raise TypeError(f"alerts must be BiasAlert('gender', ...) or several of them, got {alerts!r}")
        self._evaluating = False
        self._begin()

    def _begin(self) -> None:
        """Forgets what belongs to one run."""
        self._forget_model()
        self.baseline: Dissection | None = None
        self.latest: Dissection | None = None
        self.failed_at: tuple[int, int] | None = None
        self._last_epoch: int | None = None
        self._publisher = Publisher(self._dissector.rules, self._alerts)
        self._started = False

    def _forget_model(self) -> None:
        self._faces.forget()
        self._names: tuple[str, ...] = ()
        self._learnt: bool | None = None  # whether it is asked, once that is known

    @property
    def timeline(self) -> Timeline | None:
        """The dissections of the run so far, from the model at start on, read under the last of the rules."""
        return self._publisher.timeline

    @property
    def dictionary(self) -> FaceDictionary | None:
        """The dictionary, once it is known."""
        return self._faces.dictionary

    # ------------------------------------------------------------------------------------- before the first step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks what can be checked before anything runs; what a checkpoint remembers is loaded after this."""
        refuse_foreign(trainer)
        self._evaluating = stage != TrainerFn.FITTING
        if stage not in (TrainerFn.FITTING, TrainerFn.VALIDATING):
            return
        if trainer.global_step == 0:  # not where a run goes on
            if stage == TrainerFn.FITTING:
                self._begin()
            else:
                self._forget_model()
        self._processes = processes_of(trainer, tolerant=self._tolerant)
        if trainer.barebones:
            rank_zero_warn("HNDCallback does nothing in Trainer(barebones=True), which measures raw speed")
        elif stage == TrainerFn.FITTING:
            warn_of_averaging(trainer, self)
            if self._tolerant:
                refuse_stopping_at_nan(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the layers, and the size where the module has an ``example_input_array``."""
        if trainer.barebones:
            return
        self._names = self._dissector.resolve(pl_module) or self._names
        example = find_images(pl_module.example_input_array)
        if self.dictionary is None and example is not None:
            with self._processes.together(OPENING):
                self._faces.open(example, device_of(pl_module))
        if not self._at_train_epoch_end:
            warn_without_validation(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Learns from the first batch what the model gets."""
        if not trainer.barebones:
            self._learn(trainer, pl_module, batch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the baseline, if the dictionary is known by now."""
        if self.dictionary is not None and not trainer.barebones:
            self._start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes the baseline before the first step, if nothing told the size before."""
        if trainer.barebones:
            return
        self._learn(trainer, pl_module, batch)
        if not self._started:
            self._start(trainer, pl_module)

    def _learn(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        with contextlib.nullcontext() if self.dictionary is not None else self._processes.together(OPENING):
            self._faces.learn(batch, device_of(pl_module))

    def _keys(self) -> list[str]:
        """Every key that will be logged, as soon as layers and dictionary are known."""
        more = alert_keys(self._alerts)
        return self._dissector.keys(self._names, self.dictionary, learnt=bool(self._learnt), more=more)

    def _check_keys(self, trainer: pl.Trainer) -> None:
        """Refuses keys that another HNDCallback logs, too, and who monitors one that nobody logs, or not in time."""
        callbacks, own = _dissecting(trainer), [*self._keys(), self._seconds_key(trainer)]
        refuse_shared(self._keys(), [key for callback in callbacks if callback is not self for key in callback._keys()])
        if trainer.state.fn == TrainerFn.FITTING:
            if not self._at_train_epoch_end:
                refuse_without_validation(trainer, own)
            refuse_stale(trainer, own, self._every_n_epochs, at_train_epoch_end=self._at_train_epoch_end)
        if all(callback._learnt is not None for callback in callbacks):  # the last thing to be known
            of_all = [key for callback in callbacks for key in (*callback._keys(), callback._seconds_key(trainer))]
            refuse_unknown(trainer, of_all)

    def _seconds_key(self, trainer: pl.Trainer) -> str:
        """Each HNDCallback of a Trainer has its own."""
        mine = _dissecting(trainer).index(self)
        return "hnd/seconds" if mine == 0 else f"hnd/seconds-{mine + 1}"

    # --------------------------------------------------------------------------------------------------- dissecting

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Dissects the model, if it is time, and logs the result."""
        if self._is_due(trainer, train_epoch_end=False):
            self._dissect_and_log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, where ``at_train_epoch_end`` asks for it."""
        if self._is_due(trainer, train_epoch_end=True):
            self._dissect_and_log(trainer, pl_module)

    def _is_due(self, trainer: pl.Trainer, *, train_epoch_end: bool) -> bool:
        """The one place that decides whether to dissect now."""
        if trainer.sanity_checking or trainer.barebones or self.dictionary is None:
            return False
        if trainer.state.fn != TrainerFn.FITTING:  # trainer.validate: asked for
            return True
        last = self._last_epoch
        passed = last is None or not 0 < trainer.current_epoch - last < self._every_n_epochs
        return passed and train_epoch_end == self._at_train_epoch_end

    def _dissect_and_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stopwatch = Stopwatch(self._seconds_key(trainer))
        moment = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self._last_epoch = trainer.current_epoch
        tolerate = self._tolerant and fitting
        found: Dissection | None = None
        with tolerated(f"dissect the model at {moment}", "Its scalars are NaN; training goes on", tolerate=tolerate):
            found = self._dissect(trainer, pl_module, at_start=False)
        if tolerate and not trainer.strategy.reduce_boolean_decision(found is not None):
            found = None  # what one process lacks no process has
        if found is None:
            self.failed_at = trainer.current_epoch, trainer.global_step
        else:
            self.latest = found
        subject = self._subject(trainer, pl_module)
        alarms = self._publisher.publish(subject, found, stopwatch, keys=self._keys(), tolerate=tolerate)
        sound(subject, alarms, tolerate=tolerate)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the timeline of the run, beside its dissections."""
        self._publisher.end(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same where a fit ends early: by Ctrl-C, or a fault anywhere, which is what the user must see."""
        if trainer.state.fn == TrainerFn.FITTING:
            with contextlib.suppress(Exception):  # all of which it has warned of, want of memory too
                self._publisher.end(trainer)

    def _start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the baseline, or takes up the history of a run that goes on."""
        self._started = True
        if self._publisher.at_start:
            self._go_on(trainer, pl_module)
            return
        stopwatch = Stopwatch(self._seconds_key(trainer))
        self.baseline = self._dissect(trainer, pl_module, at_start=True)
        subject = self._subject(trainer, pl_module)
        alarms = self._publisher.begin(subject, self.baseline, stopwatch)
        refuse_untold(trainer, self._publisher.at_start)
        sound(subject, alarms, tolerate=False)

    def _go_on(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        refuse_untold(trainer, self._publisher.at_start)
        rank_zero_info("HNDCallback: the run goes on; its baseline is that of its first start")
        subject = self._subject(trainer, pl_module)
        few = replace(subject, dictionary=subject.dictionary.subset(range(self._processes.size)))
        self._dissector.measure(self._prepare(few))  # fails now rather than later
        baseline, latest = self._publisher.go_on(subject)
        self.baseline = baseline if self.baseline is None else self.baseline
        self.latest = latest if self.latest is None else self.latest

    def _dissect(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, at_start: bool) -> Dissection:
        subject = self._prepare(self._subject(trainer, pl_module))
        null = self._dissector.null(subject, (self.latest, self.baseline)) if self._learnt else {}
        return self._dissector.dissect(subject, null=null, at_start=at_start)

    def _subject(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Subject:
        assert self.dictionary is not None
        return Subject(trainer, pl_module, self.dictionary, self._processes)

    def _prepare(self, subject: Subject) -> Subject:
        """Settles what must be before a dictionary is shown; the first time, the layers are chosen."""
        dictionary = subject.dictionary
        # processes share it out by number
        remedy = "Give all of them the same one, and HNDCallback(size=...) where the model gets images of several sizes"
        self._processes.require_same("dictionaries", f"{dictionary}, {dictionary.fingerprint}", remedy)
        if not self._names:
            self._names = self._dissector.find_layers(subject)
        if self._learnt is None:
            self._learnt = self._dissector.asks_learnt(subject)
        check(self._alerts, dictionary.ontology)
        self._check_keys(subject.trainer)
        return replace(subject, layers=self._names)

    # -------------------------------------------------------------------------------------------------------- state

    @property
    def state_key(self) -> str:
        """Tells two HNDCallbacks of one Trainer apart."""
        return self._generate_state_key(
            layers=self._dissector.layers,
            rule=self.rule.name,
            dictionary=self._faces.source.identity,
            max_images=self._faces.source.max_images,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: plain data."""
        return {
            "last_epoch": self._last_epoch,
            "layers": list(self._names),
            **self._publisher.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where a run left off; of a checkpoint that is only evaluated nothing, for the run is this one."""
        if self._evaluating:
            return
        self.baseline = self.latest = None  # of another run, or of other weights than the checkpoint's
        self._last_epoch = state_dict["last_epoch"]
        self._names = tuple(state_dict["layers"])
        self._publisher = Publisher(self._dissector.rules, self._alerts, state_dict)


def _dissecting(trainer: pl.Trainer) -> list[HNDCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, HNDCallback)]  # type: ignore[attr-defined]
