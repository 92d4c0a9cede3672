"""`editing/tasks/pairs.py` and `names.py`: texts become tokens, or are refused by the word that does not fit."""

import torch
from pieces import Pieces
from prompt_texts import EVERYONE
from tiny import user_error

from editing.tasks import names
from editing.tasks.pairs import Mention, TextPair, as_tokens, at_end


def test_a_mention_that_is_not_there_is_refused(storybook):
    pair = TextPair("Mary went to", "Anna went to", " John", " Tom", " Tom", 0, (Mention("S2", " Mary", 1),))
    with user_error("'Mary'", "1 times", "S2"):
        as_tokens(storybook, "any", [pair], prepend_bos=True)


def test_single_token_names(storybook):
    assert names.single_token(storybook, ["Mary", "Zebedee", "John"]) == ["Mary", "John"]
    assert not names.known(storybook, "Mary and Zebedee") and names.known(storybook, "Mary and John")
    assert names.single_token(Pieces(4), ["Mary", "Alice", "Tom"]) == ["Mary", "Tom"]
    assert len(EVERYONE) == len(names.FEMALE) + len(names.MALE)


def test_at_end_picks_each_rows_own_position():
    h = torch.arange(24.0).reshape(2, 4, 3)
    assert at_end(h, torch.tensor([3, 1])).tolist() == [[9, 10, 11], [15, 16, 17]]


def test_a_pair_that_does_not_fit_is_refused_by_its_word(storybook):
    def fits(*fields: str):
        return TextPair(*fields, fields[3], 0).ids(storybook)

    fits("Mary went to the", "John went to the", " park", " store")
    with user_error("'Zebedee'"):
        fits("Mary and Zebedee went to the", "John and Zebedee went to the", " park", " store")
    with user_error("'went'", "'Anna went'", "4", "5"):
        fits("Mary went to the", "Mary Anna went to the", " park", " store")
    with user_error("same"):
        fits("Mary went to the", "Mary went to the", " park", " store")
    with user_error("' big park'", "2 tokens", "one"):
        fits("Mary went to the", "John went to the", " big park", " store")
    with user_error("'Narnia'"):
        fits("Mary went to the", "John went to the", " park", " Narnia")
    with user_error("' park'", "different"):
        fits("Mary went to the", "John went to the", " park", " park")
    with user_error("not one prompt"):
        as_tokens(storybook, "empty", [], prepend_bos=True)
    with user_error(str(storybook.n_ctx)):
        long = " ".join(["ring"] * storybook.n_ctx)
        as_tokens(
            storybook, "long", [TextPair(f"Mary {long}", f"John {long}", " a", " the", " the", 0)], prepend_bos=True
        )
