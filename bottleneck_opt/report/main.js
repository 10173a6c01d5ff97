// Start: read the page's data, connect the parts, listen to keys.
const find = (id) => document.getElementById(id);

function start() {
  document.documentElement.classList.add("scripted");
  const { places } = JSON.parse(find("data").textContent);
  places.forEach((place, index) => { place.index = index; });
  const toggleTheme = makeTheme(find("theme"));
  const help = find("help");
  const openHelp = () => help.showModal();
  find("help-button").addEventListener("click", openHelp);
  find("help-close").addEventListener("click", () => help.close());
  sortTables();
  offerDownloads();
  const general = { d: toggleTheme, "?": openHelp };
  const stage = find("stage");
  listenToKeys(stage ? { ...general, ...startPicture(stage, places) } : general);
  document.documentElement.dataset.ready = "yes";
}

function startPicture(stage, places) {
  const choose = (place) => {
    bringIntoSight(stage);
    selection.select([place]);
  };
  const pictures = makePictures(stage);
  const rows = makeRows(places, choose);
  const tip = makeTip(find("tip"));
  const inspector = makeInspector(find("inspector"), places, { choose, close: () => selection.clear(), toTable: rows.show });
  const strip = makeStrip(find("strip"), places, {
    choose,
    point: (place, x, y) => tip.show([place], x, y),
    leave: tip.hide,
  });
  const areas = measureBoxes(stage);
  const viewport = makeViewport(stage, (view) => {
    find("zoom").textContent = `${view.percent.toFixed(0)} %`;
    strip.seen(inSight(areas, view, places));
    tip.hide();
  });
  const selection = makeSelection({ places, pictures, viewport, inspector, strip, rows, stage });
  makeSearch(find("search"), find("hits"), places, choose);
  const drag = listenToStage(stage, viewport);
  listenToBoxes(stage, selection, tip, drag);
  inspector.rest();

  const setView = (name) => {
    pictures.setView(name);
    viewport.narrow();
    selection.mark();
  };
  for (const control of document.querySelectorAll("button[data-view]")) {
    control.addEventListener("click", () => setView(control.dataset.view));
  }
  const larger = () => viewport.zoom(1.25);
  const smaller = () => viewport.zoom(0.8);
  const actions = {
    previous: () => selection.step(-1), next: () => selection.step(1), "zoom-in": larger, "zoom-out": smaller,
    fit: () => viewport.fit(),
  };
  for (const [id, act] of Object.entries(actions)) find(id).addEventListener("click", act);
  find("change-count").textContent = selection.countWords();
  openAtFirstChange(selection, pictures, viewport);
  return {
    "/": () => {
      bringIntoSight(find("search"));
      find("search").focus();
    },
    n: actions.next, p: actions.previous, f: actions.fit, "+": larger, "=": larger, "-": smaller,
    Escape: () => selection.clear(),
    ...Object.fromEntries(VIEWS.map((name, index) => [String(index + 1), () => setView(name)])),
  };
}

function openAtFirstChange(selection, pictures, viewport) {
  viewport.home();
  const node = selection.stops.length ? pictures.node(selection.stops[0]) : null;
  if (!node) return;
  const pane = node.ownerSVGElement.getBoundingClientRect();
  const box = node.getBoundingClientRect();
  const below = box.top - (pane.top + pane.height / 3);
  const aside = box.left < pane.left || box.right > pane.right ? box.left + box.width / 2 - pane.left - pane.width / 2 : 0;
  viewport.pan(-aside, -Math.max(0, below));
}

function measureBoxes(stage) {
  const areas = new Map();
  for (const node of stage.querySelectorAll(".node")) areas.set(node.dataset.key, areaOf(node));
  return areas;
}

function inSight(areas, view, places) {
  const seen = ({ x, y, width, height }) =>
    x < view.x + view.width && x + width > view.x && y < view.y + view.height && y + height > view.y;
  const keys = new Set([...areas].filter(([, area]) => seen(area)).map(([key]) => key));
  return places.filter((place) => place.boxes.some((key) => keys.has(key))).map((place) => place.index);
}

function listenToBoxes(stage, selection, tip, drag) {
  const boxAt = (event) => event.target.closest(".node");
  for (const key of selection.stops) {
    const node = [...stage.querySelectorAll(".node")].find((each) => each.dataset.key === key);
    if (!node) continue;
    const inside = selection.inside(key);
    node.setAttribute("tabindex", "0");
    node.setAttribute("role", "button");
    node.setAttribute("aria-label", inside.length === 1 ? `${inside[0].path}, ${inside[0].is}` : `${inside.length} operations`);
  }
  stage.querySelector(".pane svg").removeAttribute("aria-hidden");
  stage.addEventListener("click", (event) => {
    if (drag.wasDragged()) return;
    stage.focus({ preventScroll: true });
    const node = boxAt(event);
    if (node) selection.selectBox(node.dataset.key, { show: false });
    else selection.clear();
  });
  stage.addEventListener("keydown", (event) => {
    const node = boxAt(event);
    if (node && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      selection.selectBox(node.dataset.key, { show: false });
    }
  });
  stage.addEventListener("focusin", (event) => {
    const node = boxAt(event);
    if (!node) return;
    frame(node, true);
    node.addEventListener("blur", () => frame(node, node.classList.contains("selected")), { once: true });
  });
  stage.addEventListener("pointermove", (event) => {
    const node = boxAt(event);
    for (const other of stage.querySelectorAll(".node.hover")) {
      if (other === node) continue;
      other.classList.remove("hover");
      if (!other.classList.contains("selected")) frame(other, false);
    }
    if (!node || event.buttons) {
      tip.hide();
      return;
    }
    node.classList.add("hover");
    frame(node, true);
    tip.show(selection.inside(node.dataset.key), event.clientX, event.clientY);
  });
  stage.addEventListener("pointerleave", () => {
    for (const node of stage.querySelectorAll(".node.hover")) {
      node.classList.remove("hover");
      if (!node.classList.contains("selected")) frame(node, false);
    }
    tip.hide();
  });
}

function listenToKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
    if (event.target.matches("input, textarea, select")) return;
    const act = actions[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

start();
