"""Losses and their gradients are those of plain code, and AuxK reaches dead latents only."""

from dataclasses import replace

import pytest
import torch
from planted import Planted, planted_directions
from random_saes import normal
from recipes import BATCH, D_IN, EACH, N_LATENTS, NONE, SOME, K, gradients, in_the_middle, outcome, variance_unexplained
from torch import Tensor

from sae_core.dictionaries import sparse
from sae_core.dictionaries.saes import SAE, JumpReLUSAE
from sae_core.evaluation.reconstruction import fvu, l0
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.penalty_recipes import Gated, ReLU
from sae_core.training.recipe import LossContext
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

# ---- the plain computation -----------------------------------------------------------------------------


def kept(pre: Tensor, k: int) -> Tensor:
    """The k largest of each row where positive, others zero."""
    return pre.relu() * torch.zeros_like(pre).scatter(-1, pre.topk(k).indices, 1.0)


def auxk(sae: SAE, x: Tensor, pre: Tensor, x_hat: Tensor, dead: Tensor) -> Tensor:
    """The error, held fixed, against what the d_in / 2 largest dead latents make of it without a bias."""
    if not len(dead):
        return torch.zeros(())
    e = (x - x_hat).detach()
    e_hat = kept(pre[:, dead], min(len(dead), D_IN // 2)) @ sae.W_dec[dead]
    return variance_unexplained(e, e_hat)


def plain(recipe, sae: SAE, x: Tensor, dead: Tensor, ramp: float) -> tuple[Tensor, Tensor]:
    """(loss, x_hat) by dense autograd, without any code of the product but its parameters."""
    W_enc = sae.W_dec.T if getattr(recipe, "tied", False) else sae.W_enc
    pre = (x - sae.b_dec) @ W_enc + sae.b_enc
    match recipe:
        case TopK(k, aux, multi):
            x_hat = kept(pre, k) @ sae.W_dec + sae.b_dec
            wide = kept(pre, 4 * k) @ sae.W_dec + sae.b_dec
            loss = variance_unexplained(x, x_hat) + multi * variance_unexplained(x, wide)
            return loss + aux * auxk(sae, x, pre, x_hat, dead), x_hat
        case BatchTopK(k, aux):
            lowest = pre.flatten().sort(descending=True).values[k * len(x) - 1]
            x_hat = pre.relu() * (pre >= lowest) @ sae.W_dec + sae.b_dec
            return variance_unexplained(x, x_hat) + aux * auxk(sae, x, pre, x_hat, dead), x_hat
        case Matryoshka(k, prefixes, aux):
            f = pre.relu() * (pre >= pre.flatten().sort(descending=True).values[k * len(x) - 1])
            sizes = [round(share * N_LATENTS) for share in prefixes]
            parts = [f[:, :n] @ sae.W_dec[:n] + sae.b_dec for n in sizes]
            loss = sum(variance_unexplained(x, part) for part in parts) / len(parts)
            return loss + aux * auxk(sae, x, pre, parts[-1], dead), parts[-1]
        case ReLU(l1):
            x_hat = pre.relu() @ sae.W_dec + sae.b_dec
            return (((x - x_hat) ** 2).sum(-1) + ramp * l1 * pre.relu().sum(-1)).mean() / D_IN, x_hat
        case Gated(l1):
            gate = pre + sae.b_gate
            x_hat = (gate > 0) * (sae.r_mag.exp() * pre + sae.b_mag).relu() @ sae.W_dec + sae.b_dec
            frozen = gate.relu() @ sae.W_dec.detach() + sae.b_dec.detach()
            squares = ((x - x_hat) ** 2).sum(-1) + ((x - frozen) ** 2).sum(-1)
            return (squares + ramp * l1 * gate.relu().sum(-1)).mean() / D_IN, x_hat


@pytest.mark.parametrize("name", [name for name in EACH if name != "jumprelu"])
@pytest.mark.parametrize("dead", [NONE, SOME], ids=["none dead", "some dead"])
def test_losses_and_gradients_are_those_of_the_plain_computation(name, dead):
    recipe = EACH[name]
    if name in ("relu", "tied", "gated") and len(dead):
        return  # they have no use for dead latents
    sae, x = in_the_middle(recipe, dead=dead)
    result, (loss, x_hat) = outcome(recipe, sae, x, dead, 0.4), plain(recipe, sae, x, dead, 0.4)
    torch.testing.assert_close(result.loss, loss, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(result.x_hat, x_hat, atol=1e-12, rtol=1e-10)
    computed, expected = gradients(result.loss, sae), gradients(loss, sae)
    for parameter, gradient in computed.items():
        torch.testing.assert_close(gradient, expected[parameter], atol=1e-12, rtol=1e-9, msg=f"gradient of {parameter}")
        assert gradient.abs().max() > 1e-4
    through = (gradients(o.cos().sum(), sae) for o in (result.x_hat, x_hat))  # as a KL divergence reads it
    for computed, expected in zip(*(part.values() for part in through), strict=True):
        torch.testing.assert_close(computed, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", EACH)
def test_what_is_reported(name):
    recipe = EACH[name]
    sae, x = in_the_middle(recipe)
    result = outcome(recipe, sae, x)
    assert result.fvu.item() == pytest.approx(fvu(x, result.x_hat.detach()), rel=1e-9)
    if isinstance(recipe, BatchTopK | Matryoshka):
        codes = sparse.batch_top(sae.pre(x).detach(), K * BATCH)
        f = codes.dense()
        assert result.threshold == codes.values.min() > 0
    else:
        f = sae.encode(x)
        assert result.threshold is None
        assert torch.allclose(result.x_hat, sae.decode(f))
    assert result.l0.item() == pytest.approx(l0(f)) and result.l0 > 0
    assert torch.equal(result.active, (f > 0).any(0))


@pytest.mark.parametrize("name", EACH)
def test_a_loss_changes_no_state(name):
    sae, x = in_the_middle(EACH[name])
    before = {key: tensor.clone() for key, tensor in sae.state_dict().items()}
    outcome(EACH[name], sae, x, SOME).loss.backward()
    assert all(torch.equal(before[key], tensor) for key, tensor in sae.state_dict().items())


@pytest.mark.parametrize("name", ["topk", "multi", "batchtopk", "matryoshka"])
def test_scratch_used_before_does_not_show(name):
    """One memory serves dictionaries of all sizes in turn."""
    recipe, scratch = EACH[name], sparse.Scratch()
    sae, x = in_the_middle(recipe, dead=SOME)
    alone = outcome(recipe, sae, x, SOME)
    scratch.pre(normal(200, 30).double(), normal(30, 50).double(), normal(50).double(), normal(30).double())
    after = recipe.loss(sae, x, LossContext(SOME, 1.0, scratch))
    scratch.pre(x, sae.W_enc, sae.b_enc + 5, sae.b_dec)  # overwritten before the gradients are asked for
    assert torch.equal(alone.loss, after.loss)
    a, b = gradients(alone.loss, sae), gradients(after.loss, sae)
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["topk", "multi", "batchtopk", "matryoshka"])
def test_latents_encoded_some_rows_at_a_time_are_those_of_the_whole_batch(name):
    """Of a large batch no more than codes are kept."""
    recipe = EACH[name]
    sae, x = in_the_middle(recipe, dead=SOME)
    whole = outcome(recipe, sae, x, SOME)
    parts = recipe.loss(sae, x, LossContext(SOME, 1.0, sparse.Scratch(most=10 * N_LATENTS)))
    torch.testing.assert_close(parts.loss, whole.loss, atol=1e-14, rtol=1e-14)
    a, b = gradients(whole.loss, sae), gradients(parts.loss, sae)
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-14, rtol=1e-12)
    assert torch.equal(parts.active, whole.active)


# ---- dead latents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["topk", "multi", "batchtopk", "matryoshka"])
def test_the_auxiliary_loss_moves_the_encoder_of_dead_latents_and_of_no_live_one(name):
    recipe = replace(EACH[name], multi=0.0) if name == "multi" else EACH[name]
    sae, x = in_the_middle(recipe, dead=SOME)
    dead = torch.zeros(N_LATENTS, dtype=torch.bool).index_fill(0, SOME, True)
    assert not outcome(recipe, sae, x).active[dead].any()
    without = gradients(outcome(replace(recipe, aux=0.0), sae, x, SOME).loss, sae)
    unaware = gradients(outcome(recipe, sae, x, NONE).loss, sae)
    assert all(torch.equal(without[key], unaware[key]) for key in without)  # control: none is dead, nothing changes
    for key in ("W_dec", "b_enc"):
        assert not without[key][dead].any()
    assert not without["W_enc"][:, dead].any()
    auxiliary = gradients(outcome(recipe, sae, x, SOME).loss, sae)
    assert (auxiliary["W_enc"][:, dead].abs().amax(0) > 0).all()
    assert (auxiliary["W_dec"][dead].abs().amax(1) > 0).all() and auxiliary["b_enc"][dead].all()
    for key in ("W_dec", "b_enc"):
        assert torch.equal(without[key][~dead], auxiliary[key][~dead])
    assert torch.equal(without["W_enc"][:, ~dead], auxiliary["W_enc"][:, ~dead])


def test_multi_topk_moves_the_encoder_of_latents_beyond_k():
    sae, x = in_the_middle(TopK(K))
    with torch.no_grad():
        sae.W_enc[:, 7] = 0
        sae.b_enc[7] = 0
        sae.b_enc[7] = 0.99 * sae.pre(x).topk(K).values.min()
    alone, multi = (gradients(outcome(TopK(K, multi=m), sae, x).loss, sae) for m in (0.0, 1 / 8))
    assert not alone["W_enc"][:, 7].any() and not alone["b_enc"][7]
    assert multi["W_enc"][:, 7].abs().max() > 1e-6 and multi["b_enc"][7] != 0


def test_all_latents_dead_or_fewer_than_are_asked_for():
    sae, x = in_the_middle(TopK(K))
    for dead in (torch.arange(N_LATENTS), torch.tensor([5])):
        value, expected = outcome(TopK(K, aux=1.0), sae, x, dead).loss, plain(TopK(K, aux=1.0), sae, x, dead, 1.0)[0]
        torch.testing.assert_close(value, expected)


# ---- BatchTopK and its threshold -----------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [BatchTopK(2), Matryoshka(2, (0.5, 1.0))], ids=["batchtopk", "matryoshka"])
def test_once_trained_a_code_is_a_tokens_own_though_the_choice_in_training_is_not(recipe):
    stream = Planted(planted_directions().double())
    state = start(stream, TrainConfig(recipe, tokens=60 * 256, batch=256, lr=3e-3))
    for _ in train(stream, state):
        pass
    (sae,) = state.dictionaries().values()
    assert type(sae) is JumpReLUSAE and sae.threshold.min() == sae.threshold.max() > 0
    x = next(stream.block(7))[stream.sites[0]][:50]
    small, large = torch.cat([x[:1], 0.1 * x]), torch.cat([x[:1], 5 * x])
    for batch in (x, small, large, x[:1]):
        assert torch.allclose(sae.encode(batch)[0], sae.encode(x)[0], atol=1e-12)
    choices = [sparse.batch_top(sae.pre(batch), 2 * len(batch)).dense()[0] for batch in (small, large)]
    assert (choices[0] > 0).sum() > (choices[1] > 0).sum()  # control
