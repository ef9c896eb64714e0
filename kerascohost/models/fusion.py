"""Several models as one plain functional `keras.Model`: side by side, grouped, replicated."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import tree

from kerascohost.arguments import Argument, PerMember, check_count, counts_per_member, named_models
from kerascohost.backends import Tensor, Tree
from kerascohost.errors import CohortError, about


def group(x: Tree, k: int) -> Tree:
    """Reads every `k` neighbouring samples as one: `(n * k, ...)` becomes `(n, k, ...)`.

    Args:
        x: An array or tensor, or a nested structure of them, of shape `(n * k, ...)`.
        k: An integer of at least 1, the group factor.

    Returns:
        The same structure, with arrays of shape `(n, k, ...)`. NumPy arrays are not copied.

    Raises:
        CohortError: If `k` is not such an integer, or does not divide the number of samples, or if
            `x` is no such arrays.

    Example:

    >>> import numpy as np
    >>> group(np.arange(6), 2).tolist()
    [[0, 1], [2, 3], [4, 5]]
    """
    check_count("k", k)

    def grouped(array: Tensor) -> Tree:
        _check_axes(array, "(n * k, ...)", 1)
        n = array.shape[0]
        if n % k:
            raise CohortError(
                f"Expected a number of samples that {k} divides. Received: {n} samples. "
                f"Group the first {n - n % k} (x[:{n - n % k}]) and train the last {n % k} apart."
            )
        return _reshape(array, (n // k, k, *array.shape[1:]))

    return tree.map_structure(grouped, x)


def ungroup(x: Tree) -> Tree:
    """Undoes `group`: `(n, k, ...)` becomes `(n * k, ...)`.

    Args:
        x: An array or tensor, or a nested structure of them, of shape `(n, k, ...)`.

    Returns:
        The same structure, with arrays of shape `(n * k, ...)`.

    Raises:
        CohortError: If `x` is no arrays, or there are fewer than two axes.

    Example:

    >>> import numpy as np
    >>> ungroup(np.array([[0, 1], [2, 3]])).tolist()
    [0, 1, 2, 3]
    """

    def ungrouped(array: Tensor) -> Tree:
        _check_axes(array, "(n, k, ...)", 2)
        return _reshape(array, (array.shape[0] * array.shape[1], *array.shape[2:]))

    return tree.map_structure(ungrouped, x)


@keras.saving.register_keras_serializable(package="kerascohost")
class GroupBatch(keras.layers.Layer):
    """Reads every `k` neighbouring samples of a batch as one: `(n * k, ...)` to `(n, k, ...)`.

    Args:
        k: An integer of at least 1, the group factor. It has to divide the number of samples.
        **kwargs: The arguments of `keras.layers.Layer`, such as `name`.

    Raises:
        CohortError: If `k` is not such an integer.

    Example:

    >>> import numpy as np
    >>> tuple(GroupBatch(2)(np.zeros((6, 5))).shape)
    (3, 2, 5)
    """

    def __init__(self, k: int, **kwargs: Argument):
        super().__init__(**kwargs)
        check_count("k", k)
        self.k = k

    def call(self, inputs: Tensor) -> Tree:
        """Returns the inputs in groups.

        Args:
            inputs: A tensor of shape `(n * k, ...)`.

        Returns:
            A tensor of shape `(n, k, ...)`.

        Example:

        >>> import numpy as np
        >>> np.asarray(GroupBatch(2).call(np.arange(4))).tolist()
        [[0, 1], [2, 3]]
        """
        return keras.ops.reshape(inputs, (-1, self.k, *inputs.shape[1:]))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the outputs.

        Args:
            input_shape: The shape of the inputs, a tuple of integers or `None`.

        Returns:
            A tuple of integers or `None`.

        Example:

        >>> GroupBatch(2).compute_output_shape((6, 5))
        (3, 2, 5)
        """
        n = input_shape[0]
        return (None if n is None else n // self.k, self.k, *input_shape[1:])

    def get_config(self) -> dict[str, Argument]:
        """Returns the arguments from which the layer can be made again.

        Returns:
            A dict of arguments by name.

        Example:

        >>> GroupBatch(2).get_config()["k"]
        2
        """
        return {**super().get_config(), "k": self.k}


@keras.saving.register_keras_serializable(package="kerascohost")
class UngroupBatch(keras.layers.Layer):
    """Undoes `GroupBatch`: a batch of shape `(n, k, ...)` becomes one of shape `(n * k, ...)`.

    Args:
        **kwargs: The arguments of `keras.layers.Layer`, such as `name`.

    Example:

    >>> import numpy as np
    >>> tuple(UngroupBatch()(np.zeros((3, 2, 5))).shape)
    (6, 5)
    """

    def call(self, inputs: Tensor) -> Tree:
        """Returns the inputs without groups.

        Args:
            inputs: A tensor of shape `(n, k, ...)`.

        Returns:
            A tensor of shape `(n * k, ...)`.

        Example:

        >>> import numpy as np
        >>> np.asarray(UngroupBatch().call(np.array([[0, 1], [2, 3]]))).tolist()
        [0, 1, 2, 3]
        """
        return keras.ops.reshape(inputs, (-1, *inputs.shape[2:]))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the outputs.

        Args:
            input_shape: The shape of the inputs, a tuple of integers or `None`.

        Returns:
            A tuple of integers or `None`.

        Example:

        >>> UngroupBatch().compute_output_shape((3, 2, 5))
        (6, 5)
        """
        n, k, *rest = input_shape
        return (None if n is None or k is None else n * k, *rest)


def fuse(
    models: Mapping[str, keras.Model] | Sequence[keras.Model],
    group_factor: PerMember[int] | None = None,
    replicas: PerMember[int] | None = None,
    name: str | None = None,
) -> keras.Model:
    """Joins models side by side in one plain functional model, to compile and fit as any other.

    The fused model has one optimizer, one `fit` and one file, and shares its weights with the
    members. `Cohort` trains each member with its own optimizer, data and epochs instead.

    Its inputs and outputs are the members', in order. A member with a group factor of `k` takes
    inputs and gives outputs of shape `(n, k, ...)`, see `group`. A member with `r` replicas takes
    `r` inputs and gives `r` outputs, named after the member, `_1`, `_2`, … appended from the second
    one on. So the history of a fused model has a `<member>_loss` for every output.

    Args:
        models: Built models (`keras.Model`): a dict from names to models, or a list of models, each
            of which is then a member under its own `name`. To use one model several times, see
            `replicas`.
        group_factor: The number of samples that are read as one: a positive integer for all
            members, or a dict from names to integers. Default `None`: 1.
        replicas: The number of times that a member is applied, with the same weights, to separate
            inputs: a positive integer for all members, or a dict from names to integers. Default
            `None`: 1.
        name: A string, the name of the fused model. Default `None`: Keras chooses one.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        CohortError: If the models cannot be fused.

    Example:

    >>> import keras, numpy as np
    >>> cnn = keras.Sequential(
    ...     [keras.Input((20, 20, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    >>> mlp = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    >>> fused = fuse({"cnn": cnn, "mlp": mlp}, group_factor={"mlp": 2})
    >>> fused.compile("adam", loss="mse")
    >>> x1, y1 = np.ones((30, 20, 20, 3)), np.ones((30, 1))
    >>> x2, y2 = np.ones((60, 2)), np.ones((60, 3))
    >>> history = fused.fit([x1, group(x2, 2)], [y1, group(y2, 2)], verbose=0)
    >>> sorted(history.history)
    ['cnn_loss', 'loss', 'mlp_loss']
    """
    named = named_models(models)
    factors = counts_per_member("group_factor", 1 if group_factor is None else group_factor, named)
    counts = counts_per_member("replicas", 1 if replicas is None else replicas, named)
    inputs: list[keras.KerasTensor] = []
    outputs: list[keras.KerasTensor] = []
    owners: dict[str, str] = {}
    for member, model in named.items():
        with about(member):
            core = _as_layer(member, model)
            for replica in range(counts[member]):
                label = f"{member}_{replica}" if replica else member
                ins, outs = _applied(core, model, label, factors[member])
                # Replicas of "a" are named "a_1", ..., and its model is "a_model".
                for layer in keras.Model(ins, outs).layers:
                    other = owners.setdefault(layer.name, member)
                    if other != member:
                        raise CohortError(
                            "Expected members whose layers in the fused model differ in their "
                            f"names. Received: {layer.name!r} for layers of {other!r} and "
                            f"{member!r}. Name one otherwise in a dict: "
                            '{"first": model1, "second": model2}.'
                        )
                inputs += ins
                outputs += outs
    return keras.Model(inputs, outputs, name=name)


def _as_layer(member: str, model: keras.Model) -> keras.Model:
    """Returns the model under another name, as the fused model's outputs have the member's."""
    if not getattr(model, "inputs", None):
        raise CohortError(
            "Expected a model that knows its inputs. Received: one that is not built from "
            "`keras.Input`; `Cohort` takes such models, or wrap it: "
            "`x = keras.Input(shape); keras.Model(x, model(x))`."
        )
    inputs = [_input_like(tensor) for tensor in model.inputs]
    structure = inputs[0] if isinstance(model, keras.Sequential) else model.input
    outputs = model(tree.pack_sequence_as(structure, inputs))
    return keras.Model(inputs, outputs, name=f"{member}_model")


def _applied(
    core: keras.Model, model: keras.Model, label: str, k: int
) -> tuple[list[keras.KerasTensor], list[keras.KerasTensor]]:
    """Applies a member once; returns its inputs and its outputs, named after it."""
    inputs, ungrouped = [], []
    for i, tensor in enumerate(model.inputs):
        suffix = f"_{i}" if len(model.inputs) > 1 else ""
        x = _input_like(tensor, name=f"{label}_input{suffix}", k=k)
        inputs.append(x)
        ungrouped.append(UngroupBatch(name=f"{label}_ungroup{suffix}")(x) if k > 1 else x)
    y = core(ungrouped if len(ungrouped) > 1 else ungrouped[0])
    outputs = []
    flat = tree.flatten(y)
    for output, output_name in zip(flat, _output_names(model, len(flat)), strict=True):
        named = f"{label}_{output_name}" if len(flat) > 1 else label
        layer = GroupBatch(k, name=named) if k > 1 else keras.layers.Identity(name=named)
        outputs.append(layer(output))
    return inputs, outputs


def _input_like(
    tensor: keras.KerasTensor, name: str | None = None, k: int = 1
) -> keras.KerasTensor:
    shape = (k, *tensor.shape[1:]) if k > 1 else tensor.shape[1:]
    return keras.Input(shape, dtype=tensor.dtype, name=name)


def _output_names(model: keras.Model, count: int) -> list[str]:
    names = list(getattr(model, "output_names", None) or [])
    return names if len(set(names)) == count else [str(i) for i in range(count)]


def _check_axes(array: Tensor, shape: str, least: int) -> None:
    if not hasattr(array, "shape"):
        raise CohortError(f"Expected arrays of shape {shape}. Received: {array!r}.")
    if len(array.shape) < least:
        raise CohortError(
            f"Expected arrays of shape {shape}. Received: shape {tuple(array.shape)}."
        )


def _reshape(array: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    ops = keras.ops if keras.ops.is_tensor(array) else np
    return ops.reshape(array, shape)
