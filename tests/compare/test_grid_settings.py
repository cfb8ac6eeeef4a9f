"""Settings of a grid: what a text means, and what is refused."""

from typing import Any

import pytest

from normzoo.compare.settings import cells, flags, parse, values
from normzoo.errors import InputError

VALUES: dict[str, list[Any]] = {
    "BatchNorm": ["BatchNorm"],
    "BatchNorm,LayerNorm": ["BatchNorm", "LayerNorm"],
    "0..4": [0, 1, 2, 3, 4],
    "-1..1": [-1, 0, 1],
    "7..7": [7],
    "0..2,9": [0, 1, 2, 9],
    "0.01,1e-3": [0.01, 0.001],
    "true,null": ["true", "null"],
    "GroupNorm(num_groups=4, eps=0.1),NoNorm": ["GroupNorm(num_groups=4, eps=0.1)", "NoNorm"],
    "[64,64],[64, 32]": ["[64,64]", "[64, 32]"],
    "my_norms.MyNorm,../data": ["my_norms.MyNorm", "../data"],
}
WRONG = {
    "": "empty",
    "A,,B": "empty",
    "4..0": "the range is empty",
    "0..": "two whole numbers",
    "..3": "two whole numbers",
    "0.1..0.5": "two whole numbers",
    "0..10000": "at most 10000",
    "A,A": "twice",
    "0..2,1": "twice",
    "GroupNorm(num_groups=4": "is missing",
    "A)": "closes no bracket",
    "[1,2)": "closes no bracket",
}


@pytest.mark.parametrize("text", VALUES)
def test_values(text: str) -> None:
    assert values("key", text) == VALUES[text]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_values_are_named(text: str) -> None:
    with pytest.raises(InputError, match=WRONG[text]) as raised:
        values("key", text)
    assert f"key={text}" in str(raised.value)


@pytest.mark.parametrize("text", ["0,a", "1.5", "true", "-1..1", "4294967296", "../0"])
def test_a_seed_is_a_whole_number(text: str) -> None:
    with pytest.raises(InputError, match="is no seed, which is a whole number from 0"):
        values("seed", text)


def test_long_names_are_short_ones() -> None:
    assert parse(["model.net.norm=A", "seed_everything=0..1"]) == parse(["norm=A", "seed=0..1"])
    with pytest.raises(InputError, match="seed is given twice"):
        parse(["seed=0", "seed_everything=1"])


@pytest.mark.parametrize("arguments", [["norm"], ["=3"], ["a b=3"], ["norm=A", "norm=B"]])
def test_what_is_no_setting_is_refused(arguments: list[str]) -> None:
    with pytest.raises(InputError):
        parse(arguments)


def test_a_file_gives_lists_and_texts() -> None:
    layer = {"class_path": "GroupNorm", "init_args": {"num_groups": 4}}
    assert values("norm", ["BatchNorm", layer]) == ["BatchNorm", layer]
    assert values("seed", "0..2") == values("seed", ["0..2"]) == [0, 1, 2]
    assert flags({"norm": layer}) == ['--model.net.norm={"class_path": "GroupNorm", "init_args": {"num_groups": 4}}']


def test_cells_are_all_combinations_with_the_first_seed_first() -> None:
    settings = parse(["norm=A,B", "seed=0..1", "lr=1,2"])
    found = cells(settings)
    assert len(found) == len({tuple(cell.items()) for cell in found}) == 8
    assert [cell["seed"] for cell in found] == [0] * 4 + [1] * 4
    assert all(list(cell) == ["norm", "seed", "lr"] for cell in found)
    assert cells({}) == [{}]


def test_too_many_cells_are_refused() -> None:
    with pytest.raises(InputError, match="10200 cells"):
        cells({"a": list(range(102)), "b": list(range(100))})


def test_flags_of_a_cell() -> None:
    cell = {"norm": "GroupNorm(num_groups=4, eps=1e-3)", "seed": 1, "model.optimizer.lr": 0.1, "data": "Digits"}
    assert flags(cell) == [
        "--model.net.norm=GroupNorm",
        "--model.net.norm.num_groups=4",
        "--model.net.norm.eps=0.001",
        "--seed_everything=1",
        "--model.optimizer.lr=0.1",
        "--data=Digits",
    ]


@pytest.mark.parametrize(
    "value", ["GroupNorm(3)", "GroupNorm(**x)", "GroupNorm(num_groups=f())", "GroupNorm(=)", "A()(b=1)"]
)
def test_arguments_without_a_name_are_refused(value: str) -> None:
    with pytest.raises(InputError, match="by name"):
        flags({"norm": value})
