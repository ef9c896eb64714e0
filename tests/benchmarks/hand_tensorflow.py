"""Many MLPs trained by plain TensorFlow: what a stack would be, were there no Keras around it."""

import tensorflow as tf


def forward(weights, x):
    *hidden, (kernel, bias) = zip(weights[::2], weights[1::2], strict=True)
    for w, b in hidden:
        x = tf.nn.relu(x @ w + b)
    return x @ kernel + bias


def step(weights, means, squares, rate, x, y):
    """One step of Adam, as Keras takes it."""
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss = tf.reduce_mean(tf.square(forward(weights, x) - y))
    gradients = tape.gradient(loss, weights)
    means = [m + (g - m) * 0.1 for m, g in zip(means, gradients, strict=True)]
    squares = [v + (g * g - v) * 0.001 for v, g in zip(squares, gradients, strict=True)]
    weights = [
        w - m * rate / (tf.sqrt(v) + 1e-7) for w, m, v in zip(weights, means, squares, strict=True)
    ]
    return weights, means, squares, loss


class Hand:
    """MLPs with these weights, a list per member."""

    def __init__(self, weights):
        stacked = [tf.stack(own) for own in zip(*weights, strict=True)]
        zeros = [tf.zeros_like(w) for w in stacked]
        self.state = [tf.Variable(value) for value in (*stacked, *zeros, *zeros)]
        self._size = len(stacked)
        self._count = tf.Variable(0.0)
        self._epoch = tf.function(self._run_epoch, autograph=False, reduce_retracing=True)

    def _run_epoch(self, x, y, rows=None):
        size, steps = self._size, tf.shape(x if rows is None else rows)[0]

        def body(i, count, total, *state):
            count = count + 1
            rate = 0.001 * tf.sqrt(1 - 0.999**count) / (1 - 0.9**count)
            given = [list(state[n * size : (n + 1) * size]) for n in range(3)]
            if rows is None:
                *groups, loss = tf.vectorized_map(
                    lambda own: step(*own[:3], rate, *own[3:]), (*given, x[i], y[i])
                )
            else:
                batch = [tf.gather(array, rows[i]) for array in (x, y)]
                *groups, loss = tf.vectorized_map(lambda own: step(*own, rate, *batch), given)
            return [i + 1, count, total + loss, *(value for group in groups for value in group)]

        start = [0, self._count, tf.zeros(self.state[0].shape[0]), *self.state]
        start = [tf.convert_to_tensor(value) for value in start]
        _, count, total, *state = tf.while_loop(lambda i, *_: i < steps, body, start)
        for variable, value in zip([self._count, *self.state], [count, *state], strict=True):
            variable.assign(value)
        return total / tf.cast(steps, total.dtype)

    def fit(self, batches, epochs):
        """Trains on NumPy arrays `(steps, members, rows, ...)`; returns the losses by epoch."""
        x, y = (tf.convert_to_tensor(array) for array in batches)
        return [self._epoch(x, y).numpy() for _ in range(epochs)]

    @staticmethod
    def put(arrays):
        """Puts arrays on the device, to take rows of."""
        return [tf.convert_to_tensor(array) for array in arrays]

    def fit_rows(self, arrays, epochs):
        """Trains all members on the same rows of arrays, `(steps, rows)` for each epoch."""
        return [self._epoch(*arrays, tf.convert_to_tensor(rows)).numpy() for rows in epochs]

    def predict(self, x, batch):
        """Returns the outputs of all members on one x, `(members, rows, ...)`, batch by batch."""
        return self._predict(tf.convert_to_tensor(x), batch).numpy()

    @tf.function(autograph=False, reduce_retracing=True)
    def _predict(self, x, batch):
        weights = [tf.convert_to_tensor(value) for value in self.state[: self._size]]
        batches = tf.reshape(x, (-1, batch, x.shape[1]))

        def outputs(part):
            return tf.vectorized_map(lambda own: forward(own, part), weights)

        spec = tf.TensorSpec((None, None, weights[-1].shape[-1]), x.dtype)
        steps = tf.map_fn(outputs, batches, fn_output_signature=spec)
        members, units = weights[-1].shape
        return tf.reshape(tf.transpose(steps, (1, 0, 2, 3)), (members, -1, units))

    def weights(self):
        return [value.numpy() for value in self.state[: self._size]]
