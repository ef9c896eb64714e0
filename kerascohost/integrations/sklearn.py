"""Searches and ensembles of scikit-learn, with the Keras models that they train run together.

scikit-learn leaves its loops over folds, candidates and estimators to joblib. The backend of joblib
that stands here runs their tasks in turn, see `kerascohost.map`: each as written, and what all of
them wait for as one cohort. Importing this module registers the backend as `"kerascohost"`.
"""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerascohost.arguments import Layout
from kerascohost.deferred import calls
from kerascohost.deferred.functions import Calls, Job, check_options
from kerascohost.deferred.turns import is_in_turn
from kerascohost.environment import extra
from kerascohost.errors import CohortError
from kerascohost.patching import patched
from kerascohost.results.progress import TotalProgress

if TYPE_CHECKING:
    from kerascohost.training.workers import Workers

with extra("sklearn"):
    import joblib
    from joblib.parallel import ParallelBackendBase
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import _validation
    from sklearn.utils import _safe_indexing
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

# The value of a parameter of a user's function or of Keras, or one of scikit-learn, without types.
Value: TypeAlias = Any
Array: TypeAlias = NDArray[Any]
AnyEstimator = TypeVar("AnyEstimator", bound="_KerasEstimator")

# What is fitted together with its targets, and what `fit` is given by name.
_OF_DATA = ("X", "y")
_OF_FIT = frozenset(inspect.signature(keras.Model.fit).parameters) - {
    "self", "x", "y", "sample_weight"
}  # fmt: skip

# Keras's own estimators.
_WRAPPERS = (
    keras.wrappers.SKLearnClassifier, keras.wrappers.SKLearnRegressor,
    keras.wrappers.SKLearnTransformer,
)  # fmt: skip


@contextlib.contextmanager
def fused(
    layout: Layout = "auto",
    at_once: int = 64,
    verbose: int | str = "auto",
    workers: "Workers | None" = None,
) -> Iterator[None]:
    """Trains together what scikit-learn trains in loops within the block, each as if alone.

    Searches (`GridSearchCV`, `HalvingGridSearchCV`), scores (`cross_validate`, `learning_curve`),
    ensembles (`BaggingClassifier`, `StackingRegressor`) run their fits through joblib. Within the
    block each of these runs as written, but waits in the `fit`, `evaluate` and `predict` of its
    Keras model until they have been run as one cohort with those of the others. Estimators are any
    that call these: `KerasClassifier`, `keras.wrappers.SKLearnClassifier`, pipelines of them.

    Results are those that scikit-learn computes without the block, to the bit with
    `layout="joined"`, if the functions that build models set a seed
    (`keras.utils.set_random_seed`). Stacks train to floating-point tolerance, so that of two
    candidates with next to equal scores the other one may be the best. Times that scikit-learn
    reports, such as `mean_fit_time`, include those of the fits that ran meanwhile. What is no part
    of a loop, such as the last `refit` of a search, runs as without the block.

    The tasks that train Keras estimators on the same rows of an array, as the candidates of a
    search do, share one copy of them: it is on the device once, and cannot be written to. Pipelines
    and other estimators get a copy for each task, as without the block.

    **`n_jobs`** counts processes or threads elsewhere. Within the block there are none: `n_jobs=1`
    runs one after another, and every other value, also `None`, runs as many together as `at_once`
    says. Where loops are nested, the larger one is run together: in `cross_val_score` of a
    `GridSearchCV` the fits of each search and then all their `refit`s, in a `GridSearchCV` over a
    `VotingClassifier` the candidates.

    Args:
        layout: As in `Cohort`: `"auto"` (default), `"joined"` or `"stacked"`.
        at_once: The number of tasks under way: a positive integer. Default 64. Their models, and
            the rows that they train on, are in memory together.
        verbose: 0: silence; 1: one progress bar for all tasks of a loop; 2: a line per task;
            `"auto"` (default): each `fit` shows what it asks for, or with more than 8 tasks as 1.
        workers: As in `kerascohost.map`: what trains the models. Default `None`: all are trained
            here.

    Raises:
        CohortError: If an option cannot be.

    Example:

    >>> import keras, numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> def build(X, y, units=8, learning_rate=0.01):
    ...     keras.utils.set_random_seed(0)
    ...     net = keras.Sequential([
    ...         keras.Input(X.shape[1:]), keras.layers.Dense(units, activation="relu"),
    ...         keras.layers.Dense(3, activation="softmax")])
    ...     net.compile(keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy")
    ...     return net
    >>> X, y = np.random.rand(90, 4), np.arange(90) % 3
    >>> classifier = KerasClassifier(build, epochs=2, verbose=0)
    >>> search = GridSearchCV(classifier, {"learning_rate": [0.1, 0.01, 0.001]}, cv=3)
    >>> with fused(verbose=0):
    ...     search = search.fit(X, y)
    >>> len(search.cv_results_["mean_test_score"])
    3
    """
    check_options(layout, at_once, verbose, workers)
    calls.train_deferred("fits of scikit-learn run together")
    with joblib.parallel_config(CohortBackend(layout, at_once, verbose, workers)):
        yield


class _Task:
    """A task that joblib has submitted.

    Args:
        callback: Called when it has ended, so that joblib submits another one.

    Attributes:
        job: The call that ran it, when that has ended.
    """

    def __init__(self, callback: Callable[[None], None]):
        self.callback = callback
        self.job: Job[Value] | None = None


class _Splits:
    """The rows that the tasks of a search are given: one copy for those with the same rows.

    scikit-learn makes a copy for each task, and here up to `at_once` tasks are under way.
    """

    def __init__(self) -> None:
        self._arrays: dict[int, Array] = {}  # so that no other array gets the `id` of one of them
        self._copies: weakref.WeakValueDictionary[Hashable, Array] = weakref.WeakValueDictionary()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Has what scikit-learn splits in this thread shared, within the block."""
        with patched(_validation, "_safe_split", self._replacement):
            yield

    def _replacement(self, usual: Callable[..., Value]) -> Callable[..., Value]:
        def split(
            estimator: Value, X: Value, y: Value, indices: Value, train_indices: Value = None
        ) -> Value:
            # Others may write to what they are given.
            is_of_keras = isinstance(estimator, (_KerasEstimator, *_WRAPPERS))
            kinds = {type(X), type(indices), np.ndarray if y is None else type(y)}
            if not is_of_keras or kinds != {np.ndarray}:
                return usual(estimator, X, y, indices, train_indices)
            return self._copy(X, indices), None if y is None else self._copy(y, indices)

        return split

    def _copy(self, array: Array, indices: Array) -> Array:
        key = (id(array), indices.dtype.str, indices.tobytes())
        copy = self._copies.get(key)
        if copy is None:
            copy = _safe_indexing(array, indices)
            copy.flags.writeable = False
            self._arrays[id(array)], self._copies[key] = array, copy
        return copy


class CohortBackend(ParallelBackendBase):
    """A backend of joblib whose tasks run in turn, with what they train run together.

    `fused` is the way to it, or `joblib.parallel_config(backend="kerascohost", layout=...)`.

    Args:
        layout: As in `fused`. Default `"auto"`.
        at_once: As in `fused`. Default 64.
        progress: The `verbose` of `fused`, as joblib has a `verbose` of its own. Default `"auto"`.
        workers: As in `fused`. Default `None`.
        **options: The options of each backend of joblib.

    Attributes:
        outer: The backend of the loop around this one, if there is one.
        tasks: Those that the present loop has submitted.

    Example:

    >>> with joblib.parallel_config(backend="kerascohost", at_once=8):
    ...     joblib.Parallel()(joblib.delayed(abs)(number) for number in [-1, 2])
    [1, 2]
    """

    default_n_jobs = -1
    uses_threads = supports_sharedmem = True

    def __init__(
        self,
        layout: Layout = "auto",
        at_once: int = 64,
        progress: int | str = "auto",
        workers: "Workers | None" = None,
        **options: Value,
    ):
        super().__init__(**options)
        check_options(layout, at_once, progress, workers)
        self.layout, self.at_once, self.progress = layout, at_once, progress
        self._workers = workers
        self.outer: CohortBackend | None = None
        self.start_call()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Returns how many tasks are under way together.

        Args:
            n_jobs: What was asked for.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        return 1 if n_jobs == 1 else self.at_once

    def get_nested_backend(self) -> "tuple[CohortBackend, None]":
        """Returns the backend for loops inside of tasks, which knows about this one."""
        nested = CohortBackend(
            self.layout, self.at_once, 0, self._workers, nesting_level=self.nesting_level + 1
        )
        nested.outer = self
        return nested, None

    def start_call(self) -> None:
        """Forgets the tasks of the loop before, and the arrays that they split."""
        self._splits = _Splits()
        self.tasks: list[_Task] = []
        self._functions: list[Callable[[], Value]] = []
        self._names: list[str] = []
        self._has_failed = False

    def submit(self, func: Callable[[], Value], callback: Callable[[None], None]) -> _Task:
        """Adds a task; it runs when the first result is asked for.

        Args:
            func: The task.
            callback: Called when it has ended.
        """
        task = _Task(callback)
        self.tasks.append(task)
        self._names.append(f"task[{len(self._names)}]")
        self._functions.append(lambda: self._result(func))
        return task

    def _result(self, func: Callable[[], Value]) -> Value:
        if self._has_failed:  # then no more tasks begin, as none would in a loop
            return None
        with self._splits.shared():
            return func()

    def retrieve_result(self, out: _Task, timeout: float | None = None) -> Value:
        """Returns the result of a task, and runs all tasks first if none has been run.

        Args:
            out: The task.
            timeout: Ignored.
        """
        if out.job is None and self._is_outweighed:
            result = self._functions[self.tasks.index(out)]()
            out.callback(None)
            return result
        if out.job is None:
            self._run()
        assert out.job is not None, "all tasks before one that failed have been run"
        if out.job.error is not None:
            raise out.job.error
        return out.job.result

    @property
    def _is_outweighed(self) -> bool:
        """Returns whether the loop around this one has at least as many tasks to run together."""
        if self.outer is None or not is_in_turn():
            return False
        return len(self.tasks) <= min(self.at_once, len(self.outer.tasks))

    def _run(self) -> None:
        count = len(self.tasks)
        # joblib submits so many first, and another one as each ends.
        total = count if count < 2 * self.at_once else None
        with TotalProgress(self.progress, total, "tasks") as progress:

            def ended(job: Job[Value]) -> None:
                task = self.tasks[job.number]
                task.job = job
                self._functions[job.number] = _ended  # releases the rows that it was given
                self._has_failed = self._has_failed or job.error is not None
                if not self._has_failed:
                    task.callback(None)
                progress.ended(job.told, total=len(self.tasks))

            Calls(
                self._functions,
                self._names,
                self.layout,
                self.at_once,
                progress.of_fits,
                self.progress != 0,
                ended,
                workers=self._workers,
            ).run()


def _ended() -> None:
    """Stands for a task that has ended."""


joblib.register_parallel_backend("kerascohost", CohortBackend)


class _KerasEstimator(BaseEstimator):
    """An estimator of scikit-learn that trains the Keras model which a function builds."""

    def __init__(self, build: Callable[..., keras.Model], **parameters: Value):
        self.build = build
        self._parameters = parameters

    @property
    def _has_function(self) -> bool:
        """Returns whether `build` can be one; a model can be called, too, but builds none."""
        return callable(self.build) and not isinstance(self.build, keras.Model)

    def _of_build(self) -> tuple[list[str], bool]:
        """Returns the names of the parameters of `build`, and whether it takes any other."""
        if not self._has_function:
            return [], True  # `fit` says so, as scikit-learn expects it
        parameters = inspect.signature(self.build).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = [it.name for it in parameters if it.kind in named]
        return names, any(it.kind is it.VAR_KEYWORD for it in parameters)

    def _check_parameters(self, names: Iterator[str] | dict[str, Value]) -> None:
        """Raises an error for names of parameters that neither `build` nor `fit` takes."""
        known, takes_any = self._of_build()
        for name in names:
            if name in _OF_DATA or not (takes_any or name in known or name in _OF_FIT):
                valid = sorted({*known, *_OF_FIT} - {*_OF_DATA})
                raise ValueError(
                    f"Expected a parameter of {getattr(self.build, '__name__', 'build')!r} or of "
                    f"`keras.Model.fit`: {', '.join(valid)}. Received: {name!r}."
                )

    def get_params(self, deep: bool = True) -> dict[str, Value]:
        """Returns `build` and the parameters that were given.

        Args:
            deep: As in scikit-learn.
        """
        return {"build": self.build, **self._parameters}

    def set_params(self: AnyEstimator, **params: Value) -> AnyEstimator:
        """Sets parameters of `build` or of `keras.Model.fit`, also such as were not given.

        Args:
            **params: The parameters by name.

        Returns:
            The estimator.

        Raises:
            ValueError: If neither `build` nor `fit` takes a parameter of that name.
        """
        params = dict(params)
        self.build = params.pop("build", self.build)
        self._check_parameters(params)
        self._parameters = {**self._parameters, **params}
        return self

    def __sklearn_tags__(self) -> Value:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = True
        tags.input_tags.three_d_array = True
        return tags

    def _fit(
        self: AnyEstimator,
        X: Array,
        y: Array,
        sample_weight: ArrayLike | None,
        given: dict[str, Value],
    ) -> AnyEstimator:
        """Builds the model, and trains it with the parameters that are of `fit`."""
        if not self._has_function:
            raise CohortError(
                "Expected `build` to be a function that returns a compiled model, as each fit "
                f"needs a fresh one. Received: {self.build!r}."
            )
        self._check_parameters(self._parameters)
        names, takes_any = self._of_build()
        of_fit = {
            name: value
            for name, value in self._parameters.items()
            if name in _OF_FIT and name not in names
        }
        data = {"X": X, "y": y}
        model = self.build(
            **{name: data[name] for name in _OF_DATA if takes_any or name in names},
            **{name: v for name, v in self._parameters.items() if name not in of_fit},
        )
        if not isinstance(model, keras.Model) or not model.compiled:
            raise CohortError(f"Expected `build` to return a compiled model. Received: {model!r}.")
        if sample_weight is not None:
            of_fit["sample_weight"] = _check_sample_weight(sample_weight, X)
        history = model.fit(X, self._targets(model, y), **{**of_fit, **given})
        self.model_, self.history_ = model, history.history
        return self

    def _targets(self, model: keras.Model, y: Array) -> Array:
        """Returns the targets as the model's loss takes them."""
        return y

    def _outputs(self, X: ArrayLike) -> Array:
        """Returns the outputs of the model, as a matrix."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, allow_nd=True)
        options = {n: v for n, v in self._parameters.items() if n in ("batch_size", "verbose")}
        return np.asarray(self.model_.predict(rows, **options)).reshape(len(rows), -1)


class KerasClassifier(ClassifierMixin, _KerasEstimator):
    """A classifier of scikit-learn that trains the Keras model which a function builds.

    The parameters are those of the function, as its signature lists them, and those of
    `keras.Model.fit` (`epochs`, `batch_size`, `callbacks`). All can be searched, under their own
    names; `sklearn.base.clone` keeps them, and copies callbacks. What `keras.wrappers` offers
    instead, `SKLearnClassifier`, forgets its `fit_kwargs` when it is cloned (Keras 3.15), and takes
    the parameters of its function as one dict only.

    Of scikit-learn's `check_estimator` not met are: equal results for a row with weight 2 and for
    two rows (batches are others), and what is drawn anew at each `fit` of a `build` without a seed.
    Classes of one value only are refused.

    Args:
        build: A function that returns a compiled `keras.Model` whose outputs are probabilities: one
            for each class, or a single one, that of the second of two classes. It is called with
            `X` and `y`, if it names them, and with its parameters. `y` are the classes' positions
            in `classes_`: integers from 0, as `sparse_categorical_crossentropy` takes them. With
            the loss `categorical_crossentropy` the model is trained with one column per class.
        **parameters: Parameters of `build` and of `keras.Model.fit`. One that both have is that of
            `build`.

    Attributes:
        model_: The fitted `keras.Model`.
        history_: A dict, the `History.history` of the training.
        classes_: An array of the classes' labels.

    Example:

    >>> import numpy as np
    >>> def build(X, units=8):
    ...     keras.utils.set_random_seed(0)
    ...     net = keras.Sequential([
    ...         keras.Input(X.shape[1:]), keras.layers.Dense(units, activation="relu"),
    ...         keras.layers.Dense(2, activation="softmax")])
    ...     net.compile("adam", "sparse_categorical_crossentropy")
    ...     return net
    >>> X, y = np.random.rand(40, 3), np.array(["no", "yes"] * 20)
    >>> classifier = KerasClassifier(build, epochs=2, verbose=0).set_params(units=4).fit(X, y)
    >>> classifier.predict_proba(X).shape, [str(label) for label in classifier.classes_]
    ((40, 2), ['no', 'yes'])
    """

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        **fit_arguments: Value,
    ) -> "KerasClassifier":
        """Builds a model and trains it.

        Args:
            X: The inputs, of shape `(rows, features)` or with more dimensions.
            y: The labels, of shape `(rows,)`.
            sample_weight: A weight for each row.
            **fit_arguments: Arguments of `keras.Model.fit` for this call.

        Returns:
            The estimator.
        """
        rows, labels = validate_data(self, X, y, allow_nd=True)
        check_classification_targets(labels)
        self.classes_, positions = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"Classifier can't train when only one class is present. Received: {self.classes_}"
            )
        return self._fit(rows, positions, sample_weight, fit_arguments)

    def _targets(self, model: keras.Model, y: Array) -> Array:
        loss = keras.losses.get(model.loss)
        name = getattr(loss, "name", getattr(loss, "__name__", ""))
        if name == "categorical_crossentropy":
            return np.eye(len(self.classes_), dtype=keras.config.floatx())[y]
        return y.reshape(-1, 1)

    def predict_proba(self, X: ArrayLike) -> Array:
        """Returns the probability of each class.

        Args:
            X: The inputs.

        Returns:
            An array of shape `(rows, classes)`.
        """
        outputs = self._outputs(X)
        if outputs.shape[1] == 1:
            return np.concatenate([1 - outputs, outputs], axis=1)
        return outputs

    def predict(self, X: ArrayLike) -> Array:
        """Returns the label of the most probable class for each row.

        Args:
            X: The inputs.

        Returns:
            An array of shape `(rows,)`.
        """
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]


class KerasRegressor(RegressorMixin, _KerasEstimator):
    """A regressor of scikit-learn that trains the Keras model which a function builds.

    It takes parameters as `KerasClassifier` does, and meets the same checks; several outputs are
    predicted in Keras's float type, where scikit-learn's check expects float64.

    Args:
        build: A function that returns a compiled `keras.Model`. It is called with `X` and `y`, if
            it names them, and with its parameters.
        **parameters: Parameters of `build` and of `keras.Model.fit`. One that both have is that of
            `build`.

    Attributes:
        model_: The fitted `keras.Model`.
        history_: A dict, the `History.history` of the training.

    Example:

    >>> import numpy as np
    >>> def build(X, units=8):
    ...     net = keras.Sequential([
    ...         keras.Input(X.shape[1:]), keras.layers.Dense(units), keras.layers.Dense(1)])
    ...     net.compile("adam", "mse")
    ...     return net
    >>> X = np.random.rand(40, 3)
    >>> KerasRegressor(build, epochs=2, verbose=0).fit(X, X.sum(axis=1)).predict(X).shape
    (40,)
    """

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        **fit_arguments: Value,
    ) -> "KerasRegressor":
        """Builds a model and trains it.

        Args:
            X: The inputs, of shape `(rows, features)` or with more dimensions.
            y: The targets, of shape `(rows,)` or `(rows, outputs)`.
            sample_weight: A weight for each row.
            **fit_arguments: Arguments of `keras.Model.fit` for this call.

        Returns:
            The estimator.
        """
        rows, targets = validate_data(self, X, y, allow_nd=True, multi_output=True, y_numeric=True)
        self._has_rows_of_targets = targets.ndim > 1
        return self._fit(rows, targets, sample_weight, fit_arguments)

    def __sklearn_tags__(self) -> Value:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _targets(self, model: keras.Model, y: Array) -> Array:
        return y.reshape(len(y), -1)

    def predict(self, X: ArrayLike) -> Array:
        """Returns the outputs of the model.

        Args:
            X: The inputs.

        Returns:
            An array with as many dimensions as the targets had.
        """
        outputs = self._outputs(X)
        return outputs if self._has_rows_of_targets else outputs[:, 0]
