"""Makes the ONNX files beside this, of Keras networks by tf2onnx: `python make.py` where tensorflow and tf2onnx are.

They are kept, because TensorFlow is too large to install for two tests. These were made with TensorFlow 2.21, Keras
3.15 and tf2onnx 1.17, which export no GELU and no Normalization layer of that Keras. Images are exported with their
channels first, as the service takes them: `inputs_as_nchw`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

HERE = Path(__file__).parent
layers: Any = tf.keras.layers


def perceptron() -> Any:
    """With a scaled input, ReLU, SiLU and a batch normalisation that has learnt."""
    draw = np.random.default_rng(0)
    learnt = layers.BatchNormalization()
    first = [tf.keras.Input((6,)), layers.Rescaling(0.5, offset=0.25), layers.Dense(16, activation="relu"), learnt]
    model = tf.keras.Sequential([*first, layers.Dense(16, activation="silu"), layers.Dense(3, activation="softmax")])
    learnt.set_weights(
        [draw.uniform(0.5, 1.5, 16), draw.normal(size=16), draw.normal(size=16), draw.uniform(0.5, 2, 16)]
    )
    return model


def convolutional() -> Any:
    """With strides, a depthwise convolution, a residual connection and both pools."""
    image = tf.keras.Input((16, 16, 3))
    hidden = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(image)
    hidden = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same")(hidden))
    hidden = layers.MaxPooling2D(2)(layers.Add()([hidden, layers.Conv2D(8, 1)(hidden)]))
    return tf.keras.Model(image, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(hidden)))


def main() -> None:
    """Writes both files."""
    tf.keras.utils.set_random_seed(0)
    for make, shape in ((perceptron, (6,)), (convolutional, (16, 16, 3))):
        model = make()
        signature = (tf.TensorSpec((None, *shape), tf.float32, name="rows"),)
        function = tf.function(lambda rows, model=model: model(rows, training=False), input_signature=signature)
        first = ["rows"] if len(shape) == 3 else None
        exported, _ = tf2onnx.convert.from_function(function, signature, opset=17, inputs_as_nchw=first)
        onnx.save(exported, HERE / f"{make.__name__}.onnx")


if __name__ == "__main__":
    main()
