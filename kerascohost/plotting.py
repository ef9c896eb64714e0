"""Plots of histories, drawn on the Axes given and never touching pyplot's state."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito, "Color Universal Design" (2008): told apart with every common colour blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("", "o", "s", "^", "D")  # a second sign once the colours are used up


def plot_losses(frame: pd.DataFrame, ax: Axes | None = None, metric: str = "loss") -> Axes:
    """Draws a metric of every member over its epochs: training solid, validation dashed.

    Args:
        frame: A table as `CohortHistory.frame`: `member`, `epoch`, `metric`, `split`, `value`.
        ax: The Axes to draw on; by default those of a new `matplotlib.figure.Figure`, which is
            displayed by a notebook and saved by `ax.figure.savefig(...)`.
        metric: Which metric to draw, without `val_`.

    Returns:
        The Axes.

    Example:

    >>> rows = [("mlp", 0, "loss", "train", 0.9), ("mlp", 1, "loss", "train", 0.4)]
    >>> frame = pd.DataFrame(rows, columns=["member", "epoch", "metric", "split", "value"])
    >>> plot_losses(frame).get_ylabel()
    'loss'
    """
    ax = _new_axes() if ax is None else ax
    chosen = frame[frame["metric"] == metric]
    for i, (member, curves) in enumerate(chosen.groupby("member", sort=False)):
        style = {
            "color": COLORS[i % len(COLORS)],
            "marker": MARKERS[i // len(COLORS) % len(MARKERS)],
            "markersize": 4,
        }
        _draw(ax, curves[curves["split"] == "train"], label=str(member), **style)
        _draw(ax, curves[curves["split"] == "val"], linestyle="--", alpha=0.8, **style)
    _finish(ax, chosen, metric)
    return ax


def _new_axes() -> Axes:
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def _draw(ax: Axes, curve: pd.DataFrame, **style: Any) -> None:
    if len(curve) == 1:
        style["marker"] = style["marker"] or "o"  # a line through one point is invisible
    if len(curve):
        ax.plot(curve["epoch"] + 1, curve["value"], **style)


def _finish(ax: Axes, chosen: pd.DataFrame, metric: str) -> None:
    values = chosen["value"]
    if len(values) and values.min() > 0 and values.max() > 30 * values.min():
        ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.set_ylabel(metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3)
    if chosen["split"].eq("val").any():
        ax.plot([], [], color="0.4", label="training")
        ax.plot([], [], color="0.4", linestyle="--", label="validation")
    members = chosen["member"].nunique()
    if members:
        columns = 1 + members // 12
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, ncols=columns)


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
