"""Evidence files: the published one as it is written, the user's own with the least that is needed, and bad ones."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel import METHODS, InputError
from planner.choosing.recommend import recommend
from planner.evidence import load, load_all
from planner.evidence.rows import (
    COLUMNS,
    PUBLISHED,
    TEST_SETS,
    parse,
    published,
    standard_test_sets,
)

HEADER = ",".join(COLUMNS)


def test_every_published_row_is_read_as_written():
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        raw = list(csv.DictReader(file))
    assert len(published()) == len(raw) > 100
    for row, cells in zip(published(), raw, strict=True):
        for column, cell in cells.items():
            value = getattr(row, column)
            assert (cell == "" and value in (None, "")) or value == type(value)(cell)


def test_every_published_row_has_its_own_source():
    assert not [row for row in published() if row.source == PUBLISHED.name]


def test_test_sets_have_sources():
    rows = list(csv.DictReader(io.StringIO(TEST_SETS.read_text(encoding="utf-8"))))
    assert {row["dataset"]: int(row["test_images"]) for row in rows} == standard_test_sets()
    assert all(row["source"] for row in rows) and set(standard_test_sets()) <= {row.dataset for row in published()}


def test_four_columns_are_enough(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("model,method,dataset,top1_percent\nnet,last, mine ,70\nnet,full,mine,90.5\n", encoding="utf-8")
    last, full = load(path)
    assert (last.dataset, last.top1_percent, full.top1_percent) == ("mine", 70, 90.5)
    assert (last.source, last.line, last.seed, last.test_images) == (str(path), 2, None, None)


def test_runs_of_different_seeds_are_no_repetition(tmp_path):
    path = tmp_path / "own.csv"
    lines = [
        "model,method,trained_blocks,dataset,top1_percent,seed",
        "net,blocks,3,mine,70,0",
        "net,blocks,3,mine,71,1",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert [row.seed for row in load(path)] == [0, 1]


def _row(**changes: str) -> str:
    cells = {"model": "net", "method": "norm", "dataset": "cars", "top1_percent": "77.9", "source": "a paper"} | changes
    return ",".join(cells.get(column, "") for column in COLUMNS)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (_row(top1_percent="abc"), ["column top1_percent", "'abc'"]),
        (_row(top1_percent="101"), ["column top1_percent", "'101'"]),
        (_row(top1_percent="nan"), ["column top1_percent", "'nan'"]),
        (_row(top1_percent=""), ["column top1_percent", "''", "one of top1_percent and points_below_full"]),
        (_row(points_below_full="0.5"), ["column top1_percent", "'77.9'", "not both"]),
        (_row(resolution="0"), ["column resolution", "'0'"]),
        (_row(batch="8.5"), ["column batch", "'8.5'"]),
        (_row(trained_blocks="-1"), ["column trained_blocks", "'-1'"]),
        (_row(memory_mb="inf"), ["column memory_mb", "'inf'"]),
        (_row(dataset=""), ["column dataset", "''"]),
        (_row(model=""), ["column model", "''"]),
        (_row(seed="a"), ["column seed", "'a'"]),
        (_row(test_images="0"), ["column test_images", "'0'"]),
        (_row(test_images="1" + 400 * "0"), ["column test_images", "'1000000"]),
        (_row(seed="9" * 30), ["column seed", "'999999"]),
        (_row(dataset="ca\x1brs"), ["column dataset", "it has a control character"]),
        (_row(method="nrom"), ["column method", "unknown method 'nrom'; did you mean 'norm'"]),
        (_row(method="blocks"), ["column trained_blocks", "''", "needs its number of trained blocks"]),
        (_row(method="blocks", trained_blocks="0"), ["column trained_blocks", "0", "needs its number"]),
        (_row(trained_blocks="3"), ["column trained_blocks", "3", "'norm' has no depth"]),
        (_row(top1_percent="", points_below_full="1", seed="1"), ["column top1_percent", "the accuracy itself"]),
        (_row(), ["column method", "'norm' on 'cars' repeats line 2"]),
        (_row() + ",1", [f"{len(COLUMNS) + 1} values for {len(COLUMNS)} columns"]),
        ("net,norm", [f"2 values for {len(COLUMNS)} columns"]),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path, bad, said):
    path = tmp_path / "own.csv"
    path.write_text("\n".join([HEADER, _row(), bad, ""]), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load(path)
    text = str(error.value)
    assert text.startswith(f"{path}, line 3") and "\n" not in text
    for part in said:
        assert part in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: lacks 'model'"),
        (b"model,method,dataset", "lacks 'top1_percent'; needed are model, method, dataset, top1_percent"),
        (HEADER.replace("dataset", "data").encode(), "lacks 'dataset', has an unknown column 'data'"),
        ((HEADER + ",model\n").encode(), "repeats 'model'"),
        (HEADER.encode() + b"\n\xff\xfe", "not UTF-8"),
        ((HEADER + '\n"a').encode(), "not a CSV file"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, content, said):
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load(path)
    assert str(path) in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("50,8,zz,", "column correct: 'zz'"), ("50,,f0,", "column correct: 'f0': it needs test_images"),
        ("50,8,ff,", "column correct: 'ff': it says 100 % right"), ("50,8,,40", "column reachable_percent: '40'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_accuracy_is_named(tmp_path, cells, said):
    path = tmp_path / "own.csv"
    header = "model,method,dataset,top1_percent,test_images,correct,reachable_percent"
    path.write_text(f"{header}\nnet,last,mine,{cells}\n", encoding="utf-8")
    with pytest.raises(InputError, match=said):
        load(path)


def test_fractions_are_not_taken_for_percent(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("model,method,dataset,top1_percent\nnet,last,mine,0.71\nnet,full,mine,0.81\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"own.csv, line 2, column top1_percent: .*write percent, 71"):
        load(path)


def test_rows_that_do_not_apply_are_named(tmp_path):
    """Another resolution, another network and a misspelt one: none is dropped without a word."""
    path = tmp_path / "own.csv"
    rows = ["torchvision:mobilenet_v3_small,last,mine,60,96", "timm:tinynet_e,last,mine,61,224"]
    rows += ["torchvision:mobilenet_v3_smal,last,mine,62,224"]
    path.write_text("\n".join(["model,method,dataset,top1_percent,resolution", *rows]), encoding="utf-8")
    notes = " ".join(recommend("torchvision:mobilenet_v3_small", 10**9, evidence=load(path)).notes)
    assert "of the network 'timm:tinynet_e'" in notes and "at 96 pixels" in notes
    assert "(is torchvision:mobilenet_v3_small meant?)" in notes


def test_a_run_in_two_files_is_refused(tmp_path):
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path in paths:
        path.write_text("model,method,dataset,top1_percent,seed\nnet,last,mine,70,0\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"two.csv, line 2: 'last' on 'mine' repeats .*one.csv, line 2"):
        load_all(paths)
    paths[1].write_text("model,method,dataset,top1_percent,seed\nnet,last,mine,72,1\n", encoding="utf-8")
    assert [row.top1_percent for row in load_all(paths)] == [70, 72]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the evidence .*none\.csv': No such file"):
        load(tmp_path / "none.csv")


CELL = st.sampled_from(["", "net", "norm", "blocks", "3", "50", "-1", "nan", "1e999", "101"]) | st.text(max_size=8)


@given(st.lists(st.lists(CELL, min_size=len(COLUMNS), max_size=len(COLUMNS)), max_size=4))
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "own.csv"
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *table])
    try:
        rows = load(path)
    except InputError as error:
        text = str(error)
        assert str(path) in text and "\n" not in text and error.exit_code == 2
        return
    for row in rows:
        assert 0 <= row.top1_percent <= 100 and row.method in METHODS and row.dataset


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        parse(text, "own.csv")
    except InputError as error:
        assert str(error).startswith("own.csv, line") and "\n" not in str(error)
