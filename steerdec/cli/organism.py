"""`steerdec model organism` and `steerdec model organism-study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steerdec.cli.options import exit_on_known_errors, number, out_folder

# Filled in by `study`, which imports torch.
PARTS = ("lenses", "causal", "grpo")


def model_organism(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the model to.")],
    seed: Annotated[int, typer.Option(min=0, max=2**31, metavar="S", help="Seed of weights and data.")] = 0,
) -> None:
    """Train a small reasoner whose decisions are known by construction, and write it as a model folder.

    It reaches a target number by chains of moves, trying in writing until it works; docs/organism.md describes the
    task. Training takes a few minutes on two cores and is done once: the result is kept in the cache
    ($STEERDEC_CACHE). If it is stopped, the same command resumes.

    DIR/problems.jsonl has problems to measure on, DIR/calibration.jsonl others to calibrate on.

    Examples:

    steerdec model organism --out organism

    steerdec calibrate --model organism --problems organism/calibration.jsonl --arms causal --max-tokens 128
    --out organism.json

    steerdec bench run --model organism --problems organism/problems.jsonl --arms causal --threshold organism.json
    --max-tokens 128 --out runs/organism
    """
    with exit_on_known_errors("the same command resumes"):
        from steerdec.organism.build import build
        from steerdec.organism.train import Training

        folder = build(out_folder(out), training=Training(seed=seed))
    print(folder)


def model_organism_study(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report; resumed if it exists.")],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The organism's folder. Default: OUT/model, built if needed.", show_default=False
        ),
    ] = None,
    parts: Annotated[str, typer.Option(metavar="PART,...", help="What to measure.")] = ",".join(PARTS),
    problems: Annotated[int, typer.Option(min=2, max=64, metavar="N", help="Problems of the lens study.")] = 64,
    resamples: Annotated[
        int, typer.Option(min=0, max=10_000, metavar="N", help="Rollouts from each sentence in the lens study.")
    ] = 16,
    temperatures: Annotated[
        str, typer.Option(metavar="T,...", help="Base temperatures of the causal test.")
    ] = "0.6,1,1.4",
    samples: Annotated[
        int, typer.Option(min=2, max=10_000, metavar="K", help="Samples per problem and arm in the causal test.")
    ] = 16,
    seeds: Annotated[int, typer.Option(min=2, max=1000, metavar="N", help="Training runs of each arm.")] = 5,
    steps: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="Steps of each training run.")] = 100,
) -> None:
    """Measure on the organism what is claimed about forking tokens, against decisions that are known.

    Every lens against the true decisions; the causal test with matched doses at several base temperatures; GRPO on the
    top 20% of tokens by entropy, on all tokens, on the bottom 80%, and on a random 20%. Writes OUT/study.json and
    OUT/study.md. What exists is not measured again, so the same command resumes.

    Example:

    steerdec model organism-study --out organism-study
    """
    with exit_on_known_errors(f"what is done is in {out}; the same command continues from there"):
        from steerdec.common.errors import InputError
        from steerdec.organism import causal, study
        from steerdec.organism import seeds as training
        from steerdec.organism.grpo import GRPO

        wanted = tuple(parts.split(","))
        if unknown := [part for part in wanted if part not in PARTS]:
            raise InputError(f"--parts: {unknown[0]!r} is not one of {', '.join(PARTS)}")
        try:
            base = tuple(map(number(0.01, 100), temperatures.split(",")))
        except typer.BadParameter as e:
            raise InputError(f"--temperatures: {e.message}") from None
        sizes = study.Sizes(
            study.LensStudy(problems=problems, resamples=resamples),
            causal.Causal(temperatures=base, samples=samples),
            training.Study(seeds=tuple(range(seeds)), grpo=GRPO(steps=steps)),
        )
        study.study(model, out_folder(out), sizes, wanted)
    print(out / study.TABLES)
