"""The parts of `gpu.py`: kernels against float64, whole steps, and each part of a step by itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sae_core.dictionaries import sparse
from sae_core.dictionaries.codes import Codes
from sae_core.dictionaries.saes import TopKSAE
from sae_core.kernels import plain
from sae_core.kernels.choice import kernels_for
from sae_core.kernels.interface import Adam, Matrix, Sums
from sae_core.sites import Site
from sae_core.training import loop
from sae_core.training.config import TrainConfig
from sae_core.training.recipe import LossContext
from sae_core.training.state import Member, site_state
from sae_core.training.topk_recipes import TopK, _auxk

SITE, STEPS = Site(0), 200


def kernels_on(device: torch.device) -> Any:
    """Those in Triton, or, on a CPU, the plain ones."""
    return kernels_for(device) or plain


@contextmanager
def stepping_by(kernels: Any) -> Iterator[None]:
    """Steps begun within are made by these kernels; with None by autograd and torch's Adam."""
    before, loop.kernels_for = loop.kernels_for, lambda device: kernels  # type: ignore[assignment]
    try:
        yield
    finally:
        loop.kernels_for = before


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is allocated within holds NaN: what a kernel does not write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def heavy_tailed(batch: int, n: int, k: int, device: torch.device, seed: int) -> Codes:
    """Codes of k distinct latents a token, of which the first are active on half of the tokens and the last on few."""
    chance = torch.Generator(device).manual_seed(seed)
    level = 3 * (torch.arange(n, device=device) + 10.0).log().neg_()
    values, indices = (level / 4 + torch.randn(batch, n, generator=chance, device=device)).topk(k, dim=-1)
    return Codes.of_rows(indices, values - values.min() + 0.1, n)


def largest_error(measured: Tensor, exact: Tensor) -> float:
    """Relative to the largest number."""
    assert measured.isfinite().all(), "what was not written, or is no number"
    return ((measured.double() - exact).abs().max() / exact.abs().max()).item()


# ---- 3. correctness --------------------------------------------------------------------------------


def correct(bench: Any) -> None:
    """Kernels against float64 on two seeds and twice to the bit, ties by the rule, and steps of training."""
    kernels, small = kernels_on(bench.device), bench.device.type == "cpu"
    batch, n, k, d = (64, 64, 4, 24) if small else (2048, 4096, 32, 768)
    for seed in (0, 1):
        codes = heavy_tailed(batch, n, k, bench.device, seed)
        chance = torch.Generator(bench.device).manual_seed(seed)
        W, g = (torch.randn(rows, d, generator=chance, device=bench.device) for rows in (n, batch))
        half, where = W.bfloat16(), (codes.indices, codes.offsets)
        exact = plain.decode(where[0], codes.values.double(), where[1], half.double())
        _compare(bench, "decode", lambda w=where, c=codes, h=half: kernels.decode(w[0], c.values, w[1], h), exact)
        exact = plain.slopes(*where, g.double(), half.double())
        _compare(bench, "slopes", lambda w=where, g=g, h=half: kernels.slopes(*w, g, h), exact)
        for unit in (False, True):
            _compare(bench, f"step of rows, unit={unit}", *_stepped(kernels, codes, W, g, unit))
        pre = torch.randn(batch, n, generator=chance, device=bench.device).bfloat16()
        values, indices = sparse.ranked_top(pre, k)
        order = pre.float().sort(dim=-1, descending=True, stable=True)
        assert torch.equal(indices, order.indices[:, :k]) and torch.equal(values.float(), order.values[:, :k])
    bench.report.say("ties: larger value, then lower index, as by a stable sort")
    fvu = {name: _planted_fvu(bench, by) for name, by in (("kernels", kernels), ("again", kernels), ("autograd", None))}
    bench.report.say(f"FVU of the last 20 of {STEPS} steps on planted vectors: {fvu}")
    assert fvu["kernels"] == fvu["again"], "twice the same seed, and not the same numbers"
    assert abs(fvu["kernels"] - fvu["autograd"]) < 0.005


def _compare(bench: Any, name: str, run: Callable[[], Tensor], exact: Tensor) -> None:
    with poisoned():
        first, again = run(), run()
    error = largest_error(first, exact)
    bench.report.say(f"{name}: {error:.1e} from float64, twice the same: {torch.equal(first, again)}")
    assert error < 1e-4 and torch.equal(first, again)


def _stepped(kernels: Any, codes: Codes, W: Tensor, g: Tensor, unit: bool) -> tuple[Callable[[], Tensor], Tensor]:
    """The weights after two steps of rows, some of whose latents are dead: how to make them, and exactly."""
    order, tokens, bounds = codes.by_latent
    slot = torch.full((codes.n_latents,), -1, device=W.device)
    slot[-8:] = torch.arange(8, device=W.device)
    weight = torch.nn.functional.normalize(W, dim=-1)

    def run(by: Any, dtype: torch.dtype) -> Tensor:
        rows = Matrix(weight.to(dtype).clone(), W.bfloat16(), *(torch.zeros_like(W, dtype=dtype) for _ in range(2)))
        factors = codes.values.to(dtype)[order]
        sums = Sums(codes.indices[order], bounds, tokens, factors, g.to(dtype), slot, W[:8].to(dtype))
        for step in (1, 2):
            by.step_rows(sums, rows, Adam(1e-3, step), unit)
        return rows.weight

    return lambda: run(kernels, torch.float32), run(plain, torch.float64)


def _planted_fvu(bench: Any, kernels: Any) -> float:
    from vectors import planted

    d, n, batch, steps = (24, 192, 64, 40) if bench.device.type == "cpu" else (256, 4096, 2048, STEPS)
    with torch.device(bench.device):
        x, _ = planted(d, 2 * d, 8, 8 * batch, generator=torch.Generator(bench.device).manual_seed(0))
    x *= (d / x.square().sum(-1).mean()).sqrt()
    run, fvu = Ours(d, n, 16, batch, x.split(batch), kernels), []
    for _ in range(steps):
        fvu.append(run.step().fvu)
    return torch.stack(fvu[-20:]).mean().item()


# ---- 4. whole steps --------------------------------------------------------------------------------


class Ours:
    """Our training step on batches over and over."""

    def __init__(self, d: int, n: int, k: int, batch: int, batches: Any, kernels: Any):
        device = batches[0].device
        with torch.device(device):
            sae = TopKSAE(d, n, k, generator=torch.Generator(device).manual_seed(0))
        config = TrainConfig(TopK(k), tokens=10**9, batch=batch, warm_up=20, lr=1e-3)
        self.member = Member(config, {SITE: site_state(sae, 1.0)}, True)
        self.scratch = sparse.Scratch(torch.bfloat16)
        self.batches, self.kernels, self.number = batches, kernels, 0

    def step(self) -> Any:
        batch = {SITE: self.batches[self.number % len(self.batches)]}
        with stepping_by(self.kernels):
            outcome = loop.step(self.member, SITE, batch, self.number, self.scratch)
        self.number += 1
        return outcome


def whole_steps(bench: Any, label: str, size: Any) -> None:
    """Tokens a second, share of the limit and memory of our step, with kernels and without, and of sparsify's."""
    chance = torch.Generator(bench.device).manual_seed(0)
    batches = [torch.randn(size.batch, size.d, generator=chance, device=bench.device) for _ in range(2)]
    rows = []
    for name, make in _contestants(bench, size, batches).items():
        if bench.left < 20:
            bench.report.say(f"{name}: left out")
            continue
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            run = make()
            seconds = bench.median(run.step)
        except (ImportError, RuntimeError) as error:  # sparsify is not here, or does not fit
            if not name.startswith("sparsify"):
                raise
            bench.report.say(f"{name}: {str(error).splitlines()[0]}")
            continue
        peak = torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else 0.0
        rate, share = f"{size.batch / seconds:.0f}", f"{bench.limits[label] / seconds:.2f}"
        rows.append((name, f"{1e3 * seconds:.2f}", rate, share, f"{peak:.1f}"))
        if name == "kernels" and bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(3):
                    run.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        del run
    bench.report.table(("step", "ms", "tokens/s", "of the limit", "peak GB"), rows)


def _contestants(bench: Any, size: Any, batches: list[Tensor]) -> dict[str, Callable[[], Any]]:
    from contestants import ENTRIES
    from training_job import Job

    job = Job("", size.n, size.k, size.batch, device=str(bench.device))

    def ours(kernels: Any) -> Callable[[], Any]:
        return lambda: Ours(size.d, size.n, size.k, size.batch, batches, kernels)

    steps = {"kernels": ours(kernels_on(bench.device)), "autograd and torch's Adam": ours(None)}
    for name in ("sparsify", "sparsify, signum"):
        steps[name] = lambda name=name: ENTRIES[name].new(job, batches)
    return steps


# ---- 2. parts --------------------------------------------------------------------------------------


def part_times(bench: Any, size: Any) -> None:
    """Milliseconds of each part alone, beside those that its bytes or products take at least."""
    rows: list[tuple[str, str, str]] = []

    def add(name: str, run: Callable[[], object], floor: float) -> None:
        if bench.left > 5:
            rows.append((name, f"{1e3 * bench.median(run):.3f}", f"{1e3 * floor:.3f}"))

    try:
        _sparse_parts(bench, size, add)
        for share in (0.02, 0.1):
            _dead_latents(bench, size, share, add)
    finally:
        bench.report.table(("part", "ms", "at least"), rows)


def _sparse_parts(bench: Any, size: Any, add: Callable) -> None:
    """The choice of latents, decoding, and the step of one matrix."""
    device, kernels, per_byte = bench.device, kernels_on(bench.device), 1 / bench.bandwidth
    codes = heavy_tailed(size.batch, size.n, size.k, device, 0)
    pre = torch.randn(size.batch, size.n, device=device).bfloat16()
    W, g = torch.randn(size.n, size.d, device=device), torch.randn(size.batch, size.d, device=device)
    half, pair, gathered = W.bfloat16(), size.n * size.d, size.batch * size.k * size.d
    add("torch.topk", lambda: pre.topk(size.k, dim=-1, sorted=False), pre.nbytes * per_byte)
    for group in (8, 16, 32):
        run = partial(sparse.ranked_top, pre, size.k, group)
        add(f"ranked_top, groups of {group}", run, pre.nbytes * per_byte)
    add("keys of groups of 8", lambda: kernels.group_keys(pre, 8), pre.nbytes * per_byte)
    add("sort by latent", lambda: torch.sort(codes.indices.int(), stable=True), 0.0)
    where = (codes.indices, codes.values, codes.offsets)
    add("decode, embedding_bag in float32", lambda: plain.decode(*where, W), 4 * gathered * per_byte)
    add("decode, kernel in bfloat16", lambda: kernels.decode(*where, half), 2 * gathered * per_byte)
    slopes = partial(kernels.slopes, codes.indices, codes.offsets, g, half)
    add("slopes, kernel in bfloat16", slopes, 2 * gathered * per_byte)
    order, tokens, bounds = codes.by_latent
    slot = torch.full((size.n,), -1, device=device)
    sums = Sums(codes.indices[order], bounds, tokens, codes.values[order], g, slot, half[:0])
    matrix = Matrix(W.clone(), half, torch.zeros_like(W), torch.zeros_like(W))
    step_rows = partial(kernels.step_rows, sums, matrix, Adam(1e-4, 5), True)
    add("step of one matrix's rows, kernel", step_rows, (26 * pair + 4 * gathered) * per_byte)
    add("gradient of one matrix, embedding_bag", lambda: sparse.accumulate(codes, g), 4 * (gathered + pair) * per_byte)
    parameter = torch.nn.Parameter(W)
    parameter.grad = torch.randn_like(W)
    optimizer = torch.optim.Adam([parameter], lr=1e-4, fused=True)
    add("torch's fused Adam of one matrix", optimizer.step, 28 * pair * per_byte)


def _dead_latents(bench: Any, size: Any, share: float, add: Callable) -> None:
    """AuxK, forward and backward: as products of matrices, and as gathers, which it was before."""
    with torch.device(bench.device):
        sae = TopKSAE(size.d, size.n, size.k, generator=torch.Generator(bench.device).manual_seed(0))
    x = torch.randn(size.batch, size.d, device=bench.device)
    dead = torch.arange(int(share * size.n), device=bench.device)
    scratch = sparse.Scratch(torch.bfloat16)
    k, floor = min(len(dead), size.d // 2), 8 * size.batch * len(dead) * size.d / bench.rate

    def gathers() -> None:
        with torch.no_grad():
            values, place = sparse.top(x.bfloat16() @ sae.W_enc[:, dead].bfloat16(), k)
        codes = Codes.of_rows(dead[place], values.float(), size.n)
        sparse.decode(sparse.encode(codes, x, sae.W_enc, sae.b_enc, sae.b_dec), sae.W_dec).square().sum().backward()

    context = LossContext(dead, 1.0, scratch)
    add(f"AuxK, products, {share:.0%} dead", lambda: _auxk(sae, x, x, context).backward(), floor)
    add(f"AuxK, gathers, {share:.0%} dead", gathers, floor)
