// What each layer would say next: a grid, a row a position and a column a layer, and beside it the
// likeliest tokens of the cell that is chosen. `spot` is [row, column]; a token is
// [name, probability, whether it came next].

const INSIDE = `
  <div class="llm-lens">
    <div class="scroll">
      <table role="grid" data-lm-suppress-shortcuts="true"
        aria-label="what each layer would say next: choose a cell for its ten likeliest tokens">
        <caption>Rows: the token that was read. Columns: what the model would say next, after each
          layer.</caption>
        <thead></thead>
        <tbody></tbody>
      </table>
    </div>
    <div class="top" aria-live="polite"></div>
  </div>`;

function percent(p) {
  return `${(100 * p).toFixed(1)} %`;
}

function columnName(column) {
  return column === 0 ? "embedding" : `layer ${column - 1}`;
}

function make(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function makeHead(text, scope) {
  const head = make("th", text);
  if (scope) head.scope = scope;
  return head;
}

function makeTopRow([name, p, came]) {
  const bar = make("i", "");
  bar.style.width = `${100 * p}%`;
  const space = make("span", "");
  space.append(bar);
  const row = make("div", "");
  row.append(make("code", name + (came ? " ✓" : "")), space, make("b", percent(p)));
  return row;
}

function makeTopTitle({ read, came }, [row, column]) {
  const after = column === 0 ? "the embedding" : columnName(column);
  const next = came[row] ? ` (then came ${came[row]})` : "";
  return make("p", `after ${after}, at ${read[row]}${next}`);
}

function makeCell([name, p, came], column, read) {
  const cell = make("td", name + (came ? " ✓" : ""));
  if (came) cell.className = "came";
  const about = [`${name} ${percent(p)}`, columnName(column), `read ${read}`];
  if (came) about.push("came next");
  cell.setAttribute("role", "gridcell");
  cell.setAttribute("aria-label", about.join(", "));
  cell.style.setProperty("--share", `${75 * p}%`);
  return cell;
}

function makeRow(cells, read) {
  const row = make("tr", "");
  row.append(makeHead(read, "row"), ...cells.map(([best], i) => makeCell(best, i, read)));
  return row;
}

function render({ model, el }) {
  el.innerHTML = INSIDE;
  const head = el.querySelector("thead");
  const body = el.querySelector("tbody");
  const top = el.querySelector(".top");
  let chosen = [Infinity, Infinity]; // at first the last cell

  function inside([row, column]) {
    const cells = model.get("shown").top;
    const clip = (k, n) => Math.max(0, Math.min(n - 1, k));
    return [clip(row, cells.length), clip(column, cells[0].length)];
  }

  // Make this cell the one that Tab leads to.
  function tabTo([row, column]) {
    const cell = body.rows[row].cells[column + 1];
    for (const other of body.querySelectorAll("td")) other.tabIndex = other === cell ? 0 : -1;
    return cell;
  }

  function choose(spot) {
    const shown = model.get("shown");
    chosen = inside(spot);
    const [row, column] = chosen;
    const cell = tabTo(chosen);
    for (const other of body.querySelectorAll("td")) {
      other.setAttribute("aria-selected", other === cell);
    }
    top.replaceChildren(makeTopTitle(shown, chosen), ...shown.top[row][column].map(makeTopRow));
    return cell;
  }

  function build() {
    const shown = model.get("shown");
    if (!shown.top) return;
    const names = shown.top[0].map((_, column) => makeHead(columnName(column), "col"));
    const line = make("tr", "");
    line.append(makeHead("token read"), ...names);
    head.replaceChildren(line);
    body.replaceChildren(...shown.top.map((cells, row) => makeRow(cells, shown.read[row])));
    choose(chosen);
  }

  function spotOf(cell) {
    return [cell.parentNode.rowIndex - 1, cell.cellIndex - 1];
  }

  body.onclick = (event) => {
    const cell = event.target.closest("td");
    if (cell) choose(spotOf(cell)).focus();
  };
  body.onkeydown = (event) => {
    const cell = event.target.closest("td");
    if (!cell) return;
    const [row, column] = spotOf(cell);
    const goals = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [row, 0],
      End: [row, Infinity],
    };
    if (event.key in goals) {
      tabTo(inside(goals[event.key])).focus();
    } else if (event.key === "Enter" || event.key === " ") {
      choose([row, column]);
    } else {
      return;
    }
    event.preventDefault();
  };
  model.on("change:shown", build);
  build();
  return () => model.off("change:shown", build);
}

export default { render };
