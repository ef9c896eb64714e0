"""Choices of the user: models of a namespace, their data, a layout, and the call they make."""

import keyword
import threading
from collections.abc import Mapping

import keras
import traitlets

from kerascohost import backends, errors
from kerascohost.arguments import CHOSEN_LAYOUTS, Argument, Data
from kerascohost.errors import CohortError
from kerascohost.notebook import data, namespace, source
from kerascohost.notebook.namespace import Value, Variables
from kerascohost.results.history import CohortHistory

# The largest factor that the widget offers; there is no limit in code.
MOST_FACTOR = 16


class Choices(traitlets.HasTraits):
    """A choice of models from a namespace, of their data and layout.

    `CohostSession` describes the traits, as it is the class that users know.

    Args:
        variables: The namespace.
        **values: Initial values of traits.
    """

    models = traitlets.Dict()
    selected = traitlets.List(traitlets.Unicode())
    x = traitlets.Dict()
    y = traitlets.Dict()
    validation = traitlets.Dict()
    batch_size = traitlets.Dict()
    epochs = traitlets.Dict()
    layout: "traitlets.Enum[str]" = traitlets.Enum(CHOSEN_LAYOUTS, "joined")
    group_factor = traitlets.Dict()
    replicas = traitlets.Dict()
    output = traitlets.Unicode("history")
    refreshed = traitlets.Int(read_only=True)

    def __init__(self, variables: Variables, **values: Value):
        super().__init__()
        self._variables = variables
        self._data: dict[str, Data] = {}
        self._given: Mapping[str, keras.Model] = {}  # by the names that the user selected
        self._without: set[str] = set()  # models without fitting data at the last refresh
        self._guard = threading.RLock()  # held while several choices are read or set
        self.refresh()
        for name, value in values.items():
            setattr(self, name, value)

    # Models and data

    @traitlets.validate("selected")
    def _check_names(self, proposal: traitlets.Bunch) -> list[str]:
        if not set(proposal.value) <= set(self.models):
            self._given = namespace.chosen(self._variables, proposal.value)
            self.refresh()  # the model may be new, or listed by another name
        for name in proposal.value:
            if name not in self.models:
                raise CohortError(
                    f"Expected names of models. Received: {name!r}."
                    f"{errors.did_you_mean(name, self.models)}"
                )
        return proposal.value

    def refresh(self) -> None:
        """Reads the namespace again; choices for models that are still there remain."""
        with self._guard:
            self._data = data.data_in(self._variables)
            self.models = namespace.models_in(self._variables, self._given)
            self.selected = [name for name in self.selected if name in self.models]
            for name in self.models:
                self._choose_for(name)
            self.set_trait("refreshed", self.refreshed + 1)

    def _choose_for(self, name: str) -> None:
        """Sets a model's choices where there are none yet, or their data is gone."""
        inputs = self.x_options(name)
        if self.x.get(name) not in inputs or (name in self._without and len(inputs) > 1):
            self.x = self.x | {name: inputs[0]}
        (self._without.add if len(inputs) == 1 else self._without.discard)(name)
        targets = self.y_options(name)
        if self.y.get(name) not in targets:
            self.y = self.y | {name: targets[0]}
        validations = self.validation_options(name)
        if self.validation.get(name) not in validations:
            aside = [names for names in validations if _is_for_validation(names)]
            self.validation = self.validation | {name: aside[0] if aside else ()}
        defaults = {"batch_size": 32, "epochs": 5, "group_factor": 1, "replicas": 1}
        for trait, value in defaults.items():
            if name not in getattr(self, trait):
                self.choose(trait, {name: value})

    def choose(self, trait: str, values: Mapping[str, Argument]) -> None:
        """Sets a trait for some models.

        Args:
            trait: A trait that is a dict by model; or `"factors"`, which is `"replicas"` in the
                layout "replicated" and `"group_factor"` in others.
            values: The new values by model.
        """
        if trait == "factors":
            trait = "replicas" if self.layout == "replicated" else "group_factor"
        setattr(self, trait, getattr(self, trait) | values)

    def x_options(self, name: str) -> list[str]:
        """Returns names of data that fit a model's inputs, the likeliest first, then `""`."""
        return [*data.inputs_for(name, self.models[name], self._data), ""]

    def y_options(self, name: str) -> list[str]:
        """Returns names of targets for the chosen `x`, the likeliest first; `[""]` for none."""
        found = data.targets_for(name, self.models[name], self.x.get(name, ""), self._data)
        return found or [""]

    def validation_options(self, name: str) -> list[data.Validation]:
        """Returns the validation data to choose from: none, a fraction of `x`, or other data."""
        own = self.x.get(name, "")
        fractions: list[data.Validation] = (
            [] if own == "" or data.is_dataset(self._data[own]) else [(0.1,), (0.2,)]
        )
        others = data.validation_for(name, self.models[name], self._data)
        return [(), *fractions, *(names for names in others if names[0] != own)]

    def described(self, name: str) -> str:
        """Returns the shape of a variable's data, or the class of a dataset."""
        return data.described(self._data[name])

    @traitlets.observe("x")
    def _follow_x(self, change: traitlets.Bunch) -> None:
        """Chooses new targets for models whose inputs have changed."""
        chosen = {
            name: self.y_options(name)[0]
            for name in self.models
            if self.y.get(name) not in self.y_options(name)
            or change.old is traitlets.Undefined
            or change.old.get(name) != self.x.get(name)
        }
        self.y = self.y | chosen

    def rows(self, name: str) -> int | None:
        """Returns the number of samples that a model is trained on; `None` if unknown."""
        chosen = self._data.get(self.x.get(name, ""))
        return None if chosen is None else data.rows_of(chosen)

    def takes_batch_size(self, name: str) -> bool:
        """Returns whether the model's data has a batch size to choose, unlike a dataset."""
        chosen = self._data.get(self.x.get(name, ""))
        return chosen is None or not data.is_dataset(chosen)

    # Layouts

    @property
    def impossible(self) -> dict[str, str]:
        """The layouts that cannot be chosen, with the reason."""
        if backends.get_backend().StackProgram is not None:
            return {}
        return dict.fromkeys(("stacked", "auto"), "steps are not compiled on this backend")

    @traitlets.validate("layout")
    def _check_layout(self, proposal: traitlets.Bunch) -> str:
        if proposal.value in self.impossible:
            raise traitlets.TraitError(
                f"Expected a layout that is available. Received: layout={proposal.value!r}, "
                f"{self.impossible[proposal.value]}."
            )
        return proposal.value

    @property
    def factors(self) -> dict[str, int]:
        """The number of batches of each selected model in a step of the chosen layout."""
        given = {"grouped": self.group_factor, "replicated": self.replicas}.get(self.layout, {})
        return {name: given.get(name, 1) for name in self.selected}

    @property
    def effective_batch_size(self) -> dict[str, int | None]:
        """The number of samples of each selected model in a step; `None` for a dataset."""
        return {
            name: self.batch_size[name] * factor if self.takes_batch_size(name) else None
            for name, factor in self.factors.items()
        }

    def most_factor(self, name: str) -> int:
        """Returns the largest factor for which the model has samples, at most `MOST_FACTOR`."""
        rows = self.rows(name)
        if rows is None or not self.takes_batch_size(name):
            return MOST_FACTOR
        return max(1, min(MOST_FACTOR, rows // self.batch_size[name]))

    # The call

    @property
    def call(self) -> source.Call:
        """The call that `train` makes, as code and as arguments."""
        own = {
            name: source.Fit(
                x=self.x[name],
                y=self.y.get(name, ""),
                validation=tuple(self.validation.get(name, ())),
                batch_size=self.batch_size[name] if self.takes_batch_size(name) else None,
                epochs=self.epochs[name],
            )
            for name in self.selected
        }
        return source.Call(own, self.layout, self.factors, self.output)

    @property
    def code(self) -> str:
        """Python code that does the same as `train`."""
        return self.call.python()

    @property
    def cell(self) -> str:
        """A notebook cell that does the same as `train`."""
        return self.call.cell()

    # Checks before a training or benchmark

    def _check_selected(self) -> None:
        if not self.selected:
            there_are = ", ".join(self.models) or "none; build and compile a keras.Model first"
            raise _about("models", f"Expected models to take part. There are: {there_are}.")
        for name in self.selected:
            if not self.models[name].compiled:
                raise _about(
                    "models", f"Member {name!r}: you must call `compile()` before training it."
                )

    def _check_data(self) -> None:
        for name in self.selected:
            if self.x.get(name, "") == "":
                shape = getattr(self.models[name], "input_shape", "its inputs")
                raise _about(
                    "data",
                    f"Member {name!r}: expected data to train on. Received: none; nothing in the "
                    f"namespace is chosen that fits {shape}.",
                )
            for trait in ("x", "y"):
                chosen = getattr(self, trait).get(name, "")
                if chosen and chosen not in self._data:
                    raise _about(
                        "data",
                        f"Member {name!r}: expected the name of data as {trait}. Received: "
                        f"{chosen!r}.{errors.did_you_mean(chosen, self._data)}",
                    )

    def _check_output(self) -> None:
        """Raises if the history would replace another object."""
        name = self.output
        there = self._variables.get(name)
        if not name.isidentifier() or keyword.iskeyword(name):
            raise CohortError(f"Expected a variable's name for the history. Received: {name!r}.")
        if there is not None and not isinstance(there, (CohortHistory, keras.callbacks.History)):
            raise CohortError(
                f"Expected a name for the history that is free. Received: {name!r}, which holds a "
                f"{type(there).__name__}."
            )


def _about(where: str, text: str) -> CohortError:
    error = CohortError(text)
    error.where = where  # type: ignore[attr-defined]  # read by `CohostSession`
    return error


def _is_for_validation(names: data.Validation) -> bool:
    return bool(names) and isinstance(names[0], str) and data.is_for_validation(names[0])
