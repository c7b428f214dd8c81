"""What the README tells a reader to type or to look up: commands parse, names exist, programs print what it says.

    python -m pytest -q tests/test_readme.py
"""
import argparse
import re
import shlex
from pathlib import Path

import pytest

import data
import distill
import evaluate
import finetune
import model
import teacher

FILES = {module.__name__: module for module in (data, distill, evaluate, finetune, model, teacher)}
HERE = Path(__file__).resolve().parent
README = (HERE.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.M | re.S)
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.M | re.S))
COMMANDS = sorted({found for line in "".join(BLOCKS).splitlines() + SPANS for found in
                   re.findall(r"(?:python|torchrun \S+) ((?:data|distill|evaluate|finetune|teacher)\.py.*)", line)})
NAMES = sorted({found for text in BLOCKS + SPANS for found in
                re.findall(rf"(?<![\w./-])((?:{'|'.join(FILES)})(?:\.[A-Za-z_]\w*)+)", text)
                if found.split(".")[1] not in ("py", "parameters")})


class Parsed(Exception):
    """Carries the parser that a stage built, before it does anything."""


def problem_of(command, monkeypatch):
    """What is wrong with one command line of ours; None if its parser takes every flag as it is written."""
    def stop(parser, argv=None, namespace=None):
        raise Parsed(parser)
    stage, *argv = shlex.split(command, comments=True)
    with monkeypatch.context() as patched, pytest.raises(Parsed) as caught:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        getattr(FILES[stage[:-3]], "parse_args", FILES[stage[:-3]].main)()
    parsers, known = [caught.value.args[0]], set()
    for parser in parsers:   # the list grows: the parsers of subcommands
        known |= set(parser._option_string_actions)
        parsers += [each for action in parser._actions if isinstance(action, argparse._SubParsersAction)
                    for each in action.choices.values()]
    # argparse itself would take a flag cut short
    unknown = [word for word in argv if word.startswith("--") and word.split("=")[0] not in known]
    if unknown:
        return f"{stage} knows no {', '.join(unknown)}"
    try:
        parsers[0].parse_args(argv)
    except SystemExit:
        return "its parser refuses it"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command, monkeypatch, capsys):
    assert problem_of(command, monkeypatch) is None, capsys.readouterr().err


@pytest.mark.parametrize("command", ["teacher.py --shuffle", "evaluate.py probes runs/student", "distill.py --head mpl",
                                     "evaluate.py probe", "data.py bank --data a --runs b"])
def test_a_wrong_command_is_noticed(command, monkeypatch):
    assert problem_of(command, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name):
    place = FILES[name.split(".")[0]]
    for part in name.split(".")[1:]:
        assert hasattr(place, part), f"the README speaks of {name}"
        place = getattr(place, part)


PROGRAMS = re.findall(r'^python -c "\n(.*?)"$', "".join(BLOCKS), re.M | re.S)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_prints_what_the_readme_says(program, capsys):
    exec(program, {})
    seen = re.findall(r"[\d.]+", capsys.readouterr().out)
    after = README[README.index(program) + len(program):][:1000]
    assert len(seen) >= 2
    assert all(re.search(rf"(?<![\d.]){re.escape(number)}(?!\.?\d)", after) for number in seen), seen


def test_the_section_for_teachers_was_read():
    chosen = re.findall(r"pytest -q (tests/\w+\.py) -k (\w+)", README)
    assert chosen and all(name in (HERE.parent / place).read_text() for place, name in chosen)
    assert len(COMMANDS) > 20 and len(PROGRAMS) == 2
    assert {"distill.nst_loss", "teacher.nce_loss", "finetune.finetune"} <= set(NAMES)
