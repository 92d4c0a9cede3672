"""`subrank import`."""

import argparse
from pathlib import Path

from subrank.cli.arguments import model_of, writable
from subrank.cli.parsers import Verbs, path, settings_of, word
from subrank.cli.terminal import reporting, say
from subrank.settings.experiments import ImportSettings


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add("import", run, ImportSettings, "./imported")
    text = "a dictionary's file or folder, or hf:OWNER/NAME@REVISION/FOLDER (its safetensors): SAELens, OpenAI, "
    text += "Gemma Scope, sparsify, dictionary-learning"
    parser.add_argument("files", metavar="FILE", nargs="+", type=path, help=text)
    where = "'storybook', a directory in Hugging Face layout, a .gguf file, or a hub name"
    parser.add_argument("--model", type=word, required=True, help=where)


def run(options: argparse.Namespace) -> None:
    """`subrank import`: make a set of other people's dictionaries."""
    from dataclasses import asdict

    from sae_core.errors import UserError
    from sae_core.formats.readers import load_foreign
    from sae_core.storage import SET
    from subrank.cli.saving import save_sets
    from subrank.experiments.importing import notes, run_import
    from subrank.hub_sets import local_path
    from subrank.result import Provenance

    settings = settings_of(options, ImportSettings)
    out = writable(options.out or Path("imported"), options)
    if (out / SET).exists():
        raise UserError(f"{out} holds dictionaries already; give another --out")
    files = [local_path(file) for file in options.files]
    foreign = [load_foreign(file) for file in files]
    model = model_of(options.model, options)
    for note in notes(files, foreign, model):
        say(note)
    with reporting() as report:
        saes = run_import(files, foreign, model, settings, report)
    origin = {"text": asdict(saes.text), "origin": saes.origin}
    depends = {"dictionaries": saes.dictionaries, "text": saes.text.digest}
    save_sets(out, {"dictionary": saes}, Provenance.of("import", model, origin, **depends))
    say(f"dictionaries: {out}")
