"""The page of `llm_serve` in a real browser: a text that grows, is stopped, looked into and changed.
The server beside it is a stand-in that speaks as the real one does, and says what a test wants."""

import asyncio
import math
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from playwright.sync_api import expect
from shared import SCREENSHOTS

from llm_course.batching import Engine
from llm_course.chat import PLAIN_TEMPLATE
from llm_course.checkpoint import load_model
from llm_course.corpus import Tales
from llm_course.formats import load_tokenizer
from llm_course.openai import Served, make_app
from llm_course.page import PAGE_FILES, add_page
from llm_course.passes import Finished
from llm_course.sampling import generate
from llm_course.writing import GeneratedToken

TOKENIZER = load_tokenizer(files("llm_course") / "bundled")
END = TOKENIZER.eos_id
BLUE, ONE = (TOKENIZER.encode_ordinary(word)[0] for word in (" blue", "1"))
STORY = Tales().generate(1, seed=5)[0]
BEGINNING = STORY[:40].rsplit(" ", 1)[0]
MARKUP = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'><b>é 𝕏 🦊\n</b>"
LOG_PROBS = [math.log(p) for p in (0.93, 0.6, 0.2, 0.05, 0.004)]  # one of each color
SIZES = {"phone": (390, 844), "desk": (1280, 900)}


class Script:
    "An engine that writes what a test wants, and remembers what it was asked."

    def __init__(self):
        self.texts = {"": STORY, BEGINNING: STORY.removeprefix(BEGINNING)}  # what follows what
        self.asked = []
        self.pause = 0.0  # between tokens
        self.breaks_after = math.inf  # so many tokens
        self.left = False  # whether somebody went away in the middle

    def submit(self, ids, n, params, seed, top_logprobs, prompt_logprobs, deliver):
        asked = dict(ids=ids, n=n, params=params, seed=seed, top_logprobs=top_logprobs)
        self.asked.append(SimpleNamespace(**asked))
        request = SimpleNamespace(is_open=True, cancel=lambda: setattr(request, "is_open", False))
        if prompt_logprobs:
            deliver([GeneratedToken(i, -1.0, []) for i in ids])
        threading.Thread(target=self.write, args=(ids, n, deliver, request)).start()
        return request

    def write(self, ids, n, deliver, request):
        said = TOKENIZER.decode(ids[1:])
        new = self.texts.get(said, " and that was all.")  # or ids
        new = TOKENIZER.encode_ordinary(new) if isinstance(new, str) else new
        for number, i in enumerate(new[:n]):
            if number >= self.breaks_after:
                deliver(Finished("error", len(ids), 0))
                return
            if not request.is_open:
                self.left = True
                return
            log_prob = LOG_PROBS[number % len(LOG_PROBS)]
            top = {BLUE: -3.4, END: -4.0, ONE: -3.0} | {i: log_prob}
            best = sorted(top.items(), key=lambda one: -one[1])
            deliver(GeneratedToken(i, log_prob, best))
            time.sleep(self.pause)
        deliver(Finished("length" if len(new) > n else "stop", len(ids), 0))


class StandIn:
    "The server, without a model: its engine writes what a test wants, and it refuses on order."

    def __init__(self, training_stories=(STORY,)):
        self.reset()
        self.app = make_app(self)
        add_page(self.app, self, lambda: set(training_stories))
        self.app.middleware("http")(self.guard)

    def reset(self, **changes):
        self.engine = Script()
        self.key = ""
        self.refusals = []  # (status, message, headers) of the next texts that are asked for
        shape = SimpleNamespace(vocab_size=TOKENIZER.vocab_size, max_seq_len=272)
        model = SimpleNamespace(config=shape)
        facts = dict(name="stories", model=model, tokenizer=TOKENIZER, engine=self.engine)
        self.current = Served(**(facts | dict(created=0, is_story=True) | changes))

    async def guard(self, request, call_next):
        path = request.url.path
        is_known = request.headers.get("authorization") == f"Bearer {self.key}"
        if self.key and path not in PAGE_FILES and not is_known:
            return JSONResponse({"error": {"message": "no key"}}, 401)
        if self.refusals and path.startswith("/v1"):
            status, message, headers = self.refusals.pop(0)
            return JSONResponse({"error": {"message": message}}, status, headers)
        return await call_next(request)


@contextmanager
def running(app):
    "The address of an app that is served from a thread."
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    server.force_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def server():
    stand_in = StandIn()
    with running(stand_in.app) as stand_in.address:
        yield stand_in


class Visit:
    "One page in a context of its own, and what its console reported."

    def __init__(self, context, address):
        self.page = context.new_page()
        self.said = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(address)
        self.tokens = self.page.locator("#text [role=button]")
        self.state = self.page.locator("#state")
        self.verdict = self.page.locator("#verdict")
        self.trouble = self.page.locator("#trouble")
        self.others = self.page.locator("#others button")

    def __call__(self, name):
        "A button by its name."
        return self.page.get_by_role("button", name=name, exact=True)

    def write(self, beginning=BEGINNING):
        self.page.fill("#prompt", beginning)
        self("Write").click()

    def wait(self, words="Ended by itself"):
        expect(self.state).to_contain_text(words)

    def text(self):
        return self.page.locator("#text").text_content()

    def shot(self, name):
        self.page.screenshot(path=SCREENSHOTS / f"chat-{name}.png", full_page=True)


@pytest.fixture
def visit(chromium, server):
    "Opens pages, and sees to it that their console stays quiet."
    server.reset()
    contexts = []
    visits = []

    def open_page(size="desk", **options):
        width, height = SIZES[size]
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        visits.append(Visit(context, server.address))
        return visits[-1]

    yield open_page
    for context in contexts:
        context.close()
    said = [words for one in visits for words in one.said]
    assert [words for words in said if not words.startswith("Failed to load resource")] == []


def test_the_page_comes_with_its_policy(server):
    import httpx

    for path, kind in {"": "html", "chat.js": "javascript", "chat.css": "css"}.items():
        answer = httpx.get(server.address + path)
        assert answer.status_code == 200 and f"text/{kind}" in answer.headers["content-type"]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy and answer.headers["x-content-type-options"] == "nosniff"


def test_a_text_grows_and_is_read_out_once(visit, server):
    server.engine.pause = 0.02
    page = visit()
    page.write()
    expect(page.state).to_have_text("Writing …")
    expect(page.tokens.nth(5)).to_be_visible()
    assert page.page.locator("#spoken").text_content() == ""
    page.wait()
    assert page.text() == STORY
    assert BEGINNING + page.page.locator("#spoken").text_content() == STORY
    expect(page.verdict).to_have_text("Verdict: valid, copied.")
    expect(page.state).to_have_text(re.compile(r"^Ended by itself: \d+ tokens, perplexity \d"))
    shades = [page.tokens.nth(n).get_attribute("class") for n in range(5)]
    assert shades == ["p0", "p1", "p2", "p3", "p4"]


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_what_was_written_stays_when_it_is_stopped(visit, server, how):
    server.engine.pause = 0.02
    page = visit()
    page.write()
    expect(page.tokens.nth(3)).to_be_visible()
    if how == "button":
        page("Stop").click()
    else:
        page.page.keyboard.press("Escape")
    page.wait("Stopped")
    text = page.text()
    assert STORY.startswith(text) and len(text) > len(BEGINNING)
    expect(page.verdict).to_have_text("Verdict: right so far.")
    end = time.monotonic() + 5
    while not server.engine.left:
        assert time.monotonic() < end
        time.sleep(0.01)
    server.engine.pause = 0
    server.engine.texts[text] = STORY.removeprefix(text)
    page("Write on").click()
    page.wait()
    assert page.text() == STORY


def test_another_token_is_gone_on_from_by_its_id(visit, server):
    page = visit()
    page.write()
    page.wait()
    page.tokens.nth(4).click()
    expect(page.page.locator("#looked")).to_contain_text("Token 5 of")
    names = page.others.locator("code").all_inner_texts()
    assert names[0] == "1" and "·blue" in names
    page.others.filter(has_text="·blue").click()
    page.wait()
    ids = TOKENIZER.encode_ordinary(STORY.removeprefix(BEGINNING))
    before = [END, *TOKENIZER.encode_ordinary(BEGINNING), *ids[:4]]
    asked = server.engine.asked[-1]
    assert asked.ids == [*before, BLUE]
    assert page.text() == TOKENIZER.decode(asked.ids[1:]) + " and that was all."
    expect(page.verdict).to_contain_text("not valid: word")
    wrong = page.page.locator("#text .wrong").all_text_contents()
    assert "".join(wrong).strip() == "blue"
    page("Undo").click()
    assert page.text() == STORY
    expect(page.verdict).to_have_text("Verdict: valid, copied.")


def test_the_end_can_stand_there_too(visit, server):
    page = visit()
    page.write()
    page.wait()
    page.tokens.nth(6).click()
    before = len(server.engine.asked)
    page.others.filter(has_text="endoftext").click()
    page.wait("6 tokens")
    assert len(server.engine.asked) == before
    expect(page.verdict).to_contain_text("is the end, expected")


def test_everything_is_done_with_the_keyboard(visit, server):
    page = visit()
    expect(page.page).to_have_title("Write with stories")
    keys = page.page.keyboard
    page.page.focus("#prompt")
    keys.type(BEGINNING)
    keys.press("Control+Enter")
    page.wait()
    expect(page.verdict).to_contain_text("Verdict")
    seen = []
    for _ in range(40):
        keys.press("Tab")
        seen.append(page.page.evaluate("() => document.activeElement.id || document.activeElement.className"))
        ring = page.page.evaluate(
            "() => { const style = getComputedStyle(document.activeElement);"
            " return document.activeElement === document.body ? 2 :"
            " style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth); }"
        )
        assert ring >= 2, seen[-1]
    sliders = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
    assert {"write", "stop", "on", "undo", "p0", *sliders} <= set(seen)
    page.tokens.first.focus()
    for key, n in (("ArrowRight", 1), ("End", -1), ("Home", 0)):
        keys.press(key)
        expect(page.tokens.nth(n)).to_be_focused()
    tops = []
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "ArrowUp"):
        keys.press(key)
        tops.append(page.page.evaluate("() => document.activeElement.getBoundingClientRect().top"))
    assert tops[0] < tops[1] and tops[0] == tops[2] > tops[3]
    keys.press("Home")
    keys.press("ArrowRight")
    keys.press("Enter")
    expect(page.others.first).to_be_focused()
    expect(page.tokens.nth(1)).to_have_attribute("aria-pressed", "true")
    keys.press("Escape")
    expect(page.tokens.nth(1)).to_be_focused()
    keys.press("Enter")
    keys.press("ArrowDown")
    expect(page.others.nth(1)).to_be_focused()
    keys.press("Enter")
    expect(page.tokens.nth(1)).to_be_focused()
    page.wait()
    assert len(server.engine.asked[-1].ids) == len(server.engine.asked[-2].ids) + 2
    # One stop for all tokens: what follows them is reached with one press.
    assert page.page.locator("#text [tabindex='0']").count() == 1


def test_settings_are_sent_as_they_stand(visit, server):
    page = visit()
    expect(page.page).to_have_title("Write with stories")
    values = {"temperature": 1.25, "top_p": 0.9, "top_k": 7, "min_p": 0.05}
    values |= {"repetition_penalty": 1.1, "max_tokens": 12, "seed": 41}
    for name, value in values.items():
        page.page.fill(f"#{name}", str(value))
    page.write("")
    page.wait("Ended at its length: 12 tokens")
    asked = server.engine.asked[0]
    said = asked.params.__dict__ | {"max_tokens": asked.n, "seed": asked.seed}
    assert {name: said[name] for name in values} == values
    assert asked.ids == [END] and asked.top_logprobs == 5
    assert page.page.input_value("#seed") == "42"
    page.page.fill("#top_k", "0")
    page.page.fill("#seed", "")
    page.page.fill("#max_tokens", "271")  # more than there is room for behind a prompt
    page.write()
    page.wait()
    assert len(server.engine.asked[-1].ids) + server.engine.asked[-1].n == 272
    assert server.engine.asked[-1].params.top_k is None and server.engine.asked[-1].seed is None


def test_a_text_never_becomes_a_part_of_the_page(visit, server):
    server.engine.texts[MARKUP] = MARKUP
    page = visit()
    page.write(MARKUP)
    page.wait()
    assert re.sub("[⏎▫]", "", page.text()) == MARKUP * 2
    assert page.page.locator("#text script, #text img, #text b").count() == 0
    assert page.page.evaluate("() => window.hit") is None
    server.refusals = [(400, MARKUP, {})]
    page("Write").click()
    expect(page.trouble).to_have_text(MARKUP)


def test_a_server_that_asks_for_a_key(visit, server):
    server.key = "secret"
    page = visit()
    expect(page.trouble).to_have_text("This server asks for a key.")
    expect(page.page.get_by_label("API key of this server")).to_be_focused()
    page.page.keyboard.type("wrong")
    page.page.keyboard.press("Enter")
    expect(page.trouble).to_have_text("This is not the server's key.")
    page.page.fill("#key", "secret")
    page("Use this key").click()
    expect(page.page.locator("#key-form")).to_be_hidden()
    page.write()
    page.wait()
    assert page.text() == STORY


def test_troubles_are_told_in_words(visit, server):
    page = visit()
    page.write()
    page.wait()
    full = (429, "queue", {"Retry-After": "3"})
    server.refusals = [full, (503, "The server is about to stop.", {}), (500, None, {})]
    page("Write").click()
    expect(page.trouble).to_have_text("Too many texts are waiting: try again in 3 s.")
    assert page.text() == STORY  # what stood there is still there
    expect(page.verdict).to_have_text("Verdict: valid, copied.")
    page("Try again").click()
    expect(page.trouble).to_have_text("The server is about to stop.")
    page("Try again").click()
    expect(page.trouble).to_have_text("The server answered with error 500.")
    server.engine.breaks_after = 3
    server.engine.pause = 0.05
    page("Try again").click()
    expect(page.trouble).to_have_text("The model could not go on with a text.")
    expect(page.tokens).to_have_count(3)
    server.engine.breaks_after = math.inf
    server.engine.pause = 0
    text = page.text()
    server.engine.texts[text] = STORY.removeprefix(text)
    page("Try again").click()
    page.wait()
    assert page.text() == STORY
    expect(page.trouble).to_be_empty()


def test_a_conversation(visit, server):
    tokenizer = load_tokenizer(files("llm_course") / "bundled")
    tokenizer.marks = replace(tokenizer.marks, chat_template=PLAIN_TEMPLATE)
    server.reset(tokenizer=tokenizer, is_story=False)
    server.engine.texts = {"user: Hello\nassistant:": " Hi."}
    page = visit()
    page.page.get_by_label("What you say").fill("Hello")
    page("Write").click()
    page.wait()
    assert page.text() == " Hi."
    page.page.fill("#prompt", "Again")
    page("Write").click()
    page.wait()
    said = TOKENIZER.decode(server.engine.asked[-1].ids[1:])
    assert said == "user: Hello\nassistant:  Hi.\nuser: Again\nassistant:"
    assert page.page.locator("#turns p").all_text_contents() == ["Hello", " Hi."]
    expect(page.page.locator("#asked")).to_have_text("Again")
    page.tokens.nth(2).click()
    check_looks(page, "conversation")
    page("New chat").click()
    assert page.text() == "" and page.page.locator("#turns p").count() == 0


def test_a_conversation_goes_on_from_another_token(visit, server):
    tokenizer = load_tokenizer(files("llm_course") / "bundled")
    tokenizer.marks = replace(tokenizer.marks, chat_template=PLAIN_TEMPLATE)
    server.reset(tokenizer=tokenizer, is_story=False)
    marks = "user: Hello\nassistant:"
    server.engine.texts = {marks: " Anna saw a 🦊 run."}
    page = visit()

    def said():
        return page.text().replace("▫", "")  # which stands for a token without a character of its own

    page.page.get_by_label("What you say").fill("Hello")
    page.page.fill("#max_tokens", "271")  # more than there is room for behind a conversation
    page("Write").click()
    page.wait()
    first = server.engine.asked[-1]
    assert len(first.ids) + first.n == 272
    assert said() == " Anna saw a 🦊 run."
    ids = TOKENIZER.encode_ordinary(said())
    fox = len(TOKENIZER.encode_ordinary(" Anna saw a "))  # four tokens, each a byte
    server.refusals = [(429, "queue", {"Retry-After": "3"})]
    page.tokens.nth(fox).click()
    page.page.fill("#prompt", "What next?")
    page.others.filter(has_text="·blue").click()
    expect(page.trouble).to_contain_text("try again in 3 s")
    assert said() == " Anna saw a 🦊 run."  # nothing came, so nothing changed
    page("Try again").click()
    page.wait()
    asked = server.engine.asked[-1]
    assert asked.ids == [*first.ids, *ids[:fox], BLUE]
    assert len(asked.ids) + asked.n == 272
    assert said() == TOKENIZER.decode([*ids[:fox], BLUE]) + " and that was all."
    assert page.page.input_value("#prompt") == "What next?"
    server.engine.texts[marks + said()] = " Bye."
    page("Write on").click()
    page.wait()
    assert said().endswith(" and that was all. Bye.")
    page("Undo").click()
    page("Undo").click()
    assert said() == " Anna saw a 🦊 run."
    # Within a character, too: its other bytes come behind it.
    server.engine.texts[TOKENIZER.decode([*first.ids[1:], *ids[: fox + 2]])] = ids[fox + 2 :]
    page.tokens.nth(fox + 1).click()
    page.page.locator("#others button[aria-current=true]").click()
    page.wait()
    assert server.engine.asked[-1].ids == [*first.ids, *ids[: fox + 2]]
    assert said() == " Anna saw a 🦊 run."


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (colors) => {
    for (const color of colors) {
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
    }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (color) => color
    .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ownText = (element) => [...element.childNodes]
    .filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data).join("").trim();
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = element.matches("input, textarea") ? element.value : ownText(element);
    const isThere = element.checkVisibility() && !element.closest(".unseen, noscript");
    if (!text || !isThere || element.type === "range") continue;
    const grounds = [];
    for (let at = element; at; at = at.parentElement) {
      grounds.unshift(getComputedStyle(at).backgroundColor);
    }
    const below = light(paint(grounds));
    const ink = light(paint([...grounds, getComputedStyle(element).color]));
    const [low, high] = [below, ink].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), text.slice(0, 40)]);
  }
  return found;
}"""


def check_looks(page, name):
    "Everything on the page can be read, and nothing sticks out at its side."
    contrasts = page.page.evaluate(CONTRASTS)
    assert len(contrasts) > 10 and min(contrasts)[0] >= 4.5, min(contrasts)
    wide = page.page.evaluate("() => document.scrollingElement.scrollWidth - innerWidth")
    assert wide <= 0
    page.shot(name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_can_be_read_at_every_width_and_in_both_schemes(visit, server, size, scheme):
    server.key = "secret"
    page = visit(size, color_scheme=scheme)
    expect(page.trouble).to_have_text("This server asks for a key.")
    name = f"{size}-{scheme}"
    check_looks(page, f"{name}-key")
    page.page.fill("#key", "secret")
    page("Use this key").click()
    expect(page.page).to_have_title("Write with stories")
    ground = page.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}[scheme]
    check_looks(page, f"{name}-start")
    server.engine.texts[BEGINNING] = STORY.removeprefix(BEGINNING).replace(".", " blue.", 1)
    page.write()
    page.wait()
    expect(page.verdict).to_contain_text("not valid")
    check_looks(page, f"{name}-wrong")
    page.tokens.nth(8).click()
    check_looks(page, f"{name}-held")
    server.refusals = [(429, "queue", {"Retry-After": "3"})]
    page("Write").click()
    expect(page.trouble).to_contain_text("try again")
    page.page.evaluate("() => (document.getElementById('settings').open = true)")
    check_looks(page, f"{name}-busy")


def test_who_listens_is_told_what_each_thing_is(visit, server):
    page = visit()
    page.write()
    page.wait()
    told = page.page.evaluate(
        "() => ({"
        " lang: document.documentElement.lang,"
        " unnamed: [...document.querySelectorAll('input, textarea')].filter((e) => !e.labels.length)"
        ".map((e) => e.id),"
        " headings: [...document.querySelectorAll('h1, h2, h3')].map((e) => e.tagName),"
        " live: [...document.querySelectorAll('#text, #text *')].filter((e) => e.ariaLive).length,"
        "})"
    )
    assert told["lang"] == "en" and told["unnamed"] == [] and told["live"] == 0
    assert told["headings"][0] == "H1" and told["headings"].count("H1") == 1
    expect(page.tokens.first).to_have_attribute("aria-label", re.compile("^“.+”, 93.0 %$"))
    page.page.locator("#top_k").press("ArrowRight")
    expect(page.page.locator("#top_k")).to_have_attribute("aria-valuetext", "1")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_the_cursor_blinks_only_where_motion_is_welcome(visit, server, motion):
    server.engine.pause = 0.05
    page = visit(reduced_motion=motion)
    page.write()
    expect(page.tokens.nth(1)).to_be_visible()
    moves = page.page.evaluate(
        "() => getComputedStyle(document.getElementById('text'), '::after').animationName"
    )
    assert moves == {"reduce": "none", "no-preference": "blink"}[motion]


def test_the_bundled_model_writes_what_it_writes_without_a_page(visit, server):
    model, tokenizer = load_model()
    engine = Engine(model, n_rows=1)
    engine.start()
    server.reset(model=model, tokenizer=tokenizer, engine=engine)
    page = visit()
    page.page.fill("#temperature", "0")
    page.page.fill("#max_tokens", "40")
    page.write("One")
    page.wait("Ended at its length: 40 tokens")
    start = [END, *tokenizer.encode_ordinary("One")]
    ids = list(generate(model, start, 40, temperature=0))
    assert page.text() == tokenizer.decode(start[1:] + ids)
    expect(page.verdict).to_contain_text("Verdict: ")
    page.tokens.nth(3).click()
    page.others.nth(1).click()
    page.wait("Ended at its length: 44 tokens")
    other = page.tokens.nth(3).text_content()
    begun = tokenizer.decode(start[1:] + ids[:3]) + other
    assert page.text().startswith(begun) and not tokenizer.decode(ids).startswith(begun[3:])
    engine.stop(10)


def test_the_training_stories_are_drawn_once_for_all_who_wait():
    app = FastAPI()
    drawn = []
    stand_in = SimpleNamespace(current=SimpleNamespace(is_story=True))

    def stories():
        drawn.append(1)
        time.sleep(0.2)
        return {STORY}

    async def judge_twenty():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            asks = [client.post("/verdict", json={"text": STORY}) for _ in range(20)]
            return await asyncio.gather(*asks)

    add_page(app, stand_in, stories)
    with ThreadPoolExecutor(1) as thread:  # in this one the browser's event loop runs
        answers = thread.submit(asyncio.run, judge_twenty()).result()
    assert {answer.json()["verdict"] for answer in answers} == {"valid, copied"}
    assert drawn == [1]
