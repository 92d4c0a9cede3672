"""Off the CPU, every verb does its work, and what `evaluate` measures is what it measures on a CPU."""

import json

import pytest
from verbs import most_active, run

CONTEXTS = ("--contexts", "16")
CIRCUIT = ("--held", "8", "--cards", "4", "--null", "16", "--draws", "0")
VERBS = {
    "train": ("storybook", "--tokens", "2048", "--text-tokens", "4096", "--batch", "128", "--context", "32"),
    "evaluate": ("--contexts", "4", "--spliced", "2"),
    "ioi": ("--prompts", "6", "--corruption", "swap", "--site", "resid_post.4", *CONTEXTS),
    "circuit": ("--target", "logit: she - he", "--max-targets", "1", *CIRCUIT, *CONTEXTS),
    "features": ("--full", "2", *CONTEXTS),
    "prompt": ("print ( sqrt ( x", "--exact", "2", *CONTEXTS),
    "remove": ("--prompts", "8", "--site", "resid_post.5", "--contexts", "8", "--budget", "2.0"),
    "steer": ("--tokens", "2", "--contexts", "2", "--read", "16"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_works(verb, device, storybook_set, tmp_path, capsys):
    subject = () if verb == "train" else (storybook_set,)
    more = ("--features", most_active(storybook_set)) if verb == "steer" else ()
    devices = (device.name, "cpu") if verb == "evaluate" else (device.name,)
    for name in devices:
        where = ("--device", name, "--out", tmp_path / name)
        status, _, error = run(capsys, verb, *subject, *VERBS[verb], *more, *where)
        assert status == 0, error
    if verb == "evaluate":
        same(*(json.loads((tmp_path / name / "result.json").read_text()) for name in devices))


def same(there: object, here: object) -> None:
    """Equal but for rounding, and what is of the run itself."""
    if isinstance(here, dict):
        assert there.keys() == here.keys()
        for key in here:
            same(there[key], here[key])
    elif isinstance(here, list):
        assert len(there) == len(here)
        for on_gpu, on_cpu in zip(there, here, strict=True):
            same(on_gpu, on_cpu)
    elif isinstance(here, float):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-4)
    else:
        assert there == here
