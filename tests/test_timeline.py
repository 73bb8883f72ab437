"""What became of units over time, against a naive count, and what an alert makes of it."""

from __future__ import annotations

import csv
import dataclasses
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_hnd import Alarm, BiasAlert, Dissection, FaceDictionary, HNDCallback, Timeline, dissect
from lightning_hnd.cli import main
from lightning_hnd.concepts import PAPER
from lightning_hnd.history.alerts import alert_keys, check, judge
from lightning_hnd.history.checkpoints import dissect_checkpoints, moments
from lightning_hnd.history.timeline import LayerTimeline, Moment
from lightning_hnd.report import history
from lightning_hnd.report.figures import new_figure
from lightning_hnd.report.timelines import _shortcuts, timeline_picture, write_timeline
from lightning_hnd.rules import README, RELEASED

C, K, L = len(PAPER.local), len(PAPER.global_), len(PAPER.labels)
G = L - C
MALE, GLASSES = PAPER.labels.index("gender/Male"), PAPER.labels.index("Eyeglasses")


def layer(concepts: list[list[int]], first: int = -1) -> LayerTimeline:
    """Units paired with one concept each (-1: none), moment by moment; the first moment is the start."""
    concept = np.array(concepts)
    moments, units = concept.shape
    paired = concept[:, :, None] == np.arange(C)
    measures = {
        **{f"encoding_{name}": np.zeros((moments, K)) for name in ("index", "low", "high")},
        "encoding_p": np.ones((moments, K)),
        **{f"shortcut_{name}": np.zeros((moments, L, L)) for name in ("index", "error", "z")},
    }
    when = tuple(Moment(max(0, t), 10 * (t + 1), t == -1) for t in range(first, moments + first))
    groups, none = np.zeros((moments, units, G), dtype=bool), np.zeros((moments, units), dtype=bool)
    return LayerTimeline("body", PAPER, README, when, paired, groups, concept, none, none, none[:, 0], measures)


def timeline(of: LayerTimeline) -> Timeline:
    return Timeline({"body": of})


def test_births_deaths_switches_and_churn_equal_a_count_unit_by_unit() -> None:
    concepts = np.random.default_rng(0).integers(-1, 3, (6, 40))
    found = layer(concepts.tolist())
    for t in range(6):
        births = deaths = switches = either = 0
        for u in range(40 if t else 0):
            before, now = concepts[t - 1, u], concepts[t, u]
            births += before < 0 <= now
            deaths += now < 0 <= before
            switches += before >= 0 and now >= 0 and before != now
            either += before >= 0 or now >= 0
        counted = (found.births[t], found.deaths[t], found.switches[t])
        assert counted == (births, deaths, switches)
        assert found.churn[t] == (sum(counted) / either if either else 0)


def test_what_emerges_stays_to_the_end_and_is_seen_twice() -> None:
    #          start  0   1   2   3
    units = [[-1, 5, 7, 9], [3, 5, -1, -1], [3, 5, 7, -1], [3, -1, 7, -1], [3, 5, 7, 8]]
    since = {e.name: e.moment for e in layer(units).emergence if e.kind == "concept"}
    names = [concept.name for concept in PAPER.local]
    assert since[names[3]] == Moment(0, 10, at_start=False)
    assert since[names[5]] is None  # it was gone in epoch 2
    assert since[names[7]] == Moment(1, 20, at_start=False)
    assert since[names[8]] is None  # seen once
    assert since[names[9]] is None  # gone


def faces() -> FaceDictionary:
    return FaceDictionary.rendered(size=32, images=80)


def dissections(count: int) -> list[Dissection]:
    found = []
    for t in range(count):
        torch.manual_seed(t)
        network = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU())
        dissection = dissect(network, faces(), "1")
        info = {**dissection.info, "epoch": max(0, t - 1), "step": 7 * t, "at_start": t == 0}
        found.append(dataclasses.replace(dissection, info=info))
    return found


def test_a_timeline_reads_dissections_in_any_order_and_has_each_moment_once(tmp_path: Path) -> None:
    found = dissections(4)
    ordered = Timeline.of(found)
    assert [str(moment) for moment in ordered.moments] == ["start", "0", "1", "2"]
    assert Timeline.of([found[2], found[0], found[3], found[1], found[0]]) == ordered
    assert Timeline.of(found[:3]) != ordered
    assert pickle.loads(pickle.dumps(ordered)) == ordered
    for t, dissection in enumerate(found):
        read = dissection["1"]
        assert np.array_equal(ordered["1"].paired[t], read.paired_concepts)
        encoded = ordered["1"].measures["encoding_index"][t], read.statistics["encoding_index"]
        assert np.array_equal(*encoded, equal_nan=True)
        strongest = [u.concepts[0].name if u.concepts else None for u in read.units]
        assert [PAPER.local[c].name if c >= 0 else None for c in ordered["1"].concept[t]] == strongest
    files = write_timeline(ordered, tmp_path / "out")
    rows = list(csv.DictReader(files[0].open()))
    assert [row["moment"] for row in rows] == ["start", "0", "1", "2"]
    assert [int(row["births"]) for row in rows] == ordered["1"].births.tolist()
    assert files[-1].stat().st_size > 10_000
    rows = list(csv.DictReader(files[1].open()))
    index = ordered["1"].measures["shortcut_index"]
    assert len(rows) == np.isfinite(index).sum() > 0
    for row in rows[:: len(rows) // 50]:
        t, task, cue = int(row["step"]) // 7, PAPER.labels.index(row["task"]), PAPER.labels.index(row["cue"])
        assert float(row["index"]) == index[t, task, cue]


def test_every_unit_that_was_ever_paired_is_drawn() -> None:
    nose, mouth = PAPER.concept_index("nose"), PAPER.concept_index("mouth")
    early = [[3] * 60] * 2
    late = [
        timeline_picture(layer([[*early[0], -1, -1], [*early[1], *last]])) for last in ((nose, mouth), (mouth, nose))
    ]
    assert not np.array_equal(*late)  # of the last two, one is of the nose and one of the mouth, as are the counts


def test_pictures_of_odd_names_have_files_of_their_own(tmp_path: Path) -> None:
    found = {name: dataclasses.replace(layer([[-1]]), name=name) for name in ("a/b", "a_b", "A_b", "we$i$rd?", "")}
    names = [path.name for path in write_timeline(Timeline(found), tmp_path)[2:]]
    assert len({name.lower() for name in names}) == len(found) == len(list(tmp_path.glob("*.png")))
    assert not set("".join(names)) & set("/\\:*?$ ")


def test_what_does_not_belong_together_is_refused() -> None:
    found = dissections(1)[0]
    with pytest.raises(ValueError, match="at least one dissection"):
        Timeline.of([])
    torch.manual_seed(0)
    wider = dissect(nn.Sequential(nn.Conv2d(3, 9, 4, 4), nn.ReLU()), faces(), "1")
    with pytest.raises(ValueError, match="layer '1' had units 6 before and has 9"):
        Timeline.of([found, wider])
    with pytest.raises(ValueError, match="layers differ: 1 before, 0 now"):
        Timeline.of([found, dissect(nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU()), faces(), "0")])
    with pytest.raises(KeyError, match="no layer 'x'"):
        Timeline.of([found])["x"]


def with_shortcut(index: list[float], z: float = 5.0) -> LayerTimeline:
    found = layer([[-1]] * len(index))
    found.measures["shortcut_index"][:, MALE, GLASSES] = index
    found.measures["shortcut_index"][:, MALE + 1, GLASSES] = -np.array(index)
    found.measures["shortcut_z"][:, MALE, GLASSES] = np.where(np.array(index) != 0, z, 0)
    return found


def raised(alert: BiasAlert, found: LayerTimeline) -> list[int]:
    """The moments in which the alarm is raised anew."""
    return [t for t in range(len(found.moments)) if judge([alert], timeline(found.at(list(range(t + 1)))))[1]]


@pytest.mark.parametrize("concept", ["gender/Male", "gender"])
def test_an_alarm_is_raised_once_the_measure_has_held_and_again_after_a_break(concept: str) -> None:
    alert = BiasAlert(concept, cue="Eyeglasses")
    assert raised(alert, with_shortcut([0.0, 0.3, 0.1, 0.2, 0.3, 0.4, 0.1, 0.5, 0.5])) == [4, 8]
    assert raised(dataclasses.replace(alert, for_epochs=1), with_shortcut([0.0, 0.3, 0.1, 0.2])) == [1, 3]
    assert raised(dataclasses.replace(alert, index=0.35), with_shortcut([0.0, 0.3, 0.3, 0.4, 0.4])) == [4]
    assert raised(alert, with_shortcut([0.0, 0.5, 0.5, 0.5], z=1.5)) == []  # not significant
    assert raised(alert, with_shortcut([float("nan")] * 4)) == []
    assert raised(alert, with_shortcut([0.3, 0.45, 0.45, 0.5, 0.5])) == [4]  # it must have risen as much
    assert raised(alert, with_shortcut([-0.3, 0.1, 0.1, 0.1])) == []  # not from below


def test_several_dissections_of_an_epoch_count_as_one() -> None:
    found = with_shortcut([0.0, 0.5, 0.5, 0.5])
    moments = (found.moments[0], Moment(0, 5, False), Moment(0, 10, False), Moment(1, 15, False))
    assert raised(BiasAlert("gender", cue="Eyeglasses"), dataclasses.replace(found, moments=moments)) == [3]


def test_encoding_is_compared_with_the_start() -> None:
    found = layer([[-1]] * 4)
    k = [concept.name for concept in PAPER.global_].index("gender")
    found.measures["encoding_index"][:, k] = [0.4, 0.45, 0.7, 0.7]
    for name, reach in (("low", -0.1), ("high", 0.1)):
        found.measures[f"encoding_{name}"][:, k] = found.measures["encoding_index"][:, k] + reach
    assert raised(BiasAlert("gender"), found) == [3]
    for name, reach in (("low", -0.4), ("high", 0.3)):  # wide intervals
        found.measures[f"encoding_{name}"][:, k] = found.measures["encoding_index"][:, k] + reach
    assert raised(BiasAlert("gender"), found) == []


def test_an_alarm_says_what_it_is_about() -> None:
    alerts = [BiasAlert("gender", cue="Eyeglasses")]
    values, (alarm,) = judge(alerts, timeline(with_shortcut([0.0, 0.3, 0.41])))
    assert isinstance(alarm, Alarm)
    assert str(alarm) == (
        "bias: in layer 'body' Eyeglasses makes faces look like gender/Male (index 0.41, p = 5.7e-07), since epoch 0"
    )
    assert values == {"body": {"alert/gender-Eyeglasses/measure": 0.41, "alert/gender-Eyeglasses/raised": 1.0}}
    assert tuple(values["body"]) == alert_keys(alerts)
    assert judge(alerts, timeline(with_shortcut([0.0, 0.3, 0.41, 0.5])))[1] == []  # it was raised before


def test_shortcuts_are_drawn_once_and_if_noise_does_not_give_them() -> None:
    found = with_shortcut([0.0, 0.3, 0.5])
    index, error = found.measures["shortcut_index"], found.measures["shortcut_error"]
    error[:] = 0.1
    bright, dark = (PAPER.labels.index(f"skin_tone/{tone}") for tone in ("bright", "dark"))
    mirrored = np.array([0.1, 0.2, 0.4])
    for task, cue, sign in ((MALE, bright, 1), (MALE, dark, -1), (MALE + 1, bright, -1), (MALE + 1, dark, 1)):
        index[:, task, cue] = sign * mirrored
    index[:, MALE, PAPER.labels.index("Smiling")] = 0.15  # of an interval to -0.05
    index[-1, MALE, PAPER.labels.index("Goatee")] = np.nan
    figure = new_figure(4, 3)
    axes = figure.subplots()
    _shortcuts(axes, found)
    drawn = {text.get_text() for text in axes.get_legend().get_texts()}
    assert drawn in (
        {"Eyeglasses as gender/Male", f"skin_tone/{a} as gender/{b}"}
        for a, b in (("bright", "Male"), ("dark", "Female"))
    )
    error[:] = 1
    axes = figure.subplots()
    _shortcuts(axes, found)
    assert axes.get_legend() is None
    assert "noise" in axes.texts[0].get_text()


def test_each_pair_that_a_name_stands_for_is_judged_for_itself() -> None:
    found = with_shortcut([0.0] * 4)
    ages = [i for i, name in enumerate(PAPER.labels) if name.startswith("age/")]
    for t, age in enumerate(ages[:4]):  # each at one moment
        found.measures["shortcut_index"][t, age, GLASSES] = 0.5
        found.measures["shortcut_z"][t, age, GLASSES] = 9
    assert raised(BiasAlert("age", cue="Eyeglasses"), found) == []
    found.measures["shortcut_index"][1:, ages[0], GLASSES] = 0.9  # a larger one that is not significant
    found.measures["shortcut_index"][1:, ages[3], GLASSES] = 0.4
    found.measures["shortcut_z"][1:, ages[3], GLASSES] = 9
    assert raised(BiasAlert("age", cue="Eyeglasses"), found) == [2]
    found.measures["shortcut_z"][1:, ages[3], GLASSES] = 2.3  # p = 0.021, of four tests
    assert raised(BiasAlert("age", cue="Eyeglasses"), found) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"concept": "Eyeglasses"}, "must be a global one; known are age"),
        (
            {"concept": "gendre", "cue": "Eyeglasses"},
            "no concept or group 'gendre'; did you mean gender, gender/Male",
        ),
        ({"concept": "gender", "cue": "gender/Male"}, "of which it is a part"),
    ],
)
def test_alerts_on_what_is_not_known_are_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check([BiasAlert(**wrong)], PAPER)
    with pytest.raises(
        TypeError, match=r"alerts must be BiasAlert\('gender', ...\) or several of them, got \['gender'\]"
    ):
        HNDCallback(alerts=["gender"])  # type: ignore[list-item]
    for bad in ({"index": 0.0}, {"index": 1.0}, {"for_epochs": 0}, {"level": 0.0}, {"then": "shout"}):
        with pytest.raises(ValueError, match="|".join(bad)):
            BiasAlert("gender", **bad)
    with pytest.raises(ValueError, match="two alerts have the name 'gender'"):
        check([BiasAlert("gender"), BiasAlert("gender", index=0.5)], PAPER)


def test_the_command_reads_a_runs_folder_and_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    faces = FaceDictionary.rendered(size=runs.SIZE, images=60)
    keeping = ModelCheckpoint(tmp_path / "ckpt", save_top_k=-1, every_n_epochs=1)
    trainer = runs.trainer(tmp_path, HNDCallback(faces, "body.0"), keeping)
    trainer.fit(runs.Net(example=True), *runs.data())
    out = tmp_path / "out"
    assert main(["timeline", str(tmp_path), "--rule", "readme", "--out", str(out)]) == 0
    assert "body.0 (rule readme), 3 moments:" in capsys.readouterr().out
    of_files = Timeline.of(history(tmp_path / "hnd"), README)
    checkpoints = [str(path) for path in (tmp_path / "ckpt").glob("*.ckpt")]
    assert main(["timeline", *checkpoints, "--model", "runs:Net", "--size", "24", "32", "--layers", "body.0"]) == 0
    checkpoint, sized = checkpoints[0], ["--model", "runs:Net", "--size", "24", "32", "--layers", "body.0"]
    assert main(["timeline", checkpoint, *sized, "--rule", "released", "--out", str(tmp_path / "of released")]) == 0
    (file,) = (tmp_path / "of released" / "hnd").iterdir()
    assert Dissection.load(file).rule.quantile == RELEASED.quantile
    kept = {path: path.read_bytes() for path in (tmp_path / "hnd").iterdir()}
    words = ["timeline", *checkpoints, "--model", "runs:Net", "--size", "24", "32", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "holds dissections already, and none is written over" in capsys.readouterr().err
    assert kept == {path: path.read_bytes() for path in (tmp_path / "hnd").iterdir()}
    found = dissect_checkpoints(checkpoints, runs.Net.load_from_checkpoint, faces, layers="body.0")
    again = Timeline.of(found, README)
    assert again["body.0"] == of_files["body.0"].at([1, 2])  # all but the start, of which there is no checkpoint


class Unmade(runs.Net):
    """Cannot be made without being told what nobody has saved."""

    def __init__(self, width: int) -> None:
        super().__init__()


class Unable(runs.Net):
    """Takes no images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of order")


def test_the_command_names_what_models_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.trainer(tmp_path, max_epochs=1)
    run.fit(runs.Net(), *runs.data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    for model, size, message in (
        ("Unmade", ["24"], "cannot make test_timeline:Unmade from .* call save_hyperparameters"),
        ("Unable", ["24"], "out of order"),
        ("Unable", ["24", "32", "48"], "--size takes one number or two, got 24 32 48"),
    ):
        assert main(["timeline", str(tmp_path / "a.ckpt"), "--model", f"test_timeline:{model}", "--size", *size]) == 2
        assert re.search(message, capsys.readouterr().err)


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.folder,)


def test_of_checkpoints_each_step_counts_once_and_no_code_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.trainer(tmp_path, ModelCheckpoint(tmp_path, filename="{epoch}", save_last=True), max_epochs=1)
    run.fit(runs.Net(), *runs.data())
    run.save_checkpoint(tmp_path / "final.ckpt")  # the same weights, said to be of epoch 1
    assert list(moments(tmp_path.glob("*.ckpt"))) == [(0, 4)]
    harmful = torch.load(tmp_path / "last.ckpt", weights_only=True) | {"more": Harm(tmp_path / "harm")}
    torch.save(harmful, tmp_path / "harmful.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as torch loads before 2.6 where nothing is said
    assert main(["timeline", str(tmp_path / "harmful.ckpt"), "--model", "runs:Net", "--size", "24"]) == 2
    assert "no Lightning checkpoint of tensors and plain data" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b"], "one folder of a run, or files of checkpoints"),
        (["nowhere"], "there is no folder nowhere"),
        (["a.ckpt"], "say with --model"),
        (["a.ckpt", "--model", "runs"], "of the form MODULE:CLASS"),
        (["a.ckpt", "--model", "runs:Nothing"], "cannot import 'runs:Nothing'"),
    ],
)
def test_the_command_says_what_is_wrong(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["timeline", *words]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"broken\.ckpt is no Lightning checkpoint"):
        list(dissect_checkpoints([tmp_path / "broken.ckpt"], lambda _: nn.Identity(), faces()))
    with pytest.raises(ValueError, match="no checkpoint to dissect"):
        list(dissect_checkpoints([], lambda _: nn.Identity(), faces()))
