"""`sr.discover`, `subrank circuit`: the circuit of a feature, a logit or a task, discovered, scored and drawn."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from circuits.discovery.circuit import Circuit, circuit_of, circuit_steps, sufficient_features
from circuits.discovery.default_target import CLOSING_BRACKETS
from circuits.discovery.edges import EdgeConfig, SearchMode
from circuits.discovery.request import CauseAblation, CircuitRequest, Covered, ResolvedRequest, check_request, resolve
from circuits.discovery.steps_file import STEPS, remembered, steps_card
from circuits.discovery.target_causes import MIN_EXAMPLES, DiscoveryConfig, Reach, TargetCauses
from circuits.evaluation import CircuitEvaluation, evaluate_circuit, held_out_prompts
from circuits.features.atlas import FeatureAtlas, atlas_of
from circuits.features.labelling import Labeller
from circuits.features.predicates import next_predicate
from circuits.features.verification import Claim, verify
from circuits.graph import FeatureGraph
from circuits.quality_strip import quality_strip
from circuits.scoring.walks import WRITTEN
from sae_core.data.reading import as_chat
from sae_core.errors import UserError
from sae_core.files import read_text
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Progress, Stages, silent
from sae_core.sites import FeatureId
from subrank.checking.circuit import recomputed_edges, recomputed_score
from subrank.checking.recomputed import Recomputed, check_of
from subrank.experiments.circuit_example import example_of
from subrank.experiments.circuit_explorer import Explored
from subrank.experiments.circuit_result import CircuitResult
from subrank.experiments.cost import Scoring, announce, circuit_parts
from subrank.pages.explorer import Captions
from subrank.progress import shown
from subrank.result import Provenance
from subrank.saes import FeatureName, Saes, a_set
from subrank.settings.circuit import CircuitSettings
from subrank.settings.fields import make, takes
from subrank.settings.model_size import LARGE, fitted

NODES = 100
"""Features chosen of what blocks write."""
LIGHTER = {"contexts": 400, "held": 200, "null": 100, "cards": 100}
"""Defaults where members are chosen of what blocks write."""
COVER = 2
"""Layers covered by a circuit that is found by recursion, or of the residual."""
QUICK_TARGETS = 3
"""Targets searched under `--quick`."""
DRAWS, FEW_DRAWS = 3, 2
"""Draws of examples on which a circuit that is scored is discovered again; of a large model."""
RANDOM, FEW_RANDOM = 20, 8
"""Circuits of random latents that it is compared with; of a large model, or of what blocks write."""


@takes(CircuitSettings)
def discover(
    model: LanguageModel,
    saes: Saes,
    target: FeatureName | None = None,
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> CircuitResult:
    """The circuit behind a target: "5_452", "next: )", "logit: she - he" or "task: ioi"; by default one is chosen.

    From the target every active feature of the layer below is ablated on the target's examples, the causes with the
    largest effects are kept, and the same is done for each of them (Cunningham et al. 2023, automatic circuits).
    """
    name = None if target is None else str(target)
    chosen = make(CircuitSettings, settings)
    with shown("circuit", progress, on_progress) as report:
        return run_circuit(model, a_set(saes), name, chosen, report)


def run_circuit(
    model: LanguageModel,
    saes: Saes,
    target: str | None,
    settings: CircuitSettings,
    on_progress: OnProgress = silent,
    steps_folder: Path | None = None,
) -> CircuitResult:
    """`discover` with its settings made. An interrupted search goes on from the steps in `steps_folder`."""
    request, names = request_of(target, settings, saes), names_of(settings)
    model = saes.on(model)
    settings = lighter(fitted(settings, model.block_weights, on_progress), request, settings.by_default)
    if settings.chat:
        request = replace(request, prompts=tuple(as_chat(model, line, reply=True) for line in request.prompts))
    check_request(model, saes, request)  # before anything slow
    read = saes.read(model, settings.text)
    searched, held = read.apart(settings.contexts, settings.held)
    survey = saes.survey(model)
    if not request.n_nodes:  # how many sets of features pruning tries shows only at its end
        sizes = scoring_sizes(settings, request, model, survey.n_unread(searched) + survey.n_unread(held))
        parts = circuit_parts(model, saes.dictionaries, discovery_config(settings), sizes, saes.text.n_ctx)
        announce(model, {"": saes.dictionaries}, parts, on_progress, about="at most about")
    quality = saes.measured(model, read, settings.text, on_progress)
    stages = Stages(on_progress)
    stages.begin(f"looking at every feature on {len(searched)} contexts")
    atlas = atlas_of(survey, searched, top=max(64, 4 * settings.examples))
    resolved = resolve(model, saes, atlas, request, discovery_config(settings))
    for line in facts(resolved):
        stages.begin(line)
    circuit = found_circuit(resolved, on_progress, steps_folder)
    graph = named(labelled(resolved, circuit.graph, held), names)
    claims = claims_of(resolved, graph, held) if len(held) >= MIN_EXAMPLES else ()
    evaluation, notes = scored(resolved, replace(circuit, graph=graph), held, settings, on_progress)
    quality_lines = quality_strip(evaluation) if evaluation else notes
    captions = Captions(names=names, groups=groups_of(settings), quality=quality_lines)
    explored = Explored.of(resolved, graph, read, settings.cards, captions, on_progress) if settings.cards else None
    example = example_of(resolved, graph)
    known = asdict(settings) | {"target": target, "set": saes.folder}
    provenance = Provenance.of("circuit", model, known, dictionaries=saes.dictionaries, text=read.digest)

    def numbers() -> list[Recomputed]:
        edges = recomputed_edges(resolved, graph, settings.seed)
        if evaluation is None:
            return edges
        prompts = held_out_prompts(resolved, held_atlas(resolved, held))
        return edges + recomputed_score(resolved.search, prompts, held, evaluation.scores[0])

    check = check_of(model, settings.check, on_progress, numbers)
    return CircuitResult(graph, evaluation, quality, provenance, notes, claims, example, explored, check=check)


def request_of(target: str | None, settings: CircuitSettings, saes: Saes) -> CircuitRequest:
    """What is explained; on storybook, without a target, a feature that predicts closing brackets."""
    n_nodes, cover, stream = members_of(settings, target, saes)
    return CircuitRequest(
        target,
        CLOSING_BRACKETS if saes.model == "storybook" else (),
        tuple(lines_of(settings.prompts)) if settings.prompts else (),
        CauseAblation(settings.ablation),
        settings.spread,
        n_nodes,
        cover,
        stream,
        settings.seed,
    )


def members_of(settings: CircuitSettings, target: str | None, saes: Saes) -> tuple[int, int, Covered | None]:
    """Features chosen to suffice (0: recursion), layers covered, and of which sites: by default what blocks write."""
    sites, stream = saes.dictionaries, Covered(settings.stream) if settings.stream else None
    feature = re.fullmatch(r"\s*([a-z_]+\.)?\d+_\d+\s*", target or "")
    into = FeatureId.parse(feature[0].strip()).site if feature else max(sites)
    is_written = (stream or Covered.default(sites, into, is_pruned=True)) is Covered.WRITTEN
    n_nodes = settings.nodes
    if n_nodes is None:
        asked, has_all = stream is Covered.WRITTEN, set(WRITTEN) <= {site.stream for site in sites}
        recursion = {"max_targets", "depth", "follow_sinks", "exhaustive", "reach"} & settings.chosen
        if asked and recursion:
            flag = min(recursion).replace("_", "-")
            raise UserError(f"--stream written chooses features together, and --{flag} is of recursion; leave one out")
        n_nodes = NODES if asked or (is_written and has_all and not recursion) else 0
    if not (n_nodes and is_written):
        return n_nodes, settings.cover or COVER, stream
    return n_nodes, settings.cover or len({site.layer for site in sites}), Covered.WRITTEN


def lighter(settings: CircuitSettings, request: CircuitRequest, by_default: Collection[str]) -> CircuitSettings:
    """The settings with the defaults of a circuit of what blocks write, which has more nodes to measure."""
    if not is_written(request):
        return settings
    fewer = {name: min(n, getattr(settings, name)) for name, n in LIGHTER.items() if name in by_default}
    return replace(settings, **fewer)


def is_written(request: CircuitRequest) -> bool:
    """Whether members are chosen of what blocks write."""
    return bool(request.n_nodes) and request.stream is Covered.WRITTEN


def lines_of(path: Path) -> list[str]:
    """The lines of a file of prompts; raises `UserError` where it cannot be read, or has none."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--prompts {path} holds no prompts; give one prompt per line")
    return lines


def names_of(settings: CircuitSettings) -> dict[str, str]:
    """The names that people gave nodes in the explorer."""
    from subrank.pages.names import read_names

    return read_names(settings.names) if settings.names else {}


def groups_of(settings: CircuitSettings) -> dict[str, list[str]]:
    """The groups that people put nodes into in the explorer."""
    from subrank.pages.names import read_groups

    return read_groups(settings.names) if settings.names else {}


def discovery_config(settings: CircuitSettings) -> DiscoveryConfig:
    """How far the search goes, and how causes are found."""
    how = SearchMode.FIRST_ORDER if settings.screen_only else SearchMode.SCREENED
    how = SearchMode.EXHAUSTIVE if settings.exhaustive else how
    edges = EdgeConfig(settings.keep or None, settings.min_effect, how, settings.null, seed=settings.seed)
    limits = {"depth": settings.depth, "reach": Reach(settings.reach), "follow_sinks": settings.follow_sinks}
    config = DiscoveryConfig(edges, settings.examples, **limits)
    most = settings.max_targets or (QUICK_TARGETS if settings.quick else config.max_targets)
    return replace(config, max_targets=most)


def repetitions(settings: CircuitSettings, request: CircuitRequest, model: LanguageModel) -> dict[str, int]:
    """On how many draws a circuit is discovered again, and with how many random ones it is compared."""
    few = model.block_weights >= LARGE or is_written(request)
    usual = 0 if settings.quick or is_written(request) else FEW_DRAWS if few else DRAWS
    n_draws = usual if settings.draws is None else settings.draws
    return {"n_draws": n_draws, "n_random": FEW_RANDOM if few else RANDOM}


def scoring_sizes(settings: CircuitSettings, request: CircuitRequest, model: LanguageModel, n_read: int) -> Scoring:
    """What is made of the circuit, by number, where `n_read` contexts of the search are read now."""
    again = repetitions(settings, request, model) if settings.held else dict.fromkeys(("n_draws", "n_random"), 0)
    n_contexts = n_read + settings.cards + settings.cards // 4
    return Scoring(
        n_contexts, request.cover if settings.held else 0, again["n_draws"], again["n_random"], settings.cards > 0
    )


def facts(resolved: ResolvedRequest) -> Iterator[str]:
    """What a target that is read from the logits is on its prompts."""
    examples = resolved.examples
    if examples is not None:
        mean = float(examples.activation.mean())
        yield f"{resolved.target.node}: {mean:+.2f} on average over {len(examples)} prompts"


def found_circuit(resolved: ResolvedRequest, on_progress: OnProgress, steps_folder: Path | None) -> Circuit:
    """The circuit, step by step; each is written down where there is a folder to write it to."""
    sufficient = sufficient_features(resolved, on_progress)

    def search(done: Iterable[TargetCauses] = ()) -> Iterator[TargetCauses]:
        return circuit_steps(resolved, sufficient, done=done)

    if steps_folder is None:
        steps = search()
    else:
        steps = remembered(steps_folder / STEPS, steps_card(resolved, sufficient), search)
    taken, most = [], "" if sufficient else f" of at most {resolved.search.config.max_targets}"
    for step in steps:
        causes = ", ".join(f"{edge.cause} {edge.effect:+.2f}" for edge in step.edges)
        line = f"target {len(taken) + 1}{most}: {step.target} <- {causes or 'nothing strong'}"
        on_progress(Progress(line, len(taken), None))
        taken.append(step)
    return circuit_of(resolved, sufficient, taken)


def named(graph: FeatureGraph, names: Mapping[str, str]) -> FeatureGraph:
    """The graph with the names that people gave its nodes."""
    nodes = tuple(replace(node, name=names.get(str(node.id), node.name)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def labelled(resolved: ResolvedRequest, graph: FeatureGraph, held: Int[Tensor, "contexts pos"]) -> FeatureGraph:
    """The graph with labels, scored on contexts that were not searched; where there are few, on half of the others."""
    labeller = Labeller(resolved.atlas, held if len(held) >= MIN_EXAMPLES else None, seed=resolved.request.seed)
    return graph.labelled(labeller.labels(graph.features()))


def claims_of(resolved: ResolvedRequest, graph: FeatureGraph, held: Int[Tensor, "contexts pos"]) -> tuple[Claim, ...]:
    """What the features of a circuit say of the text, measured on contexts that were not searched."""
    target, beginning = graph.target, resolved.request.next_token
    claimed = {target: next_predicate(beginning)} if beginning and isinstance(target, FeatureId) else {}
    return tuple(verify(resolved.atlas.survey, graph.features(), held, claimed))


def scored(
    resolved: ResolvedRequest,
    circuit: Circuit,
    held: Int[Tensor, "contexts pos"],
    settings: CircuitSettings,
    on_progress: OnProgress,
) -> tuple[CircuitEvaluation | None, tuple[str, ...]]:
    """How good the circuit is on contexts or prompts that were not searched; None, and why, where nothing is."""
    if not settings.held:
        return None, ("not scored: --held 0",)
    if len(held) < MIN_EXAMPLES:
        return None, (f"not scored: only {len(held)} contexts were not searched; give more text or fewer --contexts",)
    numbers = repetitions(settings, resolved.request, resolved.search.model)
    atlas = held_atlas(resolved, held)
    try:
        return evaluate_circuit(resolved, circuit, atlas, **numbers, on_progress=on_progress), ()
    except UserError as error:
        return None, (f"not scored: {error}",)


def held_atlas(resolved: ResolvedRequest, held: Int[Tensor, "contexts pos"]) -> FeatureAtlas:
    """Statistics of all features on the contexts that were not searched; those that were read are not read again."""
    return atlas_of(resolved.atlas.survey, held, top=max(64, 2 * resolved.search.config.n_examples))
