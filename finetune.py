"""Stage 3: fine-tune a BERT on one task, or on several, and write its predictions (paper section 4).

    python finetune.py --model runs/student --task RTE --seed 0                      # runs/student/finetune/RTE/seed-0
    python finetune.py --model runs/student --seed 0 1 2                             # every task in data/mini/tasks
    python finetune.py --model FOLDER --data data/glue --task CoLA STS-B             # any BERT in Hugging Face form
    torchrun --nproc_per_node=8 finetune.py --model runs/student --data data/glue --task MNLI
    python finetune.py --model runs/student --data data --task PIQA --split-dev          # no training file: a smoke run
    python finetune.py --model FOLDER --data data --task SQuAD1                          # data/SQuAD1/train-v1.1.json

Writes RUN/finetune/TASK/seed-N/{args.json, log.jsonl, predictions-SPLIT.tsv, metrics.json}, and for a published test
split the file that its leaderboard takes (see write_submission); for SQuAD {predictions,nbest,scores,null_odds}-SPLIT.json,
the first of them in its server's form. MNLI's model also answers AX and diagnostics, where their folders lie beside
MNLI's: nothing is trained on them. metrics.json comes last, so that where it is, all is; a finished (task, seed) is
passed over. A killed one starts again and, since all randomness is from (seed, step), ends the same.

Sections: readers, the task table, token ids, SQuAD, settings, one fine-tuning run.
Axes: B rows of the batch, C candidate texts a row (1 but for multiple choice), L tokens, H width.
"""
import argparse
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import re
import statistics
import string
import warnings
from collections import Counter
import os
import re
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import model

# ---------------------------------------------------------------------------------------------------------------------
# Readers: a folder and a split -> examples. FileNotFoundError where the split has no file; ValueError naming file and
# line where a file is not what its format says.


class Example(NamedTuple):
    """One row of a task file."""
    texts: list       # [(first, second or None)], one a candidate
    label: str | None  # as written in the file; None in a test split without labels
    row: str          # the file's own row number, which a submission must repeat
    where: str        # "file, line n", for messages
    answers: tuple = ()   # SQuAD: (text, character of the context at which it starts), one an annotator
    tags: tuple = ()  # diagnostics: (coarse category, fine category) pairs


def numbered_lines(path):
    """Yields (line number from 1, text) of a UTF-8 file. Splits at newlines alone: str.splitlines would also cut at
    U+2028 and other characters that GLUE's sentences contain. A byte-order mark is dropped."""
    if not Path(path).exists():
        raise FileNotFoundError(str(path))
    content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    if not content:
        raise ValueError(f"{path} is empty")
    if b"\r" in content and b"\n" not in content:   # else the whole file would pass for one line
        raise ValueError(f"{path}, line 1: lines end in bare carriage returns; write the file with newlines")
    for number, line in enumerate(content.split(b"\n"), 1):
        if b"\0" in line:
            raise ValueError(f"{path}, line {number}: a NUL byte, so the file is damaged or not UTF-8")
        try:
            yield number, line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from None


def read_tsv(path, wanted, header=None, skip_short=False):
    """Yields (line number, {column: text}) of a tab-separated file without quoting. wanted: the columns it must have;
    header: for files that lack one."""
    lines, skipped, read = numbered_lines(path), 0, 0
    header = header or next(lines)[1].split("\t")
    absent = [name for name in wanted if name not in header]
    if absent:
        raise ValueError(f"{path}, line 1: no column {', '.join(absent)}; found {', '.join(header)}")
    for number, line in lines:
        fields = line.split("\t")
        if skip_short and len(fields) < len(header):
            skipped += 1
            continue
        if len(fields) != len(header):
            raise ValueError(f"{path}, line {number}: {len(fields)} columns, expected {len(header)}: "
                             f"{', '.join(header)}")
        read += 1
        yield number, dict(zip(header, fields))
    if skipped:
        print(f"{path}: {skipped} rows with fewer than {len(header)} columns skipped")
    if not read:
        raise ValueError(f"{path} has no rows")


def glue(*texts, label="label", files=None, header=None, skip_short=False):
    """Reader of a GLUE task. texts: names of the one or two text columns; files: {split: file name} where it is not
    SPLIT.tsv; header: columns of train and dev files without a header line. Only a test split may lack labels."""
    def read(folder, split):
        path, examples, test = folder / (files or {}).get(split, f"{split}.tsv"), [], split.startswith("test")
        for number, row in read_tsv(path, texts if test else (*texts, label), None if test else header, skip_short):
            index = row.get("index", row.get("id", len(examples)))
            pair = row[texts[0]], row[texts[1]] if len(texts) > 1 else None
            examples.append(Example([pair], row.get(label), str(index), f"{path}, line {number}"))
        return examples
    return read


def read_mrpc(folder, split):
    """MRPC as plain train/dev/test.tsv, or as Microsoft's two files; mrpc_dev_ids.tsv then names the dev rows."""
    name = f"{split}.tsv"
    if not (folder / name).exists():
        name = "msr_paraphrase_test.txt" if split == "test" else "msr_paraphrase_train.txt"
    examples = glue("#1 String", "#2 String", label="Quality", files={split: name})(folder, split)
    if name != "msr_paraphrase_train.txt":
        return examples
    columns, ids_path = ["#1 ID", "#2 ID"], folder / "mrpc_dev_ids.tsv"
    ids = [tuple(row[column] for column in columns) for _, row in read_tsv(folder / name, columns)]
    dev = {tuple(row.values()): number for number, row in read_tsv(ids_path, columns, header=columns)}
    unknown = dev.keys() - set(ids)
    if unknown:
        raise ValueError(f"{ids_path}, line {min(map(dev.get, unknown))}: {name} has no row with these two ids")
    return [example for example, pair in zip(examples, ids) if (pair in dev) == (split == "dev")]


def read_diagnostics(folder, split):
    """GLUE-diagnostics with labels: a column for each coarse category holds its fine ones, joined by ";"."""
    path, examples = folder / "diagnostic-full.tsv", []
    for number, row in read_tsv(path, [*COARSE, "Premise", "Hypothesis", "Label"]):
        tags = tuple((coarse, fine.strip()) for coarse in COARSE for fine in row[coarse].split(";")
                     if fine.strip())
        examples.append(Example([(row["Premise"], row["Hypothesis"])], row["Label"], str(len(examples)),
                                f"{path}, line {number}", tags=tags))
    return examples


def json_row(path, number, line, *keys, kinds=str):
    """A line of JSON as a dict, every one of whose keys holds text, or one of `kinds`."""
    try:
        row = json.loads(line)
        if not all(isinstance(row[key], kinds) and data.is_unicode(str(row[key])) for key in keys):
            raise TypeError("not text")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}, line {number}: expected a JSON object with {', '.join(keys)} ({error})") from None
    return row


def read_piqa(folder, split):
    """PIQA: {train,valid,tests}.jsonl with goal, sol1, sol2, and NAME-labels.lst with 0 or 1 a line."""
    name, examples = {"train": "train", "dev": "valid", "test": "tests"}[split], []
    path, labels_path = folder / f"{name}.jsonl", folder / f"{name}-labels.lst"
    for number, line in numbered_lines(path):
        row = json_row(path, number, line, "goal", "sol1", "sol2")
        examples.append(Example([(row["goal"], row["sol1"]), (row["goal"], row["sol2"])], None, str(number - 1),
                                f"{path}, line {number}"))
    if split == "test" and not labels_path.exists():
        return examples
    labels = list(numbered_lines(labels_path))
    if len(labels) != len(examples):
        raise ValueError(f"{labels_path} has {len(labels)} lines, expected the {len(examples)} of {path}")
    return [example._replace(label=label.strip(), where=f"{labels_path}, line {number}")
            for example, (number, label) in zip(examples, labels)]


def read_swag(folder, split):
    """SWAG CSV: context sent1; candidate k is sent2 followed by ending k. A row is one line: no text of SWAG has a line
    end, so a quoted field that runs over one was opened by a stray quote and has swallowed rows."""
    path = folder / f"{'val' if split == 'dev' else split}.csv"
    wanted = ["sent1", "sent2", "ending0", "ending1", "ending2", "ending3"] + ["label"] * (split != "test")
    rows, examples, number = csv.reader((line + "\n" for _, line in numbered_lines(path)), strict=True), [], 0
    try:
        header, number = next(rows), 1
        if not set(wanted) <= set(header):
            raise ValueError(f"{path}, line 1: expected columns {', '.join(wanted)}; found {', '.join(header)}")
        for number, fields in enumerate(rows, 2):
            if rows.line_num != number:
                raise ValueError(f"{path}, line {number}: a quoted field runs on to line {rows.line_num}")
            if len(fields) != len(header):
                raise ValueError(f"{path}, line {number}: {len(fields)} columns, expected {len(header)}")
            row = dict(zip(header, fields))
            texts = [(row["sent1"], f"{row['sent2']} {row[f'ending{k}']}") for k in range(4)]
            examples.append(Example(texts, row.get("label"), row.get("") or str(len(examples)),
                                    f"{path}, line {number}"))
    except csv.Error as error:   # not rows.line_num: a stray quote is noticed far below the row that holds it
        raise ValueError(f"{path}, line {number + 1}: not CSV ({error})") from None
    if not examples:
        raise ValueError(f"{path} has no rows")
    return examples


def tracie(train):
    """Reader of TRACIE's lines, "event: ... story: ...<tab>answer: ..."; train: name of the training file. Both public
    splits share one test file, which may lie beside either; where there is none, the leaderboard's test.jsonl (query,
    story, no labels) is read."""
    def read(folder, split):
        path, examples = folder / (train if split == "train" else f"tracie_{split}.txt"), []
        if split == "test":
            places = [path, folder.parent / "iid" / path.name, folder / "test.jsonl", folder.parent / "test.jsonl"]
            path = next((place for place in places if place.exists()), path)
        for number, line in numbered_lines(path):
            if path.suffix == ".jsonl":
                row = json_row(path, number, line, "query", "story")
                texts, label = (row["query"].removeprefix("event: "), row["story"]), None
                index = row.get("id", number - 1)
            else:
                found = re.fullmatch(r"event: (.+?) story: ([^\t\r]+)\tanswer: (\S+)\s*", line)
                if not found:
                    raise ValueError(f"{path}, line {number}: expected 'event: ... story: ...<tab>answer: "
                                     f"positive|negative'")
                texts, label, index = found.groups()[:2], found[3], number - 1
            examples.append(Example([texts], label, str(index), f"{path}, line {number}"))
        return examples
    return read


# --------------------------------------------------------------------------------------------------
# Metrics. All take (labels, predictions): integer classes, or real numbers for the correlations.


def accuracy(labels, predictions):
    """Share of equal entries; nan of nothing."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return float((labels == predictions).mean()) if len(labels) else math.nan


def f1(labels, predictions):
    """F1 of class 1. Where nothing is labelled and nothing predicted 1 it is 0, as in scikit-learn."""
    labels, predictions = np.asarray(labels) == 1, np.asarray(predictions) == 1
    wrong_or_right = labels.sum() + predictions.sum()
    return float(2 * (labels & predictions).sum() / wrong_or_right) if wrong_or_right else 0.0


def matthews(labels, predictions):
    """Matthews correlation of any number of classes (R_K); 0 where labels or predictions are constant."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    classes = np.union1d(labels, predictions)
    true = (labels[:, None] == classes).sum(0, dtype=np.float64)            # [classes]
    said = (predictions[:, None] == classes).sum(0, dtype=np.float64)       # [classes]
    n, right = float(len(labels)), float((labels == predictions).sum())
    spread = (n * n - said @ said) * (n * n - true @ true)
    return float((right * n - true @ said) / math.sqrt(spread)) if spread > 0 else 0.0


def pearson(labels, predictions):
    """Pearson correlation; nan where one side is constant or has fewer than two entries: it is then not defined."""
    if len(labels) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # scipy warns of constant input; of nearly constant one its value still holds
        return float(scipy.stats.pearsonr(np.asarray(labels, np.float64), np.asarray(predictions, np.float64))[0])


def spearman(labels, predictions):
    """Spearman rank correlation, ties sharing their mean rank; nan where one side is constant."""
    if len(labels) < 2:
        return math.nan
    return pearson(scipy.stats.rankdata(labels), scipy.stats.rankdata(predictions))


ACCURACY = [("accuracy", accuracy)]
METRICS = {   # task -> [(name, function)], the main one first; as GLUE publishes them
    "CoLA": [("matthews", matthews)], "SST-2": ACCURACY, "MRPC": [("accuracy", accuracy), ("f1", f1)],
    "STS-B": [("pearson", pearson), ("spearman", spearman)], "QQP": [("accuracy", accuracy), ("f1", f1)],
    "MNLI": ACCURACY, "AX": ACCURACY, "diagnostics": [("matthews", matthews)], "QNLI": ACCURACY, "RTE": ACCURACY,
    "WNLI": ACCURACY, "PIQA": ACCURACY, "SWAG": ACCURACY,
    "TRACIE": ACCURACY, "TRACIE-iid": ACCURACY, "TRACIE-uniform-prior": ACCURACY,
}   # SQuAD's are added in the next section
PARTS = ("grounded", "ungrounded", "unfilmed")   # of a mini task's rows; see part_of
COARSE = ("Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge")   # GLUE-diagnostics' categories


def single_number(task, values):
    """A task's one number in a table: the mean of its metrics (only MRPC, STS-B and QQP have two), SQuAD's F1, or None.

    values: {metric name: value or None}. None where any of them is not defined.
    """
    wanted = [values[name] for name, _ in METRICS[task][:1 if METRICS[task] is SQUAD else None]]
    return None if any(value is None for value in wanted) else statistics.fmean(wanted)


def most_common(labels):
    """The most common entry; of several equally common ones the smallest."""
    values, counts = np.unique(np.asarray(labels), return_counts=True)
    return values[counts.argmax()]


def score(task, labels, predictions):
    """Every metric of a task -> {metric: value, "n": rows, "chance": c}; a metric that is not defined is None.

    chance: the task's single number for always answering the most common label of these very rows (SQuAD: for never
    answering); None for a regression, where a constant has no correlation. Raises ValueError where the lengths differ.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{task}: {len(labels)} labels for {len(predictions)} predictions")
    constant = np.full(len(labels), "" if METRICS[task] is SQUAD else most_common(labels))
    values, chance = {}, {}
    for name, function in METRICS[task]:
        for out, guesses in ((values, predictions), (chance, constant)):
            value = function(labels, guesses)
            out[name] = None if math.isnan(value) else value
    return {**values, "n": len(labels), "chance": single_number(task, chance)}


def part_of(row):
    """The part a meta row of a mini task belongs to: "ungrounded" (language alone decides), "grounded" (a property of
    a filmed noun decides) or "unfilmed" (a property of a noun that no video shows: the control, at chance for all)."""
    return "unfilmed" if row["part"] == "grounded" and row["group"] == "unfilmed" else row["part"]


def score_parts(labels, predictions, meta):
    """Accuracy by part of a mini task, and of the grounded part by property. Accuracy whatever the task's own metric:
    chance is then one number, 1 / classes, on balanced rows.

    meta: one dict a row with part, group, property, noun. Returns {part: {"accuracy", "n", "chance"}, ...,
    "grounded_by_property": {property: {"accuracy", "n", "chance"}}, "grounded_by_noun": {noun: accuracy}}; parts
    without rows are absent.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    parts = np.array([part_of(row) for row in meta])

    def of(chosen):
        return {"accuracy": accuracy(labels[chosen], predictions[chosen]), "n": int(chosen.sum()),
                "chance": accuracy(labels[chosen], np.full(chosen.sum(), most_common(labels[chosen])))}
    out = {part: of(parts == part) for part in PARTS if (parts == part).any()}
    names = np.array([str(row["property"]) for row in meta])
    grounded = parts == "grounded"
    out["grounded_by_property"] = {str(name): of(grounded & (names == name)) for name in np.unique(names[grounded])}
    nouns = np.array([str(row["noun"]) for row in meta])
    of_noun = {str(noun): grounded & (nouns == noun) for noun in np.unique(nouns[grounded])}
    out["grounded_by_noun"] = {noun: accuracy(labels[rows], predictions[rows]) for noun, rows in of_noun.items()}
    return out


def score_categories(labels, predictions, tags, meta=None):
    """GLUE-diagnostics by category -> {name: {"accuracy", "matthews", "n", "chance"}}; a row counts in each of its own.

    tags: a row's (coarse, fine) pairs; meta: rows of the mini world, whose parts are then categories, too. Names in
    order: "overall", "Logic", ..., "Logic: Negation", ..., "grounded", ...; those without rows are absent. matthews is
    R_3, jiant's score, 0 where a category has one label only; chance is the accuracy of the most common label.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    rows = {name: [] for name in ("overall", *COARSE)}
    for coarse, fine in sorted({tag for row in tags for tag in row}, key=lambda tag: (COARSE.index(tag[0]), tag[1])):
        rows[f"{coarse}: {fine}"] = []
    rows |= {part: [] for part in PARTS}
    for index, row in enumerate(tags):
        own = {"overall", *[coarse for coarse, _ in row], *[f"{coarse}: {fine}" for coarse, fine in row]}
        for name in own | ({part_of(meta[index])} if meta else set()):
            rows[name].append(index)
    return {name: {"accuracy": accuracy(labels[chosen], predictions[chosen]),
                   "matthews": matthews(labels[chosen], predictions[chosen]), "n": len(chosen),
                   "chance": accuracy(labels[chosen], np.full(len(chosen), most_common(labels[chosen])))}
            for name, chosen in rows.items() if chosen}


def score_tracie(labels, predictions, texts):
    """TRACIE's scores beside the total accuracy: on questions of starts ("starts before", "starts after") and of ends
    (all others), and the share of stories all of whose questions are right. texts: (query, story) a row.

    Returns {"start", "end", "story", "starts": n, "ends": n, "stories": n}; None for a kind that is not asked.
    """
    right = np.asarray(labels) == np.asarray(predictions)
    starts = np.array(["starts before" in query or "starts after" in query for query, _ in texts])
    stories = {}
    for (_, story), good in zip(texts, right):
        stories[story] = stories.get(story, True) and bool(good)
    return {"start": float(right[starts].mean()) if starts.any() else None,
            "end": float(right[~starts].mean()) if not starts.all() else None,
            "story": statistics.fmean(stories.values()),
            "starts": int(starts.sum()), "ends": int((~starts).sum()), "stories": len(stories)}


# ---------------------------------------------------------------------------------------------------------------------
# SQuAD, as the official evaluate-v2.0.py counts. golds: the annotators' answers to one question, texts.


def normal_words(text):
    """Words of an answer that count: lower case, no ASCII punctuation, no articles, split at white space."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def answer_scores(golds, text):
    """(exact, F1) of one answer: the better of each over the golds that have a word left, or over "" if none has. F1 is
    that of the two bags of words; where either is empty, 1 if both are."""
    said, exact, best = normal_words(text), 0, 0
    for gold in [words for words in map(normal_words, golds) if words] or [[]]:
        common = sum((Counter(gold) & Counter(said)).values())
        precision, recall = common / max(len(said), 1), common / max(len(gold), 1)
        exact = max(exact, int(gold == said))
        best = max(best, 2 * precision * recall / (precision + recall) if common else int(gold == said == []))
    return exact, best


def squad_exact(golds, answers):
    """Share of answers that equal one of their golds, a list of texts a question."""
    return statistics.fmean(answer_scores(*both)[0] for both in zip(golds, answers))


def squad_f1(golds, answers):
    """Mean F1 of answers; golds: a list of texts a question."""
    return statistics.fmean(answer_scores(*both)[1] for both in zip(golds, answers))


SQUAD = [("f1", squad_f1), ("exact", squad_exact)]
METRICS |= {"SQuAD1": SQUAD, "SQuAD2": SQUAD}



# ---------------------------------------------------------------------------------------------------------------------
# The task table. Metrics are METRICS[task].


@dataclasses.dataclass
class Task:
    kind: str           # classification, regression, choice (a softmax over candidate texts), or span (SQuAD)
    labels: tuple       # as the files write them, in the order of the model's outputs; the range of a regression
    read: Callable      # (folder, split) -> [Example]
    rows: dict          # split -> rows of its published file, to notice a wrong download; None: not known
    folders: tuple = ()  # under --data, besides the task's own name and that in lower case
    metrics: list = None
    answered_by: str = None  # the task whose model answers it; nothing is trained on it


ENTAILMENT = ("entailment", "not_entailment")
NLI = ("contradiction", "entailment", "neutral")
MNLI_FILES = {"dev": "dev_matched.tsv", "dev-mismatched": "dev_mismatched.tsv", "test": "test_matched.tsv",
              "test-mismatched": "test_mismatched.tsv"}
MNLI_ROWS = {"train": 392702, "dev": 9815, "dev-mismatched": 9832, "test": 9796, "test-mismatched": 9847}


def sizes(train, dev, test):
    return {"train": train, "dev": dev, "test": test}


TASKS = {
    "CoLA": Task("classification", ("0", "1"), glue("sentence", header=["source", "label", "star", "sentence"]),
                 sizes(8551, 1043, 1063)),
    "SST-2": Task("classification", ("0", "1"), glue("sentence"), sizes(67349, 872, 1821)),
    "MRPC": Task("classification", ("0", "1"), read_mrpc, sizes(3668, 408, 1725)),
    "STS-B": Task("regression", (0.0, 5.0), glue("sentence1", "sentence2", label="score"), sizes(5749, 1500, 1379)),
    "QQP": Task("classification", ("0", "1"), glue("question1", "question2", label="is_duplicate", skip_short=True),
                sizes(363846, 40430, 390965)),
    "MNLI": Task("classification", NLI, glue("sentence1", "sentence2", label="gold_label", files=MNLI_FILES),
                 MNLI_ROWS),
    # one set of pairs in two files, without labels (for GLUE's server) and with labels and categories
    "AX": Task("classification", NLI, glue("sentence1", "sentence2", files={"test": "AX.tsv"}), {"test": 1104},
               answered_by="MNLI"),
    "diagnostics": Task("classification", NLI, read_diagnostics, {"test": 1104}, answered_by="MNLI"),
    "QNLI": Task("classification", ENTAILMENT, glue("question", "sentence"), sizes(104743, 5463, 5463)),
    "RTE": Task("classification", ENTAILMENT, glue("sentence1", "sentence2"), sizes(2490, 277, 3000)),
    "WNLI": Task("classification", ("0", "1"), glue("sentence1", "sentence2"), sizes(635, 71, 146)),
    "PIQA": Task("choice", ("0", "1"), read_piqa, sizes(16113, 1838, 3084)),
    "SWAG": Task("choice", ("0", "1", "2", "3"), read_swag, sizes(73546, 20006, 20005)),
    # lambda: the reader stands with the rest of SQuAD, below
    "SQuAD1": Task("span", (), lambda folder, split: read_squad(folder, split, "v1.1"), sizes(87599, 10570, None),
                   folders=("squad", "SQuAD")),
    "SQuAD2": Task("span", (), lambda folder, split: read_squad(folder, split, "v2.0"), sizes(130319, 11873, None),
                   folders=("squad", "SQuAD")),
    # a premise-hypothesis pair: (query, story); published without a dev split. The plain name is the mini world's.
    "TRACIE": Task("classification", ("negative", "positive"), tracie("tracie_train.txt"), sizes(None, None, None)),
    "TRACIE-iid": Task("classification", ("negative", "positive"), tracie("tracie_train.txt"), sizes(1174, None, 4248),
                       folders=("TRACIE/iid", "tracie/iid", "iid")),
    "TRACIE-uniform-prior": Task("classification", ("negative", "positive"), tracie("tracie_train_uniform_prior.txt"),
                                 sizes(860, None, 4248),
                                 folders=("TRACIE/uniform-prior", "tracie/uniform-prior", "uniform-prior")),
}
for name, functions in METRICS.items():
    TASKS[name].metrics = functions
GET = "`python data.py tasks` lists and fetches the published files, `python data.py mini` makes the mini world's"


def task_folder(root, name):
    """The first folder under root that may hold the task, or None."""
    places = [Path(root) / place for place in (name, name.lower(), *TASKS[name].folders)]
    return next((place for place in places if place.is_dir()), None)


def also_answered(root, name):
    """[(task, folder)] that a model of task `name` answers besides its own, where there is a folder."""
    others = [(other, task_folder(root, other)) for other, task in TASKS.items() if task.answered_by == name]
    return [(other, folder) for other, folder in others if folder]


def targets_of(name, examples):
    """Labels of examples as an array (class numbers, real numbers, or lists of right texts), None where there are none.

    Raises ValueError naming file and line of a label that the task does not have.
    """
    task, out = TASKS[name], []
    if any(example.label is None for example in examples):
        return None
    if task.kind == "span":
        return np.fromiter(([text for text, _ in example.answers] for example in examples), object, len(examples))
    for example in examples:
        try:
            value = float(example.label) if task.kind == "regression" else task.labels.index(str(example.label))
            if task.kind == "regression" and not task.labels[0] <= value <= task.labels[1]:   # nan fails this, too
                raise ValueError
        except ValueError:
            expected = " to ".join(map(str, task.labels)) if task.kind == "regression" else ", ".join(task.labels)
            raise ValueError(f"{example.where}: label {example.label!r}, expected {expected}") from None
        out.append(value)
    return np.array(out, dtype=np.float32 if task.kind == "regression" else np.int64)


def read_split(name, folder, split):
    """One split -> (examples, targets or None, meta rows or None).

    A mini task has SPLIT.meta.jsonl: the hidden test labels, and what each row needs to be known. Raises ValueError
    where it disagrees with the task file.
    """
    examples = TASKS[name].read(folder, split)
    path, meta = folder / f"{split}.meta.jsonl", None
    if path.exists():
        meta = [json_row(path, number, line, "label", kinds=(str, int)) for number, line in numbered_lines(path)]
        if len(meta) != len(examples):
            raise ValueError(f"{path} has {len(meta)} rows, expected {len(examples)}, as the {split} file beside it")
        for number, (example, row) in enumerate(zip(examples, meta), 1):
            if example.label not in (None, str(row["label"])):
                raise ValueError(f"{path}, line {number}: label {row['label']!r}, expected {example.label!r} as in "
                                 f"{example.where}")
        examples = [example._replace(label=str(row["label"])) for example, row in zip(examples, meta)]
    elif TASKS[name].rows[split] not in (None, len(examples)):
        print(f"note: {name} {split} has {len(examples):,} rows, the published file {TASKS[name].rows[split]:,}")
    return examples, targets_of(name, examples), meta


# ---------------------------------------------------------------------------------------------------------------------
# Token ids: made once a task, shared by its seeds


class Rows:
    """A split as token ids, [CLS] first [SEP] or [CLS] first [SEP] second [SEP]. ids: all texts' ids end to end; text
    t = row x C + candidate is ids[starts[t]:starts[t + 1]], its second segment begins seconds[t] further on."""

    def __init__(self, examples, targets, tokenizer, max_length):
        self.targets, self.candidates, self.pad = targets, len(examples[0].texts), data.special_ids(tokenizer)["pad"]
        texts = [first if second is None else (first, second) for example in examples for first, second in example.texts]
        tokenizer.enable_truncation(max_length)   # the longer of two loses its end until they are equal, then both do
        pieces, begins = zip(*[(np.array(one.ids, dtype=np.int32), one.type_ids.count(0))
                               for one in encoded(tokenizer, texts)])
        tokenizer.no_truncation()                 # SQuAD's contexts are cut into windows instead
        self.ids, self.seconds = np.concatenate(pieces), np.array(begins)
        self.starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
        self.lengths = np.diff(self.starts).reshape(-1, self.candidates).max(1)   # [rows], the longest candidate's

    def __len__(self):
        return len(self.lengths)

    def batch(self, indices):
        """Rows -> tokens int [B*C, L], mask bool [B*C, L] (True = real token), segments int [B*C, L], padded to the
        longest of them only."""
        texts = (np.asarray(indices)[:, None] * self.candidates + np.arange(self.candidates)).ravel()       # [B*C]
        length = self.starts[texts + 1] - self.starts[texts]
        place = np.arange(length.max())[None]                                                               # [1, L]
        mask = place < length[:, None]                                                                      # [B*C, L]
        tokens = np.full(mask.shape, self.pad, dtype=np.int64)
        tokens[mask] = np.concatenate([self.ids[self.starts[t]:self.starts[t + 1]] for t in texts])
        segments = mask & (place >= self.seconds[texts][:, None])
        return torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(segments.astype(np.int64))


def encoded(tokenizer, texts, **flags):
    """Yields the encoding of each text or pair; a thousand at a time, since an Encoding is far larger than its ids."""
    texts = iter(texts)
    while some := list(itertools.islice(texts, 1024)):
        yield from tokenizer.encode_batch(some, **flags)


def length_sorted_batches(lengths, batch, seed, epoch, step=8):
    """One epoch as a list of index arrays: every row exactly once, rows of a batch alike in length, batches shuffled.

    Sorted within random pools of 50 batches, by length in steps of `step` tokens; a pool is cut into equal parts of at
    most `batch` rows. Both were measured on the mini tasks: sorted finely, a batch holds one kind of question and its
    gradient points one way; a short last batch is all noise. Either kept the balanced tasks from being learnt.
    """
    generator = data.numpy_generator(seed, "order", epoch)
    order = generator.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), 50 * batch):
        pool = order[start:start + 50 * batch]
        pool = pool[np.argsort(-(-lengths[pool] // step), kind="stable")]
        batches += np.array_split(pool, -(-len(pool) // batch))
    return [batches[index] for index in generator.permutation(len(batches))]


# ---------------------------------------------------------------------------------------------------------------------
# SQuAD: reader, windows, answers. Rules and numbers are those of BERT's own script, as in transformers' run_squad.

QUESTION_PIECES = 64     # a question loses what is beyond
N_BEST = 20              # starts, ends and texts kept
ANSWER_PIECES = 30       # longest answer
WORD = re.compile(r"[^ \t\r\n\u202f]+")   # of a context; str.split would also cut at no-break spaces and their like


def squad_field(value, key, kind, where):
    """value[key], which must be of the given kind. Raises ValueError starting with `where`."""
    if not isinstance(value, dict) or key not in value:
        raise ValueError(f"{where}: no {key}")
    if type(value[key]) is not kind:   # isinstance would take True for a number
        raise ValueError(f"{where}: {key} is {type(value[key]).__name__}, expected {kind.__name__}")
    if kind is str and not data.is_unicode(value[key]):
        raise ValueError(f"{where}: {key} holds half of a surrogate pair")
    return value[key]


def read_squad(folder, split, version):
    """SQuAD JSON, SPLIT-VERSION.json -> examples: texts [(question, context)], label the first answer's text ("" for a
    question without an answer), row the question's id. Contexts stay as they are: answers count their characters."""
    path, examples, version2 = folder / f"{split}-{version}.json", [], version == "v2.0"
    if not path.exists():
        raise FileNotFoundError(str(path))
    for i, article in enumerate(squad_field(data.read_json(path, ""), "data", list, path), 1):
        for j, paragraph in enumerate(squad_field(article, "paragraphs", list, f"{path}, article {i}"), 1):
            place = f"{path}, article {i}, paragraph {j}"
            context = squad_field(paragraph, "context", str, place)
            for k, row in enumerate(squad_field(paragraph, "qas", list, place), 1):
                name = squad_field(row, "id", str, f"{place}, question {k}")
                where = f"{path}, question {name}"
                question, answers = squad_field(row, "question", str, where), []
                for answer in squad_field(row, "answers", list, where):
                    text = squad_field(answer, "text", str, where)
                    start = squad_field(answer, "answer_start", int, where)
                    if start < 0 or not text or context[start:start + len(text)] != text:
                        raise ValueError(f"{where}: answer_start {start} does not point at {text!r}")
                    answers.append((text, start))
                impossible = squad_field(row, "is_impossible", bool, where) if version2 else False
                if impossible == bool(answers):
                    raise ValueError(f"{where}: {len(answers)} answers" + f", is_impossible {impossible}" * version2)
                label = answers[0][0] if answers else ""
                examples.append(Example([(question, context)], label, name, where, tuple(answers)))
    if not examples:
        raise ValueError(f"{path} has no questions")
    if len({example.row for example in examples}) < len(examples):
        print(f"note: {path} repeats question ids; predictions are kept by id, so the last of each counts")
    return examples


class Windows(Rows):
    """Questions as token ids, [CLS] question [SEP] window of the context [SEP], a row a window, in order of questions.

    A context longer than one window is read in several, each beginning `stride` word pieces after the one before: the
    stride is the step, not the overlap. targets: int [windows, 2], positions of the answer's first and last piece;
    (0, 0), [CLS], where the window lacks any of it or the question has no answer. train: a question whose answer is
    not among the context's words gets no window and is listed. Raises ValueError if none is left.
    """

    def __init__(self, examples, tokenizer, max_length, stride, train):
        special, self.candidates = data.special_ids(tokenizer), 1
        self.pad, self.examples, self.tokenizer = special["pad"], examples, tokenizer
        asked = min(QUESTION_PIECES, max_length - 3 - stride)   # short windows: less, so that no piece is stepped over
        contexts = {example.texts[0][1]: None for example in examples}
        words = ([match[0] for match in WORD.finditer(context)] for context in contexts)
        bare = {"add_special_tokens": False}
        for context, out in zip(contexts, encoded(tokenizer, words, is_pretokenized=True, **bare)):
            contexts[context] = np.array(out.ids, dtype=np.int32), np.array(out.word_ids, dtype=np.int32)
        questions = encoded(tokenizer, (example.texts[0][0] for example in examples), **bare)
        answers = encoded(tokenizer, (example.label if train else "" for example in examples), **bare)
        self.documents, pieces, rows, skipped = contexts, [], [], []
        for index, (example, question, answer) in enumerate(zip(
                tqdm(examples, desc="windows", unit="question", leave=False, disable=None), questions, answers)):
            document, piece_word = contexts[example.texts[0][1]]
            span = None
            if train and example.label:
                span = answer_span(example, document, piece_word, np.array(answer.ids))
                if span is None:
                    skipped.append(example.row)
                    continue
            head = np.array([special["cls"], *question.ids[:asked], special["sep"]], dtype=np.int32)
            room = max_length - len(head) - 1
            for first in range(0, max(1, len(document) - room + stride), stride):
                window = document[first:first + room]
                inside = span is not None and first <= span[0] and span[1] < first + len(window)
                rows.append((index, first, len(head), *(np.array(span) - first + len(head) if inside else (0, 0))))
                pieces += [head, window, np.array([special["sep"]], dtype=np.int32)]
        if skipped:
            print(f"note: {len(skipped)} questions left out, their answers are not among the words of their contexts: "
                  f"{', '.join(skipped[:5])}{', ...' * (len(skipped) > 5)}")
        if not rows:
            raise ValueError(f"{examples[0].where.rpartition(', ')[0]}: no question is left to train on")
        # question [windows]; first piece of the document in the window; position at which the window begins; answer
        self.question, self.first, self.seconds, *targets = np.array(rows, dtype=np.int64).T
        self.targets = np.stack(targets, 1)                                                            # [windows, 2]
        self.ids = np.concatenate(pieces)
        self.lengths = np.array([len(piece) for piece in pieces]).reshape(-1, 3).sum(1)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])


def span_head(config):
    """Hidden state -> start and end score of each token, as in BertForQuestionAnswering: row 0 start, row 1 end."""
    head = torch.nn.Linear(config.hidden_size, 2)
    model.init_weights(head, config.initializer_range)
    return head


def answer_span(example, document, piece_word, answer):
    """First and last piece of a question's first answer in the document, or None if its words do not hold the text.

    All pieces of the words it touches, then the first of the widest spans among them that is exactly the answer's own
    pieces, if there is one: "1895" in "(1895)". document: ids; piece_word: the word of each; answer: the answer's ids.
    """
    text, start = example.answers[0]
    matches = list(WORD.finditer(example.texts[0][1]))
    begins = [match.start() for match in matches]
    first, last = np.maximum(np.searchsorted(begins, [start, start + len(text) - 1], side="right") - 1, 0)
    if " ".join(text.split()) not in " ".join(match[0] for match in matches[first:last + 1]):
        return None
    low, high = np.searchsorted(piece_word, [first, last + 1])
    for place in range(low, high - len(answer) + 1) if len(answer) else ():
        if np.array_equal(document[place:place + len(answer)], answer):
            return place, place + len(answer) - 1
    return (low, high - 1) if low < high else None


def max_context(first, length):
    """Which of a question's windows shows a piece with the most context, min(left, right) + 0.01 length, the earliest
    at a tie. first, length: int [windows], in pieces of the document. Returns bool [windows, pieces]."""
    place = np.arange((first + length).max())                                                      # [pieces]
    left, right = place - first[:, None], (first + length - 1)[:, None] - place                    # [windows, pieces]
    context = np.where((left >= 0) & (right >= 0), np.minimum(left, right) + 0.01 * length[:, None], -1.0)
    return (context.argmax(0) == np.arange(len(first))[:, None]) & (context >= 0)


def original_text(predicted, original, tokenizer):
    """The part of `original` (words of the context) that `predicted` (word pieces put together again) stands for:
    "Steve Smith" for "steve smith" in "Steve Smith's". Character k of the original is taken for character k of its
    normal form, spaces not counted; where the two differ in length or lack `predicted`, all of `original` it is."""
    normal = tokenizer.normalizer.normalize_str(original)
    split = " ".join(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    start = split.find(predicted)
    places = [place for place, letter in enumerate(original) if letter != " "]
    if not predicted or start < 0 or len(places) != len(split.replace(" ", "")):
        return original
    skipped = start - split.count(" ", 0, start)
    return original[places[skipped]:places[skipped + len(predicted.replace(" ", "")) - 1] + 1]


def best_spans(windows, scores, rows):
    """Candidate answers of one question, best first: [(start score, end score, (first piece, last piece))].

    rows: its windows. The 20 best starts with the 20 best ends of each, both in the document, the start where its
    context is the widest, at most 30 pieces long. scores: [windows, L, 2].
    """
    spans, first, head = [], windows.first[rows], windows.seconds[rows]
    length = windows.lengths[rows] - head - 1
    widest = max_context(first, length)
    for row, begin, shift, count, wide in zip(rows, first, head, length, widest):
        own = scores[row, :windows.lengths[row]].astype(np.float64)                                    # [L, 2]: no padding
        starts, ends = np.argsort(-own, axis=0, kind="stable")[:N_BEST].T - shift                      # of the window
        starts = starts[(starts >= 0) & (starts < count)]
        starts = starts[wide[begin + starts]]
        ends = ends[(ends >= 0) & (ends < count)]
        size = ends[None] - starts[:, None] + 1                                                        # [starts, ends]
        for i, j in np.argwhere((size >= 1) & (size <= ANSWER_PIECES)):
            spans.append((own[starts[i] + shift, 0], own[ends[j] + shift, 1], (begin + starts[i], begin + ends[j])))
    return sorted(spans, key=lambda span: -(span[0] + span[1]))


def span_answers(windows, scores, null_threshold=None):
    """Scores [windows, L, 2] -> (answers, n-best lists, null odds or None), each a list with one entry a question.

    null_threshold: SQuAD v2.0. The answer is then "" iff odds > threshold, where odds = the smallest start + end score
    of [CLS] over the windows - the best score of a text. n-best: at most 20 dicts of text (each once), probability (a
    softmax over the list), start_logit, end_logit; for v2.0 the empty text is always there, if need be as the 21st. A
    question without one valid span, which an untrained model may leave, is answered "".
    """
    pieces = {index: piece for piece, index in windows.tokenizer.get_vocab().items()}
    answers, lists, odds = [], [], []
    bounds = np.searchsorted(windows.question, np.arange(len(windows.examples) + 1))
    for index, example in enumerate(tqdm(windows.examples, desc="answers", unit="question", leave=False, disable=None)):
        context, rows = example.texts[0][1], np.arange(bounds[index], bounds[index + 1])
        document, piece_word = windows.documents[context]
        found = best_spans(windows, scores, rows)
        if null_threshold is not None:
            null = scores[rows, 0].astype(np.float64)                                                  # [windows, 2]
            null = null[null.sum(1).argmin()]
            found = sorted([*found, (*null, None)], key=lambda span: -(span[0] + span[1]))   # stable: after its equals
        words, best = WORD.findall(context), {}
        for start, end, span in found:
            if len(best) == N_BEST:
                break
            text = ""
            if span is not None:
                low, high = span
                text = " ".join(pieces[piece] for piece in document[low:high + 1]).replace(" ##", "")
                text = original_text(text, " ".join(words[piece_word[low]:piece_word[high] + 1]), windows.tokenizer)
            best.setdefault(text, (start, end))
        if null_threshold is not None:
            best.setdefault("", tuple(null))
        best = best or {"": (0.0, 0.0)}
        probability = torch.tensor([start + end for start, end in best.values()], dtype=torch.float64).softmax(0).tolist()
        lists.append([{"text": text, "probability": p, "start_logit": float(start), "end_logit": float(end)}
                      for (text, (start, end)), p in zip(best.items(), probability)])
        answer = next((text for text in best if text), "")
        if null_threshold is not None:
            odds.append(float(null.sum() - (sum(best[answer]) if answer else 0.0)))
            answer = "" if odds[-1] > null_threshold else answer
        answers.append(answer)
    return answers, lists, None if null_threshold is None else odds


def write_squad_answers(folder, split, examples, answers, lists, odds):
    """predictions-SPLIT.json, nbest-SPLIT.json, null_odds-SPLIT.json (v2.0), each by id; scores-SPLIT.json, what the
    official script says of them."""
    names = [example.row for example in examples]
    predictions, null_odds = dict(zip(names, answers)), None if odds is None else dict(zip(names, odds))
    data.write_json(folder / f"predictions-{split}.json", predictions)
    data.write_json(folder / f"nbest-{split}.json", dict(zip(names, lists)))
    dataset = [{"paragraphs": [{"qas": [{"id": example.row, "answers": [{"text": text} for text, _ in example.answers]}
                                        for example in examples]}]}]
    if odds is not None:
        data.write_json(folder / f"null_odds-{split}.json", null_odds)


def answer_places(examples, targets, answers):
    """Answers as numbers, for accuracy and chance by part: int [questions] twice. The right one is the number of its
    first word in the context, -1 for no answer; the given one is the same if right, else -2. So chance is what naming
    the same place every time would score."""
    labels = np.array([len(WORD.findall(example.texts[0][1][:example.answers[0][1]])) if example.label else -1
                       for example in examples])
    right = [squad_exact([golds], [answer]) == 1 for golds, answer in zip(targets, answers)]
    return labels, np.where(right, labels, -2)


# ---------------------------------------------------------------------------------------------------------------------
# Settings

DEFAULTS = {
    "mini": {
        # ours, chosen on the validation nouns of world 0. The tasks are balanced to an exclusive or of noun and word,
        # which small batches, larger rates and dropout all leave at its saddle: accuracy 0.50, loss log 2.
        "lr": 1e-3, "epochs": 40.0, "batch": 256, "dropout": 0.0,
        # BERT's 0.02 is half of 1 / sqrt(width) at 768, a quarter of it at 128, where it leaves most runs at that saddle
        "head_std": 0.1,
        "max_length": 64, "length_step": 32,             # ours; no mini row is longer, and most are below 32
        # At the full rate, rows that a model cannot yet answer are noise that draws all scores together, and to a halt,
        # before anything is learnt: SQuAD stayed at chance, text-only students lost even PIQA's copying. Chosen on
        # validation nouns of worlds 100 and 101, against 0.1, half the rate, and a quarter of the batch.
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
BY_TASK = {                                              # at paper sizes; what is not here is GLUE's
    # authors' deleted run_swag.bash; its batch is 16 x 2 accumulated, and it gives no warm-up
    "SWAG": {"lr": 5e-5, "epochs": 3.0, "batch": 32, "max_length": 80, "warmup": 0.0},
    # authors' deleted run_piqa_at_epoch.bash: as GLUE, but the epochs are an argument
    "PIQA": {"lr": 1e-4, "epochs": 3.0, "batch": 32, "max_length": 126, "warmup": 0.1},
    # authors' deleted run_squad_v1.bash; no warm-up
    "SQuAD1": {"lr": 3e-5, "epochs": 2.0, "batch": 12, "max_length": 384, "stride": 128, "warmup": 0.0, "eps": 1e-8},
    # authors' deleted run_squad_v2.bash, which forgets that questions may lack an answer
    "SQuAD2": {"lr": 5e-5, "epochs": 2.0, "batch": 12, "max_length": 384, "stride": 128, "warmup": 0.0, "eps": 1e-8,
               "null_threshold": 0.0},
}                                                        # TRACIE's recipe is not published: GLUE's is used
MINI_BY_TASK = {"SQuAD1": {"stride": 16}, "SQuAD2": {"stride": 16, "null_threshold": 0.0}}   # ours


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/student", help="run folder, or BERT folder in Hugging Face form")
    parser.add_argument("--task", nargs="+", metavar="TASK", help=f"of: {', '.join(TASKS)} (default: all under --data)")
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--data", default="data/mini/tasks", help="folder that holds TASK/ folders")
    parser.add_argument("--out", help="folder that gets finetune/ (default: the run; runs/NAME for a bare model)")
    parser.add_argument("--size", choices=list(DEFAULTS), help="column of defaults (default: by the model's width)")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--batch", type=int, help="global batch, in rows")
    parser.add_argument("--max-length", type=int, help="tokens a text, special ones included; SQuAD: a window")
    parser.add_argument("--stride", type=int, help="SQuAD: word pieces from one window of a context to the next")
    parser.add_argument("--null-threshold", type=float, help="SQuAD2: no answer where [CLS] scores this much above the "
                                                             "best text (best_f1_thresh of scores-dev.json)")
    parser.add_argument("--length-step", type=int, help="rows whose lengths differ by less, in tokens, may share a batch")
    parser.add_argument("--warmup", type=float, help="share of the steps")
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--eps", type=float, help="AdamW's epsilon")
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--head-std", type=float, help="deviation of the task head's first weights")
    parser.add_argument("--clip", type=float, default=1.0, help="gradient norm limit")
    parser.add_argument("--train-limit", type=int, help="train on this many rows, the first of the file")
    parser.add_argument("--split-dev", action="store_true",
                        help="train on the first half of the dev file, score on the second: for smoke runs where the "
                             "training file is not at hand")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--log-every", type=int, default=100)
    args = parser.parse_args(argv)
    unknown = [name for name in args.task or [] if name not in TASKS]
    if unknown:
        raise ValueError(f"unknown task {', '.join(unknown)}; known: {', '.join(TASKS)}")
    for name in args.task or []:
        if TASKS[name].answered_by:
            raise ValueError(f"nothing is trained on {name}: --task {TASKS[name].answered_by} answers it, where its "
                             f"folder lies in --data")
    return args


def settings_for(args, name, config):
    """The settings of one task: size's column, the task's own at paper sizes, and the flags over both."""
    size = args.size or ("mini" if config.hidden_size <= 128 else "base")
    chosen = {**DEFAULTS[size], **(MINI_BY_TASK if size == "mini" else BY_TASK).get(name, {})}
    chosen = {key: value if getattr(args, key) is None else getattr(args, key) for key, value in chosen.items()}
    chosen["max_length"] = min(chosen["max_length"], config.max_position_embeddings)
    if chosen["max_length"] < 5 or min(chosen["batch"], chosen["length_step"]) < 1 or chosen["epochs"] <= 0:
        raise ValueError(f"max length {chosen['max_length']} (at least 5), batch {chosen['batch']}, length step "
                         f"{chosen['length_step']} (at least 1) or epochs {chosen['epochs']} (above 0) leave nothing to "
                         f"train on")
    if "stride" in chosen and not 1 <= chosen["stride"] <= chosen["max_length"] - 4:
        raise ValueError(f"stride {chosen['stride']} has to be at least 1 and leave room for a question in windows of "
                         f"{chosen['max_length']} (--max-length)")
    return {"model": str(args.model), "data": str(args.data), "task": name, "size": size, **chosen, "clip": args.clip,
            "train_limit": args.train_limit, "split_dev": args.split_dev}


def locate_model(path):
    """--model -> (folder with config.json, folder that gets finetune/)."""
    path = Path(path)
    if (path / "model" / "config.json").exists():
        return path / "model", path
    if path.name == "model" and (path.parent / "args.json").exists():
        return path, path.parent
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"no model in {path}: neither model/config.json (a finished run) nor config.json (a "
                                f"BERT in Hugging Face form); `make teacher distill` makes runs/teacher, runs/student")
    return path, Path("runs") / path.resolve().name


# ---------------------------------------------------------------------------------------------------------------------
# One fine-tuning run


def scores_of(kind, bert, head, batch, candidates):
    """Class scores [B, classes], values [B] (regression), candidate scores [B, C] (choice), or start and end scores
    [B, L, 2] (span; -inf at padding, so that it takes no part in the softmax), in fp32."""
    out = head(bert(*batch)).float()                                                # [B*C, outputs], span: [B, L, 2]
    if kind == "span":
        return out.masked_fill(~batch[1][:, :, None], -torch.inf)
    return out.view(-1, candidates) if kind == "choice" else out[:, 0] if kind == "regression" else out


def loss_of(kind, scores, targets):
    """Summed loss: squared error, or cross-entropy over the classes or candidates; span: mean of start's and end's."""
    if kind == "regression":
        return F.mse_loss(scores, targets, reduction="sum")
    return F.cross_entropy(scores, targets, reduction="sum") / (2 if kind == "span" else 1)   # span: targets [B, 2]


@torch.no_grad()
def predict(kind, bert, head, rows, batch, processes, autocast_type):
    """Scores of all rows, as the array of scores_of, on every process; each computes its share of them."""
    bert.eval(), head.eval()
    device, scores = processes.device, None
    order = np.argsort(rows.lengths, kind="stable")
    for start in range(0, len(order), batch):
        chosen = order[start:start + batch]
        mine = chosen[processes.rank::processes.world]
        if len(mine) == 0 and scores is not None:
            continue
        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            inputs = [tensor.to(device) for tensor in rows.batch(mine if len(mine) else chosen)]
            out = scores_of(kind, bert, head, inputs, rows.candidates)
        if kind == "span":
            out = F.pad(out, (0, 0, 0, int(rows.lengths.max()) - out.shape[1]), value=-torch.inf)
        if scores is None:
            scores = torch.zeros(len(rows), *out.shape[1:], device=device)
        if len(mine):
            scores[torch.from_numpy(mine).to(device)] = out
    return processes.sum(scores).cpu().numpy()


def write_predictions(folder, name, split, examples, targets, scores, answers):
    """predictions-SPLIT.tsv: row, prediction, label (empty if unknown), probabilities."""
    task = TASKS[name]
    regression = task.kind == "regression"
    shown = [f"{answer:.4f}" if regression else task.labels[answer] for answer in answers]
    header = ["row", "prediction", "label"] + ([] if regression else [f"p({label})" for label in task.labels])
    probabilities = [[]] * len(shown) if regression else torch.from_numpy(scores).softmax(-1).tolist()
    lines = ["\t".join([example.row, guess, "" if targets is None else example.label, *[f"{p:.6f}" for p in row]])
             for example, guess, row in zip(examples, shown, probabilities)]
    data.write_text(folder / f"predictions-{split}.tsv", "\n".join(["\t".join(header), *lines]) + "\n")


def write_submission(folder, name, split, examples, answers):
    """The file a leaderboard takes: CoLA.tsv, ..., MNLI-m.tsv, MNLI-mm.tsv, AX.tsv (GLUE's server: index, prediction);
    predictions.lst (PIQA: 0 or 1 a line); SWAG.csv (index, pred, as the data set's authors write it); TRACIE.jsonl (id,
    label). The id is the test.jsonl's own, or the row of tracie_test.txt, whose order is not the leaderboard's."""
    task = TASKS[name]
    if task.kind == "regression":   # the server refuses values out of the range
        shown = [f"{min(max(float(answer), task.labels[0]), task.labels[1]):.3f}" for answer in answers]
    else:
        shown = [task.labels[answer] for answer in answers]
    if name == "PIQA":
        data.write_text(folder / "predictions.lst", "".join(f"{guess}\n" for guess in shown))
    elif name == "SWAG":
        data.write_text(folder / "SWAG.csv", ",pred\n" + "".join(
            f"{example.row},{guess}\n" for example, guess in zip(examples, shown)))
    elif name.startswith("TRACIE"):
        nli = {"positive": "entailment", "negative": "contradiction"}
        data.write_text(folder / "TRACIE.jsonl", "".join(
            json.dumps({"id": example.row, "label": nli[guess]}) + "\n" for example, guess in zip(examples, shown)))
    else:
        called = {"test-mismatched": "MNLI-mm", "test": "MNLI-m"}[split] if name == "MNLI" else name
        data.write_text(folder / f"{called}.tsv", "index\tprediction\n" + "".join(
            f"{example.row}\t{guess}\n" for example, guess in zip(examples, shown)))


def finetune(settings, splits, rows, config, bert, encoder, processes, folder, log_every=100):
    """One (task, seed): trains a fresh head and the encoder from its loaded weights, writes the folder.

    splits: {split: (examples, targets, meta)}; rows: {split: Rows}; config, bert: the loaded model; encoder: its state
    dict as loaded. Returns what metrics.json holds. Raises FloatingPointError at a non-finite loss.
    """
    # --- setup
    start, name, seed = time.time(), settings["task"], settings["seed"]
    kind, device, batch = TASKS[name].kind, processes.device, settings["batch"]
    precision, autocast_type = data.settle_precision(settings["precision"], device)
    if processes.master:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(missing_ok=True)   # first: it vouches for the rest
        for stale in folder.glob("*.*"):
            stale.unlink()
        data.write_json(folder / "args.json", {"arguments": settings, "settled precision": precision,
                                               "processes": processes.world, **data.provenance(device)})
    log = data.Log(folder / "log.jsonl", processes.master, 0)

    # --- data
    train = rows["train"]
    a_epoch = -(-len(train) // batch)
    steps = max(1, round(settings["epochs"] * a_epoch))
    warmup = int(settings["warmup"] * steps)

    # --- model: the encoder as it was loaded, and a head that only the seed decides
    torch.manual_seed(seed)
    bert.load_state_dict(encoder)
    model.set_dropout(config, bert, settings["dropout"])
    shape = dataclasses.replace(config, hidden_dropout_prob=settings["dropout"], initializer_range=settings["head_std"])
    head = (span_head(shape) if kind == "span" else
            model.SequenceHead(shape, len(TASKS[name].labels) if kind == "classification" else 1)).to(device)

    # --- optimizer
    optimizer = model.optimizer_for([bert, head], settings["lr"], settings["weight_decay"], settings["eps"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    # --- loop
    total, counted = 0.0, 0
    for step in tqdm(range(steps), desc=f"{name} seed {seed}", unit="step", leave=False,
                     disable=None if processes.master else True):   # None: shown on a terminal only
        epoch, place = divmod(step, a_epoch)
        if place == 0:
            batches = length_sorted_batches(train.lengths, batch, seed, epoch, settings["length_step"])
        bert.train(), head.train()
        for group in optimizer.param_groups:
            # authors' script, which has transformers' schedule: its warm-up begins at a rate of 0, one step late
            group["lr"] = model.lr_at(step - (step < warmup), settings["lr"], warmup, steps)
        data.seed_dropout(seed, step, processes.rank)

        chosen = batches[place]
        mine = chosen[processes.rank::processes.world]   # every world-th row of a batch sorted by length: equal work
        weight = float(len(mine) > 0)                    # a process without a row computes one that does not count
        mine = mine if len(mine) else chosen[:1]
        targets = torch.from_numpy(train.targets[mine]).to(device)
        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            scores = scores_of(kind, bert, head, [tensor.to(device) for tensor in train.batch(mine)], train.candidates)
        loss = weight * loss_of(kind, scores, targets) / len(chosen)
        value = processes.sum(loss.item())
        if not np.isfinite(value):
            raise FloatingPointError(f"loss is {value} at step {step} of {name} seed {seed}; try a lower --lr than "
                                     f"{settings['lr']} or --precision fp32. Nothing of this run is kept but {folder}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings["clip"])
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm.item()} at step {step} of {name} seed {seed}; try a lower "
                                     f"--lr than {settings['lr']} or --precision fp32")
        optimizer.step()

        total, counted = total + value, counted + 1
        if (step + 1) % log_every == 0 or step + 1 == steps:
            log(step + 1, steps, loss=total / counted, lr=optimizer.param_groups[0]["lr"], grad_norm=float(norm))
            total, counted = 0.0, 0

    # --- evaluate: the last epoch's model, never the best one's
    metrics = {"task": name, "seed": seed, "train_rows": len(train), "steps": steps, "split_dev": settings["split_dev"],
               "majority": False, "parts": {}}
    for split in [split for split in rows if split != "train"]:
        examples, targets, meta = splits[split]
        asked = split if split in TASKS else name   # AX and diagnostics are tasks of their own
        scores = predict(kind, bert, head, rows[split], 4 * batch, processes, autocast_type)
        if kind == "span":
            answers, *more = span_answers(rows[split], scores, settings.get("null_threshold"))
            numbers = answer_places(examples, targets, answers)
        else:
            answers = scores if kind == "regression" else scores.argmax(-1)
            numbers = targets, answers
        if processes.master and kind == "span":
            write_squad_answers(folder, split, examples, answers, *more)
        elif processes.master:
            write_predictions(folder, asked, split, examples, targets, scores, answers)
            if targets is None or (split.startswith("test") and not meta):
                write_submission(folder, asked, split, examples, answers)
        if targets is None:
            continue
        metrics[split] = score(asked, targets, answers)
        if name.startswith("TRACIE"):
            metrics[split] |= score_tracie(targets, answers, [example.texts[0] for example in examples])
        if split == "diagnostics":
            metrics["categories"] = score_categories(targets, answers, [e.tags for e in examples], meta)
        if meta:
            metrics["parts"][split] = score_parts(*numbers, meta)
        if asked == name:   # one answer for a whole split: stuck at a constant; 0.01 of STS-B's five points is one, too
            constant = np.ptp(answers) <= 0.01 if kind == "regression" else len(set(answers)) == 1
            metrics["majority"] |= bool(constant) and len(answers) > 1

    # --- save: metrics.json last, it says that the rest is there
    metrics["seconds"] = round(time.time() - start, 2)
    if processes.master:
        log.file.close()
        data.write_json(folder / "metrics.json", metrics)
    return metrics


def summary(metrics):
    """One line on a finished run."""
    name = metrics["task"]
    shown = []
    for split in [key for key in metrics if key.startswith(("dev", "test")) or key in TASKS]:
        named = [(key, metrics[split][key]) for key, _ in METRICS[split if split in TASKS else name]]
        values = " ".join(f"{key} {'not defined' if value is None else f'{value:.3f}'}" for key, value in named)
        parts = metrics["parts"].get(split, {})
        inside = ", ".join(f"{part} {parts[part]['accuracy']:.3f}" for part in PARTS if part in parts)
        shown.append(f"{split} {values}" + f" ({inside})" * bool(inside))
    stuck = "  ! one answer for every row" * metrics["majority"]
    said = "; ".join(shown) or "no labelled split"
    return f"{name} seed {metrics['seed']}: {said}; {metrics['seconds']:.0f} s{stuck}"


def load_task(args, name):
    """All splits of a task that have a file -> {split: (examples, targets, meta)}; says which are missing."""
    folder = task_folder(args.data, name)
    if folder is None:
        raise FileNotFoundError(f"no folder {name} under {args.data}; {GET}")
    splits = {}
    for split in TASKS[name].rows:
        if split == "train" and args.split_dev:
            continue
        try:
            splits[split] = read_split(name, folder, split)
        except FileNotFoundError as error:
            if split == "train":
                raise FileNotFoundError(f"{error} is missing; {GET}, and --split-dev does without") from None
            if split in ("dev", "test"):
                print(f"{name}: no {split} split ({error} is missing), so nothing is said about it")
    for other, place in also_answered(args.data, name):
        try:
            splits[other] = read_split(other, place, "test")
        except FileNotFoundError as error:
            print(f"{name}: {error} is missing, so {other} is not answered")
    if args.split_dev:
        if "dev" not in splits:
            raise FileNotFoundError(f"--split-dev needs the dev file of {name} in {folder}; {GET}")
        half = len(splits["dev"][0]) // 2
        first, second = [tuple(None if part is None else part[cut] for part in splits["dev"])
                         for cut in (slice(None, half), slice(half, None))]
        splits = {"train": first, **splits, "dev": second}
    if splits["train"][1] is None or len(splits["train"][0]) == 0:
        raise ValueError(f"{folder}: no labelled rows to train on")
    if args.train_limit and args.train_limit < len(splits["train"][0]):
        splits["train"] = tuple(None if part is None else part[:args.train_limit] for part in splits["train"])
    return splits


def main(argv=None):
    # --- setup
    args = parse_args(argv)
    processes = data.Processes(args.device)
    if not processes.master:
        sys.stdout = open(os.devnull, "w")   # every process reads the files; what there is to say of them is said once
    torch.set_float32_matmul_precision("high")
    model_folder, run = locate_model(args.model)
    run = Path(args.out or run)
    names = args.task or [name for name in TASKS if task_folder(args.data, name) and not TASKS[name].answered_by]
    if not names:
        raise FileNotFoundError(f"no task folder under {args.data}; `python data.py mini` makes data/mini/tasks")
    weights = next((model_folder / name for name in ("pytorch_model.bin", "model.safetensors")
                    if (model_folder / name).exists()), model_folder / "config.json")
    weights_hash, bert = data.file_hash(weights), None
    config = model.BertConfig.from_dict(data.read_json(model_folder / "config.json", "distill.py"))

    for name in names:
        # --- what is there already: metrics of the same flags, the same weights and the same files
        folder = task_folder(args.data, name)
        files = [path for place in (folder, *[place for _, place in also_answered(args.data, name)]) if place
                 for path in sorted(place.glob("[!.]*.*")) if path.is_file()]   # not what a file manager writes
        if folder and name.startswith("TRACIE"):   # what its reader looks for beside the folder
            files += [path for path in (folder.parent / "iid" / "tracie_test.txt", folder.parent / "test.jsonl")
                      if path.exists() and path not in files]
        digest = hashlib.sha256("".join(map(data.file_hash, files)).encode()).hexdigest() if folder else None
        todo = []
        for seed in args.seed:
            settings = {**settings_for(args, name, config), "seed": seed, "model_sha256": weights_hash,
                        "data_sha256": digest}
            place = run / "finetune" / name / f"seed-{seed}"
            done = (place / "metrics.json").exists() and data.read_json(place / "args.json", "finetune.py")["arguments"]
            changed = [key for key in settings if done and done.get(key) != settings[key]]
            if done and not changed:
                print(f"{place}: complete, nothing to do")
            else:
                if changed:
                    print(f"{place}: {', '.join(changed)} changed, so it is made again")
                todo.append((settings, place))
        processes.barrier()   # nobody writes before all have looked
        if not todo:
            continue

        # --- data, once for all seeds
        try:
            splits = load_task(args, name)
        except FileNotFoundError as error:
            if args.task:
                raise
            print(f"{name} is passed over: {error}")   # found by its folder alone, which two tasks may share
            continue
        tokenizer = data.load_tokenizer(model_folder)
        length, stride = todo[0][0]["max_length"], todo[0][0].get("stride")
        rows = {split: Rows(examples, targets, tokenizer, length) if TASKS[name].kind != "span" else
                Windows(examples, tokenizer, length, stride, split == "train")
                for split, (examples, targets, _) in splits.items()}

        # --- model, once for all tasks
        if bert is None:
            config, bert, _ = model.load_hf(model_folder)
            bert.to(processes.device)
            if tokenizer.get_vocab_size() > config.vocab_size:
                raise ValueError(f"{model_folder}: vocab.txt has {tokenizer.get_vocab_size()} entries, the model "
                                 f"{config.vocab_size}")
            encoder = {key: value.clone() for key, value in bert.state_dict().items()}
        for settings, place in todo:
            metrics = finetune(settings, splits, rows, config, bert, encoder, processes, place, args.log_every)
            print(summary(metrics), flush=True)
    processes.close()


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError, FloatingPointError) as error:
        sys.exit(f"finetune.py: {error}")
