"""Sizes of edits: those of the composed run, at the positions that are edited."""

from dataclasses import dataclass

import pytest
import torch
from comparing import close, n_hooks
from handmade import normal, random_topk
from tiny import Edit, random_tokens, user_error

from editing.interventions.add_direction import AddDirection
from editing.interventions.edit_size import MeasuredEdit, edit_sizes
from editing.interventions.masks import Onward
from editing.interventions.patch import ActivationPatch, Together, ablate, patch_features, scale, splice_with_error
from sae_core.model.generation import Sampling, generate
from sae_core.model.language_model import Intervention
from sae_core.sites import Site, Stream

RESID, MLP = Site(1), Site(1, Stream.MLP_OUT)


@pytest.fixture
def tokens(tiny):
    """Two of three prompts begin with BOS."""
    tokens = random_tokens(tiny.n_vocab, 3, 9)
    tokens[:2, 0] = tiny.bos_id
    return tokens


def plainly(before, after, counted) -> torch.Tensor:
    """Mean distance at the positions counted, prompt by prompt."""
    rows = zip(before, after, counted, strict=True)
    return torch.stack([(b[n] - a[n]).norm(dim=-1).mean() if n.any() else torch.tensor(0.0) for b, a, n in rows])


def test_a_size_is_the_mean_distance_over_edited_content(tiny, tokens):
    sae, mask = random_topk(32), torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    h, content = tiny.record(tokens, [RESID])[RESID], tiny.content(tokens)
    for kept in (None, mask):
        edit = ablate(RESID, sae, range(24), mask=kept)
        counted = content if kept is None else content & kept
        close(edit_sizes(tiny, tokens, [edit])[0], plainly(h, edit(h), counted))
    everywhere = edit_sizes(tiny, tokens, [edit], counted=torch.ones_like(content))[0]
    close(everywhere, plainly(h, edit(h), mask))
    assert (everywhere - edit_sizes(tiny, tokens, [edit])[0]).abs().max() > 1e-3  # control: BOS is left out


def test_each_size_is_that_of_the_composed_run(tiny, tokens):
    sae, other = random_topk(32), random_topk(32, seed=3)
    upstream, first = scale(MLP, sae, range(48), 3.0), ablate(RESID, other, range(24))
    second = AddDirection(RESID, normal(32), 2.0)
    third = ablate(RESID, other, range(12, 48))
    sizes = edit_sizes(tiny, tokens, [third, first, second, upstream])
    content = tiny.content(tokens)
    with tiny.hooks(upstream):
        h = tiny.record(tokens, [RESID])[RESID]
    close(sizes[0], plainly(h, third(h), content))
    close(sizes[1], plainly(third(h), first(third(h)), content))
    close(sizes[2], (2 * normal(32).norm()).expand(3), 1e-4)
    # control: alone, or in another order, the same edits are of other sizes
    alone = torch.cat([edit_sizes(tiny, tokens, [edit]) for edit in (third, first)])
    swapped = edit_sizes(tiny, tokens, [first, third, second, upstream])[:2].flip(0)
    assert (alone - sizes[:2]).abs().max() > 1e-2 and (swapped - sizes[:2]).abs().max() > 1e-2


def test_nothing_edited_is_of_size_zero(tiny, tokens):
    sae, nowhere = random_topk(32), torch.zeros(3, 9, dtype=torch.bool)
    edits = [ablate(RESID, sae, []), scale(RESID, sae, [1], 1.0), AddDirection(MLP, normal(32), mask=nowhere)]
    assert torch.equal(edit_sizes(tiny, tokens, edits), torch.zeros(3, 3))
    assert edit_sizes(tiny, tokens, []).shape == (0, 3)


def test_together_counts_the_positions_of_all_its_patches(tiny, tokens):
    first, last = torch.zeros(2, 3, 9, dtype=torch.bool)
    first[:, 1], last[:, 8] = True, True
    h, sae = tiny.record(tokens, [RESID])[RESID], random_topk(32)
    edit = Together((ablate(RESID, sae, range(48), mask=first), ActivationPatch(RESID, normal(1, 1, 32), last)))
    close(edit_sizes(tiny, tokens, [edit])[0], plainly(h, edit(h), first | last))
    h_bar = tiny.record(tokens.flip(0), [RESID])[RESID]
    whole = Together((patch_features(RESID, sae, range(48), h_bar), splice_with_error(RESID, sae, h_bar)))
    close(edit_sizes(tiny, tokens, [whole])[0], plainly(h, h_bar, tiny.content(tokens)), 1e-4)


@dataclass(frozen=True, eq=False)
class Twice:
    """An edit made of another one."""

    edit: Intervention

    @property
    def site(self) -> Site:
        return self.edit.site

    def __call__(self, h):
        return h + 2 * (self.edit(h) - h)


def test_an_edit_made_of_another_counts_the_positions_of_that(tiny, tokens):
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[:, 4:6] = True
    edit = ablate(RESID, random_topk(32), range(24), mask=mask)
    close(edit_sizes(tiny, tokens, [Twice(edit)]), 2 * edit_sizes(tiny, tokens, [edit]))


def test_sizes_while_generating_go_on_where_the_edit_does(tiny):
    rows = [random_tokens(tiny.n_vocab, n, seed=n).tolist() for n in (6, 6)]
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1] = True
    direction = normal(32)
    edits = {
        "all": AddDirection(RESID, direction),
        "prompt": AddDirection(RESID, direction, mask=mask),
        "onward": AddDirection(RESID, direction, mask=Onward(mask)),
        "by position": AddDirection(RESID, direction * torch.ones(2, 6, 1)),
    }
    for name, edit in edits.items():
        measured = MeasuredEdit(edit)
        with tiny.hooks(measured):
            new = generate(tiny, rows, 3, seed=0, sampling=Sampling(temperature=0.0))
        assert max(map(len, new)) == 3
        assert [tuple(distances.shape) for distances in measured.moved] == [(2, 6), (2, 1), (2, 1)]
        moved = torch.cat(measured.moved, 1) > 0
        assert moved[:, 6:].all() == (name in ("all", "onward")) and moved[:, 6:].any() == moved[:, 6:].all()
        assert torch.equal(moved[:, :6], mask if edit.mask is not None else torch.ones_like(mask))
        size = direction.norm()
        close(measured.sizes(), torch.stack([size, size * (name != "prompt")]))


def test_measuring_changes_nothing_and_leaves_no_trace(tiny, tokens):
    edit, before, hooks = scale(RESID, random_topk(32), range(48), 2.0), tiny.logits(tokens), n_hooks(tiny)
    with tiny.hooks(edit):
        expected = tiny.logits(tokens)
    with tiny.hooks(MeasuredEdit(edit)):
        assert torch.equal(tiny.logits(tokens), expected)
    edit_sizes(tiny, tokens, [edit])
    with user_error("32", "64"):
        edit_sizes(tiny, tokens, [edit, AddDirection(Site(2, Stream.MLP_HIDDEN), torch.zeros(32))])
    assert n_hooks(tiny) == hooks and torch.equal(tiny.logits(tokens), before)


def test_an_edit_of_ones_own_is_measured_too(tiny, tokens):
    edit = Edit(RESID, lambda h: h + 1)
    close(edit_sizes(tiny, tokens, [edit])[0], torch.full((3,), 32**0.5), 1e-5)
    pushed = torch.zeros(32, requires_grad=True)
    measured = MeasuredEdit(AddDirection(RESID, pushed))
    with tiny.hooks(measured):
        tiny.logits(tokens).sum().backward()
    assert pushed.grad.any() and not measured.moved[0].requires_grad
