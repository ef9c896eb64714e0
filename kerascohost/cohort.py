"""The cohort: members, and the arguments given to them."""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
from keras import tree

from kerascohost import errors, programs
from kerascohost.errors import CohortError
from kerascohost.fusion import factors_of, named_models
from kerascohost.history import CohortHistory
from kerascohost.member import Member, Run
from kerascohost.plan import Plan
from kerascohost.programs import data as keras_data
from kerascohost.programs import reached
from kerascohost.progress import Progress
from kerascohost.reads import paths_of
from kerascohost.scheduler import Scheduler, Task
from kerascohost.stacks import LAYOUTS

# `fit`'s arguments and defaults, which are Keras's.
_FIT_DEFAULTS: dict[str, Any] = {
    "x": None,
    "y": None,
    "batch_size": None,
    "epochs": 1,
    "verbose": "auto",
    "callbacks": None,
    "validation_split": 0.0,
    "validation_data": None,
    "shuffle": True,
    "class_weight": None,
    "sample_weight": None,
    "initial_epoch": 0,
    "steps_per_epoch": None,
    "validation_steps": None,
    "validation_batch_size": None,
    "validation_freq": 1,
}


class Cohort:
    """Several Keras models, trained together as one program, each exactly as if alone.

    Args:
        models: The compiled models: a dict from names to models, or a list of models, which then
            go by their own names. They may not share variables or optimizers; to apply one model
            several times, see `replicas`.
        layout: `"joined"`: each member's own step, side by side in one program. `"stacked"`:
            members of one architecture are trained by one vectorised step, to floating-point
            tolerance; the others are joined. `"auto"`: stacked where that is expected to be faster
            on this backend, joined elsewhere. See `plan`. While a stack trains, a model has its own
            state whenever a callback of its own may look; other members' callbacks may find it as
            it was when last looked at.
        group_factor: How many batches of a member are merged into one step, for all members or as
            a dict from names (a member not named there: 1). The member ends as its own `fit` with a
            `batch_size` that many times larger.
        replicas: How many times a member is applied in one step, with the same weights, to separate
            batches; the loss is their mean. The member ends as its own `fit` with a `batch_size`
            that many times larger, but for layers that look at a whole batch, such as
            BatchNormalization: they see each replica's. For all members or as a dict from names.

    Attributes:
        members: A dict from names to the models.
        history: The `CohortHistory` of the last `fit`, also of one that failed or was interrupted.
        progress: The class of the callbacks that show how far each member is; to show it your own
            way, set it to a subclass of `kerascohost.progress.Progress`.

    Raises:
        CohortError: If the models cannot be members of one cohort.

    Example:

    >>> import keras, numpy as np
    >>> def model(name, units):
    ...     net = keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(1)], name=name)
    ...     net.compile("adam", loss="mse")
    ...     return net
    >>> cohort = Cohort([model("small", 4), model("large", 64)])
    >>> x, y = np.ones((100, 4)), np.zeros((100, 1))
    >>> history = cohort.fit(x, y, epochs={"small": 2, "large": 3}, verbose=0)
    >>> {name: len(history[name].epoch) for name in history}
    {'small': 2, 'large': 3}
    """

    progress: Callable[[str, str, Any, int], Progress] = Progress

    def __init__(
        self,
        models: Mapping[str, keras.Model] | Sequence[keras.Model],
        layout: str = "joined",
        group_factor: int | Mapping[str, int] = 1,
        replicas: int | Mapping[str, int] = 1,
    ):
        named = named_models(models)
        check_layout(layout)
        group_factors = factors_of("group_factor", group_factor, named)
        replica_counts = factors_of("replicas", replicas, named)
        self.layout = layout
        self._members = {
            name: Member(name, model, group_factors[name], replica_counts[name])
            for name, model in named.items()
        }
        self._check_optimizers()
        self._scheduler = Scheduler(layout)
        self._working = threading.Lock()
        self._doing = ""
        self._history: CohortHistory | None = CohortHistory({})

    @property
    def members(self) -> dict[str, keras.Model]:
        """The models by name."""
        return {name: member.model for name, member in self._members.items()}

    @property
    def history(self) -> CohortHistory:
        """What the last `fit` recorded, also if it failed or was interrupted.

        A model's own `fit` in between changes nothing here.
        """
        return self._recorded() if self._history is None else self._history

    def _recorded(self) -> CohortHistory:
        return CohortHistory(
            {
                name: model.history
                for name, model in self.members.items()
                if hasattr(model, "history")
            },
            {name: member.validated for name, member in self._members.items()},
        )

    @property
    def plan(self) -> Plan:
        """Which member is stacked with which, and why others are joined."""
        self._arrange()
        return self._scheduler.stacks.plan(list(self._members.values()))

    def _arrange(self) -> None:
        members = self._members.values()
        self._scheduler.stacks.arrange(member for member in members if member.model.built)

    def __reduce__(self) -> tuple:
        """What pickling and copying take: the models and how they are to be trained.

        The copy has no history and nothing compiled. Models are pickled and copied by Keras.
        """
        members = self._members
        factors = ({name: getattr(m, key) for name, m in members.items()} for key in _FACTORS)
        own = {"progress": self.progress} if "progress" in vars(self) else None
        return type(self), (self.members, self.layout, *factors), own

    def __repr__(self) -> str:
        told = [*self._members, f"layout={self.layout!r}"]
        for key in _FACTORS:
            factors = {name: getattr(member, key) for name, member in self._members.items()}
            if set(factors.values()) != {1}:
                told.append(f"{key}={factors}")
        return f"Cohort({', '.join(told)})"

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: Any = None,
        epochs: Any = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: Any = 0.0,
        validation_data: Any = None,
        shuffle: Any = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: Any = 0,
        steps_per_epoch: Any = None,
        validation_steps: Any = None,
        validation_batch_size: Any = None,
        validation_freq: Any = 1,
        **unknown: Any,
    ) -> CohortHistory:
        """Trains all members together; each ends exactly as if its own `fit` had been called.

        Every argument has the meaning that it has in `keras.Model.fit`, and is either one value for
        all members or a dict whose keys are the members' names. Where a dict cannot be a value
        (`epochs`, `callbacks`, …), members that it does not name keep the default.

        Args:
            x: Input data: arrays, tensors, a DataFrame, a `tf.data.Dataset`, a
                `keras.utils.PyDataset`, a torch `DataLoader` or a generator of batches.
            y: Targets, where `x` is arrays.
            batch_size: Samples per batch, default 32. A step of a member takes
                `group_factor * replicas` times as many.
            epochs: The number of epochs, those before `initial_epoch` included.
            verbose: 1: a progress bar per member; 2: a line per epoch; 0: silence; `"auto"`: 1 in a
                terminal and in a notebook, 2 where output goes to a file.
            callbacks: A list of `keras.callbacks.Callback`. A list for all members is copied, so
                that each member has callbacks of its own.
            validation_split: Fraction of the arrays, from their end, to validate on.
            validation_data: `(x, y)`, `(x, y, sample_weight)` or a dataset to validate on.
            shuffle: Whether to shuffle arrays before each epoch; `"batch"` shuffles inside batches.
            class_weight: A dict from class indices to weights.
            sample_weight: Weights of the samples.
            initial_epoch: The epoch at which to start.
            steps_per_epoch: Steps until an epoch is over.
            validation_steps: Steps of a validation.
            validation_batch_size: Samples per validation batch; default: as in training.
            validation_freq: Epochs between validations, or the epochs after which to validate.

        Returns:
            The `CohortHistory`: each member's `History` by name.

        Raises:
            CohortError: Before any training, if something asked for cannot work.
        """
        given = {name: value for name, value in locals().items() if name in _FIT_DEFAULTS}
        self._check_known(unknown, _FIT_DEFAULTS)
        arguments = self._per_member(given)
        with self._one_at_a_time("fit"):
            for member in self._ready(lambda m: m.prepare_fit(arguments[m.name])):
                member.forget_history()
            self._history = None
            try:
                if self.layout != "joined":
                    self._arrange()
                    if any(arguments[name]["verbose"] != 0 for name in arguments):
                        print(f"{self.layout}: {self.plan.summary}")
                self._run("train", arguments, lambda member, bar: member.training([bar]))
            finally:
                self._history = self._recorded()
        return self.history

    def build(self, x: Any, y: Any = None, batch_size: Any = None) -> None:
        """Builds all members from their first batch, with their metrics and optimizers.

        `fit` does so itself, on TensorFlow not before its first step.

        Args:
            x: As in `fit`.
            y: As in `fit`.
            batch_size: As in `fit`.

        Raises:
            CohortError: If a member cannot be trained on its data.
        """
        given = {**_FIT_DEFAULTS, "x": x, "y": y, "batch_size": batch_size, "shuffle": False}
        arguments = self._per_member(given)
        with self._one_at_a_time("build"):
            for member in self._ready(lambda m: m.prepare_fit(arguments[m.name])):
                member.close()

    def stop(self) -> None:
        """Lets the `fit` that is running end after the steps it is in, from any thread.

        Each member ends as if a callback of its own had set `model.stop_training`: it is validated
        if that is due, its callbacks see the end of the epoch and of the training, and its history
        holds the epoch as far as it came.
        """
        for model in self.members.values():
            model.stop_training = True

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: Any = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: Any = None,
        callbacks: Any = None,
        return_dict: bool = False,
    ) -> dict[str, Any]:
        """Evaluates all members together, each as its own `evaluate` would.

        Args:
            x: Input data, for all or as a dict by member, like all that follow.
            y: Targets.
            batch_size: Samples per batch, default 32.
            verbose: 1: a progress bar per member; 2: a line each; 0: silence; or `"auto"`.
            sample_weight: Weights of the samples.
            steps: How many batches to take.
            callbacks: Callbacks for the evaluation.
            return_dict: Whether each member's result is a dict of metrics by name, instead of a
                number or a list.

        Returns:
            A dict from each member's name to what its `evaluate` returns.
        """
        given = {
            "x": x,
            "y": y,
            "batch_size": batch_size,
            "verbose": verbose,
            "sample_weight": sample_weight,
            "steps": steps,
            "callbacks": callbacks,
        }
        arguments = self._per_member(given)

        def begin(member: Member, bar: Progress) -> Run:
            return member.evaluation(arguments[member.name], [bar], return_dict)

        with self._one_at_a_time("evaluate"):
            self._ready(lambda m: m.prepare_evaluate(arguments[m.name]))
            return self._run("test", arguments, begin)

    def predict(
        self,
        x: Any,
        batch_size: Any = None,
        verbose: Any = "auto",
        steps: Any = None,
        callbacks: Any = None,
    ) -> dict[str, Any]:
        """Predicts with all members, each as its own `predict` would.

        Args:
            x: Input data, for all or as a dict by member, like all that follow.
            batch_size: Samples per batch, default 32.
            verbose: 1: a progress bar per member; 2: a line each; 0: silence; or `"auto"`.
            steps: How many batches to take.
            callbacks: Callbacks for the prediction.

        Returns:
            A dict from each member's name to its predictions: NumPy arrays, structured as the
            model's output.
        """
        given = {
            "x": x,
            "batch_size": batch_size,
            "verbose": verbose,
            "steps": steps,
            "callbacks": callbacks,
        }
        arguments = self._per_member(given)

        def begin(member: Member, bar: Progress) -> Run:
            return member.prediction(arguments[member.name], [bar])

        with self._one_at_a_time("predict"):
            for name, member in self._members.items():
                with errors.about(name):
                    member.prepare_predict(arguments[name])
            return self._run("predict", arguments, begin)

    @contextlib.contextmanager
    def _one_at_a_time(self, what: str) -> Iterator[None]:
        """Refuses what a callback of the running work, or another thread, asks of this cohort."""
        if not self._working.acquire(blocking=False):
            raise CohortError(
                f"Expected one `fit`, `evaluate` or `predict` of a Cohort at a time. Received: "
                f"`{what}` of {', '.join(self._members)} while `{self._doing}` is running. In a "
                "callback call the member's own `self.model`; in another thread wait for the end, "
                "or train `kc.clones` of the models in a Cohort of their own."
            )
        try:
            self._doing = what
            yield
        finally:
            self._working.release()

    # Arguments

    def _per_member(self, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Every member's own arguments, from values for all and dicts by member."""
        split = {key: self._split(key, value) for key, value in given.items()}
        own = {name: {key: split[key][name] for key in split} for name in self._members}
        self._check_own(own)
        _check_paths(own)
        return own

    def _split(self, key: str, value: Any) -> dict[str, Any]:
        names = list(self._members)
        if not isinstance(value, dict):
            return self._shared(key, value)
        if set(value) == set(names):
            return value
        strangers = [name for name in value if name not in self._members]
        if len(strangers) == len(value) and key in ("x", "y", "sample_weight", "class_weight"):
            return dict.fromkeys(names, value)  # a dict of arrays or of classes, shared by all
        if strangers:
            raise CohortError(
                f"Expected the keys of `{key}` to be names of members: {', '.join(names)}. "
                f"Received: {strangers[0]!r}.{errors.did_you_mean(strangers[0], names)}"
            )
        if key == "x":
            missing = next(name for name in names if name not in value)
            raise CohortError(
                f"Expected `x` to hold data for every member. Received: none for {missing!r}."
            )
        return {name: value.get(name, _FIT_DEFAULTS.get(key)) for name in names}

    def _shared(self, key: str, value: Any) -> dict[str, Any]:
        if key == "callbacks" and value and len(self._members) > 1:
            return _copied_callbacks(value, list(self._members))
        return dict.fromkeys(self._members, value)

    @staticmethod
    def _check_own(arguments: Mapping[str, dict[str, Any]]) -> None:
        """What changes while it is used, one member may use: others would see it changed."""
        owner: dict[int, str] = {}
        for key in ("x", "validation_data", "callbacks"):
            for name, given in arguments.items():
                for thing in keep_state(given.get(key)):
                    first = owner.setdefault(id(thing), name)
                    if first != name:
                        raise CohortError(
                            f"Expected `{key}` that each member has for itself. Received: one "
                            f"{_described(thing)} for {first!r} and {name!r}, which changes "
                            f"while it is used; give each its own: {key}={{{first!r}: ..., "
                            f"{name!r}: ...}}."
                        )

    @staticmethod
    def _check_known(unknown: dict[str, Any], known: Mapping[str, Any]) -> None:
        for name, value in unknown.items():
            raise CohortError(errors.not_of_fit(name, value, known))

    # Getting ready

    def _ready(self, prepare: Callable[[Member], None]) -> list[Member]:
        """Prepares every member, before any of them trains."""
        members = list(self._members.values())
        for member in members:
            with errors.about(member.name):
                prepare(member)
        self._check_separate()
        return members

    def _check_separate(self) -> None:
        """Refuses what one member's training changes and another one holds.

        Neither could then end as if alone. What no member changes may be shared.
        """
        self._check_optimizers()
        self._refuse_shared(
            lambda model: programs.with_parts([*model.metrics, *programs.unbuilt_metrics(model)]),
            lambda metric: f"metric ({metric.name}). Compile each model with metrics of its own.",
        )
        changed: dict[int, tuple[str, keras.Variable]] = {}
        for model in self.members.values():
            changed |= programs.changed_variables(model)
        self._refuse_shared(
            lambda model: [v for v in programs.variables(model) if id(v) in changed],
            lambda variable: (
                f"variable ({variable.path}) {changed[id(variable)][0]}. Give each a layer of its "
                "own; to apply one model several times, make it one member with `replicas`."
            ),
        )

    def _check_optimizers(self) -> None:
        self._refuse_shared(
            lambda model: [one for one in [getattr(model, "optimizer", None)] if one is not None],
            lambda one: f"optimizer ({one.name}). Compile each model with an optimizer of its own.",
        )

    def _refuse_shared(
        self, held_by: Callable[[keras.Model], list[Any]], told: Callable[[Any], str]
    ) -> None:
        """Refuses what is held by two members.

        Args:
            held_by: What a model holds.
            told: What it is, and the way out.
        """
        owner: dict[int, str] = {}
        for name, model in self.members.items():
            for thing in held_by(model):
                first = owner.setdefault(id(thing), name)
                if first != name:
                    raise CohortError(
                        "Expected members that share nothing that training changes. Received: "
                        f"{first!r} and {name!r} with the same {told(thing)}"
                    )

    def _run(self, kind: str, arguments: dict[str, dict[str, Any]], begin: Callable) -> dict:
        """Runs what `begin` makes for each member and its progress bar."""
        tasks = []
        for position, (name, member) in enumerate(self._members.items()):
            bar = self.progress(name, kind, arguments[name]["verbose"], position)
            tasks.append(Task(member, begin(member, bar), bar))
        results = self._scheduler.run(tasks)
        return {name: results[name] for name in self._members}


# The arguments by which a member takes more than one batch in a step.
_FACTORS = ("group_factor", "replicas")


def check_layout(layout: str) -> None:
    """Refuses a layout that there is not.

    Raises:
        CohortError: With those that there are.
    """
    if layout not in LAYOUTS:
        raise CohortError(
            f"Expected `layout` to be one of {', '.join(map(repr, LAYOUTS))}. "
            f"Received: layout={layout!r}.{errors.did_you_mean(layout, LAYOUTS)}"
        )


def _parts(value: Any) -> list:
    """The objects that an argument consists of."""
    if isinstance(value, keras.callbacks.CallbackList):
        return programs.callbacks_in(value)
    return [value] if hasattr(value, "__next__") else tree.flatten(value)


def keep_state(value: Any) -> list:
    """Those objects of an argument whose use for one member changes what another would find."""

    def does(thing: Any) -> bool:
        if isinstance(thing, keras.utils.PyDataset):
            return any(
                getattr(type(thing), hook) is not getattr(keras.utils.PyDataset, hook)
                for hook in ("on_epoch_begin", "on_epoch_end")
            )
        return isinstance(thing, keras.callbacks.Callback) or hasattr(thing, "__next__")

    parts = _parts(value)
    sources = [
        node for part in parts if reached.is_dataset(part) for node in reached.pipeline(part)
    ]
    return [
        *(thing for thing in parts if does(thing)),
        *(shuffle for part in parts for shuffle in keras_data.reshuffling(part)),
        *(seed for source in sources for seed in reached.captured(source)),
    ]


def _described(thing: Any) -> str:
    if hasattr(thing, "element_spec"):
        return "tf.data.Dataset that is shuffled anew each time"
    if reached.is_handle(thing):
        return "random layer in a dataset's `map`"
    return type(thing).__name__


def _check_paths(arguments: Mapping[str, dict[str, Any]]) -> None:
    """Refuses callbacks of two members that write to one place: one would find the other's file."""
    owners: dict[Path, str] = {}
    for name, given in arguments.items():
        for callback in _parts(given.get("callbacks")):
            for attribute, path in paths_of(callback).items():
                first = owners.setdefault(path.absolute(), name)
                if first != name:
                    raise CohortError(
                        "Expected callbacks that write to a place of their own for each member. "
                        f"Received: {attribute}={str(path)!r} in a {type(callback).__name__} of "
                        f"{first!r} and in one of {name!r}; give each a path of its own."
                    )


def _copied_callbacks(callbacks: Any, names: list[str]) -> dict[str, Any]:
    """Callbacks for all members, copied for each: a callback keeps the state of one model."""
    for callback in _parts(callbacks):
        for attribute in ("filepath", "filename", "log_dir", "backup_dir", "directory"):
            path = getattr(callback, attribute, None)
            if path:
                raise CohortError(
                    f"Expected a {type(callback).__name__} for each member, as all would write to "
                    f"one place. Received: {attribute}={str(path)!r} for all members; give "
                    f"callbacks={{{names[0]!r}: [...], ...}}."
                )
    return {name: _copied(_parts(callbacks)) for name in names}


def _copied(callbacks: list) -> list:
    """Copies that share among themselves what the callbacks share, but not their model."""
    models = {id(model): model for model in (callback.model for callback in callbacks)}
    try:
        return copy.deepcopy(callbacks, models)
    except Exception as error:
        raise CohortError(
            f"Expected callbacks that can be copied, one for each member. Received: {callbacks!r}, "
            f"which cannot ({error}). Give each member its own: callbacks={{name: [...]}}."
        ) from error
