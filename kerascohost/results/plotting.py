"""Plots of histories, drawn on the Axes given and never touching pyplot's state."""

import io
import math
from typing import Any, TypeAlias

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kerascohost import errors
from kerascohost.errors import CohortError

# Okabe and Ito, "Color Universal Design" (2008): told apart with every common colour blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("", "o")  # a second sign once the colours are used up

# Of the table of losses.
COLUMNS = ["member", "epoch", "metric", "split", "value"]

# More curves than this cannot be told apart: they are drawn alike, with their median.
MOST_NAMED = 12


# A `CohortHistory`, a `keras.callbacks.History` or a DataFrame: told apart by what they have.
History: TypeAlias = Any

# What matplotlib's `plot` takes by name.
Style: TypeAlias = Any

# An `Axes`, or with `subplots` an array of them, which no argument's type tells.
Shown: TypeAlias = Any


class ShownAxes(Axes):
    """Axes that a notebook shows when they are the value of a cell, without any set-up."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.figure.canvas.print_figure(picture, format="png", dpi=110, bbox_inches="tight")
        return picture.getvalue()


def plot_losses(
    history: History, ax: Axes | None = None, metric: str = "loss", subplots: bool = False
) -> Shown:
    """Draws a metric of every member over its epochs: validation is dashed.

    Of more than 12 members the curves are thin and alike, with their median over them. To follow a
    training, draw again on the same Axes after `ax.clear()`.

    Args:
        history: A `CohortHistory`, a `keras.callbacks.History`, or a table as
            `CohortHistory.frame`: `member`, `epoch`, `metric`, `split`, `value`.
        ax: The Axes to draw on; by default those of a new `matplotlib.figure.Figure`, which a
            notebook shows where they end a cell, and which `ax.figure.savefig(...)` saves.
        metric: Which metric to draw, without `val_`.
        subplots: Whether each member gets Axes of its own, with a scale of its own.

    Returns:
        The Axes; with `subplots` a list of them, in the order of the members.

    Raises:
        CohortError: If there is no such metric in the history.

    Example:

    >>> rows = [("mlp", 0, "loss", "train", 0.9), ("mlp", 1, "loss", "train", 0.4)]
    >>> frame = pd.DataFrame(rows, columns=["member", "epoch", "metric", "split", "value"])
    >>> plot_losses(frame).get_ylabel()
    'loss'
    """
    frame = _as_frame(history)
    _check_metric(frame, metric)
    chosen = frame[frame["metric"] == metric]
    if subplots:
        return _draw_apart(chosen, ax, metric)
    ax = _new_axes() if ax is None else ax
    if chosen["member"].nunique() > MOST_NAMED:
        _draw_many(ax, chosen)
    else:
        _draw_each(ax, chosen)
    _finish(ax, chosen, metric)
    return ax


def _check_metric(frame: pd.DataFrame, metric: str) -> None:
    known = list(frame["metric"].unique())
    if known and metric not in known:
        hint = errors.did_you_mean(str(metric).removeprefix("val_"), known)
        raise CohortError(
            f"Expected `metric` to be one of {', '.join(map(repr, known))}, each drawn with its "
            f"validation. Received: metric={metric!r}.{hint}"
        )


def row(member: str, epoch: int, name: str, value: float) -> tuple[str, int, str, str, float]:
    """A row of the table, for a metric by the name that a `History` has for it."""
    split = "val" if name.startswith("val_") else "train"
    return (member, epoch, name.removeprefix("val_"), split, value)


def _as_frame(history: History) -> pd.DataFrame:
    if isinstance(history, pd.DataFrame):
        return history
    if hasattr(history, "frame"):
        return history.frame
    rows = [
        row("", epoch, name, value)
        for name, values in history.history.items()
        for epoch, value in zip(history.epoch[-len(values) :], values, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _draw_each(ax: Axes, chosen: pd.DataFrame) -> None:
    for i, (member, curves) in enumerate(chosen.groupby("member", sort=False)):
        style = {
            "color": COLORS[i % len(COLORS)],
            "marker": MARKERS[i // len(COLORS) % len(MARKERS)],
            "markersize": 4,
        }
        # A History alone has no name to show.
        label = {"label": str(member)} if member else {}
        _draw(ax, curves[curves["split"] == "train"], **label, **style)
        _draw(ax, curves[curves["split"] == "val"], linestyle="--", alpha=0.8, **style)


def _draw_apart(chosen: pd.DataFrame, ax: Axes | None, metric: str) -> list[Axes]:
    """Small multiples: a grid of Axes, one for each member."""
    if ax is not None:
        raise CohortError("Expected either `ax` or `subplots=True`. Received: both.")
    members = list(chosen.groupby("member", sort=False))
    columns = min(4, math.ceil(math.sqrt(max(1, len(members)))))
    rows = max(1, math.ceil(len(members) / columns))
    figure = Figure(figsize=(3 * columns + 1, 2.2 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = [
        figure.add_subplot(rows, columns, i + 1, axes_class=ShownAxes) for i in range(len(members))
    ]
    for i, (own, (member, curves)) in enumerate(zip(grid, members, strict=True)):
        _draw(own, curves[curves["split"] == "train"], color=COLORS[0])
        _draw(own, curves[curves["split"] == "val"], color=COLORS[1], linestyle="--")
        _finish(own, curves, metric)
        own.set_title(str(member), fontsize="medium")
        _hide_inner_labels(own, is_left=i % columns == 0, is_last=i + columns >= len(members))
    if grid and chosen["split"].eq("val").any():
        lines = [
            Line2D([], [], color=COLORS[0], label="training"),
            Line2D([], [], color=COLORS[1], linestyle="--", label="validation"),
        ]
        figure.legend(handles=lines, loc="outside upper right", ncols=2, frameon=False)
    return grid


def _hide_inner_labels(ax: Axes, is_left: bool, is_last: bool) -> None:
    legend = ax.get_legend()
    if legend is not None:
        legend.remove()
    if not is_left:
        ax.set_ylabel("")
    if not is_last:
        ax.set_xlabel("")


def _draw_many(ax: Axes, chosen: pd.DataFrame) -> None:
    for split, color, line in (("train", COLORS[0], "-"), ("val", COLORS[1], "--")):
        curves = chosen[chosen["split"] == split]
        for _, curve in curves.groupby("member", sort=False):
            _draw(ax, curve, color=color, linestyle=line, linewidth=0.7, alpha=0.35)
        median = curves.groupby("epoch")["value"].median().reset_index()
        members = curves["member"].nunique()
        label = f"median of {members}, {'training' if split == 'train' else 'validation'}"
        _draw(ax, median, color=color, linestyle=line, linewidth=2.5, label=label)


def _new_axes() -> Axes:
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot(axes_class=ShownAxes)


def _draw(ax: Axes, curve: pd.DataFrame, **style: Style) -> None:
    if len(curve) == 1:
        style["marker"] = style.get("marker") or "o"  # a line through one point is invisible
    if len(curve):
        ax.plot(curve["epoch"] + 1, curve["value"], **style)


def _finish(ax: Axes, chosen: pd.DataFrame, metric: str) -> None:
    values = chosen["value"]
    if len(values) and values.min() > 0 and values.max() > 30 * values.min():
        ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.set_ylabel(metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(chosen):
        ax.set_xlim(left=0.5)  # epochs are counted from 1
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3)
    members = chosen["member"].nunique()
    if chosen["split"].eq("val").any() and members <= MOST_NAMED:
        ax.plot([], [], color="0.4", label="training")
        ax.plot([], [], color="0.4", linestyle="--", label="validation")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def plot_benchmark(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws the speed-up of each layout over separate training, with its interval.

    Layouts that change a training's batch size are hatched.

    Args:
        frame: A table as `BenchmarkResult.frame`.
        ax: The Axes to draw on; by default those of a new figure.

    Returns:
        The Axes.
    """
    ax = _new_axes() if ax is None else ax
    rows = frame[frame["speedup"].notna()]
    for exact, label, hatch in ((True, "same training", ""), (False, "larger batches", "///")):
        chosen = rows[rows["same_training"] == exact]
        if len(chosen):
            ax.bar(
                chosen["layout"],
                chosen["speedup"],
                yerr=[chosen["speedup"] - chosen["low"], chosen["high"] - chosen["speedup"]],
                color=COLORS[0] if exact else COLORS[4],
                edgecolor="white",
                hatch=hatch,
                capsize=4,
                label=label,
            )
    ax.axhline(1, color="0.4", linewidth=1)
    ax.set_ylabel("speed-up over separate training")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax
