"""What a command is: a function of `fewgen`, and what its signature does not say about its flags.

Names, types, defaults and help texts of flags come from the signature and the docstring, so that the command
line cannot drift away from Python. argparse splits the words, the schema of the settings files checks the
values; the help page is laid out here, because argparse's own differs between Python versions and hides the
examples at the end.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import math
import operator
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from fewgen.config import dump_yaml, merge, parse_yaml, read_config
from fewgen.config.call import call_settings, warn_renamed
from fewgen.config.schema import describe_type, fits, shown
from fewgen.errors import ConfigError, suggest

WIDTH = 96
COLUMN = 26

METAVARS = {
    "background": "HOW",
    "channels": "C",
    "class_split": "HOW",
    "data": "D",
    "data_dir": "DIR",
    "fit": "HOW",
    "half_width": "SHARE",
    "minutes": "M",
    "out": "OUT",
    "phrases": "FILE",
    "shots": "K",
    "size": "PIXELS",
    "split": "PART",
    "temperature": "T",
    "text_path": "PATH",
    "value_range": "LOW HIGH",
}
"""How the value of a keyword is shown, where its type does not say enough."""


@dataclass(frozen=True)
class Argument:
    """One flag or positional argument, for one keyword of the function.

    Attributes:
        keyword: of the Python function.
        metavar: how the value is shown in the help.
        flag: its name: the keyword, without the plural "s" if the flag is repeated for each value.
        short: "-n" for the keyword `n`.
        alias: another name of the flag.
        former: its name in earlier releases, which works with a warning and is not in the help.
        bare: for a section: the key that a value without one means, as in "--model PATH".
        type: of one value, as `parse` checks it; `bool` makes a switch and `dict` a section.
        how: "one" value; "many" after one another; "each" word of the metavar; "repeat" the flag.
        default: of the keyword; `inspect.Parameter.empty` if it must be given.
        positional: has no name; stands in the order of the arguments.
    """

    keyword: str
    metavar: str = ""
    flag: str = ""
    short: str = ""
    alias: str = ""
    former: str = ""
    bare: str = ""
    type: Any = None
    how: Literal["one", "many", "each", "repeat", ""] = ""
    default: Any = None
    positional: bool = False

    @property
    def name(self) -> str:
        """The flag, or the name of the position."""
        return self.metavar if self.positional else self.flag

    @property
    def names(self) -> list[str]:
        """Every name, also those that the help does not show."""
        return [name for name in (self.short, self.name, self.alias, self.former) if name]

    @property
    def required(self) -> bool:
        """Whether it must be given, here or in the settings file."""
        return self.default is inspect.Parameter.empty

    def completed(self, parameter: inspect.Parameter) -> Argument:
        """Return the argument with what the signature says of its keyword."""
        words = str(parameter.annotation)
        listed = "Sequence[" in words and self.type is None
        value = self.type or _value_type(words)
        letter = {int: "N", float: "X"}.get(next(iter(_options(value))), "NAME")
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        metavar = self.metavar or METAVARS.get(self.keyword, letter)
        how = self.how or ("each" if listed and " " in metavar else "repeat" if listed else "one")
        flag = "--" + self.keyword.removesuffix("s" if how == "repeat" else "").replace("_", "-")
        return replace(
            self,
            metavar=self.keyword.upper() if positional and not self.metavar else metavar,
            flag=self.flag or flag,
            short="-" + self.keyword if len(self.keyword) == 1 else "",
            type=value,
            how=how,
            default=parameter.default,
            positional=positional,
        )

    def value(self, word: str) -> Any:
        """Return a word of the command line as a value of the argument's type.

        Raises:
            ConfigError: it is none.
        """
        options = _options(self.type)
        if set(options) <= {str, type(None)}:
            return None if word == "null" and len(options) > 1 else word
        try:
            read = _plain(word, key=self.keyword)
        except ConfigError:
            read = word
        value, ok = fits(read, self.type)
        if str in options:  # a name or a path, unless it is exactly one of the other types
            return value if ok and type(value) is type(read) is not str else word
        if not ok:
            raise ConfigError(f'{self.name} must be {describe_type(self.type)}, got "{shown(word, str)}".')
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f'{self.name} must be a finite number, got "{shown(word, str)}".')
        return value


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        function: name of a function in `fewgen`, or a function of the command's own file.
        page: docstring of the command's file, for its `Examples`: "# what it does" above each command.
        run: takes the keywords that were given and returns the exit code.
        special: arguments of which the signature does not say everything.
        print_config: keywords -> resolved settings, for `--print_config`; None: the keywords themselves.
        dry_run: keywords -> text, for `--dry-run`; None: the command has no such flag.
        dry_run_text: the help of that flag.
        needs_out: what to say, after "needs --out", when the command is called without it.
    """

    function: str | Callable[..., Any]
    page: str | None
    run: Callable[[dict[str, Any]], int]
    special: tuple[Argument, ...] = ()
    print_config: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    dry_run: Callable[[dict[str, Any]], str] | None = None
    dry_run_text: str = "print what would be done, with time and memory, and stop."
    needs_out: str = ""

    @property
    def name(self) -> str:
        """The name as typed, which is that of the function."""
        return self.function if isinstance(self.function, str) else self.function.__name__

    @functools.cached_property
    def target(self) -> Callable[..., Any]:
        """The Python function behind the command, whose signature and docstring count."""
        import fewgen

        return inspect.unwrap(getattr(fewgen, self.name) if isinstance(self.function, str) else self.function)

    @functools.cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """The arguments in the order of the signature, which is that of the help."""
        special = {argument.keyword: argument for argument in self.special}
        parameters = inspect.signature(self.target).parameters.values()
        return tuple(
            special.get(p.name, Argument(p.name)).completed(p) for p in parameters if p.name != "config"
        )

    @property
    def examples(self) -> list[str]:
        """The lines of the examples."""
        text = (self.page or "").partition("\nExamples:\n")[2]
        return textwrap.dedent(text).strip().splitlines()

    @property
    def extra_flags(self) -> list[tuple[str, str]]:
        """The flags that come from no keyword, with their help."""
        extra = []
        if isinstance(self.function, str):
            extra.append(("--config FILE", _argument_texts(self.target)["config"]))
            extra.append(("--print_config", "print every setting as YAML, ready for --config, and stop."))
        if self.dry_run is not None:
            extra.append(("--dry-run", self.dry_run_text))
        return [*extra, ("-h, --help", "show this page.")]

    def flags(self) -> list[str]:
        """Return every flag of the command, for the help, suggestions and the pinned list."""
        names = [argument.name for argument in self.arguments if not argument.positional]
        names += [argument.alias for argument in self.arguments if argument.alias]
        return names + [name.split()[0] for name, _ in self.extra_flags[:-1]] + ["--help"]

    def main(self, argv: Sequence[str]) -> int:
        """Parse, then run."""
        if "-h" in argv or "--help" in argv:
            print(self.help(), end="")
            return 0
        given = self.parse(argv)
        show, dry = given.pop("print_config", False), given.pop("dry_run", False)
        self._require(given)
        if show:
            settings = self.print_config or functools.partial(call_settings, self.target)
            print(dump_yaml(settings(given)), end="")
            return 0
        if dry and self.dry_run is not None:
            print(self.dry_run(given))
            return 0
        if self.needs_out:
            given["out"] = call_settings(self.target, given)["out"]
            if given["out"] is None:
                raise ConfigError(f"fewgen {self.name} needs --out{self.needs_out}")
        return self.run(given)

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the keywords that the command line spells out, with their types checked.

        Raises:
            ConfigError: an unknown flag (with a suggestion), or a value of the wrong type.
        """
        for word in argv:
            if any("\ud800" <= character <= "\udfff" for character in word):
                raise ConfigError(f"{word!r} is not text in UTF-8. Rename the file or folder.")
        words = [_normal(word, self.arguments) for word in argv]
        flags = [word.partition("=")[0] for word in words[: words.index("--") if "--" in words else None]]
        self._refuse_unknown(flags)
        self._refuse_two_names(flags)
        given: dict[str, Any] = vars(self._parser(flags).parse_args(words))
        for argument in self.arguments:
            value = given.pop(argument.keyword, None)
            if value == []:  # from "--flag=--"
                raise ConfigError(f"{argument.name} needs a value.")
            if isinstance(value, list):
                given[argument.keyword] = [argument.value(word) for word in value]
            elif isinstance(value, str):
                value = argument.value(value)
            if value is not None:
                given.setdefault(argument.keyword, value)
        return given

    def help(self) -> str:
        """Return the help page: usage, what it does, examples, arguments and flags."""
        texts = _argument_texts(self.target)
        usage = [f"usage: fewgen {self.name}"]
        usage += [a.name + ("..." if a.how == "many" else "") for a in self._placed(required=True)]
        usage += [f"[{a.name}]" for a in self._placed(required=False)]
        usage += [f"{a.name} {a.metavar}" for a in self.arguments if a.required and not a.positional]
        lines = [" ".join([*usage, "[flags]"]), ""]
        for paragraph in _description(self.target).split("\n\n"):
            lines += [*textwrap.wrap(" ".join(paragraph.split()), WIDTH), ""]
        lines += ["examples:", *("  " + line for line in self.examples)]
        for title, positional in (("arguments:", True), ("flags:", False)):
            chosen = [a for a in self.arguments if a.positional is positional]
            if chosen or not positional:
                lines += ["", title]
            for argument in chosen:
                text = texts.get(argument.keyword, "")
                lines += _entry(_heading(argument), text + _default_note(argument))
        for name, text in self.extra_flags:
            lines += _entry(name, text)
        return "\n".join(lines) + "\n"

    def _placed(self, required: bool) -> list[Argument]:
        return [a for a in self.arguments if a.positional and a.required is required]

    def _parser(self, flags: Iterable[str]) -> argparse.ArgumentParser:
        """Return a parser that leaves words as they are; `flags` name the keys of sections that occur."""
        parser = _Parser(self)
        for argument in self.arguments:
            options: dict[str, Any] = {"dest": argument.keyword}
            names = argument.names
            if argument.positional:
                names, options = [argument.keyword], {"nargs": "*" if argument.how == "many" else "?"}
            elif argument.how == "many":
                options["nargs"] = "+"
            elif argument.how == "each":
                options["nargs"] = len(argument.metavar.split())
            elif argument.how == "repeat":
                options["action"] = "append"
            elif argument.type is dict:
                options |= {"action": _Section, "const": argument.bare}
                names += sorted({name for name in flags if name.startswith(f"{argument.name}.")})
            elif argument.type is bool and argument.default is False:
                options["action"] = "store_true"
            parser.add_argument(*names, **options)
        for name, _ in self.extra_flags[:-1]:
            parser.add_argument(name.split()[0], action="store" if " " in name else "store_true")
        return parser

    def _refuse_unknown(self, flags: Iterable[str]) -> None:
        known = [*self.flags(), *(a.short for a in self.arguments if a.short), "-h"]
        former = [a.former for a in self.arguments]
        sections = tuple(f"{a.name}." for a in self.arguments if a.type is dict)
        for name in flags:
            is_flag = name.startswith("--") or re.fullmatch(r"-[A-Za-z]", name)
            if is_flag and name not in [*known, *former] and not name.startswith(sections):
                raise ConfigError(
                    f"fewgen {self.name} has no flag {name}.{suggest(name, known)} "
                    f"See fewgen {self.name} --help."
                )

    def _refuse_two_names(self, flags: Sequence[str]) -> None:
        for argument in self.arguments:
            for other, kind in ((argument.alias, "another"), (argument.former, "the former")):
                if other and other in flags and argument.name in flags:
                    raise ConfigError(f"{other} is {kind} name of {argument.name}: give one of them.")
            if argument.former and argument.former in flags:
                warn_renamed(argument.former, argument.name)

    def _require(self, given: dict[str, Any]) -> None:
        file = read_config(given.get("config"))
        missing = [
            a.name if a.positional else f"{a.name} {a.metavar}"
            for a in self.arguments
            if a.required and a.keyword not in file and not given.get(a.keyword)
        ]
        if missing:
            raise ConfigError(
                f"fewgen {self.name} needs {' and '.join(missing)}. For example: {self.examples[1]}"
            )


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints in the user's words."""

    def __init__(self, command: Command) -> None:
        self.command = command
        super().__init__(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if unknown:
            name = f"fewgen {self.command.name}"
            raise ConfigError(f'{name} does not know what to do with "{unknown[1]}". See {name} --help.')
        found = re.match(r"argument (\S+): expected (.*)", message)
        if found:
            names = found[1].split("/")
            name = next((a.name for a in self.command.arguments if a.name in names), names[0])
            raise ConfigError(f"{name} needs a value ({found[2]}).")
        raise ConfigError(" ".join(message.split()))


class _Section(argparse.Action):
    """Lays a whole section, or one key of it, over what stands to the left of it."""

    def __call__(self, parser: Any, namespace: Any, word: Any, option_string: str | None = None) -> None:
        name, _, key = str(option_string).partition(".")
        if not isinstance(word, str):  # from "--model=--"
            raise ConfigError(f"{name} needs a value.")
        before = getattr(namespace, self.dest, {})
        if not key and self.const and not word.startswith("{"):
            key = self.const
        value = _plain(word, str(option_string))
        if not key and not isinstance(value, dict):
            raise ConfigError(f'{name} must be {describe_type(dict)}, got "{word}".')
        for part in reversed(key.split(".") if key else []):
            value = {part: value}
        setattr(namespace, self.dest, merge(before, value) if key else value)


_TYPES = {"int": int, "float": float, "bool": bool, "None": None}


def _value_type(words: str) -> Any:
    """Return the type of one value on the command line, from an annotation in words.

    >>> _value_type("int | None"), _value_type("str | Path | Run"), _value_type("Sequence[float] | None")
    (int | None, <class 'str'>, <class 'float'>)
    """
    if "Mapping[" in words:
        return dict
    inner = re.search(r"Sequence\[([^]]*)\]", words)
    names = (inner[1] if inner else words).split(" | ")
    return functools.reduce(operator.or_, dict.fromkeys(_TYPES.get(name, str) for name in names))


def _options(value: Any) -> tuple[Any, ...]:
    return getattr(value, "__args__", (value,))


def _normal(word: str, arguments: Iterable[Argument]) -> str:
    """Return a flag in its canonical form: dashes for underscores, and `--no-x` as `--x=false`.

    >>> _normal("--text_path=a_b", ()), _normal("--model.latent_size", ())
    ('--text-path=a_b', '--model.latent_size')
    """
    match = re.match(r"--([A-Za-z][\w-]*)(.*)", word, re.DOTALL)
    if not match:
        return word
    name, rest = f"--{match[1].replace('_', '-')}", match[2]
    if name == "--print-config":
        return f"--print_config{rest}"
    switches = [a.name for a in arguments if a.type is bool and a.default is True]
    if not rest and name.replace("--no-", "--", 1) in switches and name not in switches:
        return f"{name.replace('--no-', '--', 1)}=false"
    return f"{name}{rest}"


def _plain(word: str, where: str = "the text", key: str = "value") -> Any:
    """Return what a word of the command line means in YAML: a number, a switch, a list or itself.

    >>> _plain("0.5"), _plain("[1, 2]"), _plain("a photo of an #object")
    (0.5, [1, 2], 'a photo of an #object')
    """
    if " #" in word and word.lstrip()[:1] not in tuple("[{'\""):
        return word  # YAML would take the rest for a comment
    return parse_yaml(f"{key}:\n  {word}", where)[key]


def _heading(argument: Argument) -> str:
    if argument.positional:
        return argument.name
    name = f"{argument.short}, {argument.name}" if argument.short else argument.name
    if argument.type is bool:
        return name.replace("--", "--[no-]", 1) if argument.default is True else name
    if argument.type is dict:
        return f"{name}.KEY VALUE" + (f", {name} {argument.metavar}" if argument.bare else "")
    if argument.alias:
        name = f"{name}, {argument.alias}"
    return f"{name} {argument.metavar}" + (" ..." if argument.how == "many" else "")


def _default_note(argument: Argument) -> str:
    if argument.positional or argument.default is None or argument.type is bool:
        return " Repeatable." if argument.how == "repeat" else ""
    return " Required." if argument.required else f" Default: {argument.default}."


def _entry(name: str, text: str) -> list[str]:
    """Return a name with its text beside it, or below it if the name is long."""
    body = textwrap.wrap(text, WIDTH - COLUMN) or [""]
    if len(name) + 4 > COLUMN:
        return [f"  {name}", *(" " * COLUMN + line for line in body)]
    first = f"  {name}".ljust(COLUMN) + body[0]
    return [first.rstrip(), *(" " * COLUMN + line for line in body[1:])]


def _description(function: Callable[..., Any] | None) -> str:
    """Return the part of a docstring before its sections."""
    doc = inspect.getdoc(function) or ""
    return re.split(r"\n\n(?:Args|Returns|Raises):", doc)[0]


def _argument_texts(function: Callable[..., Any] | None) -> dict[str, str]:
    """Return keyword -> text from the `Args` section of a Google docstring."""
    doc = inspect.getdoc(function) or "" if function is not None else ""
    match = re.search(r"\nArgs:\n(.*?)(?:\n\n(?:Returns|Raises|Source|Differs)|\Z)", doc, re.DOTALL)
    texts: dict[str, str] = {}
    name = ""
    for line in match.group(1).splitlines() if match else []:
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start.group(1)
            texts[name] = start.group(2).strip()
        elif name:
            texts[name] += " " + line.strip()
    return texts


_MOST = 2000
"""Characters of a line of a message that are shown: a name in a damaged file may have thousands."""


def tell(kind: str, message: str) -> None:
    """Print an error or a warning where scripts expect it."""
    lines = (f"{line[:_MOST]} ..." if len(line) > _MOST else line for line in message.splitlines())
    print(f"{kind}: " + "\n".join(lines), file=sys.stderr, flush=True)
