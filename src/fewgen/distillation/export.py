"""A student as an ONNX file, which many runtimes read, checked against torch before it is kept."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.distillation.students import Student
from fewgen.errors import ConfigError, MissingDependencyError, OutputError, ShapeError
from fewgen.files import atomic_write, prepare_output_file
from fewgen.fitting.seeds import make_rng

OPSET = 17
"""Operator set of the file; every node used has been as it is since set 14."""

_IR_VERSION = 8  # of opset 17; the newest one of the library may be unknown to older runtimes

TOLERANCE = 1e-4
"""Largest allowed difference of a logit, relative to the largest logit or 1."""


@dataclass(frozen=True)
class ExportRecord:
    """What was written.

    path: the file.
    n_bytes: its size.
    n_parameters: of the student.
    largest_difference: of any logit between onnxruntime and torch, on random images.
    """

    path: Path
    n_bytes: int
    n_parameters: int
    largest_difference: float


def export_onnx(
    student: Student,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ExportRecord:
    """Write a student as ONNX, after onnxruntime has given the same logits as torch.

    The graph takes `image`, float32 (N, C, H, W) in [-1, 1] with any N, and gives `logits` (N, n_classes).
    The file's metadata hold the value range, the student and, if given, the class names as JSON.

    Args:
        student: in evaluation form (running means); its mode stays as it is.
        path: ends in ".onnx".
        class_names: one for each output.
        overwrite: whether an existing file may be replaced.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
        ConfigError: a path that does not end in .onnx, or a layer that the export does not know.
        ShapeError: class names that are not one per output.
        OutputError: the file exists or cannot be written, or onnxruntime gives other logits; nothing is
            written then.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "Exporting needs onnx and onnxruntime. Install them with: pip install 'fewgen[export]'"
        ) from error
    if Path(path).suffix != ".onnx":
        raise ConfigError(f'The name of an ONNX file ends in ".onnx", got "{path}".')
    if class_names is not None and len(class_names) != student.n_classes:
        raise ShapeError(f"The student has {student.n_classes} outputs, got {len(class_names)} class names.")
    file = prepare_output_file(path, overwrite)
    training = student.training
    student.eval()
    try:
        data = _model(onnx, student, class_names).SerializeToString()
        difference = _difference(onnxruntime, student, data)
    finally:
        student.train(training)
    with atomic_write(file) as temporary:
        temporary.write_bytes(data)
    n_parameters = sum(p.numel() for p in student.parameters())
    return ExportRecord(file, len(data), n_parameters, difference)


@torch.no_grad()
def _difference(onnxruntime: Any, student: Student, data: bytes) -> float:
    """Return the largest difference of a logit on random images; raise if it is not small."""
    weight = next(student.parameters())
    x = torch.rand(4, *student.image_shape, generator=make_rng("cpu", "export")) * 2.0 - 1.0
    wanted = student(x.to(weight)).float().cpu()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"image": x.numpy()})[0])
    difference = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
    # Written so that NaN fails, too.
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise OutputError(
            f"onnxruntime gives logits that differ from torch by up to {difference:.2g}. Nothing was "
            "written. Check the student for NaN, and the versions of onnx and onnxruntime."
        )
    return difference


def _model(onnx: Any, student: Student, class_names: Sequence[str] | None) -> Any:
    """Return the ONNX model of a student: one node for each step of its traced layers."""
    writer = _Writer(onnx)
    layers = torch.fx.symbolic_trace(nn.Sequential(student.body, student.head))
    modules = dict(layers.named_modules())
    names: dict[torch.fx.Node, str] = {}
    for node in layers.graph.nodes:
        if node.op == "placeholder":
            names[node] = "image"
        elif node.op == "output":
            writer.add("Identity", [names[node.args[0]]], "logits")
        else:
            inputs = [names[value] for value in node.all_input_nodes]
            layer = modules[str(node.target)] if node.op == "call_module" else node.target
            names[node] = writer.layer(layer, inputs, node.name)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    n_outputs = student.n_classes or student.dim
    graph = helper.make_graph(
        writer.nodes,
        f"fewgen-{student.name}",
        [helper.make_tensor_value_info("image", kind, ["N", *student.image_shape])],
        [helper.make_tensor_value_info("logits", kind, ["N", n_outputs])],
        writer.weights,
    )
    model = helper.make_model(
        graph,
        producer_name="fewgen",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
    )
    about = {"student": student.about(), "value_range": [-1, 1]}
    if class_names is not None:
        about["class_names"] = list(class_names)
    values = {key: json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in about.items()}
    helper.set_model_props(model, values)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Collects nodes and weights of a graph; names come from the layers, so equal students, equal files."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def weight(self, name: str, value: Tensor) -> str:
        array = value.detach().float().cpu().contiguous().numpy()
        self.weights.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def layer(self, layer: Any, inputs: list[str], output: str) -> str:
        """Add the node of a layer or function; returns the name of its output."""
        if isinstance(layer, nn.Conv2d):
            if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
                raise ConfigError(f"The export does not know the convolution {layer}.")
            inputs = [*inputs, self.weight(f"{output}.weight", layer.weight)]
            if layer.bias is not None:
                inputs.append(self.weight(f"{output}.bias", layer.bias))
            settings = {"kernel_shape": list(layer.kernel_size), "strides": list(layer.stride)}
            settings |= {"pads": list(layer.padding) * 2, "dilations": list(layer.dilation)}
            return self.add("Conv", inputs, output, **settings)
        if isinstance(layer, nn.BatchNorm2d):
            parts = ("weight", "bias", "running_mean", "running_var")
            found = [self.weight(f"{output}.{part}", getattr(layer, part)) for part in parts]
            return self.add("BatchNormalization", [*inputs, *found], output, epsilon=layer.eps)
        if isinstance(layer, nn.MaxPool2d):
            if layer.padding or layer.ceil_mode or layer.dilation != 1:
                raise ConfigError(f"The export does not know the pooling {layer}.")
            sides = [
                value if isinstance(value, tuple) else (value,) * 2
                for value in (layer.kernel_size, layer.stride)
            ]
            return self.add("MaxPool", inputs, output, kernel_shape=list(sides[0]), strides=list(sides[1]))
        if isinstance(layer, nn.Linear):
            inputs = [*inputs, self.weight(f"{output}.weight", layer.weight)]
            if layer.bias is not None:
                inputs.append(self.weight(f"{output}.bias", layer.bias))
            return self.add("Gemm", inputs, output, transB=1)
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size == 1:
            return self.add("GlobalAveragePool", inputs, output)
        if isinstance(layer, nn.Flatten) and layer.start_dim == 1:
            return self.add("Flatten", inputs, output)
        if isinstance(layer, nn.Identity):
            return inputs[0]
        if isinstance(layer, nn.ReLU) or layer is functional.relu:
            return self.add("Relu", inputs, output)
        if layer is operator.add and len(inputs) == 2:
            return self.add("Add", inputs, output)
        raise ConfigError(f"The export does not know the layer {layer}.")
