// The tokens of a text and the attention map of one head. All heads' weights are here already, one
// byte each, so pointing needs no kernel. `at(t, s)` is the weight with which token t looks at s.
// A text looks at itself; with a `source`, what was written looks at what was read.

const FRAME = "#D55E00";
const KEYS = {
  ArrowLeft: -1,
  ArrowUp: -1,
  ArrowRight: 1,
  ArrowDown: 1,
  Home: -Infinity,
  End: Infinity,
};
const INSIDE = `
  <div class="llm-attention">
    <div>
      <div class="words source"></div>
      <div class="words written" role="listbox" aria-label="tokens: choose the one that looks"
        data-lm-suppress-shortcuts="true"></div>
      <div class="said" aria-live="polite"></div>
    </div>
    <div class="map">
      <span class="rows"></span>
      <canvas role="img"
        aria-label="attention map: a row is the token that looks, a column where it looks"></canvas>
      <span class="columns"></span>
    </div>
  </div>`;

function blue(weight) {
  return `rgba(0, 114, 178, ${Math.sqrt(weight)})`;
}

// What is looked at, how much of it a token sees, and how that is said.
function seenBy(model) {
  const source = model.get("source");
  if (source.length) {
    return {
      seen: source,
      reach: () => source.length,
      verb: "was written looking at",
      rows: "what was written",
      columns: "where it looked in the source",
    };
  }
  const seen = model.get("tokens");
  return {
    seen,
    reach: (row) => row + 1,
    verb: "looks at",
    rows: "the token that looks",
    columns: "where it looks",
  };
}

// The weights of the chosen head, or the mean of all heads where `pick` is 0.
function reader(model, S) {
  const T = model.get("tokens").length;
  const H = model.get("heads");
  const layer = model.get("layer");
  const pick = model.get("pick");
  const bytes = model.get("weights"); // (L, H, T, S)
  const head = (h, t, s) => bytes.getUint8(((layer * H + h) * T + t) * S + s) / 255;
  if (pick > 0) return (t, s) => head(pick - 1, t, s);
  return (t, s) => {
    let sum = 0;
    for (let h = 0; h < H; h++) sum += head(h, t, s);
    return sum / H;
  };
}

function drawMap(canvas, at, T, S, reach, row) {
  const size = Math.max(4, Math.min(16, Math.floor(384 / Math.max(T, S))));
  const pen = canvas.getContext("2d");
  canvas.width = size * S;
  canvas.height = size * T;
  for (let t = 0; t < T; t++) {
    for (let s = 0; s < reach(t); s++) {
      pen.fillStyle = blue(at(t, s));
      pen.fillRect(s * size, t * size, size, size);
    }
  }
  pen.strokeStyle = FRAME;
  pen.lineWidth = 2;
  pen.strokeRect(1, row * size + 1, reach(row) * size - 2, Math.max(2, size - 2));
}

function shade(words, at, row, n) {
  [...words.children].forEach((word, s) => {
    const weight = s < n ? at(row, s) : 0;
    word.style.background = blue(weight);
    word.style.color = weight > 0.8 ? "white" : "";
  });
}

function select(words, row) {
  [...words.children].forEach((word, t) => {
    word.setAttribute("aria-selected", t === row);
    word.tabIndex = t === row ? 0 : -1;
  });
}

// The token that looks and the five it looks at most, in words.
function sentence(token, { seen, reach, verb }, at, row) {
  const looks = seen
    .slice(0, reach(row))
    .map((text, s) => ({ text, weight: at(row, s) }))
    .sort((a, b) => b.weight - a.weight)
    .slice(0, 5)
    .filter(({ weight }) => weight >= 0.005)
    .map(({ text, weight }) => `${text} ${Math.round(100 * weight)} %`);
  return `${token} ${verb}  ${looks.join(",  ")}`;
}

function makeSpan(text) {
  const span = document.createElement("span");
  span.textContent = text;
  return span;
}

function makeWord(text, choose) {
  const word = makeSpan(text);
  word.onmouseenter = () => choose(false);
  word.onfocus = () => choose(false);
  word.onclick = () => choose(true);
  word.setAttribute("role", "option");
  return word;
}

function render({ model, el }) {
  el.innerHTML = INSIDE;
  const source = el.querySelector(".source");
  const words = el.querySelector(".written");
  const said = el.querySelector(".said");
  const canvas = el.querySelector("canvas");
  let row = 0; // the token that looks

  function choose(t, focus = false) {
    const tokens = model.get("tokens");
    if (!tokens.length) return;
    const look = seenBy(model);
    const S = look.seen.length;
    const at = reader(model, S);
    row = Math.max(0, Math.min(tokens.length - 1, t));
    shade(source.childElementCount ? source : words, at, row, look.reach(row));
    select(words, row);
    said.textContent = sentence(tokens[row], look, at, row);
    drawMap(canvas, at, tokens.length, S, look.reach, row);
    if (focus) words.children[row].focus();
  }

  function again() {
    choose(row);
  }

  function build() {
    const spans = model.get("tokens").map((text, t) =>
      makeWord(text, (focus) => {
        if (focus || t !== row) choose(t, focus);
      }),
    );
    words.replaceChildren(...spans);
    source.replaceChildren(...model.get("source").map(makeSpan));
    const { rows, columns } = seenBy(model);
    el.querySelector(".rows").textContent = rows;
    el.querySelector(".columns").textContent = columns;
    choose(spans.length - 1);
  }

  words.onkeydown = (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    choose(row + KEYS[event.key], true);
  };
  canvas.onmousemove = (event) => {
    choose(Math.floor((event.offsetY / canvas.clientHeight) * words.children.length));
  };
  model.on("change:weights", build);
  model.on("change:layer change:pick", again);
  build();
  return () => {
    model.off("change:weights", build);
    model.off("change:layer change:pick", again);
  };
}

export default { render };
