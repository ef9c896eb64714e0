"""Which of three growers a wine is from, by its chemical analysis."""

import sys

import keras
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

EPOCHS = 60


def make_model(features, classes):
    inputs = keras.Input(shape=(features,))
    x = keras.layers.Dense(32, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dense(32, activation="relu")(x)
    outputs = keras.layers.Dense(classes, activation="softmax")(x)
    return keras.Model(inputs, outputs)


if __name__ == "__main__":
    keras.utils.set_random_seed(1)
    x, y = load_wine(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0)
    scaler = StandardScaler().fit(x_train)
    x_train, x_test = scaler.transform(x_train), scaler.transform(x_test)

    model = make_model(x_train.shape[1], 3)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=0.05, momentum=0.9),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    history = model.fit(
        x_train,
        keras.utils.to_categorical(y_train),
        batch_size=16,
        epochs=EPOCHS,
        callbacks=[keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=5)],
    )
    print("epochs:", len(history.history["loss"]))
    results = model.evaluate(x_test, keras.utils.to_categorical(y_test), return_dict=True)
    for name, value in results.items():
        print(f"{name}: {value:.6f}")
    model.save(f"{sys.argv[1]}/wine_mlp.keras")
