/** Columns that sort when their heading is pressed: numbers as numbers, what is empty last. */
function sortable(table) {
  const body = table.tBodies[0];
  const order = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = element("button", { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      // Largest first, then smallest first, then as it was.
      const next = now === null ? "descending" : now === "descending" ? "ascending" : null;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (next) head.setAttribute("aria-sort", next);
      const value = (row) => {
        const text = row.cells[column].textContent;
        const read = parseFloat(text.replaceAll(",", ""));
        return text === "" ? null : Number.isNaN(read) || column === 0 ? text : read;
      };
      const sign = next === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
      };
      body.append(...(next ? [...order].sort(compare) : order));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
const told = JSON.parse(document.getElementById("data").textContent);
const place = document.querySelector(".viewer");
if (place && told.viewer) document.documentElement.viewer = new Viewer(place, told.viewer);
