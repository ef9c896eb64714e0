"""Descriptions of a session as plain values, of which `widget.js` draws the widget."""

import collections
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypedDict

import keras
import pandas as pd

from kerascohost.arguments import CHOSEN_LAYOUTS, Argument
from kerascohost.layouts.result import BenchmarkResult
from kerascohost.notebook import data, namespace
from kerascohost.notebook.data import Validation
from kerascohost.notebook.live import Curves, MemberProgress
from kerascohost.notebook.session import CohostSession

# The options of a choice: pairs of a value and its text.
Options: TypeAlias = list[tuple[Argument, str]]

_ABOUT = {
    "joined": "Every model takes one batch in each step; the fast ones wait for the slow ones. "
    "Each ends exactly as its own fit.",
    "grouped": "A model takes its factor of batches, merged into one, in each step: it trains with "
    "a batch size that many times larger.",
    "replicated": "A model is applied to several batches in each step, with the same weights, and "
    "the loss is their mean: it trains with a batch size that many times larger.",
    "stacked": "Models of one architecture are trained by one vectorised step, each to "
    "floating-point tolerance as its own fit; others are joined.",
    "auto": "Stacked where that is expected to be faster, joined elsewhere.",
}
_FACTORS = {"grouped": "group factor", "replicated": "replicas"}

# The states of members whose training has ended by an error.
_FAILED = ("failed", "stopped")

# Digits of the values in curves: more cannot be seen.
_DIGITS = 5


class Row(TypedDict):
    """A model, as a row of the table.

    `options` has for `x`, `y` and `validation` numbers of lists in `Page.options`: for `x` one, or
    one for each of several inputs.
    """

    name: str
    group: str
    kind: str
    parameters: int | None
    shapes: str
    compiled: str
    usable: bool
    selected: bool
    x: list[str]
    y: str
    validation: Validation
    batch_size: int | None
    epochs: int
    factor: int
    step: str
    callbacks: Sequence[str]
    learning_rate: float | str
    options: dict[str, list[int]]


class Page(TypedDict):
    """The choices of a session."""

    rows: list[Row]
    options: list[Options]
    callbacks: Options
    layout: str
    layouts: list[tuple[str, str, str]]
    about: str
    factors: str
    output: str
    budget: float
    code: str
    cell: str
    result: "Result | None"


class Result(TypedDict):
    """A benchmark's result: `bars` has layout, speed-up, its interval, and whether it is exact."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    bars: list[tuple[str, float, float, float | None, bool]]
    best: str
    best_exact: str
    old: bool


class Live(TypedDict):
    """The progress of a training or benchmark, of its members, and of groups as wholes."""

    status: str
    work: str
    fraction: float
    text: str
    message: str
    members: dict[str, "MemberLine"]
    groups: dict[str, "MemberLine"]
    errors: dict[str, str]


class MemberLine(TypedDict):
    """The progress of one member, or of all in a group: from 0 to 1, and as texts."""

    fraction: float
    state: str
    note: str
    metrics: str
    loss: float | None


def page(session: CohostSession) -> Page:
    """Returns the choices of a session, with options for the models that are selected."""
    numbers: dict[str, int] = {}
    options: list[Options] = []

    def number(found: Options) -> int:
        key = repr(found)
        if key not in numbers:
            numbers[key] = len(options)
            options.append(found)
        return numbers[key]

    chosen = [data.parts_of(session.x.get(name, "")) for name in session.selected]
    has_data = bool(chosen) and all(map(all, chosen))
    callbacks = session.callbacks_in_namespace()
    return {
        "rows": [_row(session, name, number) for name in session.models],
        "options": options,
        "callbacks": _callback_options(callbacks),
        "layout": session.layout,
        "layouts": _layouts(session),
        "about": _ABOUT[session.layout],
        "factors": _FACTORS.get(session.layout, ""),
        "output": session.output,
        "budget": session.budget_s,
        "code": session.code if has_data else "",
        "cell": session.cell if has_data else "",
        "result": None if session.result is None else _result(session.result, session),
    }


def _layouts(session: CohostSession) -> list[tuple[str, str, str]]:
    """Returns each layout with its label, and the reason why it cannot be chosen or `""`."""
    labels = {"joined": "joined (sync-bound)"}
    impossible = session.impossible
    return [(name, labels.get(name, name), impossible.get(name, "")) for name in CHOSEN_LAYOUTS]


def _callback_options(callbacks: dict[str, keras.callbacks.Callback]) -> Options:
    """Returns the choices: none, each, and all if there are several."""
    each: Options = [([name], f"{name} ({type(one).__name__})") for name, one in callbacks.items()]
    every: Options = [(list(callbacks), ", ".join(callbacks))] if len(callbacks) > 1 else []
    return [([], "none"), *each, *every] if callbacks else []


def _row(session: CohostSession, name: str, number: Callable[[Options], int]) -> Row:
    model, is_selected = session.models[name], name in session.selected
    takes_batch_size = session.takes_batch_size(name)
    factor = session.factors.get(name, 1)
    return {
        "name": name,
        "group": namespace.group_of(name),
        "kind": type(model).__name__,
        "parameters": model.count_params() if model.built else None,
        "shapes": namespace.shapes(model),
        "compiled": namespace.compiled(model),
        "usable": bool(model.compiled),
        "selected": is_selected,
        "x": _inputs(session, name),
        "y": session.y.get(name, ""),
        "validation": session.validation.get(name, ()),
        "batch_size": session.batch_size[name] if takes_batch_size else None,
        "epochs": session.epochs[name],
        "factor": factor,
        "step": _step(session.batch_size[name] if takes_batch_size else None, factor),
        "callbacks": session.callbacks.get(name, ()),
        "learning_rate": _learning_rate(model),
        "options": _options(session, name, number) if is_selected else {},
    }


def _inputs(session: CohostSession, name: str) -> list[str]:
    """Returns the chosen data, for each input if the model has several and they are not one."""
    chosen, count = session.x.get(name, ""), len(session.each_x_options(name))
    return [""] * count if chosen == "" and count else data.parts_of(chosen)


def _options(
    session: CohostSession, name: str, number: Callable[[Options], int]
) -> dict[str, list[int]]:
    def described(names: Sequence[str], without: str) -> Options:
        return [(one, f"{one} {session.described(one)}" if one else without) for one in names]

    whole, each = session.x_options(name), session.each_x_options(name)
    x = [described(whole, "choose…")]
    if each and session.x.get(name, "") not in whole[:-1]:
        x = [described(one, "choose…") for one in each]
        x[0] = described(whole[:-1], "") + x[0]  # data that has all inputs in it
    without = "choose…" if session.takes_batch_size(name) else "in the dataset"
    validation: Options = [(one, _validation(one)) for one in session.validation_options(name)]
    return {
        "x": [number(one) for one in x],
        "y": [number(described(session.y_options(name), without))],
        "validation": [number(validation)],
    }


def _validation(names: Validation) -> str:
    if not names:
        return "none"
    is_part = isinstance(names[0], float)
    return f"last {100 * names[0]:.0f} %" if is_part else ", ".join(map(str, names))


def _step(batch_size: int | None, factor: int) -> str:
    if factor == 1:
        return ""
    return "" if batch_size is None else f"{factor * batch_size} instead of {batch_size}"


def _learning_rate(model: keras.Model) -> float | str:
    """Returns the learning rate, or the name of its schedule."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return ""
    with contextlib.suppress(RuntimeError):  # JAX's, for a value that is in training now
        rate = optimizer.get_config().get("learning_rate", "")
        if isinstance(rate, dict):
            return str(rate.get("class_name", ""))
        return float(f"{rate:.4g}") if isinstance(rate, float) else str(rate)
    return ""


def live(session: CohostSession) -> Live:
    """Returns what a training or benchmark has done so far."""
    progress = session.progress
    members = session.members_trained
    groups: dict[str, list[MemberProgress]] = {}
    for name, member in members.items():
        groups.setdefault(namespace.group_of(name), []).append(member)
    return {
        "status": session.status,
        "work": session.work,
        "fraction": progress.get("fraction", 0.0),
        "text": progress.get("text", ""),
        "message": session.message,
        "members": {name: _line(member) for name, member in members.items()},
        "groups": {group: _of_group(found) for group, found in groups.items() if group},
        "errors": session.errors,
    }


def _line(member: MemberProgress) -> MemberLine:
    state, epoch = member["state"], f"epoch {member['epoch']}"
    if state in ("training", "ended"):
        state = epoch
    elif state in _FAILED and not epoch.startswith("epoch 0/"):
        state += f" after {epoch}"
    return {
        "fraction": member["fraction"],
        "state": state,
        "note": member["note"],
        "metrics": " · ".join(f"{name} {_number(v)}" for name, v in _loss_first(member)),
        "loss": _finite(member["metrics"].get("loss")),
    }


def _loss_first(member: MemberProgress) -> list[tuple[str, float]]:
    return sorted(member["metrics"].items(), key=lambda item: not item[0].endswith("loss"))


def _of_group(members: list[MemberProgress]) -> MemberLine:
    """Returns how far all members of a group are together."""
    epochs = [int(member["epoch"].partition("/")[0]) for member in members]
    losses = [member["metrics"]["loss"] for member in members if "loss" in member["metrics"]]
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    ends = collections.Counter(member["state"] for member in members)
    span = f"{min(epochs)}" if min(epochs) == max(epochs) else f"{min(epochs)} to {max(epochs)}"
    state = f"epoch {span}"
    if ends["ended"] == len(members):
        state = f"all {len(members)} ended"
    elif any(ends[end] for end in _FAILED):
        state = ", ".join(f"{count} {end}" for end, count in ends.items())
    notes = [member["note"] for member in members if member["note"]]
    return {
        "fraction": sum(member["fraction"] for member in members) / len(members),
        "state": state,
        "note": f"{len(notes)} of {len(members)}: {notes[0]}" if notes else "",
        "metrics": f"loss {_number(finite[0])} to {_number(finite[-1])}" if finite else "",
        "loss": finite[0] if finite else None,
    }


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.4g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def curves(session: CohostSession) -> dict[str, Curves | list[Curves]]:
    """Returns the curves of the last training, and those of earlier ones."""
    return {"now": _rounded(session.curves), "earlier": [_rounded(one) for one in session.earlier]}


def _rounded(found: Curves) -> Curves:
    return {
        name: {
            key: [(epoch, v if v is None else float(f"{v:.{_DIGITS}g}")) for epoch, v in points]
            for key, points in metrics.items()
        }
        for name, metrics in found.items()
    }


def _result(result: BenchmarkResult, session: CohostSession) -> Result:
    measured = result.frame[result.frame["speedup"].notna()]
    table = pd.DataFrame([result.described(row) for _, row in measured.iterrows()])
    missing = result.frame[result.frame["speedup"].isna()]
    pairs = zip(missing["layout"], missing["note"], strict=True)
    exact = "same_training"
    return {
        "columns": list(map(str, table)),
        "rows": table.to_numpy().tolist(),
        "notes": [result.reason, *(f"{name} was not measured: {note}" for name, note in pairs)],
        "bars": [
            (row["layout"], row["speedup"], row["low"], _finite(row["high"]), bool(row[exact]))
            for _, row in measured.iterrows()
        ],
        "best": result.best,
        "best_exact": result.best_exact,
        "old": session.result_is_old,
    }
