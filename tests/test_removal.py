"""Removing the pronouns: what an edit is charged with, and a planted latent that the search must find."""

from dataclasses import replace

import pytest
import torch
from handmade import Zero, random_topk
from sklearn.linear_model import LogisticRegression
from test_models import close
from tiny import user_error

from editing.erase import fit_leace
from editing.metrics import auroc
from editing.patch import ablate
from editing.removal import GONE, Removal, RemovalConfig, RemovalResult, Scaled, _Ground, remove_pronouns
from editing.tasks.pairs import at_end
from editing.tasks.pronouns import PRONOUNS, Split, own_score, pronoun_prompts
from sae_core.activations import harvest
from sae_core.dictionaries import Basis, pca
from sae_core.errors import UserError
from sae_core.sites import Site, Stream
from sae_core.text import Text

LAST, MIDDLE, MLP = Site(5), Site(3), Site(1, Stream.MLP_OUT)
CONFIG = RemovalConfig(
    selection_prompts=32, test_prompts=32, greedy_prompts=32, shortlist=8, max_features=4, text_contexts=8
)


@pytest.fixture(scope="module")
def contexts(storybook):
    return Text("storybook", 48, True, 12 * 48).contexts(storybook)


@pytest.fixture(scope="module")
def prompts(storybook):
    return pronoun_prompts(storybook, [Split.SELECTION], 32, seed=0)


@pytest.fixture(scope="module")
def components(storybook, contexts):
    """PCA of each site."""
    return {site: pca(x) for site, x in harvest(storybook, contexts, (MIDDLE, MLP)).items()}


@pytest.fixture(scope="module", params=[MIDDLE, MLP], ids=str)
def ground(request, storybook, prompts, contexts) -> _Ground:
    return _Ground(storybook, request.param, prompts, contexts[:4])


@pytest.fixture(scope="module")
def last(storybook, prompts, contexts) -> _Ground:
    return _Ground(storybook, LAST, prompts, contexts[:4])


# ---- what an edit is charged with ------------------------------------------------------------------


def plain_scores(ground: _Ground, edit) -> torch.Tensor:
    """logit(she) - logit(he) after each prompt alone, from its tokens, edited at all content positions."""
    scores = []
    for row, end in zip(ground.prompts.tokens, ground.prompts.end.tolist(), strict=True):
        tokens = row[None, : end + 1]
        with ground.model.hooks(replace(edit, mask=ground.model.content(tokens))):
            logits = ground.model.logits(tokens)[0, -1]
        scores.append(logits[ground.prompts.she] - logits[ground.prompts.he])
    return torch.stack(scores)


def plain_damage(ground: _Ground, text: torch.Tensor, edit, *, limit: float = 0.01) -> float:
    """Mean KL per content token at which the unedited model gives all pronouns together less than `limit`."""
    model = ground.model
    pronouns = [model.to_ids(f" {word}")[0] for word in PRONOUNS]
    pronouns = [i for i in set(pronouns) if i != model.tokenizer.unk_token_id]
    before = model.logits(text).log_softmax(-1)
    with model.hooks(replace(edit, mask=model.content(text))):
        after = model.logits(text).log_softmax(-1)
    total = n = 0
    for row in range(text.shape[0]):
        for pos in range(text.shape[1]):
            p, q = before[row, pos].double(), after[row, pos].double()
            if int(text[row, pos]) not in model.special_ids and p.exp()[pronouns].sum() < limit:
                total += (p.exp() * (p - q)).sum().item()
                n += 1
    return total / n


def test_an_edit_of_nothing_costs_nothing(ground, storybook, components):
    nothing = ablate(ground.site, components[ground.site], [])
    for edit in (nothing, Scaled(nothing, 3.0)):
        judged = ground.judge(edit, "nothing")
        assert judged.edit_size == 0 and judged.damage == pytest.approx(0, abs=1e-6)
        own, own_auroc = own_score(storybook, ground.prompts)
        assert judged.auroc == pytest.approx(own_auroc) and judged.accuracy == own.accuracy
        assert not judged.gone and judged.features == ()


def test_capability_and_damage_equal_those_of_full_forwards(ground, contexts, components):
    latents = [0, 1, 2, *range(5, 40)]
    edit = ablate(ground.site, components[ground.site], latents)
    judged = ground.judge(edit, "some")
    scores = plain_scores(ground, edit)
    fast = ground.scores((replace(edit, mask=ground.mask)(ground.x) - ground.x)[None])[0]
    close(fast, scores, 1e-4)
    assert judged.auroc == pytest.approx(auroc(scores, ground.prompts.female), abs=0.01)
    assert judged.accuracy == pytest.approx(((scores > 0) == ground.prompts.female).double().mean().item(), abs=0.04)
    assert judged.damage == pytest.approx(plain_damage(ground, contexts[:4], edit), rel=1e-3)
    assert judged.damage > 1e-4  # control
    place = "3" if ground.site == MIDDLE else "mlp_out.1"
    assert judged.features == tuple(f"{place}_{j}" for j in latents)


def test_edit_size_is_the_mean_over_content_tokens_of_the_text(ground, contexts, components):
    edit = ablate(ground.site, components[ground.site], [0, 3])
    x = harvest(ground.model, contexts[:4], (ground.site,))[ground.site][None]
    expected = (edit(x) - x).norm(dim=-1).mean().item()
    assert ground.judge(edit, "some").edit_size == pytest.approx(expected, rel=1e-4)


def test_damage_is_counted_only_where_no_pronoun_is_due(last, contexts):
    """Control: with the positions at which pronouns are likely it would be another number."""
    edit = fit_leace(LAST, last.last_tokens(), last.prompts.female.long())
    damage = last.judge(edit, "LEACE").damage
    assert damage == pytest.approx(plain_damage(last, contexts[:4], edit), rel=1e-3)
    assert abs(plain_damage(last, contexts[:4], edit, limit=2.0) / damage - 1) > 0.02
    assert 0 < last.counted.sum() < last.text_mask.sum()
    assert not (last.counted & ~last.text_mask).any()


def test_fewer_prompts_are_the_first(last):
    few = last.first(6)
    change = torch.randn(2, *last.x.shape, generator=torch.Generator().manual_seed(0))
    close(few.scores(change[:, :6]), last.scores(change)[:, :6], 1e-4)
    assert len(few.prompts) == 6 and len(last.prompts) == 32
    assert torch.equal(few.last_tokens(), last.last_tokens()[:6])


def test_streams_that_do_not_add_to_the_residual_are_refused(storybook, prompts, contexts):
    with user_error("attn_out.2", "resid_post", "mlp_out"):
        _Ground(storybook, Site(2, Stream.ATTN_OUT), prompts, contexts[:1])


# ---- strength and erasure --------------------------------------------------------------------------


def test_strength_zero_is_the_identity_and_one_the_edit():
    h = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    edit = ablate(LAST, random_topk(32), list(range(20)))
    assert torch.equal(Scaled(edit, 0.0)(h), h)
    close(Scaled(edit, 1.0)(h), edit(h))
    close(Scaled(edit, 2.5)(h) - h, 2.5 * (edit(h) - h))
    assert (edit(h) - h).norm(dim=-1).max() > 0.1 and Scaled(edit, 2.0).site == LAST


def test_a_mask_limits_the_scaled_edit():
    h, mask = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 2:] = True
    edit = ablate(LAST, random_topk(32), list(range(20)))
    limited = replace(Scaled(edit, 2.0), mask=mask)(h)
    assert torch.equal(limited[~mask], h[~mask])
    assert torch.equal(limited[mask], Scaled(edit, 2.0)(h)[mask])


def test_a_scaled_edit_keeps_the_mask_of_its_own():
    """Once, a strength made a masked edit change every position."""
    h, mask = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 2:] = True
    masked = ablate(LAST, random_topk(32), list(range(20)), mask=mask)
    assert torch.equal(Scaled(masked, 2.0)(h)[~mask], h[~mask])


def test_leace_erases_the_class_from_the_last_tokens_it_was_fitted_on(last):
    x, labels = last.last_tokens(), last.prompts.female.long()

    def probe(x: torch.Tensor) -> float:
        fitted = LogisticRegression(max_iter=1000).fit(x.double().numpy(), labels.numpy())
        return fitted.score(x.double().numpy(), labels.numpy())

    erased = fit_leace(LAST, x, labels)(x[:, None])[:, 0]
    assert probe(x) == 1
    gap = erased[labels == 1].mean(0) - erased[labels == 0].mean(0)
    assert gap.norm() < 1e-3 * (x[labels == 1].mean(0) - x[labels == 0].mean(0)).norm()
    assert probe(erased) <= 0.55


# ---- from end to end -------------------------------------------------------------------------------


def outcome(storybook, dictionaries, contexts, config=CONFIG, **where) -> RemovalResult:
    *lines, result = remove_pronouns(storybook, dictionaries, contexts, config, **where)
    assert lines and all(isinstance(line, str) and "\n" not in line for line in lines)
    return result


def named(result: RemovalResult) -> dict[str, Removal]:
    return {method.method: method for method in result.methods}


@pytest.fixture(scope="module")
def planted(storybook) -> dict[str, Basis]:
    """Last-layer bases: one whose latent 0 alone carries the class, and one that lacks that direction.

    The direction is the difference of the class means at the ends of the prompts, on names that are not
    the test's; the other latents are orthogonal to it.
    """
    ends, female = [], []
    for split in (Split.SELECTION, Split.CHECK):
        own = pronoun_prompts(storybook, [split], 128, seed=1)
        ends.append(at_end(storybook.record(own.tokens, [LAST])[LAST], own.end))
        female.append(own.female)
    x, labels = torch.cat(ends).double(), torch.cat(female)
    difference = x[labels].mean(0) - x[~labels].mean(0)
    rest = torch.randn(127, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([difference[None], rest]).T).Q.T.float().contiguous()
    centre = (x[labels].mean(0) + x[~labels].mean(0)).float() / 2
    return {"with": Basis(basis, centre), "without": Basis(basis[1:].contiguous(), centre)}


def test_the_search_finds_a_latent_that_alone_carries_the_class(storybook, planted, contexts):
    result = outcome(storybook, {LAST: planted["with"]}, contexts, replace(CONFIG, random_draws=1))
    features = named(result)["features"]
    assert features.features[0] == "5_0" and abs(features.auroc - 0.5) < 0.3
    assert named(result)["random features"].auroc > 0.95


def test_a_dictionary_without_that_latent_cannot_remove_the_class(storybook, planted, contexts):
    """Negative control: the same basis, but for the one direction."""
    config = replace(CONFIG, random_draws=1)
    try:
        features = named(outcome(storybook, {LAST: planted["without"]}, contexts, config))["features"]
    except UserError as error:
        assert "no feature" in str(error)
    else:
        assert not features.gone and features.auroc > 0.95


@pytest.fixture(scope="module")
def result(storybook, planted, components, contexts) -> RemovalResult:
    dictionaries = {LAST: planted["with"], **components, Site(2, Stream.ATTN_OUT): random_topk(128)}
    return outcome(storybook, dictionaries, contexts)


def test_the_result_is_consistent(result):
    assert result.own_auroc >= 0.99 and result.own.n == CONFIG.test_prompts
    methods = named(result)
    expected = {"features", "features, plain ablation", "LEACE", "mean difference", "random features"}
    assert expected <= set(methods) and len(methods) == len(result.methods)
    assert {m.site for m in result.methods} == {result.site}
    assert {m.site for m in result.elsewhere} == {"resid_post.5", "resid_post.3", "mlp_out.1"} - {result.site}
    assert [m.method for m in result.elsewhere] == ["features", "LEACE", "mean difference"] * 2
    for method in (*result.methods, *result.elsewhere):
        assert method.gone == (abs(method.auroc - 0.5) <= GONE)
        assert method.damage > 0 and method.edit_size > 0 and 0 <= method.accuracy <= 1
    gone = [m for m in result.methods if m.gone]
    assert result.best == (min(gone, key=lambda m: m.damage).method if gone else None)
    assert result.site in result.sentence() and "\n" not in result.sentence()
    assert len(methods["features"].features) == len(set(methods["features"].features)) <= CONFIG.max_features


def test_random_features_are_scaled_to_the_same_edit_size(result):
    methods = named(result)
    assert methods["random features"].edit_size == pytest.approx(methods["features"].edit_size, rel=0.01)


def test_plain_ablation_is_the_same_features_at_strength_one(result):
    plain, scaled = named(result)["features, plain ablation"], named(result)["features"]
    assert plain.features == scaled.features and plain.strength == 1 and scaled.strength > 0
    assert plain.edit_size * scaled.strength == pytest.approx(scaled.edit_size, rel=1e-3)


def test_a_removal_is_gone_within_a_margin_of_chance():
    def at(area: float) -> bool:
        return Removal("any", "resid_post.0", area, 0.5, 1.0, 0.5, 0.0, 1.0).gone

    assert at(0.5) and at(0.46) and at(0.54) and not at(0.44) and not at(0.56) and not at(0.0)


def test_a_site_without_features_for_it_is_passed_over(storybook, planted, components, contexts):
    """Once, one such site ended the experiment at all of them."""
    dictionaries = {MIDDLE: components[MIDDLE], LAST: Zero(128)}
    result = outcome(storybook, dictionaries, contexts, replace(CONFIG, random_draws=1))
    assert result.site == "resid_post.3" and result.elsewhere == ()
    with user_error("no feature"):
        outcome(storybook, {LAST: Zero(128)}, contexts)


def test_a_dictionary_of_few_latents_has_random_features_too(storybook, planted, contexts):
    """Once, fewer than ten latents could not be drawn from; with none left that is said in one line."""
    few, one = (Basis(planted["with"].directions[:n], planted["with"].mean) for n in (6, 1))
    config = replace(CONFIG, random_draws=1, max_features=1)
    assert named(outcome(storybook, {LAST: few}, contexts, config))["random features"].auroc > 0.95
    with user_error("few latents"):
        outcome(storybook, {LAST: one}, contexts, config)


def test_a_set_without_a_site_to_edit_is_refused(storybook, contexts):
    with user_error("resid_post", "attn_out.2"):
        outcome(storybook, {Site(2, Stream.ATTN_OUT): random_topk(128)}, contexts)


def test_too_little_text_and_a_site_without_a_dictionary_are_refused(storybook, components, contexts):
    with user_error("contexts"):
        outcome(storybook, components, contexts[:1])
    with user_error("resid_post.4", "resid_post.3"):
        outcome(storybook, components, contexts, site=Site(4))
