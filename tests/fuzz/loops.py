"""Draws small programs with loops, runs each as written and in turn, and compares what they leave.

`python -m tests.fuzz.loops 20 7` tries 20 programs from seed 7 on; with `show` behind it, prints
them instead.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerascohost.deferred.turns import Turns
from tests.fuzz.programs import Node, show, shrunk, text_of, tried
from tests.helpers import looped

PREAMBLE = """\
import copy, functools, gc, itertools, os, random
import keras, numpy as np
from keras import layers, ops
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm
x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
y = np.tanh(x.sum(axis=1, keepdims=True))
k = (y > 0).astype("int32")
SCALE, count, total = 1.0, 0, 0.0
scores, log, registry, models, fs, rows = [], [], {}, [], [], []
results, best, best_model, prev, seen, hist = {}, 1e9, None, None, set(), []
def mse(t, p): return ops.mean(ops.square(ops.cast(t, p.dtype) - p))
def scaled(t, p): return SCALE * mse(t, p)
def small(units=3, loss="mse", optimizer="sgd"):
    made = keras.Sequential(
        [keras.Input((4,)), layers.Dense(units, activation="tanh"), layers.Dense(1)])
    made.compile(optimizer, loss, run_eagerly=EAGER)
    return made
def functional(units=3, loss="mse", optimizer="sgd", rate=0.2):
    inputs = keras.Input((4,))
    hidden = layers.Dropout(rate)(layers.Dense(units, activation="relu")(inputs))
    made = keras.Model(inputs, layers.Dense(1)(hidden))
    made.compile(optimizer, loss, metrics=["mae"], run_eagerly=EAGER)
    return made
class Net(keras.Model):
    made = 0
    def __init__(self, units=3):
        super().__init__()
        self.one, self.two = layers.Dense(units, activation="tanh"), layers.Dense(1)
    def call(self, a): return self.two(self.one(a))
def net(units=3, loss="mse", optimizer="sgd"):
    made = Net(units)
    made.compile(optimizer, loss, run_eagerly=EAGER)
    made.build((None, 4))
    return made
class Record(keras.callbacks.Callback):
    def __init__(self, tag=0): super().__init__(); self.tag, self.log = tag, []
    def on_epoch_end(self, epoch, logs=None): self.log.append((self.tag, epoch, logs["loss"]))
class Shouts(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None): print("epoch", epoch)
class Run:
    def __init__(self, tag, log=None):
        self.tag, self.log, self.count = tag, [] if log is None else log, 0
    def note(self, what): self.count += 1; self.log.append((self.tag, what))
    @property
    def size(self): return len(self.log)
def bump():
    global count
    count += 1
    return count
def note(what): log.append(what)
def log_of(name): return registry.setdefault(name, [])
def rates():
    yield 0.1
    yield 0.05
    yield 0.01
def score(m, a, b):
    return float(np.mean((m.predict(a, verbose=0) - b) ** 2))
def train(m, a, b, epochs=1):
    h = m.fit(a, b, epochs=epochs, verbose=0, batch_size=16)
    return h.history["loss"][-1]
def trained(units, a, b, into=None):
    m = small(units)
    m.fit(a, b, verbose=0, batch_size=16)
    if into is not None: into.append(units)
    return m, m.evaluate(a, b, verbose=0)
"""

# What goes on with a compound statement.
_PARTS = ("else:", "except", "finally:")

# Of stacks: the steps of several models are vectorised.
STACKED = 1e-3


@dataclasses.dataclass
class _Header:
    """What a loop goes over.

    Attributes:
        head: The line of the loop.
        item: An expression for the item, as text or number.
        units: One for a small number.
        rows: One for rows of the data.
        target: The data's targets.
    """

    head: str
    item: str
    units: str
    rows: str = ""


class Writer:
    """Writes a program.

    Args:
        seed: What the program is drawn from.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._before: list[Node] = []
        self._after: list[Node] = []
        self._is_daring = self._chance(0.3)  # about what an analysis may see wrongly
        self._is_seeded = self._chance(0.5)

    def program(self) -> list[Node]:
        """The statements of a program."""
        loop = self._loop()
        nodes = self._around(loop)
        if self._chance(0.15):
            nodes += self._second_loop()
        if self._chance(0.3):
            self._after.append("after = np.random.rand(), random.random()")
        return [*self._before, *nodes, *self._after]

    def _around(self, loop: list[Node]) -> list[Node]:
        if self._fails or self._chance(0.1):
            name = self._pick("Exception", "(ValueError, KeyError)")
            return [
                ("try:", loop),
                (f"except {name} as error:", ["message = f'{type(error).__name__} {error}'[:60]"]),
            ]
        if self._chance(0.1):
            return [("if len(x) == 32:", loop)]
        return loop

    # Choices

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _pick(self, *values: Any) -> Any:
        return self._random.choice(values)

    def _some(self, kinds: dict[Callable[[], list[Node]], int], count: int) -> list[Node]:
        nodes: list[Node] = []
        for _ in range(count):
            [kind] = self._random.choices(list(kinds), weights=list(kinds.values()))
            nodes += kind()
        return nodes

    # The loop

    def _loop(self) -> list[Node]:
        self._fails = False
        self._header = header = self._header_of()
        body: list[Node] = []
        if self._is_seeded and self._chance(0.9):
            body.append(f"keras.utils.set_random_seed({self._seed()})")
        body += self._head()
        body += self._make()
        if self._is_daring and self._chance(0.3):
            body += self._dare_before()
        body += self._train()
        body += self._tail()
        if self._is_daring:
            body += self._dare_after()
        if self._chance(0.05):
            body.append("del m")
        nodes: list[Node] = [(header.head, self._in_parts(body))]
        if self._chance(0.05):
            nodes.append(("else:", ["print('all done')"]))
        if header.head.count("\n"):
            outer, inner = header.head.split("\n")
            nodes = [(outer, [(inner, self._in_parts(body))])]
        return nodes

    def _in_parts(self, body: list[Node]) -> list[Node]:
        """The body, perhaps with its end in a `try` or an `if`."""
        if len(body) > 3 and self._chance(0.12):
            places = [i for i in range(1, len(body)) if str(body[i][0]).split(" ")[0] not in _PARTS]
            place = self._pick(*places)
            handler = ("except ValueError:", ["log.append('failed')", "continue"])
            return [*body[:place], ("try:", body[place:]), handler]
        return body

    def _seed(self) -> str:
        units = self._header.units
        return self._pick(units, f"{units} + 1", f"10 * {units}", "7")

    def _header_of(self) -> _Header:
        items = self._pick("3, 4, 5", "2, 4, 2", "4, 3", "5, 3, 4")
        rates = "0.1, 0.05, 0.01"
        headers = [
            _Header("for i in range(3):", "i", "i + 2"),
            _Header(f"for u in ({items}):", "u", "u"),
            _Header(f"for i, u in enumerate([{items}]):", "i", "u"),
            _Header(f"for u, lr in zip(({items}), ({rates})):", "u", "u"),
            _Header(f"for u in tqdm([{items}], disable=True):", "u", "u"),
            _Header("for u in np.array([3, 4, 5]):", "int(u)", "int(u)"),
            _Header("for name, u in {'a': 2, 'b': 4, 'c': 3}.items():", "name", "u"),
            _Header("for i, (tr, te) in enumerate(KFold(3).split(x)):", "i", "i + 2", "tr"),
            _Header(
                "for tr, te in KFold(3, shuffle=True, random_state=1).split(x):", "tr[0]", "3", "tr"
            ),
            _Header(
                "for i, (tr, te) in enumerate(KFold(3, shuffle=True).split(x)):", "i", "3", "tr"
            ),
            _Header("for u, lr in itertools.product((2, 3), (0.1, 0.01)):", "(u, lr)", "u"),
            _Header("for u in (2, 4):\nfor lr in (0.1, 0.01):", "(u, lr)", "u"),
            _Header("for u in (1, 2):\nfor i in range(u):", "(u, i)", "u"),
            _Header("for c in [{'n': 2}, {'n': 3}, {'n': 4}]:", 'c["n"]', 'c["n"]'),
            _Header("for n in (16, 24, 32):", "n", "n // 8", ":n"),
            _Header("for u, *more in [(2, 1), (3, 1, 2), (4,)]:", "u", "u"),
        ]
        daring = [
            _Header("for u in queue:", "u", "u"),
            _Header("for u, lr in zip((3, 4, 5), rates()):", "u", "u"),
            _Header("for c in cfgs:", 'c["n"]', 'c["n"]'),
            _Header("for u in iter(queue):", "u", "u"),
            _Header("for i in (1, 2):\nfor u in queue[:i]:", "(i, u)", "u"),
            _Header("for i in (0, 1):\nfor u in range(2, 3 + len(scores) % 3):", "(i, u)", "u"),
            _Header('for state["u"] in (2, 3, 4):', 'state["u"]', 'state["u"]'),
            _Header("for u in state['left']:", "u", "u"),
        ]
        if self._is_daring and self._chance(0.3):
            header = self._pick(*daring)
            self._before.append("queue, cfg, state = [3, 4], {'n': 2}, {'left': iter([2, 3, 4])}")
            self._before.append("cfgs = [cfg, {'n': 3}, cfg]")
            self._after.append("left = list(state['left'])")
            return header
        return self._pick(*headers)

    # Before the training

    def _head(self) -> list[Node]:
        item, units = self._header.item, self._header.units
        self._data = ("x", "y")
        self._extra: list[str] = []
        if self._header.rows and self._chance(0.9):
            self._data = (f"x[{self._header.rows}]", f"y[{self._header.rows}]")
        self._units = units
        nodes: list[Node] = []
        for _ in range(self._pick(0, 1, 1, 2)):
            nodes += self._pick(
                [f"print('begin', {item})"],
                ["count += 1"],
                [f"name = f'run {{{item}}}'"],
                [(f"if {item} == 4:", ["print('skipped')", "continue"])],
                [f"sizes = [v + {units} for v in (1, 2)]"],
                [f"q = {units} / 2"],
                [(f"if (half := {units} // 2) > 2:", ["print('large', half)", "continue"])],
                ["a = StandardScaler().fit_transform(x)"],
                [
                    f"own = np.random.default_rng({units})",
                    "a = x + own.normal(size=x.shape).astype('float32')",
                ],
                [f"params = dict(units={units})", "params['units'] += 1"],
                ["a = x.copy()", "a[:8] *= 0.5"],
                [f"def scale(v, by={units}): return v * by"],
                [f"q = (lambda v: v + 1)({units})"],
                ["r = Run(len('ab'))", "r.note('begin')"],
                *(
                    []
                    if self._is_seeded and self._chance(0.5)
                    else [["u0 = int(np.random.randint(2, 6))"], ["r0 = random.random()"]]
                ),
            )
        text = text_of(nodes)
        if "a = " in text and self._chance(0.8):
            self._data = ("a", "y")
        if "params" in text and self._chance(0.7):
            self._units = "params['units']"
        if "u0 = " in text:
            self._units = "u0"
        self._has_q = "q = " in text
        return nodes

    def _make(self) -> list[Node]:
        kind = self._pick("small", "small", "functional", "net")
        losses = ['"mse"', '"mse"', '"mae"', "mse", "keras.losses.Huber()"]
        if self._has_q:
            losses += ["lambda t, p: q * mse(t, p)"] * 4
        losses.append(f"lambda t, p: mse(t, p) * ({self._header.units})")
        optimizers = [
            '"sgd"',
            '"adam"',
            "keras.optimizers.Adam(0.01)",
            "keras.optimizers.SGD(0.1, momentum=0.5)",
        ]
        if "lr" in self._header.head:
            optimizers += ["keras.optimizers.Adam(lr)"] * 4
        nodes: list[Node] = []
        if self._is_daring and self._chance(0.15):
            losses = ["scaled"]
            nodes.append(f"SCALE = {self._header.units} / 2")
        if self._is_daring and self._chance(0.1):
            self._before.append("optimizer = keras.optimizers.SGD(0.1, momentum=0.9)")
            optimizers = ["optimizer"]
        if self._is_daring and self._chance(0.1):
            self._before.append(f"shared = {kind}(3)")
            return ["m = shared"]
        if kind == "net" and self._chance(0.5):
            nodes += [
                f"m = Net({self._units})",
                f"m.compile({self._pick(*optimizers)}, loss={self._pick(*losses)}, "
                "run_eagerly=EAGER)",
            ]
            return nodes
        arguments = f"loss={self._pick(*losses)}, optimizer={self._pick(*optimizers)}"
        return [*nodes, f"m = {kind}({self._units}, {arguments})"]

    # The training

    def _train(self) -> list[Node]:
        nodes = self._fit()
        if self._chance(0.2):
            nodes += self._pick(
                ["m.optimizer.learning_rate = 0.01"],
                ["m.layers[0].trainable = False", 'm.compile("sgd", "mse", run_eagerly=EAGER)'],
                ["w = m.get_weights()", "m.set_weights([0.9 * v for v in w])"],
                ["first = m.evaluate(x, y, verbose=0)"],
            )
            nodes += self._fit()
        if self._chance(0.1):
            return [(f"if {self._header.units} % 2:", nodes), ("else:", self._fit())]
        if self._chance(0.05):
            return [("for j in range(2):", self._fit())]
        if self._chance(0.04):
            return ["n = 0", ("while n < 2:", [*self._fit(), "n += 1"])]
        return nodes

    def _fit(self) -> list[Node]:
        data = ", ".join(self._data)
        if self._chance(0.12):
            return [f"loss0 = train(m, {data}, epochs={self._pick(1, 2)})"]
        nodes: list[Node] = []
        arguments = {"epochs": self._pick(1, 1, 2), "batch_size": self._pick(16, 24), "verbose": 0}
        if self._chance(0.4):
            arguments["shuffle"] = False
        more = self._pick("", "", "split", "validation", "weights", "class", "steps")
        if more == "split":
            arguments["validation_split"] = 0.25
        if more == "validation":
            arguments["validation_data"] = "(x[:16], y[:16])"
        if more == "weights":
            arguments["sample_weight"] = f"np.linspace(0, 1, len({self._data[1]}))"
        if more == "class" and self._data == ("x", "y"):
            data, arguments["class_weight"] = "x, k", "{0: 1.0, 1: 2.0}"
        if more == "steps":
            arguments["steps_per_epoch"] = 1
        callbacks = self._callbacks(nodes)
        if callbacks:
            arguments["callbacks"] = f"[{', '.join(callbacks)}]"
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        call = f"m.fit({data}, {given})"
        return [*nodes, self._pick(call, f"h = {call}")]

    def _callbacks(self, nodes: list[Node]) -> list[str]:
        found: list[str] = []
        kinds = ["", "", "", "record", "schedule", "shouts", "lambda"]
        kinds += ["stop"] if self._is_seeded else []
        kinds += ["shared", "shared list", "stop"] if self._is_daring else []
        kind = self._pick(*kinds)
        if kind == "record":
            nodes.append(f"cb = Record({self._header.units})")
            found.append("cb")
        elif kind == "schedule":
            rate = f"lambda e, r: 0.1 / (e + {self._header.units})"
            found.append(f"keras.callbacks.LearningRateScheduler({rate})")
        elif kind == "shouts":
            found.append("Shouts()")
        elif kind == "lambda":
            nodes.append("trace = []")
            found.append(
                "keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: trace.append(e))"
            )
        elif kind == "stop":
            found.append(
                'keras.callbacks.EarlyStopping("loss", patience=0, '
                f"min_delta={self._pick(0.0, 9.0)}, restore_best_weights={self._chance(0.5)})"
            )
        elif kind == "shared":
            self._before.append(
                self._pick(
                    'es = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=9.0)',
                    "es = Record()",
                )
            )
            found.append("es")
        elif kind == "shared list":
            found.append(
                "keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: log.append(e))"
            )
        return found

    # After the training

    def _tail(self) -> list[Node]:
        item, (a, b) = self._header.item, self._data
        if self._header.rows == "tr" and self._chance(0.7):
            a, b = "x[te]", "y[te]"
        nodes: list[Node] = self._pick(
            [f"s = m.evaluate({a}, {b}, verbose=0)"],
            [f"s = m.evaluate({a}, {b}, verbose=0, return_dict=True)['loss']"],
            [f"s = score(m, {a}, {b})"],
            [f"p = m.predict({a}, verbose=0)", f"s = float(np.mean((p - {b}) ** 2))"],
        )
        nodes.append("s = s[0] if isinstance(s, list) else s")
        for _ in range(self._pick(1, 2, 2, 3, 4)):
            nodes += self._after_training(item)
        return nodes

    def _after_training(self, item: str) -> list[Node]:
        statements: list[list[Node]] = [
            ["scores.append(s)"],
            ["scores.append(m.evaluate(x, y, verbose=0))"],
            ["scores += [s]"],
            ["scores = scores + [s]"],
            ["scores = [*scores, round(s, 3)]"],
            [f"results[{item}] = s"],
            [f"results[{item}] = {{'s': s, 'name': m.name}}"],
            [f"results.setdefault('all', []).append(({item}, s))"],
            [("if s < best:", ["best, best_model = s, m"])],
            [("if m.evaluate(x, y, verbose=0, return_dict=True)['loss'] < best:", ["best = s"])],
            ["best = min(best, s)"],
            ["total += s"],
            ["total = total + s if total else s"],
            ["models.append(m)"],
            [f"print({item}, round(s, 2), len(scores))"],
            [f"print(f'{{{item}}}: {{s:.2f}}', sep='')"],
            [f"rows.append(dict(item={item}, s=s, n=len(rows)))"],
            [f"rows.append(({item}, float(np.mean(m.predict(x, verbose=0)))))"],
            [f"fs.append(lambda: ({item}, s))"],
            ["fs.append(lambda: m.predict(x[:2], verbose=0).tolist())"],
            ["log_of('a').append(s)"],
            ["note(s)"],
            ["note(m.evaluate(x, y, verbose=0))"],
            [f"seen.add({item})"],
            [("with open('log.txt', 'a') as f:", [f"print({item}, round(s, 2), file=f)"])],
            ["m.save_weights('last.weights.h5')"],
            ["prev = m"],
            ["hist.append([w.sum() for w in m.get_weights()])"],
            ["m.set_weights([0.5 * w for w in m.get_weights()])"],
            ["log.insert(0, s)"],
            ["log[:0] = [s]"],
            ["registry |= {len(registry): s}"],
            [("if s > 1e6:", ["continue"])],
            [
                ("try:", ["scores.append(1 / 0)"]),
                ("except ZeroDivisionError:", ["scores.append(s)"]),
            ],
            ["gc.collect()"],
            [f"best, seen = min(best, s), seen | {{{item}}}"],
            ["assert s < 1e9, 'too large'"],
            ["rows.sort(key=lambda row: str(row))"],
            ["hist.extend(round(v, 3) for v in (s, 2 * s))"],
            ["extra, s2 = trained(3, x, y)", "scores.append(s2)"],
            ["extra, s2 = trained(3, x, y, into=log)"],
            [
                "m2 = small(2)",
                "m2.fit(x, y, verbose=0)",
                "scores.append(m2.evaluate(x, y, verbose=0))",
            ],
            ["registry['last'] = registry.get('last', 0) + s"],
        ]
        if self._header.rows == "tr":
            if "oof = np.zeros_like(y)" not in self._before:
                self._before.append("oof = np.zeros_like(y)")
            statements += [["oof[te] = m.predict(x[te], verbose=0)"]] * 4
        found: list[Node] = self._pick(*statements)
        if "fs.append" in str(found):
            self._need_after("values = [f() for f in fs]")
        return found

    def _need_after(self, line: str) -> None:
        if line not in self._after:
            self._after.append(line)

    # What an analysis may see wrongly

    def _dare_before(self) -> list[Node]:
        item = self._header.item
        self._before += [
            node
            for node in (
                "rng, data, ids = np.random.default_rng(3), x.copy(), itertools.count()",
                "alias, view, held = log, data[:24], {'log': log, 'rng': rng}",
                "runs = [Run('a', log), Run('b')]",
                "kinds, memo = [Net, Run], functools.lru_cache(lambda n: len(log) + n)",
                "gen, add = rates(), log.append",
            )
            if node not in self._before
        ]
        return self._pick(
            ["x2 = x + rng.normal(size=x.shape).astype('float32')", "m.fit(x2, y, verbose=0)"],
            ["data *= 0.9", "m.fit(data, y, verbose=0)"],
            ["view += 0.1", "m.fit(data, y, verbose=0)"],
            ["d = data[:24]", "d[:4] -= 0.5", "m.fit(d, y[:24], verbose=0)"],
            [f"log.append(('begin', {item}))"],
            [f"alias.append(('begin', {item}))", "print(len(held['log']))"],
            ["print('so far', len(scores))"],
            ["print(bump())"],
            ["Net.made += 1", "print(Net.made)"],
            ["print(next(ids))"],
            [
                (
                    "if prev is not None and len(prev.get_weights()) == 4:",
                    ["m2 = small(3)", "print(len(prev.get_weights()))"],
                )
            ],
            ["small.count = getattr(small, 'count', 0) + 1", "print(small.count)"],
            ["runs[0].note('begin')", "print(runs[0].size, runs[1].size)"],
            ["kinds[0].made = kinds[0].made + 1", "print(Net.made)"],
            ["kind = Net", "kind.made += 1"],
            ["print(list(gen))"],
            ["print(memo(1))"],
            ["add(len(log))"],
            ["list.append(log, len(log))"],
            ["setattr(Net, 'made', Net.made + 1)", "print(Net.made)"],
            ["np.add(data, 1, data)", "print(float(data.sum()) > 0)"],
            ["np.clip(data, -1, 1, out=data)"],
            ["os.environ['LOOP'] = os.environ.get('LOOP', '') + 'a'"],
            [("if os.path.exists('last.weights.h5'):", ["print('there')"])],
            ["params = copy.copy(held)", "params['log'].append(1)"],
            ["list(map(log.append, (1, 2)))", "print(len(log))"],
            ["any(log.append(v) for v in (0, 0))"],
            ["memoryview(data)[0, 0]"],
            [f"print(data.clip(-1, 1, data).shape, {item})"],
            ["operators = (log.append, print)", "operators[0](len(log))"],
        )

    def _dare_after(self) -> list[Node]:
        self._dare_before()  # which are there, too
        nodes: list[Node] = []
        for _ in range(self._pick(0, 1, 1, 2)):
            nodes += self._pick(
                ["data -= 0.1"],
                ["view *= 2", "scores.append(m.evaluate(data, y, verbose=0))"],
                ["print(bump(), len(alias))"],
                ["alias.append(s)", "print(len(log))"],
                ["runs[0].note(s)", "print(runs[0].size)"],
                ["Net.made += 1"],
                ["kind = Net", "kind.made += 1"],
                ["setattr(Net, 'made', Net.made + 1)"],
                ["r3 = rng.random()"],
                ["r4 = np.random.rand()"],
                ["random.shuffle(scores)"],
                [("if len(scores) > 1:", ["break"])],
                [("if s < 0:", ["break"])],
                self._raise(),
                ["list.append(log, s)"],
                ["list(map(log.append, (s,)))"],
                ["add(s)"],
                ["print(next(ids))"],
                ["layer = layers.Dense(2)", "print(layer.name)"],
                ["SCALE = SCALE * 0.5"],
                ["small.last = s"],
                ["np.multiply(data, 0.5, data)"],
                ["os.environ['LOOP'] = str(round(s, 1))"],
                ["globals()['count'] = 3"],
                ["held['log'] = list(held['log'])", "held['log'].append(s)"],
                ["log.clear()"],
                ["for_all = sorted(log, key=str)", "for_all.append(s)"],
                ["memoryview(data)[0, 0] = 1"],
                ["m.summary(print_fn=log.append)"],
                ["log.append(memo(2))"],
                ["log += list(gen)"],
            )
        return nodes

    def _raise(self) -> list[Node]:
        self._fails = True
        kind = self._pick(
            "ValueError('two')", "KeyError(len(scores))", "m.fit(x[:, :2], y, verbose=0)"
        )
        line = kind if kind.startswith("m.") else f"raise {kind}"
        return [(f"if {self._header.units} {self._pick('> 3', '== 3', '> 4')}:", [line])]

    def _second_loop(self) -> list[Node]:
        return [
            (
                self._pick("for i, m in enumerate(models):", "for m in models:"),
                [
                    self._pick(
                        "m.fit(x, y, epochs=1, verbose=0, shuffle=False)",
                        "m.fit(x, y, verbose=0)",
                        "m.optimizer.learning_rate = 0.01",
                    ),
                    "s = m.evaluate(x, y, verbose=0)",
                    self._pick("scores.append(s)", "total += len(m.layers)", "results[m.name] = s"),
                ],
            )
        ]


# Running


@dataclasses.dataclass
class Verdict:
    """How a program did.

    Attributes:
        kind: "in turn", "partly" (some iterations as written), "as written", or "differs".
        what: In what it differs, or why iterations ran as written.
        iterations: The number of those that ran in turn.
        at_once: The most of them that were under way at a time.
    """

    kind: str
    what: str = ""
    iterations: int = 0
    at_once: int = 0


def judge(program: str, layout: str = "joined", is_eager: bool = False) -> Verdict:
    """Runs a program as written and in turn, and compares.

    Args:
        program: Its text, without the preamble.
        layout: As in `Cohort`.
        is_eager: Whether its models are not compiled, which takes a fraction of the time.
    """
    preamble = PREAMBLE + f"EAGER = {is_eager}\n"
    with _in_folder():
        written = looped.run(preamble, program, False)
    with _in_folder(), _counted() as most:
        in_turn = looped.run(preamble, program, True, layout)
    tolerance = looped.TOLERANCE if layout == "joined" else STACKED
    found = looped.difference(written.values, in_turn.values, tolerance)
    if found is not None:
        return Verdict("differs", f"{found} ({' '.join(in_turn.told)})")
    together = sum(report.together for report in in_turn.reports)
    why = "; ".join(report.why for report in in_turn.reports if report.why)
    kind = "as written" if most[0] < 2 else "partly" if why else "in turn"
    return Verdict(kind, why, together, most[0])


@contextlib.contextmanager
def _in_folder() -> Iterator[None]:
    """Lets a program find a folder of its own, and an environment without variables of its."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ.pop("LOOP", None)
        os.mkdir("own")  # noqa: PTH102
        try:
            with contextlib.chdir("own"):
                yield
        finally:
            os.environ.pop("LOOP", None)


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
    """Yields a list with the most functions in turn that are under way at a time."""
    most, usual = [0], Turns._freed

    @functools.wraps(usual)
    def counting(turns: Turns) -> list:
        most[0] = max(most[0], sum(turn.call is not None for turn in turns._under_way))
        return usual(turns)

    Turns._freed = counting
    try:
        yield most
    finally:
        Turns._freed = usual


def way_of(seed: int) -> tuple[str, bool]:
    """The layout in which a program is tried, and whether its models are not compiled."""
    return "auto" if seed % 10 == 4 else "joined", seed % 5 < 4 and seed % 10 != 4


@dataclasses.dataclass
class Report:
    """What came of a number of programs.

    Attributes:
        kinds: How many there were of each kind of verdict.
        iterations: The number of iterations that ran in turn, of programs in which several were
            under way at a time.
        why: How many ran as written, by reason.
        differing: The programs that differ, with the seed and the difference.
    """

    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    iterations: int = 0
    why: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    differing: list[str] = dataclasses.field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of programs of which iterations ran in turn."""
        in_turn = self.kinds["in turn"] + self.kinds["partly"]
        return in_turn / max(1, self.kinds.total())

    def __str__(self) -> str:
        lines = [
            f"{self.kinds.total()} programs with loops: {dict(self.kinds)}, {self.share:.0%} in "
            f"turn ({self.iterations} iterations)"
        ]
        lines += [f"  {count} as written: {why}" for why, count in self.why.most_common(30)]
        return "\n".join([*lines, *self.differing])


def drawn(seed: int) -> list[Node]:
    """Returns the program of a seed."""
    return Writer(seed).program()


def try_loops(
    count: int,
    seed: int,
    seconds: float = float("inf"),
    shrink: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Tries programs with loops.

    Args:
        count: How many.
        seed: The seed of the first; the next one's is one more.
        seconds: After so many no further one is begun.
        shrink: For how many seconds a program that differs is made smaller.
        say: Takes a line on each program.
    """
    report, seeds = Report(), range(seed, seed + count)

    def judged(seed: int, text: str) -> Verdict:
        return judge(text, *way_of(seed))

    for each, nodes, verdict in tried(seeds, seconds, say, drawn, judged):
        report.kinds[verdict.kind] += 1
        if verdict.kind in ("in turn", "partly"):
            report.iterations += verdict.iterations
        if verdict.what and verdict.kind != "differs":
            report.why[verdict.what.partition(" (line")[0]] += 1
        if verdict.kind == "differs":
            way = way_of(each)
            differs = functools.partial(_differs, way=way)
            text = text_of(shrunk(nodes, shrink, differs))
            report.differing.append(f"--- seed {each}, {way}, differs: {verdict.what}\n{text}")
            say(report.differing[-1])
    return report


def _differs(nodes: list[Node], way: tuple[str, bool]) -> bool:
    return judge(text_of(nodes), *way).kind == "differs"


def main(count: int, seed: int, *options: str) -> int:
    """Tries programs and prints what comes of them; returns how many differ."""
    if "show" in options:
        show(range(seed, seed + count), drawn)
        return 0
    report = try_loops(count, seed, shrink=60.0, say=functools.partial(print, flush=True))
    print(f"\n{keras.backend.backend()}, from seed {seed} on: {report}")
    return len(report.differing)


if __name__ == "__main__":
    sys.exit(min(1, main(*map(int, sys.argv[1:3]), *sys.argv[3:])))
