"""Sets go to a hub and come back, in the layout of SAELens; every fault is one line."""

import json
import socket
from dataclasses import replace

import pytest
import torch
from fake_hub import FakeHub, serving
from random_saes import D_IN, random_sae
from tiny import user_error

import subrank as sr
from editing.loss_recovered import SpliceCost
from editing.set_quality import SetQuality
from sae_core.data.text import Text
from sae_core.evaluation.reconstruction import Quality
from sae_core.formats.readers import load_foreign
from sae_core.sites import Site, Stream
from subrank.hub_sets import HubPlace, local_path, place_of
from subrank.saes import Saes

SITES = (Site(0), Site(1, Stream.MLP_OUT))
MINE = "me/dictionaries"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def saes(tmp_path) -> Saes:
    text = tmp_path / "private folder" / "words.txt"
    text.parent.mkdir()
    text.write_text("words")
    by_site = {site: random_sae("topk", seed).requires_grad_(False) for seed, site in enumerate(SITES)}
    origin = {"resid_post.0": f"{tmp_path}/private folder/sae.safetensors (SAELens)"}
    quality = SetQuality(
        dict.fromkeys(SITES, Quality(0.25, 3.0, 0.125, 100)), dict.fromkeys(SITES, SpliceCost(1.0, 1.25, 2.0))
    )
    return Saes(str(text.parent / "model"), "f", Text(str(text), 12, True), by_site, None, origin, quality=quality)


def same(a: Saes, b: Saes) -> bool:
    pairs = [(a.at(site).state_dict(), b.at(site).state_dict()) for site in SITES]
    return a.sites == b.sites and all(torch.equal(x[name], y[name]) for x, y in pairs for name in x)


# ---- there and back --------------------------------------------------------------------------------


def test_what_is_pushed_is_what_is_loaded(hub, saes):
    place = saes.push_to_hub(MINE)
    sha = hub.repositories[MINE]["head"]["sha"].decode()
    assert place == f"hf:{MINE}@{sha}"
    for name in (place, f"hf:{MINE}", f"hf:{MINE}@main"):
        loaded = sr.load(name)
        assert same(loaded, saes) and loaded.quality.lines() == saes.quality.lines()
    other = replace(saes, dictionaries={site: random_sae("topk", 7).requires_grad_(False) for site in SITES})
    replace(other, quality=None).push_to_hub(MINE)
    again = sr.load(f"hf:{MINE}")
    assert same(again, other) and again.quality is None  # not what the set before was worth
    assert same(sr.load(place), saes)  # a commit stays what it was


def test_each_site_is_as_other_tools_find_it_in_a_repository(hub, saes):
    saes.push_to_hub(MINE)
    files = hub.repositories[MINE]["main"]
    assert {"resid_post.0/cfg.json", "resid_post.0/sae_weights.safetensors", "README.md", "set.json"} <= files.keys()
    assert not [path for path in files if not path.endswith((".json", ".safetensors", ".md"))]
    card = json.loads(files["mlp_out.1/cfg.json"])
    assert card["metadata"]["hook_name"] == "blocks.1.hook_mlp_out" and card["d_in"] == D_IN
    alone = load_foreign(local_path(f"hf:{MINE}/mlp_out.1"))
    assert alone.site == SITES[1] and alone.model_name == "model"
    x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(1))
    assert torch.equal(alone.dictionary.encode(x), saes.at(SITES[1]).encode(x))


def test_a_folder_of_a_repository_holds_a_set_of_its_own(hub, saes):
    hub.commit(MINE, {"notes.txt": b"mine"})
    place = saes.push_to_hub(f"{MINE}/sweep/k16")
    assert place.endswith("/sweep/k16") and same(sr.load(place), saes)
    assert hub.repositories[MINE]["main"]["notes.txt"] == b"mine"
    with user_error("no set of subrank's", "sr.import_saes"):  # two floors up, where none is looked for
        sr.load(f"hf:{MINE}")


def test_the_card_tells_what_dictionaries_are_worth_and_nothing_of_the_machine(hub, saes, tmp_path):
    saes.push_to_hub(MINE)
    files = hub.repositories[MINE]["main"]
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: saelens\n") and "base_model" not in card
    assert "| `mlp_out.1` | topk | 24 | 0.250 | 3.0 | 12.5% | 0.750 |" in card
    assert f'sr.load("hf:{MINE}")' in card and f'SAE.from_pretrained("{MINE}", "resid_post.0")' in card
    assert not [path for path, content in files.items() if str(tmp_path).encode() in content]
    assert json.loads(files["set.json"])["origin"] == {"resid_post.0": "sae.safetensors (SAELens)"}
    replace(saes, model="EleutherAI/pythia-70m", quality=None).push_to_hub("me/other")
    card = hub.repositories["me/other"]["main"]["README.md"].decode()
    assert "base_model: EleutherAI/pythia-70m\n" in card and "| `mlp_out.1` | topk | 24 |  |  |  |  |" in card


def test_private_ones_are_for_those_who_may(hub, saes, monkeypatch):
    place = saes.push_to_hub(MINE, private=True)
    assert same(sr.load(place), saes)
    hub.commit("me/public", {"notes.txt": b"mine"})
    with user_error("me/public is there already, and public"):
        saes.push_to_hub("me/public", private=True)
    assert [*hub.repositories["me/public"]["main"]] == ["notes.txt"]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with user_error(MINE, "or it is private", "HF_TOKEN"):
        sr.load(f"hf:{MINE}@main/somewhere")


def test_what_was_fetched_is_there_without_the_hub(hub, saes, monkeypatch):
    saes.push_to_hub(MINE)
    sr.load(f"hf:{MINE}")
    asked = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert same(sr.load(f"hf:{MINE}"), saes) and len(hub.asked) == asked


# ---- faults ----------------------------------------------------------------------------------------


@pytest.fixture
def no_network(hub, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("the tests have no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_without_network(no_network, saes):
    with user_error("does not answer at http://127.0.0.1", "hf:nobody/nothing"):
        sr.load("hf:nobody/nothing")
    with user_error("does not answer at http://127.0.0.1", "save(folder)"):
        saes.push_to_hub(MINE)


def test_what_is_not_there(hub, saes):
    with user_error("no repository me/nothing"):
        sr.load("hf:me/nothing")
    saes.push_to_hub(MINE)
    with user_error(MINE, "no revision v2"):
        sr.load(f"hf:{MINE}@v2")
    with user_error(f"hf:{MINE}/elsewhere", "no set.json"):
        sr.load(f"hf:{MINE}/elsewhere")


def test_pushing_needs_a_token_that_may(hub, saes, monkeypatch):
    with user_error("(403)", "others/dictionaries", "HF_TOKEN"):
        saes.push_to_hub("others/dictionaries")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with user_error("(401)", "HF_TOKEN"):
        saes.push_to_hub(MINE)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.asked)
    with user_error("needs a token", "hf auth login"):
        saes.push_to_hub(MINE)
    assert len(hub.asked) == asked and not hub.repositories


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((403, ""), ("(403)", "HF_TOKEN")),
        ((401, ""), ("(401)", "HF_TOKEN")),
        ((401, "RepoNotFound"), ("private", "HF_TOKEN")),
        ((403, "GatedRepo"), ("asks for consent", f"/{MINE}")),
        ((418, ""), ("418", "try again later")),
    ],
)
def test_what_a_hub_answers_else(hub: FakeHub, fault, words):
    hub.commit(MINE, {})
    hub.fault = fault
    with user_error(*words):
        sr.load(f"hf:{MINE}")


def test_what_others_computed_with_a_set_is_not_fetched(hub, saes):
    place = saes.push_to_hub(f"{MINE}/set")
    hub.commit(MINE, {"set/survey/codes.safetensors": b"", "survey/card.json": b"{}", "set/extra.json": b"{}"})
    folder = local_path(f"hf:{MINE}/set")
    assert (folder / "extra.json").is_file() and not (folder / "survey").exists() and same(sr.load(place), saes)


def test_pickles_are_not_fetched(hub):
    hub.commit(MINE, {"sae.pt": b"pickled", "set.json": b"{}"})
    with user_error(f"hf:{MINE}", "no safetensors"):
        sr.load(f"hf:{MINE}")
    assert not [line for line in hub.asked if "sae.pt" in line]


def test_other_peoples_repositories_are_imported(hub, saes, tmp_path):
    saes.save(tmp_path / "set")
    files = (tmp_path / "set" / "resid_post.0").iterdir()
    hub.commit("they/theirs", {f"resid_post.0/{file.name}": file.read_bytes() for file in files})
    with user_error("no set of subrank's", "sr.import_saes", "hf:they/theirs/FOLDER"):
        sr.load("hf:they/theirs")
    copy = local_path("hf:they/theirs/resid_post.0")
    assert load_foreign(copy).site == SITES[0]
    commit = copy.parent.name
    assert (
        place_of(copy) == f"hf:they/theirs@{commit}/resid_post.0"
        and place_of(copy.parent) == f"hf:they/theirs@{commit}"
    )
    assert HubPlace.parse(place_of(copy)).revision == commit and place_of(tmp_path / "set") == str(tmp_path / "set")


def test_what_is_no_place_is_said():
    for text in ("hf:", "hf:name", "hf:a/b@", "hf:a/b/../c", "hf:a/b@c/d e", "a/b?c", "hf:/a/b", "hf:a/b@v/./c"):
        with user_error("no place on the hub", "OWNER/NAME@REVISION/FOLDER"):
            HubPlace.parse(text)


def test_places_are_read_as_they_are_written():
    for text in ("hf:a/b", "hf:a/b@v1.0", "hf:a/b@v/c/d", "hf:a.b/c-d_e/layer_20/width=16k"):
        assert str(HubPlace.parse(text)) == text
    assert HubPlace.parse("a/b@c/d/") == HubPlace("a/b", "c", "d")
