"""Prompts in pairs: what an experiment about one behaviour is made of."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.metrics import logit_difference
from sae_core.models import LanguageModel


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Clean prompts, their minimally changed counterparts, and the two answers that tell them apart."""

    name: str
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    answer: Int[Tensor, "batch"]
    """The right next token of the clean prompt."""
    foil: Int[Tensor, "batch"]
    """The token to compare it with: the right one of the corrupted prompt."""
    rival: Int[Tensor, "batch"]
    """The wrong answer that the clean prompt itself suggests; the model's own score compares with it."""
    end: Int[Tensor, "batch"]
    """Position of the last prompt token, where answers are read; what follows is padding."""
    texts: tuple[str, ...] = ()
    """The clean prompts as text."""

    def __len__(self) -> int:
        return len(self.answer)


@dataclass(frozen=True)
class OwnScore:
    """What the unedited model does on the clean prompts."""

    accuracy: float
    """Share of prompts on which the answer has a higher logit than the wrong one."""
    top1: float
    """Share on which the answer is the argmax over the whole vocabulary."""
    logit_difference: float
    """Mean of logit(answer) - logit(wrong one)."""
    n: int

    def sentence(self) -> str:
        """The score in words."""
        if self.accuracy < 0.6 or self.top1 < 0.05:
            verdict = "does not do"
        else:
            verdict = "does" if self.accuracy >= 0.9 and self.top1 >= 0.5 else "barely does"
        return (
            f"the model itself {verdict} this task: right answer above the wrong one on {self.accuracy:.1%} "
            f"of {self.n} prompts, "
            f"answer on top of the vocabulary on {self.top1:.1%}, mean logit difference {self.logit_difference:+.2f}"
        )


def at_end(h: Float[Tensor, "batch pos d"], end: Int[Tensor, "batch"]) -> Float[Tensor, "batch d"]:
    """Rows of `h` at each prompt's last position."""
    return h[torch.arange(len(h), device=h.device), end.to(h.device)]


@torch.no_grad()
def own_score(model: LanguageModel, pairs: PromptPairs) -> OwnScore:
    """The model's own score on `pairs`, the first thing that every result states."""
    last = model.sites()[-1]
    logits = model.unembed(at_end(model.record(pairs.clean, [last])[last], pairs.end))
    answer, rival = pairs.answer.to(logits.device), pairs.rival.to(logits.device)
    difference = logit_difference(logits, answer, rival)
    return OwnScore(
        accuracy=(difference > 0).double().mean().item(),
        top1=(logits.argmax(-1) == answer).double().mean().item(),
        logit_difference=difference.mean().item(),
        n=len(pairs),
    )
