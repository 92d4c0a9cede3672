"""The IOI experiment: how few features carry the indirect object from one prompt into another.

After Cunningham et al. 2023. One run, `IOIStudy.run`, is this experiment:

1. Prompts in clean and corrupted pairs, in two splits: the *selection* prompts choose, the *test* prompts measure.
2. A patch, at one site or several at once: in the corrupted run features F take their values of the clean run,
       x' = x_bar + sum_{i in F} (c_i - c_bar_i) f_i
3. On the selection prompts: the site at which a few features do most, and for every dictionary and baseline the order
   in which its features come into F.
4. On the test prompts: KL(clean || patched), recovered logit difference and edit size with the first m features in F,
   for every m from none to all, with intervals. And once more, with an order for each test pair, chosen on the pair
   itself: how few features carry one pair, whatever they do elsewhere.
5. Every dictionary against every baseline on the same test prompts, at equal numbers of features and equal edit sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.ioi.baselines import Baseline, FittedBaselines
from editing.ioi.config import IOIConfig
from editing.ioi.curve import Curve, Trace, curve_counts, floor, summary, trace, trace_pairs
from editing.ioi.curve_comparison import CurveComparison, compare_curves
from editing.ioi.feature_selection import PER_PAIR, SELECTORS, Selection, Selector, orders_of_pairs
from editing.ioi.feature_sets import Patching, PatchReadout
from editing.ioi.joint_experiment import JointExperiment
from editing.ioi.result import IOIResult
from editing.ioi.site_experiment import PatchExperiment
from editing.metrics import resampled
from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.pairs import Place, PromptPairs
from editing.tasks.score import TaskScore, task_score
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import limits_of
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import Site, Stream

NAMED = 1024
"""Features of a curve that its result names."""
SIZES_COMPARED = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Edit sizes at which methods are compared, as shares of the size with everything patched."""


class IOIStudy:
    """Experiments of several corruptions at several sites, with shared prompts, scores of the model and baselines.

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
        self.sets, self.model, self.contexts, self.config = dict(sets), model, contexts, config
        self.task = IOITask.of(model)
        kinds = tuple(map(Baseline, config.baselines))
        self.baselines = FittedBaselines(model, contexts, kinds, config.seed, limits_of(sets.values()))
        self._prompts: dict[Corruption, _Prompts] = {}

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
        as in `editing.ioi.site_experiment.edited_places`. Raises `UserError` for a site that a set does not have.
        """
        candidates, config = self._candidates(site), self.config
        n_methods = len(self.sets) + len(config.baselines)
        n_curves = n_methods + len(self.sets) * (len(config.selectors) - 1) + n_methods
        stages = Stages(on_progress, 1 + (len(candidates) > 1) + bool(config.baselines) + n_curves)
        stages.begin(f"{corruption}: the model on the prompts, unedited")
        prompts = self.prompts(corruption)
        if len(candidates) > 1:
            stages.begin(f"{corruption}: choosing the site")
        selecting, site_kl = self._at_best_site(prompts.selection, candidates, positions)
        testing = _experiment(self.model, prompts.test, selecting.sites, positions)
        where = f"{corruption}: {_joined(testing.sites)}"
        if config.baselines:
            stages.begin(f"{where}, fitting the baselines")
        methods = self.sets | self.baselines.at(testing.sites)
        weights = resampled(prompts.test.groups, config.seed)
        curves: list[Curve] = []
        specific: list[Curve] = []
        traces: dict[str, Trace] = {}  # of each method's first selector
        of_pairs: dict[str, Trace] = {}
        floors: dict[str, dict[str, float]] = {}
        full_size = 0.0
        for name, dictionaries in methods.items():
            on_selection, on_test = _patching(selecting, dictionaries), _patching(testing, dictionaries)
            for selector in config.selectors if name in self.sets else config.selectors[:1]:
                stages.begin(f"{where}, {name}, {selector}")
                selection, measured = self._measured(on_selection, on_test, Selector(selector))
                points = summary(testing.clean, testing.corrupted, measured, weights)
                features = self._names(name, on_test, selection.order[:NAMED])
                curves.append(Curve(name, points, features, selection.forwards, selector))
                traces.setdefault(name, measured)
            stages.begin(f"{where}, {name}, chosen on {PER_PAIR}")
            of_pairs[name] = _traced_for_each_pair(on_test)
            points = summary(testing.clean, testing.corrupted, of_pairs[name], weights)
            specific.append(Curve(name, points, (), 2 * len(testing), PER_PAIR))
            if name in self.sets:
                floors[name] = floor(on_test)
                full_size = on_test.activation_patched().edit_size.mean().item()
        return IOIResult(
            corruption=corruption,
            own=prompts.model_score,
            site=_joined(testing.sites),
            site_kl=site_kl,
            curves=(*curves, *specific),
            floors=floors,
            shared=self.task.shared,
            n_selection=len(prompts.selection),
            n_test=len(prompts.test),
            comparisons=self._compared(traces, weights, full_size),
            comparisons_of_pairs=self._compared(of_pairs, weights, full_size),
            positions=None if positions is None else tuple(p if isinstance(p, int) else str(p) for p in positions),
        )

    def prompts(self, corruption: Corruption) -> "_Prompts":
        """The prompts of a corruption, made once."""
        if corruption not in self._prompts:
            config = self.config
            selection, test = (
                self.task.pairs(self.model, corruption, split, n, seed=config.seed, prepend_bos=config.prepend_bos)
                for split, n in (("selection", config.selection_prompts), ("test", config.test_prompts))
            )
            self._prompts[corruption] = _Prompts(selection, test, task_score(self.model, test))
        return self._prompts[corruption]

    # ---- parts of an experiment ----------------------------------------------------------------

    def _candidates(self, site: Site | Sequence[Site] | None) -> list[tuple[Site, ...]]:
        """What to choose from, each a tuple of sites to be patched jointly.

        That is what the caller gave, or every residual and MLP site that all sets have, or else every site that they
        have. Raises `UserError` if there is none.
        """
        wanted = (site,) if isinstance(site, Site) else tuple(site or ())
        for name, dictionaries in self.sets.items():
            missing = next((site for site in wanted if site not in dictionaries), None)
            if missing is not None:
                set_name = "this set" if len(self.sets) == 1 else name
                raise UserError(f"no dictionary for {missing}; {set_name} has {', '.join(map(str, dictionaries))}")
        if wanted:
            return [wanted]
        first, *others = self.sets.values()
        shared = [site for site in first if all(site in other for other in others)]
        usual = [site for site in shared if site.stream in (Stream.RESID_POST, Stream.MLP_OUT)]
        if not shared:
            raise UserError(f"{', '.join(self.sets)} have no site in common; give sets that have")
        return [(site,) for site in usual or shared]

    def _at_best_site(
        self, pairs: PromptPairs, candidates: Sequence[tuple[Site, ...]], positions: Sequence[Place] | None
    ) -> tuple[PatchExperiment | JointExperiment, dict[str, float]]:
        """The experiment on the selection prompts at the candidate with the least KL, and the KL at each."""
        best, site_kl = None, {}
        for sites in candidates:
            experiment = _experiment(self.model, pairs, sites, positions)
            kl = min(_kl_of_best(_patching(experiment, dictionaries)) for dictionaries in self.sets.values())
            if best is None or kl < min(site_kl.values()):
                best = experiment  # the others are let go: each holds two runs
            site_kl[_joined(experiment.sites)] = kl
        assert best is not None, "there is a candidate"
        return best, site_kl

    def _measured(self, on_selection: Patching, on_test: Patching, selector: Selector) -> tuple[Selection, Trace]:
        """The order of the features chosen on the selection prompts, and what they do on the test prompts.

        Of the random order the trace is the mean over several draws, and no one order is given.
        """
        config, select = self.config, SELECTORS[selector]
        selection = select(on_selection, config.selection, seed=config.seed)
        measured = trace(on_test, selection.order, selection.counts or curve_counts(len(selection.order)))
        if selector is not Selector.RANDOM:
            return selection, measured
        draws = [measured.readout]
        for draw in range(1, config.random_draws):
            order = select(on_selection, config.selection, seed=config.seed + draw).order
            draws.append(trace(on_test, order, measured.counts).readout)
        return replace(selection, order=()), Trace(
            measured.counts, PatchReadout.stacked(draws).each(lambda x: x.mean(0))
        )

    def _names(self, method: str, patching: Patching, order: Sequence[int]) -> tuple[str, ...]:
        """Features by their `FeatureId`; coordinates of a baseline, which are no features, by its name and number."""
        features = [patching.feature(number) for number in order]
        if method in self.sets:
            return tuple(map(str, features))
        single_site = len({feature.site for feature in features}) == 1
        return tuple(f"{method} {feature.index if single_site else feature}" for feature in features)

    def _compared(
        self, traces: Mapping[str, Trace], weights: Float[Tensor, "resamples batch"], full_size: float
    ) -> tuple[CurveComparison, ...]:
        """Every set against every baseline; `full_size` is the edit size with everything patched."""
        sizes = [share * full_size for share in SIZES_COMPARED]
        baselines = [name for name in traces if name not in self.sets]
        return tuple(
            compare_curves((name, traces[name]), (baseline, traces[baseline]), weights, sizes)
            for name in self.sets
            for baseline in baselines
        )


@dataclass(frozen=True, eq=False)
class _Prompts:
    """The prompts of one corruption, with what the model does on those of the test."""

    selection: PromptPairs
    test: PromptPairs
    model_score: TaskScore


def _experiment(
    model: LanguageModel, pairs: PromptPairs, sites: Sequence[Site], positions: Sequence[Place] | None
) -> PatchExperiment | JointExperiment:
    """The clean and corrupted runs at these sites; at a single one, where changes add up, in the fast form."""
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
    """The mean KL with the `n` features of highest first-order estimate patched."""
    estimate = patching.first_order()
    best = estimate.topk(min(n, len(estimate))).indices
    return trace(patching, best.tolist(), [len(best)]).readout.kl[0].mean().item()


def _traced_for_each_pair(on_test: Patching) -> Trace:
    """What features do that are chosen for each pair on the pair itself."""
    orders = orders_of_pairs(on_test)
    return trace_pairs(on_test, orders, curve_counts(orders.shape[1]))


def _joined(sites: Sequence[Site]) -> str:
    return " + ".join(map(str, sites))
