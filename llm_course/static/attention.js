// The tokens of a text and the attention map of one head. All heads' weights are here already, one
// byte each, so pointing needs no kernel. `at(t, s)` is the weight with which token t looks at s.

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
      <div class="words" role="listbox" aria-label="tokens: choose the one that looks"
        data-lm-suppress-shortcuts="true"></div>
      <div class="said" aria-live="polite"></div>
    </div>
    <div class="map">
      <span class="rows">the token that looks</span>
      <canvas role="img"
        aria-label="attention map: a row is the token that looks, a column where it looks"></canvas>
      <span class="columns">where it looks</span>
    </div>
  </div>`;

function blue(weight) {
  return `rgba(0, 114, 178, ${Math.sqrt(weight)})`;
}

// The weights of the chosen head, or the mean of all heads where `pick` is 0.
function reader(model) {
  const T = model.get("tokens").length;
  const H = model.get("heads");
  const layer = model.get("layer");
  const pick = model.get("pick");
  const bytes = model.get("weights"); // (L, H, T, T)
  const head = (h, t, s) => bytes.getUint8(((layer * H + h) * T + t) * T + s) / 255;
  if (pick > 0) return (t, s) => head(pick - 1, t, s);
  return (t, s) => {
    let sum = 0;
    for (let h = 0; h < H; h++) sum += head(h, t, s);
    return sum / H;
  };
}

function drawMap(canvas, at, T, row) {
  const size = Math.max(4, Math.min(16, Math.floor(384 / T)));
  const pen = canvas.getContext("2d");
  canvas.width = size * T;
  canvas.height = size * T;
  for (let t = 0; t < T; t++) {
    for (let s = 0; s <= t; s++) {
      pen.fillStyle = blue(at(t, s));
      pen.fillRect(s * size, t * size, size, size);
    }
  }
  pen.strokeStyle = FRAME;
  pen.lineWidth = 2;
  pen.strokeRect(1, row * size + 1, (row + 1) * size - 2, Math.max(2, size - 2));
}

function shade(words, at, row) {
  [...words.children].forEach((word, s) => {
    const weight = s <= row ? at(row, s) : 0;
    word.style.background = blue(weight);
    word.style.color = weight > 0.8 ? "white" : "";
    word.setAttribute("aria-selected", s === row);
    word.tabIndex = s === row ? 0 : -1;
  });
}

// The token that looks and the five it looks at most, in words.
function sentence(tokens, at, row) {
  const looks = tokens
    .slice(0, row + 1)
    .map((text, s) => ({ text, weight: at(row, s) }))
    .sort((a, b) => b.weight - a.weight)
    .slice(0, 5)
    .filter(({ weight }) => weight >= 0.005)
    .map(({ text, weight }) => `${text} ${Math.round(100 * weight)} %`);
  return `${tokens[row]} looks at  ${looks.join(",  ")}`;
}

function makeWord(text, choose) {
  const word = document.createElement("span");
  word.textContent = text;
  word.onmouseenter = () => choose(false);
  word.onfocus = () => choose(false);
  word.onclick = () => choose(true);
  word.setAttribute("role", "option");
  return word;
}

function render({ model, el }) {
  el.innerHTML = INSIDE;
  const words = el.querySelector(".words");
  const said = el.querySelector(".said");
  const canvas = el.querySelector("canvas");
  let row = 0; // the token that looks

  function choose(t, focus = false) {
    const tokens = model.get("tokens");
    if (!tokens.length) return;
    const at = reader(model);
    row = Math.max(0, Math.min(tokens.length - 1, t));
    shade(words, at, row);
    said.textContent = sentence(tokens, at, row);
    drawMap(canvas, at, tokens.length, row);
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
