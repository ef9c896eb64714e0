"""Draws small programs, runs each as it is and inside a block, and compares all that they leave.

A program is text, drawn from a seed. What it notes, its models with their optimizers and metrics,
histories, records of callbacks, files, settings and random numbers must be in a block what they are
without one; or a `CohortError` refuses the program. `python -m tests.fuzz.programs 20 7` tries 20
programs from seed 7 on; with `show` behind it, prints them instead.
"""

import collections
import contextlib
import dataclasses
import gc
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np

import kerascohost as kc

PREAMBLE = '''\
import contextlib, copy, io, os, random, sys, tempfile, warnings
import keras, numpy as np, kerascohost as kc
from keras import layers, ops

class Plain(contextlib.nullcontext):
    """In the place of `kc.cohost`: the program as it is."""
    def __init__(self, **arguments): super().__init__()

HOLD = Plain if "plain" in sys.argv else kc.cohost
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
y = np.tanh(x.sum(axis=1, keepdims=True))
k = (y > 0).astype("int32")
buffer, cw, gain = x.copy(), {0: 1.0, 1: 2.0}, 1.0
seen, hist, models, records = [], {}, [], []

def plain(value):
    if isinstance(value, dict): return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)): return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float)): return value
    return np.array(ops.convert_to_numpy(value), dtype="float32")
def note(value): seen.append(plain(value))
def mse(t, p): return ops.mean(ops.square(ops.cast(t, p.dtype) - p))
def scaled(t, p): return gain * mse(t, p)
def layer(units=5, **kw): return layers.Dense(units, activation="tanh", **kw)
def encoded():
    encoder = keras.Sequential([keras.Input((4,)), layer(3)], name="encoder")
    return keras.Sequential([keras.Input((4,)), encoder, layers.Dense(4)])
def functional(*extra):
    inputs = outputs = keras.Input((4,))
    for each in (layer(), *extra, layers.Dense(1)): outputs = each(outputs)
    return keras.Model(inputs, outputs)
class Own(keras.Model):
    def __init__(self, width=4):
        super().__init__()
        self.width, self.factor = width, 1.0
        self.one, self.two = layer(width), layers.Dense(1)
    def call(self, a): return self.two(self.one(a)) * self.factor
class Steps(keras.Sequential):
    weight = 1.0
    def compute_loss(self, *args, **kw): return self.weight * super().compute_loss(*args, **kw)
class Record(keras.callbacks.Callback):
    def __init__(self, tag=0): super().__init__(); self.tag, self.log = tag, []
    def on_epoch_end(self, epoch, logs=None): self.log.append([epoch, self.tag, plain(logs)])
class Fails(keras.callbacks.Callback):
    def __init__(self, error, epoch): super().__init__(); self.error, self.epoch = error, epoch
    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch: raise self.error("on purpose")
class Says(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None): print("epoch", epoch)
class Rows(keras.utils.PyDataset):
    def __init__(self, x, y): super().__init__(); self.x, self.y = x, y
    def __len__(self): return 3
    def __getitem__(self, i): return self.x[16 * i:16 * i + 16], self.y[16 * i:16 * i + 16]
def batches(x, y, scale=1.0):
    while True:
        for i in range(3): yield scale * x[16 * i:16 * i + 16], y[16 * i:16 * i + 16]
'''

# A line, or the head of a compound statement with the lines under it.
Node = str | tuple[str, list]

TOLERANCE = {"joined": 2e-6, "other": 1e-4, "bfloat16": 5e-2}


@dataclasses.dataclass
class _Model:
    """What the program to come may do with a model of its own."""

    name: str
    target: str
    kind: str
    is_compiled: bool = False
    is_fitted: bool = False
    is_portable: bool = False
    has_schedule: bool = False

    @property
    def is_built(self) -> bool:
        """Whether it has weights, or deferred fits will have made them when they are read."""
        return self.is_fitted or self.kind not in ("own", "unbuilt")


class Writer:
    """Writes a program.

    Args:
        seed: What the program is drawn from.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._models: list[_Model] = []
        self._numbers: collections.Counter[str] = collections.Counter()
        self._known: dict[str, list[str]] = collections.defaultdict(list)

    def program(self) -> list[Node]:
        """The statements of a program."""
        statements = [self._new_model()]
        for _ in range(self._random.randint(2, 6)):
            statements.append(self._statement())
        if self._chance(0.1):
            statements.append(self._raises())
        nodes = self._around(statements)
        if self._chance(0.4):
            return [
                ("def main():", ["global gain, buffer, x", *nodes, "return locals()"]),
                "found = main()",
            ]
        return nodes

    def _around(self, statements: list[list[Node]]) -> list[Node]:
        """Puts the block around all of the statements, or around some in their midst."""
        first, last = 0, len(statements)
        if self._chance(0.4):
            first = self._random.randrange(last)
            last = self._random.randint(first + 1, last)
        layout = self._pick("", "", "", "", 'layout="stacked"', 'layout="auto"', "verbose=0")
        before, inside, after = (
            [node for statement in part for node in statement]
            for part in (statements[:first], statements[first:last], statements[last:])
        )
        return [*before, (f"with HOLD({layout}):", inside), *after]

    # Choices

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _pick(self, *values: Any) -> Any:
        return self._random.choice(values)

    def _name(self, stem: str) -> str:
        self._numbers[stem] += 1
        name = f"{stem}{self._numbers[stem]}"
        self._known[stem].append(name)
        return name

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Names made within are not known behind it."""
        outside = {stem: list(names) for stem, names in self._known.items()}
        yield
        self._known = collections.defaultdict(list, outside)

    def _any(self, *needs: str) -> _Model | None:
        """A model that is all that is needed."""
        found = [m for m in self._models if all(getattr(m, need) for need in needs)]
        return self._pick(*found) if found else None

    def _statement(self) -> list[Node]:
        kinds: dict[Callable[[], list[Node]], int] = {
            self._new_model: 3,
            self._fit: 9,
            self._loop: 3,
            self._look: 6,
            self._change: 4,
            self._process: 3,
            self._settings: 2,
            self._argument_changes: 2,
            self._copies: 2,
            self._share: 1,
            self._handled: 1,
            self._scoped: 2,
        }
        [kind] = self._random.choices(list(kinds), weights=list(kinds.values()))
        return kind()

    # Models

    def _new_model(self) -> list[Node]:
        kinds = ("sequential", "functional", "own", "unbuilt", "encoded", "steps")
        kind = self._pick("sequential", *kinds)
        model = _Model(
            self._name("m"), "x" if kind == "encoded" else self._pick("y", "y", "k"), kind
        )
        extra = self._pick(
            "", "", "", "layers.Dropout(0.3)", "layer(4)", "layers.LayerNormalization()"
        )
        inside = f"layer(), {extra + ', ' if extra else ''}layers.Dense(1)"
        made = {
            "sequential": f"keras.Sequential([keras.Input((4,)), {inside}])",
            "functional": f"functional({extra})",
            "own": f"Own({self._pick(3, 4)})",
            "unbuilt": f"keras.Sequential([{inside}])",
            "encoded": "encoded()",
            "steps": f"Steps([keras.Input((4,)), {inside}])",
        }[kind]
        nodes: list[Node] = [f"{model.name} = {made}", self._compile(model)]
        self._models.append(model)
        return nodes

    def _compile(self, model: _Model, *losses: str) -> str:
        rate = self._pick(0.1, 0.05, 0.01)
        optimizer = self._pick(
            '"sgd"',
            '"adam"',
            f"keras.optimizers.SGD({rate}, momentum=0.5)",
            f"keras.optimizers.Adam({rate})",
            f"keras.optimizers.RMSprop({rate})",
            f"keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay({rate}, 5, 0.5))",
        )
        known = ['"mse"', '"mae"', "keras.losses.Huber()", "mse", "scaled"]
        known.append("lambda t, p: gain * mse(t, p)")
        if model.target == "k":
            known.append("keras.losses.BinaryCrossentropy(from_logits=True)")
        loss = self._pick(*(losses or known))
        more = self._pick(
            "", "", ', metrics=["mae"]', ", metrics=[keras.metrics.MeanSquaredError()]"
        )
        if self._chance(0.1):
            more += ", steps_per_execution=2"
        model.is_compiled = True
        # An exception ends a program, so that most should raise none.
        model.has_schedule = "Decay" in optimizer and not self._chance(0.1)
        model.is_portable = '"' in loss and model.kind not in ("own", "steps", "unbuilt")
        return f"{model.name}.compile({optimizer}, loss={loss}{more})"

    # Fits

    def _fit(self, model: _Model | None = None, result: str | None = None) -> list[Node]:
        model = model or self._any("is_compiled")
        if model is None:
            return self._new_model()
        lines: list[Node] = []
        data, arguments = self._data(model.target)
        if data == "buffer" and self._chance(0.7):
            lines.append(f"buffer[:] = x * {self._pick(0.5, 1.5, -1.0)}")
        arguments |= {"epochs": self._pick(1, 2, 2, 3), "verbose": 0}
        arguments["shuffle"] = self._pick(True, False)
        callbacks = self._callbacks(model, lines)
        if callbacks:
            arguments["callbacks"] = f"[{callbacks}]"
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        call = f"{model.name}.fit({data}, {given})"
        results = ["{}", "h = {}", f"hist['{self._name('fit')}'] = {{}}"]
        if self._chance(0.3):
            results.append("note({}.history)")
        result = result or self._pick(*results)
        if result == "h = {}":
            result = f"{self._name('h')} = {{}}"
        lines.append(result.format(call))
        model.is_fitted = True
        return lines

    def _data(self, target: str) -> tuple[str, dict[str, Any]]:
        source = self._pick("x", "x", "x", "x", "buffer", "rows", "generator", "tensor", "frame")
        if source == "rows":
            return f"Rows(x, {target})", {}
        if source == "generator":
            return f"batches(x, {target})", {"steps_per_epoch": self._pick(2, 3)}
        data, arguments = source, {"batch_size": self._pick(8, 16, 20)}
        if source == "tensor":
            data = "ops.convert_to_tensor(x)"
        if source == "frame":
            data = "__import__('pandas').DataFrame(x)"
        more = self._pick("", "", "split", "validation", "class", "sample", "steps", "begin")
        if more == "split" and source in ("x", "buffer"):
            arguments["validation_split"] = 0.25
        if more == "validation":
            arguments["validation_data"] = f"(x[:16], {target}[:16])"
        if more == "class" and target == "k":
            arguments["class_weight"] = "cw"
        if more == "sample" and target != "x":
            arguments["sample_weight"] = "np.linspace(0, 1, 48)"
        if more == "steps":
            arguments["steps_per_epoch"] = 2
        if more == "begin":
            arguments["initial_epoch"] = 1
        return f"{data}, {target}", arguments

    def _callbacks(self, model: _Model, lines: list[Node]) -> str:
        found = []
        for _ in range(self._pick(0, 0, 0, 1, 1, 2)):
            kind = self._pick("record", "record", "stop", "schedule", "lambda", "reduce", "file")
            if model.has_schedule and kind in ("schedule", "reduce"):
                continue
            if kind == "record":
                name = self._name("r")
                lines.append(f"{name} = Record({self._pick(0, 1)}); records.append({name})")
                found.append(name)
            elif kind == "stop":
                name = self._name("s")
                lines.append(
                    f'{name} = keras.callbacks.EarlyStopping("loss", patience={self._pick(0, 1)}, '
                    f"min_delta={self._pick(0.0, 9.0)}, restore_best_weights={self._chance(0.5)})"
                )
                found.append(name)
            elif kind == "schedule":
                rate = self._pick("0.1 / (e + 1)", "r * 0.5", "0.02 * gain")
                found.append(f"keras.callbacks.LearningRateScheduler(lambda e, r: {rate})")
            elif kind == "lambda":
                log = self._name("log")
                lines.append(f"{log} = []; records.append({log})")
                to = self._pick(f"{log}", "to")
                bound = f", to={log}" if to == "to" else ""
                found.append(
                    "keras.callbacks.LambdaCallback(on_epoch_end="
                    f"lambda e, logs{bound}: {to}.append([e, plain(logs)]))"
                )
            elif kind == "reduce":
                found.append('keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=9.0)')
            else:
                file = self._pick("best", "last", model.name)
                found.append(
                    f'keras.callbacks.ModelCheckpoint("{file}.weights.h5", monitor="loss", '
                    f"save_weights_only=True, save_best_only={self._chance(0.5)})"
                )
        return ", ".join(found)

    def _loop(self) -> list[Node]:
        kind = self._pick("losses", "losses", "losses", "folds", "rates", "phases", "rounds")
        if kind in ("rates", "phases", "rounds"):
            return self._phases(kind)
        made = self._new_model()
        model = self._models[-1]
        nodes: list[Node] = made[:1]
        if kind == "folds":
            head = "for fold in range(2):"
            nodes.append(made[1])
            call = f"{model.name}.fit(x[fold::2], {model.target}[fold::2], epochs=2, verbose=0)"
            nodes.append(f"hist['fold', fold] = {call}")
            nodes += self._look_at(model) if self._chance(0.5) else []
        else:
            head = f"for q in ({self._pick('0.5, 2.0', '0.1, 0.5, 3.0')}):"
            losses = ("lambda t, p: q * mse(t, p)", "lambda t, p, q=q: q * mse(t, p)")
            own = "keras.losses.Huber(delta=q)"
            nodes.append(self._compile(model, losses[0], losses[0], losses[1], own))
            nodes += self._fit(model, "hist['q', q] = {}")
            nodes += self._look_at(model) if self._chance(0.3) else []
        nodes.append(f"models.append({model.name})")
        model.is_fitted = True
        return [(head, nodes)]

    def _phases(self, kind: str) -> list[Node]:
        model = self._any("is_compiled")
        if model is None:
            return self._new_model()
        if kind == "rates" and not model.has_schedule:
            change = f"{model.name}.optimizer.learning_rate = rate"
            return [("for rate in (0.1, 0.01):", [change, *self._fit(model)])]
        if kind != "rounds":
            loss = "lambda t, p: q * mse(t, p)"
            return [("for q in (2.0, 0.5):", [self._compile(model, loss), *self._fit(model)])]
        return [("for _ in range(2):", [*self._fit(model), *self._look_at(model)])]

    # Looks and changes

    def _look(self) -> list[Node]:
        model = self._any("is_fitted") or self._any("is_compiled")
        return self._look_at(model) if model else self._new_model()

    def _look_at(self, model: _Model) -> list[Node]:
        m, data = model.name, f"x, {model.target}"
        looks = [
            f"note({m}.evaluate({data}, verbose=0))",
            f"note({m}.predict(x[:8], verbose=0))",
            f"note({m}(x[:8]))",
            f"note({m}.optimizer.iterations)",
            f"note({m}.optimizer.learning_rate)",
            f"note({m}.train_on_batch(x[:8], {model.target}[:8]))",
            f"note({m}.test_on_batch({data}))",
            f"note([{m}.name, len({m}.layers), {m}.built])",
        ]
        if model.is_built:
            looks += [
                f"note({m}.get_weights())",
                f"note({m}.layers[0].get_weights())",
                f"note([v.numpy() for v in {m}.trainable_variables])",
                f"note({m}.layers[-1].kernel)",
                f"note({m}.count_params())",
            ]
        if model.is_fitted:
            looks += [f"note({m}.get_metrics_result())", f"note({m}.history.history)"]
        if model.kind == "encoded":
            looks += [f"note({m}.layers[0].predict(x[:8], verbose=0))"] * 5
        if records := self._known["r"]:
            looks.append(f"note({self._pick(*records)}.log)")
        if stops := self._known["s"]:
            looks.append(f"note({self._pick(*stops)}.stopped_epoch)")
        if histories := self._known["h"]:
            looks += [f"note({self._pick(*histories)}.history)"] * 2
        return [self._pick(*looks)]

    def _change(self) -> list[Node]:
        model = self._any("is_compiled")
        if model is None:
            return self._new_model()
        m = model.name
        freeze = f"{m}.layers[0].trainable = {self._chance(0.2)}"
        changes: list[list[Node]] = [
            [freeze, *(["compile"] if self._chance(0.8) else [])],
            [freeze, "compile"],
            ["compile"],
            [f"{m}.stop_training = True"],
            [f"{m}.reset_metrics()"],
        ]
        if model.is_built:
            size = 4 if model.target == "x" else 1
            changes += [[f"{m}.set_weights([0.5 * w for w in {m}.get_weights()])"]]
            changes += [[f"{m}.layers[-1].bias.assign_add([0.1] * {size})"]]
        if not model.has_schedule:
            rate = self._pick(0.2, 0.001)
            changes += [[f"{m}.optimizer.learning_rate = {rate}"]] * 2
            changes += [[f"{m}.optimizer.learning_rate.assign({rate})"]]
        if model.kind == "own":
            changes += [[f"{m}.factor = {self._pick(0.5, 2.0)}"]] * 3
        if model.kind == "steps":
            changes += [[f"{m}.weight = {self._pick(0.5, 3.0)}"]] * 3
        nodes = self._pick(*changes)
        return [self._compile(model) if node == "compile" else node for node in nodes]

    def _argument_changes(self) -> list[Node]:
        changes = [
            f"gain = {self._pick(0.5, 2.0, 3.0)}",
            f"gain = {self._pick(0.5, 2.0, 3.0)}",
            f"buffer[:] = x * {self._pick(0.1, 3.0)}",
            f"buffer *= {self._pick(0.5, 2.0)}",
            f"cw[1] = {self._pick(0.5, 5.0)}",
        ]
        if records := self._known["r"]:
            changes += [f"{self._pick(*records)}.tag = 7"] * 2
        if stops := self._known["s"]:
            changes += [f"{self._pick(*stops)}.patience = 0"] * 2
        return [self._pick(*changes)]

    def _copies(self) -> list[Node]:
        model = self._any("is_compiled", "is_built")
        if model is None:
            return self._new_model()
        new = dataclasses.replace(model, name=self._name("m"))
        m, n = model.name, new.name
        file = self._pick("one", "two")
        kinds = ["weights", "best"]
        if model.is_portable:
            kinds += ["clone", "clone", "clone weights", "deepcopy", "file", "file", "kc"]
        kind = self._pick(*kinds)
        self._models.append(new)
        if kind == "clone":
            return [f"{n} = keras.models.clone_model({m})", self._compile(new)]
        if kind == "clone weights":
            copied = f"{n}.set_weights({m}.get_weights())"
            return [f"{n} = keras.models.clone_model({m})", copied, self._compile(new)]
        if kind == "deepcopy":
            return [f"{n} = copy.deepcopy({m})"]
        if kind == "file":
            load = self._pick("keras.models.load_model", "keras.saving.load_model")
            return [f'{m}.save("{file}.keras")', f'{n} = {load}("{file}.keras")']
        if kind == "kc":
            return [f"[{n}] = kc.clones({m}, 1, seed=3)"]
        self._models.pop()
        if kind == "best":
            name = self._pick("best", "last", m)
            return [
                (
                    f'if os.path.exists("{name}.weights.h5"):',
                    [f'{m}.load_weights("{name}.weights.h5")'],
                )
            ]
        save = f'{m}.save_weights("{file}.weights.h5")'
        return [save, *self._fit(model), f'{m}.load_weights("{file}.weights.h5")']

    def _share(self) -> list[Node]:
        model = self._any("is_built")
        if model is None:
            return self._new_model()
        new = _Model(self._name("m"), "y", "sequential")
        self._models.append(new)
        part = {"own": "one", "functional": "layers[1]"}.get(model.kind, "layers[0]")
        layer = f"{model.name}.{part}"
        made = f"{new.name} = keras.Sequential([keras.Input((4,)), {layer}, layers.Dense(1)])"
        freeze: list[Node] = [f"{layer}.trainable = False"] if self._chance(0.4) else []
        return [*freeze, made, self._compile(new), *self._fit(new)]

    # The process

    def _process(self) -> list[Node]:
        return [
            self._pick(
                f"keras.utils.set_random_seed({self._random.randint(0, 9)})",
                f"keras.utils.set_random_seed({self._random.randint(0, 9)})",
                f"np.random.seed({self._random.randint(0, 9)})",
                f"random.seed({self._random.randint(0, 9)})",
                "note(np.random.normal(size=3))",
                "note(np.random.permutation(48)[:5])",
                "note(random.random())",
                "note(keras.random.normal((3,)))",
                "x = x[np.random.permutation(48)]",
                "note(keras.random.uniform((2,), seed=4))",
            )
        ]

    def _settings(self) -> list[Node]:
        return [
            self._pick(
                f"keras.config.set_epsilon({self._pick(1e-7, 1e-3, 0.1)})",
                f"keras.config.set_epsilon({self._pick(1e-7, 1e-3, 0.1)})",
                'os.makedirs("sub", exist_ok=True); os.chdir("sub")',
                'keras.config.set_dtype_policy("mixed_bfloat16")',
                'keras.config.set_dtype_policy("float32")',
                'warnings.simplefilter("ignore")',
            )
        ]

    # Compound statements

    def _handled(self) -> list[Node]:
        looked = self._look()
        if self._chance(0.3):
            looked = [*looked, "raise LookupError"]
        handler = self._pick("except Exception:", "except (ValueError, LookupError):")
        return [("try:", looked), (handler, ["note('failed')"])]

    def _raises(self) -> list[Node]:
        if self._chance(0.3):
            return ["raise LookupError"]
        model = self._any("is_compiled")
        if model is None or self._chance(0.4):
            return self._look()
        error = self._pick("KeyError", "TypeError", "ZeroDivisionError")
        arguments = f"epochs=2, verbose=0, callbacks=[Fails({error}, {self._pick(0, 1)})]"
        model.is_fitted = True
        return [f"{model.name}.fit(x, {model.target}, {arguments})"]

    def _scoped(self) -> list[Node]:
        model = self._any("is_compiled")
        if model is None:
            return self._new_model()
        kind = self._pick("stdout", "folder", "warnings", "device", "finally", "function")
        if kind == "function":
            name = self._name("train")
            with self._apart():
                inside = self._fit(model)
            return [(f"def {name}({model.name}, q):", inside), f"{name}({model.name}, 2.0)"]
        if kind == "stdout":
            call = f"{model.name}.fit(x, {model.target}, verbose=0, callbacks=[Says()])"
            head = "with contextlib.redirect_stdout(io.StringIO()) as out:"
            return [(head, [call, "print('inside')"]), "note(out.getvalue())"]
        if kind == "folder":
            saved = 'ModelCheckpoint(f"{folder}/a.weights.h5", save_weights_only=True)'
            callbacks = f"[keras.callbacks.{saved}]"
            inside = [f"{model.name}.fit(x, {model.target}, verbose=0, callbacks={callbacks})"]
            if self._chance(0.5):
                inside.append(f'{model.name}.load_weights(f"{{folder}}/a.weights.h5")')
            return [("with tempfile.TemporaryDirectory() as folder:", inside)]
        inside, after = self._fit(model), list[Node]()
        if kind == "warnings":
            head = "with warnings.catch_warnings():"
            inside = ['warnings.simplefilter("ignore")', *inside]
        elif kind == "device":
            head = 'with keras.device("cpu:0"):'
        else:
            head, after = "try:", [("finally:", ["note('done')"])]
        return [(head, inside), *after]


def text_of(nodes: list[Node], indent: str = "") -> str:
    """The program's text."""
    lines = []
    for node in nodes:
        if isinstance(node, str):
            lines.append(f"{indent}{node}\n")
        else:
            head, inside = node
            lines.append(f"{indent}{head}\n{text_of(inside or ['pass'], indent + '    ')}")
    return "".join(lines)


# Running


@dataclasses.dataclass
class Outcome:
    """What a program leaves.

    Attributes:
        left: All that is compared, by a text that says what it is; nothing after an exception.
        error: The exception that ended it.
        warned: The texts of the warnings.
    """

    left: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: Exception | None = None
    warned: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def _fresh_process() -> Iterator[None]:
    """Lets a program find a folder and settings of its own, and puts back what it changes."""
    keras.utils.clear_session()
    gc.collect()
    folder, epsilon = Path.cwd(), keras.config.epsilon()
    policy = keras.config.dtype_policy()
    with tempfile.TemporaryDirectory() as own, warnings.catch_warnings():
        os.chdir(own)
        try:
            yield
        finally:
            os.chdir(folder)
            keras.config.set_epsilon(epsilon)
            keras.config.set_dtype_policy(policy)


def run(program: str, hold: Callable | None = None) -> Outcome:
    """Runs a program.

    Args:
        program: Its text, without the preamble.
        hold: What it finds as `HOLD`; by default nothing holds its fits.
    """
    outcome = Outcome()
    with _fresh_process(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        root = Path.cwd()
        names: dict[str, Any] = {"__name__": "program"}
        exec(compile(PREAMBLE, "<preamble>", "exec"), names)
        names["HOLD"] = hold or names["Plain"]
        try:
            exec(compile(program, "<program>", "exec"), names)
        except Exception as error:
            outcome.error = error
        else:
            outcome.left = dict(_left(names, root))
    outcome.warned = [str(each.message) for each in warned]
    return outcome


def _left(names: dict[str, Any], root: Path) -> Iterator[tuple[str, Any]]:
    yield "folder", str(Path.cwd().relative_to(root))
    yield "files", sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    yield "epsilon", keras.config.epsilon()
    yield "dtype policy", keras.config.dtype_policy().name
    yield "NumPy's next draw", np.random.random()
    yield "Python's next draw", random.random()
    yield "Keras's next draw", keras.ops.convert_to_numpy(keras.random.normal((1,)))
    yield "noted", names["seen"]
    found = {**names, **(names.get("found") or {})}
    found |= {f"models[{i}]": model for i, model in enumerate(names["models"])}
    for name, value in found.items():
        if isinstance(value, keras.Model):
            yield from _of_model(name, value)
        elif isinstance(value, keras.callbacks.History):
            yield name, [value.epoch, value.history, value.params]
    for name, value in names["hist"].items():
        yield f"hist[{name!r}]", [value.epoch, value.history, value.params]
    yield "records", [getattr(each, "log", each) for each in names["records"]]


def _of_model(name: str, model: keras.Model) -> Iterator[tuple[str, Any]]:
    optimizer = getattr(model, "optimizer", None)
    kinds = {
        "variables": model.variables,
        "optimizer": optimizer.variables if optimizer else [],
        "metrics": model.metrics_variables,
    }
    for kind, variables in kinds.items():
        yield f"{kind} of {name}", [keras.ops.convert_to_numpy(v.value) for v in variables]
    yield f"trainable of {name}", [layer.trainable for layer in model.layers]
    yield f"stop_training of {name}", getattr(model, "stop_training", None)
    history = getattr(model, "history", None)
    yield f"history of {name}", history and history.history


def difference(one: Any, other: Any, tolerance: float) -> str | None:
    """Says in what two values differ, or returns `None`."""
    if isinstance(one, dict) and isinstance(other, dict):
        if list(one) != list(other):
            return f"{list(one)} alone, {list(other)} in the block"
        parts = [(f"[{key!r}]", one[key], other[key]) for key in one]
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return f"{one!r:.300} alone, {other!r:.300} in the block"
        parts = [(f"[{i}]", *pair) for i, pair in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, (float, np.ndarray, np.generic)):
        one, other = np.asarray(one), np.asarray(other)
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{one.dtype} {one.shape} alone, {other.dtype} {other.shape} in the block"
        close = np.allclose(one.astype(float), other.astype(float), tolerance, tolerance, True)
        return None if close else f"{one} alone, {other} in the block"
    else:
        return None if one == other else f"{one!r:.300} alone, {other!r:.300} in the block"
    for where, mine, its in parts:
        found = difference(mine, its, tolerance)
        if found is not None:
            return where + (found if found.startswith("[") else f": {found}")
    return None


@dataclasses.dataclass
class Verdict:
    """How a program did in a block.

    Attributes:
        kind: "same", "raised" (the same type of exception), "refused", "told" (it differs, and a
            warning says so) or "differs".
        what: In what it differs, or why it was refused.
    """

    kind: str
    what: str = ""


AnyVerdict = TypeVar("AnyVerdict")  # one of these, or that on another kind of programs


def judge(program: str) -> Verdict:
    """Runs a program alone and inside a block, and compares."""
    alone, deferred = run(program), run(program, kc.cohost)
    if isinstance(deferred.error, kc.CohortError):
        return Verdict("refused", f"{deferred.error}")
    if alone.error or deferred.error:
        if type(alone.error) is type(deferred.error):
            return Verdict("raised", f"{alone.error!r:.100}")
        return Verdict("differs", f"{alone.error!r} alone, {deferred.error!r} in the block")
    layout = "other" if "layout=" in program else "joined"
    tolerance = TOLERANCE["bfloat16" if "bfloat16" in program else layout]
    found = difference(alone.left, deferred.left, tolerance)
    if found is None:
        return Verdict("same")
    told = any("drew random numbers" in text for text in deferred.warned)
    return Verdict("told" if told else "differs", found)


def _smaller(nodes: list[Node]) -> Iterator[list[Node]]:
    """The programs without one of the statements, or with a compound one's inside in its stead."""
    for i, node in reversed(list(enumerate(nodes))):
        before, after = nodes[:i], nodes[i + 1 :]
        yield [*before, *after]
        if isinstance(node, tuple):
            head, inside = node
            for fewer in _smaller(inside):
                yield [*before, (head, fewer), *after]


def differs(nodes: list[Node]) -> bool:
    """Says whether a program leaves something else in a block than without one."""
    return judge(text_of(nodes)).kind == "differs"


def shrunk(
    nodes: list[Node], seconds: float, differs: Callable[[list[Node]], bool] = differs
) -> list[Node]:
    """The program with statements left out, as long as it still differs, and there is time."""
    end = time.monotonic() + seconds
    is_less = True
    while is_less:
        is_less = False
        for fewer in _smaller(nodes):
            if time.monotonic() > end:
                return nodes
            if differs(fewer):
                nodes, is_less = fewer, True
                break
    return nodes


@dataclasses.dataclass
class Report:
    """What came of a number of programs.

    Attributes:
        kinds: How many there were of each kind of verdict.
        refused: How many were refused, by reason.
        raised: How many ended by an exception in both, by its type.
        differing: The programs that differ, with the seed and the difference.
    """

    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    raised: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    differing: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{sum(self.kinds.values())} programs: {dict(self.kinds)}"]
        lines += [f"{count} refused: {reason}" for reason, count in self.refused.most_common()]
        lines += [f"{count} raised {kind}" for kind, count in self.raised.most_common()]
        return "\n".join([*lines, *self.differing])


def _reason(error: str) -> str:
    """What a refusal says, without the names that are of the one program."""
    received = error.partition("Received: ")[2] or error
    what = re.sub(r"0x[0-9a-f]+|(?<=[a-z])\d+|-?\d+(\.\d+)?(e-?\d+)?", "#", received)
    return f"{what:.200}".replace("\n", " ")


def tried(
    seeds: Iterable[int],
    seconds: float,
    say: Callable[[str], None],
    drawn: Callable[[int], list[Node]],
    judged: Callable[[int, str], AnyVerdict],
) -> Iterator[tuple[int, list[Node], AnyVerdict]]:
    """Yields the seeds of programs, the programs, and the verdicts on them.

    Args:
        seeds: The seeds.
        seconds: After so many no further one is begun.
        say: Takes a line on each program.
        drawn: Returns the program of a seed.
        judged: Returns the verdict on a program, given its seed and its text.
    """
    end = time.monotonic() + seconds
    for each in seeds:
        if time.monotonic() > end:
            return
        nodes = drawn(each)
        verdict = judged(each, text_of(nodes))
        say(f"{each}: {verdict.kind} {verdict.what}")
        yield each, nodes, verdict


def drawn(seed: int) -> list[Node]:
    """Returns the program of a seed."""
    return Writer(seed).program()


def show(seeds: Iterable[int], drawn: Callable[[int], list[Node]]) -> None:
    """Prints programs."""
    for seed in seeds:
        print(f"# seed {seed}\n{text_of(drawn(seed))}")


def try_programs(
    count: int,
    seed: int,
    seconds: float = float("inf"),
    shrink: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Tries programs.

    Args:
        count: How many.
        seed: The seed of the first; the next one's is one more.
        seconds: After so many no further one is begun.
        shrink: For how many seconds a program that differs is made smaller.
        say: Takes a line on each program.
    """
    report, seeds = Report(), range(seed, seed + count)
    for each, nodes, verdict in tried(seeds, seconds, say, drawn, lambda _, text: judge(text)):
        report.kinds[verdict.kind] += 1
        if verdict.kind == "refused":
            report.refused[_reason(verdict.what)] += 1
        if verdict.kind == "raised":
            report.raised[verdict.what.partition("(")[0]] += 1
        if verdict.kind == "differs":
            text = text_of(shrunk(nodes, shrink))
            report.differing.append(f"--- seed {each} differs: {verdict.what}\n{text}")
            say(report.differing[-1])
    return report


def main(count: int, seed: int, *options: str) -> int:
    """Tries programs and prints what comes of them; returns how many differ."""
    if "show" in options:
        show(range(seed, seed + count), drawn)
        return 0
    report = try_programs(count, seed, shrink=60.0, say=lambda line: print(line, flush=True))
    print(f"\n{keras.backend.backend()}, from seed {seed} on: {report}")
    return len(report.differing)


if __name__ == "__main__":
    sys.exit(min(1, main(*map(int, sys.argv[1:3]), *sys.argv[3:])))
