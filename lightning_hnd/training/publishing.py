"""Publisher: where the dissections of a run are shown, logged and kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_hnd.dissection import Dissection
from lightning_hnd.history.alerts import Alarm, BiasAlert, judge
from lightning_hnd.history.timeline import Timeline
from lightning_hnd.report.console import show
from lightning_hnd.report.files import RunFiles
from lightning_hnd.report.keys import prefix, scalars, scalars_over_time
from lightning_hnd.report.timelines import write_timeline
from lightning_hnd.rules import Rule
from lightning_hnd.training.faults import tolerated
from lightning_hnd.training.loggers import log_dir, logged_step, write
from lightning_hnd.training.subject import Subject


@dataclass(frozen=True)
class Stopwatch:
    """The scalar that says what a dissection took.

    Attributes:
        key: Its name.
        began: When.
    """

    key: str
    began: float = field(default_factory=time.monotonic)

    @property
    def scalar(self) -> dict[str, float]:
        """The seconds since then, under the key."""
        return {self.key: time.monotonic() - self.began}


class Publisher:
    """Where the dissections of one run go: console, loggers, files, and scalars through Lightning's own logging.

    Args:
        rules: Under which dissections are read, one after the other; the console shows the units of the last one,
            and the timeline is read under it.
        alerts: Those to judge on the timeline.
        state: What :meth:`state` gave, of a run that is resumed.

    Attributes:
        files: Those of the run.
        timeline: Of its dissections; None before there is one.
        at_start: The scalars of the baseline; empty before there is one.
    """

    def __init__(
        self, rules: Sequence[Rule], alerts: Sequence[BiasAlert] = (), state: Mapping[str, Any] | None = None
    ) -> None:
        state = state or {}
        self._rules = tuple(rules)
        self._alerts = tuple(alerts)
        self.timeline: Timeline | None = None
        self.files = RunFiles(state.get("files"))
        self.at_start: dict[str, float] = dict(state.get("baseline", {}))

    def state(self) -> dict[str, Any]:
        """What a resumed run must know: plain data."""
        return {"baseline": dict(self.at_start), "files": self.files.state()}

    def begin(self, subject: Subject, dissection: Dissection, stopwatch: Stopwatch) -> list[Alarm]:
        """Publishes the baseline, before the first step; called by all processes.

        Args:
            subject: The model at start.
            dissection: What was found.
            stopwatch: Started before the dissection.

        Returns:
            The alarms that it raises.

        Raises:
            ValueError: If an alert could never be raised with the dictionary.
        """
        for alert in self._alerts:
            for layer in dissection:
                alert.refuse_deaf(layer)
        self.timeline = Timeline.of([dissection])
        judged, alarms = self._judged(self.timeline)
        self.at_start = self._scalars(dissection, self.timeline) | judged
        trainer = subject.trainer
        origin = f", resumed from {trainer.ckpt_path}" if trainer.ckpt_path else ""
        title = f"At start (step {trainer.global_step}{origin})"
        self._show_and_keep(subject, dissection, self.timeline, title, tolerate=False)
        # self.log here would be recorded at the first epoch's step, behind that epoch's own value
        for logger in trainer.loggers:
            logger.log_metrics({**self.at_start, **stopwatch.scalar}, step=logged_step(trainer))
        return alarms

    def go_on(self, subject: Subject) -> tuple[Dissection | None, Dissection | None]:
        """Takes up the files of a resumed run; called by all processes.

        Warns if they were made with another dictionary, and if they cannot be read under the rule.

        Returns:
            Its baseline and its latest dissection, if they can be read.
        """
        trainer, dictionary, processes = subject.trainer, subject.dictionary, subject.processes
        baseline = latest = timeline = None
        with processes.together("taking up the run's earlier dissections"):
            if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.files.resume(log_dir(trainer), trainer.global_step)
                baseline = self.files.baseline()
                earlier = list(self.files.dissections())
                latest, timeline = (earlier[-1] if earlier else None), self._timeline_of(earlier)
        baseline, latest, self.timeline = processes.first((baseline, latest, timeline))
        if baseline is not None and baseline.info["fingerprint"] != dictionary.fingerprint:
            rank_zero_warn(
                f"the run goes on with another dictionary ({dictionary}) than that of its earlier dissections "
                f"({baseline.info['dictionary']}): its curves break here"
            )
        return baseline, latest

    def _timeline_of(self, earlier: list[Dissection]) -> Timeline | None:
        try:
            return Timeline.of(earlier, self._rules[-1]) if earlier else None
        except ValueError as error:
            rank_zero_warn(
                f"the run's timeline begins anew: its earlier dissections do not go with later ones ({error})"
            )
            return None

    def publish(
        self,
        subject: Subject,
        dissection: Dissection | None,
        stopwatch: Stopwatch,
        *,
        keys: Sequence[str],
        tolerate: bool,
    ) -> list[Alarm]:
        """Publishes a dissection, or that there is none; called by all processes, where Lightning lets hooks log.

        Args:
            subject: The model as it is now, which logs the scalars.
            dissection: What was found; None where the dissection failed: NaN is logged then.
            stopwatch: Started before the dissection.
            keys: Every key to log.
            tolerate: Whether to go on where showing or writing fails.

        Returns:
            The alarms that it raises, the same in all processes.
        """
        trainer = subject.trainer
        values, alarms = dict.fromkeys(keys, math.nan), []
        if dissection is not None:
            fitting = trainer.state.fn == TrainerFn.FITTING
            # a Trainer that has trained nothing, and only validates, is not that of the run
            known = self.timeline if fitting or trainer.global_step else None
            timeline = Timeline.of([dissection])
            if known is not None:
                with tolerated("go on with the run's timeline", "It begins anew; training goes on", tolerate=tolerate):
                    timeline = known.then(dissection)
            judged, found = self._judged(timeline)
            if fitting:
                self.timeline, alarms = timeline, found
            values = self._scalars(dissection, timeline) | judged
            title = f"Epoch {trainer.current_epoch}, step {trainer.global_step}"
            self._show_and_keep(subject, dissection, timeline, title, tolerate=tolerate)
        for key, value in {**values, **stopwatch.scalar}.items():
            # the same in all processes, but for the seconds, of which the longest count
            subject.module.log(
                key, torch.tensor(value), on_step=False, on_epoch=True, batch_size=1, sync_dist=True, reduce_fx="max"
            )
        return alarms

    def end(self, trainer: pl.Trainer) -> None:
        """Draws the timeline of the run beside its dissections, or warns; called when a fit is over."""
        if trainer.is_global_zero and self.timeline is not None and self.files.folder is not None:
            with tolerated("write the timeline of the run", "Its dissections are there"):
                write_timeline(self.timeline, self.files.folder)

    def _scalars(self, dissection: Dissection, timeline: Timeline) -> dict[str, float]:
        read = [scalars(dissection.with_rule(rule)) for rule in self._rules]
        return {key: value for values in (*read, scalars_over_time(timeline)) for key, value in values.items()}

    def _judged(self, timeline: Timeline) -> tuple[dict[str, float], list[Alarm]]:
        values, alarms = judge(self._alerts, timeline)
        rule = self._rules[-1].name
        return {f"{prefix(layer, rule)}/{key}": v for layer, of in values.items() for key, v in of.items()}, alarms

    def _show_and_keep(
        self, subject: Subject, dissection: Dissection, timeline: Timeline, title: str, *, tolerate: bool
    ) -> None:
        trainer = subject.trainer
        with subject.processes.together("showing a dissection and writing it to a file"):
            if not trainer.is_global_zero:
                return
            readings = [dissection.with_rule(rule) for rule in self._rules]
            show(readings, title)
            if trainer.state.fn == TrainerFn.FITTING and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                with tolerated(
                    f"write the dissection of epoch {trainer.current_epoch}, step {trainer.global_step} to a file",
                    "Its scalars are logged; training goes on",
                    tolerate=tolerate,
                ):
                    at_first = self.files.folder is None
                    self.files.save(dissection, log_dir(trainer))
                    if at_first:
                        rank_zero_info(f"HNDCallback: the run's dissections are kept in {self.files.folder}")
            with tolerated("draw tables and pictures", "Its scalars are logged; training goes on", tolerate=tolerate):
                for reading in readings:
                    write(trainer, reading, subject.dictionary, timeline)
