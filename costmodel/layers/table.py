"""Layers that keep for backward what the `lean` accounting says, and no more.

Each takes the arguments of the function of the same name in torch.nn.functional and returns the same, to the last bit
(`frozen_batch_norm` is batch norm with its running statistics). Where no gradient is wanted they run PyTorch's own. To
add one write it in the family's file and a line here; tests/costmodel/layers/test_layers.py says what it must show.

Used by `costmodel.apply`, which puts them in place of the calls of a network that keep more than is needed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .activations import hardsigmoid, hardtanh, leaky_relu, relu, relu6, sigmoid, tanh
from .convolution import conv1d, conv2d, conv3d
from .dropout import dropout
from .elementwise import pad
from .linear import linear, matmul
from .norms import frozen_batch_norm
from .pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d

# By the operation's name in costmodel.rules.
LAYERS: dict[str, Callable[..., Tensor]] = {
    "conv1d": conv1d,
    "conv2d": conv2d,
    "conv3d": conv3d,
    "linear": linear,
    "matmul": matmul,
    "frozen_batch_norm": frozen_batch_norm,
    "relu": relu,
    "relu6": relu6,
    "hardtanh": hardtanh,
    "leaky_relu": leaky_relu,
    "hardsigmoid": hardsigmoid,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "dropout": dropout,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "pad": pad,
}
