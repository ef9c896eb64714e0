"""`make bench`: every claim about speed and memory, measured here and now.

Prints one table, and writes it to `output/bench.md`. Each backend runs in processes of its own.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

BACKENDS = ("tensorflow", "jax")

# What the project holds itself to (on 4 cores), as ratios over plain fit and over tuned fit.
TARGETS = {
    ("tensorflow", "founding pair", "joined"): "3.5 / 2.2",
    ("tensorflow", "founding pair", "grouped"): "4.5 / 2.8",
    ("tensorflow", "16 MLPs", "joined"): "15, cold 2.2, by hand 3",
    ("jax", "16 MLPs", "joined"): "15, cold 2.2, by hand 3",
    ("tensorflow", "8 CNNs", "joined"): "3.5",
    ("tensorflow", "one small MLP", "joined"): "2",
    ("jax", "one small MLP", "joined"): "2",
    ("tensorflow", "one large MLP (4.7 M weights)", "joined"): "0.95",
    ("jax", "one large MLP (4.7 M weights)", "joined"): "0.95",
}

COLUMNS = (
    "backend",
    "models",
    "layout",
    "warm: over `fit`",
    "over `fit`, steps_per_execution=32",
    "over one fused model by hand",
    "first epoch: over `fit`",
    "weight difference",
    "target",
)


def module(name, backend, *args):
    """Runs a module of this package on a backend; yields the lines that it prints."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *args]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield from process.stdout
        errors = process.stderr.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")


def ratio(value):
    return "" if value is None else f"{value:.2f}x"


def speed_row(row):
    return (
        row["backend"],
        row["case"],
        row["layout"],
        ratio(row["warm"]),
        ratio(row["warm_tuned"]),
        ratio(row["by_hand"]),
        ratio(row["cold"]),
        f"{row['difference']:.0e}" if row["difference"] else "0",
        TARGETS.get((row["backend"], row["case"], row["layout"]), ""),
    )


def main():
    lines = []

    def say(line):
        print(line, flush=True)
        lines.append(line)

    packages = ", ".join(f"{p} {version(p)}" for p in ("keras", "jax", "numpy"))
    say(f"{date.today()}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}, {packages}\n")
    say("| " + " | ".join(COLUMNS) + " |")
    say("|" + " --- |" * len(COLUMNS))
    for backend in BACKENDS:
        for line in module("joined", backend):
            say("| " + " | ".join(speed_row(json.loads(line))) + " |")
    say("")
    for backend in BACKENDS:
        for line in module("processes", backend):
            row = json.loads(line)
            say(
                f"- {backend}: 16 MLPs in one cohort, {row['ratio']:.1f} times as fast as in "
                f"{row['processes']} processes with one core each (start-up not counted)"
            )
        for line in module("programs", backend):
            row = json.loads(line)
            say(
                f"- {backend}: three programs one after another {row['alone']:.1f} s, by "
                f"`python -m kerascohost run` {row['together']:.1f} s "
                f"({row['alone'] / row['together']:.1f} times as fast; largest weight difference "
                f"{row['difference']:.0e})"
            )
        for line in module("suggestions", backend):
            row = json.loads(line)
            say(
                f"- {backend}: {row['pair']}, group factors suggested {row['suggested']}, best of "
                f"all tried {row['best']}: an epoch takes {row['ratio']:.2f} times as long "
                f"(target 1.10; ungrouped {row['ungrouped']:.2f}); the benchmark's `separate` is "
                f"{row['separate']:.2f} of a plain loop of `fit` (target 0.90 to 1.10)"
            )
        apart, ours = (float(*module("memory", backend, way)) for way in ("separate", "joined"))
        say(f"- {backend}: peak memory of 16 MLPs {ours:.0f} MB, trained separately {apart:.0f} MB")
    output = Path("output/bench.md")
    output.parent.mkdir(exist_ok=True)
    output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
