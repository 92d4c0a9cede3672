"""A headless Chromium for tests: the DevTools protocol over two pipes, with nothing but the standard library."""

import base64
import itertools
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser on this machine, if there is one."""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--password-store=basic",
    "--remote-debugging-pipe",
)


BOX = "(r => [r.x, r.y, r.width, r.height])(e.getBoundingClientRect())"
"""For `Page.all`: where an element is."""


class Chromium:
    """The browser's end of the pipes; `page()` opens tabs."""

    def __init__(self, read: int, write: int):
        self._read, self._write = read, write
        self._ids = itertools.count(1)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """The result of a command; events that arrive before it are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while True:
            answer = self._next(end - time.monotonic())
            if answer.get("id") != number:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def _next(self, timeout: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(timeout, 0))[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has gone")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def page(self, width: int = 1400, height: int = 900) -> "Page":
        """A new, empty tab."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        page.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str):
        self.browser, self.session = browser, session

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file from disk and wait until the page says that it is ready."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.wait("document.documentElement.dataset.ready !== undefined")

    def reload(self) -> None:
        self.run("delete document.documentElement.dataset.ready")
        self.send("Page.reload")
        self.wait("document.documentElement.dataset.ready !== undefined")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "the script failed"))
        return answer["result"].get("value")

    def all(self, selector: str, script: str) -> list[Any]:
        """The value of an expression in `e` for every element that a selector finds."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => ({script}))")

    def wait(self, condition: str, timeout: float = 30) -> None:
        """Until an expression is true."""
        end = time.monotonic() + timeout
        while True:
            try:
                if self.run(f"Boolean({condition})"):
                    return
            except RuntimeError:  # the page is being replaced
                pass
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {condition}; errors: {self.errors()}")
            time.sleep(0.02)

    def click(self, selector: str, *, at: tuple[float, float] | None = None) -> None:
        """Press and release the mouse on an element's middle, or at a point of the page."""
        if at is None:
            self.all(selector, "e.scrollIntoView({block: 'nearest'})")
            x, y, width, height = self.all(selector, BOX)[0]
            at = x + width / 2, y + height / 2
        place = {"x": at[0], "y": at[1], "button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
        self.send("Input.dispatchMouseEvent", type="mousePressed", **place)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", **place)

    def press(self, key: str) -> None:
        """One key, named as in `KeyboardEvent.key`."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def errors(self) -> list[str]:
        """What the console has complained about."""
        self.run("0")  # events that are under way arrive before the answer
        names = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                names.append(params["exceptionDetails"].get("exception", {}).get("description", "an exception"))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                names.append(params["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                names.append(str(params["args"]))
            elif event["method"] == "Page.javascriptDialogOpening":
                names.append(f"a dialog: {params['message']}")
        return names

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """A browser with a profile of its own, gone at the end with all its processes."""
    assert CHROMIUM, "there is no Chromium on this machine"
    out_read, out_write = os.pipe()  # to the browser, which reads descriptor 3 and writes descriptor 4
    in_read, in_write = os.pipe()
    for end in (out_read, in_write):
        os.set_inheritable(end, True)
    quiet = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (0, 1, 2)]
    # out of the way first: one of the pipes may itself be descriptor 3 or 4
    moves = [(os.POSIX_SPAWN_DUP2, out_read, 103), (os.POSIX_SPAWN_DUP2, in_write, 104)]
    moves += [(os.POSIX_SPAWN_DUP2, 103, 3), (os.POSIX_SPAWN_DUP2, 104, 4)]
    moves += [(os.POSIX_SPAWN_CLOSE, n) for n in (103, 104)]
    flags = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = os.posix_spawn(CHROMIUM, flags, os.environ, file_actions=[*quiet, *moves], setsid=True)
    os.close(out_read)
    os.close(in_write)
    browser = Chromium(in_read, out_write)
    try:
        yield browser
    finally:
        try:
            browser.send("Browser.close", timeout=5)
        except (OSError, RuntimeError, TimeoutError):
            os.killpg(process, signal.SIGKILL)
        os.close(out_write)
        os.close(in_read)
        os.waitpid(process, 0)
