"""Rules of `tf.vectorized_map` for operations for which TensorFlow has none, or a slow one.

TensorFlow runs these operations in a loop over the members where their weights or seeds differ.
Here a convolution with weights of each member becomes a product of patches and weights, and random
numbers from a seed of each member are drawn by one operation per member.

`pfor` is private; there is no public way to add a rule to it. It keeps its own rules for what is
not handled here, and its table is unchanged outside `rules()` and in other threads.
`op_def_registry`: only it has which operations are stateful.
"""

import contextlib
import contextvars
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import tensorflow as tf
from tensorflow.python.framework import op_def_registry
from tensorflow.python.ops.parallel_for import pfor

from kerascohost.backends.stacking import NotStackableError, TracedFloat
from kerascohost.patching import patched

# An operation to vectorise, with its inputs for all members.
_Operation: TypeAlias = pfor._PforInput

# The outputs of an operation for all members; `None` from a rule that does not apply.
_Outputs: TypeAlias = pfor.WrappedTensor | list[pfor.WrappedTensor] | None

_Rule: TypeAlias = Callable[[_Operation], _Outputs]

_RULES: dict[str, _Rule] = {}

# Used where the number of members is not known while tracing. (Each thread has its own value.)
_MOST_MEMBERS: contextvars.ContextVar[int] = contextvars.ContextVar("most members")


@contextlib.contextmanager
def rules(most_members: int) -> Iterator[None]:
    """Adds the rules of this module to `tf.vectorized_map`, and stops its logs, within the block.

    Only in the calling thread: others may trace something of their own at the same time.

    Args:
        most_members: The largest number of members that may be asked for.
    """
    before = _MOST_MEMBERS.set(most_members)
    try:
        with (
            patched(pfor, "_pfor_converter_registry", _with_rules),
            patched(tf.nn.experimental, "stateless_dropout", _with_traced_rate),
            # A failure is reported once, as the reason not to stack.
            patched(tf.get_logger(), "isEnabledFor", lambda usual: _is_critical),
        ):
            yield
    finally:
        _MOST_MEMBERS.reset(before)


def _with_rules(own: Mapping[str, _Rule]) -> dict[str, _Rule]:
    return {**own, **{name: _with(rule, own.get(name)) for name, rule in _RULES.items()}}


def _with_traced_rate(dropout: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    return functools.partial(_dropout, dropout)


def _is_critical(level: int) -> bool:
    return level >= logging.CRITICAL


def _dropout(
    function: Callable[..., tf.Tensor],
    x: tf.Tensor,
    rate: float | tf.Tensor | TracedFloat,
    **options: tf.Tensor | Sequence[int] | str | None,
) -> tf.Tensor:
    """Applies Dropout; a rate that differs between members becomes a tensor."""
    rate = rate.as_tensor(x.dtype) if isinstance(rate, TracedFloat) else rate
    return function(x, rate=rate, **options)


def _with(rule: _Rule, usual: _Rule | None) -> _Rule:
    def convert(given: _Operation) -> _Outputs:
        outputs = rule(given)
        if outputs is not None:
            return outputs
        if usual is None:
            raise NotStackableError(f"has an operation ({given.op_type}) without a vectorised form")
        return usual(given)

    return convert


def _rule(*operations: str) -> Callable[[_Rule], _Rule]:
    """Makes a function the rule for these operations; if it returns `None`, the usual rule is used.

    Returns:
        A decorator.
    """

    def register(function: _Rule) -> _Rule:
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
def _one_each(given: _Operation) -> _Outputs:
    """Draws each member's numbers by an operation of its own, as an operation takes one seed."""
    number = given.pfor.loop_len_vector[0]
    known = tf.get_static_value(number)
    drawn = [_drawn_for(given, i, number, known) for i in range(known or _MOST_MEMBERS.get())]
    stacked = [tf.stack(outputs) for outputs in zip(*drawn, strict=True)]
    return [pfor.wrap(rows if known else rows[:number]) for rows in stacked]


def _drawn_for(
    given: _Operation, i: int, number: tf.Tensor, known: int | None
) -> Sequence[tf.Tensor]:
    row = i if known else tf.minimum(i, number - 1)
    inputs = [item.t[row] if item.is_stacked else item.t for item in given.inputs]
    dtypes = [output.dtype for output in given.outputs]
    return pfor._create_op(given.op_type, inputs, dtypes, given.op.node_def.attr).outputs


# Stateful operations that only read, print, or call a function that is checked too.
_HARMLESS = frozenset(
    {
        "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "Placeholder",
        "VarHandleOp", "While", "If", "Case", "StatefulPartitionedCall", "Assert", "Print",
        "PrintV2", "CheckNumericsV2", "HashTableV2", "LookupTableFindV2",
    }
)  # fmt: skip


def check_effects(graph: tf.Graph) -> None:
    """Raises if a step changes something besides the values that it returns.

    An operation that no value depends on is not vectorised: it would run once for all members.

    Args:
        graph: The graph of the step.

    Raises:
        NotStackableError: With the name of the operation.
    """
    definition = graph.as_graph_def()
    nodes = [definition.node, *(function.node_def for function in definition.library.function)]
    for node in itertools.chain(*nodes):
        operation = op_def_registry.get(node.op)
        if operation is not None and operation.is_stateful and node.op not in _HARMLESS:
            raise NotStackableError(f"has an operation ({node.op}) with an effect of its own")


@_rule("Bitcast")
def _other_type(given: _Operation) -> _Outputs:
    """Vectorises `Bitcast`, which metrics such as AUC need."""
    return pfor.wrap(tf.bitcast(given.stacked_input(0), given.get_attr("type")))


@_rule("Squeeze")
def _squeezed(given: _Operation) -> _Outputs:
    """Removes all axes of size 1 where none are named, but for the axis of the members."""
    if given.get_attr("squeeze_dims"):
        return None
    x = given.stacked_input(0)
    inner = given.op.inputs[0].shape
    if inner.is_fully_defined():
        axes = [axis for axis, size in enumerate(inner, start=1) if size == 1]
        return pfor.wrap(tf.squeeze(x, axes) if axes else x)
    shape = tf.shape(x)
    remaining = tf.boolean_mask(shape[1:], shape[1:] != 1)
    return pfor.wrap(tf.reshape(x, tf.concat([shape[:1], remaining], axis=0)))


@_rule("ResizeBilinear", "ResizeNearestNeighbor")
def _resized(given: _Operation) -> _Outputs:
    return pfor._convert_flatten_batch(given, given.op_type, dims=[0])


@_rule("InTopKV2", "ResizeBilinearGrad")
def _by_samples(given: _Operation) -> _Outputs:
    """Treats the samples of all members as one batch, as each sample is computed by itself."""
    return pfor._convert_flatten_batch(given, given.op_type, dims=[0, 1])


@_rule("Conv2D", "Conv3D")
def _convolution(given: _Operation) -> _Outputs:
    weights, has_own_weights, _ = given.input(1)
    if not has_own_weights:
        return None
    given.stack_inputs([0])
    x = given.stacked_input(0)
    windows = _Windows(given, x.shape[2:], weights.shape[1:])
    return pfor.wrap(windows.rows_to_image(tf.matmul(windows.rows(x), windows.matrix(weights))))


@_rule("Conv2DBackpropFilter", "Conv3DBackpropFilterV2")
def _gradient_by_weights(given: _Operation) -> _Outputs:
    given.stack_inputs([0, 2])
    x, gradient = given.stacked_input(0), given.stacked_input(2)
    windows = _Windows(given, x.shape[2:], given.outputs[0].shape)
    gradient = tf.reshape(gradient, (tf.shape(gradient)[0], -1, windows.filters))
    product = tf.matmul(windows.rows(x), gradient, transpose_a=True)
    return pfor.wrap(tf.reshape(product, (-1, *given.outputs[0].shape)))


@_rule("Conv2DBackpropInput", "Conv3DBackpropInputV2")
def _gradient_by_input(given: _Operation) -> _Outputs:
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
    """The windows of a convolution's input, one for each place of its output, as rows of a matrix.

    Args:
        given: The convolution.
        image: The shape of its input, `(*size, channels)`.
        kernel: The shape of its weights, `(*window, channels, filters)`.
    """

    def __init__(self, given: _Operation, image: Sequence[int], kernel: Sequence[int]):
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
        self._samples: tf.Tensor | None = None  # rows of a batch; known once `rows` was called

    def matrix(self, weights: tf.Tensor) -> tf.Tensor:
        """Returns the weights as `(members, window * channels, filters)`."""
        return tf.reshape(weights, (-1, self._length, self.filters))

    @property
    def _length(self) -> int:
        return math.prod(self._window) * self.channels

    def rows(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the windows of `x` as `(members, samples * places, window * channels)`."""
        if any(map(any, self._pads)):
            x = tf.pad(x, [(0, 0), (0, 0), *self._pads, (0, 0)])
        parts = [x[(..., *slices, slice(None))] for slices in self._slices()]
        rows = parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)
        self._samples = tf.shape(x)[1]
        return tf.reshape(rows, (tf.shape(x)[0], -1, self._length))

    def rows_to_image(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns rows as an image.

        Args:
            rows: `(members, samples * places, filters)`, made from what `rows` returned last.

        Returns:
            `(members, samples, *places, filters)`.
        """
        shape = (tf.shape(rows)[0], self._samples, *self._places, self.filters)
        return tf.reshape(rows, shape)

    def sum_of_rows(self, rows: tf.Tensor, members: tf.Tensor, samples: tf.Tensor) -> tf.Tensor:
        """Reverses `rows`: returns for every input the sum of its elements in the rows."""
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
        """Returns zeros with `part` at the positions that `slices` name."""
        for axis, stride in enumerate(self._strides, start=2):
            if stride > 1:
                part = _spread(part, axis, stride)
        pads = [
            (chosen.start, size - chosen.stop)
            for chosen, size in zip(slices, self._padded, strict=True)
        ]
        return tf.pad(part, [(0, 0), (0, 0), *pads, (0, 0)])

    def _slices(self) -> Iterator[list[slice]]:
        """Yields, for each position in the window, the slices of the inputs that are there."""
        for position in itertools.product(*map(range, self._window)):
            yield [
                slice(at * dilation, at * dilation + (places - 1) * stride + 1, stride)
                for at, dilation, places, stride in zip(
                    position, self._dilations, self._places, self._strides, strict=True
                )
            ]


def _same(size: int, reach: int, stride: int) -> tuple[int, int]:
    """Returns the zeros before and after an axis that `padding="same"` adds."""
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
