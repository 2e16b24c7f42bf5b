"""Build the organism's folder by one call: train it or take it from the cache, write model, tokenizer and problems."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import steerdec
from steerdec.common.cache import cache_folder
from steerdec.common.errors import AnalysisError, InputError, reason_of
from steerdec.common.files import FolderLock, exists, write_atomically
from steerdec.common.json import write_json
from steerdec.common.progress import RunProgress
from steerdec.organism import task, vocabulary
from steerdec.organism.checkpoint import load, save
from steerdec.organism.train import Size, Training, batch, new_model, optimizer_of, rate_at, step_loss, torch_threads

RECIPE: Final = 1  # raised when the code changes the weights, so that a cache of older ones is not taken
ABOUT: Final = "organism.json"
PROBLEMS: Final = "problems.jsonl"  # to measure on
CALIBRATION: Final = "calibration.jsonl"  # to calibrate on: other problems
USES: Final = {"measure": 64, "calibrate": 64, "evaluate": 256}  # held-out problems
_CHECKPOINT: Final = "checkpoint.pt"
_SAVE_EVERY: Final = 100


def settings(training: Training, size: Size) -> dict[str, Any]:
    """Return everything that decides the weights."""
    return {"recipe": RECIPE, "hint": task.HINT, "training": asdict(training), "size": asdict(size)}


def build(
    out: Path,
    *,
    training: Training | None = None,
    size: Size | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Path:
    """Write the organism to the folder `out`, trained now or taken from the cache; return `out`.

    A folder that already holds the same organism is left as it is.

    Raises:
        InputError: `out` exists and is something else.
        AnalysisError: the cache or `out` cannot be written.
        JournalError: another process is building it.
    """
    training, size = training or Training(), size or Size()
    wanted = settings(training, size)
    if exists(out):
        if about(out).get("settings") == wanted:
            return out
        raise InputError(f"--out: {out} exists and is not this organism; choose another folder")
    try:
        source = cached(training, size, on_step=on_step)
        fresh = out.with_name(f".{out.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, fresh)
        fresh.rename(out)
    except OSError as e:
        raise AnalysisError(f"{e.filename or out} cannot be written ({reason_of(e)})") from None
    return out


def cached(training: Training, size: Size, *, on_step: Callable[[int, float], None] | None = None) -> Path:
    """Return the cache's folder of the organism, building it there first if need be."""
    wanted = settings(training, size)
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
    target = cache_folder() / f"organism-{key}"
    if target.is_dir():
        return target
    work = target.with_name(f"{target.name}.building")
    work.mkdir(parents=True, exist_ok=True)
    with FolderLock(work):
        if target.is_dir():  # another process was building it
            return target
        model = trained(training, size, work / _CHECKPOINT, on_step=on_step)
        fresh = work / "model"
        shutil.rmtree(fresh, ignore_errors=True)
        write(fresh, model, wanted)
        fresh.rename(target)
        shutil.rmtree(work, ignore_errors=True)
    return target


def trained(
    training: Training, size: Size, checkpoint: Path, *, on_step: Callable[[int, float], None] | None = None
) -> Any:
    """Return the trained model, resuming from `checkpoint` if it exists."""
    with torch_threads(training.threads):
        model = new_model(size, training.seed)
        optimizer = optimizer_of(model, training)
        done = 0
        if (held := load(checkpoint)) is not None:
            model.load_state_dict(held["model"])
            optimizer.load_state_dict(held["optimizer"])
            done = int(held["step"])
        with RunProgress(training.steps, done, "steps") as progress:
            for step in range(done, training.steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(training, step)
                ids, lengths = batch(training, step)
                optimizer.zero_grad(set_to_none=True)
                loss = step_loss(model, ids, lengths, training.slices)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                progress.advance(1, int(lengths.sum()))
                if on_step is not None:
                    on_step(step, loss)
                if (step + 1) % _SAVE_EVERY == 0:
                    save(
                        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint
                    )
        return model.eval().requires_grad_(False)


def write(folder: Path, model: Any, wanted: dict[str, Any]) -> None:
    """Write a model that vLLM and transformers load, its tokenizer, and two problem files."""
    from transformers import GenerationConfig

    ids = vocabulary.IDS
    model.generation_config = GenerationConfig(
        bos_token_id=ids[vocabulary.START], eos_token_id=ids[vocabulary.END], pad_token_id=ids[vocabulary.PAD]
    )
    model.save_pretrained(folder)
    vocabulary.tokenizer().save_pretrained(folder)
    for name, use in ((PROBLEMS, "measure"), (CALIBRATION, "calibrate")):
        write_problems(folder / name, use)
    told = {"steerdec": steerdec.__version__, "torch": torch.__version__, "settings": wanted}
    write_json(folder / ABOUT, told)


def held_out(use: str) -> task.Problems:
    """Return the held-out problems for one of USES; no problem has two uses."""
    begin = sum(list(USES.values())[: list(USES).index(use)])
    drawn = task.problems(sum(USES.values()), held_out=True)
    return drawn.take(np.arange(begin, begin + USES[use]))


def write_problems(path: Path, use: str) -> None:
    """Write the held-out problems for one use as a benchmark's problem file."""
    batch = held_out(use)
    lines = [
        {"id": f"{use}-{i:04d}", "problem": batch.text(i), "answer": batch.answer(i), "kind": "number"}
        for i in range(len(batch))
    ]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))


def about(folder: Path) -> dict[str, Any]:
    """Return what an organism's folder says of itself; empty if it is not one."""
    try:
        found = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
