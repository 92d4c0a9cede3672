"""A whole training run as one value, and as one file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from sae_core import checks
from sae_core.codec import from_plain
from sae_core.data.activations import ActivationStream, harvest
from sae_core.data.text import Text
from sae_core.dictionaries.saes import SAE, JumpReLUSAE
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import FACTOR, inliers
from sae_core.room import check_memory
from sae_core.sites import Site
from sae_core.training.calibration import calibrate
from sae_core.training.config import TrainConfig
from sae_core.training.inputs import ActivationSource, Downstream
from sae_core.training.kl import ContextStream, Divergence
from sae_core.training.recipe import check_k
from sae_core.training.topk_recipes import BatchTopK, Matryoshka


@dataclass(frozen=True)
class RunCard:
    """What `run.json` holds; the fields of `Run` mean the same."""

    model: str
    text: Text
    sites: tuple[str, ...]
    members: tuple[dict[str, Any], ...]
    memory: int
    outliers: float = 0.0
    """Runs begun before this and `quick` were parts go on as they began."""
    quick: bool = False


@dataclass(frozen=True)
class Run:
    """Model, text, sites and what to train on them, all in one pass."""

    model: str
    text: Text
    sites: tuple[str, ...]
    """Sites, or streams for all their layers."""
    members: tuple[TrainConfig, ...]
    memory: int = 2**31
    """Bytes of activations held at once. More mix more contexts; part of what makes a run repeatable."""
    outliers: float = FACTOR
    """Tokens of more than this multiple of a site's median norm are left out; 0 leaves none out."""
    quick: bool = False
    """Whether it is a tenth of the usual work, which its result says."""

    def __post_init__(self):
        checks.whole("memory", self.memory, 1, 2**50)
        checks.weight("outliers", self.outliers)

    @property
    def stream_seed(self) -> int:
        """Seed of the order of the text, the same for all members since they read it together: that of the first."""
        return self.members[0].seed

    def n_weights(self, model: LanguageModel, sites: Iterable[Site]) -> int:
        """Weights of all dictionaries, but for biases."""
        matrices = sum(each.expansion * (2 - getattr(each.recipe, "tied", False)) for each in self.members)
        return matrices * sum(model.d_in(site) ** 2 for site in sites)

    def check(self, model: LanguageModel, sites: Sequence[Site], shards: int = 1) -> None:
        """Raise `UserError` for more active latents than there are, and for more memory than the machine has.

        Training holds each weight with Adam's two moments, and of one dictionary at a time the gradient and of a batch
        every latent with its gradient; of all this a shard has its part.
        """
        most = 0
        for member in self.members:
            for n_latents in {member.expansion * model.d_in(site) for site in sites}:
                check_k(getattr(member.recipe, "k", 1), n_latents)
                most = max(most, n_latents * member.batch)
        needed = 4 * (3 * self.n_weights(model, sites) + 2 * most) // shards
        what = f"training {len(self.members) * len(sites)} dictionaries in one pass"
        check_memory(needed, model.device, what, "give a smaller --expansion or --batch, or fewer --sites at a time")

    def stream(
        self, model: LanguageModel, contexts: Int[Tensor, "contexts pos"], sites: Sequence[Site]
    ) -> ActivationSource:
        """The activations this run trains on: mixed over contexts, or whole contexts where KL is trained on."""
        order = (self.stream_seed, self.members[0].batch)
        if self.downstream(model):
            return ContextStream(model, contexts, tuple(sites), *order)
        return ActivationStream(model, contexts, tuple(sites), *order, self.memory)

    def downstream(self, model: LanguageModel) -> Downstream | None:
        """What members that train on KL need besides activations."""
        return Divergence(model) if any(member.kl for member in self.members) else None

    def to_json(self) -> dict[str, Any]:
        """As plain values; `from_json` is the inverse."""
        return {
            "model": self.model,
            "text": asdict(self.text),
            "sites": list(self.sites),
            "members": [member.to_json() for member in self.members],
            "memory": self.memory,
            "outliers": self.outliers,
            "quick": self.quick,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Run":
        """The run that these values describe; raises `UserError` that names what is wrong with them."""
        card = from_plain(RunCard, value, exact=True)
        if not card.members or not card.sites:
            raise UserError("a run needs at least one member and one site")
        members = tuple(map(TrainConfig.from_json, card.members))
        return cls(card.model, card.text, card.sites, members, card.memory, card.outliers, card.quick)

    def differences(self, other: "Run") -> list[str]:
        """The parts in which two runs differ."""
        facts, other_facts = self.to_json(), other.to_json()
        return [part for part in facts if facts[part] != other_facts[part]]


def calibrate_thresholds(
    config: TrainConfig, dictionaries: Mapping[Site, SAE], model: LanguageModel, contexts: Int[Tensor, "contexts pos"]
) -> dict[Site, dict[str, float]]:
    """Replace the running thresholds of BatchTopK and Matryoshka by ones at which k latents are active on average.

    Changes the dictionaries; returns both thresholds per site, and nothing for other recipes.
    """
    if not isinstance(config.recipe, (BatchTopK, Matryoshka)):
        return {}
    thresholds = {}
    for site, x in harvest(model, contexts, tuple(dictionaries)).items():
        dictionary = dictionaries[site]
        x = x[inliers(x, dictionary.outlier_norm)]
        assert isinstance(dictionary, JumpReLUSAE)  # what these recipes train
        running = dictionary.threshold[0].item()
        thresholds[site] = {"running": running, "calibrated": calibrate(dictionary, x, config.recipe.k)}
    return thresholds
