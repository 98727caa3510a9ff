"""Comparison of several ways to one result, without pytest: for a notebook or a script."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from neurenix_ms.bench.comparison import Comparison, Question, check_ways
from neurenix_ms.bench.forms import as_device, default_device, forms
from neurenix_ms.bench.recording import Case, content_of, described
from neurenix_ms.bench.results import Report
from neurenix_ms.bench.tables import as_text
from neurenix_ms.bench.timing import Timed


class Compared(Report):
    """What `compare` measured; `print` shows it as a table.

    Read single figures off `groups`, which has the cases under the name "forward" or "training step".

    Args:
        content: The cases as they stand in a JSON of pytest-benchmark.
        problems: What was not measured, and why.

    Examples:
        >>> found = compare({"exp": torch.exp, "sin": torch.sin}, torch.ones(8), timed=False)
        >>> [(case.variant, case.value("tensor_peak_bytes")) for case in found.groups["forward"]]
        [('exp', 32)]
        >>> found.problems[0].partition(" within ")[0]
        "sin: the result must be that of 'exp'"
    """

    def __init__(self, content: Mapping[str, Any], problems: list[str]) -> None:
        super().__init__(content)
        self.content = content
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join([as_text(self.content), *self.problems]).strip()


def compare(
    ways: Mapping[str, Callable[..., Any]],
    inputs: Any,
    *,
    reference: str | None = None,
    train: bool = False,
    equal: bool = True,
    tolerance: float | None = None,
    sizes: Any = None,
    batch: Any = None,
    dtype: Any = None,
    device: Any = None,
    compile: Any = None,
    channels_last: Any = None,
    rounds: int | None = None,
    items: int | None = None,
    timed: bool = True,
) -> Compared:
    """Time, memory and operations of several ways to one result, beside one of them.

    Use it in a notebook or a script; in a test suite, the fixture `measure` takes the same arguments,
    and what it measures is saved and compared by pytest-benchmark. All ways run on the same inputs, in
    turns. Modules are copied, so they stay as they are. What fails is named in `problems`, and the rest
    is measured all the same: a way that raises or whose result is not that of the reference, inputs
    that cannot be made, and a device that is missing.

    Args:
        ways: Modules, or functions of the inputs, by name.
        inputs: One argument (a tensor, a list of feature maps), a tuple of several, or a function of
            `batch` and `size` that makes them.
        reference: The name of the way that the others are compared with; the first one if None.
        train: Measure a training step (forward in training mode, backward) instead of a forward pass
            without gradients. Gradients with respect to an input count where it requires them.
        equal: Refuse a way whose result differs from that of the reference. With False it is measured,
            and the record says that the results differ.
        tolerance: Largest difference, divided by the largest value of the reference, of equal results;
            by dtype if None (1e-4 for float32).
        sizes: What `inputs` is called with; this and the next five are one value or a list of them.
        batch: The same.
        dtype: Convert modules and inputs to this dtype.
        device: Where to run; a GPU if there is one.
        compile: Compile modules by `torch.compile`. Live tensors inside compiled code cannot be seen,
            so their peak is left out; operations are those of the plain module.
        channels_last: Use the memory format channels_last.
        rounds: Number of timed rounds; as many as fit two seconds if None.
        items: Number of samples of a call; by default the length of the first tensor.
        timed: Measure time; bytes and operations always are.

    Returns:
        The cases as a report, with the names of what could not be measured.

    Raises:
        ValueError: If there is no way, no such reference, no such dtype or device in torch, or an
            option is of another kind or out of range.

    Examples:
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> x = torch.ones(1, 3, 34, 34)
        >>> print(compare({"conv": conv, "again": lambda x: conv(x)}, x, timed=False))
        forward
          variant    live tensors          FLOPs  parameters  difference
          conv             32 KiB          442 K         224           -
          again    32 KiB (1.00x)  442 K (1.00x)           -           0
    """
    ways, reference = check_ways(ways, reference)
    question = Question(reference, train, equal, tolerance, rounds, items, timed)
    first = default_device() if device is None or isinstance(device, list) else as_device(device)
    group = "training step" if train else "forward"
    cases: list[tuple[Case, Timed | None]] = []
    problems: list[str] = []
    for form in forms(
        first,
        sizes=sizes,
        batch=batch,
        dtype=dtype,
        device=device,
        compile=compile,
        channels_last=channels_last,
    ):
        comparison = Comparison(question, form)
        varied = ", ".join(f"{name} {value}" for name, value in form.params.items())
        with torch.random.fork_rng(), torch.enable_grad():
            for found in comparison.measured(ways, inputs):
                name = ", ".join([found.name, *([varied] if varied else [])])
                params = {**form.params, "variant": found.name}
                cases.append((Case(group, name, name, params, found.measured), found.timed))
        for way, words in comparison.problems:
            problems.append(f"{', '.join(x for x in (way, varied) if x) or 'inputs'}: {words}")
    return Compared(content_of(cases, described(first, torch.get_num_threads())), problems)
