"""How well the unedited model does a task: the first thing that every result states."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.metrics import bootstrap_estimate, logit_difference, resampled
from editing.tasks.pairs import PromptPairs, at_end
from sae_core.estimate import Estimate
from sae_core.model.language_model import LanguageModel

PROMPTS_AT_ONCE = 256


@dataclass(frozen=True)
class TaskScore:
    """What the unedited model does on the clean prompts."""

    accuracy: Estimate
    """Share of prompts on which the answer has a higher logit than the wrong one.

    Its interval is the wider of the bootstrap's and Wilson's: where every prompt is right the bootstrap sees no
    uncertainty, and Wilson's takes prompts of one template for independent.
    """
    top1: float
    """Share on which the answer is the argmax over the whole vocabulary."""
    logit_difference: Estimate
    """Mean of logit(answer) - logit(wrong one), with its bootstrap interval."""
    n: int

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "batch vocab"],
        answer: Int[Tensor, "batch"],
        wrong: Int[Tensor, "batch"],
        weights: Float[Tensor, "resamples batch"],
    ) -> "TaskScore":
        """The score of logits at the prompts' ends; `weights` are those of `resampled`, a row to each resample."""
        answer = answer.to(logits.device)
        difference = logit_difference(logits, answer, wrong.to(logits.device))
        right = difference > 0
        accuracy, wilson = bootstrap_estimate(right.double(), weights), wilson_interval(int(right.sum()), len(right))
        return cls(
            accuracy=Estimate(
                accuracy.value, max(0.0, min(accuracy.low, wilson[0])), min(1.0, max(accuracy.high, wilson[1]))
            ),
            top1=(logits.argmax(-1) == answer).double().mean().item(),
            logit_difference=bootstrap_estimate(difference, weights),
            n=len(right),
        )

    def sentence(self) -> str:
        """The score in words."""
        accuracy, difference = self.accuracy, self.logit_difference
        if accuracy.value < 0.6 or self.top1 < 0.05:
            verdict = "does not do"
        else:
            verdict = "does" if accuracy.value >= 0.9 and self.top1 >= 0.5 else "barely does"
        return (
            f"the model itself {verdict} this task: right answer above the wrong one on {accuracy.value:.1%} "
            f"of {self.n} prompts (95% interval {accuracy.low:.1%} to {accuracy.high:.1%}), answer on top of the "
            f"vocabulary on {self.top1:.1%}, mean logit difference {difference.value:+.2f} "
            f"({difference.low:+.2f} to {difference.high:+.2f})"
        )


def wilson_interval(n_right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval for a share: the shares p with |n_right/n - p| <= 1.96 sqrt(p (1 - p) / n)."""
    from scipy.stats import binomtest  # slow to import

    low, high = binomtest(n_right, n).proportion_ci(method="wilson")
    return float(low), float(high)


@torch.no_grad()
def end_logits(
    model: LanguageModel, tokens: Int[Tensor, "batch pos"], end: Int[Tensor, "batch"]
) -> Float[Tensor, "batch vocab"]:
    """The unedited model's logits at the prompts' ends, `PROMPTS_AT_ONCE` prompts at a time."""
    last, parts = model.sites()[-1], []
    for rows in torch.arange(len(tokens)).split(PROMPTS_AT_ONCE):
        parts.append(model.unembed(at_end(model.record(tokens[rows], [last])[last], end[rows])))
    return torch.cat(parts)


def task_score(model: LanguageModel, pairs: PromptPairs) -> TaskScore:
    """The model's own score on `pairs`; intervals by the bootstrap over templates, then prompts."""
    logits = end_logits(model, pairs.clean, pairs.end)
    return TaskScore.of(logits, pairs.answer, pairs.rival, resampled(pairs.groups, seed=0))
