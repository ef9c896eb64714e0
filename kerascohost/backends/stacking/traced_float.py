"""Python floats that differ between the members of a stack, while its one step is traced."""

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy.typing as npt

from kerascohost.backends.base import Tensor
from kerascohost.backends.stacking.signature import FloatRef, NotStackableError, Stack

if TYPE_CHECKING:
    import tensorflow as tf

# What takes part in arithmetic: a number, a tensor or array of any library, a `TracedFloat`.
Operand: TypeAlias = Any

# A dtype as Keras, NumPy, JAX or TensorFlow write it; `None`: `keras.config.floatx()`.
DType: TypeAlias = "npt.DTypeLike | tf.DType | None"

Convert: TypeAlias = Callable[[Tensor, DType], Tensor]


class TracedFloat:
    """A Python float that differs between members, while the step of all is traced.

    It takes part in arithmetic as a tensor does. Comparisons are made for all members at once; they
    must agree, as Python takes only one branch.

    Args:
        ref: The place that it is in.
        tensor: One member's value, as the vectorised step has it.
        values: All members' values.
        convert: `convert(tensor, dtype)` returns the tensor in another dtype.
    """

    def __init__(self, ref: FloatRef, tensor: Tensor, values: Sequence[float], convert: Convert):
        self.ref = ref
        self.tensor = tensor
        self.values = values
        self._convert = convert

    def as_tensor(self, dtype: DType = None) -> Tensor:
        """Returns the value as a tensor, by default of `keras.config.floatx()`."""
        return self._convert(self.tensor, dtype or keras.config.floatx())

    def __jax_array__(self) -> Tensor:
        return self.as_tensor()

    def __tf_tensor__(self, dtype: DType = None, name: str | None = None) -> Tensor:
        return self.as_tensor(dtype)

    def _agreed(self, outcomes: list[bool]) -> bool:
        if len(set(outcomes)) > 1:
            raise self._refusal("decides how to compute, and members differ")
        return outcomes[0]

    def _refusal(self, why: str) -> NotStackableError:
        self.ref.refused = True
        return NotStackableError(f"`{self.ref.path}` {why}")

    def __bool__(self) -> bool:
        return self._agreed([bool(value) for value in self.values])

    def __float__(self) -> float:
        raise self._refusal("is used as a Python number")

    def __neg__(self) -> Operand:
        return self._with(lambda value: -value)

    def _with(self, function: Callable[[Operand], Operand]) -> Operand:
        """Returns the result of arithmetic with a Python number.

        A value of type `keras.config.floatx()` gives a tensor. Any other gives a traced float
        again, so that it keeps its precision.
        """
        if keras.backend.standardize_dtype(self.tensor.dtype) == keras.config.floatx():
            return function(self.tensor)
        values = [function(value) for value in self.values]
        return TracedFloat(self.ref, function(self.tensor), values, self._convert)

    __hash__ = None  # type: ignore[assignment]  # it is compared by value


def _arithmetic(
    operation: Callable[[Operand, Operand], Operand], swapped: bool
) -> Callable[[TracedFloat, Operand], Operand]:
    def operate(self: TracedFloat, other: Operand) -> Operand:
        if isinstance(other, (int, float)):
            return self._with(lambda x: operation(other, x) if swapped else operation(x, other))
        if isinstance(other, TracedFloat):
            return operation(self.as_tensor(), other.as_tensor())
        mine = self.as_tensor(_float_type(other))
        return operation(other, mine) if swapped else operation(mine, other)

    return operate


def _float_type(other: Operand) -> str | None:
    """Returns the dtype to which a Python number would be converted beside `other`."""
    dtype = keras.backend.standardize_dtype(getattr(other, "dtype", keras.config.floatx()))
    return dtype if keras.backend.is_float_dtype(dtype) else None


def _comparison(name: str) -> Callable[[TracedFloat, Operand], bool]:
    def compare(self: TracedFloat, other: Operand) -> bool:
        if other is None:
            return name == "__ne__"
        if isinstance(other, TracedFloat):
            pairs = list(zip(self.values, other.values, strict=True))
        elif isinstance(other, (int, float)):
            pairs = [(value, float(other)) for value in self.values]
        else:
            return NotImplemented
        return self._agreed([getattr(a, name)(b) for a, b in pairs])

    return compare


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(TracedFloat, f"__{_name}__", _arithmetic(getattr(operator, _name), swapped=False))
    setattr(TracedFloat, f"__r{_name}__", _arithmetic(getattr(operator, _name), swapped=True))
for _name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
    setattr(TracedFloat, _name, _comparison(_name))


@contextlib.contextmanager
def traced_floats(stack: Stack, tensors: Sequence[Tensor], convert: Convert) -> Iterator[None]:
    """Replaces the prototype's floats, within the block, by traced ones where members differ.

    They are in the prototype's own attributes, where other threads would read them too: no other
    thread may use a model that is being trained.

    Args:
        stack: The stack.
        tensors: One member's values, for each of the stack's `float_refs`.
        convert: As in `TracedFloat`.
    """
    with contextlib.ExitStack() as entered:
        for ref, tensor, values in zip(stack.float_refs, tensors, stack.values, strict=True):
            entered.enter_context(ref.holding(TracedFloat(ref, tensor, values, convert)))
        yield
