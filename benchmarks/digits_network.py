"""A small network of inverted residuals for 32 x 32 pixels, for export_digits.py."""

from __future__ import annotations

from torch import nn


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, given: int, made: int, stride: int):
        super().__init__()
        wide = 4 * given
        self.body = nn.Sequential(
            nn.Conv2d(given, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, made, 1, bias=False), nn.BatchNorm2d(made),
        )  # fmt: skip
        self.adds = stride == 1 and given == made

    def forward(self, x):
        return x + self.body(x) if self.adds else self.body(x)


class Network(nn.Module):
    """Six inverted residuals for 32 x 32."""

    def __init__(self, num_classes: int = 5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential(
            Block(12, 16, 2), Block(16, 16, 1), Block(16, 24, 2), Block(24, 24, 1), Block(24, 32, 1), Block(32, 32, 1)
        )
        self.head = nn.Linear(32, num_classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def make(num_classes: int = 5) -> nn.Module:
    """Return the network, as `planner` asks for it."""
    return Network(num_classes)
