"""The parameters of rendered faces: sampled, looked at, changed, saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_hnd.concepts import PAPER
from lightning_hnd.rendering.drawing import Pose
from lightning_hnd.rendering.labels import FACIAL_HAIR, GLOBAL, LOCAL, LabelModel, require_known

if TYPE_CHECKING:
    from typing_extensions import Self

FULL_BEARD = "full_beard"
"""A style without a concept of its own: what a face has that is neither beardless nor of a listed style."""

SWITCHES = (*(name for name in LOCAL if name != "No_Beard"), FULL_BEARD)
"""The columns of ``RenderedFaces.switches``. ``No_Beard`` follows from them."""

TRAITS = (
    *("x", "y", "scale", "roll", "yaw", "blur", "noise", "noise_x", "noise_y", "light_x", "light_y", "ambient"),
    *("warmth", "exposure", "skin", "skin_hue", "face_width", "face_length", "jaw", "wrinkles", "shirt", "shirt_hue"),
    *("hair_colour", "hair_grey", "hair_style", "hair_length", "hair_line", "hair_part", "hair_volume", "hair_curls"),
    *("back_hue", "back_light", "back_turn", "back_panel", "back_hue_2", "back_light_2", "back_texture", "texture"),
    *("brow_gap", "brow_height", "brow_arch", "brow_thickness", "eye_opening", "eye_width", "iris", "gaze"),
    *("nose_width", "nose_length", "nose_height", "mouth_width", "upper_lip", "lower_lip", "toothy", "lip_red"),
    *("lipstick", "beard", "glasses_shape", "glasses_height", "glasses_rim", "glasses_colour", "glasses_tint"),
)
"""The columns of ``RenderedFaces.traits``: what differs between faces besides their labels."""


@dataclass(frozen=True, eq=False)
class FaceParameters:
    """What sets faces apart: the presence of concepts, groups, and everything else as traits.

    Attributes:
        switches: ``[N, len(SWITCHES)]`` bool, the presence of concepts.
        group: ``[N, 3]`` int64, the group of each concept of ``GLOBAL``.
        traits: ``[N, len(TRAITS)]`` float32 in 0..1, all else that sets one face apart.
    """

    switches: Tensor
    group: Tensor
    traits: Tensor

    @classmethod
    def sample(
        cls,
        n: int,
        *,
        seed: int = 0,
        probabilities: Mapping[str, float | Sequence[float]] | None = None,
        correlations: Mapping[tuple[str, str], float] | None = None,
    ) -> Self:
        """Draws the parameters of ``n`` faces, from the seed alone.

        Args:
            n: How many.
            seed: Other seeds give other faces.
            probabilities: Of action units and attributes, the probability of presence; of age, gender and skin
                tone, the probability of each group.
            correlations: Pearson's correlation of two labels, ``{("Eyeglasses", "gender"): 0.7}``: presence counts
                1, groups count by their index (Female 1, dark 1, age 0 to 3). All other pairs are independent, but
                for what ``No_Beard`` excludes: that inherits its correlations. Probabilities stay as asked for.

        Raises:
            ValueError: If a name is unknown, a value out of range, or correlations cannot be had.
        """
        model = LabelModel.of(probabilities or {}, correlations or {})
        generator = torch.Generator().manual_seed(seed)
        labels = model.sample(n, generator)
        traits = torch.rand(n, len(TRAITS), generator=generator, dtype=torch.float32)
        styled = torch.stack([labels[name] for name in FACIAL_HAIR]).any(0)
        full = torch.rand(n, generator=generator, dtype=torch.float32) < 0.4
        labels[FULL_BEARD] = (labels["No_Beard"] == 0) & (full | ~styled)
        switches = torch.stack([labels[name].bool() for name in SWITCHES], dim=1)
        return cls(switches, torch.stack([labels[name] for name in GLOBAL], dim=1), traits)

    def __len__(self) -> int:
        return self.traits.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Self:
        return type(self)(self.switches[index], self.group[index], self.traits[index])

    def to(self, device: torch.device | str) -> Self:
        """The same faces on ``device``, which is where they are then drawn."""
        return type(self)(self.switches.to(device), self.group.to(device), self.traits.to(device))

    # -------------------------------------------------------------------------------------------------------- labels

    def carries(self, concepts: Sequence[str]) -> Tensor:
        """Which faces have which concepts: ``[N, len(concepts)]`` bool; parts they all have.

        Raises:
            KeyError: If a concept is not one of the paper's local ones.
        """
        columns = [self._present(PAPER.local[PAPER.concept_index(name)].name) for name in concepts]
        empty = self.switches[:, :0]
        return torch.stack(columns, dim=1) if columns else empty

    def _present(self, name: str) -> Tensor:
        if name == "No_Beard":
            return ~self.switches[:, [SWITCHES.index(style) for style in (*FACIAL_HAIR, FULL_BEARD)]].any(1)
        if name in SWITCHES:
            return self.switches[:, SWITCHES.index(name)]
        return torch.ones_like(self.switches[:, 0])

    def groups(self, name: str) -> Tensor:
        """The group of each face, ``[N]`` int64, as an index into those of ``name`` in :data:`concepts.PAPER`.

        Raises:
            ValueError: If ``name`` is not age, gender or skin_tone.
        """
        if name not in GLOBAL:
            raise ValueError(f"rendered faces have no groups of {name!r}; there are {', '.join(GLOBAL)}")
        return self.group[:, list(GLOBAL).index(name)]

    def replace(self, **changes: bool | int | str | Tensor) -> Self:
        """The same faces with other labels: ``replace(Smiling=True, gender="Female")``.

        Facial hair and ``No_Beard`` stay consistent. A face given a ``Goatee`` is no longer ``No_Beard``; one that
        loses its last hair becomes so. ``No_Beard=True`` takes all facial hair away, ``No_Beard=False`` gives
        a full beard to those who have none.

        Args:
            **changes: Local concepts with a bool or a ``[N]`` bool tensor; global ones with the name or index of
                a group or a ``[N]`` tensor of indices.

        Raises:
            ValueError: If a name is unknown or a value does not fit, or if ``No_Beard=True`` comes with facial hair.
        """
        switches, group = self.switches.clone(), self.group.clone()
        require_known(changes)
        for name in sorted(changes, key=lambda name: name != "No_Beard"):
            if name in GLOBAL:
                group[:, list(GLOBAL).index(name)] = self._group_values(name, changes[name])
                continue
            value = self._presence_values(name, changes[name])
            if name == "No_Beard":
                beard = SWITCHES.index(FULL_BEARD)
                styles = [SWITCHES.index(style) for style in (*FACIAL_HAIR, FULL_BEARD)]
                switches[:, beard] |= self._present(name) & ~value
                switches[:, styles] &= ~value[:, None]
            else:
                switches[:, SWITCHES.index(name)] = value
        result = replace(self, switches=switches, group=group)
        if "No_Beard" in changes and bool(
            (result._present("No_Beard") != self._presence_values("No_Beard", changes["No_Beard"])).any()
        ):
            raise ValueError(f"No_Beard excludes {', '.join(FACIAL_HAIR)}: they cannot be given together")
        return result

    def flipped(self, name: str) -> Self:
        """The same faces, those with the concept ``name`` without it and those without it with it."""
        return self.replace(**{name: ~self._present(name)})

    def _presence_values(self, name: str, value: Any) -> Tensor:
        result = torch.as_tensor(value, device=self.switches.device)
        if result.dtype != torch.bool or result.shape not in ((), (len(self),)):
            raise ValueError(f"{name} needs True, False or a bool tensor of {len(self)} values, got {value!r}")
        return result.expand(len(self))

    def _group_values(self, name: str, value: Any) -> Tensor:
        groups = GLOBAL[name].groups
        if isinstance(value, str) and value in groups:
            value = groups.index(value)
        if isinstance(value, str):
            raise ValueError(f"{name} has no group {value!r}; there are {', '.join(groups)}")
        result = torch.as_tensor(value, device=self.group.device)
        if result.shape not in ((), (len(self),)) or bool(((result < 0) | (result >= len(groups))).any()):
            raise ValueError(f"{name} needs a group or {len(self)} indices in 0..{len(groups) - 1}, got {value!r}")
        return result.long().expand(len(self))

    # --------------------------------------------------------------------------------------------- as drawings read it

    def pose(self, size: tuple[int, int]) -> Pose:
        """Where the faces are in a picture of this height and width."""
        height, width = size
        scale = self.between("scale", 0.145, 0.2) * min(size)
        return Pose(
            x=width * self.between("x", 0.31, 0.69),
            y=height * self.between("y", 0.21, 0.6),
            scale=scale,
            roll=self.between("roll", -0.3, 0.3),
            yaw=self.between("yaw", -0.22, 0.22),
            edge=self.between("blur", 1.0, 2.2) / scale,
        )

    def on(self, name: str) -> Tensor:
        """``[N, 1, 1]`` float32, 1 for faces that carry ``name``."""
        return self._present(name).float()[:, None, None]

    def is_group(self, name: str, group: int) -> Tensor:
        """``[N, 1, 1]`` float32, 1 for faces of this group of ``name``."""
        return (self.groups(name) == group).float()[:, None, None]

    def between(self, trait: str, low: float, high: float) -> Tensor:
        """``[N, 1, 1]`` float32, a trait, spread over ``low`` to ``high``."""
        return low + (high - low) * self.traits[:, TRAITS.index(trait), None, None]

    def chance(self, trait: str, probability: float) -> Tensor:
        """``[N, 1, 1]`` float32, 1 with this probability."""
        return (self.between(trait, 0, 1) < probability).float()

    # ---------------------------------------------------------------------------------------------------------- file

    def save(self, path: str | Path) -> None:
        """Writes the parameters as NumPy's ``.npz``, to this very path; plain data."""
        with Path(path).open("wb") as file:
            np.savez(file, switches=self.switches.cpu(), group=self.group.cpu(), traits=self.traits.cpu())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: If the file holds something else.
        """
        with np.load(path, allow_pickle=False) as data:
            if set(data) != {"switches", "group", "traits"} or data["traits"].shape[1:] != (len(TRAITS),):
                raise ValueError(f"{path} holds no rendered faces of this version")
            return cls(*(torch.from_numpy(data[name]) for name in ("switches", "group", "traits")))
