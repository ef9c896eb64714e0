"""What the widget costs in the kernel: to open it on 64 models, to tick them, and to train by it.

Training by the widget and by `Cohort.fit` take turns, each with a new cohort of the same models, so
tracing is included. Prints a line of JSON: seconds, and the medians of the ratios.
"""

import json
import os
import statistics

import keras
from keras import layers

import kerascohost as kc
from tests.benchmarks import cases, seconds

ROUNDS = 3
LONG = (2, 10)  # seconds that a fit takes
X, Y = cases.normal(2048, (20,), 1)


def net(units=16):
    return cases.compiled(
        keras.Sequential([keras.Input((20,)), layers.Dense(units), layers.Dense(1)])
    )


def of_sixty_four():
    """The seconds to make a widget that finds 64 models, and to tick all of them."""
    variables = {"x": X, "y": Y, "seeds": kc.clones(net(), 64, seed=0)}
    made = []
    opened = seconds(lambda: made.append(kc.CohostWidget(variables)))
    widget = made[0]
    tick = {"do": "select", "names": list(widget.session.models), "value": True}
    ticked = seconds(widget._handle_custom_msg, tick, [])
    assert len(widget.session.selected) == 64
    widget.close()
    return opened, ticked


def trained(models, epochs):
    kc.Cohort(models).fit(X, Y, epochs=epochs, verbose=0)


def trained_by_widget(models, epochs):
    widget = kc.CohostWidget({"x": X, "y": Y, **models})
    session = widget.session
    session.selected = list(models)
    session.epochs = dict.fromkeys(models, epochs)
    taken = seconds(lambda: (session.train(), session.wait()))
    assert not session.errors, session.errors
    widget.close()
    return taken


def main():
    models = {"small": net(), "large": net(64)}
    trained(models, 2)
    few, many = (seconds(trained, models, epochs) for epochs in (5, 55))
    overhead = {}
    for long in LONG:
        epochs = max(5, round(5 + (long - few) * 50 / (many - few)))
        ratios = [
            trained_by_widget(models, epochs) / seconds(trained, models, epochs)
            for _ in range(ROUNDS)
        ]
        overhead[long] = statistics.median(ratios) - 1
    opened, ticked = of_sixty_four()
    row = {"opened": opened, "ticked": ticked, "overhead": overhead}
    print(json.dumps({"backend": os.environ["KERAS_BACKEND"], **row}))


if __name__ == "__main__":
    main()
