"""Three routes, one answer: closed forms against whole forward passes with hooks, in float64."""

import pytest
import torch
from handmade import random_topk
from tiny import random_tokens, user_error, write_tiny

from circuits.effects import exact_routes as routes
from circuits.effects.ablation_effects import Causes, ablation_effects, effects_by_position, to_zero
from circuits.effects.exact_routes import InParts, OneBlock, Rerun, SamePlace, route
from circuits.effects.scene import Scene
from circuits.effects.screens import first_order, integrated
from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import Readout
from editing.engine.suffix_run import SuffixRun
from editing.interventions.patch import ablate
from sae_core.dictionaries.baselines import random_basis
from sae_core.dictionaries.saes import GatedSAE, JumpReLUSAE, ReLUSAE
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.sites import FeatureId, Site, Stream

ENDS = torch.tensor([8, 3, 5, 7, 2, 8])
A, M, H, R = Stream.ATTN_OUT, Stream.MLP_OUT, Stream.MLP_HIDDEN, Stream.RESID_POST
N_LATENTS = 12


@pytest.fixture(scope="module", params=("neox", "gpt2", "llama", "sequential neox"))
def double(request, tmp_path_factory) -> LanguageModel:
    """Random models in float64. Llama's own norm computes in float32, whatever it is given."""
    kind, _, _ = request.param.rpartition(" ")
    shape = {"use_parallel_residual": False} if kind else {}
    folder = tmp_path_factory.mktemp("model")
    model = load_model(write_tiny(folder, "neox" if kind else request.param, **shape), device="cpu")
    model.bridge.to(torch.float64, print_details=False)
    model.exact = 1e-5 if request.param == "llama" else 1e-10
    return model


def prompts(model: LanguageModel) -> Examples:
    tokens = random_tokens(model.n_vocab, len(ENDS), 9, seed=3)
    tokens[:, 0] = model.bos_id
    return Examples(tokens, ENDS, torch.ones(len(ENDS)))


def dictionary(kind: str, d_in: int, seed: int = 0):
    """Untrained, in float64."""
    if kind == "topk":
        return random_topk(d_in, N_LATENTS, 3, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    if kind == "basis":
        return random_basis(d_in, generator=generator)
    sae = {"relu": ReLUSAE, "jumprelu": JumpReLUSAE, "gated": GatedSAE}[kind](d_in, N_LATENTS, generator=generator)
    with torch.no_grad():
        if kind == "jumprelu":
            sae.threshold += 0.2
    return sae.double().requires_grad_(False)


def loudest(model: LanguageModel, site: Site, sae, examples: Examples) -> FeatureTarget:
    h = model.record(examples.tokens, [site])[site][torch.arange(len(ENDS)), ENDS]
    return FeatureTarget(FeatureId(site, int(sae.encode(h).sum(0).argmax())), sae)


def naive(model: LanguageModel, source: Site, sae, target, examples: Examples) -> torch.Tensor:
    """Every latent in turn by a whole forward pass with a hook."""
    content, everyone = model.content(examples.tokens), torch.arange(len(ENDS))

    def read(*edits) -> torch.Tensor:
        with model.hooks(*edits):
            h = model.record(examples.tokens, [target.site])[target.site]
        return target.read(h[everyone, ENDS], everyone)

    clean = read()
    drops = [(clean - read(ablate(source, sae, [j], mask=content))).sum() for j in range(len(sae.directions))]
    return torch.stack(drops) / clean.sum().abs()


EDGES = [
    (Site(0), Site(1), OneBlock),
    (Site(1), Site(2), OneBlock),
    (Site(0, M), Site(1, A), OneBlock),
    (Site(1), Site(2, M), OneBlock),
    (Site(0), Site(2), Rerun),
    (Site(0, H), Site(1), Rerun),
    (Site(1), Site(2, H), Rerun),
    (Site(2, M), Site(2), SamePlace),
    (Site(0, A), Site(0), None),
    (Site(0, A), Site(1), None),
]


@pytest.mark.slow
@pytest.mark.parametrize("source, into, kind", EDGES, ids=lambda value: str(value))
def test_effects_are_those_of_exhaustive_ablation(double, source, into, kind):
    examples = prompts(double)
    sae, other = (dictionary("topk", double.d_in(site), seed) for seed, site in ((0, source), (9, into)))
    target = loudest(double, into, other, examples)
    causes = Causes.of(double, sae, source, target, examples)
    expected = naive(double, source, sae, target, examples)
    assert kind is None or isinstance(causes.route, kind)
    assert (ablation_effects(causes).effect - expected).abs().max() < double.exact
    assert expected.abs().max() > 1e-3, "control: something depends on something"


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated", "basis"])
def test_whatever_the_dictionaries(double, kind):
    examples = prompts(double)
    sae, other = dictionary(kind, 32), dictionary(kind, 32, 5)
    if kind == "basis":
        sae, other = (type(b)(b.directions.double(), b.mean.double()) for b in (sae, other))
    target = loudest(double, Site(2), other, examples)
    causes = Causes.of(double, sae, Site(1), target, examples)
    assert isinstance(causes.route, OneBlock)
    expected = naive(double, Site(1), sae, target, examples)
    assert (ablation_effects(causes).effect - expected).abs().max() < double.exact and expected.abs().max() > 1e-3


@pytest.mark.slow
def test_logits_are_read_where_the_last_residual_is(double):
    examples, sae = prompts(double), dictionary("topk", 32)
    plus, minus = torch.arange(len(ENDS)) + 5, torch.arange(len(ENDS)) + 50
    target = LogitTarget(Readout("a - b"), double, plus, minus)
    for source, kind in ((Site(2), SamePlace), (Site(1), OneBlock), (Site(0), Rerun)):
        causes = Causes.of(double, sae, source, target, examples)
        assert isinstance(causes.route, kind)
        expected = naive(double, source, sae, target, examples)
        assert (ablation_effects(causes).effect - expected).abs().max() < double.exact and expected.abs().max() > 1e-3


def test_a_direct_effect_leaves_the_blocks_between_alone(double):
    """By hand: block 2 is given the clean residual without the latent's part, block 1 what it had."""
    examples = prompts(double)
    sae, other = dictionary("topk", 32), dictionary("topk", 32, 9)
    target = loudest(double, Site(2), other, examples)
    effect = ablation_effects(Causes.along(route(double, Site(0), target, examples, direct=True), sae)).effect
    clean = double.record(examples.tokens, [Site(0), Site(1), Site(2)])
    codes = sae.encode(clean[Site(0)]) * double.content(examples.tokens)[..., None]
    everyone = torch.arange(len(ENDS))
    value = target.read(clean[Site(2)][everyone, ENDS], everyone)
    for j in range(N_LATENTS):
        x = clean[Site(1)] - codes[..., [j]] * sae.directions[j]
        after = double.resume(x, 1, [Site(2)])[Site(2)][everyone, ENDS]
        expected = (value - target.read(after, everyone)).sum() / value.sum()
        assert float(effect[j]) == pytest.approx(float(expected), abs=double.exact)
    total = ablation_effects(Causes.of(double, sae, Site(0), target, examples)).effect
    assert (effect - total).abs().max() > 1e-3, "control: blocks in between carry something"


def test_a_block_that_says_something_else_is_not_relied_on(double, monkeypatch):
    """A closed form that forgot the rotation or a bias would be found out on the clean run."""
    examples, sae = prompts(double), dictionary("topk", 32)
    target = loudest(double, Site(1), dictionary("topk", 32, 9), examples)
    assert isinstance(route(double, Site(0), target, examples), OneBlock)
    monkeypatch.setattr(routes.OneBlock, "_scale", lambda self, square: square.rsqrt().to(self.x.dtype))
    causes = Causes.of(double, sae, Site(0), target, examples)
    assert isinstance(causes.route, Rerun)
    assert (ablation_effects(causes).effect - naive(double, Site(0), sae, target, examples)).abs().max() < double.exact


def test_what_is_not_upstream_is_refused(double):
    examples, other = prompts(double), dictionary("topk", 32, 9)
    target = loudest(double, Site(1), other, examples)
    for source, words in ((Site(2), ("resid_post.2", "before")), (Site(1), ("1_", "itself"))):
        with user_error(*words):
            Scene.of(double, source, target, examples)
    with user_error("mlp_hidden.0", "direct"):
        route(double, Site(0, H), target, examples, direct=True)


def test_nothing_is_taken_where_nothing_is_active(double):
    examples, sae = prompts(double), dictionary("topk", 32)
    target = loudest(double, Site(1), dictionary("topk", 32, 9), examples)
    causes = Causes.of(double, sae, Site(0), target, examples, ablation=lambda codes, example: codes)
    effects = ablation_effects(causes)
    assert not effects.effect.any() and not effects.n_active.any() and effects.n_pairs == 0
    assert ablation_effects(Causes.of(double, sae, Site(0), target, examples, ablation=to_zero)).effect.any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["neox", "gpt2", "llama"])
def test_parts_of_several_blocks_say_what_a_rerun_says(tiny_models, kind):
    """In single precision, which parts need: ablations, single places, gradients at several points at once."""
    model = tiny_models[kind]
    examples, sae = prompts(model), dictionary("topk", 32).float()
    target = loudest(model, Site(2), dictionary("topk", 32, 9).float(), examples)
    parts = Causes.of(model, sae, Site(0), target, examples)
    plain = Causes.along(Rerun(parts.scene), sae)
    assert isinstance(parts.route, InParts) and not isinstance(plain.route, InParts)
    for compute in (lambda c: ablation_effects(c).effect, lambda c: effects_by_position(c)[0], first_order, integrated):
        expected = compute(plain)
        assert (compute(parts) - expected).abs().max() < 1e-5 * max(1, float(expected.abs().max()))
        assert expected.abs().max() > 1e-3, "control: something depends on something"


def test_parts_that_say_something_else_are_not_relied_on(tiny_models, monkeypatch):
    model, sae = tiny_models["llama"], dictionary("topk", 32).float()
    target = loudest(model, Site(2), dictionary("topk", 32, 9).float(), prompts(model))
    monkeypatch.setattr(SuffixRun, "_run", lambda self, prompts, change: self.x[prompts][:, -1])
    assert type(Causes.of(model, sae, Site(0), target, prompts(model)).route) is Rerun
