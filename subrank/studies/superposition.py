"""Superposition: a model may keep more features than it has dimensions, if they are sparse (Elhage et al. 2022).

Twenty features x_i of importance 0.7^i are squeezed into five dimensions and read back: h = W x, x' = W^T h + b, with
or without a ReLU. How often features are active is what is varied, from always (1 - S = 1) to one row in a thousand.

1. Toy models of every density train as one batch (`toys/models.py`), several copies each; that of the lowest loss is
   kept. Control: the linear model, which can do no better than PCA at any density; its optimum is known.
2. How its features lie is measured (`toys/geometry.py`): how long W_i is, with whom it shares its direction, and how
   many dimensions it has to itself.
3. Dictionaries train on the hidden activations h as they do on those of a language model (`toys/dictionaries.py`):
   do they find the features? Controls: random dictionaries of the same size, and features that are dense.

Cost: models x steps, about a minute on two cores. There is no language model in this.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from markupsafe import Markup

from sae_core.codec import from_plain, to_plain
from sae_core.errors import UserError
from sae_core.progress import OnProgress, Stages, silent
from sae_core.room import check_memory
from sae_core.seeds import generator_for
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.settings.fields import make, takes
from subrank.settings.studies import SuperpositionSettings
from subrank.studies.cost import announce
from subrank.studies.toys.dictionaries import HiddenActivations, Recovery, dictionary_steps, recovery
from subrank.studies.toys.figures import dimensions_figure, models_figure, recovery_figure
from subrank.studies.toys.models import LINEAR, RELU, ToyModel, ToyModels, held_out_losses, train_toys
from subrank.studies.toys.page import sentences, superposition_section
from subrank.studies.toys.solution import Solution, solutions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STAGES = 20
"""Parts of the toy models' training that are told apart where it says how far it is."""
ROWS = 2**14
"""New rows on which copies are compared."""


@dataclass(frozen=True, eq=False, repr=False)
class Superposition(Result):
    """Toy models over sparsity, how their features lie, and whether dictionaries find them."""

    verb: ClassVar[str] = "superposition"
    importance: tuple[float, ...]
    """I_i of every feature."""
    models: tuple[Solution, ...]
    """The best of every kind and density: linear ones first, densities falling."""
    recoveries: tuple[Recovery, ...]
    """Of dictionaries on each ReLU model that represents anything, densities falling."""
    provenance: Provenance

    def of_kind(self, kind: str) -> list[Solution]:
        """The models of a kind, from dense to sparse."""
        return [solution for solution in self.models if solution.model.kind == kind]

    def title(self) -> str:
        return f"Superposition: {len(self.importance)} features in {len(self.models[0].weights)} dimensions"

    def lines(self) -> list[str]:
        return sentences(self.of_kind(LINEAR), self.of_kind(RELU), self.importance, self.recoveries)

    def figures(self) -> "dict[str, Figure]":
        relu = self.of_kind(RELU)
        figures = {
            "features": models_figure([self.of_kind(LINEAR)[0], *relu]),
            "dimensions": dimensions_figure(relu),
        }
        return figures | ({"dictionaries": recovery_figure(self.recoveries)} if self.recoveries else {})

    def body(self) -> Markup:
        return superposition_section(self.models, self.importance, self.recoveries, self.lines(), self.figures())

    def to_dict(self) -> dict[str, Any]:
        numbers = {"models": to_plain(self.models), "dictionaries": to_plain(self.recoveries)}
        return {"importance": list(self.importance)} | numbers

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Superposition":
        importance = tuple(map(float, numbers["importance"]))
        models = tuple(from_plain(Solution, each) for each in numbers["models"])
        recoveries = tuple(from_plain(Recovery, each) for each in numbers["dictionaries"])
        return cls(importance, models, recoveries, provenance)


@takes(SuperpositionSettings)
def superposition(*, progress: bool = True, on_progress: OnProgress | None = None, **settings: Any) -> Superposition:
    """Toy models of superposition over sparsity (Elhage et al. 2022), and whether dictionaries find their features."""
    chosen = make(SuperpositionSettings, settings)
    with shown("superposition", progress, on_progress) as report:
        return run_superposition(chosen, report)


def run_superposition(settings: SuperpositionSettings, on_progress: OnProgress = silent) -> Superposition:
    """`superposition` with its settings made."""
    densities = sorted(set(settings.densities), reverse=True)
    toys, trial = new_toys(settings, densities), new_toys(settings, densities)
    n_toys, steps, generator = len(toys.models), settings.steps, generator_for(settings.seed, "rows")
    parts = {
        f"{n_toys} toy models x {steps} steps": (train_toys(trial, steps, settings.batch, generator=generator), steps),
        f"dictionaries on {len(densities)} of them x {settings.dictionary_steps} steps": (
            dictionary_steps(HiddenActivations(trial.W[-1].detach(), densities[0], settings.seed), 100),
            settings.dictionary_steps * len(densities),
        ),
    }
    announce(parts, on_progress)
    stages = Stages(on_progress, STAGES + len(densities))
    training = train_toys(toys, steps, settings.batch, generator=generator_for(settings.seed, "rows"))
    for part in range(STAGES):
        begin, end = (number * steps // STAGES for number in (part, part + 1))
        stages.begin(f"{n_toys} toy models: step {begin} of {steps}")
        for _ in islice(training, end - begin):
            pass
    losses = held_out_losses(toys, ROWS, generator=generator_for(settings.seed, "new rows"))
    models, recoveries = solutions(toys, losses.tolist()), []
    for solution in models:
        if solution.model.kind == RELU and solution.represented:
            density = solution.model.density
            stages.begin(f"dictionaries on the toy model at 1-S = {density:g}")
            activations = HiddenActivations(solution.W, density, settings.seed)
            recoveries.append(recovery(activations, settings.dictionary_steps))
    provenance = Provenance.of(Superposition.verb, None, asdict(settings))
    return Superposition(tuple(toys.importance.tolist()), models, tuple(recoveries), provenance)


def new_toys(settings: SuperpositionSettings, densities: list[float]) -> ToyModels:
    """Untrained toy models of each density: copies with a ReLU, and a few linear ones, which differ in speed alone.

    Raises `UserError` where the dimensions suffice for all features, or memory does not suffice.
    """
    n, m = settings.features, settings.dimensions
    if m >= n:
        raise UserError(f"--dimensions must be fewer than --features, of which there are {n}; got {m}")
    copies = {LINEAR: min(3, settings.copies), RELU: settings.copies}
    models = [ToyModel(kind, density) for kind in copies for density in densities for _ in range(copies[kind])]
    numbers = len(models) * n * (max(settings.batch, 1024) + m)
    check_memory(4 * 8 * numbers, torch.device("cpu"), f"{len(models)} toy models", "give fewer --copies")
    importance = settings.importance ** torch.arange(n)
    return ToyModels(models, importance, m, generator=generator_for(settings.seed, "weights"))
