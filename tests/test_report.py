"""The report: structure, numbers, escaping, clips that decode, and the page in a browser.

    python -m pytest tests/test_report.py

The browser test needs Debian's chromium and chromium-driver and skips without them.
"""
import base64
import html.parser
import io
import json
import math
import re
import shutil
import time

import av
import numpy as np
import pytest

import data
import evaluate

HOSTILE = "<img src=x onerror=\"alert('1')\"> & </script><script>alert(1)</script>"
SEEDS = {"text-only": (50.0, 51.5, 48.0), "student": (88.75, 71.25, 80.5)}


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_clips(folder):
    """Five videos of 3 seconds, 64 x 48 at 8 frames a second; returns a pool of four rows of them."""
    folder.mkdir(parents=True)
    for number in range(5):
        with av.open(str(folder / f"v{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for step in range(24):
                picture = np.full((48, 64, 3), 40 * number, np.uint8)
                picture[:, 2 * step:2 * step + 8] = 10 * step   # the picture tells the time
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return [{"video": f"v{number}", "start": 1.0, "end": 2.5, "text": f"text {number} <b>"} for number in range(4)]


def make_runs(folder, names=("text-only", "student")):
    """Run folders with everything a report can show, as the stages write it; no model is trained for it."""
    pool = make_clips(folder / "data" / "videos")
    (folder / "data" / "world.json").write_text(json.dumps({"properties": {"lift": ["drop", ["rises", "sinks"]]}}))
    for index, (run, scores) in enumerate(zip(names, SEEDS.values())):
        run = folder / "runs" / run
        write_lines(run / "log.jsonl", [{"step": step, "mlm": 9 / step, "grad_norm": 2.0 + index, "lr": 0.1,
                                         "mlm_grad": 1.0, "seconds": step} for step in range(1, 1001, 10)] +
                    [{"step": 1000, "valid_mlm": 0.5, "odd": math.nan, "seconds": 1001.0}])
        seen = str(folder / "data") if index else None   # a text-only student's run names no folder of videos
        data.write_json(run / "args.json", {"arguments": {"data": seen, "objective": [], "size": "mini",
                                                          "index": index}, "commit": "0123456789abcdef",
                                            "hardware": f"a computer <{index}>", "processes": 1, "precision": "bf16"})
        for seed, value in enumerate(scores):
            fine = run / "finetune" / "PIQA" / f"seed-{seed}"
            write_lines(fine / "log.jsonl", [{"step": step, "loss": 1 / step, "grad_norm": 1.0} for step in (1, 5, 9)])
            part = {"accuracy": value / 100, "n": 400, "chance": 0.5}
            data.write_json(fine / "metrics.json", {"task": "PIQA", "seed": seed, "majority": False, "seconds": 12.5,
                                                    "parts": {"test": {"grounded": part}}, "test": part})
        data.write_json(run / "probe.json", {"lift": {"test": 0.5125 + 0.4 * index, "unfilmed": 0.5}})
        examples = [{"index": number, "rank": 1 + index, "own": row,
                     "top": [pool[(number + index + k) % 4] for k in range(3)]} for number, row in enumerate(pool)]
        data.write_json(run / "retrieval.json", {"R@1": 0.40625, "median rank": 2.0, "ranks": [1 + index] * 4,
                                                 "data": str(folder / "data"), "examples": examples})
    (folder / "runs" / "seconds.tsv").write_text("teacher\t300\nteacher\t45\nstudent\t194\n")
    part = {"name": "grounded <i>", "n": 5, "seeds": [0, 1, 2, 3, 4], "mean": 23.8, "low": 13.8, "high": 33.7, "kind": "better",
            "verdict": "holds", "nouns": [20.5, 26.25]}
    alone = {"name": "alone", "n": 1, "seeds": [3], "mean": -1.2, "low": None, "high": None, "kind": "better",
             "verdict": "one seed", "nouns": None}
    data.write_json(folder / "runs" / "claims.json", {
        "commit": "fedcba9876", "hardware": "2 cores", "seeds": [0, 1, 2, 3, 4],
        "arms": {"text-only": {"grounded QNLI PIQA": [50.0, 51.0]},
                 "nst+crd": {"grounded QNLI PIQA": [80.0, 84.0], "R@1": [33.3]}},
        "claims": [{"number": "1", "text": "student > text-only", "kind": "mechanism", "note": "by <b>", "controls": {"pairs": "fails"},
                    "parts": [part, alone], "verdict": "holds", "holm": 0.0123, "of": 10}],
        "curve": {"steps": [10, 100, 1000], "two-stage": [[80, 82], [70, 71], [55, 52]],
                  "distilled": [[60, 61], [70, 72], [84, 82]]}})
    return [str(folder / "runs" / run) for run in names]


class Page(html.parser.HTMLParser):
    """What a reader of the file's structure meets: tags in order, with attributes and the text inside each."""
    EMPTY = {"meta", "link", "br", "img"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), [], [t for t, *_ in self.open]))
        if tag not in self.EMPTY:
            self.open.append(self.tags[-1])

    def handle_endtag(self, tag):
        assert self.open and self.open.pop()[0] == tag, f"</{tag}> closes what is not open"

    def handle_data(self, text):
        for _, _, inside, _ in self.open:
            inside.append(text)

    def every(self, *names):
        return [(tag, attributes, "".join(inside).strip(), above) for tag, attributes, inside, above in self.tags
                if tag in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, runs, text of the page) of the runs above."""
    folder = tmp_path_factory.mktemp("report")
    runs = make_runs(folder)
    evaluate.main(["report", *runs, "--names", "text-only", HOSTILE])
    return folder, runs, (folder / "runs" / "report.html").read_text(encoding="utf-8")


def test_structure(made):
    page = Page(made[2])
    assert not page.open and len(made[2].encode()) < 8_000_000
    ids = [attributes["id"] for _, attributes, *_ in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 10
    for _, attributes, *_ in page.every("a"):
        assert attributes["href"][0] == "#" and attributes["href"][1:] in ids
    for _, attributes, *_ in page.tags:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)
        assert not any(name.startswith("on") for name in attributes)
    assert page.every("html")[0][1]["lang"] == "en" and page.every("main", "h1", "nav", "title")
    levels = [int(tag[1]) for tag, *_ in page.every("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= now + 1 for now, later in zip(levels, levels[1:])), "a heading level is skipped"
    for index, (tag, attributes, *_) in enumerate(page.tags):
        if tag == "svg":   # the first child names it, the second tells what it shows
            assert attributes["role"] == "img" and [t for t, *_ in page.tags[index + 1:index + 3]] == ["title", "desc"]
            assert all("".join(inside).strip() for _, _, inside, _ in page.tags[index + 1:index + 3])
        if tag == "video":
            assert {"muted", "loop", "playsinline", "controls", "preload"} <= set(attributes)
            assert attributes["aria-label"]
            assert "autoplay" not in attributes   # the script starts clips, and asks about motion first
        if tag == "table":
            assert page.tags[index + 1][0] == "caption" and "div" == page.tags[index][3][-1]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    for tag in ("video", "svg", "figure", "table"):
        assert page.every(tag)
    for tag, _, text, _ in page.every("p", "figcaption", "caption"):
        assert text, f"an empty {tag}"


def test_nothing_is_loaded_from_elsewhere(made):
    page = Page(made[2])
    for tag, attributes, *_ in page.tags:
        for name in ("src", "href", "poster", "action", "data", "srcset"):
            if name in attributes and tag != "a":
                assert attributes[name].startswith("data:"), (tag, name)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", made[2]))


def test_numbers_are_those_of_the_files(made, capsys):
    page = Page(made[2])
    tables = {}
    for (_, _, text, _), (_, _, caption, _) in zip(page.every("table"), page.every("caption")):
        tables[caption] = text
    results = next(text for caption, text in tables.items() if "standard deviation" in caption)
    evaluate.main(["table", *made[1]])
    printed = capsys.readouterr().out
    for values in SEEDS.values():
        cell = evaluate.show_cell([{"value": value, "stuck": False, "split_dev": False} for value in values])
        assert cell in printed and cell in results   # the report's cells are the table's
    assert "80.2 ± 8.8 (n=3, median 80.5)" in results and "50.0" in results   # worked out by hand; chance
    told = [text for _, _, text, above in page.every("desc")]
    assert any("80.2, interval 58.4 to 101.9" in text for text in told)   # 80.1667 +- 4.30265 x 8.7547 / sqrt(3)
    assert any(re.search(r"text-only: 9 at 1, 0.00908\d at 991", text) for text in told)
    seconds = next(text for caption, text in tables.items() if caption.startswith("Seconds"))
    assert "teacher345" in seconds and "student194" in seconds
    runs = next(text for caption, text in tables.items() if caption.startswith("Runs"))
    assert "a computer <1>" in runs and "0123456789" in runs and "1,001" in runs and "38" in runs   # 37.5 s
    claims = next(text for caption, text in tables.items() if "fedcba9876" in caption)
    assert "+23.8 [+13.8, +33.7]" in claims and "✓ holds" in claims and "-1.2" in claims and "grounded <i>" in claims
    assert "[+20.5, +26.2]" in claims and "0.012" in claims and "(mechanism; by <b>)" in claims
    assert "0, 1, 2, 3, 4" in claims and "? one seed" in claims and "holds; its control pairs: fails" in claims
    arms = next(text for caption, text in tables.items() if "R@1 of text to video" in caption)
    assert "nst+crd1-282.0 ± 2.833.3" in arms and "text-only250.5 ± 0.7-" in arms   # n; grounded; R@1, one seed or none
    assert any("two-stage: 81 at 10, 53.5 at 1000; distilled: 60.5 at 10, 83 at 1000" in text for text in told)
    probes = next(text for caption, text in tables.items() if "linear probe" in caption)
    assert "51.2" in probes and "91.2" in probes
    assert any("40.6 %" in text for text in tables.values())
    assert "Not in this report" not in made[2]


def test_names_and_texts_are_escaped(made):
    page = Page(made[2])
    assert "<img" not in made[2] and len(page.every("script")) == 1
    assert any(HOSTILE in text for _, _, text, _ in page.every("th"))
    assert any(text == "“text 3 <b>”" for _, _, text, _ in page.every("h3"))
    assert str(evaluate.tag("p", '<b>"', class_='"><')) == '<p class="&quot;&gt;&lt;">&lt;b&gt;&quot;</p>'


def test_clips_are_what_was_asked_for(made):
    """Each clip is embedded once, decodes as H.264 yuv420p, and shows the seconds of its row."""
    videos = [attributes for tag, attributes, *_ in Page(made[2]).every("video")]
    sources = [attributes["src"] for attributes in videos if "src" in attributes]
    assert len(sources) == len(set(sources)) == 4 < len(videos)
    assert {attributes["data-same"] for attributes in videos if "src" not in attributes} <= {
        attributes.get("id") for attributes in videos}
    for source in sources:
        assert source.startswith("data:video/mp4;base64,")
        coded = base64.b64decode(source.partition(",")[2])
        assert coded.index(b"moov") < coded.index(b"mdat")   # faststart
        with av.open(io.BytesIO(coded)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.height, stream.width) == (112, 148)   # 149 by the sides of 64 x 48, made even
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) == 15   # 1.5 s at 10 a second
        # at 1.0 s the bar is drawn for the eighth time: it starts at 16 of 64 pixels and is as bright as 80
        row = frames[0][56].mean(1)                                                          # [148]
        bar = int(np.abs(row - row[-1]).argmax() / 148 * 64)
        assert 16 <= bar < 24 or abs(row[-1] - 80) < 8   # where the background is 80 the bar is not seen


def test_clips_end_and_fail_with_a_reason(tmp_path):
    make_clips(tmp_path / "videos")
    with av.open(io.BytesIO(evaluate.clip_bytes(tmp_path / "videos" / "v1.mp4", 0.0, 60.0))) as container:
        assert 30 <= sum(1 for _ in container.decode(video=0)) <= 40   # 3 s of video, 4 s at most
    with pytest.raises(data.VideoError, match="no frame between 9"):
        evaluate.clip_bytes(tmp_path / "videos" / "v1.mp4", 9.0, 10.0)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(data.VideoError, match="cannot be decoded"):
        evaluate.clip_bytes(tmp_path / "broken.mp4", 0.0, 1.0)


def test_clips_of_real_videos_show_the_right_seconds(real_data):
    """Cut after a seek, a clip shows what the whole video, decoded from its start, shows then (phone videos turned)."""
    for path in sorted((real_data / "video").glob("*.mp4")):
        whole = [picture for _, some, _ in data.decode(path, [data.Filtered(10, 112, False)]) for picture in some]
        start = min(3.0, len(whole) / 10 - 2)
        with av.open(io.BytesIO(evaluate.clip_bytes(path, start, start + 1.5))) as container:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
        assert 14 <= len(frames) <= 16
        height, width = frames[0].shape[:2]
        for step in (0, 7, 13):   # the most alike is of that moment; the clip's tenths need not begin at a tenth
            unlike = [np.abs(picture[:height, :width] - frames[step]).mean() for picture in whole]
            assert abs(int(np.argmin(unlike)) - 10 * start - step) <= 1 and min(unlike) < 10, (path.name, step)


def test_what_is_missing_is_named(tmp_path, capsys):
    runs = make_runs(tmp_path)
    for name in ("retrieval.json", "probe.json", "log.jsonl", "args.json"):
        (tmp_path / "runs" / "student" / name).unlink()
    shutil.rmtree(tmp_path / "data")   # neither videos nor world
    (tmp_path / "runs" / "claims.json").unlink()
    evaluate.main(["report", *runs, str(tmp_path / "runs" / "seconds.tsv"), "--out", str(tmp_path / "page.html")])
    text, printed = (tmp_path / "page.html").read_text(encoding="utf-8"), capsys.readouterr().out
    assert "no video v0 in" in text and "<video" not in text and "unknown" in text
    assert "Forgetting curve: it is drawn" in text and "Forgetting curve: it is drawn" in printed and "0 clips" in printed
    with pytest.raises(SystemExit, match="no run folder .*nowhere"):
        evaluate.main(["report", str(tmp_path / "nowhere")])
    bare = tmp_path / "bare"
    bare.mkdir()
    data.write_json(bare / "args.json", {})
    evaluate.main(["report", str(bare)])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [text for tag, _, text, _ in page.every("h2")] == ["What was run", "Not in this report"]
    assert len(page.every("li")) == 2 + 7   # the sections' links; what is left out


def test_claims_are_found_in_any_folder_that_is_given(tmp_path, capsys):
    """`report runs/*` after `make claims`: runs/claims is no run, but holds claims.json."""
    runs = make_runs(tmp_path)
    (tmp_path / "runs" / "claims").mkdir()
    (tmp_path / "runs" / "claims.json").rename(tmp_path / "runs" / "claims" / "claims.json")
    evaluate.main(["report", str(tmp_path / "runs" / "claims"), *runs])
    assert "left out" not in capsys.readouterr().out
    assert "Differences in points over seeds" in (tmp_path / "runs" / "report.html").read_text(encoding="utf-8")


def test_size_is_kept(made, tmp_path, monkeypatch):
    """Clips stop where their share is used up, and a page that is too large is not written."""
    monkeypatch.setattr(evaluate, "CLIP_BYTES", len(made[2]) // 8)
    evaluate.main(["report", *made[1], "--out", str(tmp_path / "few.html")])
    text = (tmp_path / "few.html").read_text(encoding="utf-8")
    shown = re.search(r"(\d) of the 4 texts", text)
    assert not shown or int(shown[1]) < 4
    monkeypatch.setattr(evaluate, "REPORT_BYTES", 10_000)
    with pytest.raises(SystemExit, match="more than 0.01: give it fewer runs"):
        evaluate.main(["report", *made[1], "--out", str(tmp_path / "none.html")])
    assert not (tmp_path / "none.html").exists()


def test_paper_scale_is_quick_and_small(tmp_path):
    """Nine runs of 20,000 logged lines, ten tasks of five seeds: a long log is thinned, not drawn point by point."""
    metrics = {"majority": False, "seconds": 1.0}
    for number in range(9):
        run = tmp_path / "runs" / f"arm-{number}"
        write_lines(run / "log.jsonl", ({"step": 50 * step, "mlm": 7 / (1 + step), "nst": 1.0, "grad_norm": 1.0}
                                        for step in range(20_000)))
        data.write_json(run / "args.json", {"arguments": {"size": "base"}})
        for task in ("SST-2", "QNLI", "QQP", "MNLI", "SQuAD1", "SQuAD2", "SWAG", "PIQA", "RTE", "CoLA"):
            for seed in range(5):
                scores = {name: 0.5 for name, _ in evaluate.METRICS[task]} | {"n": 100, "chance": 0.5}
                fine = run / "finetune" / task / f"seed-{seed}"
                write_lines(fine / "log.jsonl", [{"step": 1 + step, "loss": 1.0, "grad_norm": 1.0}
                                                 for step in range(100)])
                data.write_json(fine / "metrics.json", {**metrics, "task": task, "seed": seed, "dev": scores})
    start = time.monotonic()
    evaluate.main(["report", *[str(path) for path in sorted((tmp_path / "runs").glob("arm-*"))]])
    assert time.monotonic() - start < 30
    assert (tmp_path / "runs" / "report.html").stat().st_size < 4_000_000


def test_ticks_and_thinning():
    assert evaluate.ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert evaluate.ticks(48.2, 51.0) == [49, 50, 51] and evaluate.ticks(-3, 3) == [-2, 0, 2]
    assert evaluate.ticks(0.3, 8, True) == [0.5, 1, 2, 5] and evaluate.ticks(1e-3, 1e3, True) == [1e-3, 0.1, 10, 1e3]
    assert [evaluate.short(value) for value in (0.5, 200, 20_000, 1.5e6)] == ["0.5", "200", "20k", "1.5M"]
    points = [(x, 2 * x) for x in range(1000)]
    assert evaluate.thin(points, 1000) == points and evaluate.thin(points, 100)[0] == (4.5, 9.0)
    assert len(evaluate.thin(points, 300)) <= 300


def test_retrieval_draws_texts_before_scores():
    pool = [{"video": f"v{number}"} for number in range(50)]
    scores = np.random.default_rng(0).normal(size=(2, 50, 50))
    clips = evaluate.torch.eye(50, dtype=evaluate.torch.float64)
    first, second = [evaluate.retrieval_examples(*evaluate.search(evaluate.torch.tensor(some), clips), pool)
                     for some in scores]
    assert [row["index"] for row in first] == [row["index"] for row in second] and len(first) == 12
    for row in first:   # the drawn text's best three, by sorting its scores
        order = sorted(range(50), key=lambda other: -scores[0][row["index"], other])
        assert row["top"] == [pool[other] for other in order[:3]] and row["own"] == pool[row["index"]]
        assert row["rank"] == order.index(row["index"]) + 1


# ---------------------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that notes its console and its requests."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", 
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_script_timeout(30)
    yield opened
    opened.quit()


PLAY = """const done = arguments[0], clips = [...document.querySelectorAll("video")];
Promise.all(clips.map(async clip => { await clip.play(); const start = clip.currentTime;
  for (let k = 0; k < 200 && clip.currentTime === start; k++) await new Promise(next => setTimeout(next, 50));
  const moved = clip.currentTime !== start; clip.pause(); return [moved, clip.readyState, clip.videoWidth]; }))
  .then(done, error => done(String(error)));"""


def requests(browser):
    """Addresses asked for since the last call, but for those of the browser's own start page."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [asked["request"]["url"] for asked in sent if not asked["documentURL"].startswith("chrome:")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(made, browser, width, scheme):
    path = made[0] / "runs" / "report.html"
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia",
                            {"features": [{"name": "prefers-color-scheme", "value": scheme},
                                          {"name": "prefers-reduced-motion", "value": "reduce"}]})
    requests(browser), browser.get_log("browser")   # forget what came before
    browser.get(path.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script("document.getElementById('play').scrollIntoView()")
    time.sleep(0.5)   # clips in view would have begun
    assert browser.execute_script("return [...document.querySelectorAll('video')].every(clip => clip.paused)")
    paper, ink = browser.execute_script("const style = getComputedStyle(document.body); "
                                        "return [style.backgroundColor, style.color]")
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (bright[0] > 600 and bright[1] < 200) if scheme == "light" else (bright[0] < 200 and bright[1] > 600)
    small = browser.execute_script("return Math.min(...[...document.querySelectorAll('.plots svg')].map("
                                   "plot => 12 * plot.clientWidth / plot.viewBox.baseVal.width))")
    assert small >= 10, "letters of a plot are too small to read"
    clips = browser.execute_async_script(PLAY)
    assert isinstance(clips, list) and len(clips) > 4, clips
    for moved, ready, pixels in clips:
        assert moved and ready >= 2 and pixels == 148
    asked = requests(browser)
    # chrome-untrusted: the browser's own panels, now and then
    assert path.as_uri() in asked and {address.partition(":")[0] for address in asked} <= {"file", "data", "chrome-untrusted"}
    assert browser.get_log("browser") == []


def test_clips_play_by_themselves_where_motion_is_welcome(made, browser):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia",
                            {"features": [{"name": "prefers-reduced-motion", "value": "no-preference"}]})
    browser.get((made[0] / "runs" / "report.html").as_uri())
    playing = "return [...document.querySelectorAll('video')].filter(clip => !clip.paused).length"
    browser.execute_script("document.getElementById('play').scrollIntoView()")
    for _ in range(100):
        if browser.execute_script(playing):
            break
        time.sleep(0.05)
    some = browser.execute_script(playing)
    assert 0 < some < len(Page(made[2]).every("video")), "clips play in view, and only there"
    browser.execute_script("document.getElementById('play').click()")
    for _ in range(100):
        if not browser.execute_script(playing):
            break
        time.sleep(0.05)
    assert browser.execute_script(playing) == 0
