"""`steerdec profile`: its options and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steerdec.cli import analysis_options as shared
from steerdec.cli import options
from steerdec.cli.options import exit_on_known_errors, number


def profile(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the page; resumed if it exists.")],
    run: shared.Run = None,
    model: shared.Model = None,
    problems: options.Problems = None,
    arm: shared.ArmName = None,
    limit: shared.Limit = None,
    samples: shared.Samples = None,
    seed: shared.Seed = None,
    max_tokens: shared.MaxTokens = None,
    temperature: shared.Temperature = None,
    prompt: options.Prompt = None,
    thinking: options.Thinking = None,
    grade: shared.Grade = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            parser=number(0, 1000),
            metavar="NATS",
            help="Entropy above which tokens are marked as forks. Default: the 80th percentile of the responses.",
        ),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(min=0, max=10**9, metavar="N", help="List tokens that occur more often than this. Default: 100."),
    ] = None,
    dtype: shared.Dtype = None,
    device: shared.Device = None,
) -> None:
    """Show where the entropy of a model's responses lies: histogram, quantiles, tokens, colored traces.

    The responses are those of a bench RUN, or sampled now (--model with --problems). Each token is scored by teacher
    forcing in one pass. Writes DIR/profile.html and DIR/profile.json. If it is interrupted, the same command resumes
    it.

    Examples:

    steerdec profile runs/first --out profiles/first

    steerdec profile --model SmolLM2-135M-Instruct --problems embedded --samples 16 --out profiles/smollm2
    """
    with exit_on_known_errors(f"what is done is in {out}; the same command continues from there"):
        source = shared.source(
            run,
            model=model,
            problems=problems,
            arm=arm,
            limit=limit,
            samples=samples,
            seed=seed,
            max_tokens=max_tokens,
            temperature=temperature,
            prompt=prompt,
            thinking=thinking,
            grade=grade,
            dtype=dtype,
            device=device,
        )
        from steerdec.analysis.profile.run import profile as make

        page, result = make(source, options.out_folder(out), threshold_nats=threshold, min_count=min_count)
    p80, certain = result["quantiles_nats"]["p80"], result["share_below_0_01"]
    print(
        f"{result['tokens']} tokens of {result['traces']} responses: p80 {p80['value']:.3f} nats, "
        f"{100 * certain['value']:.1f}% below 0.01 nats, mean {result['mean_entropy_nats']['value']:.3f}"
    )
    print(page)
