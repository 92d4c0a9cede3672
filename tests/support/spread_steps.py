"""A step of every kind on every mesh, and how far it is from that of one process."""

import torch
from planted import generator
from random_saes import normal
from ranked import MESHES, meshes
from torch import Tensor

from sae_core.dictionaries.saes import SAE
from sae_core.kernels import plain
from sae_core.sharding import choice
from sae_core.sharding.ranks import ALONE, Ranks
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.latent_step import LatentStep
from sae_core.training.loop import step
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
from sae_core.training.recipe import LossContext
from sae_core.training.state import Member, site_state
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

D_IN, EXPANSION, BATCH, K, SITE = 24, 8, 48, 5, Site(0)
KINDS = {
    "topk": TopK(K),
    "multi": TopK(K, multi=1 / 8),
    "batchtopk": BatchTopK(K),
    "matryoshka": Matryoshka(K),
    "jumprelu": JumpReLU(K, bandwidth=0.6),
    "gated": Gated(0.7),
    "relu": ReLU(0.7),
    "tied": ReLU(0.7, tied=True),
}
SIZES = {"even": 192, "uneven": 203}
DEAD = {"none": range(0), "few": range(3, 40, 7), "many": range(60, 110)}
"""Few: fewer than d_in / 2. Many are the latents of some ranks alone."""
STEPPED = ("R=4", "D=2 R=2")
IN_ONE_PASS = ("topk", "batchtopk", "matryoshka")
NAMES = [
    f"{mesh}/{kind}/{size}/{dead}"
    for mesh in MESHES
    for kind, recipe in KINDS.items()
    for size in (SIZES if mesh == "R=4" else ["uneven"])
    for dead in (DEAD if mesh == "R=4" and hasattr(recipe, "aux") else ["many"])
]
"""On four shards every one of size and dead latents with every other."""


def dictionary(recipe, n_latents: int, dead: Tensor) -> SAE:
    """As in the middle of training."""
    sae = recipe.new(D_IN, n_latents, generator=generator()).double()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sae.named_parameters()):
            if name != "threshold":
                parameter += 0.2 * normal(*parameter.shape, seed=100 + i)
        sae.normalise()
        if len(dead) and "W_enc" in dict(sae.named_parameters()):
            sae.W_enc[:, dead] *= 0.01
            sae.b_enc[dead] = 0.01
    return sae


def part_of(sae: SAE, ranks: Ranks) -> SAE:
    """This rank's latents, in memory as every dictionary has them."""
    part = SAE.only(sae, ranks.latents(sae.n_latents))
    if "W_enc" in dict(part.named_parameters()):
        part.W_enc.data = part.W_enc.data.T.contiguous().T
    part.b_dec.data = part.b_dec.data.clone()
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(sae.get_parameter(name).requires_grad)
    return part


def here(name: str, whole: Tensor, ranks: Ranks, n_latents: int) -> Tensor:
    latents = ranks.latents(n_latents)
    if name == "b_dec":
        return whole
    return whole[:, latents.start : latents.stop] if name == "W_enc" else whole[latents.start : latents.stop]


def differences(recipe, n_latents: int, dead: Tensor, ranks: Ranks) -> dict[str, float]:
    """The largest one of each quantity, from a step of one process."""
    whole, x = dictionary(recipe, n_latents, dead), 2 * normal(BATCH, D_IN, seed=9).double() + 0.5
    part, latents = part_of(whole, ranks), ranks.latents(n_latents)
    expected = recipe.loss(whole, x, LossContext(dead, 0.4))
    expected.loss.backward()
    mine = dead[(dead >= latents.start) & (dead < latents.stop)] - latents.start
    known = LossContext(mine, 0.4, ranks=ranks, dead_elsewhere=len(dead) - len(mine), n_latents=n_latents)
    outcome = recipe.loss(part, ranks.rows(x), known)
    outcome.loss.backward()
    ranks.add_gradients(dict(part.named_parameters()))
    pairs = {
        "loss": (outcome.loss, expected.loss),
        "fvu": (outcome.fvu, expected.fvu),
        "l0": (outcome.l0, expected.l0),
        "x_hat": (outcome.x_hat, ranks.answered(ranks.rows(expected.x_hat))),
        "active": (
            ranks.least_of_replicas((~outcome.active).double()),
            (~expected.active[latents.start : latents.stop]).double(),
        ),
    }
    if expected.threshold is not None:
        pairs["threshold"] = (outcome.threshold, expected.threshold)
    for name, parameter in whole.named_parameters():
        if parameter.grad is not None:
            pairs[name] = (part.get_parameter(name).grad, here(name, parameter.grad, ranks, n_latents))
    return {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}


def three_steps(recipe, ranks: Ranks, *, in_one_pass: bool = False) -> dict[str, float]:
    """Of the weights after three steps of Adam, from those of one process; its gradient is clipped, unless this rank
    takes gradient and step of a latent in one pass."""
    dead = torch.tensor([*DEAD["many"]])
    whole = dictionary(recipe, SIZES["even"], dead)
    clip = None if in_one_pass else 0.05
    config = TrainConfig(recipe, EXPANSION, tokens=100 * BATCH, batch=BATCH, clip=clip, warm_up=2, lr=1e-2)
    ends = {}
    for place in (ALONE, ranks):
        sae = part_of(whole, place)
        state = site_state(sae, 0.7, ranks=place, n_latents=SIZES["even"])
        latents = place.latents(SIZES["even"])
        state.dead = dead[(dead >= latents.start) & (dead < latents.stop)] - latents.start
        state.dead_elsewhere = len(dead) - len(state.dead)
        if in_one_pass and place is ranks:
            state.in_one_pass = LatentStep(state.weights, state.optimizer, torch.float64, plain)
        member = Member(config, {SITE: state}, False)
        scratch = LossContext(dead).scratch
        for number in range(3):
            x = normal(BATCH, D_IN, seed=number).double()
            step(member, SITE, {SITE: x}, number, scratch)
        ends[place.size] = {**dict(sae.named_parameters()), "silent": place.least_of_replicas(state.silent)}
    return {
        name: (value - here(name, ends[1][name], ranks, SIZES["even"])).abs().max().item()
        for name, value in ends[ranks.size].items()
    }


def ties(ranks: Ranks) -> dict[str, bool]:
    """Whether, of numbers most of which are equal to others, those are chosen that the rule says."""
    pre = torch.randint(0, 4, (BATCH, SIZES["uneven"]), generator=generator()).double()
    order = pre.sort(dim=-1, descending=True, stable=True).indices  # larger, then lower latent
    mine, rows = ranks.latents(SIZES["uneven"]), ranks.rows(torch.arange(BATCH))
    local = pre[rows][:, mine.start : mine.stop]
    equal = {}
    for k, codes in zip((3, 12), choice.top(ranks, local.split(5 + ranks.shard), 3, 12), strict=True):
        chosen = torch.zeros_like(pre).scatter(1, order[:, :k], 1)[rows][:, mine.start : mine.stop]
        equal[f"k={k}"] = codes.with_values(torch.ones_like(codes.values)).dense().equal(chosen)
    codes = choice.batch_top(ranks, [local], 100)  # of equal values at the threshold all
    equal["batch"] = codes.dense().equal(local * (local == 3))
    return equal


def fewer_candidates(ranks: Ranks) -> dict[str, float]:
    """Control: differences where one of each row's survivors is dropped."""
    kept = choice._survivors

    def one_less(*arguments):
        return (kept(*arguments) - 1).clamp_min(0)

    choice._survivors = one_less
    try:
        return differences(KINDS["topk"], SIZES["even"], torch.tensor([], dtype=torch.long), ranks)
    finally:
        choice._survivors = kept


def work(rank: int) -> dict[str, dict]:
    places, results = meshes(), {}
    for name in NAMES:
        mesh, kind, size, dead = name.split("/")
        indices = torch.tensor([*DEAD[dead]], dtype=torch.long)
        results[name] = differences(KINDS[kind], SIZES[size], indices, places[mesh])
    for mesh, ranks in places.items():
        if mesh in STEPPED:
            results |= {f"{mesh}/{kind}/steps": three_steps(KINDS[kind], ranks) for kind in KINDS}
        if ranks.shards == 4:
            results |= {f"{kind}/one pass": three_steps(KINDS[kind], ranks, in_one_pass=True) for kind in IN_ONE_PASS}
        if ranks.shards > 1:
            results[f"{mesh}/ties"], results[f"{mesh}/control"] = ties(ranks), fewer_candidates(ranks)
    return results
