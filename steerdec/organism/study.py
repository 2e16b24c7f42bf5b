"""The whole report on the organism, part by part, into one folder; what is there already is not made again.

OUT/lenses/        every lens against the true decisions (`lens_truth`)
OUT/causal-T/      the causal test at base temperature T (`causal`)
OUT/grpo/          one file per arm and seed of training (`seeds`)
OUT/study.json     all figures; OUT/study.md the same as tables
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import steerdec
from steerdec.analysis.lenses import report as lens_report
from steerdec.analysis.lenses import run as lens_run
from steerdec.analysis.lenses.trace import LensSettings
from steerdec.analysis.traces import loading, store
from steerdec.analysis.traces.source import Source
from steerdec.common.errors import InputError
from steerdec.common.files import write_atomically
from steerdec.common.json import write_json
from steerdec.common.progress import RunProgress
from steerdec.organism import attempt_truth, causal, lens_truth, seeds, study_tables
from steerdec.organism.build import ABOUT, PROBLEMS, about, build, settings
from steerdec.organism.grpo import ARMS
from steerdec.organism.train import Size, Training
from steerdec.organism.vocabulary import LONGEST_RESPONSE

PARTS: Final = ("lenses", "causal", "grpo")
JSON: Final = "study.json"
TABLES: Final = "study.md"


@dataclass(frozen=True)
class LensStudy:
    """The size of the lens study."""

    problems: int = 64
    samples: int = 8
    resamples: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    lenses: LensStudy = field(default_factory=LensStudy)
    causal: causal.Causal = field(default_factory=causal.Causal)
    grpo: seeds.Study = field(default_factory=seeds.Study)


def study(model: Path | None, out: Path, sizes: Sizes, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Make what is missing of the named parts, then write the report of all parts that are there.

    Args:
        model: the organism's folder, as `build.build` writes it; None builds the default one in OUT/model.

    Raises:
        InputError: `out` holds a study of another model or of other sizes; or `model` is not an organism's folder.
        AnalysisError, ServerError, JournalError: it failed on its way; what is done is kept.
    """
    organism = settings(Training(), Size()) if model is None else about(model).get("settings")
    if organism is None:
        raise InputError(f"--model: {model} is not an organism's folder (no {ABOUT}); see `steerdec model organism`")
    with store.opened(out, {"analysis": "organism", "organism": organism, "sizes": asdict(sizes)}):
        model = model or build(out / "model")
        if "lenses" in parts:
            _lenses(model, out / "lenses", sizes.lenses)
        if "grpo" in parts:
            _grpo(model, out / "grpo", sizes.grpo)
        if "causal" in parts:
            causal.run(model, out, sizes.causal)
        found = collect(model, out, sizes)
        write_json(out / JSON, found)
        write_atomically(out / TABLES, study_tables.tables(found))
    return found


def collect(model: Path, out: Path, sizes: Sizes) -> dict[str, Any]:
    """Return the figures of every part that is complete in `out`."""
    found: dict[str, Any] = {"steerdec": steerdec.__version__, "organism": about(model), "sizes": asdict(sizes)}
    if (out / "lenses" / lens_report.JSON).exists():
        texts, records = _problem_texts(model), _lines(out / "lenses" / "lenses.jsonl")
        found["lenses"] = lens_truth.report(lens_truth.traces(records, texts))
        rollouts = _lines(out / "lenses" / "resamples.jsonl")
        found["attempts"] = attempt_truth.report(attempt_truth.with_rollouts(records, rollouts), texts)
    if all((causal.folder_of(out, t) / causal.SUMMARY).exists() for t in sizes.causal.temperatures):
        found["causal"] = causal.results(out, sizes.causal)
    paths = [_run_path(out / "grpo", arm, seed) for seed in sizes.grpo.seeds for arm in ARMS]
    if all(path.exists() for path in paths):
        found["grpo"] = seeds.compared([json.loads(path.read_bytes()) for path in paths])
    return found


def _problem_texts(model: Path) -> dict[str, str]:
    return {row["id"]: row["problem"] for row in _lines(model / PROBLEMS)}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file; none where there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _lenses(model: Path, out: Path, sizes: LensStudy) -> None:
    if (out / lens_report.JSON).exists():
        return
    wanted = Source(
        model=str(model),
        problems=str(model / PROBLEMS),
        limit=sizes.problems,
        samples=sizes.samples,
        seed=sizes.seed,
        max_tokens=LONGEST_RESPONSE + 8,
        temperature=1.0,
        dtype="float32",
        device="cpu",
    )
    settings = LensSettings(greedy_tokens=0, gap_sentences=1, resamples=sizes.resamples)
    lens_report.lenses(lens_run.resolve(wanted), out, settings)


def _run_path(out: Path, arm: str, seed: int) -> Path:
    return out / f"{arm.replace(' ', '-').replace('%', '')}-{seed}.json"


def _grpo(model: Path, out: Path, sizes: seeds.Study) -> None:
    out.mkdir(exist_ok=True)
    jobs = [(arm, seed) for seed in sizes.seeds for arm in ARMS]
    missing = [job for job in jobs if not _run_path(out, *job).exists()]
    if not missing:
        return
    base = seeds.measured(loading.load(str(model), dtype="float32", device="cpu").model, sizes)
    with RunProgress(len(jobs), len(jobs) - len(missing), "training runs") as progress:
        for arm, seed in missing:
            seeds.run_one(base, arm, seed, sizes, _run_path(out, arm, seed))
            progress.advance(1, 0)
