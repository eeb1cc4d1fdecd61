"""Read and write settings as YAML, and find the presets that come with the package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fewgen import plugins
from fewgen.config.schema import check_keys, to_dict
from fewgen.errors import ConfigError, suggest
from fewgen.files import MOST

PRESETS_DIR = Path(__file__).parent / "presets"
PRESET_KEYS = ("description", "expected", "model", "training")
"""What a preset file may hold: a sentence, the result to expect, and the two sections of settings."""

MAX_CONFIG_BYTES = 1 << 20
MAX_VALUES = 1_000_000


NAME_KEYS = ("class_names", "classes", "phrases", "texts")
"""Settings that hold names and texts: what is written there is text, also where YAML sees a number."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with numbers like 1e-3 read as numbers and repeated keys refused.

    YAML 1.1 reads ``1e-3`` as a text, which would surface as a puzzling type error.
    """

    def values(self, texts: bool) -> Any:
        """Return the one document; with `texts` every value in it is text, else those of `NAME_KEYS` are."""
        root = self.get_single_node()
        if root is None:
            return None
        if _n_values(root, {}) > MAX_VALUES:
            raise ConfigError(f"it holds more than {MAX_VALUES:,} values, by names for parts of itself")
        if texts:
            _as_texts(root, set())
        elif isinstance(root, yaml.MappingNode):
            for key, value in root.value:
                if key.value in NAME_KEYS and value.tag != "tag:yaml.org,2002:null":
                    _as_texts(value, set())
        return self.construct_document(root)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        # Other halves stand for the bytes of file names that are not UTF-8.
        if any("\ud800" <= character < "\udc80" or "\udd00" <= character <= "\udfff" for character in value):
            raise ConfigError(f"line {node.start_mark.line + 1} holds half of a character")
        return value

    def construct_yaml_int(self, node: Any) -> int:
        value: int = super().construct_yaml_int(node)
        if not -MOST < value < MOST:
            raise ConfigError(f"the whole number {node.value[:24]} is beyond 64 bits")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            line = node.start_mark.line + 1
            raise ConfigError(f'The key "{repeated[0]}" is given twice (in the section at line {line}).')
        return super().construct_mapping(node, deep)


def _n_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for; a name (&a, *a) counts as often as it is used."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES if isinstance(node, yaml.MappingNode) else 0  # of a part within itself
        parts = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_n_values(part, known) for part in parts)
    return known[id(node)]


def _as_texts(node: yaml.Node, seen: set[int]) -> None:
    """Make every value below a node a text as it is written: a class may be called 007, 1e3 or no."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        node.tag = "tag:yaml.org,2002:str"
    else:
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                _as_texts(part, seen)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF|nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    """Short lists on one line, everything else in blocks."""

    # A text is quoted where the loader, and not only PyYAML's own, would see something else.
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML's other styles turn line breaks such as U+0085 into others.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    flat = all(item is None or isinstance(item, (bool, int, float, str)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


def dump_yaml(values: Any) -> str:
    """Return settings (a dataclass or plain values) as YAML that `parse_yaml` reads back unchanged.

    >>> print(dump_yaml({"lr": 0.001, "sizes": [400, 200]}), end="")
    lr: 0.001
    sizes: [400, 200]
    """
    try:
        plain = to_dict(values)
    except RecursionError:
        raise ConfigError("A setting holds itself, which cannot be written.") from None
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_yaml(text: str, where: str = "the text", texts: bool = False) -> dict[str, Any]:
    """Return the settings in a YAML text; an empty text gives an empty dictionary.

    Args:
        text: keys and values.
        where: it comes from, for messages.
        texts: whether every key and value is text, as in a file of phrases; else those of `NAME_KEYS` are.

    Raises:
        ConfigError: not YAML, or not keys and values at the top.
    """
    try:
        loader = _Loader(text)
        try:
            values = loader.values(texts)
        finally:
            loader.dispose()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f'{where} must hold settings as "key: value" lines, got {type(values).__name__}.')
    return values


def read_config(source: str | Path | Mapping[str, Any] | None, texts: bool = False) -> dict[str, Any]:
    """Return settings from a YAML file, or a copy of the dictionary given; None gives none.

    Args:
        source: the file or the dictionary.
        texts: as for `parse_yaml`.

    Raises:
        ConfigError: the file is missing, unreadable, too large or not YAML.
    """
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"The settings file {path} does not exist.")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is larger than 1 MB, which no settings file is.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The settings file {path} cannot be read: {error}") from None
    return parse_yaml(text, str(path), texts)


def write_yaml(path: str | Path, values: Any) -> None:
    """Write settings as YAML; a kill leaves the old file or the new one."""
    from fewgen.files import write_text

    write_text(path, dump_yaml(values))


def _preset_dir(method: str) -> Path:
    """Return the folder of a method's presets: here, or `presets/METHOD` of the package that offers it."""
    own = PRESETS_DIR / method
    return own if own.is_dir() else plugins.presets_of(method) or own


def list_presets(method: str) -> list[str]:
    """Return the names of a method's presets, `default` first; every method has `default`."""
    names = {path.stem for path in _preset_dir(method).glob("*.yaml")} - {"default"}
    return ["default", *sorted(names)]


def _preset_path(method: str, preset: str) -> Path | None:
    """Return the file of a preset; None for a method whose `default` needs no file."""
    names = list_presets(method)
    if preset not in names:
        raise ConfigError(
            f'{method} has no preset "{preset}".{suggest(preset, names)} Presets: {", ".join(names)}.'
        )
    path = _preset_dir(method) / f"{preset}.yaml"
    return path if path.is_file() else None


def load_preset(method: str, preset: str = "default") -> dict[str, Any]:
    """Return a preset's `description`, `expected`, and the sections `model` and `training`.

    `model` holds settings of the method's `Config`, `training` settings of `TrainConfig`; both may be
    empty, and then the defaults of the dataclasses hold.
    """
    path = _preset_path(method, preset)
    values = read_config(path)
    check_keys(values, PRESET_KEYS, f"preset {preset}")
    return {
        "description": str(values.get("description", "")),
        "expected": str(values.get("expected", "")),
        "model": dict(values.get("model") or {}),
        "training": dict(values.get("training") or {}),
    }
