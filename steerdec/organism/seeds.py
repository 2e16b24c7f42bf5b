"""GRPO on the organism over arms and seeds: what each run did, and the arms compared in pairs over seeds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerdec.analysis.agreement import top_mask
from steerdec.common.json import write_json
from steerdec.organism import generate, grpo, task, truth, vocabulary
from steerdec.organism.build import held_out
from steerdec.organism.grpo import ARMS, GRPO
from steerdec.organism.train import torch_threads

Floats = NDArray[np.float64]

TOLERANCES: Final = (0.0, 1e-6, 1e-5, 1e-4)
_CHUNK: Final = 256  # responses in one pass


@dataclass(frozen=True)
class Study:
    """The size of the training study."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    samples: int = 4  # of each evaluation problem
    grpo: GRPO = field(default_factory=GRPO)


@dataclass(frozen=True)
class Evaluation:
    """Responses of one model to the evaluation problems, the same uniform numbers for every model."""

    prompt: Tensor
    responses: Tensor
    correct: Tensor

    @property
    def score(self) -> float:
        """Share correct."""
        return float(self.correct.float().mean())


def evaluate(model: Any, problems: task.Problems, samples: int) -> Evaluation:
    """Sample at temperature 1 and grade."""
    prompt = generate.prompt_tensor(problems, samples)
    draws = generate.uniforms([str(i) for i in range(len(problems))], samples, "evaluate")
    parts = zip(torch.split(prompt, _CHUNK), torch.split(draws, _CHUNK), strict=True)
    responses = torch.cat([generate.sample(model, p, d) for p, d in parts])
    return Evaluation(prompt, responses, generate.correct(problems, responses, samples))


@torch.inference_mode()
def entropies(model: Any, seen: Evaluation) -> Floats:
    """Return the entropy in nats at every token of the responses, one after the other; [tokens]."""
    found = []
    for prompt, responses in zip(torch.split(seen.prompt, _CHUNK), torch.split(seen.responses, _CHUNK), strict=True):
        _, entropy, mask = grpo.scored(model, prompt, responses)
        found.append(entropy[mask].double().numpy())
    return np.concatenate(found)


def kinds(problems: task.Problems, seen: Evaluation, samples: int) -> NDArray[np.str_]:
    """Return the true kind of every token of the responses, in the order of `entropies`."""
    found: list[str] = []
    for i, row in enumerate(seen.responses.tolist()):
        texts = [vocabulary.TOKENS[t] for t in row if t != vocabulary.IDS[vocabulary.PAD]]
        found += [label.kind for label in truth.labels(truth.puzzle(problems.text(i // samples)), texts)]
    return np.array(found)


def by_place(entropy: Floats, forks: NDArray[np.bool_], kind: NDArray[np.str_]) -> dict[str, float]:
    """Return mean entropies in nats at forks, at the others, and at each true kind of token."""
    means = {"forks": float(entropy[forks].mean()), "others": float(entropy[~forks].mean())}
    return means | {k: float(entropy[kind == k].mean()) for k in truth.KINDS if (kind == k).any()}


def changed(base: Any, tuned: Any) -> dict[str, float]:
    """Return the share of float32 parameters whose change is above each tolerance, and the relative change."""
    before = torch.cat([p.detach().flatten() for p in base.parameters()]).double()
    after = torch.cat([p.detach().flatten() for p in tuned.parameters()]).double()
    change = (after - before).abs()
    shares = {f"above_{t:g}": float((change > t).double().mean()) for t in TOLERANCES}
    return shares | {"relative": float(change.norm() / before.norm())}


@dataclass(frozen=True)
class Base:
    """The organism before training, measured once for all runs."""

    model: Any
    problems: task.Problems
    seen: Evaluation
    entropy_nats: Floats  # of its own responses
    kinds: NDArray[np.str_]

    @property
    def forks(self) -> NDArray[np.bool_]:
        """The top 20% of its own tokens by its own entropy."""
        return top_mask(self.entropy_nats)


def measured(model: Any, settings: Study) -> Base:
    """Measure the organism before training."""
    problems = held_out("evaluate")
    with torch_threads(settings.grpo.threads):
        seen = evaluate(model, problems, settings.samples)
        return Base(model, problems, seen, entropies(model, seen), kinds(problems, seen, settings.samples))


def run_one(base: Base, arm: str, seed: int, settings: Study, path: Path) -> None:
    """Train one arm with one seed, measure it, and write what came out to `path`; a stopped training resumes."""
    model = copy.deepcopy(base.model)
    checkpoint = path.with_suffix(".pt")
    with torch_threads(settings.grpo.threads):
        rewards = grpo.train(model, arm, seed, settings.grpo, checkpoint)
        after = evaluate(model, base.problems, settings.samples)
        by_base, by_tuned = entropies(base.model, after), entropies(model, after)
        on_base = entropies(model, base.seen)
    base_top, tuned_top = top_mask(by_base), top_mask(by_tuned)
    tuned_kinds = kinds(base.problems, after, settings.samples)
    found = {
        "arm": arm,
        "seed": seed,
        "score_before": base.seen.score,
        "score": after.score,
        "rewards": rewards,
        "mean_tokens_before": len(base.kinds) / len(base.seen.correct),
        "mean_tokens": len(tuned_kinds) / len(after.correct),
        "entropy_before_nats": by_place(base.entropy_nats, base.forks, base.kinds),
        "entropy_after_nats": by_place(on_base, base.forks, base.kinds),
        "overlap": float((base_top & tuned_top).sum() / tuned_top.sum()),
        "forks_that_are_decisions_before": float((base.kinds[base.forks] == truth.DECISION).mean()),
        "forks_that_are_decisions": float((tuned_kinds[tuned_top] == truth.DECISION).mean()),
        "parameters_changed": changed(base.model, model),
    }
    write_json(path, found)
    checkpoint.unlink(missing_ok=True)


def t_interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean and Student's 95% interval over seeds."""
    x = np.asarray(values, dtype=np.float64)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return {"mean": mean, "low": float("nan"), "high": float("nan"), "n": n}
    half = float(scipy.stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def compared(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return each arm's numbers with intervals over seeds, and every two arms' scores paired by seed."""
    of = {(r["arm"], r["seed"]): r for r in runs}
    seeds = sorted({seed for _, seed in of})
    arms: dict[str, Any] = {}
    for arm in ARMS:
        rows = [of[arm, seed] for seed in seeds]
        numbers = {
            "score": [r["score"] for r in rows],
            "gain": [r["score"] - r["score_before"] for r in rows],
            "mean_tokens": [r["mean_tokens"] for r in rows],
            "overlap": [r["overlap"] for r in rows],
            "forks_that_are_decisions": [r["forks_that_are_decisions"] for r in rows],
        }
        for place in rows[0]["entropy_before_nats"]:
            before = [r["entropy_before_nats"][place] for r in rows]
            after = [r["entropy_after_nats"][place] for r in rows]
            numbers |= {f"entropy_{place}_before": before, f"entropy_{place}_after": after}
            numbers[f"entropy_{place}_change"] = [b - a for a, b in zip(before, after, strict=True)]
        for name in rows[0]["parameters_changed"]:
            numbers[f"parameters_{name}"] = [r["parameters_changed"][name] for r in rows]
        arms[arm] = {name: t_interval(values) for name, values in numbers.items()}
    pairs = {
        f"{a} - {b}": t_interval([of[a, s]["score"] - of[b, s]["score"] for s in seeds])
        for a, b in combinations(ARMS, 2)
    }
    untrained = {name: runs[0][name] for name in runs[0] if name.endswith("_before")}
    return {"seeds": seeds, **untrained, "arms": arms, "pairs": pairs}
