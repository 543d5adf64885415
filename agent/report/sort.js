"use strict";
// A click on a column's head sorts its table: numbers by value, text by letters, n/a last.
function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.sort ?? cell.textContent.trim();
}

function compare(a, b, sign) {
  const missing = (value) => value === "" || value === "n/a";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const numbers = [Number(a), Number(b)];
  if (numbers.every(Number.isFinite)) return sign * (numbers[0] - numbers[1]);
  return sign * a.localeCompare(b);
}

function sortBy(head) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = head.closest("table").tBodies[0];
  const sorted = [...body.rows].sort((a, b) =>
    compare(valueOf(a, head.cellIndex), valueOf(b, head.cellIndex), up ? 1 : -1));
  body.append(...sorted);
}

for (const head of document.querySelectorAll("table.sortable thead th")) {
  head.tabIndex = 0;
  head.title = "sort";
  head.addEventListener("click", () => sortBy(head));
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      sortBy(head);
    }
  });
}
