"""The benchmark's own parts work: its contestants train, its data are what they say. No speed is asserted."""

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_core.evaluation.reconstruction import fvu


@pytest.fixture
def planted_file(tmp_path) -> tuple[Path, Tensor]:
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


@pytest.mark.slow
def test_our_worker_trains_and_reconstructs(planted_file, tmp_path):
    from breakdown import PARTS
    from contestants import OURS
    from safetensors.torch import load_file
    from training_job import Job

    path, features = planted_file
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
    cosines = [(features @ state["directions"].T).amax(1).mean().item() for state in (start, end)]
    assert cosines[0] < 0.7 and cosines[1] > 0.9, "it starts nowhere near the features, and ends on them"


def test_choosing_latents_is_counted_as_that_and_as_nothing_else():
    """Where it works by groups: pooling was counted as the rest, and looking up their members as gradients."""
    from breakdown import shares

    from sae_core.dictionaries import sparse

    pre, before = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)), sparse.top
    for values in (pre, pre.double()):
        parts = shares(lambda values=values: sparse.top(values, 4), 3)
        assert parts["top-k"] > 0.9 and parts["gradients"] == parts["sparse decode"] == 0
    parts = shares(lambda: sparse.batch_top(pre, 200), 3)
    assert parts["top-k"] > 0.9
    assert sparse.top is before


@pytest.mark.slow
def test_the_language_models_pass_is_timed_with_the_training(tmp_path, monkeypatch):
    """What the start had harvested used to be kept, so that all-layers training was timed without it."""
    import all_layers
    from safetensors.torch import save_file

    from sae_core.model.language_model import LanguageModel

    size = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    all_layers.write_model(tmp_path / "model", num_attention_heads=4, **size)
    tokens = torch.randint(2, 200, (12, 16), generator=torch.Generator().manual_seed(0))
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    job = all_layers.LayersJob(str(tmp_path / "model"), str(tmp_path / "tokens.safetensors"), 12, 64, 4, 4)
    recorded, timed, record = [], [], LanguageModel.record

    def counted(self, contexts, sites):
        recorded.append(len(contexts) * len(list(sites)))
        return record(self, contexts, sites)

    def watched(passes):
        for tokens, work in passes:
            before = len(recorded)
            work()
            timed.append((tokens, sum(recorded[before:])))
        return {"cpu": 1.0, "wall": 1.0, "tokens": tokens}

    monkeypatch.setattr(LanguageModel, "record", counted)
    monkeypatch.setattr(all_layers, "_timed", watched)
    for run, expected in ((all_layers.subrank, [24]), (all_layers.subrank_layer_by_layer, [12, 12])):
        timed.clear()
        assert run(job)["tokens"] == 12 * 16
        assert timed == [(12 * 16, contexts) for contexts in expected]


def test_what_is_missing_is_said_and_not_raised():
    from contestants import LIMIT

    (answer,) = conversation(LIMIT, {"do": "hello", "package": "no_such_package"})
    assert "no_such_package" in answer["missing"]


def test_splits_have_one_scale_and_share_no_rows(planted_file):
    from safetensors.torch import load_file

    splits = load_file(planted_file[0])
    x = torch.cat([splits[name] for name in ("train", "validation", "test")])
    assert x.pow(2).sum(-1).mean().item() == pytest.approx(16, rel=1e-4)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [2_000, 200, 200]
    assert len(x.unique(dim=0)) == len(x)


def test_every_contestant_sees_the_same_batches(planted_file):
    from safetensors.torch import load_file
    from training_job import Job, batches_of

    train = load_file(planted_file[0])["train"]
    first, again, other = (batches_of(Job("", 32, 2, 300, seed=seed), train) for seed in (0, 0, 1))
    assert len(first) == 6 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_record_says_when_where_and_how_and_keeps_what_was_there(tmp_path):
    from report import Report, record

    path, report = tmp_path / "RESULTS.md", Report()
    report.table(("a", "b"), [("1", "2")])
    record(path, report, ["--quick", "--python-rivals", __file__], script="train_throughput.py")
    record(path, report, ["--quality"], script="train_throughput.py")
    text = path.read_text()
    assert text.count("## 20") == 2 and text.count("| 1 | 2 |") == 2 and text.count("# Results") == 1
    assert "torch" in text and "--quality" in text and str(Path(__file__).parent) not in text
