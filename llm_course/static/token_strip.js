// A strip of colored tokens, and under it a line about the one that is pointed at or has the focus.
// A token is [text, number of its tint, whether it is new, details].

const HELP = "Point at a token, or go there with Tab and walk with the arrow keys.";

function makeToken([text, tint, isNew, details], i) {
  const span = document.createElement("span");
  span.textContent = text.replaceAll("⏎", "⏎\n");
  span.className = `c${tint}` + (isNew ? " made" : "");
  span.dataset.detail = details;
  span.dataset.lmSuppressShortcuts = "true"; // the arrow keys are ours, not the notebook's
  span.tabIndex = i === 0 ? 0 : -1;
  const mayBreakBefore = text.startsWith("·");
  return mayBreakBefore ? [document.createElement("wbr"), span] : [span];
}

function render({ model, el }) {
  const strip = document.createElement("div");
  strip.className = "llm-strip";
  strip.setAttribute("role", "group");
  const line = document.createElement("div");
  line.className = "llm-line";
  line.setAttribute("aria-live", "polite");

  function draw() {
    const tokens = model.get("tokens");
    strip.replaceChildren(...tokens.flatMap(makeToken));
    strip.setAttribute("aria-label", `${tokens.length} tokens`);
    line.textContent = HELP;
  }

  function show(event) {
    const details = event.target.dataset.detail;
    if (details) line.textContent = details;
  }

  function walk(event) {
    const all = [...strip.querySelectorAll("span")];
    const at = all.indexOf(event.target);
    const goals = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 };
    const goal = all[goals[event.key]];
    if (at < 0 || !goal) return;
    for (const span of all) span.tabIndex = span === goal ? 0 : -1;
    event.preventDefault();
    goal.focus();
  }

  strip.addEventListener("mouseover", show);
  strip.addEventListener("focusin", show);
  strip.addEventListener("keydown", walk);
  model.on("change:tokens", draw);
  draw();
  el.append(strip, line);
  return () => model.off("change:tokens", draw);
}

export default { render };
