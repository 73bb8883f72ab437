"""Rendered faces: drawings whose every label, mask and chance is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_hnd.rendering.areas import draw_areas
from lightning_hnd.rendering.drawing import in_float32
from lightning_hnd.rendering.painting import paint
from lightning_hnd.rendering.parameters import FaceParameters

_PIXELS = 2**19  # drawn at once, about: bounds memory, and is enough to make up for the cost of each call


class RenderedFaces(FaceParameters):
    """Drawn faces: every local concept of the paper, three of its global ones, exact masks.

    Labels are independent of one another unless :meth:`sample` is asked otherwise, so what a unit answers to can
    be told apart. Each concept changes the picture inside its mask and nowhere else. ``left_*`` is the left of the
    picture.

    ``No_Beard`` means no facial hair of any kind: it holds exactly where there is no ``5_o_Clock_Shadow``, no
    ``Goatee``, no ``Mustache`` and no full beard, which is a style without a concept of its own. Ethnicity is not
    drawn: a drawing of it would be a stereotype. Apparent age, gender and skin tone are drawn by conventions too,
    and say no more about people.

    Attributes:
        switches: ``[N, len(SWITCHES)]`` bool, the presence of concepts.
        group: ``[N, 3]`` int64, the group of each concept of ``GLOBAL``.
        traits: ``[N, len(TRAITS)]`` float32 in 0..1, all else that sets one face apart.

    Example:
        >>> faces = RenderedFaces.sample(4, seed=1)
        >>> images, masks = faces.replace(Eyeglasses=True).draw(64, ["Eyeglasses", "nose"])
        >>> images.shape, masks.shape
        (torch.Size([4, 3, 64, 64]), torch.Size([4, 2, 64, 64]))
    """

    def draw(self, size: int | tuple[int, int], concepts: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
        """Draws the faces and masks of concepts.

        A mask is the area in which the concept shows, or would show if the face had it: what appears with it and
        what it hides. With and without it, pictures are the same outside.

        Args:
            size: Height and width in pixels, or one number for both.
            concepts: Local concepts to draw masks of.

        Returns:
            Images ``[N, 3, H, W]`` uint8 and masks ``[N, len(concepts), H, W]`` bool.

        Raises:
            ValueError: If the size is not positive.
            KeyError: If a concept is not one of the paper's local ones.
        """
        height, width = (size, size) if isinstance(size, int) else size
        if height < 1 or width < 1:
            raise ValueError(f"size must be positive, got {size}")
        self.carries(concepts)  # raises at once on unknown names
        images = torch.empty(len(self), 3, height, width, dtype=torch.uint8, device=self.traits.device)
        masks = torch.zeros(len(self), len(concepts), height, width, dtype=torch.bool, device=self.traits.device)
        step = max(1, _PIXELS // (height * width))
        with in_float32(), torch.inference_mode():  # a sixth faster; what is drawn into was made outside
            for start in range(0, len(self), step):
                some = slice(start, start + step)
                images[some] = paint(self[some], (height, width))
                if concepts:
                    draw_areas(self[some], concepts, masks[some])
        return images, masks
