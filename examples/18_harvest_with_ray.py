"""A pool of workers fills a folder with activations: `python examples/18_harvest_with_ray.py [OUT [SEED]]`.

Needs Ray (`pip install "ray[data]"`). On one machine `subrank harvest`, started several times, does the same; Ray hands
blocks out over many machines, which must share the disk of OUT, and gives those of a lost worker to another.
"""

import sys
from pathlib import Path

import ray

import subrank as sr
from subrank.experiments.harvest import BlockFiller

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example_harvest").resolve()
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
reads = {"sites": "resid_post.2", "tokens": 60_000, "memory": 0.005, "seed": seed}

# Every worker loads the model once and gets numbers of blocks. A block is a pure function of its number.
ray.init(num_cpus=3, include_dashboard=False)  # two workers, and one that reads the numbers
n_blocks = BlockFiller("storybook", "storybook", str(out / "activations"), **reads).work.n_blocks
blocks = ray.data.range(n_blocks, override_num_blocks=n_blocks).map_batches(
    BlockFiller,
    fn_constructor_args=("storybook", "storybook", str(out / "activations")),
    fn_constructor_kwargs=reads,
    concurrency=2,
    batch_size=1,
)
filled = {row["id"]: row["filled"] for row in blocks.take_all()}
print(f"{sum(filled.values())} blocks filled by two workers")
ray.shutdown()
assert len(filled) == n_blocks and all(filled.values()), "every block is made once"

# Nothing is left to do, and `subrank train storybook --cache OUT/activations` with the same settings runs no model.
before = {path.name: path.stat().st_mtime_ns for path in (out / "activations").iterdir()}
sr.harvest(sr.load_model("storybook"), "storybook", out / "activations", progress=False, **reads)
assert before == {path.name: path.stat().st_mtime_ns for path in (out / "activations").iterdir()}
