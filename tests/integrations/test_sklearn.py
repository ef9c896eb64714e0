"""What scikit-learn trains in loops ends fused as it ends without."""

import contextlib
import pickle
import time

import joblib
import keras
import numpy as np
import pytest
from keras import layers
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import (
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.exceptions import FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

import kerascohost as kc
from kerascohost.integrations.sklearn import KerasClassifier, KerasRegressor, fused

X, Y = load_digits(n_class=3, return_X_y=True)
X, Y = (X[:90] / 16).astype("float32"), Y[:90]

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() == "torch",
        reason="there a fit in turn after a predict shuffles in another order",
    ),
    # Of Keras, for the many small models.
    pytest.mark.filterwarnings("ignore:.*triggered tf.function retracing"),
]


def build(X, y, units=8, learning_rate=0.02):
    keras.utils.set_random_seed(7)
    classes = len(np.unique(y)) if y.ndim == 1 else y.shape[1]
    net = keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            layers.Dense(units, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(classes, activation="softmax"),
        ]
    )
    loss = "categorical_crossentropy" if y.ndim > 1 else "sparse_categorical_crossentropy"
    net.compile(keras.optimizers.Adam(learning_rate), loss)
    return net


def build_regression(X, units=8):
    keras.utils.set_random_seed(7)
    net = keras.Sequential(
        [keras.Input(X.shape[1:]), layers.Dense(units, activation="relu"), layers.Dense(1)]
    )
    net.compile("adam", "mse")
    return net


def classifier(**parameters):
    return KerasClassifier(build, **{"epochs": 2, "verbose": 0} | parameters)


def same_apart_from_times(plain, together):
    assert plain.keys() == together.keys()
    for key in plain:
        if not key.endswith("_time") and key != "estimator":
            np.testing.assert_array_equal(plain[key], together[key], err_msg=key)


def searched(search):
    search.fit(X, Y)
    results = dict(search.cv_results_)
    if search.refit:
        results["predicted"] = search.predict_proba(X)
    return results


def grid_over_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), classifier())
    grid = {"kerasclassifier__learning_rate": [0.003, 0.03], "kerasclassifier__epochs": [2]}
    return searched(GridSearchCV(pipeline, grid, cv=2, return_train_score=True))


def randomized():
    search = RandomizedSearchCV(
        classifier(), {"learning_rate": [0.001, 0.01, 0.1]}, n_iter=2, cv=2, random_state=3
    )
    return searched(search)


def halving():
    grid = {"learning_rate": [0.001, 0.01, 0.1]}
    search = HalvingGridSearchCV(
        classifier(), grid, cv=2, resource="epochs", max_resources=3, min_resources=1
    )
    return searched(search)


def with_returned_estimators():
    found = cross_validate(classifier(), X, Y, cv=3, return_estimator=True, scoring="neg_log_loss")
    found["weights"] = [v for est in found["estimator"] for v in est.model_.get_weights()[0].flat]
    return found


def of_keras_wrappers():
    est = keras.wrappers.SKLearnClassifier(build, model_kwargs={"units": 4})
    scores = cross_val_score(est, X, Y, cv=2, params={"epochs": 2, "verbose": 0})
    search = GridSearchCV(est, {"model_kwargs": [{"units": 3}, {"units": 5}]}, cv=2, refit=False)
    search.fit(X, Y, verbose=0)
    return {"scores": scores, **search.cv_results_}


def curves():
    sizes, *learnt = learning_curve(classifier(), X, Y, cv=2, train_sizes=[0.5, 1.0], shuffle=False)
    validated = validation_curve(
        classifier(), X, Y, cv=2, param_name="learning_rate", param_range=[0.01, 0.1]
    )
    return {str(i): values for i, values in enumerate([sizes, *learnt, *validated])}


def bagging():
    ensemble = BaggingClassifier(classifier(), n_estimators=3, random_state=1).fit(X, Y)
    return {"predicted": ensemble.predict_proba(X)}


def voting():
    members = [("wide", classifier(units=12)), ("svc", SVC()), ("narrow", classifier(units=3))]
    return {"predicted": VotingClassifier(members).fit(X, Y).predict(X)}


def stacking():
    members = [("wide", classifier(units=12)), ("narrow", classifier(units=3))]
    ensemble = StackingClassifier(members, LogisticRegression(), cv=2).fit(X, Y)
    return {"predicted": ensemble.predict_proba(X)}


def one_against_the_rest():
    return {"predicted": OneVsRestClassifier(classifier()).fit(X, Y).predict_proba(X)}


def regression():
    members = [("one", KerasRegressor(build_regression, verbose=0)), ("two", clone(WIDE))]
    predicted = cross_val_predict(VotingRegressor(members), X, Y, cv=KFold(2))
    return {"predicted": predicted, "ensemble": VotingRegressor(members).fit(X, Y).predict(X)}


WIDE = KerasRegressor(build_regression, units=12, epochs=2, verbose=0)


def nested():
    """The larger loop is run together: here the inner one, of four fits in each of two."""
    search = GridSearchCV(classifier(), {"units": [4, 8]}, cv=2)
    return {"scores": cross_val_score(search, X, Y, cv=2)}


def nested_ensembles():
    """Here the outer one: four fits, each of an ensemble of two."""
    members = [("wide", classifier(units=12)), ("narrow", classifier(units=3))]
    ensemble = VotingClassifier(members, voting="soft")
    grid = {"wide__learning_rate": [0.1, 0.01]}
    return searched(GridSearchCV(ensemble, grid, cv=2))


def permuted():
    score, others, p = permutation_test_score(
        classifier(), X, Y, cv=2, n_permutations=2, random_state=1
    )
    return {"score": score, "others": others, "p": p}


rare = pytest.mark.nightly


@pytest.mark.parametrize(
    "run",
    [
        grid_over_a_pipeline,
        with_returned_estimators,
        *(pytest.param(run, marks=rare) for run in (
            of_keras_wrappers, halving, bagging, stacking, nested, one_against_the_rest,
            randomized, curves, voting, regression, nested_ensembles, permuted,
        )),
    ],
)  # fmt: skip
def test_equals_the_same_without(run):
    plain = run()
    with fused(layout="joined", verbose=0):
        together = run()
    same_apart_from_times(plain, together)


class Watched(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.began = time.perf_counter()

    def on_train_end(self, logs=None):
        self.ended = time.perf_counter()


def test_tasks_are_run_together():
    est = classifier(callbacks=[Watched()])
    with fused(verbose=0):
        found = cross_validate(est, X, Y, cv=3, return_estimator=True)
    watched = [it.get_params()["callbacks"][0] for it in found["estimator"]]
    assert max(it.began for it in watched) < min(it.ended for it in watched)


@pytest.mark.parametrize("of_wrapper", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_tasks_with_the_same_rows_share_one_copy(of_wrapper):
    given = []

    def noting(X, y, units=8):
        given.append(X)
        return build(X, y, units)

    if of_wrapper:
        est = keras.wrappers.SKLearnClassifier(noting)
        grid = {"model_kwargs": [{"units": units} for units in (3, 4, 5)]}
    else:
        est, grid = KerasClassifier(noting, verbose=0), {"units": [3, 4, 5]}
    plain = GridSearchCV(est, grid, cv=2, refit=False).fit(X, Y)
    assert len({id(x) for x in given}) == 6
    given.clear()
    with fused(layout="joined", verbose=0):
        together = GridSearchCV(est, grid, cv=2, refit=False).fit(X, Y)
    same_apart_from_times(plain.cv_results_, together.cv_results_)
    assert len(given) == 6 and len({id(x) for x in given}) == 2
    assert not any(x.flags.writeable for x in given)


def test_rows_are_not_shared_with_an_estimator_that_writes_to_them():
    pipeline = make_pipeline(StandardScaler(copy=False), classifier(epochs=1))
    search = GridSearchCV(pipeline, {"kerasclassifier__units": [3, 4]}, cv=2, refit=False)
    plain = search.fit(X, Y).cv_results_
    with fused(layout="joined", verbose=0):
        same_apart_from_times(plain, search.fit(X, Y).cv_results_)


def failing(X, y, units=8):
    if units == 0:
        raise ValueError("no units")
    return build(X, y, units)


def test_candidates_that_fail():
    est = KerasClassifier(failing, epochs=1, verbose=0)
    results = []
    for block in (contextlib.nullcontext(), fused(layout="joined", verbose=0)):
        search = GridSearchCV(est, {"units": [0, 4]}, cv=2, error_score=-1.0, refit=False)
        with block, pytest.warns(FitFailedWarning, match="2 fits failed out of a total of 4"):
            results.append(search.fit(X, Y).cv_results_)
    same_apart_from_times(*results)


def test_an_error_is_raised_and_no_more_tasks_begin():
    called = []

    def counted(X, y, units=8):
        called.append(units)
        return failing(X, y, units)

    est = KerasClassifier(counted, epochs=1, verbose=0)
    search = GridSearchCV(est, {"units": [0, 4, 4]}, cv=2, error_score="raise")
    with fused(at_once=2, verbose=0), pytest.raises(ValueError, match="no units"):
        search.fit(X, Y)
    assert called.count(4) == 0


def test_jobs_of_scikit_learn_count_nothing_but_one():
    with fused(at_once=3):
        for asked, expected in ((None, 3), (-1, 3), (2, 3), (8, 3), (1, 1)):
            assert joblib.effective_n_jobs(asked) == expected
        with pytest.raises(ValueError, match="n_jobs == 0"):
            joblib.effective_n_jobs(0)


def test_the_backend_is_registered_with_joblib(capsys):
    with joblib.parallel_config(backend="kerascohost", at_once=2, progress=2):
        found = joblib.Parallel()(joblib.delayed(abs)(i) for i in range(-9, 0))
    assert found == list(range(9, 0, -1))
    assert capsys.readouterr().out.splitlines()[0] == "task[0]: ended"


def test_tasks_draw_as_in_a_loop():
    ends = []
    for backend in ("sequential", "kerascohost"):
        np.random.seed(3)
        with joblib.parallel_config(backend=backend):
            found = joblib.Parallel()(joblib.delayed(np.random.random)() for _ in range(4))
        ends.append([*found, np.random.random()])
    assert ends[0] == ends[1]


def test_loops_in_a_loop():
    def inner(i, count):
        return joblib.Parallel()(joblib.delayed(pow)(i, j) for j in range(count))

    with fused(verbose=0):
        for outer, count in ((3, 5), (5, 2)):
            found = joblib.Parallel()(joblib.delayed(inner)(i, count) for i in range(outer))
            assert found == [[i**j for j in range(count)] for i in range(outer)]


def test_options_that_cannot_be():
    for options, expected in (
        ({"at_once": 0}, "Expected `at_once` to be a positive integer. Received: 0"),
        ({"layout": "grouped"}, "group_factor"),
    ):
        with pytest.raises(kc.CohortError, match=expected), fused(**options):
            pass


def test_a_clone_keeps_all_parameters():
    est = classifier(units=5, epochs=3, callbacks=[keras.callbacks.TerminateOnNaN()])
    copy = clone(est)
    assert copy.get_params().keys() == {"build", "units", "epochs", "verbose", "callbacks"}
    assert copy.get_params()["units"] == 5
    assert copy.get_params()["callbacks"] is not est.get_params()["callbacks"]
    assert copy.set_params(learning_rate=0.5).get_params()["learning_rate"] == 0.5
    assert "learning_rate" not in est.get_params()
    assert "units=5" in repr(est)


def test_parameters_that_there_are_not():
    with pytest.raises(ValueError, match=r"Expected a parameter of 'build' .* Received: 'unit'"):
        classifier().set_params(unit=3)
    with pytest.raises(ValueError, match="Received: 'unit'"):
        classifier(unit=3).fit(X, Y)
    with pytest.raises(
        kc.CohortError, match=r"Expected `build` to be a function that.*Received: 3"
    ):
        KerasClassifier(3).fit(X, Y)
    with pytest.raises(kc.CohortError, match=r"needs a fresh one\. Received: <Sequential"):
        KerasClassifier(keras.Sequential()).fit(X, Y)
    with pytest.raises(kc.CohortError, match="Expected `build` to return a compiled model"):
        KerasClassifier(lambda X: keras.Sequential()).fit(X, Y)


def of_one_output(X):
    keras.utils.set_random_seed(1)
    net = keras.Sequential([keras.Input((64,)), layers.Dense(1, activation="sigmoid")])
    net.compile(keras.optimizers.Adam(0.1), "binary_crossentropy")
    return net


def of_columns(X):
    keras.utils.set_random_seed(1)
    net = keras.Sequential([keras.Input((64,)), layers.Dense(2, activation="softmax")])
    net.compile(keras.optimizers.Adam(0.1), keras.losses.CategoricalCrossentropy())
    return net


@pytest.mark.parametrize("make", [of_one_output, of_columns])
def test_labels_of_two_classes(make):
    labels = np.array(["even", "odd"])[Y % 2]
    est = KerasClassifier(make, epochs=8, verbose=0).fit(X, labels)
    assert est.score(X, labels) > 0.9
    np.testing.assert_allclose(est.predict_proba(X).sum(axis=1), 1.0, rtol=1e-5)
    assert len(est.history_["loss"]) == 8
    again = pickle.loads(pickle.dumps(est))
    np.testing.assert_array_equal(again.predict(X), est.predict(X))


def test_progress_of_a_whole_loop(capsys):
    with fused(at_once=4):
        joblib.Parallel()(joblib.delayed(abs)(i) for i in range(12))
    assert "12/12" in capsys.readouterr().err


NOT_MET = {
    "check_sample_weight_equivalence_on_dense_data": "two rows make other batches than a weight",
    "check_regressor_multioutput": "predictions are float32, as Keras computes",
}


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of scikit-learn, about its own checks that it skips
@pytest.mark.parametrize("kind", [KerasClassifier, KerasRegressor])
def test_checks_of_scikit_learn(kind):
    make = build if kind is KerasClassifier else build_any_regression
    est = kind(make, epochs=20, verbose=0, units=32)
    results = check_estimator(est, expected_failed_checks=NOT_MET, on_skip=None)
    assert len([it for it in results if it["status"] == "passed"]) > 30


def build_any_regression(X, y, units=8):
    keras.utils.set_random_seed(7)
    outputs = 1 if y.ndim == 1 else y.shape[1]
    net = keras.Sequential(
        [keras.Input(X.shape[1:]), layers.Dense(units, activation="relu"), layers.Dense(outputs)]
    )
    net.compile(keras.optimizers.Adam(0.02), "mse")
    return net


def test_weights_of_samples_are_those_of_fit():
    weights = np.linspace(0.0, 1.0, len(X))
    estimator = KerasClassifier(build, epochs=1, verbose=0, shuffle=False)
    estimator.fit(X, Y, sample_weight=weights)
    net = build(X, Y)
    history = net.fit(X, Y, sample_weight=weights, verbose=0, shuffle=False).history
    np.testing.assert_allclose(estimator.history_["loss"], history["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KerasClassifier(build).fit(X, np.zeros(len(X))), ValueError, "only one class is"),
        (lambda: KerasRegressor(3).fit(X, Y), kc.CohortError, "a function that returns a compiled"),
        (lambda: KerasRegressor(lambda: 3).fit(X, Y), kc.CohortError, "to return a compiled model"),
    ],
)
def test_what_cannot_be_fitted_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
    assert KerasRegressor(3).get_params() == {"build": 3}  # which scikit-learn asks for before
