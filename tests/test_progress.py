"""How far a dissection is: beside Lightning's bars, and only where they are."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import random_dictionary
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console
from rich.progress import Progress
from runs import Net, data, trainer

from lightning_hnd import HNDCallback
from lightning_hnd.training import progress
from lightning_hnd.training.progress import bar_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_of(bar: Any) -> Any:
    return SimpleNamespace(is_global_zero=True, progress_bar_callback=bar)


def test_there_is_one_more_bar_of_richs_while_rich_shows_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    monkeypatch.setattr(progress, "_PAUSE", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    rich = Progress(console=Console(file=io.StringIO(), force_terminal=True), redirect_stderr=False)
    bar = bar_of(run_of(SimpleNamespace(progress=rich)))
    assert bar is not None
    with rich:
        seen = []
        for step in bar(range(0, 30, 10), "Dissecting"):
            (task,) = rich.tasks
            seen.append((step, task.description, task.completed, task.total))
        assert seen == [(0, "Dissecting", 0, 3), (10, "Dissecting", 1, 3), (20, "Dissecting", 2, 3)]
        assert not rich.tasks
        for _ in (interrupted := iter(bar(range(3), "Dissecting"))):
            break
        interrupted.close()  # type: ignore[attr-defined]
        assert not rich.tasks
    assert terminal.getvalue() == ""
    list(bar(range(3), "Dissecting"))  # rich has stopped
    assert not rich.tasks


def test_what_is_soon_over_shows_no_bar() -> None:
    rich = Progress(console=Console(file=io.StringIO(), force_terminal=True))
    bar = bar_of(run_of(SimpleNamespace(progress=rich)))
    assert bar is not None
    with rich:
        assert [len(rich.tasks) for _ in bar(range(5), "Dissecting")] == [0] * 5


def test_no_bar_without_lightnings_and_none_of_other_processes() -> None:
    assert bar_of(run_of(None)) is None
    other = SimpleNamespace(is_global_zero=False, progress_bar_callback=TQDMProgressBar())
    assert bar_of(other) is None  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_a_training_run_under_richs_bars_leaves_no_line_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich puts what is written to the terminal above its bars, each state of another bar on a line."""
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    monkeypatch.setattr(progress, "terminal_bar", lambda steps, title: others.append(title) or steps)
    shown: list[str] = []
    others: list[str] = []
    added = Progress.add_task
    monkeypatch.setattr(
        Progress, "add_task", lambda self, title, *a, **k: shown.append(title) or added(self, title, *a, **k)
    )
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setattr(sys, "stderr", terminal)
    callback = HNDCallback(random_dictionary(images=200), fresh_seeds=(1, 2), batch_size=8)
    bar = RichProgressBar(console_kwargs={"file": terminal, "force_terminal": True, "width": 100})
    trainer(tmp_path, callback, bar, enable_progress_bar=True, max_epochs=1).fit(Net(), *data())
    assert others == []
    assert {"Fresh weights (seed 1)", "Fresh weights (seed 2)", "Dissecting"} <= {*shown}
    lines = terminal.getvalue().split("\n")
    assert not [line for line in lines if "Dissecting" in line and "%|" in line]
