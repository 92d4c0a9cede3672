"""Questions to a language model and its answers, each asked once: answers are kept as files, by what was asked of whom.

A run that is interrupted goes on where it was. Where nothing comes back, that is counted, not kept, and asked
again by the next run; where nothing comes back several times in a row, the run ends.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

from sae_core.codec import from_plain, to_plain
from sae_core.errors import UserError
from sae_core.files import read_json, write_json
from sae_core.progress import OnProgress, Progress, silent
from subrank.studies.llm.questions import Question, Reply

FOLDER = "answers"
IN_A_ROW = 10
"""Questions of a run without an answer after which it ends."""
LINES = 20
"""Times that it says how far it is, about."""
PER_TOKEN = 4
"""Characters of English in a token, about."""
VERSION = 2


class Asked(Protocol):
    """What answers questions."""

    name: str
    place: str
    """Where it is: models of one name at two places are two."""

    def answer(self, question: Question) -> Reply:
        """Its reply, or one with a problem; raises `UserError` where there will never be one."""
        ...


class Answers:
    """The answers of a language model, those in `folder` known already."""

    def __init__(self, asked: Asked, folder: Path | None = None, *, at_once: int = 4):
        self.asked, self.folder, self.at_once = asked, folder and folder / FOLDER, at_once
        self.n_asked = self.n_known = 0
        self.problems: list[str] = []
        self._memory: dict[str, Reply] = {}
        self._in_a_row, self._lock = 0, threading.Lock()

    def all(self, questions: Sequence[Question], stage: str, on_progress: OnProgress = silent) -> list[Reply]:
        """The reply to each question; raises `UserError` where the first, or many in a row, have none."""
        keys = [self._key(question) for question in questions]
        waiting = {key: question for key, question in zip(keys, questions, strict=True) if not self._known(key)}
        self.n_known += len({*keys}) - len(waiting)
        items, said = iter(waiting.items()), max(1, len(waiting) // LINES)
        replies = {key: self._memory[key] for key in keys if key in self._memory}
        for number, (key, reply) in enumerate(self._asked(items), 1):
            replies[key] = reply
            if number % said == 0:
                on_progress(Progress(f"{stage}: {number:,} answered", number, len(waiting)))
        return [replies[key] for key in keys]

    def n_unknown(self, questions: Sequence[Question]) -> int:
        """How many of them would be asked now."""
        return sum(not self._known(key) for key in {self._key(question) for question in questions})

    def _asked(self, items: Iterator[tuple[str, Question]]) -> Iterator[tuple[str, Reply]]:
        """Ask, the first question ever alone: what is wrong with the server shows on it."""
        if not self.n_asked:
            for key, question in items:
                yield key, self._ask(key, question)
                break
        with ThreadPoolExecutor(self.at_once) as pool:
            waiting = {pool.submit(self._ask, key, question): key for key, question in items}
            try:
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask(self, key: str, question: Question) -> Reply:
        reply = self.asked.answer(question)
        with self._lock:
            self.n_asked += 1
            self._in_a_row = self._in_a_row + 1 if reply.problem else 0
            if not reply.problem:
                self._memory[key] = reply
                if self.folder:
                    write_json(self.folder / f"{key}.json", {"model": self.asked.name} | to_plain(reply))
                return reply
            self.problems.append(reply.problem)
            if self._in_a_row == self.n_asked or self._in_a_row >= IN_A_ROW:
                raise UserError(
                    f"{self.asked.name} gives no answer ({reply.problem:.200}); "
                    "answers so far are kept, and the same command goes on from them"
                )
        return reply

    def _known(self, key: str) -> bool:
        """Whether a reply is known; one that is kept in a file is read, and a damaged file is none."""
        if key not in self._memory and self.folder and (self.folder / f"{key}.json").is_file():
            try:
                self._memory[key] = from_plain(Reply, read_json(self.folder / f"{key}.json"))
            except UserError:
                return False
        return key in self._memory

    def _key(self, question: Question) -> str:
        known = [VERSION, self.asked.name, self.asked.place, question.text, question.n, question.top]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


def cost(questions: Sequence[Question]) -> str:
    """How much is asked, in words, by about `PER_TOKEN` characters to a token."""
    read = sum(len(question.text) for question in questions) / PER_TOKEN
    written = sum(question.longest for question in questions)
    return f"at most {len(questions):,} questions, about {read:,.0f} tokens read and at most {written:,} written"
