"""The causes of a latent, and of those, down to the first layer: the search of Cunningham et al. 2023, by any way."""

from dataclasses import dataclass, field

from circuit_questions import Question, Way
from circuit_subjects import Subject, Texts
from jaxtyping import Float
from torch import Tensor

from sae_core.sites import FeatureId, Site

KEEP = 3
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Size:
    """How much is run."""

    texts: Texts = field(default_factory=Texts)
    n_examples: int = 64
    least: int = 16
    """Examples that a cause must have to be asked."""
    literal: int = 12
    """Latents per target on which the literal way is timed."""
    looped: int = 4
    """Targets on which loop and literal way are timed."""
    rounds: int = 3
    """Times that ours is run; the median counts."""
    few: int = 16
    """Examples for the cases that gain least."""


QUICK = Size(
    Texts(n_ctx=16, n_contexts=120, n_latents=(128,), k=8, width=32, n_layers=3),
    n_examples=6,
    least=2,
    literal=5,
    looped=2,
    rounds=1,
    few=2,
)


def best(effects: Float[Tensor, "n_latents"]) -> list[int]:
    """The kept causes, the largest |effect| first."""
    return effects.abs().argsort(descending=True, stable=True)[:KEEP].tolist()


def same_edges(effects: Float[Tensor, "n_latents"], other: Float[Tensor, "n_latents"]) -> bool:
    """Whether both keep the same causes in the same order; effects within the tolerance of each other are a tie."""
    first, second = (effects.abs()[best(each)] for each in (effects, other))
    return bool((first - second <= TOLERANCE).all())


def search(subject: Subject, way: Way, size: Size) -> list[tuple[Question, Tensor]]:
    """All questions of one search with their answers: of the root all kept causes are asked, of others the strongest.

    A cause with fewer than `size.least` examples is passed over.
    """
    root = subject.root(size.n_examples)
    waiting, answered, asked = [root], [], set()
    while waiting:
        node = waiting.pop(0)
        if node in asked:
            continue
        asked.add(node)
        source, examples = Site(node.site.layer - 1), subject.examples(node, size.n_examples)
        question = Question(subject.model, subject.target(node), source, subject.dictionaries[source], examples)
        answered.append((question, way(question)))
        if source.layer:
            causes = [FeatureId(source, j) for j in best(answered[-1][1])]
            causes = [cause for cause in causes if len(subject.examples(cause, size.n_examples)) >= size.least]
            waiting += causes if node == root else causes[:1]
    return answered
