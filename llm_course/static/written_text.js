// A text that grows token by token, each in the color of its probability. A token that is clicked,
// or reached with the arrow keys and chosen with Enter, is `selected`.

const INSIDE = `
  <div class="llm-written">
    <div class="page" role="group" aria-label="the text" data-lm-suppress-shortcuts="true"
      ><span class="prompt"></span></div>
    <div class="line"></div>
    <div class="line" role="status"></div>
    <div class="key">probability in the model: </div>
  </div>`;

function makeWord(onclick) {
  const span = document.createElement("span");
  span.tabIndex = -1;
  span.setAttribute("role", "button");
  span.onclick = onclick;
  return span;
}

function fillWord(span, [text, level, details]) {
  span.textContent = text.replaceAll("⏎", "⏎\n");
  span.className = `p${level}`;
  span.dataset.about = details;
  span.setAttribute("aria-label", details);
}

function legend(names) {
  return names.flatMap((name, level) => {
    const span = document.createElement("span");
    span.className = `p${level}`;
    span.textContent = name;
    return [span, " "];
  });
}

// Where a key leads from word `now` of `n`; undefined for a key that leads nowhere.
function goal(key, now, n) {
  return { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: n - 1 }[key];
}

function render({ model, el }) {
  el.innerHTML = INSIDE;
  const [page, about, status, key] = el.querySelector(".llm-written").children;
  const words = []; // the spans
  const drawn = []; // the row that each of them shows, as JSON
  let told = -1; // the token that the line is about
  key.append(...legend(model.get("names")));

  function tab(to) {
    words.forEach((word, i) => (word.tabIndex = i === to ? 0 : -1));
  }

  function writeLine() {
    const help = words.length ? model.get("help") : "";
    about.textContent = words[told]?.dataset.about ?? help;
  }

  function tell(event) {
    const i = words.indexOf(event.target);
    if (i < 0) return;
    told = i;
    writeLine();
  }

  function pick(i) {
    model.set("selected", i === model.get("selected") ? -1 : i);
    model.save_changes();
  }

  function addWord(i) {
    const word = makeWord(() => {
      tab(i);
      pick(i);
    });
    words[i] = word;
    page.append(word);
    return word;
  }

  // What is drawn stays, so the focus and the pointer keep their place while a text streams.
  function drawWords(rows) {
    rows.forEach((row, i) => {
      const now = JSON.stringify(row);
      if (drawn[i] !== now) fillWord(words[i] ?? addWord(i), row);
      drawn[i] = now;
    });
    while (words.length > rows.length) {
      words.pop().remove();
      drawn.pop();
    }
    words.forEach((span, i) => span.setAttribute("aria-pressed", i === model.get("selected")));
    if (!words.some((span) => span.tabIndex === 0)) tab(0);
  }

  function draw() {
    const atTheEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 40;
    page.querySelector(".prompt").textContent = model.get("prompt");
    drawWords(model.get("rows"));
    if (atTheEnd) page.scrollTop = page.scrollHeight;
    page.classList.toggle("writing", model.get("writing"));
    status.textContent = model.get("status");
    writeLine();
  }

  page.onkeydown = (event) => {
    const now = words.indexOf(event.target);
    if (now < 0) return;
    const selected = model.get("selected");
    const to = goal(event.key, now, words.length);
    if (words[to]) {
      tab(to);
      words[to].focus();
    } else if (event.key === "Enter" || event.key === " ") {
      pick(now);
    } else if (event.key === "Escape" && selected >= 0) {
      pick(selected);
    } else if (to === undefined) {
      return;
    }
    event.preventDefault();
  };
  page.onmouseover = tell;
  page.addEventListener("focusin", tell);
  model.on("change", draw);
  draw();
  return () => model.off("change", draw);
}

export default { render };
