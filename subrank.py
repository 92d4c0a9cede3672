"""The command `subrank`: reads the command line, calls the library, shows progress, saves results.

Nothing is imported before it is needed, so that `subrank --help` answers at once. A user's mistake ends
with one line and exit status 2; results appear whole or not at all.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from circuits.graph import FeatureGraph
    from circuits.page import Measured
    from editing.ioi import IOIResult
    from editing.removal import RemovalResult
    from sae_core.models import LanguageModel
    from sae_core.storage import DictionarySet
    from sae_core.text import Text
    from sae_core.training import TrainConfig

__version__ = "0.1.0"


# ---- the command line ------------------------------------------------------------------------------


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their options."""
    story = "Find a language model's features, edit them one at a time, draw the circuits they form."
    parser = argparse.ArgumentParser(prog="subrank", description=story)
    parser.add_argument("--version", action="version", version=f"subrank {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, out: str
    ) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text, formatter_class=_Help)
        one.set_defaults(run=run)
        one.add_argument("--out", type=Path, default=None, help=f"folder for the results (default: {out})")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--device", default=None, help="torch device; CUDA where there is one")
        return one

    def on_set(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        one = verb(name, run, text, f"DIR/{name}")
        one.add_argument("dir", metavar="DIR", type=Path, help="folder that `subrank train` wrote")
        one.add_argument("--model", default=None, help="where the model is now, if not where it was")
        one.add_argument("--text", default=None, help="another text than the one trained on")
        return one

    demo = verb("demo", run_demo, "the whole story on the bundled model, ending in one page", "./demo")
    demo.add_argument("--tokens", type=int, default=500_000, help="tokens to train the dictionaries on")
    demo.add_argument("--prompts", type=int, default=None, help="test prompts per experiment, if not each one's own")
    demo.add_argument("--contexts", type=int, default=1000, help="contexts searched for examples of features")
    demo.add_argument("--max-targets", type=int, default=15, help="features asked for their causes")

    train = verb("train", run_train, "train dictionaries for chosen sites in one pass over the text", "./dictionaries")
    train.add_argument("model", metavar="MODEL", help="'storybook', a directory in Hugging Face layout, or a hub name")
    train.add_argument("--text", default="storybook", help="'storybook', a .txt or .jsonl file, or a dataset name")
    train.add_argument(
        "--sites", nargs="+", default=["resid_post"], help="streams (all layers) or sites, e.g. mlp_out.3"
    )
    train.add_argument("--expansion", type=int, default=4, help="latents per dimension")
    train.add_argument("-k", type=int, default=16, help="latents active per token")
    train.add_argument("--tokens", type=int, default=2_000_000, help="tokens to train on")
    train.add_argument("--batch", type=int, default=1024, help="tokens per step")
    train.add_argument("--lr", type=float, default=None, help="learning rate; 2e-4 sqrt(2^14 / latents) by default")
    train.add_argument("--context", type=int, default=None, help="tokens per context; the model's, at most 128")
    train.add_argument("--prepend-bos", action=argparse.BooleanOptionalAction, default=True)
    train.add_argument("--save-every", type=float, default=60.0, metavar="SECONDS", help="between checkpoints")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")

    ioi = on_set("ioi", run_ioi_verb, "IOI patching: how many features carry the indirect object")
    ioi.add_argument("--site", default=None, help="where to patch; by default chosen on selection prompts")
    ioi.add_argument("--corruption", choices=("both", "io", "swap"), default="both")
    ioi.add_argument("--prompts", type=int, default=96, help="test prompts; a third as many for the selection")

    circuit = on_set("circuit", run_circuit_verb, "discover the circuit of a feature and draw it")
    circuit.add_argument("--target", default=None, help="e.g. 5_2079 or mlp_out.5_2079; by default chosen")
    circuit.add_argument("--keep", type=int, default=3, help="causes kept per feature")
    circuit.add_argument("--examples", type=int, default=16, help="activating examples per feature")
    circuit.add_argument("--max-targets", type=int, default=15, help="features asked for their causes")
    circuit.add_argument("--contexts", type=int, default=1000, help="contexts searched for examples")

    remove = on_set("remove", run_remove_verb, "remove a capability and measure what else changed")
    remove.add_argument("--task", choices=("pronouns",), default="pronouns")
    remove.add_argument("--site", default=None, help="where to edit; by default chosen on selection prompts")
    remove.add_argument("--prompts", type=int, default=256, help="test prompts; half as many to choose the edit")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    from sae_core.errors import UserError

    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"subrank: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        print("subrank: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"subrank: {error.filename or ''}: {error.strerror or error}".replace(": :", ":"), file=sys.stderr)
    return 2


# ---- verbs -----------------------------------------------------------------------------------------


def run_train(options: argparse.Namespace) -> int:
    """`subrank train`."""
    from sae_core.errors import UserError
    from sae_core.storage import CHECKPOINT, SET, read_checkpoint
    from sae_core.text import Text
    from sae_core.training import TrainConfig

    out = writable(options.out or Path("dictionaries"))
    if options.resume:
        card = read_checkpoint(out)
        model = model_of(options.model, options.device)
        if card["fingerprint"] != model.fingerprint():
            raise UserError(f"the checkpoint in {out} is of another model ({card['model']}) than {options.model}")
        text, config, sites = Text(**card["text"]), TrainConfig(**card["training"]), [*card["scales"]]
        say(f"resuming after step {card['step']} of {config.steps}, with the settings of the checkpoint")
    else:
        if (out / SET).exists() or (out / CHECKPOINT).exists():
            raise UserError(f"{out} holds dictionaries already; give another --out, or --resume to finish them")
        config = TrainConfig(options.expansion, options.k, options.tokens, options.batch, options.lr, seed=options.seed)
        model = model_of(options.model, options.device)
        n_ctx = min(128, model.n_ctx) if options.context is None else options.context
        text, sites = Text(options.text, n_ctx, options.prepend_bos, max_tokens=options.tokens), options.sites
    found = train_into(out, model, text, config, sites, resume=options.resume, save_every=options.save_every)
    if found is None:
        say(f"stopped; go on with: subrank train {options.model} --out {out} --resume")
        return 130
    say(f"dictionaries: {out}")
    return 0


def run_ioi_verb(options: argparse.Namespace) -> None:
    """`subrank ioi`."""
    from editing.tasks.ioi import Corruption

    out, model, dictionaries, contexts, measured = open_set(options)
    config = ioi_config(options, dictionaries)
    kinds = list(Corruption) if options.corruption == "both" else [Corruption(options.corruption)]
    ioi_into(
        out, model, dictionaries, contexts, measured, kinds, config, site=site_of(options.site), argv=vars(options)
    )
    say(f"results: {out}")


def run_circuit_verb(options: argparse.Namespace) -> None:
    """`subrank circuit`."""
    from circuits.discovery import DiscoveryConfig, check_target
    from sae_core.sites import FeatureId

    target = FeatureId.parse(options.target) if options.target else None
    at_least("--keep", options.keep, 1)
    at_least("--examples", options.examples, 16)
    at_least("--max-targets", options.max_targets, 1)
    at_least("--contexts", options.contexts, 16)
    out, model, dictionaries, contexts, measured = open_set(options)
    if target:
        check_target(dictionaries.dictionaries, target)
    config = DiscoveryConfig(options.keep, options.examples, options.max_targets)
    contexts = contexts[: options.contexts]
    circuit_into(out, model, dictionaries, contexts, measured, target, config, argv=vars(options))
    say(f"results: {out}")


def run_remove_verb(options: argparse.Namespace) -> None:
    """`subrank remove`."""
    out, model, dictionaries, contexts, measured = open_set(options)
    config = removal_config(options, dictionaries)
    removal_into(out, model, dictionaries, contexts, measured, config, site=site_of(options.site), argv=vars(options))
    say(f"results: {out}")


def run_demo(options: argparse.Namespace) -> int:
    """`subrank demo`."""
    from circuits.discovery import DiscoveryConfig
    from circuits.page import circuit_section, demo_page, dictionaries_section, ioi_section, removal_section
    from editing.tasks.ioi import Corruption
    from sae_core.storage import SET
    from sae_core.text import Text
    from sae_core.training import TrainConfig

    started, out = time.time(), writable(options.out or Path("demo"))
    folder, argv = out / "dictionaries", vars(options)
    model = model_of("storybook", options.device)
    text = Text("storybook", 128, True, max_tokens=options.tokens)
    config = TrainConfig(tokens=options.tokens, seed=options.seed)
    say("1/4  a dictionary for every layer")
    resume = prepare_demo(folder, model, text, config)
    if (folder / SET).exists():
        say(f"the dictionaries in {folder} are the ones asked for: kept")
    elif train_into(folder, model, text, config, ["resid_post"], resume=resume) is None:
        say("stopped; the same command goes on from here")
        return 130
    dictionaries, contexts, measured = loaded(folder, model, None)
    say("2/4  IOI: patching features from one prompt into another")
    config = ioi_config(options, dictionaries)
    settings = {"argv": argv, "assets": out}
    ioi = ioi_into(out / "ioi", model, dictionaries, contexts, measured, list(Corruption), config, **settings)
    say("3/4  a circuit")
    searched, config = contexts[: options.contexts], DiscoveryConfig(max_targets=options.max_targets)
    graph, svg = circuit_into(out / "circuit", model, dictionaries, searched, measured, None, config, **settings)
    say("4/4  removing pronouns")
    config = removal_config(options, dictionaries)
    removal = removal_into(out / "remove", model, dictionaries, contexts, measured, config, **settings)
    minutes = (time.time() - started) / 60
    demo_page(
        out / "index.html",
        [dictionaries_section(measured), ioi_section(ioi), circuit_section(graph, svg), removal_section(removal)],
        minutes,
    )
    say(f"done in {minutes:.1f} minutes; open {out / 'index.html'}")
    return 0


# ---- what verbs and the demo share -----------------------------------------------------------------


def ioi_config(options: argparse.Namespace, dictionaries: "DictionarySet"):
    """How much of IOI to run."""
    from editing.ioi import IOIConfig

    config = IOIConfig(seed=options.seed, prepend_bos=dictionaries.text.prepend_bos)
    if options.prompts is None:
        return config
    at_least("--prompts", options.prompts, 2)
    return replace(config, test_prompts=options.prompts, selection_prompts=max(4, options.prompts // 3))


def removal_config(options: argparse.Namespace, dictionaries: "DictionarySet"):
    """How much of the removal to run."""
    from editing.removal import RemovalConfig

    config = RemovalConfig(seed=options.seed, prepend_bos=dictionaries.text.prepend_bos)
    if options.prompts is None:
        return config
    at_least("--prompts", options.prompts, 8)
    return replace(config, test_prompts=options.prompts, selection_prompts=max(8, options.prompts // 2))


def at_least(name: str, value: int, least: int) -> None:
    """Raise `UserError` for an option that is too small."""
    from sae_core.errors import UserError

    if value < least:
        raise UserError(f"{name} must be at least {least}; got {value}")


def train_into(
    out: Path,
    model: "LanguageModel",
    text: "Text",
    config: "TrainConfig",
    places: Iterable[str],
    *,
    resume: bool = False,
    save_every: float = 60.0,
) -> "DictionarySet | None":
    """Train, save and measure a set; None if the user stopped it, a checkpoint being left."""
    import shutil

    from sae_core.activations import ActivationStream
    from sae_core.storage import (
        CHECKPOINT,
        QUALITY,
        DictionarySet,
        load_checkpoint,
        save_checkpoint,
        save_set,
        write_json,
    )
    from sae_core.text import held_out
    from sae_core.training import start, train

    sites = sites_of(model, places)
    say(f"reading {text.source}")
    training, measuring = held_out(text.contexts(model))
    stream = ActivationStream(model, training, sites, config.seed, config.batch)
    n_read = training.numel()
    say(
        f"{len(training)} contexts of {text.n_ctx} tokens, {config.tokens / n_read:.2g} epochs; "
        f"{len(sites)} sites, {config.steps} steps"
    )
    state = load_checkpoint(out, device=model.device) if resume else start(stream, config)
    saved = time.monotonic()
    with interruptible() as stopped:
        for step in progress(train(stream, state, config), config.steps, state.step):
            if stopped() or time.monotonic() - saved > save_every:
                save_checkpoint(state, text, model, config, out)
                saved = time.monotonic()
            if stopped() and step.step < config.steps:
                return None
    found = DictionarySet(model.name, model.fingerprint(), text, config, state.dictionaries())
    save_set(found, out)
    say("measuring on held-out text")
    measured = measure(model, found, measuring)
    write_json(out / QUALITY, measured.to_json())
    for name, row in measured.to_json().items():
        rest = f"dead {row['dead']:.1%}, loss recovered {row['loss_recovered']:.3f}"
        say(f"  {name}: FVU {row['fvu']:.3f}, L0 {row['l0']:.1f}, {rest}")
    save_result(out, {"dictionaries": measured.to_json()}, model, {"text": asdict(text), "training": asdict(config)})
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    return found


def ioi_into(
    out: Path, model, dictionaries, contexts, measured, kinds, config, *, site=None, argv, assets=None
) -> "list[IOIResult]":
    """Run IOI and write `result.json` and `ioi.html`."""
    from circuits.page import dictionaries_section, ioi_section, write_page
    from editing.ioi import run_ioi
    from sae_core.text import held_out

    fitted = held_out(contexts)[0][:256]  # PCA sees what the dictionaries saw
    results = [last_of(run_ioi(model, dictionaries.dictionaries, fitted, kind, config, site=site)) for kind in kinds]
    numbers = {
        "own_score": {r.corruption: asdict(r.own) for r in results},
        "dictionaries": measured.to_json(),
        "ioi": [asdict(r) for r in results],
    }
    save_result(out, numbers, model, argv)
    write_page(out / "ioi.html", "IOI patching", ioi_section(results) + dictionaries_section(measured), assets=assets)
    return results


def circuit_into(
    out: Path, model, dictionaries, contexts, measured, target, config, *, argv, assets=None
) -> "tuple[FeatureGraph, str | None]":
    """Discover a circuit; write `result.json`, `circuit.json`, the drawings and `circuit.html`."""
    from circuits.discovery import assemble, discover
    from circuits.drawing import draw
    from circuits.features import default_target, survey
    from circuits.page import circuit_section, dictionaries_section, write_page
    from sae_core.storage import write_json

    say(f"looking at every feature on {len(contexts)} contexts")
    atlas = survey(model, dictionaries.dictionaries, contexts, top=max(64, 2 * config.n_examples))
    target = target or default_target(
        model, dictionaries.dictionaries, atlas, storybook=dictionaries.model == "storybook"
    )
    asked = []
    for step in discover(model, dictionaries.dictionaries, atlas, target, config):
        asked.append(step)
        say(f"  {step.target} <- " + (", ".join(f"{e.cause} {e.effect:+.2f}" for e in step.edges) or "nothing strong"))
    graph = assemble(model, dictionaries.dictionaries, atlas, target, asked)
    save_result(out, {"dictionaries": measured.to_json(), "circuit": graph.to_json()}, model, argv)
    write_json(out / "circuit.json", graph.to_json())
    for made in draw(graph, out):
        if isinstance(made, str):
            say(made)
    svg = (out / "circuit.svg").read_text(encoding="utf-8") if (out / "circuit.svg").is_file() else None
    body = circuit_section(graph, svg) + dictionaries_section(measured)
    write_page(out / "circuit.html", f"The circuit of {target}", body, assets=assets)
    return graph, svg


def removal_into(
    out: Path, model, dictionaries, contexts, measured, config, *, site=None, argv, assets=None
) -> "RemovalResult":
    """Remove pronoun prediction; write `result.json` and `remove.html`."""
    from circuits.page import dictionaries_section, removal_section, write_page
    from editing.removal import remove_pronouns
    from sae_core.text import held_out

    result = last_of(remove_pronouns(model, dictionaries.dictionaries, held_out(contexts)[1], config, site=site))
    numbers = {"own_score": asdict(result.own), "dictionaries": measured.to_json(), "removal": asdict(result)}
    numbers["removal"]["sentence"] = result.sentence()
    save_result(out, numbers, model, argv)
    body = removal_section(result) + dictionaries_section(measured)
    write_page(out / "remove.html", "Removing pronoun prediction", body, assets=assets)
    say(result.sentence())
    return result


def measure(model: "LanguageModel", dictionaries: "DictionarySet", contexts: "torch.Tensor") -> "Measured":
    """Quality and splice cost of every dictionary on at most 64 contexts."""
    from circuits.page import Measured
    from editing.splice import splice_costs
    from sae_core.measures import quality

    own, few = dictionaries.dictionaries, contexts[:64]
    return Measured(quality(model, own, contexts), splice_costs(model, own, few))


def open_set(options: argparse.Namespace):
    """Output folder, model, set, contexts and measured quality for a verb that works on a set."""
    from sae_core.storage import load_set

    found = load_set(options.dir)
    out = writable(options.out or options.dir / options.verb)
    model = model_of(options.model or found.model, options.device)
    return out, model, *loaded(options.dir, model, options.text)


def loaded(folder: Path, model: "LanguageModel", source: str | None):
    """The set in `folder`, checked against `model`, its contexts (or those of another text) and its quality."""
    from circuits.page import Measured
    from sae_core.errors import UserError
    from sae_core.storage import QUALITY, load_set, read_json
    from sae_core.text import held_out

    dictionaries = load_set(folder, device=model.device)
    dictionaries.check(model)
    text = replace(dictionaries.text, source=source) if source else dictionaries.text
    contexts = text.contexts(model)
    path = folder / QUALITY
    if path.is_file() and not source:
        try:
            return dictionaries, contexts, Measured.from_json(read_json(path))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}; remove it to have it measured again") from error
    say("measuring the dictionaries")
    return dictionaries, contexts, measure(model, dictionaries, held_out(contexts)[1])


def prepare_demo(folder: Path, model: "LanguageModel", text: "Text", config: "TrainConfig") -> bool:
    """Whether to resume; raises `UserError` where the folder holds anything else than this demo's dictionaries."""
    from sae_core.errors import UserError
    from sae_core.storage import CHECKPOINT, SET, load_set, read_checkpoint

    asked = {"text": asdict(text), "training": asdict(config), "fingerprint": model.fingerprint()}
    try:
        if (folder / SET).exists():
            found = load_set(folder)
            same = (found.text, found.training, found.fingerprint) == (text, config, asked["fingerprint"])
            resume = False
        else:
            card = read_checkpoint(folder)
            same = resume = all(card.get(name) == value for name, value in asked.items())
    except UserError:
        same = resume = False
    if not same and ((folder / SET).exists() or (folder / CHECKPOINT).exists()):
        raise UserError(f"{folder} holds dictionaries of other settings; give another --out, or remove them")
    return resume


# ---- small things ----------------------------------------------------------------------------------


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


def last_of(stages: Iterator[Any]) -> Any:
    """Say every line of progress; return the result that comes last."""
    for stage in stages:
        if not isinstance(stage, str):
            return stage
        say("  " + stage)
    raise AssertionError("an experiment ended without a result")


def progress(steps: Iterator[Any], total: int, done: int) -> Iterator[Any]:
    """Steps of training, with a bar on a terminal and a plain line per tenth elsewhere."""
    from tqdm import tqdm

    bar = tqdm(total=total, initial=done, unit="step", disable=not sys.stderr.isatty())
    with bar:
        for step in steps:
            bar.update(1)
            n = len(step.fvu)
            fvu, l0 = sum(step.fvu.values()) / n, sum(step.l0.values()) / n
            line = f"FVU {fvu:.3f}, L0 {l0:.1f}, dead {sum(step.n_dead.values())}"
            if bar.disable and (step.step % max(1, total // 10) == 0 or step.step == total):
                say(f"  step {step.step}/{total}: {line}")
            elif not bar.disable:
                bar.set_postfix_str(line, refresh=False)
            yield step


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C only sets a flag, which the given function reads; a second one is immediate."""
    import signal
    import threading

    stopped = False

    def stop(signum, frame) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


def writable(folder: Path) -> Path:
    """`folder`, made if need be; raises `UserError` before any work if results could not be written there."""
    import tempfile

    from sae_core.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}") from error
    return folder


def model_of(name: str, device: str | None) -> "LanguageModel":
    """The model of that name, on the device asked for."""
    import torch

    from sae_core.errors import UserError
    from sae_core.models import load_model

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    return load_model(name, device=device)


def sites_of(model: "LanguageModel", places: Iterable[str]) -> tuple:
    """Sites named one by one or by stream, checked against the model."""
    from sae_core.sites import Site, Stream

    found = []
    for place in places:
        found += model.sites(Stream(place)) if place in set(Stream) else [model.check(Site.parse(place))]
    return tuple(sorted(set(found)))


def site_of(name: str | None):
    """The site of that name, or None."""
    from sae_core.sites import Site

    return Site.parse(name) if name else None


def save_result(out: Path, numbers: dict[str, Any], model: "LanguageModel", settings: dict[str, Any]) -> None:
    """Write `result.json`, and `provenance.json` beside it."""
    import platform
    from importlib.metadata import version

    from sae_core.storage import write_json

    plain = {
        k: v if isinstance(v, (int, float, bool, dict, list, type(None))) else str(v)
        for k, v in settings.items()
        if k != "run"
    }
    packages = ("torch", "transformers", "transformer-lens", "numpy")
    provenance = {
        "subrank": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "device": str(model.device),
        "settings": plain,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(out / "provenance.json", provenance)
    write_json(out / "result.json", numbers)


if __name__ == "__main__":
    sys.exit(main())
