"""The IOI experiment from end to end: choose a site and features on one half of the prompts, report on the other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.metrics import interval, resampled
from editing.selection import SELECTORS, Selection, SelectionConfig
from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.pairs import OwnScore, own_score
from editing.tradeoff import KL, Curve, PatchExperiment, Trace, default_counts, floor, summary, trace
from sae_core.activations import harvest
from sae_core.dictionaries import Dictionary, ica, neurons, nonnegative_pca, pca, random_basis
from sae_core.errors import UserError
from sae_core.measures import finite
from sae_core.models import LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site, Stream

BASELINES = {
    "pca": "PCA",
    "nonnegative_pca": "non-negative PCA",
    "neurons": "neurons",
    "random_basis": "random basis",
    "ica": "ICA",
}
NAMED = 1024
"""Features of a curve that its result names."""
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Edit sizes at which methods are compared, as shares of |x - x_bar|."""


@dataclass(frozen=True)
class IOIConfig:
    """How much to run."""

    selection_prompts: int = 32
    test_prompts: int = 96
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    selectors: tuple[str, ...] = ("greedy", "attribution", "random")
    """How dictionaries' features are chosen; baselines' are by the first of these. `threshold` is the slow one."""
    baselines: tuple[str, ...] = ("pca", "nonnegative_pca", "neurons", "random_basis")
    random_draws: int = 3
    """Random orders, averaged."""
    seed: int = 0
    prepend_bos: bool = True

    def __post_init__(self) -> None:
        for kind, given, known in (("selector", self.selectors, SELECTORS), ("baseline", self.baselines, BASELINES)):
            for name in given:
                if name not in known:
                    raise UserError(f"no {kind} {name!r}; there are {', '.join(known)}")
        if not self.selectors:
            raise UserError(f"no way to choose features is given; there are {', '.join(SELECTORS)}")


@dataclass(frozen=True)
class Comparison:
    """A dictionary against a baseline on the same prompts, paired."""

    dictionary: str
    baseline: str
    counts: tuple[int, ...]
    """Numbers of patched features that both curves have."""
    difference: tuple[float, ...]
    """KL of the dictionary's less KL of the baseline's; below 0, the dictionary is better."""
    interval: tuple[tuple[float, float], ...]
    """95%, bootstrap over templates, then prompts."""
    edit_sizes: tuple[float, ...]
    """Sizes at which both are compared."""
    size_difference: tuple[float, ...]
    """The same difference between the largest sets whose mean edit is no larger than that."""
    size_interval: tuple[tuple[float, float], ...]

    @property
    def better(self) -> list[int]:
        """Counts at which the whole interval is below zero."""
        return [count for count, (_, high) in zip(self.counts, self.interval, strict=True) if high < 0]

    @property
    def worse(self) -> list[int]:
        """Counts at which the whole interval is above zero."""
        return [count for count, (low, _) in zip(self.counts, self.interval, strict=True) if low > 0]

    @property
    def crossing(self) -> int | None:
        """The least count from which the baseline's KL is the lower one at every further count; None if never."""
        lower = [difference > 0 for difference in self.difference]
        while lower and lower[-1]:
            lower.pop()
        return self.counts[len(lower)] if len(lower) < len(self.counts) else None

    @property
    def better_sizes(self) -> list[float]:
        """Edit sizes at which the whole interval is below zero."""
        return [size for size, (_, high) in zip(self.edit_sizes, self.size_interval, strict=True) if high < 0]

    @property
    def worse_sizes(self) -> list[float]:
        """Edit sizes at which the whole interval is above zero."""
        return [size for size, (low, _) in zip(self.edit_sizes, self.size_interval, strict=True) if low > 0]


@dataclass(frozen=True)
class IOIResult:
    """One corruption at one site."""

    corruption: Corruption
    own: OwnScore
    site: str
    site_kl: dict[str, float]
    """KL on the selection prompts with the 16 features of highest estimate patched, for every site that was asked."""
    curves: tuple[Curve, ...]
    floor: dict[str, float]
    """Of the first dictionary: KL with nothing, all latents, and the error patched too."""
    shared: tuple[str, ...]
    """What selection and test prompts have in common besides the task."""
    n_selection: int
    n_test: int
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same for every dictionary."""
    comparisons: tuple[Comparison, ...] = ()
    positions: tuple[int, ...] | None = None
    """The positions that were edited, counted from the end; None for all."""

    def main(self) -> list[Curve]:
        """The curves of the picture: every method, its features chosen the first way."""
        return [curve for curve in self.curves if curve.selection == self.curves[0].selection]

    def sentences(self) -> list[str]:
        """Where the dictionaries beat PCA (else the first baseline), where not, and why."""
        baseline = next((c.baseline for c in self.comparisons if c.baseline == "PCA"), None)
        baseline = baseline or next((c.baseline for c in self.comparisons), None)
        main = {curve.name: curve for curve in self.main()}
        return [
            f"{_against(one)}. {_why(self.floors[one.dictionary], main[one.dictionary], one)}"
            for one in self.comparisons
            if one.baseline == baseline
        ]

    def to_json(self) -> dict[str, Any]:
        """All fields; null where a ratio has no value."""
        comparisons = [
            {"better": c.better, "worse": c.worse, "crossing": c.crossing, "better_sizes": c.better_sizes}
            | {"worse_sizes": c.worse_sizes}
            for c in self.comparisons
        ]
        plain = asdict(self)
        plain["comparisons"] = [a | b for a, b in zip(plain["comparisons"], comparisons, strict=True)]
        return _plain(plain) | {"sentences": self.sentences()}


def run_ioi(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary] | Mapping[str, Mapping[Site, Dictionary]],
    contexts: Int[Tensor, "contexts pos"],
    corruption: Corruption,
    config: IOIConfig,
    *,
    site: Site | None = None,
    positions: Sequence[int] | None = None,
) -> Iterator[str | IOIResult]:
    """Yield a line of progress before each stage, and the `IOIResult` last.

    `dictionaries` are those of one set, by site, or several sets by name. `contexts` are those on which PCA is
    fitted. Without `site`, the residual or MLP site is taken at which the 16 features of highest estimate leave
    the least KL on the selection prompts, with the best of the sets. `positions` as in `PatchExperiment`.
    """
    sets = _named(dictionaries)
    task = IOITask.of(model)
    prompts = {
        split: task.pairs(model, corruption, split, n, seed=config.seed, prepend_bos=config.prepend_bos)
        for split, n in (("selection", config.selection_prompts), ("test", config.test_prompts))
    }
    own = own_score(model, prompts["test"])
    yield f"{corruption}: {own.sentence()}"

    sites = _candidates(sets, site)
    if len(sites) > 1:
        yield f"{corruption}: choosing the site"
    experiments = {s: PatchExperiment(model, prompts["selection"], s, positions) for s in sites}
    site_kl = {s: min(_kl_of_best(experiments[s], own[s]) for own in sets.values()) for s in sites}
    best = min(sites, key=site_kl.__getitem__)
    selection, test = experiments[best], PatchExperiment(model, prompts["test"], best, positions)

    methods = {name: own[best] for name, own in sets.items()}
    methods |= baselines(harvest(model, contexts, (best,))[best], config)
    weights, curves, traces = resampled(prompts["test"].groups, config.seed), [], {}
    for name, dictionary in methods.items():
        for selector in config.selectors if name in sets else config.selectors[:1]:
            yield f"{corruption}: {best}, {name}, {selector}"
            chosen, found = _traced(selection, test, dictionary, selector, config)
            order = tuple(_names(name if name not in sets else best, chosen.order[:NAMED]))
            points = summary(test, found, weights)
            curves.append(Curve(name, points, order, chosen.forwards, selector))
            if selector == config.selectors[0]:
                traces[name] = found
    floors = {name: floor(test, own[best]) for name, own in sets.items()}
    full = test.sizes(test.whole(), torch.arange(len(test), device=model.device)).mean().item()
    yield IOIResult(
        corruption=corruption,
        own=own,
        site=str(best),
        site_kl={str(s): kl for s, kl in site_kl.items()},
        curves=tuple(curves),
        floor=next(iter(floors.values())),
        shared=task.shared,
        n_selection=len(prompts["selection"]),
        n_test=len(prompts["test"]),
        floors=floors,
        comparisons=tuple(
            compare(name, other, traces[name], traces[other], weights, [share * full for share in SHARES])
            for name in sets
            for other in methods
            if other not in sets
        ),
        positions=None if positions is None else tuple(positions),
    )


def baselines(x: Float[Tensor, "tokens d_in"], config: IOIConfig) -> dict[str, Dictionary]:
    """The decompositions to compare with, by the names they are shown under; fitted on `x` where they are fitted."""
    makers = {
        "pca": lambda: pca(x),
        "nonnegative_pca": lambda: nonnegative_pca(x),
        "neurons": lambda: _to(neurons(x.shape[-1]), x),
        "random_basis": lambda: _to(random_basis(x.shape[-1], generator=generator_for(config.seed, "random basis")), x),
        "ica": lambda: ica(x, generator=generator_for(config.seed, "ica")),
    }
    return {BASELINES[name]: makers[name]() for name in config.baselines}


def compare(
    name: str,
    other: str,
    ours: Trace,
    theirs: Trace,
    weights: Float[Tensor, "resamples batch"],
    edit_sizes: Sequence[float],
) -> Comparison:
    """Two curves at equal numbers of features and at equal edit sizes, prompt by prompt."""
    shared = sorted(set(ours.counts) & set(theirs.counts))
    pairs = [(ours.counts.index(count), theirs.counts.index(count)) for count in shared]
    by_count = _paired(ours, theirs, pairs, weights)
    by_size = _paired(ours, theirs, [(_within(ours, s), _within(theirs, s)) for s in edit_sizes], weights)
    return Comparison(name, other, tuple(shared), *by_count, tuple(edit_sizes), *by_size)


def _paired(ours: Trace, theirs: Trace, pairs: Sequence[tuple[int, int]], weights: Tensor) -> tuple[tuple, tuple]:
    mine, others = (torch.tensor(rows, dtype=torch.long) for rows in zip(*pairs, strict=True))
    difference = ours.readout[mine, :, KL] - theirs.readout[others, :, KL]  # [pairs, batch]
    low, high = interval(weights @ difference.T).tolist()
    return tuple(difference.mean(1).tolist()), tuple(zip(low, high, strict=True))


def _within(found: Trace, size: float) -> int:
    """The point with the most features whose mean edit is no larger than `size`, but for rounding."""
    small = found.edit_size.mean(1) <= size * (1 + 1e-5)
    return int(small.nonzero().max()) if small.any() else 0


def _traced(
    selection: PatchExperiment, test: PatchExperiment, dictionary: Dictionary, selector: str, config: IOIConfig
) -> tuple[Selection, Trace]:
    """Features chosen on the selection prompts, and what they do on the test prompts."""
    chosen = SELECTORS[selector](selection, dictionary, config.selection, seed=config.seed)
    found = trace(test, dictionary, chosen.order, chosen.counts or default_counts(len(chosen.order)))
    if selector != "random":
        return chosen, found
    draws = [found]
    for draw in range(1, config.random_draws):
        order = SELECTORS[selector](selection, dictionary, config.selection, seed=config.seed + draw).order
        draws.append(trace(test, dictionary, order, found.counts))
    readout, size = (torch.stack([getattr(d, name) for d in draws]).mean(0) for name in ("readout", "edit_size"))
    return replace(chosen, order=()), Trace(found.counts, readout, size)


@torch.no_grad()
def _kl_of_best(experiment: PatchExperiment, dictionary: Dictionary, n: int = 16) -> float:
    best = experiment.first_order(dictionary).topk(min(n, len(dictionary.directions))).indices
    return trace(experiment, dictionary, best.tolist(), [len(best)]).readout[0, :, KL].mean().item()


def _named(given: Mapping) -> dict[str, Mapping[Site, Dictionary]]:
    """Sets by name; a single one is called `dictionary`."""
    if not given:
        raise UserError("IOI needs at least one set of dictionaries")
    return {"dictionary": given} if isinstance(next(iter(given)), Site) else dict(given)


def _candidates(sets: Mapping[str, Mapping[Site, Dictionary]], site: Site | None) -> list[Site]:
    """The sites to choose from: the one given, or all that every set has; raises `UserError` if there is none."""
    for name, own in sets.items():
        if site and site not in own:
            whose = "this set" if len(sets) == 1 else name
            raise UserError(f"no dictionary for {site}; {whose} has {', '.join(map(str, own))}")
    if site:
        return [site]
    shared = [s for s in next(iter(sets.values())) if all(s in own for own in sets.values())]
    usual = [s for s in shared if s.stream in (Stream.RESID_POST, Stream.MLP_OUT)]
    if not shared:
        raise UserError(f"{', '.join(sets)} have no site in common; give sets that have")
    return usual or shared


def _names(whose: str | Site, order: Sequence[int]) -> list[str]:
    return [str(FeatureId(whose, j)) if isinstance(whose, Site) else f"{whose} {j}" for j in order]


def _against(one: Comparison) -> str:
    ours, theirs = one.dictionary, one.baseline
    counts = ", ".join(_runs(one.counts, one.better)) or "no number of patched features"
    text = f"on the test prompts {ours} leaves less KL than {theirs} at {counts}"
    if one.crossing is not None:
        text += f"; from {one.crossing} on {theirs} is ahead"
    small, large = one.better_sizes, one.worse_sizes
    text += "; at equal edit size it is better at " + (", ".join(f"{s:.2f}" for s in small) or "none")
    return text + (f" and worse at {', '.join(f'{s:.2f}' for s in large)}" if large else "")


def _runs(counts: Sequence[int], chosen: Sequence[int]) -> list[str]:
    """Counts in words: neighbours among `counts` as a range."""
    found: list[list[int]] = []
    for before, count in zip((None, *counts), counts, strict=False):
        if count in chosen:
            if found and found[-1][-1] == before:
                found[-1].append(count)
            else:
                found.append([count])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found]


def _why(floor: Mapping[str, float], curve: Curve, one: Comparison) -> str:
    """What keeps the dictionary from the clean run, and whether that is why the baseline gets ahead."""
    left, elsewhere = floor["all_latents"], floor["all_latents_and_error"]
    error = left - elsewhere
    text = f"With every latent patched {one.dictionary} leaves {left:.3f} of {floor['nothing']:.3f} nats: "
    if elsewhere > 0.005 * floor["nothing"]:
        text += f"{elsewhere:.3f} that what was edited does not carry, for whatever method, and {error:.3f} of error, "
    text += "the change of its error term, which no latent carries; a complete basis has no error"
    there = next((p.kl for p in curve.points if p.n_features == one.crossing), None)
    if there is None:
        return text
    verdict = "there it is not the reason" if there - elsewhere > 2 * error else "that is the reason"
    return f"{text}. Where {one.baseline} gets ahead {one.dictionary} is at {there:.3f}: {verdict}"


def _plain(value: Any) -> Any:
    """`value` with None for numbers that JSON does not have."""
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, (list, tuple)) else value


def _to(dictionary, x: Tensor):
    return type(dictionary)(dictionary.directions.to(x), dictionary.mean.to(x))
