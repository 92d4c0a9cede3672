"""Effects among members on the same prompts: what every pair on its own has, and what direct effects add up to."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from handmade import Circuit, HandModel, feature, random_topk
from tiny import random_tokens

from circuits.discovery.edges import EdgeConfig
from circuits.discovery.member_edges import edges_among, edges_on
from circuits.discovery.prompts import PromptSource
from circuits.discovery.target_causes import CauseSearch, DiscoveryConfig, Reach
from circuits.effects.ablation_effects import ToMean
from circuits.effects.member_effects import MemberEffects
from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import ErrorTerm, Readout
from circuits.scoring.edge_check import check_edges, check_member_edges
from editing.engine.resumed_run import adds_to_residual
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import FeatureId, Site, Stream

WRITTEN = [Site(layer, stream) for layer in range(3) for stream in (Stream.ATTN_OUT, Stream.MLP_OUT)]


def searched(model, *, means: bool = False, **how) -> tuple[CauseSearch, TargetPrompts]:
    """A search among random features of what blocks write, and a logit on prompts of several lengths."""
    saes = {site: random_topk(32, 12, 4, seed=number) for number, site in enumerate(WRITTEN)}
    tokens, rows = random_tokens(model.n_vocab, 3, 6, seed=3), torch.arange(3)
    tokens[:, 0] = model.bos_id
    target, end = LogitTarget(Readout("a - b"), model, rows + 5, rows + 20), torch.tensor([5, 3, 4])
    h = model.record(tokens, [target.site])[target.site][rows, end]
    prompts = Examples(tokens, end, target.read(h, rows))
    config = DiscoveryConfig(EdgeConfig(min_effect=1e-4, **how), 3, min_examples=1, reach=Reach.ALL)
    ablations = {site: ToMean(0.1 + torch.rand(12)) for site in saes} if means else {}
    search = CauseSearch(model, saes, PromptSource(model, saes, prompts), config, ablations)
    return search, TargetPrompts(target, prompts)


MEMBERS = dict.fromkeys(WRITTEN[1:], (3, 5))


def near(number: float | None):
    return None if number is None else pytest.approx(number, abs=2e-5, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind, means", [("neox", False), ("gpt2", True)])
def test_edges_are_those_of_every_pair_on_its_own(tiny_models, kind, means):
    search, prompts = searched(tiny_models[kind], means=means, n_null=3, keep=2)
    at_once = {step.target: step for step in edges_on(search, MEMBERS, prompts)}
    one_by_one = edges_among(search, MEMBERS, prompts.target, prompts.examples)
    edges = []
    for slow in islice(one_by_one, 0, 9, 2):  # the root, and targets at two sites
        step, expected = at_once[slow.target], {edge.cause: edge for edge in slow.edges}
        assert (step.n_examples, step.n_pairs) == (slow.n_examples, slow.n_pairs)
        assert {edge.cause for edge in step.edges} == expected.keys()
        for edge in step.edges:
            other = expected[edge.cause]
            assert (edge.n_active, edge.n_examples, edge.certified) == (other.n_active, other.n_examples, True)
            for name in ("effect", "error", "null", "cosine"):
                assert getattr(edge, name) == near(getattr(other, name)), name
            if isinstance(edge.cause, FeatureId) and adds_to_residual(search.model, edge.cause.site):
                assert edge.direct == near(other.direct)
            assert [size for _, size in edge.offsets] == near([size for _, size in other.offsets])
        edges += step.edges
    assert len(edges) > 15 and any(isinstance(edge.cause, ErrorTerm) for edge in edges)


def test_causes_scaled_at_once_move_targets_as_one_by_one(tiny):
    search, prompts = searched(tiny, n_null=0, errors=False, described=False)
    edges = [edge for step in edges_on(search, MEMBERS, prompts) for edge in step.edges]
    effects = MemberEffects(tiny, search.dictionaries, prompts.examples, prompts.target, MEMBERS, {})
    read = {prompts.target.node: prompts}
    to_root = [edge for edge in edges if edge.target == prompts.target.node]
    draw = torch.Generator()
    slow = check_edges(tiny, search.dictionaries, to_root, read, generator=draw.manual_seed(0))
    fast = check_member_edges(effects, to_root, generator=draw.manual_seed(0))
    moves = {(m.cause, m.target, m.factor): m.change for m in fast.moves if m.effect is not None}
    expected = {(m.cause, m.target, m.factor): m.change for m in slow.moves if m.effect is not None}
    assert moves == pytest.approx(expected, abs=1e-5) and len(moves) == 3 * len(to_root) > 6
    assert [m.change for m in fast.moves if m.factor == 0 and m.effect is not None] == pytest.approx(
        [-m.effect for m in fast.moves if m.factor == 0 and m.effect is not None], abs=1e-5
    )


# ---- what direct effects add up to -----------------------------------------------------------------


def test_direct_effects_on_linear_blocks_add_up():
    """f8 = f6 - 0.25 f7, and f6 = f4 + 2 f5: all of each comes from its members, and none of them adds to another's."""
    circuit = Circuit()
    saes = {site: Basis(circuit.d, torch.zeros(12)) for site in circuit.model.sites()}
    tokens = circuit.contexts(6)
    prompts = TargetPrompts(
        FeatureTarget(FeatureId(Site(3), 8), saes[Site(3)]), Examples(tokens, torch.full((6,), 7), torch.ones(6))
    )
    search = CauseSearch(circuit.model, saes, PromptSource(circuit.model, saes, prompts.examples))
    search = replace(search, config=replace(search.config, edges=EdgeConfig(n_null=0, errors=False)))
    members = {Site(0): [0, 1, 2, 3], Site(1): [4, 5], Site(2): [6, 7]}
    steps = {step.target: step for step in edges_on(search, members, prompts)}
    for number in (8, 6, 7):
        sums = steps[FeatureId(feature(number).site, number)].direct
        assert (sums.alone, sums.remainder) == pytest.approx((1, 0), abs=1e-5)
    edges = {(e.cause.index, e.target.index): e for step in steps.values() for e in step.edges}
    assert edges[0, 8].direct == pytest.approx(0, abs=1e-6) and edges[0, 8].effect > 0.1, "all of it passes by f4"
    assert edges[6, 8].direct is None, "between neighbours it is all"


class Squared(HandModel):
    """A block that writes the square of what two features add up to."""

    def _run(self, h, first, sites):
        parts = super()._run(h, first, [])
        x = h if first else h + h @ self.blocks[0][0].T
        total = (x[..., 0] + x[..., 1]).square()
        parts[Site(1)] = x + torch.nn.functional.one_hot(torch.tensor(2), 4) * total[..., None]
        return {site: parts[site] if site.layer else x for site in sites}


def test_what_a_nonlinear_block_makes_of_two_causes_is_the_remainder():
    """(a + b)^2: without a it loses a^2 + 2ab, without b b^2 + 2ab, without both all of it; -2ab remains."""
    zero = torch.zeros(4, 4)
    a, b = torch.tensor([0.0, 1.0, 2.0, 0.5]), torch.tensor([0.0, 3.0, 1.0, 1.5])
    model = Squared(torch.stack([a, b, a * 0, a * 0], 1), [(zero, zero), (zero, zero)])
    saes = {site: Basis(torch.eye(4), torch.zeros(4)) for site in model.sites()}
    target = FeatureTarget(FeatureId(Site(1), 2), saes[Site(1)])
    prompts = Examples(torch.tensor([[0, 1], [0, 2], [0, 3]]), torch.ones(3, dtype=torch.long), torch.ones(3))
    effects = MemberEffects(model, saes, prompts, target, {Site(0): [0, 1]}, {})
    total, (root, *_) = effects.total(), effects.readings
    whole = (a + b).square().sum()
    alone, _ = root.effects(effects.direct(total)[:, 0])
    by_hand = [float((x * (x + 2 * y)).sum() / whole) for x, y in ((a, b), (b, a))]
    assert alone[:2].tolist() == pytest.approx(by_hand)
    together = float(root.effects(effects.together()[None, 0])[0])
    assert together == pytest.approx(1)
    assert together - float(alone[:2].sum()) == pytest.approx(float(-2 * (a * b).sum() / whole))
