/* Widgets on a page without a kernel. Each is a JSON of its models, as Jupyter's kernel left them (see docs/live.py). A view that says
   `without_kernel`, and a list that is linked to one, work; what would have to ask a kernel is shown, grey and at rest. */
"use strict";

class Model {
  constructor({ model_name, state, buffers = [] }) {
    Object.assign(this, { name: model_name, state, heard: [] });
    for (const { path: [key], data } of buffers) state[key] = new DataView(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer);
  }
  get(key) { return this.state[key]; }
  set(key, value) {
    if (this.state[key] === value) return;
    this.state[key] = value;
    for (const [name, act] of [...this.heard]) if (name === `change:${key}` || name === "change") act();
  }
  on(names, act) { for (const name of names.split(" ")) this.heard.push([name, act]); }
  off(names, act) { this.heard = this.heard.filter(([name, known]) => !(names.split(" ").includes(name) && (!act || act === known))); }
  save_changes() {}   // there is no kernel to tell
  send() {}
}

const element = (tag, more = {}, ...children) => { const made = Object.assign(document.createElement(tag), more); made.append(...children); return made; };
const labelled = (model, control) => element("label", { className: "live-control" }, element("span", { textContent: model.get("description") }), control);

const DRAW = {
  VBoxModel: (model, draw) => element("div", { className: "live-rows" }, ...model.get("children").map(draw)),
  HBoxModel: (model, draw) => element("div", { className: "live-columns" }, ...model.get("children").map(draw)),
  HTMLModel: (model) => element("div", { innerHTML: model.get("value") }),
  TextareaModel: (model) => labelled(model, element("textarea", { value: model.get("value"), disabled: true, rows: 2 })),
  DropdownModel: (model) => {
    const choice = element("select", { disabled: !model.linked }, ...model.get("_options_labels").map((name) => element("option", { textContent: name })));
    choice.selectedIndex = model.get("index");
    choice.onchange = () => model.set("index", choice.selectedIndex);
    return labelled(model, choice);
  },
  AnyModel: (model) => {
    const el = element("div", { inert: !model.get("without_kernel") });
    if (!document.querySelector(`style[data-of="${model.get("_anywidget_id")}"]`)) {
      const style = element("style", { textContent: model.get("_css") });
      style.dataset.of = model.get("_anywidget_id");
      document.head.append(style);
    }
    import(`data:text/javascript,${encodeURIComponent(model.get("_esm"))}`).then((view) => view.default.render({ model, el }));
    return el;
  },
};

function enliven(place) {
  const { root, models } = JSON.parse(place.querySelector("script").textContent), known = {};
  for (const id in models) known[id] = new Model(models[id]);
  const find = (name) => known[name.replace("IPY_MODEL_", "")], draw = (name) => DRAW[find(name).name](find(name), draw);
  for (const link of Object.values(known).filter(({ name }) => name === "LinkModel")) {
    const [[from, key], [to, other]] = [link.get("source"), link.get("target")].map(([name, key]) => [find(name), key]);
    from.linked = true;
    from.on(`change:${key}`, () => to.set(other, from.get(key)));
  }
  place.replaceChildren(element("p", { textContent: "No kernel runs behind this page, so what is grey rests: run the cell in Jupyter to type a text of your own." }), draw(root));
}

for (const place of document.querySelectorAll(".live-widget")) enliven(place);
