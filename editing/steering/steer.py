"""Turn features up, down or off, and read what the model then writes.

Scaling multiplies a feature's activation by s: it acts where the feature is active, and only there. Clamping
sets it to s times its largest activation on a text: it acts at every position. Off sets it to zero. The
controls write changes of the same size, position by position, along other directions: a random one, and the
difference of the mean activations where the features are active and where they are not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from editing.interventions.add_direction import AddDirection
from editing.interventions.masks import Mask, Onward
from editing.interventions.patch import FeaturePatch, FeatureScale, clamp, scale
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.generation import Sampling, check_room, generate, pieces
from sae_core.model.language_model import LanguageModel, pad
from sae_core.sites import FeatureId, Site, Stream


class Mode(StrEnum):
    """What a strength s means."""

    SCALE = "scale"
    """The activation times s: 1 changes nothing, 0 is off."""
    CLAMP = "clamp"
    """s times the largest activation on the text, at every position."""
    OFF = "off"
    """Zero; the one strength is 0."""


DEFAULT_STRENGTHS = {
    Mode.SCALE: (-4.0, 0.0, 1.0, 2.0, 4.0, 8.0),
    Mode.CLAMP: (-1.0, 0.0, 0.5, 1.0, 2.0),
    Mode.OFF: (0.0,),
}
KEPT = 3
"""So many tokens in a row make an agreement between two texts."""


@dataclass(frozen=True, eq=False)
class Redirected:
    """Another edit's change c, as long as it is, but along a unit direction u: h + |c| sign(c . own) u.

    `own` is the direction along which the edit itself goes: turned down, a feature turns its control down.
    """

    edit: FeaturePatch | FeatureScale
    direction: Float[Tensor, "d_in"]
    own: Float[Tensor, "d_in"]

    @property
    def site(self) -> Site:
        return self.edit.site

    @property
    def mask(self) -> Mask:
        return self.edit.mask

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        change = self.edit(h) - h
        amount = change.norm(dim=-1) * (change @ self.own).sign()
        return h + amount[..., None] * self.direction


@dataclass(frozen=True, eq=False)
class FeatureText:
    """Chosen features on a text."""

    features: tuple[FeatureId, ...]
    contexts: Int[Tensor, "contexts pos"]
    f: Float[Tensor, "contexts pos k"]
    """Their activations at content positions; zero elsewhere."""
    difference: dict[Site, Tensor]
    """The unit vector from the mean activation where no feature of the site is active to where one is, `[d_in]`."""
    mean_final: Float[Tensor, "d_model"]
    """Mean residual after the last block."""
    n_tokens: int

    @property
    def maximum(self) -> Float[Tensor, "k"]:
        """The largest activation of each: the unit of clamping."""
        return self.f.flatten(0, 1).amax(0)

    @property
    def mean_active(self) -> Float[Tensor, "k"]:
        """The mean activation of each where it is active."""
        return self.f.sum((0, 1)) / (self.f != 0).sum((0, 1)).clamp_min(1)

    @property
    def density(self) -> Float[Tensor, "k"]:
        """Share of content tokens on which each is active."""
        return (self.f != 0).sum((0, 1)) / self.n_tokens

    def by_site(self) -> list[tuple[Site, list[int], Float[Tensor, "_"]]]:
        """For each site: the latents there and their largest activations."""
        found, maximum = [], self.maximum
        for site, places in groupby(range(len(self.features)), lambda place: self.features[place].site):
            own = list(places)
            found.append((site, [self.features[place].index for place in own], maximum[own]))
        return found

    @property
    def active(self) -> Bool[Tensor, "contexts pos"]:
        """Where any of them is active."""
        return (self.f != 0).any(-1)


def check_features(dictionaries: Mapping[Site, Dictionary], features: Sequence[FeatureId]) -> None:
    """Raise `UserError` unless every feature is in a dictionary of the set, and none is given twice."""
    if not features or len({*features}) < len(features):
        raise UserError("give at least one feature, and none twice")
    for feature in features:
        if feature.site not in dictionaries:
            places = ", ".join(map(str, dictionaries))
            raise UserError(f"no feature {feature}: this set has no dictionary for {feature.site}, but for {places}")
        n = len(dictionaries[feature.site].directions)
        if feature.index >= n:
            raise UserError(f"no feature {feature}: the dictionary for {feature.site} has {n}, numbered from 0")


@torch.no_grad()
def read_features(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    features: Sequence[FeatureId],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 16,
) -> FeatureText:
    """Chosen features on a text, in one pass over it."""
    check_features(dictionaries, features)
    features, last = tuple(sorted(features)), model.sites()[-1]
    own = {site: [feature.index for feature in group] for site, group in groupby(features, lambda one: one.site)}
    sums = {site: torch.zeros(2, model.d_in(site), dtype=torch.float64) for site in own}
    counts = {site: torch.zeros(2, 1, dtype=torch.float64) for site in own}
    final, n_tokens, found = torch.zeros(model.d_model, dtype=torch.float64), 0, []
    for chunk in contexts.split(at_once):
        content = model.content(chunk).to(model.device)
        recorded = model.record(chunk, {*own, last})
        n_tokens += int(content.sum())
        final += recorded[last][content].double().sum(0).cpu()
        codes = []
        for site, latents in own.items():
            f = dictionaries[site].encode(recorded[site])[..., latents] * content[..., None]
            x, active = recorded[site][content].double(), (f[content] != 0).any(-1)
            sums[site] += torch.stack([x[~active].sum(0), x[active].sum(0)]).cpu()
            counts[site] += torch.stack([(~active).sum(), active.sum()])[:, None].cpu()
            codes.append(f.cpu())
        found.append(torch.cat(codes, -1))
    means = {site: (sums[site] / counts[site].clamp_min(1)).float().to(model.device) for site in own}
    difference = {site: normalize(without_with[1] - without_with[0], dim=0) for site, without_with in means.items()}
    mean_final = (final / n_tokens).float().to(model.device)
    return FeatureText(features, contexts, torch.cat(found), difference, mean_final, n_tokens)


def steering(
    dictionaries: Mapping[Site, Dictionary], text: FeatureText, mode: Mode, strength: float, *, mask: Mask = None
) -> list[FeaturePatch | FeatureScale]:
    """The edits that steer the features of `text`, one per site, so that latents of one site are read together."""
    check_active(text)
    edits: list[FeaturePatch | FeatureScale] = []
    for site, latents, maximum in text.by_site():
        if mode is Mode.SCALE:
            edits.append(scale(site, dictionaries[site], latents, strength, mask=mask))
        else:
            value = maximum * (strength if mode is Mode.CLAMP else 0.0)
            edits.append(clamp(site, dictionaries[site], latents, value, mask=mask))
    return edits


def redirected(
    edits: Sequence[FeaturePatch | FeatureScale], directions: Mapping[Site, Float[Tensor, "_"]]
) -> list[Redirected]:
    """Controls: every edit with its change along another unit direction."""
    own = [normalize(edit.dictionary.directions[edit.latents].sum(0), dim=0) for edit in edits]
    return [Redirected(edit, directions[edit.site], along) for edit, along in zip(edits, own, strict=True)]


def check_active(text: FeatureText) -> None:
    """Raise `UserError` for a feature that is never active: nothing says how strong it would be."""
    for feature, maximum in zip(text.features, text.maximum.tolist(), strict=True):
        if maximum == 0:
            raise UserError(
                f"{feature} is never active on {text.n_tokens} tokens of this text; "
                "choose another feature, or a --text on which it is"
            )


def random_directions(
    model: LanguageModel, sites: Iterable[Site], *, generator: torch.Generator
) -> dict[Site, Float[Tensor, "_"]]:
    """A unit vector for each site, drawn uniformly."""
    drawn = {site: torch.randn(model.d_in(site), generator=generator) for site in sites}
    return {site: normalize(vector, dim=0).to(model.device) for site, vector in drawn.items()}


@torch.no_grad()
def promoted(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], text: FeatureText, n: int = 5
) -> Int[Tensor, "n"]:
    """The tokens whose logits the features raise most by themselves.

    Each d_j is added, at its mean activation, to the mean final residual, and read through the final norm; what
    is equal for all tokens does not count, as no probability notices it.
    """
    written = torch.zeros_like(text.mean_final)
    for feature, strength in zip(text.features, text.mean_active.tolist(), strict=True):
        written += strength * _written(model, feature.site, dictionaries[feature.site].directions[feature.index])
    change = model.unembed(text.mean_final + written) - model.unembed(text.mean_final)
    return change.topk(min(n, len(change))).indices


def _written(model: LanguageModel, site: Site, direction: Float[Tensor, "d_in"]) -> Float[Tensor, "d_model"]:
    """What a direction adds to the residual. From `mlp_hidden` it goes through the linear half of the MLP."""
    if site.stream is not Stream.MLP_HIDDEN:
        return direction
    out, token = Site(site.layer, Stream.MLP_OUT), torch.zeros(1, 1, dtype=torch.long)
    with model.hooks(AddDirection(site, direction)):
        pushed = model.record(token, [out])[out]
    return (pushed - model.record(token, [out])[out])[0, 0]


# ---- text ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Continuation:
    """What the model writes after a prompt, under one strength."""

    prompt: str
    strength: float | None
    """None without any edit."""
    tokens: tuple[str, ...]
    """The text in pieces, spaces included."""
    changed: tuple[bool, ...]
    """Which of them are not in the text without edit, the two being aligned (`changed_tokens`)."""
    ended: bool
    """Whether the text came to its end by itself."""

    def marked(self) -> list[tuple[str, bool]]:
        """The text as runs of tokens that are changed or not."""
        runs = groupby(zip(self.tokens, self.changed, strict=True), lambda one: one[1])
        return [("".join(piece for piece, _ in run), changed) for changed, run in runs]


def continuations(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    text: FeatureText,
    prompts: Sequence[Sequence[int]],
    mode: Mode,
    strengths: Sequence[float],
    n_new: int,
    *,
    seed: int,
    sampling: Sampling | None = None,
) -> list[Continuation]:
    """Every prompt continued without edit and with each strength, all with the same noise; prompt by prompt.

    BOS and special tokens of the prompt are left alone; all new tokens are edited.
    """
    check_room(model, prompts, n_new)
    mask = Onward(model.content(pad(prompts)[0]).to(model.device))
    plain = generate(model, prompts, n_new, seed=seed, sampling=sampling)
    written: list[tuple[float | None, list[list[int]]]] = [(None, plain)]
    for strength in strengths:
        with model.hooks(*steering(dictionaries, text, mode, strength, mask=mask)):
            written.append((strength, generate(model, prompts, n_new, seed=seed, sampling=sampling)))
    return [
        Continuation(
            model.tokenizer.decode([token for token in prompt if token not in model.special_ids]),
            strength,
            tuple(pieces(model, prompt, texts[row])),
            changed_tokens(plain[row], texts[row]),
            len(texts[row]) < n_new,
        )
        for row, prompt in enumerate(prompts)
        for strength, texts in written
    ]


def changed_tokens(before: Sequence[int], after: Sequence[int]) -> tuple[bool, ...]:
    """Which tokens of `after` are not in `before`, when as much as possible is aligned in order.

    Once texts have parted they meet in a word here and there by chance: fewer than `KEPT` tokens in a row count
    as changed, except at the beginning.
    """
    changed = [True] * len(after)
    for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        if block.size >= KEPT or block.a == block.b == 0:
            changed[block.b : block.b + block.size] = [False] * block.size
    return tuple(changed)


def example_prompts(
    model: LanguageModel, text: FeatureText, mode: Mode, n: int = 2, *, longest: int = 24
) -> list[list[int]]:
    """Prompts from the text: where the features are at their strongest or, to clamp them, where they are not.

    The former end with the token of the largest activation, of which scaling changes what comes next; the
    latter are beginnings of contexts.
    """
    if mode is Mode.CLAMP:
        quiet = (~text.active[:, :8].any(-1)).nonzero()[:, 0].tolist()
        found = [text.contexts[row, :8].tolist() for row in quiet or range(len(text.contexts))]
    else:
        height, place = text.f.sum(-1).max(-1)
        order = height.argsort(descending=True, stable=True).tolist()
        found = [text.contexts[row, : int(place[row]) + 1].tolist() for row in order if height[row] > 0]
    prompts = [_last_piece(model, prompt, longest) for prompt in found]
    return [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))][:n]


def _last_piece(model: LanguageModel, tokens: Sequence[int], longest: int) -> list[int]:
    """The last document of a context, its last `longest` tokens at most, after BOS if it has one."""
    starts = [place + 1 for place, token in enumerate(tokens) if token in model.special_ids]
    begin = max((start for start in starts if start < len(tokens)), default=0)
    bos = [tokens[begin - 1]] if begin else []
    return bos + list(tokens[max(begin, len(tokens) - longest) :])
