"""`steerdec bench plan`: what a run can detect, and what it costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from steerdec.cli.options import exit_on_known_errors, number


def plan(
    run: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Plan from what the samples of this run show.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(parser=number(0, 100), metavar="POINTS", help="True difference to plan for.")
    ] = None,
    problems: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, metavar="N", help="Number of problems. Default: 60, or as the run."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, metavar="K", help="Samples of each problem. Default: 32, or as the run."),
    ] = None,
    arms: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="quick, figure3, causal, branching, or a file.")
    ] = "causal",
    accuracy: Annotated[
        float, typer.Option(parser=number(0.01, 0.99), metavar="P", help="Expected score of the baseline.")
    ] = 0.71,
    mean_tokens: Annotated[
        float | None, typer.Option(parser=number(1, 1e6), metavar="L", help="Expected length of an answer.")
    ] = None,
    tokens_per_s: Annotated[
        float | None, typer.Option(parser=number(0.001, 1e9), metavar="R", help="What all endpoints generate together.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(parser=number(0, 1e6), metavar="PRICE", help="What all endpoints cost per hour.")
    ] = None,
) -> None:
    """Say what a run of this size can detect, and what it costs, before it is made.

    With --from and --target: the chance of each verdict, by the noise and the lengths of an earlier run.

    Examples:

    steerdec bench plan --problems 60 --samples 32 --accuracy 0.7 --mean-tokens 12000 --tokens-per-s 5000

    steerdec bench plan --from runs/pilot --target 5 --problems 60 --samples 32 --tokens-per-s 5000
    """
    import math

    from steerdec.benchmarks.design import arm_sets, power
    from steerdec.benchmarks.verdicts.wording import plural

    if (run is None) != (target is None):
        raise typer.BadParameter("--from and --target go together: the run to plan from, the difference to plan for")
    if run is not None and target is not None:
        with exit_on_known_errors():
            _plan_from(run, target / 100, problems, samples, tokens_per_s, price_per_hour)
        return
    problems, samples = problems or 60, samples or 32
    with exit_on_known_errors():
        count = len(arm_sets.load_arm_set(arms).arms)
        spread = power.usual_sd(accuracy)  # a baseline near 0 or 1 leaves the problems less room to differ
        expected = power.plan(
            problems, samples, count, p_bar=accuracy, p_sd=spread, mean_tokens=mean_tokens or math.nan
        )
    these, like_these = 100 * expected.mde_these_problems, 100 * expected.mde_problems_like_these
    print(f"{plural(problems, 'problem')} x {plural(samples, 'sample')} x {count} arms = {expected.samples} samples")
    print(f"smallest difference seen with 80% power, these problems:      {these:.1f} points")
    print(f"smallest difference seen with 80% power, problems like these: {like_these:.1f} points")
    print("of one arm against the baseline: one two-sided 5% test, before Holm's correction over the claims")
    print(
        f"assumed: independent arms, scores of problems around {100 * accuracy:g}% with standard deviation "
        f"{100 * spread:.0f}, effects with standard deviation {100 * power.EFFECT_SD:g} points"
    )
    if mean_tokens is not None:
        print(f"expected tokens: {expected.tokens:.3g}")
        if tokens_per_s is not None:
            hours = expected.tokens / tokens_per_s / 3600
            print(f"expected time: {hours:.1f} h")
            if price_per_hour is not None:
                print(f"expected cost: {hours * price_per_hour:.2f}")
    elif tokens_per_s is not None:
        print("expected time: unknown without --mean-tokens", file=sys.stderr)


def _plan_from(
    run: Path, target: float, problems: int | None, samples: int | None, tokens_per_s: float | None, price: float | None
) -> None:
    from steerdec.benchmarks.design import from_run
    from steerdec.benchmarks.verdicts.wording import plural
    from steerdec.records.folder import load_run

    load_run(run)  # says what is wrong with its run.json
    seen = from_run.observe(run)
    assumed, points = seen.assumptions, 100 * target
    print(f"from {run}: {seen.pair[0]} - {seen.pair[1]}, the noisiest of the claimed comparisons")
    for line in (
        f"a true difference of {points:g} points, varying between problems by {100 * assumed.effect_sd:.1f} points",
        f"sampling noise of one pair of samples: {100 * assumed.noise_variance**0.5:.0f} points",
        f"{assumed.claims} claims share the 5%; equal means within {100 * assumed.delta:g} points",
        f"{seen.arms} arms of {seen.mean_tokens:.0f} tokens a sample; all of them stop with this comparison",
        "looks at 1/8, 1/4, 1/2, 3/4 and all of the samples",
    ):
        print(f"assumed: {line}")
    for n, k in from_run.sizes(problems or seen.n_problems, samples or seen.samples):
        found = from_run.chances(seen, target, n, k)
        tokens = found.share * n * k * seen.arms * seen.mean_tokens
        line = (
            f"{plural(n, 'problem')} x {plural(k, 'sample')}: "
            f"holds {found.holds:.0%}, no effect {found.no_effect:.0%}, "
            f"reversed {found.reversed:.0%}, undecided {found.undecided:.0%}; "
            f"{tokens:.3g} tokens expected ({found.share:.0%} of the planned)"
        )
        if tokens_per_s is not None:
            hours = tokens / tokens_per_s / 3600
            line += f", {hours:.1f} h"
            if price is not None:
                line += f", cost {hours * price:.2f}"
        print(line)
