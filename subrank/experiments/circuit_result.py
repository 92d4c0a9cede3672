"""What `sr.discover` returns: a circuit, how good it is, and its pictures and pages."""

import logging
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from markupsafe import Markup

from circuits.drawing import KINDS, dot_source, draw, render
from circuits.evaluation import CircuitEvaluation
from circuits.features.verification import Claim
from circuits.graph import FeatureGraph, NodeId
from circuits.quality_strip import quality_strip
from circuits.shown_prompt import Prompt
from circuits.story import story_source
from editing.set_quality import SetQuality
from sae_core.codec import from_plain, to_plain
from sae_core.errors import UserError
from sae_core.files import user_path, write_bytes, write_json, write_text
from subrank.experiments.circuit_explorer import Explored, write_explorer, write_exports
from subrank.pages.circuit_figure import scoring_figure
from subrank.pages.circuit_page import circuit_section, claims_section, evaluation_section
from subrank.pages.evaluation_page import dictionaries_section
from subrank.pages.page import link, titled
from subrank.result import Provenance, Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

log = logging.getLogger(__name__)
STORY = "circuit_story"
NO_GRAPHVIZ = (ImportError, OSError, ValueError, subprocess.CalledProcessError)
"""What drawing raises where Graphviz is absent or does not work."""


@dataclass(frozen=True, eq=False, repr=False)
class CircuitResult(Result):
    """A graph of features, and how much of its target it carries on examples that discovery has not seen."""

    verb: ClassVar[str] = "circuit"
    graph: FeatureGraph
    evaluation: CircuitEvaluation | None
    """None where the circuit was not scored."""
    quality: SetQuality
    provenance: Provenance
    notes: tuple[str, ...] = ()
    """Why it was not scored, where it was not."""
    claims: tuple[Claim, ...] = ()
    """What its features say of the text, by predicates that are computed from its characters, on held-out contexts."""
    example: Prompt | None = None
    """A text on which the circuit is shown; None where the one that shows most is a single token."""
    explored: Explored | None = field(default=None, repr=False)
    """What the explorer is made of; None for a result that was read from a folder."""

    @property
    def target(self) -> NodeId:
        """What is explained: a feature, or a readout of the logits."""
        return self.graph.target

    def title(self) -> str:
        return f"The circuit of {self.target}"

    def lines(self) -> list[str]:
        graph = self.graph
        strongest = sorted(graph.edges, key=lambda edge: -abs(edge.effect))[:3]
        edges = ", ".join(f"{edge.cause} -> {edge.target} {edge.effect:+.2f}" for edge in strongest)
        head = [f"{self.target}: {len(graph.nodes)} nodes, {len(graph.edges)} edges; strongest: {edges or 'none'}"]
        head += [claim.line() for claim in self.claims if claim.feature == graph.target]
        head += [line for line in [graph.direct_line()] if line]
        return [*head, *(self.evaluation.lines() if self.evaluation else self.notes)][:10]

    def draw(self, path: str | Path) -> Path:
        """Draw the circuit into a file that ends in .svg, .png, .pdf or .dot, with Graphviz."""
        return _draw(self._whole(), path)

    def draw_story(self, path: str | Path) -> Path:
        """Draw it in at most eight boxes, with an example below (`circuits/story.py`); as `draw` otherwise."""
        return _draw(self._story(), path)

    def _whole(self) -> str:
        return dot_source(self.graph, self._quality())

    def _story(self) -> str:
        return story_source(self.graph, self.example, self._quality())

    def _quality(self) -> tuple[str, ...]:
        return quality_strip(self.evaluation) if self.evaluation else self.notes

    def figures(self) -> "dict[str, Figure]":
        if self.evaluation is None:
            return {}
        return {"faithfulness": scoring_figure(self.evaluation.curves, self.evaluation.controls)}

    def section(self) -> Markup:
        """The story, the whole drawing and the strongest edges."""
        return circuit_section(self.graph, _svg(self._whole()), _svg(self._story()))

    def body(self) -> Markup:
        body = self.section()
        if self.claims:
            body += titled("What its features respond to", claims_section(self.claims))
        if self.evaluation is not None:
            body += titled("How good it is", evaluation_section(self.evaluation))
        return body + titled("The dictionaries", dictionaries_section(self.quality))

    def saved_body(self) -> Markup:
        top = link("explore/index.html", "Explore it: cards, examples, all features") if self.explored else Markup()
        return top + self.body()

    def to_dict(self) -> dict[str, Any]:
        numbers = {"dictionaries": self.quality.to_json(), "circuit": to_plain(self.graph)}
        numbers |= {"judgement": self.evaluation.to_json()} if self.evaluation else {}
        numbers |= {"claims": to_plain(self.claims)} if self.claims else {}
        numbers |= {"example": to_plain(self.example)} if self.example else {}
        return numbers | ({"notes": list(self.notes)} if self.notes else {})

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "CircuitResult":
        scores = numbers.get("judgement")
        evaluation = from_plain(CircuitEvaluation, scores) if scores else None
        graph, quality = from_plain(FeatureGraph, numbers["circuit"]), SetQuality.from_json(numbers["dictionaries"])
        claims = tuple(from_plain(Claim, claim) for claim in numbers.get("claims", []))
        example = from_plain(Prompt, numbers["example"]) if "example" in numbers else None
        return cls(graph, evaluation, quality, provenance, tuple(numbers.get("notes", ())), claims, example)

    def write(self, folder: Path) -> None:
        """As every result; the graph as JSON; its drawing and its story; the explorer; other people's viewers."""
        super().write(folder)
        write_json(folder / "circuit.json", to_plain(self.graph))
        problems = [draw(self._whole(), folder, "circuit").problem, draw(self._story(), folder, STORY).problem]
        for problem in filter(None, problems):
            log.warning(problem)
        if self.explored is not None:
            write_explorer(folder, self.graph, self.explored)
        if self.example is not None:
            write_exports(folder, self.graph, self.example, self.provenance.model)


def _draw(source: str, path: str | Path) -> Path:
    """Draw DOT text into a file whose ending says how."""
    path = user_path(path)
    endings = [*(f".{kind}" for kind in KINDS), ".dot"]
    if path.suffix not in endings:
        raise UserError(f"{path} is no picture that can be drawn; give a name that ends in {', '.join(endings)}")
    if path.suffix == ".dot":
        write_text(path, source)
        return path
    try:
        picture = render(source, path.suffix[1:])
    except NO_GRAPHVIZ as error:
        raise UserError(f"{path} cannot be drawn without a working Graphviz ({error}); draw a .dot file") from error
    write_bytes(path, picture)
    return path


def _svg(source: str) -> str | None:
    try:
        return render(source, "svg").decode()
    except NO_GRAPHVIZ:  # the page does without the drawing
        return None
