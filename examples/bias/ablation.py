"""Does a biased network use its units of the cue? Without them it should come closer to one that learnt without bias.

    python examples/bias/ablation.py [--experiment glasses] [--strengths 0.5 0.9 1.0] [--seeds 5]

Each network is shown the same new faces without and with the cue, glasses for instance. Half of these go *with the
bias* (men with glasses, women without), half *against it*; a network without bias is right as often on both. The *gap*
is what it is right more often on the first. Printed are the gap of the whole network, that without the units that are
paired with the cue's concept, and that without as many random units: medians over seeds, and in how many of them the
paired ones bring the gap down by more than all random draws. A run takes about fifteen seconds on one core.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from experiment import EXPERIMENTS, LAYER, Experiment, scaled
from rich.console import Console
from rich.table import Table
from showing import add_sizes, sized
from torch import Tensor
from torchmetrics.classification import BinaryAccuracy

from lightning_hnd import Ablation, ablate, dissect
from lightning_hnd.analyses.ablation import paired_units

WITH, AGAINST = "with the bias", "against it"


def run(experiment: Experiment, p: float, seed: int) -> Ablation | None:
    """Trains one network and switches its units of the cue's concept off; None if it has none."""
    model, _ = experiment.train(p, seed)
    dissection = dissect(model, experiment.dictionary, LAYER)
    if not paired_units(dissection[LAYER], experiment.concept):
        return None
    faces = counterfactual(experiment)
    return ablate(model, dissection, concept=experiment.concept, metric=BinaryAccuracy(), dataloader=faces)


def counterfactual(experiment: Experiment) -> list[tuple[Tensor, Tensor, list[str]]]:
    """The same faces without and with the cue, in batches: images, whether they are of the task, and the side."""
    batches = []
    for faces in experiment.test_faces:
        sides = [WITH if fits else AGAINST for fits in (faces.task == faces.cue).tolist()]
        batches.append((scaled(faces.images), faces.task.int(), sides))
    return batches


def gap(accuracy: dict[str, float]) -> float:
    """How much more often it is right on faces that go with the bias."""
    return accuracy[WITH] - accuracy[AGAINST]


def main() -> None:
    """Runs all and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--experiment", choices=EXPERIMENTS, default="glasses")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 0.9, 1.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=5000, help="the first seed")
    add_sizes(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment = sized(EXPERIMENTS[args.experiment], args, parser)
    without = f"without its units of {experiment.concept} (without random ones)"
    table = Table(title=f"accuracy and gap, whole network -> {without}")
    columns = ("strength", "networks", "units off", "with the bias", "against it", "gap", "beyond all random")
    for column in columns:
        table.add_column(column, justify="right")
    for p in args.strengths:
        found = [run(experiment, p, args.first + i) for i in range(args.seeds)]
        ablations = [ablation for ablation in found if ablation is not None]
        if not ablations:
            table.add_row(f"{p:g}", f"0 of {args.seeds}")
            continue

        def middle(values: list[float]) -> float:
            return statistics.median(values)

        sides = [
            f"{middle([a.intact[side] for a in ablations]):.2f} -> {middle([a.ablated[side] for a in ablations]):.2f}"
            for side in (WITH, AGAINST)
        ]
        random = middle([middle([gap(control) for control in a.controls]) for a in ablations])
        beyond = sum(gap(a.ablated) < min(gap(control) for control in a.controls) for a in ablations)
        table.add_row(
            f"{p:g}",
            f"{len(ablations)} of {args.seeds}",
            f"{middle([len(a.units) for a in ablations]):g}",
            *sides,
            f"{middle([gap(a.intact) for a in ablations]):.2f} -> {middle([gap(a.ablated) for a in ablations]):.2f} "
            f"({random:.2f})",
            f"{beyond} of {len(ablations)}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
