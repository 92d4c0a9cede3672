"""What `torchrun` starts: who says what, and what cannot be arranged."""

from types import SimpleNamespace

import pytest
from planted import unchecked
from tiny import user_error

from sae_core.sharding.control import World
from sae_core.sharding.ranks import ALONE
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.topk_recipes import TopK
from subrank.cli.parsers import Parser
from subrank.cli.ranks import arranged, is_first, joined, restarted


def asked(shards: int | None = None, replicas: int | None = None, *, size: int = 4, **how) -> object:
    """What is arranged on so many processes for a dictionary of width 16."""
    world = World(0, size, "cpu", None, None, 1.0) if size > 1 else None
    model = SimpleNamespace(sites=lambda: [Site(0)], d_in=lambda site: 16, offered=lambda stream: [Site(0)])
    run = SimpleNamespace(members=[TrainConfig(**({"batch": 64, "tokens": 640} | how))], sites=("resid_post.0",))
    return arranged(world, SimpleNamespace(shards=shards, replicas=replicas), model, run)


@pytest.fixture
def checked(monkeypatch):
    """Sites are not looked for."""
    monkeypatch.setattr("subrank.sites.sites_of", lambda model, sites: [Site(0)])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"shards": 3}, "give --shards and --replicas whose product is that"),
        ({"shards": 2, "replicas": 3}, "2 shards times 3 replicas are 6 processes, and torchrun started 4"),
        ({"batch": 63}, "--batch 63 cannot be divided among 4 processes"),
        ({"kl": 1.0}, "--kl trains in one process"),
        ({"shards": 2, "size": 1}, "torchrun --nproc-per-node 2"),
        (
            {"shards": 4, "recipe": TopK(70), "expansion": 8},
            "in 4 shards of 128 latents one has 32, fewer than the k=70 active ones; give fewer --shards: 1",
        ),
        ({"shards": 4, "recipe": TopK(200), "expansion": 8}, "the number of latents, 128; got k=200"),
    ],
)
def test_what_cannot_be_arranged_is_said_in_one_line(checked, how, said):
    with user_error(said), unchecked():
        asked(**how)


def test_one_process_is_alone(checked, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert joined(SimpleNamespace()) is None and is_first() and not restarted()
    with unchecked():
        assert asked(size=1) is ALONE


def test_what_is_wrong_with_a_command_line_the_first_rank_says(monkeypatch, capsys):
    """And one that is alone, whatever RANK says."""
    for size, rank, lines in (("4", "0", 1), ("4", "3", 0), ("1", "3", 1), ("", "3", 1), (None, "3", 1)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(SystemExit) as end:
            Parser(prog="subrank").parse_args(["--nonsense"])
        assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) == lines
