"""Rules: when a unit is said to be paired with a concept or a group."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """The settings that decide which units are interpretable. Its name is part of every key made with it.

    Args:
        quantile: Fraction of a unit's activations that exceed its threshold (Stage II.1).
        iou_threshold: The bar that a local unit's best IoU must exceed (Stage II.4).
        firing_only: Whether only the images in which the unit fires count in its IoU, as in the released
            code, instead of every image that carries the concept.
        level: The false discovery rate at which pairings must stand up to chance. With it no bar is put to the IoU:
            what is paired is what is associated, placed and, where that was asked, learnt (``docs/above-chance.md``).

    Raises:
        ValueError: If ``quantile`` or ``level`` is not in (0, 1) or ``iou_threshold`` not in [0, 1).

    Example:
        >>> from lightning_hnd.rules import README, Rule
        >>> README.name, Rule(quantile=0.01).name
        ('readme', 'labelled-q0.01-iou0.04')
    """

    quantile: float = 0.005
    iou_threshold: float = 0.04
    firing_only: bool = False
    level: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"quantile must lie between 0 and 1 (exclusive), got {self.quantile}")
        if not 0.0 <= self.iou_threshold < 1.0:
            raise ValueError(f"iou_threshold must lie in [0, 1), got {self.iou_threshold}")
        if self.level is not None and not 0.0 < self.level < 1.0:
            raise ValueError(f"level must lie between 0 and 1 (exclusive), got {self.level}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Rule:
        """The rule that :meth:`to_dict` described."""
        return cls(**data)

    @property
    def name(self) -> str:
        """``above_chance``, ``readme`` or ``released`` for the settings of that name, else the settings spelled out."""
        if self.level is not None:  # the bar decides nothing then, and the others only what IoU is reported
            reported = "-firing" if self.firing_only else ""
            usual = (self.quantile, self.level) == (ABOVE_CHANCE.quantile, ABOVE_CHANCE.level)
            return f"above_chance{'' if usual else f'-q{self.quantile!r}-fdr{self.level!r}'}{reported}"
        for name, rule in (("readme", README), ("released", RELEASED)):
            if self == rule:
                return name
        kind = "firing" if self.firing_only else "labelled"
        return f"{kind}-q{self.quantile!r}-iou{self.iou_threshold!r}"


def readings(bar: Rule, level: float | None) -> tuple[Rule, ...]:
    """The rules under which one measurement is read: a bar and, where there is a level, what stands up to chance."""
    return (bar,) if level is None else (bar, Rule(bar.quantile, level=level))


README = Rule(quantile=0.005, iou_threshold=0.04, firing_only=False)
"""What the released code's README describes, and Network Dissection does."""

RELEASED = Rule(quantile=0.05, iou_threshold=0.04, firing_only=True)
"""What the released code's settings file does. It calls units of pure noise interpretable; for comparison only."""

ABOVE_CHANCE = Rule(quantile=0.005, level=0.05)
"""Ours, the default: pairings are statements with a false discovery rate of 5 %. The IoU decides nothing."""
