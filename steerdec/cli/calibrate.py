"""`steerdec calibrate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from steerdec.cli import options
from steerdec.cli.options import CONCURRENCY, MAX_TOKENS, TIMEOUT_S, UsageError, exit_on_known_errors, number
from steerdec.common.files import exists
from steerdec.steering.params import MAX_TEMPERATURE, MIN_TEMPERATURE


def calibrate(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The calibration to write (JSON).")],
    problems: options.Problems = None,
    endpoint: options.Endpoints = None,
    model: options.Model = None,
    tokens: Annotated[
        int, typer.Option(min=1, max=100_000_000, metavar="N", help="Tokens to measure, at least.")
    ] = 100_000,
    limit: options.Limit = None,
    seed: Annotated[int, typer.Option(min=0, max=2**53, metavar="S", help="Seed.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, max=1_000_000, metavar="M", help="Longest answer.")] = MAX_TOKENS,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Also solve the temperatures of this arm set's entropy-matched arms.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            parser=number(MIN_TEMPERATURE, MAX_TEMPERATURE),
            metavar="T",
            help="Temperature to sample at, that of the runs to come. Default: that of the arm set, else 1. H itself "
            "is always of the model's own distribution.",
            show_default=False,
        ),
    ] = None,
    prompt: options.Prompt = None,
    thinking: options.Thinking = None,
    concurrency: options.Concurrency = CONCURRENCY,
    timeout: options.Timeout = TIMEOUT_S,
    dtype: options.Dtype = None,
) -> None:
    """Measure the entropies of a model's tokens; their 80th percentile is where forks begin.

    Use problems other than those you test on. The file goes to `steerdec bench run --threshold FILE` or
    `steerdec serve MODEL --threshold FILE`.

    An arm set such as `causal` has arms that are to change the mean entropy as much as another arm does. With --arms
    their temperatures are solved on the same problems, with the threshold just measured.

    The samples are kept in FILE.samples.jsonl until all is done: stopped in between, the same command continues. With
    --arms, at most 2.5 times --tokens are sampled in all.

    Example:

    steerdec calibrate --endpoint http://gpu1:8000 --problems gsm8k.jsonl --tokens 1000000 --out qwen3.json
    """
    from steerdec.benchmarks.calibration import session as calibrate_session
    from steerdec.benchmarks.run.targets import Target

    def how_to_continue() -> str:
        journal = f"{out}.samples.jsonl"
        if not exists(journal):
            return ""
        return f"the samples so far are in {journal}; the same command continues from there"

    with exit_on_known_errors(how_to_continue):
        if problems is None:
            raise UsageError("--problems is missing: the name of a problem set or a JSONL file")
        options.out_folder(out.absolute().parent)
        if out.is_dir():
            raise UsageError(f"--out: {out} is a folder, not a file")
        urls = options.one_source(endpoint, model, dtype)
        target = Target(
            endpoints=urls,
            model=model,
            dtype=dtype,
            concurrency=concurrency,
            timeout_s=timeout,
            api_key=options.api_key(),
        )
        found = calibrate_session.run(
            problems,
            target,
            out,
            arms=arms,
            temperature=temperature,
            tokens=tokens,
            limit=limit,
            seed=seed,
            max_tokens=max_tokens,
            prompt=prompt,
            thinking=thinking,
        )
    low, high = found.p80_ci95
    print(
        f"p80 {found.threshold_nats:.4f} nats (95% interval {low:.4f} to {high:.4f}) over {found.tokens} tokens; {out}"
    )
    for m in found.matching.matched if found.matching else ():
        low, high = m.temperature_ci95
        print(
            f"{m.arm}: T {m.temperature:.4f} (95% interval {low:.4f} to {high:.4f}) changes the mean entropy by "
            f"{m.dose_nats:+.4f} nats, {m.matched} by {m.target_nats:+.4f}"
        )
    for reason in found.matching.unmatched.values() if found.matching else ():
        print(f"steerdec: {reason}", file=sys.stderr)
    if found.matching and found.matching.unmatched:
        raise typer.Exit(1)
