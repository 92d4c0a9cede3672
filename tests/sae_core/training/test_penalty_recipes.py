"""Penalties and straight-through gradients, written out; names and options of all recipes."""

from dataclasses import replace

import pytest
import torch
from planted import generator, unchecked
from random_saes import normal
from recipes import D_IN, EACH, N_LATENTS, K, gradients, in_the_middle, outcome, variance_unexplained
from tiny import user_error
from torch import Tensor

from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE
from sae_core.dictionaries.sparse import Codes
from sae_core.errors import UserError
from sae_core.evaluation.reconstruction import l0
from sae_core.training import penalty_recipes
from sae_core.training.config import RECIPES, recipe_from_json, recipe_to_json
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU, l1_of_mean
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

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
    value, (loss, by_hand) = outcome(recipe, sae, x, ramp=ramp).loss, jumprelu_by_hand(recipe, sae, x, ramp)
    torch.testing.assert_close(value, loss)
    computed = gradients(value, sae)
    for name, gradient in by_hand.items():
        torch.testing.assert_close(computed[name], gradient, atol=1e-12, rtol=1e-9, msg=f"gradient of {name}")
    assert computed["threshold"].abs().max() > 1e-4


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


# ---- a step through active entries, and through all -------------------------------------------------------

PENALTIES = {name: EACH[name] for name in ("relu", "tied", "jumprelu", "gated")}
RAMP = 0.4


def by_hand(recipe, sae: SAE, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients by the formulas over all entries, the encoder's product within autograd's graph."""
    if isinstance(sae, JumpReLUSAE):
        return jumprelu_by_hand(recipe, sae, x, RAMP)
    f, gate = sae.encode(x), (sae.pre(x) + sae.b_gate).relu() if isinstance(sae, GatedSAE) else None
    loss = (x - sae.decode(f)).square().sum() + RAMP * recipe.l1 * (f if gate is None else gate).sum()
    if gate is not None:
        loss = loss + (x - gate @ sae.W_dec.detach() - sae.b_dec.detach()).square().sum()
    return loss / x.numel(), gradients(loss / x.numel(), sae)


@torch.no_grad()
def shifted(recipe, case: str) -> tuple[SAE, Tensor]:
    """A dictionary in the middle of training, as many of whose latents are active as the case says."""
    sae, x = in_the_middle(recipe)
    bias = sae.b_gate if isinstance(sae, GatedSAE) else sae.b_enc
    bias += {"dense": 3.0, "all": 1e3, "none": -1e3}.get(case, -1.5)
    if case == "empty rows":
        bias.clamp_(max=-1.0)
        x[[0, 1, 40, -1]] = sae.b_dec.clone()
    if case == "ties":  # at the threshold itself, and at both ends of its kernel
        x[::2] = sae.b_dec.clone()
        bias.fill_(0.0)
        if isinstance(sae, JumpReLUSAE):
            bias.fill_(1.0)
            sae.threshold.copy_(torch.tensor([1.0, 0.75, 1.25, 0.5, 1.5]).repeat(8))
    return sae, x


@pytest.mark.parametrize("case", ["sparse", "dense", "all", "none", "empty rows", "ties"])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_step_through_active_entries_is_the_step_through_all(name, case, monkeypatch):
    """Loss, reconstruction, activity and every gradient. Control: an entry less is another step."""
    recipe = replace(PENALTIES[name], bandwidth=0.5) if name == "jumprelu" else PENALTIES[name]
    sae, x = shifted(recipe, case)
    loss, expected = by_hand(recipe, sae, x)
    results = []
    for few in (1.0, 0.0):  # through active entries; through all, unless there is none
        monkeypatch.setattr(penalty_recipes, "FEW", few)
        results.append(result := outcome(recipe, sae, x, ramp=RAMP))
        torch.testing.assert_close(result.loss, loss, atol=1e-12, rtol=1e-12)
        for parameter, gradient in gradients(result.loss, sae).items():
            torch.testing.assert_close(gradient, expected[parameter], atol=1e-12, rtol=1e-12, msg=parameter)
    a, b = results
    torch.testing.assert_close(a.x_hat, b.x_hat, atol=1e-12, rtol=1e-12)
    assert torch.equal(a.active, b.active) and a.l0 == b.l0 == (sae.encode(x) != 0).double().sum(-1).mean()
    if case not in ("all", "none"):
        monkeypatch.setattr(penalty_recipes, "FEW", 1.0)
        monkeypatch.setattr(Codes, "where", lambda f, mask, where=Codes.where: where(f, mask & (mask.cumsum(0) < 9)))
        assert (gradients(outcome(recipe, sae, x, ramp=RAMP).loss, sae)["W_dec"] - expected["W_dec"]).abs().max() > 1e-4


def test_the_way_through_active_entries_is_taken_where_they_are_few(monkeypatch):
    sae, x = shifted(ReLU(), "sparse")
    share, calls = (sae.encode(x) != 0).double().mean().item(), []
    monkeypatch.setattr(Codes, "where", lambda f, mask, where=Codes.where: calls.append(0) or where(f, mask))
    for few, expected in ((0.99 * share, 0), (1.01 * share, 1)):
        monkeypatch.setattr(penalty_recipes, "FEW", few)
        outcome(ReLU(), sae, x)
        assert len(calls) == expected


# ---- conventions of L1 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_the_sum_convention_is_d_in_times_the_mean_convention(tied):
    alpha = 0.03
    recipe = ReLU(l1_of_mean(alpha, D_IN), tied)
    sae, x = in_the_middle(recipe)
    f = sae.encode(x)
    of_mean = (x - sae.decode(f)).square().mean(-1).mean() + alpha * f.sum(-1).mean()
    of_sum = outcome(recipe, sae, x).loss
    torch.testing.assert_close(of_sum, of_mean)
    a, b = gradients(of_sum, sae), gradients(of_mean, sae)
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
    with user_error('"kind"', "{'k': 3}"):
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
        with pytest.raises(UserError, match=r"must be|expected"), unchecked():  # the reader of JSON knows types
            recipe_from_json({"kind": kind.__name__.lower(), option: value})


def test_prefixes_must_rise_to_the_whole():
    for prefixes in ((), (0.5,), (0.5, 0.25, 1.0), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 1.5)):
        with user_error("prefixes"):
            Matryoshka(prefixes=prefixes)
    assert Matryoshka(prefixes=[0.5, 1.0]).prefixes == (0.5, 1.0)
    assert Matryoshka().widths(1024) == [64, 128, 256, 512, 1024]
    assert Matryoshka(prefixes=(0.001, 0.5, 1.0)).widths(10) == [1, 5, 10]
