"""The report: a page whose numbers are the library's, and pictures that can be read by everybody."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from fitplan import api
from fitplan.cli.dossier import gather
from fitplan.cli.files import check_writable, write_answer
from fitplan.cli.main import main
from fitplan.devices.device import find_device
from fitplan.errors import ModelNotSupported
from fitplan.fitmap import FitMap
from fitplan.report.dossier import Details, Dossier, Series
from fitplan.report.html import headline, page, pictures
from fitplan.report.pictures import DARK, LIGHT, fit_map_svg, timelines_svg
from fitplan.report.terminal import CATEGORY_NAMES
from fitplan.units import gib
from fitplan.validation import records
from fitplan.validation.records import write_record
from fitplan.verdict import Fit, device_memory

JOB: dict[str, Any] = {"seq_len": 512, "batch_size": 2}


def gathered(method: str | None = None, gpu: str | None = "4090", **settings: Any) -> Dossier:
    device = find_device(gpu) if gpu else None
    return gather("llama-3.2-1b", device, method, JOB | settings, lambda _: None)


@pytest.fixture(scope="module", autouse=True)
def without_shipped_runs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "shipped_records", lambda model: Path("none"))
        yield


@pytest.fixture(scope="module")
def dossier() -> Dossier:
    return gathered()


@pytest.fixture(scope="module")
def drawn(dossier: Dossier) -> dict[str, str]:
    return pictures(dossier)


@pytest.fixture(scope="module")
def html(dossier: Dossier, drawn: dict[str, str]) -> str:
    return page(dossier, drawn)


class Page(HTMLParser):
    """What a page says: its text, its sizes in bytes with the words that tell them, its JSON, and what it refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text, self.json, self.references = "", "", []
        self.sizes: list[tuple[int, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attributes)
        self.references += [given[name] or "" for name in ("src", "href", "xlink:href") if name in given]
        if tag == "data":
            self.sizes.append((int(given["value"] or ""), ""))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["data"] and self.sizes[-1][1] == "":
            self.sizes[-1] = (self.sizes[-1][0], data)
        if self.tags[-1:] == ["script"]:
            self.json += data
        self.text += data


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iterfind(".//{*}text")]


def test_the_numbers_are_those_of_the_library(dossier: Dossier, html: str) -> None:
    asked = {"gpu": "4090", **JOB}
    expected: set[int] = {dossier.check.gpu.usable_bytes} if dossier.check.gpu else set()
    for plan in api.check("llama-3.2-1b", **asked).plans:
        assert plan.verdict is not None
        expected |= {plan.estimate.peak_allocated_bytes, plan.memory.bytes, abs(plan.verdict.slack_bytes)}
        expected |= {size for size in plan.estimate.breakdown.values() if size} | {plan.verdict.uncertainty_bytes}
        method = plan.setup.method
        expected |= {change.bytes for change in api.explain("llama-3.2-1b", method=method, **JOB).changes}
        expected |= {p.saved_bytes for p in api.advise("llama-3.2-1b", method=method, **asked).advice.levers}
    sizes = Page(html).sizes
    assert expected <= {size for size, _ in sizes}
    for size, words in sizes:
        assert words.lstrip("+−") in (gib(abs(size)), f"{abs(size) / 2**20:.2f} MiB", "< 0.1 MiB")


def test_the_page_says_what_its_sections_are_for(html: str) -> None:
    text = Page(html).text
    for words in (
        "QLoRA, LoRA and full fit", "llama-3.2-1b", "RTX 4090", "Where the memory goes", "base weights", "CUDA context",
        "The step, moment by moment", "What else fits", "What can be changed", "Why the peak is what it is",
        "batch size +1", "Where the numbers come from", "transformers", "shipped",
    ):  # fmt: skip
        assert words in text
    assert text.count("is on record here") == 3
    for method in ("qlora", "lora", "full"):
        assert f"fitplan validate llama-3.2-1b --method {method} --seq-len 512 --batch-size 2" in text


def test_the_page_holds_its_own_json(dossier: Dossier, html: str) -> None:
    document = json.loads(Page(html).json)
    assert document == json.loads(json.dumps(dossier.to_dict()))
    assert document["schema"] == "fitplan.report/1"
    assert document["check"] == json.loads(json.dumps(api.check("llama-3.2-1b", gpu="4090", **JOB).to_dict()))
    assert [set(one) for one in document["details"]] == [{"explain", "map", "advise", "missing"}] * 3
    assert document["details"][0]["map"]["schema"] == "fitplan.map/1"


def test_the_page_needs_nothing_else(html: str) -> None:
    told = Page(html)
    assert set(told.tags) & {"link", "img", "iframe", "object", "embed", "source"} <= {"link"}
    for reference in told.references:
        assert reference.startswith(("#", "data:"))
    assert not re.search(r"@import|url\((?!#)", html)
    addresses = set(re.findall(r"https?://[\w./]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_every_id_is_there_once_and_every_reference_finds_one(html: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)


def test_what_others_wrote_is_escaped(dossier: Dossier, drawn: dict[str, str]) -> None:
    bad = "</script><script>alert('x')</script>&amp;"
    check = dossier.check
    assert check.gpu is not None
    named = replace(check, model=replace(check.model, name=bad, source=bad), gpu=replace(check.gpu, name=bad))
    missing = Details(bad, bad, bad, bad)
    foreign = Dossier(named, (missing,) * 3)
    html = page(foreign, pictures(foreign))
    told = Page(html)
    assert told.tags.count("script") == 1
    assert "<script>alert" not in html
    assert told.text.count(bad) >= 10
    assert json.loads(told.json)["check"]["model"]["name"] == bad


def test_a_name_in_a_picture_is_escaped(dossier: Dossier) -> None:
    moment = '<b>&"$\\frac{1}{2}$'
    assert moment in texts(timelines_svg([Series("<i>", {moment: 2**30})]))
    fit_map = dossier.details[0].fit_map
    assert isinstance(fit_map, FitMap)
    label = ElementTree.fromstring(fit_map_svg(replace(fit_map, gpu=replace(fit_map.gpu, name='">')))).get("aria-label")
    assert label is not None
    assert label.endswith('">')


def test_pictures_hold_text_and_only_known_colours(drawn: dict[str, str]) -> None:
    assert set(drawn) == {"totals", *(f"{m}-{what}" for m in ("qlora", "lora", "full") for what in ("timeline", "map"))}
    for svg in drawn.values():
        assert len(texts(svg)) > 5
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= set(LIGHT.values())
        assert "<style" not in svg
        assert len(svg) < 100_000


def test_the_page_puts_its_own_colours_into_pictures(html: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        assert not re.search(r"#[0-9a-f]{6}\b", figure)
        assert set(re.findall(r"var\(--(\w+)\)", figure)) <= set(LIGHT)


def test_colours_can_be_told_apart() -> None:
    assert len(set(LIGHT.values())) == len(LIGHT)
    for colours in (LIGHT, DARK):
        assert set(colours) == set(LIGHT)
        for ground in ("ground", *Fit):
            assert contrast(colours["ink"], colours[ground]) > 7
        assert contrast(colours["muted"], colours["ground"]) > 4.5


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_pictures_tell_the_numbers_of_the_library(dossier: Dossier, drawn: dict[str, str]) -> None:
    for plan, details in zip(dossier.check.plans, dossier.details, strict=True):
        assert gib(plan.memory.bytes) in texts(drawn["totals"])
        told = texts(drawn[f"{plan.setup.method}-timeline"])
        for moment in plan.estimate.moments:
            assert told.count(moment.name) == 1
            assert gib(moment.bytes) in told
        assert CATEGORY_NAMES[max(plan.estimate.breakdown, key=plan.estimate.breakdown.__getitem__)] in told
        told = texts(drawn[f"{plan.setup.method}-map"])
        assert isinstance(details.fit_map, FitMap)
        for cell in (cell for row in details.fit_map.cells for cell in row):
            if cell.device_bytes is not None and cell.device_bytes < 1000 * 2**30:
                assert f"{cell.device_bytes / 2**30:.1f}" in told
        for length in details.fit_map.longest_seq.values():
            assert (f"{length:,}" if length else "none") in told
        assert "as asked" in told


def test_the_bars_are_as_long_as_what_they_tell() -> None:
    svg = timelines_svg([Series("predicted", {"forward": 3 * 2**30, "backward": 4 * 2**30})])
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+ +L ([\d.]+)[^"]*"[^>]*fill: #0073b3', svg)
    short, long, *_ = (float(end) - float(start) for start, end in bars)
    assert short / long == pytest.approx(3 / 4, rel=1e-3)


def test_what_lies_beside_the_allocated_memory_is_told(dossier: Dossier) -> None:
    first, *others = dossier.check.plans
    memory = replace(first.memory, cached_bytes=3 * 2**30, unsplit_bytes=2**30)
    beside = replace(dossier, check=replace(dossier.check, plans=(replace(first, memory=memory), *others)))
    drawn = pictures(beside)
    told = Page(page(beside, drawn))
    for name in ("allocator cache", "CUDA context"):
        assert name in texts(drawn["totals"])
        assert name in told.text
    assert {4 * 2**30, memory.bytes, memory.context.bytes} <= {size for size, _ in told.sizes}


def test_several_timelines_are_drawn_over_each_other() -> None:
    predicted = Series("predicted", {"forward": 10 * 2**30, "backward": 12 * 2**30})
    measured = Series("measured", {"forward": 11 * 2**30, "warm-up": 2**30, "backward": 13 * 2**30})
    svg = timelines_svg([predicted, measured], room=14 * 2**30)
    told = texts(svg)
    assert [name for name in told if name in ("forward", "warm-up", "backward")] == ["forward", "warm-up", "backward"]
    for words in ("predicted", "measured", "predicted / measured", "10.00 / 11.00", "– / 1.00", "12.00 / 13.00"):
        assert words in told
    assert "room for 14.00 GiB" in told
    assert svg.count("<use") == 4, "three markers and the legend's"


def recorded(**changes: Any) -> dict[str, Any]:
    """A document of a run, as ``fitplan validate`` keeps it."""
    setup = api.check("llama-3.2-1b", method="lora", **JOB).plans[0].setup

    def phase(name: str, allocated: int) -> dict[str, Any]:
        return {"phase": name, "step": 0, "requested_bytes": allocated - 512, "allocated_bytes": allocated}

    def pair(name: str, predicted: int, measured: int) -> dict[str, Any]:
        return {"phase": name, "step": 0, "predicted": phase(name, predicted), "measured": phase(name, measured)}

    return {
        "created": "2026-05-04T03:02:01+00:00",
        "model": {"name": "llama-3.2-1b"},
        "setup": {**setup.to_dict(), **changes},
        "quantities": [
            {"name": "peak_requested_bytes", "predicted": 7 * 2**30, "measured": 7 * 2**30},
            {"name": "peak_allocated_bytes", "predicted": 8 * 2**30, "measured": 10 * 2**30},
        ],
        "phases": [pair("forward", 6 * 2**30, 5 * 2**30), pair("backward", 8 * 2**30, 10 * 2**30)],
        "differences": [],
        "first_difference": None,
        "runs_on_paper": True,
        "tolerance_percent": 2.0,
        "measurement": {"phases": [], "device": "NVIDIA <A100>", "versions": {}, "out_of_memory": None},
    }


def test_the_nearest_run_on_record_is_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    write_record(recorded(batch_size=8, seq_len=2048, lora_r=8), label="far")
    write_record(recorded(batch_size=2, lora_r=8, optim="adafactor"), label="of another optimizer")
    write_record(recorded(batch_size=1, lora_r=8), label="near")
    out = tmp_path / "report.html"
    job = ["llama-3.2-1b", "--seq-len", "512", "--batch-size", "2", "--gpu", "4090"]
    assert main(["report", *job, "--out", str(out)]) == 0
    told = Page(out.read_text(encoding="utf-8"))
    evidence = " ".join(told.text.partition("Evidence")[2].partition("Where the numbers come from")[0].split())
    assert evidence.count("is on record here") == 2, "of the other methods there is no run"
    assert "NVIDIA <A100>, 2026-05-04: batch 1 x 512 tokens, r=8 on all linear layers" in evidence
    assert "Not as asked about: batch_size 1 (asked: 2), lora_r 8 (asked: 16)." in evidence
    assert "peak allocated8.00 GiB10.00 GiB−20.00 %" in evidence
    assert "8.00 / 10.00" in evidence
    assert {8 * 2**30, 10 * 2**30} <= {size for size, _ in told.sizes}
    (plan,) = (one for one in json.loads(told.json)["check"]["plans"] if one["setup"]["method"] == "lora")
    assert plan["evidence"]["quantities"]["peak_allocated_bytes"] == [8 * 2**30, 10 * 2**30]
    capsys.readouterr()
    main(["check", *job, "--method", "lora"])
    assert "measured: 10.00 GiB peak allocated for 1 x 512 tokens" in capsys.readouterr().out


def test_a_record_without_phases_has_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    write_record({**recorded(), "phases": []})
    shown = gathered("lora")
    assert "lora-evidence" not in pictures(shown)
    text = Page(page(shown, pictures(shown))).text
    assert "−20.00 %" in text
    assert "Not as asked about" not in text


@pytest.mark.parametrize(
    ("vram", "fit", "words", "code"),
    [
        ("24GiB", Fit.FITS, "LoRA fits", 0),
        (None, Fit.TIGHT, "LoRA is tight", 0),
        ("2GiB", Fit.DOES_NOT_FIT, "LoRA does not fit", 1),
    ],
)
def test_every_verdict_has_its_page(
    vram: str | None, fit: Fit, words: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if vram is None:
        estimate = api.estimate("llama-3.2-1b", method="lora", seq_len=512)
        vram = str(device_memory(estimate, None).bytes + 2**20)
    out = tmp_path / "report.html"
    arguments = ["report", "llama-3.2-1b", "--method", "lora", "--seq-len", "512", "--vram", vram, "--out", str(out)]
    assert main(arguments) == code
    assert capsys.readouterr().out == f"{out}: {words}\n"
    html = out.read_text(encoding="utf-8")
    assert f"<h1>{words}</h1>" in html
    assert f'class="badge {fit}"' in html


def test_headlines_name_every_plan(dossier: Dossier) -> None:
    assert headline(dossier.check) == "QLoRA, LoRA and full fit"
    assert headline(api.check("llama-3.2-1b", vram="8GiB", **JOB)) == "QLoRA and LoRA fit; full does not fit"
    assert headline(api.check("llama-3.2-1b", vram="1GiB", **JOB)) == "QLoRA, LoRA and full do not fit"
    assert headline(api.check("llama-3.2-1b", method="lora")).startswith("LoRA needs ")


def test_without_a_device_map_and_advice_say_so() -> None:
    without = gathered(gpu=None, method="lora")
    text = Page(page(without, pictures(without))).text
    assert "A map needs a device; " in text
    assert "Advice needs a device; " in text
    assert "batch size +1" in text


def test_without_a_formula_the_sections_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModelNotSupported("the memory of this model has no formula")

    monkeypatch.setattr(api, "explain", refuse)
    monkeypatch.setattr(api, "fit_map", refuse)
    without = gathered(method="lora")
    assert without.to_dict()["details"][0]["explain"] is None
    assert Page(page(without, pictures(without))).text.count("The memory of this model has no formula.") == 2


def test_pictures_are_written_as_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "pictures"
    out = tmp_path / "report.html"
    job = ["report", "llama-3.2-1b", "--method", "qlora", "--gpu", "4090"]
    assert main([*job, "--out", str(out), "--svg", str(folder)]) == 0
    assert {file.name for file in folder.iterdir()} == {"totals.svg", "qlora-timeline.svg", "qlora-map.svg"}
    for file in folder.iterdir():
        assert texts(file.read_text(encoding="utf-8"))
    first = out.read_text(encoding="utf-8")
    assert main([*job, "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == first, "the same question gives the same file"


def test_what_cannot_be_written_is_told_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    good = str(tmp_path / "report.html")
    for arguments, words in (
        (["--out", str(tmp_path)], "is a folder; name a file in it"),
        (["--out", str(tmp_path / "nowhere" / "report.html")], "there is no folder"),
        (["--out", str(file / "report.html")], "there is no folder"),
        (["--out", good, "--svg", str(file)], str(file)),
    ):
        assert main(["report", "llama-3.2-1b", "--gpu", "4090", *arguments]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert words in told.err
        assert len(told.err.splitlines()) == 1
    assert not Path(good).exists()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    out = tmp_path / "report.html"
    for before in (None, "as it was"):
        if before is not None:
            out.write_text(before)
        program = (
            "import pathlib, resource\nfrom fitplan.cli.files import write_answer\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            f"write_answer(pathlib.Path({str(out)!r}), 'x' * 10**6)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert f"InputError: {out} cannot be written: " in done.stderr
        assert [file.name for file in tmp_path.iterdir()] == ([] if before is None else [out.name])
        assert before is None or out.read_text() == before


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to(file)
    write_answer(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    check_writable(Path("/dev/null"))
    write_answer(Path("/dev/null"), "new")
    assert Path("/dev/null").is_char_device()


def test_bad_questions_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["report", "no-such-model", "--gpu", "4090", "--out", str(out)]) == 2
    assert main(["report", "llama-3.2-1b", "--gpu", "no-such-gpu", "--out", str(out)]) == 2
    assert not out.exists()
    with pytest.raises(SystemExit):
        main(["report", "llama-3.2-1b"])
    assert "--out" in capsys.readouterr().err


def test_a_missing_library_is_told_with_the_command_that_brings_it(tmp_path: Path) -> None:
    for library in ("matplotlib", "jinja2"):
        program = (
            f"import sys; sys.modules[{library!r}] = None\n"
            "from fitplan.cli.main import main\n"
            f"sys.exit(main(['report', 'llama-3.2-1b', '--gpu', '4090', '--out', {str(tmp_path / 'r.html')!r}]))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "[report]'" in done.stderr
        assert library in done.stderr


def test_other_commands_do_not_load_what_draws() -> None:
    for command in ("check", "explain", "advise", "map"):
        program = (
            "import sys; from fitplan.cli.main import main\n"
            f"main([{command!r}, 'llama-3.2-1b', '--gpu', '4090'])\n"
            "print([m for m in ('matplotlib', 'jinja2', 'numpy') if m in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.stderr == "[]\n"


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert "fitplan report llama-70b --gpu H100 --out report.html" in capsys.readouterr().out


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell", "headless_shell")
SEEN = """<script>
const seen = [...document.querySelectorAll("figure svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  getSelection().selectAllChildren(svg);
  const ink = getComputedStyle(svg.querySelector("text")).fill;
  return {width: box.width, height: box.height, selected: getSelection().toString(), ink};
});
const pre = document.createElement("pre");
pre.id = "seen";
pre.textContent = JSON.stringify({
  pictures: seen,
  ground: getComputedStyle(document.body).backgroundColor,
  loaded: performance.getEntriesByType("resource").length,
  wide: document.documentElement.scrollWidth > innerWidth,
  across: innerWidth,
});
parent.document.body.append(pre);
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is on the PATH: {', '.join(BROWSERS)}")
    return found


def opened(browser: str, file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """The page's document as the browser has it, and on stderr what its console says."""
    quiet = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    own = (f"--user-data-dir={file.parent / 'profile'}", "--no-first-run", "--no-sandbox", "--enable-logging=stderr")
    command = [browser, "--headless", *quiet, *own, *flags, "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_a_browser_has_nothing_to_complain_about(browser: str, html: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    assert "CONSOLE" not in opened(browser, file).stderr
    file.write_text(html.replace("</body>", "<script>1</script></body>"), encoding="utf-8")
    assert "CONSOLE" in opened(browser, file).stderr, "a script is refused, and complaints are seen"


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("across", [390, 1400])
def test_a_browser_draws_the_page(
    browser: str, colours: str, across: int, html: str, drawn: dict[str, str], tmp_path: Path
) -> None:
    probed = tmp_path / "probed.html"
    allowed = re.sub(r"<meta http-equiv=[^>]*>", "", html)  # the page itself forbids every script
    inside = escape(allowed.replace("</body>", f"{SEEN}</body>"))
    # In a frame, because no window is as narrow as a telephone.
    frame = f'<iframe srcdoc="{inside}" style="width: {across}px; height: 900px; border: 0"></iframe>'
    probed.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}</body>", encoding="utf-8")
    flags = ("--window-size=1500,900", f"--blink-settings=preferredColorScheme={0 if colours == 'dark' else 1}")

    dom = opened(browser, probed, *flags).stdout
    seen = json.loads(unescape(dom.rpartition('<pre id="seen">')[2].partition("</pre>")[0]))
    assert seen["across"] == across
    assert seen["loaded"] == 0
    assert not seen["wide"], "the page scrolls sideways"
    assert len(seen["pictures"]) == len(drawn)
    assert (brightness(seen["ground"]) > 128) == (colours == "light")
    for picture, svg in zip(seen["pictures"], drawn.values(), strict=True):
        assert picture["width"] > 250
        assert picture["height"] > 80
        for text in texts(svg):
            assert text in picture["selected"]
        assert (brightness(picture["ink"]) < 128) == (colours == "light")


def brightness(colour: str) -> float:
    """Of ``rgb(1, 2, 3)``, 0 to 255."""
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
