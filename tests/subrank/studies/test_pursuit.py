"""Gradient pursuit is what a plain loop over tokens gives, and does better than random codes."""

import torch
import torch.nn.functional as F
from handmade import normal

from subrank.studies.errors.pursuit import pursuit

DIRECTIONS = F.normalize(normal(40, 12), dim=-1)


def plain(s: torch.Tensor, directions: torch.Tensor, l0: int) -> torch.Tensor:
    """The codes of one token, as the module's docstring has them."""
    codes = torch.zeros(len(directions))
    for _ in range(l0):
        r = s - codes @ directions
        p = directions @ r
        active = {j for j in range(len(codes)) if codes[j] > 0} | {int(p.argmax())}
        g = torch.tensor([p[j].item() if j in active else 0.0 for j in range(len(codes))])
        c = g @ directions
        codes = (codes + (c @ r) / (c @ c) * g).clamp_min(0)
    return codes


def test_it_is_the_plain_loop_token_by_token():
    s, l0 = normal(30, 12, seed=1), torch.arange(30) % 7
    expected = torch.stack([plain(row, DIRECTIONS, int(most)) @ DIRECTIONS for row, most in zip(s, l0, strict=True)])
    torch.testing.assert_close(pursuit(s, DIRECTIONS, l0), expected, rtol=1e-4, atol=1e-5)


def test_it_finds_what_is_there_and_no_more_than_it_may():
    """Orthogonal directions: the codes are the projections, those that are not negative."""
    f = torch.tensor([[3.0, 2.0, 1.0, 0.0], [-1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    rows = pursuit(f, torch.eye(4), torch.tensor([2, 4, 4]))
    assert (rows[0] > 0).tolist() == [True, True, False, False] and (f[0] - rows[0]).norm() < f[0].norm()
    torch.testing.assert_close(rows[1:], torch.tensor([[0.0, 0.0, 2.0, 0.0], [0.0] * 4]))


def test_more_latents_leave_less_and_random_directions_leave_more():
    s = (normal(50, 40, seed=2) * (normal(50, 40, seed=3) > 1.3)).relu() @ DIRECTIONS
    few, many = (pursuit(s, DIRECTIONS, torch.full((50,), n)) for n in (1, 8))
    other = pursuit(s, F.normalize(normal(40, 12, seed=9), dim=-1), torch.full((50,), 8))
    assert (s - many).norm() < 0.5 * (s - few).norm() and (s - many).norm() < 0.8 * (s - other).norm()
