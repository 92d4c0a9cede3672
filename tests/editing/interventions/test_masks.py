"""Masks and values by position: in one pass, in passes that grow, and while text is generated with a cache."""

from dataclasses import replace

import pytest
import torch
from handmade import normal, random_topk
from tiny import random_tokens, user_error

from editing.interventions.add_direction import AddDirection
from editing.interventions.compose import Scaled
from editing.interventions.masks import Onward, ended, reach, reach_of, where
from editing.interventions.patch import ActivationPatch, Together, patch_features
from sae_core.model.generation import Sampling, generate
from sae_core.sites import Site, Stream

SITE, MLP, N_NEW = Site(1), Site(0, Stream.MLP_OUT), 3
LENGTHS = (7, 4)
"""Prompts of unequal length: the shorter ones are padded on the right."""


def random_mask(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


# ---- one pass --------------------------------------------------------------------------------------


def test_a_mask_names_the_positions_of_its_own_pass():
    h, mask = torch.zeros(3, 7, 5), random_mask(3, 7)
    assert reach(None, h).all()
    assert torch.equal(reach(mask, h), mask)
    assert torch.equal(reach(Onward(mask), h), mask)
    for rows, columns in ((1, 7), (3, 1), (1, 1)):
        part = mask[:rows, :columns]
        assert torch.equal(reach(part, h), part.expand(3, 7))


def test_what_follows_the_prompt_is_edited_onward_only():
    mask, later = random_mask(3, 7), torch.zeros(3, 1, 5)
    assert reach(None, later).all() and reach(Onward(mask), later).all()
    assert not reach(mask, later).any()
    grown = reach(Onward(mask), torch.zeros(3, 9, 5))
    assert torch.equal(grown[:, :7], mask) and grown[:, 7:].all()


def test_one_column_holds_everywhere():
    rows = torch.tensor([[True], [False], [True]])
    for n_pos in (1, 7):
        assert torch.equal(reach(rows, torch.zeros(3, n_pos, 5)), rows.expand(3, n_pos))
    assert reach(Onward(~rows), torch.zeros(3, 1, 5)).all()  # a prompt of one token cannot be told apart


def test_values_by_position_end_and_constants_do_not():
    prompt, later = torch.zeros(3, 7, 5), torch.zeros(3, 1, 5)
    assert not ended(torch.zeros(3, 7, 5), prompt) and ended(torch.zeros(3, 7, 5), later)
    assert not ended(torch.zeros(1, 1, 5), prompt) and not ended(torch.zeros(3, 1, 5), later)


def test_where_takes_the_change_at_the_mask_and_nothing_else():
    h, changed, mask = normal(3, 7, 5), normal(3, 7, 5, seed=1), random_mask(3, 7)
    assert torch.equal(where(mask, changed, h)[mask], changed[mask])
    assert torch.equal(where(mask, changed, h)[~mask], h[~mask])
    assert where(None, changed, h) is changed


@pytest.mark.parametrize("rows, columns", [(2, 7), (4, 7), (3, 6), (3, 8), (7, 3)])
def test_a_mask_or_a_value_for_other_prompts_is_refused(rows, columns):
    h, place = torch.zeros(3, 7, 5), f"{rows} prompts of {columns} tokens"
    with user_error(place, "3 of 7"):
        reach(torch.ones(rows, columns, dtype=torch.bool), h)
    with user_error(place, "3 of 7"):
        ended(torch.zeros(rows, columns, 5), h)
    if (rows, columns) != (3, 6):  # there, the last position came later
        with user_error(place):
            reach(Onward(torch.ones(rows, columns, dtype=torch.bool)), h)


# ---- generation ------------------------------------------------------------------------------------


class Prompts:
    """Prompts of unequal length, and edits of several kinds for their padded batch."""

    def __init__(self, model):
        self.model, d, longest = model, model.d_model, max(LENGTHS)
        self.rows = [random_tokens(model.n_vocab, n, seed=n).tolist() for n in LENGTHS]
        self.content = torch.tensor([[pos < n for pos in range(longest)] for n in LENGTHS])
        self.values = 5 * normal(len(LENGTHS), longest, d, seed=4)
        self.patch = patch_features(SITE, random_topk(d), list(range(0, 48, 2)), self.values)
        self.add, self.constant = AddDirection(SITE, normal(d), 3.0), ActivationPatch(MLP, normal(1, 1, d))

    def generated(self, *edits) -> list[list[int]]:
        with self.model.hooks(*edits):
            return generate(self.model, self.rows, N_NEW, seed=0, sampling=Sampling(temperature=0.0))

    def plainly(self, row: int) -> list[int]:
        """One full pass per token under all three edits, the patch's mask and values written out to the end."""
        tokens, n = list(self.rows[row]), LENGTHS[row]
        while len(tokens) < n + N_NEW:
            mask = torch.tensor([[pos < n for pos in range(len(tokens))]])
            target = torch.zeros(1, len(tokens), self.patch.target.shape[-1])
            target[:, :n] = self.patch.target[row : row + 1, :n]
            here = replace(self.patch, mask=mask, target=target)
            with torch.no_grad(), self.model.hooks(here, self.add, self.constant):
                tokens.append(int(self.model.logits(torch.tensor([tokens]))[0, -1].argmax()))
            if tokens[-1] in self.model.special_ids:
                return tokens[n:-1]
        return tokens[n:]


@pytest.fixture
def prompts(tiny) -> Prompts:
    return Prompts(tiny)


def test_edits_compose_while_generating(prompts):
    edits = [prompts.patch, prompts.add, prompts.constant]
    texts = prompts.generated(*edits)
    assert texts == [prompts.plainly(row) for row in range(len(LENGTHS))]
    assert all(texts != prompts.generated(*edits[:n], *edits[n + 1 :]) for n in (1, 2))  # control: each has a part


def test_a_rows_text_depends_on_its_own_mask_only(prompts):
    plain = prompts.generated()
    first = prompts.content & torch.tensor([[True], [False]])
    texts, both = (prompts.generated(replace(prompts.constant, mask=Onward(mask))) for mask in (first, prompts.content))
    assert texts[0] == both[0] != plain[0]


def test_where_an_edit_may_write():
    """That of its mask, and no position after its values; an edit made of another, where that one may."""
    h, later, mask = torch.zeros(2, 7, 4), torch.zeros(2, 1, 4), random_mask(2, 7)
    constant, by_position = AddDirection(SITE, normal(4)), AddDirection(SITE, normal(2, 7, 4), mask=mask)
    for edit, prompt, goes_on in (
        (constant, torch.ones_like(mask), True),
        (replace(constant, mask=mask), mask, False),
        (replace(constant, mask=Onward(mask)), mask, True),
        (by_position, mask, False),
        (replace(by_position, mask=Onward(mask)), mask, False),
        (Scaled(constant, 2.0), torch.ones_like(mask), True),
        (Scaled(by_position, 2.0), mask, False),
        (Scaled(constant, 2.0, mask), mask, False),
        (Together((by_position, replace(constant, mask=~mask))), torch.ones_like(mask), False),
        (Together((by_position, replace(constant, mask=Onward(mask)))), mask, True),
    ):
        assert torch.equal(reach_of(edit, h), prompt)
        assert reach_of(edit, later).all() == reach_of(edit, later).any() == goes_on
