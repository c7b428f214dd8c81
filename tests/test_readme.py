"""What the README tells a reader: commands parse, names exist, programs print what it says, figures
of the claims are those of the kept values, and it is short.

    python -m pytest -q tests/test_readme.py
"""
import argparse
import json
import re
import shlex
import subprocess
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import distill
import evaluate
import finetune
import model
import teacher
import why

FILES = {module.__name__: module for module in (data, distill, evaluate, finetune, model, teacher)}
HERE = Path(__file__).resolve().parent
README = (HERE.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.M | re.S)
CODE = "".join(BLOCKS).replace("\\\n", " ")
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
SPANS = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE)]
STAGE = r"(?:python|torchrun \S+) ((?:data|distill|evaluate|finetune|teacher)\.py\b.*)"
COMMANDS = sorted(set(re.findall(STAGE, "\n".join([CODE, *SPANS]))))
NAME = rf"(?<![\w./-])((?:{'|'.join(FILES)})\.(?!py\b|parameters\b)[A-Za-z_]\w*)"
NAMES = sorted(set(re.findall(NAME, "\n".join([CODE, *SPANS]))))
PROGRAMS = re.findall(r'^python -c "\n(.*?)"$', CODE, re.M | re.S)
# what make is asked for, without its variables and what follows a comment
ASKED = re.findall(r"^make ([^#\n]*)", CODE + "\n".join(SPANS), re.M)
TARGETS = sorted(set(re.findall(r"(?<![=\w/])(?:data/(?:tasks|weights)\S*|data/wiki|data/\S+json)",
                                "\n".join(ASKED))))
EFFECT = r"[+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]"


# --------------------------------------------------------------------------------------------------
# Form


def test_it_takes_ten_minutes():
    """At most 2,500 words are in view, outside of <details>; their summaries are in view, too."""
    depth = 0
    words = []
    for piece in re.split(r"(<details>|</details>|<summary>.*?</summary>)", README, flags=re.S):
        depth += {"<details>": 1, "</details>": -1}.get(piece, 0)
        if depth == 0 or (depth == 1 and piece.startswith("<summary>")):
            words += piece.split()
    assert depth == 0 and len(words) <= 2500
    assert max(map(len, README.splitlines())) < 120


def test_the_first_screen_shows_a_small_clip():
    picture = README.index("(tests/readme.gif)")
    assert README[:picture].count("\n") < 30
    content = (HERE / "readme.gif").read_bytes()
    assert content.startswith(b"GIF89a") and len(content) <= 300_000
    assert b"NETSCAPE2.0" in content   # it loops


def test_the_clip_is_of_the_mini_world():
    """The caption and the question under the clip are as the mini world words them."""
    caption, question = re.findall(r"^> \*\*.*?\*\*\s+\*(.*?)\*$", README, re.M)
    templates = [line.format(a="drop", n="dumpling") for line in data.SPOKEN]
    assert caption in templates
    assert "dumpling" in data.NOUNS
    assert question == "what does the dumpling do when you drop it ? it rises ."


# --------------------------------------------------------------------------------------------------
# Commands, names, programs


def parser_of(stage, monkeypatch):
    """The parser that a stage builds, taken before the stage does anything."""
    def stop(parser, argv=None, namespace=None):
        raise InterruptedError(parser)
    module = FILES[stage[:-3]]
    with monkeypatch.context() as patched, pytest.raises(InterruptedError) as caught:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        getattr(module, "parse_args", module.main)()
    return caught.value.args[0]


def options_of(parser):
    """Every flag of a parser and of its subcommands' parsers, written out."""
    known = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                known |= options_of(command)
    return known


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command, monkeypatch):
    stage, *argv = shlex.split(command, comments=True)
    parser = parser_of(stage, monkeypatch)
    flags = {word.split("=")[0] for word in argv if word.startswith("--")}
    assert flags <= options_of(parser)   # argparse itself would take a flag cut short
    parser.parse_args(argv)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_of_make_exists(target):
    made = subprocess.run(["make", "-n", "PYTHON=python", target], cwd=HERE.parent,
                          capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name):
    module, attribute = name.split(".")
    assert hasattr(FILES[module], attribute), f"the README speaks of {name}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_prints_what_the_readme_says(program, capsys):
    exec(program, {})
    printed = re.findall(r"[\d.]+", capsys.readouterr().out)
    after = README[README.index(program) + len(program):][:1000]
    assert len(printed) >= 2
    assert set(printed) <= set(re.findall(r"\d+(?:\.\d+)?", after))


def test_the_section_for_teachers_was_read():
    chosen = re.findall(r"pytest -q (tests/\w+\.py) -k (\w+)", README)
    assert chosen
    for place, name in chosen:
        assert name in (HERE.parent / place).read_text()
    assert README.count("<summary>Answer</summary>") == 8
    assert len(COMMANDS) > 20 and len(PROGRAMS) == 2
    assert {"distill.nst_loss", "teacher.nce_loss", "finetune.finetune"} <= set(NAMES)


# --------------------------------------------------------------------------------------------------
# Figures


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The kept values, judged again here: {claim's number: claim}."""
    out = tmp_path_factory.mktemp("claims") / "claims.json"
    evaluate.main(["claims", "--values", str(HERE / "claims.jsonl"), "--out", str(out)])
    return {claim["number"]: claim for claim in json.loads(out.read_text())["claims"]}


def effect_of(part):
    return f"{part['mean']:+.1f} [{part['low']:+.1f}, {part['high']:+.1f}]"


def test_the_ten_claims_are_those_of_the_kept_values(judged):
    rows = re.findall(rf"^\| (\d+) \| .*? \| .*?({EFFECT}) \| (.*?) \|$", README, re.M)
    assert [number for number, _, _ in rows] == [str(number) for number in range(1, 11)]
    for number, effect, verdict in rows:
        assert effect in [effect_of(part) for part in judged[number]["parts"]]
        assert verdict.strip("*") == judged[number]["verdict"]


ARMS = {   # a row of the README -> its arm
    "text-only student": "text-only",
    "NST+CRD student, text-only teacher": "of-text-teacher",
    "NST+CRD student, mismatched films": "of-shuffled-teacher",
    "NST+CRD student": "nst+crd",
    "teacher's text encoder": "teacher",
}


def interval(values, sign=""):
    mean, low, high = evaluate.t_interval(values)
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def test_the_first_tables_are_those_of_the_kept_values():
    """All arms over worlds, and in each world; two arms' tasks; three arms' probes."""
    cells = evaluate.read_values(HERE / "claims.jsonl")
    reported = {key: cell for key, cell in cells.items() if key[1] < 100}

    def means(arm, measure, *all_tasks):
        every = [evaluate.values_of(reported, arm, measure, tasks) for tasks in all_tasks]
        return [f"{np.mean(values):.1f}" for values in every]
    rows = {}
    section = README[README.index("## What this shows"):README.index("## Claims")]
    for line in section.splitlines():
        name, *row = [word.strip(" *") for word in line.strip("|").split("|")]
        rows.setdefault(name.removesuffix("** (never saw a frame)"), []).append(row)
    text_only = evaluate.values_of(reported, "text-only", "grounded", evaluate.TWO)
    for name, arm in ARMS.items():
        grounded = evaluate.values_of(reported, arm, "grounded", evaluate.TWO)
        lead = [ours - theirs for ours, theirs in zip(grounded, text_only, strict=True)]
        over_worlds, each_world, *probes = rows[name]
        assert over_worlds == [interval(grounded), *means(arm, "unfilmed", evaluate.TWO),
                               *means(arm, "ungrounded", evaluate.TWO)]
        assert each_world == [*[f"{value:.1f}" for value in grounded],
                              interval(lead, "+") if any(lead) else ""]
        if arm in ("text-only", "nst+crd", "teacher"):
            assert probes == [means(arm, "probe", *data.PROPERTIES)]
    for task in evaluate.MINI_TASKS:
        scores = []
        for arm in ("text-only", "nst+crd"):
            scores += [*means(arm, "grounded", task), *means(arm, "ungrounded", task)]
        assert rows[task] == [scores]


def test_nearest_clips_are_compared_with_their_article(mini, tmp_path, monkeypatch):
    """A teacher whose every token is itself: at a noun the nearest clip shows that noun, at all
    else it is clip 0."""
    world = data.read_json(mini / "world.json", "")["nouns"]
    tokenizer = data.load_tokenizer(mini)
    filmed = [noun for noun in world if world[noun]["group"] != "unfilmed"]
    data.write_json(tmp_path / "caption.json", {
        noun: {"text": [f"drop the {noun}", f"the {noun}", "the jar"]} for noun in filmed})
    data.write_json(tmp_path / "bank.json", [
        {"video": noun, "start": 0, "end": 1, "text": "not what it shows"} for noun in filmed])
    for name in ("world.json", "text"):
        (tmp_path / name).symlink_to(mini / name)
    size = tokenizer.get_vocab_size()
    bank = F.one_hot(torch.tensor([tokenizer.token_to_id(noun) for noun in filmed]), size).float()

    class Itself(torch.nn.Module):
        def forward(self, tokens):
            return F.one_hot(tokens, size).float()
    config = model.BertConfig(vocab_size=size, block=32)
    monkeypatch.setattr(why, "BLOCKS", 640)
    monkeypatch.setattr(why.data, "load_tokenizer", lambda folder: tokenizer)
    monkeypatch.setattr(why.model, "load_hf", lambda folder: (config, Itself(), None))
    # stand-ins with the arguments and results of the real ones
    monkeypatch.setattr(why.distill, "bank_vectors", create_autospec(
        distill.bank_vectors, return_value=bank))
    monkeypatch.setattr(why.distill, "validate", create_autospec(
        distill.validate, return_value=1.5))
    shares = why.nearest_clips(tmp_path, tmp_path, tmp_path / "bank.json")
    assert why.mlm_on_text(mini, tmp_path) == (1.5, np.log(size))

    hits = {"noun": {}, "others": {}}   # the same by hand
    blocks = data.TextBlocks(mini / "text", "train", tokenizer, 32).batch(range(640))[:, 1:-1]
    for block in blocks.tolist():
        pieces = [tokenizer.id_to_token(token) for token in block]
        named = {piece for piece in pieces if piece in world}
        if len(named) != 1 or not named <= set(filmed):
            continue
        noun = named.pop()
        for piece in pieces:
            clip = piece if piece in filmed else filmed[0]   # none is near to a token of no noun
            place = hits["noun" if piece == noun else "others"]
            place.setdefault("noun", []).append(clip == noun)
            for name in ("colour", "lift"):
                place.setdefault(name, []).append(world[clip][name] == world[noun][name])
    for place, by_name in hits.items():
        for name, found in by_name.items():
            assert shares[place][name] == pytest.approx(np.mean(found))
