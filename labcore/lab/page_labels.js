// Names for what a page's widgets and plots leave unnamed, and keys of their own for those that lack them. Their
// Python sides offer no way to set these, so one observer per page sets them on all, whenever they appear.
(() => {
  if (window.labcoreLabels) return;
  window.labcoreLabels = true;

  const words = node => (node?.textContent ?? "").replace(/\s+/g, " ").trim();
  const set = (node, name, value) => {
    if (node && value && node.getAttribute(name) !== value) node.setAttribute(name, value);
  };

  // The handle is named by the visible label, and its value is what is shown beside it ("4,096", not "3").
  const slider = box => {
    const label = words(box.querySelector(".widget-label"));
    const readout = box.querySelector(".widget-readout");
    for (const handle of box.querySelectorAll("[role=slider]")) {
      set(handle, "aria-label", label);
      set(handle, "aria-valuetext", words(readout));
    }
    set(readout, "role", "textbox");
    set(readout, "aria-label", `${label}, as text`);
  };

  const toggles = box => {
    set(box, "role", "group");
    set(box, "aria-label", words(box.querySelector(".widget-label")));
    for (const button of box.querySelectorAll(".widget-toggle-button"))
      set(button, "aria-pressed", String(button.classList.contains("mod-active")));
  };

  // One picture, told by its title and by the sentence below it. Plotly draws on several layers.
  const plot = graph => {
    const [picture, ...layers] = graph.querySelectorAll(".main-svg");
    const below = graph.closest(".jp-OutputArea-child")?.nextElementSibling;
    const told = [words(graph.querySelector(".gtitle")), words(below?.querySelector(".labcore-note"))];
    set(picture, "role", "img");
    set(picture, "aria-label", `Figure: ${told.filter(Boolean).join(". ")}`);
    for (const layer of layers) set(layer, "aria-hidden", "true");
  };

  // JupyterLab would take the arrow keys, and move on to the next cell.
  const ownKeys = node => set(node, "data-lm-suppress-shortcuts", "true");

  // A wide table scrolls inside its output; it must be reachable for the arrow keys to scroll it.
  const scroller = box => {
    ownKeys(box);
    if (box.scrollWidth > box.clientWidth + 1) set(box, "tabindex", "0");
    else if (box.getAttribute("tabindex") === "0") box.removeAttribute("tabindex");
  };

  // What a control changed is said aloud: the sentence below its figure.
  const said = Object.assign(document.createElement("div"), { className: "labcore-said" });
  said.setAttribute("role", "status");
  document.body.append(said);
  let at = null, heard = "";
  const say = () => {
    const cell = document.activeElement?.closest(".jp-OutputArea-output")?.closest(".jp-Cell") ?? null;
    const now = cell ? [...cell.querySelectorAll(".labcore-note")].map(words).join(" ") : "";
    if (cell && cell === at && now && now !== heard) said.textContent = now;
    at = cell;
    heard = now;
  };

  const all = (selector, act) => document.querySelectorAll(selector).forEach(act);
  const label = () => {
    waiting = false;
    all(".widget-slider", slider);
    all(".widget-toggle-buttons", toggles);
    all(".widget-dropdown select, .noUi-handle", ownKeys);
    all(".js-plotly-plot", plot);
    all(".jp-RenderedHTMLCommon:has(.labcore-table)", scroller);
    say();
  };
  let waiting = false;
  const soon = () => {
    if (!waiting) setTimeout(label, 50);
    waiting = true;
  };
  const watched = { childList: true, subtree: true, attributes: true, attributeFilter: ["aria-valuetext", "class"] };
  new MutationObserver(soon).observe(document.body, watched);
  window.addEventListener("resize", soon);
  soon();
})();
