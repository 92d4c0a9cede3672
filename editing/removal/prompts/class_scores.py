"""How well a model tells two classes of prompts apart: scores read off logits, and AUROCs of the scores.

The score of a prompt is s = logit(yes) - logit(no). A pooled AUROC of 0.5 does not show that the class is gone: an
edit can leave scores whose sign depends on the sentence, which cancel over all prompts. Hence the group-conditional
AUROC, 0.5 + mean over groups of |AUROC_g - 0.5|, beside it. By chance alone it is a little above 0.5.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from editing.metrics import auroc, aurocs
from editing.removal.prompts.resampling import bootstrap_weights
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from editing.tasks.score import TaskScore, end_logits
from sae_core.model.language_model import LanguageModel


def scores_of(prompts: TwoClassPrompts, logits: Float[Tensor, "*trials batch vocab"]) -> Float[Tensor, "*trials batch"]:
    """logit(yes) - logit(no), from logits at the prompts' ends."""
    yes, no = (ids.to(logits.device).expand(logits.shape[:-1])[..., None] for ids in (prompts.yes, prompts.no))
    return (logits.gather(-1, yes) - logits.gather(-1, no))[..., 0]


def answer_probabilities(
    prompts: TwoClassPrompts, logits: Float[Tensor, "batch vocab"]
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """P(right answer) and P(wrong answer) at the prompts' ends."""
    yes, no = (logits.gather(-1, ids.to(logits.device)[:, None])[:, 0] for ids in (prompts.yes, prompts.no))
    total = logits.logsumexp(-1)
    yes, no, positive = (yes - total).exp(), (no - total).exp(), prompts.positive.to(logits.device)
    return torch.where(positive, yes, no), torch.where(positive, no, yes)


def left_within(prompts: TwoClassPrompts, scores: Float[Tensor, "trials batch"]) -> Float[Tensor, "trials"]:
    """Capability left within single groups: 2 mean over groups of |AUROC - 0.5|; by chance alone a little above 0."""
    areas = [aurocs(scores[:, group], prompts.positive[group]) for group in prompts.groups_of_both_classes()]
    return 2 * (torch.stack(areas) - 0.5).abs().mean(0)


def model_score(model: LanguageModel, prompts: TwoClassPrompts) -> tuple[TaskScore, float]:
    """The unedited model's accuracy over both classes, and its AUROC."""
    logits = end_logits(model, prompts.tokens, prompts.end).cpu()
    right = torch.where(prompts.positive, prompts.yes, prompts.no)
    wrong = torch.where(prompts.positive, prompts.no, prompts.yes)
    score = TaskScore.of(logits, right, wrong, bootstrap_weights(prompts, seed=0))
    return score, auroc(scores_of(prompts, logits), prompts.positive)
