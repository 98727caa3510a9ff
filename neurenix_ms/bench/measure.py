"""The fixture `measure`: time first, then memory and operations in passes of their own."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from neurenix_ms._core.checks import check_integer
from neurenix_ms.bench.comparison import Comparison, Question, check_ways
from neurenix_ms.bench.costs import costs
from neurenix_ms.bench.forms import Form, forms
from neurenix_ms.bench.recording import Case, case_of, mark_used, record
from neurenix_ms.bench.session import Session
from neurenix_ms.bench.timing import LONG, Timed, finish, paired, seconds

if TYPE_CHECKING:
    import pytest


class Measure:
    """Measure one call (`measure(call)`), or compare several implementations (`measure.compare`).

    Args:
        benchmark: The fixture of pytest-benchmark.
        item: The test.
        session: What all tests of this run share.
    """

    def __init__(self, benchmark: Any, item: "pytest.Item", session: Session) -> None:
        self._benchmark = benchmark
        self._item = item
        self._session = session

    @property
    def device(self) -> torch.device:
        """Where things run: `--bench-device`, or a GPU if there is one."""
        return self._session.device

    @property
    def key(self) -> str:
        """Name of this test in a stored file."""
        return self._session.key(self._item, self._item.name)

    @property
    def stored(self) -> Mapping[str, Mapping[str, int]]:
        """Bytes and operations that are stored, by the name of the case."""
        return self._session.stored

    def __call__(
        self,
        call: Callable[[], object],
        items: int = 1,
        *,
        model: nn.Module | None = None,
        x: Tensor | None = None,
        dtype: torch.dtype | None = None,
        rounds: int = 10,
        resident: bool | None = None,
        against: Callable[[], object] | None = None,
        held: bool = True,
    ) -> dict[str, Any]:
        """Record one case: the test itself.

        Args:
            call: Function to measure; it takes no arguments and processes `items` samples.
            items: Number of samples of a call.
            model: Gives the number of parameters.
            x: Gives shape and dtype of the input.
            dtype: That of the products if it is another.
            rounds: Number of timed calls; one if a call takes more than five seconds.
            resident: Whether resident memory is measured under `--bench-resident`. False skips the
                test then; None measures it.
            against: The reference, timed in pairs with `call`.
            held: Whether bytes and FLOPs are stored by `--bench-store` and compared with the stored
                values by `--bench-check`.

        Returns:
            What was recorded.

        Raises:
            ValueError: If `items` or `rounds` is below 1.
        """
        check_integer("items", items, 1)
        check_integer("rounds", rounds, 1)
        wants_resident = self._session.resident
        if wants_resident and resident is False:
            skip("asks for no resident memory")
        device, benchmark = self.device, self._benchmark

        def to_the_end() -> None:
            call()
            finish(device)

        once = wants_resident or benchmark.disabled or seconds(to_the_end) > LONG
        benchmark.pedantic(to_the_end, rounds=1 if once else rounds, warmup_rounds=0 if once else 1)
        timed = benchmark.stats  # None where pytest-benchmark is disabled
        median = timed.stats.median if timed else None
        if dtype is None:
            dtype = x.dtype if x is not None and x.is_floating_point() else torch.float32
        measured = benchmark.extra_info
        measured.update(costs(call, items, median, model, dtype, device, wants_resident))
        measured["shape"] = list(x.shape) if x is not None else None
        if against is not None and median is not None and not wants_resident:
            pairs = max(1 if median > LONG else 3, min(9, int(1.5 / median)))
            measured["time_ratio"] = paired(call, against, pairs, device)
        words = self._session.hold(self._item, self._item.name, measured, device) if held else None
        if words:
            fail(words)
        return measured

    def compare(
        self,
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
        name: str | None = None,
        held: bool = True,
    ) -> list[dict[str, Any]]:
        """Compare several implementations of one computation, in every requested form.

        All variants run on the same inputs. Modules are copied, so they do not change. A variant that
        raises an error or differs from the reference is reported at the end of the test, and the others
        are still measured.

        Args:
            ways: The variants: modules, or functions of the inputs, by name.
            inputs: One argument (a tensor, a list of feature maps), a tuple of several, or a function of
                `batch` and `size` that returns them.
            reference: Name of the variant that the others are compared with; the first one if None.
            train: Measure a training step (forward in training mode, backward) instead of a forward
                pass without gradients. Gradients with respect to an input count where it requires them.
            equal: Do not measure a variant whose result differs from that of the reference. With False
                it is measured, and the difference is reported.
            tolerance: Largest difference of results that count as equal, divided by the largest value of
                the reference; None selects it by dtype (1e-4 for float32).
            sizes: Size with which `inputs` is called. This argument and the next five take one value or
                a list of values; an option on the command line replaces them.
            batch: Batch size with which `inputs` is called.
            dtype: Convert modules and inputs to this dtype.
            device: Where to run.
            compile: Compile modules by `torch.compile`. Live tensors inside compiled code cannot be
                measured, so their peak is left out. FLOPs are those of the module without compilation.
            channels_last: Use the memory format channels_last.
            rounds: Number of timed rounds; None runs as many as take about two seconds.
            items: Number of samples in a call; by default the length of the first tensor.
            name: Name of the comparison, if a test has several.
            held: See the call with a single function.

        Returns:
            Recorded cases, one per form and variant.

        Raises:
            ValueError: If there is no variant or no such reference, or an option has the wrong type or
                is out of range.
        """
        ways, reference = check_ways(ways, reference)
        session, benchmark = self._session, self._benchmark
        mark_used(benchmark)
        question = Question(
            reference,
            train,
            equal,
            tolerance,
            rounds,
            items,
            timed=not benchmark.disabled,
            resident=session.resident,
        )
        given = {
            "sizes": sizes,
            "batch": batch,
            "dtype": dtype,
            "device": device,
            "compile": compile,
            "channels_last": channels_last,
        }
        asked = {name: value for name, value in session.forms.items() if value is not None}
        records: list[dict[str, Any]] = []
        problems: list[str] = []
        for form in forms(session.device, **(given | asked)):
            comparison = Comparison(question, form)
            for found in comparison.measured(ways, inputs):
                case = self._case(form, name, found.name, found.measured)
                problems += self._added(case, found.timed, form.device if held else None)
                time = found.timed.median if found.timed else None
                records.append({**case.params, **found.measured, "time": time})
            problems += [
                f"{self._case(form, name, way).nodeid}: {words}"
                for way, words in comparison.problems
            ]
        if problems:
            fail("\n".join(problems))
        return records

    def _added(self, case: Case, timed: Timed | None, device: torch.device | None) -> list[str]:
        """Record a case; hold it to what is stored on this device. What is wrong, if anything."""
        session = self._session
        if any(case.nodeid == other.nodeid for other, _ in session.cases):
            words = "each comparison of a test must have a name of its own, pass name="
            return [f"{case.nodeid}: {words}"]
        session.cases.append((case, timed))
        if timed is not None:
            record(self._benchmark, case, timed)
        if device is None:
            return []
        try:
            complaint = session.hold(self._item, case.name, case.measured, device)
        except ValueError as error:
            return [str(error)]
        return [complaint] if complaint else []

    def _case(
        self, form: Form, name: str | None, way: str, measured: dict[str, Any] | None = None
    ) -> Case:
        """Return the names of one way in one form."""
        named = {"comparison": name} if name else {}
        variant = {"variant": way} if way else {}
        params = {**named, **form.params, **variant}
        case = case_of(self._item, self._benchmark.group, params)
        case.measured = measured or {}
        return case


def skip(reason: str) -> NoReturn:
    """Skip the test."""
    import pytest

    pytest.skip(reason)


def fail(reason: str) -> NoReturn:
    """Fail the test with these words alone."""
    import pytest

    pytest.fail(reason, pytrace=False)
