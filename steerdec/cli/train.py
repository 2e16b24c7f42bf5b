"""The options of `python -m steerdec.analysis.train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from steerdec.cli import analysis_options as cli
from steerdec.cli import options
from steerdec.cli.options import exit_on_known_errors, number
from steerdec.common.paper import FORK_SHARE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _option(text: str, metavar: str = "N", low: int = 1) -> Any:
    return typer.Option(min=low, max=2**53, metavar=metavar, help=text)


@app.command()
def train(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the training; resumed if it exists.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="Folder, hub id, or the embedded model.")],
    problems: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Problems to train on; a correct answer is rewarded.")
    ],
    limit: options.Limit = None,
    prompt: options.Prompt = None,
    thinking: options.Thinking = None,
    steps: Annotated[int, _option("Number of optimizer steps.")] = 200,
    prompts: Annotated[int, _option("Problems sampled at once.")] = 8,
    generations: Annotated[int, _option("Responses to each problem.", low=2)] = 8,
    updates: Annotated[int, _option("Optimizer steps on these responses, each on its own part of them.")] = 1,
    micro_batch: Annotated[
        int | None, _option("Responses in one pass; the quantile is taken over these. Default: all of a step.")
    ] = None,
    max_tokens: Annotated[int, _option("Longest response; longer ones are cut off and left out of the loss.")] = 512,
    temperature: Annotated[
        float, typer.Option(parser=number(1e-3, 100), metavar="T", help="Temperature of the sampling and of the loss.")
    ] = 1.0,
    learning_rate: Annotated[
        float, typer.Option(parser=number(1e-12, 1), metavar="LR", help="Learning rate of AdamW, constant.")
    ] = 1e-6,
    share: Annotated[
        float, typer.Option(parser=number(1e-3, 1), metavar="RHO", help="Share of tokens in the loss; 1 for all.")
    ] = FORK_SHARE,
    per: Annotated[
        str, typer.Option(metavar="forks|all", help="Divide the loss by the forks, or by all tokens, as TRL does.")
    ] = "forks",
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; the weights stay in float32.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, metavar="S", help="Seed.")] = 0,
    save_every: Annotated[int, _option("Steps from one checkpoint to the next.")] = 50,
    device: cli.Device = None,
) -> None:
    """Train MODEL by policy gradient on the forks of its own responses to a problem set, with TRL.

    Writes DIR/model and DIR/training.json. When interrupted, it finishes its steps on the sampled responses and saves,
    and the same command resumes it.
    """
    with exit_on_known_errors(f"what is done is in {out}; the same command continues from there"):
        from steerdec.analysis.train import equation6
        from steerdec.analysis.train.recipe import Recipe
        from steerdec.analysis.train.run import MODEL, train
        from steerdec.common.errors import InputError
        from steerdec.problems.sets import load_problems

        if per not in equation6.DIVISORS:
            raise InputError(f"--per: {per!r} is not one of {', '.join(equation6.DIVISORS)}")
        problem_set = load_problems(problems, limit=limit)
        recipe = Recipe(
            prompt=prompt or problem_set.prompt,
            steps=steps,
            prompts=prompts,
            generations=generations,
            updates=updates,
            micro_batch=micro_batch or max(1, prompts * generations // updates),
            max_tokens=max_tokens,
            learning_rate=learning_rate,
            share=share,
            per=per,
            seed=seed,
            temperature=temperature,
            thinking=thinking,
            bf16=bf16,
        )
        result = train(model, problem_set, recipe, options.out_folder(out), device=device, save_every=save_every)
    rewards = [line["reward"] for line in result["steps"] if "reward" in line]
    n = max(1, len(rewards) // 5)
    print(
        f"{len(result['steps'])} steps, {len(rewards)} rounds of sampling: mean reward {sum(rewards[:n]) / n:.3f} in "
        f"the first {n}, {sum(rewards[-n:]) / n:.3f} in the last {n}"
    )
    print(out / MODEL)


def main() -> None:
    """Run the command; as in `steerdec`, a usage error is one line and status 2."""
    usage_error: Any = typer.BadParameter.__mro__[1]
    try:
        status = app(standalone_mode=False)
    except usage_error as e:
        print(f"steerdec: {' '.join(e.format_message().split())}", file=sys.stderr)
        status = 2
    sys.exit(status if isinstance(status, int) else 0)
