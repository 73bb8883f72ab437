"""Against the numbers that the released code of Hierarchical Network Dissection produced on planted units."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_hnd.functional import activation_threshold, concept_affinity, concept_iou, group_affinity

FILES = sorted((Path(__file__).parent / "reference").glob("parity_*.npz"))


class Reference:
    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as data:
            self.data = {name: data[name] for name in data.files}
        side = int(self["image_size"])
        bits = np.unpackbits(self["mask_bits"], axis=1)[:, : side * side]
        self.features = torch.from_numpy(self["features"])
        self.masks = torch.from_numpy(bits.astype(bool).reshape(-1, side, side))
        self.mask_image = torch.from_numpy(self["mask_image"]).long()
        self.mask_concept = torch.from_numpy(self["mask_concept"]).long()
        self.thresholds = torch.from_numpy(self["thresholds_official"])
        self.carries = torch.zeros(len(self.features), 38, dtype=torch.bool)
        self.carries[self.mask_image, self.mask_concept] = True

    def __getitem__(self, name: str) -> np.ndarray:
        return self.data[name]

    def iou(self, *, firing_only: bool) -> torch.Tensor:
        return concept_iou(
            self.features, self.thresholds, self.masks, self.mask_image, self.mask_concept, 38, firing_only=firing_only
        )


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(request.param)


def test_both_reference_files_are_here() -> None:
    assert [path.stem for path in FILES] == ["parity_q005", "parity_q05"]


def test_thresholds(reference: Reference) -> None:
    ours = activation_threshold(reference.features, float(reference["quantile"]))
    np.testing.assert_allclose(ours, reference["thresholds_exact"], rtol=0, atol=1e-9)
    # to the last bit of numpy's, which interpolates in float64 given float64
    values = reference.features.double().transpose(0, 1).flatten(1).numpy()
    np.testing.assert_array_equal(ours, np.quantile(values, 1 - float(reference["quantile"]), axis=1))


@pytest.mark.parametrize(("name", "firing_only"), [("iou_firing", True), ("iou_labelled", False)])
def test_iou(reference: Reference, name: str, firing_only: bool) -> None:
    np.testing.assert_allclose(reference.iou(firing_only=firing_only), reference[name], rtol=0, atol=1e-6)


def test_regions_and_concepts(reference: Reference) -> None:
    maps = reference.features.flatten(2)
    region, probability = concept_affinity(
        maps.amax(-1),
        maps.amin((0, 2)),
        maps.amax((0, 2)),
        reference.carries,
        torch.from_numpy(reference["iou_firing"]),
        torch.from_numpy(reference["concept_region"]),
        iou_threshold=float(reference["iou_threshold"]),
    )
    np.testing.assert_array_equal(region, reference["unit_region"])
    np.testing.assert_allclose(probability, reference["probabilities"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("concept", ["age", "gender", "ethnicity", "skin_tone"])
def test_groups(reference: Reference, concept: str) -> None:
    maps = torch.from_numpy(reference[f"global_{concept}_features"]).flatten(2)
    num_groups = len(reference[f"global_{concept}_groups"])
    group = torch.arange(num_groups).repeat_interleave(int(reference["images_per_group"]))
    ours = group_affinity(maps.amax(-1), maps.amin((0, 2)), maps.amax((0, 2)), group, num_groups)
    np.testing.assert_allclose(ours, reference[f"global_{concept}_probabilities"], rtol=0, atol=1e-6)
