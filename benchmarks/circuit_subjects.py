"""What circuits are searched in: language models, a dictionary of each layer, and text to find examples in."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.effects.targets import FeatureTarget
from circuits.features.atlas import Examples, FeatureAtlas, survey
from circuits.features.reading import Chunks
from sae_core.data.activations import ActivationStream, harvest
from sae_core.data.text import Text
from sae_core.dictionaries.saes import SAE, ReLUSAE, TopKSAE
from sae_core.evaluation.reconstruction import fvu
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site
from sae_core.storybook.train import build_tokenizer
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.topk_recipes import TopK

MODELS = {"storybook": "parallel", "GPT-2 shape": "sequential", "Llama shape": "sequential"}
"""The bundled model, and random ones as large as it; what their blocks are like."""
SAMPLE = 32
"""Contexts on which ReLU dictionaries are calibrated and FVU is measured."""


@dataclass(frozen=True)
class Texts:
    """How much text, and what is trained on it."""

    n_ctx: int = 64
    n_contexts: int = 1600
    """Contexts to train on, and to find examples in."""
    n_latents: tuple[int, ...] = (1024, 4096)
    k: int = 32
    width: int = 128
    """Of the random models."""
    n_layers: int = 6


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, a dictionary of each of its layers, and where their latents are strong."""

    model: LanguageModel
    dictionaries: dict[Site, SAE]
    atlas: FeatureAtlas
    fvu: float
    """Mean over the layers."""

    @property
    def kind(self) -> str:
        """TopK or ReLU."""
        return type(next(iter(self.dictionaries.values()))).__name__.removesuffix("SAE")

    @property
    def n_latents(self) -> int:
        return next(iter(self.dictionaries.values())).n_latents

    @property
    def l0(self) -> float:
        """Active latents per token, mean over the layers."""
        return sum(float(statistics.density.sum()) for statistics in self.atlas.sites.values()) / len(self.atlas.sites)

    def root(self, n: int) -> FeatureId:
        """Of the last layer's latents with `n` examples, the one whose density is nearest to a hundredth."""
        site = max(self.dictionaries)
        order = (self.atlas.sites[site].density - 0.01).abs().argsort(stable=True).tolist()
        nodes = (FeatureId(site, index) for index in order)
        return next(node for node in nodes if len(self.examples(node, n)) >= n)

    def target(self, node: FeatureId) -> FeatureTarget:
        """The activation of a latent."""
        return FeatureTarget(node, self.dictionaries[node.site])

    def examples(self, node: FeatureId, n: int) -> Examples:
        """The latent's `n` strongest examples, fewer if the text has no more."""
        return self.atlas.examples(node, n)


def language_model(name: str, folder: Path, texts: Texts) -> LanguageModel:
    """The bundled model, or one of random weights, written into `folder`, whose tokens are the bundled one's.

    Random matrices have a gain of 1.4, so that attention is not uniform and what is ablated moves what follows.
    """
    if name == "storybook":
        return load_model(name, device="cpu")
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = build_tokenizer()
    shared = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    width, n_layers = texts.width, texts.n_layers
    if name.startswith("GPT-2"):
        config = GPT2Config(n_embd=width, n_layer=n_layers, n_head=4, n_positions=256, n_inner=4 * width, **shared)
    else:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        size = {"hidden_size": width, "num_hidden_layers": n_layers, "intermediate_size": 3 * width}
        config = LlamaConfig(max_position_embeddings=256, **size, **heads, **shared)
    model = AutoModelForCausalLM.from_config(config)
    generator = generator_for(0, "weights", name)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(1.4 * width**-0.5 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu")


def contexts(model: LanguageModel, texts: Texts) -> Int[Tensor, "contexts pos"]:
    """Text of the bundled model's grammar."""
    return Text("storybook", texts.n_ctx, True, max_tokens=texts.n_ctx * texts.n_contexts).contexts(model)


def subjects(model: LanguageModel, texts: Texts) -> Iterator[Subject]:
    """Subjects of each size with TopK dictionaries, trained in one pass, and with ReLU dictionaries made of them."""
    text, sites = contexts(model, texts), tuple(model.sites())
    n_tokens = int(model.content(text).sum())
    batch = min(1024, n_tokens // 8)
    settings = {"tokens": n_tokens // batch * batch, "batch": batch, "warm_up": 10}
    configs = [TrainConfig(TopK(k=texts.k), expansion=n // model.d_model, **settings) for n in texts.n_latents]
    stream = ActivationStream(model, text, sites, 0, batch)
    state = start(stream, *configs)
    for _ in train(stream, state):
        pass
    x = harvest(model, text[:SAMPLE], sites)
    for member in state.members:
        trained = {site: sae.requires_grad_(False) for site, sae in member.dictionaries().items()}
        for dictionaries in (trained, {site: as_relu(sae, x[site]) for site, sae in trained.items()}):
            errors = [fvu(x[site], sae.decode(sae.encode(x[site]))) for site, sae in dictionaries.items()]
            atlas = survey(model, dictionaries, text, top=96, chunks=Chunks(contexts=64))
            yield Subject(model, dictionaries, atlas, sum(errors) / len(errors))


def as_relu(sae: TopKSAE, x: Float[Tensor, "tokens d_in"]) -> ReLUSAE:
    """The dictionary with ReLU in place of the choice, its bias lowered until k latents are active on average."""
    other = ReLUSAE(sae.d_in, sae.n_latents, generator=torch.Generator()).requires_grad_(False)
    other.load_state_dict(sae.state_dict())
    other.b_enc -= sae.pre(x).flatten().topk(sae.k * len(x)).values[-1]
    return other
