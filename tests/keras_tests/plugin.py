"""A pytest plugin that sends `fit`, `evaluate` and `predict` of Keras's own tests through cohorts.

`COHORT_MODE` says how: `plain` not at all (calls are counted), `cohort` through a `Cohort` of one,
`cohost` each `fit` through a block of its own, `stacked` through a stack of the model and a clone,
which must agree. What happened is appended, a line of JSON at a time, to the file that
`COHORT_REPORT` names: a process that dies leaves what it knew.
"""

import contextlib
import copy
import faulthandler
import functools
import inspect
import itertools
import json
import os
import random
import re
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import tree

import kerascohost as kc
from kerascohost.backends import adapters

# With defaults, as pytest's search for doctests imports this, too.
MODE = os.environ.get("COHORT_MODE", "plain")
REPORT = Path(os.environ.get("COHORT_REPORT", os.devnull))
SECONDS = int(os.environ.get("COHORT_SECONDS", "120"))

# What a cohort says of what it does not train: told apart from what it gets wrong.
REFUSALS = ("xpected dense data", "xpected a model that is trained on one device")

_METHODS = ("fit",) if MODE == "cohost" else ("fit", "evaluate", "predict")


class Counts:
    """What one test sent through cohorts."""

    def __init__(self) -> None:
        self.routed: list[str] = []
        self.stacked = 0
        self.refused = ""
        self.unstacked: list[str] = []


_counts = Counts()


class _LayerFirst(type):
    """Lets a class find the methods of the layers that it mixes before those of `Model`."""

    def mro(cls) -> list[type]:
        order = super().mro()
        late = [one for one in order if one in OF_MODEL]
        early = [one for one in order if one not in OF_MODEL]
        at = early.index(keras.Layer)
        return [*early[:at], *late, *early[at:]]


_BACKENDS_TRAINER = next(
    base for base in keras.Model.__mro__ if base.__module__.startswith("keras.src.backend.")
)
_SHARED = keras.Layer.__mro__
OF_MODEL = [base for base in keras.Model.__mro__ if base not in _SHARED]


class TrainerOfModels(keras.Model, metaclass=_LayerFirst):
    """Takes the place of the backend's trainer in the test modules that are imported from now on.

    Keras's tests mix the bare trainer into layers; a member of a cohort has to be a `keras.Model`.
    """

    def __init__(self, **kwargs: Any) -> None:
        _BACKENDS_TRAINER.__init__(self)
        if "built" not in vars(self):  # it comes as the next class of a layer's `super()`
            keras.Layer.__init__(self, **kwargs)


OF_MODEL.append(TrainerOfModels)


def pytest_configure(config: pytest.Config) -> None:
    for mark in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", mark)
    module = sys.modules[_BACKENDS_TRAINER.__module__]
    setattr(module, _BACKENDS_TRAINER.__name__, TrainerOfModels)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text("")


def _name(item: pytest.Item) -> str:
    """The test's name without the addresses in it, which are other ones in each process."""
    return re.sub(r"at0x[0-9a-f]+", "at0x", item.nodeid)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves only the tests that `COHORT_TESTS`, a file of their names, asks for."""
    if "COHORT_TESTS" in os.environ:
        wanted = set(Path(os.environ["COHORT_TESTS"]).read_text().splitlines())
        config.hook.pytest_deselected(items=[i for i in items if _name(i) not in wanted])
        items[:] = [item for item in items if _name(item) in wanted]


def _report(**line: Any) -> None:
    with REPORT.open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    global _counts
    _counts = Counts()
    _report(test=_name(item), outcome="begun")
    keras.utils.set_random_seed(1)  # so that plain and routed runs meet the same initial weights

    def alarmed(*_: Any) -> None:
        raise TimeoutError(f"The test took more than {SECONDS} seconds.")

    before = signal.signal(signal.SIGALRM, alarmed)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # for a hang outside of Python
    try:
        with _routed():
            yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[Any]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        outcome = report.outcome
        if outcome == "failed" and _counts.refused:
            outcome = "refused"
        _report(
            test=_name(item),
            outcome=outcome if report.when == "call" else f"{outcome} in {report.when}",
            routed=_counts.routed,
            stacked=_counts.stacked,
            unstacked=_counts.unstacked,
            seconds=round(call.duration, 2),
            why="" if call.excinfo is None else call.excinfo.exconly()[:500],
        )
    return report


@contextlib.contextmanager
def _routed() -> Iterator[None]:
    """Within the block, calls of Keras's own methods of `keras.Model` go through cohorts."""
    for name in _METHODS:  # they are inherited: there is nothing on the class to be put back
        setattr(keras.Model, name, _router(name, getattr(keras.Model, name)))
    try:
        yield
    finally:
        for name in _METHODS:
            delattr(keras.Model, name)


@contextlib.contextmanager
def _unrouted() -> Iterator[None]:
    """Within the block, `keras.Model` is Keras's: what is called inside a call is not routed."""
    routers = {name: vars(keras.Model)[name] for name in _METHODS}
    for name in routers:
        delattr(keras.Model, name)
    try:
        yield
    finally:
        for name, router in routers.items():
            setattr(keras.Model, name, router)


def _router(name: str, original: Callable) -> Callable:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        is_own = getattr(type(self), name) is not method
        if is_own or not kwargs.keys() <= signature.parameters.keys() - {"kwargs"}:
            with _unrouted():
                return original(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        _counts.routed.append(name)
        try:
            with _unrouted():
                return _ROUTES[MODE](self, name, arguments)
        except kc.CohortError as error:
            if any(sentence in str(error) for sentence in REFUSALS):
                _counts.refused = str(error)
            raise

    return method


def _as_it_is(model: keras.Model, name: str, arguments: dict[str, Any]) -> Any:
    return getattr(model, name)(**arguments)


def _through_cohort(model: keras.Model, name: str, arguments: dict[str, Any]) -> Any:
    own = {key: {model.name: value} for key, value in arguments.items() if key != "return_dict"}
    shared = {key: value for key, value in arguments.items() if key == "return_dict"}
    return getattr(kc.Cohort({model.name: model}), name)(**own, **shared)[model.name]


def _through_block(model: keras.Model, name: str, arguments: dict[str, Any]) -> Any:
    with kc.cohost():
        return model.fit(**arguments)  # filled when the block ends


def _through_stack(model: keras.Model, name: str, arguments: dict[str, Any]) -> Any:
    try:
        clone, of_clone, comparable = _clone(model, arguments)
    except Exception as error:  # whatever keeps a model from being copied
        _counts.unstacked.append(f"no clone: {type(error).__name__}: {error}"[:200])
        return _through_cohort(model, name, arguments)
    cohort = kc.Cohort({"model": model, "clone": clone}, layout="stacked")
    cohort.progress = _of_the_model_only
    own = {
        key: {"model": value, "clone": of_clone[key]}
        for key, value in arguments.items()
        if key != "return_dict"
    }
    shared = {key: value for key, value in arguments.items() if key == "return_dict"}
    results = getattr(cohort, name)(**own, **shared)
    layouts = set(cohort.plan.frame["layout"])
    if layouts == {"stacked"}:
        _counts.stacked += 1
    else:
        _counts.unstacked.append(cohort.plan.summary[:200])
    if comparable:
        _must_agree(model.get_weights(), clone.get_weights())
        if name != "fit":
            _must_agree(results["model"], results["clone"])
    return results["model"]


def _of_the_model_only(name: str, kind: str, verbose: Any, position: int) -> Any:
    return kc.Cohort.progress(name, kind, verbose if name == "model" else 0, position)


def _clone(model: keras.Model, arguments: dict[str, Any]) -> tuple[keras.Model, dict, bool]:
    """The model anew, in its present state, with arguments of its own; whether it must agree."""
    own = dict(arguments)
    for key in ("x", "validation_data"):
        if isinstance(own.get(key), types.GeneratorType):
            arguments[key], own[key] = _forked(own[key])
    built_from: Any = None
    if not model.built:
        built_from = _inputs(arguments)
        model(built_from)
    state = random.getstate(), np.random.get_state()
    clone = _copied(model, built_from)
    _build_metrics(model, clone, arguments)
    if len(clone.layers) != len(model.layers):
        raise ValueError("a copy without layers")  # of a class that no config tells of
    if len(clone.trainable_variables) != len(model.trainable_variables):
        raise ValueError("a copy that is frozen otherwise")  # no config tells of `model.trainable`
    comparable = True
    for key in ("x", "validation_data"):
        for leaf in tree.flatten(own.get(key)):
            if hasattr(leaf, "element_spec"):
                raise ValueError(f"data that keeps a state of its own: {type(leaf).__name__}")
        if isinstance(own.get(key), keras.utils.PyDataset):
            own[key] = copy.deepcopy(own[key])
    if "callbacks" in own:
        given = own["callbacks"]
        if isinstance(given, keras.callbacks.CallbackList):
            raise ValueError("a CallbackList")
        # Callbacks of Keras's that change the training come along; records and files do not.
        changing = (
            keras.callbacks.EarlyStopping,
            keras.callbacks.LearningRateScheduler,
            keras.callbacks.ReduceLROnPlateau,
            keras.callbacks.SwapEMAWeights,
            keras.callbacks.TerminateOnNaN,
        )
        records = (
            keras.callbacks.CSVLogger,
            keras.callbacks.History,
            keras.callbacks.ModelCheckpoint,
            keras.callbacks.ProgbarLogger,
            keras.callbacks.TensorBoard,
        )
        kept = [callback for callback in tree.flatten(given) if type(callback) in changing]
        others = [callback for callback in tree.flatten(given) if type(callback) not in changing]
        comparable = all(type(callback) in records for callback in others)
        if not comparable and isinstance(own.get("x"), types.GeneratorType | keras.utils.PyDataset):
            raise ValueError("data that may be without end, and a callback that may end it")
        own["callbacks"] = copy.deepcopy(kept)
    pairs = [(model.variables, clone.variables)]  # metrics are reset before they are used
    if model.compiled and model.optimizer.built:
        clone.optimizer.build(clone.trainable_variables)
        pairs.append((model.optimizer.variables, clone.optimizer.variables))
    for ours, its in pairs:
        for variable, copied in zip(ours, its, strict=True):
            copied.assign(variable)
    clone.stop_training = getattr(model, "stop_training", False)
    random.setstate(state[0])
    np.random.set_state(state[1])
    return clone, own, comparable


def _build_metrics(model: keras.Model, clone: keras.Model, arguments: dict[str, Any]) -> None:
    """Builds the clone's metrics if the model's are: `fit` reads a batch to build them."""
    metrics = getattr(model, "_compile_metrics", None)
    data = arguments.get("x"), arguments.get("y")
    if metrics is None or not metrics.built or not adapters.are_arrays((*data, None)):
        return
    batch = tree.map_structure(lambda array: np.asarray(array)[:2], data)
    clone._symbolic_build(data_batch=batch)


def _forked(batches: Iterator) -> tuple[Iterator, Iterator]:
    """A generator twice, each of which yields what it yields."""
    ours, its = itertools.tee(batches)
    return (batch for batch in ours), (batch for batch in its)


def _inputs(arguments: dict[str, Any]) -> Any:
    """Symbols in the shape of the data, from which a model can be built."""
    x = arguments.get("x")
    if isinstance(x, types.GeneratorType):
        x, following = itertools.tee(x)
        arguments["x"] = (batch for batch in following)
        x = keras.utils.unpack_x_y_sample_weight(next(x))[0]
        return tree.map_structure(lambda leaf: _symbol(leaf, leaf.shape), x)
    if not isinstance(x, np.ndarray):
        raise ValueError("not built yet")
    return _symbol(x, (None, *x.shape[1:]))


def _symbol(leaf: Any, shape: Any) -> keras.KerasTensor:
    return keras.KerasTensor(shape, keras.backend.standardize_dtype(leaf.dtype))


def _copied(model: keras.Model, built_from: Any) -> keras.Model:
    """The model anew, from its config where there is one."""
    if "run_layer_test" not in type(model).__qualname__:
        try:
            return copy.deepcopy(model)
        except (TypeError, ValueError):
            return _made_anew(model, built_from)
    # What Keras trains each layer in, to test it: a class that no config tells of.
    layer, optimizer = model.layer, model.optimizer
    its_copy = type(layer).from_config(layer.get_config())
    if layer.built:
        its_copy.build_from_config(layer.get_build_config())
    copied = type(model)(its_copy)
    if built_from is not None:
        copied(built_from)
    copied.compile(
        optimizer=type(optimizer).from_config(optimizer.get_config()),
        loss=type(model.loss)(),
        jit_compile=model.jit_compile,
    )
    return copied


def _made_anew(model: keras.Model, built_from: Any) -> keras.Model:
    """The model anew, if the arguments of its constructor are in its config."""
    taken = inspect.signature(type(model)).parameters
    config = {name: value for name, value in model.get_config().items() if name in taken}
    copied = type(model)(**config)
    if built_from is None:
        copied.build_from_config(model.get_build_config())
    else:
        copied(built_from)
    copied.compile_from_config(model.get_compile_config())
    return copied


def _must_agree(ours: Any, its: Any) -> None:
    pairs = zip(tree.flatten(ours), tree.flatten(its), strict=True)
    for value, copied in pairs:
        np.testing.assert_allclose(
            np.asarray(getattr(value, "flat_values", value), "float64"),  # of what is ragged
            np.asarray(getattr(copied, "flat_values", copied), "float64"),
            rtol=1e-4,
            atol=1e-4,
            err_msg="The model and its clone, trained as one stack, differ.",
        )


_ROUTES = {
    "plain": _as_it_is,
    "cohort": _through_cohort,
    "cohost": _through_block,
    "stacked": _through_stack,
}
