"""Settings: dataclasses to YAML and back, and the presets that come with the package."""

from fewgen.config.call import accepts_config, call_settings, renamed
from fewgen.config.io import (
    dump_yaml,
    list_presets,
    load_preset,
    parse_yaml,
    read_config,
    write_yaml,
)
from fewgen.config.schema import check_keys, from_dict, merge, resolve, to_dict

__all__ = [
    "accepts_config",
    "call_settings",
    "check_keys",
    "dump_yaml",
    "from_dict",
    "list_presets",
    "load_preset",
    "merge",
    "parse_yaml",
    "read_config",
    "renamed",
    "resolve",
    "to_dict",
    "write_yaml",
]
