"""`subrank features` writes cards of all features and a page; its mistakes are answered in one line."""

import json

import pytest
from handmade import random_topk

from editing.loss_recovered import SpliceCost
from editing.set_quality import SetQuality
from sae_core.data.text import Text
from sae_core.evaluation.reconstruction import Quality
from sae_core.files import write_json
from sae_core.sites import Site
from sae_core.storage import QUALITY, DictionarySet
from subrank.cli import command


@pytest.fixture(scope="module")
def folder(storybook, tmp_path_factory):
    """A set of untrained dictionaries of storybook."""
    path = tmp_path_factory.mktemp("set")
    saes = {site: random_topk(128, 300, 12, seed=site.layer) for site in (Site(1), Site(2))}
    text = Text("storybook", 64, True, 64 * 60)
    DictionarySet("storybook", storybook.fingerprint(), text, saes).save(path)
    costs = SetQuality(
        {site: Quality(0.5, 12.0, 0.0, 100) for site in saes}, {site: SpliceCost(1.0, 1.1, 3.0) for site in saes}
    )
    write_json(path / QUALITY, costs.to_json())
    return path


@pytest.mark.slow
def test_the_command_writes_cards_of_all_features_and_a_page(folder, capsys):
    out = folder / "features"
    asked = ["features", str(folder), "--contexts", "16", "--full", "2", "--neurons", "--device", "cpu"]
    assert command.main(asked) == 0, capsys.readouterr().err
    result, index = (json.loads((out / name).read_text()) for name in ("result.json", "features/index.json"))
    assert len(result["features"]) == 2 == len(index["full"])
    assert index["features"] == {"resid_post.1": 300, "resid_post.2": 300} and index["chunk"] == 256
    cards = [
        card
        for site in index["features"]
        for number in range(2)
        for card in json.loads((out / "features" / site / f"{number}.json").read_text())
    ]
    assert [card["id"] for card in cards] == [f"{layer}_{i}" for layer in (1, 2) for i in range(300)]
    assert {card["id"] for card in cards if card["histogram"]} == set(index["full"])
    assert result["features"] == [card for card in cards if card["histogram"]]
    assert set(result["neurons"]) <= set(index["full"]) and result["neurons"]
    assert {"n_latents", "alive", "tokens_label", "control"} == set(result["sites"]["resid_post.1"])
    page = (out / "features.html").read_text(encoding="utf-8")
    assert "<td>resid_post.2</td><td>300</td>" in page
    assert all(f'id="{name}"' in page for name in index["full"]) and (out / "plotly.min.js").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--features", "1_300"], ("1_300", "has 300")),
        (["--features", "5_0"], ("resid_post.5", "resid_post.2")),
        (["--features", "five"], ("five", "features read like")),
        (["--features", "1_2,1_2"], ("1_2", "given twice")),
        (["--site", "resid_post.5"], ("resid_post.5", "resid_post.2")),
        (["--site", "nowhere"], ("nowhere", "sites read like")),
        (["--contexts", "2"], ("--contexts", "at least 8")),
        (["--full", "-1"], ("--full", "at least 0")),
    ],
)
def test_mistakes_are_answered_in_one_line(folder, capsys, arguments, words):
    assert command.main(["features", str(folder), "--device", "cpu", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words)
