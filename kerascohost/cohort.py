"""The cohort: members, and the scheduler that runs them together."""

import contextlib
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from kerascohost import errors, programs
from kerascohost.errors import CohortError
from kerascohost.history import CohortHistory
from kerascohost.member import Member, Run, Want
from kerascohost.programs import eager
from kerascohost.progress import Progress

LAYOUTS = ("joined",)

# A turn should last about this long (in seconds): short enough for Stop and the progress bars,
# long enough for the dispatch of a call not to be felt.
_TURN_SECONDS = 0.5

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
        layout: `"joined"`: every member takes one batch in each step of the program.
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

    def __init__(
        self,
        models: Mapping[str, keras.Model] | Sequence[keras.Model],
        layout: str = "joined",
        group_factor: int | Mapping[str, int] = 1,
        replicas: int | Mapping[str, int] = 1,
    ):
        named = _named(models)
        if layout not in LAYOUTS:
            raise CohortError(
                f"Expected `layout` to be one of {', '.join(map(repr, LAYOUTS))}. "
                f"Received: layout={layout!r}.{errors.did_you_mean(layout, LAYOUTS)}"
            )
        group_factors = _factors("group_factor", group_factor, named)
        replica_counts = _factors("replicas", replicas, named)
        self.layout = layout
        self._members = {
            name: Member(name, model, group_factors[name], replica_counts[name])
            for name, model in named.items()
        }
        self._check_separate(("optimizer", _optimizers))
        self._programs: dict[tuple, tuple[tuple, Callable]] = {}
        self._pace: dict[int, float] = {}

    @property
    def members(self) -> dict[str, keras.Model]:
        """The models by name."""
        return {name: member.model for name, member in self._members.items()}

    @property
    def history(self) -> CohortHistory:
        """What the last `fit` recorded, also if it failed or was interrupted."""
        return CohortHistory(
            {
                name: model.history
                for name, model in self.members.items()
                if hasattr(model, "history")
            },
            {name: member.validated for name, member in self._members.items()},
        )

    def __repr__(self) -> str:
        return f"Cohort({', '.join(self._members)}, layout={self.layout!r})"

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
            epochs: The epoch at which to stop, counted from `initial_epoch`.
            verbose: `"auto"` or 1: a progress bar per member; 2: a line per epoch; 0: silence.
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
        bars = {
            name: Progress(name, arguments[name]["verbose"], position)
            for position, name in enumerate(self._members)
        }
        for member in self._ready(lambda m: m.prepare_fit(arguments[m.name])):
            member.model.history = keras.callbacks.History()  # nothing recorded yet, for `history`
        runs = {name: member.training([bars[name]]) for name, member in self._members.items()}
        with contextlib.ExitStack() as stack:
            for name, member in self._members.items():
                stack.callback(bars[name].close)
                stack.callback(member.close)
            self._run(runs, {name: bar.advance for name, bar in bars.items()})
        return self.history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: Any = None,
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
            "sample_weight": sample_weight,
            "steps": steps,
            "callbacks": callbacks,
        }
        arguments = self._per_member(given)
        self._ready(lambda m: m.prepare_evaluate(arguments[m.name]))
        return self._run(
            {
                name: member.evaluation(arguments[name]["callbacks"], return_dict)
                for name, member in self._members.items()
            }
        )

    def predict(
        self, x: Any, batch_size: Any = None, steps: Any = None, callbacks: Any = None
    ) -> dict[str, Any]:
        """Predicts with all members, each as its own `predict` would.

        Args:
            x: Input data, for all or as a dict by member, like all that follow.
            batch_size: Samples per batch, default 32.
            steps: How many batches to take.
            callbacks: Callbacks for the prediction.

        Returns:
            A dict from each member's name to its predictions: NumPy arrays, structured as the
            model's output.
        """
        given = {"x": x, "batch_size": batch_size, "steps": steps, "callbacks": callbacks}
        arguments = self._per_member(given)
        for name, member in self._members.items():
            with errors.about(name):
                member.prepare_predict(arguments[name])
        return self._run(
            {
                name: member.prediction(arguments[name]["callbacks"])
                for name, member in self._members.items()
            }
        )

    # Arguments

    def _per_member(self, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Every member's own arguments, from values for all and dicts by member."""
        split = {key: self._split(key, value) for key, value in given.items()}
        return {name: {key: split[key][name] for key in split} for name in self._members}

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
        if (
            len(self._members) > 1
            and key in ("x", "validation_data")
            and hasattr(value, "__next__")
        ):
            raise CohortError(
                f"Expected `{key}` to be data that every member can read from its start. "
                f"Received: one {type(value).__name__} for all members; "
                f"give each member its own: {key}={{{next(iter(self._members))!r}: ...}}."
            )
        return dict.fromkeys(self._members, value)

    @staticmethod
    def _check_known(unknown: dict[str, Any], known: Mapping[str, Any]) -> None:
        for name, value in unknown.items():
            raise CohortError(
                f"Expected arguments of `keras.Model.fit`. "
                f"Received: {name}={value!r}.{errors.did_you_mean(name, known)}"
            )

    # Getting ready

    def _ready(self, prepare: Callable[[Member], None]) -> list[Member]:
        """Prepares every member, before any of them trains."""
        members = list(self._members.values())
        for member in members:
            with errors.about(member.name):
                if not member.model.compiled:
                    raise CohortError(
                        "You must call `compile()` before using the model in a cohort."
                    )
                if getattr(member.model, "_distribute_strategy", None) is not None:
                    raise CohortError(
                        "Expected a model made outside of a `tf.distribute` strategy. Received: "
                        f"one made under {type(member.model._distribute_strategy).__name__}."
                    )
                prepare(member)
        self._check_separate(("optimizer", _optimizers), ("variable", programs.variables))
        return members

    def _check_separate(self, *kinds: tuple[str, Callable[[keras.Model], list]]) -> None:
        """What one member trains, no other may hold: neither could then end as if alone."""
        for kind, held_by in kinds:
            owner: dict[int, str] = {}
            for name, model in self.members.items():
                for thing in held_by(model):
                    first = owner.setdefault(id(thing), name)
                    if first != name:
                        label = getattr(thing, "path", None) or getattr(thing, "name", "")
                        raise CohortError(
                            f"Expected members that share nothing. Received: {first!r} and "
                            f"{name!r} with the same {kind} ({label}). {_WAY_OUT[kind]}"
                        )

    # Running

    def _run(
        self, runs: dict[str, Run], advance: Mapping[str, Callable[[int], None]] | None = None
    ) -> dict[str, Any]:
        """Takes turns until every run has ended; returns what each returned."""
        results: dict[str, Any] = {}
        wants: dict[str, Want] = {}

        def resume(name: str, answer: Any) -> None:
            wants.pop(name, None)
            try:
                with errors.about(name):
                    wants[name] = runs[name].send(answer)
            except StopIteration as end:
                results[name] = end.value

        try:
            for name in runs:
                resume(name, None)
            self._state_bytes = sum(map(programs.state_bytes, self.members.values()))
            while wants:
                for names in self._turn(wants):
                    steps, logs = self._step(names, [wants[name] for name in names])
                    for name, member_logs in zip(names, logs, strict=True):
                        if advance and wants[name].kind == "train":
                            advance[name](steps)
                        resume(name, (steps, member_logs))
        finally:
            for run in runs.values():
                run.close()
        return {name: results[name] for name in runs}

    def _turn(self, wants: dict[str, Want]) -> list[list[str]]:
        """Which members step next, each list of them as one program.

        What is rare comes first, an odd last batch or a validation, so that all members are there
        again for the next training steps: one program serves them from the first epoch to the last,
        instead of one for every set of members that happens to meet.
        """
        rank = min(map(_rank, wants.values()))
        heavy = self._state_bytes > programs.FUSED_STATE_LIMIT
        programs_: dict[tuple, list[str]] = {}
        for name, want in wants.items():
            if _rank(want) == rank:
                member = self._members[name]
                alone = want.kind == "predict" or heavy
                eager_ = programs.backend_module().is_eager(member.model)
                key = (want.limited, eager_, name if alone else None)
                programs_.setdefault(key, []).append(name)
        return list(programs_.values())

    def _step(self, names: list[str], wants: list[Want]) -> tuple[int, list[Any]]:
        """Runs as many steps as all of `wants` allow and time permits; returns them and the logs."""
        chunks, starts = [want.chunk for want in wants], [want.start for want in wants]
        program = self._program(wants[0].kind, names, chunks)
        steps = min(want.steps for want in wants)
        pace = self._pace.get(id(program))
        if wants[0].kind != "predict":
            # Unknown at first: one step shows that it runs (and traces it), some more how fast.
            most = 1 if pace is None else 8 if pace == 0 else int(_TURN_SECONDS / pace)
            steps = max(1, min(steps, most))
        began = time.perf_counter()
        try:
            logs = program(chunks, starts, steps)
        except Exception as error:
            if len(names) > 1 and not errors.is_attributed(error):
                self._replay(names, wants, steps)
            if len(names) == 1:
                errors.attributed(error, names[0])
            raise
        seconds = (time.perf_counter() - began) / steps
        self._pace[id(program)] = 0 if pace is None else seconds
        return steps, logs

    def _program(self, kind: str, names: list[str], chunks: list) -> Callable:
        members = [self._members[name] for name in names]
        key = (kind, *((name, _structure(c.data)) for name, c in zip(names, chunks, strict=True)))
        stamp = tuple((programs.compile_stamp(m.model), m.piece) for m in members)
        known = self._programs.get(key)
        if known is None or known[0] != stamp:
            backend = programs.backend_module()
            make = eager.Program if backend.is_eager(members[0].model) else backend.Program
            known = self._programs[key] = (stamp, make(kind, members))
        return known[1]

    def _replay(self, names: list[str], wants: list[Want], steps: int) -> None:
        """Repeats a call that failed, member by member and step by step.

        The failing member stops before its failing step, the others finish theirs, and the failure
        gets its member's name.

        Raises:
            Exception: What the member raises that fails on its own; nothing if none does.
        """
        failure: Exception | None = None
        for name, want in zip(names, wants, strict=True):
            try:
                program = self._program(want.kind, [name], [want.chunk])
                for i in range(steps):
                    program([want.chunk], [want.start + i], 1)
            except Exception as error:
                failure = failure or errors.attributed(error, name)
        if failure is not None:
            raise failure


_WAY_OUT = {
    "variable": "To train one model on several batches at once, make it one member with `replicas`.",
    "optimizer": "Compile each model with an optimizer of its own.",
}


def _optimizers(model: keras.Model) -> list:
    optimizer = getattr(model, "optimizer", None)
    return [] if optimizer is None else [optimizer]


def _named(models: Any) -> dict[str, keras.Model]:
    """The models by name, checked."""
    if isinstance(models, Mapping):
        pairs = list(models.items())
    elif isinstance(models, Sequence) and not isinstance(models, str):
        pairs = [(getattr(model, "name", None), model) for model in models]
    else:
        raise CohortError(
            f"Expected `models` to be a dict or a list of models. Received: {models!r}"
        )
    if not pairs:
        raise CohortError(f"Expected at least one model. Received: models={models!r}")
    named: dict[str, keras.Model] = {}
    for name, model in pairs:
        if not isinstance(model, keras.Model):
            raise CohortError(f"Expected member {name!r} to be a keras.Model. Received: {model!r}")
        if not isinstance(name, str) or not name:
            raise CohortError(
                f"Expected the members' names to be non-empty strings. Received: {name!r}"
            )
        if name in named:
            raise CohortError(
                f"Expected members with different names. Received: {name!r} twice. "
                'Give them names: Cohort({"first": model1, "second": model2}).'
            )
        named[name] = model
    _check_once(named)
    return named


def _check_once(named: dict[str, keras.Model]) -> None:
    names: dict[int, str] = {}
    for name, model in named.items():
        first = names.setdefault(id(model), name)
        if first != name:
            raise CohortError(
                f"Expected different models. Received: the same one as {first!r} and {name!r}. "
                f"{_WAY_OUT['variable']}"
            )


def _factors(argument: str, value: Any, named: Mapping[str, Any]) -> dict[str, int]:
    """A whole number of at least 1 for every member."""
    given = value if isinstance(value, Mapping) else dict.fromkeys(named, value)
    for name, factor in given.items():
        if name not in named:
            raise CohortError(
                f"Expected the keys of `{argument}` to be names of members: {', '.join(named)}. "
                f"Received: {name!r}.{errors.did_you_mean(name, named)}"
            )
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise CohortError(
                f"Member {name!r}: expected `{argument}` to be a whole number of at least 1. "
                f"Received: {argument}={factor!r}"
            )
    return {name: given.get(name, 1) for name in named}


def _copied_callbacks(callbacks: Any, names: list[str]) -> dict[str, Any]:
    """Callbacks for all members, copied for each: a callback keeps the state of one model."""
    for callback in tree.flatten(callbacks):
        for attribute in ("filepath", "filename", "log_dir", "backup_dir", "directory"):
            path = getattr(callback, attribute, None)
            if path:
                raise CohortError(
                    f"Expected a {type(callback).__name__} for each member, as all would write to "
                    f"one place. Received: {attribute}={str(path)!r} for all members; give "
                    f"callbacks={{{names[0]!r}: [...], ...}}."
                )
    return {name: [_copied(callback) for callback in tree.flatten(callbacks)] for name in names}


def _copied(callback: keras.callbacks.Callback) -> keras.callbacks.Callback:
    twin = copy.copy(callback)
    vars(twin).pop("_model", None)
    try:
        return copy.deepcopy(twin)
    except Exception as error:
        raise CohortError(
            f"Expected callbacks that can be copied, one for each member. Received: {callback!r}, "
            f"which cannot ({error}). Give each member its own: callbacks={{name: [...]}}."
        ) from error


def _rank(want: Want) -> tuple[bool, bool]:
    return (want.chunk.usual, want.kind == "train")


def _structure(data: Any) -> str:
    """What of a batch's structure decides which code runs: its nesting, and what is missing."""
    return repr(tree.map_structure(lambda leaf: leaf is not None, data))
