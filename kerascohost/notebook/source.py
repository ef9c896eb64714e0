"""A training as source code, and as the arguments that the same code would pass."""

import dataclasses
from collections.abc import Mapping, Sequence

from kerascohost.arguments import Argument
from kerascohost.notebook.data import Validation
from kerascohost.notebook.namespace import Variables

_WIDTH = 88


class Name(str):
    """The name of a variable, as an argument that stands for its value."""

    __slots__ = ()


@dataclasses.dataclass
class Fit:
    """The arguments of one model's `fit`, with data given by the names of variables.

    Attributes:
        x: The inputs.
        y: The targets; `""` where `x` is a dataset.
        validation: `()`, a fraction as `(0.1,)`, or names as `("x_val", "y_val")`.
        batch_size: Samples per batch; `None` where a dataset decides.
        epochs: How many epochs.
    """

    x: str
    y: str
    validation: Validation
    batch_size: int | None
    epochs: int

    def arguments(self) -> dict[str, Argument]:
        """Returns the arguments of `fit`."""
        given: dict[str, Argument] = {"x": Name(self.x)}
        if self.y:
            given["y"] = Name(self.y)
        if self.batch_size is not None:
            given["batch_size"] = self.batch_size
        given["epochs"] = self.epochs
        if self.validation and isinstance(self.validation[0], float):
            given["validation_split"] = self.validation[0]
        elif self.validation:
            names = tuple(map(Name, self.validation))
            given["validation_data"] = names if len(names) > 1 else names[0]
        return given


@dataclasses.dataclass
class Call:
    """A call that trains models together.

    Attributes:
        fits: The arguments of each member, by the name of the model's variable.
        layout: As in `CohostSession`.
        factors: How many batches each member takes in a step.
        output: The variable for the `CohortHistory`.
    """

    fits: dict[str, Fit]
    layout: str
    factors: Mapping[str, int]
    output: str

    def cohort_arguments(self) -> dict[str, Argument]:
        """Returns the arguments of `Cohort` except for the models."""
        if self.layout in ("stacked", "auto"):
            return {"layout": self.layout}
        trait = "replicas" if self.layout == "replicated" else "group_factor"
        factors = {name: factor for name, factor in self.factors.items() if factor > 1}
        return {trait: factors} if factors else {}

    def fit_arguments(self, variables: Variables | None = None) -> dict[str, Argument]:
        """Returns the arguments of `Cohort.fit`, by member where they differ.

        Args:
            variables: The variables whose values replace their names; without it names stay names.
        """
        own = {name: fit.arguments() for name, fit in self.fits.items()}
        keys = dict.fromkeys(key for given in own.values() for key in given)
        together = {
            key: {n: given[key] for n, given in own.items() if key in given} for key in keys
        }
        joined = {key: self._joined(key, values) for key, values in together.items()}
        return joined if variables is None else _looked_up(joined, variables)

    def _joined(self, key: str, values: dict[str, Argument]) -> Argument:
        """Returns one value for all if it is a number and the same for each, else `values`."""
        first = next(iter(values.values()))
        is_number = isinstance(first, (int, float))
        alike = len(values) == len(self.fits) and all(v == first for v in values.values())
        return first if is_number and alike else values

    def python(self) -> str:
        """Returns Python code that trains the models by a `Cohort`."""
        models = {name: Name(name) for name in self.fits}
        cohort = _called("kc.Cohort", [models], self.cohort_arguments())
        fit = _called("cohort.fit", [], self.fit_arguments())
        return f"import kerascohost as kc\n\ncohort = {cohort}\n{self.output} = {fit}\n"

    def cell(self) -> str:
        """Returns a notebook cell that trains the models by their own `fit`."""
        options: list[str] = []
        for key, value in self.cohort_arguments().items():
            flag = f"--{key.replace('_', '-')}"
            texts = [f"{n}={k}" for n, k in value.items()] if isinstance(value, dict) else [value]
            options += [f"{flag} {text}" for text in texts]
        lines = []
        for name, fit in self.fits.items():
            given = fit.arguments()
            positional = [given.pop(key) for key in ("x", "y") if key in given]
            lines.append(_called(f"{name}.fit", positional, given))
        head = " ".join(["%%cohost", *options, f"-o {self.output}"])
        return "\n".join([head, *lines]) + ";\n"


def _looked_up(value: Argument, variables: Variables) -> Argument:
    if isinstance(value, Name):
        return variables[value]
    if isinstance(value, dict):
        return {key: _looked_up(inner, variables) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_looked_up(inner, variables) for inner in value)
    return value


def _called(function: str, positional: Sequence[Argument], keywords: Mapping[str, Argument]) -> str:
    parts = [_text(value) for value in positional]
    parts += [f"{key}={_text(value)}" for key, value in keywords.items()]
    line = f"{function}({', '.join(parts)})"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"{function}(", *(f"    {part}," for part in parts), ")"])


def _text(value: Argument) -> str:
    """Returns an argument as code: names without quotes, strings in double quotes."""
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(key)}: {_text(v)}' for key, v in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
