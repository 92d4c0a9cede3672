"""A process of `torchrun` that is killed: all begin again, from the last checkpoint, and end where they would have."""

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


def torchrun(model: Path, out: Path, *options: str) -> subprocess.Popen:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options, "-m", "subrank", "train"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, str(model), *RUN, "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(launcher: int) -> list[int]:
    """The processes that a launcher has started, in their order."""
    return sorted(map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found in /proc")
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(tmp_path):
    model = write_tiny(tmp_path / "model", "neox")
    straight = torchrun(model, tmp_path / "straight")
    _, errors = straight.communicate(timeout=300)
    assert straight.returncode == 0, errors
    killed, card = torchrun(model, tmp_path / "out", "--max-restarts", "1"), tmp_path / "out/checkpoint/state.json"
    while not card.exists():
        assert killed.poll() is None
        time.sleep(0.05)
    os.kill(workers(killed.pid)[-1], signal.SIGKILL)
    said, errors = killed.communicate(timeout=300)
    assert killed.returncode == 0, errors
    assert said.count("resuming after step") == 1
    ended, expected = contents(tmp_path / "out"), contents(tmp_path / "straight")
    weights = [name for name in expected if name.endswith(".safetensors")]
    assert len(weights) > 1 and all(ended[name] == expected[name] for name in weights)
    assert ended.keys() == expected.keys()
