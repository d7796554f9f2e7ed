"""Interactive parts of the report in headless Chromium: tables that sort and filter, and the row browser on hostile
text."""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pytest

from tutelage.analysis.run_results import read_results
from tutelage.report.page import page_environment
from tutelage.report.row_browser import RowSource, browser_data, pack, page_script, script_hash
from tutelage.utils.files import write_jsonl

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")

MAIN = "scd-aw/seed-0"
SCRIPT = "</script><script>window.hacked = 1; alert(1)</script>"
IMAGE = '"><img src="https://evil.example/p.png" onerror="window.hacked = 2">'
TEMPLATE = "{{ 7 * 7 }} {% raw %}"
ESCAPE, BELL = "\u001b[31mred\u001b[0m", "\u0007"
OVERRIDE = "user\u202egnp.exe\u2066"
FORMULA = '=HYPERLINK("https://evil.example", "click")'
SHELL = """<!doctype html><html lang="{{ lang }}"><head><meta charset="utf-8"><title>page</title>
<link rel="icon" href="data:,"><meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src '{{ policy }}'">
<style>{% include "report/style.css" %}{% include "report/rows.css" %}</style></head><body><main>{{ above | safe }}
{% if browser %}{% include "report/rows.jinja" %}{% endif %}</main>{{ script }}</body></html>"""
MARK = "@@@"
DRIVER = """
const out = {}, one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const part = (name) => one(`[data-part=${name}]`), status = () => one("[role=status]").textContent;
const frame = () => new Promise(requestAnimationFrame);
const pause = async () => { await frame(); await frame(); }; // handlers of scroll and resize run in the next frame
const set = (name, value) => {
  part(name).value = value;
  part(name).dispatchEvent(new Event(name === "search" ? "input" : "change"));
};
const key = (name, on = part("grid")) => on.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const drawn = () => all(".canvas [role=row]").sort((a, b) => a.ariaRowIndex - b.ariaRowIndex);
const ids = () => drawn().map((row) => row.children[1].textContent);
const until = async (met) => { while (!met()) await frame(); };
window.onerror = (message) => { out.failed = message; };
"""


def in_browser(folder: Path, page: str, steps: str, before: str = "") -> tuple[dict, str]:
    """Run `steps` in the page; returns what they put into `out`, and the lines of the console.

    before: statements that run ahead of the page's script. The page's policy is extended to allow the driver. Time is
    real: with a virtual clock the time budget of a busy machine ends before the first frame is drawn.
    """
    last = f"(async () => {{ try {{ {steps} }} catch (error) {{ out.failed = String(error); }}"
    last += f" console.log('{MARK}' + encodeURIComponent(JSON.stringify(out)) + '{MARK}'); }})();"
    for tag, script in (("</head>", DRIVER + before), ("</body>", last)):
        source = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        page = page.replace("script-src ", f"script-src '{source}' ", 1).replace(
            tag, f"<script>{script}</script>{tag}", 1
        )
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    options += " --enable-logging=stderr --v=0"
    command = [
        CHROMIUM,
        *options.split(),
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1100,900",
        path.as_uri(),
    ]
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as browser:
        deadline = threading.Timer(120, os.killpg, (browser.pid, signal.SIGKILL))
        deadline.start()
        try:
            for line in browser.stderr:
                if match := re.search(f"{MARK}(.*){MARK}", line):
                    return json.loads(unquote(match[1])), "\n".join(line for line in lines if "CONSOLE" in line)
                lines.append(line.rstrip("\n"))
        finally:
            deadline.cancel()
            with suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
    raise AssertionError("the steps did not end:\n" + "\n".join(lines)[-2000:])


def page_of(browser: dict | None, above: str = "", lang: str = "en") -> str:
    template = page_environment((), lang).from_string(SHELL)
    return template.render(browser=browser, above=above, script=page_script(), policy=script_hash())


def write_hostile_run(folder: Path) -> Path:
    """Six test rows: the student is better on r0 (where it answers the gold), worse on r1, equal on the others."""
    prompts = [f"plain {SCRIPT}", IMAGE, TEMPLATE, ESCAPE + BELL, OVERRIDE, f"{FORMULA}\n한국어"]
    rows, predictions = [], []
    for n, prompt in enumerate(prompts):
        about = {"language": "ko" if n == 5 else None, "subdomain": IMAGE if n < 2 else "dose"}
        rows.append(
            {"id": f"r{n}{SCRIPT if n == 1 else ''}", "split": "test", "prompt": prompt, "answer": "yes", **about}
        )
        for model, right, nll in (("teacher", n != 0, 0.5), (MAIN, n != 1, 0.5 + (n - 2) / 10), ("anchor", True, 0.25)):
            answer = {"prediction": "yes" if right else SCRIPT, "raw": "yes", "confidence": 0.1 * n}
            if (n, model) == (2, "anchor"):
                answer = {"prediction": None, "raw": IMAGE}
            line = {
                "id": rows[-1]["id"],
                "model": model,
                "split": "test",
                "gold": "yes",
                "score": float(right),
                "nll": nll,
            }
            predictions.append({**line, **answer})
    rows += [{"id": f"t{n}", "split": "train", "prompt": f"train {n}", "answer": "yes"} for n in range(3)]
    write_jsonl(folder / "prepare" / "rows.jsonl", rows)
    write_jsonl(folder / "evaluate" / "predictions.jsonl", predictions)
    scores = {
        "metric": "accuracy",
        "split": "test",
        "models": {name: {"accuracy": 0.8} for name in ("teacher", MAIN, "anchor")},
    }
    (folder / "evaluate" / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    weights = [
        {"id": f"t{n}", "stage": 1, "checkpoint": IMAGE, "anchor_nll": a, "teacher_nll": 0.3, "weight": a / (a + 0.3)}
        for n, a in enumerate((0.1, 0.9, 0.3))
    ]
    write_jsonl(folder / "distill" / MAIN / "weights.jsonl", weights)
    write_jsonl(folder / "diagnose" / "rows.jsonl", [{"id": "r0", "found": {MAIN: [SCRIPT]}}])
    return folder


STEPS = """
await until(() => one(".canvas [role=row]"));
out.start = [status(), part("grid").ariaRowCount, all(".canvas [role=row]").length];
out.shown = all(".canvas [role=row]").map((row) => row.textContent).join(" ");
out.heads = all(".list [role=columnheader]").map((cell) => cell.textContent); out.columns = part("grid").ariaColCount;
out.answers = all(".canvas [role=row]").map((row) => [...row.children].slice(3, 5).map((cell) => cell.textContent));
out.better = all(".canvas [role=row]").map((row) => row.firstChild.textContent);
out.lang = one(".canvas bdi[lang=ko]").textContent;
set("search", "HYPERlink("); out.search = ids();
set("search", "ｙｅｓ"); out.folded = status();
set("search", "no such row"); out.none = [status(), part("nothing").hidden];
set("search", "");
out.options = [...part("outcome").options].map((option) => option.text);
set("outcome", "l"); out.losses = ids(); set("outcome", "w"); out.wins = ids(); set("outcome", "");
set("side", "s"); out.sfs = ids(); set("side", "");
set("subdomain", "0"); out.subdomain = ids(); set("subdomain", "");
set("found", part("found").options[1].value); out.found = ids(); set("found", "");
set("order", "gap-down"); out.order = ids(); set("order", "sure-up"); out.sure = ids(); set("order", "given");
set("student", "anchor"); out.anchor = [...part("side").options].map((option) => option.text);
set("student", "scd-aw/seed-0");

key("ArrowDown"); key("ArrowDown"); out.active = part("grid").getAttribute("aria-activedescendant");
key("Enter"); out.open = [part("story").open, part("position").textContent, part("body").textContent];
key("ArrowRight", part("story")); out.next = [part("position").textContent, one(".story .text").textContent];
part("close").click(); await pause(); out.closed = [part("story").open, document.activeElement === part("grid")];
key("End"); key("Enter"); out.end = [part("position").textContent, part("next").disabled]; part("close").click();
all(".canvas [role=row]")[0].click(); out.first = part("body").textContent; part("close").click();

one("[value=training]").click(); await pause();
out.trainingHeads = all(".list [role=columnheader]").map((cell) => cell.textContent);
out.training = [status(), part("student").closest("label").hidden, ids()];
set("order", "weight-down"); out.weights = all(".canvas [role=row]").map((row) => row.lastChild.textContent);
key("Enter"); out.stages = part("body").textContent; part("close").click();

out.hacked = window.hacked ?? null;
out.elements = all("img, iframe, object, embed, link:not([rel=icon]), style").length;
out.scripts = all("script").length;
out.loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
out.wide = document.documentElement.scrollWidth > innerWidth;
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> dict:
    run = write_hostile_run(tmp_path_factory.mktemp("hostile"))
    values, console = in_browser(run, page_of(browser_data(read_results(run), run)), STEPS)
    return {**values, "console": console}


def test_the_page_runs_without_console_messages(out):
    assert (out["console"], out.get("failed")) == ("", None)


def test_hostile_rows_stay_text(out):
    assert out["hacked"] is None
    assert out["elements"] == 1  # the page's own style
    assert out["scripts"] == 5  # words, rows, the page's, and two of this test
    assert out["loaded"] == []
    for text in (SCRIPT, IMAGE, TEMPLATE, FORMULA, "␛[31mred␛[0m␇", "user⟨U+202E⟩gnp.exe⟨U+2066⟩"):
        assert text in out["shown"]
    assert "\u001b" not in out["shown"] and "\u202e" not in out["shown"]
    assert out["lang"] == f"{FORMULA}\n한국어"


def test_rows_are_searched_and_filtered(out):
    assert out["start"] == ["Rows shown: 6 of 6", "7", 6]
    assert len(out["search"]) == 1 and FORMULA in out["search"][0]
    assert out["folded"] == "Rows shown: 6 of 6"  # full-width letters find plain ones
    assert out["none"] == ["Rows shown: 0 of 6", False]
    assert out["options"] == ["All", "Student better (1)", "Teacher better (1)", "Both right (4)", "Both wrong (0)"]
    assert out["better"] == ["Student better", "Teacher better", *["Both right"] * 4]
    assert (len(out["losses"]), out["losses"][0]) == (1, IMAGE)
    assert (len(out["wins"]), out["wins"][0]) == (1, f"plain {SCRIPT}")
    assert len(out["sfs"]) == 2  # r0 and r1, at 0.3 and 0.4 nats against 0.5
    assert len(out["subdomain"]) == 2
    assert out["found"] == out["wins"]
    assert out["anchor"][1:] == ["Student's lower (SFS) (6)", "Teacher's lower or equal (TFS) (0)"]


def test_the_list_shows_both_answers_side_by_side(out):
    assert out["heads"] == [
        "Better",
        "Prompt",
        "Gold answer",
        "Student's answer",
        "Teacher's answer",
        "Loss difference",
    ]
    assert out["columns"] == "6"
    assert out["answers"][:3] == [
        ["yes", SCRIPT],
        [SCRIPT, "yes"],
        ["yes", "yes"],
    ]  # the student is right on r0, wrong on r1
    assert out["trainingHeads"] == ["Better", "Prompt", "Gold answer", "Loss: anchor / checkpoint", "Mean weight"]


@pytest.mark.parametrize("lang", ["en", "ko", "ja"])
def test_code_is_set_in_a_monospaced_font_in_every_language(tmp_path, lang):
    steps = "out.fonts = [one('code'), one('p')].map((element) => getComputedStyle(element).fontFamily);"
    out, _ = in_browser(tmp_path, page_of(None, "<p>text <code>checkpoint-360</code></p>", lang), steps)
    assert out["fonts"][0].endswith("monospace") and out["fonts"][1].endswith("sans-serif")


def test_rows_are_sorted(out):
    assert out["order"][0].startswith(FORMULA) and out["order"][-1].startswith("plain")  # +0.3 nats to -0.2
    assert out["sure"][0].startswith("plain") and out["sure"][-1].startswith(FORMULA)
    assert out["weights"] == ["0.750", "0.500", "0.250"]


def test_a_row_opens_with_its_details(out):
    assert out["active"] == "row-2"
    opened, position, text = out["open"]
    assert (opened, position) == (True, "3 / 6")
    assert TEMPLATE in text and f"(unreadable) {IMAGE}" in text and "scd-aw/seed-0yes1.0000.5000.200" in text
    assert out["next"][0] == "4 / 6" and out["next"][1].startswith("␛")
    assert out["closed"] == [False, True]
    assert out["end"] == ["6 / 6", True]
    assert "Found slice" in out["first"] and SCRIPT in out["first"]


def test_training_rows_have_their_own_view(out):
    assert out["training"] == ["Rows shown: 3 of 3", True, ["train 0", "train 1", "train 2"]]
    assert IMAGE in out["stages"] and "0.9000.3000.750" in out["stages"]


def test_only_visible_rows_are_in_the_document(tmp_path):
    rows = 50_000
    table = {
        "ids": [f"r{n}" for n in range(rows)],
        "prompt": [f"row number {n}" for n in range(rows)],
        "gold": {"values": ["yes"], "codes": [0] * rows},
        "language": None,
        "subdomain": None,
    }
    answers = {"answer": table["gold"], "unread": {}, "score": 1, "nll": 0.5, "confidence": None, "found": {}}
    letters = {"outcome": "t" * rows, "side": "t" * rows}
    models = {name: {**answers, **letters} for name in ("teacher", MAIN)}
    source = RowSource(rows, lambda indices: {**table, "models": models})
    payload, length, shown = pack({"test": source}, {"models": list(models), "main": MAIN})
    about = {"payload": payload, "length": length, "left_out": 0, "models": list(models), "main": MAIN}
    page = page_of({**about, "test": {"rows": rows, "shown": shown["test"]}, "training": None})
    steps = """
    await until(() => one(".canvas [role=row]"));
    out.rows = part("grid").ariaRowCount; out.most = 0; out.tops = [];
    for (const share of [0, 0.25, 0.5, 1, 0.1]) {
      part("scroller").scrollTop = share * part("scroller").scrollHeight;
      out.most = Math.max(out.most, all(".canvas *").length);
      const top = part("scroller").getBoundingClientRect().top;
      const atTop = (row) => { const box = row.getBoundingClientRect(); return box.top < top + 1 && box.bottom > top; };
      await until(() => drawn().some(atTop));
      out.tops.push(drawn().find(atTop).textContent.match(/number (\\d+)/)[1]);
    }
    key("End"); await pause(); out.last = ids().at(-1);
    set("search", "number 49999"); out.search = ids();
    """
    out, console = in_browser(tmp_path, page, steps)
    assert (console, out.get("failed")) == ("", None)
    assert out["rows"] == "50001"
    assert out["most"] < 400
    tops = [int(top) for top in out["tops"]]
    assert all(abs(top / rows - share) < 0.001 for top, share in zip(tops, (0, 0.25, 0.5, 1, 0.1), strict=True))
    assert out["last"] == "row number 49999"
    assert out["search"] == ["row number 49999"]


def test_tables_sort_and_filter(tmp_path):
    rows = [
        ("b", "0.200", "beta"),
        ("a", "−0.100", "Alpha"),
        ("c", "–", "gamma"),
        ("d", "1,000.5", "alpha two"),
        ("e", "0.200", "beta"),
    ]
    body = "".join(
        f'<tr><th scope="row">{name}</th><td{" data-value=0.25" if name == "b" else ""}>{value}</td>'
        f"<td>{text}</td></tr>"
        for name, value, text in rows
    )
    heads = '<thead><tr><th data-sort="text">Name</th><th data-sort="number">Value</th><th>Words</th></tr></thead>'
    above = f'<div class="scroll"><table data-table data-filter="Find">{heads}<tbody>{body}</tbody></table></div>'
    steps = """
    const heads = all("thead th"), press = (n) => heads[n].querySelector("button").click();
    const shown = () => all("tbody tr").filter((row) => row.offsetHeight);
    const names = () => shown().map((row) => row.cells[0].textContent).join("");
    const states = () => heads.map((head) => head.getAttribute("aria-sort"));
    out.buttons = heads.map((head) => Boolean(head.querySelector("button")));
    press(1); out.down = [names(), states()]; press(1); out.up = [names(), states()];
    press(0); out.name = [names(), states()];
    const field = one(".filter input"); out.label = field.closest("label").textContent;
    const type = (text) => { field.value = text; field.dispatchEvent(new Event("input")); };
    type("ALPHA"); out.alpha = [names(), one(".filter output").textContent];
    type("two alpha"); out.both = names(); type(""); out.all = names();
    """
    out, console = in_browser(tmp_path, page_of(None, above), steps)
    assert (console, out.get("failed")) == ("", None)
    assert out["buttons"] == [True, True, False]
    assert out["down"] == ["dbeac", [None, "descending", None]]  # data-value comes before text, unknown last
    assert out["up"] == ["aebdc", [None, "ascending", None]]
    assert out["name"] == ["abcde", ["ascending", None, None]]
    assert out["label"] == "Find"
    assert out["alpha"] == ["ad", "2 / 5"]
    assert (out["both"], out["all"]) == ("d", "abcde")


@pytest.mark.parametrize(
    ("before", "damage", "sentence"),
    [
        ("delete window.DecompressionStream;", False, "This browser is too old to unpack the rows."),
        ("", True, "The rows in this page are damaged"),
    ],
)
def test_rows_that_cannot_be_unpacked_are_reported(tmp_path, before, damage, sentence):
    run = write_hostile_run(tmp_path)
    browser = browser_data(read_results(run), run)
    if damage:
        browser["payload"] = browser["payload"][: len(browser["payload"]) // 8 * 4]
    out, console = in_browser(tmp_path, page_of(browser), "await until(status); out.status = status();", before)
    assert out["status"].startswith(sentence)
    assert damage or console == ""
