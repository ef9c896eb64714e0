"""Programs that read or change what a deferred fit trains; run alone, and in a block."""

# ruff: noqa: E501  # programs as people write them, each in few lines

PREAMBLE = """
import contextlib, copy, io, os, pickle, keras, numpy as np, kerascohost as kc
from keras import layers
L, C = layers, keras.callbacks
data = np.random.default_rng(0)
x = data.normal(size=(64, 4)).astype("float32"); y = x.sum(1, keepdims=True).astype("float32")
count = 0
def init():
    global count
    count += 1
    return keras.initializers.GlorotUniform(seed=count)
def dense(units=3, **kw): return L.Dense(units, kernel_initializer=init(), **kw)
def net(*extra, inputs=True):
    return keras.Sequential([*([keras.Input((4,))] if inputs else []), dense(6, activation="tanh"), *extra, dense(1)])
def compiled(*extra, inputs=True, optimizer=None, **kw):
    m = net(*extra, inputs=inputs); m.compile(optimizer or keras.optimizers.SGD(0.05, momentum=.5), "mse", **kw); return m
FIT = dict(epochs=2, batch_size=16, verbose=0, shuffle=False)
def value(v): return keras.ops.convert_to_numpy(v).tolist()
models, seen = [], []
class Halve(C.Callback):
    done = 0
    def on_epoch_end(self, e, logs=None):
        self.done += 1
        self.model.optimizer.learning_rate.assign(self.model.optimizer.learning_rate * .5)
"""

# Must see what they see alone, and end as they do alone.
LOOKING = {
    "predict of a part": """
enc = keras.Sequential([keras.Input((4,)), dense(2)]); enc.predict(x, verbose=0)
ae = keras.Sequential([enc, dense(4)]); ae.compile("sgd", "mse")
with HOLD():
    ae.fit(x, x, **FIT); seen.append(enc.predict(x, verbose=0).tolist())
models.append(ae)
""",
    "evaluate of another model over its layers": """
m = compiled(); other = keras.Sequential([keras.Input((4,)), *m.layers]); other.compile("sgd", "mae"); other.evaluate(x, y, verbose=0)
with HOLD():
    m.fit(x, y, **FIT); seen.append(other.evaluate(x, y, verbose=0))
models.append(m)
""",
    "train_on_batch and test_on_batch": """
m = compiled(metrics=["mae"])
with HOLD():
    m.fit(x, y, **FIT); seen.append(np.array(m.train_on_batch(x, y)).tolist()); m.fit(x, y, **FIT); seen.append(np.array(m.test_on_batch(x, y)).tolist())
models.append(m)
""",
    "k folds with evaluate": """
with HOLD():
    for k in range(3):
        m = compiled(); m.fit(x[k:40], y[k:40], **FIT); models.append(m); seen.append(m.evaluate(x, y, verbose=0))
""",
    "a model called on data": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); seen.append(value(m(x[:3])))
models.append(m)
""",
    "a model called under mixed precision": """
m = keras.Sequential([keras.Input((4,)), dense(6, dtype="mixed_bfloat16"), dense(1)]); m.compile("sgd", "mse")
with HOLD():
    m.fit(x, y, **FIT); seen.append(np.asarray(value(keras.ops.cast(m.layers[0](x[:3]), "float32"))).tolist())
models.append(m)
""",
    "get_weights of a layer, of a model": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); seen.append(m.layers[0].get_weights()[0].tolist())
    n = compiled(); n.fit(x, y, **FIT); seen.append(n.get_weights()[0].tolist())
models += [m, n]
""",
    "values of variables": """
with HOLD():
    m = compiled(); v = m.layers[0].kernel; m.fit(x, y, **FIT); seen.append(np.array(v).tolist())
    m.fit(x, y, **FIT); seen.append(v.numpy().tolist())
    m.fit(x, y, **FIT); seen.append(value(v[0] + 1))
    m.fit(x, y, **FIT); seen.append(repr(v)[:90])
    m.fit(x, y, **FIT); seen.append(value(copy.deepcopy(v)))
models.append(m)
""",
    "counters and momentum of the optimizer": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); seen.append(int(m.optimizer.iterations))
    n = compiled(); n.fit(x, y, **FIT); seen.append([value(v) for v in n.optimizer.variables])
models += [m, n]
""",
    "the learning rate that a callback changes": """
with HOLD():
    m = compiled(); m.fit(x, y, callbacks=[Halve()], **FIT); seen.append(float(m.optimizer.learning_rate))
    m.fit(x, y, callbacks=[Halve()], **FIT); seen.append(round(m.optimizer.get_config()["learning_rate"], 6))
models.append(m)
""",
    "the learning rate is set": """
with HOLD():
    for rate in (.1, .01):
        m = compiled(); m.fit(x, y, **FIT); m.optimizer.learning_rate = rate; m.fit(x, y, **FIT); models.append(m)
        m.optimizer.learning_rate.assign(.3); m.fit(x, y, **FIT); seen.append(float(m.optimizer.learning_rate))
""",
    "an attribute of the optimizer is set": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); m.optimizer.nesterov = True; models.append(m)
""",
    "layers are frozen after a fit": """
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, **FIT); m.layers[0].trainable = False; models.append(m)
seen = [m.layers[0].trainable for m in models]
""",
    "a variable is frozen after a fit": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); m.layers[0].bias.trainable = False; models.append(m)
""",
    "the rate of a Dropout is set": """
with HOLD():
    m = compiled(L.Dropout(0.)); m.fit(x, y, **FIT); m.layers[1].rate = .9; models.append(m)
seen.append(m.layers[1].rate)
""",
    "a regularizer and a schedule are changed": """
rate = keras.optimizers.schedules.ExponentialDecay(.1, 4, .5)
with HOLD():
    m = compiled(dense(4, kernel_regularizer=keras.regularizers.L2(.1)), optimizer=keras.optimizers.SGD(rate)); m.fit(x, y, **FIT)
    m.layers[1].kernel_regularizer.l2 = 50.; m.fit(x[:8], y[:8], **FIT)
    n = compiled(optimizer=keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(.1, 4, .5))); n.fit(x, y, **FIT); n.optimizer._learning_rate.decay_rate = 90.
models.append(n); seen.append(m.get_weights()[0].shape)
""",
    "weights are assigned and set": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); m.layers[-1].kernel.assign(m.layers[-1].kernel * 0 + 1); m.fit(x, y, **FIT); models.append(m)
    n = compiled(); n.fit(x, y, **FIT); n.layers[0].set_weights([np.ones((4, 6)), np.ones(6)]); n.fit(x, y, **FIT); models.append(n)
""",
    "compiled again": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); m.compile(keras.optimizers.SGD(.001), "mae"); m.fit(x, y, **FIT)
models.append(m)
""",
    "a head on a frozen base": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); m.layers[0].trainable = False
    h = keras.Sequential([m.layers[0], dense(1)]); h.compile(keras.optimizers.SGD(.1), "mse"); h.fit(x, y, **FIT)
models += [m, h]
""",
    "a layer is added": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); m.add(dense(1)); m.compile("sgd", "mse"); m.fit(x, y, **FIT); m.pop()
seen += [w.tolist() for w in m.get_weights()]
""",
    "saved and loaded": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); keras.saving.save_model(m, "m.keras"); a = keras.saving.load_model("m.keras")
    m.fit(x, y, **FIT); m.save("n.keras"); b = keras.models.load_model("n.keras"); b.fit(x, y, **FIT)
    m.fit(x, y, callbacks=[Halve()], **FIT); keras.saving.save_model(m, "o.keras"); c = keras.saving.load_model("o.keras")
    m.fit(x, y, **FIT); m.save_weights("m.weights.h5"); d = net(); d.load_weights("m.weights.h5")
models += [m, a, b, c]; seen += [w.tolist() for w in d.get_weights()] + [float(c.optimizer.learning_rate)]
""",
    "the file of a checkpoint is loaded": """
with HOLD():
    m = compiled(); m.fit(x, y, callbacks=[C.ModelCheckpoint("best_{epoch}.keras")], **FIT); models.append(keras.saving.load_model("best_2.keras"))
    m.fit(x, y, callbacks=[C.ModelCheckpoint("w.weights.h5", save_weights_only=True)], **FIT); d = net(); d.load_weights("w.weights.h5")
seen += [w.tolist() for w in d.get_weights()]
""",
    "copied and pickled": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); a = copy.deepcopy(m); a.fit(x, y, **FIT)
    m.fit(x, y, **FIT); b = pickle.loads(pickle.dumps(m))
models += [m, a, b]
""",
    "clones": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); a = keras.models.clone_model(m); a.set_weights([w * 0 + 1 for w in m.get_weights()]); a.compile("sgd", "mse"); a.fit(x, y, **FIT)
    c, = kc.clones(m, 1, seed=1); c.fit(x, y, **FIT)
models += [m, a, c]
""",
    "a History is read": """
with HOLD():
    for i in range(2):
        m = compiled(); h = m.fit(x, y, **FIT); models.append(m); seen.append(min(h.history["loss"])); h = m.fit(x, y, **FIT); seen.append(getattr(h, "history", {}))
    h = m.fit(x, y, **FIT); seen += [h.epoch, h.model is m, h.params]
    m.fit(x, y, **FIT); seen.append(m.history.history)
    seen.append(copy.deepcopy(m.fit(x, y, **FIT)).epoch)
""",
    "callbacks are read and set": """
class Record(C.Callback):
    def on_train_begin(self, logs=None): self.losses = []
    def on_epoch_end(self, e, logs=None): self.losses.append(e)
with HOLD():
    for i in range(2):
        r = Record(); m = compiled(); m.fit(x, y, callbacks=[r], **FIT); models.append(m); seen.append(len(r.losses))
    for p in (0, 5):
        es = C.EarlyStopping("loss", patience=p, baseline=-1e9, min_delta=1e9); m = compiled(); m.fit(x, y, callbacks=es, epochs=4, verbose=0, shuffle=False); models.append(m); seen.append(es.stopped_epoch); es.patience = 0
    r = Record(); m.fit(x, y, callbacks=[r], **FIT); seen.append(vars(r)["losses"])
    r = Record(); m.fit(x, y, callbacks=[r], **FIT); seen.append(copy.copy(r).losses)
""",
    "stop_training is read": """
with HOLD():
    m = compiled(); m.fit(x, y, callbacks=[C.EarlyStopping("loss", patience=0, baseline=-1e9)], **FIT); seen.append(m.stop_training); models.append(m)
""",
    "metrics are read": """
with HOLD():
    m = compiled(metrics=["mae", keras.metrics.RootMeanSquaredError(name="r")]); m.fit(x, y, **FIT); seen.append(m.metrics_names)
    m.fit(x, y, **FIT); seen.append({k: float(v) for k, v in m.get_metrics_result().items()})
    rmse = keras.metrics.RootMeanSquaredError(name="r"); n = compiled(metrics=[rmse]); n.fit(x, y, **FIT); seen.append(float(rmse.result()))
models += [m, n]
""",
    "models that are not built": """
with HOLD():
    m = compiled(inputs=False); m.fit(x, y, **FIT); seen += [m.built, len(m.weights), m.count_params()]
    n = compiled(inputs=False); n.fit(x, y, **FIT); seen += [value(n.layers[0].kernel), len(n.optimizer.variables)]
    o = compiled(inputs=False); o.fit(x, y, **FIT); p = keras.Sequential([keras.Input((4,)), o.layers[0], dense(1)]); p.compile("sgd", "mse"); p.fit(x, y, **FIT)
models += [m, n, o, p]
""",
    "a subclass with its own step": """
class Own(keras.Model):
    def __init__(self): super().__init__(); self.one, self.two = dense(5), dense(1)
    def call(self, a): return self.two(self.one(a))
with HOLD():
    m = Own(); m.compile("sgd", "mse"); m.fit(x, y, **FIT); seen.append(value(m.one.kernel)); seen.append(value(m(x[:2])))
models.append(m)
""",
    "a function of the user's that is compiled": """
m = compiled()
if BACKEND == "tensorflow":
    import tensorflow as tf
    f = tf.function(lambda a: m(a))
else:
    import jax
    f = jax.jit(lambda a: m(a))
with HOLD():
    for i in range(2):
        m.fit(x, y, **FIT)
        if i == 0 or BACKEND == "tensorflow": seen.append(value(f(x[:3])))
models.append(m)
""",
    "gradients of a deferred model": """
m = compiled(); v = m.trainable_variables
with HOLD():
    m.fit(x, y, **FIT)
    if BACKEND == "tensorflow":
        import tensorflow as tf
        with tf.GradientTape() as tape: loss = tf.reduce_mean((m(x) - y) ** 2)
        seen += [value(g) for g in tape.gradient(loss, v)]
    else:
        import jax
        def loss(w): return ((m.stateless_call(w, [], x)[0] - y) ** 2).mean()
        seen += [value(g) for g in jax.grad(loss)([a.value for a in v])]
models.append(m)
""",
    "a teacher inside a jitted step of the user's": """
m = compiled(); s = compiled()
with HOLD():
    m.fit(x, y, **FIT)
    if BACKEND == "jax":
        import jax
        def loss(w): return ((s.stateless_call(w, [], x)[0] - m(x)) ** 2).mean()
        seen += [value(g) for g in jax.jit(jax.grad(loss))([a.value for a in s.trainable_variables])]
    else: seen += [value(m(x[:3]))]
models.append(m)
""",
    "compiled anew for each value": """
m = compiled()
with HOLD():
    for q in (1., 5., 9.):
        m.compile(keras.optimizers.SGD(.01), lambda t, p: q * keras.ops.mean((t - p) ** 2)); m.fit(x, y, **FIT); seen.append(m.evaluate(x, y, verbose=0))
models.append(m)
""",
    "a teacher that is changed after the call": """
def distilled(teacher):
    s = net(); s.compile("sgd", lambda t, p: keras.ops.mean((p - teacher(x[:16])) ** 2)); return s
a, b, s, u, w = compiled(), compiled(), None, None, compiled()
with HOLD():
    s = distilled(a); s.fit(x, y, **FIT); a.train_on_batch(x, y)
    u = distilled(b); u.fit(x, y, **FIT); b.layers[0].kernel.assign(b.layers[0].kernel * 0)
    w.fit(x, y, **FIT); v = distilled(w); v.fit(x, y, **FIT); seen.append(value(v(x[:2]))); w.fit(x, y, **FIT)
models += [a, b, s, u, v, w]
""",
    "a model of its own fit": """
class Own(keras.Sequential):
    def fit(self, *args, **kwargs): return super().fit(*args, **kwargs)
import warnings
with HOLD(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    m = compiled(); m.fit(x, y, **FIT); o = Own([keras.Input((4,)), m.layers[0], dense(1)]); o.compile("sgd", "mse"); o.fit(x, y, **FIT)
models += [m, o]
""",
    "an inner block over the layers of an outer one": """
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); o = keras.Sequential([keras.Input((4,)), m.layers[0], dense(1)]); o.compile("sgd", "mse")
    with HOLD(): o.fit(x, y, **FIT)
models += [m, o]
""",
    "seeds and draws between": """
with HOLD():
    for s in (1, 2):
        keras.utils.set_random_seed(s); m = compiled(); m.fit(x, y, epochs=2, verbose=0); models.append(m); seen.append(m.evaluate(x, y, verbose=0)); seen.append(float(np.random.normal()))
""",
    "a failure that the program handles": """
class Bad(C.Callback):
    def on_epoch_end(self, e, logs=None): raise KeyError("bad")
with HOLD():
    with contextlib.redirect_stdout(io.StringIO()):
        for i in range(3):
            m = compiled(); models.append(m)
            try: m.fit(x, y, callbacks=[Bad()] if i == 1 else [], epochs=2, batch_size=16, verbose=2, shuffle=False); seen.append(m.evaluate(x, y, verbose=0))
            except KeyError as error: seen.append(repr(error))
models.pop(1)
""",
    "output is redirected around a fit": """
class Say(C.Callback):
    def on_epoch_end(self, e, logs=None): print("epoch", e)
with HOLD():
    m = compiled(); m.fit(x, y, **FIT)
    with contextlib.redirect_stdout(io.StringIO()) as out: m.fit(x, y, callbacks=[Say()], **FIT)
    seen.append(out.getvalue())
models.append(m)
""",
    "a file that is open around a fit": """
import h5py
with h5py.File("d.h5", "w") as f: f["x"], f["y"] = x, y
def rows(f):
    while True: yield f["x"][:32], f["y"][:32]
class Rows(keras.utils.PyDataset):
    def __init__(self, f): super().__init__(); self.f = f
    def __len__(self): return 2
    def __getitem__(self, i): return self.f["x"][i * 32:i * 32 + 32], self.f["y"][i * 32:i * 32 + 32]
with HOLD():
    with h5py.File("d.h5") as f: m = compiled(); m.fit(f["x"], f["y"], epochs=2, batch_size=16, verbose=0, shuffle="batch" if BACKEND == "torch" else False)
    with h5py.File("d.h5") as f: n = compiled(); n.fit(rows(f), steps_per_epoch=2, epochs=2, verbose=0, shuffle=False)
    with h5py.File("d.h5") as f: o = compiled(); o.fit(Rows(f), epochs=2, verbose=0, shuffle=False)
models += [m, n, o]
""",
    "a wrapper of fit from before the block": """
log, kept = [], keras.Model.fit
class Log(C.Callback):
    def on_epoch_end(self, e, logs=None): log.append(e)
def fit(self, *args, **kwargs): kwargs["callbacks"] = [*kwargs.get("callbacks", []), Log()]; return kept(self, *args, **kwargs)
keras.Model.fit = fit
try:
    with HOLD():
        m = compiled(); m.fit(x, y, **FIT); seen.append(list(log)); o = keras.Sequential([m.layers[0], dense(1)]); o.compile("sgd", "mse"); o.fit(x, y, **FIT)
    seen.append(keras.Model.fit is fit)
finally: del keras.Model.fit
models += [m, o]; seen.append(log)
""",
    "a wrapper of fit from inside the block": """
log = []
class Log(C.Callback):
    def on_epoch_end(self, e, logs=None): log.append(e)
try:
    with HOLD():
        kept = keras.Model.fit
        def fit(self, *args, **kwargs): kwargs["callbacks"] = [Log()]; return kept(self, *args, **kwargs)
        keras.Model.fit = fit; m = compiled(); m.fit(x, y, **FIT)
    seen.append(keras.Model.fit is fit); m.fit(x, y, **FIT); seen.append(log)
finally: del keras.Model.fit
models.append(m)
""",
}

# Must be trained at the end of the block, all together.
UNTOUCHED = {
    "summary, counts, configs, shapes, names": """
with HOLD():
    for i in range(2):
        m = compiled(); m.fit(x, y, **FIT); models.append(m)
        m.summary(print_fn=lambda s, **k: None); m.count_params(); [w.shape for w in m.weights]; m.get_config(); m.to_json(); m.optimizer.get_config(); repr(m); m.input_shape; m.name; [l.name for l in m.layers]
        m.optimizer.learning_rate; float(m.optimizer.learning_rate); m.layers[0].kernel.path; m.built; len(m.trainable_variables); m.loss; m.optimizer
""",
    "clones and other models": """
n = compiled(); n.fit(x, y, **FIT)
with HOLD():
    m = compiled(); m.fit(x, y, **FIT); models.append(m)
    c = keras.models.clone_model(m); c.compile("sgd", "mse"); c.evaluate(x, y, verbose=0); c.predict(x, verbose=0); c.get_weights()
    keras.Model(m.inputs, L.Dense(2)(m.layers[0].output)); keras.Sequential([keras.Input((4,)), m.layers[0], L.Dense(2)]); m(keras.Input((4,)))
    n.save("n.keras"); o = keras.saving.load_model("n.keras"); o.fit(x, y, **FIT); models.append(o); copy.deepcopy(n); kc.clones(n, 1)
    n.optimizer.learning_rate = .3; n.fit(x, y, **FIT); models.append(n)
""",
    "fits in a row, also of models that are not built": """
with HOLD():
    for i in range(2):
        m = compiled(inputs=bool(i)); h = m.fit(x, y, callbacks=[Halve()], **FIT); m.fit(x, y, **FIT); models.append(m); repr(h); m.name; m.optimizer
seen.append(h.history)
""",
    "one callback for all fits": """
class Say(C.Callback):
    log = []
    def on_train_end(self, logs=None): Say.log.append(1)
say = Say()
with HOLD():
    for i in range(2): m = compiled(); m.fit(x, y, callbacks=[say], **FIT); models.append(m)
""",
    "silent fits where output is redirected": """
with HOLD():
    for i in range(2):
        with contextlib.redirect_stdout(io.StringIO()): m = compiled(); m.fit(x, y, **FIT); models.append(m)
""",
    "data of all kinds": """
import pandas as pd
def rows():
    while True: yield x[:32], y[:32]
class Rows(keras.utils.PyDataset):
    def __len__(self): return 2
    def __getitem__(self, i): return x[i * 32:i * 32 + 32], y[i * 32:i * 32 + 32]
with HOLD():
    for d, k in (((x, y), {}), ((pd.DataFrame(x), y), {}), ((rows(),), {"steps_per_epoch": 2}), ((Rows(),), {}), ((keras.ops.convert_to_tensor(x), y), {})):
        m = compiled(); m.fit(*d, epochs=2, verbose=0, shuffle=False, **k); models.append(m)
""",
}
