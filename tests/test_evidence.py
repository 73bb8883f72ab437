"""What evidence is gathered, against the same written out image by image; and what planted units make of it."""

from __future__ import annotations

import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_dictionary
from torch.nn import functional

from lightning_hnd import PAPER, FaceDictionary
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.evidence.evidence import Evidence
from lightning_hnd.evidence.places import Places, beside_mean
from lightning_hnd.functional.defence import beyond_fresh, defend, effects, learnt_null
from lightning_hnd.functional.significance import partial_rank_test
from lightning_hnd.showing.processes import Processes

ATTRIBUTE = PAPER.kinds.index("attribute")


def gather(faces: FaceDictionary, maps: torch.Tensor, batch_size: int = 16) -> dict[str, torch.Tensor]:
    evidence = Evidence(faces)
    for batch in faces.batches(batch_size):
        evidence.update(maps[batch.index], batch)
    return evidence.compute()


def squares(images: int = 240, seed: int = 0, cells: int = 8) -> tuple[FaceDictionary, torch.Tensor, torch.Tensor]:
    """Blank faces with a square somewhere near the middle, where each has the attribute Smiling or would have it.

    Returns:
        The dictionary, where the squares are ``[N, cells, cells]``, and who smiles ``[N]``.
    """
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(4, 9, (images, 2), generator=generator)
    row, column = torch.arange(16)[None, :, None], torch.arange(16)[None, None, :]
    inside = (row >= corner[:, :1, None]) & (row < corner[:, :1, None] + 4)
    inside = inside & (column >= corner[:, 1:, None]) & (column < corner[:, 1:, None] + 4)
    smiling = torch.arange(images) % 2 == 0
    rows = smiling.nonzero().flatten()
    faces = FaceDictionary(
        ontology=PAPER,
        pictures=torch.zeros(images, 1, 16, 16, dtype=torch.uint8),
        source=torch.full((images,), ATTRIBUTE),
        group=torch.full((images, len(PAPER.global_)), -1),
        masks=PackedMasks.pack(inside[rows]),
        mask_image=rows,
        mask_concept=torch.full((len(rows),), PAPER.concept_index("Smiling")),
        names=tuple(map(str, range(images))),
        labels=({},) * images,
        mean=(0.5,),
        std=(0.5,),
    )
    return faces, torch.nn.functional.adaptive_avg_pool2d(inside.float()[:, None], cells)[:, 0], smiling


def normal_quantile(t: float, excess: float) -> float:
    """Of where t lies in Student's distribution of variance 1 and some excess kurtosis, summed up step by step."""
    freedom = 4 + 6 / excess if excess > 1e-4 else 1e5
    x = np.linspace(-1000, t * math.sqrt(freedom / (freedom - 2)), 2_000_001)
    log_density = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    density = np.exp(log_density - (freedom + 1) / 2 * np.log1p(x**2 / freedom))
    return NormalDist().inv_cdf(float(torch.trapezoid(torch.tensor(density), torch.tensor(x))))


def test_agreement_and_projections_equal_the_plain_form() -> None:
    faces = random_dictionary(images=60)
    maps = torch.randn(60, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    found = gather(faces, maps)
    dense = faces.masks.dense().float()
    for c in faces.mask_concept.unique().tolist():
        rows = (faces.mask_concept == c).nonzero().flatten()
        shapes = torch.nn.functional.adaptive_avg_pool2d(dense[rows][:, None], (6, 8)).flatten(1).double().numpy()
        centred = shapes - shapes.mean(0)
        left, values, modes = np.linalg.svd(centred, full_matrices=False)
        weight = values[:8] / np.linalg.norm(values[:8])
        for u in range(3):
            own = maps[faces.mask_image[rows], u].flatten(1).double().numpy()
            agreement = [np.corrcoef(m, s)[0, 1] for m, s in zip(own, shapes, strict=True)]
            assert found["agreement"][u, c].item() == pytest.approx(np.mean(agreement), abs=1e-5)
            if len(rows) < 10:
                assert found["placed_z"][u, c].isnan()
                continue
            own = own - own.mean(1, keepdims=True)
            a = own / np.linalg.norm(own, axis=1, keepdims=True) @ modes[:8].T
            r = [np.corrcoef(a[:, k], left[:, k])[0, 1] for k in range(min(8, a.shape[1]))]
            share = weight[: len(r)] / a.std(0)
            share = share / np.linalg.norm(share)
            of_maps, of_masks = (
                [np.mean((x - x.mean()) ** 4) / x.var() ** 2 - 3 for x in y[:, : len(r)].T] for y in (a, left)
            )
            odd = np.sqrt(np.maximum(of_maps, 0) * np.maximum(of_masks, 0))
            excess = np.sum(share**2 * odd) ** 2 / len(rows)
            z = normal_quantile(np.sqrt(len(rows) - 1) * np.sum(share * r), excess)
            z = min(z, 0) if np.mean(agreement) <= 0 else z
            assert found["placed_z"][u, c].item() == pytest.approx(z, abs=5e-3)
            effect = np.sum(weight[: len(r)] * r) / weight.sum()
            assert found["placed_effect"][u, c].item() == pytest.approx(effect, abs=1e-4)


def test_correlations_with_modes_are_kept_of_concepts_without_absence() -> None:
    faces, square, smiling = squares(images=120)
    c, maps = (
        PAPER.concept_index("Smiling"),
        square[:, None] + torch.randn(120, 2, 8, 8, generator=torch.Generator().manual_seed(7)),
    )
    assert gather(faces, maps)["placed_correlation"].isnan().all()
    carried = smiling.nonzero().flatten()
    found = gather(faces.subset(carried), maps[carried])
    left = np.linalg.svd((square[carried] - square[carried].mean(0)).flatten(1).double().numpy(), full_matrices=False)
    own = maps[carried].flatten(2).double().numpy()
    own = own - own.mean(2, keepdims=True)
    a = own / np.linalg.norm(own, axis=2, keepdims=True) @ left[2][:8].T
    share = left[1][:8] / a.std(0)
    share = share / np.linalg.norm(share, axis=1, keepdims=True)
    for k in range(8):
        r = [np.corrcoef(a[:, u, k], left[0][:, k])[0, 1] for u in range(2)]
        assert found["placed_correlation"][:, c, k].tolist() == pytest.approx(r, abs=1e-3)
    assert found["placed_share"][c].tolist() == pytest.approx(share.mean(0).tolist(), abs=1e-3)


@pytest.mark.parametrize("batch_size", [16, 240])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_shape_that_never_changes_is_tied_to_no_face(offset: float, batch_size: int) -> None:
    """What differs between such maps, once standardised, is how float32 rounds them."""
    faces, _, _ = squares()
    generator = torch.Generator().manual_seed(2)
    strength = 1 + 0.2 * torch.rand(240, 100, 1, 1, generator=generator)
    found = gather(faces, offset + strength * torch.rand(100, 8, 8, generator=generator), batch_size)
    z = found["placed_z"]
    assert z[z.isfinite()].numel() >= 100
    assert z[z.isfinite()].abs().max() < 0.5


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_batches_of_any_size_give_the_same(batch_size: int) -> None:
    faces = random_dictionary(images=60)
    maps = torch.randn(60, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    for name, value in gather(faces, maps, 16).items():
        assert torch.allclose(gather(faces, maps, batch_size)[name], value, atol=1e-4, equal_nan=True), name


@pytest.mark.parametrize("exponent", [-110, -80, 80, 115])
def test_the_unit_of_measure_of_an_activation_says_nothing(exponent: int) -> None:
    """Also where its square is more than float32 holds, or less."""
    faces = random_dictionary(90)
    faces.group[:, PAPER.global_index("age")] = -1  # which would tell the gender
    maps = torch.randn(90, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    maps[:, 3:] = maps[:, 3:].relu()
    maps[:9, 3:] = 0
    scale = torch.tensor([2.0**exponent, 1.0] * 3).view(-1, 1, 1)
    found, expected = gather(faces, maps * scale), gather(faces, maps)
    for asked in ("associated_z", "placed_z", "agreement", "group_z"):
        assert expected[asked].isfinite().any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("kind", ["part", "attribute"])
def test_images_that_are_shown_twice_or_not_at_all_are_refused(kind: str) -> None:
    faces = random_dictionary(60)
    faces = faces.subset((faces.source == PAPER.kinds.index(kind)).nonzero().flatten())
    maps = torch.randn(len(faces), 2, 6, 8)
    for shown in (2, 0):
        evidence = Evidence(faces)
        for batch in [*faces.batches(7)][:-1] * shown or [*faces.batches(7)][:1]:
            evidence.update(maps[batch.index], batch)
        with pytest.raises(ValueError, match=f"labels of kind '{kind}' it has seen"):
            evidence.compute()


def test_parts_have_no_absence_and_action_units_no_images() -> None:
    found = gather(random_dictionary(images=60), torch.randn(60, 3, 6, 8))
    kind = torch.tensor(PAPER.concept_kind)
    assert found["associated_z"][:, kind == PAPER.kinds.index("action_unit")].isnan().all()
    assert found["placed_z"][:, kind == PAPER.kinds.index("action_unit")].isnan().all()


def test_a_detector_is_told_from_its_place_and_from_a_place_of_the_frame() -> None:
    faces, square, smiling = squares()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(240, 4, 8, 8, generator=generator)
    signal = torch.stack(
        [
            2 * square * smiling[:, None, None],  # a detector of Smiling
            2 * square,  # fires at the place whether or not it smiles
            2
            * square.mean(0).expand(240, -1, -1)
            * smiling[:, None, None],  # at one place of the frame, when it smiles
            torch.zeros(240, 8, 8),
        ],
        dim=1,
    )
    found = gather(faces, noise + signal)
    verdict = defend(found, torch.ones(4, dtype=torch.bool))
    c = PAPER.concept_index("Smiling")
    assert verdict.associated[:, c].tolist() == [1, 0, 1, 0]
    assert verdict.placed[:, c].tolist() == [1, 1, 0, 0]
    assert verdict.paired[:, c].tolist() == [True, False, False, False]
    assert verdict.learnt.eq(-1).all()  # no fresh network was asked


def test_a_unit_on_a_group_is_no_detector_of_what_goes_with_it_where_labels_tell_the_group() -> None:
    faces, square, smiling = squares(images=600)
    generator = torch.Generator().manual_seed(5)
    agrees = torch.rand(600, generator=generator) < 0.8
    female = torch.where(agrees, smiling, ~smiling)  # a correlation of 0.6
    told = tuple({"gender": "Female" if one else "Male"} for one in female.tolist())
    signal = torch.stack([square * female[:, None, None], square * smiling[:, None, None]], dim=1)
    maps = torch.randn(600, 2, 8, 8, generator=generator) + 2 * signal
    c = PAPER.concept_index("Smiling")
    untold = gather(faces, maps)
    known = gather(replace(faces, labels=told), maps)
    assert (untold["associated_z"][:, c] > 6).all()  # nothing in the dictionary tells them apart
    assert known["associated_z"][0, c] < 3
    assert known["associated_z"][1, c] > 6
    place = Places.of(faces, (8, 8)).usual[c].view(8, 8)
    beside = maps - maps.mean((2, 3), keepdim=True)
    response = torch.einsum("nuhw,hw->nu", beside * beside.abs(), place) / beside.square().sum((2, 3)).sqrt()
    oracle = partial_rank_test(response, smiling, female[:, None])
    assert torch.allclose(known["associated_z"][:, c], oracle.z, atol=1e-2)
    assert torch.allclose(known["associated_effect"][:, c], oracle.effect, atol=1e-3)


def test_what_a_unit_does_over_the_whole_face_is_no_association_and_hides_none() -> None:
    faces, square, smiling = squares()
    generator = torch.Generator().manual_seed(3)
    on = smiling[:, None, None].float()
    level = 5 * torch.randn(240, 1, 1, generator=generator)  # how bright the picture is
    units = torch.stack([3 * on + 0 * square, level + 0 * square, level + 2 * square * on], dim=1)
    found = gather(faces, units + torch.randn(240, 3, 8, 8, generator=generator))
    z = found["associated_z"][:, PAPER.concept_index("Smiling")]
    assert (z[:2].abs() < 3).all()
    assert z[2] > 6


@pytest.mark.parametrize(("times", "counts"), [(1.5, False), (2.5, True)])
def test_on_a_place_anyway_a_unit_must_be_more_active_by_far_with_the_concept(times: float, counts: bool) -> None:
    """Ranks notice half as much again, too, as surely as what is at the place only with the concept."""
    faces, square, smiling = squares()
    strength = torch.where(smiling, times, 1.0)[:, None, None]
    noise = 0.1 * torch.randn(240, 20, 8, 8, generator=torch.Generator().manual_seed(8))
    maps = (strength * square)[:, None] + 0.1 * strength[:, None] * noise  # so that all of it is of that strength
    found, c = gather(faces, maps), PAPER.concept_index("Smiling")
    assert (found["associated_auc"][:, c] > 0.85).all()
    assert bool((found["associated_z"][:, c] > 6).all()) == counts
    assert bool((found["associated_z"][:, c] <= 0).all()) != counts


@pytest.mark.parametrize(("times", "at_square", "counts"), [(1.5, False, False), (math.inf, True, True)])
def test_a_single_image_does_not_decide_what_a_unit_does_anyway(times: float, at_square: bool, counts: bool) -> None:
    """One without the concept, in which the unit is a thousand times as active: in a corner, or on the very place."""
    faces, square, smiling = squares()
    maps = torch.where(smiling, min(times, 2.0), 0.0 if math.isinf(times) else 1.0)[:, None, None] * square
    maps = maps[:, None] + 0.1 * torch.randn(240, 20, 8, 8, generator=torch.Generator().manual_seed(9))
    maps[1] += 1000 * square[1] if at_square else 1000 * (torch.arange(64) == 0).view(8, 8)
    z = gather(faces, maps)["associated_z"][:, PAPER.concept_index("Smiling")]
    assert bool((z > 6).all()) == counts
    assert bool((z <= 0).all()) != counts


@pytest.mark.parametrize("images", [1, 4])
def test_nor_do_four_where_a_unit_is_silent_in_many_faces(images: int) -> None:
    """Equal responses share their ranks, so that by ranks alone the last before them was the outlier itself."""
    faces, square, smiling = squares()
    silent = torch.arange(240) % 3 == 2
    maps = (torch.where(smiling, 1.5, 1.0) * ~silent)[:, None, None] * square
    maps[1 : 2 * images : 2, 7, 7] += 1e5  # without the concept, far from the square
    z = gather(faces, maps[:, None])["associated_z"][:, PAPER.concept_index("Smiling")]
    assert z <= 0


def test_at_a_place_that_is_spread_out_a_few_strong_cells_are_an_association() -> None:
    """Where they are few, and strong, the mean over a place that is mostly empty in any one face notices them less."""
    generator = torch.Generator().manual_seed(12)
    corner = torch.randint(2, 11, (240, 2), generator=generator)
    row, column = torch.arange(16)[None, :, None], torch.arange(16)[None, None, :]
    inside = ((row - corner[:, :1, None]) // 2 == 0) & ((column - corner[:, 1:, None]) // 2 == 0)
    faces, _, smiling = squares()
    faces = replace(faces, masks=PackedMasks.pack(inside[smiling]))
    maps = torch.randn(240, 40, 16, 16, generator=generator)
    maps[:, 20:] += 2 * (inside & smiling[:, None, None])[:, None]
    c = PAPER.concept_index("Smiling")
    z = gather(faces, maps)["associated_z"][:, c]
    mean = torch.einsum(
        "nuhw,hw->nu", maps - maps.mean((2, 3), keepdim=True), Places.of(faces, (16, 16)).usual[c].view(16, 16)
    )
    plain = partial_rank_test(mean, smiling, torch.zeros(240, 0, dtype=torch.bool)).z
    assert z[20:].mean() > plain[20:].mean() + 1
    assert z[:20].abs().amax() < 3.5


def test_of_maps_that_do_not_vary_rounding_leaves_nothing() -> None:
    """Seven by seven equal numbers have another mean than themselves, by a bit, and more so the larger they are."""
    faces, _, smiling = squares()
    level = torch.randn(240, 1, 1, 1, generator=torch.Generator().manual_seed(3)) + 5 * smiling[:, None, None, None]
    found = gather(faces, (level * torch.tensor([1.0, 1e6]).view(1, 2, 1, 1)).expand(-1, -1, 7, 7))
    assert (found["associated_z"][:, PAPER.concept_index("Smiling")] == 0).all()


def test_maps_of_one_cell_are_associated_by_their_activation() -> None:
    faces, _, smiling = squares()
    maps = torch.randn(240, 2, 1, 1, generator=torch.Generator().manual_seed(4))
    maps[smiling, 0] += 2
    found, c = gather(faces, maps), PAPER.concept_index("Smiling")
    oracle = partial_rank_test(maps.flatten(1), smiling, torch.zeros(240, 0, dtype=torch.bool))
    torch.testing.assert_close(found["associated_z"][:, c], oracle.z)
    assert oracle.z[0] > 6
    assert not (found["placed_z"][:, c] > 0).any()


@pytest.mark.parametrize(("size", "cells"), [(256, 12), (128, 12), (299, 8)])
def test_of_masks_that_do_not_differ_there_is_no_place_to_follow(size: int, cells: int) -> None:
    """Nor one by rounding: the mean of equal masks is theirs."""
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, size // 3 : size // 3 * 2 + 1, size // 4 : size // 2 + 3] = True
    faces = replace(
        random_dictionary(77),
        pictures=torch.zeros(77, 1, size, size, dtype=torch.uint8),
        source=torch.full((77,), PAPER.kinds.index("part")),
        masks=PackedMasks.pack(mask.expand(77, -1, -1)),
        mask_image=torch.arange(77),
        mask_concept=torch.full((77,), PAPER.concept_index("nose")),
    )
    maps = torch.rand(77, 8, cells, cells, generator=torch.Generator().manual_seed(1))
    found = gather(faces, maps + functional.adaptive_avg_pool2d(mask.float(), cells))
    assert found["placed_z"].isnan().all()


def test_null_p_values_of_placed_are_not_smaller_than_uniform() -> None:
    faces, square, _ = squares(images=80)
    generator = torch.Generator().manual_seed(2)
    c = PAPER.concept_index("Smiling")
    heavy = torch.randn(80, 3000, 8, 8, generator=generator).exp() ** 2
    quiet = (torch.rand(80, 3000, 1, 1, generator=generator) < 0.1) * heavy  # silent in nine of ten faces
    usual = square.mean(0) * torch.rand(80, 3000, 1, 1, generator=generator) * 30 + heavy.clamp(max=5)
    for maps in (heavy, quiet, usual):
        z = gather(faces, maps)["placed_z"][:, c]
        for level in (0.2, 0.05, 0.01):
            share = float((z > torch.special.ndtri(torch.tensor(1 - level))).double().mean())
            assert share <= level + 3 * (level * (1 - level) / 3000) ** 0.5


def test_units_that_fire_in_a_handful_of_faces_are_not_placed_by_one_odd_mask() -> None:
    """One mask lies far from all others; it must not decide in the tail, where units are told from chance."""
    faces, _, _ = squares(images=400)
    odd = torch.zeros(1, 16, 16, dtype=torch.bool)
    odd[0, :3, 12:] = True
    faces = replace(faces, masks=PackedMasks.pack(torch.cat([odd, faces.masks.dense()[1:]])))
    generator = torch.Generator().manual_seed(8)
    maps = torch.randn(400, 20_000, 4, 4, generator=generator).clamp_(min=0)
    maps *= torch.rand(400, 20_000, 1, 1, generator=generator) < 0.01
    z = gather(faces, maps, 100)["placed_z"][:, PAPER.concept_index("Smiling")]
    for level in (1e-3, 1e-4):
        above = int((torch.special.ndtr(-z) <= level).sum())
        assert above <= 20_000 * level + 3 * (20_000 * level) ** 0.5


def test_a_unit_that_is_off_where_the_concept_is_has_not_its_place_though_it_moves_with_it() -> None:
    faces, square, _ = squares()
    noise = torch.rand(240, 10, 8, 8, generator=torch.Generator().manual_seed(12))
    on = gather(faces, noise + 2 * square[:, None])
    off = gather(faces, noise + 2 * (square - 4 * square.mean(0))[:, None])  # around the middle, away from the square
    c = PAPER.concept_index("Smiling")
    for found in (on, off):
        assert (found["placed_effect"][:, c] > 0.8).all()
    assert (off["agreement"][:, c] < 0).all()
    assert (off["placed_z"][:, c] == 0).all()
    assert (on["placed_z"][:, c] > 10).all()


def test_power_of_placed_grows_with_the_root_of_the_number_of_images() -> None:
    c, z = PAPER.concept_index("Smiling"), {}
    for images in (200, 800):
        faces, square, _ = squares(images)
        noise = torch.randn(images, 60, 8, 8, generator=torch.Generator().manual_seed(3))
        z[images] = gather(faces, noise + 0.5 * square[:, None])["placed_z"][:, c].mean()
    assert float(z[800] / z[200]) == pytest.approx(2, rel=0.1)


def test_units_like_fresh_ones_are_not_learnt_and_better_ones_are() -> None:
    faces, square, smiling = squares()
    generator = torch.Generator().manual_seed(4)

    def network(strength: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        signal = strength[None, :, None, None] * (square * smiling[:, None, None])[:, None]
        maps = torch.randn(240, len(strength), 8, 8, generator=generator) + signal
        return gather(faces, maps), torch.ones(len(strength), dtype=torch.bool)

    fresh = learnt_null([network(0.3 * torch.rand(40, generator=generator)) for _ in range(5)])
    share = []
    for _ in range(20):
        evidence, live = network(0.3 * torch.rand(40, generator=generator))
        share.append(float(beyond_fresh(evidence, live, fresh, 0.05)[0].any(1).double().mean()))
    assert np.mean(share) <= 0.05
    strong = torch.cat([torch.full((10,), 3.0), torch.zeros(30)])
    learnt = beyond_fresh(*network(strong), fresh, 0.05)[0][:, PAPER.concept_index("Smiling")]
    assert learnt[:10].all()
    assert learnt[10:].sum() <= 2


def evidence_of(units: int, concepts: int, **known: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Evidence of live units, and that they are: what is known, else NaN, and no groups."""
    sizes = dict.fromkeys(
        ("placed_z", "placed_effect", "associated_z", "associated_effect", "associated_auc"), (units, concepts)
    )
    sizes |= {"placed_correlation": (units, concepts, 1), "placed_share": (concepts, 1)}
    sizes |= {"group_z": (units, 0), "group_effect": (units, 0)}
    nothing = {name: torch.full(size, torch.nan, dtype=torch.float64) for name, size in sizes.items()}
    return nothing | known, torch.ones(units, dtype=torch.bool)


@pytest.mark.parametrize(("networks", "units", "shift"), [(5, 4, 0), (5, 16, 0), (1, 40, 0), (5, 16, -7)])
def test_of_null_units_are_no_more_learnt_than_the_level_says_though_fresh_ones_are_few(
    networks: int, units: int, shift: float
) -> None:
    """Nor where, shifted, hardly any unit seems to detect anything, so that nothing is asked of most."""
    generator = torch.Generator().manual_seed(9)

    def network(units: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        associated, placed = torch.randn(2, units, 12, generator=generator, dtype=torch.float64)
        group = torch.randn(units, 4, generator=generator, dtype=torch.float64)
        absent = torch.where(torch.arange(12) < 6, 0.5, torch.nan).expand(units, 12)
        return evidence_of(
            units,
            12,
            placed_correlation=torch.randn(units, 12, 8, generator=generator),
            placed_share=torch.full((12, 8), 8**-0.5, dtype=torch.float64),
            placed_z=2 * placed + shift,
            placed_effect=placed,
            associated_auc=absent,
            associated_z=2 * associated + 0 * absent + shift,
            associated_effect=associated,
            group_z=2 * group + shift,
            group_effect=group,
        )

    nulls = [(learnt_null([network(units) for _ in range(networks)]), *network(1)) for _ in range(400)]
    for level in (0.2, 0.05):
        bar = level + 3 * (level * (1 - level) / 400) ** 0.5
        called = [beyond_fresh(evidence, live, fresh, level) for fresh, evidence, live in nulls]
        for learnt in zip(*called, strict=True):
            assert torch.cat(learnt).any(1).double().mean() <= bar


def test_who_does_less_than_fresh_units_or_is_asked_nothing_has_learnt_nothing() -> None:
    """Also where fresh units seem to detect nothing at all, or have none that is alive."""

    def network(units: int, effect: float, z: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        spread = torch.linspace(-1, 1, units, dtype=torch.float64)[:, None]
        asked = torch.full((units, 1), z, dtype=torch.float64)
        return evidence_of(
            units,
            1,
            placed_z=asked,
            placed_effect=effect + spread,
            associated_auc=torch.full((units, 1), 0.5),
            associated_z=asked,
            associated_effect=effect + spread,
            group_z=asked,
            group_effect=effect + spread,
        )

    fresh, (dead, _) = network(200, 0.0, 0.0), network(200, 0.0, 0.0)
    for networks in ([fresh, fresh], [fresh, (dead, torch.zeros(200, dtype=torch.bool))]):
        null = learnt_null(networks)
        for effect, z, learnt in ((5.0, 5.0, True), (-5.0, 5.0, False), (5.0, 0.0, False)):
            for called in beyond_fresh(*network(4, effect, z), null, 0.05):
                assert called.all() if learnt else not called.any()


def test_what_has_no_place_for_want_of_masks_lets_no_noise_pass() -> None:
    """Half of the units surely answer to a concept of eight masks, which cannot be paired; the others do to nothing."""
    generator, units = torch.Generator().manual_seed(0), 128

    def network(planted: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        z = torch.randn(2, units, 2, generator=generator).double().abs() + 1.7  # all are worth asking
        effect = torch.randn(units, 2, generator=generator).double()
        z[:, :planted, 0], effect[:planted, 0] = 9.0, 20.0
        z[1, :, 0] = torch.nan
        return evidence_of(
            units,
            2,
            associated_z=z[0],
            associated_auc=torch.full((units, 2), 0.5),
            associated_effect=effect,
            placed_z=z[1],
            placed_effect=torch.where(z[1].isnan(), torch.nan, torch.randn(units, 2, generator=generator).double()),
        )

    fresh = learnt_null([network(0) for _ in range(5)])
    runs = 0
    for _ in range(20):
        learnt = beyond_fresh(*network(64), fresh, 0.05)[0]
        assert not learnt[:, 0].any()
        runs += bool(learnt.any())
    assert runs <= 3


def test_maps_as_small_as_numbers_get_have_no_infinite_scale() -> None:
    flat = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]) * 1e-42
    _, scale = beside_mean(torch.cat([flat, torch.tensor([[1e-30, 2e-30, 3e-30]])]))
    assert scale.isfinite().all()
    assert scale[:2].eq(0).all()
    assert float(scale[2]) == pytest.approx(1e30 / 2**0.5)


def test_modes_in_which_fresh_units_differ_much_count_little_in_what_is_learnt() -> None:
    """Fresh units go along with the first mode by chance of their filters; one that follows the second is learnt."""
    generator = torch.Generator().manual_seed(6)

    def network(correlation: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        units = len(correlation)
        return evidence_of(
            units,
            1,
            placed_correlation=correlation[:, None],
            placed_share=torch.tensor([[0.8, 0.6]]).double(),
            placed_z=torch.full((units, 1), 5.0).double(),
            placed_effect=torch.zeros(units, 1).double(),
        )

    spread = torch.tensor([0.4, 0.02])
    fresh = learnt_null([network(torch.randn(200, 2, generator=generator) * spread) for _ in range(5)])
    evidence, live = network(torch.tensor([[0.4, 0.0], [0.0, 0.2], [0.0, 0.0]]))
    assert beyond_fresh(evidence, live, fresh, 0.05)[0][:, 0].tolist() == [False, True, False]
    excess = (effects(evidence, fresh)[:, 0] - fresh["mean"]).tolist()
    assert excess == pytest.approx([0.8, 0.6 * 10, 0.0], abs=0.5)  # 0.4 and 0.2 are 1 and 10 spreads


def test_a_unit_that_answers_and_lies_like_the_best_of_fresh_ones_is_learnt() -> None:
    """Fresh units answer to a concept or lie at its place, by chance of their filters, and hardly ever do both."""
    generator = torch.Generator().manual_seed(7)

    def network(associated: torch.Tensor, placed: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        units = len(associated)
        return evidence_of(
            units,
            2,
            placed_z=torch.tensor([[5.0, torch.nan]]).double().expand(units, 2),
            placed_effect=torch.stack([placed, torch.full_like(placed, torch.nan)], dim=1),
            associated_auc=torch.full((units, 2), 0.5).double(),
            associated_z=torch.full((units, 2), 5.0).double(),
            associated_effect=associated[:, None].expand(-1, 2),
        )

    def fresh_network() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return network(
            *torch.randn(2, 200, generator=generator, dtype=torch.float64).mul(torch.tensor([[0.1], [0.02]]))
        )

    fresh = learnt_null([fresh_network() for _ in range(5)])
    both, one = torch.tensor([0.28, 0.28, 0.0]).double(), torch.tensor([0.056, 0.0, 0.056]).double()
    evidence, live = network(both, one)
    assert beyond_fresh(evidence, live, fresh, 0.005)[0][:, 0].tolist() == [True, False, False]
    # the second concept has no place, without which it cannot be paired
    assert effects(evidence, fresh)[:, 1].isnan().all()
    assert not beyond_fresh(evidence, live, fresh, 0.05)[0][:, 1].any()


@pytest.mark.parametrize("elsewhere", ["associated_z", "placed_z"])
def test_what_fresh_units_do_where_they_seem_to_detect_nothing_is_no_measure(elsewhere: str) -> None:
    """Of two concepts fresh units answer to the first at another place, or lie there whether or not it is shown."""
    generator = torch.Generator().manual_seed(11)

    def network(first: float, **z: list[float]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        effect = torch.tensor([first, 0.0]) + 0.01 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
        effect[::12] += torch.tensor([5 * first, 0.0])  # some do so most of all: by 3.3 spreads
        z = {"associated_z": [5.0, 5.0], "placed_z": [5.0, 5.0]} | z
        return evidence_of(
            200,
            2,
            placed_effect=effect,
            associated_auc=torch.full((200, 2), 0.5).double(),
            associated_effect=effect,
            **{name: torch.tensor(of_concepts).double().expand(200, 2) for name, of_concepts in z.items()},
        )

    evidence, _ = network(0.0)
    evidence["associated_effect"][0, 1] = evidence["placed_effect"][0, 1] = 0.03  # three spreads
    live = torch.arange(200) == 0
    fresh = {z: learnt_null([network(1.0, **{elsewhere: [z, 5.0]}) for _ in range(5)]) for z in (1.5, 1.8)}
    assert [bool(beyond_fresh(evidence, live, null, 0.05)[0][0, 1]) for null in fresh.values()] == [True, False]


def test_places_are_found_once_in_each_dictionary() -> None:
    faces = random_dictionary(images=60)
    assert Places.of(faces, (6, 8)) is Places.of(faces, (6, 8))
    assert Places.of(faces, (6, 8)).usual.shape != Places.of(faces, (4, 4)).usual.shape
    some = faces.subset(range(20))
    assert len(Places.of(some, (6, 8)).shape) == len(some.mask_image) < len(faces.mask_image)
    assert Places.of(pickle.loads(pickle.dumps(faces)), (6, 8)).usual.equal(Places.of(faces, (6, 8)).usual)


def test_of_constant_maps_nothing_is_said_and_images_may_have_any_number_of_masks() -> None:
    faces = random_dictionary(images=60)
    none = torch.isin(faces.mask_image, torch.tensor([0, 1, 5, 39]))  # images without any mask
    bare = replace(
        faces,
        masks=PackedMasks(faces.masks.bits[~none], faces.size),
        mask_image=faces.mask_image[~none],
        mask_concept=faces.mask_concept[~none],
    )
    maps = torch.randn(60, 3, 6, 8, generator=torch.Generator().manual_seed(8))
    maps[:, 1] = 1000 * torch.randn(60, 1, 1, generator=torch.Generator().manual_seed(9))
    found = gather(bare, maps)
    carried = torch.tensor(bare.images_per_concept) > 0
    assert found["agreement"][1, carried].eq(0).all()
    assert found["placed_effect"][1].nan_to_num().eq(0).all()
    for batch_size in (1, 7):
        for name, value in gather(bare, maps, batch_size).items():
            assert torch.allclose(value, found[name], atol=1e-4, equal_nan=True), name


class InStep(Processes):
    """One of several threads that stand for processes: they wait for each other at every exchange."""

    def __init__(self, rank: int, size: int, table: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, size)
        vars(self).update(table=table, barrier=barrier)

    def gather(self, value: Any) -> list[Any]:
        vars(self)["table"][self.rank] = value
        vars(self)["barrier"].wait(10)
        gathered = list(vars(self)["table"])
        vars(self)["barrier"].wait(10)
        return gathered


@pytest.mark.parametrize("spilt", [False, True])
def test_what_processes_gathered_joins_to_the_whole(spilt: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = random_dictionary(images=60)
    maps = torch.randn(60, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    expected = gather(faces, maps)
    assert expected["associated_z"].isfinite().any()
    monkeypatch.setattr("lightning_hnd.measuring.unit_table._AT_ONCE", 100)  # many blocks
    table, barrier = [None] * 3, threading.Barrier(3)

    def share(rank: int) -> dict[str, torch.Tensor]:
        evidence = Evidence(faces)
        for i, batch in enumerate(faces.batches(20, shard=(1, 0, 2)[rank], num_shards=3)):  # not in the images' order
            evidence.update(maps[batch.index], batch)
            if spilt and i == 0:
                evidence.spill()
                assert evidence.kept_bytes == 0
        assert rank < 2 or not len(evidence._sums)  # the last one is shown faces without local labels only
        return evidence.compute(InStep(rank, 3, table, barrier))

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(share, range(3)):
            for name, value in expected.items():
                assert torch.allclose(found[name], value, atol=1e-4, equal_nan=True), name


def test_no_process_waits_for_one_that_has_no_memory_for_what_the_others_gave() -> None:
    class Full(InStep):
        def gather(self, value: Any) -> list[Any]:
            gathered = super().gather(value)
            if self.rank == 1 and isinstance(value, torch.Tensor) and value.is_floating_point():
                raise MemoryError("no room for it")
            return gathered

    faces, (table, barrier) = random_dictionary(images=60), ([None] * 2, threading.Barrier(2))
    maps = torch.randn(60, 3, 6, 8, generator=torch.Generator().manual_seed(1))

    def share(rank: int) -> None:
        evidence = Evidence(faces)
        for batch in faces.batches(20, shard=rank, num_shards=2):
            evidence.update(maps[batch.index], batch)
        with pytest.raises(MemoryError, match="failed in process 1: MemoryError: no room" if rank == 0 else "^no room"):
            evidence.compute(Full(rank, 2, table, barrier))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(share, range(2))) == [None, None]


def test_images_shown_twice_or_never_are_named() -> None:
    faces = random_dictionary(images=60)
    maps = torch.randn(60, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    first, *rest = faces.batches(20)
    for batches, seen in (([first, first, *rest], "30, 20 of them different"), (rest, "10, 10 of them different")):
        evidence = Evidence(faces)
        for batch in batches:
            evidence.update(maps[batch.index], batch)
        with pytest.raises(ValueError, match=f"labels of kind 'part' it has seen {seen}, of 20"):
            evidence.compute()
