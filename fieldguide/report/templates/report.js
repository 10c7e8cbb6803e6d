"use strict";
// The search above the table of all classes, which is complete without it.
const search = document.getElementById("class-search");
const rows = Array.from(document.querySelectorAll("#classes tbody tr"), (row) => [row, row.cells[0].textContent.toLowerCase()]);
search.closest("p").hidden = false;
search.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const [row, name] of rows) {
    row.hidden = !words.every((word) => name.includes(word));
    shown += !row.hidden;
  }
  document.querySelector("output[for=class-search]").textContent = shown.toLocaleString("en") + " of " + rows.length.toLocaleString("en");
});
