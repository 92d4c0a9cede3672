"""The features that are active on one prompt, by site and token, and what they do to the next token.

At one site and position, with activation x, f = encode(x), unit directions d_j, e = x - decode(f), and the residual
after the last block h at that position, or at the prompt's end:

    direct        f_j d_j . w       on the logit of the token that follows there, w holding the last norm's scale
    first order   f_j d_j . dm/dx   on m at the prompt's end, along all paths
    exact         m - m'            where x' = x - f_j d_j there alone, in a forward pass of its own
    control       mean |m - m'|     where x' = x + |f_j| u instead, u uniform on the unit sphere

m is logit(plus) - logit(minus), or logit(plus) less the mean of all logits, which no probability notices; an effect is
positive where the feature supports it. `sae_core/model/final_norm.py` has w, and directions that do not stand in the
residual are brought there first. First order, e and the rest add up: sum_j f_j d_j . g + e . g + const . g = x . g.

Special tokens (BOS among them) and tokens of massive norm have no codes, as everywhere. Cost: a pass forward and back,
and for exact effects a row of one more pass for each feature and each of its controls.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from circuits.prompt_view.prompt_features import ActiveFeature, Cell, Likely, PromptFeatures, PromptToken
from editing.interventions.add_direction import AddDirection, written
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.final_norm import direct_weights
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site

LIKELY = 5
"""Next tokens that are listed at each position."""
RANDOM = 8
"""Random directions beside each exact effect."""
_ROWS, _LOGITS = 32, 2**24


@dataclass(frozen=True)
class NextToken:
    """What is read from the logits: logit(plus) - logit(minus), or logit(plus) less the mean of all."""

    plus: int
    minus: int | None = None

    def read(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows"]:
        """m of each row."""
        return logits[..., self.plus] - (logits.mean(-1) if self.minus is None else logits[..., self.minus])


@dataclass(frozen=True)
class PromptConfig:
    """What is read of a prompt."""

    features: int = 5
    """The most active features that are kept at each site and token."""
    exact: int = 8
    """Features of largest first-order effect, or direct effect at the end, that are ablated in passes of their own."""
    readout: NextToken | None = None
    """None: the model's most probable next token."""
    always: frozenset[FeatureId] = field(default_factory=frozenset)
    """Features that are kept wherever they are active."""
    seed: int = 0


@torch.no_grad()
def features_on(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], tokens: Int[Tensor, "1 pos"], config: PromptConfig
) -> PromptFeatures:
    """What is active on the prompt `tokens`, and what it does to the next token."""
    run = _run(model, sorted(dictionaries), tokens, config.readout)
    texts = [model.token_text(token) for token in tokens[0].tolist()]
    plus, minus = (None if t is None else model.token_text(t) for t in (run.readout.plus, run.readout.minus))
    last = str(plus) if minus is None else " - ".join(text.strip() or text for text in (str(plus), minus))
    follows = [*texts[1:], last]
    weights = run.direct_weights()
    active = [_Active.of(run, site, dictionary, weights) for site, dictionary in sorted(dictionaries.items())]
    sizes = torch.cat([each.size for each in active]).sort(descending=True).values[: config.exact]
    least = float(sizes[-1]) if len(sizes) else math.inf
    cells = tuple(cell for each in active for cell in each.cells(run, config, least))
    words = f"logit of {plus!r} less the mean of all" if minus is None else f"logit of {plus!r} - logit of {minus!r}"
    chance = float(run.logits(-1).softmax(-1)[run.readout.plus])
    value = float(run.readout.read(run.logits(-1)))
    return PromptFeatures(_tokens(run, texts, follows), cells, words, value, chance)


def _tokens(run: "_Run", texts: list[str], follows: list[str]) -> tuple[PromptToken, ...]:
    rows, before, content = [], None, run.model.content(run.tokens).tolist()
    for position, (text, after) in enumerate(zip(texts, follows, strict=True)):
        chance = run.logits(position).softmax(-1)
        top = chance.topk(min(LIKELY, len(chance)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        likely = tuple(Likely(run.model.token_text(token), p) for token, p in pairs)
        probability = None if before is None else float(before[run.tokens[position]])
        rows.append(PromptToken(text, not content[position], probability, likely, after))
        before = chance
    return tuple(rows)


@dataclass(frozen=True, eq=False)
class _Run:
    """One pass over the prompt, and the gradient of m at every site."""

    model: LanguageModel
    tokens: Int[Tensor, "pos"]
    readout: NextToken
    x: dict[Site, Float[Tensor, "pos _"]]
    gradient: dict[Site, Float[Tensor, "pos _"]]
    final: Float[Tensor, "pos d_model"]

    def logits(self, position: int) -> Float[Tensor, "vocab"]:
        return self.model.unembed(self.final[position])

    def direct_weights(self) -> Float[Tensor, "pos d_model"]:
        """w at every position: of the logit of the token that follows, and of m at the end."""
        following = self.tokens.roll(-1).to(self.final.device)
        weights = []
        for rows in torch.arange(len(following), device=self.final.device).split(max(1, _LOGITS // self.model.n_vocab)):

            def read(logits: Tensor, rows: Tensor = rows) -> Tensor:
                next_tokens = logits.gather(-1, following[rows, None])[:, 0] - logits.mean(-1)
                return torch.where(rows == len(following) - 1, self.readout.read(logits), next_tokens)

            weights.append(direct_weights(self.model, self.final[rows], read))
        return torch.cat(weights)

    def under(self, site: Site, change: Float[Tensor, "rows pos d_in"]) -> Float[Tensor, "rows"]:
        """m with `change` added at the site, a row each."""
        values, last = [], Site(self.model.n_layers - 1)
        for part in change.split(_ROWS):
            with self.model.hooks(AddDirection(site, part)):
                final = self.model.record(self.tokens.expand(len(part), -1), [last])[last][:, -1]
            values.append(self.readout.read(self.model.unembed(final)))
        return torch.cat(values)


@torch.enable_grad()
def _run(model: LanguageModel, sites: list[Site], tokens: Int[Tensor, "1 pos"], readout: NextToken | None) -> _Run:
    last = Site(model.n_layers - 1)
    nudges = [torch.zeros(1, tokens.shape[1], model.d_in(s), device=model.device, requires_grad=True) for s in sites]
    with model.hooks(*(AddDirection(site, nudge) for site, nudge in zip(sites, nudges, strict=True))):
        recorded = model.record(tokens, {*sites, last})
    logits = model.unembed(recorded[last][0, -1])
    readout = readout or NextToken(int(logits.argmax()))
    gradients = torch.autograd.grad(readout.read(logits), nudges, materialize_grads=True)
    x = {site: recorded[site][0].detach() for site in sites}
    gradient = {site: each[0] for site, each in zip(sites, gradients, strict=True)}
    return _Run(model, tokens[0], readout, x, gradient, recorded[last][0].detach())


@dataclass(frozen=True, eq=False)
class _Active:
    """The codes of a site that are not zero, one entry each, and what is not in the dictionary."""

    site: Site
    dictionary: Dictionary
    content: Bool[Tensor, "pos"]
    error: Float[Tensor, "pos d_in"]
    position: Int[Tensor, "entries"]
    latent: Int[Tensor, "entries"]
    value: Float[Tensor, "entries"]
    direct: Float[Tensor, "entries"]
    first: Float[Tensor, "entries"]

    @classmethod
    def of(cls, run: _Run, site: Site, dictionary: Dictionary, weights: Float[Tensor, "pos d_model"]) -> "_Active":
        x, content = run.x[site], run.model.content(run.tokens)
        f = dictionary.encode(x) * content.to(x.device)[:, None]
        position, latent = f.nonzero(as_tuple=True)
        value, directions = f[position, latent], dictionary.directions[latent]
        first = value * (directions * run.gradient[site][position]).sum(-1)
        direct = torch.zeros_like(value)
        if len(latent):
            different, which = latent.unique(return_inverse=True)
            through = written(run.model, site, dictionary.directions[different])[which]
            direct = value * (through * weights[position]).sum(-1)
        error = x - dictionary.decode(f)
        return cls(site, dictionary, content, error, position, latent, value, direct, first)

    @property
    def size(self) -> Float[Tensor, "entries"]:
        """By what entries are chosen to be ablated: the larger of first order and, at the prompt's end, direct."""
        at_end = self.position == len(self.content) - 1
        return torch.maximum(self.first.abs(), self.direct.abs() * at_end)

    def cells(self, run: _Run, config: PromptConfig, least: float) -> Iterable[Cell]:
        """The cells of the site; what is at least of size `least` is kept, and has exact effects."""
        strong = (self.size >= least) & (self.size > 0)
        by_position = self._by_position(config, strong)
        numbers = torch.stack([self.value, self.direct, self.first], 1).tolist()
        x = run.x[self.site]
        norm, error = x.norm(dim=-1).tolist(), self.error.norm(dim=-1).tolist()
        through = (self.error * run.gradient[self.site]).sum(-1).tolist()
        normal = inliers(x, outlier_norm_of(self.dictionary)).tolist()
        for place in self.content.nonzero()[:, 0].tolist():
            features = []
            for entry in by_position[place]:
                each = ActiveFeature(FeatureId(self.site, int(self.latent[entry])), *numbers[entry])
                features.append(self._exact(run, each, place, config.seed) if strong[entry] else each)
            yield Cell(
                self.site,
                place,
                int((self.position == place).sum()),
                norm[place],
                error[place] / norm[place] if norm[place] else math.nan,
                through[place],
                not normal[place],
                tuple(features),
            )

    def _by_position(self, config: PromptConfig, strong: Bool[Tensor, "entries"]) -> dict[int, list[int]]:
        """The entries that are kept at each position, the most active first."""
        always = torch.tensor([each.index for each in config.always if each.site == self.site], dtype=torch.long)
        wanted = strong | torch.isin(self.latent, always.to(self.latent.device))
        kept: dict[int, list[int]] = {place: [] for place in range(len(self.content))}
        n_listed = dict.fromkeys(kept, 0)
        for entry in self.value.abs().argsort(descending=True, stable=True).tolist():
            place = int(self.position[entry])
            n_listed[place] += 1
            if wanted[entry] or n_listed[place] <= config.features:
                kept[place].append(entry)
        return kept

    def _exact(self, run: _Run, each: ActiveFeature, position: int, seed: int) -> ActiveFeature:
        """The same with its exact effect, and that of steps of the same length along random directions."""
        direction = self.dictionary.directions[each.feature.index]
        generator = generator_for(seed, "prompt", each.feature, position)
        random = normalize(torch.randn(RANDOM, len(direction), generator=generator).to(direction), dim=-1)
        change = direction.new_zeros(2 + RANDOM, len(run.tokens), len(direction))
        change[0, position] = -each.activation * direction
        change[1:-1, position] = abs(each.activation) * random
        ablated, *stepped, unedited = run.under(self.site, change).tolist()
        control = math.fsum(abs(unedited - value) for value in stepped) / RANDOM
        return replace(each, exact=unedited - ablated, control=control)
