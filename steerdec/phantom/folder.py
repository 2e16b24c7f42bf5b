"""A phantom's folder: the model, its problems for tests and for calibration, its arms, and the truth."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from steerdec.common.files import write_atomically
from steerdec.phantom import arms, truth
from steerdec.phantom.chain import ChainError
from steerdec.phantom.kinds import KINDS, RULES, Kind
from steerdec.phantom.steered import Steered
from steerdec.phantom.truth import ArmTruth, Truth

# Equally many for each rule. Each is a cluster: from 60 that all show no difference, the verdict "no effect" within 5
# points of problems like these does not follow for four claims together.
PROBLEMS: Final = 120
PASS_AT: Final = (1, 2, 4, 8, 16, 32)
PERCENTILES: Final = (50, 80, 90, 95, 99)
MAX_TOKENS: Final = 32  # more than the longest response


class PhantomError(ValueError):
    """A phantom cannot be written; the message is one plain line."""


def kind_named(name: str) -> Kind:
    """Return the kind of that name. Raises PhantomError."""
    if name not in KINDS:
        raise PhantomError(f"--kind: {name!r} is not a kind of phantom; the kinds are {', '.join(KINDS)}")
    return KINDS[name]


def truth_of(kind: Kind, fork_right: float | None = None) -> Truth:
    """Return everything that is known about a phantom of that kind.

    Raises:
        PhantomError: its forks are impossible with that chance of going right.
    """
    right = kind.fork_right if fork_right is None else fork_right
    if not 0.0 < right < 1.0:
        raise PhantomError(f"--fork-right: {right:g} is not a probability between 0 and 1, both excluded")
    try:
        chain = kind.chain(right)
    except ChainError as e:
        raise PhantomError(
            f"--fork-right: {right:g} is too near to 0 or 1 for problems of unlike difficulty ({e})"
        ) from None
    return Truth(Steered(chain), {f" rule{rule}": kind.answer(rule) for rule in range(RULES)})


def write_phantom(kind: Kind, out: Path, fork_right: float | None = None) -> dict[str, Any]:
    """Write the folder `out`, as a whole or not at all; return the content of truth.json.

    Raises:
        PhantomError: `out` exists, or there is no such phantom.
        OSError: it cannot be written.
    """
    from steerdec.phantom.write import write_model

    if out.exists():
        raise PhantomError(f"--out: {out} exists; a phantom is written into a new folder")
    known = truth_of(kind, fork_right)
    found = truth_as_json(kind, known)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        write_model(known.steered.chain, scratch, thinking=kind.thinking)
        for name, first in (("problems", 0), ("calibration", PROBLEMS)):
            write_atomically(scratch / f"{name}.jsonl", "".join(problem_lines(kind, first)))
        steering = {arm: truth_of_arm["steering"] for arm, truth_of_arm in found["arms"].items()}
        arm_set = arms.arm_set(steering, known.threshold_nats, f"phantom-{kind.name}")
        write_atomically(scratch / "arms.yaml", yaml.safe_dump(arm_set, sort_keys=False))
        write_atomically(scratch / "truth.json", json.dumps(found, indent=1) + "\n")
        scratch.chmod(0o755)
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return found


def problem_lines(kind: Kind, first: int) -> list[str]:
    """Return JSON lines of as many problems as a set has, numbered from `first`, the rules taking turns."""
    return [
        json.dumps(
            {"id": f"q{i}", "problem": f"Question {i}: follow rule{i % RULES}", "answer": kind.answer(i % RULES)}
        )
        + "\n"
        for i in range(first, first + PROBLEMS)
    ]


def truth_as_json(kind: Kind, known: Truth) -> dict[str, Any]:
    """Return all that is known of the phantom: its text at the base temperature, every arm, and the claims."""
    try:
        steering = arms.steering_of_arms(known, kind)
    except arms.ArmsError as e:
        raise PhantomError(f"kind {kind.name}: {e}") from None
    by_arm = {name: known.arm(asked, known.threshold_nats) for name, asked in steering.items()}
    doses = {name: known.dose_nats(asked, known.threshold_nats) for name, asked in steering.items()}
    h = known.steered.entropies_nats
    return {
        "kind": kind.name,
        "about": kind.about,
        "temperature": known.steered.temperature,
        "threshold_nats": known.threshold_nats,
        "quantiles_nats": {f"p{q}": known.quantile_nats(q / 100) for q in PERCENTILES},
        "share_below_0_01": known.mean_nats((h < 0.01).astype(float)),
        "fork_rate": known.mean_nats((h > known.threshold_nats).astype(float)),
        "mean_entropy_nats": known.mean_nats(h),
        "matched_temperatures": {
            arm: asked[arms.MATCHED_ARMS[arm][2]]
            for arm, asked in steering.items()
            if asked and arm in arms.MATCHED_ARMS
        },
        "arms": {name: _arm_as_json(by_arm[name], steering[name], doses[name]) for name in by_arm},
        "claims": {
            claim: {
                "difference": (difference := by_arm[arm].score - by_arm[baseline].score),
                "verdict": arms.verdict(difference, direction),
            }
            for claim, arm, baseline, direction in arms.CLAIMS
        },
    }


def _arm_as_json(arm: ArmTruth, steering: dict[str, Any] | None, dose_nats: float) -> dict[str, Any]:
    return {
        "steering": steering,
        "avg_at_k": arm.score,
        "by_rule": arm.right.tolist(),
        "pass_at": {str(k): arm.pass_at(k) for k in PASS_AT},
        "mean_tokens": float(arm.mean[:, truth.TOKENS].mean()),
        "fork_rate": arm.rate(truth.FORKS),
        "mean_entropy_nats": arm.rate(truth.ENTROPY_NATS),
        "mean_sampled_entropy_nats": arm.rate(truth.SAMPLED_NATS),
        "dose_nats": dose_nats,
    }
