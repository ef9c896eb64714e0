"""The command line: `python -m kerascohost run train_a.py train_b.py -- --epochs 5`, or `info`."""

import argparse
import sys

from kerascohost import environment
from kerascohost.deferred import loops, scripts
from kerascohost.errors import CohortError


def main(argv: list[str]) -> int:
    """Runs a command of the command line.

    Args:
        argv: The arguments after the program's name; those after `--` are the scripts' own.

    Returns:
        The exit status: 0, or that of the first script that failed.
    """
    own, _, arguments = _partition(argv, "--")
    parser = _parser()
    asked, unknown = parser.parse_known_args(own)
    if unknown:
        theirs = " ".join(unknown)
        parser.error(
            f"Expected the scripts' own arguments after ` -- `. Received: {theirs}. For example: "
            f"{parser.prog} run train.py -- {theirs}"
        )
    if asked.command == "info":
        return _info()
    try:
        if asked.loops:
            return _run_loops(asked.scripts, arguments)
        return _run(asked.scripts, arguments)
    except CohortError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kerascohost", description="Train several Keras programs together."
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run scripts, with their calls of `fit` trained together",
        description="Runs scripts that build, fit, evaluate and save Keras models, unchanged, with "
        "their calls of `fit` trained together as one program.",
        usage="%(prog)s [-h] [--loops] SCRIPT [SCRIPT ...] [-- ARGUMENT ...]",
        epilog="Arguments after `--` are handed to every script.",
    )
    run.add_argument("scripts", nargs="+", metavar="SCRIPT", help="a Python file")
    run.add_argument(
        "--loops",
        action="store_true",
        help="run one script, with the iterations of its loops in turn and trained together",
    )
    commands.add_parser(
        "info",
        help="show versions, backend and devices: what a bug report needs",
        description="Shows versions, backend and devices: what a bug report needs.",
    )
    return parser


def _info() -> int:
    for name, version in environment.versions().items():
        print(f"{name:<12} {version}")
    return 0


def _run(paths: list[str], arguments: list[str]) -> int:
    outcomes = scripts.run(paths, arguments)
    for outcome in outcomes:
        print(outcome, file=sys.stderr)
    return next((outcome.status for outcome in outcomes if outcome.status), 0)


def _run_loops(paths: list[str], arguments: list[str]) -> int:
    if len(paths) != 1:
        raise CohortError(f"Expected one script with `--loops`. Received: {len(paths)}.")
    loops.run_script(paths[0], arguments)
    return 0


def _partition(items: list[str], separator: str) -> tuple[list[str], list[str], list[str]]:
    if separator not in items:
        return items, [], []
    at = items.index(separator)
    return items[:at], items[at : at + 1], items[at + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
