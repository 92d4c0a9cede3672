"""The benchmark's own parts work: its contestants train, its data are what they say. No speed is asserted."""

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_core.measures import fvu

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def made(tmp_path) -> tuple[Path, Tensor]:
    """A file of planted vectors, and the features they are made of."""
    from vectors import planted, write_splits

    x, features = planted(16, 24, 2, 2_400, generator=torch.Generator().manual_seed(5))
    path = tmp_path / "vectors.safetensors"
    write_splits(path, x, 200)
    return path, features


def conversation(name: str, *requests: dict) -> list[dict]:
    """What a worker answers, without a process."""
    from worker import serve

    answers = StringIO()
    serve(name, StringIO("".join(json.dumps(request) + "\n" for request in requests)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_our_worker_trains_and_reconstructs(made, tmp_path):
    from breakdown import PARTS
    from contestants import OURS, Job
    from safetensors.torch import load_file

    path, features = made
    job = Job(str(path), n_latents=32, k=4, batch=100, steps=400, lr=1e-2, dead_after=2_000)
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    hello, _, _, took, _, shares = conversation(
        OURS,
        {"do": "hello", "package": "sae_core"},
        {"do": "open", "job": asdict(job), "threads": 1},
        {"do": "reconstruct", "split": "test", "out": str(before)},
        {"do": "steps", "count": 350},
        {"do": "reconstruct", "split": "test", "out": str(after)},
        {"do": "shares", "count": 2},
    )
    assert "version" in hello and took["cpu"] > 0 and took["wall"] > 0
    assert sum(shares[part] for part in PARTS) == pytest.approx(1)
    x, start, end = load_file(path)["test"], load_file(before), load_file(after)
    assert fvu(x, end["x_hat"]) < 0.15 < fvu(x, start["x_hat"])
    found = [(features @ one["directions"].T).amax(1).mean().item() for one in (start, end)]
    assert found[0] < 0.7 and found[1] > 0.9, "it starts nowhere near the features, and ends on them"


def test_what_is_missing_is_said_and_not_raised():
    from contestants import LIMIT

    (answer,) = conversation(LIMIT, {"do": "hello", "package": "no_such_package"})
    assert "no_such_package" in answer["missing"]


def test_splits_have_one_scale_and_share_no_rows(made):
    from safetensors.torch import load_file

    splits = load_file(made[0])
    x = torch.cat([splits[name] for name in ("train", "validation", "test")])
    assert x.pow(2).sum(-1).mean().item() == pytest.approx(16, rel=1e-4)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [2_000, 200, 200]
    assert len(x.unique(dim=0)) == len(x)


def test_every_contestant_sees_the_same_batches(made):
    from contestants import Job, batches_of
    from safetensors.torch import load_file

    train = load_file(made[0])["train"]
    one, again, other = (batches_of(Job("", 32, 2, 300, seed=seed), train) for seed in (0, 0, 1))
    assert len(one) == 6 and all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])


def test_a_record_says_when_where_and_how_and_keeps_what_was_there(tmp_path):
    from train_throughput import Report, record

    path, report = tmp_path / "RESULTS.md", Report()
    report.table(("a", "b"), [("1", "2")])
    record(path, report, ["--quick", "--python-rivals", __file__])
    record(path, report, ["--quality"])
    text = path.read_text()
    assert text.count("## 20") == 2 and text.count("| 1 | 2 |") == 2 and text.count("# Results") == 1
    assert "torch" in text and "--quality" in text and str(Path(__file__).parent) not in text
