"""Building the organism, and training it further: same seed, same numbers; stopped and resumed, the same again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from steerdec.analysis.train import equation6
from steerdec.cli.organism import model_organism
from steerdec.common.errors import InputError
from steerdec.grading.grade import grade
from steerdec.organism import build, checkpoint, generate, grpo, task, vocabulary
from steerdec.organism.grpo import ARMS, GRPO
from steerdec.organism.train import Size, Training, batch, new_model, rate_at

SMALL = Size(layers=1, feed_forward=32)
SHORT = Training(steps=6, batch=8, warmup_steps=2)


class StoppedError(Exception):
    """What the tests stop a training with."""


def stop_at(step: int) -> Any:
    """An `on_step` that raises after `step`."""

    def on_step(done: int, _: float) -> None:
        if done == step:
            raise StoppedError

    return on_step


def equal(one: Any, two: Any) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_stopped_build_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_SAVE_EVERY", 2)
    whole = build.trained(SHORT, SMALL, tmp_path / "whole.pt")
    with pytest.raises(StoppedError):
        build.trained(SHORT, SMALL, tmp_path / "parts.pt", on_step=stop_at(4))
    resumed = build.trained(SHORT, SMALL, tmp_path / "parts.pt")
    assert equal(whole, resumed)
    assert not equal(whole, new_model(SMALL, SHORT.seed))
    assert not equal(whole, build.trained(Training(**vars(SHORT) | {"seed": 1}), SMALL, tmp_path / "other.pt"))


@pytest.mark.parametrize("content", [b"", b"PK\3\4 torn", b"not a checkpoint"])
def test_a_checkpoint_that_was_cut_off_is_left_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    assert checkpoint.load(path) is None
    path.write_bytes(content)
    assert checkpoint.load(path) is None
    checkpoint.save({"step": 3, "model": {"w": torch.ones(2)}}, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert checkpoint.load(path) is None
    checkpoint.save({"step": 3}, path)
    assert checkpoint.load(path) == {"step": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses: list[float] = []
    training = Training(steps=25, batch=16, warmup_steps=5)
    build.trained(training, SMALL, tmp_path / "x.pt", on_step=lambda _, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 0.5


def test_the_rate_rises_stays_and_falls() -> None:
    training = Training(steps=100, warmup_steps=10, decay_from=0.5)
    rates = [rate_at(training, step) / training.learning_rate for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[10:50] == [1.0] * 40
    assert 0.05 <= rates[-1] < 0.06
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_a_batch_has_its_shortest_responses_first() -> None:
    ids, lengths = batch(SHORT, 0)
    assert lengths.tolist() == sorted(lengths.tolist())
    assert ids.shape == (SHORT.batch, vocabulary.PROMPT_TOKENS + vocabulary.LONGEST_RESPONSE)


def test_the_folder_is_cached_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from steerdec.problems.sets import load_problems

    monkeypatch.setenv("STEERDEC_CACHE", str(tmp_path / "cache"))
    steps: list[int] = []
    out = build.build(tmp_path / "one", training=SHORT, size=SMALL, on_step=lambda step, _: steps.append(step))
    build.build(tmp_path / "two", training=SHORT, size=SMALL, on_step=lambda step, _: steps.append(step))
    build.build(tmp_path / "two", training=SHORT, size=SMALL, on_step=lambda step, _: steps.append(step))
    assert steps == list(range(SHORT.steps))
    assert equal(AutoModelForCausalLM.from_pretrained(out), AutoModelForCausalLM.from_pretrained(tmp_path / "two"))
    assert AutoTokenizer.from_pretrained(out).get_vocab() == vocabulary.IDS
    measured, calibrated = (load_problems(str(out / name)) for name in (build.PROBLEMS, build.CALIBRATION))
    assert measured.prompt == "number"
    assert not {p.problem for p in measured.problems} & {p.problem for p in calibrated.problems}


def test_a_folder_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match=r"--out: .*mine exists and is not this organism"):
        build.build(tmp_path / "mine", training=SHORT, size=SMALL)
    assert not list((tmp_path / "mine").iterdir())


@pytest.fixture(scope="module")
def model() -> Any:
    """An untrained organism."""
    return new_model(SMALL, 0).eval().requires_grad_(False)


def test_a_folder_that_cannot_be_made_is_named_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(typer.Exit) as ended:
        model_organism(out=tmp_path / "file" / "x", seed=987)
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == f"steerdec: --out: {tmp_path / 'file'} is a file, not a folder\n"


def test_samples_follow_their_uniform_numbers_whatever_the_batch(model: Any) -> None:
    problems = task.problems(3, "test", held_out=True)
    prompt, draws = generate.prompt_tensor(problems, 2), generate.uniforms(["a", "b", "c"], 2, "test")
    together = generate.sample(model, prompt, draws, temperature=0.7)
    for i in (0, 5):
        ids = prompt[i].tolist()
        for t in range(20):  # without a cache, one distribution after the other
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            up_to = torch.softmax(logits / 0.7, -1).cumsum(-1)
            ids.append(int(torch.searchsorted(up_to, draws[i, t : t + 1] * up_to[-1], right=True)))
            if ids[-1] == vocabulary.IDS[vocabulary.END]:
                break
        written = ids[vocabulary.PROMPT_TOKENS :]
        assert together[i, : len(written)].tolist() == written


def test_what_is_correct_is_the_answer_in_the_box() -> None:
    batch = task.problems(200, "test", held_out=False)
    rng = task.seeded("test")
    ids, lengths = vocabulary.responses(batch, task.demonstrated(batch, rng), rng)
    tokenizer = vocabulary.tokenizer()
    texts = [tokenizer.decode(row[:n], skip_special_tokens=True) for row, n in zip(ids, lengths, strict=True)]
    graded = [grade(text, batch.answer(i), "number", "stop").grade == "correct" for i, text in enumerate(texts)]
    responses = torch.from_numpy(ids)
    assert generate.correct(batch, responses, 1).tolist() == graded
    assert 0.2 < sum(graded) / len(graded) < 1
    unfinished = torch.where(responses == vocabulary.IDS[vocabulary.END], vocabulary.IDS[vocabulary.PAD], responses)
    assert not generate.correct(batch, unfinished, 1).any()


def scores(n: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """(logp with gradient, advantages, entropies, mask, noise) at random."""
    rng = torch.Generator().manual_seed(0)
    logp = -torch.rand(n, tokens, generator=rng, dtype=torch.float64)
    mask = torch.arange(tokens) < torch.randint(5, tokens + 1, (n, 1), generator=rng)
    entropy, noise = (torch.rand(n, tokens, generator=rng, dtype=torch.float64) for _ in range(2))
    return logp.requires_grad_(True), torch.randn(n, generator=rng, dtype=torch.float64), entropy, mask, noise


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_s_gradient_is_the_mean_over_its_tokens(arm: str) -> None:
    logp, advantages, entropy, mask, noise = scores(6, 40)
    grpo.arm_loss(arm, logp, advantages, entropy, mask, noise).backward()
    top = mask & (entropy >= torch.quantile(entropy[mask], 0.8))
    chosen = {
        grpo.FORKS: top,
        grpo.ALL: mask,
        grpo.OTHERS: mask & ~top,
        grpo.RANDOM: mask & (noise >= torch.quantile(noise[mask], 0.8)),
    }[arm]
    expected = torch.where(chosen, -advantages[:, None] / chosen.sum(), 0.0)  # at ratio 1, clipping does nothing
    assert logp.grad is not None
    assert torch.allclose(logp.grad, expected, atol=1e-12)


def test_the_loss_is_the_product_s_own_equation_6() -> None:
    logp, advantages, entropy, mask, noise = scores(4, 30)
    ours = grpo.arm_loss(grpo.FORKS, logp, advantages, entropy, mask, noise)
    assert ours == equation6.loss(logp, logp.detach(), advantages, entropy, mask, 0.2, equation6.FORKS)


def test_advantages_are_within_a_prompt() -> None:
    found = grpo.advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2)
    assert found.tolist() == pytest.approx([2**-0.5, -(2**-0.5), 0.0, 0.0], abs=1e-4)


def test_a_stopped_grpo_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings = GRPO(steps=4, prompts=2, generations=2, save_every=2)
    # An untrained model is never right, so the reward would be 0 everywhere and nothing would move.
    rewarded = lambda problems, responses, samples: responses[:, 0] % 2 == 0  # noqa: E731

    def run(name: str, on_step: Any = None) -> Any:
        tuned = new_model(SMALL, 0)
        grpo.train(tuned, grpo.FORKS, 3, settings, tmp_path / name, on_step=on_step)
        return tuned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "correct", rewarded)
        whole = run("whole.pt")
        with pytest.raises(StoppedError):
            run("parts.pt", stop_at(2))
        assert equal(whole, run("parts.pt"))
    assert not equal(whole, new_model(SMALL, 0))


def test_arms_of_one_seed_see_the_same_problems_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Any]] = {arm: [] for arm in ARMS}
    real = generate.sample
    settings = GRPO(steps=2, prompts=2, generations=2, learning_rate=0.0)
    for arm in ARMS:
        monkeypatch.setattr(
            generate, "sample", lambda m, p, d, arm=arm: seen[arm].append((p.clone(), d.clone())) or real(m, p, d)
        )
        grpo.train(new_model(SMALL, 0), arm, 5, settings, tmp_path / "x.pt")
    for step in range(2):
        for arm in ARMS:
            assert all(np.array_equal(a, b) for a, b in zip(seen[arm][step], seen[ARMS[0]][step], strict=True))
