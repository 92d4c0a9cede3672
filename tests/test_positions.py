"""Masks and values by position: in one pass, in passes that grow, and while text is generated with a cache."""

from dataclasses import replace

import pytest
import torch
from handmade import normal, random_topk
from tiny import random_tokens, user_error

from editing.directions import AddDirection
from editing.patch import ActivationPatch, Together, ablate, patch_features, scale
from editing.positions import Onward, edited, ended, where
from editing.splice import Splice
from sae_core.generation import Sampling, generate
from sae_core.sites import Site, Stream

SITE, MLP, N_NEW = Site(1), Site(0, Stream.MLP_OUT), 3
LENGTHS = (7, 4)
"""Prompts of unequal length: the shorter ones are padded on the right."""


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


# ---- one pass --------------------------------------------------------------------------------------


def test_a_mask_names_the_positions_of_its_own_pass():
    h, mask = torch.zeros(3, 7, 5), some(3, 7)
    assert edited(None, h).all()
    assert torch.equal(edited(mask, h), mask)
    assert torch.equal(edited(Onward(mask), h), mask)
    for rows, columns in ((1, 7), (3, 1), (1, 1)):
        part = mask[:rows, :columns]
        assert torch.equal(edited(part, h), part.expand(3, 7))


def test_what_follows_the_prompt_is_edited_onward_only():
    mask, later = some(3, 7), torch.zeros(3, 1, 5)
    assert edited(None, later).all() and edited(Onward(mask), later).all()
    assert not edited(mask, later).any()
    grown = edited(Onward(mask), torch.zeros(3, 9, 5))
    assert torch.equal(grown[:, :7], mask) and grown[:, 7:].all()


def test_one_column_holds_everywhere():
    rows = torch.tensor([[True], [False], [True]])
    for n_pos in (1, 7):
        assert torch.equal(edited(rows, torch.zeros(3, n_pos, 5)), rows.expand(3, n_pos))
    assert edited(Onward(~rows), torch.zeros(3, 1, 5)).all()  # a prompt of one token cannot be told apart


def test_values_by_position_end_and_constants_do_not():
    prompt, later = torch.zeros(3, 7, 5), torch.zeros(3, 1, 5)
    assert not ended(torch.zeros(3, 7, 5), prompt) and ended(torch.zeros(3, 7, 5), later)
    assert not ended(torch.zeros(1, 1, 5), prompt) and not ended(torch.zeros(3, 1, 5), later)


def test_where_takes_the_change_at_the_mask_and_nothing_else():
    h, changed, mask = normal(3, 7, 5), normal(3, 7, 5, seed=1), some(3, 7)
    assert torch.equal(where(mask, changed, h)[mask], changed[mask])
    assert torch.equal(where(mask, changed, h)[~mask], h[~mask])
    assert where(None, changed, h) is changed


@pytest.mark.parametrize("rows, columns", [(2, 7), (4, 7), (3, 6), (3, 8), (7, 3)])
def test_a_mask_or_a_value_for_other_prompts_is_refused(rows, columns):
    h, place = torch.zeros(3, 7, 5), f"{rows} prompts of {columns} tokens"
    with user_error(place, "3 of 7"):
        edited(torch.ones(rows, columns, dtype=torch.bool), h)
    with user_error(place, "3 of 7"):
        ended(torch.zeros(rows, columns, 5), h)
    if (rows, columns) != (3, 6):  # there, the last position came later
        with user_error(place):
            edited(Onward(torch.ones(rows, columns, dtype=torch.bool)), h)


# ---- generation ------------------------------------------------------------------------------------


class Prompts:
    """Prompts of unequal length, and edits of every kind for their padded batch."""

    def __init__(self, model):
        self.model, d, longest = model, model.d_model, max(LENGTHS)
        self.rows = [random_tokens(model.n_vocab, n, seed=n).tolist() for n in LENGTHS]
        self.content = torch.tensor([[pos < n for pos in range(longest)] for n in LENGTHS])
        self.chosen = self.content & some(len(LENGTHS), longest, seed=3)
        sae, x = random_topk(d), 5 * normal(len(LENGTHS), longest, d, seed=4)
        latents = list(range(0, 48, 2))
        self.everywhere = {
            "ablate": ablate(SITE, sae, latents),
            "scale": scale(SITE, sae, latents, 3.0),
            "add": AddDirection(SITE, normal(d), 3.0),
            "splice": Splice(SITE, sae),
            "constant": ActivationPatch(MLP, normal(1, 1, d)),
        }
        self.in_the_prompt = {
            "patch": patch_features(SITE, sae, latents, x),
            "activation": ActivationPatch(SITE, x),
            "add by position": AddDirection(SITE, x),
        }

    def generated(self, *edits) -> list[list[int]]:
        with self.model.hooks(*edits):
            return generate(self.model, self.rows, N_NEW, seed=0, sampling=Sampling(temperature=0.0))

    def plainly(self, *edits, later: bool) -> list[list[int]]:
        """One full pass per token and row, with masks and values written out for all positions that there are.

        What is generated is edited if `later`, except where values end with the prompt.
        """
        return [self._plainly(edits, row, later) for row in range(len(self.rows))]

    def _plainly(self, edits, row: int, later: bool) -> list[int]:
        prompt, tokens = self.rows[row], list(self.rows[row])
        while len(tokens) < len(prompt) + N_NEW:
            here = [self._whole(edit, row, len(tokens), later) for edit in edits]
            with torch.no_grad(), self.model.hooks(*here):
                tokens.append(int(self.model.logits(torch.tensor([tokens]))[0, -1].argmax()))
            if tokens[-1] in self.model.special_ids:
                return tokens[len(prompt) : -1]
        return tokens[len(prompt) :]

    def _whole(self, edit, row: int, n_pos: int, later: bool):
        """The edit for one row of `n_pos` tokens."""
        n = len(self.rows[row])
        mask = torch.ones(1, n, dtype=torch.bool) if edit.mask is None else self._own(edit.mask, row)
        values = {
            name: torch.cat([self._own(value, row), torch.zeros(1, n_pos - n, value.shape[-1])], 1)
            for name, value in vars(edit).items()
            if name in ("target", "direction") and value.ndim == 3 and value.shape[1] > 1
        }
        later = later and not values
        return replace(edit, mask=torch.cat([mask, torch.full((1, n_pos - n), later)], 1), **values)

    def _own(self, values: torch.Tensor | Onward, row: int) -> torch.Tensor:
        values = values.mask if isinstance(values, Onward) else values
        return values[row : row + 1, : len(self.rows[row])]


@pytest.fixture
def prompts(tiny) -> Prompts:
    return Prompts(tiny)


def test_generation_with_a_cache_is_what_full_passes_with_a_mask_of_every_position_give(prompts):
    plain, changes = prompts.generated(), 0
    for edit in prompts.everywhere.values():
        masked = {False: replace(edit, mask=prompts.chosen), True: replace(edit, mask=Onward(prompts.chosen))}
        found = {later: prompts.generated(one) for later, one in masked.items()}
        for later, one in masked.items():
            assert found[later] == prompts.plainly(one, later=later)
        assert prompts.generated(edit) == prompts.plainly(edit, later=True)
        changes += found[False] != plain
        changes += found[True] != found[False]
    assert changes > len(prompts.everywhere)  # control: masks, and what comes after them, make a difference


def test_values_by_position_are_written_into_the_prompt_only(prompts):
    plain, changes = prompts.generated(), 0
    for edit in prompts.in_the_prompt.values():
        for one in (replace(edit, mask=prompts.chosen), replace(edit, mask=Onward(prompts.content))):
            found = prompts.generated(one)
            assert found == prompts.plainly(one, later=False)
            changes += found != plain
    assert changes > len(prompts.in_the_prompt)


def test_edits_compose_while_generating(prompts):
    edits = [prompts.in_the_prompt["patch"], prompts.everywhere["add"], prompts.everywhere["constant"]]
    found = prompts.generated(*edits)
    assert found == prompts.plainly(*edits, later=True)
    assert found != prompts.generated(edits[0]) and found != prompts.generated(edits[1])
    together = Together(tuple(edits[:2]))
    assert prompts.generated(together) != prompts.generated()


def test_a_rows_text_depends_on_its_own_mask_only(prompts):
    edit, plain = prompts.everywhere["constant"], prompts.generated()
    first = prompts.content & torch.tensor([[True], [False]])
    found, both = (prompts.generated(replace(edit, mask=Onward(mask))) for mask in (first, prompts.content))
    assert found[0] == both[0] != plain[0]
