"""What each verb costs, counted before it begins, and said: how long that takes here, and what it is made of.

Symbols: L blocks of the model, T tokens of a context, S sites, l the block of a site. Of what depends on what is found
(prompts on which nothing changes, patterns of a feature) the mean of what was counted on storybook and on a model of
135M weights is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from jaxtyping import Int
from torch import Tensor

from circuits.discovery.edges import AUDIT, LISTED, SearchMode
from circuits.discovery.target_causes import DiscoveryConfig, Reach
from circuits.effects.screens import IG_STEPS
from editing.ioi.config import IOIConfig
from editing.ioi.curve import curve_counts
from editing.ioi.feature_selection import Selector
from editing.removal.config import RemovalConfig
from editing.set_quality import N_SPLICED
from editing.steering.held_out import PLACES
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.model.speed import Work, measured_speed
from sae_core.progress import OnProgress, Progress, duration
from sae_core.sites import Site, Stream

Sets = Mapping[str, Mapping[Site, Dictionary]]
Parts = Mapping[str, Work]
"""Work by what it is, in words."""
IOI_TOKENS = 20
"""Tokens of a prompt, about."""
PROMPT_TOKENS = 12
"""Tokens of a prompt of two classes, about."""
RUN_AGAIN = 0.4
"""Of the tokens of all prompts at all points of a curve those that are run: where a feature differs, and behind it."""
SHARED = 0.7
"""Different features among the causes of all targets of a circuit, as targets share causes: 25 of 45 on a model of
135M weights, and a little more than that."""
PATTERN_TOKENS, DROP_CONTEXTS = 15_000, 16
"""Tokens run to find a feature's patterns, and contexts in which it is ablated for a full card, of a large model:
25,000 were counted before its places were halved. Of a small one there are more, which take little time."""


def announce(model: LanguageModel, sets: Sets, parts: Parts, on_progress: OnProgress, *, about: str = "about") -> None:
    """Say how long the parts take together, by a second's measurement, and what they are."""
    dictionaries = chain.from_iterable(by_site.values() for by_site in sets.values())
    speed = measured_speed(model, dictionaries)
    seconds = sum(speed.seconds(work) for work in parts.values())
    on_progress(Progress(f"{about} {duration(seconds)}: {'; '.join(parts)}", 0, None))


def again(model: LanguageModel, is_wanted: bool, tokens: int) -> Parts:
    """A sample of the numbers computed again (`--check`): about so many tokens from beginning to end."""
    return {"a sample of it computed again": Work(tokens * model.n_layers, tokens)} if is_wanted else {}


def pass_over(model: LanguageModel, contexts: int, length: int, sites: Sequence[Site] = ()) -> Work:
    """Contexts read to the highest of `sites`, which encode them; without sites to the end."""
    top = max((site.layer + 1 for site in sites), default=model.n_layers)
    return Work(blocks=contexts * length * top, codes=contexts * length * len(sites))


def quality_parts(model: LanguageModel, sites: Sequence[Site], contexts: int, length: int) -> Parts:
    """`measure_set`: N T max(l + 1) blocks; then those of n spliced contexts, and n T (1 + 2 S) logits."""
    tokens = min(contexts, N_SPLICED) * length
    blocks = _spliced_blocks(model, dict.fromkeys(sites, 2), tokens)
    spliced = Work(blocks, tokens * (1 + 2 * len(sites)), tokens * len(sites))
    read = pass_over(model, contexts, length, sites)
    return {f"{len(sites)} dictionaries measured on {contexts} contexts": read + spliced}


def _spliced_blocks(model: LanguageModel, edits: Mapping[Site, int], tokens: int) -> int:
    """T (L + sum (edits of a site)(L - l - 1)): read once, and behind the block of a residual, or from another's on."""
    behind = {site: model.n_layers - site.layer - (site.stream is Stream.RESID_POST) for site in edits}
    return tokens * (model.n_layers + sum(n * behind[site] for site, n in edits.items()))


def evaluate_parts(model: LanguageModel, sets: Sets, contexts: int, spliced: int, length: int) -> Parts:
    """N T max(l + 1) blocks, N T S codes; then a splice of every dictionary and two ablations of every site, and their
    logits beside the unedited ones."""
    sites, tokens = list(chain.from_iterable(sets.values())), spliced * length
    edits = {site: sites.count(site) + 2 for site in sites}
    work = Work(_spliced_blocks(model, edits, tokens), tokens * sum(1 + n for n in edits.values()), tokens * len(sites))
    return {
        f"{len(sites)} dictionaries on {contexts} contexts": pass_over(model, contexts, length, sites),
        f"each spliced into {spliced} of them": work,
    }


def ioi_parts(
    model: LanguageModel,
    sets: Sets,
    config: IOIConfig,
    contexts: Int[Tensor, "contexts pos"],
    experiments: Sequence[Sequence[Site]],
) -> Parts:
    """Baselines: N T (l + 1), labels N T L. Curves: points x prompts x tokens x (L - l), of which `RUN_AGAIN` are run.

    `experiments` are the sites from which each may choose. Beside its curves it runs every prompt twice, and
    forward and back behind each site.
    """
    n, length = contexts.shape
    points = _points(model, sets, config)
    rows = points * config.test_prompts + len(sets) * config.selection_prompts * _searched(config)
    fit, patch = Work(), Work()
    for sites in experiments:
        above = sum(model.n_layers - 1 - site.layer for site in sites) / len(sites)
        prompts = config.test_prompts + config.selection_prompts * len(sites)
        runs = IOI_TOKENS * prompts * (2 * model.n_layers + 3 * above)
        patch += Work(runs + RUN_AGAIN * IOI_TOKENS * rows * above, RUN_AGAIN * rows + prompts)
        fit += pass_over(model, n, length, sites) * bool(config.baselines)
    times = f"{len(experiments)} experiments of {config.test_prompts} prompts x {points} sets of features"
    return {f"baselines and labels on {n} contexts": fit + pass_over(model, n, length), times: patch}


def _points(model: LanguageModel, sets: Sets, config: IOIConfig) -> int:
    """Points of all curves: of each dictionary one per selector and one for each pair, of each baseline two."""
    draws = {Selector.RANDOM: config.random_draws}
    curves = 1 + sum(draws.get(Selector(each), 1) for each in config.selectors)
    widths = [max(len(d.directions) for d in by_site.values()) for by_site in sets.values()]
    of_baselines = 2 * len(config.baselines) * len(curve_counts(model.d_model))
    return curves * sum(len(curve_counts(width)) for width in widths) + of_baselines


def _searched(config: IOIConfig) -> int:
    """Sets that are run on selection prompts by greedy search, and by pruning: about 300 a threshold."""
    searches = {
        Selector.GREEDY: config.selection.n_greedy * config.selection.shortlist,
        Selector.THRESHOLD: 300 * config.selection.n_thresholds,
    }
    return sum(searches.get(Selector(each), 0) for each in config.selectors)


def feature_parts(
    model: LanguageModel, sites: Mapping[Site, Dictionary], contexts: int, n_full: int, length: int
) -> Parts:
    """N T max(l + 1) blocks and N T S codes for all cards; per full card its patterns, (l + 1) a token, and
    some contexts run to the end as they are, and from l on ablated.

    `contexts` are those of the training and of the held-out text that no verb has read.
    """
    layers, n_latents = [site.layer for site in sites], sum(len(d.directions) for d in sites.values())
    mean, drops = sum(layers) / len(layers), DROP_CONTEXTS * length
    card = Work(PATTERN_TOKENS * (mean + 1) + drops * (2 * model.n_layers - mean), 2 * 256, PATTERN_TOKENS / 16)
    read = pass_over(model, contexts, length, list(sites)) + Work(logits=n_latents)
    return {f"all features on {contexts} contexts not read so far": read, f"{n_full} full cards": card * n_full}


@dataclass(frozen=True)
class Scoring:
    """How much of a circuit is read, scored and shown."""

    contexts: int
    """Read for all of it, and not read before."""
    cover: int
    draws: int
    n_random: int
    has_cards: bool


def circuit_parts(
    model: LanguageModel, sites: Mapping[Site, Dictionary], config: DiscoveryConfig, sizes: Scoring, length: int
) -> Parts:
    """At most, where every target is searched and keeps all that it may; with E examples, contexts of T tokens:

    N T max(l + 1) blocks; per target and site g blocks below the ablations (`_search`); draws repeat them without
    random directions; circuits, the random ones and those without one member, at 2 E prompts, from the lowest of the
    covered sites on, under two ablations with errors kept and ablated; a full card per member.
    """
    layers = sorted({site.layer for site in sites})
    gaps = [max(1, b - a) for a, b in pairwise(layers)] or [1]
    searched = [max(1, layers[-1] - layer) for layer in layers] if config.reach is Reach.ALL else [max(gaps)]
    n_latents = max(len(d.directions) for d in sites.values())
    members = round(SHARED * config.max_targets * (config.edges.keep or n_latents))
    search, again = Work(), Work()
    for gap in searched:
        search += _search(config, gap, n_latents, length, config.edges.n_null) * config.max_targets
        again += _search(config, gap, n_latents, length, 0) * config.max_targets * sizes.draws
    circuits = 4 * (sizes.n_random + min(members, sizes.cover * n_latents))
    scored = Work(RUN_AGAIN * circuits * 2 * config.n_examples * length * sizes.cover * max(gaps))
    n_cards = members * sizes.has_cards
    _, cards = feature_parts(model, sites, 0, n_cards, length).values()
    parts = {f"{sizes.contexts} contexts read": pass_over(model, sizes.contexts, length, list(sites))}
    parts[f"the causes of {config.max_targets} targets"] = search
    parts[f"scored, and discovered again on {sizes.draws} draws"] = scored + again
    return parts | {f"about {n_cards} full cards": cards}


def _search(config: DiscoveryConfig, gap: int, n_latents: int, length: int, n_null: int) -> Work:
    """Causes of one target: E (n_latents + keep n_null) tokens at one position through one block; further away those
    that are listed or audited, E T / 2 tokens through all blocks between, and forward and back for the list."""
    screen = 3 * IG_STEPS * config.n_examples * length * gap
    if config.edges.search is SearchMode.FIRST_ORDER:
        return Work(screen / IG_STEPS)
    keep = config.edges.keep or LISTED
    if gap == 1:
        return Work(config.n_examples * (n_latents + keep * n_null))
    if config.edges.search is SearchMode.EXHAUSTIVE:
        return Work(config.n_examples * n_latents * length / 2 * gap)
    return Work(screen + config.n_examples * (max(LISTED, 7 * keep) + AUDIT) * length / 2 * gap)


@dataclass(frozen=True)
class Doses:
    """How much of steering is written and measured."""

    strengths: int
    tokens: int
    """Of each text."""
    contexts: int
    prompts: int


def steer_parts(model: LanguageModel, layer: int, n_read: int, sizes: Doses, length: int) -> Parts:
    """Reading: N T L. Texts: (strengths + 1) x tokens steps. Doses: n T blocks behind l for each of 5 strengths + 2.

    `n_read` contexts are read to the end; each strength is measured for the features, three random directions and
    the difference of means, at 2 x 16 places.
    """
    edits, several = 5 * sizes.strengths + 2, sizes.strengths + 1
    doses = sizes.contexts * length * (model.n_layers + edits * (model.n_layers - layer))
    return {
        f"{n_read} contexts read": Work(n_read * length * model.n_layers, codes=n_read * length),
        f"{sizes.prompts} texts x {several} x {sizes.tokens} tokens": Work(steps=several * sizes.tokens),
        f"{sizes.strengths} strengths and controls on {sizes.contexts} contexts": Work(
            doses, 4 * sizes.contexts * PLACES * edits
        ),
    }


def removal_parts(
    model: LanguageModel, config: RemovalConfig, sites: Sequence[Site], n_fitting: int, length: int
) -> Parts:
    """Per site with A = L - 1 - l blocks above, n prompts of p tokens and half a text of c T tokens:

    features: (features + 5 sizes) fits forward and back, twice; the shortlist on the text, twice; each size tried at
    10 strengths. Erasers: 9 tried at 10 strengths. Curves: 4 methods at every strength, on test prompts and text, and 3
    variants at one site. All layers at once: the same with L in place of A.
    """
    half = config.text_contexts // 2 * length
    sizes = max(1, config.max_features.bit_length())
    fits = 3 * config.fit_prompts * (config.max_features + 5 * sizes + 2 * 5)
    tried = 10 * config.selection_prompts * (RUN_AGAIN * 2 * sizes + 9)
    several = sum(site.stream is Stream.RESID_POST for site in sites) > 1
    # three variants of the features and the random draws are at one site only
    evaluations = (4 + 3 / (len(sites) + several)) * (1 + len(config.strengths)) + 2
    curves, texts = evaluations * PROMPT_TOKENS * config.test_prompts, evaluations + 9 + 2 * sizes
    choose, measure = Work(), Work()
    listed = 2 * config.shortlist * half
    for depth in [model.n_layers - 1 - site.layer for site in sites] + [model.n_layers] * several:
        choose += Work((PROMPT_TOKENS * (fits + tried) + listed) * depth, listed)
        choose += Work(2 * min(n_fitting, config.eraser_prompts) * PROMPT_TOKENS * (model.n_layers - depth))
        measure += Work((curves + texts * half) * depth, 2 * texts * half)
    return {
        f"features and erasers chosen at {len(sites)} sites": choose,
        f"curves on {config.test_prompts} prompts and {config.text_contexts // 2} contexts": measure,
    }
