"""`steerdec mask`: its options and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from steerdec.cli import analysis_options as cli
from steerdec.cli import options
from steerdec.cli.options import exit_on_known_errors, number
from steerdec.common.paper import FORK_SHARE

SHARE = 0.2


def mask(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the mask; resumed if it exists.")],
    run: cli.Run = None,
    model: cli.Model = None,
    problems: options.Problems = None,
    lenses: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of `steerdec lenses`, whose chains are masked.", show_default=False),
    ] = None,
    lens: Annotated[
        str | None, typer.Option(metavar="NAME", help="Score of --lenses that selects the forks. Default: entropy.")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            parser=number(1e-6, 1),
            metavar="RHO",
            help=f"Forks are the tokens with the highest scores, this share of all. Default: {FORK_SHARE}.",
        ),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="NATS|FILE",
            help="Forks are the tokens above this entropy: a number, or a file from `steerdec calibrate`.",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS", help="Forks are the tokens of this class: digit, operator, word start, continuation."
        ),
    ] = None,
    arm: cli.ArmName = None,
    limit: cli.Limit = None,
    samples: cli.Samples = None,
    seed: cli.Seed = None,
    max_tokens: cli.MaxTokens = None,
    temperature: cli.Temperature = None,
    prompt: options.Prompt = None,
    thinking: options.Thinking = None,
    dtype: cli.Dtype = None,
    device: cli.Device = None,
) -> None:
    """Write which tokens of a model's responses are forks, as Parquet, for any trainer.

    The responses are those of a bench RUN, sampled now (--model with --problems), or the chains of --lenses. Writes
    DIR/mask.parquet (one row per token), DIR/requests.parquet (one row per response), and DIR/mask.json. If it is
    interrupted, the same command resumes it. After it is done, you can change --share, --threshold, or --tokens, and
    nothing is scored again.

    Examples:

    steerdec mask runs/first --out masks/first

    steerdec mask --model SmolLM2-135M-Instruct --problems embedded --samples 16 --share 0.2 --out masks/smollm2

    steerdec mask --lenses lenses/smollm2 --lens hsic --out masks/hsic

    steerdec mask --model SmolLM2-135M-Instruct --problems embedded --tokens digit --out masks/digits
    """
    with exit_on_known_errors(f"what is done is in {out}; the same command continues from there"):
        from steerdec.analysis.traces.token_classes import CLASSES
        from steerdec.common.errors import InputError
        from steerdec.records.calibration import parse_threshold

        if sum(given is not None for given in (share, threshold, tokens)) > 1:
            raise InputError("give one of --share, --threshold and --tokens")
        if tokens is not None and tokens not in CLASSES:
            raise InputError(f"--tokens: {tokens!r} is not one of {', '.join(CLASSES)}")
        cut = None if threshold is None else parse_threshold(threshold)
        top = (share or FORK_SHARE) if cut is None and tokens is None else None
        of_responses: dict[str, Any] = {
            "model": model,
            "problems": problems,
            "arm": arm,
            "limit": limit,
            "samples": samples,
            "seed": seed,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "prompt": prompt,
            "thinking": thinking,
            "dtype": dtype,
            "device": device,
        }
        if lenses is not None:
            _goes_without_lenses({"RUN": run, "tokens": tokens} | of_responses)
            from steerdec.analysis.masks.run import ENTROPY, mask_lenses

            result = mask_lenses(lenses, lens or ENTROPY, options.out_folder(out), share=top, threshold=cut)
        else:
            if lens is not None:
                raise InputError("--lens goes with --lenses")
            source = cli.source(run, **of_responses)
            from steerdec.analysis.masks.run import mask_responses

            result = mask_responses(source, options.out_folder(out), share=top, threshold=cut, tokens=tokens)
    cut_text = "" if tokens else f" {'above' if top is None else 'from'} {result['cut']:.4g}"
    print(
        f"{result['forks']} of {result['tokens']} tokens of {result['requests']} responses are forks "
        f"({100 * result['fork_share']:.1f}%), by {result['lens']}{cut_text}"
    )
    print(out / "mask.parquet")


def _goes_without_lenses(named: dict[str, object]) -> None:
    """Refuse options that do not go with --lenses, which has its own responses. Raises InputError."""
    from steerdec.common.errors import InputError

    for name, value in named.items():
        if value is not None:
            flag = name if name.isupper() else f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} cannot be used with --lenses, whose chains exist already")
