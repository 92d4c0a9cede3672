"""`subrank demo`: the whole story on the bundled model, ending in one page."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from subrank.cli.arguments import model_of, sites_of, writable
from subrank.cli.circuit import circuit_into
from subrank.cli.ioi import ioi_config, ioi_into
from subrank.cli.parsers import Verbs
from subrank.cli.remove import removal_config, removal_into
from subrank.cli.request import After
from subrank.cli.sets import prepared
from subrank.cli.terminal import say
from subrank.cli.train import RUN, train_into

if TYPE_CHECKING:
    from sae_core.model.language_model import LanguageModel
    from sae_core.training.run import Run


def add(verbs: Verbs) -> None:
    """Declare `subrank demo`."""
    parser = verbs.add("demo", run, "the whole story on the bundled model, ending in one page", "./demo")
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens to train the dictionaries on")
    parser.add_argument("--sites", nargs="+", default=["resid_post"], help="where (default: every layer)")
    parser.add_argument("--prompts", type=int, default=None, help="test prompts per experiment, if not each one's own")
    parser.add_argument("--contexts", type=int, default=1000, help="contexts searched for examples of features")
    parser.add_argument("--max-targets", type=int, default=15, help="features asked for their causes")


def run(options: argparse.Namespace) -> int:
    """`subrank demo`."""
    from circuits.discovery.edges import EdgeConfig
    from circuits.discovery.request import CircuitRequest
    from circuits.discovery.target_causes import DiscoveryConfig
    from editing.tasks.ioi import Corruption
    from sae_core.data.text import Text
    from sae_core.storage import SET, load_set
    from sae_core.training.config import TrainConfig
    from sae_core.training.run import Run
    from subrank.pages.circuit_page import circuit_section
    from subrank.pages.demo_page import demo_page
    from subrank.pages.evaluation_page import dictionaries_section
    from subrank.pages.ioi_page import ioi_section
    from subrank.pages.removal_page import removal_section

    started, out = time.time(), writable(options.out or Path("demo"))
    folder, argv = out / "dictionaries", vars(options)
    model = model_of("storybook", options.device)
    text, config = Text("storybook", 128, True, max_tokens=options.tokens), TrainConfig(tokens=options.tokens)
    training = Run("storybook", text, tuple(options.sites), (replace(config, seed=options.seed),))
    say("1/4  dictionaries")
    resume = prepare_demo(folder, model, training)
    if (folder / SET).exists():
        say(f"the dictionaries in {folder} are the ones asked for: kept")
    elif train_into(folder, model, training, resume=resume) is None:
        say("stopped; the same command goes on from here")
        return 130
    dictionaries = load_set(folder)
    contexts, measured = prepared(dictionaries, folder, model)
    say("2/4  IOI: patching features from one prompt into another")
    config = ioi_config(options, dictionaries)
    settings = {"argv": argv, "assets": out}
    kinds = [Corruption.IO, Corruption.SWAP]
    ioi = ioi_into(out / "ioi", model, dictionaries, contexts, measured, kinds, config, **settings)
    say("3/4  a circuit")
    light = EdgeConfig(n_null=200, seed=options.seed)
    config, how = DiscoveryConfig(light, max_targets=options.max_targets), CircuitRequest()
    after = After(options.contexts, n_held=200, n_draws=0, n_cards=150)
    graph, svg, _ = circuit_into(
        out / "circuit", model, dictionaries, contexts, measured, how, config, after, **settings
    )
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


def prepare_demo(folder: Path, model: "LanguageModel", run: "Run") -> bool:
    """Whether to resume; raises `UserError` where the folder holds anything else than this demo's dictionaries."""
    from sae_core.errors import UserError
    from sae_core.files import read_json
    from sae_core.storage import SET, load_set
    from sae_core.training.checkpoint import CHECKPOINT, read_checkpoint
    from sae_core.training.run import Run

    try:
        if (folder / SET).exists():
            found = load_set(folder)
            mine = (run.text, run.members[0], model.fingerprint(), set(sites_of(model, run.sites)))
            same = (found.text, found.training, found.fingerprint, set(found.dictionaries)) == mine
            resume = False
        else:
            begun = Run.from_json(read_json(folder / RUN))
            same = resume = begun == run and read_checkpoint(folder)["fingerprint"] == model.fingerprint()
    except UserError:
        same = resume = False
    if not same and ((folder / SET).exists() or (folder / CHECKPOINT).exists()):
        raise UserError(f"{folder} holds dictionaries of other settings; give another --out, or remove them")
    return resume
