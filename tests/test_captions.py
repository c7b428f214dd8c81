"""Captions: readers of every form; packing; held-out videos; the command.

    python -m pytest -q tests/test_captions.py
"""
import json
import re
import sys
import tracemalloc

import av
import numpy as np
import pytest

import data
from model import UserError

NAN = float("nan")


def read(source, ids=()):
    return dict(data.read_captions(source, ids))


def packed(folder):
    """{video: [(token ids, start, end)]} of folder/captions, read as its description says."""
    index = json.loads((folder / "captions" / "index.json").read_text())
    arrays = []
    for name, kind in [("tokens", index["dtype"]), ("bounds", "int64"), ("times", "float32"),
                       ("spans", "int64")]:
        arrays.append(np.fromfile(folder / "captions" / f"{name}.bin", kind))
    tokens, bounds, times, spans = arrays
    assert index["ids"] == sorted(index["ids"]) and len(spans) == 2 * len(index["ids"])
    videos = {}
    for video, (low, high) in zip(index["ids"], spans.reshape(-1, 2)):
        videos[video] = []
        for k in range(low, high):
            start, end = times[2 * k:2 * k + 2].tolist()
            videos[video].append((tokens[bounds[k]:bounds[k + 1]].tolist(), start, end))
    return videos


def left_out(folder):
    return dict(line.split("\t", 1) for line in (folder / "left_out.tsv").read_text().splitlines())


# --- JSON

GOOD = {"text": ["a"], "start": [0], "end": [1.5]}
TRICKY = {
    "vidéo 日本": {"text": ['a "q" \\ b', "é 日本 \U0001F600", "{}[],:"],
                 "start": [0, 1.5, 2e3], "end": [1, -2e-3, 3]},
    'the "empty"': {"text": [], "start": [], "end": []},
    "table": {"text": [None, NAN, "x"], "start": [0, 1, NAN], "end": [1, 2, 3]}}


@pytest.mark.parametrize("form", [{}, {"indent": 1, "ensure_ascii": False}])
def test_json_is_read_the_same_in_pieces_of_any_size(tmp_path, form):
    """Wherever the buffer's end cuts: in a name, a number, an escape, between a letter's bytes."""
    path = tmp_path / "caption.json"
    path.write_text("\ufeff \n" + json.dumps(TRICKY, **form) + "\n ", encoding="utf-8")
    for piece in (*range(1, 40), 1000):
        videos = dict(data.json_captions(path, piece))
        table = videos.pop("table")
        assert table["text"] == ["", "", "x"] and table["start"][:2] == [0, 1]
        assert videos == {video: TRICKY[video] for video in videos} and len(videos) == 2
    path.write_text(" { } ")
    assert list(data.json_captions(path, 1)) == []


ENTRY = json.dumps(GOOD)


@pytest.mark.parametrize("text, video, place", [
    (f'{{"a": {ENTRY},\n "b" 2\n}}', "'a'", ',\\n "b" 2'),
    (f'{{"a": {ENTRY}, "b": {{"text": ["x", "start": []}}}}', "'a'", ', "b": {"text": ["x"'),
    ('{"é": [tru]}', None, '{"é": [tru]}'), ('{"a": {"text": ["x', None, '{"a": {"text": ["x'),
    (f'{{"a": {ENTRY}}} {{"b": 2}}', "'a'", '} {"b": 2}'), (f'{{"a": {ENTRY},}}', "'a'", ",}"),
    (f'{{"a\\q": {ENTRY}}}', None, '{"a\\\\q"'),
    ("{'a': 1}", None, "{'a': 1}"), ("", None, ""), ("[1, 2]", None, "[1, 2]")])
def test_malformed_json_names_video_and_place(tmp_path, text, video, place):
    path = tmp_path / "caption.json"
    path.write_text(text, encoding="utf-8")
    for piece in (1, 5, 1000):
        with pytest.raises(UserError) as caught:
            list(data.json_captions(path, piece))
        assert f"json, after video {video}: not JSON of videos: " in str(caught.value)
        assert place in str(caught.value)


def test_json_is_read_in_little_memory(tmp_path):
    """Of 2.4 MB, which json.load makes into 14, in pieces of 0.3 MB."""
    entry = json.dumps({"text": ["the cat sat"] * 200, "start": [k + 0.25 for k in range(200)],
                        "end": [k + 0.75 for k in range(200)]})
    path = tmp_path / "caption.json"
    path.write_text("{" + ", ".join(f'"v{k:05d}": {entry}' for k in range(400)) + "}")
    tracemalloc.start()
    videos = sum(1 for _ in data.json_captions(path, 300_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert videos == 400 and path.stat().st_size > 2.4e6 and peak < 2e6


@pytest.mark.parametrize("entry, place", [
    (["text"], 0),
    ({"text": "take the red bowl", "segments": []}, 0),   # whisper
    ({"text": ["a", "b"], "start": [0], "end": [1]}, 1),
    ({"text": "a", "start": 0, "end": 1}, 0),
    ({"text": ["a", 3], "start": [0, 1], "end": [1, 2]}, 1),
    ({"text": ["a \ud83d"], "start": [0], "end": [1]}, 0),   # half an emoji
    ({"text": ["a"], "start": ["zero"], "end": [1]}, 0),
    ({"text": [None, "b"], "start": [0, 1], "end": [1, None]}, 1)])
def test_captions_of_another_form_name_file_video_and_place(tmp_path, entry, place):
    videos = {"fine": GOOD, "bad": entry, "later": GOOD}
    (tmp_path / "caption.json").write_text(json.dumps(videos))
    with pytest.raises(UserError, match=f"caption.json: video 'bad', caption {place}: needs"):
        read(tmp_path / "caption.json")


def test_json_that_is_not_utf8(tmp_path):
    raw = b'{"a": {"text": ["caf\xe9"], "start": [0], "end": [1]}}'
    (tmp_path / "caption.json").write_bytes(raw)
    with pytest.raises(UserError, match="video 'a', caption 0: needs .*UTF-8"):
        read(tmp_path / "caption.json")


# --- lists of videos

def test_only_the_listed_videos(tmp_path):
    path = tmp_path / "HowTo100M_v1.csv"
    path.write_text("\ufeffvideo_id,category_1,rank\na,Food,6\n" '"b","Crafts, Hobbies",2\n')
    assert data.listed_videos(path) == {"a", "b"}
    path.write_text("id,category_1\na,b\n")
    with pytest.raises(UserError, match="v1.csv: no column video_id"):
        data.listed_videos(path)
    path.write_bytes(b"video_id\ncaf\xe9\n")
    for wrong in (path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match="csv is no CSV in UTF-8"):
            data.listed_videos(wrong)


def test_real_list(real_data):
    assert len(data.listed_videos(real_data / "howto100m" / "HowTo100M_v1_sample.csv")) == 4


# --- subtitles

# YouTube's: each line is shown while it is spoken, then for 10 ms, then above the next one
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
 

00:00:05.480 --> 00:00:07.000 align:start position:0%
 
and<00:00:05.000><c> the</c><00:00:06.000><c> dog</c><00:00:06.500><c> ran</c>
"""


def as_ffmpeg_converts(rolling):
    """ffmpeg's .srt of it: the first line of a cue that begins with a blank one stays empty."""
    cues = []
    for number, block in enumerate(rolling.split("\n\n")[1:], 1):
        times, text = data.MARKUP.sub("", block).split("\n", 1)
        if text.startswith(" \n"):
            text = "\r\n" + text[2:]
        cues.append(f"{number}\n{times[:29].replace('.', ',')}\n{text}\n")
    return "\n".join(cues)


def with_empty_cues(rolling):
    """As converters that stop at the blank line: a first phrase is in the cue of 10 ms alone."""
    return re.sub(r"\n \n(the<|and<).*", "\n", rolling) + (
        "\n00:00:07.000 --> 00:00:07.010\nand the dog ran\n")


@pytest.mark.parametrize("convert, name", [(str, "v.en.vtt"), (as_ffmpeg_converts, "v.srt"),
                                           (with_empty_cues, "v.vtt")])
def test_rolling_captions_say_everything_once(tmp_path, tiny_tokenizer, convert, name):
    (tmp_path / name).write_bytes(convert(ROLLING).encode())
    data.pack_captions(tmp_path, {"v": 7.5}, tiny_tokenizer, tmp_path)
    said = [(tiny_tokenizer.decode(ids), start, end) for ids, start, end in packed(tmp_path)["v"]]
    assert said == [("the cat sat", 0, pytest.approx(2.47)),
                    ("on the mat", pytest.approx(2.48), pytest.approx(4.47)),
                    ("and the dog ran", pytest.approx(5.48), 7.0)]


def cues(tmp_path, name, content):
    """[(start, end, text)] of a file of captions."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    entry = data.subtitles(path)
    return list(zip(entry["start"], entry["end"], entry["text"]))


VTT = """\ufeffWEBVTT - a title

STYLE
::cue { color: red }

NOTE
00:00.000 --> 00:01.000
a remark

intro
00:01.500 --> 00:02.000 line:0 position:20%
<v Ann>Fish &amp; <i>chips</i>
for a &lt; b

REGION
id:fred

101:00:00.000 --> 101:00:01.250
press File --> Save
"""
SRT = """\ufeff1
00:00:01,500 --> 00:00:02,500 X1:10 X2:20
{\\an8}<b>First</b>
of two lines

with a third
42

2

01:02:03.004 --> 01:02:04,000
where a < b and b > c
3
00:00:03,000 --> 00:00:05,000
press 1 --> 2

"""


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_well_formed_subtitles(tmp_path, newline):
    vtt = VTT.replace("\n", newline)
    assert cues(tmp_path, "v.vtt", vtt) == [(1.5, 2, "Fish & chips for a < b"),
                                            (363600, 363601.25, "press File --> Save")]
    srt = SRT.replace("\n", newline)
    assert cues(tmp_path, "v.srt", srt) == [
        (1.5, 2.5, "First of two lines with a third 42"),
        (pytest.approx(3723.004), 3724, "where a < b and b > c"), (3, 5, "press 1 --> 2")]


@pytest.mark.parametrize("name, content", [("v.vtt", VTT), ("v.srt", SRT), ("v.vtt", ROLLING)])
def test_well_formed_subtitles_equal_ffmpegs(tmp_path, name, content):
    ours = cues(tmp_path, name, content)
    theirs = []
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.subtitles[0]
        for packet in container.demux(stream):
            if packet.pts is not None:
                text = data.html.unescape(data.MARKUP.sub("", bytes(packet).decode()))
                end = packet.pts + packet.duration
                theirs.append((packet.pts / 1000, end / 1000, " ".join(text.split())))
    for (start, end, text), reference in zip(sorted(ours), theirs, strict=True):
        assert (pytest.approx(start), pytest.approx(end), text) == reference


A = "00:00:01,000 --> 00:00:03,000"
B = "00:00:03,000 --> 00:00:05,000"


@pytest.mark.parametrize("content, texts", [
    (f"1\n{A}\nred bowl\n2\n{B}\nmix it\n", ["red bowl", "mix it"]),           # no blank line
    (f"1\n{A}\nred bowl\n\nwith a rim\n\n2\n{B}\nmix it\n", ["red bowl with a rim", "mix it"]),
    (f"1\n{A}\nFile --> Save as\n\n2\n{B}\n--> go\n", ["File --> Save as", "--> go"]),
    (f"1\n{A}\n2 --> 3 eggs\n\n2\n{B}\nmix\n1:00:30 -> 1:01:00\n",
     ["2 --> 3 eggs", "mix 1:00:30 -> 1:01:00"]),
    (f"1\n{A}\n\n2\n{B}\n7\n", ["", "7"]),                                     # an empty cue
    (f"{A}\nred bowl\n{B}\nmix it\n", ["red bowl", "mix it"]),                 # no numbers
    (f"{A}\nborn in\n1990\n\n{B}\n7\n", ["born in 1990", "7"]),
    (f"{A}\nred bowl\n\n2\n{B}\nmix it\n", ["red bowl", "mix it"]),       # the first lacks its
    (f"WEBVTT\n\nNOTE-1\n{A}\nred bowl\n\n{B}\nmix it\n", ["red bowl", "mix it"]),
    (f"1\n\n{A}\n\nred bowl\n\n2\n\n{B}\n\nmix it", ["red bowl", "mix it"]),   # double spaced
    (f"WEBVTT\n\n1\n{A}\nred bowl\n2\n{B}\nmix it\n", ["red bowl", "mix it"]),
    (f"WEBVTT\n{A}\nred bowl\n\n\n{B}\nmix it\n", ["red bowl", "mix it"])])
def test_a_cue_is_what_a_player_shows(tmp_path, content, texts):
    name = "v.vtt" if content.startswith("WEBVTT") else "v.srt"
    wanted = [(1, 3, texts[0]), (3, 5, texts[1])]
    assert cues(tmp_path, name, content) == wanted


@pytest.mark.parametrize("times", [
    "00:00:03,000 -> 00:00:05,000", "00:00:03,000 => 00:00:05,000",
    "00:00:03,000 \u2013> 00:00:05,000",
    "00:00:03,000 \u2192 00:00:05,000", "00:00:03,000 - 00:00:05,000", "00:00:03,000 00:00:05,000",
    "00:61:00,000 --> 01:02:00,000", "3 --> 5", "00:00:03,000 --> 00:00:05,000x", "00:03,0 -->",
    "-00:00:03,000 --> 00:00:05,000", "00: 00: 03,000 --> 00: 00: 05,000",
    "00:00:03:000 --> 00:00:05:000"])
@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_malformed_times_are_listed(tmp_path, tiny_tokenizer, times, kind):
    """The cue before and after stay; of a file that has no other, its video is left out."""
    bad = f"2\n{times}\nthe dog ran\n\n"
    head = "WEBVTT\n\n" if kind == "vtt" else ""
    videos = {"v": f"{head}1\n{A}\nthe cat sat\n\n{bad}3\n{B}\non the mat\n", "w": head + bad}
    for video, content in videos.items():
        (tmp_path / f"{video}.{kind}").write_text(content, encoding="utf-8")
    _, reasons = data.pack_captions(tmp_path, {"v": 9.0, "w": 9.0}, tiny_tokenizer, tmp_path)
    assert [tiny_tokenizer.decode(ids) for ids, *_ in packed(tmp_path)["v"]] == [
        "the cat sat", "on the mat"]
    assert reasons == {"w": "none of its 1 captions can be used"}
    listed = (tmp_path / "captions" / "left_out.tsv").read_text(encoding="utf-8").splitlines()
    reason = f"no times that can be read: {f'{times} the dog ran'!r}"
    assert listed == [f"v\t1\t{reason}", f"w\t0\t{reason}"]


def test_what_else_no_player_shows(tmp_path):
    lost = cues(tmp_path, "v.vtt", f"WEBVTT\n\n1\n{A}\nred bowl\n\nwith a rim\n\n2\n{B}\nmix it\n")
    assert [text for *_, text in lost] == ["red bowl", "with a rim", "mix it"]
    assert np.isnan(lost[1][0])
    (start, end, text), = cues(tmp_path, "v.srt", f"1\n{A}\ncaf\xe9\n".encode("latin-1"))
    assert np.isnan(start) and text == "not UTF-8 at byte 35"
    assert cues(tmp_path, "v.srt", "") == []
    assert cues(tmp_path, "v.vtt", "WEBVTT\nKind: captions\n\n") == []


# --- files

def test_caption_files_beside_videos(tmp_path):
    """The exact name, then English, then the first of the alphabet; dot files never."""
    names = {
        "a": ["a.srt", "a.vtt", "a.en.srt", "._a.srt", "a.csv"], "b": ["b.VTT", "b.en.vtt"],
        "c": ["c.en-US.vtt", "c.de.vtt"], "d": ["d.en-orig.vtt", "d.ar.srt"],
        "e": ["e.fr.srt", "e.de.srt", "e.info.json"], "f.x": ["f.x.SRT", "f.vtt"],
        "g": ["g.csv", "g.json", "g.tsv", "g.txt"], "h": ["h.json", "hh.srt"],
        "i": ["i.en.sdh.srt"]}
    for files in names.values():
        for name in files:
            (tmp_path / name).touch()
    files = {video: path.name for video, path in data.subtitle_files(tmp_path, names).items()}
    assert files == {"a": "a.srt", "b": "b.VTT", "c": "c.en-US.vtt", "d": "d.en-orig.vtt",
                     "e": "e.de.srt", "f.x": "f.x.SRT", "g": "g.csv", "i": "i.en.sdh.srt"}


def test_csv(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text('start,end,text\n0.5,2,"mix, well"\n2,4.25,\n', encoding="utf-8-sig")
    assert data.subtitles(path) == {"text": ["mix, well", ""], "start": [0.5, 2], "end": [2, 4.25]}
    path.write_text("start,end,text\n0.5,soon,mix\n")
    with pytest.raises(UserError, match="v.csv: video 'v', caption 0: needs text, start, end"):
        data.subtitles(path)
    path.write_text("begin,end,text\n0.5,2,mix\n")
    with pytest.raises(UserError, match="v.csv: video 'v', caption 0: needs text, start, end"):
        data.subtitles(path)
    path.write_text('start,end,text\n0.5,2,"mix\n' + 140_000 * "x")
    with pytest.raises(UserError, match="v.csv, after line 1: field larger"):
        data.subtitles(path)


def test_captions_of_no_known_form(tmp_path):
    (tmp_path / "captions.csv").write_text("start,end,text\n")
    for name in ("captions.csv", "none.json"):
        with pytest.raises(UserError, match=f"{name}: captions are a .json file, or a folder"):
            read(tmp_path / name)


# --- packing

def test_overlap():
    assert data.overlap([1, 2], [2, 9, 3], {9}) == 0   # a word stays whole
    assert data.overlap([2, 9, 2], [2, 9, 2, 9], {9}) == 0
    assert data.overlap([1, 2, 9], [2, 9], {9}) == 2
    generator = np.random.default_rng(0)
    for _ in range(500):   # against the definition: the longest
        a = generator.integers(3, size=generator.integers(8)).tolist()
        b = generator.integers(3, size=generator.integers(8)).tolist()
        repeats = [n for n in range(1, min(len(a), len(b)) + 1) if a[-n:] == b[:n]]
        assert data.overlap(a, b, set()) == max(repeats, default=0)


def test_pack_captions(tmp_path, tiny_tokenizer, capsys):
    """Out of order, rolling, overlapping in time, late, without a stretch of time, empty."""
    b = {"text": ["a dog ran", "the cat sat", "cat sat on the mat", "", "on the mat", "too late",
                  "backwards", "never", NAN, "no time"],
         "start": [2.5, 0.0, 1.0, 1.5, 2.0, 6.0, 3.0, -1.0, 4.0, NAN],
         "end": [9.0, 1.5, 2.5, 1.7, 3.0, 7.0, 3.0, 1.0, 4.5, 2.0]}
    captions = {"b": b, "c": {"text": ["the dog"], "start": [70.0], "end": [71.0]},
                "not filmed": GOOD, "a": {"text": ["the dog"], "start": [0.5], "end": [1.0]}}
    (tmp_path / "caption.json").write_text(json.dumps(captions))
    seconds = {"b": 5.0, "a": 2.0, "c": 60.0, "d": 1.0}
    usable, reasons = data.pack_captions(tmp_path / "caption.json", seconds, tiny_tokenizer,
                                         tmp_path)
    assert usable == ["a", "b"]
    assert reasons == {"c": "none of its 1 captions can be used", "d": "no captions"}
    assert "4 of 12 captions" in capsys.readouterr().out

    def ids(text):
        return tiny_tokenizer.encode(text, add_special_tokens=False).ids
    assert packed(tmp_path) == {
        "a": [(ids("the dog"), 0.5, 1.0)],
        "b": [(ids("the cat sat"), 0.0, 1.5), (ids("on the mat"), 1.0, 2.5),
              (ids("a dog ran"), 2.5, 5.0)]}
    assert sorted((tmp_path / "captions" / "left_out.tsv").read_text().splitlines()) == [
        "b\t5\t6.0 to 7.0 s is no part of the video's 5.0 s: 'too late'",
        "b\t6\t3.0 to 3.0 s is no part of the video's 5.0 s: 'backwards'",
        "b\t7\t-1.0 to 1.0 s is no part of the video's 5.0 s: 'never'",
        "b\t9\tno times that can be read: 'no time'",
        "c\t0\t70.0 to 71.0 s is no part of the video's 60.0 s: 'the dog'"]


def test_held_out_videos(tmp_path):
    ids = [f"video{k}" for k in range(1000)]
    assert len(data.hold_out(ids, None, tmp_path)) == 20
    assert len(data.hold_out(ids[:2], None, tmp_path)) == 1
    assert data.hold_out(ids[:1], None, tmp_path) == set()
    assert len(data.hold_out(list(map(str, range(500_050))), None, tmp_path)) == 10000
    held = data.hold_out(ids, 100, tmp_path)
    assert held == data.hold_out(ids[::-1], 100, tmp_path) and len(held) == 100
    more = data.hold_out(ids + [f"new{k}" for k in range(100)], 100, tmp_path)
    assert more.intersection(ids) <= held and len(held - more) < 25
    with pytest.raises(UserError, match="--held-out 1000 of 1000 videos leaves none to train on"):
        data.hold_out(ids, 1000, tmp_path)
    data.write_json(tmp_path / "valid_ids.json", ["video3", "gone"])
    assert data.hold_out(ids, 100, tmp_path) == {"video3"}


# --- the command

@pytest.fixture
def films(tmp_path):
    """(folder of films, folder of their features): v0 to v5, 4 s each; v4 has motion for 3 s only,
    v5 none at all."""
    videos = tmp_path / "videos"
    out = tmp_path / "out"
    videos.mkdir()
    lengths = {"frame": (2, [8] * 6), "motion": (1, [4, 4, 4, 4, 3])}
    for name, (rate, steps) in lengths.items():
        (out / "features" / name).mkdir(parents=True)
        data.write_json(out / "features" / name / "stream.json", {"rate": rate, "width": 3})
        for k, length in enumerate(steps):
            np.save(out / "features" / name / f"v{k}.npy", np.zeros((length, 3), np.float16))
    for k in range(7):
        (videos / f"v{k}.mp4").write_bytes(b"film")
        (videos / f"v{k}.srt").write_text(f"1\n{A}\nthe cat sat\n\n2\n00:03,500 --> 09,000\n")
    (videos / "._v0.mp4").write_bytes(b"\0")
    (videos / "._v0.srt").write_bytes(b"\0\xff")
    (out / "features" / "left_out.tsv").write_text("v5\tcannot be decoded\n")
    return videos, out


@pytest.fixture
def captions(films, tiny_vocab, monkeypatch):
    videos, out = films

    def run(*words):
        command = ["data.py", "captions", "--videos", videos, "--vocab", tiny_vocab, "--out", out]
        monkeypatch.setattr(sys, "argv", list(map(str, [*command, *words])))
        data.main()
        splits = json.loads((out / "splits.json").read_text())
        assert splits["videos"] == str(videos)
        return splits["train"], splits["valid"]
    return run


def test_captions_command(films, captions, tiny_tokenizer, tmp_path):
    videos, out = films
    (videos / "v1.srt").unlink()
    (videos / "v2.srt").write_text("")
    (videos / "v3.srt").write_text("1\n00:00:01,000 -> 00:00:03,000\nthe cat\n")
    train, valid = captions("--held-out", 1)
    assert sorted(train + valid) == ["v0", "v4"] and len(valid) == 1
    assert left_out(out) == {
        "v1": "no captions", "v2": "none of its 0 captions can be used",
        "v3": "none of its 1 captions can be used", "v5": "cannot be decoded", "v6": "no features"}
    same = data.tokenizer_hash(data.load_tokenizer(out))
    assert same == data.tokenizer_hash(tiny_tokenizer)
    tokens = data.Clips(out, "train", ["frame"], tiny_tokenizer, 32, 32).tokens
    while not isinstance(tokens, np.memmap):   # mapped: all processes share it
        tokens = tokens.base
    many = {video: {"text": ["the dog"], "start": [2], "end": [9]} for video in ("v3", "v9")}
    (tmp_path / "caption.json").write_text(json.dumps(many))
    assert captions("--captions", tmp_path / "caption.json") == (["v3"], [])
    assert packed(out)["v3"][0][1:] == (2.0, 4.0)   # cut at the video's end


def test_a_videos_length_is_its_longest_streams(films):
    assert data.feature_seconds(films[1]) == dict.fromkeys(["v0", "v1", "v2", "v3", "v4"], 4.0)


def test_captions_command_refuses(films, captions, tmp_path):
    videos, out = films
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="not one usable video in .*left_out.tsv"):
        captions("--captions", tmp_path / "none")
    assert left_out(out)["v0"] == "no captions" and not (out / "splits.json").exists()
    (out / "features" / "lock.1-of-2").touch()
    (out / "features" / "left_out.1-of-2.tsv").write_text("v5\tcut\n")
    with pytest.raises(UserError, match="shards 2/2 are not complete"):
        captions()
    (out / "features" / "left_out.2-of-2.tsv").touch()
    assert len(captions()[0]) == 4
    for path in (out / "features").glob("*/stream.json"):
        path.unlink()
    with pytest.raises(UserError, match="no features in .*`python data.py video"):
        captions()
