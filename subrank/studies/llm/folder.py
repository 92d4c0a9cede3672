"""A language model from a folder in Hugging Face layout as the one that is asked; its probabilities are exact.

Where a question wants a number on each line, the lines' beginnings are given (`1<tab>`, `2<tab>`, ...) and only the
number is left to the model: the most probable digit is taken, and the log-probabilities of all of them are kept. So it
always answers, and what it says is worth what the scores say.
"""

import threading
from pathlib import Path

import torch

from sae_core.data.reading import as_chat
from sae_core.errors import UserError
from sae_core.model.fingerprint import weights_digest
from sae_core.model.generation import Sampling, generate
from sae_core.model.language_model import LanguageModel, load_model
from subrank.studies.llm.questions import Piece, Question, Reply


class Folder:
    """Answers from a model in this process, one at a time."""

    def __init__(self, folder: Path, *, device: str | torch.device | None = None):
        self.model = load_model(folder, device=device)
        self.name, self.place = f"{folder.name} {weights_digest(self.model.bridge.original_model)[:12]}", "this process"
        self._lock = threading.Lock()
        self._digits = [_digit(self.model, value) for value in range(10)]
        if len({*self._digits}) < 10:
            raise UserError(f"the tokens of {folder} do not tell digits apart; give another model to --llm")

    def answer(self, question: Question) -> Reply:
        """What the model says; no answer where the question is longer than it can read."""
        model = self.model
        text = as_chat(model, question.text, reply=True) if model.tokenizer.chat_template else question.text + "\n\n"
        prompt = model.with_bos(model.to_ids(text))
        if len(prompt) + question.longest > model.n_ctx:
            return Reply("", problem=f"{len(prompt)} tokens are too many for a model that reads {model.n_ctx}")
        with self._lock:
            if question.n:
                return self._levels(prompt, question)
            (ids,) = generate(model, [prompt], question.longest, seed=0, sampling=Sampling(0.0))
        return Reply(model.tokenizer.decode(ids))

    @torch.no_grad()
    def _levels(self, prompt: list[int], question: Question) -> Reply:
        from transformers import DynamicCache

        model, cache, seen, pieces = self.model, DynamicCache(), 0, list[Piece]()
        digits = torch.tensor(self._digits[: question.top + 1], device=model.device)
        following = prompt
        for number in range(1, question.n + 1):
            beginning = f"{number}\t" if number == 1 else f"\n{number}\t"
            following = [*following, *model.to_ids(beginning)]
            tokens = torch.tensor([following], device=model.device)
            places = torch.arange(seen, seen + len(following), device=model.device)[None]
            seen += len(following)
            h = model.extend(tokens, cache, torch.ones(1, seen, dtype=torch.long, device=model.device), places)
            log_p = model.unembed(h[:, -1])[0].double().log_softmax(-1)[digits]
            best = int(log_p.argmax())
            pieces += [(beginning, {}), (str(best), {str(v): p for v, p in enumerate(log_p.tolist())})]
            following = [self._digits[best]]
        return Reply("".join(text for text, _ in pieces), tuple(pieces))


def _digit(model: LanguageModel, value: int) -> int:
    """The token of a digit behind a tab."""
    before, both = model.to_ids("1\t"), model.to_ids(f"1\t{value}")
    return both[len(before)] if both[: len(before)] == before and len(both) > len(before) else -1
