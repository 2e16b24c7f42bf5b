"""The analysis commands of `steerdec`. What a command needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steerdec.cli import options
from steerdec.cli.options import fail, number, whole

# Filled in by `source` and `sampling`, which import torch.
SAMPLES = 4
MAX_TOKENS = 512

Run = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="Folder of a bench run, whose texts are scored again.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Folder, hub id, or the embedded SmolLM2-135M-Instruct. Default with RUN: the model of the run.",
        show_default=False,
    ),
]
ArmName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Arm of RUN. Default: the one in which nothing is changed.", show_default=False),
]
Limit = Annotated[
    int | None,
    typer.Option(
        parser=whole(1, 10_000_000), metavar="N", help="Use N problems, or N responses of RUN.", show_default=False
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(parser=whole(1, 100_000), metavar="K", help=f"Responses to each problem. Default: {SAMPLES}."),
]
Seed = Annotated[int | None, typer.Option(parser=whole(0, 2**53), metavar="S", help="Seed. Default: 0.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(parser=whole(1, 1_000_000), metavar="M", help=f"Longest response. Default: {MAX_TOKENS}."),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        parser=number(0, 100), metavar="T", help="Of the sampling; 0 is greedy. Default: 0.6 on embedded, else 1."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="float32, bfloat16 or float16. Default: the run's; else float32 without a GPU, the model's own with one.",
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="Of torch. Default: cuda where there is one, else cpu.")
]


@contextmanager
def told_plainly(interrupted: str = "") -> Iterator[None]:
    """As the benchmark's, with the analyses' own failures: one line, and an exit status."""
    from steerdec.analysis.errors import AnalysisError, InputError
    from steerdec.models import ModelError

    with options.told_plainly(interrupted):
        try:
            yield
        except InputError as e:
            fail(e, 2)
        except (AnalysisError, ModelError) as e:
            fail(f"{e}; {interrupted}" if interrupted else e, 1)


def _source(run: Path | None, **named: Any) -> Any:
    """The source, every default filled in. Raises InputError and what `resolve` does."""
    from steerdec.analysis.traces.source import Source, resolve

    return resolve(Source(run=run, **named))


def profile(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the page; gone on with if there is one.")],
    run: Run = None,
    model: Model = None,
    problems: options.Problems = None,
    arm: ArmName = None,
    limit: Limit = None,
    samples: Samples = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    prompt: options.Prompt = None,
    thinking: options.Thinking = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            parser=number(0, 1000), metavar="NATS", help="Mark forks above it. Default: the 80th percentile found."
        ),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(parser=whole(0, 10**9), metavar="N", help="List tokens with more occurrences. Default: 100."),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Show where the entropy of a model's responses lies: histogram, quantiles, tokens, coloured traces.

    The responses are those of a bench RUN, or sampled now (--model with --problems). Each token is scored by teacher
    forcing in one pass. Writes DIR/profile.html and DIR/profile.json. Stopped, the same command goes on.

    Examples:

    steerdec profile runs/first --out profiles/first

    steerdec profile --model SmolLM2-135M-Instruct --problems embedded --samples 16 --out profiles/smollm2
    """
    with told_plainly(f"what is done is in {out}, the same command goes on from there"):
        source = _source(
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
            dtype=dtype,
            device=device,
        )
        from steerdec.analysis.profile.run import profile as make

        page, told = make(source, options.out_folder(out), threshold_nats=threshold, min_count=min_count)
    p80, certain = told["quantiles_nats"]["p80"], told["share_below_0_01"]
    print(
        f"{told['tokens']} tokens of {told['traces']} responses: p80 {p80['value']:.3f} nats, "
        f"{100 * certain['value']:.1f}% below 0.01 nats, mean {told['mean_entropy_nats']['value']:.3f}"
    )
    print(page)


def commands() -> dict[str, Callable[..., None]]:
    """By the name after `steerdec`."""
    from steerdec.cli.compare_models import compare_models
    from steerdec.cli.lenses import lenses
    from steerdec.cli.mask import mask

    return {"profile": profile, "compare-models": compare_models, "lenses": lenses, "mask": mask}
