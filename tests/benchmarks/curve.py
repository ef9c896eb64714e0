"""Draws what a model costs by how many are trained together; loads no backend."""

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

COLORS = {"tensorflow": "#D55E00", "jax": "#0072B2"}


def draw(curves, path):
    """Writes a PNG of the rows that `stacked.cost_curve` prints, one line per backend."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    ax = figure.add_subplot()
    for row in curves:
        backend, color = row["backend"], COLORS[row["backend"]]
        ax.plot(row["members"], row["milliseconds"], "o-", color=color, label=f"{backend}, stacked")
        ax.axhline(row["fit"], linestyle="--", color=color, label=f"{backend}, its own fit")
    ax.set(xscale="log", yscale="log", xlabel="MLPs trained together", ylim=(1, None))
    ax.set(ylabel="warm epoch per model (ms)", title="Cost of one model")
    ax.set_xticks(curves[0]["members"], labels=[str(count) for count in curves[0]["members"]])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
