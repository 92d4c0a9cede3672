"""Names: where activations are read and written (`Site`) and which latent is meant (`FeatureId`)."""

import re
from dataclasses import dataclass
from enum import StrEnum

from sae_core.errors import UserError, did_you_mean


class Stream(StrEnum):
    """Which vector of a block, in the order in which a sequential block computes them."""

    ATTN_Z = "attn_z"
    """What the heads of attention read, side by side, before it is mixed into what attention writes."""
    ATTN_OUT = "attn_out"
    RESID_MID = "resid_mid"
    """The residual between attention and MLP, where blocks run one after the other."""
    MLP_HIDDEN = "mlp_hidden"
    MLP_OUT = "mlp_out"
    RESID_POST = "resid_post"


BEFORE = "resid_pre"
"""The residual before a block: another name of `resid_post` one layer below."""
_LAYER, _LATENT = (re.compile(rf"\d{{1,{digits}}}") for digits in (4, 12))
"""Numbers that may stand in a name: longer ones are none, and Python does not read the longest."""
_ORDER = {stream: rank for rank, stream in enumerate(Stream)}


@dataclass(frozen=True)
class Site:
    """A place where activations are read and written: a layer and a stream; `"resid_post.3"` as text.

    Sites sort by layer, then by stream. Whether one site can affect another is the model's to say
    (`LanguageModel.feeds`).
    """

    layer: int
    stream: Stream = Stream.RESID_POST

    def __lt__(self, other: "Site") -> bool:
        return (self.layer, _ORDER[self.stream]) < (other.layer, _ORDER[other.stream])

    def __str__(self) -> str:
        return f"{self.stream}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site named by `str(site)`; raises `UserError` on any other text.

        `blocks.3.hook_resid_post` is another spelling of `resid_post.3`, and `resid_pre.3` of `resid_post.2`.
        """
        hook = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", text)
        stream, _, layer = f"{hook[2]}.{hook[1]}".rpartition(".") if hook else text.rpartition(".")
        if stream == BEFORE and _LAYER.fullmatch(layer):
            if int(layer) == 0:
                raise UserError(f"{text!r} is the embedding, which is no site; the first residual is resid_post.0")
            return cls(int(layer) - 1)
        if stream not in set(Stream) or not _LAYER.fullmatch(layer):
            numbers = re.findall(r"\d+", text)
            known = [f"{each}.{numbers[0][:4]}" for each in Stream] if numbers else [*Stream]
            raise UserError(
                f"{text!r:.80} is no site{did_you_mean(text, known)}; sites read like 'resid_post.3', "
                f"with one of {', '.join(Stream)}"
            )
        return cls(int(layer), Stream(stream))


def sites_in(name: str) -> list[Site]:
    """The sites of a name with layers: one, or a range (`resid_post.9-12`, both ends in it); raises `UserError`."""
    match = re.fullmatch(rf"(\w+)\.({_LAYER.pattern})-({_LAYER.pattern})", name)
    if not match:
        return [Site.parse(name)]
    if int(match[2]) > int(match[3]):
        raise UserError(f"{name} holds no layer; give the lower one first")
    return [Site.parse(f"{match[1]}.{layer}") for layer in range(int(match[2]), int(match[3]) + 1)]


@dataclass(frozen=True)
class FeatureId:
    """The name of a latent: `3_2079` is latent 2079 at `resid_post.3`; other streams are spelled out."""

    site: Site
    index: int

    def __lt__(self, other: "FeatureId") -> bool:
        return (self.site, self.index) < (other.site, other.index)

    def __str__(self) -> str:
        stream = "" if self.site.stream is Stream.RESID_POST else f"{self.site.stream}."
        return f"{stream}{self.site.layer}_{self.index}"

    @classmethod
    def parse(cls, text: str) -> "FeatureId":
        """The feature named by `str(feature)`; raises `UserError` on any other text."""
        place, _, index = text.rpartition("_")
        stream, _, layer = place.rpartition(".")
        numbered = _LATENT.fullmatch(index) and _LAYER.fullmatch(layer)
        if not (numbered and (stream or Stream.RESID_POST) in set(Stream)):
            numbers = [number[:12] for number in re.findall(r"\d+", text)]
            known = [cls(Site(int(numbers[0]), each), int(numbers[1])) for each in Stream] if len(numbers) == 2 else []
            raise UserError(
                f"{text!r:.80} is no feature{did_you_mean(text, known)}; features read like '5_2079' or "
                "'mlp_out.5_2079'"
            )
        return cls(Site(int(layer), Stream(stream or Stream.RESID_POST)), int(index))
