"""Choices of the user: models of a namespace, their data, a layout, and the call they make."""

import contextlib
import keyword
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
import traitlets

from kerascohost import backends, errors
from kerascohost.arguments import CHOSEN_LAYOUTS, Argument, Data, check_count
from kerascohost.errors import CohortError
from kerascohost.notebook import data, namespace, source
from kerascohost.notebook.data import Validation
from kerascohost.notebook.namespace import Value, Variables
from kerascohost.results.history import CohortHistory

# The largest factor that is suggested; there is no limit to what can be chosen.
MOST_FACTOR = 16

_DEFAULTS = {"batch_size": 32, "epochs": 5, "group_factor": 1, "replicas": 1, "callbacks": ()}
_COUNTS = [trait for trait, value in _DEFAULTS.items() if isinstance(value, int)]


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
    callbacks = traitlets.Dict()
    output = traitlets.Unicode("history")
    refreshed = traitlets.Int(read_only=True)

    def __init__(self, variables: Variables, **values: Value):
        super().__init__()
        self._variables = variables
        self._data: dict[str, Data] = {}
        self._callbacks: dict[str, keras.callbacks.Callback] = {}
        self._given: Mapping[str, keras.Model] = {}  # by the names that the user selected
        self._asked: set[str] = set()  # models for which the user has chosen `x`
        self._fitting: dict[tuple[str, ...], list[Argument]] = {}  # what was found for models
        self._made: dict[str, str] = {}  # the code of the copies that were made here
        self._is_guessing = False
        self._guard = threading.RLock()  # held while several choices are read or set
        if not isinstance(variables, Mapping):
            raise CohortError(
                "Expected `variables` to be a dict from names to objects, such as `globals()`. "
                f"Received: {variables!r}."
            )
        self._check_traits(values)
        self.refresh()
        for name in sorted(values, key=lambda name: name != "x"):  # a new `x` has new targets
            setattr(self, name, values[name])

    def _check_traits(self, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            if not self.has_trait(name):
                known = [trait for trait, one in self.traits().items() if not one.read_only]
                raise CohortError(
                    f"Expected traits of a session: {', '.join(sorted(known))}. "
                    f"Received: {name}={value!r}.{errors.did_you_mean(name, known)}"
                )

    # Models and data

    @traitlets.validate("selected")
    def _check_names(self, proposal: traitlets.Bunch) -> list[str]:
        if not set(proposal.value) <= set(self.models):
            self._given = namespace.chosen(self._variables, proposal.value)
            self.refresh()  # the model may be new, or listed by another name
            return list(self._given)
        return proposal.value

    @traitlets.validate(*_COUNTS)
    def _check_counts(self, proposal: traitlets.Bunch) -> dict[str, int]:
        self._check_members(proposal)
        for name, value in proposal.value.items():
            with errors.about(name):
                check_count(proposal.trait.name, value)
        return proposal.value

    @traitlets.validate("x", "y")
    def _check_data_names(self, proposal: traitlets.Bunch) -> dict[str, str]:
        self._check_members(proposal)
        for name, value in proposal.value.items():
            _check_is_name(name, proposal.trait.name, "data", value)
        return proposal.value

    @traitlets.validate("validation", "callbacks")
    def _check_several_names(self, proposal: traitlets.Bunch) -> dict[str, tuple[str | float, ...]]:
        self._check_members(proposal)
        trait = proposal.trait.name
        kind = "data" if trait == "validation" else "a callback"
        checked = {}
        for name, value in proposal.value.items():
            given = tuple(value) if isinstance(value, (list, tuple)) else (value,) if value else ()
            for one in given:
                if trait != "validation" or not isinstance(one, float):
                    _check_is_name(name, trait, kind, one)
            checked[name] = given
        return checked

    def _check_members(self, proposal: traitlets.Bunch) -> None:
        """Raises if a choice is for what is no model, and was none before."""
        known = {**self.models, **getattr(self, proposal.trait.name)}
        if not set(proposal.value) <= set(known):
            self.refresh()  # the model may be new
            known |= self.models
        for name in proposal.value:
            if name not in known:
                raise CohortError(
                    f"Expected the keys of `{proposal.trait.name}` to be names of models: "
                    f"{', '.join(known)}. Received: {name!r}.{errors.did_you_mean(name, known)}"
                )

    def refresh(self) -> None:
        """Reads the namespace again; choices for models that are still there remain."""
        with self._guard, self._guessing(), self.hold_trait_notifications():
            before = {*self._data, *self._callbacks}
            self._data = data.data_in(self._variables)
            self._callbacks = self.callbacks_in_namespace()
            gone = before - self._data.keys() - self._callbacks.keys()
            self._fitting.clear()
            models = namespace.models_in(self._variables, self._given)
            changed = [name for name in models if models[name] is not self.models.get(name)]
            self.models = models
            self._asked.difference_update(changed)
            self.selected = [name for name in self.selected if name in models]
            for trait, value in _DEFAULTS.items():
                missing = dict.fromkeys(models.keys() - getattr(self, trait).keys(), value)
                setattr(self, trait, getattr(self, trait) | missing)
            self._guess(gone)
            self.callbacks = {
                name: tuple(one for one in chosen if one not in gone)
                for name, chosen in self.callbacks.items()
            }
            self.set_trait("refreshed", self.refreshed + 1)

    @contextlib.contextmanager
    def _guessing(self) -> Iterator[None]:
        """Marks that what is chosen in the block is not chosen by the user."""
        before, self._is_guessing = self._is_guessing, True
        try:
            yield
        finally:
            self._is_guessing = before

    def _guess(self, gone: set[str]) -> None:
        """Chooses data for models that have none yet, or whose data is gone, where it is sure.

        A name that was never there stays chosen: the check before a training refuses it.
        """
        x, y, validation = dict(self.x), dict(self.y), dict(self.validation)
        for name, model in self.models.items():
            word = namespace.group_of(name) or name
            parts = data.parts_of(x.setdefault(name, ""))
            is_there = all(part in self._data for part in parts)
            if not gone.isdisjoint(parts) or (name not in self._asked and not is_there):
                x[name] = data.sure_inputs(word, model, self._data)
            if name not in y or x[name] != self.x.get(name) or y[name] in gone:
                y[name] = data.sure_targets(word, model, x[name], self._data)
            if name not in validation or not gone.isdisjoint(validation[name]):
                validation[name] = data.sure_validation(word, model, x[name], self._data)
        self.x, self.y, self.validation = x, y, validation

    def choose(self, trait: str, values: Mapping[str, Argument]) -> None:
        """Sets a trait for some models.

        Args:
            trait: A trait that is a dict by model; or `"factors"`, which is `"replicas"` in the
                layout "replicated" and `"group_factor"` in others.
            values: The new values by model.

        Raises:
            CohortError: If a value is to be a positive integer and is none, or there is no such
                model.
        """
        if trait == "factors":
            trait = "replicas" if self.layout == "replicated" else "group_factor"
        setattr(self, trait, getattr(self, trait) | values)

    def choose_input(self, name: str, position: int, chosen: str) -> None:
        """Sets the data of one of several inputs of a model.

        Args:
            name: The model.
            position: The number of the input, from 0 on.
            chosen: The name of an array; or of data for all inputs, which then is `x`.
        """
        if chosen in self._found("x", name):
            self.choose("x", {name: chosen})
            return
        parts = data.parts_of(self.x.get(name, ""))
        count = len(self.each_x_options(name))
        parts = parts if len(parts) == count else [""] * count
        parts[position] = chosen
        self.choose("x", {name: f"[{', '.join(parts)}]" if any(parts) else ""})

    def x_options(self, name: str) -> list[str]:
        """Returns names of data that fit a model's inputs, the likeliest first, then `""`."""
        return [*self._found("x", name), ""]

    def each_x_options(self, name: str) -> list[list[str]]:
        """Returns names of arrays for each input of a model that has several, then `""`."""
        word, model = namespace.group_of(name) or name, self.models[name]
        return [[*f, ""] for f in data.each_input_for(word, model, self._data).values()]

    def y_options(self, name: str) -> list[str]:
        """Returns names of targets for the chosen `x`, the likeliest first; `""` for none."""
        return [*self._found("y", name, self.x.get(name, "")), ""]

    def validation_options(self, name: str) -> list[Validation]:
        """Returns the validation data to choose from: none, a fraction of `x`, or other data."""
        own = self.x.get(name, "")
        value = data.value_of(own, self._data)
        fractions: list[Validation] = (
            [] if value is None or data.is_dataset(value) else [(0.1,), (0.2,)]
        )
        others = self._found("validation", name)
        return [(), *fractions, *(names for names in others if names[0] != own)]

    def _found(self, what: str, name: str, x: str = "") -> list[Argument]:
        """Returns what fits a model, which is looked for once for all models that are alike."""
        word, model = namespace.group_of(name) or name, self.models[name]
        key = (what, word, x, *_signature(model))
        if key not in self._fitting:
            look: dict[str, Callable[[], Iterable[Argument]]] = {
                "x": lambda: data.inputs_for(word, model, self._data),
                "y": lambda: data.targets_for(word, model, x, self._data),
                "validation": lambda: data.validation_for(word, model, self._data),
            }
            self._fitting[key] = list(look[what]())
        return self._fitting[key]

    def callbacks_in_namespace(self) -> dict[str, keras.callbacks.Callback]:
        """Returns the callbacks that can be picked, by name."""
        return {
            name: value
            for name, value in list(self._variables.items())
            if isinstance(value, keras.callbacks.Callback)
            and not isinstance(value, keras.callbacks.History)
            and not name.startswith("_")
        }

    def described(self, name: str) -> str:
        """Returns the shape of a variable's data, or the class of a dataset."""
        return data.described(self._data[name])

    @traitlets.observe("x")
    def _follow_x(self, change: traitlets.Bunch) -> None:
        """Chooses new targets, where they are sure, for inputs that the user has changed."""
        if self._is_guessing:
            return
        old = {} if change.old is traitlets.Undefined else change.old
        changed = [name for name in self.models if old.get(name) != self.x.get(name)]
        self._asked.update(changed)
        self.y = self.y | {
            name: data.sure_targets(
                namespace.group_of(name) or name, self.models[name], self.x[name], self._data
            )
            for name in changed
            if name in self.x
        }

    def rows(self, name: str) -> int | None:
        """Returns the number of samples that a model is trained on; `None` if unknown."""
        chosen = data.value_of(self.x.get(name, ""), self._data)
        return None if chosen is None else data.rows_of(chosen)

    def takes_batch_size(self, name: str) -> bool:
        """Returns whether the model's data has a batch size to choose, unlike a dataset."""
        chosen = data.value_of(self.x.get(name, ""), self._data)
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
                callbacks=tuple(self.callbacks.get(name, ())),
            )
            for name in self.selected
        }
        return source.Call(
            own, self.layout, self.factors, self.output, self._whole_groups(), self._making()
        )

    def _whole_groups(self) -> dict[str, bool]:
        """Returns the lists and dicts all of whose models are selected; whether it is a dict."""
        groups: dict[str, list[str]] = {}
        for name in self.selected:
            groups.setdefault(namespace.group_of(name), []).append(name)
        return {
            group: isinstance(self._variables[group], dict)
            for group, names in groups.items()
            if group and namespace.is_whole(self._variables, group, names)
        }

    def _making(self) -> list[str]:
        """Returns the code that made the selected copies."""
        groups = {namespace.group_of(name) for name in self.selected}
        return [code for group, code in self._made.items() if group in groups]

    @property
    def code(self) -> str:
        """Python code that does the same as `train`."""
        return self.call.python()

    @property
    def cell(self) -> str:
        """A notebook cell that does the same as `train`, but for random numbers.

        A cell is a sequence of fits: where they draw from a global random state, as shuffling does
        on JAX and torch, each goes on where the one before has left it, while each member of
        `train` begins in the same state. With the seed set before each `fit` of the cell, both
        draw the same.
        """
        return self.call.cell()

    # Checks before a training or benchmark

    def _check_selected(self) -> None:
        if not self.selected:
            there_are = ", ".join(self.models) or "none; build and compile a keras.Model first"
            raise CohortError(f"Expected models to take part. There are: {there_are}.")
        for name in self.selected:
            if not self.models[name].compiled:
                raise CohortError(f"Member {name!r}: you must call `compile()` before training it.")

    def _check_data(self) -> None:
        self._check_chosen_names()
        for name in self.selected:
            if not all(data.parts_of(self.x[name])):
                shape = getattr(self.models[name], "input_shape", "its inputs")
                raise CohortError(
                    f"Member {name!r}: expected data to train on. Received: none as x, whose "
                    f"shape is {shape}; choose it in the table."
                )
            needs_targets = self.models[name].loss is not None and self.takes_batch_size(name)
            if needs_targets and not self.y[name]:
                raise CohortError(
                    f"Member {name!r}: expected targets for its loss. Received: none as y; choose "
                    "them in the table."
                )

    def _check_chosen_names(self) -> None:
        """Raises if a name that is chosen for a member is not in the namespace."""
        for name in self.selected:
            validation = [one for one in self.validation[name] if isinstance(one, str)]
            for trait, chosen, kind, known in (
                ("x", data.parts_of(self.x[name]), "data", self._data),
                ("y", [self.y[name]], "data", self._data),
                ("validation", validation, "data", self._data),
                ("callbacks", self.callbacks[name], "a callback", self._callbacks),
            ):
                missing = [one for one in chosen if one and one not in known]
                if missing:
                    raise CohortError(
                        f"Member {name!r}: expected the name of {kind} as {trait}. Received: "
                        f"{missing[0]!r}.{errors.did_you_mean(missing[0], known)}"
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


def _check_is_name(member: str, trait: str, kind: str, value: Value) -> None:
    if not isinstance(value, str):
        raise CohortError(
            f"Member {member!r}: expected the name of {kind} as {trait}. Received: an object of "
            f"type {type(value).__name__}; give the name of its variable."
        )


def _signature(model: keras.Model) -> Iterable[str]:
    """Returns what data has to fit: the shapes of inputs and outputs, and the loss."""
    yield type(model).__name__ if not model.built else ""
    for side in ("inputs", "outputs"):
        yield str([(t.name, t.shape, t.dtype) for t in getattr(model, side, None) or []])
    yield str(getattr(model, "loss", ""))
