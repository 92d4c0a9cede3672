"""Settings of `demo`."""

from dataclasses import dataclass

from sae_core.checks import SEEDS, TOKENS
from subrank.settings.fields import Settings, setting, site_or_stream


@dataclass(frozen=True)
class DemoSettings(Settings):
    """How much of the whole story to run."""

    tokens: int = setting(400_000, least=1024, most=TOKENS, quick=100_000)
    """tokens to train the dictionaries on"""
    sites: tuple[str, ...] = setting(("resid_post", "attn_out", "mlp_out"), reads=site_or_stream)
    """where: streams or sites (default: every layer)"""
    prompts: int | None = setting(None, least=8, most=100_000, quick=16)
    """test prompts per experiment, if not each one's own"""
    contexts: int = setting(300, least=16, quick=150)
    """contexts searched for examples of features"""
    nodes: int = setting(60, least=1, quick=20)
    """features of the circuit, of what blocks write; by recursion where sites has not both attn_out and mlp_out"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of everything"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""
