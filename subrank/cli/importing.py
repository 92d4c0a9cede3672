"""`subrank import`: a set made of other people's dictionaries, so that every verb runs on them."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from subrank.cli.arguments import model_of, writable
from subrank.cli.parsers import Verbs
from subrank.cli.results import save_result
from subrank.cli.terminal import say

if TYPE_CHECKING:
    from sae_core.data.text import Text
    from sae_core.dictionaries.dictionary import Dictionary
    from sae_core.formats.foreign import Foreign
    from sae_core.model.language_model import LanguageModel
    from sae_core.sites import Site
    from sae_core.storage import DictionarySet


def add(verbs: Verbs) -> None:
    """Declare `subrank import`."""
    parser = verbs.add("import", run, "make a set of other people's dictionaries", "./imported")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="a dictionary's file or folder: SAELens, OpenAI, Gemma Scope, sparsify, dictionary-learning",
    )
    parser.add_argument("--model", required=True, help="'storybook', a directory in Hugging Face layout, or a hub name")
    parser.add_argument("--at", nargs="+", metavar="SITE", help="site of each file, where it does not say so itself")
    parser.add_argument("--text", default="storybook", help="'storybook', a .txt or .jsonl file, or a dataset name")
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens of it that verbs may read, at most")
    parser.add_argument(
        "--context", type=int, default=None, help="tokens per context; the model's, or the files', at most 128"
    )
    parser.add_argument(
        "--prepend-bos", action=argparse.BooleanOptionalAction, default=None, help="as the files say by default"
    )


def run(options: argparse.Namespace) -> None:
    """`subrank import`."""
    from editing.set_quality import measure_set
    from sae_core.data.text import Text, held_out
    from sae_core.errors import UserError
    from sae_core.files import write_json
    from sae_core.formats.readers import load_foreign
    from sae_core.sites import Site
    from sae_core.storage import QUALITY, SET

    out = writable(options.out or Path("imported"))
    if (out / SET).exists():
        raise UserError(f"{out} holds dictionaries already; give another --out")
    at = [Site.parse(text) for text in options.at] if options.at else None
    foreign = [load_foreign(file) for file in options.files]
    model = model_of(options.model, options.device)
    known = [one.n_ctx for one in foreign if one.n_ctx and one.n_ctx > 1]
    n_ctx = min(128, model.n_ctx, *known) if options.context is None else options.context
    bos = _prepend_bos(foreign) if options.prepend_bos is None else options.prepend_bos
    text = Text(options.text, n_ctx, bos, options.tokens)
    found = gather(options.files, foreign, model, text, at)
    for file, one in zip(options.files, foreign, strict=True):
        if one.model_name and _plain(one.model_name) != _plain(model.name):
            say(f"note: {file} says that it was trained on {one.model_name}, not on {model.name}")
    contexts = held_out(text.contexts(model))[1]
    say("measuring on held-out text")
    measured = measure_set(model, found, contexts)
    found.save(out)
    write_json(out / QUALITY, measured.to_json())
    save_result(out, {"dictionaries": measured.to_json()}, model, {"text": asdict(text), "origin": found.origin})
    say(f"dictionaries: {out}")


def _plain(name: str) -> str:
    """A model's name without the folder or the account that it lies in, and by one spelling."""
    return {"gpt2-small": "gpt2"}.get(plain := Path(name).name.lower(), plain)


def import_set(
    files: Sequence[Path], model: "LanguageModel", text: "Text", at: "Sequence[Site] | None" = None
) -> "DictionarySet":
    """A set of the dictionaries in `files` for `model`, one per site; `at` says where each belongs.

    Without `at` the files must say so themselves. Raises `UserError`, which names the file, where one cannot
    be loaded or is of another width than the model, and where two are for one site.
    """
    from sae_core.formats.readers import load_foreign

    return gather(files, [load_foreign(file) for file in files], model, text, at)


def gather(
    files: Sequence[Path],
    foreign: "Sequence[Foreign]",
    model: "LanguageModel",
    text: "Text",
    at: "Sequence[Site] | None" = None,
) -> "DictionarySet":
    """`import_set` of files that are loaded already."""
    from sae_core.errors import UserError
    from sae_core.storage import DictionarySet

    if at is not None and len(at) != len(files):
        raise UserError(f"{len(files)} files, but {len(at)} sites; give one site for each file, in their order")
    found, origin = {}, {}
    for file, one, wanted in zip(files, foreign, at or [None] * len(files), strict=True):
        try:
            site = _site(one, wanted)
            width, expected = one.dictionary.directions.shape[-1], model.d_in(site)
            if width != expected:
                raise UserError(
                    f"it reads activations of width {width}; those at {site} of {model.name} have {expected}"
                )
            if site in found:
                raise UserError(f"it belongs at {site}, as does {origin[str(site)]}; give one file for each site")
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        found[site] = _own(one.dictionary.to(model.device), model)
        origin[str(site)] = f"{file.expanduser().absolute()} ({one.format})"
    return DictionarySet(model.name, model.fingerprint(), text, found, None, origin)


def _own(dictionary: "Dictionary", model: "LanguageModel") -> "Dictionary":
    """The dictionary as it is meant for this model: TransformerLens centres only those that cannot tell."""
    import torch

    from sae_core.dictionaries.normalised import Centred

    if not isinstance(dictionary, Centred):
        return dictionary
    h = torch.linspace(-1, 1, model.d_model, device=model.device)[None].sin()
    blind = torch.allclose(model.unembed(h), model.unembed(h + 1), atol=1e-3)
    return dictionary if blind else dictionary.inner


def _site(foreign: "Foreign", wanted: "Site | None") -> "Site":
    from sae_core.errors import UserError

    if wanted is not None and foreign.site not in (None, wanted):
        raise UserError(f"it says that it belongs at {foreign.site}, not at {wanted}")
    if wanted is None and foreign.site is None:
        raise UserError("it does not say where it belongs; name its site with --at, such as --at resid_post.3")
    return wanted or foreign.site


def _prepend_bos(foreign: "Sequence[Foreign]") -> bool:
    """Whether the dictionaries were trained with BOS; true where none says so."""
    from sae_core.errors import UserError

    said = {one.prepend_bos for one in foreign} - {None}
    if len(said) > 1:
        raise UserError(
            "some of the files were trained with BOS and some without; say --prepend-bos or --no-prepend-bos"
        )
    return said != {False}
