"""`subrank evaluate`: sets and sweeps go in, a page and the same numbers come out; mistakes get one line."""

import argparse
import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from handmade import random_topk
from safetensors.torch import load_file
from tiny import user_error

from sae_core.data.text import Text, held_out
from sae_core.evaluation.profiles import quality
from sae_core.sites import Site, Stream
from sae_core.storage import DictionarySet, load_set
from subrank.cli import evaluate
from subrank.cli.arguments import names_of
from subrank.cli.parsers import Verbs

SITES = (Site(0), Site(1, Stream.MLP_OUT))


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_models["gpt2"]


def a_set(model, *, seed: int = 0, n_latents: int = 48, sites=SITES, text=None, **other) -> DictionarySet:
    text = text or Text("storybook", 32, True, max_tokens=32 * 60)
    saes = {site: random_topk(32, n_latents, 6, seed=seed) for site in sites}
    return DictionarySet(
        **({"model": model.name, "fingerprint": model.fingerprint()} | other), text=text, dictionaries=saes
    )


@pytest.fixture(scope="module")
def sweep(model, tmp_path_factory) -> Path:
    """A folder of two sets, and none itself; the second was trained on less of the same text."""
    folder = tmp_path_factory.mktemp("sweep")
    a_set(model).save(folder / "seed0")
    a_set(model, seed=5, text=Text("storybook", 32, True, max_tokens=32 * 40)).save(folder / "seed1")
    return folder


def run(*arguments) -> None:
    parser = argparse.ArgumentParser()
    evaluate.add(Verbs(parser))
    options = parser.parse_args(["evaluate", *map(str, arguments)])
    with ExitStack() as options.at_end:
        options.run(options)


@pytest.mark.slow
def test_a_sweep_stands_for_its_sets(sweep, model, tmp_path, capsys):
    run(sweep, "--out", tmp_path, "--spliced", 2)
    said, result = capsys.readouterr().out, json.loads((tmp_path / "result.json").read_text())
    assert list(result["sets"]) == ["seed0", "seed1"] and result["contexts_spliced"] == 2
    saved = load_set(sweep / "seed1")
    contexts = held_out(saved.text.contexts(model))[1]
    assert result["contexts"] == len(contexts) == 4  # a tenth of the shorter text: trained on by neither
    for site, expected in quality(model, saved.dictionaries, contexts).items():
        row = result["sets"]["seed1"][str(site)]
        assert (row["fvu"], row["l0"]) == (pytest.approx(expected.fvu, rel=1e-6), expected.l0)
        assert sum(f"{site} {name}: FVU" in said for name in ("seed0", "seed1")) == 2
        density = load_file(tmp_path / "densities.safetensors")[f"seed1/{site}"]
        assert density.sum().item() == pytest.approx(expected.l0)
    assert [(pair["a"], pair["b"]) for pair in result["similarity"]["mlp_out.1"]] == [("seed0", "seed1")]
    page = (tmp_path / "evaluate.html").read_text()
    assert "plotly.min.js" in page and (tmp_path / "plotly.min.js").is_file()
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["settings"]["sets"] == {name: str(sweep / name) for name in ("seed0", "seed1")}
    assert provenance["fingerprint"] == model.fingerprint()


@pytest.mark.slow
def test_one_set_lands_beside_its_dictionaries(model, tmp_path):
    a_set(model, sites=SITES[:1]).save(tmp_path / "set")
    run(tmp_path / "set", tmp_path / "set", "--out", tmp_path / "twice", "--contexts", 1)  # given twice, measured once
    run(tmp_path / "set", "--contexts", 1, "--text", "storybook")
    once, twice = (
        json.loads((folder / "result.json").read_text())
        for folder in (tmp_path / "set" / "evaluate", tmp_path / "twice")
    )
    assert once == twice and list(once["sets"]) == ["set"] and once["similarity"] == {} and once["contexts"] == 1
    row = once["sets"]["set"]["resid_post.0"]
    assert all(math.isfinite(row["splice"][name]["kl"]) for name in ("original", "spliced", "zeroed", "averaged"))


def test_sets_of_different_models(sweep, model, tmp_path):
    replace(a_set(model), fingerprint="config:0 weights:0 tokenizer:0", model="elsewhere").save(tmp_path / "other")
    with user_error("another model", "elsewhere", "use them apart"):
        run(sweep, tmp_path / "other", "--out", tmp_path / "out")
    with user_error("another model"):
        run(tmp_path / "other", "--model", model.name)
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.slow
def test_sets_of_other_contexts_are_named(sweep, model, tmp_path, capsys):
    a_set(model, text=Text("storybook", 16, True, max_tokens=32 * 40)).save(tmp_path / "short")
    run(sweep, tmp_path / "short", "--out", tmp_path / "out", "--contexts", 1)
    assert "note: short was trained on other contexts (storybook, 16 tokens)" in capsys.readouterr().out


def test_folders_without_sets_and_counts_that_make_no_sense(sweep, tmp_path):
    with user_error("no folder"):
        run(tmp_path / "none")
    with user_error("no dictionaries"):
        run(tmp_path)
    for option in ("--contexts", "--spliced"):
        with user_error(option, "at least 1"):
            run(sweep, option, 0, "--out", tmp_path / "out")


def test_names_are_as_short_as_tells_them_apart():
    assert names_of([Path("/a/x/s0"), Path("/a/x/s1")]) == ["s0", "s1"]
    assert names_of([Path("/a/x/s0"), Path("/a/y/s0")]) == ["x/s0", "y/s0"]
