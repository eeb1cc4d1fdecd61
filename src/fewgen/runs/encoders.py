"""Which encoders and weights from outside a run was trained with, and whether those at hand are the same."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.encoders.named import encoder_record
from fewgen.errors import CheckpointError, ConfigError, FewgenError
from fewgen.files import file_sha256
from fewgen.runs.run import CONFIG_NAME

if TYPE_CHECKING:
    from fewgen.methods.base import Method

Records = Mapping[str, Mapping[str, str]]
"""What an encoder is for ("text" for the class names) -> its `name` and the `sha256` of its weights."""


def started_with(out: Path) -> dict[str, Any]:
    """Return the settings of the run that was started in a folder; empty where none was."""
    from fewgen.config import read_config

    started = (out / "state").is_dir() and (out / CONFIG_NAME).is_file()
    return read_config(out / CONFIG_NAME) if started else {}


def used_encoders(method: Method, before: Records) -> dict[str, dict[str, str]]:
    """Return the encoders and files of weights of a method, with the digests of the weights.

    Args:
        method: built for its data.
        before: what the run was started with; stands in for weights that are gone. Whether they are needed
            again is known where they are used.

    Raises:
        FewgenError: weights are not there.
    """
    named = dict(method.encoders)
    table = method.spec.text
    if table is not None:
        path = "" if table.encoder_path is None else f":{table.encoder_path}"
        named["text"] = ("text", table.encoder_name + path)
    ways = {use: partial(encoder_record, *encoder) for use, encoder in named.items()}
    ways |= {use: partial(_file_record, *file) for use, file in method.weight_files.items()}
    found = {}
    for use, way in ways.items():
        try:
            record = way()
        except FewgenError:
            if use not in before:
                raise
            record = dict(before[use])
        if "sha256" in record:
            found[use] = record
    return found


def _file_record(kind: str, path: str) -> dict[str, str]:
    if not Path(path).is_file():
        raise CheckpointError(f'There is no file "{path}". Name the safetensors file with the weights.')
    try:
        return {"name": f"{kind}:{path}", "sha256": file_sha256(path)}
    except OSError as error:
        raise CheckpointError(f'"{path}" cannot be read: {error.strerror or error}.') from error


def check_encoders(wanted: Any, found: Records, where: str) -> None:
    """Refuse encoders with other weights than are wanted; one by another name was chosen on purpose.

    Args:
        wanted: records, from `config.yaml` or the user; None: any.
        found: those at hand.
        where: what wants them, for the message.

    Raises:
        ConfigError: another digest, or no records.
    """
    if wanted is None:
        return
    if not isinstance(wanted, Mapping) or not all(isinstance(record, Mapping) for record in wanted.values()):
        raise ConfigError(f"encoders must give name and sha256 of encoders by their use, got {wanted!r:.80}.")
    for use, record in wanted.items():
        name, digest = str(record.get("name", "")), record.get("sha256")
        here = found.get(use)
        if here is None or here["name"].partition(":")[0] != name.partition(":")[0] or not digest:
            continue
        if here["sha256"] != digest:
            what = "generator" if use == "generator" else "encoder"
            raise ConfigError(
                f"{where} has the {what} {name} ({use}) with the sha256 {digest}, but that of "
                f"{here['name']} here is {here['sha256']}. Get the same weights, or leave encoders.{use} out "
                "to take these."
            )
