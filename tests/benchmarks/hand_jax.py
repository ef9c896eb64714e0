"""Many MLPs trained by plain JAX: as fast as a stack could be, were there no Keras around it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def forward(weights, x):
    *hidden, (kernel, bias) = zip(weights[::2], weights[1::2], strict=True)
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    return x @ kernel + bias


def loss_of(weights, x, y):
    return jnp.mean(jnp.square(forward(weights, x) - y))


def step(state, batch):
    """One step of Adam, as Keras takes it."""
    weights, means, squares, count = state
    loss, gradients = jax.value_and_grad(loss_of)(weights, *batch)
    count = count + 1
    rate = 0.001 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
    means = [m + (g - m) * 0.1 for m, g in zip(means, gradients, strict=True)]
    squares = [v + (g * g - v) * 0.001 for v, g in zip(squares, gradients, strict=True)]
    weights = [
        w - m * rate / (jnp.sqrt(v) + 1e-7) for w, m, v in zip(weights, means, squares, strict=True)
    ]
    return (weights, means, squares, count), loss


def run_epoch(state, batches):
    state, losses = lax.scan(jax.vmap(step), state, batches)
    return state, jnp.mean(losses, axis=0)


def run_rows(state, arrays, rows):
    def advance(state, now):
        batch = [array.at[now].get(mode="promise_in_bounds") for array in arrays]
        return jax.vmap(step, in_axes=(0, None))(state, batch)

    state, losses = lax.scan(advance, state, rows)
    return state, jnp.mean(losses, axis=0)


@partial(jax.jit, static_argnames="batch")
def _predict(weights, x, batch):
    batches = x.reshape(-1, batch, x.shape[1])
    steps = jax.lax.map(lambda part: jax.vmap(forward, (0, None))(weights, part), batches)
    return jnp.moveaxis(steps, 1, 0).reshape(len(weights[0]), -1, steps.shape[-1])


class Hand:
    """MLPs with these weights, a list per member."""

    def __init__(self, weights):
        stacked = [jnp.stack(own) for own in zip(*weights, strict=True)]
        zeros = [jnp.zeros_like(w) for w in stacked]
        count = jnp.zeros(len(weights), "float32")
        self.state = (stacked, zeros, [jnp.zeros_like(w) for w in stacked], count)
        self._epoch = jax.jit(run_epoch, donate_argnums=0)
        self._rows = jax.jit(run_rows, donate_argnums=0)

    def fit(self, batches, epochs):
        """Trains on NumPy arrays `(steps, members, rows, ...)`; returns the losses by epoch."""
        batches = jax.device_put(batches)
        losses = []
        for _ in range(epochs):
            self.state, loss = self._epoch(self.state, batches)
            losses.append(np.asarray(loss))
        jax.block_until_ready(self.state)
        return losses

    @staticmethod
    def put(arrays):
        """Puts arrays on the device, to take rows of."""
        return jax.device_put(list(arrays))

    def fit_rows(self, arrays, epochs):
        """Trains all members on the same rows of arrays, `(steps, rows)` for each epoch."""
        losses = []
        for rows in epochs:
            self.state, loss = self._rows(self.state, arrays, rows)
            losses.append(np.asarray(loss))
        jax.block_until_ready(self.state)
        return losses

    def predict(self, x, batch):
        """Returns the outputs of all members on one x, `(members, rows, ...)`, batch by batch."""
        return np.asarray(_predict(self.state[0], x, batch))

    def weights(self):
        return [np.asarray(w) for w in self.state[0]]
