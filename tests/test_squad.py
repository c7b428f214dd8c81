"""SQuAD v1.1 and v2.0: reader, windows, answers, the official scores, fine-tuning.

    python -m pytest tests/test_squad.py
    REAL_DATA=/path/to/real/files python -m pytest tests/test_squad.py     # also real questions and a real submission
"""
import copy
import json
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import finetune
import model

ROOT = Path(__file__).resolve().parent.parent
XQUAD = {"exact": 74.87394957983193, "f1": 86.32474793700983}   # what evaluate-v2.0.py prints for the two real files


def squad_file(*paragraphs, version="v2.0"):
    """A data set of (context, [(id, question, answer or None)]); an answer is looked up in the context."""
    rows = [{"context": context, "qas": [
        {"id": name, "question": question,
         "answers": [{"text": answer, "answer_start": context.index(answer)}] if answer else [],
         **({"is_impossible": answer is None} if version == "v2.0" else {})} for name, question, answer in questions]}
        for context, questions in paragraphs]
    return {"version": version, "data": [{"title": "t", "paragraphs": rows}]}


def read(folder, content, version="v2.0", split="dev"):
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / f"{split}-{version}.json").write_bytes(text)
    return finetune.read_squad(folder, split, version)


@pytest.fixture(scope="session")
def bert_tokenizer(real_data):
    return data.load_tokenizer(real_data / "vocab/bert-base-uncased-vocab.txt")


@pytest.fixture(scope="session")
def xquad(real_data, tmp_path_factory):
    """Examples of xquad.en.json."""
    return read(tmp_path_factory.mktemp("xquad"), (real_data / "squad/xquad.en.json").read_bytes(), "v1.1")


def ids_of(windows, row):
    return windows.ids[windows.starts[row]:windows.starts[row + 1]].tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Reader

GOOD = squad_file(("The cat sat.", [("q1", "Who sat?", "cat"), ("q2", "Who ran?", None)]))


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_reader(tmp_path, bom):
    one, two = read(tmp_path, bom + json.dumps(GOOD).encode())
    assert one.texts == [("Who sat?", "The cat sat.")]
    assert (one.label, one.row, one.answers) == ("cat", "q1", (("cat", 4),))
    assert (two.label, two.answers) == ("", ()) and two.where.endswith("dev-v2.0.json, question q2")
    assert finetune.targets_of("SQuAD2", [one, two]).tolist() == [["cat"], []]
    with pytest.raises(FileNotFoundError):
        finetune.read_squad(tmp_path, "train", "v2.0")


def changed(change):
    content = copy.deepcopy(GOOD)
    change(content, content["data"][0]["paragraphs"][0], content["data"][0]["paragraphs"][0]["qas"][0])
    return content


@pytest.mark.parametrize("content, message", [
    (json.dumps(GOOD, indent=1).encode()[:300], r"line \d+: not valid JSON"),
    (json.dumps(GOOD).encode("utf-16"), "not UTF-8"),
    (b'{"data": "\xe9"}', r"not UTF-8 \(byte 10\)"),
    (b"[]", "dev-v2.0.json: no data"),
    (changed(lambda f, p, q: f.pop("data")), "dev-v2.0.json: no data"),
    (changed(lambda f, p, q: f.update(data={})), "data is dict, expected list"),
    (changed(lambda f, p, q: f.update(data=[])), "dev-v2.0.json has no questions"),
    (changed(lambda f, p, q: f["data"].append({})), "article 2: no paragraphs"),
    (changed(lambda f, p, q: p.pop("context")), "article 1, paragraph 1: no context"),
    (changed(lambda f, p, q: p.update(context=None)), "paragraph 1: context is NoneType, expected str"),
    (changed(lambda f, p, q: q.pop("id")), "paragraph 1, question 1: no id"),
    (changed(lambda f, p, q: q.update(id=7)), "question 1: id is int, expected str"),
    (changed(lambda f, p, q: q.pop("question")), "question q1: no question"),
    (changed(lambda f, p, q: q.update(question="the \ud83d cat")), "question q1: question holds half of a surrogate pair"),
    (changed(lambda f, p, q: q.pop("answers")), "question q1: no answers"),
    (changed(lambda f, p, q: q.pop("is_impossible")), "question q1: no is_impossible"),
    (changed(lambda f, p, q: q.update(is_impossible=True)), "question q1: 1 answers, is_impossible True"),
    (changed(lambda f, p, q: q.update(answers=[])), "question q1: 0 answers, is_impossible False"),
    (changed(lambda f, p, q: q["answers"].append("cat")), "question q1: no text"),
    (changed(lambda f, p, q: q["answers"][0].update(answer_start="4")), "q1: answer_start is str, expected int"),
    (changed(lambda f, p, q: q["answers"][0].update(answer_start=True)), "q1: answer_start is bool, expected int"),
    (changed(lambda f, p, q: q["answers"][0].update(answer_start=5)), "q1: answer_start 5 does not point at 'cat'"),
    (changed(lambda f, p, q: q["answers"][0].update(answer_start=-8)), "q1: answer_start -8 does not point"),
    (changed(lambda f, p, q: q["answers"][0].update(answer_start=99)), "q1: answer_start 99 does not point"),
    (changed(lambda f, p, q: q["answers"][0].update(text="")), "q1: answer_start 4 does not point at ''"),
])
def test_bad_files_are_named_with_line_or_question(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, content)
    assert str(tmp_path / "dev-v2.0.json") in str(error.value)


def test_v1_questions_need_an_answer_and_repeated_ids_are_said(tmp_path, capsys):
    with pytest.raises(ValueError, match="question q2: 0 answers$"):
        read(tmp_path, GOOD, "v1.1")
    read(tmp_path, squad_file(("a b", [("q", "?", "a"), ("q", "?", "b")])))
    assert "repeats question ids" in capsys.readouterr().out


@pytest.mark.parametrize("name, version, count, unanswered", [
    ("xquad.en", "v1.1", 1190, 0), ("tiny-v1.1", "v1.1", 5, 0), ("tiny-v2.0", "v2.0", 6, 1),
    ("small-dev-v2.0", "v2.0", 14, 6)])
def test_real_files(real_data, tmp_path, capsys, name, version, count, unanswered):
    shutil.copy(real_data / f"squad/{name}.json", tmp_path / f"dev-{version}.json")
    examples, targets, meta = finetune.read_split(f"SQuAD{version[1]}", tmp_path, "dev")
    assert len(examples) == len(targets) == count and meta is None
    assert sum(not golds for golds in targets) == unanswered
    published = {"v1.1": "10,570", "v2.0": "11,873"}[version]
    assert f"has {count:,} rows, the published file {published}" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Windows


def fast_windows(oracle, example, max_length, stride):
    """transformers' fast tokenizer on one question -> [(ids, segments, offsets of the context's pieces)]. Its `stride`
    is the overlap of two windows."""
    question = oracle(example.texts[0][0], add_special_tokens=False)["input_ids"]
    assert len(question) <= 64
    out = oracle(*example.texts[0], truncation="only_second", max_length=max_length,
                 stride=max_length - len(question) - 3 - stride, return_overflowing_tokens=True,
                 return_offsets_mapping=True)
    return [(ids, segments, [offset if out.sequence_ids(i)[k] == 1 else None for k, offset in enumerate(offsets)])
            for i, (ids, segments, offsets) in
            enumerate(zip(out["input_ids"], out["token_type_ids"], out["offset_mapping"]))]


def fast_target(offsets, text, start):
    """The pieces that cover an answer's characters, as transformers' run_qa marks them; (0, 0) without all of it."""
    own = [k for k, offset in enumerate(offsets) if offset is not None]
    if not own or offsets[own[0]][0] > start or offsets[own[-1]][1] < start + len(text):
        return 0, 0
    return (max(k for k in own if offsets[k][0] <= start), min(k for k in own if offsets[k][1] >= start + len(text)))


@pytest.mark.parametrize("max_length, stride", [(384, 128), (128, 32)])
def test_windows_equal_transformers(real_data, xquad, bert_tokenizer, transformers, tmp_path, max_length, stride):
    """spec: the stride is the step. Ids and segments equal everywhere; targets wherever the answer is whole words."""
    shutil.copy(real_data / "vocab/bert-base-uncased-vocab.txt", tmp_path / "vocab.txt")
    oracle = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    windows = finetune.Windows(xquad, bert_tokenizer, max_length, stride, train=True)
    assert windows.question.tolist() == sorted(windows.question) and len(set(windows.question.tolist())) == 1190
    row, differ, several = 0, [], 0
    for index, example in enumerate(xquad):
        expected = fast_windows(oracle, example, max_length, stride)
        several += len(expected) > 1
        for ids, segments, offsets in expected:
            assert windows.question[row] == index and ids_of(windows, row) == ids
            assert windows.batch([row])[2].tolist() == [segments]
            target = fast_target(offsets, *example.answers[0])
            if (ours := tuple(windows.targets[row].tolist())) != target:
                differ.append((example, ours, target))
            row += 1
    assert row == len(windows) and several >= 20
    print(f"{len(windows)} windows, {several} questions in several; {len(differ)} targets differ:")
    for example, ours, theirs in differ:
        (text, start), context = example.answers[0], example.texts[0][1]
        whole = all(not 0 <= place < len(context) or context[place] in " \t\r\n\u202f"
                    for place in (start - 1, start + len(text)))
        print(f"  {example.row} {text!r} in {context[max(start - 12, 0):start + len(text) + 12]!r}: {ours}, {theirs}")
        assert not whole, (example, ours, theirs)
    assert len(differ) <= 0.02 * len(windows)


def test_window_target_is_the_answers_own_pieces(bert_tokenizer, tmp_path):
    """The span is tightened to the pieces of the answer where there are such; else it is the whole words."""
    examples = read(tmp_path, squad_file(
        ("born (1895) in x", [("a", "when ?", "1895")]),                        # inside brackets: tightened
        ("the skyscrapers rose", [("b", "what ?", "scrapers")]),                # inside a word of one piece: the word
        ("He\u00a0ran far", [("c", "who ?", "ran")]), ("  lead ing", [("d", "what ?", "lead")])))
    windows = finetune.Windows(examples, bert_tokenizer, 64, 16, train=True)
    for row, said in enumerate(["1895", "skyscrapers", "ran", "lead"]):
        start, end = windows.targets[row]
        assert bert_tokenizer.decode(ids_of(windows, row)[start:end + 1]) == said


def test_windows_step_cover_and_mark(tiny_tokenizer, tmp_path, capsys):
    """Step, coverage and targets against a loop; a long question is cut; one whose answer is in no word is left out."""
    words = ["cat", "dog", "mat", "red", "big", "sat", "ran", "see"]
    context = " ".join(words[i % 8] for i in range(50)) + " today"
    examples = read(tmp_path, squad_file((context, [
        ("a", "the cat", "today"), ("b", "the", "cat dog mat"), ("c", "a", None),
        ("d", " ".join(["cat"] * 90), "today")])))
    # a no-break space does not end a word of the context, but one of the answer; so the authors' script has it, too
    broken, = read(tmp_path, squad_file(("the red\u00a0cat sat", [("broken", "?", "red\u00a0cat")])))
    windows = finetune.Windows([*examples, broken], tiny_tokenizer, 24, 4, train=True)
    said = capsys.readouterr().out
    assert "1 questions left out, " in said and "broken" in said and 4 not in windows.question
    pieces = tiny_tokenizer.encode(context, add_special_tokens=False).ids
    for index, (asked, answer) in enumerate([(2, (50, 50)), (1, (0, 2)), (1, None), (17, (50, 50))]):
        rows = np.flatnonzero(windows.question == index)
        room = 24 - 3 - asked
        firsts = [0]
        while firsts[-1] + room < len(pieces):
            firsts.append(firsts[-1] + 4)
        assert windows.first[rows].tolist() == firsts
        for row, first in zip(rows, firsts):
            ids = ids_of(windows, row)
            assert ids[asked + 2:-1] == pieces[first:first + room] and len(ids) == windows.lengths[row] <= 24
            inside = answer is not None and first <= answer[0] and answer[1] < min(first + room, len(pieces))
            assert tuple(windows.targets[row]) == (tuple(a - first + asked + 2 for a in answer) if inside else (0, 0))
    assert (windows.targets[windows.question == 0] > 0).any()   # some window does hold the last word
    with pytest.raises(ValueError, match="no question is left"):
        finetune.Windows([broken], tiny_tokenizer, 24, 4, train=True)
    assert len(finetune.Windows([broken, *examples], tiny_tokenizer, 24, 4, train=False)) > len(windows)


def test_questions_are_cut_at_64_pieces(tiny_tokenizer, tmp_path):
    examples = read(tmp_path, squad_file(("the cat sat", [("a", " ".join(["dog"] * 70), "cat")])))
    windows = finetune.Windows(examples, tiny_tokenizer, 384, 128, train=True)
    assert windows.seconds.tolist() == [66] and windows.lengths.tolist() == [70]
    assert windows.targets.tolist() == [[67, 67]]


def test_contexts_are_cut_at_five_characters_only():
    assert finetune.WORD.findall(" a\tb\rc\nd\u202fe\u00a0f\u2003g\u3000h\x0bi\u2028j ") == \
        ["a", "b", "c", "d", "e\u00a0f\u2003g\u3000h\x0bi\u2028j"]


def test_max_context_equals_a_loop():
    generator = np.random.default_rng(0)
    for _ in range(200):
        room, step, pieces = generator.integers(1, 30), int(generator.integers(1, 12)), int(generator.integers(1, 80))
        step = min(step, int(room))
        first = np.arange(0, max(1, pieces - room + step), step)
        length = np.minimum(room, pieces - first)
        ours = finetune.max_context(first, length)
        for piece in range(pieces):
            best, chosen = None, None
            for index, (begin, size) in enumerate(zip(first, length)):
                if begin <= piece < begin + size:
                    value = min(piece - begin, begin + size - 1 - piece) + 0.01 * size
                    if best is None or value > best:
                        best, chosen = value, index
            assert ours[:, piece].tolist() == [index == chosen for index in range(len(first))]


# ---------------------------------------------------------------------------------------------------------------------
# Answers


@pytest.mark.parametrize("predicted, original, expected", [
    ("steve smith", "Steve Smith's", "Steve Smith"), ("1895", "(1895),", "1895"), ("u . s .", "the U.S.", "U.S."),
    ("beyonce", "Beyonc\u00e9", "Beyonc\u00e9"),                 # an accent is one character there and here
    ("beyonce", "Beyonce\u0301's", "Beyonce\u0301's"),           # but two here: all of it
    ("##ing", "walking", "walking"), ("[UNK]", "\u2603 snow", "\u2603 snow"), ("", "a b", "a b"),
    ("x", "a\u200bx", "a\u200bx"), ("\u5317", "\u5317\u4eac", "\u5317"), ("b a", "a b a b", "b a")])
def test_original_text(tiny_tokenizer, predicted, original, expected):
    assert finetune.original_text(predicted, original, tiny_tokenizer) == expected


def slow_answer(windows, scores, index, null_threshold, tokenizer):
    """One question's answer, texts and odds, in loops from the rule."""
    example = windows.examples[index]
    context = example.texts[0][1]
    words = [word for word in re.split("[ \t\r\n\u202f]", context) if word]
    document, word_of = windows.documents[context]
    rows = [row for row in range(len(windows)) if windows.question[row] == index]
    candidates, nulls = [], []
    for row in rows:
        length, head = int(windows.lengths[row]), int(windows.seconds[row])
        own = [[float(value) for value in scores[row, :length, side]] for side in (0, 1)]
        nulls.append((own[0][0], own[1][0]))
        tops = [sorted(range(length), key=lambda k: (-own[side][k], k))[:20] for side in (0, 1)]
        for start in tops[0]:
            for end in tops[1]:
                if not (head <= start <= end < length - 1 and end - start + 1 <= 30):
                    continue
                piece, best = start - head + windows.first[row], None
                for other in rows:
                    left = piece - windows.first[other]
                    right = windows.lengths[other] - windows.seconds[other] - 2 - left
                    if left >= 0 and right >= 0:
                        value = min(left, right) + 0.01 * (left + right + 1)
                        best = max(best, (value, -other)) if best else (value, -other)
                if best[1] == -row:
                    candidates.append((own[0][start] + own[1][end], piece, end - head + windows.first[row]))
    candidates.sort(key=lambda candidate: -candidate[0])
    null = min(nulls, key=sum)
    texts = {}
    for value, low, high in candidates:
        said = ""
        for piece in document[low:high + 1].tolist():
            token = tokenizer.id_to_token(piece)
            said += token[2:] if said and token.startswith("##") else " " * bool(said) + token
        original = " ".join(words[word_of[low]:word_of[high] + 1])
        texts.setdefault(finetune.original_text(said, original, tokenizer), value)
    if null_threshold is not None:
        texts[""] = sum(null)
    kept = sorted(texts, key=lambda text: (-texts[text], text == ""))[:20]
    best = next((text for text in kept if text), "")
    odds = sum(null) - (texts[best] if best else 0.0)
    return ("" if null_threshold is not None and odds > null_threshold else best), kept, odds


@pytest.mark.parametrize("null_threshold", [None, 0.0, 2.0])
def test_answers_equal_the_rule_in_loops(tiny_tokenizer, tmp_path, null_threshold):
    """Random scores, several windows a question: the same answers, the same 20 texts in the same order, equal odds."""
    generator = np.random.default_rng(0)
    words = ["Cat", "(dog)", "mats", "red-big", "sat,", "ran", "the", "see\u00e9"]
    paragraphs = [(" ".join(generator.choice(words, int(generator.integers(1, 60)))),
                   [(f"q{i}", "the cat sat ?", None)]) for i in range(40)]
    windows = finetune.Windows(read(tmp_path, squad_file(*paragraphs)), tiny_tokenizer, 48, 12, train=False)
    assert len(windows) > 80
    scores = (3 * generator.standard_normal((len(windows), 48, 2))).astype(np.float32)
    scores[:, 0] += 5
    answers, lists, odds = finetune.span_answers(windows, scores, null_threshold)
    assert (odds is None) == (null_threshold is None)
    for index in range(40):
        answer, texts, value = slow_answer(windows, scores, index, null_threshold, tiny_tokenizer)
        ours = [entry["text"] for entry in lists[index]]
        assert answers[index] == answer and ours[:20] == texts
        assert sum(entry["probability"] for entry in lists[index]) == pytest.approx(1)
        totals = np.array([entry["start_logit"] + entry["end_logit"] for entry in lists[index]])
        np.testing.assert_allclose([entry["probability"] for entry in lists[index]],
                                   np.exp(totals) / np.exp(totals).sum())
        if odds is not None:
            assert odds[index] == pytest.approx(value, abs=1e-9) and "" in ours
    assert null_threshold is None or 0 < sum(answer == "" for answer in answers) < 40


def test_answers_equal_transformers_4(xquad, bert_tokenizer, transformers, real_data, tmp_path):
    """Against the code the rule comes from, where transformers still has it."""
    metrics = pytest.importorskip("transformers.data.metrics.squad_metrics", reason="transformers 5 dropped it")
    processors = pytest.importorskip("transformers.data.processors.squad")
    shutil.copy(real_data / "vocab/bert-base-uncased-vocab.txt", tmp_path / "vocab.txt")
    processors.tokenizer = slow = transformers.BertTokenizer.from_pretrained(tmp_path)
    examples = processors.SquadV1Processor()._create_examples(
        json.loads((real_data / "squad/xquad.en.json").read_text())["data"][:8], "dev")
    features = []
    for index, example in enumerate(examples):
        for feature in processors.squad_convert_example_to_features(example, 96, 24, 64, "do_not_pad", False):
            feature.example_index, feature.unique_id = index, len(features)
            features.append(feature)
    windows = finetune.Windows(xquad[:len(examples)], bert_tokenizer, 96, 24, train=False)
    assert [ids_of(windows, row) for row in range(len(windows))] == [feature.input_ids for feature in features]
    scores = (3 * np.random.default_rng(0).standard_normal((len(windows), 96, 2))).astype(np.float32)
    results = [processors.SquadResult(i, *scores[i, :windows.lengths[i]].T.tolist()) for i in range(len(windows))]
    files = [str(tmp_path / name) for name in ("predictions", "nbest", "odds")]
    expected = metrics.compute_predictions_logits(examples, features, results, 20, 30, True, *files, False, True, 0.0,
                                                  slow)
    answers, lists, odds = finetune.span_answers(windows, scores, 0.0)
    assert answers == list(expected.values())
    assert odds == pytest.approx(list(json.loads(Path(files[2]).read_text()).values()))
    for ours, theirs in zip(lists, json.loads(Path(files[1]).read_text()).values()):
        assert [entry["text"] for entry in ours] == [entry["text"] for entry in theirs]


def test_questions_without_a_valid_span(tiny_tokenizer, tmp_path):
    """A context of white space has no piece: the answer is the empty text, in either version."""
    examples = read(tmp_path, squad_file((" \n", [("a", "the cat ?", None)]), ("the cat", [("b", "the cat ?", "cat")])))
    windows = finetune.Windows(examples, tiny_tokenizer, 24, 4, train=False)
    scores = np.zeros((len(windows), 24, 2), dtype=np.float32)
    for threshold in (None, 0.0):
        answers, lists, _ = finetune.span_answers(windows, scores, threshold)
        assert answers[0] == "" and lists[0][0]["text"] == "" and answers[1] == "the"


# ---------------------------------------------------------------------------------------------------------------------
# The official scores


def official_words(text):
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return [word for word in re.sub(r"\b(a|an|the)\b", " ", text).split()]


def official(dataset, predictions, odds=None):
    """evaluate-v2.0.py's rule, slowly: every threshold is tried by counting all questions again."""
    questions = {q["id"]: q for article in dataset["data"] for p in article["paragraphs"] for q in p["qas"]}
    raw = {}
    for name, question in questions.items():
        golds = [a["text"] for a in question["answers"] if official_words(a["text"])] or [""]
        if name not in predictions:
            continue
        said, pairs = official_words(predictions[name]), []
        for gold in map(official_words, golds):
            rest, common = list(gold), 0
            for word in said:
                if word in rest:
                    rest.remove(word)
                    common += 1
            f1 = float(gold == said)
            if gold and said and common:
                precision, recall = common / len(said), common / len(gold)
                f1 = 2 * precision * recall / (precision + recall)
            pairs.append((float(gold == said), f1))
        raw[name] = tuple(map(max, zip(*pairs)))
    has = {name: bool(question["answers"]) for name, question in questions.items()}
    out = {}
    for prefix, chosen in (("", list(raw)), ("HasAns_", [n for n in raw if has[n]]),
                           ("NoAns_", [n for n in raw if not has[n]])):
        for k, key in enumerate(("exact", "f1")):
            if chosen:
                counted = [float(not has[n]) if odds and odds[n] > 1 else raw[n][k] for n in chosen]
                out[prefix + key], out[prefix + "total"] = 100 * np.mean(counted), len(chosen)
    for k, key in enumerate(("exact", "f1")) if odds else ():
        order = sorted((n for n in odds if n in raw), key=lambda n: odds[n])
        totals = []
        for taken in range(len(order) + 1):   # the first `taken` are answered, the rest are not
            answered = order[:taken]
            totals.append(sum(raw[n][k] for n in answered if has[n]) + sum(not value for value in has.values()) -
                          sum(1 for n in answered if not has[n] and predictions[n]))
        best = int(np.argmax(np.round(totals, 9)))
        out[f"best_{key}"] = 100 * totals[best] / len(raw)
        out[f"best_{key}_thresh"] = odds[order[best - 1]] if best else 0.0
    return out


def test_real_submission(real_data):
    dataset, predictions = [json.loads((real_data / f"squad/{name}.json").read_text())
                            for name in ("xquad.en", "bert-ensemble-predictions-v1.1")]
    scores = evaluate.squad_scores(dataset, predictions)
    assert scores == {**XQUAD, "total": 1190, **{f"HasAns_{key}": value for key, value in XQUAD.items()},
                      "HasAns_total": 1190}
    assert scores == pytest.approx(official(dataset, predictions), abs=1e-9)
    assert scores == evaluate.squad_scores(dataset["data"], predictions)
    examples = [q for article in dataset["data"] for p in article["paragraphs"] for q in p["qas"]]
    golds = [[answer["text"] for answer in question["answers"]] for question in examples]
    row = evaluate.score("SQuAD1", golds, [predictions[question["id"]] for question in examples])
    assert row == {"f1": pytest.approx(XQUAD["f1"] / 100), "exact": pytest.approx(XQUAD["exact"] / 100), "n": 1190,
                   "chance": 0.0}
    assert evaluate.single_number("SQuAD1", row) == row["f1"]


@pytest.mark.parametrize("name", ["tiny-v2.0", "small-dev-v2.0", "drawn"])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_rule(name, seed, request):
    """Answers right, half right, wrong or empty, odds with ties, thresholds included."""
    generator = np.random.default_rng(seed)
    if name == "drawn":
        dataset = squad_file(*[(f"A red cat, the dog {i} ran", [(f"q{i}", "?", [None, "A red cat", "dog"][i % 3])])
                               for i in range(60)])
    else:
        dataset = json.loads((request.getfixturevalue("real_data") / f"squad/{name}.json").read_text())
    predictions, odds = {}, {}
    for paragraph in (p for article in dataset["data"] for p in article["paragraphs"]):
        for question in paragraph["qas"]:
            golds = [answer["text"] for answer in question["answers"]] or ["nothing of it"]
            gold = golds[generator.integers(len(golds))]
            said = [gold, gold.upper() + " !", " ".join(gold.split()[:2]) + " too", "", "something"]
            predictions[question["id"]] = said[generator.integers(5)]
            odds[question["id"]] = float(generator.integers(-6, 7)) / 2
    for given in (None, odds):
        ours, theirs = evaluate.squad_scores(dataset, predictions, given), official(dataset, predictions, given)
        assert ours.keys() == theirs.keys() and ours == pytest.approx(theirs, abs=1e-9)
    empty = evaluate.squad_scores(dataset, dict.fromkeys(predictions, ""), odds)
    assert empty == pytest.approx(official(dataset, dict.fromkeys(predictions, ""), odds), abs=1e-9)
    plain = evaluate.squad_scores(dataset, dict.fromkeys(predictions, ""))
    # tiny-v2.0's one unanswerable question has the id of a later answerable one, which therefore counts: no NoAns_ keys
    unanswered = {"tiny-v2.0": 0, "small-dev-v2.0": 6, "drawn": 20}[name]
    assert plain.get("NoAns_total", 0) == unanswered and plain.get("NoAns_exact", 100) == 100
    assert plain["HasAns_f1"] == 0 and plain["f1"] == pytest.approx(100 * unanswered / plain["total"])


def test_keys_and_order():
    scores = evaluate.squad_scores(GOOD, {"q1": "the cat", "q2": ""}, {"q1": 0.1, "q2": 0.9})
    plain = [prefix + key for prefix in ("", "HasAns_", "NoAns_") for key in ("exact", "f1", "total")]
    assert list(scores) == plain + ["best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"]
    assert scores["exact"] == scores["best_f1"] == 100 and scores["best_f1_thresh"] == 0.1


def test_a_missing_prediction_is_named_and_left_out(capsys):
    scores = evaluate.squad_scores(GOOD, {"q1": "dog"}, {"q1": 0.5})
    assert "Missing prediction for q2" in capsys.readouterr().err
    assert scores["total"] == scores["HasAns_total"] == 1 and scores["exact"] == 0 and "NoAns_total" not in scores
    assert scores["best_exact"] == 100   # one unanswerable question over one prediction: as in the official script
    with pytest.raises(ValueError, match="no question of the data set has a prediction"):
        evaluate.squad_scores(GOOD, {"other": "cat"})
    with pytest.raises(ValueError, match="1 predictions have no probability of no answer, the first is q2"):
        evaluate.squad_scores(GOOD, {"q1": "cat", "q2": ""}, {"q1": 0.5})


def test_golds_that_are_only_articles_do_not_count():
    assert evaluate.answer_scores(["The", "cat"], "a") == (0, 0)
    assert evaluate.answer_scores(["the", "!"], "an") == (1, 1) and evaluate.answer_scores([], "x") == (0, 0)
    assert evaluate.answer_scores(["the red cat", "cat"], "A red, red cat") == (0, pytest.approx(0.8))


def test_shell(tmp_path, capsys):
    def put(name, value):
        data.write_json(tmp_path / name, value)
        return str(tmp_path / name)
    files = put("d.json", GOOD), put("p.json", {"q1": "cat", "q2": ""})
    evaluate.main(["squad", *files, "--na-prob", put("o.json", {"q1": -1, "q2": 2})])
    printed = json.loads(capsys.readouterr().out)
    assert printed == evaluate.squad_scores(GOOD, {"q1": "cat", "q2": ""}, {"q1": -1, "q2": 2}) and printed["f1"] == 100
    evaluate.main(["squad", *files])
    assert set(json.loads(capsys.readouterr().out)) == set(printed) - {k for k in printed if k.startswith("best")}
    for first, second, message in (
            (files[1], files[1], "not a SQuAD file: it has no data"),
            (files[0], put("x.json", {"q1": 3}), "does not hold one text a question id"),
            (put("y.json", {"data": [{"paragraphs": [{}]}]}), files[1], "not a SQuAD file: KeyError"),
            (files[0], str(tmp_path / "none.json"), "none.json is missing")):
        with pytest.raises(SystemExit, match=message):
            evaluate.main(["squad", first, second])


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning


def save_model(folder, tokenizer, positions=64, width=64):
    torch.manual_seed(0)
    config = model.BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=width, num_hidden_layers=2,
                              num_attention_heads=2, intermediate_size=2 * width, max_position_embeddings=positions,
                              initializer_range=0.1)
    bert = model.Bert(config)
    model.save_hf(folder, config, bert, model.MLMHead(config, bert.tokens), tokenizer)


NOUNS = ["cat", "dog", "mat", "red", "big", "sat", "ran", "see"]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory, tiny_tokenizer):
    """A folder with a tiny random model, run/, and tasks/SQuAD1 and SQuAD2: the answer is the word after "the"; v2.0
    has contexts without one. Some contexts need several windows of 24."""
    root, generator = tmp_path_factory.mktemp("squad"), np.random.default_rng(0)
    save_model(root / "run/model", tiny_tokenizer)
    for version, folder in (("v1.1", "SQuAD1"), ("v2.0", "SQuAD2")):
        (root / "tasks" / folder).mkdir(parents=True)
        for split, count in (("train", 240), ("dev", 60)):
            rows = []
            for i in range(count):
                words = generator.choice(NOUNS, int(generator.integers(3, 30))).tolist()
                place = int(generator.integers(len(words)))
                context = words[:place] + (["the"] if version == "v1.1" or i % 3 else []) + words[place:]
                answers = [{"text": words[place], "answer_start": len(" ".join([*words[:place], "the", ""]))}]
                rows.append({"context": " ".join(context), "qas": [
                    {"id": f"{split}-{i}", "question": "we see ?", "answers": answers if "the" in context else []} |
                    ({"is_impossible": "the" not in context} if version == "v2.0" else {})]})
            data.write_json(root / "tasks" / folder / f"{split}-{version}.json", {"data": [{"paragraphs": rows}]})
    return root


def start(root, *flags, out):
    finetune.main(["--model", str(root / "run"), "--data", str(root / "tasks"), "--device", "cpu", "--batch", "16",
                   "--lr", "2e-3", "--max-length", "24", "--stride", "6", "--precision", "fp32", "--out", str(out),
                   *map(str, flags)])


def test_runs_learn_and_write_every_file(tasks, tmp_path, capsys):
    start(tasks, "--task", "SQuAD1", "SQuAD2", "--epochs", 12, "--log-every", 10, out=tmp_path)
    said = capsys.readouterr().out
    for task, version in (("SQuAD1", "v1.1"), ("SQuAD2", "v2.0")):
        folder = tmp_path / "finetune" / task / "seed-0"
        expected = ["args.json", "log.jsonl", "metrics.json", "nbest-dev.json", "predictions-dev.json",
                    "scores-dev.json", *["null_odds-dev.json"] * (task == "SQuAD2")]
        assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
        metrics, scores, predictions, lists = [json.loads((folder / f"{name}.json").read_text()) for name in
                                               ("metrics", "scores-dev", "predictions-dev", "nbest-dev")]
        losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert losses[-1] < 0.3 * losses[0] and metrics["dev"]["f1"] > 0.9 and metrics["train_rows"] > 240
        assert metrics["dev"]["n"] == scores["total"] == len(predictions) == len(lists) == 60
        for key in ("f1", "exact"):
            assert 100 * metrics["dev"][key] == pytest.approx(scores[key])
        odds = json.loads((folder / "null_odds-dev.json").read_text()) if task == "SQuAD2" else None
        dataset = json.loads((tasks / "tasks" / task / f"dev-{version}.json").read_text())
        again = evaluate.squad_scores(dataset, predictions, odds) | evaluate.squad_scores(dataset, predictions)
        assert scores == again and ("best_f1" in scores) == (task == "SQuAD2")
        assert metrics["dev"]["chance"] == (pytest.approx(1 / 3) if task == "SQuAD2" else 0)
        if odds:
            assert all((odds[name] > 0) == (predictions[name] == "") for name in odds) and "" in predictions.values()
        assert f"{task} seed 0: dev f1 0." in said or f"{task} seed 0: dev f1 1." in said
    evaluate.main(["table", str(tmp_path), "--width", "200"])
    table = capsys.readouterr().out
    assert re.search("SQuAD1 dev +SQuAD2 dev", table) and f"{100 * metrics['dev']['f1']:.1f} (n=1)" in table
    start(tasks, "--task", "SQuAD1", "SQuAD2", "--epochs", 12, out=tmp_path)
    assert capsys.readouterr().out.count("complete, nothing to do") == 2
    start(tasks, "--task", "SQuAD2", "--epochs", 1, "--null-threshold", 1000, out=tmp_path)
    assert "epochs, null_threshold changed" in capsys.readouterr().out
    assert "" not in json.loads((folder / "predictions-dev.json").read_text()).values()


@pytest.mark.parametrize("name, task, version", [("tiny-v1.1", "SQuAD1", "v1.1"), ("tiny-v2.0", "SQuAD2", "v2.0")])
def test_a_tiny_set_is_learnt_by_heart(real_data, bert_tokenizer, tmp_path, capsys, name, task, version):
    """Trained and scored on the same five real questions, contexts of several windows: exact reaches 100."""
    content = json.loads((real_data / f"squad/{name}.json").read_text())
    seen = set()
    for paragraph in (p for article in content["data"] for p in article["paragraphs"]):   # the fixture repeats an id
        paragraph["qas"] = [q for q in paragraph["qas"] if not (q["id"] in seen or seen.add(q["id"]))]
    save_model(tmp_path / "run/model", bert_tokenizer, 128, 32)
    for split in ("train", "dev"):
        read(tmp_path / "squad", content, version, split)
    finetune.main(["--model", str(tmp_path / "run"), "--data", str(tmp_path), "--task", task, "--device", "cpu",
                   "--lr", "3e-3", "--max-length", "128", "--stride", "64", "--batch", "8", "--epochs", "60",
                   "--log-every", "10"])
    folder = tmp_path / "run/finetune" / task / "seed-0"
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["dev"]["exact"] == metrics["dev"]["f1"] == 1 and losses[-1] < 0.1 * losses[0]
    assert metrics["train_rows"] > len(seen)


def test_mini_world_runs(tmp_path, tiny_vocab):
    """The mini world's files, meta rows included: a run goes through, the loss falls, every part has a score."""
    world = data.make_world(0)
    data.make_tasks(world, 0, tmp_path / "tasks")
    texts = set()
    for path in (tmp_path / "tasks").glob("SQuAD?/*.json"):
        texts |= {paragraph["context"] for paragraph in json.loads(path.read_text())["data"][0]["paragraphs"]}
        texts |= {q["question"] for p in json.loads(path.read_text())["data"][0]["paragraphs"] for q in p["qas"]}
    (tmp_path / "text.txt").write_text("\n".join(sorted(texts)) + "\n")
    data.train_tokenizer([tmp_path / "text.txt"], 2000, tmp_path / "vocab.txt")
    save_model(tmp_path / "run/model", data.load_tokenizer(tmp_path / "vocab.txt"))
    finetune.main(["--model", str(tmp_path / "run"), "--data", str(tmp_path / "tasks"), "--task", "SQuAD1", "SQuAD2",
                   "--device", "cpu", "--epochs", "3", "--log-every", "1"])
    for task in ("SQuAD1", "SQuAD2"):
        folder = tmp_path / "run/finetune" / task / "seed-0"
        metrics = json.loads((folder / "metrics.json").read_text())
        losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert losses[-1] < losses[0] and json.loads((folder / "args.json").read_text())["arguments"]["stride"] == 16
        parts = metrics["parts"]["test"]
        assert set(parts) == {*evaluate.PARTS, "grounded_by_property", "grounded_by_noun"}
        assert sum(parts[part]["n"] for part in evaluate.PARTS) == metrics["test"]["n"]
        assert parts["grounded"]["chance"] == parts["unfilmed"]["chance"] == 0.5   # either noun; v2.0: no answer
        total = sum(parts[part]["n"] * parts[part]["accuracy"] for part in evaluate.PARTS)
        assert total / metrics["test"]["n"] == pytest.approx(metrics["test"]["exact"])


def test_answer_places():
    def example(context, answer):
        return finetune.Example([("?", context)], answer, "q", "", ((answer, context.index(answer)),) if answer else ())
    examples = [example("you lift the jug and the pan .", "jug"), example("you lift the jug and the pan .", "pan"),
                example("it is here", ""), example("it is here", "it")]
    targets = finetune.targets_of("SQuAD2", examples)
    labels, given = finetune.answer_places(examples, targets, ["the jug", "jug", "", "is"])
    assert labels.tolist() == [3, 6, -1, 0] and given.tolist() == [3, -2, -1, -2]


def test_loss_and_gradients_equal_transformers(tasks, tiny_tokenizer, transformers):
    """Same weights, no dropout: BertForQuestionAnswering's loss and gradients on unpadded rows; padding is nothing."""
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tasks / "run/model").eval()
    config, bert, _ = model.load_hf(tasks / "run/model")
    head = finetune.span_head(config)
    assert head.weight.shape == (2, config.hidden_size) and head.bias.abs().sum() == 0
    theirs.qa_outputs.load_state_dict(head.state_dict())
    bert.eval()
    examples = finetune.read_squad(tasks / "tasks/SQuAD2", "train", "v2.0")
    windows = finetune.Windows(examples, tiny_tokenizer, 24, 6, train=True)
    chosen = np.concatenate([np.argsort(windows.lengths)[:4], np.argsort(windows.lengths)[-4:]])
    batch, targets = windows.batch(chosen), torch.from_numpy(windows.targets[chosen])
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
        torch.testing.assert_close(scores[row, :length, 0], out.start_logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores[row, :length, 1], out.end_logits[0], atol=1e-5, rtol=1e-5)
        assert (scores[row, length:] == -torch.inf).all()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward(), expected.backward()
    for ours, other in ((head.weight, theirs.qa_outputs.weight),
                        (bert.tokens.weight, theirs.bert.embeddings.word_embeddings.weight)):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_defaults_are_the_recipe():
    args, base = finetune.parse_args([]), model.SIZES["base"]
    recipe = {"epochs": 2.0, "batch": 12, "max_length": 384, "stride": 128, "eps": 1e-8, "warmup": 0.0,
              "weight_decay": 0.0}
    for name, lr in (("SQuAD1", 3e-5), ("SQuAD2", 5e-5)):
        settings = finetune.settings_for(args, name, base)
        assert settings["lr"] == lr and {key: settings[key] for key in recipe} == recipe
        assert settings.get("null_threshold") == (0.0 if name == "SQuAD2" else None)
    other = finetune.settings_for(args, "RTE", base)
    assert other["eps"] == 1e-6 and "stride" not in other
    assert finetune.settings_for(finetune.parse_args(["--stride", "9"]), "SQuAD1", base)["stride"] == 9
    with pytest.raises(ValueError, match="stride 128 .* in windows of 64"):
        finetune.settings_for(finetune.parse_args(["--stride", "128"]), "SQuAD1", model.SIZES["mini"])


def test_two_processes_equal_one(tasks, tmp_path):
    flags = ["--model", str(tasks / "run"), "--data", str(tasks / "tasks"), "--task", "SQuAD2", "--device", "cpu",
             "--batch", "7", "--dropout", "0", "--lr", "1e-3", "--epochs", "1", "--train-limit", "29",
             "--max-length", "24", "--stride", "6", "--precision", "fp32", "--log-every", "1"]
    finetune.main([*flags, "--out", str(tmp_path / "one")])
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
                           str(ROOT / "finetune.py"), *flags, "--out", str(tmp_path / "two")],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("no test split") == done.stdout.count("SQuAD2 seed 0: dev") == 1   # of both processes
    folders = [tmp_path / which / "finetune/SQuAD2/seed-0" for which in ("one", "two")]
    one, two = [json.loads((folder / "null_odds-dev.json").read_text()) for folder in folders]
    assert one == pytest.approx(two, abs=1e-3) and np.ptp(list(one.values())) > 0.01
    one, two = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in folders]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-3)
