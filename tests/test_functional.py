"""The fast functions against a naive oracle, closed forms, and invariances that must hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from threading import Barrier, Thread

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.functional import (
    activation_threshold,
    concept_affinity,
    concept_iou,
    count_overlap,
    group_affinity,
    host,
    mid_ranks,
    overlap,
    upsample,
)
from lightning_hnd.functional.interpolation import firing_area
from lightning_hnd.functional.ranks import ranks_and_step
from lightning_hnd.functional.threads import side_by_side

CONCEPTS = 5


def random_masks(images: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of every sort: blobs, single pixels, empty and full ones; some images carry none."""
    carries = torch.rand(images, CONCEPTS, generator=generator) < 0.5
    carries[0] = False
    image, concept = carries.nonzero(as_tuple=True)
    order = torch.randperm(len(image), generator=generator)  # masks come in any order
    image, concept = image[order], concept[order]
    masks = torch.rand(len(image), *size, generator=generator) < torch.rand(len(image), 1, 1, generator=generator)
    masks[::7] = False
    masks[1::7] = True
    return masks, image, concept


def count_both_ways(maps: Tensor, thresholds: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    masks, image, concept = random_masks(len(maps), size, torch.Generator().manual_seed(3))
    fires = maps.flatten(2).amax(-1) > thresholds
    i, u = fires.nonzero(as_tuple=True)
    cut = PackedMasks.pack(masks).cut((maps.shape[2], maps.shape[3]))
    ours = count_overlap(maps[i, u], u, i, thresholds, cut, image, concept, CONCEPTS)
    truth = oracle.counts(maps.numpy(), thresholds.numpy(), masks.numpy(), image.numpy(), concept.numpy(), CONCEPTS)
    return np.stack([count.numpy() for count in ours]), truth


SIZES = [
    ((4, 4), (16, 16)),
    ((3, 5), (17, 29)),  # neither square nor dividing
    ((2, 1), (40, 37)),  # tiles wider than a word
    ((1, 1), (6, 5)),
    ((9, 8), (5, 4)),  # maps larger than the image
    ((7, 7), (7, 7)),
    ((5, 4), (12, 70)),
    ((3, 3), (9, 1)),
]


@pytest.mark.parametrize(("cells", "size"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_equal_the_oracle_to_the_last_pixel(cells, size, dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(4, 3, *cells, generator=generator, dtype=dtype)
    ours, truth = count_both_ways(maps, torch.tensor([-0.7, 0.1, 1.1], dtype=torch.float64), size)
    np.testing.assert_array_equal(ours, truth)
    assert truth[1].any()


@pytest.mark.parametrize(
    ("maps", "threshold"),
    [
        (torch.full((3, 1, 4, 4), 0.3), 0.3),  # constant, at the threshold: nothing is on
        (torch.full((3, 1, 4, 4), 0.3), math.nextafter(0.3, 0)),  # below float32's 0.3: all is on
        (torch.randint(0, 3, (5, 1, 4, 4), generator=torch.Generator().manual_seed(2)).float(), 1.0),  # ties
        (torch.randint(-3, 0, (5, 1, 4, 4), generator=torch.Generator().manual_seed(2)).float(), -2.0),
        # neighbours a few roundings apart: where a row crosses is decided by rounding alone
        (1 + torch.randint(0, 3, (5, 1, 4, 4), generator=torch.Generator().manual_seed(4)) * 2**-23, 1.0),
        (1 + torch.randint(0, 3, (5, 1, 4, 4), generator=torch.Generator().manual_seed(5)) * 2**-23, 1 + 2**-23),
    ],
)
def test_counts_at_ties_and_roundings(maps: Tensor, threshold: float) -> None:
    ours, truth = count_both_ways(maps, torch.tensor([threshold], dtype=torch.float64), (19, 50))
    np.testing.assert_array_equal(ours, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["plain", "offset", "steps", "sparse", "huge", "tiny", "roundings"])
def test_counts_equal_the_dense_form(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    for cells, size in [((5, 6), (40, 96)), ((7, 7), (50, 61)), ((3, 2), (64, 100)), ((12, 12), (36, 30))]:
        maps = torch.randn(40, 8, *cells, generator=generator, dtype=dtype)
        maps = {
            "plain": maps,
            "offset": 1000 + maps / 4096,  # few digits left for what differs
            "roundings": maps.sign() * 2 + maps.round() * torch.finfo(dtype).eps,  # rounding decides
            "steps": maps.round() * maps.sign().clamp(min=0),  # ties, zeros and negative zeros
            "sparse": maps.clamp(min=0),
            "huge": maps * torch.finfo(dtype).max / 4,  # differences overflow
            "tiny": maps * torch.finfo(dtype).tiny,  # differences are not held with full precision
        }[kind]
        levels = maps.transpose(0, 1).flatten(1).sort(dim=1).values[:, -60].double()
        levels[0] = 0.0
        masks, image, concept = random_masks(40, size, generator)
        cut = PackedMasks.pack(masks).cut(cells)
        i, unit = torch.ones(40, 8).nonzero(as_tuple=True)
        ours = count_overlap(maps.flatten(0, 1), unit, i, levels, cut, image, concept, CONCEPTS)
        fires = firing_area(maps.flatten(0, 1), levels.repeat(40), size).view(40, 8, *size)
        inside, firing = torch.zeros(2, 8, CONCEPTS, dtype=torch.int64)
        for m in range(len(masks)):
            inside[:, concept[m]] += (fires[image[m]] & masks[m]).sum((1, 2))
            firing[:, concept[m]] += fires[image[m]].sum((1, 2))
        assert torch.equal(ours.intersection, inside)
        assert torch.equal(ours.firing, firing)
        assert firing.any()


def test_count_bits() -> None:
    words = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=torch.Generator().manual_seed(0))
    assert host.count_bits(words).tolist() == [bin(w & (2**64 - 1)).count("1") for w in words.tolist()]


def test_what_numpy_does_torch_does_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 60, generator=generator).round(decimals=1)  # with ties
    values[0, :50] = -torch.inf
    words = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=generator)
    whole, group = (10 * values[1:].unsqueeze(2)).round(), torch.randint(7, (39,), generator=generator)
    whole = whole.expand(-1, -1, 3)  # its sums are exact in any order

    def found() -> list[Tensor]:
        above = host.exceeds(values, values[:, :1])
        ordered = values.gather(1, host.argsort(values))
        sums = host.summed(whole, group, 8)
        return [above, host.positions(above), host.positions(above.t()), ordered, host.count_bits(words), sums]

    numpys = found()
    monkeypatch.setattr(host, "_on_host", lambda _: False)
    for ours, theirs in zip(found(), numpys, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_sums_of_groups_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    values, group = torch.randn(30, 2, 4, generator=generator), torch.randint(5, (30,), generator=generator)
    sums = host.summed(values, group, 6)
    for g in range(6):
        torch.testing.assert_close(sums[g], values[group == g].sum(0))
    assert not sums[5].any()


def test_in_rows_counts_as_a_matrix_does() -> None:
    mask = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[2] = False
    assert torch.equal(host.in_rows(host.positions(mask), 7, 5), mask.sum(1))
    assert host.in_rows(torch.zeros(0, dtype=torch.int64), 3, 5).tolist() == [0, 0, 0]


@pytest.fixture
def three_threads() -> Iterator[None]:
    own = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(own)


def test_parts_go_side_by_side_on_one_thread_each(three_threads: None) -> None:
    together = Barrier(3, timeout=20)  # breaks unless three wait at it at a time
    threads = []

    def work(part: Tensor) -> Tensor:
        together.wait()
        threads.append(torch.get_num_threads())
        return part + 1

    parts = torch.arange(6).split(1)
    assert torch.cat(list(side_by_side(work, parts, torch.device("cpu")))).tolist() == [1, 2, 3, 4, 5, 6]
    assert threads == [1] * 6
    assert torch.get_num_threads() == 3
    assert list(side_by_side(work, (), torch.device("cpu"))) == []


def test_a_part_that_fails_is_heard_of_and_threads_are_as_before(three_threads: None) -> None:
    def work(part: Tensor) -> Tensor:
        raise ArithmeticError(f"part {int(part)}")

    with pytest.raises(ArithmeticError, match="part 0"):
        side_by_side(work, torch.arange(6).split(1), torch.device("cpu"))
    in_a_new_one: list[int] = []
    thread = Thread(target=lambda: in_a_new_one.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *in_a_new_one] == [3, 3]


def test_several_threads_count_what_one_counts(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(30, 4, 6, 6, generator=generator, requires_grad=True)  # which counts have no use for
    levels = torch.full((4,), 0.5, dtype=torch.float64)
    masks = torch.rand(20, 48, 48, generator=generator) < 0.3
    image, concept = torch.arange(20), torch.arange(20) % 3
    one = concept_iou(maps, levels, masks, image, concept, 3)
    monkeypatch.setattr(overlap, "_CELLS", 10 * 7 * 7)  # 12 parts
    several = concept_iou(maps, levels, masks, image, concept, 3)
    assert torch.equal(one, several)
    assert bool((one > 0).all())


def test_upsampling_never_leaves_the_range_of_its_corners() -> None:
    maps = torch.rand(300, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 3, 3)
    assert torch.equal(upsample(maps, (20, 20)), maps[:, :1, :1].expand(-1, 20, 20))
    random = torch.randn(50, 4, 5, generator=torch.Generator().manual_seed(1))
    wide = upsample(random, (33, 41))
    reference = torch.nn.functional.interpolate(random[None].double(), (33, 41), mode="bilinear")[0]
    torch.testing.assert_close(wide.double(), reference, rtol=0, atol=1e-6)


def test_iou_in_closed_form() -> None:
    """A cone-shaped map of one hot cell: a pixel at t from the cell's centre is on where (1-tx)(1-ty) > T."""
    maps = torch.zeros(1, 1, 3, 3)
    maps[0, 0, 1, 1] = 1.0
    side, threshold = 48, 0.5
    centre = (np.arange(side) + 0.5) * 3 / side - 1.5
    fires = np.clip(1 - abs(centre), 0, None)[:, None] * np.clip(1 - abs(centre), 0, None) > threshold
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, : side // 2] = True  # the upper half: by symmetry it holds half of what fires
    iou = concept_iou(maps, torch.tensor([threshold]), mask, torch.tensor([0]), torch.tensor([0]), 1)
    area = int(fires.sum())
    assert iou.item() == (area / 2) / (area / 2 + side * side / 2)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 3, 2, 5), (40, 4, 6, 6)])
@pytest.mark.parametrize("quantile", [0.005, 0.05, 0.5, 0.99])
def test_threshold_is_numpys_quantile_to_the_last_bit(shape, quantile) -> None:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = values.transpose(0, 1).flatten(1).numpy()
    np.testing.assert_array_equal(activation_threshold(values, quantile), np.quantile(flat, 1 - quantile, axis=1))


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, math.nan])
def test_threshold_refuses_a_quantile_out_of_range(quantile: float) -> None:
    with pytest.raises(ValueError, match="quantile must lie between 0 and 1"):
        activation_threshold(torch.zeros(1, 1, 1, 1), quantile)


def planted(ties: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    peak = torch.rand(30, 6, generator=generator)
    peak = (peak * 4).floor() / 4 if ties else peak
    peak[:, 5] = 0.5
    carries = torch.rand(30, CONCEPTS, generator=generator) < 0.4
    return {
        "peak": peak,
        "low": peak.amin(0) - torch.tensor([0.1] * 5 + [0.0]),
        "high": peak.amax(0),
        "carries": carries,
        "iou": torch.rand(6, CONCEPTS, generator=generator) * 0.06,
        "concept_region": torch.tensor([0, 0, 1, 1, 1]),
    }


def in_double(values: Tensor) -> np.ndarray:
    return (values.double() if values.is_floating_point() else values).numpy()


@pytest.mark.parametrize("ties", [False, True])
def test_concept_affinity_equals_the_oracle_in_any_order(ties: bool) -> None:
    given = planted(ties)
    truth = oracle.concept_affinity(*(in_double(value) for value in given.values()), 0.04)
    region, probability = concept_affinity(**given)
    np.testing.assert_array_equal(region, truth[0])
    np.testing.assert_allclose(probability, truth[1], rtol=0, atol=1e-12)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    again = concept_affinity(**{**given, "peak": given["peak"][order], "carries": given["carries"][order]})
    assert torch.equal(again[0], region)
    torch.testing.assert_close(again[1], probability, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_group_affinity_equals_the_oracle_in_any_order(ties: bool) -> None:
    given = planted(ties)
    group = torch.arange(30) % 3
    args = given["low"], given["high"]
    ours = group_affinity(given["peak"], *args, group, 3)
    truth = oracle.group_affinity(*map(in_double, (given["peak"], *args, group)), 3)
    np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-12)
    assert ours[5].tolist() == [0, 0, 0]  # the constant unit
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    again = group_affinity(given["peak"][order], *args, group[order], 3)
    torch.testing.assert_close(again, ours, rtol=0, atol=1e-12)


def test_images_without_a_label_of_the_concept_do_not_count() -> None:
    given = planted(ties=False)
    group = torch.arange(30) % 3
    with_unknown = torch.where(torch.arange(30) < 10, -1, group)
    ours = group_affinity(given["peak"], given["low"], given["high"], with_unknown, 3)
    alone = group_affinity(given["peak"][10:], given["low"], given["high"], group[10:], 3)
    assert torch.equal(ours, alone)


def test_mid_ranks() -> None:
    values = torch.tensor([[3.0], [1.0], [3.0], [2.0]])
    assert mid_ranks(values)[:, 0].tolist() == [3.5, 1.0, 3.5, 2.0]


@pytest.mark.parametrize("weighted", [False, True])
def test_mid_ranks_are_mean_places_among_all(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.cat([torch.randint(-3, 3, (40, 5), generator=generator).float(), torch.zeros(40, 2)], dim=1)
    weight = torch.randint(1, 4, (40,), generator=generator)
    times = weight if weighted else torch.ones_like(weight)
    below = ((values[None] < values[:, None]) * times[None, :, None]).sum(1)
    equal = ((values[None] == values[:, None]) * times[None, :, None]).sum(1)
    assert mid_ranks(values, weight.float() if weighted else None).equal(below + (equal.double() + 1) / 2)


def test_steps_are_the_largest_between_ranks_that_follow() -> None:
    ranks, step = ranks_and_step(torch.tensor([[0.0, 0, 0, 5, 1], [4, 2, 3, 1, 0], [7, 7, 7, 7, 7]]))
    assert ranks.tolist() == [[2, 2, 2, 5, 4], [5, 3, 4, 2, 1], [3, 3, 3, 3, 3]]
    assert step.tolist() == [2, 1, 0]


@pytest.mark.parametrize("size", [(16, 16), (14, 28), (7, 5), (3, 56)])
@pytest.mark.parametrize("cells", [(8, 8), (16, 16), (3, 5)])
def test_maps_are_averaged_as_pooling_has_it(size: tuple[int, int], cells: tuple[int, int]) -> None:
    maps = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(4))
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps, cells)
    assert host.averaged(maps, cells).shape == pooled.shape
    torch.testing.assert_close(host.averaged(maps, cells), pooled, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(host.averaged(maps[0], cells), pooled[0], rtol=1e-6, atol=1e-6)
    same = host.averaged(maps[:1, :1].expand(3, 4, *size).contiguous(), cells)
    assert (same == same[0, 0]).all()  # equal maps stay equal, wherever they are in a batch


def test_bad_masks_are_named() -> None:
    maps, masks = torch.zeros(2, 1, 2, 2), torch.zeros(3, 4, 4, dtype=torch.bool)
    index = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"masks must be \[M, H, W\] bool"):
        concept_iou(maps, torch.zeros(1), masks.float(), index, index, 1)
    with pytest.raises(ValueError, match=r"mask_image must lie in 0\.\.1, got 5\.\.5"):
        concept_iou(maps, torch.zeros(1), masks, index + 5, index, 1)
    with pytest.raises(ValueError, match=r"thresholds must be \[1\]"):
        concept_iou(maps, torch.zeros(2), masks, index, index, 1)
