"""The main job on real data: three unlike models, trained together and, to compare, one by one.

Run it with `make demo`. Everything it needs ships inside scikit-learn and statsmodels.
"""

import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers
from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from statsmodels.datasets import sunspots

import kerascohost as kc

EPOCHS = {"digits_cnn": 25, "wine_mlp": 60, "sunspots_gru": 30}
BATCH_SIZE = {"digits_cnn": 64, "wine_mlp": 16, "sunspots_gru": 32}
CURVES = Path("output/losses.png")


def load_data():
    """Training and validation data of each member, as `(x, y)` pairs by name."""
    digits, wine = load_digits(), load_wine()
    series = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy() / 100
    windows = np.lib.stride_tricks.sliding_window_view(series, 13)
    pairs = {
        "digits_cnn": (digits.images[..., None] / 16, digits.target),
        "wine_mlp": (StandardScaler().fit_transform(wine.data), wine.target),
        "sunspots_gru": (windows[:, :12, None], windows[:, 12:]),
    }
    train, validation = {}, {}
    for name, (x, y) in pairs.items():
        x, x_val, y, y_val = train_test_split(
            x.astype("float32"), y, test_size=0.2, random_state=0, shuffle=name != "sunspots_gru"
        )
        train[name], validation[name] = (x, y), (x_val, y_val)
    return train, validation


def build_models():
    """The members, each with its own loss, metrics and optimizer; the same ones at every call."""
    keras.utils.set_random_seed(0)
    cnn = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dropout(0.3, seed=1),
            layers.Dense(10, activation="softmax"),
        ]
    )
    cnn.compile(
        keras.optimizers.AdamW(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    mlp = keras.Sequential(
        [
            keras.Input((13,)),
            layers.Dense(32, activation="relu", kernel_regularizer="l2"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    decay = keras.optimizers.schedules.CosineDecay(0.05, decay_steps=500)
    sgd = keras.optimizers.SGD(decay, momentum=0.9, clipnorm=1.0)
    mlp.compile(sgd, "sparse_categorical_crossentropy", metrics=["accuracy"])
    gru = keras.Sequential([keras.Input((12, 1)), layers.GRU(16), layers.Dense(1)])
    gru.compile(keras.optimizers.RMSprop(3e-3), "mse", metrics=["mae"])
    return {"digits_cnn": cnn, "wine_mlp": mlp, "sunspots_gru": gru}


def train_separately(models, train, validation):
    """Each model's own `fit`, one after another."""
    for name, model in models.items():
        keras.utils.set_random_seed(1)
        model.fit(
            *train[name],
            epochs=EPOCHS[name],
            batch_size=BATCH_SIZE[name],
            validation_data=validation[name],
            verbose=0,
        )


def train_together(models, train, validation):
    """All of them as one cohort."""
    keras.utils.set_random_seed(1)
    x = {name: pair[0] for name, pair in train.items()}
    y = {name: pair[1] for name, pair in train.items()}
    cohort = kc.Cohort(models)
    return cohort.fit(x, y, epochs=EPOCHS, batch_size=BATCH_SIZE, validation_data=validation)


def seconds(function, *args):
    """How long a call takes, and what it returns."""
    began = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - began, result


def largest_difference(models, others):
    """The largest difference between any two corresponding weights."""
    return max(
        float(np.abs(np.subtract(one, other)).max())
        for name in models
        for one, other in zip(models[name].get_weights(), others[name].get_weights(), strict=True)
    )


def results(models, history, validation):
    """What a person wants to know of each member, as a table."""
    rows = {}
    for name, model in models.items():
        score = model.evaluate(*validation[name], return_dict=True, verbose=0)
        rows[name] = {
            "optimizer": type(model.optimizer).__name__,
            "epochs": len(history[name].epoch),
            "batch size": BATCH_SIZE[name],
            "val_loss": score["loss"],
            "val_accuracy": score.get("accuracy"),
            "val_mae": score.get("mae"),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def main():
    train, validation = load_data()
    warm_up = build_models()  # so that neither side pays for the backend's own start
    warm_up["wine_mlp"].fit(*train["wine_mlp"], verbose=0)

    print(f"Training three models together ({keras.backend.backend()}) ...")
    together = build_models()
    fused, history = seconds(train_together, together, train, validation)
    print("\nThe same three models, one after another ...")
    apart = build_models()
    separate, _ = seconds(train_separately, apart, train, validation)

    CURVES.parent.mkdir(exist_ok=True)
    history.plot().figure.savefig(CURVES, dpi=150)
    print()
    print(results(together, history, validation).to_string(float_format="{:.4f}".format, na_rep=""))
    print()
    print(f"separate fit, one after another  {separate:6.1f} s")
    print(
        f"kerascohost, all together        {fused:6.1f} s: {separate / fused:.1f} times the speed"
    )
    print("(both from the first step on, tracing and compiling included)")
    print(f"\nLargest weight difference between the two: {largest_difference(together, apart):.1e}")
    print(f"Loss curves: {CURVES.resolve()}")
    print("The same in a notebook: make lab")


if __name__ == "__main__":
    main()
