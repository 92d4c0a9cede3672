"""The contexts on which a feature is most active, as text: what one looks at first."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from circuits.features.atlas import Examples
from sae_core.model.generation import pieces
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId
from subrank.pages.page import Token, fragment, render

BEFORE, AFTER = 24, 3
"""Tokens shown around the strongest one."""


@dataclass(frozen=True)
class TopExample:
    """A piece of text around the token on which a feature is strongest."""

    tokens: tuple[str, ...]
    """Pieces of the text, spaces included."""
    activations: tuple[float, ...]
    """The feature's activation on each of them."""
    peak: int
    """Which of them is the strongest."""

    def __str__(self) -> str:
        """The text with the strongest token marked, and its activation."""
        before, peak, after = (
            "".join(self.tokens[: self.peak]),
            self.tokens[self.peak],
            "".join(self.tokens[self.peak + 1 :]),
        )
        space = peak[: len(peak) - len(peak.lstrip())]
        text = f"{before}{space}«{peak.strip()}»{after}".replace("\n", "\\n")
        return f"{self.activations[self.peak]:8.2f}  {text}"


@dataclass(frozen=True)
class TopExamples(Sequence[TopExample]):
    """Examples of one feature, the strongest first."""

    feature: FeatureId
    examples: tuple[TopExample, ...]

    @classmethod
    def of(
        cls, model: LanguageModel, feature: FeatureId, examples: Examples, activations: Sequence[Tensor]
    ) -> "TopExamples":
        """Pieces of text from `examples`, with the feature's `activations` on every token of each context."""
        shown = []
        for tokens, end, f in zip(examples.tokens.tolist(), examples.end.tolist(), activations, strict=True):
            first, last = max(0, end - BEFORE), end + 1 + AFTER
            places = [p for p in range(first, min(last, len(tokens))) if tokens[p] not in model.special_ids]
            texts = pieces(model, [], [tokens[p] for p in places])
            shown.append(TopExample(tuple(texts), tuple(f[places].tolist()), places.index(end)))
        return cls(feature, tuple(shown))

    def __getitem__(self, place):
        return self.examples[place]

    def __len__(self) -> int:
        return len(self.examples)

    def __str__(self) -> str:
        return "\n".join([f"{self.feature}: {len(self.examples)} strongest contexts", *map(str, self.examples)])

    def _repr_html_(self) -> str:
        """The examples, each token shaded by its activation."""
        strongest = max((max(example.activations) for example in self), default=0.0) or 1.0
        rows = [
            {
                "activation": f"{example.activations[example.peak]:.2f}",
                "tokens": [
                    Token(text, min(1.0, max(f, 0.0) / strongest), f"{f:.3g}", framed=place == example.peak)
                    for place, (text, f) in enumerate(zip(example.tokens, example.activations, strict=True))
                ],
            }
            for example in self
        ]
        return fragment(render("examples.html", feature=str(self.feature), rows=rows))
