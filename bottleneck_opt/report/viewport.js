// One window onto the drawing, shared by all panes: what pans or zooms one moves them all.
const NATURAL = 96 / 72; // pixels a point at 100 %
const READABLE = 0.65; // of that
const LARGEST = 8 * NATURAL;

function makeViewport(stage, onChange) {
  const first = stage.querySelector(".pane svg");
  const { width, height } = first.viewBox.baseVal;
  const view = { x: 0, y: 0, scale: NATURAL };
  const panes = () => [...stage.querySelectorAll(".pane")];
  const size = () => {
    const box = panes()[0].getBoundingClientRect();
    return { width: Math.max(box.width, 1), height: Math.max(box.height, 1) };
  };
  const smallest = () => {
    const pane = size();
    return Math.min(NATURAL, pane.width / width, pane.height / height);
  };

  function apply() {
    const pane = size();
    view.scale = Math.min(LARGEST, Math.max(smallest() * 0.9, view.scale));
    const seen = { width: pane.width / view.scale, height: pane.height / view.scale };
    view.x = keepIn(view.x, seen.width, width);
    view.y = keepIn(view.y, seen.height, height);
    for (const { firstElementChild, lastElementChild } of panes()) {
      const svg = lastElementChild || firstElementChild;
      svg.setAttribute("viewBox", `${view.x} ${view.y} ${seen.width} ${seen.height}`);
    }
    onChange({ ...view, ...seen, percent: (100 * view.scale) / NATURAL });
  }

  // A drawing smaller than its window is centred; a larger one may be moved until half of the window is empty.
  function keepIn(start, seen, whole) {
    if (seen >= whole) return (whole - seen) / 2;
    return Math.min(whole - seen / 2, Math.max(-seen / 2, start));
  }

  function zoom(factor, at) {
    const pane = size();
    const point = at || { x: pane.width / 2, y: pane.height / 2 };
    const scale = Math.min(LARGEST, Math.max(smallest() * 0.9, view.scale * factor));
    view.x += point.x / view.scale - point.x / scale;
    view.y += point.y / view.scale - point.y / scale;
    view.scale = scale;
    apply();
  }

  function pan(dx, dy) {
    view.x -= dx / view.scale;
    view.y -= dy / view.scale;
    apply();
  }

  function fit() {
    view.scale = smallest();
    view.x = view.y = 0;
    apply();
  }

  // The whole width from the top, at natural size if there is room, and never too small to read.
  function home() {
    view.scale = Math.max(READABLE * NATURAL, Math.min(NATURAL, size().width / width));
    view.x = (width - size().width / view.scale) / 2;
    view.y = 0;
    apply();
  }

  // Panes have become narrower or wider: keep the drawing within them while it can be read, and its middle in sight.
  function narrow() {
    const wanted = Math.max(READABLE * NATURAL, size().width / width);
    if (view.scale > wanted) zoom(wanted / view.scale, { x: 0, y: 0 });
    view.x = (width - size().width / view.scale) / 2;
    apply();
  }

  // Bring a rectangle of the drawing to the middle, large enough to read.
  function show(area) {
    const pane = size();
    view.scale = Math.max(view.scale, Math.min(NATURAL, pane.width / (area.width + 40)));
    view.x = area.x + area.width / 2 - pane.width / view.scale / 2;
    view.y = area.y + area.height / 2 - pane.height / view.scale / 2;
    apply();
  }

  return { apply, zoom, pan, fit, home, narrow, show };
}

// Wheel, drag, pinch and arrow keys on the stage.
function listenToStage(stage, viewport) {
  const pointers = new Map();
  let moved = 0;
  const place = (event) => {
    const pane = (event.target.closest(".pane") || stage).getBoundingClientRect();
    return { x: event.clientX - pane.left, y: event.clientY - pane.top };
  };

  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && !stage.contains(document.activeElement)) {
      hint(stage, "Click the picture, or hold Ctrl, to zoom with the wheel");
      return;
    }
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1;
    viewport.zoom(Math.exp((-event.deltaY * lines) / 400), place(event));
  }, { passive: false });

  stage.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    moved = 0;
  });
  stage.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = spread(pointers);
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    moved += Math.abs(dx) + Math.abs(dy);
    if (moved <= 4) return;
    if (!stage.hasPointerCapture(event.pointerId)) stage.setPointerCapture(event.pointerId);
    stage.classList.add("dragging");
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2) viewport.zoom(spread(pointers) / before, place(event));
    else viewport.pan(dx, dy);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      stage.classList.remove("dragging");
    });
  }
  stage.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    viewport.pan(...step);
  });
  new ResizeObserver(() => viewport.apply()).observe(stage);
  return { wasDragged: () => moved > 4 };
}

function spread(pointers) {
  const [a, b] = [...pointers.values()];
  return b ? Math.max(1, Math.hypot(a.x - b.x, a.y - b.y)) : 1;
}

function hint(stage, words) {
  let shown = stage.querySelector(".hint");
  if (!shown) {
    shown = document.createElement("div");
    shown.className = "hint";
    stage.append(shown);
  }
  shown.textContent = words;
  clearTimeout(Number(shown.dataset.timer));
  shown.dataset.timer = String(setTimeout(() => shown.remove(), 1600));
}
