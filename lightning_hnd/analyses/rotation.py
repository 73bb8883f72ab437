"""Network Dissection's own hypothesis test: are the units special, or would any other basis of the layer do as well?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.evidence.fresh import SEEDS, FreshWeights, acquainted_networks
from lightning_hnd.functional.defence import LEVEL
from lightning_hnd.pipeline import dissect
from lightning_hnd.rules import README, Rule
from lightning_hnd.showing.activations import named_layers, resolve_layers
from lightning_hnd.showing.showing import Showing
from lightning_hnd.showing.undisturbed import full_precision, undisturbed


@dataclass(frozen=True)
class RotationTest:
    """Units and concepts of one layer in rotated bases.

    Attributes:
        layer: Its name.
        rule: What decided.
        strengths: ``S`` strengths, 0 for the layer's own basis, 1 for a whole rotation.
        interpretable: For each strength the interpretable units under each of ``R`` rotations.
        concepts: For each strength the different concepts that any unit is paired with, likewise.
        fresh_interpretable: Interpretable units of each network with fresh weights; empty if none was asked.
        fresh_concepts: Different concepts of each of them.
    """

    layer: str
    rule: Rule
    strengths: tuple[float, ...]
    interpretable: tuple[tuple[int, ...], ...]
    concepts: tuple[tuple[int, ...], ...]
    fresh_interpretable: tuple[int, ...] = ()
    fresh_concepts: tuple[int, ...] = ()


def rotation_test(
    model: nn.Module,
    dictionary: FaceDictionary,
    layer: str,
    *,
    strengths: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    seeds: Sequence[int] = (0, 1, 2),
    rule: Rule = README,
    fresh_seeds: Sequence[int] = SEEDS,
    factory: Callable[[], nn.Module] | None = None,
    **options: Any,
) -> RotationTest:
    """Dissects a layer in rotated bases (Bau et al. 2017, section 3.2), and likewise with fresh weights.

    A rotation ``Q`` is drawn uniformly, and its fractional powers lead from the layer's own basis to it. The layer's
    discriminative power is the same in all of them; if units are interpretable since the network aligned concepts with
    them, interpretability falls with the strength. What is left of it may still be learnt, as far as it exceeds what
    networks of the same architecture with fresh weights come to. The model is left as it was found, also after an
    exception.

    Args:
        model: Any module.
        dictionary: The faces.
        layer: The name of one layer.
        strengths: Powers of the rotation, from 0 to 1.
        seeds: One for each rotation.
        rule: What decides which units are interpretable. Under one with a level that is associated and placed: what
            is *learnt* is not asked unit by unit, for fresh weights are counted by themselves.
        fresh_seeds: One for each network with fresh weights.
        factory: Makes such a network, where ``reset_parameters`` throughout the model is not it.
        options: Of :func:`~lightning_hnd.dissect`, but for those that the rule has.

    Returns:
        The counts, to be drawn by :func:`~lightning_hnd.report.rotation_plot`.

    Raises:
        TypeError: If ``seeds`` or ``fresh_seeds`` are not several whole numbers, ``strengths`` not several numbers,
            ``rule`` is no rule, or an option is one that the rule has.
        ValueError: If strengths lie beyond 0 and 1, there are none of them or no seeds, several layers match, a seed
            comes twice, or no network with fresh weights can be made.
    """
    strengths, seeds = _checked(strengths, seeds, rule, options)
    names = resolve_layers(model, layer)
    if len(names) != 1:
        raise ValueError(f"rotation_test takes one layer, and {layer!r} matches {', '.join(names)}")
    fresh = FreshWeights.chosen(fresh_seeds, factory, LEVEL)  # whatever the rule: they are counted by themselves
    obstacle = fresh.obstacle(model, split=False) if fresh.seeds else None
    if obstacle is not None:
        raise ValueError(f"{obstacle}, or fresh_seeds=() to do without")

    def counts(network: nn.Module) -> tuple[int, int]:
        found = dissect(network, dictionary, names[0], quantile=rule.quantile, level=rule.level, **options)
        found_layer = found.with_rule(rule)[names[0]]
        return int(found_layer.interpretable.sum()), int(found_layer.paired_concepts.any(axis=0).sum())

    module = named_layers(model)[names[0]]
    showing = Showing(**{name: options[name] for name in ("grid", "forward_fn", "batch_size") if name in options})
    interpretable, concepts = [], []
    with torch.inference_mode(False), undisturbed(model):  # copies may lead back to it
        for strength in strengths:
            pairs = []
            for seed in seeds:
                hook = module.register_forward_hook(_Rotate(seed, strength), prepend=True)
                try:
                    pairs.append(counts(model))
                finally:
                    hook.remove()
            interpretable.append(tuple(units for units, _ in pairs))
            concepts.append(tuple(different for _, different in pairs))
        pairs = [counts(network) for network in acquainted_networks(model, dictionary, showing, fresh)]
    return RotationTest(
        names[0], rule, strengths, tuple(interpretable), tuple(concepts), *map(tuple, zip(*pairs, strict=True))
    )


def _checked(
    strengths: Sequence[float], seeds: Sequence[int], rule: Rule, options: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    if not isinstance(rule, Rule):
        raise TypeError(f"rule is a Rule, such as README or ABOVE_CHANCE, got {rule!r}")
    of_rule = [name for name in ("quantile", "iou_threshold", "firing_only", "level", "layers") if name in options]
    if of_rule:
        raise TypeError(f"{of_rule[0]} is no option here: give rule=Rule(...) and the name of one layer")
    strengths = tuple(strengths) if isinstance(strengths, Iterable) else strengths  # of a generator they come once
    seeds = tuple(seeds) if isinstance(seeds, Iterable) else seeds
    for name, values, kind, what in (
        ("strengths", strengths, Real, "numbers"),
        ("seeds", seeds, Integral, "whole numbers"),
    ):
        if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
            raise TypeError(f"{name} are several {what}, got {values!r}")
        if not len(values):
            raise ValueError(f"{name} must not be empty")
    beyond = [strength for strength in strengths if not 0 <= strength <= 1]
    if beyond:
        raise ValueError(f"strengths go from 0 (the layer's own basis) to 1 (a whole rotation), got {beyond[0]!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, for a rotation counts once, got {seeds!r}")
    return tuple(map(float, strengths)), tuple(map(int, seeds))


class _Rotate:
    """A forward hook that turns a layer's output: maps ``[B, U, h, w]``, or tokens ``[B, T, U]``."""

    def __init__(self, seed: int, strength: float) -> None:
        self._seed, self._strength = seed, strength
        self._matrix: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise ValueError(f"rotation_test takes a layer whose output is one tensor, got {type(output).__name__}")
        if self._strength == 0:
            return output
        channels = output.movedim(1, -1) if output.ndim == 4 else output
        if self._matrix is None:
            self._matrix = power(rotation(channels.shape[-1], self._seed), self._strength)
        with full_precision(channels.device):
            turned = channels @ self._matrix.T.to(channels)
        return turned.movedim(-1, 1) if output.ndim == 4 else turned


def rotation(size: int, seed: int) -> Tensor:
    """A uniformly drawn rotation, ``[size, size]`` float64: QR of normal numbers (Mezzadri 2007), of determinant 1.

    Args:
        size: Of the space.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    q: Tensor
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    q = torch.mul(q, r.diagonal().sign())
    if torch.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q


def power(matrix: Tensor, exponent: float) -> Tensor:
    """A fractional power of a rotation: each plane is turned by that share of its angle.

    Args:
        matrix: ``[n, n]``, a rotation.
        exponent: From 0 (no rotation) to 1 (the whole one).

    Example:
        >>> import torch
        >>> from lightning_hnd.analyses.rotation import power, rotation
        >>> half = power(rotation(5, seed=0), 0.5)
        >>> torch.allclose(half @ half, rotation(5, seed=0)), torch.allclose(half @ half.T, torch.eye(5).double())
        (True, True)
    """
    values, vectors = torch.linalg.eig(matrix)
    turned = torch.polar(torch.ones_like(values.real), values.angle() * exponent)
    raised: Tensor = (vectors @ torch.diag(turned) @ torch.linalg.inv(vectors)).real
    return raised
