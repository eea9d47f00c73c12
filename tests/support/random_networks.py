"""Random networks for hypothesis: a program of steps on numbered registers, and the torch module that runs it.

    @given(random_networks())
    def test(network): ...          # network.module, network.resolution, network.steps

Register 0 is the image; every step reads registers and makes one or two new ones, so that a tensor may be read by
several steps, and a step may run another step's module again. Everything takes part in the result: what no step has
read goes, pooled, into the head. In-place steps stand only where PyTorch allows them: where nothing has kept the value
that they overwrite.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from costmodel import LayerGraph

# activation -> (module, functional form, whether both take `inplace`, name of a method or torch function)
ACTIVATIONS = {
    "relu": (nn.ReLU, F.relu, True, "relu"),
    "relu6": (nn.ReLU6, F.relu6, True, None),
    "hardtanh": (nn.Hardtanh, F.hardtanh, True, None),
    "leaky_relu": (nn.LeakyReLU, F.leaky_relu, True, None),
    "hardsigmoid": (nn.Hardsigmoid, F.hardsigmoid, True, None),
    "hardswish": (nn.Hardswish, F.hardswish, True, None),
    "silu": (nn.SiLU, F.silu, True, None),
    "mish": (nn.Mish, F.mish, True, None),
    "gelu": (nn.GELU, F.gelu, False, None),
    "sigmoid": (nn.Sigmoid, torch.sigmoid, False, "sigmoid"),
    "tanh": (nn.Tanh, torch.tanh, False, "tanh"),
    "softmax": (lambda: nn.Softmax(1), lambda x: F.softmax(x, 1), False, None),
}
_KEEP_OUTPUT = {"relu", "leaky_relu", "sigmoid", "tanh", "softmax"}
# Their in-place form keeps a clone of its input, so that the storage may be overwritten again.
_KEEP_CLONE = {"relu6", "hardtanh", "hardsigmoid", "hardswish", "silu", "mish"}
GATES = ("sigmoid", "hardsigmoid", "relu", "tanh")
FORMS = ("module", "functional", "method")

Shape = tuple[int, ...]  # of one image: (channels, height, width), or (features,)


@dataclass(frozen=True)
class Step:
    """One step: what it does, the registers that it reads, its options, and whose module it runs (its own: None)."""

    op: str
    reads: tuple[int, ...]
    options: dict = field(default_factory=dict)
    module_of: int | None = None


@dataclass(frozen=True)
class RandomNetwork:
    """What was drawn: the steps, the channels and resolution of its images, and the module (see `RunSteps`)."""

    steps: tuple[Step, ...]
    channels: int
    resolution: int

    @cached_property
    def module(self) -> nn.Module:
        """The network in train mode, the same weights each time it is drawn; hand a copy on if you change it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return RunSteps(self.steps)

    def fresh(self) -> nn.Module:
        """Return a copy of the module."""
        return copy.deepcopy(self.module)

    def images(self, batch: int) -> torch.Tensor:
        """Return images that it takes."""
        return torch.randn(batch, self.channels, self.resolution, self.resolution)


# --- running a program ------------------------------------------------------------------------------------------------


class RunSteps(nn.Module):
    """Runs steps on registers; returns the last one."""

    def __init__(self, steps: tuple[Step, ...]):
        super().__init__()
        self.program = steps
        made = {str(i): _module(step) for i, step in enumerate(steps) if step.module_of is None}
        self.steps = nn.ModuleDict({name: module for name, module in made.items() if module is not None})
        last_read = {register: i for i, step in enumerate(steps) for register in step.reads}
        self._dropped = {i: [register for register, last in last_read.items() if last == i] for i in range(len(steps))}

    def forward(self, x):
        """Return the last register."""
        registers = {0: x}
        del x
        count = 1
        for i, step in enumerate(self.program):
            name = str(i if step.module_of is None else step.module_of)
            module = self.steps[name] if name in self.steps else None  # noqa: SIM401  (a ModuleDict has no get)
            results = _run(step, module, [registers[register] for register in step.reads])
            for result in results if isinstance(results, (tuple, list)) else (results,):
                registers[count] = result
                count += 1
            del results, result
            for register in self._dropped[i]:
                registers.pop(register, None)
        return registers[count - 1]


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weight is normalised by channel at every call."""

    def forward(self, x):
        """Return the convolution with the normalised weight."""
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding, 1, self.groups)


class SameConv2d(nn.Conv2d):
    """A convolution that PyTorch pads by itself, on one side more than on the other if its kernel is even."""

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, padding="same", groups=channels)


class PixelLinear(nn.Linear):
    """The same linear map of every pixel; its input is a permuted view, copied to be contiguous or not."""

    def __init__(self, channels: int, contiguous: bool):
        super().__init__(channels, channels)
        self.contiguous = contiguous

    def forward(self, x):
        """Return the mapped pixels, channels first again."""
        pixels = x.permute(0, 2, 3, 1)
        return super().forward(pixels.contiguous() if self.contiguous else pixels).permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel."""

    def forward(self, x):
        """Return x normalised, its dimensions in the order they came."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """One head of attention between pixels, from matrix products and a softmax."""

    def __init__(self, channels: int):
        super().__init__()
        self.queries, self.keys = nn.Conv2d(channels, 2, 1), nn.Conv2d(channels, 2, 1)

    def forward(self, x):
        """Return x, mixed between pixels."""
        queries, keys = self.queries(x).flatten(2).transpose(1, 2), self.keys(x).flatten(2)
        weights = (torch.bmm(queries, keys) * 0.5).softmax(dim=-1)
        return torch.matmul(x.flatten(2), weights.transpose(1, 2)).view(x.shape)


class ChannelAttention(nn.Module):
    """A gate from a one-dimensional convolution over the pooled channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        """Return x times its gate."""
        gate = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid().view(x.shape[0], -1, 1, 1)
        return x * gate.expand_as(x)


class ResponseNorm(nn.Module):
    """Scales channels by their norm over the pixels, relative to the mean norm (ConvNeXt V2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.full((1, channels, 1, 1), value)) for value in (0.1, 0.0))

    def forward(self, x):
        """Return x + shift + scale * normalised x."""
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        return x + torch.addcmul(self.shift, self.scale, x * (size / (size.mean(dim=1, keepdim=True) + 1e-6)))


class Scale(nn.Module):
    """One trained factor per channel."""

    def __init__(self, channels: int, inplace: bool):
        super().__init__()
        self.gamma, self.inplace = nn.Parameter(torch.full((channels, 1, 1), 0.5)), inplace

    def forward(self, x):
        """Return x times gamma."""
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int, bias: bool, standardized: bool = False):
    kind = StandardizedConv2d if standardized else nn.Conv2d
    return kind(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


def _norm(kind: str, channels: int, affine: bool = True, tracked: bool = True) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels, affine=affine, track_running_stats=tracked)
    if kind == "layer":
        return LayerNorm2d(channels, elementwise_affine=affine)
    return nn.GroupNorm(2 if channels % 2 == 0 else 1, channels, affine=affine)


def _module(step: Step) -> nn.Module | None:
    """Return the module that a step runs; None for a functional step."""
    options = step.options
    if step.op == "activation":
        make, _, has_inplace, _ = ACTIVATIONS[options["name"]]
        if options["form"] != "module":
            return None
        return make(inplace=options["inplace"]) if has_inplace else make()
    if step.op == "dropout":
        return nn.Dropout(0.3, options["inplace"]) if options["form"] == "module" else None
    if step.op == "pool" and options["form"] == "module":
        kind, settings = options["kind"], options["settings"]
        if kind in ("max", "avg"):
            return {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[kind](**settings)
        return nn.AdaptiveAvgPool2d(settings["output_size"])
    make = {
        "conv": _conv,
        "norm": _norm,
        "linear": nn.Linear,
        "vector_norm": nn.LayerNorm,
        "attention": Attention,
        "channel_attention": ChannelAttention,
        "response_norm": ResponseNorm,
        "scale": Scale,
        "same_conv": SameConv2d,
        "pixel_linear": PixelLinear,
        "block": RunSteps,
    }.get(step.op)
    return make(**options) if make else None


def _number(x, kind: str):
    return {
        "times": lambda: x * 0.5, "over": lambda: x / 2, "plus": lambda: x + 3.0, "from": lambda: 1 - x,
        "squared": lambda: x**2, "square": lambda: x.square(),
    }[kind]()  # fmt: skip


def _gated_by_a_constant(x):
    with torch.no_grad():
        gate = torch.sigmoid(x)
    return x * gate * torch.tanh(x.detach())


def _shuffle(x):
    n, channels, height, width = x.shape
    return x.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(n, channels, height, width)


_FUNCTIONS = {
    "cat": lambda *x: torch.cat(x, 1),
    "split": lambda x: torch.split(x, (1, x.shape[1] - 1), 1),
    "chunk": lambda x: x.chunk(2, dim=1),
    "slice": lambda x: x[:, 1:],
    "shuffle": _shuffle,
    "rescale": lambda x, mode: F.interpolate(x, scale_factor=0.5 if mode == "area" else 2, mode=mode),
    "pick": lambda x: x[:, torch.arange(x.shape[1] - 1, -1, -1, device=x.device)],
    "stack": lambda x, y: torch.stack((x, y)).sum(0),
    "gated_by_a_constant": _gated_by_a_constant,
    "pad": lambda x, mode: F.pad(x, (1, 0, 2, 1), mode=mode),
    "number": _number,
    "over": lambda x, y: x / (torch.sigmoid(y) + 1.0),
    "root": lambda x: torch.sqrt(x**2 + 1.0),
    "inverse_root": lambda x: x * (x.var(dim=(2, 3), keepdim=True, unbiased=False) + 1.0).rsqrt(),
    "gaussian": lambda x: torch.exp(-1.0 * x.square()),
    "mean": lambda x: x.mean((2, 3)),
    "total": lambda x: x.sum((2, 3)) * 0.1,
    "flatten": lambda x: x.flatten(1),
    "gate_pool": lambda x: x.mean((2, 3), keepdim=True),
}


def _run(step: Step, module: nn.Module | None, given: list):
    options = step.options
    if module is not None:
        return module(*given)
    if step.op == "activation":
        _, function, has_inplace, method = ACTIVATIONS[options["name"]]
        if options["form"] == "method" and method:
            return getattr(given[0], method + ("_" if options["inplace"] else ""))()
        return function(given[0], inplace=options["inplace"]) if has_inplace else function(given[0])
    if step.op == "dropout":
        return F.dropout(given[0], 0.3, True, options["inplace"])
    if step.op == "pool":
        kind = {"max": F.max_pool2d, "avg": F.avg_pool2d, "adaptive": F.adaptive_avg_pool2d}[options["kind"]]
        return kind(given[0], **options["settings"])
    if step.op in ("add", "sub", "mul"):
        inplace, plain = {
            "add": (torch.Tensor.add_, torch.Tensor.__add__),
            "sub": (torch.Tensor.sub_, torch.Tensor.__sub__),
            "mul": (torch.Tensor.mul_, torch.Tensor.__mul__),
        }[step.op]
        return (inplace if options["inplace"] else plain)(*given)
    return _FUNCTIONS[step.op](*given, **options)


# --- drawing a program ------------------------------------------------------------------------------------------------


@dataclass
class _Memory:
    """A storage while a program is drawn: whether something keeps its present content, who may write it."""

    kept: bool = False
    of_the_caller: bool = False


@dataclass
class _Register:
    shape: Shape
    memory: _Memory
    writable: bool = True  # one of several views of a tensor must not be written
    readable: bool = True  # its memory has been overwritten since
    read: bool = False


class _Draft:
    """A program being drawn."""

    def __init__(self, draw, shape: Shape, depth: int):
        self.draw, self.depth = draw, depth
        self.steps: list[Step] = []
        self.registers = [_Register(shape, _Memory(of_the_caller=True))]

    # what the drawing code asks

    def flip(self, ones_of: int = 2) -> bool:
        """Return True once in so many draws; False is what hypothesis simplifies to."""
        return self.draw(st.integers(0, ones_of - 1)) == ones_of - 1

    def pick(self, *choices):
        return self.draw(st.sampled_from(choices))

    def images(self) -> list[int]:
        return [i for i, register in enumerate(self.registers) if register.readable and len(register.shape) == 3]

    def vectors(self) -> list[int]:
        return [i for i, register in enumerate(self.registers) if register.readable and len(register.shape) == 1]

    def source(self) -> int:
        """Return a register of pixels: mostly the newest, else any (a shared tensor)."""
        candidates = self.images()
        return self.draw(st.sampled_from(candidates)) if self.flip(3) else candidates[-1]

    def may_overwrite(self, register: int) -> bool:
        found = self.registers[register]
        return found.writable and not found.memory.kept and not found.memory.of_the_caller

    # what a step does to the registers

    def step(self, op, reads, shapes, options=None, keeps=False, keeps_output=False, view=False, multiple=False,
             inplace=False, module_of=None) -> int:  # fmt: skip
        """Add a step; return the register of its (first) result."""
        reads = tuple(reads)
        for register in reads:
            self.registers[register].read = True
            if keeps:
                self.registers[register].memory.kept = True
        memory = _Memory()
        if view or inplace:
            memory = self.registers[reads[0]].memory
        if inplace:
            for register in self.registers:
                if register.memory is memory:
                    register.readable = False
        memory.kept |= keeps_output
        writable = not multiple and (not (view or inplace) or self.registers[reads[0]].writable)
        first = len(self.registers)
        for shape in shapes:
            self.registers.append(_Register(shape, memory if view or inplace else _Memory(memory.kept), writable))
        self.steps.append(Step(op, reads, options or {}, module_of))
        return first

    def conv(self, x: int, outputs: int, kernel=1, stride=1, groups=1, bias=False, standardized=False) -> int:
        channels, height, width = self.registers[x].shape
        size = tuple((side - 1) // stride + 1 for side in (height, width))
        options = {
            "inputs": channels, "outputs": outputs, "kernel": kernel, "stride": stride, "groups": groups, "bias": bias,
            "standardized": standardized,
        }  # fmt: skip
        return self.step("conv", [x], [(outputs, *size)], options, keeps=True)

    def norm(self, x: int, kind: str, affine: bool = True, tracked: bool = True) -> int:
        shape = self.registers[x].shape
        options = {"kind": kind, "channels": shape[0], "affine": affine, "tracked": tracked}
        return self.step("norm", [x], [shape], options, keeps=True)

    def activation(self, x: int, name: str, form: str, inplace: bool) -> int:
        _, _, has_inplace, method = ACTIVATIONS[name]
        by_method = form == "method" and method is not None
        if name == "softmax":
            inplace = False
        inplace = inplace and (has_inplace or by_method) and self.may_overwrite(x)
        keeps_input = name not in _KEEP_OUTPUT and not inplace
        options = {"name": name, "form": form, "inplace": inplace}
        return self.step("activation", [x], [self.registers[x].shape], options, keeps=keeps_input,
                         keeps_output=name in _KEEP_OUTPUT, inplace=inplace)  # fmt: skip

    def any_activation(self, x: int) -> int:
        return self.activation(x, self.pick(*ACTIVATIONS), self.pick(*FORMS), self.flip())

    def same_shape(self, x: int) -> list[int]:
        return [i for i in self.images() if self.registers[i].shape == self.registers[x].shape]


def _add_conv(d: _Draft) -> None:
    x = d.source()
    channels = d.registers[x].shape[0]
    groups = d.pick(1, channels)
    outputs = (
        channels * d.pick(1, 2) if groups > 1 and channels <= 6 else channels if groups > 1 else d.pick(4, 2, 6, 3)
    )
    kernel, stride, bias = d.pick(1, 3, 5), d.pick(1, 1, 2), d.flip()
    if d.flip(6):
        options = {"channels": channels, "kernel": d.pick(2, 3)}
        d.step("same_conv", [x], [d.registers[x].shape], options, keeps=True)
        return
    standardized = d.flip(6) and channels // groups * kernel > 1  # a single value has no deviation
    d.conv(x, outputs, kernel, stride, groups, bias, standardized)


def _add_norm(d: _Draft) -> None:
    d.norm(d.source(), d.pick("batch", "group", "layer"), not d.flip(5), not d.flip(5))


def _add_activation(d: _Draft) -> None:
    d.any_activation(d.source())


def _add_dropout(d: _Draft) -> None:
    x = d.source()
    inplace = d.flip() and d.may_overwrite(x)
    options = {"form": d.pick("module", "functional"), "inplace": inplace}
    d.step("dropout", [x], [d.registers[x].shape], options, inplace=inplace)


def _add_pool(d: _Draft) -> None:
    x = d.source()
    channels, height, width = d.registers[x].shape
    kind = d.pick("max", "avg", "adaptive")
    if kind == "adaptive":
        size = (min(height, d.pick(1, 2, 3)), min(width, d.pick(1, 2)))
        settings, keeps = {"output_size": size}, size != (1, 1)
    elif min(height, width) < 3:
        return
    else:
        kernel, stride, padding, up = d.pick(2, 3), d.pick(1, 2), d.pick(0, 1), d.flip()
        settings, keeps = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": up}, True
        size = tuple(F.max_pool2d(torch.empty(1, side, side, device="meta"), **settings).shape[-1]
                     for side in (height, width))  # fmt: skip
    d.step("pool", [x], [(channels, *size)], {"kind": kind, "form": d.pick("functional", "module"),
                                              "settings": settings}, keeps=keeps)  # fmt: skip


def _add_sum_or_product(d: _Draft) -> None:
    x = d.source()
    y = d.pick(*d.same_shape(x))
    op = d.pick("add", "sub", "mul")
    # An in-place product keeps a clone of x and y itself; y must not be the memory that is written.
    inplace = d.flip() and d.may_overwrite(x) and d.registers[x].memory is not d.registers[y].memory
    if op == "mul":
        d.registers[y].memory.kept = True
    if op == "add" and not inplace and d.flip(4):
        op, options = "stack", {}
    else:
        options = {"inplace": inplace}
    d.step(op, [x, y], [d.registers[x].shape], options, keeps=op == "mul" and not inplace, inplace=inplace)


def _add_quotient(d: _Draft) -> None:
    x = d.source()
    d.step("over", [x, d.pick(*d.same_shape(x))], [d.registers[x].shape], keeps=True, keeps_output=True)


def _add_cat(d: _Draft) -> None:
    x = d.source()
    _, *size = d.registers[x].shape
    parts = [x, d.pick(*(i for i in d.images() if list(d.registers[i].shape[1:]) == size))]
    channels = sum(d.registers[i].shape[0] for i in parts)
    if channels <= 12:
        d.step("cat", parts, [(channels, *size)])


def _add_parts(d: _Draft) -> None:
    x = d.source()
    channels, *size = d.registers[x].shape
    op = d.pick("chunk", "split", "slice", "pick")
    if channels < 2:
        return
    if op == "pick":
        d.step(op, [x], [(channels, *size)])
        return
    if op == "slice":
        d.step(op, [x], [(channels - 1, *size)], view=True)
        return
    first = -(-channels // 2) if op == "chunk" else 1
    d.step(op, [x], [(first, *size), (channels - first, *size)], view=True, multiple=True)


def _add_shuffle(d: _Draft) -> None:
    x = d.source()
    shape = d.registers[x].shape
    if shape[0] % 2 == 0:
        # With two channels the shuffle is the identity and may be a view: it counts as kept, so nothing writes it.
        d.step("shuffle", [x], [shape], keeps=True, keeps_output=True)


def _add_resize(d: _Draft) -> None:
    x = d.source()
    channels, height, width = d.registers[x].shape
    if min(height, width) >= 4 and d.flip(4):
        d.step("rescale", [x], [(channels, height // 2, width // 2)], {"mode": "area"}, keeps=True)
    elif d.flip() and max(height, width) <= 6:
        mode = d.pick("nearest", "bilinear")
        d.step("rescale", [x], [(channels, 2 * height, 2 * width)], {"mode": mode})
    elif 4 <= height <= 10 and width >= 4:
        mode = d.pick("constant", "reflect", "replicate", "circular")
        d.step("pad", [x], [(channels, height + 3, width + 1)], {"mode": mode}, keeps=mode != "constant")


def _add_function(d: _Draft) -> None:
    x = d.source()
    shape = d.registers[x].shape
    op = d.pick("number", "root", "inverse_root", "gaussian", "scale", "response_norm", "pixel_linear",
                "gated_by_a_constant")  # fmt: skip
    if op == "number":
        kind = d.pick("times", "over", "plus", "squared", "from", "square")
        d.step(op, [x], [shape], {"kind": kind}, keeps=True)
    elif op == "pixel_linear":
        options = {"channels": shape[0], "contiguous": d.flip()}
        d.step(op, [x], [shape], options, keeps=True)
    elif op == "scale":
        inplace = d.flip() and d.may_overwrite(x)
        d.step(op, [x], [shape], {"channels": shape[0], "inplace": inplace}, keeps=not inplace, inplace=inplace)
    elif op == "response_norm":
        d.step(op, [x], [shape], {"channels": shape[0]}, keeps=True)
    else:
        d.step(op, [x], [shape], keeps=True, keeps_output=True)


def _add_attention(d: _Draft) -> None:
    x = d.source()
    shape = d.registers[x].shape
    if d.flip():
        d.step("channel_attention", [x], [shape], keeps=True)
    else:
        d.step("attention", [x], [shape], {"channels": shape[0]}, keeps=True)


def _add_squeeze_excite(d: _Draft, x: int | None = None) -> int:
    x = d.source() if x is None else x
    channels = d.registers[x].shape[0]
    pooled = d.step("gate_pool", [x], [(channels, 1, 1)])
    reduced = d.any_activation(d.conv(pooled, 2, bias=True))
    gate = d.activation(d.conv(reduced, channels, bias=True), d.pick(*GATES), d.pick(*FORMS), d.flip())
    inplace = d.flip(4) and d.may_overwrite(x)
    d.registers[gate].memory.kept = True
    return d.step("mul", [x, gate], [d.registers[x].shape], {"inplace": inplace}, keeps=not inplace, inplace=inplace)


def _add_inverted_residual(d: _Draft) -> None:
    x = d.source()
    channels = d.registers[x].shape[0]
    kind, name, form, inplace = (
        d.pick("batch", "group"), d.pick(*ACTIVATIONS), d.pick(*FORMS), d.flip(),
    )  # fmt: skip
    stride, outputs = d.pick(1, 1, 2), d.pick(channels, 4)
    expansion = d.pick(2, None, 3)
    inner = x
    if expansion and channels <= 6:
        inner = d.activation(d.norm(d.conv(inner, channels * expansion), kind), name, form, inplace)
    width = d.registers[inner].shape[0]
    inner = d.norm(d.conv(inner, width, d.pick(3, 5), stride, width), kind)
    inner = d.activation(inner, name, form, inplace)
    if d.flip():
        inner = _add_squeeze_excite(d, inner)
    inner = d.norm(d.conv(inner, outputs), kind)
    if d.registers[inner].shape == d.registers[x].shape and d.registers[x].readable and d.flip():
        if d.flip(4):
            shape = d.registers[inner].shape
            inner = d.step("dropout", [inner], [shape], {"form": "functional", "inplace": False})
        pair = [inner, x] if d.flip() else [x, inner]
        inplace = d.flip() and d.may_overwrite(pair[0])
        d.step("add", pair, [d.registers[x].shape], {"inplace": inplace}, inplace=inplace)


def _add_block(d: _Draft) -> None:
    """A module of its own, with its own registers."""
    if not d.depth:
        return
    x = d.source()
    inner = _Draft(d.draw, d.registers[x].shape, d.depth - 1)
    for add in d.draw(st.lists(st.sampled_from(_ADDITIONS), min_size=1, max_size=4)):
        add(inner)
    if not inner.steps:
        return
    unread = [i for i in inner.images() if i and not inner.registers[i].read]
    while len(unread) > 1:  # their sum, pooled to a pixel each
        pixel = [_to_pixel(inner, i) for i in unread]
        total = pixel[0]
        for other in pixel[1:]:
            total = inner.step("cat", [total, other], [(inner.registers[total].shape[0]
                               + inner.registers[other].shape[0], 1, 1)])  # fmt: skip
        unread = [total]
    result = inner.registers[unread[0]]
    if unread[0] != len(inner.registers) - 1 or result.shape[0] > 12:
        return
    # What happens inside decides what may be written outside; the careful answer is: nothing.
    d.step("block", [x], [result.shape], {"steps": tuple(inner.steps)}, keeps=True, keeps_output=True)


def _to_pixel(d: _Draft, x: int) -> int:
    return d.step("gate_pool", [x], [(d.registers[x].shape[0], 1, 1)])


def _add_again(d: _Draft) -> None:
    """A module that ran before runs once more, on another tensor of the same channels."""
    earlier = [
        i for i, step in enumerate(d.steps)
        if step.module_of is None and step.op in ("conv", "norm") and step.options.get("stride", 1) == 1
    ]  # fmt: skip
    if not earlier:
        return
    chosen = d.pick(*earlier)
    step = d.steps[chosen]
    channels = step.options["channels" if step.op == "norm" else "inputs"]
    fits = [i for i in d.images() if d.registers[i].shape[0] == channels]
    if fits:
        x = d.pick(*fits[::-1])
        shape = (step.options.get("outputs", channels), *d.registers[x].shape[1:])
        d.step(step.op, [x], [shape], step.options, keeps=True, module_of=chosen)


_ADDITIONS = (
    _add_inverted_residual, _add_conv, _add_norm, _add_activation, _add_activation, _add_squeeze_excite, _add_dropout,
    _add_pool, _add_sum_or_product, _add_sum_or_product, _add_quotient, _add_cat, _add_parts, _add_shuffle, _add_resize,
    _add_function, _add_function, _add_attention, _add_again, _add_block,
)  # fmt: skip


def _add_head(d: _Draft) -> None:
    """Pool what nobody has read, concatenate, and map it to five classes."""
    vectors = []
    for i in [i for i in d.images() if i and not d.registers[i].read]:
        channels, height, width = d.registers[i].shape
        op = d.pick("mean", "total", "flatten") if channels * height * width <= 64 else d.pick("mean", "total")
        features = channels * height * width if op == "flatten" else channels
        vectors.append(d.step(op, [i], [(features,)], keeps=op == "flatten", view=op == "flatten"))
    x = vectors[0]
    if len(vectors) > 1:
        x = d.step("cat", vectors, [(sum(d.registers[i].shape[0] for i in vectors),)])
    for _ in range(d.pick(0, 0, 1)):
        features = d.registers[x].shape[0]
        if d.flip():
            x = d.step("vector_norm", [x], [(features,)], {"normalized_shape": features}, keeps=True)
        x = d.step("linear", [x], [(6,)], {"in_features": features, "out_features": 6, "bias": d.flip()}, keeps=True)
        x = d.any_activation(x)
    if d.flip(4):
        inplace = d.flip() and d.may_overwrite(x)
        options = {"form": "module", "inplace": inplace}
        x = d.step("dropout", [x], [d.registers[x].shape], options, inplace=inplace)
    features = d.registers[x].shape[0]
    d.step("linear", [x], [(5,)], {"in_features": features, "out_features": 5, "bias": True}, keeps=True)


@st.composite
def random_networks(draw, max_additions: int = 6) -> RandomNetwork:
    """Draw a network of up to so many random additions between a stem and a head."""
    resolution, channels = draw(st.sampled_from((8, 7))), draw(st.sampled_from((3, 1, 4)))
    d = _Draft(draw, (channels, resolution, resolution), depth=1)
    d.conv(0, draw(st.sampled_from((4, 6))), 3, draw(st.sampled_from((2, 1))))
    for add in draw(st.lists(st.sampled_from(_ADDITIONS), max_size=max_additions)):
        add(d)
    _add_head(d)
    return RandomNetwork(tuple(d.steps), channels, resolution)


def trained_parameters(graph: LayerGraph) -> st.SearchStrategy[frozenset[str]]:
    """Draw which parameters train: any set of them, of which one at least takes part in the output."""
    part = sorted(
        {
            tensor.name
            for layer in graph.layers if layer.index in graph.reaches_output
            for tensor in layer.parameters.values()
        }
    )  # fmt: skip
    return st.one_of(
        st.just(frozenset(graph.parameters)),
        st.sampled_from(part).map(lambda name: frozenset({name})),
        st.lists(st.sampled_from(part), min_size=1, unique=True).map(frozenset),
    )
