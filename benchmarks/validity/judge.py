"""Whether a rule's verdicts can be believed: planted detectors named right, and impostors called detectors.

Run: ``python benchmarks/validity/judge.py --real path/to/visual_dictionary`` (without it, the rendered half alone).

*Rendered half*: drawn faces whose every label is known, and maps of noise with signals. *Real half*: photographs,
activations of networks with fresh weights (correlated, textured, with all that photographs bring along), and signals.
What is planted and the kinds of impostors are in ``plants.py``, the settings in ``exams.py``. Printed per rule, with
exact binomial intervals (95 %): the share of detectors whose concept, and whose region, is named right, and of each
kind of impostor the share that is called a detector of what it is accused of. Then the same with every rule's bar moved
to where 5 % of all impostors are called detectors: how many concepts are named right at an equal price.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for rendered_training

from contestants import CONTESTANTS, RULES, Verdict
from exams import MODERATE, REAL, RENDERED, Exam, RealHalf, rendered_exam
from plants import DETECTORS, Plant

from lightning_hnd.concepts import PAPER

PRICE = 0.05
"""Share of impostors called detectors at which rules are compared."""

Score = dict[str, list[float]]
"""For each question the answers of units, 1 or 0."""


def binomial_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson 1934), by bisection.

    Example:
        >>> [round(end, 4) for end in binomial_interval(0, 72)]
        [0.0, 0.0499]
    """

    def tail(p: float, first: int, last: int) -> float:
        if p in (0.0, 1.0):
            return float(first <= (0 if p == 0.0 else count) <= last)
        return sum(
            math.exp(
                math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
                + k * math.log(p) + (count - k) * math.log1p(-p)
            )
            for k in range(first, last + 1)
        )  # fmt: skip

    def solve(first: int, last: int, rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if (tail(middle, first, last) < (1 - level) / 2) == rising else (low, middle)
        return (low + high) / 2

    return (
        0.0 if hits == 0 else solve(hits, count, rising=True),
        1.0 if hits == count else solve(0, hits, rising=False),
    )


def mark(exam: Exam, verdict: Verdict) -> Score:
    """The questions that an exam asks, answered unit by unit."""
    score: Score = defaultdict(list)
    region = PAPER.concept_region
    for u, made in enumerate(exam.plants):
        named = frozenset(verdict.named[u].nonzero().flatten().tolist())
        groups = frozenset(verdict.groups[u].nonzero().flatten().tolist())
        first = int(verdict.first[u])
        if made.concepts:
            score[f"{made.kind}: named first"].append(first in made.concepts)
            score[f"{made.kind}: region"].append(first >= 0 and region[first] in {region[c] for c in made.concepts})
            at_all = "both named" if len(made.concepts) > 1 else "named at all"
            score[f"{made.kind}: {at_all}"].append(made.concepts <= named)
        if made.groups:
            score["group: paired"].append(made.groups <= groups)
            score["group: paired alone"].append(made.groups == groups)
        if made.kind not in DETECTORS:
            called = bool(named & made.accused) or bool(groups & made.accused_groups)
            score[f"impostor, {made.kind}"].append(called)
    return score


def at_equal_price(marked: Sequence[tuple[Sequence[Plant], Tensor]]) -> tuple[list[float], float]:
    """Concepts named right with the bar where :data:`PRICE` of the impostors are called detectors, and the bar.

    Args:
        marked: Of each exam the plants and the evidence ``[U, C]``.
    """
    false, right, best = [], [], []
    for plants, evidence in marked:
        for u, made in enumerate(plants):
            if made.accused and made.kind != "dead":
                false.append(float(evidence[u, list(made.accused)].max()))
            if made.kind in ("concept", "part"):
                (c,) = made.concepts
                right.append(float(evidence[u, c]))
                best.append(float(evidence[u].max()))
    bar = sorted(false, reverse=True)[int(PRICE * len(false))]
    return [float(r > bar and r == b) for r, b in zip(right, best, strict=True)], bar


def table(half: str, scores: dict[str, dict[str, Score]], settings: Iterable[str], title: str) -> str:
    """Of some settings of a half together, one row for each question, one column for each rule."""
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for setting in settings:
        for rule, score in scores.get(f"{half}/{setting}", {}).items():
            for question, answers in score.items():
                rows[question][rule] += answers
    if not rows:
        return ""
    rules = list(dict.fromkeys(rule for row in rows.values() for rule in row))
    lines = [f"**{half}: {title}**", "", "| | units | " + " | ".join(rules) + " |", "| --- " * (len(rules) + 2) + "|"]
    for question, row in sorted(rows.items(), key=lambda entry: entry[0].startswith(("impostor", "equal price"))):
        cells = []
        for rule in rules:
            hits, count = int(sum(row[rule])), len(row[rule])
            low, high = binomial_interval(hits, count)
            cells.append(f"{100 * hits / count:.1f} ({100 * low:.1f}-{100 * high:.1f})")
        lines.append(f"| {question} | {len(next(iter(row.values())))} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Judges, prints, and keeps the answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, help="a Face Dictionary of photographs with labels.csv")
    parser.add_argument("--cache", type=Path, default=Path("validity_cache"), help="for activations of fresh networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--each", type=int, default=12, help="units of each kind in an exam")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(CONTESTANTS))
    parser.add_argument("--rendered", nargs="*", default=list(RENDERED), choices=list(RENDERED))
    parser.add_argument("--photographs", nargs="*", default=list(REAL), choices=list(REAL))
    parser.add_argument("--answers", type=Path, help="a JSON file to keep every unit's answers in")
    args = parser.parse_args()
    half = RealHalf(args.real, args.cache) if args.real else None
    plan = [("rendered", name) for name in args.rendered]
    plan += [("real", name) for name in args.photographs] if half else []
    scores: dict[str, dict[str, Score]] = {}
    for kind, name in plan:
        evidence: dict[str, list[tuple[Sequence[Plant], Tensor]]] = defaultdict(list)
        total: dict[str, Score] = {rule: defaultdict(list) for rule in args.rules}
        for seed in args.seeds:
            began = time.monotonic()
            exam = half.exam(name, seed, args.each) if half and kind == "real" else rendered_exam(name, seed, args.each)
            for rule in args.rules:
                verdict = CONTESTANTS[rule](exam)
                for question, answers in mark(exam, verdict).items():
                    total[rule][question] += answers
                evidence[rule].append((exam.plants, verdict.evidence))
            print(f"{kind}, {name}, seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for rule in args.rules:
            total[rule]["equal price: named first"] = at_equal_price(evidence[rule])[0]
        scores[f"{kind}/{name}"] = total
        print(table(kind, scores, [name], f"{name}; seeds {', '.join(map(str, args.seeds))}"), flush=True)
        if args.answers:
            args.answers.write_text(json.dumps(scores))
    for kind in ("rendered", "real"):
        print(table(kind, scores, MODERATE, "all settings of moderate signal together"), flush=True)


if __name__ == "__main__":
    main()
