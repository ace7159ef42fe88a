"""The demo model `resnet50`: a residual network of 50 layers with weights from a seed, written as ONNX node by node.

The network of He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2015, https://arxiv.org/abs/1512.03385,
table 1), with the stride in the 3x3 convolutions as in Goyal et al. (2017, https://arxiv.org/abs/1706.02677), known as v1.5.
It knows nothing; its work, 4.1 billion multiplications per image, is that of the trained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

MODEL_TOML = """\
# A residual network of 50 layers with random weights: the work of a real image model, without its knowledge.
file = "model.onnx"
batch_sizes = [1, 2, 4]
golden = ["golden/ramps.npz"]
"""

CENTRED_RELU = 2 * np.pi / (np.pi - 1)
"""One over the variance of a rectified normal variable of variance one: the gain behind a rectifier for filters of mean zero."""


def build(
    depths: Sequence[int] = (3, 4, 6, 3),
    *,
    seed: int = 50,
    image: int = 224,
    classes: int = 1000,
    width: int = 64,
) -> onnx.ModelProto:
    """Make the network: `image` FP32 [batch, 3, image, image] to `scores` FP32 [batch, classes], the same bytes every time.

    `depths` is the number of blocks per stage, `width` the channels of the first; stage n has 2**n times as many.
    """
    net = _Net(np.random.Generator(np.random.PCG64(seed)), share=1 / sum(depths))
    net.convolve("stem", "image", (width, 3, 7), stride=2, gain=1.0)
    net.add("Relu", "stem.relu", ["stem"])
    net.add("MaxPool", "stem.pool", ["stem.relu"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    top, channels = "stem.pool", width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            top = net.block(f"stage{stage + 1}.block{index + 1}", top, channels, width << stage, stride)
            channels = 4 * width << stage
    net.add("GlobalAveragePool", "pool", [top])
    net.add("Flatten", "features", ["pool"])
    # Averaging leaves features that differ by about a tenth; scores should differ by about one.
    net.weigh("classes.weight", (classes, channels), 64.0)
    net.shift("classes.bias", classes)
    net.add("Gemm", "scores", ["features", "classes.weight", "classes.bias"], transB=1)
    graph = helper.make_graph(
        net.nodes,
        "resnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, image, image])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", classes])],
        net.weights,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], producer_name="warmfork")


def write(folder: Path) -> None:
    """Fill `folder` with the model and one golden sample, answered by onnxruntime."""
    version = folder / "1"
    golden = folder / "golden"
    version.mkdir()
    golden.mkdir()
    model = build()
    onnx.checker.check_model(model, full_check=True)
    file = version / "model.onnx"
    file.write_bytes(model.SerializeToString(deterministic=True))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    image = ramps(224)[np.newaxis]
    (scores,) = session.run(["scores"], {"image": image})
    np.savez_compressed(golden / "ramps.npz", allow_pickle=False, **{"inputs/image": image, "outputs/scores": scores})
    (folder / "model.toml").write_text(MODEL_TOML, encoding="utf-8")


def ramps(size: int) -> npt.NDArray[np.float32]:
    """Return an image [3, size, size] from -1 to 1: one channel grows to the right, one downwards, one along the diagonal."""
    down, right = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return np.stack([right * 2, down * 2, right + down]).astype(np.float32) / np.float32(size - 1) - np.float32(1)


class _Net:
    """The nodes and weights so far; a node is called like its output."""

    def __init__(self, random: np.random.Generator, share: float) -> None:
        self.random = random
        self.share = share
        """The variance that each block may add to what passes by it, so that all together add one."""
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, name: str, inputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))

    def weigh(self, name: str, shape: tuple[int, ...], gain: float) -> None:
        """Draw weights [out, in, ...] after He et al. (2015, https://arxiv.org/abs/1502.01852): variance `gain` over the fan-in.

        Each filter has mean zero. It sees the differences in what comes in and not its level, which is what subtracting the
        mean in batch normalisation is for; without, all images look the same to a deep random network.
        """
        values = self.random.standard_normal(shape, np.float32)
        values -= values.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        values *= np.float32(np.sqrt(gain / np.prod(shape[1:])))
        self.weights.append(numpy_helper.from_array(values, name))

    def shift(self, name: str, size: int) -> None:
        """Draw small biases: enough that an empty image has an answer too, not so much that all answers are alike."""
        self.weights.append(numpy_helper.from_array(self.random.standard_normal(size, np.float32) / np.float32(50), name))

    def convolve(self, name: str, source: str, shape: tuple[int, int, int], *, gain: float, stride: int = 1) -> None:
        """Add a convolution of `shape` (out, in, side) with the bias that batch normalisation folds into."""
        out, inner, side = shape
        self.weigh(f"{name}.weight", (out, inner, side, side), gain)
        self.shift(f"{name}.bias", out)
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        self.add("Conv", name, inputs, kernel_shape=[side, side], strides=[stride, stride], pads=[side // 2] * 4)

    def block(self, name: str, source: str, channels: int, width: int, stride: int) -> str:
        """Add a bottleneck block, 1x1, 3x3 and 1x1, and return its output: 4 * `width` channels."""
        self.convolve(f"{name}.reduce", source, (width, channels, 1), gain=CENTRED_RELU)
        self.add("Relu", f"{name}.reduce.relu", [f"{name}.reduce"])
        self.convolve(f"{name}.spatial", f"{name}.reduce.relu", (width, width, 3), gain=CENTRED_RELU, stride=stride)
        self.add("Relu", f"{name}.spatial.relu", [f"{name}.spatial"])
        self.convolve(f"{name}.expand", f"{name}.spatial.relu", (4 * width, width, 1), gain=CENTRED_RELU * self.share)
        if channels != 4 * width:
            self.convolve(f"{name}.project", source, (4 * width, channels, 1), gain=CENTRED_RELU, stride=stride)
            source = f"{name}.project"
        self.add("Add", f"{name}.sum", [f"{name}.expand", source])
        self.add("Relu", name, [f"{name}.sum"])
        return name
