"""The training on forks: its loss against equation 6 written out, its gradient, its resuming; tiny random models."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerdec.analysis.traces import loading
from steerdec.analysis.train import equation6
from steerdec.analysis.train import run as train
from steerdec.analysis.train.equation6 import ALL, FORKS
from steerdec.analysis.train.recipe import Recipe, Reward, data, end_ids, grpo_config
from steerdec.common.errors import InputError
from steerdec.grading.pool import GradingPool
from steerdec.problems.sets import load_problems
from tests.support.tiny_lm import tiny_lm

RECIPE = Recipe(
    prompt="few-shot",
    steps=4,
    prompts=2,
    generations=4,
    updates=1,
    micro_batch=8,
    max_tokens=12,
    learning_rate=1e-3,
    share=0.2,
    per=FORKS,
    seed=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny") / "model")


def loaded_from(folder: Path) -> loading.Loaded:
    """The tiny model, ready to train; its responses end at what it writes now and then."""
    loaded = loading.load(str(folder), dtype="float32", device="cpu")
    loaded.model.requires_grad_(True).train()
    ends = [i for text in (" ", ". ", "a") for i in loaded.tokenizer(text).input_ids]
    loaded.model.generation_config.eos_token_id = [loaded.tokenizer.eos_token_id, *ends]
    return loaded


def rows(loaded: loading.Loaded, recipe: Recipe) -> Any:
    return data(load_problems("embedded", limit=6), recipe, loaded)


def of_odd_length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that a random model earns about half the time."""
    return [float(len(ids) % 2) for ids in completion_ids]


def a_trainer(folder: Path, out: Path, recipe: Recipe, *, plain: bool = False) -> Any:
    """Ours, or TRL's own with the same configuration."""
    from trl import GRPOTrainer

    from steerdec.analysis.train.fork_grpo import ForkGRPOTrainer

    loaded = loaded_from(folder)
    given = {
        "model": loaded.model,
        "processing_class": loaded.tokenizer,
        "reward_funcs": of_odd_length,
        "train_dataset": rows(loaded, recipe),
        "args": grpo_config(recipe, out, on_cpu=True, save_every=50),
    }
    trainer = GRPOTrainer(**given) if plain else ForkGRPOTrainer(**given, per=recipe.per)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer


def loss_of(trainer: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = trainer._compute_loss(trainer.model, batch)
    return loss


def a_batch(seed: int = 0, responses: int = 8) -> dict[str, Tensor]:
    """Inputs of a loss: padded on both sides, one response cut off and therefore masked, ratios beyond the clip."""
    g = torch.Generator().manual_seed(seed)
    prompt, length = 5, 9
    lengths = torch.randint(3, length + 1, (responses,), generator=g)
    lengths[1] = 0
    completion_mask = (torch.arange(length) < lengths[:, None]).int()
    prompt_mask = torch.ones(responses, prompt, dtype=torch.int)
    prompt_mask[2, :3] = 0
    return {
        "prompt_ids": torch.randint(0, 250, (responses, prompt), generator=g),
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(0, 250, (responses, length), generator=g),
        "completion_mask": completion_mask,
        "advantages": torch.randn(responses, generator=g),
        "num_items_in_batch": completion_mask.sum(),
    }


def in_float64(folder: Path, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(log-probability, entropy in nats) of each response token by plain passes, one response at a time."""
    model = loading.load(str(folder), dtype="float32", device="cpu").model.double()
    logp, entropy = (torch.zeros(batch["completion_ids"].shape, dtype=torch.float64) for _ in range(2))
    for i, (prompt, response) in enumerate(zip(batch["prompt_ids"], batch["completion_ids"], strict=True)):
        real = prompt[batch["prompt_mask"][i].bool()]
        ids = torch.cat([real, response])
        with torch.no_grad():
            lp = torch.log_softmax(model(ids[None], use_cache=False).logits[0, len(real) - 1 : -1], -1)
        logp[i], entropy[i] = lp.gather(-1, response[:, None])[:, 0], -(lp.exp() * lp).sum(-1)
    return logp, entropy


def off_policy(batch: dict[str, Tensor], logp: Tensor) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(9)
    return batch | {"old_per_token_logps": (logp + 0.3 * torch.randn(logp.shape, generator=g)).float()}


# Equation 6 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", [FORKS, ALL])
def test_equation_6_is_the_sum_it_says(per: str) -> None:
    g = torch.Generator().manual_seed(3)
    logp, old, entropy = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(3))
    logp, old = logp - 3, old - 3
    entropy, advantages = entropy.abs(), torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    mask = torch.rand(4, 6, generator=g) < 0.8
    values = sorted(float(h) for h in entropy[mask])
    at = 0.75 * (len(values) - 1)
    tau = values[int(at)] + (at - int(at)) * (values[int(at) + 1] - values[int(at)])
    total, forks = 0.0, 0
    for i in range(4):
        for t in range(6):
            if mask[i, t] and entropy[i, t] >= tau:
                forks += 1
                r, a = math.exp(logp[i, t] - old[i, t]), float(advantages[i])
                total += min(r * a, min(max(r, 0.8), 1.28) * a)
    wanted = -total / (forks if per == FORKS else int(mask.sum()))
    assert 1 <= forks < int(mask.sum())
    found = equation6.loss(logp, old, advantages, entropy, mask, 0.25, per)
    assert float(found) == pytest.approx(wanted, rel=1e-12)


def test_equation_6_of_nothing_is_zero() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    x = torch.ones(2, 3)
    assert float(equation6.loss(x, x, torch.ones(2), x, nothing, 0.2, FORKS)) == 0.0


# The trainer's loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_loss_is_equation_6_and_trl_s_that_times_forks_over_tokens(
    folder: Path, tmp_path: Path, share: float
) -> None:
    recipe = replace(RECIPE, share=share)
    batch = a_batch()
    logp, entropy = in_float64(folder, batch)
    batch, mask = off_policy(batch, logp), batch["completion_mask"].bool()
    given = logp, batch["old_per_token_logps"].double(), batch["advantages"].double(), entropy, mask, share
    by_hand = float(equation6.loss(*given, FORKS))
    assert abs(by_hand) > 1e-3
    ours = float(loss_of(a_trainer(folder, tmp_path / "forks", recipe), batch))
    assert ours == pytest.approx(by_hand, rel=2e-5)
    trl_s = float(loss_of(a_trainer(folder, tmp_path / "trl", recipe, plain=True), batch))
    forks, tokens = int(equation6.forks_of(entropy, mask, share).sum()), int(mask.sum())
    assert (forks == tokens) == (share == 1.0)
    assert trl_s == pytest.approx(by_hand * forks / tokens, rel=2e-5)
    assert trl_s == pytest.approx(float(equation6.loss(*given, ALL)), rel=2e-5)
    as_trl = a_trainer(folder, tmp_path / "all", replace(recipe, per=ALL))
    assert float(loss_of(as_trl, batch)) == pytest.approx(trl_s, rel=2e-5)


def test_only_forks_have_a_gradient(folder: Path, tmp_path: Path) -> None:
    batch = a_batch(1)
    logp, entropy = in_float64(folder, batch)
    batch, mask = off_policy(batch, logp), batch["completion_mask"].bool()
    trainer = a_trainer(folder, tmp_path, RECIPE)
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, logits: Tensor) -> None:
        logits.retain_grad()
        seen.append(logits)

    trainer.model.lm_head.register_forward_hook(keep)
    loss_of(trainer, batch).backward()
    (logits,) = seen
    assert logits.grad is not None
    size = logits.grad[:, :-1].abs().amax(-1)  # the last position predicts what is not there
    forks = equation6.forks_of(entropy, mask, RECIPE.share)
    assert float(size[~forks].max()) == 0.0  # exactly: neither the other tokens nor padding nor the cut-off response
    assert float(logits.grad[:, -1].abs().max()) == 0.0
    ratio = (logp - batch["old_per_token_logps"]).exp()
    up = batch["advantages"][:, None] > 0
    clipped = torch.where(up, ratio > 1.28, ratio < 0.8)
    assert bool(clipped[forks].any())
    assert torch.equal(size > 0, forks & ~clipped)


def test_a_step_of_micro_batches_is_the_mean_of_theirs(folder: Path, tmp_path: Path) -> None:
    batch = a_batch(2)
    trainer = a_trainer(folder, tmp_path, replace(RECIPE, micro_batch=4))
    assert trainer.args.gradient_accumulation_steps == 2
    total, by_hand = 0.0, 0.0
    for part in (slice(0, 4), slice(4, 8)):
        cut = {name: value[part] if value.dim() else value for name, value in batch.items()}
        logp, entropy = in_float64(folder, cut)
        given = logp, logp, cut["advantages"].double(), entropy, cut["completion_mask"].bool(), RECIPE.share
        by_hand += float(equation6.loss(*given, FORKS)) / 2
        total += float(loss_of(trainer, cut))
    assert total == pytest.approx(by_hand, rel=2e-5)


@pytest.mark.parametrize("changed", [{"beta": 0.1}, {"loss_type": "grpo"}, {"entropy_coef": 0.01}])
def test_what_is_not_of_the_forks_alone_is_refused(folder: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    from steerdec.analysis.train.fork_grpo import ForkGRPOTrainer

    loaded = loaded_from(folder)
    config = grpo_config(RECIPE, tmp_path, on_cpu=True, save_every=50)
    for name, value in changed.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match="loss on forks"):
        ForkGRPOTrainer(
            model=loaded.model,
            processing_class=loaded.tokenizer,
            reward_funcs=of_odd_length,
            train_dataset=rows(loaded, RECIPE),
            args=config,
        )


# Steps -------------------------------------------------------------------------------------------


def trained(folder: Path, out: Path, recipe: Recipe, reward: Any = of_odd_length) -> tuple[Any, list[dict[str, Any]]]:
    """(weights, history) after all steps, or KeyboardInterrupt."""
    out.mkdir(exist_ok=True)
    loaded = loaded_from(folder)
    history = train.run_steps(loaded, rows(loaded, recipe), reward, recipe, out, 50)
    return loaded.model.state_dict(), history


def test_a_stopped_training_goes_on_as_if_it_had_not_been(folder: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, updates=2, micro_batch=2, steps=6)
    whole, history = trained(folder, tmp_path / "whole", recipe)
    calls = []

    def stopping(**given: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 2:  # while the responses for steps 3 and 4 are sampled
            os.kill(os.getpid(), signal.SIGINT)
        return of_odd_length(**given)

    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "stopped", recipe, stopping)
    assert train.last_checkpoint(tmp_path / "stopped") == tmp_path / "stopped" / "checkpoint-4"
    torn = tmp_path / "stopped" / "checkpoint-5"  # as a kill in the middle of saving leaves it
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    again, history_again = trained(folder, tmp_path / "stopped", recipe)
    assert not torn.exists()
    assert [line["step"] for line in history_again] == [line["step"] for line in history] == [1, 2, 3, 4, 5, 6]
    assert [line.get("reward") for line in history_again] == [line.get("reward") for line in history]
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    fresh = loaded_from(folder).model.state_dict()
    assert any(not torch.equal(whole[name], fresh[name]) for name in whole)
    assert all(0 < line["fork_share"] <= 0.5 for line in history)


def test_computing_in_bfloat16_moves_weights_that_stay_in_float32(folder: Path, tmp_path: Path) -> None:
    weights, history = trained(folder, tmp_path, replace(RECIPE, bf16=True, steps=2))
    fresh = loaded_from(folder).model.state_dict()
    assert all(line["gradient_norm"] > 0 for line in history)
    assert all(value.dtype == torch.float32 for value in weights.values())
    layers = [name for name in weights if "layers" in name and "norm" not in name]
    assert all(not torch.equal(weights[name], fresh[name]) for name in layers)


def test_the_program_s_model_loads_in_the_dtype_of_the_first(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    stored = AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16)
    stored.save_pretrained(tmp_path / "half")
    loading.load_tokenizer(str(folder)).save_pretrained(tmp_path / "half")
    out = tmp_path / "out"
    recipe = replace(RECIPE, steps=1)
    told = train.train(str(tmp_path / "half"), load_problems("embedded", limit=6), recipe, out, device="cpu")
    assert told["saved_dtype"] == "bfloat16"
    assert len(told["steps"]) == 1
    after = AutoModelForCausalLM.from_pretrained(out / train.MODEL, dtype="auto")
    assert after.dtype == torch.bfloat16
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (out / train.MODEL / name).read_bytes() == (tmp_path / "half" / name).read_bytes()
    # no response ended, so nothing was learnt: all bits are those of the first
    assert all(torch.equal(after.state_dict()[name], value) for name, value in stored.state_dict().items())
    with pytest.raises(InputError, match="other settings: steps"):
        train.train(str(tmp_path / "half"), load_problems("embedded", limit=6), replace(recipe, steps=2), out)


# Reward and data ---------------------------------------------------------------------------------


def test_the_reward_is_the_benchmark_s_grade_up_to_the_stop_text(folder: Path) -> None:
    loaded = loading.load(str(folder), device="cpu")
    problem_set = load_problems("embedded", limit=1)
    gold = problem_set.problems[0].answer
    ends = end_ids(loaded, "few-shot")
    newline = loaded.tokenizer("\n").input_ids
    assert set(ends) == {loaded.tokenizer.eos_token_id, *newline}
    texts = [f" The answer is {gold}.", f" The answer is {gold}9.", " I do not know.", f" The answer is {gold}."]
    responses = [loaded.tokenizer(text).input_ids + newline for text in texts]
    responses[3] = responses[3][:-1]  # cut off: it might have gone on
    with GradingPool(workers=1) as pool:
        reward = Reward(problem_set, loaded.tokenizer, ends, "few-shot", pool)
        found = reward(completion_ids=responses, problem_id=[problem_set.problems[0].id] * 4)
    assert found == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"updates": 3}, "--updates: 3 does not divide the 8 responses"),
        ({"micro_batch": 3}, "--micro-batch: 3 does not divide the 8 responses"),
        ({"prompts": 7, "micro_batch": 28}, "--prompts: 7 at once; embedded has 6 problems"),
        ({"max_tokens": 5000}, "max_position_embeddings"),
        ({"prompt": "haiku"}, "prompt 'haiku' does not exist"),
    ],
)
def test_bad_input_is_one_line(folder: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError if "prompt" in changed else InputError, match=message):
        train.train(str(folder), load_problems("embedded", limit=6), replace(RECIPE, **changed), tmp_path / "out")
    assert not list(tmp_path.glob("out/checkpoint-*"))


def test_without_trl_one_line_says_how_to_get_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(train, "version", version)
    with pytest.raises(InputError, match=r"trl is not installed; it comes with `pip install steerdec\[train\]`"):
        train.train(str(folder), load_problems("embedded", limit=6), RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
