"""Generation: what a loop of full forward passes gives, whatever stands beside it in the batch."""

import pytest
import torch
from tiny import Edit, random_tokens, user_error

from sae_core.model.generation import Sampling, generate, pieces
from sae_core.sites import Site, Stream

GREEDY = Sampling(temperature=0.0)


def plain(model, prompt, n_new, *, edits=()) -> list[int]:
    """Greedy, one full forward pass per token."""
    tokens = list(prompt)
    for _ in range(n_new):
        with torch.no_grad(), model.hooks(*edits):
            token = int(model.logits(torch.tensor([tokens]))[0, -1].argmax())
        if token in model.special_ids:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def prompts_of(model, *lengths: int) -> list[list[int]]:
    return [random_tokens(model.n_vocab, n, seed=n).tolist() for n in lengths]


def edits_of(model) -> list[Edit]:
    """Edits that change what is generated, at two sites and by what stands there."""
    pushed = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    return [
        Edit(Site(0, Stream.MLP_OUT), lambda h: 1.5 * h + 0.2 * pushed),
        Edit(Site(1), lambda h: h - 0.5 * h.relu()),
    ]


@pytest.mark.slow
def test_the_cache_gives_what_full_passes_give(tiny):
    rows = prompts_of(tiny, 9, 4, 6)
    for edits in ([], edits_of(tiny)):
        with tiny.hooks(*edits):
            texts = generate(tiny, rows, 8, seed=0, sampling=GREEDY)
        assert texts == [plain(tiny, row, 8, edits=edits) for row in rows]
    assert texts != generate(tiny, rows, 8, seed=0, sampling=GREEDY)  # the edits did something


@pytest.mark.slow
def test_storybook_too(storybook):
    rows = [[0, *storybook.to_ids(text)] for text in ("Then , Mary went", "Tom was happy because", "The")]
    texts = generate(storybook, rows, 20, seed=0, sampling=GREEDY)
    assert texts == [plain(storybook, row, 20) for row in rows]
    assert any(len(text) < 20 for text in texts)  # stories end, each at its own place


def test_a_rows_text_does_not_depend_on_its_batch(tiny):
    rows, sampling = prompts_of(tiny, 7, 2, 12, 7), Sampling(0.8, top_k=50, top_p=0.95)
    together = generate(tiny, rows, 6, seed=3, sampling=sampling)
    assert together == [generate(tiny, [row], 6, seed=3, sampling=sampling)[0] for row in rows]
    assert together == generate(tiny, rows, 6, seed=3, sampling=sampling)
    assert together != generate(tiny, rows, 6, seed=4, sampling=sampling)


@pytest.mark.slow
def test_tokens_are_drawn_from_the_softmax(storybook):
    prompt = [0, *storybook.to_ids("Tom")]
    p = storybook.logits(torch.tensor([prompt]))[0, -1].softmax(-1)
    drawn = torch.tensor([generate(storybook, [prompt], 1, seed=seed)[0] or [0] for seed in range(150)])[:, 0]
    likely = p.topk(4)
    for token, chance in zip(likely.indices, likely.values, strict=True):
        assert abs((drawn == token).double().mean() - chance) < 4 * (chance * (1 - chance) / 150).sqrt() + 1e-3


@pytest.mark.parametrize("sampling", [Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(temperature=1e-4)])
def test_each_way_to_narrow_the_choice_ends_at_the_most_probable_token(tiny, sampling):
    rows = prompts_of(tiny, 5)
    assert generate(tiny, rows, 5, seed=0, sampling=sampling) == generate(tiny, rows, 5, seed=0, sampling=GREEDY)


@pytest.mark.slow
def test_top_p_keeps_the_fewest_that_hold_so_much(storybook):
    prompt = [0, *storybook.to_ids("Tom")]
    p, order = storybook.logits(torch.tensor([prompt]))[0, -1].softmax(-1).sort(descending=True)
    n = int((p.cumsum(-1) < 0.5).sum()) + 1
    sample = {generate(storybook, [prompt], 1, seed=s, sampling=Sampling(top_p=0.5))[0][0] for s in range(100)}
    assert sample <= {*order[:n].tolist()}


@pytest.mark.slow
def test_a_model_goes_on_from_a_text(storybook):
    """`LanguageModel.generate`: greedy text behind BOS, edited where the model is, and drawn where a seed is given."""
    prompt = "Then , Mary went"
    row = [storybook.bos_id, *storybook.to_ids(prompt)]
    text = storybook.generate(prompt, 12)
    assert storybook.to_ids(prompt + text) == row[1:] + generate(storybook, [row], 12, seed=0, sampling=GREEDY)[0]
    assert text == storybook.generate(prompt, 12, seed=5)
    with storybook.hooks(Edit(Site(1), torch.zeros_like)):
        assert storybook.generate(prompt, 12) != text
    assert storybook.generate(prompt, 12) == text
    drawn = {storybook.generate(prompt, 12, temperature=1.5, seed=seed) for seed in range(4)}
    assert len(drawn) > 1 and storybook.generate(prompt, 12, temperature=1.5, seed=0) in drawn
    with user_error("empty"):
        storybook.generate("")


def test_pieces_join_to_the_text(storybook):
    before, after = ([*storybook.to_ids(text)] for text in ('Tom said : "', "x ( y ) . He was glad , it ' s fine"))
    parts = pieces(storybook, before, after)
    assert len(parts) == len(after)
    assert storybook.tokenizer.decode(before) + "".join(parts) == storybook.tokenizer.decode([*before, *after])


def test_mistakes(storybook):
    with user_error("empty"):
        generate(storybook, [[5], []], 3, seed=0)
    n_ctx = storybook.n_ctx
    with user_error("do not fit", str(n_ctx)):
        generate(storybook, [[5] * (n_ctx - 3)], 4, seed=0)
    assert len(generate(storybook, [[5] * (n_ctx - 3)], 3, seed=0)) == 1
    with user_error("at least 1"):
        generate(storybook, [[5]], 0, seed=0)
    for settings, word in (({"temperature": -1.0}, "temperature"), ({"top_k": 0}, "top-k"), ({"top_p": 0.0}, "top-p")):
        with user_error(word):
            Sampling(**settings)
