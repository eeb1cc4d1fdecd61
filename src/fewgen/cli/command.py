"""What a command is: a function of `fewgen`, its flags, and what is printed at the end.

Names, defaults and help texts of flags come from the function's signature and docstring, so that the
command line cannot drift away from Python. jsonargparse checks the types; the help page is laid out here,
because argparse's own differs between Python versions and hides the examples at the end.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewgen.config.call import call_settings, warn_renamed
from fewgen.config.schema import describe_type
from fewgen.errors import ConfigError, suggest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

WIDTH = 96
COLUMN = 26


@dataclass(frozen=True)
class Argument:
    """One flag or positional argument, for one keyword of the function.

    Attributes:
        keyword: of the Python function.
        type: what jsonargparse checks; `bool` makes a switch.
        metavar: how the value is shown in the help.
        flag: its name if it differs from the keyword, such as "--class-name" for `class_names`.
        short: a one-letter form, such as "-n".
        repeat: may be given several times and becomes a list.
        positional: has no name; stands in the order of the arguments.
        many: takes one or more values.
        alias: another name of the flag.
        former: its name in earlier releases, which works with a warning and is not in the help.
        bare: for a section: the key that a value without one means, as in "--model PATH".
    """

    keyword: str
    type: Any = str
    metavar: str = ""
    flag: str = ""
    short: str = ""
    repeat: bool = False
    positional: bool = False
    many: bool = False
    alias: str = ""
    former: str = ""
    bare: str = ""

    @property
    def name(self) -> str:
        """The flag, or the name of the position."""
        if self.positional:
            return self.metavar or self.keyword.upper()
        return self.flag or "--" + self.keyword.replace("_", "-")

    @property
    def dest(self) -> str:
        """Where the parser puts the value."""
        return self.keyword if self.positional else self.name.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: as typed.
        summary: one line for `fewgen --help`.
        function: name in `fewgen`, or None for a command without a Python function.
        arguments: in the order of the help.
        examples: (command, what it does).
        run: takes the keywords that were given and returns the exit code.
        print_config: keywords -> resolved settings, for `--print_config`; None: the keywords themselves.
        dry_run: keywords -> text, for `--dry-run`; None: the command has no such flag.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    examples: tuple[tuple[str, str], ...]
    run: Callable[[dict[str, Any]], int]
    function: str | None = None
    print_config: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    dry_run: Callable[[dict[str, Any]], str] | None = None
    help_texts: tuple[tuple[str, str], ...] = ()
    description: str = ""

    def target(self) -> Callable[..., Any] | None:
        """Return the Python function behind the command."""
        if self.function is None:
            return None
        import fewgen

        return inspect.unwrap(getattr(fewgen, self.function))

    def flags(self) -> list[str]:
        """Return every flag of the command, for the help, suggestions and the pinned list."""
        names = [argument.name for argument in self.arguments if not argument.positional]
        names += [argument.alias for argument in self.arguments if argument.alias]
        if self.function is not None:
            names += ["--config", "--print_config"]
        if self.dry_run is not None:
            names.append("--dry-run")
        return [*names, "--help"]

    def main(self, argv: Sequence[str]) -> int:
        """Parse, then run."""
        if "-h" in argv or "--help" in argv:
            print(self.help(), end="")
            return 0
        given = self.parse(argv)
        show, dry = given.pop("print_config", False), given.pop("dry_run", False)
        self._require(given)
        if show:
            from fewgen.config import dump_yaml

            settings = self._settings(given) if self.print_config is None else self.print_config(given)
            print(dump_yaml(settings), end="")
            return 0
        if dry and self.dry_run is not None:
            print(self.dry_run(given))
            return 0
        return self.run(given)

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the keywords that the command line spells out, with their types checked.

        Raises:
            ConfigError: an unknown flag (with a suggestion), or a value of the wrong type.
        """
        from argparse import ArgumentError

        words = [_normal(word) for word in argv]
        self._refuse_unknown(words)
        words = self._spelt_out(words)
        parser = self._parser()
        try:
            parsed = parser.parse_args([_folded(word) for word in words], defaults=False).as_dict()
        except (ArgumentError, TypeError, ValueError) as error:
            raise ConfigError(self._readable(str(error))) from None
        given = {}
        by_dest = {argument.dest: argument for argument in self.arguments}
        for key, value in parsed.items():
            argument = by_dest.get(key)
            if value is None or (argument is not None and argument.many and value == []):
                continue
            if argument is not None and argument.type is dict and isinstance(value, dict):
                value = _unfolded({name: _plain(item) for name, item in value.items()})
            given[argument.keyword if argument else key] = value
        return given

    def help(self) -> str:
        """Return the help page: usage, what it does, examples, arguments and flags."""
        target = self.target()
        texts = {**_argument_texts(target), **dict(self.help_texts)}
        paragraphs = (self.description or _description(target)).split("\n\n")
        required = [a for a in self.arguments if self._is_required(a)]
        usage = " ".join(
            [f"usage: fewgen {self.name}"]
            + [a.name + ("..." if a.many else "") for a in self.arguments if a.positional and a in required]
            + [f"[{a.name}]" for a in self.arguments if a.positional and a not in required]
            + [f"{a.name} {a.metavar}" for a in required if not a.positional]
            + ["[flags]"]
        )
        lines = [usage, ""]
        for paragraph in paragraphs:
            lines += [*textwrap.wrap(" ".join(paragraph.split()), WIDTH), ""]
        lines.append("examples:")
        for command, purpose in self.examples:
            lines += [f"  # {purpose}", f"  {command}"]
        for title, positional in (("arguments:", True), ("flags:", False)):
            chosen = [a for a in self.arguments if a.positional is positional]
            if chosen:
                lines += ["", title]
            for argument in chosen:
                text = texts.get(argument.keyword, "")
                lines += _entry(self._heading(argument), text + self._default_note(argument, text))
        extra = []
        if self.function is not None:
            extra.append(("--config FILE", texts.get("config", "")))
            extra.append(("--print_config", "print every setting as YAML, ready for --config, and stop."))
        if self.dry_run is not None:
            dry = texts.get("dry_run", "print what would be done, with time and memory, and stop.")
            extra.append(("--dry-run", dry))
        if not any(not a.positional for a in self.arguments):
            lines += ["", "flags:"]
        for name, text in [*extra, ("-h, --help", "show this page.")]:
            lines += _entry(name, text)
        return "\n".join(lines) + "\n"

    def _parser(self) -> ArgumentParser:
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(
            prog=f"fewgen {self.name}",
            exit_on_error=False,
            add_help=False,
            print_config=None,
            allow_abbrev=False,
        )
        for argument in self.arguments:
            names = [argument.keyword] if argument.positional else [argument.name]
            if argument.short:
                names.insert(0, argument.short)
            options: dict[str, Any] = {"type": argument.type}
            if argument.positional:
                options["nargs"] = "*" if argument.many else "?"
            elif argument.many:
                options["nargs"] = "+"
            if argument.repeat:
                options["action"] = "append"
            if argument.type is bool and self._default(argument) is False:
                options = {"action": "store_true"}
            parser.add_argument(*names, **options)
        if self.function is not None:
            parser.add_argument("--config", type=str)
            parser.add_argument("--print_config", action="store_true")
        if self.dry_run is not None:
            parser.add_argument("--dry-run", action="store_true")
        return parser

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        known = [*self.flags(), *(a.short for a in self.arguments if a.short), "-h"]
        former = [a.former for a in self.arguments if a.former]
        sections = tuple(f"{a.name}." for a in self.arguments if a.type is dict)
        for word in words:
            if word == "--":
                return
            name = word.split("=", 1)[0]
            is_flag = name.startswith("--") or re.fullmatch(r"-[A-Za-z]", name)
            if is_flag and name not in [*known, *former] and not name.startswith(sections or ("\0",)):
                raise ConfigError(
                    f"fewgen {self.name} has no flag {name}.{suggest(name, known)} "
                    f"See fewgen {self.name} --help."
                )

    def _spelt_out(self, words: Sequence[str]) -> list[str]:
        """Return the words with aliases and bare sections as what they stand for."""
        result = list(words)
        end = result.index("--") if "--" in result else len(result)
        for argument in self.arguments:
            names = [word.split("=", 1)[0] for word in result[:end]]
            for other, kind in ((argument.alias, "another"), (argument.former, "the former")):
                if not other or other not in names:
                    continue
                if argument.name in names:
                    raise ConfigError(f"{other} is {kind} name of {argument.name}: give one of them.")
                if other == argument.former:
                    warn_renamed(other, argument.name)
                for i, name in enumerate(names):
                    if name == other:
                        result[i] = argument.name + result[i][len(name) :]
            if not argument.bare:
                continue
            for i, name in enumerate(names):
                value = result[i].partition("=")[2] or (result[i + 1] if i + 1 < len(result) else "")
                if name == argument.name and value and not value.startswith(("{", "--")):
                    result[i] = f"{name}.{argument.bare}" + result[i][len(name) :]
        return result

    def _readable(self, message: str) -> str:
        """Return one line, in the user's words, for what jsonargparse says."""
        key = re.search(r'Parser key "([^"]+)"', message)
        value = re.search(r"Given value: (.*)", message)
        for argument in self.arguments:
            if key and key.group(1).split(".")[0] == argument.dest:
                found = f', got "{value.group(1).strip()}"' if value else ""
                return f"{argument.name} must be {describe_type(argument.type)}{found}."
        match = re.search(r"unrecognized arguments: (.*)", message)
        if match:
            return (
                f'fewgen {self.name} does not know what to do with "{match.group(1)}". '
                f"See fewgen {self.name} --help."
            )
        match = re.search(r"argument (\S+): expected (.*)", message)
        if match:
            return f"{match.group(1)} needs a value ({match.group(2)})."
        return " ".join(message.split())

    def _require(self, given: dict[str, Any]) -> None:
        from fewgen.config import read_config

        target = self.target()
        if target is None:
            return
        file = read_config(given.get("config"))
        missing = [
            a.name if a.positional else f"{a.name} {a.metavar}".strip()
            for a in self.arguments
            if self._is_required(a) and a.keyword not in file and not given.get(a.keyword)
        ]
        if missing:
            raise ConfigError(
                f"fewgen {self.name} needs {' and '.join(missing)}. For example: {self.examples[0][0]}"
            )

    def _settings(self, given: dict[str, Any]) -> dict[str, Any]:
        target = self.target()
        return given if target is None else call_settings(target, given)

    def _default(self, argument: Argument) -> Any:
        target = self.target()
        if target is None:
            return False if argument.type is bool else None
        return inspect.signature(target).parameters[argument.keyword].default

    def _is_required(self, argument: Argument) -> bool:
        return self._default(argument) is inspect.Parameter.empty

    def _heading(self, argument: Argument) -> str:
        if argument.positional:
            return argument.name
        name = f"{argument.short}, {argument.name}" if argument.short else argument.name
        if argument.type is bool:
            return name.replace("--", "--[no-]", 1) if self._default(argument) is True else name
        if argument.type is dict:
            return f"{name}.KEY VALUE" + (f", {name} {argument.metavar}" if argument.bare else "")
        if argument.alias:
            name = f"{name}, {argument.alias}"
        more = " ..." if argument.many else ""
        return f"{name} {argument.metavar or argument.keyword.upper()}{more}"

    def _default_note(self, argument: Argument, text: str) -> str:
        default = self._default(argument)
        if argument.positional or default is None or argument.type is bool:
            return " Repeatable." if argument.repeat else ""
        if default is inspect.Parameter.empty:
            return " Required."
        return f" Default: {default}."


def _normal(word: str) -> str:
    """Return a flag in its canonical form: dashes for underscores, and `--no-x` as `--x=false`.

    >>> _normal("--text_path=a_b"), _normal("--no-report"), _normal("--model.latent_size")
    ('--text-path=a_b', '--report=false', '--model.latent_size')
    """
    match = re.match(r"--([A-Za-z][\w-]*)(.*)", word, re.DOTALL)
    if not match:
        return word
    name, rest = match.group(1).replace("_", "-"), match.group(2)
    if name == "print-config":
        return f"--print_config{rest}"
    if name in ("no-report", "no-progress", "no-html") and not rest:
        return f"--{name[3:]}=false"
    return f"--{name}{rest}"


def _folded(word: str) -> str:
    """Return a flag of a section inside a section as one of a section: the parser loses some of them.

    >>> _folded("--model.network.width=4"), _folded("--model.lr"), _folded("a.b.c")
    ('--model.network:width=4', '--model.lr', 'a.b.c')
    """
    match = re.match(r"(--[\w-]+\.\w+)((?:\.\w+)+)(=|$)", word)
    if match is None:
        return word
    return match.group(1) + match.group(2).replace(".", ":") + word[match.end(2) :]


def _unfolded(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings by section, of names that `_folded` made.

    >>> _unfolded({"network:width": 4, "lr": 0.1, "network:z_dim": 8})
    {'network': {'width': 4, 'z_dim': 8}, 'lr': 0.1}
    """
    from fewgen.config.schema import merge

    layers = []
    for name, value in values.items():
        for part in reversed(name.split(":")):
            value = {part: value}
        layers.append(value)
    return merge(*layers)


def _plain(value: Any) -> Any:
    """Return what a word of the command line means in YAML: a number, a switch, a list or itself.

    >>> _plain("0.5"), _plain("[1, 2]"), _plain("a photo of an #object")
    (0.5, [1, 2], 'a photo of an #object')
    """
    from fewgen.config import parse_yaml

    if isinstance(value, str) and " #" in value and value.lstrip()[:1] not in tuple("[{'\""):
        return value  # YAML would take the rest for a comment
    return parse_yaml(f"value: {value}")["value"] if isinstance(value, str) else value


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


def fail(message: str) -> None:
    """Print an error where scripts expect it."""
    print(f"error: {message}", file=sys.stderr, flush=True)
