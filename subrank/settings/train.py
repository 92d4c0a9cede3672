"""Settings of `train`."""

from dataclasses import dataclass
from typing import Literal

from sae_core.checks import SEEDS, TOKENS
from sae_core.model.precision import Kept
from subrank.settings.fields import Settings, setting, site_or_stream

Kind = Literal["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu", "tied"]
LoggerName = Literal["wandb", "tensorboard", "trackio"]
_BY_K, _BY_L1 = ("topk", "batchtopk", "matryoshka", "jumprelu"), ("relu", "tied", "gated")


@dataclass(frozen=True)
class TextSettings(Settings):
    """What training and harvesting read: which activations, of which text."""

    sites: tuple[str, ...] = setting(("resid_post",), reads=site_or_stream)
    """streams (all layers), sites (mlp_out.3), ranges (resid_post.9-12), or hook points (blocks.9.hook_resid_post)"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of the weights and of the order of the text"""
    tokens: int = setting(2_000_000, least=1, most=TOKENS, quick=200_000)
    """tokens to train on"""
    text_tokens: int | None = setting(None, least=1, most=TOKENS)
    """tokens of text to read, at most; as many as to train on, if not given"""
    batch: int = setting(1024, least=1)
    """tokens per step"""
    context: int | None = setting(None, least=3)
    """tokens per context; the model's, at most 128"""
    column: str = "text"
    """where a row has its text, or its token ids; input_ids where there is no such column"""
    bos: str | None = None
    """the token that every piece of text begins with, or none; the model's own, if not given"""
    exclude: tuple[str, ...] = setting((), metavar="TOKEN", empty=True)
    """tokens left out of training and measuring, as special ones are"""
    chat: bool = False
    """texts are conversations (messages), or what a user says: they are written by the model's chat template"""
    pack: bool = True
    """whether several documents share a context; if not, padding fills it up"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""
    memory: float = setting(2.0, metavar="GIB", above=0, most=2.0**20)
    """GiB of activations held at once; more mix more contexts"""


@dataclass(frozen=True)
class TrainSettings(TextSettings):
    """What to train, where and for how long. Several values of a setting that allows them make a sweep."""

    kind: tuple[Kind, ...] = ("topk",)
    """architecture; several make a sweep"""
    expansion: tuple[int, ...] = setting((4,), least=1)
    """latents per dimension; several make a sweep"""
    k: tuple[int, ...] = setting((16,), flag="-k", least=1, needs={"kind": _BY_K})
    """latents active per token; several make a sweep"""
    l1: tuple[float, ...] = setting((2.0,), least=0, needs={"kind": _BY_L1})
    """L1 coefficient of relu, tied and gated; several make a sweep"""
    seeds: tuple[int, ...] | None = setting(None, least=0, most=SEEDS, excludes=("seed",))
    """in place of the seed; several make a sweep"""
    multi: float = setting(0.0, least=0, needs={"kind": ("topk",)})
    """weight of the loss at 4k latents (topk); Gao et al. use 0.125"""
    kl: float = setting(0.0, least=0)
    """weight of the KL divergence of the model's predictions"""
    bfloat16: bool | None = None
    """encode in bfloat16 while training; where the hardware is fast at it, if not given"""
    lr: float | None = setting(None, above=0)
    """learning rate; 5e-4 sqrt(2^14 / latents) by default"""
    clip: float | None = setting(None, above=0)
    """largest norm of a gradient; not cut by default"""
    dead_after: int = setting(100_000, least=1, most=TOKENS)
    """tokens without activity after which a latent is dead"""
    outliers: float = setting(10.0, least=0)
    """multiple of a site's median norm beyond which a token is left out, here and by all verbs; 0 leaves none out"""
    memory: float = setting(2.0, metavar="GIB", above=0, most=2.0**20, excludes=("kl",))
    """GiB of activations held at once; more mix more contexts"""


@dataclass(frozen=True)
class HarvestSettings(TextSettings):
    """Which activations are kept; what reads them is trained with the same values of these settings."""

    kept: Kept = "bfloat16"
    """precision on disk; bfloat16 takes half the room, and rounds activations to 8 bits"""
