"""`steerdec lenses`: its options and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from steerdec.cli import analysis_options as cli
from steerdec.cli import options
from steerdec.cli.options import exit_on_known_errors

# Filled in by `lenses`, which imports torch.
SAMPLES = 8
MAX_TOKENS = 96
GAP_SENTENCES = 4
GREEDY_TOKENS = 24
RESAMPLES = 0


def lenses(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the page; resumed if it exists.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Folder, hub id, or the embedded SmolLM2-135M-Instruct.", show_default=False
        ),
    ] = None,
    problems: options.Problems = None,
    limit: options.Limit = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            metavar="K",
            help=f"Responses to each problem, at least 4; the first one that reasons is analyzed. Default: {SAMPLES}.",
        ),
    ] = None,
    seed: cli.Seed = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            metavar="M",
            help=f"Longest response; the work grows with its square. Default: {MAX_TOKENS}.",
        ),
    ] = None,
    temperature: cli.Temperature = None,
    prompt: options.Prompt = None,
    thinking: options.Thinking = None,
    grade: Annotated[
        Literal["correct", "incorrect"] | None,
        typer.Option(help="Analyze only chains whose answer has this grade.", show_default=False),
    ] = None,
    gap_sentences: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            help=f"Receiver heads attend to sentences at least this far back. Default: {GAP_SENTENCES}.",
        ),
    ] = None,
    greedy_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1000,
            metavar="N",
            help=f"Also delete greedily in chains up to N tokens; the work grows as N cubed. Default: {GREEDY_TOKENS}.",
        ),
    ] = None,
    resamples: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=10_000,
            metavar="N",
            help="Also sample N continuations before and after every sentence, and compare how often they are correct. "
            f"Default: {RESAMPLES}.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="float32, bfloat16, or float16. Default: float32 without a GPU, the model's own with one.",
        ),
    ] = None,
    device: cli.Device = None,
) -> None:
    """Show whether several ways to find the decisive tokens of a trace (lenses) find the same ones.

    Samples responses of --model to --problems and analyzes one chain per problem, up to where it states its answer:
    entropy, HSIC with the answer, variance over rollouts, importance by deletion, thought anchors. One matrix shows
    how far they agree, with intervals, baselines, what chance gives, and how well each lens repeats itself. Writes
    DIR/lenses.html and DIR/lenses.json. If it is interrupted, the same command resumes it; after it is done, the same
    command only writes both files again.

    Examples:

    steerdec lenses --model SmolLM2-135M-Instruct --problems embedded --limit 40 --prompt number --gap-sentences 1
    --out lenses/smollm2

    steerdec lenses --model Qwen/Qwen3-8B --problems math500 --limit 100 --max-tokens 1024 --resamples 100
    --out lenses/qwen3
    """
    with exit_on_known_errors(f"what is done is in {out}; the same command continues from there"):
        from steerdec.analysis.lenses import run as looking
        from steerdec.analysis.lenses.report import lenses as make
        from steerdec.analysis.lenses.trace import LensSettings
        from steerdec.analysis.traces.source import Source

        resolved = looking.resolve(
            Source(
                model=model,
                problems=problems,
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
        )
        settings = LensSettings(
            greedy_tokens=GREEDY_TOKENS if greedy_tokens is None else greedy_tokens,
            gap_sentences=gap_sentences or GAP_SENTENCES,
            resamples=resamples or RESAMPLES,
        )
        page, result = make(resolved, options.out_folder(out), settings)
    for line in result["findings"]:
        print(line)
    print(page)
