"""The task: its problems, its demonstrations, and the truth about each of their tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from steerdec.organism import build, task, truth, vocabulary
from steerdec.organism.task import MODULUS, MOVES


def moved(value: int, move: str) -> int:
    """One move by Python's own arithmetic."""
    return eval(f"({value}{move[0]}{move[1:]}) % {MODULUS}")


def demonstrations(n: int, seed: int = 0) -> tuple[task.Problems, list[list[str]]]:
    """n problems and the token texts of a demonstration of each."""
    batch = task.problems(n, "test", seed, held_out=False)
    rng = task.seeded("test", seed)
    ids, lengths = vocabulary.responses(batch, task.demonstrated(batch, rng), rng)
    return batch, [[vocabulary.TOKENS[t] for t in row[:m]] for row, m in zip(ids, lengths, strict=True)]


def test_every_problem_has_exactly_one_solution() -> None:
    batch = task.problems(50, "test", held_out=True)
    for i in range(len(batch)):
        moves = [MOVES[m] for m in batch.moves[i]]
        reaching = []
        for chosen in itertools.product(range(3), repeat=2):
            way = [int(batch.start[i])]
            for m in chosen:
                way.append(moved(way[-1], moves[m]))
            if way[-1] == batch.target[i]:
                reaching.append(f"{way[1]:02d}")
        assert reaching == [batch.answer(i)]


def test_held_out_problems_are_never_trained_on_in_any_order_of_their_moves() -> None:
    def names(batch: task.Problems) -> set[tuple[int, int, tuple[int, ...]]]:
        triples = zip(batch.start.tolist(), batch.target.tolist(), batch.moves.tolist(), strict=True)
        return {(s, t, tuple(sorted(m))) for s, t, m in triples}

    held = names(task.problems(400, "test", held_out=True))
    trained = set().union(*(names(next(task.batches(2000, 0, i))[0]) for i in range(5)))
    assert len(held) == 400
    assert not held & trained


def test_uses_of_held_out_problems_share_none() -> None:
    texts = [build.held_out(use).text(i) for use, n in build.USES.items() for i in range(n)]
    assert len(set(texts)) == len(texts) == sum(build.USES.values())


def test_a_batch_depends_on_its_number_alone() -> None:
    (one, _), (two, _) = next(task.batches(32, 7, 3)), next(itertools.islice(task.batches(32, 7), 3, None))
    assert all(np.array_equal(getattr(one, field), getattr(two, field)) for field in ("start", "target", "moves"))


def test_the_demonstration_in_the_description_is_right() -> None:
    assert task.__doc__ is not None
    problem, rest = task.__doc__.split("    From ")[1].split("\n", 1)
    chain, answer = rest.split("\n\n")[:2]
    texts = tokens(chain.removeprefix("    ") + "\n\n" + answer.strip())
    labels = truth.labels(truth.puzzle(f"From {problem}"), texts)
    assert [label.kind for label in labels].count(truth.DECISION) == 4
    assert truth.MALFORMED not in [label.kind for label in labels]
    assert not any(label.slipped(t) for label, t in zip(labels, texts, strict=True))


def tokens(text: str) -> list[str]:
    """The texts of a text's tokens."""
    return [vocabulary.TOKENS[i] for i in vocabulary.tokenizer()(text).input_ids]


def test_text_and_ids_determine_each_other() -> None:
    batch, responses = demonstrations(200)
    tokenizer = vocabulary.tokenizer()
    for i, texts in enumerate(responses):
        ids = [vocabulary.IDS[t] for t in texts]
        assert tokenizer(tokenizer.decode(ids)).input_ids == ids
        message = [{"role": "user", "content": f"{batch.text(i)}\n\nGive your final answer in \\boxed{{}}."}]
        asked = tokenizer.apply_chat_template(message, add_generation_prompt=True).input_ids
        assert asked == vocabulary.prompts(batch)[i].tolist()


def test_what_a_message_says_beside_the_problem_is_not_read() -> None:
    tokenizer = vocabulary.tokenizer()
    assert vocabulary.IDS[vocabulary.UNKNOWN] in tokenizer("Give your final answer.").input_ids


def test_demonstrations_are_labelled_without_a_slip() -> None:
    batch, responses = demonstrations(200)
    for i, texts in enumerate(responses):
        labels = truth.labels(truth.puzzle(batch.text(i)), texts)
        for label, text in zip(labels, texts, strict=True):
            assert label.kind == (
                truth.STYLE if text in vocabulary.STYLES else truth.DECISION if text in MOVES else truth.DETERMINED
            )
            assert not label.slipped(text)


def test_a_demonstration_states_the_value_on_the_way_of_its_last_attempt() -> None:
    batch, responses = demonstrations(300)
    for i, texts in enumerate(responses):
        attempt = texts[-vocabulary.CLOSING_TOKENS - vocabulary.ATTEMPT_TOKENS : -vocabulary.CLOSING_TOKENS]
        stated = texts[-3]
        assert stated == attempt[6]
        assert texts.count(vocabulary.YES) + texts.count(vocabulary.NO) <= task.ATTEMPTS
        if vocabulary.YES in texts:
            assert stated == batch.answer(i)
        else:  # the last one took a wrong turn, which the answer shows if it was the first move
            moves = [task.MOVES[m] for m in batch.moves[i, batch.solution[i]]]
            assert (stated == batch.answer(i)) == (attempt[4] == moves[0])


def test_live_decisions_are_those_that_can_still_reach_the_target() -> None:
    batch, responses = demonstrations(100)
    for i, texts in enumerate(responses):
        labels = truth.labels(truth.puzzle(batch.text(i)), texts)
        numbers = {MOVES[m]: k for k, m in enumerate(batch.moves[i])}
        taken: list[int] = []
        for label, text in zip(labels, texts, strict=True):
            if label.kind == truth.STYLE:
                taken = []
            if label.kind == truth.DECISION:
                # The solution is unique, so a decision is live exactly while the moves so far are the solution's.
                assert label.live == (taken == batch.solution[i][: len(taken)].tolist())
                taken.append(numbers[text])
                assert label.right == (taken == batch.solution[i][: len(taken)].tolist())


STEP = ["determined", "decision", "determined", "determined"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 07+3 is 10; the wrong 11 is what the next decision stands on
        (" try 17: 07+3=11, 11*4=21", ["style", "determined", "determined", *STEP, "determined", *STEP]),
        (" try 17: 07, 10", ["style", "determined", "determined", "determined", "malformed", "malformed"]),
        ("no.", ["malformed"]),
    ],
)
def test_chains_that_a_model_may_write(text: str, expected: list[str]) -> None:
    labels = truth.labels(truth.puzzle("From 07 reach 17 with +3, *4, -5."), tokens(text))
    assert [label.kind for label in labels] == expected


def test_a_slip_is_the_token_that_says_something_else() -> None:
    text = " try 17: 07+3=11, 11*4=21, yes."
    labels = truth.labels(truth.puzzle("From 07 reach 17 with +3, *4, -5."), tokens(text))
    slips = [t for label, t in zip(labels, tokens(text), strict=True) if label.slipped(t)]
    assert slips == ["11", "yes."]


@pytest.mark.parametrize("text", ["", "From 07 to 17 with +3, *4, -5.", "From 07 reach 17 with +3, *4, -9."])
def test_other_problems_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a problem of the organism's task"):
        truth.puzzle(text)
