"""`sr.train`, `sr.sweep`, `subrank train`: dictionaries for chosen sites, any number of members in one pass."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from editing.set_quality import SetQuality, measure_set
from sae_core.data.activation_cache import CachedStream, check_cache, disk_bytes
from sae_core.data.activations import ActivationStream, seconds_per_token
from sae_core.data.documents import check_column
from sae_core.data.reading import bos_of
from sae_core.data.text import Contexts, Text
from sae_core.dictionaries.saes import SAE
from sae_core.digest import digest
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.model.precision import Kept
from sae_core.progress import OnProgress, Progress, duration, silent
from sae_core.sharding.control import check_same
from sae_core.sharding.ranks import ALONE, Ranks
from sae_core.sharding.stream import SharedStream
from sae_core.sites import Site
from sae_core.storage import DictionarySet
from sae_core.training.config import TrainConfig
from sae_core.training.inputs import ActivationSource
from sae_core.training.loop import start
from sae_core.training.loop import train as train_steps
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
from sae_core.training.recipe import Recipe
from sae_core.training.run import Run, calibrate_thresholds
from sae_core.training.state import TrainState, TrainStep
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK
from subrank.loggers import Loggers, LogTo, ready
from subrank.progress import shown
from subrank.saes import Saes, a_model
from subrank.settings.fields import make, takes
from subrank.settings.train import TrainSettings
from subrank.sites import sites_of

CALIBRATED_ON = 128
"""Contexts on which thresholds are calibrated."""
SHOWN_EVERY = 32
"""Steps between looks at the loss, each of which waits for the device."""


@takes(TrainSettings)
def train(
    model: LanguageModel,
    text: str = "storybook",
    *,
    log: LogTo = (),
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Saes:
    """One dictionary per site, trained in one pass over a text and measured on its held-out part.

    `text` is 'storybook', a file (kinds: docs/texts.md), a folder, or a dataset on the hub (`name:configuration`).
    `log` is 'wandb', 'tensorboard', 'trackio', or what has `log(step, numbers)` and `close()`; several may be given.
    """
    ready(log)  # what is wrong with it is said before anything slow
    run = run_of(make(TrainSettings, settings), model, text)
    if len(run.members) > 1:
        raise UserError(f"these settings describe {len(run.members)} sets; sr.sweep trains them in one pass")
    with shown("train", progress, on_progress, "step") as report:
        return next(iter(_trained(model, run, log, report).values()))


@takes(TrainSettings)
def sweep(
    model: LanguageModel,
    text: str = "storybook",
    *,
    log: LogTo = (),
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> dict[str, Saes]:
    """A set for every combination of the settings with several values, by name, all trained in the same pass."""
    ready(log)
    run = run_of(make(TrainSettings, settings), model, text)
    with shown("train", progress, on_progress, "step") as report:
        return _trained(model, run, log, report)


def _trained(model: LanguageModel, run: Run, log: LogTo, on_progress: OnProgress) -> dict[str, Saes]:
    session = Session.begin(model, run, on_progress=on_progress)
    total = run.members[0].steps
    with closing(Loggers.begin(log, run.to_json(), 0)) as loggers:
        for step in session.steps():
            loggers.add(step, session.state)
            if step.step % SHOWN_EVERY == 0 or step.step == total:
                on_progress(Progress(summary(step), step.step, total))
    return session.finish().sets


def summary(step: TrainStep) -> str:
    """FVU, L0 and dead latents of a step, over all members and sites."""
    rows = [row for sites in step.numbers() for row in sites.values()]
    fvu, l0 = (sum(row[name] for row in rows) / len(rows) for name in ("fvu", "l0"))
    return f"FVU {fvu:.3f}, L0 {l0:.1f}, dead {sum(row['dead'] for row in rows)}"


# ---- a run -----------------------------------------------------------------------------------------


def run_of(settings: TrainSettings, model: LanguageModel, text: str) -> Run:
    """The run that settings describe, of `members_of` them."""
    members, context = members_of(settings), settings.context
    n_ctx = min(128, a_model(model).n_ctx) if context is None else context
    amount = settings.text_tokens or settings.tokens
    bos = bos_of(model, settings.bos)
    how = {name: getattr(settings, name) for name in ("column", "seed", "exclude", "chat", "pack")}
    read = Text(text, n_ctx, bos, amount, **how)
    check_column(read.source, read.column)
    read.read_by(model)  # raises for what is no token
    rest = (int(settings.memory * 2**30), settings.outliers, settings.quick)
    return Run(model.name, read, settings.sites, members, *rest)


def members_of(settings: TrainSettings) -> tuple[TrainConfig, ...]:
    """A member for each combination of the settings with several values.

    Raises `UserError` for values that cannot be trained with.
    """
    shared = {
        name: getattr(settings, name) for name in ("tokens", "batch", "lr", "dead_after", "clip", "bfloat16", "kl")
    }
    seeds = settings.seeds or (settings.seed,)
    members = tuple(
        TrainConfig(recipe, expansion, seed=seed, **shared)
        for expansion, recipe, seed in product(settings.expansion, _recipes(settings), seeds)
    )
    if len({*members}) < len(members):
        raise UserError("two members of a sweep are the same; give each value once")
    return members


def _recipes(settings: TrainSettings) -> Iterator[Recipe]:
    """The architectures, each with every value of the setting by which its sparsity is set."""
    by_k = {"batchtopk": BatchTopK, "matryoshka": Matryoshka, "jumprelu": JumpReLU}
    for kind in settings.kind:
        if kind == "topk":
            yield from (TopK(k, multi=settings.multi) for k in settings.k)
        elif kind in by_k:
            yield from (by_k[kind](k) for k in settings.k)
        elif kind == "gated":
            yield from (Gated(l1) for l1 in settings.l1)
        else:
            yield from (ReLU(l1, tied=kind == "tied") for l1 in settings.l1)


# ---- a session -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What a training ends with."""

    sets: dict[str, Saes]
    """By the name of the member; none on ranks other than the first."""
    thresholds: dict[str, dict[str, float]]
    """Running and calibrated threshold, by `member/site`; of BatchTopK and Matryoshka only."""


@dataclass(frozen=True, eq=False)
class Session:
    """A training under way: the text it reads, the activations it makes of it, and its state."""

    model: LanguageModel
    run: Run
    contexts: Contexts
    source: ActivationSource
    state: TrainState

    @classmethod
    def begin(
        cls,
        model: LanguageModel,
        run: Run,
        *,
        cache: Path | None = None,
        state: TrainState | None = None,
        ranks: Ranks = ALONE,
        on_progress: OnProgress = silent,
    ) -> "Session":
        """A training from the beginning, or one that goes on from `state`; `cache` is a folder for activations.

        Raises `UserError` where `ranks` differ in what they train, or on what.
        """
        on_progress(Progress(f"reading {run.text.source}", 0, None))
        model = run.text.read_by(model)
        sites = sites_of(model, run.sites)
        run.check(model, sites, ranks.shards)
        if cache and run.downstream(model):
            raise UserError("--cache keeps mixed activations, and --kl trains on whole contexts; leave one of them out")
        contexts = run.text.read(model)
        check_same(ranks, settings=digest(run.to_json()), model=model.fingerprint(), text=contexts.digest)
        source: ActivationSource = run.stream(model, contexts.training, sites)
        if isinstance(source, ActivationStream) and cache is None:  # how much a cache saves shows only as it is read
            left = run.members[0].tokens - run.members[0].batch * (state.step if state else 0)
            n = source.n_read(left) // ranks.size
            seconds = n * seconds_per_token(model, contexts.training, source.sites)
            text = (
                f"the language model reads {n:,} tokens, which takes about {duration(seconds)}; training comes on top"
            )
            on_progress(Progress(text, 1, None))
        if cache is not None:
            assert isinstance(source, ActivationStream)  # as nothing trains on KL
            check_cache(source, run.members[0].tokens, cache)
            source = CachedStream(source, cache)
        if ranks.size > 1:
            assert isinstance(source, ActivationStream | CachedStream)
            source = SharedStream(source, ranks)
        state = state or start(source, *run.members, outliers=run.outliers, ranks=ranks)
        return cls(model, run, contexts, source, state)

    @property
    def rows(self) -> Kept:
        """The precision in which activations come: that of the cache, where there is one."""
        return (self._cache and self._cache.kept) or "float32"

    @property
    def _cache(self) -> CachedStream | None:
        source = self.source.stream if isinstance(self.source, SharedStream) else self.source
        return source if isinstance(source, CachedStream) else None

    def facts(self) -> list[str]:
        """How much there is to train on, in words; what limits it."""
        run, members = self.run, self.run.members
        training, held = self.contexts.training, self.contexts.held_out
        n_tokens = max(1, int(self.model.content(training).sum()))
        lines = [
            f"{len(training)} contexts of {run.text.n_ctx} tokens, {n_tokens:,} of them to train on, and {len(held)} "
            f"held out; {members[0].tokens:,} tokens are {members[0].tokens / n_tokens:.3g} epochs",
            f"{len(self.source.sites)} sites, {len(members)} members, {members[0].steps} steps",
        ]
        if (ranks := self.state.ranks).size > 1:
            lines.append(f"{ranks.size} processes: latents in {ranks.shards} shards, {ranks.replicas} replicas")
        lines.append(f"BOS before every piece of text: {run.text.bos_text(self.model)}")
        if run.text.exclude:
            lines.append(f"left out of training and measuring: {' '.join(map(repr, run.text.exclude))}")
        lines += [self.contexts.note] if self.contexts.note else []
        source = self.source.stream if isinstance(self.source, SharedStream) else self.source
        inner = self._cache.stream if self._cache else source
        if isinstance(inner, ActivationStream) and inner.block_contexts < min(inner.batch, len(training)):
            lines.append(
                f"only {inner.block_contexts} contexts mix within --memory: tokens of one context meet in a batch more "
                "often than by chance"
            )
        if cache := self._cache:
            gib = disk_bytes(cache.stream, members[0].tokens, self.rows) / 2**30
            lines.append(f"the cache takes about {gib:.2g} GiB in the end, in {self.rows}")
        return lines

    def steps(self) -> Iterator[TrainStep]:
        """The steps that are left; after each the state is complete and may be saved."""
        return train_steps(self.source, self.state, self.run.downstream(self.model))

    def finish(self, on_progress: OnProgress = silent) -> Trained:
        """The dictionaries, thresholds calibrated, measured on held-out text: on rank 0."""
        sets, thresholds, text = {}, {}, replace(self.run.text, digest=self.contexts.digest)
        members, ranks = self.state.members, self.state.ranks
        finished = [member.dictionaries() for member in members]  # all at once: ranks do not wait for what is measured
        for number, (member, dictionaries) in enumerate(zip(members, finished, strict=True) if ranks.rank == 0 else ()):
            on_progress(Progress(f"measuring {member.name} on held-out text", number, len(members)))
            how = {"training": member.config, "stream_seed": self.run.stream_seed}
            plain = DictionarySet(self.model.name, self.model.fingerprint(), text, dictionaries, **how)
            # of what was spread over ranks one dictionary at a time is on the device, which may not hold more
            parts = [dictionaries] if ranks.size == 1 else [{site: sae} for site, sae in dictionaries.items()]
            quality = SetQuality({}, {})
            for part in parts:
                measured, calibrated = self._measured(member.config, part, plain)
                thresholds |= {f"{member.name}/{site}": both for site, both in calibrated.items()}
                quality = SetQuality(quality.quality | measured.quality, quality.cost | measured.cost)
            sets[member.name] = Saes.of(plain, self.model, quality)
        return Trained(sets, thresholds)

    def _measured(
        self, config: TrainConfig, dictionaries: Mapping[Site, SAE], plain: DictionarySet
    ) -> tuple[SetQuality, dict[Site, dict[str, float]]]:
        """What some dictionaries of a set are worth on held-out text, and the thresholds that they get before that."""
        kept_on = next(iter(dictionaries.values())).W_dec.device
        for sae in dictionaries.values():
            sae.to(self.model.device)
        thresholds = calibrate_thresholds(config, dictionaries, self.model, self.contexts.training[:CALIBRATED_ON])
        worth = measure_set(self.model, replace(plain, dictionaries=dictionaries), self.contexts.held_out)
        for sae in dictionaries.values():
            sae.to(kept_on)
        return worth, thresholds
