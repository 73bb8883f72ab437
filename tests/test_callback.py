"""HNDCallback through a real Trainer: what it logs, when, and that training never notices."""

from __future__ import annotations

import csv
import math
import re
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import random_dictionary
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from runs import SIZE, TENSORS_ONLY, Net, data, trainer
from torch import Tensor, nn

from lightning_hnd import ABOVE_CHANCE, README, Dissection, HNDCallback, Timeline, dissect
from lightning_hnd.evidence.fresh import SEEDS
from lightning_hnd.report import scalars, scalars_over_time

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def every_scalar(dissection: Dissection, timeline: Timeline) -> dict[str, float]:
    both = scalars(dissection.with_rule(README)) | scalars(dissection.with_rule(ABOVE_CHANCE))
    return both | scalars_over_time(timeline)


class Watch(L.Callback):
    """Asserts at each validation what other callbacks would find."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.timeline: Timeline | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.timeline = Timeline.of([dissect(pl_module, random_dictionary(), "body.2", fresh_seeds=SEEDS)])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            hnd = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("hnd/")}
            assert hnd.pop("hnd/seconds") > 0
            now = dissect(pl_module, random_dictionary(), "body.2", fresh_seeds=SEEDS)
            self.timeline = self.timeline.then(now)
            expected = every_scalar(now, self.timeline)
            assert hnd == pytest.approx(expected, nan_ok=True)
            self.seen.append(hnd)


def test_scalars_are_those_of_the_model_of_that_moment_under_the_same_keys(tmp_path: Path) -> None:
    watch, callback = Watch(), HNDCallback(random_dictionary())
    L.seed_everything(0, verbose=False)
    logger = CSVLogger(tmp_path, name="", version="")
    net = Net()
    start = dissect(net, random_dictionary(), "body.2", fresh_seeds=SEEDS)
    at_start = every_scalar(start, Timeline.of([start]))
    trainer(tmp_path, callback, watch, max_epochs=3, logger=logger).fit(net, *data())
    assert len(watch.seen) == 3
    assert len({frozenset(seen) for seen in watch.seen}) == 1
    assert "hnd/body.2/readme/interpretable_fraction" in watch.seen[0]
    assert "hnd/body.2/readme/group/gender/Female" in watch.seen[0]
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["hnd/body.2/readme/dead_units"]]
    assert [int(row["step"]) for row in rows] == [0, 3, 7, 11]  # Lightning counts the epoch's end as its last step
    for row, expected in zip(rows, [at_start, *watch.seen], strict=True):
        assert {k: float(row[k]) for k in expected} == pytest.approx(expected, nan_ok=True)
        nan = {key for key, value in expected.items() if math.isnan(value)}
        assert nan == {key for key in expected if "/bias/" in key}  # the dictionary has four men


def test_each_dissection_is_a_file_beside_the_logs(tmp_path: Path) -> None:
    callback = HNDCallback(random_dictionary(), layers="body.*", every_n_epochs=2)
    logger = CSVLogger(tmp_path, name="", version="")
    trainer(tmp_path, callback, max_epochs=4, logger=logger).fit(Net(), *data())
    files = sorted(path.name for path in (tmp_path / "hnd").glob("*.hnd"))
    assert files == ["epoch=0000-step=00000004.hnd", "epoch=0002-step=00000012.hnd", "start-step=00000000.hnd"]
    latest = Dissection.load(tmp_path / "hnd" / files[1])
    assert latest == callback.latest
    assert list(latest.layers) == ["body.0", "body.1", "body.2"]
    assert (latest.info["epoch"], latest.info["step"], latest.info["at_start"]) == (2, 12, False)
    assert Dissection.load(tmp_path / "hnd" / files[2]) == callback.baseline


def test_checkpoints_and_early_stopping_work_on_the_scalars(tmp_path: Path) -> None:
    key = "hnd/body.2/readme/dead_units"
    keep = ModelCheckpoint(tmp_path, monitor=key, filename="best")
    stop = EarlyStopping(key, patience=1, min_delta=100)
    run = trainer(tmp_path, HNDCallback(random_dictionary()), keep, stop, max_epochs=9)
    run.fit(Net(), *data())
    assert run.current_epoch == 2
    assert keep.best_model_score == run.callback_metrics[key]


def test_a_stale_or_unknown_monitor_is_refused_before_training(tmp_path: Path) -> None:
    stop = EarlyStopping("hnd/body.2/readme/mean_iou")
    with pytest.raises(
        ValueError, match=r"EarlyStopping monitors 'hnd/body.2/readme/mean_iou', .* every 3 epochs only"
    ):
        trainer(tmp_path, HNDCallback(random_dictionary(), every_n_epochs=3), stop).fit(Net(), *data())
    stop = EarlyStopping("hnd/body.2/readme/mean_iuo")
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not log; did you mean hnd/body.2/readme/mean_iou"):
        trainer(tmp_path, HNDCallback(random_dictionary()), stop).fit(net, *data())
    stop = EarlyStopping("hnd/body.2/above_chance/bias/ethnicity/index")
    with pytest.raises(ValueError, match=r"/index', which is NaN: the dictionary has not enough faces to tell"):
        trainer(tmp_path, HNDCallback(random_dictionary()), stop).fit(net, *data())
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_size_and_channels_are_learnt_from_the_run(tmp_path: Path, folder: Path, example, sanity, channels) -> None:
    callback = HNDCallback(folder)
    run = trainer(tmp_path, callback, num_sanity_val_steps=sanity, max_epochs=1)
    run.fit(Net(channels, example), *data(channels))
    assert callback.dictionary is not None
    assert (callback.dictionary.size, callback.dictionary.channels) == (SIZE, channels)
    assert callback.baseline is not None
    assert callback.baseline.info["step"] == 0


def test_the_built_in_faces_are_called_drawings(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="built-in dictionary are drawings") as caught:
        trainer(tmp_path, HNDCallback(), max_epochs=1).fit(Net(), *data())
    assert sum("drawings" in str(w.message) for w in caught) == 1


@pytest.mark.parametrize(("scale", "far"), [(1.0, False), (0.5, True), (127.5, True)])
def test_images_unlike_the_models_own_are_warned_of(tmp_path: Path, scale: float, far: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, HNDCallback(random_dictionary()), max_epochs=1).fit(Net(), *data(scale=scale))
    said = [str(w.message) for w in caught if "unlike those" in str(w.message)]
    assert len(said) == far
    if far:
        low = data(scale=scale)[0].dataset.tensors[0][:8].min()
        assert f"training:   24 x 32, range {low:.2f} to " in said[0]
        assert "range -1.00 to 1.00" in said[0]


def test_a_resumed_run_keeps_its_first_baseline(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", save_top_k=-1)
    first = HNDCallback(random_dictionary())
    L.seed_everything(0, verbose=False)
    trainer(tmp_path, first, keep, max_epochs=1).fit(Net(), *data())
    assert first.baseline is not None
    second = HNDCallback(random_dictionary())
    run = trainer(tmp_path, second, max_epochs=2)
    run.fit(Net(), *data(), ckpt_path=tmp_path / "last.ckpt", **TENSORS_ONLY)
    assert second.baseline == first.baseline  # read from the run's files
    at_start = every_scalar(first.baseline, Timeline.of([first.baseline]))
    assert second.state_dict()["baseline"] == pytest.approx(at_start, rel=0, abs=0, nan_ok=True)
    assert second.latest is not None
    assert second.latest.info["epoch"] == 1


def test_a_callback_serves_run_after_run(tmp_path: Path) -> None:
    callback = HNDCallback(random_dictionary())
    baselines = []
    for seed in range(2):
        L.seed_everything(seed, verbose=False)
        trainer(tmp_path / str(seed), callback, max_epochs=1).fit(Net(), *data())
        baselines.append(callback.baseline)
        assert callback.dictionary is not None
        assert len(list((tmp_path / str(seed) / "hnd").glob("*.hnd"))) == 2
    assert baselines[0] != baselines[1]


def test_two_callbacks_keep_out_of_each_others_way(tmp_path: Path) -> None:
    first, second = (HNDCallback(random_dictionary(), layers=layer) for layer in ("body.0", "body.2"))
    run = trainer(tmp_path, first, second, max_epochs=1)
    run.fit(Net(), *data())
    for callback, folder, layer in ((first, "hnd", "body.0"), (second, "hnd-2", "body.2")):
        assert Dissection.load(tmp_path / folder / "epoch=0000-step=00000004.hnd") == callback.latest
        assert f"hnd/{layer}/readme/mean_iou" in run.callback_metrics


@pytest.mark.parametrize("key", ["hnd/body.0/readme/mean_iou", "hnd/body.2/readme/mean_iou", "hnd/seconds-2"])
def test_what_one_of_two_callbacks_logs_can_be_monitored(tmp_path: Path, key: str) -> None:
    pair = (HNDCallback(random_dictionary(), layers=layer) for layer in ("body.0", "body.2"))
    keep = ModelCheckpoint(tmp_path, monitor=key)
    run = trainer(tmp_path, *pair, keep, max_epochs=1)
    run.fit(Net(), *data())
    assert keep.best_model_score == run.callback_metrics[key]


@pytest.mark.parametrize("dictionaries", [(False, False), (True, False), (False, True)])
def test_what_none_of_two_callbacks_logs_is_refused_before_the_first_step(
    tmp_path: Path, dictionaries: tuple[bool, bool]
) -> None:
    """Also where one of them learns only from the first batch of what size its faces are to be."""
    pair = (
        HNDCallback(random_dictionary() if given else None, layers=layer, max_images=40, fresh_seeds=())
        for given, layer in zip(dictionaries, ("body.0", "body.2"), strict=True)
    )
    stop = EarlyStopping("hnd/body.2/readme/mean_iuo")
    run = trainer(tmp_path, *pair, stop, num_sanity_val_steps=0)
    with pytest.raises(ValueError, match=r"does not log; did you mean hnd/body.2/readme/mean_iou"):
        run.fit(Net(), *data())
    assert run.global_step == 0


def test_two_callbacks_that_would_log_one_key_are_refused(tmp_path: Path) -> None:
    pair = (HNDCallback(random_dictionary(seed=seed)) for seed in (0, 1))
    with pytest.raises(ValueError, match=r"two HNDCallbacks of this Trainer would log 'hnd/body.2/above_chance/"):
        trainer(tmp_path, *pair).fit(Net(), *data())


def test_what_the_forward_logs_of_the_dictionary_goes_nowhere(tmp_path: Path) -> None:
    class Talkative(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.log("brightness", x.mean(), on_step=True, on_epoch=True)
            return super().forward(x)

    seen = []
    for callbacks in ((), (HNDCallback(random_dictionary()),)):
        run = trainer(tmp_path, *callbacks, max_epochs=1)
        L.seed_everything(0, verbose=False)
        run.fit(Talkative(), *data())
        seen.append(run.callback_metrics["brightness_epoch"])
    assert torch.equal(*seen)


def test_fitting_after_validating_works(tmp_path: Path) -> None:
    callback = HNDCallback(random_dictionary())
    run, net = trainer(tmp_path, callback, max_epochs=1), Net()
    run.validate(net, data()[1], verbose=False)
    run.fit(net, *data())
    baseline = callback.baseline
    assert baseline is not None
    run.fit_loop.max_epochs = 2
    run.fit(net, *data())  # goes on: the first baseline stays
    assert callback.baseline is baseline
    assert len(list((tmp_path / "hnd").glob("start-*"))) == 1


def test_a_resumed_run_is_checked_before_its_first_step(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last")
    trainer(tmp_path, HNDCallback(random_dictionary()), keep, max_epochs=1).fit(Net(), *data())
    net = Net()
    stop = EarlyStopping("hnd/body.2/readme/mean_iuo")
    run = trainer(tmp_path, HNDCallback(random_dictionary()), stop, max_epochs=2)
    with pytest.raises(ValueError, match="which HNDCallback does not log"):
        run.fit(net, *data(), ckpt_path=tmp_path / "last.ckpt", **TENSORS_ONLY)
    assert run.global_step == 4


def test_a_plateau_scheduler_on_a_stale_or_unknown_key_is_refused(tmp_path: Path) -> None:
    class Scheduled(Net):
        monitor = ""

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": self.monitor}}

    net = Scheduled()
    net.monitor = "hnd/body.2/readme/mean_iou"
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau monitors .* at validation, and this run has none"):
        trainer(tmp_path, HNDCallback(random_dictionary()), limit_val_batches=0).fit(net, *data())
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau monitors .* every 2 epochs only"):
        trainer(tmp_path, HNDCallback(random_dictionary(), every_n_epochs=2)).fit(net, *data())
    net.monitor = "hnd/body.2/readme/mean_iuo"
    with pytest.raises(ValueError, match="ReduceLROnPlateau monitors .* does not log"):
        trainer(tmp_path, HNDCallback(random_dictionary())).fit(net, *data())


@pytest.mark.skipif(not hasattr(L.pytorch.callbacks, "EMAWeightAveraging"), reason="since lightning 2.6")
def test_averaged_weights_are_dissected_where_they_are_validated(tmp_path: Path) -> None:
    class Seen(Net):
        def __init__(self) -> None:
            super().__init__()
            self.of: list[Tensor] = []

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.of.append(self.body[0].weight.clone())
            super().validation_step(batch, index)

    def forward(net: Seen, images: Tensor) -> None:
        dissected.append(net.body[0].weight.clone())
        net(images)

    for late in (False, True):
        dissected: list[Tensor] = []
        callback, net = HNDCallback(random_dictionary(), forward_fn=forward), Seen()
        pair = [callback, L.pytorch.callbacks.EMAWeightAveraging(decay=0.5)]
        run = trainer(tmp_path, *(pair[::-1] if late else pair), max_epochs=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.fit(net, *data())
        assert torch.equal(dissected[-1], net.of[-1]) is not late
        assert any("EMAWeightAveraging stands before" in str(warning.message) for warning in caught) is late


@pytest.mark.parametrize("key", ["hnd/body.2/readme/mean_iou", "hnd/seconds"])
def test_what_is_measured_at_validation_can_only_be_monitored_where_there_is_one(tmp_path: Path, key: str) -> None:
    stop = EarlyStopping(key, patience=9)
    run = trainer(tmp_path, HNDCallback(random_dictionary()), stop, limit_val_batches=0)
    with pytest.raises(ValueError, match=r"EarlyStopping monitors .* at validation, and this run has none"):
        run.fit(Net(), *data())
    assert run.global_step == 0
    run = trainer(tmp_path, HNDCallback(random_dictionary(), at_train_epoch_end=True), stop, limit_val_batches=0)
    run.fit(Net(), *data())
    assert run.global_step == 8


def test_a_run_without_validation_is_told(tmp_path: Path) -> None:
    callback = HNDCallback(random_dictionary())
    with pytest.warns(UserWarning, match="dissects at validation, and this run has none"):
        trainer(tmp_path, callback, max_epochs=1, limit_val_batches=0).fit(Net(), *data())
    assert callback.baseline is not None
    assert callback.latest is None


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"size": "224"}, TypeError, "size must be a whole number or two, (height, width), got '224'"),
        ({"size": (64, 64, 3)}, TypeError, "got (64, 64, 3)"),
        ({"size": (64, 0)}, ValueError, "size must be positive, got (64, 0)"),
        ({"std": 0.0}, ValueError, "std must be positive, got (0.0,)"),
        ({"mean": (0.5, 0.5)}, ValueError, "mean has 2 values for images of 3 channels"),
        ({"dictionary": 5}, TypeError, "dictionary must be a FaceDictionary or the path of one, got 5"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written(wrong: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        HNDCallback(**wrong)


def test_bad_settings_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no Face Dictionary at nowhere"):
        HNDCallback("nowhere")
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        HNDCallback(every_n_epochs=0)
    with pytest.raises(ValueError, match="quantile must lie between 0 and 1"):
        HNDCallback(quantile=0)
    module = Net().body
    for layers, kind in ((module, "Sequential"), (module[0], "Conv2d"), (["body.0", module], "Sequential"), (3, "int")):
        with pytest.raises(TypeError, match=f"such as 'backbone.layer4', and a {kind} is none; .*named_modules"):
            HNDCallback(layers=layers)
    with pytest.raises(ValueError, match="layers is empty"):
        HNDCallback(layers=[])
    for grid in (14, (14,), (0, 4)):
        with pytest.raises(ValueError, match=r"grid must be \(rows, columns\), each at least 1, got "):
            HNDCallback(grid=grid)
    for alerts in (None, "gender", ["gender"], {"concept": "gender"}):
        with pytest.raises(TypeError, match=r"alerts must be BiasAlert\('gender', ...\) or several of them, got "):
            HNDCallback(alerts=alerts)
    with pytest.raises(ValueError, match=r"size=64 is given, but the FaceDictionary has its own: \(24, 32\)"):
        HNDCallback(random_dictionary(), size=64)
    with pytest.raises(ValueError, match=r"std=1 is given, but the FaceDictionary has its own: \(0.5, 0.5, 0.5\)"):
        HNDCallback(random_dictionary(), std=1)
    with pytest.raises(ValueError, match="no layer matches 'boddy'"):
        trainer(tmp_path, HNDCallback(random_dictionary(), layers="boddy")).fit(Net(), *data())
    (folder / "Attributes.csv").write_text("image,labels\nattributes/9/original.png,\n")
    with pytest.raises(FileNotFoundError, match=r"9/original\.png"):
        trainer(tmp_path, HNDCallback(folder)).fit(Net(example=True), *data())


def test_a_layer_out_of_reach_is_named_before_the_first_step(tmp_path: Path) -> None:
    class WithTeacher(Net):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Conv2d(3, 3, 1)

    net = WithTeacher()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="layer 'teacher' never fired its hook"):
        trainer(tmp_path, HNDCallback(random_dictionary(), layers="teacher")).fit(net, *data())
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_validation_on_its_own_dissects(tmp_path: Path) -> None:
    callback: HNDCallback = HNDCallback(random_dictionary())
    metrics = trainer(tmp_path, callback).validate(Net(), data()[1], verbose=False)
    assert "hnd/body.2/readme/interpretable_units" in metrics[0]
