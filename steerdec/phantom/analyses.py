"""Rows of the table for calibration, verdicts, profile, mask and lenses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from steerdec.phantom import arms
from steerdec.phantom.compare import NATS_LIMIT
from steerdec.phantom.kinds import RULES
from steerdec.phantom.scores import Row
from steerdec.phantom.truth import Truth

TEMPERATURE_LIMIT: Final = 0.01  # of a solved temperature, as a share of the exact one
WIDER: Final = 2.0  # times the half-width of a 95% interval: 1 in 10,000 lies outside, not 1 in 20


def calibration_rows(kind: str, known: Truth, calibration: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the quantile, its interval, the fork rate, and the matched temperatures."""
    low, high = known.quantile_nats(0.8)
    p80, (ci_low, ci_high) = calibration["quantiles_nats"]["p80"], calibration["p80_ci95"]
    rate = known.mean_nats((known.steered.entropies_nats > known.threshold_nats).astype(float))
    rows = [
        _near(kind, "calibrate: p80, nats", p80, known.threshold_nats, NATS_LIMIT),
        Row(
            kind,
            "calibrate: interval of p80, nats",
            f"{ci_low:.4f} to {ci_high:.4f}",
            f"{low:.4f} to {high:.4f}",
            "",
            "they meet",
            ci_low <= high + NATS_LIMIT and ci_high >= low - NATS_LIMIT,
        ),
        _near(kind, "calibrate: fork rate", calibration["fork_rate"], rate, 1e-9),
    ]
    matched = {m["arm"]: m["temperature"] for m in calibration["matching"]["matched"]}
    for arm in arms.MATCHED_ARMS:
        exact = arms.solve(known, arm)
        found = matched.get(arm)
        off = float("inf") if found is None else abs(found / exact - 1.0)
        rows.append(
            Row(
                kind,
                f"calibrate: temperature of {arm}",
                "none" if found is None else f"{found:.4f}",
                f"{exact:.4f}",
                f"{100 * off:.2f}%",
                f"{100 * TEMPERATURE_LIMIT:g}%",
                off <= TEMPERATURE_LIMIT,
            )
        )
    return rows


def verdict_row(kind: str, right: Sequence[str], summary: Mapping[str, Any], *, every: bool) -> Row:
    """Return the row of the four verdicts; with few samples one may be undecided, but not the opposite."""
    told = {claim["id"]: claim["verdict"] for claim in summary["claims"]}
    found = [told[claim] for claim, *_ in arms.CLAIMS]
    allowed = [{verdict} if every else {verdict, "undecided"} for verdict in right]
    return Row(
        kind,
        "verdicts",
        ", ".join(found),
        ", ".join(right),
        "",
        "the same" if every else "or undecided",
        all(verdict in these for verdict, these in zip(found, allowed, strict=True))
        and summary["instrument"] == "valid",
    )


def profile_rows(kind: str, known: Truth, folder: Path) -> Iterator[Row]:
    """Return the rows of `steerdec profile`: two numbers with intervals, and its entropies beside the server's."""
    told = json.loads((folder / "profile.json").read_text("utf-8"))
    h = known.steered.entropies_nats
    exact_values = {
        "mean_entropy_nats": known.mean_nats(h),
        "share_below_0_01": known.mean_nats((h < 0.01).astype(float)),
    }
    for name, exact in exact_values.items():
        value, (low, high) = told[name]["value"], told[name]["ci95"]
        allowed = WIDER * (high - low) / 2
        yield _near(kind, f"profile: {name}", value, exact, allowed)
    yield _near(
        kind, "profile: farthest from the server's entropies", told["against_reported_nats"]["largest"], 0.0, NATS_LIMIT
    )


def mask_rows(kind: str, known: Truth, phantom: Path, folder: Path) -> Iterator[Row]:
    """Return the rows of `steerdec mask`: entropy and fork of every token of the texts that it marks."""
    requests = pq.read_table(folder / "requests.parquet").to_pylist()
    by_request: dict[int, list[Any]] = {}
    for row in pq.read_table(folder / "mask.parquet").to_pylist():
        by_request.setdefault(row["request"], []).append(row)
    tokenizer = AutoTokenizer.from_pretrained(phantom)
    farthest, wrong, n = 0.0, 0, 0
    for request in requests:
        rows = by_request[request["request"]]
        texts = [tokenizer.decode([row["token"]]) for row in rows]
        h = entropies_of(known, request["problem_id"], texts)
        farthest = max(farthest, *(abs(row["entropy_nats"] - x) for row, x in zip(rows, h, strict=True)))
        wrong += sum(row["fork"] != (x > known.threshold_nats) for row, x in zip(rows, h, strict=True))
        n += len(rows)
    yield _near(kind, f"mask: entropy per token ({n}), farthest", farthest, 0.0, NATS_LIMIT)
    yield _near(kind, f"mask: tokens ({n}) wrongly marked", wrong, 0, 0)


def lens_rows(kind: str, known: Truth, folder: Path) -> Iterator[Row]:
    """Return the rows of `steerdec lenses`: entropy and surprisal of every token, and what moves the answer.

    A chain of order one keeps nothing, so no token moves the answer after the closing words.
    """
    farthest = {"entropy": 0.0, "surprisal": 0.0, "answer_shift": 0.0, "leave_one_out": 0.0}
    n = 0
    for line in (folder / "lenses.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        if "scores" not in record:
            continue
        texts = record["tokens"]
        exact = {
            "entropy": entropies_of(known, record["problem_id"], texts),
            "surprisal": surprisals_of(known, record["problem_id"], texts),
        }
        for name in farthest:
            off = np.abs(np.array(record["scores"][name], float) - np.array(exact.get(name, np.zeros(len(texts)))))
            farthest[name] = max(farthest[name], float(off.max()))
        n += len(texts)
    for name, off in farthest.items():
        yield _near(kind, f"lenses: {name} per token ({n}), farthest", off if n else float("nan"), 0.0, NATS_LIMIT)


def start_of(known: Truth, problem_id: str) -> str:
    """Return the state that a problem's prompt leads to."""
    return known.steered.chain.starts[list(known.answers)[int(problem_id.removeprefix("q")) % RULES]]


def entropies_of(known: Truth, problem_id: str, texts: Sequence[str]) -> list[float]:
    """Return the exact H of the distribution that each token of a response was drawn from."""
    after = known.steered.chain.state_after()
    state: str | None = start_of(known, problem_id)
    found = []
    for text in texts:
        found.append(float(known.steered.entropies_nats[known.steered.index[str(state)]]))
        state = after[text]
    return found


def surprisals_of(known: Truth, problem_id: str, texts: Sequence[str]) -> list[float]:
    """Return the exact -log p of each token of a response."""
    after, state = known.steered.chain.state_after(), start_of(known, problem_id)
    found = []
    for text in texts:
        (option,) = [option for option in known.steered.chain.states[state] if option.text == text]
        found.append(-float(np.log(option.probability)))
        state = str(after[text])
    return found


def _near(kind: str, number: str, measured: float, exact: float, limit: float) -> Row:
    off = abs(measured - exact)
    return Row(kind, number, f"{measured:.5f}", f"{exact:.5f}", f"{off:.1e}", f"{limit:.1e}", off <= limit)
