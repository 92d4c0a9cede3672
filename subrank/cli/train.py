"""`subrank train`: a training session kept on disk: settings, log, checkpoints, and in the end the sets."""

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from subrank.cli.arguments import model_of, writable
from subrank.cli.parsers import Verbs, count, path, settings_of, stated, word
from subrank.cli.ranks import arranged, is_first, joined, restarted
from subrank.cli.saving import save_sets
from subrank.cli.stopping import Stopped, finishing_a_step
from subrank.cli.terminal import reporting, say, steps_shown
from subrank.settings.train import LoggerName, TrainSettings

if TYPE_CHECKING:
    from sae_core.model.language_model import LanguageModel
    from sae_core.sharding.ranks import Ranks
    from sae_core.training.run import Run
    from sae_core.training.state import TrainState
    from subrank.experiments.training import Session, Trained

RUN, LOG = "run.json", "log.jsonl"


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add("train", run, TrainSettings, "./dictionaries")
    option = parser.add_argument
    option(
        "model",
        metavar="MODEL",
        nargs="?",
        type=word,
        help="'storybook', a Hugging Face directory, a .gguf file, or a hub name",
    )
    text = "'storybook', a file, a folder, a dataset[:config] (default: storybook)"
    option("--text", type=word, default=argparse.SUPPRESS, help=text)
    option("--cache", type=path, default=None, help="folder to keep activations in, and to take them from")
    option("--config", type=path, default=None, help="a run.json in place of MODEL and all that describes the run")
    option("--save-every", type=float, default=60.0, metavar="SECONDS", help="between checkpoints (default: 60)")
    names = get_args(LoggerName)
    option("--log", nargs="+", choices=names, default=[], help="send the numbers of training there as well")
    option("--resume", action="store_true", help="go on from the checkpoint in --out")
    spread = "processes of torchrun over which latents are spread (default: all, or fewer where tokens are many)"
    option("--shards", type=count, default=None, metavar="N", help=spread)
    replicas = "times that all latents are there, for other tokens each (default: processes / shards)"
    option("--replicas", type=count, default=None, metavar="N", help=replicas)
    waiting = "that processes of torchrun wait for each other (default: 300)"
    option("--patience", type=count, default=300, metavar="SECONDS", help=waiting)


def run(options: argparse.Namespace) -> int:
    """`subrank train`: train dictionaries for chosen sites in one pass over the text."""
    from sae_core import checks
    from sae_core.errors import UserError
    from sae_core.sharding.control import of_first
    from sae_core.sharding.ranks import ALONE
    from sae_core.storage import SET
    from sae_core.training.checkpoint import has_checkpoint
    from subrank.loggers import ready
    from subrank.result import QUICK

    world = joined(options)
    checks.weight("--save-every", options.save_every)
    TrainSettings(**stated(options, TrainSettings))  # what is wrong with them is said before anything else
    ready(options.log)
    out = options.out or Path("dictionaries")
    out = writable(out, options) if is_first() else out
    begun, done = of_first(world or ALONE, (has_checkpoint(out), (out / SET).exists() or any(out.glob(f"*/{SET}"))))
    options.resume = options.resume or (begun and restarted())
    if begun:
        if not options.resume:
            raise UserError(f"{out} holds a run that is not finished; --resume goes on, or give another --out")
    elif done:
        raise UserError(f"{out} holds dictionaries already, with nothing left to resume; give another --out")
    model, wanted = _begun(options, out) if options.resume else _new(options)
    ranks = arranged(world, options, model, wanted)
    session = (go_on if options.resume else begin)(out, model, wanted, options.cache, ranks)
    again = f"subrank train {options.model or wanted.model} --out {out} --resume"
    again = again if world is None else f"torchrun ... -m {again}"
    again += f" --cache {options.cache}" if options.cache else ""
    again += " --log " + " ".join(options.log) if options.log else ""
    train_into(out, session, options.save_every, go_on_with=again, log=options.log)
    if session.run.quick:
        say(QUICK)
    say(f"dictionaries: {out}")
    if world is not None:
        world.leave()
    return 0


def _new(options: argparse.Namespace) -> "tuple[LanguageModel, Run]":
    """Model and run that the command line, or the file that it names, describes."""
    from sae_core.errors import UserError
    from subrank.experiments.training import members_of, run_of

    if options.config is not None:
        wanted = _config(options)
        return model_of(wanted.model, options), wanted
    if options.model is None:
        raise UserError(
            "give a MODEL: 'storybook', a directory in Hugging Face layout, a .gguf file, or a hub name; or --config"
        )
    settings = settings_of(options, TrainSettings)
    members_of(settings)  # what is wrong with them is said before the model is loaded
    model = model_of(options.model, options)
    return model, run_of(settings, model, getattr(options, "text", "storybook"))


def _described(options: argparse.Namespace) -> dict[str, Any]:
    """The options on the command line that describe the run."""
    text = {"text": options.text} if hasattr(options, "text") else {}
    return stated(options, TrainSettings) | text


def _config(options: argparse.Namespace) -> "Run":
    """The run in the file that --config names."""
    from sae_core.errors import UserError
    from subrank.cli.same_run import flags

    described = _described(options)
    if options.model or described:
        raise UserError(f"--config describes the whole run; leave out {options.model or flags(described)}")
    return run_in(options.config)


def run_in(path: Path) -> "Run":
    """The run that a file describes; raises `UserError`, which names the file, where it describes none."""
    from sae_core.files import read_json, reading
    from sae_core.training.run import Run

    with reading(path):
        return Run.from_json(read_json(path))


def _begun(options: argparse.Namespace, out: Path) -> "tuple[LanguageModel, Run]":
    """Model and run of the checkpoint in `out`; raises `UserError` where the command line describes another."""
    from dataclasses import replace

    from sae_core.errors import UserError
    from sae_core.model.fingerprint import parts_other_than
    from sae_core.training.checkpoint import read_checkpoint
    from subrank.cli.same_run import check_same

    card, begun = read_checkpoint(out), run_in(out / RUN)
    config = _config(options) if options.config is not None else None
    model = model_of(config.model if config else options.model or begun.model, options)
    dtype = str(model.dtype).removeprefix("torch.")
    if card.dtype != dtype:
        raise UserError(f"the run in {out} was begun with the model in {card.dtype}; give --dtype {card.dtype}")
    if other := parts_other_than(card.fingerprint, model):
        raise UserError(
            f"the checkpoint in {out} is of another model ({card.model}) than {model.name}: its "
            f"{' and '.join(other)} differ"
        )
    if config is None:
        check_same(_described(options), model, begun, out)
    elif differences := replace(config, model=begun.model).differences(begun):
        raise UserError(
            f"the run in {out} has other {' and '.join(differences)} than {options.config}; "
            "leave --config out, or start anew elsewhere"
        )
    say(f"resuming after step {card.step}, with the settings of the checkpoint")
    return model, begun


# ---- a session on disk -----------------------------------------------------------------------------


def begin(
    out: Path, model: "LanguageModel", run: "Run", cache: Path | None = None, ranks: "Ranks | None" = None
) -> "Session":
    """A session from the beginning; `run.json` is written into `out`."""
    return _session(out, model, run, cache, None, ranks)


def go_on(
    out: Path, model: "LanguageModel", run: "Run", cache: Path | None = None, ranks: "Ranks | None" = None
) -> "Session":
    """The session whose checkpoint is in `out`."""
    from sae_core.sharding.ranks import ALONE
    from sae_core.training.checkpoint import load_checkpoint

    state = load_checkpoint(out, device=model.device, ranks=ranks or ALONE)
    return _session(out, model, run, cache, state, ranks)


def _session(
    out: Path,
    model: "LanguageModel",
    run: "Run",
    cache: Path | None,
    state: "TrainState | None",
    ranks: "Ranks | None",
) -> "Session":
    from sae_core.errors import UserError
    from sae_core.files import write_json
    from sae_core.room import check_disk
    from sae_core.sharding.ranks import ALONE
    from sae_core.training.checkpoint import read_checkpoint
    from subrank.cli.same_run import say_precision
    from subrank.experiments.training import Session
    from subrank.sites import sites_of

    needed = 16 * run.n_weights(model, sites_of(model, run.sites))  # each weight, with Adam's moments, and in the set
    check_disk(needed, out, "a checkpoint with its set", "give a smaller --expansion, fewer --sites, or another --out")
    with reporting() as report:
        session = Session.begin(model, run, cache=cache, state=state, ranks=ranks or ALONE, on_progress=report)
    if state is not None:
        card = read_checkpoint(out)
        if card.rows != session.rows:
            raise UserError(
                f"the run in {out} began with activations in {card.rows}, and these are in {session.rows}; "
                "give --cache with the folder that it read, or leave it out where it read none"
            )
        if card.contexts != session.contexts.digest:
            raise UserError(
                f"{run.text.source} holds another text than when the run in {out} began; "
                "bring that back, or start anew elsewhere"
            )
        say_precision(state)
    for line in session.facts():
        say(line)
    if is_first():
        write_json(out / RUN, run.to_json())
    return session


def train_into(
    out: Path, session: "Session", save_every: float = 60.0, *, go_on_with: str, log: Sequence[str] = ()
) -> "Trained":
    """Take the steps that are left and save the sets.

    Raises `Stopped`, with the command to `go_on_with`, where a signal asked for it and a checkpoint was left. One
    member's set is `out` itself, several are folders in it. Of several processes the first one saves.
    """
    from sae_core.training.checkpoint import has_checkpoint, remove_checkpoint
    from subrank.result import Provenance

    try:
        _take_steps(out, session, save_every, log)
        with reporting() as report:
            trained = session.finish(report)
    except Stopped as stop:
        stop.advice = f"; go on with: {go_on_with}" if has_checkpoint(out) else ""
        raise
    if not trained.sets:
        return trained
    for saes in trained.sets.values():
        for line in saes.quality.lines() if saes.quality else ():
            say(f"  {line}")
    by_name = {name: saes.dictionaries for name, saes in trained.sets.items()}
    dictionaries = by_name if len(by_name) > 1 else next(iter(by_name.values()))
    depends = {"dictionaries": dictionaries, "text": session.contexts.digest}
    settings = session.run.to_json() | ({"rows": session.rows} if session.rows != "float32" else {})
    provenance = Provenance.of("train", session.model, settings, **depends)
    save_sets(out, trained.sets, provenance, trained.thresholds)
    remove_checkpoint(out)
    return trained


def _take_steps(out: Path, session: "Session", save_every: float, log_to: Sequence[str] = ()) -> None:
    """The steps that are left, with a checkpoint every so many seconds, at a signal, and at the end."""
    from sae_core.sharding.control import largest
    from sae_core.training.checkpoint import save_checkpoint
    from subrank.cli.training_log import Log
    from subrank.loggers import Loggers

    def save() -> None:
        text, contexts = session.run.text, session.contexts.digest
        save_checkpoint(state, text, session.model, out, contexts=contexts, rows=session.rows)

    state, total, saved, signal = session.state, session.run.members[0].steps, time.monotonic(), 0
    log = Log(out / LOG, state) if is_first() else None
    begun = Loggers.begin(log_to if is_first() else (), session.run.to_json(), state.step, out)
    with closing(begun) as loggers, finishing_a_step() as stopped:
        for step in steps_shown(session.steps(), total, state.step):
            if log is not None:
                log.add(step)
                loggers.add(step, state)
            signal, due = largest(state.ranks, stopped(), int(time.monotonic() - saved > save_every))
            if signal:
                break
            if due:
                save()
                saved = time.monotonic()
        save()  # at the end as well: measuring may be interrupted
        if signal := signal or stopped():
            raise Stopped(signal)
