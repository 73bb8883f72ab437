"""A dictionary cut down to ``max_images``: who stays, and that every process and epoch keeps the same."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from conftest import random_dictionary
from test_callback import Net, data, trainer

from lightning_hnd import Dissection, FaceDictionary, HNDCallback, dissect
from lightning_hnd.dictionary.sampling import Strata, sample

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def counts(dictionary: FaceDictionary) -> dict[str, int]:
    """Images of each concept, group and source, counted one image after the other."""
    found: dict[str, int] = {}
    for image in range(len(dictionary)):
        labels = {f"c{dictionary.mask_concept[m]}" for m in (dictionary.mask_image == image).nonzero()[:, 0]}
        labels |= {f"g{k}.{g}" for k, g in enumerate(dictionary.group[image].tolist()) if g >= 0}
        for label in {*labels, f"s{dictionary.source[image]}"}:
            found[label] = found.get(label, 0) + 1
    return found


@pytest.mark.parametrize("max_images", [120, 300, 799])
def test_every_stratum_keeps_its_share_or_its_floor(max_images: int) -> None:
    whole = FaceDictionary.rendered(size=8)
    part = whole.sample(max_images)
    before, after = counts(whole), counts(part)
    assert len(part) == max_images
    assert after.keys() == before.keys()
    for label, count in before.items():
        share = count * max_images / len(whole)
        assert after[label] >= min(count, 8, share - 2), label
        if max_images >= 300:
            assert after[label] >= min(count, 8), label
            assert abs(after[label] - max(share, min(count, 8))) <= max(3, 0.1 * share), label


def test_the_order_stays_and_nobody_comes_twice() -> None:
    whole = random_dictionary(images=200)
    part = whole.sample(90)
    places = [int(name) for name in part.names]
    assert places == sorted(set(places))
    for at in (0, 41, 89):
        assert torch.equal(part.pictures[at], whole.pictures[places[at]])
        masks = (whole.mask_image == places[at]).nonzero()[:, 0]
        assert torch.equal(part.mask_concept[part.mask_image == at], whole.mask_concept[masks])


def test_the_choice_hangs_on_nothing_but_dictionary_and_seed() -> None:
    whole = random_dictionary(images=200)
    first = whole.sample(90)
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert whole.sample(90).names == first.names
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert whole.sample(90, seed=1).names != first.names
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from conftest import random_dictionary\n"
        "print(*random_dictionary(images=200).sample(90).names)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert tuple(other.stdout.split()) == first.names


def test_a_budget_for_all_images_keeps_the_dictionary() -> None:
    whole = random_dictionary()
    assert whole.sample(len(whole)) is whole
    assert whole.sample(10**9) is whole
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        whole.sample(0)


def test_a_budget_that_would_lose_a_concept_is_refused_with_the_one_that_would_not() -> None:
    whole = FaceDictionary.rendered(size=8, images=400)
    with pytest.raises(ValueError, match="max_images=5 is too few to keep an image of each of the") as refused:
        whole.sample(5)
    enough = int(re.search(r"it takes (\d+)", str(refused.value)).group(1))
    assert len(whole.sample(enough)) == enough
    assert counts(whole.sample(enough)).keys() == counts(whole).keys()
    with pytest.raises(ValueError, match=f"it takes {enough}"):
        whole.sample(enough - 1)


def large(images: int = 24632) -> Strata:
    """As many images and columns as the released dictionary has, rates from one in a thousand to a half."""
    random = np.random.default_rng(0)
    source = random.choice(4, images, p=[0.35, 0.33, 0.16, 0.16])
    rates = np.exp(random.uniform(np.log(0.001), np.log(0.5), 38))
    local = (random.random((images, 38)) < rates) & (source[:, None] == 1 + np.arange(38) % 3)
    group = random.choice(14, images, p=np.arange(1, 15) / 105)
    groups = (group[:, None] == np.arange(14)) & (source == 0)[:, None]
    carries = np.hstack([local, groups, source[:, None] == np.arange(4)])
    return Strata(carries, tuple(map(str, range(carries.shape[1]))), 4)


@pytest.mark.parametrize("max_images", [1000, 12000])
def test_a_large_dictionary_is_sampled_closely_and_fast(max_images: int) -> None:
    strata = large()
    start = time.process_time()
    chosen = sample(strata, max_images, 0)
    assert time.process_time() - start < 2  # measured: 0.1 to 0.25 s
    assert len(chosen) == max_images
    count, kept = strata.carries.sum(0), strata.carries[chosen].sum(0)
    goal = np.maximum(count * max_images / len(strata.carries), np.minimum(count, 8))
    assert np.abs(kept - goal)[goal > 8].max() <= np.maximum(3, 0.02 * goal).max()
    assert (kept >= np.minimum(count, 8)).all()


def test_the_callback_dissects_the_same_few_images_every_epoch(tmp_path: Path) -> None:
    whole = random_dictionary(images=90)

    class Watch(L.Callback):
        expected: Dissection

        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.expected = dissect(pl_module, whole.sample(60), "body.2")

    callback, watch = HNDCallback(whole, max_images=60, fresh_seeds=()), Watch()
    trainer(tmp_path, callback, watch, max_epochs=3).fit(Net(), *data())
    assert callback.latest is not None
    assert callback.baseline is not None
    assert callback.latest.info["fingerprint"] == callback.baseline.info["fingerprint"] == whole.sample(60).fingerprint
    assert callback.latest.layers == watch.expected.layers


def test_the_callback_samples_a_folder_and_the_built_in_faces(tmp_path: Path, folder: Path) -> None:
    callback = HNDCallback(folder, max_images=4)
    trainer(tmp_path, callback, max_epochs=1).fit(Net(), *data())
    assert callback.dictionary is not None
    assert len(callback.dictionary) == 4
    callback = HNDCallback(max_images=150)
    with pytest.warns(UserWarning, match="built-in dictionary are drawings"):
        trainer(tmp_path, callback, max_epochs=1).fit(Net(), *data())
    assert callback.dictionary is not None
    assert len(callback.dictionary) == 150


def test_the_callback_refuses_a_useless_budget_before_training(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        HNDCallback(max_images=0)
    with pytest.raises(ValueError, match="max_images=3 is too few"):
        HNDCallback(random_dictionary(images=90), max_images=3)
    with pytest.raises(ValueError, match="max_images=1 is too few"):
        trainer(tmp_path, HNDCallback(folder, max_images=1)).fit(Net(example=True), *data())
