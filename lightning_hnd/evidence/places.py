"""Places: where the concepts of a dictionary are, and how their masks differ from face to face."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.functional.host import averaged

MODES = 8
"""Principal components of a concept's masks that are looked at."""

_CHUNK = 64  # masks that are spread out at a time


@dataclass(frozen=True, eq=False)
class Places:
    """Where the concepts of a dictionary are, as maps see it.

    Attributes:
        usual: ``[C, P]``, the mean of a concept's masks over the ``P`` cells, adding up to 1.
        modes: ``[C, K, P]``, how they differ from face to face: principal components.
        weight: ``[C, K]``, how much, as standard deviations; the squares add up to 1. 0 for concepts without masks.
        coefficient: ``[M, K]``, of each mask, with mean 0 and variance 1 over the masks of its concept.
        kurtosis: ``[C, K]``, of these over the masks of a concept: 3 if they are normal, more where few masks are odd.
        shape: ``[M, P]``, each mask, with mean 0 and norm 1 over the cells.
    """

    usual: Tensor
    modes: Tensor
    weight: Tensor
    coefficient: Tensor
    kurtosis: Tensor
    shape: Tensor

    @classmethod
    def of(cls, faces: FaceDictionary, cells: tuple[int, int]) -> Places:
        """The places of a dictionary's concepts on a grid; found once, and remembered with the dictionary."""
        return faces.once(cls._find, cells)

    @classmethod
    def _find(cls, faces: FaceDictionary, cells: tuple[int, int]) -> Places:
        concepts, size = len(faces.ontology.local), cells[0] * cells[1]
        parts = [
            averaged(faces.masks[first : first + _CHUNK].dense().float(), cells)
            for first in range(0, len(faces.masks), _CHUNK)
        ]
        zeros = partial(torch.zeros, dtype=torch.float32)
        share = torch.cat([zeros(0, *cells), *parts]).flatten(1)
        usual, modes = zeros(concepts, size), zeros(concepts, MODES, size)
        weight, coefficient, kurtosis = zeros(concepts, MODES), zeros(len(share), MODES), zeros(concepts, MODES)
        for c in faces.mask_concept.unique().tolist():
            own = faces.mask_concept == c
            usual[c] = share[own].double().mean(0).float()  # that of equal masks is theirs, to the bit
            _, values, directions = torch.linalg.svd(share[own] - usual[c], full_matrices=False)
            rank = min(MODES, int((values > (1e-3 * values.sum()).clamp(min=1e-4)).sum()))
            modes[c, :rank], weight[c, :rank] = directions[:rank], values[:rank] / values[:rank].norm().clamp(min=1e-9)
            found = (share[own] - usual[c]) @ directions[:rank].T
            coefficient[own, :rank] = found / found.square().mean(0).sqrt()
            kurtosis[c] = coefficient[own].pow(4).mean(0)
        usual = usual / usual.sum(1, keepdim=True).clamp(min=1e-9)
        return cls(usual, modes, weight, coefficient, kurtosis, _standardised(share))


def beside_mean(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Maps less their mean over the cells, and what makes the norm of that 1.

    A filter that answers to how bright a picture is answers everywhere; what is asked is where a concept is. Maps of
    one cell, which have no elsewhere, are left as they are, and have no norm.

    Args:
        flat: ``[..., P]`` float32.

    Returns:
        ``[..., P]`` and ``[...]``; the latter 0 where a map does not vary but by rounding.
    """
    if flat.shape[-1] == 1:
        return flat, torch.zeros_like(flat[..., 0])
    mean = flat.mean(-1, keepdim=True)
    beside = flat - mean
    norm, mean = torch.linalg.vector_norm(beside, dim=-1), mean.squeeze(-1)
    extreme = (mean != 0) & ~((norm > 1e-15) & norm.isfinite())  # float32 does not hold the squares
    norm[extreme] = torch.linalg.vector_norm(beside[extreme], dim=-1, dtype=torch.float64).to(norm)
    varies = (norm > 1e-5 * mean.abs()) & (norm > 1e-38)  # below, 1 / norm is infinite
    return beside, torch.where(varies, 1 / norm, 0.0)


def emphasised(beside: Tensor, scale: Tensor) -> Tensor:
    """Cells, each counted by how much it stands out in its map: squares with their signs, divided by the map's norm.

    A usual place that is spread out, as it is where faces are not aligned, is mostly empty in any one face. Where a
    unit is on the concept a few cells of it stand out.

    Args:
        beside: ``[..., P]``, as :func:`beside_mean` returns it.
        scale: ``[...]``, likewise.

    Returns:
        ``[..., P]``; maps of one cell as they are.
    """
    if beside.shape[-1] == 1:
        return beside
    return (beside * scale.unsqueeze(-1)).abs_().mul_(beside)  # in this order: squares may be too large, or too small


def _standardised(values: Tensor) -> Tensor:
    """With mean 0 and norm 1 over the last dimension; 0 where constant."""
    centred = values - values.mean(-1, keepdim=True)
    norm = centred.norm(dim=-1, keepdim=True)
    return torch.where(norm > 1e-6 * values.abs().amax(-1, keepdim=True), centred / norm.clamp(min=1e-30), 0.0)
