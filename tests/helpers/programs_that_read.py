"""Programs that change something between a deferred `fit` and its training, and ones that do not."""

# ruff: noqa: E501  # programs as people write them, each in few lines

PREAMBLE = """
import numpy as np, keras, functools
from keras import ops
L = keras.layers
rng0 = np.random.default_rng(0)
x = rng0.normal(size=(96, 4)).astype("float32"); y = x.sum(1, keepdims=True).astype("float32")
def pinball(q, t, p):
    e = t - p
    return ops.mean(ops.maximum(q * e, (q - 1) * e))
count = 0
def net(extra=None):
    global count
    count += 1
    init = keras.initializers.GlorotUniform(seed=count)
    return keras.Sequential([keras.Input((4,)), L.Dense(8, activation="tanh", kernel_initializer=init), *( [extra] if extra else []), L.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(seed=7))])
def compiled(loss="mse", extra=None, **kw):
    m = net(extra); m.compile(keras.optimizers.SGD(0.05), loss=loss, **kw); return m
FIT = dict(epochs=3, batch_size=32, verbose=0, shuffle=False)
models, extra = [], []
"""

# Must end as they do alone, or be refused.
CHANGED = {
    "closure q in a function's loop": """
def main():
    with HOLD():
        for q in (.1, .5, .9):
            m = compiled(lambda t, p: pinball(q, t, p)); m.fit(x, y, **FIT); models.append(m)
main()
""",
    "loop at module level (global q)": """
with HOLD():
    for q in (.1, .5, .9):
        m = compiled(lambda t, p: pinball(q, t, p)); m.fit(x, y, **FIT); models.append(m)
""",
    "global read by a layer's call": """
class Scale(L.Layer):
    def call(self, a): return a * SCALE
with HOLD():
    for SCALE in (.5, 1., 2.):
        m = compiled(extra=Scale()); m.fit(x, y, **FIT); models.append(m)
""",
    "LearningRateScheduler lambda reads loop var": """
with HOLD():
    for lr in (.1, .01, .001):
        m = compiled(); m.fit(x, y, callbacks=[keras.callbacks.LearningRateScheduler(lambda e, r: lr / (e + 1))], **FIT); models.append(m)
""",
    "own LearningRateSchedule reads global": """
class S(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step): return BASE / (1. + ops.cast(step, "float32"))
with HOLD():
    for BASE in (.2, .02):
        m = net(); m.compile(keras.optimizers.SGD(S()), loss="mse"); m.fit(x, y, **FIT); models.append(m)
""",
    "layer.trainable = False after fit": """
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, **FIT); m.layers[0].trainable = False; models.append(m)
extra = [m.layers[0].trainable for m in models]
""",
    "optimizer.learning_rate = after fit": """
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, **FIT); m.optimizer.learning_rate = 1e-4; models.append(m)
extra = [float(m.optimizer.learning_rate) for m in models]
""",
    "attribute of own callback changed": """
class Cut(keras.callbacks.Callback):
    factor = 1.
    def on_epoch_begin(self, e, logs=None): self.model.optimizer.learning_rate = .05 * self.factor
with HOLD():
    for f in (1., .1):
        cb = Cut(); cb.factor = f; m = compiled(); m.fit(x, y, callbacks=[cb], **FIT); models.append(m); cb.factor = 100.
extra = [cb.factor]
""",
    "x refilled in place in the loop": """
buf = np.empty_like(x)
with HOLD():
    for s in (1., 2., 3.):
        buf[:] = x * s; m = compiled(); m.fit(buf, y, **FIT); models.append(m)
""",
    "x shuffled in place after the call": """
buf = x.copy()
with HOLD():
    for s in range(2):
        m = compiled(); m.fit(buf, y, **FIT); models.append(m); np.random.default_rng(s).shuffle(buf)
""",
    "class_weight dict mutated": """
cw = {0: 1., 1: 1.}; yy = (y > 0).astype("float32")
with HOLD():
    for w in (1., 5.):
        cw[1] = w; m = compiled(); m.fit(x, yy, class_weight=cw, **FIT); models.append(m)
""",
    "METRICS list mutated after compile+fit": """
METRICS = ["mae"]
with HOLD():
    for n in ("mape", "mse"):
        m = compiled(metrics=METRICS); h = m.fit(x, y, **FIT); models.append(m); METRICS.append(n); extra.append(h)
extra = [sorted(h.history) for h in extra]
""",
    "attribute of a shared loss object": """
class Q(keras.losses.Loss):
    def call(self, t, p): return pinball(self._q, t, p)
q = Q()
with HOLD():
    for v in (.1, .5, .9):
        q._q = v; m = compiled(q); m.fit(x, y, **FIT); models.append(m)
""",
    "config dict read by the loss": """
CFG = {"q": .5, "opt": {"k": 1}}
def loss(t, p): return CFG["opt"]["k"] * pinball(CFG["q"], t, p)
with HOLD():
    for v in (.1, .9):
        CFG["q"] = v; CFG["opt"]["k"] = v * 10; m = compiled(loss); m.fit(x, y, **FIT); models.append(m)
""",
    "helper of the loss defined anew": """
def loss(t, p): return helper(t - p)
with HOLD():
    def helper(e): return ops.mean(e * e)
    m = compiled(loss); m.fit(x, y, **FIT); models.append(m)
    def helper(e): return ops.mean(ops.abs(e))
    m = compiled(loss); m.fit(x, y, **FIT); models.append(m)
""",
    "attribute of an own module": """
import settings_of_a_user as mycfg
def loss(t, p): return pinball(mycfg.q, t, p)
with HOLD():
    for mycfg.q in (.1, .5, .9):
        m = compiled(loss); m.fit(x, y, **FIT); models.append(m)
""",
    "PyDataset reads an attribute changed later": """
class D(keras.utils.PyDataset):
    def __init__(self): super().__init__(); self.scale = 1.
    def __len__(self): return 3
    def __getitem__(self, i): return x[i*32:i*32+32] * self.scale, y[i*32:i*32+32]
f = dict(FIT); f.pop("batch_size")
with HOLD():
    for s in (1., 3.):
        d = D(); d.scale = s; m = compiled(); m.fit(d, **f); models.append(m); d.scale = 50.
""",
    "generator reads loop var (closure)": """
f = dict(FIT, steps_per_epoch=3); f.pop("batch_size")
def main():
    def gen():
        while True: yield x[:32] * s, y[:32]
    with HOLD():
        for s in (1., 3.):
            m = compiled(); m.fit(gen(), **f); models.append(m)
main()
""",
    "partial over a list changed later": """
qs = [.5]
with HOLD():
    for v in (.1, .9):
        qs[0] = v; m = compiled(functools.partial(lambda w, t, p: pinball(w[0], t, p), qs)); m.fit(x, y, **FIT); models.append(m)
""",
    "DataFrame data changed in place": """
import pandas as pd
df = pd.DataFrame(x, columns=list("abcd"))
with HOLD():
    for s in (1., 2.):
        df["a"] = x[:, 0] * s; m = compiled(); m.fit(df, y, **FIT); models.append(m); df.loc[:, "b"] = 0.
""",
    "own train_step reads self.beta": """
class M(keras.Sequential):
    def compute_loss(self, *a, **k): return self.beta * super().compute_loss(*a, **k)
with HOLD():
    for b in (1., 3.):
        m = M([keras.Input((4,)), L.Dense(1, kernel_initializer="zeros")]); m.beta = b; m.compile(keras.optimizers.SGD(.02), "mse"); m.fit(x, y, **FIT); m.beta = 0.; models.append(m)
extra = [m.beta for m in models]
""",
    "Dropout rate changed after fit": """
with HOLD():
    for i in range(2):
        m = compiled(extra=L.Dropout(0.)); m.fit(x, y, **FIT); m.layers[1].rate = .9; models.append(m)
extra = [m.layers[1].rate for m in models]
""",
    "list bound anew per fit, callback appends": """
with HOLD():
    for i in range(2):
        seen = []; m = compiled(); m.fit(x, y, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(e + 10 * i))], **FIT); models.append(m); extra.append(seen)
""",
    "counter: callback and program both write": """
n = 0
class Cnt(keras.callbacks.Callback):
    def on_epoch_end(self, e, logs=None):
        global n
        n += 1
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, callbacks=[Cnt()], **FIT); models.append(m); n += 100
extra = [n]
""",
    "Generator (rng) of a PyDataset also drawn from by program": """
rng = np.random.default_rng(3)
class D(keras.utils.PyDataset):
    def __len__(self): return 3
    def __getitem__(self, i): return x[:32] + rng.normal(size=(32, 4)).astype("float32"), y[:32]
f = dict(FIT); f.pop("batch_size")
with HOLD():
    for s in range(2):
        noise = rng.normal(); m = compiled(); m.fit(D(), **f); models.append(m); extra.append(noise)
""",
    "callback's NumPy array (validation) refilled": """
xv = x.copy()
class V(keras.callbacks.Callback):
    def on_epoch_end(self, e, logs=None): self.seen = float(xv.sum())
with HOLD():
    for s in range(2):
        m = compiled(); cb = V(); m.fit(x, y, callbacks=[cb], **FIT); models.append(m); extra.append(cb); xv += 1
extra = [cb.seen for cb in extra]
""",
    "class attribute of an own loss": """
class Q(keras.losses.Loss):
    q = .5
    def call(self, t, p): return pinball(self.q, t, p)
with HOLD():
    for Q.q in (.1, .9):
        m = compiled(Q()); m.fit(x, y, **FIT); models.append(m)
""",
    "@decorated loss, kwdefault and nested def": """
def twice(f):
    @functools.wraps(f)
    def g(*a): return K * f(*a)
    return g
@twice
def loss(t, p, *, w=[1.]):
    def inner(e): return ops.mean(ops.abs(e)) * w[0] * Z
    return inner(t - p)
with HOLD():
    for K, Z in ((1., 2.), (3., 5.)):
        m = compiled(loss); m.fit(x, y, **FIT); models.append(m); loss.__wrapped__.__kwdefaults__["w"][0] += 1
""",
    "EarlyStopping.patience changed; stopped_epoch read": """
with HOLD():
    for p in (0, 5):
        es = keras.callbacks.EarlyStopping(monitor="loss", patience=p, baseline=-1e9, min_delta=1e9); m = compiled(); m.fit(x, y, callbacks=[es], **FIT); models.append(m); extra.append(es.stopped_epoch); es.patience = 0
""",
}

# Must end as they do alone, and never be refused.
UNCHANGED = {
    "loop variable not read by training": """
with HOLD():
    for seed, lr in enumerate((.1, .01)):
        m = net(); m.compile(keras.optimizers.SGD(lr), "mse"); m.fit(x, y, **FIT); models.append(m)
""",
    "counter global changed": """
done = 0
with HOLD():
    for i in range(3):
        m = compiled(lambda t, p: pinball(.5, t, p)); m.fit(x, y, **FIT); models.append(m); done += 1
extra = [done]
""",
    "callback appends to its own list": """
class Rec(keras.callbacks.Callback):
    def __init__(self): super().__init__(); self.losses = []
    def on_epoch_end(self, e, logs=None): self.losses.append(logs["loss"]); self.last = e
with HOLD():
    recs = [Rec() for _ in range(3)]
    for r in recs:
        m = compiled(); m.fit(x, y, callbacks=[r], **FIT); models.append(m)
extra = [[round(l, 5) for l in r.losses] for r in recs]
""",
    "printing, f-strings, time": """
import time
with HOLD():
    for i in range(2):
        t0 = time.time(); m = compiled(); m.fit(x, y, **FIT); models.append(m); text = f"{i} {time.time() - t0:.0f} {m.name}"
""",
    "history read after the block": """
hs = {}
with HOLD():
    for i in range(2):
        m = compiled(); hs[i] = m.fit(x, y, **FIT); models.append(m)
extra = [round(h.history["loss"][-1], 5) for h in hs.values()]
""",
    "results dict grows, read by nothing": """
results = {}
def loss(t, p): return pinball(.3, t, p)
with HOLD():
    for i in range(3):
        m = compiled(loss); results[i] = m.fit(x, y, **FIT); models.append(m)
""",
    "DataFrame changed that is not the data": """
import pandas as pd
df = pd.DataFrame(x, columns=list("abcd"))
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(df[["a", "b", "c", "d"]].to_numpy(), y, **FIT); models.append(m); df["e%d" % i] = i
""",
    "x made anew for each fit": """
with HOLD():
    for s in (1., 2.):
        xs = x * s; m = compiled(); m.fit(xs, y, **FIT); models.append(m)
""",
    "models kept in a list that a method reads": """
class Lab:
    def __init__(self): self.models, self.n = [], 0
    def loss(self, t, p): return pinball(.5, t, p)
    def go(self):
        with HOLD():
            for i in range(3):
                m = compiled(self.loss); m.fit(x, y, **FIT); self.models.append(m); self.n += 1
        models.extend(self.models)
Lab().go()
""",
    "callback object used for every fit": """
class Say(keras.callbacks.Callback):
    log = []
    def on_train_end(self, logs=None): Say.log.append(self.model.name[:4])
say = Say()
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, callbacks=[say], **FIT); models.append(m)
extra = list(Say.log)
""",
    "names of parts printed, summary, count_params": """
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, **FIT); models.append(m)
        m.summary(print_fn=lambda s, **k: None); m.count_params(); [w.shape for w in m.weights]; m.get_config()
        keras.Model(m.inputs, L.Dense(2)(m.layers[0].output)); repr(m); m.input_shape
""",
    "k-fold with an index array": """
rows = np.arange(96) % 3
with HOLD():
    for fold in range(3):
        train, test = rows != fold, rows == fold
        m = compiled(); m.fit(x[train], y[train], validation_data=(x[test], y[test]), **FIT); models.append(m)
""",
    "dataclass config": """
import dataclasses
@dataclasses.dataclass
class Config:
    rate: float = .05
    units: int = 4
    notes: list = dataclasses.field(default_factory=list)
with HOLD():
    for c in (Config(.1), Config(.01)):
        m = net(); m.compile(keras.optimizers.SGD(c.rate), "mse"); m.fit(x, y, **FIT); c.notes.append("held"); models.append(m)
""",
    "factory of losses": """
def quantile(q):
    def loss(t, p): return pinball(q, t, p)
    return loss
with HOLD():
    for q in (.2, .8):
        m = compiled(quantile(q)); m.fit(x, y, **FIT); models.append(m)
""",
    "partial of a loss": """
with HOLD():
    for q in (.2, .8):
        m = compiled(functools.partial(pinball, q)); m.fit(x, y, **FIT); models.append(m)
""",
    "default argument binds the variable": """
with HOLD():
    for q in (.2, .8):
        m = compiled(lambda t, p, q=q: pinball(q, t, p)); m.fit(x, y, **FIT); models.append(m)
""",
    "EarlyStopping per fit": """
with HOLD():
    stops = [keras.callbacks.EarlyStopping("loss", patience=p, min_delta=9.) for p in (0, 1)]
    for stop in stops:
        m = compiled(); m.fit(x, y, callbacks=[stop], **FIT); models.append(m)
extra = [s.stopped_epoch for s in stops]
""",
    "logging beside the fits": """
import logging
log = logging.getLogger("lab"); log.addHandler(logging.NullHandler())
class Note(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None): log.info("epoch %d", epoch)
with HOLD():
    for i in range(2):
        log.info("begin %d", i); m = compiled(); m.fit(x, y, callbacks=[Note()], **FIT); models.append(m)
""",
    "DataFrame of parameters iterated": """
import pandas as pd
grid = pd.DataFrame({"rate": [.1, .01]}); table = []
with HOLD():
    for row in grid.itertuples():
        m = net(); m.compile(keras.optimizers.SGD(row.rate), "mse"); table.append((row.rate, m.fit(x, y, **FIT))); models.append(m)
extra = pd.DataFrame([(r, round(h.history["loss"][-1], 4)) for r, h in table]).to_numpy().tolist()
""",
    "methods of a class with state": """
class Study:
    def __init__(self): self.best, self.tried, self.weight = None, 0, 2.
    def loss(self, t, p): return self.weight * ops.mean((t - p) ** 2)
    def add(self):
        m = compiled(self.loss); m.fit(x, y, **FIT); self.tried += 1; self.best = m; models.append(m)
study = Study()
with HOLD():
    study.add(); study.add()
extra = [study.tried]
""",
    "cached helper": """
@functools.lru_cache(maxsize=None)
def weight(k): return 1. / (k + 1)
def loss(t, p): return weight(1) * ops.mean(ops.abs(t - p))
with HOLD():
    for i in range(2):
        weight(i + 5); m = compiled(loss); m.fit(x, y, **FIT); models.append(m)
""",
    "tqdm loop": """
import tqdm
with HOLD():
    bar = tqdm.tqdm(range(2), disable=True)
    for i in bar:
        bar.set_description(f"model {i}"); m = compiled(); m.fit(x, y, **FIT); models.append(m)
""",
    "names of notebook cells bound again": """
model = compiled(); history = None; _ = 0; In = ["a"]
with HOLD():
    for i in range(2):
        model = compiled(); history = model.fit(x, y, **FIT); models.append(model); _ = i; In.append("b")
""",
    "matplotlib figure made in the loop": """
import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt
with HOLD():
    for i in range(2):
        figure, ax = plt.subplots(); m = compiled(); m.fit(x, y, **FIT); ax.plot([i]); models.append(m); plt.close(figure)
""",
    "schedule from a dict": """
RATES = {0: .1, 1: .05, 2: .01}
def rate(epoch, now): return RATES[epoch]
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, callbacks=[keras.callbacks.LearningRateScheduler(rate)], **FIT); models.append(m)
""",
    "callback with state of its own": """
class Best(keras.callbacks.Callback):
    def __init__(self): super().__init__(); self.best, self.seen = float("inf"), {}
    def on_epoch_end(self, epoch, logs=None):
        self.best = min(self.best, logs["loss"]); self.seen[epoch] = self.best
with HOLD():
    kept = []
    for i in range(2):
        b = Best(); m = compiled(); m.fit(x, y, callbacks=[b], **FIT); models.append(m); kept.append(b)
extra = [round(b.best, 4) for b in kept] + [sorted(b.seen) for b in kept]
""",
    "list that a callback of one fit fills": """
def main():
    with HOLD():
        for i in range(2):
            losses = []
            m = compiled(); m.fit(x, y, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs, to=losses: to.append(round(logs["loss"], 4)))], **FIT); models.append(m); extra.append(losses)
main()
""",
    "one list that all callbacks fill": """
log = []
class Log(keras.callbacks.Callback):
    def __init__(self, i): super().__init__(); self.i = i
    def on_epoch_end(self, e, logs=None): log.append((self.i, e))
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, callbacks=[Log(i)], **FIT); models.append(m)
extra = list(log)
""",
    "counter that all callbacks count up": """
steps = 0
class Count(keras.callbacks.Callback):
    def on_train_batch_end(self, b, logs=None):
        global steps
        steps += 1
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, callbacks=[Count()], **FIT); models.append(m)
extra = [steps]
""",
    "generator with a state of its own": """
def batches(scale):
    while True:
        for start in range(0, 96, 32): yield x[start:start + 32] * scale, y[start:start + 32]
f = dict(FIT, steps_per_epoch=3); f.pop("batch_size")
with HOLD():
    for s in (1., 2.):
        m = compiled(); m.fit(batches(s), **f); models.append(m)
""",
    "PyDataset over arrays of its own": """
class Rows(keras.utils.PyDataset):
    def __init__(self, a, b): super().__init__(); self.a, self.b, self.reads = a, b, 0
    def __len__(self): return 3
    def __getitem__(self, i): self.reads += 1; return self.a[32 * i:32 * i + 32], self.b[32 * i:32 * i + 32]
f = dict(FIT); f.pop("batch_size")
with HOLD():
    for s in (1., 2.):
        m = compiled(); m.fit(Rows(x * s, y), **f); models.append(m)
""",
    "layer with a constant and a helper": """
SCALE = 3.
def scaled(a): return a * SCALE
class Scaled(L.Layer):
    def __init__(self): super().__init__(); self.shift = 1.
    def build(self, shape): self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")
    def call(self, a): return scaled(a) * self.gain + self.shift
with HOLD():
    for i in range(2):
        m = compiled(extra=Scaled()); m.fit(x, y, **FIT); models.append(m)
""",
    "results by name that callbacks fill": """
results = {}
class Keep(keras.callbacks.Callback):
    def __init__(self, name): super().__init__(); self.name = name
    def on_epoch_end(self, e, logs=None): results[self.name] = round(logs["loss"], 4)
with HOLD():
    for name in "ab":
        m = compiled(); m.fit(x, y, callbacks=[Keep(name)], **FIT); models.append(m)
extra = [results]
""",
}

# Fits that meet in a file, a model, a metric or a dataset: must end as they do alone.
MEETING = {
    "one file of two checkpoints": """
import os, tempfile
p = os.path.join(tempfile.mkdtemp(), "best.weights.h5")
with HOLD():
    for n in (4, 2):
        m = compiled(); m.fit(x, y, **{**FIT, "epochs": n}, callbacks=[keras.callbacks.ModelCheckpoint(p, monitor="loss", save_best_only=True, save_weights_only=True)]); models.append(m)
m = compiled(); m.load_weights(p); models.append(m)
""",
    "one log of two fits": """
import os, tempfile
p = os.path.join(tempfile.mkdtemp(), "log.csv")
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, callbacks=[keras.callbacks.CSVLogger(p, append=True)], **FIT); models.append(m)
extra = [line.split(",")[0] for line in __import__('pathlib').Path(p).read_text().split()]
""",
    "one writer object": """
import csv, io
text = io.StringIO(); writer = csv.writer(text)
class Row(keras.callbacks.Callback):
    def __init__(self, i): super().__init__(); self.i = i
    def on_epoch_end(self, e, logs=None): writer.writerow([self.i, e])
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, callbacks=[Row(i)], **FIT); models.append(m)
extra = text.getvalue().split()
""",
    "a loss over a deferred teacher": """
with HOLD():
    teacher = compiled(); teacher.fit(x, y, **FIT)
    student = net(); student.compile(keras.optimizers.SGD(.05), lambda t, p: ops.mean((p - t) ** 2) + ops.mean(teacher(x)) ** 2 * ops.mean(p ** 2)); student.fit(x, y, **FIT)
models += [teacher, student]
""",
    "a generator over a deferred teacher": """
def taught(teacher):
    while True: yield x[:32], np.asarray(teacher(x[:32]))
f = dict(FIT, steps_per_epoch=2); f.pop("batch_size")
with HOLD():
    teacher = compiled(); teacher.fit(x, y, **FIT)
    student = compiled(); student.fit(taught(teacher), **f)
models += [teacher, student]
""",
    "a PyDataset over a deferred teacher": """
class Taught(keras.utils.PyDataset):
    def __init__(self, teacher): super().__init__(); self.teacher = teacher
    def __len__(self): return 2
    def __getitem__(self, i): return x[:32], np.asarray(self.teacher(x[:32]))
f = dict(FIT); f.pop("batch_size")
with HOLD():
    teacher = compiled(); teacher.fit(x, y, **FIT)
    student = compiled(); student.fit(Taught(teacher), **f)
models += [teacher, student]
""",
    "a callback that hands weights on": """
class Hand(keras.callbacks.Callback):
    def __init__(self, to): super().__init__(); self.to = to
    def on_train_end(self, logs=None): self.to.set_weights(self.model.get_weights())
with HOLD():
    first, second = compiled(), compiled()
    first.fit(x, y, callbacks=[Hand(second)], **FIT); second.fit(x, y, **FIT)
models += [first, second]
""",
    "one cache file of two fits": """
import os, tempfile, tensorflow as tf
ds = tf.data.Dataset.from_tensor_slices((x, y)).batch(32).cache(os.path.join(tempfile.mkdtemp(), "cache"))
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(ds, epochs=2, verbose=0, shuffle=False); models.append(m)
""",
}
