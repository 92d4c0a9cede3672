"""What holds for every edit there is: with a cache as without, in a padded batch as alone, its gradient, its size.

Beside each edit stands what it does to one token's activation, written out by hand. The reference runs each
prompt alone, from its tokens and in one pass, with that function at the positions that are edited.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
from handmade import normal, random_topk
from tiny import KINDS, random_tokens

from editing.interventions.add_direction import AddDirection
from editing.interventions.compose import Scaled, spare_bos
from editing.interventions.edit_size import MeasuredEdit, edit_sizes
from editing.interventions.erase import fit_leace, mean_difference, orthogonal, project_out
from editing.interventions.masks import Onward
from editing.interventions.patch import (
    ActivationPatch,
    ErrorPatch,
    Together,
    ablate,
    clamp,
    mean_ablate,
    patch_features,
    resample_ablate,
    scale,
    splice_with_error,
)
from editing.loss_recovered import Splice
from editing.steering.edits import Redirected
from sae_core.model.generation import Sampling, generate
from sae_core.model.language_model import Intervention
from sae_core.model.padding import pad
from sae_core.sites import Site

SITE, D, LENGTHS, N_NEW = Site(1), 32, (7, 4), 3
LONGEST, LATENTS = max(LENGTHS), list(range(0, 48, 2))

ByHand = Callable[[torch.Tensor, int, int], torch.Tensor]
"""What an edit makes of the activation of a row at a position."""


@dataclass(frozen=True, eq=False)
class Case:
    """An edit of the padded batch of prompts, and the same by hand."""

    edit: Intervention
    by_hand: ByHand
    by_position: bool = False
    """Whether its values end with the prompt."""
    free: bool = True
    """Whether it takes a mask."""


def cases(model=None, *, dtype=torch.float32) -> dict[str, Case]:
    """One of each kind; those that need a model only where there is one."""

    def gaussian(*shape: int, seed: int) -> torch.Tensor:
        return normal(*shape, seed=seed).to(dtype)

    sae, pool, x = random_topk(D).to(dtype), 3 * gaussian(40, D, seed=4), 3 * gaussian(2, LONGEST, D, seed=5)
    labels, three = (torch.arange(40) % n for n in (2, 3))
    pool[labels == 1] += 2 * gaussian(D, seed=6)
    d, features = sae.directions[LATENTS], (SITE, sae, LATENTS)
    u = gaussian(D, seed=7) / gaussian(D, seed=7).norm()
    codes, error = sae.encode(x)[..., LATENTS], x - sae.decode(sae.encode(x))

    def f(h: torch.Tensor) -> torch.Tensor:
        return sae.encode(h)[LATENTS]

    def chance() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    drawn = torch.randint(40, (2, LONGEST), generator=chance())
    values = sae.encode(pool)[:, LATENTS]
    patched: ByHand = lambda h, row, pos: h + (codes[row, pos] - f(h)) @ d  # noqa: E731
    scaled: ByHand = lambda h, row, pos: h - 1.7 * f(h) @ d  # noqa: E731
    spliced: ByHand = lambda h, row, pos: sae.decode(sae.encode(h))  # noqa: E731
    subspace = torch.linalg.qr(gaussian(2, D, seed=8).T).Q
    means = [torch.stack([pool[kind == label].mean(0) for label in kind.unique()]) for kind in (labels, three)]
    apart, plane = (torch.linalg.qr((class_means[1:] - class_means[0]).T).Q for class_means in means)
    leace = fit_leace(SITE, pool, labels)  # `test_erase.py` has its closed form

    def without(basis: torch.Tensor, mean: torch.Tensor) -> ByHand:
        return lambda h, row, pos: h - ((h - mean) @ basis) @ basis.T

    def turned(h: torch.Tensor, row: int, pos: int) -> torch.Tensor:
        change = scaled(h, row, pos) - h
        return h + change.norm() * (change @ d.sum(0)).sign() * u

    patch, scaling, splice = patch_features(*features, x), scale(*features, -0.7), Splice(SITE, sae)
    every = {
        "patch": Case(patch, patched, by_position=True),
        "ablate": Case(ablate(*features), lambda h, row, pos: h - f(h) @ d),
        "clamp": Case(clamp(*features, 1.5), lambda h, row, pos: h + (1.5 - f(h)) @ d),
        "mean": Case(mean_ablate(*features, pool), lambda h, row, pos: h + (values.mean(0) - f(h)) @ d),
        "resample": Case(
            resample_ablate(*features, pool, (2, LONGEST), generator=chance()),
            lambda h, row, pos: h + (values[drawn[row, pos]] - f(h)) @ d,
            by_position=True,
        ),
        "scale": Case(scaling, scaled),
        "error": Case(
            splice_with_error(SITE, sae, x),
            lambda h, row, pos: spliced(h, row, pos) + error[row, pos],
            by_position=True,
        ),
        "constant error": Case(ErrorPatch(SITE, sae, x[:1, :1]), lambda h, row, pos: spliced(h, row, pos) + x[0, 0]),
        "activation": Case(ActivationPatch(SITE, x), lambda h, row, pos: x[row, pos], by_position=True),
        "constant": Case(ActivationPatch(SITE, x[:1, :1]), lambda h, row, pos: x[0, 0]),
        "add": Case(AddDirection(SITE, 5 * u, 1.5), lambda h, row, pos: h + 7.5 * u),
        "add by position": Case(AddDirection(SITE, x), lambda h, row, pos: h + x[row, pos], by_position=True),
        "splice": Case(splice, spliced),
        "leace": Case(leace, lambda h, row, pos: h - leace.left @ (leace.right @ (h - pool.mean(0)))),
        "orthogonal": Case(orthogonal(SITE, pool, three), without(plane, pool.mean(0))),
        "mean difference": Case(mean_difference(SITE, pool, labels), without(apart, pool.mean(0))),
        "project out": Case(project_out(SITE, gaussian(2, D, seed=8)), without(subspace, torch.zeros(D, dtype=dtype))),
        "scaled": Case(Scaled(splice, 1.5), lambda h, row, pos: h + 1.5 * (spliced(h, row, pos) - h)),
        "scaled patch": Case(
            Scaled(patch, 0.5), lambda h, row, pos: h + 0.5 * (patched(h, row, pos) - h), by_position=True
        ),
        "redirected": Case(Redirected(scaling, u, d.sum(0) / d.sum(0).norm()), turned, free=False),
        "together": Case(
            Together((scaling, splice)),
            lambda h, row, pos: h + (scaled(h, row, pos) - h) + (spliced(h, row, pos) - h),
            free=False,
        ),
        "patches together": Case(
            Together((patch, replace(patch, latents=patch.latents + 1))),
            lambda h, row, pos: (
                patched(h, row, pos)
                + (codes[row, pos] - sae.encode(h)[[j + 1 for j in LATENTS]]) @ sae.directions[[j + 1 for j in LATENTS]]
            ),
            by_position=True,
            free=False,
        ),
    }
    if model is not None:
        (spared,) = spare_bos(model, [scaling])
        every["spared"] = Case(spared, lambda h, row, pos: scaled(h, row, pos) if pos else h, free=False)
    return every


NAMES = [*cases(), "spared"]
EVERY = pytest.mark.parametrize("name", NAMES)


@dataclass(frozen=True, eq=False)
class ByHandEdit:
    """The function of a case, token by token, on one row alone at chosen positions; notes how far each was moved."""

    case: Case
    row: int
    edited: list[bool]
    moved: list[float]

    @property
    def site(self) -> Site:
        return SITE

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        for pos, edited in enumerate(self.edited):
            if edited:
                changed = self.case.by_hand(h[0, pos], self.row, pos)
                self.moved.append(float((changed - h[0, pos]).norm()))
                h[0, pos] = changed
        return h


class Watch:
    """The last residual of every pass of a generation."""

    def __init__(self, model):
        self.site, self.passes = model.sites()[-1], []

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        self.passes.append(h)
        return h


@pytest.fixture
def setting(tiny_models, name):
    """A model (each kind in its turn), prompts of unequal length that begin with BOS, and the case."""
    model = tiny_models[KINDS[NAMES.index(name) % len(KINDS)]]
    rows = [[model.bos_id, *random_tokens(model.n_vocab, n - 1, seed=n).tolist()] for n in LENGTHS]
    return model, rows, cases(model)[name]


def masks(case: Case) -> dict[str, torch.Tensor | Onward | None]:
    """None, a mask and the same onward; padding is left out."""
    content = torch.tensor([[pos < n for pos in range(LONGEST)] for n in LENGTHS])
    chosen = content & (torch.rand(2, LONGEST, generator=torch.Generator().manual_seed(1)) < 0.6)
    return {"everywhere": None} | ({"mask": chosen, "onward": Onward(chosen)} if case.free else {})


def edited(case: Case, mask, row: int, n_pos: int) -> list[bool]:
    """Which of the first `n_pos` positions of a row are edited."""
    prompt = [True] * LENGTHS[row]
    if mask is not None:
        prompt = (mask.mask if isinstance(mask, Onward) else mask)[row, : LENGTHS[row]].tolist()
    later = not case.by_position and not isinstance(mask, torch.Tensor)
    return prompt + [later] * (n_pos - len(prompt))


# ---- the four properties ---------------------------------------------------------------------------


@pytest.mark.slow
@EVERY
def test_generating_with_a_cache_in_a_padded_batch_is_one_full_pass_of_each_row_alone(setting):
    model, rows, case = setting
    plain = model.record(pad(rows, fill=model.bos_id)[0], [model.sites()[-1]])[model.sites()[-1]]
    changes = 0
    for mask in masks(case).values():
        edit, watch = case.edit if mask is None else replace(case.edit, mask=mask), Watch(model)
        measured = MeasuredEdit(edit)
        with model.hooks(measured, watch):
            new = generate(model, rows, N_NEW, seed=0, sampling=Sampling(temperature=0.0))
        read = range(sum(h.shape[1] for h in watch.passes))
        sizes = measured.sizes(torch.tensor([[pos < n or pos >= LONGEST for pos in read] for n in LENGTHS]))
        for row, prompt in enumerate(rows):
            n, tokens = len(prompt), [*prompt, *new[row]]
            n_read = n + len(watch.passes) - 1
            if len(tokens) < n_read:  # it ended, the other row went on
                continue
            by_hand = ByHandEdit(case, row, edited(case, mask, row, n_read), [])
            with model.hooks(by_hand):
                expected = model.record(torch.tensor([tokens[:n_read]]), [model.sites()[-1]])[model.sites()[-1]]
                best = model.unembed(expected[0, n - 1 :]).argmax(-1).tolist()
            residuals = torch.cat([watch.passes[0][row, :n], *(h[row] for h in watch.passes[1:])])
            torch.testing.assert_close(residuals, expected[0], atol=2e-3, rtol=1e-3)
            assert best == new[row][: len(best)]
            assert float(sizes[row]) == pytest.approx(sum(by_hand.moved) / max(1, len(by_hand.moved)), rel=1e-3)
            changes += (residuals[:n] - plain[row, :n]).abs().max() > 1e-2
    assert changes  # control: it edits


@pytest.mark.slow
@EVERY
def test_its_size_is_the_mean_distance_over_the_content_that_it_edits(setting):
    model, rows, case = setting
    tokens, content = pad(rows, fill=model.bos_id)[0], torch.zeros(2, LONGEST, dtype=torch.bool)
    sizes = []
    for mask in masks(case).values():
        edit = case.edit if mask is None else replace(case.edit, mask=mask)
        by_row = edit_sizes(model, tokens, [edit])[0]
        sizes += by_row.tolist()
        for row, n in enumerate(LENGTHS):
            content[row, 1:n] = True
            counted = (torch.tensor(edited(case, mask, row, n)) & content[row, :n]).tolist()
            by_hand = ByHandEdit(case, row, counted, [])
            with model.hooks(by_hand):
                model.logits(tokens[row : row + 1, :n])
            assert float(by_row[row]) == pytest.approx(sum(by_hand.moved) / max(1, sum(counted)), rel=1e-3)
    assert max(sizes) > 0.1


@EVERY
def test_gradients_flow_through_the_model_and_through_it(setting):
    """Up from a push below, through the edit, to a logit; against differences."""
    model, rows, case = setting
    tokens, push = pad(rows, fill=model.bos_id)[0], normal(D, seed=10)
    edit = replace(case.edit, mask=masks(case)["mask"]) if case.free else case.edit

    def metric(t: torch.Tensor) -> torch.Tensor:
        with model.hooks(AddDirection(Site(0), push, t, mask=tokens != model.bos_id), edit):
            return model.logits(tokens)[:, LENGTHS[1] - 1, 5].sum()

    at = torch.zeros((), requires_grad=True)
    (gradient,) = torch.autograd.grad(metric(at), at)
    with torch.no_grad():
        step = torch.tensor(5e-4)
        measured = (metric(step) - metric(-step)) / (2 * step)
    assert abs(measured) > 1e-2
    assert gradient.item() == pytest.approx(measured.item(), rel=0.03, abs=0.02)


@pytest.mark.parametrize("name", cases())
def test_gradients_flow_to_the_activation_and_to_what_an_edit_is_made_of(name):
    case, h = cases(dtype=torch.float64)[name], 2 * normal(2, LONGEST, D, seed=6).double()
    edit = replace(case.edit, mask=masks(case)["mask"]) if case.free else case.edit
    tensors_of = {
        field.name: getattr(edit, field.name).clone()
        for field in fields(edit)
        if isinstance(getattr(edit, field.name), torch.Tensor)
        and getattr(edit, field.name).is_floating_point()
        and field.name != "edit_direction"  # of which only a sign is used
    }
    few = h[:, :2].clone()  # of the positions, for speed; the rest stays
    inputs = [tensor.requires_grad_() for tensor in (few, *tensors_of.values())]

    def changed(few, *tensors):
        rebuilt = replace(edit, **dict(zip(tensors_of, tensors, strict=True)))
        return rebuilt(torch.cat([few, h[:, 2:].detach()], 1))

    assert torch.autograd.gradcheck(changed, inputs, fast_mode=True)
    gradients = torch.autograd.grad(changed(*inputs).pow(2).sum(), inputs)
    assert all(gradient.any() for gradient in gradients)
