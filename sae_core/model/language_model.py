"""A language model whose activations can be read, edited and resumed from.

The only file that knows TransformerLens: a `LanguageModel` wraps its `TransformerBridge`. Three things
are done differently from the library's own calls, each measured to matter: `record` stops after the last
of its sites and never computes logits; `resume` really skips the blocks below (the stock
`start_at_layer` runs and discards them); and edits are plain PyTorch hooks on the library's hook points,
removed by their handles whatever happens.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.errors import UserError
from sae_core.formats.hook_names import bridge_hook
from sae_core.model.fingerprint import fingerprint_of
from sae_core.model.generation import Sampling, generate, pieces
from sae_core.model.hub import model_source
from sae_core.sites import Site, Stream

if TYPE_CHECKING:
    from transformers import Cache


@runtime_checkable
class Intervention(Protocol):
    """A site and a pure function of the activation there."""

    @property
    def site(self) -> Site: ...

    def __call__(self, h: Tensor) -> Tensor: ...


class _Halt(Exception):
    """Raised inside a forward pass when all sites have been recorded."""


class LanguageModel:
    """A frozen language model: logits from tokens, activations at sites, edits, and resumption from a layer.

    Tokens are `[batch, pos]`; shorter sequences are padded on the right, where a causal model cannot
    look, so no attention mask is needed: positions beyond a sequence's end hold nothing of meaning.
    """

    def __init__(self, bridge, *, name: str):
        self.bridge, self.name = bridge, name
        config = bridge.cfg
        self.n_layers, self.d_model = config.n_layers, config.d_model
        self.n_ctx, self.n_vocab = config.n_ctx, config.d_vocab
        self.device = torch.device(str(config.device))
        self._parallel = bool(getattr(config, "parallel_attn_mlp", False))
        self.tokenizer = bridge.tokenizer
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        # a tokenizer may use one token for the unknown and the end (GPT-2): that one is special
        special |= {i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None}
        self.special_ids = frozenset(special)
        self.bos_id = next(
            (i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None), None
        )

    # ---- places --------------------------------------------------------------------------------

    def check(self, site: Site) -> Site:
        """`site` itself; raises `UserError` if this model has no such site."""
        if not 0 <= site.layer < self.n_layers:
            raise UserError(
                f"no site {site} in this {self.n_layers}-layer model; layers run from 0 to {self.n_layers - 1}"
            )
        return site

    def d_in(self, site: Site) -> int:
        """Width of the activation at `site`."""
        self.check(site)
        return self.bridge.cfg.d_mlp if site.stream is Stream.MLP_HIDDEN else self.d_model

    def sites(self, stream: Stream = Stream.RESID_POST) -> list[Site]:
        """The sites of one stream, from the first layer to the last."""
        return [Site(layer, stream) for layer in range(self.n_layers)]

    def feeds(self, a: Site, b: Site) -> bool:
        """Whether the activation at `a` can affect the one at `b` within one token or later ones."""
        if a.layer != b.layer:
            return a.layer < b.layer
        if self._parallel and a.stream is Stream.ATTN_OUT:
            return b.stream is Stream.RESID_POST
        return a < b

    # ---- text ----------------------------------------------------------------------------------

    def to_ids(self, text: str) -> list[int]:
        """Token ids of `text` alone, without BOS or any other special token; raises `UserError` for what is no text."""
        try:
            text.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:  # half of a surrogate pair, as JSON may hold
            raise UserError(f"{text!r:.60} is no text that has tokens: {error}") from error
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def continuation_ids(self, prompt: str, text: str) -> list[int]:
        """Token ids of `text` where it continues `prompt`; raises `UserError` if the two fuse into one token."""
        before, both = self.to_ids(prompt), self.to_ids(prompt + text)
        if both[: len(before)] != before or len(both) == len(before):
            raise UserError(f"{text!r} does not stand apart from {prompt[-20:]!r} in this model's tokens")
        return both[len(before) :]

    def token_text(self, token: int) -> str:
        """One token as text, with a leading space where it has one."""
        piece = self.tokenizer.convert_ids_to_tokens([token])[0]
        if piece is None:  # rows of the embedding beyond the tokenizer
            return f"<{token}>"
        if piece[:1] in ("Ġ", "▁"):
            return " " + self.tokenizer.convert_tokens_to_string([piece]).strip()
        return self.tokenizer.convert_tokens_to_string([piece]) or piece

    def content(self, tokens: Int[Tensor, "*batch"]) -> Tensor:
        """Boolean mask of the tokens that are neither BOS nor any other special token."""
        mask = torch.ones_like(tokens, dtype=torch.bool)
        for special in self.special_ids:
            mask &= tokens != special
        return mask

    # ---- forward passes ------------------------------------------------------------------------

    @contextmanager
    def hooks(self, *interventions: Intervention) -> Iterator[None]:
        """Apply `interventions`, left to right, to every forward pass in the block; leaves no trace."""
        with ExitStack() as undo:
            for edit in interventions:

                def hook(module, args, h, edit=edit):
                    return edit(_widened(h)).to(h.dtype)

                undo.callback(self._point(edit.site).register_forward_hook(hook).remove)
            yield

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
        with self._skip(layer + 1):
            return self._record(sites, h.to(self._dtype), start_at_layer=layer + 1)

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
        flat = h.reshape(-1, 1, h.shape[-1]).to(self._dtype)
        logits = self.bridge.adapter.apply_output_logits_transform(self.bridge.unembed(self.bridge.ln_final(flat)))
        return _widened(logits).reshape(*h.shape[:-1], logits.shape[-1])

    def generate(self, prompt: str, n_new: int = 40, *, temperature: float = 0.0, seed: int = 0) -> str:
        """The text that goes on from `prompt`: at most `n_new` tokens, fewer where the model ends it.

        BOS goes before the prompt where the model has one. At temperature 0 the most probable token is taken; above,
        tokens are drawn by `seed`. Inside `with model.hooks(...)` the edited model writes. Raises `UserError` for a
        prompt that is empty or has no room for `n_new` tokens. `generation.generate` has more options.
        """
        words = self.to_ids(prompt)
        row = [self.bos_id, *words] if self.bos_id is not None and words else words
        (tokens,) = generate(self, [row], n_new, seed=seed, sampling=Sampling(temperature))
        return "".join(pieces(self, row, tokens))

    def _record(self, sites: Iterable[Site], inputs: Tensor, **options: Any) -> dict[Site, Tensor]:
        pending = {self.check(site) for site in sites}
        kept: dict[Site, Tensor] = {}

        with ExitStack() as undo:
            for site in pending:

                def keep(module, args, h, site=site):
                    kept[site] = _widened(h)
                    if len(kept) == len(pending):
                        raise _Halt

                undo.callback(self._point(site).register_forward_hook(keep).remove)
            if pending:
                with suppress(_Halt):
                    self.bridge(inputs, **({"use_cache": False} | options))
        return {site: kept[site] for site in sorted(kept)}

    @contextmanager
    def _skip(self, n_blocks: int) -> Iterator[None]:
        """Turn the first blocks into identities.

        `forward` goes into the instance dictionary because the library redirects plain attribute
        assignment to the wrapped Hugging Face module, where it would stay.
        """
        blocks = list(self.bridge.blocks[:n_blocks])

        def identity(*args, **kwargs):
            return args[0] if args else kwargs["hidden_states"]

        for block in blocks:
            block.__dict__["forward"] = identity
        try:
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)

    def _point(self, site: Site) -> torch.nn.Module:
        return self.bridge.hook_dict[bridge_hook(self.check(site))]

    @property
    def _dtype(self) -> torch.dtype:
        return self.bridge.cfg.dtype

    def fingerprint(self) -> str:
        """A short hash of the architecture and of a sample of every weight; equal on every device."""
        return fingerprint_of(self.bridge.cfg, self.bridge.original_model)


def _widened(h: Tensor) -> Tensor:
    """In float32 at least: dictionaries and edits do not compute in half precision."""
    return h if h.dtype is torch.float64 else h.float()


def load_model(name: str | Path, *, device: str | None = None) -> LanguageModel:
    """The model `"storybook"`, one in a local directory in Hugging Face layout, or one of that name on the hub.

    A name with a path separator that exists, and every `Path`, is a directory and never looked for on the
    network. Raises `UserError` for a missing directory or name, and within seconds where the hub does
    not answer.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    source = model_source(name)

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    from safetensors import SafetensorError
    from transformer_lens.model_bridge import TransformerBridge

    try:
        bridge = TransformerBridge.boot_transformers(str(source), device=device)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} could not be loaded as a language model: {line}") from error
    bridge.eval()
    bridge.requires_grad_(False)
    if bridge.tokenizer is None or len(bridge.tokenizer) <= len(bridge.tokenizer.all_special_ids):
        raise UserError(f"{name} has no tokenizer; put its tokenizer.json beside the weights")
    model = LanguageModel(
        bridge, name=str(source.resolve()) if isinstance(source, Path) and name != "storybook" else str(name)
    )
    missing = [s for s in model.sites() if bridge_hook(s) not in bridge.hook_dict]
    if missing:
        raise UserError(f"{name} is no decoder-only language model of equal blocks; only those are supported")
    _check_head(model)
    return model


def _check_head(model: LanguageModel) -> None:
    """Refuse models that do more after the last block than norm and unembed."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    with torch.no_grad():
        difference = (model.bridge(tokens) - model.logits(tokens)).abs().max().item()
    if not difference < 1e-2:
        raise UserError(f"{model.name} does more after its last block than norm and unembedding; it is not supported")
