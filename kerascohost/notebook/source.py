"""A training as source code, and as the arguments that the same code would pass."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence

from kerascohost.arguments import Argument
from kerascohost.notebook import data, namespace
from kerascohost.notebook.data import Validation
from kerascohost.notebook.namespace import Variables

_WIDTH = 88
_IN = "    "


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
        callbacks: The names of callbacks.
    """

    x: str
    y: str
    validation: Validation
    batch_size: int | None
    epochs: int
    callbacks: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Argument]:
        """Returns the arguments of `fit`."""
        parts = list(map(Name, data.parts_of(self.x)))
        given: dict[str, Argument] = {"x": parts if self.x.startswith("[") else parts[0]}
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
        if self.callbacks:
            given["callbacks"] = list(map(Name, self.callbacks))
        return given


@dataclasses.dataclass
class Call:
    """A call that trains models together.

    Attributes:
        fits: The arguments of each member, by the name of the model's variable.
        layout: As in `CohostSession`.
        factors: How many batches each member takes in a step.
        output: The variable for the `CohortHistory`.
        groups: Lists and dicts all of whose models are members; whether each is a dict.
        before: Lines of code that the call needs before it.
    """

    fits: dict[str, Fit]
    layout: str
    factors: Mapping[str, int]
    output: str
    groups: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    before: Sequence[str] = ()

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
        """Returns one value for all if it is the same for each of several, else `values`."""
        first = next(iter(values.values()))
        alike = len(values) == len(self.fits) and all(v == first for v in values.values())
        is_one = len(values) > 1 or isinstance(first, (int, float))
        return first if alike and is_one else values

    def python(self) -> str:
        """Returns Python code that trains the models by a `Cohort`."""
        cohort = _called("kc.Cohort", [Name(self._models())], self.cohort_arguments())
        fit = _called("cohort.fit", [], self.fit_arguments())
        lines = ["import kerascohost as kc", "", *self.before]
        return "\n".join([*lines, f"cohort = {cohort}", f"{self.output} = {fit}", ""])

    def _models(self) -> str:
        """Returns the dict of the members as code, with a comprehension for a whole list."""
        parts, seen = [], set()
        for name in self.fits:
            group = namespace.group_of(name)
            if group not in self.groups:
                parts.append(f"{_text(name)}: {name}")
            elif group not in seen:
                seen.add(group)
                pairs = f"{group}.items()" if self.groups[group] else f"enumerate({group})"
                key = "{i!r}" if self.groups[group] else "{i}"
                parts.append(f'**{{f"{group}[{key}]": model for i, model in {pairs}}}')
        if len(parts) == 1 and parts[0].startswith("**"):
            return parts[0][2:]
        return f"{{{', '.join(parts)}}}"

    def cell(self) -> str:
        """Returns a notebook cell that trains the models by their own `fit`."""
        if not self.fits:
            return "# No models are selected.\n"
        options: list[str] = []
        for key, value in self.cohort_arguments().items():
            flag = f"--{key.replace('_', '-')}"
            if isinstance(value, dict) and set(value) == set(self.fits):
                value = next(iter(value.values())) if len(set(value.values())) == 1 else value
            if isinstance(value, dict) and any(map(namespace.group_of, value)):
                return "# A cell cannot give factors to models of a list: use the Python code.\n"
            texts = [f"{n}={k}" for n, k in value.items()] if isinstance(value, dict) else [value]
            options += [f"{flag} {text}" for text in texts]
        lines = ["import kerascohost as kc", *self.before] if self.before else []
        looped: set[str] = set()
        for name, fit in self.fits.items():
            group = namespace.group_of(name)
            if not self._is_loop(group):
                lines.append(_fit(name, fit))
            elif group not in looped:
                looped.add(group)
                values = f"{group}.values()" if self.groups[group] else group
                lines.append(f"for model in {values}:\n{textwrap.indent(_fit('model', fit), _IN)}")
        head = " ".join(["%%cohost", *options, f"-o {self.output}"])
        return "\n".join([head, *lines]) + ("\n" if lines[-1].startswith("for ") else ";\n")

    def _is_loop(self, group: str) -> bool:
        """Returns whether a loop can fit all models of a list or dict: all in the same way."""
        fits = [fit for name, fit in self.fits.items() if namespace.group_of(name) == group]
        return group in self.groups and all(fit == fits[0] for fit in fits)


def _fit(model: str, fit: Fit) -> str:
    """Returns a call of a model's `fit` on one line, or on as many as it has arguments."""
    given = fit.arguments()
    positional = [given.pop(key) for key in ("x", "y") if key in given]
    return _called(f"{model}.fit", positional, given)


def _looked_up(value: Argument, variables: Variables) -> Argument:
    if isinstance(value, Name):
        return variables[value]
    if isinstance(value, dict):
        return {key: _looked_up(inner, variables) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_looked_up(inner, variables) for inner in value)
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
        return repr(value) if '"' in value else f'"{value}"'
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(key)}: {_text(v)}' for key, v in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)
