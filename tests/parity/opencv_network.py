"""Small networks of Caffe with random weights, run by OpenCV, for the twins of Caffe's sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from make_twins import channels_last, grid_values


@dataclass
class CaffeNetwork:
    """A network that grows layer by layer, and at the same time as a prototxt and as a caffemodel.

    Attributes:
        channels: of the input, then of what the last layer gives.
        last: the name of the last layer.
        text: the layers of the prototxt so far.
        tensors: the blobs by `LAYER/INDEX`.
        layers: the layers of the caffemodel so far.
        shapes: channels of what each layer gives.
    """

    channels: int = 3
    last: str = "data"
    text: list[str] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    layers: list[bytes] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        name: str,
        kind: str,
        options: str = "",
        weights: tuple[int, ...] = (),
        after: Sequence[str] = (),
    ) -> None:
        """A layer; what it gives has its name.

        Args:
            name: of the layer.
            kind: Caffe's type.
            options: its parameters in the text format.
            weights: the shape of its first blob; the second one is a bias.
            after: the layers that it follows; by default the last one.
        """
        bottoms = list(after) or [self.last]
        blobs = [grid_values(f"{name}/0", weights), grid_values(f"{name}/1", weights[:1])]
        blobs = blobs if weights else []
        inputs = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
        self.text.append(
            f'layer {{ name: "{name}" type: "{kind}" {inputs} top: "{name}" {options} }}'
        )
        self.layers.append(_layer(name, kind, blobs))
        self.tensors |= {f"{name}/{index}": blob for index, blob in enumerate(blobs)}
        before = sum(self.shapes.get(bottom, self.channels) for bottom in bottoms)
        self.channels = weights[0] if weights else before
        self.shapes[name], self.last = self.channels, name

    def convolution(
        self,
        name: str,
        features: int,
        size: int,
        options: str = "",
        groups: int = 1,
        after: str = "",
    ) -> None:
        """A convolution and its ReLU, which is called `NAME_relu`."""
        shape = (features, self.shapes.get(after, self.channels) // groups, size, size)
        sizes = f"num_output: {features} kernel_size: {size} group: {groups} {options}"
        self.add(
            name,
            "Convolution",
            f"convolution_param {{ {sizes} }}",
            shape,
            [after] if after else (),
        )
        self.add(f"{name}_relu", "ReLU")

    def dense(self, name: str, features: int, inputs: int) -> None:
        """An InnerProduct layer."""
        options = f"inner_product_param {{ num_output: {features} }}"
        self.add(name, "InnerProduct", options, (features, inputs))

    def max_pool(self, name: str, size: int) -> None:
        """A max pooling with stride 2."""
        self.add(name, "Pooling", f"pooling_param {{ pool: MAX kernel_size: {size} stride: 2 }}")

    def run(self, image: np.ndarray, stages: dict[str, str]) -> dict[str, np.ndarray]:
        """What the layers that end the stages give, channels last.

        Args:
            image: (batch, height, width, channels).
            stages: for each stage the name of the layer that ends it.
        """
        import cv2

        batch, height, width, channels = image.shape
        header = f'name: "twin" input: "data" input_dim: {batch} input_dim: {channels} '
        header += f"input_dim: {height} input_dim: {width}\n"
        text = (header + "\n".join(self.text)).encode()
        model = b"".join(_bytes(100, layer) for layer in self.layers)
        network = cv2.dnn.readNetFromCaffe(
            np.frombuffer(text, np.uint8), np.frombuffer(model, np.uint8)
        )
        network.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
        network.enableFusion(False)
        network.enableWinograd(False)
        network.setInput(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
        names = list(dict.fromkeys(stages.values()))
        found = dict(zip(names, network.forward(names), strict=True))
        return {stage: channels_last(np.array(found[name])) for stage, name in stages.items()}


# A caffemodel is a protocol buffer: src/caffe/proto/caffe.proto of https://github.com/BVLC/caffe


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number % 128 + 128)
        number //= 128
    return bytes([*encoded, number])


def _bytes(field_number: int, content: bytes) -> bytes:
    return _varint(field_number * 8 + 2) + _varint(len(content)) + content


def _layer(name: str, kind: str, blobs: Sequence[np.ndarray]) -> bytes:
    """`LayerParameter`, whose fields are 1 for the name, 2 for the type and 7 for the blobs."""
    content = _bytes(1, name.encode()) + _bytes(2, kind.encode())
    for blob in blobs:
        shape = _bytes(7, _bytes(1, b"".join(map(_varint, blob.shape))))
        data = _bytes(5, blob.astype("<f4").tobytes())
        content += _bytes(7, shape + data)
    return content
