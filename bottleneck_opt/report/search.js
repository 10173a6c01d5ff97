// Find a layer by its path, or by what it is.
const MOST_HITS = 30;

function makeSearch(input, list, places, choose) {
  const texts = places.map((place) => `${place.path}\n${place.is}`.toLowerCase());
  let hits = [];
  let at = 0;

  function find(words) {
    const parts = words.toLowerCase().split(/\s+/).filter(Boolean);
    if (!parts.length) return [];
    const found = places.filter((place, index) => parts.every((part) => texts[index].includes(part)));
    return found.sort((a, b) => rank(a, parts[0]) - rank(b, parts[0]));
  }

  // What changed first, then paths that begin with the words, then the rest in order.
  function rank(place, word) {
    return (place.change === "same" ? 2 : 0) + (place.path.toLowerCase().startsWith(word) ? 0 : 1);
  }

  function show() {
    list.replaceChildren();
    hits.slice(0, MOST_HITS).forEach((place, index) => {
      const item = make("li", place.path || place.is);
      item.id = `hit-${index}`;
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", String(index === at));
      item.append(make("span", place.path ? place.is : ""));
      item.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        take(place);
      });
      list.append(item);
    });
    if (!hits.length && input.value.trim()) list.append(make("li", "Nothing found: try a part of a path, or an operation", "none"));
    if (hits.length > MOST_HITS) list.append(make("li", `and ${hits.length - MOST_HITS} more`, "none"));
    const open = list.children.length > 0;
    list.hidden = !open;
    input.setAttribute("aria-expanded", String(open));
    if (hits.length) input.setAttribute("aria-activedescendant", `hit-${at}`);
    else input.removeAttribute("aria-activedescendant");
    list.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
  }

  function close() {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
  }

  function take(place) {
    close();
    input.blur();
    choose(place);
  }

  input.addEventListener("input", () => {
    hits = find(input.value);
    at = 0;
    show();
  });
  input.addEventListener("focus", () => {
    if (input.value.trim()) show();
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && hits[at]) take(hits[at]);
    else if (event.key === "Escape") input.blur();
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      const count = Math.min(hits.length, MOST_HITS);
      at = count ? (at + (event.key === "ArrowDown" ? 1 : -1) + count) % count : 0;
      show();
    }
  });
}
