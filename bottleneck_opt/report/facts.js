// What is known about a place, or the list of places that a folded box stands for: beside the pointer, or in the panel.
const MOST_LISTED = 14;

function makeTip(element) {
  element.classList.add("facts");

  // Beside a point, within the window.
  function show(places, x, y) {
    element.replaceChildren(...describe(places));
    element.hidden = false;
    const { width, height } = element.getBoundingClientRect();
    const left = x + 18 + width > innerWidth ? x - width - 14 : x + 18;
    element.style.left = `${Math.max(6, left)}px`;
    element.style.top = `${Math.max(6, Math.min(y + 12, innerHeight - height - 6))}px`;
  }

  const hide = () => {
    element.hidden = true;
  };
  return { show, hide };
}

function makeInspector(element, places, { choose, close, toTable }) {
  element.classList.add("facts");

  function show(chosen) {
    const actions = make("div", "", "actions");
    if (chosen.length === 1 && toTable(chosen[0], true)) actions.append(button("Show in the table", () => toTable(chosen[0])));
    actions.append(button("Close", close));
    element.replaceChildren(...describe(chosen, choose), actions);
    element.classList.add("chosen");
    element.scrollTop = 0;
  }

  // Nothing is selected: the places that most depends on.
  function rest() {
    const changed = places.filter((place) => place.change !== "same");
    const most = (key) => [...changed].sort((a, b) => b[key] - a[key]).slice(0, 6).filter((place) => place[key] > 0);
    const parts = [make("h3", "Click a box, a bar or a row"), make("div", "for all that is known about it.", "is")];
    if (most("loss").length) parts.push(make("h3", "Costs most accuracy"), list(most("loss"), choose));
    if (most("saved").length) parts.push(make("h3", "Saves most"), list(most("saved"), choose, savings));
    element.replaceChildren(...parts);
    element.classList.remove("chosen");
  }

  return { show, rest };
}

function describe(places, choose = null) {
  return places.length === 1 ? describeOne(places[0]) : describeMany(places, choose);
}

function describeOne(place) {
  const facts = document.createElement("dl");
  for (const [name, value] of place.facts) facts.append(make("dt", name), make("dd", value.replaceAll(" %", "\u00a0%")));
  return [make("h3", place.path || place.is), make("div", place.path ? place.is : "", "is"), facts];
}

function describeMany(places, choose) {
  const changed = places.filter((place) => place.change !== "same");
  const shown = changed.length ? changed : places;
  const words = `${places.length} operations${changed.length ? `, ${changed.length} rewritten` : ""}`;
  const parts = [make("h3", words), list(shown.slice(0, MOST_LISTED), choose)];
  if (shown.length > MOST_LISTED) parts.push(make("div", `and ${shown.length - MOST_LISTED} more`, "is"));
  return parts;
}

function list(places, choose, say = brief) {
  const items = document.createElement("ol");
  for (const place of places) {
    const item = document.createElement("li");
    const name = place.path || place.is;
    item.append(choose ? button(name, () => choose(place)) : make("span", name));
    item.append(make("span", ` ${say(place)}`, "is"));
    items.append(item);
  }
  return items;
}

function brief(place) {
  const facts = Object.fromEntries(place.facts);
  const rank = facts.rank ? `rank ${facts.rank}` : facts.channels ? `channels ${facts.channels}` : "";
  return [rank, facts["predicted loss"] || facts["of all MACs"] || ""].filter(Boolean).join(", ");
}

const savings = (place) => Object.fromEntries(place.facts).MACs || "";

function make(name, words, kind = "") {
  const element = document.createElement(name);
  element.textContent = words;
  if (kind) element.className = kind;
  return element;
}

function button(words, act, kind = "") {
  const made = make("button", words, kind);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}
