"""Captions: readers of every form, at HowTo100M's size in little memory; packing; held-out videos; the clip bank.

    python -m pytest -q tests/test_captions.py
"""
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

import data

ROOT = Path(__file__).resolve().parent.parent


def read(source, ids=()):
    return dict(data.read_captions(source, ids, "captions"))


def pack(folder, captions, durations, vocab):
    """Packs {id: captions} into folder/captions; returns (counts, {id: [(text tokens, start, end)]})."""
    (folder / "caption.json").write_text(json.dumps(captions))
    counts = data.pack_captions(folder / "caption.json", durations, vocab, folder)
    return counts, packed(folder)


def packed(folder):
    """What out/captions holds, read as its description says and not through data.Clips."""
    index = json.loads((folder / "captions" / "index.json").read_text())
    tokens, bounds, times, spans = [
        np.fromfile(folder / "captions" / f"{name}.bin", kind) for name, kind in
        (("tokens", index["dtype"]), ("bounds", "int64"), ("times", "float32"), ("spans", "int64"))]
    assert index["ids"] == sorted(index["ids"]) and len(spans) == 2 * len(index["ids"])
    return {video: [(tokens[bounds[k]:bounds[k + 1]].tolist(), *times[2 * k:2 * k + 2].tolist()) for k in range(low, high)]
            for video, (low, high) in zip(index["ids"], spans.reshape(-1, 2).tolist())}


# --- JSON

TRICKY = {"vidéo 日本": {"text": ['a "q" \\ b', "é 日本 \U0001F600", "{}[],:"], "start": [0, 1.5, 2e3], "end": [1, -2e-3, 3]},
          "empty": {}, "number": 12.5, "true": True, "null": None, "string": "s"}


@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"ensure_ascii": False}, {"indent": 1, "ensure_ascii": False}])
def test_json_is_read_the_same_in_pieces_of_any_size(tmp_path, form):
    """Wherever the buffer's end cuts: in a name, a number, an escape, or between the bytes of one letter."""
    path = tmp_path / "caption.json"
    path.write_text("\ufeff \n" + json.dumps(TRICKY, **form) + "\n ", encoding="utf-8")
    for piece in (*range(1, 40), 1000):
        assert list(data.json_entries(path, tqdm(disable=True), piece)) == list(TRICKY.items()), piece
    path.write_text(" { } ")
    assert list(data.json_entries(path, tqdm(disable=True), 1)) == []


@pytest.mark.parametrize("text, message", [
    ('{"a": 1,\n "b" 2\n}', "line 2, byte 14, after video 'a': .*expected :"),
    ('{"a": 1,\n\n "b": {"text": ["x", "start": []}}', "line 3, byte 38, in video 'b': .*',' delimiter"),
    ('{"é": [tru]}', "line 1, byte 8, in video 'é'"),
    ('{"a": {"text": ["x"', "line 1, byte 19, in video 'a'"),
    ('{"a": {"text": ["x', "line 1, byte 16, in video 'a': .*Unterminated string"),
    ('{"a": 1} {"b": 2}', "after video 'a': more follows"),
    ('{"a": 1,}', "byte 8, after video 'a'"), ("{'a': 1}", "byte 1"), ("", "byte 0"),
    ("[1, 2]", "not one JSON object of videos .expected {")])
def test_malformed_json_names_line_byte_and_video(tmp_path, text, message):
    path = tmp_path / "caption.json"
    path.write_text(text, encoding="utf-8")
    for piece in (1, 5, 1000):
        with pytest.raises(ValueError, match="caption.json, .*" + message):
            list(data.json_entries(path, tqdm(disable=True), piece))


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path, raw = tmp_path / "caption.json", '{"a": 1, "b": "éé"}'.encode()
    path.write_bytes(raw[:17] + b"\xff" + raw[18:])
    for piece in (1, 4, 1000):
        with pytest.raises(ValueError, match="caption.json, byte 17, after video .*not UTF-8"):
            list(data.json_entries(path, tqdm(disable=True), piece))


def test_an_error_in_the_middle_does_not_read_on(tmp_path):
    """Or a mistake near the start of 3 GB would fill the memory before it is told."""
    path = tmp_path / "caption.json"
    entry = json.dumps({"text": ["x"] * 20, "start": [0] * 20, "end": [1] * 20})
    path.write_text('{"a": ' + entry.replace("]", "}", 1) + "".join(f', "b{k}": {entry}' for k in range(1000)) + "}")
    bar = tqdm(total=1, disable=False, file=open(os.devnull, "w"))
    with pytest.raises(ValueError, match="in video 'a'"):
        list(data.json_entries(path, bar, 1000))
    assert bar.n <= 2000 < path.stat().st_size / 100


MEMORY = """
import resource, sys
import data
durations = {f"v{k:05d}": 1000.0 for k in range(0, 9500, 10)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
counts = data.pack_captions(sys.argv[1], durations, sys.argv[2], sys.argv[3])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before   # kilobytes on Linux, bytes on macOS
print(counts["read"], grown / (2 ** 20 if sys.platform == "darwin" else 2 ** 10))
"""


def test_captions_are_packed_in_little_memory(tmp_path, tiny_vocab):
    """Of 57 MB, which json.load makes into 340 (measured: 62 against 338). A tenth is tokenised, for the time."""
    entry = json.dumps({"text": ["the cat sat"] * 200, "start": [k + 0.25 for k in range(200)],
                        "end": [k + 0.75 for k in range(200)]})
    path = tmp_path / "caption.json"
    path.write_text("{" + ", ".join(f'"v{k:05d}": {entry}' for k in range(9500)) + "}")
    assert path.stat().st_size > 55e6
    command = [sys.executable, "-c", MEMORY, path, tiny_vocab, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    captions, grown = map(float, done.stdout.split())
    assert captions == 950 * 200 and grown < 150, grown


# --- form

GOOD = {"text": ["a"], "start": [0], "end": [1.5]}


@pytest.mark.parametrize("entry, message", [
    (["text"], "needs the keys text, start and end"),
    ({"text": ["a"], "start": [0]}, "needs the keys text, start and end"),
    ({"text": ["a", "b"], "start": [0], "end": [1]}, "lists of one length"),
    ({"text": "a", "start": [0], "end": [1]}, "lists of one length"),
    ({"text": ["a", 3], "start": [0, 1], "end": [1, 2]}, "caption 1: needs a text"),
    ({"text": ["a", "the \ud83d cat"], "start": [0, 1], "end": [1, 2]}, "caption 1: needs a text"),   # half an emoji
    ({"text": ["a"], "start": ["0"], "end": [1]}, "caption 0: .*two numbers"),
    ({"text": ["a"], "start": [True], "end": [2]}, "caption 0"),
    ({"text": [None, "b"], "start": [0, 1], "end": [1, None]}, "caption 1")])
def test_captions_of_another_form_name_file_video_and_place(tmp_path, entry, message):
    (tmp_path / "caption.json").write_text(json.dumps({"fine": GOOD, "bad": entry, "later": GOOD}))
    with pytest.raises(ValueError, match=f"caption.json: video 'bad'.*{message}"):
        read(tmp_path / "caption.json")


def test_a_video_twice_is_refused(tmp_path):
    (tmp_path / "caption.json").write_text(f'{{"a": {json.dumps(GOOD)}, "b": {json.dumps(GOOD)}, "a": {json.dumps(GOOD)}}}')
    with pytest.raises(ValueError, match="caption.json: video 'a' occurs twice"):
        read(tmp_path / "caption.json")


def test_captions_of_no_known_form(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json is missing"):
        read(tmp_path / "none.json")
    (tmp_path / "captions.txt").write_text("x")
    with pytest.raises(ValueError, match="captions.txt: captions are a .json, .csv, .srt or .vtt file, or a folder"):
        read(tmp_path / "captions.txt")


# --- CSV

def test_csv_of_one_video_and_of_many(tmp_path):
    (tmp_path / "v1.csv").write_text('\ufeffstart,end,text\r\n0.0,6.5,"hello, ""you"""\r\n7,8,\r\n', encoding="utf-8")
    assert read(tmp_path / "v1.csv") == {"v1": {"text": ['hello, "you"', ""], "start": [0.0, 7.0], "end": [6.5, 8.0]}}
    (tmp_path / "many.csv").write_text("end,start,task,text,video_id\n2,1,9,x,a\n3,1,9,z,b\n4,3,9,y,a\n")   # a, b, a
    assert read(tmp_path / "many.csv") == {"a": {"text": ["x", "y"], "start": [1, 3], "end": [2, 4]},
                                           "b": {"text": ["z"], "start": [1], "end": [3]}}


@pytest.mark.parametrize("text, message", [
    ("start,end\n1,2\n", "line 1: no column text; found start, end"), ("", "line 1: no column start, end, text"),
    ("start,end,text\n1,2,x\n1,2\n", "line 3: needs 3 cells"), ("start,end,text\n1,2,x,y\n", "line 2: needs 3 cells"),
    ("start,end,text\n1,2,x\n1,two,x\n", "line 3: start and end must be seconds, not '1', 'two'"),
    ('start,end,text\n1,2,"x\n', "line 2: unexpected end of data"), ("start,end,text\n1,2,\udcff\n", "not UTF-8")])
def test_malformed_rows_name_file_and_line(tmp_path, text, message):
    (tmp_path / "v.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="v.csv, .*" + message):
        read(tmp_path / "v.csv")


def test_only_the_listed_videos(tmp_path):
    path = tmp_path / "HowTo100M_v1.csv"
    path.write_text("video_id,category_1,category_2,rank,task_id\na,Food and Entertaining,Drinks,6,1\n"
                    'b,"Crafts, Hobbies",Crafts,34,2\nc,Food and Entertaining,Recipes,1,3\n')
    assert data.listed_videos(path) == {"a", "b", "c"}
    assert data.listed_videos(path, "Food and Entertaining") == {"a", "c"}
    with pytest.raises(ValueError, match="no row with category_1 'Food'"):
        data.listed_videos(path, "Food")
    path.write_text("id,category_1\na,b\n")
    with pytest.raises(ValueError, match="HowTo100M_v1.csv, line 1: no column video_id; found id, category_1"):
        data.listed_videos(path)


def test_real_tables(real_data):
    """HowTo100M's list, a caption CSV of its loader, and YouCook2's captions, against the csv module alone."""
    folder = real_data / "howto100m"
    def rows(name):
        return list(csv.DictReader(open(folder / name, encoding="utf-8", newline="")))
    assert data.listed_videos(folder / "HowTo100M_v1_sample.csv") == {
        row["video_id"] for row in rows("HowTo100M_v1_sample.csv")} and len(rows("HowTo100M_v1_sample.csv")) == 4
    one, = read(folder / "howto100m_caption_sample.csv").values()
    assert one["text"] == [row["text"] for row in rows("howto100m_caption_sample.csv")] and len(one["text"]) == 9
    assert one["end"] == [float(row["end"]) for row in rows("howto100m_caption_sample.csv")]
    many, wanted = read(folder / "validation_youcook.csv"), rows("validation_youcook.csv")
    assert sum(len(entry["text"]) for entry in many.values()) == len(wanted) == 3350
    for video in ("xHr8X2Wpmno", wanted[-1]["video_id"]):
        mine = [row for row in wanted if row["video_id"] == video]
        assert list(zip(many[video]["start"], many[video]["text"])) == [(float(r["start"]), r["text"]) for r in mine]


# --- subtitles

# As YouTube's automatic captions come: each line is shown while it is spoken, with word times, then for 10 ms, then
# again above the next one; the empty line of a cue holds a blank.
ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.000 --> 00:00:02.470 align:start position:0%
 
the<00:00:00.480><c> cat</c><00:00:00.640><c> sat</c>

00:00:02.470 --> 00:00:02.480 align:start position:0%
the cat sat
 

00:00:02.480 --> 00:00:04.470 align:start position:0%
the cat sat
on<00:00:02.600><c> the</c><00:00:03.000><c> mat</c>

00:00:04.470 --> 00:00:04.480 align:start position:0%
on the mat
 

00:00:04.480 --> 00:00:07.000 align:start position:0%
on the mat
and<00:00:05.000><c> the</c><00:00:06.000><c> dog</c><00:00:06.500><c> ran</c>
"""


def test_rolling_captions_say_everything_once(tmp_path, tiny_tokenizer, tiny_vocab):
    (tmp_path / "v.en.vtt").write_text(ROLLING)
    shown = read(tmp_path / "v.en.vtt")["v"]
    assert shown["text"] == ["the cat sat", "the cat sat", "the cat sat on the mat", "on the mat",
                             "on the mat and the dog ran"]
    data.pack_captions(tmp_path / "v.en.vtt", {"v": 6.5}, tiny_vocab, tmp_path)
    said = [(tiny_tokenizer.decode(ids), start, end) for ids, start, end in packed(tmp_path)["v"]]
    assert said == [("the cat sat", 0, pytest.approx(2.47)), ("on the mat", pytest.approx(2.48), pytest.approx(4.47)),
                    ("and the dog ran", pytest.approx(4.48), 6.5)]


def test_webvtt(tmp_path):
    (tmp_path / "v.vtt").write_bytes("\ufeffWEBVTT - a title\r\n\r\nSTYLE\r\n::cue { color: red }\r\n\r\nNOTE\r\na remark\r\n\r\n"
                                     "intro\r\n00:01.500 --> 00:02.000 line:0 position:20%\r\n<v Ann>Fish &amp; <i>chips</i>\r\n"
                                     "for a &lt; b\r\n\r\n101:00:00.000 --> 101:00:01.250\r\nlate\r\n"
                                     "00:03.000 --> 00:04.000\r\n\r\n".encode())
    entry = read(tmp_path / "v.vtt")["v"]
    assert entry["text"] == ["Fish & chips for a < b", "late", ""]
    assert entry["start"] == [1.5, 363600, 3] and entry["end"] == [2, 363601.25, 4]
    (tmp_path / "v.vtt").write_text("00:01.500 --> 00:02.000\nx\n")
    with pytest.raises(ValueError, match="v.vtt, line 1: not WebVTT"):
        read(tmp_path / "v.vtt")


def test_srt(tmp_path):
    (tmp_path / "v.srt").write_text("\ufeff1\n00:00:01,500 --> 00:00:02,5\n{\\an8}<b>First</b>\nof two lines\n  \n2\n"
                                    "01:02:03.004 --> 01:02:04,000\nwhere a < b and b > c\n\n", encoding="utf-8")
    entry = read(tmp_path / "v.srt")["v"]
    assert entry["text"] == ["First of two lines", "where a < b and b > c"]
    assert entry["start"] == [1.5, pytest.approx(3723.004)] and entry["end"] == [2.5, 3724]


@pytest.mark.parametrize("line", ["00:00:01,000 -> 2 --> 00:00:02,000", "00:61:00,000 --> 01:02:00,000", "1 --> 2",
                                  "00:00:01,000 --> 00:00:02,000x", "-00:00:01,000 --> 00:00:02,000", "00:01,0 -->"])
def test_malformed_times_name_file_and_line(tmp_path, line):
    (tmp_path / "v.srt").write_text(f"1\n00:00:00,000 --> 00:00:01,000\nfine\n\n2\n{line}\nx\n")
    with pytest.raises(ValueError, match=f"v.srt, line 6: malformed times '{re.escape(line)}'"):
        read(tmp_path / "v.srt")
    (tmp_path / "v.srt").write_bytes(b"1\n00:00:00,000 --> 00:00:01,000\n\xff\n")
    with pytest.raises(ValueError, match="v.srt, byte 32: not UTF-8"):
        read(tmp_path / "v.srt")


# --- packing

def test_overlap():
    assert data.overlap([1, 2, 3], [2, 3, 4]) == 2
    assert data.overlap([1, 2, 3], [1, 2, 3]) == 3
    assert data.overlap([1, 2], [3, 4]) == 0 and data.overlap([], [1]) == 0
    assert data.overlap([5, 1, 5, 1], [5, 1, 5, 1, 9]) == 4   # the longest, not the first found
    assert data.overlap([1, 2, 3], [3]) == 1
    assert data.overlap([1, 2], [2, 9, 3]) == 1 and data.overlap([1, 2], [2, 9, 3], {9}) == 0   # a word stays whole
    assert data.overlap([2, 9, 2], [2, 9, 2, 9], {9}) == 0 and data.overlap([1, 2, 9], [2, 9], {9}) == 2
    generator = np.random.default_rng(0)
    for _ in range(500):   # against the definition
        a, b = [generator.integers(3, size=generator.integers(1, 8)).tolist() for _ in range(2)]
        assert data.overlap(a, b) == max([n for n in range(1, min(len(a), len(b)) + 1) if a[-n:] == b[:n]], default=0)


def test_pack_captions(tmp_path, tiny_tokenizer, tiny_vocab):
    """Out of order, rolling, overlapping in time, late, without a stretch of time, empty; none of it in another's span."""
    captions = {"b": {"text": ["a dog ran", "the cat sat", "cat sat on the mat", "", "on the mat", "too late", "backwards",
                               "never", float("nan"), "no time"],
                      "start": [2.5, 0.0, 1.0, 1.5, 2.0, 6.0, 3.0, -1.0, 4.0, float("nan")],
                      "end": [9.0, 1.5, 2.5, 1.7, 3.0, 7.0, 3.0, 1.0, 4.5, 2.0]},
                "c": {"text": ["the dog"], "start": [70.0], "end": [71.0]}, "not filmed": GOOD,
                "a": {"text": ["the dog"], "start": [0.5], "end": [1.0]}}
    counts, found = pack(tmp_path, captions, {"b": 5.0, "a": 2.0, "c": 60.0}, tiny_vocab)
    assert (counts["read"], counts["kept"]) == (12, 4)
    def ids(text):
        return tiny_tokenizer.encode(text, add_special_tokens=False).ids
    assert found == {"a": [(ids("the dog"), 0.5, 1.0)], "c": [],
                     "b": [(ids("the cat sat"), 0.0, 1.5), (ids("on the mat"), 1.0, 2.5), (ids("a dog ran"), 2.5, 5.0)]}
    listed = [line.split("\t") for line in (tmp_path / "captions" / "left_out.tsv").read_text().splitlines()]
    assert sorted(row[:2] for row in listed) == [["b", "5"], ["b", "6"], ["b", "7"], ["b", "9"], ["c", "0"]]
    assert ["b", "5", "starts at 6.0 s, the video ends at 5.0 s"] in listed
    assert ["b", "6", "3.0 to 3.0 s is no stretch of time"] in listed
    with pytest.raises(ValueError, match="not one caption that can be used"):
        pack(tmp_path, captions, {"c": 60.0}, tiny_vocab)


def test_many_videos_are_packed_in_several_batches(tmp_path, tiny_tokenizer, tiny_vocab):
    texts = [f"the cat {word} a dog" for word in ("sat", "on", "ran", "mat")]
    captions = {f"v{k:04d}": {"text": [texts[(k + n) % 4] for n in range(9)], "start": list(range(9)),
                              "end": list(range(1, 10))} for k in range(5000, 0, -1)}   # 45,000 captions, ids descending
    _, found = pack(tmp_path, captions, {video: 8.5 for video in captions}, tiny_vocab)
    for k in (1, 2223, 2224, 4999, 5000):
        wanted = [(tiny_tokenizer.encode(texts[(k + n) % 4], add_special_tokens=False).ids, n, min(n + 1, 8.5))
                  for n in range(9)]
        assert found[f"v{k:04d}"] == wanted


def test_packing_is_done_again_only_for_changed_inputs(tmp_path, tiny_vocab, capsys):
    captions = {video: {"text": ["the cat"], "start": [0], "end": [1]} for video in "ab"}
    def done_again(durations, write=False, vocab=tiny_vocab, cased=None):
        if write:
            (tmp_path / "caption.json").write_text(json.dumps(captions))
            os.utime(tmp_path / "caption.json", ns=(1, write))
        capsys.readouterr()
        data.pack_captions(tmp_path / "caption.json", durations, vocab, tmp_path, cased)
        return "up to date" not in capsys.readouterr().out
    assert done_again({"a": 1.0}, write=1) and not done_again({"a": 1.0})
    before = (tmp_path / "captions" / "tokens.bin").stat().st_mtime_ns
    assert not done_again({"a": 1.0}) and (tmp_path / "captions" / "tokens.bin").stat().st_mtime_ns == before
    assert done_again({"a": 1.0, "b": 1.0}) and done_again({"a": 0.5, "b": 1.0}) and not done_again({"b": 1.0, "a": 0.5})
    captions["b"]["text"] = ["the dog"]
    assert done_again({"a": 0.5, "b": 1.0}, write=2)
    assert done_again({"a": 0.5, "b": 1.0}, cased=True) and done_again({"a": 0.5, "b": 1.0})   # other tokens
    assert not done_again({"a": 0.5, "b": 1.0}, vocab=tiny_vocab.parent)   # the folder of the same vocabulary
    (tmp_path / "other.txt").write_text(tiny_vocab.read_text() + "more\n")
    assert done_again({"a": 0.5, "b": 1.0}, vocab=tmp_path / "other.txt")
    (tmp_path / "captions" / "index.json").unlink()   # killed before it vouched for the arrays
    assert done_again({"a": 0.5, "b": 1.0}, vocab=tmp_path / "other.txt")


# --- splits

def test_held_out_videos(tmp_path):
    ids = [f"video{k}" for k in range(1000)]
    assert len(data.hold_out(ids, None, tmp_path)) == 20 and len(data.hold_out(ids[:2], None, tmp_path)) == 1
    assert data.hold_out(ids[:1], None, tmp_path) == set()
    many = [str(k) for k in range(600000)]
    assert len(data.hold_out(many, None, tmp_path)) == 10000
    held = data.hold_out(ids, 100, tmp_path)
    assert held == data.hold_out(ids[::-1], 100, tmp_path) and len(held) == 100
    more = data.hold_out(ids + [f"new{k}" for k in range(100)], 100, tmp_path)
    assert {video for video in more if not video.startswith("new")} <= held and len(held - more) < 25
    with pytest.raises(ValueError, match="--held-out 1000 of 1000 videos leaves none to train on"):
        data.hold_out(ids, 1000, tmp_path)
    data.write_json(tmp_path / "valid_ids.json", ["video3", "gone"])
    assert data.hold_out(ids, 100, tmp_path) == {"video3"}


def test_a_folder_of_videos_with_subtitles_beside_them(tmp_path, tiny_vocab):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    thing = data.make_world(0)["teapot"]
    for video in "abcdef":
        data.write_video(videos / f"{video}.mp4", data.draw_clip(thing, "drop", data.numpy_generator(0)))
    (videos / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nthe cat\n")
    (videos / "b.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nthe cat\n")
    (videos / "c.en.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nthe cat\n")
    (videos / "d.csv").write_text("start,end,text\n0,1,the cat\n")
    (videos / "f.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nthe dog\n")
    (tmp_path / "list.csv").write_text("video_id\n" + "\n".join("abcde"))
    command = [sys.executable, ROOT / "data.py", "video", "--videos", videos, "--vocab", tiny_vocab, "--streams", "frame",
               "--held-out", "2", "--out", out]
    subprocess.run([*command, "--only", tmp_path / "list.csv"], check=True)
    assert {video: len(captions) for video, captions in packed(out).items()} == dict.fromkeys("abcd", 1)
    splits = json.loads((out / "splits.json").read_text())
    assert len(splits["valid"]) == 2 and sorted(splits["train"] + splits["valid"]) == list("abcd")
    left_out = dict(line.split("\t") for line in (out / "left_out.tsv").read_text().splitlines())
    assert left_out == {"e": "a video file, but no captions", "f": "a video file, but not one of --only"}
    subprocess.run([*command, "--captions", videos / "d.csv", "--held-out", "0"], check=True)   # one file of one video
    assert json.loads((out / "splits.json").read_text()) == {"train": ["d"], "valid": []}
    failed = subprocess.run([*command, "--category", "Food"], capture_output=True, text=True)
    assert failed.returncode and "--category narrows --only" in failed.stderr


# --- clips and their bank

def test_clips_map_their_captions_and_bound_their_cache(mini, monkeypatch):
    tokenizer = data.load_tokenizer(mini)
    clips = data.Clips(mini, "train", ["frame", "motion"], tokenizer, 32, 32)
    for array in (clips.tokens, clips.bounds, clips.times):   # type() is numpy's own, for speed; the memory is the file's
        while not isinstance(array, np.memmap):
            assert array.base is not None, "read into memory"
            array = array.base
    kept = [clips.example(index)[1] for index in range(20)]
    assert len(clips.cache) == 40 and clips.cached == sum(array.nbytes for array in clips.cache.values())
    monkeypatch.setattr(data, "CACHE", 5000)
    bounded = data.Clips(mini, "train", ["frame", "motion"], tokenizer, 32, 32)
    assert all((bounded.example(index)[1] == kept[index]).all() for index in range(20))
    assert 0 < bounded.cached <= 5000 and len(bounded.cache) < 5
    path = mini / "captions" / "tokens.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    try:
        with pytest.raises(ValueError, match="not those that index.json describes"):
            data.Clips(mini, "train", ["frame"], tokenizer, 32, 32)
    finally:
        path.write_bytes(whole)


def test_bank(mini, tmp_path):
    tokenizer = data.load_tokenizer(mini)
    clips = data.Clips(mini, "train", ["frame", "motion"], tokenizer, 32, 32)
    path = tmp_path / "bank.json"
    data.make_bank(mini, "train", len(clips) + 30, 0, 32, path)
    rows = data.read_bank(path)
    videos = [row["video"] for row in rows]
    assert set(videos[:len(clips)]) == set(clips.ids) and len(rows) == len(clips) + 30   # all once before any twice
    assert len({row["start"] for row in rows}) > 4                                       # from random captions
    tokens, mask, features, steps = data.bank_batch(rows[:64], clips, tokenizer)
    for row, ids, real, clip, there in zip(rows, tokens.tolist(), mask, features.numpy(), steps):
        index = clips.ids.index(row["video"])
        low, high = clips.spans[index].tolist()
        same = [k for k in range(low, high) if abs(clips.times[k, 0] - row["start"]) < 1e-3]
        wanted, start, end = clips.stretch(index, same[0])   # what training would see from that caption
        assert ids[1:1 + len(wanted)] == wanted.tolist() and int(real.sum()) == len(wanted) + 2
        assert (clip[:int(there.sum())] == clips.clip(row["video"], start, end)).all()
        assert row["end"] == pytest.approx(end, abs=1e-3)
    first = path.read_bytes()
    data.make_bank(mini, "train", len(clips) + 30, 0, 32, path)
    assert path.read_bytes() == first
    data.make_bank(mini, "train", len(clips) + 30, 1, 32, path)
    assert path.read_bytes() != first
    assert len(data.read_bank(mini / "retrieval.json")) == 288   # the mini world's pool has the same form


def test_a_banks_texts_become_the_same_tokens_again(tmp_path, tiny_tokenizer, tiny_vocab):
    said = ["We do not sit, don't we?", "ünd the cat 's mat\u2603s", "the dogcat [UNK] is ran-on", "matdogredcat to day"]
    captions = {f"v{k}": {"text": said[k:] + said[:k], "start": [0, 1, 2, 3], "end": [1, 2, 3, 4]} for k in range(4)}
    pack(tmp_path, captions, dict.fromkeys(captions, 4.0), tiny_vocab)
    data.keep_vocab(tiny_vocab, tmp_path)
    data.write_json(tmp_path / "splits.json", {"train": sorted(captions)})
    for block in (6, 13, 40):   # cut inside words and after all
        clips = data.Clips(tmp_path, "train", [], tiny_tokenizer, block, 50)
        data.make_bank(tmp_path, "train", 40, 0, block, tmp_path / "bank.json")
        unknown = 0
        for row in data.read_bank(tmp_path / "bank.json"):
            index = clips.ids.index(row["video"])
            wanted = clips.stretch(index, int(clips.spans[index, 0] + row["start"]))[0].tolist()
            assert tiny_tokenizer.encode(row["text"], add_special_tokens=False).ids == wanted
            unknown += tiny_tokenizer.token_to_id("[UNK]") in wanted
        assert unknown or block == 6


@pytest.mark.parametrize("rows, message", [
    ([], "not empty"), ({"video": "a"}, "a clip bank is a list"),
    ([{"video": "a", "start": 0, "end": 1, "text": "x"}, {"video": "a", "start": 0, "end": 1}], "row 1: needs video"),
    ([{"video": "a", "start": 2, "end": 1, "text": "x"}], "row 0: .*start not after end")])
def test_malformed_banks_name_file_and_row(tmp_path, rows, message):
    (tmp_path / "bank.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=f"bank.json.*{message}"):
        data.read_bank(tmp_path / "bank.json")
    with pytest.raises(FileNotFoundError, match="`python data.py bank` makes it"):
        data.read_bank(tmp_path / "none.json")
