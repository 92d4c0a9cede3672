"""What a family of models cannot do, found out on one short context before any work.

A site is offered where its activation is recorded as `[batch, pos, d_in]`, an edit of it moves the logits, putting it
back as it was does not, and attention and MLP outputs of a block add up to what it adds to the residual. Every layer is
recorded; of layers made of the same modules one is edited. All edits share one batch, a row each: four short passes.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sae_core.errors import UserError
from sae_core.formats.hook_names import bridge_hook
from sae_core.model.middle import writer_of
from sae_core.sites import Site, Stream

N_POS = 2
SAME = 1e-4
"""Logits and residuals that differ by less than this share of the largest are the same in float32."""
_ABSENT = dict.fromkeys(Stream, "its blocks have no such part") | {
    Stream.MLP_HIDDEN: "its blocks have no one hidden layer, as where each expert has its own",
    Stream.RESID_MID: "attention and MLP of a block read the same residual, side by side; none is between them",
}


@runtime_checkable
class Probed(Protocol):
    """What is asked of a language model."""

    bridge: Any
    name: str
    device: torch.device
    n_layers: int
    d_model: int

    @property
    def dtype(self) -> torch.dtype:
        """In which precision it computes."""
        ...

    def record(self, tokens: Tensor, sites: Iterable[Site]) -> dict[Site, Tensor]:
        """Activations at `sites`."""
        ...

    def resume(self, h: Tensor, layer: int, sites: Iterable[Site]) -> dict[Site, Tensor]:
        """Activations at `sites`, from the residual after a layer."""
        ...

    def hooks(self, *interventions: Any) -> AbstractContextManager[None]:
        """Edits of every pass in the block."""
        ...

    def unembed(self, h: Tensor) -> Tensor:
        """Logits of final residuals."""
        ...


@dataclass(frozen=True)
class _RowEdit:
    """Pushes one row of a batch by a pattern as large as its activation; the other rows are put back as they were."""

    site: Site
    row: int

    def __call__(self, h: Tensor) -> Tensor:
        pushed, pattern = h.clone(), torch.linspace(-1, 1, h.shape[-1], device=h.device)
        pushed[self.row] += (1 + h[self.row].abs().max()) * pattern
        return pushed


@torch.no_grad()
def probe(model: Probed) -> tuple[dict[Site, str], dict[Site, int]]:
    """(Sites that cannot be used and why, the widths of all others).

    Raises `UserError` for a model that is not blocks around a residual, with a norm and an unembedding behind them.
    """
    sites = [Site(layer, stream) for stream in Stream for layer in range(model.n_layers)]
    unfit = {site: _ABSENT[site.stream] for site in sites if bridge_hook(site) not in model.bridge.hook_dict}
    unfit |= {
        site: "what attention adds to the residual is no module's output"
        for site in sites
        if site.stream is Stream.RESID_MID and site not in unfit and writer_of(model.bridge, site.layer) is None
    }
    edited = _one_of_each_kind(model, [site for site in sites if site not in unfit])
    tokens = torch.arange(N_POS, device=model.device).expand(len(edited) + 1, N_POS)
    h = model.record(tokens, [site for site in sites if site not in unfit])
    for site in sites:
        if site not in unfit and (reason := _misshapen(h.get(site), site, len(tokens), model.d_model)):
            unfit[site] = reason
    _check_residual(model, tokens, h, unfit)
    for layer in range(1, model.n_layers):
        parts = [Site(layer, Stream.ATTN_OUT), Site(layer, Stream.MLP_OUT)]
        terms = (Site(layer - 1), *parts, Site(layer))
        if not unfit.keys() & parts and not _add_up([h[site] for site in terms], model):
            both = [Site(each, part.stream) for each in (layer - 1, layer) for part in parts]
            unfit |= dict.fromkeys(both, "the two outputs of a block are not what it adds to the residual")
    between = (site for site in sites if site.stream is Stream.RESID_MID and site not in unfit)
    unfit |= {site: unfit[wrong] for site in between if (wrong := Site(site.layer, Stream.ATTN_OUT)) in unfit}
    fit = {site: alike for site, alike in edited.items() if site not in unfit}
    unfit |= _without_effect(model, tokens, model.unembed(h[Site(model.n_layers - 1)]), fit)
    return unfit, {site: h[site].shape[-1] for site in sites if site not in unfit}


def _one_of_each_kind(model: Probed, sites: list[Site]) -> dict[Site, list[Site]]:
    """The last site of each stream in layers made of the same modules, with all those that it stands for."""
    kinds = [tuple((name, type(part)) for name, part in block.named_modules()) for block in model.bridge.blocks]
    alike: dict[Any, list[Site]] = {}
    for site in sites:
        alike.setdefault((kinds[site.layer], site.stream), []).append(site)
    return {group[-1]: group for group in alike.values()}


def _misshapen(h: Tensor | None, site: Site, n_rows: int, d_model: int) -> str | None:
    if h is None:
        return "it is never computed apart"
    fits = h.shape[:-1] == (n_rows, N_POS) and (
        h.shape[-1] == d_model or site.stream in (Stream.MLP_HIDDEN, Stream.ATTN_Z)
    )
    return None if fits else f"it comes as {list(h.shape)} for {n_rows} contexts of {N_POS} tokens"


def same(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors are equal up to rounding in a precision."""
    return bool((a - b).abs().max() <= max(SAME, 16 * torch.finfo(dtype).eps) * b.abs().max())


def _add_up(terms: Sequence[Tensor], model: Probed) -> bool:
    """Whether the last term is the sum of the others, each coordinate up to its rounding: a few are far larger."""
    *parts, whole = terms
    rounding = 8 * torch.finfo(model.dtype).eps * torch.stack([*terms]).abs().sum(0)
    return bool(((torch.stack(parts).sum(0) - whole).abs() <= rounding).all())


def _without_effect(model: Probed, tokens: Tensor, clean: Tensor, edited: Mapping[Site, list[Site]]) -> dict[Site, str]:
    """The sites an edit of which changes nothing, or where putting back what was read changes something."""
    last = Site(model.n_layers - 1)
    with model.hooks(*(_RowEdit(site, row) for row, site in enumerate(edited, 1))):
        logits = model.unembed(model.record(tokens, [last])[last])
    if not same(logits[0], clean[0], model.dtype):
        reason = "putting an activation back as it was changes the logits"
        return {site: reason for alike in edited.values() for site in alike}
    idle = [alike for row, alike in enumerate(edited.values(), 1) if torch.equal(logits[row], clean[row])]
    return {site: "an edit of it changes nothing" for alike in idle for site in alike}


def _check_residual(model: Probed, tokens: Tensor, h: Mapping[Site, Tensor], unfit: Mapping[Site, str]) -> None:
    """Refuse what is not blocks that hand on a residual alone, with a norm and an unembedding behind them."""
    residual = [Site(layer) for layer in range(model.n_layers)]
    if unfit.keys() & residual:
        raise UserError(f"{model.name} is no decoder-only language model of equal blocks; only those are supported")
    last, middle = residual[-1], residual[(model.n_layers - 1) // 2]
    if not same(model.unembed(h[last]), model.bridge(tokens, use_cache=False), model.dtype):
        raise UserError(f"{model.name} does more after its last block than norm and unembedding; it is not supported")
    if middle != last and not same(model.resume(h[middle], middle.layer, [last])[last], h[last], model.dtype):
        raise UserError(f"{model.name} hands on more from block to block than the residual; it is not supported")
