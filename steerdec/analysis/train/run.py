"""Train a model on the forks of its own responses: `python -m steerdec.analysis.train`. Needs the extra `train`.

OUT/checkpoint-N has the state of the training, OUT/model the trained model in the dtype of the original one, and
OUT/training.json what was done, step by step. On Ctrl-C or SIGTERM, the training finishes its steps on the sampled
responses and saves; the same command then resumes it.
"""

from __future__ import annotations

import copy
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import steerdec
from steerdec.analysis.traces import loading, store
from steerdec.analysis.train.recipe import Recipe, Reward, data, end_ids, grpo_config
from steerdec.common.errors import AnalysisError, InputError
from steerdec.common.files import write_atomically
from steerdec.common.progress import RunProgress
from steerdec.grading.pool import GradingPool
from steerdec.problems.sets import ProblemSet

MODEL: Final = "model"
JSON: Final = "training.json"
_STATE: Final = "trainer_state.json"  # the last file written into a checkpoint
_KEPT: Final = {  # in training.json, by TRL's names; those of the sampling are given at the step right after it
    "reward": "reward",
    "loss": "loss",
    "entropy": "mean_entropy_nats",
    "fork_share": "fork_share",
    "grad_norm": "gradient_norm",
    "frac_reward_zero_std": "share_of_prompts_without_signal",
    "completions/mean_length": "mean_response_tokens",
    "completions/clipped_ratio": "cut_off",
    "clip_ratio/region_mean": "clipped_ratio",
}


def train(
    model: str, problem_set: ProblemSet, recipe: Recipe, out: Path, *, device: str | None = None, save_every: int = 50
) -> dict[str, Any]:
    """Train, from the state in OUT; return the content of training.json.

    Raises:
        InputError, AnalysisError, ModelError, JournalError: one line each.
        KeyboardInterrupt: it was interrupted; OUT has its last step.
    """
    recipe.check()
    try:
        version("trl")
    except PackageNotFoundError:
        raise InputError("trl is not installed; it comes with `pip install steerdec[train]`") from None
    settings = {
        "analysis": "train",
        "model": model,
        "problems": problem_set.name,
        "problems_sha256": problem_set.sha256,
    }
    with store.opened(out, settings | asdict(recipe)):
        loaded = loading.load(model, dtype="float32", device=device)
        rows = data(problem_set, recipe, loaded)
        ends = end_ids(loaded, recipe.prompt)
        own = copy.deepcopy((loaded.model.config, loaded.model.generation_config))
        loaded.model.generation_config.eos_token_id = ends
        loaded.model.requires_grad_(True).train()
        with GradingPool(workers=1) as pool:
            reward = Reward(problem_set, loaded.tokenizer, ends, recipe.prompt, pool)
            history = run_steps(loaded, rows, reward, recipe, out, save_every)
        loaded.model.config, loaded.model.generation_config = own  # the trainer has changed some of these
        dtype = _save(loaded, out / MODEL)
        record = {
            "steerdec": steerdec.__version__,
            "versions": {name: version(name) for name in ("torch", "transformers", "trl", "accelerate")},
            "device": str(loaded.device),
            "settings": settings | asdict(recipe),
            "saved_dtype": dtype,
            "steps": history,
        }
        write_atomically(out / JSON, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return record


def run_steps(
    loaded: loading.Loaded, rows: Any, reward: Any, recipe: Recipe, out: Path, save_every: int
) -> list[dict[str, Any]]:
    """Run the missing steps; return the measurements of all. Raises AnalysisError, KeyboardInterrupt."""
    from transformers import PrinterCallback, ProgressCallback

    from steerdec.analysis.train.fork_grpo import ForkGRPOTrainer

    whole_rounds = -(-save_every // recipe.updates) * recipe.updates  # a checkpoint does not include sampled responses
    trainer = ForkGRPOTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        reward_funcs=reward,
        train_dataset=rows,
        args=grpo_config(recipe, out, on_cpu=loaded.device.type == "cpu", save_every=whole_rounds),
        per=recipe.per,
    )
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    last = last_checkpoint(out)
    with RunProgress(recipe.steps, _step_of(last), "steps") as progress, _stopping() as stopped:
        trainer.add_callback(_watch(progress, stopped, recipe.updates))
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if trainer.state.global_step < recipe.steps:
        raise KeyboardInterrupt
    return [
        {"step": line["step"], "seconds": line.get("step_time")}
        | {ours: line[theirs] for theirs, ours in _KEPT.items() if theirs in line}
        for line in trainer.state.log_history
        if "loss" in line
    ]


def last_checkpoint(out: Path) -> Path | None:
    """Return the checkpoint with the most steps; incomplete ones are removed."""
    whole = []
    for folder in out.glob("checkpoint-*"):
        try:
            json.loads((folder / _STATE).read_bytes())
            whole.append(folder)
        except (OSError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
    return max(whole, key=_step_of, default=None)


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _watch(progress: RunProgress, stopped: list[int], updates: int) -> Any:
    """Show progress, and end an interrupted training after the last step on the sampled responses."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy here
        tokens = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.tokens = state.num_input_tokens_seen

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.advance(1, int(state.num_input_tokens_seen - self.tokens))
            self.tokens = state.num_input_tokens_seen
            if stopped and state.global_step % updates == 0:
                control.should_save = control.should_training_stop = True

    return Watch()


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """Yield a list that receives the first SIGINT or SIGTERM; a second one interrupts at once."""
    got: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        if got:
            raise KeyboardInterrupt
        got.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _save(loaded: loading.Loaded, folder: Path) -> str:
    """Write the model under another name, then move it into place; return its dtype, which is the original model's."""
    import torch
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(loaded.folder).dtype or torch.float32
    fresh = folder.with_name(folder.name + ".new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        loaded.model.to(stored).eval().save_pretrained(fresh)
        loaded.tokenizer.save_pretrained(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except OSError as e:
        raise AnalysisError(f"{folder} cannot be written ({e.strerror})") from None
    return str(stored).removeprefix("torch.")
