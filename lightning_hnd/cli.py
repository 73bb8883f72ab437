"""The command line: ``lightning-hnd dictionary build``, ``check`` and ``show``, and ``lightning-hnd timeline``.

Exit codes: 0, all is well; 1, the dictionary cannot be used or would make results wrong; 2, the command was not
understood or cannot be carried out; 130, it was interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hnd.building import SourceOptions
    from lightning_hnd.concepts import Ontology
    from lightning_hnd.dissection import Dissection
    from lightning_hnd.rules import Rule

FINE, FINDINGS, USAGE = 0, 1, 2
"""Exit codes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Its words; None: those of the command line.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"lightning-hnd: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("lightning-hnd: interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-hnd", description="Hierarchical Network Dissection of face models")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    dictionary = commands.add_parser("dictionary", help="build, check and show Face Dictionaries")
    actions = dictionary.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_build(actions)
    _add_check(actions)
    _add_show(actions)
    _add_timeline(commands)
    return parser


_SOURCES = {
    "celeba": "CelebA: img_align_celeba/, list_attr_celeba.txt, and landmarks_68.csv or CelebA's own five landmarks",
    "celebamask_hq": "CelebAMask-HQ: CelebA-HQ-img/, CelebAMask-HQ-mask-anno/, CelebAMask-HQ-attribute-anno.txt",
    "facesynthetics": "FaceSynthetics: 000000.png, 000000_seg.png, 000000_ldmks.txt, ...",
    "fairface": "FairFace: fairface_label_train.csv, fairface_label_val.csv and the pictures that they name",
    "utkface": "UTKFace: pictures named [age]_[gender]_[race]_[date].jpg",
    "pictures": "any pictures, with labels.csv (attributes or action units) and landmarks_68.csv",
}


def _add_build(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = actions.add_parser(
        "build",
        help="make a dictionary of the data sets that you have",
        epilog="SOURCE is the name of an option above, such as celeba; it may be left out where there is one source.",
    )
    build.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    sources = build.add_argument_group("sources")
    for kind, text in _SOURCES.items():
        option = f"--{kind.replace('_', '-')}"
        sources.add_argument(option, dest=kind, type=Path, metavar="DIR", action="append", default=[], help=text)
    for name, text in (
        ("landmarks", "file of 68 landmarks: image, x0, y0, ... x67, y67"),
        ("labels", "table of labels, where it is not in its usual place"),
        ("license", "terms under which you have a source, for the datacard"),
    ):
        value = "TEXT" if name == "license" else "FILE"
        sources.add_argument(f"--{name}", metavar=f"[SOURCE=]{value}", action="append", default=[], help=text)
    sources.add_argument(
        "--at-least", type=float, default=1.0, help="intensity from which an action unit counts as present (1)"
    )
    choice = build.add_argument_group("choice of images")
    choice.add_argument("--per-concept", type=int, default=500, help="images with each concept, and without it (500)")
    choice.add_argument("--per-group", type=int, default=500, help="images of each group (500)")
    choice.add_argument(
        "--held-out", type=float, default=0.0, metavar="SHARE", help="share of the people for OUT-held-out (0)"
    )
    choice.add_argument(
        "--training-set", type=Path, metavar="PATH", help="folder or list of pictures; their people are left out"
    )
    choice.add_argument("--largest-side", type=int, default=512, help="pixels; larger pictures are made smaller (512)")
    choice.add_argument("--seed", type=int, default=0, help="other seeds choose other images (0)")
    build.set_defaults(run=_build)


def _build(args: argparse.Namespace) -> int:
    from rich.console import Console

    from lightning_hnd.building import build_dictionary
    from lightning_hnd.building.summary import summary_tables

    built = build_dictionary(
        args.out,
        _sources(args),
        per_concept=args.per_concept,
        per_group=args.per_group,
        held_out=args.held_out,
        training_set=args.training_set,
        largest_side=args.largest_side,
        seed=args.seed,
    )
    console = Console()
    for dictionary in built:
        for table in summary_tables(dictionary):
            console.print(table)
    for dictionary in built:
        path = shlex.quote(str(dictionary.path))
        print(f"Look at it: lightning-hnd dictionary check {path}")
        print(f"            lightning-hnd dictionary show {path} --out {shlex.quote(f'{dictionary.path}-sheets')}")
    return FINE


def _sources(args: argparse.Namespace) -> list[SourceOptions]:
    """The sources that were named, with what was given for each."""
    from lightning_hnd.building import SourceOptions

    roots: dict[str, tuple[str, Path]] = {}
    for kind in _SOURCES:
        for i, root in enumerate(getattr(args, kind), start=1):
            roots[kind if i == 1 else f"{kind}_{i}"] = (kind, root)
    given: dict[str, dict[str, str]] = {name: {} for name in roots}
    for what in ("landmarks", "labels", "license"):
        for value in getattr(args, what):
            name, equals, rest = value.partition("=")
            if not equals and len(roots) == 1:
                name, rest = next(iter(roots)), value
            name = name.replace("-", "_")
            if name not in given or not rest:
                known = ", ".join(roots) or "none"
                raise ValueError(f"--{what} {value!r} names no source; write SOURCE={value}. Sources are: {known}")
            given[name][what] = rest
    return [
        SourceOptions(
            kind,
            root,
            landmarks=Path(given[name]["landmarks"]) if "landmarks" in given[name] else None,
            labels=Path(given[name]["labels"]) if "labels" in given[name] else None,
            license=given[name].get("license"),
            at_least=args.at_least,
            name=name,
        )
        for name, (kind, root) in roots.items()
    ]


def _add_check(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = actions.add_parser(
        "check",
        help="find what is wrong with a dictionary, and say what it means for the results",
        epilog="Exit codes: 0 nothing that makes results wrong; 1 something does; 2 the command cannot be carried out.",
    )
    check.add_argument("path", type=Path, metavar="PATH", help="folder of the dictionary")
    _add_ontology(check)
    check.add_argument("--json", action="store_true", help="print all findings as JSON, for programs")
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    import json  # not at the top, here and below: --help must not wait for what it does not need

    from lightning_hnd.dictionary.check import check

    examination = check(args.path, _ontology(args))
    if args.json:
        print(json.dumps(examination.to_dict(), indent=2, ensure_ascii=False))
    else:
        from lightning_hnd.report.examination import show_examination

        show_examination(examination)
    return FINE if examination.sound else FINDINGS


def _add_show(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = actions.add_parser("show", help="write contact sheets of every concept and group, as PNG and one HTML page")
    show.add_argument("path", type=Path, metavar="PATH", help="folder of the dictionary")
    show.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the sheets to")
    show.add_argument("--size", type=int, default=128, metavar="N", help="pixels along a side of each face (128)")
    _add_ontology(show)
    show.set_defaults(run=_show)


def _add_ontology(command: argparse.ArgumentParser) -> None:
    text = "JSON file of the concepts, where they are not those of the paper (what Ontology.to_dict gives)"
    command.add_argument("--ontology", type=Path, metavar="FILE", help=text)


def _ontology(args: argparse.Namespace) -> Ontology:
    from lightning_hnd.concepts import PAPER, Ontology

    return PAPER if args.ontology is None else Ontology.from_file(args.ontology)


def _show(args: argparse.Namespace) -> int:
    from lightning_hnd.dictionary import FaceDictionary
    from lightning_hnd.report.pages import write_sheets

    faces = FaceDictionary.from_folder(args.path, size=args.size, ontology=_ontology(args))
    print(f"{faces}\n{write_sheets(faces, args.out)}")
    return FINE


def _add_timeline(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    timeline = commands.add_parser(
        "timeline",
        help="show over the epochs what the units of a run's layers became",
        description="Of the dissections that a run has written, or of its checkpoints: what formed when, and stayed.",
    )
    timeline.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="the run's folder (or its hnd/), or checkpoints: *.ckpt"
    )
    timeline.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for pictures, a table and, of checkpoints, hnd/"
    )
    timeline.add_argument("--rule", choices=["readme", "released", "above_chance"], help="what to read pairings under")
    of = timeline.add_argument_group("checkpoints")
    of.add_argument("--model", metavar="MODULE:CLASS", help="the LightningModule, as in my_package.models:FaceNet")
    of.add_argument(
        "--dictionary", type=Path, metavar="DIR", help="folder of the dictionary; the drawn faces if left out"
    )
    of.add_argument("--layers", nargs="+", metavar="NAME", help="names or globs; the last spatial one if left out")
    of.add_argument("--size", type=int, nargs="+", metavar="N", help="pixels; left out: those of example_input_array")
    of.add_argument("--mean", type=float, nargs="+", default=[0.5], help="as the model is trained (0.5)")
    of.add_argument("--std", type=float, nargs="+", default=[0.5], help="as the model is trained (0.5)")
    timeline.set_defaults(run=_timeline)


def _timeline(args: argparse.Namespace) -> int:
    from lightning_hnd import ABOVE_CHANCE, README, RELEASED, Timeline
    from lightning_hnd.report import history
    from lightning_hnd.report.timelines import write_timeline

    rule = {"readme": README, "released": RELEASED, "above_chance": ABOVE_CHANCE}.get(args.rule)
    if all(path.suffix == ".ckpt" for path in args.paths):
        if args.out is not None and any((args.out / "hnd").glob("*")):
            raise ValueError(
                f"{args.out / 'hnd'} holds dissections already, and none is written over: give another --out"
            )
        timeline = Timeline.of(_of_checkpoints(args, rule or ABOVE_CHANCE), rule)
    elif len(args.paths) == 1:
        inside = args.paths[0] / "hnd"
        timeline = Timeline.of(history(inside if inside.is_dir() else args.paths[0]), rule)
    else:
        raise ValueError("give one folder of a run, or files of checkpoints (*.ckpt)")
    print(timeline)
    if args.out is not None:
        print("written:", *write_timeline(timeline, args.out), sep="\n  ")
    return FINE


def _of_checkpoints(args: argparse.Namespace, rule: Rule) -> Iterator[Dissection]:
    from tqdm.auto import tqdm

    from lightning_hnd import FaceDictionary
    from lightning_hnd.history.checkpoints import dissect_checkpoints, moments
    from lightning_hnd.report.files import file_name
    from lightning_hnd.training.model_input import find_images

    if args.model is None:
        raise ValueError("say with --model MODULE:CLASS which LightningModule the checkpoints are of")
    model = _named(args.model)

    def load(path: Path) -> Any:
        try:
            return model.load_from_checkpoint(path, map_location="cpu")
        except (TypeError, AttributeError) as error:
            raise ValueError(
                f"cannot make {args.model} from {path}: {error}. It must be a LightningModule that saves what its "
                "constructor takes: call save_hyperparameters() there"
            ) from error

    paths = list(moments(args.paths).values())  # and none is loaded that holds more than tensors and plain data
    example = find_images(load(paths[0]).example_input_array)
    if args.size is None and example is None:
        raise ValueError(f"{args.model} has no example_input_array that says the size of its images: give --size")
    if args.size is not None and len(args.size) > 2:
        raise ValueError(f"--size takes one number or two, got {' '.join(map(str, args.size))}")
    size = args.size if example is None or args.size is not None else example.shape[-2:]
    channels = 3 if example is None else example.shape[-3]
    mean, std = (values[0] if len(values) == 1 else values for values in (args.mean, args.std))
    settings: dict[str, Any] = {"size": (size[0], size[-1]), "channels": channels, "mean": mean, "std": std}
    faces = (
        FaceDictionary.rendered(**settings)
        if args.dictionary is None
        else FaceDictionary.from_folder(args.dictionary, **settings)
    )
    found = dissect_checkpoints(paths, load, faces, layers=args.layers, quantile=rule.quantile)
    for dissection in tqdm(found, "checkpoints", total=len(paths)):
        if args.out is not None:
            (args.out / "hnd").mkdir(parents=True, exist_ok=True)
            dissection.save(args.out / "hnd" / file_name(dissection))
        yield dissection


def _named(name: str) -> Any:
    """What ``module:attribute`` names, the working directory included."""
    import importlib

    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {name!r}, of the form MODULE:CLASS: {error}") from error
    finally:
        sys.path.remove("")
