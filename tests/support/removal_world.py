"""What tests of removals share: sites, a small configuration, slow references, and a model in which all is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from handmade import HandModel
from planted import unchecked

from editing.removal.config import RemovalConfig
from editing.removal.experiment import remove
from editing.removal.measurement.curve import MeasuredCurve
from editing.removal.measurement.damage_text import Damage
from editing.removal.measurement.evaluation import Evaluated, Method, Removal
from editing.removal.prompts.capability import Capability
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from editing.removal.result import RemovalResult
from editing.tasks.pronouns import PRONOUNS
from sae_core.dictionaries.baselines import Basis
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention
from sae_core.progress import Progress
from sae_core.sites import Site, Stream

LAST, MIDDLE, MLP = Site(5), Site(3), Site(1, Stream.MLP_OUT)
CONFIG = RemovalConfig(
    selection_prompts=32,
    test_prompts=48,
    fit_prompts=32,
    eraser_prompts=192,
    shortlist=6,
    max_features=2,
    text_contexts=8,
    random_draws=1,
    budget=2.0,
    strengths=(0.5, 1.0),
)
YES, NO, N_NAMES, D = 57, 58, 36, 12


def holds_its_value(estimate: Estimate) -> bool:
    return estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9


def plain_scores(model, prompts: TwoClassPrompts, *edits) -> torch.Tensor:
    """logit(she) - logit(he) after each prompt alone, from its tokens, edited at all content positions."""
    scores = []
    for row, end, yes, no in zip(prompts.tokens, prompts.end, prompts.yes, prompts.no, strict=True):
        tokens = row[None, : int(end) + 1]
        with torch.no_grad(), model.hooks(*(replace(edit, mask=model.content(tokens)) for edit in edits)):
            logits = model.logits(tokens)[0, -1]
        scores.append(logits[yes] - logits[no])
    return torch.stack(scores)


def plain_damage(model, text: torch.Tensor, *edits, limit: float = 0.01) -> tuple[float, float]:
    """Mean KL per content token at which the unedited model gives all pronouns together less than `limit`.

    And the mean rise of the next content token's cross-entropy there.
    """
    pronouns = [model.to_ids(f" {word}")[0] for word in PRONOUNS]
    pronouns = [i for i in set(pronouns) if i != model.tokenizer.unk_token_id]
    before = model.logits(text).log_softmax(-1)
    with model.hooks(*(replace(edit, mask=model.content(text)) for edit in edits)):
        after = model.logits(text).log_softmax(-1)
    kl, rise = [], []
    for row in range(text.shape[0]):
        for pos in range(text.shape[1]):
            p, q = before[row, pos].double(), after[row, pos].double()
            if int(text[row, pos]) not in model.special_ids and p.exp()[pronouns].sum() < limit:
                kl.append((p.exp() * (p - q)).sum().item())
                if pos + 1 < text.shape[1] and int(text[row, pos + 1]) not in model.special_ids:
                    rise.append((p - q)[text[row, pos + 1]].item())
    return sum(kl) / len(kl), sum(rise) / len(rise)


def evaluated(
    method: Method, area: float, kl: list[float], *, areas: list[float] = (), site: str = "resid_post.1"
) -> Evaluated:
    """An evaluation with this AUROC and damage, which in the bootstrap resamples are `areas` and `kl`."""
    mean, unknown = Estimate(sum(kl) / len(kl)), Estimate(0.5)
    removal = Removal(method, site, Estimate(area, area, area), unknown, 1.0, unknown, mean, 1.0)
    kl = kl * len(areas) if len(kl) == 1 else kl
    return Evaluated(removal, Damage(mean, Estimate(0.0), 1.0, tuple(kl)), tuple(areas))


def measured(
    method: Method, *rows: tuple[float, float, float], site: str = "resid_post.1", place: str = ""
) -> MeasuredCurve:
    """A curve through rows of strength, AUROC and damage, the same in every resample."""
    points = {strength: evaluated(method, area, [kl], areas=[area] * 4, site=site) for strength, area, kl in rows}
    return MeasuredCurve.through(points, place)


class Editable(HandModel):
    """A `HandModel` with hooks."""

    edits: tuple[Intervention, ...] = ()

    @contextmanager
    def hooks(self, *interventions: Intervention) -> Iterator[None]:
        before, self.edits = self.edits, (*self.edits, *interventions)
        try:
            yield
        finally:
            self.edits = before

    def _run(self, h, first, sites):
        kept = {}
        for layer in range(first, self.n_layers):
            h = super()._run(h, layer, [Site(layer)])[Site(layer)]
            for edit in self.edits:
                h = edit(h) if edit.site == Site(layer) else h
            kept[Site(layer)] = h
        return {site: kept[site] for site in sites}


class World:
    """An `Editable` of two layers in which names are of two classes, told apart by the first coordinate alone.

    At the second layer it has been written to the next position. The two answers differ in it alone, so that with
    that coordinate at zero their logits are equal to the bit.
    """

    def __init__(self):
        noise = torch.randn(60, D, generator=torch.Generator().manual_seed(0))
        noise[:, 0] = 0
        embedding = 3 * torch.nn.functional.normalize(noise, dim=-1)
        embedding[0] = 0
        embedding[NO] = embedding[YES]
        female = torch.arange(N_NAMES) % 2 == 0
        embedding[1 : N_NAMES + 1, 0] = torch.where(female, 1.0, -1.0) * torch.linspace(0.5, 1.5, N_NAMES)
        embedding[YES, 0], embedding[NO, 0] = 0.5, -0.5
        zero, on = torch.zeros(D, D), torch.zeros(D, D)
        on[0, 0] = 1.0
        self.model = Editable(embedding, [(zero, on), (zero, zero)])
        self.whole = Basis(torch.eye(D), torch.zeros(D))
        self.without = Basis(torch.eye(D)[1:], torch.zeros(D))
        fillers = torch.arange(N_NAMES + 1, YES)
        words = torch.cat([fillers, torch.arange(1, N_NAMES + 1)])
        generator = torch.Generator().manual_seed(1)
        self.contexts = words[torch.randint(len(words), (12, 16), generator=generator)]
        self.contexts[:, 0] = 0

    def prompts(self, first: int, n_names: int, n_templates: int = 4, *, templates: int = 0) -> TwoClassPrompts:
        """[BOS, filler, name, filler] for every name with every template, the names in turn."""
        template = torch.arange(n_templates).repeat_interleave(n_names) + templates
        name = torch.arange(n_names).repeat(n_templates) + first
        tokens = torch.stack([0 * name, N_NAMES + 1 + template, name + 1, N_NAMES + 8 + template], 1)
        end, yes, no = (torch.full_like(name, value) for value in (3, YES, NO))
        return TwoClassPrompts(
            tokens, end, name % 2 == 0, yes, no, template, template, tokens == name[:, None] + 1, name
        )

    def capability(self, **fields) -> Capability:
        selection, check, both = self.prompts(0, 8), self.prompts(8, 8), self.prompts(0, 16)
        test = self.prompts(16, 20, templates=4)
        parts = {"tuning": selection, "fitting": both, "test": test, "task_tokens": (YES, NO)}
        task = Capability("by hand", ("yes", "no"), "a prompt", selection, check, both, **parts)
        return replace(task, **({"transfers": {"other": self.prompts(16, 20, templates=6)}} | fields))

    def removed(self, dictionaries: dict, task: Capability | None = None, **fields) -> RemovalResult:
        config = replace(CONFIG, **fields)
        stages: list[Progress] = []
        task = task or self.capability()
        with unchecked():  # the tests of its parts have their shapes checked
            result = remove(self.model, task, dictionaries, self.contexts, config, on_progress=stages.append)
        assert [stage.done for stage in stages] == list(range(len(stages)))
        assert {stage.total for stage in stages} == {len(stages)}
        return result


def named(result: RemovalResult) -> dict[Method, Removal]:
    return {method.method: method for method in result.methods}
