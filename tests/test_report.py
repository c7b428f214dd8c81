"""The report: structure, numbers, escaping, clips that decode, the result sentence, a browser.

    python -m pytest tests/test_report.py

The browser tests need Debian's chromium and chromium-driver and skip without them.
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
import torch

import data
import evaluate
import model

HOSTILE = "<img src=x onerror=\"alert('1')\"> & </script><script>alert(1)</script>"
SEEDS = {"text-only": (50.0, 51.5, 48.0), "student": (88.75, 71.25, 80.5)}


def write_log(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_films(folder):
    """Four films of 3 seconds, 64 x 48 at 8 frames a second; a white bar tells the time."""
    folder.mkdir(parents=True)
    for number in range(4):
        with av.open(str(folder / f"v{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width = 64
            stream.height = 48
            stream.pix_fmt = "yuv420p"
            for step in range(24):
                picture = np.full((48, 64, 3), 20 * number, np.uint8)
                picture[:, 2 * step:2 * step + 8] = 255
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def make_runs(folder):
    """Run folders with all that a report can show, as the stages write it; nothing is trained."""
    make_films(folder / "films")
    (folder / "data").mkdir()
    data.write_json(folder / "data" / "splits.json", {"videos": str(folder / "films")})
    pool = [{"video": f"v{number}", "start": 1.0, "end": 2.5, "text": f"text {number} <b>"}
            for number in range(4)]
    for index, (name, scores) in enumerate(SEEDS.items()):
        run = folder / "runs" / name
        lines = [{"step": step, "mlm": 9 / step, "lr": 0.1, "seconds": step}
                 for step in range(1, 1001, 10)]
        write_log(run, [*lines, {"step": 1000, "valid_mlm": 0.5, "odd": math.nan, "seconds": 1000}])
        arguments = {"objective": ["crd", "nst"][:2 * index], "index": index, "seed": 0}
        data.write_json(run / "args.json", {"arguments": arguments, "hardware": f"cpu <{index}>"})
        for seed, value in enumerate(scores):
            fine = run / "finetune" / "PIQA" / f"seed-{seed}"
            write_log(fine, [{"step": 100, "loss": 0.7}, {"step": 200, "loss": 0.25 + index}])
            part = {"accuracy": value / 100, "n": 400, "chance": 0.5}
            data.write_json(fine / "metrics.json", {
                "task": "PIQA", "seed": seed, "majority": False, "seconds": 12.5, "test": part,
                "parts": {"test": {"grounded": part}}})
        data.write_json(run / "probe.json", {"lift": {"test": 0.9125, "unfilmed": 0.5}})
        examples = []
        for number, row in enumerate(pool):
            top = [pool[(number + index + k) % 4] for k in range(3)]
            examples.append({"index": number, "rank": 1 + index, "own": row, "top": top})
        data.write_json(run / "retrieval.json", {
            "R@1": 0.40625, "median rank": 2.0, "pool": "4 clips", "how": "h against v",
            "data": str(folder / "data"), "examples": examples})
    part = {"name": "grounded <i>", "question": "better", "verdict": "holds", "mean": 24.0,
            "values": [20.0, 23.0, 29.0], "low": 12.6, "high": 35.4}
    alone = {**part, "values": [-1.2], "mean": -1.2, "low": math.nan, "high": math.nan,
             "verdict": "one seed"}
    empty = {**part, "name": "empty", "values": [], "mean": math.nan, "verdict": "not run"}
    claim = {"number": "1", "text": "student > text-only <b>", "parts": [part, alone, empty],
             "said": "holds; its control pairs: fails"}
    shown = {**part, "question": "shown", "verdict": "-", "name": "MLM: clean - nst+crd"}
    asked = {"number": "masks", "text": "Masked or clean?", "parts": [shown], "said": "-"}
    grounded = {"two-stage-500": [80, 82], "two-stage-4000": [55, 52], "distilled-500": [60, 61],
                "nst+crd": [84, 86], "of-noisy-20-teacher": [70, 72],
                "teacher": [90, 90]}
    arms = {arm: {"grounded": values, "worlds": [1, 2]} for arm, values in grounded.items()}
    for arm, known in (("teacher", [97, 99]), ("nst+crd", [91, 92])):
        arms[arm].update(dict.fromkeys(data.PROPERTIES, known))
    (folder / "runs" / "claims").mkdir()
    data.write_json(folder / "runs" / "claims" / "claims.json", {
        "commit": "fedcba9876", "hardware": "2 cores", "seeds": [1, 2, 3],
        "claims": [claim, asked], "arms": arms})
    return [str(folder / "runs" / name) for name in SEEDS]


class Page(html.parser.HTMLParser):
    """The page's elements in order: (tag, attributes, text inside)."""

    def __init__(self, file):
        super().__init__()
        self.elements = []
        self.open = []
        self.feed(file.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> closes what is not open"

    def handle_data(self, text):
        for _, _, inside in self.open:
            inside.append(text.replace("\u00a0", " "))

    def every(self, tag):
        return [(attributes, "".join(inside)) for name, attributes, inside in self.elements
                if name == tag]

    def texts(self, tag):
        return [text for _, text in self.every(tag)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data/ and runs/, runs/report.html written."""
    folder = tmp_path_factory.mktemp("report")
    evaluate.main(["report", *make_runs(folder), "--names", "text-only", HOSTILE])
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page(folder / "runs" / "report.html")


def test_structure(page):
    assert not page.open
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    linked = [attributes["href"][1:] for attributes, _ in page.every("a")]
    assert linked == [attributes["id"] for attributes, _ in page.every("section")]
    assert linked == ["Clips", "Results", "Probes", "Training", "Claims", "Questions", "Runs"]
    levels = [tag for tag, _, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == "h1" and levels.count("h1") == 1 and levels.count("h2") == 7
    for attributes, inside in page.every("svg"):
        assert attributes.get("role") != "img" or inside.strip()   # its title says what it shows
    for attributes, _ in page.every("video"):
        assert {"muted", "loop", "playsinline", "controls", "aria-label"} <= set(attributes)
        assert "autoplay" not in attributes   # the script asks about motion first
    for attributes, _ in page.every("th"):
        assert attributes["scope"] in ("row", "col")


def test_nothing_is_loaded_from_elsewhere(folder, page):
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "poster", "action", "data", "srcset"):
            assert tag == "a" or attributes.get(name, "data:").startswith("data:")
    text = (folder / "runs" / "report.html").read_text(encoding="utf-8")
    bare = re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", bare)


def test_names_and_texts_are_escaped(page):
    assert page.every("img") == [] and len(page.every("script")) == 1
    assert HOSTILE in page.texts("th")
    assert "“text 3 <b>”" in page.texts("h3")
    given = evaluate.tag("p", '<b>"', class_='"><')
    assert given == '<p class="&quot;&gt;&lt;">&lt;b&gt;&quot;</p>'


def test_numbers_are_those_of_the_files(page):
    tables = "".join(page.texts("table"))
    for values in SEEDS.values():
        entries = [{"value": value, "stuck": False, "split_dev": False} for value in values]
        assert evaluate.show_cell(entries) in tables   # the cells of `table`
    assert "h against v4 clipsR@1 40.6 %" in tables
    runs = "".join(page.texts("pre"))
    for text in ("cpu <1>", '"crd"', '"fine-tuning": 37.5', '"steps": 1000'):
        assert text in runs
    pictures = "".join(page.texts("title"))
    # 80.1667 +- 4.30265 x 8.7547 / sqrt(3), by hand
    for text in ("80.2, interval 58.4 to 101.9", "text-only: 0.009082 at 991",
                 "text-only: 0.25 at 200; text-only: 0.25 at 200",
                 "two-stage: 53.5 at 4000", "student: 71 at 20; student: 72 at 20"):
        assert text in pictures
    rows = "".join(page.texts("li"))
    for text in ("grounded <i> (better)+24.0 [+12.6, +35.4] holds", "-1.2 one seed", "not run",
                 "test nouns91.2"):
        assert text in rows
    captions = page.texts("figcaption")
    for text in ("1. student > text-only <b>: holds; its control pairs: fails",
                 "masks. Masked or clean? (MLM, in nats)",
                 "By % of captions that meet another film: grounded questions"):
        assert text in captions
    assert not any(text.startswith("By number of films") for text in captions)   # not run
    arrived = [(text, attributes["style"]) for attributes, text in page.every("span")
               if "style" in attributes]
    assert arrived == [("98", "--share: 0.96")] * 4 + [("98", "--share: 0.97")] + \
        [("98", "--share: 0.96")] * 2 + [("92", "--share: 0.83")] * 4 + \
        [("92", "--share: 0.89")] + [("92", "--share: 0.83")] * 2


def entries(*values, chance=50.0):
    return [{"seed": seed, "value": value, "chance": chance, "stuck": False, "split_dev": False}
            for seed, value in enumerate(values)]


MINI = {("QNLI", "grounded"): entries(80.0, 90.0), ("PIQA", "grounded"): entries(95.0),
        (evaluate.MATTHEWS, "grounded"): entries(40.0, chance=0.0),
        ("PIQA", "unfilmed"): entries(1.0), ("MNLI", "grounded"): entries(None)}
MINI_PLAIN = {("QNLI", "grounded"): entries(50.0), ("PIQA", "grounded"): entries(52.0),
              (evaluate.MATTHEWS, "grounded"): entries(0.0, chance=0.0)}
REAL = {("RTE", "dev"): entries(60.0), ("STS-B", "dev"): entries(80.0, 90.0, chance=None),
        ("MNLI", "dev-mismatched"): entries(1.0)}
REAL_PLAIN = {("RTE", "dev"): entries(61.0), ("MNLI", "dev"): entries(1.0)}
FILM = "No student ever saw a frame. Right answers to questions that only film answers: "


@pytest.mark.parametrize("cells, sentence", [
    ([MINI, MINI_PLAIN], FILM + "run 0 90.0 %, run 1 51.0 %; chance 50.0 %."),
    ([{}, MINI], FILM + "run 1 90.0 %; chance 50.0 %."),
    ([REAL, REAL_PLAIN],
     "In the mean of RTE: run 0 60.0 %, run 1 61.0 %; chance 50.0 %."),
    ([REAL], "In the mean of STS-B, RTE: run 0 72.5 %; chance 50.0 %."),
    ([{("RTE", "dev"): entries(60.0)}, {("MNLI", "dev"): entries(1.0)}],
     "No task has a result of all these runs yet."),
    ([{}], "No task has a result of all these runs yet."),
])
def test_result_sentence(cells, sentence):
    names = [f"run {number}" for number in range(len(cells))]
    assert evaluate.result(names, cells)[0] == sentence


def test_clips_are_what_was_asked_for(page):
    """Each clip decodes as H.264 and shows the seconds of its row."""
    clips = page.every("video")
    assert len({attributes["src"] for attributes, _ in clips}) == 4
    for attributes, _ in clips:
        head, _, coded = attributes["src"].partition(",")
        assert head == "data:video/mp4;base64" and "1 to 2.5 s" in attributes["aria-label"]
        with av.open(io.BytesIO(base64.b64decode(coded))) as container:
            context = container.streams.video[0].codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 15   # 1.5 s at 10 a second
        assert frames[0].shape == (112, 148, 3)   # 149 by the sides of 64 x 48, made even
        bright = np.flatnonzero(frames[0][56].mean(1) > 180) * 64 / 148
        assert 14 <= bright.min() <= 18 and 22 <= bright.max() <= 26   # the bar at 1.0 s: 16 to 24


def test_clips_are_cut_at_four_seconds(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(data, "clip_pictures", lambda path, *given: asked.append(given) or [
        np.zeros((113, 113, 3), np.uint8)])
    assert evaluate.clip_uri(tmp_path, 3.0, 60.0).startswith("data:video/mp4;base64,")
    assert asked == [(3.0, 7.0, 10, 112)]


def test_what_is_missing_is_named_and_the_result_comes_last(tmp_path, capsys):
    runs = make_runs(tmp_path)
    (tmp_path / "films" / "v0.mp4").write_bytes(b"no film")
    (tmp_path / "films" / "v1.mp4").unlink()
    for run in SEEDS:
        (tmp_path / "runs" / run / "probe.json").unlink()
    evaluate.main(["report", *runs, str(tmp_path / "runs" / "claims")])   # which is no run
    page = Page(tmp_path / "runs" / "report.html")
    shown = "".join(page.texts("p"))
    assert "no film v1" in shown and "cannot be decoded" in shown
    assert "Claims" in [attributes.get("id") for attributes, _ in page.every("section")]
    line = "No probes yet: `evaluate.py probe` makes them."
    sentence = FILM + "text-only 49.8 %, student 80.2 %; chance 50.0 %."
    printed = capsys.readouterr().out.splitlines()
    assert line in shown and line in [text.strip() for text in printed]
    assert [printed[-1]] == page.texts("h1") == [sentence]
    shutil.rmtree(tmp_path / "films")
    evaluate.main(["report", *runs])
    assert Page(tmp_path / "runs" / "report.html").every("video") == []
    with pytest.raises(model.UserError, match="no run in .*nowhere"):
        evaluate.main(["report", str(tmp_path / "nowhere")])


def test_judged_claims_are_the_result_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    """Their verdicts in the heading, a part of each beside it: the one that decides."""
    runs = make_runs(tmp_path)
    file = tmp_path / "runs" / "claims" / "claims.json"
    judged = data.read_json(file, "")
    part = judged["claims"][0]["parts"][0]
    weak = {**part, "name": "weak", "verdict": "fails", "values": [1.0, -1.5]}
    judged["claims"][0]["verdict"] = "holds"
    judged["claims"] += [
        {"number": number, "text": "claimed", "said": verdict, "verdict": verdict,
         "parts": [part, weak]} for number, verdict in (("6", "fails"), ("9", "fails"))]
    data.write_json(file, judged)
    evaluate.main(["report", *runs, "--claims", str(file)])
    page = Page(tmp_path / "runs" / "report.html")
    assert page.texts("h1") == [FILM.removesuffix(": ") + ", mean of 3 worlds: NST+CRD student "
                                "85.0 % (n=2), its teacher 90.0 % (n=2); chance 50.0 %."]
    assert page.texts("figcaption")[0].endswith("in points – holds: 1; fails: 6, 9")
    assert page.texts("h2")[:3] == ["Claims", "Questions", "Clips"]
    header = page.texts("header")[0]
    assert header.count("weak") == 2 and header.count("grounded <i>") == 1
    judged["claims"] = judged["claims"][1:2]   # a question alone: the runs are the result
    question = tmp_path / "question.json"
    data.write_json(question, judged)
    evaluate.main(["report", *runs, "--claims", str(question)])
    assert page.texts("h1") != Page(tmp_path / "runs" / "report.html").texts("h1")
    evaluate.main(["report", *runs, "--claims", str(question), str(file)])
    assert page.texts("h1") == Page(tmp_path / "runs" / "report.html").texts("h1")
    monkeypatch.chdir(tmp_path / "films")   # nothing was trained there
    capsys.readouterr()
    evaluate.main(["report", "--claims", str(file)])
    alone = Page(file.parent / "report.html")
    assert alone.texts("h1") == page.texts("h1")
    assert alone.texts("h2") == ["Claims", "Questions"]
    assert "No clips yet" not in capsys.readouterr().out
    evaluate.main(["report", "--claims", str(question), "--out", str(tmp_path / "question.html")])
    asked = judged["claims"][0]["text"]
    assert Page(tmp_path / "question.html").texts("h1") == [asked]
    with pytest.raises(model.UserError, match="no run in"):
        evaluate.main(["report", str(tmp_path / "films"), "--claims", str(file)])


def test_a_curve_is_of_the_worlds_that_all_its_arms_have():
    arms = {"of-half-teacher": {"grounded": [70, 80], "worlds": [1, 2]},
            "nst+crd": {"grounded": [10, 50, 60], "worlds": [3, 1, 2]}}
    drawn = evaluate.curve_plot("films", [1152, 2304],
                                {"student": ["of-half-teacher", "nst+crd"]}, arms)
    assert "student: 55 at 2304" in drawn and "10 at" not in drawn


def test_an_axis_names_its_ends_and_the_reference_where_there_is_room():
    for low, high, marks in ((-10.0, 30.0, ["-10", "30", "0"]), (-1.0, 30.0, ["-1", "30"]),
                             (-0.125, 0.5, ["-0.12", "0.50", "0"])):
        rows = [("one", "", [low], 0, 0), ("other", "", [high], 1, 0)]
        drawn = evaluate.interval_plots({"title": rows})
        assert re.findall(r"<text [^>]*>(.*?)</text>", drawn) == marks


def test_what_tests_film_judged_stands_at_the_top_alone(tmp_path, capsys):
    runs = make_runs(tmp_path)
    judged = tmp_path / "runs" / "claims" / "claims.json"
    data.write_json(judged, {**data.read_json(judged, ""), "sentence": "Films change 7 %."})
    evaluate.main(["report", *runs])
    page = Page(tmp_path / "runs" / "report.html")
    assert page.texts("h1") == ["Films change 7 %."]
    captions = [text for text in page.texts("figcaption") if "student > text-only" in text]
    assert len(captions) == 1
    assert "Claims" not in page.texts("h2") and "No claims" not in capsys.readouterr().out


def test_long_logs_are_thinned(tmp_path):
    """Two runs of 20,000 logged lines, and nothing else, stay a small page."""
    for number in range(2):
        run = tmp_path / f"arm-{number}"
        write_log(run, ({"step": 50 * step, "mlm": 7 / (1 + step), "seconds": step}
                        for step in range(20_000)))
        data.write_json(run / "args.json", {"arguments": {"size": "base"}})
    evaluate.main(["report", *sorted(map(str, tmp_path.glob("arm-*")))])
    assert (tmp_path / "report.html").stat().st_size < 60_000
    assert Page(tmp_path / "report.html").texts("h2") == ["Training", "Runs"]


def test_retrieval_draws_texts_before_scores():
    pool = [{"video": f"v{number}"} for number in range(50)]
    clips = torch.eye(50, dtype=torch.float64)
    drawn = []
    for seed in (0, 1):
        scores = np.random.default_rng(seed).normal(size=(50, 50))
        ranks, best = evaluate.search(torch.tensor(scores), clips)
        examples = evaluate.retrieval_examples(ranks, best, pool)
        drawn.append([row["index"] for row in examples])
        for row in examples:   # the drawn text's best three, by sorting its scores
            order = np.argsort(-scores[row["index"]]).tolist()
            assert row["top"] == [pool[other] for other in order[:3]]
            assert row["own"] == pool[row["index"]]
            assert row["rank"] == order.index(row["index"]) + 1
    assert drawn[0] == drawn[1] and len(drawn[0]) == 12


# --------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that notes its console."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service
    chromium = shutil.which("chromium")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu",
                 f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def show(browser, path, width, scheme="light", motion="reduce"):
    """Opens the page as on such a screen."""
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    wishes = [{"name": "prefers-color-scheme", "value": scheme},
              {"name": "prefers-reduced-motion", "value": motion}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wishes})
    browser.get(path.as_uri())


def brightness(colour):
    """Relative luminance of "rgb(r, g, b)" (WCAG 2)."""
    parts = np.array([int(number) for number in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


COLOURS = """const colour = (place, kind) => getComputedStyle(document.querySelector(place))[kind];
return [colour("body", "backgroundColor"), colour("body", "color"), colour("nav a", "color"),
  colour("figcaption small", "color"), colour("svg text", "fill")].concat(
  [...document.querySelectorAll("circle")].map(dot => getComputedStyle(dot).stroke)
  .filter(stroke => stroke !== "none"))"""


@pytest.mark.parametrize("width, scheme", [(360, "light"), (360, "dark"), (1920, "light")])
def test_page_in_a_browser(folder, browser, width, scheme):
    show(browser, folder / "runs" / "report.html", width, scheme)
    used = browser.execute_script("return document.querySelector('main').clientWidth")
    assert used > 0.9 * width
    scrolled = browser.execute_script("return document.documentElement.scrollWidth")
    assert scrolled <= width

    paper, ink, *others = [brightness(colour) for colour in browser.execute_script(COLOURS)]
    assert (paper > ink) == (scheme == "light")
    for index, other in enumerate([ink, *others]):
        dark, light = sorted((paper, other))
        assert (light + 0.05) / (dark + 0.05) >= (4.5 if index < 4 else 3), index

    browser.execute_script("document.getElementById('play').scrollIntoView()")
    time.sleep(0.3)   # clips in view would have begun, where motion is welcome
    paused = "return [...document.querySelectorAll('video')].every(clip => clip.paused)"
    assert browser.execute_script(paused)
    plots = browser.execute_script(
        "return [...document.querySelectorAll('svg[viewBox]')].map(plot => plot.clientWidth)")
    assert min(plots) / 360 * 12 >= 10   # pixels of a letter
    assert browser.get_log("browser") == []   # no error, nothing that could not be loaded


def wait_for(browser, script):
    for _ in range(100):
        if browser.execute_script(script):
            return
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}")


def test_keyboard_and_motion(folder, browser):
    """The first Tab reaches the sections' links; Space stops what plays, which is in view alone."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    show(browser, folder / "runs" / "report.html", 360, motion="no-preference")
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert browser.execute_script("return document.activeElement.hash") == "#Clips"
    playing = "[...document.querySelectorAll('video')].filter(clip => !clip.paused).length"
    box = browser.find_element("id", "play")
    browser.execute_script("arguments[0].scrollIntoView()", box)
    wait_for(browser, f"return {playing} > 0")
    wait_for(browser, "return document.querySelector('video').currentTime > 0")
    assert browser.execute_script(
        f"return {playing} < document.querySelectorAll('video').length")
    box.send_keys(Keys.SPACE)
    wait_for(browser, f"return {playing} === 0")
    for place in browser.find_elements("css selector", ".wide"):
        assert place.get_attribute("tabindex") == "0"   # a table is scrolled by its keys
