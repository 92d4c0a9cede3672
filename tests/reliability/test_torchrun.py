"""Processes of `torchrun`: they leave what one process does, also where one of them is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mortal import contents
from tiny import write_tiny

ROOT = Path(__file__).resolve().parents[2]
RUN = "--sites resid_post.1 --kind topk jumprelu -k 4 --tokens 20480 --batch 512 --context 32 --save-every 0".split()


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def begun(model: Path, out: Path, *launcher: str) -> subprocess.Popen:
    """A training in processes of its own."""
    start = [word for module in (launcher, ("subrank", "train")) if module for word in ("-m", *module)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, str(model), *RUN, "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> str:
    """What it said; raises where it failed."""
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return said


def process_of(launcher: int, rank: int) -> int:
    """The process that a launcher has started for a rank; it has others too."""
    children = map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split())
    mark = f"RANK={rank}".encode()
    (process,) = [pid for pid in children if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    return process


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"), "neox")


@pytest.fixture(scope="module")
def straight(model, tmp_path_factory) -> Path:
    """What two processes leave that nothing happens to."""
    out = tmp_path_factory.mktemp("straight")
    ended(begun(model, out, *TORCHRUN))
    return out


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found in /proc")
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(model, straight, tmp_path):
    killed, card = begun(model, tmp_path, *TORCHRUN, "--max-restarts", "1"), tmp_path / "checkpoint/state.json"
    until = time.monotonic() + 120
    while not card.exists():
        assert killed.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    os.kill(process_of(killed.pid, 1), signal.SIGKILL)
    assert ended(killed).count("resuming after step") == 1
    left, expected = contents(tmp_path), contents(straight)
    weights = [name for name in expected if name.endswith(".safetensors")]
    assert len(weights) > 1 and all(left[name] == expected[name] for name in weights)
    assert left.keys() == expected.keys()


@pytest.mark.slow
def test_several_processes_leave_what_one_does(model, straight, tmp_path):
    """The same files, lines of the log and settings; numbers to what float32 and bfloat16 round."""
    ended(begun(model, tmp_path))
    assert contents(tmp_path).keys() == contents(straight).keys()
    assert (tmp_path / "run.json").read_text() == (straight / "run.json").read_text()
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (tmp_path, straight)]
    for alone, several in zip(*logs, strict=True):
        assert all(alone[name] == several[name] for name in ("step", "tokens", "member", "site", "lr"))
        assert alone["fvu"] == pytest.approx(several["fvu"], abs=0.02)
    quality = [json.loads((out / "result.json").read_text())["dictionaries"] for out in (tmp_path, straight)]
    for member, sites in quality[0].items():
        for site, row in sites.items():
            assert row["fvu"] == pytest.approx(quality[1][member][site]["fvu"], abs=0.02)
