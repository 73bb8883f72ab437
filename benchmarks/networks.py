"""The networks that are dissected in the benchmarks, with fresh weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_hnd import FaceDictionary


@torch.no_grad()
def smile_net() -> nn.Module:
    """Four convolutions of kernel 4 and stride 2: at 256 px the last has 256 units of 16 x 16.

    Biases are such that each unit is on as often as off on a few rendered faces; as initialised, many are dead.
    """
    widths = [3, 32, 64, 128, 256]
    maps = FaceDictionary.rendered(size=256, images=16).images(slice(None))
    net = nn.Sequential()
    for a, b in pairwise(widths):
        convolution = nn.Conv2d(a, b, 4, 2, 1)
        maps = convolution(maps)
        middle = maps.transpose(0, 1).flatten(1).median(1).values
        convolution.bias = nn.Parameter(convolution.bias - middle) if convolution.bias is not None else None
        net.extend([convolution, nn.ReLU()])
        maps = torch.relu(maps - middle[:, None, None])
    return net


class Block(nn.Module):
    """A residual block of a ResNet-18."""

    def __init__(self, inputs: int, units: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, units, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(units), nn.BatchNorm2d(units)
        self.conv2 = nn.Conv2d(units, units, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(inputs, units, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.skip(x))


def resnet18() -> nn.Sequential:
    """The trunk of a ResNet-18; at 112 px its stages have maps of 28, 14, 7 and 4."""
    trunk = nn.Sequential()
    trunk.add_module(
        "stem",
        nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    )
    widths = [64, 64, 128, 256, 512]
    for i, (a, b) in enumerate(pairwise(widths), start=1):
        trunk.add_module(f"layer{i}", nn.Sequential(Block(a, b, 1 if i == 1 else 2), Block(b, b, 1)))
    return trunk


class Bottleneck(nn.Module):
    """A residual block of a ResNet-50."""

    def __init__(self, inputs: int, units: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, units, 1, bias=False), nn.BatchNorm2d(units)
        self.conv2, self.bn2 = nn.Conv2d(units, units, 3, stride, 1, bias=False), nn.BatchNorm2d(units)
        self.conv3, self.bn3 = nn.Conv2d(units, 4 * units, 1, bias=False), nn.BatchNorm2d(4 * units)
        self.skip: nn.Module = nn.Identity()
        if inputs != 4 * units:
            self.skip = nn.Sequential(nn.Conv2d(inputs, 4 * units, 1, stride, bias=False), nn.BatchNorm2d(4 * units))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(y)) + self.skip(x))


def resnet50() -> nn.Sequential:
    """The trunk of a ResNet-50; at 224 px its last stage has 2048 units of 7 x 7."""
    trunk, inputs = nn.Sequential(), 64
    trunk.add_module("stem", resnet18().get_submodule("stem"))
    for i, (units, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        stage = nn.Sequential()
        for b in range(blocks):
            stage.append(Bottleneck(inputs, units, 2 if i > 1 and b == 0 else 1))
            inputs = 4 * units
        trunk.add_module(f"layer{i}", stage)
    return trunk


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, images: Tensor) -> nn.Module:
    """Gives batch norms the statistics of some images: with those they begin with, many units are dead."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    return model.eval()
