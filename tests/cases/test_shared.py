"""`kc.shared`: a dataset is read once; members end as by their own `fit` on its batches."""

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc
from kerascohost import errors
from kerascohost.backends import shared_reader
from tests.helpers import compare
from tests.helpers.compare import Member
from tests.helpers.sampled import one_in

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(44, 5)).astype("float32")
Y = X[:, :1] * 2


def network(units):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(units, "tanh"), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def cut(x, y, size=8):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


class Batches(keras.utils.PyDataset):
    """Reverses its rows after each epoch; notes what is asked of it."""

    def __init__(self):
        super().__init__()
        self.x, self.y = X, Y
        self.seen = []

    def __len__(self):
        return 6

    def __getitem__(self, i):
        self.seen.append(i)
        return cut(self.x, self.y)[i]

    def on_epoch_end(self):
        self.seen.append("end")
        self.x, self.y = self.x[::-1], self.y[::-1]


def generator(seen, endless=True):
    while True:
        for i, batch in enumerate(cut(X, Y)):
            seen.append(i)
            yield batch
        if not endless:
            return


def trained(x, layout="joined", members=(3, 4, 3), at_once=None, **fit):
    """Trains members on one shared dataset."""
    cohort = kc.Cohort(
        {f"m{i}": compare.built(Member(lambda u=u: network(u)), i) for i, u in enumerate(members)},
        layout=layout,
        at_once=at_once,
    )
    history = cohort.fit(x, verbose=0, **fit)
    return cohort, {n: compare.Trained(m, history[n]) for n, m in cohort.members.items()}


def alone(make, members=(3, 4, 3), **fit):
    """Trains each member by its own `fit` on data of its own, which `make` makes."""
    found = {}
    for i, units in enumerate(members):
        model = compare.built(Member(lambda u=units: network(u)), i)
        own = {k: v.get(f"m{i}") if isinstance(v, dict) else v for k, v in fit.items()}
        found[f"m{i}"] = compare.Trained(model, model.fit(make(), verbose=0, **own))
    return found


TOLERANCE = {"joined": None, "stacked": 1e-4}
LAYOUTS = one_in(2, ["joined"] if BACKEND == "torch" else ["joined", "stacked"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_generator(layout):
    seen = []
    fit = {"epochs": 2, "steps_per_epoch": 5, "shuffle": False}
    _, together = trained(kc.shared(generator(seen)), layout, **fit)
    compare.assert_same(alone(lambda: generator([]), **fit), together, TOLERANCE[layout])
    assert seen[:10] == [*range(6), *range(4)]
    assert len(seen) < 20  # once, and not far ahead


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_that_changes_after_its_epochs(layout):
    dataset = Batches()
    _, together = trained(kc.shared(dataset, shuffle=False), layout, epochs=3)
    apart = alone(Batches, epochs=3, shuffle=False)
    compare.assert_same(apart, together, TOLERANCE[layout])
    read = [i for i in dataset.seen if i != "end"]
    assert read.count(5) == 3
    # Once an epoch; `fit` calls it once more before it begins.
    assert dataset.seen[-1] == "end"
    assert 3 <= dataset.seen.count("end") <= 4


def test_members_that_end_early_let_it_go_on():
    dataset = Batches()
    epochs = {"m0": 1, "m1": 3, "m2": 2}
    _, together = trained(kc.shared(dataset, shuffle=False), epochs=epochs)
    compare.assert_same(alone(Batches, epochs=epochs, shuffle=False), together)
    assert [i for i in dataset.seen if i != "end"].count(5) == 3


def test_a_tf_dataset_and_validation_data():
    tf = pytest.importorskip("tensorflow")

    def pipeline():
        return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)

    reads = []
    counted = pipeline().map(
        lambda x, y: (tf.py_function(lambda v: reads.append(1) or v, [x], x.dtype), y)
    )
    counted = counted.map(lambda x, y: (tf.ensure_shape(x, (None, 5)), y))
    _, together = trained(kc.shared(counted), epochs=2, validation_data=kc.shared(pipeline()))
    apart = alone(pipeline, epochs=2, validation_data=pipeline(), shuffle=False)
    compare.assert_same(apart, together)
    assert len(reads) <= 2 * 6 + 6


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # as by `fit` itself
def test_a_dataset_of_unknown_length():
    _, together = trained(kc.shared(generator([], endless=False)))
    apart = alone(lambda: generator([], endless=False), shuffle=False)
    compare.assert_same(apart, together)


def test_group_factors():
    models = {name: compare.built(Member(lambda: network(3))) for name in ("one", "two")}
    cohort = kc.Cohort(models, group_factor={"two": 2})
    seen = []
    steps = {"one": 4, "two": 2}
    history = cohort.fit(kc.shared(generator(seen)), steps_per_epoch=steps, verbose=0)
    for name, size in (("one", 8), ("two", 16)):
        model = compare.built(Member(lambda: network(3)))
        own = model.fit(X[:32], Y[:32], batch_size=size, shuffle=False, verbose=0)
        found = {name: compare.Trained(models[name], history[name])}
        compare.assert_same({name: compare.Trained(model, own)}, found)
    assert seen.count(0) <= 2


def test_a_member_that_is_far_ahead_waits(monkeypatch):
    """With nothing stored beyond a chunk, members of unequal speed still end as alone."""
    monkeypatch.setattr(shared_reader, "_MOST_STORED", 0)
    dataset = Batches()
    _, together = trained(
        kc.shared(dataset, shuffle=False),
        epochs={"m0": 3, "m1": 2, "m2": 3},
        validation_data={"m1": (X, Y)},
    )
    apart = alone(
        Batches, epochs={"m0": 3, "m1": 2, "m2": 3}, shuffle=False, validation_data={"m1": (X, Y)}
    )
    compare.assert_same(apart, together)
    assert [i for i in dataset.seen if i != "end"].count(0) <= 4


class Fixed(Batches):
    """Has the same batches in each epoch."""

    def on_epoch_end(self):
        self.seen.append("end")


@pytest.mark.parametrize(
    ("at_once", "validation", "frequency"), [(1, "other", 1), (None, "same", 1), (None, "other", 3)]
)
def test_members_that_would_wait_for_each_other_go_on(monkeypatch, at_once, validation, frequency):
    monkeypatch.setattr(shared_reader, "_MOST_STORED", 0)
    one, other = kc.shared(Fixed(), shuffle=False), kc.shared(Fixed(), shuffle=False)
    fit = {"epochs": 3, "validation_freq": {"m0": 1, "m1": frequency, "m2": 2}}
    data = {"same": one, "other": other}[validation]
    _, together = trained(one, at_once=at_once, validation_data=data, **fit)
    apart = alone(Fixed, validation_data=Fixed(), shuffle=False, **fit)
    compare.assert_same(apart, together)


def test_one_fit_after_another_reads_it_again():
    dataset = Batches()
    shared = kc.shared(dataset, shuffle=False)
    cohort, _ = trained(shared, epochs=1)
    cohort.fit(shared, verbose=0)
    assert [i for i in dataset.seen if i != "end"].count(5) == 2
    values = cohort.evaluate(shared, verbose=0, return_dict=True)
    assert set(values) == {"m0", "m1", "m2"}


class Broken(Batches):
    """Cannot read the fourth batch of its second epoch."""

    def __getitem__(self, i):
        if i == 3 and self.seen.count(3):
            raise OSError(5, "disk")
        return super().__getitem__(i)


def broken(kind=OSError):
    for i, batch in enumerate(generator([])):
        if i == 3:
            raise kind(5, "disk")
        yield batch


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # an error, it would end the epoch
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("make", "epochs"), [(broken, []), (Broken, [0])])
def test_a_dataset_that_fails_ends_the_epoch_of_no_member(make, epochs, layout):
    models = {name: network(3) for name in ("a", "b")}
    cohort = kc.Cohort(models, layout=layout)
    with pytest.raises(OSError, match="disk") as raised:
        cohort.fit(kc.shared(make(), shuffle=False), epochs=3, verbose=0)
    assert raised.value.__notes__ == ["Raised while running member 'a' of the cohort."]
    assert {n: cohort.history[n].epoch for n in models} == {"a": epochs, "b": epochs}


class Unread(Exception):  # noqa: N818
    """An exception that cannot be copied, as its arguments are not those that it is made with."""

    def __init__(self, batch, why):
        super().__init__(f"{why} {batch}")
        self.batch = batch
        self.add_note("said by the data")


@pytest.mark.parametrize("kind", [OSError, Unread])
def test_each_reader_gets_a_failure_of_its_own(kind):
    views = [shared_reader.View(shared) for shared in [kc.shared(broken(kind))] * 2]
    failures = []
    for view in views:
        with pytest.raises(kind, match="disk") as raised:
            list(view)
        assert view.position == (0, 3)
        errors.attributed(raised.value, str(len(failures)))
        failures.append(raised.value)
    assert failures[1].__cause__ is failures[0]
    assert [errors.member_of(failure) for failure in failures] == ["0", "1"]
    assert failures[0].args == failures[1].args
    assert getattr(failures[1], "batch", 5) == 5
    assert ["member '1'" in failure.__notes__[-1] for failure in failures] == [False, True]


def test_what_cannot_be_is_refused():
    with pytest.raises(kc.CohortError, match="Expected `dataset` to be a "):
        kc.shared(X)
    for dataset in (None, 3, "abc", object()):
        with pytest.raises(kc.CohortError, match=f"Received: {type(dataset).__name__}"):
            kc.shared(dataset)
    with pytest.raises(kc.CohortError, match=r"Received: Shared\. Give it to all members as it is"):
        kc.shared(kc.shared(Batches()))
    with pytest.raises(kc.CohortError, match=r"without `y`.*Received: y=ndarray"):
        trained(kc.shared(generator([])), y=Y, steps_per_epoch=2)
    with pytest.raises(kc.CohortError, match=r"kerascohost.shared"):
        trained(generator([]), steps_per_epoch=2)
