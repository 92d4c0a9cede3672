"""The study of splitting: planted sets give what was planted, and one shape of result."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from handmade import normal
from planted import unchecked
from tiny import user_error
from verbs import one_line, run

import subrank as sr
from sae_core.data.text import Text
from sae_core.dictionaries.saes import ReLUSAE
from sae_core.seeds import generator_for
from sae_core.sites import Site
from sae_core.storage import DictionarySet
from sae_core.training.topk_recipes import TopK
from subrank.result import Provenance
from subrank.saes import Saes
from subrank.studies.relations.families import NOBODY
from subrank.studies.relations.splitting_page import CHILDREN, Parents, family_figure, sentences
from subrank.studies.relations.splitting_step import StepCount
from subrank.studies.splitting import Counts, Splitting

SITE, D_IN = Site(0), 24


def reading(directions: torch.Tensor) -> ReLUSAE:
    """A dictionary of these directions that reads along them."""
    sae = ReLUSAE(directions.shape[1], len(directions), generator=torch.Generator())
    with torch.no_grad():
        sae.W_dec.copy_(F.normalize(directions, dim=-1))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def step():
    """A set of 8, of which the first four split in two, two are kept, two go, and four new ones come."""
    small = F.normalize(normal(8, D_IN), dim=-1)
    apart = 0.5 * F.normalize(normal(4, D_IN, seed=1), dim=-1)
    new = normal(4, D_IN, seed=2)
    large = torch.cat(
        [small[:4] + apart, small[:4] - apart, small[4:6], new - new @ small.T @ torch.linalg.pinv(small.T)]
    )
    counts = StepCount(SITE, ("small", reading(small)), ("large", reading(large)), seed=0)
    chance = torch.Generator().manual_seed(3)
    for _ in range(4):
        active = torch.rand(500, 14, generator=chance) < 0.02
        counts.add(small_codes(active), active.float())
    return counts.step(0)


def small_codes(active: torch.Tensor) -> torch.Tensor:
    """What the small set makes of it: a feature is active where one of its children is."""
    codes = torch.zeros(len(active), 8)
    codes[:, :4] = (active[:, :4] | active[:, 4:8]).float()
    codes[:, 4:6] = active[:, 8:10].float()
    codes[:, 6:] = (torch.arange(len(active)) % 7 == 0).float()[:, None]
    return codes


def test_what_was_planted_is_counted(step):
    assert step.parents == (0, 1, 2, 3, 0, 1, 2, 3, 4, 5, -1, -1, -1, -1)
    shares = [step.kept, step.split, step.gone, step.new, step.alone]
    assert [each.value for each in shares] == pytest.approx([2 / 8, 4 / 8, 2 / 8, 4 / 14, 4 / 14])
    assert step.agree.value == 1 and step.covered.value == 1 and step.coalesced.value == 0
    assert step.kept.low < 2 / 8 < step.kept.high
    assert step.split_together.value == 4 / 8 and step.split_together_by_chance.value < 1 / 8
    assert step.new_by_chance.value > 0.9 and step.alone_by_chance.value > 0.8  # controls
    assert step.agree_by_chance.value < 0.6 and step.covered_by_chance.value < 0.7


def test_backwards_what_split_coalesces(step):
    small = F.normalize(normal(8, D_IN), dim=-1)
    apart = 0.5 * F.normalize(normal(4, D_IN, seed=1), dim=-1)
    large = torch.cat([small[:4] + apart, small[:4] - apart])
    counts = StepCount(SITE, ("large", reading(large)), ("small", reading(small[:4])), seed=0)
    counts.add(torch.ones(3, 8), torch.ones(3, 4))
    assert counts.step(0).coalesced.value == 1 and step.coalesced.value == 0


def test_latents_that_are_never_active_are_left_out():
    counts = StepCount(SITE, ("a", reading(torch.eye(6))), ("b", reading(torch.eye(6))), seed=0)
    small, large = torch.ones(10, 6), torch.ones(10, 6)
    small[:, 0], large[:, 1] = 0, 0
    counts.add(small, large)
    step = counts.step(0)
    assert (step.n_small, step.n_large) == (5, 5) and step.parents == (-1, -1, 2, 3, 4, 5)
    assert step.kept.value == 4 / 5 and step.new.value == 1 / 5


def test_children_of_a_dead_latent_cover_the_living_one_next_to_it():
    """A latent that is never active is nobody's parent: its children are those of the next, there and in `covered`."""
    small = F.normalize(torch.tensor([[1.0, 0, 0], [1, 0.3, 0]]), dim=-1)
    large = F.normalize(torch.tensor([[1.0, 0, 0.2], [1, -0.1, 0]]), dim=-1)
    counts = StepCount(SITE, ("small", reading(small)), ("large", reading(large)), seed=0)
    assert counts.cosines.argmax(1).tolist() == [0, 0]
    active = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) < 0.3
    counts.add(torch.stack([torch.zeros(50), active.any(1).float()], 1), active.float())
    step = counts.step(0)
    assert step.parents == (1, 1) and step.split.value == 1 and step.covered.value == 1


def test_a_result_from_before_labels_is_read(step):
    new = Splitting({}, (step,), {}, Provenance("splitting", "", "", {}, "", "", "cpu", {}, ""))
    old = new.to_dict()
    del old["labels"]
    again = Splitting.from_dict(old, new.provenance)
    assert again.labels == {} and again.figures().keys() == new.figures().keys()


def test_what_does_not_fit_in_memory_is_said_before_it_is_read():
    large = SimpleNamespace(directions=torch.empty(10**8, 1, device="meta"))
    with user_error("not enough memory", "--site"):
        Counts({"a": {SITE: large}, "b": {SITE: large}}, 0)


def test_a_band_goes_from_each_parent_to_each_child(step):
    labels = {name: {SITE: [f"word {i}" for i in range(14)]} for name in ("small", "large")}
    for by in Parents:
        (sankey,) = family_figure([step], by, labels).data
        links = zip(sankey.link.source, sankey.link.target, strict=True)
        assert len(sankey.link.value) == 10 and all(source < target for source, target in links)
        label = sankey.node.label[0]
        assert label == f"0_{label[2]} word {label[2]}" and set(sankey.node.customdata) == {"small", "large"}


def test_no_families_are_no_figure_and_large_ones_are_cut(step):
    none = replace(step, parents=(NOBODY,) * 14)
    assert family_figure([none], Parents.DIRECTION, {}) is None
    large = replace(step, parents=(3,) * 10 + (NOBODY,) * 4)
    (sankey,) = family_figure([large], Parents.DIRECTION, {}).data
    assert [*sankey.link.source] == [0] * CHILDREN and len(sankey.node.label) == 1 + CHILDREN
    result = Splitting({}, (none,), {}, Provenance("splitting", "", "", {}, "", "", "cpu", {}, ""))
    assert result.figures().keys() == {"shares", Parents.ACTIVITY} and "There are none" in result.body()


def test_sets_that_began_alike_are_told_from_others():
    """One seed draws the same first directions whatever the size: what is kept then says little, and a line says so."""
    small, large, elsewhere = (
        TopK(2).new(24, n, generator=generator_for(seed, "init", SITE)) for n, seed in ((8, 0), (32, 0), (32, 1))
    )
    alike, other = (StepCount(SITE, ("small", small), ("large", each), seed=0) for each in (large, elsewhere))
    for counts in (alike, other):
        counts.add(torch.ones(3, 8), torch.ones(3, 32))
    first, second = alike.step(0), other.step(0)
    assert first.kept.value == first.same_number.value == 1 and "same directions" in sentences([first])[0]
    assert second.kept.value < 0.5 and "same directions" not in sentences([second])[0]


# ---- the verb --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(storybook, tmp_path_factory):
    """Two sets of storybook: the second has all directions of the first, and as many again."""
    sets = {}
    for name, n in (("eight", 8), ("sixteen", 16)):
        folder = tmp_path_factory.mktemp(name)
        text = Text("storybook", 32, True, max_tokens=4_000)
        sae = reading(normal(16, 128)[:n])
        DictionarySet("storybook", storybook.fingerprint(), text, {storybook.sites()[0]: sae}).save(folder)
        sets[name] = folder
    return sets


@pytest.fixture(scope="module")
def result(storybook, folders) -> sr.Result:
    sets = {name: sr.load(folder) for name, folder in folders.items()}
    with unchecked():
        return sr.splitting(storybook, dict(reversed(sets.items())), contexts=4, progress=False)


def test_sets_are_compared_from_the_smallest_on(result, tmp_path):
    (step,) = result.steps
    assert (step.small, step.large) == ("eight", "sixteen") and step.parents[:8] == (*range(8),)
    assert step.kept.value == 1 and step.new.value == pytest.approx(0.5, abs=0.2)
    result.save(tmp_path)
    again = sr.load_result(tmp_path)
    assert json.dumps(again.to_dict()) == json.dumps(result.to_dict()) and again.lines() == result.lines()
    assert len(result.lines()) <= 10 and result.plot() == result.figures()["shares"]


@pytest.mark.slow
def test_the_command_writes_what_the_function_returns(result, folders, tmp_path, capsys):
    status, printed, _ = run(capsys, "study", "splitting", *folders.values(), "--contexts", 4, "--out", tmp_path)
    numbers = json.loads((tmp_path / "result.json").read_text())
    assert status == 0 and numbers["steps"][0]["parents"] == list(result.steps[0].parents) and "kept" in printed


def test_what_makes_no_sense_is_one_line(storybook, folders, tmp_path, capsys):
    first, second = (sr.load(folder) for folder in folders.values())
    with user_error("two sets"):
        sr.splitting(storybook, {"a": first}, progress=False)
    with user_error("resid_post.3"):
        sr.splitting(storybook, {"a": first, "b": second}, site="resid_post.3", progress=False)
    elsewhere = Saes.of(DictionarySet(first.model, first.fingerprint, first.text, {Site(3): reading(normal(8, 128))}))
    with user_error("no site in common"):
        sr.splitting(storybook, {"a": first, "b": elsewhere}, progress=False)
    assert "two sets" in one_line(capsys, "study", "splitting", folders["eight"], "--out", tmp_path)
