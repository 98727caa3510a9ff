"""Programs of networks, checked against the networks before they are in their place."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Run = Callable[["Tensor"], list["Tensor"]]
OTHER = 3  # pixels more along every axis at the second size


def exported(
    model: "nn.Module",
    target: str,
    kind: str,
    shape: Sequence[int],
    fixed: bool,
    tolerance: float,
) -> str:
    """Write a program of a network, and return what it takes and how far it is from the network.

    Args:
        model: A network of one tensor, in evaluation.
        target: The file.
        kind: "onnx" or "pt2".
        shape: Shape of the example.
        fixed: Export for this shape only.
        tolerance: Largest difference, relative to the largest output.
    """
    import tempfile

    import torch

    from neurenix_ms._core.io.atomic import WHILE_WRITING, naming, write_atomically

    if not tolerance > 0:
        raise ValueError(f"--tolerance must be above 0, got {tolerance}")
    network: Any = model
    if hasattr(model, "remember"):
        network.remember = False  # what getters return is no output
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    example = torch.randn(shape, dtype=dtype)
    try:
        with torch.no_grad():
            model(example)
    except ValueError:  # the message of the network says what it needs
        raise
    except Exception as error:
        raise ValueError(
            f"export needs a network of one tensor, here of shape {tuple(shape)}, got a "
            f"{type(model).__name__}: {error}"
        ) from error
    write = {"onnx": as_onnx, "pt2": as_pt2}[kind]
    with (
        tempfile.TemporaryDirectory() as folder,
        naming(Path(tempfile.gettempdir()), Path(folder)),
    ):
        made = Path(folder) / f"program.{kind}"
        is_open = not fixed
        try:
            run = write(model, example, made, is_open)
        except ImportError:
            raise
        except Exception as error:  # of any kind: torch cannot trace the network with open sizes
            if isinstance(error, OSError) and error.errno in WHILE_WRITING:
                raise
            if fixed:
                words = str(error).strip().partition("\n")[0]
                raise RuntimeError(f"torch cannot export this network: {words}") from error
            is_open = False
            run = write(model, example, made, is_open)
        if len(list(Path(folder).iterdir())) > 1:
            raise RuntimeError(
                "the network must fit into one file of ONNX, at most 2 GB, got a larger one; "
                "--pt2 has no limit"
            )
        grown = (2, shape[1], *(n + OTHER for n in shape[2:]))
        examples = [example, torch.randn(grown, dtype=dtype)] if is_open else [example]
        off = None if run is None else difference(model, run, examples)
        if off is not None and not off <= tolerance:
            raise RuntimeError(
                f"the program must be equal to the network up to {tolerance:g}, got {off:.1e} of its "
                "largest output; nothing was written"
            )
        write_atomically(target, made.read_bytes())
    sizes = "any batch and size" if is_open else f"inputs of {'x'.join(map(str, shape))} only"
    if off is None:
        checked = "not checked: pip install 'neurenix_ms[onnx]'"
    else:
        checked = f"differs from the network by {off:.1e} of its largest output"
    return f"{target}: for {sizes}; {checked}"


def example_inputs(example: "Tensor", is_open: bool) -> tuple[tuple["Tensor"], Any]:
    """Return what a network is exported with: its inputs, and which of their axes are open."""
    import torch
    from torch.export import Dim

    if not is_open:
        return (example,), None
    axes = dict.fromkeys((0, *range(2, example.ndim)), Dim.DYNAMIC)
    return (torch.cat([example, example]),), (axes,)  # a batch of one would be taken for a constant


def as_pt2(model: "nn.Module", example: "Tensor", path: Path, is_open: bool) -> Run:
    """Write a program of torch.export, and return how it runs once it is read again."""
    import torch

    inputs, shapes = example_inputs(example, is_open)
    buffer = io.BytesIO()  # torch ends the process if it writes to a full disk by itself
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), buffer)
    path.write_bytes(buffer.getbuffer())
    program = torch.export.load(path).module()
    return lambda x: as_list(program(x))


def as_onnx(model: "nn.Module", example: "Tensor", path: Path, is_open: bool) -> Run | None:
    """Write an ONNX file, and return how it runs; None if onnxruntime is missing."""
    import torch

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("--onnx needs onnxscript: pip install 'neurenix_ms[onnx]'") from error
    inputs, shapes = example_inputs(example, is_open)
    program: Any = torch.onnx.export(
        model, inputs, dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    program.save(path)
    try:
        import onnxruntime
    except ImportError:
        return None

    def run(x: Any) -> list[Any]:
        try:
            session = onnxruntime.InferenceSession(path)
            found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        except Exception as error:  # of its own classes, such as for convolutions in float64
            words = str(error).partition("\n")[0]
            raise RuntimeError(
                f"onnxruntime must run the program, got {words}; nothing was written"
            ) from error
        return [torch.from_numpy(y) for y in found]

    return run


def difference(model: "nn.Module", run: Run, examples: Sequence["Tensor"]) -> float:
    """Return the largest difference of outputs, relative to the largest output."""
    import torch

    worst = 0.0
    for x in examples:
        with torch.no_grad():
            wanted, found = as_list(model(x)), run(x)
        for y, z in zip(wanted, found, strict=True):
            if y.shape != z.shape:
                raise RuntimeError(
                    f"the program must return shape {tuple(y.shape)}, got {tuple(z.shape)}; "
                    "nothing was written"
                )
            scale = y.abs().max().clamp(min=torch.finfo(y.dtype).tiny)
            worst = max(worst, float((y - z).abs().max() / scale))
    return worst


def as_list(outputs: Any) -> list[Any]:
    """Return the outputs of a network, one or several."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
