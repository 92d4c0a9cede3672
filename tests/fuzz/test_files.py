"""Whatever stands in a file: it is read, or one line says what is wrong with it."""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import foreign_files
import pytest
import torch
from answers import refused
from damage import damaged_bytes, damaged_json, damaged_lines, damaged_tensors
from handmade import random_topk
from planted import unchecked
from random_cards import full_cards, random_catalogue
from trained import config, every, small

from circuits.discovery.steps_file import remembered
from circuits.discovery.target_causes import TargetCauses
from circuits.graph import Edge
from editing.interventions.compose import Scaled, Spared
from editing.interventions.patch import clamp
from editing.interventions.save import load_edit, save_edit
from editing.loss_recovered import SpliceCost
from editing.set_quality import SetQuality
from editing.tasks.user_pairs import divide, read_lines
from sae_core.data.documents import documents
from sae_core.data.text import Text
from sae_core.evaluation.reconstruction import Quality
from sae_core.files import write_json, write_text
from sae_core.formats.readers import load_foreign
from sae_core.model.language_model import load_model
from sae_core.sites import FeatureId, Site
from sae_core.storage import QUALITY, DictionarySet
from sae_core.training.checkpoint import load_checkpoint, save_checkpoint
from sae_core.training.loop import start
from sae_core.training.run import Run
from subrank.cli.train import run_in
from subrank.cli.training_log import Log
from subrank.experiments.features import Features
from subrank.pages.names import read_names, write_names
from subrank.result import Provenance, load_result
from subrank.saes import load

MANY, FEW = 100, 12
"""Damages of each file that the whole suite tries, or `--fuzz` times as many; those of them that are tried always."""
SITES = (Site(0), Site(2))
TEXT = Text("storybook", 12, True, exclude=("Mary",))
QUALITIES = SetQuality(
    dict.fromkeys(SITES, Quality(0.5, 2.0, 0.1, 100)), dict.fromkeys(SITES, SpliceCost(1.0, 2.0, 3.0))
)


@dataclass(frozen=True)
class File:
    """A file that is damaged, and how it is read and used."""

    name: str
    read: Callable[[Path], Any]
    """Of the folder that holds it."""
    damage: Callable[[str, random.Random], str] = damaged_json


def use_set(folder: Path) -> None:
    saes = load(folder)
    assert repr(saes) and TEXT.shares(saes.text) in (True, False)
    for site, dictionary in saes.dictionaries.items():
        dictionary.decode(dictionary.encode(torch.ones(2, 12)))
        assert str(site)
    if saes.quality:
        saes.quality.lines()
        saes.quality.to_json()


def use_card(folder: Path) -> None:
    dictionary = load_foreign(folder / "resid_post.0").dictionary  # by itself: its set would know that it is another
    dictionary.decode(dictionary.encode(torch.ones(2, 12)))


def use_run(folder: Path) -> None:
    run = run_in(folder / "run.json")
    assert run.to_json() and run.members[0].steps >= 1 and run.stream_seed >= 0


def use_edit(folder: Path) -> None:
    for edit in load_edit(folder):
        edit(torch.ones(2, 3, 12))


def use_result(folder: Path) -> None:
    result = load_result(folder)
    assert str(result) is not None and result.to_dict()


def use_steps(folder: Path) -> None:
    for step in remembered(folder / "steps.jsonl", {"a": 1}, iter):
        assert step.edges is not None


def use_pairs(folder: Path) -> None:
    assert divide(read_lines(folder / "pairs.jsonl"))


FILES = {
    "set": File("set.json", use_set),
    "card": File("resid_post.0/cfg.json", use_card),
    "quality": File(QUALITY, use_set),
    "run": File("run.json", use_run),
    "checkpoint": File("checkpoint/state.json", lambda folder: load_checkpoint(folder, device=torch.device("cpu"))),
    "edit": File("edit.json", use_edit),
    "names": File("names.json", lambda folder: read_names(folder / "names.json")),
    "provenance": File("provenance.json", use_result),
    "result": File("result.json", use_result),
    "steps": File("steps.jsonl", use_steps, damaged_lines),
    "log": File("log.jsonl", lambda folder: Log(folder / "log.jsonl", SimpleNamespace(step=2)), damaged_lines),
    "pairs": File("pairs.jsonl", use_pairs, damaged_lines),
}


@pytest.fixture(scope="module")
def whole(tiny_models, tmp_path_factory) -> Path:
    """One of each file, undamaged."""
    folder, model = tmp_path_factory.mktemp("whole"), tiny_models["neox"]
    saes = {site: random_topk(12, 24, 4, seed=site.layer) for site in SITES}
    with unchecked():
        DictionarySet("storybook", "config:1 weights:2", TEXT, saes, config(), {"resid_post.0": "x"}, 3).save(folder)
        write_json(folder / QUALITY, QUALITIES.to_json())
        write_json(folder / "run.json", Run("storybook", TEXT, ("resid_post",), tuple(every())).to_json())
        save_checkpoint(start(small(), *every()), TEXT, model, folder, contexts="abc")
        patch = clamp(Site(0), saes[Site(0)], [0, 3], 0.7)
        save_edit([Spared(Scaled(patch, 1.3), torch.full((12,), 2.0), radius=0.5), patch], folder)
        write_names(folder / "names.json", {"5_17": "bracket", "logit: she - he": "she"}, run="x")
        cards = full_cards(random_catalogue(model), 1)
        numbers = {"precision": 0.5, "recall": 0.5, "correlation": 0.5}
        rows = {"resid_post.0": {"n_latents": 4, "alive": 3, "tokens_label": numbers, "control": numbers}}
        provenance = Provenance.of("features", model, {"names": ["0_1"], "quick": True})
        neurons = {cards[0].feature: cards[1]}
        Features(tuple(cards), neurons, rows, {"training": 2}, QUALITIES, provenance).write(folder)
    edge = Edge(FeatureId(Site(0), 1), FeatureId(Site(2), 2), 0.5, 0.1, 3, 4, offsets=((0, 0.5),))
    step = TargetCauses(edge.target, (edge,), 16, 20, ({"share": 0.1},))
    with suppress(KeyboardInterrupt):
        for _ in remembered(folder / "steps.jsonl", {"a": 1}, lambda done: interrupted(step)):
            pass
    write_text(folder / "log.jsonl", "".join(json.dumps({"step": n, "site": "resid_post.0"}) + "\n" for n in range(3)))
    pair = {"clean": "The key", "corrupted": "The keys", "answer": "is", "foil": "are", "split": "test", "words": ["a"]}
    pairs = [pair | {"template": number, "label": "x"} for number in range(2)]
    write_text(folder / "pairs.jsonl", "".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def interrupted(*steps):
    """The steps of a search that is interrupted when it looks for more."""
    yield from steps
    raise KeyboardInterrupt


def try_damages(name: str, whole: Path, seeds: range) -> None:
    file = FILES[name]
    path = whole / file.name
    before = path.read_text()
    assert not refused(f"undamaged {name}", lambda: file.read(whole))
    path.write_text(before)  # some are removed once they are read
    try:
        answers = []
        for seed in seeds:
            text = file.damage(before, random.Random(f"{name} {seed}"))
            path.write_bytes(text.encode(errors="surrogatepass"))
            answers.append(refused(f"seed {name} {seed}: {text:.1000}", lambda: file.read(whole)))
        assert any(answers) or name in ("steps", "log"), name
    finally:
        path.write_text(before)


@pytest.mark.parametrize("name", FILES)
def test_json_is_read_or_refused(name, whole):
    try_damages(name, whole, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_much_json_is_read_or_refused(name, whole, times):
    try_damages(name, whole, range(FEW, times * MANY))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_models_json_is_read_or_refused(name, checkpoints):
    path = checkpoints["gpt2"] / name
    before = path.read_text()
    try:
        for seed in range(60):
            text = damaged_json(before, random.Random(f"{name} {seed}"))
            path.write_bytes(text.encode(errors="surrogatepass"))
            refused(f"seed {name} {seed}: {text:.1000}", lambda: load_model(path.parent, device="cpu"))
    finally:
        path.write_text(before)


# ---- tensors ---------------------------------------------------------------------------------------

FOREIGN = {
    "SAELens": ("sae_weights.safetensors", foreign_files.tensors(), foreign_files.sae_lens_card("jumprelu")),
    "gated": ("sae_weights.safetensors", foreign_files.gated_values(), foreign_files.sae_lens_card("gated")),
    "sparsify": ("sae.safetensors", foreign_files.sparsify_values(), foreign_files.SPARSIFY),
    "Gemma Scope": ("params.npz", foreign_files.tensors(), None),
    "dictionary-learning": ("ae.pt", foreign_files.linear(), None),
}


def try_tensors(name: str, folder: Path, seeds: range) -> None:
    file, tensors, card = FOREIGN[name]
    foreign_files.write(folder, file, tensors, card)
    load_foreign(folder)
    answers = []
    for seed in seeds:
        draw = random.Random(f"{name} {seed}")
        if draw.random() < 0.5:
            with suppress(TypeError):  # numpy has no bfloat16
                foreign_files.write(folder, file, damaged_tensors(tensors, draw), card)
        else:
            foreign_files.write(folder, file, tensors, card)
            (folder / file).write_bytes(damaged_bytes((folder / file).read_bytes(), draw))
        answers.append(refused(f"seed {name} {seed}", lambda: load_foreign(folder)))
    assert any(answers)


@pytest.mark.parametrize("name", FOREIGN)
def test_tensors_are_read_or_refused(name, tmp_path):
    try_tensors(name, tmp_path, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_many_tensors_are_read_or_refused(name, tmp_path, times):
    try_tensors(name, tmp_path, range(FEW, times * MANY))


# ---- texts -----------------------------------------------------------------------------------------


def write_texts(folder: Path) -> list[Path]:
    import gzip

    import pandas

    rows = pandas.DataFrame({"text": ["Mary went home .", "Ångström « 文 »", 'a "quote", a comma'], "n": [1, 2, 3]})
    rows.to_csv(folder / "a.csv", index=False)
    rows.to_json(folder / "a.jsonl", orient="records", lines=True)
    rows.to_json(folder / "a.json", orient="records")
    rows.to_parquet(folder / "a.parquet")
    (folder / "a.txt").write_text("\n".join(rows["text"]) * 20)
    (folder / "a.txt.gz").write_bytes(gzip.compress((folder / "a.txt").read_bytes()))
    return sorted(folder.iterdir())


def try_texts(folder: Path, seeds: range) -> None:
    for path in write_texts(folder):
        content = path.read_bytes()
        for seed in seeds:
            draw = random.Random(f"{path.name} {seed}")
            path.write_bytes(damaged_bytes(content, draw))
            how = {"piece": 64, "seed": draw.choice((None, 0))}
            refused(f"seed {path.name} {seed}", lambda path=path, how=how: [*documents(str(path), **how)])
        path.write_bytes(content)


def test_texts_are_read_or_refused(tmp_path):
    try_texts(tmp_path, range(FEW // 4))


@pytest.mark.slow
def test_many_texts_are_read_or_refused(tmp_path, times):
    try_texts(tmp_path, range(FEW, times * MANY // 4))
