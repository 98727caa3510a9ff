"""Comparison of several implementations of one computation, for notebooks and scripts."""

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
    """Results of `compare`; `print` shows them as a table.

    `groups` contains the single figures: the cases by group, "forward" or "training step".

    Args:
        content: The cases in the JSON format of pytest-benchmark.
        problems: Descriptions of what could not be measured, and why.

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
    """Compare time, memory and FLOPs of several implementations of one computation.

    Use it in a notebook or a script. In a test suite, the fixture `measure` takes the same arguments,
    and pytest-benchmark saves and compares its results. All variants run on the same inputs,
    alternately. Modules are copied, so they do not change. If a variant raises an error or differs from
    the reference, inputs cannot be made, or a device is missing, `problems` names it, and everything
    else is measured.

    Args:
        ways: The variants: modules, or functions of the inputs, by name.
        inputs: One argument (a tensor, a list of feature maps), a tuple of several arguments, or a
            function of `batch` and `size` that returns them.
        reference: Name of the variant that the others are compared with; the first one if None.
        train: Measure a training step (forward in training mode, backward) instead of a forward pass
            without gradients. Gradients with respect to an input count where it requires them.
        equal: Do not measure a variant whose result differs from that of the reference. With False it is
            measured, and the difference is reported.
        tolerance: Largest difference of results that count as equal, divided by the largest value of the
            reference; None selects it by dtype (1e-4 for float32).
        sizes: Size with which `inputs` is called. This argument and the next five take one value or a
            list of values.
        batch: Batch size with which `inputs` is called.
        dtype: Convert modules and inputs to this dtype.
        device: Device to run on; by default a GPU if there is one.
        compile: Compile modules by `torch.compile`. Live tensors inside compiled code cannot be
            measured, so their peak is left out. FLOPs are those of the module without compilation.
        channels_last: Use the memory format channels_last.
        rounds: Number of timed rounds; None runs as many as take about two seconds.
        items: Number of samples in a call; by default the length of the first tensor.
        timed: Whether to measure time. Bytes and FLOPs are always measured.

    Returns:
        The results, with a list of what could not be measured.

    Raises:
        ValueError: If there is no variant, no such reference, no such dtype or device in torch, or an
            option has the wrong type or is out of range.

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
