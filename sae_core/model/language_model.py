"""A language model whose activations can be read, edited and resumed from.

The only file that knows TransformerLens: a `LanguageModel` wraps its `TransformerBridge`. Three things
are done differently from the library's own calls, each measured to matter: `record` stops after the last
of its sites and never computes logits; `resume` really skips the blocks below (the stock
`start_at_layer` runs and discards them); and edits are plain PyTorch hooks on the library's hook points,
removed by their handles whatever happens.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core import checks
from sae_core.errors import UserError
from sae_core.formats.hook_names import bridge_hook
from sae_core.model.checkpoint import in_one_line, load_checkpoint
from sae_core.model.device import usable
from sae_core.model.fingerprint import Identity
from sae_core.model.fused import fused_attention, fused_from
from sae_core.model.generation import Sampling, generate, pieces
from sae_core.model.hub import model_source
from sae_core.model.middle import attach_middle
from sae_core.model.norms import compute_once
from sae_core.model.probe import probe
from sae_core.model.skipping import Halt, returns_tuples, skipped
from sae_core.model.vocabulary import Vocabulary
from sae_core.sites import Site, Stream

if TYPE_CHECKING:
    from transformers import Cache


@runtime_checkable
class Intervention(Protocol):
    """A site and a pure function of the activation there."""

    @property
    def site(self) -> Site: ...

    def __call__(self, h: Tensor) -> Tensor: ...


class LanguageModel(Vocabulary):
    """A frozen language model: logits from tokens, activations at sites, edits, and resumption from a layer.

    Tokens are `[batch, pos]`; shorter sequences are padded on the right, where a causal model cannot
    look, so no attention mask is needed: positions beyond a sequence's end hold nothing of meaning.
    """

    unfit: Mapping[Site, str] = MappingProxyType({})
    """Sites at which this family of models cannot be read or edited rightly, and why."""
    _widths: Mapping[Site, int] = MappingProxyType({})
    _n_edits: int = 0
    fused_from: int | None = None
    """Positions from which on attention is computed in one step; None: never (`fused.py`)."""

    lm_batch: int | None = None
    """Contexts that go through the model together where a text is read; None: as many as each kind of reading takes."""

    def __init__(self, bridge: Any, tokenizer: Any, *, bos_id: int | None, name: str):
        super().__init__(tokenizer, bos_id=bos_id)
        self.bridge, self.name = bridge, name
        self._points: dict[Site, Any] = {}
        self._identity = Identity()
        config = bridge.cfg
        self.n_layers, self.d_model = config.n_layers, config.d_model
        self.n_ctx, self.n_vocab = config.n_ctx, config.d_vocab
        self.device = torch.device(str(config.device))
        self._parallel = bool(getattr(config, "parallel_attn_mlp", False))

    # ---- places --------------------------------------------------------------------------------

    def check(self, site: Site) -> Site:
        """`site` itself; raises `UserError` if this model has no such site."""
        if not 0 <= site.layer < self.n_layers:
            raise UserError(
                f"no site {site} in this {self.n_layers}-layer model; layers run from 0 to {self.n_layers - 1}"
            )
        if reason := self.unfit.get(site):
            raise UserError(f"{site} of {self.name} cannot be used: {reason}")
        return site

    def d_in(self, site: Site) -> int:
        """Width of the activation at `site`."""
        self.check(site)
        return self._widths.get(site, self.d_model)

    def sites(self, stream: Stream = Stream.RESID_POST) -> list[Site]:
        """The sites of one stream that can be used, from the first layer on; raises `UserError` where there is none."""
        return self.offered(stream) or [self.check(Site(0, stream))]

    def offered(self, stream: Stream) -> list[Site]:
        """`sites`, which may be none."""
        return [site for layer in range(self.n_layers) if (site := Site(layer, stream)) not in self.unfit]

    def feeds(self, a: Site, b: Site) -> bool:
        """Whether the activation at `a` can affect the one at `b` within one token or later ones."""
        if a.layer != b.layer:
            return a.layer < b.layer
        attention = (Stream.ATTN_Z, Stream.ATTN_OUT)
        if self._parallel and a.stream in attention and b.stream not in attention:
            return b.stream is Stream.RESID_POST
        return a < b

    # ---- forward passes ------------------------------------------------------------------------

    @contextmanager
    def hooks(self, *interventions: Intervention) -> Iterator[None]:
        """Apply `interventions`, left to right, to every forward pass in the block; leaves no trace."""
        with ExitStack() as undo:
            for edit in interventions:
                undo.callback(self._attach(self.check(edit.site), partial(_edited, edit)))
            undo.callback(setattr, self, "_n_edits", self._n_edits)
            self._n_edits += len(interventions)
            yield

    @property
    def edited(self) -> bool:
        """Whether a forward pass now would be edited: inside `hooks`. Hooks put on the model by hand are not seen."""
        return self._n_edits > 0

    def record(self, tokens: Int[Tensor, "batch pos"], sites: Iterable[Site]) -> dict[Site, Tensor]:
        """Activations `[batch, pos, d_in]` at `sites`, from one forward pass without logits; float32 at least."""
        return self._record(sites, tokens.to(self.device))

    def resume(self, h: Float[Tensor, "batch pos d_model"], layer: int, sites: Iterable[Site]) -> dict[Site, Tensor]:
        """Activations at `sites`, all above `layer`, when `h` is the residual after block `layer`.

        Blocks up to `layer` are not run at all.
        """
        sites = list(sites)
        for site in sites:
            if site.layer <= layer:
                raise UserError(f"cannot resume after layer {layer} and read {site}: it lies below")
        h = h.to(self.dtype)
        with skipped(self.bridge, layer + 1, h, as_tuple=self._returns_tuples):
            return self._record(sites, h, start_at_layer=layer + 1)

    def extend(
        self,
        tokens: Int[Tensor, "batch pos"],
        cache: "Cache",
        attended: Int[Tensor, "batch seen"],
        places: Int[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual after the last block for tokens that follow those in `cache`, which is extended by them.

        `attended` is 1 where a token, in the cache or given, is not padding; `places` count from 0 without it.
        """
        last = Site(self.n_layers - 1)
        context = {"use_cache": True, "past_key_values": cache, "attention_mask": attended, "position_ids": places}
        return self._record([last], tokens, **context)[last]

    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Next-token logits at every position."""
        last = Site(self.n_layers - 1)
        return self.unembed(self.record(tokens, [last])[last])

    def final(self, h: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The residual after the last block when `h` is the residual after block `layer`."""
        last = Site(self.n_layers - 1)
        return h if layer == last.layer else self.resume(h, layer, [last])[last]

    def unembed(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Logits of final residuals: norm, unembedding and, where the model has one, its cap on logits."""
        flat = h.reshape(-1, 1, h.shape[-1]).to(self.dtype)
        logits = self.bridge.adapter.apply_output_logits_transform(self.bridge.unembed(self.bridge.ln_final(flat)))
        return _widened(logits).reshape(*h.shape[:-1], logits.shape[-1])

    def generate(self, prompt: str, n_new: int = 40, *, temperature: float = 0.0, seed: int = 0) -> str:
        """The text that goes on from `prompt`: at most `n_new` tokens, fewer where the model ends it.

        BOS goes before the prompt where the model has one. At temperature 0 the most probable token is taken; above,
        tokens are drawn by `seed`. Inside `with model.hooks(...)` the edited model writes. Raises `UserError` for a
        prompt that is empty or has no room for `n_new` tokens. `generation.generate` has more options.
        """
        words = self.to_ids(prompt)
        row = self.with_bos(words, prepend=bool(words))
        (tokens,) = generate(self, [row], n_new, seed=seed, sampling=Sampling(temperature))
        return "".join(pieces(self, row, tokens))

    def _record(self, sites: Iterable[Site], inputs: Tensor, **options: Any) -> dict[Site, Tensor]:
        pending = {self.check(site) for site in sites}
        kept: dict[Site, Tensor] = {}

        with ExitStack() as undo:
            for site in pending:
                undo.callback(self._attach(site, partial(_keep, kept, len(pending), site)))
            if pending:
                with self._attention(inputs.shape[1], options), suppress(Halt):
                    self.bridge(inputs, **({"use_cache": False} | options))
        return {site: kept[site] for site in sorted(kept)}

    def _attention(self, n_pos: int, options: dict[str, Any]) -> AbstractContextManager[None]:
        is_long = self.fused_from is not None and n_pos >= self.fused_from
        return fused_attention(self.bridge) if is_long and "past_key_values" not in options else nullcontext()

    @cached_property
    def _returns_tuples(self) -> bool:
        return returns_tuples(self.bridge, self.device)

    def _attach(self, site: Site, function: Callable[..., Tensor | None]) -> Callable[[], None]:
        """Call `function(h, hook=...)` at a site; returns what undoes it.

        The hook stands in the library's own list, by which some of its blocks decide what to compute (Granite).
        """
        if site.stream is Stream.RESID_MID:
            return attach_middle(self.bridge, site.layer, function)
        if site not in self._points:  # the library collects all of its hook points each time it is asked
            self._points[site] = self.bridge.hook_dict[bridge_hook(site)]
        handle = self._points[site].add_hook(function)
        return partial(_detach, self._points[site], handle)

    def at_once(self, usual: int) -> int:
        """Contexts that go through the model together: `lm_batch`, or else the usual number."""
        return self.lm_batch or usual

    @property
    def block_weights(self) -> int:
        """How large the model is: the weights of its blocks, about, 12 n_layers d_model^2."""
        return 12 * self.n_layers * self.d_model**2

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the model computes."""
        return self.bridge.cfg.dtype

    def fingerprint(self) -> str:
        """Digests of the configuration, of every weight and the tokenizer (`fingerprint.py`); equal on every device."""
        return self._identity.fingerprint(self.bridge, self.tokenizer)


def _widened(h: Tensor) -> Tensor:
    """In float32 at least, as dictionaries and edits compute; heads, which the library holds apart, side by side."""
    h = h.flatten(2) if h.ndim == 4 else h
    return h if h.dtype is torch.float64 else h.float()


def _edited(edit: Intervention, h: Tensor, hook: Any) -> Tensor:
    return edit(_widened(h)).to(h.dtype).reshape(h.shape)


def _keep(kept: dict[Site, Tensor], n: int, site: Site, h: Tensor, hook: Any) -> None:
    kept[site] = _widened(h)
    if len(kept) == n:
        raise Halt


def _detach(point: Any, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks.remove(handle)


def load_model(
    name: str | Path, *, device: str | torch.device | None = None, dtype: str = "auto", lm_batch: int | None = None
) -> LanguageModel:
    """The model `"storybook"`, one in a local directory in Hugging Face layout, or one of that name on the hub.

    A name with a path separator that exists, and every `Path`, is a directory and never looked for on the network.
    `dtype` is the model's precision (`precision.Precision`); activations are handed out in float32 at least. `lm_batch`
    contexts of a text go through it together, by default 16 or 32, or as many as its processor takes well. What its
    family cannot do stands in `unfit`. Raises `UserError` for a missing directory or name, an incomplete checkpoint, a
    device that cannot be used, and within seconds where the hub does not answer.
    """
    if lm_batch is not None:
        checks.whole("lm_batch", lm_batch, 1)
    source, device = model_source(name), usable(device)

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    plain, tokenizer, bos_id = load_checkpoint(source, str(name), device=device, dtype=dtype)
    exact = "" if plain.dtype is torch.float32 else f" in {plain.dtype}; perhaps it can in float32 (--dtype)"
    with in_one_line(f"{name} is a {type(plain).__name__}, which cannot be run here{exact}"):
        bridge = build_bridge_from_module(plain, type(plain).__name__, hf_config=plain.config, device=device)
        bridge.eval()
        bridge.requires_grad_(False)
        compute_once(bridge)
        full = str(source.resolve()) if isinstance(source, Path) and name != "storybook" else str(name)
        model = LanguageModel(bridge, tokenizer, bos_id=bos_id, name=full)
        model.unfit, model._widths = probe(model)
        model.fused_from, model.lm_batch = fused_from(model), lm_batch
        for stream, reason in {site.stream: reason for site, reason in model.unfit.items()}.items():
            if stream is not Stream.RESID_MID:  # which no block needs to have
                logging.getLogger(__name__).warning("%s of %s cannot be used: %s", stream, name, reason)
        return model
