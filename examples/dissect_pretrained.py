"""Dissects any trained model on a Face Dictionary, from the command line.

    python examples/dissect_pretrained.py my_package.models:FaceNet weights.pth path/to/visual_dictionary \
        --layers 'backbone.layer4' --size 160 --mean 0.5 --std 0.5 --out report

The model is named as ``module:callable``; the callable takes no argument and returns an ``nn.Module`` with fresh
weights, as are those of five more that it makes, with which the model is compared for what it has learnt; where it
loads weights itself, ``--fresh-networks 0`` does without. The
checkpoint is a state dict, or a Lightning checkpoint, of which the tensors alone are loaded. Without a
dictionary the built-in rendered faces are shown. Out come, in the folder ``--out``: the dissection
(``dissection.hnd``), a table (``assignments.md``), and for each layer the histogram of concepts and the faces
that the strongest units fire on.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from lightning_hnd import FaceDictionary, dissect
from lightning_hnd.report import concept_histogram, markdown_table, overlays


def main() -> None:
    """Reads the command line, dissects, writes the report."""
    args = parse()
    model = load(args.model, args.checkpoint)
    settings: dict[str, Any] = {"size": pair(args.size), "mean": args.mean, "std": args.std, "channels": args.channels}
    dictionary = (
        FaceDictionary.from_folder(args.dictionary, **settings)
        if args.dictionary
        else FaceDictionary.rendered(**settings)
    )
    print(dictionary)
    dissection = dissect(
        model,
        dictionary,
        args.layers,
        quantile=args.quantile,
        iou_threshold=args.iou_threshold,
        firing_only=args.firing_only,
        grid=args.grid,
        progress=True,
        fresh_seeds=range(101, 101 + args.fresh_networks),
        factory=partial(build, args.model) if args.fresh_networks > 0 else None,
    )
    print(dissection.with_rule(replace(dissection.rule, level=None)))  # by the bar
    print(dissection)  # and what stands up to chance, as in the files that follow
    args.out.mkdir(parents=True, exist_ok=True)
    dissection.save(args.out / "dissection.hnd")
    (args.out / "assignments.md").write_text(markdown_table(dissection) + "\n", encoding="utf-8")
    for layer in dissection:
        Image.fromarray(concept_histogram(layer)).save(args.out / f"{layer.name}-concepts.png")
        Image.fromarray(overlays(layer, dictionary)).save(args.out / f"{layer.name}-overlays.png")
    print(f"written to {args.out}/")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="module:callable that returns the nn.Module")
    parser.add_argument("checkpoint", type=Path, help="state dict, or Lightning checkpoint")
    parser.add_argument("dictionary", type=Path, nargs="?", help="Face Dictionary in the released layout")
    parser.add_argument("--layers", nargs="+", help="dotted names or globs; by default the last spatial layer")
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="one number, or height and width")
    parser.add_argument("--mean", type=float, nargs="+", default=0.5, help="of images in 0..1; one, or per channel")
    parser.add_argument("--std", type=float, nargs="+", default=0.5)
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--quantile", type=float, default=0.005)
    parser.add_argument("--iou-threshold", type=float, default=0.04)
    parser.add_argument("--firing-only", action="store_true", help="the IoU of the released code")
    parser.add_argument("--grid", type=int, nargs=2, help="rows and columns of token sequences")
    parser.add_argument(
        "--fresh-networks", type=int, default=5, help="to compare with; 0 if the callable loads weights"
    )
    parser.add_argument("--out", type=Path, default=Path("dissection"))
    args = parser.parse_args()
    for name in ("mean", "std"):
        value = getattr(args, name)
        if isinstance(value, list) and len(value) == 1:
            setattr(args, name, value[0])
    args.grid = tuple(args.grid) if args.grid else None
    return args


def pair(size: list[int]) -> int | tuple[int, int]:
    """One number, or height and width."""
    if len(size) > 2:
        raise SystemExit(f"--size takes one or two numbers, got {size}")
    return size[0] if len(size) == 1 else (size[0], size[1])


def build(name: str) -> nn.Module:
    """Makes the model, with fresh weights."""
    module, _, factory = name.partition(":")
    if not factory:
        raise SystemExit(f"name the model as module:callable, got {name!r}")
    sys.path.insert(0, str(Path.cwd()))
    model = getattr(importlib.import_module(module), factory)()
    if not isinstance(model, nn.Module):
        raise SystemExit(f"{name} returned {type(model).__name__}, not an nn.Module")
    return model


def load(name: str, checkpoint: Path) -> nn.Module:
    """Makes the model and loads its weights, tensors only: a checkpoint may come from anywhere."""
    model = build(name)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(state.get("state_dict", state))
    return model


if __name__ == "__main__":
    main()
