// The panes: the diff, the model before, the model after, or these two side by side. All are the same drawing.
const VIEWS = ["before", "after", "diff", "both"];
const NAMES = { before: "Before", after: "After", diff: "" };

function makePictures(stage) {
  const main = stage.querySelector(".pane");
  prepareNodes(main);
  let view = "diff";

  function setView(name) {
    view = name;
    const shows = name === "both" ? ["before", "after"] : [name];
    while (stage.querySelectorAll(".pane").length < shows.length) main.after(copyPane(main));
    while (stage.querySelectorAll(".pane").length > shows.length) stage.querySelector(".pane:last-of-type").remove();
    stage.querySelectorAll(".pane").forEach((pane, index) => {
      pane.dataset.shows = shows[index];
      pane.firstElementChild.textContent = NAMES[shows[index]];
    });
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === name));
    }
  }

  const nodes = (key) => [...stage.querySelectorAll(".node")].filter((node) => node.dataset.key === key);
  return { setView, view: () => view, nodes, node: (key) => nodes(key)[0] };
}

// The boxes' keys move from their titles, which browsers would show as a tooltip, to an attribute.
function prepareNodes(pane) {
  for (const node of pane.querySelectorAll("g.node, g.edge, g.cluster, g.graph, #figure")) {
    const title = node.querySelector(":scope > title");
    if (!title) continue;
    if (node.classList.contains("node")) node.dataset.key = title.textContent;
    title.remove();
  }
  for (const link of pane.querySelectorAll("a")) {
    link.removeAttribute("xlink:title");
    link.removeAttributeNS("http://www.w3.org/1999/xlink", "title");
  }
}

function copyPane(pane) {
  const copy = pane.cloneNode(true);
  for (const element of copy.querySelectorAll("[id]")) element.removeAttribute("id");
  for (const node of copy.querySelectorAll("[tabindex]")) node.removeAttribute("tabindex");
  return copy;
}

// Where a box is in the drawing.
function areaOf(node) {
  const box = node.getBBox();
  const shift = node.ownerSVGElement.querySelector("g").transform.baseVal.consolidate();
  const { e, f } = shift ? shift.matrix : { e: 0, f: 0 };
  return { x: box.x + e, y: box.y + f, width: box.width, height: box.height };
}

// A frame around a box, there while it is selected or pointed at.
function frame(node, framed) {
  const known = node.querySelector(":scope > .halo");
  if (!framed) {
    known?.remove();
    return;
  }
  if (known) return;
  const box = node.getBBox();
  const halo = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const at = { x: box.x - 5, y: box.y - 5, width: box.width + 10, height: box.height + 10, rx: 4 };
  for (const [name, value] of Object.entries(at)) halo.setAttribute(name, String(value));
  halo.setAttribute("class", "halo");
  node.prepend(halo);
}
