"""Ground floor: the language model and its sites, activations, dictionaries, training, measuring, storage."""

from sae_core.activations import ActivationStream, harvest
from sae_core.dictionaries import Basis, Dictionary, neurons, pca, random_basis
from sae_core.errors import UserError
from sae_core.measures import Quality, fvu, l0, quality
from sae_core.models import Intervention, LanguageModel, load_model
from sae_core.saes import TopKSAE
from sae_core.sites import FeatureId, Site, Stream
from sae_core.storage import DictionarySet, load_set, save_set
from sae_core.text import Text, held_out
from sae_core.training import TrainConfig, TrainState, TrainStep, start, train

__all__ = [
    "ActivationStream",
    "Basis",
    "Dictionary",
    "DictionarySet",
    "FeatureId",
    "Intervention",
    "LanguageModel",
    "Quality",
    "Site",
    "Stream",
    "Text",
    "TopKSAE",
    "TrainConfig",
    "TrainState",
    "TrainStep",
    "UserError",
    "fvu",
    "harvest",
    "held_out",
    "l0",
    "load_model",
    "load_set",
    "neurons",
    "pca",
    "quality",
    "random_basis",
    "save_set",
    "start",
    "train",
]
