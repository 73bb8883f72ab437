"""A small network that learns labels of pictures, for the measurements on rendered faces."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_hnd.rendering import RenderedFaces
from lightning_hnd.rendering.parameters import TRAITS


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of ``scores [N]`` for bool ``labels [N]``; ties count half."""
    _, inverse, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]
    positive = int(labels.sum())
    negative = len(labels) - positive
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def framed(faces: RenderedFaces, eyes: tuple[float, float], distance: float) -> RenderedFaces:
    """The same faces in a frame that is nearly the same for all, as in aligned crops.

    Args:
        faces: N faces.
        eyes: Where the point between the eyes is, in shares of width and height.
        distance: Of the eyes, by the shorter side.
    """
    # middle, spread, and the range that a trait in 0..1 stands for; beyond it the range goes on
    places = {"x": (eyes[0], 0.02, 0.31, 0.69), "y": (eyes[1], 0.02, 0.21, 0.6)}
    places |= {"scale": (distance, 0.015, 0.145, 0.2), "roll": (0.0, 0.04, -0.3, 0.3)}
    traits = faces.traits.clone()
    for name, (middle, spread, low, high) in places.items():
        column = TRAITS.index(name)
        traits[:, column] = (middle + spread * (2 * traits[:, column] - 1) - low) / (high - low)
    return replace(faces, traits=traits)


def _around(images: Tensor) -> Tensor:
    """The mean around each pixel, ``[N, C, H, W]``: pooled and blurred at a quarter of the size, so at little cost."""
    coarse = functional.avg_pool2d(images, 4, ceil_mode=True)
    coarse = functional.avg_pool2d(functional.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return functional.interpolate(coarse, images.shape[-2:], mode="bilinear")


def normalise(images: Tensor) -> Tensor:
    """Images ``[N, 3, H, W]`` uint8 as the network gets them, by how pixels stand out from what is around them.

    Drawn skin is smoother and drawn light more even than in photographs. Local contrast has less of that, and more
    of lids, lips and folds. A part of the mean is left in, for the tone of the skin.
    """
    images = images.float() / 255
    images = images - images.mean((2, 3), keepdim=True)
    mean = _around(images)
    spread = _around((images - mean).square().mean(1, keepdim=True)).clamp(min=0).sqrt()
    return (images - 0.85 * mean) / (spread + 0.04)


def network(outputs: int, width: int = 20) -> nn.Sequential:
    """Four strided blocks and a linear layer over what is left of the picture.

    The first two blocks are normalised picture by picture: what differs between drawings and photographs as a whole
    is contrast and texture, which early layers hold.
    """
    layers: list[nn.Module] = []
    channels = 3
    for i, out in enumerate((width, 2 * width, 4 * width, 4 * width)):
        layers += [nn.Conv2d(channels, out, 5 if i == 0 else 3, 2, 2 if i == 0 else 1, bias=False)]
        layers += [nn.InstanceNorm2d(out, affine=True) if i < 2 else nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Dropout(0.4), nn.Linear(36 * channels, outputs)
    )


def jitter(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Normalised pictures with other contrast, tint, noise, blur and frame.

    Args:
        images: ``[N, 3, H, W]``.
        generator: Of all chance.
        strength: Of the change of frame: by what share sizes differ, about; 0 for mirroring alone.
    """
    n = len(images)

    def random(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(n, channels, 1, 1, generator=generator)

    images = images * random(0.7, 1.3) * random(0.85, 1.15, 3) + random(-0.3, 0.3, 3)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, random(0, 1))
    images = images + random(0, 0.15) * torch.randn(images.shape, generator=generator)
    mirrored = random(0, 1) < 0.5
    if not strength:
        return torch.where(mirrored, images.flip(3), images)
    scale, turn = random(1 - strength, 1 + strength), random(-strength, strength)
    right, down = random(-0.6 * strength, 0.6 * strength), random(-0.6 * strength, 0.6 * strength)
    across = torch.where(mirrored, -scale, scale) * random(1 - strength / 2, 1 + strength / 2)
    first = torch.cat([across * turn.cos(), -scale * turn.sin(), right], dim=3)
    second = torch.cat([across * turn.sin(), scale * turn.cos(), down], dim=3)
    grid = functional.affine_grid(torch.cat([first, second], dim=2)[:, 0], list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def train(
    images: Tensor, labels: Tensor, *, epochs: int, seed: int = 0, frame: float = 0.0, batch_size: int = 64
) -> nn.Sequential:
    """Trains the network on ``images [N, 3, H, W]`` uint8 to tell ``labels [N, L]`` bool from their absence.

    Args:
        images: Pictures.
        labels: What they show.
        epochs: How often each picture is shown.
        seed: Of the first weights and of all chance.
        frame: By what share the frames of pictures are varied.
        batch_size: Pictures a step.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = network(labels.shape[1])
        steps = epochs * (len(images) // batch_size)
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for batch in order.split(batch_size)[: len(images) // batch_size]:
                shown = jitter(normalise(images[batch]), generator, frame)
                loss = functional.binary_cross_entropy_with_logits(net(shown), labels[batch].float())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    net.eval()
    return net


@torch.no_grad()
def score(net: nn.Module, images: Tensor) -> Tensor:
    """The network's scores ``[N, L]`` of ``images [N, 3, H, W]`` uint8."""
    return torch.cat([net(normalise(batch)) for batch in images.split(256)])
