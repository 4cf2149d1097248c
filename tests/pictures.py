"""The pictures of the README and of lesson 15f, taken anew: `python tests/pictures.py` writes
docs/images/. Two widgets in JupyterLab in Chromium and the chat page, moved as a reader would move
them, and the road."""

import tempfile
import time
from pathlib import Path

import nbformat
from PIL import Image
from playwright.sync_api import expect
from shared import browser
from test_browser import Lab, jupyter_lab, write_notebook
from test_chat_page import StandIn, Visit, running

from llm_course.batching import Engine
from llm_course.checkpoint import load_model
from llm_course.diagrams import draw_road
from llm_course.sources import load_documents

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WIDTH = 760  # of a picture, in pixels

PLAYGROUND = """\
from llm_course import load_model
from llm_course.widgets import Playground
Playground(*load_model(), prompt="One day, Mia was playing in the garden with a red ball.")"""

DASHBOARD = """\
import tempfile
import torch
from llm_course import GPT, Batches, GPTConfig, Tales, TokenDataset, TrainConfig
from llm_course import load_model, write_tokens
from llm_course.widgets import TrainingDashboard
torch.manual_seed(0)
_, tokenizer = load_model()
stories = Tales().generate(30_000, seed=1)
folder = tempfile.mkdtemp()
write_tokens(folder, stories, tokenizer, "train")
write_tokens(folder, Tales().generate(64, seed=2), tokenizer, "valid")
dataset = TokenDataset(folder, "train", tokenizer)
held_out = TokenDataset(folder, "valid", tokenizer)
model = GPT(GPTConfig(max_seq_len=272, tie_embeddings=False, embedding_std=1.0))
rows = dict(batch_size=4, seq_len=272)
config = TrainConfig(
    max_steps=300, lr=0.01, muon_lr=0.01, warmup_steps=20, eval_every=50, **rows
)
floor = Tales().entropy() * len(held_out) / held_out.n_targets
TrainingDashboard(
    model,
    Batches(dataset, 4, 272),
    config,
    valid=list(Batches(held_out, 4, 272, shuffle=False, epochs=1)),
    tokenizer=tokenizer,
    floor=floor,
    prompt="One day, Mia",
)"""


def write(widget):
    "Write a story, and look into the first place that it could have chosen otherwise."
    widget.get_by_role("button", name="Generate").click()
    tokens = widget.locator(".llm-written .page span[role=button]")
    expect(tokens.nth(40)).to_be_visible(timeout=60_000)
    expect(widget.locator(".llm-written .writing")).to_have_count(0, timeout=60_000)
    tokens.filter(has_text="under").first.click()
    time.sleep(1)


def train(widget):
    "Start, and wait for the end."
    widget.get_by_role("button").first.click()
    expect(widget.locator(".llm-training b")).to_have_text("finished", timeout=600_000)
    time.sleep(1)


def take(lab, name, move):
    "A picture of the widget at the end of a notebook."
    page = lab.open(f"nbs/{name}.ipynb")
    widget = page.locator(".jp-OutputArea-output .widget-vbox").first
    widget.scroll_into_view_if_needed()
    move(widget)
    widget.screenshot(path=IMAGES / f"{name}.png")
    make_small(IMAGES / f"{name}.png")


def make_small(path):
    "Make a screenshot as wide as the others, with few colors."
    picture = Image.open(path).convert("RGB")
    height = round(picture.height * WIDTH / picture.width)
    picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    picture.quantize(64).save(path, optimize=True)
    print(path.name, picture.size, f"{path.stat().st_size / 1000:.0f} KB")


def take_chat(chromium):
    "A picture of the chat page, with a story of the bundled model and one of its tokens held."
    model, tokenizer = load_model()
    engine = Engine(model)
    engine.start()
    server = StandIn(load_documents("tales:60000", "train"))
    server.reset(model=model, tokenizer=tokenizer, engine=engine)
    with running(server.app) as address:
        sizes = {"viewport": {"width": 1100, "height": 590}, "device_scale_factor": 2}
        visit = Visit(chromium.new_context(**sizes), address)
        visit.page.fill("#temperature", "1")
        visit.write("One day, Mia was playing in the garden")
        expect(visit.verdict).to_contain_text("Verdict", timeout=60_000)
        visit.tokens.filter(has_text="behind").first.click()
        visit.page.screenshot(path=IMAGES / "chat.png")
    make_small(IMAGES / "chat.png")
    engine.stop(10)


def main():
    IMAGES.mkdir(exist_ok=True)
    draw_road(None).savefig(IMAGES / "road.png", dpi=110)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "lessons"
        for name, source in (
            ("empty", "1 + 1"),
            ("playground", PLAYGROUND),
            ("dashboard", DASHBOARD),
        ):
            write_notebook(root / "nbs" / f"{name}.ipynb", [nbformat.v4.new_code_cell(source)])
        with browser() as chromium, jupyter_lab(root, Path(folder) / "own") as (address, token):
            lab = Lab(chromium, address, token)
            take(lab, "playground", write)
            take(lab, "dashboard", train)
            lab.close()
            take_chat(chromium)


if __name__ == "__main__":
    main()
