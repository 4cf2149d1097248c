/* Widgets on a page without a kernel. Each is a JSON of its models, as Jupyter's kernel left them
   (see docs/live.py), their code among them: that of llm_course/static. A view that says
   `without_kernel`, and a list that is linked to one, work; what would have to ask a kernel is
   shown, grey and at rest. */
"use strict";

const NO_KERNEL =
  "No kernel runs behind this page, so what is grey rests: " +
  "run the cell in Jupyter to type a text of your own.";

function fromBase64(data) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  return new DataView(bytes.buffer);
}

/* What a widget's script may ask of its model. */
class Model {
  constructor({ model_name, state, buffers = [] }) {
    this.name = model_name;
    this.state = state;
    this.heard = []; // [event, what to do then]
    this.linked = false;
    for (const { path, data } of buffers) state[path[0]] = fromBase64(data);
  }
  get(key) {
    return this.state[key];
  }
  set(key, value) {
    if (this.state[key] === value) return;
    this.state[key] = value;
    for (const [name, act] of [...this.heard]) {
      if (name === `change:${key}` || name === "change") act();
    }
  }
  on(names, act) {
    for (const name of names.split(" ")) this.heard.push([name, act]);
  }
  off(names, act) {
    const gone = names.split(" ");
    this.heard = this.heard.filter(
      ([name, known]) => !gone.includes(name) || (act && act !== known),
    );
  }
  save_changes() {} // there is no kernel to tell
  send() {}
}

function element(tag, more = {}, ...children) {
  const made = Object.assign(document.createElement(tag), more);
  made.append(...children);
  return made;
}

function labelled(model, control) {
  const name = element("span", { textContent: model.get("description") });
  return element("label", { className: "live-control" }, name, control);
}

function drawBox(model, draw, className) {
  return element("div", { className }, ...model.get("children").map(draw));
}

function drawText(model) {
  const box = element("textarea", { value: model.get("value"), disabled: true, rows: 2 });
  return labelled(model, box);
}

function drawList(model) {
  const names = model.get("_options_labels");
  const options = names.map((name) => element("option", { textContent: name }));
  const choice = element("select", { disabled: !model.linked }, ...options);
  choice.selectedIndex = model.get("index");
  choice.onchange = () => model.set("index", choice.selectedIndex);
  return labelled(model, choice);
}

/* A widget with a script of its own. */
function drawView(model) {
  const el = element("div", { inert: !model.get("without_kernel") });
  const kind = model.get("_anywidget_id");
  if (!document.querySelector(`style[data-of="${kind}"]`)) {
    const style = element("style", { textContent: model.get("_css") });
    style.dataset.of = kind;
    document.head.append(style);
  }
  const script = `data:text/javascript,${encodeURIComponent(model.get("_esm"))}`;
  import(script).then((view) => view.default.render({ model, el }));
  return el;
}

const DRAW = {
  VBoxModel: (model, draw) => drawBox(model, draw, "live-rows"),
  HBoxModel: (model, draw) => drawBox(model, draw, "live-columns"),
  HTMLModel: (model) => element("div", { innerHTML: model.get("value") }),
  TextareaModel: drawText,
  DropdownModel: drawList,
  AnyModel: drawView,
};

function enliven(place) {
  const { root, models } = JSON.parse(place.querySelector("script").textContent);
  const known = {};
  for (const id in models) known[id] = new Model(models[id]);
  const find = (name) => known[name.replace("IPY_MODEL_", "")];
  const draw = (name) => DRAW[find(name).name](find(name), draw);

  for (const link of Object.values(known).filter(({ name }) => name === "LinkModel")) {
    const [sourceName, key] = link.get("source");
    const [targetName, targetKey] = link.get("target");
    const source = find(sourceName);
    const target = find(targetName);
    source.linked = true;
    source.on(`change:${key}`, () => target.set(targetKey, source.get(key)));
  }
  place.replaceChildren(element("p", { textContent: NO_KERNEL }), draw(root));
}

for (const place of document.querySelectorAll(".live-widget")) enliven(place);
