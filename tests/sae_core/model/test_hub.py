"""Models load from directories without the network, and a hub that does not answer is said within seconds."""

import http.server
import socket
import threading
import time

import pytest
from tiny import user_error, write_tiny

from sae_core.model import hub
from sae_core.model.hub import hub_answers
from sae_core.model.language_model import load_model


@pytest.fixture
def refused(monkeypatch):
    """Every attempt to reach the network fails and is counted."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("the tests have no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return attempts


@pytest.mark.parametrize("as_text", [True, False])
def test_loading_a_directory_asks_no_network(checkpoints, refused, as_text):
    folder = checkpoints["llama"]
    load_model(str(folder) if as_text else folder, device="cpu")
    assert refused == []
    assert not hub_answers("http://model-hub.invalid", seconds=1.0)
    assert len(refused) >= 1  # control: the guard does see attempts


def test_a_hub_name_without_hub_fails_within_seconds(monkeypatch, refused):
    monkeypatch.setattr(hub, "hub_answers", lambda endpoint: False)
    start = time.perf_counter()
    with user_error("nobody/no-such-model", "hub does not answer"):
        load_model("nobody/no-such-model", device="cpu")
    assert time.perf_counter() - start < 5
    assert refused == []


@pytest.fixture
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def test_hub_answers_is_quick_to_say_no(no_proxy):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        start = time.perf_counter()
        assert not hub_answers(f"http://127.0.0.1:{port}")  # nobody listens
        silent.listen()
        assert not hub_answers(f"http://127.0.0.1:{port}", seconds=0.2)  # connects, never replies
        assert time.perf_counter() - start < 3
    assert not hub_answers("")


def test_hub_answers_says_yes_to_any_reply(no_proxy, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            assert hub_answers(endpoint)
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
            assert not hub_answers(endpoint)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["./not-here", "/not/here", "a/b/c", "~/not-here-at-all"])
def test_a_missing_directory_is_named(refused, name):
    with user_error(name.strip("./~"), "no model directory"):
        load_model(name, device="cpu")
    assert refused == []


def test_directories_that_hold_no_model(tmp_path, refused):
    with user_error(str(tmp_path / "gone"), "no model directory"):
        load_model(tmp_path / "gone", device="cpu")
    with user_error(str(tmp_path), "config.json"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{")
    with user_error(str(tmp_path / "config.json"), "damaged, or not JSON"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with user_error(str(tmp_path), "could not be loaded"):
        load_model(tmp_path, device="cpu")
    assert refused == []


def test_a_directory_without_weights_or_with_damaged_ones(tmp_path, refused):
    folder = write_tiny(tmp_path / "model", "neox")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with user_error(str(folder), "could not be loaded"):
        load_model(folder, device="cpu")
    weights.unlink()
    with user_error(str(folder), "could not be loaded"):
        load_model(folder, device="cpu")
    assert refused == []


def test_a_directory_without_tokenizer(tmp_path, refused):
    folder = write_tiny(tmp_path / "model", "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with user_error(str(folder), "tokenizer"):
        load_model(folder, device="cpu")
    assert refused == []
