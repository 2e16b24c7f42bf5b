"""`model.generate()` with steering and, for each returned sequence, what was done to each of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import EosTokenCriteria, GenerationConfig, StoppingCriteria, StoppingCriteriaList, StopStringCriteria

from steerdec.common.errors import SteerdecError
from steerdec.hf import rules
from steerdec.hf.processor import DraftSteering, EntropySteering
from steerdec.policies import registry
from steerdec.steering import params
from steerdec.telemetry.loan import Telemetry


@dataclass(frozen=True)
class SteeredSequence:
    """One returned sequence, and what was done to each of its tokens."""

    token_ids: list[int]  # those generated, with the one that ended the sequence and without padding
    steering: Telemetry | None  # one entry per token; None with telemetry "none"


@dataclass(frozen=True)
class SteeredGeneration:
    """What a steered call of `generate` returned."""

    output: Any  # what model.generate() returned: [rows, length] ids, or a ModelOutput
    sequences: list[SteeredSequence]  # one per row of the output


def generate(
    model: Any,
    inputs: Tensor | None = None,
    *,
    steering: params.Steering | dict[str, Any] | str,
    seed: int | None = None,
    threshold_nats: float = params.PAPER_THRESHOLD_NATS,
    **options: Any,
) -> SteeredGeneration:
    """Call `model.generate(inputs, **options)` with steering.

    Args:
        model: of transformers, with its usual `generate`.
        inputs: as for `model.generate`.
        steering: the object that a request's `steering` field holds, as an object, a dict, or JSON text.
        seed: of the placebo; row r of the batch uses seed + r. It does not seed the sampling.
        threshold_nats: the default if `steering` has no threshold.
        options: of `model.generate`. They must turn sampling on; the temperature is the one that `generate` uses.

    Raises:
        SteeringError: the steering is invalid, or does not go with an option; before any token is sampled.
        InvalidInputError: an argument cannot be used; before any token is sampled.
    """
    parsed = registry.parse(steering)
    settings = rules.settings_of(model, options)
    rules.admit(model, settings, options)
    temperature = 1.0 if settings.temperature is None else float(settings.temperature)  # as transformers reads it
    kind = DraftSteering if rules.drafts(settings, options) else EntropySteering
    processor = kind(parsed, temperature=temperature, seed=seed, threshold_nats=threshold_nats)
    ends = _Ends(options.get("stopping_criteria") or (), _made_from(settings, options))
    options["logits_processor"] = [*(options.get("logits_processor") or ()), processor]
    options["stopping_criteria"] = [ends]
    output = model.generate(inputs, **options)
    rows = output if isinstance(output, Tensor) else output.sequences
    records = _Records.of(processor, rows, probed=parsed.probe_temperature is not None)
    # Without an end-of-sequence token, transformers does not pad: it samples on in rows that have ended.
    lengths = [rows.shape[1]] * len(rows) if settings.eos_token_id is None else ends.lengths_tokens(rows.shape[1])
    silent = parsed.telemetry == "none"
    sequences = []
    for r, length in enumerate(lengths):
        token_ids = rows[r, processor.prompt_tokens : length].tolist()
        sequences.append(SteeredSequence(token_ids, None if silent else records.first(r, len(token_ids))))
    return SteeredGeneration(output, sequences)


class _Ends(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped to mypy here
    """Notes where each row ends; stops the rows that the caller's own criteria stop."""

    def __init__(self, theirs: Iterable[Any], made: Iterable[Any]) -> None:
        """Take the caller's criteria, and copies of those that `generate` makes from its options for single rows."""
        self._theirs, self._made = StoppingCriteriaList(theirs), StoppingCriteriaList(made)
        self._lengths: Tensor | None = None  # [rows] tokens, with the prompt's
        self._ended: Tensor | None = None  # [rows]

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Return which rows of [rows, length] ids the caller's criteria stop, [rows] bool."""
        stopped: Tensor = self._theirs(input_ids, scores, **options)
        if self._lengths is None or self._ended is None:
            self._lengths, self._ended = torch.zeros_like(stopped, dtype=torch.long), torch.zeros_like(stopped)
        self._lengths = self._lengths.where(self._ended, input_ids.shape[1])
        self._ended = self._ended | stopped | self._made(input_ids, scores)
        return stopped

    def lengths_tokens(self, most: int) -> list[int]:
        """Return the length of each row, with its prompt and the token that ended it; at most `most`."""
        return [] if self._lengths is None else self._lengths.clamp(max=most).tolist()


def _made_from(settings: GenerationConfig, options: Mapping[str, Any]) -> list[StoppingCriteria]:
    """Return the criteria of single rows that `generate` makes from its options."""
    made: list[StoppingCriteria] = []
    if settings.eos_token_id is not None:
        made.append(EosTokenCriteria(settings.eos_token_id))
    if settings.stop_strings is not None and options.get("tokenizer") is not None:
        made.append(StopStringCriteria(options["tokenizer"], settings.stop_strings))
    return made


@dataclass(frozen=True)
class _Records:
    """What was done at each step, in columns of [steps, rows]."""

    columns: dict[str, NDArray[Any]]
    threshold_nats: float
    probed: bool
    guarded: bool

    @classmethod
    def of(cls, processor: EntropySteering, rows: Tensor, *, probed: bool) -> _Records:
        """Return the records of [rows, length] returned ids.

        Raises:
            SteerdecError: transformers did not steer all of them.
        """
        steered, tokens = len(processor.outcomes), rows.shape[1] - (processor.prompt_tokens or 0)
        if steered < tokens:
            raise SteerdecError(f"generate returned {tokens} tokens per row, of which only {steered} were steered")
        names = ("entropy_nats", "fork", "temperature", "probe_entropy_nats", "stopped", "thresholds_nats")
        stacked = (
            None if any(x is None for x in column) else torch.stack(column).cpu().numpy()
            for column in zip(*processor.outcomes, strict=True)
        )
        columns = {name: column for name, column in zip(names, stacked, strict=True) if column is not None}
        columns.setdefault("stopped", np.zeros_like(columns["fork"]))
        if processor.rule is None or not processor.rule.moves:
            columns.pop("thresholds_nats", None)
        return cls(columns, processor.threshold_nats, probed, processor.rule is not None and processor.rule.guarded)

    def first(self, row: int, tokens: int) -> Telemetry:
        """Return the records of the first tokens generated in a row."""
        records = {name: column[:tokens, row] for name, column in self.columns.items()}
        stopped = records["stopped"]
        return Telemetry(
            **records,
            threshold_nats=self.threshold_nats,
            probed=self.probed,
            guarded=self.guarded,
            guard_token=int(stopped.argmax()) if stopped.any() else None,
        )
