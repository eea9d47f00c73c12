"""A training step as a program of ExecuTorch: it trains as PyTorch does, and the runtime's traps are kept shut."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from torch import nn

pytest.importorskip("executorch", reason="needs the extra: pip install 'finetune-planner[executorch]'")

from costmodel import (
    EXECUTORCH_RUNTIME_BYTES,
    InputError,
    ModelError,
    Schedule,
    Step,
    apply,
    export_step,
    footprint,
    import_state,
)
from costmodel.accounting.executorch import CALL_BYTES
from costmodel.export.delegating import check_delegates
from costmodel.export.lowering import lower
from costmodel.export.recording import record
from costmodel.export.running import Running
from costmodel.export.saved import MAGIC
from costmodel.step.regions import regions

SIDE, BATCH, CLASSES = 16, 4, 5


class Block(nn.Module):
    """An inverted residual with in-place activations."""

    def __init__(self, given: int, made: int, stride: int, activation: type[nn.Module]):
        super().__init__()
        wide = 2 * given
        self.body = nn.Sequential(
            nn.Conv2d(given, wide, 1, bias=False), nn.BatchNorm2d(wide), activation(inplace=True),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            activation(inplace=True), nn.Conv2d(wide, made, 1, bias=False), nn.BatchNorm2d(made),
        )  # fmt: skip
        self.adds = stride == 1 and given == made

    def forward(self, x):
        """Return the block's result."""
        return x + self.body(x) if self.adds else self.body(x)


class Small(nn.Module):
    """Two blocks of 8 channels and one of 16, dropout, a head."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU6, dropout: float = 0.0):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), activation(inplace=True))
        self.blocks = nn.Sequential(
            Block(8, 8, 1, activation), Block(8, 16, 2, activation), Block(16, 16, 1, activation)
        )
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(16, CLASSES)

    def forward(self, x):
        """Return logits."""
        return self.head(self.drop(self.blocks(self.stem(x)).mean((2, 3))))


class Flattened(Small):
    """Dropout in place on a view, as in the heads of EfficientNet."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3, inplace=True)

    def forward(self, x):
        """Return logits."""
        features = self.blocks(self.stem(x)).mean((2, 3), keepdim=True)
        return self.head(self.drop(torch.flatten(features, 1)))


class Sliced(Small):
    """Sums in place on a part of a tensor, as in GhostNet; padding that trains, as in timm's `tf_` networks."""

    def forward(self, x):
        """Return logits."""
        features = nn.functional.pad(self.stem(x), (0, 1, 0, 1))
        part = torch.cat([features, features.relu()], 1)[:, :8]
        part += features
        part *= 0.5
        return self.head(self.blocks(part).mean((2, 3)))


class NotInPlace(nn.ReLU6):
    """ReLU6 that never works in place."""

    def __init__(self, inplace: bool = False):
        super().__init__(inplace=False)


def small(method: str, blocks: int | None = None, schedule: Schedule | None = None, **arguments) -> nn.Module:
    """Return a small network, applied, with running statistics as after a training."""
    torch.manual_seed(0)
    network = Small(**arguments)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return apply(network, method, blocks, SIDE, schedule=schedule or Schedule())


def export(network: nn.Module, optimizer: str = "sgd", **arguments):
    """Export a network with three steps of comparison."""
    return export_step(network, optimizer, BATCH, SIDE, **{"check_steps": 3, **arguments})


@pytest.fixture(scope="module")
def plain():
    """The network and its export that several tests look at."""
    network = small("mobiletl", 1, dropout=0.3)
    return network, export(network)


def test_a_program_trains_as_pytorch_does(plain):
    _, found = plain
    check = found.check
    assert check.steps == 3 and len({round(loss, 3) for loss in check.losses}) == 3  # the losses tell steps apart
    assert check.loss_difference < 1e-5
    assert check.weight_difference < 1e-5
    assert check.logit_difference < 1e-4
    assert check.right


def predicted_arena_bytes(network, batch=BATCH):
    """Return what the accounting says of the arena of a plain step."""
    plan = network.training_plan
    return footprint(Step(plan.required.graph, plan.required.way, batch, accounting="executorch")).arena_bytes


def test_the_arena_is_predicted(plain):
    network, found = plain
    planned = found.program.arena_bytes["step"]
    assert abs(predicted_arena_bytes(network) / planned - 1) < 0.01


@pytest.mark.parametrize(("method", "optimizer", "arguments"), [
    ("full", "adam", {"activation": nn.Hardswish}),  # the zeros of its state are constants of the program, too
    ("bias", "momentum", {"schedule": Schedule(micro_batch=2)}),
])  # fmt: skip
def test_ways_optimizers_and_micro_batches(method, optimizer, arguments):
    network = small(method, **arguments)
    found = export(network, optimizer, learning_rate=0.001)
    check = found.check
    if network.training_plan.schedule.micro_batch is None:
        assert abs(predicted_arena_bytes(network) / found.program.arena_bytes["step"] - 1) < 0.01
    assert check.loss_difference < 1e-5
    assert check.weight_difference < max(1e-5, 10 * (check.rounding or 0))


class Wide(nn.Module):
    """More weights than activations: maps of 256 x 512 and 512 x 256."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        self.blocks = nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
        self.head = nn.Linear(256, CLASSES)

    def forward(self, x):
        """Return logits."""
        return self.head(self.blocks(self.stem(x).mean((2, 3))))


@pytest.mark.parametrize("model", [Flattened, Sliced])
def test_calls_in_place_on_views_train_as_in_pytorch(model):
    """Autograd would write their gradients through strides, which the runtime has no kernel for."""
    torch.manual_seed(0)
    network = model()
    found = export_step(apply(network, "full", None, SIDE), "sgd", BATCH, SIDE, check_steps=3)
    assert found.check.agrees and found.check.loss_difference < 1e-5


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_updates_wait_for_nothing_and_the_state_is_not_copied(optimizer):
    """Where the state is larger than all else: the arena has one weight's update at a time.

    The gradient's memory takes every value of the update but a second one of Adam's; the state as a whole has no place.
    """
    network = apply(Wide(), "full", None, SIDE)
    found = export_step(network, optimizer, BATCH, SIDE, check_steps=0).program
    at_once = 2 if "adam" in optimizer else 1
    assert found.arena_bytes["step"] < at_once * 4 * 512 * 256 + 40_000 < found.state_bytes
    plan = network.training_plan
    step = Step(plan.required.graph, plan.required.way, BATCH, optimizer=optimizer, accounting="executorch")
    assert footprint(step).arena_bytes == pytest.approx(found.arena_bytes["step"], rel=0.01)


def test_the_memory_of_a_delegate_is_measured():
    """It packs the frozen weights, in memory of the process; whose libraries and calls come to that."""
    network = apply(Wide(), "last", None, SIDE)
    found = export_step(network, "sgd", BATCH, SIDE, delegate="xnnpack", check_steps=0)
    own = found.process_bytes - EXECUTORCH_RUNTIME_BYTES - 1_340_000 - CALL_BYTES * found.program.calls
    assert 4 * 512 * 256 < own < 3 * 4 * 512 * 256
    assert export_step(network, "sgd", BATCH, SIDE, check_steps=0).process_bytes is None


def test_recording_leaves_the_network_as_it_was(plain):
    """Recording runs a real step: with the network's own tensors it would train it."""
    network, found = plain
    fresh = small("mobiletl", 1, dropout=0.3)
    torch.testing.assert_close(network.state_dict(), fresh.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(found.weights, fresh.state_dict(), rtol=0, atol=0)


def test_buffers_start_with_their_values_and_methods_share_them(plain):
    """The runtime leaves buffers that change empty unless told otherwise, and could give each method its own."""
    network, found = plain
    running = Running(found.program.content, [name for name, *_ in found.program.state])
    x = torch.randn(BATCH, 3, SIDE, SIDE)
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        torch.testing.assert_close(running.predict(x[:1]), network(x[:1]), rtol=1e-4, atol=1e-5)
    before = running.state()
    running.step(x, torch.zeros(BATCH, dtype=torch.int64), 0.1)
    assert not torch.equal(running.predict(x[:1]), network(x[:1]))
    after = running.state()
    assert int(after["step"]) == 1 and before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in network.training_plan.required.assignment.trained)


def test_no_weight_is_copied(plain):
    """`detach` and in-place activations become copies, and gradients of zeros, unless they are taken out."""
    copies = {"aten::clone.out", "aten::detach_copy.out", "aten::alias_copy.out", "aten::lift_fresh_copy.out"}
    assert not copies & {*plain[1].program.operators}


def test_calls_in_place_take_no_more_than_others():
    found = [
        export(small("bias", activation=activation), check_steps=0).program for activation in (nn.ReLU6, NotInPlace)
    ]
    assert found[0].arena_bytes == found[1].arena_bytes


def test_shapes_are_fixed(plain):
    running = Running(plain[1].program.content, [name for name, *_ in plain[1].program.state])
    with pytest.raises(RuntimeError):
        running.predict(torch.zeros(BATCH, 3, SIDE, SIDE))


def test_a_delegate_never_holds_what_trains():
    found = export(small("mobiletl", 1), delegate="xnnpack")
    assert found.program.delegated > 0
    assert found.check.weight_difference < 1e-4  # weights that it held would not have moved
    assert found.check.logit_difference < 1e-3  # nor in predictions after the last step


def test_a_delegate_that_holds_what_trains_is_refused():
    """With the runtime's own partitioner, which takes all it can, the trained head ends up in the delegate."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    from costmodel.export import lowering

    network = small("last")
    recording = record(network, "sgd", BATCH, SIDE, BATCH)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelError, match="these values for ever"):
        patch.setattr(lowering, "partitioner", lambda changed: XnnpackPartitioner())
        lower(recording, "xnnpack")
    assert check_delegates  # what refuses


def test_a_segment_that_runs_again_stays_twice_in_the_program():
    """A compiler that merged equal calls would keep what was to be made again."""
    plan = small("full").training_plan
    layers = [layer for layer in plan.required.graph.layers if layer.module.startswith("blocks.1")]
    schedule = Schedule(segments=((layers[0].index, layers[-1].index, "recompute"),))
    assert regions(plan.required, schedule).segments
    stock, again = export(small("full")), export(small("full", schedule=schedule))
    assert again.check.loss_difference < 1e-5
    assert again.program.arena_bytes["step"] < stock.program.arena_bytes["step"]


def test_a_prefix_in_pieces_takes_less():
    whole, pieces = export(small("last")), export(small("last", schedule=Schedule(prefix_batch=1)))
    assert pieces.check.loss_difference < 1e-5
    assert pieces.program.arena_bytes["step"] < whole.program.arena_bytes["step"]


class Other(nn.Module):
    """A network with a layer of another kind between a convolution and a head."""

    def __init__(self, layer):
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(3, 4, 3), layer, nn.Linear(4, CLASSES)

    def forward(self, x):
        """Return logits."""
        return self.head(self.layer(self.conv(x)).flatten(2).mean(2))


class OnePixel(nn.Module):
    """Averages an image to one pixel and makes it larger again, with matrices of one row or column."""

    def forward(self, x):
        """Return the mean of each channel, 5 x 5 times."""
        return nn.functional.interpolate(nn.functional.avg_pool2d(x, x.shape[2]), size=(5, 5))


def test_an_image_of_one_pixel():
    found = export(apply(Other(OnePixel()), "full", resolution=SIDE), check_steps=1)
    assert found.check.agrees


class Sorted(nn.Module):
    """Sorts channels, for which the runtime has no kernel."""

    def forward(self, x):
        """Return the channels of each pixel by size."""
        return x.sort(1).values


@torch.library.custom_op("costmodel_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    """Return twice a tensor, by an operation of our own."""
    return x * 2


doubled.register_fake(torch.empty_like)
doubled.register_autograd(lambda ctx, grad: grad * 2)


class Doubled(nn.Module):
    """Calls an operation that no compiler knows."""

    def forward(self, x):
        """Return twice the tensor."""
        return torch.ops.costmodel_tests.doubled(x)


@pytest.mark.parametrize(("layer", "named"), [
    (Sorted(), r"aten::sort"),
    (Doubled(), r"costmodel_tests::doubled"),
    (nn.ConvTranspose2d(4, 4, 3), r"convolution_backward of a transposed convolution"),
    (nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3)), r"convolution_backward of other than two dimensions"),
])  # fmt: skip
def test_what_the_runtime_has_not_is_named(layer, named):
    """A kernel that is there may still refuse: that of convolutions' gradients takes two dimensions, not transposed."""
    with pytest.raises(ModelError, match=named):
        export(apply(Other(layer), "full", resolution=SIDE))


def test_only_applied_networks_and_known_delegates():
    with pytest.raises(InputError, match=r"costmodel\.apply"):
        export(Small())
    with pytest.raises(InputError, match="xnnpack"):
        export(small("last"), delegate="xnnpak")


def test_a_folder_holds_everything_and_weights_come_back(plain, tmp_path):
    network, found = plain
    found.write(tmp_path / "out", found.manifest({"any": "plan"}))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "program.pte", "manifest.json", "weights.pt",
        "runner.cpp", "convolution.cpp", "convolution.h", "CMakeLists.txt", "README.md",
    }  # fmt: skip
    assert manifest["plan"] == {"any": "plan"} and manifest["check"]["agrees"]
    running = Running(tmp_path / "out/program.pte", [entry["name"] for entry in manifest["state"]])
    running.step(torch.ones(BATCH, 3, SIDE, SIDE), torch.ones(BATCH, dtype=torch.int64), 0.1)
    state = running.state()
    import struct

    head = MAGIC + struct.pack("<IQ", manifest["program"]["crc32"], manifest["program"]["bytes"])
    content = head + b"".join(state[entry["name"]].numpy().tobytes() for entry in manifest["state"])
    (tmp_path / "state").write_bytes(content)
    weights, rest = import_state(tmp_path / "out", tmp_path / "state")
    assert int(rest["step"]) == 1
    assert weights.keys() == network.state_dict().keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, state.get(name, network.state_dict()[name]), rtol=0, atol=0)
    for damaged, said in ((content[:-1], "bytes of tensors"), (b"x" + content, "does not begin"),
                          (MAGIC + bytes(12) + content[20:], "another program")):  # fmt: skip
        (tmp_path / "state").write_bytes(damaged)
        with pytest.raises(InputError, match=said):
            import_state(tmp_path / "out", tmp_path / "state")
    with pytest.raises(InputError, match="not empty"):
        found.write(tmp_path / "out")


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    before = logging.root.manager.disable
    yield
    assert logging.root.manager.disable == before
