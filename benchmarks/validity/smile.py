"""What a network trained on photographs does above chance, beside networks of its architecture with fresh weights.

    python benchmarks/validity/smile.py path/to/celeba_smile.pth path/to/visual_dictionary [--rotations plot.png]

The smile classifier, and fresh networks of other seeds than those of the null hypothesis, are shown photographs with
local labels. Printed: how many units survive each question, with exact intervals, and what is learnt. With
``--rotations`` its last layer is turned into other bases, too, on a third of the photographs, and the plot drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from exams import network
from judge import binomial_interval
from PIL import Image
from torch import Tensor, nn

from lightning_hnd import ABOVE_CHANCE, Dissection, FaceDictionary, LayerDissection
from lightning_hnd.analyses.rotation import rotation_test
from lightning_hnd.evidence.fresh import FreshWeights, Null, acquainted_networks, fresh_null, with_null
from lightning_hnd.pipeline import BUDGET, measure
from lightning_hnd.report import rotation_plot
from lightning_hnd.showing.showing import Showing

LAYERS = ("5", "7")
NULL, JUDGED = (10, 11, 12, 13, 14), (0, 1, 2, 3, 4)
IMAGES = 900
SHOWING = Showing(batch_size=32)


def trained(path: Path) -> nn.Module:
    """The convolutions of the smile classifier."""
    kept: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    model = network(0)
    model.load_state_dict({name[5:]: value for name, value in kept.items() if name.startswith("conv.")})
    return model.eval()


def found_in(model: nn.Module, faces: FaceDictionary, null: Null) -> Dissection:
    """One network's dissection."""
    statistics = measure(model, faces, LAYERS, ABOVE_CHANCE.quantile, SHOWING, budget=BUDGET, evidence=True)
    return Dissection.from_statistics(with_null(statistics, null), faces.ontology, ABOVE_CHANCE)


def rows(name: str, dissections: list[Dissection]) -> Iterator[str]:
    """A row for each layer: its units in all these networks together."""
    for layer in LAYERS:
        each = [dissection[layer] for dissection in dissections]
        verdicts = [(one.defence.associated, one.defence.placed, one.defence.learnt) for one in each]
        counts = [sum(int((of_one[q] == 1).any(1).sum()) for of_one in verdicts) for q in range(3)]
        live, both = sum(one.live for one in each), sum(int(one.interpretable.sum()) for one in each)
        low, high = binomial_interval(counts[2], live)
        learnt = f"{counts[2]} ({100 * counts[2] / live:.1f} %; {100 * low:.1f}-{100 * high:.1f})"
        yield f"| `conv.{layer}` | {name} | {live} | {counts[0]} | {counts[1]} | {learnt} | {both} | {_names(each)} |"


def _names(layers: list[LayerDissection]) -> str:
    counts = torch.stack([(layer.defence.learnt == 1).sum(0) for layer in layers]).sum(0).tolist()
    names = [concept.name for concept in layers[0].ontology.local]
    some = sorted((-int(n), name) for n, name in zip(counts, names, strict=True) if n)
    return ", ".join(f"{name} {-n}" for n, name in some)


def main() -> None:
    """Reads the command line, looks and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--rotations", type=Path, help="where to draw the plot")
    args = parser.parse_args()
    faces = FaceDictionary.from_folder(args.dictionary, 256)
    faces = faces.subset((faces.source >= 0).nonzero().flatten()).sample(IMAGES)
    model = trained(args.model)
    print(faces, flush=True)
    null = fresh_null(model, faces, LAYERS, SHOWING, fresh=FreshWeights(NULL), budget=BUDGET)
    print("| layer | network | live units | associated | placed | learnt | interpretable | concepts learnt |")
    print("| --- " * 8 + "|")
    others = acquainted_networks(model, faces, SHOWING, FreshWeights(JUDGED))
    for name, networks in (("trained", iter([model])), (f"fresh, seeds {JUDGED[0]} to {JUDGED[-1]}", others)):
        print(*rows(name, [found_in(network, faces, null) for network in networks]), sep="\n", flush=True)
    if args.rotations:
        few = faces.sample(IMAGES // 3)
        test = rotation_test(model, few, LAYERS[-1], strengths=(0.0, 0.25, 0.5, 0.75, 1.0), fresh_seeds=NULL)
        Image.fromarray(rotation_plot(test)).save(args.rotations)
        print(test, flush=True)


if __name__ == "__main__":
    main()
