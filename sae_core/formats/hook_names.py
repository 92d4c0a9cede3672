"""Where other people's dictionaries belong: what they call hook points, modules and folders."""

import re
from pathlib import Path

from sae_core.errors import UserError
from sae_core.sites import Site, Stream

_WRITTEN = {
    Stream.RESID_POST: "hook_resid_post",
    Stream.MLP_OUT: "hook_mlp_out",
    Stream.MLP_HIDDEN: "mlp.hook_post",
    Stream.ATTN_OUT: "hook_attn_out",
    Stream.ATTN_Z: "attn.hook_z",
    Stream.RESID_MID: "hook_resid_mid",
}
"""What TransformerLens calls a stream within its block, and so do other tools' files and ours. The outputs of MLP and
attention are what is added to the residual, behind the norms that Gemma 2 has there."""
_BRIDGE = _WRITTEN | {Stream.RESID_POST: "hook_out", Stream.MLP_HIDDEN: "mlp.out.hook_in"}
_BRIDGE |= {Stream.ATTN_Z: "attn.o.hook_in"}
"""The hook points of a `TransformerBridge` at which activations are read and edited (`resid_mid`: `middle.py`)."""
_STREAMS = {name: stream for names in (_WRITTEN, _BRIDGE) for stream, name in names.items()}
_PLAIN = {"resid": "hook_resid_post", "mlp": "mlp.hook_out", "attn": "attn.hook_out"}
_OPENAI = {
    "resid_post_mlp": "hook_resid_post",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_delta_attn": "hook_attn_out",
    "mlp_post_act": "mlp.hook_post",
}


def hook_name(site: Site) -> str:
    """TransformerLens' name of a site, as other tools write it into their files; `site_of` is the inverse."""
    return f"blocks.{site.layer}.{_WRITTEN[site.stream]}"


def bridge_hook(site: Site) -> str:
    """The key of a site in a `TransformerBridge`'s `hook_dict`."""
    return f"blocks.{site.layer}.{_BRIDGE[site.stream]}"


def site_of(name: str) -> Site | None:
    """The site that a hook point or module is in every model; None where it is none, or the model must be asked.

    The outputs of modules within a block are such (`layers.3.mlp`, `blocks.3.mlp.hook_out`): what is added to the
    residual is another tensor where a norm or a factor follows (see `sae_core/model/named_sites.py`). The residual
    before a block is the one after the block before it.
    """
    hook = re.fullmatch(r"blocks\.(\d{1,4})\.(.+)", name)
    if hook and hook[2] in ("hook_resid_pre", "hook_in") and int(hook[1]) > 0:
        return Site(int(hook[1]) - 1)
    if hook and hook[2] in _STREAMS:
        return Site(int(hook[1]), _STREAMS[hook[2]])
    heads = re.fullmatch(r"(?:.+\.)?layers\.(\d{1,4})\.self_attn\.o_proj\.input", name)
    if heads:
        return Site(int(heads[1]), Stream.ATTN_Z)
    block = re.fullmatch(r"(?:.+\.)?(?:layers|h|blocks)\.(\d{1,4})", name)
    return Site(int(block[1])) if block else None


def parse_site(name: str) -> Site:
    """The site of that name, ours or a hook point's in every model; raises `UserError` for any other text."""
    return site_of(name) or Site.parse(name)


def place_in(name: str) -> str | None:
    """The hook point or module that a folder or a setting names; None for other names.

    Hugging Face modules (`layers.3.mlp`) as they are; `mlp_out_layer_3` is the output of a module.
    """
    plain = re.fullmatch(r"(resid|mlp|attn)(?:_post|_out)?_layer_?(\d{1,4})", name)
    if plain:
        return f"blocks.{plain[2]}.{_PLAIN[plain[1]]}"
    return name if re.search(r"(?:^|\.)(?:layers|h|blocks)\.\d+", name) else None


def place_of_openai(path: Path) -> str | None:
    """The hook point of a file as OpenAI publishes it: `resid_post_mlp_v5_32k/autoencoders/8.pt`."""
    match = re.search(rf"/({'|'.join(_OPENAI)})[^/]*/(?:autoencoders/)?(\d{{1,4}})\.pt$", str(path.absolute()))
    return f"blocks.{match[2]}.{_OPENAI[match[1]]}" if match else None


def layer_in(name: str | None) -> int | None:
    """The first number between dots."""
    match = re.search(r"\.(\d{1,4})(?:\.|$)", name or "")
    return int(match[1]) if match else None


def place_of_gemma_scope(path: Path) -> tuple[str | None, str | None]:
    """(Hook point, model) of a file as Google publishes it: `gemma-scope-2b-pt-res/layer_20/width_16k/...`.

    The second release has `resid_post/layer_20_...`. A layer alone does not say which stream. Attention's autoencoders
    of the first (`-att`) read the heads before they are mixed (Lieberum et al. 2024, section 3).
    """
    where = "/".join(path.absolute().parts[-8:])
    for other in ("transcoder", "/clt", "embedding", "attn_out"):
        if other in where:
            raise UserError(f"it belongs at {other.strip('-/')} ({where}), which is no site here")
    layers = re.findall(r"layer_(\d{1,4})", where)
    patterns = {r"-res/|resid_post": Stream.RESID_POST, r"-mlp/|mlp_out": Stream.MLP_OUT, "-att/": Stream.ATTN_Z}
    streams = [stream for pattern, stream in patterns.items() if re.search(pattern, where)]
    place = hook_name(Site(int(layers[-1]), streams[0])) if layers and len(streams) == 1 else None
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)", where)
    return place, f"google/gemma-2-{release[1]}{'-it' * (release[2] == 'it')}" if release else None
