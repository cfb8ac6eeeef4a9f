"""What a comparison says, on tables made by hand."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from normzoo.errors import InputError
from normzoo.page.comparison import comparison
from normzoo.page.outcome import Outcome
from normzoo.runs.state import State

Values = Sequence[float | str | None]


def runs_of(
    table: dict[tuple[str, float], Values], tag: str = "accuracy", stages: Sequence[str] = ("val", "test")
) -> list[Outcome]:
    """The runs of a table: (norm, rate) -> a value for each seed, None for one that waits, or how it ended."""
    runs = []
    for (norm, rate), values in table.items():
        for seed, value in enumerate(values):
            known = isinstance(value, float)
            runs.append(
                Outcome(
                    name=f"{len(runs):03d}-{norm}-{seed}",
                    seed=seed,
                    settings={"model.net.norm": f"normzoo.norms.{norm}", "model.optimizer.lr": rate},
                    state=State(value) if isinstance(value, str) else State.FINISHED if known else State.NEW,
                    step=7 + seed if isinstance(value, str) else 100,
                    text="a message\nof two lines" if isinstance(value, str) else "",
                    curves={f"{stage}/{tag}": {50: value / 2, 100: value} for stage in stages} if known else {},
                )
            )
    return runs


def said(table: dict[tuple[str, float], Values], target: float | None = None, **options: Any) -> list[str]:
    found = comparison(runs_of(table, **options), target=target)
    assert found is not None
    return found["words"]


BN, LN, NO = ("BatchNorm", 0.1), ("LayerNorm", 0.1), ("NoNorm", 0.1)
HIGHEST = "BatchNorm has the highest mean: test/accuracy 91.0 % (3 seeds)."
CASES: list[tuple[dict[tuple[str, float], Values], list[str]]] = [
    (
        {BN: [0.90, 0.91, 0.92], LN: [0.80, 0.811, 0.822]},
        [HIGHEST, "BatchNorm is better than LayerNorm by 9.9 points (95 % interval 9.7 to 10.1, 3 pairs)."],
    ),
    (
        {BN: [0.90, 0.91, 0.92], LN: [0.89, 0.92, 0.89]},
        [
            HIGHEST,
            "BatchNorm and LayerNorm are not told apart: the difference is 1.0 points (95 % interval -4.0 to 6.0, 3 "
            "pairs); about 34 pairs would be needed.",
        ],
    ),
    (
        {BN: [0.90, 0.91, 0.92], LN: [0.93, 0.88, 0.9199]},
        [
            HIGHEST,
            "BatchNorm and LayerNorm are not told apart: the difference is 0.0 points (95 % interval -7.4 to 7.5, 3 "
            "pairs); more than 100 pairs would be needed.",
        ],
    ),
    (
        {BN: [0.90, 0.91, 0.92], LN: [0.90, 0.91, 0.92]},
        [HIGHEST, "BatchNorm equals LayerNorm in all 3 pairs."],
    ),
    (
        {BN: [0.90, 0.91, 0.92], LN: [0.89, 0.90, 0.91]},
        [HIGHEST, "BatchNorm is better than LayerNorm by 1.0 points in each of 3 pairs."],
    ),
    (
        {BN: [0.90], LN: [0.89]},
        [
            "BatchNorm has the highest mean: test/accuracy 90.0 % (1 seed).",
            "BatchNorm is better than LayerNorm by 1.0 points in the only pair: an interval takes more seeds.",
        ],
    ),
    (
        {BN: [0.90, None], LN: [None, 0.89]},
        [
            "2 of 4 runs are finished; 2 waiting.",
            "BatchNorm has the highest mean: test/accuracy 90.0 % (1 of 2 seeds).",
        ],
    ),
    (
        {BN: [None, None], LN: [None, "running"]},
        [
            "0 of 4 runs are finished; 1 running, 3 waiting.",
        ],
    ),
    (
        {BN: [0.90, 0.91, 0.92], NO: ["diverged", "diverged", "failed"]},
        [
            "3 of 6 runs are finished; 2 diverged, 1 failed.",
            "BatchNorm is the best: test/accuracy 91.0 % (3 seeds).",
            "NoNorm: 2 of 3 runs diverged, the first at step 7.",
            "NoNorm: 1 of 3 runs failed.",
        ],
    ),
    (  # the second norm is not the baseline: the first two, and each against the baseline
        {BN: [0.80, 0.81], LN: [0.90, 0.91], NO: [0.85, 0.86]},
        [
            "LayerNorm has the highest mean: test/accuracy 90.5 % (2 seeds).",
            "LayerNorm is better than NoNorm by 5.0 points in each of 2 pairs.",
            "LayerNorm is better than BatchNorm by 10.0 points in each of 2 pairs.",
            "NoNorm is better than BatchNorm by 5.0 points in each of 2 pairs.",
        ],
    ),
    (
        {("BatchNorm", 0.1): [0.8], ("BatchNorm", 1.0): [0.9], ("LayerNorm", 0.1): [0.89], ("LayerNorm", 1.0): [0.7]},
        [
            "The best setting of each norm is chosen by val/accuracy, and compared by test/accuracy.",
            "BatchNorm at lr=1 has the highest mean: test/accuracy 90.0 % (1 seed).",
            "BatchNorm at lr=1 is better than LayerNorm at lr=0.1 by 1.0 points in the only pair: an interval takes "
            "more seeds.",
            "The best lr of BatchNorm, 1, is the largest tried: a larger one may be better.",
            "The best lr of LayerNorm, 0.1, is the smallest tried: a smaller one may be better.",
        ],
    ),
    (  # the best one has fewer failures
        {("BatchNorm", 0.1): [0.8, 0.8], ("BatchNorm", 1.0): [0.9, "diverged"], ("BatchNorm", 0.01): [0.7, 0.7]},
        [
            "5 of 6 runs are finished; 1 diverged.",
            "The best setting of each norm is chosen by val/accuracy, and compared by test/accuracy.",
            "BatchNorm at lr=0.1 is the best: test/accuracy 80.0 % (2 seeds).",
            "BatchNorm: 1 of 6 runs diverged, the first at step 8.",
        ],
    ),
]


@pytest.mark.parametrize("table,words", CASES)
def test_words(table: dict[tuple[str, float], Values], words: list[str]) -> None:
    assert said(table) == words


def test_of_a_loss_less_is_better() -> None:
    assert said({BN: [0.5, 0.52], LN: [1.5, 1.51]}, tag="loss") == [
        "BatchNorm has the lowest mean: test/loss 0.51 (2 seeds).",
        "BatchNorm is better than LayerNorm by 0.995 (95 % interval 0.93 to 1.06, 2 pairs).",
    ]


def test_without_a_test_metric_the_best_validation_value_counts() -> None:
    words = said({BN: [0.9], ("BatchNorm", 1.0): [0.8]}, stages=["val"])
    assert words[0] == "Settings are chosen and compared by the same metric, val/accuracy, which favours noise."


def test_steps_to_a_target() -> None:
    words = said({BN: [0.9, 0.92], LN: [0.4, 0.3], NO: [0.9, 0.3]}, target=0.44)
    assert words[-1] == (
        "To val/accuracy 44.0 %: BatchNorm 50 steps (2 of 2 runs); LayerNorm does not reach it (0 of 2 runs); NoNorm "
        "does not reach it (1 of 2 runs)."
    )


def test_several_data_sets_have_no_best_norm() -> None:
    """An accuracy on one says nothing of that on another."""
    runs = runs_of({BN: [0.9, 0.91], LN: [0.8, 0.82]})
    others = [replace(run, settings={**run.settings, "data": "Other"}) for run in runs]
    found = comparison([replace(run, settings={**run.settings, "data": "One"}) for run in runs] + others)
    assert found is not None
    assert found["words"] == [
        "The runs are of several data sets: norms are compared only where all other settings are the same."
    ]
    assert not any(arm["best"] for arm in found["arms"])
    assert [arm["difference"]["against"] for arm in found["arms"] if arm["difference"]] == [
        "BatchNorm, data=One", "BatchNorm, data=Other"
    ]  # fmt: skip


def test_many_intervals_miss_sometimes() -> None:
    table = {(f"Norm{i}", 0.1): [0.9 + 0.001 * i, 0.9 + 0.0015 * i] for i in range(21)}
    assert "Of 20 intervals of 95 %, 1 miss the true difference on average." in said(table)
    one_seed = {arm: values[:1] for arm, values in table.items()}
    assert not any("intervals" in sentence for sentence in said(one_seed))


def test_many_norms_share_sentences() -> None:
    """A sentence for each of 50 would be a page of text."""
    better = {(f"Up{i}", 0.1): [0.94 + 0.01 * i, 0.95 + 0.01 * i, 0.97 + 0.01 * i] for i in range(3)}
    worse = {(f"Down{i}", 0.1): [0.84, 0.85 + 0.01 * i, 0.87] for i in range(4)}
    others: dict[tuple[str, float], Values] = {("Near", 0.1): [0.91, 0.90, 0.92], ("Same", 0.1): [0.9, 0.91, 0.92]}
    found = said({BN: [0.90, 0.91, 0.92], **better, **worse, **others, ("One", 0.1): [0.89, None, None]})
    assert found[1:-1] == [
        "Up2 has the highest mean: test/accuracy 97.3 % (3 seeds).",
        "Up2 is better than Up1 by 1.0 points in each of 3 pairs.",
        "Better than BatchNorm: Up2 by 6.3 points (4.9 to 7.8), Up1 by 5.3 points (3.9 to 6.8), Up0 by 4.3 points (2.9 "
        "to 5.8).",
        "Worse than BatchNorm: Down0 by 5.7 points (4.2 to 7.1), Down1 by 5.3 points (3.9 to 6.8), Down2 by 5.0 "
        "points (2.5 to 7.5), Down3 by 4.7 points (0.9 to 8.5).",
        "Worse than BatchNorm in the only pair: One by 1.0 points.",
        "Not told apart from BatchNorm: Near (-2.5 to 2.5).",
        "Equal to BatchNorm: Same.",
    ]


def test_accuracies_in_percent_are_no_shares_of_one() -> None:
    found = comparison(runs_of({BN: [90.0, 91.0, 92.0], LN: [80.0, 81.1, 82.2]}))
    assert found is not None
    assert not found["share"]
    assert found["arms"][0]["high"] == pytest.approx(93.48, abs=0.01)
    assert found["words"][0] == "BatchNorm has the highest mean: test/accuracy 91 (3 seeds)."


def test_a_target_in_percent_is_refused() -> None:
    with pytest.raises(InputError, match="target=95: val/accuracy lies between 0 and 1; give a target such as 0.95"):
        said({BN: [0.9], LN: [0.8]}, target=95)


def test_runs_that_count_twice_are_said() -> None:
    runs = runs_of({BN: [0.9], LN: [0.8]})
    found = comparison([*runs, *runs_of({BN: [0.91]})])
    assert found is not None
    assert found["words"][-1] == (
        "1 run not counted: another one has the same seed, and neither config.yaml nor hparams.yaml shows another "
        "difference."
    )
    assert found["arms"][0]["values"] == [0.91]


def test_words_have_no_word_that_numbers_do_not_carry() -> None:
    for table, _ in CASES:
        for sentence in said(table):
            assert re.fullmatch(r"[A-Z0-9].*\.", sentence)
            assert not re.search("significant|prove|always|never|None|nan", sentence)
            assert len(sentence) < 240
