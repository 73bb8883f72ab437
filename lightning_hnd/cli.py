"""The command line: ``lightning-hnd dictionary check`` and ``show``.

Exit codes: 0, all is well; 1, the dictionary cannot be used or would make results wrong; 2, the command was not
understood or cannot be carried out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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
    except (OSError, ValueError) as error:
        print(f"lightning-hnd: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("lightning-hnd: interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-hnd", description="Hierarchical Network Dissection of face models")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    dictionary = commands.add_parser("dictionary", help="check and show Face Dictionaries")
    actions = dictionary.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_check(actions)
    _add_show(actions)
    return parser


def _add_check(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = actions.add_parser(
        "check",
        help="find what is wrong with a dictionary, and say what it means for the results",
        epilog="Exit codes: 0 nothing that makes results wrong; 1 something does; 2 the command cannot be carried out.",
    )
    check.add_argument("path", type=Path, metavar="PATH", help="folder of the dictionary")
    check.add_argument("--json", action="store_true", help="print all findings as JSON, for programs")
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    import json  # not at the top, here and below: --help must not wait for what it does not need

    from lightning_hnd.dictionary.check import check

    examination = check(args.path)
    if args.json:
        print(json.dumps(examination.to_dict(), indent=2, ensure_ascii=False))
    else:
        from lightning_hnd.report.findings import show_examination

        show_examination(examination)
    return FINE if examination.sound else FINDINGS


def _add_show(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = actions.add_parser("show", help="write contact sheets of every concept and group, as PNG and one HTML page")
    show.add_argument("path", type=Path, metavar="PATH", help="folder of the dictionary")
    show.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the sheets to")
    show.add_argument("--size", type=int, default=128, metavar="N", help="pixels along a side of each face (128)")
    show.set_defaults(run=_show)


def _show(args: argparse.Namespace) -> int:
    from lightning_hnd.dictionary import FaceDictionary
    from lightning_hnd.report.pages import write_sheets

    faces = FaceDictionary.from_folder(args.path, size=args.size)
    print(f"{faces}\n{write_sheets(faces, args.out)}")
    return FINE
