"""`editing/engine/batching.py`: the peak memory of a run, and how many rows fit."""

import torch

from editing.engine import batching
from editing.engine.batching import measure_rows_that_fit, peak_bytes


def test_peak_bytes_counts_what_lives_at_one_time():
    def apart():
        for _ in range(5):
            torch.zeros(1000)

    def together():
        return [torch.zeros(1000) for _ in range(5)]

    def in_place():
        x = torch.zeros(1000)
        x += 1
        return x.view(10, 100).T

    assert peak_bytes(apart) == peak_bytes(in_place) == 4_000 and peak_bytes(together) == 20_000


def test_at_least_one_row_is_run():
    assert measure_rows_that_fit(lambda n: torch.zeros(n, 100), 4_000) == 10
    assert measure_rows_that_fit(lambda n: torch.zeros(n, 100), 1) == 1


def test_a_gpu_is_given_more_at_a_time():
    cpu, gpu = (batching.budget_on(torch.device(name)) for name in ("cpu", "cuda:0"))
    assert cpu == batching.MEMORY < gpu == batching.ACCELERATOR_MEMORY
