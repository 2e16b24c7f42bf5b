"""`summary.json`: the results of a run, with one model, one reader and one writer.

Accuracies and their differences are fractions (0 to 1). A number that cannot be computed is None, null in the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from steerdec.common.errors import InvalidInputError
from steerdec.common.files import write_atomically
from steerdec.common.json import Interval, Number

NAME = "summary.json"

Population = Literal["these problems", "problems like these"]
Verdict = Literal["holds", "reversed", "no effect", "undecided", "not applied"]
InstrumentVerdict = Literal["valid", "invalid", "unchecked", "not shown"]
Metric = Literal["avg@k", "pass@k", "maj@k", "tokens", "truncation", "tokens per correct"]
Application = Literal["applied", "not applied", "not measured"]


class SummaryFileError(InvalidInputError):
    """A summary.json cannot be read; the message is one line."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ArmSummary(_Data):
    """One arm. `entropy_shift_nats`, `applied`: what steering changed in the distributions sampled from."""

    n_problems: int
    k: int
    avg_at_k: Number
    avg_at_k_ci95: Interval
    avg_at_k_note: str
    pass_at_k: Number
    pass_at_k_problems: int
    pass_at: dict[str, Number]
    maj_at_k: Number
    truncation_rate: Number
    mean_tokens: Number
    fork_rate: Number
    mean_entropy_nats: Number
    mean_sampled_entropy_nats: Number
    samples: int
    missing: int  # planned samples that are still to be made
    ungraded: int
    failed_requests: int
    unboxed_rate: Number = None  # share of the complete answers that have no \\boxed{...}
    not_needed: int = 0  # planned samples that are not made: a planned look dropped the arm
    tokens_per_correct: Number = None
    dose_nats: Number = None  # change of the mean entropy on the baseline's text, from the calibration
    dose_ci95: Interval = None
    kl_nats: Number = None  # mean KL(steered || plain) per token of that text
    kl_ci95: Interval = None
    entropy_shift_nats: Number = None
    entropy_shift_ci95: Interval = None
    texts_changed: Number = None  # share of the texts that differ from the control's at the same seed
    applied: Application | None = None  # None: an arm without steering
    applied_reason: str = ""


class Difference(_Data):
    """A difference in the unit of its metric (a fraction for scores), with a 95% interval and a two-sided p."""

    diff: Number
    se: Number
    ci95: Interval
    p: Number
    n_problems: int
    dropped_problems: int
    note: str


class Comparison(_Data):
    """`arm` minus `baseline` in one population.

    `bounds`: the difference with every ungraded sample wrong in one arm and right in the other, lowest and highest;
    `bounds_ci95` their outer interval. Both are None if everything is graded.
    """

    arm: str
    baseline: str
    scope: Population
    diff: Number
    se: Number
    ci95: Interval
    p: Number
    n_problems: int
    dropped_problems: int
    note: str
    p_holm: Number
    p_equivalence: Number
    mde: Number
    metric: Metric = "avg@k"
    metric_k: int | None = None  # k of pass@k
    p_holm_equivalence: Number = None
    pairs: int | None = None  # (problem, sample) that both arms have graded
    paired_by_seed: bool | None = None
    ungraded_pairs: int | None = None
    bounds: Interval = None
    bounds_ci95: Interval = None
    dose_error: Number = None  # half width, in the metric, that dose matching adds in squares; None: not matched
    dose_error_nats: Number = None  # half width of how far apart the matched doses may be


class ClaimSummary(_Data):
    """A claim with its verdict, and the numbers behind it (at the look that decided, if there are looks).

    `diff` and `ci95` are `arm` minus `baseline`; `direction` is the claimed side. The combined claims (place or dose)
    have no comparison of their own.
    """

    id: str
    statement: str
    verdict: Verdict
    reason: str
    scope: Population
    verdict_these_problems: Verdict
    metric: Metric = "avg@k"
    arm: str | None = None
    baseline: str | None = None
    direction: Literal["greater", "less"] | None = None
    diff: Number = None
    ci95: Interval = None
    p_adjusted: Number = None  # over claims, directions and looks
    samples: int | None = None  # per problem and arm, the samples behind the verdict
    decided_at: Number = None  # share of the planned samples
    dose_error: Number = None  # half width, in the metric, that dose matching adds in squares; None: not matched
    dose_error_nats: Number = None  # half width of how far apart the matched doses may be
    given_up: bool = False  # a verdict has become unlikely, so nothing has to be sampled for it anymore


class Contrast(_Data):
    """(arm - its control) - (placebo - its control)."""

    arm: str
    control: str
    placebo: str
    placebo_control: str
    scope: Population
    diff: Number
    se: Number
    ci95: Interval
    p: Number
    n_problems: int
    dropped_problems: int
    note: str
    mde: Number


class Trend(Difference):
    """The slope of accuracy over the dose, in one family of arms."""

    family: str
    arms: tuple[str, ...]
    doses: tuple[float, ...]


class Stratum(Difference):
    """The difference among the problems of one range of difficulty."""

    arm: str
    baseline: str
    stratum: str


class Mediators(_Data):
    """A difference split by truncation, and at equal length."""

    arm: str
    baseline: str
    by_finishing: Difference
    by_answers: Difference
    log_length_ratio: Difference
    at_equal_length: Difference


class Heterogeneity(_Data):
    """How much a difference varies between problems beyond sampling noise.

    `effects`: per problem, shrunken towards the mean by the share of the spread that is noise.
    """

    arm: str
    baseline: str
    effect_sd: Number
    effect_sd_ci95: Interval
    p: Number  # of no variation
    effects: dict[str, Number]


class BranchOutcome(_Data):
    """A tree beside plain samples that cost as many tokens: means over problems, and their difference.

    `outcome`: "any right" (a leaf is right), "majority" (the vote of the leaves is), "accuracy" (of the leaves).
    """

    outcome: str
    tree: Number
    plain: Number
    diff: Number
    ci95: Interval  # bootstrap over problems


class Branching(_Data):
    """A branching arm against the baseline at equal tokens. Described, not corrected; it decides no claim."""

    arm: str
    roots: str
    baseline: str
    place: str
    continuations: int
    trees: int  # whole trees, everything in them graded
    trees_planned: int
    n_problems: int
    dropped_problems: int
    tree_tokens: Number  # mean over problems
    plain_samples: Number  # how many plain samples cost as much as a tree, over all problems
    outcomes: tuple[BranchOutcome, ...]
    note: str = ""


class BranchContrast(_Data):
    """What a tree of `arm` gains over as many tokens of plain samples, minus what one of `against` gains."""

    arm: str
    against: str
    outcome: str
    diff: Number
    ci95: Interval
    n_problems: int


class Look(_Data):
    """One planned look: its data and decisions. `dropped`: arms that no undecided claim needs anymore.

    `problems`: how many of the first problems it is at, if problems were added between looks; else None.
    """

    samples: int
    problems: int | None = None
    fraction: float
    made: bool
    decided: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


class Summary(_Data):
    arms: dict[str, ArmSummary]
    comparisons: tuple[Comparison, ...]  # avg@k
    claims: tuple[ClaimSummary, ...]
    instrument: InstrumentVerdict
    instrument_reason: str = ""
    delta: Number = None
    contrasts: tuple[Contrast, ...] = ()
    trends: tuple[Trend, ...] = ()
    strata: tuple[Stratum, ...] = ()
    mediators: tuple[Mediators, ...] = ()
    repeated_lines: int = 0
    methods: dict[str, str] = {}
    interim: bool = False  # samples are missing and the verdicts are not final
    interim_reason: str = ""
    warnings: tuple[str, ...] = ()  # sentences to read before the verdicts
    instrument_bias: Number = None  # the smallest bias of A/A that the run could not miss
    other_metrics: tuple[Comparison, ...] = ()  # pass@k, maj@k, tokens, truncation, tokens per correct
    heterogeneity: tuple[Heterogeneity, ...] = ()
    branching: tuple[Branching, ...] = ()
    branch_contrasts: tuple[BranchContrast, ...] = ()
    looks: tuple[Look, ...] = ()
    arms_needed: tuple[str, ...] = ()  # arms that still have to be sampled to decide what can be decided


def write_summary(summary: Summary, folder: Path) -> Path:
    """Replace the summary.json of a run folder as a whole; return its path."""
    target = folder / NAME
    value = summary.model_dump(mode="json")
    write_atomically(target, json.dumps(value, indent=1, allow_nan=False) + "\n")
    return target


def read_summary(path: Path) -> Summary:
    """Return the content of a summary.json.

    Raises:
        SummaryFileError: the file is missing, is not JSON, or lacks something; one line.
    """
    try:
        return Summary.model_validate_json(path.read_bytes())
    except OSError as e:
        raise SummaryFileError(f"{path} cannot be read ({e.strerror})") from None
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise SummaryFileError(f"{path} is not a summary: {place}: {first['msg']}") from None
