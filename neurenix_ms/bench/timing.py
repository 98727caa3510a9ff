"""Time of calls, measured alternately so that their ratio is stable."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

SHORT = 5e-3  # seconds; a shorter call is repeated until it takes as long
LONG = 5.0  # seconds of a call that is not repeated for the sake of a median
MOST_ROUNDS = 25
_RATES: dict[tuple[torch.dtype, torch.device], float] = {}


@dataclass
class Timed:
    """Times of one call in all rounds.

    Args:
        seconds: Wall time of every round, of all its iterations together.
        iterations: Number of calls in a round.
        ratio: Time divided by that of the reference, the median of the rounds; None for itself.
    """

    seconds: list[float] = field(default_factory=list)
    iterations: int = 1
    ratio: float | None = None

    @property
    def median(self) -> float:
        """Measure the wall time of one call."""
        return statistics.median(self.seconds) / self.iterations


def paired(
    a: Callable[[], object],
    b: Callable[[], object],
    rounds: int = 5,
    device: torch.device | None = None,
) -> float:
    """Return the time of `a` divided by that of `b`, the median of pairs run one after the other.

    On a CPU the time of this process on all its threads is counted, not wall time. Disturbances of the
    machine affect both calls of a pair, so the ratio is more stable than that of two medians taken
    minutes apart. On a GPU, its events are used. Every second pair runs in reverse order, and calls of
    less than 5 ms are repeated.

    Args:
        a: A call without arguments.
        b: The call it is compared with.
        rounds: Number of pairs.
        device: Where the calls run; a CPU if None.

    Examples:
        >>> work = lambda n: sum(range(n))
        >>> paired(lambda: work(400_000), lambda: work(100_000)) > 2
        True
    """
    timer = _timer(device)
    times = max(1, int(SHORT / max(timer(b, 1)[1], 1e-6)))
    ratios = []
    for i in range(rounds):
        calls = (a, b) if i % 2 == 0 else (b, a)
        first, second = (timer(call, times)[1] for call in calls)
        ratios.append(first / second if i % 2 == 0 else second / first)
    return statistics.median(ratios)


def timed_together(
    calls: Mapping[str, Callable[[], object]],
    reference: str,
    device: torch.device | None = None,
    rounds: int | None = None,
    budget: float = 2.0,
) -> dict[str, Timed]:
    """Time several calls alternately, each round in another order, and divide by one of them.

    Every call is warmed up once. The ratio is that of `paired`: processor time on one thread, events
    on a GPU, and wall time on several threads, where waiting threads use a processor too.

    Args:
        calls: Calls without arguments by name.
        reference: Name of the call that the others are divided by.
        device: Where the calls run; a CPU if None.
        rounds: Number of rounds; as many as fit `budget` if None, 3 to 25.
        budget: Seconds for all rounds of all calls.
    """
    timer = _timer(device)
    once = {name: _warmed_up(timer, call) for name, call in calls.items()}
    timed = {name: Timed(iterations=max(1, int(SHORT / s))) for name, s in once.items()}
    if rounds is None:
        a_round = sum(once[name] * timed[name].iterations for name in calls)
        least = 1 if max(once.values()) > LONG else 3
        rounds = max(least, min(MOST_ROUNDS, int(budget / a_round)))
    costs: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds):
        turn = i % len(names)
        order = names[turn:] + names[:turn]
        for name in order if i % 2 == 0 else reversed(order):
            wall, cost = timer(calls[name], timed[name].iterations)
            timed[name].seconds.append(wall)
            costs[name].append(cost / timed[name].iterations)
    for name in names:
        if name != reference:
            pairs = zip(costs[name], costs[reference], strict=True)
            timed[name].ratio = statistics.median(mine / other for mine, other in pairs)
    return timed


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return operations per second of a product of two matrices of 1024 x 1024, the median of nine."""
    if (dtype, device) not in _RATES:
        a = torch.randn(1024, 1024, device=device).to(dtype)

        def product() -> None:
            torch.mm(a, a)
            finish(device)

        times = [seconds(product) for _ in range(9)]
        _RATES[dtype, device] = 2 * 1024**3 / statistics.median(times)
    return _RATES[dtype, device]


def matmul_rates() -> dict[str, float]:
    """Return all rates that were measured in this process, by the name of the dtype."""
    return {str(dtype).removeprefix("torch."): rate for (dtype, _), rate in _RATES.items()}


def seconds(call: Callable[[], object]) -> float:
    """Measure the wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def finish(device: torch.device) -> None:
    """Wait for all kernels of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Timer = Callable[[Callable[[], object], int], tuple[float, float]]


def _timer(device: torch.device | None) -> Timer:
    """Return a function that gives the wall time, and the time for the ratios."""
    return _gpu_time if device is not None and device.type == "cuda" else _cpu_time


def _warmed_up(timer: Timer, call: Callable[[], object]) -> float:
    once, _ = timer(call, 1)
    if once > LONG:
        return once
    return max(1e-6, min(timer(call, 1)[0] for _ in range(3 if once < 10 * SHORT else 1)))


def _cpu_time(call: Callable[[], object], times: int) -> tuple[float, float]:
    wall, start = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    used, wall = time.process_time() - start, time.perf_counter() - wall
    return wall, used if torch.get_num_threads() == 1 else wall


def _gpu_time(call: Callable[[], object], times: int) -> tuple[float, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    wall = time.perf_counter()
    start.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return time.perf_counter() - wall, start.elapsed_time(end) / 1000
