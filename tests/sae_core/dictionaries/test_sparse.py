"""Sparse arithmetic is dense arithmetic: the same choices, the same products, the same gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.dictionaries import sparse
from sae_core.dictionaries.sparse import Codes, Scratch, batch_top, top

WIDE, NARROW = torch.float64, torch.float32
TOLERANCE = {WIDE: 1e-10, NARROW: 1e-5}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = NARROW) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- the k largest of a row --------------------------------------------------------------------------


def agree_with_topk(pre: torch.Tensor, k: int) -> None:
    values, indices = top(pre, k)
    assert values.shape == indices.shape == (len(pre), k)
    assert torch.equal(pre.gather(-1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())
    assert torch.equal(values.sort(descending=True).values, pre.topk(k).values)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_top_is_topk(batch, eighth, k, ties, seed, dtype):
    """With n a multiple of 8 and k small by way of groups, else by plain topk."""
    pre = normal(batch, 8 * eighth, seed=seed).to(dtype)
    agree_with_topk(pre.round() if ties else pre, min(k, 8 * eighth))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [7, 9, 31, 100])
def test_top_of_widths_that_do_not_divide(n, dtype):
    agree_with_topk(normal(5, n).to(dtype), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_top_where_all_the_largest_lie_in_one_group_or_none_do(dtype):
    """Groups are neighbours, or entries n / 8 apart: the extremes of how the largest can lie, for both."""
    for largest in (slice(5, None, 32), slice(32, 48), slice(64, 72)):
        pre = normal(4, 256)
        pre[:, largest] += 100
        for k in (8, 16):
            agree_with_topk(pre.to(dtype), k)
    agree_with_topk(torch.zeros(3, 256, dtype=dtype), 4)


def test_top_tells_apart_what_is_one_number_in_float32():
    """The maxima of groups used to be compared as float32, whatever they were."""
    pre = 1 + 1e-12 * torch.randperm(256, generator=torch.Generator().manual_seed(0)).double().repeat(3, 1)
    assert (pre.float() == 1).all()
    agree_with_topk(pre, 5)
    assert top(pre, 1)[1].flatten().tolist() == pre.argmax(-1).tolist()


# ---- the largest of a batch --------------------------------------------------------------------------


def by_sorting(pre: torch.Tensor, count: int) -> torch.Tensor:
    """The dense codes of the `count` largest positive entries, by a sort of everything."""
    ordered = pre.flatten().sort(descending=True).values
    lowest = ordered[min(count, len(ordered)) - 1]
    return pre * ((pre >= lowest) & (pre > 0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 50), st.integers(1, 200), st.booleans(), st.floats(-3, 3), st.integers(0, 99))
def test_batch_top_is_a_full_sort(batch, n, count, ties, shift, seed):
    pre = normal(batch, n, seed=seed) + shift
    pre = pre.round() if ties else pre
    assert torch.equal(batch_top(pre, count).dense(), by_sorting(pre, count))


def test_batch_top_keeps_all_that_equal_the_smallest():
    pre = torch.tensor([[3.0, 1.0, 1.0, 0.5], [1.0, 2.0, -1.0, 0.0]])
    kept = batch_top(pre, 3)
    assert len(kept.values) == 5 and kept.values.min() == 1
    assert len(batch_top(torch.ones(4, 5), 2).values) == 20


def test_batch_top_of_few_positives_or_none():
    pre = -normal(20, 30).abs()
    assert len(batch_top(pre, 10).values) == 0
    assert torch.equal(batch_top(pre, 10).offsets, torch.zeros(21, dtype=torch.long))
    pre[3, 4] = pre[7, 8] = 2.0
    assert batch_top(pre, 10).values.tolist() == [2.0, 2.0]
    assert len(batch_top(torch.zeros(3, 4), 2).values) == 0


@pytest.mark.slow
@pytest.mark.parametrize("stride_of_large", [1, 2, 3, 7])
def test_batch_top_when_the_sample_deceives(stride_of_large):
    """Larger batches are sampled at regular places; here what is large lies there, or everywhere but there."""
    n = 2**18
    pre = 0.01 * normal(n).abs()
    pre[::stride_of_large] += 10 + normal(len(pre[::stride_of_large]), seed=1)
    pre = pre.view(512, 512)
    for count in (1, 100, 5000, n // 8, n // 4, n // 2, n):
        assert torch.equal(batch_top(pre, count).dense(), by_sorting(pre, count)), count
    elsewhere = pre.clone().view(-1)
    elsewhere[::4] = -1.0
    elsewhere = elsewhere.view(512, 512)
    for count in (1, 5000, n // 4):
        assert torch.equal(batch_top(elsewhere, count).dense(), by_sorting(elsewhere, count)), count


def test_batch_top_where_the_sample_leaves_exactly_as_many():
    """The bound from the sample is itself one of the entries: those above it are just `count`."""
    n, count = 2**18, 40
    pre = 0.1 + 0.001 * normal(n).abs()
    pre[1 : 4 * count : 4] = 5.0 + normal(count, seed=1).abs()
    rank = 2 * count * 2**16 // n + 16
    pre[: 4 * rank : 4] = 1.0
    pre = pre.view(512, 512)
    assert (pre > 1).sum() == count
    assert torch.equal(batch_top(pre, count).dense(), by_sorting(pre, count))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_ranked_top_takes_the_larger_value_then_the_lower_index(batch, eighth, k, seed, dtype):
    """By a stable sort, on values of which many are equal; infinities and negative ones among them."""
    n = 8 * eighth
    k = min(k, n)
    pre = (2 * normal(batch, n, seed=seed)).round().to(dtype)
    pre[0, seed % n] = torch.inf
    values, indices = sparse.ranked_top(pre, k)
    expected = pre.float().sort(dim=-1, descending=True, stable=True)
    assert torch.equal(indices, expected.indices[:, :k]) and torch.equal(values.float(), expected.values[:, :k])


@pytest.mark.parametrize("count", [1, 7, 40, 200, 10**6])
def test_batch_top_of_parts_is_that_of_the_whole(count):
    pre = normal(20, 30).round(decimals=1)
    parts = [batch_top(rows, min(count, rows.numel())) for rows in pre.split(6)]
    whole = sparse.largest_of(Codes.stacked(parts), count)
    assert torch.equal(whole.dense(), batch_top(pre, min(count, pre.numel())).dense())


# ---- what codes are ----------------------------------------------------------------------------------


def some_codes(dtype: torch.dtype = NARROW) -> tuple[Codes, torch.Tensor]:
    """Ragged codes of 12 tokens and 10 latents; some tokens have none, latents 3 and 9 are on no token."""
    f = normal(12, 10, dtype=dtype) * (normal(12, 10, seed=1) > 0.3)
    f[[0, 4, 5, 11]] = 0
    f[:, [3, 9]] = 0
    f[6, :3] = 1.0
    return Codes.where(f), f


def test_codes_are_their_dense_form():
    codes, f = some_codes()
    assert torch.equal(codes.dense(), f)
    assert codes.offsets.diff().tolist() == (f != 0).sum(-1).tolist()
    assert torch.equal(f[codes.rows, codes.indices], codes.values)
    assert len(codes.values) == (f != 0).sum()
    mask = f > 0.5
    assert torch.equal(Codes.where(f, mask).dense(), f * mask)
    assert len(Codes.where(torch.zeros(2, 5), torch.ones(2, 5) > 0).values) == 10  # chosen, though zero


def test_codes_of_rows_are_a_scatter():
    values, indices = normal(6, 20).topk(4)
    codes = Codes.of_rows(indices, values, 20)
    assert torch.equal(codes.dense(), torch.zeros(6, 20).scatter(-1, indices, values))
    assert codes.rows.tolist() == [row for row in range(6) for _ in range(4)]
    again = Codes.where(codes.dense())
    assert torch.equal(again.dense(), codes.dense()) and torch.equal(again.offsets, codes.offsets)


def test_codes_latent_by_latent_are_the_transpose():
    codes, f = some_codes()
    order, tokens, offsets = codes.by_latent
    assert offsets.diff().tolist() == (f != 0).sum(0).tolist()
    transposed = Codes(tokens, codes.values[order], offsets, len(f))
    assert torch.equal(transposed.dense(), f.T)


def test_rows_of_their_own_for_parts_of_the_latents():
    codes, f = some_codes()
    columns = torch.arange(10)
    for bounds in ((), (4,), (1, 6), (0, 3, 10)):
        parts = codes.split_at(bounds)
        dense = parts.dense().unflatten(0, (12, len(bounds) + 1))
        for number, (low, high) in enumerate(zip((0, *bounds), (*bounds, 10), strict=True)):
            assert torch.equal(dense[:, number], f * ((columns >= low) & (columns < high)))
        assert torch.equal(parts.by_latent[0], codes.by_latent[0])


def test_codes_of_parts_of_a_batch_are_those_of_the_whole():
    codes, f = some_codes()
    parts = [Codes.where(rows) for rows in f.split(5)]
    assert torch.equal(Codes.stacked(parts).dense(), f) and torch.equal(Codes.stacked(parts).offsets, codes.offsets)
    assert torch.equal(codes.positive(), f > 0)


@pytest.mark.parametrize("looked", [False, True])
def test_other_values_keep_the_places(looked):
    codes, f = some_codes()
    if looked:
        codes.rows, codes.by_latent  # noqa: B018  (found once, shared then)
    other = codes.with_values(2 * codes.values)
    assert torch.equal(other.dense(), 2 * f) and torch.equal(codes.dense(), f)
    assert ("by_latent" in vars(other)) == looked
    assert torch.equal(other.rows, codes.rows) and torch.equal(other.by_latent[0], codes.by_latent[0])


# ---- products and gradients ----------------------------------------------------------------------------

D_IN, N_LATENTS = 6, 10


def case(name: str, dtype: torch.dtype) -> Codes:
    """Codes of several shapes whose values are those of the encoder below."""
    x, W_enc, b_enc, _, b_dec = weights(name, dtype)
    pre = ((x - b_dec) @ W_enc + b_enc).detach()
    if name == "rows":
        values, indices = pre.topk(3, sorted=False)
        return Codes.of_rows(indices, values, N_LATENTS)
    if name == "ragged":
        return Codes.where(pre, some_codes()[1] != 0)
    if name == "none":
        return Codes.where(pre, torch.zeros_like(pre) > 0)
    return Codes.where(pre, torch.ones_like(pre) > 0)  # all


def weights(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = ((12, D_IN), (D_IN, N_LATENTS), (N_LATENTS,), (N_LATENTS, D_IN), (D_IN,))
    return [normal(*shape, seed=i, dtype=dtype).requires_grad_(i > 0) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("dtype", [WIDE, NARROW])
@pytest.mark.parametrize("name", ["rows", "ragged", "none", "all"])
def test_encoding_and_decoding_equal_their_dense_forms_with_all_gradients(name, dtype):
    """A nonlinear function of the reconstruction, of the codes, and of both again, as the auxiliary losses are."""
    target = normal(12, D_IN, seed=9, dtype=dtype)

    def loss(x_hat, f):
        return (x_hat - target).square().sum() + (x_hat.sin() * target).sum() + 0.3 * f.square().sum()

    x, W_enc, b_enc, W_dec, b_dec = weights(name, dtype)
    codes = sparse.encode(case(name, dtype), x, W_enc, b_enc, b_dec)
    codes = codes.with_values(codes.values.relu())
    x_hat = sparse.decode(codes, W_dec) + b_dec
    sparse_loss = loss(x_hat, codes.values)
    sparse_loss.backward()

    rx, rW_enc, rb_enc, rW_dec, rb_dec = weights(name, dtype)
    mask = Codes.where(case(name, dtype).dense(), None).dense() != 0
    f = (((rx - rb_dec) @ rW_enc + rb_enc) * mask).relu()
    rx_hat = f @ rW_dec + rb_dec
    plain = loss(rx_hat, f)
    plain.backward()

    close = {"atol": TOLERANCE[dtype] * 10, "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(codes.dense(), f, **close)
    torch.testing.assert_close(x_hat, rx_hat, **close)
    torch.testing.assert_close(sparse_loss, plain, **close)
    for a, b in zip((W_enc, b_enc, W_dec, b_dec), (rW_enc, rb_enc, rW_dec, rb_dec), strict=True):
        torch.testing.assert_close(a.grad, b.grad, **close)
        assert name == "none" or a.grad.abs().max() > 0.1


@pytest.mark.parametrize("dtype", [WIDE, NARROW])
def test_accumulate_is_a_transposed_product(dtype):
    codes, f = some_codes(dtype)
    rows = normal(12, 4, seed=3, dtype=dtype)
    torch.testing.assert_close(sparse.accumulate(codes, rows), f.T @ rows, atol=TOLERANCE[dtype], rtol=0)
    none = Codes.where(torch.zeros(12, 10, dtype=dtype))
    assert torch.equal(sparse.accumulate(none, rows), torch.zeros(10, 4, dtype=dtype))


def test_the_gradient_of_a_latent_that_is_not_chosen_is_zero():
    x, W_enc, b_enc, W_dec, b_dec = weights("ragged", WIDE)
    codes = sparse.encode(case("ragged", WIDE), x, W_enc, b_enc, b_dec)
    sparse.decode(codes, W_dec).square().sum().backward()
    unused = torch.ones(N_LATENTS, dtype=torch.bool)
    unused[codes.indices] = False
    assert unused.tolist().count(True) == 2
    assert not W_enc.grad[:, unused].any() and not W_dec.grad[unused].any() and not b_enc.grad[unused].any()
    assert W_enc.grad[:, ~unused].any(0).all()


def test_scratch_is_the_encoder_in_kept_memory():
    x, W_enc, b_enc, _, b_dec = weights("", WIDE)
    scratch = Scratch()
    first = scratch.pre(x, W_enc, b_enc, b_dec)
    torch.testing.assert_close(first, (x - b_dec) @ W_enc + b_enc)
    assert not first.requires_grad
    fewer = scratch.pre(2 * x[:5], W_enc, b_enc, b_dec)
    torch.testing.assert_close(fewer, (2 * x[:5] - b_dec) @ W_enc + b_enc)
    assert fewer.data_ptr() == first.data_ptr()
    more = scratch.pre(torch.cat([x, x]), W_enc, b_enc, b_dec)
    assert more.shape == (24, N_LATENTS)
    narrow = scratch.pre(x.float(), W_enc.float(), b_enc.float(), b_dec.float())
    assert narrow.dtype == NARROW
