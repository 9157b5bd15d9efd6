"""The networks that weights in a safetensors file may belong to, and what a manifest says about one.

This list is the allow-list: a manifest chooses a network and its sizes, it never brings code. What is chosen is built
in `service.artefacts.networks`, in a worker; here nothing imports torch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_CHANNELS = 4096

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"]
"""Activations by name, each with torch's defaults."""


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("a kernel has an odd size, so that it has a middle")
    return size


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    is_spatial: ClassVar[bool] = False
    """Whether the network takes images: inputs with a height and a width."""


class Mlp(_Options):
    """Linear layers with an activation between them. `widths` are those of the hidden layers.

    The other two widths are the manifest's: its inputs, flat, and its labels. With `scaling` the file holds `mean` and
    `deviation` [inputs], and the first layer takes (input - mean) / deviation.
    """

    name: Literal["mlp"]
    widths: tuple[Annotated[int, Field(ge=1, le=16_384)], ...] = Field(max_length=32)
    activation: Activation = "relu"
    scaling: bool = False


class Block(_Options):
    """A convolution that keeps the image's size, an activation, and a max-pool over windows of `pool`.

    Before the activation there is a batch normalisation, if `normal`; then the block's input is added, if `residual`.
    """

    channels: int = Field(ge=1, le=MAX_CHANNELS)
    kernel: Annotated[int, Field(ge=1, le=15), AfterValidator(_odd)] = 3
    stride: int = Field(default=1, ge=1, le=4)
    bias: bool = True
    normal: bool = False
    residual: bool = False
    pool: int = Field(default=1, ge=1, le=8)


class Cnn(_Options):
    """Convolutional blocks, then one linear layer over all values of the last maps, or over the channels' means.

    With `scaling` the file holds `mean` and `deviation` [channels, 1, 1] of the image.
    """

    is_spatial: ClassVar[bool] = True

    name: Literal["cnn"]
    blocks: tuple[Block, ...] = Field(min_length=1, max_length=64)
    activation: Activation = "relu"
    head: Literal["flat", "mean"] = "flat"
    scaling: bool = False


Architecture = Annotated[Mlp | Cnn, Field(discriminator="name")]
