"""The command `neurenix-ms`: every file and folder here is a subcommand of its name.

A file has a function `add_arguments(parser)` and a function `run(options)` that returns what is to be
written, or None. The first line of its docstring is its help in a list; all of it, which ends with
examples, is the description in its own `--help`, and the exit status is added there. With
`ANY_OPTION = True` it gets the words that its parser does not know as `options.others`. A folder holds
subcommands of its own.
Files import what they need inside `run`, so that the help appears at once. A `ValueError`, `OSError`,
`ImportError` or `RuntimeError` ends the command with the first line of its message; `--debug` shows
where it was raised.
"""

import argparse
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

DESCRIPTION = """Multiscale networks: train them on your files, predict, inspect, export and measure.

`neurenix-ms SUBCOMMAND --help` describes a subcommand, its options, and gives examples. What it makes
is written to files, or to the standard output; progress and errors go to the standard error.

Examples:

  neurenix-ms list
  neurenix-ms fit --help
  neurenix-ms predict model.nx image.npy labels.npy --reduce argmax
  neurenix-ms bench models UNet
"""
EXIT_STATUS = """exit status:
  0    success
  1    an error, which one line on the standard error describes; --debug shows where it was raised
  2    arguments that the command line does not take
  130  an interruption (Ctrl+C); subcommands that write results resume, where their description says so
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: Command line without the name of the program; by default that of the process.

    Returns:
        The exit status: 0, 1 where a message has been written to the standard error, or 130 after an
        interruption.
    """
    parser = _parser()
    options, others = parser.parse_known_args(argv)
    options.others = others
    if others and not options.any_option:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        text = options.run(options)
    except KeyboardInterrupt:
        sys.stderr.write(f"{options.program}: interrupted\n")
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if options.debug:
            traceback.print_exc()
        first = (str(error) or type(error).__name__).partition("\n")[0]
        sys.stderr.write(f"{options.program}: {first}\n")
        return 1
    if text:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neurenix-ms",
        description=DESCRIPTION,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_subcommands(parser, sys.modules[__name__])
    return parser


def _add_subcommands(parser: argparse.ArgumentParser, package: ModuleType) -> None:
    added = parser.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True)
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        words = (module.__doc__ or "").partition("\n")[0]
        name = found.name.replace("_", "-")
        inner = added.add_parser(
            name,
            help=words,
            description=module.__doc__,
            epilog=EXIT_STATUS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if found.ispkg:
            _add_subcommands(inner, module)
        else:
            module.add_arguments(inner)
            inner.add_argument(
                "--debug", action="store_true", help="show the traceback of an error"
            )
            inner.set_defaults(
                run=module.run,
                program=inner.prog,
                any_option=getattr(module, "ANY_OPTION", False),
            )
