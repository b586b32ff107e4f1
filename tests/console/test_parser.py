"""Bad input of any kind is one line and exit code 2; numbers are finite and in their range."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

from lib.console import script as module
from lib.console.parser import Parser
from lib.console.script import command_line, script, to_go_on
from lib.core.errors import InputError
from lib.core.values import not_negative, positive
from tests.helpers import error_line


def parse(*argv, **argument):
    parser = Parser(prog="tool")
    parser.add_argument("--n", **argument)
    return parser.parse_args(argv).n


# --- Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "texts"), [(int, ["1", "12"]), (float, ["1e-9", "0.5", "3"])])
def test_positive_numbers_are_read_as_their_kind(kind, texts):
    for text in texts:
        value = parse("--n", text, type=positive(kind))
        assert value == kind(text) and type(value) is kind


@pytest.mark.parametrize("text", ["0", "-1", "-0.0", "nan", "inf", "-inf", "1e999"])
def test_a_number_that_is_not_positive_and_finite_is_refused(text):
    with pytest.raises(InputError, match=f"argument --n: '{text}' is not a finite number above 0; see tool --help"):
        parse(f"--n={text}", type=positive(float))


def test_zero_is_not_negative():
    assert parse("--n", "0", type=not_negative(int)) == 0
    assert parse("--n", "0.0", type=not_negative(float)) == 0


@pytest.mark.parametrize("text", ["-1", "-1e-9", "nan", "inf", "-inf"])
def test_a_number_that_is_negative_or_not_finite_is_refused(text):
    with pytest.raises(
        InputError, match=f"argument --n: '{text}' is not a finite number of at least 0; see tool --help"
    ):
        parse(f"--n={text}", type=not_negative(float))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (positive(int), "1.5", "'1.5' is not a whole number of at least 1"),
        (positive(int), "nan", "'nan' is not a whole number of at least 1"),
        (positive(float), "one\ntwo", r"'one.two' is not a finite number above 0"),
        (not_negative(int), "x", "'x' is not a whole number of at least 0"),
    ],
)
def test_text_that_is_no_number_is_refused_with_what_was_expected(kind, text, message):
    with pytest.raises(InputError, match=f"argument --n: {message}; see tool --help"):
        parse(f"--n={text}", type=kind)


# --- Errors and exit codes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--m=3"], "unrecognized argument --m: did you mean --n?"),
        (["--number", "3"], "unrecognized argument --number"),
        (["--n"], "argument --n: expected one argument"),
        (["--n", "c"], "argument --n: invalid choice: 'c'"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_one_line_that_names_the_help(argv, message, capsys):
    @script
    def main(argv=None):
        return parse(*argv, choices=["a", "b"])

    line = error_line(main, argv, capsys)
    assert line.startswith(message) and line.endswith("; see tool --help")


def test_a_flag_is_not_recognised_by_its_beginning():
    parser = Parser(prog="tool")
    parser.add_argument("--num_epochs")
    with pytest.raises(InputError, match="unrecognized argument --num_epoch: did you mean --num_epochs?"):
        parser.parse_args(["--num_epoch", "3"])


def test_a_missing_subcommand_and_its_flags_are_one_line_too():
    parser = Parser(prog="tool")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("--n", type=positive(int), required=True)
    with pytest.raises(InputError, match="required: command; see tool --help"):
        parser.parse_args([])
    with pytest.raises(InputError, match="required: --n; see tool run --help"):
        parser.parse_args(["run"])


@pytest.mark.parametrize(("argv", "named"), [(["--n", ""], "--n"), (["--n="], "--n"), ([""], "the command")])
def test_an_empty_argument_is_refused_as_that_of_a_variable_that_is_not_set(argv, named):
    with pytest.raises(InputError, match=f"^{named} is followed by an empty argument; is a variable not set"):
        parse(*argv)


def test_the_flags_on_the_command_line_are_known_apart_from_those_with_their_default():
    parser = Parser(prog="tool")
    for name in ("n", "m"):
        parser.add_argument(f"--{name}", type=int, default=3)
    found = parser.parse_args(["--n=3"])
    assert found.given == {"n"} and vars(found) == {"n": 3, "m": 3}


def test_help_still_exits_with_0(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help", help="how many")
    assert stop.value.code == 0 and "how many" in capsys.readouterr().out


def test_bad_input_ends_a_script_with_one_line_and_code_2(capsys):
    @script
    def main(argv=None):
        raise InputError("a.txt, line 3: empty caption")

    assert error_line(main, [], capsys) == "a.txt, line 3: empty caption"


def test_an_interrupted_script_ends_with_130_and_no_traceback(capsys):
    @script
    def main(argv=None):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130 and stop.value.__suppress_context__
    assert capsys.readouterr() == ("", "interrupted; checkpoints and files already written are kept\n")


def test_a_warning_of_a_script_is_one_line():
    @script
    def main(argv=None):
        return warnings.formatwarning("too slow", UserWarning, "lib/some.py", 7, "warnings.warn(slow)")

    assert main() == "warning: too slow\n"
    assert "lib/some.py:7" in warnings.formatwarning("too slow", UserWarning, "lib/some.py", 7)


def test_a_dead_worker_ends_a_script_with_one_line(capsys):
    @script
    def main(argv=None):
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. \nand more")

    line = error_line(main, [], capsys)
    assert "a process that loads data died (DataLoader worker (pid 12) is killed by signal: Killed" in line


@pytest.mark.parametrize("before", [[], ["--resume", "a b.pth"], ["--resume=x.pth"], ["--resume", "auto"]])
def test_the_command_that_goes_on_says_so_once(before):
    command = command_line([*before, "--seed", "3", "--model_name", "my run", "--reset_start_epoch"])
    assert to_go_on(command) == "python train.py --seed 3 --model_name 'my run' --resume auto"


def test_any_other_error_keeps_its_traceback():
    @script
    def main(argv=None):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        main()


def test_an_error_of_the_machine_is_one_line_and_keeps_its_traceback_in_development_mode(monkeypatch, capsys):
    @script
    def main(argv=None):
        open("/no/such/file")

    assert error_line(main, [], capsys) == "/no/such/file: No such file or directory"
    monkeypatch.setattr(module, "sys", SimpleNamespace(flags=SimpleNamespace(dev_mode=True)))
    with pytest.raises(FileNotFoundError):
        main()


def test_a_script_that_ends_well_returns_what_its_main_returns():
    @script
    def main(argv=None):
        """What it does."""
        return argv

    assert main(["--n"]) == ["--n"] and main() is None
    assert (main.__name__, main.__doc__) == ("main", "What it does.")
