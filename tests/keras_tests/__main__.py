"""Runs Keras's installed tests as they are and through cohorts, and tells what is lost.

    KERAS_BACKEND=jax python -m tests.keras_tests [mode ...] [--only trainers/trainer_test.py]

Only tests that pass as they are and call `fit` (or `evaluate`, `predict`) of a model are routed.
One is lost where it then fails. `lost.toml` holds those that may be, each with its reason; the run
fails if any other is lost, or if one of them passes.
"""

import argparse
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import keras

HERE = Path(__file__).parent
ROOT = Path(keras.__file__).parents[1]
OUTPUT = Path("output/keras_tests")
MODES = ("cohort", "cohost", "stacked")
MOST_LOST = 10
LEAST_PLAIN = 100  # fewer, and something keeps the tests from being run at all

# Those whose tests train, evaluate or predict; left out is what needs packages that the project
# does not (Orbax, LiteRT, torch, Keras's own conftest), several devices, or pretrained weights from
# the network. Of the layers' tests, whose `run_layer_test` trains a step, there are some of each
# kind. Left out are those which train nothing (most of attention, merging, preprocessing), what
# takes minutes for little (EinsumDense, ReversibleEmbedding and STFTSpectrogram; GRU, ConvLSTM and
# stacked cells, which TensorFlow vectorises for a minute each), and more of one kind (transposed
# convolutions, adaptive pooling, other cropping). No test of a loss calls `fit`.
FILES = (
    "trainers/trainer_test.py",
    "callbacks/backup_and_restore_test.py",
    "callbacks/callback_test.py",
    "callbacks/csv_logger_test.py",
    "callbacks/early_stopping_test.py",
    "callbacks/lambda_callback_test.py",
    "callbacks/learning_rate_scheduler_test.py",
    "callbacks/model_checkpoint_test.py",
    "callbacks/monitor_callback_test.py",
    "callbacks/reduce_lr_on_plateau_test.py",
    "callbacks/swap_ema_weights_test.py",
    "callbacks/tensorboard_test.py",
    "callbacks/terminate_on_nan_test.py",
    "models/cloning_test.py",
    "models/functional_test.py",
    "models/model_test.py",
    "models/sequential_test.py",
    "models/variable_mapping_test.py",
    "backend/jax/trainer_test.py",
    "distillation/distiller_test.py",
    "layers/activations/activation_test.py",
    "layers/activations/leaky_relu_test.py",
    "layers/activations/prelu_test.py",
    "layers/activations/softmax_test.py",
    "layers/attention/multi_head_attention_test.py",
    "layers/convolutional/conv_test.py",
    "layers/convolutional/depthwise_conv_test.py",
    "layers/convolutional/separable_conv_test.py",
    "layers/core/dense_test.py",
    "layers/core/embedding_test.py",
    "layers/core/lambda_layer_test.py",
    "layers/core/masking_test.py",
    "layers/core/wrapper_test.py",
    "layers/layer_test.py",
    "layers/merging/merging_test.py",
    "layers/normalization/batch_normalization_test.py",
    "layers/normalization/group_normalization_test.py",
    "layers/normalization/layer_normalization_test.py",
    "layers/normalization/rms_normalization_test.py",
    "layers/normalization/spectral_normalization_test.py",
    "layers/normalization/unit_normalization_test.py",
    "layers/pooling/average_pooling_test.py",
    "layers/pooling/global_average_pooling_test.py",
    "layers/pooling/max_pooling_test.py",
    "layers/preprocessing/feature_space_test.py",
    "layers/preprocessing/image_preprocessing/random_flip_test.py",
    "layers/preprocessing/image_preprocessing/random_zoom_test.py",
    "layers/preprocessing/normalization_test.py",
    "layers/regularization/activity_regularization_test.py",
    "layers/regularization/alpha_dropout_test.py",
    "layers/regularization/dropout_test.py",
    "layers/regularization/gaussian_dropout_test.py",
    "layers/regularization/gaussian_noise_test.py",
    "layers/regularization/spatial_dropout_test.py",
    "layers/reshaping/cropping2d_test.py",
    "layers/reshaping/permute_test.py",
    "layers/reshaping/repeat_vector_test.py",
    "layers/reshaping/reshape_test.py",
    "layers/reshaping/up_sampling2d_test.py",
    "layers/rnn/bidirectional_test.py",
    "layers/rnn/dropout_rnn_cell_test.py",
    "layers/rnn/lstm_test.py",
    "layers/rnn/time_distributed_test.py",
    "metrics/confusion_metrics_test.py",
    "metrics/reduction_metrics_test.py",
    "optimizers/adam_test.py",
    "optimizers/lion_test.py",
    "optimizers/multi_optimizer_test.py",
    "optimizers/muon_test.py",
    "optimizers/optimizer_test.py",
    "optimizers/schedule_free_adamw_test.py",
    "optimizers/schedules/learning_rate_schedule_test.py",
    "saving/saving_api_test.py",
    "saving/saving_lib_test.py",
    "utils/jax_layer_test.py",
    "utils/rng_utils_test.py",
    "wrappers/sklearn_test.py",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modes", nargs="*", metavar="mode", help=", ".join(MODES))
    parser.add_argument("--only", nargs="+", default=FILES, help="files of keras/src to run")
    parser.add_argument("--keep-plain", action="store_true", help="use the last plain results")
    parser.add_argument("-k", default="", help="as in pytest")
    asked = parser.parse_args()
    asked.modes = asked.modes or MODES
    if unknown := set(asked.modes) - set(MODES):
        parser.error(f"expected modes of {', '.join(MODES)}; received: {unknown}")
    backend = keras.backend.backend()
    if not (asked.keep_plain and _file(backend, "plain").exists()):
        run(backend, "plain", asked)
    plain = results(backend, "plain")
    if whole := asked.only is FILES and not asked.k:
        passed = [line for line in plain.values() if line["outcome"] == "passed"]
        print(f"{backend}: {len(passed)} tests pass plain", flush=True)
    faults = []
    for mode in asked.modes:
        tests = [test for test, line in plain.items() if _may_be_routed(line, mode)]
        routed = run(backend, mode, asked, tests)
        asked_for = tests if whole else [test for test in tests if test in routed]
        faults.append(tell(backend, mode, asked_for, routed, whole))
    return int(any(faults))


def _may_be_routed(line: dict, mode: str) -> bool:
    calls = line.get("routed", [])
    return line["outcome"] == "passed" and bool("fit" in calls if mode == "cohost" else calls)


def run(
    backend: str, mode: str, asked: argparse.Namespace, tests: list[str] | None = None
) -> dict[str, dict]:
    """What each test, or each of `tests`, came to, in a process of its own."""
    files = [ROOT / "keras" / "src" / name for name in asked.only]
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "COHORT_MODE": mode,
        "COHORT_REPORT": str(_file(backend, mode).absolute()),
    }
    if tests is not None:
        chosen = OUTPUT / f"{backend}-{mode}.tests"
        chosen.write_text("".join(f"keras/src/{test}\n" for test in tests))
        environment["COHORT_TESTS"] = str(chosen.absolute())
    # An empty configuration: Keras's tests know nothing of ours.
    command = [sys.executable, "-m", "pytest", "-p", f"{__package__}.plugin", "-c", os.devnull]
    command += ["--rootdir", ROOT, "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-p", "no:faulthandler", "--disable-warnings", "--continue-on-collection-errors"]
    command += [*(["-k", asked.k] if asked.k else []), *filter(Path.exists, files)]
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with _file(backend, mode).with_suffix(".log").open("w") as log:
        subprocess.run(
            list(map(str, command)), env=environment, stdout=log, stderr=log, check=False
        )
    return results(backend, mode)


def results(backend: str, mode: str) -> dict[str, dict]:
    """What is known of each test of the last run."""
    lines = map(json.loads, _file(backend, mode).read_text().splitlines())
    return {line["test"].removeprefix("keras/src/"): line for line in lines}


def _file(backend: str, mode: str) -> Path:
    return OUTPUT / f"{backend}-{mode}.jsonl"


def tell(backend: str, mode: str, tests: list[str], routed: dict, whole: bool) -> bool:
    """Prints what was lost of `tests`; returns whether that is more than may be."""
    came_to = {test: routed.get(test, {"outcome": "not run"}) for test in tests}
    refused = [test for test, line in came_to.items() if line["outcome"] == "refused"]
    lost = [t for t, line in came_to.items() if line["outcome"] not in ("passed", "refused")]
    listed = tomllib.loads((HERE / "lost.toml").read_text()).get(backend, {}).get(mode, {})
    new = [test for test in lost if test not in listed]
    stale = [test for test in listed if test not in lost] if whole else []
    sent = [line for line in came_to.values() if line.get("routed")]
    print(
        f"{backend} {mode}: {len(tests)} pass plain; routed {len(tests) - len(lost + refused)} "
        f"pass, {len(refused)} are refused, {len(lost)} lost ({len(lost) - len(new)} of them "
        f"listed). Calls sent through cohorts: {sum(len(line['routed']) for line in sent)}; "
        f"stacked: {sum(line['stacked'] for line in sent)}.",
        flush=True,
    )
    for title, names in (("lost", new), ("listed, but not lost", stale), ("refused", refused)):
        for test in names:
            print(f"  {title}: {test}: {came_to.get(test, {}).get('why', '').splitlines()[:1]}")
    if len(listed) > MOST_LOST:
        print(f"  listed are {len(listed)}, more than the {MOST_LOST} that may be lost")
    too_few = whole and len(tests) < LEAST_PLAIN
    if too_few:
        print(f"  Expected at least {LEAST_PLAIN} tests that pass plain. Received: {len(tests)}")
    return bool(new or stale or too_few or len(listed) > MOST_LOST)


if __name__ == "__main__":
    sys.exit(main())
