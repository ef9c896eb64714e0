"""`make bench`: every claim about speed and memory, measured here and now.

Prints one table, and writes it to `output/bench.md`; the cost of a model by the number of models is
drawn in `output/cost-curve.png`. Each backend runs in processes of its own.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path

from tests.benchmarks import cores, curve

BACKENDS = ("tensorflow", "jax")
OUTPUT = Path("output")

# What the project holds itself to (on 4 cores): how many times as fast as the other side.
TARGETS = {
    ("tensorflow", "founding pair", "joined"): {"warm": 3.5, "warm_tuned": 2.2},
    ("tensorflow", "founding pair", "grouped"): {"warm": 4.5, "warm_tuned": 2.8},
    ("tensorflow", "16 MLPs", "joined"): {"warm": 15, "cold": 2.2, "by_hand": 3},
    ("jax", "16 MLPs", "joined"): {"warm": 15, "cold": 2.2, "by_hand": 3},
    ("tensorflow", "8 CNNs", "joined"): {"warm": 3.5},
    ("tensorflow", "one small MLP", "joined"): {"warm": 2},
    ("jax", "one small MLP", "joined"): {"warm": 2},
    ("tensorflow", "one large MLP (4.7 M weights)", "joined"): {"warm": 0.95},
    ("jax", "one large MLP (4.7 M weights)", "joined"): {"warm": 0.95},
    ("tensorflow", "16 MLPs", "stacked"): {"warm": 30, "cold": 12},
    ("jax", "16 MLPs", "stacked"): {"warm": 15},
    ("tensorflow", "16 MLPs, BN + Dropout", "stacked"): {"warm": 18, "cold": 8},
    ("tensorflow", "16 Conv1D", "stacked"): {"warm": 10, "cold": 5},
    ("tensorflow", "16 attention", "stacked"): {"warm": 10, "cold": 5},
    ("tensorflow", "16 LSTMs", "stacked"): {"warm": 10, "cold": 3},
    # Never below joined, which `auto` chooses here: two timings of the same thing differ by 5 %.
    ("tensorflow", "8 CNNs", "auto"): {"warm": 3.8, "over_joined": 0.95},
}
HAND_TARGET = 0.9
DATA_ROW_BYTES = 8_000  # as in `data_memory`
REAL_SIZE_TARGETS = {
    ("tensorflow", "joined"): 0.9,
    ("jax", "joined"): 1,
    ("tensorflow", "stacked"): 0.9,
    ("jax", "stacked"): 0.9,
}
WIDGET_TARGETS = {2: 0.05, 10: 0.02}  # what it may add to a fit, by its seconds
FUNCTIONS_TARGET = {"tensorflow": 8, "jax": 5}

# A model of more may cost as much as one of 16 by the target; timings differ by so much anyway.
CURVE_TOLERANCE = 1.1

# The columns of ratios: their keys in a row, with the names that targets are told by.
RATIOS = {
    "warm": "warm",
    "warm_tuned": "tuned",
    "by_hand": "by hand",
    "over_joined": "over joined",
    "cold": "cold",
}

COLUMNS = (
    "backend",
    "models",
    "layout",
    "warm: over `fit`",
    "over `fit`, steps_per_execution=32",
    "over one fused model by hand",
    "over joined",
    "first epoch: over `fit`",
    "weight difference",
    "target",
    "missed",
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


def told_otherwise(row):
    """What a reader of the row must know if members were not placed as asked."""
    joined = row["plan"]["joined"]
    return f" (**{joined} joined**)" if row["layout"] == "stacked" and joined else ""


def speed_row(row):
    targets = TARGETS.get((row["backend"], row["case"], row["layout"]), {})
    missed = [name for key, name in RATIOS.items() if key in targets and row[key] < targets[key]]
    return (
        row["backend"],
        row["case"],
        row["layout"] + told_otherwise(row),
        *(ratio(row[key]) for key in RATIOS),
        f"{row['difference']:.0e}" if row["difference"] else "0",
        ", ".join(f"{RATIOS[key]} {target}" for key, target in targets.items()),
        f"**MISS**: {', '.join(missed)}" if missed else "",
    )


def verdict(met):
    return "met" if met else "**MISS**"


def limit_line(row):
    return (
        f"- {row['backend']}: {row['case']}, {row['epochs']} epochs in a `fit`: "
        f"{row['speed']:.2f} of its speed (target {HAND_TARGET}: "
        f"{verdict(row['speed'] >= HAND_TARGET)}; weight difference {row['difference']:.0e})"
    )


def curve_line(row):
    costs = dict(zip(row["members"], row["milliseconds"], strict=True))
    told = ", ".join(f"{count}: {cost:.2f}" for count, cost in costs.items())
    met = all(costs[count] <= costs[16] * CURVE_TOLERANCE for count in costs if count > 16)
    return (
        f"- {row['backend']}: a warm epoch of one MLP, in ms, by the number stacked: {told} (its "
        f"own `fit`: {row['fit']:.2f}; target, not rising from 16 to 1,024: {verdict(met)})"
    )


def host_line(row):
    return (
        f"- {row['backend']}: {row['members']} members of next to no compute, stacked: "
        f"{row['microseconds']:.0f} microseconds for a member and an epoch (target 50: "
        f"{verdict(row['microseconds'] <= 50)})"
    )


def tables(say):
    """Says the rows on speed, then what was measured against the limit; draws the cost curve."""
    say("| " + " | ".join(COLUMNS) + " |")
    say("|" + " --- |" * len(COLUMNS))
    limits, curves, hosts = [], [], []
    for name, backend in product(("joined", "stacked"), BACKENDS):
        for row in map(json.loads, module(name, backend)):
            if "layout" in row:
                say("| " + " | ".join(speed_row(row)) + " |")
            elif "microseconds" in row:
                hosts.append(row)
            else:
                (limits if "epochs" in row else curves).append(row)
    say("")
    for line in (*map(limit_line, limits), *map(curve_line, curves), *map(host_line, hosts)):
        say(line)
    curve.draw(curves, OUTPUT / "cost-curve.png")


def functions_line(row):
    took, least = row["seconds"], FUNCTIONS_TARGET[row["backend"]]
    gain = took["plain"] / took["map, auto"]
    over_hand = {way: took[f"map, {way}"] / took[f"by hand, {way}"] for way in ("joined", "auto")}
    waits = took["waits, map"] / took["waits, plain"]
    told = ", ".join(f"{way} {times:.2f}" for way, times in over_hand.items())
    return (
        f"- {row['backend']}: ten folds of an MLP with `evaluate`, tracing included: a loop "
        f"{took['plain']:.1f} s, `kc.map` joined {took['map, joined']:.1f} s (largest difference "
        f"of scores {row['difference']:.0e}), `auto` {took['map, auto']:.1f} s: {gain:.1f} times "
        f"as fast (target {least}: {verdict(gain >= least)}); over a cohort written by hand: "
        f"{told} (target 1.10: {verdict(max(over_hand.values()) <= 1.1)}); where every function "
        f"waits for the one before, {waits:.2f} of the loop's time (target 1.10: "
        f"{verdict(waits <= 1.1)})"
    )


def real_size_line(row):
    if row["layout"] == "auto":
        best = min(("joined", "stacked"), key=row["seconds"].get)
        share = row["seconds"][best] / row["seconds"]["auto"]
        return (
            f"- {row['backend']}: the same by `auto`: {share:.2f} of the speed of the best layout, "
            f"{best} (target 0.95: {verdict(share >= 0.95)})"
        )
    took, target = row["seconds"], REAL_SIZE_TARGETS[row["backend"], row["layout"]]
    speed = took["by_hand"] / took["resident"]
    return (
        f"- {row['backend']}: 16 MLPs (784-64-10) over one x of 20,000 rows, {row['layout']}: "
        f"a warm epoch {took['resident']:.2f} s, with batches copied {took['chunks']:.2f} s "
        f"(weight difference {row['difference']:.0e}), by hand {took['by_hand']:.2f} s: "
        f"{speed:.2f} of its speed (target {target}: {verdict(speed >= target)})"
    )


def predict_line(row):
    first, warm = row["first"], row["warm"]
    speed, over = warm["by_hand"] / warm["stacked"], first["separate"] / first["stacked"]
    return (
        f"- {row['backend']}: {row['members']} MLPs (784-64-10) predict 2,048 rows, stacked: "
        f"{1000 * warm['stacked']:.0f} ms, by hand {1000 * warm['by_hand']:.0f} ms: {speed:.2f} of "
        f"its speed (target 0.8: {verdict(speed >= 0.8)}); the models' own "
        f"{1000 * warm['separate']:.0f} ms; the first call {over:.1f} times as fast as theirs "
        f"(target 2: {verdict(over >= 2)}; largest difference {row['difference']:.0e}); calls of a "
        f"layer to trace the next 16 clones: {row['traces']} (target 0: "
        f"{verdict(row['traces'] == 0)})"
    )


SEARCHES = {
    "grid": "`GridSearchCV`, 12 candidates in 5 folds",
    "folds": "`cross_validate`, 10 folds",
    "optuna": "Optuna, 64 trials, 16 at once",
    "random": "KerasTuner, `RandomSearch`, 16 trials",
    "hyperband": "KerasTuner, `Hyperband`",
}


def search_line(row):
    wall, cpu = ({side: each[i] for side, each in row["seconds"].items()} for i in (0, 1))
    apart = row["difference"].get("joined")
    return (
        f"- {row['backend']}: {SEARCHES[row['case']]}, MLPs on digits, tracing included: plain "
        f"{wall['plain']:.0f} s, joined {wall['joined']:.0f} s"
        f"{'' if apart is None else f' (largest difference of scores {apart:.0e})'}, `auto` "
        f"{wall['auto']:.0f} s: {row['wall']:.1f} times as fast, {row['cpu']:.1f} by CPU time "
        f"({cpu['plain']:.0f} and {cpu['auto']:.0f} s; target {row['target']}: "
        f"{verdict(row['wall'] >= row['target'])})"
    )


def workers_line(row):
    return (
        f"- {row['backend']}: {row['members']} MLPs trained for {row['one']:.0f} s by one cohort "
        f"on two cores take {row['two']:.0f} s by two workers of Ray with one core each "
        f"({row['one'] / row['two']:.2f} times as fast; their start, {row['start']:.0f} s, apart; "
        f"weight difference {row['difference']:.0e})"
    )


def widget_line(row):
    overhead = {int(long): added for long, added in row["overhead"].items()}
    met = all(overhead[long] <= most for long, most in WIDGET_TARGETS.items())
    told = ", ".join(f"{added:+.0%} where it takes {long} s" for long, added in overhead.items())
    return (
        f"- {row['backend']}: training by the widget over `Cohort.fit`: {told} (target 5 % and "
        f"2 %: {verdict(met)}); 64 models are found and drawn in {row['opened']:.2f} s, and ticked "
        f"in {row['ticked']:.2f} s, both without the browser's part (targets 3 and 1: "
        f"{verdict(row['opened'] <= 3 and row['ticked'] <= 1)})"
    )


def verdict_line(row):
    if "verdict" in row:
        told = ", ".join(f"{name} {speedup:.2f}" for name, speedup in row["speedups"].items())
        return (
            f"- {row['backend']}: {row['verdict']}: the benchmark says {row['best']} (speed-ups: "
            f"{told}; target separate: {verdict(row['best'] == 'separate')})"
        )
    share = row["took"] / row["budget"]
    return (
        f"- {row['backend']}: a benchmark of {row['members']} small MLPs takes {row['took']:.0f} "
        f"s, {share:.2f} of its budget (target 1.20: {verdict(share <= 1.2)})"
    )


def data_memory_lines(backend):
    rows = 20_000
    for layout, members in (("joined", 1), ("joined", 16), ("stacked", 16)):
        few, many = (
            int(*module("data_memory", backend, layout, str(members), str(count)))
            for count in (rows, 2 * rows)
        )
        share = (many - few) / (rows * DATA_ROW_BYTES)
        yield (
            f"- {backend}: memory at the peak of a `fit` of {members} {layout} over one x, for "
            f"each byte of x: {share:.2f} (target 1.10: {verdict(share <= 1.1)})"
        )


def notes(backend):
    """What is measured besides, a line each."""
    for row in map(json.loads, module("processes", backend)):
        yield (
            f"- {backend}: 16 MLPs in one cohort, {row['ratio']:.1f} times as fast as in "
            f"{row['processes']} processes with one core each (start-up not counted)"
        )
    for row in map(json.loads, module("programs", backend)):
        yield (
            f"- {backend}: three programs one after another {row['alone']:.1f} s, by "
            f"`python -m kerascohost run` {row['together']:.1f} s "
            f"({row['alone'] / row['together']:.1f} times as fast; largest weight difference "
            f"{row['difference']:.0e})"
        )
    yield from map(real_size_line, map(json.loads, module("real_size", backend)))
    yield from map(predict_line, map(json.loads, module("predict", backend)))
    for row in map(json.loads, module("functions", backend)):
        yield functions_line(row)
    yield from map(search_line, map(json.loads, module("search", backend)))
    yield from map(workers_line, map(json.loads, module("workers", backend)))
    yield from map(widget_line, map(json.loads, module("widget", backend)))
    yield from map(verdict_line, map(json.loads, module("verdicts", backend)))
    for row in map(json.loads, module("suggestions", backend)):
        yield (
            f"- {backend}: {row['pair']}, group factors suggested {row['suggested']}, best of "
            f"all tried {row['best']}: an epoch takes {row['ratio']:.2f} times as long "
            f"(target 1.10; ungrouped {row['ungrouped']:.2f}); the benchmark's `separate` is "
            f"{row['separate']:.2f} of a plain loop of `fit` (target 0.90 to 1.10)"
        )
    if not Path("/proc/self/clear_refs").exists():
        yield "- peak memory: measured on Linux only"
        return
    yield from data_memory_lines(backend)
    apart, ours = (float(*module("memory", backend, way)) for way in ("separate", "joined"))
    yield f"- {backend}: peak memory of 16 MLPs {ours:.0f} MB, trained separately {apart:.0f} MB"


def main():
    lines = []

    def say(line):
        print(line, flush=True)
        lines.append(line)

    OUTPUT.mkdir(exist_ok=True)
    packages = ", ".join(f"{p} {version(p)}" for p in ("keras", "jax", "numpy"))
    say(f"{date.today()}, {len(cores())} cores, {platform.machine()}, {packages}\n")
    tables(say)
    for backend in BACKENDS:
        for line in notes(backend):
            say(line)
    (OUTPUT / "bench.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
