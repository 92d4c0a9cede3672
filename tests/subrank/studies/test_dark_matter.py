"""The study of dark matter: the planted split of an error is found, each rival predictor where it should be."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from handmade import HandModel, normal, random_topk
from planted import unchecked
from tiny import user_error
from verbs import one_line, run

import subrank as sr
from sae_core.data.text import Contexts, Text
from sae_core.dictionaries.baselines import Basis
from sae_core.seeds import generator_for
from sae_core.sites import Site
from sae_core.storage import DictionarySet
from subrank.settings.fields import make
from subrank.settings.studies import DarkMatterSettings
from subrank.studies.dark_matter import check_room, two_parts
from subrank.studies.errors import fits as names
from subrank.studies.errors.batches import Batch, Place, Reader
from subrank.studies.errors.claims import claims
from subrank.studies.errors.fits import ERROR, LINEAR, NONLINEAR, PLAIN, SQUARED, ErrorFit, SizePair, X
from subrank.studies.errors.parts import (
    LIKE,
    PARTS,
    RISE,
    SHUFFLED,
    KeptError,
    dictionary_fvus,
    gaussian_like,
    linear_error,
    loss_shares,
    pursued,
)
from subrank.studies.errors.regression import Linear, context_weights

D_IN, N_FEATURES, N_MISSING, SIGMA = 32, 24, 8, 0.14
DIRECTIONS = F.normalize(normal(N_FEATURES, D_IN), dim=-1)
PRESENT = Basis(DIRECTIONS[N_MISSING:], torch.zeros(D_IN))
FIT, HELD = 6000, 3000


def batch_of(x: torch.Tensor, x_hat: torch.Tensor, seed: int) -> Batch:
    tokens = torch.randint(50, (len(x),), generator=generator_for(seed, "tokens"))
    return Batch(x, x_hat, torch.full((len(x),), 3), tokens, torch.arange(len(x)) * 30 // len(x))


def sparse_features(n: int, seed: int) -> torch.Tensor:
    chance = generator_for(seed, "features")
    active = torch.rand(n, N_FEATURES, generator=chance) < 0.1
    return active * (0.5 + torch.rand(n, N_FEATURES, generator=chance))


def missing_and_noise(n: int, seed: int) -> Batch:
    """Features that the dictionary lacks, and noise in what it makes of the others."""
    f, noise = sparse_features(n, seed), SIGMA * normal(n, D_IN, seed=seed + 50)
    return batch_of(f @ DIRECTIONS + 1, f[:, N_MISSING:] @ DIRECTIONS[N_MISSING:] + 1 + noise, seed)


def fitted(make_batch, seed: int = 0) -> tuple[ErrorFit, Batch]:
    """What is fitted to planted batches, and a batch of other contexts that it was measured on."""
    error = ErrorFit(PRESENT, torch.arange(50), context_weights(30, 0), seed)
    train, held = make_batch(FIT, 1), make_batch(HELD, 2)
    for step, batch in ((error.fit, train), (error.fit_parts, train), (error.score, held)):
        step(batch)
    error.measured["fvu"] = error.fvus()
    return error, held


@pytest.fixture(scope="module")
def planted() -> tuple[ErrorFit, Batch]:
    return fitted(missing_and_noise)


def r2(error: ErrorFit, target: str, predictor: str) -> float:
    return error.scores.r2(target, predictor)[0].item()


def test_missing_features_are_the_linear_error_and_noise_the_nonlinear(planted):
    error, held = planted
    missing = sparse_features(HELD, 2)[:, :N_MISSING] @ DIRECTIONS[:N_MISSING]
    variance, noise = (missing - missing.mean(0)).square().sum().item(), HELD * D_IN * SIGMA**2
    whole = (held.x - held.x.mean(0)).square().sum().item()
    assert 0.3 < variance / (variance + noise) < 0.8  # both are there
    assert r2(error, ERROR, X) == pytest.approx(variance / (variance + noise), abs=0.02)
    fvu, nonlinear = (error.fvus()[name][0].item() for name in (PLAIN, X))
    assert nonlinear == pytest.approx(noise / whole, abs=0.02)
    assert fvu - nonlinear == pytest.approx(variance / whole, abs=0.03)
    linear, rest = error.split(held)
    torch.testing.assert_close(held.x_hat + linear + rest, held.x)
    assert F.cosine_similarity(linear - linear.mean(0), missing - missing.mean(0), dim=-1).mean() > 0.9


def test_what_ought_to_predict_nothing_does(planted):
    error, _ = planted
    for name in (names.OTHER, names.NOISE, names.TOKEN):
        assert abs(r2(error, ERROR, name)) < 0.02, name
    assert r2(error, ERROR, names.RESCALED) < 0.2
    assert r2(error, ERROR, "x, no intercept") < r2(error, ERROR, X) + 0.01


def test_lengths_of_sparse_sums_are_linear_and_those_of_noise_are_not(planted):
    error, _ = planted
    lengths = {name: r2(error, f"|{name}|²", X) for name in (X, names.X_HAT, LINEAR, NONLINEAR)}
    assert lengths[LINEAR] > 0.7 and lengths[X] > 0.8 and abs(lengths[NONLINEAR]) < 0.05
    assert r2(error, SQUARED, X) > 0.3 and abs(r2(error, SQUARED, names.OTHER)) < 0.02


def test_a_dictionary_that_only_shrinks_is_all_linear_and_the_factor_says_so(planted):
    def shrunk(n: int, seed: int) -> Batch:
        x = sparse_features(n, seed) @ DIRECTIONS + 1
        return batch_of(x, 0.8 * x, seed)

    error, _ = fitted(shrunk)
    for name in (X, names.RESCALED, names.X_HAT):
        assert r2(error, ERROR, name) == pytest.approx(1, abs=1e-5)
    assert r2(planted[0], ERROR, names.RESCALED) < 0.2  # control


def test_an_error_of_the_token_alone_is_told_by_the_token():
    table = normal(50, D_IN, seed=7)

    def by_token(n: int, seed: int) -> Batch:
        plain = missing_and_noise(n, seed)
        return Batch(plain.x, plain.x - table[plain.tokens], plain.l0, plain.tokens, plain.contexts)

    error, _ = fitted(by_token)
    assert r2(error, ERROR, names.TOKEN) > 0.999 and r2(error, SQUARED, names.TOKEN) > 0.999
    assert r2(error, ERROR, X) < 0.05


def test_an_earlier_reconstruction_that_knows_what_is_missing_makes_the_error_less():
    def knowing(n: int, seed: int) -> Batch:
        plain, f = missing_and_noise(n, seed), sparse_features(n, seed)
        return Batch(plain.x, plain.x_hat, plain.l0, plain.tokens, plain.contexts, earlier=f @ normal(N_FEATURES, 40))

    error, _ = fitted(knowing)
    assert r2(error, LINEAR, names.EARLIER) > 0.95 and abs(r2(error, NONLINEAR, names.EARLIER)) < 0.05
    assert error.fvus()[names.EARLIER][0] < 0.8 * error.fvus()[PLAIN][0]


def test_tokens_that_stay_hard_are_predicted_and_shuffled_ones_are_not(planted):
    def hard(n: int, seed: int) -> tuple[Batch, Batch]:
        x, scale = normal(n, D_IN, seed=seed), 1 + torch.rand(n, 1, generator=generator_for(seed, "hard"))
        small, large = (size * scale * F.normalize(normal(n, D_IN, seed=seed + 9 + i)) for i, size in enumerate((2, 1)))
        return batch_of(x, x - small, seed), batch_of(x, x - large, seed)

    error = planted[0]
    for shuffle in (False, True):
        pair = SizePair(error, error)
        for seed, step in ((1, pair.fit_parts), (2, pair.score)):
            small, large = hard(HELD, seed)
            order = torch.randperm(HELD, generator=generator_for(seed, "order")) if shuffle else torch.arange(HELD)
            step(small, Batch(large.x[order], large.x_hat[order], large.l0, large.tokens, large.contexts))
        by_predictor = {name: draws[0].item() for name, draws in pair.r2().items()}
        assert by_predictor[names.ERROR_NORM] < 0.02 if shuffle else by_predictor[names.ERROR_NORM] > 0.99
        assert by_predictor[names.NORM] < 0.02


# ---- the parts -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dictionary_does_well_on_missing_features_and_no_better_on_noise_than_on_random_vectors(planted):
    error, held = planted
    settings = make(DarkMatterSettings, {"steps": 80, "expansion": 2, "k": 4})
    with unchecked():
        *_, fvus = dictionary_fvus(error, missing_and_noise(FIT, 1), held, settings)
    on = {name: draws[0].item() for name, draws in fvus.items()}
    assert on[LINEAR] < 0.5 * on[NONLINEAR] and on[NONLINEAR] == pytest.approx(on[LIKE[NONLINEAR]], abs=0.1)
    assert on[LINEAR] < 0.7 * on[LIKE[LINEAR]] and on.keys() == {*PARTS}
    assert on[X] < on[NONLINEAR] and on[LINEAR] < on[ERROR]


def test_pursuit_makes_better_codes_than_a_poor_encoder(planted):
    sae, held = random_topk(D_IN), planted[1]
    with torch.no_grad():
        f = sae.encode(held.x)
        batch = Batch(held.x, sae.decode(f), (f != 0).sum(-1), held.tokens, held.contexts)
    error = ErrorFit(sae, torch.arange(50), context_weights(30, 0), 0)
    fvus = pursued(error, batch, 300)
    assert fvus["pursuit"][0] < 0.7 * fvus[PLAIN][0]
    assert pursued(error, batch, 10**6)[PLAIN][0].item() == pytest.approx(
        ((batch.error**2).sum() / (batch.x - batch.x.mean(0)).square().sum()).item(), rel=1e-4
    )


@pytest.fixture(scope="module")
def hand() -> HandModel:
    embedding = torch.cat([torch.zeros(1, 6), normal(9, 6)])
    return HandModel(embedding, [(0.3 * normal(6, 6, seed=1), 0.3 * normal(6, 6, seed=2)) for _ in range(2)])


def test_the_parts_add_up_to_the_activation():
    sae, linear, h = random_topk(6, 12, 3), Linear(normal(6, 6).double(), normal(6).double()), normal(2, 5, 6)
    mask = torch.tensor([[True, False, True, True, True]]).expand(2, 5)
    kinds = ("", LINEAR, NONLINEAR, SHUFFLED)
    edits = [KeptError(Site(0), sae, linear, part, mask, math.inf, linear(h.flip(0)).to(h)) for part in kinds]
    changed = [edit(h) for edit in edits]
    assert all(torch.equal(each[~mask], h[~mask]) for each in changed)
    h, plain, with_linear, with_nonlinear, with_other = (each[mask] for each in (h, *changed))
    torch.testing.assert_close(plain, sae.decode(sae.encode(h)))
    torch.testing.assert_close(with_linear + with_nonlinear, plain + h, rtol=1e-4, atol=1e-5)
    assert not torch.isclose(with_other, with_linear).all(-1).any()
    massive = normal(2, 5, 6)
    assert torch.equal(KeptError(Site(0), sae, linear, "", mask, 0.0, massive)(massive), massive)


def test_where_all_of_the_error_is_linear_leaving_it_in_gives_everything_back(hand):
    """A dictionary that shrinks: L is e."""
    contexts = 1 + torch.randint(9, (8, 7), generator=generator_for(0, "contexts"))
    error = ErrorFit(Basis(0.7 * torch.eye(6), torch.zeros(6)), torch.arange(10), context_weights(8, 0), 0)
    error.linear = Linear(0.51 * torch.eye(6).double(), torch.zeros(6).double())  # x_hat = 0.49 x
    shares = loss_shares(hand, Site(0), error, contexts, math.inf)
    assert shares[RISE][0].abs() > 1e-3
    assert shares[LINEAR][0].item() == pytest.approx(1, abs=1e-4)
    assert shares[NONLINEAR][0].item() == pytest.approx(0, abs=1e-4)
    assert abs(shares[SHUFFLED][0].item() - 1) > 0.1  # control


def test_the_error_of_another_context_is_of_another_context(hand):
    """Where a context is one token all along, the error of any token of it is that of all."""
    contexts = (1 + torch.arange(8))[:, None].expand(8, 7)
    error = ErrorFit(Basis(0.7 * torch.eye(6), torch.zeros(6)), torch.arange(10), context_weights(8, 0), 0)
    error.linear = Linear(0.51 * torch.eye(6).double(), torch.zeros(6).double())
    shares = loss_shares(hand, Site(0), error, contexts, math.inf)
    assert shares[LINEAR][0].item() == pytest.approx(1, abs=1e-4) and abs(shares[SHUFFLED][0].item() - 1) > 0.1
    batch = batch_of(normal(8, 6).repeat_interleave(7, 0), torch.zeros(56, 6), 0)
    other, _ = error.designs(batch)[names.OTHER]
    assert not torch.isclose(other, batch.x).all(-1).any()


def test_a_linear_error_is_0_where_tokens_are_left_out(hand):
    tokens, linear = torch.tensor([[0, 3, 4]]), Linear(torch.eye(6).double(), torch.ones(6).double())
    h = hand.record(tokens, [Site(0)])[Site(0)]
    limit = h[0, 1:].norm(dim=-1).mean().item()
    expected = torch.where((h.norm(dim=-1) <= limit)[..., None] & (tokens != 0)[..., None], h + 1, 0.0)
    torch.testing.assert_close(linear_error(hand, Site(0), linear, tokens, limit), expected)
    assert (expected != 0).any(-1).sum() == 1


def test_a_part_of_few_strong_dimensions_is_no_easier_than_a_gaussian_like_it(planted):
    """What is easy to reconstruct for its covariance alone does not speak for features."""
    error = fitted(missing_and_noise)[0]
    on = {LINEAR: 0.1, LIKE[LINEAR]: 0.1, NONLINEAR: 0.4, LIKE[NONLINEAR]: 0.4, X: 0.1, ERROR: 0.2}
    for gain, agrees in ((0.0, False), (0.05, True)):
        on[LINEAR] = 0.1 - gain
        error.measured["dictionaries"] = {name: torch.full((3,), value).double() for name, value in on.items()}
        (claim,) = [each for each in claims([error], [error]) if "worse" in each.text]
        assert claim.agrees is agrees and claim.value.value == pytest.approx(gain)
        assert all(f"on {name}" in claim.beside for name in PARTS)


def test_shares_of_a_rise_that_may_be_none_are_not_counted(planted):
    costly, cheap = fitted(missing_and_noise)[0], fitted(missing_and_noise)[0]
    spread = torch.cat([torch.zeros(1), torch.linspace(-1, 1, 1000)]).double()
    back = {LINEAR: 0.5 + 0.1 * spread, NONLINEAR: 0.4 + 0.1 * spread, SHUFFLED: 0.1 * spread}
    costly.measured["loss"] = {RISE: 0.1 + 0.02 * spread} | back
    cheap.measured["loss"] = {RISE: 0.001 + 0.02 * spread} | {name: -40 * each for name, each in back.items()}
    alone, both, neither = (
        next(each for each in claims(errors, errors) if "proportion" in each.text)
        for errors in ([costly], [costly, cheap], [cheap])
    )
    assert alone.value == both.value and alone.beside == both.beside and neither.agrees is None
    assert f"{LINEAR} gives back 0.50" in both.beside


def test_a_gaussian_is_like_the_rows_it_is_of():
    x = normal(4000, 3) @ torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 0.1]]) + 5
    drawn = gaussian_like(x).draw(4000, generator_for(0, "drawn"))
    torch.testing.assert_close(drawn.mean(0), x.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), x.T.cov(), atol=0.4, rtol=0)


def test_claims_are_judged_where_they_were_measured(planted):
    error, _ = planted
    by_text = {claim.text: claim for claim in claims([error], [error])}
    vector, norm, fewer = list(by_text.values())[:3]
    assert vector.agrees and vector.value.low < vector.value.value < vector.value.high and "token" in vector.beside
    assert norm.agrees is False and fewer.agrees is True
    assert {claim.agrees for claim in list(by_text.values())[3:]} == {None}


# ---- the text --------------------------------------------------------------------------------------


def test_massive_tokens_are_left_out_everywhere_and_counted():
    embedding = torch.cat([torch.zeros(1, 6), normal(8, 6), 1000 * normal(1, 6)])
    model = HandModel(embedding, [(torch.zeros(6, 6), torch.zeros(6, 6))] * 2)
    sae, contexts = random_topk(6, 12, 3), torch.tensor([[0, 1, 9, 2], [0, 3, 4, 5], [0, 9, 9, 6]])
    reader = Reader.of(model, {"set": {Site(0): sae, Site(1): sae}}, contexts)
    first, second = Place("set", Site(0)), Place("set", Site(1), Site(0))
    (batches,) = reader.read([first, second], contexts)
    assert batches[first].tokens.tolist() == batches[second].tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert batches[first].contexts.tolist() == [0, 0, 1, 1, 1, 2] and batches[first].n_left_out == 3
    torch.testing.assert_close(batches[first].x_hat, sae.decode(sae.encode(embedding[1:7])))
    torch.testing.assert_close(batches[second].earlier, batches[first].x_hat)
    assert batches[first].earlier is None
    assert reader.rows(first, contexts, 4).tokens.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("by_document", [False, True])
def test_fits_and_scores_are_of_other_contexts_and_of_other_documents(by_document):
    rows = torch.arange(20)[:, None].expand(20, 8)
    contexts = Contexts(rows[4:], rows[:4], by_document=by_document)
    fit, held = two_parts(contexts, make(DarkMatterSettings, {"contexts": 10}), 8)
    assert sorted(held[:, 0].tolist()) == [0, 1, 2, 3] and len({*fit[:, 0].tolist()}) == len(fit) == 10
    every, _ = two_parts(contexts, make(DarkMatterSettings, {"contexts": 20}), 8)
    assert every.min() == (4 if by_document else 5)  # the fifth may go on with the fourth's document


def test_what_does_not_fit_in_memory_is_said_before_it_is_read():
    check_room([128] * 6, 1000)
    with user_error("not enough memory", "--site"):
        check_room([10**6], 1000)


# ---- the verb --------------------------------------------------------------------------------------

SMALL = {"contexts": 12, "held": 4, "steps": 2, "pursuit": 8}


@pytest.fixture(scope="module")
def folders(storybook, tmp_path_factory):
    """Two sets of storybook at two sites, never trained."""
    sets = {}
    for name, n in (("small", 24), ("large", 48)):
        folder = tmp_path_factory.mktemp(name)
        text = Text("storybook", 32, True, max_tokens=4_000)
        dictionaries = {site: random_topk(128, n, 4, seed=site.layer) for site in storybook.sites()[:2]}
        DictionarySet("storybook", storybook.fingerprint(), text, dictionaries).save(folder)
        sets[name] = folder
    return sets


@pytest.fixture(scope="module")
def result(storybook, folders) -> sr.Result:
    with unchecked():
        sets = {name: sr.load(folder) for name, folder in reversed(folders.items())}
        return sr.dark_matter(storybook, sets, progress=False, **SMALL)


@pytest.mark.slow
def test_the_result_is_as_all_others_are(result, tmp_path):
    assert [(each.set, str(each.site)) for each in result.errors] == [
        (name, f"resid_post.{layer}") for name in ("small", "large") for layer in (0, 1)
    ]
    assert {"smaller", "loss", "dictionaries", "pursuit", "fvu"} == result.errors[-1].measured.keys()
    assert names.EARLIER in result.errors[-1].measured["fvu"] and names.EARLIER not in result.errors[0].measured["fvu"]
    assert None not in {claim.agrees for claim in result.claims}
    page = result.save(tmp_path).read_text()
    again = sr.load_result(tmp_path)
    assert json.dumps(again.to_dict(), allow_nan=False) == json.dumps(result.to_dict(), allow_nan=False)
    assert again.lines() == result.lines() and 1 <= len(result.lines()) <= 10
    assert page.count('class="plot"') == len(result.figures()) and result.plot() == result.figures()["parts"]


@pytest.mark.slow
def test_the_command_writes_what_the_function_returns_and_one_set_suffices(storybook, folders, tmp_path, capsys):
    options = [option for name, value in SMALL.items() for option in (f"--{name}", value)]
    options += ["--site", "resid_post.1", "--steps", 0]
    status, printed, _ = run(capsys, "study", "dark-matter", folders["small"], *options, "--out", tmp_path)
    numbers = json.loads((tmp_path / "result.json").read_text())
    assert status == 0 and "Not measured" in printed and "about" in printed
    (error,) = numbers["errors"]
    assert error["site"] == "resid_post.1" and error["measured"].keys() == {"fvu", "loss", "pursuit"}


def test_what_makes_no_sense_is_one_line(storybook, folders, tmp_path, capsys):
    saes = sr.load(folders["small"])
    with user_error("resid_post.3"):
        sr.dark_matter(storybook, saes, site="resid_post.3", progress=False)
    with user_error("too few", "--contexts"):
        sr.dark_matter(storybook, saes, contexts=2, progress=False)
    assert "--held" in one_line(capsys, "study", "dark-matter", folders["small"], "--held", 1, "--out", tmp_path)
