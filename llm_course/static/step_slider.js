// A slider from 0 to `max`, both of which may change, and under it the line `says`.

const INSIDE = `
  <div class="llm-step">
    <label></label>
    <input type="range" min="0" data-lm-suppress-shortcuts="true">
    <div></div>
  </div>`;

function render({ model, el }) {
  el.innerHTML = INSIDE;
  const [label, range, line] = el.querySelector(".llm-step").children;
  label.textContent = model.get("description");
  range.setAttribute("aria-label", model.get("description"));

  function draw() {
    range.max = model.get("max");
    range.value = model.get("value");
    range.disabled = model.get("max") === 0;
    range.setAttribute("aria-valuetext", model.get("says"));
    line.textContent = model.get("says");
  }

  range.addEventListener("input", () => {
    model.set("value", Number(range.value));
    model.save_changes();
  });
  model.on("change", draw);
  draw();
  return () => model.off("change", draw);
}

export default { render };
