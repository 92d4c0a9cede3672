"""What `subrank circuit` makes of a circuit, and its request from the options."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuits.discovery.request import CircuitRequest


@dataclass(frozen=True)
class After:
    """What is made of a circuit once it is discovered."""

    n_contexts: int = 1000
    """Contexts searched for examples."""
    n_held: int = 400
    """Further contexts, on which the circuit is scored; 0 leaves that out."""
    n_draws: int = 3
    n_cards: int = 300
    names: Mapping[str, str] = field(default_factory=dict)


def circuit_request(options: argparse.Namespace) -> "CircuitRequest":
    """The request that the options make; raises `UserError` where the file of prompts cannot be read."""
    from circuits.discovery.request import CauseAblation, CircuitRequest

    return CircuitRequest(
        target=options.target,
        prompts=prompts_in(options.prompts) if options.prompts else (),
        ablation=CauseAblation(options.ablation),
        spread=options.spread,
        n_nodes=options.nodes,
        cover=options.cover,
        seed=options.seed,
    )


def prompts_in(path: Path) -> tuple[str, ...]:
    """The lines of a file of prompts; raises `UserError` where it cannot be read or is empty."""
    from sae_core.errors import UserError

    try:
        lines = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path} cannot be read: {error}") from error
    if not any(line.strip() for line in lines):
        raise UserError(f"--prompts {path} holds no prompts; write one prompt per line")
    return lines
