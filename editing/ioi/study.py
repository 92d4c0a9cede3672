"""The IOI experiment from end to end: choose a site and features on one half of the prompts, report on the other."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.ioi.baselines import SHOWN, Baseline, baselines
from editing.ioi.curve import Curve, Trace, default_counts, floor, summary, trace
from editing.ioi.curve_comparison import CurveComparison, compare
from editing.ioi.feature_selection import SELECTORS, Selection, SelectionConfig, Selector
from editing.ioi.feature_sets import KL, SIZE, Patching
from editing.ioi.joint_experiment import JointExperiment
from editing.ioi.site_experiment import PatchExperiment
from editing.metrics import resampled
from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.pairs import Place, PromptPairs
from editing.tasks.score import TaskScore, task_score
from sae_core.data.activations import harvest
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.evaluation.reconstruction import finite
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import Site, Stream

NAMED = 1024
"""Features of a curve that its result names."""
SIZES_COMPARED = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Edit sizes at which methods are compared, as shares of the size with everything patched."""
HARVESTED = 2**29
"""Bytes that the activations may take from which baselines of several sites are fitted, at one time."""


@dataclass(frozen=True)
class IOIConfig:
    """How much to run."""

    selection_prompts: int = 32
    test_prompts: int = 96
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    selectors: tuple[Selector | str, ...] = tuple(Selector)
    """How dictionaries' features are chosen; baselines' are by the first of these. `threshold` is the slow one."""
    baselines: tuple[Baseline | str, ...] = tuple(one for one in Baseline if one is not Baseline.ICA)
    """What dictionaries are compared with. ICA is slow to fit."""
    random_draws: int = 3
    """Random orders, averaged."""
    seed: int = 0
    prepend_bos: bool = True

    def __post_init__(self) -> None:
        for name, known in (("selectors", Selector), ("baselines", Baseline)):
            for one in getattr(self, name):
                if one not in set(known):
                    raise UserError(f"no {name[:-1]} {one!r}; there are {', '.join(known)}")
            object.__setattr__(self, name, tuple(map(known, getattr(self, name))))
        if not self.selectors:
            raise UserError(f"no way to choose features is given; there are {', '.join(Selector)}")
        for name in ("selection_prompts", "test_prompts", "random_draws"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}")


@dataclass(frozen=True)
class IOIResult:
    """One corruption at one site, or at several that are patched jointly."""

    corruption: Corruption
    own: TaskScore
    site: str
    """Several are joined by a plus sign."""
    site_kl: dict[str, float]
    """KL on the selection prompts with the 16 features of highest estimate patched, for every site that was asked."""
    curves: tuple[Curve, ...]
    floors: dict[str, dict[str, float]]
    """Of every dictionary: KL with nothing, all latents, and the error patched too."""
    shared: tuple[str, ...]
    """What selection and test prompts have in common besides the task."""
    n_selection: int
    n_test: int
    comparisons: tuple[CurveComparison, ...] = ()
    positions: tuple[Place, ...] | None = None
    """The positions that were edited, roles or counted from the end; None for all."""

    def main(self) -> list[Curve]:
        """The curves of the picture: every method, its features chosen the first way."""
        return [curve for curve in self.curves if curve.selection == self.curves[0].selection]

    def sentences(self) -> list[str]:
        """Where the dictionaries beat PCA (else the first baseline), where not, and why."""
        names = [one.baseline for one in self.comparisons]
        baseline = SHOWN[Baseline.PCA] if SHOWN[Baseline.PCA] in names else next(iter(names), None)
        curves = {curve.name: curve for curve in self.main()}
        return [
            f"{one.sentence()}. {one.reason(self.floors[one.dictionary], curves[one.dictionary])}"
            for one in self.comparisons
            if one.baseline == baseline
        ]

    def to_json(self) -> dict[str, Any]:
        """All fields, with what follows from the comparisons; null where a ratio has no value."""
        plain, found = asdict(self), ("better", "worse", "crossing", "better_sizes", "worse_sizes")
        for numbers, one in zip(plain["comparisons"], self.comparisons, strict=True):
            numbers |= {name: getattr(one, name) for name in found}
        return _plain(plain) | {"sentences": self.sentences()}


def run_ioi(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    corruption: Corruption,
    config: IOIConfig,
    on_progress: OnProgress = silent,
) -> IOIResult:
    """The experiment with one set of dictionaries, at the site that is best; `IOIStudy` compares several sets."""
    return IOIStudy(model, {"dictionary": dictionaries}, contexts, config).run(corruption, on_progress=on_progress)


@dataclass(frozen=True, eq=False)
class _Prompts:
    """The prompts of one corruption, with what the model does on those of the test."""

    selection: PromptPairs
    test: PromptPairs
    own: TaskScore


class IOIStudy:
    """Experiments of several corruptions at several sites, with what they share: prompts, own scores, baselines.

    `sets` are the dictionaries to compare: by the name of their set, then by site. `contexts` are those on which
    baselines are fitted.
    """

    def __init__(
        self,
        model: LanguageModel,
        sets: Mapping[str, Mapping[Site, Dictionary]],
        contexts: Int[Tensor, "contexts pos"],
        config: IOIConfig,
    ):
        if not any(sets.values()):
            raise UserError("IOI needs at least one set of dictionaries")
        self.sets = dict(sets)
        self.model, self.contexts, self.config, self.task = model, contexts, config, IOITask.of(model)
        self._prompts: dict[Corruption, _Prompts] = {}
        self._baselines: dict[Site, dict[str, Dictionary]] = {}

    def run(
        self,
        corruption: Corruption,
        *,
        site: Site | Sequence[Site] | None = None,
        positions: Sequence[Place] | None = None,
        on_progress: OnProgress = silent,
    ) -> IOIResult:
        """What every method reaches on the test prompts.

        Without `site`, the residual or MLP site is taken at which the 16 features of highest estimate leave the
        least KL on the selection prompts, with the best of the sets; several sites are patched jointly. `positions`
        as in `editing.ioi.site_experiment.edited_places`.
        """
        config, places = self.config, self._places(site)
        n_methods = len(self.sets) * len(config.selectors) + len(config.baselines)
        stages = Stages(on_progress, 1 + (len(places) > 1) + bool(config.baselines) + n_methods)
        stages.begin(f"{corruption}: the model on the prompts, unedited")
        prompts = self.prompts(corruption)
        if len(places) > 1:
            stages.begin(f"{corruption}: choosing the site")
        selection, site_kl = self._chosen(prompts.selection, places, positions)
        if config.baselines:
            stages.begin(f"{corruption}: {_joined(selection.sites)}, fitting the baselines")
        test = _experiment(self.model, prompts.test, selection.sites, positions)
        methods = self.sets | self.baselines(test.sites)
        weights, curves, traces, floors = resampled(prompts.test.groups, self.config.seed), [], {}, {}
        for name, dictionaries in methods.items():
            choosing, testing = (_patching(one, dictionaries) for one in (selection, test))
            for selector in self.config.selectors if name in self.sets else self.config.selectors[:1]:
                stages.begin(f"{corruption}: {_joined(test.sites)}, {name}, {selector}")
                chosen, found = self._traced(choosing, testing, selector)
                points = summary(test.clean, test.corrupted, found, weights)
                named = self._names(name, testing, chosen.order[:NAMED])
                curves.append(Curve(name, points, named, chosen.forwards, selector))
                traces.setdefault(name, found)
            if name in self.sets:
                floors[name] = floor(testing)
        full = testing.whole()[:, SIZE].mean().item()
        return IOIResult(
            corruption=corruption,
            own=prompts.own,
            site=_joined(test.sites),
            site_kl=site_kl,
            curves=tuple(curves),
            floors=floors,
            shared=self.task.shared,
            n_selection=len(prompts.selection),
            n_test=len(prompts.test),
            comparisons=self._compared(traces, weights, full),
            positions=None if positions is None else tuple(positions),
        )

    # ---- what experiments share ----------------------------------------------------------------

    def prompts(self, corruption: Corruption) -> _Prompts:
        """The prompts of a corruption, made once."""
        if corruption not in self._prompts:
            config = self.config
            given = {"seed": config.seed, "prepend_bos": config.prepend_bos}
            selection, test = (
                self.task.pairs(self.model, corruption, split, n, **given)
                for split, n in (("selection", config.selection_prompts), ("test", config.test_prompts))
            )
            self._prompts[corruption] = _Prompts(selection, test, task_score(self.model, test))
        return self._prompts[corruption]

    def baselines(self, sites: Sequence[Site]) -> dict[str, dict[Site, Dictionary]]:
        """The baselines by name, then site; fitted once, several sites from one pass as far as memory goes."""
        missing = [site for site in sites if site not in self._baselines]
        while missing and self.config.baselines:
            widest = max(self.model.d_in(site) for site in missing)
            few = max(1, HARVESTED // (4 * widest * self.contexts.numel()))
            for site, x in harvest(self.model, self.contexts, tuple(missing[:few])).items():
                self._baselines[site] = baselines(self.config.baselines, x, self.config.seed)
            missing = missing[few:]
        return {
            SHOWN[name]: {site: self._baselines[site][SHOWN[name]] for site in sites} for name in self.config.baselines
        }

    # ---- parts of an experiment ----------------------------------------------------------------

    def _places(self, site: Site | Sequence[Site] | None) -> list[tuple[Site, ...]]:
        """What to choose from: what is given, or every site that all sets have; raises `UserError` if there is none."""
        given = (site,) if isinstance(site, Site) else tuple(site or ())
        for name, dictionaries in self.sets.items():
            for one in given:
                if one not in dictionaries:
                    whose = "this set" if len(self.sets) == 1 else name
                    raise UserError(f"no dictionary for {one}; {whose} has {', '.join(map(str, dictionaries))}")
        if given:
            return [given]
        first, *others = self.sets.values()
        shared = [one for one in first if all(one in other for other in others)]
        usual = [one for one in shared if one.stream in (Stream.RESID_POST, Stream.MLP_OUT)]
        if not shared:
            raise UserError(f"{', '.join(self.sets)} have no site in common; give sets that have")
        return [(one,) for one in usual or shared]

    def _chosen(
        self, pairs: PromptPairs, places: list[tuple[Site, ...]], positions: Sequence[Place] | None
    ) -> tuple[PatchExperiment | JointExperiment, dict[str, float]]:
        """The experiment on the selection prompts at the best place, and what the KL is at each."""
        found: dict[str, float] = {}
        for sites in places:
            experiment = _experiment(self.model, pairs, sites, positions)
            kl = min(_kl_of_best(_patching(experiment, dictionaries)) for dictionaries in self.sets.values())
            if kl < min(found.values(), default=torch.inf):
                best = experiment  # the others are let go: each holds two runs
            found[_joined(experiment.sites)] = kl
        return best, found

    def _traced(self, choosing: Patching, testing: Patching, selector: Selector) -> tuple[Selection, Trace]:
        """Features chosen on the selection prompts, and what they do on the test prompts."""
        config, select = self.config, SELECTORS[selector]
        chosen = select(choosing, config.selection, seed=config.seed)
        found = trace(testing, chosen.order, chosen.counts or default_counts(len(chosen.order)))
        if selector is not Selector.RANDOM:
            return chosen, found
        draws = [found.readout]
        for draw in range(1, config.random_draws):
            order = select(choosing, config.selection, seed=config.seed + draw).order
            draws.append(trace(testing, order, found.counts).readout)
        return replace(chosen, order=()), Trace(found.counts, torch.stack(draws).mean(0))

    def _names(self, method: str, patching: Patching, order: Sequence[int]) -> tuple[str, ...]:
        """Features by their names; of a baseline, which has no features of its own, by its name and number."""
        features = [patching.feature(number) for number in order]
        if method in self.sets:
            return tuple(map(str, features))
        alone = len({feature.site for feature in features}) == 1
        return tuple(f"{method} {feature.index if alone else feature}" for feature in features)

    def _compared(
        self, traces: Mapping[str, Trace], weights: Float[Tensor, "resamples batch"], full: float
    ) -> tuple[CurveComparison, ...]:
        """Every set against every baseline; `full` is the edit size with everything patched."""
        sizes = [share * full for share in SIZES_COMPARED]
        others = [name for name in traces if name not in self.sets]
        return tuple(
            compare(name, other, traces[name], traces[other], weights, sizes) for name in self.sets for other in others
        )


def _experiment(
    model: LanguageModel, pairs: PromptPairs, sites: Sequence[Site], positions: Sequence[Place] | None
) -> PatchExperiment | JointExperiment:
    """At one site the fast one, whose changes add up."""
    if len(sites) == 1:
        return PatchExperiment(model, pairs, sites[0], positions)
    return JointExperiment(model, pairs, sites, positions)


def _patching(experiment: PatchExperiment | JointExperiment, dictionaries: Mapping[Site, Dictionary]) -> Patching:
    """The features of an experiment's sites, ready to be patched."""
    if isinstance(experiment, PatchExperiment):
        return experiment.patching(dictionaries[experiment.site])
    return experiment.patching(dictionaries)


@torch.no_grad()
def _kl_of_best(patching: Patching, n: int = 16) -> float:
    estimate = patching.first_order()
    best = estimate.topk(min(n, len(estimate))).indices
    return trace(patching, best.tolist(), [len(best)]).readout[0, :, KL].mean().item()


def _joined(sites: Sequence[Site]) -> str:
    return " + ".join(map(str, sites))


def _plain(value: Any) -> Any:
    """`value` with None for numbers that JSON does not have."""
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
