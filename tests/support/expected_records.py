"""What the records of an answer must be: the model's forward pass in float64, and steerdec's reference on its logits.

Nothing of the server's own report goes in: only the request, and the tokens that came back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerdec.kernels import reference
from steerdec.policies import registry
from steerdec.steering import encoding
from steerdec.steering.params import PAPER_THRESHOLD_NATS

# The server's forward pass is in float32. That of transformers, of a random llama with logits up to 25, is off by up to
# 0.0002 nats and 0.0011 in a logit (6,000 tokens).
OFF_NATS = 5e-4
OFF_PROBE_NATS = 5e-3  # where T' is solved for, or a floor is in the way, the probed entropy is less exact
OFF_TEMPERATURE = 2e-3  # relative; some policies compute T' from H, and one solves for it
OFF_LOGIT = 3e-3  # this close to the floor, a token may be kept or removed
COLUMNS = ("entropy_nats", "fork", "temperature", "probe_entropy_nats")


@dataclass
class Returned:
    """One sequence: what was asked for, and what came back of it, all or as much as its client waited for."""

    name: str
    prompt: list[int]
    temperature: float
    seed: int | None  # of this sequence
    steering: dict[str, Any] | None
    tokens: list[int] = field(default_factory=list)
    records: dict[str, list[Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    finished: bool = False


@dataclass
class Draws:
    """How likely the returned tokens were, over many distributions, beside how likely drawn ones are on average."""

    tokens: int = 0
    difference_nats: float = 0.0
    variance: float = 0.0

    def add(self, logits: Tensor, tokens: list[int], temperature: float) -> None:
        """`logits` [tokens, vocab] float64, as the sampler should get them; it divides them by `temperature`."""
        log_p = torch.log_softmax(logits / temperature, -1)
        p = log_p.exp()
        some = torch.where(p > 0, log_p, 0.0)
        mean = (p * some).sum(-1)
        own = some.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        self.tokens += len(tokens)
        self.difference_nats += float((own - mean).sum())
        self.variance += float(((p * some.square()).sum(-1) - mean.square()).sum())

    @property
    def deviations(self) -> float:
        """The difference in its standard deviations: nearly standard normal if the tokens were drawn as they should."""
        return self.difference_nats / math.sqrt(self.variance) if self.variance > 0 else 0.0


@dataclass
class Findings:
    """What was compared, and one line for each sequence's first wrong record."""

    tokens: int = 0
    records: int = 0
    wrong_records: int = 0
    near_threshold: int = 0
    worst_nats: float = 0.0
    wrong: list[str] = field(default_factory=list)
    steered: Draws = field(default_factory=Draws)
    plain: Draws = field(default_factory=Draws)


class Truth:
    """The model in `folder`, in float64."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def logits(self, prompt: list[int], tokens: list[int]) -> Tensor:
        """[tokens, vocab] float64: row i is what token i was to be drawn from, before any steering."""
        with torch.no_grad():
            out: Tensor = self._model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        return out

    def compare(self, one: Returned, found: Findings) -> None:
        """Add to `found` what is wrong with the records, the summary, and the tokens of one sequence."""
        found.tokens += len(one.tokens)
        if not one.tokens:
            return
        logits = self.logits(one.prompt, one.tokens)
        silent = one.steering is None or one.steering["telemetry"] == "none"
        if silent and (one.records or one.summary):
            found.wrong.append(f"{one.name}: has telemetry that was not requested")
        if one.steering is None:
            found.plain.add(logits, one.tokens, one.temperature)
            return
        expected, steered = self.decided(one, logits)
        kept = steered.isfinite()
        floors = logits.where(kept, torch.inf).amin(-1)
        own = logits.gather(-1, torch.tensor(one.tokens)[:, None])[:, 0]
        for i in (own < floors - OFF_LOGIT).nonzero()[:1, 0].tolist():
            found.wrong.append(f"{one.name}, token {i}: {one.tokens[i]} was returned, which steering had removed")
        found.steered.add(steered, one.tokens, one.temperature)
        if one.steering["telemetry"] == "tokens":
            _compare_records(one, expected, found)
        if one.finished and one.steering["telemetry"] != "none":
            _compare_summary(one, expected, found)

    def decided(self, one: Returned, logits: Tensor) -> tuple[reference.Outcome, Tensor]:
        """What the reference decides for each token, and the steered logits."""
        assert one.steering is not None
        encoded = encoding.encode(registry.parse(one.steering), one.temperature, PAPER_THRESHOLD_NATS)
        n, steered = len(one.tokens), logits.clone()
        outcome = reference.steer_(
            steered,
            torch.tensor([encoded.floats], dtype=torch.float64),
            torch.tensor([encoded.ints(one.seed)]),
            torch.zeros(n, dtype=torch.long),
            torch.arange(n),
            torch.tensor([in_scope(one, i) for i in range(n)]),
        )
        return outcome, steered


def in_scope(one: Returned, i: int) -> bool:
    """Whether token i of the sequence lies in its steering's scope: the last delimiter before it decides."""
    assert one.steering is not None
    if (scope := one.steering.get("scope", "all")) == "all":
        return True
    opens, closes = one.steering["thinking_start_id"], one.steering["thinking_end_id"]
    marks = [token for token in one.prompt + one.tokens[:i] if token in (opens, closes)]
    return bool(marks) and marks[-1] == (opens if scope == "thinking" else closes)


def _compare_records(one: Returned, expected: reference.Outcome, found: Findings) -> None:
    assert one.steering is not None
    n = len(one.tokens)
    columns = [name for name in COLUMNS if name != "probe_entropy_nats" or "probe_temperature" in one.steering]
    found.records += len(one.records.get("entropy_nats", []))
    lengths = {name: len(one.records.get(name, [])) for name in columns}
    if set(lengths.values()) != {n}:
        found.wrong_records += max(1, *(abs(length - n) for length in lengths.values()))
        found.wrong.append(f"{one.name}: {n} tokens were returned, with records {lengths}")
        return
    seen = {name: np.array(one.records[name], float) for name in columns}  # null becomes NaN
    h, t = expected.entropy_nats.numpy(), expected.temperature.numpy()
    off = np.abs(seen["entropy_nats"] - h)
    threshold = one.steering.get("threshold_nats", PAPER_THRESHOLD_NATS)
    near = (np.abs(h - threshold) < OFF_NATS) & (one.steering.get("select", "entropy") == "entropy")
    same_t = np.where(
        np.isinf(t), np.isnan(seen["temperature"]), np.abs(seen["temperature"] - t) <= OFF_TEMPERATURE * t
    )
    good = (off < OFF_NATS) & (near | ((seen["fork"] == expected.selected.numpy()) & same_t))
    if "probe_entropy_nats" in columns:
        good &= near | (np.abs(seen["probe_entropy_nats"] - expected.probe_entropy_nats.numpy()) < OFF_PROBE_NATS)
    found.near_threshold += int(near.sum())
    found.worst_nats = max(found.worst_nats, float(np.nan_to_num(off, nan=math.inf).max()))
    found.wrong_records += int((~good).sum())
    for i in np.flatnonzero(~good)[:1]:
        told = {name: one.records[name][i] for name in columns}
        truth = [float(column[i]) for column in expected[:4]]
        found.wrong.append(f"{one.name}, token {i} of {n}: {told}, must be H, fork, T', probed H = {truth}")


def _compare_summary(one: Returned, expected: reference.Outcome, found: Findings) -> None:
    n, forks, told = len(one.tokens), int(expected.selected.sum()), one.summary
    assert one.steering is not None
    threshold = one.steering.get("threshold_nats", PAPER_THRESHOLD_NATS)
    near = int((np.abs(expected.entropy_nats.numpy() - threshold) < OFF_NATS).sum())
    mean = float(expected.entropy_nats.mean())
    if told.get("tokens") != n:
        found.wrong.append(f"{one.name}: {n} tokens were returned, the summary says {told.get('tokens')}")
    elif abs(told["forks"] - forks) > near or abs(told["mean_entropy_nats"] - mean) > OFF_NATS:
        found.wrong.append(f"{one.name}: the summary is {told}, must be {forks} forks and a mean of {mean:.6f} nats")
