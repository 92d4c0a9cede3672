"""Every loss and gradient is that of a plain dense computation, written out here; conventions are what they say."""

from dataclasses import replace

import pytest
import torch
from planted import Planted, generator, planted_directions, unchecked
from random_saes import normal
from tiny import user_error
from torch import Tensor

from sae_core.dictionaries import sparse
from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE
from sae_core.evaluation.reconstruction import fvu, l0
from sae_core.training.config import RECIPES, TrainConfig, recipe_from_json, recipe_to_json
from sae_core.training.loop import start, train
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU, l1_of_mean
from sae_core.training.recipe import LossContext
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

D_IN, N_LATENTS, K, BATCH = 8, 40, 3, 64
NONE, SOME = torch.tensor([], dtype=torch.long), torch.tensor([4, 11, 12, 30, 31, 32, 39])
EACH = {
    "topk": TopK(K),
    "multi": TopK(K, multi=1 / 8),
    "no aux": TopK(K, aux=0.0),
    "batchtopk": BatchTopK(K),
    "matryoshka": Matryoshka(K),
    "relu": ReLU(0.7),
    "tied": ReLU(0.7, tied=True),
    "jumprelu": JumpReLU(K, bandwidth=0.6),
    "gated": Gated(0.7),
}


def in_the_middle(recipe, *, dead: Tensor = NONE, seed: int = 0) -> tuple[SAE, Tensor]:
    """A float64 dictionary and activations as in the middle of training; `dead` latents are never chosen."""
    sae = recipe.new(D_IN, N_LATENTS, generator=generator(seed)).double()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sae.named_parameters()):
            if name != "threshold":
                parameter += 0.3 * normal(*parameter.shape, seed=100 + 10 * seed + i)
        sae.normalise()
        if len(dead):
            sae.W_enc[:, dead] *= 0.01
            sae.b_enc[dead] = 0.01
    return sae, 2 * normal(BATCH, D_IN, seed=9 + seed).double() + 0.5


def outcome(recipe, sae: SAE, x: Tensor, dead: Tensor = NONE, ramp: float = 1.0):
    return recipe.loss(sae, x, LossContext(dead, ramp))


def gradients(loss: Tensor, sae: SAE) -> dict[str, Tensor]:
    names, parameters = zip(*[(n, p) for n, p in sae.named_parameters() if p.requires_grad], strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


# ---- the plain computation -----------------------------------------------------------------------------


def variance_unexplained(x: Tensor, x_hat: Tensor) -> Tensor:
    return ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


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
    ours, (loss, x_hat) = outcome(recipe, sae, x, dead, 0.4), plain(recipe, sae, x, dead, 0.4)
    torch.testing.assert_close(ours.loss, loss, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(ours.x_hat, x_hat, atol=1e-12, rtol=1e-10)
    mine, theirs = gradients(ours.loss, sae), gradients(loss, sae)
    for parameter, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[parameter], atol=1e-12, rtol=1e-9, msg=f"gradient of {parameter}")
        assert gradient.abs().max() > 1e-4
    through = (gradients(o.cos().sum(), sae) for o in (ours.x_hat, x_hat))  # as a KL divergence reads it
    for mine, theirs in zip(*(own.values() for own in through), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", EACH)
def test_what_is_reported(name):
    recipe = EACH[name]
    sae, x = in_the_middle(recipe)
    ours = outcome(recipe, sae, x)
    assert ours.fvu.item() == pytest.approx(fvu(x, ours.x_hat.detach()), rel=1e-9)
    if isinstance(recipe, BatchTopK | Matryoshka):
        codes = sparse.batch_top(sae.pre(x).detach(), K * BATCH)
        f = codes.dense()
        assert ours.threshold == codes.values.min() > 0
    else:
        f = sae.encode(x)
        assert ours.threshold is None
        assert torch.allclose(ours.x_hat, sae.decode(f))
    assert ours.l0.item() == pytest.approx(l0(f)) and ours.l0 > 0
    assert torch.equal(ours.active, (f > 0).any(0))


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
        ours, theirs = outcome(TopK(K, aux=1.0), sae, x, dead).loss, plain(TopK(K, aux=1.0), sae, x, dead, 1.0)[0]
        torch.testing.assert_close(ours, theirs)


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


# ---- JumpReLU ------------------------------------------------------------------------------------------


def jumprelu_by_hand(recipe: JumpReLU, sae: JumpReLUSAE, x: Tensor, ramp: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its gradients: on active latents by autograd, for thresholds by the kernel formula."""
    pre, theta = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc), sae.threshold.detach()
    on = (pre > theta).double()
    f = (pre * on).detach().requires_grad_()
    fit = variance_unexplained(x, f @ sae.W_dec + sae.b_dec)
    d_f = torch.autograd.grad(fit, f)[0]
    count = on.sum(-1).mean()
    loss = fit + ramp * recipe.l0 * (count / recipe.k - 1) ** 2
    d_on = ramp * recipe.l0 * 2 * (count / recipe.k - 1) / recipe.k / len(x)
    kernel = ((pre - theta).abs() <= recipe.bandwidth / 2).double()
    by_hand = gradients(variance_unexplained(x, (pre * on) @ sae.W_dec + sae.b_dec), sae)
    by_hand["threshold"] = -(kernel * (theta * d_f + d_on)).sum(0) / recipe.bandwidth
    return loss, by_hand


@pytest.mark.parametrize("ramp", [0.0, 0.4, 1.0])
def test_jumprelu_by_the_kernel_formula(ramp):
    recipe = JumpReLU(K, bandwidth=0.6)
    sae, x = in_the_middle(recipe)
    ours, (loss, by_hand) = outcome(recipe, sae, x, ramp=ramp).loss, jumprelu_by_hand(recipe, sae, x, ramp)
    torch.testing.assert_close(ours, loss)
    mine = gradients(ours, sae)
    for name, gradient in by_hand.items():
        torch.testing.assert_close(mine[name], gradient, atol=1e-12, rtol=1e-9, msg=f"gradient of {name}")
    assert mine["threshold"].abs().max() > 1e-4


def test_the_gradient_of_l0_is_its_difference_quotient_over_the_bandwidth():
    """Raising a threshold by the bandwidth, centred, takes away just the latents that the kernel counts."""
    recipe, width = JumpReLU(K, l0=1.0, bandwidth=0.5), 0.5
    sae, x = in_the_middle(recipe)
    with torch.no_grad():
        sae.threshold.fill_(0.6)
    both = [gradients(outcome(recipe, sae, x, ramp=ramp).loss, sae)["threshold"] for ramp in (1.0, 0.0)]
    pre = sae.pre(x).detach()
    count = (pre > 0.6).double().sum(-1).mean()
    slope = ((pre > 0.6 + width / 2).double().mean(0) - (pre > 0.6 - width / 2).double().mean(0)) / width
    expected = 2 * (count / K - 1) / K * slope
    torch.testing.assert_close(both[0] - both[1], expected, atol=1e-12, rtol=1e-9)
    assert expected.abs().max() > 0.01


def test_jumprelu_begins_near_four_k():
    sae = JumpReLU(4).new(64, 512, generator=generator())
    f = sae.encode(normal(2000, 64))  # unit variance in every direction
    assert 12 < l0(f) < 20
    assert JumpReLU(4).new(8, 8, generator=generator()).threshold.abs().max() < 1e-6  # half of them at most


# ---- Gated ---------------------------------------------------------------------------------------------


def test_gated_auxiliary_reconstruction_leaves_the_decoder_alone():
    """Its gradient reaches `b_dec` only as the encoder's input does."""
    recipe = Gated(0.0)
    sae, x = in_the_middle(recipe)
    whole = gradients(outcome(recipe, sae, x).loss, sae)
    alone = gradients(((x - sae.decode(sae.encode(x))) ** 2).sum(-1).mean() / D_IN, sae)
    rest = {name: whole[name] - alone[name] for name in whole}
    assert rest["W_dec"].abs().max() < 1e-12
    torch.testing.assert_close(rest["b_dec"], -(sae.W_enc @ rest["b_gate"]).detach(), atol=1e-12, rtol=1e-9)
    assert rest["b_gate"].abs().max() > 0.01 and rest["W_enc"].abs().max() > 0.01
    assert not alone["b_gate"].any()  # without it the gates would never learn
    thawed = (x - sae.decode((sae.pre(x) + sae.b_gate).relu())).square().sum(-1).mean() / D_IN  # control
    assert gradients(thawed, sae)["W_dec"].abs().max() > 0.01


def test_gated_penalty_is_on_the_gates():
    sae, x = in_the_middle(Gated())
    with_penalty, without = (gradients(outcome(Gated(l1), sae, x).loss, sae) for l1 in (1.0, 0.0))
    assert isinstance(sae, GatedSAE)
    for name in ("W_dec", "b_mag", "r_mag"):
        assert torch.allclose(with_penalty[name], without[name], atol=1e-15)
    expected = (sae.pre(x) + sae.b_gate > 0).double().mean(0) / D_IN
    assert torch.allclose(with_penalty["b_gate"] - without["b_gate"], expected)


# ---- conventions of L1 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_the_sum_convention_is_d_in_times_the_mean_convention(tied):
    alpha = 0.03
    recipe = ReLU(l1_of_mean(alpha, D_IN), tied)
    sae, x = in_the_middle(recipe)
    f = sae.encode(x)
    of_mean = (x - sae.decode(f)).square().mean(-1).mean() + alpha * f.sum(-1).mean()
    ours = outcome(recipe, sae, x).loss
    torch.testing.assert_close(ours, of_mean)
    a, b = gradients(ours, sae), gradients(of_mean, sae)
    for name in a:
        torch.testing.assert_close(a[name], b[name])
    assert l1_of_mean(8.6e-4, 512) == pytest.approx(0.44, abs=0.001)
    wrong = gradients(outcome(ReLU(alpha, tied), sae, x).loss, sae)  # control
    assert (wrong["b_enc"] - b["b_enc"]).abs().max() > 1e-3


@pytest.mark.parametrize("recipe", [ReLU(0.7), ReLU(0.7, tied=True), Gated(0.7)], ids=["relu", "tied", "gated"])
def test_larger_activations_with_an_equally_larger_penalty_are_the_same_problem(recipe):
    """The loss at s x, with biases and coefficient s times as large, is s^2 times the loss at x; codes are s times."""
    s = 3.7
    sae, x = in_the_middle(recipe)
    other = recipe.new(D_IN, N_LATENTS, generator=generator()).double()
    other.load_state_dict(sae.state_dict())
    with torch.no_grad():
        for name in sae.in_units_of_x:
            getattr(other, name).mul_(s)
    larger = replace(recipe, l1=s * recipe.l1)
    assert torch.allclose(other.encode(s * x), s * sae.encode(x), atol=1e-12)
    a, b = outcome(recipe, sae, x).loss, outcome(larger, other, s * x).loss
    torch.testing.assert_close(b, s**2 * a)
    for name, gradient in gradients(b, other).items():
        power = 1 if name in sae.in_units_of_x else 2
        torch.testing.assert_close(gradient, s**power * gradients(a, sae)[name], msg=name)
    same = outcome(recipe, other, s * x).loss  # control: with the coefficient as it was
    assert (same - s**2 * a).abs() > 0.01


# ---- names and options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
def test_recipes_come_back_from_json(name):
    assert recipe_from_json(recipe_to_json(EACH[name])) == EACH[name]


def test_recipes_by_name():
    for name, kind in RECIPES.items():
        assert recipe_to_json(kind())["kind"] == name and recipe_from_json({"kind": name}) == kind()
    with user_error("'gru'", "topk", "gated"):
        recipe_from_json({"kind": "gru"})
    with user_error("None"):
        recipe_from_json({"k": 3})
    with user_error("topk", "l1"):
        recipe_from_json({"kind": "topk", "l1": 3.0})


@pytest.mark.parametrize("kind", [TopK, BatchTopK, Matryoshka, JumpReLU])
def test_k_must_fit_the_dictionary(kind):
    with user_error("between 1 and", str(N_LATENTS)):
        kind(N_LATENTS + 1).new(D_IN, N_LATENTS, generator=generator())
    kind(N_LATENTS).new(D_IN, N_LATENTS, generator=generator())
    for k in (0, -3):
        with user_error("k must be at least 1", str(k)):
            kind(k)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "option", "values"),
    [
        *((kind, "k", (2.0, "many", None, True)) for kind in (TopK, BatchTopK, Matryoshka, JumpReLU)),
        *((kind, "aux", (-0.1, NAN, INF, "x")) for kind in (TopK, BatchTopK, Matryoshka)),
        (TopK, "multi", (-1.0, NAN)),
        (Matryoshka, "prefixes", ((NAN, 1.0), (-0.5, 1.0), ("half", 1.0))),
        (ReLU, "l1", (-1.0, NAN, INF, None)),
        (Gated, "l1", (-1.0, NAN, INF, None)),
        (JumpReLU, "l0", (-1.0, NAN)),
        (JumpReLU, "bandwidth", (0.0, -1.0, NAN, INF)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_options_that_make_no_sense_are_refused(kind, option, values):
    kind(**{option: getattr(kind(), option)})
    for value in values:
        with user_error("must be"), unchecked():
            kind(**{option: value})
        with user_error("must be"), unchecked():
            recipe_from_json({"kind": kind.__name__.lower(), option: value})


def test_prefixes_must_rise_to_the_whole():
    for prefixes in ((), (0.5,), (0.5, 0.25, 1.0), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 1.5)):
        with user_error("prefixes"):
            Matryoshka(prefixes=prefixes)
    assert Matryoshka(prefixes=[0.5, 1.0]).prefixes == (0.5, 1.0)
    assert Matryoshka().widths(1024) == [64, 128, 256, 512, 1024]
    assert Matryoshka(prefixes=(0.001, 0.5, 1.0)).widths(10) == [1, 5, 10]
