"""Steering in vLLM's own V2 sampler: what is drawn and reported beside penalties, min-p, top-k, top-p and logprobs.

Run by test_v2_sampler.py in a process of its own. vLLM's own here: the loader, the request slots, the layout of
a step, the sampler and the rejection sampler with all their Triton kernels. Only the model is missing: its logits are
random. What is expected is composed in float64 from each stage's plain definition, with the reference for steering.

What does not run on a CPU, and is left out:
- FlashInfer's fused draw under top-k and top-p. It needs CUDA; vLLM takes it where no request of a batch is greedy or
  has a seed. It is given what min-p has left, as the draw tested here is.
- The choice of the split top-p kernels, which vLLM makes for tensors on CUDA in batches of up to 64 rows. The kernels
  themselves run here, in that place.
- Logits in bfloat16, as a model may give them: the interpreter keeps them as integers, and ranks and maxima come out
  wrong. The sampler turns them into float32 before steering.
- Compiled code, and programs of a kernel side by side: the interpreter runs one program after the other.
"""

from __future__ import annotations

import tests.support.interpreted  # noqa: F401  before triton and vLLM

# isort: split
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.sample.ops import topk_topp_triton
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.input_batch import (
    InputBatch,
    InputBuffers,
    combine_sampled_and_draft_tokens,
    expand_idx_mapping,
    post_update,
    prepare_pos_seq_lens,
    prepare_prefill_inputs,
)
from vllm.v1.worker.gpu.sample import sampler as sampler_module
from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode import rejection_sampler as rejection_module
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler
from vllm.v1.worker.gpu.states import RequestState

from steerdec.kernels import dispatch, reference
from steerdec.processor import EntropySteering
from steerdec.telemetry import lanes as telemetry
from steerdec.vllm_plugin import request
from tests.vllm_plugin.test_processor import CLOSE, MAX_LEN, NAMED, OPEN, VOCAB, Live, assert_recorded, mirrored

CPU = torch.device("cpu")
DRAFTS = 2
PROMPT = [3, 1, 4]
HOT = {"fork_temperature": 1.7, "other_temperature": 0.5, "threshold_nats": 2.0}
COLD = {"select": "all", "fork_temperature": 0.6}
TRUNCATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "min-p": {"min_p": 0.1},
    "top-k": {"top_k": 9},
    "top-p": {"top_p": 0.7},
    "all three": {"min_p": 0.02, "top_k": 20, "top_p": 0.8},
}
PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.7}
MODES = ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"]


@pytest.fixture(scope="module")
def lane_file() -> Iterator[telemetry.LaneFile]:
    with telemetry.created(MAX_LEN, max_lanes=65) as file:
        yield file


@pytest.fixture(scope="module")
def vllm_config(weights: Path, lane_file: telemetry.LaneFile) -> VllmConfig:
    config = EngineArgs(
        model=str(weights),
        max_model_len=256,
        enforce_eager=True,
        hf_overrides={"vocab_size": VOCAB},
        speculative_config={"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_max": 2},
    ).create_engine_config()
    config.additional_config = {"steerdec": {"lanes": asdict(lane_file)}}
    return config


@pytest.fixture(autouse=True)
def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steering by its Triton kernels. Without pinned memory to map, vLLM's fallback copies what requests bring."""
    monkeypatch.setitem(dispatch.BACKEND_OF_DEVICE, "cpu", "triton")
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)


class V2:
    """vLLM's V2 runner around a forward pass: `step` is its prepare_inputs, sample and postprocess_sampled."""

    def __init__(
        self, config: VllmConfig, mode: Any = "processed_logprobs", max_reqs: int = 16, *, steered: bool = True
    ) -> None:
        self.states = RequestState(max_reqs, MAX_LEN, max_reqs * MAX_LEN, DRAFTS, VOCAB, CPU)
        ours = build_custom_logits_processors(config, self.states, False, (NAMED,)) if steered else []
        assert [p.acting for p in ours if isinstance(p, EntropySteering)] == ([False, True] if steered else [])
        self.sampler = Sampler(
            config, max_reqs, VOCAB, CPU, self.states, mode, 1 + DRAFTS, custom_logits_processors=ours
        )
        self.rejection_sampler = RejectionSampler(self.sampler, config.speculative_config, CPU)
        self.buffers = InputBuffers(max_reqs, max_reqs * MAX_LEN, CPU)
        self.running: list[Live] = []

    def enter(self, *lives: Live) -> None:
        for live in lives:
            EntropySteering.validate_params(live.params)
            self.states.add_request(live.name, len(live.prompt), live.prompt + live.output, 0, MAX_LEN)
            self.sampler.add_request(self.states.req_id_to_index[live.name], live.params)
            self.running.append(live)

    def leave(self, live: Live) -> None:
        self.states.remove_request(live.name)
        self.running.remove(live)

    def slots(self) -> np.ndarray:
        return np.array([self.states.req_id_to_index[live.name] for live in self.running])

    def to_prefill(self) -> list[int]:
        """How many tokens of each running request the model has not been fed, before it samples its first one."""
        self._flush()
        slots = self.slots()
        return (self.states.prefill_len.np[slots] - self.states.num_computed_tokens.gpu[slots].numpy()).clip(0).tolist()

    def step(
        self, logits: Tensor, drafts: Sequence[Sequence[int]] | None = None, fed: Sequence[int] | None = None
    ) -> SamplerOutput:
        """One step of all running requests; the tokens are appended to their outputs.

        Args:
            logits: [rows, vocab], for each request one row and one more for each of its drafts.
            drafts: each request's drafts; none by default.
            fed: how many tokens of each request's prefill are fed; all of them by default.
        """
        n = len(self.running)
        drafts = drafts or [[]] * n
        scheduled = np.array([(left or 1) + len(d) for left, d in zip(fed or self.to_prefill(), drafts, strict=True)])
        slots_np, states = self.slots(), self.states
        slots = torch.from_numpy(slots_np)
        for slot, fresh in zip(slots_np, drafts, strict=True):
            states.draft_tokens[slot, : len(fresh)] = torch.tensor(fresh, dtype=torch.int64)
        batch = InputBatch.make_dummy(n, int(scheduled.sum()), self.buffers)
        starts = torch.from_numpy(np.concatenate(([0], scheduled.cumsum())).astype(np.int32))
        first_rows_np = np.array([0, *itertools.accumulate(1 + len(d) for d in drafts)], np.int32)
        first_rows = torch.from_numpy(first_rows_np)
        row_slots, local_pos = expand_idx_mapping(slots, len(logits), first_rows, 1 + DRAFTS)
        prepare_prefill_inputs(
            self.buffers.input_ids,
            states.next_prefill_tokens,
            slots,
            starts,
            states.all_token_ids.gpu,
            states.prefill_len.gpu,
            states.num_computed_tokens.gpu,
        )
        prepare_pos_seq_lens(
            slots, starts, states.num_computed_tokens.gpu, self.buffers.positions, self.buffers.seq_lens
        )
        row_indices = combine_sampled_and_draft_tokens(
            self.buffers.input_ids,
            slots,
            states.last_sampled_tokens,
            starts,
            self.buffers.seq_lens[:n],
            states.prefill_len.gpu,
            states.draft_tokens,
            first_rows,
            len(logits),
        )
        batch = replace(
            batch,
            idx_mapping=slots,
            idx_mapping_np=slots_np,
            expanded_idx_mapping=row_slots,
            expanded_local_pos=local_pos,
            num_draft_tokens=sum(map(len, drafts)),
            query_start_loc=starts,
            logits_indices=row_indices,
            cu_num_logits=first_rows,
            cu_num_logits_np=first_rows_np,
        )
        told = self.rejection_sampler(logits, batch) if any(drafts) else self.sampler(logits, batch)
        post_update(
            slots,
            states.num_computed_tokens.gpu,
            states.last_sampled_tokens,
            self.sampler.penalties_state.output_bin_counts,
            told.sampled_token_ids,
            told.num_sampled,
            told.num_rejected,
            starts,
            states.all_token_ids.gpu,
            states.total_len.gpu,
        )
        for live, tokens, count in zip(self.running, told.sampled_token_ids, told.num_sampled, strict=True):
            live.output += tokens[:count].tolist()
        return told

    def _flush(self) -> None:
        self.states.apply_staged_writes()
        self.sampler.apply_staged_writes()


_numbers = itertools.count()


def asked(steering: dict[str, Any] | None = None, temperature: float = 0.8, seed: int = 7, **more: Any) -> Live:
    extra = None if steering is None else {"steering": steering}
    sampling = SamplingParams(**{"temperature": temperature, "seed": seed, "logprobs": -1, "extra_args": extra, **more})
    return Live(f"request {next(_numbers)}", sampling, list(PROMPT))


def random_rows(rows: int, seed: int, spread: float = 1.5) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def reported(told: SamplerOutput) -> Tensor:
    """[rows, vocab] what the sampler reports by token: its columns are the drawn token, then all by rank."""
    tensors = told.logprobs_tensors
    assert tensors is not None
    by_token = torch.full((len(tensors.logprobs), VOCAB), torch.nan)
    by_token.scatter_(1, tensors.logprob_token_ids[:, 1:], tensors.logprobs[:, 1:])
    drawn = by_token.gather(1, tensors.logprob_token_ids[:, :1])
    assert same_bits(drawn, tensors.logprobs[:, :1])
    ranked = drawn[:, 0].isfinite()  # not so in the rows past a rejected draft, from which nothing is drawn
    assert torch.equal(tensors.selected_token_ranks[ranked], (by_token >= drawn).sum(1)[ranked])
    return by_token


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


# The stages, each by its plain definition ---------------------------------------------------------

Stage = Callable[[Tensor], Tensor]
IN_ORDER = (
    *("allowed tokens", "logit bias", "penalties", "bad words"),
    "steering",
    *("temperature", "min-p", "top-k", "top-p"),
)


def stages_of(live: Live, fed: list[int]) -> dict[str, Stage]:
    """What each stage makes of one row, [vocab] float64; `fed`: drafts after the request's output."""
    s = live.params

    def only(kept: Tensor, z: Tensor) -> Tensor:
        return torch.where(kept, z, -torch.inf)

    def allowed(z: Tensor) -> Tensor:
        kept = torch.tensor([s.allowed_token_ids is None or i in s.allowed_token_ids for i in range(VOCAB)])
        return only(kept, z)

    def biased(z: Tensor) -> Tensor:
        return z + torch.tensor([(s.logit_bias or {}).get(i, 0.0) for i in range(VOCAB)], dtype=torch.float64)

    def penalised(z: Tensor) -> Tensor:
        generated = Counter(live.output + fed)
        times = torch.tensor([generated[i] for i in range(VOCAB)])
        seen = (times > 0) | torch.tensor([i in live.prompt for i in range(VOCAB)])
        repeated = torch.where(z > 0, z / s.repetition_penalty, z * s.repetition_penalty)
        return torch.where(seen, repeated, z) - s.frequency_penalty * times - s.presence_penalty * (times > 0)

    def without_bad_words(z: Tensor) -> Tensor:
        words = s.bad_words_token_ids or []
        assert all(len(word) == 1 for word in words)
        return only(torch.tensor([[i] not in words for i in range(VOCAB)]), z)

    def min_p(z: Tensor) -> Tensor:
        p = z.softmax(-1)
        return only(p >= s.min_p * p.max(), z)

    def top_k(z: Tensor) -> Tensor:
        return only(z >= z.sort(descending=True).values[s.top_k - 1], z) if s.top_k > 0 else z

    def top_p(z: Tensor) -> Tensor:
        p, order = z.softmax(-1).sort(descending=True)
        kept = torch.empty(VOCAB, dtype=torch.bool)
        kept[order] = p.cumsum(0) - p < s.top_p
        if 1 < kept.sum() == z.isfinite().sum() and s.top_p < 1:
            # Not the definition, but vLLM's kernel: it looks for a number below the probabilities that it keeps, never
            # below the least of all, and so loses the least likely token where all that are left are needed.
            kept[order[kept.sum() - 1]] = False
        return only(kept, z)

    return {
        "allowed tokens": allowed,
        "logit bias": biased,
        "penalties": penalised,
        "bad words": without_bad_words,
        "steering": lambda z: mirrored(live, z.float(), fed)[0].double(),
        "temperature": lambda z: z / (s.temperature or 1.0),
        "min-p": min_p,
        "top-k": top_k,
        "top-p": top_p,
    }


def processed(live: Live, z: Tensor, fed: Sequence[int] = (), order: Sequence[str] = IN_ORDER) -> Tensor:
    """What a row [vocab] becomes before the draw, float64."""
    stages, row = stages_of(live, list(fed)), z.double()
    for name in order:
        row = stages[name](row)
    return row


def assert_told(told: Tensor, expected: Tensor, where: str = "") -> None:
    """Reported log-probabilities are those of processed logits: the same support, the same numbers."""
    assert torch.equal(told == -torch.inf, expected == -torch.inf), f"{where}: another support"
    torch.testing.assert_close(told.double(), expected.log_softmax(-1), rtol=1e-4, atol=1e-4, msg=where)


def distance(a: Tensor, b: Tensor) -> float:
    return (a.softmax(-1) - b.softmax(-1)).abs().max().item()


# Where steering stands ----------------------------------------------------------------------------


def test_steering_comes_after_what_masks_and_shifts_and_before_temperature_and_truncation(
    vllm_config: VllmConfig,
) -> None:
    """T' depends on H under dynatemp, so that every other place for steering gives other numbers."""
    v2, rows = V2(vllm_config), 3
    for i in range(rows):
        live = asked(
            {"policy": "dynatemp", "min_temperature": 0.3, "max_temperature": 2.5},
            allowed_token_ids=list(range(0, VOCAB, 2)) + PROMPT,
            logit_bias=dict.fromkeys(range(0, 30, 3), 3.0),
            **PENALTIES | TRUNCATIONS["all three"],
        )
        live.params._bad_words_token_ids = [[8], [12], [20], [44]]
        live.output += [8 * i, 12, 12, 20]
        v2.enter(live)
    logits = random_rows(rows, 1)
    before = [replace(live, output=list(live.output)) for live in v2.running]
    told = reported(v2.step(logits.clone()))
    others = [name for name in IN_ORDER if name != "steering"]
    for r, live in enumerate(before):
        expected = processed(live, logits[r])
        assert 3 < int(expected.isfinite().sum()) < 20
        assert_told(told[r], expected)
        for place in range(len(IN_ORDER)):
            order = [*others[:place], "steering", *others[place:]]
            if tuple(order) != IN_ORDER:
                moved = processed(live, logits[r], order=order)
                assert distance(moved, expected) > 1e-3, f"steering before {order[place + 1 :]} would go unnoticed"


# What truncation leaves ---------------------------------------------------------------------------


def test_truncation_leaves_of_a_steered_row_what_its_definition_leaves(vllm_config: VllmConfig) -> None:
    v2 = V2(vllm_config)
    v2.enter(*(asked(steering, **given) for given in TRUNCATIONS.values() for steering in (HOT, COLD, None)))
    for seed in (1, 2):
        logits = random_rows(len(v2.running), seed)
        out = v2.step(logits.clone())
        told = reported(out)
        for r, live in enumerate(v2.running):
            expected = processed(live, logits[r])
            assert_told(told[r], expected, f"row {r}")
            assert expected[out.sampled_token_ids[r, 0]] > -torch.inf
            if live.params.extra_args:
                assert distance(processed(asked(None), logits[r]), expected) > 1e-2, "the checks above could not fail"


def test_the_split_kernels_for_top_p_leave_the_same(vllm_config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA they stand where no request of a small batch has a top-k."""

    def split(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
        assert k is None
        topk_topp_triton._apply_topp_split(logits, None, p, -torch.inf, num_sm=4)
        return logits

    monkeypatch.setattr(sampler_module, "apply_top_k_top_p", split)
    v2 = V2(vllm_config)
    v2.enter(*(asked(s, top_p=p, min_p=m) for s in (HOT, COLD) for p, m in ((0.7, 0.0), (0.9, 0.01))))
    logits = random_rows(len(v2.running), 3)
    told = reported(v2.step(logits.clone()))
    for r, live in enumerate(v2.running):
        expected = processed(live, logits[r])
        assert 1 < int(expected.isfinite().sum()) < VOCAB
        assert_told(told[r], expected, f"row {r}")


def test_top_p_loses_the_least_likely_token_where_it_needs_all_that_are_left(vllm_config: VllmConfig) -> None:
    """vLLM's own, steered or not; when this fails, docs/limits.md and `stages_of` need no longer say so."""
    v2, logits = V2(vllm_config), torch.full((3, VOCAB), -torch.inf)
    v2.enter(
        *(
            asked(steering, 1.0, top_p=0.99, **more)
            for steering, more in ((None, {}), (COLD, {}), (None, {"min_p": 0.05}))
        )
    )
    logits[2] = -9.0  # min-p removes these
    logits[:, :3] = torch.tensor([0.0, -1.0, -2.0])
    told = reported(v2.step(logits))
    assert told.isfinite().sum(1).tolist() == [2, 2, 2]


# What is drawn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafts", [0, DRAFTS])
def test_the_tokens_are_those_drawn_from_logits_that_the_reference_has_steered(
    vllm_config: VllmConfig, drafts: int
) -> None:
    """vLLM's noise depends on seed, position and token alone, so without us it must draw the same from those."""
    ours, plain = V2(vllm_config), V2(vllm_config, steered=False)
    for seed, (given, steering) in enumerate(itertools.product(TRUNCATIONS.values(), (HOT, COLD, {"policy": "edt"}))):
        for v2 in (ours, plain):
            v2.enter(asked(steering, seed=seed, **given))
    for step in range(2 if drafts else 1):
        guesses = [[(7 * i + j) % VOCAB for j in range(drafts * step)] for i in range(len(ours.running))]
        owners = [(i, j) for i, guess in enumerate(guesses) for j in range(1 + len(guess))]
        logits = random_rows(len(owners), step, spread=3.0)
        steered = logits.clone()
        for r, (i, j) in enumerate(owners):
            if j:  # a draft that is accepted now and then
                logits[r - 1, guesses[i][j - 1]] += 6
                steered[r - 1] = mirrored(ours.running[i], logits[r - 1], guesses[i][: j - 1])[0]
            steered[r] = mirrored(ours.running[i], logits[r], guesses[i][:j])[0]
        out, expected = ours.step(logits.clone(), guesses), plain.step(steered, guesses)
        assert torch.equal(out.num_sampled, expected.num_sampled)
        assert not drafts or not step or set(out.num_sampled.tolist()) == {1, 2, 3}
        for live, other in zip(ours.running, plain.running, strict=True):
            assert live.output == other.output
        torch.testing.assert_close(reported(out), reported(expected), rtol=1e-4, atol=1e-4)


def test_draws_follow_the_steered_distribution(vllm_config: VllmConfig) -> None:
    """Five tokens, a row that is a fork and one that is not; a request a draw, 15 ms each in the interpreter."""
    draws, temperature = 200, 0.6
    z = torch.full((2, VOCAB), -torch.inf)
    z[:, :5] = torch.tensor([[2.0, 1.2, 0.6, -0.2, -0.8], [2.2, 0.6, 0.0, -0.4, -0.7]])
    steering = {"fork_temperature": 1.7, "other_temperature": 1.1, "threshold_nats": 1.1}
    assert (reference.entropy_nats(z) > 1.1).tolist() == [True, False]
    v2 = V2(vllm_config, max_reqs=2 * draws)
    v2.enter(*(asked(steering, temperature, seed=i, logprobs=None) for i in range(2 * draws)))
    tokens = v2.step(z.repeat_interleave(draws, 0)).sampled_token_ids.view(2, draws)
    for row, drawn, t in zip(z, tokens, (1.7, 1.1), strict=True):
        counts = drawn.bincount(minlength=5).numpy()
        assert len(counts) == 5
        expected, unsteered = ((row[:5].double() / at).softmax(-1).numpy() * draws for at in (t, temperature))
        assert stats.chisquare(counts, expected).pvalue > 0.01
        assert stats.chisquare(counts, unsteered).pvalue < 1e-6, "the check above could not fail"


@pytest.mark.parametrize(
    ("steering", "kept", "at"),
    [
        # At T' = 3 two draws agree with probability 0.22; the two most likely tokens have 0.31 and 0.23.
        ({"policy": "p_less", "fork_temperature": 3.0}, 2, 3.0),
        ({"policy": "uniform_top_k", "k": 3}, 3, torch.inf),
    ],
)
def test_draws_at_forks_are_among_the_tokens_that_are_kept(
    vllm_config: VllmConfig, steering: dict[str, Any], kept: int, at: float
) -> None:
    draws, temperature = 200, 0.6
    z = torch.full((VOCAB,), -torch.inf)
    z[:5] = torch.tensor([2.0, 1.2, 0.6, -0.2, -0.8])
    v2 = V2(vllm_config, max_reqs=draws)
    v2.enter(*(asked(steering, temperature, seed=i, logprobs=None) for i in range(draws)))
    counts = v2.step(z.repeat(draws, 1)).sampled_token_ids.flatten().bincount(minlength=5).numpy()
    assert counts[kept:].sum() == 0
    expected = (z[:kept].double() / at).softmax(-1).numpy() * draws
    assert stats.chisquare(counts[:kept], expected).pvalue > 0.01
    unsteered = (z[:5].double() / temperature).softmax(-1).numpy() * draws
    assert stats.chisquare(counts, unsteered).pvalue < 1e-6, "the check above could not fail"


def test_at_a_fork_of_temperature_zero_the_argmax_is_drawn(vllm_config: VllmConfig) -> None:
    v2, steering, truncations = V2(vllm_config, max_reqs=24), HOT | {"fork_temperature": 0}, list(TRUNCATIONS.values())
    steering["other_temperature"] = 5.0
    v2.enter(*(asked(steering, 1.3, seed=i, **truncations[i % 5] | PENALTIES) for i in range(24)))
    logits = random_rows(24, 4, 2.0) * torch.linspace(0.5, 2.0, 24)[:, None]
    logits[0, [70, 20]] = logits[0].max() + 1  # the first of two largest is meant
    before = [replace(live, output=[]) for live in v2.running]
    out = v2.step(logits.clone())
    told = reported(out)
    forks = others = 0
    for r, live in enumerate(before):
        shifted = processed(live, logits[r], order=IN_ORDER[: IN_ORDER.index("steering")])
        token = int(out.sampled_token_ids[r, 0])
        if reference.entropy_nats(shifted[None]) > steering["threshold_nats"]:
            forks += 1
            assert token == (20 if r == 0 else int(shifted.argmax()))
            assert told[r].isfinite().nonzero().tolist() == [[token]]
            assert told[r, token] == 0.0
        else:
            others += token != int(shifted.argmax())
    assert forks >= 5
    assert others >= 5, "no token was drawn that is not the argmax, so the check above could not fail"


# What is reported ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_log_probabilities_are_the_models_or_the_steered_ones_as_their_mode_says(
    vllm_config: VllmConfig, mode: str
) -> None:
    v2 = V2(vllm_config, mode)
    v2.enter(*(asked(s, **TRUNCATIONS["all three"] | PENALTIES) for s in (HOT, COLD, None)), asked(HOT), asked(None))
    logits = random_rows(len(v2.running), 5)
    given = logits.clone()
    before = [replace(live, output=[]) for live in v2.running]
    told = reported(v2.step(given))
    assert same_bits(given, logits), "the model's logits were changed in place"
    for r, live in enumerate(before):
        expected = logits[r].double() if mode.startswith("raw") else processed(live, logits[r])
        if mode.endswith("logprobs"):
            assert_told(told[r], expected)
        else:
            torch.testing.assert_close(told[r].double(), expected, rtol=1e-5, atol=1e-5)


# Beside others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
@pytest.mark.parametrize("beside", ["as they are", "with everything"])
def test_unsteered_neighbors_get_bit_for_bit_what_they_get_without_us(
    vllm_config: VllmConfig, mode: str, beside: str
) -> None:
    """`as they are`: without us vLLM would not even copy their logits, since nothing is to be done to them."""
    asking: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1.0}]
    if beside == "with everything":
        asking += [{"temperature": 0.7}, PENALTIES, *TRUNCATIONS.values()]
    ours, plain = V2(vllm_config, mode, 24), V2(vllm_config, mode, 24, steered=False)
    for seed, given in enumerate(asking):
        for v2 in (ours, plain):
            v2.enter(asked(None, **{"seed": seed, **given}), asked(HOT, 1.0, seed))
    differ = 0
    for step in range(3):
        if step == 1:  # steered requests leave, unsteered ones take their slots, and some of the other kind come
            for v2 in (ours, plain):
                freed = [live for live in v2.running if live.params.extra_args]
                for live in freed:
                    v2.leave(live)
                v2.enter(*(asked(None, 1.0, 50 + i) for i in range(len(freed))), asked(COLD, 1.0, 60))
        logits = random_rows(len(ours.running), step)
        out, expected = ours.step(logits.clone()), plain.step(logits.clone())
        for r, live in enumerate(ours.running):
            same = (
                torch.equal(out.sampled_token_ids[r], expected.sampled_token_ids[r])
                and torch.equal(
                    out.logprobs_tensors.logprob_token_ids[r], expected.logprobs_tensors.logprob_token_ids[r]
                )
                and same_bits(out.logprobs_tensors.logprobs[r], expected.logprobs_tensors.logprobs[r])
                and torch.equal(*(told.logprobs_tensors.selected_token_ranks[r] for told in (out, expected)))
            )
            if live.params.extra_args:
                differ += not same
            else:
                assert same, f"step {step} row {r} {live.params}"
    assert differ >= 2, "steering changed nothing, so nothing was shown"


# Whole episodes -----------------------------------------------------------------------------------

IN_SCOPE = {"thinking_start_id": OPEN, "thinking_end_id": CLOSE}
STEERINGS: list[dict[str, Any]] = [
    HOT,
    {"fork_temperature": 0.0, "threshold_nats": 2.0},
    {"other_temperature": 0, "fork_temperature": 2.0},
    {"select": "random", "fork_rate": 0.4, "fork_temperature": 0.5},
    {"select": "first", "first_tokens": 2, "fork_temperature": 1.9},
    {"policy": "dynatemp"},
    {"policy": "p_less", "fork_temperature": 2.5},
    {"policy": "uniform_top_k", "threshold_nats": 2.0},
    COLD | IN_SCOPE | {"scope": "thinking"},
    HOT | IN_SCOPE | {"scope": "answer"},
]


def random_request(rng: random.Random, pool: telemetry.LanePool) -> Live:
    """Its lane is lent for the whole test, and tokens of one in four requests are those that open and close scopes."""
    if rng.random() < 0.25:
        return asked(None, rng.choice([0.0, 1.0, 0.7]), rng.randrange(2**40), **rng.choice(list(TRUNCATIONS.values())))
    steering = rng.choice(STEERINGS)
    more = rng.choice([{}, PENALTIES]) | rng.choice(list(TRUNCATIONS.values()))
    live = asked(steering, rng.choice([0.6, 1.0, 1.7]), rng.randrange(2**40), **more)
    live.prompt = [rng.choice([OPEN, CLOSE, rng.randrange(VOCAB)]) for _ in range(rng.randint(1, 8))]
    (live.lane,) = pool.lend(1)
    live.params.extra_args[request.LANES_ARG] = [live.lane.index, live.lane.generation]
    return live


@pytest.mark.parametrize("seed", range(2))
def test_random_episodes_are_processed_and_recorded_as_each_requests_own_history_asks(
    vllm_config: VllmConfig, lane_file: telemetry.LaneFile, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in parts, drafts, preemption, slots taken again; tokens and positions are vLLM's own."""
    # As vLLM cuts up a step whose logits are larger than 1 GB.
    monkeypatch.setattr(rejection_module, "MAX_CHUNK_BYTES", 5 * 4 * VOCAB)
    applied, apply, step = Counter[int](), EntropySteering.apply, 0

    def counted(self: EntropySteering, logits: Tensor, ctx: Any = None) -> Tensor:
        applied[step] += self.acting
        return apply(self, logits, ctx)

    monkeypatch.setattr(EntropySteering, "apply", counted)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    pool, v2 = telemetry.LanePool(lane_file), V2(vllm_config, max_reqs=6)
    preempted: list[Live] = []
    checked = Counter[str]()
    for step in range(12):
        for live in [live for live in v2.running if rng.random() < 0.12]:
            v2.leave(live)
            if rng.random() < 0.5:
                preempted.append(live)
            elif live.lane is not None:
                assert_recorded(live)
        while len(v2.running) < 6 and rng.random() < 0.7:
            v2.enter(preempted.pop(0) if preempted else random_request(rng, pool))
        if not v2.running:
            continue
        left = v2.to_prefill()
        parts = [rng.randint(1, n - 1) if n > 1 and rng.random() < 0.4 else n for n in left]
        guesses = [
            [rng.choice([OPEN, CLOSE, 7]) for _ in range(rng.randint(0, DRAFTS)) if not n and step % 2] for n in left
        ]
        rows = [
            (replace(live, output=list(live.output)), guess[:j], part == n)
            for live, guess, part, n in zip(v2.running, guesses, parts, left, strict=True)
            for j in range(1 + len(guess))
        ]
        spread = 0.5 + 3 * torch.rand(len(rows), 1, generator=generator)
        logits = torch.randn(len(rows), VOCAB, generator=generator) * spread
        logits[torch.rand(logits.shape, generator=generator) < 0.2] = -torch.inf
        logits[:, [OPEN, CLOSE, 7]] = 5.0 + torch.rand(len(rows), 3, generator=generator)
        told = reported(v2.step(logits.clone(), guesses, parts))
        now = {live.name: live for live in v2.running}
        for r, (live, drafts, whole) in enumerate(rows):
            if not whole:  # what is drawn from a prompt in part is thrown away
                assert now[live.name].output == live.output
                continue
            where = f"seed {seed} step {step} row {r} drafts {drafts} {live.params}"
            assert_told(told[r], processed(live, logits[r], drafts), where)
            shifted = processed(live, logits[r], drafts, IN_ORDER[: IN_ORDER.index("steering")])
            if (record := mirrored(live, shifted, drafts)[1]) is not None:
                now[live.name].recorded[len(live.output) + len(drafts) :] = [record]
                checked["drafted" if drafts else "steered"] += 1
        for live in v2.running:
            del live.recorded[len(live.output) :]
    for live in v2.running:
        if live.lane is not None:
            assert_recorded(live)
    assert checked["steered"] > 20
    assert checked["drafted"] > 5
    assert max(applied.values()) > 1
