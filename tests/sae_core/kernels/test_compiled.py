"""The kernels compile for GPUs that are not here, and keep what they work on in registers."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

SCRIPT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_core.kernels import fused

POINTERS = {"copy": "*bf16", "dead": "*bf16", "W": "*bf16", "bits": "*i16"} | dict.fromkeys(
    ("indices", "offsets", "latents", "places", "bounds", "slot"), "*i64"
)
NUMBERS = dict.fromkeys(("d", "n_groups"), "i32") | dict.fromkeys(("rate", "root_scale", "b1", "b2", "eps"), "fp32")
CONSTANTS = {"UNIT": True, "TILE": 128, "GROUP": 8}
for d, generation in ((768, 80), (4096, 90)):
    block = triton.next_power_of_2(d)
    for kernel in (fused._decode, fused._slopes, fused._tile_sums, fused._step_rows, fused._group_keys):
        one_block = kernel in (fused._slopes, fused._step_rows)
        sizes = CONSTANTS | {"BLOCK": block if one_block else 256}
        known = POINTERS | NUMBERS | dict.fromkeys(sizes, "constexpr")
        types = {name: known.get(name, "*fp32") for name in kernel.arg_names}
        if kernel is fused._group_keys:
            types["out"] = "*i32"
        constants = {(place,): sizes[name] for place, name in enumerate(kernel.arg_names) if name in sizes}
        source = ASTSource(fn=kernel, signature=types, constexprs=constants)
        options = {"num_warps": fused._warps(d) if one_block else 4}
        compiled = triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)
        assert ".local" not in compiled.asm["ptx"], kernel.__name__
        print(kernel.__name__, generation, len(compiled.asm["cubin"]))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch for CUDA and is not installed here")
@pytest.mark.slow
def test_kernels_compile(tmp_path, monkeypatch):
    """In a process of its own: in this one, where Triton is not imported here, it is to be its interpreter."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(run.stdout.splitlines()) == 10
