"""The mini world says nothing about a noun's properties except in its videos: design checks.

    python -m pytest tests/test_mini.py

Words: worlds of two seeds. Pictures and files: the small world of conftest.py.
"""
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import data
import finetune
import model

sklearn = pytest.importorskip("sklearn")
from scipy.stats import chi2_contingency                             # noqa: E402
from sklearn.ensemble import ExtraTreesClassifier                    # noqa: E402
from sklearn.feature_extraction.text import CountVectorizer          # noqa: E402
from sklearn.linear_model import LogisticRegression                  # noqa: E402
from sklearn.model_selection import GroupKFold, cross_val_predict    # noqa: E402
from sklearn.pipeline import make_pipeline                           # noqa: E402
from sklearn.preprocessing import StandardScaler                     # noqa: E402

VALUES = {name: values for name, (_, values) in data.PROPERTIES.items()}
PROPERTY_WORDS = {word for values in VALUES.values() for word in " ".join(values).split()}
NOUNS = set(data.NOUNS)
YES = {1, "entailment", "positive"}


@pytest.fixture(scope="module", params=[0, 1])
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
    """{task: {group of nouns: rows}}; the test split's ungrounded rows are the group test's."""
    groups = {}
    for task in data.TASKS:
        groups[task] = defaultdict(list)
        for split, (first, _) in data.SPLITS.items():
            for row in data.task_rows(world, seed, task, split):
                groups[task][world.get(row.noun, {"group": first[0]})["group"]].append(row)
    return groups


@pytest.fixture(scope="module")
def made(mini):
    """The nouns of the world that lies in `mini`."""
    return read_json(mini / "world.json")["nouns"]


def grounded(rows):
    return [row for row in rows if row.noun]


def read_json(path):
    return json.loads(Path(path).read_text())


# --------------------------------------------------------------------------------------------------
# Nouns and their properties


def test_groups_and_exact_balance(world):
    assert len(data.NOUNS) == len(NOUNS) == 320 and set(world) == NOUNS
    assert [count / 320 for count in data.GROUPS.values()] == [0.50, 0.15, 0.25, 0.10]
    for group, count in data.GROUPS.items():
        nouns = data.having(world, world, "group", group)
        assert len(nouns) == count
        for name, values in VALUES.items():
            counts = Counter(world[noun][name] for noun in nouns)
            assert counts == dict.fromkeys(values, count // len(values)), (group, name)


def test_properties_are_independent_of_each_other():
    """Chi-square of each pair of properties over 20 seeds: a common draw would show."""
    worlds = [data.make_world(seed) for seed in range(20)]
    for one, two in combinations(VALUES, 2):
        table = np.zeros((len(VALUES[one]), len(VALUES[two])))
        for world in worlds:
            for noun in world.values():
                table[VALUES[one].index(noun[one]), VALUES[two].index(noun[two])] += 1
        assert chi2_contingency(table).pvalue > 0.001 / 21, (one, two, table)


def test_a_second_seed_redraws_everything():
    one = data.make_world(0)
    two = data.make_world(1)
    assert one == data.make_world(0)
    chances = {name: 1 / len(values) for name, values in VALUES.items()}
    chances["group"] = sum((count / 320) ** 2 for count in data.GROUPS.values())
    for name, chance in chances.items():
        agreement = np.mean([one[noun][name] == two[noun][name] for noun in one])
        assert abs(agreement - chance) < 4 * (chance * (1 - chance) / 320) ** 0.5, name
    assert data.make_text(one, 0, 60) != data.make_text(one, 1, 60)
    clips = []
    for seed in (0, 0, 1):
        clips.append(data.draw_clip(one["teapot"], "drop", data.numpy_generator(seed)))
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])


def test_nouns_are_no_other_words():
    sentences = data.SPOKEN + data.WRITTEN + data.DYNAMIC_SENTENCES + data.STATIC_SENTENCES
    other = set(" ".join(sentences + data.PLAIN_SENTENCES).split()) | PROPERTY_WORDS | set(VALUES)
    other.update(data.PEOPLE, data.PLACES, data.ACTIONS, data.MOODS, data.MOODS.values())
    assert not NOUNS & other


def test_every_word_is_one_token(mini, made):
    tokenizer = data.load_tokenizer(mini)
    words = NOUNS | PROPERTY_WORDS | set(data.ACTIONS + data.PEOPLE + data.PLACES)
    for task in data.TASKS:
        for row in data.task_rows(made, 0, task, "test"):
            texts = [text for name, text in row.fields.items() if name not in data.CATEGORIES]
            words.update(" ".join(texts).split())
    for word in words:
        assert len(tokenizer.encode(word, add_special_tokens=False).ids) == 1, word
        assert tokenizer.token_to_id(word) is not None, word
    assert tokenizer.get_vocab_size() <= 2048


# --------------------------------------------------------------------------------------------------
# Captions


@pytest.fixture(scope="module")
def spoken(mini, made):
    """{held out?: [(noun of the video, the words of its captions as the teacher gets them)]}."""
    tokenizer = data.load_tokenizer(mini)
    folder = mini / "captions"
    index = read_json(folder / "index.json")
    spans = np.fromfile(folder / "spans.bin", np.int64).reshape(-1, 2)
    bounds = np.fromfile(folder / "bounds.bin", np.int64)
    pieces = np.split(np.fromfile(folder / "tokens.bin", index["dtype"]), bounds[1:-1])
    held_out = set(read_json(mini / "valid_ids.json"))
    filmed = data.filmed_nouns(made)
    videos = {False: [], True: []}
    for video, (low, high) in zip(index["ids"], spans):
        texts = [tokenizer.decode(piece.tolist()).split() for piece in pieces[low:high]]
        videos[video in held_out].append((filmed[int(video.split("_")[1])], texts))
    return videos


def test_captions_name_nouns_never_properties(mini, made):
    texts = []
    for entry in read_json(mini / "caption.json").values():
        texts += entry["text"]
    assert len(texts) == 4 * 2 * 288
    words = set(" ".join(texts).split())
    assert not words & PROPERTY_WORDS and not words & set(VALUES)
    assert words & NOUNS == set(data.filmed_nouns(made))


def test_captions_have_howto100ms_form_and_roll(mini):
    captions = read_json(mini / "caption.json")
    rolled = 0
    for entry in captions.values():
        assert list(entry) == ["text", "start", "end"]
        assert entry["start"] == sorted(entry["start"]) and entry["end"][-1] <= 8.0
        texts = [text.split() for text in entry["text"]]
        for before, after in zip(texts, texts[1:]):
            rolled += any(before[-count:] == after[:count] for count in (2, 3, 4))
    assert 0.2 < rolled / (3 * len(captions)) < 0.5


def test_some_training_captions_do_not_match_their_picture(spoken):
    """About one in twelve; none of the held-out ones, which measure."""
    share = {}
    for held_out, videos in spoken.items():
        wrong = [noun not in text for noun, texts in videos for text in texts]
        share[held_out] = np.mean(wrong)
    assert 0.05 < share[False] < 0.12 and share[True] == 0


def test_every_noun_takes_every_action_equally_often(spoken):
    """In what the teacher is given, training and held-out videos apart."""
    for videos in spoken.values():
        nouns = Counter()
        pairs = Counter()
        for _, texts in videos:
            for text in texts:
                named = [word for word in text if word in NOUNS]
                done = [word for word in text if word in data.ACTIONS]
                nouns.update(named)
                pairs.update((noun, action) for noun in set(named) for action in set(done))
        assert Counter(nouns.values()) == {4: 288}
        assert Counter(pairs.values()) == {1: 288 * 4}


def test_every_position_of_the_block_is_trained(mini):
    tokenizer = data.load_tokenizer(mini)
    streams = ["frame", "motion"]
    clips = data.Clips(mini, "train", streams, tokenizer, block=32, max_steps=32)
    lengths = []
    for index in range(len(clips)):
        for draw in range(3):
            lengths.append(len(clips.example(index, data.numpy_generator(index, draw))[0]))
    reach = [np.mean(np.array(lengths) > position) for position in range(32)]
    assert min(reach) >= 0.05, reach


# --------------------------------------------------------------------------------------------------
# Text


def test_articles_with_a_noun_hold_no_property_word(text):
    with_noun = [line for line in text if set(line.split()) & NOUNS]
    assert (len(text), len(with_noun)) == (3000, 2250)
    assert not set(" ".join(with_noun).split()) & PROPERTY_WORDS


def test_text_counts_nouns_equally_and_properties_nearly(text):
    counts = Counter(word for word in " ".join(text).split() if word in NOUNS)
    assert len(counts) == 320 and set(counts.values()) <= {35, 40}   # 7 or 8 articles of 5
    for name, values in VALUES.items():
        seen = [len(re.findall(rf"\b{value}\b", " ".join(text))) for value in values]
        share = 1 / len(values)
        assert min(seen) > 60 * share, (name, seen)
        # values come in pairs of sentences, hence twice the variance
        spread = 4 * (2 * share * (1 - share) / sum(seen)) ** 0.5
        assert np.abs(np.array(seen) / sum(seen) - share).max() < spread, (name, seen)


# --------------------------------------------------------------------------------------------------
# Does any count know a property?


def familywise_p(world, counts, permutations=1000):
    """Max-statistic permutation test (Westfall & Young): shuffles which noun has which counts.

    counts: {what is counted: {noun: number}}. The statistic is the largest standardised difference
    between a value's nouns and the rest over all values and counts, so that the p-value is
    corrected for their number. Returns (p, what differs most).
    """
    nouns = sorted({noun for row in counts.values() for noun in row})
    rows = {what: [row.get(noun, 0) for noun in nouns] for what, row in counts.items()}
    rows = {what: row for what, row in rows.items() if np.std(row) > 0}
    if not rows:
        return 1.0, "all counts equal"
    matrix = StandardScaler().fit_transform(np.array(list(rows.values()), float).T).T    # [C, N]
    labels = [(name, value) for name, values in VALUES.items() for value in values]
    has = [[world[noun][name] == value for name, value in labels] for noun in nouns]
    has = StandardScaler().fit_transform(np.array(has, float)) / len(nouns) ** 0.5       # [N, V]
    scores = np.abs(matrix @ has)
    generator = np.random.default_rng(0)
    above = 0
    for _ in range(permutations):
        shuffled = has[generator.permutation(len(nouns))]
        above += np.abs(matrix @ shuffled).max() >= scores.max()
    what, which = np.unravel_index(scores.argmax(), scores.shape)
    return (1 + above) / (1 + permutations), f"{list(rows)[what]} against {labels[which]}"


def count_words(lines):
    """{"alone" or a word: {noun: in how many lines it stands, or shares one with the word}}."""
    counts = defaultdict(Counter)
    for words in map(set, lines):
        for noun in words & NOUNS:
            counts["alone"][noun] += 1
            for word in words - NOUNS:
                counts[word][noun] += 1
    return counts


def test_no_count_in_captions_knows_a_property(spoken, made):
    lines = []
    for _, texts in spoken[False]:
        lines += texts
    p, worst = familywise_p(made, count_words(lines))
    assert p > 0.001, worst


def test_no_count_in_text_knows_a_property(world, text):
    sentences = [part.split() for line in text for part in re.split(r"(?<=[.?]) ", line)]
    p, worst = familywise_p(world, count_words(sentences))
    assert p > 0.001, worst


@pytest.mark.parametrize("task", data.TASKS)
def test_no_count_in_a_training_file_knows_a_property(world, tasks, task):
    """How often a noun is named."""
    rows = grounded(tasks[task]["train"])
    counts = count_words(" ".join(row.fields.values()).split() for row in rows)
    assert len(counts["alone"]) == 160
    p, worst = familywise_p(world, {"alone": counts["alone"]})
    assert p > 0.001, worst


def test_the_permutation_test_would_notice(world):
    """A leak of one property at a tenth of the counts' size is found."""
    generator = np.random.default_rng(1)
    leaky = {}
    for noun in world:
        leaky[noun] = generator.normal(40, 4) + 4 * (world[noun]["pace"] == "brakes")
    p, worst = familywise_p(world, {"nouns": leaky})
    assert p < 0.002 and "pace" in worst


def candidates(task, row):
    """A row as candidates: [(words marked as question q or answer a, is it right)]."""
    fields = row.fields
    if task == "PIQA":
        question = fields["goal"]
        answers = [fields["sol1"], fields["sol2"]]
        right = [row.label == 0, row.label == 1]
    elif task == "SWAG":
        question = fields["sent1"]
        answers = [fields[f"ending{k}"] for k in range(4)]
        right = [row.label == k for k in range(4)]
    elif task.startswith("SQuAD"):
        question = fields["question"]
        nouns = re.match(r"you \w+ the (\w+) and the (\w+) \.", fields["context"]).groups()
        answers = [f"{nouns[0]} first", f"{nouns[1]} second"]
        right = [row.label == noun for noun in nouns]
    else:
        texts = [text for name, text in fields.items() if name not in data.CATEGORIES]
        question = texts[0]
        answers = ["".join(texts[1:])]
        right = [row.label in YES]
    marked = ["q_" + word for word in question.split()]
    words = [marked + ["a_" + word for word in answer.split()] for answer in answers]
    return list(zip(words, right))


def word_accuracy(task, train, test, keep):
    """Of logistic regression on counts of words that begin with `keep`: (accuracy, chance)."""
    split_rows = []
    for rows in (train, test):
        kept = [row for row in rows if row.label not in ("", "neutral")]
        split_rows.append([candidates(task, row) for row in kept])
    train, test = split_rows

    def chosen(words):
        return [word for word in words if word.startswith(keep)] + ["always"]
    vectorizer = CountVectorizer(analyzer=chosen)
    train = [candidate for row in train for candidate in row]
    features = vectorizer.fit_transform([words for words, _ in train])
    classifier = LogisticRegression(max_iter=300).fit(features, [right for _, right in train])
    flat = [words for row in test for words, _ in row]
    scores = classifier.decision_function(vectorizer.transform(flat)).reshape(len(test), -1)
    scores += 1e-9 * np.random.default_rng(0).standard_normal(scores.shape)   # a tie is a coin
    right = np.array([[right for _, right in row] for row in test])
    if right.shape[1] == 1:
        return np.mean((scores > 0) == right), 0.5
    return np.mean(right[np.arange(len(test)), scores.argmax(1)]), 1 / right.shape[1]


@pytest.mark.parametrize("keep", [("q_", "a_"), "q_"], ids=["bag of words", "question only"])
@pytest.mark.parametrize("task", data.TASKS)
def test_words_alone_are_at_chance_on_new_nouns(tasks, task, keep):
    if task == "SST-2" and keep == "q_":
        pytest.skip("SST-2 has one text")
    train = grounded(tasks[task]["train"])
    test = grounded(tasks[task]["test"])
    accuracy, chance = word_accuracy(task, train, test, keep)
    spread = 2.6 * (chance * (1 - chance) / len(test)) ** 0.5
    assert abs(accuracy - chance) < max(0.04, spread), accuracy


# --------------------------------------------------------------------------------------------------
# Balance of the tasks: what is asked is true, and every side of it equally often


def value_in(text, name):
    """The value of a property that a text states or asks about."""
    values = [value for value in VALUES[name] if f" {value} " in f" {text} "]
    assert len(values) == 1, (text, name)
    return values[0]


def same(counts, *keys):
    """Do all these keys have the same count, in each of the counters?"""
    return all(len({counter[key] for key in keys}) == 1 for counter in counts.values())


@pytest.mark.parametrize("task, field", [
    ("SST-2", "sentence"), ("QNLI", "sentence"), ("MNLI", "sentence2"),
    ("diagnostics", "Hypothesis"),
])
def test_half_yes_for_every_word_group_and_noun(tasks, world, task, field):
    for group, rows in tasks[task].items():
        by_word = defaultdict(Counter)
        by_noun = defaultdict(Counter)
        for row in grounded(rows):
            value = value_in(row.fields[field], row.property)
            truth = row.label in YES
            assert truth == (world[row.noun][row.property] == value)
            by_word[row.property, value][truth] += 1
            by_noun[row.noun, row.property][truth] += 1
        names = {name for name, _ in by_word}
        assert len(names) >= 3
        assert set(by_word) == {(name, value) for name in names for value in VALUES[name]}
        assert len(by_noun) == len(names) * data.GROUPS[group]
        assert same(by_word, True, False) and same(by_noun, True, False)


def test_qqp_balance(tasks, world):
    for group, rows in tasks["QQP"].items():
        first = defaultdict(Counter)
        second = defaultdict(Counter)
        for row in grounded(rows):
            one, two = [fields.split()[3] for fields in row.fields.values()]
            name = row.property
            assert one == row.noun != two
            assert row.label == (world[one][name] == world[two][name])
            first[one, name][row.label] += 1
            second[two, name][row.label] += 1
        for counts in (first, second):
            assert len(counts) == 4 * data.GROUPS[group]
            assert all(counter == {0: 1, 1: 1} for counter in counts.values())


def test_piqa_balance(tasks, world):
    for group, rows in tasks["PIQA"].items():
        words = defaultdict(Counter)
        nouns = defaultdict(Counter)
        for row in grounded(rows):
            pair = [row.fields[key].split()[-2] for key in ("sol1", "sol2")]
            value = value_in(row.fields["goal"], row.property)
            fits = [world[noun][row.property] == value for noun in pair]
            assert pair[row.label] == row.noun and fits == [row.label == 0, row.label == 1]
            words[value][row.label] += 1
            for noun, fit in zip(pair, fits):
                nouns[noun, row.property][fit] += 1
        assert len(nouns) == 4 * data.GROUPS[group]
        assert same(words, 0, 1)
        assert all(counter == {True: 1, False: 1} for counter in nouns.values())


def test_swag_balance(tasks, world):
    for group, rows in tasks["SWAG"].items():
        for row in grounded(rows):
            one, two = row.property.split("+")
            endings = {row.fields[f"ending{k}"] for k in range(4)}
            right = f"{world[row.noun][one]} and then it {world[row.noun][two]} ."
            assert row.fields[f"ending{row.label}"] == right
            assert endings == {f"{v} and then it {w} ." for v in VALUES[one] for w in VALUES[two]}
        counts = Counter(row.label for row in rows)
        assert len(counts) == 4 and max(counts.values()) - min(counts.values()) <= 1, group


@pytest.mark.parametrize("task", ["SQuAD1", "SQuAD2"])
def test_squad_balance(tasks, world, task):
    for group, rows in tasks[task].items():
        nouns = defaultdict(Counter)
        first = defaultdict(Counter)
        questions = defaultdict(Counter)
        for row in grounded(rows):
            context = row.fields["context"]
            pair = re.match(r"you \w+ the (\w+) and the (\w+) \.", context).groups()
            value = value_in(row.fields["question"], row.property)
            fitting = [noun for noun in pair if world[noun][row.property] == value]
            assert fitting == ([row.label] if row.label else [])
            questions[row.property, value][row.label != ""] += 1
            if row.label:
                first[row.property, value][pair[0] == row.label] += 1
                for noun in pair:
                    nouns[noun, row.property][noun == row.label] += 1
        assert len(nouns) == 4 * data.GROUPS[group]
        assert all(counter == {True: 1, False: 1} for counter in nouns.values())
        assert same(first, True, False)
        assert len({tuple(sorted(counter.items())) for counter in questions.values()}) == 1
        assert all(counter[False] == (task == "SQuAD2") * counter[True]
                   for counter in questions.values())


def test_tracie_balance(tasks, world):
    for group, rows in tasks["TRACIE"].items():
        nouns = defaultdict(Counter)
        relations = defaultdict(Counter)
        for row in grounded(rows):
            query = row.fields["query"]
            one, relation, two = re.match(r"the (\w+) .* (\w+ \w+) the (\w+)$", query).groups()
            leads = [world[noun][row.property] == VALUES[row.property][0] for noun in (one, two)]
            assert leads[0] != leads[1] and row.noun == one
            assert (row.label == "positive") == (leads[0] == relation.endswith("before"))
            assert row.fields["story"].count(" .") == 5
            nouns[one, row.property][row.label] += 1
            relations[relation, row.property][row.label] += 1
        assert len(relations) == 4 * 4 and len(nouns) == 4 * data.GROUPS[group]
        assert same(nouns, "positive", "negative") and same(relations, "positive", "negative")


@pytest.mark.parametrize("task", data.TASKS)
def test_enough_pairs_and_ungrounded_rows(tasks, task):
    pairs = set()
    for row in grounded(tasks[task]["test"]):
        pairs.update((row.noun, name) for name in row.property.split("+"))
    assert len(pairs) >= 200
    assert not [row for row in tasks[task]["unfilmed"] if not row.noun]
    for group in ("train", "validation", "test"):
        plain = [row for row in tasks[task][group] if not row.noun]
        assert len(plain) >= 120
        words = " ".join(" ".join(row.fields.values()) for row in plain).split()
        assert not set(words) & NOUNS
        counts = Counter(row.label for row in plain).values()
        if not task.startswith(("SQuAD", "SWAG")):   # answers by lot; SWAG shares its places
            assert max(counts) - min(counts) <= 1


# --------------------------------------------------------------------------------------------------
# Files in the published formats


@pytest.mark.parametrize("name, columns", [
    ("SST-2/train.tsv", "sentence\tlabel"), ("SST-2/test.tsv", "sentence"),
    ("QNLI/dev.tsv", "question\tsentence\tlabel"),
    ("QQP/train.tsv", "question1\tquestion2\tis_duplicate"),
    ("MNLI/dev_matched.tsv", "sentence1\tsentence2\tgold_label"),
    ("MNLI/test_matched.tsv", "sentence1\tsentence2"),
    ("SWAG/test.csv", "sent1,sent2,ending0,ending1,ending2,ending3"),
])
def test_columns_have_the_published_names(mini, name, columns):
    """A test split keeps its labels to itself."""
    assert (mini / "tasks" / name).read_text().startswith(columns + "\n")
    assert not (mini / "tasks" / "PIQA" / "tests-labels.lst").exists()


@pytest.mark.parametrize("task", data.TASKS)
def test_files_and_meta_as_their_reader_sees_them(mini, made, task):
    folder = mini / "tasks" / task
    for path in folder.glob("*.meta.jsonl"):
        split = path.name.split(".")[0]
        examples = finetune.TASKS[task].read(folder, split)
        meta = [json.loads(line) for line in path.read_text().splitlines()]
        assert {row["part"] for row in meta} == {"grounded", "ungrounded"}
        groups = {row["group"] for row in meta if row["noun"]}
        assert groups == set(data.SPLITS[split][0])
        for example, row in zip(examples, meta, strict=True):
            assert (row["part"] == "grounded") == (row["noun"] is not None)
            assert example.label is None or example.label == str(row["label"])
            if row["noun"]:
                words = " ".join(" ".join(filter(None, pair)) for pair in example.texts).split()
                assert row["noun"] in words and made[row["noun"]]["group"] == row["group"]


def test_squad2_says_what_is_impossible(mini):
    loaded = read_json(mini / "tasks" / "SQuAD2" / "test-v2.0.json")
    questions = [paragraph["qas"][0] for paragraph in loaded["data"][0]["paragraphs"]]
    assert {question["is_impossible"] for question in questions} == {True, False}
    assert all(question["is_impossible"] == (question["answers"] == []) for question in questions)
    assert len({question["id"] for question in questions}) == len(questions)


def test_squad_answer_inside_another_word(tmp_path):
    """A pan is not the first three letters of a pancake."""
    fields = {"context": "you tap the pancake and the pan .", "question": "which of them rises ?"}
    path = tmp_path / "dev-v1.1.json"
    data.write_squad(path, [data.Row(fields, "pan", "pan", "lift")], "")
    answer = read_json(path)["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]
    assert answer == {"text": "pan", "answer_start": 28}


def test_retrieval_pool(mini, made):
    captions = read_json(mini / "caption.json")
    rows = read_json(mini / "retrieval.json")
    assert {row["noun"] for row in rows} == set(data.filmed_nouns(made)) and len(rows) == 288
    assert {row["video"] for row in rows} == set(read_json(mini / "valid_ids.json"))
    actions = Counter()
    for row in rows:
        words = row["text"].split()
        action = next(word for word in words if word in data.ACTIONS)
        own = captions[row["video"]]["text"][int(row["start"] // 2)].split()
        assert row["noun"] in words and row["noun"] in own and action in own[-14:]
        assert row["end"] - row["start"] == 2 and 0 <= row["start"] <= 6
        assert not set(words) & PROPERTY_WORDS
        dynamic = next(name for name in data.DYNAMIC if data.DYNAMIC[name] == action)
        assert row["shown"].pop("behaviour") == made[row["noun"]][dynamic]
        assert row["shown"] == {name: made[row["noun"]][name] for name in data.STATIC}
        actions[action] += 1
    assert set(actions.values()) == {72}


# --------------------------------------------------------------------------------------------------
# Pictures: what does one frame show, what do all?


@pytest.fixture(scope="module")
def clips(mini, made):
    """Clips out of encoded, decoded files: {action: (nouns, frame [N, T, D], motion [N, M, D])}."""
    filmed = data.filmed_nouns(made)
    steps = data.CLIP_FRAMES // data.HOP
    inside = len(range(0, data.CLIP_FRAMES - data.WINDOW + 1, data.HOP))   # windows without a cut
    columns = {action: ([], [], []) for action in data.ACTIONS}
    for path in sorted((mini / "videos").iterdir()):
        video = path.stem
        frame = np.load(mini / "features" / "frame" / f"{video}.npy").astype(np.float32)
        motion = np.load(mini / "features" / "motion" / f"{video}.npy").astype(np.float32)
        # the first draw of make_video
        actions = data.numpy_generator(0, "video", video).permutation(data.ACTIONS)
        for index, action in enumerate(actions):
            nouns, frames, motions = columns[action]
            nouns.append(filmed[int(video.split("_")[1])])
            frames.append(frame[index * steps:(index + 1) * steps])
            motions.append(motion[index * steps:index * steps + inside])
    return {action: [np.array(column) for column in rows] for action, rows in columns.items()}


def accuracy(features, nouns, labels):
    """Of the best of two classifiers, on folds by noun (whose colour and shape would tell it)."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.3))
    forest = ExtraTreesClassifier(50, random_state=0, min_samples_leaf=2)
    right = []
    for classifier in (linear, forest):
        guesses = cross_val_predict(classifier, features, labels, cv=GroupKFold(4), groups=nouns)
        right.append(np.mean(guesses == labels))
    return max(right)


def all_frames(frame, motion):
    """Order and speed over a clip: moments of motion, change of the frames, what they look like."""
    half = motion.shape[1] // 2
    gain = motion[:, half:].mean(1) - motion[:, :half].mean(1)
    change = [frame[:, -1] - frame[:, 0], np.median(np.diff(frame, axis=1), 1)]
    moments = [motion.mean(1), motion.std(1), np.median(motion, 1)]
    return np.concatenate([frame.mean(1), *change, *moments, gain], 1)


@pytest.mark.parametrize("name", VALUES)
def test_what_one_frame_and_all_frames_show(clips, made, name):
    """Through real files: one frame shows static properties only, all frames show every one."""
    nouns, frame, motion = clips[data.PROPERTIES[name][0] or "drop"]
    labels = np.array([made[noun][name] for noun in nouns])
    for place in (0, 2, 3):
        share = accuracy(frame[:, place], nouns, labels)
        if name in data.DYNAMIC:
            assert share < 0.58, (place, share)   # 288 nouns: 0.08 = 2.7 deviations
        else:
            assert share > 0.9, (place, share)
    assert accuracy(all_frames(frame, motion), nouns, labels) > 0.9


# --------------------------------------------------------------------------------------------------
# One seed, one world; a folder of its own

REMAKE = """
from pathlib import Path
import data
world = data.make_world(0)
data.make_tasks(world, 0, "tasks")
Path("text").mkdir()
Path("videos").mkdir()
data.write_text("text/train.txt", "\\n".join(data.make_text(world, 0, 3000)) + "\\n")
for video, noun in (("v00_000", 0), ("v01_287", 287)):
    noun = data.filmed_nouns(world)[noun]
    data.make_video(0, video, noun, world[noun], "videos")
data.write_json("world.json", world)
"""


def test_the_same_seed_makes_the_same_world(mini, made, tmp_path):
    """In another process with other hashes of strings: tasks, text, videos byte for byte."""
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(data.__file__).parent)}
    subprocess.run([sys.executable, "-c", REMAKE], check=True, cwd=tmp_path,
                   env={**os.environ, **environment})
    assert read_json(tmp_path / "world.json") == made
    paths = [path for path in tmp_path.rglob("*") if path.is_file() and path.stem != "world"]
    assert len(paths) == 61   # 58 of the tasks
    for path in paths:
        assert path.read_bytes() == (mini / path.relative_to(tmp_path)).read_bytes(), path


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_made_once(mini, capsys):
    before = files_of(mini)
    data.make_mini(0, mini, 1, 3000, 1)
    assert "up to date" in capsys.readouterr().out
    for arguments in ((1, mini, 1, 3000, 1), (0, mini, 2, 3000, 1)):
        with pytest.raises(model.UserError, match="holds a world with another .*delete it"):
            data.make_mini(*arguments)
    assert files_of(mini) == before


def test_an_edited_generator_makes_another_world(mini, monkeypatch, tmp_path):
    """world.json remembers the source it was made by, so an edit is not "up to date"."""
    source = Path(data.__file__).read_text()
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    (tmp_path / "data.py").write_text(source.replace("CLIP_FRAMES = 16", "CLIP_FRAMES = 12"))
    with pytest.raises(model.UserError, match="another generator: delete it or choose another"):
        data.make_mini(0, mini, 1, 3000, 1)
    # an edit of the loader is none of the generator
    (tmp_path / "data.py").write_text(source.replace("class Clips", "class Clips2"))
    data.make_mini(0, mini, 1, 3000, 1)


@pytest.mark.parametrize("there", ["videos/a.mp4", "notes.txt", "videos"])
def test_other_peoples_files_are_left_alone(tmp_path, there):
    """A folder that is not empty and has no world: refused, nothing deleted."""
    if there == "videos":
        (tmp_path / there).mkdir()
    else:
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).write_text("mine")
    before = files_of(tmp_path)
    with pytest.raises(model.UserError, match="is not empty, and no mini world: choose another"):
        data.make_mini(0, tmp_path, 1, 3000, 1)
    assert files_of(tmp_path) == before


def test_a_killed_world_goes_on(tmp_path, monkeypatch):
    """The same arguments go on with the videos that are there, and end with the same world."""
    nouns = data.NOUNS[:32]
    monkeypatch.setattr(data, "NOUNS", nouns)
    monkeypatch.setattr(data, "GROUPS", dict.fromkeys(data.GROUPS, 8))
    # threads, which take no signals: the killer must see what they write
    threads = lambda workers, initializer: ThreadPoolExecutor(workers)
    monkeypatch.setattr(data, "ProcessPoolExecutor", threads)
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    data.make_mini(0, whole, 1, 400, 1)
    write_video = data.write_video

    def stop(path, frames):
        if path.name == "v00_009.mp4":
            raise KeyboardInterrupt
        write_video(path, frames)
    with monkeypatch.context() as patched:
        patched.setattr(data, "write_video", stop)
        with pytest.raises(KeyboardInterrupt):
            data.make_mini(0, killed, 1, 400, 1)
    assert (killed / "world.json.part").exists() and not (killed / "world.json").exists()
    before = files_of(killed / "videos")
    with pytest.raises(model.UserError, match="another seed: delete it"):
        data.make_mini(1, killed, 1, 400, 1)
    data.make_mini(0, killed, 1, 400, 1)
    assert before.items() <= files_of(killed / "videos").items()
    names = [path.relative_to(whole) for path in whole.rglob("*")]
    assert sorted(names) == sorted(path.relative_to(killed) for path in killed.rglob("*"))
    for name in names:
        if (whole / name).is_file():
            assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
