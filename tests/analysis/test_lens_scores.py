"""Each lens against a slow version in float64 on tiny random models: one plain pass a number, nothing packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray

from steerdec.analysis.lenses import anchors, pruning, rollouts
from steerdec.analysis.lenses.branches import Branch, BranchError, BranchScorer
from steerdec.analysis.lenses.hsic import EPSILON, SIGMA, HsicError, hsic_scores, nhsic, peaks
from steerdec.analysis.traces.forward import forward, last_state
from steerdec.analysis.traces.scoring import token_scores
from steerdec.common.errors import AnalysisError

VOCAB, LAYERS, HEADS = 61, 2, 4


def tiny(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,  # else all distributions are flat and every mistake is small
    )
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


def tokens(seed: int, n: int) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(1, VOCAB, n))


PROMPT, CHAIN, ENDING, SCORED = tokens(1, 7), tokens(2, 11), tokens(3, 5), 2
SPANS = [(0, 3), (3, 4), (4, 9), (9, 11)]


def logp_of(model: Any, ids: tuple[int, ...], scored: int) -> float:
    """Sum of log p of the last `scored` ids, by one pass without cache, mask or positions."""
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0], -1)
    return sum(float(logp[i - 1, ids[i]]) for i in range(len(ids) - scored, len(ids)))


# Branches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_per_pass", [1, 17, 1024])
def test_packed_branches_are_what_each_would_be_alone(model: Any, tokens_per_pass: int) -> None:
    scorer = BranchScorer(model, tokens_per_pass=tokens_per_pass)
    rng = np.random.default_rng(5)
    for episode in range(6):  # other contexts, so that the cache is cut and grown
        context = (*PROMPT, *tokens(10 + episode // 2, 9 - episode))
        branches = []
        for k in range(7):
            own = tokens(100 * episode + k, int(rng.integers(2, 6)))
            branches.append(Branch(int(rng.integers(1, len(context) + 1)), own, int(rng.integers(1, len(own)))))
        found = scorer.logprobs(context, branches)
        for branch, scores in zip(branches, found, strict=True):
            alone = logp_of(model, (*context[: branch.keep], *branch.tokens), branch.scored)
            assert scores.shape == (branch.scored,)
            assert scores.sum() == pytest.approx(alone, abs=1e-9)
    assert scorer.packed


def test_a_hidden_span_is_seen_by_no_later_token(model: Any) -> None:
    hidden = Branch(9, tokens(4, 4), 3, hidden=(5, 9))
    context, other = [*PROMPT, *CHAIN], [*PROMPT[:5], *tokens(9, 4), *CHAIN]
    packed, plain = BranchScorer(model), BranchScorer(model, packed=False)
    reference = plain.logprobs(context, [hidden])[0]
    assert packed.logprobs(context, [hidden])[0] == pytest.approx(reference, abs=1e-9)
    assert packed.logprobs(other, [hidden])[0] == pytest.approx(reference, abs=1e-9)
    assert np.abs(packed.logprobs(context, [Branch(9, hidden.tokens, 3)])[0] - reference).max() > 1e-3


def test_a_model_that_does_not_bear_packing_is_run_plainly(model: Any) -> None:
    class Deaf:
        """Ignores masks and positions, as a model without attention would."""

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def __call__(self, **given: Any) -> Any:
            return model(**{k: v for k, v in given.items() if k not in ("attention_mask", "position_ids")})

    scorer = BranchScorer(Deaf())
    branches = [Branch(7, tokens(6, 4), 2), Branch(12, tokens(7, 3), 1)]
    found = scorer.logprobs([*PROMPT, *CHAIN], branches)
    assert not scorer.packed
    for branch, scores in zip(branches, found, strict=True):
        alone = logp_of(model, (*PROMPT, *CHAIN)[: branch.keep] + branch.tokens, branch.scored)
        assert scores.sum() == pytest.approx(alone, abs=1e-9)


def test_branches_outside_the_context_are_refused(model: Any) -> None:
    with pytest.raises(BranchError, match="keep 19, hidden"):
        BranchScorer(model).logprobs([*PROMPT, *CHAIN], [Branch(19, (1, 2), 1)])
    with pytest.raises(BranchError, match="scored is 2; a branch of 2 tokens"):
        Branch(1, (1, 2), 2)


def test_nan_weights_are_told_in_one_line() -> None:
    broken = tiny(3)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(AnalysisError, match=r"^the model's logits are not finite \(NaN\)"):
        BranchScorer(broken).logprobs(PROMPT, [Branch(3, (1, 2), 1)])
    with pytest.raises(AnalysisError, match="not finite"):
        forward(broken, PROMPT, CHAIN)


# Entropy and states ------------------------------------------------------------------------------


def test_a_score_belongs_to_the_position_that_predicts_the_token(model: Any) -> None:
    seen = forward(model, PROMPT, CHAIN)
    with torch.no_grad():
        out = model(torch.tensor([[*PROMPT, *CHAIN]]), output_hidden_states=True, use_cache=False)
    for t, token in enumerate(CHAIN):
        p = torch.softmax(out.logits[0, len(PROMPT) + t - 1], -1).numpy()
        assert seen.entropy_nats[t] == pytest.approx(scipy.stats.entropy(p), abs=1e-5)
        assert seen.surprisal_nats[t] == pytest.approx(-np.log(p[token]), abs=1e-5)
    # before the final norm: what the norm makes of it is the last hidden state
    normed = model.model.norm(seen.states)
    assert torch.allclose(normed, out.hidden_states[-1][0, len(PROMPT) - 1 : -1])
    assert torch.allclose(model.model.norm(last_state(model, PROMPT)), _last(model, PROMPT))


def test_entropy_of_uniform_is_log_of_the_vocabulary_and_of_one_hot_zero() -> None:
    certain = torch.full((1, VOCAB), -torch.inf)
    certain[0, 7] = 0.0
    logits = torch.cat([torch.full((1, VOCAB), 3.0), certain, 1e4 * certain.isfinite().float()])
    entropy, surprisal, rank = token_scores(logits, torch.tensor([5, 7, 7]))
    assert entropy.tolist() == pytest.approx([np.log(VOCAB), 0, 0], abs=1e-6)
    assert surprisal.tolist() == pytest.approx([np.log(VOCAB), 0, 0], abs=1e-6)
    assert rank.tolist() == [0, 0, 0]


def test_nan_logits_have_no_entropy() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[1, 3] = torch.nan
    entropy, _, _ = token_scores(logits, torch.tensor([0, 0]))
    assert entropy.isnan().tolist() == [False, True]


def test_a_model_whose_head_is_blind_is_uncertain_by_the_logarithm_of_its_vocabulary() -> None:
    blind = tiny(1)
    with torch.no_grad():
        blind.lm_head.weight.zero_()
    seen = forward(blind, PROMPT, CHAIN)
    assert seen.entropy_nats == pytest.approx(np.full(len(CHAIN), np.log(VOCAB)), abs=1e-6)


def _last(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]


# HSIC --------------------------------------------------------------------------------------------


def slow_nhsic(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """As the formula stands: centring from one side, a general inverse, the trace of the product.

    Kernel and centring in long double: at scale 0.5 the kernel is 1 but for its fourth digit.
    """
    d = len(x)
    centring = np.eye(d, dtype=np.longdouble) - np.longdouble(1) / d

    def projection(v: NDArray[np.float64]) -> NDArray[np.float64]:
        exact = v.astype(np.longdouble)
        kernel = np.exp(-((exact[:, None] - exact) ** 2) / np.longdouble(2 * SIGMA**2)) @ centring
        centred = kernel.astype(np.float64)
        return centred @ np.linalg.inv(centred + EPSILON * d * np.eye(d))

    return float(np.trace(projection(x) @ projection(y)))


@pytest.mark.parametrize("scale", [0.5, 5.0, 100.0])
def test_hsic_equals_the_formula_written_out(scale: float) -> None:
    rng = np.random.default_rng(1)
    states, gold, wrong = scale * rng.normal(size=(3, 40)), scale * rng.normal(size=40), scale * rng.normal(size=40)
    found = hsic_scores(states, gold, wrong, seed=2)
    for i, state in enumerate(states):
        assert nhsic(state, gold) == pytest.approx(slow_nhsic(state, gold), rel=1e-8)
        assert found.gold[i] == pytest.approx(slow_nhsic(state, gold), rel=1e-8)
        assert found.wrong_gold[i] == pytest.approx(slow_nhsic(state, wrong), rel=1e-8)
    orders = np.random.default_rng(2)
    shuffles = [gold[orders.permutation(40)] for _ in range(4)]
    assert found.shuffled[0] == pytest.approx(np.mean([slow_nhsic(states[0], s) for s in shuffles]), rel=1e-8)
    assert found.norm == pytest.approx(np.linalg.norm(states, axis=1))


def test_hsic_of_a_vector_with_itself_is_the_sum_of_its_squared_shrinkages() -> None:
    x = 30 * np.random.default_rng(4).normal(size=64)
    kernel = np.exp(-((x[:, None] - x) ** 2) / (2 * SIGMA**2))
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    eigenvalues = np.linalg.eigvalsh(centred)
    assert nhsic(x, x) == pytest.approx(np.sum((eigenvalues / (eigenvalues + EPSILON * 64)) ** 2), rel=1e-6)
    assert nhsic(x, x) > 10 * nhsic(x, np.random.default_rng(5).permutation(x))


def test_hsic_with_a_constant_is_zero() -> None:
    assert nhsic(np.random.default_rng(6).normal(size=32), np.full(32, 3.0)) == pytest.approx(0, abs=1e-9)


def test_hsic_of_independent_vectors_grows_with_their_scale() -> None:
    """The trap that the controls are there for: nothing but the scale differs."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(2, 20, 300))
    small, large = ([nhsic(s * a, s * b) for a, b in zip(x, y, strict=True)] for s in (0.5, 100.0))
    assert np.mean(small) < 0.02
    assert np.mean(large) > 20 * np.mean(small)
    controls = hsic_scores(100 * x, 100 * y[0], 100 * y[1], seed=0)
    assert np.mean(controls.gold) == pytest.approx(np.mean(controls.shuffled), rel=0.5)


def test_hsic_refuses_what_has_no_score() -> None:
    good = np.arange(5.0)
    with pytest.raises(HsicError, match="x has 5 dimensions, y 4"):
        nhsic(good, good[:4])
    with pytest.raises(HsicError, match="position 1 is not finite"):
        hsic_scores(np.array([good, good * np.nan]), good, good, seed=0)
    with pytest.raises(HsicError, match="wrong_gold is not finite"):
        hsic_scores(good[None], good, np.full(5, np.inf), seed=0)


def test_peaks_stand_above_the_whisker() -> None:
    assert peaks([1, 2, 3, 4, 5, 8.01]).tolist() == [False] * 6  # Q3 + 1.5 IQR = 4.75 + 1.5 * 2.5 = 8.5
    assert peaks([1, 2, 3, 4, 5, 8.6]).tolist() == [False] * 5 + [True]
    assert peaks([]).tolist() == []


# Answer, deletion --------------------------------------------------------------------------------


def test_answer_shift_is_what_one_more_token_does(model: Any) -> None:
    logp = rollouts.answer_logp(BranchScorer(model), PROMPT, CHAIN, ENDING, SCORED)
    slow = [logp_of(model, (*PROMPT, *CHAIN[:t], *ENDING), SCORED) for t in range(len(CHAIN) + 1)]
    assert logp == pytest.approx(slow, abs=1e-9)
    assert rollouts.answer_shift(logp).sum() == pytest.approx(slow[-1] - slow[0], abs=1e-9)
    assert anchors.forced_answer(logp, SPANS) == pytest.approx([slow[b] - slow[a] for a, b in SPANS], abs=1e-9)


def test_sigma_is_the_spread_of_the_answers_log_p_over_chains(model: Any) -> None:
    chains = [tokens(40 + i, 3 + i) for i in range(5)]
    found = rollouts.answer_variance(BranchScorer(model), PROMPT, chains, ENDING, SCORED)
    table = []
    for chain in chains:
        ids = (*PROMPT, *chain, *ENDING)
        table.append([logp_of(model, ids[: len(ids) - SCORED + j + 1], 1) for j in range(SCORED)])
    slow = np.array(table)
    assert found.sigma_nats == pytest.approx(slow.std(axis=0, ddof=1), abs=1e-9)
    assert found.even_nats == pytest.approx(slow[::2].std(axis=0, ddof=1), abs=1e-9)
    assert found.surprisal_nats == pytest.approx(-slow.mean(axis=0), abs=1e-9)
    with pytest.raises(ValueError, match="3 chains"):
        rollouts.answer_variance(BranchScorer(model), PROMPT, chains[:3], ENDING, SCORED)


def test_leave_one_out_is_the_loss_of_each_token_alone(model: Any) -> None:
    found = pruning.leave_one_out(BranchScorer(model), PROMPT, CHAIN, ENDING, SCORED)
    whole = logp_of(model, (*PROMPT, *CHAIN, *ENDING), SCORED)
    slow = [whole - logp_of(model, (*PROMPT, *CHAIN[:i], *CHAIN[i + 1 :], *ENDING), SCORED) for i in range(len(CHAIN))]
    assert found == pytest.approx(slow, abs=1e-9)


def test_greedy_deletion_takes_the_cheapest_of_what_is_left(model: Any) -> None:
    found = pruning.greedy_steps(BranchScorer(model), PROMPT, CHAIN, ENDING, SCORED)
    left, slow = list(range(len(CHAIN))), {}
    while left:
        kept = [[j for j in left if j != i] for i in left]
        values = [logp_of(model, (*PROMPT, *(CHAIN[j] for j in js), *ENDING), SCORED) for js in kept]
        slow[left.pop(int(np.argmax(values)))] = len(slow) + 1
    assert found.tolist() == [slow[i] for i in range(len(CHAIN))]
    loss = pruning.leave_one_out(BranchScorer(model), PROMPT, CHAIN, ENDING, SCORED)
    assert scipy.stats.rankdata(loss).tolist() != found.tolist()  # so leave-one-out may not be called greedy


def test_what_surprisal_explains_is_taken_out() -> None:
    rng = np.random.default_rng(8)
    surprisal, own = rng.normal(size=(2, 200))
    left = pruning.without(3 * surprisal + own, surprisal)
    assert np.corrcoef(left, scipy.stats.rankdata(surprisal))[0, 1] == pytest.approx(0, abs=1e-12)
    assert scipy.stats.spearmanr(left, own).statistic > 0.9
    assert pruning.without(own, np.ones(200)) == pytest.approx(scipy.stats.rankdata(own) - 100.5)


# Anchors -----------------------------------------------------------------------------------------


def test_suppression_is_the_log_kl_without_each_sentence(model: Any) -> None:
    score, matrix = anchors.suppression(BranchScorer(model), PROMPT, CHAIN, SPANS)
    ids, n = torch.tensor([[*PROMPT, *CHAIN]]), len(PROMPT) + len(CHAIN)

    def distributions(hidden: tuple[int, int] | None) -> NDArray[np.float64]:
        mask = torch.full((n, n), -1e300, dtype=torch.float64).triu(1)
        if hidden is not None:
            mask[len(PROMPT) + hidden[1] :, len(PROMPT) + hidden[0] : len(PROMPT) + hidden[1]] = -1e300
        with torch.no_grad():
            logits = model(ids, attention_mask=mask[None, None], use_cache=False).logits[0]
        return np.asarray(torch.softmax(logits, -1).numpy())

    base, raw = distributions(None), np.full((4, 4), np.nan)
    for i, span in enumerate(SPANS):
        without = distributions(span)
        for j in range(i + 1, len(SPANS)):
            # the first token after the sentence is predicted from inside it: nothing is hidden from there
            at = [t for t in range(*SPANS[j]) if t > span[1]]
            kl = [scipy.stats.entropy(base[len(PROMPT) + t - 1], without[len(PROMPT) + t - 1]) for t in at]
            if kl:
                raw[j, i] = np.mean(np.log(kl))
    centred = raw - np.array([np.nanmean(row) if not np.isnan(row).all() else np.nan for row in raw])[:, None]
    assert matrix == pytest.approx(centred, abs=1e-6, nan_ok=True)
    slow = [np.nanmean(column) if not np.isnan(column).all() else np.nan for column in centred.T]
    assert score == pytest.approx(slow, abs=1e-6, nan_ok=True)
    assert np.isnan(score[-1])


@pytest.mark.parametrize("gap", [1, 2])
def test_received_attention_is_the_mean_over_pairs_of_tokens(model: Any, gap: int) -> None:
    found = anchors.received_attention(model, PROMPT, CHAIN, SPANS, gap)
    assert model.config._attn_implementation == "sdpa"  # as it was
    model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model(torch.tensor([[*PROMPT, *CHAIN]]), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    assert found.shape == (LAYERS * HEADS, len(SPANS))
    for head in range(LAYERS * HEADS):
        weights = layers[head // HEADS][0, head % HEADS][len(PROMPT) :, len(PROMPT) :]
        for i, (a, b) in enumerate(SPANS):
            late = [float(weights[c:d, a:b].mean()) for c, d in SPANS[i + gap :]]
            assert found[head, i] == pytest.approx(np.mean(late) if late else np.nan, abs=1e-6, nan_ok=True)


def test_receiver_heads_are_those_that_concentrate() -> None:
    flat, sharp = np.array([0.1, 0.12, 0.1, 0.11, 0.09, 0.1]), np.array([0.01, 0.01, 0.9, 0.01, 0.012, 0.01])
    received = np.array([flat, sharp, np.full(6, 0.2)])
    kurtosis = anchors.head_kurtosis(received)
    assert kurtosis[:2] == pytest.approx([scipy.stats.kurtosis(flat), scipy.stats.kurtosis(sharp)])
    assert np.isnan(kurtosis[2])
    nothing = np.full(3, np.nan)
    assert anchors.receiver_heads(np.array([kurtosis, nothing]), top=1).tolist() == [1]
    assert anchors.receiver_heads(np.array([nothing])).tolist() == []
    assert np.isnan(anchors.head_kurtosis(received[:, :3])).all()
