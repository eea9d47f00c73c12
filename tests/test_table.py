"""Tables of named entries: a name stands once, an unknown one is a clear error; and what users may register."""

from __future__ import annotations

import doctest

import pytest
import torch
import torch.nn.functional as F
from networks import traced
from registering import as_before
from torch import nn

from costmodel import ACCOUNTINGS, METHODS, OPTIMIZERS, RULES, InputError, UnknownOperationError, footprint, trace, way
from costmodel.accounting import table as accountings
from costmodel.accounting.eager import KEEPS
from costmodel.checking.measuring import prepare, saved_bytes
from costmodel.methods import table as methods
from costmodel.methods.method import Method, Option
from costmodel.rules.facts import Facts, dense
from costmodel.table import Table
from planner.choosing.objectives import OBJECTIVES

TABLES = (ACCOUNTINGS, METHODS, OPTIMIZERS, RULES, KEEPS, OBJECTIVES)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_no_table_takes_a_name_twice(table):
    name, entry = next(iter(table.items()))
    count = len(table)
    with pytest.raises(InputError, match=f"the {table.kind} '{name}' exists already"):
        table.add(name, entry)
    assert len(table) == count and table[name] is entry


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_an_unknown_name_is_one_line_with_the_near_ones(table):
    name = next(iter(table))
    with pytest.raises(InputError, match=f"unknown {table.kind} '{name}x'; did you mean .*'{name}'") as error:
        table.find(f"{name}x")
    assert "\n" not in str(error.value)
    assert f"{name}x" not in table and table.get(f"{name}x") is None


def test_names_given_together_are_refused_too():
    with pytest.raises(InputError, match="the thing 'a' exists already"):
        Table("thing", [("a", 1), ("b", 2), ("a", 3)])
    with pytest.raises(InputError, match="the option 'patch' exists already"):
        option = Option("patch", "", 1, int)
        Method("twice", "", "", lambda graph, blocks, chosen: (graph, None), options=(option, option))


@pytest.mark.parametrize("module", [accountings, methods], ids=lambda module: module.__name__)
def test_the_worked_examples_of_registering(module):
    with as_before(RULES, KEEPS, METHODS):
        found = doctest.testmod(module)
    assert found.attempted >= 4 and not found.failed


class Softsign(nn.Module):
    """Makes a call that no rule of the package knows."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.hardshrink(self.conv(x)).mean((2, 3)))


def test_a_rule_of_ones_own_is_held_against_hooks():
    """hardshrink: dx = (|x| > 0.5) dy, which needs x; stock PyTorch keeps x."""
    network = Softsign()

    def hardshrink(layer) -> Facts:
        return Facts({"input": (dense(layer.input),)})

    with as_before(RULES, KEEPS):
        import costmodel

        costmodel.register_rule("hardshrink", hardshrink)
        graph = trace(network, 8)  # without a rule the operation would be learned
        lean = footprint(graph, batch=2)
        assert lean.saved_bytes == 2 * 4 * (
            3 * 8 * 8 + 4 * 6 * 6 + 4
        )  # image, the convolution's result, the head's input
        with pytest.raises(UnknownOperationError, match="what stock PyTorch keeps"):
            footprint(graph, accounting="eager")
        with pytest.raises(InputError, match="the operation 'hardshrink' exists already"):
            costmodel.register_rule("hardshrink", hardshrink)
        KEEPS.add("hardshrink", lambda layer, wanted: dense(layer.input))
        eager = footprint(graph, batch=2, accounting="eager")
        stock = prepare(network, eager.graph, eager.assignment)
        assert saved_bytes(stock, torch.randn(2, 3, 8, 8)) == eager.saved_bytes
    assert "hardshrink" not in RULES


def test_a_method_of_ones_own_has_depth_and_options():
    """It trains the biases of the last k blocks, or every n-th of them."""
    import costmodel
    from costmodel.graph.blocks import parts
    from costmodel.methods.method import batch_norms, parameters_of, whole_number

    def every_nth(graph, blocks, chosen):
        tuned = parts(graph).blocks[-blocks:][:: chosen["every"]]
        layers = [layer for block in tuned for layer in graph.layers[block.first : block.last + 1]]
        return graph, costmodel.Assignment(
            frozenset(parameters_of(graph, layers, ("bias",))), frozenset(batch_norms(graph))
        )

    method = Method(
        "sparse-biases", "biases of every n-th of the last k blocks", "a test", every_nth, takes_blocks=True,
        min_blocks=1, options=(Option("every", "train every n-th block", 1, whole_number()),),
    )  # fmt: skip
    graph = traced("torchvision:mobilenet_v2")
    with as_before(METHODS):
        costmodel.register_method(method)
        every, second = (footprint(graph, "sparse-biases", 4, options={"every": n}) for n in (1, "2"))
        assert every.trained_parameters > second.trained_parameters > 0
        assert second.way.label == "sparse-biases, k = 4, every 2"
        assert second.to_dict()["options"] == {"every": 2} and second.way == way("sparse-biases", 4, {"every": 2})
        prices = costmodel.price(graph, [every.way, second.way], [8]).columns
        assert prices["saved_bytes"].tolist() == [every.saved_bytes, second.saved_bytes]
        model = costmodel.apply(costmodel.build("torchvision:mobilenet_v2"), second.way, resolution=64).train()
        at_64 = footprint(trace("torchvision:mobilenet_v2", 64), "sparse-biases", 4, batch=2, options={"every": 2})
        assert saved_bytes(model, torch.randn(2, 3, 64, 64)) == at_64.saved_bytes
        with pytest.raises(InputError, match=r"option every of method 'sparse-biases' is 0; it must be a whole number"):
            footprint(graph, "sparse-biases", 4, options={"every": 0})
    with pytest.raises(InputError, match="unknown method 'sparse-biases'"):
        footprint(graph, "sparse-biases", 4)
