"""Handwritten digits with a small convolutional network."""

import sys

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(812)

# The data, between 0 and 1, in two parts
digits = load_digits()
images = np.expand_dims(digits.images / 16, -1).astype("float32")
x_train, x_test = images[:1400], images[1400:]
y_train, y_test = digits.target[:1400], digits.target[1400:]
print("x_train shape:", x_train.shape)
print(x_train.shape[0], "train samples")

model = keras.Sequential(
    [
        keras.Input(shape=(8, 8, 1)),
        layers.Conv2D(16, kernel_size=3, activation="relu"),
        layers.MaxPooling2D(pool_size=2),
        layers.Conv2D(32, kernel_size=2, activation="relu"),
        layers.Flatten(),
        layers.Dropout(0.3),
        layers.Dense(10, activation="softmax"),
    ]
)
model.summary()
model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
model.fit(
    x_train,
    y_train,
    batch_size=64,
    epochs=15,
    validation_split=0.1,
    callbacks=[keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)],
)

score = model.evaluate(x_test, y_test, verbose=0)
print("Test loss:", score[0])
print("Test accuracy:", score[1])
model.save(f"{sys.argv[1]}/digits_cnn.keras")
