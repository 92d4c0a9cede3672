"""Language models that answer by a script: one that reads what it is asked, and a server that fails in given ways."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from subrank.studies.llm.questions import DETECT, EXPLAIN, FUZZ, SIMULATE, Question, Reply


class Oracle:
    """Explains by the token with the highest level, and expects a feature wherever its explanation's token is."""

    name, place = "oracle", "here"

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def answer(self, question: Question) -> Reply:
        self.asked.append(question)
        return Reply(oracle_says(question.text))


def oracle_says(text: str) -> str:
    """The right answer to a question."""
    if text.startswith(EXPLAIN[:200]):
        token = re.search(r"^(.*)\t9$", text.partition("<data>")[2], re.MULTILINE)
        return f"This feature is active on the token {token[1].strip()}"
    kind = next(kind for kind in (SIMULATE, DETECT, FUZZ) if text.startswith(kind))
    token = re.search(r"<explanation>\n.*?(\S+)\n</explanation>", text)[1]
    lines = re.findall(r"^\d+\t(.*)$", text.rpartition("<data>")[2], re.MULTILINE)
    marks = {SIMULATE: lambda line: 9 * (line.strip() == token), DETECT: lambda line: token in line.split()}
    marks[FUZZ] = lambda line: f"{token}</b>" in line
    return "\n".join(f"{number}\t{int(marks[kind](line))}" for number, line in enumerate(lines, 1))


def chat(text: str, **more: object) -> str:
    """The body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    return json.dumps({"object": "chat.completion", "choices": [choice]})


Script = Callable[[int, dict, dict], tuple[int, dict[str, str], str]]
"""Of the number of a request, its headers and its JSON: status, headers and body of the response."""


@contextmanager
def serving(script: Script) -> Iterator[tuple[str, list[dict]]]:
    """The address of a server on this machine, and the requests that it has had."""
    requests: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(request)
            status, headers, body = script(len(requests), dict(self.headers), request)
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body.encode())), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())
            except OSError:  # who asked did not wait
                pass

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
