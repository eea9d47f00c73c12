"""`costmodel compare` and what it says of a difference: which operations, how many bytes, why."""

from __future__ import annotations

import json

import pytest
from networks import BLOCKS, TWELVE, short, traced
from torch import nn

from costmodel import METHODS, footprint, trace
from costmodel.accounting.eager import WHY
from costmodel.answers.compare import difference

SMALL = "timm:mobilenetv2_050"


def two_books(graph, *arguments, **options):
    """Return the footprints of the same training in the books `eager` and `lean`."""
    return tuple(footprint(graph, *arguments, accounting=name, **options) for name in ("eager", "lean"))


# --- the difference ---------------------------------------------------------------------------------------------------


def test_by_hand():
    """A frozen convolution, its batch norm, ReLU6, a linear head: the first convolution's bias trains."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(4, 5, 1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(80, 2),
    )
    eager, lean = two_books(trace(network, 4), batch=2, trained=["0.bias", "5.weight"])
    rows = difference(eager, lean).set_index("operation")
    # Bytes at batch 2, 4 each: the image 2 x 3 x 16; the first convolution's result 2 x 4 x 16. Both books keep the
    # batch norm's input and statistics, and ReLU6's result for the linear layer; `eager` ReLU6's input (2 x 5 x 16) as
    # well, where `lean` reads the derivative from the result.
    assert rows.only_eager_bytes.to_dict() == {"conv2d": 4 * (96 + 128), "hardtanh": 4 * 160}
    assert rows.only_lean_bytes.sum() == 0
    assert rows.layers.to_dict() == {"conv2d": 2, "hardtanh": 1}
    assert rows.first_layer.to_dict() == {"conv2d": "0", "hardtanh": "3"}
    assert "whether its weight trains or not" in rows.why["conv2d"] and "one bit" in rows.why["hardtanh"]


@pytest.mark.parametrize("name", TWELVE, ids=short)
def test_differences_add_up(name):
    graph = traced(name)
    for method, depth in [("full", None), ("last", None), ("bias", None), ("blocks", 3), ("mobiletl", BLOCKS[name])]:
        eager, lean = two_books(graph, method, depth)
        frame = difference(eager, lean)
        more, less = frame.only_eager_bytes.sum(), frame.only_lean_bytes.sum()
        assert more - less == eager.saved_bytes - lean.saved_bytes, (method, depth)
        assert list(frame.only_eager_bytes) == sorted(frame.only_eager_bytes, reverse=True)
        # What only stock PyTorch keeps is worth a reason; only masks are `lean`'s alone.
        unexplained = frame[(frame.only_eager_bytes > 0) & (frame.why == "")]
        assert not len(unexplained), f"{method}: no line in WHY for {list(unexplained.operation)}"


def test_the_other_way_round_swaps_the_columns():
    eager, lean = two_books(traced(SMALL), "bias")
    there = difference(eager, lean).set_index("operation").only_eager_bytes.sort_index()
    back = difference(lean, eager).set_index("operation").only_eager_bytes.sort_index()
    assert there.equals(back)


def test_nothing_to_say_of_the_same_books():
    one = footprint(traced(SMALL), "bias")
    assert len(difference(one, one)) == 0


def test_micro_batches_and_precision_count():
    graph = traced(SMALL)
    whole, half = (difference(*two_books(graph, "bias", batch=8, micro_batch=size)) for size in (8, 4))
    assert half.only_eager_bytes.sum() < whole.only_eager_bytes.sum()
    for options in ({"micro_batch": 4}, {"activation_dtype": "bfloat16"}):
        eager, lean = two_books(graph, "bias", batch=8, **options)
        frame = difference(eager, lean)
        assert frame.only_eager_bytes.sum() - frame.only_lean_bytes.sum() == eager.saved_bytes - lean.saved_bytes


def test_reasons_are_sentences_of_known_operations():
    from costmodel.accounting.eager import KEEPS

    assert WHY.keys() <= KEEPS.keys()
    assert all(text and text == text.strip() and "\n" not in text for text in WHY.values())


# --- the command line -------------------------------------------------------------------------------------------------


def test_one_table_and_the_reasons(command):
    code, out, err = command("compare", SMALL, "--method", "bias", "--method", "blocks", "--blocks", "3")
    assert (code, err) == (0, "")
    assert "bias" in out and "blocks, k = 3" in out
    assert "keeps its input whether its weight trains or not" in " ".join(out.split())


def test_json_is_what_footprint_answers(command):
    code, out, _ = command("compare", SMALL, "--method", "bias", "--batch", "4", "--resolution", "96", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["batch"] == 4
    (row,) = answer["methods"]
    for books in ("eager", "lean"):
        expected = footprint(traced(SMALL, 96), "bias", batch=4, accounting=books, kernels="none")
        assert row[f"{books}_saved_bytes"] == expected.saved_bytes
        assert row[f"{books}_peak_bytes"] == expected.peak_bytes
    (causes,) = answer["differences"].values()
    assert sum(each["only_eager_bytes"] - each["only_lean_bytes"] for each in causes) == (
        row["eager_saved_bytes"] - row["lean_saved_bytes"]
    )


def test_without_a_method_all_of_them(command):
    code, out, _ = command("compare", SMALL, "--resolution", "64", "--json")
    named = {row["method"].split(",")[0] for row in json.loads(out)["methods"]}
    assert code == 0 and {"full", "last", "norm", "bias", "blocks", "mobiletl"} <= named <= set(METHODS)


def test_a_network_without_blocks(command):
    code, out, _ = command("compare", "torchvision:vgg11_bn", "--resolution", "64", "--json")
    named = [row["method"] for row in json.loads(out)["methods"]]
    assert code == 0 and named[:4] == ["full", "last", "norm", "bias"]
    assert not any(METHODS[name.split(",")[0]].takes_blocks for name in named)
    code, out, err = command("compare", "torchvision:vgg11_bn", "--resolution", "64", "--method", "blocks")
    assert code == 2 and "blocks" in err  # asked for, it is one


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no_such_network"], "no_such_network"),
        ([SMALL, "--method", "ful"], "did you mean 'full'"),
        ([SMALL, "--batch", "0"], "batch"),
        ([SMALL, "--optimizer", "adamax"], "adam"),
        ([SMALL, "--resolution", "none"], "--resolution"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(command, arguments, text):
    code, out, err = command("compare", *arguments)
    assert code == 2 and text in err and "Traceback" not in err and out == ""
    assert len(err.strip().splitlines()) == 1
