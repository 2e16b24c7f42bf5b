"""A whole step in three Triton kernels against the reference: scope, decisions, logits and telemetry records.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter. What is expected is made of plain torch:
`reference.steer_` for logits, `scope.rows_in_scope` for the thinking block, `Recorder.write` for records.
"""

from __future__ import annotations

import tests.support.interpreted  # noqa: F401  before triton

# isort: split
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from steerdec.kernels import dispatch
from steerdec.kernels.slots import (
    END_ID,
    GENERATION,
    LANE,
    OCCUPANT,
    SCOPE,
    SLOT_INTS,
    START_ID,
    STEERED,
    Layout,
    Slots,
)
from steerdec.kernels.triton_step import Step
from steerdec.policies.registry import parse
from steerdec.steering import encoding, memory, scope
from steerdec.steering.params import PAPER_THRESHOLD_NATS
from steerdec.vllm_plugin.recorder import Recorder

MAX_LEN, CAPACITY, DRAFTS = 3000, 40, 3
OPEN, CLOSE = 5, 6
T = 0.7
STEERINGS = [
    {"fork_temperature": 1.3, "other_temperature": 0.4},
    {"fork_temperature": 0.0},
    {"select": "random", "fork_rate": 0.5, "fork_temperature": 1.1, "probe_temperature": 0.5},
    {"select": "first", "first_tokens": 4, "fork_temperature": 1.6},
    {"policy": "dynatemp", "probe_temperature": "applied"},
    {"policy": "edt"},
    {"policy": "entropy_target", "delta_nats": 0.2},
    {"policy": "p_less", "fork_temperature": 2.0, "probe_temperature": "applied"},
    {"policy": "uniform_top_k", "k": 3, "probe_temperature": "applied"},
    {"select": "quantile", "fork_temperature": 1.2, "hysteresis": 0.3},
    {"select": "all", "fork_temperature": 1.4, "guard_mean_entropy_nats": 1.0, "guard_window_tokens": 2},
    {"policy": "p_less", "select": "quantile", "quantile": 0.4, "guard_mean_entropy_nats": 3.0},
]
SLOTS = len(STEERINGS)
LANES = SLOTS - 2  # `table` gives each slot one of its own, one slot none, and one a lane past the last
POISON = 0x7FC0DEAD  # a NaN with a payload of its own


@dataclass
class Request:
    """What one slot holds."""

    prompt: int
    tokens: list[int]  # prompt and output
    prefill: int


def table(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Slot i under `STEERINGS[i]`, every third unsteered; scopes and lanes at random."""
    encoded = [encoding.encode(parse(steering), T, PAPER_THRESHOLD_NATS) for steering in STEERINGS]
    ints = torch.zeros(SLOTS, SLOT_INTS, dtype=torch.int32)
    lanes = generator.permutation(np.arange(-1, LANES + 1))  # none, and past the last one; no two requests share one
    for i, one in enumerate(encoded):
        ints[i, : encoding.INTS] = torch.tensor(one.ints(i))
        ints[i, encoding.MEMORY] = SLOTS - 1 - i if one.remembers else encoding.NO_MEMORY
        ints[i, STEERED] = int(generator.random() < 0.8)
        ints[i, SCOPE] = int(generator.integers(3))
        ints[i, START_ID], ints[i, END_ID] = OPEN, CLOSE
        ints[i, LANE] = int(lanes[i])
        ints[i, GENERATION] = 10 + i
        ints[i, OCCUPANT] = int(generator.integers(1, 2**29))
    return torch.tensor([one.floats for one in encoded]), ints


def fresh(generator: np.random.Generator) -> Request:
    prompt = int(generator.choice([1, 3, 1024, 1025, 2500]))
    kinds = generator.choice([OPEN, CLOSE, 1, 2], size=prompt, p=[0.001, 0.001, 0.5, 0.498])
    return Request(prompt, kinds.tolist(), prompt)


def same_states(actual: Tensor, expected: Tensor) -> None:
    whole = [memory.POSITION, memory.TOKENS, memory.FLAGS]
    assert torch.equal(actual[..., whole], expected[..., whole])
    for column in (memory.MEAN, memory.LEVEL):
        ours, right = (states[..., column].contiguous().view(torch.float32) for states in (actual, expected))
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vocab", [1, 2, 63, 4095, 4097, 9000])
def test_a_step_does_what_the_reference_does(vocab: int) -> None:
    generator = np.random.default_rng(vocab)
    floats, ints = table(generator)
    requests = [fresh(generator) for _ in range(SLOTS)]
    history, words = torch.zeros(SLOTS, dtype=torch.int64), torch.zeros(LANES, CAPACITY, 4, dtype=torch.int32)
    expected_words, step = words.clone(), Step(4)
    states = torch.zeros(SLOTS, memory.ring_entries(DRAFTS), memory.WORDS, dtype=torch.int32)
    expected_states = states.clone()
    scoped = 0
    for at in range(5):
        if at == 3:  # a slot is taken again: nothing of its last request may matter
            requests[1] = fresh(generator)
            ints[1, OCCUPANT] += 1
        token_ids = torch.full((SLOTS, MAX_LEN), -7, dtype=torch.int32)
        rows: list[tuple[int, int, int, int]] = []  # slot, pos, local_pos, token
        for slot in generator.permutation(SLOTS):
            one = requests[slot]
            token_ids[slot, : len(one.tokens)] = torch.tensor(one.tokens, dtype=torch.int32)
            part = int(generator.random() < 0.2 and len(one.tokens) > 1 and len(one.tokens) == one.prompt)
            drafts = generator.choice([OPEN, CLOSE, 1], size=0 if part else generator.integers(0, DRAFTS + 1))
            last = len(one.tokens) - 1 - part
            rows += [(slot, last + j, j, int(t)) for j, t in enumerate([one.tokens[last], *drafts])]
        rows.insert(len(rows) // 2, (-1, -1, 0, -1))  # padding
        columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
        # The padding stands between requests, never within one: its place must not break a request's rows apart.
        if columns[2][len(rows) // 2 + 1 if len(rows) // 2 + 1 < len(rows) else 0] > 0:
            order = sorted(range(len(rows)), key=lambda r: rows[r][0] < 0)
            columns = [column[order] for column in columns]
        layout = Layout(columns[0].int(), columns[1], columns[2].int(), columns[3].int())
        lens = (torch.tensor([getattr(r, name) for r in requests], dtype=torch.int32) for name in ("prompt", "prefill"))
        slots = Slots(floats, ints, *lens, token_ids, history, words, states)
        n = len(rows)
        padded = torch.full((n, vocab + 5), POISON, dtype=torch.int32)
        logits = padded.view(torch.float32)[:, :vocab]
        logits.copy_(torch.from_numpy(generator.normal(size=(n, vocab)) * generator.uniform(0.3, 4, size=(n, 1))))
        logits[int(generator.integers(n))] = torch.nan
        before = logits.clone()

        slot = layout.slots.clamp(min=0).long()
        live = torch.where((layout.slots >= 0) & (ints[slot, STEERED] != 0), slot, -1)
        inside = scope.rows_in_scope(
            ints[:, SCOPE],
            ints[:, START_ID : END_ID + 1],
            token_ids,
            live,
            layout.pos,
            layout.local_pos,
            layout.input_ids,
        )
        scoped += int((~inside).sum())
        position = layout.pos + 1 - slots.prompt_len[slot]
        wanted = before.clone()
        kept = (live >= 0) & (layout.pos + 1 >= slots.prefill_len[slot])
        outcome = dispatch.steer_(
            *(wanted, floats, ints[:, : encoding.INTS].contiguous(), live, torch.where(kept, position, -1), inside),
            expected_states,
            backend="reference",
        )
        Recorder(expected_words).write(
            torch.where(kept, ints[slot, LANE], -1), ints[slot, GENERATION], position, outcome
        )

        step(logits, slots, layout)
        assert (padded[:, vocab:] == POISON).all(), "wrote past a row's end"
        untouched = live < 0
        assert torch.equal(logits[untouched].view(torch.int32), before[untouched].view(torch.int32))
        torch.testing.assert_close(logits, wanted, rtol=2e-3, atol=1e-4, equal_nan=True)
        assert torch.equal(words[:-1, :, 2], expected_words[:-1, :, 2])  # generation and flags
        same_states(states, expected_states)
        for column in (0, 1, 3):
            actual, right = (w[:-1, :, column].contiguous().view(torch.float32) for w in (words, expected_words))
            torch.testing.assert_close(actual, right, rtol=2e-3, atol=1e-4, equal_nan=True)
        for one in requests:
            one.tokens += generator.choice([OPEN, CLOSE, 1, 2], size=generator.integers(1, 4)).tolist()
    assert scoped > 0
    assert words.any()
    assert not words[-1].any(), "the last lane is never written"
