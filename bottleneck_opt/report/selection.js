// What is selected: some places, and the boxes, rows, bars and the card that show them.
function makeSelection({ places, pictures, viewport, inspector, strip, rows, stage }) {
  const byBox = new Map();
  places.forEach((place) => place.boxes.forEach((key) => byBox.set(key, [...(byBox.get(key) || []), place])));
  const changed = [...byBox].filter(([, inside]) => inside.some((place) => place.change !== "same"));
  const stops = uniqueStops(changed);
  const state = { places: [], boxes: [] };

  function select(chosen, { boxes = chosen.flatMap((place) => place.boxes), show = true } = {}) {
    clearMarks();
    state.places = chosen;
    state.boxes = [...new Set(boxes)];
    mark();
    strip.mark(chosen.map((place) => place.index));
    rows.mark(chosen.map((place) => place.path));
    if (show) reveal();
    inspector.show(chosen);
    const words = chosen.length === 1 ? `${chosen[0].path || chosen[0].is}, ${chosen[0].is}` : `${chosen.length} operations`;
    document.getElementById("status").textContent = `Selected ${words}`;
    document.getElementById("change-count").textContent = countWords();
  }

  function reveal() {
    const areas = state.boxes.map(pictures.node).filter(Boolean).map(areaOf);
    if (areas.length) viewport.show(areas.reduce(join));
  }

  function mark() {
    for (const key of state.boxes) {
      for (const node of pictures.nodes(key)) {
        node.classList.add("selected");
        frame(node, true);
      }
    }
  }

  function clearMarks() {
    for (const node of stage.querySelectorAll(".node.selected")) {
      node.classList.remove("selected");
      frame(node, false);
    }
  }

  function clear() {
    clearMarks();
    state.places = state.boxes = [];
    strip.mark([]);
    rows.mark([]);
    inspector.rest();
    document.getElementById("change-count").textContent = countWords();
  }

  const selectBox = (key, options = {}) => select(byBox.get(key) || [], { boxes: boxesBeside(key), ...options });

  // A box of one rewritten layer is selected with those that stand beside it for the same layer.
  function boxesBeside(key) {
    const inside = byBox.get(key) || [];
    return inside.length === 1 ? inside[0].boxes : [key];
  }

  function step(by) {
    if (!stops.length) return;
    const now = currentStop();
    const next = now < 0 ? (by > 0 ? 0 : stops.length - 1) : (now + by + stops.length) % stops.length;
    bringIntoSight(stage);
    selectBox(stops[next]);
  }

  const currentStop = () => stops.findIndex((key) => state.boxes.includes(key));
  function countWords() {
    const now = currentStop();
    return now < 0 ? `${stops.length} changes` : `${now + 1} of ${stops.length}`;
  }

  return { select, selectBox, clear, mark, step, reveal, countWords, inside: (key) => byBox.get(key) || [], stops };
}

// One stop for each changed box, and one only for the boxes of the same layer.
function uniqueStops(changed) {
  const seen = new Set();
  return changed.filter(([, inside]) => {
    const fresh = inside.some((place) => place.change !== "same" && !seen.has(place.index));
    inside.forEach((place) => seen.add(place.index));
    return fresh;
  }).map(([key]) => key);
}

function join(a, b) {
  const [x, y] = [Math.min(a.x, b.x), Math.min(a.y, b.y)];
  return { x, y, width: Math.max(a.x + a.width, b.x + b.width) - x, height: Math.max(a.y + a.height, b.y + b.height) - y };
}

function bringIntoSight(element) {
  const { top, bottom } = element.getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) element.scrollIntoView({ block: "center" });
}
