"""The credit rules of two papers as they are in their code, for comparison and for their recipes.

Both keep their own weights when none are given. What an unscored reward means is said in `closeup.rl.advantages`.
"""

from __future__ import annotations

import numpy as np

from closeup.rl.credit import Array, GroupRewards
from closeup.rl.returns import Weights, check_exactly, normalised, to_steps, weight_of

LOVE_R1_WEIGHTS: Weights = {"answer": 1.0, "format": 1.0}
LONGVILA_R1_WEIGHTS: Weights = {"answer": 0.9, "format": 0.1}


def love_r1(
    group: GroupRewards,
    weights: Weights = LOVE_R1_WEIGHTS,
    *,
    answer: str = "answer",
    format: str = "format",
    zoom: str | None = "zoom",
    eps: float = 1e-4,
) -> Array:
    """LOVE-R1's decoupled RFT: accuracy + format of each step, normalised over the rollouts at that step.

        A[i,t] = (r[i,t] - mean_t r) / (std_t r + eps),  r[i,t] = w_answer accuracy[i,t] + w_format format[i,t]

    Accuracy of a step: 0 where the format reward is 0; else its answer reward; else, for a look whose gold windows are
    known, its zoom reward (LOVE-R1's grounding samples: 1 if the clip overlaps a window); else the accuracy of the next
    step: a look is as good as the answer it led to. `zoom=None` credits every look by its answer. Steps that do not
    count (`credit.masked_second_zoom`) are left out of mean and std; a rollout that is alone gets 0. The paper's
    weights are 1 and 1, and its two defects are not reproduced (step 2 trained with the advantages of step 1; a message
    with neither prefix keeps its format reward, which is for the format reward to say).

    A step without a format reward, or without an accuracy although w_answer is not 0, is not scored: 0, and left out.

    Raises:
        ValueError: weights other than those of `answer` and `format`; a stream that the group does not have.
    """
    check_exactly(weights, (answer, format))
    correct, form = group.stream(answer), group.stream(format)
    looked = np.full_like(correct, np.nan) if zoom is None else group.stream(zoom)
    accuracy = np.full_like(correct, np.nan)
    following = np.full(len(correct), np.nan)
    for t in reversed(range(correct.shape[1])):
        own = np.where(np.isnan(correct[:, t]), looked[:, t], correct[:, t])
        own = np.where(np.isnan(own), following, own)
        following = np.where(form[:, t] == 0, 0.0, own)
        accuracy[:, t] = np.where(group.reached[:, t], following, np.nan)
    rewards = weight_of(weights, format) * form
    if weight_of(weights, answer):
        rewards = rewards + weight_of(weights, answer) * accuracy
    have = ~np.isnan(rewards)
    return normalised(np.where(have, rewards, 0.0), have, eps)


def longvila_r1(
    group: GroupRewards,
    weights: Weights = LONGVILA_R1_WEIGHTS,
    *,
    answer: str = "answer",
    format: str = "format",
    eps: float = 1e-6,
) -> Array:
    """LongVILA-R1's rule: 0.9 accuracy + 0.1 format, one number per episode, (r_i - mean r) / (std r + eps).

    Chen et al. 2025 (LongVILA-R1), section 4.2, eq. 2; eps and the Bessel correction are those of its code (EasyR1's
    GRPO). The paper is single-turn. Over several steps, accuracy is the sum of the answer rewards (there is one) and
    format the mean of the format rewards, so that the number stays in [0, 1]. An episode without a reward in both
    streams is not scored: 0, and left out. Raises as `love_r1`.
    """
    check_exactly(weights, (answer, format))
    correct, form = group.stream(answer), group.stream(format)
    answered, formed = ~np.isnan(correct), ~np.isnan(form)
    accuracy = np.where(answered, correct, 0.0).sum(axis=1)
    share = np.where(formed, form, 0.0).sum(axis=1) / np.maximum(formed.sum(axis=1), 1)
    have = np.asarray(answered.any(axis=1) & formed.any(axis=1))
    numbers = np.where(have, weight_of(weights, answer) * accuracy + weight_of(weights, format) * share, 0.0)
    return to_steps(normalised(numbers, have, eps), group)
