"""One model applied several times in a step: the same weights, separate inputs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import tree

# Masks travel as an attribute of the tensors, which no public function reads or sets.
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from kerascohost.patching import patched


@contextlib.contextmanager
def applied_in_pieces(model: keras.Model, samples_per_replica: int) -> Iterator[None]:
    """Applies the model, within the block, to so many rows of its inputs at a time.

    The outputs are put together again, so that the loss over them is the mean over the replicas,
    and losses added in the model's calls are weighted likewise. Only layers that look at the whole
    batch, as BatchNormalization does, see a difference.

    Args:
        model: The model. Its `call` is replaced for the calling thread.
        samples_per_replica: Rows per replica; a last, smaller replica takes what is left.
    """

    def in_pieces(call: Callable) -> Callable:
        def call_in_pieces(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            rows = tree.flatten(inputs)[0].shape[0]
            outputs, losses = [], []
            for start in range(0, rows, samples_per_replica):
                stop = min(start + samples_per_replica, rows)
                outputs.append(call(_rows_of(inputs, start, stop), *args, **kwargs))
                losses += [loss * ((stop - start) / rows) for loss in _take_call_losses(model)]
            if losses:
                model.add_loss(losses)
            return tree.map_structure(lambda *parts: _joined(parts), *outputs)

        return call_in_pieces

    with patched(model, "call", in_pieces):
        yield


def _rows_of(inputs: Any, start: int, stop: int) -> Any:
    def cut(tensor: Any) -> Any:
        part = tensor[start:stop]
        mask = get_keras_mask(tensor)
        if mask is not None:
            set_keras_mask(part, mask[start:stop])
        return part

    return tree.map_structure(cut, inputs)


def _joined(parts: tuple) -> Any:
    whole = keras.ops.concatenate(parts, axis=0)
    masks = [get_keras_mask(part) for part in parts]
    if masks[0] is not None:
        set_keras_mask(whole, keras.ops.concatenate(masks, axis=0))
    return whole


def _take_call_losses(model: keras.Model) -> list:
    """The losses that layers have added since the last time, removed from the model.

    `_flatten_layers`, `_get_own_losses`, `_clear_losses`: the public `losses` also holds the weight
    regularizers, which must count once per step, not once per replica.
    """
    losses = [loss for layer in model._flatten_layers() for loss in layer._get_own_losses()]
    model._clear_losses()
    return losses
