"""Functions that pause inside other code, such as a forward pass at a layer, and continue later."""

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from torch import overrides
from torch.utils import _python_dispatch as dispatch

Pause = Callable[[Any], Any]


class Suspended:
    """A function in a thread of its own, which runs only while `resume` waits for it.

    Threads are used for their stacks alone: never two run at a time. The function runs with the grad
    mode, autocast, modes, context variables and CUDA stream of the code that made this object.

    Args:
        function: Called with a function `pause`, which it may call wherever it is. `pause(value)` makes
            `resume` return the value, and returns what `resume` is called with next.

    Examples:
        >>> counter = Suspended(lambda pause: 10 + pause("first") + pause("second"))
        >>> counter.resume(), counter.resume(1), counter.resume(2)
        ('first', 'second', 13)
        >>> counter.finished
        True
    """

    def __init__(self, function: Callable[[Pause], Any]) -> None:
        self.function = function
        self.finished = False
        self._paused = False
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._reports: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._state = _thread_state()
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), daemon=True)

    def resume(self, answer: Any = None) -> Any:
        """Continue the function; return its next value, or its result if it has `finished`."""
        if self._paused:
            self._answers.put(answer)
        else:
            self._thread.start()
        del answer
        return self._report()

    def close(self) -> None:
        """End the function where it has paused, so that its `finally` clauses run."""
        while self._thread.is_alive() and not self.finished:
            if self._paused:
                self._answers.put(_ClosedError)
            self._wait()  # also where `resume` was interrupted
        if self._thread.ident is not None:
            self._thread.join()

    def _report(self) -> Any:
        value, cause = self._wait()
        if cause is None:
            return value
        try:
            raise cause
        finally:
            del cause  # its traceback refers to this frame

    def _wait(self) -> tuple[Any, BaseException | None]:
        self._paused = False
        report = self._reports.get()
        self._paused = not self.finished
        return report

    def _pause(self, value: Any) -> Any:
        self._reports.put((value, None))
        del value
        answer = self._answers.get()
        if answer is _ClosedError:
            raise _ClosedError
        return answer

    def _run(self) -> None:
        error: BaseException | None = None
        result = None
        try:
            with self._state():
                result = self.function(self._pause)
        except BaseException as raised:
            error = raised
        self.finished = True
        self._reports.put((result, error))


class _ClosedError(BaseException):
    """Unwinds a function that is not needed any more; handlers of `Exception` do not catch it."""


def _thread_state() -> Callable[[], Any]:
    """Return a context manager for another thread: what PyTorch keeps for each thread, as it is here."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    casts = [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        for device in devices
    ]
    caching = torch.is_autocast_cache_enabled()
    functions = overrides._get_current_function_mode_stack()
    dispatching = dispatch._get_current_dispatch_mode_stack()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    @contextmanager
    def state() -> Iterator[None]:
        with ExitStack() as stack:
            for device, dtype, enabled in casts:
                stack.enter_context(torch.autocast(device, dtype, enabled, caching))
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))  # of its device, too
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            # pushed, not entered: a mode may count from its entry
            for mode in dispatching:
                dispatch._push_mode(mode)
                stack.callback(dispatch._pop_mode)
            for mode in functions:
                overrides._push_mode(mode)
                stack.callback(overrides._pop_mode)
            yield

    return state
