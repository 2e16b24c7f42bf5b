"""Measure phantoms with the commands that a user has, and compare every number that has a closed form.

    python -m steerdec.phantom.check [--kinds claim-true,null] [--samples 1] [--calibrate dose-only] [--out DIR]

For each kind a phantom is written and served by vLLM; `bench run` samples it under every arm, and `calibrate`,
`profile`, `mask` and `lenses` measure it. One table is printed at the end. Exit status 1 means that a number is wrong;
a line on stderr names it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console
from rich.table import Table

from steerdec.benchmarks.run.local_server import ServerError, local_server
from steerdec.phantom import analyses, compare, scores
from steerdec.phantom.chain import Floats
from steerdec.phantom.folder import MAX_TOKENS, PhantomError, kind_named, truth_of, write_phantom
from steerdec.phantom.kinds import KINDS
from steerdec.phantom.responses import ResponseError
from steerdec.phantom.scores import Row
from steerdec.phantom.truth import Truth

CALIBRATED: Final = ("dose-only", "place-only")
LENSES_OF: Final = "claim-true"
START_TIMEOUT_S: Final = 900.0  # of a server on a machine that is busy with other work
# Of every problem: from then on no verdict may be undecided (tests/support/phantom_runs.py counts).
DECIDED_SAMPLES: Final = 32


class CheckError(Exception):
    """A measurement failed; the message is one plain line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and return the exit status."""
    options = _options(arguments)
    try:
        kinds = [kind_named(name).name for name in options.kinds.split(",")]
        calibrated = [] if options.calibrate == "none" else [kind_named(n).name for n in options.calibrate.split(",")]
    except PhantomError as e:
        print(f"steerdec.phantom.check: {e}", file=sys.stderr)
        return 2
    if options.endpoint is not None and len(kinds) > 1:
        print("steerdec.phantom.check: --endpoint serves one phantom; name its kind with --kinds", file=sys.stderr)
        return 2
    rows: list[Row] = []
    cells = []
    with _folder(options.out) as out:
        for i, name in enumerate(kinds):
            print(f"{name} ({i + 1} of {len(kinds)}), in {out / name}", file=sys.stderr, flush=True)
            try:
                found, own_cells = measure(name, out / name, options, calibrate=name in calibrated)
            except (CheckError, ResponseError, ServerError, OSError) as e:
                rows.append(Row(name, f"measuring: {e}", "failed", "", "", "", False))
                continue
            rows += found
            cells.append(own_cells)
    if any(len(z) for z, _ in cells):
        rows.append(scores.chi_square_row(cells))
    print_table(rows)
    failed = [row for row in rows if not row.passed]
    for row in failed:
        print(
            f"steerdec.phantom.check: {row.kind}: {row.number}: measured {row.measured}, exact {row.exact}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def measure(
    name: str, folder: Path, options: argparse.Namespace, *, calibrate: bool
) -> tuple[list[Row], tuple[Floats, Floats]]:
    """Measure one kind; return its rows and its independent cells.

    Raises:
        CheckError, ServerError: a command or the server failed.
        ResponseError: a response that the chain cannot write.
    """
    kind = KINDS[name]
    folder.mkdir(parents=True, exist_ok=True)
    phantom, run = folder / "phantom", folder / "run"
    if not phantom.exists():
        write_phantom(kind, phantom)
    known, rows = truth_of(kind), []
    arms_file = _chosen_arms(phantom / "arms.yaml", options.arms, folder)
    limit = [] if options.limit is None else ["--limit", options.limit]
    with _served(phantom, folder / "server.log", options.endpoint) as url:
        _steerdec(
            *(
                "bench",
                "run",
                "--looks",
                "1",
                "--endpoint",
                url,
                "--problems",
                phantom / "problems.jsonl",
                "--arms",
                arms_file,
            ),
            *("--samples", options.samples, "--seed", _seed(options.seed, name), "--max-tokens", MAX_TOKENS, *limit),
            *("--threshold", known.threshold_nats, "--out", run),
        )
        if calibrate:
            rows += analyses.calibration_rows(name, known, _calibrated(url, phantom, folder, options))
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]
    settings = json.loads((run / "run.json").read_text("utf-8"))
    arms = compare.read_arms(known, settings, samples)
    rows = compare.run_rows(name, arms) + rows
    if options.arms is None:
        _steerdec("bench", "report", run)
        summary = json.loads((run / "summary.json").read_text("utf-8"))
        decided = options.samples >= DECIDED_SAMPLES and options.limit is None
        rows.append(analyses.verdict_row(name, kind.claims, summary, every=decided))
    if not options.no_analyses:
        rows += _analyzed(name, known, run, phantom, folder)
    return rows, scores.independent_z(arms)


@contextmanager
def _served(phantom: Path, log: Path, endpoint: str | None) -> Iterator[str]:
    """Yield the URL of a server of the phantom, started here unless there is one already."""
    if endpoint is not None:
        yield endpoint
    else:
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1"}
        with local_server(str(phantom), log, environment=environment, start_timeout_s=START_TIMEOUT_S) as url:
            yield url


def _calibrated(url: str, phantom: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    out = folder / "calibration.json"
    _steerdec(
        *("calibrate", "--endpoint", url, "--problems", phantom / "calibration.jsonl", "--arms", "causal"),
        *("--temperature", 1, "--tokens", options.tokens, "--max-tokens", MAX_TOKENS, "--out", out),
    )
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


def _analyzed(name: str, known: Truth, run: Path, phantom: Path, folder: Path) -> Iterator[Row]:
    """Return the rows of the analyses of the run's baseline."""
    model = ("--model", phantom)
    _steerdec("profile", run, *model, "--out", folder / "profile")
    yield from analyses.profile_rows(name, known, folder / "profile")
    _steerdec("mask", run, *model, "--threshold", known.threshold_nats, "--out", folder / "mask")
    yield from analyses.mask_rows(name, known, phantom, folder / "mask")
    if name == LENSES_OF:
        _steerdec(
            *("lenses", *model, "--problems", phantom / "calibration.jsonl", "--limit", 20, "--samples", 4),
            *("--max-tokens", MAX_TOKENS, "--temperature", 1, "--greedy-tokens", 0, "--out", folder / "lenses"),
        )
        yield from analyses.lens_rows(name, known, folder / "lenses")


def _chosen_arms(file: Path, names: str | None, folder: Path) -> Path:
    """Return the arm set, reduced to some arms if these were given."""
    if names is None:
        return file
    arm_set = yaml.safe_load(file.read_text("utf-8"))
    chosen = names.split(",")
    arm_set["arms"] = [arm for arm in arm_set["arms"] if arm["name"] in chosen]
    arm_set["claims"] = [claim for claim in arm_set["claims"] if {claim["arm"], claim["baseline"]} <= set(chosen)]
    out = folder / "arms.yaml"
    out.write_text(yaml.safe_dump(arm_set, sort_keys=False), "utf-8")
    return out


def _seed(seed: int, kind: str) -> int:
    """Return a seed of its own for each kind, so that no two kinds share random numbers."""
    return seed * len(KINDS) + list(KINDS).index(kind)


def _steerdec(*arguments: object) -> None:
    """Run a command of `steerdec`. Raises CheckError with its last line."""
    command = [sys.executable, "-m", "steerdec", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise CheckError(f"steerdec {arguments[0]} ended with status {done.returncode}: {last}")


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
    else:
        with tempfile.TemporaryDirectory(prefix="phantom-") as made:
            yield Path(made)


def print_table(rows: Sequence[Row]) -> None:
    """Print one line for each number."""
    table = Table(box=None, pad_edge=False)
    for column in ("kind", "number", "measured", "exact", "off by", "allowed", ""):
        table.add_column(column, justify="right" if column in ("measured", "exact", "off by") else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            row.kind, row.number, row.measured, row.exact, row.off, row.allowed, "ok" if row.passed else "WRONG"
        )
    console = Console()
    Console(width=console.width if console.is_terminal else 160).print(table)
    wrong = sum(not row.passed for row in rows)
    print(f"{len(rows)} numbers, {wrong} of them wrong" if wrong else f"{len(rows)} numbers, all correct")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m steerdec.phantom.check", description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds to measure, with commas (default: all)")
    parser.add_argument("--samples", type=int, default=1, help="samples of each problem in each arm (default: 1)")
    parser.add_argument("--limit", type=int, help="problems of each kind (default: all 120)")
    parser.add_argument("--arms", help="arms to measure, with commas (default: all; B and A/A are needed)")
    parser.add_argument("--calibrate", default=",".join(CALIBRATED), help="kinds to calibrate, or none")
    parser.add_argument("--tokens", type=int, default=3000, help="tokens of a calibration (default: 3000)")
    parser.add_argument("--endpoint", metavar="URL", help="a server that serves the one kind already")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    parser.add_argument("--no-analyses", action="store_true", help="leave out profile and mask")
    parser.add_argument("--out", type=Path, help="folder to keep everything in; a run there is resumed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
