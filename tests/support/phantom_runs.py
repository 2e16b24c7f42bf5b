"""Runs of a phantom without an engine: responses drawn from the exact distributions, in a run's own files.

    python -m tests.support.phantom_runs [--seeds 20] [--samples 16]

As a program, it counts in how many runs of each kind every verdict is right. The engine's own draws are compared with
the same distributions by `make phantom`; here are too many samples for an engine (20 runs of eight kinds take over two
million). Random numbers are shared by the arms as vLLM shares them: one exponential draw for each (problem, sample,
position, token), and the token with the largest p / draw is the one sampled.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerdec.benchmarks.design.plan import sample_seed
from steerdec.benchmarks.verdicts.summary import write_summary
from steerdec.common import journal
from steerdec.phantom import arms as phantom_arms
from steerdec.phantom import folder as phantom_folder
from steerdec.phantom.kinds import KINDS, RULES, Kind
from steerdec.phantom.responses import PLAIN, Reader
from steerdec.phantom.truth import LONGEST_TOKENS, Truth
from steerdec.problems.sets import load_problems
from steerdec.records.arms import parse_arm_set
from steerdec.records.run import ProblemsUsed, Settings


def draw_run(
    out: Path,
    kind: Kind,
    known: Truth,
    *,
    samples: int,
    seed: int,
    only: Sequence[str] | None = None,
    limit: int = phantom_folder.PROBLEMS,
) -> None:
    """Write run.json and samples.jsonl of a whole run into the new folder `out`."""
    out.mkdir()
    problems = out / "problems.jsonl"
    problems.write_text("".join(phantom_folder.problem_lines(kind, 0)[:limit]))
    problem_set = load_problems(str(problems))
    steering = phantom_arms.steering_of_arms(known, kind)
    steering = {arm: asked for arm, asked in steering.items() if only is None or arm in only}
    arm_set = phantom_arms.arm_set(steering, known.threshold_nats, kind.name)
    arm_set["claims"] = [c for c in arm_set["claims"] if {c["arm"], c["baseline"]} <= set(steering)]
    for arm in arm_set["arms"]:
        if "steering" in arm:
            arm["steering"] = {"threshold_nats": known.threshold_nats} | arm["steering"]
    parsed = parse_arm_set(arm_set)
    ids = tuple(problem.id for problem in problem_set.problems)
    Settings(
        steerdec="0",
        created="2026-01-01T00:00:00+00:00",
        versions={},
        model=kind.name,
        model_info={},
        launch=None,
        endpoints=("http://drawn",),
        server={},
        problems=ProblemsUsed(
            name="phantom", source=str(problems), limit=None, sha256=problem_set.sha256, n=len(ids), ids=ids
        ),
        prompt="aime",
        thinking=None,
        arms=parsed,
        samples=samples,
        seed=seed,
        temperature=1.0,
        max_tokens=phantom_folder.MAX_TOKENS,
        sampling={},
        threshold_nats=known.threshold_nats,
        threshold_origin="exact",
    ).write(out)
    with (out / "samples.jsonl").open("wb") as file:
        for arm in parsed.arms:
            replica = arm.name if arm.role == "replica" else ""
            file.writelines(map(journal.encode, _samples(known, ids, arm.name, arm.steering, samples, seed, replica)))


def _samples(
    known: Truth,
    ids: Sequence[str],
    arm: str,
    request: Mapping[str, Any] | None,
    samples: int,
    seed: int,
    replica: str,
) -> Iterator[dict[str, Any]]:
    chain, reader = known.steered.chain, Reader(known.steered)
    rules = list(known.answers)
    seeds = [[sample_seed(seed, name, j, replica) for j in range(samples)] for name in ids]
    for i, name in enumerate(ids):
        rule = rules[i % RULES]
        draws = [np.random.default_rng(s).exponential(size=(20, len(chain.tokens))) for s in seeds[i]]
        for j, exponential in enumerate(draws):
            text, tokens = _response(known, reader, rule, request, seeds[i][j], exponential)
            expected = reader.expected(rule, text, True, request, seeds[i][j])
            answer = text.rpartition("{")[2].removesuffix("}")
            sample: dict[str, Any] = {
                "problem_id": name,
                "arm": arm,
                "sample": j,
                "seed": seeds[i][j],
                "text": text,
                "answer": answer,
                "grade": "correct" if answer == known.answers[rule] else "incorrect",
                "grade_path": "boxed-int",
                "finish_reason": "stop",
                "completion_tokens": tokens,
                "forks": None if request is None else int(expected.fork.sum()),
                "mean_entropy_nats": None if request is None else float(expected.entropy_nats.mean()),
                "mean_sampled_entropy_nats": None if request is None else float(expected.sampled_nats.mean()),
                "endpoint": "http://drawn",
                "error": None,
            }
            if request is not None and j == 0:
                sample["entropy_nats"] = [round(float(h), 5) for h in expected.entropy_nats]
                sample["fork"] = [bool(fork) for fork in expected.fork]
            yield sample


def _response(
    known: Truth,
    reader: Reader,
    rule: str,
    request: Mapping[str, Any] | None,
    seed: int,
    exponential: NDArray[np.float64],
) -> tuple[str, int]:
    """(the text, the number of tokens) of one response."""
    steered, after = known.steered, known.steered.chain.state_after()
    state: str | None = steered.chain.starts[rule]
    words: list[str] = []
    for position in range(LONGEST_TOKENS):
        if state is None:
            return "".join(words[:-1]), position
        part = reader.part(PLAIN if request is None else request, position, seed)
        token = int(np.argmax(part.probabilities[steered.index[state]] / exponential[position]))
        words.append(steered.chain.tokens[token])
        state = after[words[-1]]
    raise AssertionError("a response without an end")


ARMS_OF_CLAIMS = ("B", "A/A", "F-up", "F-down", "N-down", "N-up-m", "F-down-m")


def verdicts(kind_name: str, samples: int, seed: int) -> tuple[str, int, tuple[str, ...], str]:
    """(kind, seed, the four verdicts, that on the instrument) of one run."""
    kind = KINDS[kind_name]
    known = phantom_folder.truth_of(kind)
    with tempfile.TemporaryDirectory() as made:
        draw_run(Path(made) / "run", kind, known, samples=samples, seed=seed, only=ARMS_OF_CLAIMS)
        summary = json.loads(write_summary(Path(made) / "run").read_text())
    told = {claim["id"]: claim["verdict"] for claim in summary["claims"]}
    return kind_name, seed, tuple(told[claim] for claim, *_ in phantom_arms.CLAIMS), summary["instrument"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.phantom_runs")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    jobs = [(kind, seed) for kind in options.kinds.split(",") for seed in range(options.seeds)]
    right = dict.fromkeys(options.kinds.split(","), 0)
    with ProcessPoolExecutor(options.processes) as pool:
        asked = [pool.submit(verdicts, kind, options.samples, seed) for kind, seed in jobs]
        for future in asked:
            kind, seed, found, instrument = future.result()
            as_known = found == KINDS[kind].claims and instrument == "valid"
            right[kind] += as_known
            print(f"{kind} seed {seed}: {', '.join(found)}{'' if as_known else ' WRONG'}", flush=True)
    for kind, n in right.items():
        print(f"{kind}: every verdict right in {n} of {options.seeds} runs")
    return 0 if all(n >= 0.95 * options.seeds for n in right.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
