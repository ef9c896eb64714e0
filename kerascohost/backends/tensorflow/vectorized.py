"""How `tf.vectorized_map` vectorises operations for which TensorFlow has no rule, or a slow one.

TensorFlow runs these one member after another, in a loop, where their weights or seeds differ:
convolutions by weights of their own become products of patches and weights, random numbers from
seeds of their own are drawn by one operation per member.

`pfor` is private; there is no public way to give it a rule. Its own rules stay in place for what is
not handled here, and the table is as it was outside `rules()`, and in other threads.
`op_def_registry`: only it tells which operations are stateful.
"""

import contextlib
import contextvars
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_registry
from tensorflow.python.ops.parallel_for import pfor

from kerascohost.backends.stacking import NotStackableError, TracedFloat
from kerascohost.patching import patched

_RULES: dict[str, Callable] = {}

# Where the number of members is not known while tracing. (Each thread has a value of its own.)
_MOST_MEMBERS: contextvars.ContextVar[int] = contextvars.ContextVar("most members")


@contextlib.contextmanager
def rules(most_members: int) -> Iterator[None]:
    """Within the block, `tf.vectorized_map` knows the rules of this module, and does not log.

    Only in the calling thread: others may trace something of their own meanwhile.

    Args:
        most_members: The largest number of members that may be asked for.
    """
    before = _MOST_MEMBERS.set(most_members)
    try:
        with (
            patched(pfor, "_pfor_converter_registry", _with_rules),
            patched(tf.nn.experimental, "stateless_dropout", _with_traced_rate),
            # A failure is told once, as the reason not to stack.
            patched(tf.get_logger(), "isEnabledFor", lambda usual: _is_critical),
        ):
            yield
    finally:
        _MOST_MEMBERS.reset(before)


def _with_rules(own: Mapping[str, Callable]) -> dict[str, Callable]:
    return {**own, **{name: _with(rule, own.get(name)) for name, rule in _RULES.items()}}


def _with_traced_rate(dropout: Callable) -> Callable:
    return functools.partial(_dropout, dropout)


def _is_critical(level: int) -> bool:
    return level >= logging.CRITICAL


def _dropout(function: Callable, x: tf.Tensor, rate: Any, **options: Any) -> tf.Tensor:
    """Applies Dropout whose rate members have different ones of: TensorFlow needs a tensor."""
    rate = rate.as_tensor(x.dtype) if isinstance(rate, TracedFloat) else rate
    return function(x, rate=rate, **options)


def _with(rule: Callable, usual: Callable | None) -> Callable:
    def convert(given: Any) -> Any:
        outputs = rule(given)
        if outputs is not None:
            return outputs
        if usual is None:
            raise NotStackableError(f"has an operation ({given.op_type}) without a vectorised form")
        return usual(given)

    return convert


def _rule(*operations: str) -> Callable:
    """Makes a function the rule for these operations; where it returns `None`, the usual one is."""

    def register(function: Callable) -> Callable:
        _RULES.update(dict.fromkeys(operations, function))
        return function

    return register


@_rule(
    "StatelessRandomGetKeyCounter",
    "StatelessRandomUniformV2",
    "StatelessRandomUniformIntV2",
    "StatelessRandomUniformFullIntV2",
    "StatelessRandomNormalV2",
    "StatelessTruncatedNormalV2",
    "StatelessRandomUniform",
    "StatelessRandomUniformInt",
    "StatelessRandomUniformFullInt",
    "StatelessRandomNormal",
    "StatelessTruncatedNormal",
    "StatelessRandomGammaV2",
    "StatelessRandomGammaV3",
)
def _one_each(given: Any) -> Any:
    """One operation per member: the numbers from one seed cannot be drawn with another's."""
    number = given.pfor.loop_len_vector[0]
    known = tf.get_static_value(number)
    drawn = [_member_s(given, i, number, known) for i in range(known or _MOST_MEMBERS.get())]
    stacked = [tf.stack(outputs) for outputs in zip(*drawn, strict=True)]
    return [pfor.wrap(rows if known else rows[:number]) for rows in stacked]


def _member_s(given: Any, i: int, number: tf.Tensor, known: int | None) -> Sequence[tf.Tensor]:
    row = i if known else tf.minimum(i, number - 1)
    inputs = [item.t[row] if item.is_stacked else item.t for item in given.inputs]
    dtypes = [output.dtype for output in given.outputs]
    return pfor._create_op(given.op_type, inputs, dtypes, given.op.node_def.attr).outputs


# Stateful operations that only read, say something, or call what is checked for itself.
_HARMLESS = frozenset(
    {
        "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "Placeholder",
        "VarHandleOp", "While", "If", "Case", "StatefulPartitionedCall", "Assert", "Print",
        "PrintV2", "CheckNumericsV2", "HashTableV2", "LookupTableFindV2",
    }
)  # fmt: skip


def check_effects(graph: Any) -> None:
    """Refuses a step that changes something besides the values that it returns.

    What no value depends on is not vectorised: it would be done once for all members.
    """
    definition = graph.as_graph_def()
    nodes = [definition.node, *(function.node_def for function in definition.library.function)]
    for node in itertools.chain(*nodes):
        operation = op_def_registry.get(node.op)
        if operation is not None and operation.is_stateful and node.op not in _HARMLESS:
            raise NotStackableError(f"has an operation ({node.op}) with an effect of its own")


@_rule("Bitcast")
def _other_type(given: Any) -> Any:
    """Without this, metrics such as AUC could not be vectorised."""
    return pfor.wrap(tf.bitcast(given.stacked_input(0), given.get_attr("type")))


@_rule("Squeeze")
def _squeezed(given: Any) -> Any:
    """Without named axes, all of size 1 go: of one member's axes, never that of the members."""
    if given.get_attr("squeeze_dims"):
        return None
    x = given.stacked_input(0)
    inner = given.op.inputs[0].shape
    if inner.is_fully_defined():
        axes = [axis for axis, size in enumerate(inner, start=1) if size == 1]
        return pfor.wrap(tf.squeeze(x, axes) if axes else x)
    shape = tf.shape(x)
    kept = tf.boolean_mask(shape[1:], shape[1:] != 1)
    return pfor.wrap(tf.reshape(x, tf.concat([shape[:1], kept], axis=0)))


@_rule("ResizeBilinear", "ResizeNearestNeighbor")
def _resized(given: Any) -> Any:
    return pfor._convert_flatten_batch(given, given.op_type, dims=[0])


@_rule("InTopKV2", "ResizeBilinearGrad")
def _by_samples(given: Any) -> Any:
    """Each sample for itself: the samples of all members are one batch."""
    return pfor._convert_flatten_batch(given, given.op_type, dims=[0, 1])


@_rule("Conv2D", "Conv3D")
def _convolution(given: Any) -> Any:
    weights, has_own_weights, _ = given.input(1)
    if not has_own_weights:
        return None
    given.stack_inputs([0])
    x = given.stacked_input(0)
    windows = _Windows(given, x.shape[2:], weights.shape[1:])
    return pfor.wrap(windows.rows_to_image(tf.matmul(windows.rows(x), windows.matrix(weights))))


@_rule("Conv2DBackpropFilter", "Conv3DBackpropFilterV2")
def _gradient_by_weights(given: Any) -> Any:
    given.stack_inputs([0, 2])
    x, gradient = given.stacked_input(0), given.stacked_input(2)
    windows = _Windows(given, x.shape[2:], given.outputs[0].shape)
    gradient = tf.reshape(gradient, (tf.shape(gradient)[0], -1, windows.filters))
    product = tf.matmul(windows.rows(x), gradient, transpose_a=True)
    return pfor.wrap(tf.reshape(product, (-1, *given.outputs[0].shape)))


@_rule("Conv2DBackpropInput", "Conv3DBackpropInputV2")
def _gradient_by_input(given: Any) -> Any:
    weights, has_own_weights, _ = given.input(1)
    if not has_own_weights:
        return None
    given.stack_inputs([2])
    gradient = given.stacked_input(2)
    windows = _Windows(given, given.outputs[0].shape[1:], weights.shape[1:])
    members, samples = tf.shape(gradient)[0], tf.shape(gradient)[1]
    rows = tf.reshape(gradient, (members, -1, windows.filters))
    rows = tf.matmul(rows, windows.matrix(weights), transpose_b=True)
    return pfor.wrap(windows.sum_of_rows(rows, members, samples))


class _Windows:
    """What a convolution sees at each place: the windows of its input, as rows of a matrix.

    Args:
        given: The convolution.
        image: The shape of its input, `(*size, channels)`.
        kernel: The shape of its weights, `(*window, channels, filters)`.
    """

    def __init__(self, given: Any, image: Sequence[int], kernel: Sequence[int]):
        if given.get_attr("data_format") not in (b"NHWC", b"NDHWC"):
            raise NotStackableError("has a convolution with channels first")
        *self._window, self.channels, self.filters = kernel
        *self._size, channels = image
        self._strides = given.get_attr("strides")[1:-1]
        self._dilations = given.get_attr("dilations")[1:-1]
        if None in (*self._size, *kernel):
            raise NotStackableError("has a convolution over images of no fixed size")
        if channels != self.channels:
            raise NotStackableError("has a convolution in groups of channels")
        self._reach = [
            (window - 1) * dilation + 1
            for window, dilation in zip(self._window, self._dilations, strict=True)
        ]
        self._pads = [(0, 0)] * len(self._size)
        if given.get_attr("padding") == b"SAME":
            self._pads = list(map(_same, self._size, self._reach, self._strides))
        elif given.get_attr("padding") != b"VALID":
            raise NotStackableError("has a convolution with explicit padding")
        self._padded = [size + sum(pads) for size, pads in zip(self._size, self._pads, strict=True)]
        self._places = [
            (size - reach) // stride + 1
            for size, reach, stride in zip(self._padded, self._reach, self._strides, strict=True)
        ]
        self._samples: Any = None

    def matrix(self, weights: tf.Tensor) -> tf.Tensor:
        """The weights as `(members, window * channels, filters)`."""
        return tf.reshape(weights, (-1, self._length, self.filters))

    @property
    def _length(self) -> int:
        return math.prod(self._window) * self.channels

    def rows(self, x: tf.Tensor) -> tf.Tensor:
        """The windows as `(members, samples * places, window * channels)`."""
        if any(map(any, self._pads)):
            x = tf.pad(x, [(0, 0), (0, 0), *self._pads, (0, 0)])
        parts = [x[(..., *slices, slice(None))] for slices in self._slices()]
        rows = parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)
        self._samples = tf.shape(x)[1]
        return tf.reshape(rows, (tf.shape(x)[0], -1, self._length))

    def rows_to_image(self, rows: tf.Tensor) -> tf.Tensor:
        """`(members, samples * places, filters)` as `(members, samples, *places, filters)`."""
        shape = (tf.shape(rows)[0], self._samples, *self._places, self.filters)
        return tf.reshape(rows, shape)

    def sum_of_rows(self, rows: tf.Tensor, members: tf.Tensor, samples: tf.Tensor) -> tf.Tensor:
        """The reverse of `rows`: every input gets the sum of what stands for it in the rows."""
        whole = tf.reshape(rows, (members, samples, *self._places, self._length))
        parts = tf.split(whole, math.prod(self._window), axis=-1)
        total = tf.add_n(
            [self._placed(part, slices) for part, slices in zip(parts, self._slices(), strict=True)]
        )
        inner = [
            slice(before, before + size)
            for size, (before, _) in zip(self._size, self._pads, strict=True)
        ]
        return total[(..., *inner, slice(None))]

    def _placed(self, part: tf.Tensor, slices: Sequence[slice]) -> tf.Tensor:
        """`part` in zeros, at the places that `slices` names."""
        for axis, stride in enumerate(self._strides, start=2):
            if stride > 1:
                part = _spread(part, axis, stride)
        pads = [
            (chosen.start, size - chosen.stop)
            for chosen, size in zip(slices, self._padded, strict=True)
        ]
        return tf.pad(part, [(0, 0), (0, 0), *pads, (0, 0)])

    def _slices(self) -> Iterator[list[slice]]:
        """For each position in the window, the inputs that stand there at all places."""
        for position in itertools.product(*map(range, self._window)):
            yield [
                slice(at * dilation, at * dilation + (places - 1) * stride + 1, stride)
                for at, dilation, places, stride in zip(
                    position, self._dilations, self._places, self._strides, strict=True
                )
            ]


def _same(size: int, reach: int, stride: int) -> tuple[int, int]:
    """The padding with which every input is at the start of a stride or inside a window."""
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _spread(part: tf.Tensor, axis: int, stride: int) -> tf.Tensor:
    """Puts `stride - 1` zeros between neighbours along an axis."""
    length = part.shape[axis]
    pads = [(0, 0)] * (len(part.shape) + 1)
    pads[axis + 1] = (0, stride - 1)
    spread = tf.pad(tf.expand_dims(part, axis + 1), pads)
    shape = tf.shape(part)
    spread = tf.reshape(spread, tf.concat([shape[:axis], [-1], shape[axis + 1 :]], axis=0))
    static = [*part.shape[:axis], length * stride, *part.shape[axis + 1 :]]
    spread = tf.ensure_shape(spread, static)
    return spread[(slice(None),) * axis + (slice(0, (length - 1) * stride + 1),)]
