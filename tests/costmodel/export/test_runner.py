"""The native runner: its convolutions train as PyTorch's do."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch
from torch import nn

pytest.importorskip("executorch", reason="needs the extra: pip install 'finetune-planner[executorch]'")

import executorch

from costmodel import apply, export_step, import_state
from costmodel.export.running import Running
from planner.campaign.exporting import packed_tensors

SIDE, BATCH, CLASSES, STEPS, RATE = 33, 4, 3, 3, 0.05


class Convolutions(nn.Module):
    """Every kind of convolution that the runtime's gradients know, by kernel, stride, padding, dilation and groups."""

    def __init__(self, has_bias: bool):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(),
            nn.Conv2d(8, 272, 1, bias=False), nn.Tanh(),  # pointwise: several tiles of a product in each direction
            nn.Conv2d(272, 272, 5, 1, 2, groups=272), nn.Tanh(),  # depthwise
            nn.Conv2d(272, 72, 1), nn.Tanh(),
            nn.Conv2d(72, 12, 1, groups=2), nn.Tanh(),  # pointwise, in groups
            nn.Conv2d(12, 8, (1, 3), padding=(0, 2), dilation=(1, 2)), nn.Tanh(),
            nn.Conv2d(8, 8, (5, 2), (1, 2), (3, 0), groups=4), nn.Tanh(),
            nn.Conv2d(8, 6, 1, 2), nn.Tanh(),  # a stride that leaves out pixels
            nn.Conv2d(6, 6, 7, 3, 6, dilation=2, groups=2), nn.Tanh(),  # reaches over all edges
        )  # fmt: skip
        self.head = nn.Linear(6, CLASSES)
        for module in self.body:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # so that every layer matters to the loss
                if not has_bias:
                    module.bias = None

    def forward(self, x):
        """Return logits."""
        return self.head(self.body(x).mean((2, 3)))


def command(*words: object) -> str:
    """Run a command and return what it prints."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("method", "has_bias"), [("full", True), ("full", False), ("bias", True)])
def test_its_convolutions_train_as_those_of_the_runtime_and_of_pytorch(method, has_bias, tmp_path):
    """`bias` goes through gradients of inputs alone, which the program has as transposed convolutions."""
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("needs CMake and a C++ compiler")
    torch.manual_seed(0)
    network = apply(Convolutions(has_bias), method, None, SIDE)
    export = export_step(network, "sgd", BATCH, SIDE, check_steps=2, learning_rate=RATE)
    assert export.check.weight_difference < 1e-5
    images, labels = torch.randn(STEPS * BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (STEPS * BATCH,))
    out, state = tmp_path / "out", tmp_path / "trained.state"
    export.write(out)
    (tmp_path / "data.bin").write_bytes(packed_tensors(images, labels.tolist(), CLASSES))
    command("cmake", "-S", out, "-B", out / "build", f"-DCMAKE_PREFIX_PATH={next(iter(executorch.__path__))}")
    command("cmake", "--build", out / "build")
    options = ["--lr", RATE, "--constant-lr", "--in-order", "--save", state]
    train = [out / "build/runner", "train", out / "program.pte", tmp_path / "data.bin", *options]
    command(*train, "--portable")
    theirs = import_state(out, state)[0]
    printed = command(*train)

    portable = Running(export.program.content, [name for name, *_ in export.program.state])
    losses = [
        portable.step(x, y, RATE)[0]
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
    ]  # fmt: skip
    assert float(printed.split()[3]) == pytest.approx(sum(losses) / STEPS, abs=1e-5)
    weights, _ = import_state(out, state)
    for name, value in portable.state().items():
        if name != "step":
            assert not torch.equal(value, export.weights[name]), name
            assert torch.equal(theirs[name], value), name
            torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-6)
    assert any(not torch.equal(weights[name], theirs[name]) for name in weights)  # sums are made in another order
