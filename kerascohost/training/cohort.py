"""The cohort: members, and the arguments given to them.

Arguments of `fit` that are used here; `member` and `batches` use the others:

- all: split by member, from one value for all or a dict by member; unknown ones are refused.
- `x`: refused if a dict by member leaves a member out.
- `callbacks`: copied for each member where they are given for all.
- `x`, `validation_data`, `callbacks`: refused if members share an object that its use changes.
- `verbose`: decides what `Progress` shows, and whether the plan is printed.
"""

import contextlib
import inspect
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras

from kerascohost import backends, errors
from kerascohost.arguments import (
    Argument,
    Callbacks,
    Data,
    EvaluateArguments,
    FitArguments,
    Layout,
    PerMember,
    PredictArguments,
    check_layout,
    check_workers,
    counts_per_member,
    named_models,
    no_member,
    per_member,
)
from kerascohost.backends import Logs, StepKind, Tree
from kerascohost.backends.base import Thing
from kerascohost.backends.resident import free_bytes
from kerascohost.errors import CohortError
from kerascohost.models.memory import training_bytes
from kerascohost.results.history import CohortHistory
from kerascohost.results.plan import Plan
from kerascohost.results.progress import Progress
from kerascohost.training import sharing
from kerascohost.training.member import Member, Run, check_callbacks
from kerascohost.training.scheduler import Scheduler, Task

if TYPE_CHECKING:
    from kerascohost.training.workers import Workers


class Cohort:
    """Several Keras models, trained together as one program, each exactly as if alone.

    Args:
        models: The compiled models (`keras.Model`): a dict from names to models, or a list of
            models, each of which is then a member under its own `name`. They may not share
            variables or optimizers; to apply one model several times, see `replicas`.
        layout: A string. `"joined"` (default): each member's own step, side by side in one program.
            `"stacked"`: members of one architecture are trained by one vectorised step, to
            floating-point tolerance; the others are joined. `"auto"`: stacked where that is
            expected to be faster on this backend, joined elsewhere; during a long `fit` both are
            measured, and the faster one goes on. A `Plan`, the `plan` of another cohort with
            members of the same names: as there. The layouts differ in the last bits of floats, so
            two runs are equal only with one fixed layout: `"joined"`, `"stacked"` or a plan. While
            a stack trains, the variables of a model are up to date whenever its own callbacks are
            called; callbacks of other members may find earlier values in it. (In any layout a
            callback that looks at another member finds it in training, as all train together.)
        group_factor: The number of batches of a member that are merged into one step: a positive
            integer for all members, or a dict from names to integers. Default 1, also for members
            that the dict does not name. The member ends as its own `fit` with a `batch_size` that
            many times larger.
        replicas: The number of times that a member is applied in one step, with the same weights,
            to separate batches; the loss is their mean. A positive integer for all members, or a
            dict from names to integers. Default 1. The member ends as its own `fit` with a
            `batch_size` that many times larger, but for layers that compute over a whole batch,
            such as BatchNormalization: they compute over the batch of each replica.
        at_once: The number of members that train at the same time, for cohorts that take more
            memory than there is: an integer, or `"auto"`: as many as half of the free memory is
            enough for, by what `estimate_memory` predicts. The members train in waves, in their
            order; each ends as without. Default `None`: all.
        workers: `kerascohost.RayWorkers`, processes on this machine or a cluster that `fit` trains
            the members in, each in one of them. Default `None`: all are trained here. `evaluate`
            and `predict` run here.
        devices: On JAX the devices of this machine over which the members of each stack are spread,
            as `jax.devices()`. Default `None`: one device. Elsewhere see `workers`.

    Attributes:
        members: A dict from names to the models.
        layout: The layout that was given: a string or a `Plan`.
        group_factor: A dict from names to group factors.
        replicas: A dict from names to numbers of replicas.
        at_once: The `at_once` that was given.
        history: The `CohortHistory` of the last `fit`, also of one that failed or was interrupted.
        progress: The class of the callbacks that show how far each member is; to show it your own
            way, set it to a subclass of `kerascohost.Progress`.

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

    progress: Callable[[str, str, int | str, int], Progress] = Progress

    def __init__(
        self,
        models: Mapping[str, keras.Model] | Sequence[keras.Model],
        layout: Layout | Plan = "joined",
        group_factor: PerMember[int] = 1,
        replicas: PerMember[int] = 1,
        at_once: int | Literal["auto"] | None = None,
        workers: "Workers | None" = None,
        devices: Sequence[Thing] | None = None,
    ):
        check_workers(workers)
        _check_at_once(at_once, workers)
        named = named_models(models)
        if isinstance(layout, Plan):
            _check_plan(layout, named)
        else:
            check_layout(layout)
        group_factors = counts_per_member("group_factor", group_factor, named)
        replica_counts = counts_per_member("replicas", replicas, named)
        self.layout = layout
        self._members = {
            name: Member(name, model, group_factors[name], replica_counts[name])
            for name, model in named.items()
        }
        sharing.check_optimizers(named)
        self.at_once = at_once
        self._devices = _checked_devices(devices, layout, workers)
        self._scheduler = Scheduler(layout, self._devices)
        self._workers = workers
        self._working = threading.Lock()
        self._doing = ""
        self._is_stopped = False
        for member in self._members.values():
            member.is_stopped = lambda: self._is_stopped
        self._history: CohortHistory | None = CohortHistory({})

    @property
    def members(self) -> dict[str, keras.Model]:
        """The models: a dict from names to `keras.Model`s."""
        return {name: member.model for name, member in self._members.items()}

    @property
    def group_factor(self) -> dict[str, int]:
        """The number of batches of each member that are merged into one step: a dict by name."""
        return {name: member.group_factor for name, member in self._members.items()}

    @property
    def replicas(self) -> dict[str, int]:
        """The number of times that each member is applied in one step: a dict by name."""
        return {name: member.replicas for name, member in self._members.items()}

    @property
    def history(self) -> CohortHistory:
        """The `CohortHistory` of the last `fit`, also if it failed or was interrupted.

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
        """The `Plan`: which members are stacked together, and why the others are joined.

        Example:

        >>> import keras
        >>> nets = [
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)], name=f"net{units}")
        ...     for units in (2, 3)]
        >>> for net in nets:
        ...     net.compile("adam", loss="mse")
        >>> Cohort(nets).plan.summary
        '2 joined (net2, net3)'
        """
        self._assign()
        return self._scheduler.stacks.plan(list(self._members.values()))

    def _assign(self) -> None:
        members = self._members.values()
        self._scheduler.stacks.assign(member for member in members if member.model.built)

    def __reduce__(self) -> tuple[Argument, ...]:
        """Returns what is pickled and copied: the models and the arguments of the cohort.

        The copy has no history and nothing compiled. Models are pickled and copied by Keras.
        """
        own = {"progress": self.progress} if "progress" in vars(self) else None
        factors = (self.group_factor, self.replicas)
        own_way = (self.at_once, self._workers, self._devices or None)
        given = (self.members, self.layout, *factors, *own_way)
        return type(self), given, own

    def __repr__(self) -> str:
        layout = "a plan" if isinstance(self.layout, Plan) else repr(self.layout)
        told = [*self._members, f"layout={layout}"]
        for key, factors in (("group_factor", self.group_factor), ("replicas", self.replicas)):
            if set(factors.values()) != {1}:
                told.append(f"{key}={factors}")
        if self.at_once is not None:
            told.append(f"at_once={self.at_once!r}")
        return f"Cohort({', '.join(told)})"

    def fit(
        self,
        x: PerMember[Data] = None,
        y: PerMember[Data] = None,
        batch_size: PerMember[int | None] = None,
        epochs: PerMember[int] = 1,
        verbose: PerMember[int | str] = "auto",
        callbacks: PerMember[Callbacks] = None,
        validation_split: PerMember[float] = 0.0,
        validation_data: PerMember[Data] = None,
        shuffle: PerMember[bool | str] = True,
        class_weight: PerMember[Mapping[int, float] | None] = None,
        sample_weight: PerMember[Data] = None,
        initial_epoch: PerMember[int] = 0,
        steps_per_epoch: PerMember[int | None] = None,
        validation_steps: PerMember[int | None] = None,
        validation_batch_size: PerMember[int | None] = None,
        validation_freq: PerMember[int | list[int]] = 1,
        **unknown: object,
    ) -> CohortHistory:
        """Trains all members together; each ends exactly as if its own `fit` had been called.

        Every argument has the meaning that it has in `keras.Model.fit`, and is either one value for
        all members or a dict whose keys are the members' names. Where a dict cannot be a value
        (`epochs`, `callbacks`, …), members that it does not name keep the default.

        Args:
            x: Input data: arrays, tensors, a DataFrame, a `tf.data.Dataset`, a
                `keras.utils.PyDataset`, a torch `DataLoader` or a generator of batches. Arrays have
                the shape `(samples, ...)`.
            y: Targets `(samples, ...)`, if `x` is arrays. Default `None`.
            batch_size: An integer, the samples per batch. Default `None`: 32. A step of a member
                takes `group_factor * replicas` times as many samples.
            epochs: An integer, the epoch at which to end: the number of epochs, those before
                `initial_epoch` included. Default 1.
            verbose: 1: a progress bar per member; 2: a line per epoch; 0: silence; `"auto"`
                (default): 1 in a terminal and in a notebook, 2 where output goes to a file.
            callbacks: A list of `keras.callbacks.Callback`. Default `None`. A list for all members
                is copied, so that each member has callbacks of its own.
            validation_split: A float from 0 to less than 1, the fraction of the arrays, from their
                end, to validate on. Default 0.
            validation_data: `(x, y)`, `(x, y, sample_weight)` or a dataset to validate on. Default
                `None`.
            shuffle: A boolean, whether to shuffle arrays before each epoch, or `"batch"` to shuffle
                them inside each batch. Default `True`.
            class_weight: A dict from class indices (integers) to weights (floats). Default `None`.
            sample_weight: An array of weights, one for each sample. Default `None`.
            initial_epoch: An integer, the epoch at which to start. Default 0.
            steps_per_epoch: An integer, the steps in an epoch. Default `None`: until the data ends.
            validation_steps: An integer, the steps of a validation. Default `None`: until the data
                ends.
            validation_batch_size: An integer, the samples per validation batch. Default `None`: as
                many as in a step of the training.
            validation_freq: An integer, the epochs from one validation to the next, or a list of
                the epochs, counted from 1, after which to validate. Default 1.
            **unknown: Arguments that `keras.Model.fit` does not have, which are refused.

        Returns:
            The `CohortHistory`: each member's `History` by name.

        Raises:
            CohortError: If something asked for cannot work, before any training wherever that is
                possible; or if a call of this cohort is running already.
            Exception: What a member's own `fit` would raise, with a note that names the member
                where it is known. The training of all members ends then.

        Example:

        >>> import keras, numpy as np
        >>> def model(units):
        ...     net = keras.Sequential(
        ...         [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(1)])
        ...     net.compile("adam", loss="mse")
        ...     return net
        >>> cohort = Cohort({"small": model(4), "large": model(64)})
        >>> history = cohort.fit(
        ...     np.ones((100, 4)), np.zeros((100, 1)), batch_size={"small": 10}, epochs=2,
        ...     validation_split=0.2, verbose=0)
        >>> sorted(history["small"].history)
        ['loss', 'val_loss']
        """
        for name, value in unknown.items():
            raise CohortError(errors.not_of_fit(name, value, _FIT_DEFAULTS))
        arguments: dict[str, FitArguments] = self._split(
            x=x,
            y=y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            class_weight=class_weight,
            sample_weight=sample_weight,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
            validation_freq=validation_freq,
        )
        if self._workers is not None:
            return self._fit_elsewhere(arguments, self._workers)
        with self._one_at_a_time("fit"):
            self._is_stopped = False
            for member in self._ready(lambda m: m.prepare_fit(arguments[m.name])):
                member.forget_history()
            self._history = None
            waves = self._waves(arguments)
            try:
                self._assign()
                self._scheduler.stacks.print_plan(
                    self._members.values(), [own["verbose"] for own in arguments.values()]
                )
                self._run("train", arguments, waves, lambda member, bar: member.training([bar]))
            finally:
                self._history = self._recorded()
        return self.history

    def _fit_elsewhere(
        self, arguments: Mapping[str, FitArguments], workers: "Workers"
    ) -> CohortHistory:
        """Trains all members in other processes."""
        from kerascohost.training.workers import WorkersFit  # needs what pickles models

        with self._one_at_a_time("fit"):
            fit = WorkersFit(self._members, arguments, self.layout, workers, self.progress)
            self._history = None
            try:
                fit.run()
            finally:
                self._history = self._recorded()
        return self.history

    def build(
        self,
        x: PerMember[Data] = None,
        y: PerMember[Data] = None,
        batch_size: PerMember[int | None] = None,
    ) -> None:
        """Builds all members from their first batch, with their metrics and optimizers.

        `fit` does so itself, on TensorFlow not before its first step.

        Args:
            x: As in `fit`: data for all members, or a dict by member.
            y: As in `fit`. Default `None`.
            batch_size: As in `fit`: samples per batch. Default `None`: 32.

        Raises:
            CohortError: If a member cannot be trained on its data, or if a call of this cohort is
                running already.

        Example:

        >>> import keras, numpy as np
        >>> net = keras.Sequential([keras.layers.Dense(3)], name="net")
        >>> net.compile("adam", loss="mse")
        >>> Cohort([net]).build(np.ones((8, 4)), np.ones((8, 3)))
        >>> [tuple(weight.shape) for weight in net.weights]
        [(4, 3), (3,)]
        """
        given = {**_FIT_DEFAULTS, "x": x, "y": y, "batch_size": batch_size, "shuffle": False}
        arguments: dict[str, FitArguments] = self._split(**given)
        with self._one_at_a_time("build"):
            for member in self._ready(lambda m: m.prepare_fit(arguments[m.name])):
                member.close()

    def stop(self) -> None:
        """Ends the running `fit` after the steps that it is in; may be called from any thread.

        Each member ends as if a callback of its own had set `model.stop_training`: it is validated
        if that is due, its callbacks are called at the end of the epoch and of the training, and
        its history has the metrics of the epoch's steps so far. Members of waves that have not
        begun (see `at_once`) do not train: their histories are empty.

        Example:

        >>> import keras, numpy as np
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="net")
        >>> net.compile("adam", loss="mse")
        >>> cohort = Cohort([net])
        >>> stopping = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: cohort.stop())
        >>> history = cohort.fit(
        ...     np.ones((8, 4)), np.ones((8, 1)), epochs=5, callbacks={"net": stopping}, verbose=0)
        >>> history["net"].epoch
        [0]
        """
        self._is_stopped = True  # first: no wave may begin once its members are told
        for model in self.members.values():
            model.stop_training = True

    def evaluate(
        self,
        x: PerMember[Data] = None,
        y: PerMember[Data] = None,
        batch_size: PerMember[int | None] = None,
        verbose: PerMember[int | str] = "auto",
        sample_weight: PerMember[Data] = None,
        steps: PerMember[int | None] = None,
        callbacks: PerMember[Callbacks] = None,
        return_dict: bool = False,
    ) -> dict[str, Logs]:
        """Evaluates all members together, each as its own `evaluate` would.

        All arguments but `return_dict` are one value for all members or a dict by member.

        Args:
            x: Input data, as in `fit`.
            y: Targets, if `x` is arrays. Default `None`.
            batch_size: An integer, the samples per batch. Default `None`: 32.
            verbose: 1: a progress bar per member; 2: a line per member; 0: silence; `"auto"`
                (default): as in `fit`.
            sample_weight: An array of weights, one for each sample. Default `None`.
            steps: An integer, the number of batches to evaluate on. Default `None`: until the data
                ends.
            callbacks: A list of `keras.callbacks.Callback`, copied as in `fit`. Default `None`.
            return_dict: A boolean, whether each member's result is a dict of metrics by name,
                instead of a number or a list. Default `False`.

        Returns:
            A dict from each member's name to what its `evaluate` returns.

        Raises:
            CohortError: If something asked for cannot work, or if a call of this cohort is running
                already.
            Exception: What a member's own `evaluate` would raise, with a note that names the member
                where it is known.

        Example:

        >>> import keras, numpy as np
        >>> net = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")], name="net")
        >>> net.compile("adam", loss="mse")
        >>> Cohort([net]).evaluate(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
        {'net': 1.0}
        """
        arguments: dict[str, EvaluateArguments] = self._split(
            x=x,
            y=y,
            batch_size=batch_size,
            verbose=verbose,
            sample_weight=sample_weight,
            steps=steps,
            callbacks=callbacks,
        )

        def begin(member: Member, bar: Progress) -> Run:
            return member.evaluation(arguments[member.name], [bar], return_dict)

        with self._one_at_a_time("evaluate"):
            self._ready(lambda m: m.prepare_evaluate(arguments[m.name]))
            return self._run("test", arguments, self._waves(arguments), begin)

    def predict(
        self,
        x: PerMember[Data],
        batch_size: PerMember[int | None] = None,
        verbose: PerMember[int | str] = "auto",
        steps: PerMember[int | None] = None,
        callbacks: PerMember[Callbacks] = None,
    ) -> dict[str, Tree]:
        """Predicts with all members, each as its own `predict` would.

        All arguments are one value for all members or a dict by member.

        Args:
            x: Input data, as in `fit`.
            batch_size: An integer, the samples per batch. Default `None`: 32.
            verbose: 1: a progress bar per member; 2: a line per member; 0: silence; `"auto"`
                (default): as in `fit`.
            steps: An integer, the number of batches to predict. Default `None`: until the data
                ends.
            callbacks: A list of `keras.callbacks.Callback`, copied as in `fit`. Default `None`.

        Returns:
            A dict from each member's name to its predictions: NumPy arrays `(samples, ...)`,
            structured as the model's output.

        Raises:
            CohortError: If something asked for cannot work, or if a call of this cohort is running
                already.
            Exception: What a member's own `predict` would raise, with a note that names the member
                where it is known.

        Example:

        >>> import keras, numpy as np
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="net")
        >>> net.compile("adam", loss="mse")
        >>> Cohort([net]).predict(np.ones((8, 4)), verbose=0)["net"].shape
        (8, 3)
        """
        arguments: dict[str, PredictArguments] = self._split(
            x=x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks
        )

        def begin(member: Member, bar: Progress) -> Run:
            return member.prediction(arguments[member.name], [bar])

        with self._one_at_a_time("predict"):
            for name, member in self._members.items():
                with errors.about(name):
                    member.prepare_predict(arguments[name])
            return self._run("predict", arguments, self._waves(arguments), begin)

    @contextlib.contextmanager
    def _one_at_a_time(self, what: str) -> Iterator[None]:
        """Raises if a call of this cohort is running already, in a callback or another thread."""
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

    def _split(self, **given: PerMember[Argument]) -> dict[str, Any]:
        """Returns every member's own arguments, from values for all and dicts by member."""
        split: dict[str, dict[str, Argument]] = {}
        _check_weights(given.get("sample_weight"), self.members)
        for key, value in given.items():
            if key == "callbacks" and not isinstance(value, Mapping):
                check_callbacks(value)  # before they are copied
                split[key] = sharing.own_callbacks(value, self._members)
            elif key == "x":  # without its data a member would train on another one's
                split[key] = per_member(key, value, self._members)
            else:
                split[key] = per_member(key, value, self._members, _FIT_DEFAULTS.get(key))
        own = {name: {key: split[key][name] for key in split} for name in self._members}
        sharing.check_arguments(own)
        return own

    # Getting ready

    def _ready(self, prepare: Callable[[Member], None]) -> list[Member]:
        """Prepares every member, before any of them trains."""
        members = list(self._members.values())
        for member in members:
            with errors.about(member.name):
                prepare(member)
        sharing.check_models(self.members)
        return members

    def _run(
        self,
        kind: StepKind,
        arguments: Mapping[str, FitArguments | EvaluateArguments | PredictArguments],
        waves: list[list[str]],
        begin: Callable[[Member, Progress], Run],
    ) -> dict[str, Tree]:
        """Runs what `begin` makes for each member and its progress bar, wave by wave."""
        position = {name: i for i, name in enumerate(self._members)}

        def task(name: str) -> Task:
            bar = self.progress(name, kind, arguments[name]["verbose"], position[name])
            return Task(self._members[name], begin(self._members[name], bar), bar)

        results: dict[str, Tree] = {}
        may_stop = False  # the first wave begins in any case, and ends after a step
        try:
            while waves and not (may_stop and self._is_stopped):
                results |= self._scheduler.run([task(name) for name in waves.pop(0)])
                may_stop = kind == "train"
        finally:
            for name in itertools.chain(*waves):  # of waves that have not begun
                self._members[name].close()
        return {name: results[name] for name in self._members if name in results}

    def _waves(
        self, arguments: Mapping[str, FitArguments | EvaluateArguments | PredictArguments]
    ) -> list[list[str]]:
        """Returns the names of the members of each wave; stacks are of one wave from now on."""
        waves = self._divided(arguments)
        self._scheduler.stacks.set_waves(waves)
        return waves

    def _divided(
        self, arguments: Mapping[str, FitArguments | EvaluateArguments | PredictArguments]
    ) -> list[list[str]]:
        """Returns the names of the members that train at the same time, wave by wave."""
        names = list(self._members)
        if self.at_once is None:
            return [names]
        if self.at_once != "auto":
            return [names[i : i + self.at_once] for i in range(0, len(names), self.at_once)]
        left = budget = FREE_SHARE * free_bytes()
        waves: list[list[str]] = [[]]
        for name in names:
            needed = self._step_bytes(name, arguments[name]["x"])
            if waves[-1] and needed > left:
                waves.append([])
                left = budget
            waves[-1].append(name)
            left -= needed
        return waves

    def _step_bytes(self, name: str, x: Data) -> int:
        """Returns what a member takes beside its variables, which are there in any case."""
        member = self._members[name]
        state = backends.state_bytes(member.model)
        copies = 2 if self.layout != "joined" else 1  # a stack has values of its own
        try:
            with_shapes = x if hasattr(x, "shape") else None
            sizes = training_bytes(member.model, member.samples_per_step or 32, with_shapes)
        except CohortError:  # the shapes of its inputs are not known
            return 3 * copies * state
        return sizes["total"] - sizes["weights"] - sizes["optimizer"] + copies * state


# The part of the free memory that members may take which train at the same time.
FREE_SHARE = 0.5


def _check_at_once(at_once: int | str | None, workers: "Workers | None") -> None:
    if at_once is not None and workers is not None:
        raise CohortError("Expected `workers` or `at_once`. Received: both.")
    is_count = errors.is_count(at_once, least=1) and not isinstance(at_once, bool)
    if at_once is not None and at_once != "auto" and not is_count:
        raise CohortError(
            "Expected `at_once` to be a positive integer, 'auto' or None. "
            f"Received: at_once={at_once!r}."
        )


def _check_weights(sample_weight: PerMember[Data], models: Mapping[str, keras.Model]) -> None:
    """Raises for weights by the names of outputs, or of no members, for a model with one output."""
    if not isinstance(sample_weight, Mapping) or not set(sample_weight).isdisjoint(models):
        return
    if sample_weight and any(map(_has_one_output, models.values())):
        raise no_member("sample_weight", next(iter(sample_weight)), models)


def _has_one_output(model: keras.Model) -> bool:
    """Returns whether the model is known to have one output, which is in no dict."""
    if backends.overridden(model, "train_step", "test_step", "compute_loss"):
        return False
    is_sequential = isinstance(model, keras.Sequential) and model.layers
    last = model.layers[-1] if is_sequential else model
    return isinstance(getattr(last, "output", None), keras.KerasTensor)


def _check_plan(plan: Plan, models: Mapping[str, keras.Model]) -> None:
    if set(plan.members) != set(models):
        raise CohortError(
            "Expected `layout` to be the plan of a cohort with the same members, "
            f"{', '.join(map(repr, models))}. Received: a plan of "
            f"{', '.join(map(repr, plan.members))}."
        )


def _checked_devices(
    devices: Sequence[Thing] | None, layout: Layout | Plan, workers: "Workers | None"
) -> list[Thing]:
    """Returns the devices of a cohort's stacks.

    Raises:
        CohortError: If its members cannot be spread over them.
    """
    if devices is None:
        return []
    spread = "`workers=kc.RayWorkers(use_gpu=True)` trains members on several devices."
    if workers is not None:
        raise CohortError("Expected `workers` or `devices`. Received: both.")
    if isinstance(devices, str) or not isinstance(devices, Iterable):
        raise CohortError(
            f"Expected `devices` to be a list of devices, as of `jax.devices()`. "
            f"Received: devices={devices!r}. {spread}"
        )
    wrong = backends.get_backend().check_devices(list(devices))
    if wrong is not None:
        raise CohortError(f"{wrong} {spread}")
    if layout == "joined":
        raise CohortError(
            "Expected layout='stacked' or 'auto', as the members of a stack are spread over "
            f"`devices`. Received: layout='joined' with `devices`. {spread}"
        )
    return list(devices)


# Keras's defaults, which `Cohort.fit` has too, for members that a dict does not name. Arguments
# that only `evaluate` and `predict` have are `None` unless they are given.
_FIT_DEFAULTS: Mapping[str, Argument] = {
    name: parameter.default
    for name, parameter in inspect.signature(Cohort.fit).parameters.items()
    if name not in ("self", "unknown")
}
