"""The survey of a text: read once, kept beside the set, and never taken for that of anything else."""

from pathlib import Path

import pytest
import torch
from handmade import random_topk
from planted import unchecked
from tiny import random_tokens, user_error
from torch import Tensor

from circuits.features.atlas import atlas_of
from circuits.features.reading import Chunks, Piece
from circuits.features.sparse_codes import CodedContexts
from circuits.features.statistics import tally
from circuits.features.survey import Survey, card_of
from circuits.features.survey_files import CARD, FILES
from editing.interventions.patch import ablate
from sae_core.sites import FeatureId, Site, Stream

SITES = (Site(0), Site(1, Stream.MLP_OUT), Site(2))
CHUNKS = Chunks(contexts=8)


def dictionaries(seed: int = 0) -> dict:
    return {site: random_topk(32, 40, 4, seed=seed + number) for number, site in enumerate(SITES)}


def text(n: int = 40, *, seed: int = 3) -> Tensor:
    tokens = random_tokens(30, n, 9, seed=seed)
    tokens[:, 0] = tokens[::5, 4] = 0
    return tokens


class Counting:
    """Contexts that a model reads, counted."""

    def __init__(self, model, monkeypatch, *, stop_after: int = 10**9):
        self.n = 0
        record = model.record

        def counted(tokens, sites):
            if self.n + len(tokens) > stop_after:
                raise KeyboardInterrupt
            self.n += len(tokens)
            return record(tokens, sites)

        monkeypatch.setattr(model, "record", counted)


@pytest.fixture
def model(tiny_models):
    return tiny_models["neox"]


def numbers(survey: Survey, contexts: Tensor) -> dict[str, Tensor]:
    """Everything that is counted of a text, by name."""
    counted = tally(survey, contexts, chunks=CHUNKS)
    parts = {"mean_final": counted.atlas.mean_final}
    for site, latents in counted.sites.items():
        for part in (latents, latents.statistics, latents.pairs):
            parts |= {f"{site} {name}": x for name, x in vars(part).items() if isinstance(x, Tensor)}
    return parts


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(FILES))


def test_what_was_read_is_not_read_again(model, tmp_path, monkeypatch):
    """Not by the same survey, not by the next one, and a text that overlaps costs its new contexts only."""
    reads = Counting(model, monkeypatch)
    survey, contexts = Survey(model, dictionaries(), tmp_path), text()
    first = numbers(survey, contexts)
    assert reads.n == 40 and (survey.n_unread(contexts), survey.n_unread(text(8, seed=9))) == (0, 8)
    atlas = atlas_of(survey, contexts[10:30], top=3)
    features = [FeatureId(site, 2) for site in SITES]
    survey.activations(features, contexts[:7])
    again = numbers(Survey(model, dictionaries(), tmp_path), contexts)
    assert reads.n == 40 and same(first, again) and atlas.sites[SITES[0]].top.shape == (40, 3)
    numbers(survey, torch.cat([contexts[20:], text(8, seed=9)]))
    assert reads.n == 48


def test_an_interrupted_survey_goes_on_to_the_byte(model, tmp_path, monkeypatch):
    whole = numbers(Survey(model, dictionaries()), text())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Counting(model, patch, stop_after=20)
        numbers(Survey(model, dictionaries(), tmp_path, written_every=0.0), text())
    assert len(files(tmp_path)) == 2  # of 8 contexts each
    reads = Counting(model, monkeypatch)
    assert same(numbers(Survey(model, dictionaries(), tmp_path), text()), whole) and reads.n == 24


def test_codes_are_those_of_a_plain_pass(model):
    survey, contexts = Survey(model, dictionaries()), text()
    content = model.content(contexts)
    for site, dictionary in survey.dictionaries.items():
        x = model.record(contexts, [site])[site]
        f, features = dictionary.encode(x) * content[..., None], [FeatureId(site, index) for index in range(40)]
        kept = survey.activations(features, contexts)
        assert torch.allclose(torch.stack([kept[feature] for feature in features], -1), f, atol=1e-5)
        pieces: list[Piece] = []
        survey.read(contexts, lambda _, piece, pieces=pieces: pieces.append(piece), sites=[site])
        wide = x[content].double()
        assert sum(piece.n_inliers for piece in pieces) == len(wide)
        assert torch.allclose(sum(piece.total for piece in pieces), wide.sum(0), rtol=1e-5)
        assert sum(piece.square for piece in pieces) == pytest.approx(wide.square().sum().item(), rel=1e-5)


def test_outliers_are_counted_apart(model):
    contexts, by_site = text(), dictionaries()
    norms = model.record(contexts, [SITES[0]])[SITES[0]].norm(dim=-1)
    by_site[SITES[0]].outlier_norm = limit = norms[model.content(contexts)].median().item()
    pieces = []
    Survey(model, by_site).read(contexts, lambda _, piece: pieces.append(piece), sites=[SITES[0]])
    outliers = model.content(contexts) & (norms > limit)
    x = model.record(contexts, [SITES[0]])[SITES[0]][outliers]
    beyond = sum(piece.beyond for piece in pieces)
    assert torch.allclose(beyond, by_site[SITES[0]].codes(x).abs().double().sum(0), rtol=1e-4) and beyond.sum() > 0
    assert sum(piece.n_inliers for piece in pieces) == int(model.content(contexts).sum()) - int(outliers.sum()) > 0


@pytest.mark.slow
def test_the_mean_after_the_last_block_is_of_some_contexts_where_no_site_gives_it(model):
    """An eighth of them, by their tokens; of few the first. All of them where the last residual is a site."""
    contexts, last = text(900), model.sites()[-1]
    h = model.record(contexts, [last])[last]
    content = model.content(contexts)

    def mean(survey: Survey, n: int = 900) -> Tensor:
        return survey.mean_final(contexts[:n])

    low = Survey(model, {SITES[0]: random_topk(32, 40, 4)})
    assert torch.allclose(mean(low, 16), h[:16][content[:16]].mean(0), atol=1e-4)
    error = (mean(low) - h[content].mean(0)).norm() / h[content].mean(0).norm()
    assert 0 < error < 0.1
    assert torch.equal(mean(low), mean(Survey(model, {SITES[0]: random_topk(32, 40, 4, seed=5)})))
    assert torch.allclose(mean(Survey(model, {last: random_topk(32, 40, 4)})), h[content].mean(0), atol=1e-4)


def test_blocks_above_the_highest_site_are_run_for_those_only(model, monkeypatch):
    rows = []
    final = model.final
    monkeypatch.setattr(model, "final", lambda h, layer: rows.append((len(h), layer)) or final(h, layer))
    Survey(model, {SITES[0]: random_topk(32, 40, 4)}).read(text(320), lambda *_: None)
    assert 0 < sum(n for n, _ in rows) < 80 and {layer for _, layer in rows} == {0}


@pytest.mark.parametrize("what", ["dictionaries", "weights", "left out"])
def test_a_survey_of_anything_else_is_made_anew(model, tmp_path, monkeypatch, caplog, what):
    numbers(Survey(model, dictionaries(), tmp_path), text())
    assert not caplog.records
    by_site, reads = dictionaries(), Counting(model, monkeypatch)
    if what == "dictionaries":
        with torch.no_grad():
            by_site[SITES[1]].W_enc[0, 0] += 1e-3
    elif what == "weights":
        monkeypatch.setattr(model, "fingerprint", lambda: "changed")
    else:
        monkeypatch.setattr(model, "special_ids", frozenset({0, 7}))
    numbers(Survey(model, by_site, tmp_path), text())
    assert reads.n == 40 and len(caplog.records) == 1 and "made anew" in caplog.text
    caplog.clear()
    numbers(Survey(model, by_site, tmp_path), text())
    assert reads.n == 40 and not caplog.records and len(files(tmp_path)) == 1


def test_the_precision_of_the_model_is_part_of_the_card(model):
    class Half(type(model)):
        dtype = torch.bfloat16

        def __init__(self):
            self.__dict__.update(vars(model))

    assert card_of(model, dictionaries())["precision"] != card_of(Half(), dictionaries())["precision"]


def test_what_an_edited_model_does_is_neither_kept_nor_answered_from_what_is(model, monkeypatch):
    survey, contexts, reads = Survey(model, dictionaries()), text(), Counting(model, monkeypatch)
    edit = ablate(Site(0), dictionaries()[Site(0)], [2])
    plain = numbers(survey, contexts)
    with model.hooks(edit):
        edited = numbers(survey, contexts)
    assert reads.n == 120 and not same(plain, edited)  # for the codes, and for the mean
    assert same(numbers(survey, contexts), plain) and reads.n == 120
    fresh = Survey(model, dictionaries())
    with model.hooks(edit):
        numbers(fresh, contexts)
    assert same(numbers(fresh, contexts), plain) and reads.n == 240


def test_every_edit_is_seen_also_that_of_the_middle_of_a_block(tiny_models):
    """An edit at resid_mid is no hook of the library's: once what it did was kept as the unedited model's."""
    model = tiny_models["llama"]
    site = Site(1, Stream.RESID_MID)
    edit = ablate(site, random_topk(32, 40, 4), [2])
    assert not model.edited
    with model.hooks(edit):
        assert model.edited
        with model.hooks(edit):
            pass
        assert model.edited
    with pytest.raises(KeyboardInterrupt), model.hooks(edit):
        raise KeyboardInterrupt
    assert not model.edited


def test_two_surveys_of_one_folder_never_read_each_other(model, tmp_path, caplog):
    """The second has made the card its own when the first writes once more."""
    first, second = Survey(model, dictionaries(), tmp_path), Survey(model, dictionaries(seed=9), tmp_path)
    numbers(second, text(8))
    numbers(first, text(8, seed=5))
    fresh = Survey(model, dictionaries(seed=9), tmp_path)
    assert same(numbers(fresh, text(8, seed=5)), numbers(Survey(model, dictionaries(seed=9)), text(8, seed=5)))


@pytest.mark.parametrize("damage", ["cut", "key", "missing", "card"])
def test_a_damaged_file_is_read_again(model, tmp_path, monkeypatch, caplog, damage):
    whole = numbers(Survey(model, dictionaries(), tmp_path), text())
    (path,) = files(tmp_path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "card":
        (tmp_path / CARD).unlink()
    else:
        from sae_core.files import read_tensors, write_tensors

        tensors = read_tensors(path)
        name = f"{SITES[0]}/codes.key"
        tensors[name][3] = 10**6
        write_tensors(path, tensors if damage == "key" else {n: x for n, x in tensors.items() if n != name})
    reads = Counting(model, monkeypatch)
    assert same(numbers(Survey(model, dictionaries(), tmp_path), text()), whole)
    assert reads.n == 40 and len(caplog.records) == 1 and "anew" in caplog.text


def test_a_folder_that_cannot_be_written_keeps_nothing_but_is_no_error(model, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    reads, survey = Counting(model, monkeypatch), Survey(model, dictionaries(), tmp_path / "file" / "survey")
    numbers(survey, text())
    numbers(survey, torch.cat([text(), text(8, seed=5)]))
    assert reads.n == 48 and len(caplog.records) == 1 and "cannot be written" in caplog.text


def test_codes_beyond_what_is_kept_are_made_anew(model, tmp_path, monkeypatch, caplog):
    reads, survey = Counting(model, monkeypatch), Survey(model, dictionaries(), tmp_path, kept_bytes=30_000)
    first = numbers(survey, text())
    assert reads.n == 40 and len(caplog.records) == 1 and "GiB" in caplog.text
    assert same(numbers(survey, text()), first) and 40 < reads.n < 80


def test_coded_contexts_and_their_tensors(model):
    survey = Survey(model, dictionaries())
    survey.read(text(), lambda *_: None, chunks=CHUNKS)
    parts = [part for part, row in survey._places.values() if row == 0]
    joined, widths = CodedContexts.joined(parts), dict.fromkeys(SITES, 40)
    back = CodedContexts.from_tensors(joined.tensors(), widths)
    assert all(torch.equal(x, joined.tensors()[name]) for name, x in back.tensors().items() if name != "final")
    for name in ("tokens", "final"):
        with pytest.raises(LookupError):
            CodedContexts.from_tensors({n: x for n, x in joined.tensors().items() if n != name}, widths)
    with pytest.raises(ValueError):
        CodedContexts.from_tensors(joined.tensors(), dict.fromkeys(SITES, 20))
    with pytest.raises(ValueError), unchecked():
        CodedContexts.from_tensors(joined.tensors() | {"tokens": joined.tokens[1:]}, widths)


def test_a_text_of_special_tokens_is_refused(model):
    with user_error("no tokens but special ones"):
        Survey(model, dictionaries()).read(torch.zeros(2, 5, dtype=torch.long), lambda *_: None)
