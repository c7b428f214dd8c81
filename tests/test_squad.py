"""SQuAD v1.1 and v2.0: reader, windows, answers, the official scores, fine-tuning.

    python -m pytest tests/test_squad.py
    REAL_DATA=/path/to/real/files python -m pytest tests/test_squad.py   # also real questions
"""
import copy
import json
import math
import re
import shutil
import string

import numpy as np
import pytest
import torch

import data
import evaluate
import finetune
import model

# what evaluate-v2.0.py prints for the two real files
XQUAD = {"exact": 74.87394957983193, "f1": 86.32474793700983}


def question(name, text, context, answer, version):
    row = {"id": name, "question": text, "answers": []}
    if answer:
        row["answers"].append({"text": answer, "answer_start": context.index(answer)})
    if version == "v2.0":
        row["is_impossible"] = answer is None
    return row


def squad_file(*paragraphs, version="v2.0"):
    """A data set of (context, [(id, question, answer or None)])."""
    rows = []
    for context, questions in paragraphs:
        qas = [question(name, text, context, answer, version) for name, text, answer in questions]
        rows.append({"context": context, "qas": qas})
    return {"version": version, "data": [{"title": "t", "paragraphs": rows}]}


def read(folder, content, version="v2.0", split="dev"):
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / f"{split}-{version}.json").write_bytes(text)
    return finetune.TASKS[f"SQuAD{version[1]}"].read(folder, split)


@pytest.fixture(scope="session")
def bert(real_data, tmp_path_factory):
    """Folder of bert-base-uncased's vocabulary."""
    folder = tmp_path_factory.mktemp("bert")
    shutil.copy(real_data / "vocab/bert-base-uncased-vocab.txt", folder / "vocab.txt")
    return folder


@pytest.fixture(scope="session")
def xquad(real_data, tmp_path_factory):
    """Examples of xquad.en.json."""
    content = (real_data / "squad/xquad.en.json").read_bytes()
    return read(tmp_path_factory.mktemp("xquad"), content, "v1.1")


def ids_of(windows, row):
    return windows.ids[row].tolist()


# --------------------------------------------------------------------------------------------------
# Reader

GOOD = squad_file(("The cat sat.", [("q1", "Who sat?", "cat"), ("q2", "Who ran?", None)]))


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_reader(tmp_path, bom):
    one, two = read(tmp_path, bom + json.dumps(GOOD).encode())
    assert one.texts == [("Who sat?", "The cat sat.")]
    assert (one.label, one.row, one.answers) == ("cat", "q1", (("cat", 4),))
    assert (two.label, two.answers) == ("", ())
    assert two.where.endswith("dev-v2.0.json, question q2")
    assert finetune.targets_of("SQuAD2", [one, two]) == [["cat"], []]


def changed(path, value):
    """GOOD with another value at a path of keys; None: without the last of them."""
    content = copy.deepcopy(GOOD)
    place = content
    *keys, last = path
    for key in keys:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


PARAGRAPH = ("data", 0, "paragraphs", 0)
ROW = (*PARAGRAPH, "qas", 0)
ANSWER = (*ROW, "answers", 0)


@pytest.mark.parametrize("content, message", [
    (json.dumps(GOOD, indent=1).encode()[:300], r"line \d+: not valid JSON"),
    (json.dumps(GOOD).encode("utf-16"), "not UTF-8"),
    (b"{}", "dev-v2.0.json, or what follows it: 'data' is missing"),
    (changed(["data"], []), "dev-v2.0.json has no rows"),
    (changed(["data"], [GOOD["data"][0], {}]), "q2, or what follows it: 'paragraphs' is missing"),
    (changed([*ROW, "answers"], None), "question q1, .*: 'answers' is missing"),
    (changed([*ROW, "is_impossible"], True), "question q1: 1 answers, is_impossible True"),
    (changed([*ROW, "answers"], []), "question q1: 0 answers, is_impossible False"),
    (changed([*ANSWER, "answer_start"], 5), "q1: answer_start 5 does not point at 'cat'"),
    (changed([*ANSWER, "answer_start"], -8), "q1: answer_start -8 does not point"),
    (changed([*ANSWER, "text"], ""), "q1: answer_start 4 does not point at ''"),
    (changed([*ANSWER, "answer_start"], "4"), "q1, or what follows it: not SQuAD's form"),
    (changed([*ROW, "answers"], {"text": ["cat"]}), "q1, or what follows it: not SQuAD's form"),
    (changed([*ROW, "question"], 7), "q1, or what follows it: not SQuAD's form"),
    (changed([*PARAGRAPH, "context"], 7), "q1, or what follows it: not SQuAD's form"),
    (b"[]", "dev-v2.0.json, or what follows it: not SQuAD's form"),
])
def test_bad_files_are_named_with_line_or_question(tmp_path, content, message):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "dev-v2.0.json").write_bytes(text)
    with pytest.raises(model.UserError, match=message) as error:
        finetune.read_split("SQuAD2", tmp_path, "dev")
    assert str(tmp_path / "dev-v2.0.json") in str(error.value)


def test_v1_questions_need_an_answer(tmp_path):
    content = squad_file(("a b", [("q", "?", None)]), version="v1.1")
    with pytest.raises(model.UserError, match="question q: 0 answers"):
        read(tmp_path, content, "v1.1")


@pytest.mark.parametrize("name, version, count, unanswered", [
    ("xquad.en", "v1.1", 1190, 0), ("tiny-v1.1", "v1.1", 5, 0), ("tiny-v2.0", "v2.0", 6, 1),
    ("small-dev-v2.0", "v2.0", 14, 6)])
def test_real_files(real_data, tmp_path, name, version, count, unanswered):
    shutil.copy(real_data / f"squad/{name}.json", tmp_path / f"dev-{version}.json")
    examples, targets, meta = finetune.read_split(f"SQuAD{version[1]}", tmp_path, "dev")
    assert len(examples) == len(targets) == count and meta is None
    assert targets.count([]) == unanswered


# --------------------------------------------------------------------------------------------------
# Windows


def their_windows(oracle, example, max_length, stride):
    """transformers' fast tokenizer on one question -> [(ids, segments, offsets of the pieces, None
    outside the context)]. Its `stride` is the overlap of two windows."""
    asked = oracle(example.texts[0][0], add_special_tokens=False)["input_ids"]
    assert len(asked) <= 64
    out = oracle(*example.texts[0], truncation="only_second", max_length=max_length,
                 stride=max_length - len(asked) - 3 - stride, return_overflowing_tokens=True,
                 return_offsets_mapping=True)
    windows = []
    for row, offsets in enumerate(out["offset_mapping"]):
        parts = out.sequence_ids(row)
        own = [offset if part == 1 else None for offset, part in zip(offsets, parts)]
        windows.append((out["input_ids"][row], out["token_type_ids"][row], own))
    return windows


def their_target(offsets, text, start):
    """The pieces that cover an answer's characters, as transformers' run_qa marks them; (0, 0)
    without all of it."""
    own = [place for place, offset in enumerate(offsets) if offset is not None]
    stop = start + len(text)
    if not own or offsets[own[0]][0] > start or offsets[own[-1]][1] < stop:
        return 0, 0
    return (max(place for place in own if offsets[place][0] <= start),
            min(place for place in own if offsets[place][1] >= stop))


@pytest.mark.parametrize("max_length, stride", [(384, 128), (128, 32)])
def test_windows_equal_transformers(bert, xquad, transformers, max_length, stride):
    """Ids, segments and targets; the stride is the step."""
    oracle = transformers.BertTokenizerFast.from_pretrained(bert)
    windows = finetune.Windows(xquad, data.load_tokenizer(bert), max_length, stride, train=True)
    row = 0
    several = 0
    for index, example in enumerate(xquad):
        expected = their_windows(oracle, example, max_length, stride)
        several += len(expected) > 1
        for ids, segments, offsets in expected:
            assert windows.question[row] == index and ids_of(windows, row) == ids
            assert windows.batch([row])[2].tolist() == [segments]
            target = their_target(offsets, *example.answers[0])
            assert tuple(windows.targets[row].tolist()) == target, example.row
            row += 1
    assert row == len(windows) and several >= 20


def test_answers_come_back_literally(bert, xquad):
    """With perfect scores, all of XQuAD's answers but one that begins inside a word piece."""
    windows = finetune.Windows(xquad, data.load_tokenizer(bert), 384, 128, train=True)
    scores = np.zeros((len(windows), 384, 2), dtype=np.float32)
    for row, (first, last) in enumerate(windows.targets):
        scores[row, first, 0] = 10
        scores[row, last, 1] = 10
    scores[(windows.targets == 0).all(1)] = 0
    answers, _ = finetune.span_answers(windows, scores)
    literal = [answer == example.label for answer, example in zip(answers, xquad)]
    assert sum(literal) >= 1189


@pytest.mark.parametrize("context, answer, expected", [
    ("born (1895) in x", "1895", "1895"),                     # inside brackets
    ("the skyscrapers rose", "scrapers", "skyscrapers"),      # inside a piece: all of it
    ("He\u00a0ran far", "ran", "ran"),
    ("the red\u00a0cat sat", "red\u00a0cat", "red\u00a0cat"),
    ("  lead ing", "lead", "lead"),
    ("Steve Smith's", "Steve Smith", "Steve Smith"),
    ("in the U.S. now", "U.S.", "U.S."),
    ("Beyoncé's", "Beyoncé", "Beyoncé"),                      # an accent in one character
    ("Beyonce\u0301's", "Beyonce\u0301", "Beyonce\u0301"),    # and as a character of its own
    ("\u2603 snow", "\u2603", "\u2603"),                      # no piece of the vocabulary
    ("\u5317\u4eac", "\u5317", "\u5317"),
    ("a\u2003b\u202fc d", "b\u202fc", "b\u202fc")])
def test_an_answers_pieces_and_its_text(bert, tmp_path, context, answer, expected):
    examples = read(tmp_path, squad_file((context, [("a", "what ?", answer)])))
    windows = finetune.Windows(examples, data.load_tokenizer(bert), 64, 16, train=True)
    scores = np.zeros((1, windows.lengths[0], 2), dtype=np.float32)
    first, last = windows.targets[0]
    scores[0, first, 0] = scores[0, last, 1] = 1
    assert finetune.span_answers(windows, scores)[0] == [expected]


def test_windows_step_cover_and_mark(tiny_tokenizer, tmp_path, capsys):
    """Step, coverage and targets against a loop; a long question is cut; one whose answer has no
    piece is left out."""
    words = ["cat", "dog", "mat", "red", "big", "sat", "ran", "see"]
    context = " ".join([words[i % 8] for i in range(50)] + ["today"])
    long = " ".join(["cat"] * 90)
    examples = read(tmp_path, squad_file((context, [
        ("a", "the cat", "today"), ("b", "the", "cat dog mat"), ("c", "a", None),
        ("d", long, "today")])))
    empty, = read(tmp_path, squad_file(("red \u200b cat", [("empty", "?", "\u200b")])))
    windows = finetune.Windows([*examples, empty], tiny_tokenizer, 24, 4, train=True)
    assert "left out" in capsys.readouterr().out and 4 not in windows.question
    pieces = tiny_tokenizer.encode(context, add_special_tokens=False).ids
    marked = 0
    cases = [(2, (50, 50)), (1, (0, 2)), (1, None), (17, (50, 50))]
    for index, (asked, answer) in enumerate(cases):
        rows = np.flatnonzero(windows.question == index)
        room = 24 - 3 - asked
        firsts = [0]
        while firsts[-1] + room < len(pieces):
            firsts.append(firsts[-1] + 4)
        assert windows.first[rows].tolist() == firsts
        for row, first in zip(rows, firsts):
            ids = ids_of(windows, row)
            assert ids[asked + 2:-1] == pieces[first:first + room]
            assert len(ids) == windows.lengths[row] <= 24
            expected = (0, 0)
            if answer and first <= answer[0] and answer[1] < min(first + room, len(pieces)):
                expected = tuple(place - first + asked + 2 for place in answer)
                marked += 1
            assert tuple(windows.targets[row]) == expected
    assert marked >= 3
    everything = finetune.Windows([empty, *examples], tiny_tokenizer, 24, 4, train=False)
    assert len(everything) > len(windows)


def test_questions_are_cut_at_64_pieces(tiny_tokenizer, tmp_path):
    long = " ".join(["dog"] * 70)
    examples = read(tmp_path, squad_file(("the cat sat", [("a", long, "cat")])))
    windows = finetune.Windows(examples, tiny_tokenizer, 384, 128, train=True)
    assert windows.seconds.tolist() == [66] and windows.lengths.tolist() == [70]
    assert windows.targets.tolist() == [[67, 67]]


def slow_widest(first, length, piece):
    """The window that shows a piece with the most context, in a loop."""
    best = None
    for index, (begin, size) in enumerate(zip(first, length)):
        if begin <= piece < begin + size:
            value = min(piece - begin, begin + size - 1 - piece) + 0.01 * size
            if best is None or value > best[0]:
                best = (value, index)
    return best[1]


def test_max_context_equals_a_loop():
    generator = np.random.default_rng(0)
    for _ in range(200):
        room = int(generator.integers(1, 30))
        step = min(int(generator.integers(1, 12)), room)
        pieces = int(generator.integers(1, 80))
        first = np.arange(0, max(1, pieces - room + step), step)
        length = np.minimum(room, pieces - first)
        widest = finetune.max_context(first, length)
        for piece in range(pieces):
            assert np.flatnonzero(widest[:, piece]) == [slow_widest(first, length, piece)]


# --------------------------------------------------------------------------------------------------
# Answers


def slow_answer(windows, scores, index, null_threshold):
    """One question's answer and odds, in loops from the rule."""
    context = windows.examples[index].texts[0][1]
    offsets = windows.offsets[context]
    rows = [row for row in range(len(windows)) if windows.question[row] == index]
    first = [windows.first[row] for row in rows]
    count = [windows.lengths[row] - windows.seconds[row] - 1 for row in rows]
    candidates = []
    nulls = []
    for place, row in enumerate(rows):
        length = int(windows.lengths[row])
        head = int(windows.seconds[row])
        start_scores = scores[row, :length, 0].tolist()
        end_scores = scores[row, :length, 1].tolist()
        nulls.append(start_scores[0] + end_scores[0])
        starts = sorted(range(length), key=lambda k: (-start_scores[k], k))[:20]
        ends = sorted(range(length), key=lambda k: (-end_scores[k], k))[:20]
        for start in starts:
            for end in ends:
                if not head <= start <= end < length - 1 or end - start >= 30:
                    continue
                piece = start - head + first[place]
                if slow_widest(first, count, piece) == place:
                    text = context[offsets[piece][0]:offsets[end - head + first[place]][1]]
                    candidates.append((start_scores[start] + end_scores[end], text))
    best, text = max(candidates, key=lambda candidate: candidate[0])
    odds = min(nulls) - best
    if null_threshold is not None and odds > null_threshold:
        text = ""
    return text, odds


@pytest.mark.parametrize("null_threshold", [None, 0.0, 2.0])
def test_answers_equal_the_rule_in_loops(tiny_tokenizer, tmp_path, null_threshold):
    """Random scores, several windows a question: the same answers and odds."""
    generator = np.random.default_rng(0)
    words = ["Cat", "(dog)", "mats", "red-big", "sat,", "ran", "the", "seeé"]
    paragraphs = []
    for i in range(40):
        context = " ".join(generator.choice(words, int(generator.integers(1, 60))))
        paragraphs.append((context, [(f"q{i}", "the cat sat ?", None)]))
    examples = read(tmp_path, squad_file(*paragraphs))
    windows = finetune.Windows(examples, tiny_tokenizer, 48, 12, train=False)
    assert len(windows) > 80
    scores = (3 * generator.standard_normal((len(windows), 48, 2))).astype(np.float32)
    scores[:, 0] += 5
    texts, odds = finetune.span_answers(windows, scores)
    limit = math.inf if null_threshold is None else null_threshold
    answers = ["" if odd > limit else text for text, odd in zip(texts, odds)]
    for index in range(40):
        answer, value = slow_answer(windows, scores, index, null_threshold)
        assert answers[index] == answer
        assert odds[index] == pytest.approx(value, abs=1e-9)
    assert null_threshold is None or 0 < answers.count("") < 40


def test_questions_without_a_valid_span(tiny_tokenizer, tmp_path):
    """A context of white space has no piece: the answer is the empty text, in either version."""
    examples = read(tmp_path, squad_file((" \n", [("a", "the cat ?", None)]),
                                         ("the cat", [("b", "the cat ?", "cat")])))
    windows = finetune.Windows(examples, tiny_tokenizer, 24, 4, train=False)
    scores = np.zeros((len(windows), 24, 2), dtype=np.float32)
    assert finetune.span_answers(windows, scores)[0] == ["", "the"]


def test_answer_places():
    def example(context, answer):
        answers = ((answer, context.index(answer)),) if answer else ()
        return finetune.Example([("?", context)], answer, "q", "", answers)
    examples = [example("you lift the jug and the pan .", "jug"), example("it is here", ""),
                example("you lift the jug and the pan .", "pan"), example("it is here", "it")]
    targets = finetune.targets_of("SQuAD2", examples)
    labels, given = finetune.answer_places(examples, targets, ["the jug", "", "jug", "is"])
    assert labels.tolist() == [3, -1, 6, 0] and given.tolist() == [3, -1, -2, -2]


# --------------------------------------------------------------------------------------------------
# The official scores


def official_words(text):
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return [word for word in re.sub(r"\b(a|an|the)\b", " ", text).split()]


def official_pair(gold, words):
    """(exact, F1) of one answer and one gold, both lists of words."""
    rest = list(gold)
    common = 0
    for word in words:
        if word in rest:
            rest.remove(word)
            common += 1
    if not common:
        return float(gold == words), float(gold == words)
    precision = common / len(words)
    recall = common / len(gold)
    return float(gold == words), 2 * precision * recall / (precision + recall)


def official(dataset, predictions, odds=None):
    """evaluate-v2.0.py's rule, slowly: every threshold is tried by counting all questions again."""
    has = {}
    raw = {}
    for paragraph in paragraphs_of(dataset):
        for row in paragraph["qas"]:
            name = row["id"]
            has[name] = bool(row["answers"])
            golds = [official_words(answer["text"]) for answer in row["answers"]]
            golds = [gold for gold in golds if gold] or [[]]
            words = official_words(predictions[name])
            pairs = [official_pair(gold, words) for gold in golds]
            raw[name] = [max(scores) for scores in zip(*pairs)]
    out = {}
    parts = {"": list(raw), "HasAns_": [name for name in raw if has[name]],
             "NoAns_": [name for name in raw if not has[name]]}
    for prefix, chosen in parts.items():
        for k, key in enumerate(["exact", "f1"]):
            counted = []
            for name in chosen:
                unanswered = odds is not None and odds[name] > 1
                counted.append(float(not has[name]) if unanswered else raw[name][k])
            if chosen:
                out[prefix + key] = 100 * np.mean(counted)
                out[prefix + "total"] = len(chosen)
    if odds is None:
        return out
    order = sorted(raw, key=lambda name: odds[name])
    for k, key in enumerate(["exact", "f1"]):
        totals = []
        for taken in range(len(order) + 1):   # the first `taken` are answered, the rest are not
            total = list(has.values()).count(False)
            for name in order[:taken]:
                total += raw[name][k] if has[name] else -bool(predictions[name])
            totals.append(total)
        best = int(np.argmax(np.round(totals, 9)))
        out[f"best_{key}"] = 100 * totals[best] / len(raw)
        out[f"best_{key}_thresh"] = odds[order[best - 1]] if best else 0.0
    return out


def paragraphs_of(dataset):
    paragraphs = []
    for article in dataset["data"]:
        paragraphs += article["paragraphs"]
    return paragraphs


def test_real_submission(real_data, xquad):
    dataset, predictions = [json.loads((real_data / f"squad/{name}.json").read_text())
                            for name in ("xquad.en", "bert-ensemble-predictions-v1.1")]
    scores = evaluate.squad_scores(dataset, predictions)
    has = {f"HasAns_{key}": value for key, value in XQUAD.items()}
    assert scores == {**XQUAD, "total": 1190, **has, "HasAns_total": 1190}
    predictions = {example.row: predictions[example.row] for example in xquad}
    assert scores == pytest.approx(official(dataset, predictions), abs=1e-9)
    answers = [predictions[example.row] for example in xquad]
    row = finetune.score("SQuAD1", finetune.targets_of("SQuAD1", xquad), answers)
    assert row["f1"] == pytest.approx(XQUAD["f1"] / 100)
    assert row["exact"] == pytest.approx(XQUAD["exact"] / 100)
    assert row["n"] == 1190 and row["chance"] == 0


@pytest.mark.parametrize("name", ["tiny-v2.0", "small-dev-v2.0", "drawn"])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_rule(name, seed, request):
    """Answers right, half right, wrong or empty, odds with ties, thresholds included."""
    generator = np.random.default_rng(seed)
    if name == "drawn":
        paragraphs = []
        for i in range(60):
            answer = [None, "A red cat", "dog"][i % 3]
            paragraphs.append((f"A red cat, the dog {i} ran", [(f"q{i}", "?", answer)]))
        dataset = squad_file(*paragraphs)
    else:
        folder = request.getfixturevalue("real_data") / "squad"
        dataset = json.loads((folder / f"{name}.json").read_text())
    predictions = {}
    odds = {}
    for paragraph in paragraphs_of(dataset):
        for row in paragraph["qas"]:
            golds = [answer["text"] for answer in row["answers"]] or ["nothing of it"]
            gold = golds[generator.integers(len(golds))]
            half = " ".join(gold.split()[:2]) + " too"
            answers = [gold, gold.upper() + " !", half, "", "something"]
            predictions[row["id"]] = answers[generator.integers(5)]
            odds[row["id"]] = float(generator.integers(-6, 7)) / 2
    empty = dict.fromkeys(predictions, "")
    for given, thresholds in ((predictions, None), (predictions, odds), (empty, odds)):
        ours = evaluate.squad_scores(dataset, given, thresholds)
        theirs = official(dataset, given, thresholds)
        assert ours.keys() == theirs.keys() and ours == pytest.approx(theirs, abs=1e-9)


def test_keys_and_order():
    scores = evaluate.squad_scores(GOOD, {"q1": "the cat", "q2": ""}, {"q1": 0.1, "q2": 0.9})
    assert list(scores) == [
        "exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total", "NoAns_exact",
        "NoAns_f1", "NoAns_total", "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"]
    assert scores["exact"] == scores["best_f1"] == 100 and scores["best_f1_thresh"] == 0.1


@pytest.mark.parametrize("predictions, odds", [
    ({"q1": "dog"}, None), ({"q1": "cat", "q2": ""}, {"q1": 0.5})])
def test_a_question_without_a_prediction_is_named(predictions, odds):
    with pytest.raises(model.UserError, match="question q2 has no prediction or no probability"):
        evaluate.squad_scores(GOOD, predictions, odds)


def test_golds_that_are_only_articles_do_not_count():
    assert finetune.answer_scores(["The", "cat"], "a") == (0, 0)
    assert finetune.answer_scores(["the", "!"], "an") == (1, 1)
    assert finetune.answer_scores([], "x") == (0, 0)
    half = (0, pytest.approx(0.8))
    assert finetune.answer_scores(["the red cat", "cat"], "A red, red cat") == half


def test_shell(tmp_path, capsys):
    def put(name, value):
        data.write_json(tmp_path / name, value)
        return str(tmp_path / name)
    dataset = put("d.json", GOOD)
    answers = put("p.json", {"q1": "cat", "q2": ""})
    evaluate.main(["squad", dataset, answers, "--na-prob", put("o.json", {"q1": -1, "q2": 2})])
    printed = json.loads(capsys.readouterr().out)
    expected = evaluate.squad_scores(GOOD, {"q1": "cat", "q2": ""}, {"q1": -1, "q2": 2})
    assert printed == expected and printed["f1"] == 100
    evaluate.main(["squad", dataset, answers])
    # of equal odds the official script takes the file's order
    for order, best in ((("q1", "q2", "other"), 100), (("q2", "other", "q1"), 50)):
        equal = dict.fromkeys(order, 0.5)
        scores = evaluate.squad_scores(GOOD, {"q1": "cat", "q2": "a cat"}, equal)
        assert scores["best_f1"] == best and scores["best_exact"] == best
    plain = json.loads(capsys.readouterr().out)
    assert set(plain) == {key for key in printed if not key.startswith("best")}
    for first, second, message in (
            (answers, answers, "lacks data; `make data/tasks/SQuAD2` makes it anew"),
            (dataset, str(tmp_path / "none.json"), "none.json is missing")):
        with pytest.raises(model.UserError, match=message):
            evaluate.main(["squad", first, second])


# --------------------------------------------------------------------------------------------------
# Fine-tuning

NOUNS = ["cat", "dog", "mat", "red", "big", "sat", "ran", "see"]


def save_model(folder, tokenizer, positions=64, width=64):
    torch.manual_seed(0)
    config = model.BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=width,
                              num_hidden_layers=2, num_attention_heads=2,
                              intermediate_size=2 * width, max_position_embeddings=positions,
                              initializer_range=0.1)
    bert = model.Bert(config)
    model.save_hf(folder, config, bert, model.MLMHead(config, bert.tokens), tokenizer)


@pytest.fixture(scope="session")
def tasks(tmp_path_factory, tiny_tokenizer):
    """A folder with a tiny random model, run/, and tasks/SQuAD1 and SQuAD2: the answer is the word
    after "the"; v2.0 has contexts without one. Some contexts need several windows of 24."""
    root = tmp_path_factory.mktemp("squad")
    generator = np.random.default_rng(0)
    save_model(root / "run/model", tiny_tokenizer)
    (root / "tasks").mkdir()
    for version, folder in (("v1.1", "SQuAD1"), ("v2.0", "SQuAD2")):
        for split, count in (("train", 240), ("dev", 60)):
            paragraphs = []
            for i in range(count):
                words = generator.choice(NOUNS, int(generator.integers(3, 30))).tolist()
                place = int(generator.integers(len(words)))
                answer = None
                if version == "v1.1" or i % 3:
                    answer = f"the {words[place]}"
                    words.insert(place, "the")
                paragraphs.append((" ".join(words), [(f"{split}-{i}", "we see ?", answer)]))
            content = squad_file(*paragraphs, version=version)
            for paragraph in paragraphs_of(content):   # without "the"
                for answer in paragraph["qas"][0]["answers"]:
                    answer["text"] = answer["text"].removeprefix("the ")
                    answer["answer_start"] += len("the ")
            read(root / "tasks" / folder, content, version, split)
    return root


def start(root, *flags, out):
    flags = ["--model", root / "run", "--data", root / "tasks", "--device", "cpu", "--batch", 16,
             "--lr", "2e-3", "--max-length", 24, "--stride", 6, "--precision", "fp32",
             "--size", "base", "--out", out, *flags]
    finetune.main([str(flag) for flag in flags])


def read_json(path):
    return json.loads(path.read_text())


def losses_of(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_runs_learn_and_write_every_file(tasks, tmp_path, capsys):
    start(tasks, "--task", "SQuAD1", "--epochs", 1, out=tmp_path)
    start(tasks, "--task", "SQuAD2", "--epochs", 12, "--log-every", 10, out=tmp_path)
    out = capsys.readouterr().out
    for task, version in (("SQuAD1", "v1.1"), ("SQuAD2", "v2.0")):
        folder = tmp_path / "finetune" / task / "seed-0"
        expected = {"args.json", "lock", "log.jsonl", "metrics.json", "predictions-dev.json"}
        if task == "SQuAD2":
            expected |= {"texts-dev.json", "null_odds-dev.json"}
        assert {path.name for path in folder.iterdir()} == expected
        metrics = read_json(folder / "metrics.json")
        predictions = read_json(folder / "predictions-dev.json")
        assert metrics["train_rows"] > 240
        assert metrics["dev"]["n"] == len(predictions) == 60
        dataset = read_json(tasks / "tasks" / task / f"dev-{version}.json")
        scores = evaluate.squad_scores(dataset, predictions)
        for key in ("f1", "exact"):
            assert 100 * metrics["dev"][key] == pytest.approx(scores[key])
        chance = 1 / 3 if task == "SQuAD2" else 0
        assert metrics["dev"]["chance"] == pytest.approx(chance)
        assert f"{task} seed 0: dev {metrics['dev']['f1']:.3f}" in out
    losses = losses_of(folder)
    assert losses[-1] < 0.3 * losses[0] and metrics["dev"]["f1"] > 0.9
    odds = read_json(folder / "null_odds-dev.json")
    assert "" in predictions.values()
    texts = read_json(folder / "texts-dev.json")
    assert "" not in texts.values()
    for name, value in odds.items():
        assert predictions[name] == ("" if value > 0 else texts[name])
    start(tasks, "--task", "SQuAD2", "--epochs", 12, out=tmp_path)
    assert "complete, nothing to do" in capsys.readouterr().out
    start(tasks, "--task", "SQuAD2", "--epochs", 1, "--null-threshold", 1000, out=tmp_path)
    assert "epochs, null_threshold changed" in capsys.readouterr().out
    assert "" not in read_json(folder / "predictions-dev.json").values()


def test_mini_world_runs(tmp_path):
    """The mini world's files, meta rows included: a run goes through, every part has a score."""
    root = tmp_path / "tasks"
    data.make_tasks(data.make_world(0), 0, root)
    text = "".join(path.read_text() for path in root.glob("SQuAD?/train-*.json"))
    words = sorted(set(re.findall(r"\w+|[^\w\s]", text.lower())))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *words]) + "\n")
    save_model(tmp_path / "run/model", data.load_tokenizer(tmp_path / "vocab.txt"))
    finetune.main(["--model", str(tmp_path / "run"), "--data", str(root), "--task", "SQuAD1",
                   "SQuAD2", "--size", "mini", "--device", "cpu", "--epochs", "2", "--log-every",
                   "1", "--out", str(tmp_path), "--train-limit", "512"])
    for task in ("SQuAD1", "SQuAD2"):
        folder = tmp_path / "finetune" / task / "seed-0"
        metrics = read_json(folder / "metrics.json")
        losses = losses_of(folder)
        assert losses[-1] < losses[0]
        assert read_json(folder / "args.json")["arguments"]["stride"] == 16
        parts = metrics["parts"]["test"]
        assert set(parts) == {*finetune.PARTS, "grounded_by_property"}
        cells = [parts[part] for part in finetune.PARTS]
        assert sum(cell["n"] for cell in cells) == metrics["test"]["n"]
        # either noun; v2.0: no answer
        assert parts["grounded"]["chance"] == parts["unfilmed"]["chance"] == 0.5
        right = sum(cell["n"] * cell["accuracy"] for cell in cells)
        assert right / metrics["test"]["n"] == pytest.approx(metrics["test"]["exact"])


def test_loss_and_gradients_equal_transformers(tasks, tiny_tokenizer, transformers):
    """Same weights, no dropout: BertForQuestionAnswering's loss and gradients on unpadded rows;
    padding is nothing."""
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tasks / "run/model").eval()
    config, bert, _ = model.load_hf(tasks / "run/model")
    head = finetune.make_head("span", 0, config)
    assert head.weight.shape == (2, config.hidden_size) and head.bias.abs().sum() == 0
    theirs.qa_outputs.load_state_dict(head.state_dict())
    bert.eval()
    examples = finetune.TASKS["SQuAD2"].read(tasks / "tasks/SQuAD2", "train")
    windows = finetune.Windows(examples, tiny_tokenizer, 24, 6, train=True)
    order = np.argsort(windows.lengths)
    chosen = np.concatenate([order[:4], order[-4:]])
    batch = windows.batch(chosen)
    targets = torch.from_numpy(windows.targets[chosen])
    assert not batch[1].all() and (targets == 0).any() and (targets > 0).any()
    scores = finetune.scores_of("span", bert, head, batch, 1)
    loss = finetune.loss_of("span", scores, targets)
    expected = 0
    for row, index in enumerate(chosen):
        tokens, mask, segments = windows.batch([index])
        out = theirs(input_ids=tokens, attention_mask=mask.long(), token_type_ids=segments,
                     start_positions=targets[row:row + 1, 0], end_positions=targets[row:row + 1, 1])
        expected = expected + out.loss
        length = tokens.shape[1]
        logits = torch.stack([out.start_logits[0], out.end_logits[0]], 1)   # [L, 2]
        torch.testing.assert_close(scores[row, :length], logits, atol=1e-5, rtol=1e-5)
        assert (scores[row, length:] == -torch.inf).all()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    words = theirs.bert.embeddings.word_embeddings
    for ours, other in ((head, theirs.qa_outputs), (bert.tokens, words)):
        torch.testing.assert_close(ours.weight.grad, other.weight.grad, atol=1e-6, rtol=1e-4)


def test_defaults_are_the_recipe():
    args = finetune.parse_args([])
    base = model.SIZES["base"]
    recipe = {"epochs": 2.0, "batch": 12, "max_length": 384, "stride": 128, "eps": 1e-8,
              "warmup": 0.0, "weight_decay": 0.0}
    for name, lr, threshold in (("SQuAD1", 3e-5, None), ("SQuAD2", 5e-5, 0.0)):
        settings = finetune.settings_for(args, name, "base", base)
        assert settings["lr"] == lr and settings.get("null_threshold") == threshold
        assert {key: settings[key] for key in recipe} == recipe
    other = finetune.settings_for(args, "RTE", "base", base)
    assert other["eps"] == 1e-6 and "stride" not in other
    args = finetune.parse_args(["--stride", "9"])
    assert finetune.settings_for(args, "SQuAD1", "base", base)["stride"] == 9
    args = finetune.parse_args(["--stride", "128"])
    with pytest.raises(model.UserError, match="length 64 leaves no room for a --stride of 128"):
        finetune.settings_for(args, "SQuAD1", "mini", model.SIZES["mini"])
