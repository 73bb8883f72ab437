"""Which labels rendered faces carry: their probabilities, what excludes what, and correlations as asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hnd.concepts import PAPER
from lightning_hnd.instead import instead

LOCAL = tuple(c.name for c in PAPER.local if c.kind != "part")
"""The local concepts that a face may have or lack; the parts it always has."""

GLOBAL = {c.name: c for c in PAPER.global_ if c.name != "ethnicity"}
"""The global concepts that are drawn. Ethnicity is not: a drawing of it would be a stereotype."""

FACIAL_HAIR = ("5_o_Clock_Shadow", "Goatee", "Mustache")
"""What ``No_Beard`` excludes."""

LABELS = (*LOCAL, *GLOBAL)

_DEFAULTS: Mapping[str, float] = {"No_Beard": 0.55, "5_o_Clock_Shadow": 0.2, "Goatee": 0.2, "Mustache": 0.2}
_DEFAULT = 0.35
_POINTS = 2**15  # of the quasi-random sequence that correlations are solved on
_REACH = 0.999  # the strongest latent correlation


@dataclass(frozen=True)
class LabelModel:
    """A Gaussian copula: each label cuts a normal variable of its own into intervals.

    A face is beardless, or has some of :data:`FACIAL_HAIR`: these are cut so that their probability among all
    faces is the one asked for, and then dropped where ``No_Beard`` holds.

    Attributes:
        cuts: For each of :data:`LABELS` the probabilities at which the next group begins, ascending.
        factor: ``[L, L]`` float64, lower triangular: makes independent normal variables correlated.
    """

    cuts: Mapping[str, Tensor]
    factor: Tensor

    @classmethod
    def of(
        cls,
        probabilities: Mapping[str, float | Sequence[float]],
        correlations: Mapping[tuple[str, str], float],
    ) -> LabelModel:
        """The model with these marginals and these correlations of labels.

        Args:
            probabilities: Of local concepts, the probability of presence; of global ones, of each group.
            correlations: Pearson's correlation of two labels, counted 0 and 1, or by the index of the group: gender
                counts Female as 1, skin tone dark as 1, age its four groups in order. Other pairs are independent,
                but for what ``No_Beard`` excludes.

        Raises:
            ValueError: If a name is unknown, a probability or correlation out of range, or the correlations are
                out of reach for these probabilities or contradict each other.
        """
        require_known(probabilities)
        cuts = {name: _cuts(name, probabilities) for name in LABELS}
        for name in FACIAL_HAIR:
            cuts[name] = _cuts_among_bearded(name, float(cuts[name]), float(cuts["No_Beard"]))
        return cls(cuts, _factor(cuts, correlations))

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws labels: for each of :data:`LABELS` ``[n]`` int64, the presence or the index of the group."""
        uniform = torch.rand(n, len(LABELS), generator=generator, dtype=torch.float64)
        normal = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12)) @ self.factor.T
        labels = {name: _cut(normal[:, i], self.cuts[name]) for i, name in enumerate(LABELS)}
        return {name: _without(name, labels[name], labels["No_Beard"]) for name in LABELS}


def _cut(normal: Tensor, cuts: Tensor) -> Tensor:
    return torch.searchsorted(cuts, torch.special.ndtr(normal), right=True)


def _without(name: str, label: Tensor, no_beard: Tensor) -> Tensor:
    return label * (1 - no_beard) if name in FACIAL_HAIR else label


def require_known(names: Iterable[str]) -> None:
    """Refuses names of which rendered faces have no label."""
    for name in names:
        if name not in LABELS:
            raise ValueError(f"rendered faces have no label {name!r}; {instead(name, LABELS)}")


def _cuts(name: str, probabilities: Mapping[str, float | Sequence[float]]) -> Tensor:
    if name not in GLOBAL:
        value = probabilities.get(name, _DEFAULTS.get(name, _DEFAULT))
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"the probability of {name!r} must be a number in 0..1, got {value}")
        return torch.tensor([1 - value], dtype=torch.float64)
    groups = GLOBAL[name].groups
    shares = torch.as_tensor(probabilities.get(name, [1 / len(groups)] * len(groups)), dtype=torch.float64)
    if shares.shape != (len(groups),) or bool((shares < 0).any()) or abs(float(shares.sum()) - 1) > 1e-6:
        raise ValueError(
            f"{name!r} needs the probability of each of {', '.join(groups)}, adding up to 1, got {shares.tolist()}"
        )
    return shares.cumsum(0)[:-1]


def _cuts_among_bearded(name: str, absent: float, bearded: float) -> Tensor:
    if 1 - absent > bearded + 1e-9:
        raise ValueError(
            f"{name!r} with probability {1 - absent:.3g} and 'No_Beard' with {1 - bearded:.3g} exclude each other and "
            "add up to more than 1; lower one of them"
        )
    return torch.tensor([1 - (1 - absent) / bearded if bearded else 1.0], dtype=torch.float64).clamp(min=0)


def _factor(cuts: Mapping[str, Tensor], correlations: Mapping[tuple[str, str], float]) -> Tensor:
    if len({frozenset(pair) for pair in correlations}) < len(correlations):
        raise ValueError(f"the correlation of two labels is given twice: {', '.join(map(str, correlations))}")
    latent = torch.eye(len(LABELS), dtype=torch.float64)
    # No_Beard first: what it excludes inherits its correlations
    for pair in sorted(correlations, key=lambda pair: "No_Beard" not in pair):
        require_known(pair)
        first, second = (LABELS.index(name) for name in pair)
        if first == second:
            raise ValueError(f"a correlation is of two labels, got {pair[0]!r} twice")
        latent[first, second] = latent[second, first] = _solve(pair, correlations[pair], cuts, latent)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(latent)
    if failed:
        raise ValueError(
            f"the correlations contradict each other: {correlations}. Labels whose correlation is not given are "
            "independent, and two that both follow a third cannot be; give theirs as well, or lower these"
        )
    return factor


def _solve(pair: tuple[str, str], wanted: float, cuts: Mapping[str, Tensor], latent: Tensor) -> float:
    """The latent correlation at which the labels of ``pair`` correlate as wanted, by bisection."""
    if "No_Beard" in pair and any(name in FACIAL_HAIR for name in pair):
        raise ValueError(f"{pair[0]!r} and {pair[1]!r} exclude each other; their correlation is not free")
    points = torch.special.ndtri(torch.quasirandom.SobolEngine(3).draw(_POINTS + 1, dtype=torch.float64)[1:])
    low, high = -_REACH, _REACH
    least, most = (_correlation(pair, rho, cuts, latent, points) for rho in (low, high))
    if not least <= wanted <= most:
        raise ValueError(
            f"{pair[0]!r} and {pair[1]!r} cannot correlate by {wanted}: with their probabilities they reach "
            f"{least:.2f} to {most:.2f}"
        )
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if _correlation(pair, middle, cuts, latent, points) < wanted else (low, middle)
    return (low + high) / 2


def _correlation(
    pair: tuple[str, str], rho: float, cuts: Mapping[str, Tensor], latent: Tensor, points: Tensor
) -> float:
    """What the labels of ``pair`` correlate by when their normal variables do by ``rho``."""
    gate = LABELS.index("No_Beard")
    to_gate = [float(latent[gate, LABELS.index(name)]) if name != "No_Beard" else 0.0 for name in pair]
    among = torch.tensor([[1.0, *to_gate], [to_gate[0], 1.0, rho], [to_gate[1], rho, 1.0]], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(among)
    normal = points @ (vectors * values.clamp(min=0).sqrt()).T
    no_beard = _cut(normal[:, 0].contiguous(), cuts["No_Beard"])
    labels = [_without(name, _cut(normal[:, i + 1].contiguous(), cuts[name]), no_beard) for i, name in enumerate(pair)]
    return float(torch.nan_to_num(torch.corrcoef(torch.stack(labels).double())[0, 1]))
