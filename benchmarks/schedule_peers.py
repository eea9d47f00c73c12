"""Full fine-tuning at equal FLOPs: the memory of the best schedule, and of what PyTorch offers.

    python benchmarks/schedule_peers.py --date 2026-11-21 --machine '2-core x86-64 virtual machine'

Peers: `torch.utils.checkpoint.checkpoint_sequential` over the network's blocks, with every number of segments; the
activation memory budget of AOTAutograd's min-cut partitioner (graphs run operator by operator); `sac_milp` of
torch.distributed, which decides per module and says a bound on the peak, told that time is FLOPs (its runtime estimator
wants a GPU). All but sac_milp are run: the peak above what is there before the step, by the profiler, on one thread
(batch 8, 128 x 128), FLOPs by PyTorch's counter (AOTAutograd's from the graphs that it runs). Of the bound of sac_milp
the parameters are taken away.

Ours: norm and activation made again, segments recomputed; gradients are kept until the update, as the peers do. For
every point of a peer the schedule with the least memory within its FLOPs is measured, too.

Writes results/schedule_peers.md and docs/schedule_peers.png. Exit code 1 if a peer needs less than ours. Takes about
ten minutes. Needs pulp and pwlf (sac_milp).
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._functorch import config
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.ilp_utils import aggregate_stats, get_peak_memory_runtime_baseline, parse_module_info
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed._tools.runtime_estimator import RuntimeEstimator
from torch.distributed._tools.sac_estimator import SACEstimator
from torch.distributed._tools.sac_ilp import sac_milp
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint_sequential
from torch.utils.flop_counter import conv_flop_count, flop_registry
from verifying import RESULTS, versions

from costmodel import Schedule, Step, apply, footprint, schedule_frontier, trace
from costmodel.checking.measuring import loss_of, peak_bytes, step_flops
from costmodel.interface.drawing import BLACK, BLUE, GREEN, ORANGE, VERMILLION, save

NETWORKS = ("mobilenet_v2", "mobilenet_v3_small")
RESOLUTION, BATCH = 128, 8
BUDGETS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)  # of AOTAutograd: a share of the activations
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # for sac_milp: of the plain step's peak, by its own account
PICTURE = Path(__file__).parents[1] / "docs" / "schedule_peers.png"
LOOKS = {
    "checkpoint_sequential": ("o", ORANGE), "AOTAutograd budget": ("^", GREEN),
    "sac_milp (its bound)": ("s", VERMILLION),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """What a schedule takes: peak above the step's start, and FLOPs of a step. setting: of the peer."""

    peer: str
    setting: str
    flops: int
    peak: int


class InSegments(nn.Module):
    """A network of torchvision whose blocks run again in so many segments."""

    def __init__(self, network: nn.Module, segments: int):
        super().__init__()
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.parts, self.segments = nn.Sequential(*network.features, pool, network.classifier), segments

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return checkpoint_sequential(self.parts, self.segments, images, use_reentrant=False)


def peak_of(network: nn.Module, images: torch.Tensor) -> int:
    """Return the peak of the second step above what is there when it starts."""

    def step() -> None:
        loss_of(network(images)).backward()
        for parameter in network.parameters():
            parameter.grad = None

    step()
    return peak_bytes(step)


def operator_flops(operator, args, kwargs, out) -> int:
    """Return the FLOPs of one call of an ATen operator."""
    packet = getattr(operator, "overloadpacket", None)
    if packet is torch.ops.aten.convolution_backward:  # PyTorch's formula is wrong for groups
        grad, x, weight, *_, transposed, _, _, mask = args
        return (mask[0] + mask[1]) * conv_flop_count(x.shape, weight.shape, grad.shape, transposed)
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def sequential(network: nn.Module, images: torch.Tensor) -> list[Point]:
    """Return the points of checkpoint_sequential."""
    found = []
    for segments in range(2, len(network.features) + 3):
        own = InSegments(copy.deepcopy(network), segments)
        found.append(Point("checkpoint_sequential", f"{segments} segments", sum(step_flops(own, images)),
                           peak_of(own, images)))  # fmt: skip
        print(found[-1], flush=True)
    return found


def partitioned(network: nn.Module, images: torch.Tensor) -> list[Point]:
    """Return the points of the partitioner's budget."""
    found = []
    for budget in BUDGETS:
        flops = 0

        def counted(graph: GraphModule, inputs):
            nonlocal flops
            for node in graph.graph.nodes:
                if isinstance(node.target, torch._ops.OpOverload):
                    args, kwargs = tree_map(
                        lambda each: each.meta["val"] if isinstance(each, Node) else each, (node.args, node.kwargs)
                    )
                    flops += operator_flops(node.target, args, kwargs, node.meta.get("val"))
            return boxed_nop(graph, inputs)

        torch._dynamo.reset()
        backend = aot_autograd(
            fw_compiler=counted, bw_compiler=counted, partition_fn=min_cut_rematerialization_partition,
            keep_inference_input_mutations=True,
        )  # fmt: skip
        with config.patch(activation_memory_budget=budget):
            peak = peak_of(torch.compile(copy.deepcopy(network), backend=backend), images)
        found.append(Point("AOTAutograd budget", f"{budget:g}", flops, peak))
        print(found[-1], flush=True)
    return found


def flops_as_time(operator, args, kwargs):
    """Carry an operator out; return its result and its MFLOPs (of what has none, next to nothing)."""
    out = operator(*args, **(kwargs or {}))
    sizes = [each.numel() for each in (out if isinstance(out, tuple | list) else (out,)) if torch.is_tensor(each)]
    return out, operator_flops(operator, args, kwargs or {}, out) / 1e6 + 1e-9 * sum(sizes)


def by_modules(name: str, plain_flops: int) -> list[Point]:
    """Return what sac_milp says of its own choices."""
    logging.getLogger("torch.distributed._tools.sac_ilp").setLevel(logging.CRITICAL)
    with FakeTensorMode():
        network = torchvision.models.get_model(name).train()
        images = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
        update = torch.optim.SGD(network.parameters(), 0.01)

        def step() -> None:
            loss_of(network(images)).backward()
            update.step()
            update.zero_grad()

        memory = MemTracker()
        memory.track_external(network, update)
        with memory:
            step()
            memory.reset_mod_stats()
            step()
        times = RuntimeEstimator(gpu_type="NVIDIA H100")("operator-level-cost-model")
        times._estimate = flops_as_time
        with times:
            step()
        choices = SACEstimator(gpu_type="NVIDIA H100")("operator-level-cost-model")
        choices._estimate_runtime = flops_as_time
        with choices:
            loss_of(network(images))
        graph = parse_module_info(aggregate_stats(network, memory, times, choices, torch.device("cpu")))
    whole, _ = get_peak_memory_runtime_baseline(graph)
    parameters = graph.nodes[0]["param_per_module"]
    found = []
    for share in SHARES:
        _, again, peak = sac_milp(copy.deepcopy(graph), share * whole / 2**30)
        if peak >= 0:
            flops = plain_flops + round(again * 1e6)
            found.append(Point("sac_milp (its bound)", f"{share:.0%} of its plain peak", flops, peak - parameters))
            print(found[-1], flush=True)
    return found


def measure(name: str) -> tuple[list[Point], list[Point], list[tuple[float, float]]]:
    """Return the peers' points, ours for each of these, and our frontier as (times FLOPs, MB)."""
    torch.manual_seed(0)
    network, images = torchvision.models.get_model(name).train(), torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    graph = trace(f"torchvision:{name}", RESOLUTION)
    plain = footprint(Step(graph, batch=BATCH))
    peers = [*by_modules(name, plain.total_flops), *sequential(network, images), *partitioned(network, images)]
    frontier = schedule_frontier(Step(graph, batch=BATCH), allow=("cheap", "recompute"))
    measured: dict[Schedule, int] = {}
    ours = []
    for peer in peers:
        number = int((frontier.total_flops <= peer.flops).nonzero()[0][-1])
        schedule = frontier.schedule(number)
        if schedule not in measured:
            own = apply(copy.deepcopy(network), "full", resolution=RESOLUTION, schedule=schedule).train()
            measured[schedule] = peak_of(own, images)
        ours.append(Point("ours", peer.setting, int(frontier.total_flops[number]), measured[schedule]))
    start = plain.start.total_bytes
    curve = [
        (flops / plain.total_flops, (peak - start) / 1e6)
        for flops, peak in zip(frontier.total_flops.tolist(), frontier.peak_bytes.tolist(), strict=True)
    ]
    return peers, ours, curve


def draw(found: dict[str, tuple[list[Point], list[Point], list[tuple[float, float]]]], plain: dict[str, int]) -> None:
    """Draw memory against FLOPs, a panel per network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (name, (peers, ours, curve)) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        axes.step(*zip(*curve, strict=True), where="post", color=BLUE, linewidth=1.2, label="ours, predicted")
        axes.plot([each.flops / plain[name] for each in ours], [each.peak / 1e6 for each in ours], "x", color=BLACK,
                  markersize=5, label="ours, measured")  # fmt: skip
        for peer, (marker, colour) in LOOKS.items():
            own = [each for each in peers if each.peer == peer]
            axes.plot([each.flops / plain[name] for each in own], [each.peak / 1e6 for each in own], marker,
                      color=colour, markersize=5, label=peer)  # fmt: skip
        axes.set(title=name, xlabel="FLOPs of a step, times those of the plain one")
        axes.set_ylim(0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("peak above the step's start, MB")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False,
                  fontsize=8)  # fmt: skip
    save(figure, PICTURE)


def main() -> None:
    """Compare everything; write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {name: measure(name) for name in NETWORKS}
    plain = {
        name: footprint(Step(trace(f"torchvision:{name}", RESOLUTION), batch=BATCH)).total_flops for name in NETWORKS
    }
    pairs = [pair for peers, ours, _ in found.values() for pair in zip(peers, ours, strict=True)]
    ratios = sorted(ours.peak / peer.peak for peer, ours in pairs)
    lines = [
        "# Full fine-tuning at equal FLOPs: the best schedule and what PyTorch offers",
        "",
        f"{given.date}; {versions()}; {given.machine}. {RESOLUTION} x {RESOLUTION}, batch {BATCH}. Written by `python "
        "benchmarks/schedule_peers.py`, whose docstring says how each is measured. Peak above the step's start; of "
        "sac_milp its own bound. Ours: the least peak within the peer's FLOPs, measured.",
        "",
        f"Ours needs no more memory in {sum(ours.peak <= peer.peak for peer, ours in pairs)} of {len(pairs)} pairs; "
        f"the median of ours by theirs is {ratios[len(ratios) // 2]:.2f}, the highest {ratios[-1]:.2f}.",
        "",
        "![memory against FLOPs](../../docs/schedule_peers.png)",
        "",
        "| network | peer | setting | FLOPs | peak, MB | ours: FLOPs | ours: peak, MB | ours / peer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (peers, ours, _) in found.items():
        lines += [
            f"| {name} | {peer.peer} | {peer.setting} | x{peer.flops / plain[name]:.3f} | {peer.peak / 1e6:.1f} "
            f"| x{own.flops / plain[name]:.3f} | {own.peak / 1e6:.1f} | {own.peak / peer.peak:.2f} |"
            for peer, own in zip(peers, ours, strict=True)
        ]
    (RESULTS / "schedule_peers.md").write_text("\n".join(lines) + "\n")
    draw(found, plain)
    sys.exit(any(ours.peak > peer.peak for peer, ours in pairs))


if __name__ == "__main__":
    main()
