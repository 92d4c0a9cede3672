"""`subrank demo`: the whole story on the bundled model, ending in one page."""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subrank.cli.arguments import model_of, writable
from subrank.cli.parsers import Verbs, settings_of
from subrank.cli.terminal import reporting, say
from subrank.cli.train import RUN, begin, go_on, run_in, train_into
from subrank.settings.circuit import CircuitSettings
from subrank.settings.demo import DemoSettings
from subrank.settings.experiments import FeatureSettings, IOISettings, RemoveSettings, SteerSettings
from subrank.settings.prompt import PromptSettings

if TYPE_CHECKING:
    from circuits.graph import FeatureGraph
    from editing.removal.config import RemovalConfig
    from sae_core.model.language_model import LanguageModel
    from sae_core.training.run import Run
    from subrank.result import Result
    from subrank.saes import Saes


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verbs.add("demo", run, DemoSettings, "./demo")


PROMPT = "print ( sqrt ( x"
"""What the model reads where features are shown on a prompt, and what it continues where they are clamped."""
CLAMPED = (0.0, 0.5, 1.0, 2.0)
"""Multiples of the largest activation of the text."""
CANDIDATES = 12
"""Features of the circuit, the target among them, of which the most effective is clamped."""
CARDS = 4
"""Of them, those with a card on the page of features."""
MINUTES = {
    "selection_prompts": 96,
    "fit_prompts": 48,
    "test_prompts": 160,
    "text_contexts": 32,
    "shortlist": 12,
    "max_features": 8,
    "random_draws": 1,
    "strengths": (0.5, 0.8, 1.0, 1.5, 2.0, 3.0),
}
"""Of the removal in a demo of a few minutes."""
QUICK = MINUTES | {
    "selection_prompts": 16,
    "fit_prompts": 8,
    "test_prompts": 16,
    "eraser_prompts": 128,
    "text_contexts": 8,
    "shortlist": 6,
    "max_features": 4,
    "strengths": (0.5, 1.0),
}


@dataclass(frozen=True)
class Plan:
    """How much of each experiment the demo runs: less than the verbs do, as it has minutes."""

    ioi: IOISettings
    circuit: CircuitSettings
    removal: "RemovalConfig"


def run(options: argparse.Namespace) -> int:
    """`subrank demo`: the whole story on the bundled model, ending in one page."""
    settings = settings_of(options, DemoSettings)
    out = writable(options.out or Path("demo"), options)
    writable(out / "dictionaries", options)  # `train` may be told to write there, too
    return run_demo(out, settings, plan_of(settings), model_of("storybook", options))


def plan_of(settings: DemoSettings) -> Plan:
    """The plan of a demo of a few minutes."""
    from editing.removal.config import RemovalConfig

    seed = settings.seed
    null, held, cards = (20, 40, 20) if settings.quick else (40, 100, 20)
    has_written = {"attn_out", "mlp_out"} <= {site.partition(".")[0] for site in settings.sites}
    circuit = CircuitSettings(
        contexts=settings.contexts,
        nodes=settings.nodes if has_written else None,
        null=null,
        held=held,
        draws=0,
        cards=cards,
        seed=seed,
        quick=settings.quick,
    )
    sizes: dict[str, Any] = QUICK if settings.quick else MINUTES
    if settings.prompts is not None and (not settings.quick or "prompts" in settings.chosen):
        few = {"test_prompts": settings.prompts, "selection_prompts": max(8, settings.prompts // 2)}
        sizes = QUICK | few if settings.quick else few
    patching = IOISettings(seed=seed, quick=settings.quick)
    if settings.prompts is not None:
        patching = replace(patching, prompts=settings.prompts)
    return Plan(patching, circuit, RemovalConfig(seed=seed, **sizes))


def run_demo(out: Path, settings: DemoSettings, plan: Plan, model: "LanguageModel") -> int:
    """Train, patch, discover, remove, show single features, and write the page; returns the exit status."""
    from circuits.quality_strip import quality_strip
    from sae_core.data.reading import bos_of
    from sae_core.data.text import Text
    from sae_core.sites import Stream
    from sae_core.storage import SET
    from sae_core.training.config import TrainConfig
    from sae_core.training.run import Run
    from subrank.experiments.circuit import run_circuit
    from subrank.experiments.ioi import run_ioi
    from subrank.experiments.removal import run_remove
    from subrank.pages.demo_cards import circuit_card, ioi_card, removal_card
    from subrank.pages.demo_page import demo_page
    from subrank.saes import by_name, load

    started, folder, seed = time.monotonic(), out / "dictionaries", settings.seed
    text = Text("storybook", 128, bos_of(model, None), max_tokens=settings.tokens)
    training = Run("storybook", text, settings.sites, (TrainConfig(tokens=settings.tokens, seed=seed),))
    say("1/5  dictionaries")
    resume = prepare_demo(folder, model, training)
    if (folder / SET).exists():
        say(f"the dictionaries in {folder} have these settings: kept")
    else:
        session = (go_on if resume else begin)(folder, model, training)
        train_into(folder, session, go_on_with="the same command")
    saes = load(folder)
    read = {site: dictionary for site, dictionary in saes.dictionaries.items() if site.stream is Stream.RESID_POST}
    residual = replace(saes, dictionaries=read, whole=saes) if read else saes
    say("2/5  IOI: patching features from one prompt into another")
    with reporting() as report:
        ioi = run_ioi(model, by_name(residual), plan.ioi, report)
    (out / "index.html").unlink(missing_ok=True)  # it shows what is replaced from here on
    ioi.save(out / "ioi", assets=out)
    say("3/5  a circuit")
    with reporting() as report:
        circuit = run_circuit(model, saes, None, plan.circuit, report, steps_folder=out / "circuit")
    circuit.save(out / "circuit", assets=out)
    say("4/5  removing pronouns")
    removing = RemoveSettings(seed=seed, quick=settings.quick)
    with reporting() as report:
        removal = run_remove(model, residual, "pronouns", removing, plan.removal, report)
    removal.save(out / "remove", assets=out)
    say("5/5  single features: on a prompt, clamped, and their cards")
    singles = single_features(model, saes, circuit.graph, settings)
    for result in singles:
        result.save(out / result.verb, assets=out)
    minutes = (time.monotonic() - started) / 60
    for result in (ioi, circuit, removal, *singles):
        for line in result.lines():
            say(f"  {line}")
    about = [circuit.lines()[0], *(claim.line() for claim in circuit.claims if claim.feature == circuit.target)]
    about += quality_strip(circuit.evaluation) if circuit.evaluation else circuit.notes
    cards = [ioi_card(ioi.results), circuit_card(out / "circuit", circuit.graph, about), removal_card(removal.result)]
    demo_page(out / "index.html", cards, circuit.quality, minutes)
    say(f"done in {minutes:.1f} minutes; open {out / 'index.html'}")
    return 0


def single_features(
    model: "LanguageModel", saes: "Saes", graph: "FeatureGraph", settings: DemoSettings
) -> "list[Result]":
    """Features of the circuit: on a prompt, the most effective of them clamped while it is continued, and cards."""
    from circuits.influence import by_influence
    from editing.steering.choosing import most_effective
    from editing.steering.edits import Mode
    from subrank.experiments.features import run_features
    from subrank.experiments.prompt import run_prompt
    from subrank.experiments.steering import run_steer

    seed, quick, members = settings.seed, settings.quick, by_influence(graph)[:CANDIDATES]
    with reporting() as report:
        prompt = run_prompt(model, saes, PROMPT, graph, PromptSettings(seed=seed, quick=quick), report)
    clamping = SteerSettings(mode="clamp", strengths=CLAMPED, prompt=(PROMPT,), seed=seed, quick=quick)
    with reporting() as report:
        contexts = saes.read(model).training
        clamped = most_effective(model, saes.dictionaries, members, contexts, Mode.CLAMP, report)
        steered = run_steer(model, saes, [clamped], clamping, report)
    with reporting() as report:
        reading = FeatureSettings(contexts=settings.contexts, seed=seed, quick=quick)
        cards = run_features(model, saes, members[:CARDS], reading, report)
    return [prompt, steered, cards]


def prepare_demo(folder: Path, model: "LanguageModel", run: "Run") -> bool:
    """Whether to resume; raises `UserError` where the folder holds anything else than this demo's dictionaries."""
    from sae_core.errors import UserError
    from sae_core.model.fingerprint import parts_other_than
    from sae_core.storage import SET, load_set
    from sae_core.training.checkpoint import has_checkpoint, read_checkpoint
    from subrank.sites import sites_of

    try:
        if (folder / SET).exists():
            there = load_set(folder)
            wanted = (run.text.max_tokens, run.members[0], set(sites_of(model, run.sites)))
            same = (there.text.max_tokens, there.training, set(there.dictionaries)) == wanted
            same = same and there.text.shares(run.text) and not parts_other_than(there.fingerprint, model)
            resume = False
        else:
            begun = run_in(folder / RUN)
            same = resume = begun == run and not parts_other_than(read_checkpoint(folder).fingerprint, model)
    except UserError:
        same = resume = False
    if not same and ((folder / SET).exists() or has_checkpoint(folder)):
        raise UserError(f"{folder} holds dictionaries of other settings; give another --out, or remove them")
    return resume
