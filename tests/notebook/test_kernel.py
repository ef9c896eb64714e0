"""Functions and loops in turn in cells of a real kernel: results, interrupts, tracebacks."""

import re
import time

import keras
import pytest
from jupyter_client.manager import start_new_kernel

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="kernels are alike on every backend"
    ),
    pytest.mark.xdist_group("kernel"),  # started once
]

SETUP = """
import pathlib, sys, threading, time
import keras, numpy as np, kerascohost as kc
from keras import layers
%load_ext kerascohost

def net(seed):
    keras.utils.set_random_seed(seed)
    made = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.001), "mse")
    return made

class Slow(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        time.sleep(0.02)

# By the frames of threads: a callback that touches a file would not be trained with others, and
# who lists all objects makes the tuples that another thread is about to fill fail.
def is_under_way():
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code is Slow.on_epoch_end.__code__ and frame.f_locals["epoch"] > 2:
                return True
            frame = frame.f_back
    return False

def tell(file):
    while not is_under_way():
        time.sleep(0.01)
    pathlib.Path(file).touch()

def train(seed):
    models[seed] = m = net(seed)
    m.fit(x, y, epochs=epochs, batch_size=60, shuffle=False, verbose=0, callbacks=[Slow()])
    return m.evaluate(x, y, verbose=0)

models, epochs = {}, 2
x = np.random.default_rng(0).random((60, 4)).astype("float32")
y = x[:, :1]
"""
LOOP = """%%cohost --loops
scores = []
for seed in range(3):
    m = net(seed)
    m.fit(x, y, epochs=epochs, batch_size=60, shuffle=False, verbose=0, callbacks=[Slow()])
    scores.append(m.evaluate(x, y, verbose=0))
"""
MAP = "scores = kc.map(train, range(3), layout='joined')\n"
# Each model is where as many whole steps take it.
CHECK = """
models = models or {seed: m}
for seed, m in models.items():
    steps, alone = int(m.optimizer.iterations), net(seed)
    for _ in range(steps):
        alone.train_on_batch(x, y)
    for one, other in zip(m.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    print("steps:", steps)
"""


class Kernel:
    """A kernel, and the cells that are run in it."""

    def __init__(self):
        self.manager, self.client = start_new_kernel()

    def run(self, cell, meanwhile=lambda: None):
        """What a cell prints and displays, and its error, if any."""
        asked = self.client.execute(cell)
        meanwhile()
        text, error = "", None
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                text += content["text"]
            if kind == "error":
                error = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(content["traceback"]))
            if kind == "status" and content["execution_state"] == "idle":
                return text, error

    def ran(self, cell):
        """What a cell prints, after checking that it raised nothing."""
        text, error = self.run(cell)
        assert error is None, error
        return text

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def started():
    made = Kernel()
    yield made
    made.close()


@pytest.fixture
def kernel(started):
    started.ran(SETUP)
    return started


def test_functions_and_loops_in_cells(kernel):
    kernel.ran(MAP + "of_map = scores")
    text = kernel.ran(LOOP)
    assert "3 iterations trained together" in text
    kernel.ran("of_loops = scores\nassert of_map == of_loops, (of_map, of_loops)")
    kernel.ran("%%cohost --loops\n" + MAP + "for k in range(2):\n    print(k)\n")
    kernel.ran("assert scores == of_map")
    kernel.ran("assert scores == [train(seed) for seed in range(3)]")


@pytest.mark.parametrize("cell", [MAP, LOOP], ids=["map", "loop"])
def test_an_interrupt_ends_all_with_models_after_whole_steps(kernel, cell, tmp_path):
    file = tmp_path / "started"

    def interrupt():
        end = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < end, "nothing is trained"
            time.sleep(0.1)
        kernel.manager.interrupt_kernel()

    kernel.ran(f"epochs, file = 10**6, {str(file)!r}")
    kernel.ran("threading.Thread(target=tell, args=(file,)).start()")
    _, error = kernel.run(cell, meanwhile=interrupt)
    assert "KeyboardInterrupt" in error
    steps = [int(each) for each in re.findall(r"steps: (\d+)", kernel.ran(CHECK))]
    assert len(steps) == (3 if cell == MAP else 1)
    assert steps[0] > 2
    kernel.ran("names = [n for n in globals() if n.startswith('__kc')]\nassert not names, names")
    kernel.ran("epochs, models = 2, {}\nassert len(m.fit(x, y, epochs=2, verbose=0).epoch) == 2")
    kernel.ran(cell + "\nassert len(scores) == 3\n")
    kernel.ran("assert scores == [train(seed) for seed in range(3)]")


def test_an_exception_shows_the_line_of_the_program(kernel):
    loop = LOOP + "    if seed == 1:\n        scores.append(1 / 0)\n"
    _, error = kernel.run(loop)
    assert "ZeroDivisionError" in error
    assert re.search(r"Cell In\[[1-9]\d*\], line 8", error), error
    assert re.search(r"> 8 +scores.append\(1 / 0\)", error), error
    assert "kerascohost" not in error
    kernel.ran("assert seed == 1 and len(scores) == 2")
    function = "def fails(seed):\n    train(seed)\n    return 1 / (seed - 1)\n"
    _, error = kernel.run(f"{function}kc.map(fails, range(3))")
    assert "ZeroDivisionError" in error
    assert re.search(r"> 3 +return 1 / \(seed - 1\)", error), error
    assert "Raised by fails[1]." in error
