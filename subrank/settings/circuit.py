"""Settings of `circuit` (`sr.discover`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sae_core.checks import SEEDS
from sae_core.errors import UserError
from subrank.settings.fields import Settings, setting

_WHAT, _HOW, _THEN = "what is explained", "how causes are found", "what is made of the circuit"


def _several(draws: int) -> None:
    if draws == 1:
        raise UserError("--draws must be 0, or at least 2, which are compared; got 1")


@dataclass(frozen=True)
class CircuitSettings(Settings):
    """What is explained and on which examples, how its causes are found, and what is made of the circuit."""

    prompts: Path | None = setting(None, group=_WHAT)
    """a file with a prompt to a line, for a logit (default: the text)"""
    chat: bool = setting(False, needs={"prompts": ()}, group=_WHAT)
    """prompts are what a user says: they are written by the model's chat template"""
    examples: int = setting(16, least=16, group=_WHAT)
    """examples per target"""
    spread: bool = setting(False, group=_WHAT)
    """examples over the range of activations, not the strongest"""
    contexts: int = setting(1000, least=16, quick=100, large=400, group=_WHAT)
    """contexts searched for examples (of what blocks write: 400)"""
    keep: int = setting(3, least=0, group=_HOW)
    """causes kept per target and site; 0 keeps all"""
    min_effect: float = setting(0.01, least=0, group=_HOW)
    """edges weaker than this are not kept"""
    max_targets: int | None = setting(None, least=1, excludes=("nodes",), group=_HOW)
    """targets whose causes are searched (default: 15)"""
    depth: int | None = setting(None, least=1, excludes=("nodes",), group=_HOW)
    """edges from the target down, at most"""
    ablation: Literal["zero", "mean", "resample"] = setting("zero", group=_HOW)
    """what causes are set to"""
    reach: Literal["adjacent", "all"] = setting("adjacent", group=_HOW)
    """sites at which causes are sought"""
    follow_sinks: bool = setting(False, excludes=("nodes",), group=_HOW)
    """seek the causes of features that are mostly active at first positions or on tokens of massive norm, too"""
    nodes: int | None = setting(None, least=0, group=_HOW)
    """in place of recursion: choose at most this many features that suffice; 0: recursion (default: 100 of what blocks
    write, where the set has attn_out and mlp_out and nothing of recursion is chosen; else 0)"""
    stream: Literal["residual", "written"] | None = setting(None, group=_HOW)
    """sites that such features are chosen from; residual without --nodes: recursion (default: what blocks write, where
    the set has it)"""
    null: int = setting(1000, least=0, most=1_000_000, quick=100, excludes=("screen_only",), group=_HOW)
    """random directions that each edge is compared with (of what blocks write: 100); 0: none"""
    exhaustive: bool = setting(False, excludes=("screen_only", "nodes"), group=_HOW)
    """ablate every active feature also where several blocks lie between"""
    screen_only: bool = setting(False, group=_HOW)
    """ablate nothing: first-order effects, at once"""
    held: int = setting(400, least=0, quick=40, large=128, group=_THEN)
    """contexts on which it is scored (of what blocks write: 200); 0: it is not"""
    cover: int | None = setting(None, least=1, needs={"held": (), "nodes": ()}, group=_THEN)
    """layers below the target that are left to the circuit alone (default: 2; all, where it is what blocks write)"""
    draws: int | None = setting(None, least=0, most=1000, needs={"held": ()}, reads=_several, group=_THEN)
    """draws of examples on which it is discovered again (default: 3, of a large model 2, of what blocks write 0);
    0: it is not"""
    cards: int = setting(300, least=0, quick=30, large=100, group=_THEN)
    """contexts read for the explorer's feature cards (of what blocks write: 100); 0: no explorer"""
    names: Path | None = setting(None, group=_THEN)
    """a names.json that the explorer saved"""
    text: str | None = None
    """another text than the one trained on"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of examples, random directions and intervals"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""
    check: bool = False
    """compute a sample of the numbers again by full forward passes with hooks, and say by how much they differ"""
