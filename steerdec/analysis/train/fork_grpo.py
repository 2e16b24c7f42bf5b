"""TRL's GRPO on forks, with the loss as a mean over forks. Imports trl: the extra `train`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from steerdec.analysis.train.equation6 import ALL, DIVISORS, FORKS

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")  # vLLM is not used here
    from trl import GRPOConfig, GRPOTrainer

__all__ = ["ForkGRPOTrainer", "GRPOConfig"]


class ForkGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # trl is untyped to mypy
    """GRPO with the loss of equation 6 of arXiv 2506.01939 (see `equation6`), where the batch is the micro-batch.

    TRL takes the quantile over a micro-batch, on all ranks, sums over the forks, and divides by the tokens of all
    micro-batches of a step. Here, the sum of a micro-batch is divided by its own number of forks, and the loss of a
    step is the mean over its micro-batches. With one micro-batch per step, that is equation 6 of the step.

    Args:
        per: divisor of the loss: FORKS, or ALL for TRL's own.

    Raises:
        ValueError: the configured loss has other terms than clipped policy gradients.
    """

    def __init__(self, *args: Any, per: str = FORKS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if per not in DIVISORS:
            raise ValueError(f"per: {per!r} is not one of {', '.join(DIVISORS)}")
        # These add terms that are not about forks alone, and cannot be scaled with the rest.
        if self.loss_type != "dapo" or self.beta != 0 or self._entropy_bonus_enabled or self.aux_loss_enabled:
            raise ValueError('the loss on forks takes loss_type="dapo", beta=0, no entropy bonus and no auxiliary loss')
        self._per = per
        self._chosen: Tensor | None = None

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        self._chosen = super().get_high_entropy_mask(entropies, mask, threshold)
        return self._chosen

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with (
            self.accelerator.autocast()
        ):  # around all passes at once, so that the weights are cast once and not for every token
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Do as TRL does; without a GPU only the responses go through the head, while TRL's takes the prompts too."""
        if input_ids.device.type != "cpu":
            result: tuple[Tensor, Tensor | None, Tensor | None] = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
            return result
        with self.accelerator.autocast():
            out = model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=logits_to_keep + 1
            )
        logp = torch.log_softmax(out.logits[:, :-1].float() / self.temperature, -1)
        own = logp.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0]
        with torch.no_grad():
            entropy = -torch.where(logp > -torch.inf, logp.exp() * logp, 0.0).sum(-1)
        return own, entropy, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._chosen = None  # stays None if every token counts
        loss: Tensor = super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        forks = (mask if self._chosen is None else self._chosen).sum().float()
        forks = self.accelerator.gather(forks).sum()
        training = self.model.training
        tokens = self.accelerator.gather(mask.sum().float()).sum()
        self._metrics["train" if training else "eval"]["fork_share"].append((forks / tokens.clamp(min=1)).item())
        if self._per == ALL:
            return loss
        # TRL's divisor; the numbers of ranks and of micro-batches per step are in both
        divisor = inputs["num_items_in_batch"].clamp(min=1) / (self.args.steps_per_generation if training else 1)
        scaled: Tensor = loss * divisor / forks.clamp(min=1)
        return scaled
