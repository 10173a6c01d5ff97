// The cost strip as a map of the model: click a bar to find it, arrows go from one to the next.
function makeStrip(strip, places, { choose, point, leave }) {
  const drawing = strip.querySelector("svg");
  const count = Math.max(places.length, 1);
  let at = -1;

  const indexAt = (event) => {
    const { left, width } = drawing.getBoundingClientRect();
    return Math.min(count - 1, Math.max(0, Math.floor(((event.clientX - left) / width) * count)));
  };
  const span = (kind, from, to) => {
    const bar = document.createElement("div");
    bar.className = kind;
    const inset = drawing.offsetLeft || 6;
    bar.style.left = `calc(${inset}px + (100% - ${2 * inset}px) * ${from / count})`;
    bar.style.width = `calc((100% - ${2 * inset}px) * ${(to - from) / count})`;
    strip.append(bar);
  };
  const clear = (kind) => strip.querySelectorAll(`.${kind}`).forEach((each) => each.remove());

  function mark(indices) {
    clear("here");
    indices.slice(0, 200).forEach((index) => span("here", index, index + 1));
    if (indices.length) at = indices[0];
    strip.setAttribute("aria-valuenow", String(at + 1));
    strip.setAttribute("aria-valuetext", at < 0 ? "nothing selected" : `${places[at].path || places[at].is}`);
  }

  // Which part of the model is in sight in the picture.
  function seen(indices) {
    clear("seen");
    if (indices.length) span("seen", Math.min(...indices), Math.max(...indices) + 1);
  }

  strip.tabIndex = 0;
  strip.setAttribute("role", "slider");
  strip.setAttribute("aria-valuemin", "0");
  strip.setAttribute("aria-valuemax", String(places.length));
  mark([]);
  strip.addEventListener("click", (event) => choose(places[indexAt(event)]));
  strip.addEventListener("pointermove", (event) => point(places[indexAt(event)], event.clientX, event.clientY));
  strip.addEventListener("pointerleave", leave);
  strip.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!by || !places.length) return;
    event.preventDefault();
    choose(places[Math.min(count - 1, Math.max(0, at + by))]);
  });
  return { mark, seen };
}
