"""Times of calls in turns, and their ratios."""

import time

import torch

from neurenix_ms.bench import timing


def work(n: int) -> int:
    return sum(range(n))


def test_the_ratio_is_that_of_the_work():
    calls = {"a": lambda: work(20_000), "b": lambda: work(80_000)}
    timed = timing.timed_together(calls, "a", rounds=9)
    assert timed["a"].ratio is None
    assert timed["b"].ratio is not None
    assert 3 < timed["b"].ratio < 5.3
    assert len(timed["a"].seconds) == len(timed["b"].seconds) == 9
    assert timed["a"].iterations > timed["b"].iterations
    assert 0 < timed["a"].median < timed["b"].median
    assert 3 < timing.paired(calls["b"], calls["a"], 9) < 5.3


def test_every_call_takes_every_turn():
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timing.timed_together(calls, "a", rounds=1)
    order.clear()
    timed = timing.timed_together(calls, "a", rounds=6)
    each = {name: timed[name].iterations for name in calls}
    rounds, at = [], sum(4 for _ in calls)  # after the calls that warm up
    while at < len(order):
        turn = []
        for _ in calls:
            turn.append(order[at])
            at += each[order[at]]
        rounds.append("".join(turn))
    assert sorted(map(sorted, rounds)) == [list("abc")] * 6
    assert {turn[0] for turn in rounds} == set("abc")


def test_long_calls_get_few_rounds():
    calls = {"slow": lambda: time.sleep(0.006)}
    timed = timing.timed_together(calls, "slow", budget=0.0)
    assert len(timed["slow"].seconds) == 3
    assert len(timing.timed_together(calls, "slow", budget=9.0)["slow"].seconds) == 25


def test_the_rate_of_products_is_measured_once():
    cpu = torch.device("cpu")
    assert timing.matmul_rate(torch.float32, cpu) == timing.matmul_rate(torch.float32, cpu) > 1e6
    assert timing.matmul_rates()["float32"] == timing.matmul_rate(torch.float32, cpu)
