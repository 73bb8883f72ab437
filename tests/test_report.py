"""What is reported of a dissection, against numbers and pixels worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_hnd import README, Concept, Dissection, FaceDictionary, GlobalConcept, LayerDissection, Ontology, Rule
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.report import concept_histogram, markdown_table, overlays, scalars
from lightning_hnd.report.console import show

ONTOLOGY = Ontology(
    local=(
        Concept("left_eye", "part", "Eye"),
        Concept("Eyeglasses", "attribute", "Eye"),
        Concept("AU_1", "action_unit", "Eye"),  # no image carries it
        Concept("nose", "part", "Nose"),
        Concept("mouth", "part", "Mouth"),
        Concept("Smiling", "attribute", "Mouth"),
        Concept("Mustache", "attribute", "Mouth"),
    ),
    global_=(GlobalConcept("gender", ("Male", "Female")), GlobalConcept("hair", ("fair", "dark"))),
)


def by_hand() -> Dissection:
    """Six units.

    0: Eyeglasses, IoU .20 (P = .8 of two concepts shown; the bar is 1.5 / 2) and Male
    1: mouth and nothing else of its region: P = 1, IoU .06
    2: local by IoU .05, but its three concepts are alike: P = 1/3 < 1.5 / 3
    3: exactly at the bar of .04: not local; Female
    4: dead
    5: nose, the only concept of its region: passes with IoU .05
    """
    iou = torch.zeros(6, 7, dtype=torch.float64)
    iou[0, :2] = torch.tensor([0.05, 0.2])
    iou[1, 4], iou[3, 5], iou[5, 3] = 0.06, 0.04, 0.05
    iou[2, 4:] = 0.05
    gender = [[0.6, 0.4], [0.5, 0.5], [0.52, 0.48], [0.44, 0.56], [0.0, 0.0], [0.5, 0.5]]
    hair = [[1.0, 0.0]] * 6  # one group has no image: nothing to compare
    maps = torch.zeros(6, 1, 2, 2)
    maps[0, 0, 0] = 3.0
    statistics = {
        "threshold": torch.ones(6, dtype=torch.float64),
        "dead": torch.tensor([False, False, False, False, True, False]),
        "iou_labelled": iou,
        "iou_firing": iou,
        "response": torch.ones(6, 7, dtype=torch.float64),
        "group_probability": torch.tensor([a + b for a, b in zip(gender, hair, strict=True)], dtype=torch.float64),
        "images_per_concept": torch.tensor([5, 5, 0, 5, 5, 5, 5]),
        "images_per_group": torch.tensor([5, 5, 5, 0]),
        "exemplar_image": torch.tensor([[0], [0], [-1], [-1], [-1], [0]]),
        "exemplar_map": maps,
    }
    return Dissection.from_statistics({"conv": statistics}, ONTOLOGY, README)


def test_scalars() -> None:
    layer = by_hand()["conv"]
    live = [layer.group_probability[u] for u in range(len(layer)) if not layer.dead[u]]
    means = [sum(column) / 5 for column in zip(*live, strict=True)]
    groups = ("gender/Male", "gender/Female", "hair/fair", "hair/dark")
    assert scalars(by_hand()) == pytest.approx(
        {
            "hnd/conv/readme/interpretable_units": 3,  # 0, 1 and 5
            "hnd/conv/readme/interpretable_fraction": 3 / 5,  # of five live ones
            "hnd/conv/readme/dead_units": 1,
            "hnd/conv/readme/mean_iou": (0.2 + 0.06 + 0.05) / 3,
            "hnd/conv/readme/region/Eye": 1,
            "hnd/conv/readme/region/Nose": 1,
            "hnd/conv/readme/region/Mouth": 1,  # unit 1; unit 2 is local there, but not interpretable
            "hnd/conv/readme/kind/part": 2,
            "hnd/conv/readme/kind/attribute": 1,
            "hnd/conv/readme/kind/action_unit": 0,
            "hnd/conv/readme/group/gender/Male": 1,
            "hnd/conv/readme/group/gender/Female": 1,
            "hnd/conv/readme/group/hair/fair": 0,
            "hnd/conv/readme/group/hair/dark": 0,
            **{f"hnd/conv/readme/mean_probability/{group}": mean for group, mean in zip(groups, means, strict=True)},
        }
    )


def test_units_that_are_silent_on_all_groups_of_a_concept_prefer_none() -> None:
    layer = by_hand()["conv"]
    probability = layer.group_probability.copy()
    probability[1:3, :2] = 0  # live, but silent on faces with a gender
    silent = LayerDissection.of("conv", ONTOLOGY, README, {**layer.statistics, "group_probability": probability})
    found = scalars(Dissection({"conv": silent}, ONTOLOGY, README, {}))
    means = [
        found[f"hnd/conv/readme/mean_probability/{group}"] for group in ("gender/Male", "gender/Female", "hair/fair")
    ]
    assert means == pytest.approx([(0.6 + 0.44 + 0.5) / 3, (0.4 + 0.56 + 0.5) / 3, 1.0])
    none = np.concatenate([0 * probability[:, :2], probability[:, 2:]], axis=1)
    nobody = LayerDissection.of("conv", ONTOLOGY, README, {**layer.statistics, "group_probability": none})
    found = scalars(Dissection({"conv": nobody}, ONTOLOGY, README, {}))
    assert found["hnd/conv/readme/mean_probability/gender/Male"] == 0


def test_nothing_found_gives_zeros_not_nan() -> None:
    found = scalars(by_hand().with_rule(Rule(iou_threshold=0.5)))
    assert found["hnd/conv/labelled-q0.005-iou0.5/mean_iou"] == 0.0
    assert found["hnd/conv/labelled-q0.005-iou0.5/interpretable_fraction"] == 0.0
    assert len(found) == len(scalars(by_hand()))


def test_units() -> None:
    units = by_hand()["conv"].units
    assert [unit.region for unit in units] == ["Eye", "Mouth", "Mouth", None, None, "Nose"]
    assert [[c.name for c in unit.concepts] for unit in units] == [["Eyeglasses"], ["mouth"], [], [], [], ["nose"]]
    assert units[0].concepts[0].probability == pytest.approx(0.8)
    assert by_hand()["conv"].strongest == (0, 1, 5)


def test_tables_list_the_interpretable_units_strongest_first() -> None:
    rows = [line for line in markdown_table(by_hand()).splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| 0 | Eye | Eyeglasses 0.80 (0.200) | gender=Male 0.60 |",
        "| 1 | Mouth | mouth 1.00 (0.060) |  |",
        "| 5 | Nose | nose 1.00 (0.050) |  |",
    ]
    assert "conv: 3 of 5 live units interpretable (Eye 1, Nose 1, Mouth 1); 1 dead" in markdown_table(by_hand())


def test_names_with_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    named = by_hand()
    local = tuple(
        replace(c, name={"Eyeglasses": "[red]", "mouth": "[/b] :nose:"}.get(c.name, c.name)) for c in ONTOLOGY.local
    )
    layer = LayerDissection.of("conv", Ontology(local, ONTOLOGY.global_), README, named["conv"].statistics)
    show([replace(named, layers={"conv": layer})], "At start")
    shown = capsys.readouterr().out
    assert "[red]" in shown
    assert "[/b] :nose:" in shown


def test_overlays_light_what_fires_and_darken_the_rest() -> None:
    """Unit 0 fires in the upper half of the one face, which is white."""
    dictionary = FaceDictionary(
        ontology=ONTOLOGY,
        pictures=torch.full((1, 3, 40, 40), 255, dtype=torch.uint8),
        source=torch.tensor([0]),
        group=torch.full((1, 2), -1),
        masks=PackedMasks.pack(torch.zeros(0, 40, 40, dtype=torch.bool)),
        mask_image=torch.zeros(0, dtype=torch.int64),
        mask_concept=torch.zeros(0, dtype=torch.int64),
        names=("face",),
        labels=({},),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    picture = overlays(by_hand()["conv"], dictionary, rows=1)
    dark = (picture == 102).all(-1)  # 0.4 of white
    rows, columns = np.flatnonzero(dark.sum(1) > 50), np.flatnonzero(dark.sum(0) > 20)
    face = picture[rows[0] - len(rows) // 2 : rows[0], columns[0] : columns[-1]]  # just above the dark part
    assert (face == 255).mean() > 0.99
    # T = 1 is crossed two thirds of the way from the cells of 3, at a quarter of the height, to those of 0
    assert len(rows) / len(columns) == pytest.approx(1 - (0.25 + 0.5 * 2 / 3), abs=0.06)


def test_histogram_bars_stand_at_their_concepts() -> None:
    """Bars in the order Eye, Nose, Mouth; heights 0 1 | 1 | 1 0 0; the concept without images is left out."""
    picture = concept_histogram(by_hand()["conv"]).astype(int)
    part, attribute = (0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77)  # the first two kinds' colours
    body = picture[80:250]  # below the legend, above the names

    def places(colour: tuple[int, int, int]) -> np.ndarray:
        return np.flatnonzero((abs(body - colour).sum(-1) < 12).sum(0) > 100)

    parts, attributes = places(part), places(attribute)
    jumps = np.flatnonzero(np.diff(parts) > 5)
    assert len(jumps) == 1, "two bars of parts: nose and mouth"
    width = (picture.shape[1] - 45) / 6  # of six bars
    assert attributes.mean() < parts[: jumps[0] + 1].mean() < parts[jumps[0] + 1 :].mean()
    assert parts[: jumps[0] + 1].mean() - attributes.mean() == pytest.approx(width, rel=0.15)  # Eyeglasses, nose
    assert np.diff([parts[: jumps[0] + 1].mean(), parts[jumps[0] + 1 :].mean()]) == pytest.approx(width, rel=0.15)
