"""Sets made of other people's dictionaries."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from foreign_files import METADATA, N, linear, sae_lens_card, without, write
from handmade import random_topk
from massive import Massive
from tiny import random_tokens, user_error
from verbs import result_of, run

from editing.loss_recovered import Splice
from sae_core.data.text import Text
from sae_core.digest import digest
from sae_core.errors import UserError
from sae_core.formats.readers import load_foreign
from sae_core.formats.sparsify import save_sparsify
from sae_core.sites import Site, Stream
from subrank.experiments.importing import gather, import_saes

TEXT = Text("storybook", 16, True, max_tokens=2000)


def import_set(files, model, text, at=None):
    return gather(files, [load_foreign(file) for file in files], model, text, at)


@pytest.fixture
def model(tiny_models):
    return tiny_models["neox"]


@pytest.fixture
def sae_files(tmp_path, model):
    """Two dictionaries of the model's width: one says where it belongs, one does not."""
    said = write(tmp_path / "said", "sae_weights.safetensors", *of_width(32))
    silent = write(tmp_path / "silent", "ae.pt", linear(d_in=32))
    return [said, silent]


def of_width(d_in: int, hook: str = "blocks.2.hook_resid_post"):
    from foreign_files import tensors

    card = sae_lens_card("topk", d_in=d_in) | {"metadata": METADATA | {"hook_name": hook}}
    return without(tensors(d_in=d_in), "threshold"), card


def test_a_set_says_where_each_came_from(sae_files, model):
    out = Site(0, Stream.ATTN_OUT)
    imported = import_set(sae_files, model, TEXT, [Site(2), out])
    assert list(imported.dictionaries) == [Site(2), out]
    assert (imported.model, imported.fingerprint) == (model.name, model.fingerprint())
    assert imported.text == TEXT and imported.training is None
    assert imported.origin == {
        "resid_post.2": f"{sae_files[0]} (SAELens)",
        "attn_out.0": f"{sae_files[1]} (dictionary-learning)",
    }
    imported.check(model)
    assert list(import_set(sae_files[:1], model, TEXT).dictionaries) == [Site(2)]  # as the file says


def test_an_imported_dictionary_can_be_spliced(sae_files, model):
    dictionary = import_set(sae_files[:1], model, TEXT).dictionaries[Site(2)]
    tokens = random_tokens(model.n_vocab, 2, 8)
    with model.hooks(Splice(Site(2), dictionary)):
        spliced = model.logits(tokens)
    assert spliced.isfinite().all() and (spliced - model.logits(tokens)).abs().max() > 0.1


def test_every_error_names_the_file(sae_files, model, tmp_path):
    said, silent = sae_files
    with user_error(str(silent), "--at"):
        import_set([said, silent], model, TEXT)
    with user_error(str(silent), "as does", str(said)):
        import_set([said, silent], model, TEXT, [Site(2), Site(2)])
    with user_error(str(silent), "width 32", "mlp_hidden.1", "64"):
        import_set([silent], model, TEXT, [Site(1, Stream.MLP_HIDDEN)])
    with user_error(str(silent), "resid_post.9", "3-layer"):
        import_set([silent], model, TEXT, [Site(9)])
    with user_error("2 files", "1 sites"):
        import_set(sae_files, model, TEXT, [Site(2)])
    with user_error(str(tmp_path / "gone")):
        import_set([tmp_path / "gone"], model, TEXT)
    wide = write(tmp_path / "wide", "sae_weights.safetensors", *of_width(48))
    with user_error(str(wide), "width 48"):
        import_set([wide], model, TEXT)


def test_at_overrides_what_a_file_says_and_a_warning_says_so(sae_files, model, tmp_path, caplog):
    mid = write(tmp_path / "mid", "sae_weights.safetensors", *of_width(32, "blocks.1.hook_resid_mid"))
    hugging_face = write(tmp_path / "hf", "sae_weights.safetensors", *of_width(32, "gpt_neox.layers.1"))
    with user_error(str(mid), "resid_mid.1", "side by side", "--at"):
        import_set([mid], model, TEXT)
    assert list(import_set([hugging_face], model, TEXT).dictionaries) == [Site(1)] and not caplog.records
    elsewhere = [Site(0), Site(1), Site(2)]
    assert list(import_set([sae_files[0], mid, hugging_face], model, TEXT, elsewhere).dictionaries) == elsewhere
    first, second, third = [record.getMessage() for record in caplog.records]
    assert str(sae_files[0]) in first and "belongs at resid_post.2" in first and "read at resid_post.0" in first
    assert "resid_mid.1" in second and "belongs at resid_post.1" in third


def test_a_dictionary_of_the_hidden_layer(model, tmp_path):
    folder = write(tmp_path, "sae_weights.safetensors", *of_width(64, "blocks.1.mlp.hook_post"))
    imported = import_set([folder], model, TEXT)
    assert imported.dictionaries[Site(1, Stream.MLP_HIDDEN)].n_latents == N


def test_centred_activations_are_for_models_that_cannot_tell(tiny_models, tmp_path):
    """TransformerLens leaves a model with RMSNorm as it is, whatever the file says it was asked for."""
    from sae_core.dictionaries.normalised import Centred
    from sae_core.dictionaries.saes import TopKSAE

    values, card = of_width(32)
    card["metadata"] |= {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder = write(tmp_path, "sae_weights.safetensors", values, card)
    for kind, expected in (("gpt2", Centred), ("neox", Centred), ("llama", TopKSAE)):
        assert type(import_set([folder], tiny_models[kind], TEXT).dictionaries[Site(2)]) is expected


# ---- the command -----------------------------------------------------------------------------------


def command(*arguments: str):
    """`subrank import` alone, without the door."""
    import argparse

    from subrank.cli import importing
    from subrank.cli.parsers import Verbs

    parser = argparse.ArgumentParser()
    importing.add(Verbs(parser))
    options = parser.parse_args(["import", *map(str, arguments)])
    with ExitStack() as options.at_end:
        return options.run(options)


def test_the_command_makes_a_set_that_loads(sae_files, checkpoints, model, tmp_path, capsys):
    from sae_core.storage import QUALITY, load_set

    out = tmp_path / "out"
    text = tmp_path / "text.txt"
    text.write_text("Anna gave the book to Ben. " * 400)
    where = ["--model", checkpoints["neox"], "--device", "cpu", "--text", text, "--context", 16, "--out", out]
    assert not command(*sae_files, "--at", "resid_post.2", "mlp_out.0", *where)
    said = capsys.readouterr().out
    (note,) = [line for line in said.splitlines() if line.startswith("note:")]
    assert str(sae_files[0]) in note and "pythia-70m" in note and model.name in note  # the other file names none
    loaded = load_set(out)
    loaded.check(model)
    assert list(loaded.dictionaries) == [Site(0, Stream.MLP_OUT), Site(2)]
    assert loaded.text.n_ctx == 16 and not loaded.text.prepend_bos  # as the first file says
    assert loaded.origin["mlp_out.0"].startswith(str(sae_files[1]))
    digests = json.loads((out / "provenance.json").read_text())["digests"]
    assert digests == {"dictionaries": digest(loaded.dictionaries), "text": loaded.text.digest}
    assert {path.name for path in out.iterdir()} >= {"set.json", QUALITY, "result.json", "provenance.json"}
    assert "mlp_out.0" in (out / "result.json").read_text()
    assert str(out) in said
    with pytest.raises(UserError, match="already"):
        command(*sae_files, *where)
    with user_error("is no site"):
        command(*sae_files, "--at", "here", "there", *where[:-1], tmp_path / "other")


def test_a_text_that_cannot_be_read_leaves_nothing(sae_files, checkpoints, tmp_path):
    """The set used to be saved before the text was looked at."""
    out, short = tmp_path / "out", tmp_path / "short.txt"
    short.write_text("Mary went home.")
    where = ["--model", checkpoints["neox"], "--device", "cpu", "--out", out]
    for text, words in ((tmp_path / "none.txt", "no text"), (short, "fewer than one context")):
        with user_error(words):
            command(sae_files[0], *where, "--text", text)
        assert list(out.iterdir()) == []
    short.write_text("Anna gave the book to Ben. " * 400)
    command(sae_files[0], *where, "--text", short)
    assert (out / "set.json").is_file()


def test_a_models_name_is_compared_without_its_folder(sae_files, checkpoints, tmp_path, capsys):
    """Contexts are as long as the file says that they were, where nobody says how long."""
    import json
    import shutil

    from sae_core.storage import load_set

    named = shutil.copytree(checkpoints["neox"], tmp_path / "Pythia-70m")
    text = tmp_path / "text.txt"
    text.write_text("Anna gave the book to Ben. " * 400)
    card = sae_files[0] / "cfg.json"
    card.write_text(card.read_text().replace('"context_size": 64', '"context_size": 24'))
    assert json.loads(card.read_text())["metadata"]["context_size"] == 24
    command(sae_files[0], "--model", named, "--device", "cpu", "--text", text, "--out", tmp_path / "out")
    assert "note:" not in capsys.readouterr().out
    assert load_set(tmp_path / "out").text.n_ctx == 24


@pytest.mark.slow
def test_verbs_run_on_an_imported_set(tmp_path, capsys):
    """A dictionary of `storybook` in another package's format is measured and patched like a trained set."""
    save_sparsify(random_topk(128, 256, 16), tmp_path / "layers.3")
    out = tmp_path / "theirs"

    def result(verb: str, *arguments: object, out: Path) -> dict:
        status, _, error = run(capsys, verb, *arguments, "--out", out)
        assert status == 0, error
        return result_of(out)

    result("import", tmp_path / "layers.3", "--model", "storybook", "--context", 32, "--tokens", 10_000, out=out)
    measured = result("evaluate", out, "--contexts", 4, "--spliced", 2, out=tmp_path / "e")["sets"]["theirs"]
    assert measured["resid_post.3"]["l0"] <= 16 and measured["resid_post.3"]["n_latents"] == 256
    small = ["--prompts", 6, "--corruption", "swap", "--selectors", "attribution"]
    (ioi,) = result("ioi", out, *small, out=tmp_path / "i")["ioi"]
    curve, *_ = [curve for curve in ioi["curves"] if curve["name"] == "dictionary"]
    assert ioi["site"] == "resid_post.3" and curve["points"]


def test_tokens_of_massive_norm_are_left_out_of_imported_dictionaries_too(sae_files, model):
    """By the median of the text they are imported with, or not at all."""
    few = {"text": "storybook", "tokens": 2000, "context": 16, "at": ["resid_post.2", "resid_post.1"]}
    with model.hooks(Massive(Site(2), 1e3)):
        default, off = (import_saes(sae_files, model, **few, **more).quality for more in ({}, {"outliers": 0.0}))
    massive, usual = (default.quality[site].outliers for site in (Site(2), Site(1)))
    assert massive.n > 0 and massive.matter and usual.n == 0
    assert off.quality[Site(2)].outliers is None
    assert off.quality[Site(2)].fvu == pytest.approx(massive.fvu, rel=1e-4)
