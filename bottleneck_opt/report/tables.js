// Tables: sorted by a click on a column's name, and their rows find their layer in the picture.
function sortTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.querySelectorAll("th[data-sort]")) {
      const sorter = button(head.textContent, () => sortBy(table, head));
      head.replaceChildren(sorter);
    }
  }
}

function sortBy(table, head) {
  const column = [...head.parentElement.children].indexOf(head);
  const numeric = table.querySelector(`tbody tr`)?.children[column]?.dataset.value !== undefined;
  const falling = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : numeric;
  const value = (row) => {
    const cell = row.children[column];
    return numeric ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const order = new Intl.Collator("en", { numeric: true }).compare;
  const compare = numeric ? (a, b) => value(a) - value(b) : (a, b) => order(value(a), value(b));
  const sorted = [...table.tBodies[0].rows].sort((a, b) => (falling ? -1 : 1) * compare(a, b));
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  table.tBodies[0].append(...sorted);
}

function makeRows(places, choose) {
  const byPath = new Map();
  for (const place of places) if (!byPath.has(place.path)) byPath.set(place.path, place);
  const rows = new Map();
  for (const row of document.querySelectorAll("[data-path]")) {
    const place = byPath.get(row.dataset.path);
    if (!place) continue;
    rows.set(place.path, [...(rows.get(place.path) || []), row]);
    row.addEventListener("click", () => choose(place));
    const cell = row.querySelector("[data-path-cell]");
    if (!cell) continue;
    row.classList.add("findable");
    const label = make("button", "", "path");
    label.type = "button";
    label.title = "Find it in the picture";
    label.append(...cell.childNodes);
    cell.append(label);
  }

  function mark(paths) {
    for (const row of document.querySelectorAll("tr.selected")) row.classList.remove("selected");
    for (const path of paths) for (const row of rows.get(path) || []) row.classList.add("selected");
  }

  // Scroll to a layer's row; only say whether there is one if asked so.
  function show(place, only = false) {
    const row = (rows.get(place.path) || []).find((each) => each.matches("tr"));
    if (!row || only) return Boolean(row);
    const folded = row.closest("details");
    if (folded) folded.open = true;
    row.scrollIntoView({ block: "center" });
    row.querySelector("button")?.focus({ preventScroll: true });
    return true;
  }

  return { mark, show };
}
