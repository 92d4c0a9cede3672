"""A language model in a folder always answers, and tells the probabilities that plain transformers has."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from tiny import tiny_config

from subrank.studies.llm.answers import Answers
from subrank.studies.llm.endpoint import Endpoint
from subrank.studies.llm.folder import Folder
from subrank.studies.llm.questions import SIMULATE, Question, explain, explanation_in, levels_in, numbered

QUESTION = Question("Which of these?", 3, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random model that reads bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bytes")
    signs = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    reading = Tokenizer(models.BPE({sign: number for number, sign in enumerate(signs)}, []))
    reading.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reading.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=reading, eos_token="<end>", bos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = tiny_config("llama", len(signs), max_position_embeddings=256, initializer_range=0.25)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_probabilities_are_exact(folder):
    from transformers import AutoModelForCausalLM

    asked = Folder(folder)
    reply, plain = asked.answer(QUESTION), AutoModelForCausalLM.from_pretrained(folder)
    digits = [asked.model.to_ids(str(value))[0] for value in range(10)]
    text, expected = QUESTION.text + "\n\n", []
    for number in range(3):
        beginning, digit = (reply.pieces[2 * number + place] for place in (0, 1))
        text += beginning[0]
        ids = torch.tensor([asked.model.with_bos(asked.model.to_ids(text))])
        log_p = plain(ids).logits[0, -1].double().log_softmax(-1)[digits].detach()
        assert [*digit[1].values()] == pytest.approx(log_p.tolist(), abs=1e-4) and digit[0] == str(int(log_p.argmax()))
        expected.append(float(log_p.softmax(0) @ torch.arange(10.0, dtype=torch.float64)))
        text += digit[0]
    assert text.endswith(reply.text) and levels_in(reply, QUESTION) == pytest.approx(expected, abs=1e-4)
    assert asked.answer(QUESTION) == reply and not asked.answer(Question("What?")).problem
    assert "too many" in asked.answer(Question("x" * 400, 1)).problem
    assert levels_in(asked.answer(Question("Which?", 2, 1)), Question("Which?", 2, 1))[0] <= 1


@pytest.mark.real
@pytest.mark.slow
def test_a_real_server_explains_and_simulates(tmp_path):
    """`transformers serve`, with the instruct model in the folder SUBRANK_LLM."""
    from transformers.utils.import_utils import is_serve_available

    folder, command = os.environ.get("SUBRANK_LLM"), Path(sys.executable).with_name("transformers")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs an instruct model in the folder that SUBRANK_LLM names")
    if not (is_serve_available() and shutil.which(command)):
        pytest.skip("needs transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        serve = [command, "serve", folder, "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(serve, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                if httpx.get(f"{address}/health", trust_env=False).is_success:
                    break
            except httpx.HTTPError:
                assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
        answers = Answers(Endpoint(f"{address}/v1", folder), tmp_path)
        words = ["The", " cat", " sat", " on", " the", " cat"]
        told = explain([(words, [0, 9, 0, 0, 0, 9])])
        simulated = numbered(SIMULATE, "the word cat", words, 9)
        first, second = answers.all([told, simulated], "asked")
        assert explanation_in(first), first
        levels = levels_in(second, simulated)
        assert levels is None or len(levels) == 6
        assert not answers.problems and Answers(Endpoint(f"{address}/v1", folder), tmp_path).n_unknown([told]) == 0
    finally:
        server.terminate()
        server.wait(30)
