"""Chunks hold exactly the batches that Keras's own iterator yields, in the same order."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import tree
from keras.src.trainers.epoch_iterator import EpochIterator

from kerascohost import backends
from kerascohost.training import batches as batches_module
from kerascohost.training.batches import batches


def flat(chunks):
    """The single batches of some chunks, as lists of arrays."""
    for chunk in chunks:
        leaves = [keras.ops.convert_to_numpy(leaf) for leaf in tree.flatten(chunk.data)]
        for i in range(chunk.start, chunk.stop):
            yield [leaf[i] for leaf in leaves]


def ours(data, epochs, **kwargs):
    made = batches(data, backends.get_backend().row_order, **kwargs)
    return [list(flat(made.epoch())) for _ in range(epochs)]


def keras_own(data, epochs, **kwargs):
    x, y, sample_weight = data
    iterator = EpochIterator(x=x, y=y, sample_weight=sample_weight, **kwargs)
    iterator.reset()
    return [[tree.flatten(batch) for _, _, [batch] in iterator] for _ in range(epochs)]


def assert_equal(one, other):
    assert [len(epoch) for epoch in one] == [len(epoch) for epoch in other]
    for a, b in zip(itertools.chain(*one), itertools.chain(*other), strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)


def arrays(rows):
    x = np.arange(rows * 2, dtype="float32").reshape(rows, 2)
    return x, np.arange(rows), None


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    steps=st.none() | st.integers(1, 5),
    chunk_bytes=st.sampled_from([1, 100, 10**6]),
    epochs=st.integers(1, 4),
)
@pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:The data ended before")
def test_arrays_are_cut_as_keras_cuts_them(rows, batch_size, steps, chunk_bytes, epochs):
    batches_module._CHUNK_BYTES, before = chunk_bytes, batches_module._CHUNK_BYTES
    try:
        arguments = {"batch_size": batch_size, "steps_per_epoch": steps}
        cut = ours(arrays(rows), epochs, **arguments)
    finally:
        batches_module._CHUNK_BYTES = before
    assert_equal(cut, keras_own(arrays(rows), epochs, **arguments))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 30), batch_size=st.integers(1, 7), group=st.integers(1, 4))
def test_grouped_arrays_are_batches_that_many_times_larger(rows, batch_size, group):
    grouped = ours(arrays(rows), 1, batch_size=batch_size, group=group)
    assert_equal(grouped, ours(arrays(rows), 1, batch_size=batch_size * group))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=9), group=st.integers(1, 3))
@pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:`shuffle=True` was passed")
def test_streams_are_joined_in_order_and_nothing_is_lost(sizes, group):
    stops = list(itertools.accumulate(sizes))
    x, y, _ = arrays(stops[-1])
    pairs = zip([0, *stops], stops, strict=False)
    stream = ((x[start:stop], y[start:stop]) for start, stop in pairs)
    [epoch] = ours((stream, None, None), 1, group=group)
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in epoch]), x)
    joined = [sum(sizes[i : i + group]) for i in range(0, len(sizes), group)]
    assert [len(batch[0]) for batch in epoch] == joined


def test_shuffled_rows_are_each_taken_once_and_in_another_order_per_epoch():
    keras.utils.set_random_seed(0)
    first, second = ours(arrays(50), 2, batch_size=8, shuffle=True)
    order = np.concatenate([batch[1] for batch in first])
    assert sorted(order) == list(range(50)) and list(order) != list(range(50))
    again = np.concatenate([batch[1] for batch in second])
    # Under a seed, fit on TensorFlow repeats its order each epoch; so must we.
    assert (list(order) == list(again)) == (keras.backend.backend() == "tensorflow")


def test_peeking_takes_nothing_away():
    stream = (arrays(4)[:2] for _ in range(3))
    made = batches((stream, None, None), backends.get_backend().row_order, steps_per_epoch=3)
    assert made.peek()[0].shape == (4, 2)
    assert len(list(flat(made.epoch()))) == 3


def test_a_stream_is_not_read_beyond_what_was_asked_for():
    read = []

    def stream():
        for i in range(100):
            read.append(i)
            yield arrays(4)[:2]

    made = batches((stream(), None, None), backends.get_backend().row_order, steps_per_epoch=9)
    before = len(read)  # Keras looks at a few batches to learn their shapes
    next(made.epoch(at_most=1))
    assert len(read) <= max(before, 1)


def test_all_chunks_of_full_batches_have_one_shape():
    batches_module._CHUNK_BYTES, before = 100, batches_module._CHUNK_BYTES
    try:
        made = batches(arrays(47), backends.get_backend().row_order, batch_size=2)
        shapes = {chunk.data[0].shape for chunk in made.epoch() if chunk.is_first_shape}
    finally:
        batches_module._CHUNK_BYTES = before
    assert len(shapes) == 1


def test_unshuffled_arrays_are_not_copied():
    x, y, _ = arrays(64)
    [chunk] = batches((x, y, None), backends.get_backend().row_order, batch_size=8).epoch()
    assert np.shares_memory(chunk.data[0], x)
