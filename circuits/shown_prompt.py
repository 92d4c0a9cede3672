"""A text on which a circuit is shown, with the activation of every node on every token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from circuits.graph import NodeId, Readout
from sae_core.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A text on which a circuit is shown."""

    tokens: tuple[str, ...]
    """Two at least, with their spaces; the last one is where the target is read."""
    activations: Mapping[NodeId, Sequence[float]] = field(default_factory=dict)
    """Per node, one number per token. A node stands where it is largest; one that is zero throughout is left out,
    one that is not listed stands at the last token."""
    outputs: Mapping[Readout, tuple[int, float]] = field(default_factory=dict)
    """Per readout, the id of its token and the probability the model gives it; where not listed, 0.0 and its rank."""
    after: tuple[str, ...] = ()
    """The tokens that follow in the text, which no node has read."""

    def __post_init__(self):
        if len(self.tokens) < 2:
            raise UserError(f"a prompt has at least 2 tokens, or its graph is shown empty; got {len(self.tokens)}")
        for node, values in self.activations.items():
            if len(values) != len(self.tokens):
                raise UserError(f"{node} has {len(values)} activations on a prompt of {len(self.tokens)} tokens")

    def place(self, node: NodeId) -> tuple[int, float | None] | None:
        """Position and activation of a node; `None` if it is not active here."""
        values = self.activations.get(node)
        if values is None:
            return len(self.tokens) - 1, None
        peak = max(range(len(values)), key=lambda position: values[position])
        return (peak, float(values[peak])) if values[peak] > 0 else None
