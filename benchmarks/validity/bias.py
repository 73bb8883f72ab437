"""Judges the measures of bias on layers whose truth is known: how often do they accuse an innocent one?

    python benchmarks/validity/bias.py [--seeds 40]

Units of a layer are made of a ground and signals. The *ground* is noise that units share in part, or what a network of
fresh weights does on the rendered dictionary, which does answer to glasses and dark skin. *Signals*, of one standard
deviation of the unit, are added where a face is a man's and where it wears glasses, which the drawing knows of each
face, labelled or not. Each seed draws another dictionary, ground and choice of units.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from judge import binomial_interval
from torch import Tensor, nn

from lightning_hnd import FaceDictionary, RenderedFaces
from lightning_hnd.measuring.bias import bias_statistics, image_sets
from lightning_hnd.measuring.unit_table import UnitTable

SIZE, IMAGES, UNITS = 48, 800, 48
BAR, LEVEL = 0.2, 0.05

SIGNALS: dict[str, tuple[slice, slice, bool]] = {
    # units that follow gender, units that follow glasses, whether half of these fall silent with glasses
    "nothing": (slice(0, 0), slice(0, 0), False),
    "gender alone": (slice(0, 16), slice(0, 0), False),
    "glasses alone": (slice(0, 0), slice(0, 16), False),
    "both, other units": (slice(0, 16), slice(16, 32), False),
    "both, glasses in many units": (slice(0, 4), slice(8, 48), False),
    "both, as often opposed as alike": (slice(0, 16), slice(0, 16), True),
    "LINKED: the same units": (slice(0, 16), slice(0, 16), False),
    "LINKED: half of them": (slice(0, 16), slice(8, 24), False),
}


def noise(images: Tensor, seed: int) -> Tensor:
    """``[N, U]``, a third of the variance shared."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(len(images), 3, generator=generator) @ torch.randn(3, UNITS, generator=generator) / 6**0.5
    return torch.randn(len(images), UNITS, generator=generator) + common


@torch.no_grad()
def fresh(images: Tensor, seed: int) -> Tensor:
    """``[N, U]``, the peaks of a network with fresh weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, k, s, k // 2), nn.BatchNorm2d(o), nn.ReLU())
            for i, o, k, s in ((3, 16, 5, 2), (16, 32, 3, 2), (32, UNITS, 3, 1))
        ]
    return torch.cat([nn.Sequential(*blocks)(some).amax((2, 3)) for some in images.split(400)])


def planted(ground: Tensor, male: Tensor, glasses: Tensor, kind: str, seed: int) -> Tensor:
    """The ground with signals, the units in an order of the seed."""
    follow_gender, follow_glasses, opposed = SIGNALS[kind]
    order = torch.randperm(ground.shape[1], generator=torch.Generator().manual_seed(seed))
    weight = torch.zeros(2, ground.shape[1])
    weight[0, order[follow_gender]] = 1
    weight[1, order[follow_glasses]] = 1
    if opposed:
        weight[1, order[follow_glasses][::2]] = -1
    label = torch.stack([male, glasses], dim=1).float()
    return ground + label @ weight * ground.std(0)


def measured(faces: FaceDictionary, group: Tensor, peak: Tensor) -> dict[str, Tensor]:
    """Bias of units with peaks ``[N, U]``."""
    table = UnitTable()
    table.append(peak.t())
    sets = image_sets(replace(faces.annotations, group=group))
    return bias_statistics(faces.ontology, sets, table, UNITS)


def judge(seeds: int) -> None:
    hits = {(ground, kind): [0, 0] for ground in ("noise", "fresh") for kind in SIGNALS}
    encoded = {"noise": 0, "fresh, groups exchanged": 0}
    for seed in range(seeds):
        faces = FaceDictionary.rendered(SIZE, images=IMAGES, seed=100 + seed)
        drawn = RenderedFaces.sample(IMAGES, seed=100 + seed)  # the same faces, of which all labels are known
        names, ontology = faces.ontology.labels, faces.ontology
        task, cue = names.index("gender/Male"), names.index("Eyeglasses")
        images = faces.images(slice(0, IMAGES))
        for name, ground in (("noise", noise(images, seed)), ("fresh", fresh(images, seed))):
            for kind in SIGNALS:
                male, glasses = drawn.groups("gender") == 0, drawn.carries(["Eyeglasses"])[:, 0]
                found = measured(faces, faces.group, planted(ground, male, glasses, kind, seed))
                p = float(2 * torch.special.ndtr(-found["shortcut_z"][task, cue].abs()))
                hits[name, kind][0] += p <= LEVEL
                hits[name, kind][1] += p <= LEVEL and float(found["shortcut_index"][task, cue].abs()) >= BAR
        gender = ontology.global_index("gender")
        for name, ground in (("noise", noise(images, seed)), ("fresh, groups exchanged", fresh(images, seed))):
            group = faces.group.clone()
            shown = (group[:, gender] >= 0).nonzero().flatten()
            group[shown] = group[shown[torch.randperm(len(shown), generator=torch.Generator().manual_seed(seed))]]
            encoded[name] += float(measured(faces, group, ground)["encoding_p"][gender]) <= LEVEL
    report(hits, encoded, seeds)


def report(hits: dict[tuple[str, str], list[int]], encoded: dict[str, int], seeds: int) -> None:
    def share(count: int) -> str:
        low, high = binomial_interval(count, seeds)
        return f"{100 * count / seeds:.0f} % ({100 * low:.0f}-{100 * high:.0f})"

    print(f"Of {seeds} layers with p <= {LEVEL}, and with an index of at least {BAR} besides:\n")
    print("| units follow | noise, p | noise, alarm | fresh weights, p | fresh weights, alarm |\n|" + " --- |" * 5)
    for kind in SIGNALS:
        print(f"| {kind} | " + " | ".join(share(n) for ground in ("noise", "fresh") for n in hits[ground, kind]) + " |")
    print("\nEncoding of gender with p <= 0.05: " + "; ".join(f"{name} {share(n)}" for name, n in encoded.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=40)
    judge(parser.parse_args().seeds)
