"""Run `steerdec compare-models`: two checkpoints of a model, by entropies of the same tokens and by weights.

Everything that can be wrong with the two models is checked before the folder is created. TUNED is loaded to sample and
to score, then BASE to score. Then the checkpoints are read in chunks. Two models are never in memory at once.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import steerdec
from steerdec import models
from steerdec.analysis import pages
from steerdec.analysis.compare import updates
from steerdec.analysis.compare.checkpoints import Checkpoint, Stored, comparable, fingerprint, read_checkpoint
from steerdec.analysis.compare.shift import PAPER_OVERLAP, shift
from steerdec.analysis.compare.update_rank import EXACT_SIDE, SKETCH
from steerdec.analysis.traces import loading, source
from steerdec.analysis.traces.scoring import Scores
from steerdec.analysis.traces.source import Resolved, Source
from steerdec.analysis.traces.store import Store, opened
from steerdec.analysis.traces.trace import Trace, prompt_ids
from steerdec.common.errors import InputError
from steerdec.common.json import write_json
from steerdec.common.progress import RunProgress
from steerdec.pages import charts, provenance
from steerdec.problems.sets import ProblemSet

PAGE: Final = "compare-models.html"
JSON: Final = "compare-models.json"
_TEMPLATE: Final = Path(__file__).parent / "compare.html.j2"
SAMPLES: Final = 16
UPDATES: Final = "updates"  # file names in the folder, without .jsonl
TUNED_SCORES: Final = "scores-tuned"
BASE_SCORES: Final = "scores-base"


@dataclass(frozen=True)
class Pair:
    """Two models that can be compared."""

    base: Checkpoint
    tuned: Checkpoint
    tensors: list[tuple[Stored, Stored]]
    resolved: Resolved | None  # None: compare only the weights


def resolve(base: str, requested: Source) -> Pair:
    """Inspect both models and fill in every default; `requested.model` is the later one. Nothing is written.

    Raises:
        InputError, ProblemError, PromptError: they cannot be compared, or not with these options; one line.
    """
    tuned = str(requested.model)
    folders, checkpoints, contexts = {}, {}, []
    for argument, name in (("BASE", base), ("TUNED", tuned)):
        with _named(argument):
            folders[argument] = models.fetch(name)
            ties, context = _ties_and_context(name, folders[argument])
            checkpoints[argument] = read_checkpoint(name, folders[argument], ties)
            contexts.append(context)
    pair = Pair(
        checkpoints["BASE"], checkpoints["TUNED"], comparable(checkpoints["BASE"], checkpoints["TUNED"]), resolved=None
    )
    if requested.problems is None:
        _refuse_options_without_problems(requested)
        return pair
    tokenizers: list[Any] = []
    for argument, name in (("BASE", base), ("TUNED", tuned)):
        with _named(argument):
            tokenizers.append(loading.load_tokenizer(name))
    loading.check_same_tokenizer(tokenizers[0], tokenizers[1], (base, tuned))
    resolved = source.resolve(replace(requested, samples=requested.samples or SAMPLES))
    _check_context(resolved, tokenizers[1], min(contexts))
    return replace(pair, resolved=resolved)


@contextmanager
def _named(argument: str) -> Iterator[None]:
    """Attribute an error about a model to that argument, and not to the --model of another command."""
    try:
        yield
    except (InputError, models.ModelError) as e:
        message = str(e).removeprefix("--model: ")
        raise InputError(message if message.startswith("--") else f"{argument}: {message}") from None


def _ties_and_context(name: str, folder: Path) -> tuple[dict[str, str], int]:
    """Return ({name: the tensor it is tied to}, longest sequence) of a model, from its configuration."""
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            ties = dict(AutoModelForCausalLM.from_config(config).all_tied_weights_keys)
    except (OSError, ValueError, KeyError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise InputError(f"{name} is not a causal language model that transformers knows ({reason})") from None
    return ties, int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**63 - 1)


def _refuse_options_without_problems(requested: Source) -> None:
    for name, value in asdict(requested).items():
        if name not in ("model", "device") and value is not None:
            raise InputError(f"--{name.replace('_', '-')} goes with --problems")


def _check_context(resolved: Resolved, tokenizer: Any, context: int) -> None:
    """Check that the longest prompt with its response fits both models, before loading them. Raises InputError."""
    requested = resolved.source
    prompts = (prompt_ids(tokenizer, str(requested.prompt), p, requested.thinking) for p in _set(resolved).problems)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if longest + (requested.max_tokens or 0) > context:
        raise InputError(
            f"--max-tokens: {requested.max_tokens} after a prompt of {longest} tokens; the models take at most "
            f"{context} (max_position_embeddings)"
        )


def compare_models(pair: Pair, out: Path) -> tuple[Path, dict[str, Any]]:
    """Do what is missing and write both files; return the page's path, and the JSON as a dict.

    Raises:
        InputError, AnalysisError, ProblemError, JournalError: one line each; what was done is kept.
    """
    settings: dict[str, Any] = {
        "analysis": "compare-models",
        "base": pair.base.name,
        "model": pair.tuned.name,
        "base_weights": fingerprint(pair.base),
        "model_weights": fingerprint(pair.tuned),
    }
    if pair.resolved is not None:
        settings |= pair.resolved.settings()
        with _named("TUNED"):
            loaded = source.load(pair.resolved)  # before the folder is created: the model may not fit, or not exist
    with opened(out, settings) as kept:
        entropy = None
        if pair.resolved is not None:
            traces = source.all_traces(pair.resolved, loaded, kept)
            tuned = source.all_scores(traces, loaded, kept, TUNED_SCORES)
            del loaded
            entropy = _entropy(pair.base.name, pair.resolved, traces, tuned, kept)
        content: dict[str, Any] = {
            "steerdec": steerdec.__version__,
            "base": pair.base.name,
            "tuned": pair.tuned.name,
            "settings": settings,
            "entropy": entropy,
            "weights": _weights(pair, kept),
        }
        write_json(out / JSON, content)
        pages.write_page(_TEMPLATE, _page(content, pair.resolved), out / PAGE)
    return out / PAGE, content


def _entropy(base: str, resolved: Resolved, traces: list[Trace], tuned: list[Scores], kept: Store) -> dict[str, Any]:
    """Score TUNED's traces with BASE as well, and compare the two."""
    _give_back()
    with _named("BASE"):
        loaded = loading.load(base, dtype=resolved.source.dtype, device=resolved.source.device)
    scores = source.all_scores(traces, loaded, kept, BASE_SCORES)
    dtype = str(loaded.dtype).removeprefix("torch.")
    del loaded
    _give_back()
    return {
        "dtype": dtype,
        "grades": dict(Counter(trace.grade for trace in traces)),
        "paper_overlap": PAPER_OVERLAP,
    } | asdict(shift(traces, scores, tuned, seed=resolved.source.seed or 0))


def _give_back() -> None:
    """Free the memory of a model that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _weights(pair: Pair, kept: Store) -> dict[str, Any]:
    """Compare every tensor; those compared earlier are read from their lines."""
    done = {key[0]: updates.of_line(line) for key, line in kept.lines(UPDATES).items()}
    missing = [(base, tuned) for base, tuned in pair.tensors if base.name not in done]
    with (
        kept.appending(UPDATES) as lines,
        RunProgress(len(pair.tensors), len(pair.tensors) - len(missing), "tensors") as progress,
    ):
        for base, tuned in missing:
            done[base.name] = updates.update(base, tuned)
            lines.append(updates.line(done[base.name]))
            progress.advance(1, 0)
    return {
        "stored_dtypes": pair.base.dtypes(),
        "tied": sorted({*pair.base.tied, *pair.tuned.tied}),
    } | updates.as_json([done[base.name] for base, _ in pair.tensors])


def _set(resolved: Resolved) -> ProblemSet:
    assert resolved.problem_set is not None, "resolve() asks for problems"
    return resolved.problem_set


def _page(content: dict[str, Any], resolved: Resolved | None) -> dict[str, Any]:
    entropy = content["entropy"]
    scale = None
    if entropy is not None:
        changes = [b[key] for b in entropy["bins"] for key in ("signed_nats", "signed_by_tuned_nats")]
        scale = charts.axis([0.0, *(x for c in changes for x in (c["value"], *(c["ci95"] or ())))], bins=4)
    return content | {
        "base_name": Path(content["base"]).name,
        "tuned_name": Path(content["tuned"]).name,
        "set_name": None if resolved is None else Path(_set(resolved).name).name,
        "scale": scale,
        "exact_side": EXACT_SIDE,
        "sketch": SKETCH,
        "provenance": provenance.rows(_provenance(content)),
    }


def _provenance(content: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"steerdec": content["steerdec"]} | content["settings"]
    if content["entropy"] is not None:
        rows |= {"dtype of the scores": content["entropy"]["dtype"]}
        rows |= {"grades": ", ".join(f"{n} {grade}" for grade, n in content["entropy"]["grades"].items())}
    rows["stored as"] = ", ".join(f"{d}, {n:,} parameters" for d, n in content["weights"]["stored_dtypes"].items())
    rows["tied, counted once"] = ", ".join(content["weights"]["tied"]) or "nothing is stored twice"
    return rows
