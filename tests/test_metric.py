"""DissectionMetric: streaming gives what the functions give on everything at once, and torchmetrics' contract holds."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from conftest import random_dictionary
from pair import Pair
from torch import Tensor

from lightning_hnd import PAPER, DissectionMetric, FaceDictionary, Ontology
from lightning_hnd.functional import concept_iou

UNITS, CELLS = 5, (4, 6)


def activations(dictionary: FaceDictionary, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random maps; the last unit is dead, the one before has ties everywhere."""
    maps = torch.randn(len(dictionary), UNITS, *CELLS, generator=torch.Generator().manual_seed(1), dtype=dtype)
    maps[:, -1] = 0.25
    maps[:, -2] = maps[:, -2].round()
    return maps


def run(metric: DissectionMetric, dictionary: FaceDictionary, maps: Tensor, batch_size: int) -> dict[str, Tensor]:
    for batch in dictionary.batches(batch_size):
        metric.update(maps[batch.index], batch)
    return metric.compute()


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=0, atol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("quantile", [0.005, 0.05, 0.4])
def test_statistics_equal_the_oracle(dictionary: FaceDictionary, quantile: float) -> None:
    maps = activations(dictionary)
    ours = run(DissectionMetric(quantile=quantile, num_local=dictionary.num_local), dictionary, maps, batch_size=5)
    local = (dictionary.source >= 0).numpy()
    values = maps.double().numpy()
    thresholds = np.quantile(values[local].transpose(1, 0, 2, 3).reshape(UNITS, -1), 1 - quantile, axis=1)
    np.testing.assert_array_equal(ours["threshold"], thresholds)

    batch = next(dictionary.batches(len(dictionary)))
    given = (
        maps.numpy(),
        thresholds,
        batch.masks.dense().numpy(),
        batch.mask_image.numpy(),
        batch.mask_concept.numpy(),
        38,
    )
    counted = np.stack([ours[name].numpy() for name in ("intersection", "firing", "mask", "mask_firing")])
    np.testing.assert_array_equal(counted, oracle.counts(*given))
    np.testing.assert_array_equal(ours["iou_labelled"], oracle.iou(*given, firing_only=False))
    np.testing.assert_array_equal(ours["iou_firing"], oracle.iou(*given, firing_only=True))

    peak, trough = values.max((2, 3)), values.min((2, 3))
    carries = np.zeros((len(dictionary), 38), bool)
    carries[batch.mask_image, batch.mask_concept] = True
    np.testing.assert_array_equal(ours["images_per_concept"], carries.sum(0))
    np.testing.assert_array_equal(ours["low"], trough[local].min(0).astype(np.float32))
    region = np.array(PAPER.concept_region)
    for u in range(UNITS):
        for r in range(len(PAPER.regions)):
            images = local & carries[:, region == r].any(1)
            truth = oracle.responses(
                peak[images, u], trough[local, u].min(), peak[local, u].max(), carries[images][:, region == r]
            )
            np.testing.assert_allclose(ours["response"][u].numpy()[region == r], truth, rtol=0, atol=1e-12)
    gender = dictionary.group[:, PAPER.global_index("gender")].numpy()
    shown = gender >= 0
    truth = oracle.group_affinity(peak[shown], trough[shown].min(0), peak[shown].max(0), gender[shown], 2)
    first = PAPER.group_offsets[PAPER.global_index("gender")]
    np.testing.assert_allclose(ours["group_probability"][:, first : first + 2], truth, rtol=0, atol=1e-12)
    assert ours["dead"].tolist() == [False] * (UNITS - 1) + [True]


def test_rendered_faces_are_counted_as_the_oracle_counts_them() -> None:
    faces = FaceDictionary.rendered(size=(30, 23), images=32)  # 5 x 4 cells divide neither side
    torch.manual_seed(0)
    with torch.no_grad():
        maps = torch.cat(
            [torch.nn.functional.conv2d(batch.images, torch.randn(4, 3, 6, 6), stride=6) for batch in faces.batches()]
        )
    ours = run(DissectionMetric(quantile=0.2, num_local=faces.num_local), faces, maps, batch_size=9)
    local = faces.source >= 0
    values = maps[local].double().numpy().transpose(1, 0, 2, 3).reshape(4, -1)
    thresholds = np.quantile(values, 0.8, axis=1)
    np.testing.assert_array_equal(ours["threshold"], thresholds)
    assert thresholds.min() < 0 < thresholds.max()
    batch = next(faces.batches(len(faces)))
    masks = batch.masks.dense().numpy(), batch.mask_image.numpy(), batch.mask_concept.numpy(), len(PAPER.local)
    counted = np.stack([ours[name].numpy() for name in ("intersection", "firing", "mask", "mask_firing")])
    np.testing.assert_array_equal(counted, oracle.counts(maps.numpy(), thresholds, *masks))


def test_exemplars_are_the_highest_peaks_that_fire(dictionary: FaceDictionary) -> None:
    maps = activations(dictionary)
    metric = DissectionMetric(quantile=0.05, num_local=dictionary.num_local, num_exemplars=3)
    ours = run(metric, dictionary, maps, batch_size=4)
    local = (dictionary.source >= 0).nonzero().flatten()
    peak = maps[local].flatten(2).amax(-1)
    for u in range(3):  # those without ties
        firing = local[peak[:, u] > ours["threshold"][u]]
        best = sorted(firing.tolist(), key=lambda i: -float(maps[i, u].max()))[:3]
        assert ours["exemplar_image"][u].tolist() == best + [-1] * (3 - len(best))
        assert torch.equal(ours["exemplar_map"][u, : len(best)], maps[best, u])
    assert ours["exemplar_image"][-1].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_counted_in_full(dictionary: FaceDictionary, dtype: torch.dtype) -> None:
    maps = activations(dictionary, dtype)
    ours = run(DissectionMetric(num_local=dictionary.num_local), dictionary, maps, 8)
    assert_same(ours, run(DissectionMetric(num_local=dictionary.num_local), dictionary, maps.float(), 8))
    batch = next(dictionary.batches(len(dictionary)))
    given = batch.masks.dense(), batch.mask_image, batch.mask_concept, len(PAPER.local)
    iou = concept_iou(maps, ours["threshold"], *given)
    assert torch.equal(iou, ours["iou_labelled"])


def test_a_unit_that_varies_over_group_faces_only_is_not_dead(dictionary: FaceDictionary) -> None:
    maps = activations(dictionary)
    maps[dictionary.source >= 0, 0] = 0.5
    assert run(DissectionMetric(), dictionary, maps, 8)["dead"].tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("num_local", [None, 0])
def test_a_dictionary_of_groups_alone_is_served(dictionary: FaceDictionary, num_local: int | None) -> None:
    groups = dictionary.subset((dictionary.source < 0).nonzero().flatten())
    maps = activations(dictionary)[dictionary.source < 0]
    ours = run(DissectionMetric(num_local=num_local), groups, maps, 3)
    assert ours["threshold"].isinf().all()
    assert not ours["iou_labelled"].any()
    whole = run(DissectionMetric(), dictionary, activations(dictionary), 8)
    assert torch.equal(ours["group_probability"], whole["group_probability"])


def test_faces_without_any_mask_are_served(dictionary: FaceDictionary) -> None:
    bare = (torch.bincount(dictionary.mask_image, minlength=len(dictionary)) == 0).nonzero().flatten()
    empty = replace(
        dictionary,
        masks=dictionary.masks[:0],
        mask_image=dictionary.mask_image[:0],
        mask_concept=dictionary.mask_concept[:0],
    )
    assert len(bare) < len(empty)
    ours = run(DissectionMetric(num_local=empty.num_local), empty, activations(empty), 8)
    assert not ours["intersection"].any()
    assert ours["threshold"].isfinite().all()


def test_one_unit_alone_is_what_it_is_among_others(dictionary: FaceDictionary) -> None:
    maps = activations(dictionary)
    metric = DissectionMetric(num_local=dictionary.num_local, quantile=0.1)
    alone = run(metric, dictionary, maps[:, 1:2], 4)
    among = run(DissectionMetric(num_local=dictionary.num_local, quantile=0.1), dictionary, maps, 4)
    for name, value in among.items():
        assert alone[name].ndim == value.ndim, name
        if name not in ("images_per_concept", "images_per_group") and value.shape[0] == maps.shape[1]:
            assert torch.equal(alone[name], value[1:2]), name
    assert metric.compute()["dead"].shape == (1,)  # as kept from before
    assert pickle.loads(pickle.dumps(metric)).compute()["dead"].shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_and_pruning_change_nothing(dictionary: FaceDictionary, dtype: torch.dtype) -> None:
    maps = activations(dictionary, dtype)
    whole = run(DissectionMetric(), dictionary, maps, batch_size=len(dictionary))
    for batch_size in (1, 7):
        for num_local in (None, dictionary.num_local):
            ours = run(DissectionMetric(num_local=num_local), dictionary, maps, batch_size)
            assert_same(ours, whole)


def test_pruning_keeps_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_hnd.measuring.kept_maps._LITTLE", 0)
    dictionary = random_dictionary(images=120)
    metric = DissectionMetric(num_local=dictionary.num_local)
    maps = torch.randn(len(dictionary), UNITS, *CELLS, generator=torch.Generator().manual_seed(0))
    run(metric, dictionary, maps, batch_size=6)
    assert metric.kept_bytes < maps.nbytes / 3 * dictionary.num_local / len(dictionary)


def twice(metric: DissectionMetric, dictionary: FaceDictionary, maps: Tensor, batch_size: int) -> dict[str, Tensor]:
    """Two passes, the maps let go in the middle of the first."""
    for batch in dictionary.batches(batch_size):
        metric.update(maps[batch.index], batch)
        if batch.index[0] >= batch_size:
            metric.let_go()
    assert metric.kept_bytes == 0
    metric.fix_thresholds()
    return run(metric, dictionary, maps, batch_size)


@pytest.mark.parametrize("quantile", [0.005, 0.3])
def test_two_passes_give_what_one_gives(dictionary: FaceDictionary, quantile: float) -> None:
    maps = activations(dictionary)
    one = run(DissectionMetric(quantile=quantile), dictionary, maps, batch_size=5)
    for num_local in (None, dictionary.num_local):
        metric = DissectionMetric(quantile=quantile, num_local=num_local)
        assert_same(twice(metric, dictionary, maps, 5), one)
        metric.reset()
        assert_same(run(metric, dictionary, maps, 5), one)


def test_a_second_pass_over_other_images_is_refused(dictionary: FaceDictionary) -> None:
    maps, metric = activations(dictionary), DissectionMetric(num_local=dictionary.num_local)
    twice(metric, dictionary, maps, 5)
    with pytest.raises(ValueError, match="the second pass must show the same images as the first, each once"):
        run(metric, dictionary, maps, 5)


def test_more_batches_may_follow_a_result(dictionary: FaceDictionary) -> None:
    maps, metric = activations(dictionary), DissectionMetric()
    batches = list(dictionary.batches(5))
    for batch in batches[:2]:
        metric.update(maps[batch.index], batch)
    metric.compute()
    for batch in batches[2:]:
        metric.update(maps[batch.index], batch)
    assert_same(metric.compute(), run(DissectionMetric(), dictionary, maps, 5))


def test_the_order_of_the_images_does_not_matter(dictionary: FaceDictionary) -> None:
    maps = activations(dictionary)
    ours = run(DissectionMetric(num_local=dictionary.num_local), dictionary, maps, 5)
    order = torch.randperm(len(dictionary), generator=torch.Generator().manual_seed(2))
    shuffled = dictionary.subset(order)
    again = run(DissectionMetric(num_local=dictionary.num_local), shuffled, maps[order], 5)
    place = torch.cat([order, torch.tensor([-1])])
    again["exemplar_image"] = place[again["exemplar_image"]]  # -1 picks the last: -1
    for name in ("exemplar_image", "exemplar_map"):  # ties between images go by position
        ours[name], again[name] = ours[name][:3], again[name][:3]
    assert_same(again, ours, tolerance=1e-12)


def test_reset_clone_and_pickle(dictionary: FaceDictionary) -> None:
    maps = activations(dictionary)
    metric = DissectionMetric(num_local=dictionary.num_local)
    first = run(metric, dictionary, maps, 8)
    assert_same(pickle.loads(pickle.dumps(metric)).compute(), first)
    twin = metric.clone()
    metric.reset()
    assert metric.kept_bytes == 0
    assert_same(twin.compute(), first)
    other = torch.randn(len(dictionary), 3, 2, 2)  # another shape is another layer's: fine after a reset
    assert run(metric, dictionary, other, 8)["threshold"].shape == (3,)
    metric.reset()
    assert_same(run(metric, dictionary, maps, 8), first)


def test_bad_activations_are_named(dictionary: FaceDictionary) -> None:
    maps, batch = activations(dictionary), next(dictionary.batches(8))
    metric = DissectionMetric()
    with pytest.raises(ValueError, match=r"activations must be \[8, U, h, w\]"):
        metric.update(maps[:7], batch)
    metric.update(maps[:8], batch)
    with pytest.raises(ValueError, match=r"maps \[U, h, w\] were \[5, 4, 6\] and are now \[5, 4, 5\]"):
        metric.update(maps[:8, ..., :5], batch)
    with pytest.raises(ValueError, match=r"maps were torch.float32 and are now torch.float64"):
        metric.update(maps[:8].double(), batch)
    maps[3, 2, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 5 units have activations that are NaN or infinite.* unit 2"):
        metric.update(maps[:8], batch)
    maps[3, 2, 0, :2] = torch.tensor([5e37, -5e37])  # the difference of such differences is infinite
    with pytest.raises(ValueError, match=r"1 of 5 units have activations that are .* or nearly .* unit 2"):
        metric.update(maps[:8], batch)
    with pytest.raises(ValueError, match="quantile must lie between 0 and 1"):
        DissectionMetric(quantile=2)


def test_batches_of_another_dictionary_are_refused(dictionary: FaceDictionary) -> None:
    maps, metric = activations(dictionary), DissectionMetric()
    metric.update(maps[:8], next(dictionary.batches(8)))
    metric.update(maps[:8], next(dictionary.subset(range(len(dictionary))).batches(8)))  # equal labels are the same
    with pytest.raises(ValueError, match=r"the batches are of two dictionaries; use a metric for each, or reset\(\)"):
        metric.update(maps[:8], next(dictionary.subset(range(8)).batches(8)))
    with pytest.raises(ValueError, match="the batches speak of other concepts than the metric; make it with ontology="):
        DissectionMetric(Ontology(PAPER.local[:3], ())).update(maps[:8], next(dictionary.batches(8)))


def test_updates_may_go_on_outside_inference_mode(dictionary: FaceDictionary) -> None:
    maps, metric = activations(dictionary), DissectionMetric()
    first, *rest = dictionary.batches(8)
    with torch.inference_mode():
        metric.update(maps[first.index], first)
    for batch in rest:
        metric.update(maps[batch.index], batch)
    with torch.inference_mode():
        metric.let_go()
        metric.fix_thresholds()
    assert_same(run(metric, dictionary, maps, 8), run(DissectionMetric(), dictionary, maps, 8))


def test_a_wrong_number_of_images_is_named(dictionary: FaceDictionary) -> None:
    metric = DissectionMetric(num_local=99)
    with pytest.raises(ValueError, match="has seen 16 images with local labels; 99 expected"):
        run(metric, dictionary, activations(dictionary), 8)


def test_activations_are_released_from_the_graph(dictionary: FaceDictionary) -> None:
    batch = next(dictionary.batches(8))
    metric = DissectionMetric()
    metric.update(activations(dictionary)[:8].requires_grad_(), batch)
    assert not any(kept.maps.requires_grad for kept in metric._kept.together())


def synced(way: str) -> dict[str, Tensor]:
    """What a process finds that shows every second batch, with the maps of the others counted by the other one."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    dictionary = random_dictionary()
    maps = activations(dictionary)
    metric = DissectionMetric(num_local=None if way == "number unknown" else dictionary.num_local)
    for _ in range(2 if way == "two passes" else 1):
        for batch in dictionary.batches(5, shard=rank, num_shards=world):
            metric.update(maps[batch.index], batch)
        if way == "two passes":
            metric.let_go()
            metric.fix_thresholds()
    return metric.compute()


@pytest.mark.parametrize("way", ["one pass", "two passes", "number unknown"])
def test_two_processes_find_what_one_finds(pair: Pair, way: str) -> None:
    dictionary = random_dictionary()
    one = run(DissectionMetric(num_local=dictionary.num_local), dictionary, activations(dictionary), 5)
    for two in pair.results(synced, way):
        for name in ("threshold", "intersection", "firing", "mask", "mask_firing", "exemplar_image"):
            assert torch.equal(two[name], one[name]), name
        assert_same(two, one, tolerance=1e-12)
