"""`steerdec tune`: find the steering that is best for one model and problem set, and test it."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from steerdec.cli import options
from steerdec.cli.options import CONCURRENCY, MAX_TOKENS, TIMEOUT_S, UsageError, exit_on_known_errors, number
from steerdec.common.files import exists
from steerdec.steering.params import MAX_TEMPERATURE, MIN_TEMPERATURE

if TYPE_CHECKING:
    from steerdec.benchmarks.tune.records import TuneResult
    from steerdec.records.summary import ClaimSummary

CANDIDATES = 27
SAMPLES = 16
FIRST_RUNG_SAMPLES = 60  # of each setting, over all tuning problems, unless --first-samples says otherwise


def tune(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the search; resumed if it exists.")],
    problems: options.Problems = None,
    endpoint: options.Endpoints = None,
    model: options.Model = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            parser=number(MIN_TEMPERATURE, MAX_TEMPERATURE),
            metavar="T",
            help="Base temperature: the one you use today, which a setting has to beat. Default: 1.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            parser=number(0.0, 100.0, "nats"),
            metavar="NATS",
            help="Try this threshold only. Default: the 70th, 80th and 90th percentile of the model's own entropies.",
            show_default=False,
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=2, max=90, metavar="N", help="Steered settings to try, drawn from the built-in space.")
    ] = CANDIDATES,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Try the steered arms of this arm set (YAML or JSON) instead.", show_default=False
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, max=100_000, metavar="K", help="Samples of each held-out problem in each arm.")
    ] = SAMPLES,
    first_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            metavar="K",
            help="Samples of each tuning problem in the first rung; each further rung has three times as many. "
            f"Default: enough for {FIRST_RUNG_SAMPLES} in all.",
            show_default=False,
        ),
    ] = None,
    tuning_share: Annotated[
        float,
        typer.Option(parser=number(0.1, 0.9), metavar="SHARE", help="Share of the problems to tune on."),
    ] = 0.5,
    budget_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**15,
            metavar="N",
            help="Generate about this many tokens at most: half for the search, the rest for the test.",
            show_default=False,
        ),
    ] = None,
    limit: options.Limit = None,
    seed: Annotated[int, typer.Option(min=0, max=2**53, metavar="S", help="Seed of the whole search.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, max=1_000_000, metavar="M", help="Longest answer.")] = MAX_TOKENS,
    prompt: options.Prompt = None,
    thinking: options.Thinking = None,
    concurrency: options.Concurrency = CONCURRENCY,
    timeout: options.Timeout = TIMEOUT_S,
    dtype: options.Dtype = None,
) -> None:
    """Find the steering that is best for one model and one kind of problem, then test it on problems kept aside.

    A pilot measures the model's entropies. The search compares many settings (policies, thresholds, temperatures) on
    the tuning problems: all of them on few samples, the best third on three times as many, and so on. Every setting
    draws with the same seeds, so that luck is shared. Plain temperatures without steering take part as well.

    The best of many settings looks better than it is. So it is tested once, on the held-out problems, against the
    baseline and against the best plain temperature, with the statistics of `steerdec bench`. The command prints the
    --steering option to serve with, or says that nothing beat the baseline.

    Everything is kept in DIR; after any stop, the same command continues where it stopped. DIR/test is an ordinary run,
    with a report.

    Examples:

    steerdec tune --problems embedded --model SmolLM2-135M-Instruct --temperature 0.6 --max-tokens 64 --out tuned

    steerdec tune --problems gsm8k --limit 400 --endpoint http://gpu1:8000 --budget-tokens 20000000 --out tuned
    """
    from steerdec.benchmarks.design.arm_sets import load_arm_set
    from steerdec.benchmarks.report.write import write_report
    from steerdec.benchmarks.run.endpoint_health import Retry
    from steerdec.benchmarks.run.run_request import DEFAULT_TEMPERATURE
    from steerdec.benchmarks.run.targets import Target
    from steerdec.benchmarks.tune import session
    from steerdec.benchmarks.tune.request import read_tune_request
    from steerdec.records.summary import read_summary

    with exit_on_known_errors(lambda: _how_to_continue(out)):
        if problems is None:
            raise UsageError("--problems is missing: the name of a problem set or a JSONL file")
        request = read_tune_request(
            problems,
            limit=limit,
            tuning_share=tuning_share,
            seed=seed,
            temperature=temperature or DEFAULT_TEMPERATURE,
            threshold_nats=threshold,
            arms=None if arms is None else load_arm_set(arms),
            candidates=candidates,
            first_samples=first_samples,
            first_rung_samples=FIRST_RUNG_SAMPLES,
            test_samples=samples,
            budget_tokens=budget_tokens,
            max_tokens=max_tokens,
            prompt=prompt,
            thinking=thinking,
        )
        urls = options.one_source(endpoint, model, dtype)
        target = Target(
            endpoints=urls,
            model=model,
            dtype=dtype,
            concurrency=concurrency,
            timeout_s=timeout,
            api_key=options.api_key(),
        )
        result = session.run(request, target, options.out_folder(out), Retry(seed=seed))
        page = write_report(out / "test", read_summary(out / "test" / "summary.json"))
    for line in summary_lines(result, model or "MODEL"):
        print(line)
    print(f"the whole test: {page}")


def summary_lines(result: TuneResult, model: str) -> list[str]:
    """Return the lines that say what came out."""
    from steerdec.benchmarks.tune import final
    from steerdec.benchmarks.verdicts.wording import plural

    claims = {claim.id: claim for claim in result.claims}
    plain = "none above the baseline" if result.plain is None else f"{result.plain.temperature:g}"
    lines = [
        f"best on {result.tuning_problems} tuning problems: {result.steered.name}; best plain temperature: {plain}",
        f"on {result.held_out_problems} held-out problems, {plural(result.test_samples, 'sample')} each "
        f"(instrument: {result.instrument}):",
    ]
    for name, what in (
        (final.STEERING_HELPS, "steering against the baseline"),
        (final.STEERING_BEATS_PLAIN, "steering against the best plain temperature"),
        (final.PLAIN_HELPS, "the best plain temperature against the baseline"),
    ):
        if name in claims:
            lines.append(f"  {what}: {_difference(claims[name])}")
    cost = result.cost
    lines.append(
        f"{cost.tokens} tokens were generated: {cost.pilot} in the pilot, {cost.search} in the search, "
        f"{cost.test} in the test"
    )
    base = f"temperature {result.baseline_temperature:g}"
    if result.advice == "steer":
        beaten = claims.get(final.STEERING_BEATS_PLAIN)
        if beaten is not None and beaten.verdict != "holds" and result.plain is not None:
            simpler = f"plain temperature {result.plain.temperature:g}, which is simpler"
            lines.append(f"steering beats the baseline, but is not shown to beat {simpler}")
        lines.append(f"serve with this, for requests at temperature {result.steered.temperature:g}:")
        lines.append(f"  steerdec serve {quote(model)} {final.steering_line(result.steered)}")
    elif result.advice == "temperature":
        assert result.plain is not None
        lines.append(
            f"no steering is shown to beat the baseline ({base}), but plain temperature {result.plain.temperature:g} "
            "is: send it, without steering"
        )
    else:
        lines.append(f"nothing is shown to beat the baseline ({base}): serve without steering")
    return lines


def _difference(claim: ClaimSummary) -> str:
    if claim.diff is None:
        return claim.verdict
    interval = "" if claim.ci95 is None else f" [{100 * claim.ci95[0]:+.1f}, {100 * claim.ci95[1]:+.1f}]"
    return f"{100 * claim.diff:+.1f} points{interval}, {claim.verdict}"


def _how_to_continue(out: Path) -> str:
    if not exists(out / "tune.json"):
        return ""
    return f"the samples so far are in {out}; the same command continues from there"
