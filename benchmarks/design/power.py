"""The smallest effect that a planned run can detect, and what the run costs. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..stats.comparisons import minimum_detectable_effect

# Defaults: Qwen3-8B on AIME'24 and '25 as arXiv 2506.01939 reports it (71%), many problems always or never solved.
ACCURACY = 0.71
ACCURACY_SD = 0.29
EFFECT_SD = 0.10


def usual_sd(p_bar: float) -> float:
    """Return the default spread of accuracies at another mean: the same share of the largest spread possible."""
    return ACCURACY_SD * math.sqrt(p_bar * (1 - p_bar) / (ACCURACY * (1 - ACCURACY)))


@dataclass(frozen=True)
class Plan:
    """Smallest true differences seen with 80% power by one two-sided 5% test, and the cost of all arms."""

    mde_these_problems: float  # the effect is the same on every problem, or no others are meant
    mde_problems_like_these: float  # the effect varies over problems with `effect_sd`
    samples: int
    tokens: float  # expected, nan if the mean length is not given


def plan(
    n_problems: int,
    k: int,
    arms: int,
    *,
    p_bar: float = ACCURACY,
    p_sd: float = ACCURACY_SD,
    effect_sd: float = EFFECT_SD,
    mean_tokens: float = np.nan,
) -> Plan:
    """Return the minimum detectable effect of one arm against the baseline, and the cost of all `arms` arms.

    `arms` includes the baseline. A sample of a problem with accuracy p has variance p(1-p), on average v = p_bar (1 -
    p_bar) - p_sd^2, taken to be the same in both arms. The standard error of the mean difference over n problems is
    then

        these problems:       sqrt(2 v / (k n)), normal;
        problems like these:  sqrt((effect_sd^2 + 2 v / k) / n), Student with n - 1 degrees of freedom.

    No amount of sampling takes the second below effect_sd / sqrt(n): there only problems help. Holm's correction, which
    requires p < .05 / m of the most significant of m claims, is not included.

    Args:
        p_bar: mean over problems of the baseline's accuracy.
        p_sd: standard deviation over problems of the baseline's accuracy.
        effect_sd: standard deviation over problems of the true effect.
        mean_tokens: expected tokens of one sample.

    Raises:
        ValueError: an impossible value; one line that names it.
    """
    for name, count in (("n_problems", n_problems), ("k", k), ("arms", arms)):
        if count < 1:
            raise ValueError(f"{name} is {count}; at least 1 is allowed")
    v = p_bar * (1 - p_bar) - p_sd**2
    if not 0 <= p_bar <= 1 or v < 0:
        raise ValueError(f"p_sd is {p_sd}, impossible with p_bar {p_bar}; p_sd^2 <= p_bar (1 - p_bar) is allowed")
    if effect_sd < 0:
        raise ValueError(f"effect_sd is {effect_sd}; 0 or more is allowed")
    within = 2 * v / k
    these = np.sqrt(within / n_problems)
    like_these = np.sqrt((effect_sd**2 + within) / n_problems) if n_problems > 1 else np.nan
    samples = n_problems * k * arms
    return Plan(
        mde_these_problems=minimum_detectable_effect(float(these), np.inf),
        mde_problems_like_these=minimum_detectable_effect(float(like_these), n_problems - 1.0),
        samples=samples,
        tokens=samples * mean_tokens,
    )
