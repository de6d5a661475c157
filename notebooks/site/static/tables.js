// The scoreboard's tables: a click on a heading sorts, two menus and a word filter.
document.addEventListener("DOMContentLoaded", () => {
  const parts = JSON.parse(document.getElementById("parts")?.textContent || "null");
  if (!parts) return;
  for (const table of document.querySelectorAll("article table")) {
    const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
    const verdict = heads.findIndex((cell) => cell.textContent.trim() === "verdict");
    if (verdict < 0) continue;
    sortable(table, heads);
    const said = (row) => row.cells[verdict].querySelector("strong").textContent;
    const part = (row) => parts[row.cells[0].textContent.trim()];
    const bar = document.createElement("div");
    bar.className = "filters";
    const word = document.createElement("input");
    word.type = "search";
    const menus = [menu(rows.map(said)), menu(rows.map(part))];
    const show = () => rows.forEach((row) => {
      row.hidden = (menus[0].value && said(row) !== menus[0].value)
        || (menus[1].value && part(row) !== menus[1].value)
        || !row.textContent.toLowerCase().includes(word.value.toLowerCase());
    });
    [["verdict ", menus[0]], ["part ", menus[1]], ["word ", word]].forEach(([text, field]) => {
      const label = document.createElement("label");
      label.append(text, field);
      field.addEventListener("input", show);
      bar.append(label);
    });
    (table.closest(".pst-scrollable-table-container") || table).before(bar);
  }
});

function menu(values) {
  const select = document.createElement("select");
  select.append(new Option("all", ""),
    ...[...new Set(values)].sort().map((value) => new Option(value, value)));
  return select;
}

function sortable(table, heads) {
  heads.forEach((head, column) => {
    head.classList.add("sortable");
    head.tabIndex = 0;
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent.trim().replace("−", "-");
      const number = (text) => (/^[+-]?[\d.]+/.test(text) ? parseFloat(text) : NaN);
      [...table.tBodies[0].rows].sort((a, b) => {
        const x = number(key(a)), y = number(key(b));
        const order = isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b)) : x - y;
        return up ? order : -order;
      }).forEach((row) => table.tBodies[0].append(row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
