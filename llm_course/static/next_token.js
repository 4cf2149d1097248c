// The tokens that may come next, a row each: two bars, the probability in the model and the one it
// is drawn with. Each row is a button; the one that is chosen is told to the kernel.

const INSIDE = `
  <div class="llm-next" data-lm-suppress-shortcuts="true">
    <div class="at" aria-live="polite"></div>
    <div class="rows" role="group" aria-label="tokens that may come next"></div>
    <div class="sum"></div>
    <div class="legend">
      <i class="before"></i> in the model <i class="after"></i> drawn with.
      Choose one to write on from it.
    </div>
  </div>`;
const ROW = `
  <code></code>
  <span class="bars"><i class="before"></i><i class="after"></i></span>
  <span class="num"></span>`;

function percent(p) {
  if (p > 0 && p < 0.001) return "< 0.1 %";
  if (p < 1 && p > 0.999) return "> 99.9 %";
  return `${(100 * p).toFixed(1)} %`;
}

function makeRow(model) {
  const row = document.createElement("button");
  row.type = "button";
  row.innerHTML = ROW;
  row.onclick = () => model.send({ choose: Number(row.dataset.id), place: model.get("place") });
  return row;
}

function fillRow(row, [id, text, before, after], there) {
  const isThere = id === there;
  const number = row.querySelector(".num");
  number.textContent = `${percent(before)} → ${after ? percent(after) : "cut"}`;
  row.querySelector("code").textContent = text;
  row.querySelector(".before").style.width = `${100 * before}%`;
  row.querySelector(".after").style.width = `${100 * after}%`;
  row.dataset.id = id;
  row.classList.toggle("here", isThere);
  row.classList.toggle("cut", !after);
  const place = isThere ? ", stands there" : "";
  row.setAttribute("aria-label", `${text}: ${number.textContent}${place}`);
}

function render({ model, el }) {
  el.innerHTML = INSIDE;
  const [at, rows, sum] = el.querySelector(".llm-next").children;

  // Rows are made once; then only widths and numbers change, and nothing flickers.
  function draw() {
    const list = model.get("rows");
    while (rows.children.length < list.length) rows.append(makeRow(model));
    while (rows.children.length > list.length) rows.lastChild.remove();
    list.forEach((row, i) => fillRow(rows.children[i], row, model.get("here")));
    if (!rows.querySelector("[tabindex='0']")) {
      [...rows.children].forEach((row, i) => (row.tabIndex = i === 0 ? 0 : -1));
    }
    at.textContent = model.get("at");
    sum.textContent = model.get("sum");
  }

  rows.onkeydown = (event) => {
    const all = [...rows.children];
    const now = all.indexOf(event.target);
    const goals = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: all.length - 1 };
    const goal = all[goals[event.key]];
    if (now < 0 || !goal) return;
    for (const row of all) row.tabIndex = row === goal ? 0 : -1;
    event.preventDefault();
    goal.focus();
  };
  model.on("change", draw);
  draw();
  return () => model.off("change", draw);
}

export default { render };
