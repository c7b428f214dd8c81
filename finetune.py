"""Stage 3: fine-tune a BERT on one task, or on several, and write its predictions (paper section 4).

    python finetune.py --model runs/student --task RTE --seed 0
    python finetune.py --model runs/student --seed 0 1 2                  # every task under --data
    python finetune.py --model FOLDER --data data/tasks --task CoLA STS-B    # any BERT folder
    python finetune.py --model FOLDER --data data/tasks --task PIQA --split-dev   # no train file
    torchrun --nproc_per_node=8 finetune.py --model runs/student --data data/tasks --task MNLI

Writes RUN/finetune/TASK/seed-N/{args.json, log.jsonl, predictions-SPLIT.tsv, metrics.json}, and for
a test split without labels the file of its leaderboard; for SQuAD {predictions, nbest,
null_odds}-SPLIT.json. MNLI's model also answers AX and diagnostics, where their folders lie beside
MNLI's. metrics.json comes last: where it is, all is, and a finished (task, seed) is passed over.
A killed one begins anew and ends the same, since all randomness is drawn from (seed, step).

Sections: readers, metrics, tasks, token ids, SQuAD, settings, one run.
Axes: B rows of the batch, C candidate texts a row (1 but for multiple choice), L tokens, H width.
"""
import argparse
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import string
import sys
import time
import unicodedata
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import model

# --------------------------------------------------------------------------------------------------
# Readers: a file and its split -> examples. UserError names file and line of what is malformed.

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
    """Yields ("FILE, line N", text) of a UTF-8 file, with or without a byte-order mark.

    Lines end at newlines alone: str.splitlines also cuts at U+2028, which stands in GLUE's texts.
    """
    if not path.exists():
        raise model.UserError(f"{path} is missing")
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    if not content:
        raise model.UserError(f"{path} is empty")
    if b"\r" in content and b"\n" not in content:
        raise model.UserError(f"{path}, line 1: lines end in carriage returns, not in newlines")
    for number, line in enumerate(content.split(b"\n"), 1):
        where = f"{path}, line {number}"
        if b"\0" in line:
            raise model.UserError(f"{where}: a NUL byte, so the file is damaged or not UTF-8")
        try:
            yield where, line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
            raise model.UserError(f"{where}: not UTF-8 ({reason})") from None


def split_cells(path, where, line):
    """Cells of a line: separated by tabs, without quoting; of a .csv as CSV, a row a line."""
    if path.suffix != ".csv":
        return line.split("\t")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise model.UserError(f"{where}: not CSV ({error})") from None


def read_table(path, wanted, header=None, skip_short=False):
    """Yields ("FILE, line N", {column: text}) of a .tsv or .csv file.

    wanted: the columns it must have; header: all columns of a file that has no line for them;
    skip_short: rows with too few cells are counted, not refused.
    """
    lines = numbered_lines(path)
    if header is None:
        header = split_cells(path, *next(lines))
    lacking = [column for column in wanted if column not in header]
    if lacking:
        columns = f"no column {', '.join(lacking)}; found {', '.join(header)}"
        raise model.UserError(f"{path}, line 1: {columns}")
    read = 0
    skipped = 0
    for where, line in lines:
        cells = split_cells(path, where, line)
        if skip_short and len(cells) < len(header):
            skipped += 1
            continue
        if len(cells) != len(header):
            expected = f"expected {len(header)}: {', '.join(header)}"
            raise model.UserError(f"{where}: {len(cells)} columns, {expected}")
        read += 1
        yield where, dict(zip(header, cells))
    if skipped:
        print(f"{path}: {skipped} rows with fewer than {len(header)} columns skipped")
    if not read:
        raise model.UserError(f"{path} has no rows")


def json_row(where, line, keys, kinds=str):
    """A line of JSON as a dict, every one of whose keys holds text, or one of `kinds`."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    for key in keys:
        value = row.get(key) if isinstance(row, dict) else None
        if not isinstance(value, kinds) or not data.is_unicode(str(value)):
            raise model.UserError(f"{where}: expected a JSON object with {', '.join(keys)}")
    return row


def glue(*texts, label="label", header=None, skip_short=False):
    """Reader of a GLUE task. texts: the one or two text columns; header: the columns of train and
    dev files that have no line for them. Only a test split may lack labels."""
    def read(path, split):
        test = split.startswith("test")
        wanted = texts if test else (*texts, label)
        examples = []
        for where, row in read_table(path, wanted, None if test else header, skip_short):
            pair = (row[texts[0]], row[texts[1]] if len(texts) == 2 else None)
            index = row.get("index", row.get("id", len(examples)))
            examples.append(Example([pair], row.get(label), str(index), where))
        return examples
    return read


def read_mrpc(path, split):
    """MRPC as train/dev/test.tsv, or Microsoft's two files; mrpc_dev_ids.tsv names the dev rows."""
    examples = glue("#1 String", "#2 String", label="Quality")(path, split)
    if path.name != "msr_paraphrase_train.txt":
        return examples
    columns = ["#1 ID", "#2 ID"]
    pairs = [(row["#1 ID"], row["#2 ID"]) for _, row in read_table(path, columns)]
    known = set(pairs)
    dev = set()
    for where, row in read_table(path.with_name("mrpc_dev_ids.tsv"), columns, header=columns):
        pair = (row["#1 ID"], row["#2 ID"])
        if pair not in known:
            raise model.UserError(f"{where}: {path.name} has no row with these two ids")
        dev.add(pair)
    return [row for row, pair in zip(examples, pairs) if (pair in dev) == (split == "dev")]


def read_diagnostics(path, split):
    """GLUE-diagnostics: a column for each coarse category holds its fine ones, joined by ";"."""
    examples = []
    for where, row in read_table(path, [*COARSE, "Premise", "Hypothesis", "Label"]):
        tags = []
        for coarse in COARSE:
            names = [name.strip() for name in row[coarse].split(";")]
            tags += [(coarse, name) for name in names if name]
        pair = (row["Premise"], row["Hypothesis"])
        examples.append(Example([pair], row["Label"], str(len(examples)), where, tags=tuple(tags)))
    return examples


def read_piqa(path, split):
    """PIQA: a line {"goal", "sol1", "sol2"} a row, and 0 or 1 a line of NAME-labels.lst."""
    examples = []
    for where, line in numbered_lines(path):
        row = json_row(where, line, ("goal", "sol1", "sol2"))
        pairs = [(row["goal"], row["sol1"]), (row["goal"], row["sol2"])]
        examples.append(Example(pairs, None, str(len(examples)), where))
    labels_path = path.with_name(f"{path.stem}-labels.lst")
    if split == "test" and not labels_path.exists():
        return examples
    labels = list(numbered_lines(labels_path))
    if len(labels) != len(examples):
        count = f"{len(labels)} lines, expected the {len(examples)} of {path}"
        raise model.UserError(f"{labels_path} has {count}")
    return [example._replace(label=label.strip(), where=where)
            for example, (where, label) in zip(examples, labels)]


def read_swag(path, split):
    """SWAG: the first text is sent1; candidate k's second is sent2 followed by ending k."""
    endings = ["ending0", "ending1", "ending2", "ending3"]
    wanted = ["sent1", "sent2", *endings]
    if split != "test":
        wanted.append("label")
    examples = []
    for where, row in read_table(path, wanted):
        pairs = [(row["sent1"], f"{row['sent2']} {row[ending]}") for ending in endings]
        index = row.get("") or str(len(examples))   # the first column has no name
        examples.append(Example(pairs, row.get("label"), index, where))
    return examples


def read_tracie(path, split):
    """TRACIE: lines "event: ... story: ...<tab>answer: ...", or the leaderboard's test.jsonl."""
    pattern = re.compile(r"event: (.+?) story: ([^\t\r]+)\tanswer: (\S+)\s*")
    examples = []
    for where, line in numbered_lines(path):
        index = len(examples)
        if path.suffix == ".jsonl":
            row = json_row(where, line, ("query", "story"))
            query, story, label = row["query"].removeprefix("event: "), row["story"], None
            index = row.get("id", index)
        elif match := pattern.fullmatch(line):
            query, story, label = match.groups()
        else:
            form = "'event: ... story: ...<tab>answer: positive|negative'"
            raise model.UserError(f"{where}: expected {form}")
        examples.append(Example([(query, story)], label, str(index), where))
    return examples


def squad_field(value, key, kind, where):
    """value[key], which must be of the given kind. Raises UserError that begins with `where`."""
    if not isinstance(value, dict) or key not in value:
        raise model.UserError(f"{where}: no {key}")
    field = value[key]
    if type(field) is not kind:   # isinstance would take True for a number
        names = f"{type(field).__name__}, expected {kind.__name__}"
        raise model.UserError(f"{where}: {key} is {names}")
    if kind is str and not data.is_unicode(field):
        raise model.UserError(f"{where}: {key} holds half of a surrogate pair")
    return field


def squad_questions(path):
    """Yields (where, context, question as a dict) of a SQuAD file."""
    articles = squad_field(data.read_json(path, "finetune.py"), "data", list, path)
    for i, article in enumerate(articles, 1):
        paragraphs = squad_field(article, "paragraphs", list, f"{path}, article {i}")
        for j, paragraph in enumerate(paragraphs, 1):
            place = f"{path}, article {i}, paragraph {j}"
            context = squad_field(paragraph, "context", str, place)
            for k, question in enumerate(squad_field(paragraph, "qas", list, place), 1):
                index = squad_field(question, "id", str, f"{place}, question {k}")
                yield f"{path}, question {index}", context, question


def read_squad(path, split):
    """SQuAD JSON -> examples: texts [(question, context)], label the first answer's text ("" for
    none), row the question's id. Contexts stay as they are: answers count their characters."""
    examples = []
    for where, context, row in squad_questions(path):
        question = squad_field(row, "question", str, where)
        answers = []
        for answer in squad_field(row, "answers", list, where):
            text = squad_field(answer, "text", str, where)
            start = squad_field(answer, "answer_start", int, where)
            if start < 0 or not text or context[start:start + len(text)] != text:
                problem = f"answer_start {start} does not point at {text!r}"
                raise model.UserError(f"{where}: {problem}")
            answers.append((text, start))
        if path.stem.endswith("v2.0"):
            impossible = squad_field(row, "is_impossible", bool, where)
        else:
            impossible = False
        if impossible == bool(answers):
            count = f"{len(answers)} answers, is_impossible {impossible}"
            raise model.UserError(f"{where}: {count}")
        label = answers[0][0] if answers else ""
        examples.append(Example([(question, context)], label, row["id"], where, tuple(answers)))
    if not examples:
        raise model.UserError(f"{path} has no questions")
    if len({example.row for example in examples}) < len(examples):
        print(f"note: {path} repeats question ids; predictions are kept by id, the last counts")
    return examples


# --------------------------------------------------------------------------------------------------
# Metrics: (labels, predictions) -> a number, nan where it is not defined. Integer classes, real
# numbers for the correlations, lists of right texts and texts for SQuAD.

PARTS = ("grounded", "ungrounded", "unfilmed")   # of a mini task's rows; see part_of


def accuracy(labels, predictions):
    """Share of equal entries."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def f1(labels, predictions):
    """F1 of class 1; 0 where nothing is labelled or predicted 1, as in scikit-learn."""
    labels = np.asarray(labels) == 1
    predictions = np.asarray(predictions) == 1
    total = labels.sum() + predictions.sum()
    return float(2 * (labels & predictions).sum() / total) if total else 0.0


def matthews(labels, predictions):
    """Matthews correlation of any number of classes (R_K); 0 where one side is constant."""
    labels = np.asarray(labels)
    predictions = np.asarray(predictions)
    classes = np.union1d(labels, predictions)
    labelled = (labels[:, None] == classes).sum(0, dtype=np.float64)         # [classes]
    predicted = (predictions[:, None] == classes).sum(0, dtype=np.float64)   # [classes]
    rows = float(len(labels))
    right = float((labels == predictions).sum())
    spread = (rows ** 2 - predicted @ predicted) * (rows ** 2 - labelled @ labelled)
    return float((right * rows - labelled @ predicted) / math.sqrt(spread)) if spread > 0 else 0.0


def correlation(function, labels, predictions):
    """scipy's correlation; nan of a constant side or of fewer than two rows."""
    if len(labels) < 2:
        return math.nan
    labels = np.asarray(labels, np.float64)
    predictions = np.asarray(predictions, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # of constant input
        return float(function(labels, predictions).statistic)


def pearson(labels, predictions):
    return correlation(scipy.stats.pearsonr, labels, predictions)


def spearman(labels, predictions):
    return correlation(scipy.stats.spearmanr, labels, predictions)


def normal_words(text):
    """Words that count in SQuAD's official script: lower case, no ASCII punctuation, no articles."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def answer_scores(golds, text):
    """(exact, F1) of one answer as in evaluate-v2.0.py: the better of each over the golds that have
    a word left, or over "" if none has. F1 of two bags of words; of an empty one, 1 if both are."""
    words = normal_words(text)
    normal_golds = [normal_words(gold) for gold in golds]
    exact = 0
    best = 0
    for gold in [gold for gold in normal_golds if gold] or [[]]:
        exact = max(exact, int(gold == words))
        common = sum((Counter(gold) & Counter(words)).values())
        if common:
            precision = common / len(words)
            recall = common / len(gold)
            best = max(best, 2 * precision * recall / (precision + recall))
        elif not gold and not words:
            best = 1
    return exact, best


def squad_exact(golds, answers):
    """Share of answers that equal one of their golds, a list of texts a question."""
    return float(np.mean([answer_scores(*pair)[0] for pair in zip(golds, answers)]))


def squad_f1(golds, answers):
    """Mean F1 of answers; golds: a list of texts a question."""
    return float(np.mean([answer_scores(*pair)[1] for pair in zip(golds, answers)]))


def most_common(labels):
    """The most common entry; of several equally common ones the smallest."""
    values, counts = np.unique(np.asarray(labels), return_counts=True)
    return values[counts.argmax()]


def single_number(name, values):
    """A task's one number in a table: the mean of its metrics (MRPC, STS-B and QQP have two; of
    SQuAD's the first, F1), or None where one of them is not defined. values: {metric: value}."""
    task = TASKS[name]
    metrics = task.metrics[:1] if task.kind == "span" else task.metrics
    wanted = [values[metric] for metric, _ in metrics]
    return None if None in wanted else sum(wanted) / len(wanted)


def score(name, labels, predictions):
    """Every metric of a task -> {metric: value or None, "n": rows, "chance": c}.

    chance: the task's single number for always giving the most common label of these very rows
    (SQuAD: for never answering); None where a constant has none, as in a correlation.
    """
    constant = "" if TASKS[name].kind == "span" else most_common(labels)
    values = {}
    chance = {}
    for metric, function in TASKS[name].metrics:
        value = function(labels, predictions)
        values[metric] = None if math.isnan(value) else value
        value = function(labels, np.full(len(labels), constant))
        chance[metric] = None if math.isnan(value) else value
    return {**values, "n": len(labels), "chance": single_number(name, chance)}


def rows_by(groups):
    """{group: its rows}, groups in order of their names. groups: for each row, a list of names."""
    rows = defaultdict(list)
    for row, names in enumerate(groups):
        for name in names:
            rows[name].append(row)
    return dict(sorted(rows.items()))


def accuracy_by(labels, predictions, groups):
    """Accuracy by group -> {group: {"accuracy", "n": rows, "chance": that of the most common label}}.
    groups: for each row, the names of all the groups that it counts in."""
    labels = np.asarray(labels)
    predictions = np.asarray(predictions)
    cells = {}
    for group, rows in rows_by(groups).items():
        constant = np.full(len(rows), most_common(labels[rows]))
        cells[group] = {"accuracy": accuracy(labels[rows], predictions[rows]), "n": len(rows),
                        "chance": accuracy(labels[rows], constant)}
    return cells


def part_of(row):
    """The part of a mini task's meta row: "ungrounded" (language alone decides), "grounded" (a
    property of a filmed noun does), "unfilmed" (of a noun that no video shows: the control)."""
    unfilmed = row["part"] == "grounded" and row["group"] == "unfilmed"
    return "unfilmed" if unfilmed else row["part"]


def score_parts(labels, predictions, meta):
    """A mini task by part, and its grounded part by property. Accuracy whatever the task's metric:
    on balanced rows its chance is 1 / classes. meta: a dict a row, with part, group, property."""
    parts = [part_of(row) for row in meta]
    cells = accuracy_by(labels, predictions, [[part] for part in parts])
    properties = [[row["property"]] if part == "grounded" else []
                  for row, part in zip(meta, parts)]
    return {**cells, "grounded_by_property": accuracy_by(labels, predictions, properties)}


def score_categories(labels, predictions, tags, meta=None):
    """GLUE-diagnostics: "overall", "Logic", ..., "Logic: Negation", ..., with jiant's R_3 ("matthews")
    beside the accuracy. tags: a row's (coarse, fine) pairs; meta: mini rows, whose parts count too."""
    groups = []
    for row, pairs in enumerate(tags):
        names = {"overall"}
        for coarse, fine in pairs:
            names |= {coarse, f"{coarse}: {fine}"}
        if meta:
            names.add(part_of(meta[row]))
        groups.append(names)
    cells = accuracy_by(labels, predictions, groups)
    for group, rows in rows_by(groups).items():
        cells[group]["matthews"] = matthews(np.asarray(labels)[rows], np.asarray(predictions)[rows])
    return cells


def score_tracie(labels, predictions, texts):
    """TRACIE's other scores: accuracy on questions of starts and of ends (None where none is
    asked), share of stories all of whose questions are right, and counts. texts: (query, story)."""
    kinds = []
    for query, _ in texts:
        start = "starts before" in query or "starts after" in query
        kinds.append(["start" if start else "end"])
    cells = {"start": {"accuracy": None, "n": 0}, "end": {"accuracy": None, "n": 0}}
    cells.update(accuracy_by(labels, predictions, kinds))
    stories = accuracy_by(labels, predictions, [[story] for _, story in texts])
    whole = [cell["accuracy"] == 1 for cell in stories.values()]
    return {"start": cells["start"]["accuracy"], "end": cells["end"]["accuracy"],
            "story": float(np.mean(whole)), "starts": cells["start"]["n"],
            "ends": cells["end"]["n"], "stories": len(stories)}


# --------------------------------------------------------------------------------------------------
# Tasks


@dataclasses.dataclass
class Task:
    kind: str            # classification, regression, choice (softmax over candidates), span
    labels: tuple        # as files write them, in the order of the outputs; a regression's range
    reader: Callable     # (path, split) -> [Example]
    metrics: list        # [(name, function)], the main one first
    files: dict          # split -> names its file may have
    rows: dict           # split -> rows of its published file, to notice a wrong one; None: unknown
    folders: tuple = ()  # under --data, besides the task's own name and that in lower case
    answered_by: str = None   # the task whose model answers it; nothing is trained on it

    def path(self, folder, split):
        """The file of a split: the first of its names that is there, else the first of all."""
        paths = [folder / name for name in self.files[split]]
        existing = [path for path in paths if path.exists()]
        return (existing or paths)[0]

    def read(self, folder, split):
        return self.reader(self.path(folder, split), split)


def files(train, dev, test):
    """{split: names its file may have}, each given as one text, separated by blanks."""
    return {"train": train.split(), "dev": dev.split(), "test": test.split()}


def rows(train, dev, test):
    return {"train": train, "dev": dev, "test": test}


def tracie_files(train):
    """Both public splits share one test file, which may lie beside either's folder."""
    test = "tracie_test.txt ../iid/tracie_test.txt test.jsonl ../test.jsonl"
    return files(train, "tracie_dev.txt", test)


ENTAILMENT = ("entailment", "not_entailment")
NLI = ("contradiction", "entailment", "neutral")
TIME = ("negative", "positive")
ACCURACY = [("accuracy", accuracy)]
ACCURACY_F1 = [("accuracy", accuracy), ("f1", f1)]
MATTHEWS = [("matthews", matthews)]
CORRELATIONS = [("pearson", pearson), ("spearman", spearman)]
SQUAD = [("f1", squad_f1), ("exact", squad_exact)]

TSV = files("train.tsv", "dev.tsv", "test.tsv")
MRPC_FILES = files("train.tsv msr_paraphrase_train.txt", "dev.tsv msr_paraphrase_train.txt",
                   "test.tsv msr_paraphrase_test.txt")
MNLI_FILES = {"train": ["train.tsv"],
              "dev": ["dev_matched.tsv"], "dev-mismatched": ["dev_mismatched.tsv"],
              "test": ["test_matched.tsv"], "test-mismatched": ["test_mismatched.tsv"]}
MNLI_ROWS = {"train": 392702, "dev": 9815, "dev-mismatched": 9832,
             "test": 9796, "test-mismatched": 9847}
SQUAD1_FILES = files("train-v1.1.json", "dev-v1.1.json", "test-v1.1.json")
SQUAD2_FILES = files("train-v2.0.json", "dev-v2.0.json", "test-v2.0.json")
PRIOR_FILES = tracie_files("tracie_train_uniform_prior.txt")

read_cola = glue("sentence", header=["source", "label", "star", "sentence"])
read_pair = glue("sentence1", "sentence2")
read_sts = glue("sentence1", "sentence2", label="score")
read_qqp = glue("question1", "question2", label="is_duplicate", skip_short=True)
read_mnli = glue("sentence1", "sentence2", label="gold_label")

TASKS = {
    "CoLA": Task("classification", ("0", "1"), read_cola, MATTHEWS, TSV, rows(8551, 1043, 1063)),
    "SST-2": Task("classification", ("0", "1"), glue("sentence"), ACCURACY,
                  TSV, rows(67349, 872, 1821)),
    "MRPC": Task("classification", ("0", "1"), read_mrpc, ACCURACY_F1,
                 MRPC_FILES, rows(3668, 408, 1725)),
    "STS-B": Task("regression", (0.0, 5.0), read_sts, CORRELATIONS, TSV, rows(5749, 1500, 1379)),
    "QQP": Task("classification", ("0", "1"), read_qqp, ACCURACY_F1,
                TSV, rows(363846, 40430, 390965)),
    "MNLI": Task("classification", NLI, read_mnli, ACCURACY, MNLI_FILES, MNLI_ROWS),
    # one set of pairs, without labels for GLUE's server, and with labels and categories
    "AX": Task("classification", NLI, read_pair, ACCURACY, {"test": ["AX.tsv"]}, {"test": 1104},
               answered_by="MNLI"),
    "diagnostics": Task("classification", NLI, read_diagnostics, MATTHEWS,
                        {"test": ["diagnostic-full.tsv"]}, {"test": 1104}, answered_by="MNLI"),
    "QNLI": Task("classification", ENTAILMENT, glue("question", "sentence"), ACCURACY,
                 TSV, rows(104743, 5463, 5463)),
    "RTE": Task("classification", ENTAILMENT, read_pair, ACCURACY, TSV, rows(2490, 277, 3000)),
    "WNLI": Task("classification", ("0", "1"), read_pair, ACCURACY, TSV, rows(635, 71, 146)),
    "PIQA": Task("choice", ("0", "1"), read_piqa, ACCURACY,
                 files("train.jsonl", "valid.jsonl", "tests.jsonl"), rows(16113, 1838, 3084)),
    "SWAG": Task("choice", ("0", "1", "2", "3"), read_swag, ACCURACY,
                 files("train.csv", "val.csv", "test.csv"), rows(73546, 20006, 20005)),
    "SQuAD1": Task("span", (), read_squad, SQUAD, SQUAD1_FILES, rows(87599, 10570, None),
                   folders=("squad", "SQuAD")),
    "SQuAD2": Task("span", (), read_squad, SQUAD, SQUAD2_FILES, rows(130319, 11873, None),
                   folders=("squad", "SQuAD")),
    # pairs of query and story; published without a dev split. The plain name is the mini world's.
    "TRACIE": Task("classification", TIME, read_tracie, ACCURACY,
                   tracie_files("tracie_train.txt"), rows(None, None, None)),
    "TRACIE-iid": Task("classification", TIME, read_tracie, ACCURACY,
                       tracie_files("tracie_train.txt"), rows(1174, None, 4248),
                       folders=("TRACIE/iid", "tracie/iid", "iid")),
    "TRACIE-uniform-prior": Task("classification", TIME, read_tracie, ACCURACY,
                                 PRIOR_FILES, rows(860, None, 4248),
                                 folders=("TRACIE/uniform-prior", "tracie/uniform-prior",
                                          "uniform-prior")),
}
GET = "`make data/tasks/RTE` and its like fetch published files, `make data` makes the mini world's"


class Split(NamedTuple):
    examples: list
    targets: object      # what targets_of gives; None for a test split without labels
    meta: list | None    # a mini task's rows: label, part, noun, its group and property

    def cut(self, start, stop):
        return Split(*[None if field is None else field[start:stop] for field in self])


def task_folder(root, name):
    """The first folder under root that may hold the task, or None."""
    places = [Path(root) / place for place in (name, name.lower(), *TASKS[name].folders)]
    return next((place for place in places if place.is_dir()), None)


def also_answered(root, name):
    """[(task, folder)] that a model of task `name` answers besides its own."""
    others = [other for other, task in TASKS.items() if task.answered_by == name]
    folders = [(other, task_folder(root, other)) for other in others]
    return [(other, folder) for other, folder in folders if folder is not None]


def target_of(task, example):
    """Class number, real number, or SQuAD's list of right texts."""
    if task.kind == "span":
        return [text for text, _ in example.answers]
    if task.kind == "regression":
        low, high = task.labels
        expected = f"{low} to {high}"
        try:
            if low <= float(example.label) <= high:   # nan is not
                return float(example.label)
        except ValueError:
            pass
    else:
        expected = ", ".join(task.labels)
        if example.label in task.labels:
            return task.labels.index(example.label)
    problem = f"label {example.label!r}, expected {expected}"
    raise model.UserError(f"{example.where}: {problem}")


def targets_of(name, examples):
    """Targets of examples: int64 or float32 [rows], SQuAD's a list of lists; None without labels."""
    task = TASKS[name]
    if any(example.label is None for example in examples):
        return None
    targets = [target_of(task, example) for example in examples]
    if task.kind == "span":
        return targets
    return np.array(targets, dtype=np.float32 if task.kind == "regression" else np.int64)


def read_split(name, folder, split):
    """One split. A mini task's SPLIT.meta.jsonl holds what each row needs to be known, and the
    hidden test labels. Raises UserError where it disagrees with the task file."""
    task = TASKS[name]
    examples = task.read(folder, split)
    path = folder / f"{split}.meta.jsonl"
    if not path.exists():
        published = task.rows[split]
        if published not in (None, len(examples)):
            count = f"{len(examples):,} rows, the published file {published:,}"
            print(f"note: {name} {split} has {count}")
        return Split(examples, targets_of(name, examples), None)
    lines = list(numbered_lines(path))
    if len(lines) != len(examples):
        count = f"{len(lines)} rows, expected {len(examples)}, as the {split} file beside it"
        raise model.UserError(f"{path} has {count}")
    meta = [json_row(where, line, ("label",), (str, int)) for where, line in lines]
    for (where, _), row, example in zip(lines, meta, examples):
        if example.label not in (None, str(row["label"])):
            expected = f"expected {example.label!r} as in {example.where}"
            raise model.UserError(f"{where}: label {row['label']!r}, {expected}")
    examples = [example._replace(label=str(row["label"])) for example, row in zip(examples, meta)]
    return Split(examples, targets_of(name, examples), meta)


def load_task(args, name):
    """All splits of a task that have a file -> {split: Split}; says which have none."""
    folder = task_folder(args.data, name)
    if folder is None:
        raise model.UserError(f"no folder {name} under {args.data}; {GET}")
    splits = {}
    for split in TASKS[name].files:
        path = TASKS[name].path(folder, split)
        if split == "train" and args.split_dev:
            continue
        if path.exists():
            splits[split] = read_split(name, folder, split)
        elif split == "train":
            raise model.UserError(f"{path} is missing; {GET}, and --split-dev does without")
        elif split in ("dev", "test"):
            print(f"{name}: no {split} split ({path} is missing), so nothing is said about it")
    for other, place in also_answered(args.data, name):
        path = TASKS[other].path(place, "test")
        if path.exists():
            splits[other] = read_split(other, place, "test")
        else:
            print(f"{name}: {path} is missing, so {other} is not answered")
    if args.split_dev:
        if "dev" not in splits:
            raise model.UserError(f"--split-dev needs the dev file of {name} in {folder}; {GET}")
        dev = splits["dev"]
        half = len(dev.examples) // 2
        splits = {**splits, "train": dev.cut(0, half), "dev": dev.cut(half, None)}
    if splits["train"].targets is None or not splits["train"].examples:
        raise model.UserError(f"{folder}: no labelled rows to train on")
    splits["train"] = splits["train"].cut(0, args.train_limit)
    return splits


# --------------------------------------------------------------------------------------------------
# Token ids: made once a task, shared by its seeds


def encoded(tokenizer, texts, **flags):
    """Yields the encoding of each text or pair, made a thousand at a time: one is far larger than
    its ids."""
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, 1024)):
        yield from tokenizer.encode_batch(chunk, **flags)


class Rows:
    """A split as token ids, [CLS] first [SEP] or [CLS] first [SEP] second [SEP].

    ids: those of all texts, end to end; text t = row x C + candidate is ids[starts[t]:starts[t+1]],
    its second segment begins seconds[t] further on. lengths: [rows], of the longest candidate.
    """

    def __init__(self, examples, targets, tokenizer, max_length):
        texts = []
        for example in examples:
            for first, second in example.texts:
                texts.append(first if second is None else (first, second))
        # the longer of two texts loses its end until they are equal, then both do
        tokenizer.enable_truncation(max_length)
        pieces = []
        seconds = []
        for encoding in encoded(tokenizer, texts):
            pieces.append(np.array(encoding.ids, dtype=np.int32))
            seconds.append(encoding.type_ids.count(0))
        tokenizer.no_truncation()
        self.targets = targets
        self.keep(pieces, seconds, len(examples[0].texts), data.special_ids(tokenizer)["pad"])

    def keep(self, pieces, seconds, candidates, pad):
        self.candidates = candidates
        self.pad = pad
        self.ids = np.concatenate(pieces)
        self.seconds = np.array(seconds)
        lengths = np.array([len(piece) for piece in pieces])
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.lengths = lengths.reshape(-1, candidates).max(1)

    def __len__(self):
        return len(self.lengths)

    def batch(self, indices):
        """Rows -> tokens int [B*C, L], mask bool [B*C, L] (True = real token), segments int
        [B*C, L], padded to the longest of them only."""
        candidate = np.arange(self.candidates)
        texts = (np.asarray(indices)[:, None] * self.candidates + candidate).ravel()   # [B*C]
        lengths = self.starts[texts + 1] - self.starts[texts]
        place = np.arange(lengths.max())[None]                                         # [1, L]
        mask = place < lengths[:, None]                                                # [B*C, L]
        tokens = np.full(mask.shape, self.pad, dtype=np.int64)
        pieces = [self.ids[self.starts[text]:self.starts[text + 1]] for text in texts]
        tokens[mask] = np.concatenate(pieces)
        segments = mask & (place >= self.seconds[texts][:, None])
        return [torch.from_numpy(tokens), torch.from_numpy(mask),
                torch.from_numpy(segments.astype(np.int64))]


def length_sorted_batches(lengths, batch, seed, epoch, step=8):
    """One epoch as a list of index arrays: each row exactly once, rows of a batch alike in length.

    Random pools of 50 batches are sorted by length in steps of `step` tokens, then cut into equal
    parts of at most `batch` rows; the batches are shuffled.
    """
    generator = data.numpy_generator(seed, "order", epoch)
    order = generator.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), 50 * batch):
        pool = order[start:start + 50 * batch]
        steps = -(-lengths[pool] // step)
        pool = pool[np.argsort(steps, kind="stable")]
        batches += np.array_split(pool, -(-len(pool) // batch))
    return [batches[index] for index in generator.permutation(len(batches))]


# --------------------------------------------------------------------------------------------------
# SQuAD: windows and answers, by the rules and numbers of BERT's own script (transformers' run_squad)

QUESTION_PIECES = 64     # a question loses what is beyond
N_BEST = 20              # starts, ends and texts kept
ANSWER_PIECES = 30       # longest answer


class Document(NamedTuple):
    """A context's word pieces."""
    ids: np.ndarray       # [pieces]
    offsets: np.ndarray   # [pieces, 2], characters of the context: begin and end


class Windows(Rows):
    """Questions as token ids, [CLS] question [SEP] window of the context [SEP], a row a window.

    A context longer than a window is read in several, each beginning `stride` pieces after the one
    before. targets: int [windows, 2], positions of the answer's first and last piece; (0, 0), which
    is [CLS], where the window lacks any of it or there is no answer. train: a question whose answer
    has no word piece gets no window and is listed. Raises UserError if none is left.
    """

    def __init__(self, examples, tokenizer, max_length, stride, train):
        self.examples = examples
        self.documents = {}
        contexts = list(dict.fromkeys(example.texts[0][1] for example in examples))
        for context, code in zip(contexts, encoded(tokenizer, contexts, add_special_tokens=False)):
            offsets = np.array(code.offsets, dtype=np.int32).reshape(-1, 2)
            self.documents[context] = Document(np.array(code.ids, dtype=np.int32), offsets)
        questions = [example.texts[0][0] for example in examples]
        questions = encoded(tokenizer, questions, add_special_tokens=False)
        special = data.special_ids(tokenizer)
        # in short windows a question keeps less, so that no piece of the context is stepped over
        asked = min(QUESTION_PIECES, max_length - 3 - stride)
        texts = []
        places = []
        skipped = []
        for index, (example, question) in enumerate(zip(examples, questions)):
            document = self.documents[example.texts[0][1]]
            span = None
            if train and example.answers:
                span = answer_span(document, *example.answers[0])
                if span is None:
                    skipped.append(example.row)
                    continue
            head = [special["cls"], *question.ids[:asked], special["sep"]]
            room = max_length - len(head) - 1
            for first in range(0, max(1, len(document.ids) - room + stride), stride):
                window = document.ids[first:first + room]
                target = (0, 0)
                if span is not None and first <= span[0] and span[1] < first + len(window):
                    target = (span[0] - first + len(head), span[1] - first + len(head))
                texts.append(np.array([*head, *window, special["sep"]], dtype=np.int32))
                places.append((index, first, len(head), *target))
        if skipped:
            few = ", ".join(skipped[:5])
            print(f"note: {len(skipped)} questions left out, their answers have no piece: {few}")
        if not texts:
            path = examples[0].where.rpartition(", ")[0]
            raise model.UserError(f"{path}: no question is left to train on")
        # question [windows]; first [windows]: the window's first piece in its document
        self.question, self.first, heads, *targets = np.array(places, dtype=np.int64).T
        self.targets = np.stack(targets, 1)   # [windows, 2]
        self.keep(texts, heads, 1, special["pad"])


def answer_span(document, text, start):
    """First and last of the pieces that hold a character of an answer; None if none does."""
    begin, end = document.offsets.T
    pieces = np.flatnonzero((end > start) & (begin < start + len(text)))
    return (pieces[0], pieces[-1]) if len(pieces) else None


def span_text(context, document, first, last):
    """The context's own text from a first to a last piece, with accents that follow its end."""
    start = document.offsets[first, 0]
    stop = document.offsets[last, 1]
    while stop < len(context) and unicodedata.combining(context[stop]):
        stop += 1
    return context[start:stop]


def max_context(first, length):
    """Which of a question's windows shows a piece with the most context, min(left, right) + 0.01
    length, the earliest at a tie. first, length: int [windows], in pieces of the document.
    Returns bool [windows, pieces]."""
    piece = np.arange((first + length).max())
    left = piece - first[:, None]                       # [windows, pieces]
    right = (first + length - 1)[:, None] - piece       # [windows, pieces]
    inside = (left >= 0) & (right >= 0)
    context = np.where(inside, np.minimum(left, right) + 0.01 * length[:, None], -1.0)
    widest = context.argmax(0) == np.arange(len(first))[:, None]
    return widest & inside


def best_spans(windows, scores, rows):
    """One question's candidates, best first: [(start score, end score, first piece, last piece)].

    rows: its windows. The 20 best starts with the 20 best ends of each, both in the document, the
    start where its context is the widest, at most 30 pieces. scores: [windows, L, 2].
    """
    first = windows.first[rows]
    head = windows.seconds[rows]
    count = windows.lengths[rows] - head - 1   # pieces of the document in each window
    widest = max_context(first, count)
    spans = []
    for index, row in enumerate(rows):
        own = scores[row, :windows.lengths[row]].astype(np.float64)         # [L, 2], no padding
        order = np.argsort(-own, axis=0, kind="stable")[:N_BEST] - head[index]
        inside = (order >= 0) & (order < count[index])
        starts = order[inside[:, 0], 0]
        starts = starts[widest[index, first[index] + starts]]
        ends = order[inside[:, 1], 1]
        size = ends[None] - starts[:, None] + 1                             # [starts, ends]
        for i, j in np.argwhere((size >= 1) & (size <= ANSWER_PIECES)):
            start_score = own[head[index] + starts[i], 0]
            end_score = own[head[index] + ends[j], 1]
            spans.append((start_score, end_score, first[index] + starts[i], first[index] + ends[j]))
    return sorted(spans, key=lambda span: -(span[0] + span[1]))


def best_texts(windows, scores, index, null):
    """One question's answers, best first: {text: (start score, end score)}, at most 20 texts.

    null: (start score, end score) of no answer, whose text is ""; if need be it is the 21st. None
    in v1.1, where "" is there only for a question that has no valid span.
    """
    context = windows.examples[index].texts[0][1]
    rows = np.flatnonzero(windows.question == index)
    spans = best_spans(windows, scores, rows)
    best = {}
    for start_score, end_score, first, last in spans:
        if null is not None and "" not in best and start_score + end_score < sum(null):
            best[""] = null
        if len(best) >= N_BEST:
            break
        text = span_text(context, windows.documents[context], first, last)
        best.setdefault(text, (start_score, end_score))
    if null is not None:
        best.setdefault("", null)
    return best or {"": (0.0, 0.0)}


def span_answers(windows, scores, null_threshold=None):
    """Scores [windows, L, 2] -> (answers, n-best lists, null odds or None), an entry a question.

    null_threshold: SQuAD v2.0. The answer is "" iff odds > threshold, odds = the smallest start +
    end score of [CLS] over the windows - the best score of a text. n-best: dicts of text,
    probability (a softmax over the list), start_logit, end_logit.
    """
    answers = []
    lists = []
    odds = []
    null = None
    for index in tqdm(range(len(windows.examples)), desc="answers", leave=False, disable=None):
        if null_threshold is not None:
            nulls = scores[windows.question == index, 0].astype(np.float64)   # [windows, 2]
            null = tuple(nulls[nulls.sum(1).argmin()].tolist())
        best = best_texts(windows, scores, index, null)
        totals = torch.tensor([sum(pair) for pair in best.values()], dtype=torch.float64)
        entries = []
        for (text, pair), probability in zip(best.items(), totals.softmax(0).tolist()):
            entries.append({"text": text, "probability": probability,
                            "start_logit": float(pair[0]), "end_logit": float(pair[1])})
        answer = next((text for text in best if text), "")
        if null_threshold is not None:
            odds.append(float(sum(null) - sum(best[answer])) if answer else sum(null))
            if odds[-1] > null_threshold:
                answer = ""
        answers.append(answer)
        lists.append(entries)
    return answers, lists, None if null_threshold is None else odds


def answer_places(examples, targets, answers):
    """Answers as numbers, for accuracy and chance by part: int [questions] twice. A right one is
    the number of its first word in the context, -1 for no answer; a given one is the same if it is
    right, else -2. So chance is what naming one place every time would score."""
    labels = []
    given = []
    for example, golds, answer in zip(examples, targets, answers):
        place = -1
        if example.answers:
            place = len(example.texts[0][1][:example.answers[0][1]].split())
        labels.append(place)
        given.append(place if answer_scores(golds, answer)[0] else -2)
    return np.array(labels), np.array(given)


# --------------------------------------------------------------------------------------------------
# Settings

DEFAULTS = {
    "mini": {
        # ours, chosen on validation nouns: small batches and dropout leave the balanced tasks at the
        # saddle of their exclusive or, and so does BERT's 0.02 for the head at this width
        "lr": 1e-3, "epochs": 40.0, "batch": 256, "dropout": 0.0, "head_std": 0.1,
        # ours: no mini row is longer, and most are below 32
        "max_length": 64, "length_step": 32,
        # ours: at the full rate, rows that cannot yet be answered draw all scores together
        "warmup": 0.4,
        "weight_decay": 0.0, "eps": 1e-6,                # authors' script
        "precision": "auto"},                            # ours
    "base": {
        "lr": 1e-4, "epochs": 3.0, "batch": 32,          # authors' script (run_glue_at_epoch.bash)
        "max_length": 126, "warmup": 0.1,                # authors' script
        "length_step": 8,                                # ours; see length_sorted_batches
        "weight_decay": 0.0, "eps": 1e-6,                # authors' script
        "dropout": 0.1, "head_std": 0.02,                # BERT's own
        "precision": "auto"},                            # ours
}
DEFAULTS["small"] = DEFAULTS["base"]                     # authors' script: one recipe for all sizes
BY_TASK = {   # at paper sizes; all else, TRACIE too, has GLUE's
    # authors' deleted run_swag.bash: batch 16 x 2 accumulated, no warm-up
    "SWAG": {"lr": 5e-5, "epochs": 3.0, "batch": 32, "max_length": 80, "warmup": 0.0},
    # authors' deleted run_piqa_at_epoch.bash: as GLUE, but the epochs are an argument
    "PIQA": {"lr": 1e-4, "epochs": 3.0, "batch": 32, "max_length": 126, "warmup": 0.1},
    # authors' deleted run_squad_v1.bash: no warm-up
    "SQuAD1": {"lr": 3e-5, "epochs": 2.0, "batch": 12, "max_length": 384, "stride": 128,
               "warmup": 0.0, "eps": 1e-8},
    # authors' deleted run_squad_v2.bash, which forgets that questions may lack an answer
    "SQuAD2": {"lr": 5e-5, "epochs": 2.0, "batch": 12, "max_length": 384, "stride": 128,
               "warmup": 0.0, "eps": 1e-8, "null_threshold": 0.0},
}
MINI_BY_TASK = {"SQuAD1": {"stride": 16}, "SQuAD2": {"stride": 16, "null_threshold": 0.0}}   # ours


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="runs/student", help="run folder, or BERT folder in Hugging Face form")
    add("--task", nargs="+", metavar="TASK",
        help=f"of: {', '.join(TASKS)} (default: all under --data)")
    add("--seed", nargs="+", type=int, default=[0])
    add("--data", default="data/mini/tasks", help="folder that holds TASK/ folders")
    add("--out", help="folder that gets finetune/ (default: the run; runs/NAME for a bare model)")
    add("--size", choices=list(DEFAULTS),
        help="whose recipe is taken (default: the size of the run that made the model, else base)")
    add("--lr", type=float)
    add("--epochs", type=float)
    add("--batch", type=int, help="global batch, in rows")
    add("--max-length", type=int, help="tokens a text, special ones included; SQuAD: a window")
    add("--stride", type=int, help="SQuAD: word pieces from one window to the next")
    add("--null-threshold", type=float,
        help="SQuAD2: no answer where [CLS] scores this much above the best text "
             "(best_f1_thresh of `evaluate.py squad`)")
    add("--length-step", type=int, help="rows less apart in length, in tokens, may share a batch")
    add("--warmup", type=float, help="share of the steps")
    add("--weight-decay", type=float)
    add("--eps", type=float, help="AdamW's epsilon")
    add("--dropout", type=float)
    add("--head-std", type=float, help="deviation of the task head's first weights")
    add("--clip", type=float, default=1.0, help="gradient norm limit")
    add("--train-limit", type=int, help="train on this many rows, the first of the file")
    add("--split-dev", action="store_true",
        help="train on the first half of the dev file, score on the second: for smoke runs where "
             "the training file is not at hand")
    add("--precision", choices=["auto", "bf16", "fp32"])
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--log-every", type=int, default=100)
    args = parser.parse_args(argv)
    for name in args.task or []:
        if name not in TASKS:
            raise model.UserError(f"unknown task {name}; known: {', '.join(TASKS)}")
        other = TASKS[name].answered_by
        if other:
            raise model.UserError(f"nothing is trained on {name}: --task {other} answers it, "
                                  f"where its folder lies in --data")
    return args


def locate_model(path):
    """--model -> (folder with config.json, folder that gets finetune/, size of the run or None)."""
    path = Path(path)
    folder = path / "model" if (path / "model" / "config.json").exists() else path
    if not (folder / "config.json").exists():
        raise model.UserError(
            f"no model in {path}: neither model/config.json (a finished run) nor config.json (a "
            f"BERT in Hugging Face form); `make teacher distill` makes runs/teacher, runs/student")
    run = folder.parent
    if folder.name == "model" and (run / "args.json").exists():
        size = data.read_json(run / "args.json", "distill.py")["arguments"].get("size")
        return folder, run, size
    return folder, path if folder != path else Path("runs") / path.resolve().name, None


def settings_for(args, name, size, config):
    """Settings of one task: the size's column, the task's own, and the flags over both."""
    own = MINI_BY_TASK if size == "mini" else BY_TASK
    settings = {**DEFAULTS[size], **own.get(name, {})}
    for key in settings:
        if getattr(args, key) is not None:
            settings[key] = getattr(args, key)
    settings["max_length"] = min(settings["max_length"], config.max_position_embeddings)
    least = {"max_length": 5, "batch": 1, "length_step": 1, "stride": 1}
    for key in least.keys() & settings.keys():
        if settings[key] < least[key]:
            flag = key.replace("_", "-")
            raise model.UserError(f"--{flag} {settings[key]} of {name} is below {least[key]}")
    if settings["epochs"] <= 0:
        raise model.UserError(f"--epochs {settings['epochs']} leave nothing to train on")
    if settings.get("stride", 0) > settings["max_length"] - 4:
        raise model.UserError(f"stride {settings['stride']} leaves no room for a question in "
                              f"windows of {settings['max_length']} (--max-length)")
    return {"model": str(args.model), "data": str(args.data), "task": name, "size": size,
            **settings, "clip": args.clip, "train_limit": args.train_limit,
            "split_dev": args.split_dev}


# --------------------------------------------------------------------------------------------------
# One run: a task and a seed


def make_head(kind, classes, config):
    """A task head whose weights the global seed decides: on [CLS], or for SQuAD on every token,
    start and end scores as in BertForQuestionAnswering."""
    if kind != "span":
        return model.SequenceHead(config, classes if kind == "classification" else 1)
    head = torch.nn.Linear(config.hidden_size, 2)
    model.init_weights(head, config.initializer_range)
    return head


def scores_of(kind, bert, head, batch, candidates):
    """Class scores [B, classes], values [B] (regression), candidate scores [B, C] (choice), or start
    and end scores [B, L, 2] (span, -inf at padding), in fp32."""
    out = head(bert(*batch)).float()   # [B*C, outputs]; span: [B, L, 2]
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
    """scores_of all rows, as an array on every process; each computes its share of them."""
    bert.eval()
    head.eval()
    device = processes.device
    scores = None
    order = np.argsort(rows.lengths, kind="stable")
    for start in range(0, len(order), batch):
        chosen = order[start:start + batch]
        mine = chosen[processes.rank::processes.world]
        if len(mine) == 0 and scores is not None:
            continue
        inputs = rows.batch(mine if len(mine) else chosen)
        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            inputs = [tensor.to(device) for tensor in inputs]
            out = scores_of(kind, bert, head, inputs, rows.candidates)
        if kind == "span":
            padding = int(rows.lengths.max()) - out.shape[1]
            out = F.pad(out, (0, 0, 0, padding), value=-torch.inf)
        if scores is None:
            scores = torch.zeros(len(rows), *out.shape[1:], device=device)
        if len(mine):
            scores[torch.from_numpy(mine).to(device)] = out
    return processes.sum(scores).cpu().numpy()


def write_squad(folder, split, examples, answers, lists, odds):
    """predictions-SPLIT.json, as its server takes it, nbest-SPLIT.json, null_odds-SPLIT.json (v2.0),
    each by question id."""
    files = {"predictions": answers, "nbest": lists, "null_odds": odds}
    for name, values in files.items():
        if values is not None:
            by_id = {example.row: value for example, value in zip(examples, values)}
            data.write_json(folder / f"{name}-{split}.json", by_id)


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
    prediction); predictions.lst (PIQA: 0 or 1 a line); SWAG.csv (index, pred); TRACIE.jsonl (id,
    label), whose id is test.jsonl's own, or the row of tracie_test.txt, not the server's."""
    task = TASKS[name]
    ids = [example.row for example in examples]
    if task.kind == "regression":   # the server refuses values out of the range
        answers = [f"{answer:.3f}" for answer in np.clip(answers, *task.labels)]
    else:
        answers = [task.labels[answer] for answer in answers]
    if name == "PIQA":
        file = "predictions.lst"
        lines = answers
    elif name == "SWAG":
        file = "SWAG.csv"
        lines = [",pred", *[f"{row},{answer}" for row, answer in zip(ids, answers)]]
    elif name.startswith("TRACIE"):
        file = "TRACIE.jsonl"
        labels = {"positive": "entailment", "negative": "contradiction"}
        lines = [json.dumps({"id": row, "label": labels[answer]})
                 for row, answer in zip(ids, answers)]
    else:
        file = {"MNLI test": "MNLI-m", "MNLI test-mismatched": "MNLI-mm"}.get(f"{name} {split}", name)
        file += ".tsv"
        lines = ["index\tprediction", *[f"{row}\t{answer}" for row, answer in zip(ids, answers)]]
    data.write_text(folder / file, "\n".join(lines) + "\n")


def score_split(metrics, settings, split, examples, targets, meta, rows, scores, folder):
    """Turns a split's scores into answers, writes them (folder: None where another process does)
    and adds what they are worth to metrics."""
    name = split if split in TASKS else settings["task"]   # AX and diagnostics are their own tasks
    kind = TASKS[name].kind
    if kind == "span":
        answers, lists, odds = span_answers(rows, scores, settings.get("null_threshold"))
    else:
        answers = scores if kind == "regression" else scores.argmax(-1)
    if folder is not None and kind == "span":
        write_squad(folder, split, examples, answers, lists, odds)
    elif folder is not None:
        write_predictions(folder, name, split, examples, scores, answers)
        if targets is None or (split.startswith("test") and not meta):
            write_submission(folder, name, split, examples, answers)
    if targets is None:
        return
    metrics[split] = score(name, targets, answers)
    if name.startswith("TRACIE"):
        texts = [example.texts[0] for example in examples]
        metrics[split].update(score_tracie(targets, answers, texts))
    if name == "diagnostics":
        tags = [example.tags for example in examples]
        metrics["categories"] = score_categories(targets, answers, tags, meta)
    if meta and kind == "span":
        metrics["parts"][split] = score_parts(*answer_places(examples, targets, answers), meta)
    elif meta:
        metrics["parts"][split] = score_parts(targets, answers, meta)
    if name == settings["task"] and len(answers) > 1:
        # stuck at a constant; 0.01 of STS-B's five points is one, too
        same = np.ptp(answers) <= 0.01 if kind == "regression" else len(set(answers)) == 1
        metrics["majority"] |= bool(same)


def check_finite(name, value, settings, step):
    if not math.isfinite(value):
        raise model.UserError(f"{name} is {value} at step {step} of {settings['task']} seed "
                              f"{settings['seed']}; try a lower --lr than {settings['lr']} or "
                              f"--precision fp32")


def finetune(settings, splits, rows, config, bert, encoder, processes, folder, log_every=100):
    """Trains a fresh head and the encoder from its loaded weights, writes the folder.

    splits: {split: Split}; rows: {split: Rows}; config, bert: the loaded model; encoder: its state
    dict as loaded. Returns what metrics.json holds. Raises UserError at a non-finite loss.
    """
    # --- setup
    start = time.time()
    name, seed, batch = settings["task"], settings["seed"], settings["batch"]
    kind = TASKS[name].kind
    device = processes.device
    precision, autocast_type = data.settle_precision(settings["precision"], device)
    if processes.master:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(missing_ok=True)   # first: it vouches for the rest
        data.write_json(folder / "args.json", {
            "arguments": settings, "settled precision": precision, "processes": processes.world,
            **data.provenance(device)})
    log = data.Log(folder / "log.jsonl", processes.master, 0)

    # --- data
    train = rows["train"]
    epoch_steps = -(-len(train) // batch)
    steps = max(1, round(settings["epochs"] * epoch_steps))
    warmup = int(settings["warmup"] * steps)

    # --- model: the encoder as it was loaded, and a head that only the seed decides
    torch.manual_seed(seed)
    bert.load_state_dict(encoder)
    model.set_dropout(config, bert, settings["dropout"])
    head_config = dataclasses.replace(config, initializer_range=settings["head_std"])
    head = make_head(kind, len(TASKS[name].labels), head_config).to(device)

    # --- optimizer
    optimizer = model.optimizer_for([bert, head], settings["lr"], settings["weight_decay"],
                                    settings["eps"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    # --- loop
    losses = []
    for step in tqdm(range(steps), desc=f"{name} seed {seed}", leave=False,
                     disable=None if processes.master else True):   # None: on a terminal only
        epoch, place = divmod(step, epoch_steps)
        if place == 0:
            batches = length_sorted_batches(train.lengths, batch, seed, epoch,
                                            settings["length_step"])
        bert.train()
        head.train()
        for group in optimizer.param_groups:
            # transformers' schedule, the authors': its warm-up begins at a rate of 0, a step late
            group["lr"] = model.lr_at(step - (step < warmup), settings["lr"], warmup, steps)
        data.seed_dropout(seed, step, processes.rank)

        chosen = batches[place]
        mine = chosen[processes.rank::processes.world]   # rows sorted by length: equal work
        weight = float(len(mine) > 0)
        if not weight:                                   # computes a row that does not count
            mine = chosen[:1]
        targets = torch.from_numpy(train.targets[mine]).to(device)
        inputs = [tensor.to(device) for tensor in train.batch(mine)]
        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            scores = scores_of(kind, bert, head, inputs, train.candidates)
        loss = weight * loss_of(kind, scores, targets) / len(chosen)
        losses.append(processes.sum(loss.item()))
        check_finite("loss", losses[-1], settings, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings["clip"]))
        check_finite("gradient norm", norm, settings, step)
        optimizer.step()

        if (step + 1) % log_every == 0 or step + 1 == steps:
            log(step + 1, steps, loss=sum(losses) / len(losses),
                lr=optimizer.param_groups[0]["lr"], grad_norm=norm)
            losses = []

    # --- evaluate: the last epoch's model, never the best one's
    metrics = {"task": name, "seed": seed, "train_rows": len(train), "steps": steps,
               "split_dev": settings["split_dev"], "majority": False, "parts": {}}
    for split in rows.keys() - {"train"}:
        scores = predict(kind, bert, head, rows[split], 4 * batch, processes, autocast_type)
        score_split(metrics, settings, split, *splits[split], rows[split], scores,
                    folder if processes.master else None)

    # --- last save: metrics.json at the end, it says that the rest is there
    metrics["seconds"] = round(time.time() - start, 2)
    if processes.master:
        log.file.close()
        data.write_json(folder / "metrics.json", metrics)
    return metrics


def summary(metrics):
    """One line on a finished run."""
    shown = []
    for split, values in metrics.items():
        if not split.startswith(("dev", "test")) and split not in TASKS:
            continue
        numbers = []
        for metric, _ in TASKS[split if split in TASKS else metrics["task"]].metrics:
            value = values[metric]
            numbers.append(f"{metric} not defined" if value is None else f"{metric} {value:.3f}")
        parts = metrics["parts"].get(split, {})
        by_part = [f"{part} {parts[part]['accuracy']:.3f}" for part in PARTS if part in parts]
        if by_part:
            numbers.append(f"({', '.join(by_part)})")
        shown.append(" ".join([split, *numbers]))
    stuck = "  ! one answer for every row" if metrics["majority"] else ""
    scores = "; ".join(shown) or "no labelled split"
    seconds = f"{metrics['seconds']:.0f} s"
    return f"{metrics['task']} seed {metrics['seed']}: {scores}; {seconds}{stuck}"


def tasks_of(args):
    """The tasks asked for; bare, all that --data has rows to train on."""
    if args.task:
        return args.task
    names = []
    split = "dev" if args.split_dev else "train"
    for name, task in TASKS.items():
        folder = task_folder(args.data, name)
        if folder is None or task.answered_by:
            continue
        if task.path(folder, split).exists():
            names.append(name)
        else:   # two tasks may share a folder
            print(f"{name} is passed over: {task.path(folder, split)} is missing")
    if not names:
        raise model.UserError(f"no task folder under {args.data}; {GET}")
    return names


def hash_of(paths):
    digests = [data.file_hash(path) for path in sorted(paths)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def task_hash(root, name):
    """sha256 of all files that decide a task's result, the ones it also answers included."""
    paths = set()
    for other, folder in [(name, task_folder(root, name)), *also_answered(root, name)]:
        if folder is None:
            continue
        # not what a file manager writes
        paths |= {path for path in folder.glob("[!.]*.*") if path.is_file()}
        for split in TASKS[other].files:   # TRACIE's test file may lie beside the folder
            path = TASKS[other].path(folder, split)
            if path.exists():
                paths.add(path)
    return hash_of(paths)


def main(argv=None):
    # --- setup
    args = parse_args(argv)
    processes = data.Processes(args.device)
    if not processes.master:
        sys.stdout = open(os.devnull, "w")   # every process reads the files, one talks of them
    torch.set_float32_matmul_precision("high")
    model_folder, run, run_size = locate_model(args.model)
    size = args.size or (run_size if run_size in DEFAULTS else "base")
    config = model.BertConfig.from_dict(data.read_json(model_folder / "config.json", "distill.py"))
    weights = [path for path in model_folder.iterdir()
               if path.suffix in (".bin", ".safetensors") or path.name == "config.json"]
    weights_hash = hash_of(weights)
    bert = None

    for name in tasks_of(args):
        # --- what is there already: metrics of the same flags, weights and files
        recipe = settings_for(args, name, size, config)
        data_hash = task_hash(args.data, name)
        todo = []
        for seed in args.seed:
            folder = Path(args.out or run) / "finetune" / name / f"seed-{seed}"
            settings = {**recipe, "seed": seed, "model_sha256": weights_hash,
                        "data_sha256": data_hash}
            if (folder / "metrics.json").exists():
                done = data.read_json(folder / "args.json", "finetune.py")["arguments"]
                changed = [key for key in settings if done.get(key) != settings[key]]
                if not changed:
                    print(f"{folder}: complete, nothing to do")
                    continue
                print(f"{folder}: {', '.join(changed)} changed, so it is made again")
            todo.append((settings, folder))
        processes.barrier()   # nobody writes before all have looked
        if not todo:
            continue
        source = "--size" if args.size else run if run_size in DEFAULTS else "the default"
        print(f"{name}: recipe of size {size} ({source}): lr {recipe['lr']:g}, "
              f"{recipe['epochs']:g} epochs, batch {recipe['batch']}")

        # --- model, once for all tasks
        if bert is None:
            config, bert, _ = model.load_hf(model_folder)
            bert.to(processes.device)
            encoder = {key: value.clone() for key, value in bert.state_dict().items()}
            tokenizer = data.load_tokenizer(model_folder)
            if tokenizer.get_vocab_size() > config.vocab_size:
                entries = f"{tokenizer.get_vocab_size()} entries, the model {config.vocab_size}"
                raise model.UserError(f"{model_folder}: the vocabulary has {entries}")

        # --- data, once for all seeds
        splits = load_task(args, name)
        token_rows = {}
        for split, (examples, targets, _) in splits.items():
            if TASKS[name].kind == "span":
                token_rows[split] = Windows(examples, tokenizer, recipe["max_length"],
                                            recipe["stride"], split == "train")
            else:
                token_rows[split] = Rows(examples, targets, tokenizer, recipe["max_length"])

        # --- runs
        for settings, folder in todo:
            metrics = finetune(settings, splits, token_rows, config, bert, encoder, processes,
                               folder, args.log_every)
            print(summary(metrics), flush=True)

    # --- cleanup
    processes.close()


if __name__ == "__main__":
    try:
        main()
    except model.UserError as error:
        sys.exit(f"finetune.py: {error}")
