"""Alarms in training: what happens when an alert goes off."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn

from lightning_hnd.history.alerts import Alarm
from lightning_hnd.training.faults import tolerated
from lightning_hnd.training.subject import Subject


def sound(subject: Subject, alarms: Sequence[Alarm], *, tolerate: bool) -> None:
    """Does what alerts ask for: the same in all processes, but for functions of the user, which the first one calls.

    Args:
        subject: What was dissected; all of its processes call this.
        alarms: Of alerts that went off.
        tolerate: Whether a function that fails is a warning.
    """
    for alarm in alarms:
        then = alarm.alert.then
        if not callable(then):
            rank_zero_warn(str(alarm))
            if then == "stop":
                subject.trainer.should_stop = True
            continue
        consequence = "The alarm is logged; training goes on"
        with (
            tolerated(f"call the function of the alert {alarm.alert.name!r}", consequence, tolerate=tolerate),
            subject.processes.together("calling the function of an alert"),
        ):
            if subject.trainer.is_global_zero:
                then(alarm)
