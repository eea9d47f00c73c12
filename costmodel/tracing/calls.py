"""Following a network's calls while it runs: which module made a call, and its number among those of its kind.

The tracer names layers so, and what later runs the real network (`measure`, `apply`) finds the same layer again.
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from ..rules.table import RULES

# Argument names of functions that Python cannot inspect. Source: torch.nn.functional and torch.Tensor documentation.
CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_ARGUMENTS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), CONVOLUTION_ARGUMENTS),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _TRANSPOSED),
    "where": ("condition", "input", "other"),
    "masked_fill": ("input", "mask", "value"),
    "index_select": ("input", "dim", "index"), "gather": ("input", "dim", "index"),
    "instance_norm": ("input", "weight", "bias", "running_mean", "running_var"),
    "prelu": ("input", "weight"),
    "clamp": ("input", "min", "max"),
    "linear": ("input", "weight", "bias"),
    "avg_pool2d": _POOL,
    "gelu": ("input",),
    "mean": ("input", "dim", "keepdim"),
    "sum": ("input", "dim", "keepdim"),
    "flatten": ("input", "start_dim", "end_dim"),
    "unsqueeze": ("input", "dim"), "squeeze": ("input", "dim"),
    "transpose": ("input", "dim0", "dim1"), "swapaxes": ("input", "dim0", "dim1"),
    "var": ("input", "dim"),
    "chunk": ("input", "chunks", "dim"),
    "cat": ("tensors", "dim"),
    "stack": ("tensors", "dim"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "split": ("input", "split_size_or_sections", "dim"),
    "norm": ("input", "p", "dim", "keepdim"),
    "addcmul": ("input", "tensor1", "tensor2"),
    "bmm": ("input", "other"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask", "dropout_p", "is_causal"),
}  # fmt: skip
_DEFAULT_ARGUMENTS = ("input", "other")

_OPERATOR_NAMES = {
    "truediv": "div", "itruediv": "div", "iadd": "add", "radd": "add", "isub": "sub", "imul": "mul", "rmul": "mul",
    "rsub": "sub",
    "concat": "cat", "concatenate": "cat",
}  # fmt: skip


@cache
def operation_name(function: Any) -> tuple[str, bool]:
    """Return the operation's canonical name and whether the function's own name says that it works in place."""
    name: str = function.__name__
    if name == "__get__":  # an attribute such as Tensor.T
        return getattr(function.__self__, "__name__", "attribute"), False
    if name.startswith("__"):
        name = name.strip("_")
        return _OPERATOR_NAMES.get(name, name), name in ("iadd", "isub", "imul", "itruediv", "setitem")
    return _OPERATOR_NAMES.get(name, name.rstrip("_")), name.endswith("_")


@cache
def argument_names(function: Any) -> tuple[str, ...]:
    """Return the names of a function's positional arguments."""
    op, _ = operation_name(function)
    if op in _ARGUMENTS:
        return _ARGUMENTS[op]
    if inspect.isfunction(function):
        try:
            return tuple(inspect.signature(function).parameters)
        except ValueError:  # a wrapper of what is written in C, such as Tensor.__pow__
            return _DEFAULT_ARGUMENTS
    return _DEFAULT_ARGUMENTS


def arguments_by_name(function: Any, args: tuple, kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return a call's arguments, each with its name; a list of tensors as its members, such as `input.0`."""
    names = argument_names(function)
    named = [(names[i] if i < len(names) else f"argument{i}", value) for i, value in enumerate(args)]
    found: list[tuple[str, Any]] = []
    for name, value in (*named, *kwargs.items()):
        if isinstance(value, (tuple, list)) and any(isinstance(item, torch.Tensor) for item in value):
            prefix = "input" if name == "tensors" else name
            found += [(f"{prefix}.{i}", item) for i, item in enumerate(value) if isinstance(item, torch.Tensor)]
        else:
            found.append((name, value))
    return found


def named_tensors(function: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return a call's tensor arguments by role."""
    named = arguments_by_name(function, args, kwargs)
    return {name: value for name, value in named if isinstance(value, torch.Tensor)}


def has_gradient(tensor: torch.Tensor) -> bool:
    """Whether a tensor's type is one that is differentiated: real or complex numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def tensors_in(result: Any) -> list[torch.Tensor]:
    """Return the tensors of a network's result: a tensor, or nested tuples, lists, dicts and dataclasses of them."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, Mapping):
        result = result.values()
    elif is_dataclass(result) and not isinstance(result, type):
        result = [getattr(result, field.name) for field in fields(result)]
    elif not isinstance(result, (tuple, list)):
        return []
    return [tensor for item in result for tensor in tensors_in(item)]


# Modules of PyTorch whose Python functions are made of other calls.
_COMPOSED = ("torch.nn.functional", "torch.functional", "torch._tensor")


@cache
def opened(function: Any) -> Callable | None:
    """Return a function of PyTorch, written in Python, so that the calls that it is made of can be followed.

    None where there is no looking inside, or where the operation has a rule. PyTorch's functions hand a followed call
    on whole before they do anything; of what is returned here that test is gone.
    """
    if not inspect.isfunction(function) or function.__module__ not in _COMPOSED:
        return None
    if operation_name(function)[0] in RULES:
        return None
    never = dict.fromkeys((name for name in function.__globals__ if name.startswith("has_torch_function")), _never)
    copy = FunctionType(
        function.__code__, {**function.__globals__, **never}, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _never(*tensors: Any) -> bool:
    return False


class ModulePath:
    """Knows which of a network's modules is running; a context around one forward pass, in its own thread only."""

    def __init__(self, module: nn.Module):
        self._thread = threading.get_ident()
        self._names = {id(child): name for name, child in module.named_modules()}
        self._running: list[str] = []
        self._hooks: list = []

    def __enter__(self) -> ModulePath:
        def enter(child: nn.Module, _: Any) -> None:
            if self._follows(child):
                self._running.append(self._names[id(child)])

        def leave(child: nn.Module, _: Any, __: Any) -> None:
            if self._follows(child):
                self._running.pop()

        self._hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()

    def _follows(self, child: nn.Module) -> bool:
        return id(child) in self._names and threading.get_ident() == self._thread

    def __str__(self) -> str:
        """The running module's path; '' for the network itself."""
        return self._running[-1] if self._running else ""


class CallTracker(TorchFunctionMode):
    """Knows, for every call that runs under it, the module it belongs to and its ordinal among that module's calls.

    Use it as a context around one forward pass of `module`.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.path = ModulePath(module)
        self.running = ""
        self._counts: Counter[tuple[str, str]] = Counter()
        self._followed: list[Any] = []

    def __enter__(self):
        self.path.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        self.path.__exit__(*error)
        return super().__exit__(*error)

    def opened(self, function: Any) -> Callable | None:
        """Return a function that is made of other calls so that `follow` sees these; None where it is one call."""
        return None if function in self._followed else opened(function)

    def follow(self, function: Callable, inner: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a function as it was `opened`, with the calls inside it seen."""
        self._followed.append(function)
        super().__enter__()
        try:
            return inner(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)
            self._followed.pop()

    @property
    def place(self) -> str:
        """The running module's path, for messages."""
        return str(self.path) or "the network itself"

    def locate(self, function: Any) -> tuple[str, str, int]:
        """Count a call; return (module path, operation, ordinal)."""
        op, _ = operation_name(function)
        self.running = op
        key = (str(self.path), op)
        ordinal = self._counts[key]
        self._counts[key] += 1
        return (*key, ordinal)
