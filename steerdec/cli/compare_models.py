"""`steerdec compare-models`: its options and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from steerdec.cli import analysis_options as cli
from steerdec.cli import options
from steerdec.cli.options import exit_on_known_errors

SAMPLES = 16  # filled in by `compare`, which imports torch


def compare_models(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The earlier model: a folder, a hub id, or SmolLM2-135M-Instruct.")
    ],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The later model, of the same architecture.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the page; resumed if it exists.")],
    problems: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A problem set by name, hub:OWNER/NAME, gym:TASK, or a JSONL or Parquet file with problem, answer. "
            "Default: compare only the weights.",
            show_default=False,
        ),
    ] = None,
    limit: options.Limit = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, metavar="K", help=f"Responses of TUNED to each problem. Default: {SAMPLES}."),
    ] = None,
    seed: cli.Seed = None,
    max_tokens: cli.MaxTokens = None,
    temperature: cli.Temperature = None,
    prompt: options.Prompt = None,
    thinking: options.Thinking = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Dtype of the scores: float32, bfloat16, or float16. Default: float32 without a GPU, else as stored.",
        ),
    ] = None,
    device: cli.Device = None,
) -> None:
    """Show what training changed: the entropies of the same tokens under two models, and the weights themselves.

    TUNED answers the problems, and both models score its tokens by teacher forcing: overlap of the top 20%, change of
    entropy along the base's percentiles. Then it reads both checkpoints in chunks: share unchanged, rank and size of
    the change. Writes DIR/compare-models.html and DIR/compare-models.json. If it is interrupted, the same command
    resumes it.

    Examples:

    steerdec compare-models Qwen/Qwen3-8B-Base checkpoints/step-800 --problems math500 --out compared/step-800

    steerdec compare-models Qwen/Qwen3-8B-Base checkpoints/step-800 --out compared/weights
    """
    with exit_on_known_errors(f"what is done is in {out}; the same command continues from there"):
        from steerdec.analysis.compare.run import compare_models as make
        from steerdec.analysis.compare.run import resolve
        from steerdec.analysis.traces.source import Source

        requested = Source(
            model=tuned,
            problems=problems,
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
        pair = resolve(base, requested)
        page, result = make(pair, options.out_folder(out))
    for line in findings(result):
        print(line)
    print(page)


def findings(result: dict[str, Any]) -> list[str]:
    """Summarize the result in a few lines."""
    lines = []
    if (entropy := result["entropy"]) is not None:
        pooled, each, mean = entropy["pooled"], entropy["per_response"], entropy["mean"]["change_nats"]
        lines += [
            f"{entropy['tokens']} tokens of {entropy['responses']} responses; top 20% by entropy that both share: "
            f"{_percent(pooled['value'])} pooled (chance {100 * pooled['chance']:.1f}%, the paper's "
            f"{100 * entropy['paper_overlap']:.2f}%), {_percent(each['value'])} per response (chance "
            f"{100 * each['chance']:.1f}%)",
            f"mean change of entropy {_interval(mean, 1, '.4f')} nats",
        ]
    weights = result["weights"]
    total, stored = weights["total"], ", ".join(weights["stored_dtypes"])
    within = ", ".join(f"{100 * share:.2f}% within {t}" for t, share in total["within"].items() if t != "0")
    relative = total["relative_change"]
    lines.append(
        f"stored as {stored}: {100 * total['bit_equal']:.2f}% of {total['parameters']} parameters equal bit for bit, "
        f"{within}; relative change {'none' if relative is None else f'{relative:.3g}'}"
    )
    return lines


def _percent(value: dict[str, Any]) -> str:
    return _interval(value, 100, ".1f", "%")


def _interval(value: dict[str, Any], scale: float, form: str, unit: str = "") -> str:
    ends = value["ci95"]
    interval = "" if ends is None else f" [{scale * ends[0]:{form}}, {scale * ends[1]:{form}}]"
    return f"{scale * value['value']:{form}}{unit}{interval}"
