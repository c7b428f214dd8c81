"""Stage 3: fine-tune a BERT on one task or several and write its predictions (paper section 4).

    python finetune.py --model runs/student --task QNLI --seed 0
    python finetune.py --model runs/student --seed 0 1 2                   # every task under --data
    python finetune.py --model FOLDER --data data/tasks --task CoLA STS-B     # any BERT folder
    torchrun --nproc_per_node=8 finetune.py --model runs/student --data data/tasks --task MNLI

Writes RUN/finetune/TASK/seed-N/{args.json, log.jsonl, predictions-SPLIT.tsv, metrics.json}; for
SQuAD predictions-SPLIT.json (v2.0: texts- and null_odds-SPLIT.json, too), for a published test
split the file that its leaderboard takes.
MNLI's model also answers AX and diagnostics, where their files lie beside MNLI's. metrics.json
comes last: where it is, all is, and a finished (task, seed) is passed over. A killed one begins
anew and ends the same, since all randomness is drawn from (seed, step).

Axes: B rows of the batch, C candidate texts a row (1 but for multiple choice), L tokens, H width.
"""
import argparse
import csv
import dataclasses
import hashlib
import json
import math
import os
import re
import statistics
import string
import sys
import time
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import scipy
import torch
import torch.nn.functional as F

import data
import model
from model import UserError

# --------------------------------------------------------------------------------------------------
# Readers: yield the examples of a split's file. UserError names file and line of what is malformed.

COARSE = ("Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge")


class Example(NamedTuple):
    """One row of a task file."""
    texts: list            # [(first, second or None)], one pair a candidate
    label: str | None      # as written in the file; None in a test split without labels
    row: str               # the file's own number of the row, which a submission repeats
    where: str             # "FILE, line N", for messages
    answers: tuple = ()    # SQuAD: (text, its first character in the context), one an annotator
    tags: tuple = ()       # diagnostics: (coarse category, fine category)


def numbered_lines(path):
    """Yields ("FILE, line N", text). Lines end at newlines alone, not at U+2028, as in GLUE."""
    if not path.exists():
        raise UserError(f"{path} is missing")
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    for number, line in enumerate(content.split(b"\n"), 1):
        where = f"{path}, line {number}"
        try:
            yield where, line.decode().rstrip("\r")
        except UnicodeDecodeError:
            raise UserError(f"{where}: not UTF-8") from None


def read_table(path, wanted, header=None, skip_short=False):
    """Yields ("FILE, line N", {column: text}) of a file with tabs, or of a .csv, a row a line.

    wanted: the columns it must have; header: all columns of a file that does not name them;
    skip_short: rows with too few cells are counted, not refused.
    """
    skipped = 0
    for where, line in numbered_lines(path):
        cells = line.split("\t")
        if path.suffix == ".csv":
            try:
                cells = next(csv.reader([line], strict=True))
            except csv.Error as error:
                raise UserError(f"{where}: {error}") from None
        if header is None:
            header = cells
            if not set(wanted) <= set(header):
                raise UserError(f"{where}: has the columns {', '.join(header)}; needed are "
                                f"{', '.join(wanted)}")
        elif len(cells) == len(header):
            yield where, dict(zip(header, cells))
        elif skip_short and len(cells) < len(header):
            skipped += 1
        else:
            raise UserError(f"{where}: {len(cells)} columns, expected {len(header)}")
    if skipped:
        print(f"{path}: {skipped} rows with fewer than {len(header)} columns skipped")


def glue(*texts, label="label", header=None, skip_short=False):
    """Makes the reader of a GLUE task. texts: the one or two text columns; header: the columns of
    train and dev files that do not name them. Only a test split may lack labels."""
    def read(path, split):
        test = split.startswith("test")
        wanted = texts if test else (*texts, label)
        # a submission needs every row of a test split
        table = read_table(path, wanted, None if test else header, skip_short and not test)
        for number, (where, row) in enumerate(table):
            pair = (row[texts[0]], row[texts[1]] if len(texts) == 2 else None)
            index = row.get("index", row.get("id", str(number)))
            yield Example([pair], row.get(label), index, where)
    return read


def read_mrpc(path, split):
    """MRPC: Microsoft's two files; mrpc_dev_ids.tsv names the training file's rows that are dev.
    Or as GLUE's script divides them: train.tsv, dev.tsv, test.tsv."""
    if path.suffix == ".tsv":
        yield from glue("#1 String", "#2 String", label="Quality")(path, split)
        return
    ids = ["#1 ID", "#2 ID"]
    dev = set()
    if split != "test":
        for _, row in read_table(path.with_name("mrpc_dev_ids.tsv"), ids, header=ids):
            dev.add((row["#1 ID"], row["#2 ID"]))
    table = read_table(path, [*ids, "#1 String", "#2 String", "Quality"])
    for number, (where, row) in enumerate(table):
        if ((row["#1 ID"], row["#2 ID"]) in dev) == (split == "dev"):
            pair = (row["#1 String"], row["#2 String"])
            yield Example([pair], row["Quality"], str(number), where)


def read_diagnostics(path, split):
    """GLUE-diagnostics: a column for each coarse category holds its fine ones, joined by ";"."""
    table = read_table(path, [*COARSE, "Premise", "Hypothesis", "Label"])
    for number, (where, row) in enumerate(table):
        tags = []
        for coarse in COARSE:
            tags += [(coarse, fine) for fine in re.split(" *; *", row[coarse]) if fine]
        pair = (row["Premise"], row["Hypothesis"])
        yield Example([pair], row["Label"], str(number), where, tags=tuple(tags))


def read_piqa(path, split):
    """PIQA: goal, sol1, sol2 in a line of JSON, the label in the same line of NAME-labels.lst."""
    lines = list(numbered_lines(path))
    labels = [(where, None) for where, _ in lines]
    if split != "test":
        labels_path = path.with_name(f"{path.stem}-labels.lst")
        labels = list(numbered_lines(labels_path))
        if len(labels) != len(lines):
            raise UserError(f"{labels_path} has {len(labels)} lines, {path} {len(lines)}")
    for number, ((where, line), (label_where, label)) in enumerate(zip(lines, labels)):
        try:
            row = json.loads(line)
            pairs = [(row["goal"], row["sol1"]), (row["goal"], row["sol2"])]
            "".join([*pairs[0], *pairs[1]])   # TypeError where one is no text
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{where}: no JSON object with goal, sol1 and sol2, texts") from None
        yield Example(pairs, label, str(number), label_where)


def read_swag(path, split):
    """SWAG: the first text is sent1; candidate k's second is sent2 followed by ending k."""
    endings = ["ending0", "ending1", "ending2", "ending3"]
    columns = ["sent1", "sent2", *endings]
    table = read_table(path, columns if split == "test" else [*columns, "label"])
    for number, (where, row) in enumerate(table):
        pairs = [(row["sent1"], f"{row['sent2']} {row[ending]}") for ending in endings]
        index = row.get("") or str(number)   # its column has no name
        yield Example(pairs, row.get("label"), index, where)


def read_tracie(path, split):
    """TRACIE: lines "event: ... story: ...<tab>answer: ..."."""
    pattern = re.compile(r"event: ([^\t\r]+?) story: ([^\t\r]+)\tanswer: (\S+)\s*")
    for number, (where, line) in enumerate(numbered_lines(path)):
        match = pattern.fullmatch(line)
        if not match:
            raise UserError(f"{where}: expected 'event: ... story: ...<tab>answer: LABEL'")
        yield Example([match.groups()[:2]], match[3], str(number), where)


def read_squad(path, split):
    """SQuAD: texts [(question, context)], label the first answer ("" for none), row the id."""
    where = path
    try:
        for article in data.read_json(path, "make data/tasks/SQuAD1")["data"]:
            for paragraph in article["paragraphs"]:
                for row in paragraph["qas"]:
                    where = f"{path}, question {row['id']}"
                    yield squad_example(where, paragraph["context"], row)
    except KeyError as error:
        raise UserError(f"{where}, or what follows it: {error} is missing") from None
    except (TypeError, AttributeError) as error:   # null for a text, an object for a list
        raise UserError(f"{where}, or what follows it: not SQuAD's form ({error})") from None


def squad_example(where, context, row):
    answers = []
    for answer in row["answers"]:
        text = answer["text"]
        start = answer["answer_start"]
        if start < 0 or not text or not context.startswith(text, start):
            raise UserError(f"{where}: answer_start {start} does not point at {text!r}")
        answers.append((text, start))
    if bool(answers) == row.get("is_impossible", False):   # v1.1 has no such field
        raise UserError(f"{where}: {len(answers)} answers, is_impossible {bool(answers)}")
    label = answers[0][0] if answers else ""
    "".join([row["question"], context])   # TypeError where one is no text
    return Example([(row["question"], context)], label, row["id"], where, tuple(answers))


# --------------------------------------------------------------------------------------------------
# Metrics: (labels, predictions) -> a number, None where it is not defined. Integer classes, real
# numbers for correlations; SQuAD: lists of right texts (golds), and texts.

PARTS = ("grounded", "ungrounded", "unfilmed")   # of a mini task's rows; see part_of


def accuracy(labels, predictions):
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def f1(labels, predictions):
    """F1 of class 1; 0 where nothing is labelled or predicted 1, as in scikit-learn."""
    labels = np.asarray(labels) == 1
    predictions = np.asarray(predictions) == 1
    total = labels.sum() + predictions.sum()
    return float(2 * (labels & predictions).sum() / total) if total else 0.0


def matthews(labels, predictions):
    """Matthews correlation of any number of classes (R_K); 0 where one side is constant."""
    classes = np.union1d(labels, predictions)
    x, y = [np.equal.outer(side, classes) for side in (labels, predictions)]   # [rows, classes]
    x = x - x.mean(0)
    y = y - y.mean(0)
    spread = (x * x).sum() * (y * y).sum()
    return float((x * y).sum() / math.sqrt(spread)) if spread > 0 else 0.0


def pearson(labels, predictions):
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return None
    return float(scipy.stats.pearsonr(np.float64(labels), np.float64(predictions)).statistic)


def spearman(labels, predictions):
    return pearson(scipy.stats.rankdata(labels), scipy.stats.rankdata(predictions))


def normal_words(text):
    """Words that count in SQuAD: lower case, no ASCII punctuation, no articles."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def answer_scores(golds, text):
    """(exact, F1) of one answer as in evaluate-v2.0.py: the better of each over the golds that have
    a word left, or over "" if none has. F1 of bags of words; where one is empty, 1 if both are."""
    words = normal_words(text)
    golds = [normal_words(gold) for gold in golds]
    exact = 0
    best = 0
    for gold in [gold for gold in golds if gold] or [[]]:
        common = (Counter(gold) & Counter(words)).total()
        if gold == words:
            exact = 1
            best = 1
        elif common:
            precision = common / len(words)
            recall = common / len(gold)
            best = max(best, 2 * precision * recall / (precision + recall))
    return exact, best


def squad_exact(golds, answers):
    return float(np.mean([answer_scores(*pair)[0] for pair in zip(golds, answers)]))


def squad_f1(golds, answers):
    return float(np.mean([answer_scores(*pair)[1] for pair in zip(golds, answers)]))


def single_number(name, values):
    """A task's one number in a table: the mean of its metrics (two of MRPC, STS-B and QQP; SQuAD's
    F1 alone), None where one is not defined. values: {metric: value or None}."""
    task = TASKS[name]
    metrics = task.metrics[:1] if task.kind == "span" else task.metrics
    wanted = [values[metric] for metric, _ in metrics]
    return None if None in wanted else sum(wanted) / len(wanted)


def score(name, labels, predictions):
    """{metric: value or None, "n": rows, "chance": the single number of one answer to all rows, the
    most common label, or "" in SQuAD}."""
    metrics = TASKS[name].metrics
    constant = "" if TASKS[name].kind == "span" else statistics.mode(sorted(labels))
    constants = np.full(len(labels), constant)
    values = {metric: function(labels, predictions) for metric, function in metrics}
    chance = {metric: function(labels, constants) for metric, function in metrics}
    return {**values, "n": len(labels), "chance": single_number(name, chance)}


def accuracy_by(labels, predictions, groups, metrics=()):
    """{group: {"accuracy", "n": rows, "chance": that of the most common label}}, sorted by name.

    groups: for each row, the names of the groups it counts in; metrics: [(name, function)] beside.
    """
    labels = np.asarray(labels)
    predictions = np.asarray(predictions)
    rows_of = defaultdict(list)
    for row, names in enumerate(groups):
        for name in names:
            rows_of[name].append(row)
    cells = {}
    for name, rows in sorted(rows_of.items()):
        own = labels[rows]
        cells[name] = {"accuracy": accuracy(own, predictions[rows]), "n": len(rows),
                       "chance": accuracy(own, statistics.mode(sorted(own)))}
        for metric, function in metrics:
            cells[name][metric] = function(own, predictions[rows])
    return cells


def part_of(row):
    """Part of a mini task's meta row: "ungrounded" (language decides), "grounded" (a property of a
    filmed noun does), "unfilmed" (that of a noun which no video shows: the control)."""
    unfilmed = row["part"] == "grounded" and row["group"] == "unfilmed"
    return "unfilmed" if unfilmed else row["part"]


def score_parts(labels, predictions, meta):
    """Accuracy by part of a mini task, and of the grounded part by property. meta: a dict a row."""
    parts = [[part_of(row)] for row in meta]
    properties = [[row["property"]] if part_of(row) == "grounded" else [] for row in meta]
    return {**accuracy_by(labels, predictions, parts),
            "grounded_by_property": accuracy_by(labels, predictions, properties)}


def score_categories(labels, predictions, tags, meta=None):
    """GLUE-diagnostics by "overall", "Logic", ..., "Logic: Negation", ..., and by a mini world's
    parts; "matthews" is jiant's R_3. tags: for each row, its (coarse, fine) pairs."""
    groups = []
    for row, pairs in enumerate(tags):
        names = {"overall"}
        for coarse, fine in pairs:
            names.update([coarse, f"{coarse}: {fine}"])
        if meta:
            names.add(part_of(meta[row]))
        groups.append(names)
    return accuracy_by(labels, predictions, groups, MATTHEWS)


def score_tracie(labels, predictions, texts):
    """TRACIE's accuracy on questions of starts and of ends (None where none is asked), share of
    stories all of whose questions are right, and their counts. texts: a row's (query, story)."""
    kinds = [["start" if re.search("starts (before|after)", query) else "end"]
             for query, _ in texts]
    cells = accuracy_by(labels, predictions, kinds)
    stories = accuracy_by(labels, predictions, [[story] for _, story in texts])
    whole = [cell["accuracy"] == 1 for cell in stories.values()]
    scores = {"story": float(np.mean(whole)), "stories": len(stories)}
    for kind in ("start", "end"):
        cell = cells.get(kind, {"accuracy": None, "n": 0})
        scores[kind] = cell["accuracy"]
        scores[f"{kind}s"] = cell["n"]
    return scores


# --------------------------------------------------------------------------------------------------
# Tasks


@dataclasses.dataclass
class Task:
    kind: str          # classification, regression, choice (softmax over candidates) or span
    labels: tuple      # as files write them, in the order of the outputs; a regression's range
    reader: Callable   # (path, split) -> examples
    metrics: list      # [(name, function)], the main one first
    files: dict        # {split: name}
    folder: str = ""          # under --data, where not the task's name
    answered_by: str = None   # the task whose model answers it; nothing is trained on it

    def path(self, folder, split):
        """Where a split lies; MRPC's also as GLUE's script divides it."""
        divided = folder / f"{split}.tsv"
        return divided if self.files is MRPC and divided.exists() else folder / self.files[split]

    def read(self, folder, split):
        return list(self.reader(self.path(folder, split), split))


ACCURACY = [("accuracy", accuracy)]
ACCURACY_F1 = [("accuracy", accuracy), ("f1", f1)]
MATTHEWS = [("matthews", matthews)]
CORRELATIONS = [("pearson", pearson), ("spearman", spearman)]
SQUAD = [("f1", squad_f1), ("exact", squad_exact)]

BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
NLI = ("contradiction", "entailment", "neutral")
TIME = ("negative", "positive")

read_cola = glue("sentence", header=["source", "label", "star", "sentence"])
read_pair = glue("sentence1", "sentence2")
read_sts = glue("sentence1", "sentence2", label="score")
read_qqp = glue("question1", "question2", label="is_duplicate", skip_short=True)
read_mnli = glue("sentence1", "sentence2", label="gold_label")

TSV = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
MRPC = {"train": "msr_paraphrase_train.txt", "dev": "msr_paraphrase_train.txt",
        "test": "msr_paraphrase_test.txt"}
MNLI = {"train": "train.tsv", "dev": "dev_matched.tsv", "dev-mismatched": "dev_mismatched.tsv",
        "test": "test_matched.tsv", "test-mismatched": "test_mismatched.tsv"}
PIQA = {"train": "train.jsonl", "dev": "valid.jsonl", "test": "tests.jsonl"}
SWAG = {"train": "train.csv", "dev": "val.csv", "test": "test.csv"}
SQUAD1 = {"train": "train-v1.1.json", "dev": "dev-v1.1.json", "test": "test-v1.1.json"}
SQUAD2 = {"train": "train-v2.0.json", "dev": "dev-v2.0.json", "test": "test-v2.0.json"}
TRACIE = {"train": "tracie_train.txt", "dev": "tracie_dev.txt", "test": "tracie_test.txt"}
# the public splits share a test file
PRIOR = {"train": "tracie_train_uniform_prior.txt", "dev": "tracie_dev.txt",
         "test": "../iid/tracie_test.txt"}

TASKS = {
    "CoLA": Task("classification", BINARY, read_cola, MATTHEWS, TSV),
    "SST-2": Task("classification", BINARY, glue("sentence"), ACCURACY, TSV),
    "MRPC": Task("classification", BINARY, read_mrpc, ACCURACY_F1, MRPC),
    "STS-B": Task("regression", (0.0, 5.0), read_sts, CORRELATIONS, TSV),
    "QQP": Task("classification", BINARY, read_qqp, ACCURACY_F1, TSV),
    "MNLI": Task("classification", NLI, read_mnli, ACCURACY, MNLI),
    # one set of pairs, without labels (for GLUE's server) and with labels and categories
    "AX": Task("classification", NLI, read_pair, ACCURACY, {"test": "AX.tsv"}, answered_by="MNLI"),
    "diagnostics": Task("classification", NLI, read_diagnostics, MATTHEWS,
                        {"test": "diagnostic-full.tsv"}, answered_by="MNLI"),
    "QNLI": Task("classification", ENTAILMENT, glue("question", "sentence"), ACCURACY, TSV),
    "RTE": Task("classification", ENTAILMENT, read_pair, ACCURACY, TSV),
    "WNLI": Task("classification", BINARY, read_pair, ACCURACY, TSV),
    "PIQA": Task("choice", BINARY, read_piqa, ACCURACY, PIQA),
    "SWAG": Task("choice", ("0", "1", "2", "3"), read_swag, ACCURACY, SWAG),
    "SQuAD1": Task("span", (), read_squad, SQUAD, SQUAD1),
    "SQuAD2": Task("span", (), read_squad, SQUAD, SQUAD2),
    # pairs of query and story; only the mini world's, under the plain name, has a dev split
    "TRACIE": Task("classification", TIME, read_tracie, ACCURACY, TRACIE),
    "TRACIE-iid": Task("classification", TIME, read_tracie, ACCURACY, TRACIE,
                       folder="TRACIE/iid"),
    "TRACIE-uniform-prior": Task("classification", TIME, read_tracie, ACCURACY, PRIOR,
                                 folder="TRACIE/uniform-prior"),
}
GET = "`make data/tasks/RTE` and its like fetch published files, `make data` makes the mini world's"


class Split(NamedTuple):
    examples: list
    targets: object      # what targets_of gives
    meta: list | None    # a mini task's: label, part, noun, its group and property, a row

    def cut(self, start, stop):
        return Split(*[None if column is None else column[start:stop] for column in self])


def task_folder(root, name):
    return Path(root) / (TASKS[name].folder or name)


def targets_of(name, examples):
    """int64 or float32 [rows], SQuAD's a list of right texts a row; None without labels."""
    task = TASKS[name]
    if any(example.label is None for example in examples):
        return None
    targets = [target_of(task, example) for example in examples]
    if task.kind == "span":
        return targets
    return np.array(targets, dtype=np.float32 if task.kind == "regression" else np.int64)


def target_of(task, example):
    if task.kind == "span":
        return [text for text, _ in example.answers]
    try:
        if task.kind != "regression":
            return task.labels.index(example.label)
        low, high = task.labels
        if low <= float(example.label) <= high:   # nan is not
            return float(example.label)
    except ValueError:   # neither one of the labels nor a number
        pass
    raise UserError(f"{example.where}: label {example.label!r}, expected {task.labels}")


def read_split(name, folder, split):
    """One split. A mini task's SPLIT.meta.jsonl holds the hidden test labels, and what each row
    needs to be known; it must agree with the task file."""
    examples = TASKS[name].read(folder, split)
    if not examples:
        raise UserError(f"{TASKS[name].path(folder, split)} has no rows")
    path = folder / f"{split}.meta.jsonl"
    if not path.exists():
        return Split(examples, targets_of(name, examples), None)
    meta = []
    labels = []
    for where, line in numbered_lines(path):
        try:
            meta.append(json.loads(line))
            labels.append(str(meta[-1]["label"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{where}: no JSON object with a label; {GET}") from None
    if len(meta) != len(examples):
        raise UserError(f"{path} has {len(meta)} lines, its task file {len(examples)} rows; {GET}")
    for index, (example, label) in enumerate(zip(examples, labels)):
        if example.label not in (None, label):
            raise UserError(f"{example.where}: label {example.label!r}, in {path} {label!r}")
        examples[index] = example._replace(label=label)
    return Split(examples, targets_of(name, examples), meta)


def load_task(args, name):
    """All splits of a task that have a file -> {split: Split}, with those of the tasks that its
    model answers besides."""
    folder = task_folder(args.data, name)
    splits = {}
    for split in TASKS[name].files:
        path = TASKS[name].path(folder, split)
        if path.exists():
            splits[split] = read_split(name, folder, split)
        elif split == ("dev" if args.split_dev else "train"):
            raise UserError(f"{path} is missing; {GET}; --split-dev trains on half of the dev "
                            f"file")
        elif split == "dev":
            print(f"note: {path} is missing")
    for other, task in TASKS.items():
        place = task_folder(args.data, other)
        if task.answered_by == name and task.path(place, "test").exists():
            splits[other] = read_split(other, place, "test")
    if args.split_dev:
        half = len(splits["dev"].examples) // 2
        if not half:
            raise UserError(f"{TASKS[name].path(folder, 'dev')}: its one row cannot be halved")
        splits["train"] = splits["dev"].cut(0, half)
        splits["dev"] = splits["dev"].cut(half, None)
    splits["train"] = splits["train"].cut(0, args.train_limit)
    return splits


def data_hash(splits):
    """sha256 of all that was read of a task, wherever it lies."""
    digest = hashlib.sha256()
    for split, (examples, _, meta) in splits.items():
        digest.update(f"{split} {meta}".encode())
        for example in examples:
            digest.update(repr(example._replace(where="")).encode())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------
# Token ids: made once a task, shared by its seeds


def encoded(tokenizer, texts, special=True):
    """Yields the encoding of each text or pair, made by the thousand: far larger than its ids."""
    for start in range(0, len(texts), 1024):
        yield from tokenizer.encode_batch(texts[start:start + 1024], add_special_tokens=special)


class Rows:
    """A split as token ids: [CLS] first [SEP], or [CLS] first [SEP] second [SEP].

    Candidate c of a row is ids[row x C + c], its second text begins at seconds[row x C + c].
    lengths: [rows], of the longest candidate.
    """

    def __init__(self, examples, targets, tokenizer, max_length):
        texts = []
        for example in examples:
            for first, second in example.texts:
                texts.append(first if second is None else (first, second))
        ids = []
        seconds = []
        # the longer of two texts loses its end until they are equal, then both do
        tokenizer.enable_truncation(max_length)
        for encoding in encoded(tokenizer, texts):
            ids.append(np.array(encoding.ids, dtype=np.int32))
            seconds.append(encoding.type_ids.count(0))
        tokenizer.no_truncation()
        self.keep(ids, seconds, targets, len(examples[0].texts), tokenizer)

    def keep(self, ids, seconds, targets, candidates, tokenizer):
        self.ids = ids
        self.seconds = np.array(seconds)
        self.targets = targets
        self.candidates = candidates
        self.pad = data.special_ids(tokenizer)["pad"]
        self.lengths = np.array([len(own) for own in ids]).reshape(-1, candidates).max(1)

    def __len__(self):
        return len(self.lengths)

    def batch(self, indices):
        """Rows -> tokens int [B*C, L], mask bool [B*C, L] (True = real token), segments int
        [B*C, L], padded to the longest of them."""
        first = np.asarray(indices)[:, None] * self.candidates
        texts = (first + np.arange(self.candidates)).ravel()          # [B*C]
        ids = [self.ids[text] for text in texts]
        lengths = np.array([len(own) for own in ids])
        place = np.arange(lengths.max())[None]                        # [1, L]
        mask = place < lengths[:, None]                               # [B*C, L]
        segments = mask & (place >= self.seconds[texts][:, None])
        tokens = np.full(mask.shape, self.pad, dtype=np.int64)
        tokens[mask] = np.concatenate(ids)
        return [torch.from_numpy(array) for array in (tokens, mask, segments.astype(np.int64))]


def length_sorted_batches(lengths, batch, seed, epoch, step=8):
    """One epoch as a list of index arrays: each row once, rows of a batch alike in length.

    Random pools of 50 batches are sorted by length in steps of `step` tokens, then cut into equal
    parts of at most `batch` rows, shortest first; the batches are shuffled.
    """
    generator = data.numpy_generator(seed, "order", epoch)
    order = generator.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), 50 * batch):
        pool = order[start:start + 50 * batch]
        steps = -(-lengths[pool] // step)
        pool = pool[np.argsort(steps, kind="stable")]
        for part in np.array_split(pool, -(-len(pool) // batch)):
            batches.append(part[np.argsort(lengths[part], kind="stable")])
    return [batches[index] for index in generator.permutation(len(batches))]


# --------------------------------------------------------------------------------------------------
# SQuAD: windows and answers, by the rules and numbers of BERT's own script

QUESTION_PIECES = 64     # a question loses what is beyond
N_BEST = 20              # starts and ends tried in a window
ANSWER_PIECES = 30       # longest answer


class Windows(Rows):
    """Questions as token ids, [CLS] question [SEP] window of the context [SEP], a row a window.

    A context longer than a window is read in several, each `stride` pieces after the one before.
    targets: int [windows, 2], positions of the answer's first and last piece; (0, 0), which is
    [CLS], where the window lacks any of it or there is no answer. train: a question whose answer
    has no word piece gets no window and is listed.
    """

    def __init__(self, examples, tokenizer, max_length, stride, train):
        self.examples = examples
        self.offsets = {}   # context -> [pieces, 2], first character of a piece and that after it
        context_ids = {}
        contexts = list(dict.fromkeys(example.texts[0][1] for example in examples))
        for context, encoding in zip(contexts, encoded(tokenizer, contexts, False)):
            self.offsets[context] = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
            context_ids[context] = encoding.ids
        questions = encoded(tokenizer, [example.texts[0][0] for example in examples], False)
        special = data.special_ids(tokenizer)
        # in short windows a question keeps less, so that no piece of the context is stepped over
        asked = min(QUESTION_PIECES, max_length - 3 - stride)
        ids = []
        places = []
        skipped = []
        for index, (example, question) in enumerate(zip(examples, questions)):
            context = example.texts[0][1]
            span = None
            if train and example.answers:
                span = answer_span(self.offsets[context], *example.answers[0])
                if span is None:
                    skipped.append(example.row)
                    continue
            head = [special["cls"], *question.ids[:asked], special["sep"]]
            room = max_length - len(head) - 1
            for first in range(0, max(1, len(context_ids[context]) - room + stride), stride):
                window = context_ids[context][first:first + room]
                target = (0, 0)
                if span and first <= span[0] and span[1] < first + len(window):
                    target = (span[0] - first + len(head), span[1] - first + len(head))
                ids.append(np.array([*head, *window, special["sep"]], dtype=np.int32))
                places.append((index, first, len(head), *target))
        if skipped:
            print(f"note: questions left out, whose answer has no word piece: {', '.join(skipped)}")
        if not places:
            raise UserError(f"{examples[0].where}: no question whose answer has a word piece")
        places = np.array(places)
        self.question = places[:, 0]   # [windows]
        self.first = places[:, 1]      # [windows], the context's first piece in the window
        self.keep(ids, places[:, 2], places[:, 3:], 1, tokenizer)


def answer_span(offsets, text, start):
    """First and last of the pieces that hold a character of the answer; None if none does."""
    held = (offsets[:, 1] > start) & (offsets[:, 0] < start + len(text))
    pieces = np.flatnonzero(held)
    return (pieces[0], pieces[-1]) if len(pieces) else None


def max_context(first, length):
    """Which of a question's windows shows a piece with the most context, min(left, right) + 0.01
    length, the earliest at a tie. first, length: int [windows], in pieces of the context.
    Returns bool [windows, pieces]."""
    piece = np.arange((first + length).max())
    left = piece - first[:, None]                       # [windows, pieces]
    right = (first + length - 1)[:, None] - piece       # [windows, pieces]
    inside = (left >= 0) & (right >= 0)
    context = np.where(inside, np.minimum(left, right) + 0.01 * length[:, None], -1.0)
    return inside & (context.argmax(0) == np.arange(len(first))[:, None])


def best_answer(windows, scores, rows, context):
    """One question's best text and its start + end score; ("", 0.0) if no span is valid.

    rows: its windows. Tried are the 20 best starts with the 20 best ends of each, both in the
    context, the start where it has the most context, at most 30 pieces. scores: [windows, L, 2].
    """
    heads = windows.seconds[rows]
    counts = windows.lengths[rows] - heads - 1   # pieces of the context in each window
    widest = max_context(windows.first[rows], counts)
    best = -np.inf
    text = ""
    for row, head, count, wide in zip(rows, heads, counts, widest):
        first = windows.first[row]
        own = scores[row, :windows.lengths[row]].astype(np.float64)       # [L, 2], no padding
        order = np.argsort(-own, axis=0, kind="stable")[:N_BEST] - head
        starts, ends = [side[(side >= 0) & (side < count)] for side in order.T]
        starts = starts[wide[first + starts]]
        totals = own[head + starts, 0][:, None] + own[head + ends, 1]     # [starts, ends]
        size = ends - starts[:, None] + 1
        totals[(size < 1) | (size > ANSWER_PIECES)] = -np.inf
        if totals.max(initial=-np.inf) > best:
            best = totals.max()
            i, j = np.unravel_index(totals.argmax(), totals.shape)
            begin = windows.offsets[context][first + starts[i], 0]
            stop = windows.offsets[context][first + ends[j], 1]
            while stop < len(context) and unicodedata.combining(context[stop]):   # a last accent
                stop += 1
            text = context[begin:stop]
    return text, float(best) if text else 0.0


def span_answers(windows, scores):
    """Scores [windows, L, 2] -> (texts, null odds), an entry a question.

    odds = the smallest start + end score of [CLS] over the windows - the best score of a text.
    """
    texts = []
    odds = []
    for index, example in enumerate(windows.examples):
        rows = np.flatnonzero(windows.question == index)
        text, best = best_answer(windows, scores, rows, example.texts[0][1])
        null = scores[rows, 0].astype(np.float64).sum(-1).min()   # of [windows, 2]
        odds.append(float(null - best))
        texts.append(text)
    return texts, odds


def answer_places(examples, targets, answers):
    """Right and given answers as numbers, int [questions] each, so that chance by part is what
    naming one place every time would score: the number of the answer's first word in the context,
    -1 for no answer; -2 for a wrong one."""
    labels = []
    given = []
    for example, golds, answer in zip(examples, targets, answers):
        place = -1
        for _, start in example.answers[:1]:
            place = len(example.texts[0][1][:start].split())
        labels.append(place)
        given.append(place if answer_scores(golds, answer)[0] else -2)
    return np.array(labels), np.array(given)


# --------------------------------------------------------------------------------------------------
# Settings

DEFAULTS = {
    "mini": {
        # ours, chosen on validation nouns: small batches, dropout, a plain head and an encoder as
        # quick as its head leave the balanced tasks at the saddle of their exclusive or
        "lr": 1e-4, "head_rate": 10.0, "head": "whitened", "head_std": 0.1,
        "epochs": 40.0, "batch": 256, "dropout": 0.0, "warmup": 0.1,
        "max_length": 64, "length_step": 32,             # ours; few mini rows are longer than 32
        "accumulate": 2,                                 # ours: the shorter half needs less padding
        "weight_decay": 0.0, "eps": 1e-6},               # authors' script
    "base": {
        "lr": 1e-4, "epochs": 3.0, "batch": 32,          # authors' script (run_glue_at_epoch.bash)
        "max_length": 126, "warmup": 0.1,                # authors' script
        "length_step": 8, "accumulate": 1,               # ours; see length_sorted_batches
        "weight_decay": 0.0, "eps": 1e-6,                # authors' script
        "dropout": 0.1, "head_std": 0.02, "head": "plain", "head_rate": 1.0},   # BERT's own
}
DEFAULTS["small"] = DEFAULTS["base"]                     # authors' script: one recipe for all sizes
BY_TASK = {   # at paper sizes; all else has GLUE's, PIQA by the authors' deleted script, too
    # authors' deleted run_swag.bash: batch 16 x 2 accumulated, no warm-up
    "SWAG": {"lr": 5e-5, "max_length": 80, "warmup": 0.0},
    # authors' deleted run_squad_v1.bash: no warm-up
    "SQuAD1": {"lr": 3e-5, "epochs": 2.0, "batch": 12, "max_length": 384, "stride": 128,
               "warmup": 0.0, "eps": 1e-8},
    # authors' deleted run_squad_v2.bash, which forgets that questions may lack an answer
    "SQuAD2": {"lr": 5e-5, "epochs": 2.0, "batch": 12, "max_length": 384, "stride": 128,
               "warmup": 0.0, "eps": 1e-8, "null_threshold": 0.0},
}
MINI_SPANS = {"lr": 1e-3, "head_rate": 1.0, "warmup": 0.4, "stride": 16}
MINI_BY_TASK = {"SQuAD1": MINI_SPANS, "SQuAD2": {**MINI_SPANS, "null_threshold": 0.0}}   # ours


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    trained = [name for name, task in TASKS.items() if not task.answered_by]
    flag = parser.add_argument
    flag("--model", default="runs/student", help="run folder, or BERT folder in Hugging Face form")
    flag("--task", nargs="+", metavar="TASK", default=[], choices=trained,
         help=f"of: {', '.join(trained)} (default: all under --data)")
    flag("--seed", nargs="+", type=data.count, default=[0])
    flag("--data", default="data/mini/tasks", help="folder that holds TASK/ folders")
    flag("--out", help="folder that gets finetune/ (default: the run; runs/NAME for a bare model)")
    flag("--size", choices=list(DEFAULTS), help="recipe (default: the run's own size, else base)")
    flag("--lr", type=float, help="peak learning rate")
    flag("--epochs", type=data.above_zero)
    flag("--batch", type=data.positive, help="rows, of all processes together")
    flag("--accumulate", type=data.positive, help="parts that a batch is worked off in")
    flag("--max-length", type=data.positive, help="tokens a text, special ones included; SQuAD: a "
         "window")
    flag("--stride", type=data.positive, help="SQuAD: word pieces from one window to the next")
    flag("--null-threshold", type=float, help="SQuAD2: no answer where [CLS] scores this much "
         "above the best text (best_f1_thresh of `evaluate.py squad` on texts-dev.json)")
    flag("--warmup", type=float, help="share of the steps")
    flag("--weight-decay", type=float)
    flag("--clip", type=data.above_zero, default=1.0, help="largest gradient norm")
    flag("--dropout", type=float)
    flag("--head", choices=["plain", "whitened"], help="on [CLS] (plain: BERT's pooler)")
    flag("--head-rate", type=float, help="the head's rate is so many times --lr")
    flag("--head-std", type=float, help="deviation of the task head's first weights")
    flag("--train-limit", type=data.positive, help="train on the first rows of the file alone")
    flag("--split-dev", action="store_true", help="train on the first half of the dev file, score "
         "on the second: for smoke runs without the training file")
    flag("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    flag("--device", default="auto", help="auto, cpu, cuda, mps")
    flag("--log-every", type=data.positive, default=100, help="steps")
    return parser.parse_args(argv)


def locate_model(path):
    """--model -> (folder with config.json, folder that gets finetune/, size of the run or None)."""
    run = Path(path)
    if run.name == "model" and (run.parent / "args.json").exists():
        run = run.parent
    if (run / "model" / "config.json").exists():
        size = None
        if (run / "args.json").exists():
            facts = data.read_json(run / "args.json", "", "arguments")
            size = facts["arguments"].get("size")
        return run / "model", run, size
    if (run / "config.json").exists():
        return run, Path("runs") / run.resolve().name, None
    raise UserError(f"no model in {path}: neither a finished run, as of `make teacher distill`, "
                    f"nor a BERT in Hugging Face form")


def settings_for(args, name, size, config):
    """Settings of one task: the size's column, the task's own, and the flags over both."""
    by_task = MINI_BY_TASK if size == "mini" else BY_TASK
    settings = {**DEFAULTS[size], **by_task.get(name, {})}
    for key in settings.keys() & vars(args).keys():
        if getattr(args, key) is not None:
            settings[key] = getattr(args, key)
    length = min(settings["max_length"], config.max_position_embeddings)
    settings["max_length"] = length
    stride = settings.get("stride", 1)
    if not 1 <= stride <= length - 4:
        raise UserError(f"--max-length {length} leaves no room for a --stride of {stride} beside "
                        f"a question")
    return {"model": str(args.model), "data": str(args.data), "task": name, "size": size,
            **settings, "clip": args.clip, "precision": args.precision,
            "train_limit": args.train_limit, "split_dev": args.split_dev}


# --------------------------------------------------------------------------------------------------
# One run: a task and a seed


def make_head(kind, classes, config, states=None):
    """On [CLS]; for SQuAD on every token, row 0 start, row 1 end, as transformers has it.

    states: see model.WhitenedHead; None: the plain head.
    """
    if kind == "span":
        head = torch.nn.Linear(config.hidden_size, 2)
        model.init_weights(head, config.initializer_range)
        return head
    outputs = classes if kind == "classification" else 1
    if states is None:
        return model.SequenceHead(config, outputs)
    return model.WhitenedHead(config, outputs, states)


@torch.no_grad()
def first_states(bert, rows, device):
    """The [CLS] of the first 512 rows (all candidates), as the encoder has it now: [N, H]."""
    bert.eval()
    inputs = data.moved(rows.batch(np.arange(min(512, len(rows)))), device)
    return bert(*inputs, first_only=True)[:, 0]


def scores_of(kind, bert, head, batch, candidates):
    """fp32 scores of classes [B, classes], values [B] (regression), of candidates [B, C] (choice),
    of starts and ends [B, L, 2] (span, -inf at padding)."""
    hidden = bert(*batch, first_only=kind != "span")
    out = head(hidden).float()   # [B*C, outputs]; span: [B, L, 2]
    if kind == "span":
        return out.masked_fill(~batch[1][:, :, None], -torch.inf)
    if kind == "choice":
        return out.view(-1, candidates)
    return out[:, 0] if kind == "regression" else out


def loss_of(kind, scores, targets):
    """Summed loss: squared error, or cross-entropy over classes, candidates or tokens; of a span,
    whose targets are [B, 2], the mean of start's and end's."""
    if kind == "regression":
        return F.mse_loss(scores, targets, reduction="sum")
    loss = F.cross_entropy(scores, targets, reduction="sum")
    return loss / 2 if kind == "span" else loss


@torch.no_grad()
def predict(kind, bert, head, rows, batch, processes, autocast_type):
    """Scores of all rows, as an array, on every process; each computes its share of them."""
    bert.eval()
    head.eval()
    device = processes.device
    scores = None
    order = np.argsort(rows.lengths, kind="stable")
    for start in range(0, len(order), batch):
        chosen = order[start:start + batch]
        mine = chosen[processes.rank::processes.world]
        # a process without a row computes one that is not kept
        inputs = data.moved(rows.batch(mine if len(mine) else chosen[:1]), device)
        with torch.autocast(device.type, autocast_type, enabled=autocast_type is not None):
            out = scores_of(kind, bert, head, inputs, rows.candidates)
        if kind == "span":
            padding = int(rows.lengths.max()) - out.shape[1]
            out = F.pad(out, (0, 0, 0, padding), value=-torch.inf)
        if scores is None:
            scores = torch.zeros(len(rows), *out.shape[1:], device=device)
        scores[torch.from_numpy(mine).to(device)] = out[:len(mine)]
    return processes.sum(scores).cpu().numpy()


def write_predictions(folder, name, split, examples, scores, answers):
    """predictions-SPLIT.tsv: row, prediction, label (empty if unknown), probabilities."""
    task = TASKS[name]
    header = ["row", "prediction", "label"]
    if task.kind == "regression":
        shown = [f"{answer:.4f}" for answer in answers]
        probabilities = [[]] * len(shown)
    else:
        header += [f"p({label})" for label in task.labels]
        shown = [task.labels[answer] for answer in answers]
        probabilities = torch.from_numpy(scores).softmax(-1).tolist()
    lines = ["\t".join(header)]
    for example, answer, row in zip(examples, shown, probabilities):
        cells = [example.row, answer, example.label or "", *[f"{value:.6f}" for value in row]]
        lines.append("\t".join(cells))
    data.write_text(folder / f"predictions-{split}.tsv", "\n".join(lines) + "\n")


def write_submission(folder, name, split, examples, answers):
    """The file a leaderboard takes: CoLA.tsv, ..., MNLI-m.tsv, MNLI-mm.tsv, AX.tsv (GLUE: index,
    prediction); predictions.lst (PIQA: 0 or 1 a line); SWAG.csv (index, pred)."""
    task = TASKS[name]
    if task.kind == "regression":   # the server refuses values out of the range
        answers = [f"{answer:.3f}" for answer in np.clip(answers, *task.labels)]
    else:
        answers = [task.labels[answer] for answer in answers]
    pairs = [(example.row, answer) for example, answer in zip(examples, answers)]
    if name == "PIQA":
        file = "predictions.lst"
        lines = answers
    elif name == "SWAG":
        file = "SWAG.csv"
        lines = [",pred", *[",".join(pair) for pair in pairs]]
    else:
        names = {"test": "MNLI-m.tsv", "test-mismatched": "MNLI-mm.tsv"}
        file = names[split] if name == "MNLI" else f"{name}.tsv"
        lines = ["index\tprediction", *["\t".join(pair) for pair in pairs]]
    data.write_text(folder / file, "\n".join(lines) + "\n")


def score_split(metrics, settings, split, content, rows, scores, folder):
    """Writes the answers of a split, a Split as read, and puts what they are worth into metrics."""
    examples, targets, meta = content
    name = split if split in TASKS else settings["task"]   # AX and diagnostics are their own tasks
    kind = TASKS[name].kind
    if kind == "span":
        texts, odds = span_answers(rows, scores)
        threshold = settings.get("null_threshold", math.inf)   # SQuAD v2.0's
        answers = ["" if odd > threshold else text for text, odd in zip(texts, odds)]
        files = {"predictions": answers}
        if "null_threshold" in settings:   # by texts and odds a better threshold can be found
            files |= {"texts": texts, "null_odds": odds}
        ids = [example.row for example in examples]
        for file, values in files.items():
            data.write_json(folder / f"{file}-{split}.json", dict(zip(ids, values)))
    else:
        answers = scores if kind == "regression" else scores.argmax(-1)
        write_predictions(folder, name, split, examples, scores, answers)
        # Microsoft's test file of MRPC has labels
        if targets is None or (name == "MRPC" and split == "test"):
            write_submission(folder, name, split, examples, answers)
    if targets is None:
        return
    metrics[split] = score(name, targets, answers)
    if name.startswith("TRACIE"):
        metrics[split] |= score_tracie(targets, answers, [example.texts[0] for example in examples])
    if name == "diagnostics":
        tags = [example.tags for example in examples]
        metrics["categories"] = score_categories(targets, answers, tags, meta)
    if name == settings["task"] and len(answers) > 1:
        # stuck at a constant; 0.01 of STS-B's five points is one, too
        same = np.ptp(answers) <= 0.01 if kind == "regression" else len(set(answers)) == 1
        metrics["majority"] |= bool(same)
    if meta:
        if kind == "span":
            targets, answers = answer_places(examples, targets, answers)
        metrics["parts"][split] = score_parts(targets, answers, meta)


def finetune(settings, splits, rows, config, bert, encoder, processes, folder, log_every=100):
    """Trains a fresh head and the encoder from its loaded weights, writes the folder.

    splits: {split: Split}; rows: {split: Rows}; encoder: bert's state dict as loaded. Returns what
    metrics.json holds. Raises UserError at a non-finite loss.
    """
    # --- setup
    start = time.time()
    name = settings["task"]
    seed = settings["seed"]
    kind = TASKS[name].kind
    device = processes.device
    precision, autocast_type = data.settle_precision(settings["precision"], device)
    if processes.master:
        data.lock(folder)
        # metrics.json first: it vouches for the rest, of which a new run may not write all
        for pattern in ("metrics.json", "predictions-*", "texts-*", "null_odds-*",
                        "predictions.lst", "SWAG.csv", f"{name}.tsv", "MNLI-m.tsv", "MNLI-mm.tsv",
                        "AX.tsv"):
            for path in folder.glob(pattern):
                path.unlink()
        data.write_json(folder / "args.json", {
            "arguments": settings, "settled precision": precision, "processes": processes.world,
            **data.provenance(device)})
    log = data.Log(folder / "log.jsonl", processes.master, 0)

    # --- data
    train = rows["train"]
    epoch_steps = -(-len(train) // settings["batch"])
    steps = max(1, round(settings["epochs"] * epoch_steps))
    warmup = int(settings["warmup"] * steps)

    # --- models: the encoder as it was loaded, and a head that only the seed decides
    torch.manual_seed(seed)
    bert.load_state_dict(encoder)
    model.set_dropout(config, bert, settings["dropout"])
    head_config = dataclasses.replace(config, initializer_range=settings["head_std"])
    states = None
    if settings["head"] == "whitened" and kind != "span":
        states = first_states(bert, train, device)
    head = make_head(kind, len(TASKS[name].labels), head_config, states).to(device)

    # --- optimizer: the head's rate is a multiple of the encoder's
    optimizer, of_head = [model.optimizer_for([part], settings["lr"], settings["weight_decay"],
                                              settings["eps"]) for part in (bert, head)]
    times = [1.0] * len(optimizer.param_groups)
    for group in of_head.param_groups:
        optimizer.add_param_group(group)
        times.append(settings["head_rate"])
    parameters = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    in_order = [*bert.parameters(), *head.parameters()]   # gradients come about from the last
    gradients = data.GradientSum(in_order, processes.world)

    # --- loop
    tracker = data.Tracker(["loss"], device)
    advice = f"{name} seed {seed}: try a lower --lr or --precision fp32"
    since = torch.zeros(1, device=device)   # sum of losses since the last log line
    for step in range(steps):
        epoch, place = divmod(step, epoch_steps)
        if place == 0:
            batches = length_sorted_batches(train.lengths, settings["batch"], seed, epoch,
                                            settings["length_step"])
        # transformers' schedule, the authors': its warm-up begins at a rate of 0, a step late
        lr = model.lr_at(step - (step < warmup), settings["lr"], warmup, steps)
        for group, rate in zip(optimizer.param_groups, times):
            group["lr"] = rate * lr
        bert.train()
        head.train()
        data.seed_dropout(seed, step, processes.rank)

        chosen = batches[place]
        mine = chosen[processes.rank::processes.world]   # rows sorted by length: equal work
        total = torch.zeros(1, device=device)
        optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(np.array_split(mine, settings["accumulate"]), 1):
            weight = float(len(part) > 0)
            if not weight:
                part = chosen[:1]                        # computed, and does not count
            targets, *inputs = data.moved([torch.from_numpy(train.targets[part]),
                                           *train.batch(part)], device)
            with torch.autocast(device.type, autocast_type, enabled=autocast_type is not None):
                scores = scores_of(kind, bert, head, inputs, train.candidates)
            loss = weight * loss_of(kind, scores, targets) / len(chosen)
            gradients.on = number == settings["accumulate"]
            loss.backward()
            total += loss.detach()
        gradients.finish()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings["clip"])
        tracker.add(step, total, norm)
        since += total
        optimizer.step()

        if (step + 1) % log_every == 0 or step + 1 == steps:
            values = tracker.read(processes, advice, parameters)
            mean = processes.sum(since).item() / (step % log_every + 1)
            log(step + 1, steps, loss=mean, lr=optimizer.param_groups[0]["lr"],
                grad_norm=values["grad_norm"])
            since.zero_()
    gradients.close()   # the next run trains the same encoder

    # --- evaluate: the last epoch's model, never the best one's
    metrics = {"task": name, "seed": seed, "train_rows": len(train), "steps": steps,
               "split_dev": settings["split_dev"], "majority": False, "parts": {}}
    for split, content in splits.items():
        if split == "train":
            continue
        scores = predict(kind, bert, head, rows[split], 4 * settings["batch"], processes,
                         autocast_type)
        if processes.master:
            score_split(metrics, settings, split, content, rows[split], scores, folder)

    # --- last save: metrics.json at the end, it says that the rest is there
    metrics["seconds"] = round(time.time() - start, 2)
    if processes.master:
        log.file.close()
        data.write_json(folder / "metrics.json", metrics)
    return metrics


def summary(metrics):
    """One line on a finished run: the single number of each split."""
    words = []
    for split, values in metrics.items():
        if isinstance(values, dict) and "chance" in values:   # a split's
            value = single_number(split if split in TASKS else metrics["task"], values)
            shown = "not defined" if value is None else f"{value:.3f}"
            words.append(f"{split} {shown}")
    stuck = "  ! one answer for every row" if metrics["majority"] else ""
    return (f"{metrics['task']} seed {metrics['seed']}: {', '.join(words) or 'no labelled split'}; "
            f"{metrics['seconds']:.0f} s{stuck}")


def tasks_of(args):
    """The tasks asked for; bare, all that --data has rows to train on."""
    split = "dev" if args.split_dev else "train"
    names = []
    for name, task in TASKS.items():
        if split in task.files and task.path(task_folder(args.data, name), split).exists():
            names.append(name)
    if not args.task and not names:
        raise UserError(f"no task folder with a {split} file under {args.data}; {GET}")
    return args.task or names


def main(argv=None):
    # --- setup
    args = parse_args(argv)
    processes = data.Processes(args.device)
    if not processes.master:
        sys.stdout = open(os.devnull, "w")   # every process reads the files, one talks of them
    torch.set_float32_matmul_precision("high")
    model_folder, run, run_size = locate_model(args.model)
    size = args.size or run_size or "base"
    config = model.read_config(model_folder)
    data.check_world(model_folder, Path(args.data).parent)
    weights_hash = data.weights_hash(model_folder)
    bert = None

    for name in tasks_of(args):
        # --- what is there already: metrics of the same flags, weights and files
        splits = load_task(args, name)
        recipe = {**settings_for(args, name, size, config), "model_sha256": weights_hash,
                  "data_sha256": data_hash(splits)}
        todo = []
        for seed in args.seed:
            folder = Path(args.out or run) / "finetune" / name / f"seed-{seed}"
            settings = {**recipe, "seed": seed}
            if (folder / "metrics.json").exists():
                facts = data.read_json(folder / "args.json", "finetune.py", "arguments")
                done = facts["arguments"]
                # of the paths, what lies there decides; parts change dropout's draw alone
                changed = [key for key in settings.keys() - {"model", "data", "accumulate"}
                           if done.get(key) != settings[key]]
                if not changed:
                    print(f"{folder}: complete, nothing to do")
                    continue
                print(f"{folder}: {', '.join(sorted(changed))} changed, so it is made again")
            todo.append((settings, folder))
        processes.check_equal("--model", recipe)
        todo = processes.from_all(todo)[0]   # the master's folder is the only one written to
        if not todo:
            continue
        print(f"{name}: recipe of size {size}: lr {recipe['lr']:g}, "
              f"{recipe['epochs']:g} epochs, batch {recipe['batch']}", flush=True)

        # --- model, once for all tasks
        if bert is None:
            config, bert, _ = model.load_hf(model_folder)
            bert.to(processes.device)
            encoder = {key: value.clone() for key, value in bert.state_dict().items()}
            tokenizer = data.load_tokenizer(model_folder)
            words = tokenizer.get_vocab_size()
            if words > config.vocab_size:
                raise UserError(f"{model_folder}: its tokenizer has {words} entries, the model "
                                f"{config.vocab_size}")

        # --- data, once for all seeds
        rows = {}
        length = recipe["max_length"]
        for split, (examples, targets, _) in splits.items():
            if TASKS[name].kind == "span":
                train = split == "train"
                rows[split] = Windows(examples, tokenizer, length, recipe["stride"], train)
            else:
                rows[split] = Rows(examples, targets, tokenizer, length)

        # --- runs
        for settings, folder in todo:
            metrics = finetune(settings, splits, rows, config, bert, encoder, processes, folder,
                               args.log_every)
            print(summary(metrics), flush=True)

    # --- cleanup
    processes.close()


if __name__ == "__main__":
    model.command(main)
