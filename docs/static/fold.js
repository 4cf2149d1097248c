/* One switch for all that is folded on a page of package code and tests. It keeps its place from page
   to page; solutions of exercises stay folded. */
"use strict";

const FOLDED = ".tag_package > details, .tag_tests > details, .tag_setup > details";
const KEY = "llm-course-unfolded";

function addSwitch(article) {
  const folded = article.querySelectorAll(FOLDED);
  const matters = article.querySelector(".tag_package > details, .tag_tests > details");
  if (!matters) return;
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = localStorage.getItem(KEY) === "true";
  const label = document.createElement("label");
  label.className = "fold-switch";
  label.append(box, " show package code and tests");
  const set = () => folded.forEach((details) => (details.open = box.checked));
  box.onchange = () => {
    localStorage.setItem(KEY, box.checked);
    set();
  };
  if (box.checked) set();
  const tagline = article.querySelector("h1 + blockquote");
  (tagline ?? article.querySelector("h1")).after(label);
}

for (const article of document.querySelectorAll("article")) addSwitch(article);
