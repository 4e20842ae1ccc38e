"""The memory of a block: what it guesses is what plain dictionaries would, whatever else is remembered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.memory import KINDS, ORDERS, RUNS, BlockMemory, recall

# The stream depends on these: the hash of a context of 1, 2 or 3 tokens, written down a second time.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)
SLOT_BITS = 15

Lane = tuple[int, list[int]]  # its block and its tokens


def slot_of(context: Sequence[int]) -> int:
    """context: the tokens before, latest first; as many as the order has."""
    number = context[0] + 1
    for token in context[1:]:
        number = number << 16 | token
    return (number * MULTIPLIERS[len(context) - 1] % 2**64) >> (64 - SLOT_BITS)


@dataclass
class Entry:
    context: tuple[int, ...]
    token: int
    runs: int


class PlainMemory:
    """The same in dictionaries, one entry a slot, contexts told apart by what they are."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, int, int], Entry] = {}

    def _entry(self, block: int, context: tuple[int, ...]) -> Entry | None:
        entry = self.entries.get((block, len(context), slot_of(context)))
        return entry if entry is not None and entry.context == context else None

    def guess(self, block: int, context: tuple[int, ...]) -> tuple[int, int]:
        """(guess, kind) given the ORDERS tokens before, latest first."""
        for order in range(ORDERS, 0, -1):
            entry = self._entry(block, context[:order])
            if entry is not None:
                return entry.token, 1 + (order - 1) * RUNS + entry.runs
        return 0, 0

    def learn(self, steps: Sequence[tuple[int, tuple[int, ...], int]]) -> None:
        """(block, context, token that came) of every lane of one step: all saw what was there before."""
        made = []
        for block, context, came in steps:
            for order in range(1, ORDERS + 1):
                entry = self._entry(block, context[:order])
                right = entry is not None and entry.token == came
                runs = min(entry.runs + 1, RUNS - 1) if entry is not None and right else 0
                place = block, order, slot_of(context[:order])
                made.append((place, Entry(context[:order], came, runs)))
        self.entries.update(made)


def plainly(lanes: Sequence[Lane]) -> list[list[tuple[int, int]]]:
    """(guess, kind) of every token of every lane, the longest lane first."""
    memory = PlainMemory()
    said: list[list[tuple[int, int]]] = [[] for _ in lanes]
    for at in range(max((len(tokens) for _, tokens in lanes), default=0)):
        steps = []
        for i, (block, tokens) in enumerate(lanes):
            if at < len(tokens):
                before = ([0] * ORDERS + tokens[:at])[::-1]
                steps.append((block, tuple(before[:ORDERS]), tokens[at]))
                said[i].append(memory.guess(block, steps[-1][1]))
        memory.learn(steps)
    return said


def recalled(lanes: Sequence[Lane]) -> list[list[tuple[int, int]]]:
    """The same from `recall`."""
    count = np.array([len(tokens) for _, tokens in lanes], np.int64)
    table = np.zeros((len(lanes), int(count.max(initial=0))), np.int64)
    for row, (_, tokens) in zip(table, lanes, strict=True):
        row[: len(tokens)] = tokens
    guess, kind = recall(table, np.array([block for block, _ in lanes], np.int64), count)
    assert guess.shape == kind.shape == table.shape
    for row, length in enumerate(count):  # nothing is said of padding
        assert not guess[row, length:].any() and not kind[row, length:].any()
    return [
        list(zip(guess[row, :length].tolist(), kind[row, :length].tolist(), strict=True))
        for row, length in enumerate(count)
    ]


# Few different tokens, so that contexts come back; the largest ones, where a number could run over. (Token
# 65535 as the first of a text has the mark of an empty slot: the next guess is token 0, on both sides.)
tokens_of_a_lane = st.lists(st.sampled_from([0, 1, 2, 3, 65533, 65534]), min_size=1, max_size=40)
repetitive = st.builds(
    lambda piece, times: piece * times, st.lists(st.integers(0, 4), min_size=1), st.integers(1, 5)
)
any_lanes = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(tokens_of_a_lane, repetitive)), min_size=1, max_size=8
).map(lambda lanes: sorted(lanes, key=lambda lane: -len(lane[1])))


@settings(max_examples=100, deadline=None)
@given(any_lanes)
def test_guesses_are_those_of_dictionaries(lanes: list[Lane]) -> None:
    assert recalled(lanes) == plainly(lanes)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([30, 300, 65535]))
def test_so_they_are_where_contexts_meet_in_a_slot(seed: int, vocabulary: int) -> None:
    """Thousands of contexts in 2**15 slots: some drive others out, none is taken for another."""
    rng = np.random.default_rng(seed)
    # As in text: a few tokens are frequent, most are rare.
    draw = (vocabulary ** rng.random((8, 300))).astype(np.int64) - 1
    lanes = [(i % 2, row.tolist()) for i, row in enumerate(draw)]
    assert recalled(lanes) == plainly(lanes)


@settings(max_examples=40, deadline=None)
@given(any_lanes)
def test_a_block_knows_of_itself_alone(lanes: list[Lane]) -> None:
    together = recalled(lanes)
    for block in {b for b, _ in lanes}:
        mine = [i for i, (b, _) in enumerate(lanes) if b == block]
        assert recalled([(0, lanes[i][1]) for i in mine]) == [together[i] for i in mine]


@settings(max_examples=40, deadline=None)
@given(any_lanes, st.randoms())
def test_blocks_may_stand_in_any_order(lanes: list[Lane], rng: random.Random) -> None:
    """As long as the lanes of each block keep theirs."""
    numbers = list(range(4))
    rng.shuffle(numbers)
    order = sorted(range(len(lanes)), key=lambda i: (-len(lanes[i][1]), numbers[lanes[i][0]], i))
    moved = recalled([(numbers[lanes[i][0]], lanes[i][1]) for i in order])
    assert [moved[order.index(i)] for i in range(len(lanes))] == recalled(lanes)


@settings(max_examples=40, deadline=None)
@given(any_lanes)
def test_recall_is_what_stepping_says(lanes: list[Lane]) -> None:
    """As a decoder goes: it knows of a token only once it has come."""
    expected = recalled(lanes)
    memory = BlockMemory(4)
    decoded: list[list[int]] = [[] for _ in lanes]
    for at in range(len(lanes[0][1])):
        n = sum(len(tokens) > at for _, tokens in lanes)
        block = np.array([b for b, _ in lanes[:n]], np.int64)
        history = np.array([([0] * ORDERS + decoded[i])[::-1][:ORDERS] for i in range(n)], np.int64)
        guess, kind = memory.guess(block, history)
        assert guess.dtype == kind.dtype == np.int64
        assert list(zip(guess.tolist(), kind.tolist(), strict=True)) == [said[at] for said in expected[:n]]
        came = np.array([tokens[at] for _, tokens in lanes[:n]], np.int64)
        memory.learn(came)
        for i in range(n):
            decoded[i].append(int(came[i]))


def test_no_lanes_and_no_tokens() -> None:
    guess, kind = recall(np.zeros((0, 0), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert guess.shape == kind.shape == (0, 0)


# By hand


def test_lanes_of_one_step_do_not_see_each_other() -> None:
    text = [5, 6, 7, 8, 9, 10]
    assert recalled([(0, text)] * 3) == [[(0, 0)] * len(text)] * 3


def test_a_lane_sees_what_its_neighbours_said_a_moment_ago() -> None:
    said = recalled([(0, [5, 6, 7, 8]), (0, [9, 5, 6, 7]), (1, [9, 5, 6, 7])])
    # After 5, 6 was said at the step before; then 7 after "5, 6", a context of two.
    assert said[1] == [(0, 0), (0, 0), (6, 1), (7, 1 + RUNS)]
    assert said[2] == [(0, 0)] * 4  # another block


def test_the_last_lane_of_a_step_stays() -> None:
    for lanes in ([[7, 1, 7, 3], [7, 2, 7, 3]], [[7, 2, 7, 3], [7, 1, 7, 3]]):
        first, second = recalled([(0, tokens) for tokens in lanes])
        # Both were at 7 when they came on; what the second one said is what is known of it.
        assert first[3] == second[3] == (lanes[1][1], 1)


def test_a_longer_context_is_believed_first() -> None:
    #         1  2  3  9  2  3  8  1  2  3
    text = [1, 2, 3, 9, 2, 3, 8, 1, 2, 3, 9]
    said = recalled([(0, text)])[0]
    # The last 3 follows "1, 2": 9 came then, though 8 came last after "2, 3" and after 3.
    assert said[10] == (9, 1 + 2 * RUNS)
    assert said[6] == (9, 1 + 1 * RUNS)  # "2, 3" was followed by 9 and by nothing else yet


def test_runs_count_how_often_it_was_right() -> None:
    said = recalled([(0, [4] * 10)])[0]
    # Order 1 learns at once, order 2 a token later, order 3 another one later (padding stands before).
    assert said[:2] == [(0, 0), (0, 0)]
    assert [guess for guess, _ in said[2:]] == [4] * 8
    runs = [(kind - 1) % RUNS for _, kind in said[4:]]
    assert runs == [0, 1, 2, 3, 3, 3][: len(runs)]
    assert {(kind - 1) // RUNS for _, kind in said[4:]} == {ORDERS - 1}
    broken = recalled([(0, [*[4] * 10, 5, *[4] * 4])])[0]
    assert broken[10] == (4, KINDS - 1)  # as sure as it gets
    assert broken[14] == (5, 1 + (ORDERS - 1) * RUNS)  # and wrong: it starts anew with what came


def test_a_slot_is_its_last_contexts() -> None:
    """Two contexts of one slot: the second drives the first one out, and is never taken for it."""
    slots: dict[int, int] = {}
    for token in range(65536):
        other = slots.setdefault(slot_of([token]), token)
        if other != token:
            break
    memory, block = BlockMemory(1), np.zeros(1, np.int64)

    def at(latest: int, earlier: int) -> tuple[int, int]:
        guess, kind = memory.guess(block, np.array([[latest, earlier, earlier]]))
        return int(guess[0]), int(kind[0])

    assert at(other, 1) == (0, 0)
    memory.learn(np.array([11]))
    assert at(other, 2) == (11, 1)  # other tokens before: order 1 alone knows it
    assert at(token, 3) == (0, 0)
    memory.learn(np.array([12]))
    assert at(token, 4) == (12, 1)
    assert at(other, 5) == (0, 0)
    assert at(other, 1) == (11, 1 + 2 * RUNS)  # longer contexts have slots of their own


def test_an_empty_slot_is_never_a_guess() -> None:
    """A context whose mark is zero would find itself in a slot that nothing was written to."""
    memory, tokens = BlockMemory(1), np.arange(65535)
    for history in ([tokens] * ORDERS, [tokens, 0 * tokens, 0 * tokens], [tokens, tokens, 0 * tokens]):
        guess, kind = memory.guess(np.zeros(len(tokens), np.int64), np.stack(history, 1))
        assert not guess.any() and not kind.any()


@pytest.mark.parametrize("came", [0, 1, 65535])
def test_the_start_of_a_text_is_a_context_like_any_other(came: int) -> None:
    memory, block, start = BlockMemory(1), np.zeros(1, np.int64), np.zeros((1, ORDERS), np.int64)
    assert memory.guess(block, start)[1].tolist() == [0]
    memory.learn(np.array([came]))
    guess, kind = memory.guess(block, start)
    assert (guess.tolist(), kind.tolist()) == ([came], [1 + (ORDERS - 1) * RUNS])
