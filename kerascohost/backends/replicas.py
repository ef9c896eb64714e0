"""One model applied several times in a step: the same weights, separate inputs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, ParamSpec

import keras
from keras import tree

# A mask is an attribute of its tensor, which no public function reads or sets.
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from kerascohost.backends.base import Tensor, Tree
from kerascohost.patching import patched

P = ParamSpec("P")


@contextlib.contextmanager
def applied_in_pieces(model: keras.Model, samples_per_replica: int) -> Iterator[None]:
    """Applies the model, within the block, to `samples_per_replica` rows of its inputs at a time.

    The outputs are concatenated, so that the loss over them is the mean over the replicas, and
    losses added in the model's calls are weighted likewise. Only layers that compute
    over the whole batch, such as BatchNormalization, give other results.

    Args:
        model: The model. Its `call` is replaced for the calling thread.
        samples_per_replica: Rows per replica; the last replica has the remaining rows.
    """

    def by_replica(
        call: Callable[Concatenate[Tree, P], Tree],
    ) -> Callable[Concatenate[Tree, P], Tree]:
        def call_by_replica(inputs: Tree, *args: P.args, **kwargs: P.kwargs) -> Tree:
            rows = next(leaf.shape[0] for leaf in tree.flatten(inputs) if leaf is not None)
            outputs, losses = [], []
            for start in range(0, rows, samples_per_replica):
                stop = min(start + samples_per_replica, rows)
                outputs.append(call(_rows_of(inputs, start, stop), *args, **kwargs))
                losses += [loss * ((stop - start) / rows) for loss in _take_call_losses(model)]
            if losses:
                model.add_loss(losses)
            return tree.map_structure(lambda *parts: _joined(parts), *outputs)

        return call_by_replica

    with patched(model, "call", by_replica):
        yield


def _rows_of(inputs: Tree, start: int, stop: int) -> Tree:
    """Returns some rows of a batch, whose tensors have no masks; optional inputs may be `None`."""
    return tree.map_structure(lambda a: None if a is None else a[start:stop], inputs)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    whole = keras.ops.concatenate(parts, axis=0)
    masks = [get_keras_mask(part) for part in parts]
    if masks[0] is not None:
        set_keras_mask(whole, keras.ops.concatenate(masks, axis=0))
    return whole


def _take_call_losses(model: keras.Model) -> list[Tensor]:
    """Returns the losses that layers have added since the last call, and removes them.

    `_flatten_layers`, `_get_own_losses`, `_clear_losses`: the public `losses` includes the weight
    regularizers, which must count once per step, not once per replica.
    """
    losses = [loss for layer in model._flatten_layers() for loss in layer._get_own_losses()]
    model._clear_losses()
    return losses
