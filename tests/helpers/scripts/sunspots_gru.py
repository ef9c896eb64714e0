"""Next year's sunspots from the last twelve years'; the number of units is chosen on the way."""

import sys

import keras
import numpy as np
from statsmodels.datasets import sunspots

keras.utils.set_random_seed(7)

series = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy() / 100
past = np.stack([series[i : i + 12] for i in range(len(series) - 12)])[..., None]
following = series[12:, None]

best = None
for units in [8, 16]:
    model = keras.Sequential(
        [keras.Input(shape=(12, 1)), keras.layers.GRU(units), keras.layers.Dense(1)]
    )
    model.compile(optimizer=keras.optimizers.RMSprop(3e-3), loss="mse", metrics=["mae"])
    model.fit(past[:240], following[:240], epochs=15, verbose=2)
    loss, mae = model.evaluate(past[240:], following[240:], verbose=0)
    print(f"{units} units: loss {loss:.5f}, mae {mae:.5f}")
    if best is None or loss < best[0]:
        best = loss, model

print("Predicted:", best[1].predict(past[-3:], verbose=0).ravel())
best[1].save(f"{sys.argv[1]}/sunspots_gru.keras")
