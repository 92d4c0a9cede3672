"""`subrank steer`: text with features turned up, down or off, side by side, and what each strength does."""

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from subrank.cli.arguments import at_least
from subrank.cli.parsers import Verbs
from subrank.cli.results import save_result
from subrank.cli.sets import open_set
from subrank.cli.terminal import report, say

if TYPE_CHECKING:
    import torch

    from editing.steering.continuations import Continuation
    from editing.steering.dose_response import DoseResponse
    from editing.steering.edits import Mode
    from sae_core.dictionaries.dictionary import Dictionary
    from sae_core.model.language_model import LanguageModel
    from sae_core.sites import FeatureId, Site

READ = 256
"""Contexts on which features are read: their maxima, promoted tokens, examples."""


def add(verbs: Verbs) -> None:
    """Declare `subrank steer`."""
    parser = verbs.add_on_set("steer", run, "generate text with features turned up, down or off")
    parser.add_argument("--feature", default=None, help="e.g. 3_17, or several: 3_17,5_20; by default chosen")
    parser.add_argument("--mode", choices=("scale", "clamp", "off"), default="scale", help="what strengths mean")
    parser.add_argument(
        "--strengths",
        nargs="+",
        metavar="S",
        default=None,
        help="factors of the activation (scale; default: -4 0 1 2 4 8), or multiples of its maximum on the text "
        "(clamp; default: -1 0 0.5 1 2)",
    )
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", default=None, help="by default taken from held-out text")
    parser.add_argument("--tokens", type=int, default=40, help="tokens to write after each prompt")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 always takes the most probable token")
    parser.add_argument("--top-p", type=float, default=None, help="draw from the most probable tokens of this share")
    parser.add_argument("--contexts", type=int, default=32, help="held-out contexts to measure on")


def run(options: argparse.Namespace) -> None:
    """`subrank steer`."""
    from editing.steering.continuations import Writing
    from editing.steering.edits import Mode
    from editing.steering.feature_text import check_known_features
    from editing.steering.held_out import DoseConfig
    from sae_core.errors import UserError
    from sae_core.model.generation import Sampling, check_room
    from sae_core.sites import FeatureId
    from sae_core.storage import load_set

    mode = Mode(options.mode)
    strengths = strengths_of(mode, options.strengths)
    features = [FeatureId.parse(name.strip()) for name in options.feature.split(",")] if options.feature else []
    sampling = Sampling(options.temperature, None, options.top_p)
    at_least("--tokens", options.tokens, 1)
    at_least("--contexts", options.contexts, 2)
    if not all(prompt.strip() for prompt in options.prompt or ()):
        raise UserError("--prompt is empty; give at least one word")
    if features:
        check_known_features(load_set(options.dir).dictionaries, features)  # before anything slow
    opened = open_set(options)
    _, model, found, *_ = opened
    prompts = prompts_of(model, options.prompt, prepend_bos=found.text.prepend_bos)
    if prompts:
        check_room(model, prompts, options.tokens)
    config = DoseConfig(contexts=options.contexts, seed=options.seed)
    writing = Writing(options.tokens, options.seed, sampling)
    steer_into(*opened, features, mode, strengths, prompts, config, writing, argv=vars(options))


def steer_into(
    out: Path, model, found, contexts, measured, features, mode, strengths, prompts, config, writing, *, argv
) -> "DoseResponse":
    """Steer; write `result.json` and `steer.html`. Features and prompts are chosen where there are none."""
    from editing.steering.continuations import continuations, example_prompts
    from editing.steering.dose_response import dose_response
    from editing.steering.edits import Steering
    from editing.steering.feature_text import read_features
    from sae_core.codec import to_plain
    from sae_core.data.text import held_out
    from subrank.pages.evaluation_page import dictionaries_section
    from subrank.pages.page import write_page
    from subrank.pages.steering_page import described, steering_section

    dictionaries = found.dictionaries
    reading, measuring = (part[:READ] for part in held_out(contexts))
    features = features or [default_feature(model, dictionaries, reading)]
    say(f"reading {', '.join(map(str, features))} on {len(reading)} contexts")
    text = read_features(model, dictionaries, features, reading)
    steering = Steering(dictionaries, text, mode)
    held = read_features(model, dictionaries, features, measuring)
    prompts = prompts or example_prompts(model, held if held.active.any() else text, mode)
    texts = continuations(model, steering, strengths, prompts, writing)
    response = dose_response(model, steering, strengths, held, config, report)
    for line in described(response):
        say(line)
    show(texts, colour=colourful())
    numbers = to_plain({"texts": texts, "dose_response": response})
    save_result(out, {"dictionaries": measured.to_json()} | numbers, model, argv)
    title = f"Steering {', '.join(response.features)}"
    write_page(out / "steer.html", title, steering_section(response, texts) + dictionaries_section(measured))
    say(f"results: {out / 'steer.html'}")
    return response


def strengths_of(mode: "Mode", given: Sequence[str] | None) -> tuple[float, ...]:
    """The strengths asked for, or those that the mode has by default."""
    import math

    from editing.steering.edits import DEFAULT_STRENGTHS, Mode
    from sae_core.errors import UserError

    if given is None:
        return DEFAULT_STRENGTHS[mode]
    if mode is Mode.OFF:
        raise UserError("--mode off has no strengths; leave out --strengths, or give --mode scale or clamp")
    try:
        found = tuple(dict.fromkeys(float(value) for value in given))
    except ValueError as error:
        raise UserError(f"--strengths must be numbers, such as -4 0 2; got {' '.join(given)}") from error
    if not all(map(math.isfinite, found)):
        raise UserError(f"--strengths must be finite numbers; got {' '.join(given)}")
    return found


def prompts_of(model: "LanguageModel", texts: Sequence[str] | None, *, prepend_bos: bool) -> list[list[int]]:
    """The tokens of every prompt given, after BOS where the dictionaries were trained with it."""
    from sae_core.errors import UserError

    bos, prompts = [model.bos_id] if prepend_bos and model.bos_id is not None else [], []
    for text in texts or ():
        ids = model.to_ids(text)
        if not ids:
            raise UserError(f"--prompt {text!r} has no tokens in {model.name}; give at least one word")
        unknown = ids.count(model.tokenizer.unk_token_id)
        if unknown and model.tokenizer.unk_token_id not in model.special_ids:
            say(f"note: {unknown} of the {len(ids)} tokens of {text!r} are unknown to {model.name}")
        prompts.append(bos + ids)
    return prompts


def default_feature(
    model: "LanguageModel", dictionaries: "dict[Site, Dictionary]", contexts: "torch.Tensor"
) -> "FeatureId":
    """The rare feature of the last residual site with the largest direct effect on one token's logit."""
    from circuits.features.atlas import strongest_writer, survey
    from sae_core.errors import UserError
    from sae_core.sites import Stream

    site = max((site for site in dictionaries if site.stream is Stream.RESID_POST), default=None)
    if site is None:
        raise UserError(
            f"no resid_post site to choose a feature from; give --feature, at {', '.join(map(str, dictionaries))}"
        )
    say(f"choosing a feature of {site} on {len(contexts)} contexts")
    atlas = survey(model, {site: dictionaries[site]}, contexts, top=16)
    return strongest_writer(model, dictionaries[site], site, atlas)


def show(texts: "Sequence[Continuation]", *, colour: bool) -> None:
    """Print every prompt and below it a block per strength, changed tokens as `{+these+}`, as git marks words."""
    from subrank.pages.steering_page import label

    start, end = ("\033[32m", "\033[0m") if colour else ("", "")
    for prompt, group in groupby(texts, key=lambda text: text.prompt):
        blocks = list(group)
        say(f"\n{prompt} ...")
        for text in blocks:
            words = "".join(f"{start}{{+{run}+}}{end}" if new else run for run, new in text.marked())
            say(f"{label(text):>9} |{words.replace(chr(10), chr(10) + ' ' * 10 + '|')}{' #' if text.ended else ''}")
        if not any(any(text.changed) for text in blocks):
            say("note: no strength changes this; scaling acts only where a feature is active, --mode clamp everywhere")
    say("\n{+changed+}: not in the unedited text. #: the text came to its end.\n")


def colourful() -> bool:
    """Whether the terminal shows colours and nobody asked it not to."""
    import os

    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
