"""Ground floor: the language model and its sites, activations, dictionaries, training, measuring, storage."""

from sae_core.activations import ActivationStream, harvest
from sae_core.cache import CachedStream, disk_bytes
from sae_core.dictionaries import Basis, Dictionary, ica, identity_relu, neurons, nonnegative_pca, pca, random_basis
from sae_core.downstream import ContextStream, Divergence
from sae_core.errors import UserError
from sae_core.formats import load_foreign, save_sparsify
from sae_core.generation import Sampling, generate
from sae_core.measures import Profile, Quality, fvu, l0, profiles, quality
from sae_core.models import Intervention, LanguageModel, load_model
from sae_core.objectives import BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK
from sae_core.runs import Run, calibrate_thresholds
from sae_core.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_core.similarity import Similarity, compare
from sae_core.sites import FeatureId, Site, Stream
from sae_core.storage import DictionarySet, load_set, save_set, sets_in
from sae_core.text import Text, held_out
from sae_core.training import Member, TrainConfig, TrainState, TrainStep, start, train

__all__ = [
    "SAE",
    "ActivationStream",
    "Basis",
    "BatchTopK",
    "CachedStream",
    "ContextStream",
    "Dictionary",
    "DictionarySet",
    "Divergence",
    "FeatureId",
    "Gated",
    "GatedSAE",
    "Intervention",
    "JumpReLU",
    "JumpReLUSAE",
    "LanguageModel",
    "Matryoshka",
    "Member",
    "Profile",
    "Quality",
    "ReLU",
    "ReLUSAE",
    "Run",
    "Sampling",
    "Similarity",
    "Site",
    "Stream",
    "Text",
    "TopK",
    "TopKSAE",
    "TrainConfig",
    "TrainState",
    "TrainStep",
    "UserError",
    "calibrate_thresholds",
    "compare",
    "disk_bytes",
    "fvu",
    "generate",
    "harvest",
    "held_out",
    "ica",
    "identity_relu",
    "l0",
    "load_foreign",
    "load_model",
    "load_set",
    "neurons",
    "nonnegative_pca",
    "pca",
    "profiles",
    "quality",
    "random_basis",
    "save_set",
    "save_sparsify",
    "sets_in",
    "start",
    "train",
]
