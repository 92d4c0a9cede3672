"""A language model behind an endpoint that speaks OpenAI's chat completions, as vLLM and `transformers serve` do.

What fails for a while (429, 5xx, timeouts, damaged JSON) is tried again, after as long as `Retry-After` says or else
twice as long each time. A parameter that the server refuses by its name is left out from then on: some tell no
probabilities. The key is read from the environment, sent, and replaced in all that comes back.
"""

import os
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

import httpx

from sae_core.errors import UserError
from subrank.studies.llm.questions import Piece, Question, Reply

KEY = "OPENAI_API_KEY"
TRIES, LONGEST_WAIT = 5, 60.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPTIONAL = ("top_logprobs", "logprobs", "temperature", "max_tokens")
_FATAL = {401: f"the key in {KEY} is not accepted", 403: "access is denied", 404: "there is no such model or address"}


def check_address(url: str) -> None:
    """Raise `UserError` for an address that no endpoint can have, or that holds a password."""
    try:
        parts = urlparse(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise UserError(f"{url!r:.80} is no address; an endpoint reads like http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(f"the address of an endpoint would be written down with its secrets; give the key in {KEY}")


class Endpoint:
    """Answers from a server; the same question has the same answer, as far as the server keeps to temperature 0."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        timeout: float = 120.0,
        first_wait: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ):
        check_address(url)
        self.name, self.place = name, url.rstrip("/")
        self._key, self._first_wait, self._sleep = os.environ.get(KEY, "").strip(), first_wait, sleep
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{KEY} holds characters that no key has; set it again")
        self._refused: frozenset[str] = frozenset()
        self._how: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {self._key}"} if self._key else {},
            "timeout": timeout,
            "trust_env": urlparse(url).hostname not in _LOOPBACK,  # no proxy leads there
            "verify": urlparse(url).scheme == "https",
        }

    def answer(self, question: Question) -> Reply:
        """What the server answers, or why it does not; raises `UserError` where it never will."""
        problem, tries = "", 0
        while tries < TRIES:
            sent = self._request(question)
            try:
                response = httpx.post(f"{self.place}/chat/completions", json=sent, **self._how)
            except httpx.HTTPError as error:
                problem, wait = f"{type(error).__name__}: {self._without_key(str(error))}", None
            else:
                if response.status_code == 200 and (reply := self._reply(response)):
                    return reply
                body = self._body(response)
                problem = f"HTTP {response.status_code}: {' '.join(body.split())[:200]}"
                if response.status_code in _FATAL:
                    raise UserError(f"{self.place}: {_FATAL[response.status_code]} ({problem})")
                if response.status_code in (400, 422) and self._leaves_out(body, sent):
                    continue
                if response.status_code not in (200, 408, 409, 429) and response.status_code < 500:
                    break
                wait = _seconds(response.headers.get("Retry-After", ""))
            tries += 1
            if tries < TRIES:
                self._sleep(min(LONGEST_WAIT, self._first_wait * 2 ** (tries - 1) if wait is None else wait))
        return Reply("", problem=problem)

    def _request(self, question: Question) -> dict[str, Any]:
        request = {"temperature": 0, "max_tokens": question.longest}
        request |= {"logprobs": True, "top_logprobs": 20} if question.n else {}
        request = {name: value for name, value in request.items() if name not in self._refused}
        return {"model": self.name, "messages": [{"role": "user", "content": question.text}], **request}

    def _leaves_out(self, body: str, sent: dict[str, Any]) -> bool:
        """Whether the server names parameters of what was sent that it does not take; they are not sent again.

        Of requests that run side by side each may be the first to be told.
        """
        named = {name for name in _OPTIONAL if name in sent and re.search(rf"\b{name}\b", body)}
        self._refused |= named
        return bool(named)

    def _body(self, response: httpx.Response) -> str:
        return self._without_key(response.text)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _reply(self, response: httpx.Response) -> Reply | None:
        """The answer in a response; None where it is damaged."""
        try:
            choice = httpx.Response(200, text=self._body(response)).json()["choices"][0]
            text = choice["message"].get("content") or ""
            if not isinstance(text, str):
                return None
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        text = _sound(text)
        try:
            return Reply(text, tuple(map(_piece, (choice.get("logprobs") or {}).get("content") or ())))
        except (ValueError, LookupError, TypeError, AttributeError):
            return Reply(text)


def _piece(token: dict[str, Any]) -> Piece:
    tops = [token, *(token.get("top_logprobs") or ())]
    return _sound(token["token"]), {_sound(top["token"]): max(float(top["logprob"]), -1e4) for top in tops}


def _sound(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON may hold and no file can."""
    return text.encode(errors="replace").decode()


def _seconds(text: str) -> float | None:
    return float(text) if text.replace(".", "", 1).isdecimal() else None
