// Draws figures when they come near the window, and searches an index that came with the page.
"use strict";

function draw(figure) {
  const place = figure.querySelector("div");
  const {data, layout} = JSON.parse(figure.querySelector("script").textContent);
  Plotly.newPlot(place, data, {...layout, autosize: true}, {responsive: true, displaylogo: false});
  figure.classList.add("drawn");
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      near.unobserve(entry.target);
      draw(entry.target);
    }
  }
}, {rootMargin: "800px"});

function drawAll() {
  for (const figure of document.querySelectorAll("figure.plot:not(.drawn)")) {
    near.unobserve(figure);
    draw(figure);
  }
}

document.querySelectorAll("figure.plot").forEach((figure) => near.observe(figure));
window.addEventListener("beforeprint", drawAll);

const query = document.getElementById("query");
const found = document.getElementById("found");
const MOST = 12;

function matches(words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  return (window.LAB_SEARCH ?? [])
    .map((entry) => {
      const title = `${entry.page} ${entry.title}`.toLowerCase();
      const text = entry.words.toLowerCase();
      const score = wanted.reduce(
        (sum, word) => sum + (title.includes(word) ? 5 : text.includes(word) ? 1 : -100), 0);
      return {entry, score, at: Math.max(0, text.indexOf(wanted[0]) - 40)};
    })
    .filter((match) => match.score > 0)
    .sort((a, b) => b.score - a.score);
}

function show(words) {
  found.replaceChildren();
  if (!words.trim()) return;
  const all = matches(words);
  const line = document.createElement("p");
  line.textContent = all.length === 0 ? `Nothing holds “${words.trim()}”; try one word of it.`
    : all.length === 1 ? "1 place" : `${all.length} places${all.length > MOST ? `, the first ${MOST}` : ""}`;
  const list = document.createElement("ul");
  for (const {entry, at} of all.slice(0, MOST)) {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = entry.address;
    link.textContent = `${entry.page}: ${entry.title}`;
    const snippet = document.createElement("span");
    snippet.textContent = ` ${at > 0 ? "…" : ""}${entry.words.slice(at, at + 120)}…`;
    item.append(link, snippet);
    list.append(item);
  }
  found.append(line, list);
}

query.addEventListener("input", () => show(query.value));
query.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    query.value = "";
    show("");
  } else if (event.key === "Enter") {
    found.querySelector("a")?.click();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    query.focus();
  }
});
