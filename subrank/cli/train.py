"""`subrank train`: dictionaries for chosen sites, trained, saved and measured, any number of members in one pass."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subrank.cli.arguments import model_of, sites_of, writable
from subrank.cli.log import Log
from subrank.cli.parsers import Verbs
from subrank.cli.results import save_result
from subrank.cli.terminal import interruptible, progress, say
from subrank.cli.train_options import check_same, described, flag, run_of

if TYPE_CHECKING:
    import torch

    from sae_core.model.language_model import LanguageModel
    from sae_core.sites import Site
    from sae_core.storage import DictionarySet
    from sae_core.training.inputs import ActivationSource
    from sae_core.training.run import Run
    from sae_core.training.state import TrainState

RUN, LOG = "run.json", "log.jsonl"
_KINDS = ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu", "tied")


def add(verbs: Verbs) -> None:
    """Declare `subrank train`."""
    parser = verbs.add("train", run, "train dictionaries for chosen sites in one pass over the text", "./dictionaries")
    parser.set_defaults(parser=parser)
    add_option = parser.add_argument
    add_option("model", metavar="MODEL", nargs="?", help="'storybook', a Hugging Face directory, or a hub name")
    add_option("--text", default="storybook", help="'storybook', .txt, .jsonl, a folder, a dataset[:config]")
    add_option("--column", default="text", help="where a dataset or .jsonl keeps its text")
    add_option("--sites", nargs="+", default=["resid_post"], help="streams (all layers) or sites, e.g. mlp_out.3")
    several = "; several make a sweep"
    add_option("--kind", nargs="+", default=["topk"], choices=_KINDS, help="architecture" + several)
    add_option("--expansion", type=int, nargs="+", default=[4], help="latents per dimension" + several)
    add_option("-k", type=int, nargs="+", default=[16], help="latents active per token" + several)
    add_option("--l1", type=float, nargs="+", default=[2.0], help="L1 coefficient of relu, tied and gated" + several)
    add_option("--seeds", type=int, nargs="+", default=None, help="in place of --seed" + several)
    add_option("--multi", type=float, default=0.0, help="weight of the loss at 4k latents (topk); Gao et al. use 0.125")
    add_option("--kl", type=float, default=0.0, help="weight of the KL divergence of the model's predictions")
    add_option("--tokens", type=int, default=2_000_000, help="tokens to train on")
    add_option("--batch", type=int, default=1024, help="tokens per step")
    add_option(
        "--bfloat16", action=argparse.BooleanOptionalAction, help="choose latents in it; where it is fast, if not given"
    )
    add_option("--lr", type=float, default=None, help="learning rate; 5e-4 sqrt(2^14 / latents) by default")
    add_option("--clip", type=float, default=None, help="largest norm of a gradient; not cut by default")
    add_option("--dead-after", type=int, default=100_000, help="tokens without activity after which a latent is dead")
    add_option("--context", type=int, default=None, help="tokens per context; the model's, at most 128")
    add_option("--prepend-bos", action=argparse.BooleanOptionalAction, default=True)
    add_option("--memory", type=float, default=2.0, metavar="GIB", help="activations held at once")
    add_option("--cache", type=Path, default=None, help="folder to keep activations in, and to take them from")
    add_option("--config", type=Path, default=None, help="a run.json in place of MODEL and all that describes the run")
    add_option("--save-every", type=float, default=60.0, metavar="SECONDS", help="between checkpoints")
    add_option("--resume", action="store_true", help="go on from the checkpoint in --out")


def run(options: argparse.Namespace) -> int:
    """`subrank train`."""
    from sae_core import checks
    from sae_core.errors import UserError
    from sae_core.storage import SET
    from sae_core.training.checkpoint import CHECKPOINT

    checks.weight("--save-every", options.save_every)
    out = writable(options.out or Path("dictionaries"))
    config = _config(options)
    if options.resume:
        model, found = _resumed(options, config, out)
    elif (out / SET).exists() or (out / CHECKPOINT).exists() or any(out.glob(f"*/{SET}")):
        raise UserError(f"{out} holds dictionaries already; give another --out, or --resume to finish them")
    elif not config and options.model is None:
        raise UserError("give a MODEL: 'storybook', a directory in Hugging Face layout, or a hub name; or --config")
    else:
        model = model_of(config.model if config else options.model, options.device)
        found = config or run_of(options, model)
    sets = train_into(out, model, found, resume=options.resume, save_every=options.save_every, cache=options.cache)
    if sets is None:
        say(f"stopped; go on with: subrank train {options.model or found.model} --out {out} --resume")
        return 130
    say(f"dictionaries: {out}")
    return 0


def _config(options: argparse.Namespace) -> "Run | None":
    """The run in the file that --config names, if it does."""
    from sae_core.errors import UserError
    from sae_core.files import read_json
    from sae_core.training.run import Run

    if options.config is None:
        return None
    if options.model or (given := [flag(name) for name in described(options)]):
        raise UserError(f"--config describes the whole run; leave out {options.model or ', '.join(given)}")
    return Run.from_json(read_json(options.config))


def _resumed(options: argparse.Namespace, config: "Run | None", out: Path) -> "tuple[LanguageModel, Run]":
    """Model and run of the checkpoint in `out`; raises `UserError` where another run is asked for."""
    from sae_core.errors import UserError
    from sae_core.files import read_json
    from sae_core.training.checkpoint import read_checkpoint
    from sae_core.training.run import Run

    card, found = read_checkpoint(out), Run.from_json(read_json(out / RUN))
    model = model_of(config.model if config else options.model or found.model, options.device)
    if card["fingerprint"] != model.fingerprint():
        raise UserError(f"the checkpoint in {out} is of another model ({card['model']}) than {model.name}")
    if not config:
        check_same(options, model, found, out)
    elif differences := replace(config, model=found.model).differences(found):
        raise UserError(
            f"the run in {out} has other {' and '.join(differences)} than {options.config}; "
            "leave --config out, or start anew elsewhere"
        )
    say(f"resuming after step {card['step']}, with the settings of the checkpoint")
    return model, found


def train_into(
    out: Path,
    model: "LanguageModel",
    run: "Run",
    *,
    resume: bool = False,
    save_every: float = 60.0,
    cache: Path | None = None,
) -> "list[DictionarySet] | None":
    """Train, save and measure the members of a run; None if the user stopped it, a checkpoint being left.

    One member's set is `out` itself, several are folders in it.
    """
    import shutil

    from sae_core.data.text import digest, held_out
    from sae_core.errors import UserError
    from sae_core.files import write_json
    from sae_core.storage import DictionarySet
    from sae_core.training.checkpoint import CHECKPOINT, save_checkpoint
    from sae_core.training.loop import start, train
    from sae_core.training.run import calibrate_thresholds

    sites = sites_of(model, run.sites)
    if cache and run.downstream(model):
        raise UserError("--cache keeps mixed activations, and --kl trains on whole contexts; leave one of them out")
    say(f"reading {run.text.source}")
    contexts = run.text.contexts(model)
    read, steps = digest(contexts), run.members[0].steps
    training, measuring = held_out(contexts)
    say(
        f"{len(training)} contexts of {run.text.n_ctx} tokens, {run.members[0].tokens / training.numel():.2g} epochs; "
        f"{len(sites)} sites, {len(run.members)} members, {steps} steps"
    )
    stream = _stream(run, model, training, sites, cache)
    state = _checkpoint(out, model, read, run.text.source) if resume else start(stream, *run.members)
    write_json(out / RUN, run.to_json())
    log, saved = Log(out / LOG, state), time.monotonic()
    with interruptible() as stopped:
        for step in progress(train(stream, state, run.downstream(model)), steps, state.step):
            log.add(step)
            if stopped() or time.monotonic() - saved > save_every:
                save_checkpoint(state, run.text, model, out, contexts=read)
                saved = time.monotonic()
            if stopped() and step.step < steps:
                return None
    sets, measured, thresholds = [], {}, {}
    for member in state.members:
        dictionaries, folder = member.dictionaries(), out if len(state.members) == 1 else out / member.name
        found = calibrate_thresholds(member.config, dictionaries, model, training[:128])
        thresholds |= {f"{member.name}/{site}": both for site, both in found.items()}
        named = {"training": member.config, "stream_seed": run.stream_seed}
        sets.append(DictionarySet(model.name, model.fingerprint(), run.text, dictionaries, **named))
        sets[-1].save(folder)
        measured[member.name] = _measure_into(folder, model, sets[-1], measuring, member.name)
    numbers: dict[str, Any] = {"dictionaries": measured if len(measured) > 1 else measured[state.members[0].name]}
    save_result(out, numbers | ({"thresholds": thresholds} if thresholds else {}), model, run.to_json())
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    return sets


def _stream(
    run: "Run", model: "LanguageModel", contexts: "torch.Tensor", sites: "tuple[Site, ...]", cache: Path | None
) -> "ActivationSource":
    """The activations that the run trains on, from the cache if there is one; says what they cost."""
    from sae_core.data.activation_cache import CachedStream, disk_bytes
    from sae_core.data.activations import ActivationStream

    stream = run.stream(model, contexts, sites)
    if isinstance(stream, ActivationStream) and stream.block_contexts < min(stream.batch, len(contexts)):
        n = stream.block_contexts
        say(f"only {n} contexts mix within --memory: tokens of one context meet in a batch more often than by chance")
    if cache is None:
        return stream
    cached = CachedStream(stream, cache)
    say(f"{cache} takes about {disk_bytes(stream, run.members[0].tokens) / 2**30:.2g} GiB in the end")
    return cached


def _checkpoint(out: Path, model: "LanguageModel", read: str, source: str) -> "TrainState":
    """The state to go on from; raises `UserError` unless the text is what it was (`read` is its digest)."""
    from sae_core.errors import UserError
    from sae_core.training.checkpoint import load_checkpoint, read_checkpoint
    from sae_core.training.loop import in_bfloat16

    if read_checkpoint(out)["contexts"] != read:
        raise UserError(
            f"{source} holds another text than when the run in {out} began; bring that back, or start anew elsewhere"
        )
    state = load_checkpoint(out, device=model.device)
    for member in state.members:
        weight = next(iter(member.sites.values())).sae.W_dec
        if member.bfloat16 != in_bfloat16(member.config, weight):
            precision = "bfloat16" if member.bfloat16 else "float32"
            say(f"{member.name} goes on in {precision}, in which it began; here it would have begun in the other")
    return state


def _measure_into(folder: Path, model: "LanguageModel", found: "DictionarySet", contexts: Any, name: str) -> dict:
    from editing.set_quality import measure_set
    from sae_core.files import write_json
    from sae_core.storage import QUALITY

    say(f"measuring {name} on held-out text")
    measured = measure_set(model, found, contexts).to_json()
    write_json(folder / QUALITY, measured)
    for site, row in measured.items():
        rest = f"dead {row['dead']:.1%}, loss recovered {row['loss_recovered']:.3f}"
        say(f"  {site}: FVU {row['fvu']:.3f}, L0 {row['l0']:.1f}, {rest}")
    return measured
