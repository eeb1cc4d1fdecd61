"""Files of students and teachers that were damaged, or made to do harm."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewgen.distillation.storing import load_student, save_student
from fewgen.distillation.students import make_student
from fewgen.distillation.teacher import ProtoNet
from fewgen.errors import CheckpointError

ABOUT = {"name": "conv4", "image_shape": [1, 16, 16], "n_classes": 3, "channels": 4}


def student_file(path, tensors=None, **about):
    """A student's file with other tensors, or described as another network."""
    save_student(make_student("conv4", (1, 16, 16), 3, channels=4), path, ("x", "y", "z"))
    text = json.dumps({"student": ABOUT | about, "class_names": ["x", "y", "z"]})
    meta = {"format": "fewgen-student", "format_version": "1", "about": text}
    save_file(load_file(path) | (tensors or {}), path, metadata=meta)
    return path


def teacher_file(path, tensors=None, **about):
    ProtoNet(make_student("conv4", (1, 16, 16), 0, channels=4)).save(path)
    text = json.dumps({"backbone": ABOUT | {"n_classes": 0} | about, "batch_size": 8})
    meta = {"format": "fewgen-teacher", "format_version": "1", "about": text}
    save_file(load_file(path) | (tensors or {}), path, metadata=meta)
    return path


KINDS = {"student": (student_file, load_student), "teacher": (teacher_file, ProtoNet.load)}


@pytest.mark.parametrize("kind", KINDS)
def test_controls_are_read(tmp_path, kind):
    write, load = KINDS[kind]
    load(write(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "about",
    [
        {"channels": 40_000},  # 58 GB of weights
        {"channels": 10**12},
        {"channels": -4},
        {"channels": "4"},
        {"channels": 8},
        {"image_shape": [1, 16]},
        {"image_shape": [3, 16, 16]},
        {"image_shape": None},
        {"name": "resnet12"},
        {"name": ["conv4"]},
    ],
    ids=str,
)
def test_descriptions_that_are_not_those_of_the_weights_take_no_memory(tmp_path, kind, about):
    write, load = KINDS[kind]
    with pytest.raises(CheckpointError, match="a.safetensors|backbone"):
        load(write(tmp_path / "a.safetensors", **about))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_or_too_many_are_refused(tmp_path, kind):
    write, load = KINDS[kind]
    name = "backbone.body.0.weight" if kind == "teacher" else "body.0.weight"
    weight = load_file(write(tmp_path / "a.safetensors"))[name]
    weight[0, 0, 0, 0] = math.nan
    for tensors, message in (
        ({name: weight}, f"does not fit: {name} is not finite"),
        ({name: weight.nan_to_num()[:2]}, f"does not fit: {name} has the shape"),
        ({"more": torch.zeros(2)}, "does not fit: .*more"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(write(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_is_noticed(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    student = make_student("conv4", (1, 16, 16), 3 if kind == "student" else 0, channels=4)
    save_student(student, path) if kind == "student" else ProtoNet(student).save(path)
    KINDS[kind][1](path)
    data = bytearray(path.read_bytes())
    data[-len(data) // 4] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match='a.safetensors" is damaged: .* Copy or download it again, or delete'
    ):
        KINDS[kind][1](path)
