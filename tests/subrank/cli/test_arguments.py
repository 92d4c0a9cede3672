"""Values of options become what they name."""

from argparse import Namespace

import pytest
import torch
from tiny import user_error

from subrank.cli.arguments import model_of
from subrank.result import Provenance


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_the_model_computes_in_the_precision_that_is_named_and_results_say_so(checkpoints, dtype, expected):
    model = model_of(str(checkpoints["llama"]), Namespace(device="cpu", dtype=dtype, lm_batch=None))
    assert model.dtype is getattr(torch, expected)
    assert Provenance.of("ioi", model, {}).dtype == expected


def test_a_device_that_there_is_not():
    with user_error("--device abacus"):
        model_of("storybook", Namespace(device="abacus", dtype="auto", lm_batch=None))


def test_provenance_carries_digests_of_what_numbers_depend_on(tiny_models, tmp_path):
    """Two files of prompts under one name, once told apart by nothing."""
    model, prompts = tiny_models["gpt2"], tmp_path / "prompts.txt"
    digests = []
    for text in ("a", "b", "a"):
        prompts.write_text(text)
        provenance = Provenance.of("circuit", model, {"prompts": prompts, "names": None, "k": 3}, text=torch.zeros(2))
        digests.append(provenance.digests)
    assert digests[0] == digests[2] != digests[1] and set(digests[0]) == {"prompts", "text"}
    assert provenance.fingerprint == model.fingerprint()
