"""An edit as a file of its own, to run where this package is not installed."""

from collections.abc import Sequence
from pathlib import Path

from editing.interventions import plain_hook
from editing.interventions.save import describe_all
from sae_core.errors import UserError
from sae_core.files import user_path, write_tensors, write_text
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site, Stream

_BLANK = "EDITS = []  # replaced when an edit is exported: module and kind of each edit"


def export_hook(edit: Intervention | Sequence[Intervention], model: LanguageModel, path: str | Path) -> None:
    """Write `path` (a .py file) and the tensors beside it; its `attach(model)` edits the Hugging Face model.

    The file needs torch and safetensors only. Raises `UserError` for a site that is not the output of a block,
    and for an edit that cannot be written down (`save_edit`).
    """
    path = user_path(path)
    if path.suffix != ".py":
        raise UserError(f"a hook is exported to a .py file; got {path.name}")
    cards, tensors = describe_all(edit)
    cards = [{"module": module_of(model, Site.parse(card["site"]))} | card for card in cards]
    source = Path(plain_hook.__file__).read_text(encoding="utf-8")
    assert source.count(_BLANK) == 1
    path.unlink(missing_ok=True)  # new tensors never go with an old hook
    write_tensors(path.with_suffix(".safetensors"), tensors)
    write_text(path, source.replace(_BLANK, f"EDITS = {cards!r}"))


def module_of(model: LanguageModel, site: Site) -> str:
    """Where in the Hugging Face model the activation at `site` is put out; raises `UserError` for other streams."""
    model.check(site)
    if site.stream is not Stream.RESID_POST:
        raise UserError(f"an edit of {site} cannot be exported as a hook; those of resid_post can: a block's output")
    return model.bridge.blocks[site.layer].name
