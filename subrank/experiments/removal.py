"""`sr.remove`, `subrank remove`: a capability taken away, and what else changed."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Int
from markupsafe import Markup
from torch import Tensor

from editing.interventions.compose import spare_bos
from editing.interventions.hook_export import export_hook
from editing.interventions.save import save_edit
from editing.removal.config import RemovalConfig
from editing.removal.experiment import remove as remove_capability
from editing.removal.figure import removal_figure
from editing.removal.measurement.cached_runs import REMOVABLE
from editing.removal.prompts.capability import capability_of
from editing.removal.result import RemovalResult
from editing.set_quality import SetQuality
from sae_core.codec import from_plain, to_plain
from sae_core.errors import UserError
from sae_core.files import user_path
from sae_core.formats.hook_names import parse_site
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, silent
from sae_core.sites import Site
from subrank.checking.recomputed import check_of
from subrank.checking.removal import recomputed
from subrank.experiments.cost import announce, removal_parts
from subrank.pages.evaluation_page import dictionaries_section
from subrank.pages.removal_page import removal_section
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import Saes, a_set
from subrank.settings.experiments import RemoveSettings
from subrank.settings.fields import make, takes
from subrank.settings.model_size import fitted

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Removal(Result):
    """What it costs to remove a capability by features, beside LEACE, the mean difference and random controls."""

    verb: ClassVar[str] = "remove"
    result: RemovalResult
    quality: SetQuality
    provenance: Provenance
    model: LanguageModel | None = field(default=None, repr=False)
    spared: Int[Tensor, "contexts pos"] | None = field(default=None, repr=False)
    """Contexts whose first position the edits leave alone, as they did when they were measured."""

    def title(self) -> str:
        return f"Removing {Path(self.result.task).name}"

    @property
    def edits(self) -> list:
        """The edit by features at the chosen site, for `with model.hooks(*removal.edits)`."""
        if self.model is None:
            raise UserError("a result read from a folder holds no edits; load_edit(folder / 'edit') reads them")
        edits = list(self.result.edits)
        return edits if self.spared is None else spare_bos(self.model, edits, self.spared)

    def lines(self) -> list[str]:
        result = self.result
        return [f"{result.task}: {result.own.sentence()}", result.sentence(), result.verdict()]

    def figures(self) -> "dict[str, Figure]":
        return {"curves": removal_figure(self.result)}

    def section(self) -> Markup:
        """The page without the dictionaries."""
        return removal_section(self.result)

    def body(self) -> Markup:
        return self.section() + dictionaries_section(self.quality)

    def to_dict(self) -> dict[str, Any]:
        score = to_plain(self.result.own)
        return {"own_score": score, "dictionaries": self.quality.to_json(), "removal": self.result.to_json()}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Removal":
        result = from_plain(RemovalResult, numbers["removal"])
        return cls(result, SetQuality.from_json(numbers["dictionaries"]), provenance)

    def write(self, folder: Path) -> None:
        """As every result, and the edit: in `edit/` for `load_edit`, in `hook/` as a plain PyTorch hook."""
        super().write(folder)
        if self.model is not None:
            for line in write_edit(folder, self.model, self.edits):
                log.warning(line)


@takes(RemoveSettings)
def remove(
    model: LanguageModel,
    saes: Saes,
    task: str = "pronouns",
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Removal:
    """A capability taken away by ablating features at little damage, beside LEACE and other erasers at their best.

    `task` is pronouns, possessives, brackets, ioi, or a .jsonl file of pairs.
    """
    chosen = make(RemoveSettings, settings)
    a_set(saes)
    user_path(task)  # raises for what is neither a name nor a file
    with shown("remove", progress, on_progress) as report:
        chosen = fitted(chosen, saes.on(model).block_weights, report)
        return run_remove(model, saes, task, chosen, removal_config(chosen, saes), report)


def run_remove(
    model: LanguageModel,
    saes: Saes,
    task: str,
    settings: RemoveSettings,
    config: RemovalConfig,
    on_progress: OnProgress = silent,
) -> Removal:
    """`remove` with a configuration that says in full how much to run."""
    model = saes.on(model)
    capability = capability_of(task, model, config)
    contexts = saes.read(model, settings.text)
    quality = saes.measured(model, contexts, settings.text, on_progress)
    text = contexts.held_out
    sites = [config.site] if config.site else [site for site in saes.dictionaries if site.stream in REMOVABLE]
    parts = removal_parts(model, config, sites, len(capability.fitting), text.shape[1])
    announce(model, {saes.model: saes.dictionaries}, parts, on_progress)
    result = remove_capability(model, capability, {**saes.dictionaries}, text, config, on_progress=on_progress)
    spared = text[: config.text_contexts] if config.prepend_bos else None
    ran = {"prompts": config.test_prompts, "budget": config.budget}  # the demo runs less than its settings say
    known = asdict(settings) | ran | {"task": task, "set": saes.folder}
    provenance = Provenance.of("remove", model, known, dictionaries=saes.dictionaries, text=contexts.digest)
    numbers = partial(recomputed, model, capability, saes.at(Site.parse(result.site)), text, config, result)
    check = check_of(model, settings.check, on_progress, numbers)
    return Removal(result, quality, provenance, model, spared, check=check)


def removal_config(settings: RemoveSettings, saes: Saes) -> RemovalConfig:
    """How much to run, as set; raises `UserError` for a site without a dictionary."""
    few = max(8, settings.prompts // 2)
    site = parse_site(settings.site) if settings.site else None
    if site is not None:
        saes.at(site)
    config = RemovalConfig(seed=settings.seed, prepend_bos=bool(saes.text.prepend_bos), site=site)
    sizes = {"text_contexts": settings.contexts, "shortlist": settings.shortlist, "max_features": settings.features}
    # three eighths of the test prompts to fit features on, four times as many to fit erasers on
    sizes |= {"test_prompts": settings.prompts, "selection_prompts": few, "eraser_prompts": 4 * settings.prompts}
    sizes |= {"fit_prompts": max(8, 3 * settings.prompts // 8)}
    if settings.quick:
        sizes |= {"random_draws": 1}
    return replace(config, share=settings.share, budget=settings.budget, **sizes)


def write_edit(folder: Path, model: LanguageModel, edits: list) -> list[str]:
    """Write edits as `load_edit` reads them, and as a plain hook; returns a line for each that cannot be written."""
    problems = []
    for place, write in (
        ("edit/", lambda: save_edit(edits, folder / "edit", model)),
        ("hook/", lambda: export_hook(edits, model, folder / "hook" / "remove_hook.py")),
    ):
        try:
            write()
        except UserError as error:
            problems.append(f"{place} is not written: {error}")
    return problems
