"""Programs with loops that train models and look at what they trained."""

PREAMBLE = """\
import numpy as np, keras, random, gc, os, time, pandas as pd
from keras import layers, ops
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
rng0 = np.random.default_rng(0)
x = rng0.normal(size=(120, 4)).astype("float32")
y = (x.sum(1, keepdims=True) + 0.1 * rng0.normal(size=(120, 1))).astype("float32")
def build(units=8, lr=0.01, loss="mse", **kw):
    m = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(units, activation="tanh"),
            layers.Dropout(0.2),
            layers.Dense(1),
        ]
    )
    m.compile(keras.optimizers.Adam(lr), loss=loss, **kw)
    return m
TMP = "."
FIT = dict(epochs=3, verbose=0)
"""

# The name of each says what is special about it.
PROGRAMS = {
    "k-fold, evaluate": """\
scores = []
for tr, te in KFold(5, shuffle=True, random_state=0).split(x):
    m = build()
    m.fit(x[tr], y[tr], **FIT)
    scores.append(m.evaluate(x[te], y[te], verbose=0))
print(np.mean(scores))
""",
    "k-fold, unseeded shuffle, seed set once": """\
keras.utils.set_random_seed(7)
scores = []
for k, (tr, te) in enumerate(KFold(5, shuffle=True).split(x)):
    m = build()
    m.fit(x[tr], y[tr], **FIT)
    scores.append(m.evaluate(x[te], y[te], verbose=0))
    print(k, scores[-1])
""",
    "ShuffleSplit, draws at every split": """\
keras.utils.set_random_seed(7)
scores = []
for tr, te in ShuffleSplit(4).split(x):
    m = build()
    m.fit(x[tr], y[tr], **FIT)
    scores.append(m.evaluate(x[te], y[te], verbose=0))
""",
    "seeds, best so far, save the best": """\
best, best_model = float("inf"), None
for seed in range(6):
    keras.utils.set_random_seed(seed)
    m = build()
    m.fit(x[:80], y[:80], **FIT)
    val = m.evaluate(x[80:], y[80:], verbose=0)
    print(f"seed {seed}: {val:.4f}")
    if val < best:
        best, best_model = val, m
        m.save(f"{TMP}/best.keras")
""",
    "grid, nested loops, dict of results": """\
results = {}
for units in (4, 8, 16):
    for lr in (0.01, 0.1):
        m = build(units, lr)
        h = m.fit(x, y, validation_split=0.2, **FIT)
        results[units, lr] = min(h.history["val_loss"])
best = min(results, key=results.get)
""",
    "grid, outer loop with its own statements": """\
results = {}
for units in (4, 8, 16):
    results[units] = []
    for tr, te in KFold(3).split(x):
        m = build(units)
        m.fit(x[tr], y[tr], **FIT)
        results[units].append(m.evaluate(x[te], y[te], verbose=0))
    print(units, np.mean(results[units]))
""",
    "quantiles, lambda loss (late binding)": """\
def pinball(q, t, p):
    e = t - p
    return ops.mean(ops.maximum(q * e, (q - 1) * e))
models, preds = {}, []
for q in (0.1, 0.5, 0.9):
    m = build(loss=lambda t, p: pinball(q, t, p))
    m.fit(x, y, **FIT)
    models[q] = m
    preds.append(m.predict(x, verbose=0))
late = [m.evaluate(x, y, verbose=0) for m in models.values()]
""",
    "learning curve over sizes": """\
curve = []
for n in [20, 40, 60, 80]:
    m = build()
    h = m.fit(x[:n], y[:n], **FIT)
    train, test = h.history["loss"][-1], m.evaluate(x[80:], y[80:], verbose=0)
    curve.append((n, train, test))
df = pd.DataFrame(curve, columns=["n", "train", "test"])
""",
    "per group, groupby, predictions collected": """\
df = pd.DataFrame(x, columns=list("abcd"))
df["y"] = y
df["shop"] = np.arange(120) % 4
parts = []
for shop, g in df.groupby("shop"):
    m = build()
    X, Y = g[list("abcd")].to_numpy(), g["y"].to_numpy()
    m.fit(X, Y, **FIT)
    g = g.copy()
    g["pred"] = m.predict(X, verbose=0)[:, 0]
    parts.append(g)
out = pd.concat(parts)
""",
    "warm-start chain": """\
m = build()
hist = []
for lr in (0.1, 0.03, 0.01):
    m.optimizer.learning_rate = lr
    h = m.fit(x, y, **FIT)
    hist += h.history["loss"]
""",
    "warm start by weights of the last": """\
prev, scores = None, []
for k in range(4):
    m = build()
    if prev is not None:
        m.set_weights(prev.get_weights())
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
    prev = m
""",
    "early break on score": """\
for trial in range(6):
    m = build()
    m.fit(x, y, **FIT)
    s = m.evaluate(x, y, verbose=0)
    print(trial, s)
    if s < 4:
        break
else:
    print("none")
""",
    "break before all fits": """\
left, scores = 100, []
for n in (30, 40, 50, 60):
    left -= n
    if left < 0:
        break
    m = build()
    m.fit(x[:n], y[:n], **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "counter and print": """\
i, log = 0, []
for units in (4, 8, 12):
    i += 1
    print("run", i, "units", units)
    m = build(units)
    h = m.fit(x, y, **FIT)
    print("run", i, "loss", round(h.history["loss"][-1], 4))
    log.append((i, h.history["loss"][-1]))
""",
    "history to DataFrame rows": """\
rows = pd.DataFrame()
for units in (4, 8, 12):
    m = build(units, metrics=["mae"])
    h = m.fit(x, y, validation_split=0.25, **FIT)
    d = pd.DataFrame(h.history)
    d["units"] = units
    d["epoch"] = h.epoch
    rows = pd.concat([rows, d], ignore_index=True)
""",
    "try/except around fit": """\
ok, failed = [], []
for units in (4, 0, 8, "a", 12):
    try:
        m = build(units)
        m.fit(x if units != 8 else x[:, :3], y, **FIT)
        ok.append((units, m.evaluate(x, y, verbose=0)))
    except Exception as error:
        failed.append((units, type(error).__name__))
        continue
    print(units, "ok")
""",
    "helper function train(fold)": """\
results = []
def train(fold, tr, te):
    m = build()
    h = m.fit(x[tr], y[tr], **FIT)
    s = m.evaluate(x[te], y[te], verbose=0)
    results.append({"fold": fold, "loss": s})
    return s, m
total = 0
for fold, (tr, te) in enumerate(KFold(4).split(x)):
    s, m = train(fold, tr, te)
    total += s
    print(fold, s, total, len(results))
""",
    "files saved per iteration, read after": """\
for k in range(4):
    m = build()
    m.fit(
        x,
        y,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                f"{TMP}/m{k}.keras", save_best_only=True, monitor="loss"
            )
        ],
        **FIT,
    )
    m.save(f"{TMP}/last.keras")
    with open(f"{TMP}/log.txt", "a" if k else "w") as f:
        print(k, m.evaluate(x, y, verbose=0), file=f)
text = open(f"{TMP}/log.txt").read()
last = keras.models.load_model(f"{TMP}/last.keras")
first = keras.models.load_model(f"{TMP}/m0.keras")
""",
    "continue on a condition": """\
done = {4: "old"}
for units in (2, 4, 6, 8):
    if units in done:
        print("skip", units)
        continue
    m = build(units)
    m.fit(x, y, **FIT)
    s = m.evaluate(x, y, verbose=0)
    if s > 1e9:
        continue
    done[units] = s
""",
    "continue on a seen set": """\
seen, scores = set(), []
for units in (2, 4, 4, 8):
    if units in seen:
        continue
    seen.add(units)
    m = build(units)
    m.fit(x, y, **FIT)
    scores.append((units, m.evaluate(x, y, verbose=0)))
""",
    "del m; gc.collect(); clear_session()": """\
scores, names = [], []
for units in (4, 8, 12):
    m = build(units)
    m.fit(x, y, **FIT)
    names.append(m.name)
    scores.append(m.evaluate(x, y, verbose=0))
    del m
    gc.collect()
    keras.backend.clear_session()
""",
    "clear_session first, seed inside": """\
scores = []
for units in (4, 8, 12):
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    m = build(units)
    m.fit(x, y, **FIT)
    scores.append((m.name, m.layers[0].name, m.evaluate(x, y, verbose=0)))
""",
    "plots in the loop": """\
fig, ax = plt.subplots()
for units in (4, 8, 12):
    m = build(units)
    h = m.fit(x, y, **FIT)
    ax.plot(h.history["loss"], label=str(units))
    plt.plot([m.evaluate(x, y, verbose=0)])
ax.legend()
lines = [(l.get_label(), l.get_ydata().tolist()) for l in ax.lines]
plt.close("all")
""",
    "two loops after each other": """\
models = []
for units in (4, 8, 12):
    m = build(units)
    m.fit(x, y, **FIT)
    models.append(m)
scores = []
for i, m in enumerate(models):
    m.fit(x, y, epochs=2, verbose=0)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "loop in an if, inside a with": """\
TUNE = True
if TUNE:
    with np.errstate(all="ignore"):
        best = {}
        for units in (4, 8, 12):
            m = build(units)
            h = m.fit(x, y, **FIT)
            best[units] = m.evaluate(x, y, verbose=0)
""",
    "random draws in the head (np.random)": """\
scores = []
for trial in range(5):
    units, lr = int(np.random.randint(2, 20)), 10 ** np.random.uniform(-3, -1)
    m = build(units, lr)
    m.fit(x, y, **FIT)
    scores.append((units, lr, m.evaluate(x, y, verbose=0)))
after = np.random.rand()
""",
    "random draws after the fit": """\
scores = []
for trial in range(5):
    m = build()
    m.fit(x, y, **FIT)
    sub = np.random.choice(120, 40, replace=False)
    scores.append(m.evaluate(x[sub], y[sub], verbose=0))
after = np.random.rand()
""",
    "own Generator in the head: bootstrap": """\
rng, scores = np.random.default_rng(3), []
for b in range(5):
    i = rng.integers(0, 120, 120)
    m = build()
    m.fit(x[i], y[i], **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
after = rng.random()
""",
    "own Generator before and after": """\
rng, scores = np.random.default_rng(3), []
for b in range(4):
    i = rng.integers(0, 120, 120)
    m = build()
    m.fit(x[i], y[i], **FIT)
    j = rng.integers(0, 120, 50)
    scores.append(m.evaluate(x[j], y[j], verbose=0))
""",
    "an exception in iteration 2": """\
scores, k = [], None
try:
    for k in range(5):
        m = build()
        m.fit(x, y, **FIT)
        scores.append(m.evaluate(x, y, verbose=0))
        if k == 2:
            raise ValueError("two")
except ValueError as e:
    message = str(e)
""",
    "callback that fills a list of the program": """\
trace = []
for k in range(3):
    m = build()
    m.fit(
        x,
        y,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: trace.append((k, e)))
        ],
        **FIT,
    )
""",
    "EarlyStopping, verbose prints, numpy totals": """\
oof = np.zeros_like(y)
used = []
for tr, te in KFold(4).split(x):
    es = keras.callbacks.EarlyStopping(
        monitor="loss", patience=1, min_delta=0.3, restore_best_weights=True
    )
    m = build()
    h = m.fit(x[tr], y[tr], epochs=8, verbose=0, callbacks=[es])
    oof[te] = m.predict(x[te], verbose=0)
    used.append(len(h.epoch))
print(used, float(np.mean((oof - y) ** 2)))
""",
    "layer class reads the loop's global": """\
class Scale(layers.Layer):
    def call(self, a):
        return a * SCALE
scores = []
for SCALE in (0.5, 1.0, 2.0):
    m = keras.Sequential([keras.Input((4,)), layers.Dense(4), Scale(), layers.Dense(1)])
    m.compile("sgd", "mse")
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "build() reads the loop's global": """\
def make():
    m = keras.Sequential([keras.Input((4,)), layers.Dense(UNITS), layers.Dense(1)])
    m.compile("sgd", loss=lambda t, p: ops.mean((t - p) ** 2) * UNITS)
    return m
scores = []
for UNITS in (2, 3, 4):
    m = make()
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "stale name: reads what the last iteration left": """\
scores = []
for k in range(4):
    if k % 2 == 0:
        w = np.full(120, k + 1.0)
    m = build()
    m.fit(x, y, sample_weight=w, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
    if k == 1:
        w = w * 3
""",
    "shared frozen base, heads trained": """\
base = layers.Dense(6, name="base")
base.build((None, 4))
scores = []
for k in range(3):
    inp = keras.Input((4,))
    m = keras.Model(inp, layers.Dense(1)(base(inp)))
    m.compile("sgd", "mse")
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "data normalised in place": """\
z = x.copy()
scores = []
for k in range(3):
    z -= 0.1
    z[:, 0] *= 1.1
    m = build()
    m.fit(z, y, **FIT)
    scores.append(m.evaluate(z, y, verbose=0))
""",
    "queue grows while looped over": """\
queue, scores = [4], []
for units in queue:
    m = build(units)
    m.fit(x, y, **FIT)
    s = m.evaluate(x, y, verbose=0)
    scores.append(s)
    if units < 12:
        queue.append(units + 4)
""",
    "tqdm around": """\
from tqdm import tqdm
scores = []
for units in tqdm([4, 8, 12], disable=None):
    m = build(units)
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "early stopping object made before the loop": """\
es = keras.callbacks.EarlyStopping(monitor="loss", patience=1, min_delta=0.3)
info = []
for k in range(3):
    info.append(es.stopped_epoch)
    m = build()
    m.fit(x, y, epochs=6, verbose=0, callbacks=[es])
    info.append(m.evaluate(x, y, verbose=0))
""",
    "one shuffling tf.data dataset for all": """\
import tensorflow as tf
ds = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(120, seed=3).batch(32)
scores = []
for units in (4, 8, 12):
    m = build(units)
    m.fit(ds, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "one plain tf.data dataset for all": """\
import tensorflow as tf
ds = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
scores = []
for units in (4, 8, 12):
    m = build(units)
    m.fit(ds, **FIT)
    scores.append(m.evaluate(ds, verbose=0))
""",
    "set_floatx and dtype policy in the head": """\
scores = []
for t in ("float32", "float64", "float32"):
    keras.config.set_floatx(t)
    m = build()
    m.fit(x, y, **FIT)
    scores.append(
        (
            m.predict(x[:2], verbose=0).dtype.name,
            build().layers[0].dtype,
            m.evaluate(x, y, verbose=0),
        )
    )
keras.config.set_floatx("float32")
""",
    "decorated helper with a list in its closure": """\
def logged(f):
    calls = []
    def wrapper(*a):
        calls.append(a)
        print("call", len(calls))
        return f(*a)
    return wrapper
@logged
def make(units):
    return build(units)
scores = []
for units in (4, 8, 12):
    m = make(units)
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
    print(units, "done")
""",
    "class attribute counts instances": """\
class Net(keras.Model):
    made = 0
    def __init__(self):
        super().__init__()
        Net.made += 1
        self.d = layers.Dense(1)
    def call(self, a):
        return self.d(a)
scores = []
for k in range(3):
    m = Net()
    m.compile("sgd", "mse")
    m.fit(x, y, **FIT)
    scores.append((Net.made, m.evaluate(x, y, verbose=0)))
""",
    "global counter in build()": """\
count = 0
def make():
    global count
    count += 1
    return build(4 * count)
scores = []
for k in range(3):
    m = make()
    m.fit(x, y, **FIT)
    scores.append((count, m.evaluate(x, y, verbose=0)))
""",
    "global counter read after the fit": """\
count, scores = 0, []
def note(s):
    global count
    count += 1
    scores.append((count, s))
for k in range(4):
    note("begin")
    m = build()
    m.fit(x, y, **FIT)
    note(m.evaluate(x, y, verbose=0))
""",
    "models of a dict, fitted and evaluated": """\
models = {u: build(u) for u in (4, 8, 12)}
scores = {}
for name, m in models.items():
    m.fit(x, y, **FIT)
    scores[name] = m.evaluate(x, y, verbose=0)
""",
    "models of a list by index": """\
models = [build(u) for u in (4, 8, 12)]
scores = []
for i in range(3):
    models[i].fit(x, y, **FIT)
    scores.append(models[i].evaluate(x, y, verbose=0))
""",
    "three fits per iteration, rows of a DataFrame": """\
df = pd.DataFrame(index=range(3), columns=["a", "b", "c"], dtype=float)
for k in range(3):
    for name in ("a", "b", "c"):
        m = build()
        m.fit(x, y, **FIT)
        df.loc[k, name] = m.evaluate(x, y, verbose=0)
""",
    "pretrain, then fine-tune, in one iteration": """\
scores = []
for k in range(4):
    m = build()
    m.fit(x, y, **FIT)
    a = m.evaluate(x, y, verbose=0)
    m.layers[0].trainable = False
    m.compile("sgd", "mse")
    m.fit(x, y, epochs=2, verbose=0)
    b = m.evaluate(x, y, verbose=0)
    scores.append((a, b))
    print(f"{k}: {a:.3f} {b:.3f}")
""",
    "product of itertools, zip, enumerate, scaler": """\
import itertools
from sklearn.preprocessing import StandardScaler
res = []
for i, (units, lr) in enumerate(itertools.product((4, 8), (0.01, 0.05))):
    sc = StandardScaler().fit(x[:80])
    a, b = sc.transform(x[:80]), sc.transform(x[80:])
    m = build(units, lr)
    m.fit(a, y[:80], validation_data=(b, y[80:]), **FIT)
    p = m.predict(b, verbose=0)
    res.append({"i": i, "rmse": float(np.sqrt(np.mean((p - y[80:]) ** 2)))})
table = pd.DataFrame(res)
""",
    "user generator of folds that reads scores": """\
scores = []
def sizes():
    n = 4
    while n < 40:
        yield n
        n += 4 + 4 * (scores[-1] > 1)
for n in sizes():
    m = build(n)
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "closures kept for later": """\
fs = []
for k in range(3):
    m = build()
    m.fit(x, y, **FIT)
    fs.append(lambda: (k, m.evaluate(x, y, verbose=0)))
values = [f() for f in fs]
""",
    "a list reached through a function": """\
registry = {}
def log_of(name):
    return registry.setdefault(name, [])
for k in range(3):
    log_of("a").append(("begin", k))
    m = build()
    m.fit(x, y, **FIT)
    log_of("a").append(("end", k, m.evaluate(x, y, verbose=0)))
""",
    "an object that keeps a shared list": """\
class Run:
    def __init__(self, log, k):
        self.log, self.k = log, k
        self.note("begin")
    def note(self, what):
        self.log.append((self.k, what))
log = []
for k in range(3):
    r = Run(log, k)
    m = build()
    m.fit(x, y, **FIT)
    r.note(m.evaluate(x, y, verbose=0))
""",
    "the same dict twice in the list": """\
cfg = {"n": 4}
cfgs = [cfg, {"n": 8}, cfg]
scores = []
for c in cfgs:
    m = build(c["n"])
    m.fit(x, y, **FIT)
    c["n"] += 1
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "files read in the head that the tail wrote": """\
scores = []
for k in range(3):
    m = build()
    if os.path.exists(f"{TMP}/w.weights.h5"):
        m.load_weights(f"{TMP}/w.weights.h5")
    m.fit(x, y, **FIT)
    m.save_weights(f"{TMP}/w.weights.h5")
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "for-else, and a name deleted": """\
for k in range(3):
    tmp = build()
    tmp.fit(x, y, **FIT)
    s = tmp.evaluate(x, y, verbose=0)
    del tmp
else:
    print("all done", k)
""",
    "models of a list, all looked at each time": """\
models = [build(u) for u in (4, 8, 12)]
scores = []
for m in models:
    m.fit(x, y, **FIT)
    scores.append([n.evaluate(x, y, verbose=0) for n in models])
""",
    "ensemble: list grows, mean of all so far": """\
models, scores = [], []
for k in range(4):
    m = build()
    m.fit(x, y, **FIT)
    models.append(m)
    p = np.mean([n.predict(x, verbose=0) for n in models], axis=0)
    scores.append(float(np.mean((p - y) ** 2)))
""",
    "params dict updated in the head": """\
params = {"units": 2}
scores = []
for k in range(4):
    params["units"] += 2
    m = build(**params)
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "boosting: each on the residuals of the last": """\
res, models = y.copy(), []
for k in range(4):
    m = build()
    m.fit(x, res, **FIT)
    models.append(m)
    res = res - 0.5 * m.predict(x, verbose=0)
""",
    "boosting in place, by an alias": """\
res, models = y.copy(), []
for k in range(4):
    r = res[:]
    m = build()
    m.fit(x, r, **FIT)
    models.append(m)
    r -= 0.5 * m.predict(x, verbose=0)
""",
    "walk-forward: slices of one array, filled": """\
pred = np.full(120, np.nan)
for start in range(40, 120, 20):
    m = build()
    m.fit(x[:start], y[:start], **FIT)
    pred[start : start + 20] = m.predict(x[start : start + 20], verbose=0)[:, 0]
""",
    "recursive forecast: predictions become inputs": """\
series = list(np.sin(np.arange(30)))
for k in range(3):
    a = np.array([series[i : i + 4] for i in range(len(series) - 4)], "float32")
    b = np.array(series[4:], "float32")[:, None]
    m = build()
    m.fit(a, b, **FIT)
    series.append(float(m.predict(np.array([series[-4:]], "float32"), verbose=0)[0, 0]))
""",
    "train_on_batch and own loops beside fit": """\
scores = []
for k in range(3):
    m = build()
    m.train_on_batch(x[:32], y[:32])
    m.fit(x, y, **FIT)
    w = m.get_weights()
    m.set_weights([v * 0.9 for v in w])
    scores.append(m.evaluate(x, y, verbose=0, return_dict=True))
""",
    "verbose=2 and model.summary in the loop": """\
for k in range(2):
    print("model", k)
    m = build()
    m.summary()
    m.fit(x, y, epochs=2, verbose=2)
    m.evaluate(x, y, verbose=2)
""",
    "unequal lengths: later ones end first": """\
scores, order, files = {}, [], []
for e in (12, 6, 2, 1):
    print("begin", e)
    m = build()
    h = m.fit(x, y, epochs=e, verbose=0)
    print("fitted", e)
    order.append(("fit", e))
    s = m.evaluate(x, y, verbose=0)
    scores[e] = s
    order.append(("eval", e))
    print("end", e)
    with open(f"{TMP}/o.txt", "a") as f:
        f.write(f"{e} {s}\\n")
files = open(f"{TMP}/o.txt").read()
""",
    "a later iteration fails first": """\
scores = []
try:
    for e in (10, 5, 1, 1):
        m = build()
        m.fit(x, y, epochs=e, verbose=0)
        if e == 1:
            raise RuntimeError("one")
        scores.append(m.evaluate(x, y, verbose=0))
        print(e)
except RuntimeError as error:
    message = str(error)
""",
    "the iterator fails": """\
scores = []
def items():
    yield 4
    yield 8
    raise KeyError("no more")
try:
    for u in items():
        m = build(u)
        m.fit(x, y, **FIT)
        scores.append(m.evaluate(x, y, verbose=0))
        print(u)
except KeyError as error:
    message = str(error)
""",
    "keras.random in the head, numpy in the iterator": """\
def noise():
    for k in range(3):
        yield k, np.random.normal(size=x.shape).astype("float32")
scores = []
for k, n in noise():
    w = keras.ops.convert_to_numpy(keras.random.normal((1,)))
    m = build()
    m.fit(x + 0.1 * n, y, **FIT)
    scores.append((float(w[0]), m.evaluate(x, y, verbose=0)))
""",
    "if/else with fits in both, while inside": """\
out, tries = [], 0
for k in range(4):
    m = build()
    if k % 2:
        m.fit(x, y, **FIT)
        kind = "plain"
    else:
        n = 0
        while n < 2:
            m.fit(x, y, epochs=1, verbose=0)
            n += 1
        kind = "twice"
        tries += n
    out.append((k, kind, tries, m.evaluate(x, y, verbose=0)))
""",
    "best model by closure and nonlocal in a function": """\
def search():
    best, seen = 1e9, []
    for u in (4, 8, 12):
        m = build(u)
        m.fit(x, y, **FIT)
        s = m.evaluate(x, y, verbose=0)
        seen.append(s)
        if s < best:
            best = s
    return best, seen
best, seen = search()
""",
    "subclass model, custom train_step, own callback": """\
class Net(keras.Model):
    def __init__(self, u):
        super().__init__()
        self.a, self.b = layers.Dense(u, "relu"), layers.Dense(1)
    def call(self, t):
        return self.b(self.a(t))
class Keep(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.kept = []
    def on_epoch_end(self, e, logs=None):
        self.kept.append(logs["loss"])
        print("epoch", e)
runs = {}
for u in (4, 8, 12):
    cb = Keep()
    m = Net(u)
    m.compile("adam", "mse")
    m.fit(x, y, callbacks=[cb], **FIT)
    runs[u] = (cb.kept, m.evaluate(x, y, verbose=0))
""",
}

# Made to break an analysis of names.
DANGEROUS = {
    "factory returns an object that holds a global list": """\
log = []
class Run:
    def __init__(self, k):
        self.k, self.log = k, log
        self.log.append(("begin", k))
    def end(self, s):
        self.log.append(("end", self.k, s))
for k in range(3):
    r = Run(k)
    m = build()
    m.fit(x, y, **FIT)
    r.end(m.evaluate(x, y, verbose=0))
""",
    "function in a dict reads the loop's global": """\
LOSSES = {"a": lambda t, p: ops.mean(ops.abs(t - p)) * W}
scores = []
for W in (1.0, 2.0, 4.0):
    m = build(loss=LOSSES["a"])
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "object made before, its method reads the loop's global": """\
class Sched:
    def __call__(self, e, r):
        return LR / (e + 1)
sched = Sched()
scores = []
for LR in (0.1, 0.05, 0.01):
    m = build()
    m.fit(x, y, callbacks=[keras.callbacks.LearningRateScheduler(sched)], **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "cached build": """\
import functools
@functools.lru_cache
def make(u):
    return build(u)
scores = []
for u in (4, 8, 4):
    m = make(u)
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "view of an array by an int index": """\
data = np.stack([x, x])
scores = []
for k in range(3):
    d = data[k % 2]
    d *= 1.5
    m = build()
    m.fit(d, y, **FIT)
    d += 1
    scores.append(m.evaluate(d, y, verbose=0))
""",
    "attribute of a module": """\
import types as cfg
scores = []
for v in (4, 8, 12):
    cfg.units = v
    m = build(cfg.units)
    m.fit(x, y, **FIT)
    scores.append((cfg.units, m.evaluate(x, y, verbose=0)))
""",
    "shared metric object": """\
mae = keras.metrics.MeanAbsoluteError()
scores = []
for k in range(3):
    m = build(metrics=[mae])
    h = m.fit(x, y, **FIT)
    scores.append((h.history["loss"], m.evaluate(x, y, verbose=0)))
""",
    "time": """\
import itertools
ids = itertools.count()
rows = []
for k in range(3):
    a = next(ids)
    m = build()
    m.fit(x, y, **FIT)
    rows.append((a, next(ids), m.evaluate(x, y, verbose=0)))
""",
    "a function keeps a count in an attribute": """\
def make():
    make.count = getattr(make, "count", 0) + 1
    return build(2 + make.count)
scores = []
for k in range(3):
    m = make()
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "a list of the class, reached by self": """\
class Run:
    seen = []
    def __init__(self, k):
        self.k = k
        self.seen.append(k)
scores = []
for k in range(3):
    r = Run(k)
    m = build()
    m.fit(x, y, **FIT)
    scores.append((list(r.seen), m.evaluate(x, y, verbose=0)))
""",
    "a count of the class, reached by type": """\
class Run:
    made = 0
    def __init__(self):
        type(self).made += 1
        self.number = type(self).made
scores = []
for k in range(3):
    r = Run()
    m = build()
    m.fit(x, y, **FIT)
    scores.append((r.number, Run.made, m.evaluate(x, y, verbose=0)))
""",
    "two names of one list": """\
scores = []
alias = scores
for k in range(4):
    m = build(2 + len(alias))
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "a list inside of another one": """\
log = []
held = {"log": log}
for k in range(4):
    n = len(held["log"])
    m = build(2 + n)
    m.fit(x, y, **FIT)
    log.append(m.evaluate(x, y, verbose=0))
""",
    "a view of what the end of the body changes": """\
data = x.copy()
first = data[:60]
scores = []
for k in range(3):
    m = build()
    m.fit(first, y[:60], **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
    data[:10] += 1
""",
    "a column of a frame that the body changes": """\
df = pd.DataFrame(x)
column = df[[0, 1, 2, 3]]
scores = []
for k in range(3):
    m = build()
    m.fit(df.to_numpy(), y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
    df[0] = df[0] * 2
""",
    "a bound method draws": """\
draw = np.random.default_rng(4).normal
scores = []
for k in range(3):
    noise = draw(size=x.shape).astype("float32")
    m = build()
    m.fit(x + noise, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "an alias of a list that is the iteration's own": """\
data = x.copy()
scores = []
for k in range(3):
    mine = []
    other = mine
    other.append(data)
    mine[0][:5] += 1
    m = build()
    m.fit(mine[0], y, **FIT)
    scores.append(m.evaluate(mine[0], y, verbose=0))
""",
    "models of the loop have other names": """\
first, second = build(4), build(6)
scores = []
for m in [first, second]:
    m.fit(x, y, **FIT)
    scores.append((first.evaluate(x, y, verbose=0), m.evaluate(x, y, verbose=0)))
""",
    "an error, after others have trained models from before": """\
models = [build(u) for u in (4, 6, 8)]
scores = []
try:
    for i, m in enumerate(models):
        m.fit(x, y, **FIT)
        scores.append(m.evaluate(x, y, verbose=0))
        if i == 0:
            raise KeyError("stop")
except KeyError as error:
    message = str(error)
""",
    "prints before it fails": """\
scores = []
try:
    for n in (4, 4, 3):
        print("begin", n)
        m = build()
        m.fit(x[:, :n], y, **FIT)
        scores.append(m.evaluate(x, y, verbose=0))
except ValueError:
    print("failed")
""",
    "finally changes what is shared": """\
log = []
try:
    for n in (4, 3, 4):
        try:
            m = build()
            m.fit(x[:, :n], y, **FIT)
        finally:
            log.append(n)
except ValueError:
    print(log)
""",
    "a handler of everything": """\
log = []
for n in (4, 3, 4):
    try:
        m = build()
        m.fit(x[:, :n], y, **FIT)
        log.append(m.evaluate(x, y, verbose=0))
    except:
        log.append("failed")
""",
    "zip of a splitter and of a generator": """\
def rates():
    for rate in (0.1, 0.01, 0.001):
        print("rate", rate)
        yield rate
scores = []
for (tr, te), rate in zip(KFold(3).split(x), rates()):
    m = build(lr=rate)
    m.fit(x[tr], y[tr], **FIT)
    scores.append(m.evaluate(x[te], y[te], verbose=0))
""",
    "an iterator that is read on after the loop": """\
units = iter([4, 6, 8, 10])
scores = []
for u, k in zip(units, range(2)):
    m = build(u)
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
left = list(units)
""",
    "layers made after the first training": """\
scores = []
for u in (4, 6, 8):
    m = build(u)
    m.fit(x, y, **FIT)
    other = build(u)
    other.set_weights(m.get_weights())
    scores.append((other.name, other.evaluate(x, y, verbose=0)))
""",
    "the environment": """\
scores = []
for u in ("4", "6"):
    os.environ["UNITS"] = u
    m = build(int(os.environ["UNITS"]))
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
del os.environ["UNITS"]
""",
    "what a library keeps": """\
scores = []
keras.utils.get_custom_objects()["n"] = 0
for u in (4, 6):
    keras.utils.get_custom_objects()["n"] += u
    m = build(keras.utils.get_custom_objects()["n"])
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
del keras.utils.get_custom_objects()["n"]
""",
    "a default that is changed": """\
def make(units, seen=[]):
    seen.append(units)
    return build(sum(seen))
scores = []
for u in (2, 3):
    m = make(u)
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "the same model under two items": """\
shared = build(4)
scores = []
for name, m in [("a", shared), ("b", build(4)), ("c", shared)]:
    m.fit(x, y, **FIT)
    scores.append((name, m.evaluate(x, y, verbose=0)))
""",
    "a name that only some iterations set": """\
scores, note = [], "none"
for k in range(4):
    if k == 1:
        note = "one"
    m = build()
    m.fit(x, y, **FIT)
    scores.append((note, m.evaluate(x, y, verbose=0)))
    if k == 2:
        note = note + " two"
""",
    "a while loop that trains until the best is better": """\
best, scores = 1e9, []
for u in (4, 8):
    m = build(u)
    tries = 0
    while tries < 3:
        m.fit(x, y, **FIT)
        tries += 1
        s = m.evaluate(x, y, verbose=0)
        if s < best:
            best = s
            break
    scores.append((tries, best))
""",
    "EarlyStopping after epochs that are not known": """\
used = []
for k in range(4):
    stop = keras.callbacks.EarlyStopping("loss", min_delta=0.5, patience=1)
    m = build()
    h = m.fit(x, y, epochs=6, verbose=0, callbacks=[stop])
    used.append((len(h.epoch), m.evaluate(x, y, verbose=0)))
""",
    "two trainings of an iteration, seeded": """\
scores = []
for k in range(4):
    keras.utils.set_random_seed(k)
    m = build()
    m.fit(x, y, **FIT)
    m.optimizer.learning_rate = 0.001
    m.fit(x, y, **FIT)
    scores.append((m.evaluate(x, y, verbose=0), np.random.rand()))
""",
    "functional models with layers in variables": """\
scores = []
for u in (4, 6, 8):
    inputs = keras.Input((4,))
    hidden = layers.Dense(u, activation="relu")
    outputs = layers.Dense(1)(hidden(inputs))
    m = keras.Model(inputs, outputs)
    m.compile("adam", "mse")
    m.fit(x, y, **FIT)
    scores.append((hidden.name, m.evaluate(x, y, verbose=0)))
""",
    "a list's method called by its class": """\
scores = []
seen = []
for k in range(3):
    list.append(seen, k)
    m = build(2 + len(seen))
    m.fit(x, y, **FIT)
    scores.append((len(seen), m.evaluate(x, y, verbose=0)))
""",
    "a list changed by a function of `operator`": """\
scores = []
import operator
d = {"n": 2}
for k in range(3):
    operator.setitem(d, "n", d["n"] + 1)
    m = build(d["n"])
    m.fit(x, y, **FIT)
    scores.append(d["n"])
""",
    "a list's method passed to `map`": """\
scores = []
seen = []
for k in range(3):
    list(map(seen.append, (k, k)))
    m = build(2 + len(seen))
    m.fit(x, y, **FIT)
    scores.append(len(seen))
""",
    "an attribute of a class, set by `setattr`": """\
scores = []
class Config:
    n = 2
for k in range(3):
    setattr(Config, "n", Config.n + 1)
    m = build(Config.n)
    m.fit(x, y, **FIT)
    scores.append(Config.n)
""",
    "an attribute of a class, by another name": """\
scores = []
class Config:
    n = 2
for k in range(3):
    c = Config
    c.n += 1
    m = build(Config.n)
    m.fit(x, y, **FIT)
    scores.append(Config.n)
""",
    "an attribute of a class in a list": """\
scores = []
class Config:
    n = 2
kinds = [Config]
for k in range(3):
    kinds[0].n += 1
    m = build(Config.n)
    m.fit(x, y, **FIT)
    scores.append(Config.n)
""",
    "an attribute of a function, by another name": """\
scores = []
build.n = 2
for k in range(3):
    f = build
    f.n += 1
    m = build(getattr(build, "n"))
    m.fit(x, y, **FIT)
    scores.append(getattr(build, "n"))
""",
    "an attribute of a module, by another name": """\
scores = []
import types as cfg
cfg.n = 2
for k in range(3):
    c = cfg
    c.n = k + 2
    m = build(cfg.n)
    m.fit(x, y, **FIT)
    scores.append(cfg.n)
""",
    "the environment, by another name": """\
scores = []
env = os.environ
env["LOOP"] = "2"
for k in range(3):
    env["LOOP"] = env["LOOP"] + "1"
    m = build(len(os.environ["LOOP"]))
    m.fit(x, y, **FIT)
    scores.append(os.environ["LOOP"])
""",
    "the loop sets an item of a dict": """\
scores = []
d = {}
for d["n"] in (2, 3, 4):
    m = build(d["n"])
    m.fit(x, y, **FIT)
    scores.append((d["n"], m.evaluate(x, y, verbose=0)))
""",
    "an iterator that `list` reads": """\
scores = []
left = iter([1, 2, 3, 4])
for k in range(3):
    n = len([v for _, v in zip(range(1), left)])
    m = build(2 + n)
    m.fit(x, y, **FIT)
    scores.append(list(zip(range(1), left)))
""",
    "an iterator that an inner loop reads": """\
scores = []
left = iter([4, 5, 6, 7, 8, 9, 10])
for k in range(3):
    for n in left:
        break
    m = build(n)
    m.fit(x, y, **FIT)
    scores.append(n)
""",
    "an iterator in a dict, read on after the loop": """\
scores = []
d = {"left": iter([2, 3, 4])}
for n in d["left"]:
    m = build(n)
    m.fit(x, y, **FIT)
    scores.append((n, m.evaluate(x, y, verbose=0)))
left = list(d["left"])
""",
    "a defaultdict grows as it is read": """\
scores = []
import collections
d = collections.defaultdict(int)
for k in range(3):
    _ = d[k]
    m = build(2 + len(d))
    m.fit(x, y, **FIT)
    scores.append(len(d))
""",
    "`out` of NumPy, by position": """\
scores = []
data = x.copy()
for k in range(3):
    np.add(data, 1, data)
    m = build()
    m.fit(x, y, **FIT)
    scores.append(float(data.sum()))
""",
    "`out` of a method, by position": """\
scores = []
data = x.copy()
for k in range(3):
    n = np.arange(3)
    m = build()
    m.fit(x, y, **FIT)
    scores.append((float(data.clip(0.1 * k, 1, data).sum()), m.evaluate(data, y, verbose=0)))
""",
    "`inplace` by stars": """\
scores = []
df = pd.DataFrame({"a": [1.0, None, 3.0]})
opts = {"inplace": True}
for k in range(3):
    df.dropna(**opts)
    m = build(1 + len(df))
    m.fit(x, y, **FIT)
    scores.append(len(df))
""",
    "a memoryview of what is trained on": """\
scores = []
data = x.copy()
v = memoryview(data)
for k in range(3):
    w = memoryview(data)
    w[0, 0] = float(k)
    m = build()
    m.fit(x, y, **FIT)
    scores.append(float(data[0, 0]))
""",
    "an in-place operator's method": """\
scores = []
data = x.copy()
for k in range(3):
    data.__imul__(0.5)
    m = build()
    m.fit(x, y, **FIT)
    scores.append(float(data.sum()))
""",
    "a compiled function that counts": """\
scores = []
import tensorflow as tf
calls = []
@tf.function
def double(v):
    calls.append(1)
    return 2 * v
for k in range(3):
    d = double(float(k))
    m = build(2 + len(calls))
    m.fit(x, y, **FIT)
    scores.append(len(calls))
""",
    "checkpoints of a subclass": """\
scores = []
class Keeps(keras.callbacks.ModelCheckpoint):
    pass
for k in range(3):
    m = build()
    m.fit(x, y, callbacks=[Keeps("a.weights.h5", save_weights_only=True)], **FIT)
    m.load_weights("a.weights.h5")
    scores.append(m.evaluate(x, y, verbose=0))
""",
    "callbacks that are items, and an error": """\
pairs = [
    (build(), keras.callbacks.EarlyStopping("loss", patience=0, min_delta=9)) for _ in range(3)
]
try:
    for i, (m, stop) in enumerate(pairs):
        m.fit(x, y, callbacks=[stop], **FIT)
        if i == 0:
            raise KeyError("stop")
except KeyError:
    stopped = [stop.stopped_epoch for _, stop in pairs]
""",
    "an inner loop over what the body sets": """\
scores, n = [], 1
for k in range(3):
    for j in range(n):
        m = build()
        m.fit(x, y, **FIT)
        n = 2
        scores.append((k, j))
""",
    "an inner loop over what the body appends to": """\
scores = [0]
for k in range(2):
    for j in range(len(scores)):
        m = build()
        m.fit(x, y, **FIT)
        scores.append((k, j))
""",
    "the inner loop's body sets the outer one's name": """\
scores = []
for k in range(2):
    for j in range(2):
        m = build(2 + k)
        m.fit(x, y, **FIT)
        scores.append((k, j))
        k = 5
""",
    "a statement that can be trained before in part": """\
log = []
def note(value):
    log.append(value)
    return value
for k in range(3):
    m = build()
    m.fit(x, y, **FIT)
    note((note(m.evaluate(x, y, verbose=0)), note(len(log)), m.evaluate(x[:8], y[:8], verbose=0)))
""",
    "a name set in the statement that trains": """\
scores = []
n = 8
for k in range(3):
    m = build()
    m.fit(x, y, **FIT)
    scores.append(((n := 8 + k), m.evaluate(x[:n], y[:n], verbose=0)))
""",
    "a constructor changes what it is given": """\
log, scores = [], []
class Run:
    def __init__(self, log, k):
        log.append(k)
        self.n = len(log)
for k in range(3):
    r = Run(log, k)
    m = build(2 + r.n)
    m.fit(x, y, **FIT)
    scores.append((len(log), m.evaluate(x, y, verbose=0)))
""",
    "a constructor's base changes a global": """\
log, scores = [], []
class Base:
    def __init__(self, log):
        log.append(1)
class Run(Base):
    def __init__(self, k):
        super().__init__(log)
for k in range(3):
    r = Run(k)
    m = build()
    m.fit(x, y, **FIT)
    scores.append((len(log), m.evaluate(x, y, verbose=0)))
""",
    "subclassed models of a list": """\
class Net(keras.Model):
    def __init__(self, u, **kw):
        super().__init__(**kw)
        self.a, self.b = layers.Dense(u, "relu"), layers.Dense(1)
    def call(self, t):
        return self.b(self.a(t))
models, scores = [Net(u) for u in (4, 8, 12)], []
for m in models:
    m.compile("adam", "mse")
    m.build((None, 4))
for m in models:
    m.fit(x, y, **FIT)
    scores.append(m.evaluate(x, y, verbose=0))
""",
}
