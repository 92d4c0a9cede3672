"""Where other people's dictionaries belong: their names of hook points, modules and folders, as sites."""

import re
from dataclasses import dataclass
from pathlib import Path

from sae_core.errors import UserError
from sae_core.sites import Site, Stream


@dataclass(frozen=True)
class _HookPoint:
    """What TransformerLens calls a stream within its block."""

    written: str
    """In other tools' files, and in ours."""
    bridge: str
    """The hook point of a `TransformerBridge` at which activations are read and edited."""
    others: tuple[str, ...] = ()
    """Further names in files."""


_POINTS = {
    Stream.RESID_POST: _HookPoint("hook_resid_post", "hook_out"),
    Stream.MLP_OUT: _HookPoint("hook_mlp_out", "hook_mlp_out", ("mlp.hook_out",)),
    Stream.MLP_HIDDEN: _HookPoint("mlp.hook_post", "mlp.out.hook_in"),
    Stream.ATTN_OUT: _HookPoint("hook_attn_out", "hook_attn_out", ("attn.hook_out",)),
}
"""The outputs of MLP and attention are what is added to the residual, behind the norms that Gemma 2 has there."""
_STREAMS = {name: stream for stream, p in _POINTS.items() for name in (p.written, p.bridge, *p.others)}
_MODULES = {
    "": Stream.RESID_POST,
    ".mlp": Stream.MLP_OUT,
    ".attn": Stream.ATTN_OUT,
    ".self_attn": Stream.ATTN_OUT,
    ".attention": Stream.ATTN_OUT,
}
_PLAIN = {"resid": Stream.RESID_POST, "mlp": Stream.MLP_OUT, "attn": Stream.ATTN_OUT}
_OPENAI = {
    "resid_post_mlp": Stream.RESID_POST,
    "resid_delta_mlp": Stream.MLP_OUT,
    "resid_delta_attn": Stream.ATTN_OUT,
    "mlp_post_act": Stream.MLP_HIDDEN,
}


def _elsewhere(name: str) -> UserError:
    return UserError(
        f"it belongs at {name}, which is no site here; sites are the outputs of a block, of its attention and of its "
        "MLP, and the MLP's hidden layer"
    )


def hook_name(site: Site) -> str:
    """TransformerLens' name of a site, as other tools write it into their files; `site_of_hook` is the inverse."""
    return f"blocks.{site.layer}.{_POINTS[site.stream].written}"


def bridge_hook(site: Site) -> str:
    """The key of a site in a `TransformerBridge`'s `hook_dict`."""
    return f"blocks.{site.layer}.{_POINTS[site.stream].bridge}"


def site_of_hook(name: str) -> Site:
    """The site that TransformerLens calls `name`; raises `UserError` where it is none of ours.

    The residual before a block is the one after the block before it.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    layer, point = (int(match[1]), match[2]) if match else (0, "")
    if point in ("hook_resid_pre", "hook_in") and layer > 0:
        return Site(layer - 1)
    if point not in _STREAMS:
        raise _elsewhere(name)
    return Site(layer, _STREAMS[point])


def site_of_module(name: str) -> Site | None:
    """The site of a Hugging Face module (`layers.3.mlp`) or a name like `resid_post_layer_3`; None for other names.

    Raises `UserError` for modules within a block that are none of ours.
    """
    match = re.fullmatch(r"(?:.+\.)?(?:layers|h|blocks)\.(\d+)((?:\.\w+)*)", name)
    if match and match[2] not in _MODULES:
        raise _elsewhere(name)
    if match:
        return Site(int(match[1]), _MODULES[match[2]])
    match = re.fullmatch(r"(resid|mlp|attn)(?:_post|_out)?_layer_?(\d+)", name)
    return Site(int(match[2]), _PLAIN[match[1]]) if match else None


def site_of_openai(path: Path) -> Site | None:
    """The site of a file as OpenAI publishes it: `resid_post_mlp_v5_32k/autoencoders/8.pt`."""
    match = re.search(
        r"/((?:resid_(?:post|delta)|mlp)_(?:mlp|attn|post_act))[^/]*/(?:autoencoders/)?(\d+)\.pt$", str(path.absolute())
    )
    if match and match[1] not in _OPENAI:
        raise _elsewhere(match[1])
    return Site(int(match[2]), _OPENAI[match[1]]) if match else None


def site_of_gemma_scope(path: Path) -> tuple[Site | None, str | None]:
    """(Site, model) of a file as Google publishes it: `gemma-scope-2b-pt-res/layer_20/width_16k/...`.

    The second release has `resid_post/layer_20_...`. A layer alone does not say which stream, and attention's
    autoencoders there read the heads before they are mixed.
    """
    where = "/".join(path.absolute().parts[-8:])
    for other in ("transcoder", "/clt", "embedding", "-att/", "attn_out"):
        if other in where:
            raise _elsewhere(f"{other.strip('-/')} ({where})")
    layers = re.findall(r"layer_(\d+)", where)
    patterns = {r"-res/|resid_post": Stream.RESID_POST, r"-mlp/|mlp_out": Stream.MLP_OUT}
    streams = [stream for pattern, stream in patterns.items() if re.search(pattern, where)]
    site = Site(int(layers[-1]), streams[0]) if layers and len(streams) == 1 else None
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)", where)
    return site, f"google/gemma-2-{release[1]}{'-it' * (release[2] == 'it')}" if release else None
