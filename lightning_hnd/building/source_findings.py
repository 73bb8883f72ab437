"""What a build met in its sources that a user should know: counted, each with an example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator


class Findings:
    """Findings of one source, equal ones counted together.

    Example:
        >>> from lightning_hnd.building.source_findings import Findings
        >>> findings = Findings()
        >>> findings.add("picture left out: the file is empty", "a.jpg")
        >>> findings.add("picture left out: the file is empty", "b.jpg")
        >>> list(findings)
        ['picture left out: the file is empty (2 times, first: a.jpg)']
    """

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, what: str, example: str = "") -> None:
        """Notes one case; the first example of each kind is kept."""
        self._count[what] += 1
        self._first.setdefault(what, example)

    def __iter__(self) -> Iterator[str]:
        for what, count in self._count.items():
            example = f"first: {self._first[what]}" if count > 1 else self._first[what]
            details = ", ".join(filter(None, (f"{count} times" if count > 1 else "", example.removesuffix("first: "))))
            yield f"{what} ({details})" if details else what
