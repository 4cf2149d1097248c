// The loss, the learning rate and the speed of a training run as curves, and a line of words above.
// A point is [step, mean, lowest, highest]. The picture is replaced as a whole: nothing flickers.

const BLUE = "#0072B2";
const ORANGE = "#D55E00";
const INK = "currentColor";
const GREY = 'stroke="var(--jp-border-color1, #bbb)" stroke-width="1"';
const LOSS_TICKS = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50];
const INSIDE = `
  <div class="llm-training">
    <div class="line"><b role="status"></b> <span></span></div>
    <svg viewBox="0 0 720 324" role="img"></svg>
  </div>`;

function write(x, y, anchor, text) {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}">${text}</text>`;
}

function brief(value) {
  if (value >= 1000) return value.toLocaleString("en", { maximumSignificantDigits: 3 });
  return String(Number(value.toPrecision(3)));
}

// What one panel is made of: `x` and `y` place a step and a value, the rest draws with them.
function makePanel({ left, top, width, height, title, steps, low, high, log }) {
  const scale = log ? (value) => Math.log(Math.max(value, 1e-9)) : (value) => value;
  const span = scale(high) - scale(low) || 1;
  const bottom = top + height;
  const x = (step) => left + (width * (step - steps[0])) / Math.max(1, steps[1] - steps[0]);
  const y = (value) => top + height * (1 - (scale(value) - scale(low)) / span);

  function path(points, looks) {
    if (!points.length) return "";
    const spots = points.map(([step, value]) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`);
    return `<path d="M${spots.join("L")}" ${looks}/>`;
  }

  function line(points, color, looks = 'stroke-width="2"') {
    return path(points, `fill="none" stroke="${color}" ${looks}`);
  }

  function band(points, color) {
    const highest = points.map((point) => [point[0], point[3]]);
    const lowest = points.map((point) => [point[0], point[2]]).reverse();
    return path([...highest, ...lowest], `fill="${color}" stroke="${color}" opacity="0.4"`);
  }

  function rule(value) {
    const across = `<path d="M${left} ${y(value)}H${left + width}" ${GREY} stroke-opacity="0.5"/>`;
    return across + write(left - 5, y(value) + 4, "end", brief(value));
  }

  function axes(ticks) {
    const corner = `<path d="M${left} ${top}V${bottom}H${left + width}" fill="none" ${GREY}/>`;
    const last = steps[1].toLocaleString("en");
    return [
      write(left, top - 9, "start", title),
      ...ticks.map(rule),
      corner,
      write(left, bottom + 15, "start", `step ${brief(steps[0])}`),
      write(left + width, bottom + 15, "end", last),
    ].join("");
  }

  return { x, y, line, band, axes };
}

// The names at the ends of curves, moved apart where they would overlap.
function drawLabels(ends, x, bottom) {
  const apart = 15;
  ends.sort((a, b) => a.y - b.y);
  for (let i = 1; i < ends.length; i++) {
    ends[i].y = Math.max(ends[i].y, ends[i - 1].y + apart);
  }
  let lowest = bottom;
  for (let i = ends.length - 1; i >= 0; i--) {
    ends[i].y = Math.min(ends[i].y, lowest);
    lowest = ends[i].y - apart;
  }
  const draw = ({ y, text, color }) =>
    `<path d="M${x} ${y}h12" stroke="${color}" stroke-width="3"/>` +
    write(x + 17, y + 4, "start", text);
  return ends.map(draw).join("");
}

function lossRange({ loss, valid, floor }) {
  const extremes = loss.flatMap((point) => [point[2], point[3]]);
  const all = [...extremes, ...valid.map((point) => point[1])];
  if (floor !== null) all.push(floor);
  if (!loss.length) return [Math.min(1, ...all) * 0.92, 10];
  return [Math.min(...all) * 0.92, Math.max(...all) * 1.08];
}

function lossPanel({ loss, smooth, valid, floor, steps }) {
  const [low, high] = lossRange({ loss, valid, floor });
  const title = "loss (nats a token)";
  const size = { left: 62, top: 24, width: 512, height: 176 };
  const panel = makePanel({ ...size, title, steps, low, high, log: true });
  const ends = [];

  function name(value, text, color) {
    ends.push({ y: panel.y(value), text: `${text} ${value.toFixed(3)}`, color });
  }

  if (smooth.length) name(smooth.at(-1)[1], "training", BLUE);
  if (valid.length) name(valid.at(-1)[1], "validation", ORANGE);
  if (floor !== null) name(floor, "floor", INK);
  const ground = floor === null ? [] : steps.map((step) => [step, floor]);
  const dot = ([step, value]) =>
    `<circle cx="${panel.x(step).toFixed(1)}" cy="${panel.y(value).toFixed(1)}" r="3"
      fill="${ORANGE}"/>`;
  return [
    panel.axes(LOSS_TICKS.filter((value) => low <= value && value <= high)),
    panel.line(ground, INK, 'stroke-dasharray="5 4"'),
    panel.band(loss, BLUE),
    panel.line(smooth, BLUE),
    panel.line(valid, ORANGE),
    ...valid.map(dot),
    drawLabels(ends, 582, 198),
  ].join("");
}

function smallPanel(points, title, left, steps) {
  const high = Math.max(1e-12, ...points.map((point) => point[1]));
  const size = { left, top: 250, width: 208, height: 52 };
  const panel = makePanel({ ...size, title, steps, low: 0, high: 1.05 * high, log: false });
  return panel.axes(points.length ? [0, high] : []) + panel.line(points, BLUE);
}

function render({ model, el }) {
  el.innerHTML = INSIDE;
  const state = el.querySelector("b");
  const line = el.querySelector("span");
  const svg = el.querySelector("svg");

  function draw() {
    const shown = model.get("shown");
    if (!shown.state) return;
    // A screen reader hears when the run begins, pauses or ends, not every number.
    if (state.textContent !== shown.state) state.textContent = shown.state;
    line.textContent = shown.says;
    svg.setAttribute("aria-label", `Loss, learning rate and tokens a second: ${shown.says}`);
    svg.innerHTML =
      lossPanel(shown) +
      smallPanel(shown.rate, "learning rate", 62, shown.steps) +
      smallPanel(shown.speed, "tokens/s", 366, shown.steps);
  }

  model.on("change:shown", draw);
  draw();
  return () => model.off("change:shown", draw);
}

export default { render };
