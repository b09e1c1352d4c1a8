"use strict";
// Everything works without this script. It adds keys, sorting of tables, and forms that are sent when something is chosen.
(() => {
  const one = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const help = one("#help");
  const follow = (relation) => one(`a[rel=${relation}]`)?.click();

  const layer = (number) => one(`[data-layer="${number}"]`)?.classList.toggle("off");
  const keys = {
    "/": () => { one("details.filters")?.setAttribute("open", ""); one("input[type=search]")?.focus(); },
    ArrowRight: () => follow("next"), j: () => follow("next"),
    ArrowLeft: () => follow("prev"), k: () => follow("prev"),
    u: () => follow("up"),
    b: () => document.body.classList.toggle("bare"),
    "?": () => help.showModal(),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.closest("input:not([type=image]):not([type=checkbox]), select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const act = /^[1-9]$/.test(event.key) ? () => layer(event.key) : keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  const button = one("[data-help]");
  button.hidden = false;
  button.addEventListener("click", keys["?"]);

  if (matchMedia("(max-width: 820px)").matches) one("[data-folded-on-phones]")?.removeAttribute("open");

  // A form sends only what was chosen, so that addresses stay short.
  for (const form of all("form[method=get]")) {
    form.addEventListener("submit", () => {
      for (const field of form.elements) if (field.name && field.type !== "image" && field.value === "") field.disabled = true;
    });
    form.addEventListener("change", (event) => {
      if (event.target.matches("select, input[type=checkbox], input[list]")) form.requestSubmit();
    });
  }
  addEventListener("pageshow", () => { for (const field of all("form :disabled")) field.disabled = false; });

  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[index].dataset.value;
      const numeric = [...table.tBodies[0].rows].every((row) => value(row) !== "" && !Number.isNaN(Number(value(row))));
      const compare = (a, b) => (numeric ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b)));
      const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? compare(b, a) : compare(a, b)));
      table.tBodies[0].append(...rows);
    }));
  }
})();
