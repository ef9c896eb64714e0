"""Models sent to another process and back: all that is changed there is changed here, in place."""

import collections
import pickle
import random
import subprocess
import sys
import threading
import weakref

import keras
import numpy as np
import pytest

import kerascohost as kc
from kerascohost.backends import pickling
from kerascohost.models.shipping import Received, Shipment, check

layers = keras.layers


class Things:
    """Objects of many kinds, each of which is changed in place."""

    def __init__(self):
        self.list = [1]
        self.dict = {"a": [2]}
        self.set = {3}
        self.bytes = bytearray(b"four")
        self.array = np.zeros(5)
        self.objects = np.array(["a", None], dtype=object)
        self.generator = np.random.default_rng(6)
        self.old_generator = np.random.RandomState(7)
        self.python = random.Random(8)
        self.gone = "there"
        self.same = self.list

    def change(self):
        self.list.append(self.dict)
        self.dict["a"].append(9)
        self.set.add(10)
        self.bytes[0] = ord("F")
        self.array[2] = 11
        self.objects[1] = "b"
        self.new = [self.generator.random(), self.old_generator.rand(), self.python.random()]
        del self.gone


def sent(thing, model=None, change=lambda thing: thing.change()):
    """Sends an object away and back, in this process; what is changed is a copy."""
    models = [] if model is None else [model]
    shipment = Shipment({"a": thing}, models, {}, lambda array, is_data: None)
    received = Received(shipment.data, [])
    change(received.parts["a"])
    changes, lost = received.changes(dict(enumerate(models)), ["a"])
    shipment.merge(changes, [])
    return lost


def test_objects_are_changed_in_place():
    here, expected = Things(), Things()
    before = dict(vars(here))
    expected.change()
    assert sent(here) == []
    assert "gone" not in vars(here)
    assert here.new == expected.new
    assert here.list[0] == 1 and here.list[1] is here.dict and here.same is here.list
    assert (here.dict, here.set, here.bytes) == ({"a": [2, 9]}, {3, 10}, b"Four")
    assert np.array_equal(here.array, expected.array) and here.objects[1] == "b"
    assert here.generator.random() == expected.generator.random()
    assert here.old_generator.rand() == expected.old_generator.rand()
    assert here.python.random() == expected.python.random()
    assert all(value is before[name] for name, value in vars(here).items() if name != "new")


def test_what_cannot_be_sent_back_is_named():
    here = Things()

    def change(there):
        there.change()
        there.file = open("/dev/null", "w")  # noqa: PTH123, SIM115

    with pytest.warns(ResourceWarning):
        assert sent(here, change=change) == ["Things.file"]
    assert here.new and not hasattr(here, "file")


class Partly:
    """An object that is pickled without its file, and comes back without one."""

    def __init__(self):
        self.count, self.seen, self.file = 0, [1], "open here"

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "file"}

    def __setstate__(self, state):
        vars(self).update(state, file=None)

    def change(self):
        self.count += 1
        self.seen.append(2)


class Renamed(Partly):
    """An object whose state has other names than its attributes."""

    def __getstate__(self):
        return {"n": self.count, "all": self.seen}

    def __setstate__(self, state):
        self.count, self.seen, self.file = state["n"], state["all"], None


class AsTuple(Renamed):
    """An object whose state is no dict."""

    def __getstate__(self):
        return self.count, self.seen

    def __setstate__(self, state):
        self.count, self.seen = state


@pytest.mark.parametrize("kind", [Partly, Renamed, AsTuple])
def test_what_a_state_leaves_out_or_renames_stays_as_it_is_here(kind):
    here = kind()
    before = here.seen
    assert sent(here) == []
    assert vars(here) == {"count": 1, "seen": [1, 2], "file": "open here"}
    assert here.seen is before


def test_what_stays_behind_leaves_what_is_here():
    here = Things()
    here.file, here.list = None, [None]

    def change(there):
        there.file = open("/dev/null", "w")  # noqa: PTH123, SIM115
        there.list.append(there.file)
        there.same = "changed"

    with pytest.warns(ResourceWarning):
        assert sent(here, change=change) == ["Things.file", "items of a list"]
    assert here.file is None and here.list == [None] and here.same == "changed"


def test_what_is_changed_back_after_it_was_sent_is_sent_again():
    here = Things()
    shipment = Shipment({"a": here}, [], {}, lambda array, is_data: None)
    received = Received(shipment.data, [])
    there = received.parts["a"]
    there.list.append(2)
    there.gone, there.late = "changed", 1
    del there.dict
    shipment.merge(received.changes({}, ["a"])[0], [])
    assert (here.list, here.gone, here.late) == ([1, 2], "changed", 1) and not hasattr(here, "dict")
    there.list.pop()
    there.gone, there.dict = "there", {}
    del there.late
    shipment.merge(received.changes({}, ["a"])[0], [])
    assert (here.list, here.gone, here.dict) == ([1], "there", {}) and not hasattr(here, "late")


class Unusual:
    """An object with locks, weak references and containers of unusual kinds."""

    def __init__(self):
        self.model = Things()
        self.weak, self.gone = weakref.ref(self.model), weakref.ref(Things())
        self.locks = [threading.Lock(), threading.RLock()]
        self.last = collections.deque([1], maxlen=2)
        self.ordered = collections.OrderedDict(a=1, b=2, c=3)

    def change(self):
        assert self.weak() is self.model and self.gone() is None
        for lock in self.locks:
            with lock:
                self.last.append(len(self.last))
        self.ordered.move_to_end("a")
        del self.ordered["b"]


def test_locks_weak_references_and_containers_of_unusual_kinds():
    here, expected = Unusual(), Unusual()
    before = dict(vars(here))
    expected.change()
    assert sent(here) == []
    assert here.last == expected.last and here.last.maxlen == 2
    assert list(here.ordered.items()) == list(expected.ordered.items()) == [("c", 3), ("a", 1)]
    assert all(value is before[name] for name, value in vars(here).items())


def test_an_error_in_a_deep_thread_is_raised():
    def fail():
        if threading.current_thread() is threading.main_thread():
            raise RecursionError
        raise ValueError("there")

    with pytest.raises(ValueError, match="there"):
        pickling.deeply(fail)


def test_a_model_that_is_a_long_chain_of_layers():
    x = inputs = keras.Input((2,))
    for _ in range(150):
        x = layers.Activation("linear")(x)
    net = keras.Model(inputs, layers.Dense(1)(x))
    net.compile("sgd", "mse")
    here = net.get_weights()
    sent(net, net, lambda there: there.set_weights([w + 1 for w in there.get_weights()]))
    assert all(np.array_equal(a + 1, b) for a, b in zip(here, net.get_weights(), strict=True))


def test_what_is_in_the_way_is_found_in_closures_and_attributes():
    net = keras.Sequential([layers.Dense(1)])
    numbers = iter([1])
    net.rates = {"all": lambda: next((n for n in numbers), ())}
    generator = (n for n in [1])
    net.rates["all"] = lambda: next(generator)
    with pytest.raises(kc.CohortError, match=r"`generator` of model.rates\['all'\], a generator"):
        check("a", {"model": net}, net)


def test_datasets_are_named_with_a_way_out():
    tensorflow = pytest.importorskip("tensorflow")
    net = keras.Sequential([layers.Dense(1)])
    dataset = tensorflow.data.Dataset.range(3).batch(2)
    with pytest.raises(kc.CohortError, match=r"Received: x, a _BatchDataset.*PyDataset"):
        check("a", {"model": net, "x": dataset}, net)


SCRIPT = """
import pickle, sys, keras, numpy as np
from kerascohost.models.shipping import Received
received = Received(pickle.load(sys.stdin.buffer), [])
x, y = np.ones((32, 3), "float32"), np.ones((32, 1), "float32")
for name, model in received.parts.items():
    keras.utils.set_random_seed(1)
    model.fit(x, y, epochs=2, verbose=0)
pickle.dump(received.changes(received.parts, received.parts), sys.stdout.buffer)
"""


def make(optimizer, metrics=("mae",)):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation=lambda x: keras.ops.relu(x)),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(1),
        ]
    )
    net.compile(optimizer, lambda y, p: keras.ops.mean((y - p) ** 2), metrics=list(metrics))
    return net


def excluding():
    net = make(keras.optimizers.AdamW(0.1, weight_decay=0.1))
    net.optimizer.exclude_from_weight_decay(var_names=["bias"])
    net.optimizer.exclude_from_weight_decay([net.layers[0].kernel])
    return net


MODELS = {
    "sgd": lambda: make(keras.optimizers.SGD(0.1, momentum=0.9)),
    "excluding": excluding,
    "scaled": lambda: make(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())),
    "average": lambda: make(keras.optimizers.Adam(use_ema=True)),
    "metrics": lambda: make("adam", [keras.metrics.RootMeanSquaredError(), "mse"]),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "names",
    [["excluding"], pytest.param([*MODELS], marks=pytest.mark.nightly)],
    ids=["one", "all"],
)
def test_models_trained_elsewhere_are_trained_on_here(names):
    x, y = np.ones((32, 3), "float32"), np.ones((32, 1), "float32")
    here, there = ({name: MODELS[name]() for name in names} for _ in range(2))
    shipment = Shipment(there, there.values(), {}, lambda array, is_data: None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        input=pickle.dumps(shipment.data),
        stdout=subprocess.PIPE,
        check=True,
    )
    changes, lost = pickle.loads(done.stdout)
    shipment.merge(changes, [])
    assert lost == []
    for name in names:
        keras.utils.set_random_seed(1)
        here[name].fit(x, y, epochs=2, verbose=0)
    _assert_same(here, there)
    for name in names:
        if keras.backend.backend() == "jax" and name == "average":
            continue  # Keras 3.15 cannot train on a model with a moving average there
        for net in (here[name], there[name]):
            keras.utils.set_random_seed(2)
            net.fit(x, y, verbose=0)
    _assert_same(here, there)


def _assert_same(here, there):
    for name, net in here.items():
        own, other = (
            [v.numpy() for v in [*n.variables, *n.optimizer.variables, *n.metrics_variables]]
            for n in (net, there[name])
        )
        assert len(own) == len(other), name
        assert all(map(np.array_equal, own, other)), name
        assert net.history.history == there[name].history.history, name
