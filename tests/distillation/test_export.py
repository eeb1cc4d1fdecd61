import json
import sys

import pytest
import torch
from torch import nn

from fewgen.distillation import export
from fewgen.distillation.export import export_onnx
from fewgen.distillation.students import make_student
from fewgen.errors import ConfigError, MissingDependencyError, OutputError, ShapeError


def trained(name: str, shape=(3, 20, 17), n_classes: int = 4):
    """A student with weights and running means unlike those of a fresh one."""
    student = make_student(name, shape, n_classes, channels=4)
    rng = torch.Generator().manual_seed(0)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                value.data = torch.randn(value.shape, generator=rng)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=rng) + 0.5)
    return student.eval()


def run(path, x: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


@pytest.mark.parametrize("name", ["conv4", "resnet12"])
def test_onnxruntime_gives_the_same_logits(name, tmp_path) -> None:
    student = trained(name).train()
    path = tmp_path / "student.onnx"
    record = export_onnx(student, path)
    assert student.training
    student.eval()
    for n in (1, 5):  # any number of images
        x = torch.rand(n, 3, 20, 17, generator=torch.Generator().manual_seed(n)) * 2 - 1
        torch.testing.assert_close(run(path, x), student(x).detach(), rtol=1e-4, atol=1e-5)
    assert record.n_bytes == path.stat().st_size
    assert record.n_parameters == sum(p.numel() for p in student.parameters())
    assert record.largest_difference < 1e-4
    export_onnx(student, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_a_backbone_without_head_gives_features(tmp_path) -> None:
    student = trained("conv4", n_classes=0)
    export_onnx(student, tmp_path / "backbone.onnx")
    x = torch.rand(2, 3, 20, 17)
    torch.testing.assert_close(run(tmp_path / "backbone.onnx", x), student(x).detach(), rtol=1e-4, atol=1e-5)


def test_the_file_says_what_it_takes(tmp_path) -> None:
    import onnx

    export_onnx(trained("conv4"), tmp_path / "s.onnx", class_names=["cat", "Ünder", "c", "d"])
    model = onnx.load(str(tmp_path / "s.onnx"))
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["class_names"] == ["cat", "Ünder", "c", "d"]
    assert about["value_range"] == [-1, 1]
    assert about["student"]["name"] == "conv4"
    assert [entry.name for entry in model.graph.input] == ["image"]
    assert [entry.name for entry in model.graph.output] == ["logits"]


def test_negative_control_a_wrong_graph_is_caught_and_nothing_written(tmp_path, monkeypatch) -> None:
    student = trained("conv4")
    layer = export._Writer.layer

    def wrong(self, module, inputs, output):
        return inputs[0] if isinstance(module, nn.ReLU) else layer(self, module, inputs, output)

    monkeypatch.setattr(export._Writer, "layer", wrong)
    with pytest.raises(OutputError, match="differ from torch by up to"):
        export_onnx(student, tmp_path / "s.onnx")
    monkeypatch.undo()
    student.head.bias.data.fill_(torch.nan)
    with pytest.raises(OutputError, match="differ from torch by up to nan"):
        export_onnx(student, tmp_path / "s.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch) -> None:
    student = trained("conv4")
    with pytest.raises(ConfigError, match='ends in ".onnx"'):
        export_onnx(student, tmp_path / "s.pt")
    with pytest.raises(ShapeError, match="4 outputs, got 2 class names"):
        export_onnx(student, tmp_path / "s.onnx", class_names=["a", "b"])
    (tmp_path / "s.onnx").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export_onnx(student, tmp_path / "s.onnx")
    assert (tmp_path / "s.onnx").read_text() == "mine"
    export_onnx(student, tmp_path / "s.onnx", overwrite=True)
    assert (tmp_path / "s.onnx").read_bytes()[:4] != b"mine"
    student.body.append(nn.GELU())
    with pytest.raises(ConfigError, match="does not know the layer GELU"):
        export_onnx(student, tmp_path / "t.onnx")
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(MissingDependencyError, match=r"fewgen\[export\]"):
                export_onnx(trained("conv4"), tmp_path / "t.onnx")
