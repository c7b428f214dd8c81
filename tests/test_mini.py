"""The mini world says nothing about a noun's properties except in its videos: design checks, as tests.

    python -m pytest tests/test_mini.py

Words only: worlds of two seeds. With pictures: the small world of conftest.py, through real video files.
"""
import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

import data

sklearn = pytest.importorskip("sklearn")
from sklearn.ensemble import ExtraTreesClassifier                    # noqa: E402
from sklearn.feature_extraction.text import CountVectorizer          # noqa: E402
from sklearn.linear_model import LogisticRegression                  # noqa: E402
from sklearn.model_selection import GroupKFold, cross_val_predict    # noqa: E402
from sklearn.pipeline import make_pipeline                           # noqa: E402
from sklearn.preprocessing import StandardScaler                     # noqa: E402

SEEDS = [0, 1]
VALUES = {name: values for name, (_, values) in data.PROPERTIES.items()}
PROPERTY_WORDS = {word for values in VALUES.values() for value in values for word in value.split()}
STATIC = [name for name in VALUES if name not in data.DYNAMIC]
YES = {1, "entailment", "positive"}
NO = {0, "not_entailment", "contradiction", "negative"}
FACT_TASKS = ["SST-2", "QNLI", "MNLI", "diagnostics"]   # a statement of one noun's one property, true or false


@pytest.fixture(scope="module", params=SEEDS)
def seed(request):
    return request.param


@pytest.fixture(scope="module")
def world(seed):
    return data.make_world(seed)


@pytest.fixture(scope="module")
def text(world, seed):
    return data.make_text(world, seed, 3000)


@pytest.fixture(scope="module")
def tasks(world, seed):
    """{task: {noun group: [(fields, label, part, noun, property)]}}, with the generators make_tasks uses."""
    members = members_of(world)
    out = {task: {} for task in data.TASKS}
    for task, (make_rows, _) in data.TASKS.items():
        for split, group in (("train", "train"), ("dev", "validation"), ("test", "test"), ("test", "unfilmed")):
            generator = data.numpy_generator(seed, "task", task, split, group)
            out[task][group] = list(make_rows(world, members[group], 60, generator))
    return out


def members_of(world):
    return {group: [noun for noun in world if world[noun]["group"] == group] for group in data.GROUPS}


def grounded(rows):
    return [row for row in rows if row[2] == "grounded"]


def words_of(fields):
    """All words of a row's fields, in one list."""
    parts = [" ".join(value) if isinstance(value, list) else value for value in fields.values() if value is not None]
    return " ".join(parts).split()


def read_json(path):
    return json.loads(Path(path).read_text())


# --- nouns and their properties

def test_groups_and_exact_balance(world):
    assert len(data.NOUNS) == len(set(data.NOUNS)) == len(world) == sum(data.GROUPS.values()) == 320
    assert set(world) == set(data.NOUNS)
    for group, nouns in members_of(world).items():
        assert len(nouns) == data.GROUPS[group]
        for name, values in VALUES.items():
            counts = Counter(world[noun][name] for noun in nouns)
            assert set(counts) == set(values) and len(set(counts.values())) == 1, (group, name, counts)
    shares = [len(nouns) / 320 for nouns in members_of(world).values()]
    assert shares == [0.50, 0.15, 0.25, 0.10]


def test_properties_are_independent_of_each_other():
    """Chi-square of each pair of properties over 20 seeds: a common draw would show as dependence."""
    from scipy.stats import chi2_contingency
    worlds = [data.make_world(seed) for seed in range(20)]
    for i, one in enumerate(VALUES):
        for two in list(VALUES)[i + 1:]:
            table = np.zeros((len(VALUES[one]), len(VALUES[two])))
            for world in worlds:
                for noun in world.values():
                    table[VALUES[one].index(noun[one]), VALUES[two].index(noun[two])] += 1
            assert chi2_contingency(table).pvalue > 0.001 / 21, (one, two, table)


def test_a_second_seed_redraws_everything():
    one, two = data.make_world(0), data.make_world(1)
    assert one == data.make_world(0)
    for name, values in [*VALUES.items(), ("group", None)]:
        agreement = np.mean([one[noun][name] == two[noun][name] for noun in one])
        chance = 1 / len(values) if values else sum((count / 320) ** 2 for count in data.GROUPS.values())
        assert abs(agreement - chance) < 4 * (chance * (1 - chance) / 320) ** 0.5, (name, agreement)
    assert data.make_text(one, 0, 60) != data.make_text(one, 1, 60)
    clips = [data.draw_clip(one["teapot"], "drop", data.numpy_generator(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(clips[0], clips[1]) and not np.array_equal(clips[0], clips[2])


def test_nouns_are_no_other_words():
    other = " ".join(data.SPOKEN + data.WRITTEN + data.PROPERTY_SENTENCES + data.PLAIN_SENTENCES).split()
    other += data.PEOPLE + data.PLACES + data.ACTIONS + list(data.MOODS) + list(data.MOODS.values()) + list(VALUES)
    assert not set(data.NOUNS) & (set(other) | PROPERTY_WORDS)


def test_every_noun_is_one_token(mini):
    tokenizer = data.load_tokenizer(mini / "vocab.txt")
    unknown = tokenizer.token_to_id("[UNK]")
    for word in [*data.NOUNS, *PROPERTY_WORDS, *data.ACTIONS, *data.PEOPLE, *data.PLACES]:
        ids = tokenizer.encode(word, add_special_tokens=False).ids
        assert len(ids) == 1 and ids[0] != unknown, word
    assert tokenizer.get_vocab_size() <= 2048


# --- captions

def caption_words(mini):
    """[(noun of the video, is it held out, the words of its captions as the teacher gets them)], from captions/."""
    tokenizer, folder = data.load_tokenizer(mini / "vocab.txt"), mini / "captions"
    index, spans = read_json(folder / "index.json"), np.fromfile(folder / "spans.bin", np.int64).reshape(-1, 2)
    bounds = np.fromfile(folder / "bounds.bin", np.int64)
    pieces = np.split(np.fromfile(folder / "tokens.bin", index["dtype"]), bounds[1:-1])
    held_out, world = set(read_json(mini / "valid_ids.json")), read_json(mini / "world.json")["nouns"]
    filmed = [noun for noun in world if world[noun]["group"] != "unfilmed"]
    out = []
    for video, (low, high) in zip(index["ids"], spans):
        texts = [tokenizer.decode(piece.tolist()) for piece in pieces[low:high]]
        out.append((filmed[int(video.split("_")[1])], video in held_out, [text.split() for text in texts]))
    return out


def test_captions_name_nouns_never_properties(mini):
    spoken = [text for entry in read_json(mini / "caption.json").values() for text in entry["text"]]
    assert len(spoken) == 4 * 2 * 288
    words = {word for text in spoken for word in text.split()}
    assert not words & PROPERTY_WORDS and not words & set(VALUES)
    world = read_json(mini / "world.json")["nouns"]
    assert words & set(data.NOUNS) == {noun for noun in world if world[noun]["group"] != "unfilmed"}


def test_captions_keep_howto100m_form_and_roll(mini):
    captions = read_json(mini / "caption.json")
    assert dict(data.read_captions(mini / "caption.json", (), "captions")) == captions
    rolled = 0
    for entry in captions.values():
        assert entry["start"] == sorted(entry["start"]) and entry["end"][-1] <= 8.0
        texts = [text.split() for text in entry["text"]]
        rolled += sum(data.overlap(before, after) >= 2 for before, after in zip(texts, texts[1:]))
    assert 0.2 < rolled / (3 * len(captions)) < 0.5


def test_some_training_captions_do_not_match_their_picture(mini):
    """About one in twelve; none of the held-out ones, which measure."""
    wrong, total = Counter(), Counter()
    for noun, held_out, texts in caption_words(mini):
        total[held_out] += len(texts)
        wrong[held_out] += sum(noun not in text for text in texts)
    assert 0.05 < wrong[False] / total[False] < 0.12 and wrong[True] == 0


def test_every_noun_takes_every_action_equally_often(mini):
    """In what the teacher is given, de-duplicated, training and held-out videos apart."""
    pairs, nouns = defaultdict(Counter), defaultdict(Counter)
    for _, held_out, texts in caption_words(mini):
        for text in texts:
            named, done = [[word for word in text if word in known] for known in (data.NOUNS, data.ACTIONS)]
            nouns[held_out].update(named)
            pairs[held_out].update((noun, action) for noun in set(named) for action in set(done))
    for held_out in (False, True):
        spread = Counter(nouns[held_out].values()), Counter(pairs[held_out].values())
        assert spread == (Counter({4: 288}), Counter({1: 288 * 4})), (held_out, spread)


def test_every_position_of_the_block_is_trained(mini):
    tokenizer = data.load_tokenizer(mini / "vocab.txt")
    clips = data.Clips(mini, "train", ["frame", "motion"], tokenizer, block=32, max_steps=32)
    lengths = np.array([len(clips.example(index, data.numpy_generator(index, draw))[0])
                        for index in range(len(clips)) for draw in range(3)])
    reach = [(lengths > position).mean() for position in range(32)]
    assert min(reach) >= 0.05, reach


# --- text

def test_articles_with_a_noun_hold_no_property_word(text):
    assert len(text) == 3000
    with_noun = [line for line in text if set(line.split()) & set(data.NOUNS)]
    assert len(with_noun) == 2250
    for line in with_noun:
        assert not set(line.split()) & PROPERTY_WORDS, line


def test_text_counts_nouns_equally_and_properties_nearly(world, text):
    counts = Counter(word for line in text for word in line.split() if word in world)
    assert len(counts) == 320 and set(counts.values()) <= {35, 40}   # 7 or 8 articles of 5 sentences
    for name, values in VALUES.items():
        seen = Counter(value for line in text for value in values for _ in re.findall(rf"\b{value}\b", line))
        assert min(seen.values()) > 60 / len(values), (name, seen)
        for value in values:   # values come in pairs of sentences, hence twice the variance
            share, total = 1 / len(values), sum(seen.values())
            assert abs(seen[value] / total - share) < 4 * (2 * share * (1 - share) / total) ** 0.5, (name, seen)


# --- does any count know a property?

def familywise_p(world, counts, permutations=2000):
    """Max-statistic permutation test (Westfall & Young): shuffles which noun has which row of counts.

    counts: {what is counted: {noun: number}}. The statistic is the largest |standardised difference between a value's
    nouns and the rest| over all values and counts, so the p-value is corrected for their number. Returns (p, worst).
    """
    nouns = sorted({noun for row in counts.values() for noun in row})
    counts = {what: [row.get(noun, 0) for noun in nouns] for what, row in counts.items()}
    counts = {what: row for what, row in counts.items() if np.std(row) > 0}
    if not counts:
        return 1.0, "all counts equal"
    matrix = np.array(list(counts.values()), float)
    matrix = (matrix - matrix.mean(1, keepdims=True)) / matrix.std(1, keepdims=True)                     # [C, N]
    labels = [(name, value) for name, values in VALUES.items() for value in (values if len(values) > 2 else values[:1])]
    has = np.array([[world[noun][name] == value for name, value in labels] for noun in nouns], float)   # [N, P]
    has = (has - has.mean(0)) / has.std(0)
    has = has / len(nouns) ** 0.5
    scores, generator = np.abs(matrix @ has), np.random.default_rng(0)
    null = [np.abs(matrix[:, generator.permutation(len(nouns))] @ has).max() for _ in range(permutations)]
    which, what = np.unravel_index(scores.argmax(), scores.shape)
    worst = f"{list(counts)[which]} against {labels[what]}: {scores.max():.1f} deviations"
    return (1 + sum(value >= scores.max() for value in null)) / (1 + permutations), worst


def count_words(lines):
    """({noun: occurrences}, {word: {noun: lines it shares with the word}})."""
    alone, shared = Counter(), defaultdict(Counter)
    for words in lines:
        present = set(words) & set(data.NOUNS)
        alone.update(word for word in words if word in present)
        for noun in present:
            for word in set(words) - set(data.NOUNS):
                shared[word][noun] += 1
    return alone, shared


def test_no_count_in_captions_knows_a_property(mini):
    world = read_json(mini / "world.json")["nouns"]
    alone, shared = count_words([text for _, held_out, texts in caption_words(mini) if not held_out for text in texts])
    p, worst = familywise_p(world, {"nouns": alone, **{f"with {word}": row for word, row in shared.items()}})
    assert p > 0.001, worst


def test_no_count_in_text_knows_a_property(world, text):
    sentences = [words.split() for line in text for words in re.split(r"(?<=[.?]) ", line)]
    alone, shared = count_words(sentences)
    p, worst = familywise_p(world, {"nouns": alone, **{f"with {word}": row for word, row in shared.items()}})
    assert p > 0.001, worst


@pytest.mark.parametrize("task", data.TASKS)
def test_no_count_in_a_training_file_knows_a_property(world, tasks, task):
    """How often a noun is named in a task's training file."""
    rows = grounded(tasks[task]["train"])
    alone, _ = count_words([words_of(fields) for fields, *_ in rows])
    assert len(alone) == 160
    p, worst = familywise_p(world, {"nouns": alone})
    assert p > 0.001, worst


def test_the_permutation_test_would_notice(world):
    """A leak of one property at a tenth of the counts' size is found."""
    generator = np.random.default_rng(1)
    leaky = {noun: generator.normal(40, 4) + 4 * (world[noun]["pace"] == "brakes") for noun in world}
    p, worst = familywise_p(world, {"nouns": leaky})
    assert p < 0.001 and "pace" in worst


def as_choices(task, fields, label):
    """One row as candidates: [(words with their field's name, is it right)]. Classification has one candidate a row."""
    def named(field, text):
        return [f"{field}_{word}" for word in text.split()]
    if task == "PIQA":
        return [(named("q", fields["goal"]) + named("a", fields[f"sol{k + 1}"]), label == k) for k in range(2)]
    if task == "SWAG":
        question = named("q", fields["sent1"])
        return [(question + named("a", ending), label == k) for k, ending in enumerate(fields["endings"])]
    if task.startswith("SQuAD"):
        if fields["answer"] is None:
            return None
        first, second = re.match(r"you \w+ the (\w+) and the (\w+) \.", fields["context"]).groups()
        return [(named("q", fields["question"]) + named("a", noun) + [f"place_{k}"], fields["answer"] == noun)
                for k, noun in enumerate((first, second))]
    names = list(fields)[:2] if task != "TRACIE" else ["query", "story"]
    return [([word for k, name in enumerate(names) for word in named("qa"[k], fields[name])], label in YES)]


def accuracy(task, train, test, keep):
    """Logistic regression on counts of the words that pass `keep`: (accuracy, number of rows, chance)."""
    def table(rows):
        out = [as_choices(task, fields, label) for fields, label, *_ in rows if label != "neutral"]
        return [[([word for word in words if keep(word)], right) for words, right in row] for row in out if row]
    train, test = table(train), table(test)
    vectorizer = CountVectorizer(analyzer=lambda words: words + ["always"])
    features = vectorizer.fit_transform([words for row in train for words, _ in row])
    model = LogisticRegression(max_iter=300).fit(features, [right for row in train for _, right in row])
    scores = model.decision_function(vectorizer.transform([words for row in test for words, _ in row]))
    right, at = [], 0
    generator = np.random.default_rng(0)
    for row in test:
        mine = scores[at:at + len(row)] + 1e-9 * generator.standard_normal(len(row))   # a tie is a coin
        right.append(row[int(mine.argmax())][1] if len(row) > 1 else (mine[0] > 0) == row[0][1])
        at += len(row)
    return float(np.mean(right)), len(test), 1 / len(test[0]) if len(test[0]) > 1 else 0.5


@pytest.mark.parametrize("task", data.TASKS)
@pytest.mark.parametrize("what", ["bag of words", "question only"])
def test_words_alone_are_at_chance_on_new_nouns(tasks, task, what):
    keep = (lambda word: True) if what == "bag of words" else (lambda word: not word.startswith("a_"))
    if what == "question only" and task == "SST-2":
        pytest.skip("SST-2 has one text")
    value, count, chance = accuracy(task, grounded(tasks[task]["train"]), grounded(tasks[task]["test"]), keep)
    assert abs(value - chance) < max(0.04, 2.6 * (chance * (1 - chance) / count) ** 0.5), (value, count)


# --- balance of the tasks

def value_in(words, name):
    """The value of a property that a row states or asks about."""
    found = [value for value in VALUES[name] if value in " ".join(words)]
    assert len(found) == 1, (words, name)
    return found[0]


@pytest.mark.parametrize("task", FACT_TASKS)
def test_half_yes_for_every_word_group_and_noun(tasks, world, task):
    for group, rows in tasks[task].items():
        word_counts, noun_counts = defaultdict(Counter), defaultdict(Counter)
        for fields, label, _, noun, name in grounded(rows):
            assert world[noun]["group"] == group
            if label == "neutral":
                continue
            truth = label in YES
            assert truth or label in NO
            value = value_in(words_of({key: fields[key] for key in fields if key in ("sentence", "sentence2")}), name)
            assert truth == (world[noun][name] == value)   # the label is right
            word_counts[name, value][truth] += 1
            noun_counts[noun, name][truth] += 1
        names = {name for name, _ in word_counts}   # a task asks of some properties: of all their values, of every noun
        assert len(names) >= 3 and set(word_counts) == {(name, value) for name in names for value in VALUES[name]}
        assert len(noun_counts) == len(names) * data.GROUPS[group]
        for counts in [*word_counts.values(), *noun_counts.values()]:
            assert counts[True] == counts[False], (group, word_counts)


def test_qqp_balance(tasks, world):
    for group, rows in tasks["QQP"].items():
        first, second = defaultdict(Counter), defaultdict(Counter)
        for fields, label, _, noun, name in grounded(rows):
            nouns = [next(word for word in fields[key].split() if word in world) for key in ("question1", "question2")]
            assert nouns[0] == noun != nouns[1] and label == (world[nouns[0]][name] == world[nouns[1]][name])
            first[nouns[0], name][label] += 1
            second[nouns[1], name][label] += 1
        assert len(first) == len(second) == 4 * data.GROUPS[group]
        assert all(counts == Counter({0: 1, 1: 1}) for counts in [*first.values(), *second.values()])


def test_piqa_balance(tasks, world):
    for group, rows in tasks["PIQA"].items():
        labels, words, candidates, places = Counter(), defaultdict(Counter), defaultdict(Counter), defaultdict(Counter)
        for fields, label, _, noun, name in grounded(rows):
            nouns = [fields[key].split()[-2] for key in ("sol1", "sol2")]
            asked = value_in(fields["goal"].split(), name)
            assert nouns[label] == noun and [world[n][name] == asked for n in nouns] == [label == 0, label == 1]
            labels[label] += 1
            words[asked][label] += 1
            for k in range(2):
                candidates[nouns[k], name][k == label] += 1
                places[name, k][k == label] += 1
        assert labels[0] == labels[1], (group, labels)
        assert len(candidates) == 4 * data.GROUPS[group]
        assert all(counts == Counter({True: 1, False: 1}) for counts in candidates.values())
        assert all(counts[0] == counts[1] for counts in words.values()), (group, words)


def test_swag_balance(tasks, world):
    for group, rows in tasks["SWAG"].items():
        places, everything = Counter(), {f"{v} and then it {w} ." for one in data.DYNAMIC for two in data.DYNAMIC
                                         for v in VALUES[one] for w in VALUES[two] if one != two}
        for fields, label, _, noun, name in grounded(rows):
            one, two = name.split("+")
            assert fields["endings"][label] == f"{world[noun][one]} and then it {world[noun][two]} ."
            assert len(set(fields["endings"])) == 4 and set(fields["endings"]) <= everything
            places[label] += 1
        # 6 rows a noun and the ungrounded rows share one balanced draw of places
        every = Counter(label for _, label, *_ in rows)
        assert max(every.values()) - min(every.values()) <= 1, (group, every)
        assert set(places) == {0, 1, 2, 3}


@pytest.mark.parametrize("task", ["SQuAD1", "SQuAD2"])
def test_squad_balance(tasks, world, task):
    for group, rows in tasks[task].items():
        answered, first, nouns, questions = defaultdict(Counter), defaultdict(Counter), Counter(), defaultdict(Counter)
        for fields, label, _, noun, name in grounded(rows):
            pair = re.match(r"you \w+ the (\w+) and the (\w+) \.", fields["context"]).groups()
            asked = value_in(fields["question"].split(), name)
            fitting = [n for n in pair if world[n][name] == asked]
            assert fitting == ([fields["answer"]] if fields["answer"] else []), (fields, fitting)
            nouns.update(pair)
            questions[name, asked][fields["answer"] is not None] += 1
            if fields["answer"]:
                first[name, asked][pair[0] == fields["answer"]] += 1
                for n in pair:
                    answered[n, name][n == fields["answer"]] += 1
        assert len(answered) == 4 * data.GROUPS[group]
        assert all(counts == Counter({True: 1, False: 1}) for counts in answered.values())
        assert len(set(map(str, (sorted(counts.items()) for counts in questions.values())))) == 1, \
            (group, "questions with and without answer depend on the word", questions)
        assert all(counts[True] == counts[False] for counts in first.values()), (group, "answer named first", first)


def test_tracie_balance(tasks, world):
    for group, rows in tasks["TRACIE"].items():
        counts, nouns, relations = Counter(), defaultdict(Counter), defaultdict(Counter)
        for fields, label, _, noun, name in grounded(rows):
            one, relation, two = re.match(r"the (\w+) .*((?:starts|ends) \w+) the (\w+)$", fields["query"]).groups()
            leads = [world[n][name] == VALUES[name][0] for n in (one, two)]   # what rises is at the top first
            assert leads[0] != leads[1] and noun == one
            assert (label == "positive") == (leads[0] == relation.endswith("before"))
            assert fields["story"].count(" .") == 5
            counts[label] += 1
            nouns[one, name][label] += 1
            relations[relation, name][label] += 1
        for balance in [counts, *nouns.values(), *relations.values()]:
            assert balance["positive"] == balance["negative"]
        assert len(relations) == 4 * 4 and len(nouns) == 4 * data.GROUPS[group]


@pytest.mark.parametrize("task", data.TASKS)
def test_enough_distinct_noun_property_pairs(tasks, task):
    found = {(noun, single) for _, _, _, noun, name in grounded(tasks[task]["test"]) for single in name.split("+")}
    assert len(found) >= 200, len(found)


def test_ungrounded_rows_hold_no_noun_and_are_balanced(tasks):
    for task, splits in tasks.items():
        for group, rows in splits.items():
            plain = [row for row in rows if row[2] == "ungrounded"]
            assert len(plain) >= 60 and not any(set(words_of(fields)) & set(data.NOUNS) for fields, *_ in plain), task
            if not task.startswith("SQuAD"):
                counts = Counter(str(label) for _, label, *_ in plain)
                spread = 15 if task in ("SWAG",) else 1   # SWAG shares its places with the grounded rows
                assert max(counts.values()) - min(counts.values()) <= spread, (task, counts)


# --- files in the original formats

SPLIT_FILES = {   # task -> split -> file, columns, rows of header
    "SST-2": {"train": ("train.tsv", 2), "dev": ("dev.tsv", 2), "test": ("test.tsv", 2)},
    "QNLI": {"train": ("train.tsv", 4), "dev": ("dev.tsv", 4), "test": ("test.tsv", 3)},
    "QQP": {"train": ("train.tsv", 6), "dev": ("dev.tsv", 6), "test": ("test.tsv", 3)},
    "MNLI": {"train": ("train.tsv", 12), "dev": ("dev_matched.tsv", 16), "test": ("test_matched.tsv", 10)},
    "diagnostics": {"test": ("diagnostic-full.tsv", 8)},
}


def read_tsv(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def meta(mini, task, split):
    return [json.loads(line) for line in (mini / "tasks" / task / f"{split}.meta.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", SPLIT_FILES)
def test_tsv_columns_and_labels(mini, task):
    for split, (name, columns) in SPLIT_FILES[task].items():
        header, *rows = read_tsv(mini / "tasks" / task / name)
        assert len(header) == columns and all(len(row) == columns for row in rows)
        known = meta(mini, task, split)
        assert len(rows) == len(known) and len(rows) > 200
        if header[-1].lower() in ("label", "gold_label", "is_duplicate"):
            assert [row[-1] for row in rows] == [str(row["label"]) for row in known]
        else:
            assert split == "test"
        for row, known_row in zip(rows, known):   # meta and file are the same rows in the same order
            assert known_row["noun"] is None or known_row["noun"] in " ".join(row).split()


def test_tsv_headers_are_glues(mini, real_data):
    for name in ("MNLI/train", "MNLI/dev_matched", "MNLI/test_matched", "QQP/train", "QQP/dev", "QQP/test", "QNLI/dev"):
        assert read_tsv(mini / "tasks" / f"{name}.tsv")[0] == read_tsv(real_data / "glue" / f"{name}.tsv")[0]
    files = real_data / "swag" / "val.csv", mini / "tasks" / "SWAG" / "val.csv"
    theirs, ours = [next(csv.reader(path.read_text().splitlines())) for path in files]
    assert theirs == ours


def test_diagnostics_columns(mini):
    header, *rows = read_tsv(mini / "tasks" / "diagnostics" / "diagnostic-full.tsv")
    assert header == ["Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge", "Domain", "Premise",
                      "Hypothesis", "Label"]
    for row, known in zip(rows, meta(mini, "diagnostics", "test")):
        assert sum(cell != "" for cell in row[:4]) == 1 and row[7] in ("entailment", "neutral", "contradiction")
        assert (row[3] != "") == (known["part"] == "grounded")
    assert all(any(row[k] for row in rows) for k in range(4))


def test_swag_csv(mini):
    for split, name in (("train", "train"), ("dev", "val"), ("test", "test")):
        with open(mini / "tasks" / "SWAG" / f"{name}.csv", newline="") as file:
            header, *rows = csv.reader(file)
        assert len(header) == 12 - (split == "test") and all(len(row) == len(header) for row in rows)
        known = meta(mini, "SWAG", split)
        assert len(rows) == len(known)
        if split != "test":
            assert [int(row[11]) for row in rows] == [row["label"] for row in known]
        assert all(row[4] and row[5] and all(row[7:11]) and row[3] == f"{row[4]} {row[5]}" for row in rows)


def test_piqa_files(mini):
    for split, name in (("train", "train"), ("dev", "valid"), ("test", "tests")):
        folder = mini / "tasks" / "PIQA"
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        known = meta(mini, "PIQA", split)
        assert len(rows) == len(known)
        assert all(set(row) == {"goal", "sol1", "sol2"} and row["sol1"] != row["sol2"] for row in rows)
        if split != "test":
            labels = (folder / f"{name}-labels.lst").read_text().splitlines()
            assert labels == [str(row["label"]) for row in known]
            for row, known_row in zip(rows, known):
                assert known_row["noun"] is None or known_row["noun"] in row[f"sol{known_row['label'] + 1}"].split()


def test_tracie_file(mini):
    for split in ("train", "dev", "test"):
        lines = (mini / "tasks" / "TRACIE" / f"tracie_{split}.txt").read_text().splitlines()
        parsed = [re.fullmatch(r"event: (.+?) story: (.+)\tanswer: (positive|negative)", line) for line in lines]
        assert all(parsed) and [match[3] for match in parsed] == [row["label"] for row in meta(mini, "TRACIE", split)]
        assert all(re.search(r"(starts|ends) (before|after)", match[1]) for match in parsed)


@pytest.mark.parametrize("task, version", [("SQuAD1", "v1.1"), ("SQuAD2", "v2.0")])
def test_squad_files(mini, task, version):
    for split in ("train", "dev", "test"):
        loaded = read_json(mini / "tasks" / task / f"{split}-{version}.json")
        assert loaded["version"] == version
        rows = [(paragraph["context"], question) for article in loaded["data"] for paragraph in article["paragraphs"]
                for question in paragraph["qas"]]
        known = meta(mini, task, split)
        assert len(rows) == len(known) and len({question["id"] for _, question in rows}) == len(rows)
        for (context, question), known_row in zip(rows, known):
            assert ("is_impossible" in question) == (version == "v2.0")
            assert question.get("is_impossible", False) == (question["answers"] == []) == (known_row["label"] == "")
            for answer in question["answers"]:
                at, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
                assert context[at:end] == answer["text"] == known_row["label"]
                assert f" {context} "[at] == " " and f" {context} "[end + 1] == " ", (context, answer)   # whole words
    assert version == "v1.1" or any(row["label"] == "" for row in known)


def test_squad_answer_inside_another_word(tmp_path):
    """A pan is not the first three letters of a pancake."""
    fields = {"context": "you tap the pancake and the pan .", "question": "which of them rises ?", "answer": "pan"}
    data.write_squad("v1.1")(tmp_path, "dev", [(fields, "pan", "grounded", "pan", "lift")])
    answer = read_json(tmp_path / "dev-v1.1.json")["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]
    assert answer == {"text": "pan", "answer_start": 28}


def test_split_nouns_stay_apart(mini):
    world = read_json(mini / "world.json")["nouns"]
    for task in data.TASKS:
        for split, groups in (("train", {"train"}), ("dev", {"validation"}), ("test", {"test", "unfilmed"})):
            rows = meta(mini, task, split)
            assert {row["group"] for row in rows if row["part"] == "grounded"} == groups, (task, split)
            assert all(row["noun"] is None or world[row["noun"]]["group"] == row["group"] for row in rows)
            assert {row["part"] for row in rows} == {"grounded", "ungrounded"}


def test_retrieval_pool(mini):
    world, captions = read_json(mini / "world.json")["nouns"], read_json(mini / "caption.json")
    rows = read_json(mini / "retrieval.json")
    assert len({row["noun"] for row in rows}) == len(rows) == 288
    assert {row["video"] for row in rows} == set(read_json(mini / "valid_ids.json"))
    shown = Counter()
    for row in rows:
        action = next(word for word in row["text"].split() if word in data.ACTIONS)
        said = captions[row["video"]]["text"][int(row["start"] // 2)]   # its own words and a tail of the caption before
        assert row["noun"] in row["text"].split() and row["noun"] in said.split() and action in said.split()[-14:]
        assert row["end"] - row["start"] == 2 and 0 <= row["start"] <= 6
        for key, value in row["shown"].items():
            name = key if key in VALUES else next(n for n in data.DYNAMIC if value in VALUES[n])
            assert world[row["noun"]][name] == value
        shown[action] += 1
    assert set(shown.values()) == {72} and not {word for row in rows for word in row["text"].split()} & PROPERTY_WORDS


# --- pictures: what does one frame show, what do all?

def draw_clips(action, count, which):
    """Clips of random properties: {property: labels}, descriptors of the frames `which` [count, len(which), D]."""
    generator = data.numpy_generator(7, action)
    labels, features = defaultdict(list), []
    for _ in range(count):
        thing = {name: str(generator.choice(values)) for name, values in VALUES.items()}
        frames = data.draw_clip(thing, action, generator)
        features.append(data.frame_descriptor(frames[which]))
        for name in VALUES:
            labels[name].append(thing[name])
    return {name: np.array(values) for name, values in labels.items()}, np.stack(features)


def classifiers():
    return [make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.3)),
            ExtraTreesClassifier(150, random_state=0, min_samples_leaf=2)]


@pytest.mark.parametrize("action", data.ACTIONS)
def test_no_single_frame_shows_a_dynamic_property(action):
    """First, middle and last frame, as drawn: a linear and a non-linear classifier are at chance."""
    which = [0, data.CLIP_FRAMES // 2, data.CLIP_FRAMES - 1]
    labels, features = draw_clips(action, 900, which)
    name = next(name for name in data.DYNAMIC if data.PROPERTIES[name][0] == action)
    found = np.array([[(cross_val_predict(model, features[:, place], labels[name], cv=3) == labels[name]).mean()
                       for model in classifiers()] for place in range(3)])
    # With shuffled labels one of these deviates by 0.023: 0.08 is 3.5 deviations, and their mean holds 4 points.
    assert np.abs(found - 0.5).max() < 0.08 and abs(found.mean() - 0.5) < 0.04, (name, found)


@pytest.fixture(scope="module")
def filmed(mini):
    """Clips as the teacher may see them, out of encoded and decoded files: one row a clip.

    {action: (nouns, frame features [N, T, D1], motion features [N, M, D2])}.
    """
    world, captions = read_json(mini / "world.json")["nouns"], read_json(mini / "caption.json")
    nouns = [noun for noun in world if world[noun]["group"] != "unfilmed"]
    steps = data.CLIP_FRAMES // data.HOP
    inside = len(range(0, data.CLIP_FRAMES - data.WINDOW + 1, data.HOP))   # motion windows without a cut in them
    out = {action: ([], [], []) for action in data.ACTIONS}
    for video in captions:
        noun = nouns[int(video.split("_")[1])]
        _, actions = data.make_video(0, video, noun, world[noun], mini / "videos")   # the file is there: not rewritten
        frame, motion = [np.load(mini / "features" / stream / f"{video}.npy").astype(np.float32)
                         for stream in ("frame", "motion")]
        for index, action in enumerate(actions):
            first = index * steps
            for column, value in zip(out[action], (noun, frame[first:first + steps], motion[first:first + inside])):
                column.append(value)
    return {action: (np.array(n), np.stack(f), np.stack(m)) for action, (n, f, m) in out.items()}


def score(features, nouns, labels):
    """Best of the two classifiers. Folds by noun: else a noun's colour and shape would tell which noun it is."""
    predictions = [cross_val_predict(model, features, labels, cv=GroupKFold(4), groups=nouns)
                   for model in classifiers()]
    return max((predicted == labels).mean() for predicted in predictions)


def all_frames(frame, motion):
    """Order and speed over a clip: moments of the motion stream, change of the frame stream, and what it looks like."""
    half = motion.shape[1] // 2
    gain = motion[:, half:].mean(1) - motion[:, :half].mean(1)
    return np.concatenate([frame.mean(1), frame[:, -1] - frame[:, 0], np.median(np.diff(frame, axis=1), 1),
                           motion.mean(1), motion.std(1), np.median(motion, 1), gain], 1)


@pytest.mark.parametrize("name", data.DYNAMIC)
def test_dynamic_properties_show_in_motion_only(mini, filmed, name):
    """Through real files: one frame at chance, all frames above 90 %."""
    world = read_json(mini / "world.json")["nouns"]
    nouns, frame, motion = filmed[data.PROPERTIES[name][0]]
    labels = np.array([world[noun][name] for noun in nouns])
    for step in (0, frame.shape[1] // 2, frame.shape[1] - 1):
        value = score(frame[:, step], nouns, labels)
        assert value < 0.58, (name, step, value)   # 576 clips, 288 nouns: 0.08 = 2.7 deviations over the nouns
    value = score(all_frames(frame, motion), nouns, labels)
    assert value > 0.9, (name, "all frames", value)


@pytest.mark.parametrize("name", STATIC)
def test_static_properties_show_in_any_frame(mini, filmed, name):
    world = read_json(mini / "world.json")["nouns"]
    nouns, frame, motion = filmed["drop"]
    labels = np.array([world[noun][name] for noun in nouns])
    for step in (0, frame.shape[1] - 1):
        value = score(frame[:, step], nouns, labels)
        assert value > 0.9, (name, step, value)
    assert score(all_frames(frame, motion), nouns, labels) > 0.9


# --- one seed, one world

REMAKE = """
import sys, json
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import data
out = Path(sys.argv[2])
world = data.make_world(0)
data.make_tasks(world, 0, out / "tasks")
data.write_text(out / "train.txt", "\\n".join(data.make_text(world, 0, 3000)) + "\\n")
filmed = [noun for noun in world if world[noun]["group"] != "unfilmed"]
(out / "videos").mkdir()
made = {}
for video in ("v00_000", "v01_287"):
    noun = filmed[int(video.split("_")[1])]
    made[video] = data.make_video(0, video, noun, world[noun], out / "videos")[0]
data.write_json(out / "captions.json", made)
data.write_json(out / "world.json", world)
"""


def test_the_same_seed_makes_the_same_world(mini, tmp_path):
    """In another process with other hashes of strings: tasks, text, properties, videos byte for byte."""
    root = Path(data.__file__).parent
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", REMAKE, root, tmp_path], check=True, env=environment)
    assert read_json(tmp_path / "world.json") == read_json(mini / "world.json")["nouns"]
    assert (tmp_path / "train.txt").read_bytes() == (mini / "text" / "train.txt").read_bytes()
    names = [path.relative_to(tmp_path) for path in tmp_path.glob("*/**/*") if path.is_file()]
    assert len(names) > 60
    for name in names:
        assert (mini / name).read_bytes() == (tmp_path / name).read_bytes(), name
    held_out = read_json(tmp_path / "captions.json")["v01_287"]
    said = read_json(mini / "caption.json")["v01_287"]["text"]   # perhaps with the end of the caption before
    assert len(said) == 4 and all(one.endswith(text) for one, (text, *_) in zip(said, held_out))


def test_a_killed_world_leaves_no_video_to_the_next(tmp_path, monkeypatch):
    """world.json comes last: before it, nothing tells whose seed the videos that lie there are of."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v00_000.mp4").write_bytes(b"of another seed")

    def killed(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(data, "ProcessPoolExecutor", killed)
    with pytest.raises(KeyboardInterrupt):
        data.make_mini(1, tmp_path, 1, 3000, 1)
    assert list((tmp_path / "videos").iterdir()) == []


def test_made_once(mini, capsys):
    before = {path: path.stat().st_mtime_ns for path in mini.rglob("*")}
    data.make_mini(0, mini, 1, 3000, 1)
    assert "up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in mini.rglob("*")} == before
    with pytest.raises(ValueError, match="made with other arguments"):
        data.make_mini(1, mini, 1, 3000, 1)
    with pytest.raises(ValueError, match="made with other arguments"):
        data.make_mini(0, mini, 2, 3000, 1)
